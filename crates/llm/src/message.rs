use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One message of a conversation, in our own shape: this is what a run's log keeps, so it only ever grows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Message {
    System {
        text: String,
    },
    User {
        text: String,
    },
    /// What the model said (`text` may be empty) and the tools it calls, in its order.
    Assistant {
        text: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        calls: Vec<Call>,
    },
    /// What the tool answered to the call with this id. Providers refuse a conversation in which a call has none.
    Tool {
        call: String,
        output: String,
    },
}

/// A tool call as the model made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Unique in its message; ours when the provider gave none.
    pub id: String,
    pub name: String,
    /// The model's own text: meant to be a JSON object, and not always one. `{}` when the model sent nothing.
    pub arguments: String,
}

/// A tool that the model may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// 1 to 64 of `a-z A-Z 0-9 _ -`.
    pub name: String,
    pub description: String,
    /// JSON schema of the arguments, an object.
    pub parameters: Value,
}

/// How hard a model that reasons should think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    Low,
    Medium,
    High,
}

impl Effort {
    /// Reads `spec.model.thinking`: `low`, `medium`, `high`; anything else (`off`, empty) asks for none, since the
    /// original never validates the field.
    pub fn parse(thinking: &str) -> Option<Self> {
        match thinking.trim().to_ascii_lowercase().as_str() {
            "low" => Some(Self::Low),
            "medium" => Some(Self::Medium),
            "high" => Some(Self::High),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// One question to a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub model: String,
    pub messages: Vec<Message>,
    pub tools: Vec<Tool>,
    /// Sent only when set: many models refuse the parameter.
    pub thinking: Option<Effort>,
}

/// The whole answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Always [`Message::Assistant`].
    pub message: Message,
    pub usage: Usage,
    pub finish: Finish,
}

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub input: u64,
    pub output: u64,
    /// The provider gave no numbers; these are ours, from the sizes of the texts ([`estimate_tokens`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
}

/// Why the model stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It had said all.
    Stop,
    /// It waits for its tools.
    Calls,
    /// The provider's limit on tokens cut it: text and calls may be incomplete.
    Length,
    /// The provider's filter cut it.
    Filtered,
    /// The provider's own word for something else.
    Other(String),
}

/// A rough count of the tokens in a text: four bytes each, as is usual for English and too many for most else.
pub fn estimate_tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(4)
}

impl Request {
    /// An estimate of the tokens of the question: texts and tools, and four tokens around each message.
    pub(crate) fn estimate(&self) -> u64 {
        let messages: u64 = self.messages.iter().map(|it| 4 + it.estimate()).sum();
        let tools: u64 = self
            .tools
            .iter()
            .map(|it| {
                estimate_tokens(&it.name)
                    + estimate_tokens(&it.description)
                    + estimate_tokens(&it.parameters.to_string())
            })
            .sum();
        messages + tools
    }
}

impl Message {
    pub(crate) fn estimate(&self) -> u64 {
        match self {
            Self::System { text } | Self::User { text } => estimate_tokens(text),
            Self::Assistant { text, calls } => {
                let calls: u64 =
                    calls.iter().map(|it| estimate_tokens(&it.name) + estimate_tokens(&it.arguments)).sum();
                estimate_tokens(text) + calls
            }
            Self::Tool { output, .. } => estimate_tokens(output),
        }
    }
}

//! OpenAI's chat completions JSON, and what others make of it. Nobody outside this module knows these shapes.
//!
//! Asking, we keep to the reference. Listening, we take what servers in use are known to send: calls without index or
//! id, arguments as objects, content in parts, usage in any chunk or nowhere, errors with status 200, fields of
//! reasoning under many names (read over).

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Call, Completion, Error, Finish, Message, Request, Usage, from_json};

/// With more calls than this an answer is broken. How many of them are made is not decided here.
const MAX_CALLS: usize = 512;
/// Characters of a tool's name, in what we send.
const MAX_NAME: usize = 64;

/// How much of streaming a provider is asked for; each step is for servers that refuse the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    StreamWithUsage,
    Stream,
    Whole,
}

impl Ask {
    /// What to ask for instead, when the provider's refusal names what we asked for.
    pub(crate) fn instead(self, status: StatusCode, said: &str) -> Option<Self> {
        if status != StatusCode::BAD_REQUEST && status != StatusCode::UNPROCESSABLE_ENTITY {
            return None;
        }
        let names = |word| said.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|it| it == word);
        if self == Self::StreamWithUsage && (names("stream_options") || names("include_usage")) {
            Some(Self::Stream)
        } else if self != Self::Whole && names("stream") {
            Some(Self::Whole)
        } else {
            None
        }
    }
}

pub(crate) fn request(request: &Request, ask: Ask) -> Value {
    let mut body = Map::new();
    body.insert("model".into(), json!(request.model));
    body.insert("messages".into(), request.messages.iter().map(message).collect());
    if !request.tools.is_empty() {
        let tools = request.tools.iter().map(|it| {
            json!({"type": "function", "function": {
                "name": it.name, "description": it.description, "parameters": it.parameters}})
        });
        body.insert("tools".into(), tools.collect());
    }
    if let Some(effort) = request.thinking {
        body.insert("reasoning_effort".into(), json!(effort.as_str()));
    }
    if ask != Ask::Whole {
        body.insert("stream".into(), json!(true));
    }
    if ask == Ask::StreamWithUsage {
        body.insert("stream_options".into(), json!({"include_usage": true}));
    }
    Value::Object(body)
}

fn message(message: &Message) -> Value {
    match message {
        Message::System { text } => json!({"role": "system", "content": text}),
        Message::User { text } => json!({"role": "user", "content": text}),
        Message::Assistant { text, calls } if calls.is_empty() => json!({"role": "assistant", "content": text}),
        Message::Assistant { text, calls } => {
            let calls: Value = calls
                .iter()
                .map(|it| json!({"id": it.id, "type": "function", "function": {"name": sendable(&it.name), "arguments": it.arguments}}))
                .collect();
            let content = if text.is_empty() { Value::Null } else { json!(text) };
            json!({"role": "assistant", "content": content, "tool_calls": calls})
        }
        Message::Tool { call, output } => json!({"role": "tool", "tool_call_id": call, "content": output}),
    }
}

/// A model may call what is no name of a tool, or nothing at all. Providers refuse to hear of it again under that name.
fn sendable(name: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
    let name: String = name.chars().map(fit).take(MAX_NAME).collect();
    if name.is_empty() { "_".into() } else { name }
}

/// A `chat.completion` or a `chat.completion.chunk`.
#[derive(Deserialize)]
struct Answer {
    choices: Option<Vec<Choice>>,
    usage: Option<Tokens>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    index: Option<u64>,
    #[serde(alias = "message")]
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<Value>,
    refusal: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<u64>,
    id: Option<String>,
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    name: Option<String>,
    arguments: Option<Value>,
}

#[derive(Deserialize)]
struct Tokens {
    #[serde(default, deserialize_with = "count")]
    prompt_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    completion_tokens: Option<u64>,
}

/// A count that is none is as good as none: it must not cost the answer.
fn count<'de, D: serde::Deserializer<'de>>(it: D) -> Result<Option<u64>, D::Error> {
    Ok(Value::deserialize(it)?.as_u64())
}

/// Puts an answer together from what arrives: any number of chunks, or one whole answer.
pub(crate) struct Assembly {
    limit: usize,
    size: usize,
    text: String,
    calls: Vec<(Option<u64>, Call)>,
    finish: Option<Finish>,
    usage: Option<Usage>,
    chosen: bool,
}

impl Assembly {
    /// `limit`: bytes of text, names and arguments together.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, size: 0, text: String::new(), calls: Vec::new(), finish: None, usage: None, chosen: false }
    }

    /// Takes one JSON document and hands its text to `on`.
    pub(crate) fn take(&mut self, document: &[u8], on: &mut impl FnMut(&str)) -> Result<(), Error> {
        let answer: Answer =
            from_json(document).map_err(|error| Error::Broken { what: format!("no valid JSON: {error}") })?;
        if let Some(error) = answer.error.filter(|it| !it.is_null()) {
            return Err(reported(&error));
        }
        if let Some(tokens) = answer.usage {
            let (input, output) = (tokens.prompt_tokens.unwrap_or(0), tokens.completion_tokens.unwrap_or(0));
            // A question has tokens: servers that send zeros do not count.
            if input + output > 0 {
                self.usage = Some(Usage { input, output, estimated: false });
            }
        }
        for choice in answer.choices.into_iter().flatten().filter(|it| it.index.unwrap_or(0) == 0) {
            self.chosen = true;
            if let Some(delta) = choice.delta {
                self.add(delta, on)?;
            }
            if let Some(reason) = choice.finish_reason.filter(|it| !it.is_empty()) {
                self.finish = Some(match reason.as_str() {
                    "stop" => Finish::Stop,
                    "tool_calls" | "function_call" => Finish::Calls,
                    "length" | "max_tokens" => Finish::Length,
                    "content_filter" => Finish::Filtered,
                    _ => Finish::Other(reason),
                });
            }
        }
        Ok(())
    }

    fn add(&mut self, delta: Delta, on: &mut impl FnMut(&str)) -> Result<(), Error> {
        for text in [delta.content.map(content), delta.refusal].into_iter().flatten().filter(|it| !it.is_empty()) {
            self.grow(text.len())?;
            self.text.push_str(&text);
            on(&text);
        }
        for call in delta.tool_calls.into_iter().flatten() {
            self.add_call(call)?;
        }
        Ok(())
    }

    fn add_call(&mut self, delta: CallDelta) -> Result<(), Error> {
        let id = delta.id.unwrap_or_default();
        let (name, arguments) = delta.function.map_or((None, None), |it| (it.name, it.arguments));
        let (name, arguments) = (name.unwrap_or_default(), arguments.map(arguments_text).unwrap_or_default());
        self.grow(id.len() + name.len() + arguments.len())?;
        // The same call goes on when its index says so (and no other id contradicts), or, without index, when nothing
        // says that a new one begins.
        let goes_on = |(index, call): &&mut (Option<u64>, Call)| {
            let same_id = id.is_empty() || call.id == id;
            match delta.index {
                Some(_) => *index == delta.index && same_id,
                None => same_id && (!id.is_empty() || name.is_empty()),
            }
        };
        if let Some((_, call)) = self.calls.iter_mut().rev().find(goes_on) {
            if call.name != name {
                call.name.push_str(&name);
            }
            call.arguments.push_str(&arguments);
            return Ok(());
        }
        if self.calls.len() == MAX_CALLS {
            return Err(Error::Broken { what: format!("more than {MAX_CALLS} tool calls at once") });
        }
        self.calls.push((delta.index, Call { id, name, arguments }));
        Ok(())
    }

    fn grow(&mut self, by: usize) -> Result<(), Error> {
        self.size += by;
        if self.size > self.limit { Err(Error::TooLarge { limit: self.limit }) } else { Ok(()) }
    }

    /// What the answer has cost so far, `before` any of it came: the provider's figures, or an estimate.
    pub(crate) fn spent(&self, before: Usage) -> Usage {
        let estimate = Usage { output: (self.size as u64).div_ceil(4), ..before };
        self.usage.unwrap_or(estimate)
    }

    /// The answer, `whole` when the provider said that nothing follows. `request` serves the estimate of usage.
    pub(crate) fn finish(self, request: &Request, whole: bool) -> Result<Completion, Error> {
        if self.finish.is_none() && !whole {
            return Err(Error::CutOff { source: None });
        }
        if !self.chosen {
            return Err(Error::Broken { what: "it has no choices".into() });
        }
        let mut calls: Vec<Call> = Vec::with_capacity(self.calls.len());
        for (_, mut call) in self.calls {
            if call.id.is_empty() || calls.iter().any(|it| it.id == call.id) {
                call.id = format!("call_{}", kit::id());
            }
            if call.arguments.trim().is_empty() {
                call.arguments = "{}".into();
            }
            calls.push(call);
        }
        let finish = match self.finish.unwrap_or(Finish::Stop) {
            Finish::Stop if !calls.is_empty() => Finish::Calls,
            other => other,
        };
        let message = Message::Assistant { text: self.text, calls };
        let usage = self.usage.unwrap_or_else(|| Usage {
            input: request.estimate(),
            output: message.estimate(),
            estimated: true,
        });
        Ok(Completion { message, usage, finish })
    }
}

/// Text, or the text among parts of several types.
fn content(content: Value) -> String {
    match content {
        Value::String(text) => text,
        Value::Array(parts) => parts
            .iter()
            .filter(|part| part.get("type").and_then(Value::as_str) == Some("text"))
            .filter_map(|part| part.get("text").and_then(Value::as_str))
            .collect(),
        _ => String::new(),
    }
}

fn arguments_text(arguments: Value) -> String {
    match arguments {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// An error object in the place of an answer, with status 200: its `code` is often the status it should have had.
fn reported(error: &Value) -> Error {
    let said = words(error);
    let status = error.get("code").and_then(|it| it.as_u64().or_else(|| it.as_str()?.parse().ok()));
    match status.and_then(|it| StatusCode::from_u16(u16::try_from(it).ok()?).ok()).filter(|it| it.as_u16() >= 400) {
        Some(status) => Error::Refused { status, said, retry_after: None, hopeless: false },
        None => Error::BrokeOff { said },
    }
}

/// What an error body says to a person, and whether asking again is of no use although the status says so.
pub(crate) fn refusal(body: &[u8]) -> (String, bool) {
    let Ok(document) = from_json::<Value>(body) else {
        return (page(&String::from_utf8_lossy(body)), false);
    };
    let document = document.get(0).unwrap_or(&document);
    let error = document.get("error").filter(|it| !it.is_null()).unwrap_or(document);
    let hopeless =
        ["code", "type"].iter().any(|key| error.get(key).and_then(Value::as_str) == Some("insufficient_quota"));
    (words(error), hopeless)
}

/// The sentence in an error object of any of the forms in use; the object itself when there is none.
fn words(error: &Value) -> String {
    let said = [error.get("message"), error.get("detail"), Some(error)].into_iter().flatten().find_map(Value::as_str);
    let mut said = said.map_or_else(|| error.to_string(), str::to_owned);
    if let Some(param) = error.get("param").and_then(Value::as_str).filter(|it| !said.contains(it)) {
        said = format!("{said} (parameter {param})");
    }
    said
}

/// A text that is no JSON: the title of a web page, else its beginning.
pub(crate) fn page(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let title = lower.find("<title>").zip(lower.find("</title>")).and_then(|(from, to)| text.get(from + 7..to));
    match title {
        Some(title) => format!("a web page, {:?}", title.trim()),
        None if lower.trim_start().starts_with('<') => "a web page".into(),
        None => text.trim().to_owned(),
    }
}

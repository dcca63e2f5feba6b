//! What a run is made of: what is asked for, what happened, how it ended.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use api::reasons;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A run's id: the AgentRun's `metadata.uid`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct RunId(Arc<str>);

impl RunId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for RunId {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for RunId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Counts the leases of one run from 1: its attempt, and the fence. What carries an older one changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch(pub u32);

/// The place of an entry in one run's log, from 1 without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seq(pub u32);

/// A run to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Ticket {
    pub run: RunId,
    /// Of the AgentRun, as its name.
    pub namespace: String,
    pub name: String,
    /// The tenant, together with the namespace.
    pub instance: String,
    /// Runs of one session of one instance go one at a time, in the order of (`created`, `run`), and remember its turns.
    /// "": none; the run shares nothing.
    pub session: String,
    pub created: Timestamp,
    /// How many runs of the instance may be leased at once; the latest ticket of an instance speaks for all of them.
    pub limit: u32,
    /// How long the run may take, from its first lease.
    pub timeout: Duration,
    pub job: Job,
}

/// What a run's brain must know. Holds no secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Job {
    pub task: String,
    /// The system prompt; "": none.
    pub system: String,
    pub provider: String,
    pub model: String,
    pub base_url: String,
    /// off, low, medium or high, as the user wrote it.
    pub thinking: Option<String>,
    /// The name of the Secret in the run's namespace that holds the model's key.
    pub secret: Option<String>,
    pub tools: ToolRules,
    pub sandbox: Option<Sandbox>,
    /// What the run asks for and goes without, each as a sentence: for its status, as [`Run::without`].
    pub without: Vec<String>,
}

/// Which tools a run may call. What is denied anywhere is denied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolRules {
    /// The run's own list; empty: all.
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    /// The policy's `toolGating`.
    pub gate: Option<Gate>,
}

/// A policy's word on tools.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gate {
    /// The policy's name, for the refusal.
    pub policy: String,
    /// For a tool without a rule.
    pub default: Action,
    /// Tool and action; the first one that names the tool counts.
    pub rules: Vec<(String, Action)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    #[default]
    Allow,
    Deny,
    Ask,
}

/// Where a run's tools act.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandbox {
    pub image: Option<String>,
    /// The handler of the runtime class.
    pub runtime_class: Option<String>,
    /// As quantities, such as "500m" and "256Mi".
    pub cpu: Option<String>,
    pub memory: Option<String>,
}

/// Something that happened in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// The model is about to be asked for the `turn`th time, from 1.
    Asked { turn: u32, model: String },
    /// It did not work, and will be tried again after `wait`.
    Retrying { why: String, wait: Duration },
    /// The model's whole message, as the model's API writes it; `cut`: why it is not all that the model would have said.
    Answered {
        message: Value,
        usage: Tokens,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cut: Option<String>,
    },
    /// What a question cost that brought no answer.
    Spent { usage: Tokens },
    /// A tool is about to act.
    Called { call_id: String, name: String, arguments: String },
    /// What the model is told of a call.
    Returned { call_id: String, output: String, failed: bool },
    /// For people.
    Noted { text: String },
}

impl Step {
    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        64 + match self {
            Self::Spent { .. } => 0,
            Self::Asked { model: text, .. } | Self::Retrying { why: text, .. } | Self::Noted { text } => text.len(),
            Self::Answered { message, cut, .. } => bytes(message) + cut.as_ref().map_or(0, String::len),
            Self::Called { call_id, name, arguments } => call_id.len() + name.len() + arguments.len(),
            Self::Returned { call_id, output, .. } => call_id.len() + output.len(),
        }
    }
}

fn bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(bytes).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + bytes(value)).sum(),
    }
}

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub input: u64,
    pub output: u64,
    pub total: u64,
}

/// A step in its run's log.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub seq: Seq,
    /// The attempt that logged it.
    pub epoch: Epoch,
    pub at: Timestamp,
    pub step: Step,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// `cut`: why the answer is not all that the model would have said.
    Succeeded {
        answer: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cut: Option<String>,
    },
    /// `error` is for the run's status.
    Failed {
        error: String,
        #[serde(default)]
        cause: Cause,
    },
    Cancelled {
        reason: String,
    },
}

impl Outcome {
    /// With a whole answer.
    pub fn succeeded(answer: impl Into<String>) -> Self {
        Self::Succeeded { answer: answer.into(), cut: None }
    }

    pub fn failed(cause: Cause, error: impl Into<String>) -> Self {
        Self::Failed { error: error.into(), cause }
    }

    /// As conditions, events and streams name it ([`api::reasons`]).
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Succeeded { cut: None, .. } => reasons::SUCCEEDED,
            Self::Succeeded { cut: Some(_), .. } => reasons::ANSWER_CUT,
            Self::Failed { cause: Cause::Other, .. } => reasons::FAILED,
            Self::Failed { cause: Cause::Timeout, .. } => reasons::TIMEOUT,
            Self::Failed { cause: Cause::Provider, .. } => reasons::PROVIDER_FAILED,
            Self::Cancelled { .. } => reasons::CANCELLED,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Succeeded { answer, cut } => answer.len() + cut.as_ref().map_or(0, String::len),
            Self::Failed { error: text, .. } | Self::Cancelled { reason: text } => text.len(),
        }
    }
}

/// What a run failed of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    #[default]
    Other,
    /// It took longer than its timeout, and not for what the model's provider did.
    Timeout,
    /// What the model's provider said or did, or that it did nothing.
    Provider,
}

/// What a run has used, over all its attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub tokens: Tokens,
    pub tool_calls: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Queued,
    Running,
    Done(Outcome),
}

/// A run as the ledger knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub namespace: String,
    pub name: String,
    pub state: State,
    /// How often it was leased.
    pub attempt: u32,
    /// When it was leased first.
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    pub usage: Usage,
    /// The sandbox in which its tools acted last, by the name that people see.
    pub pod: Option<String>,
    /// Why the model is asked again, from [`Step::Retrying`] on until it is asked the next question or has answered.
    pub trouble: Option<String>,
    /// [`Job::without`] of the ticket with which it was submitted first.
    pub without: Vec<String>,
}

impl Run {
    /// From the first lease to the end.
    pub fn duration(&self) -> Option<Duration> {
        let from = self.started?;
        Duration::try_from(self.finished?.duration_since(from)).ok()
    }
}

/// What one succeeded run left in its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub task: String,
    pub answer: String,
}

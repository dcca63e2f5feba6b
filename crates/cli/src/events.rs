//! A run's events, from the gateway: the same server-sent events that any client gets.

use std::time::Duration;

use anyhow::{Result, bail};
use eventsource_stream::Eventsource;
use futures::StreamExt;
use jiff::Timestamp;
use kit::{Backoff, ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// How long the gateway may be away before we give up.
const PATIENCE: u32 = 6;

/// Something that happened in a run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum Event {
    State(State),
    Asked(Asked),
    Text(Text),
    Answer(Answer),
    ToolCall(ToolCall),
    ToolResult(ToolResult),
    Retry(Retry),
    Usage(IgnoredAny),
    Note(Text),
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct State {
    /// pending, queued, running, succeeded or failed.
    pub state: String,
    /// Why it is pending.
    pub conditions: Vec<Condition>,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub result: Option<String>,
    pub usage: Option<Usage>,
    /// The Pod of the sandbox in which its tools acted last.
    pub pod: Option<String>,
    pub at: Option<Timestamp>,
}

impl State {
    pub fn is_final(&self) -> bool {
        matches!(self.state.as_str(), "succeeded" | "failed")
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Condition {
    pub status: String,
    pub message: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub tool_calls: u64,
}

/// The model is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Asked {
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Text {
    pub text: String,
}

/// The model's whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Answer {
    #[serde(default)]
    pub text: String,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ToolCall {
    pub name: String,
    pub arguments: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ToolResult {
    pub output: String,
    pub failed: bool,
}

/// The model is asked again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Retry {
    pub why: String,
}

/// Where a gateway is, and its key.
#[derive(Clone)]
pub struct Gateway {
    pub url: String,
    pub key: SecretString,
    pub http: reqwest::Client,
}

impl Gateway {
    /// Follows a run to its end, telling `on` each event once; goes on where it was when the connection breaks.
    /// Returns the last state.
    ///
    /// # Errors
    /// When there is no such run, the key is refused, or the gateway stays away.
    pub async fn follow(&self, namespace: &str, name: &str, mut on: impl FnMut(&Event)) -> Result<State> {
        let url = format!("{}/api/v1/namespaces/{namespace}/runs/{name}/events", self.url);
        let mut seen: Option<String> = None;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            let mut request = self.http.get(&url).bearer_auth(self.key.expose_secret());
            if let Some(id) = &seen {
                request = request.header("last-event-id", id);
            }
            match request.send().await {
                Ok(answer) if answer.status().is_success() => {
                    let mut events = answer.bytes_stream().eventsource();
                    while let Some(Ok(event)) = events.next().await {
                        backoff.reset();
                        if !event.id.is_empty() {
                            seen = Some(event.id);
                        }
                        let Some(event) = read(&event.event, &event.data) else { continue };
                        on(&event);
                        if let Event::State(state) = event
                            && state.is_final()
                        {
                            return Ok(state);
                        }
                    }
                }
                Ok(answer) if answer.status().is_client_error() => {
                    let status = answer.status();
                    bail!("the gateway answered {status}: {}", answer.text().await.unwrap_or_default());
                }
                Ok(answer) => give_up(&format!("the gateway answered {}", answer.status()), &backoff)?,
                Err(error) => give_up(&kit::chain(&error), &backoff)?,
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }
}

/// Gives up with the reason once the gateway has been away for long.
fn give_up(why: &str, backoff: &Backoff) -> Result<()> {
    if backoff.failures() >= PATIENCE {
        bail!("the gateway does not answer: {why}");
    }
    Ok(())
}

/// An event, or nothing where it is of a kind that this version does not know.
fn read(event: &str, data: &str) -> Option<Event> {
    let data: serde_json::Value = serde_json::from_str(data).ok()?;
    serde_json::from_value(serde_json::json!({"event": event, "data": data})).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_and_unknown_ones_left_out() {
        let last = r#"{"state": "succeeded", "result": "42", "usage": {"inputTokens": 3, "outputTokens": 1, "totalTokens": 4, "toolCalls": 0}, "at": "2026-11-20T10:00:00Z", "attempt": 1}"#;
        let Some(Event::State(state)) = read("state", last) else { panic!("no state") };
        assert!(state.is_final() && state.result.as_deref() == Some("42") && state.usage.unwrap().input_tokens == 3);
        assert_eq!(read("text", r#"{"text": "a"}"#), Some(Event::Text(Text { text: "a".into() })));
        assert!(matches!(read("usage", r#"{"inputTokens": 1}"#), Some(Event::Usage(_))));
        assert_eq!(read("weather", "{}"), None);
        assert_eq!(read("text", "half {"), None);
    }
}

//! The ledger's words as events.

use std::convert::Infallible;

use api::agents::{AgentRunStatus, RunPhase};
use api::{conditions, reasons};
use axum::response::sse::Event;
use ledger::{Entry, Outcome, Run, Seq, State, Step, Tokens};
use serde_json::{Value, json};

/// Where in a run's events somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// After the first `parts` events (0: all) of the log's entry `seq`.
    At {
        seq: u32,
        parts: usize,
    },
    End,
}

impl Default for Place {
    fn default() -> Self {
        Self::At { seq: 0, parts: 0 }
    }
}

impl Place {
    pub(crate) fn parse(id: &str) -> Option<Self> {
        if id == "end" {
            return Some(Self::End);
        }
        let (seq, parts) = match id.split_once('.') {
            Some((seq, parts)) => (seq.parse().ok()?, parts.parse().ok()?),
            None => (id.parse().ok()?, 0),
        };
        Some(Self::At { seq, parts })
    }

    /// The entry after which to follow, and how many events of the next one were seen.
    pub(crate) fn after(self) -> (Seq, usize) {
        match self {
            Self::At { seq, parts: 0 } => (Seq(seq), 0),
            Self::At { seq, parts } => (Seq(seq.saturating_sub(1)), parts),
            Self::End => (Seq(u32::MAX), 0),
        }
    }
}

/// One event, before it is bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    id: Option<String>,
    name: &'static str,
    data: Value,
}

impl Told {
    fn passing(name: &'static str, data: Value) -> Self {
        Self { id: None, name, data }
    }

    pub(crate) fn text(after: Seq, text: &str) -> Self {
        Self::passing("text", json!({"text": text, "after": after.0.to_string()}))
    }

    pub(crate) fn event(self) -> Result<Event, Infallible> {
        let event = Event::default().event(self.name).data(self.data.to_string());
        Ok(match self.id {
            Some(id) => event.id(id),
            None => event,
        })
    }

    fn end(data: Value) -> Self {
        Self { id: Some("end".into()), name: "state", data }
    }

    fn failed(reason: &str, message: &str) -> Self {
        Self::end(json!({"state": "failed", "reason": reason, "message": message}))
    }

    pub(crate) fn deleted() -> Self {
        Self::failed("Deleted", "the run was deleted")
    }

    /// A run's state, with what else the ledger knows of it at its end.
    pub(crate) fn state(attempt: u32, state: &State, run: Option<&Run>) -> Self {
        let mut told = match state {
            State::Queued => return Self::passing("state", json!({"state": "queued"})),
            State::Running => return Self::passing("state", json!({"state": "running", "attempt": attempt})),
            State::Done(Outcome::Succeeded { answer, .. }) => {
                Self::end(json!({"state": "succeeded", "result": answer}))
            }
            State::Done(outcome @ (Outcome::Failed { error: why, .. } | Outcome::Cancelled { reason: why })) => {
                Self::failed(outcome.reason(), why)
            }
        };
        if let Some(run) = run {
            let tokens = &run.usage.tokens;
            let usage = json!({
                "inputTokens": tokens.input, "outputTokens": tokens.output, "totalTokens": tokens.total,
                "toolCalls": run.usage.tool_calls, "durationMs": run.duration().map(|it| it.as_millis() as u64)});
            told.put("usage", usage);
            told.put("startedAt", json!(run.started));
            told.put("at", json!(run.finished));
            if let Some(pod) = &run.pod {
                told.put("pod", json!(pod));
            }
        }
        told.put("attempt", json!(attempt));
        told
    }

    /// A run that the ledger does not have: it waits for something, or has ended without it.
    pub(crate) fn unqueued(status: &AgentRunStatus) -> Self {
        match status.phase {
            Some(RunPhase::Succeeded) => {
                Self::end(json!({"state": "succeeded", "result": status.result, "at": status.completed_at}))
            }
            Some(RunPhase::Failed) => {
                let complete = status.conditions.iter().flatten().find(|it| it.type_ == conditions::COMPLETE);
                let reason = complete.map_or(reasons::FAILED, |it| it.reason.as_str());
                let mut told = Self::failed(reason, status.error.as_deref().unwrap_or_default());
                told.put("at", json!(status.completed_at));
                told
            }
            _ => {
                let waiting = status.conditions.iter().flatten().map(
                    |it| json!({"type": it.type_, "status": it.status, "reason": it.reason, "message": it.message}),
                );
                Self::passing("state", json!({"state": "pending", "conditions": waiting.collect::<Vec<_>>()}))
            }
        }
    }

    /// The events of one entry of the log, in order.
    pub(crate) fn entry(entry: &Entry) -> Vec<Self> {
        let tokens = |usage: &Tokens| {
            let data = json!({"inputTokens": usage.input, "outputTokens": usage.output, "totalTokens": usage.total});
            ("usage", data)
        };
        let parts = match &entry.step {
            Step::Asked { turn, model } => vec![("asked", json!({"turn": turn, "model": model}))],
            Step::Retrying { why, wait } => vec![("retry", json!({"why": why, "wait": wait.as_secs_f64()}))],
            Step::Answered { message, usage, cut } => {
                let part = |name| message.get(name).cloned();
                let answer = json!({"text": part("text").unwrap_or_default(), "calls": part("calls").unwrap_or_else(|| json!([]))});
                let mut parts = vec![("answer", answer)];
                parts.extend(cut.as_ref().map(|cut| ("note", json!({"text": cut}))));
                parts.push(tokens(usage));
                parts
            }
            Step::Spent { usage } => vec![tokens(usage)],
            Step::Called { call_id, name, arguments } => {
                vec![("tool_call", json!({"id": call_id, "name": name, "arguments": arguments}))]
            }
            Step::Returned { call_id, output, failed } => {
                vec![("tool_result", json!({"id": call_id, "output": output, "failed": failed}))]
            }
            Step::Noted { text } => vec![("note", json!({"text": text}))],
        };
        let last = parts.len();
        let number = |part| if part == last { entry.seq.0.to_string() } else { format!("{}.{part}", entry.seq.0) };
        let told = parts.into_iter().zip(1..).map(|((name, data), part)| {
            let mut told = Self { id: Some(number(part)), name, data };
            told.put("at", json!(entry.at));
            told.put("attempt", json!(entry.epoch.0));
            told
        });
        told.collect()
    }

    fn put(&mut self, name: &str, value: Value) {
        if let Value::Object(fields) = &mut self.data {
            fields.insert(name.to_owned(), value);
        }
    }
}

//! What a keeper decides: data, so that a decision can be tested without anything around it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::Serialize;
use serde_json::Value;

/// Bytes of a condition's message: Kubernetes takes 32 KiB.
const MESSAGE_LIMIT: usize = 16 << 10;

/// All that shall be done about one object, in the order of its fields.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Plan<E> {
    /// Children to make where there is nothing of that name yet. What is in them belongs to the user afterwards.
    pub(crate) seed: Vec<Seed>,
    /// What to do beyond the Kubernetes API. Each must be idempotent.
    pub(crate) effects: Vec<E>,
    /// Children that shall not be (any more).
    pub(crate) prune: Vec<Child>,
    /// The whole status but its conditions; `None` leaves the status alone.
    pub(crate) status: Option<Value>,
    pub(crate) conditions: Vec<Said>,
    pub(crate) notes: Vec<Note>,
    /// Only heeded while the object is being deleted.
    pub(crate) release_finalizer: bool,
    /// Look again after this time, whatever happens.
    pub(crate) wake_in: Option<Duration>,
}

impl<E> Default for Plan<E> {
    fn default() -> Self {
        Self {
            seed: Vec::new(),
            effects: Vec::new(),
            prune: Vec::new(),
            status: None,
            conditions: Vec::new(),
            notes: Vec::new(),
            release_finalizer: false,
            wake_in: None,
        }
    }
}

/// A child to be born.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Seed {
    pub(crate) api_version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) object: Value,
}

/// A child by name; it is deleted only if it is still the one with this uid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Child {
    pub(crate) api_version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// A condition before it has a time: those are the machinery's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Said {
    pub(crate) type_: &'static str,
    pub(crate) status: Truth,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Truth {
    True,
    False,
}

impl Truth {
    fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
        }
    }
}

impl Said {
    pub(crate) fn yes(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { type_, status: Truth::True, reason, message: message.into() }
    }

    pub(crate) fn no(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { type_, status: Truth::False, reason, message: message.into() }
    }
}

/// An event to be told about the object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Note {
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Note {
    pub(crate) fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: false, reason, message: message.into() }
    }

    pub(crate) fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, reason, message: message.into() }
    }
}

/// The conditions with their times: `lastTransitionTime` moves only when the status does, and a condition that says
/// nothing new stays as it was, up to its `observedGeneration`.
pub(crate) fn settle(live: &[Condition], said: &[Said], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let said = said.iter().map(|it| {
        let before = live.iter().find(|condition| condition.type_ == it.type_);
        let since = before.filter(|condition| condition.status == it.status.as_str());
        Condition {
            type_: it.type_.to_owned(),
            status: it.status.as_str().to_owned(),
            reason: it.reason.to_owned(),
            message: cut(&it.message, MESSAGE_LIMIT).0.to_owned(),
            observed_generation: generation,
            last_transition_time: since
                .map_or_else(|| Time(seconds(now)), |condition| condition.last_transition_time.clone()),
        }
    });
    said.collect()
}

/// The first `limit` bytes at most, whole characters only, and how many bytes are left out.
pub(crate) fn cut(text: &str, limit: usize) -> (&str, usize) {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let head = text.get(..end).unwrap_or(text);
    (head, text.len() - head.len())
}

/// Kubernetes writes times of status in whole seconds; cut here, what is planned equals what is read back.
pub(crate) fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_time_moves_with_the_status_only() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let first = settle(&[], &[Said::no("Ready", "SecretMissing", "a")], Some(1), at("2026-01-01T00:00:00.9Z"));
        assert_eq!(first[0].last_transition_time.0, at("2026-01-01T00:00:00Z"));
        let second = settle(&first, &[Said::no("Ready", "PolicyMissing", "b")], Some(2), at("2026-01-02T00:00:00Z"));
        assert_eq!(second[0].last_transition_time, first[0].last_transition_time);
        assert_eq!((second[0].reason.as_str(), second[0].observed_generation), ("PolicyMissing", Some(2)));
        let third = settle(&second, &[Said::yes("Ready", "Ready", "")], Some(2), at("2026-01-03T00:00:00Z"));
        assert_eq!(third[0].last_transition_time.0, at("2026-01-03T00:00:00Z"));
    }
}

use std::error::Error;
use std::fmt::Write;
use std::time::Duration;

/// What a caller can do about an error. Every door's error has `fn class(&self) -> Class`; requeue, HTTP status and exit
/// codes are tables over it, each in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nobody's fault and likely to pass: try again, after the given time if there is one.
    Retry(Option<Duration>),
    /// Somebody else was there first: look again, then decide again.
    Conflict,
    /// The request is wrong and stays wrong.
    Rejected,
    /// What it is about is not there (any more).
    Gone,
    /// We are wrong.
    Bug,
}

/// An error and its causes on one line, each once: `open ledger: cannot read x: permission denied`.
///
/// The only place where a chain is put together: no `Display` prints its own source.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            let _ = write!(text, ": {said}");
        }
        next = cause.source();
    }
    text
}

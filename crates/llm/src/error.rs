use std::time::Duration;

use http::StatusCode;
use kit::Class;

/// Why there is no answer. No text here contains the key, and none is longer than a few KiB.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no address to ask at, or it is no address. The sentence says what to set.
    #[error("{0}")]
    Provider(String),
    /// The provider answered with a status that is no success.
    #[error("the model provider answered {}{}", status_text(*status), words(said))]
    Refused { status: StatusCode, said: String, retry_after: Option<Duration>, hopeless: bool },
    /// The provider reported an error in the middle of its answer.
    #[error("the model provider broke off its answer{}", words(said))]
    BrokeOff { said: String },
    /// Nobody there, or the connection broke.
    #[error("cannot reach the model provider at {at}")]
    Unreachable {
        at: String,
        #[source]
        source: reqwest::Error,
    },
    /// Nothing came for so long.
    #[error("the model provider at {at} sent nothing for {} s", waited.as_secs())]
    Silent { at: String, waited: Duration },
    /// The answer ended in its middle.
    #[error("the model provider's answer was cut off in its middle")]
    CutOff {
        #[source]
        source: Option<reqwest::Error>,
    },
    /// The answer is not what the protocol says: `what` names the place.
    #[error("the model provider's answer is broken: {what}")]
    Broken { what: String },
    /// The address answers, but not as a model provider does (a web page for instance).
    #[error("what answers at {at} is no OpenAI-compatible API: {what}; look at baseURL")]
    Stranger { at: String, what: String },
    /// The answer is larger than the limit, in bytes.
    #[error("the model's answer is larger than {limit} bytes")]
    TooLarge { limit: usize },
}

impl Error {
    /// [`Class::Retry`] for 429, 5xx, network trouble and broken answers; never for another 4xx, for a used-up quota,
    /// nor for an answer that was too large.
    pub fn class(&self) -> Class {
        match self {
            Self::Refused { hopeless: true, .. } => Class::Rejected,
            Self::Refused { status, retry_after, .. } => {
                if *status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
                    Class::Retry(*retry_after)
                } else {
                    Class::Rejected
                }
            }
            Self::BrokeOff { .. }
            | Self::Unreachable { .. }
            | Self::Silent { .. }
            | Self::CutOff { .. }
            | Self::Broken { .. } => Class::Retry(None),
            Self::Provider(_) | Self::Stranger { .. } | Self::TooLarge { .. } => Class::Rejected,
        }
    }
}

fn status_text(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

fn words(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

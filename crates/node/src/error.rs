use std::io;

use kit::Class;
use wire::node::Code;

/// What can go wrong at the node's door.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller asks for something that makes no sense.
    #[error("{0}")]
    Rejected(String),
    #[error("there is no sandbox {0}")]
    Gone(String),
    #[error("{0}")]
    Conflict(String),
    #[error("the node is ending")]
    Ending,
    #[error("the node has {0} sandboxes, which is all it may have")]
    Full(usize),
    /// Another node works in this directory, or listens at this socket.
    #[error("{0} is in use by another node")]
    InUse(String),
    #[error("cannot {what}")]
    Disk {
        what: String,
        #[source]
        source: io::Error,
    },
    /// The machine cannot start, change or end a sandbox.
    #[error("cannot {what}")]
    Machine {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the sandbox's execd {what}")]
    Execd {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    pub(crate) fn disk(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Disk { what, source }
    }

    pub(crate) fn machine<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let what = what.into();
        move |source| Self::Machine { what, source: source.into() }
    }

    pub(crate) fn execd<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let what = what.into();
        move |source| Self::Execd { what, source: source.into() }
    }

    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Rejected(_) => Class::Rejected,
            Self::Gone(_) => Class::Gone,
            Self::Conflict(_) => Class::Conflict,
            Self::Ending | Self::Full(_) | Self::InUse(_) | Self::Disk { .. } | Self::Execd { .. } => {
                Class::Retry(None)
            }
            Self::Machine { .. } => Class::Rejected,
        }
    }

    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Rejected(_) => Code::Rejected,
            Self::Gone(_) => Code::Gone,
            Self::Conflict(_) => Code::Conflict,
            Self::Ending | Self::Full(_) | Self::InUse(_) => Code::Unavailable,
            Self::Disk { .. } | Self::Machine { .. } => Code::Machine,
            Self::Execd { .. } => Code::Execd,
        }
    }
}

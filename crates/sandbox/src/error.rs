use std::io;
use std::path::PathBuf;

use kit::Class;
use wire::node::Code;

pub(crate) type Source = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong between a run and its sandbox. What a command or a file system says of itself is none of it, but a
/// result ([`crate::Done`], [`Error::Refused`]).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be had, now or later.
    #[error("{0}")]
    Unfit(String),
    /// The sandbox's own word on what was asked, such as: there is no such file.
    #[error("{said}")]
    Refused { code: String, said: String },
    /// The sandbox is over. Where the call had not `begun`, nothing of it was done; the workspace is as it was.
    #[error("the sandbox was ended: {why}")]
    Ended { why: String, begun: bool },
    /// The sandbox was ended before this call for what was done in it. Said once; nothing of the call was done.
    #[error(
        "the sandbox was ended: {why}; the call was not begun. /workspace is kept, and the next call has a fresh sandbox"
    )]
    Stopped { why: String },
    /// What a sandbox sends must have sense and measure.
    #[error("the sandbox answers what cannot be: {0}")]
    Nonsense(String),
    #[error("the node cannot {doing}: {said}")]
    Node { doing: &'static str, code: Code, said: String },
    #[error("the node does not {doing}")]
    Unreachable {
        doing: &'static str,
        #[source]
        source: Source,
    },
    #[error("the ledger cannot {doing}")]
    Ledger {
        doing: &'static str,
        #[source]
        source: ledger::Error,
    },
    #[error("cannot {doing} {path}", path = .path.display())]
    Disk {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn unreachable<E: Into<Source>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Unreachable { doing, source: source.into() }
    }

    pub(crate) fn ledger(doing: &'static str) -> impl FnOnce(ledger::Error) -> Self {
        move |source| Self::Ledger { doing, source }
    }

    pub(crate) fn disk(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { doing, path, source }
    }

    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Unfit(_) | Self::Refused { .. } | Self::Nonsense(_) => Class::Rejected,
            Self::Ended { .. } | Self::Stopped { .. } => Class::Gone,
            Self::Node { code, .. } => match code {
                Code::Rejected | Code::Generation | Code::Machine => Class::Rejected,
                Code::Gone => Class::Gone,
                Code::Conflict => Class::Conflict,
                Code::Execd | Code::Unavailable => Class::Retry(None),
            },
            Self::Unreachable { .. } | Self::Disk { .. } => Class::Retry(None),
            Self::Ledger { source, .. } => source.class(),
        }
    }
}

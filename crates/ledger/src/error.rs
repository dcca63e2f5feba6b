use std::path::PathBuf;

use kit::Class;

use crate::{ClaimEpoch, Epoch, RunId};

/// Why the ledger could not do it. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open the ledger {path}", path = .path.display())]
    Open { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    /// Nothing was touched.
    #[error("the ledger {path} was written by a newer version (its schema is {found}, this program knows {known})", path = .path.display())]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("cannot copy the ledger to {to}", to = .to.display())]
    Copy { to: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    /// Not a ledger, or a damaged one.
    #[error("the ledger is damaged: {what}")]
    Corrupt { what: String },
    /// A row that makes no sense.
    #[error("a record of the ledger cannot be read: {what}")]
    Unreadable { what: String },
    /// Reads go on.
    #[error("the disk of the ledger is full")]
    Full,
    #[error("the ledger's database failed")]
    Database { source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the lease of run {run} by attempt {attempt} is over", attempt = .epoch.0)]
    Stale { run: RunId, epoch: Epoch },
    /// The sandbox is somebody's, or the claimant has another one.
    #[error("the sandbox {sandbox} cannot be claimed: it is somebody's, or who asks has another one")]
    Claimed { sandbox: String },
    #[error("the claim {} is over", .epoch.0)]
    Unclaimed { epoch: ClaimEpoch },
    #[error("the run {run} is not going on")]
    NotLeased { run: RunId },
    #[error("{what} has {size} bytes, more than {limit}")]
    TooLarge { what: &'static str, size: usize, limit: usize },
    #[error("the log of run {run} is full")]
    LogFull { run: RunId },
    #[error("the follower was too slow and is cut off")]
    TooSlow,
    #[error("the ledger is closed")]
    Closed,
}

impl Error {
    pub fn class(&self) -> Class {
        match self {
            Self::Full | Self::Database { .. } | Self::Copy { .. } | Self::TooSlow => Class::Retry(None),
            Self::Claimed { .. } => Class::Conflict,
            Self::Stale { .. } | Self::Unclaimed { .. } | Self::NotLeased { .. } => Class::Gone,
            Self::TooLarge { .. } | Self::LogFull { .. } | Self::Newer { .. } | Self::Open { .. } => Class::Rejected,
            Self::Corrupt { .. } | Self::Unreadable { .. } | Self::Closed => Class::Bug,
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        if let rusqlite::Error::FromSqlConversionFailure(..) = error {
            return Self::Unreadable { what: error.to_string() };
        }
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                Self::Corrupt { what: error.to_string() }
            }
            _ => Self::Database { source: Box::new(error) },
        }
    }
}

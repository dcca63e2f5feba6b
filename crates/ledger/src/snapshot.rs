//! Backups: a copy of the ledger as it was at one moment, made beside whoever writes it.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use crate::{Error, schema};

/// Pages that are copied between two looks at whether to go on.
const STEP: std::ffi::c_int = 4096;

/// A ledger as it is at one moment, whether or not somebody has it open.
///
/// While it is held, the ledger's log grows by what is written and is not folded back. Blocks in all that it does.
pub struct Snapshot(Connection);

impl Snapshot {
    /// Of the ledger in a file, at this moment.
    ///
    /// # Errors
    /// As [`Ledger::open`](crate::Ledger::open); the file is not changed.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let connection = schema::open_checked(path)?;
        // The first read fixes what is seen until the end.
        connection.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;")?;
        Ok(Self(connection))
    }

    /// Writes it into a new file, for the owner's eyes only, that [`Ledger::open`](crate::Ledger::open) takes. Ends
    /// early when `goes_on` says no.
    ///
    /// # Errors
    /// [`Error::Copy`] when the file is there already or cannot be written; what there is of it stays.
    pub fn write(&self, to: &Path, goes_on: &dyn Fn() -> bool) -> Result<(), Error> {
        self.copy(to, goes_on).map_err(|source| Error::Copy { to: to.to_owned(), source })
    }

    fn copy(&self, to: &Path, goes_on: &dyn Fn() -> bool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        File::options().create_new(true).write(true).mode(0o600).open(to)?;
        let mut copy = Connection::open(to)?;
        // It is synced once, when it is whole.
        copy.pragma_update(None, "synchronous", "OFF")?;
        let backup = Backup::new(&self.0, &mut copy)?;
        loop {
            if !goes_on() {
                return Err(io::Error::from(io::ErrorKind::Interrupted).into());
            }
            match backup.step(STEP)? {
                StepResult::Done => break,
                StepResult::More => {}
                // Neither side has another user: the source is a moment that has passed, the copy is new.
                _ => return Err(io::Error::from(io::ErrorKind::ResourceBusy).into()),
            }
        }
        drop(backup);
        copy.close().map_err(|(_, error)| error)?;
        Ok(File::open(to)?.sync_all()?)
    }
}

/// Looks at all of a ledger that nobody has open. Blocks.
///
/// # Errors
/// When it is damaged, or a newer version's.
pub fn check(path: &Path) -> Result<(), Error> {
    let connection = schema::open_checked(path)?;
    let found: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(Error::Corrupt { what: found }) }
}

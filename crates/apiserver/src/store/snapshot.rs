//! Backups: a copy of the log as it was at one moment, made beside whoever writes it, and what makes a copy fit to be
//! served.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, params};

use super::OpenError;
use super::log::{check_version, create, load, meta};

/// Pages that are copied between two looks at whether to go on.
const STEP: std::ffi::c_int = 4096;
/// Revisions that a copy leaves out, so that it gives out none again that the server it was made of has given out since.
const GAP: u64 = 1_000_000_000;

/// The objects in a data directory as they are at one moment, whether or not a server runs on it.
///
/// While it is held, the server's log grows by what is written and is not folded back. Blocks in all that it does.
pub struct Snapshot(Connection);

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("cannot copy the log")]
    Copy(#[from] rusqlite::Error),
    #[error("cannot write the copy")]
    Write(#[from] io::Error),
    #[error("it was stopped")]
    Stopped,
}

impl Snapshot {
    /// Of the data directory of a server, at this moment.
    ///
    /// # Errors
    /// When there is none, or a newer version's. Nothing in it is changed.
    pub fn of(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("kubernetes.db");
        let failed = |source| OpenError::of(&path, source);
        let db = read_only(&path).map_err(failed)?;
        // The first read fixes what is seen until the end.
        db.execute_batch("BEGIN").map_err(failed)?;
        check_version(&db, &path)?;
        Ok(Self(db))
    }

    /// Writes it into a new file, for the owner's eyes only, that a data directory may have as its `kubernetes.db` once
    /// [`restored`] has looked at it. Ends early when `goes_on` says no.
    ///
    /// # Errors
    /// When the file is there already or cannot be written; what there is of it stays.
    pub fn write(&self, to: &Path, goes_on: &dyn Fn() -> bool) -> Result<(), BackupError> {
        create(to)?;
        let mut copy = Connection::open(to)?;
        // It is synced once, when it is whole.
        copy.pragma_update(None, "synchronous", "OFF")?;
        let backup = Backup::new(&self.0, &mut copy)?;
        loop {
            if !goes_on() {
                return Err(BackupError::Stopped);
            }
            match backup.step(STEP)? {
                StepResult::Done => break,
                StepResult::More => {}
                // Neither side has another user: the source is a moment that has passed, the copy is new.
                _ => return Err(BackupError::Write(io::ErrorKind::ResourceBusy.into())),
            }
        }
        drop(backup);
        copy.close().map_err(|(_, error)| error)?;
        Ok(File::open(to)?.sync_all()?)
    }
}

/// Makes the copy in a directory, which nobody serves, fit to be served: looks at every object of it, and lets its
/// revisions go on far from where a client of the server that it was made of may have been. Such a client is told that
/// its revision is gone and lists anew, instead of missing what happens. Blocks.
///
/// # Errors
/// When the copy is damaged, or a newer version's.
pub fn restored(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join("kubernetes.db");
    let failed = |source| OpenError::of(&path, source);
    let corrupt = |why: String| OpenError::Corrupt { path: path.clone(), why };
    check_version(&read_only(&path).map_err(failed)?, &path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(&path, flags).map_err(failed)?;
    let found: String = db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if found != "ok" {
        return Err(corrupt(found));
    }
    load(&db, &path)?;
    // No reader has it yet: with one file there is nothing to lose beside it.
    db.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(())).map_err(failed)?;
    let compacted = meta(&db, "compacted_rev").map_err(failed)?.and_then(|it| it.parse::<u64>().ok());
    let compacted = compacted.ok_or_else(|| corrupt("it does not say how far it is compacted".into()))?;
    let tx = db.transaction().map_err(failed)?;
    let newest = tx.query_row("SELECT coalesce(max(rev), 0) FROM log", [], |row| row.get::<_, i64>(0));
    let newest = newest.map_err(failed)?.cast_unsigned().max(compacted);
    // A compaction through the revision before the next one: what is left is what is live.
    let next = newest.checked_add(GAP).filter(|it| *it < i64::MAX as u64);
    let next = next.ok_or_else(|| corrupt(format!("its revision {newest} is none")))?;
    tx.execute("DELETE FROM log WHERE rev NOT IN (SELECT rev FROM live)", []).map_err(failed)?;
    let done = tx.execute("UPDATE meta SET value = ? WHERE name = 'compacted_rev'", params![next.to_string()]);
    done.map_err(failed)?;
    tx.commit().map_err(failed)?;
    db.close().map_err(|(_, error)| failed(error))
}

fn read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(Duration::from_secs(5))?;
    Ok(db)
}

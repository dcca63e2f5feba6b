//! The log in SQLite: one row a revision is the truth, `live` is its fold.
//!
//! After a compaction at C the rows up to C are exactly the versions that were live at C, so every state from C on can
//! still be told, and every event after C.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, ffi, params};

use super::key::{Entry, Key};
use super::memory::{Event, Scope};
use super::{OpenError, TooOld};

/// The layout below. A file with a higher one was written by a newer version and is not touched.
const VERSION: i64 = 1;
const LAYOUT: &str = "
    CREATE TABLE meta(name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE log(rev INTEGER PRIMARY KEY, key TEXT NOT NULL, verb TEXT NOT NULL, prev_rev INTEGER,
                     at INTEGER NOT NULL, value BLOB NOT NULL) STRICT;
    CREATE TABLE live(key TEXT PRIMARY KEY, rev INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";
/// How many revisions one read of older events looks at, at most: bounds its time and its memory.
const PAGE: u64 = 512;

/// The writer's side. One at a time, by the lock file.
pub(super) struct Log {
    db: Connection,
    _lock: File,
}

/// What a log says when it is opened.
pub(super) struct Opened {
    pub(super) log: Log,
    pub(super) reader: Reader,
    pub(super) revision: u64,
    pub(super) compacted: u64,
    pub(super) live: Vec<Entry>,
}

impl Log {
    /// Opens `kubernetes.db` in a directory, or makes it.
    pub(super) fn open(dir: &Path) -> Result<Opened, OpenError> {
        let path = dir.join("kubernetes.db");
        let lock = lock(&dir.join("kubernetes.lock"))?;
        let failed = |source| OpenError::of(&path, source);
        let fresh = !path.exists();
        if fresh {
            create(&path).map_err(|source| OpenError::NotWritable { path: path.clone(), source })?;
        } else {
            // Without a right to write: a newer version's file must stay as it is.
            let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
            match check_version(&db, &path) {
                // Who made it was killed in the middle: what it had begun must be undone before anything can be read.
                Err(OpenError::NotWritable { .. }) => {
                    let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
                    check_version(&db, &path)?;
                }
                checked => checked?,
            }
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Connection::open_with_flags(&path, flags).map_err(failed)?;
        prepare(&mut db).map_err(failed)?;
        let meta = |name| meta(&db, name).map_err(failed);
        let compacted = meta("compacted_rev")?.and_then(|it| it.parse().ok()).unwrap_or(0);
        let newest = db.query_row("SELECT coalesce(max(rev), 0) FROM log", [], |row| rev(row, 0)).map_err(failed)?;
        // A copy that was restored is compacted through revisions that it never had.
        let revision = newest.max(compacted);
        let live = load(&db, &path)?;
        let db_read = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
        let reader = Reader { db: Mutex::new(db_read) };
        Ok(Opened { log: Self { db, _lock: lock }, reader, revision, compacted, live })
    }

    /// Makes the events durable, all or none.
    pub(super) fn append(&mut self, events: &[Arc<Event>], at: Timestamp) -> rusqlite::Result<()> {
        let tx = self.db.transaction()?;
        {
            let mut log =
                tx.prepare_cached("INSERT INTO log(rev, key, verb, prev_rev, at, value) VALUES (?,?,?,?,?,?)")?;
            let mut put = tx.prepare_cached(
                "INSERT INTO live(key, rev) VALUES (?,?) ON CONFLICT(key) DO UPDATE SET rev = excluded.rev",
            )?;
            let mut delete = tx.prepare_cached("DELETE FROM live WHERE key = ?")?;
            for event in events {
                let path = event.entry.key.path();
                let verb = match (&event.prev, event.deleted) {
                    (_, true) => "delete",
                    (Some(_), false) => "update",
                    (None, false) => "create",
                };
                let prev = event.prev.as_ref().map(|it| it.rev.cast_signed());
                let rev = event.rev.cast_signed();
                log.execute(params![rev, path, verb, prev, at.as_millisecond(), &event.entry.json[..]])?;
                if event.deleted {
                    delete.execute(params![path])?;
                } else {
                    put.execute(params![path, rev])?;
                }
            }
        }
        tx.commit()
    }

    /// Forgets what was superseded or deleted between two revisions; `from` is where the last compaction ended.
    pub(super) fn compact(&mut self, from: u64, through: u64) -> rusqlite::Result<()> {
        let range = params![from.cast_signed(), through.cast_signed()];
        let tx = self.db.transaction()?;
        tx.execute("DELETE FROM log WHERE rev IN (SELECT prev_rev FROM log WHERE rev > ? AND rev <= ?)", range)?;
        tx.execute("DELETE FROM log WHERE rev > ? AND rev <= ? AND verb = 'delete'", range)?;
        tx.execute("UPDATE meta SET value = ? WHERE name = 'compacted_rev'", params![through.to_string()])?;
        tx.commit()
    }

    /// Lets the file grow no further than this many pages: a disk that is full.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: u32) -> rusqlite::Result<()> {
        self.db.pragma_update(None, "max_page_count", pages)
    }

    #[cfg(test)]
    pub(super) fn pages(&self) -> rusqlite::Result<u32> {
        self.db.pragma_query_value(None, "page_count", |row| row.get(0))
    }
}

/// Whether the error means that there is no room: the next write may succeed.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
        || error.sqlite_error().is_some_and(|it| it.extended_code == ffi::SQLITE_IOERR_SHMSIZE)
}

/// The readers' side: older events, beside the writer and without waiting for it. Blocks.
pub(super) struct Reader {
    db: Mutex<Connection>,
}

/// A stretch of the log.
pub(super) struct Page {
    pub(super) events: Vec<Arc<Event>>,
    /// Everything of the scope up to here is in `events` or was before.
    pub(super) through: u64,
}

impl Reader {
    /// The scope's events after a revision, as many as a page holds.
    pub(super) fn events(&self, scope: &Scope, after: u64) -> Result<Page, ReadError> {
        let mut db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let tx = db.transaction()?;
        let oldest = meta(&tx, "compacted_rev")?.and_then(|it| it.parse().ok()).unwrap_or(0);
        if after < oldest {
            return Err(TooOld { asked: after, oldest }.into());
        }
        let newest = tx.query_row("SELECT coalesce(max(rev), 0) FROM log", [], |row| rev(row, 0))?;
        let through = newest.min(after.saturating_add(PAGE)).max(after);
        let (low, high) = bounds(scope);
        let mut events = tx.prepare_cached(
            "SELECT it.rev, it.key, it.verb, it.value, prev.rev, prev.value
             FROM log it LEFT JOIN log prev ON prev.rev = it.prev_rev
             WHERE it.rev > ?1 AND it.rev <= ?2 AND it.key >= ?3 AND it.key < ?4 ORDER BY it.rev",
        )?;
        let rows = events.query_map(params![after.cast_signed(), through.cast_signed(), low, high], event)?;
        let events = rows.collect::<Result<_, _>>()?;
        Ok(Page { events, through })
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    TooOld(#[from] TooOld),
    #[error("cannot read the log")]
    Log(#[from] rusqlite::Error),
}

/// A new file for its owner's eyes only, there for good: it will hold Secrets. The journal beside it takes over its mode.
pub(super) fn create(path: &Path) -> io::Result<()> {
    File::options().create_new(true).write(true).mode(0o600).open(path)?;
    sync_dir(path)
}

fn sync_dir(of: &Path) -> io::Result<()> {
    let dir = of.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(dir)?.sync_all()
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let not_writable = |source| OpenError::NotWritable { path: path.to_owned(), source };
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(not_writable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(not_writable(source)),
    }
}

pub(super) fn check_version(db: &Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::of(path, source);
    let corrupt = |why: &str| OpenError::Corrupt { path: path.to_owned(), why: why.to_owned() };
    let tables = "SELECT count(*), coalesce(sum(name = 'meta'), 0) FROM sqlite_schema";
    let (all, ours): (i64, i64) = db.query_row(tables, [], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)?;
    match (all, ours) {
        (0, _) => return Ok(()),
        (_, 0) => return Err(corrupt("it is another program's database")),
        _ => {}
    }
    let found = meta(db, "schema_version").map_err(failed)?.and_then(|it| it.parse::<i64>().ok());
    match found {
        None => Err(corrupt("it does not say which version wrote it")),
        Some(found) if found > VERSION => Err(OpenError::Newer { path: path.to_owned(), found, known: VERSION }),
        Some(_) => Ok(()),
    }
}

fn prepare(db: &mut Connection) -> rusqlite::Result<()> {
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    db.pragma_update(None, "cache_size", -8192)?;
    db.pragma_update(None, "journal_size_limit", 64 << 20)?;
    let tx = db.transaction()?;
    if !tx.table_exists(None, "meta")? {
        tx.execute_batch(LAYOUT)?;
        let mut set = tx.prepare("INSERT INTO meta(name, value) VALUES (?,?)")?;
        set.execute(params!["schema_version", VERSION.to_string()])?;
        set.execute(params!["compacted_rev", "0"])?;
    }
    tx.commit()
}

pub(super) fn load(db: &Connection, path: &Path) -> Result<Vec<Entry>, OpenError> {
    let failed = |source| OpenError::of(path, source);
    let all = "SELECT live.key, live.rev, log.value FROM live LEFT JOIN log ON log.rev = live.rev ORDER BY live.key";
    let mut all = db.prepare(all).map_err(failed)?;
    let rows = all.query_map([], |row| entry(row, 0, 1, 2)).map_err(failed)?;
    rows.collect::<Result<_, _>>().map_err(failed)
}

pub(super) fn meta(db: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    db.query_row("SELECT value FROM meta WHERE name = ?", [name], |row| row.get(0)).optional()
}

fn rev(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.cast_unsigned())
}

fn entry(row: &Row<'_>, key: usize, at: usize, value: usize) -> rusqlite::Result<Entry> {
    let path = row.get_ref(key)?.as_str()?;
    let damaged = |what: &str| {
        let why = format!("{what} of {path}");
        rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(why))
    };
    let key = Key::from_path(path).ok_or_else(|| damaged("the key"))?;
    let json = row.get::<_, Option<Vec<u8>>>(value)?.ok_or_else(|| damaged("no value"))?;
    Ok(Entry::new(key, rev(row, at)?, json.into(), None))
}

fn event(row: &Row<'_>) -> rusqlite::Result<Arc<Event>> {
    let prev = row.get::<_, Option<i64>>(4)?.map(|_| entry(row, 1, 4, 5).map(Arc::new)).transpose()?;
    let deleted = row.get_ref(2)?.as_str()? == "delete";
    let entry = Arc::new(entry(row, 1, 0, 3)?);
    Ok(Arc::new(Event { rev: entry.rev, entry, prev, deleted }))
}

/// The range of paths that a scope spans: `0` is the character after the slash.
fn bounds(scope: &Scope) -> (String, String) {
    match scope {
        Scope::All => (String::new(), char::MAX.to_string()),
        Scope::Of { group, resource, namespace: None } => {
            (format!("{group}/{resource}/"), format!("{group}/{resource}0"))
        }
        Scope::Of { group, resource, namespace: Some(ns) } => {
            (format!("{group}/{resource}/{ns}/"), format!("{group}/{resource}/{ns}0"))
        }
    }
}

//! The database's tables, and how they came to be.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::Error;

/// Marks the file as a ledger ("insl").
const APPLICATION: u32 = 0x696e_736c;

/// Each brings the schema from its index to the next number. Never edited once released: another one is added.
const MIGRATIONS: &[&str] = &[
    "
    -- Times are microseconds since 1970. `epoch` counts leases; `state` is 0 queued, 1 leased, 2 done.
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        run TEXT NOT NULL UNIQUE,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        instance TEXT NOT NULL,
        session TEXT NOT NULL,
        created INTEGER NOT NULL,
        timeout INTEGER NOT NULL,
        state INTEGER NOT NULL DEFAULT 0,
        epoch INTEGER NOT NULL DEFAULT 0,
        holder TEXT,
        started INTEGER,
        finished INTEGER,
        outcome TEXT,
        entries INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        input INTEGER NOT NULL DEFAULT 0,
        output INTEGER NOT NULL DEFAULT 0,
        total INTEGER NOT NULL DEFAULT 0,
        calls INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX runs_active ON runs (id) WHERE state < 2;
    -- Apart from runs, whose rows change with every step; gone when the run is done.
    CREATE TABLE jobs (id INTEGER PRIMARY KEY, job TEXT NOT NULL) STRICT;
    CREATE TABLE log (
        id INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        at INTEGER NOT NULL,
        step TEXT NOT NULL,
        PRIMARY KEY (id, seq)
    ) STRICT;
    CREATE TABLE turns (
        id INTEGER PRIMARY KEY,
        namespace TEXT NOT NULL,
        instance TEXT NOT NULL,
        session TEXT NOT NULL,
        task TEXT NOT NULL,
        answer TEXT NOT NULL
    ) STRICT;
    CREATE INDEX turns_session ON turns (namespace, instance, session, id);
    CREATE TABLE limits (
        namespace TEXT NOT NULL,
        instance TEXT NOT NULL,
        runs INTEGER NOT NULL,
        PRIMARY KEY (namespace, instance)
    ) STRICT, WITHOUT ROWID;
",
    "
    -- Which sandbox is whose. `epoch` is never given twice. A sandbox without a session is its run's alone.
    CREATE TABLE claims (
        epoch INTEGER PRIMARY KEY AUTOINCREMENT,
        sandbox TEXT NOT NULL UNIQUE,
        namespace TEXT NOT NULL,
        instance TEXT NOT NULL,
        session TEXT NOT NULL,
        run TEXT NOT NULL,
        pod TEXT NOT NULL,
        shape TEXT NOT NULL,
        since INTEGER NOT NULL,
        used INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX claims_session ON claims (namespace, instance, session) WHERE session != '';
    CREATE UNIQUE INDEX claims_run ON claims (run) WHERE session = '';
    ALTER TABLE runs ADD COLUMN pod TEXT;
",
    "
    -- How many runs an instance has ever had.
    CREATE TABLE totals (
        namespace TEXT NOT NULL,
        instance TEXT NOT NULL,
        runs INTEGER NOT NULL,
        PRIMARY KEY (namespace, instance)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO totals SELECT namespace, instance, count(*) FROM runs GROUP BY namespace, instance;
",
    "
    -- Why the model is asked again.
    ALTER TABLE runs ADD COLUMN trouble TEXT;
    CREATE INDEX runs_leased ON runs (namespace, instance) WHERE state = 1;
",
    "
    -- What the run goes without, as a JSON list; it outlives the job.
    ALTER TABLE runs ADD COLUMN without TEXT NOT NULL DEFAULT '[]';
",
];

/// The schema this program writes.
pub(crate) const VERSION: u32 = MIGRATIONS.len() as u32;

/// The one connection that writes.
pub(crate) fn open(path: Option<&Path>) -> Result<Connection, Error> {
    let shown = path.unwrap_or_else(|| Path::new(":memory:"));
    let failed = failed(shown);
    let mut connection = match path {
        Some(path) => Connection::open(path),
        None => Connection::open_in_memory(),
    }
    .map_err(&failed)?;
    let found = checked(&connection, shown)?;
    prepare(&mut connection, found).map_err(failed)?;
    Ok(connection)
}

/// A connection that only reads, to a ledger that was looked at.
pub(crate) fn open_checked(path: &Path) -> Result<Connection, Error> {
    let connection = open_reader(path).map_err(|error| match error {
        Error::Database { source } => Error::Open { path: path.to_owned(), source },
        it => it,
    })?;
    checked(&connection, path)?;
    Ok(connection)
}

fn checked(connection: &Connection, path: &Path) -> Result<u32, Error> {
    version(connection, path).map_err(|error| match error {
        Opened::Refused(error) => error,
        Opened::Failed(source) => failed(path)(source),
    })
}

fn failed(path: &Path) -> impl Fn(rusqlite::Error) -> Error {
    move |source| match Error::from(source) {
        it @ (Error::Full | Error::Corrupt { .. }) => it,
        Error::Database { source } => Error::Open { path: path.to_owned(), source },
        it => it,
    }
}

/// A connection that only reads.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

enum Opened {
    Refused(Error),
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for Opened {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error)
    }
}

/// The schema's number, 0 for a new database; only reads.
fn version(connection: &Connection, path: &Path) -> Result<u32, Opened> {
    connection.busy_timeout(Duration::from_secs(5))?;
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let application: u32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: u32 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables > 0 && application != APPLICATION {
        return Err(Opened::Refused(Error::Corrupt { what: format!("{} is not a ledger", path.display()) }));
    }
    if found > VERSION {
        return Err(Opened::Refused(Error::Newer { path: path.to_owned(), found, known: VERSION }));
    }
    Ok(found)
}

fn prepare(connection: &mut Connection, found: u32) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.set_prepared_statement_cache_capacity(64);
    for (to, migration) in (1u32..).zip(MIGRATIONS).skip(found as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", to)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.commit()?;
    }
    // Proves that we may write, and voids what earlier processes held. By the index of leased runs.
    connection.execute("UPDATE runs SET state = 0, holder = NULL WHERE state = 1", [])?;
    Ok(())
}

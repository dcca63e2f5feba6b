//! Reads: on connections of their own beside the writer, or in memory on the writer's.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::writer::Writer;
use crate::{
    Entry, Epoch, Error, HISTORY_LIMIT, Job, Outcome, Run, RunId, Seq, State, Ticket, Tokens, Turn, Usage, schema,
};

/// Connections that read at once.
const READERS: usize = 4;

#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    runtime: Handle,
    permits: Semaphore,
    from: From,
}

enum From {
    Connections(Mutex<Vec<Connection>>),
    Writer(Arc<Mutex<Writer>>),
}

impl Pool {
    pub(crate) fn open(path: &Path, runtime: Handle) -> Result<Self, Error> {
        let connections = (0..READERS).map(|_| schema::open_reader(path)).collect::<Result<_, _>>()?;
        let from = From::Connections(Mutex::new(connections));
        Ok(Self(Arc::new(Inner { runtime, permits: Semaphore::new(READERS), from })))
    }

    pub(crate) fn of(writer: Arc<Mutex<Writer>>, runtime: Handle) -> Self {
        Self(Arc::new(Inner { runtime, permits: Semaphore::new(1), from: From::Writer(writer) }))
    }

    pub(crate) async fn read<T, F>(&self, look: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let _permit = self.0.permits.acquire().await.map_err(|_| Error::Closed)?;
        let inner = self.0.clone();
        // Not a task of its own: it is waited for here, and off the threads that must not block.
        let read = self.0.runtime.spawn_blocking(move || match &inner.from {
            From::Connections(idle) => {
                let taken = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let connection = taken.ok_or(Error::Closed)?;
                let found = look(&connection);
                idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                Ok(found?)
            }
            From::Writer(writer) => {
                let writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(look(writer.connection())?)
            }
        });
        read.await.map_err(|_| Error::Closed)?
    }
}

/// A value in the database that does not mean anything.
fn odd(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

pub(crate) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    let micros: Option<i64> = row.get(column)?;
    micros.map(|micros| Timestamp::from_microsecond(micros).map_err(|error| odd(column, error))).transpose()
}

/// SQLite's integers have a sign, ours never use it.
pub(crate) fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or_default())
}

pub(crate) fn submitted(database: &Connection, namespace: &str, instance: &str) -> rusqlite::Result<u64> {
    let mut statement = database.prepare_cached("SELECT runs FROM totals WHERE namespace = ? AND instance = ?")?;
    let found = statement.query_row([namespace, instance], |row| row.get::<_, i64>(0)).optional()?;
    Ok(found.map_or(0, i64::unsigned_abs))
}

pub(crate) fn running(database: &Connection, namespace: &str, instance: &str) -> rusqlite::Result<u32> {
    let mut statement =
        database.prepare_cached("SELECT count(*) FROM runs WHERE state = 1 AND namespace = ? AND instance = ?")?;
    statement.query_row([namespace, instance], |row| row.get(0))
}

pub(crate) fn run(database: &Connection, run: &RunId) -> rusqlite::Result<Option<Run>> {
    let mut statement = database.prepare_cached(
        "SELECT namespace, name, state, epoch, started, finished, input, output, total, calls, outcome, pod, trouble,
                without
         FROM runs WHERE run = ?",
    )?;
    let found = statement.query_row([run.as_str()], |row| {
        let outcome: Option<String> = row.get(10)?;
        let state = match (row.get::<_, u8>(2)?, outcome) {
            (0, _) => State::Queued,
            (_, None) => State::Running,
            (_, Some(json)) => State::Done(serde_json::from_str::<Outcome>(&json).map_err(|error| odd(10, error))?),
        };
        Ok(Run {
            namespace: row.get(0)?,
            name: row.get(1)?,
            state,
            attempt: row.get(3)?,
            started: time(row, 4)?,
            finished: time(row, 5)?,
            usage: Usage {
                tokens: Tokens { input: count(row, 6)?, output: count(row, 7)?, total: count(row, 8)? },
                tool_calls: count(row, 9)?,
            },
            pod: row.get(11)?,
            trouble: row.get(12)?,
            without: serde_json::from_str(&row.get::<_, String>(13)?).map_err(|error| odd(13, error))?,
        })
    });
    found.optional()
}

/// At most `count` entries after `after`, in order.
pub(crate) fn log(database: &Connection, run: &RunId, after: Seq, count: u32) -> rusqlite::Result<Vec<Entry>> {
    let mut statement = database.prepare_cached(
        "SELECT seq, epoch, at, step FROM log
         WHERE id = (SELECT id FROM runs WHERE run = ?) AND seq > ? ORDER BY seq LIMIT ?",
    )?;
    let rows = statement.query_map(params![run.as_str(), after.0, count], |row| {
        let step: String = row.get(3)?;
        Ok(Entry {
            seq: Seq(row.get(0)?),
            epoch: Epoch(row.get(1)?),
            at: time(row, 2)?.unwrap_or_default(),
            step: serde_json::from_str(&step).map_err(|error| odd(3, error))?,
        })
    })?;
    rows.collect()
}

/// All that the holder of a new lease must know.
pub(crate) struct Leased {
    pub(crate) ticket: Ticket,
    pub(crate) log: Vec<Entry>,
    pub(crate) history: Vec<Turn>,
}

/// `None` when the run is gone or done.
pub(crate) fn leased(database: &Connection, run: &RunId) -> rusqlite::Result<Option<Leased>> {
    let mut statement = database.prepare_cached(
        "SELECT r.namespace, r.name, r.instance, r.session, r.created, r.timeout, j.job, coalesce(l.runs, 0)
         FROM runs r JOIN jobs j USING (id)
         LEFT JOIN limits l ON l.namespace = r.namespace AND l.instance = r.instance WHERE r.run = ?",
    )?;
    let found = statement.query_row([run.as_str()], |row| {
        let job: String = row.get(6)?;
        Ok(Ticket {
            run: run.clone(),
            namespace: row.get(0)?,
            name: row.get(1)?,
            instance: row.get(2)?,
            session: row.get(3)?,
            created: time(row, 4)?.unwrap_or_default(),
            timeout: Duration::from_micros(count(row, 5)?),
            limit: row.get(7)?,
            job: serde_json::from_str::<Job>(&job).map_err(|error| odd(6, error))?,
        })
    });
    let Some(ticket) = found.optional()? else { return Ok(None) };
    let log = log(database, run, Seq(0), u32::MAX)?;
    let history = history(database, &ticket)?;
    Ok(Some(Leased { ticket, log, history }))
}

/// The task of a run that is not done.
pub(crate) fn task(database: &Connection, id: i64) -> rusqlite::Result<String> {
    let mut statement = database.prepare_cached("SELECT job FROM jobs WHERE id = ?")?;
    let job: String = statement.query_row([id], |row| row.get(0))?;
    Ok(serde_json::from_str::<Job>(&job).map_err(|error| odd(0, error))?.task)
}

/// The newest turns of a session that fit into [`HISTORY_LIMIT`], oldest first.
fn history(database: &Connection, ticket: &Ticket) -> rusqlite::Result<Vec<Turn>> {
    if ticket.session.is_empty() {
        return Ok(Vec::new());
    }
    let mut statement = database.prepare_cached(
        "SELECT task, answer FROM turns WHERE namespace = ? AND instance = ? AND session = ? ORDER BY id DESC",
    )?;
    let mut rows = statement.query([&ticket.namespace, &ticket.instance, &ticket.session])?;
    let (mut turns, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let turn = Turn { task: row.get(0)?, answer: row.get(1)? };
        bytes += turn.task.len() + turn.answer.len();
        if bytes > HISTORY_LIMIT {
            break;
        }
        turns.push(turn);
    }
    turns.reverse();
    Ok(turns)
}

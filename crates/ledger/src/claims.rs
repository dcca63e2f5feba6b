//! Which sandbox is whose.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use crate::read::time;
use crate::writer::{Order, Receipt};
use crate::{Error, Ledger, NAME_LIMIT, RunId, fits};

/// Bytes of what a holder asked for.
const SHAPE_LIMIT: usize = 64 << 10;

/// Names one claim of all that were ever made, and grows with each: the fence. Who carries the epoch of a claim that is
/// over changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimEpoch(pub u64);

/// For whom a sandbox is claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    pub namespace: String,
    pub instance: String,
    /// The session's key; "": none, and the sandbox is the run's alone.
    pub session: String,
    /// The run on whose behalf; it must be leased.
    pub run: RunId,
    /// The name under which people see the sandbox.
    pub pod: String,
    /// What was asked for, in the words of who reads it again.
    pub shape: String,
}

/// A sandbox that is somebody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub epoch: ClaimEpoch,
    /// The node's id of it.
    pub sandbox: String,
    /// Its `run` is the one that used the sandbox last.
    pub by: Claimant,
    pub since: Timestamp,
    /// When its latest run began to use it.
    pub used: Timestamp,
}

impl Ledger {
    /// Claims a sandbox: nobody else can from then on, and whoever asks for the run learns the pod's name.
    ///
    /// # Errors
    /// [`Error::Claimed`] when the sandbox is somebody's, or the session (the run, without one) has one;
    /// [`Error::NotLeased`] when the run is over or not begun.
    pub async fn claim(&self, sandbox: &str, by: Claimant) -> Result<ClaimEpoch, Error> {
        for (what, text) in [
            ("the sandbox's id", sandbox),
            ("the instance's name", &by.instance),
            ("the namespace", &by.namespace),
            ("the session's key", &by.session),
            ("the pod's name", &by.pod),
        ] {
            fits(what, text.len(), NAME_LIMIT)?;
        }
        fits("the sandbox's shape", by.shape.len(), SHAPE_LIMIT)?;
        match self.order(Order::Claim { sandbox: sandbox.to_owned(), by: Box::new(by) }, 0).await? {
            Receipt::Claim(epoch) => Ok(epoch),
            Receipt::Nothing | Receipt::Entry(_) => Err(Error::Closed),
        }
    }

    /// Notes that another run of the session goes on with its sandbox.
    ///
    /// # Errors
    /// [`Error::Unclaimed`] when the claim is over; [`Error::NotLeased`] as for [`Ledger::claim`].
    pub async fn reuse(&self, epoch: ClaimEpoch, run: &RunId) -> Result<(), Error> {
        self.order(Order::Reuse { epoch, run: run.clone() }, 0).await?;
        Ok(())
    }

    /// Ends a claim. Idempotent.
    pub async fn unclaim(&self, epoch: ClaimEpoch) -> Result<(), Error> {
        self.order(Order::Unclaim { epoch }, 0).await?;
        Ok(())
    }

    /// All claims, oldest first. They outlive the process, as sandboxes may.
    pub async fn claims(&self) -> Result<Vec<Claim>, Error> {
        self.0.reads.read(all).await
    }
}

fn all(database: &Connection) -> rusqlite::Result<Vec<Claim>> {
    let mut statement = database.prepare_cached(
        "SELECT epoch, sandbox, namespace, instance, session, run, pod, shape, since, used FROM claims ORDER BY epoch",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Claim {
            epoch: ClaimEpoch(crate::read::count(row, 0)?),
            sandbox: row.get(1)?,
            by: Claimant {
                namespace: row.get(2)?,
                instance: row.get(3)?,
                session: row.get(4)?,
                run: row.get::<_, String>(5)?.into(),
                pod: row.get(6)?,
                shape: row.get(7)?,
            },
            since: time(row, 8)?.unwrap_or_default(),
            used: time(row, 9)?.unwrap_or_default(),
        })
    })?;
    rows.collect()
}

pub(crate) fn claim(database: &Connection, now: i64, sandbox: &str, by: &Claimant) -> Result<ClaimEpoch, Error> {
    let Claimant { namespace, instance, session, run, pod, shape } = by;
    let mut insert = database.prepare_cached(
        "INSERT INTO claims (sandbox, namespace, instance, session, run, pod, shape, since, used)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8) ON CONFLICT DO NOTHING",
    )?;
    if insert.execute(params![sandbox, namespace, instance, session, run.as_str(), pod, shape, now])? == 0 {
        return Err(Error::Claimed { sandbox: sandbox.to_owned() });
    }
    let epoch = ClaimEpoch(database.last_insert_rowid().unsigned_abs());
    note(database, run, pod)?;
    Ok(epoch)
}

pub(crate) fn reuse(database: &Connection, now: i64, epoch: ClaimEpoch, run: &RunId) -> Result<(), Error> {
    let mut update = database.prepare_cached("UPDATE claims SET run = ?, used = ? WHERE epoch = ? RETURNING pod")?;
    let pod: Option<String> =
        update.query_row(params![run.as_str(), now, epoch.0.cast_signed()], |row| row.get(0)).optional()?;
    note(database, run, &pod.ok_or(Error::Unclaimed { epoch })?)
}

fn note(database: &Connection, run: &RunId, pod: &str) -> Result<(), Error> {
    database.prepare_cached("UPDATE runs SET pod = ? WHERE run = ?")?.execute([pod, run.as_str()])?;
    Ok(())
}

pub(crate) fn unclaim(database: &Connection, epoch: ClaimEpoch) -> Result<(), Error> {
    database.prepare_cached("DELETE FROM claims WHERE epoch = ?")?.execute([epoch.0.cast_signed()])?;
    Ok(())
}

/// The claim of a run that is deleted, where the sandbox was its alone.
pub(crate) fn forget(database: &Connection, run: &RunId) -> Result<(), Error> {
    database.prepare_cached("DELETE FROM claims WHERE session = '' AND run = ?")?.execute([run.as_str()])?;
    Ok(())
}

pub(crate) fn forget_instance(database: &Connection, namespace: &str, instance: &str) -> Result<(), Error> {
    let mut delete = database.prepare_cached("DELETE FROM claims WHERE namespace = ? AND instance = ?")?;
    delete.execute([namespace, instance])?;
    Ok(())
}

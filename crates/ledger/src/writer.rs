//! The one writer: what waits is written together in one transaction, then told.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use jiff::Timestamp;
use kit::Clock;
use rusqlite::{Connection, params};
use tokio::sync::{oneshot, watch};

use crate::live::{Change, Event, Live};
use crate::queue::{Item, Queue, Tenant};
use crate::{
    ClaimEpoch, Claimant, Entry, Epoch, Error, Hold, Inner, LOG_BYTES, LOG_ENTRIES, Ledger, Outcome, RunId, Seq, State,
    Step, Ticket, Tokens, Usage, claims, read,
};

/// Bytes of why a model is asked again, where a run is looked up; the run's log has all of it.
const TROUBLE: usize = 1 << 10;

/// Something to be written. Everything in it was checked for its size.
pub(crate) enum Order {
    Submit {
        ticket: Box<Ticket>,
        job: String,
    },
    /// Each step also in JSON.
    Append {
        run: RunId,
        epoch: Epoch,
        steps: Vec<(Step, String)>,
    },
    Finish {
        run: RunId,
        epoch: Epoch,
        outcome: Outcome,
    },
    Release {
        run: RunId,
        epoch: Epoch,
    },
    Cancel {
        run: RunId,
        reason: String,
    },
    Forget {
        run: RunId,
    },
    ForgetInstance {
        namespace: String,
        instance: String,
    },
    Claim {
        sandbox: String,
        by: Box<Claimant>,
    },
    Reuse {
        epoch: ClaimEpoch,
        run: RunId,
    },
    Unclaim {
        epoch: ClaimEpoch,
    },
}

/// What came of an order.
pub(crate) enum Receipt {
    Nothing,
    /// The place of what was appended.
    Entry(Seq),
    Claim(ClaimEpoch),
}

pub(crate) type Written = Result<Receipt, Error>;

/// Somebody who waits for a run.
pub(crate) struct Waiter {
    pub(crate) holder: String,
    /// Whom a lease is given back to. Weak: waiting keeps no ledger open.
    pub(crate) ledger: Weak<Inner>,
    pub(crate) granted: oneshot::Sender<Result<Grant, Error>>,
}

pub(crate) struct Grant {
    pub(crate) hold: Hold,
    pub(crate) started: Timestamp,
    pub(crate) stopped: watch::Receiver<bool>,
}

pub(crate) struct Writer {
    database: Connection,
    clock: Clock,
    live: Arc<Live>,
    /// `None` after a failed transaction: read again from the database before the next one.
    books: Option<Books>,
    waiters: VecDeque<Waiter>,
}

/// The queued and leased runs. What is done is not in memory.
#[derive(Default)]
struct Books {
    queue: Queue,
    active: HashMap<RunId, Active>,
}

struct Active {
    id: i64,
    tenant: Tenant,
    name: Arc<str>,
    session: Arc<str>,
    epoch: Epoch,
    leased: bool,
    started: Option<i64>,
    entries: u32,
    bytes: usize,
    usage: Usage,
    /// The run's `trouble` is told.
    troubled: bool,
}

/// What is told once it is durable.
enum Told {
    /// The `step`th of an order.
    Entry {
        order: usize,
        step: usize,
        seq: Seq,
    },
    State {
        run: RunId,
        tenant: Tenant,
        name: Arc<str>,
        attempt: u32,
        state: State,
    },
    /// The lease was given back or taken away.
    Unleased {
        run: RunId,
        lost: bool,
    },
    Granted {
        run: RunId,
        epoch: Epoch,
        started: Timestamp,
        seq: Seq,
    },
    /// Something of it that no follower sees.
    Noted {
        run: RunId,
        tenant: Tenant,
        name: Arc<str>,
    },
    Gone(RunId),
}

impl Writer {
    pub(crate) fn new(database: Connection, clock: Clock, live: Arc<Live>) -> Result<Self, Error> {
        let books = Books::read(&database)?;
        Ok(Self { database, clock, live, books: Some(books), waiters: VecDeque::new() })
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.database
    }

    /// Writes the orders in one transaction and answers them; then those who wait get what is due.
    ///
    /// Where the transaction fails, each order is tried alone, so that one that does not fit on the disk takes no other
    /// with it.
    pub(crate) fn work(&mut self, orders: Vec<(Order, Option<oneshot::Sender<Written>>)>, waiters: Vec<Waiter>) {
        self.waiters.extend(waiters);
        self.waiters.retain(|waiter| !waiter.granted.is_closed());
        let (orders, answers): (Vec<_>, Vec<_>) = orders.into_iter().unzip();
        let written = match self.transact(&orders, true) {
            Ok(written) => written,
            Err(error) => {
                tracing::warn!(error = kit::chain(&error), orders = orders.len(), "the ledger could not write");
                let mut each = Vec::with_capacity(orders.len());
                for order in &orders {
                    each.push(match self.transact(std::slice::from_ref(order), false) {
                        Ok(mut written) => written.pop().unwrap_or(Ok(Receipt::Nothing)),
                        Err(error) => Err(error),
                    });
                }
                if let Err(error) = self.transact(&[], true)
                    && let Some(waiter) = self.waiters.pop_front()
                {
                    let _ = waiter.granted.send(Err(error));
                }
                each
            }
        };
        for (answer, written) in answers.into_iter().zip(written) {
            if let Some(answer) = answer {
                // Who no longer waits does not want to know.
                let _ = answer.send(written);
            }
        }
    }

    /// One transaction: all of it is durable when this returns `Ok`, nothing of it was done when it returns `Err`. Inside,
    /// an order may have been refused; it then changed nothing.
    fn transact(&mut self, orders: &[Order], grant: bool) -> Result<Vec<Written>, Error> {
        let mut books = match self.books.take() {
            Some(books) => books,
            None => Books::read(&self.database)?,
        };
        let now = self.clock.now();
        let done = self.write(&mut books, orders, grant, now);
        let (written, told) = match done {
            Ok(done) => done,
            Err(error) => {
                if !self.database.is_autocommit()
                    && let Err(error) = self.database.execute_batch("ROLLBACK")
                {
                    tracing::error!(error = kit::chain(&error), "the ledger could not roll back");
                }
                return Err(error);
            }
        };
        self.books = Some(books);
        self.tell(orders, told, now);
        Ok(written)
    }

    fn write(
        &self,
        books: &mut Books,
        orders: &[Order],
        grant: bool,
        now: Timestamp,
    ) -> Result<(Vec<Written>, Vec<Told>), Error> {
        // Takes no lock and costs no sync until something is written.
        self.database.execute_batch("BEGIN DEFERRED")?;
        let mut batch = Batch { database: &self.database, books, now: now.as_microsecond(), told: Vec::new() };
        let mut written = Vec::with_capacity(orders.len());
        for (index, order) in orders.iter().enumerate() {
            written.push(match batch.apply(index, order) {
                Ok(receipt) => Ok(receipt),
                Err(
                    refused @ (Error::Stale { .. }
                    | Error::LogFull { .. }
                    | Error::Claimed { .. }
                    | Error::Unclaimed { .. }
                    | Error::NotLeased { .. }),
                ) => Err(refused),
                Err(failed) => return Err(failed),
            });
        }
        if grant {
            for waiter in &self.waiters {
                if !batch.grant(&waiter.holder)? {
                    break;
                }
            }
        }
        let told = batch.told;
        self.database.execute_batch("COMMIT")?;
        Ok((written, told))
    }

    fn tell(&mut self, orders: &[Order], told: Vec<Told>, now: Timestamp) {
        for it in told {
            match it {
                Told::Entry { order, step, seq } => {
                    if let Some(Order::Append { run, epoch, steps }) = orders.get(order)
                        && let Some((step, _)) = steps.get(step)
                    {
                        self.live.logged(run, seq, || Entry { seq, epoch: *epoch, at: now, step: step.clone() });
                    }
                }
                Told::State { run, tenant: (namespace, _), name, attempt, state } => {
                    let done = matches!(state, State::Done(_));
                    self.live.publish(&run, &Event::State { attempt, state });
                    if done {
                        self.live.end(&run);
                    }
                    self.live.changed(Change::Run { run, namespace, name });
                }
                Told::Unleased { run, lost } => self.live.unlease(&run, lost),
                Told::Granted { run, epoch, started, seq } => {
                    let stopped = self.live.lease(&run, epoch, seq);
                    if let Some(waiter) = self.waiters.pop_front()
                        && let Some(ledger) = waiter.ledger.upgrade()
                    {
                        let hold = Hold { ledger: Ledger(ledger), run, epoch };
                        // Where nobody waits any more, the dropped hold gives the run back.
                        let _ = waiter.granted.send(Ok(Grant { hold, started, stopped }));
                    }
                }
                Told::Noted { run, tenant: (namespace, _), name } => {
                    self.live.changed(Change::Run { run, namespace, name });
                }
                Told::Gone(run) => self.live.end(&run),
            }
        }
    }
}

/// A transaction at work, with the books as they will be when it is durable.
struct Batch<'a> {
    database: &'a Connection,
    books: &'a mut Books,
    now: i64,
    told: Vec<Told>,
}

impl Batch<'_> {
    fn apply(&mut self, index: usize, order: &Order) -> Written {
        match order {
            Order::Submit { ticket, job } => self.submit(ticket, job)?,
            Order::Append { run, epoch, steps } => {
                return self.append(index, run, *epoch, steps).map(Receipt::Entry);
            }
            Order::Finish { run, epoch, outcome } => {
                self.books.held(run, *epoch)?;
                self.finish(run, outcome, false)?;
            }
            Order::Release { run, epoch } => self.release(run, *epoch)?,
            Order::Cancel { run, reason } => {
                if self.books.active.contains_key(run) {
                    self.finish(run, &Outcome::Cancelled { reason: reason.clone() }, true)?;
                }
            }
            Order::Forget { run } => self.forget(run)?,
            Order::ForgetInstance { namespace, instance } => self.forget_instance(namespace, instance)?,
            Order::Claim { sandbox, by } => {
                let changed = self.books.goes_on(&by.run)?;
                let epoch = claims::claim(self.database, self.now, sandbox, by)?;
                self.told.push(changed);
                return Ok(Receipt::Claim(epoch));
            }
            Order::Reuse { epoch, run } => {
                let changed = self.books.goes_on(run)?;
                claims::reuse(self.database, self.now, *epoch, run)?;
                self.told.push(changed);
            }
            Order::Unclaim { epoch } => claims::unclaim(self.database, *epoch)?,
        }
        Ok(Receipt::Nothing)
    }

    fn run(&self, sql: &str, values: impl rusqlite::Params) -> Result<usize, Error> {
        Ok(self.database.prepare_cached(sql)?.execute(values)?)
    }

    fn submit(&mut self, ticket: &Ticket, job: &str) -> Result<(), Error> {
        let tenant: Tenant = (ticket.namespace.as_str().into(), ticket.instance.as_str().into());
        if let Some(active) = self.books.active.get(&ticket.run) {
            if !active.leased && self.books.queue.limit(&tenant) != Some(ticket.limit) {
                self.limit(&tenant, ticket.limit)?;
                self.books.queue.set_limit(&tenant, ticket.limit);
            }
            return Ok(());
        }
        let created = ticket.created.as_microsecond();
        let timeout = i64::try_from(ticket.timeout.as_micros()).unwrap_or(i64::MAX);
        let run = ticket.run.as_str();
        let without = crate::json(&ticket.job.without)?;
        let new = self.run(
            "INSERT INTO runs (run, namespace, name, instance, session, created, timeout, without)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run) DO NOTHING",
            params![run, ticket.namespace, ticket.name, ticket.instance, ticket.session, created, timeout, without],
        )?;
        if new == 0 {
            return Ok(()); // Done long ago.
        }
        let id = self.database.last_insert_rowid();
        self.run("INSERT INTO jobs (id, job) VALUES (?, ?)", params![id, job])?;
        self.run(
            "INSERT INTO totals (namespace, instance, runs) VALUES (?, ?, 1)
             ON CONFLICT (namespace, instance) DO UPDATE SET runs = runs + 1",
            [&ticket.namespace, &ticket.instance],
        )?;
        if self.books.queue.limit(&tenant) != Some(ticket.limit) {
            self.limit(&tenant, ticket.limit)?;
        }
        let active = Active {
            id,
            tenant: tenant.clone(),
            name: ticket.name.as_str().into(),
            session: ticket.session.as_str().into(),
            epoch: Epoch(0),
            leased: false,
            started: None,
            entries: 0,
            bytes: 0,
            usage: Usage::default(),
            troubled: false,
        };
        self.told.push(active.changed(&ticket.run, State::Queued));
        let item = Item { run: ticket.run.clone(), tenant, session: active.session.clone(), created };
        self.books.queue.submit(item, ticket.limit);
        self.books.active.insert(ticket.run.clone(), active);
        Ok(())
    }

    fn limit(&self, (namespace, instance): &Tenant, limit: u32) -> Result<(), Error> {
        self.run(
            "INSERT INTO limits (namespace, instance, runs) VALUES (?, ?, ?)
             ON CONFLICT (namespace, instance) DO UPDATE SET runs = excluded.runs",
            params![namespace, instance, limit],
        )?;
        Ok(())
    }

    fn append(&mut self, index: usize, run: &RunId, epoch: Epoch, steps: &[(Step, String)]) -> Result<Seq, Error> {
        let now = self.now;
        let active = self.books.held(run, epoch)?;
        let before = active.entries;
        let entries = before.saturating_add(u32::try_from(steps.len()).unwrap_or(u32::MAX));
        let bytes = active.bytes + steps.iter().map(|(_, json)| json.len()).sum::<usize>();
        if entries > LOG_ENTRIES || bytes > LOG_BYTES {
            return Err(Error::LogFull { run: run.clone() });
        }
        (active.entries, active.bytes) = (entries, bytes);
        steps.iter().for_each(|(step, _)| active.usage.add(step));
        let (id, seq, bytes) = (active.id, Seq(entries), signed(bytes as u64));
        let Usage { tokens: Tokens { input, output, total }, tool_calls } = active.usage;
        for ((step, (_, json)), seq) in steps.iter().enumerate().zip(before + 1..) {
            self.run(
                "INSERT INTO log (id, seq, epoch, at, step) VALUES (?, ?, ?, ?, ?)",
                params![id, seq, epoch.0, now, json],
            )?;
            self.told.push(Told::Entry { order: index, step, seq: Seq(seq) });
        }
        self.run(
            "UPDATE runs SET entries = ?, bytes = ?, input = ?, output = ?, total = ?, calls = ? WHERE id = ?",
            params![seq.0, bytes, signed(input), signed(output), signed(total), signed(tool_calls), id],
        )?;
        steps.iter().try_for_each(|(step, _)| self.trouble(run, step))?;
        Ok(seq)
    }

    fn trouble(&mut self, run: &RunId, step: &Step) -> Result<(), Error> {
        let Some(active) = self.books.active.get_mut(run) else { return Ok(()) };
        let trouble = match step {
            Step::Retrying { why, .. } => Some(why.get(..why.floor_char_boundary(TROUBLE)).unwrap_or(why)),
            Step::Asked { .. } | Step::Answered { .. } if active.troubled => None,
            _ => return Ok(()),
        };
        active.troubled = trouble.is_some();
        let id = active.id;
        self.told.push(Told::Noted { run: run.clone(), tenant: active.tenant.clone(), name: active.name.clone() });
        self.run("UPDATE runs SET trouble = ? WHERE id = ?", params![trouble, id])?;
        Ok(())
    }

    /// The end of a run, whoever decided it.
    fn finish(&mut self, run: &RunId, outcome: &Outcome, lost: bool) -> Result<(), Error> {
        let Some(active) = self.books.active.remove(run) else { return Ok(()) };
        self.books.queue.remove(run);
        let json = serde_json::to_string(outcome).map_err(|error| Error::Database { source: error.into() })?;
        self.run(
            "UPDATE runs SET state = 2, holder = NULL, finished = ?, outcome = ? WHERE id = ?",
            params![self.now, json, active.id],
        )?;
        if let Outcome::Succeeded { answer, .. } = outcome
            && !active.session.is_empty()
        {
            let (namespace, instance) = &active.tenant;
            let task = read::task(self.database, active.id)?;
            self.run(
                "INSERT INTO turns (namespace, instance, session, task, answer) VALUES (?, ?, ?, ?, ?)",
                params![namespace, instance, active.session, task, answer],
            )?;
        }
        self.run("DELETE FROM jobs WHERE id = ?", [active.id])?;
        if active.leased {
            self.told.push(Told::Unleased { run: run.clone(), lost });
        }
        self.told.push(active.changed(run, State::Done(outcome.clone())));
        Ok(())
    }

    fn release(&mut self, run: &RunId, epoch: Epoch) -> Result<(), Error> {
        // Late news of a lease that is over is no news.
        let Ok(active) = self.books.held(run, epoch) else { return Ok(()) };
        active.leased = false;
        let (id, changed) = (active.id, active.changed(run, State::Queued));
        self.run("UPDATE runs SET state = 0, holder = NULL WHERE id = ?", [id])?;
        self.books.queue.requeue(run);
        self.told.extend([Told::Unleased { run: run.clone(), lost: true }, changed]);
        Ok(())
    }

    fn forget(&mut self, run: &RunId) -> Result<(), Error> {
        self.finish(run, &Outcome::Cancelled { reason: "the run was deleted".to_owned() }, true)?;
        claims::forget(self.database, run)?;
        let key = [run.as_str()];
        self.run("DELETE FROM log WHERE id = (SELECT id FROM runs WHERE run = ?)", key)?;
        self.run("DELETE FROM runs WHERE run = ?", key)?;
        self.told.push(Told::Gone(run.clone()));
        Ok(())
    }

    fn forget_instance(&mut self, namespace: &str, instance: &str) -> Result<(), Error> {
        let of = |active: &Active| *active.tenant.0 == *namespace && *active.tenant.1 == *instance;
        let runs: Vec<_> = self.books.active.iter().filter(|(_, it)| of(it)).map(|(run, _)| run.clone()).collect();
        for run in runs {
            self.finish(&run, &Outcome::Cancelled { reason: format!("the instance {instance} was deleted") }, true)?;
        }
        self.run("DELETE FROM turns WHERE namespace = ? AND instance = ?", [namespace, instance])?;
        self.run("DELETE FROM limits WHERE namespace = ? AND instance = ?", [namespace, instance])?;
        self.run("DELETE FROM totals WHERE namespace = ? AND instance = ?", [namespace, instance])?;
        claims::forget_instance(self.database, namespace, instance)
    }

    /// Leases the run that is due, if there is one.
    fn grant(&mut self, holder: &str) -> Result<bool, Error> {
        let Some(run) = self.books.queue.next().cloned() else { return Ok(false) };
        let now = self.now;
        let Some(active) = self.books.active.get_mut(&run) else {
            return Err(Error::Corrupt { what: format!("the queued run {run} is not known") });
        };
        active.leased = true;
        active.epoch.0 += 1;
        let started = *active.started.get_or_insert(now);
        let (id, epoch, seq, changed) =
            (active.id, active.epoch, Seq(active.entries), active.changed(&run, State::Running));
        self.run(
            "UPDATE runs SET state = 1, epoch = ?, holder = ?, started = ? WHERE id = ?",
            params![epoch.0, holder, started, id],
        )?;
        self.books.queue.start(&run);
        let started = Timestamp::from_microsecond(started).unwrap_or_default();
        self.told.extend([changed, Told::Granted { run, epoch, started, seq }]);
        Ok(true)
    }
}

impl Books {
    fn read(database: &Connection) -> Result<Self, Error> {
        let mut books = Self::default();
        let mut statement = database.prepare_cached(
            "SELECT r.id, r.run, r.namespace, r.instance, r.session, r.created, r.name, r.state, r.epoch, r.started,
                    r.entries, r.bytes, r.input, r.output, r.total, r.calls, coalesce(l.runs, 0), r.trouble IS NOT NULL
             FROM runs r LEFT JOIN limits l ON l.namespace = r.namespace AND l.instance = r.instance
             WHERE r.state < 2",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let run = RunId::from(row.get::<_, String>(1)?);
            let tenant: Tenant = (row.get::<_, String>(2)?.into(), row.get::<_, String>(3)?.into());
            let count = |column| read::count(row, column);
            let active = Active {
                id: row.get(0)?,
                tenant: tenant.clone(),
                name: row.get::<_, String>(6)?.into(),
                session: row.get::<_, String>(4)?.into(),
                epoch: Epoch(row.get(8)?),
                leased: row.get::<_, u8>(7)? == 1,
                started: row.get(9)?,
                entries: row.get(10)?,
                bytes: usize::try_from(count(11)?).unwrap_or(usize::MAX),
                usage: Usage {
                    tokens: Tokens { input: count(12)?, output: count(13)?, total: count(14)? },
                    tool_calls: count(15)?,
                },
                troubled: row.get(17)?,
            };
            let item = Item { run: run.clone(), tenant, session: active.session.clone(), created: row.get(5)? };
            books.queue.submit(item, row.get(16)?);
            if active.leased {
                books.queue.start(&run);
            }
            books.active.insert(run, active);
        }
        Ok(books)
    }

    /// What is told of a run that somebody holds.
    fn goes_on(&self, run: &RunId) -> Result<Told, Error> {
        let active = self.active.get(run).filter(|active| active.leased);
        let active = active.ok_or_else(|| Error::NotLeased { run: run.clone() })?;
        Ok(Told::Noted { run: run.clone(), tenant: active.tenant.clone(), name: active.name.clone() })
    }

    /// The run, if this epoch holds its lease.
    fn held(&mut self, run: &RunId, epoch: Epoch) -> Result<&mut Active, Error> {
        self.active
            .get_mut(run)
            .filter(|active| active.leased && active.epoch == epoch)
            .ok_or_else(|| Error::Stale { run: run.clone(), epoch })
    }
}

impl Active {
    fn changed(&self, run: &RunId, state: State) -> Told {
        Told::State {
            run: run.clone(),
            tenant: self.tenant.clone(),
            name: self.name.clone(),
            attempt: self.epoch.0,
            state,
        }
    }
}

impl Usage {
    fn add(&mut self, step: &Step) {
        match step {
            Step::Answered { usage, .. } | Step::Spent { usage } => {
                self.tokens.input = self.tokens.input.saturating_add(usage.input);
                self.tokens.output = self.tokens.output.saturating_add(usage.output);
                self.tokens.total = self.tokens.total.saturating_add(usage.total);
            }
            Step::Called { .. } => self.tool_calls += 1,
            Step::Asked { .. } | Step::Retrying { .. } | Step::Returned { .. } | Step::Noted { .. } => {}
        }
    }
}

/// SQLite's integers have a sign.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

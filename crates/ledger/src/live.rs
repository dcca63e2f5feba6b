//! What is told from memory, after it was committed: changes, followers, and the end of a lease.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, mpsc, watch};

use crate::{Entry, Epoch, Error, RunId, Seq, State, read};

/// Events that may wait for one follower, and their bytes.
const WAITING: usize = 1024;
const WAITING_BYTES: usize = 4 << 20;
/// Changes that may wait for the slowest of their readers.
const CHANGES: usize = 4096;
/// Log entries read at once for a follower.
const PAGE: u32 = 64;

/// A run whose state changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Run {
        run: RunId,
        namespace: Arc<str>,
        name: Arc<str>,
    },
    /// Some were missed: any run may have changed.
    All,
}

/// The stream of changes from the moment it was asked for.
#[derive(Debug)]
pub struct Changes(broadcast::Receiver<Change>);

impl Changes {
    /// The next change; `None` when the ledger is gone.
    pub async fn next(&mut self) -> Option<Change> {
        match self.0.recv().await {
            Ok(change) => Some(change),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::All),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// What a follower sees of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// `attempt`: how often the run was leased so far.
    State {
        attempt: u32,
        state: State,
    },
    Entry(Arc<Entry>),
    /// A piece of the answer that is being written since the entry `after`; the whole comes with
    /// [`crate::Step::Answered`].
    Text {
        after: Seq,
        text: Arc<str>,
    },
}

impl Event {
    fn bytes(&self) -> usize {
        match self {
            Self::State { .. } => 64,
            Self::Entry(entry) => entry.step.bytes(),
            Self::Text { text, .. } => text.len(),
        }
    }
}

impl Event {
    /// States follow each other in this order: queued, then each attempt runs and is queued again, then the end.
    fn order(&self) -> Option<(u32, u8)> {
        let Self::State { attempt, state } = self else { return None };
        Some(match state {
            State::Running => (*attempt, 0),
            State::Queued => (*attempt, 1),
            State::Done(_) => (u32::MAX, 2),
        })
    }
}

pub(crate) struct Live {
    runs: Mutex<HashMap<RunId, Watched>>,
    changes: broadcast::Sender<Change>,
}

#[derive(Default)]
struct Watched {
    lease: Option<(Epoch, watch::Sender<bool>)>,
    /// The latest entry of the log.
    seq: Seq,
    followers: Vec<Follower>,
}

struct Follower {
    events: mpsc::Sender<Event>,
    backlog: Arc<Backlog>,
}

#[derive(Default)]
struct Backlog {
    bytes: AtomicUsize,
    cut: AtomicBool,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self { runs: Mutex::default(), changes: broadcast::Sender::new(CHANGES) }
    }

    pub(crate) fn changes(&self) -> Changes {
        Changes(self.changes.subscribe())
    }

    pub(crate) fn changed(&self, change: Change) {
        // Nobody listening is fine.
        let _ = self.changes.send(change);
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<RunId, Watched>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease begins; what is returned turns true when it is taken away.
    pub(crate) fn lease(&self, run: &RunId, epoch: Epoch, seq: Seq) -> watch::Receiver<bool> {
        let (stop, stopped) = watch::channel(false);
        let mut runs = self.runs();
        let watched = runs.entry(run.clone()).or_default();
        watched.lease = Some((epoch, stop));
        watched.seq = seq;
        stopped
    }

    /// The lease is over; `lost`: its holder does not know yet.
    pub(crate) fn unlease(&self, run: &RunId, lost: bool) {
        let mut runs = self.runs();
        let Some(watched) = runs.get_mut(run) else { return };
        if let Some((_, stop)) = watched.lease.take()
            && lost
        {
            stop.send_replace(true);
        }
        if watched.followers.is_empty() {
            runs.remove(run);
        }
    }

    /// A run's log grew; what is told is only made when somebody follows.
    pub(crate) fn logged(&self, run: &RunId, seq: Seq, entry: impl FnOnce() -> Entry) {
        if let Some(watched) = self.runs().get_mut(run) {
            watched.seq = seq;
            if !watched.followers.is_empty() {
                watched.tell(&Event::Entry(Arc::new(entry())));
            }
        }
    }

    pub(crate) fn publish(&self, run: &RunId, event: &Event) {
        if let Some(watched) = self.runs().get_mut(run) {
            watched.tell(event);
        }
    }

    /// Live text, of the present lease's holder only.
    pub(crate) fn text(&self, run: &RunId, epoch: Epoch, text: &str) {
        let mut runs = self.runs();
        let Some(watched) = runs.get_mut(run) else { return };
        let holds = watched.lease.as_ref().is_some_and(|(now, _)| *now == epoch);
        if holds && !watched.followers.is_empty() {
            watched.tell(&Event::Text { after: watched.seq, text: text.into() });
        }
    }

    /// Nothing more will come of this run.
    pub(crate) fn end(&self, run: &RunId) {
        self.runs().remove(run);
    }

    fn follow(&self, run: &RunId) -> (mpsc::Receiver<Event>, Arc<Backlog>) {
        let (events, receiver) = mpsc::channel(WAITING);
        let backlog = Arc::new(Backlog::default());
        let follower = Follower { events, backlog: backlog.clone() };
        self.runs().entry(run.clone()).or_default().followers.push(follower);
        (receiver, backlog)
    }

    fn unfollow(&self, run: &RunId, backlog: &Arc<Backlog>) {
        let mut runs = self.runs();
        let Some(watched) = runs.get_mut(run) else { return };
        watched.followers.retain(|it| !Arc::ptr_eq(&it.backlog, backlog));
        if watched.followers.is_empty() && watched.lease.is_none() {
            runs.remove(run);
        }
    }
}

impl Watched {
    /// Whoever does not keep up is cut off: a slow follower never slows a run.
    fn tell(&mut self, event: &Event) {
        let bytes = event.bytes();
        self.followers.retain(|follower| {
            let waiting = follower.backlog.bytes.load(Ordering::Acquire);
            if waiting <= WAITING_BYTES && follower.events.try_send(event.clone()).is_ok() {
                follower.backlog.bytes.fetch_add(bytes, Ordering::AcqRel);
                return true;
            }
            follower.backlog.cut.store(true, Ordering::Release);
            false
        });
    }
}

/// One run's log as it grows, with the text as it streams.
///
/// First the state and the log as they are, then what happens; the last event of all is the state done. A run that the
/// ledger does not know yet is waited for.
pub struct Follow {
    run: RunId,
    after: Seq,
    /// The latest state shown.
    shown: Option<(u32, u8)>,
    reads: read::Pool,
    live: Arc<Live>,
    events: mpsc::Receiver<Event>,
    backlog: Arc<Backlog>,
    replay: Replay,
}

enum Replay {
    Begin,
    /// What is there, and for a run that is done its end.
    Log(std::vec::IntoIter<Entry>, Option<Event>),
    Live,
    Over,
}

impl Follow {
    pub(crate) fn new(run: RunId, after: Seq, reads: read::Pool, live: Arc<Live>) -> Self {
        // Before the first look at the database, so that nothing falls between.
        let (events, backlog) = live.follow(&run);
        Self { run, after, shown: None, reads, live, events, backlog, replay: Replay::Begin }
    }

    /// The next event; `None` after the end, or when the run was forgotten. Losing the future loses nothing.
    ///
    /// # Errors
    /// [`Error::TooSlow`] when this follower did not keep up: follow again, after the last entry seen.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            match &mut self.replay {
                Replay::Begin => match self.look().await? {
                    Some((event, true)) => self.replay = Replay::Log(Vec::new().into_iter(), Some(event)),
                    Some((event, false)) => {
                        self.replay = Replay::Log(Vec::new().into_iter(), None);
                        self.shown = event.order();
                        return Ok(Some(event));
                    }
                    None => self.replay = Replay::Live,
                },
                Replay::Log(entries, end) => {
                    if let Some(entry) = entries.next() {
                        self.after = entry.seq;
                        return Ok(Some(Event::Entry(Arc::new(entry))));
                    }
                    let (run, after) = (self.run.clone(), self.after);
                    let page = self.reads.read(move |database| read::log(database, &run, after, PAGE)).await?;
                    if !page.is_empty() {
                        *entries = page.into_iter();
                    } else if let Some(end) = end.take() {
                        self.replay = Replay::Over;
                        return Ok(Some(end));
                    } else {
                        self.replay = Replay::Live;
                    }
                }
                Replay::Live => match self.events.recv().await {
                    Some(event) => {
                        self.backlog.bytes.fetch_sub(event.bytes(), Ordering::AcqRel);
                        // What was read from the database may come once more.
                        match &event {
                            Event::Entry(entry) if entry.seq <= self.after => continue,
                            Event::Entry(entry) => self.after = entry.seq,
                            Event::State { .. } if event.order() <= self.shown => continue,
                            Event::State { state, .. } => {
                                self.shown = event.order();
                                if matches!(state, State::Done(_)) {
                                    self.replay = Replay::Over;
                                }
                            }
                            Event::Text { after, .. } if *after < self.after => continue,
                            Event::Text { .. } => {}
                        }
                        return Ok(Some(event));
                    }
                    None if self.backlog.cut.load(Ordering::Acquire) => return Err(Error::TooSlow),
                    None => self.replay = Replay::Over,
                },
                Replay::Over => return Ok(None),
            }
        }
    }

    /// The state as it is, and whether that is the end.
    async fn look(&self) -> Result<Option<(Event, bool)>, Error> {
        let run = self.run.clone();
        let found = self.reads.read(move |database| read::run(database, &run)).await?;
        Ok(found.map(|run| {
            let done = matches!(run.state, State::Done(_));
            (Event::State { attempt: run.attempt, state: run.state }, done)
        }))
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.live.unfollow(&self.run, &self.backlog);
    }
}

//! Which object is looked at next, and when.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kit::{Backoff, Class};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ObjectName;

/// The work queue of one keeper.
///
/// - An object is handed to one worker at a time; a wake meanwhile is remembered and served afterwards.
/// - Wakes of a waiting object fall together.
/// - A failed object comes back after a time that its error's class decides and that grows with each failure; a wake
///   brings it back at once.
/// - Two looks at one object are at least `pace` apart; the first one is never delayed.
///
/// It holds at most one entry for each object, so it is bounded by what the API server stores.
pub(crate) struct Queue {
    pace: Duration,
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    items: HashMap<ObjectName, Item>,
    ready: VecDeque<ObjectName>,
    due: BTreeSet<(Instant, ObjectName)>,
}

#[derive(Default)]
struct Item {
    stage: Stage,
    due: Option<Instant>,
    began: Option<Instant>,
    failing: Option<(Class, Backoff)>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    Ready,
    Running,
    /// Running, and woken meanwhile.
    Again,
}

/// How a look at an object ended.
#[derive(Debug)]
pub(crate) enum Done {
    /// Come back after the given time, if there is one.
    Well(Option<Duration>),
    Failed(Class),
    /// The object is not there any more.
    Gone,
}

impl Queue {
    pub(crate) fn new(pace: Duration) -> Self {
        Self { pace, state: Mutex::default(), news: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something about the object may have changed.
    pub(crate) fn wake(&self, name: ObjectName) {
        self.state().wake(name, self.pace);
        self.news.notify_one();
    }

    /// Resolves to the next object that is due. It stays with the caller until [`Queue::done`].
    pub(crate) async fn next(&self) -> ObjectName {
        loop {
            // Registered before the look, so that nothing that comes in between is missed.
            let news = self.news.notified();
            let wait = {
                let mut state = self.state();
                if let Some(name) = state.take(Instant::now()) {
                    if !state.ready.is_empty() || !state.due.is_empty() {
                        self.news.notify_one();
                    }
                    return name;
                }
                state.due.first().map(|(at, _)| *at)
            };
            match wait {
                Some(at) => tokio::select! {
                    () = news => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => news.await,
            }
        }
    }

    /// Gives an object back. Returns how often it has failed in a row.
    pub(crate) fn done(&self, name: ObjectName, how: Done) -> u32 {
        let failures = self.state().done(name, how, self.pace);
        self.news.notify_one();
        failures
    }
}

impl State {
    fn wake(&mut self, name: ObjectName, pace: Duration) {
        let item = self.items.entry(name.clone()).or_default();
        match item.stage {
            Stage::Ready | Stage::Again => {}
            Stage::Running => item.stage = Stage::Again,
            Stage::Idle => {
                let earliest = item.began.and_then(|began| began.checked_add(pace)).filter(|at| *at > Instant::now());
                if let Some(at) = earliest {
                    self.schedule(name, at);
                } else {
                    self.ready(name);
                }
            }
        }
    }

    fn ready(&mut self, name: ObjectName) {
        let item = self.items.entry(name.clone()).or_default();
        if let Some(at) = item.due.take() {
            self.due.remove(&(at, name.clone()));
        }
        item.stage = Stage::Ready;
        self.ready.push_back(name);
    }

    /// Makes the object due at `at`, unless it is due before.
    fn schedule(&mut self, name: ObjectName, at: Instant) {
        let item = self.items.entry(name.clone()).or_default();
        if item.due.is_some_and(|due| due <= at) {
            return;
        }
        if let Some(before) = item.due.replace(at) {
            self.due.remove(&(before, name.clone()));
        }
        self.due.insert((at, name));
    }

    fn take(&mut self, now: Instant) -> Option<ObjectName> {
        while let Some((at, _)) = self.due.first()
            && *at <= now
            && let Some((_, name)) = self.due.pop_first()
        {
            if let Some(item) = self.items.get_mut(&name) {
                item.due = None;
                if item.stage == Stage::Idle {
                    item.stage = Stage::Ready;
                    self.ready.push_back(name);
                }
            }
        }
        let name = self.ready.pop_front()?;
        let item = self.items.entry(name.clone()).or_default();
        item.stage = Stage::Running;
        item.began = Some(now);
        Some(name)
    }

    fn done(&mut self, name: ObjectName, how: Done, pace: Duration) -> u32 {
        let item = self.items.entry(name.clone()).or_default();
        let again = item.stage == Stage::Again;
        item.stage = Stage::Idle;
        let now = Instant::now();
        let (failures, wait) = match how {
            Done::Well(wait) => {
                item.failing = None;
                (0, wait)
            }
            Done::Failed(class) => {
                let kind = std::mem::discriminant(&class);
                if !item.failing.as_ref().is_some_and(|(was, _)| std::mem::discriminant(was) == kind) {
                    item.failing = Some((class, backoff(class)));
                }
                let (failures, wait) = item
                    .failing
                    .as_mut()
                    .map(|(_, backoff)| {
                        let wait = backoff.pause();
                        (backoff.failures(), wait)
                    })
                    .unwrap_or_default();
                let asked = if let Class::Retry(Some(after)) = class { after } else { Duration::ZERO };
                (failures, Some(wait.max(asked)))
            }
            Done::Gone => {
                if let Some(at) = item.due {
                    self.due.remove(&(at, name.clone()));
                }
                self.items.remove(&name);
                (0, None)
            }
        };
        if again {
            self.wake(name, pace);
        } else if let Some(at) = wait.and_then(|wait| now.checked_add(wait)) {
            self.schedule(name, at);
        }
        failures
    }
}

/// How long to stay away after an error, by what can be done about it.
fn backoff(class: Class) -> Backoff {
    let (base, max) = match class {
        // Somebody was there first, or the object is on its way out: the cache soon knows more.
        Class::Conflict | Class::Gone => (Duration::from_millis(10), Duration::from_secs(5)),
        Class::Retry(_) => (Duration::from_millis(100), Duration::from_secs(30)),
        Class::Rejected | Class::Bug => (Duration::from_secs(1), Duration::from_secs(300)),
    };
    Backoff::new(base, max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    fn name(text: &str) -> ObjectName {
        ObjectName { namespace: "ns".into(), name: text.into() }
    }

    async fn none_within(queue: &Queue, wait: Duration) -> bool {
        timeout(wait, queue.next()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_is_with_one_worker_at_a_time_and_a_wake_meanwhile_is_not_lost() {
        let queue = Queue::new(Duration::ZERO);
        queue.wake(name("a"));
        queue.wake(name("a"));
        assert_eq!(queue.next().await, name("a"));
        queue.wake(name("a"));
        assert!(none_within(&queue, Duration::from_secs(60)).await);
        queue.done(name("a"), Done::Well(None));
        assert_eq!(queue.next().await, name("a"));
        queue.done(name("a"), Done::Well(None));
        assert!(none_within(&queue, Duration::from_secs(60)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_comes_back_when_it_asked_to_and_earlier_when_woken() {
        let queue = Queue::new(Duration::ZERO);
        let start = Instant::now();
        queue.wake(name("a"));
        queue.next().await;
        queue.done(name("a"), Done::Well(Some(Duration::from_secs(5))));
        queue.next().await;
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        queue.done(name("a"), Done::Well(Some(Duration::from_secs(100))));
        queue.wake(name("a"));
        queue.next().await;
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        queue.done(name("a"), Done::Gone);
        assert!(none_within(&queue, Duration::from_secs(1000)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time_as_their_class_says_and_success_starts_over() {
        let queue = Queue::new(Duration::ZERO);
        queue.wake(name("a"));
        queue.next().await;
        for full in [100, 200, 400] {
            let before = Instant::now();
            queue.done(name("a"), Done::Failed(Class::Retry(None)));
            queue.next().await;
            let waited = before.elapsed();
            assert!(
                waited >= Duration::from_millis(full / 2) && waited <= Duration::from_millis(full + 1),
                "{waited:?}"
            );
        }
        let before = Instant::now();
        queue.done(name("a"), Done::Failed(Class::Retry(Some(Duration::from_secs(7)))));
        queue.next().await;
        assert_eq!(before.elapsed(), Duration::from_secs(7));
        assert_eq!(queue.done(name("a"), Done::Failed(Class::Conflict)), 1);
        queue.next().await;
        queue.done(name("a"), Done::Well(None));
        queue.wake(name("a"));
        queue.next().await;
        assert_eq!(queue.done(name("a"), Done::Failed(Class::Conflict)), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_paced_object_is_served_at_once_and_then_not_too_often() {
        let queue = Queue::new(Duration::from_millis(100));
        let start = Instant::now();
        queue.wake(name("a"));
        queue.next().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        queue.done(name("a"), Done::Well(None));
        queue.wake(name("a"));
        queue.wake(name("b"));
        assert_eq!(queue.next().await, name("b"));
        assert_eq!(start.elapsed(), Duration::ZERO);
        queue.wake(name("a"));
        assert_eq!(queue.next().await, name("a"));
        assert_eq!(start.elapsed(), Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn every_waiting_worker_gets_its_share() {
        let queue = Queue::new(Duration::ZERO);
        let work = async {
            for text in ["a", "b", "c"] {
                tokio::task::yield_now().await;
                queue.wake(name(text));
            }
        };
        let (mut one, mut two, mut three, ()) = tokio::join!(queue.next(), queue.next(), queue.next(), work);
        let mut got = [&mut one, &mut two, &mut three];
        got.sort();
        assert_eq!(got.map(|it| it.name.clone()), ["a", "b", "c"]);
    }
}

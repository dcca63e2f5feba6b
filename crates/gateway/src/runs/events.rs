use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;

use api::agents::AgentRun;
use axum::response::sse::Event;
use futures::stream::{BoxStream, Stream, StreamExt, unfold};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use ledger::{Follow, Ledger, RunId, State};

use super::told::{Place, Told};

/// One run's events for one listener: what the object says until the run is in the ledger, then what the ledger says.
pub(crate) struct Events {
    ledger: Ledger,
    run: RunId,
    follow: Follow,
    /// How many events of the first entry were seen before.
    skip: usize,
    /// The object, while the ledger does not know the run.
    object: Option<BoxStream<'static, watcher::Result<Option<AgentRun>>>>,
    told: VecDeque<Told>,
    /// The state that was told last: it is not told again.
    state: Option<Told>,
    over: bool,
}

impl Events {
    /// `unqueued`: the object, when the ledger does not know the run yet.
    pub(crate) fn new(ledger: Ledger, run: RunId, after: Place, unqueued: Option<(Api<AgentRun>, AgentRun)>) -> Self {
        let (seq, skip) = after.after();
        let follow = ledger.follow(&run, seq);
        let object = unqueued.map(|(api, object)| {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            let later = watcher::watch_object(api, name).default_backoff();
            futures::stream::once(async { Ok(Some(object)) }).chain(later).boxed()
        });
        Self { ledger, run, follow, skip, object, told: VecDeque::new(), state: None, over: false }
    }

    /// The events up to the run's end, or until `stop`. `held` is dropped with the stream.
    pub(crate) fn until(
        self,
        stop: impl Future<Output = ()> + Send + 'static,
        held: impl Send + 'static,
    ) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
        unfold((self, held), |(mut events, held)| async move { Some((events.next().await?.event(), (events, held))) })
            .take_until(Box::pin(stop))
    }

    async fn next(&mut self) -> Option<Told> {
        loop {
            if let Some(told) = self.told.pop_front() {
                return Some(told);
            }
            if self.over {
                return None;
            }
            let seen = match &mut self.object {
                None => None,
                Some(object) => tokio::select! {
                    biased;
                    event = self.follow.next() => {
                        self.object = None;
                        self.take(event).await;
                        continue;
                    }
                    seen = object.next() => Some(seen),
                },
            };
            match seen {
                None => {
                    let event = self.follow.next().await;
                    self.take(event).await;
                }
                Some(seen) => self.look(seen).await,
            }
        }
    }

    async fn take(&mut self, event: Result<Option<ledger::Event>, ledger::Error>) {
        match event {
            Ok(Some(ledger::Event::Text { after, text })) => self.told.push_back(Told::text(after, &text)),
            Ok(Some(ledger::Event::Entry(entry))) => {
                self.told.extend(Told::entry(&entry).into_iter().skip(std::mem::take(&mut self.skip)));
            }
            Ok(Some(ledger::Event::State { attempt, state })) => {
                let done = matches!(state, State::Done(_));
                let run = if done { self.ledger.run(&self.run).await.ok().flatten() } else { None };
                self.tell_state(Told::state(attempt, &state, run.as_ref()));
                self.over = done;
            }
            Ok(None) => {
                self.tell_state(Told::deleted());
                self.over = true;
            }
            // The listener sees the end of the stream without an outcome, and asks again after what it has seen.
            Err(error) => {
                tracing::debug!(run = %self.run, error = kit::chain(&error), "a listener is cut off");
                self.over = true;
            }
        }
    }

    /// What the object says, while the ledger says nothing.
    async fn look(&mut self, seen: Option<watcher::Result<Option<AgentRun>>>) {
        let object = match seen {
            Some(Ok(object)) => object.filter(|it| it.metadata.uid.as_deref() == Some(self.run.as_str())),
            Some(Err(error)) => {
                tracing::debug!(run = %self.run, error = kit::chain(&error), "cannot watch a run; trying again");
                return;
            }
            None => {
                self.object = None;
                return;
            }
        };
        let status = object.as_ref().map(|it| it.status.clone().unwrap_or_default());
        let ended = status.as_ref().is_none_or(|it| it.phase.is_some_and(api::agents::RunPhase::is_final));
        // It may have come into the ledger in the meantime; then that is the authority, and goes on telling.
        if ended && matches!(self.ledger.run(&self.run).await, Ok(Some(_))) {
            self.object = None;
            return;
        }
        self.tell_state(status.map_or_else(Told::deleted, |it| Told::unqueued(&it)));
        self.over = ended;
    }

    fn tell_state(&mut self, told: Told) {
        if self.state.as_ref() != Some(&told) {
            self.state = Some(told.clone());
            self.told.push_back(told);
        }
    }
}

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tokio_util::task::TaskTracker;

/// The word that it is time to end. Cheap to clone; a child ends with its parent, not the other way round.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// Says it. Idempotent.
    pub fn begin(&self) {
        self.0.cancel();
    }

    pub fn has_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Resolves once it has been said.
    pub fn begun(&self) -> WaitForCancellationFutureOwned {
        self.0.clone().cancelled_owned()
    }

    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}

/// A platform task that ended although nobody had asked it to.
#[derive(Debug, thiserror::Error)]
#[error("the task {name} ended unasked: {why}")]
pub struct Ended {
    pub name: &'static str,
    pub why: String,
}

/// The one supervised task tree. Only here may a task be spawned.
///
/// - [`Tasks::platform`]: must live until shutdown; when it ends before, [`Tasks::watch`] returns and the process ends.
/// - [`Tasks::tenant`]: may end at any time (a run, a connection); a panic in it is logged and stays its own.
#[derive(Clone)]
pub struct Tasks(Arc<Inner>);

struct Inner {
    tracker: TaskTracker,
    shutdown: Shutdown,
    ended: mpsc::UnboundedSender<Ended>,
    watch: tokio::sync::Mutex<mpsc::UnboundedReceiver<Ended>>,
}

impl Tasks {
    pub fn new(shutdown: Shutdown) -> Self {
        let (ended, watch) = mpsc::unbounded_channel();
        Self(Arc::new(Inner { tracker: TaskTracker::new(), shutdown, ended, watch: tokio::sync::Mutex::new(watch) }))
    }

    pub fn shutdown(&self) -> &Shutdown {
        &self.0.shutdown
    }

    /// Spawns a task that the platform cannot live without.
    pub fn platform<F, T, E>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: std::error::Error + 'static,
    {
        let inner = self.0.clone();
        let task: Task<String> = Box::pin(async move {
            match task.await {
                Ok(_) => "it returned".to_owned(),
                Err(error) => crate::chain(&error),
            }
        });
        self.spawn(Box::pin(async move {
            let why = Caught(task).await.unwrap_or_else(|panic| format!("it panicked: {panic}"));
            if !inner.shutdown.has_begun() {
                let _ = inner.ended.send(Ended { name, why });
            }
        }));
    }

    /// Spawns a task that belongs to one tenant or one connection.
    pub fn tenant<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task: Task<()> = Box::pin(task);
        self.spawn(Box::pin(async move {
            if let Err(panic) = Caught(task).await {
                tracing::error!(task = name, %panic, "a task panicked");
            }
        }));
    }

    /// Of one type whatever the task is: a copy of tokio's machinery for every task would be most of the program.
    #[allow(clippy::disallowed_methods, reason = "the supervisor itself")]
    fn spawn(&self, task: Task<()>) {
        tokio::spawn(self.0.tracker.track_future(task));
    }

    /// Returns when a platform task ends unasked, or with `Ok` when shutdown begins.
    pub async fn watch(&self) -> Result<(), Ended> {
        let mut ended = self.0.watch.lock().await;
        tokio::select! {
            biased;
            Some(it) = ended.recv() => Err(it),
            () = self.0.shutdown.begun() => Ok(()),
        }
    }

    /// Begins the shutdown and waits until every task has ended.
    pub async fn end(&self) {
        self.0.shutdown.begin();
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }
}

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Runs a future and turns a panic into its message.
struct Caught<T>(Task<T>);

impl<T> Future for Caught<T> {
    type Output = Result<T, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.0.as_mut();
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(out)) => Poll::Ready(Ok(out)),
            Err(panic) => Poll::Ready(Err(match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => panic.downcast_ref::<&str>().map_or("(no message)", |text| text).to_owned(),
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[tokio::test]
    async fn a_platform_task_that_ends_unasked_is_named_with_its_cause() {
        let tasks = Tasks::new(Shutdown::new());
        tasks.platform("fails", async { Err::<(), _>(io::Error::other("disk on fire")) });
        assert_eq!(tasks.watch().await.unwrap_err().to_string(), "the task fails ended unasked: disk on fire");
        tasks.platform("panics", async {
            let all: Result<(), io::Error> = Ok(());
            assert!(all.is_err(), "boom {}", 1);
            all
        });
        assert_eq!(tasks.watch().await.unwrap_err().to_string(), "the task panics ended unasked: it panicked: boom 1");
    }

    #[tokio::test]
    async fn ending_asked_is_no_failure_and_a_tenants_panic_is_its_own() {
        let tasks = Tasks::new(Shutdown::new());
        let shutdown = tasks.shutdown().clone();
        tasks.platform("serves", async move {
            shutdown.begun().await;
            Ok::<_, io::Error>(())
        });
        tasks.tenant("run", async { panic!("its own") });
        tasks.end().await;
        assert!(tasks.watch().await.is_ok());
    }
}

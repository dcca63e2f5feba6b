use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// How long the machine's clock is not looked at while something is waited for, at most.
const LOOK: Duration = Duration::from_secs(60);

/// Where the time comes from. Cheap to clone; every room is given one and asks nobody else.
///
/// [`Clock::system`] reads the machine's clock. [`Clock::starting_at`] begins at a given time and runs with tokio's
/// clock: under `tokio::time::pause` it stands still and jumps with the timers, so a story of a day takes milliseconds.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Tokio(Arc<(Timestamp, Instant)>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that shows `start` now and then follows tokio's. Must be called inside a tokio runtime.
    pub fn starting_at(start: Timestamp) -> Self {
        Self(Source::Tokio(Arc::new((start, Instant::now()))))
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::Tokio(from) => from.0.checked_add(from.1.elapsed()).unwrap_or(Timestamp::MAX),
        }
    }

    /// Waits until the clock shows `at`; returns at once when it is past.
    pub async fn until(&self, at: Timestamp) {
        while let Ok(left) = Duration::try_from(at.duration_since(self.now()))
            && !left.is_zero()
        {
            let pause = match self.0 {
                // It may be set, and the machine sleep: neither hastens a timer.
                Source::System => left.min(LOOK),
                Source::Tokio(_) => left,
            };
            tokio::time::sleep(pause).await;
        }
    }
}

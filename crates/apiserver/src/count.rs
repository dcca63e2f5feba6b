//! What is counted, as plain atomics: counting costs a few nanoseconds and waits for nobody.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How many there are of what comes and goes: each `up` has its `down`.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn up(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(crate) fn down(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How long things took.
#[derive(Debug)]
pub(crate) struct Histogram {
    /// Seconds, ascending; what took longer than all of them is in one more bucket.
    pub(crate) bounds: &'static [f64],
    buckets: Box<[AtomicU64]>,
    nanoseconds: AtomicU64,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, nanoseconds: AtomicU64::new(0) }
    }

    pub(crate) fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// How many took as long as each bound or less, how many there are, and the seconds of all together.
    pub(crate) fn read(&self) -> (Vec<u64>, u64, f64) {
        let mut all = 0;
        let mut upto: Vec<u64> = Vec::with_capacity(self.buckets.len());
        for bucket in &self.buckets {
            all += bucket.load(Relaxed);
            upto.push(all);
        }
        upto.pop();
        (upto, all, self.nanoseconds.load(Relaxed) as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_once_in_the_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::new(&[0.001, 1.0]);
        for micros in [1, 1_000, 1_001, 1_000_000, 5_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let (upto, all, seconds) = histogram.read();
        assert_eq!((upto, all), (vec![2, 4], 5));
        assert!((seconds - 6.002_002).abs() < 1e-9, "{seconds}");
    }
}

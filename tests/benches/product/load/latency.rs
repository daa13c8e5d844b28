//! Every latency of a measurement is kept: percentiles are exact.

use std::time::Duration;

use super::Outcome;

/// Nanoseconds.
#[derive(Default)]
pub(super) struct Latencies(Vec<u64>);

impl Latencies {
    pub(super) fn push(&mut self, latency: Duration) {
        self.0
            .push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(super) fn outcome(mut self, elapsed: Duration) -> Outcome {
        self.0.sort_unstable();
        Outcome {
            count: self.0.len() as u64,
            seconds: elapsed.as_secs_f64(),
            p50_us: self.quantile(0.50),
            p99_us: self.quantile(0.99),
            max_us: self.quantile(1.0),
        }
    }

    /// Microseconds, of sorted values; nearest rank.
    fn quantile(&self, share: f64) -> f64 {
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        let value = self.0.get(rank.saturating_sub(1));
        value.map_or(0.0, |nanos| *nanos as f64 / 1e3)
    }
}

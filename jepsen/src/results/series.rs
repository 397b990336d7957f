//! What plots show of a history: throughput and latency over time, in a fixed number of buckets.

use std::collections::BTreeMap;

use crate::history::{History, Outcome};

/// How many buckets a run is cut into.
pub const BUCKETS: usize = 200;

/// One bucket of time.
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    /// Completions `:ok`, `:fail` and `:info`.
    pub completed: [u64; 3],
    /// Latencies of what succeeded in nanoseconds, sorted.
    latencies: Vec<u64>,
}

/// The calls of some functions over time.
#[derive(Clone, Debug)]
pub struct Series {
    /// How long one bucket is, in nanoseconds.
    pub width: u64,
    /// In order of time.
    pub buckets: Vec<Bucket>,
}

impl Bucket {
    /// The latency below which so many per thousand lie.
    pub fn latency(&self, per_mille: usize) -> Option<u64> {
        let at = (self.latencies.len() * per_mille / 1000).min(self.latencies.len().checked_sub(1)?);
        Some(self.latencies[at])
    }
}

impl Series {
    /// The calls of each function, by name.
    pub fn of(history: &History) -> BTreeMap<String, Series> {
        let width = (history.end_time() / BUCKETS as u64 + 1).max(1);
        let mut series: BTreeMap<String, Series> = BTreeMap::new();
        for call in history.calls() {
            let Some(completion) = call.completion else { continue };
            if !series.contains_key(&*call.invocation.f) {
                let empty = Series { width, buckets: vec![Bucket::default(); BUCKETS] };
                series.insert(call.invocation.f.to_string(), empty);
            }
            let Some(series) = series.get_mut(&*call.invocation.f) else { continue };
            let bucket = &mut series.buckets[(completion.time / width) as usize];
            match call.outcome() {
                Outcome::Ok => {
                    bucket.completed[0] += 1;
                    bucket.latencies.push(completion.time - call.invocation.time);
                }
                Outcome::Fail => bucket.completed[1] += 1,
                Outcome::Info => bucket.completed[2] += 1,
            }
        }
        for bucket in series.values_mut().flat_map(|series| &mut series.buckets) {
            bucket.latencies.sort_unstable();
        }
        series
    }

    /// How many completed, of all outcomes.
    pub fn total(&self) -> u64 {
        self.buckets.iter().flat_map(|bucket| bucket.completed).sum()
    }
}

//! Rates over the last ten seconds, minute and ten minutes, and totals since the start: what tools show as TPS.
//!
//! Counters are atomics that any thread adds to. Once a second somebody calls [`Rate::tick`], which keeps a ring of past
//! totals; a rate is the difference between now's total and one in the ring, over the time between them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Ticks kept: ten minutes' worth and one to subtract from.
const TICKS: usize = 601;

/// What a replica counts of its own work, for codes 28 and 202 and for metrics.
#[derive(Debug, Default)]
pub struct Rates {
    /// Messages stored for producers.
    pub put: Rate,
    /// Bytes of their records.
    pub put_bytes: Rate,
    /// Messages that producers sent again and that were stored before.
    pub repeated: Rate,
    /// Pulls that brought messages.
    pub get_found: Rate,
    /// Pulls that brought none.
    pub get_miss: Rate,
    /// Messages brought.
    pub get_transferred: Rate,
    /// Bytes of their records.
    pub get_bytes: Rate,
}

impl Rates {
    /// Remembers all totals at `now`. Call it about once a second.
    pub fn tick(&self, now: Duration) {
        let all = [
            &self.put,
            &self.put_bytes,
            &self.repeated,
            &self.get_found,
            &self.get_miss,
            &self.get_transferred,
            &self.get_bytes,
        ];
        all.into_iter().for_each(|rate| rate.tick(now));
    }

    /// All pulls, in RocketMQ's own form: what it calls getTotalTps.
    pub fn get_total_text(&self, now: Duration) -> String {
        let total = |seconds| {
            let window = Duration::from_secs(seconds);
            self.get_found.per_second(now, window) + self.get_miss.per_second(now, window)
        };
        format!("{:.4} {:.4} {:.4}", total(10), total(60), total(600))
    }
}

/// One counted thing.
#[derive(Debug, Default)]
pub struct Rate {
    total: AtomicU64,
    /// Monotonic time and total at each tick, oldest first.
    past: Mutex<VecDeque<(Duration, u64)>>,
}

impl Rate {
    /// Counts `n`.
    pub fn add(&self, n: u64) {
        self.total.fetch_add(n, Ordering::Relaxed);
    }

    /// Everything counted since the start.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Remembers the total at `now`. Call it about once a second.
    pub fn tick(&self, now: Duration) {
        let mut past = self.past.lock();
        if past.len() == TICKS {
            past.pop_front();
        }
        past.push_back((now, self.total()));
    }

    /// Per second over the last `window` before `now`, or over the time since the first tick if that is shorter.
    pub fn per_second(&self, now: Duration, window: Duration) -> f64 {
        let past = self.past.lock();
        let since = now.saturating_sub(window);
        // The youngest tick at or before the window's start; the oldest one there is if the start was later.
        let at = past.partition_point(|(time, _)| *time <= since).saturating_sub(1);
        let Some((time, total)) = past.get(at) else { return 0.0 };
        let elapsed = now.saturating_sub(*time).as_secs_f64();
        if elapsed <= 0.0 { 0.0 } else { (self.total() - total) as f64 / elapsed }
    }

    /// RocketMQ's three windows in its own form: `10s 1min 10min`, separated by a space.
    pub fn text(&self, now: Duration) -> String {
        let [ten, minute, long] = [10, 60, 600].map(|seconds| self.per_second(now, Duration::from_secs(seconds)));
        format!("{ten:.4} {minute:.4} {long:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_came_in_its_window() {
        let rate = Rate::default();
        let at = Duration::from_secs;
        assert_eq!(rate.per_second(at(0), at(10)), 0.0);
        for second in 0..700 {
            rate.tick(at(second));
            // 100 a second in the last ten seconds, 10 a second before.
            rate.add(if second >= 690 { 100 } else { 10 });
        }
        let now = at(700);
        assert_eq!(rate.per_second(now, at(10)), 100.0);
        assert_eq!(rate.per_second(now, at(60)), (50.0 * 10.0 + 10.0 * 100.0) / 60.0);
        assert_eq!(rate.per_second(now, at(600)), (590.0 * 10.0 + 10.0 * 100.0) / 600.0);
        assert_eq!(rate.total(), 690 * 10 + 10 * 100);
        assert_eq!(rate.text(now), "100.0000 25.0000 11.5000");
    }

    #[test]
    fn a_young_rate_is_over_the_time_there_was() {
        let rate = Rate::default();
        rate.tick(Duration::from_secs(5));
        rate.add(30);
        assert_eq!(rate.per_second(Duration::from_secs(8), Duration::from_secs(60)), 10.0);
    }
}

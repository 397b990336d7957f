//! Statistics: what a replica remembers of its past because tools ask for it, beyond [`crate::rates`]: how fast each group
//! consumes each topic, and the message counts of the days.
//!
//! Consumption is the growth of the replicated consumer offsets, sampled every ten seconds: no pull pays for it, and every
//! replica can tell. All of it begins anew with the process.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::body::{BrokerStatsData, BrokerStatsItem};

use crate::broker::BrokerGroup;
use crate::tables::offsets::OffsetKey;

/// A minute.
pub const MINUTE: Duration = Duration::from_secs(60);
/// An hour.
pub const HOUR: Duration = Duration::from_secs(3600);
/// A day.
pub const DAY: Duration = Duration::from_secs(24 * 3600);

const SAMPLED_EVERY: Duration = Duration::from_secs(10);

/// What a replica remembers.
#[derive(Debug, Default)]
pub struct Statistics {
    consumption: Mutex<Consumption>,
    days: Mutex<Days>,
}

impl Statistics {
    /// Messages that the group has consumed of the topic, over the last minute, hour and day.
    pub fn consumed(&self, group: &str, topic: &str, now: Duration) -> BrokerStatsData {
        self.consumption.lock().consumed(group, topic, now)
    }

    /// Messages per second that the group has consumed of the topic in the last minute.
    pub fn consume_tps(&self, group: &str, topic: &str, now: Duration) -> f64 {
        self.consumed(group, topic, now).stats_minute.tps
    }

    /// The counts of the days.
    pub fn days(&self) -> Days {
        *self.days.lock()
    }
}

/// Takes a sample every ten seconds.
pub async fn run(broker: Arc<BrokerGroup>) {
    loop {
        let (statistics, clock) = (&broker.statistics, &broker.env.clock);
        statistics.consumption.lock().sample(clock.monotonic(), broker.reader.tables().offsets().iter());
        let totals = Totals { put: broker.rates.put.total(), got: broker.rates.get_transferred.total() };
        statistics.days.lock().note(clock.wall_ms(), totals);
        clock.sleep(SAMPLED_EVERY).await;
    }
}

/// Messages stored and brought, since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Stored for producers.
    pub put: u64,
    /// Brought to consumers.
    pub got: u64,
}

/// The totals at the last two midnights, in UTC; 0 for a midnight before the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Days {
    pub(super) day: Option<i64>,
    /// At the beginning of yesterday.
    pub yesterday_morning: Totals,
    /// At the beginning of today.
    pub today_morning: Totals,
}

impl Days {
    fn note(&mut self, now_ms: i64, totals: Totals) {
        let day = now_ms.div_euclid(DAY.as_millis() as i64);
        match self.day.replace(day) {
            // A clock that was set back gives no new morning.
            Some(before) if day > before => {
                self.yesterday_morning = if day == before + 1 { self.today_morning } else { totals };
                self.today_morning = totals;
            }
            Some(before) => self.day = Some(before),
            None => {}
        }
    }
}

/// How many messages each group has consumed of each topic.
#[derive(Debug, Default)]
struct Consumption {
    /// Each consumer offset at the last sample, and the number of that sample.
    seen: BTreeMap<OffsetKey, (u64, u64)>,
    /// By group and topic.
    consumed: BTreeMap<(String, String), History>,
    samples: u64,
}

impl Consumption {
    /// Takes a sample. Only growth of an offset that was there before is consumption: a group that begins at the end of a
    /// queue has consumed nothing of it, and one that goes back consumes again.
    fn sample<'a>(&mut self, now: Duration, offsets: impl Iterator<Item = (&'a OffsetKey, u64)>) {
        self.samples += 1;
        let mut grown: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for (key, offset) in offsets {
            let grown = grown.entry((&key.group, &key.topic)).or_default();
            match self.seen.get_mut(key) {
                Some((before, sample)) => {
                    *grown += offset.saturating_sub(*before);
                    (*before, *sample) = (offset, self.samples);
                }
                None => {
                    self.seen.insert(key.clone(), (offset, self.samples));
                }
            }
        }
        self.seen.retain(|_, (_, sample)| *sample == self.samples);
        self.consumed.retain(|(group, topic), _| grown.contains_key(&(group.as_str(), topic.as_str())));
        for ((group, topic), grown) in grown {
            self.consumed.entry((group.to_owned(), topic.to_owned())).or_default().add(now, grown);
        }
    }

    fn consumed(&self, group: &str, topic: &str, now: Duration) -> BrokerStatsData {
        let Some(history) = self.consumed.get(&(group.to_owned(), topic.to_owned())) else {
            return BrokerStatsData::default();
        };
        let [stats_minute, stats_hour, stats_day] = [MINUTE, HOUR, DAY].map(|span| history.within(now, span));
        BrokerStatsData { stats_day, stats_hour, stats_minute }
    }
}

/// A total that grows, and what it was: finely for the last minute, coarsely for the last day.
#[derive(Debug)]
struct History {
    total: u64,
    past: [Ring; 3],
}

impl Default for History {
    fn default() -> History {
        let every = [SAMPLED_EVERY, Duration::from_secs(600), HOUR];
        let kept = [6, 6, 24];
        History { total: 0, past: std::array::from_fn(|at| Ring::new(every[at], kept[at])) }
    }
}

impl History {
    fn add(&mut self, now: Duration, grown: u64) {
        self.total += grown;
        for ring in &mut self.past {
            ring.note(now, self.total);
        }
    }

    /// Growth within the last `span`, or since the beginning if that is shorter ago.
    fn within(&self, now: Duration, span: Duration) -> BrokerStatsItem {
        let since = now.saturating_sub(span);
        // The youngest tick that is old enough, of any ring; else the oldest there is.
        let ticks = self.past.iter().flat_map(|ring| &ring.ticks);
        let old_enough = ticks.clone().filter(|(time, _)| *time <= since).max();
        let Some((time, total)) = old_enough.or_else(|| ticks.min()) else { return BrokerStatsItem::default() };
        let (sum, elapsed) = (self.total - total, now.saturating_sub(*time).as_secs_f64());
        let tps = if elapsed > 0.0 { sum as f64 / elapsed } else { 0.0 };
        BrokerStatsItem { avgpt: 0.0, sum: sum as i64, tps }
    }
}

/// Totals at times that are at least `every` apart, oldest first.
#[derive(Debug)]
struct Ring {
    every: Duration,
    kept: usize,
    ticks: VecDeque<(Duration, u64)>,
}

impl Ring {
    fn new(every: Duration, kept: usize) -> Ring {
        Ring { every, kept, ticks: VecDeque::new() }
    }

    fn note(&mut self, now: Duration, total: u64) {
        if self.ticks.back().is_some_and(|(last, _)| now < *last + self.every) {
            return;
        }
        // One more than the spans, to subtract from.
        if self.ticks.len() > self.kept {
            self.ticks.pop_front();
        }
        self.ticks.push_back((now, total));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(topic: &str, queue: u32) -> OffsetKey {
        OffsetKey { group: "g".to_owned(), topic: topic.to_owned(), queue }
    }

    fn sample(consumption: &mut Consumption, second: u64, offsets: &[(OffsetKey, u64)]) {
        consumption.sample(Duration::from_secs(second), offsets.iter().map(|(key, offset)| (key, *offset)));
    }

    #[test]
    fn consumption_is_what_known_offsets_grow_by() {
        let mut consumption = Consumption::default();
        for second in (0..=600).step_by(10) {
            // 2 a second of queue 0; queue 1 appears at its end and stands still.
            let mut offsets = vec![(key("t", 0), second * 2)];
            if second >= 300 {
                offsets.push((key("t", 1), 1_000_000));
            }
            sample(&mut consumption, second, &offsets);
        }
        let now = Duration::from_secs(600);
        let stats = consumption.consumed("g", "t", now);
        assert_eq!((stats.stats_minute.sum, stats.stats_minute.tps), (120, 2.0));
        assert_eq!((stats.stats_hour.sum, stats.stats_hour.tps), (1200, 2.0), "as long as there was");
        assert_eq!(consumption.consumed("g", "u", now), BrokerStatsData::default());

        sample(&mut consumption, 610, &[(key("t", 0), 0), (key("t", 1), 1_000_000)]);
        sample(&mut consumption, 620, &[(key("t", 0), 50), (key("t", 1), 1_000_000)]);
        let stats = consumption.consumed("g", "t", Duration::from_secs(620));
        assert_eq!(stats.stats_minute.sum, 80 + 50, "going back is not consumed, what is consumed again is");

        sample(&mut consumption, 630, &[]);
        assert!(consumption.seen.is_empty() && consumption.consumed.is_empty(), "a deleted group leaves nothing");
    }

    #[test]
    fn a_day_is_remembered_with_few_ticks() {
        let mut history = History::default();
        for second in (0..=3 * 24 * 3600).step_by(10) {
            history.add(Duration::from_secs(second), 10);
        }
        let now = Duration::from_secs(3 * 24 * 3600);
        for span in [MINUTE, HOUR, DAY] {
            let item = history.within(now, span);
            assert_eq!((item.sum, item.tps), (span.as_secs() as i64, 1.0), "{span:?}");
        }
        assert_eq!(history.past.iter().map(|ring| ring.ticks.len()).sum::<usize>(), 7 + 7 + 25);
    }

    #[test]
    fn mornings_are_noted_once() {
        let mut days = Days::default();
        let totals = |put| Totals { put, got: put / 2 };
        let day_ms = DAY.as_millis() as i64;
        days.note(10 * day_ms, totals(4));
        assert_eq!((days.yesterday_morning, days.today_morning), (totals(0), totals(0)));
        days.note(11 * day_ms, totals(100));
        days.note(11 * day_ms + 5, totals(150));
        assert_eq!((days.yesterday_morning, days.today_morning), (totals(0), totals(100)));
        days.note(10 * day_ms, totals(160));
        days.note(12 * day_ms, totals(200));
        assert_eq!((days.yesterday_morning, days.today_morning), (totals(100), totals(200)));
        days.note(20 * day_ms, totals(300));
        assert_eq!((days.yesterday_morning, days.today_morning), (totals(300), totals(300)));
    }
}

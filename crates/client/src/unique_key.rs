//! Unique keys: one per message, kept over every retry, so that a broker can recognise a message it has already stored.
//!
//! The format is RocketMQ's (`protocol::message_id::UniqueKey`), from which tools read when and where a message was
//! made. Unlike there, a key never repeats, whatever the clock does: what overflows the counter goes into the field
//! that RocketMQ fills with a number fixed per process.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use env::Rng;
use protocol::message_id::UniqueKey;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Makes the keys of one client.
#[derive(Debug)]
pub(crate) struct UniqueKeys {
    /// Stands for the process id: drawn, so that a simulation stays a function of its seed.
    pid: i16,
    class_hash: i32,
    made: AtomicU64,
    /// Milliseconds of the first moment of the month last seen.
    month_start_ms: AtomicI64,
}

impl UniqueKeys {
    pub(crate) fn new(rng: &Rng) -> UniqueKeys {
        let bits = rng.u64();
        UniqueKeys {
            pid: bits as i16,
            class_hash: (bits >> 16) as i32,
            made: AtomicU64::new(0),
            month_start_ms: AtomicI64::new(0),
        }
    }

    /// The next key, for a message made at `wall_ms` by a client at `ip`.
    pub(crate) fn next(&self, ip: IpAddr, wall_ms: i64) -> UniqueKey {
        let made = self.made.fetch_add(1, Ordering::Relaxed);
        let mut month_start_ms = self.month_start_ms.load(Ordering::Relaxed);
        // Two calls on either side of midnight may both compute it; each stores what is true for its own time.
        if !(month_start_ms..month_start_ms + 28 * DAY_MS).contains(&wall_ms) {
            month_start_ms = start_of_month_ms(wall_ms);
            self.month_start_ms.store(month_start_ms, Ordering::Relaxed);
        }
        UniqueKey {
            ip,
            pid: self.pid,
            class_hash: self.class_hash.wrapping_add((made >> 16) as i32),
            month_ms: (wall_ms - month_start_ms) as i32,
            counter: made as i16,
        }
    }
}

/// The first moment (UTC) of the month that `wall_ms` lies in.
fn start_of_month_ms(wall_ms: i64) -> i64 {
    let day = wall_ms.div_euclid(DAY_MS);
    (day - day_of_month(day)) * DAY_MS
}

/// Which day of its month, from 0, a day since 1970-01-01 is. Counts in years that begin in March, so that the leap day
/// is the last: months are then 31 and 30 days in a pattern that a division finds.
fn day_of_month(day_since_1970: i64) -> i64 {
    const DAYS_FROM_MARCH_OF_YEAR_0: i64 = 719_468;
    const DAYS_IN_400_YEARS: i64 = 146_097;
    let day_of_era = (day_since_1970 + DAYS_FROM_MARCH_OF_YEAR_0).rem_euclid(DAYS_IN_400_YEARS);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (DAYS_IN_400_YEARS - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    day_of_year - (153 * month + 2) / 5
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;

    const IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));

    #[test]
    fn keys_never_repeat_even_if_the_clock_stands_still() {
        let keys = UniqueKeys::new(&Rng::seeded(1));
        let made: BTreeSet<String> = (0..70_000).map(|_| keys.next(IP, 1_700_000_000_000).to_string()).collect();
        assert_eq!(made.len(), 70_000);
        assert!(made.iter().all(|key| key.len() == 32 && key.starts_with("0A000009")));
    }

    #[test]
    fn the_time_in_a_key_counts_from_the_first_of_the_month() {
        let keys = UniqueKeys::new(&Rng::seeded(1));
        // 2023-11-14T22:13:20Z, then 2023-12-01T00:00:00.001Z, then back again.
        let november = (13 * DAY_MS + 80_000_000) as i32;
        assert_eq!(keys.next(IP, 1_700_000_000_000).month_ms, november);
        assert_eq!(keys.next(IP, 1_701_388_800_001).month_ms, 1);
        assert_eq!(keys.next(IP, 1_700_000_000_000).month_ms, november);
    }

    #[test]
    fn days_are_found_in_their_months() {
        // 1970-01-01, 1970-02-01, 2000-02-29, 2000-03-01, 2100-03-01 (no leap year), 2024-12-31.
        for (day, expected) in [(0, 0), (31, 0), (11_016, 28), (11_017, 0), (47_541, 0), (20_088, 30), (-1, 30)] {
            assert_eq!(day_of_month(day), expected, "day {day}");
        }
    }
}

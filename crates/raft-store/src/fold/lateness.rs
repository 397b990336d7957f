//! How late scheduled records become visible. Pure.

/// A histogram: of the records that fired, the group time between their due time and the entry that made them visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// Records by the smallest bound that they did not exceed; the last place is for those beyond all bounds.
    counts: [u64; Lateness::BOUNDS_MS.len() + 1],
    sum_ms: u64,
}

impl Lateness {
    /// Upper bounds, inclusive, in milliseconds.
    pub const BOUNDS_MS: [u64; 14] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000];

    /// One more record. Below 0 counts as 0.
    pub fn add(&mut self, ms: i64) {
        let ms = u64::try_from(ms).unwrap_or(0);
        let at = Lateness::BOUNDS_MS.partition_point(|bound| *bound < ms);
        self.counts[at] += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
    }

    /// Each bound, `None` for infinity, with the records that lie between it and the bound before.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        Lateness::BOUNDS_MS.into_iter().map(Some).chain([None]).zip(self.counts)
    }

    /// All records.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Of all records together, in milliseconds.
    pub fn sum_ms(&self) -> u64 {
        self.sum_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_at_the_smallest_bound_that_it_does_not_exceed() {
        let mut lateness = Lateness::default();
        for ms in [-3, 0, 1, 2, 3, 1_000, 1_001, 60_000, 60_001, i64::MAX] {
            lateness.add(ms);
        }
        let filled: Vec<_> = lateness.buckets().filter(|(_, count)| *count > 0).collect();
        let expected = [
            (Some(1), 3),
            (Some(2), 1),
            (Some(5), 1),
            (Some(1_000), 1),
            (Some(2_000), 1),
            (Some(60_000), 1),
            (None, 2),
        ];
        assert_eq!(filled, expected);
        assert_eq!(lateness.count(), 10);
        assert_eq!(lateness.sum_ms(), 122_008 + i64::MAX as u64);
    }
}

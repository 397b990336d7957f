//! Records that wait: scheduled ones for their time, half ones for the end of their transaction. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::reader::PendingCounts;
use super::rows::{PendingKind, PendingRow};
use crate::position::{PhysicalOffset, Timestamp};

/// All pending rows, and the scheduled ones in the order in which they fall due.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// By the place where the record was first stored, which stays the key.
    rows: BTreeMap<PhysicalOffset, PendingRow>,
    /// Exactly the scheduled ones of `rows`.
    timers: BTreeSet<(Timestamp, PhysicalOffset)>,
    counts: PendingCounts,
}

impl Pending {
    /// Adds a row. A key is the place of one record, so it is new.
    pub fn insert(&mut self, key: PhysicalOffset, row: PendingRow) {
        match row.kind {
            PendingKind::Scheduled { due } => {
                self.timers.insert((due, key));
                self.counts.scheduled += 1;
            }
            PendingKind::Half => self.counts.half += 1,
        }
        self.counts.bytes += u64::from(row.size);
        let before = self.rows.insert(key, row);
        assert!(before.is_none(), "two records at physical offset {key}");
    }

    /// Takes up to `limit` scheduled rows due at `now`, in order of due time, then place.
    pub fn take_due(&mut self, now: Timestamp, limit: usize) -> Vec<(PhysicalOffset, PendingRow)> {
        let mut taken = Vec::new();
        while taken.len() < limit && self.next_due().is_some_and(|due| due <= now) {
            let (_, key) = self.timers.pop_first().expect("next_due saw it");
            let row = self.rows.remove(&key).expect("every timer has its row");
            self.counts.scheduled -= 1;
            self.counts.bytes -= u64::from(row.size);
            taken.push((key, row));
        }
        taken
    }

    /// When the first timer falls due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.timers.first().map(|(due, _)| *due)
    }

    pub fn counts(&self) -> PendingCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::position::{QueueId, TopicId};

    fn row(place: u64, kind: PendingKind) -> PendingRow {
        PendingRow {
            queue: QueueId { topic: TopicId(1), queue: 0 },
            place: PhysicalOffset(place),
            size: 10,
            tag_hash: 0,
            stored_at: Timestamp(0),
            kind,
            key_hashes: Box::default(),
        }
    }

    proptest! {
        /// Each timer is taken once, in (due, place) order, never before it is due, and at once when it is.
        #[test]
        fn timers_are_taken_in_order(dues in proptest::collection::vec(0i64..50, 0..60), limit in 1usize..9) {
            let mut pending = Pending::default();
            let mut expected = Vec::new();
            for (place, due) in dues.iter().enumerate() {
                let kind = PendingKind::Scheduled { due: Timestamp(*due) };
                pending.insert(PhysicalOffset(place as u64), row(place as u64, kind));
                expected.push((*due, place as u64));
            }
            pending.insert(PhysicalOffset(1000), row(1000, PendingKind::Half));
            expected.sort();
            let mut taken = Vec::new();
            for now in 0..50 {
                loop {
                    let due = pending.take_due(Timestamp(now), limit);
                    let full = due.len() == limit;
                    for (key, row) in due {
                        let PendingKind::Scheduled { due } = row.kind else { panic!("a half row was taken") };
                        prop_assert!(due.0 == now, "due {} taken at {}", due, now);
                        taken.push((due.0, key.0));
                    }
                    if !full { break }
                }
            }
            prop_assert_eq!(taken, expected);
            prop_assert_eq!(pending.counts(), PendingCounts { scheduled: 0, half: 1, bytes: 10 });
            prop_assert_eq!(pending.next_due(), None);
        }
    }
}

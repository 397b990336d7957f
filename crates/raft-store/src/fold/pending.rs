//! Records that wait: scheduled ones for their time, half ones for the end of their transaction. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::reader::{PendingCounts, PendingPlace};
use super::rows::{PendingKind, PendingRow};
use crate::position::{PhysicalOffset, Timestamp};

/// All pending rows, and the scheduled ones in the order in which they fall due.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// By the place where the record was first stored, which stays the key.
    rows: BTreeMap<PhysicalOffset, PendingRow>,
    /// Exactly the scheduled ones of `rows`.
    timers: BTreeSet<(Timestamp, PhysicalOffset)>,
    /// The keys of all of `rows`, in the order of where their records lie now.
    places: BTreeSet<(PhysicalOffset, PhysicalOffset)>,
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
        assert!(self.places.insert((row.place, key)), "two rows {key} at {}", row.place);
        let before = self.rows.insert(key, row);
        assert!(before.is_none(), "two records at physical offset {key}");
    }

    /// Takes up to `limit` scheduled rows due at `now`, in order of due time, then place.
    pub fn take_due(&mut self, now: Timestamp, limit: usize) -> Vec<(PhysicalOffset, PendingRow)> {
        let mut taken = Vec::new();
        while taken.len() < limit && self.next_due().is_some_and(|due| due <= now) {
            let (_, key) = self.timers.pop_first().expect("next_due saw it");
            let row = self.rows.remove(&key).expect("every timer has its row");
            assert!(self.places.remove(&(row.place, key)), "every row has its place");
            self.counts.scheduled -= 1;
            self.counts.bytes -= u64::from(row.size);
            taken.push((key, row));
        }
        taken
    }

    /// The record of row `key` lies at `place` now, and is `size` bytes long. `None` if nothing waits under that key any
    /// more, or it is another record: then nothing has changed.
    pub fn roll(&mut self, key: PhysicalOffset, place: PhysicalOffset, size: u32) -> Option<&PendingRow> {
        let row = self.rows.get_mut(&key).filter(|row| row.size == size)?;
        assert!(self.places.remove(&(row.place, key)), "every row has its place");
        row.place = place;
        self.places.insert((place, key));
        Some(row)
    }

    /// Where the record lies that lies first.
    pub fn first_place(&self) -> Option<PhysicalOffset> {
        self.places.first().map(|(place, _)| *place)
    }

    /// Up to `limit` rows whose records lie below `end`, in the order of their places: key, place, size.
    pub fn below(&self, end: PhysicalOffset, limit: usize) -> Vec<PendingPlace> {
        let below = self.places.range(..(end, PhysicalOffset(0))).take(limit);
        below.map(|(place, key)| PendingPlace { key: *key, place: *place, size: self.rows[key].size }).collect()
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

    #[test]
    fn a_rolled_row_keeps_its_key_and_a_row_that_ended_is_not_rolled() {
        let mut pending = Pending::default();
        pending.insert(PhysicalOffset(1), row(1, PendingKind::Scheduled { due: Timestamp(5) }));
        pending.insert(PhysicalOffset(2), row(2, PendingKind::Half));
        assert_eq!(pending.first_place(), Some(PhysicalOffset(1)));
        assert!(pending.roll(PhysicalOffset(1), PhysicalOffset(70), 11).is_none(), "another record");
        assert_eq!(pending.roll(PhysicalOffset(1), PhysicalOffset(70), 10).expect("waits").place, PhysicalOffset(70));
        assert_eq!(pending.first_place(), Some(PhysicalOffset(2)));
        let keys =
            |end: u64| -> Vec<u64> { pending.below(PhysicalOffset(end), 9).iter().map(|row| row.key.0).collect() };
        assert_eq!((keys(2), keys(3), keys(71)), (vec![], vec![2], vec![2, 1]));
        let taken = pending.take_due(Timestamp(5), 9);
        assert_eq!((taken[0].0, taken[0].1.place), (PhysicalOffset(1), PhysicalOffset(70)));
        assert!(pending.roll(PhysicalOffset(1), PhysicalOffset(90), 10).is_none(), "it has fired");
        assert_eq!(pending.below(PhysicalOffset(99), 9).len(), 1);
    }

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

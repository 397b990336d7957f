//! Records that wait: scheduled ones for their time, half ones for the end of their transaction. Pure.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::ops::Bound;
use std::sync::Arc;

use super::reader::{HalfRecord, HalfState, PendingCounts, PendingPlace, ScheduledRecord, WaitingRecord};
use super::rows::{PendingKind, PendingRow};
use crate::entry::TransactionCheck;
use crate::position::{PhysicalOffset, Timestamp};

/// All pending rows, and the scheduled ones in the order in which they fall due.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// By the place where the record was first stored, which stays the key.
    rows: BTreeMap<PhysicalOffset, Arc<PendingRow>>,
    /// Exactly the scheduled ones of `rows`.
    timers: BTreeSet<(Timestamp, PhysicalOffset)>,
    /// Exactly the half ones of `rows`, each in the list of its state, by the time since which it is in it.
    halves: BTreeMap<HalfState, BTreeSet<(Timestamp, PhysicalOffset)>>,
    /// The keys of all of `rows`, in the order of where their records lie now.
    places: BTreeSet<(PhysicalOffset, PhysicalOffset)>,
    /// The keys of those of `rows` that have hashes, by the first one: that of the message's unique key, if it has one.
    by_hash: ByHash,
    counts: PendingCounts,
}

#[allow(clippy::disallowed_types)] // The hasher is fixed.
type KeyOfHash = std::collections::HashMap<u64, PhysicalOffset, BuildHasherDefault<DefaultHasher>>;

/// Keys by a hash. Hardly two have the same: a table, which unlike a tree costs the same however many wait, has one of each, and
/// what is left is beside it. Never walked through, so that its order is nobody's.
#[derive(Debug, Default)]
struct ByHash {
    one: KeyOfHash,
    /// Those whose hash stands in `one` already.
    others: BTreeSet<(u64, PhysicalOffset)>,
}

impl ByHash {
    fn insert(&mut self, hash: u64, key: PhysicalOffset) {
        match self.one.entry(hash) {
            Entry::Vacant(place) => {
                place.insert(key);
            }
            Entry::Occupied(_) => {
                self.others.insert((hash, key));
            }
        }
    }

    /// Whether it was there.
    fn remove(&mut self, hash: u64, key: PhysicalOffset) -> bool {
        if self.others.remove(&(hash, key)) {
            return true;
        }
        let Entry::Occupied(mut one) = self.one.entry(hash) else { return false };
        if *one.get() != key {
            return false;
        }
        let next = others_of(&self.others, hash).next();
        match next {
            Some(next) => {
                self.others.remove(&(hash, next));
                one.insert(next);
            }
            None => {
                one.remove();
            }
        }
        true
    }

    /// Those with this hash, in order.
    fn get(&self, hash: u64) -> Vec<PhysicalOffset> {
        let one = self.one.get(&hash).copied();
        let mut keys: Vec<PhysicalOffset> = one.into_iter().chain(others_of(&self.others, hash)).collect();
        keys.sort_unstable();
        keys
    }
}

fn others_of(others: &BTreeSet<(u64, PhysicalOffset)>, hash: u64) -> impl Iterator<Item = PhysicalOffset> {
    others.range((hash, PhysicalOffset(0))..=(hash, PhysicalOffset(u64::MAX))).map(|(_, key)| *key)
}

impl Pending {
    /// Adds a row. A key is the place of one record, so it is new.
    pub fn insert(&mut self, key: PhysicalOffset, row: Arc<PendingRow>) {
        match (row.kind, half_state(&row)) {
            (_, Some((state, since))) => {
                self.halves.entry(state).or_default().insert((since, key));
                self.counts.half += 1;
            }
            (PendingKind::Scheduled { due }, None) => {
                self.timers.insert((due, key));
                self.counts.scheduled += 1;
            }
            (kind, None) => unreachable!("{kind:?} has a state"),
        }
        self.counts.bytes += u64::from(row.size);
        assert!(self.places.insert((row.place, key)), "two rows {key} at {}", row.place);
        if let Some(hash) = row.key_hashes.first() {
            self.by_hash.insert(*hash, key);
        }
        let before = self.rows.insert(key, row);
        assert!(before.is_none(), "two records at physical offset {key}");
    }

    /// Up to `limit` scheduled rows due at `now`, in order of due time, then place. Each is taken when its record is visible.
    pub fn due(&self, now: Timestamp, limit: usize) -> Vec<(PhysicalOffset, Arc<PendingRow>)> {
        let due = self.timers.iter().take_while(|(due, _)| *due <= now).take(limit);
        due.map(|(_, key)| (*key, self.rows[key].clone())).collect()
    }

    /// A half row, whatever its state. `None` if it has ended, or there never was one.
    pub fn half_row(&self, key: PhysicalOffset) -> Option<Arc<PendingRow>> {
        self.rows.get(&key).filter(|row| half_state(row).is_some()).cloned()
    }

    /// Takes a half row, whatever its state. `None` if it has ended, or there never was one.
    pub fn end(&mut self, key: PhysicalOffset) -> Option<Arc<PendingRow>> {
        let (state, since) = half_state(self.rows.get(&key)?)?;
        let row = self.rows.remove(&key).expect("it was there");
        assert!(self.list(state).remove(&(since, key)), "every half row is listed");
        self.counts.half -= 1;
        self.forget(key, &row);
        Some(row)
    }

    /// A row has gone: what all kinds of rows stand in.
    fn forget(&mut self, key: PhysicalOffset, row: &PendingRow) {
        assert!(self.places.remove(&(row.place, key)), "every row has its place");
        if let Some(hash) = row.key_hashes.first() {
            assert!(self.by_hash.remove(*hash, key), "every row with a hash is found by it");
        }
        self.counts.bytes -= u64::from(row.size);
    }

    /// Rows whose first hash is `hash`, those that were stored first first.
    pub fn with_hash(&self, hash: u64) -> Vec<WaitingRecord> {
        let record = |key| {
            let row = &self.rows[&key];
            let is_half = !matches!(row.kind, PendingKind::Scheduled { .. });
            WaitingRecord { key, place: row.place, size: row.size, queue: row.queue, is_half }
        };
        self.by_hash.get(hash).into_iter().map(record).collect()
    }

    /// Takes a scheduled row: its record is visible now, or is recalled. `None` if it was taken before, or there never was one.
    pub fn take_scheduled(&mut self, key: PhysicalOffset) -> Option<Arc<PendingRow>> {
        let due = self.rows.get(&key)?.due()?;
        let row = self.rows.remove(&key).expect("it was there");
        assert!(self.timers.remove(&(due, key)), "every scheduled row has its timer");
        self.counts.scheduled -= 1;
        self.forget(key, &row);
        Some(row)
    }

    /// A scheduled row.
    pub fn scheduled(&self, key: PhysicalOffset) -> Option<ScheduledRecord> {
        let row = self.rows.get(&key)?;
        Some(ScheduledRecord { place: row.place, size: row.size, due: row.due()? })
    }

    /// Moves a half row to its next state. `None` if it has ended, or this is no step from where it is: nothing changes.
    pub fn check(&mut self, key: PhysicalOffset, check: TransactionCheck, now: Timestamp) -> Option<Arc<PendingRow>> {
        let row = Arc::make_mut(self.rows.get_mut(&key)?);
        let before = half_state(row)?;
        row.kind = match (check, row.kind) {
            (TransactionCheck::Asked, PendingKind::Half) => PendingKind::Asked { times: 1, at: now },
            (TransactionCheck::Asked, PendingKind::Asked { times, .. }) => {
                PendingKind::Asked { times: times.saturating_add(1), at: now }
            }
            (TransactionCheck::Discard, PendingKind::Half) => PendingKind::Discarded { times: 0, at: now },
            (TransactionCheck::Discard, PendingKind::Asked { times, .. }) => PendingKind::Discarded { times, at: now },
            (TransactionCheck::Resume, PendingKind::Discarded { .. }) => PendingKind::Asked { times: 0, at: now },
            _ => return None,
        };
        let after = half_state(row).expect("it is one still");
        for ((state, since), is_listed) in [(before, false), (after, true)] {
            let list = self.list(state);
            let changed = if is_listed { list.insert((since, key)) } else { list.remove(&(since, key)) };
            assert!(changed, "every half row is listed once");
        }
        self.rows.get(&key).cloned()
    }

    /// A half row, whatever its state.
    pub fn half(&self, key: PhysicalOffset) -> Option<HalfRecord> {
        let row = self.rows.get(&key)?;
        let (state, since) = half_state(row)?;
        let asked = match row.kind {
            PendingKind::Asked { times, .. } | PendingKind::Discarded { times, .. } => times,
            PendingKind::Half | PendingKind::Scheduled { .. } => 0,
        };
        let (place, size, queue, stored_at) = (row.place, row.size, row.queue, row.stored_at);
        Some(HalfRecord { key, place, size, queue, stored_at, state, since, asked })
    }

    /// Up to `limit` half rows in `state`, those first that are in it longest, behind the one at `after`.
    pub fn halves(
        &self,
        state: HalfState,
        after: Option<(Timestamp, PhysicalOffset)>,
        limit: usize,
    ) -> Vec<HalfRecord> {
        let Some(list) = self.halves.get(&state) else { return Vec::new() };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let listed = list.range((from, Bound::Unbounded)).take(limit);
        listed.map(|(_, key)| self.half(*key).expect("what is listed is a half row")).collect()
    }

    fn list(&mut self, state: HalfState) -> &mut BTreeSet<(Timestamp, PhysicalOffset)> {
        self.halves.entry(state).or_default()
    }

    /// The record of row `key` lies at `place` now, and is `size` bytes long. `None` if nothing waits under that key any
    /// more, or it is another record: then nothing has changed.
    pub fn roll(&mut self, key: PhysicalOffset, place: PhysicalOffset, size: u32) -> Option<Arc<PendingRow>> {
        let row = self.rows.get_mut(&key).filter(|row| row.size == size)?;
        assert!(self.places.remove(&(row.place, key)), "every row has its place");
        Arc::make_mut(row).place = place;
        self.places.insert((place, key));
        Some(row.clone())
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

/// The list that a half row is in, and since when. `None` for a scheduled one.
fn half_state(row: &PendingRow) -> Option<(HalfState, Timestamp)> {
    match row.kind {
        PendingKind::Scheduled { .. } => None,
        PendingKind::Half => Some((HalfState::Unasked, row.stored_at)),
        PendingKind::Asked { at, .. } => Some((HalfState::Asked, at)),
        PendingKind::Discarded { at, .. } => Some((HalfState::Discarded, at)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::position::{QueueId, TopicId};

    #[test]
    fn a_rolled_row_keeps_its_key_and_a_row_that_ended_is_not_rolled() {
        let mut pending = Pending::default();
        pending.insert(PhysicalOffset(1), Arc::new(row(1, PendingKind::Scheduled { due: Timestamp(5) })));
        pending.insert(PhysicalOffset(2), Arc::new(row(2, PendingKind::Half)));
        assert_eq!(pending.first_place(), Some(PhysicalOffset(1)));
        assert!(pending.roll(PhysicalOffset(1), PhysicalOffset(70), 11).is_none(), "another record");
        assert_eq!(pending.roll(PhysicalOffset(1), PhysicalOffset(70), 10).expect("waits").place, PhysicalOffset(70));
        assert_eq!(pending.first_place(), Some(PhysicalOffset(2)));
        let keys =
            |end: u64| -> Vec<u64> { pending.below(PhysicalOffset(end), 9).iter().map(|row| row.key.0).collect() };
        assert_eq!((keys(2), keys(3), keys(71)), (vec![], vec![2], vec![2, 1]));
        let taken = take_due(&mut pending, Timestamp(5), 9);
        assert_eq!((taken[0].0, taken[0].1.place), (PhysicalOffset(1), PhysicalOffset(70)));
        assert!(pending.roll(PhysicalOffset(1), PhysicalOffset(90), 10).is_none(), "it has fired");
        assert_eq!(pending.below(PhysicalOffset(99), 9).len(), 1);
    }

    #[test]
    fn a_row_is_found_by_its_first_hash_as_long_as_it_waits() {
        let mut pending = Pending::default();
        let hashed = |place, kind, hashes: &[u64]| PendingRow { key_hashes: hashes.into(), ..row(place, kind) };
        pending.insert(PhysicalOffset(1), Arc::new(hashed(1, PendingKind::Scheduled { due: Timestamp(5) }, &[7, 8])));
        pending.insert(PhysicalOffset(2), Arc::new(hashed(2, PendingKind::Half, &[7])));
        let found = |pending: &Pending, hash| -> Vec<(u64, bool)> {
            pending.with_hash(hash).iter().map(|record| (record.place.0, record.is_half)).collect()
        };
        assert_eq!((found(&pending, 7), found(&pending, 8)), (vec![(1, false), (2, true)], vec![]));
        pending.roll(PhysicalOffset(2), PhysicalOffset(9), 10);
        assert_eq!(found(&pending, 7), [(1, false), (9, true)]);
        take_due(&mut pending, Timestamp(5), 9);
        pending.end(PhysicalOffset(2));
        assert!(found(&pending, 7).is_empty());
    }

    #[test]
    fn a_half_row_is_asked_about_discarded_resumed_and_ends_once() {
        use HalfState::{Asked, Discarded, Unasked};
        let mut pending = Pending::default();
        for key in [1, 2, 3] {
            pending.insert(PhysicalOffset(key), Arc::new(row(key, PendingKind::Half)));
        }
        pending.insert(PhysicalOffset(4), Arc::new(row(4, PendingKind::Scheduled { due: Timestamp(1) })));
        let step = |pending: &mut Pending, key, check, now| {
            pending.check(PhysicalOffset(key), check, Timestamp(now)).is_some()
        };
        let listed = |pending: &Pending, state| -> Vec<(u64, u32)> {
            pending.halves(state, None, 9).iter().map(|half| (half.key.0, half.asked)).collect()
        };
        assert!(step(&mut pending, 2, TransactionCheck::Asked, 10));
        assert!(step(&mut pending, 1, TransactionCheck::Asked, 11));
        assert!(step(&mut pending, 2, TransactionCheck::Asked, 12));
        assert_eq!((listed(&pending, Unasked), listed(&pending, Asked)), (vec![(3, 0)], vec![(1, 1), (2, 2)]));
        let behind = pending.halves(Asked, Some((Timestamp(11), PhysicalOffset(1))), 9);
        assert_eq!((behind.len(), behind[0].key, behind[0].since), (1, PhysicalOffset(2), Timestamp(12)));

        assert!(
            step(&mut pending, 2, TransactionCheck::Discard, 20)
                && step(&mut pending, 3, TransactionCheck::Discard, 21)
        );
        assert_eq!((listed(&pending, Asked), listed(&pending, Discarded)), (vec![(1, 1)], vec![(2, 2), (3, 0)]));
        assert!(!step(&mut pending, 2, TransactionCheck::Asked, 22), "nobody is asked about a discarded one");
        assert!(!step(&mut pending, 1, TransactionCheck::Resume, 22), "it was not discarded");
        assert!(!step(&mut pending, 4, TransactionCheck::Asked, 22), "a scheduled one");
        assert!(!step(&mut pending, 9, TransactionCheck::Asked, 22), "none");
        assert!(step(&mut pending, 2, TransactionCheck::Resume, 30));
        assert_eq!((listed(&pending, Asked), listed(&pending, Discarded)), (vec![(1, 1), (2, 0)], vec![(3, 0)]));

        for key in [1, 2, 3] {
            assert_eq!(pending.end(PhysicalOffset(key)).expect("a half row").place, PhysicalOffset(key));
            assert!(pending.end(PhysicalOffset(key)).is_none() && pending.half(PhysicalOffset(key)).is_none());
        }
        assert!(pending.end(PhysicalOffset(4)).is_none(), "a scheduled one");
        assert_eq!(pending.counts(), PendingCounts { scheduled: 1, half: 0, bytes: 10 });
        assert_eq!(pending.first_place(), Some(PhysicalOffset(4)));
        assert!([Unasked, Asked, Discarded].into_iter().all(|state| listed(&pending, state).is_empty()));
    }

    #[test]
    fn a_recalled_row_does_not_fire_and_what_has_fired_is_not_recalled() {
        let mut pending = Pending::default();
        for (key, due) in [(1, 5), (2, 5), (3, 6)] {
            pending.insert(PhysicalOffset(key), Arc::new(row(key, PendingKind::Scheduled { due: Timestamp(due) })));
        }
        pending.insert(PhysicalOffset(4), Arc::new(row(4, PendingKind::Half)));
        pending.roll(PhysicalOffset(1), PhysicalOffset(70), 10).expect("it waits");
        let found = pending.scheduled(PhysicalOffset(1)).expect("it waits");
        assert_eq!((found.place, found.size, found.due), (PhysicalOffset(70), 10, Timestamp(5)));
        assert_eq!(pending.take_scheduled(PhysicalOffset(1)).expect("it waits").place, PhysicalOffset(70));
        assert!(pending.take_scheduled(PhysicalOffset(1)).is_none() && pending.scheduled(PhysicalOffset(1)).is_none());
        let fired: Vec<u64> = take_due(&mut pending, Timestamp(5), 9).iter().map(|(key, _)| key.0).collect();
        assert_eq!(fired, [2]);
        assert!(pending.take_scheduled(PhysicalOffset(2)).is_none(), "it has fired");
        assert!(pending.take_scheduled(PhysicalOffset(4)).is_none() && pending.scheduled(PhysicalOffset(4)).is_none());
        assert_eq!((pending.next_due(), pending.first_place()), (Some(Timestamp(6)), Some(PhysicalOffset(3))));
        assert_eq!(pending.counts(), PendingCounts { scheduled: 1, half: 1, bytes: 20 });
    }

    /// As a leader's timers fire.
    fn take_due(pending: &mut Pending, now: Timestamp, limit: usize) -> Vec<(PhysicalOffset, Arc<PendingRow>)> {
        let due = pending.due(now, limit);
        due.iter().for_each(|(key, _)| drop(pending.take_scheduled(*key).expect("it is due")));
        due
    }

    pub(crate) fn row(place: u64, kind: PendingKind) -> PendingRow {
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
        /// Keys are found by their hashes, in order, as long as they are there, whichever of equal hashes came or went first.
        #[test]
        fn keys_are_found_by_their_hashes(steps in proptest::collection::vec((0u64..4, 0u64..8), 0..200)) {
            let (mut by_hash, mut model) = (ByHash::default(), BTreeSet::new());
            for (hash, key) in steps {
                let (there, key) = ((hash, key), PhysicalOffset(key));
                if model.remove(&there) {
                    prop_assert!(by_hash.remove(hash, key));
                } else {
                    prop_assert!(!by_hash.remove(hash, key), "it is not there");
                    by_hash.insert(hash, key);
                    model.insert(there);
                }
                for hash in 0..4 {
                    let expected: Vec<_> = model.iter().filter(|one| one.0 == hash).map(|one| PhysicalOffset(one.1)).collect();
                    prop_assert_eq!(by_hash.get(hash), expected);
                }
            }
            prop_assert_eq!(by_hash.one.len() + by_hash.others.len(), model.len());
        }

        /// Each timer is taken once, in (due, place) order, never before it is due, and at once when it is.
        #[test]
        fn timers_are_taken_in_order(dues in proptest::collection::vec(0i64..50, 0..60), limit in 1usize..9) {
            let mut pending = Pending::default();
            let mut expected = Vec::new();
            for (place, due) in dues.iter().enumerate() {
                let kind = PendingKind::Scheduled { due: Timestamp(*due) };
                pending.insert(PhysicalOffset(place as u64), Arc::new(row(place as u64, kind)));
                expected.push((*due, place as u64));
            }
            pending.insert(PhysicalOffset(1000), Arc::new(row(1000, PendingKind::Half)));
            expected.sort();
            let mut taken = Vec::new();
            for now in 0..50 {
                loop {
                    let due = take_due(&mut pending, Timestamp(now), limit);
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

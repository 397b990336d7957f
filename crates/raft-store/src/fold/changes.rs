//! What applied entries changed, merged by key, on its way from apply to the materializer.
//!
//! A merged set always ends exactly at an entry: apply adds all changes of an entry and moves `upto` under one lock.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::rows::{self, GroupRow, PendingRow, QueueRow};
use crate::codec;
use crate::index::{IndexRow, KeyRow};
use crate::log::Boundary;
use crate::position::{LogId, PhysicalOffset, QueueId, Timestamp};

/// Bytes a row in memory costs beside its key and value.
const ROW_OVERHEAD_BYTES: usize = 64;

/// What becomes of a pending row.
#[derive(Debug)]
struct PendingChange {
    /// Put (`Some`) or deleted.
    row: Option<Arc<PendingRow>>,
    /// Neither an older set has it, nor the keyed store.
    is_new: bool,
}

/// Changes of consecutive entries, the later ones on top.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The last entry in here. `None`: nothing is.
    pub upto: Option<Boundary>,
    /// Where the log stood before the first entry in here.
    from_physical: u64,
    /// Put (`Some`) or deleted.
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    rows_bytes: usize,
    /// Kept as values and encoded at the end: most records that wait do so only for a moment.
    pending: BTreeMap<PhysicalOffset, PendingChange>,
    /// Rows of queues and the group change with almost every entry: kept as values, encoded once at the end.
    pub queues: BTreeMap<QueueId, QueueRow>,
    group: Option<GroupRow>,
    segment_clocks: BTreeMap<u64, Option<Timestamp>>,
    /// Units appended; they wait in their queues' memory.
    pub unit_count: usize,
    /// By-reference units among them.
    pub index_rows: Vec<IndexRow>,
    /// One for each key of what became visible.
    pub key_rows: Vec<KeyRow>,
    /// An image is to be cut exactly here.
    pub checkpoint: bool,
}

impl Changes {
    /// A row put (`Some`) or deleted.
    pub fn row(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.rows_bytes += bytes_of(&key, &value);
        match self.rows.entry(key) {
            Entry::Vacant(vacant) => drop(vacant.insert(value)),
            Entry::Occupied(mut occupied) => {
                self.rows_bytes -= bytes_of(occupied.key(), occupied.get());
                *occupied.get_mut() = value;
            }
        }
    }

    /// A record begins to wait. Its key is never used again: if the record ends in the same set, nothing of it is written.
    pub fn begins_to_wait(&mut self, key: PhysicalOffset, row: Arc<PendingRow>) {
        let before = self.pending.insert(key, PendingChange { row: Some(row), is_new: true });
        assert!(before.is_none(), "a record that begins to wait at {key} has waited before");
    }

    /// A record goes on waiting, in another state.
    pub fn waits(&mut self, key: PhysicalOffset, row: Arc<PendingRow>) {
        self.pending.entry(key).or_insert(PendingChange { row: None, is_new: false }).row = Some(row);
    }

    /// A record waits no longer.
    pub fn ends_to_wait(&mut self, key: PhysicalOffset) {
        match self.pending.entry(key) {
            Entry::Occupied(occupied) if occupied.get().is_new => drop(occupied.remove()),
            entry => entry.or_insert(PendingChange { row: None, is_new: false }).row = None,
        }
    }

    pub fn queue(&mut self, id: QueueId, row: QueueRow) {
        self.queues.insert(id, row);
    }

    pub fn group(&mut self, row: GroupRow) {
        self.group = Some(row);
    }

    pub fn segment_clock(&mut self, segment: u64, time: Option<Timestamp>) {
        self.segment_clocks.insert(segment, time);
    }

    /// All of an entry is in.
    pub fn ends_at(&mut self, boundary: Boundary, began_at: u64) {
        match self.upto {
            None => self.from_physical = began_at,
            Some(before) => assert!(before.id.index < boundary.id.index, "{} behind {}", boundary.id, before.id),
        }
        self.upto = Some(boundary);
    }

    /// Below this place the log is trimmed. `None`: nothing in here says so.
    pub fn min_physical(&self) -> Option<PhysicalOffset> {
        self.group.map(|group| group.min_physical)
    }

    /// Memory held until this is durable.
    pub fn weight_bytes(&self) -> usize {
        const UNIT_BYTES: usize = 32;
        self.rows_bytes
            + self.pending.len() * (ROW_OVERHEAD_BYTES + size_of::<PendingRow>())
            + self.queues.len() * (ROW_OVERHEAD_BYTES + UNIT_BYTES)
            + (self.unit_count + self.index_rows.len()) * UNIT_BYTES
            // Here and in the index.
            + self.key_rows.len() * 2 * size_of::<KeyRow>()
    }

    /// Rows that are put or deleted, but for those of queues and the group.
    pub fn row_count(&self) -> usize {
        self.rows.len() + self.pending.len()
    }

    /// Log between the first and the last entry in here.
    pub fn log_bytes(&self) -> u64 {
        self.upto.map_or(0, |upto| upto.end.physical_offset.0 - self.from_physical)
    }

    /// The rows to write, in key order.
    pub fn into_rows(self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut rows = self.rows;
        let group = self.group.map(|group| (vec![rows::GROUP], Some(codec::to_bytes(&group))));
        let queues = self.queues.iter().map(|(id, row)| (rows::queue_key(*id), Some(codec::to_bytes(row))));
        let clocks = self.segment_clocks.iter();
        let clocks =
            clocks.map(|(segment, time)| (rows::segment_clock_key(*segment), time.as_ref().map(codec::to_bytes)));
        rows.extend(group.into_iter().chain(queues).chain(clocks));
        // Already in order, and by far the most: what lies before and behind them is moved once.
        let behind = rows.split_off([rows::PENDING].as_slice());
        let pending = self.pending.into_iter();
        let pending = pending
            .map(|(key, PendingChange { row, .. })| (rows::pending_key(key), row.as_deref().map(codec::to_bytes)));
        rows.into_iter().chain(pending).chain(behind).collect()
    }
}

fn bytes_of(key: &[u8], value: &Option<Vec<u8>>) -> usize {
    key.len() + value.as_ref().map_or(0, Vec::len) + ROW_OVERHEAD_BYTES
}

/// Between apply and the materializer.
#[derive(Debug, Default)]
pub(crate) struct Handoff {
    /// What apply adds to.
    pub accumulating: Changes,
    /// Sets that end at a `Checkpoint`, oldest first; all older than `accumulating`.
    pub sealed: VecDeque<Changes>,
    /// Set once; nothing is written any more.
    pub failure: Option<String>,
}

impl Handoff {
    /// Closes the accumulating set where it is, so that the image is cut exactly there.
    pub fn seal(&mut self) {
        let mut sealed = std::mem::take(&mut self.accumulating);
        sealed.checkpoint = true;
        self.sealed.push_back(sealed);
    }

    /// The oldest set, if anything waits.
    pub fn take(&mut self) -> Option<Changes> {
        let taken = match self.sealed.pop_front() {
            Some(sealed) => sealed,
            None => std::mem::take(&mut self.accumulating),
        };
        taken.upto.is_some().then_some(taken)
    }

    /// The last entry that waits here.
    pub fn upto(&self) -> Option<LogId> {
        self.accumulating.upto.or_else(|| self.sealed.back()?.upto).map(|upto| upto.id)
    }

    /// Forgets everything: an image replaces it.
    pub fn clear(&mut self) {
        self.accumulating = Changes::default();
        self.sealed.clear();
    }

    pub fn weight_bytes(&self) -> usize {
        self.accumulating.weight_bytes() + self.sealed.iter().map(Changes::weight_bytes).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::super::pending::tests::row as pending_row;
    use super::super::rows::PendingKind;
    use super::*;

    #[test]
    fn a_record_that_waited_only_within_a_set_is_not_written() {
        let at = PhysicalOffset;
        let row = |place| Arc::new(pending_row(place, PendingKind::Half));
        let mut changes = Changes::default();
        for key in [1, 2, 3] {
            changes.begins_to_wait(at(key), row(key));
        }
        changes.waits(at(1), row(10));
        changes.ends_to_wait(at(1));
        changes.waits(at(2), row(20));
        changes.ends_to_wait(at(4));
        changes.waits(at(5), row(5));
        changes.waits(at(6), row(6));
        changes.ends_to_wait(at(6));
        changes.row(vec![rows::MEMBERSHIP], Some(vec![1]));
        changes.row(vec![rows::SEGMENT_CLOCK, 1], Some(vec![2]));
        changes.row(vec![rows::SEGMENT_CLOCK, 1], None);
        let put = |key, row: Arc<PendingRow>| (rows::pending_key(at(key)), Some(codec::to_bytes(&*row)));
        let deleted = |key| (rows::pending_key(at(key)), None);
        assert_eq!(changes.row_count(), 7);
        assert_eq!(
            changes.into_rows(),
            [
                (vec![rows::MEMBERSHIP], Some(vec![1])),
                put(2, row(20)),
                put(3, row(3)),
                deleted(4),
                put(5, row(5)),
                deleted(6),
                (vec![rows::SEGMENT_CLOCK, 1], None),
            ],
            "4 and 6 may be in older sets"
        );
    }

    #[test]
    fn a_record_that_began_to_wait_in_an_older_set_is_deleted_by_a_later_one() {
        let at = PhysicalOffset(1);
        let mut handoff = Handoff::default();
        handoff.accumulating.begins_to_wait(at, Arc::new(pending_row(1, PendingKind::Half)));
        handoff.seal();
        handoff.accumulating.ends_to_wait(at);
        let sealed = handoff.sealed.pop_front().expect("sealed").into_rows();
        assert!(matches!(sealed.as_slice(), [(_, Some(_))]));
        assert_eq!(handoff.accumulating.into_rows(), [(rows::pending_key(at), None)]);
    }

    #[test]
    fn the_weight_of_rows_is_that_of_their_last_values() {
        let mut changes = Changes::default();
        for value in [Some(vec![1; 9]), None, Some(vec![1; 3])] {
            changes.row(vec![1, 2], value);
        }
        assert_eq!(changes.weight_bytes(), 2 + 3 + ROW_OVERHEAD_BYTES);
    }
}

//! What applied entries changed, merged by key, on its way from apply to the materializer.
//!
//! A merged set always ends exactly at an entry: apply adds all changes of an entry and moves `upto` under one lock.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use super::rows::{self, GroupRow, QueueRow};
use crate::codec;
use crate::index::{IndexRow, KeyRow};
use crate::log::Boundary;
use crate::position::{PhysicalOffset, QueueId, Timestamp};

/// Bytes a row in memory costs beside its key and value.
const ROW_OVERHEAD_BYTES: usize = 64;

/// What becomes of a row.
#[derive(Debug)]
struct Change {
    /// Put (`Some`) or deleted.
    value: Option<Vec<u8>>,
    /// No older set has it, nor what is written.
    is_new: bool,
}

impl Change {
    fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len) + ROW_OVERHEAD_BYTES
    }
}

/// Changes of consecutive entries, the later ones on top.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The last entry in here. `None`: nothing is.
    pub upto: Option<Boundary>,
    /// Where the log stood before the first entry in here.
    from_physical: u64,
    rows: BTreeMap<Vec<u8>, Change>,
    rows_bytes: usize,
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
        let change = Change { value, is_new: false };
        let bytes = key.len() + change.bytes();
        match self.rows.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(change);
            }
            Entry::Occupied(mut occupied) => {
                self.rows_bytes -= occupied.key().len() + occupied.get().bytes();
                if change.value.is_none() && occupied.get().is_new {
                    occupied.remove();
                    return;
                }
                occupied.get_mut().value = change.value;
            }
        }
        self.rows_bytes += bytes;
    }

    /// A row put that never was there before, under a key that is never used again: if it ends in the same set, nothing is left
    /// of it to be written.
    pub fn new_row(&mut self, key: Vec<u8>, value: Vec<u8>) {
        let change = Change { value: Some(value), is_new: true };
        self.rows_bytes += key.len() + change.bytes();
        assert!(self.rows.insert(key, change).is_none(), "a new row has changed before");
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
            + self.queues.len() * (ROW_OVERHEAD_BYTES + UNIT_BYTES)
            + (self.unit_count + self.index_rows.len()) * UNIT_BYTES
            // Here and in the index.
            + self.key_rows.len() * 2 * size_of::<KeyRow>()
    }

    /// Log between the first and the last entry in here.
    pub fn log_bytes(&self) -> u64 {
        self.upto.map_or(0, |upto| upto.end.physical_offset.0 - self.from_physical)
    }

    /// The rows to write, in key order.
    pub fn into_rows(self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut rows = self.rows;
        let mut put = |key, value| rows.insert(key, Change { value, is_new: false });
        if let Some(group) = self.group {
            put(vec![rows::GROUP], Some(codec::to_bytes(&group)));
        }
        for (id, row) in self.queues {
            put(rows::queue_key(id), Some(codec::to_bytes(&row)));
        }
        for (segment, time) in self.segment_clocks {
            put(rows::segment_clock_key(segment), time.map(|time| codec::to_bytes(&time)));
        }
        rows.into_iter().map(|(key, change)| (key, change.value)).collect()
    }
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
    use super::*;

    #[test]
    fn a_row_that_began_and_ended_in_a_set_is_not_written() {
        let key = |byte: u8| vec![byte; 3];
        let mut changes = Changes::default();
        changes.new_row(key(1), vec![1]);
        changes.new_row(key(2), vec![2]);
        changes.row(key(1), Some(vec![1, 1, 1]));
        changes.row(key(1), None);
        changes.row(key(3), Some(vec![3]));
        changes.row(key(3), None);
        changes.row(key(4), None);
        assert_eq!(changes.weight_bytes(), 3 * (3 + ROW_OVERHEAD_BYTES) + 1, "as much as is held");
        assert_eq!(
            changes.into_rows(),
            [(key(2), Some(vec![2])), (key(3), None), (key(4), None)],
            "older sets may have 3"
        );
    }

    #[test]
    fn a_row_that_began_in_an_older_set_is_deleted_by_a_later_one() {
        let mut handoff = Handoff::default();
        handoff.accumulating.new_row(vec![1], vec![1]);
        handoff.seal();
        handoff.accumulating.row(vec![1], None);
        assert_eq!(handoff.sealed.pop_front().expect("sealed").into_rows(), [(vec![1], Some(vec![1]))]);
        assert_eq!(handoff.accumulating.into_rows(), [(vec![1], None)]);
    }
}

//! What applied entries changed, merged by key, on its way from apply to the materializer.
//!
//! A merged set always ends exactly at an entry: apply adds all changes of an entry and moves `upto` under one lock.

use std::collections::{BTreeMap, VecDeque};

use super::rows::{self, GroupRow, QueueRow};
use crate::codec;
use crate::index::{IndexRow, KeyRow};
use crate::log::Boundary;
use crate::position::{PhysicalOffset, QueueId, Timestamp};

/// Bytes a row in memory costs beside its key and value.
const ROW_OVERHEAD_BYTES: usize = 64;

/// Changes of consecutive entries, the later ones on top.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The last entry in here. `None`: nothing is.
    pub upto: Option<Boundary>,
    /// Where the log stood before the first entry in here.
    from_physical: u64,
    /// Rows put (`Some`) or deleted.
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
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
    pub fn row(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        let bytes =
            |key: &[u8], value: &Option<Vec<u8>>| key.len() + value.as_ref().map_or(0, Vec::len) + ROW_OVERHEAD_BYTES;
        self.rows_bytes += bytes(&key, &value);
        let key_len = key.len();
        if let Some(before) = self.rows.insert(key, value) {
            self.rows_bytes -= key_len + before.map_or(0, |before| before.len()) + ROW_OVERHEAD_BYTES;
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
        if let Some(group) = self.group {
            rows.insert(vec![rows::GROUP], Some(codec::to_bytes(&group)));
        }
        for (id, row) in self.queues {
            rows.insert(rows::queue_key(id), Some(codec::to_bytes(&row)));
        }
        for (segment, time) in self.segment_clocks {
            rows.insert(rows::segment_clock_key(segment), time.map(|time| codec::to_bytes(&time)));
        }
        rows.into_iter().collect()
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

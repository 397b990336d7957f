//! The rows of the index, and what differs between their kinds.

use super::part::{PAGE_BYTES, ROWS_AT};
use crate::position::{PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};

/// A unit that points back at an older record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexRow {
    /// The record.
    pub physical_offset: PhysicalOffset,
    /// The queue that shows it,
    pub queue: QueueId,
    /// and where.
    pub queue_offset: QueueOffset,
}

/// The unit of a message that has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyRow {
    /// Of the key, as its record's entry has it.
    pub hash: u64,
    /// When the message became visible.
    pub visible_at: Timestamp,
    /// The record.
    pub physical_offset: PhysicalOffset,
    /// The queue that shows it,
    pub queue: QueueId,
    /// and where.
    pub queue_offset: QueueOffset,
}

/// A kind of rows. Their order is that of their fields.
pub trait Row: Copy + Ord + std::fmt::Debug + Send + Sync + 'static {
    const MAGIC: [u8; 4];
    /// Of the layout of parts.
    const VERSION: u8;
    const BYTES: usize;
    /// Of file names.
    const SUFFIX: &'static str;
    /// Parts that would have more together are not merged.
    const MERGED_ROWS_MAX: u64;
    /// Whether the last row of a part is also that of the last record; else the head says where that is, and of which
    /// times the rows are.
    const IS_BY_PLACE: bool;

    const PER_PAGE: usize = (PAGE_BYTES - ROWS_AT - 4) / Self::BYTES;

    fn encode(&self, bytes: &mut [u8]);
    fn decode(bytes: &[u8]) -> Self;
    fn physical_offset(&self) -> PhysicalOffset;

    /// The hash by which it is looked for, and its time, of a kind that is looked for by these.
    fn hash(&self) -> Option<(u64, Timestamp)> {
        None
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

impl Row for IndexRow {
    const MAGIC: [u8; 4] = *b"RMQX";
    const VERSION: u8 = 1;
    const BYTES: usize = 24;
    const SUFFIX: &'static str = "";
    const MERGED_ROWS_MAX: u64 = u64::MAX;
    const IS_BY_PLACE: bool = true;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[0..8].copy_from_slice(&self.physical_offset.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.queue.topic.0.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.queue.queue.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.queue_offset.0.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> IndexRow {
        IndexRow {
            physical_offset: PhysicalOffset(u64_at(bytes, 0)),
            queue: QueueId { topic: TopicId(u32_at(bytes, 8)), queue: u32_at(bytes, 12) },
            queue_offset: QueueOffset(u64_at(bytes, 16)),
        }
    }

    fn physical_offset(&self) -> PhysicalOffset {
        self.physical_offset
    }
}

impl Row for KeyRow {
    const MAGIC: [u8; 4] = *b"RMQK";
    const VERSION: u8 = 2;
    const BYTES: usize = 40;
    const SUFFIX: &'static str = ".keys";
    const MERGED_ROWS_MAX: u64 = 4 << 20;
    const IS_BY_PLACE: bool = false;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[0..8].copy_from_slice(&self.hash.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.visible_at.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.physical_offset.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.queue.topic.0.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.queue.queue.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.queue_offset.0.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> KeyRow {
        KeyRow {
            hash: u64_at(bytes, 0),
            visible_at: Timestamp(u64_at(bytes, 8) as i64),
            physical_offset: PhysicalOffset(u64_at(bytes, 16)),
            queue: QueueId { topic: TopicId(u32_at(bytes, 24)), queue: u32_at(bytes, 28) },
            queue_offset: QueueOffset(u64_at(bytes, 32)),
        }
    }

    fn physical_offset(&self) -> PhysicalOffset {
        self.physical_offset
    }

    fn hash(&self) -> Option<(u64, Timestamp)> {
        Some((self.hash, self.visible_at))
    }
}

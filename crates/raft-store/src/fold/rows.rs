//! Keys and values of this crate's own rows in the keyed store and in images.
//!
//! ```text
//! 01                             GroupRow: what the group agrees on as a whole
//! 02                             MembershipRow
//! 03 00 | 03 01 allocator        next topic id | next number of one of the broker's allocators
//! 04 index u64                   CheckpointRow: where the log may be trimmed to
//! 10 topic u32 queue u32         QueueRow
//! 20 physical offset u64         PendingRow: scheduled and half records, by the place where they were first stored
//! 30 segment u64                 latest group time at which a unit pointing into the segment was made
//! 40..EF                         the broker's tables
//! ```
//!
//! Integers in keys are big-endian, so that key order is number order. Values are `codec`'s. Every row is a function of
//! the log alone: nothing of this replica's clock, disk or timing may ever enter one.

use crate::codec::{Decode, Encode};
use crate::position::{LogId, PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};
use crate::state_hash::Verdict;

pub(crate) const GROUP: u8 = 0x01;
pub(crate) const MEMBERSHIP: u8 = 0x02;
pub(crate) const ALLOCATOR: u8 = 0x03;
pub(crate) const CHECKPOINT: u8 = 0x04;
pub(crate) const QUEUE: u8 = 0x10;
pub(crate) const PENDING: u8 = 0x20;
pub(crate) const SEGMENT_CLOCK: u8 = 0x30;

/// What the group agrees on as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct GroupRow {
    pub cluster_version: u32,
    /// Never decreases.
    pub last_time: Timestamp,
    /// Never decreases.
    pub min_physical: PhysicalOffset,
}

/// The last membership frame.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MembershipRow {
    pub id: LogId,
    pub bytes: Vec<u8>,
}

/// A `Checkpoint` that was applied: a place that the log may be trimmed to, and where each queue begins then.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct CheckpointRow {
    pub id: LogId,
    /// Behind the entry.
    pub end: PhysicalOffset,
    /// Group time at the entry: everything before is at least as old.
    pub stamp: Timestamp,
    /// Next offsets of the queues that had any: units below point at records before `end`.
    pub next: Vec<(QueueId, QueueOffset)>,
    /// What `StateHash` found.
    pub verdict: Option<Verdict>,
}

/// A queue's bounds. The row stays for ever, so that offsets are not reused after a topic is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct QueueRow {
    pub min: QueueOffset,
    /// Never decreases.
    pub next: QueueOffset,
    /// Of the newest unit ever. Never decreases.
    pub last_visible_at: Option<Timestamp>,
    /// Refuses records.
    pub closed: bool,
}

/// A record that waits to become visible, with all that making it visible needs.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct PendingRow {
    pub queue: QueueId,
    /// Where the record lies now; the row's key is where it lay first.
    pub place: PhysicalOffset,
    pub size: u32,
    pub tag_hash: i32,
    pub stored_at: Timestamp,
    pub kind: PendingKind,
    pub key_hashes: Box<[u64]>,
}

impl PendingRow {
    /// When a scheduled one falls due. `None` for a half one.
    pub fn due(&self) -> Option<Timestamp> {
        match self.kind {
            PendingKind::Scheduled { due } => Some(due),
            PendingKind::Half | PendingKind::Asked { .. } | PendingKind::Discarded { .. } => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum PendingKind {
    Scheduled {
        due: Timestamp,
    },
    /// Nobody was asked yet how its transaction has ended.
    Half,
    /// Somebody was, so many times.
    Asked {
        times: u32,
        /// The last time; or when it was resumed.
        at: Timestamp,
    },
    /// Nobody is asked any more.
    Discarded {
        times: u32,
        /// Since then.
        at: Timestamp,
    },
}

pub(crate) fn allocator_key(allocator: Option<u8>) -> Vec<u8> {
    match allocator {
        None => vec![ALLOCATOR, 0],
        Some(allocator) => vec![ALLOCATOR, 1, allocator],
    }
}

pub(crate) fn checkpoint_key(index: u64) -> Vec<u8> {
    number_key(CHECKPOINT, index)
}

pub(crate) fn queue_key(queue: QueueId) -> Vec<u8> {
    let mut key = vec![QUEUE];
    key.extend(queue.topic.0.to_be_bytes());
    key.extend(queue.queue.to_be_bytes());
    key
}

pub(crate) fn queue_of_key(key: &[u8]) -> Option<QueueId> {
    let rest: &[u8; 8] = key.strip_prefix(&[QUEUE])?.try_into().ok()?;
    let (topic, queue) = rest.split_at(4);
    Some(QueueId {
        topic: TopicId(u32::from_be_bytes(topic.try_into().ok()?)),
        queue: u32::from_be_bytes(queue.try_into().ok()?),
    })
}

pub(crate) fn pending_key(at: PhysicalOffset) -> Vec<u8> {
    number_key(PENDING, at.0)
}

pub(crate) fn segment_clock_key(segment: u64) -> Vec<u8> {
    number_key(SEGMENT_CLOCK, segment)
}

fn number_key(table: u8, number: u64) -> Vec<u8> {
    let mut key = vec![table];
    key.extend(number.to_be_bytes());
    key
}

/// The number in a key of one table byte and a `u64`.
pub(crate) fn number_of_key(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1..)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    /// If this fails, state and images written by earlier releases can no longer be read.
    #[test]
    fn golden_rows() {
        let queue = QueueId { topic: TopicId(1), queue: 2 };
        assert_eq!(queue_key(queue), [0x10, 0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(queue_of_key(&queue_key(queue)), Some(queue));
        assert_eq!(number_of_key(&pending_key(PhysicalOffset(258))), Some(258));
        let row =
            QueueRow { min: QueueOffset(1), next: QueueOffset(9), last_visible_at: Some(Timestamp(-3)), closed: true };
        assert_eq!(codec::to_bytes(&row), [0xB2, 1, 1, 9, 1, 5, 1]);
        let row = PendingRow {
            queue,
            place: PhysicalOffset(64),
            size: 5,
            tag_hash: -1,
            stored_at: Timestamp(2),
            kind: PendingKind::Scheduled { due: Timestamp(3) },
            key_hashes: Box::new([7]),
        };
        assert_eq!(codec::to_bytes(&row), [0xB2, 1, 1, 2, 64, 5, 1, 4, 0, 6, 1, 7]);
        for (kind, golden) in [
            (PendingKind::Half, [1].as_slice()),
            (PendingKind::Asked { times: 15, at: Timestamp(3) }, &[2, 15, 6]),
            (PendingKind::Discarded { times: 15, at: Timestamp(3) }, &[3, 15, 6]),
        ] {
            assert_eq!(codec::to_bytes(&kind)[2..], *golden);
        }
        let row = CheckpointRow {
            id: LogId { term: 1, index: 2 },
            end: PhysicalOffset(64),
            stamp: Timestamp(-1),
            next: vec![(queue, QueueOffset(3))],
            verdict: None,
        };
        assert_eq!(codec::to_bytes(&row), [0xB2, 1, 1, 2, 64, 1, 1, 1, 2, 3, 0]);
        let agreed = CheckpointRow { verdict: Some(Verdict::Agreed(9)), ..row.clone() };
        assert_eq!(codec::to_bytes(&agreed)[10..], [1, 0, 9]);
        let split = CheckpointRow { verdict: Some(Verdict::Split), ..row };
        assert_eq!(codec::to_bytes(&split)[10..], [1, 1]);
        let row = GroupRow { cluster_version: 1, last_time: Timestamp(2), min_physical: PhysicalOffset(3) };
        assert_eq!(codec::to_bytes(&row), [0xB2, 1, 1, 4, 3]);
        let row = MembershipRow { id: LogId { term: 1, index: 2 }, bytes: vec![8] };
        assert_eq!(codec::to_bytes(&row), [0xB2, 1, 1, 2, 1, 8]);
    }
}

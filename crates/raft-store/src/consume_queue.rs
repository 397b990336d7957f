//! ConsumeQueue: the dense index of one queue. Unit k points at the record whose queue offset is k.

use std::ops::Range;

use crate::position::{PhysicalOffset, QueueId, QueueOffset, Timestamp};

/// What a unit says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Where the record lies.
    pub physical_offset: PhysicalOffset,
    /// How long it is.
    pub size: u32,
    /// Hash of its tag.
    pub tag_hash: i32,
    /// Group time at which it became visible here. Never decreases along a queue.
    pub visible_at: Timestamp,
    /// Whether the unit came with its record's entry, or points back at it.
    pub kind: UnitKind,
}

/// Where a unit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitKind {
    /// Visible at once: `visible_at` is the record's store time.
    Plain,
    /// A timer fired; the record is older.
    Fired,
}

/// Which of several offsets a search by time answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeBoundary {
    /// The first unit visible at the time or later.
    Lower,
    /// The last unit visible at the time or earlier.
    Upper,
}

/// Why units could not be read.
#[derive(Debug, thiserror::Error)]
pub enum UnitsError {
    /// A derived file is damaged or gone. It was noted: stop the replica; its next start rebuilds the derived state.
    #[error("queue {queue}: unit {queue_offset} is damaged; the next start rebuilds the derived state")]
    Damaged {
        /// Whose.
        queue: QueueId,
        /// Which.
        queue_offset: QueueOffset,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<UnitsError> for std::io::Error {
    fn from(error: UnitsError) -> std::io::Error {
        std::io::Error::other(error)
    }
}

/// One queue, for readers.
#[derive(Debug)]
pub struct Queue {
    id: QueueId,
}

impl Queue {
    /// Which queue.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// The offsets that exist: first available, and the one the next message gets.
    pub fn bounds(&self) -> Range<QueueOffset> {
        QueueOffset(0)..QueueOffset(0)
    }

    /// `visible_at` of the newest unit ever.
    pub fn last_visible_at(&self) -> Option<Timestamp> {
        None
    }

    /// Up to `limit` units from `from` on if they are in memory; `None` if a file must be read: [`Queue::read_units`].
    /// Empty if `from` is outside the bounds.
    pub fn units(&self, from: QueueOffset, limit: usize) -> Option<Vec<Unit>> {
        let _ = (from, limit);
        None
    }

    /// Up to `limit` units from `from` on; files are read off the caller's runtime and verified.
    pub async fn read_units(&self, from: QueueOffset, limit: usize) -> Result<Vec<Unit>, UnitsError> {
        let _ = (from, limit);
        Ok(Vec::new())
    }

    /// The offset that belongs to a time. Beyond the newest: the next offset (lower), the last one (upper); before the
    /// oldest: the first; a queue that never had a message: 0.
    pub async fn search_by_time(&self, time: Timestamp, boundary: TimeBoundary) -> Result<QueueOffset, UnitsError> {
        let _ = (time, boundary);
        Ok(QueueOffset(0))
    }

    /// Resolves when the queue has units beyond `offset` (its next offset is greater). Cancel-safe; no wake-up is lost.
    pub async fn grown_beyond(&self, offset: QueueOffset) {
        let _ = offset;
    }
}

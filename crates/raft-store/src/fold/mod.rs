//! Apply: the state that entries make, folded one frame at a time, the same on every replica.
//!
//! - Total and deterministic: a kind of entry, operation or command that this version does not know stops the replica
//!   before anything of it is applied; whatever else an entry says has an outcome, if only a typed refusal.
//! - Reads the descriptor table of an entry, never a record.
//! - Works in memory. What changed goes to the [`crate::materializer`], merged by key; nothing here waits for a disk,
//!   except that a full merged set makes [`Fold::apply`] await the derived sync.
//!
//! One owner: [`Fold`] applies; everybody else reads through [`Reader`].

mod changes;
mod clock;
mod pending;
mod reader;
mod rows;
mod tables;

use std::io;

use bytes::Bytes;

pub use self::reader::{PendingCounts, Reader};
pub use self::tables::{FIRST_TABLES_BYTE, LAST_TABLES_BYTE, RowError, Tables};
use crate::image::Image;
use crate::log::{Frame, Log};
use crate::materializer::{Derived, OpenError};
use crate::position::{LogId, PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};

/// What became of one operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<R> {
    /// A visible record is in its queue.
    Placed {
        /// Its place in the queue.
        queue_offset: QueueOffset,
        /// Its place in the CommitLog.
        physical_offset: PhysicalOffset,
        /// Group time, which is its store time.
        stamp: Timestamp,
    },
    /// A scheduled or half record waits.
    Pending {
        /// Its place in the CommitLog, and its key until it ends.
        physical_offset: PhysicalOffset,
        /// Group time, which is its store time.
        stamp: Timestamp,
    },
    /// A core command was applied.
    Core(CoreReply),
    /// The tables' answer.
    Tables(R),
    /// A precondition did not hold; nothing changed.
    Refused(Refusal),
}

/// What a core command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreReply {
    /// `Lead`: leases were extended by this much.
    Led {
        /// Group time since the entry before.
        gap_ms: i64,
    },
    /// `FireTimers`.
    Fired {
        /// Rows that became visible.
        fired: u32,
        /// More are due: propose again at once.
        more: bool,
    },
    /// `Checkpoint`: the image of this entry will be written.
    Checkpoint,
    /// `RaiseClusterVersion`: the version that holds now.
    ClusterVersion(u32),
}

/// Why an operation changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The queue was closed (its topic deleted) before the record arrived.
    #[error("queue {0} is closed")]
    QueueClosed(QueueId),
    /// The cluster version is already higher than the one asked for.
    #[error("the cluster version is already {0}")]
    ClusterVersion(u32),
    /// The entry's body is not one: its proposer was wrong. Refused as a whole, with one outcome.
    #[error("malformed entry")]
    Malformed,
}

/// Why a frame was not applied. The replica must stop; nothing of the frame was applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A newer version's entry: upgrade this replica.
    #[error("entry {id} is unknown to this version: {what}")]
    Unknown {
        /// Which entry.
        id: LogId,
        /// What is unknown in it.
        what: String,
    },
    /// The derived state can no longer be written.
    #[error("derived state: {0}")]
    Derived(String),
}

impl From<ApplyError> for io::Error {
    fn from(error: ApplyError) -> io::Error {
        io::Error::other(error)
    }
}

/// What a command of the broker's tables may see and change while it is applied.
pub struct Apply<'a> {
    _not_yet: &'a (),
}

impl Apply<'_> {
    /// The entry's index.
    pub fn index(&self) -> u64 {
        0
    }

    /// Group time at the entry.
    pub fn now(&self) -> Timestamp {
        Timestamp(0)
    }

    /// The version that every member has announced and the group has agreed on.
    pub fn cluster_version(&self) -> u32 {
        0
    }

    /// Sets a row. The key's first byte must be in `FIRST_TABLES_BYTE..=LAST_TABLES_BYTE`: asserted.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        let _ = (key, value);
    }

    /// Removes a row, if it is there.
    pub fn delete(&mut self, key: Vec<u8>) {
        let _ = key;
    }

    /// A topic id never given before.
    pub fn allocate_topic_id(&mut self) -> TopicId {
        TopicId(0)
    }

    /// A number never given before under this `allocator` (any byte of the broker's choice).
    pub fn allocate(&mut self, allocator: u8) -> u64 {
        u64::from(allocator)
    }

    /// Makes the queue, if it is not there, and opens it, if it was closed; its offsets go on where they were.
    pub fn ensure_queue(&mut self, queue: QueueId) {
        let _ = queue;
    }

    /// Refuses further records. Offsets and units stay.
    pub fn close_queue(&mut self, queue: QueueId) {
        let _ = queue;
    }

    /// First offset, and the one the next record gets.
    pub fn queue_bounds(&self, queue: QueueId) -> Option<(QueueOffset, QueueOffset)> {
        let _ = queue;
        None
    }
}

/// The owner of the working state.
pub struct Fold<T: Tables> {
    reader: Reader<T>,
}

impl<T: Tables> Fold<T> {
    /// Restores the state at `derived`'s N and starts the materializer. Frames from N + 1 on are applied next.
    ///
    /// `log` must have been opened with `derived.newest()` as its floor. `tables` is cleared first.
    pub async fn open(derived: Derived, log: Log, tables: T) -> Result<Fold<T>, OpenError> {
        let _ = (derived, log, tables);
        Err(OpenError::Io(io::ErrorKind::Unsupported.into()))
    }

    /// Last applied entry.
    pub fn applied(&self) -> Option<LogId> {
        self.reader.applied()
    }

    /// The last membership and its log id, in RAFT's own encoding; empty if there was none.
    pub fn membership(&self) -> (Option<LogId>, Bytes) {
        (None, Bytes::new())
    }

    /// Applies the next frame; its operations' outcomes are appended to `outcomes` (none for blank and membership).
    ///
    /// Awaits only when the materializer is too far behind. An error is final: stop the replica.
    pub async fn apply(&mut self, frame: &Frame, outcomes: &mut Vec<Outcome<T::Reply>>) -> Result<(), ApplyError> {
        let _ = (frame, outcomes);
        Err(ApplyError::Derived(String::new()))
    }

    /// A handle for reading, from any thread.
    pub fn reader(&self) -> Reader<T> {
        self.reader.clone()
    }

    /// Complete images on disk, oldest first.
    pub async fn images(&self) -> io::Result<Vec<Image>> {
        Ok(Vec::new())
    }

    /// The newest complete image.
    pub async fn newest_image(&self) -> io::Result<Option<Image>> {
        Ok(None)
    }

    /// Verifies an image received from a peer, makes it durable, and replaces all derived state by it: after a crash
    /// at any moment either the old state or the image is found. It must be newer than what is applied.
    ///
    /// The caller then restarts the log behind `Image::boundary`; at the next start [`Derived::newest`] says so again.
    pub async fn install_image(&mut self, image: Bytes) -> io::Result<Image> {
        let _ = image;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes the state durable up to what is applied now.
    pub async fn derived_sync(&self) -> io::Result<()> {
        Ok(())
    }

    /// A last derived sync, so that the next start replays nothing; then stops the materializer.
    pub async fn close(self) -> io::Result<()> {
        Ok(())
    }
}

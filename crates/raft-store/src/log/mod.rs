//! The CommitLog, which is the Raft log: frames in segment files, written by one ordered writer.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use env::Env;
use thiserror::Error;
use tokio::sync::watch;

use crate::position::{LogId, NodeId, PhysicalOffset};

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A stamp and operations.
    Entry = 1,
    /// A membership.
    Membership = 2,
    /// Nothing: a new leader's first entry.
    Blank = 3,
    /// The void at the end of a segment; never shown to readers.
    Padding = 4,
}

/// How the log is laid out and bounded.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Log bytes per segment file; fixed for the cluster.
    pub segment_bytes: u64,
    /// Segments are written with zeros ahead of the tail in pieces of this size.
    pub prepare_piece_bytes: u64,
    /// Newest frames kept in memory.
    pub tail_bytes: u64,
    /// Longest body of an entry.
    pub max_entry_bytes: u32,
    /// A writer with nothing to do for this long writes its mark.
    pub idle_mark_ms: u64,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            segment_bytes: 1 << 30,
            prepare_piece_bytes: 16 << 20,
            tail_bytes: 64 << 20,
            max_entry_bytes: 8 << 20,
            idle_mark_ms: 20,
        }
    }
}

/// An entry to append.
#[derive(Clone, Debug)]
pub struct AppendEntry {
    /// Its place: the index after the last one.
    pub id: LogId,
    /// Not [`Kind::Padding`].
    pub kind: Kind,
    /// What it says.
    pub body: Bytes,
    /// CRC32C of `body`.
    pub body_crc: u32,
    /// The leader's chain at this frame, if it came from one; compared with ours.
    pub carried_chain: Option<u64>,
}

/// A frame as read. Padding is never shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its place in the Raft log.
    pub id: LogId,
    /// What it holds.
    pub kind: Kind,
    /// Where its header lies.
    pub physical_offset: PhysicalOffset,
    /// What it says.
    pub body: Bytes,
    /// CRC32C of `body`.
    pub body_crc: u32,
    /// Rolling hash of the log up to and with this frame.
    pub chain: u64,
}

/// A Raft vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Term voted in.
    pub term: u64,
    /// Candidate voted for.
    pub node_id: Option<NodeId>,
    /// Whether a quorum granted it.
    pub committed: bool,
}

/// A place between two frames: where the next one goes, and the chain up to there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// End of the frame before.
    pub physical_offset: PhysicalOffset,
    /// Chain of the frame before; 0 at the beginning of the log.
    pub chain: u64,
}

/// An entry and the place behind it: where a log may begin after a purge or an installed image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// The last entry before the boundary.
    pub id: LogId,
    /// The place behind it.
    pub end: Cursor,
}

/// The end of the log as submitted (readable, perhaps not yet durable).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    /// Last entry, or the last purged one if the log is empty.
    pub last: Option<LogId>,
    /// Where the next frame goes.
    pub end: Cursor,
}

/// What is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Last durable entry.
    pub index: Option<u64>,
    /// End of the last durable frame.
    pub physical_end: PhysicalOffset,
    /// A write or sync failed: nothing more will become durable.
    pub poisoned: bool,
}

/// Why a log did not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Both copies of the hard state are gone: the vote is unknown, so this node may never start again under its id.
    /// Replace it (`replaceNode`).
    #[error("the hard state is lost ({reason}): this node may never start again under its id; replace it (replaceNode)")]
    HardStateLost {
        /// What was found.
        reason: String,
    },
    /// A frame that was durable is damaged or gone. Nothing was cut; fetch it from the peers.
    #[error("the log is corrupt at physical offset {physical_offset}: {reason}; nothing was changed; repair from peers")]
    Corrupt {
        /// Where.
        physical_offset: PhysicalOffset,
        /// What is wrong.
        reason: String,
    },
    /// The options do not fit the directory or each other.
    #[error("log options: {0}")]
    Options(String),
    /// The disk failed; trying again is allowed.
    #[error("opening the log: {0}")]
    Io(#[from] io::Error),
}

/// Why entries were not appended. Nothing of the call was.
#[derive(Debug, Error)]
pub enum AppendError {
    /// The leader's chain differs from ours: the logs have diverged. Stop this replica and repair it.
    #[error("the log has diverged at {id}: chain {ours:#018x}, the leader's {carried:#018x}")]
    Diverged {
        /// First entry that differs.
        id: LogId,
        /// What we computed.
        ours: u64,
        /// What was carried.
        carried: u64,
    },
    /// Longer than `max_entry_bytes`.
    #[error("entry {id} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Which.
        id: LogId,
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: u32,
    },
    /// Not the index after the last, or a term that goes back.
    #[error("entry {id} does not follow {last:?}")]
    NotNext {
        /// Which.
        id: LogId,
        /// The last entry.
        last: Option<LogId>,
    },
    /// An earlier write or sync failed, or the log was closed: this replica must stop.
    #[error("the log is stopped: {0}")]
    Stopped(String),
}

impl From<AppendError> for io::Error {
    fn from(error: AppendError) -> io::Error {
        io::Error::other(error)
    }
}

/// Runs once an append is durable, or has failed.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A handle on the log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    synced: watch::Receiver<Synced>,
}

fn unsupported<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Log {
    /// Recovers the log under `dir` (`commitlog/`, `hard-state/`), then starts writer and preparer on `env.executor`.
    ///
    /// `floor` is the highest log id known durable elsewhere (sled or an image): a tail recovered below it is
    /// corruption, not a torn tail.
    pub async fn open(
        _env: Env,
        _dir: PathBuf,
        _options: LogOptions,
        _floor: Option<LogId>,
    ) -> Result<Log, OpenError> {
        Ok(unsupported()?)
    }

    /// Returns as soon as the entries are readable by everyone; `done` runs after `fdatasync`, in order of the calls,
    /// exactly once, also if this fails.
    pub fn append(&self, _entries: Vec<AppendEntry>, done: Done) -> Result<Vec<PhysicalOffset>, AppendError> {
        done(unsupported());
        Err(AppendError::Stopped(String::new()))
    }

    /// Durable when it returns; ordered with appends.
    pub async fn save_vote(&self, _vote: Vote) -> io::Result<()> {
        unsupported()
    }

    /// The last saved vote.
    pub fn vote(&self) -> Option<Vote> {
        None
    }

    /// Drops every entry after `last_kept` (all for `None`); they never come back once this has returned.
    pub async fn truncate_after(&self, _last_kept: Option<u64>) -> io::Result<()> {
        unsupported()
    }

    /// Drops everything up to `upto`, an entry of this log; segments wholly below are unlinked.
    pub async fn purge(&self, _upto: LogId) -> io::Result<()> {
        unsupported()
    }

    /// After an image was installed: the log begins anew behind `boundary`. If the log holds that very entry this is
    /// [`Log::purge`]; else all frames are dropped.
    pub async fn restart_at(&self, _boundary: Boundary) -> io::Result<()> {
        unsupported()
    }

    /// Last entry; the last purged one if the log is empty.
    pub fn last(&self) -> Option<LogId> {
        None
    }

    /// Last purged entry.
    pub fn last_purged(&self) -> Option<LogId> {
        None
    }

    /// Last purged entry with the place behind it.
    pub fn purged_boundary(&self) -> Option<Boundary> {
        None
    }

    /// A prefix of the existing part of `range`: at least one frame if there is any, then up to `max_bytes` of bodies.
    pub async fn read(&self, _range: Range<u64>, _max_bytes: usize) -> io::Result<Vec<Frame>> {
        unsupported()
    }

    /// The id at `index` (also of the last purged entry); no disk is touched.
    pub fn id_at(&self, _index: u64) -> Option<LogId> {
        None
    }

    /// The first id of each term in `range`, and the first of the range; no disk is touched.
    pub fn first_of_terms(&self, _range: Range<u64>) -> Vec<LogId> {
        Vec::new()
    }

    /// The place just behind entry `index - 1`, before any padding.
    pub async fn chain_before(&self, _index: u64) -> io::Result<Cursor> {
        unsupported()
    }

    /// Bytes of the log inside one frame's body, verified. May block on the disk unless [`Log::in_memory`].
    pub fn record(&self, _at: PhysicalOffset, _size: u32) -> io::Result<Bytes> {
        unsupported()
    }

    /// Whether [`Log::record`] at this place touches no disk.
    pub fn in_memory(&self, _at: PhysicalOffset) -> bool {
        false
    }

    /// The end of the log.
    pub fn tip(&self) -> Tip {
        Tip { last: None, end: Cursor::default() }
    }

    /// Watches what is durable.
    pub fn synced(&self) -> watch::Receiver<Synced> {
        self.synced.clone()
    }

    /// Resolves when entry `index` is durable; an error if the log was poisoned first.
    pub async fn wait_synced(&self, _index: u64) -> io::Result<()> {
        unsupported()
    }

    /// Applied entries are never truncated: asserted.
    pub fn set_applied(&self, _index: u64) {}

    /// Drops what is only there to be fast: the memory tail as far as it is written, maps, caches.
    pub fn release_idle_memory(&self) {}

    /// Whether a write or sync has failed. Nothing is durable any more from here on; stop the replica.
    pub fn is_poisoned(&self) -> bool {
        false
    }

    /// Writes and syncs what is queued and the mark, then stops. Later calls fail.
    pub async fn close(&self) -> io::Result<()> {
        unsupported()
    }
}

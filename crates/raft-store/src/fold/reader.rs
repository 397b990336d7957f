//! Reading the folded state, from any thread, without entering apply.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLockReadGuard;
use tokio::sync::watch;

use crate::consume_queue::{Queue, Unit};
use crate::fold::Tables;
use crate::position::{LogId, PhysicalOffset, QueueId, QueueOffset, Timestamp};

/// How much waits to become visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingCounts {
    /// Scheduled rows.
    pub scheduled: u64,
    /// Half rows.
    pub half: u64,
    /// Record bytes of both.
    pub bytes: u64,
}

/// A view of the folded state. Cheap to clone.
pub struct Reader<T>(PhantomData<fn() -> T>);

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Reader<T> {
        Reader(PhantomData)
    }
}

impl<T: Tables> Reader<T> {
    /// Last applied entry.
    pub fn applied(&self) -> Option<LogId> {
        None
    }

    /// Watches the last applied entry.
    pub fn watch_applied(&self) -> watch::Receiver<Option<LogId>> {
        watch::channel(None).1
    }

    /// Resolves when entry `index` is applied; an error if the fold is gone.
    pub async fn wait_applied(&self, index: u64) -> io::Result<()> {
        let _ = index;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Watches the last entry whose effects are durable here.
    pub fn watch_durable(&self) -> watch::Receiver<Option<LogId>> {
        watch::channel(None).1
    }

    /// Group time at the last applied entry.
    pub fn now(&self) -> Timestamp {
        Timestamp(0)
    }

    /// The replicated cluster version.
    pub fn cluster_version(&self) -> u32 {
        0
    }

    /// The tables. Hold the guard briefly and never across an await: apply waits for it.
    pub fn tables(&self) -> RwLockReadGuard<'_, T> {
        unreachable!("signatures only")
    }

    /// A queue, if it was ever written or made.
    pub fn queue(&self, id: QueueId) -> Option<Arc<Queue>> {
        let _ = id;
        None
    }

    /// When the first scheduled row falls due.
    pub fn next_due(&self) -> Option<Timestamp> {
        None
    }

    /// Pending rows.
    pub fn pending(&self) -> PendingCounts {
        PendingCounts::default()
    }

    /// Everything below is trimmed.
    pub fn min_physical(&self) -> PhysicalOffset {
        PhysicalOffset(0)
    }

    /// A record's bytes, verified; off this runtime if they are not in memory.
    pub async fn record(&self, at: PhysicalOffset, size: u32) -> io::Result<Bytes> {
        let _ = (at, size);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The unit that shows the record at `at` in `queue`; `stamp` is its store time. `None` if it is not (yet) visible.
    pub async fn unit_of(
        &self,
        at: PhysicalOffset,
        queue: QueueId,
        stamp: Timestamp,
    ) -> io::Result<Option<(QueueOffset, Unit)>> {
        let _ = (at, queue, stamp);
        Ok(None)
    }
}

//! Reading the folded state, from any thread, without entering apply.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::watch;

use super::shared::Shared;
use super::{Lateness, Tables};
use crate::consume_queue::{Queue, Unit, UnitsError};
use crate::entry::{OperationView, decode_entry};
use crate::log::Kind;
use crate::log::frame::HEADER_BYTES;
use crate::materializer::DerivedStats;
use crate::position::{LogId, PhysicalOffset, QueueId, QueueOffset, Timestamp};
use crate::state_hash::StateHashes;

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

/// A record that waits for its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledRecord {
    /// Where it lies now.
    pub place: PhysicalOffset,
    /// Its length in bytes.
    pub size: u32,
    /// When it becomes visible.
    pub due: Timestamp,
}

/// Where the record of a pending row lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingPlace {
    /// The row: where the record was stored first.
    pub key: PhysicalOffset,
    /// Where it lies now.
    pub place: PhysicalOffset,
    /// Its length in bytes.
    pub size: u32,
}

/// A record that waits to become visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingRecord {
    /// The row: where the record was stored first.
    pub key: PhysicalOffset,
    /// Where it lies now.
    pub place: PhysicalOffset,
    /// Its length in bytes.
    pub size: u32,
    /// Where it goes.
    pub queue: QueueId,
    /// It waits for the end of its transaction, not for its time.
    pub is_half: bool,
}

/// How far the question has got, how the transaction of a half record has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HalfState {
    /// Nobody was asked yet.
    Unasked,
    /// Somebody was, or will be: it was discarded and resumed.
    Asked,
    /// Nobody is asked any more.
    Discarded,
}

/// A half record that waits for the end of its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfRecord {
    /// Its name until it ends: where it was stored first.
    pub key: PhysicalOffset,
    /// Where it lies now.
    pub place: PhysicalOffset,
    /// Its length in bytes.
    pub size: u32,
    /// Where it goes if it is committed.
    pub queue: QueueId,
    /// Group time at which it was stored.
    pub stored_at: Timestamp,
    /// How far the question has got,
    pub state: HalfState,
    /// and since when: stored, asked last, resumed or discarded.
    pub since: Timestamp,
    /// How often a producer was asked.
    pub asked: u32,
}

/// A `Checkpoint` that was applied: a place that the log may be trimmed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointPoint {
    /// Its entry.
    pub id: LogId,
    /// The place behind it.
    pub end: PhysicalOffset,
    /// Group time at it: everything before is at least as old.
    pub stamp: Timestamp,
}

/// A view of the folded state. Cheap to clone.
#[derive(Debug)]
pub struct Reader<T> {
    shared: Arc<Shared>,
    tables: Arc<RwLock<T>>,
}

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Reader<T> {
        Reader { shared: self.shared.clone(), tables: self.tables.clone() }
    }
}

impl<T: Tables> Reader<T> {
    pub(crate) fn new(shared: Arc<Shared>, tables: Arc<RwLock<T>>) -> Reader<T> {
        Reader { shared, tables }
    }

    /// Last applied entry.
    pub fn applied(&self) -> Option<LogId> {
        *self.shared.applied.borrow()
    }

    /// Watches the last applied entry.
    pub fn watch_applied(&self) -> watch::Receiver<Option<LogId>> {
        self.shared.applied.subscribe()
    }

    /// Tells when the first scheduled record falls due earlier than the first one did before, whoever has scheduled it.
    pub fn watch_next_due(&self) -> watch::Receiver<Option<Timestamp>> {
        self.shared.next_due.subscribe()
    }

    /// Resolves when entry `index` is applied; an error once the derived state has failed, for then it may never be.
    pub async fn wait_applied(&self, index: u64) -> io::Result<()> {
        let (mut applied, mut failure) = (self.shared.applied.subscribe(), self.shared.failure.subscribe());
        tokio::select! {
            biased;
            _ = applied.wait_for(|applied| applied.is_some_and(|applied| applied.index >= index)) => Ok(()),
            failure = failure.wait_for(Option::is_some) => {
                let reason = failure.ok().and_then(|failure| failure.clone()).unwrap_or_default();
                Err(io::Error::other(reason))
            }
        }
    }

    /// Watches the last entry whose effects are durable here.
    pub fn watch_durable(&self) -> watch::Receiver<Option<LogId>> {
        self.shared.durable.subscribe()
    }

    /// Watches why the derived state can no longer be written: `Some` once that is so, and the replica must stop.
    pub fn watch_failure(&self) -> watch::Receiver<Option<String>> {
        self.shared.failure.subscribe()
    }

    /// Watches what was found damaged among the derived files: `Some` once that is so and noted, and the replica must
    /// stop; its next start rebuilds them.
    pub fn watch_damage(&self) -> watch::Receiver<Option<String>> {
        self.shared.files.damage.found()
    }

    /// What the derived syncs did, for metrics.
    pub fn derived_stats(&self) -> DerivedStats {
        let waiting_bytes = self.shared.handoff.lock().weight_bytes() as u64;
        DerivedStats { waiting_bytes, ..*self.shared.stats.lock() }
    }

    /// Group time at the last applied entry.
    pub fn now(&self) -> Timestamp {
        self.shared.published().now
    }

    /// The replicated cluster version.
    pub fn cluster_version(&self) -> u32 {
        self.shared.published().cluster_version
    }

    /// The tables. Hold the guard briefly and never across an await: apply waits for it.
    pub fn tables(&self) -> RwLockReadGuard<'_, T> {
        self.tables.read()
    }

    /// A queue, if it was ever written or made.
    pub fn queue(&self, id: QueueId) -> Option<Arc<Queue>> {
        self.shared.queues.read().get(&id).cloned()
    }

    /// Every queue.
    pub(crate) fn queues(&self) -> Vec<Arc<Queue>> {
        self.shared.queues.read().values().cloned().collect()
    }

    /// When the first scheduled row falls due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.shared.published().next_due
    }

    /// Pending rows.
    pub fn pending(&self) -> PendingCounts {
        self.shared.published().pending
    }

    /// Up to `limit` pending rows whose records lie below `end`, those that lie first first.
    pub fn pending_below(&self, end: PhysicalOffset, limit: usize) -> Vec<PendingPlace> {
        self.shared.pending.lock().below(end, limit)
    }

    /// The records that wait with this hash as their first one, those that were stored first first.
    pub fn waiting_with_hash(&self, hash: u64) -> Vec<WaitingRecord> {
        self.shared.pending.lock().with_hash(hash)
    }

    /// Whether no message with a key of this hash became visible at `from` or later. Costs nothing; false if it takes a look
    /// at [`Reader::units_by_key`] to know.
    pub fn is_new_key(&self, hash: u64, from: Timestamp) -> bool {
        self.shared.keys.is_new(hash, from)
    }

    /// Makes the mistake [`crate::planted::Bug::KeysOfOtherTermsForgotten`].
    pub(crate) fn forget_recent_keys(&self) {
        self.shared.keys.forget_recent();
    }

    /// The scheduled record that was first stored at `key`, unless it has fired or was recalled.
    pub fn scheduled(&self, key: PhysicalOffset) -> Option<ScheduledRecord> {
        self.shared.pending.lock().scheduled(key)
    }

    /// How late scheduled records became visible, of those that were applied here since the start.
    pub fn lateness(&self) -> Lateness {
        *self.shared.lateness.lock()
    }

    /// The half record that was first stored at `key`, unless it has ended.
    pub fn half(&self, key: PhysicalOffset) -> Option<HalfRecord> {
        self.shared.pending.lock().half(key)
    }

    /// Up to `limit` half records in `state`, those first that are in it longest, behind `after`: one's `since` and `key`.
    pub fn halves(
        &self,
        state: HalfState,
        after: Option<(Timestamp, PhysicalOffset)>,
        limit: usize,
    ) -> Vec<HalfRecord> {
        self.shared.pending.lock().halves(state, after, limit)
    }

    /// The checkpoints that the log may be trimmed to, oldest first; the one it was trimmed to is among them.
    pub fn checkpoints(&self) -> Vec<CheckpointPoint> {
        self.shared.checkpoints.lock().clone()
    }

    /// The hashes of the images here, and what the group found at its checkpoints.
    pub fn state_hashes(&self) -> StateHashes {
        self.shared.state_hashes.borrow().clone()
    }

    /// Watches the same.
    pub fn watch_state_hashes(&self) -> watch::Receiver<StateHashes> {
        self.shared.state_hashes.subscribe()
    }

    /// Everything below is trimmed.
    pub fn min_physical(&self) -> PhysicalOffset {
        self.shared.published().min_physical
    }

    /// Watches the same.
    pub fn watch_trimmed(&self) -> watch::Receiver<PhysicalOffset> {
        self.shared.trimmed.subscribe()
    }

    /// Whether [`Reader::record`] at this place touches no disk.
    pub fn record_in_memory(&self, at: PhysicalOffset) -> bool {
        self.shared.log.in_memory(at)
    }

    /// A record's bytes, verified; off this runtime if they are not in memory.
    pub async fn record(&self, at: PhysicalOffset, size: u32) -> io::Result<Bytes> {
        let log = &self.shared.log;
        if log.in_memory(at) {
            return log.record(at, size);
        }
        let log = log.clone();
        self.shared.env.executor.blocking(move || log.record(at, size)).await
    }

    /// Whether an applied record of `size` bytes begins at `at`: by what the entry that holds the place says, not by what
    /// the bytes there look like. Finds the entry by halving the log; a unit that points there is cheaper evidence.
    pub async fn is_record(&self, at: PhysicalOffset, size: u32) -> io::Result<bool> {
        let log = &self.shared.log;
        let Some(applied) = self.applied() else { return Ok(false) };
        let (mut holds, mut behind) = (log.last_purged().map_or(0, |purged| purged.index + 1), applied.index + 1);
        if holds >= behind
            || at < log.chain_before(holds).await?.physical_offset
            || at >= log.chain_before(behind).await?.physical_offset
        {
            return Ok(false);
        }
        while behind - holds > 1 {
            let middle = holds + (behind - holds) / 2;
            match log.chain_before(middle).await?.physical_offset <= at {
                true => holds = middle,
                false => behind = middle,
            }
        }
        let frames = log.read(holds..behind, 1).await?;
        let Some(frame) = frames.first().filter(|frame| frame.kind == Kind::Entry) else { return Ok(false) };
        let Some(position) = at.0.checked_sub(frame.physical_offset.0 + HEADER_BYTES) else { return Ok(false) };
        // An entry that could not be applied holds no records.
        let Ok(entry) = decode_entry(&frame.body) else { return Ok(false) };
        let begins_here = |operation| match operation {
            OperationView::Record(record) => u64::from(record.position) == position && record.size == size,
            OperationView::Roll(roll) => u64::from(roll.position) == position && roll.size == size,
            OperationView::Core(_) | OperationView::Tables(_) => false,
        };
        Ok(entry.operations().any(begins_here))
    }

    /// The units of messages with a key of this hash that became visible at these times, newest first, at most `limit`.
    /// Other keys may have the same hash.
    pub async fn units_by_key(
        &self,
        hash: u64,
        times: RangeInclusive<Timestamp>,
        limit: usize,
    ) -> io::Result<Vec<(QueueId, QueueOffset, Unit)>> {
        let mut units = Vec::new();
        for row in self.shared.keys.find(hash, times, limit).await?.into_iter().rev() {
            let Some(queue) = self.queue(row.queue) else { continue };
            match queue.read_units(row.queue_offset, 1).await?.first() {
                Some(unit) if unit.physical_offset == row.physical_offset => {
                    units.push((row.queue, row.queue_offset, *unit));
                }
                // Below what exists here.
                None => {}
                Some(_) => return Err(self.points_elsewhere(row.queue, row.queue_offset).await),
            }
        }
        Ok(units)
    }

    async fn points_elsewhere(&self, queue: QueueId, queue_offset: QueueOffset) -> io::Error {
        self.shared.files.damage.note("an index row points at another record's unit").await;
        UnitsError::Damaged { queue, queue_offset }.into()
    }

    /// The unit that shows the record at `at` in `queue`; `stamp` is its store time. `None` if it is not (yet) visible.
    pub async fn unit_of(
        &self,
        at: PhysicalOffset,
        queue: QueueId,
        stamp: Timestamp,
    ) -> io::Result<Option<(QueueOffset, Unit)>> {
        let Some(queue) = self.queue(queue) else { return Ok(None) };
        if let Some(found) = queue.find_at_time(stamp, at).await? {
            return Ok(Some(found));
        }
        for row in self.shared.index.find(at).await? {
            if row.queue != queue.id() {
                continue;
            }
            match queue.read_units(row.queue_offset, 1).await?.first() {
                Some(unit) if unit.physical_offset == at => return Ok(Some((row.queue_offset, *unit))),
                // Below what exists here.
                None => {}
                Some(_) => return Err(self.points_elsewhere(queue.id(), row.queue_offset).await),
            }
        }
        Ok(None)
    }
}

//! Apply: the state that entries make, folded one frame at a time, the same on every replica.
//!
//! - Total and deterministic: a kind of entry, operation or command that this version does not know stops the replica
//!   before anything of it is applied; whatever else an entry says has an outcome, if only a typed refusal.
//! - Reads the descriptor table of an entry, never a record.
//! - Works in memory. What changed goes to the [`crate::materializer`], merged by key; nothing here waits for a disk,
//!   except that a full merged set makes [`Fold::apply`] await the derived sync.
//!
//! One owner: [`Fold`] applies; everybody else reads through [`Reader`].

pub(crate) mod changes;
mod clock;
pub(crate) mod core;
mod lateness;
mod pending;
mod reader;
pub(crate) mod rows;
pub(crate) mod shared;
mod tables;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use self::changes::Changes;
pub use self::core::CHECKPOINTS_KEPT;
use self::core::Core;
pub use self::lateness::Lateness;
pub use self::reader::{
    CheckpointPoint, HalfRecord, HalfState, PendingCounts, PendingPlace, Reader, ScheduledRecord, WaitingRecord,
};
use self::shared::Shared;
pub use self::tables::{FIRST_TABLES_BYTE, LAST_TABLES_BYTE, RowError, Tables};
use crate::entry::{CoreCommand, EntryError, EntryView, OperationView, decode_entry};
use crate::image::Image;
use crate::log::{Boundary, Cursor, Frame, Kind, Log};
use crate::materializer::{Derived, Materializer, OpenError};
use crate::position::{LogId, PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};
use crate::state_hash::Verdict;

/// The newest cluster version that this program knows, and the one a new cluster begins with.
pub const CLUSTER_VERSION: u32 = 1;

/// Frames begin at multiples of this; a frame's body begins as far behind its own beginning.
const FRAME_HEAD_BYTES: u64 = 64;

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
    /// `Roll`.
    Rolled {
        /// The row was still there: its record lies in this entry now.
        moved: bool,
    },
    /// `Trim`.
    Trimmed {
        /// Everything below is gone; as before if nothing more could go.
        min_physical: PhysicalOffset,
    },
    /// `StateHash`: what holds for the checkpoint now; `None` if there is no such checkpoint, or nothing is decided.
    StateHash(Option<Verdict>),
    /// `RaiseClusterVersion`: the version that holds now.
    ClusterVersion(u32),
    /// `EndTransaction`: the record is in its queue.
    Committed {
        /// Its place there; `None` if the queue was closed meanwhile: the record has ended unseen.
        queue_offset: Option<QueueOffset>,
        /// Its place in the CommitLog, which is its address from now on.
        physical_offset: PhysicalOffset,
    },
    /// `EndTransaction`: nobody will ever see it.
    RolledBack,
    /// `CheckTransaction`: how often producers were asked by now.
    Checked {
        /// Since it was stored or resumed.
        times: u32,
    },
    /// `Recall`: nobody will ever see it.
    Recalled,
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
    /// No half record waits under this offset, or not in a state that this is a step from.
    #[error("no transaction waits at {0}: it has ended, or there never was one")]
    NoTransaction(PhysicalOffset),
    /// No scheduled record waits under this offset.
    #[error("nothing is scheduled at {0}: it has fired, was recalled, or there never was one")]
    NotScheduled(PhysicalOffset),
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
    id: LogId,
    core: &'a mut Core,
    changes: &'a mut Changes,
}

impl Apply<'_> {
    /// The entry's index.
    pub fn index(&self) -> u64 {
        self.id.index
    }

    /// Group time at the entry.
    pub fn now(&self) -> Timestamp {
        self.core.now()
    }

    /// The version that every member has announced and the group has agreed on.
    pub fn cluster_version(&self) -> u32 {
        self.core.cluster_version
    }

    /// Sets a row. The key's first byte must be in `FIRST_TABLES_BYTE..=LAST_TABLES_BYTE`: asserted.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        check_tables_key(&key);
        self.changes.row(key, Some(value));
    }

    /// Removes a row, if it is there.
    pub fn delete(&mut self, key: Vec<u8>) {
        check_tables_key(&key);
        self.changes.row(key, None);
    }

    /// A topic id never given before.
    pub fn allocate_topic_id(&mut self) -> TopicId {
        let number = self.core.allocate(rows::allocator_key(None), self.changes);
        TopicId(u32::try_from(number).expect("fewer than 2^32 topics were ever made"))
    }

    /// A number never given before under this `allocator` (any byte of the broker's choice); the first is 0.
    pub fn allocate(&mut self, allocator: u8) -> u64 {
        self.core.allocate(rows::allocator_key(Some(allocator)), self.changes)
    }

    /// Makes the queue, if it is not there, and opens it, if it was closed; its offsets go on where they were.
    ///
    /// A record to a queue that was never made makes it too; this is for queues that must be seen empty.
    pub fn ensure_queue(&mut self, queue: QueueId) {
        self.core.set_queue_closed(queue, false, self.changes);
    }

    /// Refuses further records. Offsets and units stay.
    pub fn close_queue(&mut self, queue: QueueId) {
        self.core.set_queue_closed(queue, true, self.changes);
    }

    /// First offset, and the one the next record gets.
    pub fn queue_bounds(&self, queue: QueueId) -> Option<(QueueOffset, QueueOffset)> {
        self.core.queue_bounds(queue)
    }
}

fn check_tables_key(key: &[u8]) {
    let table = key.first().copied().unwrap_or_default();
    assert!((FIRST_TABLES_BYTE..=LAST_TABLES_BYTE).contains(&table), "key {key:?} is not the tables'");
}

/// The owner of the working state.
pub struct Fold<T: Tables> {
    core: Core,
    tables: Arc<RwLock<T>>,
    shared: Arc<Shared>,
    materializer: Materializer,
}

impl<T: Tables> Fold<T> {
    /// Restores the state at `derived`'s N, or what the log allows if files are damaged, and starts the materializer.
    /// Frames behind [`Fold::applied`] are applied next.
    ///
    /// `log` must have been opened with [`Derived::log_floor`]. If an image was installed and the process ended before
    /// the log was restarted behind it, that is done here. `tables` is cleared first.
    pub async fn open(derived: Derived, log: Log, mut tables: T) -> Result<Fold<T>, OpenError> {
        tables.clear();
        let env = derived.env().clone();
        let settled = env.executor.run("derived-open", async move {
            let settled = derived.settle(&log, &mut tables).await;
            settled.map(|settled| (settled, log, tables))
        });
        let (settled, log, tables) = settled.ended().await.ok_or_else(OpenError::interrupted)??;
        let (shared, core, materializer) = settled.start(log);
        Ok(Fold { core, tables: Arc::new(RwLock::new(tables)), shared, materializer })
    }

    /// Last applied entry.
    pub fn applied(&self) -> Option<LogId> {
        self.core.applied.map(|applied| applied.id)
    }

    /// The last membership and its log id, in RAFT's own encoding; empty if there was none.
    pub fn membership(&self) -> (Option<LogId>, Bytes) {
        self.core.membership.clone().map_or((None, Bytes::new()), |(id, bytes)| (Some(id), bytes))
    }

    /// Applies the next frame; its operations' outcomes are appended to `outcomes` (none for blank and membership).
    ///
    /// Awaits only when the materializer is too far behind. An error is final: stop the replica.
    pub async fn apply(&mut self, frame: &Frame, outcomes: &mut Vec<Outcome<T::Reply>>) -> Result<(), ApplyError> {
        self.check_next(frame);
        let entry = match frame.kind {
            Kind::Entry => match decode_entry(&frame.body) {
                Ok(view) => Some(Ok(view)),
                Err(EntryError::Malformed(what)) => {
                    tracing::error!("entry {} is malformed and refused as a whole: {what}", frame.id);
                    Some(Err(Refusal::Malformed))
                }
                Err(EntryError::Unknown(what)) => return Err(ApplyError::Unknown { id: frame.id, what }),
            },
            Kind::Membership | Kind::Blank => None,
            Kind::Padding => panic!("padding is never read from the log"),
        };
        if let Some(Ok(view)) = &entry {
            self.check_known(frame.id, view)?;
        }
        self.wait_for_room().await?;

        let began_at = self.core.applied.map_or(PhysicalOffset(0), |applied| applied.end.physical_offset);
        let boundary = Boundary { id: frame.id, end: end_of(frame) };
        let shared = self.shared.clone();
        let mut handoff = shared.handoff.lock();
        let changes = &mut handoff.accumulating;
        let mut checkpoint = false;
        match entry {
            Some(Ok(view)) => {
                checkpoint = self.apply_entry(frame, &view, changes, outcomes);
                if checkpoint {
                    self.core.checkpoint(boundary, changes);
                }
            }
            Some(Err(refusal)) => outcomes.push(Outcome::Refused(refusal)),
            None if frame.kind == Kind::Membership => {
                self.core.set_membership(frame.id, frame.body.clone(), changes);
            }
            None => {}
        }
        changes.ends_at(boundary, began_at.0);
        if checkpoint {
            handoff.seal();
        }
        let options = &shared.options;
        let due = checkpoint
            || handoff.accumulating.log_bytes() >= options.sync_log_bytes
            || handoff.accumulating.weight_bytes() >= options.sync_changed_bytes;
        // Before the materializer can take the set: what is durable is never ahead of what is applied.
        self.core.applied(boundary);
        drop(handoff);
        if due {
            shared.wake.notify_one();
        }
        Ok(())
    }

    /// Frames come in order and without a gap. Positions, not content: asserted.
    fn check_next(&self, frame: &Frame) {
        match self.core.applied {
            None => assert_eq!(frame.id.index, 0, "the first entry is number 0"),
            Some(applied) => {
                assert_eq!(frame.id.index, applied.id.index + 1, "{} behind {}", frame.id, applied.id);
                assert!(frame.id.term >= applied.id.term, "{} behind {}", frame.id, applied.id);
                assert!(frame.physical_offset >= applied.end.physical_offset, "{} overlaps {}", frame.id, applied.id);
            }
        }
    }

    /// Everything in the entry is known to this version, so that all of it can be applied.
    fn check_known(&self, id: LogId, view: &EntryView) -> Result<(), ApplyError> {
        if !view.has_commands() {
            return Ok(());
        }
        let tables = self.tables.read();
        for operation in view.operations() {
            match operation {
                OperationView::Core(CoreCommand::RaiseClusterVersion { version }) if *version > CLUSTER_VERSION => {
                    return Err(ApplyError::Unknown { id, what: format!("cluster version {version}") });
                }
                OperationView::Tables(command) if !tables.knows(command) => {
                    let kind = command.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>();
                    return Err(ApplyError::Unknown { id, what: format!("tables command {kind}") });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The merged set is bounded: when it is full, waits until the materializer has taken it.
    async fn wait_for_room(&self) -> Result<(), ApplyError> {
        /// Checkpoints that may wait for their images.
        const SEALED: usize = 2;
        loop {
            let taken = self.shared.taken.notified();
            tokio::pin!(taken);
            taken.as_mut().enable();
            {
                let handoff = self.shared.handoff.lock();
                if let Some(failure) = &handoff.failure {
                    return Err(ApplyError::Derived(failure.clone()));
                }
                let full = handoff.weight_bytes() >= self.shared.options.sync_changed_bytes.saturating_mul(2);
                if !full && handoff.sealed.len() < SEALED {
                    return Ok(());
                }
            }
            self.shared.wake.notify_one();
            taken.await;
        }
    }

    /// Applies all operations of an entry. Gives whether an image is to be cut behind it.
    fn apply_entry(
        &mut self,
        frame: &Frame,
        view: &EntryView,
        changes: &mut Changes,
        outcomes: &mut Vec<Outcome<T::Reply>>,
    ) -> bool {
        let gap_ms = self.core.advance_time(view.stamp(), changes);
        let body_at = frame.physical_offset.0 + FRAME_HEAD_BYTES;
        // Entries of records only, which are nearly all, never wait for a reader of the tables.
        let mut tables = view.needs_tables().then(|| self.tables.write());
        let mut checkpoint = false;
        outcomes.reserve(view.operation_count());
        for operation in view.operations() {
            let outcome = match operation {
                OperationView::Record(record) => {
                    let at = PhysicalOffset(body_at + u64::from(record.position));
                    self.core.record(&record, at, changes)
                }
                OperationView::Roll(roll) => {
                    let at = PhysicalOffset(body_at + u64::from(roll.position));
                    Outcome::Core(self.core.roll(roll, at, changes))
                }
                OperationView::Core(command) => {
                    if *command == CoreCommand::Lead {
                        let tables = tables.as_mut().expect("locked: the entry has a command for them");
                        let now = self.core.now();
                        let mut at = Apply { id: frame.id, core: &mut self.core, changes };
                        tables.lead(now, gap_ms, &mut at);
                    }
                    checkpoint |= *command == CoreCommand::Checkpoint;
                    self.core.command(command, gap_ms, changes)
                }
                OperationView::Tables(command) => {
                    let tables = tables.as_mut().expect("locked: the entry has a command for them");
                    let mut at = Apply { id: frame.id, core: &mut self.core, changes };
                    Outcome::Tables(tables.apply(command, &mut at))
                }
            };
            outcomes.push(outcome);
        }
        checkpoint
    }

    /// A handle for reading, from any thread.
    pub fn reader(&self) -> Reader<T> {
        Reader::new(self.shared.clone(), self.tables.clone())
    }

    /// Complete images on disk, oldest first.
    pub async fn images(&self) -> io::Result<Vec<Image>> {
        self.materializer.images().await
    }

    /// The newest complete image.
    pub async fn newest_image(&self) -> io::Result<Option<Image>> {
        Ok(self.materializer.images().await?.pop())
    }

    /// Verifies an image received from a peer, makes it durable, and replaces all derived state by it: after a crash
    /// at any moment either the old state or the image is found. It must be newer than what is applied.
    ///
    /// The caller then restarts the log behind `Image::boundary`; if the process ends before, [`Fold::open`] does it.
    /// An error after the image has its name is final: stop the replica.
    pub async fn install_image(&mut self, image: Bytes) -> io::Result<Image> {
        let received = self.materializer.receive_image(image, self.core.applied).await?;
        let replaced = self
            .core
            .replaced_queues(&received.core)
            .map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))?;
        let image = self.materializer.install(received.image, replaced).await?;
        let at_bound: std::collections::BTreeMap<QueueId, QueueOffset> =
            received.core.queues.iter().map(|(id, row)| (*id, row.next)).collect();
        {
            let mut tables = self.tables.write();
            tables.clear();
            for (key, value) in &received.tables {
                tables.restore(key, value).map_err(io::Error::other)?;
            }
        }
        self.core = Core::restored(self.shared.clone(), received.core, Some(image.boundary), |id| at_bound[&id]);
        for queue in self.shared.queues.read().values() {
            queue.wake();
        }
        Ok(image)
    }

    /// Makes the state durable up to what is applied now.
    pub async fn derived_sync(&self) -> io::Result<()> {
        self.materializer.sync().await
    }

    /// A last derived sync, so that the next start replays nothing; then stops the materializer.
    pub async fn close(self) -> io::Result<()> {
        self.materializer.close().await
    }

    /// Ends as a killed process would. Resolves when nothing of it runs.
    pub async fn kill(self) {
        self.materializer.kill().await;
    }
}

/// The place behind a frame.
fn end_of(frame: &Frame) -> Cursor {
    let end = frame.physical_offset.0 + FRAME_HEAD_BYTES + frame.body.len() as u64;
    Cursor { physical_offset: PhysicalOffset(end.next_multiple_of(FRAME_HEAD_BYTES)), chain: frame.chain }
}

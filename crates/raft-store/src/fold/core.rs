//! The folded state that is this crate's own: queues, pending rows, group time, allocators. Pure but for the queues'
//! memory, which readers share.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::changes::Changes;
use super::clock::GroupTime;
use super::pending::Pending;
use super::reader::CheckpointPoint;
use super::rows::{self, CheckpointRow, GroupRow, MembershipRow, PendingKind, PendingRow, QueueRow};
use super::shared::Shared;
use super::tables::RowError;
use super::{CLUSTER_VERSION, CoreReply, Outcome, Refusal};
use crate::codec::{self, Decode};
use crate::consume_queue::{Queue, Restored, Unit, UnitKind};
use crate::entry::{CoreCommand, RecordView, RollView, TransactionCheck, Visibility};
use crate::index::{IndexRow, KeyRow};
use crate::log::Boundary;
use crate::planted::{self, Bug};
use crate::position::{LogId, NodeId, PhysicalOffset, QueueId, QueueOffset, Timestamp};
use crate::state_hash;

/// Checkpoints that the log may be trimmed to, each with its image on disk; beside them there may be the one that the log
/// begins with.
pub const CHECKPOINTS_KEPT: usize = 16;

/// The working tables of this crate, owned by apply.
pub(crate) struct Core {
    shared: Arc<Shared>,
    /// The last applied entry and the place behind it.
    pub applied: Option<Boundary>,
    time: GroupTime,
    pub cluster_version: u32,
    min_physical: PhysicalOffset,
    pub membership: Option<(LogId, Bytes)>,
    allocators: BTreeMap<Vec<u8>, u64>,
    queues: BTreeMap<QueueId, WorkingQueue>,
    segment_clocks: BTreeMap<u64, Timestamp>,
    /// Places that the log may be trimmed to, by index. At most [`CHECKPOINTS_KEPT`].
    checkpoints: BTreeMap<u64, CheckpointRow>,
    /// Queues that grew by the entry being applied; their readers are woken when it is done.
    grown: Vec<Arc<Queue>>,
}

struct WorkingQueue {
    row: QueueRow,
    queue: Arc<Queue>,
}

/// This crate's rows as a start or an image finds them.
#[derive(Debug, Default)]
pub(crate) struct CoreRows {
    group: Option<GroupRow>,
    membership: Option<MembershipRow>,
    allocators: BTreeMap<Vec<u8>, u64>,
    pub queues: BTreeMap<QueueId, QueueRow>,
    pending: Pending,
    segment_clocks: BTreeMap<u64, Timestamp>,
    checkpoints: BTreeMap<u64, CheckpointRow>,
}

impl CoreRows {
    /// Takes back one row.
    pub fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        let bad_key = || RowError::new(key, "unknown key");
        match *key.first().ok_or_else(bad_key)? {
            rows::GROUP => self.group = Some(decoded(key, value)?),
            rows::MEMBERSHIP => self.membership = Some(decoded(key, value)?),
            rows::ALLOCATOR => {
                self.allocators.insert(key.to_vec(), decoded(key, value)?);
            }
            rows::QUEUE => {
                self.queues.insert(rows::queue_of_key(key).ok_or_else(bad_key)?, decoded(key, value)?);
            }
            rows::PENDING => {
                let at = PhysicalOffset(rows::number_of_key(key).ok_or_else(bad_key)?);
                self.pending.insert(at, decoded(key, value)?);
            }
            rows::CHECKPOINT => {
                let index = rows::number_of_key(key).ok_or_else(bad_key)?;
                self.checkpoints.insert(index, decoded(key, value)?);
            }
            rows::SEGMENT_CLOCK => {
                let segment = rows::number_of_key(key).ok_or_else(bad_key)?;
                self.segment_clocks.insert(segment, decoded(key, value)?);
            }
            _ => return Err(bad_key()),
        }
        Ok(())
    }

    /// The version that the rows were written at.
    pub fn cluster_version(&self) -> u32 {
        self.group.map_or(CLUSTER_VERSION, |group| group.cluster_version)
    }
}

fn decoded<V: Decode<()>>(key: &[u8], value: &[u8]) -> Result<V, RowError> {
    codec::from_bytes(value).map_err(|error| RowError::new(key, error))
}

impl Core {
    /// The state of `rows` at `applied`. Queues that readers already hold keep their identity; new ones are made with
    /// `floor`, their first offset that exists here.
    pub fn restored(
        shared: Arc<Shared>,
        rows: CoreRows,
        applied: Option<Boundary>,
        floor: impl Fn(QueueId) -> QueueOffset,
    ) -> Core {
        let mut queues = BTreeMap::new();
        {
            let mut known = shared.queues.write();
            for (id, row) in rows.queues {
                let restored =
                    Restored { min: row.min.max(floor(id)), next: row.next, last_visible_at: row.last_visible_at };
                let make = || Arc::new(Queue::new(id, shared.files.clone(), restored));
                let queue = known.entry(id).or_insert_with(make).clone();
                queues.insert(id, WorkingQueue { row, queue });
            }
        }
        let group = rows.group.unwrap_or(GroupRow {
            cluster_version: CLUSTER_VERSION,
            last_time: Timestamp(0),
            min_physical: PhysicalOffset(0),
        });
        *shared.pending.lock() = rows.pending;
        let core = Core {
            shared,
            applied,
            time: GroupTime::restored(group.last_time),
            cluster_version: group.cluster_version,
            min_physical: group.min_physical,
            membership: rows.membership.map(|row| (row.id, Bytes::from(row.bytes))),
            allocators: rows.allocators,
            queues,
            segment_clocks: rows.segment_clocks,
            checkpoints: rows.checkpoints,
            grown: Vec::new(),
        };
        core.publish_checkpoints();
        core.publish();
        core
    }

    pub fn now(&self) -> Timestamp {
        self.time.last()
    }

    /// Moves group time to an entry's stamp; gives the time since the entry before.
    pub fn advance_time(&mut self, stamp: Timestamp, changes: &mut Changes) -> i64 {
        let gap_ms = self.time.advance(stamp);
        changes.group(self.group_row());
        gap_ms
    }

    fn group_row(&self) -> GroupRow {
        GroupRow { cluster_version: self.cluster_version, last_time: self.time.last(), min_physical: self.min_physical }
    }

    pub fn set_membership(&mut self, id: LogId, bytes: Bytes, changes: &mut Changes) {
        let row = MembershipRow { id, bytes: bytes.to_vec() };
        changes.row(vec![rows::MEMBERSHIP], Some(codec::to_bytes(&row)));
        self.membership = Some((id, bytes));
    }

    /// A number never given before under this key.
    pub fn allocate(&mut self, key: Vec<u8>, changes: &mut Changes) -> u64 {
        let next = self.allocators.entry(key.clone()).or_insert(0);
        let given = *next;
        *next += 1;
        changes.row(key, Some(codec::to_bytes(next)));
        given
    }

    /// Places a record, or lets it wait. It lies at `at`.
    pub fn record<R>(&mut self, record: &RecordView<'_>, at: PhysicalOffset, changes: &mut Changes) -> Outcome<R> {
        if self.queues.get(&record.queue).is_some_and(|queue| queue.row.closed) {
            return Outcome::Refused(Refusal::QueueClosed(record.queue));
        }
        let now = self.now();
        let visibility = match record.visibility {
            Visibility::Half if planted::is(Bug::HalfVisible) => Visibility::Visible,
            visibility => visibility,
        };
        let kind = match visibility {
            Visibility::Visible => {
                let unit = Unit {
                    physical_offset: at,
                    size: record.size,
                    tag_hash: record.tag_hash,
                    visible_at: now,
                    kind: UnitKind::Plain,
                };
                let queue_offset = self.append_unit(record.queue, unit, record.key_hashes(), changes);
                return Outcome::Placed { queue_offset, physical_offset: at, stamp: now };
            }
            Visibility::Scheduled { due } => PendingKind::Scheduled { due },
            Visibility::Half => PendingKind::Half,
        };
        let row = PendingRow {
            queue: record.queue,
            place: at,
            size: record.size,
            tag_hash: record.tag_hash,
            stored_at: now,
            kind,
            key_hashes: record.key_hashes().collect(),
        };
        let row = Arc::new(row);
        changes.begins_to_wait(at, row.clone());
        self.shared.pending.lock().insert(at, row);
        Outcome::Pending { physical_offset: at, stamp: now }
    }

    /// A pending row's record lies at `at` from now on. Nothing happens if the row has ended.
    pub fn roll(&mut self, roll: RollView, at: PhysicalOffset, changes: &mut Changes) -> CoreReply {
        let mut pending = self.shared.pending.lock();
        let moved = pending.roll(roll.key, at, roll.size);
        if let Some(row) = &moved {
            changes.waits(roll.key, row.clone());
        }
        CoreReply::Rolled { moved: moved.is_some() }
    }

    /// A `Checkpoint` ends here: the log may be trimmed to this place, and queues begin then where they end now.
    pub fn checkpoint(&mut self, boundary: Boundary, changes: &mut Changes) {
        let queues = self.queues.iter().filter(|(_, queue)| queue.row.next > queue.row.min);
        let row = CheckpointRow {
            id: boundary.id,
            end: boundary.end.physical_offset,
            stamp: self.now(),
            next: queues.map(|(id, queue)| (*id, queue.row.next)).collect(),
            verdict: None,
        };
        changes.row(rows::checkpoint_key(boundary.id.index), Some(codec::to_bytes(&row)));
        self.checkpoints.insert(boundary.id.index, row);
        // The oldest one that the log could still be trimmed to: the next one must do then.
        let surplus = self.checkpoints.len() > CHECKPOINTS_KEPT;
        let oldest = self.checkpoints.iter().find(|(_, row)| row.end > self.min_physical).map(|(index, _)| *index);
        if let Some(oldest) = oldest.filter(|_| surplus) {
            self.checkpoints.remove(&oldest);
            changes.row(rows::checkpoint_key(oldest), None);
        }
        self.publish_checkpoints();
    }

    /// Retention, as far as it may go now: whole checkpoints, below everything that waits and below every segment that
    /// something became visible in at `cut` or later.
    fn trim(&mut self, wanted: PhysicalOffset, cut: Timestamp, changes: &mut Changes) -> CoreReply {
        let segment_bytes = self.shared.options.segment_bytes;
        let pending = self.shared.pending.lock().first_place();
        let young = self.segment_clocks.iter().find(|(_, clock)| **clock >= cut);
        let young = young.map(|(segment, _)| PhysicalOffset(segment * segment_bytes));
        let limit = [pending, young].into_iter().flatten().fold(wanted, PhysicalOffset::min);
        let to = self.checkpoints.values().rev().find(|row| row.end <= limit);
        let Some(to) = to.filter(|row| row.end > self.min_physical).cloned() else {
            return CoreReply::Trimmed { min_physical: self.min_physical };
        };
        self.min_physical = to.end;
        changes.group(self.group_row());
        for (id, next) in to.next {
            let working = self.queues.get_mut(&id).expect("a queue is never forgotten");
            assert!(next <= working.row.next, "queue {id} had {next} units at {}, it has {}", to.id, working.row.next);
            if next > working.row.min {
                working.row.min = next;
                working.queue.begin_at(next);
                changes.queue(id, working.row);
            }
        }
        let first_kept = to.end.0 / segment_bytes;
        let kept = self.segment_clocks.split_off(&first_kept);
        for segment in std::mem::replace(&mut self.segment_clocks, kept).into_keys() {
            changes.segment_clock(segment, None);
        }
        let kept = self.checkpoints.split_off(&to.id.index);
        for index in std::mem::replace(&mut self.checkpoints, kept).into_keys() {
            changes.row(rows::checkpoint_key(index), None);
        }
        self.publish_checkpoints();
        CoreReply::Trimmed { min_physical: to.end }
    }

    fn publish_checkpoints(&self) {
        let points = self.checkpoints.values();
        let points = points.map(|row| CheckpointPoint { id: row.id, end: row.end, stamp: row.stamp });
        *self.shared.checkpoints.lock() = points.collect();
        let verdicts = self.checkpoints.values().map(|row| (row.id, row.verdict)).collect();
        self.shared.state_hashes.send_modify(|hashes| hashes.verdicts = verdicts);
        self.shared
            .trimmed
            .send_if_modified(|trimmed| std::mem::replace(trimmed, self.min_physical) != self.min_physical);
    }

    /// What a majority of the voters has at a checkpoint. What was found once stays: voters may have changed since.
    fn state_hash(
        &mut self,
        position: LogId,
        hashes: &[(NodeId, u64)],
        voters: u32,
        changes: &mut Changes,
    ) -> CoreReply {
        let row = self.checkpoints.get_mut(&position.index).filter(|row| row.id == position);
        let Some(row) = row else { return CoreReply::StateHash(None) };
        if row.verdict.is_none() {
            row.verdict = state_hash::verdict(hashes, voters as usize);
            changes.row(rows::checkpoint_key(position.index), Some(codec::to_bytes(row)));
        }
        let verdict = row.verdict;
        self.publish_checkpoints();
        CoreReply::StateHash(verdict)
    }

    /// Applies one of this crate's commands, except for what `Lead` means to the tables.
    pub fn command<R>(&mut self, command: &CoreCommand, gap_ms: i64, changes: &mut Changes) -> Outcome<R> {
        Outcome::Core(match *command {
            CoreCommand::Lead => CoreReply::Led { gap_ms },
            CoreCommand::FireTimers { limit } => self.fire_timers(limit, changes),
            CoreCommand::Checkpoint => CoreReply::Checkpoint,
            CoreCommand::Trim { min_physical, cut } => self.trim(min_physical, cut, changes),
            CoreCommand::StateHash { position, voters, ref hashes } => {
                self.state_hash(position, hashes, voters, changes)
            }
            CoreCommand::RaiseClusterVersion { version } if version < self.cluster_version => {
                return Outcome::Refused(Refusal::ClusterVersion(self.cluster_version));
            }
            CoreCommand::RaiseClusterVersion { version } => {
                self.cluster_version = version;
                changes.group(self.group_row());
                CoreReply::ClusterVersion(version)
            }
            CoreCommand::EndTransaction { half, commit } => match self.end_transaction(half, commit, changes) {
                Some(reply) => reply,
                None => return Outcome::Refused(Refusal::NoTransaction(half)),
            },
            CoreCommand::CheckTransaction { half, check } => match self.check_transaction(half, check, changes) {
                Some(reply) => reply,
                None => return Outcome::Refused(Refusal::NoTransaction(half)),
            },
            CoreCommand::Recall { scheduled } => match self.recall(scheduled, changes) {
                Some(reply) => reply,
                None => return Outcome::Refused(Refusal::NotScheduled(scheduled)),
            },
        })
    }

    /// Due records become visible, by reference. One whose queue was closed meanwhile ends unseen, as it would have if
    /// it had been sent to that queue.
    fn fire_timers(&mut self, limit: u32, changes: &mut Changes) -> CoreReply {
        let now = self.now();
        let mut fired = 0;
        let until = if planted::is(Bug::TimerEarly) { Timestamp(now.0 + 200) } else { now };
        let due = self.shared.pending.lock().due(until, limit as usize);
        {
            let mut lateness = self.shared.lateness.lock();
            let dues = due.iter().filter_map(|(_, row)| row.due());
            dues.for_each(|due| lateness.add(now.0.saturating_sub(due.0)));
        }
        for (key, mut row) in due {
            fired += 1;
            let mark = Timestamp(-self.applied.map_or(0, |applied| applied.id.term as i64));
            let is_again = planted::is(Bug::TimerTwice) && row.stored_at == mark;
            if !is_again && !self.is_closed(row.queue) {
                self.show_by_reference(&row, changes);
            }
            // Behind that: who looks for its key here first and then in the index finds it.
            let mut pending = self.shared.pending.lock();
            assert!(pending.take_scheduled(key).is_some(), "what is due at {key} waits");
            if planted::is(Bug::TimerTwice) && !is_again {
                Arc::make_mut(&mut row).stored_at = mark;
                changes.waits(key, row.clone());
                pending.insert(key, row);
            } else {
                changes.ends_to_wait(key);
            }
        }
        let more = self.shared.pending.lock().next_due().is_some_and(|due| due <= now);
        CoreReply::Fired { fired, more }
    }

    /// The first end of a half record counts, whichever it is; `None` for every other one. A committed record becomes
    /// visible where it lies, unless its queue was closed meanwhile, as one that falls due.
    fn end_transaction(&mut self, half: PhysicalOffset, commit: bool, changes: &mut Changes) -> Option<CoreReply> {
        let row = self.shared.pending.lock().half_row(half)?;
        let reply = if commit {
            let queue_offset = (!self.is_closed(row.queue)).then(|| self.show_by_reference(&row, changes));
            CoreReply::Committed { queue_offset, physical_offset: row.place }
        } else {
            CoreReply::RolledBack
        };
        // Behind that: who looks for it here first and then among what is visible finds it.
        let is_forgotten = planted::is(Bug::CommitTwice) && commit || planted::is(Bug::RollbackForgotten) && !commit;
        if !is_forgotten {
            self.shared.pending.lock().end(half);
            changes.ends_to_wait(half);
        }
        Some(reply)
    }

    fn is_closed(&self, queue: QueueId) -> bool {
        self.queues.get(&queue).is_some_and(|queue| queue.row.closed)
    }

    /// A scheduled record is forgotten before its time; `None` if it has fired or was forgotten before.
    fn recall(&mut self, scheduled: PhysicalOffset, changes: &mut Changes) -> Option<CoreReply> {
        let row = self.shared.pending.lock().take_scheduled(scheduled)?;
        if planted::is(Bug::RecallForgotten) {
            self.shared.pending.lock().insert(scheduled, row);
        } else {
            changes.ends_to_wait(scheduled);
        }
        Some(CoreReply::Recalled)
    }

    fn check_transaction(
        &mut self,
        half: PhysicalOffset,
        check: TransactionCheck,
        changes: &mut Changes,
    ) -> Option<CoreReply> {
        let now = self.now();
        let mut pending = self.shared.pending.lock();
        let row = pending.check(half, check, now)?;
        changes.waits(half, row);
        let times = pending.half(half).map_or(0, |half| half.asked);
        Some(CoreReply::Checked { times })
    }

    /// A pending row's record becomes visible now, where it lies.
    fn show_by_reference(&mut self, row: &PendingRow, changes: &mut Changes) -> QueueOffset {
        let unit = Unit {
            physical_offset: row.place,
            size: row.size,
            tag_hash: row.tag_hash,
            visible_at: self.now(),
            kind: UnitKind::Fired,
        };
        let queue_offset = self.append_unit(row.queue, unit, row.key_hashes.iter().copied(), changes);
        let index_row = IndexRow { physical_offset: row.place, queue: row.queue, queue_offset };
        self.shared.index.add(index_row);
        changes.index_rows.push(index_row);
        queue_offset
    }

    /// Shows a record in a queue, and under the hashes of its keys.
    fn append_unit(
        &mut self,
        id: QueueId,
        unit: Unit,
        key_hashes: impl Iterator<Item = u64>,
        changes: &mut Changes,
    ) -> QueueOffset {
        let working = working_queue(&mut self.queues, &self.shared, id);
        let queue_offset = working.queue.push(unit);
        assert_eq!(queue_offset, working.row.next, "queue {id}: memory and row disagree on the next offset");
        working.row.next.0 += 1;
        working.row.last_visible_at = Some(unit.visible_at);
        changes.queue(id, working.row);
        changes.unit_count += 1;
        if self.grown.last().is_none_or(|last| last.id() != id) {
            self.grown.push(working.queue.clone());
        }
        let segment = unit.physical_offset.0 / self.shared.options.segment_bytes;
        let clock = self.segment_clocks.entry(segment).or_default();
        if *clock != unit.visible_at {
            *clock = unit.visible_at;
            changes.segment_clock(segment, Some(unit.visible_at));
        }
        for hash in key_hashes {
            let Unit { visible_at, physical_offset, .. } = unit;
            let row = KeyRow { hash, visible_at, physical_offset, queue: id, queue_offset };
            self.shared.keys.add(row);
            changes.key_rows.push(row);
        }
        queue_offset
    }

    /// Makes the queue if it is not there; opens or closes it.
    pub fn set_queue_closed(&mut self, id: QueueId, closed: bool, changes: &mut Changes) {
        let working = working_queue(&mut self.queues, &self.shared, id);
        working.row.closed = closed;
        changes.queue(id, working.row);
    }

    pub fn queue_bounds(&self, id: QueueId) -> Option<(QueueOffset, QueueOffset)> {
        self.queues.get(&id).map(|working| (working.row.min, working.row.next))
    }

    /// An entry is applied as a whole: tells the readers.
    pub fn applied(&mut self, boundary: Boundary) {
        assert!(
            self.applied.is_none_or(|before| before.id < boundary.id),
            "{} is applied after {:?}",
            boundary.id,
            self.applied
        );
        self.applied = Some(boundary);
        self.publish();
        for queue in self.grown.drain(..) {
            queue.wake();
        }
    }

    fn publish(&self) {
        let (next_due, pending) = {
            let pending = self.shared.pending.lock();
            (pending.next_due(), pending.counts())
        };
        self.shared.publish(super::shared::Published {
            applied: self.applied.map(|applied| applied.id),
            now: self.now(),
            cluster_version: self.cluster_version,
            min_physical: self.min_physical,
            next_due,
            pending,
        });
    }

    /// The queues of an image beside those there are: what readers see of each from then on.
    pub fn replaced_queues(&self, rows: &CoreRows) -> Result<Vec<(Arc<Queue>, Restored)>, String> {
        let replaced = self.queues.iter().map(|(id, working)| match rows.queues.get(id) {
            Some(row) if row.next >= working.row.next => Ok((
                working.queue.clone(),
                Restored { min: row.next, next: row.next, last_visible_at: row.last_visible_at },
            )),
            row => Err(format!("queue {id} ends at {} here, in the image {row:?}", working.row.next)),
        });
        replaced.collect()
    }
}

/// A record to a queue that was never made makes it: topics are the tables' concern, offsets are ours.
fn working_queue<'a>(
    queues: &'a mut BTreeMap<QueueId, WorkingQueue>,
    shared: &Arc<Shared>,
    id: QueueId,
) -> &'a mut WorkingQueue {
    queues.entry(id).or_insert_with(|| {
        let restored = Restored { min: QueueOffset(0), next: QueueOffset(0), last_visible_at: None };
        let queue = Arc::new(Queue::new(id, shared.files.clone(), restored));
        shared.queues.write().insert(id, queue.clone());
        WorkingQueue { row: QueueRow::default(), queue }
    })
}

//! The folded state that is this crate's own: queues, pending rows, group time, allocators. Pure but for the queues'
//! memory, which readers share.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::changes::Changes;
use super::clock::GroupTime;
use super::pending::Pending;
use super::rows::{self, GroupRow, MembershipRow, PendingKind, PendingRow, QueueRow};
use super::shared::Shared;
use super::tables::RowError;
use super::{CLUSTER_VERSION, CoreReply, Outcome, Refusal};
use crate::codec::{self, Decode};
use crate::consume_queue::{Queue, Restored, Unit, UnitKind};
use crate::entry::{CoreCommand, RecordView, Visibility};
use crate::index::IndexRow;
use crate::log::Boundary;
use crate::position::{LogId, PhysicalOffset, QueueId, QueueOffset, Timestamp};

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
    pending: Pending,
    segment_clocks: BTreeMap<u64, Timestamp>,
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
        let core = Core {
            shared,
            applied,
            time: GroupTime::restored(group.last_time),
            cluster_version: group.cluster_version,
            min_physical: group.min_physical,
            membership: rows.membership.map(|row| (row.id, Bytes::from(row.bytes))),
            allocators: rows.allocators,
            queues,
            pending: rows.pending,
            segment_clocks: rows.segment_clocks,
            grown: Vec::new(),
        };
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
        let kind = match record.visibility {
            Visibility::Visible => {
                let unit = Unit {
                    physical_offset: at,
                    size: record.size,
                    tag_hash: record.tag_hash,
                    visible_at: now,
                    kind: UnitKind::Plain,
                };
                let queue_offset = self.append_unit(record.queue, unit, changes);
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
        changes.row(rows::pending_key(at), Some(codec::to_bytes(&row)));
        self.pending.insert(at, row);
        Outcome::Pending { physical_offset: at, stamp: now }
    }

    /// Applies one of this crate's commands, except for what `Lead` means to the tables.
    pub fn command<R>(&mut self, command: CoreCommand, gap_ms: i64, changes: &mut Changes) -> Outcome<R> {
        Outcome::Core(match command {
            CoreCommand::Lead => CoreReply::Led { gap_ms },
            CoreCommand::FireTimers { limit } => self.fire_timers(limit, changes),
            CoreCommand::Checkpoint => CoreReply::Checkpoint,
            CoreCommand::RaiseClusterVersion { version } if version < self.cluster_version => {
                return Outcome::Refused(Refusal::ClusterVersion(self.cluster_version));
            }
            CoreCommand::RaiseClusterVersion { version } => {
                self.cluster_version = version;
                changes.group(self.group_row());
                CoreReply::ClusterVersion(version)
            }
        })
    }

    /// Due records become visible, by reference. One whose queue was closed meanwhile ends unseen, as it would have if
    /// it had been sent to that queue.
    fn fire_timers(&mut self, limit: u32, changes: &mut Changes) -> CoreReply {
        let now = self.now();
        let mut fired = 0;
        for (key, row) in self.pending.take_due(now, limit as usize) {
            changes.row(rows::pending_key(key), None);
            fired += 1;
            if self.queues.get(&row.queue).is_some_and(|queue| queue.row.closed) {
                continue;
            }
            let unit = Unit {
                physical_offset: row.place,
                size: row.size,
                tag_hash: row.tag_hash,
                visible_at: now,
                kind: UnitKind::Fired,
            };
            let queue_offset = self.append_unit(row.queue, unit, changes);
            let index_row = IndexRow { physical_offset: row.place, queue: row.queue, queue_offset };
            self.shared.index.add(index_row);
            changes.index_rows.push(index_row);
        }
        let more = self.pending.next_due().is_some_and(|due| due <= now);
        CoreReply::Fired { fired, more }
    }

    fn append_unit(&mut self, id: QueueId, unit: Unit, changes: &mut Changes) -> QueueOffset {
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
            changes.segment_clock(segment, unit.visible_at);
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
        self.shared.publish(super::shared::Published {
            applied: self.applied.map(|applied| applied.id),
            now: self.now(),
            cluster_version: self.cluster_version,
            min_physical: self.min_physical,
            next_due: self.pending.next_due(),
            pending: self.pending.counts(),
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

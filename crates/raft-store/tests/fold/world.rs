//! A replica without Raft (log and fold), small tables, random entries, and what all of it must amount to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use bytes::Bytes;
use env::disk::simulated::SimDisk;
use env::{Env, Rng};
use raft_store::consume_queue::{Unit, UnitKind};
use raft_store::entry::{
    CoreCommand, Operation, OperationView, RecordOperation, TransactionCheck, Visibility, decode_entry, encode_entry,
};
use raft_store::fold::{Apply, CHECKPOINTS_KEPT, Fold, HalfState, Outcome, RowError, Tables};
use raft_store::log::{AppendEntry, Frame, Kind, Log, LogOptions};
use raft_store::materializer::{Derived, DerivedOptions, OpenError};
use raft_store::position::{LogId, PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};

/// The broker's tables, in small: rows of text, set and deleted by commands, and queues opened and closed.
#[derive(Debug, Default, PartialEq, Clone)]
pub struct Notes(pub BTreeMap<Vec<u8>, Vec<u8>>);

/// Commands for [`Notes`]: a letter, an argument byte, and a value.
impl Tables for Notes {
    type Reply = Vec<u8>;

    fn knows(&self, command: &[u8]) -> bool {
        matches!(command.first(), Some(b'p' | b'd' | b'a' | b'o' | b'c'))
    }

    fn apply(&mut self, command: &[u8], at: &mut Apply<'_>) -> Vec<u8> {
        let (letter, argument, value) = (command[0], command[1], &command[2..]);
        let key = vec![0x40, argument];
        match letter {
            b'p' => {
                self.0.insert(key.clone(), value.to_vec());
                at.put(key, value.to_vec());
                value.to_vec()
            }
            b'd' => {
                at.delete(key.clone());
                self.0.remove(&key).unwrap_or_default()
            }
            b'a' => {
                let given = at.allocate(argument);
                given.to_le_bytes().to_vec()
            }
            b'o' => {
                at.ensure_queue(queue_id(argument));
                vec![]
            }
            _ => {
                at.close_queue(queue_id(argument));
                vec![]
            }
        }
    }

    fn lead(&mut self, now: Timestamp, gap_ms: i64, at: &mut Apply<'_>) {
        let value = format!("{now} {gap_ms} {}", at.index()).into_bytes();
        self.0.insert(vec![0x41], value.clone());
        at.put(vec![0x41], value);
    }

    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        assert!(self.0.last_key_value().is_none_or(|(last, _)| last.as_slice() < key), "rows come in key order");
        self.0.insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

pub fn queue_id(number: u8) -> QueueId {
    QueueId { topic: TopicId(u32::from(number / 2)), queue: u32::from(number % 2) }
}

pub const SEGMENT_BYTES: u64 = 64 << 10;

pub fn dir() -> PathBuf {
    PathBuf::from("/data")
}

pub fn log_options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES,
        prepare_piece_bytes: 16 << 10,
        tail_bytes: 16 << 10,
        max_entry_bytes: 8 << 10,
        ..LogOptions::default()
    }
}

pub fn derived_options() -> DerivedOptions {
    DerivedOptions { segment_bytes: SEGMENT_BYTES, recent_units_bytes: 1 << 10, ..DerivedOptions::default() }
}

/// One replica's log and fold.
pub struct Replica {
    pub log: Log,
    pub fold: Fold<Notes>,
    /// Where its start found it; replay began behind it.
    pub found: Option<LogId>,
    /// The first frames of the log, for when it has purged them.
    pub remembered: Vec<Frame>,
}

impl Replica {
    pub async fn start(env: &Env, options: DerivedOptions) -> Result<Replica, OpenError> {
        Replica::start_in(env, dir(), options).await
    }

    pub async fn start_in(env: &Env, dir: PathBuf, options: DerivedOptions) -> Result<Replica, OpenError> {
        let derived = Derived::probe(env, dir.clone(), options).await?;
        let log = Log::open(env.clone(), dir, log_options(), derived.log_floor()).await.unwrap();
        let fold = Fold::open(derived, log.clone(), Notes::default()).await?;
        let found = fold.applied();
        Ok(Replica { log, fold, found, remembered: Vec::new() })
    }

    /// Appends entries behind those there are; they are read back as a real apply would.
    pub async fn append(&mut self, entries: &[Entry]) {
        let next = self.log.last().map_or(0, |last| last.index + 1);
        for (index, entry) in (next..).zip(entries) {
            let body = entry.body();
            let append = AppendEntry {
                id: LogId { term: 1, index },
                kind: entry.kind(),
                body_crc: crc32c::crc32c(&body),
                body,
                carried_chain: None,
            };
            self.log.append(vec![append], Box::new(|_| {})).unwrap();
        }
    }

    /// Applies all that the log has and the fold has not.
    pub async fn apply_all(&mut self) -> std::io::Result<Vec<Outcome<Vec<u8>>>> {
        self.apply_to(u64::MAX).await
    }

    /// Applies up to index `last`.
    pub async fn apply_to(&mut self, last: u64) -> std::io::Result<Vec<Outcome<Vec<u8>>>> {
        let mut outcomes = Vec::new();
        loop {
            let next = self.fold.applied().map_or(0, |applied| applied.index + 1);
            let end = self.log.last().map_or(0, |last| last.index + 1).min(last.saturating_add(1));
            if next >= end {
                return Ok(outcomes);
            }
            for frame in self.log.read(next..end, 4096).await? {
                self.fold.apply(&frame, &mut outcomes).await?;
            }
        }
    }

    /// All frames: those that the log has purged as they are remembered.
    pub async fn frames(&self) -> Vec<Frame> {
        let begin = self.log.last_purged().map_or(0, |purged| purged.index + 1);
        let mut frames: Vec<Frame> = self.remembered.iter().take(begin as usize).cloned().collect();
        frames.extend(self.frames_from(begin).await);
        frames
    }

    /// The frames from entry `begin` on, which the log has.
    pub async fn frames_from(&self, begin: u64) -> Vec<Frame> {
        let (mut frames, end) = (Vec::new(), self.log.last().map_or(0, |last| last.index + 1));
        while begin + (frames.len() as u64) < end {
            frames.extend(self.log.read(begin + frames.len() as u64..end, 1 << 20).await.unwrap());
        }
        frames
    }

    /// All that a reader can see must be what the model says of the applied entries.
    pub async fn check(&self, model: &Model) {
        let reader = self.fold.reader();
        assert_eq!(reader.applied().map_or(0, |applied| applied.index + 1), model.applied);
        assert_eq!(reader.now(), model.now);
        assert_eq!(*reader.tables(), model.notes);
        assert_eq!(reader.next_due(), model.timers.first().map(|(due, ..)| *due));
        let counts = reader.pending();
        assert_eq!((counts.scheduled, counts.half), (model.timers.len() as u64, model.half.len() as u64));
        for state in [HalfState::Unasked, HalfState::Asked, HalfState::Discarded] {
            let found = reader.halves(state, None, usize::MAX);
            let found: Vec<_> = found.iter().map(|half| (half.since, half.key, half.asked)).collect();
            let expected = model.half.iter().filter(|(_, half)| half.state == state);
            let mut expected: Vec<_> = expected.map(|(key, half)| (half.since, *key, half.asked)).collect();
            expected.sort();
            assert_eq!(found, expected, "{state:?}");
        }
        assert_eq!(reader.min_physical(), model.min_physical);
        let expected = model.membership.clone().map_or((None, Bytes::new()), |(id, bytes)| (Some(id), bytes));
        assert_eq!(self.fold.membership(), expected);
        for number in 0..QUEUES {
            let id = queue_id(number);
            let Some(queue) = reader.queue(id) else {
                assert!(!model.queues.contains_key(&id), "queue {id} is missing");
                continue;
            };
            let expected = &model.queues[&id];
            let bounds = queue.bounds();
            let floor = model.floors.get(&id).copied().unwrap_or(0);
            assert_eq!((bounds.start.0, bounds.end.0), (floor, expected.len() as u64), "bounds of {id}");
            let mut units = Vec::new();
            while floor + (units.len() as u64) < bounds.end.0 {
                units.extend(queue.read_units(QueueOffset(floor + units.len() as u64), 37).await.unwrap());
            }
            assert_eq!(units, expected[floor as usize..], "units of {id}");
            assert_eq!(queue.last_visible_at(), expected.last().map(|unit| unit.visible_at));
        }
    }

    /// Every unit of the model is found by the place and store time of its record, unless that is trimmed.
    pub async fn check_index(&self, model: &Model) {
        let reader = self.fold.reader();
        for (id, units) in &model.queues {
            let floor = model.floors.get(id).copied().unwrap_or(0);
            let kept = units.iter().enumerate().skip(floor as usize);
            for (offset, unit) in kept.filter(|(_, unit)| unit.physical_offset >= model.min_physical) {
                let stamp = model.stored_at[&unit.physical_offset];
                let found = reader.unit_of(unit.physical_offset, *id, stamp).await.unwrap();
                assert_eq!(found, Some((QueueOffset(offset as u64), *unit)), "queue {id}");
            }
        }
        self.check_keys(model).await;
    }

    /// Every record here has the same key: by it, all that is kept is found, the newest first, and nothing twice.
    async fn check_keys(&self, model: &Model) {
        let kept = model.queues.iter().flat_map(|(id, units)| {
            let floor = model.floors.get(id).copied().unwrap_or(0);
            let units = units.iter().enumerate().skip(floor as usize);
            units.map(|(offset, unit)| (*id, QueueOffset(offset as u64), *unit))
        });
        let kept: BTreeSet<_> =
            kept.filter(|(_, _, unit)| unit.physical_offset >= model.min_physical).map(place).collect();
        let reader = self.fold.reader();
        let all = Timestamp(i64::MIN)..=Timestamp(i64::MAX);
        let found = reader.units_by_key(KEY_HASH, all.clone(), usize::MAX).await.unwrap();
        assert!(found.is_sorted_by(|(_, _, newer), (_, _, older)| newer.visible_at >= older.visible_at));
        let count = found.len();
        let found: BTreeSet<_> = found.into_iter().map(place).collect();
        assert_eq!(found.len(), count, "a unit is found twice");
        assert!(found.is_superset(&kept), "not found: {:?}", kept.difference(&found).collect::<Vec<_>>());
        let shown: BTreeSet<_> = model
            .queues
            .iter()
            .flat_map(|(id, units)| {
                units.iter().enumerate().map(|(at, unit)| place((*id, QueueOffset(at as u64), *unit)))
            })
            .collect();
        assert!(found.is_subset(&shown), "found, but never shown: {:?}", found.difference(&shown).collect::<Vec<_>>());
        assert!(reader.units_by_key(KEY_HASH + 1, all, usize::MAX).await.unwrap().is_empty());
    }
}

/// Of the key that every record has.
const KEY_HASH: u64 = 7;

fn place((queue, queue_offset, unit): (QueueId, QueueOffset, Unit)) -> (QueueId, QueueOffset, PhysicalOffset) {
    (queue, queue_offset, unit.physical_offset)
}

/// An entry before it has a place.
#[derive(Clone, Debug)]
pub enum Entry {
    Operations(Timestamp, Vec<Operation>),
    Membership(Bytes),
    Blank,
    /// A body that is none.
    Nonsense,
}

impl Entry {
    fn kind(&self) -> Kind {
        match self {
            Entry::Operations(..) | Entry::Nonsense => Kind::Entry,
            Entry::Membership(_) => Kind::Membership,
            Entry::Blank => Kind::Blank,
        }
    }

    fn body(&self) -> Bytes {
        match self {
            Entry::Operations(stamp, operations) => encode_entry(*stamp, operations),
            Entry::Membership(bytes) => bytes.clone(),
            Entry::Blank => Bytes::new(),
            Entry::Nonsense => Bytes::from_static(b"\x01nonsense"),
        }
    }
}

pub const QUEUES: u8 = 6;

pub fn record(queue: QueueId, record: Vec<u8>, visibility: Visibility) -> Operation {
    let tag_hash = record.len() as i32 - 20;
    Operation::Record(RecordOperation {
        queue,
        record: record.into(),
        tag_hash,
        visibility,
        key_hashes: vec![KEY_HASH],
    })
}

pub fn entry(stamp: i64, operations: Vec<Operation>) -> Entry {
    Entry::Operations(Timestamp(stamp), operations)
}

pub fn core(command: CoreCommand) -> Operation {
    Operation::Core(command)
}

/// Random entries; `checkpoints` of a hundred are checkpoints.
pub fn random_entries(rng: &Rng, count: usize, checkpoints: u64) -> Vec<Entry> {
    let mut stamp = 1_000;
    (0..count)
        .map(|_| {
            stamp += [0, 0, 1, 7, 100][rng.below(5) as usize];
            if rng.chance(checkpoints, 100) {
                return entry(stamp, vec![core(CoreCommand::Checkpoint)]);
            }
            match rng.below(30) {
                0 => Entry::Blank,
                1 => Entry::Membership(Bytes::from(vec![rng.below(256) as u8; 5])),
                2 => Entry::Nonsense,
                // A stamp from the past: time stands still.
                3 => entry(stamp - 50, vec![random_operation(rng, stamp)]),
                _ => entry(stamp, (0..1 + rng.below(6)).map(|_| random_operation(rng, stamp)).collect()),
            }
        })
        .collect()
}

fn random_operation(rng: &Rng, stamp: i64) -> Operation {
    let number = rng.below(u64::from(QUEUES)) as u8;
    let bytes = |limit: u64| vec![rng.below(256) as u8; 1 + rng.below(limit) as usize];
    match rng.below(20) {
        0 => core(CoreCommand::Lead),
        1 => core(CoreCommand::RaiseClusterVersion { version: rng.below(2) as u32 }),
        2..=4 => core(CoreCommand::FireTimers { limit: rng.below(5) as u32 }),
        5..=7 => {
            let mut command = vec![*b"ppdaoc".get(rng.below(6) as usize).unwrap(), number];
            command.extend(bytes(30));
            Operation::Tables(command.into())
        }
        8 => record(queue_id(number), bytes(200), Visibility::Half),
        9..=11 => {
            let due = Timestamp(stamp - 20 + rng.below(200) as i64);
            record(queue_id(number), bytes(200), Visibility::Scheduled { due })
        }
        _ => record(queue_id(number), bytes(400), Visibility::Visible),
    }
}

/// A half record, as the model knows it.
#[derive(Clone, Debug)]
pub struct Half {
    queue: QueueId,
    size: u32,
    tag_hash: i32,
    state: HalfState,
    since: Timestamp,
    asked: u32,
}

/// What frames amount to, written as plainly as possible.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub applied: u64,
    pub now: Timestamp,
    pub notes: Notes,
    pub queues: BTreeMap<QueueId, Vec<Unit>>,
    /// First units that exist on this replica.
    pub floors: BTreeMap<QueueId, u64>,
    /// Due, key, queue, size, tag hash.
    pub timers: BTreeSet<(Timestamp, PhysicalOffset, QueueId, u32, i32)>,
    /// Half records, by key.
    pub half: BTreeMap<PhysicalOffset, Half>,
    /// Where the records of timers and halves lie, by key.
    pub places: BTreeMap<PhysicalOffset, PhysicalOffset>,
    pub min_physical: PhysicalOffset,
    /// Place, and lengths of the queues.
    pub checkpoints: Vec<(PhysicalOffset, BTreeMap<QueueId, u64>)>,
    pub membership: Option<(LogId, Bytes)>,
    pub stored_at: BTreeMap<PhysicalOffset, Timestamp>,
    pub closed: BTreeSet<QueueId>,
}

impl Model {
    pub fn of(frames: &[Frame]) -> Model {
        let mut model = Model::default();
        frames.iter().for_each(|frame| model.apply(frame));
        model
    }

    /// Applies a frame; gives how many timers fired.
    pub fn apply(&mut self, frame: &Frame) {
        assert_eq!(frame.id.index, self.applied);
        self.applied += 1;
        if frame.kind == Kind::Membership {
            self.membership = Some((frame.id, frame.body.clone()));
        }
        let view = match frame.kind {
            Kind::Entry => decode_entry(&frame.body),
            _ => return,
        };
        let Ok(view) = view else { return };
        let before = self.now;
        self.now = self.now.max(view.stamp());
        let gap_ms = if before == Timestamp(0) { 0 } else { self.now.0 - before.0 };
        let mut checkpoint = false;
        for operation in view.operations() {
            match operation {
                OperationView::Record(record) => {
                    if self.closed.contains(&record.queue) {
                        continue;
                    }
                    let at = PhysicalOffset(frame.physical_offset.0 + 64 + u64::from(record.position));
                    self.stored_at.insert(at, self.now);
                    match record.visibility {
                        Visibility::Visible => {
                            self.show(record.queue, at, record.size, record.tag_hash, UnitKind::Plain);
                        }
                        Visibility::Scheduled { due } => {
                            self.timers.insert((due, at, record.queue, record.size, record.tag_hash));
                            self.places.insert(at, at);
                        }
                        Visibility::Half => {
                            let (queue, size, tag_hash) = (record.queue, record.size, record.tag_hash);
                            let (state, since) = (HalfState::Unasked, self.now);
                            self.half.insert(at, Half { queue, size, tag_hash, state, since, asked: 0 });
                            self.places.insert(at, at);
                        }
                    }
                }
                OperationView::Core(CoreCommand::FireTimers { limit }) => {
                    for _ in 0..*limit {
                        let Some((due, at, queue, size, tag_hash)) = self.timers.first().copied() else { break };
                        if due > self.now {
                            break;
                        }
                        self.timers.pop_first();
                        let at = self.places.remove(&at).unwrap();
                        if !self.closed.contains(&queue) {
                            self.show(queue, at, size, tag_hash, UnitKind::Fired);
                        }
                    }
                }
                OperationView::Core(CoreCommand::Lead) => {
                    let text = format!("{} {gap_ms} {}", self.now, frame.id.index);
                    self.notes.0.insert(vec![0x41], text.into_bytes());
                }
                OperationView::Roll(roll) => {
                    let at = PhysicalOffset(frame.physical_offset.0 + 64 + u64::from(roll.position));
                    let waiting = self.timers.iter().find(|(_, key, ..)| *key == roll.key).map(|(.., size, _)| *size);
                    if waiting.or(self.half.get(&roll.key).map(|half| half.size)) == Some(roll.size) {
                        self.places.insert(roll.key, at);
                        self.stored_at.insert(at, self.now);
                    }
                }
                OperationView::Core(CoreCommand::EndTransaction { half, commit }) => {
                    let Some(ended) = self.half.remove(half) else { continue };
                    let at = self.places.remove(half).unwrap();
                    if *commit && !self.closed.contains(&ended.queue) {
                        self.show(ended.queue, at, ended.size, ended.tag_hash, UnitKind::Fired);
                    }
                }
                OperationView::Core(CoreCommand::CheckTransaction { half, check }) => {
                    let Some(half) = self.half.get_mut(half) else { continue };
                    let is_discarded = half.state == HalfState::Discarded;
                    (half.state, half.since, half.asked) = match check {
                        TransactionCheck::Resume if is_discarded => (HalfState::Asked, self.now, 0),
                        TransactionCheck::Asked if !is_discarded => (HalfState::Asked, self.now, half.asked + 1),
                        TransactionCheck::Discard if !is_discarded => (HalfState::Discarded, self.now, half.asked),
                        _ => continue,
                    };
                }
                OperationView::Core(CoreCommand::Recall { scheduled }) => {
                    let before = self.timers.len();
                    self.timers.retain(|(_, key, ..)| key != scheduled);
                    if self.timers.len() < before {
                        self.places.remove(scheduled);
                    }
                }
                OperationView::Core(CoreCommand::Trim { min_physical, cut }) => self.trim(*min_physical, *cut),
                OperationView::Core(CoreCommand::Checkpoint) => checkpoint = true,
                OperationView::Core(CoreCommand::RaiseClusterVersion { .. } | CoreCommand::StateHash { .. }) => {}
                OperationView::Tables(command) => {
                    let key = vec![0x40, command[1]];
                    let queue = queue_id(command[1]);
                    match command[0] {
                        b'p' => {
                            self.notes.0.insert(key, command[2..].to_vec());
                        }
                        b'd' => {
                            self.notes.0.remove(&key);
                        }
                        b'o' => {
                            self.queues.entry(queue).or_default();
                            self.closed.remove(&queue);
                        }
                        b'c' => {
                            self.queues.entry(queue).or_default();
                            self.closed.insert(queue);
                        }
                        _ => {}
                    }
                }
            }
        }
        if checkpoint {
            let end = (frame.physical_offset.0 + 64 + frame.body.len() as u64).next_multiple_of(64);
            let lengths = self.queues.iter().map(|(id, units)| (*id, units.len() as u64)).collect();
            self.checkpoints.push((PhysicalOffset(end), lengths));
            let kept = self.checkpoints.iter().filter(|(end, _)| *end >= self.min_physical).count();
            let oldest = self.checkpoints.iter().position(|(end, _)| *end > self.min_physical).unwrap();
            if kept > CHECKPOINTS_KEPT {
                self.checkpoints.remove(oldest);
            }
        }
    }

    /// What must hold of retention, whatever the order of things: nothing that waits is lost, nothing that became visible
    /// at `cut` or later is.
    fn trim(&mut self, wanted: PhysicalOffset, cut: Timestamp) {
        let begin = self.min_physical.0 / SEGMENT_BYTES * SEGMENT_BYTES;
        let units = || self.queues.values().flatten().filter(|unit| unit.physical_offset.0 >= begin);
        let young = units().filter(|unit| unit.visible_at >= cut).map(|unit| unit.physical_offset.0);
        let young = young.min().map_or(u64::MAX, |at| at / SEGMENT_BYTES * SEGMENT_BYTES);
        let pending = self.places.values().min().map_or(u64::MAX, |at| at.0);
        let limit = PhysicalOffset(wanted.0.min(young).min(pending));
        let reached = self.checkpoints.iter().rev().find(|(end, _)| *end <= limit && *end > self.min_physical);
        if let Some((end, lengths)) = reached.cloned() {
            self.min_physical = end;
            for (id, length) in lengths {
                let floor = self.floors.entry(id).or_default();
                *floor = length.max(*floor);
            }
            self.checkpoints.retain(|(at, _)| *at >= end);
            assert!(self.places.values().all(|place| *place >= end), "something that waits is trimmed");
            for (id, units) in &self.queues {
                let floor = self.floors.get(id).copied().unwrap_or(0) as usize;
                assert!(units[..floor].iter().all(|unit| unit.physical_offset < end), "a kept message is not shown");
                let young = units.iter().enumerate().filter(|(_, unit)| unit.visible_at >= cut);
                for (offset, unit) in young {
                    assert!(offset >= floor && unit.physical_offset >= end, "{unit:?} is trimmed too early");
                }
            }
        }
    }

    fn show(&mut self, queue: QueueId, at: PhysicalOffset, size: u32, tag_hash: i32, kind: UnitKind) {
        let unit = Unit { physical_offset: at, size, tag_hash, visible_at: self.now, kind };
        self.queues.entry(queue).or_default().push(unit);
    }
}

/// A world of one simulated disk.
pub fn simulated(rng: &Rng) -> (Env, SimDisk) {
    let disk = SimDisk::new(rng.fork());
    (Env::simulated(rng.u64(), disk.clone()), disk)
}

pub fn seeded() -> Rng {
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| Rng::from_entropy().u64());
    println!("SEED={seed}");
    Rng::seeded(seed)
}

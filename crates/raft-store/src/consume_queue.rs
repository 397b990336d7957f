//! ConsumeQueue: the dense index of one queue. Unit k points at the record whose queue offset is k.
//!
//! - Derived: may be deleted at any time; a start notices and rebuilds it, equal, from the CommitLog.
//! - Units are appended in memory by apply, in index order, and written in ranges by the derived sync. Readers find the
//!   newest ones in memory and the others in files, verified.
//! - A start cuts every queue to its bound at N by looking no further: what a file holds beyond is never read, and is
//!   written again, with equal bytes, when replay gets there. No file is opened before it is used.
//!
//! ```text
//! consumequeue/<topic id>.<queue>/<first queue offset of the file, 20 digits>    65536 units, unit k at (k % 65536) * 32
//! consumequeue/floors                                                            see `Floors`
//!
//! unit, 32 bytes, little-endian
//!  0 physical offset u64 | 8 size u32 | 12 tag hash i32 | 16 visible-at ms i64
//! 24 kind u8 (1 plain, 2 fired) | 25 flags u8 = 0 | 26 reserved u16 = 0
//! 28 CRC32C u32 of topic id u32, queue u32, queue offset u64 and the 28 bytes above
//! ```
//!
//! The checksum covers the unit's own address, so that a write or read that went to the wrong place is noticed.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use env::disk::Open;
use env::{Env, File};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::position::{PhysicalOffset, QueueId, QueueOffset, Timestamp};

/// Size of a unit in its file.
pub const UNIT_BYTES: usize = 32;

/// Units in one file: 2 MiB.
pub(crate) const UNITS_PER_FILE: u64 = 65_536;

/// Most units one read gives.
const READ_UNITS: u64 = 16_384;

/// Most files kept open for reading.
const OPEN_FILES: usize = 128;

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
    /// By reference: a timer fired, or a transaction was committed; the record is older.
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
    Io(#[from] io::Error),
}

impl From<UnitsError> for io::Error {
    fn from(error: UnitsError) -> io::Error {
        match error {
            UnitsError::Io(error) => error,
            damaged => io::Error::new(io::ErrorKind::InvalidData, damaged),
        }
    }
}

impl Unit {
    /// The unit's bytes at its place.
    pub fn encode(&self, queue: QueueId, queue_offset: QueueOffset) -> [u8; UNIT_BYTES] {
        let mut bytes = [0; UNIT_BYTES];
        bytes[0..8].copy_from_slice(&self.physical_offset.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.tag_hash.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.visible_at.0.to_le_bytes());
        bytes[24] = match self.kind {
            UnitKind::Plain => 1,
            UnitKind::Fired => 2,
        };
        let checksum = unit_checksum(queue, queue_offset, &bytes[..28]);
        bytes[28..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a unit at its place; `None` if these are not its bytes.
    pub fn decode(bytes: &[u8; UNIT_BYTES], queue: QueueId, queue_offset: QueueOffset) -> Option<Unit> {
        let checksum = u32::from_le_bytes(bytes[28..].try_into().expect("4 bytes"));
        if checksum != unit_checksum(queue, queue_offset, &bytes[..28]) {
            return None;
        }
        Some(Unit {
            physical_offset: PhysicalOffset(u64::from_le_bytes(bytes[0..8].try_into().expect("8 bytes"))),
            size: u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes")),
            tag_hash: i32::from_le_bytes(bytes[12..16].try_into().expect("4 bytes")),
            visible_at: Timestamp(i64::from_le_bytes(bytes[16..24].try_into().expect("8 bytes"))),
            kind: match bytes[24] {
                1 => UnitKind::Plain,
                2 => UnitKind::Fired,
                _ => return None,
            },
        })
    }
}

fn unit_checksum(queue: QueueId, queue_offset: QueueOffset, bytes: &[u8]) -> u32 {
    let mut address = [0; 16];
    address[0..4].copy_from_slice(&queue.topic.0.to_le_bytes());
    address[4..8].copy_from_slice(&queue.queue.to_le_bytes());
    address[8..16].copy_from_slice(&queue_offset.0.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&address), bytes)
}

/// One queue, for readers. Written by apply only.
#[derive(Debug)]
pub struct Queue {
    id: QueueId,
    files: Arc<UnitFiles>,
    state: Mutex<State>,
    grown: Notify,
}

/// `min <= next`, `durable <= next`, and `tail` ends at `next` and begins at `durable` or before, so that every unit from
/// `min` on is in a synced file, in `tail`, or in both.
#[derive(Debug)]
struct State {
    min: QueueOffset,
    next: QueueOffset,
    /// Units below are in files, synced.
    durable: QueueOffset,
    last_visible_at: Option<Timestamp>,
    tail: VecDeque<Unit>,
}

impl State {
    fn tail_start(&self) -> QueueOffset {
        QueueOffset(self.next.0 - self.tail.len() as u64)
    }

    fn check(&self) {
        assert!(self.min <= self.next && self.durable <= self.next, "bounds {self:?}");
        assert!(self.tail_start() <= self.durable.max(self.min), "units {} are nowhere", self.durable);
    }
}

/// Bounds of a queue as a start or an image finds them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restored {
    /// First offset that exists here.
    pub min: QueueOffset,
    /// All units below are in files.
    pub next: QueueOffset,
    pub last_visible_at: Option<Timestamp>,
}

impl Queue {
    pub(crate) fn new(id: QueueId, files: Arc<UnitFiles>, restored: Restored) -> Queue {
        let Restored { min, next, last_visible_at } = restored;
        let state = State { min, next, durable: next, last_visible_at, tail: VecDeque::new() };
        state.check();
        Queue { id, files, state: Mutex::new(state), grown: Notify::new() }
    }

    /// Which queue.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// The offsets that exist: first available, and the one the next message gets.
    pub fn bounds(&self) -> Range<QueueOffset> {
        let state = self.state.lock();
        state.min..state.next
    }

    /// `visible_at` of the newest unit ever.
    pub fn last_visible_at(&self) -> Option<Timestamp> {
        self.state.lock().last_visible_at
    }

    /// Up to `limit` units from `from` on if they are in memory; `None` if a file must be read: [`Queue::read_units`].
    /// Empty if `from` is outside the bounds.
    pub fn units(&self, from: QueueOffset, limit: usize) -> Option<Vec<Unit>> {
        let state = self.state.lock();
        if from < state.min || from >= state.next {
            return Some(Vec::new());
        }
        let skipped = from.0.checked_sub(state.tail_start().0)? as usize;
        Some(state.tail.iter().skip(skipped).take(limit).copied().collect())
    }

    /// Up to `limit` units from `from` on; files are read off the caller's runtime and verified. Fewer than `limit` does
    /// not mean that there are no more; none does.
    pub async fn read_units(&self, from: QueueOffset, limit: usize) -> Result<Vec<Unit>, UnitsError> {
        loop {
            if let Some(units) = self.units(from, limit) {
                return Ok(units);
            }
            let end = {
                let state = self.state.lock();
                from.0.saturating_add((limit as u64).min(READ_UNITS)).min(state.durable.0)
            };
            match self.files.read(self.id, from, end).await {
                Ok(units) => return Ok(units),
                // An image was installed meanwhile and the files are gone by right.
                Err(_) if from < self.bounds().start => {}
                Err(error) => return Err(self.noted(error).await),
            }
        }
    }

    /// The offset that belongs to a time. Beyond the newest: the next offset (lower), the last one (upper); before the
    /// oldest: the first; a queue that never had a message: 0.
    pub async fn search_by_time(&self, time: Timestamp, boundary: TimeBoundary) -> Result<QueueOffset, UnitsError> {
        let earlier = |unit: &Unit| match boundary {
            TimeBoundary::Lower => unit.visible_at < time,
            TimeBoundary::Upper => unit.visible_at <= time,
        };
        let (bounds, first_not_earlier) = self.partition_point(earlier).await?;
        Ok(match boundary {
            TimeBoundary::Lower => first_not_earlier,
            TimeBoundary::Upper if first_not_earlier == bounds.start => bounds.start,
            TimeBoundary::Upper => QueueOffset(first_not_earlier.0 - 1),
        })
    }

    /// The first offset whose unit is not `earlier`, and the bounds at the time. `earlier` holds for a prefix of the
    /// queue, because `visible_at` never decreases.
    async fn partition_point(
        &self,
        earlier: impl Fn(&Unit) -> bool,
    ) -> Result<(Range<QueueOffset>, QueueOffset), UnitsError> {
        /// Few enough to read at once.
        const BLOCK: u64 = 128;
        loop {
            let (bounds, mut low, mut high) = {
                let state = self.state.lock();
                let bounds = state.min..state.next;
                let tail_start = state.tail_start().max(state.min);
                let in_tail = state.tail.partition_point(&earlier);
                if in_tail > 0 || tail_start == state.min {
                    let found = QueueOffset(state.tail_start().0 + in_tail as u64);
                    return Ok((bounds, found.max(state.min)));
                }
                (bounds, state.min.0, tail_start.0)
            };
            // Units below `low` are earlier; those from `high` on are not.
            let searched = async {
                while low < high {
                    if high - low <= BLOCK {
                        let units = self.read_units(QueueOffset(low), (high - low) as usize).await?;
                        let count = units.iter().take_while(|unit| earlier(unit)).count() as u64;
                        let whole = count as usize == units.len();
                        low += count;
                        if !whole || units.is_empty() {
                            return Ok(low);
                        }
                        continue;
                    }
                    let middle = low + (high - low) / 2;
                    match self.read_units(QueueOffset(middle), 1).await?.first() {
                        Some(unit) if earlier(unit) => low = middle + 1,
                        Some(_) => high = middle,
                        None => return Ok(low),
                    }
                }
                Ok::<u64, UnitsError>(low)
            };
            let found = searched.await?;
            if self.bounds().start == bounds.start {
                return Ok((bounds, QueueOffset(found)));
            }
            // An image was installed meanwhile: search what is there now.
        }
    }

    /// The first unit visible at `time` that points at `at`.
    pub(crate) async fn find_at_time(
        &self,
        time: Timestamp,
        at: PhysicalOffset,
    ) -> Result<Option<(QueueOffset, Unit)>, UnitsError> {
        let (_, mut from) = self.partition_point(|unit| unit.visible_at < time).await?;
        loop {
            let units = self.read_units(from, 256).await?;
            if units.is_empty() {
                return Ok(None);
            }
            for unit in units {
                if unit.visible_at != time {
                    return Ok(None);
                }
                if unit.physical_offset == at {
                    return Ok(Some((from, unit)));
                }
                from.0 += 1;
            }
        }
    }

    /// Resolves when the queue has units beyond `offset` (its next offset is greater). Cancel-safe; no wake-up is lost.
    pub async fn grown_beyond(&self, offset: QueueOffset) {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            // Registered before looking, so that a unit appended in between is either seen or wakes us.
            grown.as_mut().enable();
            if self.state.lock().next > offset {
                return;
            }
            grown.await;
        }
    }

    async fn noted(&self, error: UnitsError) -> UnitsError {
        if let UnitsError::Damaged { .. } = &error {
            self.files.damage.note(&error.to_string()).await;
        }
        error
    }
}

// For apply and the materializer.
impl Queue {
    /// Appends a unit and gives its offset. Readers see it at once; [`Queue::wake`] tells those who wait.
    pub(crate) fn push(&self, unit: Unit) -> QueueOffset {
        let mut state = self.state.lock();
        assert!(state.last_visible_at <= Some(unit.visible_at), "queue {}: visible-at goes back", self.id);
        let queue_offset = state.next;
        state.next.0 += 1;
        state.last_visible_at = Some(unit.visible_at);
        state.tail.push_back(unit);
        queue_offset
    }

    pub(crate) fn wake(&self) {
        self.grown.notify_waiters();
    }

    /// Units that are in no file yet, below `end`, and the offset of the first.
    pub(crate) fn unwritten(&self, end: QueueOffset) -> (QueueOffset, Vec<Unit>) {
        let state = self.state.lock();
        state.check();
        assert!(end <= state.next, "queue {}: {end} is beyond {}", self.id, state.next);
        let skipped = (state.durable.0 - state.tail_start().0) as usize;
        let count = end.0.saturating_sub(state.durable.0) as usize;
        (state.durable, state.tail.iter().skip(skipped).take(count).copied().collect())
    }

    /// Units below `end` are in files and synced.
    pub(crate) fn became_durable(&self, end: QueueOffset) {
        let mut state = self.state.lock();
        assert!(end <= state.next, "queue {}: durable {end} is beyond {}", self.id, state.next);
        state.durable = state.durable.max(end);
    }

    /// Forgets units that are in files, except the newest `keep`. Gives how many are left in memory.
    pub(crate) fn trim(&self, keep: usize) -> usize {
        let mut state = self.state.lock();
        let durable_in_tail = state.durable.0.saturating_sub(state.tail_start().0) as usize;
        let surplus = state.tail.len().saturating_sub(keep).min(durable_in_tail);
        state.tail.drain(..surplus);
        let room = state.tail.len() * 2;
        state.tail.shrink_to(room);
        state.check();
        state.tail.len()
    }

    /// Units below `min` are trimmed: they are not read any more, and their files may go.
    pub(crate) fn begin_at(&self, min: QueueOffset) {
        let mut state = self.state.lock();
        // Where an image was installed the queue may begin later than elsewhere, until the log has caught up.
        state.min = state.min.max(min);
        state.check();
    }

    /// An image replaces everything: units below its bound do not exist here any more.
    pub(crate) fn replace(&self, restored: Restored) {
        let mut state = self.state.lock();
        assert!(restored.next >= state.next, "queue {}: an image from the past", self.id);
        let Restored { min, next, last_visible_at } = restored;
        *state = State { min, next, durable: next, last_visible_at, tail: VecDeque::new() };
        state.check();
    }
}

/// Where damage of derived files is noted, so that the next start rebuilds them: a file `rebuild` beside them.
#[derive(Debug)]
pub(crate) struct Damage {
    env: Env,
    dir: PathBuf,
    noted: AtomicBool,
    /// The same with what it is, once it is durable: the replica must stop.
    found: watch::Sender<Option<String>>,
}

impl Damage {
    pub const NAME: &'static str = "rebuild";

    pub fn new(env: Env, dir: PathBuf) -> Damage {
        Damage { env, dir, noted: AtomicBool::new(false), found: watch::Sender::new(None) }
    }

    pub fn found(&self) -> watch::Receiver<Option<String>> {
        self.found.subscribe()
    }

    #[cfg(test)]
    pub fn is_noted(&self) -> bool {
        self.noted.load(Ordering::Acquire)
    }

    /// Notes it durably, once. If that fails too, the next start finds the damage again by itself.
    pub async fn note(&self, what: &str) {
        if self.noted.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::error!(dir = %self.dir.display(), "derived state is damaged, the next start rebuilds it: {what}");
        let (env, dir) = (self.env.clone(), self.dir.clone());
        let written = aside(&self.env, async move { note_rebuild(&env, &dir, Rebuild::Damaged).await }).await;
        if let Err(error) = written {
            tracing::error!("the damage could not be noted: {error}");
        }
        self.found.send_replace(Some(what.to_owned()));
    }
}

/// Why the derived state is to be made anew at the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, crate::codec::Encode, crate::codec::Decode)]
pub(crate) enum Rebuild {
    /// A file is damaged: replay everything that the log still has.
    Damaged,
    /// This image replaces it; until the image is there under its name, nothing has happened.
    Install(crate::position::LogId),
    /// A majority has another state.
    Diverged(RebuildFrom),
}

/// Where a state that has gone wrong was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, crate::codec::Encode, crate::codec::Decode)]
pub(crate) enum RebuildFrom {
    /// Nowhere that is known here.
    Nothing,
    /// The log is all there.
    Log,
    /// This image was agreed on, and goes with the beginning of the log.
    Image(crate::position::LogId),
}

/// Writes the note durably.
pub(crate) async fn note_rebuild(env: &Env, dir: &Path, rebuild: Rebuild) -> io::Result<()> {
    let value = crate::codec::to_bytes(&rebuild);
    let mut bytes = crc32c::crc32c(&value).to_le_bytes().to_vec();
    bytes.extend(value);
    replace_file(env, &dir.join(Damage::NAME), Bytes::from(bytes)).await
}

/// The note, if there is one. One that cannot be read was torn while being written for some reason: damaged.
pub(crate) async fn noted_rebuild(env: &Env, dir: &Path) -> io::Result<Option<Rebuild>> {
    let Some(bytes) = read_file(env, &dir.join(Damage::NAME)).await? else { return Ok(None) };
    let value =
        bytes.split_first_chunk::<4>().filter(|(crc, value)| u32::from_le_bytes(**crc) == crc32c::crc32c(value));
    Ok(Some(value.and_then(|(_, value)| crate::codec::from_bytes(value).ok()).unwrap_or(Rebuild::Damaged)))
}

/// Writes a small file beside, syncs and renames it: after a crash it is there as a whole or not at all.
pub(crate) async fn replace_file(env: &Env, path: &Path, bytes: Bytes) -> io::Result<()> {
    let beside = path.with_extension("new");
    let file = env.disk.open(&beside, Open::OrCreate).await?;
    file.set_len(0).await?;
    file.write_at(0, &[bytes]).await?;
    file.sync_data().await?;
    env.disk.rename(&beside, path).await?;
    env.disk.sync_dir(path.parent().expect("a file lies in a directory")).await
}

/// All of a small file; `None` if it is not there.
pub(crate) async fn read_file(env: &Env, path: &Path) -> io::Result<Option<Bytes>> {
    match env.disk.open(path, Open::ToRead).await {
        Ok(file) => Ok(Some(file.read_at(0, file.len()? as usize).await?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs disk work away from the caller's runtime; in a simulation, where nothing blocks, in place.
pub(crate) async fn aside<T: Send + 'static>(env: &Env, work: impl Future<Output = T> + Send + 'static) -> T {
    match env.executor {
        env::Executor::Threads => {
            let runtime = tokio::runtime::Handle::current();
            env.executor.blocking(move || runtime.block_on(work)).await
        }
        env::Executor::Tasks => work.await,
    }
}

/// The unit files of all queues.
#[derive(Debug)]
pub(crate) struct UnitFiles {
    env: Env,
    dir: PathBuf,
    units_per_file: u64,
    pub damage: Arc<Damage>,
    /// A few recently read files.
    open: Mutex<OpenFiles>,
    /// The newest file of each queue whose name is known to be durable. Only what this process synced counts: a file
    /// found at the start may be there by the grace of the page cache.
    named: Mutex<BTreeMap<QueueId, u64>>,
    /// The first file of each queue that is kept, where files before it were removed.
    begun: Mutex<BTreeMap<QueueId, u64>>,
}

type FileKey = (QueueId, u64);

#[derive(Debug, Default)]
struct OpenFiles {
    files: BTreeMap<FileKey, (Arc<dyn File>, u64)>,
    uses: u64,
    /// Moved when all files go, so that one opened before is not remembered after.
    generation: u64,
}

impl UnitFiles {
    pub fn new(env: Env, dir: PathBuf, units_per_file: u64, damage: Arc<Damage>) -> UnitFiles {
        UnitFiles {
            env,
            dir,
            units_per_file,
            damage,
            open: Mutex::default(),
            named: Mutex::default(),
            begun: Mutex::default(),
        }
    }

    /// Writes ranges of units and syncs them with their directories: durable when this returns.
    ///
    /// All are written before the first is synced, so that the file system can take them to the disk together.
    pub async fn write(&self, ranges: &[(QueueId, QueueOffset, Vec<Unit>)]) -> io::Result<()> {
        let (mut written, mut named) = (Vec::new(), Vec::new());
        for (queue, from, units) in ranges {
            let directory = self.directory(*queue);
            let mut from = from.0;
            let mut units = units.as_slice();
            while !units.is_empty() {
                let position = from % self.units_per_file;
                let first = from - position;
                let count = ((self.units_per_file - position) as usize).min(units.len());
                let mut bytes = BytesMut::with_capacity(count * UNIT_BYTES);
                for (unit, offset) in units[..count].iter().zip(from..) {
                    bytes.put_slice(&unit.encode(*queue, QueueOffset(offset)));
                }
                if self.named.lock().get(queue) != Some(&first) {
                    self.env.disk.create_dir_all(&directory).await?;
                    named.push((*queue, first));
                }
                let file = self.env.disk.open(&directory.join(file_name(first)), Open::OrCreate).await?;
                file.write_at(position * UNIT_BYTES as u64, &[bytes.freeze()]).await?;
                written.push(file);
                from += count as u64;
                units = &units[count..];
            }
        }
        for file in written {
            file.sync_data().await?;
        }
        if !named.is_empty() {
            for (queue, _) in &named {
                self.env.disk.sync_dir(&self.directory(*queue)).await?;
            }
            self.env.disk.sync_dir(&self.dir).await?;
            self.named.lock().extend(named);
        }
        Ok(())
    }

    /// Reads `from..end`, or the part of it that lies in one file, away from the caller's runtime.
    async fn read(self: &Arc<Self>, queue: QueueId, from: QueueOffset, end: u64) -> Result<Vec<Unit>, UnitsError> {
        let files = self.clone();
        aside(&self.env, async move { files.read_here(queue, from, end).await }).await
    }

    async fn read_here(&self, queue: QueueId, from: QueueOffset, end: u64) -> Result<Vec<Unit>, UnitsError> {
        let position = from.0 % self.units_per_file;
        let count = end.saturating_sub(from.0).min(self.units_per_file - position);
        let file = match self.file(queue, from.0 - position).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(UnitsError::Damaged { queue, queue_offset: from });
            }
            Err(error) => return Err(error.into()),
        };
        let bytes = file.read_at(position * UNIT_BYTES as u64, count as usize * UNIT_BYTES).await?;
        let mut units = Vec::with_capacity(count as usize);
        for offset in (from.0..).map(QueueOffset).take(count as usize) {
            let at = units.len() * UNIT_BYTES;
            let unit = bytes
                .get(at..at + UNIT_BYTES)
                .and_then(|bytes| Unit::decode(bytes.try_into().expect("32 bytes"), queue, offset))
                .ok_or(UnitsError::Damaged { queue, queue_offset: offset })?;
            units.push(unit);
        }
        Ok(units)
    }

    async fn file(&self, queue: QueueId, first: u64) -> io::Result<Arc<dyn File>> {
        let key = (queue, first);
        let generation = {
            let mut open = self.open.lock();
            open.uses += 1;
            let uses = open.uses;
            if let Some((file, used)) = open.files.get_mut(&key) {
                *used = uses;
                return Ok(file.clone());
            }
            open.generation
        };
        let path = self.directory(queue).join(file_name(first));
        let file = self.env.disk.open(&path, Open::Existing).await?;
        let mut open = self.open.lock();
        if open.generation == generation {
            if open.files.len() >= OPEN_FILES {
                let oldest = open.files.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
                oldest.map(|oldest| open.files.remove(&oldest));
            }
            let uses = open.uses;
            open.files.insert(key, (file.clone(), uses));
        }
        Ok(file)
    }

    /// Removes the files of each queue that hold nothing but units below its `min`. They are derived and nobody reads them:
    /// one that a crash brings back is removed when its queue begins later again.
    pub async fn remove_below(&self, begun: &[(QueueId, QueueOffset)]) -> io::Result<()> {
        for (queue, min) in begun {
            let first_kept = min.0 - min.0 % self.units_per_file;
            let before = self.begun.lock().insert(*queue, first_kept).unwrap_or(0);
            if before == first_kept {
                continue;
            }
            let directory = self.directory(*queue);
            let names = match self.env.disk.list(&directory).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                names => names?,
            };
            for first in names.iter().filter_map(|name| name.name.parse::<u64>().ok()) {
                if first < first_kept {
                    self.open.lock().files.remove(&(*queue, first));
                    self.env.disk.remove_file(&directory.join(file_name(first))).await?;
                }
            }
        }
        Ok(())
    }

    /// Forgets open files: called before and after all files are removed.
    pub fn forget(&self) {
        let mut open = self.open.lock();
        open.files.clear();
        open.generation += 1;
        drop(open);
        self.named.lock().clear();
        self.begun.lock().clear();
    }

    /// Removes all files and directories, durably; the directory itself stays.
    pub async fn remove_all(&self) -> io::Result<()> {
        match self.env.disk.remove_dir_all(&self.dir).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
        self.env.disk.create_dir_all(&self.dir).await?;
        self.env.disk.sync_dir(&self.dir).await?;
        self.env.disk.sync_dir(self.dir.parent().expect("consumequeue has a parent")).await
    }

    /// The queues that have a directory. One listing, whatever the number of queues: no directory is entered.
    pub async fn queues_with_files(&self) -> io::Result<Vec<String>> {
        let names = self.env.disk.list(&self.dir).await?;
        Ok(names.into_iter().filter(|name| name.is_directory).map(|name| name.name).collect())
    }

    fn directory(&self, queue: QueueId) -> PathBuf {
        self.dir.join(queue.to_string())
    }
}

fn file_name(first: u64) -> String {
    format!("{first:020}")
}

#[cfg(test)]
mod tests {
    use env::Rng;
    use env::disk::simulated::SimDisk;

    use super::*;
    use crate::position::TopicId;

    const QUEUE: QueueId = QueueId { topic: TopicId(7), queue: 3 };

    fn unit(number: u64, visible_at: i64) -> Unit {
        Unit {
            physical_offset: PhysicalOffset(number * 128 + 64),
            size: number as u32 + 1,
            tag_hash: -(number as i32),
            visible_at: Timestamp(visible_at),
            kind: if number.is_multiple_of(3) { UnitKind::Fired } else { UnitKind::Plain },
        }
    }

    async fn queue(disk: &SimDisk, next: u64) -> Queue {
        let env = Env::simulated(1, disk.clone());
        let dir = PathBuf::from("/data");
        env.disk.create_dir_all(&dir.join("consumequeue")).await.unwrap();
        env.disk.sync_dir(&dir).await.unwrap();
        env.disk.sync_dir(Path::new("/")).await.unwrap();
        let damage = Arc::new(Damage::new(env.clone(), dir.clone()));
        let files = Arc::new(UnitFiles::new(env, dir.join("consumequeue"), 8, damage));
        Queue::new(QUEUE, files, Restored { min: QueueOffset(0), next: QueueOffset(next), last_visible_at: None })
    }

    async fn sync(queue: &Queue, keep: usize) {
        let end = queue.bounds().end;
        let (from, units) = queue.unwritten(end);
        queue.files.write(&[(QUEUE, from, units)]).await.unwrap();
        queue.became_durable(end);
        queue.trim(keep);
    }

    async fn all(queue: &Queue) -> Vec<Unit> {
        let mut units = Vec::new();
        loop {
            let more = queue.read_units(QueueOffset(units.len() as u64), 5).await.unwrap();
            if more.is_empty() {
                return units;
            }
            units.extend(more);
        }
    }

    #[test]
    fn golden_unit() {
        let unit = Unit {
            physical_offset: PhysicalOffset(0x0102),
            size: 3,
            tag_hash: -2,
            visible_at: Timestamp(5),
            kind: UnitKind::Fired,
        };
        let bytes = unit.encode(QUEUE, QueueOffset(9));
        let golden = [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 254, 255, 255, 255, 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        assert_eq!(bytes[..28], golden);
        assert_eq!(u32::from_le_bytes(bytes[28..].try_into().unwrap()), 3_321_285_461);
        assert_eq!(Unit::decode(&bytes, QUEUE, QueueOffset(9)), Some(unit));
        assert_eq!(Unit::decode(&bytes, QUEUE, QueueOffset(8)), None, "another place");
        assert_eq!(Unit::decode(&bytes, QueueId { queue: 4, ..QUEUE }, QueueOffset(9)), None, "another queue");
        for bit in 0..UNIT_BYTES * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Unit::decode(&bytes, QUEUE, QueueOffset(9)), None, "bit {bit}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn units_are_the_same_from_memory_and_from_files() {
        let disk = SimDisk::new(Rng::seeded(1));
        let queue_ = queue(&disk, 0).await;
        let model: Vec<Unit> = (0..30).map(|number| unit(number, 100)).collect();
        for (number, unit) in model.iter().enumerate() {
            assert_eq!(queue_.push(*unit), QueueOffset(number as u64));
            if number % 7 == 6 {
                sync(&queue_, number % 4).await;
            }
            assert_eq!(all(&queue_).await, model[..=number]);
        }
        assert_eq!(queue_.units(QueueOffset(30), 1), Some(vec![]), "beyond the end");
        assert_eq!(queue_.units(QueueOffset(0), 1), None, "no longer in memory");
        sync(&queue_, 0).await;
        // Power fails, and everything is still there for a queue restored at its bound, without a memory tail.
        disk.crash_keeping(|_| false);
        assert_eq!(all(&queue(&disk, 30).await).await, model);
        // A lower bound cuts.
        let cut = queue(&disk, 12).await;
        assert_eq!(all(&cut).await, model[..12]);
        cut.push(unit(12, 100));
        assert_eq!(all(&cut).await, model[..13]);
    }

    #[tokio::test(start_paused = true)]
    async fn search_by_time_agrees_with_a_model() {
        let seed = Rng::from_entropy().u64();
        println!("seed {seed}");
        let rng = Rng::seeded(seed);
        for length in [0, 1, 2, 9, 400] {
            let disk = SimDisk::new(Rng::seeded(1));
            let queue = queue(&disk, 0).await;
            let mut times = Vec::new();
            for number in 0..length {
                let time = times.last().copied().unwrap_or(10) + [0, 0, 1, 5][rng.below(4) as usize];
                times.push(time);
                queue.push(unit(number, time));
                if rng.chance(1, 40) {
                    sync(&queue, rng.below(20) as usize).await;
                }
            }
            for time in 0..times.last().copied().unwrap_or(0) + 3 {
                let lower = times.iter().position(|at| *at >= time).unwrap_or(times.len());
                let upper = times.iter().rposition(|at| *at <= time).unwrap_or(0);
                let found = |boundary| queue.search_by_time(Timestamp(time), boundary);
                assert_eq!(found(TimeBoundary::Lower).await.unwrap(), QueueOffset(lower as u64), "lower {time}");
                assert_eq!(found(TimeBoundary::Upper).await.unwrap(), QueueOffset(upper as u64), "upper {time}");
            }
            for number in 0..length {
                let at = unit(number, 0).physical_offset;
                let found = queue.find_at_time(Timestamp(times[number as usize]), at).await.unwrap();
                assert_eq!(found.map(|(offset, _)| offset), Some(QueueOffset(number)));
                assert_eq!(queue.find_at_time(Timestamp(times[number as usize] - 1), at).await.unwrap(), None);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn damage_is_noticed_and_noted() {
        for missing in [false, true] {
            let disk = SimDisk::new(Rng::seeded(1));
            let queue = queue(&disk, 0).await;
            for number in 0..20 {
                queue.push(unit(number, 1));
            }
            sync(&queue, 0).await;
            let path = "/data/consumequeue/7.3/00000000000000000008";
            if missing {
                env::Disk::remove_file(&disk, Path::new(path)).await.unwrap();
            } else {
                disk.flip_bit(path, 3 * 32 + 5, 1);
            }
            assert_eq!(queue.read_units(QueueOffset(16), 10).await.unwrap().len(), 4);
            let error = queue.read_units(QueueOffset(8), 10).await.unwrap_err();
            assert!(matches!(error, UnitsError::Damaged { .. }), "{error}");
            assert!(queue.files.damage.is_noted());
            disk.crash_keeping(|_| false);
            let env = Env::simulated(1, disk);
            assert_eq!(noted_rebuild(&env, Path::new("/data")).await.unwrap(), Some(Rebuild::Damaged));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn long_polls_are_woken() {
        let disk = SimDisk::new(Rng::seeded(1));
        let queue = Arc::new(queue(&disk, 0).await);
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.grown_beyond(QueueOffset(1)).await }
        });
        tokio::task::yield_now().await;
        queue.push(unit(0, 1));
        queue.wake();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "offset 1 is not there yet");
        queue.push(unit(1, 1));
        queue.wake();
        waiting.await.unwrap();
        queue.grown_beyond(QueueOffset(0)).await;
    }
}

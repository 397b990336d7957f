//! The index: what a record's own place in the log does not tell. Rows of two kinds, each sorted in parts of its own.
//!
//! - [`IndexRow`]: from a record's physical offset to the units that point at it by reference. A plain record's unit is
//!   found by its store time ([`crate::consume_queue::Queue`]); that of one which became visible later is not.
//! - [`KeyRow`]: from the hash of a message's key to its units, by the time at which they became visible.
//!
//! Rows are a set: a replay that adds them again adds nothing.
//!
//! - Derived. The newest rows are in memory; a derived sync seals them into a part: sorted, immutable, checksummed.
//! - A part is merged with the one before it until that one is more than twice as large, so there are few of them; rows of
//!   keys, of which every message has some, only up to a size at which reading a part through is still nothing.
//!
//! ```text
//! index/<sequence, 20 digits>          by-reference rows     pages of 4096 bytes, little-endian
//! index/<sequence, 20 digits>.keys     rows of keys
//! page 0   0 magic u32 "RMQX" or "RMQK" | 4 version u8 = 1 | 5 zero u8 x 3 | 8 row count u64
//!          16 keys only: highest physical offset of a row u64
//! page n   0 row count u16 | 2 zero u16 | 4 zero u32 | 8 rows, ascending:
//!            by reference, 24 bytes: physical offset u64 | topic id u32 | queue u32 | queue offset u64
//!            keys, 40 bytes: hash u64 | visible at i64 | physical offset u64 | topic id u32 | queue u32 | queue offset u64
//! each page ends with the CRC32C u32 of the part's sequence u64, the page number u64 and the page's other bytes
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use env::disk::Open;
use env::{Env, File};
use parking_lot::RwLock;

use crate::consume_queue::{Damage, aside};
use crate::position::{PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};

const VERSION: u8 = 1;
pub(crate) const PAGE_BYTES: usize = 4096;
const ROWS_AT: usize = 8;
/// What the name of a part ends with while it is written.
const BESIDE: &str = ".new";
/// Pages read or written at once when parts are merged.
const MERGE_PAGES: u64 = 64;

/// A unit that points back at an older record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexRow {
    /// The record.
    pub physical_offset: PhysicalOffset,
    /// The queue that shows it,
    pub queue: QueueId,
    /// and where.
    pub queue_offset: QueueOffset,
}

/// The unit of a message that has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyRow {
    /// Of the key, as its record's entry has it.
    pub hash: u64,
    /// When the message became visible.
    pub visible_at: Timestamp,
    /// The record.
    pub physical_offset: PhysicalOffset,
    /// The queue that shows it,
    pub queue: QueueId,
    /// and where.
    pub queue_offset: QueueOffset,
}

/// A kind of rows. Their order is that of their fields.
pub(crate) trait Row: Copy + Ord + std::fmt::Debug + Send + Sync + 'static {
    const MAGIC: [u8; 4];
    const BYTES: usize;
    /// Of file names.
    const SUFFIX: &'static str;
    /// Parts that would have more together are not merged.
    const MERGED_ROWS_MAX: u64;
    /// Whether the last row of a part is also that of the last record; else the head says where that is.
    const IS_BY_PLACE: bool;

    const PER_PAGE: usize = (PAGE_BYTES - ROWS_AT - 4) / Self::BYTES;

    fn encode(&self, bytes: &mut [u8]);
    fn decode(bytes: &[u8]) -> Self;
    fn physical_offset(&self) -> PhysicalOffset;
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

impl Row for IndexRow {
    const MAGIC: [u8; 4] = *b"RMQX";
    const BYTES: usize = 24;
    const SUFFIX: &'static str = "";
    const MERGED_ROWS_MAX: u64 = u64::MAX;
    const IS_BY_PLACE: bool = true;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[0..8].copy_from_slice(&self.physical_offset.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.queue.topic.0.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.queue.queue.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.queue_offset.0.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> IndexRow {
        IndexRow {
            physical_offset: PhysicalOffset(u64_at(bytes, 0)),
            queue: QueueId { topic: TopicId(u32_at(bytes, 8)), queue: u32_at(bytes, 12) },
            queue_offset: QueueOffset(u64_at(bytes, 16)),
        }
    }

    fn physical_offset(&self) -> PhysicalOffset {
        self.physical_offset
    }
}

impl Row for KeyRow {
    const MAGIC: [u8; 4] = *b"RMQK";
    const BYTES: usize = 40;
    const SUFFIX: &'static str = ".keys";
    const MERGED_ROWS_MAX: u64 = 4 << 20;
    const IS_BY_PLACE: bool = false;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[0..8].copy_from_slice(&self.hash.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.visible_at.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.physical_offset.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.queue.topic.0.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.queue.queue.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.queue_offset.0.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> KeyRow {
        KeyRow {
            hash: u64_at(bytes, 0),
            visible_at: Timestamp(u64_at(bytes, 8) as i64),
            physical_offset: PhysicalOffset(u64_at(bytes, 16)),
            queue: QueueId { topic: TopicId(u32_at(bytes, 24)), queue: u32_at(bytes, 28) },
            queue_offset: QueueOffset(u64_at(bytes, 32)),
        }
    }

    fn physical_offset(&self) -> PhysicalOffset {
        self.physical_offset
    }
}

fn seal_page(page: &mut [u8], sequence: u64, number: u64) {
    let (content, checksum) = page.split_at_mut(PAGE_BYTES - 4);
    checksum.copy_from_slice(&page_checksum(content, sequence, number).to_le_bytes());
}

fn page_checksum(content: &[u8], sequence: u64, number: u64) -> u32 {
    let mut address = [0; 16];
    address[..8].copy_from_slice(&sequence.to_le_bytes());
    address[8..].copy_from_slice(&number.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&address), content)
}

fn checked_page(page: &[u8], sequence: u64, number: u64) -> Option<&[u8]> {
    let (content, checksum) = page.split_at_checked(PAGE_BYTES - 4)?;
    let checksum = u32::from_le_bytes(checksum.try_into().ok()?);
    (checksum == page_checksum(content, sequence, number)).then_some(content)
}

fn head_page<R: Row>(sequence: u64, row_count: u64, highest: PhysicalOffset) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    page[0..4].copy_from_slice(&R::MAGIC);
    page[4] = VERSION;
    page[8..16].copy_from_slice(&row_count.to_le_bytes());
    if !R::IS_BY_PLACE {
        page[16..24].copy_from_slice(&highest.0.to_le_bytes());
    }
    seal_page(&mut page, sequence, 0);
    page
}

fn rows_page<R: Row>(sequence: u64, number: u64, rows: &[R]) -> Vec<u8> {
    assert!(!rows.is_empty() && rows.len() <= R::PER_PAGE);
    let mut page = vec![0; PAGE_BYTES];
    page[0..2].copy_from_slice(&(rows.len() as u16).to_le_bytes());
    for (row, place) in rows.iter().zip(page[ROWS_AT..].chunks_exact_mut(R::BYTES)) {
        row.encode(place);
    }
    seal_page(&mut page, sequence, number);
    page
}

/// A sealed, sorted, immutable file.
#[derive(Debug)]
struct Part<R> {
    sequence: u64,
    file: Arc<dyn File>,
    row_count: u64,
    /// As the head says it.
    highest: PhysicalOffset,
    rows: PhantomData<R>,
}

impl<R: Row> Part<R> {
    async fn open(env: &Env, dir: &Path, sequence: u64) -> io::Result<Part<R>> {
        let file = env.disk.open(&dir.join(part_name::<R>(sequence)), Open::ToRead).await?;
        let page = file.read_at(0, PAGE_BYTES).await?;
        let content = checked_page(&page, sequence, 0).ok_or_else(|| damaged(sequence))?;
        if content[0..4] != R::MAGIC || content[4] != VERSION {
            return Err(damaged(sequence));
        }
        let (row_count, highest) = (u64_at(content, 8), PhysicalOffset(u64_at(content, 16)));
        let part = Part { sequence, file, row_count, highest, rows: PhantomData };
        match part.file.len()? == (1 + part.page_count()) * PAGE_BYTES as u64 {
            true => Ok(part),
            false => Err(damaged(sequence)),
        }
    }

    fn page_count(&self) -> u64 {
        self.row_count.div_ceil(R::PER_PAGE as u64)
    }

    /// The last record that a row is of. `None`: there are no rows; all of it was trimmed when it was merged.
    async fn highest(&self) -> io::Result<Option<PhysicalOffset>> {
        match self.page_count().checked_sub(1) {
            Some(last) if R::IS_BY_PLACE => Ok(self.rows(last, 1).await?.last().map(R::physical_offset)),
            Some(_) => Ok(Some(self.highest)),
            None => Ok(None),
        }
    }

    /// Rows of the pages `first..first + count` (numbered from 0 behind the head page).
    async fn rows(&self, first: u64, count: u64) -> io::Result<Vec<R>> {
        let bytes = self.file.read_at((1 + first) * PAGE_BYTES as u64, count as usize * PAGE_BYTES).await?;
        let mut rows = Vec::with_capacity(count as usize * R::PER_PAGE);
        for (page, number) in bytes.chunks(PAGE_BYTES).zip(first + 1..) {
            let content = checked_page(page, self.sequence, number).ok_or_else(|| damaged(self.sequence))?;
            let row_count = u16::from_le_bytes([content[0], content[1]]) as usize;
            if row_count > R::PER_PAGE {
                return Err(damaged(self.sequence));
            }
            rows.extend(content[ROWS_AT..].chunks_exact(R::BYTES).take(row_count).map(R::decode));
        }
        if bytes.len() != count as usize * PAGE_BYTES {
            return Err(damaged(self.sequence));
        }
        Ok(rows)
    }

    /// Adds the rows between `first` and `last`, and these, to `found`; of many about `limit`, the last ones.
    async fn find(&self, first: R, last: R, limit: usize, found: &mut BTreeSet<R>) -> io::Result<()> {
        // The first page whose last row is not below `last`: nothing behind it is wanted.
        let (mut low, mut high) = (0, self.page_count());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.rows(middle, 1).await?.last() {
                Some(row) if *row < last => low = middle + 1,
                _ => high = middle,
            }
        }
        let mut count = 0;
        for page in (0..self.page_count().min(low + 1)).rev() {
            let rows = self.rows(page, 1).await?;
            let wanted = rows.iter().filter(|row| (first..=last).contains(*row));
            let before = found.len();
            found.extend(wanted);
            count += found.len() - before;
            if count >= limit || rows.first().is_none_or(|row| *row < first) {
                break;
            }
        }
        Ok(())
    }
}

/// A part's rows in order, read a few pages at a time.
struct Rows<'a, R> {
    part: &'a Part<R>,
    next_page: u64,
    rows: std::vec::IntoIter<R>,
}

impl<R: Row> Rows<'_, R> {
    async fn peek(&mut self) -> io::Result<Option<R>> {
        if self.rows.as_slice().is_empty() && self.next_page < self.part.page_count() {
            let count = (self.part.page_count() - self.next_page).min(MERGE_PAGES);
            self.rows = self.part.rows(self.next_page, count).await?.into_iter();
            self.next_page += count;
        }
        Ok(self.rows.as_slice().first().copied())
    }
}

/// Writes a part beside its name, a few pages at a time.
struct PartWriter<R> {
    file: Arc<dyn File>,
    sequence: u64,
    row_count: u64,
    next_page: u64,
    rows: Vec<R>,
    last: Option<R>,
    highest: PhysicalOffset,
}

impl<R: Row> PartWriter<R> {
    async fn add(&mut self, row: R) -> io::Result<()> {
        if self.last == Some(row) {
            return Ok(());
        }
        assert!(self.last < Some(row), "rows of a part ascend");
        self.last = Some(row);
        self.highest = self.highest.max(row.physical_offset());
        self.row_count += 1;
        self.rows.push(row);
        if self.rows.len() == R::PER_PAGE * MERGE_PAGES as usize { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> io::Result<()> {
        let mut bytes = BytesMut::with_capacity(self.rows.len().div_ceil(R::PER_PAGE) * PAGE_BYTES);
        let at = self.next_page * PAGE_BYTES as u64;
        for rows in self.rows.chunks(R::PER_PAGE) {
            bytes.extend_from_slice(&rows_page(self.sequence, self.next_page, rows));
            self.next_page += 1;
        }
        self.rows.clear();
        if bytes.is_empty() { Ok(()) } else { self.file.write_at(at, &[bytes.freeze()]).await }
    }
}

pub(crate) fn part_name<R: Row>(sequence: u64) -> String {
    format!("{sequence:020}{}", R::SUFFIX)
}

/// The part of this kind that a file is; an error for one of this kind that is none, `None` for one of another kind.
fn sequence_of<R: Row>(name: &str) -> Option<Result<u64, ()>> {
    let whole = name.strip_suffix(BESIDE).unwrap_or(name);
    let is_of_kind = |suffix: &str| whole.ends_with(suffix) && !suffix.is_empty();
    let is_ours = if R::SUFFIX.is_empty() { !is_of_kind(KeyRow::SUFFIX) } else { is_of_kind(R::SUFFIX) };
    is_ours.then(|| name.strip_suffix(R::SUFFIX).and_then(|number| number.parse().ok()).ok_or(()))
}

/// The parts of this kind among file names.
pub(crate) fn parts_among<'a, R: Row>(names: impl Iterator<Item = &'a str>) -> Vec<u64> {
    names.filter_map(|name| sequence_of::<R>(name)?.ok()).collect()
}

fn damaged(sequence: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("index part {sequence} is damaged"))
}

/// Reads all of a part. Gives its rows, or the first page that is not what was written, and what is wrong.
pub(crate) async fn read_part<R: Row>(
    env: &Env,
    dir: &Path,
    sequence: u64,
) -> Result<Vec<R>, (Option<u64>, io::Error)> {
    let part = Part::<R>::open(env, dir, sequence).await.map_err(|error| (Some(0), error))?;
    let mut rows: Vec<R> = Vec::new();
    for page in 0..part.page_count() {
        let read = part.rows(page, 1).await.map_err(|error| (Some(page + 1), error))?;
        rows.extend(read);
    }
    match rows.len() as u64 == part.row_count && rows.is_sorted() {
        true => Ok(rows),
        false => Err((None, damaged(sequence))),
    }
}

/// The rows of one kind of one replica.
#[derive(Debug)]
pub(crate) struct Index<R> {
    env: Env,
    dir: PathBuf,
    damage: Arc<Damage>,
    inner: RwLock<Inner<R>>,
}

/// What sealing did to the files.
#[derive(Debug)]
pub(crate) struct Sealed {
    /// The parts that make up the index now; all durable.
    pub parts: Vec<u64>,
    /// Parts to remove once that is recorded.
    pub merged_away: Vec<u64>,
}

#[derive(Debug)]
struct Inner<R> {
    /// In no part yet.
    recent: Recent<R>,
    /// Oldest first.
    parts: Vec<Arc<Part<R>>>,
    next_sequence: u64,
    /// Rows of records below may go.
    min_physical: PhysicalOffset,
}

/// Rows in the order in which they were added, of which the oldest go first. Adding one costs apply next to nothing; who
/// searches takes the full pieces out from under the lock.
#[derive(Debug)]
struct Recent<R> {
    full: VecDeque<Arc<Vec<R>>>,
    /// Of the first full piece these are gone already.
    gone: usize,
    open: Vec<R>,
}

impl<R: Row> Recent<R> {
    const PIECE_ROWS: usize = 4096;

    fn new() -> Recent<R> {
        Recent { full: VecDeque::new(), gone: 0, open: Vec::new() }
    }

    fn add(&mut self, row: R) {
        self.open.push(row);
        if self.open.len() == Self::PIECE_ROWS {
            self.full.push_back(Arc::new(std::mem::take(&mut self.open)));
        }
    }

    /// The oldest `count` rows go; all of them if there are no more.
    fn remove_oldest(&mut self, count: usize) {
        self.gone += count;
        while self.full.front().is_some_and(|piece| piece.len() <= self.gone) {
            self.gone -= self.full.pop_front().expect("there is one").len();
        }
        if self.full.is_empty() {
            self.open.drain(..self.gone.min(self.open.len()));
            self.gone = 0;
        }
    }

    /// All pieces as they are now.
    fn pieces(&self) -> Vec<Arc<Vec<R>>> {
        self.full.iter().cloned().chain([Arc::new(self.open.clone())]).collect()
    }
}

impl<R: Row> Index<R> {
    /// Opens the `expected` parts, of which the keyed store knows, and removes others: they were being written or merged
    /// away when the process ended. If nobody knows, all that are there are opened; a row too many is no harm.
    pub async fn open(env: Env, dir: PathBuf, damage: Arc<Damage>, expected: Option<&[u64]>) -> io::Result<Index<R>> {
        let mut parts = Vec::new();
        for name in env.disk.list(&dir).await? {
            match sequence_of::<R>(&name.name) {
                Some(Ok(sequence)) if expected.is_none_or(|expected| expected.contains(&sequence)) => {
                    parts.push(Arc::new(Part::open(&env, &dir, sequence).await?));
                }
                Some(_) => env.disk.remove_file(&dir.join(name.name)).await?,
                None => {}
            }
        }
        let is_missing = |expected: &&u64| !parts.iter().any(|part: &Arc<Part<R>>| part.sequence == **expected);
        if let Some(missing) = expected.unwrap_or_default().iter().find(is_missing) {
            return Err(damaged(*missing));
        }
        let next_sequence = parts.last().map_or(0, |part| part.sequence + 1);
        let inner = Inner { recent: Recent::new(), parts, next_sequence, min_physical: PhysicalOffset::default() };
        Ok(Index { env, dir, damage, inner: RwLock::new(inner) })
    }

    /// Adds a row; readers see it at once.
    pub fn add(&self, row: R) {
        self.inner.write().recent.add(row);
    }

    /// Seals `rows`, durably: those added first, all of them or some. They leave memory. Rows of records below `min_physical`, which is given when it may have
    /// moved, are dropped by and by: parts of nothing else at once, others when they are merged.
    pub async fn seal(&self, mut rows: Vec<R>, min_physical: Option<PhysicalOffset>) -> io::Result<Sealed> {
        let mut merged_away = self.drop_trimmed(min_physical).await?;
        if !rows.is_empty() {
            rows.sort_unstable();
            let mut writer = self.writer().await?;
            for row in &rows {
                writer.add(*row).await?;
            }
            let part = self.finish(writer).await?;
            {
                let mut inner = self.inner.write();
                inner.parts.push(part);
                inner.recent.remove_oldest(rows.len());
            }
            while let Some([older, newer]) = self.to_merge() {
                self.merge(&older, &newer).await?;
                merged_away.extend([older.sequence, newer.sequence]);
            }
        }
        let parts = self.inner.read().parts.iter().map(|part| part.sequence).collect();
        Ok(Sealed { parts, merged_away })
    }

    /// Removes parts that were merged away, once the keyed store expects them no more.
    pub async fn remove(&self, merged_away: &[u64]) -> io::Result<()> {
        for sequence in merged_away {
            self.env.disk.remove_file(&self.dir.join(part_name::<R>(*sequence))).await?;
        }
        Ok(())
    }

    /// Forgets the parts whose rows are all below `min_physical`, and gives them.
    async fn drop_trimmed(&self, min_physical: Option<PhysicalOffset>) -> io::Result<Vec<u64>> {
        let (min_physical, parts) = {
            let mut inner = self.inner.write();
            let Some(moved) = min_physical.filter(|min| *min > inner.min_physical) else { return Ok(Vec::new()) };
            inner.min_physical = moved;
            (moved, inner.parts.clone())
        };
        let mut trimmed = Vec::new();
        for part in parts {
            if part.highest().await?.is_none_or(|highest| highest < min_physical) {
                trimmed.push(part.sequence);
            }
        }
        self.inner.write().parts.retain(|part| !trimmed.contains(&part.sequence));
        Ok(trimmed)
    }

    fn to_merge(&self) -> Option<[Arc<Part<R>>; 2]> {
        match self.inner.read().parts.as_slice() {
            [.., older, newer]
                if older.row_count <= newer.row_count * 2
                    && older.row_count.saturating_add(newer.row_count) <= R::MERGED_ROWS_MAX =>
            {
                Some([older.clone(), newer.clone()])
            }
            _ => None,
        }
    }

    /// Replaces the two newest parts by one. Their files stay until the keyed store knows of it.
    async fn merge(&self, older: &Part<R>, newer: &Part<R>) -> io::Result<()> {
        let min_physical = self.inner.read().min_physical;
        let mut writer = self.writer().await?;
        let mut older_rows = Rows { part: older, next_page: 0, rows: Vec::new().into_iter() };
        let mut newer_rows = Rows { part: newer, next_page: 0, rows: Vec::new().into_iter() };
        loop {
            let (a, b) = (older_rows.peek().await?, newer_rows.peek().await?);
            let row = match (a, b) {
                (None, None) => break,
                (Some(a), Some(b)) if a <= b => older_rows.rows.next(),
                (Some(_), None) => older_rows.rows.next(),
                _ => newer_rows.rows.next(),
            };
            let row = row.expect("peeked");
            if row.physical_offset() >= min_physical {
                writer.add(row).await?;
            }
        }
        let merged = self.finish(writer).await?;
        let mut inner = self.inner.write();
        let kept = inner.parts.len() - 2;
        inner.parts.truncate(kept);
        inner.parts.push(merged);
        Ok(())
    }

    async fn writer(&self) -> io::Result<PartWriter<R>> {
        let sequence = {
            let mut inner = self.inner.write();
            inner.next_sequence += 1;
            inner.next_sequence - 1
        };
        let file = self.env.disk.open(&self.beside(sequence), Open::OrCreate).await?;
        file.set_len(0).await?;
        let highest = PhysicalOffset::default();
        Ok(PartWriter { file, sequence, row_count: 0, next_page: 1, rows: Vec::new(), last: None, highest })
    }

    async fn finish(&self, mut writer: PartWriter<R>) -> io::Result<Arc<Part<R>>> {
        writer.flush().await?;
        let PartWriter { sequence, row_count, highest, .. } = writer;
        let head = Bytes::from(head_page::<R>(sequence, row_count, highest));
        writer.file.write_at(0, &[head]).await?;
        writer.file.sync_data().await?;
        self.env.disk.rename(&self.beside(sequence), &self.dir.join(part_name::<R>(sequence))).await?;
        self.env.disk.sync_dir(&self.dir).await?;
        Ok(Arc::new(Part { sequence, file: writer.file, row_count, highest, rows: PhantomData }))
    }

    fn beside(&self, sequence: u64) -> PathBuf {
        self.dir.join(format!("{}{BESIDE}", part_name::<R>(sequence)))
    }

    /// The rows between `first` and `last`, and these; the last `limit` if there are more.
    async fn between(self: &Arc<Self>, first: R, last: R, limit: usize) -> io::Result<BTreeSet<R>> {
        let (recent, parts) = {
            let inner = self.inner.read();
            (inner.recent.pieces(), inner.parts.clone())
        };
        let recent = recent.iter().flat_map(|piece| piece.iter());
        let mut found: BTreeSet<R> = recent.filter(|row| (first..=last).contains(*row)).copied().collect();
        let surplus = move |found: &BTreeSet<R>| found.len().saturating_sub(limit);
        while surplus(&found) > 0 {
            found.pop_first();
        }
        if parts.is_empty() {
            return Ok(found);
        }
        let searched: io::Result<_> = aside(&self.env, async move {
            for part in parts {
                part.find(first, last, limit, &mut found).await?;
                while surplus(&found) > 0 {
                    found.pop_first();
                }
            }
            Ok(found)
        })
        .await;
        if let Err(error) = &searched
            && error.kind() == io::ErrorKind::InvalidData
        {
            self.damage.note(&error.to_string()).await;
        }
        searched
    }

    /// Forgets all rows: an image replaces them, and their files go. Later parts are numbered on.
    pub fn forget(&self) {
        let mut inner = self.inner.write();
        inner.recent = Recent::new();
        inner.parts.clear();
    }

    pub fn damage(&self) -> Arc<Damage> {
        self.damage.clone()
    }
}

impl Index<IndexRow> {
    /// The units that point back at `at`.
    pub async fn find(self: &Arc<Self>, at: PhysicalOffset) -> io::Result<BTreeSet<IndexRow>> {
        let row = |queue, queue_offset| IndexRow { physical_offset: at, queue, queue_offset };
        let (first, last) = (row(QueueId::default(), QueueOffset(0)), row(LAST_QUEUE, QueueOffset(u64::MAX)));
        self.between(first, last, usize::MAX).await
    }
}

impl Index<KeyRow> {
    /// The units of messages with a key of this hash that became visible at these times, in the order of time; the last
    /// `limit` if there are more.
    pub async fn find(
        self: &Arc<Self>,
        hash: u64,
        times: RangeInclusive<Timestamp>,
        limit: usize,
    ) -> io::Result<BTreeSet<KeyRow>> {
        let row = |visible_at, offset, queue| KeyRow {
            hash,
            visible_at,
            physical_offset: PhysicalOffset(offset),
            queue,
            queue_offset: QueueOffset(offset),
        };
        let (first, last) = (row(*times.start(), 0, QueueId::default()), row(*times.end(), u64::MAX, LAST_QUEUE));
        self.between(first, last, limit).await
    }
}

const LAST_QUEUE: QueueId = QueueId { topic: TopicId(u32::MAX), queue: u32::MAX };

/// Removes all parts under `dir`, of both kinds, durably; the directory stays.
pub(crate) async fn remove_all(env: &Env, dir: &Path) -> io::Result<()> {
    for name in env.disk.list(dir).await? {
        env.disk.remove_file(&dir.join(name.name)).await?;
    }
    env.disk.sync_dir(dir).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use env::Rng;
    use env::disk::simulated::SimDisk;

    use super::*;

    async fn open_kind<R: Row>(disk: &SimDisk, expected: Option<&[u64]>) -> io::Result<Arc<Index<R>>> {
        let env = Env::simulated(1, disk.clone());
        let dir = PathBuf::from("/index");
        env.disk.create_dir_all(&dir).await?;
        env.disk.sync_dir(Path::new("/")).await?;
        let damage = Arc::new(Damage::new(env.clone(), PathBuf::from("/")));
        Ok(Arc::new(Index::open(env, dir, damage, expected).await?))
    }

    async fn open(disk: &SimDisk, expected: Option<&[u64]>) -> io::Result<Arc<Index<IndexRow>>> {
        open_kind(disk, expected).await
    }

    async fn open_keys(disk: &SimDisk, expected: Option<&[u64]>) -> io::Result<Arc<Index<KeyRow>>> {
        open_kind(disk, expected).await
    }

    /// After a crash: replay brings again what was not recorded as sealed.
    async fn reopen(disk: &SimDisk, parts: &[u64], unsealed: &[IndexRow]) -> Arc<Index<IndexRow>> {
        let index = open(disk, Some(parts)).await.unwrap();
        for row in unsealed {
            index.add(*row);
        }
        index
    }

    fn row(rng: &Rng, places: u64) -> IndexRow {
        IndexRow {
            physical_offset: PhysicalOffset(rng.below(places) * 64),
            queue: QueueId { topic: TopicId(rng.below(3) as u32), queue: rng.below(2) as u32 },
            queue_offset: QueueOffset(rng.below(1000)),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_part_is_read_with_any_bit_of_it_turned() {
        let rng = Rng::seeded(4);
        let disk = SimDisk::new(rng.fork());
        let index = open(&disk, None).await.unwrap();
        index.seal((0..200).map(|_| row(&rng, 400)).collect(), None).await.unwrap();
        let dir = PathBuf::from("/index");
        let path = dir.join(part_name::<IndexRow>(0));
        let env = Env::simulated(1, disk.clone());
        let len = env.disk.open(&path, Open::ToRead).await.unwrap().len().unwrap();
        assert_eq!(len, 3 * PAGE_BYTES as u64);
        assert!(read_part::<IndexRow>(&env, &dir, 0).await.is_ok());
        for at in 0..len {
            for bit in 0..8 {
                disk.flip_bit(&path, at, bit);
                let (page, error) = read_part::<IndexRow>(&env, &dir, 0).await.unwrap_err();
                assert_eq!(page, Some(at / PAGE_BYTES as u64));
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                disk.flip_bit(&path, at, bit);
            }
        }
        println!("an index part: {} bits: all refused", len * 8);
    }

    #[tokio::test(start_paused = true)]
    async fn finds_what_a_set_holds_through_seals_merges_and_restarts() {
        let seed = Rng::from_entropy().u64();
        println!("seed {seed}");
        let rng = Rng::seeded(seed);
        let disk = SimDisk::new(rng.fork());
        let mut index = open(&disk, None).await.unwrap();
        let mut model: BTreeMap<PhysicalOffset, BTreeSet<IndexRow>> = BTreeMap::new();
        let (mut unsealed, mut parts) = (Vec::new(), Vec::new());
        for _ in 0..60 {
            for _ in 0..rng.below(300) {
                let row = row(&rng, 400);
                index.add(row);
                unsealed.push(row);
                model.entry(row.physical_offset).or_default().insert(row);
            }
            for _ in 0..20 {
                let at = PhysicalOffset(rng.below(410) * 64);
                assert_eq!(index.find(at).await.unwrap(), model.get(&at).cloned().unwrap_or_default());
            }
            if rng.chance(2, 3) {
                let sealed = index.seal(unsealed.clone(), None).await.unwrap();
                assert!(sealed.parts.len() <= 12, "{} parts", sealed.parts.len());
                // Or power fails before the keyed store knows of it.
                if rng.chance(3, 4) {
                    unsealed.clear();
                    parts = sealed.parts;
                    index.remove(&sealed.merged_away).await.unwrap();
                } else {
                    disk.crash(&rng);
                    index = reopen(&disk, &parts, &unsealed).await;
                }
            }
            if rng.chance(1, 5) {
                // A crash forgets what was not sealed; replay brings it again, and a little more than that.
                disk.crash(&rng);
                index = reopen(&disk, &parts, &unsealed).await;
                if let Some(row) = model.values().flatten().next() {
                    index.add(*row);
                    unsealed.push(*row);
                }
            }
        }
    }

    fn key_row(rng: &Rng, visible_at: i64) -> KeyRow {
        KeyRow {
            hash: rng.below(5),
            visible_at: Timestamp(visible_at),
            physical_offset: PhysicalOffset(rng.below(1 << 20)),
            queue: QueueId { topic: TopicId(rng.below(3) as u32), queue: rng.below(2) as u32 },
            queue_offset: QueueOffset(rng.below(1000)),
        }
    }

    /// Beside them lie by-reference rows: neither kind may touch the files of the other.
    #[tokio::test(start_paused = true)]
    async fn of_a_key_the_newest_messages_are_found_through_seals_merges_and_restarts() {
        let seed = Rng::from_entropy().u64();
        println!("seed {seed}");
        let rng = Rng::seeded(seed);
        let disk = SimDisk::new(rng.fork());
        let references = open(&disk, None).await.unwrap();
        let reference = row(&rng, 400);
        let reference_parts = references.seal(vec![reference], None).await.unwrap().parts;
        let mut index = open_keys(&disk, None).await.unwrap();
        let mut model: BTreeSet<KeyRow> = BTreeSet::new();
        let (mut unsealed, mut parts) = (Vec::new(), Vec::new());
        for round in 0..40 {
            for _ in 0..rng.below(700) {
                let row = key_row(&rng, round * 10 + rng.below(10) as i64);
                index.add(row);
                unsealed.push(row);
                model.insert(row);
            }
            for _ in 0..20 {
                let (hash, limit) = (rng.below(6), 1 + rng.below(200) as usize);
                let from = rng.below(400) as i64;
                let times = Timestamp(from)..=Timestamp(from + rng.below(100) as i64);
                let matching = model.iter().rev().filter(|row| row.hash == hash && times.contains(&row.visible_at));
                let newest: BTreeSet<KeyRow> = matching.take(limit).copied().collect();
                assert_eq!(index.find(hash, times, limit).await.unwrap(), newest);
            }
            if rng.chance(1, 3) {
                let some = rng.below(unsealed.len() as u64 + 1) as usize;
                let sealed = index.seal(unsealed[..some].to_vec(), None).await.unwrap();
                unsealed.drain(..some);
                parts = sealed.parts;
                index.remove(&sealed.merged_away).await.unwrap();
            }
            if rng.chance(1, 5) {
                disk.crash(&rng);
                index = open_keys(&disk, Some(&parts)).await.unwrap();
                unsealed.iter().for_each(|row| index.add(*row));
            }
        }
        let references = open(&disk, Some(&reference_parts)).await.unwrap();
        assert_eq!(references.find(reference.physical_offset).await.unwrap(), BTreeSet::from([reference]));
        assert!(open_keys(&disk, Some(&parts)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn parts_of_keys_go_when_all_their_records_are_trimmed() {
        let rng = Rng::seeded(5);
        let disk = SimDisk::new(rng.fork());
        let index = open_keys(&disk, None).await.unwrap();
        let at = |physical_offset| KeyRow { physical_offset: PhysicalOffset(physical_offset), ..key_row(&rng, 1) };
        index.seal((0..1000).map(at).collect(), None).await.unwrap();
        let sealed = index.seal((1000..1200).map(at).collect(), Some(PhysicalOffset(999))).await.unwrap();
        assert_eq!(
            (sealed.parts.len(), sealed.merged_away.len()),
            (2, 0),
            "one row of the first is of a record still there"
        );
        let sealed = index.seal(vec![], Some(PhysicalOffset(1000))).await.unwrap();
        assert_eq!((sealed.parts.len(), sealed.merged_away.len()), (1, 1));
    }

    #[test]
    fn the_oldest_recent_rows_go_first_wherever_a_piece_ends() {
        let mut recent: Recent<IndexRow> = Recent::new();
        let place = |row: &IndexRow| row.physical_offset.0;
        let row = |at| IndexRow {
            physical_offset: PhysicalOffset(at),
            queue: QueueId::default(),
            queue_offset: QueueOffset(0),
        };
        (0..10_000).for_each(|at| recent.add(row(at)));
        for (count, oldest) in [(0, 0), (4_095, 4_095), (1, 4_096), (4_097, 8_193), (1_807, 10_000), (5, 10_000)] {
            recent.remove_oldest(count);
            let left: Vec<u64> = recent.pieces().iter().flat_map(|piece| piece.iter().map(place)).collect();
            // Of the first piece some that are gone may be seen until all of it is: they are in a part by then.
            assert!(left.iter().copied().eq(left.first().copied().unwrap_or(10_000)..10_000));
            assert!(left.first().is_none_or(|first| *first <= oldest && oldest - first < 4_096), "{count}: {left:?}");
        }
        recent.add(row(10_000));
        assert_eq!(recent.pieces().iter().map(|piece| piece.len()).sum::<usize>(), 1);
    }

    /// If this fails, parts of earlier releases can no longer be read.
    #[test]
    fn golden_pages() {
        let row = |number| IndexRow {
            physical_offset: PhysicalOffset(number),
            queue: QueueId { topic: TopicId(2), queue: 3 },
            queue_offset: QueueOffset(4),
        };
        let page = rows_page(5, 1, &[row(1), row(2)]);
        assert_eq!(page[..16], [2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(page[16..40], [2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let checksums = [head_page::<IndexRow>(5, 2, PhysicalOffset(2)), page]
            .map(|page| u32::from_le_bytes(page[4092..].try_into().unwrap()));
        assert_eq!(checksums, [3_738_306_635, 1_438_710_665]);

        let row = KeyRow {
            hash: 1,
            visible_at: Timestamp(2),
            physical_offset: PhysicalOffset(3),
            queue: QueueId { topic: TopicId(4), queue: 5 },
            queue_offset: QueueOffset(6),
        };
        let (head, page) = (head_page::<KeyRow>(5, 1, PhysicalOffset(3)), rows_page(5, 1, &[row]));
        assert_eq!((&head[..4], head[16]), (&b"RMQK"[..], 3));
        let numbers: Vec<u8> = page[8..48].iter().copied().filter(|byte| *byte != 0).collect();
        assert_eq!((numbers, page[32], page[36]), (vec![1, 2, 3, 4, 5, 6], 4, 5));
        assert_eq!(KeyRow::decode(&page[8..48]), row);
    }

    #[tokio::test(start_paused = true)]
    async fn damage_and_loss_are_noticed() {
        let rng = Rng::seeded(3);
        let disk = SimDisk::new(rng.fork());
        let index = open(&disk, None).await.unwrap();
        let rows: Vec<_> = (0..1000).map(|_| row(&rng, 5000)).collect();
        let parts = index.seal(rows.clone(), None).await.unwrap().parts;
        let path = format!("/index/{}", part_name::<IndexRow>(parts[0]));
        disk.flip_bit(&path, 4096 + 100, 3);
        let first = rows.iter().min().unwrap();
        let error = index.find(first.physical_offset).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(index.damage.is_noted());
        disk.flip_bit(&path, 20, 3);
        assert_eq!(open(&disk, None).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        env::Disk::remove_file(&disk, Path::new(&path)).await.unwrap();
        open(&disk, None).await.unwrap();
        assert_eq!(open(&disk, Some(&parts)).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

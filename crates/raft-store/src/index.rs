//! The index: from a record's physical offset to the units that point at it by reference.
//!
//! A plain record's unit is found by its store time ([`crate::consume_queue::Queue`]); a record that became visible later
//! is not, so its unit has a row here. Rows are a set: a replay that adds them again adds nothing.
//!
//! - Derived. The newest rows are in memory; a derived sync seals them into a part: sorted, immutable, checksummed.
//! - A part is merged with the one before it until that one is more than twice as large, so there are few of them.
//!
//! ```text
//! index/<sequence, 20 digits>     pages of 4096 bytes, little-endian
//! page 0   0 magic u32 "RMQX" | 4 version u8 = 1 | 5 zero u8 x 3 | 8 row count u64
//! page n   0 row count u16 | 2 zero u16 | 4 zero u32 | 8 rows of 24 bytes, ascending:
//!            physical offset u64 | topic id u32 | queue u32 | queue offset u64
//! each page ends with the CRC32C u32 of the part's sequence u64, the page number u64 and the page's other bytes
//! ```

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use env::disk::Open;
use env::{Env, File};
use parking_lot::RwLock;

use crate::consume_queue::{Damage, aside};
use crate::position::{PhysicalOffset, QueueId, QueueOffset, TopicId};

const MAGIC: u32 = u32::from_le_bytes(*b"RMQX");
const VERSION: u8 = 1;
pub(crate) const PAGE_BYTES: usize = 4096;
const ROW_BYTES: usize = 24;
const ROWS_AT: usize = 8;
pub(crate) const ROWS_PER_PAGE: usize = (PAGE_BYTES - ROWS_AT - 4) / ROW_BYTES;
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

impl IndexRow {
    fn encode(&self, bytes: &mut [u8]) {
        bytes[0..8].copy_from_slice(&self.physical_offset.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.queue.topic.0.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.queue.queue.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.queue_offset.0.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> IndexRow {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        IndexRow {
            physical_offset: PhysicalOffset(u64_at(0)),
            queue: QueueId { topic: TopicId(u32_at(8)), queue: u32_at(12) },
            queue_offset: QueueOffset(u64_at(16)),
        }
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

fn head_page(sequence: u64, row_count: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    page[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    page[4] = VERSION;
    page[8..16].copy_from_slice(&row_count.to_le_bytes());
    seal_page(&mut page, sequence, 0);
    page
}

fn rows_page(sequence: u64, number: u64, rows: &[IndexRow]) -> Vec<u8> {
    assert!(!rows.is_empty() && rows.len() <= ROWS_PER_PAGE);
    let mut page = vec![0; PAGE_BYTES];
    page[0..2].copy_from_slice(&(rows.len() as u16).to_le_bytes());
    for (row, place) in rows.iter().zip(page[ROWS_AT..].chunks_exact_mut(ROW_BYTES)) {
        row.encode(place);
    }
    seal_page(&mut page, sequence, number);
    page
}

/// A sealed, sorted, immutable file.
#[derive(Debug)]
struct Part {
    sequence: u64,
    file: Arc<dyn File>,
    row_count: u64,
}

impl Part {
    async fn open(env: &Env, dir: &std::path::Path, sequence: u64) -> io::Result<Part> {
        let file = env.disk.open(&dir.join(part_name(sequence)), Open::ToRead).await?;
        let page = file.read_at(0, PAGE_BYTES).await?;
        let content = checked_page(&page, sequence, 0).ok_or_else(|| damaged(sequence))?;
        if content[0..4] != MAGIC.to_le_bytes() || content[4] != VERSION {
            return Err(damaged(sequence));
        }
        let row_count = u64::from_le_bytes(content[8..16].try_into().expect("8 bytes"));
        let part = Part { sequence, file, row_count };
        match part.file.len()? == (1 + part.page_count()) * PAGE_BYTES as u64 {
            true => Ok(part),
            false => Err(damaged(sequence)),
        }
    }

    fn page_count(&self) -> u64 {
        self.row_count.div_ceil(ROWS_PER_PAGE as u64)
    }

    /// Rows of the pages `first..first + count` (numbered from 0 behind the head page).
    async fn rows(&self, first: u64, count: u64) -> io::Result<Vec<IndexRow>> {
        let bytes = self.file.read_at((1 + first) * PAGE_BYTES as u64, count as usize * PAGE_BYTES).await?;
        let mut rows = Vec::with_capacity(count as usize * ROWS_PER_PAGE);
        for (page, number) in bytes.chunks(PAGE_BYTES).zip(first + 1..) {
            let content = checked_page(page, self.sequence, number).ok_or_else(|| damaged(self.sequence))?;
            let row_count = u16::from_le_bytes([content[0], content[1]]) as usize;
            if row_count > ROWS_PER_PAGE {
                return Err(damaged(self.sequence));
            }
            rows.extend(content[ROWS_AT..].chunks_exact(ROW_BYTES).take(row_count).map(IndexRow::decode));
        }
        if bytes.len() != count as usize * PAGE_BYTES {
            return Err(damaged(self.sequence));
        }
        Ok(rows)
    }

    /// Adds the rows of `at` to `found`.
    async fn find(&self, at: PhysicalOffset, found: &mut BTreeSet<IndexRow>) -> io::Result<()> {
        // The first page whose last row is not below `at`.
        let (mut low, mut high) = (0, self.page_count());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.rows(middle, 1).await?.last() {
                Some(row) if row.physical_offset < at => low = middle + 1,
                _ => high = middle,
            }
        }
        for page in low..self.page_count() {
            let rows = self.rows(page, 1).await?;
            found.extend(rows.iter().filter(|row| row.physical_offset == at));
            if rows.last().is_none_or(|row| row.physical_offset > at) {
                break;
            }
        }
        Ok(())
    }
}

/// A part's rows in order, read a few pages at a time.
struct Rows<'a> {
    part: &'a Part,
    next_page: u64,
    rows: std::vec::IntoIter<IndexRow>,
}

impl Rows<'_> {
    async fn peek(&mut self) -> io::Result<Option<IndexRow>> {
        if self.rows.as_slice().is_empty() && self.next_page < self.part.page_count() {
            let count = (self.part.page_count() - self.next_page).min(MERGE_PAGES);
            self.rows = self.part.rows(self.next_page, count).await?.into_iter();
            self.next_page += count;
        }
        Ok(self.rows.as_slice().first().copied())
    }
}

/// Writes a part beside its name, a few pages at a time.
struct PartWriter {
    file: Arc<dyn File>,
    sequence: u64,
    row_count: u64,
    next_page: u64,
    rows: Vec<IndexRow>,
    last: Option<IndexRow>,
}

impl PartWriter {
    async fn add(&mut self, row: IndexRow) -> io::Result<()> {
        if self.last == Some(row) {
            return Ok(());
        }
        assert!(self.last < Some(row), "rows of a part ascend");
        self.last = Some(row);
        self.row_count += 1;
        self.rows.push(row);
        if self.rows.len() == ROWS_PER_PAGE * MERGE_PAGES as usize { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> io::Result<()> {
        let mut bytes = BytesMut::with_capacity(self.rows.len().div_ceil(ROWS_PER_PAGE) * PAGE_BYTES);
        let at = self.next_page * PAGE_BYTES as u64;
        for rows in self.rows.chunks(ROWS_PER_PAGE) {
            bytes.extend_from_slice(&rows_page(self.sequence, self.next_page, rows));
            self.next_page += 1;
        }
        self.rows.clear();
        if bytes.is_empty() { Ok(()) } else { self.file.write_at(at, &[bytes.freeze()]).await }
    }
}

pub(crate) fn part_name(sequence: u64) -> String {
    format!("{sequence:020}")
}

fn damaged(sequence: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("index part {sequence} is damaged"))
}

/// Reads all of a part. Gives its rows, or the first page that is not what was written, and what is wrong.
pub(crate) async fn read_part(
    env: &Env,
    dir: &std::path::Path,
    sequence: u64,
) -> Result<Vec<IndexRow>, (Option<u64>, io::Error)> {
    let part = Part::open(env, dir, sequence).await.map_err(|error| (Some(0), error))?;
    let mut rows: Vec<IndexRow> = Vec::new();
    for page in 0..part.page_count() {
        let read = part.rows(page, 1).await.map_err(|error| (Some(page + 1), error))?;
        rows.extend(read);
    }
    match rows.len() as u64 == part.row_count && rows.is_sorted() {
        true => Ok(rows),
        false => Err((None, damaged(sequence))),
    }
}

/// The index of one replica.
#[derive(Debug)]
pub(crate) struct Index {
    env: Env,
    dir: PathBuf,
    damage: Arc<Damage>,
    inner: RwLock<Inner>,
}

/// What sealing did to the files.
#[derive(Debug)]
pub(crate) struct Sealed {
    /// The parts that make up the index now; all durable.
    pub parts: Vec<u64>,
    /// Parts to remove once that is recorded.
    pub merged_away: Vec<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    /// In no part yet.
    recent: BTreeSet<IndexRow>,
    /// Oldest, and largest, first.
    parts: Vec<Arc<Part>>,
    next_sequence: u64,
    /// Rows of records below may go.
    min_physical: PhysicalOffset,
}

impl Index {
    /// Opens the `expected` parts, of which the keyed store knows, and removes others: they were being written or merged
    /// away when the process ended. If nobody knows, all that are there are opened; a row too many is no harm.
    pub async fn open(env: Env, dir: PathBuf, damage: Arc<Damage>, expected: Option<&[u64]>) -> io::Result<Index> {
        let mut parts = Vec::new();
        for name in env.disk.list(&dir).await? {
            match name.name.parse() {
                Ok(sequence) if expected.is_none_or(|expected| expected.contains(&sequence)) => {
                    parts.push(Arc::new(Part::open(&env, &dir, sequence).await?));
                }
                _ => env.disk.remove_file(&dir.join(name.name)).await?,
            }
        }
        let is_missing = |expected: &&u64| !parts.iter().any(|part| part.sequence == **expected);
        if let Some(missing) = expected.unwrap_or_default().iter().find(is_missing) {
            return Err(damaged(*missing));
        }
        let next_sequence = parts.last().map_or(0, |part| part.sequence + 1);
        Ok(Index { env, dir, damage, inner: RwLock::new(Inner { parts, next_sequence, ..Inner::default() }) })
    }

    /// Adds a row; readers see it at once.
    pub fn add(&self, row: IndexRow) {
        self.inner.write().recent.insert(row);
    }

    /// Seals `rows`, durably. They leave memory. Rows of records below `min_physical`, which is given when it may have
    /// moved, are dropped by and by: parts of nothing else at once, others when they are merged.
    pub async fn seal(&self, mut rows: Vec<IndexRow>, min_physical: Option<PhysicalOffset>) -> io::Result<Sealed> {
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
                for row in &rows {
                    inner.recent.remove(row);
                }
            }
            while let Some((older, newer)) = self.to_merge() {
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
            self.env.disk.remove_file(&self.dir.join(part_name(*sequence))).await?;
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
            // What was merged when all of it was trimmed has no rows.
            let last = match part.page_count().checked_sub(1) {
                Some(page) => part.rows(page, 1).await?.last().copied(),
                None => None,
            };
            if last.is_none_or(|last| last.physical_offset < min_physical) {
                trimmed.push(part.sequence);
            }
        }
        self.inner.write().parts.retain(|part| !trimmed.contains(&part.sequence));
        Ok(trimmed)
    }

    fn to_merge(&self) -> Option<(Arc<Part>, Arc<Part>)> {
        match self.inner.read().parts.as_slice() {
            [.., older, newer] if older.row_count <= newer.row_count * 2 => Some((older.clone(), newer.clone())),
            _ => None,
        }
    }

    /// Replaces the two newest parts by one. Their files stay until the keyed store knows of it.
    async fn merge(&self, older: &Part, newer: &Part) -> io::Result<()> {
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
            if row.physical_offset >= min_physical {
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

    async fn writer(&self) -> io::Result<PartWriter> {
        let sequence = {
            let mut inner = self.inner.write();
            inner.next_sequence += 1;
            inner.next_sequence - 1
        };
        let file = self.env.disk.open(&self.beside(sequence), Open::OrCreate).await?;
        file.set_len(0).await?;
        Ok(PartWriter { file, sequence, row_count: 0, next_page: 1, rows: Vec::new(), last: None })
    }

    async fn finish(&self, mut writer: PartWriter) -> io::Result<Arc<Part>> {
        writer.flush().await?;
        let head = Bytes::from(head_page(writer.sequence, writer.row_count));
        writer.file.write_at(0, &[head]).await?;
        writer.file.sync_data().await?;
        self.env.disk.rename(&self.beside(writer.sequence), &self.dir.join(part_name(writer.sequence))).await?;
        self.env.disk.sync_dir(&self.dir).await?;
        Ok(Arc::new(Part { sequence: writer.sequence, file: writer.file, row_count: writer.row_count }))
    }

    fn beside(&self, sequence: u64) -> PathBuf {
        self.dir.join(format!("{}.new", part_name(sequence)))
    }

    /// The units that point back at `at`.
    pub async fn find(self: &Arc<Self>, at: PhysicalOffset) -> io::Result<BTreeSet<IndexRow>> {
        let (mut found, parts) = {
            let inner = self.inner.read();
            let first = IndexRow { physical_offset: at, queue: QueueId::default(), queue_offset: QueueOffset(0) };
            let recent = inner.recent.range(first..).take_while(|row| row.physical_offset == at).copied();
            (recent.collect::<BTreeSet<_>>(), inner.parts.clone())
        };
        if parts.is_empty() {
            return Ok(found);
        }
        let searched: io::Result<_> = aside(&self.env, async move {
            for part in parts {
                part.find(at, &mut found).await?;
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
        inner.recent.clear();
        inner.parts.clear();
    }

    pub fn damage(&self) -> Arc<Damage> {
        self.damage.clone()
    }
}

/// Removes all parts under `dir`, durably; the directory stays.
pub(crate) async fn remove_all(env: &Env, dir: &std::path::Path) -> io::Result<()> {
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

    async fn open(disk: &SimDisk, expected: Option<&[u64]>) -> io::Result<Arc<Index>> {
        let env = Env::simulated(1, disk.clone());
        let dir = PathBuf::from("/index");
        env.disk.create_dir_all(&dir).await?;
        env.disk.sync_dir(std::path::Path::new("/")).await?;
        let damage = Arc::new(Damage::new(env.clone(), PathBuf::from("/")));
        Ok(Arc::new(Index::open(env, dir, damage, expected).await?))
    }

    /// After a crash: replay brings again what was not recorded as sealed.
    async fn reopen(disk: &SimDisk, parts: &[u64], unsealed: &[IndexRow]) -> Arc<Index> {
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
        let path = dir.join(part_name(0));
        let env = Env::simulated(1, disk.clone());
        let len = env.disk.open(&path, Open::ToRead).await.unwrap().len().unwrap();
        assert_eq!(len, 3 * PAGE_BYTES as u64);
        assert!(read_part(&env, &dir, 0).await.is_ok());
        for at in 0..len {
            for bit in 0..8 {
                disk.flip_bit(&path, at, bit);
                let (page, error) = read_part(&env, &dir, 0).await.unwrap_err();
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
        let checksums = [head_page(5, 2), page].map(|page| u32::from_le_bytes(page[4092..].try_into().unwrap()));
        assert_eq!(checksums, [3_738_306_635, 1_438_710_665]);
    }

    #[tokio::test(start_paused = true)]
    async fn damage_and_loss_are_noticed() {
        let rng = Rng::seeded(3);
        let disk = SimDisk::new(rng.fork());
        let index = open(&disk, None).await.unwrap();
        let rows: Vec<_> = (0..1000).map(|_| row(&rng, 5000)).collect();
        let parts = index.seal(rows.clone(), None).await.unwrap().parts;
        let path = format!("/index/{}", part_name(parts[0]));
        disk.flip_bit(&path, 4096 + 100, 3);
        let first = rows.iter().min().unwrap();
        let error = index.find(first.physical_offset).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(index.damage.is_noted());
        disk.flip_bit(&path, 20, 3);
        assert_eq!(open(&disk, None).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        env::Disk::remove_file(&disk, std::path::Path::new(&path)).await.unwrap();
        open(&disk, None).await.unwrap();
        assert_eq!(open(&disk, Some(&parts)).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

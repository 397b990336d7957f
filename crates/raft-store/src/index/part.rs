//! Parts of the index: sorted, immutable files of checksummed pages.

use std::collections::BTreeSet;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use env::disk::Open;
use env::{Env, File};

use super::row::{KeyRow, Row, u64_at};
use crate::position::{PhysicalOffset, Timestamp};

pub const PAGE_BYTES: usize = 4096;
pub(super) const ROWS_AT: usize = 8;
/// What the name of a part ends with while it is written.
const BESIDE: &str = ".new";
/// Pages read or written at once when parts are merged.
const MERGE_PAGES: u64 = 64;

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

fn head_page<R: Row>(sequence: u64, row_count: u64, bounds: Bounds) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    page[0..4].copy_from_slice(&R::MAGIC);
    page[4] = R::VERSION;
    page[8..16].copy_from_slice(&row_count.to_le_bytes());
    if !R::IS_BY_PLACE {
        page[16..24].copy_from_slice(&bounds.highest.0.to_le_bytes());
        page[24..32].copy_from_slice(&bounds.oldest.0.to_le_bytes());
        page[32..40].copy_from_slice(&bounds.newest.0.to_le_bytes());
    }
    seal_page(&mut page, sequence, 0);
    page
}

/// What the head of a part says of its rows, unless they are in the order of their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The last record that one is of.
    highest: PhysicalOffset,
    /// When the first of them became visible,
    pub oldest: Timestamp,
    /// and the last. Before `oldest` if there are no rows.
    pub newest: Timestamp,
}

impl Bounds {
    const OF_NONE: Bounds =
        Bounds { highest: PhysicalOffset(0), oldest: Timestamp(i64::MAX), newest: Timestamp(i64::MIN) };

    fn with(self, row: &impl Row) -> Bounds {
        let highest = self.highest.max(row.physical_offset());
        match row.hash() {
            Some((_, at)) => Bounds { highest, oldest: self.oldest.min(at), newest: self.newest.max(at) },
            None => Bounds { highest, ..self },
        }
    }
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
pub(super) struct Part<R> {
    pub sequence: u64,
    file: Arc<dyn File>,
    pub row_count: u64,
    /// As the head says it.
    pub bounds: Bounds,
    rows: PhantomData<R>,
}

impl<R: Row> Part<R> {
    pub async fn open(env: &Env, dir: &Path, sequence: u64) -> io::Result<Part<R>> {
        let file = env.disk.open(&dir.join(part_name::<R>(sequence)), Open::ToRead).await?;
        let page = file.read_at(0, PAGE_BYTES).await?;
        let content = checked_page(&page, sequence, 0).ok_or_else(|| damaged(sequence))?;
        if content[0..4] != R::MAGIC {
            return Err(damaged(sequence));
        }
        if content[4] != R::VERSION {
            let what = format!("index part {sequence} has version {}, not {}", content[4], R::VERSION);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let time = |at| Timestamp(u64_at(content, at) as i64);
        let bounds = Bounds { highest: PhysicalOffset(u64_at(content, 16)), oldest: time(24), newest: time(32) };
        let part = Part { sequence, file, row_count: u64_at(content, 8), bounds, rows: PhantomData };
        match part.file.len()? == (1 + part.page_count()) * PAGE_BYTES as u64 {
            true => Ok(part),
            false => Err(damaged(sequence)),
        }
    }

    fn page_count(&self) -> u64 {
        self.row_count.div_ceil(R::PER_PAGE as u64)
    }

    /// The last record that a row is of. `None`: there are no rows; all of it was trimmed when it was merged.
    pub async fn highest(&self) -> io::Result<Option<PhysicalOffset>> {
        match self.page_count().checked_sub(1) {
            Some(last) if R::IS_BY_PLACE => Ok(self.rows(last, 1).await?.last().map(R::physical_offset)),
            Some(_) => Ok(Some(self.bounds.highest)),
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

    /// Whether a row between `first` and `last` may be here, which are of one hash if they have any: by their times.
    pub fn may_hold(&self, first: &R, last: &R) -> bool {
        match (first.hash(), last.hash()) {
            (Some((_, from)), Some((_, to))) => self.bounds.oldest <= to && self.bounds.newest >= from,
            _ => true,
        }
    }

    /// Adds the rows between `first` and `last`, and these, to `found`; of many about `limit`, the last ones.
    pub async fn find(&self, first: R, last: R, limit: usize, found: &mut BTreeSet<R>) -> io::Result<()> {
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
pub(super) struct Rows<'a, R> {
    part: &'a Part<R>,
    next_page: u64,
    rows: std::vec::IntoIter<R>,
}

impl<'a, R: Row> Rows<'a, R> {
    pub fn of(part: &'a Part<R>) -> Rows<'a, R> {
        Rows { part, next_page: 0, rows: Vec::new().into_iter() }
    }

    /// The row that was looked at last.
    pub fn next(&mut self) -> Option<R> {
        self.rows.next()
    }

    pub async fn peek(&mut self) -> io::Result<Option<R>> {
        if self.rows.as_slice().is_empty() && self.next_page < self.part.page_count() {
            let count = (self.part.page_count() - self.next_page).min(MERGE_PAGES);
            self.rows = self.part.rows(self.next_page, count).await?.into_iter();
            self.next_page += count;
        }
        Ok(self.rows.as_slice().first().copied())
    }
}

/// Writes a part beside its name, a few pages at a time.
pub(super) struct PartWriter<R> {
    file: Arc<dyn File>,
    sequence: u64,
    row_count: u64,
    next_page: u64,
    rows: Vec<R>,
    last: Option<R>,
    bounds: Bounds,
}

impl<R: Row> PartWriter<R> {
    pub async fn begin(env: &Env, dir: &Path, sequence: u64) -> io::Result<PartWriter<R>> {
        let file = env.disk.open(&beside::<R>(dir, sequence), Open::OrCreate).await?;
        file.set_len(0).await?;
        let (rows, last, bounds) = (Vec::new(), None, Bounds::OF_NONE);
        Ok(PartWriter { file, sequence, row_count: 0, next_page: 1, rows, last, bounds })
    }

    pub async fn add(&mut self, row: R) -> io::Result<()> {
        if self.last == Some(row) {
            return Ok(());
        }
        assert!(self.last < Some(row), "rows of a part ascend");
        self.last = Some(row);
        self.bounds = self.bounds.with(&row);
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

    /// The part, durable and under its name.
    pub async fn finish(mut self, env: &Env, dir: &Path) -> io::Result<Part<R>> {
        self.flush().await?;
        let PartWriter { file, sequence, row_count, bounds, .. } = self;
        file.write_at(0, &[Bytes::from(head_page::<R>(sequence, row_count, bounds))]).await?;
        file.sync_data().await?;
        env.disk.rename(&beside::<R>(dir, sequence), &dir.join(part_name::<R>(sequence))).await?;
        env.disk.sync_dir(dir).await?;
        Ok(Part { sequence, file, row_count, bounds, rows: PhantomData })
    }
}

fn beside<R: Row>(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{}{BESIDE}", part_name::<R>(sequence)))
}

pub fn part_name<R: Row>(sequence: u64) -> String {
    format!("{sequence:020}{}", R::SUFFIX)
}

/// The part of this kind that a file is; an error for one of this kind that is none, `None` for one of another kind.
pub(super) fn sequence_of<R: Row>(name: &str) -> Option<Result<u64, ()>> {
    let whole = name.strip_suffix(BESIDE).unwrap_or(name);
    let is_of_kind = |suffix: &str| whole.ends_with(suffix) && !suffix.is_empty();
    let is_ours = if R::SUFFIX.is_empty() { !is_of_kind(KeyRow::SUFFIX) } else { is_of_kind(R::SUFFIX) };
    is_ours.then(|| name.strip_suffix(R::SUFFIX).and_then(|number| number.parse().ok()).ok_or(()))
}

/// The parts of this kind among file names.
pub fn parts_among<'a, R: Row>(names: impl Iterator<Item = &'a str>) -> Vec<u64> {
    names.filter_map(|name| sequence_of::<R>(name)?.ok()).collect()
}

pub(super) fn damaged(sequence: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("index part {sequence} is damaged"))
}

/// Reads all of a part. Gives its rows, or the first page that is not what was written, and what is wrong.
pub async fn read_part<R: Row>(env: &Env, dir: &Path, sequence: u64) -> Result<Vec<R>, (Option<u64>, io::Error)> {
    let part = Part::<R>::open(env, dir, sequence).await.map_err(|error| (Some(0), error))?;
    let mut rows: Vec<R> = Vec::new();
    for page in 0..part.page_count() {
        let read = part.rows(page, 1).await.map_err(|error| (Some(page + 1), error))?;
        rows.extend(read);
    }
    let is_bounded = R::IS_BY_PLACE || part.bounds == rows.iter().fold(Bounds::OF_NONE, Bounds::with);
    match rows.len() as u64 == part.row_count && rows.is_sorted() && is_bounded {
        true => Ok(rows),
        false => Err((None, damaged(sequence))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexRow;
    use crate::position::{QueueId, QueueOffset, Timestamp, TopicId};

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
        let bounds = [row(1), row(2)].iter().fold(Bounds::OF_NONE, Bounds::with);
        let checksums = [head_page::<IndexRow>(5, 2, bounds), page]
            .map(|page| u32::from_le_bytes(page[4092..].try_into().unwrap()));
        assert_eq!(checksums, [3_738_306_635, 1_438_710_665]);

        let row = KeyRow {
            hash: 1,
            visible_at: Timestamp(2),
            physical_offset: PhysicalOffset(3),
            queue: QueueId { topic: TopicId(4), queue: 5 },
            queue_offset: QueueOffset(6),
        };
        let bounds = Bounds { oldest: Timestamp(1), ..Bounds::OF_NONE.with(&row) };
        let (head, page) = (head_page::<KeyRow>(5, 1, bounds), rows_page(5, 1, &[row]));
        assert_eq!((&head[..5], head[16], head[24], head[32]), (&b"RMQK\x02"[..], 3, 1, 2));
        let numbers: Vec<u8> = page[8..48].iter().copied().filter(|byte| *byte != 0).collect();
        assert_eq!((numbers, page[32], page[36]), (vec![1, 2, 3, 4, 5, 6], 4, 5));
        assert_eq!(KeyRow::decode(&page[8..48]), row);
    }
}

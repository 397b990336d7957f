//! The index: what a record's own place in the log does not tell. Rows of two kinds, each sorted in parts of its own.
//!
//! - [`IndexRow`]: from a record's physical offset to the units that point at it by reference. A plain record's unit is
//!   found by its store time ([`crate::consume_queue::Queue`]); that of one which became visible later is not.
//! - [`KeyRow`]: from the hash of a message's key to its units, by the time at which they became visible.
//!
//! Rows are a set: a replay that adds them again adds nothing.
//!
//! - Derived. The newest rows are in memory; a derived sync seals them into a part: sorted, immutable, checksummed.
//! - A part of keys says of which times its rows are: who asks about other times reads nothing of it.
//! - A part is merged with the one before it until that one is more than twice as large, so there are few of them; rows of
//!   keys, of which every message has some, only up to a size at which reading a part through is still nothing.
//!
//! ```text
//! index/<sequence, 20 digits>          by-reference rows     pages of 4096 bytes, little-endian
//! index/<sequence, 20 digits>.keys     rows of keys
//! page 0   0 magic u32 "RMQX" or "RMQK" | 4 version u8 = 1, of keys 2 | 5 zero u8 x 3 | 8 row count u64
//!          keys only: 16 highest physical offset of a row u64 | 24 lowest visible at i64 | 32 highest visible at i64
//! page n   0 row count u16 | 2 zero u16 | 4 zero u32 | 8 rows, ascending:
//!            by reference, 24 bytes: physical offset u64 | topic id u32 | queue u32 | queue offset u64
//!            keys, 40 bytes: hash u64 | visible at i64 | physical offset u64 | topic id u32 | queue u32 | queue offset u64
//! each page ends with the CRC32C u32 of the part's sequence u64, the page number u64 and the page's other bytes
//! ```

mod filter;
mod part;
mod recent;
mod row;

use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use env::Env;
use parking_lot::RwLock;

use crate::consume_queue::{Damage, aside};
use crate::position::{PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};
use filter::Filter;
pub(crate) use part::{PAGE_BYTES, part_name, parts_among, read_part};
use part::{Part, PartWriter, Rows, damaged, sequence_of};
use recent::Recent;
pub(crate) use row::Row;
pub use row::{IndexRow, KeyRow};

const LAST_QUEUE: QueueId = QueueId { topic: TopicId(u32::MAX), queue: u32::MAX };

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
    /// What was added lately.
    filter: Filter,
    /// Oldest first.
    parts: Vec<Arc<Part<R>>>,
    next_sequence: u64,
    /// Rows of records below may go.
    min_physical: PhysicalOffset,
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
        let (recent, filter, min_physical) = (Recent::new(), Filter::ignorant(), PhysicalOffset::default());
        let inner = Inner { recent, filter, parts, next_sequence, min_physical };
        Ok(Index { env, dir, damage, inner: RwLock::new(inner) })
    }

    /// Adds a row; readers see it at once.
    pub fn add(&self, row: R) {
        let mut inner = self.inner.write();
        if let Some((hash, time)) = row.hash() {
            inner.filter.add(hash, time);
        }
        inner.recent.add(row);
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
        let (mut older_rows, mut newer_rows) = (Rows::of(older), Rows::of(newer));
        loop {
            let (a, b) = (older_rows.peek().await?, newer_rows.peek().await?);
            let row = match (a, b) {
                (None, None) => break,
                (Some(a), Some(b)) if a <= b => older_rows.next(),
                (Some(_), None) => older_rows.next(),
                _ => newer_rows.next(),
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
        PartWriter::begin(&self.env, &self.dir, sequence).await
    }

    async fn finish(&self, writer: PartWriter<R>) -> io::Result<Arc<Part<R>>> {
        Ok(Arc::new(writer.finish(&self.env, &self.dir).await?))
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
            // The newest first: when enough is found, older parts need not be looked into.
            let mut first = first;
            for part in parts.iter().rev() {
                if let Some(least) = found.first().filter(|_| found.len() >= limit) {
                    first = *least;
                }
                if part.may_hold(&first, &last) {
                    part.find(first, last, limit, &mut found).await?;
                }
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
        inner.filter.clear();
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
    /// From now on it is known without a look into parts which keys are new among those of the last `span_ms`. To be
    /// called before rows are added: reads the parts that have rows as young as that, and no others.
    pub async fn remember(&self, span_ms: i64) -> io::Result<()> {
        let parts = self.inner.read().parts.clone();
        let newest = parts.iter().map(|part| part.bounds.newest.0).max().unwrap_or(i64::MIN);
        let (since, mut young) = (Timestamp(newest.saturating_sub(span_ms)), Vec::new());
        for part in parts.iter().filter(|part| part.bounds.newest >= since) {
            let mut rows = Rows::of(part);
            while rows.peek().await?.is_some() {
                let KeyRow { hash, visible_at, .. } = rows.next().expect("peeked");
                if visible_at >= since {
                    young.push((visible_at, hash));
                }
            }
        }
        young.sort_unstable();
        let mut filter = Filter::since(since, span_ms);
        young.into_iter().for_each(|(time, hash)| filter.add(hash, time));
        self.inner.write().filter = filter;
        Ok(())
    }

    /// Whether no message with a key of this hash became visible at `from` or later; false if that takes a look at rows.
    pub fn is_new(&self, hash: u64, from: Timestamp) -> bool {
        self.inner.read().filter.is_new(hash, from)
    }

    /// A mistake made on purpose: what was added so far is forgotten, and the rest is taken for all.
    pub fn forget_recent(&self) {
        self.inner.write().filter.clear();
    }

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
    use env::disk::Open;
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
    async fn a_restart_remembers_the_keys_of_the_span_before_it() {
        let rng = Rng::seeded(6);
        let disk = SimDisk::new(rng.fork());
        let index = open_keys(&disk, None).await.unwrap();
        index.remember(1_000).await.unwrap();
        let row = |hash, visible_at| KeyRow { hash, ..key_row(&rng, visible_at) };
        // Parts of falling size, which are not merged.
        for (part, count) in [(0, 900), (1, 300), (2, 100), (3, 30)] {
            let rows: Vec<KeyRow> = (0..count).map(|n| row(part * 1_000_000 + n, 1_000 * part as i64)).collect();
            rows.iter().for_each(|row| index.add(*row));
            index.seal(rows, None).await.unwrap();
        }
        assert!(index.is_new(5, Timestamp(0)) != index.is_new(4_000_005, Timestamp(0)));
        let index = open_keys(&disk, None).await.unwrap();
        assert_eq!(index.inner.read().parts.len(), 4);
        assert!(!index.is_new(4_000_005, Timestamp(3_000)), "nothing is known before");
        index.remember(1_000).await.unwrap();
        for (hash, from, is_new) in [
            (3_000_005, 3_000, false),
            (2_000_005, 2_000, false),
            (4_000_005, 2_000, true),
            (4_000_005, 1_999, false),
            (1_000_005, 2_000, true),
        ] {
            assert_eq!(index.is_new(hash, Timestamp(from)), is_new, "{hash} from {from}");
        }
    }

    /// From now on every look into the rows of these parts fails.
    fn make_unreadable(disk: &SimDisk, parts: impl IntoIterator<Item = u64>) {
        for sequence in parts {
            let path = Path::new("/index").join(part_name::<KeyRow>(sequence));
            disk.fail_reads(path, PAGE_BYTES as u64..u64::MAX);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_about_some_times_reads_no_part_that_has_none_of_them() {
        let rng = Rng::seeded(8);
        let disk = SimDisk::new(rng.fork());
        let index = open_keys(&disk, None).await.unwrap();
        // Parts of falling size, which are not merged: of the times 0..=90, 100..=190, 200..=290, 300..=390.
        let mut parts = Vec::new();
        for (part, count) in [(0, 1_000), (1, 400), (2, 150), (3, 50)] {
            let rows = (0..count).map(|n| KeyRow { hash: n / 10, ..key_row(&rng, part * 100 + n as i64 % 10 * 10) });
            parts = index.seal(rows.collect(), None).await.unwrap().parts;
        }
        assert_eq!(parts.len(), 4);
        let reopened = async |readable: &[usize]| {
            let mount = disk.fork();
            let hidden = parts.iter().enumerate().filter(|(part, _)| !readable.contains(part));
            make_unreadable(&mount, hidden.map(|(_, sequence)| *sequence));
            open_keys(&mount, Some(&parts)).await.unwrap()
        };
        let find = async |readable: &[usize], times: RangeInclusive<i64>, limit| {
            let times = Timestamp(*times.start())..=Timestamp(*times.end());
            reopened(readable).await.find(4, times, limit).await.map(|found| found.len()).map_err(|error| error.kind())
        };
        for (readable, times, limit, found) in [
            // Times of one part, of two, of some between two, of some before and behind all of them.
            (&[1][..], 100..=190, 99, 10),
            (&[1, 2][..], 190..=200, 99, 2),
            (&[][..], 91..=99, 99, 0),
            (&[][..], i64::MIN..=-1, 99, 0),
            (&[][..], 391..=i64::MAX, 99, 0),
            // Enough is found in the newest ones; else the next one is looked into.
            (&[3][..], 0..=i64::MAX, 10, 10),
            (&[2, 3][..], 0..=i64::MAX, 11, 11),
            (&[0, 1, 2, 3][..], i64::MIN..=i64::MAX, 99, 40),
        ] {
            assert_eq!(find(readable, times.clone(), limit).await, Ok(found), "{times:?}, {readable:?}");
            for part in readable {
                let others: Vec<usize> = readable.iter().copied().filter(|other| other != part).collect();
                assert!(find(&others, times.clone(), limit).await.is_err(), "{times:?} without part {part}");
            }
        }
        // A start reads what is as young as the span behind the newest, 390.
        for (readable, span_ms) in [(&[3][..], 99), (&[2, 3][..], 100), (&[2, 3][..], 199), (&[1, 2, 3][..], 200)] {
            let index = reopened(readable).await;
            index.remember(span_ms).await.unwrap();
            assert!(!index.is_new(4, Timestamp(390 - span_ms)) && index.is_new(4_000, Timestamp(390 - span_ms)));
            assert!(!index.is_new(4_000, Timestamp(389 - span_ms)), "of what is older nothing is known");
            assert!(reopened(&readable[1..]).await.remember(span_ms).await.is_err(), "{span_ms} ms need all of these");
        }
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

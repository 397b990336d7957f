//! Images (checkpoints): all keyed state at one position of the log, cut at a replicated `Checkpoint`, byte-identical on
//! every replica, and what a new replica begins with.
//!
//! ```text
//! checkpoint/<term>-<index>, little-endian
//!   0 magic u32 "RMQC" | 4 version u8 = 1 | 5 zero u8 x 3 | 8 cluster version u32 | 12 zero u32
//!  16 segment bytes u64
//!  24 boundary: term u64, index u64, physical end u64, chain u64
//!  56 last group time i64 | 64 min physical u64
//!  72 row count u64 | 80 bytes of all rows u64
//!  88 zero u32 | 92 CRC32C u32 of the 92 bytes above
//!  96 rows in key order: key bytes u32, value bytes u32, key, value
//!   . XXH3-64 u64 of everything above
//! ```
//!
//! The rows are those of [`crate::fold`] (bounds of all queues ever, pending rows with their places, allocators, segment
//! clocks, membership) and the broker's tables. Nothing local enters: no node id, no wall time, no path, no timing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use env::disk::Open;
use env::{Env, File};
use xxhash_rust::xxh3::Xxh3;

use crate::codec;
use crate::fold::rows::{self, GroupRow, MembershipRow};
use crate::keyed::{KeyedStore, LOCAL, Row};
use crate::log::{Boundary, Cursor};
use crate::planted::{self, Bug};
use crate::position::{LogId, PhysicalOffset, Timestamp};

const MAGIC: u32 = u32::from_le_bytes(*b"RMQC");
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 96;
const TAIL_BYTES: usize = 8;
/// Read and written in pieces of about this size.
const PIECE_BYTES: usize = 1 << 20;

/// A complete image on disk.
#[derive(Clone, Debug)]
pub struct Image {
    /// The entry it was cut at, and the place behind it.
    pub boundary: Boundary,
    /// The last membership at that entry, in RAFT's encoding, with its log id.
    pub membership: Option<(LogId, Bytes)>,
    /// Where it lies. Read it with `env.disk`; it is immutable.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// XXH3-64 of its content: equal on all replicas.
    pub hash: u64,
}

/// What an image says before its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub segment_bytes: u64,
    pub boundary: Boundary,
    pub group: GroupRow,
    pub row_count: u64,
    pub rows_bytes: u64,
}

impl Head {
    fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        bytes.put_u32_le(MAGIC);
        bytes.put_u8(VERSION);
        bytes.put_bytes(0, 3);
        bytes.put_u32_le(self.group.cluster_version);
        bytes.put_u32_le(0);
        bytes.put_u64_le(self.segment_bytes);
        bytes.put_u64_le(self.boundary.id.term);
        bytes.put_u64_le(self.boundary.id.index);
        bytes.put_u64_le(self.boundary.end.physical_offset.0);
        bytes.put_u64_le(self.boundary.end.chain);
        bytes.put_i64_le(self.group.last_time.0);
        bytes.put_u64_le(self.group.min_physical.0);
        bytes.put_u64_le(self.row_count);
        bytes.put_u64_le(self.rows_bytes);
        bytes.put_u32_le(0);
        bytes.put_u32_le(crc32c::crc32c(&bytes));
        bytes.try_into().expect("the fields fill the head")
    }

    fn decode(bytes: &[u8]) -> io::Result<Head> {
        let (mut fields, crc) = bytes.split_at_checked(HEAD_BYTES - 4).ok_or_else(|| damaged("short head"))?;
        let magic = fields.get_u32_le();
        let version = fields.get_u8();
        if magic != MAGIC || crc != crc32c::crc32c(&bytes[..HEAD_BYTES - 4]).to_le_bytes() {
            return Err(damaged("bad head"));
        }
        if version != VERSION {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("image version {version} is unknown")));
        }
        fields.advance(3);
        let cluster_version = fields.get_u32_le();
        fields.advance(4);
        let segment_bytes = fields.get_u64_le();
        let id = LogId { term: fields.get_u64_le(), index: fields.get_u64_le() };
        let end = Cursor { physical_offset: PhysicalOffset(fields.get_u64_le()), chain: fields.get_u64_le() };
        let last_time = Timestamp(fields.get_i64_le());
        let min_physical = PhysicalOffset(fields.get_u64_le());
        Ok(Head {
            segment_bytes,
            boundary: Boundary { id, end },
            group: GroupRow { cluster_version, last_time, min_physical },
            row_count: fields.get_u64_le(),
            rows_bytes: fields.get_u64_le(),
        })
    }

    fn file_bytes(&self) -> Option<u64> {
        self.rows_bytes.checked_add((HEAD_BYTES + TAIL_BYTES) as u64)
    }
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("image: {what}"))
}

/// Where the image in `bytes` says that it was cut. Of its content only the head is verified.
pub(crate) fn boundary_of(bytes: &[u8]) -> io::Result<Boundary> {
    bytes.get(..HEAD_BYTES).ok_or_else(|| damaged("short head")).and_then(Head::decode).map(|head| head.boundary)
}

/// An image's file name.
pub(crate) fn name(id: LogId) -> String {
    id.to_string()
}

/// The position in an image's file name; `None` for other files.
pub(crate) fn id_of_name(name: &str) -> Option<LogId> {
    let (term, index) = name.split_once('-')?;
    let id = LogId { term: term.parse().ok()?, index: index.parse().ok()? };
    (self::name(id) == name).then_some(id)
}

/// Where an image is written, or received, before it has its name.
pub(crate) fn beside(dir: &Path, id: LogId) -> PathBuf {
    dir.join(format!("{}.new", name(id)))
}

/// Positions of the images in `dir`, oldest first. They have their names, so they were complete once.
pub(crate) async fn list(env: &Env, dir: &Path) -> io::Result<Vec<LogId>> {
    let names = env.disk.list(dir).await?;
    let mut ids: Vec<LogId> = names.iter().filter_map(|name| id_of_name(&name.name)).collect();
    ids.sort_unstable_by_key(|id| id.index);
    Ok(ids)
}

/// Writes the image of all rows in `keyed`, whose N is the checkpoint, and gives it its name.
pub(crate) async fn write(env: &Env, dir: &Path, segment_bytes: u64, keyed: &mut dyn KeyedStore) -> io::Result<Image> {
    let boundary = keyed.boundary().expect("a checkpoint is an entry, so rows up to it are in the store");
    let path = beside(dir, boundary.id);
    let file = env.disk.open(&path, Open::OrCreate).await?;
    file.set_len(0).await?;
    // Counts and sums first: the head is written, and hashed, before the rows.
    let mut head = Head {
        segment_bytes,
        boundary,
        group: GroupRow { cluster_version: 0, last_time: Timestamp(0), min_physical: PhysicalOffset(0) },
        row_count: 0,
        rows_bytes: 0,
    };
    let mut after = None;
    while let Some(rows) = shared_rows(keyed, &mut after).await? {
        for (key, value) in &rows {
            head.row_count += 1;
            head.rows_bytes += row_bytes(key, value) as u64;
            if *key == [rows::GROUP] {
                head.group = codec::from_bytes(value).map_err(damaged)?;
            }
        }
    }
    let mut hash = Xxh3::new();
    let mut at = 0;
    let encoded = head.encode();
    hash.update(&encoded);
    let mut piece = BytesMut::from(&encoded[..]);
    let (mut after, mut membership) = (None, None);
    while let Some(rows) = shared_rows(keyed, &mut after).await? {
        let begun = piece.len();
        for (key, value) in &rows {
            piece.put_u32_le(key.len() as u32);
            piece.put_u32_le(value.len() as u32);
            piece.put_slice(key);
            piece.put_slice(value);
            note_membership(key, value, &mut membership)?;
        }
        hash.update(&piece[begun..]);
        at = write_piece(&*file, at, &mut piece).await?;
    }
    let hash = hash.digest();
    piece.put_u64_le(hash);
    at = write_piece(&*file, at, &mut piece).await?;
    assert_eq!(Some(at), head.file_bytes(), "rows do not change while an image is written");
    if !planted::is(Bug::ImageUnsynced) {
        file.sync_data().await?;
    }
    env::fault!("checkpoint.before_rename");
    let named = dir.join(name(boundary.id));
    env.disk.rename(&path, &named).await?;
    env.disk.sync_dir(dir).await?;
    Ok(Image { boundary, membership, path: named, len: at, hash })
}

async fn write_piece(file: &dyn File, at: u64, piece: &mut BytesMut) -> io::Result<u64> {
    let bytes = piece.split().freeze();
    let end = at + bytes.len() as u64;
    file.write_at(at, &[bytes]).await?;
    Ok(end)
}

/// The next rows that enter images. Rows local to this replica are last in key order.
async fn shared_rows(keyed: &mut dyn KeyedStore, after: &mut Option<Vec<u8>>) -> io::Result<Option<Vec<Row>>> {
    let mut rows = keyed.rows(after.as_deref(), PIECE_BYTES).await?;
    rows.retain(|(key, _)| key[0] < LOCAL);
    *after = rows.last().map(|(key, _)| key.clone());
    Ok((!rows.is_empty()).then_some(rows))
}

fn row_bytes(key: &[u8], value: &[u8]) -> usize {
    8 + key.len() + value.len()
}

fn note_membership(key: &[u8], value: &[u8], membership: &mut Option<(LogId, Bytes)>) -> io::Result<()> {
    if key == [rows::MEMBERSHIP] {
        let row: MembershipRow = codec::from_bytes(value).map_err(damaged)?;
        *membership = Some((row.id, Bytes::from(row.bytes)));
    }
    Ok(())
}

/// Reads an image piece by piece. Nothing read may be believed before [`Reading::rows`] has said that it was the last.
pub(crate) struct Reading {
    file: Arc<dyn File>,
    path: PathBuf,
    pub head: Head,
    hash: Xxh3,
    /// Position in the file behind `unread`.
    at: u64,
    unread: BytesMut,
    rows_left: u64,
    last_key: Vec<u8>,
    membership: Option<(LogId, Bytes)>,
}

impl Reading {
    pub async fn open(env: &Env, path: &Path) -> io::Result<Reading> {
        let file = env.disk.open(path, Open::ToRead).await?;
        let bytes = file.read_at(0, HEAD_BYTES).await?;
        let head = Head::decode(&bytes)?;
        if head.file_bytes() != Some(file.len()?) {
            return Err(damaged("its length is not that of its rows"));
        }
        let mut hash = Xxh3::new();
        hash.update(&bytes);
        Ok(Reading {
            file,
            path: path.to_owned(),
            head,
            hash,
            at: HEAD_BYTES as u64,
            unread: BytesMut::new(),
            rows_left: head.row_count,
            last_key: Vec::new(),
            membership: None,
        })
    }

    /// The next rows; `None` when there are no more and all were as they were written.
    pub async fn rows(&mut self) -> io::Result<Option<Vec<Row>>> {
        let rows_end = HEAD_BYTES as u64 + self.head.rows_bytes;
        loop {
            let mut rows = Vec::new();
            while let Some(row) = self.next_row()? {
                rows.push(row);
            }
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
            if self.at == rows_end {
                break;
            }
            let count = (rows_end - self.at).min(PIECE_BYTES as u64) as usize;
            let bytes = self.file.read_at(self.at, count).await?;
            if bytes.len() != count {
                return Err(damaged("cut short"));
            }
            self.hash.update(&bytes);
            self.at += count as u64;
            self.unread.extend_from_slice(&bytes);
        }
        let tail = self.file.read_at(rows_end, TAIL_BYTES).await?;
        if self.rows_left != 0 || !self.unread.is_empty() || tail != self.hash.digest().to_le_bytes()[..] {
            return Err(damaged("its rows are not those that were written"));
        }
        Ok(None)
    }

    fn next_row(&mut self) -> io::Result<Option<Row>> {
        let Some(mut lengths) = self.unread.get(..8) else { return Ok(None) };
        let (key_bytes, value_bytes) = (lengths.get_u32_le() as usize, lengths.get_u32_le() as usize);
        let Some(row) = key_bytes.checked_add(value_bytes).and_then(|len| self.unread.get(8..len.checked_add(8)?))
        else {
            return Ok(None);
        };
        let (key, value) = row.split_at(key_bytes);
        let row = (key.to_vec(), value.to_vec());
        if row.0 <= self.last_key || row.0[0] >= LOCAL || self.rows_left == 0 {
            return Err(damaged("rows out of order"));
        }
        note_membership(&row.0, &row.1, &mut self.membership)?;
        self.rows_left -= 1;
        self.last_key.clone_from(&row.0);
        self.unread.advance(row_bytes(&row.0, &row.1));
        Ok(Some(row))
    }
}

/// What an image is, without reading all of it: for those that were complete when they got their name.
pub(crate) async fn glance(env: &Env, path: &Path) -> io::Result<Image> {
    let mut reading = Reading::open(env, path).await?;
    // The membership is among the first rows.
    reading.rows().await?;
    let tail = reading.file.read_at(HEAD_BYTES as u64 + reading.head.rows_bytes, TAIL_BYTES).await?;
    let hash = u64::from_le_bytes(tail[..].try_into().map_err(|_| damaged("cut short"))?);
    let (boundary, len) = (reading.head.boundary, reading.file.len()?);
    Ok(Image { boundary, membership: reading.membership, path: reading.path, len, hash })
}

/// Reads all of an image: whether it is one, and what it is.
pub(crate) async fn verify(env: &Env, path: &Path) -> io::Result<(Image, Head)> {
    let mut reading = Reading::open(env, path).await?;
    while reading.rows().await?.is_some() {}
    let image = Image {
        boundary: reading.head.boundary,
        membership: reading.membership,
        path: reading.path,
        len: reading.file.len()?,
        hash: reading.hash.digest(),
    };
    Ok((image, reading.head))
}

#[cfg(test)]
mod tests {
    use env::Rng;
    use env::disk::simulated::SimDisk;

    use super::*;
    use crate::keyed;

    async fn stored(env: &Env, dir: &Path, big: usize) -> Box<dyn KeyedStore> {
        env.disk.create_dir_all(&dir.join("checkpoint")).await.unwrap();
        let mut store = keyed::open(env, dir).await.unwrap().store;
        let group = GroupRow { cluster_version: 1, last_time: Timestamp(77), min_physical: PhysicalOffset(5) };
        let member = MembershipRow { id: LogId { term: 1, index: 0 }, bytes: b"members".to_vec() };
        let changes = vec![
            (vec![rows::GROUP], Some(codec::to_bytes(&group))),
            (vec![rows::MEMBERSHIP], Some(codec::to_bytes(&member))),
            (vec![0x40, 1], Some(vec![7; big])),
            (vec![0x40, 2], Some(vec![])),
            (vec![LOCAL], Some(b"local".to_vec())),
        ];
        let end = Cursor { physical_offset: PhysicalOffset(640), chain: 99 };
        store.write(changes, Boundary { id: LogId { term: 2, index: 8 }, end }).await.unwrap();
        store
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_is_read_back_and_holds_nothing_local() {
        let env = Env::simulated(1, SimDisk::new(Rng::seeded(1)));
        let dir = Path::new("/data");
        let mut store = stored(&env, dir, 3 * PIECE_BYTES).await;
        let image = write(&env, &dir.join("checkpoint"), 4096, &mut *store).await.unwrap();
        assert!(image.path.ends_with("2-8"));
        let (read, head) = verify(&env, &image.path).await.unwrap();
        assert_eq!((read.hash, read.len), (image.hash, image.len));
        assert_eq!(read.membership, Some((LogId { term: 1, index: 0 }, Bytes::from_static(b"members"))));
        assert_eq!((head.boundary, head.segment_bytes, head.row_count), (store.boundary().unwrap(), 4096, 4));
        assert_eq!((head.group.last_time, head.group.min_physical), (Timestamp(77), PhysicalOffset(5)));
        assert_eq!(list(&env, &dir.join("checkpoint")).await.unwrap(), [LogId { term: 2, index: 8 }]);
        // If this changes, replicas of different releases disagree, and images of earlier ones can no longer be read.
        assert_eq!(image.hash, 7_813_597_269_556_071_946);
        let bytes =
            env.disk.open(&image.path, Open::Existing).await.unwrap().read_at(0, usize::MAX >> 1).await.unwrap();
        assert!(!bytes.windows(5).any(|window| window == b"local"));
    }

    #[tokio::test(start_paused = true)]
    async fn every_flipped_bit_and_every_cut_is_noticed() {
        let disk = SimDisk::new(Rng::seeded(1));
        let env = Env::simulated(1, disk.clone());
        let dir = Path::new("/data");
        let mut store = stored(&env, dir, 10).await;
        let image = write(&env, &dir.join("checkpoint"), 4096, &mut *store).await.unwrap();
        for bit in 0..image.len * 8 {
            disk.flip_bit(&image.path, bit / 8, (bit % 8) as u8);
            assert!(verify(&env, &image.path).await.is_err(), "bit {bit}");
            disk.flip_bit(&image.path, bit / 8, (bit % 8) as u8);
        }
        verify(&env, &image.path).await.unwrap();
        let file = env.disk.open(&image.path, Open::Existing).await.unwrap();
        for len in (0..image.len).rev() {
            file.set_len(len).await.unwrap();
            assert!(verify(&env, &image.path).await.is_err(), "cut at {len}");
        }
    }

    #[test]
    fn names_are_exact() {
        assert_eq!(id_of_name("3-14"), Some(LogId { term: 3, index: 14 }));
        for other in ["3-14.new", "03-14", "3-", "-", "x", "3-14-5", "+3-14"] {
            assert_eq!(id_of_name(other), None, "{other}");
        }
    }
}

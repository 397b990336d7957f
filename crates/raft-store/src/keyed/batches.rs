//! Rows in memory and in one file of batches, over [`env::Disk`], so that a simulation owns every byte.
//!
//! ```text
//! state/<generation, 20 digits>    batches, back to back; the first holds all rows
//! batch, little-endian
//!  0 magic u32 "RMQK" | 4 payload bytes u32 | 8 CRC32C u32 of the payload | 12 CRC32C u32 of the 12 bytes above
//! 16 payload: N as 32 bytes, all FF for none | then per change: key bytes u32, value bytes u32 (FFFFFFFF deletes), key, value
//! ```
//!
//! A batch is appended and synced before the next one: what follows the last whole batch was never acknowledged. When the
//! file has grown to a multiple of its rows, the rows are written beside as the next generation, synced and renamed.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use env::disk::Open;
use env::{Env, File};
use futures::FutureExt;
use futures::future::{BoxFuture, ready};

use super::{BOUNDARY_BYTES, Change, KeyedStore, Row, damaged, decode_boundary, encode_boundary};
use crate::log::Boundary;
use crate::planted::{self, Bug};

const MAGIC: u32 = u32::from_le_bytes(*b"RMQK");
const HEAD_BYTES: usize = 16;
const NO_BOUNDARY: [u8; BOUNDARY_BYTES] = [0xFF; BOUNDARY_BYTES];
const DELETED: u32 = u32::MAX;
/// A file smaller than this is never rewritten.
const REWRITE_FROM_BYTES: u64 = 64 << 10;

/// Rows in batches.
pub(crate) struct BatchStore {
    env: Env,
    dir: PathBuf,
    generation: u64,
    file: Arc<dyn File>,
    end: u64,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of `rows`.
    live_bytes: u64,
    boundary: Option<Boundary>,
}

impl BatchStore {
    pub async fn open(env: Env, dir: PathBuf) -> io::Result<BatchStore> {
        let names = env.disk.list(&dir).await?;
        let newest = names.iter().filter_map(|name| name.name.parse::<u64>().ok()).max();
        for name in names {
            // Older generations, and one that was being written.
            if name.name.parse().ok() != newest || newest.is_none() {
                env.disk.remove_file(&dir.join(name.name)).await?;
            }
        }
        let generation = newest.unwrap_or(0);
        let path = dir.join(generation_name(generation));
        let file = env.disk.open(&path, Open::OrCreate).await?;
        let mut store =
            BatchStore { env, dir, generation, file, end: 0, rows: BTreeMap::new(), live_bytes: 0, boundary: None };
        store.env.disk.sync_dir(&store.dir).await?;
        let bytes = store.file.read_at(0, store.file.len()? as usize).await?;
        while let Some((changes, boundary, len)) = decode_batch(&bytes[store.end as usize..]) {
            store.change(changes);
            store.boundary = boundary;
            store.end += len as u64;
        }
        if store.end == 0 && generation > 0 {
            return Err(damaged(format!("generation {generation} has no rows")));
        }
        store.file.set_len(store.end).await?;
        store.file.sync_data().await?;
        Ok(store)
    }

    fn change(&mut self, changes: Vec<Change>) {
        for (key, value) in changes {
            let added = value.as_ref().map_or(0, |value| (key.len() + value.len()) as u64);
            let key_len = key.len();
            let before = match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
            self.live_bytes += added;
            self.live_bytes -= before.map_or(0, |before| (key_len + before.len()) as u64);
        }
    }

    async fn append(&mut self, changes: &[Change]) -> io::Result<()> {
        let batch = encode_batch(changes.iter().map(|(key, value)| (key, value.as_ref())), self.boundary);
        let len = batch.len() as u64;
        self.file.write_at(self.end, &[batch]).await?;
        env::fault!("keyed.before_sync");
        self.file.sync_data().await?;
        self.end += len;
        Ok(())
    }

    async fn rewrite(&mut self) -> io::Result<()> {
        let batch = encode_batch(self.rows.iter().map(|(key, value)| (key, Some(value))), self.boundary);
        let (name, end) = (generation_name(self.generation + 1), batch.len() as u64);
        let beside = self.dir.join(format!("{name}.new"));
        let file = self.env.disk.open(&beside, Open::OrCreate).await?;
        file.set_len(0).await?;
        file.write_at(0, &[batch]).await?;
        file.sync_data().await?;
        self.env.disk.rename(&beside, &self.dir.join(name)).await?;
        self.env.disk.sync_dir(&self.dir).await?;
        self.env.disk.remove_file(&self.dir.join(generation_name(self.generation))).await?;
        (self.generation, self.file, self.end) = (self.generation + 1, file, end);
        Ok(())
    }
}

impl KeyedStore for BatchStore {
    fn boundary(&self) -> Option<Boundary> {
        self.boundary
    }

    fn rows<'a>(&'a mut self, after: Option<&'a [u8]>, limit_bytes: usize) -> BoxFuture<'a, io::Result<Vec<Row>>> {
        let start = std::ops::Bound::Excluded(after.unwrap_or(&[]).to_vec());
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for (key, value) in self.rows.range((start, std::ops::Bound::Unbounded)) {
            rows.push((key.clone(), value.clone()));
            bytes += key.len() + value.len();
            if bytes >= limit_bytes {
                break;
            }
        }
        ready(Ok(rows)).boxed()
    }

    fn write(&mut self, changes: Vec<Change>, boundary: Boundary) -> BoxFuture<'_, io::Result<()>> {
        async move {
            let filled = self.boundary.is_none() && !self.rows.is_empty();
            self.boundary = Some(boundary);
            if planted::is(Bug::BoundaryBeforeRows) {
                self.append(&[]).await?;
            }
            if filled || self.end > REWRITE_FROM_BYTES.max(self.live_bytes * 4) {
                self.change(changes);
                self.rewrite().await
            } else {
                self.append(&changes).await?;
                self.change(changes);
                Ok(())
            }
        }
        .boxed()
    }

    fn clear(&mut self) -> BoxFuture<'_, io::Result<()>> {
        async move {
            self.rows.clear();
            (self.live_bytes, self.boundary) = (0, None);
            self.rewrite().await
        }
        .boxed()
    }

    fn fill(&mut self, rows: Vec<Row>) -> BoxFuture<'_, io::Result<()>> {
        assert!(self.boundary.is_none(), "only a cleared store is filled");
        self.change(rows.into_iter().map(|(key, value)| (key, Some(value))).collect());
        ready(Ok(())).boxed()
    }

    fn check(&mut self) -> BoxFuture<'_, io::Result<()>> {
        // Each batch was checked when it was read.
        ready(Ok(())).boxed()
    }
}

fn generation_name(generation: u64) -> String {
    format!("{generation:020}")
}

fn encode_batch<'a>(
    changes: impl Iterator<Item = (&'a Vec<u8>, Option<&'a Vec<u8>>)>,
    boundary: Option<Boundary>,
) -> Bytes {
    let mut bytes = BytesMut::zeroed(HEAD_BYTES);
    bytes.put_slice(&boundary.map_or(NO_BOUNDARY, encode_boundary));
    for (key, value) in changes {
        bytes.put_u32_le(key.len() as u32);
        bytes.put_u32_le(value.map_or(DELETED, |value| value.len() as u32));
        bytes.put_slice(key);
        bytes.put_slice(value.map_or(&[], |value| value.as_slice()));
    }
    let payload_bytes = u32::try_from(bytes.len() - HEAD_BYTES).expect("a batch is bounded");
    let payload_crc = crc32c::crc32c(&bytes[HEAD_BYTES..]);
    bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[4..8].copy_from_slice(&payload_bytes.to_le_bytes());
    bytes[8..12].copy_from_slice(&payload_crc.to_le_bytes());
    let head_crc = crc32c::crc32c(&bytes[..12]);
    bytes[12..16].copy_from_slice(&head_crc.to_le_bytes());
    bytes.freeze()
}

/// The batch at the beginning of `bytes`, and its length; `None` if there is no whole one.
fn decode_batch(bytes: &[u8]) -> Option<(Vec<Change>, Option<Boundary>, usize)> {
    let u32_at = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let head = bytes.get(..HEAD_BYTES)?;
    if u32_at(head, 0)? != MAGIC || u32_at(head, 12)? != crc32c::crc32c(&head[..12]) {
        return None;
    }
    let len = HEAD_BYTES.checked_add(u32_at(head, 4)? as usize)?;
    let payload = bytes.get(HEAD_BYTES..len)?;
    if u32_at(head, 8)? != crc32c::crc32c(payload) {
        return None;
    }
    let (boundary, mut rest) = payload.split_first_chunk::<BOUNDARY_BYTES>()?;
    let mut changes = Vec::new();
    while !rest.is_empty() {
        let (key_bytes, value_bytes) = (u32_at(rest, 0)? as usize, u32_at(rest, 4)?);
        let (key, after) = rest[8..].split_at_checked(key_bytes)?;
        let (value, after) = match value_bytes {
            DELETED => (None, after),
            _ => after.split_at_checked(value_bytes as usize).map(|(value, after)| (Some(value.to_vec()), after))?,
        };
        changes.push((key.to_vec(), value));
        rest = after;
    }
    let boundary = (*boundary != NO_BOUNDARY).then(|| decode_boundary(boundary));
    Some((changes, boundary, len))
}

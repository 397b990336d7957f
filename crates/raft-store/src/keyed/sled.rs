//! Rows in sled: one tree. Runs on a thread that may block.
//!
//! ```text
//! 00            N (term u64, index u64, physical end u64, chain u64) and the sum of all other rows u64, little-endian
//! 01..FF ...    rows
//! state.opening beside the directory: one byte, how often in a row an open has begun and not ended
//! ```

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use env::Env;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};

use super::{BOUNDARY_BYTES, Change, KeyedStore, Row, damaged, decode_boundary, encode_boundary};
use crate::consume_queue::{read_file, replace_file};
use crate::log::Boundary;

const HEAD: [u8; 1] = [0x00];
const CACHE_BYTES: u64 = 8 << 20;
/// Rows are removed or filled in batches of this many.
const BATCH_ROWS: usize = 4096;
/// sled has ways to kill the process while it opens. After this many such deaths the directory is given up. More than an
/// impatient operator or supervisor kills a start in a row: what is given up costs a replay of the whole log.
pub(super) const OPENS_NOT_ENDED: u8 = 8;

/// Rows in sled.
pub(crate) struct SledStore {
    database: ::sled::Db,
    boundary: Option<Boundary>,
    /// Sum (wrapping) of the hashes of all rows, as the changes make it.
    sum: u64,
    /// The same of the rows read so far from the first on, while they are read through.
    read_sum: u64,
}

impl SledStore {
    pub async fn open(env: &Env, dir: &Path) -> io::Result<SledStore> {
        let opening = dir.join("state.opening");
        let deaths = read_file(env, &opening).await?.and_then(|bytes| bytes.first().copied()).unwrap_or(0);
        if deaths >= OPENS_NOT_ENDED {
            replace_file(env, &opening, Bytes::from_static(&[0])).await?;
            return Err(damaged(format!("{deaths} opens in a row did not end")));
        }
        replace_file(env, &opening, Bytes::from(vec![deaths + 1])).await?;
        let opened = SledStore::open_now(dir.join("state"));
        replace_file(env, &opening, Bytes::from_static(&[0])).await?;
        opened
    }

    fn open_now(path: PathBuf) -> io::Result<SledStore> {
        let configuration = ::sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            // It is flushed when a batch is complete, and at no other time.
            .flush_every_ms(None);
        let database = configuration.open().map_err(from_sled)?;
        let (boundary, sum) = match database.get(HEAD).map_err(from_sled)? {
            None => (None, 0),
            Some(head) => {
                let (boundary, sum) = head.split_at_checked(BOUNDARY_BYTES).ok_or_else(|| damaged("short head"))?;
                let boundary = decode_boundary(boundary.try_into().expect("split there"));
                (Some(boundary), u64::from_le_bytes(sum.try_into().map_err(|_| damaged("long head"))?))
            }
        };
        Ok(SledStore { database, boundary, sum, read_sum: 0 })
    }

    fn rows_now(&mut self, after: Option<&[u8]>, limit_bytes: usize) -> io::Result<Vec<Row>> {
        if after.is_none() {
            self.read_sum = 0;
        }
        let start = std::ops::Bound::Excluded(after.unwrap_or(&HEAD));
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for row in self.database.range::<&[u8], _>((start, std::ops::Bound::Unbounded)) {
            let (key, value) = row.map_err(from_sled)?;
            self.read_sum = self.read_sum.wrapping_add(row_hash(&key, &value));
            bytes += key.len() + value.len();
            rows.push((key.to_vec(), value.to_vec()));
            if bytes >= limit_bytes {
                break;
            }
        }
        Ok(rows)
    }

    fn write_now(&mut self, changes: Vec<Change>, boundary: Boundary) -> io::Result<()> {
        let mut batch = ::sled::Batch::default();
        let mut sum = self.sum;
        for (key, value) in changes {
            assert!(key.as_slice() > HEAD.as_slice(), "the first key is the store's own");
            if let Some(before) = self.database.get(&key).map_err(from_sled)? {
                sum = sum.wrapping_sub(row_hash(&key, &before));
            }
            match value {
                Some(value) => {
                    sum = sum.wrapping_add(row_hash(&key, &value));
                    batch.insert(key, value);
                }
                None => batch.remove(key),
            }
        }
        let mut head = encode_boundary(boundary).to_vec();
        head.extend(sum.to_le_bytes());
        batch.insert(&HEAD, head);
        self.database.apply_batch(batch).map_err(from_sled)?;
        self.database.flush().map_err(from_sled)?;
        (self.sum, self.boundary) = (sum, Some(boundary));
        Ok(())
    }

    fn clear_now(&mut self) -> io::Result<()> {
        self.database.remove(HEAD).map_err(from_sled)?;
        self.database.flush().map_err(from_sled)?;
        (self.boundary, self.sum) = (None, 0);
        loop {
            let mut batch = ::sled::Batch::default();
            let mut rows = 0;
            for key in self.database.iter().keys().take(BATCH_ROWS) {
                batch.remove(key.map_err(from_sled)?);
                rows += 1;
            }
            if rows == 0 {
                return Ok(());
            }
            self.database.apply_batch(batch).map_err(from_sled)?;
        }
    }

    fn fill_now(&mut self, rows: Vec<Row>) -> io::Result<()> {
        assert!(self.boundary.is_none(), "only a cleared store is filled");
        for rows in rows.chunks(BATCH_ROWS) {
            let mut batch = ::sled::Batch::default();
            for (key, value) in rows {
                self.sum = self.sum.wrapping_add(row_hash(key, value));
                batch.insert(key.as_slice(), value.as_slice());
            }
            self.database.apply_batch(batch).map_err(from_sled)?;
        }
        Ok(())
    }

    fn check_now(&self) -> io::Result<()> {
        match self.read_sum == self.sum {
            true => Ok(()),
            false => Err(damaged("rows are not those that were written")),
        }
    }
}

impl KeyedStore for SledStore {
    fn boundary(&self) -> Option<Boundary> {
        self.boundary
    }

    fn rows<'a>(&'a mut self, after: Option<&'a [u8]>, limit_bytes: usize) -> BoxFuture<'a, io::Result<Vec<Row>>> {
        ready(self.rows_now(after, limit_bytes)).boxed()
    }

    fn write(&mut self, changes: Vec<Change>, boundary: Boundary) -> BoxFuture<'_, io::Result<()>> {
        ready(self.write_now(changes, boundary)).boxed()
    }

    fn clear(&mut self) -> BoxFuture<'_, io::Result<()>> {
        ready(self.clear_now()).boxed()
    }

    fn fill(&mut self, rows: Vec<Row>) -> BoxFuture<'_, io::Result<()>> {
        ready(self.fill_now(rows)).boxed()
    }

    fn check(&mut self) -> BoxFuture<'_, io::Result<()>> {
        ready(self.check_now()).boxed()
    }
}

fn row_hash(key: &[u8], value: &[u8]) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(value);
    hash.digest()
}

fn from_sled(error: ::sled::Error) -> io::Error {
    match error {
        // sled tells of a lock that is held in words only.
        ::sled::Error::Io(error) if error.to_string().contains("acquire lock") => {
            io::Error::new(io::ErrorKind::WouldBlock, error)
        }
        ::sled::Error::Io(error) => error,
        other => damaged(other),
    }
}

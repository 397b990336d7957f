//! What the tests stand on: a runtime with simulated time, a small log, and entries whose bytes follow from their ids.

use std::future::Future;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use env::disk::simulated::SimDisk;
use env::{Disk, Env, Rng};
use futures::FutureExt;
use raft_store::log::{AppendEntry, Done, Kind, Log, LogOptions, OpenError};
use raft_store::position::{LogId, PhysicalOffset};
use tokio::sync::oneshot;

pub use super::crashes::simulate;

/// Where the log lies on a simulated disk.
pub const DIR: &str = "/node";

/// Runs `test` in real time.
pub fn real<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime can be built").block_on(test)
}

/// Segments so small that a few entries fill one.
pub fn small() -> LogOptions {
    LogOptions {
        segment_bytes: 8192,
        prepare_piece_bytes: 4096,
        tail_bytes: 4096,
        max_entry_bytes: 3000,
        ..LogOptions::default()
    }
}

/// A simulated disk with nothing on it but the log's directory, which is durable: making it so is not the log's task.
pub fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(Rng::seeded(seed));
    let made = async {
        disk.create_dir_all(DIR.as_ref()).await?;
        disk.sync_dir("/".as_ref()).await
    };
    made.now_or_never().expect("a disk without latency does not wait").expect("made");
    disk
}

/// Opens the log on a simulated disk.
pub async fn open(disk: &SimDisk, options: LogOptions) -> Result<Log, OpenError> {
    Log::open(Env::simulated(0, disk.clone()), PathBuf::from(DIR), options, None).await
}

/// Bytes of the entry `id`: as many as `bytes`, and different for each `nonce`.
pub fn body(id: LogId, nonce: u64, bytes: usize) -> Bytes {
    let rng = Rng::seeded(id.term ^ id.index.rotate_left(20) ^ nonce.rotate_left(40));
    let mut body = vec![0; bytes];
    rng.fill(&mut body);
    Bytes::from(body)
}

/// An entry to append.
pub fn entry(term: u64, index: u64, bytes: usize) -> AppendEntry {
    entry_with(LogId { term, index }, Kind::Entry, body(LogId { term, index }, 0, bytes))
}

/// An entry with this body.
pub fn entry_with(id: LogId, kind: Kind, body: Bytes) -> AppendEntry {
    let body_crc = crc32c::crc32c(&body);
    AppendEntry { id, kind, body, body_crc, carried_chain: None }
}

/// A callback, and how to wait for it.
pub fn done() -> (Done, oneshot::Receiver<io::Result<()>>) {
    let (send, receive) = oneshot::channel();
    let done = move |result| {
        let _ = send.send(result);
    };
    (Box::new(done), receive)
}

/// Appends and waits until it is durable.
pub async fn append(log: &Log, entries: Vec<AppendEntry>) -> io::Result<Vec<PhysicalOffset>> {
    let (done, finished) = done();
    let offsets = log.append(entries, done)?;
    finished.await.expect("the callback runs")?;
    Ok(offsets)
}

/// The bodies of the whole log, read in steps of about `max_bytes`.
pub async fn bodies(log: &Log, max_bytes: usize) -> io::Result<Vec<(LogId, Bytes)>> {
    let mut index = log.last_purged().map_or(0, |purged| purged.index + 1);
    let end = log.last().map_or(0, |last| last.index + 1);
    let mut bodies = Vec::new();
    while index < end {
        let frames = log.read(index..end, max_bytes).await?;
        assert!(!frames.is_empty(), "entry {index} of {end} is there");
        for frame in frames {
            assert_eq!(frame.id.index, index);
            index += 1;
            bodies.push((frame.id, frame.body));
        }
    }
    Ok(bodies)
}

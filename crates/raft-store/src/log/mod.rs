//! The CommitLog, which is the Raft log: frames in segment files, written by one ordered writer.
//!
//! [`Log`] is the handle. An append returns when its entries are readable; they are durable when its callback runs.
//! After [`Log::truncate_after`] has returned, what it cut never comes back. After a failed write or sync the log is
//! poisoned: nothing is retried, and the replica must stop.
//!
//! - [`frame`]: the unit of the log, its bytes and its chain.
//! - [`segment`]: the files, and the marks in their heads that say what was durable.
//! - [`hard_state`]: vote, last purged entry, truncation point, in two copies.
//! - [`points`]: the sparse index of frames, and its side files.
//! - [`recovery`]: where the log ends after a stop of any kind, and what is corruption.
//! - [`mend`]: frames from a peer, written where they lay.
//! - [`survey`]: all that is whole, and all that is not, without changing anything.
//! - [`state`]: what handles and writer share, and the watermarks.
//! - [`tail`]: the newest frames in memory; [`read`]: the others, from maps, verified.
//! - [`prepare`]: zeros ahead of the end; [`writer`]: groups, syncs, callbacks.

pub mod frame;
pub mod hard_state;
pub(crate) mod mend;
pub(crate) mod points;
mod prepare;
mod read;
mod recovery;
pub mod segment;
mod state;
pub mod survey;
mod tail;
mod writer;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use env::{Env, executor::Running};
use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::sync::{Notify, oneshot, watch};

pub use frame::{Boundary, Cursor, Frame, Kind};
pub use hard_state::Vote;

use crate::consume_queue::aside;
use crate::position::{LogId, PhysicalOffset};
use frame::{Composed, compose, follows, frame_bytes};
use prepare::Preparation;
use segment::Layout;
use state::{Command, Reply, Shared, State};
use tail::Tail;
use writer::Writer;

/// How the log is laid out and bounded.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Log bytes per segment file; fixed for the cluster.
    pub segment_bytes: u64,
    /// Segments are written with zeros ahead of the tail in pieces of this size.
    pub prepare_piece_bytes: u64,
    /// Newest frames kept in memory.
    pub tail_bytes: u64,
    /// Longest body of an entry.
    pub max_entry_bytes: u32,
    /// A writer with nothing to do for this long writes its mark.
    pub idle_mark_ms: u64,
    /// `None`: an append is done when it is durable. Else it is done when it is written, and durable this much later: a
    /// machine that goes down takes with it what was appended since. Votes and cuts are durable in either case.
    pub flush_interval_ms: Option<u64>,
}

impl LogOptions {
    fn check(&self) -> Result<(), OpenError> {
        let refuse = |reason: String| Err(OpenError::Options(reason));
        let largest = frame_bytes(u64::from(self.max_entry_bytes));
        if self.segment_bytes == 0 || !self.segment_bytes.is_multiple_of(4096) {
            return refuse(format!("segment_bytes = {} is not a multiple of 4096", self.segment_bytes));
        }
        if self.prepare_piece_bytes == 0 {
            return refuse("prepare_piece_bytes = 0".to_owned());
        }
        if largest > self.segment_bytes {
            return refuse(format!("an entry of {largest} bytes does not fit into {}", self.segment_bytes));
        }
        if u32::try_from(self.segment_bytes).is_err() {
            return refuse(format!("segment_bytes = {} is more than 4 GiB", self.segment_bytes));
        }
        Ok(())
    }
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            segment_bytes: 1 << 30,
            prepare_piece_bytes: 16 << 20,
            tail_bytes: 64 << 20,
            max_entry_bytes: 8 << 20,
            idle_mark_ms: 20,
            flush_interval_ms: None,
        }
    }
}

/// An entry to append.
#[derive(Clone, Debug)]
pub struct AppendEntry {
    /// Its place: the index after the last one.
    pub id: LogId,
    /// Not [`Kind::Padding`].
    pub kind: Kind,
    /// What it says.
    pub body: Bytes,
    /// CRC32C of `body`.
    pub body_crc: u32,
    /// The leader's chain at this frame, if it came from one; compared with ours.
    pub carried_chain: Option<u64>,
}

/// The end of the log as submitted (readable, perhaps not yet durable).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    /// Last entry, or the last purged one if the log is empty.
    pub last: Option<LogId>,
    /// Where the next frame goes.
    pub end: Cursor,
}

/// What is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Last durable entry.
    pub index: Option<u64>,
    /// End of the last durable frame.
    pub physical_end: PhysicalOffset,
    /// A write or sync failed: nothing more will become durable.
    pub poisoned: bool,
}

/// Why a log did not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Both copies of the hard state are gone: the vote is unknown, so this node may never start again under its id.
    /// Replace it (`replaceNode`).
    #[error(
        "the hard state is lost ({reason}): this node may never start again under its id; replace it (replaceNode)"
    )]
    HardStateLost {
        /// What was found.
        reason: String,
    },
    /// A frame that was durable is damaged or gone. Nothing was cut; fetch it from the peers.
    #[error(
        "the log is corrupt at physical offset {physical_offset}: {reason}; nothing was changed; repair from peers"
    )]
    Corrupt {
        /// Where.
        physical_offset: PhysicalOffset,
        /// What is wrong.
        reason: String,
    },
    /// The options do not fit the directory or each other.
    #[error("log options: {0}")]
    Options(String),
    /// The disk failed; trying again is allowed.
    #[error("opening the log: {0}")]
    Io(#[from] io::Error),
}

/// Why entries were not appended. Nothing of the call was.
#[derive(Debug, Error)]
pub enum AppendError {
    /// The leader's chain differs from ours: the logs have diverged. Stop this replica and repair it.
    #[error("the log has diverged at {id}: chain {ours:#018x}, the leader's {carried:#018x}")]
    Diverged {
        /// First entry that differs.
        id: LogId,
        /// What we computed.
        ours: u64,
        /// What was carried.
        carried: u64,
    },
    /// Longer than `max_entry_bytes`.
    #[error("entry {id} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Which.
        id: LogId,
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: u32,
    },
    /// Not the index after the last, or a term that goes back.
    #[error("entry {id} does not follow {last:?}")]
    NotNext {
        /// Which.
        id: LogId,
        /// The last entry.
        last: Option<LogId>,
    },
    /// An earlier write or sync failed, or the log was closed: this replica must stop.
    #[error("the log is stopped: {0}")]
    Stopped(String),
}

impl From<AppendError> for io::Error {
    fn from(error: AppendError) -> io::Error {
        io::Error::other(error)
    }
}

/// Runs once an append is done (see [`LogOptions::flush_interval_ms`]), or has failed.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What the writer has done since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Groups written and synced.
    pub groups: u64,
    /// Frames in them.
    pub frames: u64,
    /// Bytes of these frames.
    pub bytes: u64,
    /// Time spent syncing them.
    pub sync_total: Duration,
    /// The longest of these syncs.
    pub sync_longest: Duration,
    /// Counts of these syncs by duration: slot k counts those of less than 2^k microseconds that were not less than half
    /// of that.
    pub syncs_by_power_of_two_us: [u64; 32],
    /// Bytes of bodies that wait for the writer now. [`Log::append`] never waits: admission is upstream.
    pub queued_bytes: u64,
}

impl Stats {
    fn note_group(&mut self, frames: u64, bytes: u64) {
        self.groups += 1;
        self.frames += frames;
        self.bytes += bytes;
    }

    fn note_sync(&mut self, sync: Duration) {
        self.sync_total += sync;
        self.sync_longest = self.sync_longest.max(sync);
        let bits = 128 - sync.as_micros().leading_zeros() as usize;
        self.syncs_by_power_of_two_us[bits.min(31)] += 1;
    }
}

/// A handle on the log. Cheap to clone; when the last one is dropped without [`Log::close`], the writer finishes what
/// is queued and ends.
#[derive(Clone)]
pub struct Log(Arc<Handle>);

struct Handle {
    env: Env,
    shared: Arc<Shared>,
    running: Mutex<Vec<Running<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if state.stopped.is_none() {
            let (reply, _nobody_waits) = oneshot::channel();
            self.shared.submit(&mut state, [Command::Close(reply)]);
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("tip", &self.tip()).field("synced", &*self.shared().synced.borrow()).finish()
    }
}

impl Log {
    /// Recovers the log under `dir` (`commitlog/`, `hard-state/`), then starts writer and preparer on `env.executor`.
    ///
    /// `floor` is the highest log id known durable elsewhere (sled or an image): a tail recovered below it is
    /// corruption, not a torn tail.
    pub async fn open(env: Env, dir: PathBuf, options: LogOptions, floor: Option<LogId>) -> Result<Log, OpenError> {
        Log::open_made(env, dir, options, floor, false).await
    }

    /// The same where somebody knows that the log was `made` before: then it is not made anew if nothing of it is left.
    pub async fn open_made(
        env: Env,
        dir: PathBuf,
        options: LogOptions,
        floor: Option<LogId>,
        made: bool,
    ) -> Result<Log, OpenError> {
        options.check()?;
        if cfg!(feature = "unsafe-no-sync") {
            tracing::error!("UNSAFE: built to acknowledge without syncing (feature unsafe-no-sync); for tests only");
        }
        let recovered = recovery::recover(&env, &dir, &options, floor, made).await?;
        let commitlog = dir.join("commitlog");
        let hard = *recovered.hard.state();
        let end = recovered.end.physical_offset;
        let shared = Arc::new(Shared {
            layout: Layout { segment_bytes: options.segment_bytes },
            state: Mutex::new(State {
                purged: hard.purged,
                last: recovered.last,
                submitted: recovered.end,
                written: end,
                synced: end,
                synced_last: recovered.last,
                vote: hard.vote,
                tail: Tail::default(),
                points: recovered.points,
                segments: Arc::new(recovered.segments),
                queue: Default::default(),
                queued_bytes: 0,
                cutting: false,
                stopped: None,
            }),
            queued: Notify::new(),
            preparation: Preparation::new(end, &options),
            synced: watch::Sender::new(Synced {
                index: recovered.last.map(|last| last.index),
                physical_end: end,
                poisoned: false,
            }),
            corruption: watch::Sender::new(None),
            failure: watch::Sender::new(None),
            stats: Mutex::default(),
            applied: AtomicU64::new(0),
            recent: Mutex::default(),
            cut: RwLock::new(()),
            options,
        });
        let preparer = prepare::run(env.clone(), Arc::clone(&shared), commitlog.clone());
        let preparer = env.executor.run("log-prepare", preparer);
        if let Err(error) = shared.preparation.reach(PhysicalOffset(end.0 + 1)).await {
            // Nobody will write: let the preparer end.
            shared.refuse_queued();
            shared.preparation.wanted.notify_one();
            return Err(error.into());
        }
        let writer =
            Writer::new(env.clone(), Arc::clone(&shared), commitlog, recovered.hard, recovered.slots, recovered.marked);
        let writer = env.executor.run("log-writer", writer.run());
        Ok(Log(Arc::new(Handle { env, shared, running: Mutex::new(vec![writer, preparer]) })))
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// Returns as soon as the entries are readable by everyone; `done` runs after `fdatasync`, in order of the calls,
    /// exactly once, also if this fails (then at once, with an error). All entries are appended or none.
    pub fn append(&self, entries: Vec<AppendEntry>, done: Done) -> Result<Vec<PhysicalOffset>, AppendError> {
        let appended = self.append_quietly(entries, done);
        self.wake_writer();
        appended
    }

    /// As [`Log::append`], but the writer may not hear of it before [`Log::wake_writer`]: for who has more urgent things to
    /// do than to let another thread have its core, such as to send the entries to others.
    pub fn append_quietly(&self, entries: Vec<AppendEntry>, done: Done) -> Result<Vec<PhysicalOffset>, AppendError> {
        let mut state = self.shared().state.lock();
        match self.place(&state, &entries) {
            Ok(places) => {
                let offsets = places.iter().map(|place| place.header.physical_offset).collect();
                self.push(&mut state, entries, places, done);
                Ok(offsets)
            }
            Err(error) => {
                drop(state);
                done(Err(io::Error::other(error.to_string())));
                Err(error)
            }
        }
    }

    /// Lets the writer begin, if it waits.
    pub fn wake_writer(&self) {
        self.shared().queued.notify_one();
    }

    /// Where the entries go, if all of them may.
    fn place(&self, state: &State, entries: &[AppendEntry]) -> Result<Vec<Composed>, AppendError> {
        if let Some(reason) = &state.stopped {
            return Err(AppendError::Stopped(reason.clone()));
        }
        assert!(!state.cutting, "entries are appended while the log is cut");
        let (mut last, mut at) = (state.last, state.submitted);
        let mut places = Vec::with_capacity(entries.len());
        for entry in entries {
            let id = entry.id;
            if !follows(id, last) {
                return Err(AppendError::NotNext { id, last });
            }
            let (bytes, limit) = (entry.body.len(), self.shared().options.max_entry_bytes);
            if bytes > limit as usize {
                return Err(AppendError::TooLarge { id, bytes, limit });
            }
            debug_assert_eq!(entry.body_crc, crc32c::crc32c(&entry.body), "the checksum of entry {id} is wrong");
            let place = compose(at, self.shared().layout, entry.kind, id, bytes as u32, entry.body_crc);
            let ours = place.header.chain;
            if let Some(carried) = entry.carried_chain.filter(|carried| *carried != ours) {
                return Err(AppendError::Diverged { id, ours, carried });
            }
            (last, at) = (Some(id), place.header.cursor());
            places.push(place);
        }
        Ok(places)
    }

    fn push(&self, state: &mut State, entries: Vec<AppendEntry>, places: Vec<Composed>, done: Done) {
        let mut commands = Vec::with_capacity(entries.len() + 1);
        for (entry, Composed { padding, header }) in entries.into_iter().zip(places) {
            let before = padding.map_or(state.submitted, |padding| padding.cursor());
            let frame = Frame {
                id: entry.id,
                kind: entry.kind,
                physical_offset: header.physical_offset,
                body: entry.body,
                body_crc: entry.body_crc,
                chain: header.chain,
            };
            state.points.note(&header, before.chain);
            state.tail.push(frame.clone());
            (state.last, state.submitted) = (Some(entry.id), header.cursor());
            commands.push(Command::Frame { padding, frame });
        }
        commands.push(Command::Done(done));
        state.tail.shrink(self.shared().options.tail_bytes, state.written);
        self.shared().enqueue(state, commands);
    }

    /// Asks the writer and waits for its answer. It is done also if nobody waits for the end.
    async fn command(&self, command: impl FnOnce(Reply) -> Command) -> io::Result<()> {
        self.command_after(|_| (), command).await
    }

    /// Nobody may append until the writer has cut the log.
    async fn cut(&self, command: impl FnOnce(Reply) -> Command) -> io::Result<()> {
        let begin = |state: &mut State| {
            assert!(!state.cutting, "the log is cut twice at a time");
            state.cutting = true;
        };
        self.command_after(begin, command).await
    }

    async fn command_after(
        &self,
        prepare: impl FnOnce(&mut State),
        command: impl FnOnce(Reply) -> Command,
    ) -> io::Result<()> {
        let (reply, answer) = oneshot::channel();
        {
            let mut state = self.shared().state.lock();
            if let Some(reason) = &state.stopped {
                return Err(io::Error::other(reason.clone()));
            }
            prepare(&mut state);
            self.shared().submit(&mut state, [command(reply)]);
        }
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the log's writer has ended")))
    }

    /// Durable when it returns; ordered with appends.
    pub async fn save_vote(&self, vote: Vote) -> io::Result<()> {
        self.command(|reply| Command::Vote(vote, reply)).await
    }

    /// The last saved vote.
    pub fn vote(&self) -> Option<Vote> {
        self.shared().state.lock().vote
    }

    /// Drops every entry after `last_kept` (all for `None`); they never come back once this has returned. Nobody may
    /// append meanwhile. Panics if that would drop an applied or a purged entry.
    pub async fn truncate_after(&self, last_kept: Option<u64>) -> io::Result<()> {
        let end_index = last_kept.map_or(0, |index| index + 1);
        let last = {
            let state = self.shared().state.lock();
            if end_index >= state.end_index() {
                return Ok(());
            }
            let applied = self.shared().applied_end();
            assert!(end_index >= applied, "the log is cut at {end_index} below {applied}, which is applied");
            let begin = state.begin_index();
            assert!(end_index >= begin, "the log is cut at {end_index} below {begin}, where it begins");
            last_kept.map(|index| state.id_at(index).expect("an index within the log has an id"))
        };
        let end = self.chain_before(end_index).await?;
        self.cut(|reply| Command::Truncate { last, end, reply }).await
    }

    /// Drops everything up to `upto`, an entry of this log; segments wholly below are unlinked. Durable when it returns.
    pub async fn purge(&self, upto: LogId) -> io::Result<()> {
        {
            let state = self.shared().state.lock();
            if state.purged.is_some_and(|purged| purged.id.index >= upto.index) {
                return Ok(());
            }
            let here = state.id_at(upto.index);
            if here != Some(upto) {
                let reason = format!("entry {upto} cannot be purged: the log has {here:?} there");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
            }
        }
        let end = self.chain_before(upto.index + 1).await?;
        self.command(|reply| Command::Purge(Boundary { id: upto, end }, reply)).await
    }

    /// After an image was installed: the log begins anew behind `boundary`. If the log holds that very entry this is
    /// [`Log::purge`]; else all frames are dropped. Nobody may append meanwhile.
    pub async fn restart_at(&self, boundary: Boundary) -> io::Result<()> {
        let index = boundary.id.index;
        let held = {
            let state = self.shared().state.lock();
            if state.purged == Some(boundary) {
                return Ok(());
            }
            if let Some(purged) = state.purged.filter(|purged| purged.id.index >= index) {
                let reason = format!("the log begins behind {}, it cannot begin behind {}", purged.id, boundary.id);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
            }
            state.id_at(index) == Some(boundary.id)
        };
        if held && self.chain_before(index + 1).await? == boundary.end {
            return self.purge(boundary.id).await;
        }
        self.cut(|reply| Command::Restart(boundary, reply)).await
    }

    /// Last entry; the last purged one if the log is empty.
    pub fn last(&self) -> Option<LogId> {
        self.shared().state.lock().last
    }

    /// Last purged entry.
    pub fn last_purged(&self) -> Option<LogId> {
        self.purged_boundary().map(|purged| purged.id)
    }

    /// Last purged entry with the place behind it.
    pub fn purged_boundary(&self) -> Option<Boundary> {
        self.shared().state.lock().purged
    }

    /// A prefix of the existing part of `range`: at least one frame if the first index is there, then up to `max_bytes`
    /// of bodies. From memory, else from the disk, verified, away from the caller's runtime.
    pub async fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Frame>> {
        let range = {
            let state = self.shared().state.lock();
            let range = range.start.max(state.begin_index())..range.end.min(state.end_index());
            if range.is_empty() {
                return Ok(Vec::new());
            }
            let mut frames: Vec<Frame> = Vec::new();
            let mut bytes = 0;
            for frame in state.tail.from(range.start).take_while(|frame| frame.id.index < range.end) {
                bytes += frame.body.len();
                if !frames.is_empty() && bytes > max_bytes {
                    break;
                }
                frames.push(frame.clone());
            }
            if !frames.is_empty() {
                return Ok(frames);
            }
            range
        };
        let shared = Arc::clone(&self.0.shared);
        let from = range.start;
        let read = move || noted(&shared, read::frames(&shared, range, max_bytes), |state| from < state.begin_index());
        self.0.env.executor.blocking(read).await
    }

    /// [`LogOptions::flush_interval_ms`].
    pub fn flush_interval(&self) -> Option<Duration> {
        self.shared().options.flush_interval_ms.map(Duration::from_millis)
    }

    /// Where ends what is written, durable or not.
    pub fn written_end(&self) -> PhysicalOffset {
        self.shared().state.lock().written
    }

    /// The id at `index` (also of the last purged entry); no disk is touched.
    pub fn id_at(&self, index: u64) -> Option<LogId> {
        self.shared().state.lock().id_at(index)
    }

    /// The first id of `range`, and the first of each further term in it; no disk is touched.
    pub fn first_of_terms(&self, range: Range<u64>) -> Vec<LogId> {
        let state = self.shared().state.lock();
        let range = range.start.max(state.begin_index())..range.end.min(state.end_index());
        state.points.first_of_terms(range)
    }

    /// The place just behind entry `index - 1`, before any padding: what the chain of entry `index` continues.
    pub async fn chain_before(&self, index: u64) -> io::Result<Cursor> {
        {
            let state = self.shared().state.lock();
            if index == state.begin_index() {
                return Ok(state.begin());
            }
            if !(state.begin_index()..=state.end_index()).contains(&index) {
                let reason = format!("no entry before {index}");
                return Err(io::Error::new(io::ErrorKind::NotFound, reason));
            }
            if index == state.end_index() {
                return Ok(state.submitted);
            }
            if let Some(frame) = state.tail.get(index - 1) {
                return Ok(frame.end());
            }
        }
        let shared = Arc::clone(&self.0.shared);
        let read = move || noted(&shared, read::end_of(&shared, index - 1), |state| index < state.begin_index());
        self.0.env.executor.blocking(read).await
    }

    /// Bytes of the log inside one frame's body, verified. Of applied entries only. Blocks on the disk unless
    /// [`Log::in_memory`]: then call it through `env.executor.blocking`.
    pub fn record(&self, at: PhysicalOffset, size: u32) -> io::Result<Bytes> {
        let read = read::record(self.shared(), at, size);
        noted(self.shared(), read, |state| at < state.begin().physical_offset)
    }

    /// Verifies up to about `max_bytes` of frames of full segments from `at` on, the beginning for `None`; memory is not
    /// asked. Gives where to go on, `None` at the end. What it finds, [`Log::corruption`] tells.
    pub(crate) async fn scrub(
        &self,
        at: Option<points::Point>,
        max_bytes: u64,
    ) -> io::Result<(Option<points::Point>, u64)> {
        let read = aside(&self.0.env, read::scrub(Arc::clone(&self.0.shared), at, max_bytes)).await;
        noted(self.shared(), read, |_| false)
    }

    /// Whether [`Log::record`] at this place touches no disk.
    pub fn in_memory(&self, at: PhysicalOffset) -> bool {
        // A place that is refused is refused without the disk as well.
        !matches!(read::record_in_memory(self.shared(), at, 0), Ok(None))
    }

    /// The end of the log.
    pub fn tip(&self) -> Tip {
        let state = self.shared().state.lock();
        Tip { last: state.last, end: state.submitted }
    }

    /// Watches what is durable.
    pub fn synced(&self) -> watch::Receiver<Synced> {
        self.shared().synced.subscribe()
    }

    /// Resolves when entry `index` is durable; an error if the log was poisoned first.
    pub async fn wait_synced(&self, index: u64) -> io::Result<()> {
        let mut synced = self.synced();
        let reached = synced.wait_for(|synced| synced.poisoned || synced.index >= Some(index)).await;
        let is_durable = reached.is_ok_and(|synced| synced.index >= Some(index));
        if is_durable { Ok(()) } else { Err(io::Error::other("the log is poisoned")) }
    }

    /// Watches what a reader found wrong in frames that were written: `Some` once that is so, and the replica must stop.
    pub fn corruption(&self) -> watch::Receiver<Option<String>> {
        self.shared().corruption.subscribe()
    }

    /// Watches whether a write or sync has failed, also one that nobody waits for: `Some` once that is so, and the replica
    /// must stop. A log that was killed or closed has not failed.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared().failure.subscribe()
    }

    /// Entries up to `index` are applied: they are never cut. Asserted.
    pub fn set_applied(&self, index: u64) {
        self.shared().applied.fetch_max(index + 1, Ordering::AcqRel);
    }

    /// Drops what is only there to be fast: the memory tail as far as it is written, maps, caches.
    pub fn release_idle_memory(&self) {
        let segments = {
            let mut state = self.shared().state.lock();
            let written = state.written;
            state.tail.shrink(0, written);
            state.tail.release();
            Arc::clone(&state.segments)
        };
        self.shared().recent.lock().clear();
        segments.values().for_each(|segment| segment.file.release_map());
    }

    /// Whether a write or sync has failed. Nothing is durable any more from here on; stop the replica.
    pub fn is_poisoned(&self) -> bool {
        self.shared().synced.borrow().poisoned
    }

    /// What the writer has done.
    pub fn stats(&self) -> Stats {
        let queued_bytes = self.shared().state.lock().queued_bytes;
        Stats { queued_bytes, ..self.shared().stats.lock().clone() }
    }

    /// Ends as a killed process would, writing nothing more: queued appends fail. Resolves when nothing of it runs.
    pub async fn kill(&self) {
        self.shared().poison("the log was killed");
        let running = std::mem::take(&mut *self.0.running.lock());
        for future in running {
            future.ended().await;
        }
    }

    /// Writes and syncs what is queued and the mark, then stops. Later calls fail; reading goes on. An error if the log
    /// was poisoned.
    pub async fn close(&self) -> io::Result<()> {
        let closed = self.command(Command::Close).await;
        let running = std::mem::take(&mut *self.0.running.lock());
        for future in running {
            future.ended().await;
        }
        if self.is_poisoned() { closed } else { Ok(()) }
    }
}

/// What reading gave. If it found corruption, everybody hears of it: unless what was read is `purged` by now, for then it
/// was only gone.
fn noted<R>(shared: &Shared, read: io::Result<R>, purged: impl FnOnce(&State) -> bool) -> io::Result<R> {
    let Err(error) = read else { return read };
    if error.kind() != io::ErrorKind::InvalidData {
        return Err(error);
    }
    if purged(&shared.state.lock()) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "purged while it was read"));
    }
    shared.corruption.send_if_modified(|found| {
        let first = found.is_none();
        found.get_or_insert_with(|| error.to_string());
        first
    });
    Err(error)
}

//! What the handles, the writer and the preparer share: the log's extent, its newest frames, and the writer's queue.
//!
//! One lock, held for moments and never over IO. The watermarks move only here, and are asserted where they move:
//! `synced <= written <= submitted`, and nothing applied is ever cut.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot, watch};

use super::frame::{Boundary, Cursor, Frame, Header};
use super::hard_state::Vote;
use super::points::Points;
use super::prepare::Preparation;
use super::read::Recent;
use super::segment::{Layout, Segment};
use super::tail::Tail;
use super::{Done, LogOptions, Stats, Synced};
use crate::position::{LogId, PhysicalOffset};

/// Answer to a command that somebody waits for.
pub type Reply = oneshot::Sender<io::Result<()>>;

/// What the writer is asked to do, in this order.
pub enum Command {
    /// Write a frame, after its padding if it has one.
    Frame { padding: Option<Header>, frame: Frame },
    /// Run this once everything before it is durable.
    Done(Done),
    /// Save the vote.
    Vote(Vote, Reply),
    /// Cut everything behind this place.
    Truncate { last: Option<LogId>, end: Cursor, reply: Reply },
    /// Forget everything up to here.
    Purge(Boundary, Reply),
    /// Drop everything and begin behind this place.
    Restart(Boundary, Reply),
    /// Write the mark and end.
    Close(Reply),
}

impl Command {
    /// Bytes it occupies in the queue, for admission upstream.
    fn queued_bytes(&self) -> u64 {
        match self {
            Command::Frame { frame, .. } => frame.body.len() as u64,
            _ => 0,
        }
    }

    /// Tells whoever waits that it did not happen.
    pub fn fail(self, reason: &str) {
        let error = || io::Error::other(reason.to_owned());
        match self {
            Command::Frame { .. } => {}
            Command::Done(done) => done(Err(error())),
            Command::Vote(_, reply)
            | Command::Truncate { reply, .. }
            | Command::Purge(_, reply)
            | Command::Restart(_, reply)
            | Command::Close(reply) => {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(Err(error()));
            }
        }
    }
}

/// The log's extent and what is in memory of it.
pub struct State {
    /// The log begins behind this entry.
    pub purged: Option<Boundary>,
    /// Last submitted entry, or the last purged one.
    pub last: Option<LogId>,
    /// Where the next frame goes. `written <= submitted`.
    pub submitted: Cursor,
    /// Readers of files stay below. `synced <= written`.
    pub written: PhysicalOffset,
    /// Durable; asserted to grow except when the log is cut.
    pub synced: PhysicalOffset,
    /// Last durable entry.
    pub synced_last: Option<LogId>,
    /// Last saved vote.
    pub vote: Option<Vote>,
    /// Newest frames.
    pub tail: Tail,
    /// Sparse index.
    pub points: Points,
    /// Open segment files; copied on change, so that readers take them along.
    pub segments: Arc<BTreeMap<PhysicalOffset, Segment>>,
    /// What the writer has not taken yet.
    pub queue: VecDeque<Command>,
    /// Bytes of bodies in `queue`.
    pub queued_bytes: u64,
    /// A truncation or restart is under way: nobody may append.
    pub cutting: bool,
    /// The log takes no more commands, and why.
    pub stopped: Option<String>,
}

impl State {
    /// Moves `written`.
    pub fn set_written(&mut self, end: PhysicalOffset) {
        assert!(self.written <= end, "written goes back: {} > {end}", self.written);
        assert!(end <= self.submitted.physical_offset, "written {end} > submitted {}", self.submitted.physical_offset);
        self.written = end;
    }

    /// Moves `synced`.
    pub fn set_synced(&mut self, last: Option<LogId>, end: PhysicalOffset) {
        assert!(self.synced <= end, "synced goes back: {} > {end}", self.synced);
        assert!(end <= self.written, "synced {end} > written {}", self.written);
        (self.synced_last, self.synced) = (last, end);
    }

    /// The whole log ends here, with nothing in flight.
    pub fn cut_to(&mut self, last: Option<LogId>, end: Cursor) {
        assert!(self.written == self.submitted.physical_offset, "the log is cut with frames in flight");
        (self.last, self.submitted) = (last, end);
        (self.written, self.synced, self.synced_last) = (end.physical_offset, end.physical_offset, last);
    }

    /// The first index that is here, or will be.
    pub fn begin_index(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.id.index + 1)
    }

    /// The index behind the last.
    pub fn end_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    /// The place where the log begins.
    pub fn begin(&self) -> Cursor {
        self.purged.map_or(Cursor::default(), |purged| purged.end)
    }

    /// The id at `index`, also of the last purged entry.
    pub fn id_at(&self, index: u64) -> Option<LogId> {
        if let Some(purged) = self.purged.filter(|purged| purged.id.index == index) {
            return Some(purged.id);
        }
        if !(self.begin_index()..self.end_index()).contains(&index) {
            return None;
        }
        let point = self.points.at_index(index).expect("every entry has a point before it");
        Some(LogId { term: point.id.term, index })
    }
}

/// What the handles, the writer and the preparer share.
pub struct Shared {
    pub options: LogOptions,
    pub layout: Layout,
    pub state: Mutex<State>,
    /// Wakes the writer.
    pub queued: Notify,
    pub preparation: Preparation,
    pub synced: watch::Sender<Synced>,
    /// What a reader found wrong in what was written.
    pub corruption: watch::Sender<Option<String>>,
    /// Why nothing more becomes durable, if nobody has asked for that.
    pub failure: watch::Sender<Option<String>>,
    pub stats: Mutex<Stats>,
    /// Number of applied entries (index + 1): what is below is never cut.
    pub applied: AtomicU64,
    /// What reading found lately.
    pub recent: Mutex<Recent>,
    /// Taken for reading while files are read, for writing while the log is cut in memory: once it is cut, nobody reads
    /// what the writer is about to zero.
    pub cut: RwLock<()>,
}

impl Shared {
    /// Queues commands for the writer, all or none, and wakes it.
    pub fn submit(&self, state: &mut State, commands: impl IntoIterator<Item = Command>) {
        self.enqueue(state, commands);
        self.queued.notify_one();
    }

    /// As [`Shared::submit`], but without waking the writer.
    pub fn enqueue(&self, state: &mut State, commands: impl IntoIterator<Item = Command>) {
        for command in commands {
            state.queued_bytes += command.queued_bytes();
            state.queue.push_back(command);
        }
    }

    /// Takes the next command if `wanted`.
    pub fn take_if(&self, state: &mut State, wanted: impl FnOnce(&Command) -> bool) -> Option<Command> {
        if !state.queue.front().is_some_and(wanted) {
            return None;
        }
        let command = state.queue.pop_front()?;
        state.queued_bytes -= command.queued_bytes();
        Some(command)
    }

    /// Stops the log for good because it failed: everybody hears of it, also of a log that nothing is asked of.
    pub fn fail(&self, reason: &str) {
        if self.poison(reason) {
            tracing::error!(reason, "the log is poisoned; this replica must stop");
            self.failure.send_replace(Some(reason.to_owned()));
        }
    }

    /// Stops the log for good: nothing is durable any more from here on. Everything queued fails. Whether it was this that
    /// stopped it.
    pub fn poison(&self, reason: &str) -> bool {
        self.state.lock().stopped.get_or_insert_with(|| reason.to_owned());
        let first = self.synced.send_if_modified(|synced| !std::mem::replace(&mut synced.poisoned, true));
        self.refuse_queued();
        self.queued.notify_one();
        self.preparation.wanted.notify_one();
        first
    }

    /// The log is stopped: what is still queued does not happen.
    pub fn refuse_queued(&self) {
        let (queue, reason) = {
            let mut state = self.state.lock();
            state.queued_bytes = 0;
            let reason = state.stopped.get_or_insert_with(|| "the log is closed".to_owned()).clone();
            (std::mem::take(&mut state.queue), reason)
        };
        queue.into_iter().for_each(|command| command.fail(&reason));
    }

    /// Whether writer and preparer shall end.
    pub fn is_ending(&self) -> bool {
        self.state.lock().stopped.is_some()
    }

    /// Where the next frame goes.
    pub fn submitted_end(&self) -> PhysicalOffset {
        self.state.lock().submitted.physical_offset
    }

    /// The open file of the segment that starts at `first`.
    pub fn segment(&self, first: PhysicalOffset) -> Option<Segment> {
        self.state.lock().segments.get(&first).cloned()
    }

    /// A segment file is ready.
    pub fn add_segment(&self, segment: Segment) {
        Arc::make_mut(&mut self.state.lock().segments).insert(segment.first, segment);
    }

    /// Entries below this index are never cut.
    pub fn applied_end(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }
}

//! The Raft log as openraft asks for it, over [`Log`].
//!
//! - `append` returns when the entries are readable; the callback comes after `fdatasync`, in order, from the one
//!   writer that votes also pass through.
//! - The proposer's tickets are registered by log id before an entry can be applied.
//! - A chain carried from the leader that differs from ours is divergence: the append fails, and openraft stops this
//!   replica for good.
//! - `committed` is a hint and lives in memory: it is saved before every apply, and a lost one costs a replay.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds, RangeInclusive};
use std::sync::Arc;

use futures::Stream;
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use parking_lot::Mutex;

use crate::log::{self, AppendEntry, Boundary, Frame, Log};
use crate::position::LogId;
use crate::raft::tickets::Tickets;
use crate::raft::types::{Entry, LeaderId, Placed, RaftLogId, Types, Vote, from_raft, to_raft};

/// Bodies in one replication request, unless a single one is longer.
const REQUEST_BYTES: usize = 1 << 20;

/// The log's beginning after an image was installed: set by the state machine, taken by the purge that follows.
pub type NextBeginning = Arc<Mutex<Option<Boundary>>>;

/// What openraft has said is committed, before anything of it is applied.
pub type Committed = Arc<Mutex<Option<RaftLogId>>>;

/// The Raft log.
#[derive(Clone, Debug)]
pub struct Storage {
    log: Log,
    tickets: Arc<Tickets>,
    beginning: NextBeginning,
    committed: Committed,
}

impl Storage {
    /// Over an opened log.
    pub fn new(log: Log, tickets: Arc<Tickets>, beginning: NextBeginning, committed: Committed) -> Storage {
        Storage { log, tickets, beginning, committed }
    }
}

/// Reads the Raft log. Replication has one per follower, apply has one.
#[derive(Clone, Debug)]
pub struct Reader(Log);

/// What stands on disk as an entry. A frame whose CRC held but whose content cannot be read is this replica's end.
pub fn entry_of(frame: Frame) -> io::Result<Entry> {
    let placed = Placed { physical_offset: frame.physical_offset, chain: frame.chain };
    Entry::from_frame_parts(frame.id, frame.kind, frame.body, frame.body_crc, placed)
        .map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, format!("entry {}: {bad}", frame.id)))
}

/// A range openraft gives, as indices.
fn indices(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

fn vote_of(vote: log::Vote) -> Vote {
    // A vote is always for somebody; `None` is what a log written before the first vote says.
    let leader_id = LeaderId { term: vote.term, voted_for: vote.node_id.unwrap_or_default() };
    Vote { leader_id, committed: vote.committed }
}

impl RaftLogReader<Types> for Reader {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let frames = self.0.read(indices(&range), usize::MAX).await?;
        frames.into_iter().map(entry_of).collect()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.vote().map(vote_of))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let frames = self.0.read(start..end, REQUEST_BYTES).await?;
        frames.into_iter().map(entry_of).collect()
    }

    /// In pieces, so that a long replay does not hold the log in memory.
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        struct Position {
            log: Log,
            read: std::vec::IntoIter<Frame>,
            rest: Range<u64>,
        }
        let start = Position { log: self.0.clone(), read: Vec::new().into_iter(), rest: indices(&range) };
        let stream = futures::stream::try_unfold(start, |mut at| async move {
            if at.read.len() == 0 && !at.rest.is_empty() {
                at.read = at.log.read(at.rest.clone(), REQUEST_BYTES).await?.into_iter();
            }
            let Some(frame) = at.read.next() else { return Ok(None) };
            at.rest.start = frame.id.index + 1;
            Ok(Some((entry_of(frame)?, at)))
        });
        Box::pin(stream)
    }

    /// The *last* id of each term: so openraft reads them, whatever the documentation of this method says.
    async fn get_key_log_ids(&mut self, range: RangeInclusive<RaftLogId>) -> io::Result<Vec<RaftLogId>> {
        let last = *range.end();
        let firsts = self.0.first_of_terms(range.start().index..last.index + 1);
        let ends = firsts.windows(2).map(|pair| to_raft(LogId { term: pair[0].term, index: pair[1].index - 1 }));
        Ok(ends.chain([last]).collect())
    }
}

impl RaftLogStorage<Types> for Storage {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        Ok(LogState {
            last_purged_log_id: self.log.last_purged().map(to_raft),
            last_log_id: self.log.last().map(to_raft),
        })
    }

    async fn get_log_reader(&mut self) -> Reader {
        Reader(self.log.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let node_id = Some(vote.leader_id.voted_for);
        self.log.save_vote(log::Vote { term: vote.leader_id.term, node_id, committed: vote.committed }).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        *self.committed.lock() = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        Ok((*self.committed.lock()).min(self.log.last().map(to_raft)))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<AppendEntry> = entries
            .into_iter()
            .map(|entry| {
                let (id, carried_chain) = (entry.id(), entry.placed.map(|placed| placed.chain));
                let (kind, body, body_crc, ticket) = entry.into_frame_parts();
                if let Some(ticket) = ticket {
                    self.tickets.register(id, ticket);
                }
                AppendEntry { id, kind, body, body_crc, carried_chain }
            })
            .collect();
        let from_a_leader = entries.first().is_some_and(|entry| entry.carried_chain.is_some());
        let done = Box::new(move |result| callback.io_completed(result));
        if from_a_leader {
            self.log.append(entries, done)?;
            return Ok(());
        }
        // A leader's entries are sent first: the way over a follower's disk is the longer one.
        self.log.append_quietly(entries, done)?;
        let log = self.log.clone();
        drop(Types::spawn(async move {
            // Until everything else that is ready on this runtime has had its turn.
            tokio::task::yield_now().await;
            log.wake_writer();
        }));
        Ok(())
    }

    async fn truncate_after(&mut self, last_kept: Option<RaftLogId>) -> io::Result<()> {
        self.log.truncate_after(last_kept.map(|id| id.index)).await
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        let upto = from_raft(&upto);
        let beginning = self.beginning.lock().take_if(|beginning| beginning.id == upto);
        match beginning {
            // An image was installed: the log goes on behind it, whatever it held before.
            Some(boundary) => self.log.restart_at(boundary).await,
            None => self.log.purge(upto).await,
        }
    }
}

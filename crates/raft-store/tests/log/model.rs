//! What a log must hold: a model that is told what was asked and what was answered, and judges what is found.
//!
//! Between question and answer several states are right; the model keeps them all, and a log found after a crash must be
//! one of them. Nothing answered is lost, nothing is there that was not asked for, nothing cut comes back, no vote is
//! taken back.

use std::io;

use bytes::Bytes;
use raft_store::log::frame::{compose, follows};
use raft_store::log::segment::Layout;
use raft_store::log::{Boundary, Cursor, Kind, Log, Vote};
use raft_store::position::LogId;

use super::world::{bodies, body};

/// An entry as submitted; its bytes follow from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: LogId,
    pub kind: Kind,
    pub nonce: u64,
    pub bytes: usize,
    crc: u32,
}

impl Entry {
    pub fn new(id: LogId, kind: Kind, nonce: u64, bytes: usize) -> Entry {
        let crc = crc32c::crc32c(&body(id, nonce, bytes));
        Entry { id, kind, nonce, bytes, crc }
    }

    pub fn body(&self) -> Bytes {
        body(self.id, self.nonce, self.bytes)
    }
}

/// Something asked of the log, or answered by it.
#[derive(Clone, Debug)]
pub enum Event {
    Append(Vec<Entry>),
    /// Everything below this index is durable.
    Durable(u64),
    Cut(u64),
    CutDone(u64),
    Vote(Vote),
    VoteDone(Vote),
    Purge(LogId),
    PurgeDone(LogId),
    Restart(Boundary),
    RestartDone(Boundary),
    /// The log was opened and looked like this: now that is what is durable.
    Opened(Found),
}

/// An entry as a log shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    id: LogId,
    bytes: usize,
    crc: u32,
}

/// What a log shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub purged: Option<LogId>,
    pub end_index: u64,
    pub vote: Option<Vote>,
    pub entries: Vec<Seen>,
    /// Where the log ends, and its chain there.
    pub end: Cursor,
}

impl Found {
    /// Everything that can be seen of `log`, read from memory and disk.
    pub async fn in_log(log: &Log, max_bytes: usize) -> io::Result<Found> {
        let seen = |(id, body): (LogId, Bytes)| Seen { id, bytes: body.len(), crc: crc32c::crc32c(&body) };
        let entries = bodies(log, max_bytes).await?.into_iter().map(seen).collect();
        Ok(Found {
            purged: log.last_purged(),
            end_index: log.last().map_or(0, |last| last.index + 1),
            vote: log.vote(),
            entries,
            end: log.tip().end,
        })
    }
}

/// One state the log may be in.
#[derive(Clone, Debug)]
pub struct Model {
    layout: Layout,
    /// Index of the first of `entries`, and the place where it starts.
    begin: u64,
    begin_at: Cursor,
    /// Everything submitted and not cut.
    pub entries: Vec<Entry>,
    /// Everything below this index must be there.
    pub durable: u64,
    /// A cut to this index was asked for and not answered.
    cutting: Option<u64>,
    /// The last answered vote, and those asked for since.
    votes: Vec<Option<Vote>>,
    /// The last answered purge, and those asked for since.
    purges: Vec<Option<LogId>>,
    /// The log may have begun anew behind this.
    restarting: Option<Boundary>,
}

impl Model {
    pub fn new(segment_bytes: u64) -> Model {
        Model {
            layout: Layout { segment_bytes },
            begin: 0,
            begin_at: Cursor::default(),
            entries: Vec::new(),
            durable: 0,
            cutting: None,
            votes: vec![None],
            purges: vec![None],
            restarting: None,
        }
    }

    /// Where a log with these entries ends before index `end`: on every replica, whatever happened to it.
    fn end_at(&self, end: u64) -> Cursor {
        let entries = self.entries.iter().take_while(|entry| entry.id.index < end);
        entries.fold(self.begin_at, |at, entry| {
            compose(at, self.layout, entry.kind, entry.id, entry.bytes as u32, entry.crc).header.cursor()
        })
    }

    pub fn end(&self) -> u64 {
        self.begin + self.entries.len() as u64
    }

    pub fn entry(&self, index: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(index.checked_sub(self.begin)?).ok()?)
    }

    pub fn last_id(&self) -> Option<LogId> {
        self.entries.last().map(|entry| entry.id).or(self.purged())
    }

    pub fn purged(&self) -> Option<LogId> {
        *self.purges.last().expect("there is always one")
    }

    /// What of `lost` a leader may send again: all or nothing.
    pub fn continued_by<'a>(&self, lost: &'a [Entry]) -> &'a [Entry] {
        let follows = |first: &Entry| follows(first.id, self.last_id());
        if lost.first().is_some_and(follows) { lost } else { &[] }
    }

    fn truncate(&mut self, end: u64) {
        self.entries.truncate(end.saturating_sub(self.begin) as usize);
    }

    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Append(entries) => self.entries.extend(entries),
            Event::Durable(end) => self.durable = self.durable.max((*end).min(self.cutting.unwrap_or(u64::MAX))),
            Event::Cut(end) => {
                self.durable = self.durable.min(*end);
                self.cutting = Some(*end);
            }
            Event::CutDone(end) => {
                self.truncate(*end);
                self.durable = *end;
                self.cutting = None;
            }
            Event::Vote(vote) => self.votes.push(Some(*vote)),
            Event::VoteDone(vote) => {
                let at = self.votes.iter().position(|other| *other == Some(*vote)).expect("it was asked for");
                self.votes.drain(..at);
            }
            Event::Purge(upto) => self.purges.push(Some(*upto)),
            // What was durable before a purge was asked for is durable anyway: a purge waits for it.
            Event::PurgeDone(upto) => self.purges = vec![Some(*upto)],
            Event::Restart(boundary) => self.restarting = Some(*boundary),
            Event::RestartDone(boundary) => self.begin_anew(boundary),
            Event::Opened(found) => {
                if self.restarting.is_some_and(|boundary| found.purged == Some(boundary.id)) {
                    self.begin_anew(&self.restarting.expect("just seen"));
                }
                self.truncate(found.end_index);
                self.durable = found.end_index;
                self.votes = vec![found.vote];
                self.purges = vec![found.purged];
                (self.cutting, self.restarting) = (None, None);
            }
        }
    }

    fn begin_anew(&mut self, boundary: &Boundary) {
        (self.begin, self.begin_at) = (boundary.id.index + 1, boundary.end);
        self.entries.clear();
        self.durable = self.begin;
        self.purges = vec![Some(boundary.id)];
        self.restarting = None;
    }

    /// Whether a log may look like this now.
    pub fn judge(&self, found: &Found) -> Result<(), String> {
        if let Some(boundary) = self.restarting {
            let mut anew = self.clone();
            anew.begin_anew(&boundary);
            if anew.judge(found).is_ok() {
                return Ok(());
            }
        }
        if !self.votes.contains(&found.vote) {
            return Err(format!("the vote is {:?}, not one of {:?}", found.vote, self.votes));
        }
        if !self.purges.contains(&found.purged) {
            return Err(format!("purged up to {:?}, not one of {:?}", found.purged, self.purges));
        }
        if found.end_index < self.durable {
            return Err(format!("LOST: the log ends at {}, but {} was acknowledged", found.end_index, self.durable));
        }
        if found.end_index > self.end() {
            return Err(format!("the log ends at {}, but only {} was submitted", found.end_index, self.end()));
        }
        let mut index = found.purged.map_or(0, |purged| purged.index + 1);
        for seen in &found.entries {
            let entry = self.entry(index).ok_or_else(|| format!("no entry {index} was submitted"))?;
            if (entry.id, entry.bytes, entry.crc) != (seen.id, seen.bytes, seen.crc) {
                return Err(format!("entry {index} is {seen:?}, not {entry:?}"));
            }
            index += 1;
        }
        if index != found.end_index {
            return Err(format!("the entries end at {index}, the log at {}", found.end_index));
        }
        let end = self.end_at(index);
        if found.end != end {
            return Err(format!("the log ends at {:?}, on another replica it would end at {end:?}", found.end));
        }
        Ok(())
    }
}

//! Frames for a replica whose log is damaged: asked for before its Raft runs, given by members whose Raft does.
//!
//! Only what is committed is given. The asker says which entry comes before and where its frame ends, with the chain: a
//! member whose log is another one up to there says so, and gives nothing. What comes is checked as an append is.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use env::Env;

use crate::log::segment::Layout;
use crate::log::{Cursor, Log, frame};
use crate::position::LogId;
use crate::raft::peer::chain;
use crate::raft::peer::connection::{self, HELLO_LIMIT, MessageReader, MessageWriter};
use crate::raft::peer::wire::{Append, Channel, FramesQuery, Hello, Message, NoFrames};
use crate::raft::storage::entry_of;
use crate::raft::types::{Vote, from_raft, to_raft};

/// Bodies in one answer, unless a single one is longer.
const ANSWER_BYTES: usize = 1 << 20;

/// An answer that takes longer is given up: it may have to come from a slow disk.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Peers that had nothing to give are asked again after this.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// Who answers has purged what is asked for, and the others have not answered for so long: one that starts anew is back
/// sooner, and one that has left the group meanwhile never is. Nothing is lost by giving up: each start asks again.
const PURGED_PATIENCE: Duration = Duration::from_secs(10);

/// What a member whose log is `log` answers.
pub async fn answer(
    log: &Log,
    layout: Layout,
    committed: Option<LogId>,
    vote: Vote,
    query: FramesQuery,
) -> io::Result<Message> {
    let index = query.behind.as_ref().map_or(0, |behind| from_raft(behind).index + 1);
    let committed = committed.filter(|committed| Some(*committed) <= log.last());
    let nothing = |why| Ok(Message::NoFrames { committed: committed.map(to_raft), why });
    if log.last_purged().is_some_and(|purged| index <= purged.index) {
        return nothing(NoFrames::Purged);
    }
    let Some(end) = committed.map(|committed| committed.index + 1).filter(|end| *end > index) else {
        return nothing(NoFrames::NotYet);
    };
    let before = log.chain_before(index).await?;
    let frames = log.read(index..end, ANSWER_BYTES).await?;
    let Some(first) = frames.first() else { return nothing(NoFrames::Purged) };
    // The asker may hold the padding before the first one, or not.
    let composed = frame::compose(before, layout, first.kind, first.id, first.body.len() as u32, first.body_crc);
    let behind_padding = composed.padding.map(|padding| padding.cursor());
    if query.start != before && Some(query.start) != behind_padding {
        return nothing(NoFrames::Diverged);
    }
    let entries = frames.into_iter().map(entry_of).collect::<io::Result<_>>()?;
    Ok(Message::Frames(Append {
        vote,
        previous: query.behind,
        committed: committed.map(to_raft),
        start: query.start,
        entries,
    }))
}

/// Why no peer will ever give what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// What they have committed there does not follow what this replica holds before it.
    Diverged,
    /// They have purged it, all of those who answer, and the others have not answered for a while.
    Purged,
}

/// The other members, as a replica knows them whose log is damaged.
pub struct Peers {
    env: Env,
    hello: Hello,
    layout: Layout,
    entry_bytes_max: u32,
    addresses: Vec<String>,
    /// Whoever gave something last, and is asked first.
    connected: Option<(String, MessageReader, MessageWriter)>,
    complaints: BTreeMap<String, String>,
}

enum Asked {
    Given(Append),
    Nothing { committed: Option<LogId>, why: NoFrames },
}

impl Peers {
    /// `hello` says who asks.
    pub fn new(env: &Env, hello: Hello, layout: Layout, entry_bytes_max: u32, addresses: Vec<String>) -> Peers {
        let hello = Hello { expects: 0, channel: Channel::Frames, forward_key: None, ..hello };
        let env = env.clone();
        Peers { env, hello, layout, entry_bytes_max, addresses, connected: None, complaints: BTreeMap::new() }
    }

    /// Whether there is anybody to ask.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Committed frames behind entry `behind`, whose frame ends at `start`: at least one. Waits until a peer gives some.
    pub async fn frames(&mut self, behind: Option<LogId>, start: Cursor) -> Result<Append, Refused> {
        let query = FramesQuery { behind: behind.map(to_raft), start };
        let mut purged_since = None;
        loop {
            let (mut purged, mut others) = (0, 0);
            let mut addresses = self.addresses.clone();
            // The one that answered last comes first.
            let last = self.connected.as_ref().map(|(address, ..)| address.clone());
            addresses.sort_by_key(|address| Some(address) != last.as_ref());
            for address in addresses {
                match self.ask(&address, &query).await {
                    Ok(Asked::Given(append)) => {
                        self.complaints.clear();
                        return Ok(append);
                    }
                    Ok(Asked::Nothing { why: NoFrames::Diverged, .. }) => return Err(Refused::Diverged),
                    Ok(Asked::Nothing { why: NoFrames::Purged, .. }) => purged += 1,
                    Ok(Asked::Nothing { committed, why: NoFrames::NotYet }) => {
                        others += 1;
                        let committed = committed.map_or("nothing it knows of".to_owned(), |id| id.to_string());
                        self.complain(&address, format!("it has committed {committed} only"));
                    }
                    Err(error) => {
                        self.connected = None;
                        others += 1;
                        self.complain(&address, error.to_string());
                    }
                }
            }
            if purged == 0 {
                purged_since = None;
            } else {
                let now = self.env.clock.monotonic();
                let since = *purged_since.get_or_insert(now);
                if others == 0 || now - since >= PURGED_PATIENCE {
                    return Err(Refused::Purged);
                }
            }
            self.env.clock.sleep(ASK_INTERVAL).await;
        }
    }

    fn complain(&mut self, address: &str, reason: String) {
        if self.complaints.get(address) != Some(&reason) {
            tracing::warn!("repair waits, and this replica does not serve: nothing from {address}: {reason}");
            self.complaints.insert(address.to_owned(), reason);
        }
    }

    async fn ask(&mut self, address: &str, query: &FramesQuery) -> io::Result<Asked> {
        if self.connected.as_ref().is_none_or(|(connected, ..)| connected != address) {
            let connected = connection::connect(&self.env, address, &self.hello, HELLO_LIMIT).await;
            let (reader, writer, _) = connected.map_err(io::Error::other)?;
            self.connected = Some((address.to_owned(), reader, writer));
        }
        let (_, reader, writer) = self.connected.as_mut().expect("just connected");
        let exchange = async {
            writer.write(&Message::FramesQuery(query.clone())).await?;
            reader.next().await
        };
        let answer = self.env.clock.timeout(ANSWER_LIMIT, exchange).await;
        match answer.unwrap_or(Err(io::ErrorKind::TimedOut.into()))? {
            Some(Message::Frames(append)) => self.checked(query, append).map(Asked::Given),
            Some(Message::NoFrames { committed, why }) => {
                Ok(Asked::Nothing { committed: committed.as_ref().map(from_raft), why })
            }
            Some(Message::Refused(reason)) => Err(io::Error::other(reason)),
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// What was given is what was asked for, whole, in its place, on the asker's chain, and committed.
    fn checked(&self, query: &FramesQuery, append: Append) -> io::Result<Append> {
        let bad = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if (append.previous, append.start) != (query.behind, query.start) {
            return bad("its frames are not those that were asked for".to_owned());
        }
        if let Err(inconsistent) = chain::check(&append, self.layout, self.entry_bytes_max) {
            return bad(format!("its frames are not whole: {inconsistent}"));
        }
        let Some(last) = append.entries.last() else { return bad("it gave no frames".to_owned()) };
        if append.committed.as_ref().is_none_or(|committed| from_raft(committed).index < last.index) {
            return bad(format!("its frames up to {} are not committed", last.id()));
        }
        Ok(append)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use env::Rng;
    use env::disk::simulated::SimDisk;

    use super::*;
    use crate::log::Kind;
    use crate::log::frame::compose;
    use crate::raft::peer::wire::{FRAME_VERSION, PROTOCOL};
    use crate::raft::types::{Entry, LeaderId, Placed};

    const LAYOUT: Layout = Layout { segment_bytes: 4096 };

    fn peers() -> Peers {
        let hello = Hello {
            protocol: (*PROTOCOL.start(), *PROTOCOL.end()),
            cluster: String::new(),
            group: String::new(),
            node: 1,
            expects: 0,
            segment_bytes: LAYOUT.segment_bytes,
            frame_version: FRAME_VERSION,
            features: 0,
            cluster_version: 1,
            wall_ms: 0,
            channel: Channel::Frames,
            forward_key: None,
        };
        let env = Env::simulated(1, SimDisk::new(Rng::seeded(1)));
        Peers::new(&env, hello, LAYOUT, 1024, Vec::new())
    }

    /// Two entries behind `query`, committed.
    fn given(query: &FramesQuery) -> Append {
        let (mut at, mut entries) = (query.start, Vec::new());
        for index in 5..7 {
            let (id, body) = (LogId { term: 2, index }, Bytes::from(vec![index as u8; 100]));
            let crc = crc32c::crc32c(&body);
            let header = compose(at, LAYOUT, Kind::Entry, id, 100, crc).header;
            at = header.cursor();
            let placed = Placed { physical_offset: header.physical_offset, chain: header.chain };
            entries.push(Entry::from_frame_parts(id, Kind::Entry, body, crc, placed).unwrap());
        }
        let vote = Vote { leader_id: LeaderId { term: 2, voted_for: 1 }, committed: true };
        let committed = Some(to_raft(LogId { term: 2, index: 6 }));
        Append { vote, previous: query.behind, committed, start: query.start, entries }
    }

    /// A peer gives something else than was asked for: not one frame of it is taken.
    #[test]
    fn what_is_not_whole_not_asked_for_or_not_committed_is_not_taken() {
        let start = Cursor { physical_offset: crate::position::PhysicalOffset(640), chain: 77 };
        let query = FramesQuery { behind: Some(to_raft(LogId { term: 1, index: 4 })), start };
        let (peers, whole) = (peers(), given(&query));
        assert_eq!(peers.checked(&query, whole.clone()).unwrap(), whole);
        let elsewhere = FramesQuery { start: Cursor { chain: 78, ..start }, ..query.clone() };
        let mut reordered = whole.clone();
        reordered.entries.swap(0, 1);
        let mut moved = whole.clone();
        moved.entries[1].placed.as_mut().unwrap().chain ^= 1;
        let bad = [
            given(&elsewhere),
            Append { previous: None, ..whole.clone() },
            Append { committed: Some(to_raft(LogId { term: 2, index: 5 })), ..whole.clone() },
            Append { committed: None, ..whole.clone() },
            Append { entries: Vec::new(), ..whole.clone() },
            reordered,
            moved,
        ];
        for bad in bad {
            assert!(peers.checked(&query, bad.clone()).is_err(), "{bad:?}");
        }
    }
}

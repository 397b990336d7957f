//! Hard state: vote, last purged entry, truncation point. Two copies, `hard-state/a` and `hard-state/b`.
//!
//! Every update writes a, syncs it, writes b, syncs it, and only then answers: either alone holds the last answered
//! state. If both are bad the vote is unknown, and a node that does not know its vote could vote twice.
//!
//! ```text
//!   0 magic u32 "RMQH"    4 version u8 = 1    5 flags u8    6 zero u16
//!   8 sequence u64       16 generation u64   24 segment bytes u64
//!  32 vote: term u64, node id u64
//!  48 last purged: term u64, index u64, physical end u64, chain u64
//!  80 truncation point: term u64, index u64, physical end u64, chain u64     112 end of what it cut u64
//! 120 CRC32C u32 (of 0..120)
//! ```
//!
//! Flags: 1 there is a vote, 2 it names a node, 4 it is committed, 8 something is purged, 16 the truncation point has an
//! entry before it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use env::disk::Open;
use env::{Env, File};

use super::OpenError;
use super::frame::{Boundary, Cursor};
use crate::planted::{self, Bug};
use crate::position::{LogId, NodeId, PhysicalOffset};

/// Length of a copy.
const STATE_BYTES: usize = 124;

/// Where the checksum lies.
const CRC_AT: usize = 120;

const MAGIC: u32 = u32::from_le_bytes(*b"RMQH");
const VERSION: u8 = 1;

const HAS_VOTE: u8 = 1;
const VOTE_HAS_NODE: u8 = 2;
const VOTE_IS_COMMITTED: u8 = 4;
const HAS_PURGED: u8 = 8;
const TRUNCATION_HAS_ENTRY: u8 = 16;

/// A Raft vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Term voted in.
    pub term: u64,
    /// Candidate voted for.
    pub node_id: Option<NodeId>,
    /// Whether a quorum granted it.
    pub committed: bool,
}

/// Where the log was cut last: what counts as the mark until there is one of the current generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TruncationPoint {
    /// The last entry that was kept; `None` at the very beginning of the log.
    pub last: Option<LogId>,
    /// The place behind it.
    pub end: Cursor,
    /// Physical end of what was cut: up to here there may be something other than zeros if the cut was interrupted.
    pub cut_end: PhysicalOffset,
}

/// The hard state as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardState {
    /// Counts updates; of two copies the higher is the later.
    pub sequence: u64,
    /// Counts truncations; a mark of an older generation is void.
    pub generation: u64,
    /// The segment size that the log was made with.
    pub segment_bytes: u64,
    /// The vote.
    pub vote: Option<Vote>,
    /// Last purged entry: the log begins behind it.
    pub purged: Option<Boundary>,
    /// Where the log was cut last.
    pub truncation: TruncationPoint,
}

impl HardState {
    /// Of a new log.
    fn new(segment_bytes: u64) -> HardState {
        HardState {
            sequence: 1,
            generation: 0,
            segment_bytes,
            vote: None,
            purged: None,
            truncation: TruncationPoint::default(),
        }
    }

    /// Where the log begins, and the entry before that.
    pub fn begin(&self) -> (Option<LogId>, Cursor) {
        match self.purged {
            None => (None, Cursor::default()),
            Some(boundary) => (Some(boundary.id), boundary.end),
        }
    }

    fn encode(&self) -> [u8; STATE_BYTES] {
        let mut flags = 0;
        let mut set = |flag: u8, when: bool| flags |= if when { flag } else { 0 };
        set(HAS_VOTE, self.vote.is_some());
        set(VOTE_HAS_NODE, self.vote.is_some_and(|vote| vote.node_id.is_some()));
        set(VOTE_IS_COMMITTED, self.vote.is_some_and(|vote| vote.committed));
        set(HAS_PURGED, self.purged.is_some());
        set(TRUNCATION_HAS_ENTRY, self.truncation.last.is_some());
        let nothing = Boundary { id: LogId::default(), end: Cursor::default() };
        let purged = self.purged.unwrap_or(nothing);
        let cut = self.truncation;
        let cut_id = cut.last.unwrap_or_default();
        let numbers = [
            self.sequence,
            self.generation,
            self.segment_bytes,
            self.vote.map_or(0, |vote| vote.term),
            self.vote.and_then(|vote| vote.node_id).unwrap_or(0),
            purged.id.term,
            purged.id.index,
            purged.end.physical_offset.0,
            purged.end.chain,
            cut_id.term,
            cut_id.index,
            cut.end.physical_offset.0,
            cut.end.chain,
            cut.cut_end.0,
        ];
        let mut bytes = [0; STATE_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = VERSION;
        bytes[5] = flags;
        for (number, at) in numbers.into_iter().zip((8..).step_by(8)) {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<HardState, String> {
        let Some(Ok(bytes)) = bytes.get(..STATE_BYTES).map(<&[u8; STATE_BYTES]>::try_from) else {
            return Err(format!("{} bytes instead of {STATE_BYTES}", bytes.len()));
        };
        if bytes[0..4] != MAGIC.to_le_bytes() {
            return Err("not a hard state".to_owned());
        }
        if crc32c::crc32c(&bytes[..CRC_AT]).to_le_bytes() != bytes[CRC_AT..] {
            return Err("the checksum does not hold".to_owned());
        }
        if bytes[4] != VERSION {
            return Err(format!("format version {} is unknown", bytes[4]));
        }
        let flags = bytes[5];
        let has = |flag: u8| flags & flag != 0;
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let id = |at: usize| LogId { term: number(at), index: number(at + 8) };
        let cursor = |at: usize| Cursor { physical_offset: PhysicalOffset(number(at)), chain: number(at + 8) };
        Ok(HardState {
            sequence: number(8),
            generation: number(16),
            segment_bytes: number(24),
            vote: has(HAS_VOTE).then(|| Vote {
                term: number(32),
                node_id: has(VOTE_HAS_NODE).then(|| number(40)),
                committed: has(VOTE_IS_COMMITTED),
            }),
            purged: has(HAS_PURGED).then(|| Boundary { id: id(48), end: cursor(64) }),
            truncation: TruncationPoint {
                last: has(TRUNCATION_HAS_ENTRY).then(|| id(80)),
                end: cursor(96),
                cut_end: PhysicalOffset(number(112)),
            },
        })
    }
}

/// Which of two copies holds the last answered state.
pub(super) fn newest(a: Result<HardState, String>, b: Result<HardState, String>) -> Result<HardState, String> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok(if b.sequence > a.sequence { b } else { a }),
        (Ok(state), Err(_)) | (Err(_), Ok(state)) => Ok(state),
        (Err(a), Err(b)) => Err(format!("copy a: {a}; copy b: {b}")),
    }
}

/// The two files, and the state they hold. Owned by the writer.
#[derive(Debug)]
pub struct HardStateFiles {
    state: HardState,
    a: Arc<dyn File>,
    b: Arc<dyn File>,
}

impl HardStateFiles {
    /// Opens both copies and makes them equal, before anything else can damage the only good one.
    ///
    /// `formatted`: the log existed before, so there must be a state; otherwise a new one is written.
    pub async fn open(env: &Env, dir: &Path, segment_bytes: u64, formatted: bool) -> Result<HardStateFiles, OpenError> {
        let directory = dir.join("hard-state");
        if !formatted {
            env.disk.create_dir_all(&directory).await?;
        }
        let [a, b] = read_copies(env, dir).await?;
        let state = match newest(a.clone(), b.clone()) {
            Ok(state) => state,
            Err(_) if !formatted => HardState::new(segment_bytes),
            Err(reason) => return Err(OpenError::HardStateLost { reason }),
        };
        let files = HardStateFiles {
            state,
            a: env.disk.open(&directory.join("a"), Open::OrCreate).await?,
            b: env.disk.open(&directory.join("b"), Open::OrCreate).await?,
        };
        // The copy that differs is rewritten while the other one is good. The good one is synced as well: after a kill
        // it may be in the page cache only.
        for (file, found) in [(&files.a, &a), (&files.b, &b)] {
            if *found == Ok(state) {
                file.sync_data().await?;
            }
        }
        for (file, found) in [(&files.a, &a), (&files.b, &b)] {
            if *found != Ok(state) {
                write_copy(file, &state).await?;
            }
        }
        env.disk.sync_dir(&directory).await?;
        if !formatted {
            env.disk.sync_dir(dir).await?;
        }
        Ok(files)
    }

    /// Writes both copies as they are. What is read may be in the page cache only, and if its sync has failed the kernel
    /// calls it clean: another sync would write nothing.
    pub async fn write_anew(&self) -> io::Result<()> {
        write_copy(&self.a, &self.state).await?;
        write_copy(&self.b, &self.state).await
    }

    /// The state as last answered.
    pub fn state(&self) -> &HardState {
        &self.state
    }

    /// Changes the state; durable in both copies when this returns. After an error nothing is known: stop.
    pub async fn update(&mut self, change: impl FnOnce(&mut HardState)) -> io::Result<()> {
        let mut state = self.state;
        change(&mut state);
        state.sequence += 1;
        env::fault!("log.before_hard_state");
        let is_vote = state.vote != self.state.vote;
        if is_vote && planted::is(Bug::VoteUnsynced) {
            write_copy_unsynced(&self.a, &state).await?;
            write_copy_unsynced(&self.b, &state).await?;
            self.state = state;
            return Ok(());
        }
        write_copy(&self.a, &state).await?;
        env::fault!("log.between_hard_states");
        if !(is_vote && planted::is(Bug::VoteInOneCopy)) {
            write_copy(&self.b, &state).await?;
        }
        self.state = state;
        Ok(())
    }
}

/// What each copy says, or what is wrong with it.
pub(super) async fn read_copies(env: &Env, dir: &Path) -> io::Result<[Result<HardState, String>; 2]> {
    let directory = dir.join("hard-state");
    Ok([read_copy(env, directory.join("a")).await?, read_copy(env, directory.join("b")).await?])
}

async fn read_copy(env: &Env, path: PathBuf) -> io::Result<Result<HardState, String>> {
    match env.disk.open(&path, Open::ToRead).await {
        Ok(file) => match file.read_at(0, STATE_BYTES).await {
            Ok(bytes) => Ok(HardState::decode(&bytes)),
            // A sector that cannot be read is as bad as one that reads wrong: that is what the other copy is for.
            Err(error) => Ok(Err(error.to_string())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Err("there is no such file".to_owned())),
        Err(error) => Err(error),
    }
}

async fn write_copy(file: &Arc<dyn File>, state: &HardState) -> io::Result<()> {
    write_copy_unsynced(file, state).await?;
    file.sync_data().await
}

async fn write_copy_unsynced(file: &Arc<dyn File>, state: &HardState) -> io::Result<()> {
    file.write_at(0, &[Bytes::copy_from_slice(&state.encode())]).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn states() -> impl Strategy<Value = HardState> {
        let votes = proptest::option::of((any::<u64>(), proptest::option::of(any::<u64>()), any::<bool>()));
        let boundaries = || (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
        let option = || proptest::option::of(boundaries());
        (any::<[u64; 3]>(), votes, option(), boundaries(), any::<bool>(), any::<u64>()).prop_map(
            |([sequence, generation, segment_bytes], vote, purged, cut, cut_has_entry, cut_end)| {
                let boundary = |(term, index, end, chain)| Boundary {
                    id: LogId { term, index },
                    end: Cursor { physical_offset: PhysicalOffset(end), chain },
                };
                let cut = boundary(cut);
                HardState {
                    sequence,
                    generation,
                    segment_bytes,
                    vote: vote.map(|(term, node_id, committed)| Vote { term, node_id, committed }),
                    purged: purged.map(boundary),
                    truncation: TruncationPoint {
                        last: cut_has_entry.then_some(cut.id),
                        end: cut.end,
                        cut_end: PhysicalOffset(cut_end),
                    },
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_state_survives_the_round_trip_and_no_flipped_bit_does(state in states(), bit in 0..STATE_BYTES * 8) {
            let mut bytes = state.encode();
            prop_assert_eq!(HardState::decode(&bytes), Ok(state));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(HardState::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(HardState::decode(&bytes).is_err());
        }
    }

    #[test]
    fn either_copy_alone_holds_the_last_state() {
        let old = HardState::new(4096);
        let new = HardState { sequence: 2, generation: 1, ..old };
        let bad = || Err("bad".to_owned());
        assert_eq!(newest(Ok(new), Ok(old)), Ok(new));
        assert_eq!(newest(Ok(old), Ok(new)), Ok(new));
        assert_eq!(newest(Ok(new), bad()), Ok(new));
        assert_eq!(newest(bad(), Ok(new)), Ok(new));
        assert!(newest(bad(), bad()).is_err());
    }
}

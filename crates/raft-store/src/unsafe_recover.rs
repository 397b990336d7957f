//! Unsafe recovery: of a group that has lost a majority for good, one survivor goes on as a group of one.
//!
//! [`look`] writes nothing and says what the survivor holds; [`go_on_alone`] makes durable, in this order,
//!
//! 1. a vote for this node in a term above every one that it knows,
//! 2. the membership frame of that term: this node is the only voter, and there is nobody else,
//! 3. in IDENTITY, that the probation is over: what was forgotten is given up with everything else.
//!
//! Killed behind the first it has voted, as a candidate does that nobody answers. Behind the second it is alone, and ends
//! its probation by itself or by another run. A start then elects it, and its leadership commits whatever its log holds.
//!
//! Unsafe it is because nobody else is asked. What the others had acknowledged without this node is lost, and if a
//! majority of the others starts again with its old directories there are two groups of one name.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use env::disk::Lock;

use crate::codec;
use crate::consume_queue::{Rebuild, RebuildFrom, noted_rebuild};
use crate::entry::decode_entry;
use crate::fold::rows::{self, GroupRow, MembershipRow};
use crate::group::Peer;
use crate::identity::{self, Identity, IdentityError};
use crate::image;
use crate::keyed::{self, Row};
use crate::log::survey::{Step, Survey, survey};
use crate::log::{self, AppendEntry, Boundary, Kind, Log, LogOptions, Vote, frame};
use crate::materializer::Floors;
use crate::offline::{self, Offline, OfflineError, Progress};
use crate::position::{LogId, NodeId, PhysicalOffset, Timestamp};
use crate::raft::types::{Membership, decode_membership, encode_membership};

/// One frame is written: no more of a segment than this is prepared at a time.
const PREPARE_PIECE_BYTES: u64 = 1 << 20;

/// Why a replica does not go on alone. Unless the disk failed, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The directory cannot be looked at.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// Nobody knows whose directory it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log does not open, or nothing can be appended to it.
    #[error("{0}. {CHOOSE}")]
    Log(log::OpenError),
    /// There is no log.
    #[error("this directory holds no entry of any group: there is nothing to go on with. {CHOOSE}")]
    NeverFounded,
    /// It never had a say in the group.
    #[error("node {node:016x} is not a voter of its group (voters: {}); recover one of those", ids(.voters))]
    NotAVoter {
        /// Whose directory it is.
        node: NodeId,
        /// Who is.
        voters: Vec<NodeId>,
    },
    /// There is nothing to do.
    #[error("node {0:016x} is the only voter of its group already: start it")]
    Alone(NodeId),
    /// The log does not continue the state yet.
    #[error(
        "an image of the leader's was being installed: start the node, so that it finishes that (nobody else is needed), \
         stop it, and try again"
    )]
    Installing,
    /// Something is damaged or missing here that only another replica may have.
    #[error("{0}. {CHOOSE}")]
    NeedsPeers(String),
    /// What was begun is finished by doing it again.
    #[error("the disk failed: {0}. Run this again: that finishes what may have been begun")]
    Io(#[from] io::Error),
}

impl From<log::OpenError> for RecoverError {
    fn from(error: log::OpenError) -> RecoverError {
        match error {
            log::OpenError::Io(error) => RecoverError::Io(error),
            lasting => RecoverError::Log(lasting),
        }
    }
}

/// What an operator does next.
const CHOOSE: &str = "Nothing was changed, and nothing here can mend it. Recover another survivor; if there is none, restore \
                      a backup of this directory, or read what is whole with `raftmq store inspect` and begin a new group";

fn ids(voters: &[NodeId]) -> String {
    let ids: Vec<String> = voters.iter().map(|id| format!("{id:016x}")).collect();
    ids.join(", ")
}

/// What is still to be written for a node to be alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remaining {
    /// All of it: vote and membership get this term.
    Everything {
        /// Above every term that this node knows.
        term: u64,
    },
    /// The membership is in the log; whoever wrote it was killed before the probation had ended.
    Probation,
}

/// What a survivor holds, and what becomes of its group if it goes on alone.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// Whose directory it is.
    pub identity: Identity,
    /// Its last vote.
    pub vote: Option<Vote>,
    /// The last entry of its log. Of several survivors the one with the greatest goes on.
    pub last: LogId,
    /// Where its log ends.
    pub end: PhysicalOffset,
    /// Group time of its last entry that has one.
    pub time: Option<Timestamp>,
    /// Up to here derived files are durable. All up to here, and perhaps more, was committed.
    pub applied: Option<LogId>,
    /// Members that are no more.
    pub dropped: Vec<Peer>,
    /// What is to be written.
    pub remaining: Remaining,
}

impl Survivor {
    /// Entries of which this node does not know that they were committed. They will be.
    pub fn uncertain(&self) -> u64 {
        let known = self.applied.map_or(0, |applied| applied.index + 1);
        (self.last.index + 1).saturating_sub(known)
    }
}

/// What is to be written so that `node` is alone.
fn decide(
    node: NodeId,
    on_probation: bool,
    vote: Option<Vote>,
    last: LogId,
    voters: &BTreeSet<NodeId>,
) -> Result<Remaining, RecoverError> {
    if !voters.contains(&node) {
        return Err(RecoverError::NotAVoter { node, voters: voters.iter().copied().collect() });
    }
    match (voters.len(), on_probation) {
        (1, false) => Err(RecoverError::Alone(node)),
        (1, true) => Ok(Remaining::Probation),
        _ => Ok(Remaining::Everything { term: vote.map_or(0, |vote| vote.term).max(last.term) + 1 }),
    }
}

/// The group as of an entry.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The entry.
    at: Option<Boundary>,
    membership: Membership,
    time: Option<Timestamp>,
}

/// Reads the whole log and says what becomes of the group. Writes nothing there; `scratch` as in [`Offline::verify`].
pub async fn look(offline: &Offline, scratch: Option<&Path>, progress: Progress<'_>) -> Result<Survivor, RecoverError> {
    let (env, dir) = (&offline.env, &offline.dir);
    let Some(identity) = identity::read(env, dir).await? else {
        return Err(RecoverError::NeedsPeers("there is no IDENTITY: nobody knows whose directory this is".to_owned()));
    };
    if !identity.log_made {
        return Err(RecoverError::NeverFounded);
    }
    match noted_rebuild(env, dir).await.map_err(OfflineError::from)? {
        Some(Rebuild::Install(_)) => return Err(RecoverError::Installing),
        Some(Rebuild::Diverged(RebuildFrom::Nothing)) => {
            let what = "a majority had another state than this replica, and nothing is left here to make it anew from";
            return Err(RecoverError::NeedsPeers(what.to_owned()));
        }
        Some(Rebuild::Diverged(_) | Rebuild::Damaged) | None => {}
    }
    progress(offline::Kind::KeyedRows, 0, 0);
    let applied = applied(offline, scratch).await?;
    let floors = Floors::read(env, &dir.join("consumequeue")).await.map_err(OfflineError::from)?;
    let floor = applied.at.filter(|at| !floors.unwrap_or_default().is_installed_at(at.id));
    let hear = |done, all| progress(offline::Kind::Frames, done, all);
    let survey = survey(env, dir, floor, &hear).await?;
    let Some(last) = survey.end.last else { return Err(RecoverError::NeverFounded) };
    if let Some(what) = damage(&survey) {
        return Err(RecoverError::NeedsPeers(what));
    }
    let known = behind(&survey, applied.clone()).await.map_err(|what| match (applied.at, floor) {
        (Some(_), None) => RecoverError::Installing,
        _ => RecoverError::NeedsPeers(what),
    })?;
    let node = identity.node_id;
    let voters = known.membership.voter_ids().collect();
    let remaining = decide(node, identity.on_probation, survey.hard.vote, last, &voters)?;
    let others = known.membership.nodes().filter(|(id, _)| **id != node);
    Ok(Survivor {
        vote: survey.hard.vote,
        last,
        end: survey.end.end.physical_offset,
        time: known.time,
        applied: applied.at.map(|at| at.id),
        dropped: others.map(|(id, other)| Peer::new(*id, other)).collect(),
        remaining,
        identity,
    })
}

/// The group as of the newest derived state that is whole: keyed rows, or else an image.
async fn applied(offline: &Offline, scratch: Option<&Path>) -> Result<Known, RecoverError> {
    let (env, dir) = (&offline.env, &offline.dir);
    let mut newest = Known::default();
    if let Some(scratch) = scratch {
        match offline.read_keyed(scratch).await {
            Ok(keyed) => newest = of_rows(keyed.boundary, &keyed.rows)?,
            // Without room for the copy nobody knows how far the log must reach.
            Err(error) if keyed::is_circumstance(&error) => return Err(OfflineError::from(error).into()),
            Err(error) => tracing::warn!("the keyed rows cannot be read, and will be made anew: {error}"),
        }
    }
    let checkpoint = dir.join("checkpoint");
    let images = match image::list(env, &checkpoint).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        images => images.map_err(OfflineError::from)?,
    };
    for id in images.into_iter().rev().take_while(|id| newest.at.is_none_or(|at| id.index > at.id.index)) {
        match image::verify(env, &checkpoint.join(image::name(id))).await {
            Ok((image, head)) => {
                let membership = image.membership.map(|(_, bytes)| bytes).unwrap_or_default();
                let membership = decode_membership(membership).map_err(unreadable)?;
                newest = Known { at: Some(image.boundary), membership, time: Some(head.group.last_time) };
                break;
            }
            Err(error) => tracing::warn!("image {id} cannot be read, and is passed over: {error}"),
        }
    }
    Ok(newest)
}

fn of_rows(at: Option<Boundary>, rows: &[Row]) -> Result<Known, RecoverError> {
    let mut known = Known { at, ..Known::default() };
    for (key, value) in rows {
        match key.as_slice() {
            [rows::GROUP] => {
                known.time = Some(codec::from_bytes::<GroupRow>(value).map_err(unreadable)?.last_time);
            }
            [rows::MEMBERSHIP] => {
                let row = codec::from_bytes::<MembershipRow>(value).map_err(unreadable)?;
                known.membership = decode_membership(row.bytes.into()).map_err(unreadable)?;
            }
            _ => {}
        }
    }
    Ok(known)
}

fn unreadable(error: impl std::fmt::Display) -> RecoverError {
    RecoverError::NeedsPeers(format!("the members cannot be read: {error}"))
}

/// What is not what was written.
fn damage(survey: &Survey) -> Option<String> {
    let gap = survey.gaps.first();
    let gap =
        gap.map(|gap| format!("the log is damaged at physical offset {}: {}", gap.from.physical_offset, gap.reason));
    gap.or_else(|| survey.contradiction.clone())
}

/// What the entries behind `known` make of it; an error if the log does not continue it.
async fn behind(survey: &Survey, mut known: Known) -> Result<Known, String> {
    let from = known.at.map(|at| at.end).unwrap_or_default();
    let (_, begin) = survey.hard.begin();
    let (begin, at, end) = (begin.physical_offset, from.physical_offset, survey.end.end.physical_offset);
    if !(begin..=end).contains(&at) {
        return Err(format!("the log holds what lies from {begin} to {end}, the derived state ends at {at}"));
    }
    let mut walk = survey.files.walk(from, known.at.map(|at| at.id), end);
    while let Some(step) = walk.step().await {
        let (header, body) = match step {
            Step::Frame(header, body) => (header, body),
            Step::Gap(gap) => return Err(format!("the log does not continue the state there: {}", gap.reason)),
        };
        match header.kind {
            Kind::Membership => {
                known.membership = decode_membership(body).map_err(|bad| format!("{}: {bad}", header.id))?
            }
            Kind::Entry => {
                let entry = decode_entry(&body).map_err(|bad| format!("entry {}: {bad}", header.id))?;
                known.time = Some(entry.stamp());
            }
            Kind::Blank | Kind::Padding => {}
        }
    }
    Ok(known)
}

/// Writes what remains. Whoever is killed meanwhile does it again, from [`look`] on. Gives the last entry of the log.
pub async fn go_on_alone(offline: Offline, survivor: &Survivor) -> Result<LogId, RecoverError> {
    let _held = hold(&offline).await?;
    let last = match survivor.remaining {
        Remaining::Everything { term } => write_membership(&offline, survivor, term).await?,
        Remaining::Probation => survivor.last,
    };
    // Everything that the log holds is durable, as after a graceful stop.
    let identity = Identity { on_probation: false, clean_stop: true, ..survivor.identity.clone() };
    identity::write(&offline.env, &offline.dir, &identity).await?;
    Ok(last)
}

/// Who is going to write makes the LOCK if there is none.
async fn hold(offline: &Offline) -> Result<Option<Lock>, RecoverError> {
    if offline.lock.is_some() {
        return Ok(None);
    }
    Ok(Some(offline.env.disk.lock(&offline.dir.join(identity::LOCK)).await?))
}

async fn write_membership(offline: &Offline, survivor: &Survivor, term: u64) -> Result<LogId, RecoverError> {
    let segment_bytes = survivor.identity.segment_bytes;
    let defaults = LogOptions::default();
    let options = LogOptions {
        segment_bytes,
        prepare_piece_bytes: PREPARE_PIECE_BYTES,
        // Small segments hold no such entry.
        max_entry_bytes: u64::from(defaults.max_entry_bytes).min(segment_bytes - frame::HEADER_BYTES) as u32,
        ..defaults
    };
    // What was seen a moment ago is no torn tail.
    let floor = Some(survivor.last);
    let log = Log::open_made(offline.env.clone(), offline.dir.clone(), options, floor, true).await?;
    match append_membership(&log, survivor, term).await {
        Ok(id) => {
            log.close().await?;
            Ok(id)
        }
        Err(error) => {
            log.kill().await;
            Err(error.into())
        }
    }
}

async fn append_membership(log: &Log, survivor: &Survivor, term: u64) -> io::Result<LogId> {
    assert_eq!(log.last(), Some(survivor.last), "the log ends where it ended when it was looked at");
    let node = survivor.identity.node_id;
    // The vote first: no entry is ever of a term that was not voted in.
    log.save_vote(Vote { term, node_id: Some(node), committed: false }).await?;
    let members = BTreeMap::from([(node, survivor.identity.node.clone())]);
    let membership = Membership::new(vec![BTreeSet::from([node])], members).map_err(io::Error::other)?;
    let body = encode_membership(&membership);
    let id = LogId { term, index: survivor.last.index + 1 };
    let body_crc = crc32c::crc32c(&body);
    let entry = AppendEntry { id, kind: Kind::Membership, body, body_crc, carried_chain: None };
    // What failed is told by the wait.
    log.append(vec![entry], Box::new(|_| {}))?;
    log.wait_synced(id.index).await?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(term: u64) -> Option<Vote> {
        Some(Vote { term, node_id: Some(2), committed: true })
    }

    fn last(term: u64) -> LogId {
        LogId { term, index: 40 }
    }

    #[test]
    fn the_term_is_above_all_that_the_node_knows_and_a_run_that_was_killed_is_finished() {
        let three = BTreeSet::from([1, 2, 3]);
        let term = |vote, last| match decide(1, true, vote, last, &three) {
            Ok(Remaining::Everything { term }) => term,
            other => panic!("{other:?}"),
        };
        assert_eq!([term(vote(7), last(5)), term(vote(3), last(5)), term(None, last(5))], [8, 6, 6]);
        let alone = BTreeSet::from([1]);
        assert_eq!(decide(1, true, vote(7), last(7), &alone).unwrap(), Remaining::Probation);
        assert!(matches!(decide(1, false, vote(7), last(7), &alone), Err(RecoverError::Alone(1))));
        assert!(matches!(decide(4, false, vote(7), last(7), &three), Err(RecoverError::NotAVoter { node: 4, .. })));
    }
}

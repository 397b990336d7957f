//! Membership: who belongs to the group, changed while it serves.
//!
//! A new node follows without a vote at first, as a *learner*: it is sent the image at the retention boundary and all of the
//! log behind it, at a bounded rate, and nobody waits for its disk. When it lacks no more than [`CAUGHT_UP_BYTES`] it may
//! become a voter. Whom it replaces leaves in the same change, so that no other number of nodes decides meanwhile.
//!
//! Each step is an entry of the log. A leader that is lost between two of them leaves a group that works, and whoever asks
//! for the same step again goes on from there. Openraft passes from one set of voters to the next through a joint one; if
//! the leader that began this is gone, the next one ends it ([`finish_changes`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use env::{Env, fault};
use openraft::async_runtime::WatchReceiver;
use openraft::error::{ClientWriteError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::{ChangeMembers, Instant, Raft, RaftMetrics};

use crate::fold::{Reader, Tables};
use crate::founding;
use crate::group::{Lag, MembersError, Peer, VotersChange};
use crate::log::Log;
use crate::position::NodeId;
use crate::proposer::leader_told;
use crate::raft::machine::Machine;
use crate::raft::peer::wire::Hello;
use crate::raft::types::{Node, RaftLogId, Types};

/// A learner that lacks less of the log may become a voter: a fraction of a second at any rate that a group can hold.
pub const CAUGHT_UP_BYTES: u64 = 4 << 20;

/// Changes the members of the group that this node leads.
pub(crate) struct Membership<T: Tables> {
    pub env: Env,
    pub raft: Raft<Types, Machine<T>>,
    pub log: Log,
    pub reader: Reader<T>,
    /// Says who this node is.
    pub hello: Hello,
    /// Who was not heard of for this long does not count as there.
    pub heard_limit: Duration,
}

impl<T: Tables> Membership<T> {
    /// Makes the node at `address` a learner, if it is none yet. Resolves when that is committed.
    pub async fn add_learner(&self, address: &str) -> Result<Peer, MembersError> {
        // Whoever was not answered asks again; the node that was added may lead by now, and cannot ask itself.
        if let Some(own) = self.own().filter(|own| own.peer_address == address) {
            return Ok(own);
        }
        let asked = founding::ask(&self.env, &self.hello, address).await;
        let (status, cluster_version) = asked.map_err(|error| MembersError::Unreachable(error.to_string()))?;
        let added = Peer::new(status.founder.id, &status.founder.node);
        if added.peer_address != address {
            let reason = format!("the node at {address} calls itself {}: name it by that", added.peer_address);
            return Err(MembersError::Refused(reason));
        }
        let is_member = {
            let metrics = self.raft.metrics();
            let now = metrics.borrow_watched();
            now.membership_config.membership().get_node(&added.id).is_some()
        };
        if is_member {
            return Ok(added);
        }
        // The id of a node that has left is never used again, nor is what it holds of a log.
        if status.has_vote || status.has_log || status.set.is_some() {
            let reason = format!(
                "the node at {address} ({:016x}) has a history of its own and is no member of this group: stop it, wipe its \
                 data directory, start it with `join = true`, and add it again",
                added.id
            );
            return Err(MembersError::Refused(reason));
        }
        let needed = self.reader.cluster_version();
        if cluster_version < needed {
            let reason =
                format!("the node at {address} can apply cluster version {cluster_version}, {needed} is in use");
            return Err(MembersError::Refused(reason));
        }
        let node = status.founder.node;
        self.raft.add_learner(added.id, node, false).await.map_err(members_error)?;
        fault!("membership.learner_added");
        tracing::info!(node = format!("{:016x}", added.id), address, "a new node is catching up");
        Ok(added)
    }

    /// This node, as its group knows it.
    fn own(&self) -> Option<Peer> {
        let metrics = self.raft.metrics();
        let now = metrics.borrow_watched();
        Some(Peer::new(now.id, now.membership_config.membership().get_node(&now.id)?))
    }

    /// Makes a learner a voter, or lets a member go, or both at once. Resolves when that is committed; if it is so
    /// already, at once.
    pub async fn change_voters(&self, change: VotersChange) -> Result<(), MembersError> {
        let (found, step) = self.decide(&change).await.map_err(|refusal| MembersError::Refused(refusal.to_string()))?;
        if let (Step::Voters(_), Some(added)) = (&step, change.add) {
            let lag = lag(&self.log, held(&self.raft).remove(&added).flatten()).await;
            if !found.voters.contains(&added) && !lag.is_caught_up {
                return Err(MembersError::NotCaughtUp { lag_bytes: lag.bytes });
            }
        }
        let (change, what) = match step {
            Step::Nothing => return Ok(()),
            Step::Voters(voters) => (ChangeMembers::ReplaceAllVoters(voters), "voters"),
            Step::Forget(learner) => (ChangeMembers::RemoveNodes([learner].into()), "learners"),
        };
        tracing::info!(?change, "changing the {what}");
        fault!("membership.change");
        self.raft.change_membership(change, false).await.map_err(members_error)?;
        Ok(())
    }

    /// A leader that has just taken office has not heard of everybody: it waits a moment for those who are missing.
    async fn decide(&self, change: &VotersChange) -> Result<(Found, Step), Refusal> {
        let look = || {
            let found = Found::of(&self.raft.metrics().borrow_watched(), self.heard_limit);
            let step = step(&found, change)?;
            Ok((found, step))
        };
        let clock = &self.env.clock;
        let deadline = clock.monotonic() + 2 * self.heard_limit;
        loop {
            match look() {
                Err(Refusal::NoMajority { .. }) if clock.monotonic() < deadline => {
                    clock.sleep(self.heard_limit / 10).await
                }
                decided => return decided,
            }
        }
    }
}

/// What each other member is known to hold durably. Empty elsewhere than at the leader.
pub(crate) fn held<T: Tables>(raft: &Raft<Types, Machine<T>>) -> BTreeMap<NodeId, Option<u64>> {
    let metrics = raft.metrics();
    let now = metrics.borrow_watched();
    let others = now.replication.iter().flatten().filter(|(node, _)| **node != now.id);
    others.map(|(node, held)| (*node, held.as_ref().map(|held| held.index))).collect()
}

/// What is missing of `log` to a member that holds it up to the entry `held`; all of it if that is not in it.
pub(crate) async fn lag(log: &Log, held: Option<u64>) -> Lag {
    let end = log.tip().end.physical_offset;
    let begin = log.purged_boundary().map(|purged| purged.end.physical_offset).unwrap_or_default();
    let held = match held {
        Some(held) => log.chain_before(held + 1).await.map_or(begin, |end| end.physical_offset),
        None => begin,
    };
    let bytes = end.0.saturating_sub(held.0);
    Lag { bytes, is_caught_up: bytes <= CAUGHT_UP_BYTES }
}

/// Whether `node` has a vote, also in one half of a joint membership. Asked with each PULL: it allocates nothing.
pub(crate) fn is_voter(membership: &openraft::Membership<NodeId, Node>, node: NodeId) -> bool {
    membership.get_joint_config().iter().any(|voters| voters.contains(&node))
}

/// What a change is decided from.
#[derive(Debug)]
struct Found {
    own: NodeId,
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    /// A change before this one has not ended.
    is_joint: bool,
    /// Members heard of lately, this node among them.
    there: BTreeSet<NodeId>,
}

impl Found {
    #[allow(clippy::disallowed_methods)] // openraft says when it heard of a member in tokio's instants.
    fn of(metrics: &RaftMetrics<Types>, heard_limit: Duration) -> Found {
        let membership = metrics.membership_config.membership();
        let heard = metrics.heartbeat.iter().flatten();
        let lately = heard.filter(|(_, at)| at.is_some_and(|at| at.elapsed() < heard_limit));
        Found {
            own: metrics.id,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            is_joint: membership.get_joint_config().len() > 1,
            there: lately.map(|(node, _)| *node).chain([metrics.id]).collect(),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is so already.
    Nothing,
    /// These from now on.
    Voters(BTreeSet<NodeId>),
    /// This learner leaves.
    Forget(NodeId),
}

/// Why a change must not be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("the leader cannot remove itself: transfer leadership first (transferLeader), then ask the new one")]
    Leader,
    #[error("node {0:016x} is no learner of this group: add it first (addNode)")]
    Stranger(NodeId),
    #[error(
        "of the {voters} voters that this would leave, these do not answer: {silent}. The group would stand still: start \
         them, or replace one of them first"
    )]
    NoMajority { voters: usize, silent: String },
}

/// What is to be done, or why it must not be.
fn step(found: &Found, change: &VotersChange) -> Result<Step, Refusal> {
    let VotersChange { add, remove } = *change;
    if remove == Some(found.own) {
        return Err(Refusal::Leader);
    }
    let mut voters = found.voters.clone();
    if let Some(add) = add.filter(|add| !voters.contains(add)) {
        if !found.learners.contains(&add) {
            return Err(Refusal::Stranger(add));
        }
        voters.insert(add);
    }
    if let Some(remove) = remove {
        voters.remove(&remove);
        if found.learners.contains(&remove) && add.is_none() {
            return Ok(Step::Forget(remove));
        }
    }
    if voters == found.voters && !found.is_joint {
        return Ok(Step::Nothing);
    }
    let there = voters.intersection(&found.there).count();
    if there <= voters.len() / 2 {
        let silent: Vec<String> = voters.difference(&found.there).map(|node| format!("{node:016x}")).collect();
        return Err(Refusal::NoMajority { voters: voters.len(), silent: silent.join(", ") });
    }
    Ok(Step::Voters(voters))
}

fn members_error(error: RaftError<Types, ClientWriteError<Types>>) -> MembersError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            MembersError::NotLeader { leader: leader_told(forward) }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) | RaftError::Fatal(_) => MembersError::Unknown,
        RaftError::APIError(error) => MembersError::Refused(error.to_string()),
    }
}

/// Ends changes that a leader before this one began, whenever this node leads. Ends with Raft.
pub(crate) async fn finish_changes<T: Tables>(raft: Raft<Types, Machine<T>>) {
    let mut changes = raft.server_metrics();
    loop {
        let begun = begun_before(&changes.borrow_watched());
        if let Some(Begun { voters, term }) = begun {
            // Openraft takes no change before an entry of the term is committed, and with it what a leader before began.
            let has_committed = |id: &RaftLogId| id.leader_id.term >= term;
            let is_decided = |now: &RaftMetrics<Types>| {
                now.current_term != term || now.local_committed.as_ref().is_some_and(has_committed)
            };
            let decided = raft.wait(None).metrics(is_decided, "an entry of this term is committed").await;
            if decided.is_ok_and(|now| now.current_term == term) {
                tracing::info!(?voters, "ending a change of the voters that a leader before began");
                if let Err(error) = raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), false).await {
                    tracing::warn!(%error, "the change of the voters is not ended");
                }
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// A change that stands half-way, and this leader's term.
struct Begun {
    voters: BTreeSet<NodeId>,
    term: u64,
}

fn begun_before(now: &RaftServerMetrics<Types>) -> Option<Begun> {
    let (configs, term) = (now.membership_config.membership().get_joint_config(), now.vote.leader_id.term);
    let is_older = now.membership_config.log_id().as_ref().is_some_and(|at| at.leader_id.term < term);
    let voters = configs.last().filter(|_| is_older && now.state.is_leader() && configs.len() > 1)?.clone();
    Some(Begun { voters, term })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let (voters, learners) = ([1, 2, 3].into(), [4].into());
        Found { own: 1, voters, learners, is_joint: false, there: [1, 2, 3, 4].into() }
    }

    fn asked(add: Option<NodeId>, remove: Option<NodeId>) -> VotersChange {
        VotersChange { add, remove }
    }

    fn voters(voters: &[NodeId]) -> Result<Step, Refusal> {
        Ok(Step::Voters(voters.iter().copied().collect()))
    }

    #[test]
    fn what_a_change_comes_to() {
        let of = |add, remove| step(&found(), &asked(add, remove));
        assert_eq!(of(Some(4), None), voters(&[1, 2, 3, 4]));
        assert_eq!(of(Some(4), Some(3)), voters(&[1, 2, 4]), "in one change");
        assert_eq!(of(None, Some(3)), voters(&[1, 2]));
        assert_eq!(of(None, Some(4)), Ok(Step::Forget(4)));
        for done in [asked(Some(2), None), asked(Some(3), Some(9)), asked(None, Some(9))] {
            assert_eq!(step(&found(), &done), Ok(Step::Nothing), "{done:?} is so already");
        }
        let joint = Found { is_joint: true, ..found() };
        assert_eq!(step(&joint, &asked(Some(2), None)), voters(&[1, 2, 3]), "half done is not done");
        assert_eq!(of(Some(5), None), Err(Refusal::Stranger(5)));
        assert_eq!(of(None, Some(1)), Err(Refusal::Leader));
    }

    #[test]
    fn a_change_that_leaves_no_majority_is_refused() {
        let one_is_down = Found { there: [1, 2, 4].into(), ..found() };
        let of = |add, remove| step(&one_is_down, &asked(add, remove));
        let silent = "0000000000000003".to_owned();
        assert_eq!(of(None, Some(2)), Err(Refusal::NoMajority { voters: 2, silent }), "1 and 3 would be left");
        assert_eq!(of(None, Some(3)), voters(&[1, 2]));
        assert_eq!(of(Some(4), Some(3)), voters(&[1, 2, 4]), "the lost one is replaced");
        assert_eq!(of(Some(4), Some(2)), voters(&[1, 3, 4]));
        let two_are_down = Found { there: [1, 4].into(), ..found() };
        assert!(step(&two_are_down, &asked(Some(4), None)).is_err(), "two of four are no majority");
    }
}

//! What a replica says of itself, to whoever asks it: our own code 60001. Every replica answers for itself; nobody asks
//! another one.
//!
//! The chain is a hash of the whole log up to an entry: replicas that give the same one at the same entry hold the same
//! bytes. What they have made of them they hash at checkpoints, which come by themselves now and then, and are made for whoever
//! wants to compare: our own code 60006.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::body::{ReplicaMember, ReplicaStatus};
use protocol::code::ResponseCode;
use protocol::header::{MakeCheckpointResponse, ReplicaStatusRequest};
use raft_store::entry::{CoreCommand, Operation};
use raft_store::fold::CHECKPOINTS_KEPT;
use raft_store::group::{Role, Status};

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;

/// Handles GET_REPLICA_STATUS.
pub async fn status(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: ReplicaStatusRequest = call.request.header()?;
    let group = broker.status();
    let index = chain_index(request.index, &group.raft)?;
    let mut body = replica_status(&group.broker_name, group.is_ready, &group.raft);
    let lags = broker.raft.lags().await;
    for member in &mut body.members {
        let lag = lags.get(&member.node_id).copied();
        let own = member.lag_entries.filter(|_| member.node_id == body.node_id);
        member.lag_bytes = lag.map(|lag| lag.bytes).or(own);
        member.caught_up = lag.map(|lag| lag.is_caught_up).or(own.map(|_| true));
    }
    if let Some(index) = index {
        let gone = |error| RequestError::NotFound(format!("entry {index}: {error}"));
        let end = broker.raft.log().chain_before(index + 1).await.map_err(gone)?;
        body.chain_index = Some(index);
        body.chain = Some(format!("{:016x}", end.chain));
    }
    body.queue_depths = broker.queue_depths(&group.raft);
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&body))
}

/// Retention needs ten checkpoints to what is kept, and may trim to no other place. Of the others that may be there, so many are
/// left to it: what is made for a comparison displaces none of its own.
const LEFT_TO_RETENTION: usize = 4;

/// Handles MAKE_CHECKPOINT. The hashes come a little later, with each replica's status. Where there are many checkpoints already,
/// the newest one is to be compared.
pub async fn make_checkpoint(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    if broker.reader.checkpoints().len() + LEFT_TO_RETENTION < CHECKPOINTS_KEPT {
        broker.raft.propose(vec![Operation::Core(CoreCommand::Checkpoint)]).await?;
    }
    let newest = broker.reader.checkpoints().last().map(|point| point.id.index);
    // One that another has made meanwhile is as good.
    let index = newest.ok_or_else(|| RequestError::Failed("the checkpoint is gone already".to_owned()))?;
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &MakeCheckpointResponse { index }))
}

/// Where to give the chain. An entry that is not applied may yet be replaced by another: its chain says nothing.
fn chain_index(wanted: Option<i64>, raft: &Status) -> Result<Option<u64>, RequestError> {
    let applied = raft.applied.map(|applied| applied.index);
    match wanted {
        None => Ok(applied.min(raft.synced)),
        Some(wanted) => {
            let index = u64::try_from(wanted).ok().filter(|index| Some(*index) <= applied);
            let not_there = || {
                let applied = applied.map_or("none".to_owned(), |applied| applied.to_string());
                RequestError::NotFound(format!("entry {wanted} is not applied here; the last one is {applied}"))
            };
            index.map(Some).ok_or_else(not_there)
        }
    }
}

/// The status without what only a look into the log and its queues tells.
fn replica_status(broker_name: &str, is_ready: bool, raft: &Status) -> ReplicaStatus {
    let (role, leader) = match &raft.role {
        Role::Leader { .. } => ("leader", Some(raft.node)),
        Role::Follower { leader, .. } => ("follower", leader.as_ref().map(|leader| leader.id)),
        Role::Isolated { .. } => ("isolated", None),
        Role::Candidate { .. } => ("candidate", None),
        Role::Stopped { .. } => ("stopped", None),
    };
    let leads = leader == Some(raft.node);
    let members = raft.members.iter().map(|member| ReplicaMember {
        caught_up: None,
        client_address: member.client_address.clone(),
        lag_bytes: None,
        lag_entries: match raft.replication.get(&member.id) {
            Some(replication) => Some(replication.lag_entries),
            None => (leads && member.id == raft.node).then_some(0),
        },
        node_id: member.id,
        peer_address: member.peer_address.clone(),
        voter: raft.voters.contains(&member.id),
    });
    ReplicaStatus {
        agreed_index: raft.state_agreed.map(|agreed| agreed.index),
        applied_index: raft.applied.map(|applied| applied.index),
        broker_name: broker_name.to_owned(),
        committed_index: raft.committed.map(|committed| committed.index),
        image_hashes: raft.image_hashes.iter().map(|(id, hash)| (id.index, format!("{hash:016x}"))).collect(),
        last_index: raft.last.map(|last| last.index),
        leader,
        members: members.collect(),
        node_id: raft.node,
        ready: is_ready,
        role: role.to_owned(),
        synced_index: raft.synced,
        term: raft.term,
        ..ReplicaStatus::default()
    }
}

impl BrokerGroup {
    /// What waits where in this replica, in the order in which a message passes.
    fn queue_depths(&self, raft: &Status) -> BTreeMap<String, u64> {
        let pending = self.reader.pending();
        let depths = [
            ("leader_requests", self.work.count() as u64),
            ("admitted_bytes", self.admission.in_flight_bytes() as u64),
            ("proposals_bytes", raft.proposals_bytes as u64),
            ("entries_in_flight", raft.entries_in_flight as u64),
            ("log_writer_bytes", self.raft.log().stats().queued_bytes),
            ("derived_changes_bytes", self.reader.derived_stats().waiting_bytes),
            ("scheduled_messages", pending.scheduled),
            ("half_messages", pending.half),
            ("pending_bytes", pending.bytes),
        ];
        depths.into_iter().map(|(name, depth)| (name.to_owned(), depth)).collect()
    }
}

#[cfg(test)]
mod tests {
    use raft_store::group::{Peer, Replication};
    use raft_store::position::LogId;

    use super::*;

    fn id(index: u64) -> Option<LogId> {
        Some(LogId { term: 2, index })
    }

    fn peer(id: u64) -> Peer {
        Peer { id, peer_address: format!("127.0.0.1:1{id}"), client_address: format!("127.0.0.1:2{id}") }
    }

    fn leader() -> Status {
        Status {
            node: 1,
            role: Role::Leader { term: 2, ready: true },
            term: 2,
            committed: id(8),
            applied: id(7),
            last: id(9),
            synced: Some(6),
            purged: None,
            members: vec![peer(1), peer(2), peer(3)],
            voters: vec![1, 2],
            replication: [(2, Replication { matched: id(8), lag_entries: 1 })].into(),
            proposals_bytes: 0,
            entries_in_flight: 0,
            elections: 0,
            heartbeat_timeouts: 0,
            inconsistent_requests: 0,
            broken_streams: 0,
            state_agreed: id(5),
            state_split: None,
            image_hashes: vec![(LogId { term: 2, index: 5 }, 0xabc)],
            clock_offset_ms: None,
            clock_steps_refused: 0,
            clock_hand_overs: 0,
            cluster_version_supported: None,
            was_clean: true,
            on_probation: false,
            damaged_images: 0,
            repaired: Default::default(),
            scrubbed: Default::default(),
            log: raft_store::log::Stats::default(),
        }
    }

    #[test]
    fn the_leader_knows_how_far_the_others_are() {
        let body = replica_status("broker-a", true, &leader());
        let golden = r#"{"agreedIndex":5,"appliedIndex":7,"brokerName":"broker-a","committedIndex":8,"imageHashes":{"5":"0000000000000abc"},"lastIndex":9,"leader":1,"members":[{"clientAddress":"127.0.0.1:21","lagEntries":0,"nodeId":1,"peerAddress":"127.0.0.1:11","voter":true},{"clientAddress":"127.0.0.1:22","lagEntries":1,"nodeId":2,"peerAddress":"127.0.0.1:12","voter":true},{"clientAddress":"127.0.0.1:23","nodeId":3,"peerAddress":"127.0.0.1:13","voter":false}],"nodeId":1,"queueDepths":{},"ready":true,"role":"leader","syncedIndex":6,"term":2}"#;
        assert_eq!(String::from_utf8(protocol::json::to_vec(&body)).expect("JSON"), golden);
        let role = Role::Follower { term: 2, leader: Some(peer(2)) };
        let body = replica_status("broker-a", true, &Status { role, replication: BTreeMap::new(), ..leader() });
        assert_eq!((body.role.as_str(), body.leader), ("follower", Some(2)));
        assert!(body.members.iter().all(|member| member.lag_entries.is_none()));
    }

    #[test]
    fn a_chain_is_given_where_it_can_no_longer_change() {
        let chain = |wanted| chain_index(wanted, &leader());
        assert_eq!(chain(None).expect("there is one"), Some(6), "applied and durable");
        assert_eq!(chain(Some(7)).expect("it is applied"), Some(7));
        for beyond in [8, 100, -1] {
            let error = chain(Some(beyond)).expect_err("not applied");
            assert_eq!(error.response_code(), Some(ResponseCode::QUERY_NOT_FOUND));
        }
        assert_eq!(chain_index(None, &Status { applied: None, ..leader() }).expect("an empty log"), None);
    }
}

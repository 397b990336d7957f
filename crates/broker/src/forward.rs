//! Forwarding: a client whose route is stale asks a follower for what only the leader does, and the follower asks the
//! leader for it.
//!
//! One hop: who leads may be in dispute, and two replicas that send a request to each other help nobody. The client's
//! address and what is left of its patience travel along, so that the leader stores the same message, and gives up at the
//! same moment, as if the client had come itself. They are believed by the key that the leader has told its followers and
//! nobody else; without it a request that claims to be forwarded is refused. A link lost after the request was written
//! leaves the outcome unknown: there is no answer then.
//!
//! The other way round, what is for a client that is connected to another replica goes there: [`elsewhere`]. That is asked of
//! all others in turn, each of which looks among its own connections and nowhere else. It takes no key: whoever asks a replica
//! directly gets the same.

use std::time::Duration;

use protocol::command::{RemotingCommand, SerializeType};
use raft_store::group::Peer;
use raft_store::planted::{self, Bug};
use remoting::{CallError, Connection};

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;

/// The request has made its one hop: the receiver's [`raft_store::forward_key::ForwardKey`].
const FORWARDED: &str = "raftmqForwarded";
/// The client's address.
const BORN_HOST: &str = "raftmqBornHost";
/// What is left of its patience.
const REMAINING_MS: &str = "raftmqRemainingMs";
/// The client's own name.
const CLIENT_ID: &str = "raftmqClientId";
/// Marks a refusal as certain: the replica asked does not lead.
const NOT_LEADER: &str = "raftmqNotLeader";

/// Another replica asks, which does not know the client that the request is for.
const HERE: &str = "raftmqHere";
/// Marks its answer: that client is not connected here either.
const NOT_HERE: &str = "raftmqNotHere";

/// How long it may take to reach another replica.
const REACHED_WITHIN: Duration = Duration::from_secs(1);

/// What came of asking the other replicas.
#[derive(Debug)]
pub enum Elsewhere {
    /// The client is connected to one of them: its answer, or what kept it from answering.
    Answered(RemotingCommand),
    /// It is connected to none that could be reached.
    Nowhere,
}

/// Whether the request is for a client of this replica only.
pub fn is_asked_for_here(request: &RemotingCommand) -> bool {
    request.ext.bool(HERE) == Some(true)
}

/// The answer to such a request, when that client is not connected here.
pub fn not_here(request: &RemotingCommand) -> RemotingCommand {
    let answer = request.reply_error(protocol::code::ResponseCode::SYSTEM_ERROR, "the client is not connected here");
    answer.with_field(NOT_HERE, true)
}

/// Asks every other replica, one after the other, for what this one cannot do because the client that it is for is not
/// connected here. `limit`: how long that client may take.
pub async fn elsewhere(broker: &BrokerGroup, request: &RemotingCommand, limit: Duration) -> Elsewhere {
    for member in broker.other_members() {
        let Some(connection) = broker.reached(&member).await else { continue };
        let mut asked = request.clone().with_field(HERE, true);
        asked.serialize = SerializeType::Json;
        // This replica is not the client: what it was told by one that forwarded stays here.
        asked.ext.remove(FORWARDED);
        match connection.call(asked, limit + REACHED_WITHIN).await {
            Ok(answer) if answer.ext.bool(NOT_HERE) == Some(true) => {}
            Ok(mut answer) => {
                (answer.opaque, answer.serialize) = (request.opaque, request.serialize);
                return Elsewhere::Answered(answer);
            }
            Err(error) => tracing::debug!(replica = %member.client_address, %error, "not asked about its clients"),
        }
    }
    Elsewhere::Nowhere
}

/// Whether the request does not claim to be forwarded, or proves it.
pub fn is_believed(broker: &BrokerGroup, request: &RemotingCommand) -> bool {
    request.ext.get(FORWARDED).is_none_or(|key| broker.raft.forward_key().is(key))
}

/// Takes in a request that [`is_believed`], from a client or from another replica.
pub fn call_of(broker: &BrokerGroup, connection: &Connection, request: RemotingCommand) -> Call {
    let limit = broker.config.limits.send_deadline;
    let is_forwarded = request.ext.get(FORWARDED).is_some();
    let mut call = Call {
        born_host: connection.peer_addr(),
        client_id: None,
        deadline: broker.env.clock.monotonic() + limit,
        is_forwarded,
        connection: connection.clone(),
        request,
    };
    if is_forwarded {
        let ext = &call.request.ext;
        if let Some(born_host) = ext.text(BORN_HOST).and_then(|text| text.parse().ok()) {
            call.born_host = born_host;
        }
        if let Ok(Some(remaining_ms)) = ext.i64(REMAINING_MS) {
            let remaining = Duration::from_millis(u64::try_from(remaining_ms).unwrap_or(0)).min(limit);
            call.deadline = broker.env.clock.monotonic() + remaining;
        }
        call.client_id = ext.text(CLIENT_ID).map(str::to_owned);
    }
    call
}

/// Marks an answer to a forwarded request: it was certainly not carried out, because this replica does not lead.
pub fn mark_not_leader(answer: RemotingCommand) -> RemotingCommand {
    answer.with_field(NOT_LEADER, true)
}

/// Asks `leader`. [`RequestError::NotLeader`] if it certainly did not carry the request out.
pub async fn forward(broker: &BrokerGroup, call: &Call, leader: &Peer) -> Answer {
    let clock = &broker.env.clock;
    let certainly_not = || RequestError::NotLeader { leader: None };
    let Some(key) = broker.raft.forward_key_of(leader.id) else { return Err(certainly_not()) };
    let remaining = call.deadline.saturating_sub(clock.monotonic());
    let connected = clock.timeout(remaining, broker.peers.connection(&leader.client_address)).await;
    let Some(Ok(connection)) = connected else { return Err(certainly_not()) };

    let remaining = call.deadline.saturating_sub(clock.monotonic());
    let mut request = call.request.clone();
    request.serialize = SerializeType::Json;
    request.ext.set(FORWARDED, key.to_text());
    request.ext.set(BORN_HOST, call.born_host);
    request.ext.set(REMAINING_MS, remaining.as_millis());
    match broker.client_id(call) {
        Some(client_id) => request.ext.set_text(CLIENT_ID, &client_id),
        // Whatever a client wrote there itself.
        None => drop(request.ext.remove(CLIENT_ID)),
    }
    if request.is_one_way() {
        return match connection.one_way(request) {
            // Nobody reads this answer.
            Ok(()) => Ok(call.request.reply(protocol::code::ResponseCode::SUCCESS)),
            Err(CallError::NotSent(_)) => Err(certainly_not()),
            Err(CallError::Unknown(_)) => Err(RequestError::Unknown),
        };
    }
    match connection.call(request, remaining).await {
        Ok(answer) if answer.ext.bool(NOT_LEADER) == Some(true) => Err(certainly_not()),
        Ok(mut answer) => {
            answer.opaque = call.request.opaque;
            answer.serialize = call.request.serialize;
            Ok(answer)
        }
        Err(CallError::NotSent(_)) => Err(certainly_not()),
        Err(CallError::Unknown(_)) if planted::is(Bug::ForwardedTwice) => Err(certainly_not()),
        Err(CallError::Unknown(reason)) => {
            tracing::warn!(leader = %leader.client_address, %reason, "a forwarded request has no answer");
            Err(RequestError::Unknown)
        }
    }
}

impl BrokerGroup {
    /// The other replicas.
    pub(crate) fn other_members(&self) -> Vec<Peer> {
        let own = self.raft.node();
        self.raft.status().members.into_iter().filter(|member| member.id != own).collect()
    }

    /// A connection to another replica, if it can be reached soon.
    pub(crate) async fn reached(&self, member: &Peer) -> Option<Connection> {
        self.env.clock.timeout(REACHED_WITHIN, self.peers.connection(&member.client_address)).await?.ok()
    }

    /// What the client of a request calls itself, if it said so in a heartbeat to this replica or to the one before.
    pub(crate) fn client_id(&self, call: &Call) -> Option<String> {
        if call.is_forwarded {
            return call.client_id.clone();
        }
        self.clients.lock().client_id(call.connection.id()).map(str::to_owned)
    }
}

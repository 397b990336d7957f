//! Who belongs to the broker group: our own codes 60002 to 60004. Each is one step, and safe to repeat; `raftmq admin addNode`,
//! `replaceNode` and `removeNode` are made of them.

use std::sync::Arc;

use protocol::body::ReplicaMember;
use protocol::code::ResponseCode;
use protocol::header::{AddLearnerRequest, ChangeVotersRequest, TransferLeaderRequest};
use raft_store::group::{HandOverError, MembersError, VotersChange};

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;

/// Handles ADD_LEARNER.
pub async fn add_learner(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: AddLearnerRequest = call.request.header()?;
    let added = broker.raft.add_learner(&request.peer_address).await?;
    let voter = broker.raft.status().voters.contains(&added.id);
    let body = ReplicaMember {
        client_address: added.client_address,
        node_id: added.id,
        peer_address: added.peer_address,
        voter,
        ..ReplicaMember::default()
    };
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&body))
}

/// Handles CHANGE_VOTERS.
pub async fn change_voters(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let ChangeVotersRequest { add, remove } = call.request.header()?;
    broker.raft.change_voters(VotersChange { add, remove }).await?;
    // Brokers' ids are counted from the voters.
    broker.registration.wake();
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// Handles TRANSFER_LEADER.
pub async fn transfer_leader(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: TransferLeaderRequest = call.request.header()?;
    broker.raft.hand_over_to(request.node_id).await?;
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

impl From<MembersError> for RequestError {
    fn from(error: MembersError) -> RequestError {
        match error {
            MembersError::NotLeader { leader } => RequestError::NotLeader { leader },
            MembersError::Refused(_) | MembersError::Unreachable(_) => {
                RequestError::InvalidParameter(error.to_string())
            }
            MembersError::NotCaughtUp { .. } => RequestError::Busy(error.to_string()),
            MembersError::Unknown => RequestError::Unknown,
        }
    }
}

impl From<HandOverError> for RequestError {
    fn from(error: HandOverError) -> RequestError {
        match error {
            HandOverError::NotLeader => RequestError::NotLeader { leader: None },
            HandOverError::Alone | HandOverError::NotAVoter => RequestError::InvalidParameter(error.to_string()),
            HandOverError::NotTaken => RequestError::Failed(error.to_string()),
            HandOverError::Stopped => RequestError::Stopped,
        }
    }
}

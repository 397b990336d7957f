//! Replies: SEND_REPLY_MESSAGE 324 and its short form 325. Who has consumed a request sends the reply to a topic of the
//! cluster, and the broker pushes it, with PUSH_REPLY_MESSAGE_TO_CLIENT 326, to the client that waits for it, which it knows
//! by what the client calls itself in its heartbeats as a producer.
//!
//! The leader does that, because it also stores the reply, as RocketMQ does by default. A requester that is connected to
//! another replica, because it has not heard of a new leader yet, gets its reply from there: that replica is asked to push
//! it, and does nothing else with it.

use std::sync::Arc;
use std::time::Duration;

use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{PushReplyRequest, SendMessageRequest, SendMessageResponse};
use protocol::properties;

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call, Leader};
use crate::error::{RequestError, with_send_fields};
use crate::forward::{self, Elsewhere};
use crate::send;

/// How long a client may take to take a reply.
const CLIENT_LIMIT: Duration = Duration::from_secs(10);

/// Handles SEND_REPLY_MESSAGE and SEND_REPLY_MESSAGE_V2.
pub async fn reply(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    if forward::is_asked_for_here(&call.request) {
        return match broker.push_here(call).await? {
            Some(pushed) => Ok(call.request.reply(pushed)),
            None => Ok(forward::not_here(&call.request)),
        };
    }
    let patience = broker.env.clock.monotonic() + broker.config.limits.leader_wait;
    match broker.wait_for_leader(patience.min(call.deadline)).await? {
        Leader::Here => {}
        Leader::At(leader) if call.is_forwarded => return Err(RequestError::NotLeader { leader: Some(leader) }),
        Leader::At(leader) => return forward::forward(broker, call, &leader).await,
    }
    let pushed = match broker.push_here(call).await? {
        Some(pushed) => pushed,
        None => match forward::elsewhere(broker, &call.request, CLIENT_LIMIT).await {
            Elsewhere::Answered(answer) => answer.response_code(),
            Elsewhere::Nowhere => {
                let remark = "push reply message fail, the requester is not connected to this broker group any more";
                return Err(RequestError::Failed(remark.to_owned()));
            }
        },
    };
    if pushed != ResponseCode::SUCCESS {
        return Err(RequestError::Failed(format!("push reply message to the requester failed: it answered {pushed}")));
    }
    // The requester has its reply: it is no failure if nobody can look it up later.
    match send::send(broker, call).await {
        Ok(stored) => Ok(stored),
        Err(error) => {
            tracing::warn!(group = %broker.broker_name(), %error, "a reply was pushed, and is not stored");
            let header = SendMessageResponse {
                msg_id: Some("0".to_owned()),
                queue_id: Some(SendMessageRequest::of(&call.request)?.queue_id.max(0)),
                queue_offset: Some(0),
                ..SendMessageResponse::default()
            };
            Ok(with_send_fields(call.request.reply_with(ResponseCode::SUCCESS, &header)))
        }
    }
}

impl BrokerGroup {
    /// Pushes a reply to the client that waits for it, if that is connected here: what it answers, or that it does not.
    async fn push_here(&self, call: &Call) -> Result<Option<ResponseCode>, RequestError> {
        let send = SendMessageRequest::of(&call.request)?;
        let text = send.properties.as_deref().unwrap_or_default();
        let Some(requester) = properties::get(text, properties::REPLY_TO_CLIENT) else {
            let remark = "reply message properties[REPLY_TO_CLIENT] is null";
            return Err(RequestError::MessageIllegal(remark.to_owned()));
        };
        let id = self.clients.lock().producer(requester);
        let Some(connection) = id.and_then(|id| self.connections.lock().get(&id).cloned()) else { return Ok(None) };
        let now_ms = self.env.clock.wall_ms();
        // Clients of the 4.9 line leave out the last separator.
        let separator = if text.ends_with('\u{2}') { "" } else { "\u{2}" };
        let header = PushReplyRequest {
            properties: Some(format!("{text}{separator}{}\u{1}{now_ms}\u{2}", properties::PUSH_REPLY_TIME)),
            producer_group: send.producer_group,
            topic: send.topic,
            default_topic: send.default_topic,
            default_topic_queue_nums: send.default_topic_queue_nums,
            queue_id: send.queue_id,
            sys_flag: send.sys_flag,
            born_timestamp: send.born_timestamp,
            flag: send.flag,
            reconsume_times: send.reconsume_times,
            unit_mode: send.unit_mode,
            born_host: Some(call.born_host.to_string()),
            store_host: Some(self.config.advertised_address.to_string()),
            store_timestamp: now_ms,
        };
        let push = RemotingCommand::request_with(RequestCode::PUSH_REPLY_MESSAGE_TO_CLIENT, &header)
            .with_body(call.request.body.clone());
        Ok(Some(match connection.call(push, CLIENT_LIMIT).await {
            Ok(answer) => answer.response_code(),
            Err(error) => {
                tracing::debug!(requester, %error, "a reply was not taken");
                ResponseCode::CONSUME_MSG_TIMEOUT
            }
        }))
    }
}

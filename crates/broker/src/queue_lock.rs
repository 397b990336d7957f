//! Queue locks of orderly consumers: LOCK_BATCH_MQ 41, UNLOCK_BATCH_MQ 42.
//!
//! Leases in the replicated tables, in group time: they survive a change of leader, and the time without one is added to
//! them.

use std::sync::Arc;

use protocol::body::{LockBatchRequest, LockBatchResponse, MessageQueue};
use protocol::code::ResponseCode;
use protocol::names::validate_group;

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::tables::command::{Command, Reply};

/// Queues in one request.
const QUEUES_MAX: usize = 4096;

/// Handles LOCK_BATCH_MQ: the answer names the queues that the client holds now.
pub async fn lock(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: LockBatchRequest = call.request.json()?;
    let mut queues = wanted(&request)?;
    {
        // Each lock is a replicated row: of each group that exists there are no more of them than queues. What does not
        // exist is not granted.
        let tables = broker.reader.tables();
        if tables.groups().get(&request.consumer_group).is_none() {
            return Err(RequestError::NoGroup(request.consumer_group));
        }
        let exists = |topic: &str, queue| tables.topics().get(topic).is_some_and(|topic| queue < topic.queues());
        queues.retain(|(topic, queue)| exists(topic, *queue));
    }
    let command = Command::LockQueues {
        group: request.consumer_group,
        client: request.client_id,
        queues,
        lease_ms: broker.config.messages.queue_lock.as_millis() as i64,
    };
    let Reply::Locked(held) = broker.command(&command).await? else { unreachable!("locks are answered with locks") };
    let queue = |(topic, queue): (String, u32)| MessageQueue::new(topic, broker.broker_name(), queue as i32);
    let body = LockBatchResponse { lock_ok_mq_set: held.into_iter().map(queue).collect() };
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&body))
}

/// Handles UNLOCK_BATCH_MQ.
pub async fn unlock(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: LockBatchRequest = call.request.json()?;
    let queues = wanted(&request)?;
    let command = Command::UnlockQueues { group: request.consumer_group, client: request.client_id, queues };
    broker.command(&command).await?;
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// The queues of the request, as the tables know them.
fn wanted(request: &LockBatchRequest) -> Result<Vec<(String, u32)>, RequestError> {
    if request.consumer_group.is_empty() || request.client_id.is_empty() {
        return Err(RequestError::InvalidParameter("a lock needs consumerGroup and clientId".to_owned()));
    }
    validate_group(&request.consumer_group)?;
    if request.mq_set.len() > QUEUES_MAX {
        let asked = request.mq_set.len();
        return Err(RequestError::InvalidParameter(format!("{asked} queues in one request, at most {QUEUES_MAX}")));
    }
    let queue = |queue: &MessageQueue| u32::try_from(queue.queue_id).ok().map(|id| (queue.topic.clone(), id));
    Ok(request.mq_set.iter().filter_map(queue).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_needs_a_holder_and_real_queues() {
        let request = LockBatchRequest {
            client_id: "c".to_owned(),
            consumer_group: "g".to_owned(),
            mq_set: vec![MessageQueue::new("T", "b", 3), MessageQueue::new("T", "b", -1)],
            only_this_broker: false,
        };
        assert_eq!(wanted(&request).expect("queues"), [("T".to_owned(), 3)]);
        assert!(wanted(&LockBatchRequest { client_id: String::new(), ..request.clone() }).is_err());
        let many = vec![MessageQueue::new("T", "b", 0); QUEUES_MAX + 1];
        assert!(wanted(&LockBatchRequest { mq_set: many, ..request }).is_err());
    }
}

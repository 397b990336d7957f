//! CONSUMER_SEND_MSG_BACK 36: a message that could not be consumed comes back to be tried later, or, when it has had all
//! its chances, goes to the group's dead-letter topic.
//!
//! The message is stored anew, with its body, its properties and its birth, under the retry topic; it is a delayed message
//! like any other. In the dead-letter queue it lies once ([`crate::dead_letters`]).

use std::sync::Arc;

use protocol::code::ResponseCode;
use protocol::header::ConsumerSendMessageBackRequest;
use protocol::message_id::MessageId;
use protocol::names::group_of_retry_topic;
use protocol::properties::{self, Properties};
use protocol::record::{NewRecord, RecordView};
use protocol::sys_flag::TransactionType;
use protocol::tag;
use raft_store::entry::RecordOperation;
use raft_store::position::PhysicalOffset;

use crate::broker::BrokerGroup;
use crate::dead_letters::origin_of;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::send::{Delay, OWN_RETRY_LIMIT_VERSION, Target, delay_of_level, key_hashes};

/// The level of the first retry.
const FIRST_RETRY_LEVEL: i32 = 3;

/// Where a message that came back goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    DeadLetter,
    Retry { level: i32 },
}

/// Decides by how often the message was consumed in vain before, the limit, and the level that the client wishes: below 0
/// gives up at once, 0 leaves it to the number of attempts.
fn next(reconsume_times: i32, max_reconsume_times: i32, wished_level: i32) -> Next {
    if reconsume_times >= max_reconsume_times || wished_level < 0 {
        Next::DeadLetter
    } else if wished_level == 0 {
        Next::Retry { level: FIRST_RETRY_LEVEL.saturating_add(reconsume_times) }
    } else {
        Next::Retry { level: wished_level }
    }
}

/// Handles CONSUMER_SEND_MSG_BACK.
pub async fn send_back(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: ConsumerSendMessageBackRequest = call.request.header()?;
    let group = broker.ensure_group(&request.group).await?;
    let done = call.request.reply(ResponseCode::SUCCESS);
    if group.retry_queues == 0 {
        return Ok(done);
    }
    let found = broker.message_at(request.offset).await?;
    if broker.reader.half(found.physical_offset).is_some() {
        // Nobody can have consumed it, and nobody may before its transaction is committed.
        let remark = format!("the message at {} waits for the end of its transaction", request.offset);
        return Err(RequestError::InvalidParameter(remark));
    }
    let _admitted = broker.admission.admit(found.record.len())?;
    let message = RecordView::parse(&found.record)?;
    let own_limit = request.max_reconsume_times.filter(|_| call.request.version >= OWN_RETRY_LIMIT_VERSION);
    let next = next(message.reconsume_times(), own_limit.unwrap_or(group.max_retries), request.delay_level);

    let (queue, delay) = match next {
        Next::DeadLetter => (broker.dead_letter_queue(&request.group).await?, Delay::None),
        Next::Retry { level } => {
            broker.refuse_too_many_waiting()?;
            let queue = broker.retry_queue(&request.group).await?;
            (queue, delay_of_level(level, &broker.config.messages, broker.now()))
        }
    };
    let is_retry = group_of_retry_topic(message.topic()) == Some(request.group.as_str());
    let origin = origin_of(message.properties(), is_retry, found.physical_offset);
    let store_host = broker.config.advertised_address;
    let own = MessageId { store_host, physical_offset: request.offset }.to_string();
    let origin_msg_id = request.origin_msg_id.as_deref().unwrap_or(&own);
    let reconsume_times = message.reconsume_times().saturating_add(1);
    let operation = broker.stored_anew(&message, &queue, delay, reconsume_times, origin, origin_msg_id)?;
    match next {
        Next::DeadLetter => drop(broker.bury(operation, &queue.topic).await?),
        Next::Retry { .. } => drop(broker.store(vec![operation], &queue.topic, None).await?),
    }
    Ok(done)
}

impl BrokerGroup {
    /// The record of a message that is stored once more, in a group's retry or dead-letter queue.
    pub(crate) fn stored_anew(
        &self,
        message: &RecordView<'_>,
        queue: &Target,
        delay: Delay,
        reconsume_times: i32,
        origin: Option<PhysicalOffset>,
        origin_msg_id: &str,
    ) -> Result<RecordOperation, RequestError> {
        let mut stored = Properties::parse(message.properties());
        if stored.get(properties::RETRY_TOPIC).is_none() {
            stored.set(properties::RETRY_TOPIC, message.topic());
        }
        if stored.get(properties::ORIGIN_MESSAGE_ID).is_none() {
            stored.set(properties::ORIGIN_MESSAGE_ID, origin_msg_id);
        }
        if let Some(origin) = origin {
            stored.set(properties::ORIGIN, origin.0);
        }
        // As Java leaves it.
        stored.set(properties::WAIT, false);
        match delay {
            Delay::Level { level, .. } => {
                stored.set(properties::DELAY, level);
                stored.set(properties::REAL_TOPIC, &queue.topic);
                stored.set(properties::REAL_QID, queue.queue);
            }
            Delay::None | Delay::Until { .. } => stored.set(properties::DELAY, 0),
        }
        if stored.encoded().len() > properties::MAX_PROPERTIES_BYTES {
            return Err(RequestError::MessageIllegal(format!(
                "with what a retry adds, the properties are {} bytes, the maximum is {}",
                stored.encoded().len(),
                properties::MAX_PROPERTIES_BYTES
            )));
        }
        // A retry of a committed message is a message like any other.
        let sys_flag = message.sys_flag().with_transaction(TransactionType::None);
        let record = NewRecord {
            topic: &queue.topic,
            sys_flag,
            queue_id: queue.queue as i32,
            store_timestamp: self.now().0,
            store_host: self.config.advertised_address,
            reconsume_times,
            prepared_transaction_offset: 0,
            properties: stored.encoded(),
            ..message.to_new()
        };
        Ok(RecordOperation {
            queue: queue.id(),
            record: record.to_bytes()?,
            tag_hash: tag::tag_hash(stored.get(properties::TAGS)),
            visibility: delay.visibility(),
            key_hashes: key_hashes(&queue.topic, stored.get(properties::UNIQ_KEY), stored.get(properties::KEYS)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_chances_each_later_than_the_one_before() {
        assert_eq!(next(0, 16, 0), Next::Retry { level: 3 });
        assert_eq!(next(15, 16, 0), Next::Retry { level: 18 });
        assert_eq!(next(16, 16, 0), Next::DeadLetter);
        assert_eq!(next(2, 16, 9), Next::Retry { level: 9 }, "the client's wish counts");
        assert_eq!(next(0, 16, -1), Next::DeadLetter, "the client gives up");
        assert_eq!(next(0, 0, 0), Next::DeadLetter);
        assert_eq!(next(i32::MAX - 1, i32::MAX, 0), Next::Retry { level: i32::MAX }, "the last level, in the end");
    }
}

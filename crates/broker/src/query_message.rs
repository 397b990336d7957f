//! Messages by key: QUERY_MESSAGE 12, at any replica that holds all that is retained.
//!
//! The index knows hashes; whether a message has the very key, its record says.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use protocol::code::ResponseCode;
use protocol::header::{QueryMessageRequest, QueryMessageResponse};
use protocol::properties;
use protocol::record::RecordView;
use raft_store::consume_queue::Unit;
use raft_store::position::{QueueId, QueueOffset, Timestamp};

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::pull::append_shown;
use crate::send::key_hash;

/// Messages in one answer: RocketMQ's `maxMsgsNumBatch`.
const MESSAGES_MAX: usize = 64;

/// Messages with one unique key: more than one only if a send was repeated.
const UNIQUE_MESSAGES_MAX: usize = 32;

/// Bytes of records in one answer, unless the first record alone is longer.
const ANSWER_BYTES: usize = 8 << 20;

/// Handles QUERY_MESSAGE.
pub async fn query(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: QueryMessageRequest = call.request.header()?;
    let mut found = broker.messages_by_key(&request).await?;
    if found.is_empty() {
        let remark = "can not find message, maybe time range not correct";
        return Err(RequestError::NotFound(remark.to_owned()));
    }
    // Chosen are the newest; shown they are in the order of the log.
    found.sort_by_key(|(_, unit, _)| unit.physical_offset);
    let mut body = BytesMut::with_capacity(found.iter().map(|(_, _, record)| record.len()).sum());
    for (queue_offset, unit, record) in &found {
        append_shown(&mut body, record, *queue_offset, unit, broker.config.advertised_address)?;
    }
    let header = QueryMessageResponse {
        // What is applied is indexed.
        index_last_update_timestamp: broker.reader.now().0,
        index_last_update_phyoffset: broker.raft.log().synced().borrow().physical_end.0 as i64,
    };
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &header).with_body(body.freeze()))
}

impl BrokerGroup {
    /// The newest messages with this key, newest first.
    async fn messages_by_key(
        &self,
        request: &QueryMessageRequest,
    ) -> Result<Vec<(QueueOffset, Unit, Bytes)>, RequestError> {
        let count = match request.unique_key_query {
            true => UNIQUE_MESSAGES_MAX,
            false => usize::try_from(request.max_num).unwrap_or(0).clamp(1, MESSAGES_MAX),
        };
        let times = Timestamp(request.begin_timestamp)..=Timestamp(request.end_timestamp);
        let units = self.reader.units_by_key(key_hash(&request.topic, &request.key), times, count).await?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        for (queue, queue_offset, unit) in units {
            if !found.is_empty() && bytes + unit.size as usize > ANSWER_BYTES {
                break;
            }
            if !self.is_shown(&request.topic, queue, queue_offset) {
                continue;
            }
            let Some(record) = self.record_of(&unit).await? else { continue };
            let view = RecordView::parse(&record)
                .map_err(|error| RequestError::Failed(format!("the record at {}: {error}", unit.physical_offset)))?;
            if has_key(view.properties(), &request.key, request.unique_key_query) {
                bytes += record.len();
                found.push((queue_offset, unit, record));
            }
        }
        Ok(found)
    }

    /// Whether the topic that has the name now shows this place of a queue.
    pub(crate) fn is_shown(&self, topic: &str, queue: QueueId, queue_offset: QueueOffset) -> bool {
        let tables = self.reader.tables();
        let topic = tables.topics().get(topic);
        topic.is_some_and(|topic| topic.id() == queue.topic && queue_offset >= topic.first_shown(queue.queue))
    }
}

/// Whether a message has the key: as its unique key or, unless only that is asked for, among its keys.
fn has_key(encoded: &str, key: &str, is_unique: bool) -> bool {
    if properties::get(encoded, properties::UNIQ_KEY) == Some(key) {
        return true;
    }
    !is_unique && properties::get(encoded, properties::KEYS).is_some_and(|keys| keys.split(' ').any(|one| one == key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_key_counts() {
        let encoded = "KEYS\u{1}a bc\u{2}UNIQ_KEY\u{1}u\u{2}";
        for (key, by_any, as_unique) in
            [("a", true, false), ("bc", true, false), ("b", false, false), ("u", true, true)]
        {
            assert_eq!((has_key(encoded, key, false), has_key(encoded, key, true)), (by_any, as_unique), "{key}");
        }
    }
}

//! Offsets and progress: 202, 208, 317, 220 / 222, 221 / 223, 303, 308, 43. Most tables have queues as keys.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{DataVersion, MessageQueue};

/// Answer to GET_TOPIC_STATS_INFO.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicStatsTable {
    /// By queue.
    pub offset_table: BTreeMap<MessageQueue, TopicOffset>,
    /// Messages per second.
    pub topic_put_tps: f64,
}

/// Bounds of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicOffset {
    /// Store time of the newest message, ms.
    pub last_update_timestamp: i64,
    /// Next offset to be assigned.
    pub max_offset: i64,
    /// First offset.
    pub min_offset: i64,
}

/// Answer to GET_CONSUME_STATS.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumeStats {
    /// Messages per second.
    pub consume_tps: f64,
    /// By queue.
    pub offset_table: BTreeMap<MessageQueue, OffsetWrapper>,
}

/// A group's progress in one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OffsetWrapper {
    /// Next offset to be assigned.
    pub broker_offset: i64,
    /// Next offset to be consumed.
    pub consumer_offset: i64,
    /// Store time of the message last consumed, ms.
    pub last_timestamp: i64,
    /// Next offset to be pulled.
    pub pull_offset: i64,
}

/// Answer to GET_BROKER_CONSUME_STATS.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumeStatsList {
    /// The broker.
    pub broker_addr: String,
    /// One map per group.
    pub consume_stats_list: Vec<BTreeMap<String, Vec<ConsumeStats>>>,
    /// Messages not consumed.
    pub total_diff: i64,
    /// Messages pulled and not consumed.
    pub total_inflight_diff: i64,
}

/// Body of RESET_CONSUMER_CLIENT_OFFSET and answer to INVOKE_BROKER_TO_RESET_OFFSET. Read in either form.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ResetOffsetBody {
    /// By queue.
    #[serde(deserialize_with = "map_or_list")]
    pub offset_table: BTreeMap<MessageQueue, i64>,
}

/// One row of the list form, which C++ clients need.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct QueueOffsetRow {
    broker_name: String,
    offset: i64,
    queue_id: i32,
    topic: String,
}

impl ResetOffsetBody {
    /// The body for a C++ client: a list.
    pub fn to_cpp_body(&self) -> Bytes {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct List {
            offset_table: Vec<QueueOffsetRow>,
        }
        let row = |(queue, offset): (&MessageQueue, &i64)| QueueOffsetRow {
            broker_name: queue.broker_name.clone(),
            offset: *offset,
            queue_id: queue.queue_id,
            topic: queue.topic.clone(),
        };
        crate::json::to_bytes(&List { offset_table: self.offset_table.iter().map(row).collect() })
    }
}

fn map_or_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<MessageQueue, i64>, D::Error> {
    struct Either;

    impl<'de> Visitor<'de> for Either {
        type Value = BTreeMap<MessageQueue, i64>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("a map or a list of offsets")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut table = BTreeMap::new();
            while let Some((queue, offset)) = map.next_entry()? {
                table.insert(queue, offset);
            }
            Ok(table)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut table = BTreeMap::new();
            while let Some(row) = list.next_element::<QueueOffsetRow>()? {
                table.insert(MessageQueue::new(row.topic, row.broker_name, row.queue_id), row.offset);
            }
            Ok(table)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }
    }

    deserializer.deserialize_any(Either)
}

/// Answer to GET_CONSUMER_STATUS_FROM_CLIENT and INVOKE_BROKER_TO_GET_CONSUMER_STATUS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GetConsumerStatusBody {
    /// By client, in the broker's answer.
    pub consumer_table: BTreeMap<String, BTreeMap<MessageQueue, i64>>,
    /// By queue, in a client's answer.
    pub message_queue_table: BTreeMap<MessageQueue, i64>,
}

/// Answer to QUERY_CONSUME_TIME_SPAN.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QueryConsumeTimeSpanBody {
    /// One per queue.
    pub consume_time_span_set: Vec<QueueTimeSpan>,
}

/// Times of one queue, ms.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QueueTimeSpan {
    /// Store time of the message last consumed.
    pub consume_time_stamp: i64,
    /// How far behind the group is.
    pub delay_time: i64,
    /// Store time of the newest message.
    pub max_time_stamp: i64,
    /// The queue.
    pub message_queue: MessageQueue,
    /// Store time of the oldest message.
    pub min_time_stamp: i64,
}

/// Answer to QUERY_CORRECTION_OFFSET.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QueryCorrectionOffsetBody {
    /// By queue id.
    pub correction_offsets: BTreeMap<i32, i64>,
}

/// Answer to GET_ALL_CONSUMER_OFFSET.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumerOffsetTable {
    /// Version of the table.
    pub data_version: DataVersion,
    /// By `topic@group`, then by queue id.
    pub offset_table: BTreeMap<String, BTreeMap<i32, i64>>,
}

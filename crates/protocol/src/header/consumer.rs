//! Pulling and offsets: PULL_MESSAGE 11 / LITE_PULL_MESSAGE 361, 14, 15, 29, 30, 31, 32, 36, 38.

use super::{FieldError, FieldValue, command_header};
use crate::ext_fields::ExtFields;

/// Which of two neighbours a search by time answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BoundaryType {
    /// The first offset stored at or after the time.
    #[default]
    Lower,
    /// The last offset stored at or before the time.
    Upper,
}

/// Anything but "upper", in any case, is lower; so is nothing.
impl FieldValue for BoundaryType {
    fn parse(_: &'static str, text: &str) -> Result<Self, FieldError> {
        Ok(if text.eq_ignore_ascii_case("upper") { Self::Upper } else { Self::Lower })
    }

    fn absent(_: &'static str) -> Result<Self, FieldError> {
        Ok(Self::Lower)
    }

    fn write(&self, field: &'static str, ext: &mut ExtFields) {
        ext.set_text(field, if *self == Self::Upper { "UPPER" } else { "LOWER" });
    }
}

command_header! {
    /// PULL_MESSAGE 11 and LITE_PULL_MESSAGE 361.
    PullMessageRequest {
        /// Group of the consumer.
        "consumerGroup" consumer_group: String,
        /// Topic to pull.
        "topic" topic: String,
        /// Queue to pull.
        "queueId" queue_id: i32,
        /// First offset wanted.
        "queueOffset" queue_offset: i64,
        /// Most messages wanted.
        "maxMsgNums" max_msg_nums: i32,
        /// Bits of [`crate::sys_flag::PullSysFlag`].
        "sysFlag" sys_flag: i32,
        /// Consumer offset to store, if the flag says so.
        "commitOffset" commit_offset: i64,
        /// How long the request may be parked, ms.
        "suspendTimeoutMillis" suspend_timeout_millis: i64,
        /// Filter expression, if the flag says so.
        "subscription" subscription: Option<String>,
        /// When the subscription was made, ms.
        "subVersion" sub_version: i64,
        /// `TAG` or `SQL92`.
        "expressionType" expression_type: Option<String>,
        /// Most bytes wanted.
        "maxMsgBytes" max_msg_bytes: Option<i32>,
        /// Set by proxies.
        "requestSource" request_source: Option<i32>,
        /// Set by proxies; the spelling is the wire's.
        "proxyFrowardClientId" proxy_forward_client_id: Option<String>,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// Answer to a pull, whatever its code: Java reads the first four without asking.
    PullMessageResponse {
        /// Broker id for the next pull; 0 is the master.
        "suggestWhichBrokerId" suggest_which_broker_id: i64,
        /// Where to pull next.
        "nextBeginOffset" next_begin_offset: i64,
        /// First offset of the queue.
        "minOffset" min_offset: i64,
        /// Next offset the queue will assign.
        "maxOffset" max_offset: i64,
        /// Static topics only.
        "offsetDelta" offset_delta: Option<i64>,
        /// Topic flag.
        "topicSysFlag" topic_sys_flag: Option<i32>,
        /// Group flag.
        "groupSysFlag" group_sys_flag: Option<i32>,
        /// With NO_PERMISSION: 1 broker, 2 group, 3 topic, 4 broadcasting, 5 subscription.
        "forbiddenType" forbidden_type: Option<i32>,
    }

    /// QUERY_CONSUMER_OFFSET 14.
    QueryConsumerOffsetRequest {
        /// Group.
        "consumerGroup" consumer_group: String,
        /// Topic.
        "topic" topic: String,
        /// Queue.
        "queueId" queue_id: i32,
        /// Answer 0 for a new group on a young queue; missing counts as true.
        "setZeroIfNotFound" set_zero_if_not_found: Option<bool>,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// UPDATE_CONSUMER_OFFSET 15.
    UpdateConsumerOffsetRequest {
        /// Group.
        "consumerGroup" consumer_group: String,
        /// Topic.
        "topic" topic: String,
        /// Queue.
        "queueId" queue_id: i32,
        /// The offset to store: next to be consumed.
        "commitOffset" commit_offset: i64,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// An offset: answers 14, 29, 30 and 31.
    OffsetResponse {
        /// The offset.
        "offset" offset: i64,
    }

    /// SEARCH_OFFSET_BY_TIMESTAMP 29.
    SearchOffsetRequest {
        /// Topic.
        "topic" topic: String,
        /// Queue.
        "queueId" queue_id: i32,
        /// Store time searched for, ms.
        "timestamp" timestamp: i64,
        /// Which neighbour to answer.
        "boundaryType" boundary_type: BoundaryType,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// GET_MAX_OFFSET 30, GET_MIN_OFFSET 31, GET_EARLIEST_MSG_STORETIME 32.
    QueueRequest {
        /// Topic.
        "topic" topic: String,
        /// Queue.
        "queueId" queue_id: i32,
        /// 30 only: committed or merely written; missing counts as true.
        "committed" committed: Option<bool>,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// Answer to GET_EARLIEST_MSG_STORETIME 32.
    EarliestStoreTimeResponse {
        /// ms; -1 if there is no message.
        "timestamp" timestamp: i64,
    }

    /// CONSUMER_SEND_MSG_BACK 36.
    ConsumerSendMessageBackRequest {
        /// Physical offset of the message.
        "offset" offset: i64,
        /// Group that could not consume it.
        "group" group: String,
        /// Below 0: dead letter; 0: by the number of attempts; else the level.
        "delayLevel" delay_level: i32,
        /// First offset message id.
        "originMsgId" origin_msg_id: Option<String>,
        /// Topic before the first retry.
        "originTopic" origin_topic: Option<String>,
        /// Unit mode.
        "unitMode" unit_mode: bool,
        /// The client's own limit.
        "maxReconsumeTimes" max_reconsume_times: Option<i32>,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// A consumer group by `consumerGroup`: 38, 40, 203.
    ConsumerGroupRequest {
        /// Group.
        "consumerGroup" consumer_group: String,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }
}

//! What a consumer says about itself: 307 and 309. Brokers relay these bodies untouched.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{MessageQueue, SubscriptionData, wire_enum};

wire_enum! {
    /// How consuming one message directly ended.
    ConsumeResult {
        /// Done.
        #[default]
        Success = "CR_SUCCESS",
        /// Again later.
        Later = "CR_LATER",
        /// Rolled back.
        Rollback = "CR_ROLLBACK",
        /// Committed.
        Commit = "CR_COMMIT",
        /// The listener threw.
        ThrowException = "CR_THROW_EXCEPTION",
        /// The listener returned null.
        ReturnNull = "CR_RETURN_NULL",
    }
}

/// Answer to GET_CONSUMER_RUNNING_INFO.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumerRunningInfo {
    /// Stack traces, if asked for.
    pub jstack: Option<String>,
    /// Popped queues.
    pub mq_pop_table: BTreeMap<MessageQueue, PopProcessQueueInfo>,
    /// Pulled queues.
    pub mq_table: BTreeMap<MessageQueue, ProcessQueueInfo>,
    /// `PROP_…` and the consumer's settings.
    pub properties: BTreeMap<String, String>,
    /// Rates by topic.
    pub status_table: BTreeMap<String, ConsumeStatus>,
    /// Subscriptions.
    pub subscription_set: Vec<SubscriptionData>,
    /// The user's own.
    pub user_consumer_info: BTreeMap<String, String>,
}

/// A queue being pulled. Spellings are the wire's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProcessQueueInfo {
    /// Messages in memory.
    pub cached_msg_count: i32,
    /// Highest offset in memory.
    pub cached_msg_max_offset: i64,
    /// Lowest offset in memory.
    pub cached_msg_min_offset: i64,
    /// MiB in memory.
    #[serde(rename = "cachedMsgSizeInMiB")]
    pub cached_msg_size_mib: i32,
    /// Consumer offset.
    pub commit_offset: i64,
    /// Given up.
    pub droped: bool,
    /// ms.
    pub last_consume_timestamp: i64,
    /// ms.
    pub last_lock_timestamp: i64,
    /// ms.
    pub last_pull_timestamp: i64,
    /// Orderly: locked at the broker.
    pub locked: bool,
    /// Orderly: being consumed.
    pub transaction_msg_count: i32,
    /// Orderly.
    pub transaction_msg_max_offset: i64,
    /// Orderly.
    pub transaction_msg_min_offset: i64,
    /// Orderly.
    pub try_unlock_times: i64,
}

/// A queue being popped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PopProcessQueueInfo {
    /// Given up.
    pub droped: bool,
    /// ms.
    pub last_pop_timestamp: i64,
    /// Not acknowledged yet.
    pub wait_ack_count: i32,
}

/// Rates of one topic.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumeStatus {
    /// Failed in the last hour.
    pub consume_failed_msgs: i64,
    /// Failed per second.
    #[serde(rename = "consumeFailedTPS")]
    pub consume_failed_tps: f64,
    /// Consumed per second.
    #[serde(rename = "consumeOKTPS")]
    pub consume_ok_tps: f64,
    /// ms per message.
    #[serde(rename = "consumeRT")]
    pub consume_rt: f64,
    /// ms per pull.
    #[serde(rename = "pullRT")]
    pub pull_rt: f64,
    /// Pulled per second.
    #[serde(rename = "pullTPS")]
    pub pull_tps: f64,
}

/// Answer to CONSUME_MESSAGE_DIRECTLY. Spellings are the wire's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumeMessageDirectlyResult {
    /// Orderly: commits by itself.
    pub auto_commit: bool,
    /// How it ended.
    pub consume_result: ConsumeResult,
    /// Orderly.
    pub order: bool,
    /// What went wrong.
    pub remark: Option<String>,
    /// ms.
    pub spent_time_mills: i64,
}

//! Finding messages: VIEW_MESSAGE_BY_ID 33, QUERY_MESSAGE 12, QUERY_CONSUME_QUEUE 321, RESUME_CHECK_HALF_MESSAGE 323.

use super::command_header;

command_header! {
    /// VIEW_MESSAGE_BY_ID 33.
    ViewMessageRequest {
        /// Physical offset.
        "offset" offset: i64,
        /// Topic, by newer clients.
        "topic" topic: Option<String>,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// QUERY_MESSAGE 12.
    QueryMessageRequest {
        /// Topic.
        "topic" topic: String,
        /// One of the message's KEYS, or its UNIQ_KEY.
        "key" key: String,
        /// Most messages wanted.
        "maxNum" max_num: i32,
        /// Stored at or after, ms.
        "beginTimestamp" begin_timestamp: i64,
        /// Stored at or before, ms.
        "endTimestamp" end_timestamp: i64,
        /// The key is a UNIQ_KEY.
        "_UNIQUE_KEY_QUERY" unique_key_query: bool,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// Answer to QUERY_MESSAGE.
    QueryMessageResponse {
        /// Store time of the newest indexed message, ms.
        "indexLastUpdateTimestamp" index_last_update_timestamp: i64,
        /// Its physical offset.
        "indexLastUpdatePhyoffset" index_last_update_phyoffset: i64,
    }

    /// QUERY_CONSUME_QUEUE 321.
    QueryConsumeQueueRequest {
        /// Topic.
        "topic" topic: String,
        /// Queue.
        "queueId" queue_id: i32,
        /// First offset wanted.
        "index" index: i64,
        /// Most units wanted.
        "count" count: i32,
        /// Group whose subscription to evaluate.
        "consumerGroup" consumer_group: Option<String>,
    }

    /// RESUME_CHECK_HALF_MESSAGE 323.
    ResumeCheckHalfMessageRequest {
        /// Topic.
        "topic" topic: Option<String>,
        /// Offset message id of the half message.
        "msgId" msg_id: String,
    }
}

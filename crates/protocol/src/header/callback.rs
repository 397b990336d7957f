//! What a broker asks of its clients: 39, 40 (see [`super::ConsumerGroupRequest`]), 220, 221, 307, 309, 326.

use super::command_header;

command_header! {
    /// CHECK_TRANSACTION_STATE 39, one-way; the body is the half message with its real topic.
    CheckTransactionStateRequest {
        /// The message's real topic.
        "topic" topic: Option<String>,
        /// Queue offset of the half message.
        "tranStateTableOffset" tran_state_table_offset: i64,
        /// Physical offset of the half message.
        "commitLogOffset" commit_log_offset: i64,
        /// UNIQ_KEY.
        "msgId" msg_id: Option<String>,
        /// UNIQ_KEY again.
        "transactionId" transaction_id: Option<String>,
        /// Offset message id.
        "offsetMsgId" offset_msg_id: Option<String>,
        /// Broker that asks.
        "bname" broker_name: Option<String>,
    }

    /// RESET_CONSUMER_CLIENT_OFFSET 220, one-way; the body has the offsets.
    ResetConsumerClientOffsetRequest {
        /// Topic.
        "topic" topic: String,
        /// Group.
        "group" group: String,
        /// Store time asked for, ms.
        "timestamp" timestamp: i64,
        /// Also forward.
        "isForce" is_force: bool,
    }

    /// GET_CONSUMER_RUNNING_INFO 307, by tools to the broker and by the broker to the client.
    GetConsumerRunningInfoRequest {
        /// Group.
        "consumerGroup" consumer_group: String,
        /// Client.
        "clientId" client_id: String,
        /// With stack traces.
        "jstackEnable" jstack_enable: bool,
        /// Broker meant.
        "bname" broker_name: Option<String>,
    }

    /// CONSUME_MESSAGE_DIRECTLY 309, by tools to the broker and by the broker to the client.
    ConsumeMessageDirectlyRequest {
        /// Group.
        "consumerGroup" consumer_group: String,
        /// Client; tools may leave it out.
        "clientId" client_id: Option<String>,
        /// Offset message id.
        "msgId" msg_id: Option<String>,
        /// Broker the message lies on.
        "brokerName" broker_name: Option<String>,
        /// Topic.
        "topic" topic: Option<String>,
        /// Topic flag.
        "topicSysFlag" topic_sys_flag: Option<i32>,
        /// Group flag.
        "groupSysFlag" group_sys_flag: Option<i32>,
    }

    /// PUSH_REPLY_MESSAGE_TO_CLIENT 326; the body is the reply's.
    PushReplyRequest {
        /// Group of the requester.
        "producerGroup" producer_group: String,
        /// Reply topic.
        "topic" topic: String,
        /// Template.
        "defaultTopic" default_topic: String,
        /// Queues of the template.
        "defaultTopicQueueNums" default_topic_queue_nums: i32,
        /// Queue.
        "queueId" queue_id: i32,
        /// Bits of [`crate::sys_flag::SysFlag`].
        "sysFlag" sys_flag: i32,
        /// ms.
        "bornTimestamp" born_timestamp: i64,
        /// The user's flag.
        "flag" flag: i32,
        /// Encoded properties.
        "properties" properties: Option<String>,
        /// Attempts.
        "reconsumeTimes" reconsume_times: Option<i32>,
        /// Unit mode.
        "unitMode" unit_mode: bool,
        /// `ip:port` of the replier.
        "bornHost" born_host: Option<String>,
        /// `ip:port` of the broker.
        "storeHost" store_host: Option<String>,
        /// ms.
        "storeTimestamp" store_timestamp: i64,
    }
}

//! Pop: POP_MESSAGE 200050, ACK_MESSAGE 200051, PEEK 200052, CHANGE_MESSAGE_INVISIBLETIME 200053, NOTIFICATION 200054,
//! POLLING_INFO 200055. JSON headers only: the codes have more than 16 bits.

use super::command_header;

command_header! {
    /// POP_MESSAGE 200050.
    PopMessageRequest {
        /// Group.
        "consumerGroup" consumer_group: String,
        /// Topic.
        "topic" topic: String,
        /// Queue; -1: all.
        "queueId" queue_id: i32,
        /// At most 32.
        "maxMsgNums" max_msg_nums: i32,
        /// Lease, ms.
        "invisibleTime" invisible_time: i64,
        /// How long the request may be parked, ms; 0 or less: not at all.
        "pollTime" poll_time: i64,
        /// When the client sent it, ms.
        "bornTime" born_time: i64,
        /// 0 from the beginning, 1 from the end.
        "initMode" init_mode: i32,
        /// `TAG` or `SQL92`.
        "expType" exp_type: Option<String>,
        /// Filter expression.
        "exp" exp: Option<String>,
        /// Orderly.
        "order" order: bool,
        /// The same attempt may fetch its messages again.
        "attemptId" attempt_id: Option<String>,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// Answer to POP_MESSAGE, and, `rest_num` alone, to PEEK_MESSAGE.
    PopMessageResponse {
        /// ms, the same for the batch.
        "popTime" pop_time: Option<i64>,
        /// Lease, ms.
        "invisibleTime" invisible_time: Option<i64>,
        /// 999 for orderly.
        "reviveQid" revive_qid: Option<i32>,
        /// Estimate of what is left.
        "restNum" rest_num: i64,
        /// `flag queue offset` joined by `;`.
        "startOffsetInfo" start_offset_info: Option<String>,
        /// `flag queue offset,offset` joined by `;`.
        "msgOffsetInfo" msg_offset_info: Option<String>,
        /// Orderly only.
        "orderCountInfo" order_count_info: Option<String>,
    }

    /// ACK_MESSAGE 200051.
    AckMessageRequest {
        /// Group.
        "consumerGroup" consumer_group: String,
        /// Real topic.
        "topic" topic: String,
        /// Queue.
        "queueId" queue_id: i32,
        /// POP_CK.
        "extraInfo" extra_info: String,
        /// Queue offset.
        "offset" offset: i64,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// CHANGE_MESSAGE_INVISIBLETIME 200053.
    ChangeInvisibleTimeRequest {
        /// Group.
        "consumerGroup" consumer_group: String,
        /// Real topic.
        "topic" topic: String,
        /// Queue.
        "queueId" queue_id: i32,
        /// POP_CK.
        "extraInfo" extra_info: String,
        /// Queue offset.
        "offset" offset: i64,
        /// New lease, ms.
        "invisibleTime" invisible_time: i64,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// Answer to 200053.
    ChangeInvisibleTimeResponse {
        /// ms.
        "popTime" pop_time: i64,
        /// Lease, ms.
        "invisibleTime" invisible_time: i64,
        /// As in POP_CK.
        "reviveQid" revive_qid: i32,
    }

    /// PEEK_MESSAGE 200052, POLLING_INFO 200055 (without a number).
    PeekMessageRequest {
        /// Group.
        "consumerGroup" consumer_group: String,
        /// Topic.
        "topic" topic: String,
        /// Queue.
        "queueId" queue_id: i32,
        /// Most messages wanted.
        "maxMsgNums" max_msg_nums: Option<i32>,
    }

    /// Answer to POLLING_INFO 200055.
    PollingInfoResponse {
        /// Requests parked.
        "pollingNum" polling_num: i32,
    }

    /// NOTIFICATION 200054.
    NotificationRequest {
        /// Group.
        "consumerGroup" consumer_group: String,
        /// Topic.
        "topic" topic: String,
        /// Queue; -1: all.
        "queueId" queue_id: i32,
        /// How long the request may be parked, ms.
        "pollTime" poll_time: i64,
        /// When the client sent it, ms.
        "bornTime" born_time: i64,
        /// Orderly.
        "order" order: bool,
        /// As in POP_MESSAGE.
        "attemptId" attempt_id: Option<String>,
        /// As in POP_MESSAGE.
        "expType" exp_type: Option<String>,
        /// As in POP_MESSAGE.
        "exp" exp: Option<String>,
    }

    /// Answer to 200054.
    NotificationResponse {
        /// Whether there is a message.
        "hasMsg" has_msg: bool,
        /// Whether there was no room to park.
        "pollingFull" polling_full: bool,
    }
}

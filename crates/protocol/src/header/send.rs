//! Sending: SEND_MESSAGE 10, SEND_MESSAGE_V2 310, SEND_BATCH_MESSAGE 320, SEND_REPLY_MESSAGE 324 / 325,
//! END_TRANSACTION 37, RECALL_MESSAGE 370.

use super::{CommandHeader, FieldError, FieldValue, command_header, read_field};
use crate::code::RequestCode;
use crate::command::RemotingCommand;
use crate::ext_fields::ExtFields;

/// On a send, beside the header's own fields: the unique keys of these messages are no other messages', so what is stored
/// under one already is not stored again. Our client's; RocketMQ's brokers do not look at it.
pub const IDEMPOTENT: &str = "raftmqIdempotent";

/// On the answer to a send: all of it was stored before, where the answer says.
pub const DUPLICATE: &str = "raftmqDuplicate";

command_header! {
    /// A send, under the long field names of codes 10 and 324. [`SendMessageRequestV2`] is the same under short ones.
    SendMessageRequest {
        /// Group of the producer.
        "producerGroup" producer_group: String,
        /// Topic to send to.
        "topic" topic: String,
        /// Template for creating the topic: `TBW102`.
        "defaultTopic" default_topic: String,
        /// Queues of a topic created on demand.
        "defaultTopicQueueNums" default_topic_queue_nums: i32,
        /// Below 0: the broker picks a queue.
        "queueId" queue_id: i32,
        /// Bits of [`crate::sys_flag::SysFlag`].
        "sysFlag" sys_flag: i32,
        /// When the producer made the message, ms.
        "bornTimestamp" born_timestamp: i64,
        /// The user's flag, opaque.
        "flag" flag: i32,
        /// Encoded properties.
        "properties" properties: Option<String>,
        /// How often the message was consumed in vain.
        "reconsumeTimes" reconsume_times: Option<i32>,
        /// Unit mode.
        "unitMode" unit_mode: bool,
        /// Only on sends to `%RETRY%` topics.
        "maxReconsumeTimes" max_reconsume_times: Option<i32>,
        /// The body is a batch: decides instead of the code.
        "batch" batch: bool,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// What every answer to a send carries; the first four only if the message was stored.
    SendMessageResponse {
        /// Offset message id; a batch has one per message, joined by commas.
        "msgId" msg_id: Option<String>,
        /// Queue the message went to.
        "queueId" queue_id: Option<i32>,
        /// Its place there; of a batch, the first one's.
        "queueOffset" queue_offset: Option<i64>,
        /// The message's UNIQ_KEY.
        "transactionId" transaction_id: Option<String>,
        /// Only for inner batches.
        "batchUniqId" batch_uniq_id: Option<String>,
        /// For timed messages.
        "recallHandle" recall_handle: Option<String>,
        /// `DefaultRegion`; Java reads it without asking whether there are fields at all.
        "MSG_REGION" region: Option<String>,
        /// `true` or `false`; missing counts as true.
        "TRACE_ON" trace_on: Option<bool>,
    }

    /// END_TRANSACTION 37, always one-way.
    EndTransactionRequest {
        /// The message's real topic.
        "topic" topic: Option<String>,
        /// Group of the producer.
        "producerGroup" producer_group: String,
        /// Queue offset of the half message.
        "tranStateTableOffset" tran_state_table_offset: i64,
        /// Physical offset of the half message.
        "commitLogOffset" commit_log_offset: i64,
        /// 8 commit, 12 rollback, 0 unknown: see [`crate::sys_flag::TransactionType`].
        "commitOrRollback" commit_or_rollback: i32,
        /// Whether a check asked for it.
        "fromTransactionCheck" from_transaction_check: bool,
        /// The message's UNIQ_KEY.
        "msgId" msg_id: Option<String>,
        /// As the SEND answered it.
        "transactionId" transaction_id: Option<String>,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// RECALL_MESSAGE 370.
    RecallMessageRequest {
        /// Group of the producer.
        "producerGroup" producer_group: Option<String>,
        /// Topic of the message.
        "topic" topic: String,
        /// As the SEND answered it.
        "recallHandle" recall_handle: String,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// Answer to RECALL_MESSAGE.
    RecallMessageResponse {
        /// UNIQ_KEY of the message recalled.
        "msgId" msg_id: String,
    }
}

/// A send under the one-letter field names of codes 310, 320 and 325.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SendMessageRequestV2(pub SendMessageRequest);

impl CommandHeader for SendMessageRequestV2 {
    const FIELDS: &'static [&'static str] = &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"];

    fn read_from(ext: &ExtFields) -> Result<Self, FieldError> {
        Ok(Self(SendMessageRequest {
            producer_group: read_field(ext, "a")?,
            topic: read_field(ext, "b")?,
            default_topic: read_field(ext, "c")?,
            default_topic_queue_nums: read_field(ext, "d")?,
            queue_id: read_field(ext, "e")?,
            sys_flag: read_field(ext, "f")?,
            born_timestamp: read_field(ext, "g")?,
            flag: read_field(ext, "h")?,
            properties: read_field(ext, "i")?,
            reconsume_times: read_field(ext, "j")?,
            unit_mode: read_field(ext, "k")?,
            max_reconsume_times: read_field(ext, "l")?,
            batch: read_field(ext, "m")?,
            broker_name: read_field(ext, "n")?,
        }))
    }

    fn write_to(&self, ext: &mut ExtFields) {
        let Self(send) = self;
        send.producer_group.write("a", ext);
        send.topic.write("b", ext);
        send.default_topic.write("c", ext);
        send.default_topic_queue_nums.write("d", ext);
        send.queue_id.write("e", ext);
        send.sys_flag.write("f", ext);
        send.born_timestamp.write("g", ext);
        send.flag.write("h", ext);
        send.properties.write("i", ext);
        send.reconsume_times.write("j", ext);
        send.unit_mode.write("k", ext);
        send.max_reconsume_times.write("l", ext);
        send.batch.write("m", ext);
        send.broker_name.write("n", ext);
    }
}

impl SendMessageRequest {
    /// Reads the header of a send under the names that its code uses.
    pub fn of(command: &RemotingCommand) -> Result<Self, FieldError> {
        match command.request_code() {
            RequestCode::SEND_MESSAGE | RequestCode::SEND_REPLY_MESSAGE => command.header(),
            _ => command.header().map(|SendMessageRequestV2(send)| send),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_carry_the_same_send() {
        let send = SendMessageRequest {
            producer_group: "pg".into(),
            topic: "T".into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: 4,
            queue_id: -1,
            born_timestamp: 1_700_000_000_000,
            properties: Some("k\u{1}v\u{2}".into()),
            reconsume_times: Some(0),
            batch: true,
            ..SendMessageRequest::default()
        };
        let v1 = RemotingCommand::request_with(RequestCode::SEND_MESSAGE, &send);
        let v2 = RemotingCommand::request_with(RequestCode::SEND_BATCH_MESSAGE, &SendMessageRequestV2(send.clone()));
        assert_eq!(v1.ext.get("batch"), Some("true"));
        assert_eq!(v2.ext.get("m"), Some("true"));
        assert_eq!(SendMessageRequest::of(&v1), Ok(send.clone()));
        assert_eq!(SendMessageRequest::of(&v2), Ok(send));
    }

    #[test]
    fn errors_name_the_field_and_booleans_are_never_wrong() {
        let mut request = RemotingCommand::request_with(
            RequestCode::SEND_MESSAGE_V2,
            &SendMessageRequestV2(SendMessageRequest {
                producer_group: "pg".into(),
                topic: "T".into(),
                default_topic: "TBW102".into(),
                ..SendMessageRequest::default()
            }),
        );
        for (text, value) in [("TRUE", true), ("1", true), ("0", false), ("", false), ("yes", false)] {
            request.ext.set_text("k", text);
            assert_eq!(SendMessageRequest::of(&request).unwrap().unit_mode, value, "{text}");
        }
        request.ext.set_text("j", "");
        assert_eq!(SendMessageRequest::of(&request).unwrap().reconsume_times, None);
        request.ext.set_text("e", "four");
        let error = SendMessageRequest::of(&request).unwrap_err();
        assert_eq!(error, FieldError::Invalid { field: "e", expected: "an i32", text: "four".into() });
        request.ext.set_text("b", "");
        assert_eq!(SendMessageRequest::of(&request), Err(FieldError::Missing("b")));
    }
}

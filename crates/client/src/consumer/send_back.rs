//! Giving messages back: a message that could not be consumed goes to the broker, which delivers it again later through
//! the group's retry topic, or puts it into the dead-letter queue.

use std::time::Duration;

use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::ConsumerSendMessageBackRequest;
use protocol::names;
use protocol::properties::{self, Properties};
use protocol::sys_flag::SysFlag;

use super::handler::When;
use super::session::Session;
use crate::builder::is_not_now;
use crate::errors::{RequestError, SendError};
use crate::message::ReceivedMessage;
use crate::producer::Outgoing;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// RocketMQ's retry limit, for sends that must name one.
const DEFAULT_MAX_RECONSUME_TIMES: i32 = 16;
/// The delay level of a first retry; each further one takes the next.
const FIRST_RETRY_LEVEL: i32 = 3;

/// Gives a message back; returns once a broker has acknowledged that. Until then the offset must not move past it.
///
/// May give it back twice if an answer is lost: consumers get every message at least once.
pub(crate) async fn give_back(session: &Session, message: &ReceivedMessage, when: When) {
    let mut pause = FIRST_PAUSE;
    while let Err(error) = give_back_once(session, message, when).await {
        let (topic, offset) = (&message.queue().topic, message.queue_offset());
        tracing::warn!(group = session.group(), topic, offset, %error, "a message could not be given back yet");
        session.client.0.env.clock.sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn give_back_once(session: &Session, message: &ReceivedMessage, when: When) -> Result<(), RequestError> {
    let own_limit = session.settings.max_reconsume_times;
    let delay_level = match when {
        When::Later | When::NotBegun => 0,
        When::AtLevel(level) => level.into(),
        When::Never => -1,
        // CONSUMER_SEND_MSG_BACK knows levels only.
        When::After(_) => match send_copy(session, message, 1, own_limit, when).await {
            // A longer delay than the broker takes, for example: its own is better than none.
            Err(RequestError::Refused { .. }) => 0,
            sent => return sent,
        },
    };
    let queue = message.queue();
    let header = ConsumerSendMessageBackRequest {
        offset: message.physical_offset(),
        group: session.group().to_owned(),
        delay_level,
        origin_msg_id: Some(message.offset_message_id()),
        origin_topic: Some(message.topic().to_owned()),
        unit_mode: false,
        max_reconsume_times: own_limit,
        broker_name: Some(queue.broker_name.clone()),
    };
    let request = RemotingCommand::request_with(RequestCode::CONSUMER_SEND_MSG_BACK, &header);
    match session.client.ask_group(&queue.topic, &queue.broker_name, request).await {
        // The broker cannot do it, because it has the message no more, for example. This client still has it.
        Err(RequestError::Refused { code, .. }) if !is_not_now(code) => {
            send_copy(session, message, 1, Some(own_limit.unwrap_or(DEFAULT_MAX_RECONSUME_TIMES)), when).await
        }
        other => other.map(|_| ()),
    }
}

/// Puts a message that an orderly consumer has given up into the dead-letter queue; returns once it is there. It failed
/// `attempts` times here.
pub(crate) async fn give_up(session: &Session, message: &ReceivedMessage, attempts: i32) {
    let mut pause = FIRST_PAUSE;
    // A limit below the count makes the broker choose the dead-letter queue.
    let most = message.reconsume_times().saturating_add(attempts) - 1;
    while let Err(error) = send_copy(session, message, attempts, Some(most), When::Never).await {
        let (topic, offset) = (&message.queue().topic, message.queue_offset());
        tracing::warn!(group = session.group(), topic, offset, %error, "a message could not be given up yet");
        session.client.0.env.clock.sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Sends the message anew to the group's retry topic, as one that has failed `attempts` times more. Without a limit of its
/// own the group's counts.
async fn send_copy(
    session: &Session,
    message: &ReceivedMessage,
    attempts: i32,
    max_reconsume_times: Option<i32>,
    when: When,
) -> Result<(), RequestError> {
    let topic = names::retry_topic(session.group());
    let reconsume_times = message.reconsume_times().saturating_add(attempts);
    let limit = match when {
        When::Never => Some(max_reconsume_times.unwrap_or(i32::MAX).min(reconsume_times - 1)),
        _ => max_reconsume_times,
    };
    let mut copied = copied_properties(message);
    match when {
        When::AtLevel(level) => copied.set(properties::DELAY, level),
        When::After(delay) => copied.set(properties::TIMER_DELAY_MS, delay.as_millis()),
        _ => copied.set(properties::DELAY, FIRST_RETRY_LEVEL.saturating_add(message.reconsume_times())),
    }
    let compressed = message.still_compressed().map(|kind| SysFlag(0).with_compression(kind));
    let outgoing = Outgoing {
        topic: &topic,
        body: message.body().clone(),
        properties: copied.into_encoded(),
        unique_key: message.unique_key().unwrap_or_default().to_owned(),
        flag: message.flag(),
        sys_flag: compressed.unwrap_or_default().0,
        born_ms: message.born_ms(),
        reconsume_times,
        max_reconsume_times: limit,
        code: RequestCode::SEND_MESSAGE_V2,
        // An earlier copy may have been sent under the same key a minute ago; this is another.
        is_alone: false,
    };
    match session.give_back.send_back(&outgoing).await {
        Ok(_) => Ok(()),
        Err(SendError::Refused { code, remark }) => Err(RequestError::Refused { code, remark }),
        Err(error) => Err(RequestError::Unknown(error.to_string())),
    }
}

fn copied_properties(message: &ReceivedMessage) -> Properties {
    let mut copied = Properties::parse(message.encoded_properties());
    for stale in [
        properties::TRAN_MSG,
        properties::REAL_TOPIC,
        properties::REAL_QID,
        properties::DELAY,
        properties::TIMER_DELAY_SEC,
        properties::TIMER_DELAY_MS,
        properties::TIMER_DELIVER_MS,
    ] {
        copied.remove(stale);
    }
    copied.set(properties::RETRY_TOPIC, message.topic());
    if message.property(properties::ORIGIN_MESSAGE_ID).is_none() {
        copied.set(properties::ORIGIN_MESSAGE_ID, message.offset_message_id());
    }
    copied
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protocol::body::MessageQueue;
    use protocol::record::NewRecord;

    use super::*;

    #[test]
    fn a_copy_remembers_where_it_came_from_and_not_how_it_was_delayed() {
        let record = NewRecord {
            topic: "T",
            queue_id: 0,
            flag: 0,
            sys_flag: SysFlag(0),
            born_timestamp: 1,
            born_host: "10.0.0.1:1".parse().unwrap(),
            store_timestamp: 2,
            store_host: "10.0.0.2:10911".parse().unwrap(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: b"b",
            properties: "UNIQ_KEY\u{1}K\u{2}DELAY\u{1}1\u{2}REAL_TOPIC\u{1}T\u{2}own\u{1}x\u{2}",
        };
        let queue = Arc::new(MessageQueue::new("T", "b", 0));
        let message = ReceivedMessage::from_record(&record.to_bytes().unwrap(), &queue).unwrap();
        let copied = copied_properties(&message);
        let get = |name| copied.get(name);
        assert_eq!((get("UNIQ_KEY"), get("own"), get("RETRY_TOPIC")), (Some("K"), Some("x"), Some("T")));
        assert_eq!((get("DELAY"), get("REAL_TOPIC")), (None, None));
        assert_eq!(get("ORIGIN_MESSAGE_ID"), Some("0A00000200002A9F0000000000000000"));
    }
}

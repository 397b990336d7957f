//! One pull: the request, whom to ask, and what the answer means. Push and pull consumers stand on it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::body::{MessageQueue, SubscriptionData};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{PullMessageRequest, PullMessageResponse};
use protocol::record;
use protocol::sql92::SqlFilter;
use protocol::sys_flag::PullSysFlag;
use protocol::tag::TagExpression;
use remoting::CallError;

use crate::builder::Client;
use crate::errors::{InvalidMessage, RequestError, RouteError};
use crate::message::ReceivedMessage;
use crate::network::Lane;
use crate::routes::Broker;

/// How long a pull of a queue without messages may be parked. RocketMQ's consumers say 15 s; a shorter time makes a
/// consumer notice sooner that a leader is gone without having said so.
pub(crate) const LONG_POLL: Duration = Duration::from_secs(5);
/// How much longer an answer may take before it counts as lost: RocketMQ's brokers look at parked pulls every 5 s only.
pub(crate) const PARKING_GRACE: Duration = Duration::from_secs(7);

/// What a consumer wants of a topic.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    pub(crate) data: SubscriptionData,
    /// `None`: selected by SQL92, which only the broker evaluates, by what it stored.
    tags: Option<TagExpression>,
}

impl Subscription {
    pub(crate) fn by_tags(topic: &str, expression: &str, version_ms: i64) -> Result<Subscription, InvalidMessage> {
        let data = SubscriptionData::by_tags(topic, expression, version_ms)?;
        let tags = Some(TagExpression::parse(expression)?);
        Ok(Subscription { data, tags })
    }

    pub(crate) fn by_sql(topic: &str, expression: &str, version_ms: i64) -> Result<Subscription, InvalidMessage> {
        SqlFilter::parse(expression)?;
        Ok(Subscription { data: SubscriptionData::by_sql(topic, expression, version_ms), tags: None })
    }

    /// Whether the message is wanted. Brokers select by hash, so a tag with an equal hash may have come along.
    pub(crate) fn wants(&self, message: &ReceivedMessage) -> bool {
        self.tags.as_ref().is_none_or(|tags| tags.matches(message.tag()))
    }
}

/// A pull to be made.
#[derive(Debug, Clone)]
pub(crate) struct Pull<'a> {
    pub(crate) group: &'a str,
    pub(crate) queue: &'a Arc<MessageQueue>,
    pub(crate) offset: i64,
    pub(crate) max_messages: i32,
    /// How long a broker may park it.
    pub(crate) wait: Duration,
    pub(crate) subscription: &'a Subscription,
    /// Broker id that the last answer suggested.
    pub(crate) suggested_id: i64,
    /// Failures since the last answer: each moves on to another member of the broker group.
    pub(crate) failures: u32,
}

/// What an answer to a pull means.
#[derive(Debug)]
pub(crate) enum Pulled {
    /// Messages, all of which match; the next pull begins at `next`.
    Found { messages: Vec<ReceivedMessage>, next: i64, suggested_id: i64 },
    /// Nothing that matches up to `next`.
    Nothing { next: i64, suggested_id: i64 },
    /// The offset is outside the queue; `to` is the nearest inside.
    OffsetMoved { to: i64 },
}

impl Pull<'_> {
    /// Makes the pull.
    ///
    /// Cancel-safe: a pull changes nothing, and an answer that comes too late is dropped.
    pub(crate) async fn make(&self, client: &Client) -> Result<Pulled, RequestError> {
        let queue = self.queue;
        let route = client.0.routes.get(&queue.topic).await?;
        let broker = route.broker(&queue.broker_name).ok_or_else(|| RouteError::NoBroker {
            topic: queue.topic.clone(),
            broker_name: queue.broker_name.clone(),
        })?;
        let member = &broker.members[member_to_ask(broker, self.suggested_id, self.failures)];
        let lane = Lane::Of(queue.queue_id.unsigned_abs() as usize);
        let called = client.0.network.call(member, lane, self.request(), self.wait + PARKING_GRACE).await;
        match called {
            Ok(response) => self.read(&response),
            // A pull changes nothing: whether it was sent does not matter.
            Err(CallError::NotSent(reason) | CallError::Unknown(reason)) => Err(RequestError::NotSent(reason)),
        }
    }

    fn request(&self) -> RemotingCommand {
        let data = &self.subscription.data;
        // The subscription travels with every pull: a broker that has just become leader may not know the group yet.
        let suspend = if self.wait.is_zero() { 0 } else { PullSysFlag::SUSPEND };
        let header = PullMessageRequest {
            consumer_group: self.group.to_owned(),
            topic: self.queue.topic.clone(),
            queue_id: self.queue.queue_id,
            queue_offset: self.offset,
            max_msg_nums: self.max_messages,
            sys_flag: PullSysFlag::SUBSCRIPTION | suspend,
            commit_offset: 0,
            suspend_timeout_millis: self.wait.as_millis() as i64,
            subscription: Some(data.sub_string.clone()),
            sub_version: data.sub_version,
            expression_type: Some(data.expression_type.clone()),
            broker_name: Some(self.queue.broker_name.clone()),
            ..PullMessageRequest::default()
        };
        RemotingCommand::request_with(RequestCode::PULL_MESSAGE, &header)
    }

    fn read(&self, response: &RemotingCommand) -> Result<Pulled, RequestError> {
        let code = response.response_code();
        if !matches!(
            code,
            ResponseCode::SUCCESS
                | ResponseCode::PULL_NOT_FOUND
                | ResponseCode::PULL_RETRY_IMMEDIATELY
                | ResponseCode::PULL_OFFSET_MOVED
        ) {
            return Err(RequestError::refused(response));
        }
        let header: PullMessageResponse =
            response.header().map_err(|error| RequestError::Malformed(error.to_string()))?;
        let (next, suggested_id) = (header.next_begin_offset, header.suggest_which_broker_id);
        Ok(match code {
            ResponseCode::PULL_OFFSET_MOVED => Pulled::OffsetMoved { to: next },
            ResponseCode::SUCCESS => {
                let messages = self.messages(&response.body)?;
                if messages.last().is_some_and(|last| next <= last.queue_offset()) {
                    let reason = format!("the next offset {next} is not behind the messages that came");
                    return Err(RequestError::Malformed(reason));
                }
                Pulled::Found { messages, next, suggested_id }
            }
            _ => Pulled::Nothing { next, suggested_id },
        })
    }

    /// The records of a body in order, without those that came by mistake.
    fn messages(&self, body: &Bytes) -> Result<Vec<ReceivedMessage>, RequestError> {
        let malformed = |error: record::RecordError| RequestError::Malformed(error.to_string());
        let mut messages: Vec<ReceivedMessage> = Vec::new();
        for record in record::split(body) {
            let message = ReceivedMessage::from_record(&record.map_err(malformed)?, self.queue).map_err(malformed)?;
            let is_in_order = messages.last().is_none_or(|last| last.queue_offset() < message.queue_offset());
            if !is_in_order || message.queue_offset() < self.offset {
                return Err(RequestError::Malformed(format!("offset {} out of order", message.queue_offset())));
            }
            messages.push(message);
        }
        messages.retain(|message| self.subscription.wants(message));
        Ok(messages)
    }
}

/// Which member of the broker group to ask: the suggested one, else the leader; after failures the next in turn.
fn member_to_ask(broker: &Broker, suggested_id: i64, failures: u32) -> usize {
    let first = broker.ids.iter().position(|id| *id == suggested_id).unwrap_or(0);
    (first + failures as usize) % broker.members.len()
}

#[cfg(test)]
mod tests {
    use protocol::record::{HeadPatch, NewRecord};
    use protocol::sys_flag::SysFlag;

    use super::*;
    use crate::network::Endpoint;

    fn record(queue_offset: i64, tag: &str) -> Bytes {
        let properties = format!("TAGS\u{1}{tag}\u{2}");
        let record = NewRecord {
            topic: "T",
            queue_id: 0,
            flag: 0,
            sys_flag: SysFlag(0),
            born_timestamp: 1,
            born_host: "10.0.0.1:1".parse().unwrap(),
            store_timestamp: 2,
            store_host: "10.0.0.2:2".parse().unwrap(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: b"b",
            properties: &properties,
        };
        let mut bytes = record.to_bytes().unwrap().to_vec();
        HeadPatch { queue_offset, ..HeadPatch::default() }.apply(&mut bytes).unwrap();
        bytes.into()
    }

    fn read(code: ResponseCode, next: i64, records: &[Bytes]) -> Result<Pulled, RequestError> {
        let queue = Arc::new(MessageQueue::new("T", "b", 0));
        let subscription = Subscription::by_tags("T", "Aa", 1).unwrap();
        let pull = Pull {
            group: "g",
            queue: &queue,
            offset: 5,
            max_messages: 32,
            wait: Duration::from_secs(15),
            subscription: &subscription,
            suggested_id: 0,
            failures: 0,
        };
        let header = PullMessageResponse { next_begin_offset: next, ..PullMessageResponse::default() };
        let body = records.concat();
        pull.read(&pull.request().reply_with(code, &header).with_body(body))
    }

    #[test]
    fn a_tag_with_the_same_hash_is_dropped_and_the_offset_moves_past_it() {
        let records = [record(5, "Aa"), record(7, "BB"), record(8, "Aa")];
        let Ok(Pulled::Found { messages, next, .. }) = read(ResponseCode::SUCCESS, 11, &records) else {
            panic!("found")
        };
        assert_eq!(messages.iter().map(ReceivedMessage::queue_offset).collect::<Vec<_>>(), [5, 8]);
        assert_eq!(next, 11);
    }

    #[test]
    fn codes_say_how_to_go_on() {
        assert!(matches!(read(ResponseCode::PULL_NOT_FOUND, 5, &[]), Ok(Pulled::Nothing { next: 5, .. })));
        assert!(matches!(read(ResponseCode::PULL_RETRY_IMMEDIATELY, 9, &[]), Ok(Pulled::Nothing { next: 9, .. })));
        assert!(matches!(read(ResponseCode::PULL_OFFSET_MOVED, 2, &[]), Ok(Pulled::OffsetMoved { to: 2 })));
        assert!(matches!(read(ResponseCode::NO_PERMISSION, 0, &[]), Err(RequestError::Refused { .. })));
    }

    #[test]
    fn an_answer_that_contradicts_itself_is_not_believed() {
        for (next, records) in [
            (11, vec![record(4, "Aa")]),
            (11, vec![record(8, "Aa"), record(8, "Aa")]),
            (8, vec![record(8, "Aa")]),
            (11, vec![record(8, "Aa").slice(..20)]),
        ] {
            let read = read(ResponseCode::SUCCESS, next, &records);
            assert!(matches!(read, Err(RequestError::Malformed(_))), "{read:?}");
        }
    }

    #[test]
    fn failures_move_on_to_another_member() {
        let members = (0..3).map(|id| Arc::new(Endpoint::new(&format!("b-{id}:1"), 1))).collect();
        let broker = Broker { name: "b".into(), has_master: true, members, ids: vec![0, 1, 2] };
        assert_eq!(
            (member_to_ask(&broker, 0, 0), member_to_ask(&broker, 2, 0), member_to_ask(&broker, 9, 0)),
            (0, 2, 0)
        );
        assert_eq!((member_to_ask(&broker, 0, 1), member_to_ask(&broker, 2, 1)), (1, 0));
    }
}

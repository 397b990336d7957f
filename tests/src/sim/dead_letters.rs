//! Clients that give messages up, most of them again and again, as consumers do that crash before their offset is stored, or that
//! hear no answer; and the judge of that: a message that was given up lies among its group's dead letters, once. Whether it is
//! given back or sent anew, as RocketMQ's orderly consumers do, makes no difference.

use std::collections::{BTreeMap, BTreeSet};

use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{ConsumerSendMessageBackRequest, SendMessageRequest, SendMessageRequestV2};
use protocol::message_id::MessageId;
use protocol::names::retry_topic;
use protocol::properties::{self, Properties};
use protocol::record::RecordView;

use super::clients::{Caller, value_of};
use super::history::{Copies, End, GivenUp, History};
use super::judge::Verdict;
use super::workload::TOPIC;

/// Who gives up.
pub const GIVING_GROUP: &str = "givers";

/// The queue whose messages are given up: one, so that clients meet.
const QUEUE: i32 = 0;

impl Caller {
    /// Reads a queue from its beginning, and gives up some of it, at whichever replica answers.
    pub async fn give_up(mut self) {
        let admin = self.admin();
        let mut next = 0;
        while !self.work.stops.get() {
            match admin.pull(&self.broker(), GIVING_GROUP, TOPIC, QUEUE, next, 16).await {
                Ok(pulled) => {
                    for record in &pulled.records {
                        let view = RecordView::parse(record).expect("a broker sends whole records");
                        let value = value_of(view.body());
                        // The same ones for every client.
                        if value.is_multiple_of(3) {
                            for _ in 0..=self.rng.below(3) {
                                self.give_one_up(&view, value).await;
                            }
                        }
                    }
                    next = pulled.bounds.next_begin_offset;
                }
                Err(_) => self.try_next(),
            }
            self.pause().await;
        }
    }

    async fn give_one_up(&mut self, message: &RecordView<'_>, value: u64) {
        let request = if self.rng.chance(1, 2) { given_back(message) } else { sent_anew(message) };
        let at = self.work.invoke(|history, _| {
            history.given_up.push(GivenUp { value, end: End::Info });
            history.given_up.len() - 1
        });
        let end = match self.call(request).await {
            Ok(_) => End::Ok((), self.work.ends(value)),
            Err(lost) => lost.end(),
        };
        self.work.history.borrow_mut().given_up[at].end = end;
    }
}

/// What a client calls a message, as the replica has shown it that it has it from.
fn name_of(message: &RecordView<'_>) -> String {
    let (store_host, physical_offset) = (message.store_host(), message.physical_offset());
    MessageId { store_host, physical_offset }.to_string()
}

fn given_back(message: &RecordView<'_>) -> RemotingCommand {
    let header = ConsumerSendMessageBackRequest {
        offset: message.physical_offset(),
        group: GIVING_GROUP.to_owned(),
        delay_level: -1,
        origin_msg_id: Some(name_of(message)),
        origin_topic: Some(TOPIC.to_owned()),
        ..ConsumerSendMessageBackRequest::default()
    };
    RemotingCommand::request_with(RequestCode::CONSUMER_SEND_MSG_BACK, &header)
}

/// Tried more often than any group allows.
fn sent_anew(message: &RecordView<'_>) -> RemotingCommand {
    let mut copied = Properties::parse(message.properties());
    copied.set(properties::RETRY_TOPIC, TOPIC);
    copied.set(properties::ORIGIN_MESSAGE_ID, name_of(message));
    let header = SendMessageRequestV2(SendMessageRequest {
        producer_group: GIVING_GROUP.to_owned(),
        topic: retry_topic(GIVING_GROUP),
        default_topic: "TBW102".to_owned(),
        default_topic_queue_nums: 1,
        born_timestamp: message.born_timestamp(),
        properties: Some(copied.into_encoded()),
        reconsume_times: Some(i32::MAX),
        ..SendMessageRequest::default()
    });
    let body = message.body().to_vec();
    RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &header).with_body(body)
}

/// Nothing is a dead letter that nobody gave up, or twice, unless it was stored twice; and what was acknowledged is one.
pub(super) fn dead_letters_lie_once(history: &History) -> Verdict {
    // Whether somebody was told that it lies there, of all that may.
    let mut given_up: BTreeMap<u64, bool> = BTreeMap::new();
    for given in history.given_up.iter().filter(|given| given.end != End::Fail) {
        *given_up.entry(given.value).or_default() |= given.end != End::Info;
    }
    let stored_twice = |value| history.appends.iter().any(|one| one.value == value && one.copies == Copies::Any);
    for (replica, held) in &history.dead_letters {
        let mut lie_there = BTreeSet::new();
        for (offset, value) in (held.first..).zip(&held.values) {
            if !given_up.contains_key(value) {
                return Err(format!("value {value}, dead letter {offset} on {replica}: nobody has given it up"));
            }
            if !lie_there.insert(*value) && !stored_twice(*value) {
                return Err(format!("value {value}, dead letter {offset} on {replica}, lies there before"));
            }
        }
        let is_missing = |value: &u64| !lie_there.contains(value) && held.first == 0;
        if let Some((lost, _)) = given_up.iter().find(|(value, is_known)| **is_known && is_missing(value)) {
            return Err(format!("value {lost} was given up, and is no dead letter on {replica}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::history::{Append, Held};
    use super::*;

    fn history(given_up: &[(u64, End<()>)], first: u64, values: &[u64]) -> History {
        History {
            given_up: given_up.iter().map(|(value, end)| GivenUp { value: *value, end: end.clone() }).collect(),
            dead_letters: [("a".to_owned(), Held { first, values: values.to_vec() })].into(),
            ..History::default()
        }
    }

    fn judged(given_up: &[(u64, End<()>)], first: u64, values: &[u64]) -> Verdict {
        dead_letters_lie_once(&history(given_up, first, values))
    }

    #[test]
    fn dead_letters_that_are_twice_there_or_lost_or_made_up_are_told() {
        let given = [(7, End::Ok((), 1)), (7, End::Ok((), 2)), (8, End::Info), (9, End::Fail)];
        assert_eq!(judged(&given, 0, &[7]), Ok(()));
        assert_eq!(judged(&given, 0, &[8, 7]), Ok(()), "nobody knows of 8");
        assert_eq!(judged(&given, 1, &[8]), Ok(()), "retention has taken 7");
        for (values, what) in [
            (&[7, 8, 7][..], "value 7, dead letter 2 on a, lies there before"),
            (&[8], "value 7 was given up, and is no dead letter on a"),
            (&[7, 9], "value 9, dead letter 1 on a: nobody has given it up"),
            (&[7, 6], "value 6, dead letter 1 on a: nobody has given it up"),
        ] {
            assert_eq!(judged(&given, 0, values), Err(what.to_owned()));
        }
        let mut twice = history(&given, 0, &[7, 8, 7]);
        twice.appends.push(Append { queue: 0, value: 7, copies: Copies::Any, invoked: 0, end: End::Info });
        assert_eq!(dead_letters_lie_once(&twice), Ok(()), "two messages, as far as the broker could know");
    }
}

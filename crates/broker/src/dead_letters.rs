//! Dead letters: a message that was given up lies in its group's dead-letter queue once, however often it is given up.
//!
//! A consumer that crashes between giving a message back and storing its offset gets the message again, and gives it back
//! again; both may end here. A message is known by where its first record was stored, which it carries from its first retry
//! on ([`properties::ORIGIN`]). Under that it stands in the index as if it were one of its keys, so that the index knows which
//! messages lie in the queue. Whoever places one holds its hashes meanwhile ([`raft_store::keys_in_flight`]), so that what was
//! placed before is seen.
//!
//! Clients also send messages anew themselves (orderly consumers that give up; others whose CONSUMER_SEND_MSG_BACK failed) and
//! may do so twice if an answer is lost. Nothing that such a copy says of places is trusted alone: it is known by its unique key
//! and by the message that it says it copies. Java's clients say the unique key again, and producers may send different messages
//! under one: so topic and body must be the same, too. What is not surely the same message is kept.

use std::time::Duration;

use protocol::message_id::MessageId;
use protocol::properties;
use protocol::record::RecordView;
use raft_store::entry::RecordOperation;
use raft_store::planted::{self, Bug};
use raft_store::position::{PhysicalOffset, QueueId, Timestamp};

use crate::broker::BrokerGroup;
use crate::error::RequestError;
use crate::send::{Stored, key_hash};

/// Messages of one hash that are looked at: more than one only if two hashes are equal by chance, or different messages were
/// sent under one unique key.
const LOOKED_AT: usize = 64;

/// How long a message waits for the same one that is being placed; longer than that takes if all is well.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// The hash that a dead letter has beside those of its keys. No key can have it: none has such characters.
fn origin_hash(topic: &str, origin: PhysicalOffset) -> u64 {
    key_hash(topic, &format!("\u{1}origin\u{1}{}", origin.0))
}

/// Where a message's first record was stored, as a retry of it says and its dead letter.
fn origin_in(properties: &str) -> Option<PhysicalOffset> {
    properties::get(properties, properties::ORIGIN)?.parse().ok().map(PhysicalOffset)
}

/// Where the first record was stored of a message that is given up: one of a group's retry topic if `is_retry`, else one that
/// it consumed first; it lies at `place`. `None`: it is a client's own copy of a message, whatever that says of places.
pub(crate) fn origin_of(properties: &str, is_retry: bool, place: PhysicalOffset) -> Option<PhysicalOffset> {
    let is_copy = [properties::UNIQ_KEY, properties::ORIGIN_MESSAGE_ID]
        .iter()
        .all(|name| properties::get(properties, name).is_some());
    match (is_retry, origin_in(properties)) {
        (true, Some(origin)) => Some(origin),
        (true, None) if is_copy => None,
        _ => Some(place),
    }
}

/// What a dead letter is known by, in the log or about to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity<'a> {
    /// Where its message's first record was stored. `None`: a client sent it there, as a copy of a message.
    origin: Option<PhysicalOffset>,
    unique_key: Option<&'a str>,
    /// The message that it says it is a copy of.
    original: Option<Original<'a>>,
    /// The topic that its message came from.
    topic: Option<&'a str>,
    body: &'a [u8],
}

/// The message that a copy says it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Original<'a> {
    /// Where it lies: said by an offset message id. Each replica shows that with its own address, so only the place counts.
    At(i64),
    /// Its unique key, which is what Java's clients say, or whatever else a client calls it.
    Named(&'a str),
}

impl<'a> Original<'a> {
    fn of(id: &'a str) -> Original<'a> {
        id.parse::<MessageId>().map_or(Original::Named(id), |id| Original::At(id.physical_offset))
    }
}

impl<'a> Identity<'a> {
    fn of(record: &RecordView<'a>) -> Identity<'a> {
        let properties = record.properties();
        let get = |name| properties::get(properties, name);
        Identity {
            origin: origin_in(properties),
            unique_key: get(properties::UNIQ_KEY),
            original: get(properties::ORIGIN_MESSAGE_ID).map(Original::of),
            topic: get(properties::RETRY_TOPIC),
            body: record.body(),
        }
    }

    /// Whether both are surely of one message: by its place if both know that, else by all that they say.
    fn is_that_of(&self, other: &Identity<'_>) -> bool {
        if let (Some(origin), Some(other)) = (self.origin, other.origin) {
            return origin == other;
        }
        let names = |one: &Identity<'_>, other: &Identity<'_>| match one.original {
            Some(Original::At(place)) => other.origin == Some(PhysicalOffset(place as u64)),
            Some(Original::Named(_)) | None => false,
        };
        let is_original = self.original.is_some() && self.original == other.original;
        self.unique_key.is_some()
            && (self.unique_key, self.topic, self.body) == (other.unique_key, other.topic, other.body)
            && (is_original || names(self, other) || names(other, self))
    }
}

impl BrokerGroup {
    /// Places the record of a message in a dead-letter queue, if that message does not lie there yet. Where it lies.
    pub(crate) async fn bury(&self, mut record: RecordOperation, topic: &str) -> Result<Stored, RequestError> {
        let bytes = record.record.clone();
        let dead_letter = Identity::of(&RecordView::parse(&bytes)?);
        let by_origin = dead_letter.origin.map(|origin| origin_hash(topic, origin));
        let by_key = dead_letter.unique_key.map(|key| key_hash(topic, key));
        let hashes: Vec<u64> = by_origin.into_iter().chain(by_key).collect();
        let held = self.raft.hold_keys(hashes.clone());
        // The same message is being placed, and what becomes of that is unknown.
        let held = self.env.clock.timeout(LONGEST_WAIT, held).await.ok_or(RequestError::Unknown)??;
        let is_forgotten =
            planted::is(Bug::DeadLetterTwice) || planted::is(Bug::DeadLetterCopyTwice) && dead_letter.origin.is_none();
        if !is_forgotten && let Some(before) = self.buried(&dead_letter, &hashes, record.queue, topic).await? {
            return Ok(before);
        }
        record.key_hashes.extend(by_origin);
        let placed = self.store(vec![record], topic, Some(held)).await?;
        Ok(placed[0])
    }

    /// Where the message lies already that this would be a dead letter of, which the index knows under one of `hashes`.
    async fn buried(
        &self,
        dead_letter: &Identity<'_>,
        hashes: &[u64],
        dead_letters: QueueId,
        topic: &str,
    ) -> Result<Option<Stored>, RequestError> {
        let any_time = Timestamp(0)..=Timestamp(i64::MAX);
        for hash in hashes {
            for (queue, queue_offset, unit) in self.reader.units_by_key(*hash, any_time.clone(), LOOKED_AT).await? {
                if queue != dead_letters || !self.is_shown(topic, queue, queue_offset) {
                    continue;
                }
                let Some(record) = self.record_of(&unit).await? else { continue };
                if dead_letter.is_that_of(&Identity::of(&RecordView::parse(&record)?)) {
                    return Ok(Some(Stored {
                        queue: queue.queue,
                        queue_offset: Some(queue_offset),
                        physical_offset: unit.physical_offset,
                        is_repeat: true,
                    }));
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(key: &str, original: &str, origin: &str) -> String {
        let named = [("UNIQ_KEY", key), ("ORIGIN_MESSAGE_ID", original), ("RAFTMQ_ORIGIN", origin)];
        let given = named.iter().filter(|(_, value)| !value.is_empty());
        given.map(|(name, value)| format!("{name}\u{1}{value}\u{2}")).collect()
    }

    #[test]
    fn where_a_message_was_first_is_known_but_of_a_client_s_copy() {
        let at = PhysicalOffset;
        assert_eq!(origin_of(&properties("K", "", ""), false, at(7)), Some(at(7)));
        assert_eq!(origin_of(&properties("K", "M", "7"), true, at(9)), Some(at(7)));
        assert_eq!(origin_of(&properties("K", "M", ""), true, at(9)), None, "a copy");
        assert_eq!(origin_of(&properties("K", "M", "7"), false, at(9)), Some(at(9)), "somebody's own may say so, too");
        assert_eq!(origin_of(&properties("K", "", ""), true, at(9)), Some(at(9)), "there is nothing better");
    }

    /// Given back or sent anew, first or again, as one replica or another has shown it.
    #[test]
    fn dead_letters_of_one_message_are_known_however_they_come() {
        let dead = |unique_key, original: &'static str, origin: Option<u64>| Identity {
            origin: origin.map(PhysicalOffset),
            unique_key: Some(unique_key),
            original: Some(Original::of(original)),
            topic: Some("T"),
            body: b"body",
        };
        let one = |a: &Identity<'_>, b: &Identity<'_>| {
            assert_eq!(a.is_that_of(b), b.is_that_of(a));
            a.is_that_of(b)
        };
        let (shown, elsewhere) = ("0A00000100002A9F0000000000000C50", "0A00000200002AA00000000000000C50");
        let given_back = dead("K", shown, Some(0xC50));
        assert!(one(&given_back, &given_back) && one(&given_back, &dead("K", elsewhere, Some(0xC50))));
        assert!(!one(&given_back, &dead("K", shown, Some(8))), "another message under the same key");
        let sent = dead("K", elsewhere, None);
        assert!(one(&sent, &dead("K", shown, None)) && one(&sent, &given_back));
        assert!(one(&sent, &dead("K", "K", Some(0xC50))), "given back by a client that calls it by its key");
        assert!(!one(&sent, &dead("L", shown, None)));
        assert!(!one(&sent, &dead("K", "0A00000100002A9F0000000000000C51", None)), "of another place");
        let by_key = dead("7F00000114553422AB538BAA878C0002", "7F00000114553422AB538BAA878C0002", None);
        assert!(one(&by_key, &by_key), "as Java's clients say");
        assert!(!one(&by_key, &Identity { body: b"other", ..by_key }), "a producer sent two under one key");
        assert!(!one(&by_key, &Identity { topic: Some("U"), ..by_key }), "to two topics");
        let of_nothing = Identity { original: None, ..sent };
        assert!(!one(&of_nothing, &of_nothing));
    }
}

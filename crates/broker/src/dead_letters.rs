//! Dead letters: a message that was given up lies in its group's dead-letter queue once, however often it is given up.
//!
//! A consumer that crashes between giving a message back and storing its offset gets the message again, and gives it back
//! again; both may end here. A message is known by where its first record was stored, which it carries from its first retry
//! on ([`properties::ORIGIN`]). Under that it stands in the index as if it were one of its keys, so that the index knows which
//! messages lie in the queue; one dead letter of a group is placed at a time, so that what was placed before is seen.
//!
//! Clients also send messages anew themselves (orderly consumers that give up; others whose CONSUMER_SEND_MSG_BACK failed) and
//! may do so twice if an answer is lost. Nothing that such a copy says of places is trusted: it is known by its unique key and
//! by the message that it says it copies.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
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

/// Whose turn it is at each dead-letter queue.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters(Mutex<BTreeMap<QueueId, Arc<tokio::sync::Mutex<()>>>>);

/// The hash that a dead letter has beside those of its keys. No key can have it: none has such characters.
fn origin_hash(topic: &str, origin: PhysicalOffset) -> u64 {
    key_hash(topic, &format!("\u{1}origin\u{1}{}", origin.0))
}

/// Where a message's first record was stored, as a retry of it says and its dead letter.
fn origin_in(properties: &str) -> Option<PhysicalOffset> {
    properties::get(properties, properties::ORIGIN)?.parse().ok().map(PhysicalOffset)
}

/// What a message is known by that is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity<'a> {
    /// Where its first record was stored. `None`: it is a client's copy of a message.
    pub origin: Option<PhysicalOffset>,
    /// Its unique key, and the message that it says it is a copy of.
    copy_of: Option<(&'a str, Original<'a>)>,
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
    /// Of a message of a group's retry topic if `is_retry`, else of one that it consumed first; it lies at `place`.
    pub fn of(properties: &'a str, is_retry: bool, place: PhysicalOffset) -> Identity<'a> {
        let copy = Identity::of_copy(properties);
        let origin = match (is_retry, origin_in(properties)) {
            (true, Some(origin)) => Some(origin),
            (true, None) if copy.copy_of.is_some() => None,
            _ => Some(place),
        };
        Identity { origin, ..copy }
    }

    /// Of a message that a client sends anew.
    pub fn of_copy(properties: &'a str) -> Identity<'a> {
        let get = |name| properties::get(properties, name);
        let original = get(properties::ORIGIN_MESSAGE_ID).map(Original::of);
        Identity { origin: None, copy_of: get(properties::UNIQ_KEY).zip(original) }
    }

    /// Whether the message is the one of this dead letter.
    fn is_of(&self, dead_letter: &RecordView<'_>) -> bool {
        let properties = dead_letter.properties();
        match (self.origin, origin_in(properties)) {
            (Some(origin), Some(other)) => origin == other,
            _ => self.copy_of.is_some() && self.copy_of == Identity::of_copy(properties).copy_of,
        }
    }
}

impl BrokerGroup {
    /// Places the record of a message in a dead-letter queue, if that message does not lie there yet. Where it lies.
    ///
    /// The placing goes on if the caller gives up: whoever comes next for the group waits until its outcome is known.
    pub(crate) async fn bury(
        self: &Arc<Self>,
        message: Identity<'_>,
        mut record: RecordOperation,
        topic: &str,
    ) -> Result<Stored, RequestError> {
        let turn = Arc::clone(self.dead_letters.0.lock().entry(record.queue).or_default());
        let turn = turn.lock_owned().await;
        let is_forgotten =
            planted::is(Bug::DeadLetterTwice) || planted::is(Bug::DeadLetterCopyTwice) && message.origin.is_none();
        if !is_forgotten && let Some(before) = self.buried(message, record.queue, topic).await? {
            return Ok(before);
        }
        record.key_hashes.extend(message.origin.map(|origin| origin_hash(topic, origin)));
        let (broker, topic) = (Arc::clone(self), topic.to_owned());
        let placed = tokio::spawn(async move {
            let placed = broker.store(vec![record], &topic, None).await;
            drop(turn);
            placed
        });
        let placed = placed.await.map_err(|error| RequestError::Failed(error.to_string()))??;
        Ok(placed[0])
    }

    /// The message's dead letter.
    async fn buried(
        &self,
        message: Identity<'_>,
        dead_letters: QueueId,
        topic: &str,
    ) -> Result<Option<Stored>, RequestError> {
        let any_time = Timestamp(0)..=Timestamp(i64::MAX);
        let by_origin = message.origin.map(|origin| origin_hash(topic, origin));
        let by_key = message.copy_of.map(|(unique_key, _)| key_hash(topic, unique_key));
        for hash in by_origin.into_iter().chain(by_key) {
            for (queue, queue_offset, unit) in self.reader.units_by_key(hash, any_time.clone(), LOOKED_AT).await? {
                if queue != dead_letters || !self.is_shown(topic, queue, queue_offset) {
                    continue;
                }
                let Some(record) = self.record_of(&unit).await? else { continue };
                if message.is_of(&RecordView::parse(&record)?) {
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

    /// One message, on all the ways that it may come.
    #[test]
    fn a_message_is_known_by_its_origin_or_as_a_copy() {
        let at = PhysicalOffset;
        let own = Identity::of("UNIQ_KEY\u{1}K\u{2}", false, at(7));
        assert_eq!((own.origin, own.copy_of), (Some(at(7)), None));
        let retry = "UNIQ_KEY\u{1}K\u{2}ORIGIN_MESSAGE_ID\u{1}M\u{2}RAFTMQ_ORIGIN\u{1}7\u{2}";
        let retry = Identity::of(retry, true, at(9));
        assert_eq!((retry.origin, retry.copy_of), (Some(at(7)), Some(("K", Original::Named("M")))));
        let copy = "UNIQ_KEY\u{1}K\u{2}ORIGIN_MESSAGE_ID\u{1}M\u{2}";
        assert_eq!(Identity::of(copy, true, at(9)), Identity::of_copy(copy));
        assert_eq!(Identity::of(copy, false, at(9)).origin, Some(at(9)), "somebody's own message may say so, too");
        assert_eq!(Identity::of("UNIQ_KEY\u{1}K\u{2}", true, at(9)).origin, Some(at(9)), "there is nothing better");
    }

    /// A client names what it copies as the replica has shown it that it has it from.
    #[test]
    fn it_makes_no_difference_which_replica_has_shown_the_original() {
        let copy = |id: &str| format!("UNIQ_KEY\u{1}K\u{2}ORIGIN_MESSAGE_ID\u{1}{id}\u{2}");
        let (one, other) = (copy("0A00000100002A9F0000000000000C50"), copy("0A00000200002AA00000000000000C50"));
        assert_eq!(Identity::of_copy(&one), Identity::of_copy(&other));
        let elsewhere = copy("0A00000100002A9F0000000000000C51");
        assert_ne!(Identity::of_copy(&one), Identity::of_copy(&elsewhere), "another message under the same key");
        let by_key = copy("7F00000114553422AB538BAA878C0002");
        let other_key = copy("7F00000114553422AB538BAA878C0003");
        assert_ne!(Identity::of_copy(&by_key), Identity::of_copy(&other_key));
    }
}

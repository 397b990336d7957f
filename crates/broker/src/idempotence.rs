//! Idempotent send: what a producer sends again under the same unique key is stored once, and answered with the place of
//! the first copy.
//!
//! RocketMQ's producers keep a message's unique key over their retries, so the key is all it takes. The leader holds it,
//! looks whether a message with it waits or became visible within the window, and proposes in the same term while it holds
//! it: [`raft_store::keys_in_flight`] says why nothing slips through, across a change of leader neither. The index knows
//! hashes; whether a message has the very key, its record says.
//!
//! - A delayed or half message is recognised as long as it waits, and for the window after it became visible. One that was
//!   rolled back was never one.
//! - A batch is looked at message by message; what is new of it is stored together.
//! - A message without a unique key of its client's is nobody's copy.
//! - What consumers send back lies in retry topics under the key it came with, once for each try: there, and among dead
//!   letters, no key is looked at.
//! - A broker group knows its own log. A producer that tries another group stores another copy there; ours does not.
//!
//! It is on where the producer says that its keys are its messages' own, as ours does with every copy, not only with
//! retries: a first copy that was held up somewhere may arrive behind them. Else where the topic's attribute says so, else
//! by the configuration.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use protocol::header::IDEMPOTENT;
use protocol::names;
use protocol::properties;
use protocol::record::RecordView;
use raft_store::entry::RecordOperation;
use raft_store::position::Timestamp;

use crate::broker::BrokerGroup;
use crate::dispatch::Call;
use crate::error::RequestError;
use crate::send::{Stored, Target, half_offset};

/// The attribute of a topic that switches it on (`true`) or off (`false`).
pub const ATTRIBUTE: &str = "idempotent.send";

/// Messages with the same hash that are looked at: more than a few only if somebody makes hashes equal on purpose.
const LOOKED_AT: usize = 64;

/// A message that may be the copy of another one.
#[derive(Debug)]
pub(crate) struct Keyed<'a> {
    /// Given by the client.
    pub unique_key: Option<&'a str>,
    pub record: RecordOperation,
}

impl Keyed<'_> {
    /// Of the client's key: the record's first one is that of its unique key.
    fn hash(&self) -> Option<u64> {
        self.unique_key.and(self.record.key_hashes.first().copied())
    }
}

impl BrokerGroup {
    /// Stores messages of one request, each once if that is asked for. Their places in order.
    pub(crate) async fn store_once(
        &self,
        call: &Call,
        queue: &Target,
        messages: Vec<Keyed<'_>>,
    ) -> Result<Vec<Stored>, RequestError> {
        let hashes: Vec<u64> = messages.iter().filter_map(Keyed::hash).collect();
        if hashes.is_empty() || !self.is_idempotent(call, &queue.topic) {
            let records = messages.into_iter().map(|message| message.record).collect();
            return self.store(records, &queue.topic, None).await;
        }
        let remaining = call.deadline.saturating_sub(self.env.clock.monotonic());
        // Another copy is in flight for as long as this one's client waits: what becomes of that one is unknown.
        let held = self.env.clock.timeout(remaining, self.raft.hold_keys(hashes)).await;
        let held = held.ok_or(RequestError::Unknown)??;

        let since = Timestamp(self.now().0.saturating_sub(self.config.messages.idempotent_window.as_millis() as i64));
        let (mut places, mut new) = (Vec::with_capacity(messages.len()), Vec::new());
        let mut before: BTreeMap<&str, usize> = BTreeMap::new();
        for (at, message) in messages.into_iter().enumerate() {
            let place = match message.unique_key.zip(message.hash()) {
                None => Place::New,
                Some((key, hash)) => match before.entry(key) {
                    Entry::Occupied(same) => Place::AsThat(*same.get()),
                    Entry::Vacant(first) => {
                        first.insert(at);
                        self.stored_under(queue, key, hash, since).await?.map_or(Place::New, Place::Known)
                    }
                },
            };
            if matches!(place, Place::New) {
                new.push(message.record);
            }
            places.push(place);
        }
        let stored = match new.is_empty() {
            true => Vec::new(),
            false => self.store(new, &queue.topic, Some(held)).await?,
        };
        Ok(self.put_together(&places, stored))
    }

    /// The places of all messages of a request, of which `stored` are those that were new.
    fn put_together(&self, places: &[Place], stored: Vec<Stored>) -> Vec<Stored> {
        let mut stored = stored.into_iter();
        let mut all: Vec<Stored> = Vec::with_capacity(places.len());
        for place in places {
            let is_repeat = !matches!(place, Place::New);
            self.rates.repeated.add(u64::from(is_repeat));
            all.push(match *place {
                Place::New => stored.next().expect("one place for each that was stored"),
                Place::Known(first) => first,
                Place::AsThat(at) => Stored { is_repeat, ..all[at] },
            });
        }
        all
    }

    /// Whether this request's sends to the topic look at unique keys.
    pub(crate) fn is_idempotent(&self, call: &Call, topic: &str) -> bool {
        if names::group_of_retry_topic(topic).is_some() || names::group_of_dlq_topic(topic).is_some() {
            return false;
        }
        if call.request.ext.bool(IDEMPOTENT) == Some(true) {
            return true;
        }
        let tables = self.reader.tables();
        let attribute = tables.topics().get(topic).and_then(|topic| topic.config.attributes.get(ATTRIBUTE));
        attribute.map_or(self.config.messages.idempotent_send, |value| value == "true")
    }

    /// The place of the message that was sent to the topic under this key, of this hash, and waits, or became visible since
    /// then; the first one if there are several, from when it was not idempotent.
    async fn stored_under(
        &self,
        queue: &Target,
        key: &str,
        hash: u64,
        since: Timestamp,
    ) -> Result<Option<Stored>, RequestError> {
        // Before the index: in one step of apply a record leaves those that wait and is found there.
        for waiting in self.reader.waiting_with_hash(hash) {
            if waiting.queue.topic == queue.topic_id
                && is_under(&self.reader.record(waiting.place, waiting.size).await?, &queue.topic, key)
            {
                return Ok(Some(Stored {
                    queue: waiting.queue.queue,
                    queue_offset: waiting.is_half.then_some(half_offset(waiting.key)),
                    physical_offset: waiting.key,
                    is_repeat: true,
                }));
            }
        }
        if self.reader.is_new_key(hash, since) {
            return Ok(None);
        }
        self.visible_under(&queue.topic, key, hash, since).await
    }

    /// The place of the first message of the topic under this key, of this hash, that became visible since then.
    pub(crate) async fn visible_under(
        &self,
        topic: &str,
        key: &str,
        hash: u64,
        since: Timestamp,
    ) -> Result<Option<Stored>, RequestError> {
        let units = self.reader.units_by_key(hash, since..=Timestamp(i64::MAX), LOOKED_AT).await?;
        // They come newest first.
        for (of, queue_offset, unit) in units.into_iter().rev() {
            if !self.is_shown(topic, of, queue_offset) {
                continue;
            }
            let Some(record) = self.record_of(&unit).await? else { continue };
            if is_under(&record, topic, key) {
                let (queue_offset, physical_offset) = (Some(queue_offset), unit.physical_offset);
                return Ok(Some(Stored { queue: of.queue, queue_offset, physical_offset, is_repeat: true }));
            }
        }
        Ok(None)
    }
}

/// What becomes of one message of a request.
#[derive(Clone, Copy, Debug)]
enum Place {
    New,
    /// A copy was stored before.
    Known(Stored),
    /// The request itself has a copy before this one.
    AsThat(usize),
}

fn is_under(record: &[u8], topic: &str, key: &str) -> bool {
    RecordView::parse(record)
        .is_ok_and(|view| view.topic() == topic && view.property(properties::UNIQ_KEY) == Some(key))
}

//! Messages: what a program sends ([`Message`]) and what it receives ([`ReceivedMessage`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::body::MessageQueue;
use protocol::message_id::{MessageId, UniqueKey};
use protocol::names;
use protocol::properties::{self, Properties};
use protocol::record::{RecordError, RecordView};
use protocol::sys_flag::{Compression, SysFlag};

use crate::compression;
use crate::errors::InvalidMessage;

/// A message to be sent. Cheap to clone: body and topic are shared.
///
/// ```
/// use client::Message;
///
/// # fn main() -> Result<(), client::InvalidMessage> {
/// let message = Message::new("Orders", "body").with_tag("paid").with_key("order-7").with_property("shop", "Ulm")?;
/// assert_eq!(message.topic(), "Orders");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Message {
    topic: Arc<str>,
    body: Bytes,
    properties: Properties,
    flag: i32,
    unique_key: Option<UniqueKey>,
}

impl Message {
    /// A message with nothing but a body.
    pub fn new(topic: impl Into<Arc<str>>, body: impl Into<Bytes>) -> Message {
        Message { topic: topic.into(), body: body.into(), properties: Properties::new(), flag: 0, unique_key: None }
    }

    /// The tag by which consumers select. A message has one.
    #[must_use]
    pub fn with_tag(mut self, tag: &str) -> Message {
        self.properties.set(properties::TAGS, tag);
        self
    }

    /// Adds a key by which the message can be found. Blanks separate keys.
    #[must_use]
    pub fn with_key(mut self, key: &str) -> Message {
        let keys = match self.properties.get(properties::KEYS) {
            Some(keys) => format!("{keys} {key}"),
            None => key.to_owned(),
        };
        self.properties.set(properties::KEYS, keys);
        self
    }

    /// Sets a property of the program's own. Names that the system uses are refused.
    pub fn with_property(mut self, name: &str, value: &str) -> Result<Message, InvalidMessage> {
        if properties::RESERVED.contains(&name) {
            return Err(InvalidMessage::ReservedProperty(name.to_owned()));
        }
        if name.is_empty() || value.is_empty() {
            return Err(InvalidMessage::EmptyProperty(name.to_owned()));
        }
        self.properties.set(name, value);
        Ok(self)
    }

    /// Delivers the message later, by one of the broker's levels: by default 1 s, 5 s, 10 s, 30 s, 1 to 10 min, 20 min,
    /// 30 min, 1 h, 2 h for levels 1 to 18.
    #[must_use]
    pub fn with_delay_level(mut self, level: u8) -> Message {
        self.properties.set(properties::DELAY, level);
        self
    }

    /// Delivers the message after `delay`, to the second. Brokers bound it (three days by default).
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Message {
        self.properties.set(properties::TIMER_DELAY_MS, delay.as_millis());
        self
    }

    /// Delivers the message at a time, milliseconds since the epoch.
    #[must_use]
    pub fn with_delivery_at_ms(mut self, due_ms: i64) -> Message {
        self.properties.set(properties::TIMER_DELIVER_MS, due_ms);
        self
    }

    /// In a transaction: leaves its producers alone for so long, to the second, before they are asked how it has ended. An end
    /// that comes later by itself is not heard any more.
    #[must_use]
    pub fn with_check_immunity(mut self, immunity: Duration) -> Message {
        self.properties.set(properties::CHECK_IMMUNITY_TIME_IN_SECONDS, immunity.as_secs());
        self
    }

    /// Marks messages that must stay in order among each other: [`crate::Producer::send`] puts all messages with one
    /// sharding key into one queue.
    #[must_use]
    pub fn with_sharding_key(mut self, key: &str) -> Message {
        self.properties.set(properties::SHARDING_KEY, key);
        self
    }

    /// A number that travels with the message and means nothing to brokers.
    #[must_use]
    pub fn with_flag(mut self, flag: i32) -> Message {
        self.flag = flag;
        self
    }

    /// Sends the message under a key it was sent under before: see [`crate::SendError::Unknown`]. Brokers that
    /// recognise repeated sends store it once. Without this, every send makes a new key.
    pub fn with_unique_key(mut self, key: &str) -> Result<Message, InvalidMessage> {
        self.unique_key = Some(key.parse().map_err(|_| InvalidMessage::UniqueKey(key.to_owned()))?);
        Ok(self)
    }

    /// Its topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Its body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// One of its properties.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.get(name)
    }

    /// The user's flag.
    pub fn flag(&self) -> i32 {
        self.flag
    }

    pub(crate) fn unique_key(&self) -> Option<UniqueKey> {
        self.unique_key
    }

    pub(crate) fn encoded_properties(&self) -> &str {
        self.properties.encoded()
    }

    /// Whether the message becomes visible later than it is stored.
    pub(crate) fn is_timed(&self) -> bool {
        [properties::DELAY, properties::TIMER_DELAY_SEC, properties::TIMER_DELAY_MS, properties::TIMER_DELIVER_MS]
            .iter()
            .any(|name| self.properties.get(name).is_some())
    }
}

/// A message as it was stored.
#[derive(Debug, Clone)]
pub struct ReceivedMessage {
    topic: String,
    body: Bytes,
    properties: String,
    queue: Arc<MessageQueue>,
    queue_offset: i64,
    physical_offset: i64,
    flag: i32,
    sys_flag: SysFlag,
    born_ms: i64,
    born_host: SocketAddr,
    stored_ms: i64,
    store_host: SocketAddr,
    reconsume_times: i32,
    still_compressed: Option<Compression>,
    record_bytes: usize,
}

impl ReceivedMessage {
    /// Reads one record of `queue`. The body stays where it is in `record` unless it must be decompressed.
    pub(crate) fn from_record(record: &Bytes, queue: &Arc<MessageQueue>) -> Result<ReceivedMessage, RecordError> {
        let view = RecordView::parse(record)?;
        let mut body = record.slice(view.body_range());
        let mut still_compressed = view.sys_flag().compression();
        if let Some(kind) = still_compressed
            && let Some(decompressed) = compression::decompress(&body, kind, compression::MAX_BYTES)
        {
            body = decompressed;
            still_compressed = None;
        }
        // A retried message lies in the group's retry topic; its handler knows it by the topic it was sent to.
        let retried = names::group_of_retry_topic(view.topic()).and_then(|_| view.property(properties::RETRY_TOPIC));
        let topic = retried.unwrap_or(view.topic());
        Ok(ReceivedMessage {
            topic: topic.to_owned(),
            body,
            properties: view.properties().to_owned(),
            queue: queue.clone(),
            queue_offset: view.queue_offset(),
            physical_offset: view.physical_offset(),
            flag: view.flag(),
            sys_flag: view.sys_flag(),
            born_ms: view.born_timestamp(),
            born_host: view.born_host(),
            stored_ms: view.store_timestamp(),
            store_host: view.store_host(),
            reconsume_times: view.reconsume_times(),
            still_compressed,
            record_bytes: view.bytes().len(),
        })
    }

    /// The topic it was sent to; for a retried message too.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Its body, decompressed (zlib, lz4, zstd) if that can be done: see [`ReceivedMessage::still_compressed`].
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// How the body is still compressed, because what it holds is no such stream, or too much.
    pub fn still_compressed(&self) -> Option<Compression> {
        self.still_compressed
    }

    /// The queue it was pulled from; for a retried message, one of the group's retry topic.
    pub fn queue(&self) -> &MessageQueue {
        &self.queue
    }

    /// Its place in the queue.
    pub fn queue_offset(&self) -> i64 {
        self.queue_offset
    }

    /// Its place in the broker's CommitLog.
    pub fn physical_offset(&self) -> i64 {
        self.physical_offset
    }

    /// One property.
    pub fn property(&self, name: &str) -> Option<&str> {
        properties::get(&self.properties, name)
    }

    /// Name and value of every property.
    pub fn properties(&self) -> impl Iterator<Item = (&str, &str)> {
        properties::iter(&self.properties)
    }

    /// Its tag.
    pub fn tag(&self) -> Option<&str> {
        self.property(properties::TAGS)
    }

    /// Its keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.property(properties::KEYS).unwrap_or("").split_ascii_whitespace()
    }

    /// The key its producer gave it; the same for every copy made by retries.
    pub fn unique_key(&self) -> Option<&str> {
        self.property(properties::UNIQ_KEY)
    }

    /// Where its bytes lie: tools find the message by it.
    pub fn offset_message_id(&self) -> String {
        MessageId { store_host: self.store_host, physical_offset: self.physical_offset }.to_string()
    }

    /// The producer's flag.
    pub fn flag(&self) -> i32 {
        self.flag
    }

    /// What kind of message it is.
    pub fn sys_flag(&self) -> SysFlag {
        self.sys_flag
    }

    /// When the producer made it, ms since the epoch.
    pub fn born_ms(&self) -> i64 {
        self.born_ms
    }

    /// Where the producer was.
    pub fn born_host(&self) -> SocketAddr {
        self.born_host
    }

    /// When the broker stored it, ms since the epoch.
    pub fn stored_ms(&self) -> i64 {
        self.stored_ms
    }

    /// The broker that delivered it.
    pub fn store_host(&self) -> SocketAddr {
        self.store_host
    }

    /// How often it was consumed in vain.
    pub fn reconsume_times(&self) -> i32 {
        self.reconsume_times
    }

    /// What it costs while it waits for its handler.
    pub(crate) fn cost_bytes(&self) -> usize {
        self.record_bytes.max(self.body.len())
    }

    pub(crate) fn encoded_properties(&self) -> &str {
        &self.properties
    }

    /// The same message after another attempt in vain, for handlers that are called again in place.
    pub(crate) fn after_attempts(&self, attempts: i32) -> ReceivedMessage {
        ReceivedMessage { reconsume_times: self.reconsume_times.saturating_add(attempts), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use protocol::record::NewRecord;

    use super::*;

    pub(crate) fn record(topic: &str, body: &[u8], properties: &str, sys_flag: SysFlag) -> Bytes {
        NewRecord {
            topic,
            queue_id: 1,
            flag: 3,
            sys_flag,
            born_timestamp: 1_700_000_000_000,
            born_host: "10.0.0.1:1234".parse().unwrap(),
            store_timestamp: 1_700_000_000_001,
            store_host: "10.0.0.2:10911".parse().unwrap(),
            reconsume_times: 2,
            prepared_transaction_offset: 0,
            body,
            properties,
        }
        .to_bytes()
        .unwrap()
    }

    #[test]
    fn the_systems_properties_are_not_the_users_to_set() {
        let message = Message::new("T", "b").with_tag("a").with_key("k1").with_key("k2");
        assert_eq!((message.property("TAGS"), message.property("KEYS")), (Some("a"), Some("k1 k2")));
        let refused = message.clone().with_property("UNIQ_KEY", "x").unwrap_err();
        assert_eq!(refused, InvalidMessage::ReservedProperty("UNIQ_KEY".into()));
        assert!(message.clone().with_property("", "x").is_err() && message.clone().with_property("x", "").is_err());
        assert!(!message.is_timed() && message.with_delay_level(3).is_timed());
        assert!(Message::new("T", "b").with_unique_key("no key").is_err());
    }

    #[test]
    fn a_retried_message_keeps_its_topic_and_a_compressed_body_is_undone() {
        let queue = Arc::new(MessageQueue::new("%RETRY%g", "b", 1));
        // zlib of "hi".
        let zlib = [0x78, 0x9c, 0xcb, 0xc8, 0x04, 0x00, 0x01, 0x3b, 0x00, 0xd2];
        let flag = SysFlag(0).with_compression(Compression::Zlib);
        let record = record("%RETRY%g", &zlib, "RETRY_TOPIC\u{1}T\u{2}KEYS\u{1}a b\u{2}", flag);
        let message = ReceivedMessage::from_record(&record, &queue).unwrap();
        assert_eq!((message.topic(), message.queue().topic.as_str()), ("T", "%RETRY%g"));
        assert_eq!((&message.body()[..], message.still_compressed()), (&b"hi"[..], None));
        assert_eq!(message.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(message.offset_message_id(), "0A00000200002A9F0000000000000000");
        assert_eq!((message.reconsume_times(), message.after_attempts(1).reconsume_times()), (2, 3));
    }

    #[test]
    fn what_cannot_be_undone_is_handed_on_as_it_is() {
        let queue = Arc::new(MessageQueue::new("T", "b", 1));
        for compression in [Compression::Zstd, Compression::Lz4, Compression::Zlib] {
            let flag = SysFlag(0).with_compression(compression);
            let message = ReceivedMessage::from_record(&record("T", b"xx", "RETRY_TOPIC\u{1}U\u{2}", flag), &queue);
            let message = message.unwrap();
            assert_eq!((message.topic(), &message.body()[..]), ("T", &b"xx"[..]), "not a retry topic");
            assert_eq!(message.still_compressed(), Some(compression));
        }
    }
}

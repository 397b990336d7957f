//! Message trace: what became of each message, in messages of RocketMQ's own form, which its dashboard and `queryMsgTraceById`
//! show.
//!
//! Switched on with [`crate::ClientBuilder::message_trace`]. A record is put into a bounded queue when a send, a consumption or
//! the end of a transaction is over; a task sends what waits as one message to the trace topic, under the keys of the messages
//! in it. What does not fit into the queue, or cannot be sent, is counted: [`crate::Client::traces_lost`]. A shutdown of the
//! client sends what waits.
//!
//! ```text
//! record    fields, separated by 01, and 02 at its end
//! Pub             begun ms, region, group, topic, unique key, tag, keys, store host, body bytes, took ms, type, offset id, ok
//! SubBefore       begun ms, region, group, request id, unique key, times failed before, keys
//! SubAfter        request id, unique key, took ms, ok, keys, outcome, ended ms, group
//! EndTransaction  ms, region, group, topic, unique key, tag, keys, store host, type, transaction id, state, was asked
//! ```
//! (org.apache.rocketmq.client.trace.TraceDataEncoder, 5.x.)

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use env::Clock;
use parking_lot::Mutex;
use protocol::message_id::MessageId;
use protocol::properties;
use tokio::sync::{mpsc, oneshot};

use crate::builder::{Client, Inner};
use crate::consumer::Retry;
use crate::message::{Message, ReceivedMessage};
use crate::producer::{Durability, Producer, SendReceipt};
use crate::transaction::TransactionState;

/// The group in whose name traces are sent.
const GROUP: &str = "_INNER_TRACE_PRODUCER";
/// What brokers call their region unless configured otherwise.
const DEFAULT_REGION: &str = "DefaultRegion";
/// Records that may wait.
const QUEUE_RECORDS: usize = 2048;
/// Bounds of one trace message.
const MESSAGE_RECORDS: usize = 100;
const MESSAGE_BYTES: usize = 118_000;
const MESSAGE_KEYS_BYTES: usize = 16_000;
/// How long one trace message may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Message types, by their places in RocketMQ's enum.
const NORMAL: u8 = 0;
const HALF: u8 = 1;
const COMMITTED: u8 = 2;
const DELAYED: u8 = 3;

/// Outcomes of a consumption, by their places in RocketMQ's enum.
const SUCCESS: u8 = 0;
const TIMED_OUT: u8 = 1;
const FAILED: u8 = 4;

/// One record, and what it is found by.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    data: String,
    keys: String,
}

impl Record {
    /// Java's `null` stands for what is not there: a field at the end that is empty is none to RocketMQ's decoder.
    fn new(fields: &[&dyn Display], unique_key: &str, keys: Option<&str>) -> Record {
        let mut data = String::with_capacity(256);
        for (place, field) in fields.iter().enumerate() {
            if place > 0 {
                data.push('\u{1}');
            }
            data.push_str(&field.to_string());
        }
        data.push('\u{2}');
        let keys = match keys {
            Some(keys) if !keys.is_empty() => format!("{unique_key} {keys}"),
            _ => unique_key.to_owned(),
        };
        Record { data, keys }
    }
}

fn or_null(text: Option<&str>) -> &str {
    text.filter(|text| !text.is_empty()).unwrap_or("null")
}

enum Item {
    Record(Record),
    /// Answered when all before it was sent or counted.
    Flush(oneshot::Sender<()>),
}

/// A client's traces.
pub(crate) struct Tracer {
    topic: String,
    queue: mpsc::Sender<Item>,
    /// Until the task begins.
    waiting: Mutex<Option<mpsc::Receiver<Item>>>,
    is_running: AtomicBool,
    is_over: AtomicBool,
    /// Records put, sent, and given up so far.
    put: AtomicU64,
    sent: AtomicU64,
    lost: AtomicU64,
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tracer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Tracer {
    pub(crate) fn new(topic: String) -> Tracer {
        let (queue, waiting) = mpsc::channel(QUEUE_RECORDS);
        Tracer {
            topic,
            queue,
            waiting: Mutex::new(Some(waiting)),
            is_running: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            put: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    pub(crate) fn lost(&self) -> u64 {
        match self.is_over.load(Ordering::Relaxed) {
            true => self.put.load(Ordering::Relaxed) - self.sent.load(Ordering::Relaxed),
            false => self.lost.load(Ordering::Relaxed),
        }
    }

    fn lose(&self, records: usize) {
        self.lost.fetch_add(records as u64, Ordering::Relaxed);
    }

    fn put(&self, client: &Client, record: Record) {
        self.put.fetch_add(1, Ordering::Relaxed);
        if !self.is_running.swap(true, Ordering::Relaxed)
            && let Some(waiting) = self.waiting.lock().take()
        {
            tokio::spawn(run(Arc::downgrade(&client.0), waiting));
        }
        if self.queue.try_send(Item::Record(record)).is_err() {
            self.lose(1);
        }
    }

    /// Sends what waits; what cannot be sent within a while is lost.
    pub(crate) async fn end(&self, clock: &Clock) {
        if self.is_running.load(Ordering::Relaxed) {
            let flush = async {
                let (answer, answered) = oneshot::channel();
                if self.queue.send(Item::Flush(answer)).await.is_ok() {
                    let _ = answered.await;
                }
            };
            let _ = clock.timeout(SEND_TIMEOUT, flush).await;
        }
        self.is_over.store(true, Ordering::Relaxed);
        let lost = self.lost();
        if lost > 0 {
            tracing::warn!(topic = self.topic, lost, "traces of messages are lost");
        }
    }
}

/// Sends what waits, until the client is gone.
async fn run(client: Weak<Inner>, mut queue: mpsc::Receiver<Item>) {
    let mut items = Vec::new();
    while queue.recv_many(&mut items, MESSAGE_RECORDS).await > 0 {
        let Some(client) = client.upgrade().map(Client) else {
            let records = items.iter().filter(|item| matches!(item, Item::Record(_))).count();
            tracing::warn!(records, "the client is gone without a shutdown; its last traces are lost");
            return;
        };
        let mut records = Vec::new();
        for item in items.drain(..) {
            match item {
                Item::Record(record) => records.push(record),
                Item::Flush(answer) => {
                    send(&client, std::mem::take(&mut records)).await;
                    let _ = answer.send(());
                }
            }
        }
        send(&client, records).await;
    }
}

async fn send(client: &Client, records: Vec<Record>) {
    let Some(tracer) = &client.0.tracer else { return };
    let producer = Producer::internal_of(client, GROUP, SEND_TIMEOUT);
    for (records, message) in messages(&tracer.topic, records) {
        match producer.send(message).await {
            Ok(_) => drop(tracer.sent.fetch_add(records as u64, Ordering::Relaxed)),
            Err(error) => {
                tracer.lose(records);
                tracing::debug!(topic = tracer.topic, records, %error, "traces are lost");
            }
        }
    }
}

/// Trace messages, and how many records are in each.
fn messages(topic: &str, records: Vec<Record>) -> Vec<(usize, Message)> {
    let mut messages = Vec::new();
    let (mut count, mut data, mut keys) = (0, String::new(), String::new());
    for record in records {
        let is_full =
            data.len() + record.data.len() > MESSAGE_BYTES || keys.len() + record.keys.len() > MESSAGE_KEYS_BYTES;
        if count > 0 && is_full {
            messages.push((count, Message::new(topic, std::mem::take(&mut data)).with_key(&std::mem::take(&mut keys))));
            count = 0;
        }
        count += 1;
        data.push_str(&record.data);
        // A message's records have one key.
        if !keys.split(' ').any(|key| key == record.keys) {
            if !keys.is_empty() {
                keys.push(' ');
            }
            keys.push_str(&record.keys);
        }
    }
    if count > 0 {
        messages.push((count, Message::new(topic, data).with_key(&keys)));
    }
    messages
}

/// A send that has ended.
pub(crate) struct Sending<'a> {
    pub(crate) group: &'a str,
    pub(crate) message: &'a Message,
    pub(crate) is_half: bool,
    pub(crate) begun_ms: i64,
    pub(crate) took: Duration,
    pub(crate) unique_key: &'a str,
    /// `None` if it failed.
    pub(crate) receipt: Option<&'a SendReceipt>,
}

impl Sending<'_> {
    fn record(&self) -> Record {
        let Sending { group, message, is_half, begun_ms, took, unique_key, receipt } = self;
        let offset_id = receipt.map_or("", |receipt| &receipt.offset_message_id);
        let store_host = offset_id.parse().map(|id: MessageId| id.store_host.to_string()).unwrap_or_default();
        let (tag, keys) = (message.property(properties::TAGS), message.property(properties::KEYS));
        let kind = match () {
            () if *is_half => HALF,
            () if message.is_timed() => DELAYED,
            () => NORMAL,
        };
        let is_stored = receipt.is_some_and(|receipt| receipt.durability == Durability::AsConfigured);
        Record::new(
            &[
                &"Pub",
                begun_ms,
                &DEFAULT_REGION,
                group,
                &message.topic(),
                &unique_key,
                &or_null(tag),
                &or_null(keys),
                &store_host,
                &message.body().len(),
                &took.as_millis(),
                &kind,
                &offset_id,
                &is_stored,
            ],
            unique_key,
            keys,
        )
    }
}

/// A consumption that goes on: its end is recorded when it is dropped, as a time-out unless it has ended before.
pub(crate) struct Consumption<'a> {
    client: &'a Client,
    group: &'a str,
    message: &'a ReceivedMessage,
    request_id: String,
    begun: Duration,
    outcome: u8,
}

impl<'a> Consumption<'a> {
    /// `None` if it is not to be traced.
    pub(crate) fn begin(client: &'a Client, group: &'a str, message: &'a ReceivedMessage) -> Option<Consumption<'a>> {
        let tracer = client.0.tracer.as_ref()?;
        if message.property(properties::TRACE_ON) == Some("false") {
            return None;
        }
        let clock = &client.0.env.clock;
        let (request_id, unique_key) = (format!("{:032X}", client.0.env.secret()), message.unique_key().unwrap_or(""));
        let keys = message.property(properties::KEYS);
        let region = message.property(properties::MSG_REGION).unwrap_or(DEFAULT_REGION);
        let record = Record::new(
            &[
                &"SubBefore",
                &clock.wall_ms(),
                &region,
                &group,
                &request_id,
                &unique_key,
                &message.reconsume_times(),
                &or_null(keys),
            ],
            unique_key,
            keys,
        );
        tracer.put(client, record);
        Some(Consumption { client, group, message, request_id, begun: clock.monotonic(), outcome: TIMED_OUT })
    }

    pub(crate) fn end(mut self, handled: &Result<(), Retry>) {
        self.outcome = if handled.is_ok() { SUCCESS } else { FAILED };
    }
}

impl Drop for Consumption<'_> {
    fn drop(&mut self) {
        let Some(tracer) = &self.client.0.tracer else { return };
        let clock = &self.client.0.env.clock;
        let unique_key = self.message.unique_key().unwrap_or("");
        let keys = self.message.property(properties::KEYS);
        let took_ms = (clock.monotonic() - self.begun).as_millis();
        let is_success = self.outcome == SUCCESS;
        let record = Record::new(
            &[
                &"SubAfter",
                &self.request_id,
                &unique_key,
                &took_ms,
                &is_success,
                &or_null(keys),
                &self.outcome,
                &clock.wall_ms(),
                &self.group,
            ],
            unique_key,
            keys,
        );
        tracer.put(self.client, record);
    }
}

/// The end of a transaction, as its producer said it.
pub(crate) struct TransactionEnd<'a> {
    pub(crate) group: &'a str,
    pub(crate) topic: &'a str,
    pub(crate) unique_key: &'a str,
    pub(crate) tag: Option<&'a str>,
    pub(crate) keys: Option<&'a str>,
    pub(crate) offset_message_id: &'a str,
    pub(crate) state: TransactionState,
    pub(crate) was_asked: bool,
}

impl TransactionEnd<'_> {
    fn record(&self, now_ms: i64) -> Record {
        let store_host =
            self.offset_message_id.parse().map(|id: MessageId| id.store_host.to_string()).unwrap_or_default();
        let state = match self.state {
            TransactionState::Commit => "COMMIT_MESSAGE",
            TransactionState::Rollback => "ROLLBACK_MESSAGE",
            TransactionState::Unknown => "UNKNOW",
        };
        Record::new(
            &[
                &"EndTransaction",
                &now_ms,
                &DEFAULT_REGION,
                &self.group,
                &self.topic,
                &self.unique_key,
                &or_null(self.tag),
                &or_null(self.keys),
                &store_host,
                &COMMITTED,
                &self.unique_key,
                &state,
                &self.was_asked,
            ],
            self.unique_key,
            self.keys,
        )
    }
}

impl Client {
    pub(crate) fn trace_sending(&self, sending: &Sending<'_>) {
        if let Some(tracer) = &self.0.tracer {
            tracer.put(self, sending.record());
        }
    }

    pub(crate) fn trace_transaction_end(&self, end: &TransactionEnd<'_>) {
        if let Some(tracer) = &self.0.tracer {
            tracer.put(self, end.record(self.0.env.clock.wall_ms()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(data: &str, keys: &str) -> Record {
        Record { data: data.to_owned(), keys: keys.to_owned() }
    }

    #[test]
    fn fields_are_where_rocketmq_looks_for_them() {
        let message = Message::new("Orders", "body").with_tag("paid").with_key("order-7");
        let mut sending = Sending {
            group: "shop",
            message: &message,
            is_half: false,
            begun_ms: 1_700_000_000_000,
            took: Duration::from_millis(12),
            unique_key: "U",
            receipt: None,
        };
        let failed = sending.record();
        let expected = "Pub\u{1}1700000000000\u{1}DefaultRegion\u{1}shop\u{1}Orders\u{1}U\u{1}paid\u{1}order-7\u{1}\u{1}4\u{1}12\u{1}0\u{1}\u{1}false\u{2}";
        assert_eq!(failed.data, expected);
        let timed = Message::new("Orders", "body").with_delay_level(3);
        sending.message = &timed;
        let fields: Vec<String> = sending.record().data.split('\u{1}').map(str::to_owned).collect();
        assert_eq!(
            (fields.len(), fields[6].as_str(), fields[7].as_str(), fields[11].as_str()),
            (14, "null", "null", "3")
        );
        let end = TransactionEnd {
            group: "shop",
            topic: "Orders",
            unique_key: "U",
            tag: None,
            keys: Some("order-7"),
            offset_message_id: "0A00000200002A9F0000000000000000",
            state: TransactionState::Commit,
            was_asked: true,
        };
        let ended = end.record(5);
        let expected = "EndTransaction\u{1}5\u{1}DefaultRegion\u{1}shop\u{1}Orders\u{1}U\u{1}null\u{1}order-7\u{1}10.0.0.2:10911\u{1}2\u{1}U\u{1}COMMIT_MESSAGE\u{1}true\u{2}";
        assert_eq!(ended, record(expected, "U order-7"));
    }

    #[test]
    fn what_waits_goes_into_few_messages_and_none_is_too_large() {
        let few = messages("T", vec![record("a\u{2}", "1"), record("b\u{2}", "2 x"), record("c\u{2}", "1")]);
        let [(3, message)] = few.as_slice() else { panic!("{few:?}") };
        assert_eq!((&message.body()[..], message.property("KEYS")), (&b"a\x02b\x02c\x02"[..], Some("1 2 x")));
        let large: Vec<Record> = (0..10).map(|number| record(&"x".repeat(50_000), &number.to_string())).collect();
        let counts: Vec<usize> = messages("T", large).iter().map(|(count, _)| *count).collect();
        assert_eq!(counts, [2; 5]);
        let long_keys: Vec<Record> = (0..4).map(|number| record("x", &number.to_string().repeat(6000))).collect();
        assert_eq!(messages("T", long_keys).len(), 2);
        assert!(messages("T", Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn what_does_not_fit_is_counted_and_what_cannot_be_sent_is_too() {
        let client = Client::builder().name_servers("127.0.0.1:1").message_trace("T").build().unwrap();
        let message = Message::new("Orders", "body");
        let (begun_ms, took, unique_key, receipt) = (0, Duration::ZERO, "U", None);
        let sending = Sending { group: "g", message: &message, is_half: false, begun_ms, took, unique_key, receipt };
        // Its task has no turn meanwhile.
        for _ in 0..QUEUE_RECORDS + 10 {
            client.trace_sending(&sending);
        }
        assert_eq!(client.traces_lost(), 10);
        client.shutdown().await;
        assert_eq!(client.traces_lost(), QUEUE_RECORDS as u64 + 10, "nobody to send them to");
    }
}

//! Messages: queryMsgById, queryMsgByKey, queryMsgByUniqueKey, queryMsgByOffset, sendMessage, consumeMessage.

use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use client::admin::protocol::body::BrokerData;
use client::admin::protocol::code::ResponseCode;
use client::admin::protocol::header::{QueryMessageRequest, SendMessageRequest};
use client::admin::protocol::message_id::{MessageId, UniqueKey};
use client::admin::protocol::names::AUTO_CREATE_TOPIC;
use client::admin::protocol::permission::Permission;
use client::admin::protocol::properties::{self, Properties};
use client::admin::protocol::record::RecordView;
use client::admin::{RequestError, address_of, decompressed_body};
use serde_json::{Map, Value, json};

use super::report::{Column, Report, Table, date};
use super::topics::{TopicName, route};
use super::{Desk, Execute, by_name, failed};

/// Group under which the tool pulls and sends; brokers have it from the start.
const TOOLS_GROUP: &str = "TOOLS_CONSUMER";

/// Most messages that a query by key brings.
const MAX_QUERIED: i32 = 64;

/// One message as people and programs see it.
fn describe(record: &[u8]) -> Result<(String, Value), String> {
    let view = RecordView::parse(record).map_err(|error| format!("the broker's record cannot be read: {error}"))?;
    let id = MessageId { store_host: view.store_host(), physical_offset: view.physical_offset() };
    let property = |name: &str| view.property(name).map_or(Value::Null, Value::from);
    let listed = properties::iter(view.properties()).map(|(name, value)| (name.to_owned(), Value::from(value)));
    let listed: Map<String, Value> = listed.collect();
    let body = match decompressed_body(&view) {
        Ok(body) => match std::str::from_utf8(&body) {
            Ok(text) => Value::from(text),
            Err(_) => Value::from(format!("{} bytes that are no text", body.len())),
        },
        Err(kind) => Value::from(format!("{} bytes that are no {kind:?} stream", view.body().len())),
    };
    let fields = [
        ("OffsetID", "offsetMsgId", id.to_string().into()),
        ("Topic", "topic", view.topic().into()),
        ("Tags", "tags", property(properties::TAGS)),
        ("Keys", "keys", property(properties::KEYS)),
        ("Unique Key", "uniqueKey", property(properties::UNIQ_KEY)),
        ("Queue ID", "queueId", view.queue_id().into()),
        ("Queue Offset", "queueOffset", view.queue_offset().into()),
        ("CommitLog Offset", "commitLogOffset", view.physical_offset().into()),
        ("Reconsume Times", "reconsumeTimes", view.reconsume_times().into()),
        ("Born Timestamp", "bornTimestamp", date(view.born_timestamp())),
        ("Store Timestamp", "storeTimestamp", date(view.store_timestamp())),
        ("Born Host", "bornHost", view.born_host().to_string().into()),
        ("Store Host", "storeHost", view.store_host().to_string().into()),
        ("System Flag", "sysFlag", view.sys_flag().0.into()),
        ("Properties", "properties", Value::Object(listed)),
        ("Message Body", "body", body),
    ];
    let line = |(label, _, value): &(&str, &str, Value)| match value {
        Value::String(text) => format!("{:<20} {text}\n", format!("{label}:")),
        Value::Null => format!("{label}:\n"),
        other => format!("{:<20} {other}\n", format!("{label}:")),
    };
    let text: String = fields.iter().map(line).collect();
    let object: Map<String, Value> = fields.into_iter().map(|(_, key, value)| (key.to_owned(), value)).collect();
    Ok((text, Value::Object(object)))
}

/// One message or several, below each other.
pub(super) fn report<'a>(records: impl IntoIterator<Item = &'a [u8]>) -> Result<Report, String> {
    let described: Vec<(String, Value)> = records.into_iter().map(describe).collect::<Result<_, _>>()?;
    let (texts, values): (Vec<String>, Vec<Value>) = described.into_iter().unzip();
    Ok(Report::new(texts.join("\n"), Value::Array(values)))
}

/// The broker group of that name, among those of a topic.
fn named<'a>(brokers: &'a [BrokerData], name: &str) -> Result<&'a BrokerData, String> {
    let by_name = by_name(brokers);
    by_name.get(name).copied().ok_or_else(|| {
        let known: Vec<&str> = by_name.keys().copied().collect();
        format!("broker {name} does not have the topic; these have: {}", known.join(", "))
    })
}

fn reachable(broker: &BrokerData) -> Result<&str, String> {
    address_of(broker).ok_or_else(|| format!("{} has no broker now; try again in some seconds", broker.broker_name))
}

#[derive(Args)]
pub struct QueryMsgById {
    /// The message's id.
    #[arg(short = 'i', long = "msgId", value_name = "ID")]
    id: String,
    /// The message's topic: needed to find it by its unique key.
    #[arg(short = 't', long = "topic", value_name = "TOPIC")]
    topic: Option<String>,
}

impl Execute for QueryMsgById {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        // Both kinds of id are 32 digits. What reads as an address and an offset is tried as such first.
        let by_offset = match self.id.parse::<MessageId>() {
            Ok(id) => {
                let address = id.store_host.to_string();
                let found = desk.admin.view_message(&address, self.topic.as_deref(), id.physical_offset).await;
                found.map_err(|error| failed(format!("message {} at {address}", self.id), error))
            }
            Err(error) => Err(format!("{}: {error}", self.id)),
        };
        match (by_offset, &self.topic) {
            (Ok(record), _) => report([&record[..]]),
            (Err(_), Some(topic)) if self.id.parse::<UniqueKey>().is_ok() => {
                query(desk, topic, &self.id, true, 0, i64::MAX).await
            }
            (Err(reason), _) => {
                Err(format!("{reason}; if it is a unique key, give its topic with -t to search for it"))
            }
        }
    }
}

async fn query(desk: &Desk, topic: &str, key: &str, unique: bool, begin: i64, end: i64) -> Result<Report, String> {
    let wanted = QueryMessageRequest {
        topic: topic.to_owned(),
        key: key.to_owned(),
        max_num: MAX_QUERIED,
        begin_timestamp: begin,
        end_timestamp: end,
        unique_key_query: unique,
        broker_name: None,
    };
    let mut records = Vec::new();
    for broker in &route(desk, topic).await?.broker_datas {
        let address = reachable(broker)?;
        let found = desk.admin.query_message(address, &wanted).await;
        records.extend(found.map_err(|error| failed(format!("messages of {topic} at {address}"), error))?);
    }
    if records.is_empty() {
        return Err(format!("no message of {topic} has the key {key}; it may have been trimmed, or never stored"));
    }
    report(records.iter().map(|record| &record[..]))
}

#[derive(Args)]
pub struct QueryMsgByKey {
    #[command(flatten)]
    topic: TopicName,
    /// One of the message's keys.
    #[arg(short = 'k', long = "msgKey", value_name = "KEY")]
    key: String,
    /// Stored at or after, milliseconds since the epoch.
    #[arg(short = 'b', long = "beginTimestamp", value_name = "MS", default_value_t = 0)]
    begin: i64,
    /// Stored at or before, milliseconds since the epoch.
    #[arg(short = 'e', long = "endTimestamp", value_name = "MS", default_value_t = i64::MAX, hide_default_value = true)]
    end: i64,
}

impl Execute for QueryMsgByKey {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        query(desk, &self.topic.name, &self.key, false, self.begin, self.end).await
    }
}

#[derive(Args)]
pub struct QueryMsgByUniqueKey {
    #[command(flatten)]
    topic: TopicName,
    /// The message's unique key.
    #[arg(short = 'i', long = "msgId", value_name = "KEY")]
    key: String,
}

impl Execute for QueryMsgByUniqueKey {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        query(desk, &self.topic.name, &self.key, true, 0, i64::MAX).await
    }
}

#[derive(Args)]
pub struct QueryMsgByOffset {
    #[command(flatten)]
    topic: TopicName,
    /// The broker group.
    #[arg(short = 'b', long = "brokerName", value_name = "NAME")]
    broker: String,
    /// The queue.
    #[arg(short = 'i', long = "queueId", value_name = "ID")]
    queue_id: i32,
    /// The message's offset in the queue.
    #[arg(short = 'o', long = "offset", value_name = "OFFSET")]
    offset: i64,
}

impl Execute for QueryMsgByOffset {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let (topic, queue_id, offset) = (&self.topic.name, self.queue_id, self.offset);
        let route = route(desk, topic).await?;
        let address = reachable(named(&route.broker_datas, &self.broker)?)?;
        let pulled = desk.admin.pull(address, TOOLS_GROUP, topic, queue_id, offset, 1).await;
        let pulled = pulled.map_err(|error| failed(format!("queue {queue_id} of {topic} at {address}"), error))?;
        match pulled.records.first() {
            Some(record) => report([&record[..]]),
            None if pulled.bounds.min_offset == pulled.bounds.max_offset => {
                Err(format!("no message at offset {offset}: queue {queue_id} is empty"))
            }
            None => Err(format!(
                "no message at offset {offset} of queue {queue_id}: the queue has {} to {}",
                pulled.bounds.min_offset,
                pulled.bounds.max_offset - 1
            )),
        }
    }
}

#[derive(Args)]
pub struct SendMessage {
    #[command(flatten)]
    topic: TopicName,
    /// The body, UTF-8.
    #[arg(short = 'p', long = "body", value_name = "TEXT")]
    body: String,
    /// Keys, separated by spaces.
    #[arg(short = 'k', long = "key", value_name = "KEYS")]
    keys: Option<String>,
    /// The tag.
    #[arg(short = 'c', long = "tags", value_name = "TAG")]
    tag: Option<String>,
    /// The broker group [default: any].
    #[arg(short = 'b', long = "broker", value_name = "NAME")]
    broker: Option<String>,
    /// The queue [default: any].
    #[arg(short = 'i', long = "qid", value_name = "ID", requires = "broker")]
    queue_id: Option<i32>,
}

const SENT: &[Column] = &[
    Column("#Broker Name", "brokerName"),
    Column("#QID", "queueId"),
    Column("#Send Result", "sendResult"),
    Column("#MsgId", "msgId"),
    Column("#Offset MsgId", "offsetMsgId"),
    Column("#Queue Offset", "queueOffset"),
];

impl Execute for SendMessage {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let topic = &self.topic.name;
        let route = route(desk, topic).await?;
        let mut places = Vec::new();
        for queues in &route.queue_datas {
            let is_wanted = self.broker.as_ref().is_none_or(|name| *name == queues.broker_name);
            let broker = named(&route.broker_datas, &queues.broker_name)?;
            if let (true, true, Some(address)) =
                (is_wanted, Permission(queues.perm).is_writable(), broker.master_addr())
            {
                places.extend((0..queues.write_queue_nums).map(|queue_id| (broker, address, queue_id)));
            }
        }
        places.retain(|(_, _, queue_id)| self.queue_id.is_none_or(|wanted| wanted == *queue_id));
        if places.is_empty() {
            let leaderless = route.broker_datas.iter().find(|broker| broker.master_addr().is_none());
            return Err(match leaderless {
                Some(broker) => {
                    format!("{} has no leader now; nothing was sent: try again in some seconds", broker.broker_name)
                }
                None => format!(
                    "{topic} has no such queue to write to; see `raftmq admin topicRoute -l -t {topic}` for those it has"
                ),
            });
        }
        let (broker, address, queue_id) = places[desk.env.rng.below(places.len() as u64) as usize];
        let unique_key = self.unique_key(desk);
        let mut properties = Properties::new();
        properties.set(properties::UNIQ_KEY, &unique_key);
        properties.set(properties::WAIT, true);
        if let Some(keys) = &self.keys {
            properties.set(properties::KEYS, keys);
        }
        if let Some(tag) = &self.tag {
            properties.set(properties::TAGS, tag);
        }
        let header = SendMessageRequest {
            producer_group: TOOLS_GROUP.to_owned(),
            topic: topic.clone(),
            default_topic: AUTO_CREATE_TOPIC.to_owned(),
            default_topic_queue_nums: 4,
            queue_id,
            born_timestamp: desk.env.clock.wall_ms(),
            properties: Some(properties.into_encoded()),
            ..SendMessageRequest::default()
        };
        let sent = desk.admin.send(address, header, self.body.clone().into_bytes()).await;
        let sent = sent.map_err(|error| failed(format!("message {unique_key} to {topic} at {address}"), error))?;
        let mut table = Table::new(SENT);
        table.push([
            broker.broker_name.as_str().into(),
            sent.queue_id.unwrap_or(queue_id).into(),
            "SEND_OK".into(),
            unique_key.into(),
            sent.msg_id.map_or(Value::Null, Value::from),
            sent.queue_offset.map_or(Value::Null, Value::from),
        ]);
        Ok(table.into())
    }
}

impl SendMessage {
    /// A key that no other message has: where it was made does not matter, that it is random does.
    fn unique_key(&self, desk: &Desk) -> String {
        let bits = desk.env.rng.u64();
        let key = UniqueKey {
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            pid: (bits >> 48) as i16,
            class_hash: (bits >> 16) as i32,
            month_ms: (desk.env.clock.wall_ms() & i64::from(i32::MAX)) as i32,
            counter: bits as i16,
        };
        key.to_string()
    }
}

#[derive(Args)]
pub struct ConsumeMessage {
    #[command(flatten)]
    topic: TopicName,
    /// One broker group only.
    #[arg(short = 'b', long = "brokerName", value_name = "NAME")]
    broker: Option<String>,
    /// One queue only.
    #[arg(short = 'i', long = "queueId", value_name = "ID", requires = "broker")]
    queue_id: Option<i32>,
    /// First offset [default: the queue's first].
    #[arg(short = 'o', long = "offset", value_name = "OFFSET", requires = "queue_id")]
    offset: Option<i64>,
    /// Most messages.
    #[arg(short = 'c', long = "messageNumber", value_name = "COUNT", default_value_t = 128)]
    count: usize,
    /// Stored at or after, milliseconds since the epoch.
    #[arg(short = 's', long = "beginTimestamp", value_name = "MS")]
    begin: Option<i64>,
    /// Stored at or before, milliseconds since the epoch.
    #[arg(short = 'e', long = "endTimestamp", value_name = "MS")]
    end: Option<i64>,
    /// The group to pull as; it need not exist, and its offsets do not move.
    #[arg(short = 'g', long = "consumerGroup", value_name = "GROUP", default_value = TOOLS_GROUP)]
    group: String,
}

/// Most messages in one pull.
const PULL_BATCH: usize = 32;

impl ConsumeMessage {
    async fn first_offset(&self, desk: &Desk, address: &str, queue_id: i32) -> Result<i64, RequestError> {
        match (self.offset, self.begin) {
            (Some(offset), _) => Ok(offset),
            (None, Some(begin)) => desk.admin.search_offset(address, &self.topic.name, queue_id, begin).await,
            (None, None) => desk.admin.min_offset(address, &self.topic.name, queue_id).await,
        }
    }

    /// Reads one queue to its present end, or until there are enough messages.
    async fn read_queue(
        &self,
        desk: &Desk,
        address: &str,
        queue_id: i32,
        records: &mut Vec<Vec<u8>>,
    ) -> Result<(), RequestError> {
        let topic = &self.topic.name;
        let end = desk.admin.max_offset(address, topic, queue_id).await?;
        let mut offset = self.first_offset(desk, address, queue_id).await?;
        while offset < end && records.len() < self.count {
            let batch = PULL_BATCH.min(self.count - records.len()) as i32;
            let pulled = desk.admin.pull(address, &self.group, topic, queue_id, offset, batch).await?;
            for record in pulled.records {
                let is_late = RecordView::parse(&record)
                    .is_ok_and(|view| self.end.is_some_and(|end| view.store_timestamp() > end));
                if is_late {
                    return Ok(());
                }
                records.push(record.to_vec());
            }
            let next = pulled.bounds.next_begin_offset;
            if pulled.code == ResponseCode::PULL_NOT_FOUND || next <= offset {
                return Ok(());
            }
            offset = next;
        }
        Ok(())
    }
}

impl Execute for ConsumeMessage {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let topic = &self.topic.name;
        let route = route(desk, topic).await?;
        if let Some(name) = &self.broker {
            named(&route.broker_datas, name)?;
        }
        let mut records = Vec::new();
        for queues in &route.queue_datas {
            if self.broker.as_ref().is_some_and(|name| *name != queues.broker_name) {
                continue;
            }
            let address = reachable(named(&route.broker_datas, &queues.broker_name)?)?;
            for queue_id in 0..queues.read_queue_nums {
                if self.queue_id.is_none_or(|wanted| wanted == queue_id) {
                    let read = self.read_queue(desk, address, queue_id, &mut records).await;
                    read.map_err(|error| failed(format!("queue {queue_id} of {topic} at {address}"), error))?;
                }
            }
        }
        let mut text = String::new();
        let mut values = Vec::new();
        for record in &records {
            let (_, value) = describe(record)?;
            let member = |key: &str| value[key].as_str().unwrap_or("-").to_owned();
            text += &format!("MSGID: {} {} BODY: {}\n", member("uniqueKey"), member("offsetMsgId"), member("body"));
            values.push(value);
        }
        Ok(Report::new(text, json!(values)))
    }
}

#[cfg(test)]
mod tests {
    use client::admin::protocol::record::NewRecord;
    use client::admin::protocol::sys_flag::{Compression, SysFlag};

    use super::*;

    fn described(body: &[u8], sys_flag: SysFlag) -> (String, Value) {
        let mut properties = Properties::new();
        properties.set(properties::TAGS, "red");
        properties.set(properties::UNIQ_KEY, "0A");
        let host = "10.0.0.2:10911".parse().expect("an address");
        let record = NewRecord {
            topic: "T",
            queue_id: 3,
            flag: 0,
            sys_flag,
            born_timestamp: 1_700_000_000_000,
            born_host: host,
            store_timestamp: 1_700_000_000_001,
            store_host: host,
            reconsume_times: 2,
            prepared_transaction_offset: 0,
            body,
            properties: properties.encoded(),
        };
        describe(&record.to_bytes().expect("it fits")).expect("a record")
    }

    #[test]
    fn a_compressed_body_is_shown_as_its_producer_had_it() {
        // zlib of "hi".
        let zlib = [0x78, 0x9c, 0xcb, 0xc8, 0x04, 0x00, 0x01, 0x3b, 0x00, 0xd2];
        let shown = |kind| described(&zlib, SysFlag(0).with_compression(kind)).1["body"].clone();
        assert_eq!(shown(Compression::Zlib), "hi");
        assert_eq!(shown(Compression::Zstd), "10 bytes that are no Zstd stream");
    }

    #[test]
    fn a_message_is_described_field_by_field() {
        let (text, value) = described("grüße".as_bytes(), SysFlag(0));
        assert!(
            text.starts_with("OffsetID:            0A00000200002A9F0000000000000000\nTopic:               T\n"),
            "{text}"
        );
        assert!(text.contains("\nTags:                red\nKeys:\n"), "{text}");
        assert!(text.contains("\nStore Timestamp:     2023-11-14T22:13:20.001Z\n"), "{text}");
        assert!(text.ends_with("\nMessage Body:        grüße\n"), "{text}");
        assert_eq!((&value["queueId"], &value["properties"]["TAGS"]), (&json!(3), &json!("red")));
        assert!(describe(&[1, 2, 3]).is_err());
    }
}

//! What is in the queues and how far groups have come: 202, 208, 317, 300, 343, 303, 321, 43, 315.
//!
//! Times are those at which messages became visible, and rates of a topic are counted in its queues by these times: every
//! replica says the same, and nothing is lost in a restart. How fast a group consumes is in [`super::statistics`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::body::{
    BrokerStatsData, BrokerStatsItem, ConsumeQueueData, ConsumeStats, ConsumeStatsList, ConsumerOffsetTable,
    DataVersion, GroupList, MessageQueue, OffsetWrapper, QueryConsumeQueueBody, QueryConsumeTimeSpanBody,
    QueueTimeSpan, TopicList, TopicOffset, TopicStatsTable,
};
use protocol::code::ResponseCode;
use protocol::header::{
    GetBrokerConsumeStatsRequest, GetConsumeStatsRequest, GroupRequest, GroupTopicRequest, QueryConsumeQueueRequest,
    TopicRequest, ViewBrokerStatsRequest,
};
use raft_store::consume_queue::{Unit, UnitsError};
use raft_store::position::Timestamp;

use super::pages::term;
use super::queues::QueueView;
use super::statistics::{DAY, HOUR, MINUTE};
use crate::broker::BrokerGroup;
use crate::clients::{ConsumerGroup, Subscription};
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::tables::offsets::OffsetKey;
use crate::tables::topics::Topic;

/// Units in one answer.
const UNITS_MAX: usize = 1024;

/// Handles GET_TOPIC_STATS_INFO.
pub async fn topic_stats(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: TopicRequest = call.request.header()?;
    let topic = broker.topic(&request.topic)?;
    let mut offset_table = BTreeMap::new();
    for queue in QueueView::all(&broker.reader, &topic) {
        let bounds = queue.bounds();
        let offset = TopicOffset {
            last_update_timestamp: queue.newest_ms().unwrap_or(0),
            max_offset: bounds.end as i64,
            min_offset: bounds.start as i64,
        };
        offset_table.insert(broker.message_queue(&topic, queue.number), offset);
    }
    let topic_put_tps = broker.visible_within(&topic, MINUTE.as_millis() as i64).await? as f64 / MINUTE.as_secs_f64();
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&TopicStatsTable { offset_table, topic_put_tps }))
}

/// Handles GET_CONSUME_STATS.
pub async fn consume_stats(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: GetConsumeStatsRequest = call.request.header()?;
    let group = &request.consumer_group;
    let named = named_topics(request.topic.as_deref(), request.topic_list.as_deref());
    let mut stats = ConsumeStats::default();
    for topic in &broker.progress_of(group, &named) {
        let of_topic = broker.consume_stats_of(group, topic).await?;
        stats.consume_tps += of_topic.consume_tps;
        stats.offset_table.extend(of_topic.offset_table);
    }
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&stats))
}

/// Handles GET_BROKER_CONSUME_STATS.
pub async fn broker_consume_stats(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: GetBrokerConsumeStatsRequest = call.request.header()?;
    let groups: Vec<String> = broker.reader.tables().groups().iter().map(|group| group.name.clone()).collect();
    let mut list =
        ConsumeStatsList { broker_addr: broker.advertised_address().to_string(), ..ConsumeStatsList::default() };
    for group in groups {
        let mut of_group = Vec::new();
        for topic in broker.progress_of(&group, &BTreeSet::new()) {
            if request.is_order && !topic.topic.config.order {
                continue;
            }
            let stats = broker.consume_stats_of(&group, &topic).await?;
            let (behind, in_flight) = differences(&stats);
            list.total_diff += behind;
            list.total_inflight_diff += in_flight;
            of_group.push(stats);
        }
        list.consume_stats_list.push([(group, of_group)].into());
    }
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&list))
}

/// Handles QUERY_TOPIC_CONSUME_BY_WHO.
pub async fn groups_of_topic(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let TopicRequest { topic, .. } = call.request.header()?;
    let mut group_list: BTreeSet<String> = {
        let tables = broker.reader.tables();
        let with_offsets = tables.offsets().iter().filter(|(key, _)| key.topic == topic);
        with_offsets.map(|(key, _)| key.group.clone()).collect()
    };
    let clients = broker.clients.lock();
    let online = clients.consumer_groups().filter(|(_, group)| group.subscriptions.contains_key(&topic));
    group_list.extend(online.map(|(name, _)| name.to_owned()));
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&GroupList { group_list }))
}

/// Handles QUERY_TOPICS_BY_CONSUMER.
pub async fn topics_of_group(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let GroupRequest { group } = call.request.header()?;
    let tables = broker.reader.tables();
    let topic_list = tables.offsets().of_group(&group).map(|(key, _)| key.topic.clone()).collect();
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&TopicList { broker_addr: None, topic_list }))
}

/// Handles QUERY_CONSUME_TIME_SPAN.
pub async fn time_span(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let GroupTopicRequest { group, topic } = call.request.header()?;
    let topic = broker.topic(&topic)?;
    let now = broker.now();
    let mut spans = Vec::new();
    for queue in QueueView::all(&broker.reader, &topic) {
        let consumed = broker.reader.tables().offsets().get(&group, &topic.config.name, queue.number);
        let times = QueueTimes::read(&queue, consumed).await?;
        spans.push(times.span(broker.message_queue(&topic, queue.number), now));
    }
    let body = QueryConsumeTimeSpanBody { consume_time_span_set: spans };
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&body))
}

/// Handles QUERY_CONSUME_QUEUE.
pub async fn consume_queue(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: QueryConsumeQueueRequest = call.request.header()?;
    let not_there = || RequestError::Failed(format!("{}@{} is not exist!", request.queue_id, request.topic));
    let topic = broker.topic(&request.topic).map_err(|_| not_there())?;
    let number = u32::try_from(request.queue_id).ok().filter(|number| *number < topic.queues());
    let queue = QueueView::new(&broker.reader, &topic, number.ok_or_else(not_there)?);
    let bounds = queue.bounds();

    let count = usize::try_from(request.count).unwrap_or(0).min(UNITS_MAX);
    let mut units = Vec::new();
    let mut next = u64::try_from(request.index).unwrap_or(u64::MAX);
    while units.len() < count {
        let more = queue.units(next, count - units.len()).await?;
        if more.is_empty() {
            break;
        }
        next += more.len() as u64;
        units.extend(more);
    }

    let mut body = QueryConsumeQueueBody {
        max_queue_index: bounds.end as i64,
        min_queue_index: bounds.start as i64,
        ..QueryConsumeQueueBody::default()
    };
    let subscription = request.consumer_group.as_deref().map(|group| {
        let clients = broker.clients.lock();
        clients.consumer_group(group).and_then(|group| group.subscriptions.get(&request.topic)).cloned()
    });
    match &subscription {
        Some(Some(subscription)) => body.subscription_data = Some(subscription.data.clone()),
        Some(None) => {
            let group = request.consumer_group.as_deref().unwrap_or_default();
            body.filter_data = Some(format!("{group}@{} is not online!", request.topic));
        }
        None => {}
    }
    body.queue_data =
        units.iter().map(|unit| unit_body(unit, subscription.as_ref().and_then(Option::as_ref))).collect();
    let mut answer = call.request.reply(ResponseCode::SUCCESS);
    if body.queue_data.is_empty() {
        answer = answer
            .with_remark(format!("Index {} of {}@{} is not exist!", request.index, request.queue_id, request.topic));
    }
    Ok(answer.with_json(&body))
}

/// Handles GET_ALL_CONSUMER_OFFSET.
pub async fn all_offsets(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let data_version = DataVersion {
        counter: broker.reader.applied().map_or(0, |applied| applied.index as i64),
        state_version: term(&broker.role.borrow()) as i64,
        timestamp: broker.reader.now().0,
    };
    let offset_table = offset_table(broker.reader.tables().offsets().iter());
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&ConsumerOffsetTable { data_version, offset_table }))
}

/// Handles VIEW_BROKER_STATS_DATA: messages into a topic (`TOPIC_PUT_NUMS`), and out of it to a group (`GROUP_GET_NUMS`).
/// What else Java counts, and what nobody uses, is empty: tools ask for every group of every topic.
pub async fn view_stats(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: ViewBrokerStatsRequest = call.request.header()?;
    let mut stats = BrokerStatsData::default();
    match (request.stats_name.as_str(), request.stats_key.split_once('@')) {
        ("TOPIC_PUT_NUMS", None) => {
            if let Ok(topic) = broker.topic(&request.stats_key) {
                for (item, span) in
                    [(&mut stats.stats_minute, MINUTE), (&mut stats.stats_hour, HOUR), (&mut stats.stats_day, DAY)]
                {
                    let sum = broker.visible_within(&topic, span.as_millis() as i64).await?;
                    *item = BrokerStatsItem { avgpt: 0.0, sum: sum as i64, tps: sum as f64 / span.as_secs_f64() };
                }
            }
        }
        ("GROUP_GET_NUMS", Some((topic, group))) => {
            stats = broker.statistics.consumed(group, topic, broker.env.clock.monotonic());
        }
        _ => {}
    }
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&stats))
}

/// A topic that a group consumes, and the group's offsets in it.
struct Progress {
    topic: Topic,
    offsets: BTreeMap<u32, u64>,
}

impl BrokerGroup {
    /// The topic of that name.
    pub(super) fn topic(&self, name: &str) -> Result<Topic, RequestError> {
        self.reader.tables().topics().get(name).cloned().ok_or_else(|| RequestError::NoTopic(name.to_owned()))
    }

    fn message_queue(&self, topic: &Topic, queue: u32) -> MessageQueue {
        MessageQueue::new(topic.config.name.clone(), self.broker_name(), queue as i32)
    }

    /// How many messages of the topic became visible within the last `span_ms`.
    async fn visible_within(&self, topic: &Topic, span_ms: i64) -> Result<u64, RequestError> {
        let since = Timestamp(self.now().0 - span_ms);
        let mut count = 0;
        for queue in QueueView::all(&self.reader, topic) {
            count += queue.visible_since(since).await?;
        }
        Ok(count)
    }

    /// The topics that count for a group: the `named` ones, or else all in which it has offsets. While it is online only
    /// what it subscribes to counts: its offsets in a topic that it has left say nothing any more.
    fn progress_of(&self, group: &str, named: &BTreeSet<&str>) -> Vec<Progress> {
        // Never both locks at once: others may take them in the other order.
        let subscribed = self.clients.lock().consumer_group(group).map(subscribed_topics).filter(|all| !all.is_empty());
        let tables = self.reader.tables();
        let mut offsets: BTreeMap<&str, BTreeMap<u32, u64>> =
            named.iter().map(|topic| (*topic, BTreeMap::new())).collect();
        for (key, offset) in tables.offsets().of_group(group) {
            if named.is_empty() || named.contains(key.topic.as_str()) {
                offsets.entry(&key.topic).or_default().insert(key.queue, offset);
            }
        }
        let counts = |topic: &str| subscribed.as_ref().is_none_or(|subscribed| subscribed.contains(topic));
        let counted = offsets.into_iter().filter(|(topic, _)| counts(topic));
        let progress = counted
            .filter_map(|(topic, offsets)| Some(Progress { topic: tables.topics().get(topic)?.clone(), offsets }));
        progress.collect()
    }

    async fn consume_stats_of(&self, group: &str, progress: &Progress) -> Result<ConsumeStats, RequestError> {
        let topic = &progress.topic;
        let mut stats = ConsumeStats {
            consume_tps: self.statistics.consume_tps(group, &topic.config.name, self.env.clock.monotonic()),
            ..ConsumeStats::default()
        };
        for number in 0..topic.config.read_queues {
            let queue = QueueView::new(&self.reader, topic, number);
            let consumer_offset = progress.offsets.get(&number).copied().unwrap_or(0);
            let last = match consumer_offset.checked_sub(1) {
                Some(last) => queue.visible_at_ms(last).await?,
                None => None,
            };
            let offset = OffsetWrapper {
                broker_offset: queue.bounds().end as i64,
                consumer_offset: consumer_offset as i64,
                last_timestamp: last.unwrap_or(0),
                pull_offset: consumer_offset as i64,
            };
            stats.offset_table.insert(self.message_queue(topic, number), offset);
        }
        Ok(stats)
    }
}

/// The topics that a request names, in either form.
fn named_topics<'a>(topic: Option<&'a str>, topic_list: Option<&'a str>) -> BTreeSet<&'a str> {
    let list = topic_list.unwrap_or("").split(';').map(str::trim);
    topic.into_iter().chain(list).filter(|topic| !topic.is_empty()).collect()
}

fn subscribed_topics(group: &ConsumerGroup) -> BTreeSet<String> {
    group.subscriptions.keys().cloned().collect()
}

/// Messages not consumed, and messages pulled but not consumed.
fn differences(stats: &ConsumeStats) -> (i64, i64) {
    stats.offset_table.values().fold((0, 0), |(behind, in_flight), offset| {
        (
            behind + offset.broker_offset - offset.consumer_offset,
            in_flight + offset.pull_offset - offset.consumer_offset,
        )
    })
}

/// RocketMQ's form: by `topic@group`, then by queue.
fn offset_table<'a>(offsets: impl Iterator<Item = (&'a OffsetKey, u64)>) -> BTreeMap<String, BTreeMap<i32, i64>> {
    let mut table: BTreeMap<String, BTreeMap<i32, i64>> = BTreeMap::new();
    for (key, offset) in offsets {
        let of_topic = table.entry(format!("{}@{}", key.topic, key.group)).or_default();
        of_topic.insert(key.queue as i32, offset as i64);
    }
    table
}

/// A unit in RocketMQ's words, and whether the subscription selects it, as far as a unit shows.
fn unit_body(unit: &Unit, subscription: Option<&Subscription>) -> ConsumeQueueData {
    let selects =
        |subscription: &Subscription| subscription.filter.as_ref().is_ok_and(|filter| filter.may_match(unit.tag_hash));
    ConsumeQueueData {
        eval: subscription.is_none_or(selects),
        physic_offset: unit.physical_offset.0 as i64,
        physic_size: unit.size as i32,
        tags_code: i64::from(unit.tag_hash),
        ..ConsumeQueueData::default()
    }
}

/// When messages of a queue became visible, in ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct QueueTimes {
    oldest: Option<i64>,
    newest: Option<i64>,
    /// The last one that a group has consumed.
    consumed: Option<i64>,
    /// The first one that it has not.
    next: Option<i64>,
}

impl QueueTimes {
    async fn read(queue: &QueueView, consumer_offset: Option<u64>) -> Result<QueueTimes, UnitsError> {
        let bounds = queue.bounds();
        let consumed = match consumer_offset.and_then(|offset| offset.checked_sub(1)) {
            Some(last) => queue.visible_at_ms(last).await?,
            None => None,
        };
        Ok(QueueTimes {
            oldest: queue.visible_at_ms(bounds.start).await?,
            newest: queue.newest_ms(),
            consumed,
            next: queue.visible_at_ms(consumer_offset.unwrap_or(0).max(bounds.start)).await?,
        })
    }

    /// In RocketMQ's words, which says -1 for a message that does not exist. A group that has consumed nothing stands at
    /// the oldest.
    fn span(&self, message_queue: MessageQueue, now: Timestamp) -> QueueTimeSpan {
        QueueTimeSpan {
            consume_time_stamp: self.consumed.or(self.oldest).unwrap_or(-1),
            delay_time: self.next.map_or(0, |next| (now.0 - next).max(0)),
            max_time_stamp: self.newest.unwrap_or(-1),
            message_queue,
            min_time_stamp: self.oldest.unwrap_or(-1),
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::body::SubscriptionData;
    use raft_store::consume_queue::UnitKind;
    use raft_store::position::PhysicalOffset;

    use super::*;
    use crate::filter::Filter;

    fn text(body: &impl serde::Serialize) -> String {
        String::from_utf8(protocol::json::to_vec(body)).expect("JSON")
    }

    #[test]
    fn topics_are_named_alone_or_in_a_list() {
        let named = |topic, list| named_topics(topic, list).into_iter().collect::<Vec<_>>();
        assert_eq!(named(None, None), [""; 0]);
        assert_eq!(named(Some("a"), None), ["a"]);
        assert_eq!(named(Some("a"), Some("b; c;;a")), ["a", "b", "c"]);
    }

    #[test]
    fn offsets_stand_under_topic_and_group() {
        let key = |group: &str, queue| OffsetKey { group: group.to_owned(), topic: "T".to_owned(), queue };
        let rows = [(key("g", 0), 123), (key("g", 1), 4), (key("h", 0), 5)];
        let body = ConsumerOffsetTable {
            data_version: DataVersion { counter: 1, state_version: 2, timestamp: 3 },
            offset_table: offset_table(rows.iter().map(|(key, offset)| (key, *offset))),
        };
        let golden = r#"{"dataVersion":{"counter":1,"stateVersion":2,"timestamp":3},"offsetTable":{"T@g":{"0":123,"1":4},"T@h":{"0":5}}}"#;
        assert_eq!(text(&body), golden);
    }

    #[test]
    fn what_is_behind_and_in_flight_adds_up() {
        let offset = |broker_offset, consumer_offset, pull_offset| OffsetWrapper {
            broker_offset,
            consumer_offset,
            pull_offset,
            last_timestamp: 0,
        };
        let queue = |number| MessageQueue::new("T", "broker-a", number);
        let offset_table = [(queue(0), offset(9, 7, 8)), (queue(1), offset(5, 5, 5))].into();
        assert_eq!(differences(&ConsumeStats { offset_table, consume_tps: 0.0 }), (2, 1));
    }

    #[test]
    fn a_span_says_how_long_the_next_message_has_waited() {
        let queue = || MessageQueue::new("T", "broker-a", 0);
        let times = QueueTimes { oldest: Some(10), newest: Some(90), consumed: Some(40), next: Some(50) };
        let body = QueryConsumeTimeSpanBody { consume_time_span_set: vec![times.span(queue(), Timestamp(100))] };
        let golden = r#"{"consumeTimeSpanSet":[{"consumeTimeStamp":40,"delayTime":50,"maxTimeStamp":90,"messageQueue":{"brokerName":"broker-a","queueId":0,"topic":"T"},"minTimeStamp":10}]}"#;
        assert_eq!(text(&body), golden);
        let untouched = QueueTimes { oldest: Some(10), newest: Some(90), consumed: None, next: Some(10) };
        let span = untouched.span(queue(), Timestamp(100));
        assert_eq!((span.consume_time_stamp, span.delay_time), (10, 90));
        let empty = QueueTimes::default().span(queue(), Timestamp(100));
        assert_eq!((empty.min_time_stamp, empty.max_time_stamp, empty.consume_time_stamp), (-1, -1, -1));
        assert_eq!(empty.delay_time, 0);
    }

    #[test]
    fn a_unit_shows_whether_the_group_s_tags_select_it() {
        let unit = Unit {
            physical_offset: PhysicalOffset(64),
            size: 100,
            tag_hash: protocol::tag::hash_code("A"),
            visible_at: Timestamp(1),
            kind: UnitKind::Plain,
        };
        let golden = r#"{"eval":true,"physicOffset":64,"physicSize":100,"tagsCode":65}"#;
        assert_eq!(text(&unit_body(&unit, None)), golden);
        let by_tag = |tag: &str| {
            let data = SubscriptionData::by_tags("T", tag, 1).expect("a tag");
            Subscription { filter: Filter::of(&data).map(Arc::new), data }
        };
        assert!(unit_body(&unit, Some(&by_tag("A"))).eval && unit_body(&unit, Some(&by_tag("*"))).eval);
        assert!(!unit_body(&unit, Some(&by_tag("B"))).eval);
    }
}

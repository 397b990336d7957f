//! Consumer and producer groups: updateSubGroup, deleteSubGroup, consumerProgress, consumerConnection,
//! producerConnection, resetOffsetByTime, skipAccumulatedMessage, cloneGroupOffset, getConsumerStatus.

use std::collections::BTreeMap;

use clap::{ArgAction, Args};
use client::admin::address_of;
use client::admin::protocol::body::{
    self, BrokerData, Connection, ConsumeStats, MessageQueue, OffsetWrapper, SubscriptionGroupConfig,
};
use client::admin::protocol::code::ResponseCode;
use client::admin::protocol::names::{dlq_topic, group_of_retry_topic, retry_topic, validate_group};
use serde_json::{Value, json};

use super::report::{Column, Report, Table, date};
use super::topics::{TopicName, route};
use super::{Desk, Execute, Target, failed};

/// A group by its name.
#[derive(Args)]
pub(super) struct GroupName {
    /// The group.
    #[arg(id = "group", short = 'g', long = "groupName", alias = "consumerGroup", value_name = "GROUP")]
    pub(super) name: String,
}

#[derive(Args)]
pub struct UpdateSubGroup {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    group: GroupName,
    /// May consume.
    #[arg(short = 's', long = "consumeEnable", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    consume_enable: bool,
    /// May start from the first offset.
    #[arg(short = 'm', long = "consumeFromMinEnable", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    consume_from_min_enable: bool,
    /// May broadcast.
    #[arg(short = 'd', long = "consumeBroadcastEnable", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    consume_broadcast_enable: bool,
    /// Consumes in order.
    #[arg(short = 'o', long = "consumeMessageOrderly", value_name = "BOOL", default_value_t = false, action = ArgAction::Set)]
    consume_message_orderly: bool,
    /// Queues of the retry topic.
    #[arg(short = 'q', long = "retryQueueNums", value_name = "COUNT", default_value_t = 1)]
    retry_queue_nums: i32,
    /// Attempts before the dead letter.
    #[arg(short = 'r', long = "retryMaxTimes", value_name = "COUNT", default_value_t = 16)]
    retry_max_times: i32,
    /// Broker id to pull from.
    #[arg(short = 'i', long = "brokerId", value_name = "ID", default_value_t = 0)]
    broker_id: i64,
    /// Broker id for consumers far behind.
    #[arg(short = 'w', long = "whichBrokerWhenConsumeSlowly", value_name = "ID", default_value_t = 1)]
    which_broker_when_consume_slowly: i64,
    /// Members hear of changes at once.
    #[arg(short = 'a', long = "notifyConsumerIdsChanged", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    notify_consumer_ids_changed: bool,
}

impl Execute for UpdateSubGroup {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        validate_group(&self.group.name).map_err(|error| error.to_string())?;
        let config = SubscriptionGroupConfig {
            consume_enable: self.consume_enable,
            consume_from_min_enable: self.consume_from_min_enable,
            consume_broadcast_enable: self.consume_broadcast_enable,
            consume_message_orderly: self.consume_message_orderly,
            retry_queue_nums: self.retry_queue_nums,
            retry_max_times: self.retry_max_times,
            broker_id: self.broker_id,
            which_broker_when_consume_slowly: self.which_broker_when_consume_slowly,
            notify_consumer_ids_changed_enable: self.notify_consumer_ids_changed,
            ..SubscriptionGroupConfig::new(&self.group.name)
        };
        let (mut text, mut json) = (String::new(), Vec::new());
        for broker in self.target.brokers(desk).await? {
            let put = desk.admin.put_group(&broker.address, &config).await;
            put.map_err(|error| failed(format!("{text}create subscription group at {}", broker.address), error))?;
            text += &format!("create subscription group to {} success.\n", broker.address);
            json.push(json!({"brokerName": broker.name, "addr": broker.address, "groupName": self.group.name}));
        }
        Ok(Report::new(text, Value::Array(json)))
    }
}

#[derive(Args)]
pub struct DeleteSubGroup {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    group: GroupName,
    /// Delete its offsets, too.
    #[arg(short = 'r', long = "removeOffset", value_name = "BOOL", default_value_t = false, action = ArgAction::Set)]
    remove_offset: bool,
}

impl Execute for DeleteSubGroup {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let (group, admin) = (&self.group.name, &desk.admin);
        let (mut text, mut json) = (String::new(), Vec::new());
        let derived = [retry_topic(group), dlq_topic(group)];
        for broker in self.target.brokers(desk).await? {
            let gone = admin.delete_group(&broker.address, group, self.remove_offset).await;
            gone.map_err(|error| failed(format!("{text}delete group at {}", broker.address), error))?;
            text += &format!("delete subscription group [{group}] from {} success.\n", broker.address);
            // As mqadmin does: a whole cluster's retries and dead letters go with the group, one broker's do not.
            for topic in derived.iter().filter(|_| self.target.cluster.is_some()) {
                let gone = admin.delete_topic(&broker.address, topic).await;
                gone.map_err(|error| failed(format!("{text}delete {topic} at {}", broker.address), error))?;
                text += &format!("delete topic [{topic}] from {} success.\n", broker.address);
            }
            json.push(json!({"brokerName": broker.name, "addr": broker.address, "groupName": group}));
        }
        if let Some(cluster) = &self.target.cluster {
            for topic in &derived {
                let gone = admin.delete_topic_route(topic, Some(cluster)).await;
                gone.map_err(|error| failed(format!("{text}route of {topic}"), error))?;
            }
        }
        Ok(Report::new(text, Value::Array(json)))
    }
}

/// The broker groups that a consumer group lives on: those of its retry topic, or all while it has none.
async fn brokers_of(desk: &Desk, group: &str) -> Result<Vec<BrokerData>, String> {
    let topic = retry_topic(group);
    let route = desk.admin.topic_route(&topic).await.map_err(|error| failed(format!("route of {topic}"), error))?;
    if let Some(route) = route {
        return Ok(route.broker_datas);
    }
    let info = desk.admin.cluster_info().await.map_err(|error| failed("cluster information", error))?;
    Ok(info.broker_addr_table.into_values().collect())
}

/// A group's progress on all brokers together.
async fn progress(desk: &Desk, group: &str, topic: Option<&str>) -> Result<ConsumeStats, String> {
    let mut all = ConsumeStats::default();
    for broker in brokers_of(desk, group).await? {
        let Some(address) = address_of(&broker) else { continue };
        let stats = desk.admin.consume_stats(address, group, topic).await;
        let stats = stats.map_err(|error| failed(format!("progress of {group} at {address}"), error))?;
        all.consume_tps += stats.consume_tps;
        all.offset_table.extend(stats.offset_table);
    }
    Ok(all)
}

/// Messages stored and not consumed; messages pulled and not consumed.
fn totals(queues: &BTreeMap<MessageQueue, OffsetWrapper>) -> (i64, i64) {
    let diff = queues.values().map(|queue| queue.broker_offset - queue.consumer_offset).sum();
    let inflight = queues.values().map(|queue| queue.pull_offset - queue.consumer_offset).sum();
    (diff, inflight)
}

#[derive(Args)]
pub struct ConsumerProgress {
    /// The group; without it, one line for each group.
    #[arg(short = 'g', long = "groupName", value_name = "GROUP")]
    group: Option<String>,
    /// One topic only.
    #[arg(short = 't', long = "topicName", value_name = "TOPIC", requires = "group")]
    topic: Option<String>,
}

const CONSUMER_PROGRESS: &[Column] = &[
    Column("#Topic", "topic"),
    Column("#Broker Name", "brokerName"),
    Column("#QID", "queueId"),
    Column("#Broker Offset", "brokerOffset"),
    Column("#Consumer Offset", "consumerOffset"),
    Column("#Diff", "diff"),
    Column("#Inflight", "inflight"),
    Column("#LastTime", "lastTime"),
];

const CONSUMER_GROUPS: &[Column] = &[
    Column("#Group", "group"),
    Column("#Count", "count"),
    Column("#Version", "version"),
    Column("#Type", "type"),
    Column("#Model", "model"),
    Column("#TPS", "tps"),
    Column("#Diff Total", "diffTotal"),
];

impl Execute for ConsumerProgress {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        match &self.group {
            Some(group) => self.of_group(desk, group).await,
            None => of_all_groups(desk).await,
        }
    }
}

impl ConsumerProgress {
    async fn of_group(&self, desk: &Desk, group: &str) -> Result<Report, String> {
        let stats = progress(desk, group, self.topic.as_deref()).await?;
        if stats.offset_table.is_empty() {
            return Err(format!("group {group} has no offsets; it has not consumed yet, or the name is another"));
        }
        let (diff, inflight) = totals(&stats.offset_table);
        let mut table = Table::new(CONSUMER_PROGRESS);
        for (queue, offsets) in stats.offset_table {
            table.push([
                queue.topic.into(),
                queue.broker_name.into(),
                queue.queue_id.into(),
                offsets.broker_offset.into(),
                offsets.consumer_offset.into(),
                (offsets.broker_offset - offsets.consumer_offset).into(),
                (offsets.pull_offset - offsets.consumer_offset).into(),
                date(offsets.last_timestamp),
            ]);
        }
        let tps = stats.consume_tps;
        let text = format!(
            "{}\nConsume TPS: {tps:.2}\nConsume Diff Total: {diff}\nConsume Inflight Total: {inflight}\n",
            table.to_text()
        );
        let json = json!({
            "queues": table.to_json(), "consumeTps": tps, "diffTotal": diff, "inflightTotal": inflight,
        });
        Ok(Report::new(text, json))
    }
}

async fn of_all_groups(desk: &Desk) -> Result<Report, String> {
    let topics = desk.admin.topics().await.map_err(|error| failed("topic list", error))?;
    let mut table = Table::new(CONSUMER_GROUPS);
    for group in topics.topic_list.iter().filter_map(|topic| group_of_retry_topic(topic)) {
        let stats = progress(desk, group, None).await?;
        let mut connected = None;
        for broker in brokers_of(desk, group).await? {
            let Some(address) = address_of(&broker) else { continue };
            let found = desk.admin.consumer_connection(address, group).await;
            connected = found.map_err(|error| failed(format!("members of {group} at {address}"), error))?;
            if connected.is_some() {
                break;
            }
        }
        let oldest = |members: &[Connection]| members.iter().map(|member| member.version).min();
        let of_members = |value: fn(&body::ConsumerConnection) -> Value| connected.as_ref().map_or(Value::Null, value);
        table.push([
            group.into(),
            connected.as_ref().map_or(0, |connected| connected.connection_set.len()).into(),
            connected.as_ref().and_then(|connected| oldest(&connected.connection_set)).map_or(Value::Null, Value::from),
            of_members(|connected| connected.consume_type.name().into()),
            of_members(|connected| connected.message_model.name().into()),
            stats.consume_tps.into(),
            totals(&stats.offset_table).0.into(),
        ]);
    }
    Ok(table.into())
}

#[derive(Args)]
pub struct ConsumerConnection {
    #[command(flatten)]
    group: GroupName,
}

const CONNECTIONS: &[Column] = &[
    Column("#ClientId", "clientId"),
    Column("#ClientAddr", "clientAddr"),
    Column("#Language", "language"),
    Column("#Version", "version"),
];

const SUBSCRIPTIONS: &[Column] = &[Column("#Topic", "topic"), Column("#SubExpression", "subExpression")];

fn connections(members: Vec<Connection>) -> Table {
    let mut table = Table::new(CONNECTIONS);
    for member in members {
        table.push([member.client_id.into(), member.client_addr.into(), member.language.into(), member.version.into()]);
    }
    table
}

impl Execute for ConsumerConnection {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let group = &self.group.name;
        for broker in brokers_of(desk, group).await? {
            let Some(address) = address_of(&broker) else { continue };
            let found = desk.admin.consumer_connection(address, group).await;
            let found = found.map_err(|error| failed(format!("members of {group} at {address}"), error))?;
            let Some(connected) = found else { continue };
            let members = connections(connected.connection_set);
            let mut subscriptions = Table::new(SUBSCRIPTIONS);
            for (topic, subscription) in connected.subscription_table {
                subscriptions.push([topic.into(), subscription.sub_string.into()]);
            }
            let (kind, model) = (connected.consume_type, connected.message_model);
            let from = connected.consume_from_where;
            let text = format!(
                "{}\nBelow is subscription:\n{}\nConsumeType: {kind}\nMessageModel: {model}\nConsumeFromWhere: {from}\n",
                members.to_text(),
                subscriptions.to_text()
            );
            let json = json!({
                "connections": members.to_json(), "subscriptions": subscriptions.to_json(),
                "consumeType": kind.name(), "messageModel": model.name(), "consumeFromWhere": from.name(),
            });
            return Ok(Report::new(text, json));
        }
        Err(format!("no member of consumer group {group} is connected; start one, or look at the name"))
    }
}

#[derive(Args)]
pub struct ProducerConnection {
    /// The group.
    #[arg(short = 'g', long = "producerGroup", value_name = "GROUP")]
    group: String,
    #[command(flatten)]
    topic: TopicName,
}

impl Execute for ProducerConnection {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let mut members = Vec::new();
        for broker in &route(desk, &self.topic.name).await?.broker_datas {
            let Some(address) = address_of(broker) else { continue };
            match desk.admin.producer_connection(address, &self.group).await {
                Ok(connected) => members.extend(connected.connection_set),
                // How brokers say that the group is unknown there.
                Err(error) if error.code() == Some(ResponseCode::SYSTEM_ERROR) => {}
                Err(error) => return Err(failed(format!("members of {} at {address}", self.group), error)),
            }
        }
        if members.is_empty() {
            return Err(format!("no member of producer group {} is connected to a broker of the topic", self.group));
        }
        members.sort_by(|a, b| (&a.client_id, &a.client_addr).cmp(&(&b.client_id, &b.client_addr)));
        Ok(connections(members).into())
    }
}

#[derive(Args)]
pub struct ResetOffsetByTime {
    #[command(flatten)]
    group: GroupName,
    #[command(flatten)]
    topic: TopicName,
    /// `now`, `-1` for the end, or milliseconds since the epoch.
    #[arg(short = 's', long = "timestamp", value_name = "TIME", allow_hyphen_values = true)]
    time: String,
    /// Also forward.
    #[arg(short = 'f', long = "force", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    force: bool,
}

const RESET_OFFSET: &[Column] =
    &[Column("#brokerName", "brokerName"), Column("#queueId", "queueId"), Column("#offset", "offset")];

impl Execute for ResetOffsetByTime {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let (group, topic) = (&self.group.name, &self.topic.name);
        let time = match self.time.as_str() {
            "now" => desk.env.clock.wall_ms(),
            ms => ms.parse().map_err(|_| format!("{ms:?} is no time; use now, -1 or milliseconds since the epoch"))?,
        };
        reset(desk, group, topic, time, self.force).await
    }
}

/// Moves a group in a topic; where it is now.
async fn reset(desk: &Desk, group: &str, topic: &str, time: i64, force: bool) -> Result<Report, String> {
    let mut table = Table::new(RESET_OFFSET);
    for address in leaders_of(desk, topic).await? {
        let reset = desk.admin.reset_offset(&address, group, topic, time, force).await;
        let reset = reset.map_err(|error| failed(format!("reset of {group} in {topic} at {address}"), error))?;
        for (queue, offset) in reset.offset_table {
            table.push([queue.broker_name.into(), queue.queue_id.into(), offset.into()]);
        }
    }
    Ok(table.into())
}

/// Where each broker group with the topic is led. Without one of them a change of all would be half a change.
async fn leaders_of(desk: &Desk, topic: &str) -> Result<Vec<String>, String> {
    let leader = |broker: &BrokerData| {
        let none = || format!("{} has no leader now; run the command again in some seconds", broker.broker_name);
        broker.master_addr().map(str::to_owned).ok_or_else(none)
    };
    route(desk, topic).await?.broker_datas.iter().map(leader).collect()
}

#[derive(Args)]
pub struct SkipAccumulatedMessage {
    #[command(flatten)]
    group: GroupName,
    #[command(flatten)]
    topic: TopicName,
    /// mqadmin's; the end is never behind.
    #[arg(short = 'f', long = "force", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    force: bool,
}

impl Execute for SkipAccumulatedMessage {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        reset(desk, &self.group.name, &self.topic.name, -1, self.force).await
    }
}

#[derive(Args)]
pub struct CloneGroupOffset {
    /// The group to copy from.
    #[arg(short = 's', long = "srcGroup", value_name = "GROUP")]
    from: String,
    /// The group to copy to.
    #[arg(short = 'd', long = "destGroup", value_name = "GROUP")]
    to: String,
    #[command(flatten)]
    topic: TopicName,
}

impl Execute for CloneGroupOffset {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let (from, to, topic) = (&self.from, &self.to, &self.topic.name);
        for address in leaders_of(desk, topic).await? {
            let cloned = desk.admin.clone_group_offset(&address, from, to, Some(topic)).await;
            cloned.map_err(|error| failed(format!("copy of {from}'s offsets in {topic} at {address}"), error))?;
        }
        let text = format!("{to} goes on in {topic} where {from} is\n");
        Ok(Report::new(text, json!({ "srcGroup": from, "destGroup": to, "topic": topic })))
    }
}

#[derive(Args)]
pub struct GetConsumerStatus {
    #[command(flatten)]
    group: GroupName,
    #[command(flatten)]
    topic: TopicName,
    /// One client; all by default.
    #[arg(short = 'i', long = "originClientId", value_name = "CLIENT")]
    client: Option<String>,
}

const CONSUMER_STATUS: &[Column] = &[
    Column("#clientId", "clientId"),
    Column("#brokerName", "brokerName"),
    Column("#queueId", "queueId"),
    Column("#offset", "offset"),
];

impl Execute for GetConsumerStatus {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let (group, topic) = (&self.group.name, &self.topic.name);
        let mut table = Table::new(CONSUMER_STATUS);
        // Members are connected to every broker group, and each says it of all its queues.
        let address = leaders_of(desk, topic).await?.into_iter().next();
        let address = address.ok_or_else(|| format!("no broker has topic {topic}"))?;
        let found = desk.admin.consumer_status(&address, group, topic, self.client.as_deref()).await;
        let found = found.map_err(|error| failed(format!("status of {group} at {address}"), error))?;
        for (client, queues) in found.consumer_table {
            for (queue, offset) in queues {
                table.push([client.clone().into(), queue.broker_name.into(), queue.queue_id.into(), offset.into()]);
            }
        }
        Ok(table.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_summed_over_queues() {
        let offsets = |broker_offset, pull_offset, consumer_offset| OffsetWrapper {
            broker_offset,
            pull_offset,
            consumer_offset,
            last_timestamp: 0,
        };
        let queues =
            [(MessageQueue::new("T", "a", 0), offsets(10, 8, 5)), (MessageQueue::new("T", "b", 0), offsets(3, 3, 3))];
        assert_eq!(totals(&queues.into()), (5, 3));
    }
}

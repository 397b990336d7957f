//! Topics: topicList, topicClusterList, topicRoute, topicStatus, updateTopic, deleteTopic, updateOrderConf.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, ValueEnum};
use client::admin::address_of;
use client::admin::protocol::body::TopicRouteData;
use client::admin::protocol::header::CreateTopicRequest;
use client::admin::protocol::json::to_vec as json_bytes;
use client::admin::protocol::names::{AUTO_CREATE_TOPIC, ORDER_TOPIC_NAMESPACE, validate_topic};
use client::admin::protocol::permission::Permission;
use serde_json::{Value, json};

use super::report::{Column, Report, Table, date};
use super::{Desk, Execute, Target, by_name, failed, no_topic};

/// A topic by its name.
#[derive(Args)]
pub(super) struct TopicName {
    /// The topic.
    #[arg(id = "topic", short = 't', long = "topic", value_name = "TOPIC")]
    pub(super) name: String,
}

/// Where a topic is; an error if nowhere.
pub(super) async fn route(desk: &Desk, topic: &str) -> Result<TopicRouteData, String> {
    let route = desk.admin.topic_route(topic).await.map_err(|error| failed(format!("route of {topic}"), error))?;
    route.ok_or_else(|| no_topic(topic))
}

#[derive(Args)]
pub struct TopicList {
    /// Also print each topic's clusters and consumer groups.
    #[arg(short = 'c', long = "clusterModel")]
    with_clusters: bool,
}

const TOPIC_LIST: &[Column] =
    &[Column("#Cluster Name", "clusterName"), Column("#Topic", "topic"), Column("#Consumer Group", "consumerGroup")];

impl Execute for TopicList {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let topics = desk.admin.topics().await.map_err(|error| failed("topic list", error))?.topic_list;
        if !self.with_clusters {
            let lines = topics.iter().map(|topic| format!("{topic}\n"));
            return Ok(Report::new(lines.collect::<String>(), json!(topics)));
        }
        let mut table = Table::new(TOPIC_LIST);
        for topic in topics {
            // A topic may be deleted while the list is walked.
            let route = desk.admin.topic_route(&topic).await.map_err(|error| failed(&topic, error))?;
            for broker in route.iter().flat_map(|route| &route.broker_datas) {
                let Some(address) = address_of(broker) else { continue };
                let groups = desk.admin.groups_of_topic(address, &topic).await;
                let groups = groups.map_err(|error| failed(format!("groups of {topic} at {address}"), error))?;
                let mut row = |group: Value| table.push([broker.cluster.as_str().into(), topic.as_str().into(), group]);
                if groups.group_list.is_empty() {
                    row(Value::Null);
                }
                groups.group_list.into_iter().for_each(|group| row(group.into()));
            }
        }
        Ok(table.into())
    }
}

#[derive(Args)]
pub struct TopicClusterList {
    #[command(flatten)]
    topic: TopicName,
}

impl Execute for TopicClusterList {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let route = route(desk, &self.topic.name).await?;
        let clusters: BTreeSet<&str> = route.broker_datas.iter().map(|broker| broker.cluster.as_str()).collect();
        let lines = clusters.iter().map(|cluster| format!("{cluster}\n"));
        Ok(Report::new(lines.collect::<String>(), json!(clusters)))
    }
}

#[derive(Args)]
pub struct TopicRoute {
    #[command(flatten)]
    topic: TopicName,
    /// Columns instead of a document.
    #[arg(short = 'l', long = "list")]
    list: bool,
}

const TOPIC_ROUTE: &[Column] = &[
    Column("#ClusterName", "clusterName"),
    Column("#BrokerName", "brokerName"),
    Column("#BrokerAddrs", "brokerAddrs"),
    Column("#ReadQueue", "readQueueNums"),
    Column("#WriteQueue", "writeQueueNums"),
    Column("#Perm", "perm"),
];

impl Execute for TopicRoute {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let route = route(desk, &self.topic.name).await?;
        if !self.list {
            let bytes = json_bytes(&route);
            let document: Value = serde_json::from_slice(&bytes).map_err(|error| format!("the route: {error}"))?;
            return Ok(Report::new(format!("{document:#}"), document));
        }
        let brokers = by_name(&route.broker_datas);
        let mut table = Table::new(TOPIC_ROUTE);
        for queues in &route.queue_datas {
            let broker = brokers.get(queues.broker_name.as_str());
            let ids = broker.into_iter().flat_map(|broker| &broker.broker_addrs);
            let addresses: Vec<String> = ids.map(|(id, address)| format!("{id}={address}")).collect();
            table.push([
                broker.map_or(Value::Null, |broker| broker.cluster.as_str().into()),
                queues.broker_name.as_str().into(),
                addresses.join(",").into(),
                queues.read_queue_nums.into(),
                queues.write_queue_nums.into(),
                Permission(queues.perm).to_string().into(),
            ]);
        }
        Ok(table.into())
    }
}

#[derive(Args)]
pub struct TopicStatus {
    #[command(flatten)]
    topic: TopicName,
}

const TOPIC_STATUS: &[Column] = &[
    Column("#Broker Name", "brokerName"),
    Column("#QID", "queueId"),
    Column("#Min Offset", "minOffset"),
    Column("#Max Offset", "maxOffset"),
    Column("#Last Updated", "lastUpdated"),
];

impl Execute for TopicStatus {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let topic = &self.topic.name;
        let mut queues = BTreeMap::new();
        for broker in &route(desk, topic).await?.broker_datas {
            let Some(address) = address_of(broker) else { continue };
            let stats = desk.admin.topic_stats(address, topic).await;
            queues.extend(stats.map_err(|error| failed(format!("{topic} at {address}"), error))?.offset_table);
        }
        let mut table = Table::new(TOPIC_STATUS);
        for (queue, offsets) in queues {
            table.push([
                queue.broker_name.into(),
                queue.queue_id.into(),
                offsets.min_offset.into(),
                offsets.max_offset.into(),
                date(offsets.last_update_timestamp),
            ]);
        }
        Ok(table.into())
    }
}

#[derive(Args)]
pub struct UpdateTopic {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    topic: TopicName,
    /// Queues to pull from [default: as they are; 8 for a new topic].
    #[arg(short = 'r', long = "readQueueNums", value_name = "COUNT")]
    read_queues: Option<i32>,
    /// Queues to send to [default: as they are; 8 for a new topic].
    #[arg(short = 'w', long = "writeQueueNums", value_name = "COUNT")]
    write_queues: Option<i32>,
    /// 2 write only, 4 read only, 6 both [default: as it is; 6 for a new topic].
    #[arg(short = 'p', long = "perm", value_name = "BITS")]
    perm: Option<i32>,
    /// Whether the topic is ordered: its queues stay in place while a broker is away.
    #[arg(short = 'o', long = "order", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    order: bool,
    /// Whether the topic is of a unit.
    #[arg(short = 'u', long = "unit", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    unit: bool,
    /// Whether units subscribe to the topic.
    #[arg(short = 's', long = "hasUnitSub", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    has_unit_sub: bool,
    /// Changes of attributes: +key=value,-key.
    #[arg(short = 'a', long = "attributes", value_name = "CHANGES", allow_hyphen_values = true)]
    attributes: Option<String>,
}

const NEW_TOPIC_QUEUES: i32 = 8;

impl UpdateTopic {
    /// What is asked of one broker; what is not named stays as it is there.
    fn request(&self, broker_name: &str, now: Option<&TopicRouteData>) -> CreateTopicRequest {
        let queues = now.into_iter().flat_map(|route| &route.queue_datas).find(|it| it.broker_name == broker_name);
        CreateTopicRequest {
            topic: self.topic.name.clone(),
            default_topic: Some(AUTO_CREATE_TOPIC.to_owned()),
            read_queue_nums: self.read_queues.or(queues.map(|it| it.read_queue_nums)).unwrap_or(NEW_TOPIC_QUEUES),
            write_queue_nums: self.write_queues.or(queues.map(|it| it.write_queue_nums)).unwrap_or(NEW_TOPIC_QUEUES),
            perm: self.perm.or(queues.map(|it| it.perm)).unwrap_or(Permission::READ_WRITE.0),
            topic_filter_type: Some("SINGLE_TAG".to_owned()),
            topic_sys_flag: Some(i32::from(self.unit) | i32::from(self.has_unit_sub) << 1),
            order: self.order,
            attributes: self.attributes.clone(),
            force: false,
        }
    }
}

impl Execute for UpdateTopic {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let topic = &self.topic.name;
        validate_topic(topic).map_err(|error| error.to_string())?;
        let now = desk.admin.topic_route(topic).await.map_err(|error| failed(format!("route of {topic}"), error))?;
        let brokers = self.target.brokers(desk).await?;
        let (mut text, mut json, mut order) = (String::new(), Vec::new(), Vec::new());
        for broker in &brokers {
            let request = self.request(&broker.name, now.as_ref());
            let put = desk.admin.put_topic(&broker.address, &request).await;
            put.map_err(|error| failed(format!("{text}create topic {topic} at {}", broker.address), error))?;
            let perm = Permission(request.perm);
            let (read, write) = (request.read_queue_nums, request.write_queue_nums);
            text += &format!(
                "create topic to {} success.\n\
                 TopicConfig [topicName={topic}, readQueueNums={read}, writeQueueNums={write}, perm={perm}, order={}]\n",
                broker.address, self.order,
            );
            json.push(json!({
                "brokerName": broker.name, "addr": broker.address, "topic": topic, "readQueueNums": read,
                "writeQueueNums": write, "perm": perm.to_string(), "order": self.order,
            }));
            order.push(format!("{}:{write}", broker.name));
        }
        if self.order {
            let order = order.join(";");
            let put = desk.admin.put_kv(ORDER_TOPIC_NAMESPACE, topic, &order).await;
            put.map_err(|error| failed(format!("{text}order of {topic} at the NameServers"), error))?;
            text += &format!("set cluster orderConf to {order}\n");
        }
        Ok(Report::new(text, Value::Array(json)))
    }
}

#[derive(Args)]
pub struct DeleteTopic {
    #[command(flatten)]
    topic: TopicName,
    /// The cluster that it is deleted from.
    #[arg(short = 'c', long = "clusterName", value_name = "CLUSTER")]
    cluster: String,
}

impl Execute for DeleteTopic {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let (topic, cluster) = (&self.topic.name, &self.cluster);
        let target = Target { broker: None, cluster: Some(cluster.clone()) };
        let mut deleted = Vec::new();
        for broker in target.brokers(desk).await? {
            let gone = desk.admin.delete_topic(&broker.address, topic).await;
            gone.map_err(|error| failed(format!("delete topic {topic} at {}", broker.address), error))?;
            deleted.push(broker.name);
        }
        let gone = desk.admin.delete_topic_route(topic, Some(cluster)).await;
        gone.map_err(|error| failed(format!("route of {topic} (the topic itself is deleted)"), error))?;
        let text = format!("delete topic [{topic}] from cluster [{cluster}] success.\n");
        Ok(Report::new(text, json!({"topic": topic, "clusterName": cluster, "brokerNames": deleted})))
    }
}

/// What to do with the order of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OrderMethod {
    Get,
    Put,
    Delete,
}

#[derive(Args)]
pub struct UpdateOrderConf {
    #[command(flatten)]
    topic: TopicName,
    /// Broker groups, each with its number of queues: broker-a:4;broker-b:4. With `-m put`.
    #[arg(short = 'v', long = "orderConf", value_name = "ORDER", required_if_eq("method", "put"))]
    order: Option<String>,
    /// Show the order, set it, or forget it.
    #[arg(short = 'm', long = "method", value_name = "METHOD", value_enum)]
    method: OrderMethod,
}

impl Execute for UpdateOrderConf {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let topic = self.topic.name.trim();
        let of_topic = |error| failed(format!("order of {topic} at the NameServers"), error);
        let order = match self.method {
            OrderMethod::Get => desk.admin.kv(ORDER_TOPIC_NAMESPACE, topic).await.map_err(of_topic)?,
            OrderMethod::Put => {
                let order = self.order.as_deref().unwrap_or_default().trim();
                if !is_order(order) {
                    return Err(format!("{order:?} is not a list of broker:queues, such as broker-a:4;broker-b:4"));
                }
                desk.admin.put_kv(ORDER_TOPIC_NAMESPACE, topic, order).await.map_err(of_topic)?;
                Some(order.to_owned())
            }
            OrderMethod::Delete => {
                desk.admin.delete_kv(ORDER_TOPIC_NAMESPACE, topic).await.map_err(of_topic)?;
                None
            }
        };
        let text = match (&order, self.method) {
            (Some(order), OrderMethod::Put) => {
                format!("update orderConf success. topic={topic}, orderConf=[{order}]\n")
            }
            (Some(order), _) => format!("get orderConf success. topic={topic}, orderConf=[{order}]\n"),
            (None, OrderMethod::Delete) => format!("delete orderConf success. topic={topic}\n"),
            (None, _) => format!("topic {topic} has no orderConf\n"),
        };
        Ok(Report::new(text, json!({"topic": topic, "orderConf": order})))
    }
}

/// Clients read it without asking whether it makes sense.
fn is_order(text: &str) -> bool {
    text.split(';').all(|one| {
        one.split_once(':')
            .is_some_and(|(broker, queues)| !broker.is_empty() && queues.parse().is_ok_and(|queues: u32| queues > 0))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use client::admin::protocol::body::QueueData;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        command: UpdateTopic,
    }

    #[test]
    fn an_order_names_brokers_with_their_queues() {
        assert!(is_order("broker-a:4") && is_order("broker-a:4;broker-b:16"));
        for bad in ["", "broker-a", "broker-a:", ":4", "broker-a:0", "broker-a:4;", "broker-a:4,broker-b:4"] {
            assert!(!is_order(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_not_named_stays_as_it_is() {
        let typed = |flags: &str| Typed::parse_from(format!("x -t T -c C {flags}").split_whitespace()).command;
        let queues = QueueData {
            broker_name: "a".into(),
            perm: 4,
            read_queue_nums: 16,
            write_queue_nums: 12,
            ..QueueData::default()
        };
        let now = TopicRouteData { queue_datas: vec![queues], ..TopicRouteData::default() };
        let counts = |request: CreateTopicRequest| (request.read_queue_nums, request.write_queue_nums, request.perm);
        assert_eq!(counts(typed("").request("a", Some(&now))), (16, 12, 4));
        assert_eq!(counts(typed("-r 3 -p 6").request("a", Some(&now))), (3, 12, 6));
        assert_eq!(counts(typed("").request("b", Some(&now))), (8, 8, 6));
        let request = typed("-o true -a +message.type=FIFO -s true").request("a", None);
        assert!(request.order);
        assert_eq!((request.attributes.as_deref(), request.topic_sys_flag), (Some("+message.type=FIFO"), Some(2)));
    }
}

//! What mqadmin and the dashboard ask, of one replica and of three.

use broker::Broker;
use bytes::Bytes;
use env::Env;
use protocol::body::{
    BrokerStatsData, ConsumeStats, ConsumeStatsList, ConsumerConnection, ConsumerOffsetTable, GroupList, HaRuntimeInfo,
    KvTable, MessageQueue, ProducerConnection, ProducerTableInfo, QueryConsumeQueueBody, QueryConsumeTimeSpanBody,
    QuerySubscriptionBody, ReplicaStatus, SubscriptionGroupConfig, SubscriptionGroupWrapper, TopicConfig,
    TopicConfigSerializeWrapper, TopicList, TopicStatsTable,
};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::MakeCheckpointResponse;
use serde::de::DeserializeOwned;

use crate::three::Three;
use crate::world::*;

struct One {
    broker: Broker,
    wire: Wire,
    _dir: tempfile::TempDir,
}

async fn one() -> One {
    one_with(|_| {}).await
}

async fn one_with(change: impl FnOnce(&mut broker::config::GroupConfig)) -> One {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = group_config(dir.path());
    change(&mut group);
    let broker = start(broker_config(group, vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    One { broker, wire, _dir: dir }
}

fn request(code: RequestCode, fields: &[(&str, &str)]) -> RemotingCommand {
    fields.iter().fold(RemotingCommand::request(code), |request, (name, value)| request.with_field(name, value))
}

impl Wire {
    async fn ask(&self, code: RequestCode, fields: &[(&str, &str)]) -> RemotingCommand {
        self.call(request(code, fields)).await
    }

    async fn told<T: DeserializeOwned>(&self, code: RequestCode, fields: &[(&str, &str)]) -> T {
        let answer = self.ask(code, fields).await;
        assert_eq!(answer.code, 0, "{code}: {}", answer.remark_text());
        answer.json().unwrap_or_else(|error| panic!("{code}: {error}: {}", text(&answer.body)))
    }

    /// What mqadmin sends; must succeed.
    async fn create_topic(&self, topic: &str, queues: &str, attributes: &str) {
        let answer = self.call(create_topic(topic, queues, attributes)).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
    }
}

fn create_topic(topic: &str, queues: &str, attributes: &str) -> RemotingCommand {
    let fields = [
        ("topic", topic),
        ("defaultTopic", "TBW102"),
        ("readQueueNums", queues),
        ("writeQueueNums", queues),
        ("perm", "6"),
        ("topicFilterType", "SINGLE_TAG"),
        ("topicSysFlag", "0"),
        ("order", "false"),
        ("attributes", attributes),
    ];
    request(RequestCode::UPDATE_AND_CREATE_TOPIC, &fields)
}

fn text(body: &Bytes) -> &str {
    std::str::from_utf8(body).expect("text")
}

/// A retry topic that an operator deleted is needed again as soon as somebody consumes, or fails to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_retry_topic_comes_back_as_its_group_has_it() {
    let one = one().await;
    let wire = &one.wire;
    let create = RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP);
    let create = create.with_body(r#"{"groupName":"cg","retryQueueNums":3}"#);
    assert_eq!(wire.call(create).await.code, 0);
    let queues = async || {
        let shown: TopicConfig = wire.told(RequestCode::GET_TOPIC_CONFIG, &[("topic", "%RETRY%cg")]).await;
        (shown.read_queue_nums, shown.write_queue_nums)
    };
    assert_eq!(queues().await, (3, 3));
    let delete = async || wire.ask(RequestCode::DELETE_TOPIC_IN_BROKER, &[("topic", "%RETRY%cg")]).await.code;
    assert_eq!(delete().await, 0);
    wire.heartbeat("c", "cg", &[("T", "*")]).await;
    assert_eq!(queues().await, (3, 3), "by a heartbeat");
    assert_eq!(delete().await, 0);
    assert_eq!(wire.send(send_request("%RETRY%cg", &[]), "m").await.code, 0);
    assert_eq!(queues().await, (3, 3), "by a send");
    one.broker.stop().await.expect("it stops");
}

/// Topics are made by 17 and 18, retry topics by 200 and 225 and by whoever consumes: none of the doors may be open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_makes_more_topics_groups_or_queues_than_there_may_be() {
    const SYSTEM_BUSY: i32 = 2;
    let one = one_with(|group| (group.limits.topics, group.limits.queues) = (30, 1_200)).await;
    let wire = &one.wire;
    let count = async || {
        let list: TopicConfigSerializeWrapper = wire.told(RequestCode::GET_ALL_TOPIC_CONFIG, &[]).await;
        list.topic_config_table.len()
    };
    until("the system's topics are made", async || count().await >= 10).await;
    let free = 30 - count().await;
    let list = |names: std::ops::Range<usize>| {
        let one = |n| format!(r#"{{"topicName":"many{n}","readQueueNums":1,"writeQueueNums":1,"perm":6}}"#);
        let body = format!(r#"{{"topicConfigList":[{}]}}"#, names.map(one).collect::<Vec<_>>().join(","));
        RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_TOPIC_LIST).with_body(body)
    };
    let answer = wire.call(list(0..free + 1)).await;
    assert_eq!(answer.code, SYSTEM_BUSY, "all or none: {}", answer.remark_text());
    assert_eq!(wire.call(list(0..free)).await.code, 0);
    let group = |code, body: &str| RemotingCommand::request(code).with_body(body.to_owned());
    for (what, request) in [
        ("17", create_topic("orders", "1", "")),
        ("18", list(free..free + 1)),
        ("200", group(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, r#"{"groupName":"cg"}"#)),
        (
            "225",
            group(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, r#"{"groupConfigList":[{"groupName":"cg"}]}"#),
        ),
    ] {
        let answer = wire.call(request).await;
        assert_eq!(answer.code, SYSTEM_BUSY, "{what}: {}", answer.remark_text());
    }
    let answer = wire.call(create_topic("many0", "16384", "")).await;
    assert_eq!(answer.code, SYSTEM_BUSY, "queues of a topic that exists: {}", answer.remark_text());
    assert!(answer.remark_text().contains("queues"), "{}", answer.remark_text());
    assert_eq!(wire.call(create_topic("many0", "2", "")).await.code, 0, "what is there can still be changed");
    // A place that becomes free can be taken again.
    assert_eq!(wire.ask(RequestCode::DELETE_TOPIC_IN_BROKER, &[("topic", "many1")]).await.code, 0);
    assert_eq!(wire.call(create_topic("orders", "1", "")).await.code, 0);
    one.broker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_is_made_changed_shown_and_deleted() {
    let one = one().await;
    let wire = &one.wire;
    wire.create_topic("orders", "2", "+message.type=FIFO").await;
    let shown = wire.ask(RequestCode::GET_TOPIC_CONFIG, &[("topic", "orders"), ("lo", "true")]).await;
    let golden = r#"{"attributes":{"message.type":"FIFO"},"order":false,"perm":6,"readQueueNums":2,"topicFilterType":"SINGLE_TAG","topicName":"orders","topicSysFlag":0,"writeQueueNums":2}"#;
    assert_eq!(text(&shown.body), golden);
    wire.create_topic("orders", "3", "+reserve.time=72").await;
    let changed: TopicConfig = wire.told(RequestCode::GET_TOPIC_CONFIG, &[("topic", "orders")]).await;
    assert_eq!((changed.read_queue_nums, changed.attributes.len()), (3, 2));

    let answer = wire.ask(RequestCode::GET_ALL_TOPIC_CONFIG, &[]).await;
    assert!(answer.ext.get("totalTopicNum").is_none(), "an old tool gets everything at once");
    let all: TopicConfigSerializeWrapper = answer.json().expect("a body");
    assert!(all.topic_config_table.contains_key("orders") && all.topic_config_table.contains_key("TBW102"));
    let mut read = std::collections::BTreeMap::new();
    let mut version = String::new();
    loop {
        let seq = read.len().to_string();
        let fields = [("topicSeq", seq.as_str()), ("dataVersion", version.as_str()), ("maxTopicNum", "5")];
        let page = wire.ask(RequestCode::GET_ALL_TOPIC_CONFIG, &fields).await;
        assert_eq!(page.ext.get("totalTopicNum"), Some(all.topic_config_table.len().to_string().as_str()));
        let page: TopicConfigSerializeWrapper = page.json().expect("a body");
        assert!((1..=5).contains(&page.topic_config_table.len()));
        version = String::from_utf8(protocol::json::to_vec(&page.data_version)).expect("JSON");
        read.extend(page.topic_config_table);
        if read.len() >= all.topic_config_table.len() {
            break;
        }
    }
    assert_eq!(read, all.topic_config_table, "page by page it is the same");
    let system: TopicList = wire.told(RequestCode::GET_SYSTEM_TOPIC_LIST_FROM_BROKER, &[]).await;
    let users: Vec<_> = read.keys().filter(|name| !system.topic_list.contains(*name)).collect();
    assert_eq!(users, ["orders"]);

    wire.sent("orders", "first life", &[]).await;
    let stats: TopicStatsTable = wire.told(RequestCode::GET_TOPIC_STATS_INFO, &[("topic", "orders")]).await;
    let of_queue = |stats: &TopicStatsTable| stats.offset_table[&MessageQueue::new("orders", BROKER, 0)];
    assert_eq!((stats.offset_table.len(), of_queue(&stats).min_offset, of_queue(&stats).max_offset), (3, 0, 1));
    assert!((Env::real().clock.wall_ms() - of_queue(&stats).last_update_timestamp).abs() < 60_000);
    assert!(stats.topic_put_tps > 0.0);

    for _ in 0..2 {
        let deleted = wire.ask(RequestCode::DELETE_TOPIC_IN_BROKER, &[("topic", "orders")]).await;
        assert_eq!(deleted.code, 0, "deleting it again changes nothing: {}", deleted.remark_text());
        assert_eq!(wire.ask(RequestCode::GET_TOPIC_CONFIG, &[("topic", "orders")]).await.code, 17);
        assert_eq!(wire.ask(RequestCode::GET_TOPIC_STATS_INFO, &[("topic", "orders")]).await.code, 17);
    }
    wire.create_topic("orders", "1", "").await;
    let again: TopicConfig = wire.told(RequestCode::GET_TOPIC_CONFIG, &[("topic", "orders")]).await;
    assert!(again.attributes.is_empty(), "nothing of the first life is left");
    let stats: TopicStatsTable = wire.told(RequestCode::GET_TOPIC_STATS_INFO, &[("topic", "orders")]).await;
    assert_eq!(
        (of_queue(&stats).min_offset, of_queue(&stats).max_offset),
        (1, 1),
        "but its offsets are not given again"
    );
    assert_eq!((of_queue(&stats).last_update_timestamp, stats.topic_put_tps), (0, 0.0));

    let list = r#"{"topicConfigList":[{"topicName":"a","readQueueNums":1,"writeQueueNums":1},{"topicName":"TBW102"}]}"#;
    let create_list =
        |body: &str| RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_TOPIC_LIST).with_body(body.to_owned());
    assert_eq!(wire.call(create_list(list)).await.code, 29);
    assert_eq!(wire.ask(RequestCode::GET_TOPIC_CONFIG, &[("topic", "a")]).await.code, 17, "all or none");
    assert_eq!(wire.call(create_list(&list.replace("TBW102", "b"))).await.code, 0);
    let b: TopicConfig = wire.told(RequestCode::GET_TOPIC_CONFIG, &[("topic", "b")]).await;
    assert_eq!((b.read_queue_nums, b.perm), (16, 6));

    for topic in ["a.b", "TBW102", BROKER, CLUSTER, "rmq_sys_x", "%RETRY%a/b"] {
        assert_eq!(wire.call(create_topic(topic, "1", "")).await.code, 29, "{topic}");
        assert_eq!(wire.ask(RequestCode::DELETE_TOPIC_IN_BROKER, &[("topic", topic)]).await.code, 29, "{topic}");
    }
    assert_eq!(wire.ask(RequestCode::UPDATE_AND_CREATE_TOPIC, &[("topic", "half")]).await.code, 1);
    one.broker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_made_changed_shown_and_deleted() {
    let one = one().await;
    let wire = &one.wire;
    let create = |body: &str| {
        RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP).with_body(body.to_owned())
    };
    assert_eq!(wire.call(create(r#"{"groupName":"cg","retryMaxTimes":3}"#)).await.code, 0);
    let shown: SubscriptionGroupConfig = wire.told(RequestCode::GET_SUBSCRIPTIONGROUP_CONFIG, &[("group", "cg")]).await;
    assert_eq!(shown, SubscriptionGroupConfig { retry_max_times: 3, ..SubscriptionGroupConfig::new("cg") });
    let retry = wire.ask(RequestCode::GET_TOPIC_CONFIG, &[("topic", "%RETRY%cg")]).await;
    assert_eq!(retry.code, 0, "a group has a retry topic: {}", retry.remark_text());
    let all: SubscriptionGroupWrapper = wire.told(RequestCode::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, &[]).await;
    assert_eq!(all.subscription_group_table.get("cg"), Some(&shown));
    assert!(all.subscription_group_table.contains_key("TOOLS_CONSUMER"));
    let paged =
        wire.ask(RequestCode::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, &[("groupSeq", "0"), ("maxGroupNum", "2")]).await;
    assert_eq!(paged.ext.get("totalGroupNum"), Some(all.subscription_group_table.len().to_string().as_str()));
    assert_eq!(paged.json::<SubscriptionGroupWrapper>().expect("a body").subscription_group_table.len(), 2);

    assert_eq!(wire.call(Wire::offset_update("cg", "%RETRY%cg", 0)).await.code, 0);
    let delete = [("groupName", "cg"), ("cleanOffset", "true")];
    for _ in 0..2 {
        assert_eq!(wire.ask(RequestCode::DELETE_SUBSCRIPTIONGROUP, &delete).await.code, 0);
        assert_eq!(wire.ask(RequestCode::GET_SUBSCRIPTIONGROUP_CONFIG, &[("group", "cg")]).await.code, 26);
    }
    let offsets: ConsumerOffsetTable = wire.told(RequestCode::GET_ALL_CONSUMER_OFFSET, &[]).await;
    assert!(offsets.offset_table.is_empty());

    assert_eq!(wire.call(create(r#"{"groupName":"a b"}"#)).await.code, 29);
    assert_eq!(wire.call(create("nonsense")).await.code, 1);
    let list = RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST);
    let list = list.with_body(r#"{"groupConfigList":[{"groupName":"g1"},{"groupName":"g2"}]}"#.to_owned());
    assert_eq!(wire.call(list).await.code, 0);
    assert_eq!(wire.ask(RequestCode::GET_SUBSCRIPTIONGROUP_CONFIG, &[("group", "g2")]).await.code, 0);
    one.broker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_and_connections_are_what_they_are() {
    let one = one().await;
    let wire = &one.wire;
    wire.create_topic("T", "1", "").await;
    for k in 0..5 {
        wire.sent("T", &format!("m{k}"), &[("TAGS", if k % 2 == 0 { "A" } else { "B" })]).await;
    }
    wire.heartbeat("c1", "cg", &[("T", "A")]).await;
    assert_eq!(wire.call(Wire::offset_update("cg", "T", 3)).await.code, 0);
    assert_eq!(wire.call(Wire::offset_update("cg", "TBW102", 0)).await.code, 0, "a topic it has left");
    let queue = || MessageQueue::new("T", BROKER, 0);

    let stats: ConsumeStats = wire.told(RequestCode::GET_CONSUME_STATS, &[("consumerGroup", "cg")]).await;
    assert_eq!(stats.offset_table.keys().collect::<Vec<_>>(), [&queue()], "only what it subscribes to");
    let offset = stats.offset_table[&queue()];
    assert_eq!((offset.broker_offset, offset.consumer_offset, offset.pull_offset), (5, 3, 3));
    assert!(offset.last_timestamp > 0);
    let fields = [("consumerGroup", "cg"), ("topicList", "TBW102;nowhere")];
    let stats: ConsumeStats = wire.told(RequestCode::GET_CONSUME_STATS, &fields).await;
    assert!(stats.offset_table.is_empty());
    let stats: ConsumeStats = wire.told(RequestCode::GET_CONSUME_STATS, &[("consumerGroup", "nobody")]).await;
    assert_eq!(stats, ConsumeStats::default());
    let list: ConsumeStatsList = wire.told(RequestCode::GET_BROKER_CONSUME_STATS, &[("isOrder", "false")]).await;
    assert_eq!((list.total_diff, list.total_inflight_diff), (2, 0));
    assert_eq!(list.broker_addr, wire.address);
    let list: ConsumeStatsList = wire.told(RequestCode::GET_BROKER_CONSUME_STATS, &[("isOrder", "true")]).await;
    assert_eq!(list.total_diff, 0, "no ordered topic");

    let groups: GroupList = wire.told(RequestCode::QUERY_TOPIC_CONSUME_BY_WHO, &[("topic", "T")]).await;
    assert_eq!(groups.group_list, ["cg".to_owned()].into());
    let topics: TopicList = wire.told(RequestCode::QUERY_TOPICS_BY_CONSUMER, &[("group", "cg")]).await;
    assert_eq!(topics.topic_list, ["T".to_owned(), "TBW102".to_owned()].into());
    let fields = [("topic", "T"), ("group", "cg")];
    let subscription: QuerySubscriptionBody = wire.told(RequestCode::QUERY_SUBSCRIPTION_BY_CONSUMER, &fields).await;
    assert_eq!(subscription.subscription_data.expect("it subscribes").sub_string, "A");
    let spans: QueryConsumeTimeSpanBody = wire.told(RequestCode::QUERY_CONSUME_TIME_SPAN, &fields).await;
    let [span] = &spans.consume_time_span_set[..] else { panic!("one queue") };
    assert!(span.min_time_stamp > 0 && span.min_time_stamp <= span.consume_time_stamp);
    assert!(span.consume_time_stamp <= span.max_time_stamp && (0..60_000).contains(&span.delay_time));
    let nowhere = [("topic", "nowhere"), ("group", "cg")];
    assert_eq!(wire.ask(RequestCode::QUERY_CONSUME_TIME_SPAN, &nowhere).await.code, 17);
    let offsets = wire.ask(RequestCode::GET_ALL_CONSUMER_OFFSET, &[]).await;
    assert!(
        text(&offsets.body).contains(r#""offsetTable":{"T@cg":{"0":3},"TBW102@cg":{"0":0}}"#),
        "{}",
        text(&offsets.body)
    );

    let fields = [("topic", "T"), ("queueId", "0"), ("index", "1"), ("count", "3"), ("consumerGroup", "cg")];
    let units: QueryConsumeQueueBody = wire.told(RequestCode::QUERY_CONSUME_QUEUE, &fields).await;
    assert_eq!((units.min_queue_index, units.max_queue_index), (0, 5));
    let selected: Vec<_> = units.queue_data.iter().map(|unit| (unit.tags_code, unit.eval)).collect();
    assert_eq!(selected, [(66, false), (65, true), (66, false)]);
    let fields = [("topic", "T"), ("queueId", "1"), ("index", "0"), ("count", "3")];
    assert_eq!(wire.ask(RequestCode::QUERY_CONSUME_QUEUE, &fields).await.code, 1);

    let put = [("statsName", "TOPIC_PUT_NUMS"), ("statsKey", "T")];
    let stats: BrokerStatsData = wire.told(RequestCode::VIEW_BROKER_STATS_DATA, &put).await;
    assert_eq!((stats.stats_minute.sum, stats.stats_hour.sum, stats.stats_day.sum), (5, 5, 5));
    let unknown = [("statsName", "GROUP_GET_LATENCY"), ("statsKey", "x")];
    let stats: BrokerStatsData = wire.told(RequestCode::VIEW_BROKER_STATS_DATA, &unknown).await;
    assert_eq!(stats, BrokerStatsData::default());

    let own = wire.client.connection(&wire.address).await.expect("a connection").local_addr().to_string();
    let consumers: ConsumerConnection =
        wire.told(RequestCode::GET_CONSUMER_CONNECTION_LIST, &[("consumerGroup", "cg")]).await;
    let [consumer] = &consumers.connection_set[..] else { panic!("one client") };
    assert_eq!((consumer.client_id.as_str(), &consumer.client_addr), ("c1", &own));
    assert!(consumers.subscription_table.contains_key("T"));
    assert_eq!(wire.ask(RequestCode::GET_CONSUMER_CONNECTION_LIST, &[("consumerGroup", "x")]).await.code, 206);
    let producers: ProducerConnection =
        wire.told(RequestCode::GET_PRODUCER_CONNECTION_LIST, &[("producerGroup", "pg")]).await;
    assert_eq!(producers.connection_set.len(), 1);
    assert_eq!(wire.ask(RequestCode::GET_PRODUCER_CONNECTION_LIST, &[("producerGroup", "x")]).await.code, 1);
    let producers: ProducerTableInfo = wire.told(RequestCode::GET_ALL_PRODUCER_INFO, &[]).await;
    assert_eq!(producers.data["pg"][0].remote_ip, own);
    one.broker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_asked_over_its_own_connection() {
    let one = one().await;
    let (tool, consumer) = (&one.wire, Wire::to(&one.broker.groups()[0]));
    let sent = tool.sent("T", "again please", &[]).await;
    let id = sent.msg_id.expect("an id");
    let running = [("consumerGroup", "cg"), ("clientId", "c1"), ("jstackEnable", "true"), ("AccessKey", "secret")];
    let absent = tool.ask(RequestCode::GET_CONSUMER_RUNNING_INFO, &running).await;
    assert_eq!((absent.code, absent.remark_text()), (1, "The Consumer <cg> <c1> not online"));

    consumer.heartbeat("c1", "cg", &[("T", "*")]).await;
    assert_eq!(tool.ask(RequestCode::GET_CONSUMER_RUNNING_INFO, &running).await.code, 0);
    let directly = [("consumerGroup", "cg"), ("clientId", "c1"), ("msgId", id.as_str())];
    assert_eq!(tool.ask(RequestCode::CONSUME_MESSAGE_DIRECTLY, &directly).await.code, 0);
    let no_id = [("consumerGroup", "cg"), ("clientId", "c1"), ("msgId", "x")];
    assert_eq!(tool.ask(RequestCode::CONSUME_MESSAGE_DIRECTLY, &no_id).await.code, 29);

    let heard = consumer.heard.requests.lock().clone();
    let asked: Vec<_> = heard.iter().filter(|request| request.code == 307 || request.code == 309).collect();
    let [running, directly] = &asked[..] else { panic!("two questions, not {}", asked.len()) };
    assert_eq!((running.ext.get("jstackEnable"), running.ext.get("AccessKey")), (Some("true"), None));
    assert_eq!((directly.ext.get("topic"), directly.ext.get("brokerName")), (Some("T"), Some(BROKER)));
    assert_eq!(messages(&directly.body)[0].body, "again please");
    one.broker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_describes_itself() {
    let one = one().await;
    let wire = &one.wire;
    for k in 0..3 {
        wire.sent("T", &format!("m{k}"), &[]).await;
    }
    let info: KvTable = wire.told(RequestCode::GET_BROKER_RUNTIME_INFO, &[]).await;
    for (key, value) in [
        ("putMessageTimesTotal", "3"),
        ("msgPutTotalTodayNow", "3"),
        ("brokerVersionDesc", "V5_3_3"),
        ("brokerActive", "true"),
        ("raftmqRole", "leader"),
    ] {
        assert_eq!(info.table.get(key).map(String::as_str), Some(value), "{key}");
    }
    for key in ["putTps", "getTransferredTps", "getTransferedTps", "getTotalTps", "getFoundTps", "getMissTps"] {
        let doubles: Result<Vec<f64>, _> = info.table[key].split(' ').map(str::parse).collect();
        assert_eq!(doubles.expect("doubles").len(), 3, "{key}");
    }
    let number = |key: &str| info.table[key].parse::<f64>().unwrap_or_else(|_| panic!("{key}: {}", info.table[key]));
    assert!(number("commitLogMaxOffset") > 0.0 && number("earliestMessageTimeStamp") > 1.6e12);
    assert!((0.0..=1.0).contains(&number("commitLogDiskRatio")));

    let config = wire.ask(RequestCode::GET_BROKER_CONFIG, &[]).await;
    assert!(text(&config.body).contains("brokerName=broker-t\n") && config.ext.get("version").is_some());
    let update = RemotingCommand::request(RequestCode::UPDATE_BROKER_CONFIG).with_body("storePathRootDir=/etc\n");
    assert_eq!(wire.call(update).await.code, 16);
    for code in [
        RequestCode::CLEAN_EXPIRED_CONSUMEQUEUE,
        RequestCode::CLEAN_UNUSED_TOPIC,
        RequestCode::DELETE_EXPIRED_COMMITLOG,
    ] {
        assert_eq!(wire.ask(code, &[]).await.code, 0, "{code}");
    }
    one.broker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_answers_for_itself_and_equal_logs_have_equal_chains() {
    let three = Three::start(vec![]).await;
    let leader = three.leader().await;
    let wires: Vec<Wire> = (0..3).map(|at| Wire::to(three.group(at))).collect();
    let follower = (leader + 1) % 3;
    until("the follower knows", async || three.group(follower).status().is_ready).await;
    wires[follower].create_topic("T", "1", "").await;
    wires[leader].sent("T", "one", &[]).await;

    let status: ReplicaStatus = wires[leader].told(RequestCode::GET_REPLICA_STATUS, &[]).await;
    assert_eq!((status.role.as_str(), status.leader), ("leader", Some(status.node_id)));
    assert_eq!((status.broker_name.as_str(), status.members.len(), status.ready), (BROKER, 3, true));
    assert!(status.members.iter().all(|member| member.lag_entries.is_some() && member.voter));
    assert!(status.queue_depths.contains_key("proposals_bytes"));
    let index = status.applied_index.expect("something is applied");

    let mut chains = Vec::new();
    for wire in &wires {
        let at = index.to_string();
        until("it is applied everywhere", async || {
            wire.ask(RequestCode::GET_REPLICA_STATUS, &[("index", &at)]).await.code == 0
        })
        .await;
        let status: ReplicaStatus = wire.told(RequestCode::GET_REPLICA_STATUS, &[("index", &at)]).await;
        assert_eq!((status.chain_index, status.chain.as_ref().map(String::len)), (Some(index), Some(16)));
        chains.push(status.chain);
    }
    assert!(chains.windows(2).all(|pair| pair[0] == pair[1]), "{chains:?}");
    let earlier: ReplicaStatus = wires[leader].told(RequestCode::GET_REPLICA_STATUS, &[("index", "0")]).await;
    assert_ne!(earlier.chain, chains[0]);
    assert_eq!(wires[leader].ask(RequestCode::GET_REPLICA_STATUS, &[("index", "1000000")]).await.code, 22);

    // Asked at a follower, made by the leader, hashed by all.
    let made = wires[follower].ask(RequestCode::MAKE_CHECKPOINT, &[]).await;
    let at = made.header::<MakeCheckpointResponse>().expect("a header").index;
    let hash = async |wire: &Wire| {
        let status: ReplicaStatus = wire.told(RequestCode::GET_REPLICA_STATUS, &[]).await;
        status.image_hashes.get(&at).cloned()
    };
    let mut hashes = Vec::new();
    for wire in &wires {
        until("its state is hashed", async || hash(wire).await.is_some()).await;
        hashes.push(hash(wire).await);
    }
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");

    let of_follower: ReplicaStatus = wires[follower].told(RequestCode::GET_REPLICA_STATUS, &[]).await;
    assert_eq!((of_follower.role.as_str(), of_follower.leader), ("follower", Some(status.node_id)));
    assert!(of_follower.members.iter().all(|member| member.lag_entries.is_none()));

    let at_leader: HaRuntimeInfo = wires[leader].told(RequestCode::GET_BROKER_HA_STATUS, &[]).await;
    assert_eq!((at_leader.master, at_leader.in_sync_slave_nums, at_leader.ha_connection_info.len()), (true, 2, 2));
    let at_follower: HaRuntimeInfo = wires[follower].told(RequestCode::GET_BROKER_HA_STATUS, &[]).await;
    assert!(!at_follower.master && at_follower.ha_client_runtime_info.master_addr.is_some());
    let stats: TopicStatsTable = wires[follower].told(RequestCode::GET_TOPIC_STATS_INFO, &[("topic", "T")]).await;
    assert_eq!(stats.offset_table[&MessageQueue::new("T", BROKER, 0)].max_offset, 1, "a follower shows what it has");
    for broker in &three.brokers {
        broker.stop().await.expect("it stops");
    }
}

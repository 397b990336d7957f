//! One replica: every request a producer and a consumer make, and what survives a restart.

use std::time::Duration;

use broker::Broker;
use broker::config::PROPERTIES_BYTES_MAX;
use bytes::BytesMut;
use env::Env;
use protocol::batch::{self, InnerMessage};
use protocol::body::{ConsumerConnection, ConsumerIdList, RegisterBrokerBody};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{
    ConsumerGroupRequest, DUPLICATE, HeartbeatResponse, PullMessageRequest, RegisterBrokerRequest, SearchOffsetRequest,
    SendMessageRequest, SendMessageRequestV2, SendMessageResponse, UnregisterClientRequest, ViewMessageRequest,
};
use protocol::message_id::MessageId;
use protocol::record::RecordView;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_sent_pulled_and_viewed() {
    let one = one().await;
    let (wire, broker) = (&one.wire, &one.broker);
    let sent = wire.sent("T", "hello", &[("TAGS", "A"), ("KEYS", "k1 k2")]).await;
    assert_eq!((sent.queue_id, sent.queue_offset), (Some(0), Some(0)));
    assert_eq!((sent.region.as_deref(), sent.trace_on), (Some("DefaultRegion"), Some(true)));
    let id: MessageId = sent.msg_id.expect("an id").parse().expect("an id");
    assert_eq!(id.store_host, broker.groups()[0].advertised_address());

    let pulled = wire.pull(pull_request("T", 0)).await;
    assert_eq!((pulled.code, pulled.bodies(), pulled.next()), (0, vec!["hello"], 1));
    let header = pulled.header.clone().expect("a header");
    assert_eq!((header.min_offset, header.max_offset, header.suggest_which_broker_id), (0, 1, 0));
    let seen = &pulled.messages[0];
    assert_eq!((seen.queue_offset, seen.physical_offset), (0, id.physical_offset));
    assert_eq!(seen.property("UNIQ_KEY"), sent.transaction_id, "made by the broker, and told");
    assert_eq!(seen.property("CLUSTER").as_deref(), Some(CLUSTER));
    let record = RecordView::parse(&seen.record).expect("a record");
    assert_eq!(record.store_host(), id.store_host);
    assert!(record.born_host().ip().is_loopback() && record.is_body_intact());

    let view = ViewMessageRequest { offset: id.physical_offset, ..ViewMessageRequest::default() };
    let viewed = wire.call(RemotingCommand::request_with(RequestCode::VIEW_MESSAGE_BY_ID, &view)).await;
    assert_eq!(viewed.code, 0, "{}", viewed.remark_text());
    assert_eq!(messages(&viewed.body), pulled.messages, "the very record that was pulled");
    let nowhere = ViewMessageRequest { offset: id.physical_offset + 1, ..view };
    let viewed = wire.call(RemotingCommand::request_with(RequestCode::VIEW_MESSAGE_BY_ID, &nowhere)).await;
    assert_eq!(viewed.code, 1);
    broker.stop().await.expect("it stops");
}

/// Large records go out in pieces, small ones are copied together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_all_sizes_come_whole_and_in_order() {
    let one = one().await;
    let bodies: Vec<String> = [10, 20_000, 5, 7, 60_000, 16_384, 100_000, 1].map(|len| "x".repeat(len)).to_vec();
    for body in &bodies {
        one.wire.sent("T", body, &[]).await;
    }
    let mut seen = Vec::new();
    while seen.len() < bodies.len() {
        let pulled = one.wire.pull(pull_request("T", seen.len() as i64)).await;
        assert_eq!(pulled.code, 0, "from {}", seen.len());
        seen.extend(pulled.bodies().into_iter().map(str::to_owned));
    }
    assert!(seen == bodies, "lengths: {:?}", seen.iter().map(String::len).collect::<Vec<_>>());
}

fn properties_of(message: &Seen) -> String {
    RecordView::parse(&message.record).expect("a record").properties().to_owned()
}

/// A record has room for what a retry adds: whatever was accepted can be given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flag_and_properties_come_as_they_were_sent_among_dead_letters_too() {
    let one = one().await;
    let wire = &one.wire;
    let of_length = |bytes: usize| {
        let value = "v".repeat(bytes - "k\u{1}\u{2}".len());
        SendMessageRequest { flag: 7, ..send_request("T", &[("k", &value)]) }
    };
    assert_eq!(wire.send(of_length(PROPERTIES_BYTES_MAX), "x").await.code, 13, "the broker adds some");
    let longest = PROPERTIES_BYTES_MAX - 128;
    let sent = wire.send(of_length(longest), "x").await;
    assert_eq!(sent.code, 0, "{}", sent.remark_text());
    let first = wire.pull(pull_request("T", 0)).await.messages.remove(0);
    wire.heartbeat("c", "g", &[("T", "*")]).await;
    let given_up = wire.send_back("g", first.physical_offset, -1).await;
    assert_eq!(given_up.code, 0, "{}", given_up.remark_text());
    let dead = wire.pull(pull_request("%DLQ%g", 0)).await.messages.remove(0);
    // An orderly consumer gives it up by a send.
    let copied = format!("{}RETRY_TOPIC\u{1}T\u{2}ORIGIN_MESSAGE_ID\u{1}M\u{2}", properties_of(&first));
    let copy = SendMessageRequest {
        flag: 7,
        properties: Some(copied),
        reconsume_times: Some(17),
        max_reconsume_times: Some(16),
        ..send_request("%RETRY%g", &[])
    };
    let given_up = wire.send(copy, "x").await;
    assert_eq!(given_up.code, 0, "{}", given_up.remark_text());
    for message in [first, dead] {
        let record = RecordView::parse(&message.record).expect("a record");
        assert_eq!(record.flag(), 7);
        assert_eq!(record.property("k").map(str::len), Some(longest - 3));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_producer_may_not_do() {
    let one = one_with(|group| {
        group.messages.body_bytes = 1000;
        group.messages.properties_bytes = 500;
    })
    .await;
    let wire = &one.wire;
    let long = "x".repeat(1001);
    let properties = |name: &str, value: &str| send_request("T", &[(name, value)]);
    let to = |topic: &str| send_request(topic, &[]);
    let cases: Vec<(i32, &str, SendMessageRequest, &str)> = vec![
        (29, "an illegal name", to("a.b"), "x"),
        (16, "a topic of the system's own", to("SCHEDULE_TOPIC_XXXX"), "x"),
        (17, "no template", SendMessageRequest { default_topic: "NoTemplate".to_owned(), ..to("U") }, "x"),
        (29, "no such queue", SendMessageRequest { queue_id: 4, ..to("T") }, "x"),
        (13, "a long body", to("T"), &long),
        (13, "long properties", properties("k", &"v".repeat(500)), "x"),
        (13, "a delay that is none", properties("TIMER_DELAY_SEC", "soon"), "x"),
        (13, "a half message with a delay", properties("DELAY\u{1}3\u{2}TRAN_MSG", "true"), "x"),
        (13, "a malformed batch", SendMessageRequest { batch: true, ..to("T") }, "x"),
        (29, "a group with an illegal name", to("%RETRY%a.b"), "x"),
    ];
    for (code, what, request, body) in cases {
        let answer = wire.send(request, body).await;
        assert_eq!(answer.code, code, "{what}: {}", answer.remark_text());
        assert_eq!(answer.ext.get("MSG_REGION"), Some("DefaultRegion"), "{what}");
        assert!(!answer.remark_text().is_empty(), "{what}");
    }
    assert_eq!(wire.max_offset("T").await, 0, "nothing was stored");
    let unknown = wire.call(RemotingCommand::request(RequestCode(999))).await;
    assert_eq!((unknown.code, unknown.remark_text()), (3, " request type 999 not supported"));
    let undecodable = RemotingCommand::request(RequestCode::PULL_MESSAGE).with_field("consumerGroup", "g");
    let undecodable = wire.call(undecodable).await;
    assert_eq!(undecodable.code, 1);
    assert!(undecodable.remark_text().contains("topic"), "the field is named: {}", undecodable.remark_text());
}

/// Names cost memory here and a retry topic on every replica: who makes them up must run into a wall.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_makes_a_member_only_of_a_group_that_can_be() {
    let one = one_with(|group| group.limits.topics = 30).await;
    let (wire, group) = (&one.wire, &one.broker.groups()[0]);
    wire.heartbeat("c", "cg", &[("T", "*")]).await;
    let names = (0..100).map(|n| format!(r#"{{"groupName":"many{n}"}}"#)).collect::<Vec<_>>().join(",");
    let body = format!(
        r#"{{"clientID":"c","consumerDataSet":[{{"groupName":"cg"}},{names}],"producerDataSet":[{{"groupName":"a.b"}},{{"groupName":"pg"}}]}}"#
    );
    let answer = wire.call(RemotingCommand::request(RequestCode::HEART_BEAT).with_body(body)).await;
    assert_eq!(answer.code, 2, "more groups than there may be: {}", answer.remark_text());
    let table = RemotingCommand::request(RequestCode::GET_ALL_PRODUCER_INFO);
    let producers = String::from_utf8(wire.call(table).await.body.to_vec()).expect("text");
    assert!(producers.contains(r#""pg""#) && !producers.contains("a.b"), "{producers}");
    for (name, code) in [("cg", 0), ("many0", 1), ("many99", 1)] {
        let request = ConsumerGroupRequest { consumer_group: name.to_owned(), broker_name: None };
        let members = RemotingCommand::request_with(RequestCode::GET_CONSUMER_LIST_BY_GROUP, &request);
        assert_eq!(wire.call(members).await.code, code, "{name}");
    }
    let tables = group.raft().reader();
    assert_eq!(
        tables.tables().groups().iter().filter(|group| group.name.starts_with("many")).count(),
        0,
        "all or none"
    );
    one.broker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_take_consecutive_offsets_and_one_way_sends_are_stored() {
    let one = one().await;
    let wire = &one.wire;
    let mut body = BytesMut::new();
    for (text, tag) in [("a", "A"), ("b", "B"), ("c", "A")] {
        let properties = encoded(&[("TAGS", tag), ("UNIQ_KEY", text)]);
        let message = InnerMessage { flag: 0, body: text.as_bytes(), properties: &properties };
        batch::encode(&message, &mut body).expect("it fits");
    }
    let request = SendMessageRequest { batch: true, ..send_request("T", &[("UNIQ_KEY", "batch")]) };
    let command = RemotingCommand::request_with(RequestCode::SEND_BATCH_MESSAGE, &SendMessageRequestV2(request));
    let answer = wire.call(command.with_body(body.freeze())).await;
    assert_eq!(answer.code, 0, "{}", answer.remark_text());
    let sent: SendMessageResponse = answer.header().expect("a header");
    assert_eq!((sent.queue_offset, sent.transaction_id.as_deref()), (Some(0), Some("batch")));
    assert_eq!(sent.msg_id.expect("ids").split(',').count(), 3);

    let one_way = SendMessageRequestV2(send_request("T", &[]));
    let one_way = RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &one_way).with_body("d");
    wire.client.one_way(&wire.address, one_way).await.expect("it is queued");
    until("the one-way message is there", async || wire.max_offset("T").await == 4).await;

    let pulled = wire.pull(pull_request("T", 0)).await;
    assert_eq!(pulled.bodies(), ["a", "b", "c", "d"]);
    assert_eq!(pulled.messages.iter().map(|message| message.queue_offset).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let filtered = PullMessageRequest { subscription: Some("A || X".to_owned()), ..pull_request("T", 0) };
    let pulled = wire.pull(filtered.clone()).await;
    assert_eq!((pulled.bodies(), pulled.next()), (vec!["a", "c"], 4), "filtered ones are passed over");
    let pulled = wire.pull(PullMessageRequest { subscription: Some("X".to_owned()), ..filtered }).await;
    assert_eq!((pulled.code, pulled.next()), (20, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_consumer_hears_of_offsets() {
    let one = one().await;
    let wire = &one.wire;
    assert_eq!(wire.pull(pull_request("T", 0)).await.code, 17);
    for k in 0..3 {
        wire.sent("T", &format!("m{k}"), &[]).await;
    }
    let codes = [(0, 0, 3), (2, 0, 3), (3, 19, 3), (4, 21, 3), (99, 21, 3), (-5, 21, 0)];
    for (offset, code, next) in codes {
        let pulled = wire.pull(pull_request("T", offset)).await;
        assert_eq!((pulled.code, pulled.next()), (code, next), "offset {offset}: {}", pulled.remark);
    }
    let empty = |offset| PullMessageRequest { queue_id: 1, ..pull_request("T", offset) };
    assert_eq!(wire.pull(empty(0)).await.code, 19);
    let pulled = wire.pull(empty(7)).await;
    assert_eq!((pulled.code, pulled.next()), (21, 0));
    assert_eq!(wire.pull(PullMessageRequest { queue_id: 4, ..pull_request("T", 0) }).await.code, 29);
    let unheard = PullMessageRequest { sys_flag: 0, ..pull_request("T", 0) };
    assert_eq!(wire.pull(unheard.clone()).await.code, 24, "no heartbeat yet");
    wire.heartbeat("c1", "puller", &[("T", "*")]).await;
    assert_eq!(wire.pull(unheard.clone()).await.code, 0);
    assert_eq!(wire.pull(PullMessageRequest { sub_version: 2, ..unheard }).await.code, 25);

    let search = |timestamp: i64| {
        let request = SearchOffsetRequest { topic: "T".to_owned(), timestamp, ..SearchOffsetRequest::default() };
        RemotingCommand::request_with(RequestCode::SEARCH_OFFSET_BY_TIMESTAMP, &request)
    };
    assert_eq!(wire.call(search(0)).await.ext.get("offset"), Some("0"));
    assert_eq!(wire.call(search(i64::MAX)).await.ext.get("offset"), Some("3"));
    assert_eq!(wire.queue_offset(RequestCode::GET_MIN_OFFSET, "T").await, 0);
    assert_eq!(wire.max_offset("NoSuchTopic").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_pull_wakes_for_a_message_that_matches_and_for_no_other() {
    let one = one().await;
    let wire = &one.wire;
    wire.sent("T", "first", &[]).await;
    let clock = Env::real().clock;
    let request = PullMessageRequest { subscription: Some("A".to_owned()), ..parked(pull_request("T", 1)) };
    let pulling = wire.pull(request.clone());
    tokio::pin!(pulling);
    assert!(clock.timeout(Duration::from_millis(100), &mut pulling).await.is_none(), "it is parked");
    wire.sent("T", "other", &[("TAGS", "B")]).await;
    assert!(clock.timeout(Duration::from_millis(100), &mut pulling).await.is_none(), "not for this one");
    wire.sent("T", "wanted", &[("TAGS", "A")]).await;
    let pulled = pulling.await;
    assert_eq!((pulled.code, pulled.bodies(), pulled.next()), (0, vec!["wanted"], 3));

    let impatient = PullMessageRequest { suspend_timeout_millis: 100, ..request };
    let pulled = wire.pull(PullMessageRequest { queue_offset: 3, ..impatient.clone() }).await;
    assert_eq!((pulled.code, pulled.next()), (19, 3), "its time is up");
    let pulled =
        wire.pull(PullMessageRequest { queue_offset: 1, subscription: Some("C".to_owned()), ..impatient }).await;
    assert_eq!((pulled.code, pulled.next()), (20, 3), "nothing matched: go on from here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_appears_when_it_is_due_and_keeps_its_properties() {
    let one = one().await;
    let (wire, broker) = (&one.wire, &one.broker);
    let clock = Env::real().clock;
    let began = clock.monotonic();
    let sent = wire.sent("T", "later", &[("DELAY", "1")]).await;
    assert_eq!(sent.queue_offset, Some(0));
    assert_eq!(wire.max_offset("T").await, 0, "not yet visible");
    let id: MessageId = sent.msg_id.expect("an id").parse().expect("an id");
    let view = ViewMessageRequest { offset: id.physical_offset, ..ViewMessageRequest::default() };
    let viewed = wire.call(RemotingCommand::request_with(RequestCode::VIEW_MESSAGE_BY_ID, &view)).await;
    assert_eq!(messages(&viewed.body)[0].body, "later", "but it is there");

    let pulled = wire.pull(parked(pull_request("T", 0))).await;
    assert_eq!(pulled.bodies(), ["later"]);
    assert!(clock.monotonic() - began >= Duration::from_millis(300), "not early");
    let seen = &pulled.messages[0];
    assert_eq!((seen.physical_offset, seen.topic.as_str()), (id.physical_offset, "T"));
    for (name, value) in [("DELAY", "1"), ("REAL_TOPIC", "T"), ("REAL_QID", "0")] {
        assert_eq!(seen.property(name).as_deref(), Some(value));
    }
    let record = RecordView::parse(&seen.record).expect("a record");
    assert!(record.store_timestamp() > 0);
    let viewed = wire.call(RemotingCommand::request_with(RequestCode::VIEW_MESSAGE_BY_ID, &view)).await;
    assert_eq!(messages(&viewed.body), pulled.messages, "found by its index row");

    wire.sent("T", "by time", &[("TIMER_DELAY_MS", "50")]).await;
    let pulled = wire.pull(parked(pull_request("T", 1))).await;
    assert_eq!(pulled.bodies(), ["by time"]);
    assert!(pulled.messages[0].property("TIMER_OUT_MS").is_some());
    broker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_consumed_is_retried_and_ends_as_a_dead_letter() {
    let one = one().await;
    let wire = &one.wire;
    wire.heartbeat("c1", "g", &[("T", "*")]).await;
    let sent = wire.sent("T", "poison", &[("TAGS", "A")]).await;
    let first: MessageId = sent.msg_id.clone().expect("an id").parse().expect("an id");
    let mut offset = first.physical_offset;
    for round in 1..=2 {
        let answer = wire.send_back("g", offset, 0).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
        let pulled = wire.pull(parked(pull_request("%RETRY%g", round - 1))).await;
        assert_eq!(pulled.bodies(), ["poison"]);
        let seen = &pulled.messages[0];
        assert_eq!(i64::from(seen.reconsume_times), round);
        assert_eq!(seen.property("RETRY_TOPIC").as_deref(), Some("T"));
        assert_eq!(seen.property("ORIGIN_MESSAGE_ID"), sent.msg_id);
        assert_eq!(seen.property("UNIQ_KEY"), sent.transaction_id);
        assert_eq!(seen.property("DELAY"), Some((2 + round).to_string()));
        offset = seen.physical_offset;
    }
    assert_eq!(wire.send_back("g", offset, 0).await.code, 0);
    let pulled = wire.pull(parked(pull_request("%DLQ%g", 0))).await;
    assert_eq!((pulled.bodies(), pulled.messages[0].reconsume_times), (vec!["poison"], 3));
    assert_eq!(pulled.messages[0].property("DELAY").as_deref(), Some("0"));

    for again in [first.physical_offset, offset] {
        assert_eq!(wire.send_back("g", again, -1).await.code, 0, "to a client that got it once more");
    }
    assert_eq!(wire.max_offset("%DLQ%g").await, 1, "it lies there already");

    // Whoever sends a dead letter again has sent another message.
    let dead = &pulled.messages[0];
    let properties: Vec<_> =
        ["UNIQ_KEY", "RAFTMQ_ORIGIN"].into_iter().map(|name| (name, dead.property(name).expect(name))).collect();
    let properties: Vec<_> = properties.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let again: MessageId = wire.sent("T", "poison", &properties).await.msg_id.expect("an id").parse().expect("an id");
    assert_eq!(wire.send_back("g", again.physical_offset, -1).await.code, 0);
    assert_eq!(wire.max_offset("%DLQ%g").await, 2, "the client gave up at once");
    assert_eq!(wire.send_back("g", 1 << 40, 0).await.code, 1, "no such message");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumer_offsets_are_read_as_written() {
    let one = one().await;
    let (wire, broker) = (&one.wire, &one.broker);
    wire.sent("T", "m", &[]).await;
    assert_eq!(wire.call(Wire::offset_update("g", "T", 1)).await.code, 26);
    wire.heartbeat("c1", "g", &[("T", "*")]).await;
    assert_eq!(wire.call(Wire::offset_update("g", "U", 1)).await.code, 17);
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(0), "where it begins was fixed when it came");
    assert_eq!(wire.consumer_offset("nobody", "T", false).await, Err(22));
    assert_eq!(wire.consumer_offset("nobody", "T", true).await, Ok(0), "a young queue is read from its beginning");
    assert_eq!(wire.call(Wire::offset_update("g", "T", 5)).await.code, 0);
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(5));
    for offset in [6, 7, 8] {
        wire.client.one_way(&wire.address, Wire::offset_update("g", "T", offset)).await.expect("it is queued");
    }
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(8), "a query waits for what is pending");
    let with_pull = PullMessageRequest { commit_offset: 9, ..pull_request("T", 0) };
    let with_pull =
        PullMessageRequest { consumer_group: "g".to_owned(), sys_flag: with_pull.sys_flag | 1, ..with_pull };
    assert_eq!(wire.pull(with_pull).await.code, 0);
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(9), "carried by a pull");
    assert_eq!(wire.call(Wire::offset_update("g", "T", 2)).await.code, 0);
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(2), "a two-way update may go back");

    let other = Wire::to(&broker.groups()[0]);
    other.client.one_way(&other.address, Wire::offset_update("g", "T", 1)).await.expect("it is queued");
    // The update is on its way on another connection: wait until the broker has taken it in and let it be.
    other.heartbeat("c2", "g", &[("T", "*")]).await;
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(2), "a late one-way update moves nothing back");
}

/// Go's client says its last offsets and sends its one-way messages like this, neither marked as one-way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_says_right_before_it_closes_counts() {
    let one = one().await;
    let wire = &one.wire;
    wire.sent("T", "m", &[]).await;
    wire.heartbeat("c1", "g", &[("T", "*")]).await;
    for round in 1..=20 {
        let send = SendMessageRequestV2(send_request("T", &[]));
        let send = RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &send).with_body("last words");
        wire.say_and_leave(&[Wire::offset_update("g", "T", round), send]).await;
        until("the offset is stored", async || wire.consumer_offset("g", "T", false).await == Ok(round)).await;
        until("the message is stored", async || wire.max_offset("T").await == 1 + round).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_group_hear_of_each_other() {
    let one = one().await;
    let (wire, broker) = (&one.wire, &one.broker);
    let list = |group: &str| {
        let request = ConsumerGroupRequest { consumer_group: group.to_owned(), broker_name: None };
        RemotingCommand::request_with(RequestCode::GET_CONSUMER_LIST_BY_GROUP, &request)
    };
    assert_eq!(wire.call(list("g")).await.code, 1);
    let answer = wire.heartbeat("c1", "g", &[("T", "*")]).await;
    assert!(answer.version >= 232, "Java's SQL92 consumers ask for it");
    assert_eq!(answer.ext.get("IS_SUPPORT_HEART_BEAT_V2"), Some("true"));
    let ids = |answer: RemotingCommand| answer.json::<ConsumerIdList>().expect("a body").consumer_id_list;
    assert_eq!(ids(wire.call(list("g")).await), ["c1"]);
    let told = |wire: &Wire| {
        let heard = wire.heard.requests.lock();
        heard.iter().filter(|request| request.request_code() == RequestCode::NOTIFY_CONSUMER_IDS_CHANGED).count()
    };
    until("the first member is told of itself", async || told(wire) == 1).await;

    let second = Wire::to(&broker.groups()[0]);
    second.heartbeat("c0", "g", &[("T", "*")]).await;
    assert_eq!(ids(wire.call(list("g")).await), ["c0", "c1"]);
    until("it is told of the second", async || told(wire) == 2).await;
    let leaving = UnregisterClientRequest {
        client_id: "c0".to_owned(),
        consumer_group: Some("g".to_owned()),
        ..UnregisterClientRequest::default()
    };
    let left = second.call(RemotingCommand::request_with(RequestCode::UNREGISTER_CLIENT, &leaving)).await;
    assert_eq!(left.code, 0);
    until("and of its leaving", async || told(wire) == 3).await;
    second.heartbeat("c0", "g", &[("T", "*")]).await;
    second.client.close().await;
    until("a closed connection leaves too", async || ids(wire.call(list("g")).await) == ["c1"]).await;
}

/// A message's body may hold a whole record, with a topic, a birth and properties of its choice: it is still a body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_inside_a_body_is_no_message() {
    let one = one().await;
    let wire = &one.wire;
    let sent = wire.sent("T", "a real one", &[]).await;
    let offset = |sent: &SendMessageResponse| {
        sent.msg_id.clone().expect("an id").parse::<MessageId>().expect("an id").physical_offset
    };
    let view = async |offset: i64| {
        let request = ViewMessageRequest { offset, ..ViewMessageRequest::default() };
        wire.call(RemotingCommand::request_with(RequestCode::VIEW_MESSAGE_BY_ID, &request)).await
    };
    let pulled = wire.pull(parked(pull_request("T", 0))).await;
    let forged = pulled.messages[0].record.clone();
    let request = SendMessageRequestV2(send_request("T", &[]));
    let request = RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &request).with_body(forged.clone());
    let answer = wire.call(request).await;
    assert_eq!(answer.code, 0, "{}", answer.remark_text());
    let carrier = offset(&answer.header().expect("a header"));
    let carried = view(carrier).await.body;
    let inside = carried.windows(forged.len()).position(|bytes| bytes == forged).expect("it is carried") as i64;
    assert_eq!(view(carrier + inside).await.code, 1);
    assert_eq!(wire.send_back("g", carrier + inside, 0).await.code, 1);
    assert_eq!(wire.send_back("g", carrier, 0).await.code, 0, "the message itself is one");
    assert_eq!(view(offset(&sent)).await.body, forged);

    let later = wire.sent("T", "later", &[("TIMER_DELAY_SEC", "60")]).await;
    assert_eq!(messages(&view(offset(&later)).await.body)[0].body, "later", "it waits, and is one all the same");
    one.broker.stop().await.expect("it stops");
}

/// Each lock is a row on every replica: who never comes back must not leave it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_whose_holders_are_gone_are_not_kept() {
    let one = one_with(|group| group.messages.queue_lock = Duration::from_millis(200)).await;
    let (wire, reader) = (&one.wire, one.broker.groups()[0].raft().reader());
    for topic in ["T", "U", "V"] {
        wire.sent(topic, "m", &[]).await;
    }
    let count = || reader.tables().locks().count();
    wire.heartbeat("c1", "g", &[("T", "*")]).await;
    wire.heartbeat("c1", "h", &[("T", "*")]).await;
    assert!(wire.lock("c1", "g", "T").await && wire.lock("c1", "g", "U").await && wire.lock("c1", "h", "T").await);
    assert_eq!(count(), 3);
    Env::real().clock.sleep(Duration::from_millis(300)).await;
    assert!(wire.lock("c2", "g", "V").await);
    assert_eq!(count(), 2, "h's last one, and the new one");
    let delete = RemotingCommand::request(RequestCode::DELETE_SUBSCRIPTIONGROUP).with_field("groupName", "h");
    assert_eq!(wire.call(delete.with_field("cleanOffset", false)).await.code, 0);
    assert_eq!(count(), 1, "a group's locks end with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_group_s_queue_has_one_owner_and_its_failures_are_dead_letters() {
    let one = one().await;
    let wire = &one.wire;
    wire.sent("T", "m", &[]).await;
    let stranger = RemotingCommand::request(RequestCode::LOCK_BATCH_MQ);
    let stranger = wire.call(stranger.with_json(&lock_request("c1", "g", "T"))).await;
    assert_eq!(stranger.code, 26, "a group that does not exist locks nothing: {}", stranger.remark_text());
    wire.heartbeat("c1", "g", &[("T", "*")]).await;
    assert!(wire.lock("c1", "g", "T").await);
    assert!(wire.lock("c1", "g", "T").await, "renewed");
    assert!(!wire.lock("c2", "g", "T").await, "taken");
    let given_up = send_request("%RETRY%g", &[("DELAY", "3")]);
    assert_eq!(wire.send(given_up.clone(), "given up").await.code, 0);
    let pulled = wire.pull(parked(pull_request("%DLQ%g", 0))).await;
    assert_eq!((pulled.bodies(), pulled.messages[0].property("DELAY")), (vec!["given up"], Some("-1".to_owned())));
    wire.unlock("c1", "g", "T").await;
    assert!(wire.lock("c2", "g", "T").await);
    wire.unlock("c2", "g", "T").await;
    assert_eq!(wire.send(given_up, "once more").await.code, 0);
    let pulled = wire.pull(parked(pull_request("%RETRY%g", 0))).await;
    assert_eq!(pulled.bodies(), ["once more"], "no locks: a retry like any other");
}

/// An orderly consumer that gives up sends the message anew, and once more if it hears no answer: as Java's does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_a_client_sends_twice_is_one_dead_letter() {
    let one = one().await;
    let wire = &one.wire;
    let locking = async || {
        wire.heartbeat("c1", "g", &[("T", "*")]).await;
        assert!(wire.lock("c1", "g", "T").await);
    };
    wire.sent("T", "m", &[]).await;
    locking().await;
    let copy_of =
        |origin| send_request("%RETRY%g", &[("UNIQ_KEY", "K"), ("ORIGIN_MESSAGE_ID", origin), ("DELAY", "3")]);
    let place_of = async |request: SendMessageRequest, body: &str| {
        let answer = wire.send(request, body).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
        let duplicate = answer.ext.bool(DUPLICATE) == Some(true);
        (answer.header::<SendMessageResponse>().expect("places").queue_offset, duplicate)
    };
    let place = async |request: SendMessageRequest| place_of(request, "given up").await;
    let (one_copy, another) = tokio::join!(place(copy_of("M")), place(copy_of("M")));
    assert_eq!((one_copy.0, another.0, one_copy.1 ^ another.1), (Some(0), Some(0), true), "one is the other");
    assert_eq!(place(copy_of("M")).await, (Some(0), true));
    assert_eq!(place(copy_of("another")).await, (Some(1), false), "sent under the same key on purpose");
    assert_eq!(
        place(send_request("%RETRY%g", &[("UNIQ_KEY", "K")])).await,
        (Some(2), false),
        "of nothing that is known"
    );

    // Copies that are tried again, of a group that is not orderly: each is another message of the retry topic, and given
    // up by the broker.
    wire.unlock("c1", "g", "T").await;
    let own = [("UNIQ_KEY", "L"), ("ORIGIN_MESSAGE_ID", "M"), ("RETRY_TOPIC", "T")];
    for _ in 0..2 {
        assert_eq!(wire.send(send_request("%RETRY%g", &own), "failed").await.code, 0);
    }
    let retries = wire.pull(parked(pull_request("%RETRY%g", 0))).await;
    assert_eq!(retries.bodies(), ["failed", "failed"]);
    for retry in &retries.messages {
        assert_eq!(wire.send_back("g", retry.physical_offset, -1).await.code, 0);
    }
    assert_eq!(wire.max_offset("%DLQ%g").await, 4, "they are one message");
    locking().await;
    assert_eq!(place_of(send_request("%RETRY%g", &own), "failed").await, (Some(3), true), "whichever way it comes");
    let another = place_of(send_request("%RETRY%g", &own), "another").await;
    assert_eq!(another, (Some(4), false), "a client that calls both by one key loses neither");

    // Sent anew first, and then given back by who gets it next.
    let sent = wire.sent("T", "given up both ways", &[("UNIQ_KEY", "N")]).await;
    let id = sent.msg_id.expect("an id");
    let copy = [("UNIQ_KEY", "N"), ("ORIGIN_MESSAGE_ID", &*id), ("RETRY_TOPIC", "T")];
    assert_eq!(place_of(send_request("%RETRY%g", &copy), "given up both ways").await, (Some(5), false));
    let original: MessageId = id.parse().expect("an offset message id");
    assert_eq!(wire.send_back("g", original.physical_offset, -1).await.code, 0);
    assert_eq!(wire.max_offset("%DLQ%g").await, 6, "it lies there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_is_there_after_a_stop_and_after_a_kill() {
    let dir = tempfile::tempdir().expect("a directory");
    let group = group_config(dir.path());
    let config = broker_config(group, vec![]);
    for round in 0..3_i64 {
        let broker = start(config.clone()).await;
        let wire = Wire::to(&broker.groups()[0]);
        wire.heartbeat("c1", "g", &[("T", "*")]).await;
        if round > 0 {
            // What is asked of the leader waits until it is one; a pull shows what is applied so far.
            assert_eq!(wire.max_offset("T").await, round);
            let pulled = wire.pull(pull_request("T", 0)).await;
            assert_eq!(pulled.bodies(), (0..round).map(|round| format!("m{round}")).collect::<Vec<_>>());
        }
        assert_eq!(wire.consumer_offset("g", "T", false).await, if round == 0 { Err(22) } else { Ok(round) });
        assert_eq!(wire.sent("T", &format!("m{round}"), &[]).await.queue_offset, Some(round));
        assert_eq!(wire.call(Wire::offset_update("g", "T", round + 1)).await.code, 0);
        if round == 0 {
            broker.stop().await.expect("it stops");
        } else {
            broker.kill().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nameserver_hears_of_the_broker_its_topics_and_its_end() {
    let (server, heard) = name_server().await;
    let dir = tempfile::tempdir().expect("a directory");
    let config = broker_config(group_config(dir.path()), vec![server.local_addr().to_string()]);
    let broker = start(config).await;
    let registered = |topic: &str| {
        let heard = heard.requests.lock();
        let requests = heard.iter().filter(|request| request.request_code() == RequestCode::REGISTER_BROKER);
        requests.rev().find_map(|request| {
            let body = RegisterBrokerBody::decode(&request.body, false, 0).expect("a body");
            let header: RegisterBrokerRequest = request.header().expect("a header");
            let topics = body.topic_config_serialize_wrapper;
            topics.topic_config_table.contains_key(topic).then_some((header, topics.data_version))
        })
    };
    until("the system topics are registered", async || registered("TBW102").is_some()).await;
    let (header, version) = registered(CLUSTER).expect("the cluster's topic");
    assert_eq!((header.broker_id, header.broker_name.as_str()), (0, BROKER));
    assert_eq!(header.broker_addr, broker.groups()[0].advertised_address().to_string());
    assert!(version.state_version >= 1, "the term");
    let wire = Wire::to(&broker.groups()[0]);
    wire.heartbeat("c1", "g", &[("T", "*")]).await;
    until("the retry topic is registered at once", async || registered("%RETRY%g").is_some()).await;
    wire.sent("T", "m", &[]).await;
    until("a topic made on demand is registered at once", async || registered("T").is_some()).await;
    broker.stop().await.expect("it stops");
    let said_farewell =
        heard.requests.lock().iter().any(|request| request.request_code() == RequestCode::UNREGISTER_BROKER);
    assert!(said_farewell);
}

/// Heartbeats of the second version leave the subscriptions out as long as they are what the broker was told last. As Java says
/// them, byte for byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_heartbeat_counts_where_its_fingerprint_is_known_and_else_the_whole_one_is_asked_for() {
    let one = one().await;
    let said = async |wire: &Wire, topic: Option<&str>, fingerprint: i32| {
        let subscription = topic.map_or(String::new(), |topic| {
            format!(
                r#"{{"classFilterMode":false,"codeSet":[],"expressionType":"TAG","subString":"*","subVersion":{fingerprint},"tagsSet":[],"topic":"{topic}"}}"#
            )
        });
        let body = format!(
            r#"{{"clientID":"10.0.0.9@4242#1","consumerDataSet":[{{"consumeFromWhere":"CONSUME_FROM_FIRST_OFFSET","consumeType":"CONSUME_PASSIVELY","groupName":"cg","messageModel":"CLUSTERING","subscriptionDataSet":[{subscription}],"unitMode":false}}],"heartbeatFingerprint":{fingerprint},"producerDataSet":[],"withoutSub":{}}}"#,
            topic.is_none()
        );
        let answer = wire.call(RemotingCommand::request(RequestCode::HEART_BEAT).with_body(body)).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
        let header: HeartbeatResponse = answer.header().expect("a header");
        assert!(header.is_support_heart_beat_v2);
        header.is_sub_change
    };
    let subscribed = async |wire: &Wire| {
        let header = ConsumerGroupRequest { consumer_group: "cg".to_owned(), ..ConsumerGroupRequest::default() };
        let request = RemotingCommand::request_with(RequestCode::GET_CONSUMER_CONNECTION_LIST, &header);
        let found: ConsumerConnection = wire.call(request).await.json().expect("the group");
        let topics = found.subscription_table.into_keys().filter(|topic| !topic.starts_with('%'));
        (found.connection_set.len(), topics.collect::<Vec<_>>())
    };
    let wire = &one.wire;
    assert!(said(wire, None, 7).await, "nothing is known of it");
    assert_eq!(subscribed(wire).await, (1, vec![]), "a member all the same");
    assert!(!said(wire, Some("T"), 7).await, "now it is: the client may leave it out");
    assert!(!said(wire, None, 7).await);
    assert_eq!(subscribed(wire).await, (1, vec!["T".to_owned()]), "what was left out is kept");
    assert!(said(wire, None, 8).await, "it has other subscriptions than those told here");
    assert_eq!(subscribed(wire).await, (1, vec!["T".to_owned()]));
    assert!(!said(wire, Some("U"), 8).await);
    assert!(!said(wire, None, 8).await);
    assert_eq!(subscribed(wire).await, (1, vec!["U".to_owned()]));
    assert!(said(wire, None, 7).await, "the one before is no longer known");

    let again = Wire::to(&one.broker.groups()[0]);
    assert!(said(&again, None, 8).await, "a fingerprint is known of a connection");
    assert!(said(wire, Some("T"), 0).await, "the first version says everything every time");
    assert!(said(wire, None, 8).await, "and has no fingerprint that could be known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_health_are_served() {
    let dir = tempfile::tempdir().expect("a directory");
    let http = Some(free_address());
    let broker = start(broker::config::BrokerConfig { http, ..broker_config(group_config(dir.path()), vec![]) }).await;
    let wire = Wire::to(&broker.groups()[0]);
    wire.sent("T", "m", &[("TIMER_DELAY_MS", "1")]).await;
    until("it is visible", async || wire.max_offset("T").await == 1).await;
    let address = broker.http_address().expect("it is on").to_string();
    let get = async |path: &str| http_get(&address, path).await;
    let page = get("/metrics").await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(page.contains("raftmq_role{group=\"broker-t\",role=\"leader\"} 1"), "{page}");
    assert!(page.contains("raftmq_messages_put_total{group=\"broker-t\"} 1"), "{page}");
    assert!(page.contains("raftmq_timer_lateness_seconds_count{group=\"broker-t\"} 1"), "{page}");
    assert!(page.contains("raftmq_timer_lateness_seconds_bucket{le=\"60.0\",group=\"broker-t\"} 1"), "{page}");
    for depth in ["log_writer_bytes", "derived_changes_bytes", "half_messages"] {
        assert!(page.contains(&format!("raftmq_{depth}{{group=\"broker-t\"}}")), "{depth}: {page}");
    }
    assert!(get("/health/live").await.starts_with("HTTP/1.1 200"));
    assert!(get("/health/ready").await.starts_with("HTTP/1.1 200"));
}

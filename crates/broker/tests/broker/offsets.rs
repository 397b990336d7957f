//! Groups that are moved while their consumers run, and where new groups begin: decided once, whoever leads.

use env::Env;
use protocol::body::{ConsumeFromWhere, ConsumerData, GetConsumerStatusBody, MessageQueue, ResetOffsetBody};
use protocol::body::{HeartbeatData, SubscriptionData};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{
    BoundaryType, CloneGroupOffsetRequest, EarliestStoreTimeResponse, GetConsumerStatusRequest, OffsetResponse,
    PullMessageRequest, QueueRequest, ResetConsumerClientOffsetRequest, ResetOffsetRequest, SearchOffsetRequest,
    TopicRequest,
};
use protocol::language::Language;
use protocol::record::RecordView;

use crate::three::Three;
use crate::world::*;

fn reset_request(group: &str, topic: &str) -> ResetOffsetRequest {
    ResetOffsetRequest {
        topic: topic.to_owned(),
        group: group.to_owned(),
        timestamp: -1,
        is_force: true,
        queue_id: None,
        offset: None,
    }
}

/// Of queue 0, to this offset.
fn to_offset(group: &str, topic: &str, offset: i64) -> ResetOffsetRequest {
    ResetOffsetRequest { queue_id: Some(0), offset: Some(offset), ..reset_request(group, topic) }
}

/// As a member of the group pulls, one message at most.
fn own_pull(group: &str, topic: &str, offset: i64) -> PullMessageRequest {
    let of_group = pull_request(topic, offset);
    PullMessageRequest { consumer_group: group.to_owned(), max_msg_nums: 1, ..of_group }
}

impl Wire {
    async fn reset(&self, request: ResetOffsetRequest) -> RemotingCommand {
        self.call(RemotingCommand::request_with(RequestCode::INVOKE_BROKER_TO_RESET_OFFSET, &request)).await
    }

    /// The new offset of queue 0.
    async fn moved(&self, request: ResetOffsetRequest) -> Option<i64> {
        let queue = MessageQueue::new(request.topic.clone(), BROKER, 0);
        let answer = self.reset(request).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
        answer.json::<ResetOffsetBody>().expect("a body").offset_table.get(&queue).copied()
    }

    /// What members were told of moves so far.
    fn told_of_moves(&self) -> Vec<RemotingCommand> {
        let heard = self.heard.requests.lock();
        heard.iter().filter(|one| one.request_code() == RequestCode::RESET_CONSUMER_CLIENT_OFFSET).cloned().collect()
    }

    async fn deleted(&self, topic: &str) {
        let delete = TopicRequest { topic: topic.to_owned(), ..TopicRequest::default() };
        let answer = self.call(RemotingCommand::request_with(RequestCode::DELETE_TOPIC_IN_BROKER, &delete)).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
    }

    async fn stored_at(&self, topic: &str, offset: i64) -> i64 {
        let pulled = self.pull(pull_request(topic, offset)).await;
        RecordView::parse(&pulled.messages[0].record).expect("a record").store_timestamp()
    }

    async fn begin(&self, group: &str, topic: &str, from: ConsumeFromWhere) {
        let subscription = SubscriptionData::by_tags(topic, "*", 1).expect("an expression");
        let body = HeartbeatData {
            client_id: "c1".to_owned(),
            consumer_data_set: vec![ConsumerData {
                group_name: group.to_owned(),
                consume_from_where: from,
                subscription_data_set: vec![subscription],
                ..ConsumerData::default()
            }],
            ..HeartbeatData::default()
        };
        let answer = self.call(RemotingCommand::request(RequestCode::HEART_BEAT).with_json(&body)).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_moved_while_its_consumers_run_and_nothing_they_say_undoes_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = broker_config(group_config(dir.path()), vec![]);
    let broker = start(config.clone()).await;
    let wire = Wire::to(&broker.groups()[0]);
    for k in 0..10 {
        wire.sent("T", &k.to_string(), &[]).await;
    }
    wire.heartbeat("c1", "g", &[("T", "*")]).await;
    assert_eq!(wire.call(Wire::offset_update("g", "T", 8)).await.code, 0);

    // To a time: exact to the millisecond.
    let time = wire.stored_at("T", 3).await;
    let mut first_at = 3;
    while first_at > 0 && wire.stored_at("T", first_at - 1).await == time {
        first_at -= 1;
    }
    let by_time = ResetOffsetRequest { timestamp: time, ..reset_request("g", "T") };
    assert_eq!(wire.moved(by_time.clone()).await, Some(first_at));
    until("its member is told", async || !wire.told_of_moves().is_empty()).await;
    let told = wire.told_of_moves().remove(0);
    let header: ResetConsumerClientOffsetRequest = told.header().expect("a header");
    assert_eq!((header.group.as_str(), header.topic.as_str(), header.timestamp), ("g", "T", time));
    let body: ResetOffsetBody = told.json().expect("a body");
    assert_eq!(body.offset_table.get(&MessageQueue::new("T", BROKER, 0)), Some(&first_at));
    assert!(told.is_one_way());

    // Its consumers have not heard of it yet, and the broker starts again meanwhile.
    assert_eq!(wire.moved(to_offset("g", "T", 4)).await, Some(4));
    broker.stop().await.expect("it stops");
    let broker = start(config).await;
    let wire = Wire::to(&broker.groups()[0]);
    wire.heartbeat("c1", "g", &[("T", "*")]).await;
    let late = wire.call(Wire::offset_update("g", "T", 9)).await;
    assert_eq!(late.code, 604, "{}", late.remark_text());
    wire.say_and_leave(&[Wire::offset_update("g", "T", 9).one_way()]).await;
    let pulled = wire.pull(own_pull("g", "T", 9)).await;
    assert_eq!((pulled.code, pulled.next()), (21, 4));
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(4));
    assert_eq!(wire.pull(own_pull("other", "T", 9)).await.bodies(), ["9"], "another group is where it was");
    // It goes on from there.
    assert_eq!(wire.pull(own_pull("g", "T", 4)).await.bodies(), ["4"]);
    assert_eq!(wire.pull(own_pull("g", "T", 5)).await.bodies(), ["5"]);
    assert_eq!(wire.call(Wire::offset_update("g", "T", 6)).await.code, 0);
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(6));

    // Forward only if that is wished; to the end, without anybody's offset; storing the new one goes on from it, too.
    assert_eq!(wire.moved(ResetOffsetRequest { is_force: false, ..reset_request("g", "T") }).await, None);
    assert_eq!(wire.moved(ResetOffsetRequest { is_force: false, ..to_offset("g", "T", 2) }).await, Some(2));
    assert_eq!(wire.moved(reset_request("g", "T")).await, Some(10));
    assert_eq!(wire.call(Wire::offset_update("g", "T", 10)).await.code, 0);
    assert_eq!(wire.pull(own_pull("g", "T", 7)).await.bodies(), ["7"], "it was there, and may be anywhere");

    for (code, wrong) in [
        (17, reset_request("g", "Nowhere")),
        (26, reset_request("nobody", "T")),
        (29, to_offset("g", "T", 11)),
        (29, ResetOffsetRequest { queue_id: Some(99), ..reset_request("g", "T") }),
    ] {
        let answer = wire.reset(wrong).await;
        assert_eq!(answer.code, code, "{}", answer.remark_text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_on_where_another_is_and_members_say_how_far_they_have_come() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = start(broker_config(group_config(dir.path()), vec![])).await;
    let (wire, cpp) = (Wire::to(&broker.groups()[0]), Wire::to(&broker.groups()[0]));
    for topic in ["T", "U"] {
        for k in 0..5 {
            wire.sent(topic, &k.to_string(), &[]).await;
        }
    }
    wire.heartbeat("c1", "from", &[("T", "*")]).await;
    let heartbeat = HeartbeatData {
        client_id: "c2".to_owned(),
        consumer_data_set: vec![ConsumerData { group_name: "to".to_owned(), ..ConsumerData::default() }],
        ..HeartbeatData::default()
    };
    let mut heartbeat = RemotingCommand::request(RequestCode::HEART_BEAT).with_json(&heartbeat);
    heartbeat.language = Language::CPP;
    assert_eq!(cpp.call(heartbeat).await.code, 0);
    for (topic, offset) in [("T", 3), ("U", 2)] {
        assert_eq!(wire.call(Wire::offset_update("from", topic, offset)).await.code, 0);
    }
    let clone = |from: &str, to: &str, topic: Option<&str>| {
        let header = CloneGroupOffsetRequest {
            src_group: from.to_owned(),
            dest_group: to.to_owned(),
            topic: topic.map(str::to_owned),
            offline: false,
        };
        wire.call(RemotingCommand::request_with(RequestCode::CLONE_GROUP_OFFSET, &header))
    };
    assert_eq!(clone("from", "to", Some("T")).await.code, 0);
    assert_eq!(wire.consumer_offset("to", "T", false).await, Ok(3));
    until("its member is told", async || cpp.told_of_moves().len() == 1).await;
    let told = String::from_utf8(cpp.told_of_moves()[0].body.to_vec()).expect("text");
    assert!(told.contains(r#""offsetTable":[{"brokerName":"broker-t","offset":3,"queueId":0,"topic":"T"}"#), "{told}");
    assert_eq!(clone("from", "to", None).await.code, 0);
    assert_eq!(
        (wire.consumer_offset("to", "T", false).await, wire.consumer_offset("to", "U", false).await),
        (Ok(3), Ok(2))
    );
    assert_eq!(clone("from", "made by it", Some("U")).await.code, 29, "no name of a group");
    assert_eq!(clone("from", "made-by-it", Some("U")).await.code, 0);
    assert_eq!(wire.consumer_offset("made-by-it", "U", false).await, Ok(2));
    assert_eq!((clone("nobody", "to", None).await.code, clone("to", "to", None).await.code), (26, 29));

    let status = async |group: &str, client: Option<&str>| {
        let header = GetConsumerStatusRequest {
            topic: "T".to_owned(),
            group: group.to_owned(),
            client_addr: client.map(str::to_owned),
        };
        wire.call(RemotingCommand::request_with(RequestCode::INVOKE_BROKER_TO_GET_CONSUMER_STATUS, &header)).await
    };
    let answer = status("nobody", None).await;
    assert_eq!((answer.code, answer.remark_text()), (1, "No Any Consumer online in the consumer group: [nobody]"));
    assert_eq!(status("to", Some("c9")).await.code, 1);
    let answer = status("from", None).await;
    assert_eq!(answer.code, 1, "its only member says nothing of itself");
    wire.heartbeat("c1", "to", &[("T", "*")]).await;
    let queue = MessageQueue::new("T", BROKER, 0);
    let place = GetConsumerStatusBody { message_queue_table: [(queue.clone(), 3)].into(), ..Default::default() };
    *wire.heard.answer.lock() = RemotingCommand::request(RequestCode::HEART_BEAT).with_json(&place).body;
    let answer = status("to", None).await;
    let known = answer.json::<GetConsumerStatusBody>().unwrap_or_else(|_| panic!("{}", answer.remark_text()));
    assert_eq!(known.consumer_table, [("c1".to_owned(), [(queue, 3)].into())].into(), "what one says is told");
}

/// Queues say when the first message was stored that is there still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_says_when_its_first_message_was_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = start(broker_config(group_config(dir.path()), vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    let earliest = async || {
        let header = QueueRequest { topic: "T".to_owned(), queue_id: 0, ..QueueRequest::default() };
        let answer = wire.call(RemotingCommand::request_with(RequestCode::GET_EARLIEST_MSG_STORETIME, &header)).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
        answer.header::<EarliestStoreTimeResponse>().expect("a header").timestamp
    };
    wire.sent("T", "of an earlier life", &[]).await;
    let first = wire.stored_at("T", 0).await;
    let clock = Env::real().clock;
    until("another millisecond", async || clock.wall_ms() > first).await;
    wire.sent("T", "behind it", &[]).await;
    assert_eq!(earliest().await, first);
    wire.deleted("T").await;
    wire.sent("T", "of the next life", &[]).await;
    let next = wire.stored_at("T", 2).await;
    assert!(next > first);
    assert_eq!(earliest().await, next);
}

/// The leader dies between the move and the consumers' hearing of it: any replica sends them there, until one has gone on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_holds_at_every_replica_and_at_the_next_leader() {
    let three = Three::start(vec![]).await;
    let leader = three.leader().await;
    let follower = (leader + 1) % 3;
    until("a follower knows", async || three.group(follower).status().is_ready).await;
    let wires: Vec<Wire> = (0..3).map(|at| Wire::to(three.group(at))).collect();
    for k in 0..10 {
        wires[follower].sent("T", &k.to_string(), &[]).await;
    }
    for wire in &wires {
        wire.heartbeat("c1", "g", &[("T", "*")]).await;
    }
    assert_eq!(wires[follower].call(Wire::offset_update("g", "T", 9)).await.code, 0);
    assert_eq!(wires[follower].moved(to_offset("g", "T", 2)).await, Some(2));
    three.brokers[leader].kill().await;
    let survivors = [follower, (leader + 2) % 3];
    until("somebody else leads", async || survivors.iter().any(|at| three.group(*at).leads())).await;
    for at in survivors {
        let pulled = wires[at].pull(own_pull("g", "T", 9)).await;
        assert_eq!((pulled.code, pulled.next()), (21, 2), "replica {at}");
        assert_eq!(wires[at].call(Wire::offset_update("g", "T", 9)).await.code, 604, "replica {at}");
    }
    let next = survivors.into_iter().find(|at| three.group(*at).leads()).expect("it leads");
    let other = if next == survivors[0] { survivors[1] } else { survivors[0] };
    // Gone on through the one that does not lead; then both let the group be where it is.
    assert_eq!(wires[other].pull(own_pull("g", "T", 2)).await.bodies(), ["2"]);
    for at in [other, next] {
        until("it has heard", async || wires[at].pull(own_pull("g", "T", 3)).await.bodies() == ["3"]).await;
    }
    assert_eq!(wires[other].call(Wire::offset_update("g", "T", 4)).await.code, 0);
    assert_eq!(wires[next].consumer_offset("g", "T", false).await, Ok(4));
}

/// RocketMQ's consumers ask where a queue ends, and pass over what comes before one of them has stored an offset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_group_begins_where_the_queue_ended_when_it_came() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = start(broker_config(group_config(dir.path()), vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    // A queue that has lost its first messages: only there does "the end" not mean the beginning.
    wire.sent("T", "of an earlier life", &[]).await;
    wire.deleted("T").await;
    for k in 0..3 {
        wire.sent("T", &k.to_string(), &[]).await;
    }
    assert_eq!(wire.max_offset("T").await, 4);
    wire.begin("last", "T", ConsumeFromWhere::LastOffset).await;
    wire.begin("first", "T", ConsumeFromWhere::FirstOffset).await;
    wire.begin("time", "T", ConsumeFromWhere::Timestamp).await;
    wire.sent("T", "behind it", &[]).await;
    wire.begin("last", "T", ConsumeFromWhere::LastOffset).await;
    let offset = async |group| wire.consumer_offset(group, "T", true).await;
    assert_eq!((offset("last").await, offset("first").await), (Ok(4), Ok(1)));
    assert_eq!(offset("time").await, Err(22), "only its client knows");
    assert_eq!(offset("unheard-of").await, Err(22));
    assert_eq!(wire.pull(own_pull("last", "T", 4)).await.bodies(), ["behind it"]);
    // A young queue is read from its beginning, as RocketMQ's brokers have it.
    wire.sent("Young", "first", &[]).await;
    wire.begin("late", "Young", ConsumeFromWhere::LastOffset).await;
    assert_eq!(wire.consumer_offset("late", "Young", false).await, Ok(0));
}

/// Where a group begins on a queue that is no longer young, and where it was put like another, was decided by a leader that
/// died: whoever leads next has it so, whatever was stored meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_groups_begin_and_what_they_were_given_holds_at_the_next_leader() {
    let three = Three::start(vec![]).await;
    let leader = three.leader().await;
    let wires: Vec<Wire> = (0..3).map(|at| Wire::to(three.group(at))).collect();
    let survivors = [(leader + 1) % 3, (leader + 2) % 3];
    until("all followers know", async || survivors.iter().all(|at| three.group(*at).status().is_ready)).await;
    wires[leader].sent("T", "of an earlier life", &[]).await;
    wires[leader].deleted("T").await;
    for k in 0..3 {
        wires[leader].sent("T", &k.to_string(), &[]).await;
    }
    wires[leader].begin("last", "T", ConsumeFromWhere::LastOffset).await;
    wires[leader].begin("first", "T", ConsumeFromWhere::FirstOffset).await;
    wires[leader].heartbeat("c1", "model", &[("T", "*")]).await;
    assert_eq!(wires[leader].call(Wire::offset_update("model", "T", 2)).await.code, 0);
    let clone = CloneGroupOffsetRequest {
        src_group: "model".to_owned(),
        dest_group: "twin".to_owned(),
        topic: Some("T".to_owned()),
        offline: false,
    };
    let cloned = wires[leader].call(RemotingCommand::request_with(RequestCode::CLONE_GROUP_OFFSET, &clone)).await;
    assert_eq!(cloned.code, 0, "{}", cloned.remark_text());
    three.brokers[leader].kill().await;
    until("somebody else leads", async || survivors.iter().any(|at| three.group(*at).leads())).await;
    wires[survivors[0]].sent("T", "behind it", &[]).await;
    for at in survivors {
        for (group, from) in [("last", ConsumeFromWhere::LastOffset), ("first", ConsumeFromWhere::FirstOffset)] {
            wires[at].begin(group, "T", from).await;
        }
        for (group, offset) in [("last", 4), ("first", 1), ("model", 2), ("twin", 2)] {
            assert_eq!(wires[at].consumer_offset(group, "T", true).await, Ok(offset), "{group} at replica {at}");
        }
    }
    assert_eq!(wires[survivors[1]].pull(own_pull("last", "T", 4)).await.bodies(), ["behind it"]);
}

/// Searching by time, also with several messages of one millisecond, with none, and at the bounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_is_found_by_time_to_the_millisecond() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = start(broker_config(group_config(dir.path()), vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    let clock = Env::real().clock;
    for k in 0..30 {
        // Some share a millisecond, and between others are some that nothing was stored in.
        if k % 5 == 0 {
            clock.sleep(std::time::Duration::from_millis(7)).await;
        }
        wire.sent("T", &k.to_string(), &[]).await;
    }
    let pulled = wire.pull(pull_request("T", 0)).await;
    let time = |seen: &Seen| RecordView::parse(&seen.record).expect("a record").store_timestamp();
    let times: Vec<i64> = pulled.messages.iter().map(time).collect();
    assert_eq!(times.len(), 30);
    let search = async |timestamp: i64, boundary_type: BoundaryType| {
        let header =
            SearchOffsetRequest { topic: "T".to_owned(), queue_id: 0, timestamp, boundary_type, broker_name: None };
        let request = RemotingCommand::request_with(RequestCode::SEARCH_OFFSET_BY_TIMESTAMP, &header);
        wire.call(request).await.header::<OffsetResponse>().expect("an offset").offset
    };
    for at in times[0] - 2..=times[29] + 2 {
        let lower = times.iter().position(|time| *time >= at).unwrap_or(30) as i64;
        assert_eq!(search(at, BoundaryType::Lower).await, lower, "first at {at} or later");
        let upper = times.iter().rposition(|time| *time <= at).unwrap_or(0) as i64;
        assert_eq!(search(at, BoundaryType::Upper).await, upper, "last at {at} or earlier");
    }
}

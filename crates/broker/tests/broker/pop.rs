//! Popping as clients do it: a message is in one consumer's hands at a time, comes again when its time is over, ends once
//! among the dead letters, and all of it is the same at the next leader.

use std::time::Duration;

use broker::config::BrokerConfig;
use env::Env;
use protocol::body::{BatchAck, BatchAckRequest, SubscriptionGroupConfig};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{
    AckMessageRequest, ChangeInvisibleTimeRequest, ChangeInvisibleTimeResponse, NotificationRequest,
    NotificationResponse, PeekMessageRequest, PollingInfoResponse, PopMessageRequest, PopMessageResponse,
};

use crate::three::Three;
use crate::world::*;

/// Longer than any test takes.
const LONG_MS: i64 = 600_000;
const SHORT_MS: i64 = 300;

struct Popped {
    code: i32,
    remark: String,
    header: PopMessageResponse,
    messages: Vec<Seen>,
}

impl Popped {
    /// Body and count of deliveries before.
    fn seen(&self) -> Vec<(&str, i32)> {
        self.messages.iter().map(|message| (message.body.as_str(), message.reconsume_times)).collect()
    }

    /// The `POP_CK` of a message of queue 0, as Java builds it.
    fn ck(&self, at: usize) -> String {
        let header = &self.header;
        let numbers = [header.pop_time.expect("a time"), header.invisible_time.expect("a lease")];
        let offset = self.messages[at].queue_offset;
        let first = self.messages[0].queue_offset;
        format!("{first} {} {} {} 0 {BROKER} 0 {offset}", numbers[0], numbers[1], header.revive_qid.expect("a number"))
    }
}

/// All of queue 0 that there is, under a long lease, without waiting.
fn pop_request(group: &str) -> PopMessageRequest {
    PopMessageRequest {
        consumer_group: group.to_owned(),
        topic: "T".to_owned(),
        queue_id: 0,
        max_msg_nums: 32,
        invisible_time: LONG_MS,
        ..PopMessageRequest::default()
    }
}

impl Wire {
    async fn pop(&self, request: &PopMessageRequest) -> Popped {
        let answer = self.call(RemotingCommand::request_with(RequestCode::POP_MESSAGE, request)).await;
        Popped {
            code: answer.code,
            remark: answer.remark_text().to_owned(),
            header: answer.header().unwrap_or_default(),
            messages: messages(&answer.body),
        }
    }

    async fn ack(&self, group: &str, popped: &Popped, at: usize) -> i32 {
        let request = AckMessageRequest {
            consumer_group: group.to_owned(),
            topic: "T".to_owned(),
            queue_id: 0,
            extra_info: popped.ck(at),
            offset: popped.messages[at].queue_offset,
            ..AckMessageRequest::default()
        };
        self.call(RemotingCommand::request_with(RequestCode::ACK_MESSAGE, &request)).await.code
    }

    async fn change(&self, group: &str, popped: &Popped, at: usize, ms: i64) -> Result<i64, i32> {
        let request = ChangeInvisibleTimeRequest {
            consumer_group: group.to_owned(),
            topic: "T".to_owned(),
            queue_id: 0,
            extra_info: popped.ck(at),
            offset: popped.messages[at].queue_offset,
            invisible_time: ms,
            ..ChangeInvisibleTimeRequest::default()
        };
        let answer =
            self.call(RemotingCommand::request_with(RequestCode::CHANGE_MESSAGE_INVISIBLETIME, &request)).await;
        match answer.code {
            0 => Ok(answer.header::<ChangeInvisibleTimeResponse>().expect("a header").pop_time),
            code => Err(code),
        }
    }

    async fn group_with_retries(&self, group: &str, retries: i32) {
        let config = SubscriptionGroupConfig { retry_max_times: retries, ..SubscriptionGroupConfig::new(group) };
        let request = RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP).with_json(&config);
        assert_eq!(self.call(request).await.code, 0);
    }

    /// Bodies and reconsume times of the group's dead letters.
    async fn dead_letters(&self, group: &str) -> Vec<(String, i32)> {
        let pulled = self.pull(pull_request(&format!("%DLQ%{group}"), 0)).await;
        pulled.messages.into_iter().map(|message| (message.body, message.reconsume_times)).collect()
    }
}

/// What was looked at is popped by whoever asks next, and who waits for messages hears when one comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_takes_nothing_and_who_waits_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = start(broker_config(group_config(dir.path()), vec![])).await;
    let (wire, waiting) = (Wire::to(&broker.groups()[0]), Wire::to(&broker.groups()[0]));
    wire.sent("T", "a", &[]).await;
    let peek = PeekMessageRequest {
        consumer_group: "g".to_owned(),
        topic: "T".to_owned(),
        queue_id: 0,
        max_msg_nums: Some(32),
    };
    let peeked = wire.call(RemotingCommand::request_with(RequestCode::PEEK_MESSAGE, &peek)).await;
    let bodies: Vec<String> = messages(&peeked.body).into_iter().map(|message| message.body).collect();
    assert_eq!((peeked.code, bodies), (0, vec!["a".to_owned()]), "{}", peeked.remark_text());
    let notified = async |wire: &Wire, poll_time: i64| {
        let request = NotificationRequest {
            consumer_group: "g".to_owned(),
            topic: "T".to_owned(),
            queue_id: 0,
            poll_time,
            ..NotificationRequest::default()
        };
        let answer = wire.call(RemotingCommand::request_with(RequestCode::NOTIFICATION, &request)).await;
        answer.header::<NotificationResponse>().expect("a header").has_msg
    };
    assert!(notified(&wire, SHORT_MS).await, "it is there");
    assert_eq!(wire.pop(&pop_request("g")).await.seen(), [("a", 0)], "nobody has it");
    assert!(!notified(&wire, SHORT_MS).await, "it is in somebody's hands");

    let comes = async {
        until("somebody waits", async || {
            let answer = wire.call(RemotingCommand::request_with(RequestCode::POLLING_INFO, &peek)).await;
            answer.header::<PollingInfoResponse>().expect("a header").polling_num > 0
        })
        .await;
        wire.sent("T", "b", &[]).await;
    };
    let (told, ()) = tokio::join!(notified(&waiting, LONG_MS), comes);
    assert!(told, "as soon as it came");
    assert_eq!(wire.pop(&pop_request("g")).await.seen(), [("b", 0)]);
    broker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_in_one_hand_at_a_time_and_the_offset_follows_what_is_done() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = broker_config(group_config(dir.path()), vec![]);
    let broker = start(config.clone()).await;
    let wire = Wire::to(&broker.groups()[0]);
    for body in ["a", "b", "c", "d"] {
        wire.sent("T", body, &[("TAGS", if body == "b" { "other" } else { "wanted" })]).await;
    }
    let wanted = PopMessageRequest { exp: Some("wanted".to_owned()), ..pop_request("g") };
    let first = wire.pop(&PopMessageRequest { max_msg_nums: 2, ..wanted.clone() }).await;
    assert_eq!((first.code, first.seen()), (0, vec![("a", 0), ("c", 0)]), "{}", first.remark);
    let header = &first.header;
    assert_eq!(header.start_offset_info.as_deref(), Some("0 0 0"));
    assert_eq!(header.msg_offset_info.as_deref(), Some("0 0 0,2"));
    assert_eq!((header.invisible_time, header.revive_qid, header.rest_num), (Some(LONG_MS), Some(0), 1));
    let second = wire.pop(&PopMessageRequest { queue_id: -1, ..wanted.clone() }).await;
    assert_eq!(second.seen(), [("d", 0)]);
    assert_eq!(wire.pop(&wanted).await.code, 210, "everything is in somebody's hands");
    let every = wire.pop(&pop_request("another")).await;
    assert_eq!(every.seen(), [("a", 0), ("b", 0), ("c", 0), ("d", 0)], "another group has its own");

    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(0));
    assert_eq!(wire.ack("g", &second, 0).await, 0);
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(0));
    assert_eq!(wire.ack("g", &first, 0).await, 0);
    assert_eq!(wire.ack("g", &first, 0).await, 0, "the same again");
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(2));
    assert_eq!(wire.change("g", &first, 0, 1_000).await, Err(208), "it is done");

    // The rest is as it was for whoever opens the directory next.
    broker.stop().await.expect("it stops");
    let broker = start(config).await;
    let wire = Wire::to(&broker.groups()[0]);
    assert_eq!(wire.pop(&wanted).await.code, 210);
    let given_back = wire.change("g", &first, 1, 0).await;
    assert!(given_back.is_ok_and(|pop_time| pop_time > first.header.pop_time.expect("a time")));
    let third = wire.pop(&wanted).await;
    assert_eq!(third.seen(), [("c", 1)], "delivered once before");
    assert_eq!(wire.ack("g", &first, 1).await, 208, "it is the other's by now");
    assert_eq!(wire.change("g", &first, 1, 1_000).await, Err(208));
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(2));
    assert_eq!(wire.ack("g", &third, 0).await, 0);
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(4));

    // Whoever sets the offset says where the group goes on.
    assert_eq!(wire.call(Wire::offset_update("another", "T", 3)).await.code, 0);
    assert_eq!(wire.pop(&pop_request("another")).await.seen(), [("d", 0)]);
    assert_eq!(wire.ack("another", &every, 3).await, 208);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_malformed_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = start(broker_config(group_config(dir.path()), vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    assert_eq!(wire.pop(&pop_request("g")).await.code, 17, "no such topic");
    wire.sent("T", "a", &[]).await;
    let popped = wire.pop(&pop_request("g")).await;
    for (request, code) in [
        (PopMessageRequest { max_msg_nums: 33, ..pop_request("g") }, 29),
        (PopMessageRequest { max_msg_nums: 0, ..pop_request("g") }, 29),
        (PopMessageRequest { invisible_time: 0, ..pop_request("g") }, 29),
        (PopMessageRequest { queue_id: 77, ..pop_request("g") }, 29),
        (PopMessageRequest { consumer_group: "*".to_owned(), ..pop_request("g") }, 29),
        (PopMessageRequest { exp: Some("a >".to_owned()), exp_type: Some("SQL92".to_owned()), ..pop_request("g") }, 23),
    ] {
        assert_eq!(wire.pop(&request).await.code, code, "{request:?}");
    }
    let ack = AckMessageRequest {
        consumer_group: "g".to_owned(),
        topic: "T".to_owned(),
        queue_id: 0,
        extra_info: popped.ck(0),
        offset: 0,
        ..AckMessageRequest::default()
    };
    for (request, code) in [
        (AckMessageRequest { topic: "U".to_owned(), ..ack.clone() }, 17),
        (AckMessageRequest { consumer_group: "h".to_owned(), ..ack.clone() }, 26),
        (AckMessageRequest { queue_id: 77, ..ack.clone() }, 13),
        (AckMessageRequest { extra_info: "7".to_owned(), ..ack.clone() }, 13),
        (AckMessageRequest { offset: 1, ..ack.clone() }, 208),
        (ack, 0),
    ] {
        let answer = wire.call(RemotingCommand::request_with(RequestCode::ACK_MESSAGE, &request)).await;
        assert_eq!(answer.code, code, "{request:?}: {}", answer.remark_text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_pop_wakes_for_a_message_and_for_one_that_comes_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = start(broker_config(group_config(dir.path()), vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    wire.sent("T", "first", &[("TAGS", "other")]).await;
    let parked = PopMessageRequest { queue_id: -1, poll_time: PATIENCE.as_millis() as i64, ..pop_request("g") };
    let wanted = PopMessageRequest { exp: Some("wanted".to_owned()), ..parked.clone() };
    let (popped, ()) = tokio::join!(wire.pop(&wanted), async {
        wire.sent("T", "not wanted", &[("TAGS", "other")]).await;
        wire.sent("T", "new", &[("TAGS", "wanted")]).await;
    });
    assert_eq!(popped.seen(), [("new", 0)]);
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(2), "what is not wanted is done");
    let (again, given_back) = tokio::join!(wire.pop(&parked), wire.change("g", &popped, 0, 0));
    assert!(given_back.is_ok());
    assert_eq!(again.seen(), [("new", 1)]);
    let again = wire.change("g", &again, 0, SHORT_MS).await.map(|_| wire.pop(&parked));
    assert_eq!(again.expect("changed").await.seen(), [("new", 2)], "its time is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_in_vain_ends_once_among_the_dead_letters() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = start(broker_config(group_config(dir.path()), vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    wire.group_with_retries("g", 2).await;
    for body in ["good", "bad"] {
        wire.sent("T", body, &[("KEYS", body)]).await;
    }
    let parked = PopMessageRequest { poll_time: PATIENCE.as_millis() as i64, ..pop_request("g") };
    let short = PopMessageRequest { invisible_time: SHORT_MS, ..parked.clone() };
    let first = wire.pop(&PopMessageRequest { invisible_time: SHORT_MS, ..parked.clone() }).await;
    assert_eq!(first.seen(), [("good", 0), ("bad", 0)]);
    assert_eq!(wire.ack("g", &first, 0).await, 0);
    assert_eq!(wire.pop(&short).await.seen(), [("bad", 1)]);
    let last = wire.pop(&parked).await;
    assert_eq!(last.seen(), [("bad", 2)]);
    assert!(wire.change("g", &last, 0, SHORT_MS).await.is_ok());
    until("it is a dead letter", async || wire.dead_letters("g").await == [("bad".to_owned(), 3)]).await;
    until("it is done", async || wire.consumer_offset("g", "T", false).await == Ok(2)).await;
    assert_eq!(wire.pop(&pop_request("g")).await.code, 210);
    assert_eq!(wire.dead_letters("g").await.len(), 1);
    let dead = wire.pull(pull_request("%DLQ%g", 0)).await.messages.remove(0);
    assert_eq!(dead.property("RETRY_TOPIC").as_deref(), Some("T"));
    assert_eq!(dead.property("KEYS").as_deref(), Some("bad"));
}

/// A group takes no more of a queue than the limit allows until something of it is done; what it has may come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_in_flight_than_the_limit_allows_and_an_acknowledgement_makes_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = group_config(dir.path());
    config.limits.popped_messages = 3;
    let http = Some(free_address());
    let broker = start(BrokerConfig { http, ..broker_config(config, vec![]) }).await;
    let wire = Wire::to(&broker.groups()[0]);
    wire.group_with_retries("g", 1).await;
    for body in ["a", "b", "c", "d", "e"] {
        wire.sent("T", body, &[]).await;
    }
    let parked = PopMessageRequest { poll_time: PATIENCE.as_millis() as i64, ..pop_request("g") };
    let two = wire.pop(&PopMessageRequest { max_msg_nums: 2, ..pop_request("g") }).await;
    assert_eq!(two.seen(), [("a", 0), ("b", 0)], "below the limit");
    let third = wire.pop(&pop_request("g")).await;
    assert_eq!((third.seen(), third.header.rest_num), (vec![("c", 0)], 2), "up to the limit, whatever is asked for");
    let refused = wire.pop(&pop_request("g")).await;
    assert_eq!((refused.code, refused.messages.len()), (210, 0), "at the limit: as if there were nothing");
    let others = PopMessageRequest { order: true, ..pop_request("another") };
    assert_eq!(
        wire.pop(&others).await.seen(),
        [("a", 0), ("b", 0), ("c", 0)],
        "it is a limit of each group, in order too"
    );

    let (fourth, acknowledged) = tokio::join!(wire.pop(&parked), wire.ack("g", &two, 0));
    assert_eq!((fourth.seen(), acknowledged), (vec![("d", 0)], 0), "who waits gets what there is room for");
    let (again, given_back) = tokio::join!(wire.pop(&parked), wire.change("g", &two, 1, SHORT_MS));
    assert!(given_back.is_ok());
    assert_eq!(again.seen(), [("b", 1)], "at the limit what is in flight comes again");
    let (fifth, given_back) = tokio::join!(wire.pop(&parked), wire.change("g", &again, 0, SHORT_MS));
    assert!(given_back.is_ok());
    assert_eq!(fifth.seen(), [("e", 0)], "a dead letter makes room, too");
    assert_eq!(wire.dead_letters("g").await, [("b".to_owned(), 2)]);

    let page = http_get(&broker.http_address().expect("it is on").to_string(), "/metrics").await;
    for (metric, number) in [
        ("in_flight", 3),
        ("messages_total", 6),
        ("acknowledged_total", 1),
        ("leases_ended_total", 2),
        ("dead_letters_total", 1),
    ] {
        let line = format!("raftmq_popped_{metric}{{group=\"{BROKER}\",consumer_group=\"g\",topic=\"T\"}} {number}");
        assert!(page.lines().any(|found| found.trim_end_matches(".0") == line), "{line}: {page}");
    }
    for metric in ["dead_letters", "dead_letters_placed_total"] {
        let line = format!("raftmq_{metric}{{group=\"{BROKER}\",consumer_group=\"g\"}} 1");
        assert!(page.lines().any(|found| found.trim_end_matches(".0") == line), "{line}: {page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_order_one_batch_is_out_and_the_next_waits_for_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = start(broker_config(group_config(dir.path()), vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    for body in ["a", "b", "c"] {
        wire.sent("T", body, &[]).await;
    }
    let orderly = |attempt: &str, poll_time: i64| PopMessageRequest {
        max_msg_nums: 2,
        order: true,
        attempt_id: Some(attempt.to_owned()),
        poll_time,
        ..pop_request("g")
    };
    let patience_ms = PATIENCE.as_millis() as i64;
    let (second, third) = (orderly("two", patience_ms), orderly("three", patience_ms));
    let first = wire.pop(&orderly("one", 0)).await;
    assert_eq!((first.seen(), first.header.revive_qid), (vec![("a", 0), ("b", 0)], Some(999)));
    assert_eq!(wire.pop(&orderly("two", 0)).await.code, 210, "the batch is out");
    let again = wire.pop(&orderly("one", 0)).await;
    assert_eq!(again.seen(), [("a", 0), ("b", 0)], "its own attempt may have it again");
    assert_eq!(wire.ack("g", &first, 0).await, 208);
    assert_eq!(wire.ack("g", &again, 0).await, 0);
    let (next, given_back) = tokio::join!(wire.pop(&second), wire.change("g", &again, 1, 0));
    assert!(given_back.is_ok());
    assert_eq!(next.seen(), [("b", 1), ("c", 0)], "first what comes again");
    assert_eq!(next.header.order_count_info.as_deref(), Some("0 qo0%1 1"));
    wire.sent("T", "d", &[]).await;
    assert_eq!(wire.ack("g", &next, 1).await, 0);
    let (rest, acknowledged) = tokio::join!(wire.pop(&third), wire.ack("g", &next, 0));
    assert_eq!((rest.seen(), acknowledged), (vec![("d", 0)], 0), "when all of it is done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_outlive_their_leader_and_any_replica_may_be_asked() {
    let three = Three::start(vec![]).await;
    let leader = three.leader().await;
    let follower = (leader + 1) % 3;
    until("the follower knows", async || three.group(follower).status().is_ready).await;
    let wire = Wire::to(three.group(follower));
    for body in ["a", "b", "c"] {
        wire.sent("T", body, &[]).await;
    }
    let held = wire.pop(&PopMessageRequest { max_msg_nums: 2, ..pop_request("g") }).await;
    assert_eq!(held.seen(), [("a", 0), ("b", 0)], "{}", held.remark);
    let short = wire.pop(&PopMessageRequest { invisible_time: SHORT_MS, ..pop_request("g") }).await;
    assert_eq!(short.seen(), [("c", 0)]);
    three.brokers[leader].kill().await;
    let surviving = (0..3).filter(|at| *at != leader);
    until("somebody else leads", async || surviving.clone().any(|at| three.group(at).leads())).await;
    let again = async || wire.pop(&pop_request("g")).await.seen() == [("c", 1)];
    until("what nobody holds any more comes again, and nothing else", again).await;
    let acks = BatchAckRequest {
        acks: vec![{
            let mut ack = BatchAck {
                consumer_group: "g".to_owned(),
                topic: "T".to_owned(),
                pop_time: held.header.pop_time.expect("a time"),
                ..BatchAck::default()
            };
            ack.set_offsets(&[0, 1]);
            ack
        }],
        broker_name: Some(BROKER.to_owned()),
    };
    let batch = |acks: &BatchAckRequest| RemotingCommand::request(RequestCode::BATCH_ACK_MESSAGE).with_json(acks);
    let acknowledged = wire.call(batch(&acks)).await;
    assert_eq!(acknowledged.code, 0, "{}", acknowledged.remark_text());
    assert_eq!(wire.consumer_offset("g", "T", false).await, Ok(2));
    let mut stale = acks;
    stale.acks[0].set_offsets(&[1, 2]);
    let refused = wire.call(batch(&stale)).await;
    assert_eq!(refused.code, 208);
    assert!(
        refused.remark_text().starts_with("1 of 2 messages are not acknowledged, the first at offset 2 of queue 0")
    );
    assert_eq!(wire.ack("g", &short, 0).await, 208, "it is another's by now");
    let follower = surviving.clone().find(|at| !three.group(*at).leads()).expect("one of two follows");
    let wire = Wire::to(three.group(follower));
    let slept = Env::real().clock.monotonic();
    let parked = PopMessageRequest { poll_time: 60_000, ..pop_request("g") };
    assert_eq!(wire.pop(&parked).await.code, 210, "a follower answers before its patience ends");
    assert!(Env::real().clock.monotonic() - slept < Duration::from_secs(10));
}

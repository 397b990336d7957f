//! Messages by key: from whichever replica is asked, after a restart, and not before they are visible.

use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::QueryMessageRequest;

use crate::three::Three;
use crate::world::*;

fn by_key(topic: &str, key: &str) -> QueryMessageRequest {
    QueryMessageRequest {
        topic: topic.to_owned(),
        key: key.to_owned(),
        max_num: 32,
        begin_timestamp: 0,
        end_timestamp: i64::MAX,
        ..QueryMessageRequest::default()
    }
}

/// The messages found, in the order of the log; none if the answer is that there are none.
async fn found(wire: &Wire, request: &QueryMessageRequest) -> Vec<Seen> {
    let answer = wire.call(RemotingCommand::request_with(RequestCode::QUERY_MESSAGE, request)).await;
    match answer.code {
        0 => messages(&answer.body),
        code => {
            assert_eq!(code, 22, "{}", answer.remark_text());
            Vec::new()
        }
    }
}

fn bodies(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|message| message.body.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_found_by_each_of_its_keys_and_by_its_unique_key_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = broker_config(group_config(dir.path()), vec![]);
    let broker = start(config.clone()).await;
    let wire = Wire::to(&broker.groups()[0]);
    let first = wire.sent("T", "m0", &[("KEYS", "k1 k2")]).await;
    for k in 1..4 {
        wire.sent("T", &format!("m{k}"), &[("KEYS", "k2")]).await;
    }
    wire.sent("Other", "elsewhere", &[("KEYS", "k1 k2")]).await;
    let unique = first.transaction_id.expect("a unique key");
    let by_unique = QueryMessageRequest { unique_key_query: true, ..by_key("T", &unique) };

    assert_eq!(bodies(&found(&wire, &by_key("T", "k1")).await), ["m0"]);
    let all = found(&wire, &by_key("T", "k2")).await;
    assert_eq!(bodies(&all), ["m0", "m1", "m2", "m3"]);
    assert_eq!(all, wire.pull(pull_request("T", 0)).await.messages, "the same records as a pull shows");
    let two = QueryMessageRequest { max_num: 2, ..by_key("T", "k2") };
    assert_eq!(bodies(&found(&wire, &two).await), ["m2", "m3"], "the newest");
    assert_eq!(bodies(&found(&wire, &by_unique).await), ["m0"]);
    assert_eq!(bodies(&found(&wire, &by_key("T", &unique)).await), ["m0"], "it is a key like others");
    let as_unique = QueryMessageRequest { unique_key_query: true, ..by_key("T", "k1") };
    for nothing in [by_key("T", "k3"), by_key("NoSuchTopic", "k1"), as_unique] {
        assert_eq!(bodies(&found(&wire, &nothing).await), [] as [&str; 0], "{nothing:?}");
    }

    let stamp = |seen: &Seen| protocol::record::RecordView::parse(&seen.record).expect("a record").store_timestamp();
    let (begin, end) = (stamp(&all[1]), stamp(&all[2]));
    let within = QueryMessageRequest { begin_timestamp: begin, end_timestamp: end, ..by_key("T", "k2") };
    let wanted: Vec<_> = all.iter().filter(|seen| (begin..=end).contains(&stamp(seen))).cloned().collect();
    assert_eq!(found(&wire, &within).await, wanted, "both ends of the time are in it");
    let too_late = QueryMessageRequest { begin_timestamp: stamp(&all[3]) + 1, ..by_key("T", "k2") };
    assert_eq!(bodies(&found(&wire, &too_late).await), [] as [&str; 0]);

    wire.sent("T", "later", &[("KEYS", "k9"), ("DELAY", "1")]).await;
    assert_eq!(bodies(&found(&wire, &by_key("T", "k9")).await), [] as [&str; 0], "not yet visible");
    let pulled = wire.pull(parked(pull_request("T", 4))).await;
    assert_eq!(found(&wire, &by_key("T", "k9")).await, pulled.messages);

    broker.stop().await.expect("it stops");
    let broker = start(config).await;
    let wire = Wire::to(&broker.groups()[0]);
    until("it leads again", async || broker.groups()[0].status().is_ready).await;
    assert_eq!(bodies(&found(&wire, &by_key("T", "k2")).await), ["m0", "m1", "m2", "m3"]);
    assert_eq!(bodies(&found(&wire, &by_unique).await), ["m0"]);
    assert_eq!(bodies(&found(&wire, &by_key("T", "k9")).await), ["later"]);
    broker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_finds_the_same_before_and_after_the_leader_is_gone() {
    let three = Three::start(vec![]).await;
    let leader = three.leader().await;
    let at_leader = Wire::to(three.group(leader));
    for k in 0..3 {
        at_leader.sent("T", &format!("m{k}"), &[("KEYS", "k")]).await;
    }
    for at in 0..3 {
        let wire = Wire::to(three.group(at));
        let has_all = async || bodies(&found(&wire, &by_key("T", "k")).await) == ["m0", "m1", "m2"];
        until("all are found there", has_all).await;
    }
    three.brokers[leader].stop().await.expect("it stops");
    let survivor = Wire::to(three.group((leader + 1) % 3));
    let stored = async || survivor.send(send_request("T", &[("KEYS", "k")]), "m3").await.code == 0;
    until("messages are taken again", stored).await;
    for at in (0..3).filter(|at| *at != leader) {
        let wire = Wire::to(three.group(at));
        let has_all = async || bodies(&found(&wire, &by_key("T", "k")).await) == ["m0", "m1", "m2", "m3"];
        until("all are found there", has_all).await;
    }
    for at in (0..3).filter(|at| *at != leader) {
        three.brokers[at].stop().await.expect("it stops");
    }
}

//! Messages selected by SQL92 expressions: what a consumer hears of a bad one and when, and that a good one selects the same
//! from whoever is asked.

use std::time::Duration;

use env::Env;
use protocol::body::{CheckClientRequest, ConsumerData, HeartbeatData, SubscriptionData};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::PullMessageRequest;
use protocol::tag::EXPRESSION_TYPE_SQL92;

use crate::three::Three;
use crate::world::*;

/// A pull that carries its expression.
fn select(expression: &str, offset: i64) -> PullMessageRequest {
    PullMessageRequest {
        subscription: Some(expression.to_owned()),
        expression_type: Some(EXPRESSION_TYPE_SQL92.to_owned()),
        ..pull_request("T", offset)
    }
}

/// A pull whose expression came with a heartbeat.
fn select_as_told(sub_version: i64) -> PullMessageRequest {
    PullMessageRequest {
        sys_flag: 0,
        subscription: None,
        expression_type: Some(EXPRESSION_TYPE_SQL92.to_owned()),
        sub_version,
        ..pull_request("T", 0)
    }
}

async fn tell(wire: &Wire, expression: &str, sub_version: i64) {
    let body = HeartbeatData {
        client_id: "c1".to_owned(),
        consumer_data_set: vec![ConsumerData {
            group_name: "puller".to_owned(),
            subscription_data_set: vec![SubscriptionData::by_sql("T", expression, sub_version)],
            ..ConsumerData::default()
        }],
        ..HeartbeatData::default()
    };
    let answer = wire.call(RemotingCommand::request(RequestCode::HEART_BEAT).with_json(&body)).await;
    assert_eq!(answer.code, 0, "{}", answer.remark_text());
}

async fn check(wire: &Wire, expression: &str) -> (i32, String) {
    let body = CheckClientRequest {
        client_id: "c1".to_owned(),
        group: "puller".to_owned(),
        namespace: None,
        subscription_data: Some(SubscriptionData::by_sql("T", expression, 1)),
    };
    let answer = wire.call(RemotingCommand::request(RequestCode::CHECK_CLIENT_CONFIG).with_json(&body)).await;
    (answer.code, answer.remark_text().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_expression_is_refused_when_it_is_subscribed_to_and_a_good_one_selects() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = start(broker_config(group_config(dir.path()), vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    for (k, region) in ["eu", "us", "eu", "asia"].into_iter().enumerate() {
        wire.sent("T", &format!("m{k}"), &[("region", region), ("amount", &format!("{k}0"))]).await;
    }
    wire.sent("T", "m4", &[("amount", "15.5")]).await;

    assert_eq!(check(&wire, "region = 'eu' AND amount >= 20").await.0, 0);
    let (code, remark) = check(&wire, "region = 'eu' AND").await;
    assert_eq!(
        (code, remark.starts_with("Invalid MessageSelector. at character 18: expected")),
        (23, true),
        "{remark}"
    );

    for (expression, bodies) in [
        ("region = 'eu' AND amount >= 20", vec!["m2"]),
        ("region IN ('us', 'asia') OR region IS NULL", vec!["m1", "m3", "m4"]),
        ("amount BETWEEN 10 AND 20", vec!["m1", "m2", "m4"]),
        ("region <> 'eu'", vec!["m1", "m3"]),
    ] {
        let pulled = wire.pull(select(expression, 0)).await;
        assert_eq!((pulled.code, pulled.bodies(), pulled.next()), (0, bodies, 5), "{expression}");
    }
    let one = wire.pull(PullMessageRequest { max_msg_nums: 1, ..select("region = 'us'", 0) }).await;
    assert_eq!((one.bodies(), one.next()), (vec!["m1"], 2), "what lies behind is not skipped");
    let none = wire.pull(select("amount > 1000", 0)).await;
    assert_eq!((none.code, none.next()), (20, 5), "nothing matched: go on from here");
    let bad = wire.pull(select("amount >", 0)).await;
    assert_eq!(bad.code, 23, "{}", bad.remark);
    assert!(bad.remark.starts_with("parse the consumer's subscription failed: at character 9"), "{}", bad.remark);

    tell(&wire, "region = 'eu'", 5).await;
    assert_eq!(wire.pull(select_as_told(5)).await.bodies(), ["m0", "m2"]);
    assert_eq!(wire.pull(select_as_told(6)).await.code, 25, "not yet told");
    tell(&wire, "region ==", 6).await;
    let unknown = wire.pull(select_as_told(6)).await;
    assert_eq!(unknown.code, 27, "{}", unknown.remark);
    assert!(unknown.remark.contains("Your expression may be wrong! at character 9"), "{}", unknown.remark);
    tell(&wire, "region = 'us'", 7).await;
    assert_eq!(wire.pull(select_as_told(7)).await.bodies(), ["m1"]);
    broker.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_expressions_are_switched_off_they_are_refused_everywhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = group_config(dir.path());
    group.messages.sql_filters = false;
    let broker = start(broker_config(group, vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    wire.sent("T", "m", &[("a", "1")]).await;
    let refused = "The broker does not support consumer to filter message by SQL92";
    assert_eq!(check(&wire, "a = 1").await, (1, refused.to_owned()));
    tell(&wire, "a = 1", 1).await;
    for pull in [select("a = 1", 0), select_as_told(1)] {
        let pulled = wire.pull(pull).await;
        assert_eq!((pulled.code, pulled.remark.as_str()), (1, refused));
    }
    assert_eq!(wire.pull(pull_request("T", 0)).await.bodies(), ["m"], "tags are");
    broker.stop().await.expect("it stops");
}

/// A parked pull is answered for a message that matches, wherever it is parked; and what one replica selects, the others
/// select too after the leader is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_selects_the_same_before_and_after_the_leader_is_gone() {
    let three = Three::start(vec![]).await;
    let leader = three.leader().await;
    let follower = (leader + 1) % 3;
    let (at_leader, at_follower) = (Wire::to(three.group(leader)), Wire::to(three.group(follower)));
    at_leader.sent("T", "m0", &[("n", "0")]).await;
    until("the follower has it", async || at_follower.pull(pull_request("T", 0)).await.code == 0).await;

    let clock = Env::real().clock;
    let parked_pull = at_follower.pull(parked(select("n > 1", 1)));
    tokio::pin!(parked_pull);
    assert!(clock.timeout(Duration::from_millis(100), &mut parked_pull).await.is_none(), "it is parked");
    at_leader.sent("T", "m1", &[("n", "1")]).await;
    assert!(clock.timeout(Duration::from_millis(300), &mut parked_pull).await.is_none(), "not for this one");
    at_leader.sent("T", "m2", &[("n", "2")]).await;
    let pulled = parked_pull.await;
    assert_eq!((pulled.bodies(), pulled.next()), (vec!["m2"], 3));

    // What is parked at a follower outlives the leader, and is answered by what the next leader stores.
    let parked_pull = at_follower.pull(parked(select("n > 3", 3)));
    tokio::pin!(parked_pull);
    assert!(clock.timeout(Duration::from_millis(100), &mut parked_pull).await.is_none(), "it is parked");
    three.brokers[leader].stop().await.expect("it stops");
    let stored = async |n: &str| at_follower.send(send_request("T", &[("n", n)]), &format!("m{n}")).await.code == 0;
    until("messages are taken again", async || stored("3").await).await;
    until("and again", async || stored("4").await).await;
    let pulled = parked_pull.await;
    assert_eq!(pulled.bodies(), ["m4"]);
    let replicas = (0..3).filter(|at| *at != leader);
    for at in replicas {
        let wire = Wire::to(three.group(at));
        until("all of it is there", async || wire.pull(select("n = 4", 0)).await.bodies() == ["m4"]).await;
        assert_eq!(wire.pull(select("n NOT BETWEEN 1 AND 3", 0)).await.bodies(), ["m0", "m4"]);
    }
    for at in (0..3).filter(|at| *at != leader) {
        three.brokers[at].stop().await.expect("it stops");
    }
}

//! Messages taken from a stream: what is acknowledged does not come again, what is not does.

use std::collections::BTreeSet;
use std::time::Duration;

use client::{Client, Deliveries, Expired, Message, PushConsumerBuilder, StartFrom};
use embedded::Cluster;

use super::time::{HOUR, SECOND, waiting};
use super::{PATIENCE, client_of, next, reader, send, until};

fn group(client: &Client, topic: &str) -> PushConsumerBuilder {
    client.push_consumer("stream").subscribe(topic, "*").start_from(StartFrom::First)
}

fn text(delivery: &client::Delivery) -> String {
    String::from_utf8(delivery.message().body().to_vec()).expect("text")
}

async fn take(cluster: &Cluster, deliveries: &mut Deliveries) -> client::Delivery {
    cluster.clock().timeout(PATIENCE, deliveries.next()).await.expect("a delivery")
}

/// All that a later member of the group is given, up to a message sent now.
async fn left_over(cluster: &Cluster, client: &Client, topic: &str) -> Vec<String> {
    send(client, Message::new(topic, "last").with_sharding_key("one")).await;
    let other = client_of(cluster);
    let mut deliveries = group(&other, topic).concurrency(1).deliveries().await.expect("a consumer");
    let mut came = Vec::new();
    while came.last().is_none_or(|body| body != "last") {
        let delivery = take(cluster, &mut deliveries).await;
        came.push(text(&delivery));
        delivery.ack().expect("in time");
    }
    deliveries.shutdown().await;
    other.shutdown().await;
    came
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_delivery_is_acknowledged_tried_later_given_up_or_given_back() {
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = client_of(&cluster);
    for body in ["ack", "in an hour", "never", "dropped"] {
        send(&client, Message::new("Words", body).with_sharding_key("one")).await;
    }
    let mut deliveries = group(&client, "Words").deliveries().await.expect("a consumer");
    for _ in 0..4 {
        let delivery = take(&cluster, &mut deliveries).await;
        match text(&delivery).as_str() {
            "ack" => delivery.ack().expect("in time"),
            "in an hour" => delivery.retry_later(HOUR, "the shop is closed").expect("in time"),
            "never" => delivery.dead_letter("nobody wants it").expect("in time"),
            _ => drop(delivery),
        }
    }
    until(&cluster, "two wait for their retries", async || (waiting(&cluster).await == 2).then_some(())).await;
    for (after, expected) in [(10 * SECOND, "dropped"), (HOUR, "in an hour")] {
        cluster.advance(after).await.expect("advanced");
        let delivery = take(&cluster, &mut deliveries).await;
        let message = delivery.message();
        assert_eq!((text(&delivery).as_str(), message.reconsume_times(), message.topic()), (expected, 1, "Words"));
        delivery.ack().expect("in time");
    }
    let mut dead = reader(&cluster, &client, "%DLQ%stream").await;
    assert_eq!(next(&mut dead).await, ["never"]);
    deliveries.shutdown().await;
    assert_eq!(left_over(&cluster, &client, "Words").await, ["last"], "all was acknowledged or given back");
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_taken_or_not_acknowledged_comes_to_the_next_member() {
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = client_of(&cluster);
    let bodies = ["0", "1", "2", "3", "4"];
    for body in bodies {
        send(&client, Message::new("Unsaid", body).with_sharding_key("one")).await;
    }
    let builder = group(&client, "Unsaid").concurrency(2).shutdown_timeout(Duration::from_millis(100));
    let mut deliveries = builder.deliveries().await.expect("a consumer");
    let (first, second) = (take(&cluster, &mut deliveries).await, take(&cluster, &mut deliveries).await);
    let more = cluster.clock().timeout(Duration::from_millis(200), deliveries.next()).await;
    assert!(more.is_none(), "two are out, and two may be");
    let (acknowledged, held) = if text(&first) == "0" { (first, second) } else { (second, first) };
    acknowledged.ack().expect("in time");
    assert!(cluster.clock().timeout(PATIENCE, deliveries.next()).await.is_some(), "there is room for one");
    deliveries.shutdown().await;
    assert_eq!(text(&held), "1");
    assert_eq!(held.ack(), Err(Expired), "the consumer is gone");
    let mut expected = bodies[1..].to_vec();
    expected.push("last");
    let came = left_over(&cluster, &client, "Unsaid").await;
    assert_eq!(came.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected.into_iter().collect());
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_that_takes_too_long_comes_again_and_in_order_none_overtakes() {
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = client_of(&cluster);
    send(&client, Message::new("Slow", "slow")).await;
    let builder = group(&client, "Slow").consume_timeout(Duration::from_secs(1));
    let mut deliveries = builder.deliveries().await.expect("a consumer");
    let slow = take(&cluster, &mut deliveries).await;
    until(&cluster, "it is given back", async || (waiting(&cluster).await == 1).then_some(())).await;
    assert_eq!(slow.ack(), Err(Expired));
    cluster.advance(10 * SECOND).await.expect("advanced");
    take(&cluster, &mut deliveries).await.ack().expect("in time");
    deliveries.shutdown().await;

    for number in 0..3 {
        send(&client, Message::new("InOrder", number.to_string()).with_sharding_key("one")).await;
    }
    let builder = group(&client, "InOrder").orderly_pause(Duration::from_millis(10));
    let mut deliveries = builder.deliveries_orderly().await.expect("a consumer");
    let mut came = Vec::new();
    while came.len() < 4 {
        let delivery = take(&cluster, &mut deliveries).await;
        came.push((text(&delivery), delivery.message().reconsume_times()));
        match came.len() {
            2 => drop(delivery),
            _ => delivery.ack().expect("in time"),
        }
    }
    let came: Vec<_> = came.iter().map(|(body, times)| (body.as_str(), *times)).collect();
    assert_eq!(came, [("0", 0), ("1", 0), ("1", 1), ("2", 0)]);
    deliveries.shutdown().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_comes_although_the_leader_dies_in_the_middle() {
    const MESSAGES: usize = 200;
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let client = client_of(&cluster);
    let producer = client.producer("pg").timeout(PATIENCE).start().expect("a producer");
    producer.send(Message::new("Across", "0")).await.expect("it is stored");
    let mut deliveries = group(&client, "Across").deliveries().await.expect("a consumer");
    let sending = tokio::spawn(async move {
        let mut repeated = 0;
        for number in 1..MESSAGES {
            let receipt = producer.send(Message::new("Across", number.to_string())).await.expect("it is stored");
            repeated += receipt.attempts as usize - 1;
        }
        repeated
    });
    let mut seen = BTreeSet::new();
    let mut killed = None;
    while seen.len() < MESSAGES {
        let delivery = take(&cluster, &mut deliveries).await;
        seen.insert(text(&delivery));
        delivery.ack().expect("in time");
        if seen.len() == MESSAGES / 3 && killed.is_none() {
            let leader = cluster.leader().await.expect("a leader");
            cluster.kill(leader).await;
            killed = Some(leader);
        }
    }
    let repeated = sending.await.expect("all are sent");
    cluster.restart(killed.expect("one was killed")).await.expect("it starts again");
    deliveries.shutdown().await;
    let came = left_over(&cluster, &client, "Across").await;
    assert!(came.len() <= 1 + repeated, "acknowledged, and they come again: {came:?}; {repeated} sends were repeated");
    client.shutdown().await;
    cluster.shutdown().await;
}

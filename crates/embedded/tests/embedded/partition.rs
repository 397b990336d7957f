//! Brokers that do not reach the others.

use client::Message;
use embedded::Cluster;

use super::{PATIENCE, client_of, next, reader, send, until, visible};

/// The last entry that a broker has applied.
fn applied(cluster: &Cluster, node: usize) -> Option<u64> {
    cluster.broker(node)?.groups()[0].status().raft.applied.map(|applied| applied.index)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_acknowledges_nothing_and_catches_up_when_it_is_back() {
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let client = client_of(&cluster);
    send(&client, Message::new("Cut", "before")).await;
    let cut_off = cluster.leader().await.expect("a leader");
    cluster.partition(&[cut_off]);
    let leader = cluster.leader().await.expect("another leader");
    assert_ne!(leader, cut_off);
    until(&cluster, "the old one knows", async || {
        let leads = cluster.broker(cut_off).expect("it lives").groups()[0].leads();
        (!leads).then_some(())
    })
    .await;
    let behind = applied(&cluster, cut_off);
    for number in 0..10 {
        send(&client, Message::new("Cut", number.to_string())).await;
    }
    assert_eq!(applied(&cluster, cut_off), behind, "nothing reaches it");

    cluster.heal();
    let reached = applied(&cluster, leader);
    until(&cluster, "it has all of it", async || (applied(&cluster, cut_off) >= reached).then_some(())).await;
    // Now it is needed.
    cluster.kill(leader).await;
    let mut consumer = reader(&cluster, &client, "Cut").await;
    assert_eq!(visible(&consumer).await, 11);
    let mut came = Vec::new();
    while came.len() < 11 {
        came.extend(next(&mut consumer).await);
    }
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_cut_off_is_not_missed_and_two_of_three_are() {
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let client = client_of(&cluster);
    let leader = cluster.leader().await.expect("a leader");
    let follower = (leader + 1) % 3;
    cluster.partition(&[follower]);
    send(&client, Message::new("Quorum", "with two")).await;
    cluster.kill(leader).await;
    let error = cluster.leader().await.expect_err("nobody can lead").to_string();
    assert!(error.contains("1 of 3 brokers") && error.contains("heal"), "{error}");
    cluster.heal();
    cluster.leader().await.expect("two reach each other");
    let mut consumer = reader(&cluster, &client, "Quorum").await;
    assert_eq!(next(&mut consumer).await, ["with two"]);
    let producer = client.producer("pg").timeout(PATIENCE).start().expect("a producer");
    producer.send(Message::new("Quorum", "again")).await.expect("it is stored");
    client.shutdown().await;
    cluster.shutdown().await;
}

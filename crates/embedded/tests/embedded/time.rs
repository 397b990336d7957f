//! Delays, retries, transactions and locks of hours, in a moment of real time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::admin::Admin;
use client::admin::protocol::body::SubscriptionGroupConfig;
use client::{Message, ReceivedMessage, Retry, StartFrom, TransactionState};
use embedded::{Cluster, MessagePolicy, TransactionPolicy};
use env::Env;

use tokio::sync::mpsc;

use super::{PATIENCE, client_of, next, reader, send, until, visible};

pub const SECOND: Duration = Duration::from_secs(1);
pub const HOUR: Duration = Duration::from_secs(3600);

/// Messages and transactions that wait at the leader.
pub async fn waiting(cluster: &Cluster) -> u64 {
    let leader = cluster.leader().await.expect("a leader");
    let pending = cluster.broker(leader).expect("it lives").groups()[0].raft().reader().pending();
    pending.scheduled + pending.half
}

/// What a test would see of a clock that is not followed: messages that come late by what was refused.
fn assert_that_all_follow_the_clock(cluster: &Cluster) {
    for node in 0..cluster.nodes() {
        let Some(broker) = cluster.broker(node) else { continue };
        let status = broker.groups()[0].status().raft;
        assert_eq!((status.clock_steps_refused, status.clock_hand_overs), (0, 0), "node {node}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_is_visible_when_the_date_is_there_and_not_before_whoever_leads() {
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let client = client_of(&cluster);
    let (receipt, sent_ms) = (send(&client, Message::new("Later", "now")).await, cluster.clock().wall_ms());
    assert_eq!(receipt.attempts, 1);
    send(&client, Message::new("Later", "in a day").with_delay(24 * HOUR)).await;
    send(&client, Message::new("Later", "in two hours").with_delay_level(18)).await;
    let mut consumer = reader(&cluster, &client, "Later").await;
    assert_eq!((visible(&consumer).await, next(&mut consumer).await), (1, vec!["now".to_owned()]));

    cluster.advance(2 * HOUR - 60 * SECOND).await.expect("advanced");
    assert_eq!(visible(&consumer).await, 1);
    cluster.advance(60 * SECOND).await.expect("advanced");
    assert_eq!((visible(&consumer).await, next(&mut consumer).await), (2, vec!["in two hours".to_owned()]));

    cluster.advance(20 * HOUR).await.expect("advanced");
    let killed = cluster.leader().await.expect("a leader");
    cluster.kill(killed).await;
    cluster.advance(HOUR).await.expect("advanced while another is elected");
    assert_eq!(visible(&consumer).await, 2);
    cluster.restart(killed).await.expect("it starts again");
    cluster.advance(HOUR).await.expect("advanced");
    let messages = consumer.poll(PATIENCE).await.expect("a poll");
    assert_eq!(messages.iter().map(|message| &message.body()[..]).collect::<Vec<_>>(), [b"in a day"]);
    assert!(messages[0].stored_ms() >= sent_ms + 24 * 3_600_000);
    assert!(messages[0].stored_ms() < sent_ms + 24 * 3_600_000 + PATIENCE.as_millis() as i64);
    assert_eq!(visible(&consumer).await, 3, "once");
    assert_that_all_follow_the_clock(&cluster);
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_date_moves_without_a_majority_and_what_was_due_happens_when_there_is_one() {
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let client = client_of(&cluster);
    send(&client, Message::new("Outage", "later").with_delay(HOUR)).await;
    cluster.kill(0).await;
    cluster.kill(2).await;
    let error = cluster.advance(HOUR).await.expect_err("nobody leads").to_string();
    assert!(error.contains("1 of 3 brokers") && error.contains("restart one"), "{error}");
    cluster.restart(2).await.expect("it starts again");
    cluster.advance(Duration::ZERO).await.expect("somebody leads");
    let mut consumer = reader(&cluster, &client, "Outage").await;
    assert_eq!(next(&mut consumer).await, ["later"]);
    assert_that_all_follow_the_clock(&cluster);
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_retries_of_a_message_that_always_fails_take_hours_and_it_is_a_dead_letter_then() {
    const RETRIES: usize = 16;
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = client_of(&cluster);
    send(&client, Message::new("Failing", "poison")).await;
    let (failed, mut failures) = mpsc::unbounded_channel();
    let consumer = client.push_consumer("fg").subscribe("Failing", "*").start_from(StartFrom::First);
    let handler = move |message: Arc<ReceivedMessage>| {
        let _ = failed.send(message.reconsume_times());
        async { Err(Retry::later("it always fails")) }
    };
    let consumer = consumer.start(handler).await.expect("a consumer");
    for times in 0..=RETRIES {
        let failure = cluster.clock().timeout(PATIENCE, failures.recv()).await.expect("it comes again");
        assert_eq!(failure, Some(times as i32));
        if times < RETRIES {
            until(&cluster, "it is given back", async || (waiting(&cluster).await == 1).then_some(())).await;
            cluster.advance(2 * HOUR).await.expect("advanced");
        }
    }
    let mut dead = reader(&cluster, &client, "%DLQ%fg").await;
    assert_eq!(next(&mut dead).await, ["poison"]);
    cluster.advance(2 * HOUR).await.expect("advanced");
    assert_eq!((visible(&dead).await, failures.try_recv().is_err()), (1, true), "once, and never again");
    consumer.shutdown().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_producer_is_asked_until_it_knows() {
    let transactions = TransactionPolicy { timeout: HOUR, check_interval: HOUR, check_max: 15 };
    let messages = MessagePolicy { transactions, ..MessagePolicy::default() };
    let cluster = Cluster::builder().nodes(1).messages(messages).start().await.expect("a cluster of one");
    let client = client_of(&cluster);
    let asked = Arc::new(AtomicUsize::new(0));
    let checker = {
        let asked = asked.clone();
        move |_message| {
            let times = asked.fetch_add(1, Ordering::Relaxed) + 1;
            async move { if times < 3 { TransactionState::Unknown } else { TransactionState::Commit } }
        }
    };
    let producer = client.transactional_producer("tg").start(checker).await.expect("a producer");
    let begun = producer.begin(Message::new("Silent", "in the end")).await.expect("it is begun");
    drop(begun);
    let mut consumer = reader(&cluster, &client, "Silent").await;
    cluster.advance(HOUR / 2).await.expect("advanced");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    for times in 1..=3 {
        assert_eq!(visible(&consumer).await, 0);
        cluster.advance(HOUR).await.expect("advanced");
        let is_asked = async || (asked.load(Ordering::Relaxed) == times).then_some(());
        until(&cluster, "the producer is asked", is_asked).await;
    }
    assert_eq!(next(&mut consumer).await, ["in the end"]);
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_consumer_whose_locks_have_run_out_gets_them_again() {
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = client_of(&cluster);
    let in_order = |number: i32| Message::new("Ordered", number.to_string()).with_sharding_key("one");
    send(&client, in_order(0)).await;
    let (came, mut coming) = mpsc::unbounded_channel();
    let handler = move |message: Arc<ReceivedMessage>| {
        let number: i32 = std::str::from_utf8(message.body()).expect("text").parse().expect("a number");
        let _ = came.send(number);
        async { Ok(()) }
    };
    let consumer = client.push_consumer("og").subscribe("Ordered", "*").start_from(StartFrom::First);
    let consumer = consumer.start_orderly(handler).await.expect("a consumer");
    for number in 0..5 {
        // What was consumed and not stored when the lock ran out comes again, in order.
        let mut seen = i32::MIN;
        while seen < number {
            let next = cluster.clock().timeout(PATIENCE, coming.recv()).await.expect("it goes on").expect("a handler");
            assert!(next <= seen.max(0) + 1 && next <= number, "{next} came behind {seen}");
            seen = next;
        }
        cluster.advance(HOUR).await.expect("advanced");
        send(&client, in_order(number + 1)).await;
    }
    consumer.shutdown().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_popped_message_comes_again_when_its_lease_has_ended_and_is_a_dead_letter_after_its_last() {
    const DELIVERIES: i32 = 3;
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = client_of(&cluster);
    send(&client, Message::new("Popped", "poison")).await;
    let mut all = reader(&cluster, &client, "Popped").await;
    assert_eq!(next(&mut all).await, ["poison"]);
    let admin = Admin::new(&Env::real(), vec![cluster.name_server().to_string()]);
    let group = SubscriptionGroupConfig { retry_max_times: DELIVERIES - 1, ..SubscriptionGroupConfig::new("pg") };
    admin.put_group(&cluster.address(0).to_string(), &group).await.expect("a group");
    let consumer = client.pop_consumer("pg").expect("a consumer").invisible_for(HOUR);
    for deliveries in 0..DELIVERIES {
        let popped = consumer.pop("Popped", PATIENCE);
        // The first is there; who waits for the next hears of the lease's end, not of the end of his patience.
        let (popped, ()) = tokio::join!(popped, async {
            if deliveries > 0 {
                cluster.advance(HOUR).await.expect("advanced");
            }
        });
        let popped = popped.expect("a pop");
        assert_eq!(popped.iter().map(|message| message.reconsume_times()).collect::<Vec<_>>(), [deliveries]);
    }
    cluster.advance(HOUR).await.expect("advanced");
    let mut dead = reader(&cluster, &client, "%DLQ%pg").await;
    assert_eq!(next(&mut dead).await, ["poison"]);
    assert_eq!(visible(&dead).await, 1, "once");
    client.shutdown().await;
    cluster.shutdown().await;
}

//! A consumer that selects by SQL92 gets every message that matches and no other, also while the leader changes under it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::{InvalidMessage, Message, Producer, ReceivedMessage, SendError, StartError, StartFrom};
use embedded::Cluster;
use env::Env;
use parking_lot::Mutex;
use tests::wait::until;

/// Longest wait for anything that must happen: many times what it takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Messages sent before the leader is killed, and after.
const ROUND: usize = 120;

/// Number k is of region k modulo 3, and of no region at all if that is 2.
fn message(number: usize) -> Message {
    let message = Message::new("Orders", format!("{number}"));
    let message = message.with_property("amount", &number.to_string()).expect("a property");
    match number % 3 {
        0 => message.with_property("region", "eu").expect("a property"),
        1 => message.with_property("region", "us").expect("a property"),
        _ => message,
    }
}

const EXPRESSION: &str = "region = 'eu' AND amount NOT BETWEEN 30 AND 59 OR region IS NULL AND amount >= 200";

fn is_wanted(number: usize) -> bool {
    number.is_multiple_of(3) && !(30..=59).contains(&number) || number % 3 == 2 && number >= 200
}

fn number_of(message: &ReceivedMessage) -> usize {
    std::str::from_utf8(message.body()).ok().and_then(|body| body.parse().ok()).expect("a number")
}

/// Stores it at least once: where the answer was lost with the leader, it may be there twice.
async fn store(producer: &Producer, number: usize) {
    loop {
        match producer.send(message(number)).await {
            Ok(_) => return,
            Err(SendError::Unknown { .. }) => {}
            Err(error) => panic!("{number}: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_matches_comes_and_nothing_else_though_the_leader_is_killed() {
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let client = cluster.client().build().expect("a client");
    let producer = client.producer("pg").timeout(PATIENCE).start().expect("a producer");
    store(&producer, 0).await;

    let bad = client.push_consumer("g").subscribe_sql("Orders", "region = 'eu' AND");
    let Err(StartError::Invalid(InvalidMessage::SqlExpression(error))) = bad.start(async |_| Ok(())).await else {
        panic!("refused when it is subscribed to")
    };
    assert_eq!(error.position, 18);

    let seen: Arc<Mutex<BTreeSet<usize>>> = Arc::default();
    let noting = seen.clone();
    let consumer = client
        .push_consumer("g")
        .subscribe_sql("Orders", EXPRESSION)
        .start_from(StartFrom::First)
        .start(move |message: Arc<ReceivedMessage>| {
            noting.lock().insert(number_of(&message));
            async { Ok(()) }
        })
        .await
        .expect("a consumer");
    let wanted = |numbers: usize| (0..numbers).filter(|number| is_wanted(*number)).collect::<BTreeSet<_>>();
    for number in 1..ROUND {
        store(&producer, number).await;
    }
    until(PATIENCE, "the first round", async || seen.lock().is_superset(&wanted(ROUND))).await;
    let killed = cluster.leader().await.expect("a leader");
    cluster.kill(killed).await;
    for number in ROUND..2 * ROUND {
        store(&producer, number).await;
    }
    assert_ne!(cluster.leader().await.expect("another leader"), killed);
    until(PATIENCE, "the second round", async || seen.lock().is_superset(&wanted(2 * ROUND))).await;
    consumer.shutdown().await;
    assert_eq!(*seen.lock(), wanted(2 * ROUND), "nothing that was not asked for");

    // The same, read by a program at its own pace.
    let mut reader = client.pull_consumer("audit").expect("a consumer");
    assert!(matches!(reader.select_sql("Orders", "amount >"), Err(InvalidMessage::SqlExpression(_))));
    reader.select_sql("Orders", EXPRESSION).expect("an expression");
    let queues = reader.queues("Orders").await.expect("queues");
    reader.assign(&queues, StartFrom::First).await.expect("assigned");
    let mut read = BTreeSet::new();
    let deadline = Env::real().clock.monotonic() + PATIENCE;
    while read != wanted(2 * ROUND) {
        assert!(Env::real().clock.monotonic() < deadline, "read only {read:?}");
        let messages = reader.poll(Duration::from_secs(1)).await.expect("messages");
        read.extend(messages.iter().map(number_of));
        assert!(read.iter().all(|number| is_wanted(*number)), "{read:?}");
    }
    client.shutdown().await;
    cluster.shutdown().await;
}

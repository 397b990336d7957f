//! Delayed messages over a real three-node cluster on loopback, with our own client, and a leader that dies while they fall
//! due: each is seen once, none early, none lost, and late only as long as nobody leads.
//!
//! `RAFTMQ_TIMERS=100000 cargo test --release -p tests --test timers -- --nocapture` is the figure of the contract: so many
//! due within ten seconds. By default it is a fiftieth of that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, Message, Producer, RecallError, ReceivedMessage, StartFrom};
use embedded::Cluster;
use env::{Clock, Env};
use parking_lot::Mutex;
use tests::read::everything_in;
use tests::wait::until;

/// Longest wait for anything that must happen: many times what it takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// All are due within this time, evenly.
const WINDOW_MS: i64 = 10_000;

/// How late one percent may be, where somebody leads.
const LATE_MS: i64 = 1_000;

/// Sends at a time.
const SENDERS: usize = 64;

const TOPIC: &str = "Timers";

/// How many; the variable is for the figure, which takes a minute.
#[allow(clippy::disallowed_methods)] // What a test run is asked for, not what the product reads.
fn count() -> usize {
    std::env::var("RAFTMQ_TIMERS").map_or(2_000, |count| count.parse().expect("RAFTMQ_TIMERS is a number"))
}

/// When each message is due.
fn due_ms(first_due_ms: i64, number: usize, count: usize) -> i64 {
    first_due_ms + (number as i64 * WINDOW_MS) / count as i64
}

/// Sends all of them; how long that took.
async fn send_all(producer: &Producer, count: usize, first_due_ms: i64) {
    let sending = (0..SENDERS).map(|sender| {
        let producer = producer.clone();
        tokio::spawn(async move {
            for number in (sender..count).step_by(SENDERS) {
                let message = Message::new(TOPIC, number.to_string());
                let message = message.with_delivery_at_ms(due_ms(first_due_ms, number, count));
                let receipt = producer.send(message).await.expect("nothing fails yet");
                assert!(receipt.recall_handle.is_some(), "it waits: send faster, or let them be due later");
            }
        })
    });
    for sender in sending.collect::<Vec<_>>() {
        sender.await.expect("a sender");
    }
}

/// When each was seen, as often as it was: by a consumer that runs all the time.
type Seen = Arc<Mutex<BTreeMap<usize, Vec<i64>>>>;

fn number_of(message: &ReceivedMessage) -> usize {
    std::str::from_utf8(message.body()).expect("text").parse().expect("a number")
}

async fn consume(client: &Client, clock: &Clock) -> (client::PushConsumer, Seen) {
    let seen = Seen::default();
    let (noted, clock) = (seen.clone(), clock.clone());
    let note = move |message: Arc<ReceivedMessage>| {
        noted.lock().entry(number_of(&message)).or_default().push(clock.wall_ms());
        async { Ok(()) }
    };
    let consumer = client.push_consumer("timers").subscribe(TOPIC, "*").start_from(StartFrom::First).start(note).await;
    (consumer.expect("a consumer"), seen)
}

/// All that is visible now: when each became so, as often as it is there.
async fn visible(client: &Client) -> BTreeMap<usize, Vec<i64>> {
    let mut visible: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
    for message in everything_in(client, TOPIC, PATIENCE).await {
        visible.entry(number_of(&message)).or_default().push(message.stored_ms());
    }
    visible
}

/// The value that one percent exceed.
fn p99(mut values: Vec<i64>) -> i64 {
    values.sort_unstable();
    values[(values.len() * 99 / 100).min(values.len() - 1)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_seen_once_and_none_early_across_a_killed_leader() {
    let count = count();
    let clock = Env::real().clock;
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let client = cluster.client().build().expect("a client");
    let producer = client.producer("pg").start().expect("a producer");
    producer.send(Message::new(TOPIC, count.to_string())).await.expect("it makes the topic");
    let (consumer, seen) = consume(&client, &clock).await;

    // Time enough to send them all before the first is due.
    let send_us = if cfg!(debug_assertions) { 5_000 } else { 750 };
    let first_due_ms = clock.wall_ms() + 5_000 + count as i64 * send_us / 1_000;
    let began = clock.monotonic();
    send_all(&producer, count, first_due_ms).await;
    let sent_in = clock.monotonic() - began;
    let leader = cluster.leader().await.expect("a leader");
    let waiting = cluster.broker(leader).expect("it lives").groups()[0].raft().reader().pending().scheduled;
    assert_eq!(waiting, count as u64, "all of them wait");

    let middle_ms = first_due_ms + WINDOW_MS / 2;
    clock.sleep(Duration::from_millis(u64::try_from(middle_ms - clock.wall_ms()).expect("sent in time"))).await;
    let killed_ms = clock.wall_ms();
    cluster.kill(leader).await;
    let next = cluster.leader().await.expect("another leader");
    assert_ne!(next, leader);
    let led_ms = clock.wall_ms();
    until(PATIENCE, "all are consumed", async || seen.lock().len() == count + 1).await;
    consumer.shutdown().await;

    let seen = seen.lock().clone();
    let visible = visible(&client).await;
    assert_eq!(visible.len(), count + 1, "none is lost, none is made up");
    let (mut shown_late, mut seen_late) = (Vec::new(), Vec::new());
    for number in 0..count {
        let due = due_ms(first_due_ms, number, count);
        let [shown] = visible[&number][..] else { panic!("{number} is there {:?}", visible[&number]) };
        assert!(shown >= due, "{number} was visible {} ms early", due - shown);
        let first_seen = seen[&number][0];
        assert!(first_seen >= due, "{number} was seen {} ms early", due - first_seen);
        if due < killed_ms - LATE_MS || due > led_ms {
            shown_late.push(shown - due);
            seen_late.push(first_seen - due);
        }
    }
    let (gap_ms, outside) = (led_ms - killed_ms, shown_late.len());
    let (shown_p99, seen_p99) = (p99(shown_late), p99(seen_late));
    println!(
        "{count} sent in {sent_in:?}, due within {WINDOW_MS} ms: 0 lost, 0 early, 0 twice; nobody led for {gap_ms} ms; \
         {outside} outside of that, lateness p99 {shown_p99} ms in the log, {seen_p99} ms at a consumer"
    );
    assert!(outside > count / 4, "many fall due while somebody leads: {outside}");
    assert!(shown_p99 <= LATE_MS, "p99 {shown_p99} ms");
    assert!(seen_p99 <= LATE_MS, "p99 {seen_p99} ms at a consumer");
    client.shutdown().await;
    cluster.shutdown().await;
}

/// A program changes its mind, and the leader dies meanwhile: what it took back is never seen, what was seen cannot be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recalled_is_never_seen_and_what_was_seen_cannot_be_recalled() {
    let clock = Env::real().clock;
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let client = cluster.client().build().expect("a client");
    let producer = client.producer("pg").start().expect("a producer");
    let due = clock.wall_ms() + 12_000;
    let mut handles = Vec::new();
    for number in 0..20 {
        let message = Message::new(TOPIC, number.to_string()).with_delivery_at_ms(due);
        handles.push(producer.send(message).await.expect("sent").recall_handle.expect("it waits"));
    }
    for (number, handle) in handles.iter().enumerate().filter(|(number, _)| number % 2 == 0) {
        if number == 10 {
            let leader = cluster.leader().await.expect("a leader");
            cluster.kill(leader).await;
        }
        until(PATIENCE, "it is recalled", async || match producer.recall(TOPIC, handle).await {
            Ok(()) => true,
            Err(RecallError::Request(_)) => false,
            Err(error) => panic!("{number}: {error}"),
        })
        .await;
    }
    let mut there = BTreeMap::new();
    until(PATIENCE, "the others are visible", async || {
        there = visible(&client).await;
        there.len() >= 10
    })
    .await;
    assert_eq!(there.keys().copied().collect::<Vec<_>>(), (0..20).filter(|number| number % 2 == 1).collect::<Vec<_>>());
    for (number, handle) in handles.iter().enumerate() {
        match producer.recall(TOPIC, handle).await {
            Ok(()) => assert_eq!(number % 2, 0, "{number} was seen"),
            Err(RecallError::TooLate(_)) => assert_eq!(number % 2, 1, "{number} was recalled"),
            Err(error) => panic!("{number}: {error}"),
        }
    }
    assert!(matches!(producer.recall(TOPIC, "nonsense").await, Err(RecallError::TooLate(_))));
    client.shutdown().await;
    cluster.shutdown().await;
}

//! Every kind of consumer, on one cluster of three on loopback, goes on at the next leader: what the others' stories (offsets,
//! pop, transactions, timers) do not look at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use broker::config::MessagePolicy;
use client::admin::Admin;
use client::{Client, Message, Producer, PushConsumer, ReceivedMessage, Retry, StartFrom};
use embedded::Cluster;
use env::Env;
use parking_lot::Mutex;
use tests::read::everything_in;
use tests::wait::until;

/// Longest wait for anything that must happen: many times what it takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Messages before the leader is killed, and as many behind that.
const HALF: usize = 60;

/// Orderly, what has one number of these belongs together.
const ACCOUNTS: usize = 6;

/// Retries before a message is a dead letter.
const RETRIES: u16 = 2;

/// What has come, in order: where it lies, and what it says.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(i32, i64, String)>>>);

impl Seen {
    fn note(&self, message: &ReceivedMessage) -> String {
        let body = std::str::from_utf8(message.body()).expect("text").to_owned();
        self.0.lock().push((message.queue().queue_id, message.queue_offset(), body.clone()));
        body
    }

    /// How often each has come.
    fn counts(&self) -> BTreeMap<String, usize> {
        self.0.lock().iter().fold(BTreeMap::new(), |mut counts, (.., body)| {
            *counts.entry(body.clone()).or_default() += 1;
            counts
        })
    }

    async fn until_all(&self, what: &str, expected: impl IntoIterator<Item = String>) {
        let expected: Vec<String> = expected.into_iter().collect();
        until(PATIENCE, what, async || {
            let counts = self.counts();
            expected.iter().all(|body| counts.contains_key(body))
        })
        .await;
    }
}

fn body(number: usize) -> String {
    format!("m{number}")
}

/// What nobody can consume.
fn is_poison(body: &str) -> bool {
    body.ends_with('7')
}

async fn send(producer: &Producer, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let tag = if number % 3 == 0 { "third" } else { "other" };
        let message = |topic: &str| Message::new(topic, body(number)).with_tag(tag);
        producer.send(message("Retried")).await.expect("sent");
        producer.send_by_key(message("Orderly"), &(number % ACCOUNTS).to_string()).await.expect("sent");
        let batch: Vec<Message> = (0..3).map(|part| Message::new("Batches", format!("{number}-{part}"))).collect();
        let receipts = producer.send_all(&batch).await.expect("sent");
        let places: Vec<i64> = receipts.iter().map(|receipt| receipt.queue_offset).collect();
        assert_eq!(places, [places[0], places[0] + 1, places[0] + 2], "side by side");
    }
}

/// Takes everything of a topic, except for what `refuses`, and notes what comes.
fn handler(
    seen: &Seen,
    refuses: fn(&str) -> bool,
) -> impl Fn(Arc<ReceivedMessage>) -> std::future::Ready<Result<(), Retry>> + Send + Sync + 'static {
    let seen = seen.clone();
    move |message| {
        let body = seen.note(&message);
        std::future::ready(if refuses(&body) { Err(Retry::later("nobody can consume it")) } else { Ok(()) })
    }
}

fn none(_: &str) -> bool {
    false
}

/// The bodies of a group's dead letters.
async fn dead_letters(client: &Client, admin: &Admin, group: &str, expected: usize) -> Vec<String> {
    until(PATIENCE, "the dead letters are there", async || {
        let queues = admin.dead_letter_queues(group).await.unwrap_or_default();
        queues.iter().map(|queue| queue.end - queue.first).sum::<i64>() >= expected as i64
    })
    .await;
    let letters = everything_in(client, &format!("%DLQ%{group}"), PATIENCE).await;
    let text = |letter: &ReceivedMessage| std::str::from_utf8(letter.body()).expect("text").to_owned();
    let mut bodies: Vec<String> = letters.iter().map(text).collect();
    bodies.sort();
    bodies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_consumer_goes_on_at_the_next_leader() {
    let messages = MessagePolicy { delay_levels: vec![Duration::from_millis(200); 18], ..MessagePolicy::default() };
    let mut cluster = Cluster::builder().messages(messages).start().await.expect("a cluster of three");
    let (client, another) = (cluster.client().build().expect("a client"), cluster.client().build().expect("a client"));
    let admin = Admin::new(&Env::real(), vec![cluster.name_server().to_string()]);
    let producer = client.producer("pg").start().expect("a producer");
    // Makes the topics; only accounts are orderly.
    send(&producer, 0..1).await;
    let (retried, orderly, tagged, broadcast, batches) =
        (Seen::default(), Seen::default(), Seen::default(), [Seen::default(), Seen::default()], Seen::default());
    let places = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
    let group = |client: &Client, group: &str, topic: &str, tags: &str| {
        client.push_consumer(group).subscribe(topic, tags).start_from(StartFrom::First)
    };
    let mut consumers: Vec<PushConsumer> = vec![
        group(&client, "retried", "Retried", "*")
            .max_reconsume_times(RETRIES)
            .start(handler(&retried, is_poison))
            .await
            .expect("a consumer"),
        group(&client, "orderly", "Orderly", "*")
            .max_reconsume_times(RETRIES)
            .orderly_pause(Duration::from_millis(50))
            .start_orderly(handler(&orderly, is_poison))
            .await
            .expect("a consumer"),
        group(&client, "tagged", "Retried", "third").start(handler(&tagged, none)).await.expect("a consumer"),
        group(&client, "batches", "Batches", "*").start(handler(&batches, none)).await.expect("a consumer"),
    ];
    for ((client, seen), place) in [&client, &another].into_iter().zip(&broadcast).zip(&places) {
        let consumer = group(client, "broadcast", "Retried", "*").broadcasting(place.path());
        consumers.push(consumer.start(handler(seen, none)).await.expect("a consumer"));
    }

    send(&producer, 1..HALF).await;
    batches.until_all("the first batches", (0..HALF).map(|number| format!("{number}-0"))).await;
    let leader = cluster.leader().await.expect("a leader");
    cluster.kill(leader).await;
    send(&producer, HALF..2 * HALF).await;
    // One whose queues begin as they did for everybody, whatever it asks for; one that asks for what came after the kill.
    let stored = everything_in(&client, "Batches", PATIENCE).await;
    let first_behind = stored.iter().find(|message| message.body() == format!("{HALF}-0").as_bytes());
    let behind = first_behind.expect("all that was sent is there").stored_ms();
    let (from_last, from_time) = (Seen::default(), Seen::default());
    let starts = [("from-last", StartFrom::Last, &from_last), ("from-time", StartFrom::Time(behind), &from_time)];
    for (name, start, seen) in starts {
        let consumer = client.push_consumer(name).subscribe("Batches", "*").start_from(start);
        consumers.push(consumer.start(handler(seen, none)).await.expect("a consumer"));
    }
    cluster.restart(leader).await.expect("it starts again");

    let all = || (0..2 * HALF).map(body);
    let poison: Vec<String> = {
        let mut poison: Vec<String> = all().filter(|body| is_poison(body)).collect();
        poison.sort();
        poison
    };
    retried.until_all("all that is tried again", all()).await;
    orderly.until_all("all accounts", all()).await;
    tagged.until_all("all with the tag", (0..2 * HALF).step_by(3).map(body)).await;
    for seen in &broadcast {
        seen.until_all("all at each member", all()).await;
    }
    let parts = |numbers: std::ops::Range<usize>| {
        numbers.flat_map(|number| (0..3).map(move |part| format!("{number}-{part}"))).collect::<Vec<_>>()
    };
    batches.until_all("all batches", parts(0..2 * HALF)).await;
    from_last.until_all("all of a young queue", parts(0..2 * HALF)).await;
    from_time.until_all("all since then", parts(HALF..2 * HALF)).await;
    for group in ["retried", "orderly"] {
        assert_eq!(dead_letters(&client, &admin, group, poison.len()).await, poison, "{group}: each of them once");
    }
    futures::future::join_all(consumers.into_iter().map(PushConsumer::shutdown)).await;

    assert!(tagged.counts().keys().all(|body| body[1..].parse::<usize>().expect("a number") % 3 == 0), "no other tag");
    let since: Vec<String> = from_time.counts().into_keys().filter(|body| parts(0..HALF).contains(body)).collect();
    // Several may have been stored in one millisecond.
    assert!(since.len() <= 3, "stored before the time that was asked for: {since:?}");
    let mut reached: BTreeMap<i32, i64> = BTreeMap::new();
    for (queue, offset, body) in orderly.0.lock().iter() {
        let before = reached.insert(*queue, *offset).unwrap_or(-1);
        assert!(*offset <= before + 1, "{body} at {offset} of queue {queue} comes behind {before}");
    }
    for (body, count) in retried.counts().into_iter().filter(|(body, _)| is_poison(body)) {
        assert!(count > RETRIES as usize, "{body} had {count} chances");
    }
    for letters in ["%DLQ%retried", "%DLQ%orderly"] {
        let leader = cluster.address(cluster.leader().await.expect("a leader")).to_string();
        assert_eq!(admin.max_offset(&leader, letters, 0).await, Ok(poison.len() as i64), "{letters}");
    }
    admin.close().await;
    client.shutdown().await;
    another.shutdown().await;
    cluster.shutdown().await;
}

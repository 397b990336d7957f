//! Dead letters over a real three-node cluster on loopback: sent again once each, however often that is asked for, with a
//! leader that dies in the middle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::admin::Admin;
use client::admin::dead_letters::{Destination, Resend, ResendProgress, Wanted};
use client::{Client, Message, ReceivedMessage, Retry, StartFrom};
use embedded::Cluster;
use env::Env;
use tests::read::everything_in;
use tests::wait::until;

const PATIENCE: Duration = Duration::from_secs(60);
const TOPIC: &str = "Orders";
const GROUP: &str = "billing";
const COUNT: usize = 60;

async fn give_up_all(client: &Client, admin: &Admin) {
    let producer = client.producer("pg").start().expect("a producer");
    for number in 0..COUNT {
        let tag = if number % 3 == 0 { "third" } else { "other" };
        let message = Message::new(TOPIC, number.to_string()).with_key(&format!("k{number}")).with_tag(tag);
        producer.send(message).await.expect("sent");
    }
    let give_up = |_: Arc<ReceivedMessage>| async { Err(Retry::never("nobody can consume it")) };
    let consumer = client.push_consumer(GROUP).subscribe(TOPIC, "*").start_from(StartFrom::First).start(give_up).await;
    let consumer = consumer.expect("a consumer");
    until(PATIENCE, "all are dead letters", async || {
        let queues = admin.dead_letter_queues(GROUP).await.unwrap_or_default();
        queues.iter().map(|queue| queue.end - queue.first).sum::<i64>() == COUNT as i64
    })
    .await;
    consumer.shutdown().await;
}

/// The copies of dead letters in a topic: by body, which dead letters they are of.
async fn copies(client: &Client, topic: &str) -> BTreeMap<String, Vec<String>> {
    let mut copies: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for message in everything_in(client, topic, PATIENCE).await {
        if let Some(of) = message.property("RAFTMQ_DEAD_LETTER") {
            let body = std::str::from_utf8(message.body()).expect("text").to_owned();
            assert_eq!(message.keys().next(), Some(format!("k{body}").as_str()), "its keys are kept");
            copies.entry(body).or_default().push(of.to_owned());
        }
    }
    copies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_sent_again_once_however_often_and_across_a_killed_leader() {
    let env = Env::real();
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let client = cluster.client().build().expect("a client");
    let admin = Admin::new(&env, vec![cluster.name_server().to_string()]);
    give_up_all(&client, &admin).await;

    // Some of them, chosen; then all, and the leader dies meanwhile.
    let all = Resend {
        group: GROUP.to_owned(),
        destination: Destination::OriginalTopic,
        wanted: Wanted::default(),
        // Slow enough to be in the middle of it for a while.
        per_second: 10,
    };
    let thirds = Wanted { tags: protocol::tag::TagExpression::parse("third").expect("a tag"), ..Wanted::default() };
    let chosen = Resend { wanted: thirds, per_second: 0, ..all.clone() };
    let done = chosen.run(&admin, &env, |_| {}).await.expect("it comes to its end");
    let (total, third) = (COUNT as u64, COUNT as u64 / 3);
    let expected = ResendProgress { total, looked_at: total, sent: third, unwanted: total - third, ..done };
    assert_eq!(done, expected);

    let looked_at = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (noted, running_admin, running_env) = (looked_at.clone(), admin.clone(), env.clone());
    let running = tokio::spawn({
        let all = all.clone();
        async move {
            let tell = |progress: &ResendProgress| {
                noted.store(progress.looked_at, std::sync::atomic::Ordering::Relaxed);
            };
            all.run(&running_admin, &running_env, tell).await
        }
    });
    until(PATIENCE, "it is in the middle", async || looked_at.load(std::sync::atomic::Ordering::Relaxed) >= total / 2)
        .await;
    // Nobody else sends them meanwhile.
    let beside = all.run(&admin, &env, |_| {}).await.expect_err("the queue is locked");
    assert!(beside.reason.starts_with("another run sends"), "{beside}");
    let killed = cluster.leader().await.expect("a leader");
    cluster.kill(killed).await;
    let done = running.await.expect("no panic");
    cluster.restart(killed).await.expect("it starts again");
    // Whether it came to its end or broke off: run again until there is nothing to do.
    let broke_off = done.is_err();
    let mut last = None;
    until(PATIENCE, "a run comes to its end", async || {
        last = all.run(&admin, &env, |_| {}).await.ok();
        last.is_some()
    })
    .await;
    let last = all.run(&admin, &env, |_| {}).await.expect("it comes to its end");
    assert_eq!((last.sent, last.sent_before), (0, total), "nothing is left; the run before broke off: {broke_off}");

    let copies = copies(&client, TOPIC).await;
    assert_eq!(copies.len(), COUNT, "every dead letter has a copy");
    let twice: Vec<_> = copies.iter().filter(|(_, of)| of.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    let queues = admin.dead_letter_queues(GROUP).await.expect("queues");
    assert_eq!(
        queues.iter().map(|queue| queue.end - queue.first).sum::<i64>(),
        COUNT as i64,
        "they stay where they are"
    );
    admin.close().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

/// To the group alone: it sees them as messages of their topic, with all their chances.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_its_retry_topic_a_group_alone_sees_its_dead_letters_again() {
    let env = Env::real();
    let cluster = Cluster::builder().nodes(1).start().await.expect("a broker");
    let client = cluster.client().build().expect("a client");
    let admin = Admin::new(&env, vec![cluster.name_server().to_string()]);
    give_up_all(&client, &admin).await;
    let resend = Resend {
        group: GROUP.to_owned(),
        destination: Destination::RetryTopic,
        wanted: Wanted::default(),
        per_second: 0,
    };
    let done = resend.run(&admin, &env, |_| {}).await.expect("it comes to its end");
    assert_eq!((done.sent, done.sent_before, done.without_topic), (COUNT as u64, 0, 0));
    assert_eq!(resend.run(&admin, &env, |_| {}).await.expect("again").sent_before, COUNT as u64);
    assert!(copies(&client, TOPIC).await.is_empty(), "no other group sees them");

    let seen: Arc<parking_lot::Mutex<BTreeMap<String, (String, i32)>>> = Arc::default();
    let noted = seen.clone();
    let note = move |message: Arc<ReceivedMessage>| {
        let body = std::str::from_utf8(message.body()).expect("text").to_owned();
        let topic = message.property("RETRY_TOPIC").unwrap_or_default().to_owned();
        noted.lock().insert(body, (topic, message.reconsume_times()));
        async { Ok(()) }
    };
    let consumer = client.push_consumer(GROUP).subscribe(TOPIC, "*").start(note).await.expect("a consumer");
    until(PATIENCE, "all are consumed", async || seen.lock().len() == COUNT).await;
    assert!(seen.lock().values().all(|(topic, times)| topic == TOPIC && *times == 0), "{seen:?}");
    consumer.shutdown().await;
    admin.close().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

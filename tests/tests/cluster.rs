//! Stories over a real three-node cluster on loopback: what a user was promised is still true after the leader is gone.
//!
//! Each story has a cluster of its own. They run one after the other: two cores carry one cluster at its real speed, and
//! elections are timed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use broker::config::{MessagePolicy, Retention};
use client::admin::Admin;
use client::{Client, Message, Producer, ReceivedMessage, Retry, SendError, SendReceipt, StartFrom};
use embedded::Cluster;
use env::Env;
use protocol::body::{LockBatchRequest, LockBatchResponse, MessageQueue, SubscriptionGroupConfig};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{
    BoundaryType, CreateTopicRequest, OffsetResponse, QueryMessageRequest, SearchOffsetRequest, ViewMessageRequest,
};
use protocol::message_id::MessageId;
use protocol::record::RecordView;
use raft_store::position::QueueId;
use remoting::NoRequests;
use tests::raw::{Heard, RawConnection, encoded};
use tests::wait::{until, until_there};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// One cluster at a time.
static MACHINE: Mutex<()> = Mutex::const_new(());

/// Longest wait for anything that must happen: many times what it takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Level 2 outlives whatever happens; from level 3 on, retries of consumers come quickly.
const DELAY_LEVELS_MS: [u64; 5] = [100, 7_200_000, 100, 150, 200];
const LONG_LEVEL: u8 = 2;

async fn three_nodes() -> Cluster {
    let messages = MessagePolicy {
        delay_levels: DELAY_LEVELS_MS.into_iter().map(Duration::from_millis).collect(),
        ..MessagePolicy::default()
    };
    Cluster::builder().messages(messages).start().await.expect("a cluster of three")
}

fn admin_of(cluster: &Cluster) -> Admin {
    Admin::new(&Env::real(), vec![cluster.name_server().to_string()])
}

async fn leader_address(cluster: &Cluster) -> String {
    cluster.address(cluster.leader().await.expect("a leader")).to_string()
}

async fn make_topic(cluster: &Cluster, topic: &str, queues: i32) {
    let request = CreateTopicRequest {
        topic: topic.to_owned(),
        default_topic: Some("TBW102".to_owned()),
        read_queue_nums: queues,
        write_queue_nums: queues,
        perm: 6,
        ..CreateTopicRequest::default()
    };
    let admin = admin_of(cluster);
    admin.put_topic(&leader_address(cluster).await, &request).await.expect("the topic is made");
    until_there(PATIENCE, "the NameServer knows the topic", async || admin.topic_route(topic).await.ok().flatten())
        .await;
    admin.close().await;
}

fn client_of(cluster: &Cluster) -> Client {
    cluster.client().build().expect("a client")
}

fn producer_of(client: &Client) -> Producer {
    client.producer("pg").timeout(PATIENCE).start().expect("a producer")
}

/// A message as a replica shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Read {
    key: String,
    body: String,
}

/// All that a replica shows of a topic, by queue and offset. `None` while it cannot be read.
async fn read_all(admin: &Admin, replica: &str, topic: &str, queues: i32) -> Option<BTreeMap<(i32, i64), Read>> {
    let mut all = BTreeMap::new();
    for queue in 0..queues {
        let mut next = 0;
        loop {
            let pulled = admin.pull(replica, "audit", topic, queue, next, 32).await.ok()?;
            if pulled.code != ResponseCode::SUCCESS {
                break;
            }
            for record in &pulled.records {
                let record = RecordView::parse(record).expect("a whole record");
                assert!(record.is_body_intact(), "the body's checksum at {queue}:{}", record.queue_offset());
                let key = record.property("UNIQ_KEY").expect("a unique key").to_owned();
                let body = String::from_utf8(record.body().to_vec()).expect("text");
                let earlier = all.insert((queue, record.queue_offset()), Read { key, body });
                assert_eq!(earlier, None, "one offset is shown twice");
            }
            next = pulled.bounds.next_begin_offset;
        }
    }
    Some(all)
}

/// Four senders that each send one message after the other, until it is enough.
struct Load {
    sent: Arc<AtomicUsize>,
    enough: Arc<AtomicBool>,
    senders: Vec<JoinHandle<Sent>>,
}

/// Bodies, and what became of each.
type Sent = Vec<(String, Result<SendReceipt, SendError>)>;

impl Load {
    fn start(producer: &Producer, topic: &'static str) -> Load {
        let (sent, enough) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let sender = |name: usize| {
            let (producer, sent, enough) = (producer.clone(), sent.clone(), enough.clone());
            tokio::spawn(async move {
                let mut results = Vec::new();
                while !enough.load(Ordering::Relaxed) {
                    let body = format!("{name}-{}", results.len());
                    let result = producer.send(Message::new(topic, body.clone())).await;
                    results.push((body, result));
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                results
            })
        };
        let senders = (0..4).map(sender).collect();
        Load { sent, enough, senders }
    }

    /// Resolves when `count` more sends have ended.
    async fn goes_on(&self, count: usize) {
        let wanted = self.sent.load(Ordering::Relaxed) + count;
        until_there(PATIENCE, "sends go on", async || (self.sent.load(Ordering::Relaxed) >= wanted).then_some(()))
            .await;
    }

    /// Ends the senders. Every send must have been acknowledged; the receipts by unique key.
    async fn receipts(self) -> BTreeMap<String, (String, SendReceipt)> {
        self.enough.store(true, Ordering::Relaxed);
        let mut receipts = BTreeMap::new();
        for sender in self.senders {
            for (body, result) in sender.await.expect("a sender") {
                let receipt = result.unwrap_or_else(|error| panic!("the send of {body} failed: {error}"));
                let earlier = receipts.insert(receipt.unique_key.clone(), (body, receipt));
                assert_eq!(earlier, None, "two messages have one key");
            }
        }
        receipts
    }
}

/// A leader that dies in the middle of sends costs no acknowledged message, on no replica; and no offset has two values.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sends_go_on_across_a_killed_leader_and_every_acknowledged_one_is_on_every_replica() {
    const QUEUES: i32 = 2;
    let _machine = MACHINE.lock().await;
    let mut cluster = three_nodes().await;
    make_topic(&cluster, "Across", QUEUES).await;
    let client = client_of(&cluster);
    let producer = producer_of(&client);
    let load = Load::start(&producer, "Across");
    load.goes_on(100).await;
    let killed = cluster.leader().await.expect("a leader");
    cluster.kill(killed).await;
    load.goes_on(100).await;
    assert_ne!(cluster.leader().await.expect("another leader"), killed);
    let receipts = load.receipts().await;
    cluster.restart(killed).await.expect("the killed one starts again");

    let admin = admin_of(&cluster);
    let mut shown = Vec::new();
    for node in 0..cluster.nodes() {
        let replica = cluster.address(node).to_string();
        let all = until_there(PATIENCE, &format!("node {node} shows every acknowledged message"), async || {
            let all = read_all(&admin, &replica, "Across", QUEUES).await?;
            let at_its_place = |(body, receipt): &(String, SendReceipt)| {
                all.get(&(receipt.queue.queue_id, receipt.queue_offset))
                    == Some(&Read { key: receipt.unique_key.clone(), body: body.clone() })
            };
            receipts.values().all(at_its_place).then_some(all)
        })
        .await;
        shown.push(all);
    }
    // A follower may be behind by a copy that nobody acknowledged, never by another value.
    for (node, all) in shown.iter().enumerate() {
        for (place, read) in all {
            let elsewhere: BTreeSet<_> = shown.iter().filter_map(|all| all.get(place)).map(|read| &read.body).collect();
            assert_eq!(elsewhere.len(), 1, "{place:?} has several values: {elsewhere:?}");
            assert!(receipts.contains_key(&read.key), "node {node} shows {read:?}, which nobody sent");
        }
        for (key, (body, receipt)) in &receipts {
            let copies = all.values().filter(|read| read.key == *key).count();
            // Only a send whose answer was lost may lie there a second time.
            let is_explained = copies == 1 || (copies > 1 && receipt.attempts > 1);
            assert!(is_explained, "{body} took {} attempts and lies there {copies} times", receipt.attempts);
        }
    }
    admin.close().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

/// A group that stored its offsets does not see its messages again because the leader that took the offsets is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_consumer_offsets_survive_the_leader() {
    let _machine = MACHINE.lock().await;
    let mut cluster = three_nodes().await;
    make_topic(&cluster, "Offsets", 2).await;
    let client = client_of(&cluster);
    let producer = producer_of(&client);
    for n in 0..20 {
        producer.send(Message::new("Offsets", format!("{n}"))).await.expect("sent");
    }
    let mut consumer = client.pull_consumer("og").expect("a consumer");
    let queues = consumer.queues("Offsets").await.expect("queues");
    consumer.assign(&queues, StartFrom::First).await.expect("assigned");
    let mut count = 0;
    while count < 20 {
        let messages = consumer.poll(PATIENCE).await.expect("a poll");
        assert!(!messages.is_empty(), "only {count} of 20 came");
        count += messages.len();
    }
    consumer.commit().await.expect("stored");
    let mut stored = BTreeMap::new();
    for queue in &queues {
        stored.insert(queue.clone(), consumer.committed(queue).await.expect("asked").expect("an offset"));
    }
    assert_eq!(stored.values().sum::<i64>(), 20, "{stored:?}");

    let killed = cluster.leader().await.expect("a leader");
    cluster.kill(killed).await;
    assert_ne!(cluster.leader().await.expect("another leader"), killed);

    // Another program of the same group: it knows nothing but what the cluster knows.
    let other = client_of(&cluster);
    let mut consumer = other.pull_consumer("og").expect("a consumer");
    until_there(PATIENCE, "the group can be asked again", async || {
        consumer.assign(&queues, StartFrom::First).await.ok()
    })
    .await;
    for queue in &queues {
        assert_eq!(consumer.position(queue), Some(stored[queue]), "{queue:?}");
    }
    producer.send(Message::new("Offsets", "late")).await.expect("sent");
    let bodies = until_there(PATIENCE, "the late one", async || {
        let messages = consumer.poll(Duration::from_secs(1)).await.ok()?;
        let bodies: Vec<_> = messages.iter().map(|message| message.body().clone()).collect();
        (!bodies.is_empty()).then_some(bodies)
    })
    .await;
    assert_eq!(bodies, ["late"], "what was consumed before came again");
    client.shutdown().await;
    other.shutdown().await;
    cluster.shutdown().await;
}

/// A delay is a promise of the log, not of the leader that took it: kept by the next one, not early and not twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_outlives_its_leader_and_comes_once_and_not_early() {
    let _machine = MACHINE.lock().await;
    let mut cluster = three_nodes().await;
    make_topic(&cluster, "Delayed", 1).await;
    let client = client_of(&cluster);
    let producer = producer_of(&client);
    let delay_ms = DELAY_LEVELS_MS[usize::from(LONG_LEVEL) - 1];

    let asked_ms = cluster.clock().wall_ms();
    let receipt = producer.send(Message::new("Delayed", "later").with_delay_level(LONG_LEVEL)).await.expect("sent");
    assert_eq!(receipt.attempts, 1, "a repeated send may be delivered twice");
    let killed = cluster.leader().await.expect("a leader");
    cluster.kill(killed).await;
    assert_ne!(cluster.leader().await.expect("another leader"), killed);

    let mut consumer = client.pull_consumer("dg").expect("a consumer");
    let queues = consumer.queues("Delayed").await.expect("queues");
    until_there(PATIENCE, "the queue can be assigned", async || consumer.assign(&queues, StartFrom::First).await.ok())
        .await;
    cluster.advance(Duration::from_millis(delay_ms) - PATIENCE).await.expect("advanced");
    assert_eq!(consumer.max_offset(&queues[0]).await, Ok(0), "it is early");
    cluster.advance(PATIENCE).await.expect("advanced");
    assert_eq!(consumer.max_offset(&queues[0]).await, Ok(1), "it is late");
    let came = consumer.poll(PATIENCE).await.expect("a poll");
    assert_eq!(came.iter().map(|message| message.body().clone()).collect::<Vec<_>>(), ["later"]);
    assert!(came[0].stored_ms() >= asked_ms + delay_ms as i64, "shown as visible before its time");
    assert_eq!(came[0].unique_key(), Some(receipt.unique_key.as_str()));

    // The killed one comes back and catches up, and has had its chance to deliver the message a second time when what was
    // sent with the shortest delay after that is there.
    cluster.restart(killed).await.expect("the killed one starts again");
    producer.send(Message::new("Delayed", "last").with_delay_level(1)).await.expect("sent");
    let mut behind = Vec::new();
    while !behind.iter().any(|body| body == "last") {
        let messages = consumer.poll(PATIENCE).await.expect("a poll");
        assert!(!messages.is_empty(), "the last message did not come");
        behind.extend(messages.iter().map(|message| message.body().clone()));
    }
    assert_eq!(behind, ["last"], "the delayed message came again");
    client.shutdown().await;
    cluster.shutdown().await;
}

/// A message that nobody can consume does not come for ever, and is not lost: it ends in the group's dead-letter queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_always_fails_ends_in_the_dead_letter_queue_once() {
    const RETRIES: usize = 2;
    let _machine = MACHINE.lock().await;
    let cluster = three_nodes().await;
    make_topic(&cluster, "Poison", 1).await;
    let client = client_of(&cluster);
    let producer = producer_of(&client);
    let attempts = Arc::new(AtomicUsize::new(0));
    let healthy = Arc::new(AtomicUsize::new(0));
    let (counted, well) = (attempts.clone(), healthy.clone());
    let consumer = client
        .push_consumer("fg")
        .subscribe("Poison", "*")
        .start_from(StartFrom::First)
        .max_reconsume_times(RETRIES as u16)
        .start(move |message: Arc<ReceivedMessage>| {
            let is_poison = &message.body()[..] == b"poison";
            let count = if is_poison { &counted } else { &well };
            count.fetch_add(1, Ordering::Relaxed);
            async move { if is_poison { Err(Retry::later("cannot be consumed")) } else { Ok(()) } }
        })
        .await
        .expect("a consumer");
    producer.send(Message::new("Poison", "poison").with_key("p-1")).await.expect("sent");
    producer.send(Message::new("Poison", "good")).await.expect("sent");

    let admin = admin_of(&cluster);
    let leader = leader_address(&cluster).await;
    let dead_letters = "%DLQ%fg";
    until_there(PATIENCE, "a dead letter", async || {
        admin.max_offset(&leader, dead_letters, 0).await.ok().filter(|offset| *offset > 0)
    })
    .await;
    // What is behind the dead letter in the log was decided after it: when this one is consumed, nothing is still under
    // way for the other.
    producer.send(Message::new("Poison", "good")).await.expect("sent");
    until_there(PATIENCE, "the healthy ones", async || (healthy.load(Ordering::Relaxed) == 2).then_some(())).await;
    consumer.shutdown().await;

    assert_eq!(attempts.load(Ordering::Relaxed), 1 + RETRIES, "the first delivery and the retries");
    assert_eq!(admin.max_offset(&leader, "%RETRY%fg", 0).await, Ok(RETRIES as i64), "one delivery a retry");
    assert_eq!(admin.max_offset(&leader, dead_letters, 0).await, Ok(1), "one dead letter");
    let pulled = admin.pull(&leader, "audit", dead_letters, 0, 0, 32).await.expect("a pull");
    let letter = RecordView::parse(&pulled.records[0]).expect("a record");
    assert_eq!(letter.body(), b"poison");
    assert_eq!(letter.property("KEYS"), Some("p-1"));
    assert_eq!(letter.property("RETRY_TOPIC"), Some("Poison"), "where it came from");
    admin.close().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

/// Asks the leader for a queue's lock in the name of `client`; whether it was granted. `None` while nobody answers.
async fn lock(cluster: &Cluster, client: &str, queue: &MessageQueue) -> Option<bool> {
    let request = LockBatchRequest {
        client_id: client.to_owned(),
        consumer_group: "lg".to_owned(),
        mq_set: vec![queue.clone()],
        only_this_broker: false,
    };
    let request = RemotingCommand::request(RequestCode::LOCK_BATCH_MQ).with_json(&request);
    let mut connection = RawConnection::open(&Env::real(), &leader_address(cluster).await).await.ok()?;
    connection.say(&encoded(&request)).await;
    match connection.hear(PATIENCE).await {
        Heard::Answer(answer) if answer.is_success() => {
            let held: LockBatchResponse = answer.json().expect("the queues held");
            Some(held.lock_ok_mq_set.contains(queue))
        }
        _ => None,
    }
}

/// Two consumers of one queue at a time are what an orderly group must not have, least of all while leaders change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_lock_survives_the_leader_and_ends_with_its_lease() {
    let _machine = MACHINE.lock().await;
    let mut cluster = three_nodes().await;
    make_topic(&cluster, "Orderly", 1).await;
    let admin = admin_of(&cluster);
    admin.put_group(&leader_address(&cluster).await, &SubscriptionGroupConfig::new("lg")).await.expect("it is made");
    admin.close().await;
    let queue = MessageQueue::new("Orderly", "broker-a", 0);

    assert_eq!(lock(&cluster, "first", &queue).await, Some(true));
    assert_eq!(lock(&cluster, "second", &queue).await, Some(false), "held by the first");
    let killed = cluster.leader().await.expect("a leader");
    cluster.kill(killed).await;
    assert_ne!(cluster.leader().await.expect("another leader"), killed);

    let second_gets_it =
        async || until_there(PATIENCE, "an answer", async || lock(&cluster, "second", &queue).await).await;
    assert!(!second_gets_it().await, "the new leader knows of no lock");
    let lease = MessagePolicy::default().queue_lock;
    cluster.advance(lease - PATIENCE).await.expect("advanced");
    assert!(!second_gets_it().await, "the lease of {lease:?} was broken");
    // The new leader has extended it by the time in which nobody led.
    cluster.advance(PATIENCE * 2).await.expect("advanced");
    assert!(second_gets_it().await, "the lease of {lease:?} does not end");
    assert_eq!(lock(&cluster, "first", &queue).await, Some(false), "the second holds it now");
    cluster.shutdown().await;
}

/// A restart for maintenance is no incident: leadership is handed over, and producers see nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_send_fails_while_the_leader_stops_in_good_order() {
    let _machine = MACHINE.lock().await;
    let mut cluster = three_nodes().await;
    make_topic(&cluster, "Maintained", 2).await;
    let client = client_of(&cluster);
    let producer = producer_of(&client);
    let load = Load::start(&producer, "Maintained");
    load.goes_on(100).await;
    let stopped = cluster.leader().await.expect("a leader");
    cluster.stop(stopped).await;
    load.goes_on(100).await;
    assert_ne!(cluster.leader().await.expect("another leader"), stopped);
    let receipts = load.receipts().await;
    let admin = admin_of(&cluster);
    let all = read_all(&admin, &leader_address(&cluster).await, "Maintained", 2).await.expect("the leader is read");
    for (body, receipt) in receipts.values() {
        let place = (receipt.queue.queue_id, receipt.queue_offset);
        assert_eq!(all.get(&place), Some(&Read { key: receipt.unique_key.clone(), body: body.clone() }));
    }
    admin.close().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

/// Thirty segments go through a log that may be six long, while messages wait for times far and near: the disk stays
/// bounded, nothing that waits is lost, consumers see no error, and every replica begins each queue at the same offset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_bounds_the_disk_and_lets_nothing_go_that_waits() {
    const SEGMENT: u64 = 16 << 20;
    const LIMIT: u64 = 6 * SEGMENT;
    const QUEUES: i32 = 4;
    let _machine = MACHINE.lock().await;
    let retention =
        Retention { bytes: Some(LIMIT), look_interval: Duration::from_millis(200), ..Cluster::default_retention() };
    // Nothing goes that is needed to recognise what is sent again.
    let messages = MessagePolicy { idempotent_window: Duration::from_millis(500), ..MessagePolicy::default() };
    let cluster = Cluster::builder().messages(messages).retention(retention).segment_bytes(SEGMENT);
    let cluster = cluster.start().await.expect("a cluster");
    make_topic(&cluster, "Bulk", QUEUES).await;
    make_topic(&cluster, "Late", QUEUES).await;
    let client = client_of(&cluster);
    let producer = producer_of(&client);
    let clock = Env::real().clock;

    let (bulk, late) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Mutex::new(BTreeMap::new())));
    let (bulk_heard, late_heard) = (bulk.clone(), late.clone());
    let bulk_consumer = client.push_consumer("bulk").subscribe("Bulk", "*").start_from(StartFrom::First);
    let bulk_consumer = bulk_consumer.start(move |_: Arc<ReceivedMessage>| {
        bulk_heard.fetch_add(1, Ordering::Relaxed);
        async { Ok(()) }
    });
    let bulk_consumer = bulk_consumer.await.expect("a consumer");
    let late_consumer = client.push_consumer("late").subscribe("Late", "*").start_from(StartFrom::First);
    let late_consumer = late_consumer.start(move |message: Arc<ReceivedMessage>| {
        *late_heard.lock().expect("whole").entry(message.body().clone()).or_insert(0) += 1;
        async { Ok(()) }
    });
    let late_consumer = late_consumer.await.expect("a consumer");

    let body = bytes::Bytes::from(vec![b'x'; 100_000]);
    let (mut waiting, mut sent, mut longest, mut begun) = (BTreeSet::new(), 0_usize, 0, clock.monotonic());
    let log_end =
        |node: usize| cluster.broker(node).expect("alive").groups()[0].raft().log().tip().end.physical_offset.0;
    while log_end(0) < 30 * SEGMENT {
        let mut sends = tokio::task::JoinSet::new();
        for number in 0..16 {
            let producer = producer.clone();
            let message = match number {
                // Of all ages: some fall due at once, some outlive the segment they were sent in several times.
                0 => {
                    let text = format!("late {sent}");
                    let delay = Duration::from_millis(200 + (sent as u64 * 7_919) % 30_000);
                    waiting.insert(bytes::Bytes::from(text.clone()));
                    Message::new("Late", text).with_delay(delay)
                }
                _ => Message::new("Bulk", body.clone()),
            };
            sends.spawn(async move { producer.send(message).await });
        }
        while let Some(sent) = sends.join_next().await {
            sent.expect("no panic").expect("sent");
        }
        sent += 16;
        if clock.monotonic() - begun > Duration::from_millis(500) {
            begun = clock.monotonic();
            for node in 0..3 {
                longest = longest.max(bytes_in(&log_dir_of(&cluster, node)));
            }
        }
    }
    let pending = cluster.broker(0).expect("alive").groups()[0].status().raft;
    println!("{sent} sent, {} wait at first; the longest log had {} MiB; {pending:?}", waiting.len(), longest >> 20);
    // The limit, what grows while a step of retention is carried out, and the two segments made ready ahead.
    assert!(longest <= LIMIT + 8 * SEGMENT, "{longest} bytes of log, {LIMIT} are the limit");

    until_there(PATIENCE, "all that waited came", async || {
        let heard = late.lock().expect("whole");
        waiting.iter().all(|key| heard.contains_key(key)).then_some(())
    })
    .await;
    until_there(PATIENCE, "the bulk was consumed", async || {
        (bulk.load(Ordering::Relaxed) >= sent / 16 * 15).then_some(())
    })
    .await;

    let admin = admin_of(&cluster);
    let minima = async || {
        let mut minima = Vec::new();
        for node in 0..3 {
            let mut of_node = Vec::new();
            for topic in ["Bulk", "Late"] {
                for queue in 0..QUEUES {
                    let reader = cluster.broker(node)?.groups()[0].raft().reader();
                    let topic = reader.tables().topics().get(topic)?.id();
                    of_node.push(reader.queue(QueueId { topic, queue: queue as u32 })?.bounds().start);
                }
            }
            minima.push(of_node);
        }
        (minima[0] == minima[1] && minima[1] == minima[2]).then(|| minima.swap_remove(0))
    };
    let minima = until_there(PATIENCE, "the minima are equal on all replicas", minima).await;
    assert!(minima[..QUEUES as usize].iter().all(|min| min.0 > 0), "{minima:?}");
    let leader = leader_address(&cluster).await;
    let pulled = admin.pull(&leader, "audit", "Bulk", 0, 0, 32).await.expect("an answer");
    assert_eq!(pulled.code, ResponseCode::PULL_OFFSET_MOVED, "below the minimum");
    assert_eq!(pulled.bounds.next_begin_offset, minima[0].0 as i64);
    admin.close().await;
    bulk_consumer.shutdown().await;
    late_consumer.shutdown().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

/// Something that a person or a tool wants to know of messages, and what any replica must answer.
#[derive(Debug)]
struct Question {
    request: RemotingCommand,
    answer: Answered,
}

/// As many messages are asked for: fewer than have one key.
const ANSWER_MESSAGES: usize = 20;

#[derive(Debug, PartialEq, Eq)]
enum Answered {
    Offset(i64),
    Messages(Vec<String>),
    /// There is no such message, or none any more; it is said in these words, and more.
    NotFound(ResponseCode, String),
}

impl Question {
    fn search(topic: &str, timestamp: i64, boundary_type: BoundaryType, offset: i64) -> Question {
        let header = SearchOffsetRequest { topic: topic.to_owned(), timestamp, boundary_type, ..Default::default() };
        let request = RemotingCommand::request_with(RequestCode::SEARCH_OFFSET_BY_TIMESTAMP, &header);
        Question { request, answer: Answered::Offset(offset) }
    }

    fn by_key(topic: &str, key: &str, unique: bool, times: std::ops::RangeInclusive<i64>, bodies: &[&str]) -> Question {
        let header = QueryMessageRequest {
            topic: topic.to_owned(),
            key: key.to_owned(),
            max_num: ANSWER_MESSAGES as i32,
            begin_timestamp: *times.start(),
            end_timestamp: *times.end(),
            unique_key_query: unique,
            ..QueryMessageRequest::default()
        };
        let answer = match bodies {
            [] => Answered::NotFound(ResponseCode::QUERY_NOT_FOUND, "can not find message".to_owned()),
            bodies => Answered::Messages(bodies.iter().copied().map(str::to_owned).collect()),
        };
        Question { request: RemotingCommand::request_with(RequestCode::QUERY_MESSAGE, &header), answer }
    }

    /// By its offset id; the body if it is kept.
    fn view(offset_id: &str, body: Option<&str>) -> Question {
        let id: MessageId = offset_id.parse().expect("an offset id");
        let header = ViewMessageRequest { offset: id.physical_offset, ..ViewMessageRequest::default() };
        let answer = match body {
            // RocketMQ's answer, and why.
            None => {
                let words = format!("can not find message by the offset, {}: kept is what lies at", id.physical_offset);
                Answered::NotFound(ResponseCode::SYSTEM_ERROR, words)
            }
            Some(body) => Answered::Messages(vec![body.to_owned()]),
        };
        Question { request: RemotingCommand::request_with(RequestCode::VIEW_MESSAGE_BY_ID, &header), answer }
    }

    /// Puts it to a replica; panics if it answers anything else. Whether it answered: nobody may lead just now.
    async fn is_answered(&self, client: &remoting::Client<NoRequests>, replica: &str) -> bool {
        let Ok(response) = client.call(replica, self.request.clone(), PATIENCE).await else { return false };
        let code = response.response_code();
        let given = match &self.answer {
            _ if code == ResponseCode::SERVICE_NOT_AVAILABLE => return false,
            Answered::Offset(_) if code == ResponseCode::SUCCESS => {
                Answered::Offset(response.header::<OffsetResponse>().expect("an offset").offset)
            }
            Answered::NotFound(code_wanted, words) if code == *code_wanted => {
                assert!(response.remark_text().starts_with(words), "{replica}: {self:?}: {response:?}");
                Answered::NotFound(code, words.clone())
            }
            _ if code == ResponseCode::SUCCESS => {
                let body = |record: &bytes::Bytes| {
                    let record = RecordView::parse(record).expect("a record");
                    String::from_utf8(record.body().to_vec()).expect("text")
                };
                let records = protocol::record::split(&response.body).map(|record| body(&record.expect("whole")));
                Answered::Messages(records.collect())
            }
            _ => panic!("{replica}: {self:?}: {response:?}"),
        };
        assert_eq!(given, self.answer, "{replica}: {self:?}");
        true
    }
}

/// Puts all questions to a replica until each is answered: somebody leads, or will.
async fn answers_all(client: &remoting::Client<NoRequests>, replica: &str, questions: &[Question]) {
    for some in questions.chunks(32) {
        let answers = some.iter().map(|question| async move {
            until_there(PATIENCE, &format!("{replica}: {question:?}"), async || {
                question.is_answered(client, replica).await.then_some(())
            })
            .await;
        });
        futures::future::join_all(answers).await;
    }
}

/// A message of the story below.
struct Asked {
    body: String,
    receipt: SendReceipt,
    stored_ms: i64,
}

/// All that can be asked about the messages of queue 0, and the answers: by RocketMQ's rules, from `min` on they are kept.
fn questions_about(topic: &str, asked: &[Asked], min: i64) -> Vec<Question> {
    let kept: Vec<&Asked> = asked.iter().filter(|one| one.receipt.queue_offset >= min).collect();
    let max = asked.len() as i64;
    let around = asked.iter().flat_map(|one| one.stored_ms - 1..=one.stored_ms + 1);
    let times: BTreeSet<i64> = around.chain([0, i64::MAX]).collect();
    let mut questions = Vec::new();
    for time in times {
        let lower = kept.iter().find(|one| one.stored_ms >= time).map_or(max, |one| one.receipt.queue_offset);
        let upper = kept.iter().rfind(|one| one.stored_ms <= time).map_or(min, |one| one.receipt.queue_offset);
        questions.push(Question::search(topic, time, BoundaryType::Lower, lower));
        questions.push(Question::search(topic, time, BoundaryType::Upper, upper));
    }
    for one in asked {
        let body = (one.receipt.queue_offset >= min).then_some(one.body.as_str());
        let bodies = body.as_slice();
        let at = one.stored_ms..=one.stored_ms;
        questions.push(Question::by_key(topic, &one.body, false, 0..=i64::MAX, bodies));
        questions.push(Question::by_key(topic, &one.body, false, at, bodies));
        questions.push(Question::by_key(topic, &one.body, false, one.stored_ms + 1..=i64::MAX, &[]));
        questions.push(Question::by_key(topic, &one.receipt.unique_key, true, 0..=i64::MAX, bodies));
        questions.push(Question::view(&one.receipt.offset_message_id, body));
    }
    // One key that all of them have: of those that are kept the newest, of one time those of that time.
    let newest: Vec<&str> = kept.iter().rev().take(ANSWER_MESSAGES).rev().map(|one| one.body.as_str()).collect();
    questions.push(Question::by_key(topic, "all", false, 0..=i64::MAX, &newest));
    let middle = kept[kept.len() / 2].stored_ms;
    let of_then: Vec<&str> = kept.iter().filter(|one| one.stored_ms == middle).map(|one| one.body.as_str()).collect();
    questions.push(Question::by_key(topic, "all", false, middle..=middle, &of_then));
    questions
}

/// Messages are looked for by time, key, unique key, offset id after retention has taken the first ones: at the leader, at a
/// follower that saw it all, at one that was away and began with an image, and while the leader dies. Each gives the same
/// answers, those of RocketMQ, and says of what is gone that it is not there, not that something is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_about_messages_are_answered_alike_by_all_replicas_after_retention_and_while_the_leader_dies() {
    const SEGMENT: u64 = 16 << 20;
    const LIMIT: u64 = 2 * SEGMENT;
    const TOPIC: &str = "Asked";
    const COUNT: i64 = 120;
    let _machine = MACHINE.lock().await;
    let retention =
        Retention { bytes: Some(LIMIT), look_interval: Duration::from_millis(100), ..Cluster::default_retention() };
    let messages = MessagePolicy { idempotent_window: Duration::from_millis(100), ..MessagePolicy::default() };
    let cluster = Cluster::builder().messages(messages).retention(retention).segment_bytes(SEGMENT);
    let mut cluster = cluster.start().await.expect("a cluster");
    make_topic(&cluster, TOPIC, 1).await;
    make_topic(&cluster, "Bulk", 1).await;
    let client = client_of(&cluster);
    let producer = producer_of(&client);

    let admin = admin_of(&cluster);
    let at = |cluster: &Cluster, node: usize| cluster.address(node).to_string();

    // Two small ones with a megabyte beside them, again and again. A pair often has one store time.
    let bulk = bytes::Bytes::from(vec![b'x'; 1_000_000]);
    let send = async |number: usize| {
        let body = format!("asked-{number}");
        let message = Message::new(TOPIC, body.clone()).with_key(&body).with_key("all");
        (body, producer.send(message).await.expect("sent"))
    };
    let (mut sent, mut stored) = (Vec::new(), BTreeMap::new());
    let group = |cluster: &Cluster, node: usize| cluster.broker(node).expect("alive").groups()[0].raft().clone();
    let leader = cluster.leader().await.expect("a leader");
    let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut away_since = None;
    while sent.len() < COUNT as usize {
        let bulky = producer.send(Message::new("Bulk", bulk.clone()));
        let (one, two, bulky) = tokio::join!(send(sent.len()), send(sent.len() + 1), bulky);
        bulky.expect("sent");
        sent.extend([one, two]);
        stored.extend(read_times(&admin, &at(&cluster, leader), TOPIC, stored.len() as i64).await);
        if sent.len() == 20 {
            away_since = group(&cluster, away).log().last();
            cluster.kill(away).await;
        }
        // Retention lets whole checkpoints go: however fast this is, none is far behind the end.
        let follows = async || {
            let raft = group(&cluster, leader);
            let newest = raft.reader().checkpoints().last().map_or(0, |point| point.end.0);
            raft.log().tip().end.physical_offset.0 - newest <= SEGMENT + SEGMENT / 4
        };
        until(PATIENCE, "a checkpoint follows the log", follows).await;
    }
    let purged = |node: usize| group(&cluster, node).log().last_purged();
    let is_trimmed = async || {
        let raft = group(&cluster, leader);
        let kept = raft.log().tip().end.physical_offset.0 - raft.reader().min_physical().0;
        kept <= LIMIT && purged(leader) > away_since
    };
    until(PATIENCE, "the log is as short as it may be", is_trimmed).await;
    cluster.restart(away).await.expect("it starts again");
    let applied = |node: usize| group(&cluster, node).reader().applied();
    let is_equal = async || group(&cluster, away).is_caught_up() && (0..3).all(|node| applied(node) == applied(leader));
    until(PATIENCE, "the one that was away is equal to the others", is_equal).await;
    assert!(group(&cluster, away).log().last_purged() > away_since, "it began with an image");

    let min = admin.min_offset(&at(&cluster, leader), TOPIC, 0).await.expect("an offset");
    assert!(min > 20 && min < COUNT - 20, "of {COUNT} messages the first is {min}");
    assert_eq!(admin.max_offset(&at(&cluster, leader), TOPIC, 0).await.expect("an offset"), COUNT);
    let asked =
        |(body, receipt): (String, SendReceipt)| Asked { body, stored_ms: stored[&receipt.queue_offset], receipt };
    let mut asked: Vec<Asked> = sent.into_iter().map(asked).collect();
    asked.sort_by_key(|one| one.receipt.queue_offset);
    let questions = Arc::new(questions_about(TOPIC, &asked, min));
    let wire = remoting::Client::new(&Env::real(), remoting::Limits::default(), Arc::new(NoRequests));
    for node in [leader, other, away] {
        answers_all(&wire, &at(&cluster, node), &questions).await;
    }

    // Both followers are asked all the time, a moment before the leader dies, while nobody leads, and after that.
    let stop = Arc::new(AtomicBool::new(false));
    let asker = |node: usize| {
        let (wire, stop, questions, replica) = (wire.clone(), stop.clone(), questions.clone(), at(&cluster, node));
        let answered = Arc::new(AtomicUsize::new(0));
        let count = answered.clone();
        let asker = tokio::spawn(async move {
            for question in questions.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                count.fetch_add(usize::from(question.is_answered(&wire, &replica).await), Ordering::Relaxed);
            }
        });
        (asker, answered)
    };
    let askers = [other, away].map(asker);
    let count = || askers.iter().map(|(_, answered)| answered.load(Ordering::Relaxed)).min().unwrap_or(0);
    until(PATIENCE, "both answer", async || count() > 10).await;
    cluster.kill(leader).await;
    let next = cluster.leader().await.expect("another leader");
    assert_ne!(next, leader);
    let before = count();
    until(PATIENCE, "both answer again", async || count() > before + 10).await;
    stop.store(true, Ordering::Relaxed);
    for (asker, _) in askers {
        asker.await.expect("whatever was answered was right");
    }
    for node in [other, away] {
        answers_all(&wire, &at(&cluster, node), &questions).await;
    }
    println!("{} questions, from offset {min} on; then {next} led", questions.len());
    wire.close().await;
    admin.close().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

/// When each message of queue 0 was stored, by its offset, from `from` on.
async fn read_times(admin: &Admin, replica: &str, topic: &str, from: i64) -> BTreeMap<i64, i64> {
    let (mut times, mut next) = (BTreeMap::new(), from);
    loop {
        let pulled = admin.pull(replica, "audit", topic, 0, next, 32).await.expect("an answer");
        if pulled.code != ResponseCode::SUCCESS {
            return times;
        }
        for record in &pulled.records {
            let record = RecordView::parse(record).expect("a whole record");
            times.insert(record.queue_offset(), record.store_timestamp());
        }
        next = pulled.bounds.next_begin_offset;
    }
}

fn log_dir_of(cluster: &Cluster, node: usize) -> std::path::PathBuf {
    cluster.data_dir().join(format!("broker-a-{}/commitlog", node + 1))
}

/// Bytes of the segment files in a directory; one that goes meanwhile counts nothing.
#[allow(clippy::disallowed_methods)] // Looks at the product's files from outside.
fn bytes_in(dir: &std::path::Path) -> u64 {
    let files = std::fs::read_dir(dir).expect("a log").flatten();
    files.filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum()
}

//! Popping over a real three-node cluster on loopback, with our own client: consumers that crash with messages in their hands,
//! and two leaders that die. No message is lost, none is in two hands at once, and each that nobody can consume lies among the
//! dead letters exactly once. In order, a batch waits for the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use client::admin::Admin;
use client::{Client, Message, PopConsumer, PoppedMessage, Producer, SendError};
use embedded::Cluster;
use env::Env;
use parking_lot::Mutex;
use protocol::body::SubscriptionGroupConfig;
use tests::read::everything_in;
use tests::wait::{LOOK_AGAIN, until};

/// Longest wait for anything that must happen: many times what it takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(90);

const CONSUMERS: usize = 4;
const MESSAGES: usize = 400;
const SENDERS: usize = 8;
const LEASE: Duration = Duration::from_secs(3);

/// Deliveries after the first one, before a message is a dead letter.
const RETRIES: i32 = 5;

/// One in so many is a message that nobody can consume.
const POISON: usize = 20;

/// One pop in so many ends in a crash of its consumer.
const CRASH: usize = 8;

fn is_poison(number: usize) -> bool {
    number.is_multiple_of(POISON)
}

/// A lease as its holder knows it, by group time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    from_ms: i64,
    /// Nobody else may have the message before.
    until_ms: i64,
}

/// What became of one message.
#[derive(Debug, Default)]
struct Life {
    leases: Vec<Held>,
    /// When somebody was first told that it is done, by the clock that all of this test's machines have.
    done_ms: Option<i64>,
}

/// By place, because a send whose answer was lost may have stored a number twice.
#[derive(Default)]
struct Seen {
    lives: Mutex<BTreeMap<(i32, i64), (usize, Life)>>,
    pops: AtomicUsize,
    crashes: AtomicUsize,
}

fn held(message: &PoppedMessage) -> Held {
    let handle = message.handle();
    let mut fields = handle.split(' ').map(|field| field.parse::<i64>().ok());
    let (from_ms, lease_ms) = (fields.nth(1).flatten().expect("a pop time"), fields.next().flatten().expect("a lease"));
    Held { from_ms, until_ms: from_ms + lease_ms }
}

fn number_of(message: &PoppedMessage) -> usize {
    std::str::from_utf8(message.body()).ok().and_then(|body| body.parse().ok()).expect("a number")
}

impl Seen {
    fn life(&self, message: &PoppedMessage, change: impl FnOnce(&mut Life)) {
        let mut lives = self.lives.lock();
        let place = (message.queue().queue_id, message.queue_offset());
        change(&mut lives.entry(place).or_insert_with(|| (number_of(message), Life::default())).1);
    }

    fn acknowledged(&self) -> BTreeSet<usize> {
        let lives = self.lives.lock();
        lives.values().filter(|(_, life)| life.done_ms.is_some()).map(|(number, _)| *number).collect()
    }
}

async fn consumer_of(name_server: &str) -> (Client, PopConsumer) {
    let client = Client::builder().name_servers(name_server).build().expect("a client");
    let consumer = client.pop_consumer("workers").expect("a group").invisible_for(LEASE).max_messages(8);
    (client, consumer)
}

/// Consumes until it is told to stop. What it crashes with it never acknowledges.
async fn consume(name_server: String, seen: Arc<Seen>, stop: Arc<AtomicBool>) {
    let (mut client, mut consumer) = consumer_of(&name_server).await;
    while !stop.load(Ordering::Relaxed) {
        let Ok(messages) = consumer.pop("Jobs", Duration::from_millis(500)).await else { continue };
        for message in &messages {
            seen.life(message, |life| life.leases.push(held(message)));
        }
        if !messages.is_empty() && seen.pops.fetch_add(1, Ordering::Relaxed) % CRASH == CRASH - 1 {
            seen.crashes.fetch_add(1, Ordering::Relaxed);
            client.shutdown().await;
            (client, consumer) = consumer_of(&name_server).await;
            continue;
        }
        let (poison, good): (Vec<_>, Vec<_>) = messages.into_iter().partition(|message| is_poison(number_of(message)));
        for mut message in poison {
            let before = held(&message);
            let changed = consumer.change_invisible(&mut message, Duration::from_millis(50)).await;
            match changed {
                // Given back: from then on it is anybody's.
                Ok(true) => seen.life(&message, |life| {
                    let lease = life.leases.iter_mut().find(|lease| **lease == before).expect("it was written down");
                    lease.until_ms = lease.until_ms.min(held(&message).until_ms);
                }),
                // Nobody knows: it may have been given back at once.
                Ok(false) | Err(_) => seen.life(&message, |life| {
                    let lease = life.leases.iter_mut().find(|lease| **lease == before).expect("it was written down");
                    lease.until_ms = lease.from_ms;
                }),
            }
        }
        for message in good {
            // Asking again is always safe, and without an answer nobody knows.
            let acknowledged = loop {
                match consumer.ack(&message).await {
                    Ok(acknowledged) => break acknowledged,
                    Err(_) => Env::real().clock.sleep(LOOK_AGAIN).await,
                }
            };
            if acknowledged {
                // Perhaps somebody else's acknowledgement counts, who had it when this lease was over: it is done either way.
                let now_ms = Env::real().clock.wall_ms();
                seen.life(&message, |life| {
                    life.done_ms.get_or_insert(now_ms);
                });
            }
        }
    }
    client.shutdown().await;
}

/// Stores it at least once: where the answer was lost with the leader, it may be there twice.
async fn store(producer: &Producer, number: usize) {
    loop {
        match producer.send(Message::new("Jobs", number.to_string())).await {
            Ok(_) => return,
            Err(SendError::Unknown { .. } | SendError::NotStored { .. }) => {}
            Err(error) => panic!("{number}: {error}"),
        }
    }
}

/// Kills the leader, and starts it again when another leads: twice, each time when it is time.
async fn two_leaders_die(cluster: &mut Cluster, is_time: impl Fn(usize) -> bool) {
    for third in [1, 2] {
        until(PATIENCE, "enough has happened", async || is_time(third)).await;
        let leader = cluster.leader().await.expect("a leader");
        cluster.kill(leader).await;
        until(PATIENCE, "somebody else leads", async || cluster.leader().await.is_ok_and(|other| other != leader))
            .await;
        cluster.restart(leader).await.expect("the killed one starts again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_nothing_is_in_two_hands_and_dead_letters_are_one_each() {
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let admin = Admin::new(&Env::real(), vec![cluster.name_server().to_string()]);
    let leader = cluster.leader().await.expect("a leader");
    let group = SubscriptionGroupConfig { retry_max_times: RETRIES, ..SubscriptionGroupConfig::new("workers") };
    admin.put_group(&cluster.address(leader).to_string(), &group).await.expect("the group is made");
    admin.close().await;
    let client = cluster.client().build().expect("a client");
    let producer = client.producer("boss").start().expect("a producer");
    store(&producer, 1).await;

    let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
    let consumers: Vec<_> = (0..CONSUMERS)
        .map(|_| tokio::spawn(consume(cluster.name_server().to_string(), seen.clone(), stop.clone())))
        .collect();
    let sent = Arc::new(AtomicUsize::new(0));
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (sent, producer) = (sent.clone(), producer.clone());
            tokio::spawn(async move {
                for number in (1..=MESSAGES).filter(|number| number % SENDERS == sender) {
                    store(&producer, number).await;
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    two_leaders_die(&mut cluster, |third| sent.load(Ordering::Relaxed) >= third * MESSAGES / 3).await;
    for sender in senders {
        sender.await.expect("all are sent");
    }
    let good: BTreeSet<usize> = (1..=MESSAGES).filter(|number| !is_poison(*number)).collect();
    until(PATIENCE, "every message that can be consumed is", async || seen.acknowledged() == good).await;
    let stored = dead_letters_until_all_are_done(&client).await;
    stop.store(true, Ordering::Relaxed);
    for consumer in consumers {
        consumer.await.expect("a consumer");
    }

    assert!(seen.crashes.load(Ordering::Relaxed) >= CONSUMERS, "{:?} crashes", seen.crashes);
    let lives = std::mem::take(&mut *seen.lives.lock());
    for ((queue, offset), (number, mut life)) in lives {
        life.leases.sort();
        for pair in life.leases.windows(2) {
            assert!(
                pair[0].until_ms <= pair[1].from_ms,
                "number {number} at {queue}/{offset} was in two hands: {:?}",
                life.leases
            );
        }
        if let Some(done_ms) = life.done_ms {
            let last = life.leases.last().expect("who acknowledges it has it");
            assert!(last.from_ms <= done_ms, "number {number}, done at {done_ms}, came again: {:?}", life.leases);
        }
        assert!(life.leases.len() <= RETRIES as usize + 1, "number {number} came too often: {:?}", life.leases);
    }
    let poisoned: Vec<usize> = stored.values().copied().filter(|number| is_poison(*number)).collect();
    let distinct: BTreeSet<usize> = poisoned.iter().copied().collect();
    assert_eq!(distinct, (1..=MESSAGES).filter(|number| is_poison(*number)).collect(), "each ends there");
    client.shutdown().await;
    cluster.shutdown().await;
}

/// Waits until the group's offsets are at the ends of all queues: then every message is done.
async fn all_are_done(client: &Client, group: &str) {
    let reader = client.pull_consumer(group).expect("a consumer");
    let queues = reader.queues("Jobs").await.expect("queues");
    until(PATIENCE, "every message is done", async || {
        for queue in &queues {
            let (Ok(offset), Ok(end)) = (reader.committed(queue).await, reader.max_offset(queue).await) else {
                return false;
            };
            if offset.unwrap_or(0) < end {
                return false;
            }
        }
        true
    })
    .await;
}

/// When every message is done: the dead letters, by the id of the message that each was: one each, or this fails.
async fn dead_letters_until_all_are_done(client: &Client) -> BTreeMap<String, usize> {
    all_are_done(client, "workers").await;
    let mut dead = BTreeMap::new();
    for message in everything_in(client, "%DLQ%workers", PATIENCE).await {
        let number: usize =
            std::str::from_utf8(message.body()).ok().and_then(|body| body.parse().ok()).expect("a number");
        assert!(is_poison(number), "{number} could be consumed");
        assert_eq!(message.reconsume_times(), RETRIES + 1, "{number}");
        let origin = message.property("ORIGIN_MESSAGE_ID").expect("where it lay").to_owned();
        // The id names the replica that buried it as well; the place is its second half.
        let place = origin[origin.len() - 16..].to_owned();
        assert!(dead.insert(place, number).is_none(), "{number} lies there twice");
    }
    dead
}

/// A lease of an orderly pop, and when its holder began to say that it is done with the message.
#[derive(Clone, Copy, Debug)]
struct Turn {
    lease: Held,
    acknowledged_ms: Option<i64>,
}

type Turns = Arc<Mutex<BTreeMap<(i32, i64), Vec<Turn>>>>;

fn begin_to_acknowledge(turns: &Turns, place: (i32, i64), lease: Held) {
    let mut turns = turns.lock();
    let of_message = turns.get_mut(&place).expect("it was written down");
    let own = of_message.iter_mut().find(|turn| turn.lease == lease).expect("it was written down");
    own.acknowledged_ms = Some(Env::real().clock.wall_ms());
}

/// Pops in order until it is told to stop; one pop in so many ends in a crash.
async fn consume_in_order(name_server: String, turns: Turns, pops: Arc<AtomicUsize>, stop: Arc<AtomicBool>) {
    let started = || {
        let client = Client::builder().name_servers(name_server.as_str()).build().expect("a client");
        let consumer = client.pop_consumer("clerks").expect("a group").in_order().invisible_for(LEASE).max_messages(4);
        (client, consumer)
    };
    let (mut client, mut consumer) = started();
    let place = |message: &PoppedMessage| (message.queue().queue_id, message.queue_offset());
    while !stop.load(Ordering::Relaxed) {
        let Ok(messages) = consumer.pop("Jobs", Duration::from_millis(500)).await else { continue };
        for message in &messages {
            let turn = Turn { lease: held(message), acknowledged_ms: None };
            turns.lock().entry(place(message)).or_default().push(turn);
        }
        if !messages.is_empty() && pops.fetch_add(1, Ordering::Relaxed) % CRASH == CRASH - 1 {
            client.shutdown().await;
            (client, consumer) = started();
            continue;
        }
        for message in &messages {
            begin_to_acknowledge(&turns, place(message), held(message));
            while consumer.ack(message).await.is_err() {
                Env::real().clock.sleep(LOOK_AGAIN).await;
            }
        }
    }
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_order_no_batch_comes_before_the_one_before_it_is_done_or_over() {
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let client = cluster.client().build().expect("a client");
    let producer = client.producer("boss").start().expect("a producer");
    let (turns, stop, pops) = (Turns::default(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    for number in 1..=MESSAGES {
        store(&producer, number).await;
    }
    let consumers: Vec<_> = (0..CONSUMERS)
        .map(|_| {
            let name_server = cluster.name_server().to_string();
            tokio::spawn(consume_in_order(name_server, turns.clone(), pops.clone(), stop.clone()))
        })
        .collect();
    two_leaders_die(&mut cluster, |third| turns.lock().len() >= third * MESSAGES / 4).await;
    all_are_done(&client, "clerks").await;
    stop.store(true, Ordering::Relaxed);
    for consumer in consumers {
        consumer.await.expect("a consumer");
    }

    let turns = std::mem::take(&mut *turns.lock());
    assert!(turns.len() >= MESSAGES, "{} of {MESSAGES} have come", turns.len());
    let mut by_queue: BTreeMap<i32, Vec<(i64, Turn)>> = BTreeMap::new();
    for ((queue, offset), of_message) in turns {
        assert!(of_message.iter().any(|turn| turn.acknowledged_ms.is_some()), "{queue}/{offset} was never done");
        by_queue.entry(queue).or_default().extend(of_message.into_iter().map(|turn| (offset, turn)));
    }
    for (queue, mut turns) in by_queue {
        turns.sort_by_key(|(offset, turn)| (turn.lease.from_ms, *offset));
        let mut newest = -1;
        for (at, (offset, turn)) in turns.iter().enumerate() {
            assert!(*offset <= newest + 1, "queue {queue}: {offset} came before {}", newest + 1);
            newest = newest.max(*offset);
            for (earlier, before) in &turns[..at] {
                let is_free = before.lease.from_ms == turn.lease.from_ms
                    || before.lease.until_ms <= turn.lease.from_ms
                    || before.acknowledged_ms.is_some_and(|done| done <= turn.lease.from_ms);
                assert!(is_free, "queue {queue}: {offset} came, {turn:?}, and {earlier} was out, {before:?}");
            }
        }
    }
    client.shutdown().await;
    cluster.shutdown().await;
}

/// What could go wrong: workers that are started before the first job ask as fast as they can, and are told as fast that
/// there is no such topic, also by a route from before it was made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pop_waits_for_its_topic_as_it_does_for_messages() {
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = cluster.client().build().expect("a client");
    let consumer = client.pop_consumer("early").expect("a group");
    let clock = Env::real().clock;
    let began = clock.monotonic();
    let error = consumer.pop("Nobodys", Duration::from_secs(1)).await.expect_err("no such topic");
    assert!(clock.monotonic() - began >= Duration::from_secs(1), "{error} after {:?}", clock.monotonic() - began);
    assert!(error.to_string().contains("Nobodys"), "{error}");

    let producer = client.producer("early").timeout(PATIENCE).start().expect("a producer");
    let (popped, sent) = tokio::join!(consumer.pop("Jobs", PATIENCE), producer.send(Message::new("Jobs", "1")));
    sent.expect("it is stored");
    let popped = popped.expect("the topic is there by now");
    assert_eq!(popped.iter().map(number_of).collect::<Vec<_>>(), [1]);
    client.shutdown().await;
    cluster.shutdown().await;
}

//! Consumers against a scripted broker: who gets what, what comes again, and which offset is stored when.

mod scripted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use client::{Client, Message, MessageQueue, Producer, ReceivedMessage, Retry, StartError, StartFrom};
use env::Env;
use parking_lot::Mutex;
use protocol::body::ResetOffsetBody;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{GetConsumerRunningInfoRequest, ResetConsumerClientOffsetRequest};
use scripted::{Cluster, Running, client_of, until};

async fn send(producer: &Producer, topic: &str, count: usize) {
    let sends = (0..count).map(|n| producer.send(Message::new(topic, format!("{n}"))));
    futures::future::try_join_all(sends).await.unwrap();
}

fn producer_of(broker: &Running) -> (Client, Producer) {
    let client = client_of(broker).build().unwrap();
    let producer = client.producer("pg").start().unwrap();
    (client, producer)
}

fn queues(cluster: &Cluster, topic: &str, count: i32) -> BTreeMap<MessageQueue, usize> {
    let queues = (0..count).map(|id| MessageQueue::new(topic, "a", id));
    queues.map(|queue| (queue.clone(), cluster.bodies(&queue).len())).collect()
}

/// Bodies seen, with the number of times.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeMap<String, usize>>>);

impl Seen {
    fn note(&self, message: &ReceivedMessage) {
        let body = String::from_utf8(message.body().to_vec()).unwrap();
        *self.0.lock().entry(body).or_default() += 1;
    }

    fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// How many messages came, each counted as often as it came.
    fn total(&self) -> usize {
        self.0.lock().values().sum()
    }

    fn times(&self, body: &str) -> usize {
        self.0.lock().get(body).copied().unwrap_or(0)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_consumed_and_the_offsets_are_stored_at_the_end() {
    let cluster = Cluster::new(&[("T", 3)]);
    let broker = cluster.start("a").await;
    let (_sender, producer) = producer_of(&broker);
    send(&producer, "T", 500).await;
    let client = client_of(&broker).build().unwrap();
    let seen = Seen::default();
    let noting = seen.clone();
    let consumer = client
        .push_consumer("g")
        .subscribe("T", "*")
        .start_from(StartFrom::First)
        .start(move |message: Arc<ReceivedMessage>| {
            noting.note(&message);
            async { Ok(()) }
        })
        .await
        .unwrap();
    until("the first 500", || seen.len() == 500).await;
    assert_eq!(consumer.assigned().len(), 3);
    // New messages wake the parked pulls.
    producer.send(Message::new("T", "late")).await.unwrap();
    until("one more", || seen.times("late") == 1).await;
    consumer.shutdown().await;
    assert!(seen.0.lock().values().all(|times| *times == 1));
    for (queue, count) in queues(&cluster, "T", 3) {
        assert_eq!(cluster.offset("g", &queue), Some(count as i64), "{queue:?}");
    }
    assert!(cluster.left().iter().any(|left| left.consumer_group.as_deref() == Some("g")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_offset_waits_until_a_failed_message_was_given_back() {
    let cluster = Cluster::new(&[("T", 1)]);
    let broker = cluster.start("a").await;
    let (_sender, producer) = producer_of(&broker);
    cluster.refuse_give_backs(usize::MAX);
    send(&producer, "T", 10).await;
    let client = client_of(&broker).build().unwrap();
    let seen = Seen::default();
    let noting = seen.clone();
    let consumer = client
        .push_consumer("g")
        .subscribe("T", "*")
        .shutdown_timeout(Duration::from_millis(300))
        .start(move |message: Arc<ReceivedMessage>| {
            noting.note(&message);
            async move {
                match &message.body()[..] {
                    b"3" if message.reconsume_times() == 0 => Err(Retry::later("not yet")),
                    b"4" if message.reconsume_times() == 0 => panic!("this panic belongs to the test"),
                    _ => Ok(()),
                }
            }
        })
        .await
        .unwrap();
    until("all once", || seen.len() == 10).await;
    until("an attempt to give back", || cluster.calls(RequestCode::CONSUMER_SEND_MSG_BACK) > 0).await;
    consumer.shutdown().await;
    let queue = MessageQueue::new("T", "a", 0);
    assert_eq!(cluster.offset("g", &queue), Some(3), "3 and 4 are neither consumed nor given back");

    cluster.refuse_give_backs(2);
    let client = client_of(&broker).build().unwrap();
    let retried = Seen::default();
    let noting = retried.clone();
    let consumer = client
        .push_consumer("g")
        .subscribe("T", "*")
        .start(move |message: Arc<ReceivedMessage>| {
            let is_first = message.reconsume_times() == 0;
            let noting = noting.clone();
            async move {
                assert_eq!(message.topic(), "T", "a retried message shows its own topic");
                if !is_first {
                    noting.note(&message);
                }
                if is_first && message.body() == "3" { Err(Retry::at_level(1, "again")) } else { Ok(()) }
            }
        })
        .await
        .unwrap();
    until("3 by way of the retry topic", || retried.times("3") == 1).await;
    consumer.shutdown().await;
    assert_eq!(cluster.offset("g", &queue), Some(10));
    assert_eq!(cluster.offset("g", &MessageQueue::new("%RETRY%g", "a", 0)), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_the_queues_and_take_over_from_each_other() {
    let cluster = Cluster::new(&[("T", 4)]);
    let broker = cluster.start("a").await;
    let (_sender, producer) = producer_of(&broker);
    let seen = Seen::default();
    let start = async |id: &str| {
        let client = client_of(&broker).client_id(id).build().unwrap();
        let noting = seen.clone();
        let consumer = client
            .push_consumer("g")
            .subscribe("T", "*")
            .start(move |message: Arc<ReceivedMessage>| {
                noting.note(&message);
                async { Ok(()) }
            })
            .await
            .unwrap();
        (client, consumer)
    };
    let (first_client, first) = start("c1").await;
    until("all queues", || first.assigned().len() == 4).await;
    let same = first_client.push_consumer("g").subscribe("T", "*").start(async |_| Ok(())).await;
    assert!(matches!(same, Err(StartError::AlreadyMember(_))));
    let (_second_client, second) = start("c2").await;
    until("half of them each", || (first.assigned().len(), second.assigned().len()) == (2, 2)).await;
    let ids = |consumer: &client::PushConsumer| -> Vec<i32> {
        consumer.assigned().iter().map(|queue| queue.queue_id).collect()
    };
    assert_eq!((ids(&first), ids(&second)), (vec![0, 1], vec![2, 3]));
    send(&producer, "T", 100).await;
    until("all from both", || seen.len() == 100).await;
    first.shutdown().await;
    until("all queues again", || second.assigned().len() == 4).await;
    producer.send(Message::new("T", "last")).await.unwrap();
    until("the last", || seen.times("last") == 1).await;
    second.shutdown().await;
    assert!(seen.0.lock().values().all(|times| *times == 1), "nothing came twice: what ran was finished first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_queue_is_consumed_one_at_a_time_and_a_failure_holds_it_up() {
    let cluster = Cluster::new(&[("T", 2)]);
    let broker = cluster.start("a").await;
    let (_sender, producer) = producer_of(&broker);
    let queue = MessageQueue::new("T", "a", 0);
    // Somebody else holds the lock.
    cluster.lock("g", &queue, "another");
    for n in 0..20 {
        producer.send_to(Message::new("T", format!("{n}")), &queue).await.unwrap();
    }
    let client = client_of(&broker).client_id("me").build().unwrap();
    let order: Arc<Mutex<Vec<(String, i32)>>> = Arc::default();
    let running = Arc::new(AtomicUsize::new(0));
    let noting = (order.clone(), running.clone());
    let consumer = client
        .push_consumer("g")
        .subscribe("T", "*")
        .start_from(StartFrom::First)
        .orderly_pause(Duration::from_millis(20))
        .start_orderly(move |message: Arc<ReceivedMessage>| {
            let (order, running) = noting.clone();
            async move {
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                tokio::task::yield_now().await;
                let body = String::from_utf8(message.body().to_vec())?;
                order.lock().push((body.clone(), message.reconsume_times()));
                running.fetch_sub(1, Ordering::SeqCst);
                match body.as_str() {
                    "5" if message.reconsume_times() < 2 => Err(Retry::later("twice")),
                    "7" => Err(Retry::never("hopeless")),
                    _ => Ok(()),
                }
            }
        })
        .await
        .unwrap();
    until("the other queue's lock", || {
        cluster.lock_holder("g", &MessageQueue::new("T", "a", 1)).as_deref() == Some("me")
    })
    .await;
    assert!(order.lock().is_empty(), "nothing without the lock");
    cluster.unlock("g", &queue);
    until("all", || order.lock().len() == 22).await;
    consumer.shutdown().await;
    let mut expected: Vec<(String, i32)> = (0..20).map(|n| (n.to_string(), 0)).collect();
    expected.splice(6..6, [("5".to_owned(), 1), ("5".to_owned(), 2)]);
    assert_eq!(*order.lock(), expected);
    assert_eq!(cluster.offset("g", &queue), Some(20));
    assert_eq!(cluster.bodies(&MessageQueue::new("%DLQ%g", "a", 0)), ["7"]);
    until("the lock is given back", || cluster.lock_holder("g", &queue).is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_waits_for_handlers_but_not_for_ever() {
    let cluster = Cluster::new(&[("T", 1)]);
    let broker = cluster.start("a").await;
    let (_sender, producer) = producer_of(&broker);
    send(&producer, "T", 2).await;
    let client = client_of(&broker).build().unwrap();
    let (begun, may_end) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let shared = (begun.clone(), may_end.clone());
    let consumer = client
        .push_consumer("g")
        .subscribe("T", "*")
        .shutdown_timeout(Duration::from_millis(500))
        .start(move |message: Arc<ReceivedMessage>| {
            let (begun, may_end) = shared.clone();
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                if message.body() == "1" {
                    std::future::pending::<()>().await;
                }
                until("the end", || may_end.load(Ordering::SeqCst)).await;
                Ok(())
            }
        })
        .await
        .unwrap();
    until("both run", || begun.load(Ordering::SeqCst) == 2).await;
    let shutdown = tokio::spawn(consumer.shutdown());
    may_end.store(true, Ordering::SeqCst);
    shutdown.await.unwrap();
    let offset = cluster.offset("g", &MessageQueue::new("T", "a", 0));
    assert_eq!(offset, Some(1), "0 was finished during the shutdown, 1 never");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_outlive_a_change_of_leader() {
    let cluster = Cluster::new(&[("T", 2)]);
    let name_server = cluster.start("ns").await;
    let first = cluster.start("a").await;
    cluster.remove_master("ns");
    let (_sender, producer) = producer_of(&name_server);
    let (plain, orderly) = (Seen::default(), Seen::default());
    let client = client_of(&name_server).build().unwrap();
    let builder = |group: &str| client.push_consumer(group).subscribe("T", "*");
    let noting = plain.clone();
    let concurrent = builder("g").start(move |message: Arc<ReceivedMessage>| {
        noting.note(&message);
        async { Ok(()) }
    });
    let noting = orderly.clone();
    let ordered = builder("o").start_orderly(move |message: Arc<ReceivedMessage>| {
        noting.note(&message);
        async { Ok(()) }
    });
    let (concurrent, ordered) = (concurrent.await.unwrap(), ordered.await.unwrap());
    send(&producer, "T", 10).await;
    until("the first 10", || (plain.len(), orderly.len()) == (10, 10)).await;
    first.stop();
    let second = cluster.start("a").await;
    send(&producer, "T", 50).await;
    // 0 to 9 are sent twice, and the second time they may be the last to come: their first tries may meet the old leader.
    until("all", || (plain.total(), orderly.total()) == (60, 60)).await;
    until("members of the new leader", || cluster.members_at(&second) == 1).await;
    concurrent.shutdown().await;
    ordered.shutdown().await;
    for (queue, count) in queues(&cluster, "T", 2) {
        for group in ["g", "o"] {
            assert_eq!(cluster.offset(group, &queue), Some(count as i64), "{group} {queue:?}");
        }
    }
    assert!((0..50).all(|n| orderly.times(&n.to_string()) == if n < 10 { 2 } else { 1 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_pull_follows_the_leader_though_the_old_one_keeps_silent() {
    let cluster = Cluster::new(&[("T", 1)]);
    let name_server = cluster.start("ns").await;
    // Alive, and of another cluster: nothing that is sent below ever reaches it.
    let elsewhere = Cluster::new(&[("T", 1)]);
    let deposed = elsewhere.start("a").await;
    cluster.remove_master("ns");
    cluster.set_master("a", &deposed.address.to_string());
    let client = client_of(&name_server).build().unwrap();
    let seen = Seen::default();
    let noting = seen.clone();
    let consumer = client
        .push_consumer("g")
        .subscribe("T", "*")
        .start(move |message: Arc<ReceivedMessage>| {
            noting.note(&message);
            async { Ok(()) }
        })
        .await
        .unwrap();
    until("a parked pull", || elsewhere.calls(RequestCode::PULL_MESSAGE) > 0).await;
    let _leader = cluster.start("a").await;
    // A producer of the same client finds out first: the old leader refuses it.
    (0..1000).for_each(|_| elsewhere.afflict("a", scripted::Misfortune::Refuse(ResponseCode::SERVICE_NOT_AVAILABLE)));
    let begun = Env::real().clock;
    client.producer("pg").start().unwrap().send(Message::new("T", "x")).await.unwrap();
    until("the message", || seen.times("x") == 1).await;
    assert!(begun.monotonic() < Duration::from_secs(3), "sooner than a parked pull gives up");
    consumer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcasting_keeps_offsets_in_a_file() {
    let cluster = Cluster::new(&[("T", 2)]);
    let broker = cluster.start("a").await;
    let (_sender, producer) = producer_of(&broker);
    send(&producer, "T", 20).await;
    let disk = env::disk::simulated::SimDisk::new(env::Rng::seeded(1));
    let env = || Env { disk: Arc::new(disk.mount()), ..Env::real() };
    for round in 1..=2 {
        let client = client_of(&broker).env(env()).build().unwrap();
        let seen = Seen::default();
        let noting = seen.clone();
        let consumer = client
            .push_consumer("g")
            .subscribe("T", "*")
            .start_from(StartFrom::First)
            .broadcasting("/offsets")
            .start(move |message: Arc<ReceivedMessage>| {
                noting.note(&message);
                async { Err(Retry::later("ignored")) }
            })
            .await
            .unwrap();
        producer.send(Message::new("T", format!("round {round}"))).await.unwrap();
        let expected = if round == 1 { 21 } else { 1 };
        until("what is new", || seen.len() == expected).await;
        consumer.shutdown().await;
    }
    assert_eq!(cluster.calls(RequestCode::UPDATE_CONSUMER_OFFSET), 0);
    assert_eq!(cluster.calls(RequestCode::CONSUMER_SEND_MSG_BACK), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_can_reset_offsets_and_look_inside() {
    let cluster = Cluster::new(&[("T", 1)]);
    let broker = cluster.start("a").await;
    let (_sender, producer) = producer_of(&broker);
    send(&producer, "T", 10).await;
    let client = client_of(&broker).build().unwrap();
    let seen = Seen::default();
    let noting = seen.clone();
    let consumer = client
        .push_consumer("g")
        .subscribe("T", "*")
        .start(move |message: Arc<ReceivedMessage>| {
            noting.note(&message);
            async { Ok(()) }
        })
        .await
        .unwrap();
    until("all", || seen.len() == 10).await;
    let queue = MessageQueue::new("T", "a", 0);
    let header =
        ResetConsumerClientOffsetRequest { topic: "T".into(), group: "g".into(), timestamp: 0, is_force: true };
    let body = ResetOffsetBody { offset_table: [(queue.clone(), 6)].into() };
    let reset = RemotingCommand::request_with(RequestCode::RESET_CONSUMER_CLIENT_OFFSET, &header).with_json(&body);
    let [connection] = &cluster.member_connections()[..] else { panic!("one member") };
    connection.one_way(reset).unwrap();
    until("6 to 9 again", || (6..10).all(|n| seen.times(&n.to_string()) == 2)).await;
    assert_eq!(seen.times("5"), 1);

    let client_id = client.client_id().unwrap().to_owned();
    let header = GetConsumerRunningInfoRequest { consumer_group: "g".into(), client_id, ..Default::default() };
    let ask = RemotingCommand::request_with(RequestCode::GET_CONSUMER_RUNNING_INFO, &header);
    let answer = connection.call(ask, Duration::from_secs(5)).await.unwrap();
    let info: protocol::body::ConsumerRunningInfo = answer.json().unwrap();
    assert_eq!(info.properties["PROP_CONSUMEORDERLY"], "false");
    assert!(info.mq_table.contains_key(&queue));
    let unknown = RemotingCommand::request_with(
        RequestCode::GET_CONSUMER_RUNNING_INFO,
        &GetConsumerRunningInfoRequest { consumer_group: "h".into(), client_id: "x".into(), ..Default::default() },
    );
    let answer = connection.call(unknown, Duration::from_secs(5)).await.unwrap();
    assert_eq!(answer.response_code(), ResponseCode::SYSTEM_ERROR);
    consumer.shutdown().await;
    assert_eq!(cluster.offset("g", &queue), Some(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_consumer_goes_where_it_is_sent() {
    let cluster = Cluster::new(&[("T", 2)]);
    let broker = cluster.start("a").await;
    let (_sender, producer) = producer_of(&broker);
    send(&producer, "T", 100).await;
    let client = client_of(&broker).build().unwrap();
    let mut consumer = client.pull_consumer("g").unwrap();
    let queues = consumer.queues("T").await.unwrap();
    assert!(consumer.queues("Missing").await.is_err());
    consumer.assign(&queues, StartFrom::First).await.unwrap();
    let wait = Duration::from_secs(5);
    let mut polled = 0;
    while polled < 100 {
        polled += consumer.poll(wait).await.unwrap().len();
    }
    assert!(consumer.poll(Duration::from_millis(20)).await.unwrap().is_empty());
    assert_eq!(cluster.offset("g", &queues[0]), None, "nothing is stored unless the program says so");
    consumer.commit().await.unwrap();
    assert_eq!(consumer.committed(&queues[0]).await.unwrap(), Some(50));

    // A pull is parked at the end of both queues; a seek makes its answer void.
    assert!(consumer.seek(&queues[1], 48) && !consumer.seek(&MessageQueue::new("U", "a", 0), 0));
    let again = consumer.poll(wait).await.unwrap();
    assert_eq!(again.iter().map(ReceivedMessage::queue_offset).collect::<Vec<_>>(), [48, 49]);
    // Beyond the end it is put back to the end.
    consumer.seek(&queues[1], 1000);
    producer.send_to(Message::new("T", "new"), &queues[1]).await.unwrap();
    assert!(consumer.poll(Duration::from_millis(50)).await.unwrap().is_empty());
    assert_eq!(consumer.position(&queues[1]), Some(51));
    assert_eq!((consumer.min_offset(&queues[1]).await, consumer.max_offset(&queues[1]).await), (Ok(0), Ok(51)));

    consumer.assign(&queues[..1], StartFrom::First).await.unwrap();
    producer.send_to(Message::new("T", "not mine"), &queues[1]).await.unwrap();
    assert!(consumer.poll(Duration::from_millis(50)).await.unwrap().is_empty());
    broker.stop();
    producer.shutdown().await;
    let error = consumer.poll(Duration::from_millis(500)).await.unwrap_err();
    assert!(error.is_retry_safe());
}

//! Sends against a broker that fails as scripted: what is stored how often, and what the producer says about it.

mod scripted;

use std::collections::BTreeSet;
use std::time::Duration;

use client::{AfterUnknown, Client, InvalidMessage, Message, MessageQueue, RouteError, SendError};
use protocol::code::{RequestCode, ResponseCode};
use scripted::{Cluster, Misfortune, client_of};

const SOON: Duration = Duration::from_millis(200);

#[tokio::test]
async fn sends_go_round_the_queues_and_come_back_with_their_place() {
    let cluster = Cluster::new(&[("T", 4)]);
    let broker = cluster.start("a").await;
    for binary in [false, true] {
        let client = client_of(&broker).connections_per_broker(3).binary_headers(binary).build().unwrap();
        let producer = client.producer("pg").start().unwrap();
        let sends = (0..400).map(|n| producer.send(Message::new("T", format!("{n}"))));
        let receipts = futures::future::try_join_all(sends).await.unwrap();
        let keys: BTreeSet<&str> = receipts.iter().map(|receipt| receipt.unique_key.as_str()).collect();
        assert_eq!(keys.len(), 400);
        let places: BTreeSet<(i32, i64)> =
            receipts.iter().map(|receipt| (receipt.queue.queue_id, receipt.queue_offset)).collect();
        assert_eq!(places.len(), 400);
        for queue_id in 0..4 {
            assert_eq!(receipts.iter().filter(|receipt| receipt.queue.queue_id == queue_id).count(), 100);
        }
        producer.shutdown().await;
        client.shutdown().await;
    }
    assert!(cluster.sends().iter().all(|send| send.is_marked && !send.header.batch));
    assert_eq!(cluster.left().len(), 2, "each client has said that it leaves its group");
}

#[tokio::test]
async fn a_lost_answer_is_retried_under_the_same_key_and_stored_once() {
    let cluster = Cluster::new(&[("T", 1)]);
    let broker = cluster.start("a").await;
    let client = client_of(&broker).build().unwrap();
    let producer = client.producer("pg").attempt_timeout(SOON).start().unwrap();
    cluster.afflict("a", Misfortune::StoreSilently);
    cluster.afflict("a", Misfortune::Lose);
    let receipt = producer.send(Message::new("T", "once")).await.unwrap();
    assert_eq!((receipt.attempts, receipt.queue_offset, cluster.stored()), (3, 0, 1));
    assert!(receipt.duplicate, "the first attempt has stored it");
    let sends = cluster.sends();
    assert!(sends.iter().all(|send| send.is_marked && send.unique_key == receipt.unique_key));
}

#[tokio::test]
async fn an_unknown_outcome_stays_in_its_group_and_a_refusal_does_not() {
    let cluster = Cluster::new(&[("T", 1)]);
    let (broker, _other) = (cluster.start("a").await, cluster.start("b").await);
    let client = client_of(&broker).build().unwrap();
    let queue = MessageQueue::new("T", "a", 0);
    let producer = client.producer("pg").attempt_timeout(SOON).start().unwrap();
    cluster.afflict("a", Misfortune::StoreSilently);
    let receipt = producer.send(Message::new("T", "x")).await.unwrap();
    assert_eq!((receipt.queue.broker_name.as_str(), cluster.bodies(&queue).len()), ("a", 1));
    for code in [ResponseCode::SERVICE_NOT_AVAILABLE, ResponseCode::SYSTEM_BUSY, ResponseCode::NO_PERMISSION] {
        cluster.afflict("a", Misfortune::Refuse(code));
        // A new producer begins with group a, which an older one avoids for a while.
        let receipt = client.producer("pg").start().unwrap().send(Message::new("T", "y")).await.unwrap();
        assert_eq!((receipt.queue.broker_name.as_str(), receipt.attempts), ("b", 2), "{code}");
    }
    let anywhere = client.producer("pg").attempt_timeout(SOON).after_unknown(AfterUnknown::AnyBroker).start().unwrap();
    cluster.afflict("a", Misfortune::Lose);
    cluster.afflict("b", Misfortune::Lose);
    assert!(anywhere.send(Message::new("T", "z")).await.is_ok());
}

#[tokio::test]
async fn errors_tell_what_may_have_happened() {
    let cluster = Cluster::new(&[("T", 1)]);
    let broker = cluster.start("a").await;
    let client = client_of(&broker).build().unwrap();
    let careful = client
        .producer("pg")
        .attempt_timeout(SOON)
        .timeout(Duration::from_secs(1))
        .after_unknown(AfterUnknown::GiveUp)
        .start()
        .unwrap();
    cluster.afflict("a", Misfortune::StoreSilently);
    let error = careful.send(Message::new("T", "perhaps")).await.unwrap_err();
    let SendError::Unknown { unique_key, .. } = &error else { panic!("{error:?}") };
    assert!(!error.is_retry_safe());
    // The program sends it again under its key: the broker knows it.
    let again = Message::new("T", "perhaps").with_unique_key(unique_key).unwrap();
    let receipt = careful.send(again).await.unwrap();
    assert_eq!((&receipt.unique_key, cluster.stored()), (unique_key, 1));

    cluster.afflict("a", Misfortune::Refuse(ResponseCode::MESSAGE_ILLEGAL));
    let error = careful.send(Message::new("T", "bad")).await.unwrap_err();
    assert!(matches!(error, SendError::Refused { code: ResponseCode::MESSAGE_ILLEGAL, .. }) && error.is_retry_safe());

    (0..100).for_each(|_| cluster.afflict("a", Misfortune::Refuse(ResponseCode::SYSTEM_BUSY)));
    let error = careful.send(Message::new("T", "busy")).await.unwrap_err();
    assert!(matches!(error, SendError::NotStored { .. }), "{error:?}");
    assert!(cluster.sends().len() < 30, "pauses grow");
}

#[tokio::test]
async fn what_no_broker_would_take_is_not_sent() {
    let cluster = Cluster::new(&[("T", 1)]);
    let broker = cluster.start("a").await;
    let client = client_of(&broker).build().unwrap();
    let producer = client.producer("pg").timeout(Duration::from_secs(1)).start().unwrap();
    let invalid = |result: Result<_, SendError>| matches!(result, Err(SendError::Invalid(_)));
    assert!(invalid(producer.send(Message::new("no.such", "x")).await.map(drop)));
    assert!(invalid(producer.send(Message::new("SCHEDULE_TOPIC_XXXX", "x")).await.map(drop)));
    assert!(invalid(producer.send(Message::new("T", vec![0; 5 << 20])).await.map(drop)));
    let mixed = [Message::new("T", "x"), Message::new("U", "x")];
    assert!(invalid(producer.send_all(&mixed).await.map(drop)));
    let delayed = [Message::new("T", "x").with_delay_level(1)];
    let error = producer.send_all(&delayed).await.unwrap_err();
    assert_eq!(error, SendError::Invalid(InvalidMessage::Batch("one of them is delayed")));
    let missing = producer.send(Message::new("Missing", "x")).await.unwrap_err();
    assert!(matches!(missing, SendError::Refused { code: ResponseCode::TOPIC_NOT_EXIST, .. }), "{missing:?}");
    assert_eq!(producer.queues("Missing").await, Err(RouteError::TopicNotFound("Missing".into())));
    assert!(cluster.sends().is_empty());
}

#[tokio::test]
async fn batches_keys_and_queues() {
    let cluster = Cluster::new(&[("T", 4)]);
    let broker = cluster.start("a").await;
    let client = client_of(&broker).build().unwrap();
    let producer = client.producer("pg").start().unwrap();
    let batch: Vec<Message> = (0..3).map(|n| Message::new("T", format!("{n}")).with_tag("t")).collect();
    let receipts = producer.send_all(&batch).await.unwrap();
    assert_eq!(receipts.iter().map(|receipt| receipt.queue_offset).collect::<Vec<_>>(), [0, 1, 2]);
    let ids: BTreeSet<&str> = receipts.iter().map(|receipt| receipt.offset_message_id.as_str()).collect();
    assert_eq!((ids.len(), cluster.bodies(&receipts[0].queue).len()), (3, 3));
    assert!(producer.send_all(&[]).await.unwrap().is_empty());
    let seen = cluster.sends();
    assert_eq!((seen[0].header.batch, &seen[0].unique_key), (true, &receipts[0].unique_key));

    let queue_of = |key: &'static str| {
        let producer = producer.clone();
        async move { producer.send_by_key(Message::new("T", "k"), key).await.unwrap().queue.queue_id }
    };
    // "Aa".hashCode() is 2112 as in Java, and so is that of "BB".
    assert_eq!((queue_of("Aa").await, queue_of("BB").await, queue_of("B").await), (0, 0, 2));
    let sharded = producer.send(Message::new("T", "s").with_sharding_key("B")).await.unwrap();
    assert_eq!(sharded.queue.queue_id, 2);
    let given = MessageQueue::new("T", "a", 3);
    assert_eq!(*producer.send_to(Message::new("T", "q"), &given).await.unwrap().queue, given);

    let before = cluster.stored();
    producer.send_one_way(Message::new("T", "gone")).await.unwrap();
    scripted::until("the one-way message is stored", || cluster.stored() == before + 1).await;
}

#[tokio::test]
async fn a_topic_is_created_by_sending_to_its_template() {
    let cluster = Cluster::new(&[("TBW102", 8)]);
    let broker = cluster.start("a").await;
    let client = client_of(&broker).build().unwrap();
    let producer = client.producer("pg").start().unwrap();
    let receipt = producer.send(Message::new("New", "x")).await.unwrap();
    assert_eq!(receipt.queue.topic, "New");
    assert_eq!(producer.queues("New").await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_change_of_leader_is_outlived() {
    let cluster = Cluster::new(&[("T", 1)]);
    let name_server = cluster.start("ns").await;
    let first = cluster.start("a").await;
    // Only group a takes messages.
    cluster.set_master("ns", &first.address.to_string());
    let client = client_of(&name_server).build().unwrap();
    let producer = client.producer("pg").start().unwrap();
    producer.send(Message::new("T", "before")).await.unwrap();
    first.stop();
    let sending = tokio::spawn({
        let producer = producer.clone();
        async move { futures::future::join_all((0..100).map(|n| producer.send(Message::new("T", format!("{n}"))))).await }
    });
    // The route still names the dead leader for a while.
    env::Env::real().clock.sleep(Duration::from_millis(300)).await;
    let second = cluster.start("a").await;
    cluster.set_master("ns", &second.address.to_string());
    let sent = sending.await.unwrap();
    assert!(sent.iter().all(Result::is_ok), "{:?}", sent.iter().find(|result| result.is_err()));
    assert!(cluster.calls(RequestCode::GET_ROUTEINFO_BY_TOPIC) < 100, "a hundred failing sends share their questions");
}

/// A leader that its peers have replaced and that clients still reach keeps silent; the route has had its successor all the
/// time. Who has no time left for a second attempt must not send the next message there, too.
#[tokio::test]
async fn after_a_send_without_an_answer_the_next_one_goes_where_the_route_says_now() {
    let cluster = Cluster::new(&[("T", 1)]);
    let name_server = cluster.start("ns").await;
    let elsewhere = Cluster::new(&[("T", 1)]);
    let deposed = elsewhere.start("a").await;
    cluster.set_master("ns", &deposed.address.to_string());
    let client = client_of(&name_server).build().unwrap();
    let producer = client.producer("pg").timeout(Duration::from_millis(300)).after_unknown(AfterUnknown::GiveUp);
    let producer = producer.start().unwrap();
    producer.send(Message::new("T", "to the one that led")).await.unwrap();
    let leader = cluster.start("a").await;
    cluster.set_master("ns", &leader.address.to_string());
    elsewhere.afflict("a", Misfortune::Lose);
    let error = producer.send(Message::new("T", "lost")).await.unwrap_err();
    assert!(matches!(error, SendError::Unknown { .. }), "{error:?}");
    producer.send(Message::new("T", "to the one that leads")).await.unwrap();
    assert_eq!((elsewhere.stored(), cluster.stored()), (1, 1));
}

#[tokio::test]
async fn nobody_to_ask_is_not_stored() {
    let client = Client::builder().name_servers("127.0.0.1:1").build().unwrap();
    let producer = client.producer("pg").timeout(Duration::from_millis(300)).start().unwrap();
    let error = producer.send(Message::new("T", "x")).await.unwrap_err();
    assert!(matches!(error, SendError::NotStored { .. }) && error.is_retry_safe(), "{error:?}");
}

//! Idempotent send: a message that is sent again under its unique key is stored once, however its copies come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use env::Env;
use protocol::batch::{self, InnerMessage};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{
    CreateTopicRequest, DUPLICATE, EndTransactionRequest, IDEMPOTENT, PullMessageRequest, SendMessageRequest,
    SendMessageRequestV2, SendMessageResponse,
};
use protocol::message_id::MessageId;

use crate::three::Three;
use crate::world::*;

/// A send whose producer says that its keys are its messages' own.
fn marked(request: SendMessageRequest, body: impl Into<bytes::Bytes>) -> RemotingCommand {
    RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &SendMessageRequestV2(request))
        .with_body(body)
        .with_field(IDEMPOTENT, true)
}

/// Where it is stored, and whether it was before.
type Place = (Option<i32>, Option<i64>, Option<String>, bool);

impl Wire {
    async fn place(&self, request: RemotingCommand) -> Place {
        let answer = self.call(request).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
        let place: SendMessageResponse = answer.header().expect("a header");
        (place.queue_id, place.queue_offset, place.msg_id, answer.ext.bool(DUPLICATE) == Some(true))
    }

    /// Sends `body` to queue 0 under `key`, marked, with these properties.
    async fn once(&self, topic: &str, body: &'static str, key: &str, properties: &[(&str, &str)]) -> Place {
        let properties = [&[("UNIQ_KEY", key)], properties].concat();
        self.place(marked(send_request(topic, &properties), body)).await
    }
}

fn again((queue, offset, id, _): Place) -> Place {
    (queue, offset, id, true)
}

async fn make_topic(wire: &Wire, topic: &str, attributes: &str) {
    let header = CreateTopicRequest {
        topic: topic.to_owned(),
        read_queue_nums: 4,
        write_queue_nums: 4,
        perm: 6,
        attributes: Some(attributes.to_owned()),
        ..CreateTopicRequest::default()
    };
    let request = RemotingCommand::request_with(RequestCode::UPDATE_AND_CREATE_TOPIC, &header);
    assert_eq!(wire.call(request).await.code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_answered_with_the_place_of_the_first_wherever_it_was_to_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = broker_config(group_config(dir.path()), vec![]);
    let broker = start(config.clone()).await;
    let wire = Wire::to(&broker.groups()[0]);
    make_topic(&wire, "T", "").await;

    let first = wire.once("T", "a", "K1", &[]).await;
    assert_eq!((first.0, first.1, first.3), (Some(0), Some(0), false));
    assert_eq!(wire.once("T", "a", "K1", &[]).await, again(first.clone()));
    let elsewhere = SendMessageRequest { queue_id: 3, ..send_request("T", &[("UNIQ_KEY", "K1")]) };
    assert_eq!(wire.place(marked(elsewhere, "a")).await, again(first.clone()), "a client tries another queue");
    assert_eq!(wire.once("T", "b", "K2", &[]).await.1, Some(1));
    assert_eq!(wire.once("Other", "a", "K1", &[]).await.1, Some(0), "a key is its topic's");

    // Many copies at once, some of which will be in one entry, or would be.
    let copies = futures::future::join_all((0..64).map(|_| wire.once("T", "c", "K3", &[]))).await;
    assert_eq!(copies.iter().filter(|copy| !copy.3).count(), 1);
    assert!(copies.iter().all(|copy| again(copy.clone()) == again(copies[0].clone())), "{copies:?}");

    // What nobody says to be a copy is none; nor what has no key.
    wire.sent("T", "d", &[("UNIQ_KEY", "K1")]).await;
    for _ in 0..2 {
        assert!(!wire.place(marked(send_request("T", &[]), "e")).await.3);
    }
    assert_eq!(wire.pull(pull_request("T", 0)).await.bodies(), ["a", "b", "c", "d", "e", "e"]);

    // Another process of the broker knows what this one knew, by its index and by its log.
    broker.stop().await.expect("it stops");
    let broker = start(config).await;
    let wire = Wire::to(&broker.groups()[0]);
    assert_eq!(wire.once("T", "a", "K1", &[]).await, again(first));
    let last = wire.once("T", "f", "K4", &[]).await;
    assert_eq!((last.1, last.3), (Some(6), false));
    broker.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_or_the_configuration_switches_it_on_for_clients_that_do_not_know_of_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = group_config(dir.path());
    group.messages.idempotent_send = true;
    let broker = start(broker_config(group, vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    make_topic(&wire, "Off", "+idempotent.send=false").await;
    make_topic(&wire, "On", "+idempotent.send=true").await;
    let bad = CreateTopicRequest {
        topic: "Bad".to_owned(),
        read_queue_nums: 1,
        write_queue_nums: 1,
        perm: 6,
        attributes: Some("+idempotent.send=yes".to_owned()),
        ..CreateTopicRequest::default()
    };
    let refused = wire.call(RemotingCommand::request_with(RequestCode::UPDATE_AND_CREATE_TOPIC, &bad)).await;
    assert_ne!(refused.code, 0, "what it may say is true or false");
    for (topic, count) in [("On", 1), ("Off", 2), ("ByDefault", 1)] {
        for _ in 0..2 {
            wire.sent(topic, "a", &[("UNIQ_KEY", "K")]).await;
        }
        assert_eq!(wire.max_offset(topic).await, count, "{topic}");
    }
    // A consumer's client sends a message back under the key it came with, once for each try.
    for reconsume_times in 1..3 {
        let request = SendMessageRequest {
            reconsume_times: Some(reconsume_times),
            ..send_request("%RETRY%g", &[("UNIQ_KEY", "K"), ("DELAY", "1")])
        };
        assert!(!wire.place(marked(request, "a")).await.3);
    }
    broker.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_waits_is_recognised_and_for_the_window_after_it_is_visible() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = group_config(dir.path());
    group.messages.idempotent_window = Duration::from_secs(2);
    let broker = start(broker_config(group, vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);

    let delayed = wire.once("T", "late", "K1", &[("TIMER_DELAY_MS", "1500")]).await;
    let clock = Env::real().clock;
    clock.sleep(Duration::from_millis(800)).await;
    assert_eq!(wire.once("T", "late", "K1", &[("TIMER_DELAY_MS", "1500")]).await, again(delayed.clone()));
    assert_eq!(wire.pull(parked(pull_request("T", 0))).await.bodies(), ["late"]);
    assert_eq!(wire.once("T", "late", "K1", &[]).await, again(delayed), "it has just become visible, at 0");
    let forgotten = async || !wire.once("T", "late", "K1", &[]).await.3;
    until("the window ends", forgotten).await;

    let half = wire.once("Tx", "half", "H", &[("TRAN_MSG", "true"), ("PGROUP", "pg")]).await;
    let offset = half.2.as_deref().expect("an id").parse::<MessageId>().expect("an id").physical_offset;
    assert_eq!(half.1, Some(offset), "its name from then on");
    assert_eq!(wire.once("Tx", "half", "H", &[("TRAN_MSG", "true"), ("PGROUP", "pg")]).await, again(half));
    let commit = EndTransactionRequest {
        producer_group: "pg".to_owned(),
        tran_state_table_offset: offset,
        commit_log_offset: offset,
        commit_or_rollback: 8,
        msg_id: Some("H".to_owned()),
        ..EndTransactionRequest::default()
    };
    assert_eq!(wire.call(RemotingCommand::request_with(RequestCode::END_TRANSACTION, &commit)).await.code, 0);
    let (queue, place, _, is_repeat) = wire.once("Tx", "half", "H", &[("TRAN_MSG", "true"), ("PGROUP", "pg")]).await;
    assert_eq!((queue, place, is_repeat), (Some(0), Some(0), true), "committed");
    assert_eq!(broker.groups()[0].raft().reader().pending().half, 0);
    broker.kill().await;
}

fn batch_of(keys: &[&str]) -> RemotingCommand {
    let mut body = BytesMut::new();
    for key in keys {
        let properties = encoded(&[("UNIQ_KEY", key)]);
        let inner = InnerMessage { flag: 0, body: key.as_bytes(), properties: &properties };
        batch::encode(&inner, &mut body).expect("it fits");
    }
    marked(SendMessageRequest { batch: true, ..send_request("B", &[]) }, body.freeze())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_batch_what_is_new_is_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = start(broker_config(group_config(dir.path()), vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    let first = wire.place(batch_of(&["1", "2", "3"])).await;
    assert_eq!((first.1, first.3), (Some(0), false));
    assert_eq!(wire.place(batch_of(&["1", "2", "3"])).await, again(first.clone()));
    let ids =
        |place: &Place| -> Vec<String> { place.2.as_deref().unwrap_or("").split(',').map(str::to_owned).collect() };
    let mixed = wire.place(batch_of(&["2", "4", "4", "1"])).await;
    assert_eq!((mixed.1, mixed.3), (Some(1), false), "it has a new one, once");
    let (first, mixed) = (ids(&first), ids(&mixed));
    assert_eq!((&mixed[0], &mixed[3], &mixed[1]), (&first[1], &first[0], &mixed[2]));
    assert_eq!(wire.pull(pull_request("B", 0)).await.bodies(), ["1", "2", "3", "4"]);
    broker.kill().await;
}

/// Copies of forty messages come to all replicas while the leader dies: whatever became of those in flight, each is there
/// once in the end, and its copies have been told the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_on_both_sides_of_a_killed_leader_are_one_message() {
    let three = Three::start(vec![]).await;
    let leader = three.leader().await;
    for at in 0..3 {
        until("they know", async || three.group(at).status().is_ready).await;
    }
    let wires: Vec<Wire> = (0..3).map(|at| Wire::to(three.group(at))).collect();
    wires[leader].sent("T", "makes the topic", &[]).await;
    let keys: Vec<String> = (0..40).map(|number| format!("K{number}")).collect();
    let request = |key: &str| marked(send_request("T", &[("UNIQ_KEY", key)]), key.to_owned());
    // Some answers come, and others never will.
    let before: Vec<_> = keys
        .iter()
        .flat_map(|key| wires.iter().map(move |wire| (key, wire)))
        .map(|(key, wire)| {
            let (client, address, request) = (wire.client.clone(), wire.address.clone(), request(key));
            tokio::spawn(async move { client.call(&address, request, Duration::from_secs(4)).await })
        })
        .collect();
    three.brokers[leader].kill().await;
    let other = (leader + 1) % 3;
    let mut told = std::collections::BTreeMap::new();
    for key in &keys {
        let placed = async || {
            let answer = wires[other].try_call(request(key)).await.ok().filter(|answer| answer.code == 0)?;
            answer.header::<SendMessageResponse>().ok()?.queue_offset
        };
        let place = loop {
            if let Some(place) = placed().await {
                break place;
            }
        };
        told.insert(key.clone(), place);
    }
    for (asked, key) in before.into_iter().zip(keys.iter().flat_map(|key| [key; 3])) {
        let Ok(Ok(answer)) = asked.await else { continue };
        if answer.code == 0 {
            let place = answer.header::<SendMessageResponse>().expect("a header").queue_offset;
            assert_eq!(place, Some(told[key]), "{key}");
        }
    }
    let pulled = wires[other].pull(PullMessageRequest { max_msg_nums: 200, ..pull_request("T", 0) }).await;
    let mut bodies = pulled.bodies();
    bodies.sort_unstable();
    let mut expected: Vec<&str> = keys.iter().map(String::as_str).chain(["makes the topic"]).collect();
    expected.sort_unstable();
    assert_eq!(bodies, expected);
}

/// A follower passes messages on while the leader dies, and has no answer for some: with keys of their own they are carried
/// out by the next leader, each once, and nobody who sent one hears anything of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_passed_on_to_a_leader_that_dies_is_carried_out_by_the_next() {
    const SENDERS: usize = 16;
    const BEFORE: usize = 100;
    let patience = Duration::from_secs(30);
    let three = Three::start_with(vec![Env::real(); 3], vec![], |group| {
        (group.limits.leader_wait, group.limits.send_deadline) = (patience, patience);
    })
    .await;
    let leader = three.leader().await;
    let other = (leader + 1) % 3;
    until("it knows", async || three.group(other).status().is_ready).await;
    let wire = Wire::to(three.group(other));
    wire.sent("T", "makes the topic", &[]).await;
    let (stored, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (client, address) = (wire.client.clone(), wire.address.clone());
            let (stored, stop) = (stored.clone(), stop.clone());
            tokio::spawn(async move {
                let mut sent = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("{sender}-{}", sent.len());
                    let request = marked(send_request("T", &[("UNIQ_KEY", &key)]), key.clone());
                    let answer = client.call(&address, request, patience).await.expect("an answer");
                    assert_eq!(answer.code, 0, "{key}: {}", answer.remark_text());
                    sent.push(key);
                    stored.fetch_add(1, Ordering::Relaxed);
                }
                sent
            })
        })
        .collect();
    let stored = || stored.load(Ordering::Relaxed);
    until("messages are taken", async || stored() >= BEFORE).await;
    three.brokers[leader].kill().await;
    let at_the_kill = stored();
    until("they are again", async || stored() >= at_the_kill + BEFORE).await;
    stop.store(true, Ordering::Relaxed);
    let mut expected = vec!["makes the topic".to_owned()];
    for sender in senders {
        expected.extend(sender.await.expect("every message was stored"));
    }
    let mut bodies = Vec::new();
    while bodies.len() < expected.len() {
        let request = PullMessageRequest { max_msg_nums: 1000, ..pull_request("T", bodies.len() as i64) };
        bodies.extend(wire.pull(request).await.bodies().into_iter().map(str::to_owned));
    }
    assert_eq!(wire.max_offset("T").await, expected.len() as i64, "each once");
    bodies.sort_unstable();
    expected.sort_unstable();
    assert_eq!(bodies, expected);
}

//! Consumer offsets over a real three-node cluster on loopback, with our own consumers, while leaders come and go: what was
//! stored is not consumed again, and a group that is moved goes where it was moved to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::admin::Admin;
use client::{Client, Message, MessageQueue, Producer, PushConsumer, ReceivedMessage, StartFrom};
use embedded::Cluster;
use env::Env;
use parking_lot::Mutex;
use tests::read::reader_of;
use tests::wait::until;

const PATIENCE: Duration = Duration::from_secs(60);
const TOPIC: &str = "Quiet";
const GROUP: &str = "readers";
/// Changes of leader.
const CHANGES: usize = 10;
/// Messages between two of them.
const EACH: usize = 8;

/// What was consumed: how often, by queue and offset.
type Consumed = Arc<Mutex<BTreeMap<(i32, i64), usize>>>;

async fn member(cluster: &Cluster, consumed: &Consumed) -> (Client, PushConsumer) {
    let client = cluster.client().build().expect("a client");
    let noted = consumed.clone();
    let note = move |message: Arc<ReceivedMessage>| {
        *noted.lock().entry((message.queue().queue_id, message.queue_offset())).or_default() += 1;
        async { Ok(()) }
    };
    let consumer = client.push_consumer(GROUP).subscribe(TOPIC, "*").start_from(StartFrom::First).start(note).await;
    (client, consumer.expect("a consumer"))
}

async fn send(producer: &Producer, count: usize) {
    for _ in 0..count {
        producer.send(Message::new(TOPIC, "m")).await.expect("it is sent, once");
    }
}

/// Another replica leads: the one that did is killed, or told to hand over, in turns. The killed one is back in the end.
async fn change_leader(cluster: &mut Cluster, admin: &Admin, round: usize) {
    let leader = cluster.leader().await.expect("a leader");
    if round.is_multiple_of(2) {
        cluster.kill(leader).await;
        assert_ne!(cluster.leader().await.expect("another leader"), leader);
        cluster.restart(leader).await.expect("it starts again");
        return;
    }
    let status = cluster.broker(leader).expect("it lives").groups()[0].status().raft;
    let other = status.voters.iter().copied().find(|node| *node != status.node).expect("three vote");
    let address = cluster.address(leader).to_string();
    until(PATIENCE, "leadership is handed over", async || {
        admin.transfer_leader(&address, other).await.is_ok() && cluster.leader().await.ok() != Some(leader)
    })
    .await;
}

/// Consumers run on through ten changes of leader in a quiet log: what a consumer has stored, and was acknowledged, is not
/// consumed again by it, nor by a program that knows nothing but what the cluster knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_consumed_again_through_ten_changes_of_leader() {
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let admin = Admin::new(&Env::real(), vec![cluster.name_server().to_string()]);
    let client = cluster.client().build().expect("a client");
    let producer = client.producer("pg").timeout(PATIENCE).start().expect("a producer");
    send(&producer, EACH).await;
    let mut sent = EACH;
    let consumed = Consumed::default();
    let (pushed_client, pushed) = member(&cluster, &consumed).await;
    let (mut pulling, queues) = reader_of(&client, "pullers", TOPIC, PATIENCE).await;
    let mut pulled: BTreeMap<(i32, i64), usize> = BTreeMap::new();
    for round in 0..=CHANGES {
        until(PATIENCE, "all are pulled", async || {
            for message in pulling.poll(Duration::from_millis(200)).await.unwrap_or_default() {
                *pulled.entry((message.queue().queue_id, message.queue_offset())).or_default() += 1;
            }
            pulled.len() == sent
        })
        .await;
        until(PATIENCE, "that is acknowledged", async || pulling.commit().await.is_ok()).await;
        if round == CHANGES {
            break;
        }
        change_leader(&mut cluster, &admin, round).await;
        let other = cluster.client().build().expect("a client");
        let mut fresh = other.pull_consumer("pullers").expect("a consumer");
        until(PATIENCE, "the group can be asked again", async || fresh.assign(&queues, StartFrom::First).await.is_ok())
            .await;
        for queue in &queues {
            assert_eq!(fresh.position(queue), pulling.position(queue), "round {round}: {queue:?}");
        }
        other.shutdown().await;
        send(&producer, EACH).await;
        sent += EACH;
    }
    until(PATIENCE, "all are consumed", async || consumed.lock().len() == sent).await;
    for (who, times) in [("pulled", &pulled), ("consumed", &*consumed.lock())] {
        let again: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        assert!(again.is_empty(), "{who} again: {again:?}");
    }
    pushed.shutdown().await;
    pushed_client.shutdown().await;
    admin.close().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

/// An operator moves a group while it consumes, and the leader dies right behind that: everything is consumed again, from
/// where the group was moved to, and nothing is left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_group_goes_where_it_is_moved_across_a_killed_leader() {
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let admin = Admin::new(&Env::real(), vec![cluster.name_server().to_string()]);
    let client = cluster.client().build().expect("a client");
    let producer = client.producer("pg").timeout(PATIENCE).start().expect("a producer");
    let consumed = Consumed::default();
    send(&producer, 4 * EACH).await;
    let (running_client, running) = member(&cluster, &consumed).await;
    until(PATIENCE, "all are consumed", async || consumed.lock().len() == 4 * EACH).await;

    let leader = cluster.leader().await.expect("a leader");
    let address = cluster.address(leader).to_string();
    let moved = admin.reset_offset(&address, GROUP, TOPIC, 1, true).await.expect("it is moved");
    assert!(moved.offset_table.values().all(|offset| *offset == 0), "{moved:?}");
    cluster.kill(leader).await;
    send(&producer, EACH).await;
    let is_done = || {
        let consumed = consumed.lock();
        consumed.len() == 5 * EACH && consumed.values().filter(|times| **times >= 2).count() >= 4 * EACH
    };
    until(PATIENCE, "what was consumed is consumed again, and what came is", async || is_done()).await;
    running.shutdown().await;
    running_client.shutdown().await;

    // To the end: what is there is passed over by whoever comes next.
    let leader = cluster.leader().await.expect("a leader");
    let address = cluster.address(leader).to_string();
    admin.reset_offset(&address, GROUP, TOPIC, 1, true).await.expect("it is moved back");
    admin.reset_offset(&address, GROUP, TOPIC, -1, true).await.expect("it is moved to the end");
    let later = Consumed::default();
    let (next_client, next) = member(&cluster, &later).await;
    until(PATIENCE, "it has queues", async || !next.assigned().is_empty()).await;
    send(&producer, EACH).await;
    until(PATIENCE, "what comes is consumed", async || later.lock().len() == EACH).await;
    let ends = later.lock().keys().map(|(queue, _)| *queue).collect::<Vec<_>>();
    assert!(!ends.is_empty());
    let earliest = |queue: i32| later.lock().keys().filter(|(of, _)| *of == queue).map(|(_, offset)| *offset).min();
    for (queue, end) in &admin.reset_offset(&address, "readers", TOPIC, -1, true).await.expect("asked").offset_table {
        let MessageQueue { queue_id, .. } = queue;
        let first = earliest(*queue_id).unwrap_or(*end);
        let before = consumed.lock().keys().filter(|(of, _)| of == queue_id).count() as i64;
        assert!(first >= before, "queue {queue_id}: {first} of {before} was consumed again");
    }
    next.shutdown().await;
    next_client.shutdown().await;
    admin.close().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

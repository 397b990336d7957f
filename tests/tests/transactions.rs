//! Transactions over a real three-node cluster on loopback, with our own client, and a leader that dies in the middle: every
//! committed message is there exactly once, and none of the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use broker::config::{MessagePolicy, TransactionPolicy};
use client::{
    Client, Message, ReceivedMessage, RequestError, SendError, StartFrom, TransactionState, TransactionalProducer,
};
use embedded::Cluster;
use env::Env;
use parking_lot::Mutex;
use tests::wait::until;

/// Longest wait for anything that must happen: many times what it takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Transactions of each kind.
const EACH: usize = 60;

/// Asked soon and often: a change of leader takes some of the questions' time.
const POLICY: TransactionPolicy = TransactionPolicy {
    timeout: Duration::from_millis(500),
    check_interval: Duration::from_millis(500),
    check_max: 1_000,
};

/// What the program does with a transaction that it has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Commit,
    Rollback,
    /// It is never heard of again; its checker knows that it took place.
    SilentCommit,
    /// The same; it did not take place.
    SilentRollback,
    /// It says what its checker has long said.
    LateCommit,
    /// It rolls back what its checker commits.
    Contradicted,
}

const KINDS: [Kind; 6] =
    [Kind::Commit, Kind::Rollback, Kind::SilentCommit, Kind::SilentRollback, Kind::LateCommit, Kind::Contradicted];

/// The program's database: how local transactions have ended. One that is not in here is still going on.
#[derive(Default)]
struct Database {
    ended: Mutex<BTreeMap<String, bool>>,
    questions: AtomicUsize,
}

impl Database {
    fn end(&self, key: &str, took_place: bool) {
        self.ended.lock().insert(key.to_owned(), took_place);
    }

    fn state(&self, message: &ReceivedMessage) -> TransactionState {
        self.questions.fetch_add(1, Ordering::Relaxed);
        match self.ended.lock().get(message.keys().next().expect("every message has a key")) {
            Some(true) => TransactionState::Commit,
            Some(false) => TransactionState::Rollback,
            None => TransactionState::Unknown,
        }
    }
}

fn client_of(cluster: &Cluster) -> Client {
    cluster.client().build().expect("a client")
}

async fn producer_of(client: &Client, database: &Arc<Database>) -> TransactionalProducer {
    let database = database.clone();
    let checker = move |message: Arc<ReceivedMessage>| {
        let state = database.state(&message);
        async move { state }
    };
    client.transactional_producer("tg").start(checker).await.expect("a producer")
}

/// What must become of a message; `None` if both may.
async fn play(kind: Kind, key: &str, producer: &TransactionalProducer, database: &Database) -> Option<bool> {
    let clock = Env::real().clock;
    let transaction = match producer.begin(Message::new("Tx", key.to_owned()).with_key(key)).await {
        Ok(transaction) => transaction,
        Err(SendError::Unknown { .. } | SendError::NotStored { .. }) => {
            database.end(key, false);
            return Some(false);
        }
        Err(error) => panic!("{key}: {error}"),
    };
    match kind {
        Kind::Commit => {
            database.end(key, true);
            // Lost with the leader, at worst: then the checker says the same.
            drop(transaction.commit().await);
            Some(true)
        }
        Kind::Rollback => {
            database.end(key, false);
            drop(transaction.rollback().await);
            Some(false)
        }
        Kind::SilentCommit | Kind::SilentRollback => {
            let took_place = kind == Kind::SilentCommit;
            database.end(key, took_place);
            Some(took_place)
        }
        Kind::LateCommit => {
            database.end(key, true);
            clock.sleep(POLICY.timeout * 2).await;
            drop(transaction.commit().await);
            Some(true)
        }
        Kind::Contradicted => {
            database.end(key, true);
            clock.sleep(POLICY.timeout).await;
            match transaction.rollback().await {
                Ok(()) => Some(false),
                Err(RequestError::Refused { remark, .. }) if remark.contains("committed before") => Some(true),
                Err(_) => None,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committed_exactly_once_and_none_of_the_others_across_a_killed_leader() {
    let messages = MessagePolicy { transactions: POLICY, ..MessagePolicy::default() };
    let mut cluster = Cluster::builder().messages(messages).start().await.expect("a cluster of three");
    let database = Arc::new(Database::default());
    let clients = [client_of(&cluster), client_of(&cluster)];
    let producer = producer_of(&clients[0], &database).await;
    let another = clients[0].transactional_producer("tg").start(|_| async { TransactionState::Unknown }).await;
    assert!(another.is_err(), "one checker a group and client");
    // A second process of the group: it only answers questions, once it knows the topic.
    let first = producer.begin(Message::new("Tx", "first").with_key("first")).await.expect("the topic is made");
    first.rollback().await.expect("it is rolled back");
    database.end("first", false);
    let _answering = producer_of(&clients[1], &database).await;

    let expected: Arc<Mutex<BTreeMap<String, Option<bool>>>> = Arc::default();
    let started = Arc::new(AtomicUsize::new(0));
    let playing: Vec<_> = (0..4)
        .map(|player| {
            let (producer, database, expected, started) =
                (producer.clone(), database.clone(), expected.clone(), started.clone());
            tokio::spawn(async move {
                for round in 0..EACH / 4 {
                    let all = KINDS.map(|kind| {
                        let (key, producer, database) = (format!("{kind:?}-{player}-{round}"), &producer, &database);
                        async move {
                            let visible = play(kind, &key, producer, database).await;
                            (key, visible)
                        }
                    });
                    started.fetch_add(KINDS.len(), Ordering::Relaxed);
                    let ended = futures::future::join_all(all).await;
                    expected.lock().extend(ended);
                }
            })
        })
        .collect();
    until(PATIENCE, "a third is begun", async || started.load(Ordering::Relaxed) >= EACH * KINDS.len() / 3).await;
    let killed = cluster.leader().await.expect("a leader");
    cluster.kill(killed).await;
    let asked_before = database.questions.load(Ordering::Relaxed);
    for player in playing {
        player.await.expect("a player");
    }
    cluster.restart(killed).await.expect("the killed one starts again");
    let leader = cluster.leader().await.expect("a leader");
    let waiting = || cluster.broker(leader).expect("it lives").groups()[0].raft().reader().pending().half;
    until(PATIENCE, "every transaction has ended", async || waiting() == 0).await;
    let asked_after = database.questions.load(Ordering::Relaxed) - asked_before;
    assert!(asked_after > EACH / 4, "the next leader asks about those of the one before: {asked_after}");

    let expected = std::mem::take(&mut *expected.lock());
    assert_eq!(expected.len(), EACH / 4 * 4 * KINDS.len());
    let committed: Vec<&str> =
        expected.iter().filter(|(_, visible)| **visible == Some(true)).map(|(key, _)| key.as_str()).collect();
    assert!(committed.len() > 2 * EACH, "most of them were begun: {}", committed.len());
    let seen = read_all(&clients[0]).await;
    for (key, copies) in &seen {
        assert_eq!(*copies, 1, "{key} is there {copies} times");
        assert_ne!(expected.get(key).copied(), Some(Some(false)), "{key} was not committed");
        assert!(expected.contains_key(key), "{key} was never begun");
    }
    for key in committed {
        assert!(seen.contains_key(key), "{key} was committed and is not there");
    }
    for client in clients {
        client.shutdown().await;
    }
    cluster.shutdown().await;
}

/// All that is visible now, with how often it is there.
async fn read_all(client: &Client) -> BTreeMap<String, usize> {
    let mut consumer = client.pull_consumer("reader").expect("a consumer");
    let queues = consumer.queues("Tx").await.expect("queues");
    until(PATIENCE, "the queues can be assigned", async || consumer.assign(&queues, StartFrom::First).await.is_ok())
        .await;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    loop {
        let messages = consumer.poll(Duration::from_secs(2)).await.expect("a poll");
        if messages.is_empty() {
            return seen;
        }
        for message in messages {
            let body = std::str::from_utf8(message.body()).expect("text").to_owned();
            assert_eq!(message.keys().next(), Some(body.as_str()));
            *seen.entry(body).or_default() += 1;
        }
    }
}

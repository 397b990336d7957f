//! Transactions over a real three-node cluster on loopback, with our own client, and three leaders that die in the middle: every
//! committed message is there exactly once, and none of the others.
//!
//! `RAFTMQ_TRANSACTIONS=10000 cargo test --release -p tests --test transactions -- --nocapture` is the figure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use broker::config::{MessagePolicy, TransactionPolicy};
use client::{
    Client, Message, ReceivedMessage, RequestError, SendError, SendReceipt, TransactionState, TransactionalProducer,
};
use embedded::Cluster;
use env::Env;
use parking_lot::Mutex;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::EndTransactionRequest;
use protocol::message_id::MessageId;
use protocol::sys_flag::TransactionType;
use remoting::NoRequests;
use tests::read::everything_in;
use tests::wait::until;

/// Longest wait for anything that must happen: many times what it takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Leaders that are killed.
const KILLS: usize = 3;

/// How many transactions there are; the variable is for the figure.
#[allow(clippy::disallowed_methods)] // What a test run is asked for, not what the product reads.
fn count() -> usize {
    std::env::var("RAFTMQ_TRANSACTIONS").map_or(480, |count| count.parse().expect("RAFTMQ_TRANSACTIONS is a number"))
}

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
    /// It commits, and says so twice more, and once the opposite.
    Repeated,
    /// It says both at once.
    Raced,
}

const KINDS: [Kind; 8] = [
    Kind::Commit,
    Kind::Rollback,
    Kind::SilentCommit,
    Kind::SilentRollback,
    Kind::LateCommit,
    Kind::Contradicted,
    Kind::Repeated,
    Kind::Raced,
];

/// The program's database: how local transactions have ended. One that is not in here is still going on.
#[derive(Default)]
struct Database {
    ended: Mutex<BTreeMap<String, bool>>,
    /// Those of which the brokers hear nothing unless they ask, and have not asked yet.
    silent: Mutex<BTreeSet<String>>,
    repeated: AtomicUsize,
    raced: AtomicUsize,
}

impl Database {
    fn end(&self, key: &str, took_place: bool) {
        self.ended.lock().insert(key.to_owned(), took_place);
    }

    fn state(&self, message: &ReceivedMessage) -> TransactionState {
        let key = message.keys().next().expect("every message has a key");
        self.silent.lock().remove(key);
        match self.ended.lock().get(key) {
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

/// Ends transactions as often as one likes, whichever broker leads.
struct Wire {
    client: remoting::Client<NoRequests>,
    brokers: Vec<String>,
}

impl Wire {
    /// `Some(true)`: it has ended so. `Some(false)`: it had ended otherwise, or its end is not known any more. `None`: nobody
    /// says.
    async fn end(&self, receipt: &SendReceipt, how: TransactionType) -> Option<bool> {
        let id: MessageId = receipt.offset_message_id.parse().expect("an id");
        let header = EndTransactionRequest {
            producer_group: "tg".to_owned(),
            tran_state_table_offset: receipt.queue_offset,
            commit_log_offset: id.physical_offset,
            commit_or_rollback: how as i32,
            msg_id: Some(receipt.unique_key.clone()),
            transaction_id: Some(receipt.unique_key.clone()),
            ..EndTransactionRequest::default()
        };
        let request = RemotingCommand::request_with(RequestCode::END_TRANSACTION, &header);
        for broker in &self.brokers {
            let Ok(answer) = self.client.call(broker, request.clone(), Duration::from_secs(3)).await else { continue };
            if answer.response_code() == ResponseCode::SUCCESS {
                return Some(true);
            }
            if answer.remark_text().contains("before") {
                return Some(false);
            }
        }
        None
    }
}

/// What must become of a message; `None` if both may.
async fn play(
    kind: Kind,
    key: &str,
    producer: &TransactionalProducer,
    database: &Database,
    wire: &Wire,
) -> Option<bool> {
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
            database.silent.lock().insert(key.to_owned());
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
        Kind::Repeated => {
            database.end(key, true);
            let receipt = transaction.receipt().clone();
            let committed = transaction.commit().await.is_ok();
            let again = (
                wire.end(&receipt, TransactionType::Commit).await,
                wire.end(&receipt, TransactionType::Rollback).await,
                wire.end(&receipt, TransactionType::Commit).await,
            );
            if committed {
                let says_so = |said: Option<bool>, expected| said.is_none_or(|said| said == expected);
                assert!(
                    says_so(again.0, true) && says_so(again.1, false) && says_so(again.2, true),
                    "{key}: {again:?}"
                );
                database
                    .repeated
                    .fetch_add(usize::from(again == (Some(true), Some(false), Some(true))), Ordering::Relaxed);
            }
            Some(true).filter(|_| committed || again.0 == Some(true))
        }
        Kind::Raced => {
            database.end(key, true);
            let receipt = transaction.receipt().clone();
            let (committed, rolled_back) =
                futures::join!(transaction.commit(), wire.end(&receipt, TransactionType::Rollback));
            match (committed.is_ok(), rolled_back == Some(true)) {
                (true, true) => panic!("{key}: both have won"),
                (committed, rolled_back) => {
                    database.raced.fetch_add(usize::from(committed || rolled_back), Ordering::Relaxed);
                    (committed || rolled_back).then_some(committed)
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committed_exactly_once_and_none_of_the_others_across_killed_leaders() {
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
    let wire = Arc::new(Wire {
        client: remoting::Client::new(&Env::real(), remoting::Limits::default(), Arc::new(NoRequests)),
        brokers: (0..3).map(|node| cluster.address(node).to_string()).collect(),
    });

    let players = (count() / 40).clamp(4, 256);
    let rounds = count().div_ceil(players * KINDS.len());
    let all = players * rounds * KINDS.len();
    let expected: Arc<Mutex<BTreeMap<String, Option<bool>>>> = Arc::default();
    let started = Arc::new(AtomicUsize::new(0));
    let playing: Vec<_> = (0..players)
        .map(|player| {
            let (producer, database, expected) = (producer.clone(), database.clone(), expected.clone());
            let (started, wire) = (started.clone(), wire.clone());
            tokio::spawn(async move {
                for round in 0..rounds {
                    let all = KINDS.map(|kind| {
                        let key = format!("{kind:?}-{player}-{round}");
                        let (producer, database, wire) = (&producer, &database, &wire);
                        async move {
                            let visible = play(kind, &key, producer, database, wire).await;
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
    // Nobody else can say how these have ended, and the next leader asks.
    let mut left_to_the_next = BTreeSet::new();
    for kill in 1..=KILLS {
        let due = all * kill / (KILLS + 1);
        until(PATIENCE, "some are begun, and many are silent", async || {
            started.load(Ordering::Relaxed) >= due && database.silent.lock().len() >= players * 3 / 4
        })
        .await;
        let killed = cluster.leader().await.expect("a leader");
        cluster.kill(killed).await;
        left_to_the_next.extend(database.silent.lock().iter().cloned());
        cluster.restart(killed).await.expect("the killed one starts again");
        cluster.leader().await.expect("a leader");
    }
    for player in playing {
        player.await.expect("a player");
    }
    let leader = cluster.leader().await.expect("a leader");
    let waiting = || cluster.broker(leader).expect("it lives").groups()[0].raft().reader().pending().half;
    until(PATIENCE, "every transaction has ended", async || waiting() == 0).await;
    assert!(database.silent.lock().is_empty(), "nobody was asked about {:?}", database.silent.lock());

    let expected = std::mem::take(&mut *expected.lock());
    assert_eq!(expected.len(), all);
    let with = |visible| expected.values().filter(|known| **known == visible).count();
    let committed: Vec<&str> =
        expected.iter().filter(|(_, visible)| **visible == Some(true)).map(|(key, _)| key.as_str()).collect();
    let left_to_the_next = left_to_the_next.len();
    let (repeated, raced) = (database.repeated.load(Ordering::Relaxed), database.raced.load(Ordering::Relaxed));
    println!(
        "{all} transactions, {KILLS} leaders killed: {} committed, {} rolled back or not begun, {} may be either; {repeated} \
         ended four times, {raced} both ways at once, {left_to_the_next} left to the next leader's questions",
        committed.len(),
        with(Some(false)),
        with(None),
    );
    // Each is an eighth of all; some meet a broker that is killed, or are not begun for want of a leader.
    assert!(committed.len() > all / 4, "most of them were begun");
    assert!(repeated >= all / 20 && raced >= all / 20 && left_to_the_next >= all / 20 * usize::from(all >= 10_000));
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
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for message in everything_in(client, "Tx", PATIENCE).await {
        let body = std::str::from_utf8(message.body()).expect("text").to_owned();
        assert_eq!(message.keys().next(), Some(body.as_str()));
        *seen.entry(body).or_default() += 1;
    }
    seen
}

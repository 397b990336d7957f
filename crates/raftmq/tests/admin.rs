//! `raftmq admin` as an operator types it, against a cluster of three: what is given up is listed, shown and set going again.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use client::admin::protocol::message_id::MessageId;
use client::{Message, ReceivedMessage, Retry, StartFrom, TransactionState};
use embedded::{Cluster, MessagePolicy, TransactionPolicy};
use env::Env;
use serde_json::Value;

/// Longest wait for anything that must happen: many times what it takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Producers are asked at once, and hardly ever.
const POLICY: TransactionPolicy =
    TransactionPolicy { timeout: Duration::from_millis(200), check_interval: Duration::from_millis(200), check_max: 2 };

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let clock = Env::real().clock;
    let holds = async {
        while !condition().await {
            clock.sleep(Duration::from_millis(50)).await;
        }
    };
    clock.timeout(PATIENCE, holds).await.unwrap_or_else(|| panic!("not in time: {what}"));
}

/// The command line, and the NameServer that it asks.
struct Operator(String);

impl Operator {
    fn run(&self, command: &[&str]) -> Output {
        let program = Path::new(env!("CARGO_BIN_EXE_raftmq"));
        let asked = Command::new(program).args(["admin", "-n", &self.0]).args(command).output();
        asked.expect("the command starts")
    }

    /// What a command prints that does all of what it is told.
    fn json(&self, command: &[&str]) -> Value {
        let told = self.run(&[command, &["-o", "json"]].concat());
        assert!(told.status.success(), "{command:?}: {}", String::from_utf8_lossy(&told.stderr));
        serde_json::from_slice(&told.stdout).expect("JSON")
    }

    /// How many rows a command prints; `None` if it cannot do yet what it is told.
    fn rows(&self, command: &[&str]) -> Option<usize> {
        let told = self.run(&[command, &["-o", "json"]].concat());
        let rows: Value = serde_json::from_slice(&told.stdout).ok().filter(|_| told.status.success())?;
        rows.as_array().map(Vec::len)
    }

    /// What a command says that cannot do what it is told.
    fn refusal(&self, command: &[&str]) -> String {
        let told = self.run(command);
        assert!(!told.status.success(), "{command:?}");
        String::from_utf8_lossy(&told.stderr).into_owned()
    }
}

/// One member of one row.
fn member<'a>(rows: &'a Value, row: usize, name: &str) -> &'a str {
    rows[row][name].as_str().unwrap_or_else(|| panic!("{name} of row {row}: {rows}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_given_up_is_listed_and_resumed_across_a_killed_leader() {
    let messages = MessagePolicy { transactions: POLICY, ..MessagePolicy::default() };
    let mut cluster = Cluster::builder().messages(messages).start().await.expect("a cluster of three");
    let operator = Operator(cluster.name_server().to_string());
    let client = cluster.client().build().expect("a client");
    let is_known = Arc::new(AtomicBool::new(false));
    let checker = {
        let is_known = is_known.clone();
        move |_: Arc<ReceivedMessage>| {
            let known = is_known.load(Ordering::Acquire);
            std::future::ready(if known { TransactionState::Commit } else { TransactionState::Unknown })
        }
    };
    let producer = client.transactional_producer("tg").start(checker).await.expect("a producer");
    for key in ["order-7", "order-8", "order-9"] {
        drop(producer.begin(Message::new("Orders", "paid").with_key(key)).await.expect("begun"));
    }
    let all_given_up = ["transactionList", "-c", "DefaultCluster", "--state", "discarded"];
    until("they are given up", async || operator.rows(&all_given_up) == Some(3)).await;

    let leader = cluster.leader().await.expect("a leader");
    cluster.kill(leader).await;
    let next = cluster.leader().await.expect("another leader");
    let address = cluster.address(next).to_string();
    let given_up = ["transactionList", "-b", &address];
    until("the next leader lists them", async || operator.rows(&given_up) == Some(3)).await;
    let rows = operator.json(&given_up);
    assert_eq!((member(&rows, 0, "topic"), member(&rows, 0, "producerGroup")), ("Orders", "tg"), "{rows}");
    assert_eq!(rows[0]["asked"], 2, "{rows}");
    let table = operator.run(&given_up).stdout;
    assert!(String::from_utf8_lossy(&table).contains("#Producer Group"));
    let id_of = |key: &str| {
        let row = (0..3).find(|row| member(&rows, *row, "keys").trim() == key);
        member(&rows, row.unwrap_or_else(|| panic!("{key} in {rows}")), "offsetMsgId").to_owned()
    };

    // Its producer is gone for good: the operator knows.
    let (id, dropped) = (id_of("order-8"), id_of("order-9"));
    let other = (0..3).find(|at| *at != leader && *at != next).expect("three");
    let elsewhere = MessageId { store_host: cluster.address(other), ..id.parse().expect("an id") }.to_string();
    let ended = operator.json(&["transactionEnd", "-i", &elsewhere, "--with", "commit"]);
    assert_eq!(ended["committed"], elsewhere.as_str(), "any replica will do, and each calls it otherwise");
    assert_eq!(
        operator.json(&["transactionEnd", "-i", &dropped, "--with", "rollback"])["rolledBack"],
        dropped.as_str()
    );
    until("one is visible", async || operator.rows(&["queryMsgByKey", "-t", "Orders", "-k", "order-8"]) == Some(1))
        .await;
    let again = operator.refusal(&["transactionEnd", "-i", &dropped, "--with", "commit"]);
    assert!(again.contains("it has ended"), "{again}");
    assert_eq!(operator.rows(&["queryMsgByKey", "-t", "Orders", "-k", "order-9"]).unwrap_or(0), 0);

    let id = id_of("order-7");

    assert!(operator.refusal(&["transactionResume", "-i", "nonsense"]).contains("see transactionList"));
    is_known.store(true, Ordering::Release);
    assert_eq!(operator.json(&["transactionResume", "-i", &id, "-t", "Orders"])["resumed"], id.as_str());
    let by_key = ["queryMsgByKey", "-t", "Orders", "-k", "order-7"];
    until("its producer is asked again, and it is committed", async || operator.rows(&by_key) == Some(1)).await;
    assert_eq!(operator.json(&given_up), Value::Array(vec![]));
    let again = operator.refusal(&["transactionResume", "-i", &id, "-t", "Orders"]);
    assert!(again.contains("it has ended"), "{again}");
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_shown_and_sent_again_once() {
    let messages = MessagePolicy { delay_levels: vec![Duration::from_millis(100); 18], ..MessagePolicy::default() };
    let cluster = Cluster::builder().messages(messages).start().await.expect("a cluster of three");
    let operator = Operator(cluster.name_server().to_string());
    let client = cluster.client().build().expect("a client");
    let producer = client.producer("pg").start().expect("a producer");
    for number in 0..4 {
        let tag = if number % 2 == 0 { "even" } else { "odd" };
        producer
            .send(Message::new("Orders", number.to_string()).with_tag(tag).with_key(&format!("k{number}")))
            .await
            .expect("sent");
    }
    let is_mended = Arc::new(AtomicBool::new(false));
    let taken = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (is_mended, taken) = (is_mended.clone(), taken.clone());
        move |_: Arc<ReceivedMessage>| {
            let is_mended = is_mended.load(Ordering::Acquire);
            taken.fetch_add(usize::from(is_mended), Ordering::Relaxed);
            std::future::ready(if is_mended { Ok(()) } else { Err(Retry::later("its database is away")) })
        }
    };
    let group = client.push_consumer("g").subscribe("Orders", "*").start_from(StartFrom::First).max_reconsume_times(1);
    let consumer = group.start(handler).await.expect("a consumer");
    let list = |more: &[&str]| operator.json(&[&["dlqList", "-g", "g"], more].concat());
    until("all are given up", async || operator.rows(&["dlqList", "-g", "g"]) == Some(4)).await;

    let groups = operator.json(&["dlqList"]);
    assert_eq!((member(&groups, 0, "group"), &groups[0]["deadLetters"]), ("g", &4.into()), "{groups}");
    let even = list(&["-c", "even"]);
    assert_eq!(even.as_array().map(Vec::len), Some(2), "{even}");
    let second = list(&["-c", "even", "-k", "k2"]);
    let shown = operator.json(&["dlqShow", "-g", "g", "-i", member(&second, 0, "offsetMsgId")]);
    assert_eq!((member(&shown, 0, "body"), member(&shown, 0, "keys").trim()), ("2", "k2"), "{shown}");

    is_mended.store(true, Ordering::Release);
    let resend = |more: &[&str]| operator.json(&[&["dlqResend", "-g", "g", "--rate", "0"], more].concat());
    let first = resend(&["-c", "even"]);
    assert_eq!((&first["sent"], &first["unwanted"]), (&2.into(), &2.into()), "{first}");
    let all = resend(&[]);
    assert_eq!((&all["sent"], &all["sentBefore"]), (&2.into(), &2.into()), "each once: {all}");
    assert_eq!(list(&[]).as_array().map(Vec::len), Some(4), "none is lost");
    until("all came again and are taken", async || taken.load(Ordering::Relaxed) >= 4).await;
    let states = operator.json(&["compareStates", "-c", "DefaultCluster"]);
    let hashes: BTreeSet<(u64, &str)> = states
        .as_array()
        .expect("rows")
        .iter()
        .enumerate()
        .map(|(row, of)| (of["index"].as_u64().expect("an entry"), member(&states, row, "stateHash")))
        .collect();
    assert_eq!((states.as_array().map(Vec::len), hashes.len()), (Some(3), 1), "{states}");
    consumer.shutdown().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

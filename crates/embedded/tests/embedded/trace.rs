//! Message traces are where RocketMQ's tools look for them, and say what happened.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use client::{Message, ReceivedMessage, Retry, StartFrom, TRACE_TOPIC, TraceParent, TransactionState};
use embedded::Cluster;

use super::time::{SECOND, waiting};
use super::{client_of, reader, send, until};

/// The fields of all records in the trace topic, in the order in which they were sent.
async fn traces(cluster: &Cluster) -> Vec<Vec<String>> {
    let client = client_of(cluster);
    let mut consumer = reader(cluster, &client, TRACE_TOPIC).await;
    let mut records = Vec::new();
    let mut left = super::visible(&consumer).await;
    while left > 0 {
        for message in consumer.poll(super::PATIENCE).await.expect("a poll") {
            left -= 1;
            let text = std::str::from_utf8(message.body()).expect("text");
            for record in text.split_terminator('\u{2}') {
                let fields: Vec<String> = record.split('\u{1}').map(str::to_owned).collect();
                let unique_key = if fields[0] == "SubAfter" { &fields[2] } else { &fields[5] };
                assert!(message.keys().any(|key| key == unique_key), "{record} is not found by its message");
                records.push(fields);
            }
        }
    }
    client.shutdown().await;
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_consumed_and_ended_leaves_a_trace_that_a_shutdown_completes() {
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = cluster.client().message_trace(TRACE_TOPIC).build().expect("a client");
    let parent = TraceParent::new(7, 8, 1).expect("ids");
    let receipt =
        send(&client, Message::new("Traced", "body").with_tag("paid").with_key("order-7").with_trace_parent(&parent))
            .await;
    let consumed = Arc::new(AtomicUsize::new(0));
    let counted = consumed.clone();
    let handler = move |message: Arc<ReceivedMessage>| {
        let times = counted.fetch_add(1, Ordering::Relaxed);
        assert_eq!(message.trace_parent(), Some(parent), "a retry has it too");
        async move { if times == 0 { Err(Retry::later("not yet")) } else { Ok(()) } }
    };
    let consumer = client.push_consumer("tg").subscribe("Traced", "*").start_from(StartFrom::First);
    let consumer = consumer.start(handler).await.expect("a consumer");
    until(&cluster, "it is given back", async || (waiting(&cluster).await == 1).then_some(())).await;
    cluster.advance(10 * SECOND).await.expect("advanced");
    until(&cluster, "it is consumed", async || (consumed.load(Ordering::Relaxed) == 2).then_some(())).await;
    consumer.shutdown().await;
    let checker = |_message| async { TransactionState::Unknown };
    let producer = client.transactional_producer("pg2").start(checker).await.expect("a producer");
    let transaction = producer.begin(Message::new("Traced", "in a transaction")).await.expect("it is begun");
    let half = transaction.receipt().clone();
    transaction.commit().await.expect("it is committed");
    drop(producer);
    client.shutdown().await;
    assert_eq!(client.traces_lost(), 0);

    let records = traces(&cluster).await;
    let mut by_kind: BTreeMap<&str, Vec<&[String]>> = BTreeMap::new();
    for fields in &records {
        by_kind.entry(fields[0].as_str()).or_default().push(&fields[1..]);
    }
    let address = cluster.address(0).to_string();
    let sent = by_kind["Pub"][0];
    let expected = ["DefaultRegion", "pg", "Traced", &receipt.unique_key, "paid", "order-7", &address, "4"];
    assert_eq!(sent[1..9], expected);
    assert_eq!(sent[10..], ["0", &receipt.offset_message_id, "true"]);
    assert_eq!((by_kind["Pub"].len(), by_kind["Pub"][1][10].as_str()), (2, "1"), "the other one is a half message");
    let tries: Vec<_> = by_kind["SubBefore"].iter().map(|fields| (fields[4].as_str(), fields[5].as_str())).collect();
    assert_eq!(tries, [(receipt.unique_key.as_str(), "0"), (&receipt.unique_key, "1")]);
    let outcomes: Vec<_> = by_kind["SubAfter"].iter().map(|fields| (fields[3].as_str(), fields[5].as_str())).collect();
    assert_eq!(outcomes, [("false", "4"), ("true", "0")]);
    for (before, after) in by_kind["SubBefore"].iter().zip(&by_kind["SubAfter"]) {
        assert_eq!(
            (&before[3], &before[2], "tg"),
            (&after[0], &after[7], after[7].as_str()),
            "one request id and group"
        );
    }
    let ended = by_kind["EndTransaction"][0];
    assert_eq!(
        (ended[4].as_str(), ended[10].as_str(), ended[11].as_str()),
        (half.unique_key.as_str(), "COMMIT_MESSAGE", "false")
    );
    cluster.shutdown().await;
}

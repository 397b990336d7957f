//! Sends an order twice, as a program that was restarted in between would, and bills it once. Start it again: what was billed
//! is remembered on disk. `docs/idempotence.md` says where duplicates come from, and what else can be done about them.
//!
//! `cargo run -p client --features sled --example idempotent_consumer -- 127.0.0.1:9876 Orders /tmp/billed`

// This workspace's own code asks `env::Clock` instead of `tokio::time`; a program that uses the library need not.
#![allow(clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::Duration;

use client::{Client, IdempotentConsumer, Message, ReceivedMessage, SledSeenStore, StartFrom};
use tokio::sync::mpsc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name_servers = arguments.next().unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "Orders".to_owned());
    let directory = arguments.next().unwrap_or_else(|| "/tmp/billed".to_owned());

    let client = Client::builder().name_servers(name_servers).build()?;
    let producer = client.producer("example-shop").start()?;
    // Two sends: two messages with two unique keys. Only the order's number says that they are one order. The last is another.
    for order in ["order-7", "order-7", "order-8"] {
        producer.send(Message::new(topic.as_str(), "one pear").with_tag("example-billing").with_key(order)).await?;
    }

    let (billed, mut orders) = mpsc::unbounded_channel();
    let bill = move |message: Arc<ReceivedMessage>| {
        let billed = billed.clone();
        async move {
            let order = message.keys().next().unwrap_or_default().to_owned();
            println!("billed {order}");
            billed.send(order)?;
            Ok(())
        }
    };
    // The handler above is called once for each key, here the order's number; without `keyed_by` it is the unique key, which
    // tells the retries of one send from another send. Consumers on several machines need a store that they share.
    let store = SledSeenStore::open(&directory).await.map_err(|error| error.to_string())?;
    let handler = IdempotentConsumer::new(&client, "billing", store, bill)
        .keyed_by(|message| message.keys().next().map(str::to_owned));
    let consumer = client.push_consumer("example-billing").subscribe(topic, "example-billing");
    let consumer = consumer.start_from(StartFrom::First).start(handler).await?;

    // All that comes within five seconds: both orders at the first start, none at the second.
    let all = async { while orders.recv().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), all).await.ok();
    consumer.shutdown().await;
    client.shutdown().await;
    Ok(())
}

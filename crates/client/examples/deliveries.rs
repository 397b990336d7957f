//! Sends four orders and takes them from a stream: the program says of each what became of it.
//!
//! `cargo run -p client --example deliveries -- 127.0.0.1:9876 Orders`

use std::time::Duration;

use client::{Client, Message, StartFrom};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name_servers = arguments.next().unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "Orders".to_owned());

    let client = Client::builder().name_servers(name_servers).build()?;
    let producer = client.producer("example-orders").start()?;
    for order in ["two pears", "one apple, later", "nonsense", "a melon"] {
        producer.send(Message::new(topic.as_str(), order).with_tag("example-deliveries")).await?;
    }

    // A member of its consumer group like any push consumer, with its retries and dead letters.
    let builder = client.push_consumer("example-deliveries").subscribe(topic, "example-deliveries");
    let mut deliveries = builder.start_from(StartFrom::First).deliveries().await?;
    let mut left = 4;
    while left > 0 {
        let delivery = deliveries.next().await;
        let (order, tries) =
            (std::str::from_utf8(delivery.message().body())?.to_owned(), 1 + delivery.message().reconsume_times());
        // Each of them fails if the delivery has expired, because it took too long: the message comes again then.
        if order.ends_with("later") && tries < 3 {
            println!("{order}: try {tries}, again in two seconds");
            delivery.retry_later(Duration::from_secs(2), "not in store yet")?;
            continue;
        }
        if order == "nonsense" {
            // It lies in %DLQ%example-deliveries from now on: see `raftmq admin dlqList -g example-deliveries`.
            println!("{order}: no order, to the dead letters");
            delivery.dead_letter("no order")?;
        } else {
            println!("{order}: done at try {tries}");
            delivery.ack()?;
        }
        left -= 1;
    }
    // Waits until what was given back is with the broker, and stores the offsets.
    deliveries.shutdown().await;
    client.shutdown().await;
    Ok(())
}

//! Sends a hundred messages, many at once.
//!
//! `cargo run -p client --example producer -- 127.0.0.1:9876 Orders`

use client::{Client, Message, SendError};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name_servers = arguments.next().unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "Orders".to_owned());

    let client = Client::builder().name_servers(name_servers).build()?;
    let producer = client.producer("example-producer").start()?;
    let sends = (0..100).map(|number| {
        let message = Message::new(topic.as_str(), format!("order {number}"))
            .with_tag(if number % 2 == 0 { "even" } else { "odd" })
            .with_key(&format!("order-{number}"));
        producer.send(message)
    });
    for (number, sent) in futures::future::join_all(sends).await.into_iter().enumerate() {
        match sent {
            Ok(receipt) => println!("{number}: {} at {}", receipt.queue.queue_id, receipt.queue_offset),
            // It may be stored. Sent again under its key, it is not stored twice where brokers recognise that.
            Err(SendError::Unknown { reason, unique_key }) => {
                println!("{number}: perhaps ({reason}), key {unique_key}")
            }
            Err(error) => println!("{number}: {error}; safe to send again: {}", error.is_retry_safe()),
        }
    }
    client.shutdown().await;
    Ok(())
}

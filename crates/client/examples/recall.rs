//! Sends two reminders for later, takes one back, and waits for the other.
//!
//! `cargo run -p client --example recall -- 127.0.0.1:9876 Reminders`

use std::sync::Arc;
use std::time::Duration;

use client::{Client, Message, RecallError, ReceivedMessage, StartFrom};
use tokio::sync::mpsc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name_servers = arguments.next().unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "Reminders".to_owned());

    let client = Client::builder().name_servers(name_servers).build()?;
    let producer = client.producer("example-reminders").start()?;
    // The receipt of a delayed message has the handle by which it can be recalled. Keep it with whatever may make you want to.
    let mut handles = Vec::new();
    for order in ["order 1", "order 2"] {
        let reminder = Message::new(topic.as_str(), format!("{order} is not paid")).with_delay(Duration::from_secs(5));
        let receipt = producer.send(reminder).await?;
        handles.push(receipt.recall_handle.ok_or("this broker cannot recall messages")?);
        println!("{order}: a reminder in five seconds");
    }

    // Order 1 was paid. On `Ok` nobody will ever see its reminder; after any error but `TooLate` simply ask again.
    match producer.recall(&topic, &handles[0]).await {
        Ok(()) => println!("order 1: taken back"),
        Err(RecallError::TooLate(why)) => println!("order 1: too late, {why}"),
        Err(error) => println!("order 1: perhaps, ask again: {error}"),
    }

    let (seen, mut reminders) = mpsc::unbounded_channel();
    let consumer = client.push_consumer("example-reminded").subscribe(topic.clone(), "*").start_from(StartFrom::First);
    let consumer = consumer.start(move |message: Arc<ReceivedMessage>| {
        let seen = seen.clone();
        async move {
            println!("{}", std::str::from_utf8(message.body())?);
            seen.send(())?;
            Ok(())
        }
    });
    let consumer = consumer.await?;
    reminders.recv().await;

    // What is visible cannot be recalled.
    match producer.recall(&topic, &handles[1]).await {
        Err(RecallError::TooLate(why)) => println!("order 2: too late, {why}"),
        other => println!("order 2: {other:?}"),
    }
    consumer.shutdown().await;
    client.shutdown().await;
    Ok(())
}

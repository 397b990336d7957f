//! Prints a hundred messages as they come, then stops. Start it twice, and the two share the topic's queues.
//!
//! `cargo run -p client --example push_consumer -- 127.0.0.1:9876 Orders [orderly]`

use std::sync::Arc;

use client::{Client, ReceivedMessage, Retry, StartFrom};
use tokio::sync::mpsc;

fn print(message: &ReceivedMessage) -> Result<(), Retry> {
    if message.reconsume_times() > 3 {
        return Err(Retry::never("tried often enough"));
    }
    // `?` on any error means: again later.
    let text = std::str::from_utf8(message.body())?;
    println!("{}-{} {text}", message.queue().queue_id, message.queue_offset());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name_servers = arguments.next().unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "Orders".to_owned());
    let is_orderly = arguments.next().is_some();

    let client = Client::builder().name_servers(name_servers).build()?;
    let (done, mut printed) = mpsc::unbounded_channel();
    let handler = move |message: Arc<ReceivedMessage>| {
        let done = done.clone();
        async move {
            print(&message)?;
            done.send(())?;
            Ok(())
        }
    };
    let builder = client.push_consumer("example-push").subscribe(topic, "*").start_from(StartFrom::First);
    let consumer = if is_orderly { builder.start_orderly(handler).await? } else { builder.start(handler).await? };

    for _ in 0..100 {
        printed.recv().await;
    }
    // Waits for the handlers that run, and stores the offsets.
    consumer.shutdown().await;
    client.shutdown().await;
    Ok(())
}

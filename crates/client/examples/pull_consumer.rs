//! Reads a topic from its beginning to its present end, once, and stores how far it came.
//!
//! `cargo run -p client --example pull_consumer -- 127.0.0.1:9876 Orders`

use std::time::Duration;

use client::{Client, StartFrom};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name_servers = arguments.next().unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "Orders".to_owned());

    let client = Client::builder().name_servers(name_servers).build()?;
    let mut consumer = client.pull_consumer("example-pull")?;
    let queues = consumer.queues(&topic).await?;
    consumer.assign(&queues, StartFrom::First).await?;
    let mut ends = Vec::new();
    for queue in &queues {
        ends.push((queue, consumer.max_offset(queue).await?));
    }
    while ends.iter().any(|(queue, end)| consumer.position(queue).is_some_and(|position| position < *end)) {
        for message in consumer.poll(Duration::from_secs(5)).await? {
            println!("{}-{} {:?}", message.queue().queue_id, message.queue_offset(), message.body());
        }
        consumer.commit().await?;
    }
    client.shutdown().await;
    Ok(())
}

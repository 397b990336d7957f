//! Sends ten jobs and lets three workers of one group pop them: each job is in one worker's hands for some seconds, and comes
//! again if that one does not say that it is done.
//!
//! `cargo run -p client --example pop_consumer -- 127.0.0.1:9876 Jobs`

use std::collections::BTreeSet;
use std::time::Duration;

use client::{Client, Message};
use tokio::sync::mpsc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name_servers = arguments.next().unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "Jobs".to_owned());

    let client = Client::builder().name_servers(name_servers).build()?;
    let producer = client.producer("example-jobs").start()?;
    for job in 0..10 {
        producer.send(Message::new(topic.as_str(), format!("job {job}"))).await?;
    }

    // Nobody is assigned any queue: workers come and go as they like, here and in other processes.
    let (done, mut jobs) = mpsc::unbounded_channel();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..3 {
        let consumer = client.pop_consumer("example-workers")?.invisible_for(Duration::from_secs(10)).max_messages(2);
        let (topic, done) = (topic.clone(), done.clone());
        workers.spawn(async move {
            loop {
                let popped = match consumer.pop(&topic, Duration::from_secs(5)).await {
                    Ok(popped) => popped,
                    Err(error) => {
                        println!("worker {worker}: {error}");
                        continue;
                    }
                };
                for mut message in popped {
                    let job = String::from_utf8_lossy(message.body()).into_owned();
                    if message.reconsume_times() == 0 && job.ends_with('7') {
                        // Not now. Without this it would come again when its ten seconds are over.
                        println!("worker {worker}: {job} again in two seconds");
                        consumer.change_invisible(&mut message, Duration::from_secs(2)).await.ok();
                        continue;
                    }
                    // `Ok(false)`: its time was over, and somebody else has it by now.
                    match consumer.ack(&message).await {
                        Ok(true) => drop(done.send(job.clone())),
                        other => println!("worker {worker}: {job} was not acknowledged: {other:?}"),
                    }
                    println!("worker {worker}: {job}, delivered {} times", 1 + message.reconsume_times());
                }
            }
        });
    }
    let mut seen = BTreeSet::new();
    while seen.len() < 10 {
        seen.extend(jobs.recv().await);
    }
    workers.shutdown().await;
    client.shutdown().await;
    Ok(())
}

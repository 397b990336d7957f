//! What a user's own test stands on: the date moved ahead, brokers killed, brokers cut off; and what our client promises
//! then.

mod deliveries;
mod idempotence;
mod partition;
mod time;
mod trace;

use std::time::Duration;

use client::{Client, Message, PullConsumer, SendReceipt, StartFrom};
use embedded::Cluster;

/// Longest wait for anything that must happen: many times what it takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks until there is something to see.
async fn until<T>(cluster: &Cluster, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let seen = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            cluster.clock().sleep(Duration::from_millis(10)).await;
        }
    };
    cluster.clock().timeout(PATIENCE, seen).await.unwrap_or_else(|| panic!("not within {PATIENCE:?}: {what}"))
}

fn client_of(cluster: &Cluster) -> Client {
    cluster.client().build().expect("a client")
}

async fn send(client: &Client, message: Message) -> SendReceipt {
    let producer = client.producer("pg").timeout(PATIENCE).start().expect("a producer");
    producer.send(message).await.expect("it is stored")
}

/// A consumer of everything in a topic.
async fn reader(cluster: &Cluster, client: &Client, topic: &str) -> PullConsumer {
    let mut consumer = client.pull_consumer("reader").expect("a consumer");
    let queues = until(cluster, "the topic is known", async || consumer.queues(topic).await.ok()).await;
    until(cluster, "it can be assigned", async || consumer.assign(&queues, StartFrom::First).await.ok()).await;
    consumer
}

/// How many messages of its topic are visible.
async fn visible(consumer: &PullConsumer) -> i64 {
    let mut visible = 0;
    for queue in consumer.assigned() {
        visible += consumer.max_offset(queue).await.expect("the end of a queue");
    }
    visible
}

/// The bodies of the next messages, at least one.
async fn next(consumer: &mut PullConsumer) -> Vec<String> {
    let messages = consumer.poll(PATIENCE).await.expect("a poll");
    assert!(!messages.is_empty(), "nothing came");
    messages.iter().map(|message| String::from_utf8(message.body().to_vec()).expect("text")).collect()
}

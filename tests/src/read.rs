//! Reading a topic to its end.

use std::time::Duration;

use client::{Client, MessageQueue, PullConsumer, ReceivedMessage, StartFrom};

use crate::wait::until;

/// A consumer that is given all queues of a topic, as soon as they can be: from where the group is, or else their first message.
/// Panics if that takes longer than `patience`.
pub async fn reader_of(
    client: &Client,
    group: &str,
    topic: &str,
    patience: Duration,
) -> (PullConsumer, Vec<MessageQueue>) {
    let mut reader = client.pull_consumer(group).expect("a consumer");
    let mut queues = Vec::new();
    until(patience, "the queues can be assigned", async || {
        queues = reader.queues(topic).await.unwrap_or_default();
        !queues.is_empty() && reader.assign(&queues, StartFrom::First).await.is_ok()
    })
    .await;
    (reader, queues)
}

/// All that can be consumed of a topic: at least what could be when this was called. Panics if that takes longer than `patience`.
pub async fn everything_in(client: &Client, topic: &str, patience: Duration) -> Vec<ReceivedMessage> {
    let (mut reader, queues) = reader_of(client, "reader", topic, patience).await;
    let mut read = Vec::new();
    until(patience, "everything is read", async || {
        read.extend(reader.poll(Duration::from_millis(500)).await.unwrap_or_default());
        // That nothing came just now says nothing; that the leader has nothing more does.
        for queue in &queues {
            let end = reader.max_offset(queue).await;
            if !end.is_ok_and(|end| reader.position(queue) >= Some(end)) {
                return false;
            }
        }
        true
    })
    .await;
    read
}

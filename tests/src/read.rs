//! Reading a topic to its end.

use std::time::Duration;

use client::{Client, ReceivedMessage, StartFrom};

use crate::wait::until;

/// All that can be consumed of a topic: at least what could be when this was called. Panics if that takes longer than `patience`.
pub async fn everything_in(client: &Client, topic: &str, patience: Duration) -> Vec<ReceivedMessage> {
    let mut reader = client.pull_consumer("reader").expect("a consumer");
    let mut queues = Vec::new();
    until(patience, "the queues can be assigned", async || {
        queues = reader.queues(topic).await.unwrap_or_default();
        !queues.is_empty() && reader.assign(&queues, StartFrom::First).await.is_ok()
    })
    .await;
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

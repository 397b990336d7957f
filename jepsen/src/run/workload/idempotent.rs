//! Messages that are sent again on purpose under the unique key that each has: by whoever sent it or by somebody else, at once
//! or much later, whether or not it was acknowledged; and readers. Half of the clients also try again by themselves.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use client::{Message, Producer};
use env::Rng;
use parking_lot::Mutex;

use super::{Clients, Failure, Site, Worker, message_queue, reading};
use crate::append::{self, QUEUES};
use crate::run::operations;

/// The topic of this workload.
pub const TOPIC: &str = "jepsen-idempotent";

const POLLERS: u32 = 2;

/// Between two sends of one sender: what was sent half a minute ago is to be found among what was sent since.
const PACE: Duration = Duration::from_millis(2);

/// A message is sent again no later than this. Far less than brokers look back, which is two minutes, and longer than any
/// fault: most of those that struck in the meantime have changed the leader.
const AGAIN_WITHIN: Duration = Duration::from_secs(30);

/// So many of the newest have been sent just now, and some of them are on their way.
const NEWEST: usize = 16;

/// What all senders have sent, the oldest first.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<VecDeque<Sending>>>);

#[derive(Clone, Copy)]
struct Sending {
    queue: u32,
    value: u64,
    /// When it was sent first, on the monotonic clock.
    at: Duration,
}

impl Sent {
    fn add(&self, sending: Sending) {
        self.0.lock().push_back(sending);
    }

    /// One of the newest, or any.
    fn draw(&self, rng: &Rng, now: Duration) -> Option<Sending> {
        let mut sent = self.0.lock();
        while sent.front().is_some_and(|oldest| oldest.at + AGAIN_WITHIN < now) {
            sent.pop_front();
        }
        let among = if rng.chance(1, 2) { sent.len() } else { sent.len().min(NEWEST) };
        let back = if among == 0 { 0 } else { rng.below(among as u64) as usize };
        sent.iter().rev().nth(back).copied()
    }
}

/// Starts `senders` senders, one message in flight each, and readers.
pub(super) fn start(clients: &mut Clients, rng: &Rng, senders: u32) -> io::Result<()> {
    let (site, sent) = (&clients.site, Sent::default());
    for k in 0..senders {
        let client = site.library()?;
        let producer = if k % 2 == 0 { site.producer(&client)? } else { site.persistent_producer(&client)? };
        clients.active.push(tokio::spawn(send(Worker::new(site, rng), client, producer, sent.clone())));
    }
    clients
        .active
        .extend((0..POLLERS).map(|_| tokio::spawn(reading::poll(Worker::new(site, rng), TOPIC, Site::is_stopped))));
    Ok(())
}

async fn send(mut worker: Worker, client: client::Client, producer: Producer, sent: Sent) -> io::Result<()> {
    while !worker.site.is_stopped() {
        let now = worker.site.env.clock.monotonic();
        let again = if worker.rng.chance(1, 2) { sent.draw(&worker.rng, now) } else { None };
        let sending = again.unwrap_or_else(|| {
            let (queue, value) = (worker.rng.below(QUEUES.into()) as u32, worker.site.new_value());
            Sending { queue, value, at: now }
        });
        let Sending { queue, value, .. } = sending;
        let message =
            Message::new(TOPIC, append::body(value)).with_unique_key(&key(value)).map_err(io::Error::other)?;
        let marks = again.map(|_| ("again", true.into())).into_iter().collect();
        worker.recorded.invoke("send", operations::send(queue, value), marks)?;
        if again.is_none() {
            sent.add(sending);
        }
        let answered = producer.send_to(message, &message_queue(TOPIC, queue)).await;
        let marks = answered.iter().map(|receipt| ("duplicate", receipt.duplicate.into())).collect();
        let placed =
            answered.map(|receipt| operations::sent(receipt.queue.queue_id as u32, receipt.queue_offset as u64, value));
        worker.ended_with(placed.map_err(Failure::from), marks).await?;
        worker.site.env.clock.sleep(PACE).await;
    }
    client.shutdown().await;
    Ok(())
}

/// The unique key of a value's message.
fn key(value: u64) -> String {
    format!("{value:032X}")
}

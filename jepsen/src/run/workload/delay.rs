//! Messages with a delay level, to drawn queues, and readers who tell when each becomes visible.

use std::io;
use std::time::Duration;

use client::Message;
use env::Rng;

use super::{Clients, Failure, Site, Worker, message_queue, reading};
use crate::append::{self, QUEUES};
use crate::history::edn::Edn;
use crate::run::operations;

/// The topic of this workload.
pub const TOPIC: &str = "jepsen-delay";

const SENDERS: u32 = 8;
const POLLERS: u32 = 2;

/// Between two sends of one sender: what is sent in the last seconds is still to come when they stop.
const PACE: Duration = Duration::from_millis(10);

/// Milliseconds of the delay levels 1, 2 and 3.
const LEVELS_MS: [u64; 3] = [1_000, 5_000, 10_000];

/// Starts senders and readers.
pub(super) fn start(clients: &mut Clients, rng: &Rng) -> io::Result<()> {
    let site = &clients.site;
    for _ in 0..SENDERS {
        clients.active.push(tokio::spawn(send(Worker::new(site, rng), site.library()?)));
    }
    let poller = |_| tokio::spawn(reading::poll(Worker::new(site, rng), TOPIC, Site::has_ended));
    clients.passive.extend((0..POLLERS).map(poller));
    Ok(())
}

async fn send(mut worker: Worker, client: client::Client) -> io::Result<()> {
    let producer = worker.site.producer(&client)?;
    while !worker.site.is_stopped() {
        let (queue, value) = (worker.rng.below(QUEUES.into()) as u32, worker.site.new_value());
        let level = worker.rng.below(LEVELS_MS.len() as u64) as usize;
        let message = Message::new(TOPIC, append::body(value)).with_delay_level(level as u8 + 1);
        worker.recorded.invoke("send", operations::send(queue, value), vec![("delay-ms", LEVELS_MS[level].into())])?;
        // It may be seen before its acknowledgement is.
        worker.site.progress.unseen.lock().insert(value);
        let sent = producer.send_to(message, &message_queue(TOPIC, queue)).await;
        let accepted = sent.map(|_| operations::sent(queue, Edn::Nil, value));
        if !worker.ended(accepted.map_err(Failure::from)).await? {
            worker.site.progress.unseen.lock().remove(&value);
        }
        worker.site.env.clock.sleep(PACE).await;
    }
    client.shutdown().await;
    Ok(())
}

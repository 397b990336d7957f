//! Sends of unique values to drawn queues: half of the senders by raw requests to any broker, once each; half by the client
//! library, which sends again what it does not know the end of; and readers.

use std::io;

use client::Message;
use env::Rng;

use super::{CALL, Clients, Failure, Site, Worker, message_queue, reading};
use crate::append::{self, QUEUES, SendError};
use crate::run::operations;

pub use crate::append::TOPIC;

const POLLERS: u32 = 3;

/// Starts `senders` senders, one message in flight each, and readers.
pub(super) fn start(clients: &mut Clients, rng: &Rng, senders: u32) -> io::Result<()> {
    let site = &clients.site;
    for k in 0..senders {
        let worker = Worker::new(site, rng);
        clients.active.push(if k % 2 == 0 {
            tokio::spawn(send(worker))
        } else {
            tokio::spawn(send_by_library(worker, site.library()?))
        });
    }
    clients
        .active
        .extend((0..POLLERS).map(|_| tokio::spawn(reading::poll(Worker::new(site, rng), TOPIC, Site::is_stopped))));
    Ok(())
}

async fn send(mut worker: Worker) -> io::Result<()> {
    while !worker.site.is_stopped() {
        let (queue, value) = (worker.rng.below(QUEUES.into()) as u32, worker.site.new_value());
        let node = worker.node();
        worker.recorded.invoke("send", operations::send(queue, value), vec![node])?;
        let (broker, now_ms) = (worker.address(), worker.site.env.clock.wall_ms());
        let sent = append::send(&worker.remoting, broker, TOPIC, queue, append::body(value), now_ms, CALL).await;
        let placed = sent.map(|offset| operations::sent(queue, offset, value));
        worker.ended(placed.map_err(Failure::from)).await?;
    }
    Ok(())
}

async fn send_by_library(mut worker: Worker, client: client::Client) -> io::Result<()> {
    let producer = worker.site.persistent_producer(&client)?;
    while !worker.site.is_stopped() {
        let (queue, value) = (worker.rng.below(QUEUES.into()) as u32, worker.site.new_value());
        worker.recorded.invoke("send", operations::send(queue, value), vec![("library", true.into())])?;
        let sent = producer.send_to(Message::new(TOPIC, append::body(value)), &message_queue(TOPIC, queue)).await;
        let placed = sent.map(|receipt| operations::sent(queue, receipt.queue_offset as u64, value));
        worker.ended(placed.map_err(Failure::from)).await?;
    }
    client.shutdown().await;
    Ok(())
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Failure {
        match error {
            SendError::NotDone(why) => Failure { why, certain: true },
            SendError::Unknown(why) => Failure { why, certain: false },
        }
    }
}

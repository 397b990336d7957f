//! Messages with a delay level, to drawn queues, and readers who tell when each becomes visible. Some are recalled, by others
//! than who has sent them: at any time of their delay, or about when it is over, and some twice.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use client::{Message, RecallError};
use env::Rng;
use parking_lot::Mutex;

use super::{Clients, Failure, Site, Worker, message_queue, reading};
use crate::append::{self, QUEUES};
use crate::history::edn::Edn;
use crate::run::operations;

/// The topic of this workload.
pub const TOPIC: &str = "jepsen-delay";

const SENDERS: u32 = 8;
const RECALLERS: u32 = 8;
const POLLERS: u32 = 2;

/// Between two sends of one sender: what is sent in the last seconds is still to come when they stop.
const PACE: Duration = Duration::from_millis(10);

/// Milliseconds of the delay levels 1, 2 and 3.
const LEVELS_MS: [u64; 3] = [1_000, 5_000, 10_000];

/// A recall that comes so long before or after the time of its message, at most, decides with it who is first.
const CLOSE: Duration = Duration::from_millis(100);

/// Messages that are to be recalled, by when.
#[derive(Clone, Default)]
struct Planned(Arc<Mutex<BTreeMap<(Duration, u64), Waiting>>>);

#[derive(Clone)]
struct Waiting {
    value: u64,
    handle: String,
    /// When its time is over, if it began when it was acknowledged.
    due: Duration,
}

impl Planned {
    fn add(&self, at: Duration, waiting: Waiting) {
        self.0.lock().insert((at, waiting.value), waiting);
    }

    /// One whose recall is due.
    fn take(&self, now: Duration) -> Option<Waiting> {
        let mut planned = self.0.lock();
        planned.first_entry().filter(|first| first.key().0 <= now).map(|first| first.remove())
    }
}

/// Starts senders, those who recall, and readers.
pub(super) fn start(clients: &mut Clients, rng: &Rng) -> io::Result<()> {
    let (site, planned) = (&clients.site, Planned::default());
    for _ in 0..SENDERS {
        clients.active.push(tokio::spawn(send(Worker::new(site, rng), site.library()?, planned.clone())));
    }
    for _ in 0..RECALLERS {
        clients.active.push(tokio::spawn(recall(Worker::new(site, rng), site.library()?, planned.clone())));
    }
    let poller = |_| tokio::spawn(reading::poll(Worker::new(site, rng), TOPIC, Site::has_ended));
    clients.passive.extend((0..POLLERS).map(poller));
    Ok(())
}

async fn send(mut worker: Worker, client: client::Client, planned: Planned) -> io::Result<()> {
    let producer = worker.site.producer(&client)?;
    while !worker.site.is_stopped() {
        let (queue, value) = (worker.rng.below(QUEUES.into()) as u32, worker.site.new_value());
        let level = worker.rng.below(LEVELS_MS.len() as u64) as usize;
        let message = Message::new(TOPIC, append::body(value)).with_delay_level(level as u8 + 1);
        worker.recorded.invoke("send", operations::send(queue, value), vec![("delay-ms", LEVELS_MS[level].into())])?;
        // It may be seen before its acknowledgement is.
        worker.site.progress.unseen.lock().insert(value);
        let sent = producer.send_to(message, &message_queue(TOPIC, queue)).await;
        if let Ok(receipt) = &sent
            && worker.rng.chance(1, 3)
        {
            let handle = receipt.recall_handle.clone().ok_or_else(|| io::Error::other("no recall handle"))?;
            let (now, delay) = (worker.site.env.clock.monotonic(), Duration::from_millis(LEVELS_MS[level]));
            let until = |limit: Duration| Duration::from_millis(worker.rng.below(limit.as_millis() as u64));
            let wait = if worker.rng.chance(1, 2) { until(delay) } else { delay - CLOSE + until(2 * CLOSE) };
            planned.add(now + wait, Waiting { value, handle, due: now + delay });
        }
        let accepted = sent.map(|_| operations::sent(queue, Edn::Nil, value));
        if !worker.ended(accepted.map_err(Failure::from)).await? {
            worker.site.progress.unseen.lock().remove(&value);
        }
        worker.site.env.clock.sleep(PACE).await;
    }
    client.shutdown().await;
    Ok(())
}

async fn recall(mut worker: Worker, client: client::Client, planned: Planned) -> io::Result<()> {
    let producer = worker.site.producer(&client)?;
    let clock = worker.site.env.clock.clone();
    let mut last_due = Duration::ZERO;
    while !worker.site.is_stopped() {
        let Some(waiting) = planned.take(clock.monotonic()) else {
            clock.sleep(PACE).await;
            continue;
        };
        worker.recorded.invoke("recall", waiting.value.into(), Vec::new())?;
        let recalled = producer.recall(TOPIC, &waiting.handle).await.map_err(Failure::from);
        if recalled.as_ref().err().is_none_or(|failure| !failure.certain) {
            worker.site.progress.unseen.lock().remove(&waiting.value);
            last_due = last_due.max(waiting.due);
        }
        let is_known = recalled.as_ref().err().is_none_or(|failure| failure.certain);
        worker.ended(recalled.map(|()| waiting.value.into())).await?;
        if !is_known || worker.rng.chance(1, 4) {
            planned.add(clock.monotonic(), waiting);
        }
    }
    // If it came in spite of its recall, the readers would see it now.
    clock.sleep((last_due + CLOSE).saturating_sub(clock.monotonic())).await;
    client.shutdown().await;
    Ok(())
}

impl From<RecallError> for Failure {
    fn from(error: RecallError) -> Failure {
        match error {
            RecallError::Request(error) => error.into(),
            // It is visible, and cannot be recalled any more.
            error => Failure { why: error.to_string(), certain: true },
        }
    }
}

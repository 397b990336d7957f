//! Consumers that pop messages under leases of seconds: they acknowledge them, give them back, keep them for too long, or
//! crash with them in their hands. Some messages are always given back, and end as dead letters.
//!
//! There are no members that own queues: whoever asks gets what is there.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::admin::Admin;
use client::{PopConsumer, PoppedMessage};
use env::Rng;
use protocol::body::SubscriptionGroupConfig;
use tokio::task::JoinHandle;

use super::{AGAIN, Clients, Site, Worker, consumption};
use crate::append;
use crate::cluster::PATIENCE;
use crate::history::edn::Edn;

/// The topic of this workload.
pub const TOPIC: &str = "jepsen-pop";

const GROUP: &str = "jepsen-pop-group";

const SENDERS: u32 = 4;
const CONSUMERS: u32 = 4;

/// How long a lease is.
const LEASE: Duration = Duration::from_secs(3);

/// How soon a message that is given back may come again.
const SOON: Duration = Duration::from_millis(500);

/// How long a pop waits for messages.
const WAIT: Duration = Duration::from_secs(1);

const AT_ONCE: u32 = 8;

/// One message of so many is always given back.
const POISONED: u64 = 101;

/// Deliveries after the first one, before a message is a dead letter.
const RETRIES: i32 = 2;

/// Starts senders and consumers.
pub(super) async fn start(clients: &mut Clients, rng: &Rng) -> io::Result<()> {
    let site = &clients.site;
    let config = SubscriptionGroupConfig { retry_max_times: RETRIES, ..SubscriptionGroupConfig::new(GROUP) };
    site.put_group(&config).await?;
    for _ in 0..SENDERS {
        clients.active.push(tokio::spawn(consumption::send(Worker::new(site, rng), site.library()?, TOPIC)));
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let pop = |_| tokio::spawn(consume(site.clone(), rng.fork(), is_over.clone()));
    clients.popping = Some(Popping { consumers: (0..CONSUMERS).map(pop).collect(), is_over: is_over.clone() });
    Ok(())
}

/// Pops until it is told that it is over, now and then as another process of the group.
async fn consume(site: Site, rng: Rng, is_over: Arc<AtomicBool>) -> io::Result<()> {
    let clock = &site.env.clock;
    let mut joined = join(&site)?;
    while !is_over.load(Ordering::Relaxed) {
        let asked = clock.monotonic();
        let Ok(messages) = joined.1.pop(TOPIC, WAIT).await else {
            clock.sleep(AGAIN).await;
            continue;
        };
        if rng.chance(1, 50) {
            // It crashes with the answer unread.
            joined.0.shutdown().await;
            joined = join(&site)?;
            continue;
        }
        for message in messages {
            take(&site, &rng, &joined.1, message, clock.monotonic() - asked).await?;
        }
    }
    joined.0.shutdown().await;
    Ok(())
}

fn join(site: &Site) -> io::Result<(client::Client, PopConsumer)> {
    let client = site.library()?;
    let consumer = client.pop_consumer(GROUP).map_err(io::Error::other)?;
    Ok((client, consumer.invisible_for(LEASE).max_messages(AT_ONCE)))
}

/// What becomes of one message; `since`: how long ago it was asked for.
async fn take(
    site: &Site,
    rng: &Rng,
    consumer: &PopConsumer,
    mut message: PoppedMessage,
    since: Duration,
) -> io::Result<()> {
    let mut recorded = site.recorder.client();
    let value = append::value(message.body())?;
    let consumption = Edn::vector([Edn::from(GROUP), value.into()]);
    let extra = vec![
        ("queue", Edn::from(i64::from(message.queue().queue_id))),
        ("offset", message.queue_offset().into()),
        ("lease-ms", (LEASE.saturating_sub(since).as_millis() as u64).into()),
        // Rounded up: the lease may have begun in the same millisecond.
        ("asked-ms-ago", (since.as_millis() as u64 + 1).into()),
    ];
    recorded.invoke("consume", consumption.clone(), extra)?;
    let is_poisoned = value % POISONED == 0;
    match rng.below(100) {
        // A crash within the message: nobody knows what it has done.
        0..2 => return Ok(()),
        // It takes longer than its lease.
        2 => site.env.clock.sleep(LEASE).await,
        3..8 => site.env.clock.sleep(Duration::from_millis(rng.below(50))).await,
        _ => {}
    }
    if is_poisoned || rng.chance(1, 50) {
        // Given back from here on, whatever becomes of the request.
        recorded.fail("given back")?;
        let _ = consumer.change_invisible(&mut message, SOON).await;
        return Ok(());
    }
    let deadline = site.env.clock.monotonic() + PATIENCE;
    loop {
        match consumer.ack(&message).await {
            Ok(true) => {
                site.succeeded();
                return recorded.ok(consumption, Vec::new());
            }
            Ok(false) => return recorded.fail("its lease was over"),
            Err(error) if site.env.clock.monotonic() > deadline => return recorded.info(&error.to_string()),
            // It may be done all the same, and then it does not come again: whoever asks until there is an answer knows.
            Err(_) => site.env.clock.sleep(AGAIN).await,
        }
    }
}

/// Consumers at work.
pub(super) struct Popping {
    consumers: Vec<JoinHandle<io::Result<()>>>,
    is_over: Arc<AtomicBool>,
}

impl Popping {
    /// Waits until nothing is left for the group and records that, or that it never came to it; then the consumers end, and
    /// the dead letters are read.
    pub async fn drain(self, site: &Site) -> io::Result<()> {
        let recorded = site.record_drained(GROUP, async || is_drained(site).await).await?;
        self.is_over.store(true, Ordering::Relaxed);
        for consumer in self.consumers {
            consumer.await.map_err(io::Error::other)??;
        }
        consumption::dead_letters(site, GROUP, recorded).await
    }
}

/// Whether every replica says that the group is done with all that is in the topic: a message in somebody's hands holds the
/// consumer offset of its queue.
async fn is_drained(site: &Site) -> bool {
    let admin = Admin::new(&site.env, vec![site.name_server.to_string()]);
    for replica in &site.replicas {
        let Ok(stats) = admin.consume_stats(&replica.to_string(), GROUP, Some(TOPIC)).await else { return false };
        if stats.offset_table.is_empty()
            || stats.offset_table.values().any(|queue| queue.consumer_offset < queue.broker_offset)
        {
            return false;
        }
    }
    true
}

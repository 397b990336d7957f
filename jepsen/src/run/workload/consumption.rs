//! Push consumers of one group that come, go and crash while messages are sent, and what is left in the end.
//!
//! Each member is a client library on a runtime of its own, which is dropped when the member crashes: nobody says goodbye,
//! and listeners are cut off within a message. Members fail some messages, and some always, which then lie in the
//! dead-letter queue: the broker puts there what concurrent members give back too often, orderly ones send it there
//! themselves. Orderly ones get what they fail again before any other of the queue.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use client::{Message, ReceivedMessage, Retry, StartFrom};
use env::Rng;
use parking_lot::Mutex;
use protocol::names;
use remoting::{Client, Limits, NoRequests};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::{AGAIN, Clients, Failure, Site, Worker, message_queue};
use crate::append::{self, QUEUES};
use crate::cluster::PATIENCE;
use crate::history::edn::Edn;
use crate::history::recorder;
use crate::run::operations;

const SENDERS: u32 = 4;
const MEMBERS: usize = 3;

/// Between two sends of one sender.
const PACE: Duration = Duration::from_millis(10);

/// A member always fails one message of so many.
const POISONED: u64 = 101;

/// So often it is tried again before it is a dead letter.
const ATTEMPTS: u16 = 2;

/// Delay level of a message that is given back: a second.
const RETRY_LEVEL: u8 = 1;

/// Nothing was delivered for so long, and nothing is left: longer than what was given back may take to come again.
const QUIET: Duration = Duration::from_secs(5);

/// How a group consumes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Consumption {
    /// The topic.
    pub topic: &'static str,
    group: &'static str,
    operation: &'static str,
    is_orderly: bool,
}

/// Several messages at once, in any order.
pub(super) const DELIVERY: Consumption =
    Consumption { topic: "jepsen-delivery", group: "jepsen-delivery-group", operation: "consume", is_orderly: false };

/// One message of each queue at a time.
pub(super) const ORDERLY: Consumption = Consumption {
    topic: "jepsen-orderly",
    group: "jepsen-orderly-group",
    operation: "consume-orderly",
    is_orderly: true,
};

/// Starts senders, members, and who makes members come and go.
pub(super) async fn start(clients: &mut Clients, rng: &Rng, consumption: Consumption) -> io::Result<()> {
    let site = &clients.site;
    site.create_group(consumption.group).await?;
    let listener = Arc::new(Listener {
        site: site.clone(),
        consumption,
        rng: rng.fork(),
        running: AtomicUsize::new(0),
        last_ns: AtomicU64::new(0),
        failed: Mutex::default(),
    });
    let members = (0..MEMBERS).map(|_| Member::join(&listener)).collect::<io::Result<Vec<_>>>()?;
    for _ in 0..SENDERS {
        clients.active.push(tokio::spawn(send(Worker::new(site, rng), site.library()?, consumption.topic)));
    }
    let churn = tokio::spawn(come_and_go(rng.fork(), Arc::clone(&listener), members));
    clients.consumers = Some(Consumers { listener, churn });
    Ok(())
}

/// Sends to drawn queues of a topic until changes end.
pub(super) async fn send(mut worker: Worker, client: client::Client, topic: &'static str) -> io::Result<()> {
    let producer = worker.site.producer(&client)?;
    while !worker.site.is_stopped() {
        let (queue, value) = (worker.rng.below(QUEUES.into()) as u32, worker.site.new_value());
        worker.recorded.invoke("send", operations::send(queue, value), Vec::new())?;
        let sent = producer.send_to(Message::new(topic, append::body(value)), &message_queue(topic, queue)).await;
        let placed = sent.map(|receipt| operations::sent(queue, receipt.queue_offset as u64, value));
        worker.ended(placed.map_err(Failure::from)).await?;
        worker.site.env.clock.sleep(PACE).await;
    }
    client.shutdown().await;
    Ok(())
}

/// What all members of the group do with a message.
struct Listener {
    site: Site,
    consumption: Consumption,
    rng: Rng,
    running: AtomicUsize,
    /// When the last message came, in nanoseconds of the monotonic clock.
    last_ns: AtomicU64,
    /// Why the history is incomplete, if it is.
    failed: Mutex<Option<String>>,
}

/// Counts down also when it is dropped within a message.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Recorders of one member that are within no message, by queue: whoever goes on in a queue is the same process.
type Idle = Mutex<BTreeMap<i32, Vec<recorder::Client>>>;

impl Listener {
    async fn handle(&self, idle: &Idle, message: &ReceivedMessage) -> Result<(), Retry> {
        self.last_ns.store(self.site.env.clock.monotonic().as_nanos() as u64, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        let _running = Running(&self.running);
        let told = self.consume(idle, message).await;
        told.unwrap_or_else(|error| {
            self.failed.lock().get_or_insert(error.to_string());
            Err(Retry::later("the history is incomplete"))
        })
    }

    async fn consume(&self, idle: &Idle, message: &ReceivedMessage) -> io::Result<Result<(), Retry>> {
        let value = append::value(message.body())?;
        let queue = message.queue().queue_id;
        let known = idle.lock().entry(queue).or_default().pop();
        let mut recorded = known.unwrap_or_else(|| self.site.recorder.client());
        let told = Edn::vector([Edn::from(self.consumption.group), value.into()]);
        let place = vec![("queue", i64::from(queue).into()), ("offset", message.queue_offset().into())];
        recorded.invoke(self.consumption.operation, told.clone(), place)?;
        self.site.env.clock.sleep(Duration::from_millis(self.rng.below(4))).await;
        let outcome = if value % POISONED == 0 || self.rng.chance(1, 50) {
            recorded.fail("to come again")?;
            Err(Retry::at_level(RETRY_LEVEL, "to come again"))
        } else {
            recorded.ok(told, Vec::new())?;
            Ok(())
        };
        idle.lock().entry(queue).or_default().push(recorded);
        Ok(outcome)
    }
}

/// A member of the group.
struct Member {
    runtime: Option<Runtime>,
    leave: Option<oneshot::Sender<()>>,
    left: oneshot::Receiver<io::Result<()>>,
}

impl Member {
    fn join(listener: &Arc<Listener>) -> io::Result<Member> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (leave, to_leave) = oneshot::channel();
        let (done, left) = oneshot::channel();
        let listener = Arc::clone(listener);
        runtime.spawn(async move {
            // Nobody hears of it if the member has crashed.
            let _ = done.send(live(listener, to_leave).await);
        });
        Ok(Member { runtime: Some(runtime), leave: Some(leave), left })
    }

    /// It leaves the group; an error if it could not do its work.
    async fn leave(mut self, site: &Site) -> io::Result<()> {
        drop(self.leave.take());
        let left = site.env.clock.timeout(PATIENCE, &mut self.left).await;
        let left = left.ok_or_else(|| io::Error::other(format!("a consumer does not stop within {PATIENCE:?}")))?;
        left.map_err(io::Error::other)?
    }
}

impl Drop for Member {
    /// It crashes, if it has not left.
    fn drop(&mut self) {
        self.runtime.take().expect("it is there until now").shutdown_background();
    }
}

async fn live(listener: Arc<Listener>, to_leave: oneshot::Receiver<()>) -> io::Result<()> {
    let Listener { site, consumption, .. } = &*listener;
    let client = site.library()?;
    let idle = Arc::new(Idle::default());
    let consumer = loop {
        let builder = client.push_consumer(consumption.group).subscribe(consumption.topic, "*");
        let builder = builder.start_from(StartFrom::First).orderly_pause(Duration::from_millis(100));
        let builder = builder.max_reconsume_times(ATTEMPTS);
        let handler = {
            let (listener, idle) = (Arc::clone(&listener), Arc::clone(&idle));
            move |message: Arc<ReceivedMessage>| {
                let (listener, idle) = (Arc::clone(&listener), Arc::clone(&idle));
                async move { listener.handle(&idle, &message).await }
            }
        };
        let started = if consumption.is_orderly {
            builder.start_orderly(handler).await
        } else {
            builder.concurrency(8).start(handler).await
        };
        match started {
            Ok(consumer) => break consumer,
            Err(client::StartError::Request(_)) => site.env.clock.sleep(AGAIN).await,
            Err(error) => return Err(io::Error::other(error)),
        }
    };
    // An error is the other side's end: that, too, means leave.
    let _ = to_leave.await;
    consumer.shutdown().await;
    client.shutdown().await;
    Ok(())
}

/// Members leave or crash, and others come, until changes end. Gives who is there then.
async fn come_and_go(rng: Rng, listener: Arc<Listener>, mut members: Vec<Member>) -> io::Result<Vec<Member>> {
    let site = &listener.site;
    while !site.is_stopped() {
        let next = site.env.clock.monotonic() + Duration::from_millis(3_000 + rng.below(5_000));
        while !site.is_stopped() && site.env.clock.monotonic() < next {
            site.env.clock.sleep(AGAIN).await;
        }
        let member = members.swap_remove(rng.below(members.len() as u64) as usize);
        if rng.chance(1, 2) {
            drop(member);
        } else {
            member.leave(site).await?;
        }
        members.push(Member::join(&listener)?);
    }
    Ok(members)
}

/// A group and its members.
pub(super) struct Consumers {
    listener: Arc<Listener>,
    churn: tokio::task::JoinHandle<io::Result<Vec<Member>>>,
}

impl Consumers {
    /// Waits until nothing is left for the group and records that, or that it never came to it; then the members leave, and
    /// the dead letters are read.
    pub async fn drain(self, site: &Site) -> io::Result<()> {
        let Consumers { listener, churn } = self;
        let members = churn.await.map_err(io::Error::other)??;
        let recorded = site.record_drained(listener.consumption.group, async || is_drained(&listener).await).await?;
        for member in members {
            member.leave(site).await?;
        }
        if let Some(error) = listener.failed.lock().take() {
            return Err(io::Error::other(error));
        }
        dead_letters(site, listener.consumption.group, recorded).await
    }
}

/// Whether no listener runs, none was called for a while, and every replica says that the group has consumed all that is in
/// its topics.
async fn is_drained(listener: &Listener) -> bool {
    let Listener { site, consumption: Consumption { group, topic, .. }, running, last_ns, .. } = listener;
    let last = Duration::from_nanos(last_ns.load(Ordering::Relaxed));
    if running.load(Ordering::Relaxed) > 0 || site.env.clock.monotonic() < last + QUIET {
        return false;
    }
    let admin = client::admin::Admin::new(&site.env, vec![site.name_server.to_string()]);
    for replica in &site.replicas {
        for topic in [(*topic).to_owned(), names::retry_topic(group)] {
            let Ok(stats) = admin.consume_stats(&replica.to_string(), group, Some(&topic)).await else { return false };
            if stats.offset_table.values().any(|queue| queue.consumer_offset < queue.broker_offset) {
                return false;
            }
        }
    }
    true
}

/// Reads the whole dead-letter queue.
pub(super) async fn dead_letters(site: &Site, group: &str, mut recorded: recorder::Client) -> io::Result<()> {
    let client = Client::new(&site.env, Limits::default(), Arc::new(NoRequests));
    recorded.invoke("dead-letters", Edn::vector([Edn::from(group), Edn::Nil]), Vec::new())?;
    let admin = client::admin::Admin::new(&site.env, vec![site.name_server.to_string()]);
    let (topic, replica) = (names::dlq_topic(group), site.replicas[0]);
    // Without a dead letter there is no topic.
    let exists = admin.topic_configs(&replica.to_string()).await.map_err(io::Error::other)?;
    let queues = exists.topic_config_table.get(&topic).map_or(0, |topic| topic.read_queue_nums);
    let mut values = Vec::new();
    for queue in 0..queues as u32 {
        values.extend(append::read_queue(&site.env, &client, replica, &topic, queue, 0).await?);
    }
    recorded.ok(Edn::vector([Edn::from(group), Edn::vector(values)]), Vec::new())
}

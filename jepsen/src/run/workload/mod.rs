//! Workloads: what clients do while faults strike, one file each.
//!
//! All of them record an operation before they ask and after they are answered. One that changes something ends `:fail` only
//! if it was certainly not carried out; what merely asks changes nothing, and without an answer it failed.

mod append;
mod consumption;
mod delay;
mod idempotent;
pub(super) mod metadata;
mod offsets;
mod pop;
mod reading;
mod transactions;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use client::admin::Admin;
use client::{AfterUnknown, Producer, RequestError};
use env::{Env, Rng};
use parking_lot::Mutex;
use protocol::body::{MessageQueue, SubscriptionGroupConfig};
use remoting::{Client, Limits, NoRequests};
use tokio::task::JoinHandle;

use super::NODES;
use crate::append::QUEUES;
use crate::cluster::PATIENCE;
use crate::history::edn::Edn;
use crate::history::recorder::{self, Recorder};

/// The brokers' group.
const BROKER: &str = "broker-a";

/// Who changes something waits so long for an answer. It does not know then; what it does next is to tell of a new leader
/// in time.
const CALL: Duration = Duration::from_secs(2);

/// After an error, before the next try elsewhere.
const BACK_OFF: Duration = Duration::from_millis(20);

/// What is left after the senders' end has so long to be consumed.
const DRAIN: Duration = Duration::from_secs(180);

/// Between two tries to set something up.
const AGAIN: Duration = Duration::from_millis(50);

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Sends of unique values to queues at any broker, by raw requests and by the client library, and polls.
    Append,
    /// Consumer offsets set, two-way and one-way, and asked for.
    Offsets,
    /// Push consumers that come, go and crash, some messages that always fail, and what lies in the dead-letter queue.
    Delivery,
    /// Messages with a delay level, some of them recalled, and polls.
    Delay,
    /// Orderly push consumers that come, go and crash.
    Orderly,
    /// Consumers that pop messages under leases, and some messages that are never acknowledged.
    Pop,
    /// Topics and consumer groups created, changed, deleted and asked for.
    Metadata,
    /// Half messages that are committed, rolled back, both, or left to whoever is asked; and polls.
    Transactions,
    /// Messages that are sent again on purpose under their unique keys, and polls.
    Idempotent,
}

impl Workload {
    /// As the command line and the history call it.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Append => "append",
            Workload::Offsets => "offsets",
            Workload::Delivery => "delivery",
            Workload::Delay => "delay",
            Workload::Orderly => "orderly",
            Workload::Pop => "pop",
            Workload::Metadata => "metadata",
            Workload::Transactions => "transactions",
            Workload::Idempotent => "idempotent",
        }
    }

    /// The topic that values are sent to.
    pub fn topic(self) -> Option<&'static str> {
        match self {
            Workload::Append => Some(append::TOPIC),
            Workload::Delivery => Some(consumption::DELIVERY.topic),
            Workload::Orderly => Some(consumption::ORDERLY.topic),
            Workload::Pop => Some(pop::TOPIC),
            Workload::Delay => Some(delay::TOPIC),
            Workload::Transactions => Some(transactions::TOPIC),
            Workload::Idempotent => Some(idempotent::TOPIC),
            Workload::Offsets | Workload::Metadata => None,
        }
    }

    /// Clauses of the contract that its history must touch.
    pub fn clauses(self) -> &'static [&'static str] {
        match self {
            Workload::Append => &["append", "one-value", "loss", "visibility", "equality", "liveness", "stats"],
            Workload::Offsets => &["offsets", "equality", "liveness", "stats"],
            Workload::Delivery => &["append", "one-value", "loss", "delivery", "equality", "liveness", "stats"],
            Workload::Delay => &["one-value", "visibility", "delay", "equality", "liveness", "stats"],
            Workload::Orderly => {
                &["append", "one-value", "loss", "delivery", "orderly", "equality", "liveness", "stats"]
            }
            Workload::Pop => &["append", "one-value", "loss", "delivery", "leases", "equality", "liveness", "stats"],
            Workload::Metadata => &["metadata", "equality", "liveness", "stats"],
            Workload::Transactions => &["one-value", "visibility", "transactions", "equality", "liveness", "stats"],
            Workload::Idempotent => {
                &["append", "one-value", "loss", "visibility", "resends", "equality", "liveness", "stats"]
            }
        }
    }
}

/// Where the clients of a run work.
#[derive(Clone, Debug)]
pub(super) struct Site {
    env: Env,
    recorder: Recorder,
    replicas: Vec<SocketAddr>,
    name_server: SocketAddr,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Operations that succeeded.
    done: AtomicU64,
    /// Changes end.
    stopped: AtomicBool,
    /// Also those that only look on end.
    ended: AtomicBool,
    next_value: AtomicU64,
    /// Values that were sent and not seen since, without those that were not acknowledged.
    unseen: Mutex<BTreeSet<u64>>,
}

impl Site {
    /// A cluster, and where to record what is done to it.
    pub fn new(env: &Env, recorder: &Recorder, replicas: &[SocketAddr], name_server: SocketAddr) -> Site {
        let (env, recorder, replicas) = (env.clone(), recorder.clone(), replicas.to_vec());
        Site { env, recorder, replicas, name_server, progress: Arc::default() }
    }

    /// A value that was never sent.
    fn new_value(&self) -> u64 {
        self.progress.next_value.fetch_add(1, Ordering::Relaxed)
    }

    fn succeeded(&self) {
        self.progress.done.fetch_add(1, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.progress.stopped.load(Ordering::Relaxed)
    }

    fn has_ended(&self) -> bool {
        self.progress.ended.load(Ordering::Relaxed)
    }

    /// Somebody has seen these.
    fn seen(&self, places: &[(u64, u64)]) {
        let mut unseen = self.progress.unseen.lock();
        for (_, value) in places {
            unseen.remove(value);
        }
    }

    /// A client library of its own.
    fn library(&self) -> io::Result<client::Client> {
        let limits = Limits { connect: Duration::from_secs(1), ..Limits::default() };
        let client = client::Client::builder().name_servers(self.name_server.to_string()).env(self.env.clone());
        client.limits(limits).request_timeout(CALL).build().map_err(io::Error::other)
    }

    /// A producer that never sends again what may have been stored.
    fn producer(&self, client: &client::Client) -> io::Result<Producer> {
        let producer = client.producer("jepsen").timeout(CALL).attempt_timeout(CALL);
        producer.after_unknown(AfterUnknown::GiveUp).start().map_err(io::Error::other)
    }

    /// A producer that sends again, within the time of one call, whatever has not been answered soon: that is one message all
    /// the same, and a value that stands twice says that it is not.
    fn persistent_producer(&self, client: &client::Client) -> io::Result<Producer> {
        client.producer("jepsen").timeout(CALL).attempt_timeout(CALL / 4).start().map_err(io::Error::other)
    }

    /// Does something at one broker after the other until one has done it; an error if that takes too long.
    async fn until_done<F>(&self, what: &str, mut attempt: impl FnMut(Admin, String) -> F) -> io::Result<()>
    where
        F: Future<Output = Result<(), RequestError>>,
    {
        let admin = || Admin::new(&self.env, vec![self.name_server.to_string()]).with_timeout(CALL);
        let done = async {
            for broker in self.replicas.iter().cycle() {
                match attempt(admin(), broker.to_string()).await {
                    Ok(()) => return,
                    Err(_) => self.env.clock.sleep(AGAIN).await,
                }
            }
        };
        let in_time = self.env.clock.timeout(PATIENCE, done).await;
        in_time.ok_or_else(|| io::Error::other(format!("{what} could not be made within {PATIENCE:?}")))
    }

    /// Waits until nothing is left for a group and records that, or that it never came to it.
    async fn record_drained(&self, group: &str, is_so: impl AsyncFn() -> bool) -> io::Result<recorder::Client> {
        self.record_end("drain", group.into(), DRAIN, is_so).await
    }

    /// Waits until it is so, for at most so long, and then looks once more and records what it is. Who has recorded it.
    async fn record_end(
        &self,
        f: &str,
        value: Edn,
        limit: Duration,
        is_so: impl AsyncFn() -> bool,
    ) -> io::Result<recorder::Client> {
        let mut recorded = self.recorder.client();
        let deadline = self.env.clock.monotonic() + limit;
        while !is_so().await && self.env.clock.monotonic() < deadline {
            self.env.clock.sleep(AGAIN).await;
        }
        recorded.invoke(f, value.clone(), Vec::new())?;
        if is_so().await {
            recorded.ok(value, Vec::new())?;
        } else {
            recorded.fail(&format!("something was left after {limit:?}"))?;
        }
        Ok(recorded)
    }

    /// Makes a consumer group.
    async fn create_group(&self, group: &str) -> io::Result<()> {
        self.put_group(&SubscriptionGroupConfig::new(group)).await
    }

    async fn put_group(&self, config: &SubscriptionGroupConfig) -> io::Result<()> {
        let put = |admin: Admin, broker: String| {
            let config = config.clone();
            async move { admin.put_group(&broker, &config).await }
        };
        self.until_done(&format!("group {}", config.group_name), put).await
    }
}

/// Clients at work until they are stopped.
pub(super) struct Clients {
    site: Site,
    /// Those that change something.
    active: Vec<Task>,
    /// Those that only look on.
    passive: Vec<Task>,
    consumers: Option<consumption::Consumers>,
    popping: Option<pop::Popping>,
    /// Who is asked how transactions have ended.
    answering: Option<transactions::Answering>,
    offsets: Option<offsets::LastLook>,
}

type Task = JoinHandle<io::Result<()>>;

impl Clients {
    /// Makes what the workload needs and starts its clients, `senders` of them where that is their number.
    pub async fn start(workload: Workload, site: Site, rng: &Rng, senders: u32) -> io::Result<Clients> {
        if let Some(topic) = workload.topic() {
            crate::append::create_topic(&site.env, &site.replicas, topic, QUEUES).await?;
        }
        let mut clients = Clients {
            site,
            active: Vec::new(),
            passive: Vec::new(),
            consumers: None,
            popping: None,
            answering: None,
            offsets: None,
        };
        match workload {
            Workload::Append => append::start(&mut clients, rng, senders),
            Workload::Offsets => offsets::start(&mut clients, rng).await,
            Workload::Delivery => consumption::start(&mut clients, rng, consumption::DELIVERY).await,
            Workload::Orderly => consumption::start(&mut clients, rng, consumption::ORDERLY).await,
            Workload::Delay => delay::start(&mut clients, rng),
            Workload::Pop => pop::start(&mut clients, rng).await,
            Workload::Metadata => metadata::start(&mut clients, rng),
            Workload::Transactions => transactions::start(&mut clients, rng).await,
            Workload::Idempotent => idempotent::start(&mut clients, rng, senders),
        }?;
        Ok(clients)
    }

    /// Resolves when `count` operations more have succeeded than at the call; an error if that takes too long.
    pub async fn succeed_more(&self, count: u64) -> io::Result<()> {
        let Site { env, progress, .. } = &self.site;
        let target = progress.done.load(Ordering::Relaxed) + count;
        let reached = async {
            while progress.done.load(Ordering::Relaxed) < target {
                env.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = env.clock.timeout(PATIENCE, reached).await;
        in_time.ok_or_else(|| io::Error::other(format!("no service: nothing like {count} successes in {PATIENCE:?}")))
    }

    /// They begin nothing more.
    pub fn abandon(&self) {
        self.site.progress.stopped.store(true, Ordering::Relaxed);
        self.site.progress.ended.store(true, Ordering::Relaxed);
    }

    /// Stops those that change something, waits for their last answers and until everything that was acknowledged has been
    /// seen, or patience ends; then stops the others. An error if one could not go on.
    pub async fn stop(self) -> io::Result<()> {
        let Clients { site, active, passive, consumers, popping, answering, offsets } = self;
        site.progress.stopped.store(true, Ordering::Relaxed);
        for task in active {
            task.await.map_err(io::Error::other)??;
        }
        if let Some(consumers) = consumers {
            consumers.drain(&site).await?;
        }
        if let Some(popping) = popping {
            popping.drain(&site).await?;
        }
        if let Some(answering) = answering {
            answering.settle(&site).await?;
        }
        if let Some(last_look) = offsets {
            last_look.take().await?;
        }
        let deadline = site.env.clock.monotonic() + PATIENCE;
        while !site.progress.unseen.lock().is_empty() && site.env.clock.monotonic() < deadline {
            site.env.clock.sleep(AGAIN).await;
        }
        site.progress.ended.store(true, Ordering::Relaxed);
        for task in passive {
            task.await.map_err(io::Error::other)??;
        }
        Ok(())
    }
}

/// One client: what it records, and which broker it speaks to now.
struct Worker {
    site: Site,
    /// As it calls itself, whatever process number it has now.
    name: String,
    remoting: Client<NoRequests>,
    recorded: recorder::Client,
    broker: usize,
    rng: Rng,
}

impl Worker {
    fn new(site: &Site, rng: &Rng) -> Worker {
        let rng = rng.fork();
        let limits = Limits { connect: Duration::from_secs(1), ..Limits::default() };
        let recorded = site.recorder.client();
        Worker {
            site: site.clone(),
            name: format!("client-{}", recorded.process()),
            remoting: Client::new(&site.env, limits, Arc::new(NoRequests)),
            recorded,
            broker: rng.below(NODES.len() as u64) as usize,
            rng,
        }
    }

    fn address(&self) -> SocketAddr {
        self.site.replicas[self.broker]
    }

    /// Whom it asks, for the history.
    fn node(&self) -> (&'static str, Edn) {
        ("node", NODES[self.broker].into())
    }

    fn go_elsewhere(&mut self) {
        self.broker = (self.broker + 1 + self.rng.below(2) as usize) % self.site.replicas.len();
    }

    /// Records how a change ended; `true` if it was done. After an error it goes elsewhere, a little later.
    async fn ended(&mut self, outcome: Result<Edn, Failure>) -> io::Result<bool> {
        self.ended_with(outcome, Vec::new()).await
    }

    /// The same, with what else the answer said if it was done.
    async fn ended_with(&mut self, outcome: Result<Edn, Failure>, extra: Vec<(&str, Edn)>) -> io::Result<bool> {
        match outcome {
            Ok(value) => {
                self.recorded.ok(value, extra)?;
                self.site.succeeded();
                return Ok(true);
            }
            Err(Failure { why, certain: true }) => self.recorded.fail(&why)?,
            Err(Failure { why, certain: false }) => self.recorded.info(&why)?,
        }
        self.go_elsewhere();
        self.site.env.clock.sleep(BACK_OFF).await;
        Ok(false)
    }
}

/// Why a change was not acknowledged.
struct Failure {
    why: String,
    /// It was certainly not carried out.
    certain: bool,
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Failure {
        Failure { why: error.to_string(), certain: error.is_retry_safe() }
    }
}

impl From<client::SendError> for Failure {
    fn from(error: client::SendError) -> Failure {
        Failure { why: error.to_string(), certain: error.is_retry_safe() }
    }
}

/// A queue of a topic, as the client library names it.
fn message_queue(topic: &str, queue: u32) -> MessageQueue {
    MessageQueue::new(topic, BROKER, queue as i32)
}

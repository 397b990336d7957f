//! The append workload: senders that choose queue and broker, and pollers that read on from where they are.
//!
//! A send ends `:fail` only if it was certainly not carried out. A poll changes nothing: without an answer it failed, and its
//! session goes on, at another replica.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use env::{Env, Rng};
use remoting::{Client, Limits, NoRequests};
use tokio::task::JoinHandle;

use super::{NODES, Run, operations};
use crate::append::{self, AT_ONCE, Pulled, QUEUES, SendError, TOPIC};
use crate::cluster::PATIENCE;
use crate::history::recorder;

const POLLERS: u32 = 3;

/// A sender waits so long for an answer. It does not know then; what it sends next is to tell of a new leader in time.
const SEND: Duration = Duration::from_secs(2);

/// After an error, before the next try elsewhere.
const BACK_OFF: Duration = Duration::from_millis(20);

/// A poller that has read everything looks again after this.
const IDLE: Duration = Duration::from_millis(50);

/// Clients at work until they are stopped.
pub struct Clients {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<io::Result<()>>>,
}

impl Clients {
    /// Starts `senders` senders, one message in flight each, and some pollers.
    pub fn start(run: &Run, senders: u32) -> Clients {
        let (acknowledged, stop, next_value) = (Arc::default(), Arc::default(), Arc::default());
        let limits = Limits { connect: Duration::from_secs(1), ..Limits::default() };
        let worker = || {
            let rng = run.rng.fork();
            Worker {
                env: run.env.clone(),
                remoting: Client::new(&run.env, limits.clone(), Arc::new(NoRequests)),
                recorded: run.recorder.client(),
                brokers: run.replicas.clone(),
                broker: rng.below(3) as usize,
                rng,
                stop: Arc::clone(&stop),
            }
        };
        let sender = |_| tokio::spawn(worker().send(Arc::<AtomicU64>::clone(&next_value), Arc::clone(&acknowledged)));
        let mut tasks: Vec<_> = (0..senders).map(sender).collect();
        tasks.extend((0..POLLERS).map(|_| tokio::spawn(worker().poll())));
        Clients { acknowledged, stop, tasks }
    }

    /// Resolves when `count` more are acknowledged than were at the call; an error if that takes too long.
    pub async fn acknowledge_more(&self, env: &Env, count: u64) -> io::Result<()> {
        let target = self.acknowledged.load(Ordering::Relaxed) + count;
        let reached = async {
            while self.acknowledged.load(Ordering::Relaxed) < target {
                env.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = env.clock.timeout(PATIENCE, reached).await;
        in_time.ok_or_else(|| io::Error::other(format!("no service: nothing like {count} sends in {PATIENCE:?}")))
    }

    /// Stops them and waits for their last answers. An error if one could not go on.
    pub async fn stop(self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.map_err(io::Error::other)??;
        }
        Ok(())
    }
}

struct Worker {
    env: Env,
    remoting: Client<NoRequests>,
    recorded: recorder::Client,
    brokers: Vec<SocketAddr>,
    /// Which of them it speaks to now.
    broker: usize,
    rng: Rng,
    stop: Arc<AtomicBool>,
}

impl Worker {
    async fn send(mut self, next_value: Arc<AtomicU64>, acknowledged: Arc<AtomicU64>) -> io::Result<()> {
        while !self.is_stopped() {
            let value = next_value.fetch_add(1, Ordering::Relaxed);
            let queue = self.rng.below(QUEUES.into()) as u32;
            let node = vec![("node", NODES[self.broker].into())];
            self.recorded.invoke("send", operations::send(queue, value), node)?;
            let (broker, now_ms) = (self.brokers[self.broker], self.env.clock.wall_ms());
            match append::send(&self.remoting, broker, TOPIC, queue, append::body(value), now_ms, SEND).await {
                Ok(offset) => {
                    self.recorded.ok(operations::sent(queue, offset, value), Vec::new())?;
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Err(SendError::NotDone(why)) => self.recorded.fail(&why)?,
                Err(SendError::Unknown(why)) => self.recorded.info(&why)?,
            }
            self.go_elsewhere();
            self.env.clock.sleep(BACK_OFF).await;
        }
        Ok(())
    }

    async fn poll(mut self) -> io::Result<()> {
        let mut next = [0; QUEUES as usize];
        while !self.is_stopped() {
            let mut read = 0;
            for (queue, next) in (0..).zip(&mut next) {
                let node = vec![("node", NODES[self.broker].into())];
                self.recorded.invoke("poll", operations::poll(), node)?;
                let (broker, now_ms) = (self.brokers[self.broker], self.env.clock.wall_ms());
                match append::pull(&self.remoting, broker, TOPIC, queue, *next, AT_ONCE, now_ms).await {
                    Ok(Pulled { records, .. }) => {
                        let places = append::places(&records)?;
                        self.recorded.ok(operations::polled(queue, &places), Vec::new())?;
                        *next = places.last().map_or(*next, |(offset, _)| offset + 1);
                        read += places.len();
                    }
                    Err(why) => {
                        self.recorded.fail(&why.to_string())?;
                        self.go_elsewhere();
                    }
                }
            }
            // Another replica must go on where this one left off.
            if self.rng.chance(1, 20) {
                self.go_elsewhere();
            }
            if read == 0 {
                self.env.clock.sleep(IDLE).await;
            }
        }
        Ok(())
    }

    fn go_elsewhere(&mut self) {
        self.broker = (self.broker + 1 + self.rng.below(2) as usize) % self.brokers.len();
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

//! How long service is gone when the leader is killed, as the client library sees it.
//!
//! Senders keep one message each in flight. The leader is killed with SIGKILL, again and again, and of each kill the longest
//! time between two acknowledgements is taken, from the last one before it until the killed broker is ready again.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::{Client, Message};
use env::{Env, Rng};
use parking_lot::Mutex;
use remoting::Limits;
use tokio::task::JoinHandle;

use crate::append::{QUEUES, body, create_topic};
use crate::cluster::{Cluster, PATIENCE, Settings};

const TOPIC: &str = "jepsen-failover";
const SENDERS: u64 = 8;

/// Between two looks at something that is about to happen.
const LOOK: Duration = Duration::from_millis(5);

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Leaders killed.
    pub kills: u32,
    /// Draws how long each has led.
    pub seed: u64,
    /// Half of the gaps may be this long.
    pub median_limit: Duration,
    /// And none longer than this.
    pub limit: Duration,
    /// The `raftmq` program.
    pub program: PathBuf,
    /// Where to work.
    pub dir: PathBuf,
}

/// The gaps, shortest first.
#[derive(Clone, Debug)]
pub struct Report {
    gaps: Vec<Duration>,
    acknowledged: u64,
}

impl Report {
    fn at(&self, percent: usize) -> Duration {
        self.gaps[(self.gaps.len() * percent).div_ceil(100).max(1) - 1]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} leaders killed, {} sends acknowledged; longest time without an acknowledgement, of each kill: p50 {:.2?}, p90 \
             {:.2?}, p99 {:.2?}, max {:.2?}",
            self.gaps.len(),
            self.acknowledged,
            self.at(50),
            self.at(90),
            self.at(99),
            self.at(100)
        )
    }
}

/// Acknowledgements as they come.
#[derive(Debug, Default)]
struct Acknowledgements {
    count: u64,
    last: Duration,
    longest_gap: Duration,
}

impl Acknowledgements {
    fn add(&mut self, at: Duration) {
        self.count += 1;
        self.longest_gap = self.longest_gap.max(at.saturating_sub(self.last));
        self.last = at;
    }

    /// Gaps count from here.
    fn begin(&mut self) {
        self.longest_gap = Duration::ZERO;
    }
}

/// Runs the plan. An error if service does not come back, or later than it may.
pub fn run(plan: &Plan) -> io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(kill_again_and_again(plan))
}

async fn kill_again_and_again(plan: &Plan) -> io::Result<Report> {
    let env = Env::real();
    let rng = Rng::seeded(plan.seed);
    let data_dirs: [PathBuf; 3] = std::array::from_fn(|k| plan.dir.join(format!("broker-{}", k + 1)));
    let mut cluster = Cluster::start(&plan.program, &plan.dir.join("processes"), &data_dirs, Settings::default())?;
    let brokers: Vec<_> = (0..3).map(|k| cluster.broker(k).client).collect();
    create_topic(&env, &brokers, TOPIC, QUEUES).await?;
    let acknowledged = Arc::new(Mutex::new(Acknowledgements::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let senders = senders(&env, &cluster, &acknowledged, &stop)?;
    let more = async |count: u64| {
        let target = acknowledged.lock().count + count;
        let reached = async {
            while acknowledged.lock().count < target {
                env.clock.sleep(LOOK).await;
            }
        };
        let in_time = env.clock.timeout(PATIENCE, reached).await;
        in_time.ok_or_else(|| io::Error::other(format!("no service within {PATIENCE:?}")))
    };
    more(SENDERS).await?;
    let mut gaps = Vec::new();
    while gaps.len() < plan.kills as usize {
        env.clock.sleep(Duration::from_millis(500 + rng.below(500))).await;
        more(SENDERS).await?;
        let Some(leader) = cluster.leader() else { continue };
        acknowledged.lock().begin();
        cluster.kill_brokers(&[leader])?;
        cluster.start_broker(leader)?;
        let deadline = env.clock.monotonic() + PATIENCE;
        while !cluster.is_ready(leader) {
            if env.clock.monotonic() > deadline {
                return Err(io::Error::other(format!("not ready again: {}", cluster.log_tail(leader))));
            }
            env.clock.sleep(LOOK).await;
        }
        // The gap ends before it is looked at.
        more(SENDERS).await?;
        let gap = acknowledged.lock().longest_gap;
        eprintln!("leader {} killed, {}/{}: {gap:.2?}", leader + 1, gaps.len() + 1, plan.kills);
        gaps.push(gap);
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.map_err(io::Error::other)?;
    }
    gaps.sort_unstable();
    let report = Report { gaps, acknowledged: acknowledged.lock().count };
    if report.at(50) > plan.median_limit || report.at(100) > plan.limit {
        let (median, limit) = (plan.median_limit, plan.limit);
        return Err(io::Error::other(format!("{report}: p50 may be {median:.2?}, max {limit:.2?}")));
    }
    Ok(report)
}

fn senders(
    env: &Env,
    cluster: &Cluster,
    acknowledged: &Arc<Mutex<Acknowledgements>>,
    stop: &Arc<AtomicBool>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let limits = Limits { connect: Duration::from_secs(1), ..Limits::default() };
    let client = Client::builder().name_servers(cluster.name_server().to_string()).env(env.clone()).limits(limits);
    let client = client.build().map_err(io::Error::other)?;
    let producer = client.producer("jepsen-failover").start().map_err(io::Error::other)?;
    let sender = |k: u64| {
        let (env, producer) = (env.clone(), producer.clone());
        let (acknowledged, stop) = (Arc::clone(acknowledged), Arc::clone(stop));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                // A send that fails is one that is not acknowledged: that is what is measured.
                if producer.send(Message::new(TOPIC, body(k))).await.is_ok() {
                    acknowledged.lock().add(env.clock.monotonic());
                }
            }
        })
    };
    Ok((0..SENDERS).map(sender).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_that_began_before_the_kill_counts_whole() {
        let mut acknowledged = Acknowledgements::default();
        acknowledged.add(Duration::from_millis(100));
        acknowledged.begin();
        acknowledged.add(Duration::from_millis(1_400));
        acknowledged.add(Duration::from_millis(1_401));
        assert_eq!(acknowledged.longest_gap, Duration::from_millis(1_300));
    }

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let gaps = (1..=200).map(Duration::from_millis).collect();
        let report = Report { gaps, acknowledged: 0 };
        assert_eq!([50, 99, 100].map(|percent| report.at(percent).as_millis()), [100, 198, 200]);
        let one = Report { gaps: vec![Duration::from_millis(7)], acknowledged: 0 };
        assert_eq!([50, 100].map(|percent| one.at(percent).as_millis()), [7, 7]);
    }
}

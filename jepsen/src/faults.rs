//! A cluster of three under load, one or all of its processes killed or powered off again and again.
//!
//! After every fault, once the victims are ready and the load is served again, the load stops and the cluster is judged:
//! the replicas must come to one end of the log with one chain ([`chain`]), and each must show everything acknowledged
//! ([`Judge`]). At the end of the run each replica is read once more, from the start.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use clap::ValueEnum;
use env::{Env, Rng};

use crate::append::{self, Load};
use crate::chain;
use crate::cluster::Cluster;
use crate::judge::Judge;
use crate::power;

/// What strikes the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// SIGKILL of one broker, drawn anew each time.
    KillOne,
    /// SIGKILL of all three at once.
    KillAll,
    /// Power failure of one broker's disk, and its end.
    PowerOne,
    /// Power failure of all three disks at once.
    PowerAll,
}

impl Fault {
    fn cuts_power(self) -> bool {
        matches!(self, Fault::PowerOne | Fault::PowerAll)
    }

    fn victims(self, rng: &Rng) -> Vec<usize> {
        match self {
            Fault::KillOne | Fault::PowerOne => vec![rng.below(3) as usize],
            Fault::KillAll | Fault::PowerAll => vec![0, 1, 2],
        }
    }
}

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What strikes.
    pub fault: Fault,
    /// How often.
    pub cycles: u32,
    /// Draws victims.
    pub seed: u64,
    /// Appends acknowledged between two faults, at least.
    pub appends: usize,
    /// Senders, one message in flight each.
    pub senders: u32,
    /// The `raftmq` program.
    pub program: PathBuf,
    /// Where to work.
    pub dir: PathBuf,
}

/// What a run has seen.
#[derive(Clone, Debug)]
pub struct Report {
    fault: Fault,
    cycles: u32,
    acknowledged: usize,
    compared: u32,
    longest_gap: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} x {}: {} appends acknowledged, each read from each replica, 0 lost; hashes of the three logs compared \
             {} times at the same entry, equal each time; longest time without an acknowledgement {:?}",
            self.fault, self.cycles, self.acknowledged, self.compared, self.longest_gap
        )
    }
}

/// Runs the plan. An error names what was violated, and how to see it again.
pub fn run(plan: &Plan) -> io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(strike_again_and_again(plan)).map_err(|error| {
        io::Error::other(format!("{:?} --seed {} in {}: {error}", plan.fault, plan.seed, plan.dir.display()))
    })
}

async fn strike_again_and_again(plan: &Plan) -> io::Result<Report> {
    let env = Env::real();
    let rng = Rng::seeded(plan.seed);
    let disks: Option<Vec<power::Disk>> = if plan.fault.cuts_power() {
        Some((1..=3).map(|k| power::Disk::create(&plan.dir, &format!("disk-{k}"), 4096)).collect::<io::Result<_>>()?)
    } else {
        None
    };
    let root = |k: usize| disks.as_ref().map_or(plan.dir.as_path(), |disks| disks[k].mount_point()).to_owned();
    let data_dirs: [PathBuf; 3] = std::array::from_fn(|k| data_dir(&root(k), k));
    let mut cluster = Cluster::start(&plan.program, &plan.dir.join("processes"), &data_dirs)?;
    let replicas: Vec<SocketAddr> = (0..3).map(|k| cluster.broker(k).client).collect();
    append::create_topic(&env, &replicas).await?;
    let next_value = Arc::new(AtomicU64::new(0));
    let mut judge = Judge::default();
    let (mut compared, mut longest_gap) = (0, Duration::ZERO);
    for cycle in 1..=plan.cycles {
        let load = Load::start(&env, &replicas, plan.senders, &next_value);
        load.acknowledge_more(&env, plan.appends).await?;
        let victims = plan.fault.victims(&rng);
        strike(&mut cluster, disks.as_deref(), &victims)?;
        for victim in &victims {
            cluster.start_broker(*victim)?;
        }
        for victim in &victims {
            cluster.wait_ready(*victim)?;
        }
        // The load has gone on through all of it; it must be served again before it is judged.
        load.acknowledge_more(&env, 1).await?;
        let answers = load.stop().await;
        longest_gap = longest_gap.max(answers.longest_gap);
        let agreed = chain::agree(&env, &replicas).await?;
        compared += 1;
        judge.check(&env, &replicas, answers.acknowledged).await?;
        let acknowledged = judge.acknowledged();
        eprintln!("{:?} {cycle}/{}: {acknowledged} acknowledged, none lost; {agreed}", plan.fault, plan.cycles);
    }
    let acknowledged = judge.acknowledged();
    judge.check_all(&env, &replicas).await?;
    Ok(Report { fault: plan.fault, cycles: plan.cycles, acknowledged, compared, longest_gap })
}

fn data_dir(root: &Path, k: usize) -> PathBuf {
    root.join(format!("broker-{}", k + 1))
}

fn strike(cluster: &mut Cluster, disks: Option<&[power::Disk]>, victims: &[usize]) -> io::Result<()> {
    if let Some(disks) = disks {
        // First everything stops, then the power goes, so that no victim sees another's end.
        cluster.pause_brokers(victims)?;
        let canaries: Vec<_> = victims.iter().map(|victim| disks[*victim].cut()).collect::<io::Result<_>>()?;
        cluster.kill_brokers(victims)?;
        victims.iter().zip(canaries).try_for_each(|(victim, canary)| disks[*victim].restore(&canary))
    } else {
        cluster.kill_brokers(victims)
    }
}

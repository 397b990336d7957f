//! A cluster of three under load, whose processes are killed, whose power is cut, or of whose disks one goes bad, again
//! and again.
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
use tokio::signal::unix::{SignalKind, signal};

use crate::append::{self, Answers, Load};
use crate::chain;
use crate::cluster::{Cluster, FLUSH_INTERVAL, Flush, Settings};
use crate::disk::Disk;
use crate::disk_fault::{DiskFault, Speed};
use crate::forgetful;
use crate::judge::{Judge, Lost};
use crate::one_disk;
use crate::replace;

/// Size of a broker's file system.
const DISK_MIB: u64 = 4096;

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
    /// One disk is full: ENOSPC. Here and below: the leader's every other time.
    DiskFull,
    /// One disk fails: EIO from every call.
    DiskErrorWrite,
    /// One disk fails: EIO from `fdatasync` after writes that succeed.
    DiskErrorSync,
    /// One disk cannot read a full CommitLog file: EIO.
    DiskErrorRead,
    /// Writes to one disk do not return.
    DiskFrozen,
    /// One disk is a hundred times slower.
    DiskSlow,
    /// One disk is lost, and a new node put in its place; in turn nobody, it or the leader is killed in the middle.
    Replace,
}

impl Fault {
    fn cuts_power(self) -> bool {
        matches!(self, Fault::PowerOne | Fault::PowerAll)
    }

    fn of_a_disk(self) -> Option<DiskFault> {
        match self {
            Fault::KillOne | Fault::KillAll | Fault::PowerOne | Fault::PowerAll | Fault::Replace => None,
            Fault::DiskFull => Some(DiskFault::Full),
            Fault::DiskErrorWrite => Some(DiskFault::ErrorWrite),
            Fault::DiskErrorSync => Some(DiskFault::ErrorSync),
            Fault::DiskErrorRead => Some(DiskFault::ErrorRead),
            Fault::DiskFrozen => Some(DiskFault::Frozen),
            Fault::DiskSlow => Some(DiskFault::Slow),
        }
    }

    /// A disk for one broker, if this takes one.
    fn disk(self, dir: &Path, name: &str) -> Option<io::Result<Disk>> {
        match self.of_a_disk() {
            Some(fault) => Some(fault.disk(dir, name, DISK_MIB)),
            None => self.cuts_power().then(|| Disk::create(dir, name, DISK_MIB)),
        }
    }
}

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What strikes.
    pub fault: Fault,
    /// When a replica acknowledges.
    pub flush: Flush,
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
    flush: Flush,
    cycles: u32,
    acknowledged: usize,
    compared: u32,
    longest_gap: Duration,
    one_disk: Option<one_disk::Seen>,
    forgetful: Option<forgetful::Seen>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { fault, flush, cycles, acknowledged, compared, longest_gap, .. } = self;
        write!(
            f,
            "{fault:?}, {flush:?} flush, x {cycles}: {acknowledged} appends acknowledged, each read from each replica, "
        )?;
        match self.forgetful {
            Some(forgetful) => write!(f, "but {forgetful}")?,
            None => write!(f, "0 lost")?,
        }
        write!(
            f,
            "; hashes of the three logs compared {compared} times at the same entry, equal each time; longest time without \
             an acknowledgement {longest_gap:?}"
        )?;
        self.one_disk.iter().try_for_each(|seen| write!(f, "; {seen}"))
    }
}

/// A run under way. What it holds ends in this order: processes first, then what they stand on.
#[derive(Debug)]
pub(crate) struct Run {
    pub env: Env,
    pub plan: Plan,
    pub rng: Rng,
    pub cluster: Cluster,
    pub disks: Vec<Arc<Disk>>,
    /// How fast the disks are when nobody uses them.
    pub speeds: Vec<Speed>,
    pub replicas: Vec<SocketAddr>,
    next_value: Arc<AtomicU64>,
    judge: Judge,
}

/// Runs the plan. An error names what was violated, and how to see it again; it is `Unsupported` if the machine cannot
/// produce the fault. A signal ends the run as an error does: no process, mount or fault of it is left behind.
pub fn run(plan: &Plan) -> io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! { biased;
            _ = interrupt.recv() => Err(io::Error::from(io::ErrorKind::Interrupted)),
            _ = terminate.recv() => Err(io::Error::from(io::ErrorKind::Interrupted)),
            report = strike_again_and_again(plan) => report,
        }
    });
    report.map_err(|error| {
        let text = format!("{:?} --seed {} in {}: {error}", plan.fault, plan.seed, plan.dir.display());
        io::Error::new(error.kind(), text)
    })
}

async fn strike_again_and_again(plan: &Plan) -> io::Result<Report> {
    let mut run = Run::start(plan.clone()).await?;
    let (mut compared, mut longest_gap) = (0, Duration::ZERO);
    let mut one_disk = plan.fault.of_a_disk().map(|_| one_disk::Seen::default());
    let forgets = plan.fault == Fault::PowerAll && plan.flush == Flush::Async;
    let mut forgetful = forgets.then(forgetful::Seen::default);
    for cycle in 1..=plan.cycles {
        let (answers, outage) = match (plan.fault.of_a_disk(), &mut one_disk, &mut forgetful) {
            (Some(fault), Some(seen), _) => (one_disk::cycle(&mut run, fault, cycle, seen).await?, None),
            (_, _, Some(_)) => {
                let (answers, outage) = forgetful::cycle(&mut run).await?;
                (answers, Some(outage))
            }
            _ if plan.fault == Fault::Replace => (replace::cycle(&mut run, cycle).await?, None),
            _ => (run.strike_processes().await?, None),
        };
        longest_gap = longest_gap.max(answers.longest_gap);
        let agreed = chain::agree(&run.env, &run.replicas).await?;
        compared += 1;
        let lost = match outage {
            None => {
                run.judge.check(&run.env, &run.replicas, answers.acknowledged).await?;
                Lost::default()
            }
            Some(outage) => run.judge.check_after(&run.env, &run.replicas, answers.acknowledged, outage).await?,
        };
        if let (Some(seen), Some(outage)) = (&mut forgetful, outage) {
            seen.note(lost, outage);
        }
        let (acknowledged, of) = (run.judge.acknowledged(), plan.cycles);
        let lost = match lost.count {
            0 => "none lost".to_owned(),
            count => format!("{count} lost, as allowed"),
        };
        eprintln!("{:?} {cycle}/{of}: {acknowledged} acknowledged, {lost}; {agreed}", plan.fault);
    }
    let acknowledged = run.judge.acknowledged();
    std::mem::take(&mut run.judge).check_all(&run.env, &run.replicas).await?;
    let (fault, flush, cycles) = (plan.fault, plan.flush, plan.cycles);
    Ok(Report { fault, flush, cycles, acknowledged, compared, longest_gap, one_disk, forgetful })
}

impl Run {
    async fn start(plan: Plan) -> io::Result<Run> {
        let env = Env::real();
        let disks = (1..=3).filter_map(|k| plan.fault.disk(&plan.dir, &format!("disk-{k}")));
        let disks: Vec<Arc<Disk>> = disks.map(|disk| disk.map(Arc::new)).collect::<io::Result<_>>()?;
        let speeds = match plan.fault.of_a_disk() {
            Some(_) => disks.iter().map(|disk| Speed::measure(disk)).collect::<io::Result<_>>()?,
            None => Vec::new(),
        };
        let root = |k: usize| disks.get(k).map_or(plan.dir.as_path(), |disk| disk.mount_point());
        let data_dirs: [PathBuf; 3] = std::array::from_fn(|k| root(k).join(format!("broker-{}", k + 1)));
        let settings = Settings {
            flush: plan.flush,
            // A power failure is noticed by it.
            boots: plan.fault.cuts_power() && plan.flush == Flush::Async,
            // The smallest: full ones are wanted.
            segment_mib: if plan.fault == Fault::DiskErrorRead { 16 } else { 64 },
            ..Settings::default()
        };
        let cluster = Cluster::start(&plan.program, &plan.dir.join("processes"), &data_dirs, settings)?;
        let replicas: Vec<SocketAddr> = (0..3).map(|k| cluster.broker(k).client).collect();
        append::create_topic(&env, &replicas, append::TOPIC, append::QUEUES).await?;
        let rng = Rng::seeded(plan.seed);
        let (next_value, judge) = (Arc::default(), Judge::default());
        Ok(Run { env, plan, rng, cluster, disks, speeds, replicas, next_value, judge })
    }

    /// The load of this run.
    pub fn load(&self) -> Load {
        Load::start(&self.env, &self.replicas, self.plan.senders, &self.next_value)
    }

    /// One cycle of kills or power failures.
    async fn strike_processes(&mut self) -> io::Result<Answers> {
        let load = self.load();
        load.acknowledge_more(&self.env, self.plan.appends).await?;
        let victims = match self.plan.fault {
            Fault::KillAll | Fault::PowerAll => vec![0, 1, 2],
            _ => vec![self.rng.below(3) as usize],
        };
        if self.plan.fault.cuts_power() {
            self.cut_power(&victims)?;
        } else {
            self.cluster.kill_brokers(&victims)?;
        }
        for victim in &victims {
            self.cluster.boot(*victim)?;
            self.cluster.start_broker(*victim)?;
        }
        for victim in &victims {
            self.cluster.wait_ready(*victim)?;
        }
        if self.plan.fault == Fault::PowerOne && self.plan.flush == Flush::Async {
            forgetful::until_it_votes_again(self, victims[0]).await?;
        }
        // The load has gone on through all of it; it must be served again before it is judged.
        load.acknowledge_more(&self.env, 1).await?;
        Ok(load.stop().await)
    }

    /// First everything stops, then the power goes, so that no victim sees another's end; and it is back.
    pub fn cut_power(&mut self, victims: &[usize]) -> io::Result<()> {
        self.cluster.pause_brokers(victims)?;
        let canaries: Vec<_> = victims.iter().map(|victim| self.disks[*victim].cut()).collect::<io::Result<_>>()?;
        self.cluster.kill_brokers(victims)?;
        victims.iter().zip(canaries).try_for_each(|(victim, canary)| self.disks[*victim].restore(&canary))
    }

    /// How much a power failure of all may take: the interval, and the longest flush of any broker so far.
    pub fn may_be_unflushed(&self) -> io::Result<Duration> {
        let longest = (0..3).map(|k| self.cluster.metric(k, "raftmq_longest_flush_seconds", ""));
        let longest = longest.collect::<io::Result<Vec<f64>>>()?.into_iter().fold(0.0, f64::max);
        Ok(FLUSH_INTERVAL + Duration::from_secs_f64(longest))
    }
}

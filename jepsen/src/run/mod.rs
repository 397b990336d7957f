//! `jepsen run`: a workload under faults drawn from a seed, recorded as a history and judged clause by clause.
//!
//! - [`workload`]: what clients do; [`operations`]: what that looks like in the history.
//! - [`nemesis`]: which fault strikes whom, and how long; each is recorded with evidence of its effect.
//! - `outfit`: what brokers are given so that it can, as far as this machine has it.
//! - `ending`: after the last fault, what each replica says and shows.
//!
//! The run itself judges nothing: it leaves `history.edn`, `test.edn` and the nodes' logs behind, and
//! [`crate::results`] judges those.

mod ending;
pub mod nemesis;
pub mod operations;
mod outfit;
pub mod workload;

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use env::{Env, Rng};
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::{Cluster, Hosts};
use crate::history::edn::Edn;
use crate::history::recorder::Recorder;
use crate::net::Network;
use crate::results;

use nemesis::{Nemesis, Schedule};
use outfit::Outfit;
use workload::{Clients, Site, Workload};

/// Names of the replicas in the history.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Operations that succeed after the last fault before the load stops: the cluster is whole again.
const AFTERWARDS: u64 = 100;

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What clients do.
    pub workload: Workload,
    /// What strikes, in turn; nothing if empty.
    pub nemeses: Vec<Nemesis>,
    /// How long, at least: each nemesis strikes once in any case.
    pub seconds: u64,
    /// Draws faults, victims, queues and brokers.
    pub seed: u64,
    /// Senders of the append workload, one message in flight each.
    pub senders: u32,
    /// The `raftmq` program.
    pub program: PathBuf,
    /// Where the brokers' data is.
    pub dir: PathBuf,
    /// Where history, verdict and logs go.
    pub out: PathBuf,
}

impl fmt::Display for Plan {
    /// The command that does it again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nemeses: Vec<_> = self.nemeses.iter().map(|nemesis| nemesis.name()).collect();
        write!(f, "jepsen run --workload {}", self.workload.name())?;
        if !nemeses.is_empty() {
            write!(f, " --nemesis {}", nemeses.join(","))?;
        }
        write!(f, " --seconds {} --seed {} --senders {}", self.seconds, self.seed, self.senders)
    }
}

/// A run under way. What it holds ends in this order: processes first, then what they stand on.
#[derive(Debug)]
struct Run {
    env: Env,
    rng: Rng,
    recorder: Recorder,
    cluster: Cluster,
    /// What brokers were given for the nemeses.
    outfit: Outfit,
    /// `None` on loopback.
    network: Option<Arc<Network>>,
    replicas: Vec<SocketAddr>,
}

/// Runs the plan and judges it. An error unless every clause that it requires is valid; `Unsupported` if they are, but a
/// nemesis could not be made here. A signal ends the run as an error does: no process, mount or fault is left behind.
pub fn run(plan: &Plan) -> io::Result<String> {
    let env = Env::real();
    fs::create_dir_all(&plan.out)?;
    let (clock, began) = (env.clock.clone(), env.clock.monotonic());
    let now = Box::new(move || clock.monotonic() - began);
    let recorder = Recorder::create(&plan.out.join("history.edn"), now)?;
    let network = match Network::create(NODES.len(), Rng::seeded(plan.seed)) {
        Ok(network) => Ok(Arc::new(network)),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Err(error),
        Err(error) => return Err(error),
    };
    let skipped = match &network {
        Ok(own) => own.within(own.clients(), || until_told_or_ended(plan, &env, recorder, &network)),
        Err(_) => until_told_or_ended(plan, &env, recorder, &network),
    };
    keep_logs(&processes(plan), &plan.out.join("nodes"))?;
    let again = |error: io::Error| io::Error::new(error.kind(), format!("{error}\nagain: {plan} --out DIR"));
    if let Err(error) = &skipped
        && error.kind() == io::ErrorKind::Interrupted
    {
        return Err(io::Error::from(io::ErrorKind::Interrupted));
    }
    // Also a run that came to no good end has a history.
    let verdict = results::run(&plan.out);
    match (skipped, verdict) {
        (Err(error), _) | (Ok(_), Err(error)) => Err(again(error)),
        (Ok(skipped), Ok(())) if skipped.is_empty() => Ok(format!("{plan}: valid")),
        (Ok(skipped), Ok(())) => Err(io::Error::new(io::ErrorKind::Unsupported, skipped.join("; "))),
    }
}

/// The network that a run has to itself, or why there is none.
type OwnNetwork = io::Result<Arc<Network>>;

/// Tells the whole story, or as much of it as there is before a signal.
fn until_told_or_ended(plan: &Plan, env: &Env, recorder: Recorder, network: &OwnNetwork) -> io::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! { biased;
            _ = interrupt.recv() => Err(io::Error::from(io::ErrorKind::Interrupted)),
            _ = terminate.recv() => Err(io::Error::from(io::ErrorKind::Interrupted)),
            skipped = tell(plan, env, recorder, network) => skipped,
        }
    })
    // With the runtime its clients end; those within an operation record that they do not know how it ended.
}

/// The whole story. Gives the nemeses that could not be made, and why.
async fn tell(plan: &Plan, env: &Env, recorder: Recorder, network: &OwnNetwork) -> io::Result<Vec<String>> {
    let rng = Rng::seeded(plan.seed);
    let mut skipped = Vec::new();
    let outfit = Outfit::make(plan, &recorder, network, rng.below(3) as usize, &mut skipped)?;
    let root = |k: usize| outfit.disks[k].as_ref().map_or(plan.dir.as_path(), |disk| disk.mount_point());
    let data_dirs: [PathBuf; 3] = std::array::from_fn(|k| root(k).join(format!("broker-{}", k + 1)));
    let hosts = network.as_ref().map_or(Hosts::LOOPBACK, |network| Hosts {
        brokers: std::array::from_fn(|k| network.host(k)),
        name_server: network.host(network.clients()),
    });
    let cluster = Cluster::start_on(&hosts, &plan.program, &processes(plan), &data_dirs, outfit.settings())?;
    let replicas: Vec<SocketAddr> = (0..3).map(|k| cluster.broker(k).client).collect();
    fs::write(plan.out.join("test.edn"), results::pretty(&declaration(plan, network)?))?;
    let schedule = Schedule::new(rng.fork(), &outfit.nemeses);
    let network = network.as_ref().ok().cloned();
    let mut run = Run { env: env.clone(), rng, recorder, cluster, outfit, network, replicas };

    let site = Site::new(env, &run.recorder, &run.replicas, run.cluster.name_server());
    let clients = Clients::start(plan.workload, site, &run.rng, plan.senders).await?;
    clients.succeed_more(1).await?;
    let struck = nemesis::strike_in_turn(&mut run, schedule, Duration::from_secs(plan.seconds), &mut skipped).await;
    if struck.is_err() {
        // The brokers are about to go, and that is no outage of theirs.
        clients.abandon();
    }
    struck?;
    clients.succeed_more(AFTERWARDS).await?;
    clients.stop().await?;
    ending::compare_chains(&run).await?;
    ending::read_all(&run, plan.workload).await?;
    Ok(skipped)
}

/// Where configurations and logs of the processes are while they run.
fn processes(plan: &Plan) -> PathBuf {
    plan.dir.join("processes")
}

/// What a run says about itself: `test.edn`.
fn declaration(plan: &Plan, network: &OwnNetwork) -> io::Result<Edn> {
    let program = fs::read(&plan.program)?;
    let config = fs::read_to_string(processes(plan).join("broker-1.toml"))?;
    // Of the harness; the program may be from elsewhere.
    let commit = Command::new("git").args(["rev-parse", "HEAD"]).output().ok().filter(|git| git.status.success());
    let commit = commit.map(|git| String::from_utf8_lossy(&git.stdout).trim().to_owned());
    Ok(Edn::map([
        ("name", plan.workload.name().into()),
        ("command", plan.to_string().into()),
        ("seed", plan.seed.into()),
        ("commit", commit.into()),
        ("program-bytes", program.len().into()),
        ("program-crc32c", format!("{:08x}", crc32c::crc32c(&program)).into()),
        ("nodes", Edn::vector(NODES)),
        ("nemeses", Edn::vector(plan.nemeses.iter().map(|nemesis| Edn::keyword(nemesis.name())))),
        ("network", network.as_ref().map_or("loopback", |_| "wire").into()),
        ("require", Edn::vector(plan.workload.clauses().iter().map(|clause| Edn::keyword(clause)))),
        ("outage-limit-ms", 5_000_u64.into()),
        ("recovery-limit-ms", 15_000_u64.into()),
        ("convergence-limit-ms", 60_000_u64.into()),
        ("config", config.into()),
    ]))
}

fn keep_logs(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(files) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to)?;
    for file in files {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

//! The nemesis: faults drawn from a seed, one after the other, each with evidence that it took effect.
//!
//! A fault lasts from before the first signal until what it struck has been started or resumed; how long service takes to
//! come back after that is the checkers' business. One whose evidence fails ends the run.
//!
//! Which fault when and for how long is a [`Schedule`], drawn here. Each file beside this one knows how to make some faults:
//! a function that strikes gives evidence and what is [`AtWork`], which knows how to end it.

mod network;
mod process;

use std::io;
use std::time::Duration;

use clap::ValueEnum;
use env::Rng;

use super::{NODES, Run};
use crate::cluster::PATIENCE;
use crate::history::edn::Edn;
use crate::net::link::{Counts, Pairs};

/// Between two looks at something that is about to happen.
const LOOK: Duration = Duration::from_millis(10);

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Nemesis {
    /// SIGKILL.
    Kill,
    /// SIGSTOP for longer than any election time-out, then SIGCONT.
    Pause,
    /// Power failure of the disk, and SIGKILL.
    Power,
    /// One of the four that follow, drawn each time.
    Partition,
    /// One replica is apart from everybody, clients too.
    PartitionHalves,
    /// The leader is apart from the other replicas; clients still reach it.
    PartitionLeader,
    /// A replica does not hear the others, which hear it, or the other way round.
    PartitionOneWay,
    /// Two replicas do not reach each other, and both reach the third.
    PartitionRing,
    /// Packets are slow, and overtake each other.
    Delay,
    /// Packets are lost.
    Loss,
    /// Packets come twice.
    Duplicate,
}

impl Nemesis {
    /// As the command line and the history call it.
    pub fn name(self) -> &'static str {
        match self {
            Nemesis::Kill => "kill",
            Nemesis::Pause => "pause",
            Nemesis::Power => "power",
            Nemesis::Partition => "partition",
            Nemesis::PartitionHalves => "partition-halves",
            Nemesis::PartitionLeader => "partition-leader",
            Nemesis::PartitionOneWay => "partition-one-way",
            Nemesis::PartitionRing => "partition-ring",
            Nemesis::Delay => "delay",
            Nemesis::Loss => "loss",
            Nemesis::Duplicate => "duplicate",
        }
    }

    /// How long it lasts, in milliseconds: from, and up to. Elections time out within one second.
    fn lasts(self) -> (u64, u64) {
        match self {
            Nemesis::Kill | Nemesis::Power => (0, 4_000),
            Nemesis::Pause => (2_500, 7_000),
            // Longer than service may take to come back meanwhile.
            _ if self.is_partition() => (4_000, 12_000),
            _ => (3_000, 8_000),
        }
    }

    fn is_partition(self) -> bool {
        self == Nemesis::Partition || PARTITIONS.contains(&self)
    }

    /// Whether it needs a network of the harness's own.
    pub fn is_of_the_network(self) -> bool {
        self.is_partition() || matches!(self, Nemesis::Delay | Nemesis::Loss | Nemesis::Duplicate)
    }

    /// Itself, or one of its family.
    fn member(self, rng: &Rng) -> Nemesis {
        if self == Nemesis::Partition { PARTITIONS[rng.below(PARTITIONS.len() as u64) as usize] } else { self }
    }

    /// Whom it strikes of those that it is aimed at. A partition turns around one replica.
    fn target(self, drawn: Target) -> Target {
        match (self, drawn) {
            (Nemesis::PartitionLeader, _) => Target::Leader,
            (_, Target::All) if self.is_partition() => Target::Leader,
            _ => drawn,
        }
    }
}

const PARTITIONS: [Nemesis; 4] =
    [Nemesis::PartitionHalves, Nemesis::PartitionLeader, Nemesis::PartitionOneWay, Nemesis::PartitionRing];

/// Whom it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// That one.
    One(usize),
    /// Whoever leads then.
    Leader,
    /// All at once.
    All,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    /// Calm before it.
    pub calm: Duration,
    /// What.
    pub nemesis: Nemesis,
    /// Whom.
    pub target: Target,
    /// For how long.
    pub lasts: Duration,
    /// Draws whatever else there is to it.
    pub seed: u64,
}

/// The faults of a run: rounds in which each nemesis has its turn, in an order drawn anew. A function of the seed.
#[derive(Debug)]
pub struct Schedule {
    rng: Rng,
    nemeses: Vec<Nemesis>,
    /// What is left of this round.
    round: Vec<Nemesis>,
}

impl Schedule {
    /// A schedule of those nemeses.
    pub fn new(rng: Rng, nemeses: &[Nemesis]) -> Schedule {
        let mut nemeses = nemeses.to_vec();
        nemeses.sort_unstable();
        nemeses.dedup();
        Schedule { rng, round: nemeses.clone(), nemeses }
    }

    /// Whether a round is under way.
    pub fn is_within_a_round(&self) -> bool {
        !self.round.is_empty()
    }
}

impl Iterator for Schedule {
    type Item = Strike;

    fn next(&mut self) -> Option<Strike> {
        if self.round.is_empty() {
            self.round.clone_from(&self.nemeses);
        }
        if self.round.is_empty() {
            return None;
        }
        let nemesis = self.round.swap_remove(self.rng.below(self.round.len() as u64) as usize);
        let target = match self.rng.below(4) {
            0 | 1 => Target::One(self.rng.below(NODES.len() as u64) as usize),
            2 => Target::Leader,
            _ => Target::All,
        };
        let (from, to) = nemesis.lasts();
        let lasts = Duration::from_millis(from + self.rng.below(to - from));
        let calm = Duration::from_millis(1_000 + self.rng.below(3_000));
        Some(Strike { calm, nemesis, target, lasts, seed: self.rng.u64() })
    }
}

/// Strikes again and again until the time is over and each nemesis had its turn. All brokers are ready then.
pub(super) async fn strike_in_turn(run: &mut Run, mut schedule: Schedule, time: Duration) -> io::Result<()> {
    let clock = run.env.clock.clone();
    let end = clock.monotonic() + time;
    let mut first_round = schedule.is_within_a_round();
    while first_round || clock.monotonic() < end {
        let Some(fault) = schedule.next() else {
            clock.sleep(end.saturating_sub(clock.monotonic())).await;
            break;
        };
        first_round &= schedule.is_within_a_round();
        clock.sleep(fault.calm).await;
        strike(run, fault).await?;
    }
    Ok(())
}

/// One fault, from calm to calm.
async fn strike(run: &mut Run, fault: Strike) -> io::Result<()> {
    let rng = Rng::seeded(fault.seed);
    let (nemesis, lasts) = (fault.nemesis.member(&rng), fault.lasts);
    let victims = match nemesis.target(fault.target) {
        Target::One(victim) => vec![victim],
        Target::Leader => vec![run.cluster.leader().unwrap_or(0)],
        Target::All => vec![0, 1, 2],
    };
    let (start, stop) = (format!("start-{}", nemesis.name()), format!("stop-{}", nemesis.name()));
    let majority = victims.len() > 1 && !nemesis.is_of_the_network();
    run.recorder.nemesis(&start, Edn::Nil, vec![("majority", majority.into())])?;
    let (evidence, at_work) = nemesis.begin(run, &victims, &rng).await?;
    eprintln!("{} of {}", nemesis.name(), victims.iter().map(|k| NODES[*k]).collect::<Vec<_>>().join(", "));
    run.recorder.nemesis(&start, by_node(evidence), Vec::new())?;
    run.env.clock.sleep(lasts).await;

    run.recorder.nemesis(&stop, Edn::Nil, Vec::new())?;
    let evidence = at_work.end(run).await?;
    run.recorder.nemesis(&stop, by_node(evidence), Vec::new())?;
    for k in 0..NODES.len() {
        until_ready(run, k).await?;
    }
    Ok(())
}

/// What shows that a fault took effect, or that it is over, by node.
type Evidence = Vec<(usize, Edn)>;

/// A fault that is to be ended.
#[derive(Debug)]
enum AtWork {
    /// These processes have ended.
    Down(Vec<usize>),
    /// These are stopped.
    Paused(Vec<usize>),
    /// Links are not whole; what was counted on each before.
    Network(Pairs<Counts>),
}

impl Nemesis {
    /// Strikes. An error if there is no evidence that it took effect.
    async fn begin(self, run: &mut Run, victims: &[usize], rng: &Rng) -> io::Result<(Evidence, AtWork)> {
        match self {
            Nemesis::Kill => process::kill(run, victims).await,
            Nemesis::Pause => process::pause(run, victims).await,
            Nemesis::Power => process::cut_power(run, victims).await,
            _ => network::begin(run, self, victims, rng),
        }
    }
}

impl AtWork {
    /// Takes the fault away. What it struck need not be well yet.
    async fn end(self, run: &mut Run) -> io::Result<Evidence> {
        match self {
            AtWork::Down(victims) => process::start(run, &victims),
            AtWork::Paused(victims) => process::resume(run, &victims),
            AtWork::Network(before) => network::heal(run, &before),
        }
    }
}

async fn until_ready(run: &mut Run, k: usize) -> io::Result<()> {
    let clock = run.env.clock.clone();
    let deadline = clock.monotonic() + PATIENCE;
    while !run.cluster.is_ready(k) {
        if let Some(ended) = run.cluster.supervise(k)? {
            return Err(io::Error::other(format!("{} ended: {ended:?}; {}", NODES[k], run.cluster.log_tail(k))));
        }
        if clock.monotonic() > deadline {
            return Err(io::Error::other(format!("{} is not ready; {}", NODES[k], run.cluster.log_tail(k))));
        }
        clock.sleep(LOOK).await;
    }
    Ok(())
}

/// What a node is called; who is no replica is a client.
fn name(node: usize) -> &'static str {
    NODES.get(node).copied().unwrap_or("clients")
}

fn by_node(evidence: Evidence) -> Edn {
    Edn::Map(evidence.into_iter().map(|(k, shown)| (name(k).into(), shown)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strikes(seed: u64) -> Vec<Strike> {
        let nemeses = Nemesis::value_variants();
        Schedule::new(Rng::seeded(seed), nemeses).take(20 * nemeses.len()).collect()
    }

    #[test]
    fn a_seed_is_a_schedule_in_which_each_nemesis_has_its_turn() {
        assert_eq!(strikes(1), strikes(1));
        assert_ne!(strikes(1), strikes(2));
        for round in strikes(3).chunks(Nemesis::value_variants().len()) {
            let mut struck: Vec<_> = round.iter().map(|strike| strike.nemesis).collect();
            struck.sort_unstable();
            assert_eq!(struck, Nemesis::value_variants());
        }
        for target in [Target::Leader, Target::All] {
            assert!(strikes(4).iter().any(|strike| strike.target == target));
        }
        assert_eq!(Schedule::new(Rng::seeded(1), &[]).next(), None);
    }
}

//! The nemesis: faults drawn from a seed, one after the other, each with evidence that it took effect.
//!
//! A fault lasts from before the first signal until what it struck has been started, resumed or mended; how long service takes
//! to come back after that is the checkers' business. One whose evidence fails ends the run; one that this machine cannot make
//! is recorded as skipped and not tried again.
//!
//! Which fault when and for how long is drawn by a [`Schedule`]. Each of the other files knows how to make some faults: a
//! function that strikes gives evidence and what is [`AtWork`], which knows how to end it. Meanwhile brokers are supervised:
//! those whose disks or files are bad may end, with a reason, and are started again; any other that ends, ends the run.

mod clock;
mod cpu;
mod damage;
mod disk;
mod members;
mod network;
mod process;
mod schedule;
mod supervision;

use std::io;
use std::time::Duration;

use clap::ValueEnum;
use env::Rng;

use super::outfit::skip;
use super::{NODES, Run};
use crate::cgroup::Group;
use crate::disk_fault::{DiskFault, Struck};
use crate::history::edn::Edn;
use crate::net::link::{Counts, Pairs};

use supervision::{look_after, until_well, watch};

pub use disk::Ground;
pub use schedule::{Schedule, Strike, Target};

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
    /// One disk is full: ENOSPC.
    DiskFull,
    /// One disk is a hundred times slower.
    DiskSlow,
    /// One disk fails: EIO from every call.
    DiskErrorWrite,
    /// One disk fails: EIO from `fdatasync` after writes that succeed.
    DiskErrorSync,
    /// One disk cannot read parts of a full CommitLog file: EIO.
    DiskErrorRead,
    /// Writes to one disk do not return.
    DiskFrozen,
    /// A durable bit of a killed broker's files turns.
    BitFlip,
    /// The durable end of a stopped broker's log is cut off, or reads as zeros.
    CutTail,
    /// One disk is lost, and a new node put in its place.
    Replace,
    /// A member leaves, and comes back as a new node that learns and then votes.
    Membership,
    /// Leadership is handed over.
    Transfer,
    /// One wall clock jumps, or runs at another rate.
    ClockStep,
    /// A broker gets a twentieth of a processor.
    Cpu,
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

const PARTITIONS: [Nemesis; 4] =
    [Nemesis::PartitionHalves, Nemesis::PartitionLeader, Nemesis::PartitionOneWay, Nemesis::PartitionRing];

impl Nemesis {
    /// As the command line and the history call it.
    pub fn name(self) -> &'static str {
        match self {
            Nemesis::Kill => "kill",
            Nemesis::Pause => "pause",
            Nemesis::Power => "power",
            Nemesis::DiskFull => "disk-full",
            Nemesis::DiskSlow => "disk-slow",
            Nemesis::DiskErrorWrite => "disk-error-write",
            Nemesis::DiskErrorSync => "disk-error-sync",
            Nemesis::DiskErrorRead => "disk-error-read",
            Nemesis::DiskFrozen => "disk-frozen",
            Nemesis::BitFlip => "bit-flip",
            Nemesis::CutTail => "cut-tail",
            Nemesis::Replace => "replace",
            Nemesis::Membership => "membership",
            Nemesis::Transfer => "transfer",
            Nemesis::ClockStep => "clock-step",
            Nemesis::Cpu => "cpu",
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

    /// How long it lasts, in milliseconds: from, and up to. Elections time out within one second; a disk or a processor that
    /// is too slow for a leader is noticed within some.
    fn lasts(self) -> (u64, u64) {
        match self {
            Nemesis::Kill | Nemesis::Power | Nemesis::Replace | Nemesis::Membership => (0, 4_000),
            Nemesis::Pause => (2_500, 7_000),
            Nemesis::BitFlip | Nemesis::CutTail | Nemesis::DiskErrorRead | Nemesis::Transfer => (0, 1_000),
            Nemesis::DiskErrorWrite | Nemesis::DiskErrorSync => (3_000, 8_000),
            // What was made ready of the log is used up first.
            Nemesis::DiskFull => (8_000, 16_000),
            Nemesis::DiskSlow | Nemesis::DiskFrozen | Nemesis::ClockStep | Nemesis::Cpu => (6_000, 12_000),
            Nemesis::Delay | Nemesis::Loss | Nemesis::Duplicate => (3_000, 8_000),
            // Longer than service may take to come back meanwhile.
            Nemesis::Partition
            | Nemesis::PartitionHalves
            | Nemesis::PartitionLeader
            | Nemesis::PartitionOneWay
            | Nemesis::PartitionRing => (5_500, 12_000),
        }
    }

    /// Whether it may strike all replicas at once: the contract bears damaged and lost disks of a minority, and a minority's
    /// wrong clocks. A partition turns around one.
    pub fn may_strike_all(self) -> bool {
        matches!(self, Nemesis::Kill | Nemesis::Pause | Nemesis::Power) || self.makes_links_bad()
    }

    /// Whether it needs a network of the harness's own.
    pub fn is_of_the_network(self) -> bool {
        self.makes_links_bad() || self == Nemesis::Partition || PARTITIONS.contains(&self)
    }

    fn makes_links_bad(self) -> bool {
        matches!(self, Nemesis::Delay | Nemesis::Loss | Nemesis::Duplicate)
    }

    /// Itself, or one of its family.
    fn member(self, rng: &Rng) -> Nemesis {
        if self == Nemesis::Partition { PARTITIONS[rng.below(PARTITIONS.len() as u64) as usize] } else { self }
    }

    /// Whether brokers are to have small CommitLog files, which are soon full, and which they read through all the time.
    pub fn wants_full_files(self) -> bool {
        matches!(self, Nemesis::DiskErrorRead | Nemesis::BitFlip | Nemesis::CutTail | Nemesis::DiskFull)
    }

    /// Whether what it strikes may end by itself, with a reason.
    fn is_fatal(self) -> bool {
        matches!(
            self,
            Nemesis::DiskFull
                | Nemesis::DiskErrorWrite
                | Nemesis::DiskErrorSync
                | Nemesis::DiskSlow
                | Nemesis::DiskFrozen
        )
    }
}

/// Strikes again and again until the time is over and each nemesis had its turn. All is well then, as before each fault: what
/// strikes one replica must not meet another that has not recovered, or else a majority has failed. What turned out not to be possible on this machine, and why, is added to `skipped`.
pub(super) async fn strike_in_turn(
    run: &mut Run,
    mut schedule: Schedule,
    time: Duration,
    skipped: &mut Vec<String>,
) -> io::Result<()> {
    let clock = run.env.clock.clone();
    let end = clock.monotonic() + time;
    let mut first_round = schedule.is_within_a_round();
    while first_round || clock.monotonic() < end {
        let Some(fault) = schedule.next() else {
            watch(run, None, end.saturating_sub(clock.monotonic())).await?;
            break;
        };
        first_round &= schedule.is_within_a_round();
        watch(run, None, fault.calm).await?;
        match strike(run, fault).await {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                skipped.push(skip(&run.recorder, fault.nemesis, &error)?);
                schedule.give_up(fault.nemesis);
            }
            struck => struck?,
        }
        until_well(run, fault.nemesis).await?;
    }
    Ok(())
}

/// One fault, from its beginning to its end.
async fn strike(run: &mut Run, fault: Strike) -> io::Result<()> {
    let Strike { target, lasts, seed, .. } = fault;
    let rng = Rng::seeded(seed);
    let nemesis = fault.nemesis.member(&rng);
    let victims = victims(run, nemesis, target);
    if target == Target::Leader && nemesis != Nemesis::Transfer {
        members::let_lead(run, victims[0]).await?;
    }
    let (start, stop) = (format!("start-{}", nemesis.name()), format!("stop-{}", nemesis.name()));
    // Links are never so bad that two replicas could not be in touch.
    let majority = victims.len() > 1 && !nemesis.is_of_the_network();
    let leader = run.cluster.leader().map_or(Edn::Nil, |leader| NODES[leader].into());
    run.recorder.nemesis(&start, Edn::Nil, vec![("majority", majority.into()), ("leader", leader)])?;
    let (evidence, mut at_work) = nemesis.begin(run, &victims, &rng).await?;
    let evidence = by_node(evidence);
    eprintln!("{}: {evidence}", nemesis.name());
    run.recorder.nemesis(&start, evidence, Vec::new())?;
    watch(run, Some((nemesis, &mut at_work)), lasts).await?;

    run.recorder.nemesis(&stop, Edn::Nil, Vec::new())?;
    let evidence = by_node(at_work.end(run).await?);
    run.recorder.nemesis(&stop, evidence, Vec::new())
}

/// Whom it strikes: of those that are meant, the ones that it can strike, or else whoever it can.
fn victims(run: &Run, nemesis: Nemesis, target: Target) -> Vec<usize> {
    let leader = || run.cluster.leader().unwrap_or(0);
    let meant = match target {
        // The leader leads already.
        Target::Leader if nemesis == Nemesis::Transfer => vec![(leader() + 1) % NODES.len()],
        Target::One(k) if nemesis == Nemesis::Transfer && k == leader() => vec![(k + 2) % NODES.len()],
        _ if nemesis == Nemesis::PartitionLeader => vec![leader()],
        Target::One(k) => vec![k],
        Target::Leader => vec![leader()],
        Target::All => vec![0, 1, 2],
    };
    those_that_can(&meant, &run.outfit.grounds, nemesis)
}

fn those_that_can(meant: &[usize], grounds: &[Ground; 3], nemesis: Nemesis) -> Vec<usize> {
    let can = |k: &usize| grounds[*k].can(nemesis);
    let of_those: Vec<usize> = meant.iter().copied().filter(can).collect();
    if of_those.is_empty() { (0..NODES.len()).find(can).into_iter().collect() } else { of_those }
}

/// What shows that a fault took effect, or that it is over, by node.
type Evidence = Vec<(usize, Edn)>;

/// A fault that is to be ended.
#[derive(Debug)]
struct AtWork {
    victims: Vec<usize>,
    undo: Undo,
    /// The reasons of victims that have ended by themselves.
    ends: Vec<String>,
}

/// What ends it.
#[derive(Debug)]
enum Undo {
    /// The processes are to be started.
    Start,
    /// They are to go on.
    Resume,
    /// The disk is to be made good.
    Disk(Struck),
    /// The broker is to be started, and to mend what it cannot read. `said`: how often it had told of such a thing before.
    BadBlocks { struck: Struck, said: usize },
    /// It is to be started, and to mend its files.
    Mend(damage::Damage),
    /// A new node is to take the place of this one.
    Replace { old: String },
    /// A new node is to be added where this one was.
    Add { old: String },
    /// The clock is to be set right.
    Clock(clock::Wrong),
    /// The process is to be given the machine again.
    Starved(Group),
    /// The network is to be made whole. What was counted on each link before.
    Network(Pairs<Counts>),
    /// It is over already.
    Nothing,
}

impl Nemesis {
    /// Strikes. An error if there is no evidence that it took effect; `Unsupported` if this machine cannot make it.
    async fn begin(self, run: &mut Run, victims: &[usize], rng: &Rng) -> io::Result<(Evidence, AtWork)> {
        let victim = victims[0];
        match self {
            Nemesis::Kill => process::kill(run, victims),
            Nemesis::Pause => process::pause(run, victims).await,
            Nemesis::Power => process::cut_power(run, victims),
            Nemesis::DiskFull => disk::strike(run, DiskFault::Full, victim),
            Nemesis::DiskSlow => disk::strike(run, DiskFault::Slow, victim),
            Nemesis::DiskErrorWrite => disk::strike(run, DiskFault::ErrorWrite, victim),
            Nemesis::DiskErrorSync => disk::strike(run, DiskFault::ErrorSync, victim),
            Nemesis::DiskErrorRead => disk::spoil(run, victim).await,
            Nemesis::DiskFrozen => disk::strike(run, DiskFault::Frozen, victim),
            Nemesis::BitFlip => damage::flip(run, victim, rng).await,
            Nemesis::CutTail => damage::cut_tail(run, victim, rng).await,
            Nemesis::Replace => members::wipe(run, victim).await,
            Nemesis::Membership => members::remove(run, victim).await,
            Nemesis::Transfer => members::transfer(run, victim).await,
            Nemesis::ClockStep => clock::bend(run, victim, rng).await,
            Nemesis::Cpu => cpu::starve(run, victim).await,
            Nemesis::Partition
            | Nemesis::PartitionHalves
            | Nemesis::PartitionLeader
            | Nemesis::PartitionOneWay
            | Nemesis::PartitionRing
            | Nemesis::Delay
            | Nemesis::Loss
            | Nemesis::Duplicate => network::strike(run, self, victims, rng),
        }
    }
}

impl AtWork {
    fn new(victims: Vec<usize>, undo: Undo) -> AtWork {
        AtWork { victims, undo, ends: Vec::new() }
    }

    /// Takes the fault away. What it struck need not be well yet.
    async fn end(self, run: &mut Run) -> io::Result<Evidence> {
        let AtWork { victims, undo, ends } = self;
        match undo {
            Undo::Start => process::start(run, &victims),
            Undo::Resume => process::resume(run, &victims),
            Undo::Disk(struck) => disk::heal(run, victims[0], struck, &ends),
            Undo::BadBlocks { struck, said } => disk::mend(run, victims[0], struck, said).await,
            Undo::Mend(damage) => damage::mend(run, damage).await,
            Undo::Replace { old } => members::replace(run, victims[0], &old).await,
            Undo::Add { old } => members::add(run, victims[0], &old).await,
            Undo::Clock(wrong) => clock::set_right(run, wrong).await,
            Undo::Starved(group) => cpu::feed(victims[0], group),
            Undo::Network(before) => network::heal(run, &before),
            Undo::Nothing => Ok(victims.into_iter().map(|victim| (victim, Edn::keyword("over"))).collect()),
        }
    }

    /// Those that do not run because of it: nobody starts them.
    fn down(&self) -> &[usize] {
        match self.undo {
            Undo::Start | Undo::BadBlocks { .. } | Undo::Mend(_) | Undo::Replace { .. } | Undo::Add { .. } => {
                &self.victims
            }
            _ => &[],
        }
    }
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

    #[test]
    fn a_nemesis_strikes_where_it_can() {
        let grounds = [Ground::Checksums, Ground::Ext4, Ground::Memory];
        assert_eq!(those_that_can(&[0, 1, 2], &grounds, Nemesis::Power), [1, 2]);
        assert_eq!(those_that_can(&[0], &grounds, Nemesis::Power), [1], "somebody else");
        assert_eq!(those_that_can(&[1], &grounds, Nemesis::DiskErrorRead), [0]);
        assert_eq!(those_that_can(&[2], &grounds, Nemesis::Kill), [2]);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for nemesis in Nemesis::value_variants() {
            let value = nemesis.to_possible_value().expect("each can be asked for");
            assert_eq!(value.get_name(), nemesis.name());
        }
    }
}

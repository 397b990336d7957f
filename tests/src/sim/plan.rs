//! What a seed decides: the cluster, its time-outs, the workload's pace, and which faults strike when.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use broker::config::Flush;
use env::Rng;
use env::disk::simulated::Latency;

/// A kind of fault. `sim SEED --without partition,crash` leaves kinds out and changes nothing else of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Two sides that do not hear each other; packets are lost.
    Partition,
    /// One replica is heard and hears nobody, or the other way round.
    OneWay,
    /// Packets between two hosts are lost for a moment, and their connections break.
    Loss,
    /// Packets between two hosts are held back, then come all at once.
    Hold,
    /// Packets take tens of milliseconds.
    Delay,
    /// A process ends as by SIGKILL.
    Kill,
    /// Power fails at one replica, at several, or at all: any subset of unsynced sectors is lost.
    Crash,
    /// Power fails while a group of frames is written: some of its sectors survive and some do not.
    Torn,
    /// Power fails at a named point in the code.
    FaultPoint,
    /// A bit of the log turns where the peers are whole, or one of the hard state, which has another copy.
    BitFlip,
    /// A sync fails.
    SyncError,
    /// A write fails half-way.
    WriteError,
    /// No space is left.
    FullDisk,
    /// Every call takes long.
    SlowDisk,
    /// A disk is empty after a restart; a new member takes the place of the lost one.
    WipedDisk,
    /// A spare replica joins and another one leaves.
    Membership,
    /// Leadership is handed to a given voter.
    Transfer,
    /// A wall clock jumps or drifts.
    ClockStep,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Fault; 18] = [
        Fault::Partition,
        Fault::OneWay,
        Fault::Loss,
        Fault::Hold,
        Fault::Delay,
        Fault::Kill,
        Fault::Crash,
        Fault::Torn,
        Fault::FaultPoint,
        Fault::BitFlip,
        Fault::SyncError,
        Fault::WriteError,
        Fault::FullDisk,
        Fault::SlowDisk,
        Fault::WipedDisk,
        Fault::Membership,
        Fault::Transfer,
        Fault::ClockStep,
    ];

    /// What it is called on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Partition => "partition",
            Fault::OneWay => "one-way",
            Fault::Loss => "loss",
            Fault::Hold => "hold",
            Fault::Delay => "delay",
            Fault::Kill => "kill",
            Fault::Crash => "crash",
            Fault::Torn => "torn",
            Fault::FaultPoint => "fault-point",
            Fault::BitFlip => "bit-flip",
            Fault::SyncError => "sync-error",
            Fault::WriteError => "write-error",
            Fault::FullDisk => "full-disk",
            Fault::SlowDisk => "slow-disk",
            Fault::WipedDisk => "wiped-disk",
            Fault::Membership => "membership",
            Fault::Transfer => "transfer",
            Fault::ClockStep => "clock-step",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let known = || Fault::ALL.map(Fault::name).join(", ");
        Fault::ALL.into_iter().find(|fault| fault.name() == text).ok_or_else(|| format!("no fault {text}: {}", known()))
    }
}

/// A fault and when it strikes, counted from the begin of the safety phase.
#[derive(Clone, Debug)]
pub struct Strike {
    /// When.
    pub at_ms: u64,
    /// What.
    pub fault: Fault,
    /// For how long, where it lasts.
    pub lasts_ms: u64,
    /// Decides what the kind leaves open: whom, how much.
    pub rng: Rng,
}

/// How much is kept where not everything is: checkpoints, images and purges of the log come several times a second then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// So many bytes of log, which may be more than there are.
    pub bytes: u64,
    /// Between two checkpoints.
    pub checkpoints: Duration,
}

/// What a seed decides.
#[derive(Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Founding replicas; one more stands by.
    pub brokers: usize,
    /// Between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// Silence after which a follower campaigns.
    pub election: (Duration, Duration),
    /// Longest time that a packet takes while all is well.
    pub latency: Duration,
    /// Clients that append over raw connections.
    pub appenders: usize,
    /// Clients with transactions.
    pub transactors: usize,
    /// Clients that send each message several times under its unique key.
    pub copiers: usize,
    /// Clients that recall delayed messages, and as many that move groups.
    pub movers: usize,
    /// Clients that pop.
    pub poppers: usize,
    /// Clients that give messages up.
    pub givers: usize,
    /// Longest pause of a client between two requests.
    pub pause_ms: u64,
    /// How long a queue lock holds.
    pub lease: Duration,
    /// How much is kept; `None`: everything.
    pub keeps: Option<Kept>,
    /// When brokers sync what they acknowledge.
    pub flush: Flush,
    /// What a disk takes that is well: in half of the seeds nothing.
    pub disk: Latency,
    /// How long faults strike.
    pub faults_ms: u64,
    /// What strikes, in order of time.
    pub strikes: Vec<Strike>,
}

/// Kinds that a seed draws: few enough that each strikes several times, and that seeds differ.
const KINDS: std::ops::RangeInclusive<u64> = 3..=6;

/// What ASYNC_FLUSH promises to survive without any loss: everything but damage to a disk, as long as power fails at one
/// replica at a time.
const SURVIVED_UNSYNCED: [Fault; 9] = [
    Fault::Partition,
    Fault::OneWay,
    Fault::Loss,
    Fault::Hold,
    Fault::Delay,
    Fault::Kill,
    Fault::Crash,
    Fault::SlowDisk,
    Fault::Transfer,
];

/// More than any run writes: checkpoints come, and nothing is let go.
pub const AMPLE_BYTES: u64 = 1 << 40;

/// Pause between two strikes.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 150..=1200;

/// What lasts, lasts this long.
const LASTS_MS: std::ops::RangeInclusive<u64> = 100..=2500;

fn within(rng: &Rng, range: std::ops::RangeInclusive<u64>) -> u64 {
    range.start() + rng.below(range.end() - range.start() + 1)
}

/// ASYNC_FLUSH, with an interval in which power may well fail.
fn flush_later(rng: &Rng) -> Flush {
    Flush::Async { interval: Duration::from_millis(within(rng, 500..=2500)), auto_recover: false }
}

impl Plan {
    /// A cluster of so many with a workload, on which a scenario strikes by itself.
    pub fn calm(seed: u64, brokers: usize) -> Plan {
        Plan {
            seed,
            brokers,
            heartbeat: Duration::from_millis(50),
            election: (Duration::from_millis(250), Duration::from_millis(500)),
            latency: Duration::from_millis(2),
            appenders: 4,
            transactors: 0,
            copiers: 0,
            movers: 0,
            poppers: 0,
            givers: 0,
            pause_ms: 10,
            lease: Duration::from_secs(1),
            keeps: None,
            flush: Flush::Sync,
            disk: Latency { sync: Duration::from_millis(3), ..Latency::default() },
            faults_ms: 0,
            strikes: Vec::new(),
        }
    }

    /// Whether what is old is let go while the run lasts.
    pub fn lets_go(&self) -> bool {
        self.keeps.is_some_and(|kept| kept.bytes < AMPLE_BYTES)
    }

    /// The plan of a seed, less the kinds in `without`.
    pub fn draw(seed: u64, without: &[Fault]) -> Plan {
        let rng = Rng::seeded(seed);
        let heartbeat_ms = within(&rng, 40..=100);
        let election_ms = heartbeat_ms * within(&rng, 4..=6);
        let mut plan = Plan {
            seed,
            brokers: if rng.chance(2, 3) { 3 } else { 5 },
            heartbeat: Duration::from_millis(heartbeat_ms),
            election: (Duration::from_millis(election_ms), Duration::from_millis(2 * election_ms)),
            latency: Duration::from_millis(within(&rng, 1..=6)),
            appenders: within(&rng, 2..=4) as usize,
            // In a quarter of the seeds, and no draw: the others are what they were before there were any.
            transactors: if seed % 8 >= 6 { 2 } else { 0 },
            copiers: if seed % 16 == 13 { 2 } else { 0 },
            movers: if seed % 16 == 10 { 2 } else { 0 },
            // In another quarter.
            poppers: if matches!(seed % 8, 4 | 5) { 3 } else { 0 },
            givers: if seed % 16 == 9 { 2 } else { 0 },
            pause_ms: within(&rng, 5..=30),
            faults_ms: within(&rng, 6000..=10_000),
            lease: Duration::from_millis(within(&rng, 300..=1500)),
            keeps: rng.chance(1, 2).then(|| Kept {
                bytes: if rng.chance(1, 2) { within(&rng, 50..=500) << 10 } else { AMPLE_BYTES },
                checkpoints: Duration::from_millis(within(&rng, 50..=400)),
            }),
            flush: if rng.chance(1, 8) { flush_later(&rng) } else { Flush::Sync },
            disk: Latency {
                sync: Duration::from_millis(if rng.chance(1, 2) { within(&rng, 1..=8) } else { 0 }),
                ..Latency::default()
            },
            strikes: Vec::new(),
        };
        let mut kinds: Vec<Fault> = Fault::ALL.to_vec();
        if plan.flush != Flush::Sync {
            kinds.retain(|fault| SURVIVED_UNSYNCED.contains(fault));
            // Checkpoints come faster than syncs do: its end would never be durable everywhere.
            plan.keeps = None;
        }
        let wanted = within(&rng, KINDS) as usize;
        while kinds.len() > wanted {
            kinds.swap_remove(rng.below(kinds.len() as u64) as usize);
        }
        let mut at_ms = 0;
        let mut turn = 0;
        loop {
            at_ms += within(&rng, PAUSE_MS);
            if at_ms >= plan.faults_ms {
                return plan;
            }
            // Each drawn kind strikes at least once before any is drawn again by chance.
            let fault = match kinds.get(turn) {
                Some(fault) => *fault,
                None => kinds[rng.below(kinds.len() as u64) as usize],
            };
            turn += 1;
            let strike = Strike { at_ms, fault, lasts_ms: within(&rng, LASTS_MS), rng: rng.fork() };
            if !without.contains(&fault) {
                plan.strikes.push(strike);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(plan: &Plan) -> Vec<(u64, Fault, u64, u64)> {
        plan.strikes.iter().map(|strike| (strike.at_ms, strike.fault, strike.lasts_ms, strike.rng.u64())).collect()
    }

    #[test]
    fn a_seed_decides_the_plan_and_leaving_a_kind_out_leaves_the_rest_alone() {
        for seed in 0..50 {
            let all = shown(&Plan::draw(seed, &[]));
            assert_eq!(all, shown(&Plan::draw(seed, &[])));
            let left_out = all[0].1;
            let rest: Vec<_> = all.into_iter().filter(|(_, fault, ..)| *fault != left_out).collect();
            assert_eq!(shown(&Plan::draw(seed, &[left_out])), rest);
        }
    }

    #[test]
    fn every_kind_is_drawn_and_named() {
        let drawn: std::collections::BTreeSet<Fault> =
            (0..200).flat_map(|seed| Plan::draw(seed, &[]).strikes).map(|strike| strike.fault).collect();
        assert_eq!(drawn.len(), Fault::ALL.len());
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
        }
    }
}

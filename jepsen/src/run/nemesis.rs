//! The nemesis: faults drawn from a seed, one after the other, each with evidence that it took effect.
//!
//! A fault lasts from before the first signal until what it struck has been started or resumed; how long service takes to
//! come back after that is the checkers' business. One whose evidence fails ends the run.

use std::fs;
use std::io;
use std::time::Duration;

use clap::ValueEnum;
use env::Rng;

use super::{NODES, Run};
use crate::cluster::PATIENCE;
use crate::history::edn::Edn;

/// Between two looks at something that is about to happen.
const LOOK: Duration = Duration::from_millis(10);

/// SIGKILL, as an exit status tells it.
const KILLED: i32 = 9;

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Nemesis {
    /// SIGKILL.
    Kill,
    /// SIGSTOP for longer than any election time-out, then SIGCONT.
    Pause,
    /// Power failure of the disk, and SIGKILL.
    Power,
}

impl Nemesis {
    /// As the command line and the history call it.
    pub fn name(self) -> &'static str {
        match self {
            Nemesis::Kill => "kill",
            Nemesis::Pause => "pause",
            Nemesis::Power => "power",
        }
    }

    /// How long it lasts, in milliseconds: from, and up to. Elections time out within one second.
    fn lasts(self) -> (u64, u64) {
        match self {
            Nemesis::Kill | Nemesis::Power => (0, 4_000),
            Nemesis::Pause => (2_500, 7_000),
        }
    }
}

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
        Some(Strike { calm, nemesis, target, lasts })
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

async fn strike(run: &mut Run, fault: Strike) -> io::Result<()> {
    let Strike { nemesis, target, lasts, .. } = fault;
    let victims = match target {
        Target::One(victim) => vec![victim],
        Target::Leader => vec![run.cluster.leader().unwrap_or(0)],
        Target::All => vec![0, 1, 2],
    };
    let (start, stop) = (format!("start-{}", nemesis.name()), format!("stop-{}", nemesis.name()));
    let majority = victims.len() > 1;
    run.recorder.nemesis(&start, Edn::Nil, vec![("majority", majority.into())])?;
    let evidence = match nemesis {
        Nemesis::Kill => kill(run, &victims)?,
        Nemesis::Pause => pause(run, &victims).await?,
        Nemesis::Power => cut_power(run, &victims)?,
    };
    eprintln!("{} of {}", nemesis.name(), victims.iter().map(|k| NODES[*k]).collect::<Vec<_>>().join(", "));
    run.recorder.nemesis(&start, by_node(&victims, evidence), Vec::new())?;
    run.env.clock.sleep(lasts).await;

    run.recorder.nemesis(&stop, Edn::Nil, Vec::new())?;
    if nemesis == Nemesis::Pause {
        still_stopped(run, &victims)?;
        run.cluster.resume_brokers(&victims)?;
    } else {
        victims.iter().try_for_each(|victim| run.cluster.start_broker(*victim))?;
    }
    let evidence = victims.iter().map(|victim| {
        let pid = run.cluster.broker_pid(*victim);
        Ok(Edn::map([("pid", pid.into()), ("state", state(pid)?.into())]))
    });
    let evidence = evidence.collect::<io::Result<_>>()?;
    run.recorder.nemesis(&stop, by_node(&victims, evidence), Vec::new())?;
    for victim in victims {
        until_ready(run, victim).await?;
    }
    Ok(())
}

fn kill(run: &mut Run, victims: &[usize]) -> io::Result<Vec<Edn>> {
    let pids: Vec<u32> = victims.iter().map(|victim| run.cluster.broker_pid(*victim)).collect();
    let statuses = run.cluster.kill_brokers(victims)?;
    let evidence = pids.into_iter().zip(statuses).map(|(pid, status)| {
        use std::os::unix::process::ExitStatusExt;
        if status.signal() != Some(KILLED) {
            return Err(io::Error::other(format!("process {pid} was to be killed, but had ended: {status}")));
        }
        Ok(Edn::map([("pid", pid.into()), ("exit", status.to_string().into())]))
    });
    evidence.collect()
}

async fn pause(run: &mut Run, victims: &[usize]) -> io::Result<Vec<Edn>> {
    run.cluster.pause_brokers(victims)?;
    let stopped = async {
        while still_stopped(run, victims).is_err() {
            run.env.clock.sleep(LOOK).await;
        }
    };
    let in_time = run.env.clock.timeout(Duration::from_secs(1), stopped).await;
    in_time.ok_or_else(|| io::Error::other("SIGSTOP had no effect"))?;
    let evidence = victims.iter().map(|victim| {
        let pid = run.cluster.broker_pid(*victim);
        Ok(Edn::map([("pid", pid.into()), ("state", state(pid)?.into())]))
    });
    evidence.collect()
}

/// An error if one of them runs.
fn still_stopped(run: &Run, victims: &[usize]) -> io::Result<()> {
    for victim in victims {
        let pid = run.cluster.broker_pid(*victim);
        let state = state(pid)?;
        if state != "T" {
            return Err(io::Error::other(format!("process {pid} was to be stopped, but its state is {state}")));
        }
    }
    Ok(())
}

/// First everything stops, then the power goes, so that no victim sees another's end. A file that was written and never
/// synced must be gone when the file systems are back.
fn cut_power(run: &mut Run, victims: &[usize]) -> io::Result<Vec<Edn>> {
    run.cluster.pause_brokers(victims)?;
    let canaries = victims.iter().map(|victim| run.disks[*victim].cut()).collect::<io::Result<Vec<_>>>()?;
    let mut evidence = kill(run, victims)?;
    for ((victim, canary), evidence) in victims.iter().zip(canaries).zip(&mut evidence) {
        run.disks[*victim].restore(&canary)?;
        if let Edn::Map(entries) = evidence {
            entries.push((Edn::keyword("unsynced-canary"), Edn::keyword("gone")));
        }
    }
    Ok(evidence)
}

/// The state letter of a process, as in proc(5).
fn state(pid: u32) -> io::Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything.
    let state = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').next());
    state.map(str::to_owned).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat: {stat}")))
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

fn by_node(victims: &[usize], evidence: Vec<Edn>) -> Edn {
    Edn::Map(victims.iter().map(|victim| NODES[*victim].into()).zip(evidence).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strikes(seed: u64) -> Vec<Strike> {
        Schedule::new(Rng::seeded(seed), Nemesis::value_variants()).take(60).collect()
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

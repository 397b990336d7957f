//! Every crash of a recorded life: after each call that changed the disk, each subset of what is not synced by then.
//!
//! A life is random work on a recording disk. Afterwards the disk is stopped behind each of its operations; there the
//! process is killed once, and power fails once for each subset of the unsynced units (of wide windows: for as many
//! subsets as for a narrow one, drawn by chance), and the life says whether what a start makes of that disk keeps its
//! promises. What a disk looks like decides what a start makes of it: states are told apart by the hash of all names and
//! bytes, and a start is tried once for each that is new to a life.
//!
//! `RAFTMQ_CRASH_STATES` sets how many distinct states to see, `RAFTMQ_CRASH_SEED` the first life. A failure prints the
//! command that goes through its one state again.

#[cfg(feature = "planted-bugs")]
pub mod planted;

use std::collections::BTreeSet;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};

use env::disk::simulated::{Operation, SimDisk};
use env::{Clock, Rng};
use xxhash_rust::xxh3::Xxh3;

/// Distinct states of a test run that does not say how many.
const DEFAULT_STATES: u64 = 1000;

/// Of so many distinct states in a hundred the window must not have been empty: else syncs follow each other so closely
/// that there is nothing to lose.
const LEAST_WINDOWS: u64 = 30;

/// No window is gone through in more subsets: those of ten units are all of them.
const MOST_SUBSETS: u64 = 1 << 10;

/// Simulated time after which whatever a start waits for is not coming.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3600);

/// Runs `test` with tokio's clock paused: waiting takes no time. At its end all tasks are gone, as when a process is
/// killed.
pub fn simulate<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime can be built").block_on(async {
        let clock = Clock::simulated();
        clock.timeout(PATIENCE, test).await.expect("it waits for something that does not come")
    })
}

/// What happened to a disk.
pub struct Record {
    /// The disk before it.
    pub before: SimDisk,
    pub operations: Vec<Operation>,
}

/// A disk whose machine has lost power, or whose process was killed.
pub struct Crashed {
    pub disk: SimDisk,
    /// How many operations had happened.
    pub after: usize,
    /// What the disk looks like; `None` where a process was killed, after which bytes are seen that are not durable.
    pub looks: Option<u128>,
}

/// A recorded life, and the judge of what is left of it.
pub trait Life {
    fn record(&self) -> &Record;

    /// Starts on the disk, and says which promise is broken.
    fn check(&mut self, crashed: Crashed) -> Result<(), String>;
}

/// What a disk looks like.
pub fn looks(disk: &SimDisk) -> u128 {
    let mut hash = Xxh3::new();
    disk.hash_into(&mut hash);
    hash.digest128()
}

/// Which of the unsynced units survive. As text, `killed`, or a 0 or 1 for each unit.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Killed,
    Kept(Vec<bool>),
}

impl Fate {
    fn befall(&self, disk: &SimDisk) {
        match self {
            Fate::Killed => disk.process_kill(),
            Fate::Kept(kept) => disk.crash_keeping(|unit| kept[unit]),
        }
    }

    /// What it does to the unsynced units of `disk`, a line for each.
    fn describe(&self, disk: &SimDisk) -> String {
        let line = |(unit, what): (usize, String)| match self {
            Fate::Killed => format!("unsynced: {what}"),
            Fate::Kept(kept) => format!("{}: {what}", if kept[unit] { "kept" } else { "lost" }),
        };
        disk.describe_unsynced().into_iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
    }
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fate::Killed => f.write_str("killed"),
            Fate::Kept(kept) => kept.iter().try_for_each(|kept| f.write_str(if *kept { "1" } else { "0" })),
        }
    }
}

impl std::str::FromStr for Fate {
    type Err = String;

    fn from_str(text: &str) -> Result<Fate, String> {
        let bit = |letter| match letter {
            '0' => Ok(false),
            '1' => Ok(true),
            other => Err(format!("{other:?} is neither 0 nor 1")),
        };
        if text == "killed" {
            Ok(Fate::Killed)
        } else {
            text.chars().map(bit).collect::<Result<_, _>>().map(Fate::Kept)
        }
    }
}

/// What may happen to a disk now: a kill, and crashes that keep some of its unsynced units, at most `most` of them.
fn fates(disk: &SimDisk, most: u64, rng: &Rng) -> Vec<Fate> {
    let units = disk.unsynced();
    let all = 1_u64.checked_shl(units as u32).filter(|all| *all <= most);
    let kept: Vec<Vec<bool>> = match all {
        Some(all) => (0..all).map(|set| (0..units).map(|unit| set & 1 << unit != 0).collect()).collect(),
        None => (0..most).map(|_| disk.fork().crash(rng)).collect(),
    };
    std::iter::once(Fate::Killed).chain(kept.into_iter().map(Fate::Kept)).collect()
}

/// How far to go.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Distinct states to see, at least.
    pub states: u64,
    /// The first life.
    pub seed: u64,
    /// One crash and no other: of that life, after that many operations.
    only: Option<(usize, Fate)>,
}

impl Plan {
    /// As the environment says.
    pub fn from_env() -> Plan {
        if let Ok(text) = std::env::var("RAFTMQ_CRASH") {
            let mut parts = text.splitn(3, '/');
            let mut part = || parts.next().expect("RAFTMQ_CRASH is a seed, a number of operations and a fate");
            let seed = part().parse().expect("a seed");
            let only = (part().parse().expect("a number of operations"), part().parse().expect("a fate"));
            return Plan { states: 1, seed, only: Some(only) };
        }
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|_| panic!("{name} = {text:?} is not a number")))
        };
        let seed = number("RAFTMQ_CRASH_SEED").unwrap_or_else(|| Rng::from_entropy().below(1 << 40));
        Plan::of(number("RAFTMQ_CRASH_STATES").unwrap_or(DEFAULT_STATES), seed)
    }

    /// So many states, from that life on.
    pub fn of(states: u64, seed: u64) -> Plan {
        Plan { states, seed, only: None }
    }

    /// Subsets of one window: in a short run few, so that it has more than the first steps of one life.
    fn most_subsets(&self) -> u64 {
        (self.states / 90).clamp(4, MOST_SUBSETS)
    }
}

/// What was gone through.
#[derive(Debug, Default)]
pub struct Figures {
    pub lives: u64,
    operations: usize,
    /// Crashes and kills.
    pub checked: u64,
    /// What disks looked like after crashes.
    distinct: BTreeSet<u128>,
    /// How many of these had unsynced units to keep or to lose.
    with_window: u64,
}

impl Figures {
    /// How many states of disks were seen.
    pub fn states(&self) -> u64 {
        self.distinct.len() as u64
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (states, share) = (self.states(), self.with_window * 100 / self.states().max(1));
        write!(
            f,
            "{} lives, {} operations, {} crashes and kills, {states} distinct states, {share} % of them with a window",
            self.lives, self.operations, self.checked
        )
    }
}

/// A promise that was broken.
#[derive(Debug)]
pub struct Broken {
    pub what: String,
    /// What was gone through before.
    pub figures: Figures,
}

/// Goes through the crashes of one life after the other, until enough states were seen or a promise is broken.
pub fn explore<L: Life>(
    target: &str,
    test: &str,
    plan: &Plan,
    live: impl Fn(u64) -> L,
) -> Result<Figures, Box<Broken>> {
    let mut figures = Figures::default();
    let mut seed = plan.seed;
    while figures.states() < plan.states {
        figures.lives += 1;
        if let Err(error) = caught(|| go_through(seed, plan, &live, &mut figures)) {
            let (again, why) = match error.split_once('\n') {
                Some((crash, why)) if crash.starts_with(&format!("{seed}/")) => (format!("RAFTMQ_CRASH={crash}"), why),
                // The life itself did not come to its end.
                _ => (format!("RAFTMQ_CRASH_SEED={seed}"), error.as_str()),
            };
            let command = format!("{again} cargo test --release -p raft-store --test {target} {test} -- --nocapture");
            return Err(Box::new(Broken { what: format!("{why}\nagain: {command}"), figures }));
        }
        println!("{target} life {seed}: {figures}");
        seed += 1;
    }
    Ok(figures)
}

/// All crashes of one life. An error begins with a line that names the crash.
fn go_through<L: Life>(seed: u64, plan: &Plan, live: &impl Fn(u64) -> L, figures: &mut Figures) -> Result<(), String> {
    let mut life = live(seed);
    let operations = life.record().operations.clone();
    figures.operations += operations.len();
    let shadow = life.record().before.fork();
    for after in 0..=operations.len() {
        if let Some(last) = after.checked_sub(1) {
            shadow.repeat(&operations[last]);
        }
        let fates = match &plan.only {
            None => fates(&shadow, plan.most_subsets(), &Rng::seeded(seed ^ (after as u64) << 40)),
            Some((only, fate)) if *only == after => vec![fate.clone()],
            Some(_) => continue,
        };
        for fate in fates {
            let disk = shadow.fork();
            fate.befall(&disk);
            let looks = (fate != Fate::Killed).then(|| looks(&disk));
            if let Some(looks) = looks
                && figures.distinct.insert(looks)
            {
                figures.with_window += u64::from(shadow.unsynced() > 0);
            }
            figures.checked += 1;
            caught(|| life.check(Crashed { disk, after, looks })).map_err(|error| {
                format!("{seed}/{after}/{fate}\nafter {after} operations: {error}\n{}", fate.describe(&shadow))
            })?;
        }
    }
    Ok(())
}

/// A panic is an error like others: the product's own assertions are among the judges.
fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}

/// Goes through what the environment asks for, and ends the test if a promise is broken or too little was seen.
pub fn must_hold<L: Life>(target: &str, test: &str, live: impl Fn(u64) -> L) {
    let plan = Plan::from_env();
    let clock = Clock::real();
    let figures = match explore(target, test, &plan, live) {
        Ok(figures) => figures,
        Err(broken) => panic!("{}\nbefore: {}", broken.what, broken.figures),
    };
    println!("{target}: {figures}, in {} s", clock.monotonic().as_secs());
    assert!(figures.states() >= plan.states, "too few");
    assert!(plan.only.is_some() || figures.with_window * 100 >= figures.states() * LEAST_WINDOWS, "too little to lose");
}

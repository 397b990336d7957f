//! Many seeds: one process each, so that a run depends on nothing but its seed and a panic ends one run alone.
//!
//! A seed that fails is shrunk: fault kinds are left out, one after the other, as long as it still fails. At the end the
//! sweep is judged as a whole: enough must have happened in every seed, and every kind of fault in enough of them.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use env::Clock;
use parking_lot::Mutex;
use tokio::process::Command;

use super::Outcome;
use super::plan::Fault;

/// Every kind of fault strikes in at least this share of the seeds.
const SHARE_PERCENT: usize = 5;

/// Every kind of operation meets another leader in at least this share: it is in a sixteenth of the seeds or more.
const OPERATION_SHARE_PERCENT: usize = 3;

/// In so many, nothing much may happen by chance: they do not count.
const IDLE_PERCENT: usize = 2;

/// With fewer seeds chance decides which kinds there are.
const SEEDS_WITH_ALL: usize = 300;

/// A run that takes longer has come to a standstill.
const LONGEST: Duration = Duration::from_secs(600);

/// What to do.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Seeds, as a half-open range.
    pub seeds: std::ops::Range<u64>,
    /// Processes at a time.
    pub jobs: usize,
    /// Fault kinds that are left out.
    pub without: Vec<Fault>,
    /// A bug to plant in each run, if built with `planted-bugs`.
    pub planted: Option<String>,
    /// End at the first seed that fails.
    pub fail_fast: bool,
}

/// A seed that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Fault kinds without which it fails too.
    pub without: Vec<Fault>,
    /// What did not hold, or how the process ended.
    pub what: Vec<String>,
}

impl Failure {
    /// What repeats it.
    pub fn replay(&self) -> String {
        replay(self.seed, &self.without)
    }
}

/// The command that repeats a run.
pub fn replay(seed: u64, without: &[Fault]) -> String {
    let mut command = format!("cargo run --release -p tests --bin sim -- {seed}");
    if !without.is_empty() {
        command += &format!(" --without {}", without.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(","));
    }
    command
}

/// What a sweep has shown.
#[derive(Debug, Default)]
pub struct Totals {
    /// Runs that ended without a violation.
    pub good: Vec<Outcome>,
    /// The others.
    pub failures: Vec<Failure>,
    /// Wall-clock time of all of it.
    pub took: Duration,
}

/// Runs all seeds; each outcome is given to `each` as it comes.
pub async fn run(
    sweep: &Sweep,
    each: impl Fn(&Result<Outcome, Failure>) + Send + Sync + 'static,
) -> io::Result<Totals> {
    let clock = Clock::real();
    let next = Arc::new(AtomicU64::new(sweep.seeds.start));
    let totals = Arc::new(Mutex::new(Totals::default()));
    let each = Arc::new(each);
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..sweep.jobs.max(1) {
        let (sweep, clock, next, totals, each) =
            (sweep.clone(), clock.clone(), next.clone(), totals.clone(), each.clone());
        workers.spawn(async move {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= sweep.seeds.end || (sweep.fail_fast && !totals.lock().failures.is_empty()) {
                    return io::Result::Ok(());
                }
                let outcome = one(&clock, &sweep, seed).await?;
                each(&outcome);
                match outcome {
                    Ok(outcome) => totals.lock().good.push(outcome),
                    Err(failure) => totals.lock().failures.push(failure),
                }
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.expect("a worker does not panic")?;
    }
    let mut totals = std::mem::take(&mut *totals.lock());
    totals.good.sort_by_key(|outcome| outcome.seed);
    totals.failures.sort_by_key(|failure| failure.seed);
    totals.took = clock.monotonic();
    Ok(totals)
}

/// One seed; if it fails, the smallest set of fault kinds with which it still does.
async fn one(clock: &Clock, sweep: &Sweep, seed: u64) -> io::Result<Result<Outcome, Failure>> {
    let what = match process(clock, sweep, seed, &sweep.without).await? {
        Ok(outcome) => return Ok(Ok(outcome)),
        Err(what) => what,
    };
    let mut failure = Failure { seed, without: sweep.without.clone(), what };
    // A planted bug needs to be found, not explained.
    if sweep.planted.is_some() {
        return Ok(Err(failure));
    }
    for fault in Fault::ALL {
        let mut without = failure.without.clone();
        if without.contains(&fault) {
            continue;
        }
        without.push(fault);
        // What says nothing, a run that takes too long for instance, is not this failure.
        match process(clock, sweep, seed, &without).await? {
            Err(what) if says_nothing(&failure.what) || !says_nothing(&what) => {
                (failure.without, failure.what) = (without, what);
            }
            _ => {}
        }
    }
    // What the plan has not drawn anyway need not be left out.
    let drawn = super::plan::Plan::draw(seed, &[]).strikes;
    failure.without.retain(|fault| drawn.iter().any(|strike| strike.fault == *fault));
    Ok(Err(failure))
}

/// Runs a seed in a process of its own.
async fn process(
    clock: &Clock,
    sweep: &Sweep,
    seed: u64,
    without: &[Fault],
) -> io::Result<Result<Outcome, Vec<String>>> {
    let mut arguments = vec![seed.to_string()];
    if !without.is_empty() {
        arguments.push("--without".to_owned());
        arguments.push(without.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(","));
    }
    if let Some(bug) = &sweep.planted {
        arguments.extend(["--planted".to_owned(), bug.clone()]);
    }
    judged(clock, &arguments).await
}

/// What is said of a run that took too long.
const NO_END: &str = "no end after";

/// What is said of a run in which too little happened.
pub(super) const TOO_LITTLE: &str = "too little to say anything";

/// Whether nothing is known but that a run took too long, or had too little in it: no proof that anything is wrong.
pub fn says_nothing(what: &[String]) -> bool {
    what.iter().all(|what| what.starts_with(NO_END) || what.ends_with(TOO_LITTLE))
}

/// Runs this program with these arguments; what was violated, or how the process ended.
pub(super) async fn judged(clock: &Clock, arguments: &[String]) -> io::Result<Result<Outcome, Vec<String>>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).arg("--json").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Some(output) = clock.timeout(LONGEST, command.kill_on_drop(true).output()).await else {
        return Ok(Err(vec![format!("{NO_END} {LONGEST:?}")]));
    };
    let output = output?;
    if output.status.code() == Some(2) {
        // It was not even begun.
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let told = String::from_utf8_lossy(&output.stdout);
    match serde_json::from_str::<Outcome>(told.trim()) {
        Ok(outcome) if outcome.violations.is_empty() => Ok(Ok(outcome)),
        Ok(outcome) => Ok(Err(outcome.violations)),
        Err(_) => {
            let last: Vec<String> = String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
            Ok(Err([vec![format!("the process ended: {}", output.status)], last].concat()))
        }
    }
}

impl Totals {
    /// Why the sweep does not count, although no seed failed.
    pub fn shortcomings(&self, without: &[Fault]) -> Vec<String> {
        let mut found = Vec::new();
        let idle = self.idle();
        if idle.len() * 100 > self.good.len() * IDLE_PERCENT {
            found.push(format!("too little happened in seeds {}", idle.join(", ")));
        }
        if self.good.len() < SEEDS_WITH_ALL {
            return found;
        }
        for (fault, seeds) in self.seeds_by_fault() {
            if seeds * 100 < self.good.len() * SHARE_PERCENT && !without.contains(&fault) {
                found.push(format!("{fault} took effect in {seeds} of {} seeds only", self.good.len()));
            }
        }
        // With fewer faults the leader may stay.
        let operations = if without.is_empty() { self.by_operation() } else { BTreeMap::new() };
        for (kind, Happened { seeds, .. }) in operations {
            if seeds * 100 < self.good.len() * OPERATION_SHARE_PERCENT {
                found.push(format!("there was {kind} and another leader in {seeds} of {} seeds only", self.good.len()));
            }
        }
        found
    }

    /// Seeds that do not count.
    fn idle(&self) -> Vec<String> {
        self.good.iter().filter(|outcome| !outcome.counts()).map(|outcome| outcome.seed.to_string()).collect()
    }

    /// What happened of each kind of operation in seeds in which the leader has changed.
    fn by_operation(&self) -> BTreeMap<&str, Happened> {
        let mut kinds: BTreeMap<&str, Happened> = BTreeMap::new();
        for outcome in &self.good {
            for (kind, times) in &outcome.operations {
                let happened = kinds.entry(kind).or_default();
                if *times > 0 && outcome.leader_changes > 0 {
                    happened.times += times;
                    happened.seeds += 1;
                    happened.leader_changes += outcome.leader_changes;
                }
            }
        }
        kinds
    }

    fn seeds_by_fault(&self) -> BTreeMap<Fault, usize> {
        let seeds = |fault: Fault| self.good.iter().filter(|outcome| outcome.faults.contains_key(fault.name())).count();
        Fault::ALL.into_iter().map(|fault| (fault, seeds(fault))).collect()
    }

    /// The totals, as people read them.
    pub fn report(&self) -> String {
        let sum = |of: fn(&Outcome) -> u64| self.good.iter().map(of).sum::<u64>();
        let mut text = format!(
            "{} seeds in {:.0} s, {} failed, {} count\n{} operations, {} sends acknowledged, {} entries compared\n{} s simulated, {} s of \
             them under faults\n",
            self.good.len() + self.failures.len(),
            self.took.as_secs_f64(),
            self.failures.len(),
            self.good.len() - self.idle().len(),
            sum(|outcome| outcome.operations.values().sum()),
            sum(|outcome| outcome.acknowledged as u64),
            sum(|outcome| outcome.entries as u64),
            sum(|outcome| outcome.simulated_ms) / 1000,
            sum(|outcome| outcome.faults_ms) / 1000,
        );
        for (fault, seeds) in self.seeds_by_fault() {
            let times: u64 = self.good.iter().filter_map(|outcome| outcome.faults.get(fault.name())).sum();
            text += &format!("  {:<14} {times:>8} times, in {seeds:>4} seeds\n", fault.name());
        }
        for (kind, Happened { times, seeds, leader_changes }) in self.by_operation() {
            text += &format!(
                "  {kind:<14} {times:>8} times, in {seeds:>4} seeds with {leader_changes} changes of leader\n"
            );
        }
        text
    }
}

/// How much of a kind there was.
#[derive(Clone, Copy, Debug, Default)]
struct Happened {
    times: u64,
    seeds: usize,
    leader_changes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(seed: u64, faults: &[Fault]) -> Outcome {
        Outcome {
            seed,
            acknowledged_under_faults: 100,
            faults: faults.iter().map(|fault| (fault.name().to_owned(), 1)).collect(),
            faults_ms: 5000,
            operations: BTreeMap::from([("recall".to_owned(), 1)]),
            leader_changes: 1,
            ..Outcome::default()
        }
    }

    #[test]
    fn a_sweep_in_which_too_little_happened_does_not_count() {
        let all = Fault::ALL;
        let mut totals = Totals { good: (0..300).map(|seed| outcome(seed, &all)).collect(), ..Totals::default() };
        assert_eq!(totals.shortcomings(&[]), <[String; 0]>::default());
        (0..6).for_each(|seed| totals.good[seed].acknowledged_under_faults = 99);
        assert_eq!(totals.shortcomings(&[]), <[String; 0]>::default(), "two of a hundred");
        assert!(totals.report().starts_with("300 seeds in 0 s, 0 failed, 294 count"), "{}", totals.report());
        totals.good[7] = outcome(7, &all[..1]);
        assert_eq!(totals.shortcomings(&[]), ["too little happened in seeds 0, 1, 2, 3, 4, 5, 7"]);
        totals.good.truncate(1);
        assert_eq!(totals.shortcomings(&[]), ["too little happened in seeds 0"], "of few it is told of each");
        totals.good = (0..300).map(|seed| outcome(seed, if seed < 14 { &all } else { &all[..17] })).collect();
        assert_eq!(totals.shortcomings(&[]), ["clock-step took effect in 14 of 300 seeds only"]);
        assert_eq!(totals.shortcomings(&[Fault::ClockStep]), <[String; 0]>::default());
        totals.good.truncate(299);
        assert_eq!(totals.shortcomings(&[]), <[String; 0]>::default(), "that may be chance");
        totals.good = (0..300).map(|seed| outcome(seed, &all)).collect();
        for (seed, outcome) in totals.good.iter_mut().enumerate() {
            match seed {
                0..8 => {}
                _ if seed % 2 == 0 => outcome.leader_changes = 0,
                _ => drop(outcome.operations.insert("recall".to_owned(), 0)),
            }
        }
        let few = "there was recall and another leader in 8 of 300 seeds only";
        assert_eq!(totals.shortcomings(&[]), [few]);
    }

    #[test]
    fn a_failure_says_how_to_repeat_it() {
        assert_eq!(replay(7, &[]), "cargo run --release -p tests --bin sim -- 7");
        let without = [Fault::Partition, Fault::Crash];
        assert_eq!(replay(7, &without), "cargo run --release -p tests --bin sim -- 7 --without partition,crash");
    }
}

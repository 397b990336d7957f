//! Which check catches each planted bug: `sim --planted all` looks, and writes a table; `sim --planted known` looks first at
//! what stands there.
//!
//! A bug that no seed brings to light is looked for by the scenarios; if they do not see it either, the crash tests of
//! `raft-store` are asked for it.

use std::fmt;
use std::io;
use std::process::Stdio;

use env::{Clock, Rng};
use raft_store::planted::Bug;
use tokio::process::Command;

use super::scenarios::SCENARIOS;
use super::sweep::{self, Sweep};

/// The table as it was written last.
const TABLE: &str = include_str!("../../../docs/results/planted-bugs.md");

/// What catches a bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Catch {
    /// A seed of the simulation, and what it says.
    Seed(u64, String),
    /// A scenario, and what it says.
    Scenario(&'static str, String),
    /// A test of `raft-store`, and what it says.
    Test(String),
    /// Nothing.
    Nothing,
}

impl fmt::Display for Catch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Catch::Seed(seed, what) => write!(f, "seed {seed} | {what}"),
            Catch::Scenario(name, what) => write!(f, "scenario {name} | {what}"),
            Catch::Test(what) => write!(f, "`just planted` | {what}"),
            Catch::Nothing => write!(f, "NOTHING |"),
        }
    }
}

/// The first of the seeds that catches the bug; else a scenario; else the crash tests.
pub async fn find(bug: Bug, seeds: &Sweep) -> io::Result<Catch> {
    let mut sweep = Sweep { planted: Some(bug.name().to_owned()), fail_fast: true, ..seeds.clone() };
    loop {
        let totals = sweep::run(&sweep, |_| {}).await?;
        match totals.failures.first() {
            None => break,
            Some(failure) if sweep::says_nothing(&failure.what) => sweep.seeds.start = failure.seed + 1,
            // Seeds are taken in order: those before it have ended well.
            Some(failure) => return Ok(Catch::Seed(failure.seed, what_of(&failure.what))),
        }
    }
    for scenario in SCENARIOS {
        if let Some(what) = played(bug, scenario.name).await? {
            return Ok(Catch::Scenario(scenario.name, what));
        }
    }
    Ok(crash_tests(bug).await?.map_or(Catch::Nothing, Catch::Test))
}

/// What catches the bug now: what caught it when the table was written, if that still does; else as [`find`].
pub async fn find_again(bug: Bug, seeds: &Sweep) -> io::Result<Catch> {
    let known = known().into_iter().find(|(known, _)| *known == bug).map(|(_, by)| by);
    let caught = match &known {
        Some(by) => is_caught(bug, by, seeds).await?,
        None => crash_tests(bug).await?,
    };
    Ok(match (caught, known) {
        (None, _) => find(bug, seeds).await?,
        (Some(what), None) => Catch::Test(what),
        (Some(what), Some(Known::Seed(seed))) => Catch::Seed(seed, what),
        (Some(what), Some(Known::Scenario(name))) => {
            let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
            Catch::Scenario(scenario.expect("it was played").name, what)
        }
    })
}

/// Whether the bug is caught by a seed or scenario that is known to catch it; what that says.
async fn is_caught(bug: Bug, by: &Known, seeds: &Sweep) -> io::Result<Option<String>> {
    match by {
        Known::Scenario(name) => played(bug, name).await,
        Known::Seed(seed) => {
            let planted = Some(bug.name().to_owned());
            let sweep = Sweep { planted, seeds: *seed..seed + 1, jobs: 1, ..seeds.clone() };
            let totals = sweep::run(&sweep, |_| {}).await?;
            let failure = totals.failures.first().filter(|failure| !sweep::says_nothing(&failure.what));
            Ok(failure.map(|failure| what_of(&failure.what)))
        }
    }
}

/// Plays a scenario with the bug; what was violated.
async fn played(bug: Bug, scenario: &str) -> io::Result<Option<String>> {
    let arguments = ["--scenario", scenario, "--planted", bug.name()].map(str::to_owned);
    let outcome = sweep::judged(&Clock::real(), &arguments).await?;
    Ok(outcome.err().filter(|what| !sweep::says_nothing(what)).map(|what| what_of(&what)))
}

/// What did not hold, in a line that fits into a table.
fn what_of(what: &[String]) -> String {
    let at_panic = what.iter().position(|line| line.contains("panicked at")).and_then(|at| what.get(at + 1));
    let line: String = at_panic.or(what.first()).map_or("", String::as_str).chars().take(160).collect();
    line.replace('|', "/")
}

/// Asks the tests of `raft-store`; what catches it there.
async fn crash_tests(bug: Bug) -> io::Result<Option<String>> {
    let arguments = "test --release -q --workspace --features tests/planted-bugs --test log --test fold --test group planted:: \
                     -- --nocapture";
    let mut command = Command::new("cargo");
    command.args(arguments.split_whitespace()).env("RAFTMQ_PLANTED", bug.name()).stdin(Stdio::null());
    let output = command.output().await?;
    let told = String::from_utf8_lossy(&output.stdout);
    Ok(found_line(&told, bug.name()).filter(|_| output.status.success()))
}

fn found_line(told: &str, name: &str) -> Option<String> {
    let lines = told.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    lines.filter(|what| *what != "NOT FOUND").map(|what| what.chars().take(160).collect()).next()
}

/// The table, as Markdown.
pub fn table(caught: &[(Bug, Catch)], command: &str) -> String {
    let by_seed = caught.iter().filter(|(_, catch)| matches!(catch, Catch::Seed(..))).count();
    let by_scenario = caught.iter().filter(|(_, catch)| matches!(catch, Catch::Scenario(..))).count();
    let by_test = caught.iter().filter(|(_, catch)| matches!(catch, Catch::Test(_))).count();
    let mut text = format!(
        "# Planted bugs, and what catches them\n\nMade by `{command}`: of {} bugs (`crates/raft-store/src/planted.rs`) \
         {by_seed} are caught\nby a seed of the simulation, {by_scenario} by one of its scenarios, {by_test} by the crash tests of `raft-store`,\n{} by nothing.\n\n| bug | caught by | what it says |\n|---|---|---|\n",
        caught.len(),
        caught.len() - by_seed - by_scenario - by_test,
    );
    for (bug, catch) in caught {
        text += &format!("| {} | {catch} |\n", bug.name());
    }
    text
}

/// What is known to catch a bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// A seed.
    Seed(u64),
    /// A scenario.
    Scenario(String),
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Known::Seed(seed) => write!(f, "seed {seed}"),
            Known::Scenario(name) => write!(f, "scenario {name}"),
        }
    }
}

/// Bugs, and the seeds and scenarios that caught them when the table was written.
pub fn known() -> Vec<(Bug, Known)> {
    known_in(TABLE)
}

fn known_in(table: &str) -> Vec<(Bug, Known)> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let (name, by) = (cells.next()?, cells.next()?);
        let bug = Bug::ALL.into_iter().find(|bug| bug.name() == name)?;
        let seed = by.strip_prefix("seed ").and_then(|seed| seed.parse().ok()).map(Known::Seed);
        Some((bug, seed.or(by.strip_prefix("scenario ").map(|name| Known::Scenario(name.to_owned())))?))
    };
    table.lines().filter_map(row).collect()
}

/// So many of their bugs, chosen by a seed.
pub fn sample(known: Vec<(Bug, Known)>, count: usize, seed: u64) -> Vec<Bug> {
    let rng = Rng::seeded(seed);
    let mut bugs: Vec<Bug> = known.into_iter().map(|(bug, _)| bug).collect();
    while bugs.len() > count {
        bugs.remove(rng.below(bugs.len() as u64) as usize);
    }
    bugs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_written_is_read() {
        let caught = [
            (Bug::SkipSync, Catch::Seed(3, "what is lost: a lot".to_owned())),
            (Bug::StaleFrames, Catch::Test("the test so and so".to_owned())),
            (Bug::LockTwice, Catch::Nothing),
            (Bug::ForgetfulVotes, Catch::Scenario("nats-7567-async", "lost".to_owned())),
        ];
        let table = table(&caught, "sim --planted all");
        assert!(table.contains("| skip-sync | seed 3 | what is lost: a lot |"), "{table}");
        let scenario = Known::Scenario("nats-7567-async".to_owned());
        assert_eq!(known_in(&table), [(Bug::SkipSync, Known::Seed(3)), (Bug::ForgetfulVotes, scenario)]);
    }

    #[test]
    fn every_bug_stands_in_the_table_and_is_caught() {
        for bug in Bug::ALL {
            let row = TABLE.lines().find(|line| line.starts_with(&format!("| {} |", bug.name())));
            let row = row.unwrap_or_else(|| panic!("{} is not there: just planted-table", bug.name()));
            assert!(!row.contains("NOTHING"), "{row}");
        }
    }

    #[test]
    fn a_sample_is_a_function_of_its_seed() {
        let known: Vec<(Bug, Known)> = Bug::ALL.into_iter().zip((0..).map(Known::Seed)).collect();
        assert_eq!(sample(known.clone(), 10, 7), sample(known.clone(), 10, 7));
        assert_eq!(sample(known.clone(), 10, 7).len(), 10);
        assert_ne!(sample(known.clone(), 10, 7), sample(known, 10, 8));
    }

    #[test]
    fn what_a_test_says_is_found_in_its_output() {
        let told = "planted, and found by:\nskip-sync: crashes, after 7\nstale-frames: NOT FOUND\n";
        assert_eq!(found_line(told, "skip-sync"), Some("crashes, after 7".to_owned()));
        assert_eq!(found_line(told, "stale-frames"), None);
        assert_eq!(found_line(told, "lock-twice"), None);
    }
}

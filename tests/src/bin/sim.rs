//! Deterministic simulation: `sim 17` runs one seed, `sim --seeds 0..500` many.
//!
//! Exit code 0: nothing was violated, and enough happened for that to mean something.

use std::io::IsTerminal;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use raft_store::planted::Bug;
use tests::sim::plan::{Fault, Plan};
use tests::sim::planted::{self, Catch};
use tests::sim::scenarios::{SCENARIOS, Scenario};
use tests::sim::sweep::{self, Failure, Sweep, replay};
use tests::sim::{self, Outcome};

/// Runs a simulated cluster under faults, from seeds.
#[derive(Debug, Parser)]
struct Arguments {
    /// One seed, in this process.
    seed: Option<u64>,
    /// Many: `0..500`.
    #[arg(long, value_parser = parse_range, conflicts_with = "seed")]
    seeds: Option<Range<u64>>,
    /// A scenario of what went wrong elsewhere, in this process.
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    scenario: Option<String>,
    /// Fault kinds to leave out.
    #[arg(long, value_delimiter = ',')]
    without: Vec<Fault>,
    /// Processes at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Stop at the first seed that fails.
    #[arg(long)]
    fail_fast: bool,
    /// Run each of so many seeds of a sweep alone as well, and compare what was seen.
    #[arg(long, default_value_t = 0)]
    repeat: usize,
    /// Plant a bug, by its name (needs the feature `planted-bugs`). `all`: which of the seeds catches each, as a table;
    /// `known`: the same, where what caught a bug before is looked at first, which takes minutes.
    #[arg(long)]
    planted: Option<String>,
    /// Of the known ones only so many, chosen by `--sample-seed` among those that seeds and scenarios catch.
    #[arg(long, conflicts_with = "write")]
    sample: Option<usize>,
    /// See `--sample`.
    #[arg(long, default_value_t = 0)]
    sample_seed: u64,
    /// Write the table of `--planted all` or `--planted known` to this file as well.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Print the outcome of one seed as JSON.
    #[arg(long)]
    json: bool,
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.filter(|range: &Range<u64>| !range.is_empty()).ok_or_else(|| format!("{text} is no range such as 0..500"))
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    if !is_tokio_seeded() {
        eprintln!("built without --cfg tokio_unstable: RUSTFLAGS in the environment hides .cargo/config.toml");
        return ExitCode::from(2);
    }
    match (arguments.seed, arguments.seeds.clone()) {
        (None, seeds) if matches!(arguments.planted.as_deref(), Some("all" | "known")) => planted(&arguments, seeds),
        _ if arguments.scenario.is_some() => scenario(&arguments),
        (Some(seed), _) => one(&arguments, seed),
        (None, Some(seeds)) => many(&arguments, seeds),
        (None, None) => {
            eprintln!("a seed, or --seeds 0..500");
            ExitCode::from(2)
        }
    }
}

/// Only then does a seed decide everything.
#[allow(unexpected_cfgs)] // The flag is tokio's.
fn is_tokio_seeded() -> bool {
    cfg!(tokio_unstable)
}

fn scenario(arguments: &Arguments) -> ExitCode {
    let name = arguments.scenario.as_deref().unwrap_or_default();
    let Some(scenario) = Scenario::named(name) else {
        eprintln!("no scenario {name}: {}", SCENARIOS.map(|scenario| scenario.name).join(", "));
        return ExitCode::from(2);
    };
    if let Err(error) = plant_what_is_asked_for(arguments) {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    tell_outcome(arguments, &scenario.run())
}

fn plant_what_is_asked_for(arguments: &Arguments) -> Result<(), String> {
    arguments.planted.as_deref().map_or(Ok(()), plant)
}

fn one(arguments: &Arguments, seed: u64) -> ExitCode {
    if let Err(error) = plant_what_is_asked_for(arguments) {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    let command = replay(seed, &arguments.without);
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default_hook(panic);
        eprintln!("seed {seed} failed; again: {command}");
    }));
    let plan = Plan::draw(seed, &arguments.without);
    if !arguments.json {
        let strikes: Vec<String> =
            plan.strikes.iter().map(|strike| format!("{} ms {}", strike.at_ms, strike.fault)).collect();
        let kept = plan.keeps.map_or("all".to_owned(), |kept| format!("{} KiB", kept.bytes >> 10));
        let (brokers, flush) = (plan.brokers, plan.flush.name());
        println!("{brokers} brokers, {flush}, {kept} of log kept, faults: {}", strikes.join(", "));
    }
    tell_outcome(arguments, &sim::run(&plan))
}

fn tell_outcome(arguments: &Arguments, outcome: &Outcome) -> ExitCode {
    if arguments.json {
        println!("{}", serde_json::to_string(outcome).expect("an outcome is JSON"));
    } else {
        print(outcome);
    }
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(outcome: &Outcome) {
    println!(
        "seed {}: {} sends acknowledged, {} entries compared, {} ms simulated, {} changes of leader, {:?}",
        outcome.seed,
        outcome.acknowledged,
        outcome.entries,
        outcome.simulated_ms,
        outcome.leader_changes,
        outcome.faults
    );
    println!("{:?}", outcome.operations);
    println!("seen {} things, hash {}", outcome.seen, outcome.hash);
    for violation in &outcome.violations {
        println!("VIOLATED {violation}");
    }
}

#[cfg(feature = "planted-bugs")]
fn plant(name: &str) -> Result<(), String> {
    use raft_store::planted::plant;
    let names = || Bug::ALL.map(Bug::name).join(", ");
    let bug = Bug::ALL.into_iter().find(|bug| bug.name() == name);
    plant(Some(bug.ok_or_else(|| format!("no bug {name}: {}", names()))?));
    Ok(())
}

#[cfg(not(feature = "planted-bugs"))]
fn plant(_name: &str) -> Result<(), String> {
    is_plantable()
}

fn is_plantable() -> Result<(), String> {
    let refused = || "build with --features planted-bugs to plant one".to_owned();
    cfg!(feature = "planted-bugs").then_some(()).ok_or_else(refused)
}

fn sweep_of(arguments: &Arguments, seeds: Range<u64>) -> Sweep {
    Sweep {
        seeds,
        jobs: arguments.jobs,
        without: arguments.without.clone(),
        planted: arguments.planted.clone(),
        fail_fast: arguments.fail_fast,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What catches the planted bugs. Fails if one is caught by nothing.
fn planted(arguments: &Arguments, seeds: Option<Range<u64>>) -> ExitCode {
    if let Err(error) = is_plantable() {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    let looked = match seeds {
        Some(seeds) if arguments.planted.as_deref() == Some("all") => runtime().block_on(all_planted(arguments, seeds)),
        None if arguments.planted.as_deref() == Some("known") => runtime().block_on(known_planted(arguments)),
        _ => {
            eprintln!("--planted all --seeds 0..100, or --planted known (or only some of them: --sample 10)");
            return ExitCode::from(2);
        }
    };
    match looked {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

async fn all_planted(arguments: &Arguments, seeds: Range<u64>) -> std::io::Result<bool> {
    let sweep = sweep_of(arguments, seeds.clone());
    let mut caught = Vec::new();
    for bug in Bug::ALL {
        let catch = planted::find(bug, &sweep).await?;
        println!("| {} | {catch} |", bug.name());
        caught.push((bug, catch));
    }
    all_caught(arguments, &caught, &format!("sim --planted all --seeds {}..{}", seeds.start, seeds.end))
}

/// Where a bug is looked for that its seed does not bring to light any more.
const LOOKED_FOR_IN: Range<u64> = 0..50;

/// What stands in the table is looked at first: for some of the bugs whose catch is cheap, or for all.
async fn known_planted(arguments: &Arguments) -> std::io::Result<bool> {
    let sweep = sweep_of(arguments, LOOKED_FOR_IN);
    let bugs = match arguments.sample {
        Some(count) => planted::sample(planted::known(), count, arguments.sample_seed),
        None => Bug::ALL.to_vec(),
    };
    let mut caught = Vec::new();
    for some in bugs.chunks(arguments.jobs.max(1)) {
        let looks = some.iter().map(async |bug| (*bug, planted::find_again(*bug, &sweep).await));
        for (bug, catch) in futures::future::join_all(looks).await {
            let catch = catch?;
            println!("| {} | {catch} |", bug.name());
            caught.push((bug, catch));
        }
    }
    println!("{} of the planted bugs were run", caught.len());
    all_caught(arguments, &caught, "sim --planted known --write FILE")
}

/// Whether there are bugs and each is caught. Writes the table, if it is to be kept.
#[allow(clippy::disallowed_methods)] // The table is the sweep's result, not a broker's file.
fn all_caught(arguments: &Arguments, caught: &[(Bug, Catch)], command: &str) -> std::io::Result<bool> {
    if let Some(path) = &arguments.write {
        std::fs::write(path, planted::table(caught, command))?;
    }
    Ok(!caught.is_empty() && caught.iter().all(|(_, catch)| *catch != Catch::Nothing))
}

fn many(arguments: &Arguments, seeds: Range<u64>) -> ExitCode {
    let sweep = sweep_of(arguments, seeds);
    let ran = runtime().block_on(async {
        let totals = sweep::run(&sweep, tell).await?;
        let differing = repeated(&sweep, &totals.good, arguments.repeat).await?;
        std::io::Result::Ok((totals, differing))
    });
    let (totals, differing) = match ran {
        Ok(ran) => ran,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    print!("{}", totals.report());
    let shortcomings = totals.shortcomings(&sweep.without);
    for text in shortcomings.iter().chain(&differing) {
        println!("FAILED {text}");
    }
    if totals.failures.is_empty() && shortcomings.is_empty() && differing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn tell(outcome: &Result<Outcome, Failure>) {
    match outcome {
        Ok(outcome) => {
            println!("seed {} ok, {} acknowledged, hash {}", outcome.seed, outcome.acknowledged, outcome.hash)
        }
        Err(failure) => {
            println!("seed {} FAILED; again: {}", failure.seed, failure.replay());
            failure.what.iter().for_each(|what| println!("  {what}"));
        }
    }
}

/// Runs the first `count` seeds once more, alone; those that saw something else.
async fn repeated(sweep: &Sweep, good: &[Outcome], count: usize) -> std::io::Result<Vec<String>> {
    let mut differing = Vec::new();
    for first in good.iter().take(count) {
        let alone = Sweep { seeds: first.seed..first.seed + 1, jobs: 1, ..sweep.clone() };
        let again = sweep::run(&alone, |_| {}).await?;
        let hash = again.good.first().map(|again| again.hash.as_str());
        if hash != Some(first.hash.as_str()) {
            differing.push(format!("seed {} saw {} in the sweep and {hash:?} alone", first.seed, first.hash));
        }
    }
    if count > 0 {
        let compared = good.len().min(count);
        println!("{} of {compared} seeds saw the same alone as within the sweep", compared - differing.len());
    }
    Ok(differing)
}

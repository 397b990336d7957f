//! Deterministic simulation: `sim 17` runs one seed, `sim --seeds 0..500` many.
//!
//! Exit code 0: nothing was violated, and enough happened for that to mean something.

use std::io::IsTerminal;
use std::ops::Range;
use std::process::ExitCode;

use clap::Parser;
use tests::sim::plan::{Fault, Plan};
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
    /// Plant a bug of raft-store's, by its name (needs the feature `planted-bugs`).
    #[arg(long)]
    planted: Option<String>,
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

fn one(arguments: &Arguments, seed: u64) -> ExitCode {
    if let Some(bug) = &arguments.planted
        && let Err(error) = plant(bug)
    {
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
        println!("{} brokers, faults: {}", plan.brokers, strikes.join(", "));
    }
    let outcome = sim::run(&plan);
    if arguments.json {
        println!("{}", serde_json::to_string(&outcome).expect("an outcome is JSON"));
    } else {
        print(&outcome);
    }
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(outcome: &Outcome) {
    println!(
        "seed {}: {} operations, {} sends acknowledged, {} entries compared, {} ms simulated, {:?}",
        outcome.seed, outcome.operations, outcome.acknowledged, outcome.entries, outcome.simulated_ms, outcome.faults
    );
    println!("seen {} things, hash {}", outcome.seen, outcome.hash);
    for violation in &outcome.violations {
        println!("VIOLATED {violation}");
    }
}

#[cfg(feature = "planted-bugs")]
fn plant(name: &str) -> Result<(), String> {
    use raft_store::planted::{Bug, plant};
    let names = || Bug::ALL.map(Bug::name).join(", ");
    let bug = Bug::ALL.into_iter().find(|bug| bug.name() == name);
    plant(Some(bug.ok_or_else(|| format!("no bug {name}: {}", names()))?));
    Ok(())
}

#[cfg(not(feature = "planted-bugs"))]
fn plant(_name: &str) -> Result<(), String> {
    Err("build with --features planted-bugs to plant one".to_owned())
}

fn many(arguments: &Arguments, seeds: Range<u64>) -> ExitCode {
    let sweep = Sweep {
        seeds,
        jobs: arguments.jobs,
        without: arguments.without.clone(),
        planted: arguments.planted.clone(),
        fail_fast: arguments.fail_fast,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ran = runtime.block_on(async {
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

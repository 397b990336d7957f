//! A seed must decide everything: what no seed repeats, nobody can debug.

use std::process::Command;

use tests::sim::Outcome;
use tests::sim::plan::{Fault, Plan};

/// In a process of its own, as every seed of a sweep: ids of tokio's tasks go on through a process, and in which order a runtime
/// that ends drops its tasks, and with them their connections, follows from these.
fn run(seed: u64, without: Option<Fault>) -> Outcome {
    let mut sim = Command::new(env!("CARGO_BIN_EXE_sim"));
    sim.arg(seed.to_string()).arg("--json");
    if let Some(fault) = without {
        sim.args(["--without", fault.name()]);
    }
    let output = sim.output().expect("the simulation is started");
    let told = serde_json::from_slice(&output.stdout);
    told.unwrap_or_else(|error| panic!("{error}: {}, {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_seed_sees_the_same_twice_and_nothing_is_violated() {
    let (first, again) = (run(1, None), run(1, None));
    assert_eq!(first.violations, <[String; 0]>::default());
    assert!(first.counts(), "{first:?}");
    assert_eq!((&first.hash, first.seen), (&again.hash, again.seen));
    let struck = Plan::draw(1, &[]).strikes[0].fault;
    assert_ne!(again.hash, run(1, Some(struck)).hash, "another run is seen to be another");
}

/// A full disk cuts a leader off for a moment, in one term. Whoever asks producers noticed, and gave the office up; whoever fires
/// timers was busy, and held it: nobody was asked any more, and transactions waited for ever.
#[test]
fn a_leader_that_was_cut_off_for_a_moment_goes_on_with_all_its_duties() {
    assert_eq!(run(20_015, None).violations, <[String; 0]>::default());
}

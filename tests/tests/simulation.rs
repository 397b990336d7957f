//! A seed must decide everything: what no seed repeats, nobody can debug.

use tests::sim::plan::{Fault, Plan};
use tests::sim::{self, Outcome};

/// What a simulation sees and holds belongs to its thread: each has one of its own.
#[allow(clippy::disallowed_methods)] // Only to have fresh thread-locals; one runs at a time.
fn run(seed: u64, without: Option<Fault>) -> Outcome {
    let ran = std::thread::spawn(move || sim::run(&Plan::draw(seed, without.as_slice())));
    ran.join().expect("a run does not panic")
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

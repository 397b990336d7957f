//! Planted bugs: whether the tests find what they are there to find. Needs the feature `planted-bugs`.
//!
//! Each bug has one check that must find it: the crashes of a number of lives, or a named test. `RAFTMQ_PLANTED` names
//! one bug; else all are planted, one after the other.

use std::panic::catch_unwind;

use raft_store::planted::{Bug, plant};

use super::{Life, Plan, explore};

/// Which test target finds a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Log,
    Fold,
    /// `tests/group/planted.rs`.
    Group,
    /// No test of this crate: `sim --planted all`.
    Simulation,
}

impl Target {
    fn that_finds(bug: Bug) -> Target {
        match bug {
            Bug::SkipSync
            | Bug::SyncRetried
            | Bug::AcknowledgeBeforeSync
            | Bug::CutBelowMark
            | Bug::VoteUnsynced
            | Bug::VoteInOneCopy
            | Bug::ChainUnchecked
            | Bug::StaleFrames
            | Bug::CutNotZeroed
            | Bug::ReadPastWritten
            | Bug::FloorIgnored => Target::Log,
            Bug::BoundaryBeforeRows | Bug::DerivedPastSynced | Bug::KeyedBeforeUnits | Bug::ImageUnsynced => {
                Target::Fold
            }
            Bug::ForgetfulVotes | Bug::LeaderRestored => Target::Group,
            // What the broker does wrong, too. A bug that none of them finds is missing in their table.
            _ => Target::Simulation,
        }
    }
}

/// A test that fails where its bug is planted.
pub type Test = (Bug, &'static str, fn());

/// Distinct states after which a bug counts as not found.
const MOST_STATES: u64 = 20_000;

/// Plants the bugs of `target` one by one, prints what found each, and fails if something was not found: by its test, if
/// it is one of `tests`, else by crashes.
pub fn must_be_found<L: Life>(target: Target, tests: &[Test], live: impl Fn(u64) -> L) {
    let only = std::env::var("RAFTMQ_PLANTED").ok().filter(|name| name != "all");
    let known = |name: &String| Bug::ALL.iter().any(|bug| bug.name() == name);
    assert!(only.as_ref().is_none_or(known), "no bug is called {only:?}");
    let bugs = Bug::ALL.into_iter().filter(|bug| Target::that_finds(*bug) == target);
    let (mut lines, mut missed) = (Vec::new(), Vec::new());
    for bug in bugs.filter(|bug| only.as_ref().is_none_or(|only| only == bug.name())) {
        plant(Some(bug));
        let found = match tests.iter().find(|(of, ..)| *of == bug) {
            Some((_, name, test)) => catch_unwind(test).is_err().then(|| format!("the test {name}")),
            None => crashes_find(&live),
        };
        plant(None);
        lines.push(format!("{}: {}", bug.name(), found.as_deref().unwrap_or("NOT FOUND")));
        if found.is_none() {
            missed.push(bug.name());
        }
    }
    println!("planted, and found by:\n{}", lines.join("\n"));
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// After how many crashes the bug that is planted was found, and how.
fn crashes_find<L: Life>(live: &impl Fn(u64) -> L) -> Option<String> {
    let broken = explore("planted", "planted", &Plan::of(MOST_STATES, 1), live).err()?;
    let what = broken.what.lines().next().unwrap_or_default();
    let found = match broken.figures.checked {
        0 => "a life, before any crash".to_owned(),
        crashes => format!("crashes, after {crashes} that left {} states", broken.figures.states()),
    };
    Some(format!("{found}: {what}"))
}

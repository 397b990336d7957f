//! Bugs of a group, planted: each is found by the named test. `RAFTMQ_PLANTED` names one of them.

use std::panic::catch_unwind;

use raft_store::planted::{Bug, plant};

use crate::{async_flush, faults};

/// A test that fails where its bug is planted.
type Test = (Bug, &'static str, fn());

const TESTS: [Test; 2] = [
    (
        Bug::ForgetfulVotes,
        "who_has_forgotten_and_who_never_knew_are_no_majority",
        async_flush::who_has_forgotten_and_who_never_knew_are_no_majority,
    ),
    (
        Bug::LeaderRestored,
        "a_leader_that_lost_its_tail_does_not_go_on_in_its_term",
        faults::a_leader_that_lost_its_tail_does_not_go_on_in_its_term,
    ),
];

#[test]
fn every_planted_bug_is_found() {
    let only = std::env::var("RAFTMQ_PLANTED").ok().filter(|name| name != "all");
    for (bug, name, test) in TESTS {
        if only.as_ref().is_some_and(|only| only != bug.name()) {
            continue;
        }
        plant(Some(bug));
        let found = catch_unwind(test).is_err();
        plant(None);
        println!("{}: {}", bug.name(), if found { name } else { "NOT FOUND" });
        assert!(found, "{} was not found by {name}", bug.name());
    }
}

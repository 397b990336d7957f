//! Bugs of the log, planted.

use raft_store::planted::Bug;

use super::crash::LogLife;
use super::crashes::planted::{Target, Test, must_be_found};
use super::faults;

/// Bugs that no crash brings to light: it takes a fault, or somebody who knows better than the log.
const TESTS: [Test; 6] = [
    (Bug::SyncRetried, "whichever_sync_fails_is_not_retried", faults::whichever_sync_fails_is_not_retried),
    (
        Bug::CutBelowMark,
        "a_bit_flipped_in_what_was_durable_is_corruption_and_never_cut",
        faults::a_bit_flipped_in_what_was_durable_is_corruption_and_never_cut,
    ),
    (
        Bug::VoteInOneCopy,
        "either_copy_of_the_hard_state_is_enough_and_is_repaired",
        faults::either_copy_of_the_hard_state_is_enough_and_is_repaired,
    ),
    (
        Bug::ChainUnchecked,
        "frames_of_another_history_are_not_taken_up",
        faults::frames_of_another_history_are_not_taken_up,
    ),
    (
        Bug::StaleFrames,
        "frames_of_a_recycled_segment_are_not_taken_up",
        faults::frames_of_a_recycled_segment_are_not_taken_up,
    ),
    (
        Bug::FloorIgnored,
        "a_tail_below_what_is_durable_elsewhere_is_corruption",
        faults::a_tail_below_what_is_durable_elsewhere_is_corruption,
    ),
];

#[test]
fn every_planted_bug_is_found() {
    must_be_found(Target::Log, &TESTS, LogLife::live);
}

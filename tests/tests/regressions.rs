//! What went wrong in other systems (`tests::sim::scenarios` says what, and what must hold), and does not here.
//!
//! Each must be able to fail: with the feature `planted-bugs` those whose system had a bug that can be planted here are
//! run again with it.

use tests::sim::Run;
use tests::sim::scenarios::{Scenario, three};

/// What a simulation sees and holds belongs to its thread: each has one of its own.
#[allow(clippy::disallowed_methods)] // Only to have fresh thread-locals.
fn on_a_thread<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> std::thread::Result<T> {
    std::thread::spawn(what).join()
}

fn must_hold(name: &'static str) {
    let outcome = on_a_thread(move || Scenario::named(name).expect("a scenario").run()).expect("nothing panics");
    assert_eq!(outcome.violations, <[String; 0]>::default());
    assert!(outcome.acknowledged >= 100, "{outcome:?}");
}

#[test]
fn rocketmq_s_half_messages_end_once_and_are_asked_about_by_the_next_leader() {
    must_hold("rocketmq-6.8");
}

#[test]
fn what_is_taken_back_stays_so_at_the_next_leader() {
    must_hold("taken-back");
}

#[test]
fn nats_server_7549_bit_errors_on_a_minority_lose_nothing() {
    must_hold("nats-7549");
}

#[test]
fn nats_server_7556_damaged_images_on_a_minority_delete_nothing() {
    must_hold("nats-7556");
}

#[test]
fn nats_server_7564_and_dledger_a_a_power_failure_of_all_loses_nothing() {
    must_hold("nats-7564");
}

#[test]
fn nats_server_7567_who_forgot_and_who_never_knew_are_no_majority() {
    must_hold("nats-7567");
}

#[test]
fn nats_server_7567_nor_are_they_where_syncs_come_later() {
    must_hold("nats-7567-async");
}

#[test]
fn nats_server_7545_a_change_of_members_amid_kills_and_a_partition_loses_nothing() {
    must_hold("nats-7545");
}

#[test]
fn etcd_3_5_state_and_its_index_are_never_apart() {
    must_hold("etcd-3.5");
}

#[test]
fn kafka_s_last_replica_standing_acknowledges_nothing() {
    must_hold("kafka-last-replica");
}

#[test]
fn openraft_1802_two_of_five_commit_nothing() {
    must_hold("openraft-1802");
}

#[test]
fn dledger_b_a_failed_sync_ends_the_replica() {
    must_hold("dledger-b");
}

#[test]
fn dledger_c_a_vote_outlives_a_power_failure() {
    must_hold("dledger-c");
}

#[test]
fn dledger_e_what_is_said_to_have_failed_is_not_there() {
    must_hold("dledger-e");
}

#[test]
fn a_restarted_leader_does_not_resume_its_term() {
    must_hold("resumed-term");
}

#[test]
fn nobody_is_told_that_what_an_image_covers_is_not_there() {
    must_hold("covered-by-an-image");
}

/// DLedger (d): the fault that was to drop what was not synced called the script that stops a broker, so that its suite
/// never dropped anything.
///
/// Here it is looked at that a power failure, as all scenarios make it, drops some of what was not synced, and that a
/// killed process loses none of it.
#[test]
fn dledger_d_a_power_failure_drops_what_was_not_synced() {
    let dropped = on_a_thread(|| {
        let plan = three();
        let mut run = Run::new(&plan);
        run.found().expect("a group");
        run.go_on_for(1000);
        let leader = run.world.leader().expect("a leader");
        run.until("something is not synced", 1000, |world| world.hosts[leader].disk.unsynced() > 3).expect("writes");
        let unsynced = run.world.hosts[leader].disk.unsynced();
        let before = run.world.hosts[leader].disk.dump();
        let killed = run.world.hosts[leader].disk.fork();
        killed.process_kill();
        let crashed = run.world.hosts[leader].disk.fork();
        crashed.crash_keeping(|_| false);
        (unsynced, before == killed.dump(), before == crashed.dump())
    });
    let (unsynced, is_whole_after_a_kill, is_whole_after_a_crash) = dropped.expect("nothing panics");
    assert!(is_whole_after_a_kill && !is_whole_after_a_crash, "{unsynced} units were not synced");
}

#[cfg(feature = "planted-bugs")]
mod planted {
    use raft_store::planted::{Bug, plant};
    use tests::sim::sweep::says_nothing;

    use super::*;

    const BUGS: [(Bug, &str); 16] = [
        (Bug::BoundaryBeforeRows, "etcd-3.5"),
        (Bug::KeyedBeforeUnits, "etcd-3.5"),
        (Bug::CutBelowMark, "nats-7549"),
        (Bug::SkipSync, "nats-7564"),
        (Bug::SkipSync, "nats-7567"),
        (Bug::ForgetfulVotes, "nats-7567-async"),
        (Bug::AcknowledgeBeforeQuorum, "kafka-last-replica"),
        (Bug::AcknowledgeBeforeQuorum, "openraft-1802"),
        (Bug::SyncRetried, "dledger-b"),
        (Bug::VoteUnsynced, "dledger-c"),
        (Bug::UnknownIsFailure, "dledger-e"),
        (Bug::LeaderRestored, "resumed-term"),
        (Bug::DiscardedIsNever, "covered-by-an-image"),
        (Bug::HalfVisible, "rocketmq-6.8"),
        (Bug::CommitTwice, "rocketmq-6.8"),
        (Bug::RollbackForgotten, "rocketmq-6.8"),
    ];

    #[test]
    fn scenarios_fail_where_the_bug_is_planted_that_their_system_had() {
        let mut held = Vec::new();
        for (bug, name) in BUGS {
            let found = on_a_thread(move || {
                plant(Some(bug));
                let violations = Scenario::named(name).expect("a scenario").run().violations;
                (!says_nothing(&violations)).then_some(violations)
            });
            match found {
                Ok(None) => held.push(format!("{name} with {}", bug.name())),
                Ok(Some(what)) => println!("{name} with {}: {what:?}", bug.name()),
                Err(_) => println!("{name} with {}: a panic", bug.name()),
            }
        }
        assert!(held.is_empty(), "nothing was violated: {held:?}");
    }
}

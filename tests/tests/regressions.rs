//! What has gone wrong in other systems, one scripted scenario each: what happened there, what is done here, what must
//! hold. All run in the simulation, so that they are the same every time, and are judged by every clause of the contract
//! and every invariant, not only by the one that was broken there.
//!
//! Each must be able to fail: with the feature `planted-bugs`, those that say so are run again with that bug planted.

use env::Rng;
use env::disk::simulated::SimDisk;
use tests::sim::host::{DATA, Process};
use tests::sim::plan::Plan;
use tests::sim::{Outcome, Run};

/// What is done in a scenario, once a group is founded and clients are at work.
type Script = fn(&mut Run) -> Result<(), String>;

/// What a simulation sees and holds belongs to its thread: each has one of its own.
#[allow(clippy::disallowed_methods)] // Only to have fresh thread-locals; one runs at a time.
fn on_a_thread<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> std::thread::Result<T> {
    std::thread::spawn(what).join()
}

fn run(plan: &Plan, script: Script) -> Outcome {
    let mut run = Run::new(plan);
    let came_to_the_end = run.found().and_then(|()| {
        run.go_on_for(1500);
        script(&mut run)?;
        run.finish()
    });
    run.outcome(came_to_the_end)
}

fn must_hold(plan: fn() -> Plan, script: Script) {
    let outcome = on_a_thread(move || run(&plan(), script)).expect("nothing panics");
    assert_eq!(outcome.violations, <[String; 0]>::default());
    assert!(outcome.acknowledged >= 100, "{outcome:?}");
}

fn three() -> Plan {
    Plan::calm(3, 3)
}

fn five() -> Plan {
    Plan::calm(5, 5)
}

/// A replica's log, and where what was synced long ago lies in it.
fn log_of(run: &Run, at: usize) -> Result<(String, std::ops::Range<u64>), String> {
    let group = run.world.hosts[at].group().ok_or("the replica does not run")?;
    let end = group.raft().log().tip().end.physical_offset.0;
    Ok((format!("{DATA}/commitlog/{:020}", 0), 4096..4096 + end / 2))
}

fn leader_and_others(run: &mut Run) -> Result<(usize, Vec<usize>), String> {
    run.until("there is a leader", 10_000, |world| world.leader().is_some())?;
    let leader = run.world.leader().expect("it was waited for");
    let others = run.world.members().filter(|at| *at != leader).collect();
    Ok((leader, others))
}

/// The process ends and the next one starts a moment later.
fn restart(run: &mut Run, at: usize) {
    run.world.kill(at);
    let due = run.world.now_ms() + 50;
    run.world.restart_at(at, due);
}

/// Power fails at once at all of them, and is back a moment later.
fn power_failure(run: &mut Run, among: &[usize], seed: u64) {
    let due = run.world.now_ms() + 200;
    for at in among {
        run.world.crash(*at, &Rng::seeded(seed + *at as u64));
        run.world.restart_at(*at, due);
    }
}

fn acknowledged(run: &Run) -> usize {
    run.world.work.history.borrow().acknowledged()
}

/// nats-server #7549: bit errors in the message blocks of a minority made their replicas cut the log there; one of them
/// led later, and acknowledged messages were gone everywhere, even with a sync before each acknowledgement.
///
/// Here twenty bits turn in the log of one replica of three, which is started again and then made to lead if it can be.
/// What was acknowledged is on every replica, the damaged one too.
fn nats_7549(run: &mut Run) -> Result<(), String> {
    let (leader, _) = leader_and_others(run)?;
    let (log, durable) = log_of(run, leader)?;
    let rng = Rng::seeded(7549);
    run.nemesis().damages(leader);
    for _ in 0..20 {
        let at = durable.start + rng.below(durable.end - durable.start);
        run.world.hosts[leader].disk.flip_bit(&log, at, rng.below(8) as u8);
    }
    restart(run, leader);
    run.go_on_for(2000);
    let (leads, _) = leader_and_others(run)?;
    restart(run, leads);
    run.go_on_for(2000);
    Ok(())
}

#[test]
fn nats_server_7549_bit_errors_on_a_minority_lose_nothing() {
    must_hold(three, nats_7549);
}

/// nats-server #7556: damaged snapshots of the metadata on a minority made nodes take streams for orphans, and delete
/// them; the cluster did not come back.
///
/// Here a bit turns in each image of one replica, whose process is then killed, while the log is purged all the time and
/// another replica is away for long enough to need an image. Nothing is deleted, and all are equal in the end.
fn nats_7556(run: &mut Run) -> Result<(), String> {
    let (leader, others) = leader_and_others(run)?;
    run.world.kill(others[0]);
    run.go_on_for(6000);
    run.nemesis().damages(leader);
    let disk: &SimDisk = &run.world.hosts[leader].disk;
    let images: Vec<_> = disk.dump().into_iter().filter(|(path, _)| path.to_string_lossy().contains("checkpoint")).collect();
    if images.is_empty() {
        return Err("there is no image to damage".to_owned());
    }
    for (path, bytes) in images.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        disk.flip_bit(path, bytes.len() as u64 / 2, 3);
    }
    restart(run, leader);
    let due = run.world.now_ms() + 50;
    run.world.restart_at(others[0], due);
    run.go_on_for(3000);
    Ok(())
}

#[test]
fn nats_server_7556_damaged_images_on_a_minority_delete_nothing() {
    must_hold(|| Plan { keeps: Some(std::time::Duration::from_secs(2)), ..five() }, nats_7556);
}

/// nats-server #7564: acknowledged, and synced two minutes later; a power failure of all nodes lost it. Kafka and
/// DLedger (a: acknowledged on copies in memory maps, which a thread forces every 10 ms) promise no more.
///
/// Here power fails at all replicas at once, five times, while they write.
fn power_fails_everywhere(run: &mut Run) -> Result<(), String> {
    for round in 0..5 {
        let all: Vec<usize> = run.world.members().collect();
        power_failure(run, &all, 7564 + 10 * round);
        run.go_on_for(1500 + 37 * round);
    }
    Ok(())
}

#[test]
fn nats_server_7564_and_dledger_a_a_power_failure_of_all_loses_nothing() {
    must_hold(three, power_fails_everywhere);
}

/// nats-server #7567: power failed at one node of five, while two others were paused before and the other two after: the
/// node that had forgotten made a quorum with those that never knew, and the cluster split for good.
///
/// Here two followers hear nothing, power fails at a third, and then those two are back and the others are gone.
fn nats_7567(run: &mut Run) -> Result<(), String> {
    let (leader, others) = leader_and_others(run)?;
    let (lagging, forgets, knows) = (&others[..2], others[2], [leader, others[3]]);
    let links: Vec<(usize, usize)> =
        lagging.iter().flat_map(|a| [forgets, knows[0], knows[1]].map(|b| (*a, b))).collect();
    links.iter().for_each(|(a, b)| run.world.hold(*a, *b));
    run.go_on_for(1000);
    power_failure(run, &[forgets], 7567);
    for at in knows {
        run.world.kill(at);
    }
    links.iter().for_each(|(a, b)| run.world.release(*a, *b));
    run.go_on_for(3000);
    let due = run.world.now_ms() + 1;
    for at in knows {
        run.world.restart_at(at, due);
    }
    run.go_on_for(1500);
    Ok(())
}

#[test]
fn nats_server_7567_who_forgot_and_who_never_knew_are_no_majority() {
    must_hold(five, nats_7567);
}

/// nats-server #7545: a partition, kills and the removal of a node in quick succession lost acknowledged messages.
///
/// Here one node of five is cut off, it and two more are killed, and another one is replaced at the same time.
fn nats_7545(run: &mut Run) -> Result<(), String> {
    let (leader, others) = leader_and_others(run)?;
    let cut_off = others[0];
    for at in run.world.members().filter(|at| *at != cut_off).collect::<Vec<_>>() {
        run.world.cut(cut_off, at, false);
    }
    let (spare, leaves) = (run.world.standing_by().ok_or("nobody stands by")?, others[3]);
    let group = run.world.hosts[leaves].group().ok_or("the one that leaves does not run")?;
    let old = group.raft().node();
    drop(group);
    run.world.call(spare);
    let to = run.world.hosts[spare].peer_address();
    let replacing = run.world.client("operator", move |caller| caller.replace(to, old));
    run.go_on_for(20);
    for at in [cut_off, leader, others[1]] {
        run.world.kill(at);
    }
    run.go_on_for(2000);
    let due = run.world.now_ms() + 1;
    for at in [leader, others[1], cut_off] {
        run.world.restart_at(at, due);
    }
    for at in run.world.members().filter(|at| *at != cut_off).collect::<Vec<_>>() {
        run.world.heal(cut_off, at);
    }
    run.nemesis().leaves(leaves);
    run.until("the member is replaced", 60_000, |world| world.is_done(&replacing))?;
    run.world.dismiss(leaves);
    Ok(())
}

#[test]
fn nats_server_7545_a_change_of_members_amid_kills_and_a_partition_loses_nothing() {
    must_hold(five, nats_7545);
}

/// etcd 3.5: the applied index was saved apart from the data; after a crash between the two a replica went on with data
/// that it had not, or applied again what it had.
///
/// Here power fails at one replica after the other while state is made durable ten times a second. State is compared at
/// every checkpoint, and each message must be shown once.
fn etcd_applied_index(run: &mut Run) -> Result<(), String> {
    for round in 0..12 {
        let all: Vec<usize> = run.world.members().collect();
        power_failure(run, &[all[round as usize % all.len()]], 3500 + 10 * round);
        run.go_on_for(700 + 13 * round);
    }
    Ok(())
}

#[test]
fn etcd_3_5_state_and_its_index_are_never_apart() {
    must_hold(|| Plan { keeps: Some(std::time::Duration::from_millis(1000)), ..three() }, etcd_applied_index);
}

/// Kafka's last replica standing: followers fall out of the in-sync set, the leader acknowledges alone, loses that by a
/// power failure, and whoever comes first becomes leader. openraft #1802 in effect: committed without a real quorum.
///
/// Here the leader loses all its followers, one after the other. Left alone it acknowledges nothing; then its power fails,
/// and the others go on without it.
fn last_replica_standing(run: &mut Run) -> Result<(), String> {
    let (leader, others) = leader_and_others(run)?;
    for at in &others {
        run.world.cut(leader, *at, false);
        run.go_on_for(300);
    }
    // The others may elect somebody: clients are to meet the one that is alone.
    let elsewhere = others.clone();
    elsewhere.iter().for_each(|at| run.world.kill(*at));
    // Answers that were on their way have arrived.
    let before = acknowledged(run);
    run.go_on_for(2000);
    let alone = acknowledged(run) - before;
    if alone > 0 {
        return Err(format!("{alone} sends were acknowledged by one replica alone"));
    }
    run.world.crash(leader, &Rng::seeded(966));
    let due = run.world.now_ms() + 1;
    for at in &others {
        run.world.restart_at(*at, due);
    }
    run.go_on_for(3000);
    Ok(())
}

#[test]
fn kafka_s_last_replica_standing_acknowledges_nothing() {
    must_hold(three, last_replica_standing);
}

/// openraft #1802: with five voters an entry counted as committed that two of them held.
///
/// Here the leader and one follower are cut off from the three others: they acknowledge nothing, and what they appended
/// gives way.
fn openraft_1802(run: &mut Run) -> Result<(), String> {
    let (leader, others) = leader_and_others(run)?;
    let (minority, majority) = ([leader, others[0]], &others[1..]);
    let links: Vec<(usize, usize)> = minority.iter().flat_map(|a| majority.iter().map(|b| (*a, *b))).collect();
    links.iter().for_each(|(a, b)| run.world.cut(*a, *b, false));
    run.go_on_for(4000);
    links.iter().for_each(|(a, b)| run.world.heal(*a, *b));
    run.go_on_for(1000);
    Ok(())
}

#[test]
fn openraft_1802_two_of_five_commit_nothing() {
    must_hold(five, openraft_1802);
}

/// DLedger (b): a flush that failed was logged, and counted as done.
///
/// Here a sync fails on one replica: it ends. Then power fails at all.
fn dledger_failed_flush(run: &mut Run) -> Result<(), String> {
    let (leader, others) = leader_and_others(run)?;
    for at in [leader, others[0]] {
        run.nemesis().damages(at);
        let processes = run.world.hosts[at].processes();
        run.world.hosts[at].disk.fail_sync(format!("{DATA}/commitlog"), 1);
        run.until("a replica whose sync fails ends", 3000, |world| {
            world.hosts[at].processes() != processes || world.hosts[at].process() != Process::Running
        })?;
        run.go_on_for(1500);
    }
    let all: Vec<usize> = run.world.members().collect();
    power_failure(run, &all, 22);
    run.go_on_for(1500);
    Ok(())
}

#[test]
fn dledger_b_a_failed_sync_ends_the_replica() {
    must_hold(three, dledger_failed_flush);
}

/// DLedger (c): term and vote were written without a sync; after a power failure a node voted twice in a term.
///
/// Here the leader is killed, and power fails at all others while they elect, again and again.
fn dledger_votes(run: &mut Run) -> Result<(), String> {
    for round in 0..10 {
        let (leader, others) = leader_and_others(run)?;
        restart(run, leader);
        run.go_on_for(180 + 40 * round);
        power_failure(run, &others, 23 + 10 * round);
        run.go_on_for(700);
    }
    Ok(())
}

#[test]
fn dledger_c_a_vote_outlives_a_power_failure() {
    must_hold(three, dledger_votes);
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
        let (leader, _) = leader_and_others(&mut run).expect("a leader");
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

/// DLedger (e): its suite counted "send failed" as a definite failure, though the message may have been stored, and
/// could not have noticed what was lost.
///
/// Here the leader is cut off and killed under load: whatever a broker says was certainly not stored must not be there.
fn dledger_failures(run: &mut Run) -> Result<(), String> {
    for _ in 0..4 {
        let (leader, others) = leader_and_others(run)?;
        others.iter().for_each(|at| run.world.cut(leader, *at, false));
        run.go_on_for(3500);
        others.iter().for_each(|at| run.world.heal(leader, *at));
        run.go_on_for(700);
        let (leader, _) = leader_and_others(run)?;
        restart(run, leader);
        run.go_on_for(700);
    }
    Ok(())
}

#[test]
fn dledger_e_what_is_said_to_have_failed_is_not_there() {
    must_hold(three, dledger_failures);
}

/// A leader that comes back and goes on in its term may write other entries under ids that followers have committed.
///
/// Here power fails at whoever leads, which comes back before anybody has campaigned, again and again.
fn restarted_leader(run: &mut Run) -> Result<(), String> {
    for round in 0..10 {
        let (leader, _) = leader_and_others(run)?;
        run.world.crash(leader, &Rng::seeded(40 + round));
        let due = run.world.now_ms() + 5;
        run.world.restart_at(leader, due);
        run.go_on_for(1000);
    }
    Ok(())
}

#[test]
fn a_restarted_leader_does_not_resume_its_term() {
    must_hold(three, restarted_leader);
}

#[cfg(feature = "planted-bugs")]
mod planted {
    use raft_store::planted::{Bug, plant};

    use super::*;

    const SCENARIOS: [(Bug, &str, fn() -> Plan, Script); 9] = [
        (Bug::CutBelowMark, "nats_7549", three, nats_7549),
        (Bug::SkipSync, "power_fails_everywhere", three, power_fails_everywhere),
        (Bug::SkipSync, "nats_7567", five, nats_7567),
        (Bug::AcknowledgeBeforeQuorum, "last_replica_standing", three, last_replica_standing),
        (Bug::AcknowledgeBeforeQuorum, "openraft_1802", five, openraft_1802),
        (Bug::SyncRetried, "dledger_failed_flush", three, dledger_failed_flush),
        (Bug::VoteUnsynced, "dledger_votes", three, dledger_votes),
        (Bug::UnknownIsFailure, "dledger_failures", three, dledger_failures),
        (Bug::LeaderRestored, "restarted_leader", three, restarted_leader),
    ];

    /// Each scenario fails where the bug is planted that its system had.
    #[test]
    fn every_scenario_can_fail() {
        let mut held = Vec::new();
        for (bug, name, plan, script) in SCENARIOS {
            let found = on_a_thread(move || {
                plant(Some(bug));
                run(&plan(), script).violations.into_iter().next()
            });
            match found {
                Ok(None) => held.push(format!("{name} with {}", bug.name())),
                Ok(Some(what)) => println!("{name} with {}: {what}", bug.name()),
                Err(_) => println!("{name} with {}: a panic", bug.name()),
            }
        }
        assert!(held.is_empty(), "nothing was violated: {held:?}");
    }
}

//! What has gone wrong in other systems, one scripted scenario each: what happened there, what is done here, what must
//! hold. They are judged by every clause of the contract and every invariant, not only by what was broken there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use broker::config::Flush;
use env::Rng;
use env::disk::simulated::SimDisk;

use super::history::{History, Recall};
use super::host::{DATA, Process};
use super::plan::{AMPLE_BYTES, Kept, Plan};
use super::sweep::TOO_LITTLE;
use super::{Outcome, Run, points};

/// Leaders that are killed in a scenario, at most.
const MOST_KILLED: usize = 8;

/// What is done in a scenario, once a group is founded and clients are at work.
pub type Script = fn(&mut Run) -> Result<(), String>;

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it is called on a command line.
    pub name: &'static str,
    /// On what.
    plan: fn() -> Plan,
    script: Script,
}

/// All of them.
pub const SCENARIOS: [Scenario; 18] = [
    Scenario { name: "nats-7549", plan: five, script: nats_7549 },
    Scenario { name: "nats-7556", plan: five_that_forget_at_once, script: nats_7556 },
    Scenario { name: "nats-7564", plan: three, script: power_fails_everywhere },
    Scenario { name: "nats-7567", plan: five, script: nats_7567 },
    Scenario { name: "nats-7567-async", plan: five_that_sync_later, script: nats_7567 },
    Scenario { name: "nats-7545", plan: five, script: nats_7545 },
    Scenario { name: "etcd-3.5", plan: three_with_checkpoints, script: etcd_applied_index },
    Scenario { name: "kafka-last-replica", plan: three, script: last_replica_standing },
    Scenario { name: "openraft-1802", plan: five, script: openraft_1802 },
    Scenario { name: "dledger-b", plan: three, script: dledger_failed_flush },
    Scenario { name: "dledger-c", plan: three, script: dledger_votes },
    Scenario { name: "dledger-e", plan: three, script: dledger_failures },
    Scenario { name: "resumed-term", plan: three, script: restarted_leader },
    Scenario { name: "rocketmq-6.8", plan: three_with_transactions, script: half_messages },
    Scenario { name: "idempotent-send", plan: three_with_copies, script: copies },
    Scenario { name: "taken-back", plan: three_that_take_back, script: taken_back },
    Scenario { name: "rocketmq-7914", plan: three_with_poppers, script: popped_messages },
    Scenario { name: "covered-by-an-image", plan: three_that_forget_at_once, script: covered_by_an_image },
];

impl Scenario {
    /// The one of that name.
    pub fn named(name: &str) -> Option<Scenario> {
        SCENARIOS.into_iter().find(|scenario| scenario.name == name)
    }

    /// Plays it.
    pub fn run(&self) -> Outcome {
        let plan = (self.plan)();
        let mut run = Run::new(&plan);
        let came_to_the_end = run.found().and_then(|()| {
            run.go_on_for(1500);
            (self.script)(&mut run)?;
            run.finish()
        });
        run.outcome(came_to_the_end)
    }
}

/// A cluster of three, calm until a scenario strikes.
pub fn three() -> Plan {
    Plan::calm(3, 3)
}

fn five() -> Plan {
    Plan::calm(5, 5)
}

/// Checkpoints, images and purges come all the time.
const KEPT: Kept = Kept { bytes: 100 << 10, checkpoints: Duration::from_millis(50) };

fn three_with_checkpoints() -> Plan {
    Plan { keeps: Some(Kept { bytes: AMPLE_BYTES, ..KEPT }), ..three() }
}

fn three_that_forget_at_once() -> Plan {
    that_forget_at_once(three())
}

fn five_that_forget_at_once() -> Plan {
    that_forget_at_once(five())
}

/// Nothing is let go in whose segment something became visible just now: clients pause.
fn that_forget_at_once(plan: Plan) -> Plan {
    Plan { appenders: 8, pause_ms: 1000, keeps: Some(Kept { bytes: 1 << 10, ..KEPT }), ..plan }
}

fn three_with_transactions() -> Plan {
    Plan { transactors: 3, ..three() }
}

fn three_with_copies() -> Plan {
    Plan { copiers: 4, ..three() }
}

fn three_that_take_back() -> Plan {
    Plan { movers: 2, ..three_with_checkpoints() }
}

fn three_with_poppers() -> Plan {
    Plan { poppers: 4, lease: Duration::from_millis(700), ..three() }
}

fn five_that_sync_later() -> Plan {
    Plan { flush: Flush::Async { interval: Duration::from_secs(5), auto_recover: false }, ..five() }
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

/// Power fails at once at all of them, nothing survives that was not synced, and it is back a moment later.
fn power_failure(run: &mut Run, among: &[usize]) {
    let due = run.world.now_ms() + 200;
    for at in among {
        lose_power(run, *at);
        run.world.restart_at(*at, due);
    }
}

fn lose_power(run: &mut Run, at: usize) {
    run.world.darken(at);
    run.world.hosts[at].disk.crash_keeping(|_| false);
}

fn acknowledged(run: &Run) -> usize {
    run.world.work.history.borrow().acknowledged()
}

/// Two of five hear nothing for a while; something happens to a third, which holds what was acknowledged meanwhile; and
/// when the two hear again, the two others that hold it are gone, to come back later.
fn who_knew_nothing_meets_who(run: &mut Run, forgets: fn(&mut Run, usize) -> Result<(), String>) -> Result<(), String> {
    let (leader, others) = leader_and_others(run)?;
    let (lagging, forgetful, knows) = (&others[..2], others[2], [leader, others[3]]);
    let links: Vec<(usize, usize)> =
        lagging.iter().flat_map(|a| [forgetful, knows[0], knows[1]].map(|b| (*a, b))).collect();
    links.iter().for_each(|(a, b)| run.world.cut(*a, *b, false));
    run.go_on_for(1000);
    for at in knows {
        run.world.kill(at);
    }
    forgets(run, forgetful)?;
    links.iter().for_each(|(a, b)| run.world.heal(*a, *b));
    run.go_on_for(3000);
    let due = run.world.now_ms() + 1;
    for at in knows {
        run.world.restart_at(at, due);
    }
    run.go_on_for(1500);
    Ok(())
}

/// nats-server #7549: bit errors in the message blocks of a minority made their replicas cut the log there; they led
/// later, and acknowledged messages were gone everywhere, even with a sync before each acknowledgement.
///
/// Here twenty bits turn in the log of one replica, which then meets two that never had its end. What was acknowledged is
/// on every replica in the end, the damaged one too.
fn nats_7549(run: &mut Run) -> Result<(), String> {
    who_knew_nothing_meets_who(run, |run, at| {
        let (log, durable) = log_of(run, at)?;
        let rng = Rng::seeded(7549);
        run.nemesis().damages(at);
        run.world.kill(at);
        for _ in 0..20 {
            let place = durable.start + rng.below(durable.end - durable.start);
            run.world.hosts[at].disk.flip_bit(&log, place, rng.below(8) as u8);
        }
        let due = run.world.now_ms() + 50;
        run.world.restart_at(at, due);
        Ok(())
    })
}

/// nats-server #7556: damaged snapshots of the metadata on a minority made nodes take streams for orphans, and delete
/// them; the cluster did not come back.
///
/// Here a replica is away for long enough to need an image, while the log is purged all the time, and comes back when a bit turns
/// in each image that the leader has or makes, until it has met one that it was to send; then its process is killed. Nothing is
/// deleted, and all are equal in the end.
fn nats_7556(run: &mut Run) -> Result<(), String> {
    let (leader, others) = leader_and_others(run)?;
    let last = run.world.hosts[others[0]].group().ok_or("the replica does not run")?.raft().log().last();
    run.world.kill(others[0]);
    run.until("the leader has let go of all that it has", 10_000, |world| {
        world.hosts[leader].group().is_some_and(|group| group.raft().log().last_purged() >= last)
    })?;
    run.nemesis().damages(leader);
    let due = run.world.now_ms() + 50;
    run.world.restart_at(others[0], due);
    let has_met =
        |run: &Run| run.world.hosts[leader].group().is_some_and(|group| group.raft().status().damaged_images > 0);
    let (mut damaged, end) = (BTreeSet::new(), run.world.now_ms() + 5000);
    while !has_met(run) {
        if run.world.now_ms() > end {
            return Err(format!("none of {} damaged images was to be sent: {TOO_LITTLE}", damaged.len()));
        }
        damage_images(&run.world.hosts[leader].disk, &mut damaged);
        run.go_on_for(5);
    }
    restart(run, leader);
    run.go_on_for(3000);
    Ok(())
}

/// Turns a bit in the middle of each image that is not among the `damaged` ones yet.
fn damage_images(disk: &SimDisk, damaged: &mut BTreeSet<PathBuf>) {
    let files = disk.dump().into_iter().filter(|(path, bytes)| is_image(path) && !bytes.is_empty());
    for (path, bytes) in files.collect::<Vec<_>>() {
        if !damaged.contains(&path) {
            disk.flip_bit(&path, bytes.len() as u64 / 2, 3);
            damaged.insert(path);
        }
    }
}

/// One that is whole has its name.
fn is_image(path: &Path) -> bool {
    path.to_string_lossy().contains("checkpoint") && path.extension().is_none()
}

/// nats-server #7564: acknowledged, and synced two minutes later; a power failure of all nodes lost it. Kafka and
/// DLedger (a: acknowledged on copies in memory maps, which a thread forces every 10 ms) promise no more.
///
/// Here power fails at all replicas at once, five times, while they write.
fn power_fails_everywhere(run: &mut Run) -> Result<(), String> {
    for round in 0..5 {
        let all: Vec<usize> = run.world.members().collect();
        power_failure(run, &all);
        run.go_on_for(1500 + 37 * round);
    }
    Ok(())
}

/// nats-server #7567: power failed at one node of five, while two others were paused before and the other two after: the
/// node that had forgotten made a quorum with those that never knew, and the cluster split for good.
fn nats_7567(run: &mut Run) -> Result<(), String> {
    who_knew_nothing_meets_who(run, |run, at| {
        power_failure(run, &[at]);
        Ok(())
    })
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
    let replacing = run.world.client("operator", move |caller| caller.replace(to, old, Rc::default()));
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

/// etcd 3.5: the applied index was saved apart from the data; after a crash between the two a replica went on with data
/// that it had not, or applied again what it had.
///
/// Here power fails at one replica after the other in the middle of that: at each point between log, queues, rows and image.
/// State is compared at every checkpoint, and each message must be shown once.
fn etcd_applied_index(run: &mut Run) -> Result<(), String> {
    let rng = Rng::seeded(35);
    for round in 0..4 {
        for (turn, point) in points::DERIVED.into_iter().enumerate() {
            let members: Vec<usize> = run.world.members().collect();
            let at = members[(round + turn) % members.len()];
            run.until("the replica runs", 5000, |world| world.hosts[at].process() == Process::Running)?;
            let processes = run.world.hosts[at].processes();
            points::arm_one(&run.world, at, point, &rng);
            run.until(point, 5000, |world| world.hosts[at].processes() > processes)?;
        }
    }
    Ok(())
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
    lose_power(run, leader);
    let due = run.world.now_ms() + 1;
    for at in &others {
        run.world.restart_at(*at, due);
    }
    run.go_on_for(3000);
    Ok(())
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

/// RocketMQ's transactions: a second commit of a half message is appended again, a commit behind a rollback counts where the
/// rollback's mark is not read yet, and a new master knows no producer to ask.
///
/// Here the leader is killed three times while transactions are begun, ended once, twice and both ways, and left to be asked
/// about.
fn half_messages(run: &mut Run) -> Result<(), String> {
    leaders_are_killed(run, |history| {
        let ended = history.transactions.iter().filter(|transaction| transaction.is_committed).count();
        (ended < 20).then(|| format!("{ended} transactions are committed"))
    })
}

/// RocketMQ: a producer whose connection breaks, or whose broker dies, sends the message again, and it is stored twice.
///
/// Here clients send every message several times under its key, at several replicas at once, while leaders are killed, cut
/// off with what they have in flight, and heal again.
fn copies(run: &mut Run) -> Result<(), String> {
    for round in 0..6 {
        let (leader, others) = leader_and_others(run)?;
        if round % 2 == 0 {
            restart(run, leader);
        } else {
            others.iter().for_each(|other| run.world.cut(leader, *other, false));
            run.go_on_for(1500);
            others.iter().for_each(|other| run.world.heal(leader, *other));
        }
        run.go_on_for(2000);
    }
    Ok(())
}

/// RocketMQ recalls a delayed message by another delayed message that must meet it in the timer wheel, and remembers where a
/// group was moved in the memory of one broker.
///
/// Here the leader is killed three times while messages are recalled before and at their time, and groups are moved under
/// consumers that go on storing what they had.
fn taken_back(run: &mut Run) -> Result<(), String> {
    leaders_are_killed(run, |history| {
        let count = |recall| history.delayed.iter().filter(|delayed| delayed.recall == recall).count();
        let (recalled, too_late, moves) = (count(Recall::Done), count(Recall::TooLate), history.moves.len());
        let is_little = recalled < 10 || too_late < 3 || moves < 20;
        is_little.then(|| format!("{recalled} recalled, {too_late} too late, {moves} looks at moves"))
    })
}

/// RocketMQ #3787, #7914 and others: checkpoints and acknowledgements of popped messages are messages themselves, matched later;
/// some were matched twice, some never, and messages came again although they were acknowledged, or not at all.
///
/// Here the leader is killed three times while messages are popped, acknowledged, forgotten and given back.
fn popped_messages(run: &mut Run) -> Result<(), String> {
    leaders_are_killed(run, |history| {
        let popped = history.leases.len();
        (popped < 100).then(|| format!("{popped} messages were popped"))
    })
}

/// Kills the leader three times, and more often as long as too little has happened.
fn leaders_are_killed(run: &mut Run, lacks: impl Fn(&History) -> Option<String>) -> Result<(), String> {
    for killed in 1..=MOST_KILLED {
        let (leader, _) = leader_and_others(run)?;
        restart(run, leader);
        run.go_on_for(2500);
        if killed >= 3 && lacks(&run.world.work.history.borrow()).is_none() {
            return Ok(());
        }
    }
    let lacks = lacks(&run.world.work.history.borrow());
    Err(format!("{}: {TOO_LITTLE}", lacks.unwrap_or_default()))
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
    power_failure(run, &all);
    run.go_on_for(1500);
    Ok(())
}

/// DLedger (c): term and vote were written without a sync; after a power failure a node voted twice in a term.
///
/// Here the leader is killed, and power fails at all others while they elect, again and again.
fn dledger_votes(run: &mut Run) -> Result<(), String> {
    for round in 0..10 {
        let (leader, others) = leader_and_others(run)?;
        restart(run, leader);
        run.go_on_for(180 + 40 * round);
        power_failure(run, &others);
        run.go_on_for(700);
    }
    Ok(())
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

/// A leader that comes back and goes on in its term may write other entries under ids that followers have committed.
///
/// Here power fails at whoever leads, which comes back before anybody has campaigned, again and again.
fn restarted_leader(run: &mut Run) -> Result<(), String> {
    for _ in 0..10 {
        let (leader, _) = leader_and_others(run)?;
        lose_power(run, leader);
        let due = run.world.now_ms() + 5;
        run.world.restart_at(leader, due);
        run.go_on_for(1000);
    }
    Ok(())
}

/// openraft says of an entry that was cut off or purged here, while its proposer waited, that it was discarded: it may
/// stand in the log all the same.
///
/// Here a leader appends, its followers take it over from there, and it hears of nothing before an image covers it all.
/// Nobody may be told that what is in the log is not.
fn covered_by_an_image(run: &mut Run) -> Result<(), String> {
    for _ in 0..4 {
        let (leader, others) = leader_and_others(run)?;
        let raft = run.world.hosts[leader].group().ok_or("the replica does not run")?.raft().clone();
        // What it sends arrives, and nothing comes back.
        others.iter().for_each(|at| run.world.cut(*at, leader, true));
        run.until("somebody waits", 2_000, |_| raft.status().entries_in_flight > 0)?;
        run.go_on_for(30);
        others.iter().for_each(|at| run.world.cut(leader, *at, false));
        let last = raft.log().last();
        run.until("the others have let go of all that it has", 3_000, |world| {
            let purged =
                |at: &usize| world.hosts[*at].group().is_some_and(|group| group.raft().log().last_purged() >= last);
            others.iter().all(purged)
        })?;
        if raft.status().entries_in_flight == 0 {
            return Err("nobody waits for anything that it has".to_owned());
        }
        others.iter().for_each(|at| run.world.heal(leader, *at));
        run.go_on_for(1500);
        if raft.log().last_purged() < last {
            return Err("what it had was not covered by an image".to_owned());
        }
    }
    Ok(())
}

//! Regressions by name: what went wrong in other systems, scripted here. The first lines of each say what happened there.
//!
//! That a leader which comes back does not resume its term is `a_leader_that_lost_its_tail_does_not_go_on_in_its_term` in
//! `faults.rs`; the whole of DLedger's missing power failures is `power.rs`, whose control is
//! [`dledger_d_a_power_failure_takes_what_was_not_synced`].

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use env::Disk;
use env::Rng;
use env::disk::Open;
use env::disk::simulated::{Latency, SimDisk};
use futures::future::join_all;
use raft_store::entry::{CoreCommand, Operation};
use raft_store::group::{Group, Role, VotersChange};
use raft_store::proposer::ProposeError;

use crate::faults::{linked, linked_of};
use crate::three::Three;
use crate::world::{Counter, Ledger, record, within};

impl Three {
    fn disk(&self, at: usize) -> &SimDisk {
        self.places[at].disk.as_ref().expect("a simulated disk")
    }

    /// Power fails at these members, and nothing survives that was not synced.
    async fn lose_all_unsynced(&mut self, members: &[usize]) {
        for at in members {
            self.disk(*at).crash_keeping(|_| false);
        }
        for at in members {
            self.kill(*at).await;
        }
    }

    /// The one of these that leads and serves in the newest term.
    async fn leader_among(&self, members: &[usize]) -> usize {
        let env = &self.places[0].env;
        let found = async {
            loop {
                let statuses = members.iter().map(|at| (*at, self.group(*at).status()));
                let newest = statuses.max_by_key(|(_, status)| status.term).expect("there are members");
                let leads = |at: &&usize| matches!(&*self.group(**at).role().borrow(), Role::Leader { ready: true, term } if *term == newest.1.term);
                if let Some(leader) = members.iter().find(leads) {
                    return *leader;
                }
                env.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        within(env, 20, "a leader among them", found).await
    }

    /// Makes this member lead, as often as it takes.
    async fn let_lead(&self, at: usize) {
        let env = &self.places[0].env;
        let leads = async {
            loop {
                let leader = self.leader().await;
                if leader == at {
                    return;
                }
                // Not caught up yet, or another one leads by now.
                let _ = self.group(leader).hand_over_to(self.group(at).node()).await;
            }
        };
        within(env, 20, "it leads", leads).await;
    }
}

/// Sends by whoever leads until all of them are acknowledged; what is unknown meanwhile is noted as such.
async fn send(three: &Three, ledger: &mut Ledger, members: &[usize], what: &str, count: usize) {
    for number in 0..count {
        for attempt in 0.. {
            let leader = three.leader_among(members).await;
            if ledger.send(three.group(leader), &format!("{what}-{number}-{attempt}")).await.is_ok() {
                break;
            }
        }
    }
}

/// Every file below a directory of a member.
fn files(disk: &SimDisk, below: &str) -> Vec<(std::path::PathBuf, Bytes)> {
    disk.dump().into_iter().filter(|(path, _)| path.starts_with(below)).collect()
}

fn turn_bits(disk: &SimDisk, below: &str, count: u64, rng: &Rng) {
    let files: Vec<_> = files(disk, below).into_iter().filter(|(_, content)| !content.is_empty()).collect();
    assert!(!files.is_empty(), "nothing below {below}");
    for _ in 0..count {
        let (path, content) = &files[rng.below(files.len() as u64) as usize];
        // Where something is written: the rest is made ready ahead.
        let written = content.iter().rposition(|byte| *byte != 0).expect("something is written") as u64;
        disk.flip_bit(path, rng.below(written + 1), rng.below(8) as u8);
    }
}

/// nats-server #7549: single bits turned in the block files of a minority. Such a node dropped what it could not read,
/// became the leader, and made everybody drop it: up to half of what was acknowledged was gone.
#[tokio::test]
async fn nats_7549_turned_bits_of_a_minority_are_repaired_before_it_can_lead() {
    let rng = Rng::seeded(7549);
    let mut three = Three::open(Three::simulated_places(7549)).await;
    let mut ledger = Ledger::default();
    send(&three, &mut ledger, &[0, 1, 2], "before", 200).await;
    three.converge().await;
    let damaged = (three.leader().await + 1) % 3;
    three.kill(damaged).await;
    turn_bits(three.disk(damaged), "/data/commitlog", 12, &rng);
    three.start(damaged).await;
    assert!(three.group(damaged).status().repaired.gaps > 0, "the damage was noticed");
    three.let_lead(damaged).await;
    send(&three, &mut ledger, &[damaged], "led by it", 10).await;
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// nats-server #7556: bits turned in the snapshots of a minority. Such a node believed that its streams were orphans,
/// deleted them, and as a leader had them deleted everywhere.
#[tokio::test]
async fn nats_7556_damaged_snapshots_of_a_minority_delete_nothing() {
    let rng = Rng::seeded(7556);
    let mut three = Three::open(Three::simulated_places(7556)).await;
    let mut ledger = Ledger::default();
    send(&three, &mut ledger, &[0, 1, 2], "before", 50).await;
    let leader = three.leader().await;
    let command = Operation::Tables(Bytes::from_static(b"seven.."));
    three.group(leader).propose(vec![command, Operation::Core(CoreCommand::Checkpoint)]).await.unwrap();
    three.converge().await;
    let damaged = (leader + 1) % 3;
    let has_image = async {
        while files(three.disk(damaged), "/data/checkpoint").is_empty() {
            three.places[0].env.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    within(&three.places[0].env, 10, "an image", has_image).await;
    three.kill(damaged).await;
    turn_bits(three.disk(damaged), "/data/checkpoint", 20, &rng);
    three.start(damaged).await;
    three.let_lead(damaged).await;
    send(&three, &mut ledger, &[damaged], "led by it", 10).await;
    three.converge().await;
    three.check(&ledger).await;
    let totals: Vec<u64> = three.running().map(|(_, group)| group.reader().tables().total).collect();
    assert_eq!(totals, [7, 7, 7], "nobody has forgotten what was in the image");
    three.stop().await;
}

/// nats-server #7564, and DLedger a: acknowledged when a majority had it in memory, synced later. Power fails everywhere
/// right after the acknowledgement, and everything acknowledged last is gone.
#[tokio::test]
async fn nats_7564_and_dledger_a_what_is_acknowledged_is_on_a_majority_s_disks() {
    let mut three = Three::open(Three::simulated_places(7564)).await;
    let mut ledger = Ledger::default();
    for round in 0..5 {
        let leader = three.leader().await;
        let group = three.group(leader).clone();
        let sends = (0..32).map(|number| {
            let (group, text) = (group.clone(), format!("round-{round}-{number}"));
            async move { (group.propose(vec![record(&text)]).await, text) }
        });
        for (answer, text) in join_all(sends).await {
            let _ = ledger.note(answer, &text);
        }
        three.lose_all_unsynced(&[0, 1, 2]).await;
        for at in 0..3 {
            three.start(at).await;
        }
        three.converge().await;
        three.check(&ledger).await;
    }
    assert!(ledger.acknowledged.len() >= 100, "{} were acknowledged", ledger.acknowledged.len());
    three.stop().await;
}

/// nats-server #7567: of five nodes two are paused, one of the other three loses power, and when it is back those two go on
/// and the last two are paused. The three that are there never had, or no longer have, what was acknowledged meanwhile.
#[tokio::test]
async fn nats_7567_one_power_failure_between_pauses_splits_nothing() {
    let (mut five, links) = linked_of(5, 7567).await;
    let mut ledger = Ledger::default();
    let first = five.leader().await;
    let [a, b, c, d]: [usize; 4] = std::array::from_fn(|k| (first + 1 + k) % 5);
    for paused in [a, b] {
        links.freeze(five.group(paused).node());
    }
    send(&five, &mut ledger, &[first, c, d], "while two are paused", 30).await;
    five.lose_all_unsynced(&[c]).await;
    five.start(c).await;
    links.heal();
    for paused in [first, d] {
        links.freeze(five.group(paused).node());
    }
    send(&five, &mut ledger, &[a, b, c], "while the others are paused", 10).await;
    let leader = five.leader_among(&[a, b, c]).await;
    ledger.check(five.group(leader)).await;
    links.heal();
    five.converge().await;
    five.check(&ledger).await;
    five.stop().await;
}

/// nats-server #7545: a node is cut off, three of five are killed, and a fourth is removed. The minority that was left did
/// so by itself, and what had been acknowledged was lost.
#[tokio::test]
async fn nats_7545_a_minority_removes_nobody_and_loses_nothing() {
    let (mut five, links) = linked_of(5, 7545).await;
    let mut ledger = Ledger::default();
    send(&five, &mut ledger, &[0, 1, 2, 3, 4], "before", 30).await;
    five.converge().await;
    let leader = five.leader().await;
    let [a, b, c, d]: [usize; 4] = std::array::from_fn(|k| (leader + 1 + k) % 5);
    links.cut(five.group(a).node());
    for killed in [b, c] {
        five.kill(killed).await;
    }
    // Two of five are left, the leader among them: it may take the wish, and must not say that it is done.
    let (group, removed) = (five.group(leader).clone(), five.group(d).node());
    let change = VotersChange { add: None, remove: Some(removed) };
    let env = five.places[0].env.clone();
    let answer = env.clock.timeout(Duration::from_secs(3), group.change_voters(change)).await;
    assert!(!matches!(answer, Some(Ok(()))), "{answer:?}");
    let answer = env.clock.timeout(Duration::from_secs(3), group.propose(vec![record("by a minority")])).await;
    assert!(!matches!(answer, Some(Ok(_))), "{answer:?}");
    ledger.unknown.push("by a minority".to_owned());
    five.kill(leader).await;
    links.heal();
    for at in [b, c, leader] {
        five.start(at).await;
    }
    send(&five, &mut ledger, &[0, 1, 2, 3, 4], "after", 10).await;
    five.converge().await;
    five.check(&ledger).await;
    five.stop().await;
}

/// etcd 3.5: the applied index was saved apart from what had been applied. Killed between the two, a member applied entries
/// twice or left them out, and was different from then on.
#[tokio::test]
async fn etcd_3_5_a_command_is_applied_once_whenever_power_fails() {
    let rng = Rng::seeded(35);
    let mut three = Three::open(Three::simulated_places(35)).await;
    let clock = three.places[0].env.clock.clone();
    for _ in 0..10 {
        let leader = three.leader().await;
        let victim = (leader + 1 + rng.below(2) as usize) % 3;
        let group = three.group(leader).clone();
        let commands = (0..40).map(|_| {
            let group = group.clone();
            tokio::spawn(async move { group.propose(vec![Operation::Tables(Bytes::from_static(b"x"))]).await })
        });
        let commands: Vec<_> = commands.collect();
        clock.sleep(Duration::from_millis(rng.below(20))).await;
        three.disk(victim).crash(&rng);
        three.kill(victim).await;
        for answer in join_all(commands).await {
            answer.unwrap().unwrap();
        }
        three.start(victim).await;
        three.converge().await;
    }
    let totals: Vec<u64> = three.running().map(|(_, group)| group.reader().tables().total).collect();
    assert_eq!(totals, [400; 3], "each command once, on each replica");
    three.stop().await;
}

/// Kafka's last replica standing: in-sync replicas are gone until one is left, which acknowledges alone. It loses power, and
/// with it what nobody else has; or one of those that had gone before leads, and cuts the others back.
#[tokio::test]
async fn kafka_the_last_replica_standing_acknowledges_nothing_and_the_first_that_left_does_not_lead() {
    let mut three = Three::open(Three::simulated_places(966)).await;
    let mut ledger = Ledger::default();
    let last = three.leader().await;
    let (first_gone, second_gone) = ((last + 1) % 3, (last + 2) % 3);
    send(&three, &mut ledger, &[0, 1, 2], "all", 10).await;
    three.kill(first_gone).await;
    send(&three, &mut ledger, &[last, second_gone], "two", 10).await;
    three.kill(second_gone).await;
    let env = three.places[0].env.clone();
    let alone = env.clock.timeout(Duration::from_secs(3), three.group(last).propose(vec![record("alone")])).await;
    assert!(!matches!(alone, Some(Ok(_))), "{alone:?}");
    ledger.unknown.push("alone".to_owned());
    three.lose_all_unsynced(&[last]).await;
    three.start(first_gone).await;
    three.start(second_gone).await;
    assert_eq!(three.leader().await, second_gone, "the other one lacks what was acknowledged");
    three.converge().await;
    three.check(&ledger).await;
    three.start(last).await;
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// DLedger b: an error of the flush was logged, and the flushed position moved on all the same.
#[tokio::test]
async fn dledger_b_a_sync_that_fails_is_no_sync() {
    let mut three = Three::open(Three::simulated_places(62)).await;
    let mut ledger = Ledger::default();
    send(&three, &mut ledger, &[0, 1, 2], "before", 10).await;
    let leader = three.leader().await;
    let synced = three.group(leader).status().synced;
    three.disk(leader).fail_sync("/data/commitlog", 1);
    let answer = ledger.send(three.group(leader), "its sync fails").await;
    assert!(matches!(answer, Ok(_) | Err(ProposeError::Unknown | ProposeError::NotLeader { .. })), "{answer:?}");
    let mut role = three.group(leader).role();
    let stopped = role.wait_for(|role| matches!(role, Role::Stopped { reason: Some(_) }));
    within(&three.places[0].env, 10, "it stops, with a reason", stopped).await.unwrap();
    assert_eq!(three.group(leader).status().synced, synced, "its mark stands where it was");
    three.lose_all_unsynced(&[leader]).await;
    three.disk(leader).heal();
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    send(&three, &mut ledger, &others, "without it", 10).await;
    three.start(leader).await;
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// DLedger c: term and vote were written without fsync. After a power failure a member votes a second time in one term.
#[tokio::test]
async fn dledger_c_a_vote_that_was_given_survives_a_power_failure() {
    let mut three = Three::open(Three::simulated_places(63)).await;
    let mut ledger = Ledger::default();
    for round in 0..5 {
        let leader = three.leader().await;
        ledger.send(three.group(leader), &format!("round-{round}")).await.unwrap();
        let terms: Vec<u64> = (0..3).map(|at| three.group(at).status().term).collect();
        three.lose_all_unsynced(&[0, 1, 2]).await;
        // Not one of them alone: a term that it has forgotten would be told by the others.
        for at in 0..3 {
            three.groups[at] = Some(three.places[at].open().await);
            let term = three.group(at).status().term;
            assert!(term >= terms[at], "member {at} was in term {} and comes back in {term}", terms[at]);
            if at < 2 {
                three.kill(at).await;
            }
        }
        for at in 0..2 {
            three.start(at).await;
        }
    }
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// DLedger d: the test of the page cache's loss dropped nothing, since it only stopped the program. What our simulated
/// disks lose, they lose; `jepsen` has the same proof with a real file system, at each power failure.
#[tokio::test]
async fn dledger_d_a_power_failure_takes_what_was_not_synced() {
    let disk = SimDisk::new(Rng::seeded(64));
    let path = Path::new("/canary");
    let write = async |disk: &SimDisk, text: &'static [u8]| {
        let mounted = disk.mount();
        let file = mounted.open(path, Open::OrCreate).await.unwrap();
        file.write_at(0, &[Bytes::from_static(text)]).await.unwrap();
        file
    };
    let content = |disk: &SimDisk| disk.dump().get(path).cloned();
    let file = write(&disk, b"synced").await;
    file.sync_data().await.unwrap();
    disk.mount().sync_dir(Path::new("/")).await.unwrap();
    write(&disk, b"canary").await;
    assert_eq!(content(&disk).unwrap(), "canary");
    disk.process_kill();
    assert_eq!(content(&disk).unwrap(), "canary", "a killed program loses nothing");
    disk.crash_keeping(|_| false);
    assert_eq!(content(&disk).unwrap(), "synced");
}

/// DLedger e: its suite counted a send without an answer as one that had failed. Such a send may be there.
#[tokio::test]
async fn dledger_e_a_send_without_an_answer_is_unknown_and_may_be_there() {
    let mut found = 0;
    for seed in 650..655 {
        let mut three = Three::open(Three::simulated_places(seed)).await;
        let leader = three.leader().await;
        three.converge().await;
        // The others have it long before the leader has.
        three.disk(leader).set_latency(Latency { sync: Duration::from_millis(200), ..Latency::default() });
        let group = three.group(leader).clone();
        let last = group.log().last();
        let sent = tokio::spawn(async move { group.propose(vec![record("in flight")]).await });
        let clock = three.places[0].env.clock.clone();
        let in_the_log = async {
            while three.group(leader).log().last() == last {
                clock.sleep(Duration::from_millis(1)).await;
            }
        };
        within(&three.places[0].env, 5, "it is in the log", in_the_log).await;
        clock.sleep(Duration::from_millis(seed - 650)).await;
        three.kill(leader).await;
        let answer = sent.await.unwrap();
        let mut ledger = Ledger::default();
        // Acknowledged if the others were as fast as that; never "certainly not".
        if let Err(error) = ledger.note(answer, "in flight") {
            assert_eq!(error, ProposeError::Unknown);
        }
        let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
        let next = three.leader_among(&others).await;
        ledger.check(three.group(next)).await;
        let bounds = three.group(next).reader().queue(crate::world::QUEUE).map(|queue| queue.bounds());
        found += usize::from(bounds.is_some_and(|bounds| !bounds.is_empty()));
        three.disk(leader).set_latency(Latency::default());
        three.stop_running().await;
    }
    assert!(found > 0, "none of them was there in the end: this shows nothing");
}

/// openraft #1802: with five voters whose progress differs, a leader took for committed what only two of them held.
#[tokio::test]
async fn openraft_1802_two_of_five_commit_nothing() {
    let (five, links) = linked_of(5, 1802).await;
    let mut ledger = Ledger::default();
    let leader = five.leader().await;
    let [a, b, c, d]: [usize; 4] = std::array::from_fn(|k| (leader + 1 + k) % 5);
    // Everybody's progress is another.
    for (number, cut) in [a, b].into_iter().enumerate() {
        ledger.send(five.group(leader), &format!("{number}")).await.unwrap();
        links.cut(five.group(cut).node());
    }
    ledger.send(five.group(leader), "three of five").await.unwrap();
    let env = five.places[0].env.clone();
    let applied_by = |at: usize| five.group(at).status().applied;
    links.cut(five.group(c).node());
    let committed = five.group(leader).status().committed;
    let group = five.group(leader).clone();
    let doomed: Vec<_> = (0..20)
        .map(|number| {
            let group = group.clone();
            tokio::spawn(async move { group.propose(vec![record(&format!("two of five {number}"))]).await })
        })
        .collect();
    let held_by_two = async {
        while five.group(d).log().last() <= committed {
            env.clock.sleep(Duration::from_millis(1)).await;
        }
    };
    within(&env, 5, "the second one has it", held_by_two).await;
    // As long as it leads, and beyond.
    let deposed = async {
        while matches!(&*five.group(leader).role().borrow(), Role::Leader { .. }) {
            assert_eq!(five.group(leader).status().committed, committed);
            env.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = env.clock.timeout(Duration::from_secs(2), deposed).await;
    assert_eq!((five.group(leader).status().committed, applied_by(d) <= committed), (committed, true));
    links.heal();
    for (number, answer) in join_all(doomed).await.into_iter().enumerate() {
        let _ = ledger.note(answer.unwrap(), &format!("two of five {number}"));
    }
    five.converge().await;
    five.check(&ledger).await;
    five.stop().await;
}

/// A leader that is cut off with its clients, and comes back: what the split-brains of DLedger's and NATS's suites come
/// down to. It acknowledges nothing after its lease, and nobody reads from it what another leader has replaced.
#[tokio::test]
async fn a_leader_alone_with_its_clients_neither_acknowledges_nor_answers() {
    let (three, links) = linked(71).await;
    let mut ledger = Ledger::default();
    let first = three.leader().await;
    ledger.send(three.group(first), "before").await.unwrap();
    links.cut(three.group(first).node());
    let others: Vec<usize> = (0..3).filter(|at| *at != first).collect();
    let group: Group<Counter> = three.group(first).clone();
    let env = three.places[0].env.clone();
    let sent = tokio::spawn(async move { group.propose(vec![record("alone")]).await });
    send(&three, &mut ledger, &others, "meanwhile", 5).await;
    let read = env.clock.timeout(Duration::from_secs(2), three.group(first).linearizable()).await;
    assert!(!matches!(read, Some(Ok(_))), "a stale leader answers: {read:?}");
    links.heal();
    let answer = within(&env, 30, "an answer", sent).await.unwrap();
    assert!(ledger.note(answer, "alone").is_err(), "nobody else has it");
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

impl Three {
    /// [`Three::stop`] of those that run, whatever they think of each other.
    async fn stop_running(self) {
        for group in self.groups.into_iter().flatten() {
            group.kill().await;
        }
    }
}

//! Replicas that make something else of the same log, without a bit on a disk being wrong.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use raft_store::entry::{CoreCommand, Operation};
use raft_store::fold::{CoreReply, Outcome};
use raft_store::group::{Group, Role};
use raft_store::position::{LogId, Timestamp};

use crate::three::Three;
use crate::world::{Counter, Ledger, QUEUE, within};

async fn checkpoint(three: &Three, leader: usize) -> LogId {
    let group = three.group(leader);
    let outcomes = group.propose(vec![Operation::Core(CoreCommand::Checkpoint)]).await.unwrap();
    assert_eq!(outcomes, [Outcome::Core(CoreReply::Checkpoint)]);
    group.reader().checkpoints().last().unwrap().id
}

async fn count(three: &Three, leader: usize) {
    three.group(leader).propose(vec![Operation::Tables(Bytes::from_static(b"one"))]).await.unwrap();
}

/// From the next command on this replica counts too much.
fn disorder(three: &Three, at: usize, surplus: u64) {
    three.places[at].surplus.store(surplus, Ordering::Relaxed);
}

/// Waits until `group` says so, without asking its disk or its peers for anything.
async fn until(three: &Three, what: &str, group: &Group<Counter>, is_so: impl Fn(&Group<Counter>) -> bool) {
    let mut news = group.reader().watch_state_hashes();
    let changed = async {
        while !is_so(group) {
            news.changed().await.unwrap();
        }
    };
    within(&three.places[0].env, 15, what, changed).await;
}

/// All that run agree on `at`, and have the same image there.
async fn until_agreed(three: &Three, at: LogId) {
    for (_, group) in three.running() {
        let is_agreed = |group: &Group<Counter>| {
            group.status().state_agreed == Some(at) && group.reader().state_hashes().images.contains_key(&at)
        };
        until(three, "the checkpoint is agreed on", group, is_agreed).await;
    }
    let hashes: Vec<u64> = three.running().map(|(_, group)| group.reader().state_hashes().images[&at]).collect();
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "agreed on {hashes:?}");
}

async fn reason_to_stop(three: &Three, at: usize) -> String {
    let mut role = three.group(at).role();
    let stopped = role.wait_for(|role| matches!(role, Role::Stopped { .. }));
    let stopped = within(&three.places[at].env, 15, "it stops", stopped).await.unwrap().clone();
    let Role::Stopped { reason: Some(reason) } = stopped else { panic!("{stopped:?}") };
    reason
}

fn totals(three: &Three) -> Vec<u64> {
    three.running().map(|(_, group)| group.reader().tables().total).collect()
}

/// Every checkpoint is agreed on, also one whose leader is gone before it could ask anybody.
#[tokio::test]
async fn replicas_agree_at_every_checkpoint_whoever_leads() {
    let mut three = Three::open(Three::simulated_places(401)).await;
    let mut ledger = Ledger::default();
    for number in 0..6 {
        let leader = three.leader().await;
        ledger.send(three.group(leader), &format!("message {number}")).await.unwrap();
        count(&three, leader).await;
        let at = checkpoint(&three, leader).await;
        if number % 2 == 1 {
            three.kill(leader).await;
            three.leader().await;
            three.start(leader).await;
        }
        until_agreed(&three, at).await;
    }
    three.converge().await;
    let verdicts: Vec<_> = three.running().map(|(_, group)| group.reader().state_hashes().verdicts).collect();
    assert_eq!(verdicts[0].len(), 6);
    assert!(verdicts.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(totals(&three), [18; 3]);
    three.check(&ledger).await;
    three.stop().await;
}

/// A follower counts too much, once, and nothing tells it. The next checkpoint does: it stops, and its next start makes its
/// state anew, from the log's beginning or from where that is trimmed to.
#[tokio::test]
async fn a_follower_that_went_wrong_rebuilds_and_agrees_again() {
    for (seed, is_trimmed) in [(411, false), (421, true)] {
        let mut three = Three::open(Three::simulated_places(seed)).await;
        let leader = three.leader().await;
        let wrong = (leader + 1) % 3;
        let group = three.group(leader).clone();
        let mut ledger = Ledger::default();
        for number in 0..10 {
            ledger.send(&group, &format!("before {number}")).await.unwrap();
        }
        count(&three, leader).await;
        let begin = checkpoint(&three, leader).await;
        until_agreed(&three, begin).await;
        if is_trimmed {
            let min_physical = group.reader().checkpoints()[0].end;
            let trim = CoreCommand::Trim { min_physical, cut: Timestamp(i64::MAX) };
            group.propose(vec![Operation::Core(trim)]).await.unwrap();
            ledger = Ledger::default();
            let env = &three.places[0].env;
            within(env, 10, "the log is purged", async {
                while three.group(wrong).status().purged.is_none() {
                    env.clock.sleep(std::time::Duration::from_millis(10)).await;
                }
            })
            .await;
        }
        ledger.send(&group, "not trimmed").await.unwrap();
        disorder(&three, wrong, 1);
        count(&three, leader).await;
        three.converge().await;
        disorder(&three, wrong, 0);
        assert_eq!(totals(&three).iter().sum::<u64>(), 6 + 6 + 6 + 1, "one of three has counted too much");
        let found_at = checkpoint(&three, leader).await;

        let reason = reason_to_stop(&three, wrong).await;
        assert!(reason.contains("rebuild") && reason.contains(&found_at.to_string()), "{reason}");
        assert_eq!(reason.contains(&format!("image {begin}")), is_trimmed, "{reason}");
        assert!(three.group(wrong).stop().await.is_err(), "a stop for a reason is no clean one");
        ledger.send(&group, "the others serve").await.unwrap();

        three.groups[wrong] = None;
        three.start(wrong).await;
        three.converge().await;
        assert_eq!(three.group(wrong).reader().derived_stats().rebuilds, 1);
        assert_eq!(totals(&three), [6; 3]);
        until_agreed(&three, found_at).await;
        let bounds: Vec<_> = three.running().map(|(_, group)| group.reader().queue(QUEUE).unwrap().bounds()).collect();
        assert!(bounds.windows(2).all(|pair| pair[0] == pair[1]), "{bounds:?}");
        assert_eq!(bounds[0].start.0, if is_trimmed { 10 } else { 0 });
        three.check(&ledger).await;
        let next = checkpoint(&three, leader).await;
        until_agreed(&three, next).await;
        three.stop().await;
    }
}

/// The leader itself went wrong. It lets another lead before it stops.
#[tokio::test]
async fn a_leader_that_went_wrong_hands_over_first() {
    let mut three = Three::open(Three::simulated_places(431)).await;
    let wrong = three.leader().await;
    let mut ledger = Ledger::default();
    ledger.send(three.group(wrong), "before").await.unwrap();
    disorder(&three, wrong, 5);
    count(&three, wrong).await;
    disorder(&three, wrong, 0);
    let mut role = three.group(wrong).role();
    let found_at = checkpoint(&three, wrong).await;
    let deposed = role.wait_for(|role| !matches!(role, Role::Leader { .. }));
    let deposed = within(&three.places[0].env, 15, "it lets go", deposed).await.unwrap().clone();
    assert!(!matches!(deposed, Role::Stopped { .. }), "{deposed:?}");
    let reason = reason_to_stop(&three, wrong).await;
    assert!(reason.contains("rebuild"), "{reason}");
    three.kill(wrong).await;
    let second = three.leader().await;
    ledger.send(three.group(second), "after").await.unwrap();

    three.start(wrong).await;
    three.converge().await;
    assert_eq!(totals(&three), [3; 3]);
    until_agreed(&three, found_at).await;
    three.check(&ledger).await;
    three.stop().await;
}

/// Everybody has something else: nobody knows who is right. All serve on, and say so.
#[tokio::test]
async fn without_a_majority_there_is_an_alarm_and_nobody_rebuilds() {
    let three = Three::open(Three::simulated_places(441)).await;
    let leader = three.leader().await;
    let good = checkpoint(&three, leader).await;
    until_agreed(&three, good).await;
    disorder(&three, leader, 1);
    disorder(&three, (leader + 1) % 3, 2);
    count(&three, leader).await;
    three.converge().await;
    let split = checkpoint(&three, leader).await;
    for (_, group) in three.running() {
        until(&three, "the split is known", group, |group| group.status().state_split == Some(split)).await;
        assert_eq!(group.status().state_agreed, Some(good));
    }
    let mut ledger = Ledger::default();
    for number in 0..20 {
        ledger.send(three.group(leader), &format!("after {number}")).await.unwrap();
    }
    three.converge().await;
    three.check(&ledger).await;
    let rebuilds = three.running().map(|(_, group)| group.reader().derived_stats().rebuilds);
    assert_eq!(rebuilds.sum::<u64>(), 0);
    three.stop().await;
}

/// A replica that goes wrong again at the same place, from the same log, is not worth another try.
#[tokio::test]
async fn a_replica_that_goes_wrong_again_is_to_be_replaced() {
    let mut three = Three::open(Three::simulated_places(451)).await;
    let leader = three.leader().await;
    let wrong = (leader + 2) % 3;
    disorder(&three, wrong, 1);
    count(&three, leader).await;
    checkpoint(&three, leader).await;
    let first = reason_to_stop(&three, wrong).await;
    assert!(first.contains("the next start rebuilds"), "{first}");
    three.kill(wrong).await;
    three.start(wrong).await;
    let second = reason_to_stop(&three, wrong).await;
    assert!(second.contains("replaceNode"), "{second}");
    three.kill(wrong).await;
    let refused = three.places[wrong].try_open().await.err().expect("it does not start").to_string();
    assert!(refused.contains("replaceNode"), "{refused}");
    three.group(leader).linearizable().await.unwrap();
    three.stop().await;
}

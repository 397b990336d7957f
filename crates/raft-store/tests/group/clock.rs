//! Clocks that are wrong, each member's own, while messages wait for their time.

use std::time::Duration;

use raft_store::entry::{CoreCommand, Operation, Visibility};
use raft_store::fold::{CoreReply, Outcome};
use raft_store::group::Role;
use raft_store::position::Timestamp;

use crate::three::Three;
use crate::world::{Place, record, record_operation, until_ready, within};

const HOUR: i64 = 3_600_000;

/// Clocks of three members that were made one after the other differ by as much; and half a second is allowed for.
const NEAR_MS: i64 = 1000;

/// Three members; the one that leads has shown that it knows the others' clocks.
async fn three(seed: u64) -> (Three, usize) {
    let three = Three::open(Three::simulated_places(seed)).await;
    let leader = three.leader().await;
    until_offset(&three, leader, "within bounds", |offset| offset.abs() < NEAR_MS).await;
    (three, leader)
}

/// Waits for what the leader finds out about its clock.
async fn until_offset(three: &Three, leader: usize, what: &str, found: impl Fn(i64) -> bool) {
    let env = &three.places[leader].env;
    within(env, 10, what, async {
        while !three.group(leader).status().clock_offset_ms.is_some_and(&found) {
            env.clock.sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Waits until somebody else leads than `first`.
async fn successor(three: &Three, first: usize) -> usize {
    let env = &three.places[first].env;
    let deposed = async {
        let mut role = three.group(first).role();
        role.wait_for(|role| !matches!(role, Role::Leader { .. })).await.unwrap();
    };
    within(env, 15, "it hands over", deposed).await;
    three.leader().await
}

/// True time, by a member whose clock nobody touches.
fn wall(three: &Three, at: usize) -> i64 {
    three.places[at].env.clock.wall_ms()
}

fn step(three: &Three, at: usize, by_ms: i64) {
    three.places[at].env.clock.step_wall(by_ms);
}

async fn stamp(three: &Three, leader: usize) -> i64 {
    let outcomes = three.group(leader).propose(vec![record("what time is it?")]).await.unwrap();
    let [Outcome::Placed { stamp, .. }] = outcomes.as_slice() else { panic!("{outcomes:?}") };
    assert!(three.group(leader).now() >= *stamp);
    stamp.0
}

async fn schedule(three: &Three, leader: usize, due: i64) {
    let visibility = Visibility::Scheduled { due: Timestamp(due) };
    let scheduled = Operation::Record(raft_store::entry::RecordOperation { visibility, ..record_operation("later") });
    three.group(leader).propose(vec![scheduled]).await.unwrap();
}

async fn fired(three: &Three, leader: usize) -> u32 {
    let fire = Operation::Core(CoreCommand::FireTimers { limit: 10 });
    let outcomes = three.group(leader).propose(vec![fire]).await.unwrap();
    let [Outcome::Core(CoreReply::Fired { fired, .. })] = outcomes[..] else { panic!("{outcomes:?}") };
    fired
}

fn assert_near(time: i64, expected: i64, what: &str) {
    assert!((time - expected).abs() < NEAR_MS, "{what}: {} ms off", time - expected);
}

/// The leader's clock jumps, either way. No message is early, time goes on, and somebody with a better clock takes over.
#[tokio::test]
async fn a_leader_whose_clock_steps_is_not_followed_and_hands_over() {
    for (seed, by) in [(301, HOUR), (311, -HOUR)] {
        let (three, first) = three(seed).await;
        let witness = (first + 1) % 3;
        let due = wall(&three, witness) + 30 * 60_000;
        schedule(&three, first, due).await;
        step(&three, first, by);
        assert_eq!(fired(&three, first).await, 0, "it is not its time");
        assert_near(stamp(&three, first).await, wall(&three, witness), "on the monotonic clock");
        assert_near(three.group(first).now().0, wall(&three, witness), "what the broker is told");
        until_offset(&three, first, "off by an hour", |offset| (offset - by).abs() < NEAR_MS).await;
        let second = successor(&three, first).await;
        let status = three.group(first).status();
        assert_eq!((status.clock_hand_overs, status.clock_steps_refused), (1, 1));
        assert_eq!(fired(&three, second).await, 0, "nor by the next leader's clock");
        assert_near(stamp(&three, second).await, wall(&three, witness), "the next leader's stamps");
        // It stays there, although the others have to look at the bad clock for longer than it takes to hand over.
        let term = three.group(second).status().term;
        three.places[0].env.clock.sleep(Duration::from_secs(4)).await;
        let status = three.group(second).status();
        assert_eq!((status.term, status.clock_hand_overs), (term, 0), "nothing goes back and forth");

        // When its time has really come, it is fired once.
        for at in 0..3 {
            step(&three, at, 30 * 60_000);
        }
        let env = &three.places[0].env;
        let mut times = 0;
        within(env, 10, "it is fired", async {
            while times == 0 {
                times += fired(&three, second).await;
            }
        })
        .await;
        assert!(stamp(&three, second).await >= due);
        assert_eq!((times, fired(&three, second).await), (1, 0));
        three.converge().await;
        three.stop().await;
    }
}

/// A clock that runs too fast, as fast as clocks do when they are out of order: half a second is what it may gain.
#[tokio::test]
async fn a_leader_whose_clock_drifts_hands_over_when_it_is_half_a_second_off() {
    let (three, first) = three(321).await;
    step(&three, first, 497);
    three.places[first].env.clock.drift_wall(1000);
    let second = successor(&three, first).await;
    let status = three.group(first).status();
    assert_eq!((status.clock_hand_overs, status.clock_steps_refused), (1, 0));
    let before = stamp(&three, second).await;
    assert_near(before, wall(&three, second), "what it had gained is waited for");
    three.converge().await;
    three.stop().await;
}

/// A follower's clock concerns nobody, until it leads: then time goes by the others' clocks, and it hands over.
#[tokio::test]
async fn a_follower_with_a_bad_clock_harms_nobody_also_when_it_becomes_the_leader() {
    let (mut three, first) = three(331).await;
    let (bad, good) = ((first + 1) % 3, (first + 2) % 3);
    let due = wall(&three, good) + 30 * 60_000;
    schedule(&three, first, due).await;
    step(&three, bad, HOUR);
    let term = three.group(first).status().term;
    three.places[0].env.clock.sleep(Duration::from_secs(4)).await;
    let status = three.group(first).status();
    assert_eq!((status.term, status.clock_hand_overs), (term, 0), "the leader goes on");
    assert_near(stamp(&three, first).await, wall(&three, good), "by its own clock");

    // Only the one with the bad clock can lead: the other is asleep and then lacks what was sent.
    three.kill(good).await;
    three.group(first).propose(vec![record("the sleeper lacks this")]).await.unwrap();
    three.converge().await;
    three.kill(first).await;
    three.start(good).await;
    until_ready(three.group(bad)).await;
    // One against one: nobody can say who is right, and nobody hands over.
    assert_eq!(fired(&three, bad).await, 0, "an hour ahead, and nothing is early");
    assert_near(stamp(&three, bad).await, wall(&three, good), "by the others' clocks");
    assert_near(three.group(bad).now().0, wall(&three, good), "what the broker is told");
    assert_eq!(three.group(bad).status().clock_hand_overs, 0);
    three.start(first).await;
    let last = successor(&three, bad).await;
    assert_ne!(last, bad);
    assert_eq!(fired(&three, last).await, 0);
    assert_near(stamp(&three, last).await, wall(&three, last), "its own clock is right");
    three.converge().await;
    three.stop().await;
}

/// The whole site was an hour late and is corrected, one machine after the other. Time follows the majority, and the
/// leader stays.
#[tokio::test]
async fn a_correction_of_all_clocks_is_followed_once_a_majority_agrees() {
    let (three, leader) = three(341).await;
    let before = wall(&three, leader);
    let term = three.group(leader).status().term;
    step(&three, leader, HOUR);
    assert_near(stamp(&three, leader).await, before, "alone it is not followed");
    step(&three, (leader + 1) % 3, HOUR);
    let env = &three.places[0].env;
    within(env, 10, "the correction is followed", async {
        while stamp(&three, leader).await < before + HOUR {
            env.clock.sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    step(&three, (leader + 2) % 3, HOUR);
    assert_near(stamp(&three, leader).await, wall(&three, leader), "by its own clock again");
    let status = three.group(leader).status();
    assert_eq!((status.term, status.clock_hand_overs, status.clock_steps_refused), (term, 0, 1));
    // Back: nothing may go back, so time stands nearly still.
    for at in 0..3 {
        step(&three, at, -HOUR);
    }
    until_offset(&three, leader, "all have stepped back", |offset| offset.abs() < NEAR_MS).await;
    let first = stamp(&three, leader).await;
    let second = stamp(&three, leader).await;
    assert_eq!(second, first + 1, "1 ms an entry until the clocks are there");
    three.converge().await;
    three.stop().await;
}

/// Alone there is nobody to ask.
#[tokio::test]
async fn a_member_alone_trusts_its_clock() {
    let address = crate::world::free_address();
    let place = Place::simulated(351, address, &[address]);
    let group = place.open().await;
    within(&place.env, 5, "leading", until_ready(&group)).await;
    place.env.clock.step_wall(HOUR);
    let outcomes = group.propose(vec![record("what time is it?")]).await.unwrap();
    let [Outcome::Placed { stamp, .. }] = outcomes.as_slice() else { panic!("{outcomes:?}") };
    assert_near(stamp.0, place.env.clock.wall_ms(), "its own");
    assert_eq!(group.status().clock_steps_refused, 0);
    group.stop().await.unwrap();
}

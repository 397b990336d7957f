//! Members that come and go while the others serve: added, replaced, removed, killed in the middle of it.

use std::time::Duration;

use env::Env;
use raft_store::entry::{CoreCommand, Operation};
use raft_store::group::{Group, HandOverError, MembersError, OpenError, Role, VotersChange};
use raft_store::identity::IdentityError;
use raft_store::position::{NodeId, Timestamp};

use crate::three::Three;
use crate::world::{Counter, Ledger, Place, free_address, record, within};

/// A place for one that joins the others.
fn joiner(seed: u64, three: &Three) -> Place {
    let founders: Vec<_> = three.places.iter().map(|place| place.options.peer_listen).collect();
    let mut place = Place::simulated(seed, free_address(), &founders);
    place.options.join = true;
    place
}

/// Opens `place` as another member of `three`, and lets the others know it; gives its number.
async fn join(three: &mut Three, place: Place) -> usize {
    let group = within(&place.env, 20, "opening", place.open()).await;
    assert!(matches!(&*group.role().borrow(), Role::Follower { leader: None, .. }), "it waits to be named");
    three.places.push(place);
    three.groups.push(Some(group));
    three.groups.len() - 1
}

/// Asks whoever leads, as often as it takes.
async fn changed(three: &Three, change: VotersChange) -> usize {
    let env = &three.places[0].env;
    within(env, 30, "the voters are changed", async {
        loop {
            let leader = three.leader().await;
            match three.group(leader).change_voters(change).await {
                Ok(()) => return leader,
                Err(MembersError::Refused(reason)) if !reason.contains("configuration change") => panic!("{reason}"),
                Err(_) => env.clock.sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await
}

fn asked(add: Option<NodeId>, remove: Option<NodeId>) -> VotersChange {
    VotersChange { add, remove }
}

async fn add(three: &Three, at: usize) -> NodeId {
    let env = &three.places[0].env;
    let address = &three.places[at].options.peer_address;
    within(env, 30, "a learner", async {
        loop {
            let leader = three.leader().await;
            match three.group(leader).add_learner(address).await {
                Ok(added) => return added.id,
                Err(MembersError::Refused(reason)) if !reason.contains("configuration change") => panic!("{reason}"),
                Err(_) => env.clock.sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await
}

/// Resolves when the replica has stopped; gives the reason.
async fn stopped(env: &Env, group: &Group<Counter>) -> String {
    let mut role = group.role();
    let stopped = role.wait_for(|role| matches!(role, Role::Stopped { .. }));
    match within(env, 20, "it stops", stopped).await.unwrap().clone() {
        Role::Stopped { reason: Some(reason) } => reason,
        role => panic!("{role:?}"),
    }
}

async fn send(three: &Three, ledger: &mut Ledger, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let leader = three.leader().await;
        ledger.send(three.group(leader), &format!("message-{number}")).await.unwrap();
    }
}

/// The whole way: a fourth node catches up, takes the place of another one in one change, and that one stops for good.
#[tokio::test]
async fn a_new_node_takes_the_place_of_another() {
    let mut three = Three::open(Three::simulated_places(301)).await;
    let mut ledger = Ledger::default();
    send(&three, &mut ledger, 0..50).await;
    let place = joiner(310, &three);
    let new = join(&mut three, place).await;
    let added = add(&three, new).await;
    assert_eq!((added, add(&three, new).await), (three.group(new).node(), added), "asking again changes nothing");
    let leader = three.leader().await;
    let status = three.group(leader).status();
    assert_eq!((status.voters.len(), status.members.len()), (3, 4), "it has no vote yet");
    assert!(!three.group(new).is_caught_up());

    let old = (leader + 1) % 3;
    let leaves = three.group(old).node();
    let change = asked(Some(added), Some(leaves));
    let leader = changed(&three, change).await;
    three.group(leader).change_voters(change).await.expect("asking again changes nothing");
    let status = three.group(leader).status();
    assert!(status.voters.contains(&added) && !status.voters.contains(&leaves) && status.members.len() == 3);

    let env = three.places[0].env.clone();
    let reason = stopped(&env, three.group(old)).await;
    assert!(reason.contains(&format!("{leaves:016x} was removed")), "{reason}");
    three.kill(old).await;
    let refused = three.places[old].try_open().await.err();
    assert!(
        matches!(&refused, Some(OpenError::Identity(IdentityError::Left { id, .. })) if *id == leaves),
        "{refused:?}"
    );

    send(&three, &mut ledger, 50..100).await;
    three.converge().await;
    three.check(&ledger).await;
    assert!(three.group(new).is_caught_up());
    // It counts: with one of the others gone it makes the majority, and may lead.
    three.kill(leader).await;
    let next = three.leader().await;
    if next != new {
        within(&env, 10, "handed over", three.group(next).hand_over_to(added)).await.unwrap();
        assert_eq!(three.leader().await, new);
    }
    send(&three, &mut ledger, 100..110).await;
    three.converge().await;
    three.check(&ledger).await;
}

/// What was purged comes as an image. Until retention's last cut is applied too, it lacks what others would show.
#[tokio::test]
async fn a_new_node_gets_the_image_and_the_log_behind_it() {
    let mut three = Three::open(Three::simulated_places(321)).await;
    let leader = three.leader().await;
    let group = three.group(leader).clone();
    let mut ledger = Ledger::default();
    group.propose(vec![record("cut away")]).await.unwrap();
    group.propose(vec![Operation::Core(CoreCommand::Checkpoint)]).await.unwrap();
    let boundary = group.log().last().unwrap();
    let end = group.log().tip().end.physical_offset;
    send(&three, &mut ledger, 0..20).await;
    let trim = CoreCommand::Trim { min_physical: end, cut: Timestamp(i64::MAX) };
    group.propose(vec![Operation::Core(trim)]).await.unwrap();
    let env = three.places[0].env.clone();
    for at in 0..3 {
        let purged = async {
            while three.group(at).log().last_purged() != Some(boundary) {
                env.clock.sleep(Duration::from_millis(10)).await;
            }
        };
        within(&env, 20, "purged", purged).await;
    }
    let place = joiner(330, &three);
    let new = join(&mut three, place).await;
    let added = add(&three, new).await;
    changed(&three, asked(Some(added), None)).await;
    three.converge().await;
    let joined = three.group(new);
    assert_eq!(joined.log().last_purged(), Some(boundary));
    assert!(joined.is_caught_up());
    assert_eq!(joined.reader().min_physical(), end);
    let bounds: Vec<_> =
        three.running().map(|(_, group)| group.reader().queue(crate::world::QUEUE).unwrap().bounds()).collect();
    assert!(bounds.windows(2).all(|pair| pair[0] == pair[1]), "{bounds:?}");
    // After a restart it needs no `join`, and is what it was.
    three.kill(new).await;
    three.places[new].options.join = false;
    three.start(new).await;
    three.converge().await;
    assert!(three.group(new).is_caught_up());
}

/// A slow pace, so that everybody can be killed while the new node catches up; each time the same steps are asked for again.
#[tokio::test]
async fn kills_in_the_middle_delay_it_and_lose_nothing() {
    let mut places = Three::simulated_places(341);
    places.iter_mut().for_each(|place| place.options.catch_up_bytes_per_s = 12 << 20);
    let mut three = Three::open(places).await;
    let mut ledger = Ledger::default();
    let big = |number: u32| format!("{number}-{}", "x".repeat(512 << 10));
    for number in 0..64 {
        let leader = three.leader().await;
        ledger.send(three.group(leader), &big(number)).await.unwrap();
    }
    let place = joiner(350, &three);
    let new = join(&mut three, place).await;
    let added = add(&three, new).await;
    let env = three.places[0].env.clone();
    let leader = three.leader().await;
    let refused = three.group(leader).change_voters(asked(Some(added), None)).await;
    assert!(matches!(refused, Err(MembersError::NotCaughtUp { lag_bytes }) if lag_bytes > 4 << 20), "{refused:?}");
    assert!(three.group(leader).lags().await.get(&added).is_some_and(|lag| !lag.is_caught_up));

    let has_some = |three: &Three| three.group(new).log().last().map_or(0, |last| last.index);
    let some = async {
        while has_some(&three) < 5 {
            env.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    within(&env, 20, "it has got something", some).await;
    three.kill(new).await;
    three.start(new).await;
    three.kill(leader).await;
    let second = three.leader().await;
    ledger.send(three.group(second), "in between").await.unwrap();
    three.start(leader).await;

    let leaves = (0..3).find(|at| *at != second && *at != leader).unwrap();
    let gone = three.group(leaves).node();
    three.kill(leaves).await;
    changed(&three, asked(Some(added), Some(gone))).await;
    three.converge().await;
    three.check(&ledger).await;
    // Nobody told it: it was down. It asks.
    three.start(leaves).await;
    let reason = stopped(&env, three.group(leaves)).await;
    assert!(reason.contains("was removed"), "{reason}");
    three.kill(leaves).await;
    let refused = three.places[leaves].try_open().await.err();
    assert!(matches!(refused, Some(OpenError::Identity(IdentityError::Left { .. }))), "{refused:?}");
}

/// The leader dies at whatever moment of the change; whoever leads next ends it, or it never began.
#[tokio::test]
async fn a_leader_that_dies_while_it_changes_the_voters_leaves_no_half_change() {
    for round in 0..6 {
        let mut three = Three::open(Three::simulated_places(361 + 10 * round)).await;
        let mut ledger = Ledger::default();
        send(&three, &mut ledger, 0..5).await;
        let place = joiner(368 + 10 * round, &three);
        let new = join(&mut three, place).await;
        let added = add(&three, new).await;
        let env = three.places[0].env.clone();
        let leader = three.leader().await;
        let gone = three.group((leader + 1) % 3).node();
        let caught_up = async {
            while !three.group(leader).lags().await.get(&added).is_some_and(|lag| lag.is_caught_up) {
                env.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        within(&env, 20, "caught up", caught_up).await;
        let group = three.group(leader).clone();
        let change = asked(Some(added), Some(gone));
        let changing = tokio::spawn(async move { group.change_voters(change).await });
        env.clock.sleep(Duration::from_millis(2 * round)).await;
        three.kill(leader).await;
        let first = within(&env, 20, "an answer", changing).await.unwrap();
        // Without being asked again, the group is of one mind about who votes.
        let next = three.leader().await;
        let settled = async {
            loop {
                let voters = three.group(next).status().voters;
                if voters.len() == 3 {
                    return voters;
                }
                env.clock.sleep(Duration::from_millis(10)).await;
            }
        };
        let voters = within(&env, 20, "one set of voters", settled).await;
        assert!(first.is_err() || (voters.contains(&added) && !voters.contains(&gone)), "{first:?} {voters:?}");
        // The one that was to go may have gone already.
        changed_without(&mut three, (leader + 1) % 3, change).await;
        three.start(leader).await;
        send(&three, &mut ledger, 5..10).await;
        three.converge().await;
        three.check(&ledger).await;
    }
}

/// [`changed`], after which the member at `leaves` has stopped.
async fn changed_without(three: &mut Three, leaves: usize, change: VotersChange) {
    let env = three.places[0].env.clone();
    if matches!(&*three.group(leaves).role().borrow(), Role::Leader { .. }) {
        within(&env, 10, "handed over", three.group(leaves).hand_over()).await.unwrap();
    }
    changed(three, change).await;
    stopped(&env, three.group(leaves)).await;
    three.kill(leaves).await;
}

/// Whoever was not answered asks again, and the node that was added may lead by now: it does not have to be asked.
#[tokio::test]
async fn a_leader_that_is_added_again_says_that_it_is_there() {
    let three = Three::open(Three::simulated_places(163)).await;
    let leader = three.leader().await;
    let address = &three.places[leader].options.peer_address;
    let added = three.group(leader).add_learner(address).await.unwrap();
    assert_eq!((added.id, &added.peer_address), (three.group(leader).node(), address));
    three.stop().await;
}

#[tokio::test]
async fn what_would_harm_the_group_is_refused() {
    let mut three = Three::open(Three::simulated_places(421)).await;
    let leader = three.leader().await;
    let (second, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let ids: Vec<NodeId> = (0..3).map(|at| three.group(at).node()).collect();
    let env = three.places[0].env.clone();
    three.converge().await;

    // Nobody there, another cluster, a node with a history, a stranger.
    let nobody = free_address().to_string();
    let unreachable = three.group(leader).add_learner(&nobody).await;
    assert!(matches!(unreachable, Err(MembersError::Unreachable(_))), "{unreachable:?}");
    let mut foreign = joiner(430, &three);
    foreign.options.cluster = "another".to_owned();
    let foreigner = foreign.open().await;
    let refused = three.group(leader).add_learner(&foreign.options.peer_address).await;
    assert!(matches!(&refused, Err(MembersError::Unreachable(why)) if why.contains("another")), "{refused:?}");
    foreigner.kill().await;
    let alone_at = free_address();
    let alone = Place::simulated(431, alone_at, &[alone_at]);
    let other = alone.open().await;
    crate::world::until_ready(&other).await;
    let refused = three.group(leader).add_learner(&alone.options.peer_address).await;
    assert!(matches!(&refused, Err(MembersError::Refused(why)) if why.contains("history")), "{refused:?}");
    other.kill().await;
    let refused = three.group(leader).change_voters(asked(Some(99), None)).await;
    assert!(matches!(&refused, Err(MembersError::Refused(why)) if why.contains("addNode")), "{refused:?}");

    // Its own leader, and somebody who does not lead.
    let refused = three.group(leader).change_voters(asked(None, Some(ids[leader]))).await;
    assert!(matches!(&refused, Err(MembersError::Refused(why)) if why.contains("transferLeader")), "{refused:?}");
    let elsewhere = three.group(second).change_voters(asked(None, Some(99))).await;
    assert_eq!(elsewhere, Ok(()), "nothing to do, wherever it is asked");
    let elsewhere = three.group(second).change_voters(asked(None, Some(ids[third]))).await;
    assert!(
        matches!(elsewhere, Err(MembersError::NotLeader { leader: Some(_) } | MembersError::Refused(_))),
        "{elsewhere:?}"
    );
    assert_eq!(three.group(leader).hand_over_to(99).await, Err(HandOverError::NotAVoter));
    assert_eq!(three.group(leader).hand_over_to(ids[leader]).await, Ok(()), "it leads already");

    // With the third one down, removing the second would leave a majority of nobody.
    three.kill(third).await;
    // What makes it silent is that time passes.
    env.clock.sleep(Duration::from_millis(2 * three.places[0].options.election_ms.1)).await;
    let refused = within(&env, 10, "refused", three.group(leader).change_voters(asked(None, Some(ids[second])))).await;
    let Err(MembersError::Refused(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains(&format!("{:016x}", ids[third])), "{why}");
    let mut ledger = Ledger::default();
    send(&three, &mut ledger, 0..3).await;
    three.start(third).await;
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

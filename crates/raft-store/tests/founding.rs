//! Founding, with members killed at every step of it: it must resume, and happen exactly once.
//!
//! Alone in its binary, because fault points are armed for the whole process.

#[path = "group/world.rs"]
#[allow(dead_code)] // The other binary uses the rest.
mod world;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use env::{Disk, fault};
use futures::future::{join_all, select_all};
use raft_store::founding::FoundingError;
use raft_store::group::{Group, MembersError, OpenError, Role, VotersChange};
use raft_store::log;
use tokio::sync::{Mutex, Notify};
use world::{Counter, Place, free_address, record, until_ready, within};

/// Armed points are everybody's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

const POINTS: [&str; 6] = [
    "founding.formatted",
    "founding.all_said_hello",
    "founding.set_written",
    "founding.confirmed",
    "founding.initialize",
    "founding.initialized",
];

fn three_places(seed: u64) -> Vec<Place> {
    let addresses = [free_address(), free_address(), free_address()];
    let mut places: Vec<Place> =
        (0..3).map(|at| Place::simulated(seed + at, addresses[at as usize], &addresses)).collect();
    places.iter_mut().for_each(|place| place.options.election_ms = (100, 200));
    places
}

/// All have the same three members, one leads, and a proposal is applied by everybody.
async fn is_one_group(places: &[Place], groups: &[Group<Counter>]) {
    let env = &places[0].env;
    let leader = within(env, 20, "a leader", leader_of(&groups.iter().collect::<Vec<_>>())).await;
    leader.propose(vec![record("founded")]).await.unwrap();
    let last = leader.status().last.unwrap();
    for group in groups {
        within(env, 10, "applied everywhere", group.reader().wait_applied(last.index)).await.unwrap();
        let mut expected: Vec<u64> = groups.iter().map(Group::node).collect();
        expected.sort();
        // What is applied is told a little before openraft's metrics tell who votes.
        let same = async {
            while group.status().voters != expected {
                env.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        within(env, 10, "the same members", same).await;
    }
}

#[tokio::test]
async fn founding_resumes_wherever_founders_are_killed() {
    let _alone = ONE_AT_A_TIME.lock().await;
    world::log_if_asked();
    for (number, point) in POINTS.into_iter().enumerate() {
        for victims in [vec![0], vec![2], vec![0, 1, 2]] {
            println!("members {victims:?} killed when {point} is first passed");
            let places = three_places(100 * number as u64);
            let disks: Vec<_> = victims.iter().map(|at| places[*at].disk.clone().unwrap()).collect();
            let (struck, passed) = (AtomicBool::new(false), Arc::new(Notify::new()));
            let tell = passed.clone();
            fault::arm(point, move || {
                if !struck.swap(true, Ordering::SeqCst) {
                    // From here on nothing that a victim does reaches its disk.
                    disks.iter().for_each(|disk| disk.process_kill());
                    tell.notify_one();
                }
            });
            let mut opening: Vec<_> =
                places.iter().cloned().map(|place| tokio::spawn(async move { place.try_open().await })).collect();
            within(&places[0].env, 20, point, passed.notified()).await;
            fault::disarm(point);
            for at in &victims {
                if opening[*at].is_finished() {
                    if let Ok(Ok(group)) = (&mut opening[*at]).await {
                        group.kill().await;
                    }
                } else {
                    // Dropping the future ends whatever it began.
                    opening[*at].abort();
                    let _ = (&mut opening[*at]).await;
                }
                let place = places[*at].clone();
                opening[*at] = tokio::spawn(async move { reopened(&place).await });
            }
            let groups = within(&places[0].env, 20, "founded", join_all(opening)).await;
            let groups: Vec<Group<Counter>> = groups.into_iter().map(|group| group.unwrap().unwrap()).collect();
            is_one_group(&places, &groups).await;
            join_all(groups.iter().map(Group::kill)).await;
        }
    }
}

async fn leader_of(groups: &[&Group<Counter>]) -> Group<Counter> {
    let ready = groups.iter().map(|group| {
        Box::pin(async move {
            until_ready(group).await;
            (*group).clone()
        })
    });
    select_all(ready).await.0
}

/// Opens as soon as the predecessor's listener is closed.
async fn reopened(place: &Place) -> Result<Group<Counter>, OpenError> {
    loop {
        match place.try_open().await {
            Err(OpenError::Listen { .. }) => place.env.clock.sleep(Duration::from_millis(5)).await,
            opened => return opened,
        }
    }
}

#[tokio::test]
async fn a_wiped_directory_does_not_come_back_as_the_old_member() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let places = three_places(1);
    let groups = within(&places[0].env, 20, "founding", join_all(places.iter().map(Place::open))).await;
    is_one_group(&places, &groups).await;
    let was = groups[1].node();
    groups[1].kill().await;
    places[1].disk.as_ref().unwrap().wipe();
    let refused = within(&places[1].env, 20, "a refusal", reopened(&places[1])).await.err();
    let Some(OpenError::Founding(error @ FoundingError::FoundedWithout { id, .. })) = &refused else {
        panic!("{refused:?}");
    };
    assert_ne!(*id, was);
    assert!(error.to_string().contains("join = true"), "the error says what to do: {error}");

    // With `join` it waits, as nobody, until an operator makes it a member.
    let mut joins = places[1].clone();
    joins.options.join = true;
    let joined = within(&joins.env, 20, "joining", reopened(&joins)).await.unwrap();
    assert!(matches!(&*joined.role().borrow(), Role::Follower { leader: None, .. }));
    assert_ne!(joined.node(), was);

    // The operator replaces the lost member: the log comes by replication.
    let env = &places[0].env;
    let groups = [groups[0].clone(), joined, groups[2].clone()];
    let leader = within(env, 20, "a leader", leader_of(&[&groups[0], &groups[2]])).await;
    let added = within(env, 20, "added", leader.add_learner(&joins.options.peer_address)).await.unwrap();
    assert_eq!(added.id, groups[1].node());
    let change = VotersChange { add: Some(added.id), remove: Some(was) };
    let replaced = async {
        while let Err(MembersError::NotCaughtUp { .. }) = leader.change_voters(change).await {
            env.clock.sleep(Duration::from_millis(10)).await;
        }
    };
    within(env, 20, "replaced", replaced).await;
    is_one_group(&places, &groups).await;

    // From now on it needs no `join`: it has a log.
    groups[1].kill().await;
    let again = within(env, 20, "opening", reopened(&places[1])).await.unwrap();
    let groups = [groups[0].clone(), again, groups[2].clone()];
    is_one_group(&places, &groups).await;
    join_all(groups.iter().map(Group::kill)).await;
}

/// Everything but IDENTITY is gone: a member that has voted must not come back under its id with no vote. One that never
/// got as far as a log goes on with its founding.
#[tokio::test]
async fn a_member_without_its_log_and_vote_does_not_come_back_blank() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let places = three_places(2);
    let groups = within(&places[0].env, 20, "founding", join_all(places.iter().map(Place::open))).await;
    is_one_group(&places, &groups).await;
    groups[1].kill().await;
    let disk = places[1].disk.as_ref().unwrap().mount();
    for entry in disk.list(Path::new("/data")).await.unwrap() {
        let path = Path::new("/data").join(&entry.name);
        if entry.is_directory {
            disk.remove_dir_all(&path).await.unwrap();
        }
    }
    let refused = within(&places[1].env, 20, "a refusal", reopened(&places[1])).await.err();
    assert!(matches!(&refused, Some(OpenError::Log(log::OpenError::HardStateLost { .. }))), "{refused:?}");
    join_all(groups.iter().map(Group::kill)).await;
}

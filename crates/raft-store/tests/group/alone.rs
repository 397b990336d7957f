//! One member: founds itself, serves, stops, is killed, and comes back with everything.

use env::Env;
use env::Rng;
use env::disk::simulated::SimDisk;
use raft_store::entry::Operation;
use raft_store::fold::Outcome;
use raft_store::group::{Group, OpenError, Role};
use raft_store::proposer::ProposeError;

use crate::world::{Counter, Ledger, Place, free_address, record, until_ready, within};

#[tokio::test]
async fn a_member_alone_serves_and_comes_back_after_a_stop_and_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let place = Place::new(Env::real(), dir.path().join("group"), address, &[address]);
    let mut ledger = Ledger::default();

    let group = place.open().await;
    within(&place.env, 5, "leading", until_ready(&group)).await;
    for number in 0..20 {
        ledger.send(&group, &format!("first-{number}")).await.unwrap();
    }
    group.linearizable().await.unwrap();
    let status = group.status();
    assert!(status.applied >= status.committed && status.committed.is_some());
    assert_eq!(status.synced, status.last.map(|last| last.index));
    let node = group.node();
    group.stop().await.unwrap();
    assert!(matches!(&*group.role().borrow(), Role::Stopped { reason: None }));
    assert_eq!(group.propose(vec![record("late")]).await, Err(ProposeError::Stopped));

    let group = place.open().await;
    assert_eq!(group.node(), node);
    assert!(group.status().was_clean);
    within(&place.env, 5, "leading again", until_ready(&group)).await;
    ledger.check(&group).await;
    ledger.send(&group, "second").await.unwrap();
    group.kill().await;

    let group = place.open().await;
    assert!(!group.status().was_clean);
    within(&place.env, 5, "leading after the kill", until_ready(&group)).await;
    ledger.check(&group).await;
    group.stop().await.unwrap();
}

#[tokio::test]
async fn a_submission_stays_together_and_each_operation_has_its_outcome() {
    let address = free_address();
    let env = Env { net: env::Net::real(), ..Env::simulated(7, SimDisk::new(Rng::seeded(7))) };
    let place = Place::new(env, "/data".into(), address, &[address]);
    let group = place.open().await;
    within(&place.env, 5, "leading", until_ready(&group)).await;
    let command = || Operation::Tables(bytes::Bytes::from_static(b"four"));
    let batch = || vec![record("a"), command(), record("b"), command()];
    let all = futures::future::join_all((0..50).map(|_| group.propose(batch()))).await;
    let mut offsets = Vec::new();
    for outcomes in all {
        let outcomes = outcomes.unwrap();
        let [
            Outcome::Placed { queue_offset: first, .. },
            Outcome::Tables(before),
            Outcome::Placed { queue_offset: second, .. },
            Outcome::Tables(after),
        ] = outcomes.as_slice()
        else {
            panic!("{outcomes:?}");
        };
        assert_eq!(second.0, first.0 + 1);
        assert_eq!(*after, before + 4);
        offsets.extend([first.0, second.0]);
    }
    assert_eq!(offsets, (0..100).collect::<Vec<u64>>(), "in the order proposed, dense");
    assert!(group.log().stats().frames < 40, "what waits goes together");

    let too_large = "x".repeat(3 << 20);
    let refused = group.propose(vec![record(&too_large)]).await;
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })), "{refused:?}");
    group.stop().await.unwrap();
}

#[tokio::test]
async fn a_directory_in_use_or_of_another_group_is_refused_and_one_that_is_free_again_opens() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let place = Place::new(Env::real(), dir.path().join("group"), address, &[address]);
    let group = place.open().await;
    let mut second = place.clone();
    second.options.peer_listen = free_address();
    let refused = Group::open(second.env, second.options, Counter::default()).await.err();
    assert!(matches!(refused, Some(OpenError::Identity(_))), "{refused:?}");
    group.kill().await;
    let mut other = place.clone();
    other.options.group = "other".into();
    let refused = Group::open(other.env, other.options, Counter::default()).await.err();
    assert!(matches!(refused, Some(OpenError::Identity(_))), "{refused:?}");
    place.open().await.stop().await.unwrap();
}

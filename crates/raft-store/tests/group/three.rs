//! Three members in one process over loopback TCP.

use std::path::Path;
use std::time::Duration;

use env::Env;
use futures::future::join_all;
use raft_store::group::{Group, Role};
use raft_store::position::LogId;
use raft_store::proposer::ProposeError;

use crate::world::{Counter, Ledger, Place, free_address, record, within};

pub struct Three {
    pub places: Vec<Place>,
    pub groups: Vec<Option<Group<Counter>>>,
}

impl Three {
    pub fn places(dir: &Path) -> Vec<Place> {
        let addresses = [free_address(), free_address(), free_address()];
        (0..3).map(|at| Place::new(Env::real(), dir.join(format!("node{at}")), addresses[at], &addresses)).collect()
    }

    pub fn simulated_places(seed: u64) -> Vec<Place> {
        let addresses = [free_address(), free_address(), free_address()];
        (0..3).map(|at| Place::simulated(seed + at as u64, addresses[at], &addresses)).collect()
    }

    pub async fn open(places: Vec<Place>) -> Three {
        crate::world::log_if_asked();
        let env = places[0].env.clone();
        let groups = within(&env, 20, "founding", join_all(places.iter().map(Place::open))).await;
        Three { places, groups: groups.into_iter().map(Some).collect() }
    }

    pub fn running(&self) -> impl Iterator<Item = (usize, &Group<Counter>)> {
        self.groups.iter().enumerate().filter_map(|(at, group)| Some((at, group.as_ref()?)))
    }

    /// The one that leads and serves.
    pub async fn leader(&self) -> usize {
        let ready = self.running().map(|(at, group)| {
            Box::pin(async move {
                let mut role = group.role();
                match role.wait_for(|role| matches!(role, Role::Leader { ready: true, .. })).await {
                    Ok(_) => at,
                    // It has stopped: another one will lead.
                    Err(_) => std::future::pending().await,
                }
            })
        });
        let (at, _, _) = within(&self.places[0].env, 20, "a leader", futures::future::select_all(ready)).await;
        at
    }

    pub fn group(&self, at: usize) -> &Group<Counter> {
        self.groups[at].as_ref().expect("it runs")
    }

    pub async fn kill(&mut self, at: usize) {
        self.groups[at].take().expect("it runs").kill().await;
    }

    pub async fn start(&mut self, at: usize) {
        let opened = within(&self.places[at].env, 20, "opening", self.places[at].open()).await;
        self.groups[at] = Some(opened);
    }

    /// [`Ledger::check`] of every running member.
    pub async fn check(&self, ledger: &Ledger) {
        for (_, group) in self.running() {
            ledger.check(group).await;
        }
    }

    /// Waits until all hold and have applied what the leader holds; then logs and states are equal.
    pub async fn converge(&self) {
        let env = &self.places[0].env;
        within(env, 30, "equal replicas", async {
            loop {
                let leader = self.leader().await;
                let last = self.group(leader).status().last;
                let all = join_all(self.running().map(async |(_, group)| {
                    let index = last.expect("a leader has a log").index;
                    let reader = group.reader();
                    let applied = reader.wait_applied(index);
                    env.clock.timeout(Duration::from_secs(2), applied).await.is_some_and(|waited| waited.is_ok())
                }))
                .await;
                let lasts: Vec<Option<LogId>> = self.running().map(|(_, group)| group.status().last).collect();
                if all.iter().all(|applied| *applied) && lasts.iter().all(|other| *other == last) {
                    return;
                }
            }
        })
        .await;
        let tips: Vec<_> = self.running().map(|(_, group)| group.log().tip()).collect();
        assert!(tips.windows(2).all(|pair| pair[0] == pair[1]), "equal index, equal chain: {tips:?}");
    }

    pub async fn stop(self) {
        for group in self.groups.iter().flatten() {
            group.stop().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_loses_nothing_and_nobody_else_notices_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let mut three = Three::open(Three::places(dir.path())).await;
    let mut ledger = Ledger::default();
    let first = three.leader().await;
    for number in 0..50 {
        ledger.send(three.group(first), &format!("before-{number}")).await.unwrap();
    }
    let follower = (first + 1) % 3;
    let refused = three.group(follower).propose(vec![record("misdirected")]).await;
    let Err(ProposeError::NotLeader { leader: Some(leader) }) = refused else { panic!("{refused:?}") };
    assert_eq!(leader.id, three.group(first).node());

    three.kill(first).await;
    let second = three.leader().await;
    assert_ne!(second, first);
    for number in 0..50 {
        ledger.send(three.group(second), &format!("after-{number}")).await.unwrap();
    }
    three.start(first).await;
    three.converge().await;
    three.check(&ledger).await;

    // Everybody at once.
    for at in 0..3 {
        three.kill(at).await;
    }
    let mut three = Three::open(three.places).await;
    let third = three.leader().await;
    ledger.send(three.group(third), "at last").await.unwrap();
    three.converge().await;
    three.check(&ledger).await;
    let status = three.group(third).status();
    assert_eq!((status.replication.len(), status.voters.len(), status.members.len()), (2, 3, 3));
    assert_eq!(status.inconsistent_requests, 0);
    three.groups.rotate_left(third);
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_and_producers_get_no_unknown_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let three = Three::open(Three::places(dir.path())).await;
    let first = three.leader().await;
    let (group, env) = (three.group(first).clone(), three.places[0].env.clone());
    let sending = tokio::spawn(async move {
        let mut ledger = Ledger::default();
        for number in 0.. {
            match ledger.send(&group, &format!("message-{number}")).await {
                Ok(_) => {}
                Err(ProposeError::NotLeader { .. }) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
        ledger
    });
    env.clock.sleep(Duration::from_millis(200)).await;
    three.group(first).hand_over().await.unwrap();
    let ledger = within(&env, 10, "the sender is told", sending).await.unwrap();
    assert!(!ledger.acknowledged.is_empty() && ledger.unknown.is_empty());
    assert!(!matches!(&*three.group(first).role().borrow(), Role::Leader { .. }));
    let second = three.leader().await;
    assert_ne!(second, first);
    three.group(second).linearizable().await.unwrap();
    assert!(three.group(first).linearizable().await.is_err());
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

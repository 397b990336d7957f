//! Links that break, disks that stall, peers that lie.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use env::disk::simulated::Latency;
use env::{Env, Rng};
use futures::future::join_all;
use openraft::entry::RaftPayload;
use raft_store::entry::{Operation, RecordOperation};
use raft_store::group::{Group, HandOverError, Role};
use raft_store::log::segment::Layout;
use raft_store::log::{Cursor, Kind, frame};
use raft_store::position::{LogId, PhysicalOffset, QueueOffset};
use raft_store::proposer::ProposeError;
use raft_store::raft::peer::connection;
use raft_store::raft::peer::server::CONNECTIONS_MAX;
use raft_store::raft::peer::wire::{Append, Channel, FRAME_VERSION, Hello, Message};
use raft_store::raft::types::{Body, Entry, LeaderId, Payload, Placed, Vote, leader_of, to_raft};

use tokio::io::AsyncReadExt;

use crate::link::Links;
use crate::three::Three;
use crate::world::{Counter, Ledger, Place, QUEUE, free_address, record, record_operation, within};

/// Three members behind links.
pub async fn linked(seed: u64) -> (Three, Links) {
    let links = Links::default();
    let (outer, inner): (Vec<_>, Vec<_>) = (0..3).map(|_| (free_address(), free_address())).unzip();
    let mut places = Vec::new();
    for at in 0..3 {
        let mut place = Place::simulated(seed + at as u64, outer[at], &outer);
        place.options.peer_listen = inner[at];
        links.add(&place.env, outer[at], inner[at]).await;
        places.push(place);
    }
    let three = Three::open(places).await;
    for (at, group) in three.running() {
        links.name(inner[at], group.node());
    }
    (three, links)
}

/// A leader that is cut off appends what will never commit. Its waiters must not hear "placed", nor hang; when it is
/// back, its tail gives way, and only what was truly superseded is said to be certainly not appended.
#[tokio::test]
async fn the_tail_of_a_deposed_leader_is_cut_and_its_waiters_hear_the_truth() {
    crate::world::log_if_asked();
    let (mut three, links) = linked(31).await;
    // Long enough for the whole story: what the waiters hear is decided by apply, not by the clock.
    for place in &mut three.places {
        place.options.propose_limit_ms = 30_000;
    }
    join_all(three.running().map(async |(_, group)| group.kill().await)).await;
    let mut three = Three::open(three.places).await;
    let mut ledger = Ledger::default();
    let first = three.leader().await;
    for number in 0..10 {
        ledger.send(three.group(first), &format!("before-{number}")).await.unwrap();
    }
    links.cut(three.group(first).node());
    let deposed = three.group(first).clone();
    let last = deposed.status().last.unwrap();
    let doomed: Vec<_> = (0..5)
        .map(|number| {
            let group = deposed.clone();
            tokio::spawn(async move { group.propose(vec![record(&format!("doomed-{number}"))]).await })
        })
        .collect();
    let env = three.places[0].env.clone();
    within(&env, 5, "the doomed are in its log", async {
        while deposed.log().last() == Some(last) {
            env.clock.sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let tail = deposed.log().last().unwrap();

    // The others go on, beyond where its log ends.
    let cut_off = three.groups[first].take();
    let second = three.leader().await;
    for number in 0..10 {
        ledger.send(three.group(second), &format!("after-{number}")).await.unwrap();
    }
    links.heal();
    three.groups[first] = cut_off;
    for answer in join_all(doomed).await {
        assert_eq!(
            answer.unwrap(),
            Err(ProposeError::NotLeader { leader: None }),
            "superseded: certainly not appended"
        );
    }
    three.converge().await;
    assert_ne!(deposed.log().id_at(tail.index), Some(tail), "its tail was cut");
    three.check(&ledger).await;
    three.stop().await;
}

/// If the cut-off leader is killed instead, its waiters hear that nothing is known.
#[tokio::test]
async fn a_leader_killed_with_proposals_in_flight_says_unknown() {
    let (mut three, links) = linked(41).await;
    let mut ledger = Ledger::default();
    let first = three.leader().await;
    ledger.send(three.group(first), "before").await.unwrap();
    links.cut(three.group(first).node());
    let group = three.group(first).clone();
    let last = group.log().last();
    let (env, sender) = (three.places[0].env.clone(), group.clone());
    let sent = tokio::spawn(async move { sender.propose(vec![record("in flight")]).await });
    within(&env, 5, "it is in the log", async {
        while group.log().last() == last {
            env.clock.sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    three.kill(first).await;
    assert_eq!(sent.await.unwrap(), Err(ProposeError::Unknown));
    ledger.unknown.push("in flight".to_owned());
    links.heal();
    three.start(first).await;
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// Both followers' disks stall for longer than an election: requests wait, the office does not change.
#[tokio::test]
async fn stalled_disks_of_a_majority_cost_time_and_not_the_office() {
    crate::world::log_if_asked();
    let three = Three::open(Three::simulated_places(51)).await;
    let mut ledger = Ledger::default();
    let leader = three.leader().await;
    ledger.send(three.group(leader), "before").await.unwrap();
    let before = three.group(leader).status();
    let mut role = three.group(leader).role();
    role.mark_unchanged();
    for follower in [(leader + 1) % 3, (leader + 2) % 3] {
        let stalled = Latency { sync: Duration::from_millis(2000), ..Latency::default() };
        three.places[follower].disk.as_ref().unwrap().set_latency(stalled);
    }
    let answers = join_all((0..3).map(|number| {
        let group = three.group(leader).clone();
        async move { (group.propose(vec![record(&format!("slow-{number}"))]).await, number) }
    }))
    .await;
    for (answer, number) in answers {
        ledger.note(answer, &format!("slow-{number}")).expect("it takes long, and is placed");
    }
    let after = three.group(leader).status();
    assert_eq!(after.role, Role::Leader { term: before.term, ready: true });
    assert!(!role.has_changed().unwrap(), "not even for a moment");
    assert_eq!((after.term, after.elections, after.broken_streams), (before.term, before.elections, 0));
    assert!(after.heartbeat_timeouts > before.heartbeat_timeouts, "late answers are counted");
    for place in &three.places {
        place.disk.as_ref().unwrap().set_latency(Latency::default());
    }
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// Which of the others leads, as soon as one does, whatever `leader` believes of itself.
async fn another_leads(three: &Three, leader: usize) -> usize {
    let others = [(leader + 1) % 3, (leader + 2) % 3].map(|at| {
        let group = three.group(at);
        Box::pin(async move {
            crate::world::until_ready(group).await;
            at
        })
    });
    within(&three.places[0].env, 10, "another leader", futures::future::select_all(others)).await.0
}

/// The leader's own disk stalls, those of the others do not: somebody else leads soon, and when the disk works again its
/// replica follows.
#[tokio::test]
async fn a_leader_whose_disk_stalls_does_not_stay_leader() {
    let three = Three::open(Three::simulated_places(53)).await;
    let env = three.places[0].env.clone();
    let mut ledger = Ledger::default();
    let leader = three.leader().await;
    ledger.send(three.group(leader), "before").await.unwrap();
    let disk = three.places[leader].disk.as_ref().unwrap();
    disk.set_latency(Latency { sync: Duration::from_secs(20), ..Latency::default() });
    // What the others take is placed without it, until it is noticed.
    let answer = ledger.send(three.group(leader), "stalled").await;
    assert!(answer.is_ok(), "{answer:?}");
    let next = another_leads(&three, leader).await;
    ledger.send(three.group(next), "after").await.unwrap();
    disk.set_latency(Latency::default());
    let follows = async {
        while matches!(&*three.group(leader).role().borrow(), Role::Leader { .. }) {
            env.clock.sleep(Duration::from_millis(20)).await;
        }
    };
    within(&env, 60, "the old leader follows", follows).await;
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// The leader's disk goes on, but each sync takes a hundred times as long as the others': under load it is late with
/// everything, though it never stands still and never has much to write.
#[tokio::test]
async fn a_leader_whose_disk_is_much_slower_does_not_stay_leader() {
    let three = Three::open(Three::simulated_places(59)).await;
    let env = three.places[0].env.clone();
    let mut ledger = Ledger::default();
    for place in &three.places {
        let sync = Duration::from_millis(5);
        place.disk.as_ref().unwrap().set_latency(Latency { sync, ..Latency::default() });
    }
    let leader = three.leader().await;
    let slow = Latency { sync: Duration::from_millis(500), ..Latency::default() };
    three.places[leader].disk.as_ref().unwrap().set_latency(slow);
    let began = env.clock.monotonic();
    let mut number = 0;
    while matches!(&*three.group(leader).role().borrow(), Role::Leader { .. }) {
        assert!(env.clock.monotonic() - began < Duration::from_secs(15), "it still leads");
        let sent = three.group(leader).propose(vec![record(&format!("late-{number}"))]).await;
        let _ = ledger.note(sent, &format!("late-{number}"));
        number += 1;
        env.clock.sleep(Duration::from_millis(10)).await;
    }
    let next = three.leader().await;
    assert_ne!(next, leader);
    ledger.send(three.group(next), "after").await.unwrap();
    three.places[leader].disk.as_ref().unwrap().set_latency(Latency::default());
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// A leader has not written what the others have committed, loses power, and is back before anybody has missed it. Were
/// it to go on in its term, it would put other bytes under ids that are committed.
#[tokio::test]
pub async fn a_leader_that_lost_its_tail_does_not_go_on_in_its_term() {
    let mut places = Three::simulated_places(57);
    // Nobody misses it before it is back.
    places.iter_mut().for_each(|place| place.options.election_ms = (3_000, 4_000));
    let mut three = Three::open(places).await;
    let mut ledger = Ledger::default();
    let leader = three.leader().await;
    three.converge().await;
    let disk = three.places[leader].disk.clone().unwrap();
    disk.set_latency(Latency { sync: Duration::from_millis(500), ..Latency::default() });
    for number in 0..5 {
        ledger.send(three.group(leader), &format!("unwritten-{number}")).await.unwrap();
    }
    disk.crash_keeping(|_| false);
    disk.set_latency(Latency::default());
    three.kill(leader).await;
    three.start(leader).await;
    for number in 0..5 {
        let leader = three.leader().await;
        let _ = ledger.send(three.group(leader), &format!("after-{number}")).await;
    }
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// A member that is there for nobody while its connections stay: that of the heartbeats is given up as well, although
/// a heartbeat goes out more often than it is looked at.
#[tokio::test]
async fn a_peer_that_owes_answers_and_says_nothing_is_given_up() {
    crate::world::log_if_asked();
    let (three, links) = linked(101).await;
    let leader = three.leader().await;
    three.converge().await;
    let (from, silent) = (three.group(leader).node(), three.group((leader + 1) % 3).node());
    let before = links.unary_hellos(from, silent);
    links.freeze(silent);
    let env = &three.places[0].env;
    within(env, 8, "another connection is tried", async {
        while links.unary_hellos(from, silent) == before {
            env.clock.sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    links.heal();
    three.converge().await;
    three.stop().await;
}

/// A member that waits for its disk says so on the connection of the heartbeats as well, and is not given up.
#[tokio::test]
async fn a_peer_that_waits_for_its_disk_is_not_given_up() {
    let (three, links) = linked(105).await;
    let leader = three.leader().await;
    three.converge().await;
    let slow = (leader + 1) % 3;
    let (from, to) = (three.group(leader).node(), three.group(slow).node());
    let (before, broken) = (links.unary_hellos(from, to), three.group(leader).status().broken_streams);
    let disk = three.places[slow].disk.as_ref().unwrap();
    disk.set_latency(Latency { sync: Duration::from_millis(5000), ..Latency::default() });
    three.group(leader).propose(vec![record("the others are enough")]).await.unwrap();
    three.places[0].env.clock.sleep(Duration::from_millis(4500)).await;
    assert_eq!(links.unary_hellos(from, to), before);
    assert_eq!(three.group(leader).status().broken_streams, broken);
    disk.set_latency(Latency::default());
    three.converge().await;
    three.stop().await;
}

/// Connections that take longer than a heartbeat may: they are made all the same, and the office stays.
#[tokio::test]
async fn a_connection_may_take_longer_than_a_heartbeat() {
    let (three, links) = linked(111).await;
    let mut places = three.places.clone();
    join_all(three.running().map(async |(_, group)| group.kill().await)).await;
    places.iter_mut().for_each(|place| place.options.election_ms = (1000, 1200));
    let three = Three::open(places).await;
    let leader = three.leader().await;
    three.converge().await;
    let before = three.group(leader).status();
    links.delay(Duration::from_millis(200));
    // Every connection breaks.
    three.running().for_each(|(_, group)| links.cut(group.node()));
    let env = &three.places[0].env;
    env.clock.sleep(Duration::from_millis(20)).await;
    links.heal();
    env.clock.sleep(Duration::from_millis(4000)).await;
    let after = three.group(leader).status();
    assert_eq!((after.role, after.term, after.elections), (before.role, before.term, before.elections));
    links.delay(Duration::ZERO);
    three.converge().await;
    three.stop().await;
}

/// A reader finds rot, in the log or in what is derived from it: it shows nothing of it, and the replica stops and says
/// why. The others serve.
#[tokio::test]
async fn a_replica_that_reads_rot_stops_and_the_others_serve() {
    crate::world::log_if_asked();
    for victim in ["commitlog", "consumequeue"] {
        let mut places = Three::simulated_places(141);
        places.iter_mut().for_each(|place| {
            (place.options.derived.sync_interval_ms, place.options.derived.recent_units_bytes) = (50, 0);
        });
        let three = Three::open(places).await;
        let mut ledger = Ledger::default();
        let leader = three.leader().await;
        for number in 0..20 {
            ledger.send(three.group(leader), &format!("before-{number}")).await.unwrap();
        }
        three.converge().await;
        let rotten = (leader + 1) % 3;
        let group = three.group(rotten);
        let (reader, env) = (group.reader(), &three.places[0].env);
        let mut durable = reader.watch_durable();
        let synced = durable.wait_for(|durable| *durable >= group.status().last);
        within(env, 5, "a derived sync", synced).await.unwrap();
        group.log().release_idle_memory();
        let disk = three.places[rotten].disk.as_ref().unwrap();
        let queue = reader.queue(QUEUE).unwrap();
        let (offset, (at, _)) = ledger.acknowledged.iter().nth(10).unwrap();
        let file = match victim {
            "commitlog" => ("/data/commitlog/00000000000000000000", (8 << 10) + at.0 + 2),
            _ => ("/data/consumequeue/1.0/00000000000000000000", offset.0 * 32 + 9),
        };
        disk.flip_bit(file.0, file.1, 2);
        match victim {
            "commitlog" => drop(reader.record(*at, 9).await.unwrap_err()),
            _ => drop(queue.read_units(QueueOffset(0), 20).await.unwrap_err()),
        }
        let mut role = group.role();
        let stopped = role.wait_for(|role| matches!(role, Role::Stopped { .. }));
        let stopped = within(env, 5, "it stops", stopped).await.unwrap().clone();
        let Role::Stopped { reason: Some(reason) } = stopped else { panic!("{stopped:?}") };
        assert!(reason.contains(if victim == "commitlog" { "corrupt" } else { "damaged" }), "{reason}");
        assert_eq!(group.propose(vec![record("late")]).await, Err(ProposeError::Stopped));
        group.stop().await.unwrap_err();
        let leader = three.leader().await;
        ledger.send(three.group(leader), "after").await.unwrap();
        ledger.check(three.group(leader)).await;
        for (at, group) in three.running().filter(|(at, _)| *at != rotten) {
            within(env, 10, &format!("{at} stops"), group.stop()).await.unwrap();
        }
    }
}

/// The successor is gone when it is asked to lead. openraft takes nothing more from the leader then, which must not say
/// that it is ready: submissions wait, and are neither lost nor sent to a successor that never leads.
#[tokio::test]
async fn a_hand_over_to_a_lost_successor_is_said_and_submissions_wait() {
    crate::world::log_if_asked();
    let (three, links) = linked(121).await;
    let mut ledger = Ledger::default();
    let leader = three.leader().await;
    three.converge().await;
    let group = three.group(leader).clone();
    let env = three.places[0].env.clone();
    // They were heard of a moment ago.
    for follower in [(leader + 1) % 3, (leader + 2) % 3] {
        links.cut(three.group(follower).node());
    }
    let handed_over = within(&env, 2, "the hand-over is given up", group.hand_over()).await;
    assert_eq!(handed_over, Err(HandOverError::NotTaken));
    let term = group.status().term;
    assert_eq!(*group.role().borrow(), Role::Leader { term, ready: false });
    let waits = tokio::spawn({
        let group = group.clone();
        async move { group.propose(vec![record("waits")]).await }
    });
    env.clock.sleep(Duration::from_millis(700)).await;
    assert!(!waits.is_finished(), "{:?}", waits.await);
    links.heal();
    let answer = within(&env, 5, "an answer", waits).await.unwrap();
    match ledger.note(answer, "waits") {
        Ok(_) | Err(ProposeError::NotLeader { leader: Some(_) }) => {}
        Err(error) => panic!("{error:?}"),
    }
    let leader = three.leader().await;
    assert!(three.group(leader).status().term > term);
    ledger.send(three.group(leader), "after").await.unwrap();
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// Nobody answers a leader any more: when somebody else may have been elected it says so, and what it does not append it
/// refuses at once. What was in flight has no outcome before the others have decided.
#[tokio::test]
async fn a_leader_that_nobody_answers_refuses_what_it_cannot_place() {
    let (three, links) = linked(123).await;
    let mut ledger = Ledger::default();
    let leader = three.leader().await;
    three.converge().await;
    let group = three.group(leader).clone();
    let env = three.places[0].env.clone();
    links.cut(group.node());
    let in_flight = tokio::spawn({
        let group = group.clone();
        async move { group.propose(vec![record("in flight")]).await }
    });
    let mut role = group.role();
    let isolated = role.wait_for(|role| matches!(role, Role::Isolated { .. }));
    drop(within(&env, 3, "it notices", isolated).await.unwrap());
    let began = env.clock.monotonic();
    let refused = group.propose(vec![record("refused")]).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }));
    assert!(env.clock.monotonic() - began < Duration::from_millis(100), "at once");
    let next = another_leads(&three, leader).await;
    ledger.send(three.group(next), "after").await.unwrap();
    links.heal();
    let answer = within(&env, 5, "an answer", in_flight).await.unwrap();
    assert!(ledger.note(answer, "in flight").is_err(), "overruled, or its time is up");
    let follows = role.wait_for(|role| matches!(role, Role::Follower { leader: Some(_), .. }));
    drop(within(&env, 10, "it follows", follows).await.unwrap());
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// What a log writes by itself may fail while nobody asks it for anything. Its replica must not go on as if it could still
/// lead or follow until somebody does.
#[tokio::test]
async fn a_log_that_fails_while_nothing_is_asked_of_it_stops_its_replica() {
    let mut places = Three::simulated_places(151);
    for place in &mut places {
        // The mark that follows a group comes late enough for its sync to be the one that fails.
        place.options.log.idle_mark_ms = 400;
    }
    let three = Three::open(places).await;
    let mut ledger = Ledger::default();
    let leader = three.leader().await;
    three.converge().await;
    ledger.send(three.group(leader), "the last one").await.unwrap();
    let mut role = three.group(leader).role();
    three.places[leader].disk.as_ref().unwrap().fail_sync("/data/commitlog", 1);
    let stopped = role.wait_for(|role| matches!(role, Role::Stopped { .. }));
    let stopped = within(&three.places[0].env, 3, "it stops", stopped).await.unwrap().clone();
    let Role::Stopped { reason: Some(reason) } = stopped else { panic!("it says why: {stopped:?}") };
    assert!(reason.contains("Input/output error"), "{reason}");
    let next = another_leads(&three, leader).await;
    ledger.send(three.group(next), "after").await.unwrap();
    join_all(three.running().map(async |(_, group)| group.kill().await)).await;
}

/// All members are told to stop at the same moment: none of them waits long for another to lead.
#[tokio::test]
async fn members_that_stop_together_do_not_wait_for_each_other() {
    let three = Three::open(Three::simulated_places(131)).await;
    three.leader().await;
    three.converge().await;
    let env = &three.places[0].env;
    let stopped = join_all(three.running().map(async |(_, group)| group.stop().await));
    let stopped = within(env, 2, "all have stopped", stopped).await;
    stopped.into_iter().for_each(|stopped| stopped.unwrap());
}

/// What `leader` would say to `victim` on an append connection.
pub fn hello(three: &Three, leader: usize, victim: &Group<Counter>) -> Hello {
    Hello {
        protocol: (1, 1),
        cluster: "cluster".into(),
        group: "group".into(),
        node: three.group(leader).node(),
        expects: victim.node(),
        segment_bytes: three.places[leader].options.segment_bytes,
        frame_version: FRAME_VERSION,
        features: 0,
        cluster_version: 1,
        wall_ms: 0,
        channel: Channel::Append,
        forward_key: None,
    }
}

/// A peer whose frames do not fit is refused, and Raft does not hear of it, whatever vote it claims.
#[tokio::test]
async fn frames_that_do_not_fit_are_refused_before_raft_sees_them() {
    let three = Three::open(Three::simulated_places(61)).await;
    let leader = three.leader().await;
    three.converge().await;
    let victim = three.group((leader + 1) % 3);
    let (before, options) = (victim.status(), &three.places[(leader + 1) % 3].options);
    let hello = hello(&three, leader, victim);
    let env = &three.places[0].env;
    let limit = Duration::from_secs(2);
    let connect = || connection::connect(env, &options.peer_address, &hello, limit);
    let bytes = Bytes::from_static(b"not what the chain says");
    let entry = |crc: u32, chain: u64| {
        let body = Body { bytes: bytes.clone(), crc, ticket: None };
        Entry {
            leader: leader_of(99),
            index: 1000,
            payload: Payload::normal(body),
            placed: Some(Placed { physical_offset: PhysicalOffset(1 << 16), chain }),
        }
    };
    let vote = Vote { leader_id: LeaderId { term: 99, voted_for: three.group(leader).node() }, committed: true };
    let start = Cursor { physical_offset: PhysicalOffset(1 << 16), chain: 5 };
    let right = crc32c::crc32c(&bytes);
    for wrong in [entry(right, 7), entry(right ^ 1, 7)] {
        let previous = Some(to_raft(LogId { term: 98, index: 999 }));
        let append = Append { vote, previous, committed: None, start, entries: vec![wrong] };
        let (mut reader, mut writer, _) = connect().await.unwrap();
        writer.write(&Message::Append(append)).await.unwrap();
        let mut answers = Vec::new();
        while let Ok(Some(answer)) = reader.next().await {
            answers.push(answer);
        }
        assert!(matches!(answers.last(), Some(Message::Inconsistent(_))), "{answers:?}");
    }
    let after = victim.status();
    assert_eq!((after.term, after.last, after.inconsistent_requests), (before.term, before.last, 2));

    let wrong_cluster = Hello { cluster: "another".into(), ..hello.clone() };
    let refused = connection::connect(env, &options.peer_address, &wrong_cluster, limit).await.map(|_| ());
    assert!(refused.unwrap_err().to_string().contains("another"));
    three.stop().await;
}

/// Somebody who is no peer opens connections and says nothing: there is a limit, and it passes.
#[tokio::test]
async fn connections_to_a_member_are_bounded() {
    let three = Three::open(Three::simulated_places(171)).await;
    let leader = three.leader().await;
    three.converge().await;
    let env = &three.places[0].env;
    let address = &three.places[(leader + 1) % 3].options.peer_address;
    let mut strangers = Vec::new();
    for _ in 0..CONNECTIONS_MAX + 8 {
        strangers.push(env.net.connect(address).await.unwrap());
    }
    let mut last = strangers.pop().unwrap();
    let closed = env.clock.timeout(Duration::from_millis(1000), last.read_u8()).await;
    assert!(matches!(closed, Some(Err(_))), "beyond the limit it is closed at once: {closed:?}");
    let open = env.clock.timeout(Duration::from_millis(100), strangers[0].read_u8()).await;
    assert!(open.is_none(), "the first one may still say hello");
    // Whoever says nothing is closed as well, and there is room again.
    within(env, 5, "the first one is closed", strangers[0].read_u8()).await.unwrap_err();
    three.group(leader).propose(vec![record("it serves")]).await.unwrap();
    three.converge().await;
    three.stop().await;
}

/// Everybody refuses what a leader sends, again and again: it is the leader that is broken, or its link. It stops, says
/// why, and the others go on without it.
#[tokio::test]
async fn a_leader_whose_frames_a_majority_refuses_stops() {
    crate::world::log_if_asked();
    let (mut three, links) = linked(161).await;
    let mut ledger = Ledger::default();
    let leader = three.leader().await;
    ledger.send(three.group(leader), "before").await.unwrap();
    let group = three.group(leader).clone();
    links.spoil(group.node());
    let sent = group.propose(vec![record(&"x".repeat(1000))]);
    let mut role = group.role();
    let stopped = role.wait_for(|role| matches!(role, Role::Stopped { .. }));
    let env = three.places[0].env.clone();
    let (stopped, sent) = within(&env, 8, "it stops", async { tokio::join!(stopped, sent) }).await;
    let stopped = stopped.unwrap().clone();
    let Role::Stopped { reason: Some(reason) } = stopped else { panic!("{stopped:?}") };
    assert!(reason.contains("majority"), "{reason}");
    assert_eq!(sent, Err(ProposeError::Unknown));
    three.kill(leader).await;
    let next = three.leader().await;
    ledger.send(three.group(next), "after").await.unwrap();
    ledger.check(three.group(next)).await;
    join_all(three.running().map(async |(_, group)| group.kill().await)).await;
}

/// A leader whose log is not this one's, although its frames are sound: this replica stops, and says why.
#[tokio::test]
async fn a_log_that_has_diverged_stops_the_replica() {
    let three = Three::open(Three::simulated_places(91)).await;
    let leader = three.leader().await;
    three.converge().await;
    let victim = three.group((leader + 1) % 3);
    let (tip, options) = (victim.log().tip(), &three.places[(leader + 1) % 3].options);
    let hello = hello(&three, leader, victim);
    let env = &three.places[0].env;
    let (mut reader, mut writer, _) =
        connection::connect(env, &options.peer_address, &hello, Duration::from_secs(2)).await.unwrap();

    // The same place, and another history.
    let start = Cursor { chain: tip.end.chain ^ 1, ..tip.end };
    let last = tip.last.unwrap();
    let id = LogId { term: 99, index: last.index + 1 };
    let layout = Layout { segment_bytes: options.segment_bytes };
    let header = frame::compose(start, layout, Kind::Blank, id, 0, 0).header;
    let placed = Some(Placed { physical_offset: header.physical_offset, chain: header.chain });
    let entry = Entry { leader: leader_of(id.term), index: id.index, payload: Payload::Blank, placed };
    let vote = Vote { leader_id: LeaderId { term: 99, voted_for: hello.node }, committed: true };
    let append = Append { vote, previous: Some(to_raft(last)), committed: None, start, entries: vec![entry] };
    writer.write(&Message::Append(append)).await.unwrap();
    let answer = reader.next().await;
    assert!(!matches!(answer, Ok(Some(Message::Appended(_)))), "{answer:?}");

    let mut role = victim.role();
    let stopped = role.wait_for(|role| matches!(role, Role::Stopped { .. }));
    let stopped = within(env, 5, "it stops", stopped).await.unwrap().clone();
    let Role::Stopped { reason: Some(reason) } = stopped else { panic!("{stopped:?}") };
    assert!(reason.contains("diverged"), "{reason}");
    assert_eq!(victim.log().tip(), tip, "its log is as it was");
    three.stop().await;
}

/// Bytes of a record, with a count of how many records like it are held anywhere.
struct Held {
    bytes: Vec<u8>,
    count: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waves of thirty sends of 1000 bytes each, all given up after 300 ms and gone a while later. Returns how many were refused, and how many
/// records were held at most after a wave.
async fn waves(env: &Env, group: &Group<Counter>, count: &Arc<AtomicUsize>) -> (Vec<usize>, usize) {
    let (mut refused, mut most) = (Vec::new(), 0);
    for _ in 0..4 {
        let sends = (0..30).map(|_| {
            count.fetch_add(1, Ordering::AcqRel);
            let record = Bytes::from_owner(Held { bytes: vec![b'x'; 1000], count: count.clone() });
            group.propose(vec![Operation::Record(RecordOperation { record, ..record_operation("") })])
        });
        let answers = join_all(sends).await;
        refused.push(answers.iter().filter(|answer| matches!(answer, Err(ProposeError::Busy { .. }))).count());
        most = most.max(count.load(Ordering::Acquire));
        let status = group.status();
        assert!(status.proposals_bytes >= 1000 * count.load(Ordering::Acquire), "what is held is counted");
        env.clock.sleep(Duration::from_millis(700)).await;
    }
    (refused, most)
}

/// Proposals are bounded by the bytes that are held, and it is said so: also those nobody waits for any more count, until
/// they are dropped.
#[tokio::test]
async fn beyond_its_bytes_the_proposer_is_busy() {
    let (three, links) = linked(71).await;
    let mut places = three.places.clone();
    join_all(three.running().map(async |(_, group)| group.kill().await)).await;
    places.iter_mut().for_each(|place| {
        place.options.proposals_bytes_max = 10_000;
        place.options.propose_limit_ms = 300;
        // Its lease outlasts the waves: what is proposed is in flight, and stays there.
        (place.options.heartbeat_ms, place.options.election_ms) = (100, (4000, 5000));
    });
    let three = Three::open(places).await;
    let leader = three.leader().await;
    let group = three.group(leader);
    links.cut(group.node());
    let count = Arc::new(AtomicUsize::new(0));
    let env = &three.places[0].env;
    let (refused, most) = waves(env, group, &count).await;
    assert!((20..30).contains(&refused[0]), "{refused:?} of 30 were refused");
    assert!(most <= 10, "{most} records of 1000 bytes are held where 10000 bytes are allowed");
    links.heal();
    within(env, 20, "all is given back when the outcome is known", async {
        while group.status().proposals_bytes > 0 {
            env.clock.sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(count.load(Ordering::Acquire), 0);
    join_all(three.running().map(async |(_, group)| group.kill().await)).await;
}

/// Nobody leads, and nobody ever will: what is given up is dropped, and the next may wait in its place.
#[tokio::test]
async fn where_nobody_leads_what_was_given_up_is_dropped() {
    let mut places = Three::simulated_places(75);
    places.iter_mut().for_each(|place| {
        place.options.proposals_bytes_max = 10_000;
        place.options.propose_limit_ms = 300;
    });
    let mut three = Three::open(places).await;
    let leader = three.leader().await;
    for other in [(leader + 1) % 3, (leader + 2) % 3] {
        three.kill(other).await;
    }
    let group = three.group(leader);
    group.kill().await;
    three.groups[leader] = None;
    three.start(leader).await;
    let group = three.group(leader);
    let env = &three.places[0].env;
    let count = Arc::new(AtomicUsize::new(0));
    let (refused, most) = waves(env, group, &count).await;
    assert!(most <= 10, "{most} records of 1000 bytes are held where 10000 bytes are allowed");
    assert!(refused.iter().all(|refused| (20..30).contains(refused)), "{refused:?} of 30 were refused");
    within(env, 5, "all is given back", async {
        while group.status().proposals_bytes > 0 {
            env.clock.sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(count.load(Ordering::Acquire), 0);
    group.kill().await;
}

/// Members killed one after the other, at random, while somebody sends: nothing acknowledged is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_seconds_of_kills_lose_nothing() {
    let seed = 81;
    println!("seed {seed}");
    let rng = Rng::seeded(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut three = Three::open(Three::places(dir.path())).await;
    let mut ledger = Ledger::default();
    let env = Env::real();
    for round in 0..8 {
        let leader = three.leader().await;
        let group = three.group(leader).clone();
        let sending = tokio::spawn(async move {
            let send = |number: u32| {
                let (group, text) = (group.clone(), format!("round-{round}-{number}"));
                async move { (group.propose(vec![record(&text)]).await, text) }
            };
            join_all((0..100).map(send)).await
        });
        env.clock.sleep(Duration::from_millis(rng.below(20))).await;
        let victim = if rng.chance(1, 2) { leader } else { rng.below(3) as usize };
        three.kill(victim).await;
        for (answer, text) in sending.await.unwrap() {
            let _ = ledger.note(answer, &text);
        }
        three.start(victim).await;
    }
    three.converge().await;
    three.check(&ledger).await;
    assert!(ledger.acknowledged.len() > 100, "{} were acknowledged", ledger.acknowledged.len());
    three.stop().await;
}

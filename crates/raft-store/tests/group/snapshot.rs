//! A follower that needs what its peers have purged: it gets the image at their boundary, and everything behind it by
//! ordinary replication.

use std::path::Path;
use std::time::Duration;

use env::Disk;
use env::disk::Open;
use raft_store::entry::{CoreCommand, Operation};
use raft_store::group::Role;
use raft_store::position::{LogId, Timestamp};
use raft_store::raft::peer::connection;
use raft_store::raft::peer::wire::{Channel, Hello, Message, SnapshotHead};
use raft_store::raft::types::{LeaderId, Vote, to_raft};

use crate::three::Three;
use crate::world::{QUEUE, record, within};

/// Three members of which one was away while the others wrote, cut an image and purged up to it; all are stopped. Gives the one that was away, and where the others' logs begin.
async fn one_behind(seed: u64) -> (Three, usize, LogId) {
    crate::world::log_if_asked();
    let mut three = Three::open(Three::simulated_places(seed)).await;
    let leader = three.leader().await;
    let behind = (leader + 1) % 3;
    three.converge().await;
    three.kill(behind).await;
    let command = || Operation::Tables(bytes::Bytes::from_static(b"seven.."));
    for number in 0..20 {
        three.group(leader).propose(vec![record(&format!("early-{number}")), command()]).await.unwrap();
    }
    three.group(leader).propose(vec![Operation::Core(CoreCommand::Checkpoint)]).await.unwrap();
    let boundary = three.group(leader).log().last().unwrap();
    let boundary_end = three.group(leader).log().tip().end.physical_offset;
    for number in 0..20 {
        three.group(leader).propose(vec![record(&format!("late-{number}")), command()]).await.unwrap();
    }
    // Retention: both purge to that image by themselves.
    let trim = CoreCommand::Trim { min_physical: boundary_end, cut: Timestamp(i64::MAX) };
    three.group(leader).propose(vec![Operation::Core(trim)]).await.unwrap();
    let env = three.places[0].env.clone();
    for at in [leader, (leader + 2) % 3] {
        let purged = async {
            while three.group(at).log().last_purged() != Some(boundary) {
                env.clock.sleep(Duration::from_millis(10)).await;
            }
        };
        within(&env, 20, "purged", purged).await;
    }
    for group in three.groups.iter_mut().filter_map(Option::take) {
        group.stop().await.unwrap();
    }
    (three, behind, boundary)
}

#[tokio::test]
async fn a_follower_behind_the_purged_log_gets_the_image_and_then_the_log() {
    let (three, behind, boundary) = one_behind(21).await;
    let env = three.places[0].env.clone();
    let three = Three::open(three.places).await;
    three.converge().await;
    let installed = three.group(behind);
    assert_eq!(installed.log().last_purged(), Some(boundary), "its log begins behind the image");
    let leader = three.leader().await;
    assert_ne!(leader, behind, "nobody votes for a log that is behind");
    assert_eq!(installed.reader().tables().total, three.group(leader).reader().tables().total);
    let queues = [installed, three.group(leader)].map(|group| group.reader().queue(QUEUE).unwrap());
    assert_eq!(queues[0].bounds().end, queues[1].bounds().end);
    let from = raft_store::position::QueueOffset(20);
    let units = [queues[0].read_units(from, 20).await.unwrap(), queues[1].read_units(from, 20).await.unwrap()];
    assert_eq!((units[0].len(), &units[0]), (20, &units[1]));
    let last = units[0].last().unwrap();
    let text = installed.reader().record(last.physical_offset, last.size).await.unwrap();
    assert_eq!(text, "late-19");

    // It is a member like any other, also after a restart.
    let mut three = three;
    three.kill(leader).await;
    let next = three.leader().await;
    within(&env, 5, "placed", three.group(next).propose(vec![record("later still")])).await.unwrap();
    three.start(leader).await;
    three.kill(behind).await;
    three.start(behind).await;
    three.converge().await;
    three.stop().await;
}

/// The images that a follower needs are damaged where they lie: nobody sends one, nobody stops for it, and as soon as one
/// is whole the follower gets it.
#[tokio::test]
async fn a_damaged_image_is_not_sent() {
    let (three, behind, boundary) = one_behind(25).await;
    let path = Path::new("/data/checkpoint").join(boundary.to_string());
    let flip = |three: &Three| {
        for at in (0..3).filter(|at| *at != behind) {
            three.places[at].disk.as_ref().unwrap().flip_bit(&path, 100, 3);
        }
    };
    flip(&three);
    let three = Three::open(three.places).await;
    let leader = three.leader().await;
    let env = &three.places[0].env;
    within(env, 20, "it was to be sent", async {
        while three.group(leader).status().damaged_images == 0 {
            env.clock.sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(three.running().all(|(_, group)| !matches!(&*group.role().borrow(), Role::Stopped { .. })));
    assert_eq!(three.group(behind).log().last_purged(), None);
    flip(&three);
    three.converge().await;
    assert_eq!(three.group(behind).log().last_purged(), Some(boundary));
    three.stop().await;
}

/// What a peer says of an image is not what the image says of itself: it is refused before anything is replaced by it.
#[tokio::test]
async fn an_image_that_is_not_the_one_announced_replaces_nothing() {
    let (three, links) = crate::faults::linked(151).await;
    let leader = three.leader().await;
    three.converge().await;
    let victim = (leader + 1) % 3;
    links.cut(three.group(victim).node());
    three.group(leader).propose(vec![record("the victim lacks this")]).await.unwrap();
    three.group(leader).propose(vec![Operation::Core(CoreCommand::Checkpoint)]).await.unwrap();
    let boundary = three.group(leader).log().last().unwrap();
    let env = &three.places[0].env;
    let disk = three.places[leader].disk.as_ref().unwrap().mount();
    let path = Path::new("/data/checkpoint").join(boundary.to_string());
    let image = within(env, 10, "an image", async {
        loop {
            match disk.open(&path, Open::Existing).await {
                Ok(file) => return file.read_at(0, 1 << 20).await.unwrap(),
                Err(_) => env.clock.sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;

    let group = three.group(victim);
    let hello = Hello { channel: Channel::Snapshot, ..crate::faults::hello(&three, leader, group) };
    let address = three.places[victim].options.peer_listen.to_string();
    let (mut reader, mut writer, _) = connection::connect(env, &address, &hello, Duration::from_secs(2)).await.unwrap();
    let head = SnapshotHead {
        vote: Vote { leader_id: LeaderId { term: 99, voted_for: hello.node }, committed: true },
        last: Some(to_raft(LogId { index: boundary.index + 1, ..boundary })),
        membership_at: None,
        membership: Default::default(),
        image_bytes: image.len() as u64,
    };
    writer.write(&Message::SnapshotHead(head)).await.unwrap();
    writer.write(&Message::SnapshotPart(image)).await.unwrap();
    let mut role = group.role();
    let stopped = role.wait_for(|role| matches!(role, Role::Stopped { .. }));
    let stopped = within(env, 5, "it stops", stopped).await.unwrap().clone();
    assert!(matches!(stopped, Role::Stopped { reason: Some(_) }), "{stopped:?}");
    assert!(!matches!(reader.next().await, Ok(Some(Message::SnapshotDone(_)))));
    let disk = three.places[victim].disk.as_ref().unwrap().mount();
    let names = disk.list("/data/checkpoint".as_ref()).await.unwrap();
    assert!(names.iter().all(|name| name.name != boundary.to_string()), "{names:?}");

    // It comes back as it was, and gets what it lacks.
    let mut three = three;
    three.kill(victim).await;
    links.heal();
    three.start(victim).await;
    three.converge().await;
    three.stop().await;
}

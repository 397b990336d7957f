//! A replica that takes an image from a peer.

use std::io;

use bytes::Bytes;
use env::Env;
use raft_store::fold::CHECKPOINTS_KEPT;
use raft_store::image::Image;
use raft_store::log::Boundary;

use crate::world::*;

async fn bytes_of(env: &Env, image: &Image) -> Bytes {
    let file = env.disk.open(&image.path, env::disk::Open::Existing).await.unwrap();
    file.read_at(0, image.len as usize).await.unwrap()
}

/// What a replica must be after it has installed an image at `boundary` and applied `frames` behind it: the same, but
/// units up to the image do not exist.
fn model_behind(frames: &[raft_store::log::Frame], boundary: Boundary) -> Model {
    let at_image = Model::of(&frames[..=boundary.id.index as usize]);
    let floors = at_image.queues.iter().map(|(id, units)| (*id, units.len() as u64)).collect();
    Model { floors, ..Model::of(frames) }
}

/// Power fails behind every single change of the disk while an image is installed, replacing an older state: a start
/// finds either, and goes on to the same end.
#[tokio::test(start_paused = true)]
async fn an_image_is_installed_as_a_whole_or_not_at_all() {
    let rng = seeded();
    let (leader_env, _) = simulated(&rng);
    let mut leader = Replica::start(&leader_env, derived_options()).await.unwrap();
    let entries = random_entries(&rng, 120, 0);
    let checkpoint = entry(1_000_000, vec![core(raft_store::entry::CoreCommand::Checkpoint)]);
    leader.append(&entries).await;
    leader.append(&[checkpoint]).await;
    leader.apply_all().await.unwrap();
    leader.fold.derived_sync().await.unwrap();
    let image = leader.fold.newest_image().await.unwrap().unwrap();
    let bytes = bytes_of(&leader_env, &image).await;
    let later: Vec<_> = (0..20).map(|n| entry(1_000_001 + n, vec![random(&rng)])).collect();
    leader.append(&later).await;
    leader.apply_all().await.unwrap();
    let frames = leader.frames().await;
    assert!(leader.fold.membership().0.is_none() || image.membership.is_some());

    let (env, disk) = simulated(&rng);
    let mut follower = Replica::start(&env, derived_options()).await.unwrap();
    follower.append(&entries[..30]).await;
    follower.apply_all().await.unwrap();
    follower.fold.derived_sync().await.unwrap();
    let long_poll = follower.fold.reader().queue(queue_id(0)).map(|queue| {
        let end = queue.bounds().end;
        let polled = queue.clone();
        (queue, end, tokio::spawn(async move { polled.grown_beyond(end).await }))
    });
    let begun = disk.fork();
    disk.record();
    let installed = follower.fold.install_image(bytes.clone()).await.unwrap();
    assert_eq!((installed.boundary, installed.hash), (image.boundary, image.hash));
    let installed_at = disk.recorded_len();
    follower.log.restart_at(installed.boundary).await.unwrap();
    assert_eq!(follower.fold.applied(), Some(image.boundary.id));
    assert_eq!(*follower.fold.reader().watch_durable().borrow(), Some(image.boundary.id));
    if let Some((queue, end, long_poll)) = long_poll
        && queue.bounds().end > end
    {
        long_poll.await.unwrap();
    }
    // It goes on as the leader did, and its next image is the leader's.
    follower.append(&later).await;
    follower.apply_all().await.unwrap();
    let model = model_behind(&frames, image.boundary);
    follower.check(&model).await;
    let last = [entry(2_000_000, vec![core(raft_store::entry::CoreCommand::Checkpoint)])];
    let mut hashes = Vec::new();
    for replica in [&mut leader, &mut follower] {
        replica.append(&last).await;
        replica.apply_all().await.unwrap();
        replica.fold.derived_sync().await.unwrap();
        hashes.push(replica.fold.newest_image().await.unwrap().unwrap().hash);
    }
    assert_eq!(hashes[0], hashes[1]);
    follower.check_index(&model).await;

    let (mut old, mut new) = (0, 0);
    for (done, operation) in disk.recorded().iter().enumerate() {
        let crashed = begun.fork();
        crashed.crash(&rng);
        let env = Env::simulated(1, crashed);
        let mut replica = Replica::start(&env, derived_options()).await.unwrap();
        assert!(replica.found >= Some(image.boundary.id) || done < installed_at, "the installed image is lost");
        if replica.found < Some(image.boundary.id) {
            old += 1;
            replica.apply_all().await.unwrap();
            replica.check(&Model::of(&frames[..30])).await;
        } else {
            new += 1;
            replica.apply_all().await.unwrap();
            let at = replica.log.last().unwrap().index as usize;
            if at < frames.len() {
                replica.check(&model_behind(&frames[..=at], image.boundary)).await;
            }
        }
        begun.repeat(operation);
    }
    assert!(old > 3 && new > 3, "{old} old, {new} new");
}

fn random(rng: &env::Rng) -> raft_store::entry::Operation {
    let bytes = vec![rng.below(256) as u8; 1 + rng.below(100) as usize];
    record(queue_id(rng.below(6) as u8), bytes, raft_store::entry::Visibility::Visible)
}

#[tokio::test(start_paused = true)]
async fn what_is_not_a_newer_image_is_refused_and_changes_nothing() {
    let rng = seeded();
    let (env, _) = simulated(&rng);
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    replica.append(&random_entries(&rng, 50, 20)).await;
    replica.apply_all().await.unwrap();
    replica.fold.derived_sync().await.unwrap();
    let image = replica.fold.newest_image().await.unwrap().unwrap();
    let bytes = bytes_of(&env, &image).await;
    let mut flipped = bytes.to_vec();
    flipped[bytes.len() / 2] ^= 1;
    for wrong in [bytes.clone(), flipped.into(), bytes.slice(..bytes.len() - 1), Bytes::new()] {
        let error = replica.fold.install_image(wrong).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    let model = Model::of(&replica.frames().await);
    replica.check(&model).await;
    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();
    Replica::start(&env, derived_options()).await.unwrap().check(&model).await;
}

/// The derived files of a replica that began with an image are damaged: they are rebuilt from that image.
#[tokio::test(start_paused = true)]
async fn a_replica_that_began_with_an_image_rebuilds_from_it() {
    let rng = seeded();
    let (leader_env, _) = simulated(&rng);
    let mut leader = Replica::start(&leader_env, derived_options()).await.unwrap();
    leader.append(&random_entries(&rng, 120, 0)).await;
    leader.append(&[entry(1_000_000, vec![core(raft_store::entry::CoreCommand::Checkpoint)])]).await;
    leader.apply_all().await.unwrap();
    leader.fold.derived_sync().await.unwrap();
    let image = leader.fold.newest_image().await.unwrap().unwrap();
    let mut later: Vec<_> = (0..50).map(|n| entry(1_000_001 + n, vec![random(&rng)])).collect();
    for n in 0..CHECKPOINTS_KEPT as i64 {
        later.push(entry(1_000_100 + n, vec![core(raft_store::entry::CoreCommand::Checkpoint), random(&rng)]));
    }
    leader.append(&later).await;
    let frames = leader.frames().await;
    // Later images push the first one out, but not while the log begins with it.
    let options = derived_options();

    for victims in [&["consumequeue"][..], &["index"], &["state"], &["state", "consumequeue"], &["index", "state"]] {
        let (env, disk) = simulated(&rng);
        let mut replica = Replica::start(&env, options.clone()).await.unwrap();
        replica.fold.install_image(bytes_of(&leader_env, &image).await).await.unwrap();
        replica.log.restart_at(image.boundary).await.unwrap();
        replica.append(&later).await;
        replica.apply_all().await.unwrap();
        let model = model_behind(&frames, image.boundary);
        replica.check(&model).await;
        replica.fold.close().await.unwrap();
        replica.log.close().await.unwrap();
        for victim in victims {
            env::Disk::remove_dir_all(&disk, &dir().join(victim)).await.unwrap();
        }
        let mut replica = Replica::start(&env, options.clone()).await.unwrap();
        assert_eq!(replica.fold.images().await.unwrap().len(), 1 + CHECKPOINTS_KEPT);
        println!("{victims:?}: found {:?}", replica.found);
        replica.apply_all().await.unwrap();
        replica.check(&model).await;
    }
}

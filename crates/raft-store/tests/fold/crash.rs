//! Power failures at any moment: what a start finds, plus replay, is the fold of the log.

use std::path::Path;
use std::time::Duration;

use env::{Disk, Env, Rng};
use raft_store::consume_queue::UnitsError;
use raft_store::entry::{CoreCommand, EntryView, OperationView, decode_entry};
use raft_store::fold::CHECKPOINTS_KEPT;
use raft_store::log::{Frame, Kind};
use raft_store::materializer::DerivedOptions;
use raft_store::position::QueueOffset;

use crate::world::*;

fn options(rng: &Rng) -> DerivedOptions {
    DerivedOptions {
        sync_changed_bytes: 1_000 + rng.below(20_000) as usize,
        sync_log_bytes: 5_000 + rng.below(100_000),
        ..derived_options()
    }
}

/// Starts and replays; N was not ahead of the log, and the state is that of the log.
async fn restarted(env: &Env, options: &DerivedOptions) -> Replica {
    let mut replica = Replica::start(env, options.clone()).await.unwrap();
    let (found, last) = (replica.found, replica.log.last());
    assert!(found <= last, "derived state at {found:?}, log at {last:?}");
    replica.apply_all().await.unwrap();
    let model = Model::of(&replica.frames().await);
    replica.check(&model).await;
    replica
}

/// The images of the newest checkpoints are there, whenever power failed.
async fn check_images(replica: &Replica) {
    replica.fold.derived_sync().await.unwrap();
    let frames = replica.frames().await;
    let checkpoints = frames.iter().filter(|frame| is_checkpoint(frame)).map(|frame| frame.id);
    let mut expected: Vec<_> = checkpoints.collect();
    expected.drain(..expected.len().saturating_sub(CHECKPOINTS_KEPT));
    let mut found: Vec<_> = replica.fold.images().await.unwrap().iter().map(|image| image.boundary.id).collect();
    // A crash may bring removed ones back, until the next image.
    found.drain(..found.len().saturating_sub(expected.len()));
    assert_eq!(found, expected);
}

fn is_checkpoint(frame: &Frame) -> bool {
    let checkpoint =
        |view: EntryView| view.operations().any(|one| one == OperationView::Core(&CoreCommand::Checkpoint));
    frame.kind == Kind::Entry && decode_entry(&frame.body).is_ok_and(checkpoint)
}

#[tokio::test(start_paused = true)]
async fn crash_after_crash() {
    let rng = seeded();
    for _ in 0..6 {
        let (mut env, disk) = simulated(&rng);
        let options = options(&rng);
        let mut replica = restarted(&env, &options).await;
        for _ in 0..8 {
            for _ in 0..rng.below(6) {
                replica.append(&random_entries(&rng, rng.below(40) as usize, 5)).await;
                // Sometimes applied before it is written, as a follower may.
                if rng.chance(1, 2) {
                    env.clock.sleep(Duration::from_millis(rng.below(10))).await;
                }
                replica.apply_all().await.unwrap();
                if rng.chance(1, 3) {
                    env.clock.sleep(Duration::from_millis(rng.below(12_000))).await;
                }
                if rng.chance(1, 10) {
                    replica.fold.derived_sync().await.unwrap();
                }
            }
            let durable = *replica.fold.reader().watch_durable().borrow();
            disk.crash(&rng);
            drop(replica);
            env = Env::simulated(rng.u64(), disk.clone());
            replica = restarted(&env, &options).await;
            assert!(replica.found >= durable, "found {:?}, durable was {durable:?}", replica.found);
            if rng.chance(1, 2) {
                check_images(&replica).await;
            }
        }
        replica.check_index(&Model::of(&replica.frames().await)).await;
    }
}

/// A crash behind every single change of the disk.
#[tokio::test(start_paused = true)]
async fn a_crash_at_every_step_of_a_short_life() {
    let rng = seeded();
    let (env, disk) = simulated(&rng);
    let options = derived_options();
    let begun = disk.fork();
    disk.record();
    let mut replica = Replica::start(&env, options.clone()).await.unwrap();
    let mut durable = Vec::new();
    for _ in 0..6 {
        replica.append(&random_entries(&rng, 12, 10)).await;
        replica.apply_all().await.unwrap();
        replica.fold.derived_sync().await.unwrap();
        durable.push((disk.recorded_len(), replica.fold.applied()));
    }
    let recorded = disk.recorded();
    for (done, operation) in recorded.iter().enumerate() {
        let crashed = begun.fork();
        let kept = crashed.crash(&rng);
        let env = Env::simulated(1, crashed.clone());
        let replica = restarted(&env, &options).await;
        let least = durable.iter().rev().find(|(at, _)| *at <= done).and_then(|(_, durable)| *durable);
        assert!(replica.found >= least, "after {done}: found {:?}, durable was {least:?}; {kept:?}", replica.found);
        check_images(&replica).await;
        begun.repeat(operation);
    }
}

/// Replaces a world's last state by what is left after `harm`, and says whether the replica noticed.
async fn after_harm(rng: &Rng, harm: impl AsyncFn(&env::disk::simulated::SimDisk)) -> (Replica, Env) {
    let (env, disk) = simulated(rng);
    let options = DerivedOptions { sync_changed_bytes: 5_000, ..derived_options() };
    let mut replica = Replica::start(&env, options.clone()).await.unwrap();
    replica.append(&random_entries(rng, 400, 2)).await;
    replica.apply_all().await.unwrap();
    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();
    harm(&disk).await;
    let env = Env::simulated(rng.u64(), disk);
    let replica = restarted(&env, &options).await;
    replica.check_index(&Model::of(&replica.frames().await)).await;
    (replica, env)
}

/// Derived: may be deleted at any time.
#[tokio::test(start_paused = true)]
async fn whatever_is_derived_may_be_deleted() {
    let rng = seeded();
    for (victims, rebuilds) in [
        (vec!["consumequeue"], 1),
        (vec!["index"], 1),
        (vec!["state"], 0),
        (vec!["checkpoint"], 0),
        (vec!["state", "checkpoint"], 0),
        (vec!["consumequeue", "index", "state", "checkpoint"], 0),
    ] {
        println!("{victims:?}");
        let (replica, _) = after_harm(&rng, async |disk| {
            for victim in &victims {
                disk.remove_dir_all(&dir().join(victim)).await.unwrap();
            }
        })
        .await;
        assert_eq!(replica.fold.reader().derived_stats().rebuilds, rebuilds, "{victims:?}");
    }
}

/// A damaged unit is never shown. It is noticed when read, and the next start makes it whole again.
#[tokio::test(start_paused = true)]
async fn a_damaged_unit_is_rebuilt() {
    let rng = seeded();
    let (env, disk) = simulated(&rng);
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    let entries: Vec<_> = (0..200)
        .map(|number| entry(number, vec![record(queue_id(0), vec![1; 8], raft_store::entry::Visibility::Visible)]))
        .collect();
    replica.append(&entries).await;
    replica.apply_all().await.unwrap();
    replica.fold.derived_sync().await.unwrap();
    disk.flip_bit("/data/consumequeue/0.0/00000000000000000000", 10 * 32 + 9, 2);
    let reader = replica.fold.reader();
    let queue = reader.queue(queue_id(0)).unwrap();
    let error = queue.read_units(QueueOffset(5), 20).await.unwrap_err();
    assert!(matches!(error, UnitsError::Damaged { queue_offset: QueueOffset(10), .. }), "{error}");
    assert!(reader.watch_damage().borrow().is_some());
    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();
    let env = Env::simulated(1, disk);
    let replica = restarted(&env, &derived_options()).await;
    assert_eq!(replica.found, None, "all of it is replayed");
    assert_eq!(replica.fold.reader().derived_stats().rebuilds, 1);
}

/// A disk that fails once stops apply for good; nothing is retried; a restart goes on from what is durable.
#[tokio::test(start_paused = true)]
async fn a_failed_sync_stops_the_replica() {
    let rng = seeded();
    for victim in ["consumequeue", "index", "state", "checkpoint"] {
        let (env, disk) = simulated(&rng);
        let mut replica = Replica::start(&env, derived_options()).await.unwrap();
        replica.append(&random_entries(&rng, 200, 20)).await;
        disk.fail_sync(Path::new("/data").join(victim), 1);
        let applied = replica.apply_all().await;
        let synced = replica.fold.derived_sync().await;
        assert!(applied.is_err() || synced.is_err(), "{victim}");
        replica.append(&random_entries(&rng, 2, 0)).await;
        let error = replica.apply_all().await.unwrap_err();
        assert!(error.to_string().contains("derived state"), "{error}");
        assert!(replica.fold.reader().watch_failure().borrow().is_some());
        assert!(replica.fold.reader().wait_applied(u64::MAX).await.is_err());
        drop(replica);
        disk.crash(&rng);
        restarted(&Env::simulated(1, disk), &derived_options()).await;
    }
}

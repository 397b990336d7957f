//! On the machine's own disk and threads, with sled.

use std::time::Duration;

use bytes::Bytes;
use env::Env;
use raft_store::entry::Visibility;
use raft_store::position::QueueOffset;

use crate::world::*;

async fn stop(replica: Replica) {
    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();
}

/// A life with restarts; then sled's directory is spoilt: it is moved aside, counted, and rebuilt, from an image if
/// there is one.
#[tokio::test]
async fn sled_is_spoilt_and_rebuilt() {
    let rng = seeded();
    for checkpoints in [0, 3] {
        let temporary = tempfile::tempdir().unwrap();
        let (env, dir) = (Env::real(), temporary.path().to_owned());
        let start = || Replica::start_in(&env, dir.clone(), derived_options());
        let mut replica = start().await.unwrap();
        for _ in 0..3 {
            replica.append(&random_entries(&rng, 200, checkpoints)).await;
            replica.apply_all().await.unwrap();
            stop(replica).await;
            replica = start().await.unwrap();
            assert_eq!(replica.found, replica.log.last(), "nothing to replay");
            replica.check(&Model::of(&replica.frames().await)).await;
        }
        stop(replica).await;
        let conf = env.disk.open(&dir.join("state/conf"), env::disk::Open::Existing).await.unwrap();
        conf.write_at(0, &[Bytes::from_static(&[0xFF; 64])]).await.unwrap();
        let mut replica = start().await.unwrap();
        assert_eq!(replica.fold.reader().derived_stats().keyed_moved_aside, 1);
        assert_eq!(replica.fold.reader().derived_stats().rebuilds, 0);
        assert_eq!(replica.found.is_some(), checkpoints > 0);
        replica.apply_all().await.unwrap();
        let model = Model::of(&replica.frames().await);
        replica.check(&model).await;
        replica.check_index(&model).await;
        stop(replica).await;
    }
}

/// Readers on other threads see units only as a whole, in order, and long polls end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_follow_apply_on_other_threads() {
    let temporary = tempfile::tempdir().unwrap();
    let env = Env::real();
    let mut replica = Replica::start_in(&env, temporary.path().to_owned(), derived_options()).await.unwrap();
    const MESSAGES: u64 = 3_000;
    let first = [entry(1, vec![record(queue_id(0), vec![0; 8], Visibility::Visible)])];
    replica.append(&first).await;
    replica.apply_all().await.unwrap();
    let followers: Vec<_> = (0..2)
        .map(|_| {
            let reader = replica.fold.reader();
            tokio::spawn(async move {
                let queue = reader.queue(queue_id(0)).unwrap();
                let mut next = 0;
                while next < MESSAGES {
                    queue.grown_beyond(QueueOffset(next)).await;
                    for unit in queue.read_units(QueueOffset(next), 100).await.unwrap() {
                        let record = reader.record(unit.physical_offset, unit.size).await.unwrap();
                        assert_eq!(record[..], next.to_le_bytes());
                        next += 1;
                    }
                }
            })
        })
        .collect();
    for number in 1..MESSAGES {
        let operations = vec![record(queue_id(0), number.to_le_bytes().to_vec(), Visibility::Visible)];
        replica.append(&[entry(number as i64, operations)]).await;
        replica.apply_all().await.unwrap();
        if number % 500 == 0 {
            replica.fold.derived_sync().await.unwrap();
        }
    }
    for follower in followers {
        let ended = env.clock.timeout(Duration::from_secs(20), follower).await;
        ended.expect("a long poll missed its wake-up").unwrap();
    }
    stop(replica).await;
}

/// A start with very many queues opens none of their files.
#[tokio::test]
async fn ten_thousand_queues_start_quickly() {
    let temporary = tempfile::tempdir().unwrap();
    let (env, dir) = (Env::real(), temporary.path().to_owned());
    let mut replica = Replica::start_in(&env, dir.clone(), derived_options()).await.unwrap();
    let queue = |number: u32| raft_store::position::QueueId { topic: raft_store::position::TopicId(9), queue: number };
    for some in (0..10_000u32).collect::<Vec<_>>().chunks(100) {
        let operations = some.iter().map(|number| {
            record(queue(*number), vec![1], Visibility::Scheduled { due: raft_store::position::Timestamp(i64::MAX) })
        });
        let made = some.iter().map(|number| record(queue(*number), vec![2], Visibility::Visible)).take(1);
        replica.append(&[entry(5, operations.chain(made).collect())]).await;
    }
    replica.apply_all().await.unwrap();
    stop(replica).await;
    let began = env.clock.monotonic();
    let replica = Replica::start_in(&env, dir, derived_options()).await.unwrap();
    let took = env.clock.monotonic() - began;
    assert_eq!(replica.fold.reader().pending().scheduled, 10_000);
    assert!(took < Duration::from_secs(5), "{took:?}");
    stop(replica).await;
}

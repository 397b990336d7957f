//! A state that a majority does not have is thrown away, with the images that were cut from it, and made anew from what was
//! agreed on; a crash at any moment of that has the next start do it again.

use std::path::Path;

use bytes::Bytes;
use env::disk::Open;
use env::disk::simulated::SimDisk;
use env::{Disk, Env};
use raft_store::entry::{CoreCommand, Operation, Visibility};
use raft_store::fold::{CoreReply, Outcome};
use raft_store::materializer::OpenError;
use raft_store::position::{LogId, PhysicalOffset, Timestamp};
use raft_store::state_hash::Verdict;

use crate::retention::purge;
use crate::world::*;

/// What is derived, and what the checks of the log do not see.
const DERIVED: [&str; 4] = ["state", "checkpoint", "consumequeue", "index"];

/// Three checkpoints; from the first on, tables are told `value`. Equally long for equally long values.
fn entries(value: &str, trim: Option<PhysicalOffset>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for number in 0..36u8 {
        let value = if entries.len() < 10 { "right" } else { value };
        let put = Operation::Tables([b"p", &[number % 5][..], value.as_bytes()].concat().into());
        let kept = record(queue_id(number % 2), vec![number; 30], Visibility::Visible);
        entries.push(entry(i64::from(number), vec![kept, put]));
        match (number, trim) {
            (9 | 19 | 29, _) => entries.push(entry(i64::from(number), vec![core(CoreCommand::Checkpoint)])),
            (21, Some(min_physical)) => {
                let trim = CoreCommand::Trim { min_physical, cut: Timestamp(i64::MAX) };
                entries.push(entry(21, vec![core(trim)]));
            }
            _ => {}
        }
    }
    entries
}

async fn folded(entries: &[Entry]) -> (Replica, SimDisk) {
    let (env, disk) = simulated(&seeded());
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    replica.append(entries).await;
    replica.apply_all().await.unwrap();
    replica.fold.derived_sync().await.unwrap();
    (replica, disk)
}

async fn write(env: &Env, path: &Path, bytes: Bytes) {
    let file = env.disk.open(path, Open::OrCreate).await.unwrap();
    file.set_len(0).await.unwrap();
    file.write_at(0, &[bytes]).await.unwrap();
    file.sync_data().await.unwrap();
    env.disk.sync_dir(path.parent().unwrap()).await.unwrap();
}

/// The log of `right` with what is derived from `wrong`.
async fn mixed(right: &SimDisk, wrong: &SimDisk) -> SimDisk {
    let disk = right.fork();
    let env = Env::simulated(1, disk.clone());
    for derived in DERIVED {
        let derived = dir().join(derived);
        disk.remove_dir_all(&derived).await.unwrap();
        env.disk.create_dir_all(&derived).await.unwrap();
        for (path, bytes) in wrong.dump().into_iter().filter(|(path, _)| path.starts_with(&derived)) {
            env.disk.create_dir_all(path.parent().unwrap()).await.unwrap();
            write(&env, &path, bytes).await;
        }
        env.disk.sync_dir(&derived).await.unwrap();
    }
    env.disk.sync_dir(&dir()).await.unwrap();
    disk
}

/// See `docs/format.md`, *the note `rebuild`*.
async fn note(disk: &SimDisk, from: &[u8]) {
    let value = [&[0xB2, 1, 2], from].concat();
    let bytes = [&crc32c::crc32c(&value).to_le_bytes()[..], &value].concat();
    write(&Env::simulated(1, disk.clone()), &dir().join("rebuild"), bytes.into()).await;
}

fn small(id: LogId) -> [u8; 2] {
    [id.term, id.index]
        .map(|number| u8::try_from(number).ok().filter(|byte| *byte < 251).expect("one byte of a varint"))
}

async fn hashes(replica: &Replica) -> Vec<(LogId, u64)> {
    let images = replica.fold.images().await.unwrap();
    images.iter().map(|image| (image.boundary.id, image.hash)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_every_step_of_a_rebuild_ends_in_the_agreed_state() {
    for is_trimmed in [false, true] {
        let (unborn, _) = folded(&entries("right", None)).await;
        let first = unborn.fold.reader().checkpoints()[0];
        let trim = is_trimmed.then_some(first.end);
        let (right, disk) = folded(&entries("right", trim)).await;
        let (wrong, other) = folded(&entries("wrong", trim)).await;
        let model = Model::of(&right.frames().await);
        let expected = hashes(&right).await;
        assert_ne!(expected, hashes(&wrong).await);
        if is_trimmed {
            purge(&right).await;
        }
        for replica in [right, wrong] {
            replica.fold.close().await.unwrap();
            replica.log.close().await.unwrap();
        }

        let mixed = mixed(&disk, &other).await;
        let fooled = Replica::start(&Env::simulated(1, mixed.fork()), derived_options()).await.unwrap();
        assert_ne!(*fooled.fold.reader().tables(), model.notes, "the log says nothing against it");

        match is_trimmed {
            false => note(&mixed, &[1]).await,
            true => note(&mixed, &[&[2][..], &small(first.id)].concat()).await,
        }
        let begun = mixed.fork();
        mixed.record();
        let check = async |disk: SimDisk| {
            let env = Env::simulated(1, disk);
            let mut replica = Replica::start(&env, derived_options()).await.unwrap();
            replica.apply_all().await.unwrap();
            replica.fold.derived_sync().await.unwrap();
            replica.check(&model).await;
            assert_eq!(hashes(&replica).await, expected);
            replica
        };
        let replica = check(mixed.clone()).await;
        assert_eq!(replica.fold.reader().derived_stats().rebuilds, 1);
        assert_eq!(replica.found, is_trimmed.then_some(first.id), "where it began");
        let rng = seeded();
        for operation in mixed.recorded() {
            let crashed = begun.fork();
            crashed.crash(&rng);
            check(crashed).await;
            begun.repeat(&operation);
        }
    }
}

/// The verdict is a row like any other: of the log alone, in images, and there after a restart.
#[tokio::test(start_paused = true)]
async fn what_was_found_once_stays_with_the_checkpoint() {
    let (mut replica, disk) = folded(&entries("right", None)).await;
    let points: Vec<LogId> = replica.fold.reader().checkpoints().iter().map(|point| point.id).collect();
    let state_hash = |position, hashes: &[u64]| {
        let hashes = (1..).zip(hashes.iter().copied()).collect();
        entry(50, vec![core(CoreCommand::StateHash { position, voters: 3, hashes })])
    };
    let found = |verdict| Outcome::Core(CoreReply::StateHash(verdict));
    let (unknown, agreed) = (LogId { term: 9, ..points[0] }, Some(Verdict::Agreed(7)));
    replica
        .append(&[
            state_hash(unknown, &[7, 7, 7]),
            state_hash(points[0], &[7, 8]),
            state_hash(points[0], &[8, 7, 7]),
            state_hash(points[0], &[8, 8, 8]),
            state_hash(points[1], &[6, 7, 8]),
            entry(51, vec![core(CoreCommand::Checkpoint)]),
        ])
        .await;
    let outcomes = replica.apply_all().await.unwrap();
    let split = Some(Verdict::Split);
    let expected = [found(None), found(None), found(agreed), found(agreed), found(split)];
    assert_eq!(outcomes[..5], expected);
    replica.fold.derived_sync().await.unwrap();
    let hashes = replica.fold.reader().state_hashes();
    assert_eq!(hashes.verdicts.values().copied().collect::<Vec<_>>(), [agreed, split, None, None]);
    assert_eq!((hashes.agreed(), hashes.split()), (Some(points[0]), Some(points[1])));
    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();

    let again = Replica::start(&Env::simulated(1, disk), derived_options()).await.unwrap();
    assert_eq!(again.fold.reader().state_hashes(), hashes);
    assert_eq!(hashes.images.len(), 4);
}

/// What nobody agreed on is no beginning, whether it was noted so, or the log has been purged since.
#[tokio::test(start_paused = true)]
async fn a_replica_with_nothing_agreed_left_does_not_start() {
    let (unborn, _) = folded(&entries("right", None)).await;
    let points = unborn.fold.reader().checkpoints();
    let (replica, disk) = folded(&entries("right", Some(points[1].end))).await;
    purge(&replica).await;
    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();
    for from in [vec![0], vec![1], [&[2][..], &small(points[0].id)].concat()] {
        let disk = disk.fork();
        note(&disk, &from).await;
        for _ in 0..2 {
            let refused = Replica::start(&Env::simulated(1, disk.clone()), derived_options()).await.err();
            let Some(OpenError::DoesNotFit { reason, .. }) = refused else { panic!("{from:?}: {refused:?}") };
            assert!(reason.contains("replaceNode"), "{reason}");
        }
    }
}

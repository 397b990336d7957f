//! Every single bit of derived files, one at a time: a reader must never see one that was turned, and the next start must
//! come to the same state as if nothing had happened. Each test prints how many bits it turned and what came of them.

use std::path::{Path, PathBuf};

use env::disk::simulated::SimDisk;
use env::{Env, Rng};
use raft_store::consume_queue::UnitsError;
use raft_store::entry::{CoreCommand, Visibility};
use raft_store::position::{QueueOffset, Timestamp};

use crate::world::*;

/// Some units in one queue, some of them fired, and checkpoints.
async fn filled(env: &Env, records: i64) -> Replica {
    let mut replica = Replica::start(env, derived_options()).await.unwrap();
    let entries: Vec<_> = (0..records)
        .map(|number| {
            let mut operations = vec![record(queue_id(0), vec![1; 8], Visibility::Visible)];
            // Fired well after it was stored, so that only the index leads from one to the other.
            if number % 40 == 7 {
                let due = Timestamp(number + 5);
                operations.push(record(queue_id(1), vec![2; 9], Visibility::Scheduled { due }));
            }
            if number % 40 == 20 {
                operations.push(core(CoreCommand::FireTimers { limit: 9 }));
            }
            if number % 500 == 400 {
                operations.push(core(CoreCommand::Checkpoint));
            }
            entry(number, operations)
        })
        .collect();
    replica.append(&entries).await;
    replica.apply_all().await.unwrap();
    replica.fold.derived_sync().await.unwrap();
    replica
}

#[tokio::test(start_paused = true)]
async fn every_bit_of_1024_units_is_noticed_when_the_unit_is_read() {
    const UNITS: u64 = 1024;
    let rng = Rng::seeded(1);
    let (env, disk) = simulated(&rng);
    let replica = filled(&env, 1300).await;
    let reader = replica.fold.reader();
    let queue = reader.queue(queue_id(0)).unwrap();
    assert!(queue.units(QueueOffset(UNITS - 1), 1).is_none(), "they are in the file only");
    let file = dir().join(format!("consumequeue/{}/{:020}", queue_id(0), 0));
    let mut noticed = 0;
    for at in 0..UNITS * 32 {
        for bit in 0..8 {
            disk.flip_bit(&file, at, bit);
            let read = queue.read_units(QueueOffset(at / 32), 1).await;
            let Err(UnitsError::Damaged { queue_offset, .. }) = read else { panic!("bit {bit} at {at}: {read:?}") };
            assert_eq!(queue_offset.0, at / 32);
            disk.flip_bit(&file, at, bit);
            noticed += 1;
        }
    }
    println!("ConsumeQueue units: {noticed} bits: all noticed when read");
    assert!(reader.watch_damage().borrow().is_some(), "and the replica hears of it");
}

/// Starts over a disk on which one bit is turned, reads everything, and starts again if that stopped the replica: what is
/// seen in the end is what there was.
async fn comes_to_the_same(disk: &SimDisk, model: &Model, file: &Path, at: u64, bit: u8) -> &'static str {
    let damaged = disk.fork();
    damaged.flip_bit(file, at, bit);
    let mut starts = 0;
    loop {
        starts += 1;
        assert!(starts <= 2, "bit {bit} at {at} of {file:?}");
        let mut replica = Replica::start(&Env::simulated(1, damaged.clone()), derived_options()).await.unwrap();
        replica.apply_all().await.unwrap();
        let reader = replica.fold.reader();
        let mut stopped = false;
        for number in 0..2 {
            let queue = reader.queue(queue_id(number)).unwrap();
            let mut from = queue.bounds().start;
            while from < queue.bounds().end && !stopped {
                match queue.read_units(from, 500).await {
                    Ok(units) => from.0 += units.len() as u64,
                    Err(_) => stopped = true,
                }
            }
        }
        for (id, units) in &model.queues {
            let unit = units[units.len() / 2];
            stopped |= reader.unit_of(unit.physical_offset, *id, model.stored_at[&unit.physical_offset]).await.is_err();
        }
        if stopped {
            assert!(reader.watch_damage().borrow().is_some(), "the replica hears of it");
            continue;
        }
        replica.check(model).await;
        let rebuilt = reader.derived_stats().rebuilds > 0 || reader.derived_stats().keyed_moved_aside > 0;
        return match (starts, rebuilt) {
            (2, _) => "stopped by a reader, rebuilt by the next start",
            (_, true) => "rebuilt by the start",
            _ => "of no effect",
        };
    }
}

/// A bit of every byte, in every kind of derived file, with whole starts.
#[tokio::test(start_paused = true)]
async fn whatever_bit_of_a_derived_file_is_turned_a_start_comes_to_the_same() {
    let rng = Rng::seeded(2);
    let (env, disk) = simulated(&rng);
    let replica = filled(&env, 60).await;
    let model = Model::of(&replica.frames().await);
    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();
    disk.process_kill();
    let derived: Vec<(PathBuf, u64)> = disk
        .dump()
        .into_iter()
        .filter(|(path, _)| !path.starts_with(dir().join("commitlog")) && !path.starts_with(dir().join("hard-state")))
        .map(|(path, bytes)| (path, bytes.len() as u64))
        .collect();
    assert!(derived.len() >= 4, "{derived:?}");
    let mut counts: std::collections::BTreeMap<(String, &str), u64> = std::collections::BTreeMap::new();
    for (path, len) in derived {
        let kind = path.strip_prefix(dir()).unwrap().iter().next().unwrap().to_string_lossy().into_owned();
        for at in (0..len).step_by(if len > 4096 { 11 } else { 3 }) {
            let outcome = comes_to_the_same(&disk, &model, &path, at, (at % 8) as u8).await;
            *counts.entry((kind.clone(), outcome)).or_default() += 1;
        }
    }
    for ((kind, outcome), count) in counts {
        println!("{kind}: {count} bits: {outcome}");
    }
}

/// An image with a turned bit, where there is nothing else to begin with.
#[tokio::test(start_paused = true)]
async fn an_image_with_any_bit_turned_is_not_begun_with() {
    let rng = Rng::seeded(3);
    let (env, disk) = simulated(&rng);
    let replica = filled(&env, 430).await;
    let model = Model::of(&replica.frames().await);
    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();
    disk.process_kill();
    env::Disk::remove_dir_all(&disk, &dir().join("state")).await.unwrap();
    let images = disk.dump().into_iter().filter(|(path, _)| path.starts_with(dir().join("checkpoint")));
    let [(image, bytes)] = &images.collect::<Vec<_>>()[..] else { panic!("one image") };
    for at in 0..bytes.len() as u64 {
        let damaged = disk.fork();
        damaged.flip_bit(image, at, (at % 8) as u8);
        let mut replica = Replica::start(&Env::simulated(1, damaged), derived_options()).await.unwrap();
        assert_eq!(replica.found, None, "bit {} at {at}", at % 8);
        if at.is_multiple_of(16) {
            replica.apply_all().await.unwrap();
            replica.check(&model).await;
        }
    }
    println!("an image: a bit in each of {} bytes: replayed instead", bytes.len());
}

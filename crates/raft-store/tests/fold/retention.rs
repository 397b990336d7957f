//! Retention at any pace and with a crash at any moment: what waits is rolled forward and never lost, what is young stays,
//! and every replica begins at the same place.

use env::{Disk, Env, Rng};
use raft_store::entry::{CoreCommand, Operation, RollOperation, TransactionCheck, Visibility};
use raft_store::fold::{CoreReply, HalfState, Outcome, PendingPlace, Reader};
use raft_store::log::Frame;
use raft_store::materializer::DerivedOptions;
use raft_store::position::{PhysicalOffset, Timestamp};

use crate::world::*;

/// A leader's next step of retention, or one that is as wrong as a leader could make it.
async fn step(rng: &Rng, reader: &Reader<Notes>, end: PhysicalOffset) -> Entry {
    let now = reader.now();
    let points = reader.checkpoints();
    let wanted = match rng.below(4) {
        0 => PhysicalOffset(rng.below(end.0 + 1)),
        _ if points.is_empty() => end,
        _ => points[rng.below(points.len() as u64) as usize].end,
    };
    let command = match rng.below(8) {
        6 | 7 => return entry(now.0, endings(rng, reader, wanted)),
        0 => core(CoreCommand::Checkpoint),
        1 => core(CoreCommand::FireTimers { limit: rng.below(6) as u32 }),
        2 => core(CoreCommand::Trim { min_physical: wanted, cut: Timestamp(now.0 - rng.below(3_000) as i64) }),
        3 => core(CoreCommand::Trim { min_physical: wanted, cut: Timestamp(i64::MAX) }),
        _ => {
            let mut operations = Vec::new();
            for row in reader.pending_below(wanted, 1 + rng.below(20) as usize) {
                operations.push(roll(reader, row).await);
            }
            // Between the roll being proposed and its being applied the row may fire.
            if rng.chance(1, 3) {
                operations.insert(0, core(CoreCommand::FireTimers { limit: 3 }));
            }
            if rng.chance(1, 9) {
                operations.push(Operation::Roll(RollOperation { key: wanted, record: vec![1; 9].into() }));
            }
            return entry(now.0, operations);
        }
    };
    entry(now.0, vec![command])
}

/// Half records are asked about, given up, taken up again and ended, more often than once, and some that are none; what is
/// scheduled is recalled, and what is not.
fn endings(rng: &Rng, reader: &Reader<Notes>, at: PhysicalOffset) -> Vec<Operation> {
    let states = [HalfState::Unasked, HalfState::Asked, HalfState::Discarded];
    let halves: Vec<_> = states.into_iter().flat_map(|state| reader.halves(state, None, 9)).collect();
    let steps = (0..1 + rng.below(8)).map(|_| {
        let half = match halves.get(rng.below(halves.len() as u64 + 1) as usize) {
            Some(half) => half.key,
            None => at,
        };
        if rng.chance(1, 4) {
            let waiting = reader.pending_below(PhysicalOffset(u64::MAX), 9);
            let row = waiting.get(rng.below(10) as usize);
            return core(CoreCommand::Recall { scheduled: row.map_or(at, |row| row.key) });
        }
        core(match rng.below(7) {
            0 => CoreCommand::EndTransaction { half, commit: true },
            1 => CoreCommand::EndTransaction { half, commit: false },
            2 => CoreCommand::CheckTransaction { half, check: TransactionCheck::Discard },
            3 => CoreCommand::CheckTransaction { half, check: TransactionCheck::Resume },
            _ => CoreCommand::CheckTransaction { half, check: TransactionCheck::Asked },
        })
    });
    steps.collect()
}

async fn roll(reader: &Reader<Notes>, row: PendingPlace) -> Operation {
    let record = reader.record(row.place, row.size).await.unwrap();
    Operation::Roll(RollOperation { key: row.key, record })
}

/// Every frame there ever was: the log forgets what is purged.
#[derive(Default)]
struct History(Vec<Frame>);

impl History {
    async fn model(&mut self, replica: &Replica) -> Model {
        let log = replica.frames().await;
        let begin = replica.log.last_purged().map_or(0, |purged| purged.index as usize + 1);
        self.0.truncate(begin);
        self.0.extend(log);
        Model::of(&self.0)
    }
}

/// Entries whose stamps follow those there are.
fn later(rng: &Rng, now: Timestamp, count: usize) -> Vec<Entry> {
    let shift = now.0;
    let entries = random_entries(rng, count, 5).into_iter();
    entries
        .map(|one| match one {
            Entry::Operations(stamp, operations) => Entry::Operations(Timestamp(stamp.0 + shift), operations),
            other => other,
        })
        .collect()
}

/// What every replica does after a `Trim`: purges to the image at its place, if it has that.
pub async fn purge(replica: &Replica) {
    let min_physical = replica.fold.reader().min_physical();
    replica.fold.derived_sync().await.unwrap();
    let images = replica.fold.images().await.unwrap();
    if let Some(image) = images.iter().find(|image| image.boundary.end.physical_offset == min_physical) {
        replica.log.purge(image.boundary.id).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_that_waits_or_is_young_is_lost_whenever_the_power_fails() {
    let rng = seeded();
    let (mut trimmed, mut rolled, mut purged, mut committed) = (0, 0, 0, 0);
    for _ in 0..6 {
        let (mut env, disk) = simulated(&rng);
        let options = DerivedOptions { sync_changed_bytes: 2_000 + rng.below(30_000) as usize, ..derived_options() };
        let mut history = History::default();
        let mut replica = Replica::start(&env, options.clone()).await.unwrap();
        for _ in 0..60 {
            let reader = replica.fold.reader();
            for _ in 0..rng.below(5) {
                replica.append(&later(&rng, reader.now(), rng.below(30) as usize)).await;
                replica.apply_all().await.unwrap();
                let step = step(&rng, &reader, replica.log.tip().end.physical_offset).await;
                replica.append(&[step]).await;
                let outcomes = replica.apply_all().await.unwrap();
                rolled +=
                    outcomes.iter().filter(|one| **one == Outcome::Core(CoreReply::Rolled { moved: true })).count();
                committed +=
                    outcomes.iter().filter(|one| matches!(one, Outcome::Core(CoreReply::Committed { .. }))).count();
                trimmed +=
                    outcomes.iter().filter(|one| matches!(one, Outcome::Core(CoreReply::Trimmed { .. }))).count();
            }
            history.model(&replica).await;
            if rng.chance(1, 3) {
                purge(&replica).await;
                purged += usize::from(replica.log.last_purged().is_some());
            }
            if rng.chance(1, 4) {
                disk.crash(&rng);
                drop(replica);
                env = Env::simulated(rng.u64(), disk.clone());
                replica = Replica::start(&env, options.clone()).await.unwrap();
                replica.apply_all().await.unwrap();
            }
            let model = history.model(&replica).await;
            replica.check(&model).await;
            // All that is shown and kept can be read, and all that waits.
            let reader = replica.fold.reader();
            for units in model.queues.values() {
                for unit in units.iter().filter(|unit| unit.physical_offset >= model.min_physical) {
                    reader.record(unit.physical_offset, unit.size).await.unwrap();
                }
            }
            for row in reader.pending_below(PhysicalOffset(u64::MAX), usize::MAX) {
                assert_eq!(model.places[&row.key], row.place);
                reader.record(row.place, row.size).await.unwrap();
            }
        }
        replica.check_index(&history.model(&replica).await).await;
    }
    println!("{trimmed} trims, {rolled} rows rolled, {purged} looks at a purged log, {committed} commits");
    assert!(trimmed > 100 && rolled > 100 && purged > 20, "{trimmed} trims, {rolled} rolled, {purged} purged");
    assert!(committed > 20, "{committed} committed");
}

/// Files of the log, of queues and of the index go, and a replica that begins with the image at the new beginning shows
/// the same bounds as one that was always there.
#[tokio::test(start_paused = true)]
async fn what_is_trimmed_leaves_the_disk_and_a_new_replica_has_equal_bounds() {
    let rng = seeded();
    let (env, disk) = simulated(&rng);
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    let mut stamp = 0;
    let queue = queue_id(0);
    // More than a file of units, and more than three segments.
    let mut fill = |count: usize| -> Vec<Entry> {
        let one = || record(queue, vec![7; 8], Visibility::Visible);
        let entries = (0..count).map(|_| {
            stamp += 1;
            entry(stamp, (0..64).map(|_| one()).collect())
        });
        entries.collect()
    };
    replica.append(&fill(1_100)).await;
    let half = record(queue, vec![9; 50], Visibility::Half);
    replica.append(&[entry(1_100, vec![half]), entry(1_100, vec![core(CoreCommand::Checkpoint)])]).await;
    replica.append(&fill(20)).await;
    replica.apply_all().await.unwrap();
    replica.fold.derived_sync().await.unwrap();
    let reader = replica.fold.reader();
    let point = reader.checkpoints()[0];
    let trim = || entry(2_000, vec![core(CoreCommand::Trim { min_physical: point.end, cut: Timestamp(i64::MAX) })]);
    replica.append(&[trim()]).await;
    replica.apply_all().await.unwrap();
    assert_eq!(reader.min_physical(), PhysicalOffset(0), "a half message lies before");

    let waiting = reader.pending_below(point.end, 10);
    assert_eq!(waiting.len(), 1);
    let roll = roll(&reader, waiting[0]).await;
    replica.append(&[entry(2_000, vec![roll]), trim()]).await;
    replica.apply_all().await.unwrap();
    assert_eq!(reader.min_physical(), point.end);
    assert_eq!(reader.queue(queue).unwrap().bounds().start.0, 1_100 * 64);
    purge(&replica).await;
    let names = async |of: &str| -> Vec<String> {
        let listed = disk.list(&dir().join(of)).await.unwrap();
        listed.into_iter().map(|name| name.name).filter(|name| name.parse::<u64>().is_ok()).collect()
    };
    let units = names("consumequeue/0.0").await;
    assert_eq!(units, ["00000000000000065536"], "the first file of units is gone");
    let first_kept = point.end.0 / SEGMENT_BYTES * SEGMENT_BYTES;
    assert!(first_kept > 0);
    let segments = names("commitlog").await;
    assert!(segments.iter().all(|name| *name >= format!("{first_kept:020}")), "{segments:?}");

    let image = replica.fold.images().await.unwrap().into_iter().find(|image| image.boundary.id == point.id).unwrap();
    let file = env.disk.open(&image.path, env::disk::Open::Existing).await.unwrap();
    let bytes = file.read_at(0, image.len as usize).await.unwrap();
    let (env, _) = simulated(&rng);
    let mut newcomer = Replica::start(&env, derived_options()).await.unwrap();
    newcomer.fold.install_image(bytes).await.unwrap();
    newcomer.log.restart_at(image.boundary).await.unwrap();
    for frame in replica.frames().await {
        let entry = raft_store::log::AppendEntry {
            id: frame.id,
            kind: frame.kind,
            body: frame.body.clone(),
            body_crc: frame.body_crc,
            carried_chain: Some(frame.chain),
        };
        newcomer.log.append(vec![entry], Box::new(|_| {})).unwrap();
    }
    newcomer.apply_all().await.unwrap();
    let bounds = |replica: &Replica| replica.fold.reader().queue(queue).unwrap().bounds();
    assert_eq!(bounds(&newcomer), bounds(&replica));
    assert_eq!(newcomer.fold.reader().min_physical(), point.end);
    let rows = newcomer.fold.reader().pending_below(PhysicalOffset(u64::MAX), 9);
    assert_eq!(rows.len(), 1);
    assert!(rows[0].place >= point.end, "it lies in its own log now");
    newcomer.fold.reader().record(rows[0].place, rows[0].size).await.unwrap();
}

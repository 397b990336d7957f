//! What apply does, without any misfortune.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use env::disk::simulated::Latency;
use raft_store::consume_queue::UnitKind;
use raft_store::entry::{CoreCommand, Operation, RollOperation, Visibility};
use raft_store::fold::{ApplyError, CoreReply, Outcome, Refusal};
use raft_store::materializer::DerivedOptions;
use raft_store::position::{QueueOffset, Timestamp};

use crate::world::*;

/// Entries applied in any chunks, synced at any time, with any merging in between: equal state and equal images.
#[tokio::test(start_paused = true)]
async fn chunks_and_syncs_do_not_matter() {
    let rng = seeded();
    let entries = random_entries(&rng, 300, 4);
    let mut images: Option<BTreeMap<_, (u64, Bytes)>> = None;
    for round in 0..4 {
        let (env, _) = simulated(&rng);
        let options = DerivedOptions {
            sync_changed_bytes: [16 << 20, 2_000, 10_000, 16 << 20][round],
            sync_log_bytes: [256 << 20, 256 << 20, 20_000, 256 << 20][round],
            ..derived_options()
        };
        let mut replica = Replica::start(&env, options.clone()).await.unwrap();
        for some in entries.chunks(1 + rng.below(40) as usize) {
            replica.append(some).await;
            replica.apply_all().await.unwrap();
            if round == 3 && rng.chance(1, 3) {
                replica.fold.derived_sync().await.unwrap();
            }
            if round == 3 && rng.chance(1, 6) {
                replica.fold.close().await.unwrap();
                replica.log.close().await.unwrap();
                replica = Replica::start(&env, options.clone()).await.unwrap();
                assert_eq!(replica.found, replica.log.last(), "a clean stop leaves nothing to replay");
            }
            if rng.chance(1, 4) {
                env.clock.sleep(Duration::from_secs(rng.below(30))).await;
            }
        }
        let model = Model::of(&replica.frames().await);
        replica.check(&model).await;
        replica.check_index(&model).await;
        replica.fold.derived_sync().await.unwrap();
        let mut found = BTreeMap::new();
        for image in replica.fold.images().await.unwrap() {
            let file = env.disk.open(&image.path, env::disk::Open::Existing).await.unwrap();
            let bytes = file.read_at(0, image.len as usize).await.unwrap();
            found.insert(image.boundary.id, (image.hash, bytes));
        }
        assert!(found.len() > 2, "{} images", found.len());
        assert_eq!(images.get_or_insert_with(|| found.clone()), &found, "round {round}");
    }
}

/// Entries that come while a derived sync is under way wait for the next one: it does not go on for as long as there are any.
#[tokio::test(start_paused = true)]
async fn a_derived_sync_ends_though_entries_keep_coming() {
    let (env, disk) = simulated(&seeded());
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    let slow = Duration::from_millis(5);
    disk.set_latency(Latency { sync: slow, write: slow, ..Latency::default() });
    let interval = Duration::from_millis(derived_options().sync_interval_ms);
    let watched = replica.fold.reader().watch_durable();
    let (begun, mut durable) = (env.clock.monotonic(), None);
    while env.clock.monotonic() < begun + interval * 5 / 2 {
        let sent = record(queue_id(1), vec![1; 10], Visibility::Visible);
        replica.append(&[entry(1, vec![sent])]).await;
        replica.apply_all().await.unwrap();
        env.clock.sleep(Duration::from_millis(1)).await;
        durable = *watched.borrow();
    }
    assert_eq!(replica.fold.reader().derived_stats().syncs, 2, "one for each interval");
    assert!(durable.expect("synced").index > replica.log.last().expect("appended").index / 2);
}

/// A timer fires once, when group time has reached it, in order of due time then place.
#[tokio::test(start_paused = true)]
async fn timers_fire_once_in_order_and_never_early() {
    let (env, _) = simulated(&seeded());
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    let scheduled = |due| record(queue_id(1), vec![due as u8; 10], Visibility::Scheduled { due: Timestamp(due) });
    replica.append(&[entry(100, vec![scheduled(130), scheduled(120), scheduled(120), scheduled(90)])]).await;
    let outcomes = replica.apply_all().await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Pending { stamp: Timestamp(100), .. })));
    let places: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Pending { physical_offset, .. } => *physical_offset,
            other => panic!("{other:?}"),
        })
        .collect();
    let reader = replica.fold.reader();
    assert_eq!((reader.next_due(), reader.pending().scheduled), (Some(Timestamp(90)), 4));
    assert!(reader.queue(queue_id(1)).is_none(), "nothing is visible");
    let fire = |limit| core(CoreCommand::FireTimers { limit });
    let fired = |fired, more| Outcome::Core(CoreReply::Fired { fired, more });
    replica.append(&[entry(119, vec![fire(9)])]).await;
    assert_eq!(replica.apply_all().await.unwrap(), [fired(1, false)]);
    replica.append(&[entry(125, vec![fire(1), fire(9)]), entry(129, vec![fire(9)]), entry(130, vec![fire(9)])]).await;
    assert_eq!(replica.apply_all().await.unwrap(), [fired(1, true), fired(1, false), fired(0, false), fired(1, false)]);
    let units = reader.queue(queue_id(1)).unwrap().units(QueueOffset(0), 10).unwrap();
    let seen: Vec<_> = units.iter().map(|unit| (unit.physical_offset, unit.visible_at.0, unit.kind)).collect();
    let kind = UnitKind::Fired;
    assert_eq!(seen, [(places[3], 119, kind), (places[1], 125, kind), (places[2], 125, kind), (places[0], 130, kind)]);
    assert_eq!((reader.next_due(), reader.pending().scheduled, reader.pending().bytes), (None, 0, 0));
    for (place, offset) in [(places[3], 0), (places[0], 3)] {
        let found = reader.unit_of(place, queue_id(1), Timestamp(100)).await.unwrap();
        assert_eq!(found.map(|(offset, _)| offset), Some(QueueOffset(offset)));
        assert_eq!(reader.record(place, 10).await.unwrap().len(), 10);
    }
}

/// A message is recalled before its time or fires at it: one of the two, whichever comes first in the log, also when its
/// record was rolled forward and after another start.
#[tokio::test(start_paused = true)]
async fn what_is_recalled_never_fires_and_what_has_fired_is_not_recalled() {
    let (env, _) = simulated(&seeded());
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    let scheduled = |due| record(queue_id(1), vec![due as u8; 10], Visibility::Scheduled { due: Timestamp(due) });
    let half = record(queue_id(1), vec![1; 10], Visibility::Half);
    replica.append(&[entry(100, vec![scheduled(120), scheduled(120), scheduled(130), half])]).await;
    let outcomes = replica.apply_all().await.unwrap();
    let keys: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Pending { physical_offset, .. } => *physical_offset,
            other => panic!("{other:?}"),
        })
        .collect();
    let recall = |key: usize| core(CoreCommand::Recall { scheduled: keys[key] });
    let fire = || core(CoreCommand::FireTimers { limit: 9 });
    let (recalled, fired) =
        (Outcome::Core(CoreReply::Recalled), |fired| Outcome::Core(CoreReply::Fired { fired, more: false }));
    let gone = |key: usize| Outcome::Refused(Refusal::NotScheduled(keys[key]));
    let rolled = Operation::Roll(RollOperation { key: keys[2], record: vec![130; 10].into() });
    replica.append(&[entry(110, vec![recall(0), recall(0), recall(3), rolled])]).await;
    let outcomes = replica.apply_all().await.unwrap();
    assert_eq!(outcomes[..3], [recalled.clone(), gone(0), gone(3)], "once, and no half record");
    let reader = replica.fold.reader();
    assert!(reader.scheduled(keys[0]).is_none());
    let waits = reader.scheduled(keys[2]).unwrap();
    assert!(waits.due == Timestamp(130) && waits.place > keys[3], "{waits:?} was rolled");

    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    replica.append(&[entry(125, vec![recall(0), fire(), recall(1)]), entry(140, vec![recall(2), fire()])]).await;
    assert_eq!(replica.apply_all().await.unwrap(), [gone(0), fired(1), gone(1), recalled, fired(0)]);
    let reader = replica.fold.reader();
    let units = reader.queue(queue_id(1)).unwrap().units(QueueOffset(0), 10).unwrap();
    assert_eq!(units.iter().map(|unit| unit.physical_offset).collect::<Vec<_>>(), [keys[1]], "one of three fired");
    assert_eq!((reader.pending().scheduled, reader.pending().half, reader.next_due()), (0, 1, None));
    assert_eq!((reader.lateness().count(), reader.lateness().sum_ms()), (1, 5), "due at 120, visible at 125");
}

/// A transaction ends once: whichever end comes first in the log counts, however often and in whatever order others
/// follow; what was committed lies where it was stored, and what was rolled back is nowhere.
#[tokio::test(start_paused = true)]
async fn a_transaction_ends_once_and_its_first_end_counts() {
    let (env, _) = simulated(&seeded());
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    let half = |number: u8| record(queue_id(number), vec![number; 10], Visibility::Half);
    replica.append(&[entry(100, vec![half(1), half(1), half(2), half(1)])]).await;
    let outcomes = replica.apply_all().await.unwrap();
    let keys: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Pending { physical_offset, stamp: Timestamp(100) } => *physical_offset,
            other => panic!("{other:?}"),
        })
        .collect();
    let reader = replica.fold.reader();
    assert!(reader.queue(queue_id(1)).is_none(), "nothing is visible");
    assert_eq!((reader.pending().half, reader.next_due()), (4, None));
    let end = |key: usize, commit| core(CoreCommand::EndTransaction { half: keys[key], commit });
    let committed = |key: usize, queue_offset: Option<u64>| {
        let (queue_offset, physical_offset) = (queue_offset.map(QueueOffset), keys[key]);
        Outcome::Core(CoreReply::Committed { queue_offset, physical_offset })
    };
    let gone = |key: usize| Outcome::Refused(Refusal::NoTransaction(keys[key]));
    // In one entry and in several; the queue of the third is closed meanwhile.
    replica
        .append(&[
            entry(110, vec![end(1, true), end(1, true), end(1, false), end(0, false), end(0, true)]),
            entry(
                120,
                vec![Operation::Tables(Bytes::from_static(b"c\x02")), end(2, true), end(1, true), end(0, false)],
            ),
        ])
        .await;
    let outcomes = replica.apply_all().await.unwrap();
    let expected = [committed(1, Some(0)), gone(1), gone(1), Outcome::Core(CoreReply::RolledBack), gone(0)];
    assert_eq!(outcomes[..5], expected);
    assert_eq!(outcomes[6..], [committed(2, None), gone(1), gone(0)]);

    // Another start finds the same, and what was not ended still waits.
    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    replica.append(&[entry(130, vec![end(1, true), end(0, true), end(3, true)])]).await;
    assert_eq!(replica.apply_all().await.unwrap(), [gone(1), gone(0), committed(3, Some(1))]);
    let reader = replica.fold.reader();
    let queue = reader.queue(queue_id(1)).unwrap();
    assert_eq!(queue.bounds().end, QueueOffset(2));
    for (key, offset, visible_at) in [(keys[1], 0, 110), (keys[3], 1, 130)] {
        let unit = queue.read_units(QueueOffset(offset), 1).await.unwrap()[0];
        assert_eq!((unit.physical_offset, unit.visible_at.0, unit.kind), (key, visible_at, UnitKind::Fired));
        let found = reader.unit_of(key, queue_id(1), Timestamp(100)).await.unwrap();
        assert_eq!(found.map(|(offset, _)| offset), Some(QueueOffset(offset)));
    }
    assert_eq!((reader.pending().half, reader.pending().bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn refusals_change_nothing_and_are_told() {
    let (env, _) = simulated(&seeded());
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    let send = || record(queue_id(2), vec![1], Visibility::Visible);
    replica
        .append(&[
            entry(1, vec![send(), Operation::Tables(Bytes::from_static(b"c\x02")), send()]),
            Entry::Nonsense,
            entry(1, vec![core(CoreCommand::RaiseClusterVersion { version: 0 })]),
            entry(1, vec![core(CoreCommand::RaiseClusterVersion { version: 1 })]),
            entry(2, vec![Operation::Tables(Bytes::from_static(b"o\x02")), send()]),
        ])
        .await;
    let outcomes = replica.apply_all().await.unwrap();
    assert!(matches!(outcomes[0], Outcome::Placed { queue_offset: QueueOffset(0), .. }));
    assert_eq!(outcomes[2], Outcome::Refused(Refusal::QueueClosed(queue_id(2))));
    assert_eq!(outcomes[3], Outcome::Refused(Refusal::Malformed));
    assert_eq!(outcomes[4], Outcome::Refused(Refusal::ClusterVersion(1)));
    assert_eq!(outcomes[5], Outcome::Core(CoreReply::ClusterVersion(1)));
    assert!(matches!(outcomes[7], Outcome::Placed { queue_offset: QueueOffset(1), .. }), "offsets go on");
}

/// An entry of a newer version stops the replica before anything of it is applied, and again after a restart.
#[tokio::test(start_paused = true)]
async fn the_unknown_is_not_applied() {
    let known = || record(queue_id(0), vec![1], Visibility::Visible);
    let unknown = [
        vec![known(), Operation::Tables(Bytes::from_static(b"x\x00"))],
        vec![known(), core(CoreCommand::RaiseClusterVersion { version: 99 })],
    ];
    for operations in unknown {
        let (env, _) = simulated(&seeded());
        let mut replica = Replica::start(&env, derived_options()).await.unwrap();
        replica.append(&[entry(1, vec![known()]), entry(2, operations)]).await;
        for _ in 0..2 {
            replica.apply_to(0).await.unwrap();
            let frame = replica.frames().await.pop().unwrap();
            let mut outcomes = Vec::new();
            let error = replica.fold.apply(&frame, &mut outcomes).await.unwrap_err();
            assert!(matches!(error, ApplyError::Unknown { .. }), "{error}");
            assert!(outcomes.is_empty());
            let reader = replica.fold.reader();
            assert_eq!(reader.queue(queue_id(0)).unwrap().bounds().end, QueueOffset(1));
            assert_eq!((reader.now(), reader.applied().unwrap().index), (Timestamp(1), 0));
            replica.fold.close().await.unwrap();
            replica.log.close().await.unwrap();
            replica = Replica::start(&env, derived_options()).await.unwrap();
        }
    }
}

/// The set of changes that waits for a slow disk is bounded: apply waits, and everybody else goes on.
#[tokio::test(start_paused = true)]
async fn a_slow_disk_holds_apply_back_but_not_readers() {
    let rng = seeded();
    let (env, disk) = simulated(&rng);
    let options = DerivedOptions { sync_changed_bytes: 5_000, ..derived_options() };
    let mut replica = Replica::start(&env, options).await.unwrap();
    let entries = random_entries(&rng, 1_000, 0);
    replica.append(&entries).await;
    let slow = Duration::from_secs(3);
    disk.set_latency(Latency { sync: slow, write: slow, ..Latency::default() });
    let reader = replica.fold.reader();
    let applying = tokio::spawn(async move {
        replica.apply_all().await.unwrap();
        replica
    });
    let mut highest = 0;
    while !applying.is_finished() {
        highest = highest.max(reader.derived_stats().waiting_bytes);
        env.clock.sleep(Duration::from_millis(500)).await;
    }
    let replica = applying.await.unwrap();
    assert!(highest > 5_000, "the disk was slow enough to matter: {highest}");
    assert!(highest < 12_000, "{highest} bytes waited");
    replica.check(&Model::of(&replica.frames().await)).await;
}

/// Without any pressure a derived sync comes after its interval; durable never passes applied.
#[tokio::test(start_paused = true)]
async fn a_derived_sync_comes_by_itself() {
    let (env, _) = simulated(&seeded());
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    replica.append(&[entry(1, vec![record(queue_id(0), vec![1], Visibility::Visible)])]).await;
    replica.apply_all().await.unwrap();
    let reader = replica.fold.reader();
    let mut durable = reader.watch_durable();
    assert_eq!(*durable.borrow(), None);
    let began = env.clock.monotonic();
    durable.changed().await.unwrap();
    assert_eq!(*durable.borrow(), reader.applied());
    let waited = env.clock.monotonic() - began;
    assert!((Duration::from_secs(8)..Duration::from_secs(11)).contains(&waited), "{waited:?}");
}

//! A directory that a member has left behind, looked at from outside: clean, and with each of its parts damaged. What is
//! wrong must be named with its place, everything else must still be read, and nothing may be written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use env::disk::Open;
use env::{Disk, Env};
use futures::FutureExt;
use futures::future::BoxFuture;
use raft_store::entry::{CoreCommand, Operation, Visibility};
use raft_store::offline::{Finding, Kind, Line, Offline, OfflineError, Remedy, Verification, describe_row};
use raft_store::position::{LogId, QueueOffset, Timestamp};

use crate::world::{Ledger, Place, QUEUE, free_address, record, record_operation, until_ready, within};

/// Small segments, so that some are full.
const SEGMENT_BYTES: u64 = 256 << 10;

/// What a member alone leaves behind: full segments, an image, an index part, units.
async fn left_behind(dir: &Path) -> (Ledger, Place) {
    let address = free_address();
    let mut place = Place::new(Env::real(), dir.join("node"), address, &[address]);
    place.options.segment_bytes = SEGMENT_BYTES;
    (place.options.log.max_entry_bytes, place.options.log.prepare_piece_bytes) = (64 << 10, 64 << 10);
    let group = place.open().await;
    within(&place.env, 20, "leading", until_ready(&group)).await;
    let mut ledger = Ledger::default();
    for number in 0..60 {
        ledger.send(&group, &format!("{number}-{}", "x".repeat(12 << 10))).await.unwrap();
    }
    let mut late = record_operation("late");
    late.visibility = Visibility::Scheduled { due: Timestamp(1) };
    group.propose(vec![Operation::Record(late)]).await.unwrap();
    let fire = Operation::Core(CoreCommand::FireTimers { limit: 1 });
    group.propose(vec![fire, Operation::Core(CoreCommand::Checkpoint)]).await.unwrap();
    group.propose(vec![record("last")]).await.unwrap();
    group.stop().await.unwrap();
    (ledger, place)
}

/// Everything below `dir`.
fn contents<'a>(disk: &'a dyn Disk, dir: &'a Path) -> BoxFuture<'a, BTreeMap<PathBuf, Bytes>> {
    async move {
        let mut found = BTreeMap::new();
        for name in disk.list(dir).await.unwrap() {
            let path = dir.join(&name.name);
            if name.is_directory {
                found.extend(contents(disk, &path).await);
            } else {
                let file = disk.open(&path, Open::ToRead).await.unwrap();
                found.insert(path, file.read_at(0, name.len as usize).await.unwrap());
            }
        }
        found
    }
    .boxed()
}

async fn verify(place: &Place) -> Verification {
    let scratch = tempfile::tempdir().unwrap();
    let offline = Offline::open(&place.env, &place.options.dir).await.unwrap();
    offline.verify(Some(scratch.path()), &|_, _, _| {}).await.unwrap()
}

/// The only file in a directory, or the first.
async fn first_in(place: &Place, below: &str) -> String {
    let names = place.env.disk.list(&place.options.dir.join(below)).await.unwrap();
    format!("{below}/{}", names.first().expect("a file").name)
}

async fn flip(place: &Place, file: &str, offset: u64) {
    let file = place.env.disk.open(&place.options.dir.join(file), Open::Existing).await.unwrap();
    let byte = file.read_at(offset, 1).await.unwrap()[0];
    file.write_at(offset, &[Bytes::from(vec![byte ^ 0x10])]).await.unwrap();
}

#[tokio::test]
async fn a_clean_directory_is_read_whole_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (_, place) = left_behind(dir.path()).await;
    let before = contents(&*place.env.disk, &place.options.dir).await;
    let found = verify(&place).await;
    assert_eq!(found.findings, []);
    for kind in [Kind::Identity, Kind::HardState, Kind::Marks, Kind::Frames, Kind::SideFiles] {
        assert!(found.read[&kind].items > 0, "{kind:?}: {:?}", found.read);
    }
    for kind in [Kind::Images, Kind::KeyedRows, Kind::Units, Kind::Index] {
        assert!(found.read[&kind].items > 0, "{kind:?}: {:?}", found.read);
    }
    assert_eq!(found.read[&Kind::Units].items, 62);
    assert_eq!(found.applied, found.last, "it was stopped in good order");
    assert_eq!(contents(&*place.env.disk, &place.options.dir).await, before, "nothing was written");
}

#[tokio::test]
async fn a_directory_whose_node_runs_is_refused_and_so_is_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let place = Place::new(Env::real(), dir.path().join("node"), address, &[address]);
    let group = place.open().await;
    let refused = Offline::open(&place.env, &place.options.dir).await;
    assert!(matches!(refused, Err(OfflineError::Running { .. })), "{refused:?}");
    group.stop().await.unwrap();
    Offline::open(&place.env, &place.options.dir).await.unwrap();
    for other in [dir.path().to_owned(), dir.path().join("nothing")] {
        let refused = Offline::open(&place.env, &other).await;
        assert!(matches!(refused, Err(OfflineError::NotOne { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn each_kind_of_damage_is_named_with_its_place_and_what_happens_about_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_, place) = left_behind(dir.path()).await;
    let image = first_in(&place, "checkpoint").await;
    let part = first_in(&place, "index").await;
    let full = format!("commitlog/{:020}", 0);
    let side_file = format!("{full}.frames");
    let units = format!("consumequeue/{QUEUE}/{:020}", 0);
    let cases = [
        ("IDENTITY", 20, Kind::Identity, None, Remedy::Replace),
        ("hard-state/a", 40, Kind::HardState, Some(0), Remedy::Rewritten),
        ("hard-state/b", 122, Kind::HardState, Some(0), Remedy::Rewritten),
        (&full, 20, Kind::Marks, Some(0), Remedy::Rewritten),
        // The first frame's header.
        (&full, 8192 + 9, Kind::Frames, Some(8192), Remedy::Peers),
        (&side_file, 30, Kind::SideFiles, None, Remedy::Rewritten),
        (&image, 200, Kind::Images, None, Remedy::Rewritten),
        (&units, 10 * 32 + 3, Kind::Units, Some(320), Remedy::Rebuilt),
        (&part, 4096 + 100, Kind::Index, Some(4096), Remedy::Rebuilt),
    ];
    for (file, offset, kind, at, remedy) in cases {
        flip(&place, file, offset).await;
        let found = verify(&place).await;
        let [finding] = found.findings.as_slice() else { panic!("{file} at {offset}: {:?}", found.findings) };
        assert_eq!((finding.kind, finding.file.as_str(), finding.offset), (kind, file, at), "{finding:?}");
        assert_eq!(finding.remedy, remedy, "{finding:?}");
        assert_eq!(finding.physical_offset.is_some(), kind == Kind::Frames);
        flip(&place, file, offset).await;
    }
    assert_eq!(verify(&place).await.findings, []);

    // The keyed store, which is not ours to know a byte of; and what a caller knows to be beyond reading.
    let names = place.env.disk.list(&place.options.dir.join("state")).await.unwrap();
    let longest = names.iter().max_by_key(|name| name.len).expect("files");
    let path = place.options.dir.join("state").join(&longest.name);
    let file = place.env.disk.open(&path, Open::Existing).await.unwrap();
    let before = file.read_at(0, longest.len as usize).await.unwrap();
    file.write_at(0, &[Bytes::from(vec![0x5A; longest.len as usize])]).await.unwrap();
    let found = verify(&place).await;
    assert!(found.findings.iter().any(|found| found.kind == Kind::KeyedRows), "{:?}", found.findings);
    file.write_at(0, &[before]).await.unwrap();
    let offline = Offline::open(&place.env, &place.options.dir).await.unwrap();
    let found = offline.verify(None, &|_, _, _| {}).await.unwrap();
    let [finding] = found.findings.as_slice() else { panic!("{:?}", found.findings) };
    assert_eq!((finding.kind, finding.remedy), (Kind::KeyedRows, Remedy::Rebuilt));
}

/// Damage hides nothing of what lies behind it.
#[tokio::test]
async fn gaps_in_the_log_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (_, place) = left_behind(dir.path()).await;
    let (first, second) = (format!("commitlog/{:020}", 0), format!("commitlog/{SEGMENT_BYTES:020}"));
    let whole = verify(&place).await.read[&Kind::Frames];
    // A body in the first segment, a header and a body in the second.
    flip(&place, &first, 8192 + 100_000).await;
    let offline = Offline::open(&place.env, &place.options.dir).await.unwrap();
    let frames = offline.frames(0, 1000).await.unwrap();
    let in_second = |line: &&Line| match line {
        Line::Frame { frame, .. } => frame.physical_offset.0 > SEGMENT_BYTES + 50_000,
        Line::Gap { .. } => false,
    };
    let Some(Line::Frame { frame, .. }) = frames.iter().find(in_second) else { panic!("{frames:?}") };
    let header = frame.physical_offset.0;
    drop(offline);
    flip(&place, &second, 8192 + header - SEGMENT_BYTES + 17).await;
    flip(&place, &second, 8192 + 200_000).await;
    let found = verify(&place).await;
    let places: Vec<(&str, Kind)> = found.findings.iter().map(|found| (found.file.as_str(), found.kind)).collect();
    assert_eq!(places, [(&*first, Kind::Frames), (&*second, Kind::Frames), (&*second, Kind::Frames)]);
    assert_eq!(found.findings[1].physical_offset.unwrap().0, header);
    assert_eq!(found.read[&Kind::Frames].items, whole.items - 3);
    assert!(found.findings.iter().all(|finding| finding.remedy == Remedy::Peers));

    place.env.disk.remove_file(&place.options.dir.join(&second)).await.unwrap();
    let found = verify(&place).await;
    assert!(found.findings.iter().any(|found| found.what.contains("missing")), "{:?}", found.findings);
    assert!(found.last.is_some(), "the segments behind it were read");
}

/// Without either copy of its vote a replica is gone; without the marks and the end of the log too.
#[tokio::test]
async fn what_only_a_new_replica_can_mend_is_said_to_be_so() {
    let dir = tempfile::tempdir().unwrap();
    let (_, place) = left_behind(dir.path()).await;
    let last = verify(&place).await.last.unwrap();
    for copy in ["hard-state/a", "hard-state/b"] {
        flip(&place, copy, 33).await;
    }
    let replace = |findings: &[Finding]| findings.iter().any(|found| found.remedy == Remedy::Replace);
    let found = verify(&place).await;
    assert!(replace(&found.findings), "{:?}", found.findings);
    for copy in ["hard-state/a", "hard-state/b"] {
        flip(&place, copy, 33).await;
    }
    // The last segment as if nothing had ever been written to it, although derived files reach into it.
    let segments = place.env.disk.list(&place.options.dir.join("commitlog")).await.unwrap();
    let offline = Offline::open(&place.env, &place.options.dir).await.unwrap();
    let Some(Line::Frame { frame, .. }) = offline.frames(last.index, 1).await.unwrap().pop() else { panic!("{last}") };
    drop(offline);
    let first = frame.physical_offset.0 / SEGMENT_BYTES * SEGMENT_BYTES;
    for name in segments.iter().filter(|name| name.len > SEGMENT_BYTES && name.name >= format!("{first:020}")) {
        let path = place.options.dir.join("commitlog").join(&name.name);
        let file = place.env.disk.open(&path, Open::Existing).await.unwrap();
        file.write_zeros(0, name.len).await.unwrap();
    }
    let found = verify(&place).await;
    let frames: Vec<&Finding> = found.findings.iter().filter(|found| found.kind == Kind::Frames).collect();
    let [lost] = frames.as_slice() else { panic!("{frames:?}") };
    assert_eq!(lost.remedy, Remedy::Replace, "{lost:?}");
}

#[tokio::test]
async fn frames_units_and_rows_are_shown_as_they_lie() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, place) = left_behind(dir.path()).await;
    let offline = Offline::open(&place.env, &place.options.dir).await.unwrap();
    let all = offline.frames(0, 1000).await.unwrap();
    let ids: Vec<LogId> = all
        .iter()
        .map(|line| match line {
            Line::Frame { frame, .. } => frame.id,
            Line::Gap { .. } => panic!("{line:?}"),
        })
        .collect();
    assert!(ids.iter().enumerate().all(|(index, id)| id.index == index as u64), "{ids:?}");
    // From the middle, wherever segments begin.
    for from in [1, 20, 41, ids.len() - 1] {
        let some = offline.frames(from as u64, 5).await.unwrap();
        let some: Vec<LogId> = some
            .iter()
            .map(|line| match line {
                Line::Frame { frame, .. } => frame.id,
                Line::Gap { .. } => panic!("{line:?}"),
            })
            .collect();
        assert_eq!(some, ids[from..ids.len().min(from + 5)]);
    }
    let units = offline.units(QUEUE, QueueOffset(0), 1000).await.unwrap();
    assert_eq!(units.len(), 62);
    for (queue_offset, (physical_offset, _)) in &ledger.acknowledged {
        let unit = units[queue_offset.0 as usize].1.expect("whole");
        assert_eq!(unit.physical_offset, *physical_offset);
    }
    let some = offline.units(QUEUE, QueueOffset(60), 1000).await.unwrap();
    assert_eq!(some, units[60..]);

    let scratch = tempfile::tempdir().unwrap();
    let (applied, rows) = offline.rows(scratch.path()).await.unwrap();
    assert_eq!(applied, ids.last().copied());
    let tables: Vec<&str> =
        rows.iter().filter_map(|(key, value)| describe_row(key, value)).map(|(table, _, _)| table).collect();
    for table in ["group", "membership", "queue", "segment-clock"] {
        assert!(tables.contains(&table), "{tables:?}");
    }
}

//! A replica finds its log damaged where it was durable: it fetches what is missing from the others before it takes part
//! again. Nothing acknowledged may be lost, nothing may be cut, and where that cannot be had it must refuse.

use std::time::Duration;

use bytes::Bytes;
use env::disk::Open;
use futures::future::join_all;
use raft_store::group::{OpenError, Role};
use raft_store::offline::Offline;
use raft_store::position::PhysicalOffset;
use raft_store::repair::{RepairError, Repaired};

use crate::faults::linked;
use crate::three::Three;
use crate::world::{Ledger, Place, QUEUE, record, within};

/// Small segments, so that some are full.
const SEGMENT_BYTES: u64 = 256 << 10;

fn with_small_segments(mut places: Vec<Place>) -> Vec<Place> {
    for place in &mut places {
        place.options.segment_bytes = SEGMENT_BYTES;
        (place.options.log.max_entry_bytes, place.options.log.prepare_piece_bytes) = (64 << 10, 64 << 10);
        place.options.log.tail_bytes = 0;
    }
    places
}

/// Three members whose logs hold `count` records, all of them on each.
async fn holding(count: usize, places: Vec<Place>) -> (Three, Ledger) {
    let three = Three::open(places).await;
    let mut ledger = Ledger::default();
    send_some(&three, &mut ledger, "before", count).await;
    three.converge().await;
    (three, ledger)
}

async fn send_some(three: &Three, ledger: &mut Ledger, what: &str, count: usize) {
    let leader = three.leader().await;
    for number in 0..count {
        let text = format!("{what}-{number}-{}", "x".repeat(8 << 10));
        ledger.send(three.group(leader), &text).await.unwrap();
    }
}

/// Where entry `index` lies, and its first segment.
async fn place_of(place: &Place, index: u64) -> PhysicalOffset {
    let offline = Offline::open(&place.env, &place.options.dir).await.unwrap();
    match offline.frames(index, 1).await.unwrap().pop() {
        Some(raft_store::offline::Line::Frame { frame, .. }) => frame.physical_offset,
        other => panic!("{other:?}"),
    }
}

fn segment_of(at: PhysicalOffset) -> (String, u64) {
    let first = at.0 / SEGMENT_BYTES * SEGMENT_BYTES;
    (format!("commitlog/{first:020}"), at.0 - first + 8192)
}

/// Turns a bit `behind` bytes behind the start of entry `index`'s frame.
async fn damage(place: &Place, index: u64, behind: u64) {
    let (file, offset) = segment_of(place_of(place, index).await);
    flip(place, &file, offset + behind).await;
}

async fn flip(place: &Place, file: &str, offset: u64) {
    let file = place.env.disk.open(&place.options.dir.join(file), Open::Existing).await.unwrap();
    let byte = file.read_at(offset, 1).await.unwrap()[0];
    file.write_at(offset, &[Bytes::from(vec![byte ^ 4])]).await.unwrap();
    file.sync_data().await.unwrap();
}

async fn commitlog(place: &Place) -> Vec<Bytes> {
    let dir = place.options.dir.join("commitlog");
    let mut contents = Vec::new();
    for name in place.env.disk.list(&dir).await.unwrap() {
        let file = place.env.disk.open(&dir.join(&name.name), Open::ToRead).await.unwrap();
        contents.push(file.read_at(0, name.len as usize).await.unwrap());
    }
    contents
}

async fn is_clean(place: &Place) {
    let scratch = tempfile::tempdir().unwrap();
    let offline = Offline::open(&place.env, &place.options.dir).await.unwrap();
    assert_eq!(offline.verify(Some(scratch.path()), &|_, _, _| {}).await.unwrap().findings, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_made_whole_from_the_peers_wherever_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (mut three, mut ledger) = holding(80, with_small_segments(Three::places(dir.path()))).await;
    let last = three.group(0).status().last.unwrap().index;
    let (full, open) = (5, last - 1);

    // The leader: headers and bodies, in a full segment and in the one in use, two of them side by side.
    let leader = three.leader().await;
    three.kill(leader).await;
    let place = three.places[leader].clone();
    let mut places = Vec::new();
    for (index, behind) in [(full, 17), (full + 1, 100), (full + 9, 5000), (open, 70), (30, 40)] {
        places.push((place_of(&place, index).await, behind));
    }
    for (at, behind) in places {
        let (file, offset) = segment_of(at);
        flip(&place, &file, offset + behind).await;
    }
    send_some(&three, &mut ledger, "meanwhile", 10).await;
    three.start(leader).await;
    let repaired = three.group(leader).status().repaired;
    assert!((repaired.gaps, repaired.frames) == (4, 5) && repaired.bytes > 5 * 8192, "{repaired:?}");
    three.converge().await;
    three.check(&ledger).await;

    // A follower: a whole segment is gone.
    let follower = (three.leader().await + 1) % 3;
    three.kill(follower).await;
    let place = three.places[follower].clone();
    let (first, _) = segment_of(PhysicalOffset(SEGMENT_BYTES));
    place.env.disk.remove_file(&place.options.dir.join(first)).await.unwrap();
    three.start(follower).await;
    let repaired = three.group(follower).status().repaired;
    assert_eq!((repaired.gaps, repaired.bytes), (1, SEGMENT_BYTES));
    three.converge().await;
    three.check(&ledger).await;

    // What a start would not look at, because nothing there is needed, is repaired if somebody asks for it.
    three.kill(follower).await;
    damage(&place, full, 300).await;
    let note = place.env.disk.open(&place.options.dir.join("repair"), Open::New).await.unwrap();
    note.sync_data().await.unwrap();
    three.start(follower).await;
    assert_eq!(three.group(follower).status().repaired.frames, 1);
    three.converge().await;

    let places = three.places.clone();
    three.stop().await;
    for place in &places {
        is_clean(place).await;
    }
    // And a start that finds nothing says so.
    let three = Three::open(places).await;
    assert!(three.running().all(|(_, group)| group.status().repaired == Repaired::default()));
    three.check(&ledger).await;
    three.stop().await;
}

/// A bad sector under several small frames: of a page that cannot be read no part can be written, so that they must be
/// mended together.
#[tokio::test]
async fn a_page_that_cannot_be_read_is_mended_with_all_frames_in_it() {
    let mut three = Three::open(with_small_segments(Three::simulated_places(71))).await;
    let mut ledger = Ledger::default();
    for number in 0..400 {
        let leader = three.leader().await;
        ledger.send(three.group(leader), &format!("{number}-{}", "x".repeat(900))).await.unwrap();
    }
    three.converge().await;
    let follower = (three.leader().await + 1) % 3;
    three.kill(follower).await;
    let place = three.places[follower].clone();
    let disk = place.disk.as_ref().unwrap();
    let (file, offset) = segment_of(place_of(&place, 40).await);
    let page = offset / 4096 * 4096;
    disk.fail_reads(place.options.dir.join(file), page..page + 2 * 4096);
    let note = place.env.disk.open(&place.options.dir.join("repair"), Open::New).await.unwrap();
    note.sync_data().await.unwrap();
    three.start(follower).await;
    let repaired = three.group(follower).status().repaired;
    assert!(repaired.gaps == 1 && repaired.frames > 4, "{repaired:?}");
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// A replica reads rot while it runs: it stops, and its next start repairs what a start alone would not have found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_that_a_reader_finds_is_repaired_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (mut three, ledger) = holding(60, with_small_segments(Three::places(dir.path()))).await;
    let rotten = (three.leader().await + 1) % 3;
    let place = three.places[rotten].clone();
    three.groups[rotten].take().unwrap().stop().await.unwrap();
    damage(&place, 6, 200).await;
    // The segment is full and all of it is applied: a start does not read it.
    three.start(rotten).await;
    assert_eq!(three.group(rotten).status().repaired, Repaired::default());
    let group = three.group(rotten).clone();
    let (at, text) = ledger.acknowledged.values().nth(3).unwrap().clone();
    let mut role = group.role();
    // One of the first entries has the damaged frame; a reader comes to it.
    let mut found = false;
    for (at, text) in ledger.acknowledged.values().take(10).chain([&(at, text)]) {
        found |= group.reader().record(*at, text.len() as u32).await.is_err();
    }
    assert!(found, "the reader shows nothing of it");
    let stopped = role.wait_for(|role| matches!(role, Role::Stopped { reason: Some(_) }));
    within(&place.env, 10, "it stops", stopped).await.unwrap();
    group.stop().await.unwrap_err();
    three.groups[rotten] = None;
    drop(group);
    three.start(rotten).await;
    assert_eq!(three.group(rotten).status().repaired.frames, 1);
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// Starts a member; the scrubber finds something and stops it; the next start is there to mend that.
async fn start_again_when_the_scrubber_has_stopped_it(three: &mut Three, rotten: usize) {
    three.start(rotten).await;
    let group = three.group(rotten).clone();
    let mut role = group.role();
    let stopped = role.wait_for(|role| matches!(role, Role::Stopped { reason: Some(_) }));
    within(&three.places[rotten].env, 20, "it stops", stopped).await.unwrap();
    assert_eq!(group.status().scrubbed.findings, 1);
    three.groups[rotten] = None;
    group.kill().await;
    drop(group);
    three.start(rotten).await;
}

/// Nobody reads what is damaged but the scrubber.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_that_nobody_reads_is_found_by_the_scrubber() {
    let dir = tempfile::tempdir().unwrap();
    let mut places = with_small_segments(Three::places(dir.path()));
    places.iter_mut().for_each(|place| place.options.scrub_bytes_per_s = 64 << 20);
    let (mut three, ledger) = holding(70, places).await;
    let rotten = (three.leader().await + 1) % 3;
    let place = three.places[rotten].clone();
    three.groups[rotten].take().unwrap().stop().await.unwrap();
    let last = place_of(&place, 60).await;
    // A whole round over what is whole, up to the end of the last full segment.
    three.start(rotten).await;
    let full = last.0 / SEGMENT_BYTES * SEGMENT_BYTES;
    let group = three.group(rotten).clone();
    let whole_round = async {
        while group.status().scrubbed.rounds == 0 {
            place.env.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    within(&place.env, 20, "a round", whole_round).await;
    let scrubbed = group.status().scrubbed;
    assert!(scrubbed.bytes >= full && scrubbed.findings == 0, "{scrubbed:?} of {full}");
    three.groups[rotten] = None;
    group.stop().await.unwrap();
    drop(group);

    damage(&place, 45, 3000).await;
    start_again_when_the_scrubber_has_stopped_it(&mut three, rotten).await;
    assert_eq!(three.group(rotten).status().repaired.frames, 1);
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// Nor does anybody read the damaged unit of a queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_that_nobody_reads_is_found_by_the_scrubber_and_the_queue_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let mut places = with_small_segments(Three::places(dir.path()));
    places.iter_mut().for_each(|place| place.options.scrub_bytes_per_s = 64 << 20);
    let (mut three, ledger) = holding(40, places).await;
    let rotten = (three.leader().await + 1) % 3;
    let place = three.places[rotten].clone();
    three.groups[rotten].take().unwrap().stop().await.unwrap();
    flip(&place, &format!("consumequeue/{QUEUE}/{:020}", 0), 17 * 32 + 9).await;
    start_again_when_the_scrubber_has_stopped_it(&mut three, rotten).await;
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
    is_clean(&place).await;
}

/// Derived state was not durable, so the start itself has to read what is damaged, after the log was found to be in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_that_a_start_finds_late_is_repaired_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut three, ledger) = holding(60, with_small_segments(Three::places(dir.path()))).await;
    let rotten = (three.leader().await + 1) % 3;
    let place = three.places[rotten].clone();
    three.kill(rotten).await;
    damage(&place, 6, 200).await;
    // openraft may meet it while it starts, or apply may right after.
    match place.try_open().await {
        Err(OpenError::Rot(_)) => {}
        Err(error) => panic!("{error}"),
        Ok(group) => {
            let mut role = group.role();
            let stopped = role.wait_for(|role| matches!(role, Role::Stopped { reason: Some(_) }));
            within(&place.env, 10, "it stops", stopped).await.unwrap();
            group.kill().await;
        }
    }
    three.start(rotten).await;
    assert_eq!(three.group(rotten).status().repaired.frames, 1);
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// Nobody is there to give anything: the replica waits, does not serve, and changes nothing of its log. As soon as a
/// majority of the others is there, it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_replica_waits_for_its_peers() {
    let dir = tempfile::tempdir().unwrap();
    let (three, ledger) = holding(40, with_small_segments(Three::places(dir.path()))).await;
    let damaged = three.leader().await;
    let places = three.places.clone();
    three.stop().await;
    let last = {
        let offline = Offline::open(&places[damaged].env, &places[damaged].options.dir).await.unwrap();
        offline.frames(0, usize::MAX).await.unwrap().len() as u64 - 1
    };
    damage(&places[damaged], last - 3, 100).await;
    let before = commitlog(&places[damaged]).await;
    let alone = places[damaged].env.clock.timeout(Duration::from_secs(2), places[damaged].try_open()).await;
    assert!(alone.is_none(), "it is not open: {:?}", alone.map(|opened| opened.err()));
    let is_free = async {
        while Offline::open(&places[damaged].env, &places[damaged].options.dir).await.is_err() {
            places[damaged].env.clock.sleep(Duration::from_millis(10)).await;
        }
    };
    within(&places[damaged].env, 10, "the one that waited has ended", is_free).await;
    assert_eq!(commitlog(&places[damaged]).await, before);

    let three = Three::open(places).await;
    assert_eq!(three.group(damaged).status().repaired.frames, 1);
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

/// What is damaged was never committed, and the others have something else there by now: nothing can be fetched, and
/// nothing may be cut.
#[tokio::test]
async fn damage_beyond_what_is_committed_is_refused_and_never_cut() {
    crate::world::log_if_asked();
    let (mut three, links) = linked(161).await;
    let mut ledger = Ledger::default();
    let first = three.leader().await;
    for number in 0..10 {
        ledger.send(three.group(first), &format!("before-{number}")).await.unwrap();
    }
    three.converge().await;
    let deposed = three.group(first).clone();
    links.cut(deposed.node());
    let last = deposed.status().last.unwrap();
    let doomed = tokio::spawn({
        let group = deposed.clone();
        async move { group.propose(vec![record("doomed")]).await }
    });
    let place = three.places[first].clone();
    within(&place.env, 10, "it is durable in its log", deposed.log().wait_synced(last.index + 1)).await.unwrap();
    // In good order, so that the mark says so too.
    let _ = deposed.log().close().await;
    drop(deposed);
    three.kill(first).await;
    let _ = doomed.await;
    let second = three.leader().await;
    ledger.send(three.group(second), "after").await.unwrap();

    let at = place_of(&place, last.index + 1).await;
    flip(&place, &format!("commitlog/{:020}", 0), at.0 + 8192 + 64).await;
    let before = commitlog(&place).await;
    links.heal();
    let refused = within(&place.env, 20, "it refuses", place.try_open()).await.err();
    let Some(OpenError::Repair(RepairError::DoesNotJoin { physical_offset, .. })) = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(*physical_offset, at);
    assert!(refused.unwrap().to_string().contains("replaceNode"));
    assert_eq!(commitlog(&place).await, before);
    three.check(&ledger).await;
    three.stop().await;
}

/// The end of the log is gone, marks and all: whatever was acknowledged there nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lost_its_tail_is_to_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut three, ledger) = holding(60, with_small_segments(Three::places(dir.path()))).await;
    let lost = (three.leader().await + 1) % 3;
    let place = three.places[lost].clone();
    three.groups[lost].take().unwrap().stop().await.unwrap();
    let last = place_of(&place, 55).await;
    let (first, _) = segment_of(last);
    let names = place.env.disk.list(&place.options.dir.join("commitlog")).await.unwrap();
    for name in names.iter().filter(|name| name.len > SEGMENT_BYTES && format!("commitlog/{}", name.name) >= first) {
        let path = place.options.dir.join("commitlog").join(&name.name);
        let file = place.env.disk.open(&path, Open::Existing).await.unwrap();
        file.write_zeros(0, name.len).await.unwrap();
        file.sync_data().await.unwrap();
    }
    let before = commitlog(&place).await;
    let refused = within(&place.env, 20, "it refuses", place.try_open()).await.err();
    let Some(OpenError::Repair(RepairError::TailLost { .. })) = &refused else { panic!("{refused:?}") };
    assert!(refused.unwrap().to_string().contains("replaceNode"));
    assert_eq!(commitlog(&place).await, before);
    join_all(three.running().map(|(_, group)| ledger.check(group))).await;
    three.stop().await;
}

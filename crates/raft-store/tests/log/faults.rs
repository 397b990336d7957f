//! Single faults, each with its own story: a torn frame at every length, leftovers of other histories, syncs that fail,
//! bits that flip, files that vanish.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use env::disk::Open;
use env::disk::simulated::{Operation, SimDisk};
use env::{Clock, Disk, Env, Rng};
use futures::FutureExt;
use parking_lot::Mutex;
use raft_store::log::segment::Mark;
use raft_store::log::{AppendEntry, AppendError, Boundary, Cursor, Log, LogOptions, OpenError, Vote};
use raft_store::position::{LogId, PhysicalOffset};

use super::world::*;

const HEAD_BYTES: usize = 8192;

fn id(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

fn segment_path(first: u64) -> PathBuf {
    Path::new(DIR).join(format!("commitlog/{first:020}"))
}

fn hard_state_path(copy: &str) -> PathBuf {
    Path::new(DIR).join("hard-state").join(copy)
}

/// One big segment, prepared at once.
fn one_segment() -> LogOptions {
    LogOptions { segment_bytes: 1 << 20, prepare_piece_bytes: 1 << 20, ..small() }
}

/// A disk with these files, durable.
fn disk_with(files: &BTreeMap<PathBuf, Bytes>) -> SimDisk {
    let disk = SimDisk::new(Rng::seeded(0));
    let made = async {
        for (path, bytes) in files {
            let directory = path.parent().expect("a file has a directory");
            disk.create_dir_all(directory).await?;
            let file = disk.open(path, Open::New).await?;
            file.write_at(0, std::slice::from_ref(bytes)).await?;
            file.sync_data().await?;
            for directory in directory.ancestors() {
                disk.sync_dir(directory).await?;
            }
        }
        Ok::<_, io::Error>(())
    };
    made.now_or_never().expect("a disk without latency does not wait").expect("made");
    disk
}

/// Changes bytes of a file in a dump.
fn edit(files: &mut BTreeMap<PathBuf, Bytes>, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = files[path].to_vec();
    change(&mut bytes);
    files.insert(path.to_owned(), Bytes::from(bytes));
}

/// The entries of an open log. Shows itself in one line.
#[derive(PartialEq, Eq)]
struct Entries(Vec<(LogId, Bytes)>);

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} entries to {:?}", self.0.len(), self.0.last().map(|(id, _)| *id))
    }
}

/// What an open log shows, or why it does not open.
fn recover(disk: &SimDisk, options: &LogOptions, floor: Option<LogId>) -> Result<Entries, OpenError> {
    simulate(async {
        let env = Env::simulated(0, disk.clone());
        let log = Log::open(env, PathBuf::from(DIR), options.clone(), floor).await?;
        Ok(Entries(bodies(&log, 1000).await?))
    })
}

/// A log whose entries were each acknowledged before the next, killed before the writer was idle: the mark speaks of all
/// but the last. Returns the files, and where the frames start and end.
fn killed_log(options: &LogOptions, sizes: &[usize]) -> (BTreeMap<PathBuf, Bytes>, Vec<u64>) {
    let disk = disk(1);
    let offsets = simulate(async {
        let log = open(&disk, options.clone()).await.expect("opens");
        let mut offsets = Vec::new();
        for (index, bytes) in sizes.iter().enumerate() {
            offsets.push(append(&log, vec![entry(1, index as u64, *bytes)]).await.expect("appended")[0].0);
        }
        offsets.push(log.tip().end.physical_offset.0);
        offsets
    });
    disk.process_kill();
    (disk.dump(), offsets)
}

fn expected(sizes: &[usize]) -> Entries {
    let entries = sizes.iter().enumerate().map(|(index, bytes)| entry(1, index as u64, *bytes));
    Entries(entries.map(|entry| (entry.id, entry.body)).collect())
}

#[test]
fn a_last_frame_torn_at_any_byte_is_cut_off() {
    let sizes = [100, 30, 250, 333];
    let options = LogOptions { prepare_piece_bytes: 512, ..small() };
    let (files, offsets) = killed_log(&options, &sizes);
    let (start, body_end) = (offsets[3] as usize + HEAD_BYTES, offsets[3] as usize + HEAD_BYTES + 64 + sizes[3]);
    for garbage in [0x00, 0xff] {
        for kept in start..=body_end {
            let mut torn = files.clone();
            edit(&mut torn, &segment_path(0), |bytes| bytes[kept..].fill(garbage));
            let disk = disk_with(&torn);
            let found = recover(&disk, &options, None).expect("opens");
            let whole = kept == body_end && garbage == 0;
            assert_eq!(
                found,
                expected(&sizes[..if whole { 4 } else { 3 }]),
                "torn after {} bytes, then {garbage}",
                kept - start
            );
            // Nothing is left of it.
            let end = if whole { offsets[4] } else { offsets[3] } as usize + HEAD_BYTES;
            assert!(disk.dump()[&segment_path(0)][end..].iter().all(|byte| *byte == 0));
        }
    }
}

/// The next frames of another history lie right where the log ends: their index, term and place would fit.
#[test]
pub fn frames_of_another_history_are_not_taken_up() {
    let sizes = [100; 10];
    let options = one_segment();
    let disk = disk(2);
    let (before, after, cut) = simulate(async {
        let log = open(&disk, options.clone()).await.expect("opens");
        for (index, bytes) in sizes.iter().enumerate() {
            append(&log, vec![entry(1, index as u64, *bytes)]).await.expect("appended");
        }
        let before = disk.dump();
        log.truncate_after(Some(4)).await.expect("cut");
        // The same terms, indices and lengths, but other bytes.
        for index in 5..7 {
            let other = entry_with(id(1, index), raft_store::log::Kind::Entry, body(id(1, index), 99, 100));
            append(&log, vec![other]).await.expect("appended");
        }
        (before, disk.dump(), log.tip().end.physical_offset.0 as usize + HEAD_BYTES)
    });
    let mut mixed = after;
    edit(&mut mixed, &segment_path(0), |bytes| bytes[cut..].copy_from_slice(&before[&segment_path(0)][cut..]));
    let disk = disk_with(&mixed);
    let found = recover(&disk, &options, None).expect("opens");
    assert_eq!(found.0.len(), 7);
    assert_eq!(found.0[6].1, body(id(1, 6), 99, 100));
    assert!(disk.dump()[&segment_path(0)][cut..].iter().all(|byte| *byte == 0), "the leftovers are gone");
}

/// A file was used for the first segment, and is now, not emptied, the end of the newest one and all of the next: whole
/// frames, and a mark, that speak of other places.
#[test]
pub fn frames_of_a_recycled_segment_are_not_taken_up() {
    let sizes = [900; 20];
    let (mut files, offsets) = killed_log(&small(), &sizes);
    assert_eq!(offsets[20] / 8192, 2, "three segments are in use");
    let recycled = files[&segment_path(0)].clone();
    let end = (offsets[20] % 8192) as usize + HEAD_BYTES;
    edit(&mut files, &segment_path(16384), |bytes| bytes[end..].copy_from_slice(&recycled[end..]));
    files.insert(segment_path(24576), recycled);
    let disk = disk_with(&files);
    assert_eq!(recover(&disk, &small(), None).expect("opens"), expected(&sizes));
    simulate(async {
        let log = open(&disk, small()).await.expect("opens");
        for index in 20..30 {
            append(&log, vec![entry(1, index, 900)]).await.expect("appended");
        }
    });
    disk.process_kill();
    assert_eq!(recover(&disk, &small(), None).expect("opens"), expected(&[900; 30]));
}

#[test]
pub fn a_bit_flipped_in_what_was_durable_is_corruption_and_never_cut() {
    let sizes = [100, 30, 250, 0, 333, 77];
    let options = LogOptions { prepare_piece_bytes: 512, ..small() };
    let (files, offsets) = killed_log(&options, &sizes);
    let (mark, end) = (offsets[5], offsets[6]);
    for at in 0..end {
        let mut flipped = files.clone();
        edit(&mut flipped, &segment_path(0), |bytes| bytes[at as usize + HEAD_BYTES] ^= 1 << (at % 8));
        let disk = disk_with(&flipped);
        let found = recover(&disk, &options, None);
        if at < mark {
            let Err(OpenError::Corrupt { physical_offset, .. }) = found else {
                panic!("bit flipped at {at}, below the mark {mark}: {found:?}");
            };
            assert!(physical_offset.0 <= at, "blamed {physical_offset}, flipped {at}");
            // Nothing was changed but what was there to be repaired.
            assert_eq!(disk.dump(), flipped);
        } else {
            assert_eq!(found.expect("opens"), expected(&sizes[..5]), "bit flipped at {at}, beyond the mark {mark}");
        }
    }
}

/// Deep below the mark a start does not look; whoever reads does.
#[test]
fn a_bit_flipped_in_old_segments_is_found_by_reading() {
    simulate(async {
        let options = LogOptions { tail_bytes: 0, ..one_segment() };
        let disk = disk(3);
        let log = open(&disk, options.clone()).await.expect("opens");
        let mut offsets = Vec::new();
        for index in 0..900 {
            offsets.push(append(&log, vec![entry(1, index, 2900)]).await.expect("appended")[0]);
        }
        log.close().await.expect("closes");
        let path = segment_path(0);
        disk.flip_bit(&path, offsets[10].0 + HEAD_BYTES as u64 + 64 + 5, 3);
        let log = open(&disk, options.clone()).await.expect("opens");
        let error = log.read(10..11, 1).await.expect_err("the body is damaged");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        let error = log.record(PhysicalOffset(offsets[10].0 + 64 + 100), 10).expect_err("the body is damaged");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        let ahead = log.read(0..20, 1 << 20).await;
        assert!(ahead.is_err(), "a read across the damage: {ahead:?}");
        assert_eq!(log.read(11..12, 1).await.expect("the next is fine").len(), 1);
    });
}

/// A sector that was durable and cannot be read any more is rot, not a torn tail; one in a mark has a neighbour.
#[test]
fn what_cannot_be_read_is_corruption() {
    let sizes = [900; 5];
    let (files, offsets) = killed_log(&one_segment(), &sizes);
    for offset in &offsets[..5] {
        let disk = disk_with(&files);
        let at = offset + HEAD_BYTES as u64 + 70;
        disk.fail_reads(segment_path(0), at..at + 1);
        let result = recover(&disk, &one_segment(), None);
        assert!(matches!(result, Err(OpenError::Corrupt { .. })), "unreadable at {at}: {result:?}");
    }
    for slot in [0, 4096] {
        let disk = disk_with(&files);
        disk.fail_reads(segment_path(0), slot..slot + 512);
        assert_eq!(recover(&disk, &one_segment(), None).expect("opens"), expected(&sizes));
    }
}

/// Behind the end of the log, where the files are only prepared, nothing is lost with a bad sector: it is written anew.
#[test]
fn what_cannot_be_read_behind_the_end_is_no_loss() {
    let sizes = [900; 5];
    let (files, offsets) = killed_log(&one_segment(), &sizes);
    let disk = disk_with(&files);
    let at = offsets[5] + HEAD_BYTES as u64 + (64 << 10);
    disk.fail_reads(segment_path(0), at..at + 4096);
    assert_eq!(recover(&disk, &one_segment(), None).expect("opens"), expected(&sizes));
    let read = async {
        let file = disk.open(&segment_path(0), Open::ToRead).await?;
        file.read_at(at, 4096).await
    };
    let read = read.now_or_never().expect("a disk without latency does not wait").expect("it can be read again");
    assert!(read.iter().all(|byte| *byte == 0));
}

/// Somebody wants what a bad sector held, long after the start: an error, of which the whole replica hears, so that it stops
/// and its next start repairs.
#[test]
fn what_cannot_be_read_any_more_is_corruption_to_whoever_reads_it() {
    let (files, offsets) = killed_log(&one_segment(), &[900; 5]);
    let options = LogOptions { tail_bytes: 0, ..one_segment() };
    for within in [10, 70] {
        let disk = disk_with(&files);
        simulate(async {
            let log = open(&disk, options.clone()).await.expect("opens");
            let at = offsets[2] + HEAD_BYTES as u64 + within;
            disk.fail_reads(segment_path(0), at..at + 1);
            let error = log.record(PhysicalOffset(offsets[2] + 64), 10).expect_err("it cannot be read");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert!(log.corruption().borrow().as_ref().is_some_and(|found| found.contains("the disk cannot read it")));
        });
    }
}

/// The disk writes a group to another place and says it is done. Whoever reads the right place notices, and so does a
/// start once a mark speaks of the group.
#[test]
fn a_misdirected_write_is_noticed() {
    let disk = disk(18);
    let options = LogOptions { tail_bytes: 0, max_entry_bytes: 10_000, ..one_segment() };
    simulate(async {
        let log = open(&disk, options.clone()).await.expect("opens");
        append(&log, vec![entry(1, 0, 500), entry(1, 1, 500)]).await.expect("appended");
        disk.misdirect_write(segment_path(0), 1, segment_path(0), 500_000);
        // Longer than a page: the page that the log ends in is written again with the next group, and so made whole.
        append(&log, vec![entry(1, 2, 9000)]).await.expect("the disk says so");
        log.read(2..3, 1).await.expect_err("it is not there");
        append(&log, vec![entry(1, 3, 500)]).await.expect("appended");
    });
    disk.process_kill();
    let result = recover(&disk, &options, None);
    assert!(matches!(result, Err(OpenError::Corrupt { .. })), "{result:?}");
}

/// Opens a log on `disk`, damages the next call with `damage`, and checks that the log is poisoned for good.
async fn check_poison(disk: &SimDisk, damage: impl FnOnce(&SimDisk), ask: impl AsyncFnOnce(&Log) -> io::Result<()>) {
    let log = open(disk, small()).await.expect("opens");
    append(&log, vec![entry(1, 0, 100)]).await.expect("appended");
    damage(disk);
    ask(&log).await.expect_err("the disk failed");
    assert!(log.is_poisoned());
    // The disk works again, but nobody can know what it has kept.
    disk.heal();
    let (done, finished) = done();
    assert!(matches!(log.append(vec![entry(1, 9, 100)], done), Err(AppendError::Stopped(_))));
    finished.await.expect("the callback runs all the same").expect_err("with an error");
    log.save_vote(Vote { term: 9, node_id: None, committed: false }).await.expect_err("no vote either");
    log.wait_synced(500).await.expect_err("nothing more becomes durable");
    log.close().await.expect_err("it did not end well");
    disk.crash_keeping(|_| false);
    let log = open(disk, small()).await.expect("opens after a restart");
    assert!(log.last().is_some_and(|last| last.index < 500), "what was acknowledged is there: {:?}", log.last());
}

#[test]
fn a_failed_sync_or_write_is_final() {
    let segments = Path::new(DIR).join("commitlog");
    let votes = Path::new(DIR).join("hard-state");
    let vote = Vote { term: 3, node_id: Some(1), committed: false };
    simulate(async {
        let ask_append = async |log: &Log| append(log, vec![entry(1, 1, 100)]).await.map(|_| ());
        check_poison(&disk(1), |disk| disk.fail_sync(segment_path(0), 1), ask_append).await;
        check_poison(&disk(2), |disk| disk.fail_write(segment_path(0), 1), ask_append).await;
        for nth in [1, 2] {
            check_poison(&disk(3), |disk| disk.fail_sync(&votes, nth), async |log| log.save_vote(vote).await).await;
            check_poison(&disk(4), |disk| disk.fail_write(&votes, nth), async |log| log.save_vote(vote).await).await;
        }
        check_poison(&disk(5), |disk| disk.fail_sync(&segments, 1), async |log| log.truncate_after(None).await).await;
        check_poison(&disk(6), |disk| disk.fail_sync(&votes, 1), async |log| log.purge(id(1, 0)).await).await;
    });
}

/// Appends, votes, a cut and a purge. Everything below `acknowledged` is durable, however this ends.
async fn everyday(disk: &SimDisk, acknowledged: &mut u64) -> Result<(), String> {
    let log = open(disk, small()).await.map_err(|error| error.to_string())?;
    let text = |error: io::Error| error.to_string();
    for round in 0..8 {
        for _ in 0..3 {
            append(&log, vec![entry(1, *acknowledged, 700)]).await.map_err(text)?;
            *acknowledged += 1;
        }
        log.save_vote(Vote { term: round, node_id: Some(1), committed: false }).await.map_err(text)?;
        if round == 3 {
            *acknowledged -= 2;
            log.truncate_after(Some(*acknowledged - 1)).await.map_err(text)?;
        }
        if round == 5 {
            log.purge(id(1, 9)).await.map_err(text)?;
        }
    }
    log.close().await.map_err(text)
}

/// Each sync of a log's everyday life fails once. Nobody tries it again, and what was acknowledged by then is there.
#[test]
pub fn whichever_sync_fails_is_not_retried() {
    for nth in 1.. {
        let disk = disk(19);
        disk.record();
        disk.fail_sync("/", nth);
        let mut acknowledged = 0;
        let ended = simulate(async {
            let ended = everyday(&disk, &mut acknowledged).await;
            Clock::simulated().sleep(Duration::from_secs(10)).await;
            ended
        });
        let operations = disk.recorded();
        let lost =
            |operation: &Operation| matches!(operation, Operation::LoseData { .. } | Operation::LoseNames { .. });
        let Some(failed) = operations.iter().position(lost) else {
            ended.expect("nothing failed");
            assert!(nth > 60, "there are more syncs than {nth} in such a life");
            return;
        };
        ended.expect_err("a sync failed");
        let retried = |operation: &&Operation| match (&operations[failed], operation) {
            (Operation::LoseData { file: lost }, Operation::SyncData { file }) => file == lost,
            (Operation::LoseNames { directory: lost }, Operation::SyncDirectory { directory }) => directory == lost,
            _ => false,
        };
        let again = operations[failed..].iter().find(retried);
        assert!(again.is_none(), "sync {nth} failed, and then {again:?}");
        disk.crash_keeping(|_| false);
        let last = simulate(async { open(&disk, small()).await.expect("opens").last() });
        let found = last.map_or(0, |last| last.index + 1);
        assert!(found >= acknowledged, "sync {nth} failed: {found} entries, {acknowledged} were acknowledged");
    }
}

/// A process that is started again finds in the page cache what a failed sync has not made durable, and the kernel calls it
/// clean: the next sync succeeds and writes nothing. What the start takes over, others rely on, so a power failure must not
/// take it. On a disk that is dying a sync of the start fails as well.
#[test]
fn what_a_start_finds_after_a_failed_sync_outlives_a_power_failure() {
    let found = |disk: &SimDisk| {
        simulate(async {
            let log = open(disk, small()).await?;
            Ok::<_, OpenError>((log.last(), log.vote()))
        })
    };
    let mut nth = 1;
    loop {
        for at_start in 0..5 {
            let disk = disk(23);
            disk.record();
            disk.fail_sync("/", nth);
            if simulate(everyday(&disk, &mut 0)).is_ok() {
                assert!(nth > 60, "there are more syncs than {nth} in such a life");
                return;
            }
            disk.process_kill();
            if at_start > 0 {
                disk.fail_sync("/", at_start);
                let _ = found(&disk);
                disk.process_kill();
                disk.heal();
            }
            // Names are in the file system's journal: where that fails nothing can be written any more.
            if disk.recorded().iter().any(|operation| matches!(operation, Operation::LoseNames { .. })) {
                continue;
            }
            let relied_on = found(&disk).expect("opens");
            disk.crash_keeping(|_| false);
            assert_eq!(found(&disk).expect("opens"), relied_on, "syncs {nth} and {at_start} failed");
        }
        nth += 1;
    }
}

/// The preparer's syncs are as final as the writer's: the kernel does not say whose pages were lost.
#[test]
fn a_failed_sync_of_a_prepared_piece_is_final() {
    simulate(async {
        let disk = disk(7);
        let log = open(&disk, small()).await.expect("opens");
        tokio::task::yield_now().await;
        disk.fail_sync(segment_path(8192), 1);
        disk.fail_sync(segment_path(16384), 1);
        for index in 0..60 {
            if append(&log, vec![entry(1, index, 900)]).await.is_err() {
                assert!(log.is_poisoned());
                return;
            }
        }
        panic!("nobody noticed");
    });
}

/// The next file is made ahead of its use. A disk that cannot is not waited for until the log needs it: unlike a full one it
/// has failed.
#[test]
fn a_disk_that_fails_to_make_the_next_file_ends_the_log_at_once() {
    simulate(async {
        let disk = disk(20);
        let log = open(&disk, small()).await.expect("opens");
        let mut failure = log.failure();
        disk.fail_write(segment_path(8192), 1);
        let mut index = 0;
        while disk.met().failed == 0 {
            append(&log, vec![entry(1, index, 100)]).await.expect("the file is not needed yet");
            index += 1;
        }
        let ended = Clock::simulated().timeout(Duration::from_secs(10), failure.wait_for(Option::is_some)).await;
        ended.expect("nobody asks it for anything").expect("it says so");
        assert!(log.is_poisoned());
    });
}

#[test]
fn a_full_disk_stops_the_log_when_it_must_grow_and_loses_nothing() {
    simulate(async {
        let disk = disk(8);
        let log = open(&disk, small()).await.expect("opens");
        append(&log, vec![entry(1, 0, 100)]).await.expect("appended");
        let space = disk.space(Path::new("/")).await.expect("known");
        disk.set_capacity(space.total_bytes - space.free_bytes);
        let mut acknowledged = 1;
        while append(&log, vec![entry(1, acknowledged, 900)]).await.is_ok() {
            acknowledged += 1;
            assert!(acknowledged < 100, "the disk is full");
        }
        assert!(acknowledged > 5, "what was prepared is used up first");
        drop(log);
        disk.heal();
        disk.crash_keeping(|_| false);
        let log = open(&disk, small()).await.expect("opens");
        assert!(log.last().expect("entries").index + 1 >= acknowledged);
    });
}

#[test]
pub fn either_copy_of_the_hard_state_is_enough_and_is_repaired() {
    let options = small();
    let vote = Vote { term: 7, node_id: Some(3), committed: true };
    let disk = disk(9);
    simulate(async {
        let log = open(&disk, options.clone()).await.expect("opens");
        log.save_vote(vote).await.expect("saved");
        log.close().await.expect("closes");
    });
    let files = disk.dump();
    for bad in [&["a"][..], &["b"], &["a", "b"]] {
        for damage in [0, 1, 2] {
            let mut damaged = files.clone();
            for copy in bad {
                let path = hard_state_path(copy);
                match damage {
                    0 => edit(&mut damaged, &path, |bytes| bytes[33] ^= 1),
                    1 => edit(&mut damaged, &path, |bytes| bytes.truncate(20)),
                    _ => drop(damaged.remove(&path)),
                }
            }
            let disk = disk_with(&damaged);
            let result = simulate(async { open(&disk, options.clone()).await.map(|log| log.vote()) });
            if bad.len() == 2 {
                let Err(OpenError::HardStateLost { .. }) = result else { panic!("{bad:?}, {damage}: {result:?}") };
            } else {
                assert_eq!(result.expect("opens"), Some(vote));
                let repaired = disk.dump();
                assert_eq!(repaired[&hard_state_path("a")], repaired[&hard_state_path("b")]);
            }
        }
    }
}

/// Both copies were put back to an earlier state, say from a backup: the vote is older than what this node has answered.
#[test]
fn a_hard_state_older_than_the_log_is_lost() {
    let disk = disk(10);
    let old = simulate(async {
        let log = open(&disk, small()).await.expect("opens");
        append(&log, vec![entry(1, 0, 10), entry(1, 1, 10)]).await.expect("appended");
        let old = disk.dump();
        log.truncate_after(Some(0)).await.expect("cut");
        append(&log, vec![entry(2, 1, 10)]).await.expect("appended");
        log.close().await.expect("closes");
        old
    });
    let mut files = disk.dump();
    for copy in ["a", "b"] {
        files.insert(hard_state_path(copy), old[&hard_state_path(copy)].clone());
    }
    let result = recover(&disk_with(&files), &small(), None);
    assert!(matches!(result, Err(OpenError::HardStateLost { .. })), "{result:?}");
}

#[test]
fn a_missing_segment_is_corruption() {
    let sizes = [900; 40];
    let (files, offsets) = killed_log(&small(), &sizes);
    let last = offsets[40] / 8192 * 8192;
    for first in (0..last).step_by(8192) {
        let mut missing = files.clone();
        missing.remove(&segment_path(first));
        let result = recover(&disk_with(&missing), &small(), None);
        assert!(matches!(result, Err(OpenError::Corrupt { .. })), "without segment {first}: {result:?}");
    }
    let mut none = files.clone();
    none.retain(|path, _| path.parent() != segment_path(0).parent());
    none.insert(Path::new(DIR).join("commitlog/keep"), Bytes::new());
    // Nothing was ever asked of the hard state: this could be a log that was just made.
    assert_eq!(recover(&disk_with(&none), &small(), None).expect("opens"), Entries(Vec::new()));
    let found = recover(&disk_with(&none), &small(), Some(id(1, 3)));
    assert!(matches!(found, Err(OpenError::Corrupt { .. })), "but somebody knows better: {found:?}");
}

/// Segments are removed from the end. The process was killed behind one such removal, which nobody made durable; the
/// start removes the segment before. If power fails then, the later one must not come back without the one before.
#[test]
fn a_start_makes_durable_what_a_killed_process_removed() {
    let disk = disk(11);
    let (before, operations) = simulate(async {
        let log = open(&disk, small()).await.expect("opens");
        for index in 0..30 {
            append(&log, vec![entry(1, index, 900)]).await.expect("appended");
        }
        let before = disk.fork();
        disk.record();
        // Of another history, in which less was written up to there.
        let end = Cursor { physical_offset: PhysicalOffset(64), chain: 99 };
        log.restart_at(Boundary { id: id(4, 500), end }).await.expect("restarted");
        (before, disk.recorded())
    });
    let is_removal =
        |operation: &Operation| matches!(operation, Operation::Remove { path } if path.extension().is_none());
    let removals = operations.iter().enumerate().filter(|(_, operation)| is_removal(operation)).map(|(at, _)| at);
    assert!(removals.clone().count() > 2);
    for removal in removals {
        let killed = before.fork();
        operations[..=removal].iter().for_each(|operation| killed.repeat(operation));
        killed.process_kill();
        let start = killed.fork();
        start.record();
        recover(&start, &small(), None).expect("opens");
        for operation in start.recorded() {
            killed.repeat(&operation);
            for lost in 0..killed.unsynced() {
                let crashed = killed.fork();
                crashed.crash_keeping(|unit| unit != lost);
                let found = recover(&crashed, &small(), None);
                assert_eq!(found.expect("opens"), Entries(Vec::new()), "killed after {removal}, lost {lost}");
            }
        }
    }
}

#[test]
pub fn a_tail_below_what_is_durable_elsewhere_is_corruption() {
    let sizes = [100; 5];
    let (mut files, offsets) = killed_log(&one_segment(), &sizes);
    edit(&mut files, &segment_path(0), |bytes| bytes[offsets[4] as usize + HEAD_BYTES] ^= 1);
    let open_with = |floor| recover(&disk_with(&files), &one_segment(), floor);
    assert_eq!(open_with(None).expect("the last frame was torn, as far as the log knows").0.len(), 4);
    assert_eq!(open_with(Some(id(1, 3))).expect("entry 3 is there").0.len(), 4);
    for floor in [id(1, 4), id(2, 3), id(1, 900)] {
        let result = open_with(Some(floor));
        assert!(matches!(result, Err(OpenError::Corrupt { .. })), "floor {floor}: {result:?}");
    }
}

/// The two slots take turns, also across a restart: a torn mark leaves the one before.
#[test]
fn marks_take_turns() {
    let disk = disk(12);
    let slots = |disk: &SimDisk| {
        let files = disk.dump();
        [0, 4096].map(|at| Mark::decode(&files[&segment_path(0)][at..]).map(|mark| mark.synced.id.index))
    };
    // A group brings the mark of the one before.
    let lives = [(0..3, [Some(0), Some(1)]), (3..4, [Some(2), Some(1)]), (4..5, [Some(2), Some(3)])];
    for (indexes, expected) in lives {
        simulate(async {
            let log = open(&disk, one_segment()).await.expect("opens");
            for index in indexes {
                append(&log, vec![entry(1, index, 100)]).await.expect("appended");
            }
        });
        disk.process_kill();
        assert_eq!(slots(&disk), expected);
    }
}

/// A start reads the side files instead of all frames; without them, or with damaged ones, it sees the same.
#[test]
fn side_files_are_a_shortcut_and_nothing_else() {
    let sizes: Vec<usize> = (0..120).map(|index| 100 + index * 13 % 800).collect();
    let disk = disk(13);
    simulate(async {
        let log = open(&disk, small()).await.expect("opens");
        for (index, bytes) in sizes.iter().enumerate() {
            append(&log, vec![entry(1 + index as u64 / 50, index as u64, *bytes)]).await.expect("appended");
        }
        log.close().await.expect("closes");
    });
    let files = disk.dump();
    let is_side_file = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "frames");
    let side_files: Vec<PathBuf> = files.keys().filter(|path| is_side_file(path)).cloned().collect();
    let full = &side_files[..side_files.len() - 1];
    assert!(full.len() > 5);
    let files_before = files.clone();
    let look = |files: &BTreeMap<PathBuf, Bytes>| {
        let disk = disk_with(files);
        simulate(async {
            let log = open(&disk, small()).await.expect("opens");
            // What was damaged is there again, and equal.
            for path in full {
                assert_eq!(disk.dump().get(path), Some(&files_before[path]), "{path:?}");
            }
            let terms = log.first_of_terms(0..120);
            (bodies(&log, 700).await.expect("read"), terms, log.tip())
        })
    };
    let seen = look(&files);
    assert_eq!(seen.0.len(), 120);
    assert_eq!(seen.1, [id(1, 0), id(2, 50), id(3, 100)]);
    let rng = Rng::seeded(1);
    for path in &side_files {
        let mut damaged = files.clone();
        let at = rng.below(files[path].len() as u64) as usize;
        edit(&mut damaged, path, |bytes| bytes[at] ^= 4);
        assert_eq!(look(&damaged), seen);
        damaged.remove(path);
        assert_eq!(look(&damaged), seen);
    }
    let mut without = files.clone();
    without.retain(|path, _| !is_side_file(path));
    assert_eq!(look(&without), seen);
}

#[test]
fn callbacks_run_in_order_and_once() {
    simulate(async {
        let log = open(&disk(14), small()).await.expect("opens");
        let order = Arc::new(Mutex::new(Vec::new()));
        for index in 0..50 {
            let order = Arc::clone(&order);
            let done = move |result: io::Result<()>| order.lock().push((index, result.is_ok()));
            let entries = if index % 7 == 0 {
                vec![]
            } else {
                vec![entry(1, log.tip().last.map_or(0, |last| last.index + 1), 300)]
            };
            log.append(entries, Box::new(done)).expect("appended");
            if index % 11 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let vote = Vote { term: 5, node_id: None, committed: false };
        log.save_vote(vote).await.expect("saved");
        assert_eq!(*order.lock(), (0..50).map(|index| (index, true)).collect::<Vec<_>>());
        let stats = log.stats();
        assert!(stats.groups < 50 && stats.frames == 42 && stats.queued_bytes == 0, "{stats:?}");
        assert_eq!(stats.syncs_by_power_of_two_us.iter().sum::<u64>(), stats.groups);
    });
}

#[test]
fn entries_that_do_not_fit_are_refused_whole() {
    simulate(async {
        let log = open(&disk(15), small()).await.expect("opens");
        append(&log, vec![entry(5, 0, 100)]).await.expect("appended");
        let tip = log.tip();
        let refused = async |entries: Vec<AppendEntry>| {
            let (done, finished) = done();
            let error = log.append(entries, done).expect_err("refused");
            finished.await.expect("the callback runs").expect_err("with an error");
            error
        };
        let error = refused(vec![entry(5, 1, 10), entry(5, 3, 10)]).await;
        assert!(matches!(error, AppendError::NotNext { .. }), "{error}");
        let error = refused(vec![entry(5, 1, 10), entry(4, 2, 10)]).await;
        assert!(matches!(error, AppendError::NotNext { .. }), "{error}");
        let error = refused(vec![entry(5, 1, 10), entry(5, 2, 3001)]).await;
        assert!(matches!(error, AppendError::TooLarge { .. }), "{error}");
        let mut diverged = entry(5, 1, 10);
        diverged.carried_chain = Some(1);
        let error = refused(vec![diverged.clone()]).await;
        let AppendError::Diverged { ours, .. } = error else { panic!("{error}") };
        assert_eq!(log.tip(), tip);
        diverged.carried_chain = Some(ours);
        append(&log, vec![diverged]).await.expect("the chains agree");
    });
}

#[test]
#[should_panic(expected = "which is applied")]
fn what_is_applied_is_never_cut() {
    simulate(async {
        let log = open(&disk(16), small()).await.expect("opens");
        append(&log, vec![entry(1, 0, 100), entry(1, 1, 100)]).await.expect("appended");
        log.set_applied(1);
        let _ = log.truncate_after(Some(0)).await;
    });
}

#[test]
fn another_segment_size_is_refused() {
    let (files, _) = killed_log(&small(), &[100]);
    let result = recover(&disk_with(&files), &one_segment(), None);
    assert!(matches!(result, Err(OpenError::Options(_))), "{result:?}");
}

//! Every single bit, one at a time: of frames that were durable, of marks, of the hard state, and of what lies beside them.
//! What was durable is never shown wrong, never cut and never taken for something else; what holds nothing may be
//! anything without anybody seeing a difference. Each test prints how many bits it turned and what came of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use env::Env;
use env::disk::simulated::{Operation, SimDisk};
use raft_store::log::segment::MARK_BYTES;
use raft_store::log::{Log, LogOptions, OpenError, Vote};
use raft_store::position::LogId;

use super::world::*;

const HEAD_BYTES: u64 = 8192;

fn segment(first: u64) -> PathBuf {
    Path::new(DIR).join(format!("commitlog/{first:020}"))
}

/// What came of turning bits, counted.
#[derive(Debug, Default)]
struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    fn note(&mut self, outcome: &'static str) {
        *self.0.entry(outcome).or_default() += 1;
    }

    fn print(&self, what: &str) {
        let all: u64 = self.0.values().sum();
        println!("{what}: {all} bits: {:?}", self.0);
    }

    fn of(&self, outcome: &str) -> u64 {
        self.0.get(outcome).copied().unwrap_or(0)
    }
}

const VOTE: Vote = Vote { term: 7, node_id: Some(3), committed: true };

/// A log of entries of these sizes, each acknowledged before the next, closed in good order; its bodies, and the end.
async fn closed(disk: &SimDisk, options: &LogOptions, sizes: &[usize]) -> (Vec<(LogId, Bytes)>, u64) {
    let log = open(disk, options.clone()).await.expect("opens");
    log.save_vote(VOTE).await.expect("saved");
    for (index, bytes) in sizes.iter().enumerate() {
        append(&log, vec![entry(1, index as u64, *bytes)]).await.expect("appended");
    }
    let (all, end) = (bodies(&log, 1 << 20).await.expect("read"), log.tip().end.physical_offset.0);
    log.close().await.expect("closes");
    (all, end)
}

/// The disk with one bit of a file turned.
fn turned(disk: &SimDisk, file: &Path, offset: u64, bit: u8) -> SimDisk {
    let fork = disk.fork();
    fork.flip_bit(file, offset, bit);
    fork
}

/// Opens, reads everything and the vote.
async fn seen(disk: &SimDisk, options: &LogOptions) -> Result<(Vec<(LogId, Bytes)>, Option<Vote>), OpenError> {
    let env = Env::simulated(0, disk.clone());
    let log = Log::open(env, PathBuf::from(DIR), options.clone(), None).await?;
    let seen = (bodies(&log, 1 << 20).await.expect("what is shown can be read"), log.vote());
    log.kill().await;
    Ok(seen)
}

fn changes_nothing(operations: &[Operation]) -> bool {
    operations.iter().all(|one| matches!(one, Operation::SyncData { .. } | Operation::SyncDirectory { .. }))
}

/// Turns every bit of the first 16 KiB of a log whose mark is behind them.
fn every_bit_of_durable_frames(sizes: &[usize]) {
    const BYTES: u64 = 16 << 10;
    let options = LogOptions {
        segment_bytes: 32 << 10,
        prepare_piece_bytes: 32 << 10,
        max_entry_bytes: 8 << 10,
        tail_bytes: 0,
        ..LogOptions::default()
    };
    let disk = disk(31);
    simulate(async {
        let (_, end) = closed(&disk, &options, sizes).await;
        assert!((BYTES..30 << 10).contains(&end), "{end} bytes");
        let file = segment(0);
        let mut counts = Counts::default();
        for at in 0..BYTES {
            for bit in 0..8 {
                let damaged = turned(&disk, &file, HEAD_BYTES + at, bit);
                damaged.record();
                let env = Env::simulated(0, damaged.clone());
                match Log::open(env, PathBuf::from(DIR), options.clone(), None).await {
                    Err(OpenError::Corrupt { physical_offset, .. }) => {
                        assert!(physical_offset.0 <= at, "blamed {physical_offset}, turned {at}");
                        assert!(changes_nothing(&damaged.recorded()), "bit {bit} at {at}");
                        counts.note("refused as corrupt, nothing changed");
                    }
                    other => panic!("bit {bit} at {at}: {other:?}"),
                }
            }
        }
        counts.print(&format!("{} frames below the mark", sizes.len()));
        assert_eq!(counts.of("refused as corrupt, nothing changed"), BYTES * 8);
    });
}

// 64 KiB in four parts, so that cores share the work and walks are short.

#[test]
fn every_bit_of_durable_frames_is_refused_and_nothing_is_cut_few_and_long() {
    every_bit_of_durable_frames(&[8000, 8192, 4000]);
}

#[test]
fn every_bit_of_durable_frames_is_refused_and_nothing_is_cut_around_the_alignment() {
    every_bit_of_durable_frames(&[0, 1, 63, 64, 65, 127, 128, 129, 5000, 7000, 4000, 0]);
}

#[test]
fn every_bit_of_durable_frames_is_refused_and_nothing_is_cut_many_and_short() {
    every_bit_of_durable_frames(&[190; 80]);
}

#[test]
fn every_bit_of_durable_frames_is_refused_and_nothing_is_cut_mixed() {
    every_bit_of_durable_frames(&[5000, 0, 2001, 300, 64, 6100, 1, 2500, 3000]);
}

/// A start does not read full segments: there whoever reads must notice.
#[test]
fn every_bit_of_a_full_segment_is_noticed_by_its_readers() {
    let options = LogOptions { segment_bytes: 4096, prepare_piece_bytes: 4096, tail_bytes: 0, ..small() };
    let disk = disk(32);
    simulate(async {
        let (all, end) = closed(&disk, &options, &[700, 0, 900, 1200, 600, 900, 900, 900]).await;
        assert!(end > 4096);
        let mut counts = Counts::default();
        let mut of_padding = 0;
        for at in 0..4096 {
            for bit in 0..8 {
                let damaged = turned(&disk, &segment(0), HEAD_BYTES + at, bit);
                let env = Env::simulated(0, damaged.clone());
                let log = match Log::open(env, PathBuf::from(DIR), options.clone(), None).await {
                    Err(OpenError::Corrupt { .. }) => {
                        counts.note("refused as corrupt");
                        continue;
                    }
                    opened => opened.expect("opens"),
                };
                match bodies(&log, 1 << 20).await {
                    Err(error) => {
                        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
                        assert!(log.corruption().borrow().is_some(), "the replica hears of it");
                        counts.note("noticed when read");
                    }
                    Ok(read) => {
                        assert_eq!(read, all, "bit {bit} at {at}");
                        of_padding += 1;
                        counts.note("of no effect");
                    }
                }
                log.kill().await;
            }
        }
        counts.print("a full segment with its side file");
        // Of padding only the header is written: what lies behind it holds nothing.
        let padding = 4096 - all_bytes(&all, 4096);
        assert_eq!(of_padding, (padding - 64) * 8, "only the void behind the padding's header");
    });
}

/// Bytes of the frames that lie below `end`.
fn all_bytes(all: &[(LogId, Bytes)], end: u64) -> u64 {
    let mut at = 0;
    for (_, body) in all {
        let bytes = 64 + (body.len() as u64).next_multiple_of(64);
        if at + bytes > end {
            return at;
        }
        at += bytes;
    }
    at
}

#[test]
fn every_bit_of_the_last_unmarked_frame_costs_that_frame_and_no_more() {
    let options = LogOptions { segment_bytes: 16 << 10, prepare_piece_bytes: 16 << 10, ..small() };
    let disk = disk(33);
    simulate(async {
        let log = open(&disk, options.clone()).await.expect("opens");
        let mut begun = 0;
        for index in 0..6 {
            begun = append(&log, vec![entry(1, index, 300)]).await.expect("appended")[0].0;
        }
        let (all, end) = (bodies(&log, 1 << 20).await.expect("read"), log.tip().end.physical_offset.0);
        // Before the writer is idle: the mark speaks of all but the last.
        let killed = disk.fork();
        killed.process_kill();
        let mut counts = Counts::default();
        for at in begun..end {
            for bit in 0..8 {
                let damaged = turned(&killed, &segment(0), HEAD_BYTES + at, bit);
                let (read, _) = seen(&damaged, &options).await.expect("opens");
                assert_eq!(read, all[..5], "bit {bit} at {at}");
                counts.note("a shorter prefix");
            }
        }
        counts.print("the frame beyond the mark");
    });
}

/// Marks, current and older; what else the head of a segment holds, which is nothing; and what is prepared for later.
#[test]
fn no_bit_of_a_mark_or_of_what_holds_nothing_makes_a_difference() {
    let options = LogOptions { segment_bytes: 16 << 10, prepare_piece_bytes: 16 << 10, ..small() };
    let disk = disk(34);
    simulate(async {
        let (all, end) = closed(&disk, &options, &[300; 8]).await;
        let mut counts = Counts::default();
        let slots = [0, 4096].into_iter().flat_map(|slot| slot..slot + MARK_BYTES as u64);
        let both = slots.flat_map(|at| (0..8).map(move |bit| (at, bit, "marks")));
        // Every bit would take minutes: one in each byte, another one each time, and every bit beside what is used.
        let in_slack = |at: &u64| at % 4096 >= MARK_BYTES as u64;
        let slack = (0..HEAD_BYTES).filter(in_slack).map(|at| (at, (at % 7) as u8, "the head's slack"));
        let beside = (60..64).flat_map(|at| (0..8).map(move |bit| (at, bit, "the head's slack")));
        let behind = (HEAD_BYTES + end..HEAD_BYTES + (16 << 10)).map(|at| (at, (at % 7) as u8, "prepared"));
        let next =
            (HEAD_BYTES + end..HEAD_BYTES + end + 128).flat_map(|at| (0..8).map(move |bit| (at, bit, "prepared")));
        for (at, bit, what) in both.chain(slack).chain(beside).chain(behind).chain(next) {
            let damaged = turned(&disk, &segment(0), at, bit);
            assert_eq!(seen(&damaged, &options).await.expect("opens"), (all.clone(), Some(VOTE)), "bit {bit} at {at}");
            counts.note(what);
        }
        counts.print("marks and voids, all of no effect");
    });
}

/// What was turned in the prepared part does not come back as part of what is written there later.
#[test]
fn a_prepared_part_that_holds_something_is_written_over() {
    let options = LogOptions { segment_bytes: 16 << 10, prepare_piece_bytes: 16 << 10, ..small() };
    let disk = disk(35);
    simulate(async {
        let (mut all, end) = closed(&disk, &options, &[300; 8]).await;
        for at in (end..end + 2000).step_by(13) {
            let damaged = turned(&disk, &segment(0), HEAD_BYTES + at, 3);
            let log = open(&damaged, options.clone()).await.expect("opens");
            let more = entry(1, 8, 999);
            append(&log, vec![more.clone()]).await.expect("appended");
            log.close().await.expect("closes");
            all.truncate(8);
            all.push((more.id, more.body));
            assert_eq!(seen(&damaged, &options).await.expect("opens").0, all);
        }
    });
}

#[test]
fn every_bit_of_either_hard_state_is_made_good_from_the_other_and_of_both_is_the_end() {
    const BYTES: u64 = 124;
    let options = small();
    let disk = disk(36);
    simulate(async {
        let (all, _) = closed(&disk, &options, &[300; 3]).await;
        let path = |copy: &str| Path::new(DIR).join("hard-state").join(copy);
        let undamaged = disk.dump();
        let mut counts = Counts::default();
        for at in 0..BYTES {
            for bit in 0..8 {
                for copy in ["a", "b"] {
                    let damaged = turned(&disk, &path(copy), at, bit);
                    assert_eq!(seen(&damaged, &options).await.expect("opens"), (all.clone(), Some(VOTE)));
                    assert_eq!(damaged.dump()[&path(copy)], undamaged[&path(copy)], "made good");
                    counts.note("made good from the other copy");
                }
                let damaged = turned(&disk, &path("a"), at, bit);
                damaged.flip_bit(path("b"), at, bit);
                let lost = seen(&damaged, &options).await;
                assert!(matches!(lost, Err(OpenError::HardStateLost { .. })), "bit {bit} at {at}: {lost:?}");
                counts.note("both: refused, replaceNode");
            }
        }
        counts.print("hard state");
    });
}

/// Side files are derived: a turned bit costs a walk.
#[test]
fn every_bit_of_a_side_file_is_of_no_effect() {
    let options = LogOptions { segment_bytes: 4096, prepare_piece_bytes: 4096, tail_bytes: 0, ..small() };
    let disk = disk(37);
    simulate(async {
        let (all, _) = closed(&disk, &options, &[900; 6]).await;
        let file = Path::new(DIR).join(format!("commitlog/{:020}.frames", 0));
        let len = disk.dump()[&file].len() as u64;
        let mut counts = Counts::default();
        for at in 0..len {
            for bit in 0..8 {
                let damaged = turned(&disk, &file, at, bit);
                assert_eq!(seen(&damaged, &options).await.expect("opens").0, all, "bit {bit} at {at}");
                counts.note("walked instead");
            }
        }
        counts.print("a side file");
    });
}

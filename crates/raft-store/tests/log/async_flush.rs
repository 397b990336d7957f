//! A log that is flushed by a timer: what a process leaves behind is whole, what a machine takes along is no older than
//! the interval, and votes and cuts are durable in any case.

use std::time::Duration;

use env::{Env, Rng};
use raft_store::log::{LogOptions, Vote};

use crate::world::*;

const INTERVAL: Duration = Duration::from_millis(500);

fn options() -> LogOptions {
    LogOptions { flush_interval_ms: Some(INTERVAL.as_millis() as u64), ..small() }
}

fn vote(term: u64) -> Vote {
    Vote { term, node_id: Some(7), committed: false }
}

#[test]
fn what_was_written_outlives_the_process_and_what_was_flushed_the_machine() {
    simulate(async {
        for seed in 0..40 {
            let (disk, rng) = (disk(seed), Rng::seeded(seed));
            let clock = Env::simulated(0, disk.clone()).clock;
            let mut log = open(&disk, options()).await.expect("opens");
            // When each entry was acknowledged.
            let mut acknowledged: Vec<Duration> = Vec::new();
            let (mut term, mut voted) = (1, None);
            for _ in 0..30 {
                for _ in 0..rng.below(6) {
                    let index = acknowledged.len() as u64;
                    append(&log, vec![entry(term, index, rng.below(2000) as usize)]).await.expect("appended");
                    acknowledged.push(clock.monotonic());
                    clock.sleep(Duration::from_millis(rng.below(200))).await;
                }
                let least = acknowledged.iter().filter(|at| **at + INTERVAL < clock.monotonic()).count();
                assert!(log.synced().borrow().index.map_or(0, |last| last + 1) >= least as u64, "flushed in time");
                if rng.chance(1, 4) {
                    term += 1;
                    voted = Some(vote(term));
                    log.save_vote(vote(term)).await.expect("saved");
                    let synced = log.synced().borrow().index.map_or(0, |last| last + 1);
                    assert_eq!(synced, acknowledged.len() as u64, "what came before a vote is durable with it");
                }
                if rng.chance(1, 6) && !acknowledged.is_empty() {
                    let kept = rng.below(acknowledged.len() as u64 + 1);
                    log.truncate_after(kept.checked_sub(1)).await.expect("cut");
                    acknowledged.truncate(kept as usize);
                    term += 1;
                }
                let (machine, now) = (rng.chance(1, 5), clock.monotonic());
                if machine || rng.chance(1, 5) {
                    let synced = log.synced().borrow().index.map_or(0, |last| last + 1);
                    log.kill().await;
                    if machine {
                        disk.crash(&rng);
                    }
                    log = open(&disk, options()).await.expect("opens again");
                    let found = log.last().map_or(0, |last| last.index + 1);
                    let least = if machine { synced } else { acknowledged.len() as u64 };
                    assert!((least..=acknowledged.len() as u64).contains(&found), "{least} <= {found}");
                    let lost = &acknowledged[found as usize..];
                    assert!(lost.iter().all(|at| *at + INTERVAL >= now), "an entry was lost that was older");
                    assert_eq!(log.vote(), voted, "a vote is never lost");
                    acknowledged.truncate(found as usize);
                    term += 1;
                    bodies(&log, 1 << 20).await.expect("whole");
                }
            }
            log.close().await.expect("closed");
            disk.crash(&rng);
            let log = open(&disk, options()).await.expect("opens");
            assert_eq!(
                log.last().map_or(0, |last| last.index + 1),
                acknowledged.len() as u64,
                "a clean stop loses nothing"
            );
        }
    });
}

/// A failed flush is as final as a failed sync: what was acknowledged since the last one may be gone.
#[test]
fn a_failed_flush_poisons_the_log() {
    simulate(async {
        let disk = disk(1);
        let clock = Env::simulated(0, disk.clone()).clock;
        let log = open(&disk, options()).await.expect("opens");
        append(&log, vec![entry(1, 0, 100)]).await.expect("written");
        disk.fail_sync(std::path::Path::new(DIR).join("commitlog"), 1);
        let mut synced = log.synced();
        let told = clock.timeout(INTERVAL * 2, synced.wait_for(|synced| synced.poisoned)).await;
        assert!(told.is_some(), "whoever watches hears of it within the interval");
        let refused = append(&log, vec![entry(1, 1, 100)]).await.expect_err("nothing more is taken");
        assert!(refused.to_string().contains("stopped"), "{refused}");
        assert!(log.is_poisoned());
    });
}

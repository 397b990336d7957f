//! Crashes: whatever subset of the unsynced writes survives, at whatever moment, the log recovers to a state that keeps
//! every promise; a crash of the recovery changes nothing, and appending goes on.
//!
//! A random workload runs on a recording disk. Afterwards the disk is stopped between any two operations and crashed,
//! many times: a crash costs a recovery, not a workload. `RAFTMQ_CRASH_STATES` sets how many (default 1000), and
//! `RAFTMQ_SEED` runs one seed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use env::disk::simulated::{Latency, Operation, SimDisk};
use env::{Disk, Env, Rng};
use raft_store::log::{Kind, Log, LogOptions};
use raft_store::position::LogId;

use super::liar::Liar;
use super::model::{Entry, Event, Found, Model};
use super::work::{Place, Timeline, Work, random_options};
use super::world::{DIR, append, disk, entry_with, simulate};

/// Crash states taken from one workload.
const STATES_PER_WORKLOAD: u64 = 40;

/// Steps of a workload.
const STEPS: usize = 50;

fn number_from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} = {text:?} is not a number")))
}

async fn open(disk: &SimDisk, options: &LogOptions) -> Result<Log, String> {
    let env = Env::simulated(0, disk.clone());
    let log = Log::open(env, PathBuf::from(DIR), options.clone(), None).await;
    log.map_err(|error| format!("the log does not open: {error}"))
}

/// Recovers, looks at the log, and is killed.
fn look(disk: &SimDisk, options: &LogOptions) -> Result<Found, String> {
    simulate(async {
        let log = open(disk, options).await?;
        Found::in_log(&log, 2000).await.map_err(|error| format!("the log cannot be read: {error}"))
    })
}

/// The workload of a seed, on a disk that may lie: the disk before it, what happened to it, and what was promised when.
fn run_workload(seed: u64, options: &LogOptions, lying: bool) -> (SimDisk, Vec<Operation>, Timeline) {
    let rng = Rng::seeded(seed);
    let disk = disk(seed);
    if rng.chance(1, 2) {
        let some = Duration::from_micros(300);
        disk.set_latency(Latency { read: some, write: some, sync: 4 * some });
    }
    let before = disk.fork();
    disk.record();
    let seen: Arc<dyn Disk> = if lying { Arc::new(Liar(disk.clone())) } else { Arc::new(disk.clone()) };
    let place = Place::Simulated { disk: disk.clone(), seen, unkind: !lying };
    let mut work = Work::new(place, options.clone(), rng);
    work.run(STEPS);
    (before, disk.recorded(), work.timeline)
}

/// Crashes the disk, and checks all that follows.
fn check_crash(mut model: Model, stopped: SimDisk, options: &LogOptions, rng: &Rng) -> Result<(), String> {
    // Or only the process is killed: all that was written is still to be seen, but no more durable than before.
    if rng.chance(1, 4) {
        stopped.process_kill();
    } else {
        stopped.crash(rng);
    }
    // A crash of the recovery, or several: each time after some prefix of what it did.
    for _ in 0..rng.below(3) {
        let attempt = stopped.fork();
        attempt.record();
        model.judge(&look(&attempt, options)?)?;
        let prefix = rng.below(attempt.recorded_len() as u64 + 1) as usize;
        attempt.recorded().iter().take(prefix).for_each(|operation| stopped.repeat(operation));
        stopped.crash(rng);
    }
    let found = look(&stopped, options)?;
    model.judge(&found)?;

    // What a recovery has shown is durable: the next one shows the same, even if nothing unsynced survives.
    stopped.crash_keeping(|_| false);
    let again = look(&stopped, options)?;
    if again != found {
        return Err(format!("recovered to {found:?}, then to {again:?}"));
    }
    let lost: Vec<Entry> = model.entries.iter().filter(|entry| entry.id.index >= found.end_index).copied().collect();
    model.note(&Event::Opened(found));
    stopped.process_kill();

    // Appending goes on, with some of the entries that were lost or with others, and they are not lost.
    let mut term = model.last_id().map_or(1, |last| last.term);
    let mut entries = Vec::new();
    let lost_again = !model.continued_by(&lost).is_empty() && rng.chance(1, 2);
    if lost_again {
        entries.extend(lost.iter().take(1 + rng.below(lost.len() as u64) as usize));
    }
    for nonce in 0..if lost_again { 0 } else { 1 + rng.below(8) } {
        term += rng.below(2) * 50;
        let id = LogId { term, index: model.end() + nonce };
        entries.push(Entry::new(id, Kind::Entry, u64::MAX - nonce, rng.below(2000) as usize));
    }
    model.note(&Event::Append(entries.clone()));
    simulate(async {
        let log = open(&stopped, options).await?;
        for entry in &entries {
            let appended = append(&log, vec![entry_with(entry.id, entry.kind, entry.body())]).await;
            appended.map_err(|error| format!("appending entry {}: {error}", entry.id))?;
        }
        Ok::<_, String>(())
    })?;
    model.note(&Event::Durable(model.end()));
    stopped.crash(rng);
    model.judge(&look(&stopped, options)?)
}

/// Runs one seed: a workload, and `states` crashes of it. Returns how many were checked, or what went wrong.
fn check_seed(seed: u64, states: u64, lying: bool) -> Result<u64, String> {
    let rng = Rng::seeded(seed ^ 0x5eed);
    let options = random_options(&rng);
    let (shadow, operations, timeline) = run_workload(seed, &options, lying);
    let mut stops: Vec<usize> = (0..states).map(|_| rng.below(operations.len() as u64 + 1) as usize).collect();
    stops.sort_unstable();
    let mut done = 0;
    for stop in stops {
        operations[done..stop].iter().for_each(|operation| shadow.repeat(operation));
        done = stop;
        check_crash(timeline.model_after(stop, &options), shadow.fork(), &options, &rng)
            .map_err(|error| format!("RAFTMQ_SEED={seed}, crash after operation {stop}: {error}"))?;
    }
    Ok(states)
}

#[test]
fn a_crash_at_any_moment_keeps_every_promise() {
    let wanted = number_from_env("RAFTMQ_CRASH_STATES").unwrap_or(1000);
    let seeds: Vec<u64> = match number_from_env("RAFTMQ_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = Rng::from_entropy().below(1 << 40);
            (first..first + wanted.div_ceil(STATES_PER_WORKLOAD)).collect()
        }
    };
    let mut checked = 0;
    for seed in seeds {
        println!("RAFTMQ_SEED={seed}");
        checked += check_seed(seed, STATES_PER_WORKLOAD, false).unwrap_or_else(|error| panic!("{error}"));
    }
    println!("{checked} crash states");
    assert!(checked > 0);
}

/// If this fails, the test above proves nothing: on a disk that acknowledges a sync without doing it, it must notice.
#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    let losses = (0..20).filter(|seed| matches!(check_seed(*seed, 20, true), Err(error) if error.contains("LOST")));
    assert!(losses.count() > 0, "acknowledged entries were lost, and nobody noticed");
}

//! Crashes: whatever subset of the unsynced writes survives, at whatever moment, the log recovers to a state that keeps
//! every promise; a crash of the recovery changes nothing, and appending goes on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use env::disk::simulated::{Latency, SimDisk};
use env::{Env, Rng};
use raft_store::log::{Kind, Log, LogOptions};
use raft_store::position::LogId;

use super::crashes::{Crashed, Life, Record, looks, must_hold};
use super::model::{Entry, Event, Found, Model};
use super::work::{Place, Timeline, Work, random_options};
use super::world::{DIR, append, disk, entry_with, simulate};

/// Steps of a life. Its crashes are what costs time, and short lives differ more than long ones.
const STEPS: usize = 16;

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

/// A log's life: random work, and what was promised when.
pub struct LogLife {
    seed: u64,
    options: LogOptions,
    record: Record,
    timeline: Timeline,
    /// What a recovery makes of a disk that looks like this.
    found: BTreeMap<u128, Found>,
    /// What was promised after so many operations.
    promised: (usize, Model),
}

impl LogLife {
    /// The life of a seed.
    pub fn live(seed: u64) -> LogLife {
        let options = random_options(&Rng::seeded(seed ^ 0x5eed));
        let rng = Rng::seeded(seed);
        let disk = disk(seed);
        if rng.chance(1, 2) {
            let some = Duration::from_micros(300);
            disk.set_latency(Latency { read: some, write: some, sync: 4 * some });
        }
        let before = disk.fork();
        disk.record();
        let mut work = Work::new(Place::Simulated(disk.clone()), options.clone(), rng);
        work.run(STEPS);
        let record = Record { before, operations: disk.recorded() };
        let promised = (0, work.timeline.model_after(0, &options));
        LogLife { seed, options, record, timeline: work.timeline, found: BTreeMap::new(), promised }
    }

    /// A crash while recovery is under way, after some of what it does: nothing is lost by that.
    fn crash_recovery(&self, model: &Model, disk: &SimDisk, rng: &Rng) -> Result<(), String> {
        let (attempt, stopped) = (disk.fork(), disk.fork());
        attempt.record();
        look(&attempt, &self.options)?;
        let done = rng.below(attempt.recorded_len() as u64 + 1) as usize;
        attempt.recorded().iter().take(done).for_each(|operation| stopped.repeat(operation));
        stopped.crash(rng);
        let found = look(&stopped, &self.options)?;
        model.judge(&found).map_err(|error| format!("recovery crashed after {done} operations: {error}"))
    }

    /// What a recovery has shown is durable: the next one shows the same, and leaves the disk as it is.
    fn recover_again(&self, found: &Found, disk: &SimDisk) -> Result<(), String> {
        disk.crash_keeping(|_| false);
        let again = look(disk, &self.options)?;
        if again != *found {
            return Err(format!("recovered to {found:?}, then to {again:?}"));
        }
        disk.process_kill();
        let before = looks(disk);
        look(disk, &self.options)?;
        if looks(disk) != before {
            return Err("a third recovery changes the disk".to_owned());
        }
        Ok(())
    }

    /// Appending goes on, with some of the entries that were lost or with others, and they are not lost.
    fn go_on(&self, mut model: Model, found: Found, disk: &SimDisk, rng: &Rng) -> Result<(), String> {
        let lost: Vec<Entry> =
            model.entries.iter().filter(|entry| entry.id.index >= found.end_index).copied().collect();
        model.note(&Event::Opened(found));
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
            let log = open(disk, &self.options).await?;
            for entry in &entries {
                let appended = append(&log, vec![entry_with(entry.id, entry.kind, entry.body())]).await;
                appended.map_err(|error| format!("appending entry {}: {error}", entry.id))?;
            }
            Ok::<_, String>(())
        })?;
        model.note(&Event::Durable(model.end()));
        disk.crash(rng);
        model.judge(&look(disk, &self.options)?).map_err(|error| format!("having gone on: {error}"))
    }
}

impl Life for LogLife {
    fn record(&self) -> &Record {
        &self.record
    }

    fn check(&mut self, Crashed { disk, after, looks }: Crashed) -> Result<(), String> {
        if self.promised.0 != after {
            self.promised = (after, self.timeline.model_after(after, &self.options));
        }
        let model = &self.promised.1;
        if let Some(found) = looks.and_then(|looks| self.found.get(&looks)) {
            return model.judge(found);
        }
        let rng = Rng::seeded(self.seed ^ (after as u64) << 40 ^ looks.unwrap_or(0) as u64);
        self.crash_recovery(model, &disk, &rng)?;
        let found = look(&disk, &self.options)?;
        model.judge(&found)?;
        self.recover_again(&found, &disk)?;
        self.go_on(model.clone(), found.clone(), &disk, &rng)?;
        if let Some(looks) = looks {
            self.found.insert(looks, found);
        }
        Ok(())
    }
}

#[test]
fn a_crash_at_any_moment_keeps_every_promise() {
    must_hold("log", "a_crash_at_any_moment_keeps_every_promise", LogLife::live);
}

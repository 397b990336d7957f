//! Random work: appends in all sizes, votes, cuts, purges, restarts, reads, and reopening, on any disk.
//!
//! Every question and answer is noted with the number of disk operations that had happened by then, so that a crash can
//! be put between any two of them afterwards.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use env::disk::simulated::SimDisk;
use env::{Env, Rng};
use parking_lot::Mutex;
use raft_store::log::{Boundary, Cursor, Kind, Log, LogOptions, Vote};
use raft_store::position::{LogId, PhysicalOffset};

use super::model::{Entry, Event, Found, Model};
use super::world::{DIR, entry_with, real, simulate};

/// Events with the number of disk operations before them.
#[derive(Clone, Default)]
pub struct Timeline(Arc<Mutex<Vec<(usize, Event)>>>);

impl Timeline {
    fn note(&self, disk: Option<&SimDisk>, event: Event) {
        let operations = disk.map_or(0, SimDisk::recorded_len);
        self.0.lock().push((operations, event));
    }

    /// What was asked and answered when `operations` disk operations had happened.
    pub fn model_after(&self, operations: usize, options: &LogOptions) -> Model {
        let mut model = Model::new(options.segment_bytes);
        for (at, event) in self.0.lock().iter() {
            if *at <= operations {
                model.note(event);
            }
        }
        model
    }
}

/// How the log goes down between two lives.
#[derive(Clone, Copy, Debug)]
enum Down {
    Close,
    Kill,
    Crash,
}

/// What the log lives in.
#[derive(Clone)]
pub enum Place {
    Simulated(SimDisk),
    Real(PathBuf),
}

impl Place {
    fn disk(&self) -> Option<&SimDisk> {
        match self {
            Place::Simulated(disk) => Some(disk),
            Place::Real(_) => None,
        }
    }
}

/// The worker: where the log lies, and what to do next.
pub struct Work {
    place: Place,
    options: LogOptions,
    rng: Rng,
    pub timeline: Timeline,
    term: u64,
    nonce: u64,
    /// What the last crash has lost. A leader would send it again.
    lost: Vec<Entry>,
}

/// Small segments, small pieces, a small tail: all edges are near.
pub fn random_options(rng: &Rng) -> LogOptions {
    let segment_bytes = 4096 << rng.below(4);
    LogOptions {
        flush_interval_ms: None,
        segment_bytes,
        prepare_piece_bytes: [512, 4096, 16384][rng.below(3) as usize],
        tail_bytes: [0, 4096, 1 << 20][rng.below(3) as usize],
        max_entry_bytes: 3000,
        idle_mark_ms: 20,
    }
}

impl Work {
    pub fn new(place: Place, options: LogOptions, rng: Rng) -> Work {
        Work { place, options, rng, timeline: Timeline::default(), term: 1, nonce: 0, lost: Vec::new() }
    }

    fn note(&self, event: Event) {
        self.timeline.note(self.place.disk(), event);
    }

    fn model(&self) -> Model {
        self.timeline.model_after(usize::MAX, &self.options)
    }

    /// Opens the log and checks that it is what it may be.
    async fn open(&mut self) -> (Env, Log) {
        let (env, dir) = match &self.place {
            Place::Simulated(disk) => (Env::simulated(0, disk.clone()), PathBuf::from(DIR)),
            Place::Real(dir) => (Env::real(), dir.clone()),
        };
        let log = Log::open(env.clone(), dir, self.options.clone(), None).await;
        let log = log.unwrap_or_else(|error| panic!("the log does not open: {error}"));
        let found = Found::in_log(&log, 1 + self.rng.below(5000) as usize).await.expect("read");
        let model = self.model();
        model.judge(&found).unwrap_or_else(|error| panic!("{error}"));
        self.lost = model.entries.iter().filter(|entry| entry.id.index >= found.end_index).copied().collect();
        self.note(Event::Opened(found));
        (env, log)
    }

    /// Does `steps` random things, in as many lives as it takes.
    pub fn run(&mut self, mut steps: usize) {
        while steps > 0 {
            let down = match &self.place {
                Place::Simulated(_) => simulate(self.live(&mut steps)),
                Place::Real(_) => real(self.live(&mut steps)),
            };
            let disk = self.place.disk();
            match down {
                Down::Close => {}
                Down::Kill => disk.expect("a simulated disk").process_kill(),
                Down::Crash => {
                    disk.expect("a simulated disk").crash(&self.rng);
                }
            }
        }
    }

    /// One life of the log.
    async fn live(&mut self, steps: &mut usize) -> Down {
        let (env, log) = self.open().await;
        let mut down = Down::Close;
        while *steps > 0 {
            *steps -= 1;
            match self.rng.below(100) {
                0..50 => self.append(&log).await,
                50..58 => self.vote(&log).await,
                58..66 => self.cut(&log).await,
                66..72 => self.purge(&log).await,
                72..74 => self.restart(&log).await,
                74..86 => self.read(&log).await,
                86..94 => self.rest(&env).await,
                _ => {
                    if matches!(self.place, Place::Simulated(_)) {
                        down = [Down::Close, Down::Kill, Down::Crash][self.rng.below(3) as usize];
                    }
                    break;
                }
            }
        }
        if matches!(down, Down::Close) {
            log.close().await.expect("closes");
            let found = Found::in_log(&log, usize::MAX).await.expect("read");
            self.model().judge(&found).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(found.end_index, self.model().end(), "a closed log has written everything");
        }
        down
    }

    async fn append(&mut self, log: &Log) {
        let model = self.model();
        let (mut index, mut term) = (model.end(), model.last_id().map_or(1, |last| last.term));
        let mut entries = Vec::new();
        let lost_again = !model.continued_by(&self.lost).is_empty() && self.rng.chance(1, 2);
        if lost_again {
            let again = 1 + self.rng.below(self.lost.len() as u64) as usize;
            entries.extend(self.lost.drain(..again));
            index += again as u64;
        }
        for _ in 0..if lost_again { 0 } else { self.rng.below(6) } {
            // Not only newer terms: a new leader may bring entries of an old term that this log did not have.
            term += self.rng.below(8) / 7;
            self.term = self.term.max(term);
            self.nonce += 1;
            let bytes = match self.rng.below(4) {
                0 => self.rng.below(65),
                1 => self.rng.below(3001),
                _ => self.rng.below(300),
            };
            let kind = [Kind::Entry, Kind::Membership, Kind::Blank][self.rng.below(3) as usize];
            let bytes = if kind == Kind::Blank { 0 } else { bytes as usize };
            entries.push(Entry::new(LogId { term, index }, kind, self.nonce, bytes));
            index += 1;
        }
        let appended = entries.iter().map(|entry| entry_with(entry.id, entry.kind, entry.body())).collect();
        self.note(Event::Append(entries));
        let (timeline, disk) = (self.timeline.clone(), self.place.disk().cloned());
        let (told, heard) = tokio::sync::oneshot::channel();
        let done = move |result: std::io::Result<()>| {
            if result.is_ok() {
                timeline.note(disk.as_ref(), Event::Durable(index));
            }
            // The worker does not always wait.
            let _ = told.send(());
        };
        log.append(appended, Box::new(done)).expect("appended");
        if self.rng.chance(1, 3) {
            heard.await.expect("the callback runs");
        }
    }

    async fn vote(&mut self, log: &Log) {
        self.term += 1;
        let vote = Vote { term: self.term, node_id: Some(self.rng.below(3)), committed: self.rng.chance(1, 2) };
        self.note(Event::Vote(vote));
        log.save_vote(vote).await.expect("saved");
        self.note(Event::VoteDone(vote));
        assert_eq!(log.vote(), Some(vote));
    }

    async fn cut(&mut self, log: &Log) {
        let model = self.model();
        let begin = model.purged().map_or(0, |purged| purged.index + 1);
        if begin >= model.end() {
            return;
        }
        let end = begin + self.rng.below(model.end() - begin);
        self.note(Event::Cut(end));
        log.truncate_after(end.checked_sub(1)).await.expect("cut");
        self.note(Event::CutDone(end));
        assert_eq!(log.last(), self.model().last_id());
    }

    async fn purge(&mut self, log: &Log) {
        let model = self.model();
        let begin = model.purged().map_or(0, |purged| purged.index + 1);
        if begin >= model.end() {
            return;
        }
        let upto = begin + self.rng.below(model.end() - begin);
        let upto = model.entry(upto).expect("it is in the log").id;
        self.note(Event::Purge(upto));
        log.purge(upto).await.expect("purged");
        self.note(Event::PurgeDone(upto));
    }

    async fn restart(&mut self, log: &Log) {
        // Mostly an image is ahead of the log; but the log may also be longer, and of another history.
        let model = self.model();
        let begin = log.purged_boundary();
        let least = begin.map_or(0, |begin| begin.id.index + 1);
        let index = least + self.rng.below(model.end() - least + 100);
        let least = begin.map_or(0, |begin| begin.end.physical_offset.0);
        let most = log.tip().end.physical_offset.0 + (1 << 16);
        let physical_offset = PhysicalOffset((least + self.rng.below(most - least)) & !63);
        let end = Cursor { physical_offset, chain: self.rng.u64() };
        let boundary = Boundary { id: LogId { term: self.term, index }, end };
        self.note(Event::Restart(boundary));
        log.restart_at(boundary).await.expect("restarted");
        self.note(Event::RestartDone(boundary));
    }

    async fn read(&mut self, log: &Log) {
        let model = self.model();
        if self.rng.chance(1, 4) {
            log.release_idle_memory();
        }
        let begin = model.purged().map_or(0, |purged| purged.index + 1);
        let from = self.rng.below(model.end() + 2);
        let to = self.rng.below(model.end() + 2);
        let frames = log.read(from..to, self.rng.below(6000) as usize).await.expect("read");
        if from.max(begin) < to.min(model.end()) {
            assert!(!frames.is_empty(), "entry {} is there", from.max(begin));
        }
        for (frame, index) in frames.iter().zip(from.max(begin)..) {
            let entry = model.entry(index).expect("it is in the log");
            assert_eq!((frame.id, frame.kind, &frame.body), (entry.id, entry.kind, &entry.body()));
            assert_eq!(log.id_at(index), Some(entry.id));
            let cursor = log.chain_before(index + 1).await.expect("known");
            assert_eq!(cursor, frame.end());
            if entry.bytes > 0 {
                let from = self.rng.below(entry.bytes as u64);
                let size = 1 + self.rng.below(entry.bytes as u64 - from) as u32;
                let record = log.record(PhysicalOffset(frame.physical_offset.0 + 64 + from), size).expect("a record");
                assert_eq!(record, entry.body().slice(from as usize..from as usize + size as usize));
            }
        }
        if begin < model.end() {
            let mut terms: Vec<LogId> = Vec::new();
            for id in (begin..model.end()).filter_map(|index| model.entry(index)).map(|entry| entry.id) {
                if terms.last().is_none_or(|last| last.term != id.term) {
                    terms.push(id);
                }
            }
            assert_eq!(log.first_of_terms(begin..model.end()), terms);
        }
    }

    /// Long enough for an idle mark, or just long enough for others to get on.
    async fn rest(&mut self, env: &Env) {
        if self.rng.chance(1, 2) {
            env.clock.sleep(Duration::from_millis(self.rng.below(40))).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

//! Power failures at any moment: what a start finds, plus replay, is the fold of the log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use env::disk::Open;
use env::disk::simulated::{Latency, SimDisk};
use env::{Disk, Env, Rng};
use parking_lot::Mutex;
use raft_store::consume_queue::UnitsError;
use raft_store::entry::{CoreCommand, EntryView, OperationView, decode_entry};
use raft_store::fold::CHECKPOINTS_KEPT;
use raft_store::log::{Frame, Kind};
use raft_store::materializer::DerivedOptions;
use raft_store::position::{LogId, QueueOffset};

use crate::crashes::{Crashed, Life, Record, must_hold, simulate};
use crate::world::*;

fn options(rng: &Rng) -> DerivedOptions {
    DerivedOptions {
        sync_changed_bytes: 1_000 + rng.below(20_000) as usize,
        sync_log_bytes: 5_000 + rng.below(100_000),
        ..derived_options()
    }
}

/// Starts and replays; N was not ahead of the log, and the state is that of the log: of what was `submitted` to it as far
/// as it is purged.
async fn restarted(env: &Env, options: &DerivedOptions, submitted: &[Frame]) -> Replica {
    let mut replica = Replica::start(env, options.clone()).await.unwrap();
    replica.remembered = submitted.to_vec();
    let (found, last) = (replica.found, replica.log.last());
    assert!(found <= last, "derived state at {found:?}, log at {last:?}");
    replica.apply_all().await.unwrap();
    let model = Model::of(&replica.frames().await);
    replica.check(&model).await;
    replica
}

/// The images of the newest checkpoints are there, whenever power failed.
async fn check_images(replica: &Replica) {
    replica.fold.derived_sync().await.unwrap();
    let frames = replica.frames().await;
    let checkpoints = frames.iter().filter(|frame| is_checkpoint(frame)).map(|frame| frame.id);
    let mut expected: Vec<_> = checkpoints.collect();
    expected.drain(..expected.len().saturating_sub(CHECKPOINTS_KEPT));
    let mut found: Vec<_> = replica.fold.images().await.unwrap().iter().map(|image| image.boundary.id).collect();
    // A crash may bring removed ones back, until the next image.
    found.drain(..found.len().saturating_sub(expected.len()));
    assert_eq!(found, expected);
}

fn is_checkpoint(frame: &Frame) -> bool {
    let checkpoint =
        |view: EntryView| view.operations().any(|one| one == OperationView::Core(&CoreCommand::Checkpoint));
    frame.kind == Kind::Entry && decode_entry(&frame.body).is_ok_and(checkpoint)
}

/// Steps of a life.
const STEPS: usize = 12;

/// What a replica shows after a start: where the derived state was, and the log behind what is purged.
#[derive(Clone, PartialEq)]
struct Shown {
    found: Option<LogId>,
    purged: Option<LogId>,
    frames: Vec<Frame>,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "derived state at {:?}, log from {:?} to {}", self.found, self.purged, self.end())
    }
}

impl Shown {
    async fn by(replica: &Replica) -> Shown {
        let purged = replica.log.last_purged();
        let frames = replica.frames_from(purged.map_or(0, |purged| purged.index + 1)).await;
        Shown { found: replica.found, purged, frames }
    }

    fn begin(&self) -> usize {
        self.purged.map_or(0, |purged| purged.index as usize + 1)
    }

    fn end(&self) -> usize {
        self.begin() + self.frames.len()
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// A start has shown this.
    Started(Shown),
    Appended(Frame),
    /// The log is durable up to this index.
    Synced(u64),
    /// The derived state is durable up to here.
    Derived(LogId),
    Purge(LogId),
    PurgeDone(LogId),
}

/// Events with the number of disk operations before them.
#[derive(Clone, Default)]
struct Timeline(Arc<Mutex<Vec<(usize, Event)>>>);

impl Timeline {
    fn note(&self, disk: &SimDisk, event: Event) {
        self.0.lock().push((disk.recorded_len(), event));
    }

    fn promised_after(&self, operations: usize) -> Promised {
        let mut promised = Promised::default();
        let events = self.0.lock();
        events.iter().filter(|(at, _)| *at <= operations).for_each(|(_, event)| promised.note(event));
        promised
    }
}

/// What was submitted, and how much of it must be there.
#[derive(Clone, Debug)]
struct Promised {
    /// From the very first entry on, purged or not.
    frames: Vec<Frame>,
    synced: usize,
    derived: Option<LogId>,
    /// The last answered purge, and those asked for since.
    purges: Vec<Option<LogId>>,
}

impl Default for Promised {
    fn default() -> Promised {
        Promised { frames: Vec::new(), synced: 0, derived: None, purges: vec![None] }
    }
}

impl Promised {
    fn note(&mut self, event: &Event) {
        match event {
            Event::Started(shown) => {
                self.frames.truncate(shown.end());
                (self.synced, self.derived, self.purges) = (shown.end(), shown.found, vec![shown.purged]);
            }
            Event::Appended(frame) => self.frames.push(frame.clone()),
            Event::Synced(index) => self.synced = self.synced.max(*index as usize + 1),
            Event::Derived(id) => self.derived = self.derived.max(Some(*id)),
            Event::Purge(upto) => self.purges.push(Some(*upto)),
            Event::PurgeDone(upto) => self.purges = vec![Some(*upto)],
        }
    }

    fn judge(&self, shown: &Shown) -> Result<(), String> {
        if shown.found < self.derived {
            return Err(format!("derived state at {:?}, but {:?} was durable", shown.found, self.derived));
        }
        if !self.purges.contains(&shown.purged) {
            return Err(format!("purged up to {:?}, not one of {:?}", shown.purged, self.purges));
        }
        if shown.end() < self.synced {
            return Err(format!("LOST: {} entries, but {} were durable", shown.end(), self.synced));
        }
        if self.frames.get(shown.begin()..shown.end()) != Some(&shown.frames) {
            return Err(format!("{shown:?}: not what was submitted, which ends at {}", self.frames.len()));
        }
        Ok(())
    }
}

/// A replica's life: entries, derived syncs, images, and ends of all kinds.
pub struct FoldLife {
    seed: u64,
    options: DerivedOptions,
    record: Record,
    timeline: Timeline,
    /// What a start makes of a disk that looks like this.
    shown: BTreeMap<u128, Shown>,
    /// What was promised after so many operations.
    promised: (usize, Promised),
}

impl FoldLife {
    pub fn live(seed: u64) -> FoldLife {
        let rng = Rng::seeded(seed);
        let options = options(&rng);
        let disk = SimDisk::new(rng.fork());
        if rng.chance(1, 2) {
            let some = Duration::from_micros(300);
            disk.set_latency(Latency { read: some, write: some, sync: 4 * some });
        }
        let before = disk.fork();
        disk.record();
        let timeline = Timeline::default();
        let mut steps = STEPS;
        while steps > 0 {
            simulate(live_once(&disk, &options, &timeline, &rng, &mut steps));
            match rng.below(3) {
                0 => disk.process_kill(),
                _ => drop(disk.crash(&rng)),
            }
        }
        let record = Record { before, operations: disk.recorded() };
        FoldLife { seed, options, record, timeline, shown: BTreeMap::new(), promised: Default::default() }
    }
}

/// One run of the process.
async fn live_once(disk: &SimDisk, options: &DerivedOptions, timeline: &Timeline, rng: &Rng, steps: &mut usize) {
    let env = Env::simulated(rng.u64(), disk.clone());
    let submitted = timeline.promised_after(usize::MAX).frames;
    let mut replica = restarted(&env, options, &submitted).await;
    timeline.note(disk, Event::Started(Shown::by(&replica).await));
    let (mut synced, mut durable) = (replica.log.synced(), replica.fold.reader().watch_durable());
    let (noted, watched) = (timeline.clone(), disk.clone());
    tokio::spawn(async move {
        while synced.changed().await.is_ok() {
            let index = synced.borrow_and_update().index;
            index.into_iter().for_each(|index| noted.note(&watched, Event::Synced(index)));
        }
    });
    let (noted, watched) = (timeline.clone(), disk.clone());
    tokio::spawn(async move {
        while durable.changed().await.is_ok() {
            let id = *durable.borrow_and_update();
            id.into_iter().for_each(|id| noted.note(&watched, Event::Derived(id)));
        }
    });
    while *steps > 0 {
        *steps -= 1;
        match rng.below(20) {
            0 => return,
            1 => {
                replica.fold.close().await.unwrap();
                replica.log.close().await.unwrap();
                return;
            }
            2..5 => replica.fold.derived_sync().await.unwrap(),
            5..7 => {
                let images = replica.fold.images().await.unwrap();
                let Some(image) = images.get(rng.below(images.len().max(1) as u64) as usize) else { continue };
                let upto = image.boundary.id;
                if replica.log.last_purged() < Some(upto) {
                    timeline.note(disk, Event::Purge(upto));
                    replica.log.purge(upto).await.unwrap();
                    timeline.note(disk, Event::PurgeDone(upto));
                }
            }
            7..10 => env.clock.sleep(Duration::from_millis(rng.below(12_000))).await,
            _ => {
                let first = replica.log.last().map_or(0, |last| last.index + 1);
                let entries = random_entries(rng, 1 + rng.below(8) as usize, 12);
                replica.append(&entries).await;
                // Before the writer has its turn: nothing here waits.
                let frames = replica.frames_from(first).await;
                frames.into_iter().for_each(|frame| timeline.note(disk, Event::Appended(frame)));
                // Sometimes applied before it is written, as a follower may.
                if rng.chance(1, 2) {
                    env.clock.sleep(Duration::from_millis(rng.below(10))).await;
                }
                replica.apply_all().await.unwrap();
                // Applied, and perhaps not durable: the derived sync must wait.
                if rng.chance(1, 4) {
                    replica.fold.derived_sync().await.unwrap();
                }
            }
        }
    }
}

impl Life for FoldLife {
    fn record(&self) -> &Record {
        &self.record
    }

    fn check(&mut self, Crashed { disk, after, looks }: Crashed) -> Result<(), String> {
        if self.promised.0 != after {
            self.promised = (after, self.timeline.promised_after(after));
        }
        let promised = &self.promised.1;
        if let Some(shown) = looks.and_then(|looks| self.shown.get(&looks)) {
            return promised.judge(shown);
        }
        let rng = Rng::seeded(self.seed ^ (after as u64) << 40 ^ looks.unwrap_or(0) as u64);
        let start = |disk: &SimDisk, images: bool| {
            let env = Env::simulated(1, disk.clone());
            simulate(async {
                let replica = restarted(&env, &self.options, &promised.frames).await;
                let shown = Shown::by(&replica).await;
                if images {
                    check_images(&replica).await;
                }
                shown
            })
        };
        // A crash while the start is under way, after some of what it does.
        let (attempt, stopped) = (disk.fork(), disk.fork());
        attempt.record();
        start(&attempt, rng.chance(1, 2));
        let done = rng.below(attempt.recorded_len() as u64 + 1) as usize;
        attempt.recorded().iter().take(done).for_each(|operation| stopped.repeat(operation));
        stopped.crash(&rng);
        promised
            .judge(&start(&stopped, false))
            .map_err(|error| format!("start crashed after {done} operations: {error}"))?;

        let shown = start(&disk, false);
        promised.judge(&shown)?;
        // What a start has shown is durable: the next one shows the same, and may find more of it derived.
        disk.crash_keeping(|_| false);
        let again = start(&disk, true);
        if (again.purged, &again.frames) != (shown.purged, &shown.frames) || again.found < shown.found {
            return Err(format!("started with {shown:?}, then with {again:?}"));
        }
        if let Some(looks) = looks {
            self.shown.insert(looks, shown);
        }
        Ok(())
    }
}

#[test]
fn a_crash_at_any_moment_leaves_the_fold_of_the_log() {
    must_hold("fold", "a_crash_at_any_moment_leaves_the_fold_of_the_log", FoldLife::live);
}

/// Replaces a world's last state by what is left after `harm`, and says whether the replica noticed.
async fn after_harm(rng: &Rng, harm: impl AsyncFn(&env::disk::simulated::SimDisk)) -> (Replica, Env) {
    let (env, disk) = simulated(rng);
    let options = DerivedOptions { sync_changed_bytes: 5_000, ..derived_options() };
    let mut replica = Replica::start(&env, options.clone()).await.unwrap();
    replica.append(&random_entries(rng, 400, 2)).await;
    replica.apply_all().await.unwrap();
    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();
    harm(&disk).await;
    let env = Env::simulated(rng.u64(), disk);
    let replica = restarted(&env, &options, &[]).await;
    replica.check_index(&Model::of(&replica.frames().await)).await;
    (replica, env)
}

/// Derived: may be deleted at any time.
#[tokio::test(start_paused = true)]
async fn whatever_is_derived_may_be_deleted() {
    let rng = seeded();
    for (victims, rebuilds) in [
        (vec!["consumequeue"], 1),
        (vec!["index"], 1),
        (vec!["state"], 0),
        (vec!["checkpoint"], 0),
        (vec!["state", "checkpoint"], 0),
        (vec!["consumequeue", "index", "state", "checkpoint"], 0),
    ] {
        println!("{victims:?}");
        let (replica, _) = after_harm(&rng, async |disk| {
            for victim in &victims {
                disk.remove_dir_all(&dir().join(victim)).await.unwrap();
            }
        })
        .await;
        assert_eq!(replica.fold.reader().derived_stats().rebuilds, rebuilds, "{victims:?}");
    }
}

/// Parts of keys that do not say of which times their rows are were written by an earlier build.
#[tokio::test(start_paused = true)]
async fn parts_of_keys_of_an_earlier_version_are_rebuilt() {
    let versions = |disk: &SimDisk| -> Vec<(PathBuf, u8)> {
        let files = disk.dump().into_iter().filter(|(path, _)| path.extension().is_some_and(|it| it == "keys"));
        files.map(|(path, bytes)| (path, bytes[4])).collect()
    };
    let (replica, env) = after_harm(&seeded(), async |disk| {
        for (path, version) in versions(disk) {
            assert_eq!(version, 2);
            let file = disk.open(&path, Open::Existing).await.unwrap();
            let mut head = file.read_at(0, 4092).await.unwrap().to_vec();
            head[4] = 1;
            head[24..40].fill(0);
            let sequence: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            let address = [sequence.to_le_bytes(), [0; 8]].concat();
            let checksum = crc32c::crc32c_append(crc32c::crc32c(&address), &head);
            head.extend(checksum.to_le_bytes());
            file.write_at(0, &[head.into()]).await.unwrap();
        }
        assert!(!versions(disk).is_empty() && versions(disk).iter().all(|(_, version)| *version == 1));
    })
    .await;
    assert_eq!(replica.fold.reader().derived_stats().rebuilds, 1);
    replica.fold.close().await.unwrap();
    let names = env.disk.list(&dir().join("index")).await.unwrap();
    assert!(names.iter().any(|name| name.name.ends_with(".keys")), "{names:?}");
    for name in names.iter().filter(|name| name.name.ends_with(".keys")) {
        let file = env.disk.open(&dir().join("index").join(&name.name), Open::ToRead).await.unwrap();
        assert_eq!(file.read_at(4, 1).await.unwrap()[..], [2], "{}", name.name);
    }
}

/// A damaged unit is never shown. It is noticed when read, and the next start makes it whole again.
#[tokio::test(start_paused = true)]
async fn a_damaged_unit_is_rebuilt() {
    let rng = seeded();
    let (env, disk) = simulated(&rng);
    let mut replica = Replica::start(&env, derived_options()).await.unwrap();
    let entries: Vec<_> = (0..200)
        .map(|number| entry(number, vec![record(queue_id(0), vec![1; 8], raft_store::entry::Visibility::Visible)]))
        .collect();
    replica.append(&entries).await;
    replica.apply_all().await.unwrap();
    replica.fold.derived_sync().await.unwrap();
    disk.flip_bit("/data/consumequeue/0.0/00000000000000000000", 10 * 32 + 9, 2);
    let reader = replica.fold.reader();
    let queue = reader.queue(queue_id(0)).unwrap();
    let error = queue.read_units(QueueOffset(5), 20).await.unwrap_err();
    assert!(matches!(error, UnitsError::Damaged { queue_offset: QueueOffset(10), .. }), "{error}");
    assert!(reader.watch_damage().borrow().is_some());
    replica.fold.close().await.unwrap();
    replica.log.close().await.unwrap();
    let env = Env::simulated(1, disk);
    let replica = restarted(&env, &derived_options(), &[]).await;
    assert_eq!(replica.found, None, "all of it is replayed");
    assert_eq!(replica.fold.reader().derived_stats().rebuilds, 1);
}

/// A disk that fails once stops apply for good; nothing is retried; a restart goes on from what is durable.
#[tokio::test(start_paused = true)]
async fn a_failed_sync_stops_the_replica() {
    let rng = seeded();
    for victim in ["consumequeue", "index", "state", "checkpoint"] {
        let (env, disk) = simulated(&rng);
        let mut replica = Replica::start(&env, derived_options()).await.unwrap();
        replica.append(&random_entries(&rng, 200, 20)).await;
        disk.fail_sync(Path::new("/data").join(victim), 1);
        let applied = replica.apply_all().await;
        let synced = replica.fold.derived_sync().await;
        assert!(applied.is_err() || synced.is_err(), "{victim}");
        replica.append(&random_entries(&rng, 2, 0)).await;
        let error = replica.apply_all().await.unwrap_err();
        assert!(error.to_string().contains("derived state"), "{error}");
        assert!(replica.fold.reader().watch_failure().borrow().is_some());
        assert!(replica.fold.reader().wait_applied(u64::MAX).await.is_err());
        drop(replica);
        disk.crash(&rng);
        restarted(&Env::simulated(1, disk), &derived_options(), &[]).await;
    }
}

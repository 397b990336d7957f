//! What the simulated disk may forget, and what it must not. A model that is too kind hides bugs, one that is too cruel
//! invents them; so small cases list every state that a crash may leave, and random ones check the two promises of
//! `Disk`: synced data and synced names survive.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use env::disk::simulated::{Latency, Operation, SimDisk};
use env::disk::{Disk, File, Open};
use env::rng::Rng;
use futures::FutureExt;

/// Calls of a disk without latency end at once: no runtime is needed.
fn now<T>(call: impl Future<Output = T>) -> T {
    call.now_or_never().expect("a call of a disk without latency does not wait")
}

fn disk() -> SimDisk {
    SimDisk::new(Rng::seeded(7))
}

fn open(disk: &SimDisk, path: &str) -> Arc<dyn File> {
    now(disk.open(Path::new(path), Open::OrCreate)).unwrap()
}

fn write(file: &Arc<dyn File>, offset: u64, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    now(file.write_at(offset, &[Bytes::copy_from_slice(bytes.as_ref())]))
}

/// A file whose data and name are durable.
fn durable(disk: &SimDisk, path: &str, bytes: impl AsRef<[u8]>) -> Arc<dyn File> {
    let file = open(disk, path);
    write(&file, 0, bytes).unwrap();
    now(file.sync_data()).unwrap();
    for directory in Path::new(path).ancestors().skip(1) {
        now(disk.sync_dir(directory)).unwrap();
    }
    assert_eq!(disk.unsynced(), 0);
    file
}

type Dump = BTreeMap<PathBuf, Bytes>;

fn dump(files: &[(&str, &[u8])]) -> Dump {
    files.iter().map(|(path, bytes)| (PathBuf::from(path), Bytes::copy_from_slice(bytes))).collect()
}

/// The states that crashes of `disk` can leave, all of them.
fn all_crashes(disk: &SimDisk) -> BTreeSet<Dump> {
    let units = disk.unsynced();
    assert!(units <= 16, "too many to go through: {:?}", disk.describe_unsynced());
    (0..1_u32 << units)
        .map(|kept| {
            let crashed = disk.fork();
            crashed.crash_keeping(|unit| kept & 1 << unit != 0);
            assert_eq!(crashed.unsynced(), 0, "what survived a crash is durable");
            crashed.dump()
        })
        .collect()
}

fn only_crash(disk: &SimDisk) -> Dump {
    let crashes = all_crashes(disk);
    assert_eq!(crashes.len(), 1, "one outcome expected");
    crashes.into_iter().next().unwrap()
}

#[test]
fn each_sector_of_a_write_survives_or_not() {
    let disk = disk();
    let file = durable(&disk, "/f", [0; 2048]);
    // From the middle of the first sector to the middle of the third.
    write(&file, 256, [1; 1024]).unwrap();
    assert_eq!(disk.unsynced(), 3);
    let expected = (0..8).map(|kept| {
        let mut bytes = [0; 2048];
        for (sector, range) in [256..512, 512..1024, 1024..1280].into_iter().enumerate() {
            if kept & 1 << sector != 0 {
                bytes[range].fill(1);
            }
        }
        dump(&[("/f", &bytes)])
    });
    assert_eq!(all_crashes(&disk), expected.collect());
}

#[test]
fn sectors_are_cut_across_buffers() {
    let disk = disk();
    let file = durable(&disk, "/f", [0; 512]);
    let buffers = [Bytes::from_static(b"head"), Bytes::new(), Bytes::from_static(b"body")];
    now(file.write_at(0, &buffers)).unwrap();
    assert_eq!(disk.unsynced(), 1, "one sector is one unit, however many buffers it came from");
    let mut after = [0; 512];
    after[..8].copy_from_slice(b"headbody");
    assert_eq!(all_crashes(&disk), BTreeSet::from([dump(&[("/f", &[0; 512])]), dump(&[("/f", &after)])]));
}

#[test]
fn later_writes_may_survive_earlier_ones() {
    let disk = disk();
    let file = durable(&disk, "/f", b"a");
    write(&file, 0, b"b").unwrap();
    write(&file, 0, b"c").unwrap();
    let expected = [b"a", b"b", b"c"].map(|bytes| dump(&[("/f", bytes)]));
    assert_eq!(all_crashes(&disk), expected.into());
}

#[test]
fn units_are_numbered_in_the_order_of_the_calls() {
    let disk = disk();
    let (a, b) = (durable(&disk, "/a", b"."), durable(&disk, "/b", b"."));
    write(&b, 0, b"1").unwrap();
    now(disk.create_dir_all(Path::new("/d"))).unwrap();
    write(&a, 0, b"2").unwrap();
    write(&b, 0, b"3").unwrap();
    assert_eq!(disk.describe_unsynced(), ["/b: bytes 0..1", "/d: created", "/a: bytes 0..1", "/b: bytes 0..1"]);
    let crashed = disk.fork();
    crashed.crash_keeping(|unit| unit < 3);
    assert_eq!(crashed.dump(), dump(&[("/a", b"2"), ("/b", b"1")]));
}

#[test]
fn a_longer_file_may_have_its_length_and_not_its_bytes() {
    let disk = disk();
    let file = durable(&disk, "/f", b"");
    write(&file, 0, b"abc").unwrap();
    let expected = [&b""[..], b"\0\0\0", b"abc"].map(|bytes| dump(&[("/f", bytes)]));
    assert_eq!(all_crashes(&disk), expected.into());
}

#[test]
fn cutting_and_allocating_are_all_or_nothing() {
    let disk = disk();
    let file = durable(&disk, "/f", b"abcdef");
    now(file.set_len(2)).unwrap();
    now(file.allocate(4)).unwrap();
    let expected = [&b"abcdef"[..], b"ab", b"ab\0\0"].map(|bytes| dump(&[("/f", bytes)]));
    assert_eq!(all_crashes(&disk), expected.into());
    now(file.sync_data()).unwrap();
    assert_eq!(only_crash(&disk), dump(&[("/f", b"ab\0\0")]));
}

#[test]
fn synced_data_needs_a_synced_name() {
    let disk = disk();
    let file = open(&disk, "/f");
    write(&file, 0, b"data").unwrap();
    now(file.sync_data()).unwrap();
    assert_eq!(all_crashes(&disk), [dump(&[]), dump(&[("/f", b"data")])].into());
    now(disk.sync_dir(Path::new("/"))).unwrap();
    assert_eq!(only_crash(&disk), dump(&[("/f", b"data")]));
}

#[test]
fn a_synced_name_does_not_carry_the_data() {
    let disk = disk();
    let file = open(&disk, "/f");
    write(&file, 0, b"data").unwrap();
    now(disk.sync_dir(Path::new("/"))).unwrap();
    assert_eq!(all_crashes(&disk), [&b""[..], b"\0\0\0\0", b"data"].map(|bytes| dump(&[("/f", bytes)])).into());
}

#[test]
fn a_directory_is_there_only_if_its_name_was_synced_in_its_parent() {
    let disk = disk();
    now(disk.create_dir_all(Path::new("/d/e"))).unwrap();
    let file = open(&disk, "/d/e/f");
    write(&file, 0, b"x").unwrap();
    now(file.sync_data()).unwrap();
    for directory in ["/d/e", "/d"] {
        now(disk.sync_dir(Path::new(directory))).unwrap();
        assert_eq!(all_crashes(&disk), [dump(&[]), dump(&[("/d/e/f", b"x")])].into());
    }
    now(disk.sync_dir(Path::new("/"))).unwrap();
    assert_eq!(only_crash(&disk), dump(&[("/d/e/f", b"x")]));
}

#[test]
fn a_rename_survives_whole_or_not_at_all() {
    let disk = disk();
    durable(&disk, "/old", b"old");
    durable(&disk, "/new", b"new");
    now(disk.rename(Path::new("/new"), Path::new("/old"))).unwrap();
    let before = dump(&[("/new", b"new"), ("/old", b"old")]);
    let after = dump(&[("/old", b"new")]);
    assert_eq!(all_crashes(&disk), [before, after.clone()].into());
    now(disk.sync_dir(Path::new("/"))).unwrap();
    assert_eq!(only_crash(&disk), after);
}

#[test]
fn renaming_an_unsynced_file_may_replace_a_good_one_by_nothing() {
    // The classic bug of "write, rename" without a sync in between.
    let disk = disk();
    durable(&disk, "/f", b"good");
    let file = open(&disk, "/f.tmp");
    write(&file, 0, b"better").unwrap();
    now(disk.rename(Path::new("/f.tmp"), Path::new("/f"))).unwrap();
    now(disk.sync_dir(Path::new("/"))).unwrap();
    assert!(all_crashes(&disk).contains(&dump(&[("/f", b"")])));
}

#[test]
fn a_file_is_never_in_two_places() {
    let disk = disk();
    durable(&disk, "/a", b"x");
    now(disk.create_dir_all(Path::new("/d"))).unwrap();
    now(disk.sync_dir(Path::new("/"))).unwrap();
    now(disk.rename(Path::new("/a"), Path::new("/b"))).unwrap();
    now(disk.rename(Path::new("/b"), Path::new("/d/c"))).unwrap();
    let expected = ["/a", "/b", "/d/c"].map(|path| dump(&[(path, b"x")]));
    assert_eq!(all_crashes(&disk), expected.clone().into());
    // A sync of the target carries the changes before it that concern the same names.
    now(disk.sync_dir(Path::new("/d"))).unwrap();
    assert_eq!(only_crash(&disk), expected[2]);
}

#[test]
fn a_removed_file_may_come_back_as_it_was_synced() {
    let disk = disk();
    now(disk.create_dir_all(Path::new("/d"))).unwrap();
    durable(&disk, "/d/f", b"synced");
    let file = open(&disk, "/d/f");
    write(&file, 0, b"SYNCED").unwrap();
    drop(file);
    now(disk.remove_dir_all(Path::new("/d"))).unwrap();
    let expected = [dump(&[]), dump(&[("/d/f", b"synced")]), dump(&[("/d/f", b"SYNCED")])];
    assert_eq!(all_crashes(&disk), expected.into());
    now(disk.sync_dir(Path::new("/"))).unwrap();
    assert_eq!(only_crash(&disk), dump(&[]));
}

#[test]
fn a_failed_sync_loses_what_still_reads_well() {
    let disk = disk();
    let file = durable(&disk, "/f", b"old.");
    disk.fail_sync("/", 1);
    write(&file, 0, b"new.").unwrap();
    assert!(now(file.sync_data()).is_err());
    // Linux: the pages are clean now. They read back, and the next sync has nothing to do and succeeds.
    assert_eq!(disk.dump(), dump(&[("/f", b"new.")]));
    now(file.sync_data()).unwrap();
    assert_eq!(only_crash(&disk), dump(&[("/f", b"old.")]));
    // A killed process finds them in the page cache.
    let killed = disk.fork();
    killed.process_kill();
    assert_eq!(killed.dump(), dump(&[("/f", b"new.")]));
    // What is written after the failure is safe again.
    write(&file, 5000, b"later").unwrap();
    now(file.sync_data()).unwrap();
    let bytes = &only_crash(&disk)[Path::new("/f")];
    assert_eq!((&bytes[..4], &bytes[5000..]), (&b"old."[..], &b"later"[..]));
}

#[test]
fn the_nth_sync_at_or_below_a_path_fails() {
    let disk = disk();
    now(disk.create_dir_all(Path::new("/d"))).unwrap();
    let (inside, outside) = (open(&disk, "/d/f"), open(&disk, "/f"));
    disk.fail_sync("/d", 2);
    for file in [&outside, &inside, &outside] {
        now(file.sync_data()).unwrap();
    }
    assert!(now(disk.sync_dir(Path::new("/d"))).is_err());
    now(inside.sync_data()).unwrap();
    assert!(all_crashes(&disk).iter().all(|dump| !dump.contains_key(Path::new("/d/f"))), "its name was lost");
}

#[test]
fn a_crash_ends_handles_and_locks_and_so_does_a_kill() {
    let strikes: [fn(&SimDisk); 3] = [|disk| drop(disk.crash(&Rng::seeded(1))), SimDisk::process_kill, SimDisk::wipe];
    for strike in strikes {
        let disk = disk();
        let file = durable(&disk, "/f", b"data");
        let lock = now(disk.lock(Path::new("/LOCK"))).unwrap();
        strike(&disk);
        assert!(now(file.read_at(0, 1)).is_err());
        assert!(write(&file, 0, b"x").is_err());
        assert!(now(file.sync_data()).is_err());
        assert!(file.len().is_err());
        assert!(file.map_sealed(0, 1).is_err());
        let new_lock = now(disk.lock(Path::new("/LOCK"))).unwrap();
        // What the dead process held must not end what the new one holds.
        drop((file, lock));
        assert_eq!(now(disk.lock(Path::new("/LOCK"))).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(new_lock);
    }
}

#[test]
fn what_is_left_of_a_dead_process_reaches_the_disk_no_more() {
    let disk = disk();
    durable(&disk, "/f", b"data");
    let process: Arc<dyn Disk> = Arc::new(disk.mount());
    now(process.create_dir_all(Path::new("/d"))).unwrap();
    disk.crash_keeping(|_| true);
    assert!(now(process.open(Path::new("/f"), Open::Existing)).is_err());
    assert!(now(process.rename(Path::new("/f"), Path::new("/g"))).is_err());
    assert!(now(process.lock(Path::new("/LOCK"))).is_err());
    assert_eq!(now(now(disk.mount().open(Path::new("/f"), Open::Existing)).unwrap().read_at(0, 9)).unwrap(), "data");
}

#[test]
fn only_a_power_failure_changes_the_boot_id() {
    let disk = disk();
    let before = disk.boot_id().unwrap();
    disk.process_kill();
    assert_eq!(disk.boot_id().unwrap(), before);
    disk.crash(&Rng::seeded(1));
    assert_ne!(disk.boot_id().unwrap(), before);
    assert_eq!(disk.fork().boot_id().unwrap(), disk.boot_id().unwrap());
}

#[test]
fn a_kill_keeps_everything_and_makes_nothing_durable() {
    let disk = disk();
    let file = open(&disk, "/f");
    write(&file, 0, b"data").unwrap();
    let before = all_crashes(&disk);
    disk.process_kill();
    assert_eq!(disk.dump(), dump(&[("/f", b"data")]));
    assert_eq!(all_crashes(&disk), before);
    disk.wipe();
    assert_eq!(only_crash(&disk), dump(&[]));
}

#[test]
fn a_failing_write_leaves_a_part_of_itself() {
    let mut parts = BTreeSet::new();
    for seed in 0..50 {
        let disk = SimDisk::new(Rng::seeded(seed));
        let file = durable(&disk, "/f", [0; 10]);
        disk.fail_write("/f", 2);
        write(&file, 0, [1; 5]).unwrap();
        assert!(write(&file, 5, [2; 5]).is_err());
        let bytes = disk.dump().remove(Path::new("/f")).unwrap();
        assert_eq!(&bytes[..5], [1; 5]);
        parts.insert(bytes.iter().filter(|byte| **byte == 2).count());
        write(&file, 5, [2; 5]).unwrap();
    }
    assert_eq!(parts, (0..=5).collect());
}

#[test]
fn a_failing_change_of_length_or_name_has_not_happened() {
    let disk = disk();
    let file = durable(&disk, "/f", b"data");
    disk.fail_write("/f", 2);
    write(&file, 0, b"D").unwrap();
    assert!(now(file.set_len(1)).is_err());
    disk.fail_write("/", 1);
    assert!(now(file.allocate(100)).is_err());
    let strikes: [fn(&SimDisk) -> io::Result<()>; 4] = [
        |disk| now(disk.open(Path::new("/g"), Open::New)).map(drop),
        |disk| now(disk.create_dir_all(Path::new("/g"))),
        |disk| now(disk.rename(Path::new("/f"), Path::new("/g"))),
        |disk| now(disk.remove_file(Path::new("/f"))),
    ];
    for strike in strikes {
        disk.fail_names("/", 1);
        assert!(strike(&disk).is_err());
        assert_eq!(disk.dump(), dump(&[("/f", b"Data")]));
    }
    disk.fail_names("/elsewhere", 1);
    now(disk.remove_file(Path::new("/f"))).unwrap();
    assert_eq!(disk.dump(), dump(&[]));
}

#[test]
fn a_bad_sector_stays_bad_until_it_is_written() {
    let disk = disk();
    durable(&disk, "/f", [3; 9000]);
    disk.fail_reads("/f", 512..8000);
    disk.crash(&Rng::seeded(1));
    let file = open(&disk, "/f");
    assert_eq!(now(file.read_at(0, 512)).unwrap(), vec![3; 512]);
    assert!(now(file.read_at(0, 513)).is_err());
    assert!(file.map_sealed(7999, 1).is_err());
    assert!(write(&file, 1024, [4; 512]).is_err(), "the rest of the page cannot be read");
    write(&file, 4096, [4; 4096]).unwrap();
    assert_eq!(now(file.read_at(4096, 4096)).unwrap(), vec![4; 4096]);
    assert!(now(file.read_at(4095, 1)).is_err());
    disk.heal();
    assert_eq!(now(file.read_at(0, 9000)).unwrap().len(), 9000);
}

#[test]
fn a_full_disk_takes_what_fits_and_frees_what_is_removed() {
    let disk = disk();
    disk.set_capacity(4 * 4096);
    let (a, b) = (open(&disk, "/a"), open(&disk, "/b"));
    now(a.allocate(2 * 4096)).unwrap();
    let full = write(&b, 0, [1; 3 * 4096]).unwrap_err();
    assert_eq!((full.kind(), b.len().unwrap()), (io::ErrorKind::StorageFull, 2 * 4096));
    assert_eq!(now(disk.space(Path::new("/"))).unwrap().free_bytes, 0);
    assert_eq!(now(b.allocate(3 * 4096)).unwrap_err().kind(), io::ErrorKind::StorageFull);
    // Allocated space is there when it is needed.
    write(&a, 0, [1; 2 * 4096]).unwrap();
    // Removed is not free while it is open.
    now(disk.remove_file(Path::new("/a"))).unwrap();
    assert!(write(&b, 2 * 4096, [1; 1]).is_err());
    drop(a);
    write(&b, 2 * 4096, [1; 1]).unwrap();
}

#[test]
fn a_flipped_bit_is_seen_at_once_and_after_a_crash() {
    let disk = disk();
    durable(&disk, "/f", [0; 5000]);
    disk.flip_bit("/f", 4999, 3);
    assert_eq!(disk.dump()[Path::new("/f")][4999], 8);
    assert_eq!(only_crash(&disk)[Path::new("/f")][4999], 8);
}

#[test]
fn a_misdirected_write_succeeds_elsewhere() {
    let disk = disk();
    let victim = durable(&disk, "/victim", b"......");
    let file = durable(&disk, "/f", b"......");
    disk.misdirect_write("/f", 1, "/victim", 2);
    write(&file, 0, b"xx").unwrap();
    now(file.sync_data()).unwrap();
    now(victim.sync_data()).unwrap();
    assert_eq!(only_crash(&disk), dump(&[("/f", b"......"), ("/victim", b"..xx..")]));
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_takes_its_time() {
    let disk = disk();
    let clock = env::Clock::simulated();
    let file = disk.open(Path::new("/f"), Open::New).await.unwrap();
    assert_eq!(clock.monotonic(), Duration::ZERO);
    disk.set_latency(Latency { sync: Duration::from_secs(1), ..Latency::default() });
    file.write_at(0, &[Bytes::from_static(b"x")]).await.unwrap();
    assert_eq!(clock.monotonic(), Duration::ZERO);
    // A crash while the sync is under way: it has not happened, and never will.
    let (result, ()) = tokio::join!(file.sync_data(), async {
        clock.sleep(Duration::from_millis(100)).await;
        disk.crash_keeping(|_| true);
    });
    assert!(result.is_err());
    let taken = clock.monotonic();
    assert!((Duration::from_millis(500)..=Duration::from_millis(1502)).contains(&taken), "took {taken:?}");
}

#[test]
fn a_fork_goes_its_own_way() {
    let disk = disk();
    let file = durable(&disk, "/f", [1; 100_000]);
    write(&file, 50_000, [2; 10]).unwrap();
    let fork = disk.fork();
    let before = (disk.dump(), all_crashes(&disk));
    assert_eq!((fork.dump(), all_crashes(&fork)), before);
    write(&open(&fork, "/f"), 0, [3; 100_000]).unwrap();
    now(fork.remove_file(Path::new("/f"))).unwrap();
    fork.crash(&Rng::seeded(1));
    assert_eq!((disk.dump(), all_crashes(&disk)), before);
    write(&file, 0, [4; 10]).unwrap();
}

/// What one random workload promised: for each file its bytes as last synced, and all that was written since.
#[derive(Clone, Debug, Default)]
struct Promise {
    synced: Vec<u8>,
    written_since: Vec<(u64, Vec<u8>)>,
    name_synced: bool,
}

/// Random writes, syncs and directory syncs on four files; what a crash must respect after each recorded operation.
fn random_workload(disk: &SimDisk, rng: &Rng, calls: usize) -> Vec<(usize, BTreeMap<PathBuf, Promise>)> {
    let mut promises: BTreeMap<PathBuf, Promise> = BTreeMap::new();
    let mut history = vec![(0, promises.clone())];
    for _ in 0..calls {
        let path = format!("/{}", rng.below(4));
        let file = open(disk, &path);
        let promise = promises.entry(path.into()).or_default();
        match rng.below(8) {
            0..5 => {
                let mut bytes = vec![0; rng.below(3000) as usize];
                rng.fill(&mut bytes);
                let offset = rng.below(10_000);
                write(&file, offset, &bytes).unwrap();
                promise.written_since.push((offset, bytes));
            }
            5 | 6 => {
                now(file.sync_data()).unwrap();
                promise.synced = now(file.read_at(0, usize::MAX)).unwrap().to_vec();
                promise.written_since.clear();
            }
            _ => {
                now(disk.sync_dir(Path::new("/"))).unwrap();
                promises.values_mut().for_each(|promise| promise.name_synced = true);
            }
        }
        history.push((disk.recorded_len(), promises.clone()));
    }
    history
}

/// Every byte is what was synced, or what was written to its place since; every synced name is there.
fn check(found: &Dump, promises: &BTreeMap<PathBuf, Promise>, seed: u64) {
    for (path, promise) in promises {
        let Some(bytes) = found.get(path) else {
            assert!(!promise.name_synced, "{path:?} is gone, seed {seed}");
            continue;
        };
        assert!(bytes.len() >= promise.synced.len(), "{path:?} is shorter than it was synced, seed {seed}");
        for (position, byte) in bytes.iter().enumerate() {
            let synced = promise.synced.get(position).copied().unwrap_or(0);
            let since = promise.written_since.iter().any(|(offset, written)| {
                position.checked_sub(*offset as usize).and_then(|index| written.get(index)) == Some(byte)
            });
            assert!(*byte == synced || since, "{path:?} has a strange byte at {position}, seed {seed}");
        }
    }
}

#[test]
fn no_crash_after_any_prefix_breaks_a_promise() {
    let first_seed = Rng::from_entropy().u64();
    for seed in (0..10).map(|round| first_seed.wrapping_add(round)) {
        let (disk, rng) = (disk(), Rng::seeded(seed));
        disk.record();
        let history = random_workload(&disk, &rng, 40);
        let prefix = SimDisk::new(Rng::seeded(0));
        let mut done = 0;
        for (recorded_len, promises) in history {
            for operation in &disk.recorded()[done..recorded_len] {
                prefix.repeat(operation);
            }
            done = recorded_len;
            for _ in 0..5 {
                let crashed = prefix.fork();
                crashed.crash(&rng);
                check(&crashed.dump(), &promises, seed);
            }
        }
    }
}

#[test]
fn replaying_the_whole_record_gives_the_same_disk() {
    let first_seed = Rng::from_entropy().u64();
    for seed in (0..10).map(|round| first_seed.wrapping_add(round)) {
        let (disk, rng) = (SimDisk::new(Rng::seeded(seed)), Rng::seeded(seed));
        disk.record();
        for round in 0..4 {
            random_workload(&disk, &rng, 10);
            let file = open(&disk, "/more");
            disk.fail_write("/more", 1);
            let _ = write(&file, round * 100, [9; 1000]);
            now(disk.rename(Path::new("/more"), Path::new("/1"))).unwrap();
            disk.fail_sync("/", 1 + rng.below(2));
            let _ = now(file.sync_data());
            let _ = now(disk.sync_dir(Path::new("/")));
            now(disk.remove_file(Path::new("/1"))).unwrap();
            write(&file, 10_000, [8; 1000]).unwrap();
            disk.heal();
            match rng.below(4) {
                0 => drop(disk.crash(&rng)),
                1 => disk.process_kill(),
                2 => disk.wipe(),
                _ => {}
            }
        }
        random_workload(&disk, &rng, 10);
        let replayed = SimDisk::replay(&disk.recorded());
        assert!(disk.dump() == replayed.dump(), "replay looks different, seed {seed}");
        assert_eq!(disk.describe_unsynced(), replayed.describe_unsynced(), "seed {seed}");
        for _ in 0..50 {
            let (a, b) = (disk.fork(), replayed.fork());
            let kept = a.crash(&rng);
            b.crash_keeping(|unit| kept[unit]);
            assert!(a.dump() == b.dump(), "replay crashes differently, seed {seed}");
        }
    }
}

/// A hash for tests: that of the standard library, whose keys are fixed when it is made like this.
fn hash(disk: &SimDisk) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    disk.hash_into(&mut hasher);
    hasher.finish()
}

#[test]
fn disks_that_look_equal_hash_equal_and_others_do_not() {
    let disk = disk();
    let file = durable(&disk, "/f", [1; 5000]);
    let mut hashes = vec![hash(&disk)];
    let mut change = |done: &dyn Fn()| {
        done();
        assert!(!hashes.contains(&hash(&disk)), "one of {} changes was not noticed", hashes.len());
        hashes.push(hash(&disk));
    };
    change(&|| write(&file, 4999, [2]).unwrap());
    change(&|| now(file.set_len(1 << 20)).unwrap());
    change(&|| now(disk.create_dir_all(Path::new("/d/e"))).unwrap());
    change(&|| now(disk.rename(Path::new("/f"), Path::new("/d/f"))).unwrap());
    change(&|| now(disk.rename(Path::new("/d/f"), Path::new("/d/e/f"))).unwrap());
    let same = |done: &dyn Fn()| {
        let before = hash(&disk);
        done();
        assert_eq!(hash(&disk), before);
    };
    // Zeros are zeros, written or not, and durable bytes look like others.
    same(&|| write(&file, 300_000, [0; 10_000]).unwrap());
    same(&|| now(file.sync_data()).unwrap());
    same(&|| disk.process_kill());
    assert_eq!(hash(&disk.fork()), hash(&disk));
}

#[test]
fn a_record_holds_changes_and_not_looks() {
    let disk = disk();
    durable(&disk, "/before", b"x");
    disk.record();
    let file = open(&disk, "/before");
    now(file.read_at(0, 1)).unwrap();
    now(disk.list(Path::new("/"))).unwrap();
    assert_eq!(disk.recorded_len(), 0);
    write(&file, 1, b"y").unwrap();
    let recorded = disk.recorded();
    let [Operation::Write { file, offset: 1, buffers }] = recorded.as_slice() else { panic!("{recorded:?}") };
    assert_eq!(disk.path_of(*file).unwrap(), Path::new("/before"));
    assert_eq!(buffers[..], [Bytes::from_static(b"y")]);
}

#[test]
fn the_same_seed_gives_the_same_crash() {
    let run = |seed| {
        let (disk, rng) = (disk(), Rng::seeded(seed));
        random_workload(&disk, &rng, 30);
        disk.crash(&rng);
        disk.dump()
    };
    assert!(run(5) == run(5));
    assert!(run(5) != run(6));
}

//! What can go wrong with the disk of a broker that runs: it is full, fails, stands still, or crawls.
//!
//! Each fault is a real one, below the broker and unknown to it, and proves itself with a probe of the harness's own
//! before anything is judged: [`Struck::evidence`]. One that the machine cannot produce is `Unsupported`. However a run
//! ends, [`Struck`] takes the fault away again: a file system that is left frozen would hold up the whole machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::cgroup::Group;
use crate::disk::{Disk, Medium, path, run};

/// How much slower a slow disk is.
pub const SLOWER: u32 = 100;

/// A disk whose fdatasync takes less is not slow, however fast it was.
const SLOW: Duration = Duration::from_millis(50);

/// A probe that has not returned after this long is blocked.
const BLOCKED: Duration = Duration::from_millis(500);

/// How long the broker may keep a file's pages mapped.
const UNMAPPED: Duration = Duration::from_secs(60);

/// Bytes of a block.
const BLOCK: u64 = 4096;

/// Blocks that go bad at once, far apart in one file.
const BAD_BLOCKS: u64 = 8;

/// Bytes of an image that are looked at in one go.
const CHUNK: usize = 1 << 20;

/// What happens to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// ENOSPC: somebody else's file takes all that is free.
    Full,
    /// EIO from every call: the file system has shut itself down.
    ErrorWrite,
    /// EIO from `fdatasync`, after writes that succeed. A second `fdatasync` would succeed.
    ErrorSync,
    /// EIO from reads of some blocks of a full CommitLog file, until they are written again.
    ErrorRead,
    /// Writes and syncs do not return.
    Frozen,
    /// A hundredth of the syncs and bytes a second.
    Slow,
}

impl DiskFault {
    /// Makes a disk that can have this fault.
    pub fn disk(self, dir: &Path, name: &str, mib: u64) -> io::Result<Disk> {
        match self {
            DiskFault::ErrorSync => Disk::create_in_memory(dir, name, mib),
            DiskFault::ErrorRead => Disk::create_with_checksums(dir, name, mib),
            _ => Disk::create(dir, name, mib),
        }
    }

    /// Whether the broker can only end, or may also hand over and wait for better times.
    pub fn is_fatal(self) -> bool {
        !matches!(self, DiskFault::Frozen | DiskFault::Slow)
    }

    /// Strikes the disk that the process `broker` uses for the directory `data_dir`. `healthy` is how it was before.
    pub fn strike(self, disk: &Arc<Disk>, healthy: Speed, broker: u32, data_dir: &Path) -> io::Result<Struck> {
        // Opened while it can be.
        let probe_path = disk.mount_point().join("probe");
        let probe = fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&probe_path)?;
        probe.write_all_at(&noise(0), 0)?;
        probe.sync_all()?;
        let mut struck = Struck { disk: disk.clone(), cause: Cause::None, evidence: String::new() };
        match self {
            DiskFault::Full => {
                struck.cause = Cause::Ballast(disk.mount_point().join("somebody-elses-file"));
                struck.evidence = struck.fill()?;
            }
            DiskFault::ErrorWrite => {
                struck.cause = Cause::ShutDown;
                disk.shut_down()?;
                struck.evidence = format!("a probe's write: {}", failure(probe.write_all_at(&noise(1), 0))?);
            }
            DiskFault::ErrorSync => {
                struck.cause = Cause::MemoryLimit;
                struck.limit_memory(BLOCK)?;
                probe.write_all_at(&noise(1), 0)?;
                let first = failure(probe.sync_data())?;
                let second = probe.sync_data().map_or_else(|error| error.to_string(), |()| "success".to_owned());
                struck.evidence = format!("a probe's write succeeds, its fdatasync: {first}; tried again: {second}");
            }
            DiskFault::ErrorRead => {
                struck.evidence = struck.spoil_blocks(data_dir)?;
            }
            DiskFault::Frozen => {
                struck.freeze(&probe_path)?;
            }
            DiskFault::Slow => {
                struck.evidence = struck.throttle(healthy, broker, &probe_path)?;
            }
        }
        Ok(struck)
    }
}

/// How fast a disk is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    /// Writes of a page with `fdatasync`, a second.
    pub syncs_per_s: f64,
    /// Bytes written in one go, a second.
    pub bytes_per_s: f64,
}

impl Speed {
    /// Measures a disk that nobody else is using.
    pub fn measure(disk: &Disk) -> io::Result<Speed> {
        const SYNCS: u64 = 100;
        const BYTES: usize = 32 << 20;
        let probe_path = disk.mount_point().join("probe");
        let probe = fs::File::create(&probe_path)?;
        probe.write_all_at(&vec![1; BYTES], 0)?;
        let began = Instant::now();
        probe.sync_data()?;
        let bytes_per_s = BYTES as f64 / began.elapsed().as_secs_f64();
        let began = Instant::now();
        for at in 0..SYNCS {
            probe.write_all_at(&noise(at), at * BLOCK)?;
            probe.sync_data()?;
        }
        let syncs_per_s = SYNCS as f64 / began.elapsed().as_secs_f64();
        fs::remove_file(&probe_path)?;
        Ok(Speed { syncs_per_s, bytes_per_s })
    }
}

/// A disk with a fault, until it is healed or this is dropped.
#[derive(Debug)]
pub struct Struck {
    disk: Arc<Disk>,
    cause: Cause,
    evidence: String,
}

/// What has to be undone.
#[derive(Debug)]
enum Cause {
    None,
    Ballast(PathBuf),
    ShutDown,
    MemoryLimit,
    /// Blocks of a file that cannot be read, at these offsets.
    BadBlocks(PathBuf, Vec<u64>),
    /// With a probe whose write is stuck.
    Freeze(Option<Child>),
    Throttle(Throttle),
}

impl Struck {
    /// What a probe saw of the fault.
    pub fn evidence(&self) -> &str {
        &self.evidence
    }

    /// Whether the file system must be unmounted before it can be used again, by nobody.
    pub fn needs_a_mount(&self) -> bool {
        matches!(self.cause, Cause::ShutDown | Cause::MemoryLimit)
    }

    /// Takes the fault away. If [`Struck::needs_a_mount`], the broker must have ended.
    pub fn heal(mut self) -> io::Result<()> {
        self.undo()?;
        if matches!(self.cause, Cause::ShutDown | Cause::MemoryLimit) {
            self.disk.check_and_remount()?;
        }
        self.cause = Cause::None;
        Ok(())
    }

    fn undo(&mut self) -> io::Result<()> {
        match &mut self.cause {
            Cause::None | Cause::ShutDown => Ok(()),
            Cause::Ballast(ballast) => fs::remove_file(ballast),
            Cause::MemoryLimit => self.limit_memory(0),
            // It is the replica that mends them.
            Cause::BadBlocks(..) => Ok(()),
            Cause::Freeze(probe) => {
                run("fsfreeze", &["-u", path(self.disk.mount_point())?])?;
                let Some(mut probe) = probe.take() else { return Ok(()) };
                let status = probe.wait()?;
                if status.success() { Ok(()) } else { Err(io::Error::other(format!("the thawed probe: {status}"))) }
            }
            Cause::Throttle(throttle) => throttle.lift(),
        }
    }

    /// Takes all free space, down to the last block.
    fn fill(&self) -> io::Result<String> {
        let Cause::Ballast(ballast) = &self.cause else { unreachable!("there is ballast to come") };
        let file = fs::File::create(ballast)?;
        let mut end = 0;
        let mut piece = 1 << 30;
        while piece >= BLOCK {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), end, piece) {
                Ok(()) => end += piece,
                Err(Errno::NOSPC) => piece /= 2,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let space = rustix::fs::statvfs(self.disk.mount_point())?;
        let probe = self.disk.mount_point().join("one-more-file");
        let refused = failure(fs::File::create(&probe).and_then(|mut file| {
            file.write_all(&noise(1))?;
            file.sync_all()
        }));
        // An empty file may still fit into its directory's block.
        let _ = fs::remove_file(&probe);
        Ok(format!("{} bytes free, one more file: {}", space.f_bavail * space.f_frsize, refused?))
    }

    fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        let limit = self.disk.zram("mem_limit").expect("made in memory");
        fs::write(limit, bytes.to_string())
    }

    /// Turns blocks of a full CommitLog file over in the image: their checksums do not hold, and the kernel gives EIO for
    /// them. Written anew they can be read again, as sectors can that a disk has replaced.
    fn spoil_blocks(&mut self, data_dir: &Path) -> io::Result<String> {
        let Medium::File(image) = self.disk.medium() else { unreachable!("made on a file") };
        let segment = full_segments(data_dir)?.into_iter().next();
        let segment = segment.ok_or_else(|| io::Error::other(format!("{} has no full segment", data_dir.display())))?;
        let file = fs::File::open(&segment)?;
        let blocks = file.metadata()?.len() / BLOCK;
        let places: Vec<u64> = (1..=BAD_BLOCKS).map(|k| k * blocks / (BAD_BLOCKS + 1) * BLOCK).collect();
        let mut contents = Vec::new();
        for place in &places {
            let mut content = vec![0; BLOCK as usize];
            file.read_exact_at(&mut content, *place)?;
            contents.push(content);
        }
        run("sync", &["-f", path(self.disk.mount_point())?])?;
        let image = fs::OpenOptions::new().read(true).write(true).open(image)?;
        turn_over(&image, &contents)?;
        self.cause = Cause::BadBlocks(segment.clone(), places.clone());
        let deadline = Instant::now() + UNMAPPED;
        loop {
            // Pages that the broker has mapped stay.
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
            let readable = places.iter().filter(|place| read_block(&file, **place).is_ok()).count();
            if readable == 0 {
                let error = failure(read_block(&file, places[0]))?;
                let (count, name) = (places.len(), segment.display());
                return Ok(format!("a probe's read of each of {count} blocks of {name}: {error}"));
            }
            if Instant::now() > deadline {
                let what = format!("{readable} bad blocks of {} can be read", segment.display());
                return Err(io::Error::new(io::ErrorKind::Unsupported, what));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// An error if blocks are still bad.
    pub fn is_mended(&self) -> io::Result<()> {
        let Cause::BadBlocks(segment, places) = &self.cause else { return Ok(()) };
        let file = fs::File::open(segment)?;
        places
            .iter()
            .try_for_each(|place| read_block(&file, *place))
            .map_err(|error| io::Error::other(format!("{} is not mended: {error}", segment.display())))
    }

    fn freeze(&mut self, probe: &Path) -> io::Result<()> {
        run("fsfreeze", &["-f", path(self.disk.mount_point())?])?;
        self.cause = Cause::Freeze(None);
        let mut child = dd(probe, 1).spawn()?;
        std::thread::sleep(BLOCKED);
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("a probe's write goes through: {status}")));
        }
        self.cause = Cause::Freeze(Some(child));
        self.evidence = format!("a probe's write has not returned after {BLOCKED:?}");
        Ok(())
    }

    fn throttle(&mut self, healthy: Speed, broker: u32, probe: &Path) -> io::Result<String> {
        const SYNCS: u32 = 3;
        let expected = Duration::from_secs_f64(f64::from(SLOWER) / healthy.syncs_per_s);
        if expected < SLOW {
            let what =
                format!("a hundredth of this medium's speed, {expected:.1?} for fdatasync, is an ordinary disk's");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        self.cause = Cause::Throttle(Throttle::set(&self.disk.device_number()?, healthy)?);
        let Cause::Throttle(throttle) = &mut self.cause else { unreachable!("just set") };
        let began = Instant::now();
        let mut child = dd(probe, SYNCS).stdin(Stdio::piped()).spawn()?;
        throttle.group.hold_for_a_while(child.id())?;
        // It reads what it writes: nothing is written before it is held.
        child.stdin.take().expect("piped").write_all(&noise(1).repeat(SYNCS as usize))?;
        let status = child.wait()?;
        let each = began.elapsed() / SYNCS;
        let before = Duration::from_secs_f64(1.0 / healthy.syncs_per_s);
        if !status.success() || each < before * SLOWER / 4 {
            let what = format!("a probe's fdatasync takes {each:?}, and {before:?} before ({status})");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        throttle.group.hold(broker)?;
        Ok(format!("a probe's fdatasync takes {each:.1?}, {before:.1?} before; {}", throttle.counted()?))
    }
}

impl Drop for Struck {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            eprintln!("cannot take {:?} away from {}: {error}", self.cause, self.disk.mount_point().display());
        }
    }
}

/// A control group whose writes to one device are limited.
#[derive(Debug)]
struct Throttle {
    group: Group,
    device: String,
}

impl Throttle {
    const IOPS: &str = "blkio.throttle.write_iops_device";
    const BPS: &str = "blkio.throttle.write_bps_device";

    fn set(device: &str, healthy: Speed) -> io::Result<Throttle> {
        let group = Group::create("blkio", Throttle::IOPS)?;
        let limit = |rate: f64| format!("{device} {}", ((rate / f64::from(SLOWER)) as u64).max(1));
        group.write(Throttle::IOPS, &limit(healthy.syncs_per_s))?;
        group.write(Throttle::BPS, &limit(healthy.bytes_per_s))?;
        Ok(Throttle { group, device: device.to_owned() })
    }

    /// The kernel's own count of what it let through.
    fn counted(&self) -> io::Result<String> {
        let text = self.group.read("blkio.throttle.io_serviced")?;
        let wanted = format!("{} Write ", self.device);
        let writes = text.lines().find_map(|line| line.strip_prefix(&wanted)).unwrap_or("0");
        Ok(format!("{writes} throttled writes so far"))
    }

    fn lift(&mut self) -> io::Result<()> {
        for file in [Throttle::IOPS, Throttle::BPS] {
            self.group.write(file, &format!("{} 0", self.device))?;
        }
        self.group.remove()
    }
}

/// A child that writes `count` blocks from its input, each synced.
fn dd(probe: &Path, count: u32) -> Command {
    let mut command = Command::new("dd");
    command
        .arg(format!("of={}", probe.display()))
        .arg(format!("bs={BLOCK}"))
        .arg(format!("count={count}"))
        .args(["iflag=fullblock", "oflag=dsync", "conv=notrunc", "status=none"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if count == 1 {
        command.arg("if=/dev/zero");
    }
    command
}

/// CommitLog files that are full, oldest first: others are prepared ahead, and end with zeros.
pub fn full_segments(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    /// More than an entry of the workload may leave unused at the end.
    const END: u64 = 1 << 20;
    let names = fs::read_dir(data_dir.join("commitlog"))?.map(|entry| entry.map(|entry| entry.path()));
    let mut segments: Vec<PathBuf> = names.collect::<io::Result<_>>()?;
    segments.retain(|path| path.extension().is_none());
    segments.sort();
    let mut full = Vec::new();
    for segment in segments {
        let file = fs::File::open(&segment)?;
        let mut end = vec![0; END as usize];
        file.read_exact_at(&mut end, file.metadata()?.len().saturating_sub(END))?;
        if end.iter().any(|byte| *byte != 0) {
            full.push(segment);
        }
    }
    Ok(full)
}

fn read_block(file: &fs::File, place: u64) -> io::Result<()> {
    file.read_exact_at(&mut [0; BLOCK as usize], place)
}

/// Inverts the blocks of `image` that have one of these contents, each of which must be there.
fn turn_over(image: &fs::File, contents: &[Vec<u8>]) -> io::Result<()> {
    let mut missing: BTreeMap<&[u8], bool> = contents.iter().map(|content| (content.as_slice(), true)).collect();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    loop {
        at = match rustix::fs::seek(image, SeekFrom::Data(at)) {
            Ok(data) => data / BLOCK * BLOCK,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let read = image.read_at(&mut chunk, at)?;
        for (place, block) in (at..).step_by(BLOCK as usize).zip(chunk[..read].chunks_exact(BLOCK as usize)) {
            if let Some(is_missing) = missing.get_mut(block) {
                *is_missing = false;
                image.write_all_at(&block.iter().map(|byte| !byte).collect::<Vec<u8>>(), place)?;
            }
        }
        at += read as u64;
    }
    match missing.values().filter(|is_missing| **is_missing).count() {
        0 => image.sync_data(),
        count => Err(io::Error::other(format!("{count} blocks of the file are not in the image"))),
    }
}

/// A block that does not compress and is not what another seed gives.
fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK as usize];
    env::Rng::seeded(seed).fill(&mut bytes);
    bytes
}

/// The error, which must be there: a call that succeeds proves that the fault is none.
fn failure<T>(result: io::Result<T>) -> io::Result<io::Error> {
    match result {
        Err(error) => Ok(error),
        Ok(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "a probe notices nothing of the fault")),
    }
}

//! A file system in memory that forgets, tears, fails and lies as real ones do, at the test's command.
//!
//! - **Crashes.** [`SimDisk::crash`] is a power failure: what was synced survives, and of the rest a random subset.
//!   [`SimDisk::crash_keeping`] lets the test choose the subset, to go through all of them. [`SimDisk::process_kill`]
//!   keeps the data, as the page cache does. All of them invalidate every handle and lock from before.
//! - **Faults.** The next sync, write or read fails, the disk is full, slow, flips a bit, writes to the wrong place.
//! - **Every prefix.** [`SimDisk::record`] keeps each change as an [`Operation`]; [`SimDisk::repeat`] makes it happen
//!   again elsewhere. A test can thus stop a workload after each single call, [`SimDisk::fork`] the disk (cheap:
//!   copies share their pages), crash the fork, and look at what a restart makes of it.
//!
//! The unsynced units, of which a crash keeps any subset: of a write each 512-byte sector it touches and, if it made the
//! file longer, the new length alone; a change of length or an allocation; a name created, renamed or removed. Those
//! kept are applied in the order of the calls. A sector makes the file long enough to show it; gaps are zeros. A kept
//! write may overtake another of the same sector that was lost, which is crueller than a page cache.
//!
//! Deterministic: the same calls, in the same order, on a disk with the same seed, give the same bytes.

mod contents;
mod names;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::Hasher;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use contents::PAGE_BYTES;
pub use names::FileId;
pub use state::Operation;
use state::State;

use super::{Disk, File, Lock, Name, Open, Space, assert_whole_pages, zeros};
use crate::Rng;
use crate::witness::{self, Seen};

/// Size of a disk whose [`SimDisk::set_capacity`] was never called.
const DEFAULT_CAPACITY_BYTES: u64 = 1 << 40;

/// Longer files are refused, as on real disks.
const MAX_FILE_BYTES: u64 = i64::MAX as u64;

/// A simulated disk. Clones are the same disk; [`SimDisk::fork`] makes another one.
#[derive(Clone)]
pub struct SimDisk {
    machine: Arc<Mutex<Machine>>,
    /// Whose calls these are; `None`: the test's own, which outlive crashes.
    process: Option<Process>,
}

/// The processes that ran on a disk, one after the other: each crash or kill ends one and begins the next.
type Process = u64;

/// How long calls take: each a random time between half and one and a half of what is set here. Zero: no time at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Of reading, listing and opening. Not of [`File::map_sealed`] and [`File::len`], which cannot wait.
    pub read: Duration,
    /// Of writing, and of changing lengths and names.
    pub write: Duration,
    /// Of syncing data and names.
    pub sync: Duration,
}

/// Faults that calls have met so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Calls that failed, or went elsewhere.
    pub failed: u64,
    /// Calls for which there was no space.
    pub no_space: u64,
    /// Calls that took time.
    pub delayed: u64,
}

/// A disk and what goes on around it.
struct Machine {
    state: State,
    /// Handles and locks remember the process that made them; only those of the current one work.
    process: Process,
    /// Power failures so far. A killed process does not reboot the machine.
    boots: u64,
    /// How many handles each file has.
    handles: BTreeMap<FileId, u64>,
    locks: BTreeSet<FileId>,
    capacity_bytes: u64,
    latency: Latency,
    strikes: Vec<Strike>,
    met: Met,
    /// Where reading fails, until written anew.
    unreadable: Vec<(FileId, Range<u64>)>,
    recorded: Option<Vec<Operation>>,
    rng: Rng,
}

/// Something that will happen to the `countdown`th call of its kind at or below `under`.
#[derive(Clone, Debug)]
struct Strike {
    under: PathBuf,
    countdown: u64,
    misfortune: Misfortune,
}

#[derive(Clone, Copy, Debug)]
enum Misfortune {
    FailSync,
    FailWrite,
    FailNames,
    Misdirect { file: FileId, offset: u64 },
}

/// What a strike may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Sync,
    Write,
    /// Cutting, extending, allocating.
    Length,
    /// Creating, renaming, removing.
    Names,
}

impl Misfortune {
    fn strikes(&self, call: Call) -> bool {
        match self {
            Misfortune::FailSync => call == Call::Sync,
            Misfortune::FailWrite => matches!(call, Call::Write | Call::Length),
            Misfortune::FailNames => call == Call::Names,
            Misfortune::Misdirect { .. } => call == Call::Write,
        }
    }
}

impl SimDisk {
    /// An empty disk. `rng` decides what the test leaves open: latencies, how much of a failing write is written.
    pub fn new(rng: Rng) -> SimDisk {
        SimDisk::with(State::default(), 0, rng)
    }

    fn with(state: State, boots: u64, rng: Rng) -> SimDisk {
        let machine = Machine {
            state,
            process: 0,
            boots,
            handles: BTreeMap::new(),
            locks: BTreeSet::new(),
            capacity_bytes: DEFAULT_CAPACITY_BYTES,
            latency: Latency::default(),
            met: Met::default(),
            strikes: Vec::new(),
            unreadable: Vec::new(),
            recorded: None,
            rng,
        };
        SimDisk { machine: Arc::new(Mutex::new(machine)), process: None }
    }

    /// This disk as the present process has it: after the next crash or kill every call fails. What a node gets that
    /// runs as tasks, which a crash of its disk does not end: no leftover of it may write once its successor runs.
    pub fn mount(&self) -> SimDisk {
        SimDisk { machine: Arc::clone(&self.machine), process: Some(self.machine.lock().process) }
    }

    /// Another disk with the same files, durable and not. It has no handles, locks, faults, latency or record; its
    /// random numbers start from a fixed seed, so that forking leaves the original's alone.
    pub fn fork(&self) -> SimDisk {
        let machine = self.machine.lock();
        SimDisk::with(machine.state.clone(), machine.boots, Rng::seeded(0))
    }
}

// Crashes.
impl SimDisk {
    /// Power fails; what was not synced survives by chance. Returns which of the unsynced units survived: the same
    /// choice can be made again with [`SimDisk::crash_keeping`].
    ///
    /// One crash in eight loses everything unsynced, one keeps everything, one keeps a prefix and one all but a run in
    /// the middle; the others keep each unit with a probability that is drawn first.
    pub fn crash(&self, rng: &Rng) -> Vec<bool> {
        let units = self.unsynced();
        let kept: Vec<bool> = match rng.below(8) {
            0 => vec![false; units],
            1 => vec![true; units],
            2 => {
                let end = rng.below(units as u64 + 1) as usize;
                (0..units).map(|unit| unit < end).collect()
            }
            3 => {
                let (a, b) = (rng.below(units as u64 + 1) as usize, rng.below(units as u64 + 1) as usize);
                (0..units).map(|unit| !(a.min(b)..a.max(b)).contains(&unit)).collect()
            }
            _ => {
                let eighths = 1 + rng.below(7);
                (0..units).map(|_| rng.chance(eighths, 8)).collect()
            }
        };
        self.crash_keeping(|unit| kept[unit]);
        kept
    }

    /// Power fails; of the unsynced units, numbered from 0 in the order in which they were written, those survive for
    /// which `keep` says so.
    pub fn crash_keeping(&self, keep: impl FnMut(usize) -> bool) {
        let mut machine = self.machine.lock();
        let kept: Arc<[bool]> = (0..machine.state.units().len()).map(keep).collect();
        machine.perform(Operation::Crash { kept });
    }

    /// How many units a crash could keep or lose now. With n of them there are at most 2^n states after a crash.
    pub fn unsynced(&self) -> usize {
        self.machine.lock().state.units().len()
    }

    /// A line for each unit that a crash could keep or lose now, for a test to print when it fails.
    pub fn describe_unsynced(&self) -> Vec<String> {
        self.machine.lock().state.describe_units()
    }

    /// The process is killed: its handles and locks are gone; what it wrote stays, as unsynced as before.
    pub fn process_kill(&self) {
        let mut machine = self.machine.lock();
        machine.perform(Operation::ProcessKill);
        machine.state.forget_unreachable(|_| false);
    }

    /// The disk is replaced by an empty one, under a running process or between two.
    pub fn wipe(&self) {
        let mut machine = self.machine.lock();
        machine.unreadable.clear();
        machine.perform(Operation::Wipe);
    }
}

// Faults. Each strikes once and is then used up. A path stands for itself and all below it: `/` is the whole disk.
impl SimDisk {
    /// The `nth` sync from now (1: the next) of data or names under `under` fails with EIO. As on Linux file systems the
    /// data then counts as clean: it is still read back, later syncs succeed, and a crash loses it.
    pub fn fail_sync(&self, under: impl AsRef<Path>, nth: u64) {
        self.strike(under, nth, Misfortune::FailSync);
    }

    /// The `nth` write or change of length from now (1: the next) under `under` fails with EIO. Of a write a random part
    /// is written; a length stays as it was.
    pub fn fail_write(&self, under: impl AsRef<Path>, nth: u64) {
        self.strike(under, nth, Misfortune::FailWrite);
    }

    /// The `nth` creation, renaming or removal from now (1: the next) of a name under `under` fails with EIO, and nothing
    /// has happened. A rename counts where its source is.
    pub fn fail_names(&self, under: impl AsRef<Path>, nth: u64) {
        self.strike(under, nth, Misfortune::FailNames);
    }

    /// The `nth` write from now (1: the next) under `under` goes to `offset` of the file `onto` instead, and succeeds.
    pub fn misdirect_write(&self, under: impl AsRef<Path>, nth: u64, onto: impl AsRef<Path>, offset: u64) {
        let file = self.existing(onto);
        self.strike(under, nth, Misfortune::Misdirect { file, offset });
    }

    /// Reading any byte of `range` of the file `path` fails with EIO, also after a crash, until it is written anew: as
    /// whole pages, because the kernel reads a page before it writes a part of it.
    pub fn fail_reads(&self, path: impl AsRef<Path>, range: Range<u64>) {
        let file = self.existing(path);
        self.machine.lock().unreadable.push((file, range));
    }

    /// Inverts bit `bit` (0: the lowest) of the byte at `offset` of the file `path`, durably and at once.
    pub fn flip_bit(&self, path: impl AsRef<Path>, offset: u64, bit: u8) {
        assert!(bit < 8, "a byte has no bit {bit}");
        let file = self.existing(path);
        self.machine.lock().perform(Operation::FlipBit { file, offset, bit });
    }

    /// Writes that would occupy more than this fail with ENOSPC, after the part that fits. Space is counted in pages of
    /// 4 KiB of the files that have a name or a handle; holes are free, allocated ranges are paid for in advance.
    pub fn set_capacity(&self, bytes: u64) {
        self.machine.lock().capacity_bytes = bytes;
    }

    /// Makes calls take time, tokio's time.
    pub fn set_latency(&self, latency: Latency) {
        self.machine.lock().latency = latency;
    }

    /// Which faults calls have met so far.
    pub fn met(&self) -> Met {
        self.machine.lock().met
    }

    /// Takes back all faults that have not struck, the capacity, the latency and unreadable ranges. Damage stays.
    pub fn heal(&self) {
        let mut machine = self.machine.lock();
        machine.strikes.clear();
        machine.unreadable.clear();
        machine.capacity_bytes = DEFAULT_CAPACITY_BYTES;
        machine.latency = Latency::default();
    }

    fn strike(&self, under: impl AsRef<Path>, nth: u64, misfortune: Misfortune) {
        assert!(nth > 0, "the next call is number 1");
        let under = Path::new("/").join(under);
        self.machine.lock().strikes.push(Strike { under, countdown: nth, misfortune });
    }

    fn existing(&self, path: impl AsRef<Path>) -> FileId {
        let path = path.as_ref();
        self.machine.lock().state.find(path).unwrap_or_else(|error| panic!("no file {path:?} to damage: {error}"))
    }
}

// Recording.
impl SimDisk {
    /// Starts a new record of all changes.
    pub fn record(&self) {
        self.machine.lock().recorded = Some(Vec::new());
    }

    /// The changes since [`SimDisk::record`]; none if it was not called.
    pub fn recorded(&self) -> Vec<Operation> {
        self.machine.lock().recorded.clone().unwrap_or_default()
    }

    /// How many changes were recorded so far. A test that notes it at each acknowledgement knows what must survive a
    /// crash after any prefix.
    pub fn recorded_len(&self) -> usize {
        self.machine.lock().recorded.as_ref().map_or(0, Vec::len)
    }

    /// The disk that was empty before `operations` and to which they happened. For a record that was begun later, fork
    /// the disk when it begins, and [`SimDisk::repeat`] on the fork.
    pub fn replay(operations: &[Operation]) -> SimDisk {
        let disk = SimDisk::new(Rng::seeded(0));
        for operation in operations {
            disk.repeat(operation);
        }
        disk
    }

    /// Makes one recorded change happen here. To go through all prefixes of a record, repeat one change at a time and
    /// crash forks.
    pub fn repeat(&self, operation: &Operation) {
        self.machine.lock().perform(operation.clone());
    }

    /// All files with their bytes as programs see them: two disks with equal dumps look equal.
    pub fn dump(&self) -> BTreeMap<PathBuf, Bytes> {
        let machine = self.machine.lock();
        machine.state.files().map(|(path, contents)| (path, contents.read(0, usize::MAX).into())).collect()
    }

    /// Gives the hasher all names and bytes as programs see them: the cheap way to know whether two disks look equal.
    pub fn hash_into(&self, hasher: &mut impl Hasher) {
        self.machine.lock().state.hash_into(hasher);
    }

    /// The path that `file` of an [`Operation`] has now, if any.
    pub fn path_of(&self, file: FileId) -> Option<PathBuf> {
        self.machine.lock().state.path_of(file)
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.machine.lock();
        f.debug_struct("SimDisk")
            .field("files", &machine.state.files().count())
            .field("unsynced", &machine.state.units().len())
            .field("process", &machine.process)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Does it, and records it.
    fn perform(&mut self, operation: Operation) {
        witness_of(&operation);
        if matches!(operation, Operation::Crash { .. } | Operation::ProcessKill | Operation::Wipe) {
            self.process += 1;
            self.handles.clear();
            self.locks.clear();
        }
        if matches!(operation, Operation::Crash { .. }) {
            self.boots += 1;
        }
        self.state.apply(&operation);
        if let Some(recorded) = &mut self.recorded {
            recorded.push(operation);
        }
    }

    /// Whether `process` still runs.
    fn alive(&self, process: Process) -> io::Result<()> {
        if self.process == process { Ok(()) } else { Err(io::Error::other("this process ended with the crash")) }
    }

    fn handle(&mut self, disk: &SimDisk, file: FileId, is_to_read: bool) -> SimFile {
        *self.handles.entry(file).or_default() += 1;
        SimFile { disk: disk.clone(), file, process: self.process, is_to_read }
    }

    fn forget_unreachable(&mut self) {
        let handles = &self.handles;
        self.state.forget_unreachable(|file| handles.contains_key(&file));
    }

    /// The misfortune that meets this call, if any.
    fn struck(&mut self, call: Call, file: FileId) -> Option<Misfortune> {
        if self.strikes.is_empty() {
            return None;
        }
        // A file without a name is nowhere but on the disk.
        let path = self.state.path_of(file).unwrap_or_else(|| PathBuf::from("/"));
        self.struck_at(call, &path)
    }

    fn struck_at(&mut self, call: Call, path: &Path) -> Option<Misfortune> {
        let path = Path::new("/").join(path);
        let mut struck = None;
        self.strikes.retain_mut(|strike| {
            if strike.misfortune.strikes(call) && path.starts_with(&strike.under) {
                strike.countdown -= 1;
                if strike.countdown == 0 {
                    struck = struck.or(Some(strike.misfortune));
                }
            }
            strike.countdown > 0
        });
        self.met.failed += u64::from(struck.is_some());
        struck
    }

    /// Changes a name, unless it is struck.
    fn change_name(&mut self, operation: Operation) -> io::Result<()> {
        let (Operation::CreateFile { path }
        | Operation::CreateDirectory { path }
        | Operation::Rename { from: path, .. }
        | Operation::Remove { path }) = &operation
        else {
            unreachable!("{operation:?} changes no name")
        };
        if self.struck_at(Call::Names, path).is_some() {
            return Err(Errno::IO.into());
        }
        self.perform(operation);
        Ok(())
    }

    fn free_pages(&self) -> u64 {
        let occupied = self.state.occupied_pages(|file| self.handles.contains_key(&file));
        (self.capacity_bytes / PAGE_BYTES).saturating_sub(occupied)
    }

    fn read(&self, file: FileId, offset: u64, len: usize) -> io::Result<Bytes> {
        witness::note(Seen::Disk, file.number(), &offset.to_le_bytes());
        let contents = self.state.contents(file).expect("a file with a handle is there");
        let end = offset.saturating_add(len as u64).min(contents.len());
        let bad = |(bad_file, bad): &(FileId, Range<u64>)| *bad_file == file && bad.start < end && offset < bad.end;
        if self.unreadable.iter().any(bad) {
            return Err(Errno::IO.into());
        }
        Ok(contents.read(offset, len).into())
    }

    fn write(&mut self, file: FileId, offset: u64, buffers: &[Bytes]) -> io::Result<()> {
        let asked: usize = buffers.iter().map(Bytes::len).sum();
        if asked == 0 {
            return Ok(());
        }
        if offset.checked_add(asked as u64).is_none_or(|end| end > MAX_FILE_BYTES) {
            return Err(Errno::FBIG.into());
        }
        // The rest of a page that is written in part is read first.
        for at in [offset, offset + asked as u64] {
            let page = at - at % PAGE_BYTES..(at - at % PAGE_BYTES) + PAGE_BYTES;
            let bad = |(bad_file, bad): &(FileId, Range<u64>)| {
                *bad_file == file && bad.start < page.end && page.start < bad.end
            };
            if at != page.start && self.unreadable.iter().any(bad) {
                return Err(Errno::IO.into());
            }
        }
        let (mut file, mut offset, mut len, mut result) = (file, offset, asked, Ok(()));
        match self.struck(Call::Write, file) {
            Some(Misfortune::FailWrite) => {
                len = self.rng.below(asked as u64 + 1) as usize;
                result = Err(Errno::IO.into());
            }
            Some(Misfortune::Misdirect { file: other, offset: elsewhere }) => (file, offset) = (other, elsewhere),
            Some(Misfortune::FailSync | Misfortune::FailNames) | None => {}
        }
        if self.capacity_bytes < DEFAULT_CAPACITY_BYTES
            && let Some(contents) = self.state.contents(file)
        {
            let fitting = contents.fitting(offset, len, self.free_pages());
            if fitting < len {
                len = fitting;
                self.met.no_space += 1;
                result = Err(Errno::NOSPC.into());
            }
        }
        if len > 0 {
            self.perform(Operation::Write { file, offset, buffers: first_bytes(buffers, len) });
            self.written_anew(file, offset..offset + len as u64);
        }
        result
    }

    fn set_len(&mut self, file: FileId, len: u64) -> io::Result<()> {
        self.may_become(file, len)?;
        self.perform(Operation::SetLen { file, len });
        Ok(())
    }

    fn allocate(&mut self, file: FileId, len: u64) -> io::Result<()> {
        self.may_become(file, len)?;
        let contents = self.state.contents(file).expect("a file with a handle is there");
        let mut reserved = contents.clone();
        reserved.reserve(len);
        if reserved.occupied_pages() - contents.occupied_pages() > self.free_pages() {
            self.met.no_space += 1;
            return Err(Errno::NOSPC.into());
        }
        self.perform(Operation::Allocate { file, len });
        Ok(())
    }

    fn may_become(&mut self, file: FileId, len: u64) -> io::Result<()> {
        if len > MAX_FILE_BYTES {
            return Err(Errno::FBIG.into());
        }
        if self.struck(Call::Length, file).is_some() {
            return Err(Errno::IO.into());
        }
        Ok(())
    }

    /// A sector that could not be read is replaced when it is written.
    fn written_anew(&mut self, file: FileId, written: Range<u64>) {
        if self.unreadable.is_empty() {
            return;
        }
        let mut left = Vec::new();
        for (bad_file, bad) in self.unreadable.drain(..) {
            if bad_file != file {
                left.push((bad_file, bad));
                continue;
            }
            let before = bad.start..bad.end.min(written.start);
            let after = bad.start.max(written.end)..bad.end;
            left.extend([before, after].into_iter().filter(|range| !range.is_empty()).map(|range| (bad_file, range)));
        }
        self.unreadable = left;
    }
}

/// Lets the witness see what changes.
fn witness_of(operation: &Operation) {
    let note = |kind: u64, file: FileId, number: u64| {
        witness::note(Seen::Disk, kind << 56 | file.number() << 8, &number.to_le_bytes());
    };
    let note_path = |kind: u64, path: &Path| witness::note(Seen::Disk, kind << 56, path.as_os_str().as_encoded_bytes());
    match operation {
        Operation::CreateFile { path } => note_path(1, path),
        Operation::CreateDirectory { path } => note_path(2, path),
        Operation::Rename { from, to } => {
            note_path(3, from);
            note_path(4, to);
        }
        Operation::Remove { path } => note_path(5, path),
        Operation::Write { file, offset, buffers } => {
            note(6, *file, *offset);
            buffers.iter().for_each(|bytes| witness::note(Seen::Disk, 6 << 56, bytes));
        }
        Operation::SetLen { file, len } => note(7, *file, *len),
        Operation::Allocate { file, len } => note(8, *file, *len),
        Operation::SyncData { file } => note(9, *file, 0),
        Operation::SyncDirectory { directory } => note(10, *directory, 0),
        Operation::LoseData { file } => note(11, *file, 0),
        Operation::LoseNames { directory } => note(12, *directory, 0),
        Operation::Crash { kept } => kept.iter().for_each(|kept| note(13, names::ROOT, u64::from(*kept))),
        Operation::ProcessKill => note(14, names::ROOT, 0),
        Operation::FlipBit { file, offset, bit } => note(15 + u64::from(*bit), *file, *offset),
        Operation::Wipe => note(30, names::ROOT, 0),
    }
}

/// The first `len` bytes of `buffers`.
fn first_bytes(buffers: &[Bytes], mut len: usize) -> Arc<[Bytes]> {
    let mut first = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let part = buffer.slice(..buffer.len().min(len));
        len -= part.len();
        if !part.is_empty() {
            first.push(part);
        }
    }
    first.into()
}

// The calls of programs.
impl SimDisk {
    /// Waits for as long as a call takes, then does it.
    async fn call<T>(
        &self,
        taking: fn(&Latency) -> Duration,
        work: impl FnOnce(&mut Machine) -> io::Result<T>,
    ) -> io::Result<T> {
        let (typical, rng) = {
            let mut machine = self.machine.lock();
            let typical = taking(&machine.latency);
            machine.met.delayed += u64::from(!typical.is_zero());
            (typical, machine.rng.clone())
        };
        if !typical.is_zero() {
            #[allow(clippy::disallowed_methods)]
            // The simulated disk lives in tokio's time, as the simulated clock does.
            tokio::time::sleep(typical.mul_f64(0.5 + rng.f64())).await;
        }
        let mut machine = self.machine.lock();
        if let Some(process) = self.process {
            machine.alive(process)?;
        }
        work(&mut machine)
    }

    async fn change_names(&self, plan: impl FnOnce(&State) -> io::Result<Vec<Operation>>) -> io::Result<()> {
        self.call(
            |latency| latency.write,
            |machine| plan(&machine.state)?.into_iter().try_for_each(|operation| machine.change_name(operation)),
        )
        .await
    }
}

impl Disk for SimDisk {
    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>> {
        let creates = matches!(how, Open::OrCreate | Open::New);
        self.call(
            |latency| latency.read,
            move |machine| {
                let file = match machine.state.find(path) {
                    Ok(_) if how == Open::New => return Err(io::ErrorKind::AlreadyExists.into()),
                    Ok(file) if machine.state.is_directory(file) => return Err(io::ErrorKind::IsADirectory.into()),
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound && creates => {
                        let create = machine.state.plan_create_file(path)?;
                        machine.change_name(create)?;
                        machine.state.find(path)?
                    }
                    Err(error) => return Err(error),
                };
                let file: Arc<dyn File> = Arc::new(machine.handle(self, file, how == Open::ToRead));
                Ok(file)
            },
        )
        .boxed()
    }

    fn lock<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Lock>> {
        async move {
            let handle = self.open(path, Open::OrCreate).await?;
            let mut machine = self.machine.lock();
            let file = machine.state.find(path)?;
            if !machine.locks.insert(file) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(Lock(Box::new(Locked { disk: self.clone(), file, process: machine.process, _handle: handle })))
        }
        .boxed()
    }

    fn create_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.change_names(|state| state.plan_create_directories(path)).boxed()
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.change_names(|state| Ok(state.plan_rename(from, to)?.into_iter().collect())).boxed()
    }

    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.change_names(|state| Ok(vec![state.plan_remove_file(path)?])).boxed()
    }

    fn remove_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.change_names(|state| Ok(vec![state.plan_remove_directory(path)?])).boxed()
    }

    fn list<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<Name>>> {
        self.call(
            |latency| latency.read,
            |machine| {
                let state = &machine.state;
                let directory = state.find_directory(path)?;
                let name = |(name, file): (&str, FileId)| Name {
                    name: name.to_owned(),
                    is_directory: state.is_directory(file),
                    len: state.contents(file).map_or(0, |contents| contents.len()),
                };
                Ok(state.list(directory).map(name).collect())
            },
        )
        .boxed()
    }

    fn sync_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.call(
            |latency| latency.sync,
            |machine| {
                let directory = machine.state.find_directory(path)?;
                if machine.struck(Call::Sync, directory).is_some() {
                    machine.perform(Operation::LoseNames { directory });
                    return Err(Errno::IO.into());
                }
                machine.perform(Operation::SyncDirectory { directory });
                // What was removed for good takes its bytes along.
                machine.forget_unreachable();
                Ok(())
            },
        )
        .boxed()
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(format!("simulated boot {}", self.machine.lock().boots))
    }

    fn space<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Space>> {
        self.call(
            |latency| latency.read,
            |machine| {
                machine.state.find(path)?;
                let free_bytes = machine.free_pages() * PAGE_BYTES;
                Ok(Space { free_bytes, total_bytes: machine.capacity_bytes })
            },
        )
        .boxed()
    }
}

/// Removes the lock when dropped, if the machine has not done so.
struct Locked {
    disk: SimDisk,
    file: FileId,
    process: Process,
    /// The locked file stays while it is locked.
    _handle: Arc<dyn File>,
}

impl fmt::Debug for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Locked").field(&self.file).finish()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let mut machine = self.disk.machine.lock();
        if machine.process == self.process {
            machine.locks.remove(&self.file);
        }
    }
}

/// An open file of a simulated disk.
struct SimFile {
    disk: SimDisk,
    file: FileId,
    process: Process,
    is_to_read: bool,
}

impl SimFile {
    fn now(&self) -> io::Result<MutexGuard<'_, Machine>> {
        let machine = self.disk.machine.lock();
        machine.alive(self.process)?;
        Ok(machine)
    }

    async fn call<T>(
        &self,
        taking: fn(&Latency) -> Duration,
        work: impl FnOnce(&mut Machine) -> io::Result<T>,
    ) -> io::Result<T> {
        self.disk
            .call(taking, |machine| {
                machine.alive(self.process)?;
                work(machine)
            })
            .await
    }

    async fn change(&self, work: impl FnOnce(&mut Machine) -> io::Result<()>) -> io::Result<()> {
        if self.is_to_read {
            return Err(Errno::BADF.into());
        }
        self.call(|latency| latency.write, work).await
    }
}

impl File for SimFile {
    fn read_at<'a>(&'a self, offset: u64, len: usize) -> BoxFuture<'a, io::Result<Bytes>> {
        self.call(|latency| latency.read, move |machine| machine.read(self.file, offset, len)).boxed()
    }

    fn write_at<'a>(&'a self, offset: u64, buffers: &'a [Bytes]) -> BoxFuture<'a, io::Result<()>> {
        self.change(move |machine| machine.write(self.file, offset, buffers)).boxed()
    }

    fn write_pages<'a>(&'a self, offset: u64, buffers: &'a [Bytes]) -> BoxFuture<'a, io::Result<()>> {
        assert_whole_pages(offset, buffers);
        self.write_at(offset, buffers)
    }

    fn write_zeros<'a>(&'a self, offset: u64, len: u64) -> BoxFuture<'a, io::Result<()>> {
        self.change(move |machine| machine.write(self.file, offset, &zeros(len))).boxed()
    }

    fn sync_data<'a>(&'a self) -> BoxFuture<'a, io::Result<()>> {
        let file = self.file;
        self.call(
            |latency| latency.sync,
            move |machine| {
                if machine.struck(Call::Sync, file).is_some() {
                    machine.perform(Operation::LoseData { file });
                    return Err(Errno::IO.into());
                }
                machine.perform(Operation::SyncData { file });
                Ok(())
            },
        )
        .boxed()
    }

    fn set_len<'a>(&'a self, len: u64) -> BoxFuture<'a, io::Result<()>> {
        self.change(move |machine| machine.set_len(self.file, len)).boxed()
    }

    fn allocate<'a>(&'a self, len: u64) -> BoxFuture<'a, io::Result<()>> {
        self.change(move |machine| machine.allocate(self.file, len)).boxed()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.now()?.state.contents(self.file).expect("a file with a handle is there").len())
    }

    fn map_sealed(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let bytes = self.now()?.read(self.file, offset, len)?;
        if bytes.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    fn release_map(&self) {}
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("file", &self.file).field("process", &self.process).finish_non_exhaustive()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut machine = self.disk.machine.lock();
        if machine.process != self.process {
            return;
        }
        let handles = machine.handles.get_mut(&self.file).expect("an open file is counted");
        *handles -= 1;
        if *handles == 0 {
            machine.handles.remove(&self.file);
            if machine.state.path_of(self.file).is_none() {
                machine.forget_unreachable();
            }
        }
    }
}

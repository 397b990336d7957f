//! What a simulated disk holds, in two versions: as programs see it, and as a power failure would leave it.
//!
//! Pure: every change is an [`Operation`] and the same operations give the same state. Decisions (does this call fail?
//! is there room?) are made before, by the caller, so that an operation is what happened and not what was asked for.
//!
//! A change stays *unsynced* until a sync makes it durable. At a crash each unsynced change is cut into [`Unit`]s, and
//! any subset of them survives: see the parent module.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::contents::{Contents, touched_pages};
use super::names::{FileId, NameChange, Names, ROOT, Spot, components, refused};

/// What a disk writes whole or not at all.
pub(super) const SECTOR_BYTES: u64 = 512;

/// One change of a simulated disk, as recorded and replayed. Calls that change nothing (reads, opening what exists) are
/// not recorded; calls that failed are recorded as the change they left behind, if any.
#[derive(Clone, Debug)]
pub enum Operation {
    /// A file was created, empty.
    CreateFile {
        /// Where.
        path: PathBuf,
    },
    /// One directory was created.
    CreateDirectory {
        /// Where.
        path: PathBuf,
    },
    /// A file or directory was renamed.
    Rename {
        /// Its old path.
        from: PathBuf,
        /// Its new path.
        to: PathBuf,
    },
    /// A name was removed; for a directory, after all names below it, each a change of its own.
    Remove {
        /// The name.
        path: PathBuf,
    },
    /// Bytes were written.
    Write {
        /// Into which file.
        file: FileId,
        /// At which position.
        offset: u64,
        /// The bytes, one buffer behind the other.
        buffers: Arc<[Bytes]>,
    },
    /// The file was cut or extended.
    SetLen {
        /// Which file.
        file: FileId,
        /// Its new length.
        len: u64,
    },
    /// Space was reserved.
    Allocate {
        /// For which file.
        file: FileId,
        /// Below which position.
        len: u64,
    },
    /// A file's data became durable.
    SyncData {
        /// Which file.
        file: FileId,
    },
    /// A directory's names became durable.
    SyncDirectory {
        /// Which directory.
        directory: FileId,
    },
    /// A sync of a file's data failed: what was unsynced is still seen but will never be durable.
    LoseData {
        /// Which file.
        file: FileId,
    },
    /// A sync of a directory failed: what was unsynced is still seen but will never be durable.
    LoseNames {
        /// Which directory.
        directory: FileId,
    },
    /// Power failed.
    Crash {
        /// For each unsynced unit, whether it survived.
        kept: Arc<[bool]>,
    },
    /// The process was killed: handles and locks are gone, data is not.
    ProcessKill,
    /// A bit was inverted at rest.
    FlipBit {
        /// In which file.
        file: FileId,
        /// In which byte.
        offset: u64,
        /// Which bit of it, 0 the lowest.
        bit: u8,
    },
    /// Everything was deleted, durably.
    Wipe,
}

/// The files and names of a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    files: BTreeMap<FileId, Arc<FileState>>,
    directories: BTreeSet<FileId>,
    /// Names as programs see them.
    current: Arc<Names>,
    /// Names that are there after a crash that keeps nothing.
    durable: Arc<Names>,
    /// Applied to `current`, not yet to `durable`; in order.
    unsynced_names: Vec<(Moment, NameChange)>,
    /// The last moment and the last file id given out.
    last_moment: Moment,
    last_file: u64,
}

/// Position in the order of all changes of a disk.
type Moment = u64;

#[derive(Clone, Debug, Default)]
struct FileState {
    /// Bytes as programs see them.
    current: Contents,
    /// Bytes that are there after a crash that keeps nothing.
    durable: Contents,
    /// Applied to `current`, not yet to `durable`; in order.
    unsynced: Vec<(Moment, Change)>,
    /// A sync failed: `durable` lacks changes that are no longer in `unsynced`.
    lost: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, len: u64, buffers: Arc<[Bytes]>, extends: bool },
    SetLen(u64),
    Allocate(u64),
}

/// The smallest thing that survives a crash or does not.
#[derive(Clone, Debug)]
pub(super) enum Unit {
    Sector { file: FileId, from: u64, to: u64, write_offset: u64, buffers: Arc<[Bytes]> },
    AtLeast { file: FileId, len: u64 },
    SetLen { file: FileId, len: u64 },
    Allocate { file: FileId, len: u64 },
    Name(NameChange),
}

// Looking.
impl State {
    /// The file or directory that `path` names.
    pub(super) fn find(&self, path: &Path) -> io::Result<FileId> {
        self.walk(&components(path)?)
    }

    fn walk(&self, names: &[&str]) -> io::Result<FileId> {
        let mut at = ROOT;
        for name in names {
            if !self.is_directory(at) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            at = self.current.get(at, name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    /// The directory that holds, or would hold, the last name of `path`.
    fn spot(&self, path: &Path) -> io::Result<Spot> {
        let names = components(path)?;
        let (name, parents) = names.split_last().ok_or_else(|| refused(path))?;
        let directory = self.walk(parents)?;
        if !self.is_directory(directory) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Spot { directory, name: (*name).to_owned() })
    }

    pub(super) fn is_directory(&self, file: FileId) -> bool {
        file == ROOT || self.directories.contains(&file)
    }

    /// Whether `file` is `directory` or somewhere below it.
    fn is_in(&self, file: FileId, directory: FileId) -> bool {
        let mut below = BTreeSet::new();
        self.current.reach(directory, &mut below);
        below.contains(&file)
    }

    pub(super) fn find_directory(&self, path: &Path) -> io::Result<FileId> {
        let found = self.find(path)?;
        if self.is_directory(found) { Ok(found) } else { Err(io::ErrorKind::NotADirectory.into()) }
    }

    /// Names in a directory with what they stand for, in order.
    pub(super) fn list(&self, directory: FileId) -> impl Iterator<Item = (&str, FileId)> {
        self.current.list(directory)
    }

    pub(super) fn path_of(&self, file: FileId) -> Option<PathBuf> {
        self.current.path_of(file)
    }

    /// The file's bytes as programs see them. Empty for a file that is gone.
    pub(super) fn contents(&self, file: FileId) -> Option<&Contents> {
        self.files.get(&file).map(|state| &state.current)
    }

    /// Pages occupied by files that have a name or are `open`.
    pub(super) fn occupied_pages(&self, open: impl Fn(FileId) -> bool) -> u64 {
        self.files
            .iter()
            .filter(|(file, _)| self.current.place_of(**file).is_some() || open(**file))
            .map(|(_, state)| state.current.occupied_pages())
            .sum()
    }

    /// Gives the hasher all names, and the bytes of the files among them: what programs see, and nothing else.
    pub(super) fn hash_into(&self, hasher: &mut impl Hasher) {
        self.hash_below(ROOT, hasher);
    }

    fn hash_below(&self, directory: FileId, hasher: &mut impl Hasher) {
        for (name, file) in self.list(directory) {
            name.hash(hasher);
            match self.contents(file) {
                Some(contents) => contents.hash_into(hasher),
                None => self.hash_below(file, hasher),
            }
        }
        // No length is as long as this: the names of the directory end here.
        hasher.write_u64(u64::MAX);
    }

    /// Every file that has a name, with its bytes.
    pub(super) fn files(&self) -> impl Iterator<Item = (PathBuf, &Contents)> {
        self.files.iter().filter_map(|(file, state)| Some((self.path_of(*file)?, &state.current)))
    }
}

// Deciding: whether a change of names is possible, and as what operations.
impl State {
    pub(super) fn plan_create_file(&self, path: &Path) -> io::Result<Operation> {
        let spot = self.spot(path)?;
        if self.current.get(spot.directory, &spot.name).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(Operation::CreateFile { path: path.to_owned() })
    }

    pub(super) fn plan_create_directories(&self, path: &Path) -> io::Result<Vec<Operation>> {
        let names = components(path)?;
        let mut at = Some(ROOT);
        let mut so_far = PathBuf::from("/");
        let mut operations = Vec::new();
        for (index, name) in names.iter().enumerate() {
            so_far.push(name);
            at = at.and_then(|directory| self.current.get(directory, name));
            match at {
                Some(found) if self.is_directory(found) => {}
                // As `mkdir -p`: the last name is taken, or a name on the way leads nowhere.
                Some(_) if index + 1 == names.len() => return Err(io::ErrorKind::AlreadyExists.into()),
                Some(_) => return Err(io::ErrorKind::NotADirectory.into()),
                None => operations.push(Operation::CreateDirectory { path: so_far.clone() }),
            }
        }
        Ok(operations)
    }

    pub(super) fn plan_rename(&self, from: &Path, to: &Path) -> io::Result<Option<Operation>> {
        // The order of checks is Linux's.
        let (from_spot, to_spot) = (self.spot(from)?, self.spot(to)?);
        let moved = self.find(from)?;
        if from_spot == to_spot {
            return Ok(None);
        }
        if self.is_in(to_spot.directory, moved) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let Some(replaced) = self.current.get(to_spot.directory, &to_spot.name) {
            if self.is_in(from_spot.directory, replaced) {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            match (self.is_directory(moved), self.is_directory(replaced)) {
                (true, false) => return Err(io::ErrorKind::NotADirectory.into()),
                (false, true) => return Err(io::ErrorKind::IsADirectory.into()),
                (true, true) if self.list(replaced).next().is_some() => {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                _ => {}
            }
        }
        Ok(Some(Operation::Rename { from: from.to_owned(), to: to.to_owned() }))
    }

    pub(super) fn plan_remove_file(&self, path: &Path) -> io::Result<Operation> {
        if self.is_directory(self.find(path)?) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(Operation::Remove { path: path.to_owned() })
    }

    pub(super) fn plan_remove_directory(&self, path: &Path) -> io::Result<Operation> {
        if self.find_directory(path)? == ROOT {
            return Err(refused(path));
        }
        Ok(Operation::Remove { path: path.to_owned() })
    }
}

// Changing.
impl State {
    /// Makes `operation` happen. Panics if it cannot have happened on this disk.
    pub(super) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::CreateFile { path } => {
                let file = self.create(path);
                self.files.insert(file, Arc::default());
            }
            Operation::CreateDirectory { path } => {
                let directory = self.create(path);
                self.directories.insert(directory);
            }
            Operation::Rename { from, to } => {
                let file = self.find(from).expect("a recorded rename has a source");
                let to = self.spot(to).expect("a recorded rename has a target");
                let from = self.current.place_of(file).cloned();
                self.change_names(NameChange::Place { file, from, to });
            }
            Operation::Remove { path } => {
                let file = self.find(path).expect("a recorded removal has an object");
                self.remove_below(file);
            }
            Operation::Write { file, offset, buffers } => {
                let len = buffers.iter().map(|buffer| buffer.len() as u64).sum();
                self.change_file(*file, |state| {
                    let extends = offset + len > state.current.len();
                    write_part(&mut state.current, *offset, buffers, *offset, offset + len);
                    Change::Write { offset: *offset, len, buffers: Arc::clone(buffers), extends }
                });
            }
            Operation::SetLen { file, len } => self.change_file(*file, |state| {
                state.current.set_len(*len);
                Change::SetLen(*len)
            }),
            Operation::Allocate { file, len } => self.change_file(*file, |state| {
                state.current.reserve(*len);
                Change::Allocate(*len)
            }),
            Operation::SyncData { file } => self.sync_data(*file),
            Operation::SyncDirectory { directory } => {
                let synced = self.take_unsynced_names(*directory);
                let durable = Arc::make_mut(&mut self.durable);
                for change in &synced {
                    durable.apply(change);
                }
            }
            Operation::LoseData { file } => {
                if let Some(state) = self.files.get_mut(file) {
                    let state = Arc::make_mut(state);
                    state.lost |= !state.unsynced.is_empty();
                    state.unsynced.clear();
                }
            }
            Operation::LoseNames { directory } => {
                self.take_unsynced_names(*directory);
            }
            Operation::Crash { kept } => {
                let mut kept = kept.iter();
                self.crash(|_| *kept.next().expect("a recorded crash names every unit"));
            }
            Operation::ProcessKill => {}
            Operation::FlipBit { file, offset, bit } => {
                if let Some(state) = self.files.get_mut(file) {
                    let state = Arc::make_mut(state);
                    state.current.flip_bit(*offset, *bit);
                    state.durable.flip_bit(*offset, *bit);
                }
            }
            // Ids go on, so that nothing old is taken for something new.
            Operation::Wipe => {
                *self = State { last_moment: self.last_moment, last_file: self.last_file, ..State::default() };
            }
        }
    }

    /// Files and directories that neither have nor could get back a name, and are not `open`, are forgotten.
    pub(super) fn forget_unreachable(&mut self, open: impl Fn(FileId) -> bool) {
        let reachable = self.reachable();
        self.files.retain(|file, _| reachable.contains(file) || open(*file));
        self.directories.retain(|directory| reachable.contains(directory));
    }

    fn create(&mut self, path: &Path) -> FileId {
        let to = self.spot(path).expect("a recorded creation has a parent");
        self.last_file += 1;
        let file = FileId(self.last_file);
        self.change_names(NameChange::Place { file, from: None, to });
        file
    }

    fn remove_below(&mut self, file: FileId) {
        let below: Vec<FileId> = self.list(file).map(|(_, file)| file).collect();
        for file in below {
            self.remove_below(file);
        }
        let at = self.current.place_of(file).expect("found by its name").clone();
        self.change_names(NameChange::Remove { file, at });
    }

    fn change_names(&mut self, change: NameChange) {
        Arc::make_mut(&mut self.current).apply(&change);
        self.last_moment += 1;
        self.unsynced_names.push((self.last_moment, change));
    }

    /// Nothing happens to a file that is gone for good: it had no name, and no handle is left when it is replayed.
    fn change_file(&mut self, file: FileId, change: impl FnOnce(&mut FileState) -> Change) {
        if let Some(state) = self.files.get_mut(&file) {
            let state = Arc::make_mut(state);
            let change = change(state);
            self.last_moment += 1;
            state.unsynced.push((self.last_moment, change));
        }
    }

    fn sync_data(&mut self, file: FileId) {
        let Some(state) = self.files.get_mut(&file) else { return };
        if state.unsynced.is_empty() {
            return;
        }
        let state = Arc::make_mut(state);
        for (_, change) in std::mem::take(&mut state.unsynced) {
            match change {
                // Pages are written back whole, as they are by now; they also carry what a failed sync left behind
                // in the same page.
                Change::Write { offset, len, .. } => {
                    for page in touched_pages(offset, len) {
                        state.durable.share_page(page, &state.current);
                    }
                }
                Change::SetLen(len) => state.durable.set_len(len),
                Change::Allocate(len) => state.durable.reserve(len),
            }
        }
        state.durable.set_len(state.current.len());
    }

    /// Takes out the changes that a sync of `directory` is about, in order: those of its names, and the earlier ones in
    /// other directories that a rename ties to them. Without the latter a rename could be durable before the creation
    /// that it follows, and a crash that keeps the creation would move the file back.
    fn take_unsynced_names(&mut self, directory: FileId) -> Vec<NameChange> {
        let mut directories = BTreeSet::from([directory]);
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        for (moment, change) in std::mem::take(&mut self.unsynced_names).into_iter().rev() {
            if change.directories().iter().any(|directory| directories.contains(directory)) {
                directories.extend(change.directories());
                taken.push(change);
            } else {
                left.push((moment, change));
            }
        }
        taken.reverse();
        left.reverse();
        self.unsynced_names = left;
        taken
    }
}

// Crashing.
impl State {
    /// What a crash may keep or lose, in the order in which it was done.
    pub(super) fn units(&self) -> Vec<Unit> {
        let reachable = self.reachable();
        let mut changes: Vec<(Moment, Source<'_>)> =
            self.unsynced_names.iter().map(|(moment, change)| (*moment, Source::Name(change))).collect();
        for (file, state) in self.files.iter().filter(|(file, _)| reachable.contains(file)) {
            changes.extend(state.unsynced.iter().map(|(moment, change)| (*moment, Source::File(*file, change))));
        }
        changes.sort_unstable_by_key(|(moment, _)| *moment);
        let mut units = Vec::with_capacity(changes.len());
        for (_, source) in changes {
            match source {
                Source::Name(change) => units.push(Unit::Name(change.clone())),
                Source::File(file, change) => cut(file, change, &mut units),
            }
        }
        units
    }

    /// A line for each of [`State::units`].
    pub(super) fn describe_units(&self) -> Vec<String> {
        let path =
            |file: &FileId| self.path_of(*file).map_or_else(|| format!("{file:?}"), |path| path.display().to_string());
        let at = |spot: &Spot| format!("{}/{}", path(&spot.directory).trim_end_matches('/'), spot.name);
        let describe = |unit: &Unit| match unit {
            Unit::Sector { file, from, to, .. } => format!("{}: bytes {from}..{to}", path(file)),
            Unit::AtLeast { file, len } => format!("{}: length at least {len}", path(file)),
            Unit::SetLen { file, len } => format!("{}: length {len}", path(file)),
            Unit::Allocate { file, len } => format!("{}: allocated to {len}", path(file)),
            Unit::Name(NameChange::Place { from: None, to, .. }) => format!("{}: created", at(to)),
            Unit::Name(NameChange::Place { from: Some(from), to, .. }) => {
                format!("{}: renamed to {}", at(from), at(to))
            }
            Unit::Name(NameChange::Remove { at: spot, .. }) => format!("{}: removed", at(spot)),
        };
        self.units().iter().map(describe).collect()
    }

    /// Power fails: `keep` is asked once for each of [`State::units`], in order; what it keeps, and what was durable,
    /// is all there is from now on.
    pub(super) fn crash(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let units = self.units();
        for (index, unit) in units.iter().enumerate() {
            if keep(index) {
                self.survive(unit);
            }
        }
        self.unsynced_names.clear();
        Arc::make_mut(&mut self.durable).keep_reachable();
        self.current = Arc::clone(&self.durable);
        for state in self.files.values_mut() {
            if state.lost || !state.unsynced.is_empty() {
                let state = Arc::make_mut(state);
                state.unsynced.clear();
                state.lost = false;
                state.current = state.durable.clone();
            }
        }
        self.forget_unreachable(|_| false);
    }

    fn survive(&mut self, unit: &Unit) {
        if let Unit::Name(change) = unit {
            return Arc::make_mut(&mut self.durable).apply(change);
        }
        let (Unit::Sector { file, .. }
        | Unit::AtLeast { file, .. }
        | Unit::SetLen { file, .. }
        | Unit::Allocate { file, .. }) = unit
        else {
            unreachable!("names were dealt with")
        };
        let state = self.files.get_mut(file).expect("a unit belongs to a file that is reachable");
        let durable = &mut Arc::make_mut(state).durable;
        match unit {
            Unit::Sector { from, to, write_offset, buffers, .. } => {
                write_part(durable, *write_offset, buffers, *from, *to);
            }
            Unit::AtLeast { len, .. } => durable.set_len(durable.len().max(*len)),
            Unit::SetLen { len, .. } => durable.set_len(*len),
            Unit::Allocate { len, .. } => durable.reserve(*len),
            Unit::Name(_) => {}
        }
    }

    /// All that has a name, would have one after some crash, or lies below such a directory.
    fn reachable(&self) -> BTreeSet<FileId> {
        let mut found = BTreeSet::new();
        let placed = self.unsynced_names.iter().map(|(_, change)| match change {
            NameChange::Place { file, .. } | NameChange::Remove { file, .. } => *file,
        });
        for start in std::iter::once(ROOT).chain(placed) {
            self.current.reach(start, &mut found);
            self.durable.reach(start, &mut found);
        }
        found
    }
}

enum Source<'a> {
    Name(&'a NameChange),
    File(FileId, &'a Change),
}

/// Cuts a file's change into units.
fn cut(file: FileId, change: &Change, units: &mut Vec<Unit>) {
    match change {
        Change::Write { offset, len, buffers, extends } => {
            let end = offset + len;
            if *extends {
                units.push(Unit::AtLeast { file, len: end });
            }
            let mut from = *offset;
            while from < end {
                let to = (from / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES).min(end);
                units.push(Unit::Sector { file, from, to, write_offset: *offset, buffers: Arc::clone(buffers) });
                from = to;
            }
        }
        Change::SetLen(len) => units.push(Unit::SetLen { file, len: *len }),
        Change::Allocate(len) => units.push(Unit::Allocate { file, len: *len }),
    }
}

/// Writes positions `from..to` of the write of `buffers` at `write_offset`.
fn write_part(contents: &mut Contents, write_offset: u64, buffers: &[Bytes], from: u64, to: u64) {
    let mut start = write_offset;
    for buffer in buffers {
        let end = start + buffer.len() as u64;
        let (part_start, part_end) = (from.max(start), to.min(end));
        if part_start < part_end {
            contents.write(part_start, &buffer[(part_start - start) as usize..(part_end - start) as usize]);
        }
        start = end;
        if start >= to {
            break;
        }
    }
}

//! The tree of names of a simulated disk: which directory holds which name for which file.
//!
//! A disk has two of them, the names as programs see them and the names as a power failure would leave them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};

/// A file or a directory, whatever it is called at the moment. Never used twice on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(pub(super) u64);

impl FileId {
    pub(super) fn number(self) -> u64 {
        self.0
    }
}

/// The directory `/`: always there, always durable.
pub(super) const ROOT: FileId = FileId(0);

/// A place that a file can have: a name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) directory: FileId,
    pub(super) name: String,
}

/// One change of the tree: the unit that survives a crash whole or not at all.
#[derive(Clone, Debug)]
pub(super) enum NameChange {
    /// `file` is at `to` from now on, and nowhere else; what was there before is not there any more.
    Place { file: FileId, from: Option<Spot>, to: Spot },
    /// Nothing is at `at` from now on; `file` was.
    Remove { file: FileId, at: Spot },
}

impl NameChange {
    /// Directories whose sync makes this change durable. For a removed directory also itself: its last changes cannot
    /// be synced by name any more.
    pub(super) fn directories(&self) -> [FileId; 2] {
        match self {
            NameChange::Place { from: Some(from), to, .. } => [from.directory, to.directory],
            NameChange::Place { from: None, to, .. } => [to.directory, to.directory],
            NameChange::Remove { file, at } => [at.directory, *file],
        }
    }
}

/// A tree of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Names in each directory. Directories without names may be missing.
    entries: BTreeMap<FileId, BTreeMap<String, FileId>>,
    /// The inverse: where each file is. At most one place, so there are no hard links.
    places: BTreeMap<FileId, Spot>,
}

impl Names {
    pub(super) fn get(&self, directory: FileId, name: &str) -> Option<FileId> {
        self.entries.get(&directory)?.get(name).copied()
    }

    /// Names in `directory`, in order.
    pub(super) fn list(&self, directory: FileId) -> impl Iterator<Item = (&str, FileId)> {
        self.entries.get(&directory).into_iter().flatten().map(|(name, file)| (name.as_str(), *file))
    }

    pub(super) fn place_of(&self, file: FileId) -> Option<&Spot> {
        self.places.get(&file)
    }

    /// Path of `file` from the root; `None` if it has no name.
    pub(super) fn path_of(&self, file: FileId) -> Option<PathBuf> {
        let mut names = Vec::new();
        let mut at = file;
        while at != ROOT {
            let spot = self.places.get(&at)?;
            names.push(spot.name.as_str());
            at = spot.directory;
        }
        names.push("/");
        Some(names.into_iter().rev().collect())
    }

    pub(super) fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::Place { file, to, .. } => {
                // By file, not by the name it had: after a crash that kept this change and lost the one before, the
                // file may still be where that one found it.
                if let Some(old) = self.places.remove(file) {
                    self.entries.get_mut(&old.directory).expect("a placed file has an entry").remove(&old.name);
                }
                let replaced = self.entries.entry(to.directory).or_default().insert(to.name.clone(), *file);
                if let Some(replaced) = replaced {
                    self.places.remove(&replaced);
                }
                self.places.insert(*file, to.clone());
            }
            NameChange::Remove { at, .. } => {
                let removed = self.entries.get_mut(&at.directory).and_then(|entries| entries.remove(&at.name));
                if let Some(removed) = removed {
                    self.places.remove(&removed);
                }
            }
        }
    }

    /// Adds `start` and all below it to `found`.
    pub(super) fn reach(&self, start: FileId, found: &mut BTreeSet<FileId>) {
        let mut to_visit = vec![start];
        let mut visited = BTreeSet::new();
        while let Some(at) = to_visit.pop() {
            if visited.insert(at) {
                to_visit.extend(self.entries.get(&at).into_iter().flatten().map(|(_, file)| *file));
            }
        }
        found.append(&mut visited);
    }

    /// Forgets all that is not below the root.
    pub(super) fn keep_reachable(&mut self) {
        let mut found = BTreeSet::new();
        self.reach(ROOT, &mut found);
        self.entries.retain(|directory, names| found.contains(directory) && !names.is_empty());
        self.places.retain(|file, _| found.contains(file));
    }
}

/// The names of a path from the root, one by one. Relative paths start at the root.
pub(super) fn components(path: &Path) -> io::Result<Vec<&str>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name.to_str().ok_or_else(|| refused(path))?),
            Component::ParentDir | Component::Prefix(_) => return Err(refused(path)),
        }
    }
    Ok(names)
}

pub(super) fn refused(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("the simulated disk does not take the path {path:?}"))
}

//! The keyed store: the rows of all tables as of one applied entry, N. Rows and N change together or not at all.
//!
//! Derived, but dear: with it a start replays from N only. Two implementations:
//!
//! - [`SledStore`], for real disks. sled is known for directories that will not open after an unclean stop, so that is a
//!   normal event: the directory is moved aside (`state.bad-<n>`), counted, and the rows come from an image or the log.
//!   A sum over all rows is kept beside N and checked at every start.
//! - [`BatchStore`], over [`env::Disk`], for simulations.

mod batches;
mod sled;

use std::io;
use std::path::Path;
use std::time::Duration;

use env::{Env, Executor};
use futures::future::BoxFuture;

pub(crate) use self::batches::BatchStore;
pub(crate) use self::sled::SledStore;
use crate::log::{Boundary, Cursor};
use crate::position::{LogId, PhysicalOffset};

/// A key and its value.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

/// A key and its new value; `None` deletes.
pub(crate) type Change = (Vec<u8>, Option<Vec<u8>>);

/// Rows with this first byte are this replica's own: they enter no image.
pub(crate) const LOCAL: u8 = 0xF0;

/// Rows as of one applied entry.
pub(crate) trait KeyedStore: Send + Sync {
    /// N: all changes up to this entry are in, and no others. `None`: there is nothing here.
    fn boundary(&self) -> Option<Boundary>;

    /// The rows behind `after` in key order, at least one if there is any, then up to `limit_bytes`.
    fn rows<'a>(&'a mut self, after: Option<&'a [u8]>, limit_bytes: usize) -> BoxFuture<'a, io::Result<Vec<Row>>>;

    /// Makes `changes` and N durable, together.
    fn write(&mut self, changes: Vec<Change>, boundary: Boundary) -> BoxFuture<'_, io::Result<()>>;

    /// Removes everything, N durably first: until the next [`KeyedStore::write`] a start finds nothing here.
    fn clear(&mut self) -> BoxFuture<'_, io::Result<()>>;

    /// Adds rows to a cleared store; the next [`KeyedStore::write`] makes them durable.
    fn fill(&mut self, rows: Vec<Row>) -> BoxFuture<'_, io::Result<()>>;

    /// After all rows were read: whether they are the ones that were written.
    fn check(&mut self) -> BoxFuture<'_, io::Result<()>>;
}

/// An opened store, and whether another one had to be moved aside for it.
pub(crate) struct Opened {
    pub store: Box<dyn KeyedStore>,
    pub moved_aside: bool,
}

/// Opens the store in `dir/state`, on the calling thread. One that will not open is moved aside.
pub(crate) async fn open(env: &Env, dir: &Path) -> io::Result<Opened> {
    /// A store that was just dropped may hold its lock for a moment.
    const LOCKED_RETRIES: u32 = 40;
    let mut retries = 0;
    loop {
        match open_in_place(env, dir).await {
            Ok(store) => return Ok(Opened { store, moved_aside: false }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && retries < LOCKED_RETRIES => {
                env.clock.sleep(Duration::from_millis(50)).await;
                retries += 1;
            }
            Err(error) if is_circumstance(&error) => return Err(error),
            Err(error) => return Ok(Opened { store: open_afresh(env, dir, &error).await?, moved_aside: true }),
        }
    }
}

/// Whether the error says nothing about the store: it would meet an empty one as well.
pub(crate) fn is_circumstance(error: &io::Error) -> bool {
    use io::ErrorKind::{
        Interrupted, OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull, WouldBlock,
    };
    // Too many files open, in the process (EMFILE) or on the machine (ENFILE), have no kind of their own.
    const TOO_MANY_FILES: [i32; 2] = [24, 23];
    let kind = matches!(
        error.kind(),
        Interrupted | OutOfMemory | PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull | WouldBlock
    );
    kind || error.raw_os_error().is_some_and(|code| TOO_MANY_FILES.contains(&code))
}

/// Moves a store that cannot be used aside and opens an empty one.
pub(crate) async fn open_afresh(env: &Env, dir: &Path, reason: &io::Error) -> io::Result<Box<dyn KeyedStore>> {
    const PREFIX: &str = "state.bad-";
    /// Enough to see what happened; a disk must not fill up with them.
    const KEPT: usize = 3;
    let mut numbers: Vec<u64> =
        env.disk.list(dir).await?.iter().filter_map(|name| name.name.strip_prefix(PREFIX)?.parse().ok()).collect();
    numbers.sort_unstable();
    let aside = format!("{PREFIX}{}", numbers.last().map_or(1, |last| last + 1));
    tracing::error!("the keyed store will not open and is moved to {aside}; it will be rebuilt: {reason}");
    env.disk.rename(&dir.join("state"), &dir.join(aside)).await?;
    env.disk.sync_dir(dir).await?;
    for number in numbers.iter().take((numbers.len() + 1).saturating_sub(KEPT)) {
        env.disk.remove_dir_all(&dir.join(format!("{PREFIX}{number}"))).await?;
    }
    open_in_place(env, dir).await
}

pub(crate) async fn open_in_place(env: &Env, dir: &Path) -> io::Result<Box<dyn KeyedStore>> {
    let state = dir.join("state");
    env.disk.create_dir_all(&state).await?;
    env.disk.sync_dir(dir).await?;
    match env.executor {
        Executor::Threads => Ok(Box::new(SledStore::open(env, dir).await?)),
        Executor::Tasks => Ok(Box::new(BatchStore::open(env.clone(), state).await?)),
    }
}

const BOUNDARY_BYTES: usize = 32;

fn encode_boundary(boundary: Boundary) -> [u8; BOUNDARY_BYTES] {
    let mut bytes = [0; BOUNDARY_BYTES];
    let numbers = [boundary.id.term, boundary.id.index, boundary.end.physical_offset.0, boundary.end.chain];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn decode_boundary(bytes: &[u8; BOUNDARY_BYTES]) -> Boundary {
    let number = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("8 bytes"));
    Boundary {
        id: LogId { term: number(0), index: number(1) },
        end: Cursor { physical_offset: PhysicalOffset(number(2)), chain: number(3) },
    }
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("keyed store: {what}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use env::Rng;
    use env::disk::simulated::SimDisk;

    use super::*;
    use crate::consume_queue::replace_file;

    fn boundary(index: u64) -> Boundary {
        Boundary {
            id: LogId { term: 1, index },
            end: Cursor { physical_offset: PhysicalOffset(index * 64), chain: index ^ 0xABCD },
        }
    }

    async fn all(store: &mut dyn KeyedStore, limit_bytes: usize) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut all = BTreeMap::new();
        loop {
            let after = all.last_key_value().map(|(key, _): (&Vec<u8>, _)| key.clone());
            let rows = store.rows(after.as_deref(), limit_bytes).await?;
            if rows.is_empty() {
                store.check().await?;
                return Ok(all);
            }
            assert!(rows.is_sorted());
            all.extend(rows);
        }
    }

    fn changes(rng: &Rng) -> Vec<Change> {
        let bytes = |limit: u64| (0..rng.below(limit)).map(|_| rng.below(256) as u8).collect::<Vec<u8>>();
        let changes: BTreeMap<_, _> = (0..rng.below(20))
            .map(|_| (vec![1 + rng.below(3) as u8, rng.below(20) as u8], rng.chance(3, 4).then(|| bytes(40))))
            .collect();
        changes.into_iter().collect()
    }

    fn change_model(model: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: &[Change]) {
        for (key, value) in changes {
            match value {
                Some(value) => model.insert(key.clone(), value.clone()),
                None => model.remove(key),
            };
        }
    }

    #[test]
    fn what_an_empty_store_would_meet_as_well_says_nothing_about_this_one() {
        // EMFILE, ENFILE, EINTR, ENOSPC, EACCES.
        for code in [24, 23, 4, 28, 13] {
            assert!(is_circumstance(&io::Error::from_raw_os_error(code)), "{code}");
        }
        assert!(!is_circumstance(&damaged("rows")));
        assert!(!is_circumstance(&io::Error::from_raw_os_error(5)), "EIO");
    }

    /// A start that is killed from outside while the store opens is no reason to rebuild it; one that never ends is.
    #[tokio::test]
    async fn a_store_is_given_up_only_when_it_never_opens() {
        let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
        let mut opened = open(&env, dir.path()).await.unwrap();
        opened.store.write(vec![(vec![1], Some(vec![2]))], boundary(1)).await.unwrap();
        drop(opened);
        let opening = dir.path().join("state.opening");
        let killed = |times: u8| replace_file(&env, &opening, Bytes::from(vec![times]));
        killed(sled::OPENS_NOT_ENDED - 1).await.unwrap();
        let opened = open(&env, dir.path()).await.unwrap();
        assert_eq!((opened.moved_aside, opened.store.boundary()), (false, Some(boundary(1))));
        drop(opened);
        killed(sled::OPENS_NOT_ENDED).await.unwrap();
        let opened = open(&env, dir.path()).await.unwrap();
        assert_eq!((opened.moved_aside, opened.store.boundary()), (true, None));
    }

    /// Every store agrees with a map, also after it is closed and opened again, cleared and filled.
    async fn agrees_with_a_map(env: Env, dir: &Path, rng: &Rng) {
        let mut opened = open(&env, dir).await.unwrap();
        assert_eq!(opened.store.boundary(), None);
        let mut model = BTreeMap::new();
        for index in 0..60 {
            if rng.chance(1, 15) {
                opened.store.clear().await.unwrap();
                assert_eq!(opened.store.boundary(), None);
                model = changes(rng).into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
                opened.store.fill(model.clone().into_iter().collect()).await.unwrap();
            }
            let changes = changes(rng);
            change_model(&mut model, &changes);
            opened.store.write(changes, boundary(index)).await.unwrap();
            if rng.chance(1, 8) {
                drop(opened);
                opened = open(&env, dir).await.unwrap();
                assert!(!opened.moved_aside);
            }
            assert_eq!(opened.store.boundary(), Some(boundary(index)));
            assert_eq!(all(&mut *opened.store, 1 + rng.below(200) as usize).await.unwrap(), model);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn batches_agree_with_a_map() {
        let seed = Rng::from_entropy().u64();
        println!("seed {seed}");
        let rng = Rng::seeded(seed);
        let env = Env::simulated(1, SimDisk::new(rng.fork()));
        env.disk.create_dir_all(Path::new("/data")).await.unwrap();
        agrees_with_a_map(env, Path::new("/data"), &rng).await;
    }

    #[tokio::test]
    async fn sled_agrees_with_a_map() {
        let seed = Rng::from_entropy().u64();
        println!("seed {seed}");
        let dir = tempfile::tempdir().unwrap();
        agrees_with_a_map(Env::real(), dir.path(), &Rng::seeded(seed)).await;
    }

    /// Power fails at every single disk operation of a random history; the rows found are those of the last batch that
    /// was acknowledged, or of the one that was being written.
    #[tokio::test(start_paused = true)]
    async fn a_crash_leaves_whole_batches() {
        let seed = Rng::from_entropy().u64();
        println!("seed {seed}");
        let rng = Rng::seeded(seed);
        let disk = SimDisk::new(rng.fork());
        let env = Env::simulated(1, disk.clone());
        let dir = Path::new("/data");
        env.disk.create_dir_all(dir).await.unwrap();
        env.disk.sync_dir(Path::new("/")).await.unwrap();
        let begun = disk.fork();
        disk.record();
        let mut store = open(&env, dir).await.unwrap().store;
        let (mut states, mut model) = (vec![(0, BTreeMap::new())], BTreeMap::new());
        for index in 0..12 {
            let changes = changes(&rng);
            change_model(&mut model, &changes);
            store.write(changes, boundary(index)).await.unwrap();
            states.push((disk.recorded_len(), model.clone()));
        }
        for (done, operation) in disk.recorded().iter().enumerate() {
            let crashed = begun.fork();
            crashed.crash(&rng);
            let mut opened = open(&Env::simulated(1, crashed), dir).await.unwrap();
            let acknowledged = states.iter().rposition(|(at, _)| *at <= done).unwrap();
            let found = opened.store.boundary().map_or(0, |boundary| boundary.id.index as usize + 1);
            assert!(found == acknowledged || found == acknowledged + 1, "{found} after {acknowledged}");
            assert_eq!(all(&mut *opened.store, 50).await.unwrap(), states[found].1);
            assert!(!opened.moved_aside);
            begun.repeat(operation);
        }
    }

    #[tokio::test]
    async fn sled_that_will_not_open_is_moved_aside() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        let env = Env::real();
        let write = |path: std::path::PathBuf, bytes: &'static [u8]| {
            let env = env.clone();
            async move {
                let file = env.disk.open(&path, env::disk::Open::OrCreate).await.unwrap();
                file.set_len(0).await.unwrap();
                file.write_at(0, &[bytes::Bytes::from_static(bytes)]).await.unwrap();
            }
        };
        for round in 1..=5u64 {
            let mut store = open(&env, dir).await.unwrap().store;
            store.write(vec![(vec![1], Some(vec![round as u8]))], boundary(round)).await.unwrap();
            drop(store);
            write(dir.join("state/conf"), b"not a configuration").await;
            let opened = open(&env, dir).await.unwrap();
            assert!(opened.moved_aside);
            assert_eq!(opened.store.boundary(), None);
            drop(opened);
            let aside: Vec<_> = env.disk.list(dir).await.unwrap().into_iter().map(|name| name.name).collect();
            assert!(aside.contains(&format!("state.bad-{round}")), "{aside:?}");
            assert!(aside.iter().filter(|name| name.starts_with("state.bad-")).count() <= 3, "{aside:?}");
        }
    }

    #[tokio::test]
    async fn sled_that_lost_a_row_is_noticed() {
        let temporary = tempfile::tempdir().unwrap();
        let env = Env::real();
        let mut store = open(&env, temporary.path()).await.unwrap().store;
        let rows = vec![(vec![1], Some(vec![1])), (vec![2], Some(vec![2]))];
        store.write(rows, boundary(1)).await.unwrap();
        drop(store);
        {
            let database = ::sled::open(temporary.path().join("state")).unwrap();
            database.remove([2]).unwrap();
            database.flush().unwrap();
        }
        let mut opened = open(&env, temporary.path()).await.unwrap();
        assert!(all(&mut *opened.store, 50).await.is_err());
    }
}

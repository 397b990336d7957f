//! The real and the simulated disk do the same. Each story runs on both; then random calls run on both side by side,
//! and every answer must be equal, down to the kind of error. What tests learn on the simulated disk holds on real ones
//! only as far as this is so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use env::disk::real::RealDisk;
use env::disk::simulated::SimDisk;
use env::disk::{Disk, File, Name, Open};
use env::rng::Rng;

/// A disk with an empty directory on it.
struct World {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    /// Removes the real directory in the end.
    _temporary: Option<tempfile::TempDir>,
}

impl World {
    fn real() -> World {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().to_owned();
        World { disk: Arc::new(RealDisk), directory, _temporary: Some(temporary) }
    }

    async fn simulated() -> World {
        let disk = SimDisk::new(Rng::seeded(1));
        let directory = PathBuf::from("/data/broker");
        disk.create_dir_all(&directory).await.unwrap();
        World { disk: Arc::new(disk), directory, _temporary: None }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.directory.join(relative)
    }

    async fn create(&self, relative: &str, bytes: &[u8]) -> Arc<dyn File> {
        let file = self.disk.open(&self.path(relative), Open::New).await.unwrap();
        file.write_at(0, &[Bytes::copy_from_slice(bytes)]).await.unwrap();
        file
    }

    async fn read(&self, relative: &str) -> io::Result<Bytes> {
        self.disk.open(&self.path(relative), Open::Existing).await?.read_at(0, usize::MAX).await
    }

    async fn names(&self, relative: &str) -> Vec<Name> {
        self.disk.list(&self.path(relative)).await.unwrap()
    }
}

fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
    match result {
        Ok(_) => panic!("this should have failed"),
        Err(error) => error.kind(),
    }
}

/// Makes of each story two tests.
macro_rules! on_both_disks {
    ($($story:ident,)*) => {
        mod real {
            $(#[tokio::test] async fn $story() { super::$story(super::World::real()).await })*
        }
        mod simulated {
            $(#[tokio::test] async fn $story() { super::$story(super::World::simulated().await).await })*
        }
    };
}

on_both_disks! {
    opening_creates_or_refuses_as_told,
    reads_end_where_the_file_ends,
    many_buffers_land_one_behind_the_other,
    writing_beyond_the_end_leaves_zeros,
    cutting_and_extending_shows_zeros,
    allocating_extends_but_never_cuts,
    pages_are_written_whole_however_many,
    zeros_cover_exactly_what_they_should,
    syncing_changes_nothing_one_can_see,
    renaming_replaces,
    a_removed_file_lives_on_in_its_handles,
    directories_are_made_listed_and_removed,
    what_is_not_there_is_not_found,
    a_lock_excludes_until_dropped,
    a_sealed_view_outlives_everything,
    a_view_of_more_than_there_is_fails,
    a_view_follows_a_growing_file,
    a_view_is_never_cut_from_beyond_a_new_end,
    space_is_known,
    a_boot_has_a_name,
}

async fn opening_creates_or_refuses_as_told(world: World) {
    let path = world.path("file");
    assert_eq!(kind(world.disk.open(&path, Open::Existing).await), io::ErrorKind::NotFound);
    let file = world.disk.open(&path, Open::New).await.unwrap();
    assert!(file.is_empty().unwrap());
    file.write_at(0, &[Bytes::from_static(b"kept")]).await.unwrap();
    assert_eq!(kind(world.disk.open(&path, Open::New).await), io::ErrorKind::AlreadyExists);
    for how in [Open::Existing, Open::OrCreate, Open::ToRead] {
        assert_eq!(world.disk.open(&path, how).await.unwrap().len().unwrap(), 4);
    }
    assert_eq!(kind(world.disk.open(&world.path("none"), Open::ToRead).await), io::ErrorKind::NotFound);
    let to_read = world.disk.open(&path, Open::ToRead).await.unwrap();
    assert_eq!(to_read.read_at(0, 9).await.unwrap(), "kept");
    assert!(to_read.write_at(0, &[Bytes::from_static(b"lost")]).await.is_err());
    assert!(to_read.set_len(0).await.is_err());
    assert_eq!(to_read.map_sealed(0, 4).unwrap(), "kept");
    assert!(world.disk.open(&world.path("other"), Open::OrCreate).await.unwrap().is_empty().unwrap());
    assert_eq!(kind(world.disk.open(&world.directory, Open::OrCreate).await), io::ErrorKind::IsADirectory);
    assert_eq!(kind(world.disk.open(&world.path("file/below"), Open::New).await), io::ErrorKind::NotADirectory);
}

async fn reads_end_where_the_file_ends(world: World) {
    let file = world.create("file", b"0123456789").await;
    assert_eq!(file.read_at(2, 3).await.unwrap(), "234");
    assert_eq!(file.read_at(8, 100).await.unwrap(), "89");
    assert_eq!(file.read_at(0, usize::MAX).await.unwrap(), "0123456789");
    assert_eq!(file.read_at(10, 1).await.unwrap(), "");
    assert_eq!(file.read_at(1 << 40, 1).await.unwrap(), "");
    assert_eq!(file.read_at(3, 0).await.unwrap(), "");
}

async fn many_buffers_land_one_behind_the_other(world: World) {
    let file = world.create("file", b"").await;
    // More buffers than one call takes, of all small sizes, empty ones among them.
    let buffers: Vec<Bytes> = (0..5000_usize).map(|index| Bytes::from(vec![index as u8; index % 7])).collect();
    file.write_at(1000, &buffers).await.unwrap();
    let mut expected = vec![0; 1000];
    expected.extend(buffers.iter().flatten());
    assert_eq!(file.read_at(0, usize::MAX).await.unwrap(), expected);
    file.write_at(1, &[]).await.unwrap();
    file.write_at(1 << 30, &[Bytes::new()]).await.unwrap();
    assert_eq!(file.len().unwrap(), expected.len() as u64);
}

async fn writing_beyond_the_end_leaves_zeros(world: World) {
    let file = world.create("file", b"head").await;
    file.write_at(10_000, &[Bytes::from_static(b"tail")]).await.unwrap();
    let mut expected = b"head".to_vec();
    expected.resize(10_000, 0);
    expected.extend(b"tail");
    assert_eq!(file.read_at(0, usize::MAX).await.unwrap(), expected);
}

async fn cutting_and_extending_shows_zeros(world: World) {
    let file = world.create("file", &[7; 10_000]).await;
    file.set_len(5000).await.unwrap();
    file.set_len(9000).await.unwrap();
    let mut expected = vec![7; 5000];
    expected.resize(9000, 0);
    assert_eq!(file.read_at(0, usize::MAX).await.unwrap(), expected);
    file.set_len(0).await.unwrap();
    assert!(file.is_empty().unwrap());
}

async fn allocating_extends_but_never_cuts(world: World) {
    let file = world.create("file", b"data").await;
    file.allocate(1 << 16).await.unwrap();
    file.allocate(100).await.unwrap();
    file.allocate(0).await.unwrap();
    let mut expected = b"data".to_vec();
    expected.resize(1 << 16, 0);
    assert_eq!(file.read_at(0, usize::MAX).await.unwrap(), expected);
}

async fn zeros_cover_exactly_what_they_should(world: World) {
    let page = 4096_u64;
    for (from, len) in [(1, 10), (page, page), (100, 3 * page), (page, 40 * page + 7), (0, 300 * page), (5, 0)] {
        let file = world.create("f", &vec![7; 301 * page as usize]).await;
        file.write_zeros(from, len).await.unwrap();
        file.sync_data().await.unwrap();
        let mut expected = vec![7; 301 * page as usize];
        expected[from as usize..(from + len) as usize].fill(0);
        assert!(world.read("f").await.unwrap() == expected, "zeros at {from}, {len} of them");
        world.disk.remove_file(&world.path("f")).await.unwrap();
    }
    let file = world.create("g", b"abc").await;
    file.write_zeros(2 * page, page).await.unwrap();
    assert_eq!(file.len().unwrap(), 3 * page, "they make the file longer");
}

async fn pages_are_written_whole_however_many(world: World) {
    let page = 4096_usize;
    for pages in [1, 3, 16, 300] {
        let file = world.create("f", &vec![7; 302 * page]).await;
        // Cached before, so that a write past the cache must be seen through it.
        assert_eq!(world.read("f").await.unwrap().len(), 302 * page);
        let bytes: Vec<u8> = (0..pages * page).map(|at| (at / 1000) as u8).collect();
        let (first, rest) = bytes.split_at(1001);
        let buffers = [Bytes::copy_from_slice(first), Bytes::new(), Bytes::copy_from_slice(rest)];
        file.write_pages(page as u64, &buffers).await.unwrap();
        file.sync_data().await.unwrap();
        let mut expected = vec![7; 302 * page];
        expected[page..(1 + pages) * page].copy_from_slice(&bytes);
        assert!(world.read("f").await.unwrap() == expected, "{pages} pages");
        assert!(file.map_sealed(0, expected.len()).unwrap() == expected, "{pages} pages, mapped");
        world.disk.remove_file(&world.path("f")).await.unwrap();
    }
}

async fn syncing_changes_nothing_one_can_see(world: World) {
    let file = world.create("file", b"data").await;
    file.sync_data().await.unwrap();
    world.disk.sync_dir(&world.directory).await.unwrap();
    assert_eq!(world.read("file").await.unwrap(), "data");
    assert_eq!(kind(world.disk.sync_dir(&world.path("file")).await), io::ErrorKind::NotADirectory);
    assert_eq!(kind(world.disk.sync_dir(&world.path("nothing")).await), io::ErrorKind::NotFound);
}

async fn renaming_replaces(world: World) {
    world.create("old", b"old").await;
    let new = world.create("new", b"new").await;
    world.disk.rename(&world.path("new"), &world.path("old")).await.unwrap();
    assert_eq!(world.read("old").await.unwrap(), "new");
    assert_eq!(kind(world.read("new").await), io::ErrorKind::NotFound);
    // The handle is of the file, not of the name.
    new.write_at(0, &[Bytes::from_static(b"NEW")]).await.unwrap();
    assert_eq!(world.read("old").await.unwrap(), "NEW");
    world.disk.rename(&world.path("old"), &world.path("old")).await.unwrap();
    // Directories move with all they hold, and replace empty ones only.
    world.disk.create_dir_all(&world.path("full/inner")).await.unwrap();
    world.disk.create_dir_all(&world.path("empty")).await.unwrap();
    world.create("full/inner/file", b"inside").await;
    assert_eq!(
        kind(world.disk.rename(&world.path("empty"), &world.path("full")).await),
        io::ErrorKind::DirectoryNotEmpty
    );
    world.disk.rename(&world.path("full"), &world.path("empty")).await.unwrap();
    assert_eq!(world.read("empty/inner/file").await.unwrap(), "inside");
    assert_eq!(
        kind(world.disk.rename(&world.path("empty"), &world.path("empty/inner/self")).await),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(kind(world.disk.rename(&world.path("old"), &world.path("empty")).await), io::ErrorKind::IsADirectory);
    assert_eq!(kind(world.disk.rename(&world.path("empty"), &world.path("old")).await), io::ErrorKind::NotADirectory);
}

async fn a_removed_file_lives_on_in_its_handles(world: World) {
    let file = world.create("file", b"data").await;
    world.disk.remove_file(&world.path("file")).await.unwrap();
    assert_eq!(kind(world.read("file").await), io::ErrorKind::NotFound);
    world.disk.sync_dir(&world.directory).await.unwrap();
    file.write_at(4, &[Bytes::from_static(b"!")]).await.unwrap();
    file.sync_data().await.unwrap();
    assert_eq!(file.read_at(0, 100).await.unwrap(), "data!");
    // A new file of that name is another file.
    world.create("file", b"other").await;
    assert_eq!(file.read_at(0, 100).await.unwrap(), "data!");
}

async fn directories_are_made_listed_and_removed(world: World) {
    world.disk.create_dir_all(&world.path("a/b/c")).await.unwrap();
    world.disk.create_dir_all(&world.path("a/b")).await.unwrap();
    world.create("a/z", b"12345").await;
    world.create("a/A", b"").await;
    let name = |name: &str, is_directory, len| Name { name: name.to_owned(), is_directory, len };
    assert_eq!(world.names("a").await, [name("A", false, 0), name("b", true, 0), name("z", false, 5)]);
    assert_eq!(kind(world.disk.create_dir_all(&world.path("a/z")).await), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(world.disk.create_dir_all(&world.path("a/z/y")).await), io::ErrorKind::NotADirectory);
    assert_eq!(kind(world.disk.list(&world.path("a/z")).await), io::ErrorKind::NotADirectory);
    assert_eq!(kind(world.disk.remove_file(&world.path("a/b")).await), io::ErrorKind::IsADirectory);
    assert_eq!(kind(world.disk.remove_dir_all(&world.path("a/z")).await), io::ErrorKind::NotADirectory);
    world.disk.remove_dir_all(&world.path("a")).await.unwrap();
    assert_eq!(world.names(".").await, []);
}

async fn what_is_not_there_is_not_found(world: World) {
    let nothing = world.path("nothing");
    assert_eq!(kind(world.disk.open(&nothing.join("below"), Open::OrCreate).await), io::ErrorKind::NotFound);
    assert_eq!(kind(world.disk.remove_file(&nothing).await), io::ErrorKind::NotFound);
    assert_eq!(kind(world.disk.remove_dir_all(&nothing).await), io::ErrorKind::NotFound);
    assert_eq!(kind(world.disk.rename(&nothing, &world.path("other")).await), io::ErrorKind::NotFound);
    assert_eq!(kind(world.disk.list(&nothing).await), io::ErrorKind::NotFound);
    assert_eq!(kind(world.disk.space(&nothing).await), io::ErrorKind::NotFound);
    assert_eq!(kind(world.disk.lock(&nothing.join("LOCK")).await), io::ErrorKind::NotFound);
}

async fn a_lock_excludes_until_dropped(world: World) {
    let path = world.path("LOCK");
    let lock = world.disk.lock(&path).await.unwrap();
    assert_eq!(kind(world.disk.lock(&path).await), io::ErrorKind::WouldBlock);
    let other = world.disk.lock(&world.path("OTHER")).await.unwrap();
    drop(lock);
    let again = world.disk.lock(&path).await.unwrap();
    assert_eq!(kind(world.disk.lock(&path).await), io::ErrorKind::WouldBlock);
    drop((again, other));
}

async fn a_sealed_view_outlives_everything(world: World) {
    let file = world.create("file", &[5; 100_000]).await;
    let view = file.map_sealed(50_000, 20_000).unwrap();
    file.release_map();
    world.disk.remove_file(&world.path("file")).await.unwrap();
    drop(file);
    assert_eq!(view, vec![5; 20_000]);
}

async fn a_view_of_more_than_there_is_fails(world: World) {
    let file = world.create("file", b"0123456789").await;
    assert_eq!(file.map_sealed(8, 2).unwrap(), "89");
    assert_eq!(file.map_sealed(10, 0).unwrap(), "");
    for (offset, len) in [(8, 3), (11, 1), (1 << 40, 1)] {
        assert_eq!(kind(file.map_sealed(offset, len)), io::ErrorKind::UnexpectedEof);
    }
    // Nor of an empty file, which has no bytes to map.
    let empty = world.create("empty", b"").await;
    assert_eq!(empty.map_sealed(0, 0).unwrap(), "");
    assert_eq!(kind(empty.map_sealed(0, 1)), io::ErrorKind::UnexpectedEof);
}

async fn a_view_follows_a_growing_file(world: World) {
    let file = world.create("file", b"first").await;
    let first = file.map_sealed(0, 5).unwrap();
    for round in 1..20_u64 {
        file.write_at(round * 5000, &[Bytes::from_static(b"later")]).await.unwrap();
        assert_eq!(file.map_sealed(round * 5000, 5).unwrap(), "later");
    }
    assert_eq!(first, "first");
}

async fn a_view_is_never_cut_from_beyond_a_new_end(world: World) {
    let file = world.create("file", &[1; 20_000]).await;
    file.map_sealed(0, 20_000).unwrap();
    file.set_len(100).await.unwrap();
    assert_eq!(kind(file.map_sealed(0, 20_000)), io::ErrorKind::UnexpectedEof);
    assert_eq!(file.map_sealed(0, 100).unwrap(), vec![1; 100]);
}

async fn space_is_known(world: World) {
    let space = world.disk.space(&world.directory).await.unwrap();
    assert!(space.free_bytes <= space.total_bytes && space.total_bytes > 0);
}

async fn a_boot_has_a_name(world: World) {
    let name = world.disk.boot_id().unwrap();
    assert!(!name.is_empty() && name == world.disk.boot_id().unwrap());
}

/// A random call. Paths come from a handful of names, so that calls meet.
#[derive(Clone, Copy, Debug)]
enum Call {
    Create(&'static str, Open),
    Write(&'static str, u64, usize, u8),
    SetLen(&'static str, u64),
    Allocate(&'static str, u64),
    Sync(&'static str),
    CreateDirectory(&'static str),
    Rename(&'static str, &'static str),
    RemoveFile(&'static str),
    RemoveDirectory(&'static str),
    SyncDirectory(&'static str),
}

const PATHS: [&str; 7] = ["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a"];

fn random_call(rng: &Rng) -> Call {
    let path = || PATHS[rng.below(PATHS.len() as u64) as usize];
    match rng.below(16) {
        0..3 => Call::Create(path(), [Open::New, Open::OrCreate, Open::Existing][rng.below(3) as usize]),
        3..7 => Call::Write(path(), rng.below(20_000), rng.below(9_000) as usize, rng.u64() as u8),
        7..9 => Call::SetLen(path(), rng.below(20_000)),
        9 => Call::Allocate(path(), rng.below(20_000)),
        10 => Call::Sync(path()),
        11 => Call::CreateDirectory(path()),
        12 | 13 => Call::Rename(path(), path()),
        14 if rng.chance(1, 2) => Call::RemoveDirectory(path()),
        14 => Call::RemoveFile(path()),
        _ => Call::SyncDirectory(path()),
    }
}

async fn perform(world: &World, call: Call) -> Result<(), io::ErrorKind> {
    let disk = &world.disk;
    let path = |relative: &str| world.path(relative);
    let existing = |relative: &'static str| async move { disk.open(&world.path(relative), Open::Existing).await };
    let result = match call {
        Call::Create(at, how) => disk.open(&path(at), how).await.map(drop),
        Call::Write(at, offset, len, fill) => match existing(at).await {
            Ok(file) => file.write_at(offset, &[Bytes::from(vec![fill; len])]).await,
            Err(error) => Err(error),
        },
        Call::SetLen(at, len) => match existing(at).await {
            Ok(file) => file.set_len(len).await,
            Err(error) => Err(error),
        },
        Call::Allocate(at, len) => match existing(at).await {
            Ok(file) => file.allocate(len).await,
            Err(error) => Err(error),
        },
        Call::Sync(at) => match existing(at).await {
            Ok(file) => file.sync_data().await,
            Err(error) => Err(error),
        },
        Call::CreateDirectory(at) => disk.create_dir_all(&path(at)).await,
        Call::Rename(from, to) => disk.rename(&path(from), &path(to)).await,
        Call::RemoveFile(at) => disk.remove_file(&path(at)).await,
        Call::RemoveDirectory(at) => disk.remove_dir_all(&path(at)).await,
        Call::SyncDirectory(at) => disk.sync_dir(&path(at)).await,
    };
    result.map_err(|error| error.kind())
}

/// All names below the world's directory, with the bytes of files.
async fn tree(world: &World) -> Vec<(PathBuf, Name, Bytes)> {
    let mut found = Vec::new();
    let mut to_visit = vec![PathBuf::from(".")];
    while let Some(at) = to_visit.pop() {
        for name in world.disk.list(&world.directory.join(&at)).await.unwrap() {
            let path = at.join(&name.name);
            let bytes = if name.is_directory {
                to_visit.push(path.clone());
                Bytes::new()
            } else {
                world.read(Path::to_str(&path).unwrap()).await.unwrap()
            };
            found.push((path, name, bytes));
        }
    }
    found
}

#[tokio::test]
async fn random_calls_have_equal_answers() {
    let first_seed = Rng::from_entropy().u64();
    for seed in (0..20).map(|round| first_seed.wrapping_add(round)) {
        let rng = Rng::seeded(seed);
        let (real, simulated) = (World::real(), World::simulated().await);
        let mut calls = Vec::new();
        for _ in 0..60 {
            let call = random_call(&rng);
            calls.push(call);
            let (on_real, on_simulated) = (perform(&real, call).await, perform(&simulated, call).await);
            assert_eq!(on_real, on_simulated, "real and simulated answers, seed {seed}, calls {calls:?}");
        }
        assert!(tree(&real).await == tree(&simulated).await, "different bytes, seed {seed}, calls {calls:?}");
    }
}

#[tokio::test]
async fn real_files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::real();
    world.disk.create_dir_all(&world.path("a/b")).await.unwrap();
    world.create("a/b/file", b"secret").await;
    let mode = |relative: &str| {
        #[allow(clippy::disallowed_methods)] // Permissions are no matter of the trait.
        let metadata = std::fs::metadata(world.path(relative)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    assert_eq!((mode("a"), mode("a/b"), mode("a/b/file")), (0o700, 0o700, 0o600));
    std::os::unix::fs::symlink(world.path("a/b/file"), world.path("link")).unwrap();
    assert!(world.disk.open(&world.path("link"), Open::OrCreate).await.is_err(), "a link must not be followed");
}

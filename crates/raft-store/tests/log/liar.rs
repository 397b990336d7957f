//! A disk that says it has synced the log's segments and has not.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use env::disk::simulated::SimDisk;
use env::disk::{Lock, Name, Open, Space};
use env::{Disk, File};
use futures::FutureExt;
use futures::future::BoxFuture;

/// The liar: everything but the data syncs of segments is the honest disk's.
#[derive(Debug)]
pub struct Liar(pub SimDisk);

#[derive(Debug)]
struct LyingFile(Arc<dyn File>);

impl Disk for Liar {
    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>> {
        async move {
            let file = self.0.open(path, how).await?;
            let is_segment = path.parent().is_some_and(|directory| directory.ends_with("commitlog"));
            if is_segment { Ok(Arc::new(LyingFile(file)) as Arc<dyn File>) } else { Ok(file) }
        }
        .boxed()
    }

    fn lock<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Lock>> {
        self.0.lock(path)
    }

    fn create_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.0.create_dir_all(path)
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.0.rename(from, to)
    }

    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.0.remove_file(path)
    }

    fn remove_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.0.remove_dir_all(path)
    }

    fn list<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<Name>>> {
        self.0.list(path)
    }

    fn sync_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.0.sync_dir(path)
    }

    fn space<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Space>> {
        self.0.space(path)
    }

    fn boot_id(&self) -> io::Result<String> {
        self.0.boot_id()
    }
}

impl File for LyingFile {
    fn read_at<'a>(&'a self, offset: u64, len: usize) -> BoxFuture<'a, io::Result<Bytes>> {
        self.0.read_at(offset, len)
    }

    fn write_at<'a>(&'a self, offset: u64, buffers: &'a [Bytes]) -> BoxFuture<'a, io::Result<()>> {
        self.0.write_at(offset, buffers)
    }

    fn write_pages<'a>(&'a self, offset: u64, buffers: &'a [Bytes]) -> BoxFuture<'a, io::Result<()>> {
        self.0.write_pages(offset, buffers)
    }

    fn write_zeros<'a>(&'a self, offset: u64, len: u64) -> BoxFuture<'a, io::Result<()>> {
        self.0.write_zeros(offset, len)
    }

    fn sync_data<'a>(&'a self) -> BoxFuture<'a, io::Result<()>> {
        async { Ok(()) }.boxed()
    }

    fn set_len<'a>(&'a self, len: u64) -> BoxFuture<'a, io::Result<()>> {
        self.0.set_len(len)
    }

    fn allocate<'a>(&'a self, len: u64) -> BoxFuture<'a, io::Result<()>> {
        self.0.allocate(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn map_sealed(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.0.map_sealed(offset, len)
    }

    fn release_map(&self) {
        self.0.release_map()
    }
}

//! The machine's files, for whoever makes far more data than the disk has room for: long stretches of zeros become holes,
//! and nothing is synced. What is read back is what was written.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use env::disk::real::RealDisk;
use env::disk::{Disk, File, Lock, Name, Open, Space};
use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::fs::FallocateFlags;

/// Zeros become a hole where they fill a stretch of a file of this size, and begin at a multiple of it.
const HOLE_BYTES: u64 = 64 << 10;

/// See the top.
#[derive(Debug, Default)]
pub struct SparseDisk(RealDisk);

impl Disk for SparseDisk {
    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>> {
        async move {
            let inner = self.0.open(path, how).await?;
            if how == Open::ToRead {
                return Ok(inner);
            }
            let holes = fs::OpenOptions::new().write(true).open(path)?;
            Ok(Arc::new(SparseFile { inner, holes }) as Arc<dyn File>)
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

    fn sync_dir<'a>(&'a self, _path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async { Ok(()) }.boxed()
    }

    fn space<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Space>> {
        self.0.space(path)
    }

    fn boot_id(&self) -> io::Result<String> {
        self.0.boot_id()
    }
}

#[derive(Debug)]
struct SparseFile {
    inner: Arc<dyn File>,
    /// The same file, to make holes in.
    holes: fs::File,
}

impl SparseFile {
    /// Makes `from..to` read as zeros, and the file at least that long.
    fn dig(&self, from: u64, to: u64) -> io::Result<()> {
        if from < to {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.holes, flags, from, to - from)?;
        }
        if self.holes.metadata()?.len() < to { self.holes.set_len(to) } else { Ok(()) }
    }

    async fn write(&self, offset: u64, buffers: &[Bytes]) -> io::Result<()> {
        let mut at = offset;
        // Where bytes that are no hole began, and a hole that has not ended.
        let (mut kept, mut kept_at) = (Vec::new(), offset);
        let mut hole: Option<u64> = None;
        for buffer in buffers {
            let mut rest = buffer.clone();
            while !rest.is_empty() {
                let to_boundary = HOLE_BYTES - at % HOLE_BYTES;
                let piece = rest.split_to(rest.len().min(to_boundary as usize));
                let len = piece.len() as u64;
                if len == HOLE_BYTES && piece.iter().all(|byte| *byte == 0) {
                    self.inner.write_at(kept_at, &std::mem::take(&mut kept)).await?;
                    hole.get_or_insert(at);
                } else {
                    if let Some(began) = hole.take() {
                        self.dig(began, at)?;
                    }
                    if kept.is_empty() {
                        kept_at = at;
                    }
                    kept.push(piece);
                }
                at += len;
            }
        }
        match hole {
            Some(began) => self.dig(began, at),
            None => self.inner.write_at(kept_at, &kept).await,
        }
    }
}

impl File for SparseFile {
    fn read_at<'a>(&'a self, offset: u64, len: usize) -> BoxFuture<'a, io::Result<Bytes>> {
        self.inner.read_at(offset, len)
    }

    fn write_at<'a>(&'a self, offset: u64, buffers: &'a [Bytes]) -> BoxFuture<'a, io::Result<()>> {
        self.write(offset, buffers).boxed()
    }

    fn write_pages<'a>(&'a self, offset: u64, buffers: &'a [Bytes]) -> BoxFuture<'a, io::Result<()>> {
        self.write(offset, buffers).boxed()
    }

    fn write_zeros<'a>(&'a self, offset: u64, len: u64) -> BoxFuture<'a, io::Result<()>> {
        async move { self.dig(offset, offset + len) }.boxed()
    }

    fn sync_data<'a>(&'a self) -> BoxFuture<'a, io::Result<()>> {
        async { Ok(()) }.boxed()
    }

    fn set_len<'a>(&'a self, len: u64) -> BoxFuture<'a, io::Result<()>> {
        self.inner.set_len(len)
    }

    fn allocate<'a>(&'a self, len: u64) -> BoxFuture<'a, io::Result<()>> {
        async move { self.dig(len, len) }.boxed()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn map_sealed(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.inner.map_sealed(offset, len)
    }

    fn release_map(&self) {
        self.inner.release_map();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_read_is_what_was_written_and_zeros_take_no_room() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let file = SparseDisk::default().open(&path, Open::New).await.expect("made");
            let mut model = vec![0; 3 << 20];
            file.allocate(model.len() as u64).await.expect("allocated");
            let head = Bytes::from(vec![7; 100]);
            let writes = [
                (0, vec![Bytes::from(vec![1; 200_000])]),
                // Zeros over what was there, between two heads, in one buffer and in several.
                (10, vec![head.clone(), Bytes::from(vec![0; 1 << 20]), head.clone()]),
                (1 << 21, vec![head.clone(), Bytes::from(vec![0; 70_000]), Bytes::from(vec![0; 200_000])]),
                (100_000, vec![Bytes::from(vec![0; 65_536]), Bytes::new(), head]),
            ];
            for (offset, buffers) in writes {
                file.write_at(offset, &buffers).await.expect("written");
                let bytes = buffers.concat();
                model[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                assert_eq!(file.read_at(0, 4 << 20).await.expect("read"), model);
            }
            let occupied = fs::metadata(&path).expect("it is there").blocks() * 512;
            assert!(occupied < 512 << 10, "{occupied} bytes of {}", model.len());
        });
    }
}

//! The machine's own files, through the calls that say what they do: `pwritev`, `fdatasync`, `fallocate`, `flock`.
//!
//! Everything is created for the owner alone (files 0600, directories 0700), never followed through a symbolic link in
//! the last step of a path, and closed on exec. The futures block the thread that polls them.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::map::Map;
use super::{Disk, File, Lock, Name, Open, Space};

/// Most buffers one `pwritev` takes (Linux `IOV_MAX`).
const MAX_BUFFERS_PER_CALL: usize = 1024;

/// Zeros written by one call where the file system cannot allocate.
const ZERO_FILL_BYTES: usize = 1 << 20;

/// The machine's file systems.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>> {
        async move {
            let flags = match how {
                Open::Existing => OFlags::empty(),
                Open::OrCreate => OFlags::CREATE,
                Open::New => OFlags::CREATE | OFlags::EXCL,
            };
            let file: Arc<dyn File> = Arc::new(RealFile { descriptor: open(path, flags)?, map: Map::default() });
            Ok(file)
        }
        .boxed()
    }

    fn lock<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Lock>> {
        async move {
            let descriptor = open(path, OFlags::CREATE)?;
            // flock belongs to this open file description: a second guard in the same process is refused as well, and
            // the kernel releases it with the descriptor, however the process ends.
            rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive)?;
            Ok(Lock(Box::new(descriptor)))
        }
        .boxed()
    }

    fn create_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async move { std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path) }.boxed()
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async move { Ok(rustix::fs::rename(from, to)?) }.boxed()
    }

    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async move { Ok(rustix::fs::unlink(path)?) }.boxed()
    }

    #[allow(clippy::disallowed_methods)] // This is the door the others are sent to.
    fn remove_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async move { std::fs::remove_dir_all(path) }.boxed()
    }

    fn list<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<Name>>> {
        async move { list(path) }.boxed()
    }

    fn sync_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async move {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::open(path, flags, Mode::empty())?;
            Ok(rustix::fs::fsync(directory)?)
        }
        .boxed()
    }

    fn space<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Space>> {
        async move {
            let blocks = rustix::fs::statvfs(path)?;
            // `f_bavail`, not `f_bfree`: the blocks kept back for root are not ours to promise.
            Ok(Space {
                free_bytes: blocks.f_bavail.saturating_mul(blocks.f_frsize),
                total_bytes: blocks.f_blocks.saturating_mul(blocks.f_frsize),
            })
        }
        .boxed()
    }

    #[allow(clippy::disallowed_methods)] // This is the door the others are sent to.
    fn boot_id(&self) -> io::Result<String> {
        Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
    }
}

fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?)
}

#[allow(clippy::disallowed_methods)] // This is the door the others are sent to.
fn list(path: &Path) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Removed since the directory was read: as if it had been removed before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let name = entry.file_name().into_string().map_err(|name| {
            io::Error::new(io::ErrorKind::InvalidData, format!("file name {name:?} in {path:?} is not UTF-8"))
        })?;
        let is_directory = metadata.is_dir();
        names.push(Name { name, is_directory, len: if is_directory { 0 } else { metadata.len() } });
    }
    names.sort();
    Ok(names)
}

/// An open file of the machine.
#[derive(Debug)]
struct RealFile {
    descriptor: OwnedFd,
    map: Map,
}

impl File for RealFile {
    fn read_at<'a>(&'a self, offset: u64, len: usize) -> BoxFuture<'a, io::Result<Bytes>> {
        async move {
            // Never reserve more than the file can give: `len` may have been read from a damaged disk.
            let rest = self.len()?.saturating_sub(offset);
            let len = usize::try_from(rest).unwrap_or(usize::MAX).min(len);
            let mut bytes = Vec::with_capacity(len);
            while bytes.len() < len {
                let at = offset + bytes.len() as u64;
                match rustix::io::pread(&self.descriptor, rustix::buffer::spare_capacity(&mut bytes), at) {
                    Ok(0) => break,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // An allocator may have given more room than was asked for, and the file may have grown into it.
            bytes.truncate(len);
            Ok(Bytes::from(bytes))
        }
        .boxed()
    }

    fn write_at<'a>(&'a self, offset: u64, buffers: &'a [Bytes]) -> BoxFuture<'a, io::Result<()>> {
        async move { write_all_at(&self.descriptor, offset, buffers) }.boxed()
    }

    fn sync_data<'a>(&'a self) -> BoxFuture<'a, io::Result<()>> {
        // No retry, not even of EINTR: what a failed sync leaves behind is unknown.
        async move { Ok(rustix::fs::fdatasync(&self.descriptor)?) }.boxed()
    }

    fn set_len<'a>(&'a self, len: u64) -> BoxFuture<'a, io::Result<()>> {
        async move {
            // A map that reaches beyond the new end must not give out another view.
            self.map.release();
            Ok(rustix::fs::ftruncate(&self.descriptor, len)?)
        }
        .boxed()
    }

    fn allocate<'a>(&'a self, len: u64) -> BoxFuture<'a, io::Result<()>> {
        async move {
            if len == 0 {
                return Ok(());
            }
            loop {
                match rustix::fs::fallocate(&self.descriptor, FallocateFlags::empty(), 0, len) {
                    Ok(()) => return Ok(()),
                    Err(Errno::INTR) => {}
                    Err(Errno::OPNOTSUPP | Errno::NOSYS) => return self.fill_with_zeros(len),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        .boxed()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.descriptor)?.st_size as u64)
    }

    fn map_sealed(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.map.view(&self.descriptor, offset, len)
    }

    fn release_map(&self) {
        self.map.release();
    }
}

impl RealFile {
    /// Allocates the slow way, where the file system has no other: writes zeros from the end of the file up to `len`.
    fn fill_with_zeros(&self, len: u64) -> io::Result<()> {
        let zeros = Bytes::from(vec![0; ZERO_FILL_BYTES]);
        let mut at = self.len()?;
        while at < len {
            let part = zeros.slice(..zeros.len().min(usize::try_from(len - at).unwrap_or(usize::MAX)));
            write_all_at(&self.descriptor, at, std::slice::from_ref(&part))?;
            at += part.len() as u64;
        }
        Ok(())
    }
}

/// Writes all buffers one behind the other: as many calls as the kernel's limits and short writes make necessary.
fn write_all_at(file: impl AsFd, mut offset: u64, buffers: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        buffers.iter().filter(|buffer| !buffer.is_empty()).map(|buffer| IoSlice::new(buffer)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(MAX_BUFFERS_PER_CALL)];
        match rustix::io::pwritev(&file, batch, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

//! The machine's own files, through the calls that say what they do: `pwritev`, `fdatasync`, `fallocate`, `flock`.
//!
//! Everything is created for the owner alone (files 0600, directories 0700), never followed through a symbolic link in
//! the last step of a path, and closed on exec. The futures block the thread that polls them.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::map::Map;
use super::{Disk, File, Lock, Name, Open, PAGE_BYTES, Space, assert_whole_pages, zeros};

/// Most buffers one `pwritev` takes (Linux `IOV_MAX`).
const MAX_BUFFERS_PER_CALL: usize = 1024;

/// Zeros written by one call. Short enough that a writer of the same file, or of the same disk, hardly waits for it.
const ZEROS_PER_CALL: u64 = 1 << 20;

/// Pages this many bytes long or longer are written past the page cache: there a copy into a page that the kernel has to
/// find first costs more than the wait for the disk that follows anyway. Shorter ones go with the sync.
const DIRECT_FROM_BYTES: usize = 64 << 10;

/// One direct write. Each thread that writes has a buffer of this size.
const DIRECT_BYTES: usize = 1 << 20;

/// The machine's file systems.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>> {
        async move {
            let flags = match how {
                Open::Existing => OFlags::RDWR,
                Open::ToRead => OFlags::RDONLY,
                Open::OrCreate => OFlags::RDWR | OFlags::CREATE,
                Open::New => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            };
            let file: Arc<dyn File> =
                Arc::new(RealFile { descriptor: open(path, flags)?, map: Map::default(), direct: OnceLock::new() });
            Ok(file)
        }
        .boxed()
    }

    fn lock<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Lock>> {
        async move {
            let descriptor = open(path, OFlags::RDWR | OFlags::CREATE)?;
            // flock belongs to this open file description: a second guard in the same process is refused as well, and
            // the kernel releases it with the descriptor, however the process ends.
            rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive)?;
            Ok(Lock(Box::new(descriptor)))
        }
        .boxed()
    }

    #[allow(clippy::disallowed_types)] // This is the door the others are sent to.
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
            // `f_bavail`, not `f_bfree`: the blocks kept back for root are not ours to promise, and so, as for `df`, no part
            // of the size.
            let used = blocks.f_blocks.saturating_sub(blocks.f_bfree);
            Ok(Space {
                free_bytes: blocks.f_bavail.saturating_mul(blocks.f_frsize),
                total_bytes: used.saturating_add(blocks.f_bavail).saturating_mul(blocks.f_frsize),
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
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
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
    /// The same file for writes past the page cache, once one was asked for; `None` where that cannot be had.
    direct: OnceLock<Option<OwnedFd>>,
}

thread_local! {
    /// Direct I/O takes memory that is aligned as the disk is: buffers are copied here first.
    static ALIGNED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
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

    fn write_pages<'a>(&'a self, offset: u64, buffers: &'a [Bytes]) -> BoxFuture<'a, io::Result<()>> {
        async move {
            assert_whole_pages(offset, buffers);
            let is_long = buffers.iter().map(Bytes::len).sum::<usize>() >= DIRECT_FROM_BYTES;
            match self.direct().filter(|_| is_long) {
                Some(direct) => match write_aligned(direct, offset, buffers) {
                    Err(error) if is_refused(&error) => write_all_at(&self.descriptor, offset, buffers),
                    written => written,
                },
                None => write_all_at(&self.descriptor, offset, buffers),
            }
        }
        .boxed()
    }

    fn write_zeros<'a>(&'a self, offset: u64, len: u64) -> BoxFuture<'a, io::Result<()>> {
        async move { self.fill_with_zeros(offset, offset + len) }.boxed()
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
                    Err(Errno::OPNOTSUPP | Errno::NOSYS) => return self.fill_with_zeros(self.len()?, len),
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
    /// Whole pages go past the page cache, the rest through it, as does everything where direct I/O is refused.
    fn fill_with_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        let mut direct = self.direct();
        let mut at = from;
        while at < to {
            let whole = direct.filter(|_| at.is_multiple_of(PAGE_BYTES) && to - at >= PAGE_BYTES);
            let end = match whole {
                Some(_) => (at + ZEROS_PER_CALL).min(to - to % PAGE_BYTES),
                None if direct.is_some() => (at + 1).next_multiple_of(PAGE_BYTES).min(to),
                None => (at + ZEROS_PER_CALL).min(to),
            };
            match write_all_at(whole.unwrap_or(&self.descriptor), at, &zeros(end - at)) {
                Err(error) if whole.is_some() && is_refused(&error) => direct = None,
                written => {
                    written?;
                    at = end;
                }
            }
        }
        Ok(())
    }

    fn direct(&self) -> Option<&OwnedFd> {
        let open = || {
            let itself = format!("/proc/self/fd/{}", self.descriptor.as_raw_fd());
            rustix::fs::open(itself, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::DIRECT, Mode::empty()).ok()
        };
        self.direct.get_or_init(open).as_ref()
    }
}

/// The file system has no direct I/O, or not for pages.
fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

/// [`write_all_at`] of whole pages to a descriptor for direct I/O.
fn write_aligned(file: &OwnedFd, offset: u64, buffers: &[Bytes]) -> io::Result<()> {
    let page = PAGE_BYTES as usize;
    ALIGNED.with_borrow_mut(|memory| {
        memory.resize(DIRECT_BYTES + page, 0);
        let start = memory.as_ptr().align_offset(page);
        let aligned = &mut memory[start..start + DIRECT_BYTES];
        let (mut filled, mut at) = (0, offset);
        for buffer in buffers {
            let mut rest = &buffer[..];
            while !rest.is_empty() {
                let fits = rest.len().min(DIRECT_BYTES - filled);
                aligned[filled..filled + fits].copy_from_slice(&rest[..fits]);
                filled += fits;
                rest = &rest[fits..];
                if filled == DIRECT_BYTES {
                    write_slices_at(file, at, &mut [IoSlice::new(aligned)])?;
                    at += filled as u64;
                    filled = 0;
                }
            }
        }
        match filled {
            0 => Ok(()),
            _ => write_slices_at(file, at, &mut [IoSlice::new(&aligned[..filled])]),
        }
    })
}

/// Writes all buffers one behind the other.
fn write_all_at(file: impl AsFd, offset: u64, buffers: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        buffers.iter().filter(|buffer| !buffer.is_empty()).map(|buffer| IoSlice::new(buffer)).collect();
    write_slices_at(file, offset, &mut slices)
}

/// As many calls as the kernel's limits and short writes make necessary. No slice is empty.
fn write_slices_at(file: impl AsFd, mut offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    let mut rest = slices;
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

//! Files, as a log needs them: positioned writes, data sync, directory sync, and nothing that hides an error.
//!
//! Two implementations, [`real`] and [`simulated`], behind [`Disk`] and [`File`]. Calls are completion-based: a future
//! that resolves means the call has returned from the kernel (or its model). On the real disk the futures block the
//! thread that polls them, so they belong on threads of [`crate::Executor`], never on a network runtime; reads for
//! clients go through [`File::map_sealed`].
//!
//! What survives a crash, on both: bytes written before a [`File::sync_data`] that returned `Ok`; names created,
//! renamed or removed before a [`Disk::sync_dir`] of their directory that returned `Ok`. Anything else may or may not.

mod map;
pub mod real;
pub mod simulated;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use rustix::io::Errno;

/// How [`Disk::open`] treats a file that is absent or present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// The file must exist; opened for reading and writing.
    Existing,
    /// The file must exist; only read. For whoever looks at what belongs to somebody else.
    ToRead,
    /// Created empty if absent; kept as it is if present.
    OrCreate,
    /// The file must not exist.
    New,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// File name without its directory. Names that are not UTF-8 are an error of [`Disk::list`].
    pub name: String,
    /// A directory, not a file.
    pub is_directory: bool,
    /// Length in bytes; 0 for directories.
    pub len: u64,
}

/// A file system.
pub trait Disk: Send + Sync + Debug + 'static {
    /// Opens a file for positioned reads and writes. A created name is durable only after [`Disk::sync_dir`].
    fn open<'a>(&'a self, path: &'a Path, how: Open) -> BoxFuture<'a, io::Result<Arc<dyn File>>>;

    /// Takes an exclusive lock on `path` (created if absent) for the life of the guard. `WouldBlock` if another process
    /// or guard holds it.
    fn lock<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Lock>>;

    /// Creates a directory and its parents. Durable only after the parents' [`Disk::sync_dir`].
    fn create_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>>;

    /// Replaces `to` by `from` atomically. Durable only after [`Disk::sync_dir`] of the directory.
    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>>;

    /// Unlinks a file. Open handles and maps stay valid.
    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>>;

    /// Removes a directory and all below it.
    fn remove_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>>;

    /// Names in a directory, sorted. `NotFound` if it does not exist.
    fn list<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<Name>>>;

    /// Makes the directory's names durable.
    fn sync_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>>;

    /// Free and total bytes of the file system that holds `path`.
    fn space<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Space>>;

    /// Names the present run of the machine. While it stays the same there was no power failure, and bytes
    /// written but never synced are still there, unless a sync failed.
    fn boot_id(&self) -> io::Result<String>;
}

/// Whether a read failed because the disk cannot give back what was written there (EIO): a bad sector.
pub fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

/// Free and total bytes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can still be written.
    pub free_bytes: u64,
    /// What is used and what can still be written: the size of the file system without what is kept back.
    pub total_bytes: u64,
}

/// Held for as long as the lock is; dropping it releases the lock.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] pub(crate) Box<dyn Debug + Send + Sync>);

/// The unit of the page cache, and of writes past it.
pub const PAGE_BYTES: u64 = 4096;

/// Panics unless `offset` and `buffers` make whole pages.
fn assert_whole_pages(offset: u64, buffers: &[Bytes]) {
    let len: usize = buffers.iter().map(Bytes::len).sum();
    let whole = |bytes: u64| bytes.is_multiple_of(PAGE_BYTES);
    assert!(whole(offset) && whole(len as u64), "{len} bytes at {offset} are not whole pages");
}

/// Zeros at an address that direct I/O takes.
#[repr(align(4096))]
struct Zeros([u8; 64 << 10]);

static ZEROS: Zeros = Zeros([0; 64 << 10]);

/// `len` zeros as buffers for a vectored write; they take no memory.
pub fn zeros(len: u64) -> Vec<Bytes> {
    let chunk = ZEROS.0.len() as u64;
    let mut buffers = vec![Bytes::from_static(&ZEROS.0); (len / chunk) as usize];
    if !len.is_multiple_of(chunk) {
        buffers.push(Bytes::from_static(&ZEROS.0[..(len % chunk) as usize]));
    }
    buffers
}

/// An open file.
pub trait File: Send + Sync + Debug + 'static {
    /// Reads up to `len` bytes at `offset`; fewer only at the end of the file.
    fn read_at<'a>(&'a self, offset: u64, len: usize) -> BoxFuture<'a, io::Result<Bytes>>;

    /// Writes all of `buffers`, one behind the other, at `offset`; grows the file where needed. After an error an
    /// unknown part of them is written.
    fn write_at<'a>(&'a self, offset: u64, buffers: &'a [Bytes]) -> BoxFuture<'a, io::Result<()>>;

    /// Writes whole pages: `offset` and the length of all `buffers` are multiples of [`PAGE_BYTES`], else it panics. As
    /// [`File::write_at`], but long writes go past the page cache where the file system can do that: for a log, whose
    /// readers have their own cache of what is new. Such a page, read later, comes from the disk.
    fn write_pages<'a>(&'a self, offset: u64, buffers: &'a [Bytes]) -> BoxFuture<'a, io::Result<()>>;

    /// Writes `len` zeros at `offset`; grows the file where needed. For blocks that are made ready for later writes: on
    /// the real disk past the page cache, where the file system can do that, so that it costs neither a copy nor memory.
    fn write_zeros<'a>(&'a self, offset: u64, len: u64) -> BoxFuture<'a, io::Result<()>>;

    /// `fdatasync`: data written so far, and the length it needs, are durable when this returns `Ok`. After an error
    /// nothing is known of them, and a second call proves nothing: never retry, stop the store.
    fn sync_data<'a>(&'a self) -> BoxFuture<'a, io::Result<()>>;

    /// Cuts or extends (with zeros) the file.
    fn set_len<'a>(&'a self, len: u64) -> BoxFuture<'a, io::Result<()>>;

    /// Reserves space so that later writes below `len` do not fail for lack of it; extends the file with zeros.
    fn allocate<'a>(&'a self, len: u64) -> BoxFuture<'a, io::Result<()>>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// A read-only view of bytes that will not change any more (sealed or committed); `UnexpectedEof` if the file is
    /// shorter, [`is_unreadable`] if the disk cannot read them. On the real disk a slice of a memory map: no copy, but this
    /// call may block on the disk.
    /// The view stays valid after the file is unlinked.
    fn map_sealed(&self, offset: u64, len: usize) -> io::Result<Bytes>;

    /// Forgets the memory map behind [`File::map_sealed`], if any; it is unmapped when the last view is gone and made
    /// again on demand. For handles that have been idle.
    fn release_map(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_as_many_as_asked() {
        for len in [0, 1, 65_536, 65_537, 200_000] {
            assert_eq!(zeros(len).iter().map(|buffer| buffer.len() as u64).sum::<u64>(), len);
        }
    }
}

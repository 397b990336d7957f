//! The read-only memory map of one file: made when first asked for, re-made when the file has outgrown it.
//!
//! This is, but for one call in [`crate::memory`], the only `unsafe` code of the program. A map is sound, and keeps the
//! process alive, because of two things that its users promise, not the kernel:
//!
//! - **Nobody writes under a view.** [`Map::view`] is asked for sealed or committed ranges only, and those bytes never
//!   change again. The rest of the map (the growing tail of the file) may change at any moment, through the writer's
//!   own descriptor; it is mapped, but no reference to it is ever read through.
//! - **Nobody truncates under a view.** A page wholly beyond the end of the file answers the first touch with SIGBUS.
//!   Only recovery and the log's truncation shorten files. Both cut above what is committed, hence above every view,
//!   and the data directory's lock keeps other processes from doing it. Bounds are checked against the file's length
//!   at the moment of mapping; a file cut later by somebody else is beyond help.
//!
//! **A page that the disk cannot read back** (a bad sector) answers its first touch with SIGBUS as well. So the pages of a
//! view are brought in before it is given out, by a call that returns an error instead (`MADV_POPULATE_READ`, Linux 5.14;
//! without it, it is the signal that ends the process). The map's user decides what that error means: a log goes to
//! repair. What is left to the signal is a sector that goes bad between this call and the touch, after the kernel has
//! dropped the page.
//!
//! Writing through maps is not offered: a write that fails must fail as an error, not as a signal.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Advice, Mmap};
use parking_lot::Mutex;
use rustix::io::Errno;

/// At most one map of one file. Views hold the map they were cut from; this only remembers the newest.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// The whole file as it was when last mapped.
    whole: Mutex<Option<Whole>>,
}

/// A map, and the bytes that hold it.
#[derive(Clone, Debug)]
struct Whole {
    map: Arc<Mmap>,
    bytes: Bytes,
}

/// What [`Bytes`] hold.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Map {
    /// `len` bytes at `offset` of `file`; `UnexpectedEof` if the file is shorter, EIO if the disk cannot read them.
    pub(super) fn view(&self, file: impl AsFd, offset: u64, len: usize) -> io::Result<Bytes> {
        let end = offset.checked_add(len as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let whole = {
            let mut whole = self.whole.lock();
            match &*whole {
                Some(whole) if end <= whole.bytes.len() as u64 => whole.clone(),
                _ => {
                    let file_bytes = rustix::fs::fstat(&file)?.st_size as u64;
                    if end > file_bytes {
                        return Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            format!("bytes {offset}..{end} of a file of {file_bytes} bytes"),
                        ));
                    }
                    if len == 0 {
                        return Ok(Bytes::new());
                    }
                    whole.insert(map(file, file_bytes)?).clone()
                }
            }
        };
        // Both fit a usize: they are at most the length of the map.
        let (from, to) = (offset as usize, end as usize);
        bring_in(&whole.map, from, len)?;
        Ok(whole.bytes.slice(from..to))
    }

    /// Forgets the map; it is unmapped when the last view is gone.
    pub(super) fn release(&self) {
        *self.whole.lock() = None;
    }
}

/// Reads what is not in memory.
fn bring_in(map: &Mmap, offset: usize, len: usize) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    match map.advise_range(Advice::PopulateRead, offset, len) {
        // Where a touch would raise SIGBUS.
        Err(error) if is_error(&error, Errno::FAULT) || is_error(&error, Errno::HWPOISON) => Err(Errno::IO.into()),
        // A kernel that does not know this, or has no memory to do it ahead: the touch will do it.
        _ => Ok(()),
    }
}

fn is_error(error: &io::Error, number: Errno) -> bool {
    error.raw_os_error() == Some(number.raw_os_error())
}

#[allow(unsafe_code)]
fn map(file: impl AsFd, len: u64) -> io::Result<Whole> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the mapped bytes that are ever read through a reference neither change nor vanish: see the two
    // promises at the top of this module.
    let map = Arc::new(unsafe { memmap2::MmapOptions::new().len(len).map(file.as_fd().as_raw_fd()) }?);
    Ok(Whole { bytes: Bytes::from_owner(Owner(map.clone())), map })
}

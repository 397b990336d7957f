//! The read-only memory map of one file: made when first asked for, re-made when the file has outgrown it.
//!
//! This is, but for one call in [`crate::memory`], the only `unsafe` code of the workspace. A map is sound, and keeps the
//! process alive, because of three things that its users promise, not the kernel:
//!
//! - **Nobody writes under a view.** [`Map::view`] is asked for sealed or committed ranges only, and those bytes never
//!   change again. The rest of the map (the growing tail of the file) may change at any moment, through the writer's
//!   own descriptor; it is mapped, but no reference to it is ever read through.
//! - **Nobody truncates under a view.** A page wholly beyond the end of the file answers the first touch with SIGBUS.
//!   Only recovery and the log's truncation shorten files. Both cut above what is committed, hence above every view,
//!   and the data directory's lock keeps other processes from doing it. Bounds are checked against the file's length
//!   at the moment of mapping; a file cut later by somebody else is beyond help.
//! - **The disk can read what it has written.** A page that cannot be read back (a latent sector error) also arrives
//!   as SIGBUS and ends the process, as a failed write does: the process must not go on with a hole in its log. After
//!   the restart, recovery reads the same range with `read_at`, gets the error as a value, and starts repair.
//!
//! Writing through maps is not offered: a write that fails must fail as an error, not as a signal.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use bytes::Bytes;
use parking_lot::Mutex;

/// At most one map of one file. Views hold the map they were cut from; this only remembers the newest.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// The whole file as it was when last mapped. Empty: not mapped.
    whole: Mutex<Bytes>,
}

impl Map {
    /// `len` bytes at `offset` of `file`; `UnexpectedEof` if the file is shorter.
    pub(super) fn view(&self, file: impl AsFd, offset: u64, len: usize) -> io::Result<Bytes> {
        let end = offset.checked_add(len as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let mut whole = self.whole.lock();
        if end > whole.len() as u64 {
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
            *whole = map(file, file_bytes)?;
        }
        // Both fit a usize: they are at most the length of the map.
        Ok(whole.slice(offset as usize..end as usize))
    }

    /// Forgets the map; it is unmapped when the last view is gone.
    pub(super) fn release(&self) {
        *self.whole.lock() = Bytes::new();
    }
}

#[allow(unsafe_code)]
fn map(file: impl AsFd, len: u64) -> io::Result<Bytes> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the mapped bytes that are ever read through a reference neither change nor vanish: see the three
    // promises at the top of this module.
    let map = unsafe { memmap2::MmapOptions::new().len(len).map(file.as_fd().as_raw_fd()) }?;
    Ok(Bytes::from_owner(map))
}

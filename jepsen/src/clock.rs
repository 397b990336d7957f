//! A wall clock of a process's own, which can be set while it runs: libfaketime, preloaded. Its monotonic clock stays the
//! machine's. Needs Debian's libfaketime.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library, for programs with threads; `Unsupported` if it is not installed.
pub fn library() -> io::Result<PathBuf> {
    let places = fs::read_dir("/usr/lib")?.filter_map(Result::ok).map(|entry| entry.path());
    let mut found = places.map(|place| place.join("faketime/libfaketimeMT.so.1")).filter(|library| library.exists());
    found.next().ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "libfaketime is not installed"))
}

/// Gives the process that `command` starts the clock in `file`, which must be there.
pub fn preload(command: &mut Command, file: &Path) -> io::Result<()> {
    command.env("LD_PRELOAD", library()?);
    command.env("FAKETIME_TIMESTAMP_FILE", file);
    // It looks into the file each time, or else it would notice a step ten seconds later.
    command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    Ok(())
}

/// Sets the clock in `file`: so far from the machine's. Whoever looks sees it whole, the old one or the new one.
pub fn set(file: &Path, offset_ms: i64) -> io::Result<()> {
    let sign = if offset_ms < 0 { '-' } else { '+' };
    let (seconds, ms) = (offset_ms.unsigned_abs() / 1000, offset_ms.unsigned_abs() % 1000);
    let beside = file.with_extension("clock-new");
    fs::write(&beside, format!("{sign}{seconds}.{ms:03}\n"))?;
    fs::rename(beside, file)
}

//! Memory that the process has freed and its allocator still keeps.

/// Gives free memory back to the machine. An allocator keeps what was freed, for the next allocation; after a peak that
/// may be most of what the process occupies, for ever. Takes milliseconds, during which other threads may wait for
/// memory: for a process that has nothing to do. Does nothing where the C library is not glibc.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    trim();
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn trim() {
    // SAFETY: it takes a number, has no precondition and may be called by any thread at any time (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

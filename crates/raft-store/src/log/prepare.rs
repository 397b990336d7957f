//! Preparer: writes zeros into segment files ahead of the log's end, so that the writer overwrites blocks that exist.
//!
//! Overwriting is two to three times as fast as growing a file or writing into blocks that are only reserved. The
//! preparer crosses into the next segment by itself, so that a full segment never stops the writer, and draws ahead until
//! it is a whole segment in front: then it always works on another file than the writer, who else would wait for that
//! file's lock and for the journal entries that new blocks need. It publishes a piece once the piece is synced, and, of a
//! new file, the directory as well: the writer may then rely on both.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use env::Env;
use env::disk::Open;
use tokio::sync::{Mutex, Notify, watch};

use super::LogOptions;
use super::segment::Segment;
use super::state::Shared;
use crate::keyed::is_circumstance;
use crate::position::PhysicalOffset;

/// How many pieces the preparer stays ahead of what was submitted, at least.
const PIECES_AHEAD: u64 = 2;

/// Zeros are written this many bytes at a time; in between the disk is free for the writer.
const CHUNK_BYTES: u64 = 1 << 20;

/// How far the files are prepared, or why not further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The writer may write below this.
    pub end: PhysicalOffset,
    /// The last attempt failed; it is repeated when asked for again.
    pub failed: Option<String>,
}

/// What writer and preparer share.
#[derive(Debug)]
pub struct Preparation {
    /// Published progress.
    pub prepared: watch::Sender<Prepared>,
    /// Somebody wants more to be prepared, or the log is closing.
    pub wanted: Notify,
    /// Held while files are made or replaced: the end of what is prepared.
    pub end: Mutex<PhysicalOffset>,
    /// Where the log ended when it was opened.
    opened: PhysicalOffset,
    piece_bytes: u64,
    segment_bytes: u64,
}

impl Preparation {
    /// The log ends at `end`, and everything below counts as prepared.
    pub fn new(end: PhysicalOffset, options: &LogOptions) -> Preparation {
        Preparation {
            prepared: watch::Sender::new(Prepared { end, failed: None }),
            wanted: Notify::new(),
            end: Mutex::new(end),
            opened: end,
            piece_bytes: options.prepare_piece_bytes,
            segment_bytes: options.segment_bytes,
        }
    }

    /// Up to where to prepare while the log ends at `submitted`: at first as much as a start can wait for, then twice as
    /// fast as the log grows, until it is a segment.
    fn wanted_end(&self, submitted: PhysicalOffset) -> PhysicalOffset {
        let least = PIECES_AHEAD * self.piece_bytes;
        let grown = submitted.0.saturating_sub(self.opened.0);
        PhysicalOffset(submitted.0 + grown.saturating_mul(2).clamp(least, self.segment_bytes.max(least)))
    }

    /// The log has grown to `submitted`: wakes the preparer if it has something to do.
    pub fn follow(&self, submitted: PhysicalOffset) {
        if self.prepared.borrow().end < self.wanted_end(submitted) {
            self.wanted.notify_one();
        }
    }

    /// Resolves once everything below `end` is prepared; an error if that was tried and failed.
    pub async fn reach(&self, end: PhysicalOffset) -> io::Result<()> {
        let mut prepared = self.prepared.subscribe();
        if prepared.borrow_and_update().end >= end {
            return Ok(());
        }
        // A failure of before may have gone: only one from now on counts.
        self.prepared.send_modify(|prepared| prepared.failed = None);
        self.wanted.notify_one();
        loop {
            {
                let prepared = prepared.borrow_and_update();
                if prepared.end >= end {
                    return Ok(());
                }
                if let Some(failure) = &prepared.failed {
                    return Err(io::Error::other(format!("the log's files cannot grow: {failure}")));
                }
            }
            if prepared.changed().await.is_err() {
                return Err(io::Error::other("the preparer has ended"));
            }
        }
    }
}

/// Why a piece is not prepared.
enum Failure {
    /// There is no room for a file, or no handle: nothing is at stake yet, and it may work later.
    CannotGrow(io::Error),
    /// The disk has failed: it is not to be trusted any more.
    Fatal(io::Error),
}

impl Failure {
    /// Of making a file.
    fn to_make(error: io::Error) -> Failure {
        if is_circumstance(&error) { Failure::CannotGrow(error) } else { Failure::Fatal(error) }
    }
}

/// The future that prepares until the log closes.
pub async fn run(env: Env, shared: Arc<Shared>, commitlog: PathBuf) {
    let preparation = &shared.preparation;
    while !shared.is_ending() {
        let mut end = preparation.end.lock().await;
        if *end >= preparation.wanted_end(shared.submitted_end()) {
            drop(end);
            preparation.wanted.notified().await;
            continue;
        }
        match prepare_piece(&env, &shared, &commitlog, *end).await {
            Ok(prepared) => {
                *end = prepared;
                preparation.prepared.send_replace(Prepared { end: prepared, failed: None });
            }
            Err(Failure::CannotGrow(error)) => {
                tracing::error!(%error, at = %*end, "cannot make the log's next file");
                remove_half_made(&env, &shared, &commitlog, shared.layout.segment_of(*end)).await;
                preparation.prepared.send_modify(|prepared| prepared.failed = Some(error.to_string()));
                drop(end);
                preparation.wanted.notified().await;
            }
            Err(Failure::Fatal(error)) => {
                shared.fail(&format!("preparing a segment failed: {error}"));
                preparation.prepared.send_modify(|prepared| prepared.failed = Some(error.to_string()));
            }
        }
    }
}

/// Prepares from `at` to the end of a piece, in a new file if there is none, and returns that end.
async fn prepare_piece(
    env: &Env,
    shared: &Shared,
    commitlog: &Path,
    at: PhysicalOffset,
) -> Result<PhysicalOffset, Failure> {
    let (layout, piece_bytes) = (shared.layout, shared.preparation.piece_bytes);
    let first = layout.segment_of(at);
    let path = Segment::path(commitlog, first);
    let end = PhysicalOffset(at.0 + piece_bytes).min(layout.segment_end(at));
    let is_new = shared.segment(first).is_none();
    // A handle of its own: the kernel reports a failed write-back once per handle, and the writer must not miss it.
    let how = if is_new { Open::New } else { Open::Existing };
    let file = env.disk.open(&path, how).await.map_err(Failure::to_make)?;
    if is_new {
        file.allocate(layout.file_bytes()).await.map_err(Failure::to_make)?;
        file.write_zeros(0, layout.file_offset(at)).await.map_err(Failure::Fatal)?;
    }
    let mut written = at;
    while written < end {
        let began = env.clock.monotonic();
        let len = CHUNK_BYTES.min(end.0 - written.0);
        file.write_zeros(layout.file_offset(written), len).await.map_err(Failure::Fatal)?;
        written.0 += len;
        let is_pressing = shared.submitted_end().0 + piece_bytes >= at.0;
        if written < end && !is_pressing && !shared.is_ending() {
            // The disk is the writer's: three quarters of the time, while there is enough in front of it.
            env.clock.sleep((env.clock.monotonic() - began) * 3).await;
        }
    }
    env::fault!("log.piece_written");
    file.sync_data().await.map_err(Failure::Fatal)?;
    if is_new {
        env.disk.sync_dir(commitlog).await.map_err(Failure::Fatal)?;
        env::fault!("log.segment_made");
        let file = env.disk.open(&path, Open::Existing).await.map_err(Failure::to_make)?;
        shared.add_segment(Segment { first, file });
    }
    Ok(end)
}

/// A new file that did not get its first piece is removed, so that the next attempt can make it anew.
async fn remove_half_made(env: &Env, shared: &Shared, commitlog: &Path, first: PhysicalOffset) {
    if shared.segment(first).is_none()
        && let Err(error) = env.disk.remove_file(&Segment::path(commitlog, first)).await
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::error!(%error, segment = %first, "cannot remove a half-made segment file");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_waits_for_little_and_a_busy_log_is_a_segment_ahead() {
        let ahead = |submitted: u64, opened: u64, segment_bytes: u64| {
            let options = LogOptions { prepare_piece_bytes: 16, segment_bytes, ..LogOptions::default() };
            let preparation = Preparation::new(PhysicalOffset(opened), &options);
            preparation.wanted_end(PhysicalOffset(submitted)).0 - submitted
        };
        assert_eq!([ahead(5000, 5000, 1024), ahead(5016, 5000, 1024), ahead(5100, 5000, 1024)], [32, 32, 200]);
        assert_eq!([ahead(6000, 5000, 1024), ahead(1 << 40, 5000, 1024)], [1024, 1024]);
        // The log was cut, or begun anew, before the place where it was opened.
        assert_eq!(ahead(100, 5000, 1024), 32);
        // Segments that are shorter than what a start prepares.
        assert_eq!(ahead(64, 0, 16), 32);
    }
}

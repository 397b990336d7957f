//! Derived sync.

use std::io;
use std::path::PathBuf;

use env::Env;

use crate::log::Boundary;

/// How derived state is laid out and bounded.
#[derive(Clone, Debug)]
pub struct DerivedOptions {
    /// The log's segment size; written in images, refused if it differs.
    pub segment_bytes: u64,
    /// A derived sync starts after this long,
    pub sync_interval_ms: u64,
    /// or after this much log,
    pub sync_log_bytes: u64,
    /// or when this much has changed. Apply waits once as much again has changed during a derived sync.
    pub sync_changed_bytes: usize,
    /// Images kept.
    pub images_kept: usize,
    /// ConsumeQueue units kept in memory after they are durable, all queues together.
    pub recent_units_bytes: usize,
}

impl Default for DerivedOptions {
    fn default() -> DerivedOptions {
        DerivedOptions {
            segment_bytes: 1 << 30,
            sync_interval_ms: 10_000,
            sync_log_bytes: 256 << 20,
            sync_changed_bytes: 16 << 20,
            images_kept: 16,
            recent_units_bytes: 32 << 20,
        }
    }
}

/// Why the derived state did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log was purged beyond what is left here, or does not reach it. Fetch an image, or repair the log.
    #[error("derived state at {derived:?} does not fit the log: {reason}")]
    DoesNotFit {
        /// N.
        derived: Option<Boundary>,
        /// Why.
        reason: String,
    },
    /// A row of a newer version, or options of another cluster.
    #[error("derived state: {0}")]
    Incompatible(String),
    /// The disk failed; trying again is allowed.
    #[error("derived state: {0}")]
    Io(#[from] io::Error),
}

/// What is on disk beside the log, found before the log is opened.
pub struct Derived {
    newest: Option<Boundary>,
}

impl Derived {
    /// Finds the newest valid state under `dir` (`state/`, `checkpoint/`, `consumequeue/`, `index/`).
    pub async fn probe(env: &Env, dir: PathBuf, options: DerivedOptions) -> Result<Derived, OpenError> {
        let _ = (env, dir, options);
        Ok(Derived { newest: None })
    }

    /// N: the log must reach it (give it to `Log::open` as the floor), and replay begins behind it.
    pub fn newest(&self) -> Option<Boundary> {
        self.newest
    }
}

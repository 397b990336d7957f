//! Checkpoint images.

use std::path::PathBuf;

use bytes::Bytes;

use crate::log::Boundary;
use crate::position::LogId;

/// A complete image on disk.
#[derive(Clone, Debug)]
pub struct Image {
    /// The entry it was cut at, and the place behind it.
    pub boundary: Boundary,
    /// The last membership at that entry, in RAFT's encoding, with its log id.
    pub membership: Option<(LogId, Bytes)>,
    /// Where it lies. Read it with `env.disk`; it is immutable.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
}

//! Whether the frames of a request are what the leader's log holds: recomputed along the request from its start.
//!
//! A request that fails here never reaches Raft, and the log is untouched: the sender or the link is broken. What the
//! receiver's own log makes of a sound request, [`crate::log::Log::append`] sees.

use crate::log::frame::{ALIGNMENT, HEADER_BYTES, compose, frame_bytes};
use crate::log::segment::Layout;
use crate::position::LogId;
use crate::raft::peer::wire::Append;
use crate::raft::types::from_raft;

/// Places beyond this are nobody's: arithmetic on them cannot overflow.
const PHYSICAL_OFFSET_MAX: u64 = 1 << 62;

/// What does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistent {
    /// The request starts where no frame can.
    #[error("a request starts at physical offset {0}, where no frame can")]
    Start(u64),
    /// Ids do not count up.
    #[error("entry {0} does not follow the one before it in the request")]
    Sequence(LogId),
    /// Longer than anything that is ever proposed.
    #[error("entry {0} is longer than an entry may be")]
    TooLong(LogId),
    /// The body is not the one its CRC was taken of.
    #[error("the body of entry {0} does not have its CRC")]
    Body(LogId),
    /// Place or chain are not what the frames before make them.
    #[error("entry {0} is not where its predecessors put it, or its chain is not theirs")]
    Chain(LogId),
}

/// Checks ids, body CRCs, places and chain of `request`. Computes one CRC per body: the receiver's only one.
pub fn check(request: &Append, layout: Layout, entry_bytes_max: u32) -> Result<(), Inconsistent> {
    let mut at = request.start;
    let start = at.physical_offset.0;
    if !start.is_multiple_of(ALIGNMENT) || start >= PHYSICAL_OFFSET_MAX {
        return Err(Inconsistent::Start(start));
    }
    let mut last = request.previous.as_ref().map(from_raft);
    for entry in &request.entries {
        let id = entry.id();
        if !crate::log::frame::follows(id, last) {
            return Err(Inconsistent::Sequence(id));
        }
        let (kind, body, body_crc, _) = entry.clone().into_frame_parts();
        let body_bytes = body.len() as u64;
        if body_bytes > u64::from(entry_bytes_max) || frame_bytes(body_bytes) > layout.segment_bytes {
            return Err(Inconsistent::TooLong(id));
        }
        if crc32c::crc32c(&body) != body_crc {
            return Err(Inconsistent::Body(id));
        }
        let header = compose(at, layout, kind, id, body.len() as u32, body_crc).header;
        let carried = entry.placed.map(|placed| (placed.physical_offset, placed.chain));
        if carried != Some((header.physical_offset, header.chain)) {
            return Err(Inconsistent::Chain(id));
        }
        at = header.cursor();
        last = Some(id);
        debug_assert!(at.physical_offset.0 >= start + HEADER_BYTES);
    }
    Ok(())
}

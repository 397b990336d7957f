//! Repair: a log that is damaged where it was durable is made whole from the peers, before Raft starts for the group.
//!
//! - What must be mended is found by a [`survey`] of the whole log. Each gap is filled with the peers' committed frames,
//!   which the chain ties to what this replica holds before the gap, and which must lead to the whole frame behind it.
//! - Nothing is ever cut, and nothing whole is written over. If what the peers have committed does not join what is held
//!   here, or if the log's end is lost, so that nobody knows what this replica has acknowledged, it must not go on under
//!   its id: a new one takes its place.
//! - As long as no peer can be reached that has committed that far, this replica waits, and serves nothing.
//!
//! ```text
//! repair    there while the log is to be surveyed at the next start; its content is for people
//! ```

use std::io;
use std::path::Path;

use bytes::Bytes;
use env::Env;

use crate::consume_queue::{read_file, replace_file};
use crate::log::mend::{Mending, place};
use crate::log::survey::{Gap, Step, Survey, survey};
use crate::log::{self, Boundary, Cursor, Frame};
use crate::position::{LogId, PhysicalOffset};
use crate::raft::peer::frames::{Peers, Refused};

/// The note that the log is to be surveyed.
pub(crate) const NOTE: &str = "repair";

/// A disk on which gaps are back after they were filled so often is worn out.
const ROUNDS: usize = 3;

/// Bodies of one gap that are held in memory until the gap is complete.
const HELD_BYTES: usize = 64 << 20;

/// What was mended since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Stretches of the log.
    pub gaps: u64,
    /// Frames written.
    pub frames: u64,
    /// Bytes of the stretches.
    pub bytes: u64,
}

/// Why a log cannot be mended.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// There is nobody to ask.
    #[error(
        "the log is corrupt at physical offset {physical_offset} ({reason}), and this group has no other replica to \
         repair it from; restore the directory from a backup"
    )]
    Alone {
        /// Where.
        physical_offset: PhysicalOffset,
        /// What is wrong.
        reason: String,
    },
    /// What is missing here was not committed, or something else was in its place.
    #[error(
        "the log is corrupt at physical offset {physical_offset}, and what the peers have committed does not join what \
         is whole here ({reason}); nothing was cut. {REPLACE}"
    )]
    DoesNotJoin {
        /// Where the gap begins.
        physical_offset: PhysicalOffset,
        /// How that was seen.
        reason: String,
    },
    /// This replica may have acknowledged what it does not hold any more.
    #[error(
        "the end of the log is lost from physical offset {physical_offset} on, and nobody knows how much there was; \
         nothing was cut. {REPLACE}"
    )]
    TailLost {
        /// From here on.
        physical_offset: PhysicalOffset,
    },
    /// The peers have it no more.
    #[error(
        "the log is corrupt at physical offset {physical_offset}, which the peers have purged; nothing was cut. {REPLACE}"
    )]
    Purged {
        /// Where the gap begins.
        physical_offset: PhysicalOffset,
    },
    /// What was written does not stay.
    #[error(
        "the log is corrupt again at physical offset {physical_offset} after it was mended: the disk does not keep what \
         is written to it. Replace the disk. {REPLACE}"
    )]
    Worn {
        /// Where.
        physical_offset: PhysicalOffset,
    },
    /// All is whole, and yet it is another log.
    #[error("the log is whole and not what was durable ({0}); nothing was changed. {REPLACE}")]
    Contradiction(String),
    /// The log cannot be read at all.
    #[error(transparent)]
    Log(#[from] log::OpenError),
    /// The disk failed; trying again is allowed.
    #[error("repairing the log: {0}")]
    Io(#[from] io::Error),
}

/// What an operator does next.
pub(crate) const REPLACE: &str = "This replica must not go on under its id: move its data_dir away, start it on an empty one \
                                  with `join = true`, then `raftmq admin replaceNode` puts it in the old one's place";

/// Notes, durably, that the next start must survey the log.
pub(crate) async fn note(env: &Env, dir: &Path, why: &str) -> io::Result<()> {
    replace_file(env, &dir.join(NOTE), Bytes::from(format!("{why}\n"))).await
}

/// Whether that is noted. An empty file, made by an operator, is a note too.
pub(crate) async fn is_noted(env: &Env, dir: &Path) -> io::Result<bool> {
    Ok(read_file(env, &dir.join(NOTE)).await?.is_some())
}

async fn remove_note(env: &Env, dir: &Path) -> io::Result<()> {
    match env.disk.remove_file(&dir.join(NOTE)).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => {
            removed?;
            env.disk.sync_dir(dir).await
        }
    }
}

/// Surveys the log under `dir` and fills its gaps. `floor` is known durable from elsewhere. May be dropped at any point,
/// and begun again.
pub(crate) async fn repair(
    env: &Env,
    dir: &Path,
    floor: Option<Boundary>,
    peers: &mut Peers,
) -> Result<Repaired, RepairError> {
    let mut repaired = Repaired::default();
    let mut worn = PhysicalOffset(0);
    for _ in 0..ROUNDS {
        tracing::info!(dir = %dir.display(), "reading the whole log");
        let found = survey(env, dir, floor, &|_, _| {}).await?;
        if let Some(contradiction) = found.contradiction {
            return Err(RepairError::Contradiction(contradiction));
        }
        let Some(first) = found.gaps.first() else {
            if repaired != Repaired::default() {
                let Repaired { gaps, frames, bytes } = repaired;
                tracing::warn!(gaps, frames, bytes, "the log was damaged and is whole again, from the peers");
            }
            remove_note(env, dir).await?;
            return Ok(repaired);
        };
        worn = first.from.physical_offset;
        if peers.is_empty() {
            return Err(RepairError::Alone { physical_offset: worn, reason: first.reason.clone() });
        }
        if let Some(physical_offset) = lost_tail(&found) {
            return Err(RepairError::TailLost { physical_offset });
        }
        let mut mending = Mending::new(env, dir, found.files.layout);
        for gap in &found.gaps {
            let (from, to) = (gap.from.physical_offset, gap.to);
            tracing::warn!(%from, %to, reason = gap.reason, "the log is damaged; fetching the frames from the peers");
            repaired.frames += fill(&found, gap, peers, &mut mending).await?;
            repaired.gaps += 1;
            repaired.bytes += to.0 - from.0;
        }
        mending.sync().await?;
    }
    Err(RepairError::Worn { physical_offset: worn })
}

/// From where on the end of the log is gone: only derived state knows that something was there, and it does not know how
/// much. A mark does: it is behind by no more than what was never acknowledged without it.
fn lost_tail(found: &Survey) -> Option<PhysicalOffset> {
    let last = found.gaps.last()?;
    let reaches_the_end = last.to == found.known.end.physical_offset && found.end == found.known;
    (found.is_known_by_floor && reaches_the_end).then_some(last.from.physical_offset)
}

/// Fills one gap. Gives the frames written. Of a gap that is not too long nothing is written before all of it is there
/// and joins what lies behind: what cannot be mended stays as it was found.
async fn fill(found: &Survey, gap: &Gap, peers: &mut Peers, mending: &mut Mending) -> Result<u64, RepairError> {
    let physical_offset = gap.from.physical_offset;
    let does_not_join = |reason: String| RepairError::DoesNotJoin { physical_offset, reason };
    let (mut at, mut last, mut written) = (gap.from, gap.last, 0);
    let (mut held, mut held_bytes) = (Vec::new(), 0);
    while at.physical_offset < gap.to {
        let given = peers.frames(last, at).await.map_err(|refused| match refused {
            Refused::Diverged => does_not_join(format!("they have another entry behind {last:?}")),
            Refused::Purged => RepairError::Purged { physical_offset },
        })?;
        for entry in given.entries {
            let id = entry.id();
            let (kind, body, body_crc, _) = entry.into_frame_parts();
            let frame = Frame { id, kind, physical_offset: at.physical_offset, body, body_crc, chain: 0 };
            let placed = place(at, &frame, found.files.layout, gap.to).ok_or_else(|| {
                does_not_join(format!("their entry {id} reaches beyond {}, which is whole here", gap.to))
            })?;
            at = placed.end;
            if placed.is_whole {
                (last, written) = (Some(id), written + 1);
            }
            held_bytes += placed.body_bytes();
            held.push(placed);
            if at.physical_offset >= gap.to {
                break;
            }
        }
        if held_bytes > HELD_BYTES {
            for placed in held.drain(..) {
                mending.write(&placed, gap.to).await?;
            }
            held_bytes = 0;
        }
    }
    joins(found, at, last).await.map_err(does_not_join)?;
    for placed in held {
        mending.write(&placed, gap.to).await?;
    }
    Ok(written)
}

/// Whether what lies behind a filled gap continues it.
async fn joins(found: &Survey, at: Cursor, last: Option<LogId>) -> Result<(), String> {
    if at.physical_offset == found.known.end.physical_offset {
        let is_known = at == found.known.end && last == found.known.last;
        return if is_known {
            Ok(())
        } else {
            Err(format!("{:?} was durable, they lead to {last:?}", found.known.last))
        };
    }
    match found.files.walk(at, last, found.known.end.physical_offset).step().await {
        Some(Step::Frame(..)) => Ok(()),
        Some(Step::Gap(gap)) => Err(format!("behind it, {}", gap.reason)),
        None => Err("nothing follows".to_owned()),
    }
}

//! Segment files: which bytes of the log lie in which file, and the marks in their heads.
//!
//! Segment k holds the physical offsets `k * segment_bytes .. (k + 1) * segment_bytes` in a file named by the first of
//! them in 20 digits. The first 8 KiB of the file are its head; they are local to this replica and outside physical
//! offsets. The head has two mark slots, at 0 and at 4096:
//!
//! ```text
//!  0 magic u32 "RMQM"    4 version u8 = 1    5 zero
//!  8 generation u64     16 synced physical end u64
//! 24 term u64           32 index u64 (of the last synced entry)     40 chain u64
//! 48 first physical offset of the segment u64                       56 CRC32C u32 (of 0..56)
//! ```
//!
//! A mark says: everything below the synced end was durable. It is written together with the *next* group, in the same
//! sync, so it costs no sync of its own; the slots take turns, so that a torn mark leaves the one before it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use env::File;

use super::frame::{Boundary, Cursor};
use crate::position::{LogId, PhysicalOffset};

/// Bytes at the start of a segment file that are not part of the log.
pub const HEAD_BYTES: u64 = 8192;

/// Distance of the two mark slots: one never shares a disk block with the other.
pub const SLOT_BYTES: u64 = 4096;

/// Length of a mark as written.
pub const MARK_BYTES: usize = 60;

const MAGIC: u32 = u32::from_le_bytes(*b"RMQM");
const VERSION: u8 = 1;

/// How physical offsets map to files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Log bytes per segment; a multiple of the frame alignment.
    pub segment_bytes: u64,
}

impl Layout {
    /// First physical offset of the segment that holds `at`.
    pub fn segment_of(&self, at: PhysicalOffset) -> PhysicalOffset {
        PhysicalOffset(at.0 - at.0 % self.segment_bytes)
    }

    /// First physical offset behind the segment that holds `at`.
    pub fn segment_end(&self, at: PhysicalOffset) -> PhysicalOffset {
        PhysicalOffset(self.segment_of(at).0 + self.segment_bytes)
    }

    /// Where `at` lies in the file of its segment.
    pub fn file_offset(&self, at: PhysicalOffset) -> u64 {
        at.0 % self.segment_bytes + HEAD_BYTES
    }

    /// Length of a segment file.
    pub fn file_bytes(&self) -> u64 {
        HEAD_BYTES + self.segment_bytes
    }

    /// `from..to` cut at segment boundaries: pieces that lie in one file each.
    pub fn pieces(&self, from: PhysicalOffset, to: PhysicalOffset) -> impl Iterator<Item = (PhysicalOffset, u64)> {
        let layout = *self;
        let mut at = from;
        std::iter::from_fn(move || {
            let len = layout.segment_end(at).min(to).0.checked_sub(at.0).filter(|len| *len > 0)?;
            let piece = (at, len);
            at = PhysicalOffset(at.0 + len);
            Some(piece)
        })
    }
}

/// The file of a segment that starts at `first`.
pub fn file_name(first: PhysicalOffset) -> String {
    format!("{:020}", first.0)
}

/// The first physical offset of the segment in the file `name`, if it is one.
pub fn parse_file_name(name: &str) -> Option<PhysicalOffset> {
    let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    if digits { name.parse().ok().map(PhysicalOffset) } else { None }
}

/// An open segment file.
#[derive(Clone, Debug)]
pub struct Segment {
    /// First physical offset.
    pub first: PhysicalOffset,
    /// The open file.
    pub file: Arc<dyn File>,
}

impl Segment {
    /// The path of the segment that starts at `first`.
    pub fn path(commitlog: &Path, first: PhysicalOffset) -> PathBuf {
        commitlog.join(file_name(first))
    }
}

/// What a mark slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Generation of the hard state when it was written: raised by each truncation.
    pub generation: u64,
    /// Last synced entry and the place behind it.
    pub synced: Boundary,
    /// First physical offset of the segment it was written to.
    pub segment: PhysicalOffset,
}

impl Mark {
    /// As written.
    pub fn encode(&self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = VERSION;
        let numbers = [
            self.generation,
            self.synced.end.physical_offset.0,
            self.synced.id.term,
            self.synced.id.index,
            self.synced.end.chain,
            self.segment.0,
        ];
        for (number, at) in numbers.into_iter().zip((8..).step_by(8)) {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..56]);
        bytes[56..60].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` for anything that is not a whole, undamaged mark: an unused or torn slot looks like that.
    pub fn decode(bytes: &[u8]) -> Option<Mark> {
        let bytes: &[u8; MARK_BYTES] = bytes.get(..MARK_BYTES)?.try_into().ok()?;
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let crc = u32::from_le_bytes(bytes[56..60].try_into().expect("four bytes"));
        let valid = bytes[0..4] == MAGIC.to_le_bytes()
            && bytes[4] == VERSION
            && bytes[5..8] == [0; 3]
            && crc == crc32c::crc32c(&bytes[..56]);
        valid.then(|| Mark {
            generation: number(8),
            synced: Boundary {
                id: LogId { term: number(24), index: number(32) },
                end: Cursor { physical_offset: PhysicalOffset(number(16)), chain: number(40) },
            },
            segment: PhysicalOffset(number(48)),
        })
    }

    /// Whether it was written to the segment at `first` and speaks of it. A recycled or misplaced file fails this.
    pub fn belongs_to(&self, first: PhysicalOffset, layout: Layout) -> bool {
        let end = self.synced.end.physical_offset;
        self.segment == first && end >= first && end.0 <= first.0.saturating_add(layout.segment_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAYOUT: Layout = Layout { segment_bytes: 4096 };

    #[test]
    fn names_are_first_physical_offsets() {
        assert_eq!(file_name(PhysicalOffset(4096)), "00000000000000004096");
        assert_eq!(parse_file_name("00000000000000004096"), Some(PhysicalOffset(4096)));
        for other in ["", "4096", "00000000000000004096.frames", "+0000000000000004096", "99999999999999999999"] {
            assert_eq!(parse_file_name(other), None, "{other}");
        }
    }

    #[test]
    fn pieces_are_cut_at_segments() {
        let pieces: Vec<_> = LAYOUT.pieces(PhysicalOffset(4000), PhysicalOffset(12288 + 64)).collect();
        let offsets = |at, len| (PhysicalOffset(at), len);
        assert_eq!(pieces, [offsets(4000, 96), offsets(4096, 4096), offsets(8192, 4096), offsets(12288, 64)]);
        assert_eq!(LAYOUT.pieces(PhysicalOffset(64), PhysicalOffset(64)).count(), 0);
        assert_eq!(LAYOUT.pieces(PhysicalOffset(128), PhysicalOffset(64)).count(), 0);
    }

    proptest! {
        #[test]
        fn a_mark_survives_the_round_trip_and_no_flipped_bit_does(
            generation: u64, end: u64, term: u64, index: u64, chain: u64, segment: u64, bit in 0..MARK_BYTES * 8,
        ) {
            let mark = Mark {
                generation,
                synced: Boundary {
                    id: LogId { term, index },
                    end: Cursor { physical_offset: PhysicalOffset(end), chain },
                },
                segment: PhysicalOffset(segment),
            };
            let mut bytes = mark.encode();
            prop_assert_eq!(Mark::decode(&bytes), Some(mark));
            let _ = mark.belongs_to(PhysicalOffset(segment), LAYOUT);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Mark::decode(&bytes), None);
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(Mark::decode(&bytes), None);
        }
    }

    #[test]
    fn a_mark_of_another_segment_is_void() {
        let end = Cursor { physical_offset: PhysicalOffset(5000), chain: 1 };
        let synced = Boundary { id: LogId { term: 1, index: 1 }, end };
        let mark = Mark { generation: 1, synced, segment: PhysicalOffset(4096) };
        assert!(mark.belongs_to(PhysicalOffset(4096), LAYOUT));
        assert!(!mark.belongs_to(PhysicalOffset(8192), LAYOUT));
        assert!(!Mark { segment: PhysicalOffset(0), ..mark }.belongs_to(PhysicalOffset(0), LAYOUT));
    }
}

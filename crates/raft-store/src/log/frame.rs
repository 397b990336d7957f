//! Frame: the unit of the CommitLog. Bytes to values and back; pure.
//!
//! ```text
//!  0 magic u32 "RMQF"     4 version u8 = 1    5 kind u8            6 zero u16
//!  8 term u64            16 index u64        24 physical offset u64
//! 32 body bytes u32      36 body CRC32C u32  40 chain u64
//! 48 zero u64            56 header CRC32C u32 (of 0..56)          60 zero u32
//! 64 body, filled with zeros to a multiple of 64
//! ```
//!
//! Little-endian. Frames start at multiples of 64 of the physical offset and never span segments; the rest of a segment
//! that is too short for the next frame is one padding frame, of which only the header is written. It carries the id of
//! the entry that follows, and its body length says how much is void.
//!
//! `chain = xxh3_64(previous chain ++ header[0..40])`, 0 before the first frame. The header holds the body's CRC, so two
//! logs whose chains are equal at a place are equal up to it, byte for byte. Every field is a function of the log
//! alone: frames are the same on every replica.

use bytes::Bytes;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::segment::Layout;
use crate::planted::{self, Bug};
use crate::position::{LogId, PhysicalOffset};

/// Length of a frame's header.
pub const HEADER_BYTES: u64 = 64;

/// Frames start at multiples of this.
pub const ALIGNMENT: u64 = 64;

const MAGIC: u32 = u32::from_le_bytes(*b"RMQF");
const VERSION: u8 = 1;

/// The part of the header that the chain covers.
const CHAINED_BYTES: usize = 40;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A stamp and operations.
    Entry = 1,
    /// A membership.
    Membership = 2,
    /// Nothing: a new leader's first entry.
    Blank = 3,
    /// The void at the end of a segment; never shown to readers.
    Padding = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        match byte {
            1 => Some(Kind::Entry),
            2 => Some(Kind::Membership),
            3 => Some(Kind::Blank),
            4 => Some(Kind::Padding),
            _ => None,
        }
    }
}

/// A frame as read. Padding is never shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its place in the Raft log.
    pub id: LogId,
    /// What it holds.
    pub kind: Kind,
    /// Where its header lies.
    pub physical_offset: PhysicalOffset,
    /// What it says.
    pub body: Bytes,
    /// CRC32C of `body`.
    pub body_crc: u32,
    /// Rolling hash of the log up to and with this frame.
    pub chain: u64,
}

impl Frame {
    /// The place behind it.
    pub fn end(&self) -> Cursor {
        let bytes = frame_bytes(self.body.len() as u64);
        Cursor { physical_offset: PhysicalOffset(self.physical_offset.0 + bytes), chain: self.chain }
    }
}

/// A place between two frames: where the next one goes, and the chain up to there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// End of the frame before.
    pub physical_offset: PhysicalOffset,
    /// Chain of the frame before; 0 at the beginning of the log.
    pub chain: u64,
}

/// An entry and the place behind it: where a log may begin after a purge or an installed image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// The last entry before the boundary.
    pub id: LogId,
    /// The place behind it.
    pub end: Cursor,
}

/// Why bytes are not the frame that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadFrame {
    /// All zeros, or not even that many bytes: nothing was written here.
    #[error("nothing is written here")]
    Nothing,
    /// Fewer bytes than the frame needs.
    #[error("the frame is cut short")]
    Short,
    /// Not a frame at all.
    #[error("no frame starts here")]
    Magic,
    /// Written by a later release.
    #[error("frame version {0} is unknown")]
    Version(u8),
    /// The header is damaged.
    #[error("the header's checksum does not hold")]
    HeaderCrc,
    /// The checksum holds, but the fields make no sense.
    #[error("the header contradicts itself")]
    Header,
    /// The body is damaged.
    #[error("the body's checksum does not hold")]
    BodyCrc,
    /// Bytes between body and next frame are not zero.
    #[error("the fill behind the body is not zero")]
    Fill,
    /// It belongs elsewhere.
    #[error("the frame says it lies at {0}")]
    Elsewhere(PhysicalOffset),
    /// It does not continue what lies before: left over from an earlier use of these bytes.
    #[error("the frame does not continue the chain")]
    Chain,
    /// Index or term do not continue.
    #[error("entry {0} does not follow")]
    Sequence(LogId),
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame holds.
    pub kind: Kind,
    /// Its place in the Raft log; of padding: the id of the entry behind it.
    pub id: LogId,
    /// Where the header lies.
    pub physical_offset: PhysicalOffset,
    /// Length of the body; of padding: of the void.
    pub body_bytes: u32,
    /// CRC32C of the body; of padding: 0.
    pub body_crc: u32,
    /// Rolling hash of the log up to and with this frame.
    pub chain: u64,
}

impl Header {
    /// The header of a frame at `at.physical_offset` that continues `at.chain`.
    fn after(at: Cursor, kind: Kind, id: LogId, body_bytes: u32, body_crc: u32) -> Header {
        let mut header = Header { kind, id, physical_offset: at.physical_offset, body_bytes, body_crc, chain: 0 };
        header.chain = header.chain_after(at.chain);
        header
    }

    /// As written.
    pub fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..CHAINED_BYTES].copy_from_slice(&self.chained());
        bytes[40..48].copy_from_slice(&self.chain.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..56]);
        bytes[56..60].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn chained(&self) -> [u8; CHAINED_BYTES] {
        let mut bytes = [0; CHAINED_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = VERSION;
        bytes[5] = self.kind as u8;
        bytes[8..16].copy_from_slice(&self.id.term.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.index.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.physical_offset.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes
    }

    /// The chain that this header has if the frame before has `previous`.
    pub fn chain_after(&self, previous: u64) -> u64 {
        let mut hashed = [0; 8 + CHAINED_BYTES];
        hashed[..8].copy_from_slice(&previous.to_le_bytes());
        hashed[8..].copy_from_slice(&self.chained());
        xxh3_64(&hashed)
    }

    /// Reads a header that is whole and undamaged, whatever its place. `bytes` may be longer or shorter than a header.
    pub fn decode(bytes: &[u8]) -> Result<Header, BadFrame> {
        let bytes = &bytes[..bytes.len().min(HEADER_BYTES as usize)];
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(BadFrame::Nothing);
        }
        let Ok(bytes) = <&[u8; HEADER_BYTES as usize]>::try_from(bytes) else {
            return Err(BadFrame::Short);
        };
        if u32_at(bytes, 0) != MAGIC {
            return Err(BadFrame::Magic);
        }
        if crc32c::crc32c(&bytes[..56]) != u32_at(bytes, 56) || bytes[60..] != [0; 4] {
            return Err(BadFrame::HeaderCrc);
        }
        if bytes[4] != VERSION {
            return Err(BadFrame::Version(bytes[4]));
        }
        let kind = Kind::from_byte(bytes[5]).ok_or(BadFrame::Header)?;
        let header = Header {
            kind,
            id: LogId { term: u64_at(bytes, 8), index: u64_at(bytes, 16) },
            physical_offset: PhysicalOffset(u64_at(bytes, 24)),
            body_bytes: u32_at(bytes, 32),
            body_crc: u32_at(bytes, 36),
            chain: u64_at(bytes, 40),
        };
        let reserved_is_zero = bytes[6..8] == [0; 2] && bytes[48..56] == [0; 8];
        let aligned = header.physical_offset.0.is_multiple_of(ALIGNMENT);
        let padding_is_void = kind != Kind::Padding || header.body_crc == 0;
        if reserved_is_zero && aligned && padding_is_void { Ok(header) } else { Err(BadFrame::Header) }
    }

    /// Where the next frame starts. Saturates: a header read from a damaged disk may say anything.
    pub fn end(&self) -> PhysicalOffset {
        let bytes = match self.kind {
            Kind::Padding => HEADER_BYTES + u64::from(self.body_bytes),
            _ => frame_bytes(u64::from(self.body_bytes)),
        };
        PhysicalOffset(self.physical_offset.0.saturating_add(bytes))
    }

    /// The place behind it.
    pub fn cursor(&self) -> Cursor {
        Cursor { physical_offset: self.end(), chain: self.chain }
    }

    /// Whether this header stands at `at`, continues its chain, stays in its segment, and is the one after `last`.
    /// `last` is `None` only at the very beginning of the log.
    pub fn continues(&self, at: Cursor, last: Option<LogId>, layout: Layout) -> Result<(), BadFrame> {
        if planted::is(Bug::StaleFrames) {
            return Ok(());
        }
        if self.physical_offset != at.physical_offset {
            return Err(BadFrame::Elsewhere(self.physical_offset));
        }
        if self.chain != self.chain_after(at.chain) && !planted::is(Bug::ChainUnchecked) {
            return Err(BadFrame::Chain);
        }
        if !follows(self.id, last) {
            return Err(BadFrame::Sequence(self.id));
        }
        let segment_end = layout.segment_end(at.physical_offset);
        let fits = match self.kind {
            Kind::Padding => self.end() == segment_end,
            _ => self.end() <= segment_end,
        };
        if fits { Ok(()) } else { Err(BadFrame::Header) }
    }

    /// Whether `body_and_fill` (what lies between this header and the next frame) is what the header says.
    pub fn check_body(&self, body_and_fill: &[u8]) -> Result<(), BadFrame> {
        if self.kind == Kind::Padding {
            return Ok(());
        }
        let body_bytes = self.body_bytes as usize;
        let fill_bytes = (frame_bytes(u64::from(self.body_bytes)) - HEADER_BYTES) as usize - body_bytes;
        if body_and_fill.len() < body_bytes + fill_bytes {
            return Err(BadFrame::Short);
        }
        if crc32c::crc32c(&body_and_fill[..body_bytes]) != self.body_crc {
            return Err(BadFrame::BodyCrc);
        }
        if body_and_fill[body_bytes..body_bytes + fill_bytes].iter().any(|byte| *byte != 0) {
            return Err(BadFrame::Fill);
        }
        Ok(())
    }
}

/// Whether `id` may stand right behind `last`.
pub fn follows(id: LogId, last: Option<LogId>) -> bool {
    match last {
        None => id.index == 0,
        Some(last) => id.index == last.index.wrapping_add(1) && id.term >= last.term,
    }
}

/// Bytes that a frame with a body of `body_bytes` occupies.
pub fn frame_bytes(body_bytes: u64) -> u64 {
    HEADER_BYTES + body_bytes.next_multiple_of(ALIGNMENT)
}

/// The headers that an entry needs at a place: perhaps one of padding, and its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Composed {
    /// Fills the segment if the entry does not fit into its rest.
    pub padding: Option<Header>,
    /// The entry's header.
    pub header: Header,
}

/// Puts an entry at `at`. Every replica does the same with the same log, and so can whoever checks frames in transit.
///
/// Panics if the body fits no segment; the callers have checked its length.
pub fn compose(at: Cursor, layout: Layout, kind: Kind, id: LogId, body_bytes: u32, body_crc: u32) -> Composed {
    assert!(kind != Kind::Padding, "padding is not appended, it arises");
    let bytes = frame_bytes(u64::from(body_bytes));
    assert!(bytes <= layout.segment_bytes, "a frame of {bytes} bytes fits no segment of {}", layout.segment_bytes);
    let rest = layout.segment_end(at.physical_offset).0 - at.physical_offset.0;
    if bytes <= rest {
        return Composed { padding: None, header: Header::after(at, kind, id, body_bytes, body_crc) };
    }
    let padding = Header::after(at, Kind::Padding, id, (rest - HEADER_BYTES) as u32, 0);
    let header = Header::after(padding.cursor(), kind, id, body_bytes, body_crc);
    Composed { padding: Some(padding), header }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAYOUT: Layout = Layout { segment_bytes: 4096 };

    fn headers() -> impl Strategy<Value = Header> {
        let kinds = prop_oneof![Just(Kind::Entry), Just(Kind::Membership), Just(Kind::Blank), Just(Kind::Padding)];
        (kinds, any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>()).prop_map(
            |(kind, term, index, offset, body_bytes, body_crc, chain)| Header {
                kind,
                id: LogId { term, index },
                physical_offset: PhysicalOffset(offset & !(ALIGNMENT - 1)),
                body_bytes,
                body_crc: if kind == Kind::Padding { 0 } else { body_crc },
                chain,
            },
        )
    }

    /// The whole frame as it lies in the file.
    fn written(header: &Header, body: &[u8]) -> Vec<u8> {
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(body);
        bytes.resize(frame_bytes(body.len() as u64) as usize, 0);
        bytes
    }

    fn read_back(bytes: &[u8], at: Cursor, last: Option<LogId>) -> Result<Header, BadFrame> {
        let header = Header::decode(bytes)?;
        header.continues(at, last, LAYOUT)?;
        header.check_body(&bytes[HEADER_BYTES as usize..])?;
        Ok(header)
    }

    proptest! {
        #[test]
        fn a_header_survives_the_round_trip(header in headers()) {
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..256), valid in headers(), keep in 0usize..64,
        ) {
            let _ = read_back(&bytes, Cursor::default(), None);
            // Also bytes that begin like a header, and a header that says anything.
            let mut mixed = valid.encode()[..keep].to_vec();
            mixed.extend_from_slice(&bytes);
            let _ = read_back(&mixed, Cursor::default(), None);
            let _ = valid.end();
            let _ = valid.check_body(&bytes);
            let _ = valid.continues(valid.cursor(), Some(valid.id), LAYOUT);
        }

        #[test]
        fn any_flipped_bit_is_noticed(body in proptest::collection::vec(any::<u8>(), 0..300), chain in any::<u64>()) {
            let at = Cursor { physical_offset: PhysicalOffset(128), chain };
            let id = LogId { term: 3, index: 7 };
            let last = Some(LogId { term: 2, index: 6 });
            let crc = crc32c::crc32c(&body);
            let header = compose(at, LAYOUT, Kind::Entry, id, body.len() as u32, crc).header;
            let mut bytes = written(&header, &body);
            prop_assert_eq!(read_back(&bytes, at, last), Ok(header));
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(read_back(&bytes, at, last).is_err(), "bit {} was not noticed", bit);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }

        #[test]
        fn frames_never_span_segments(bodies in proptest::collection::vec(0u32..4032, 1..40)) {
            let mut at = Cursor::default();
            let mut last = None;
            for (index, body_bytes) in bodies.into_iter().enumerate() {
                let id = LogId { term: 1, index: index as u64 };
                let composed = compose(at, LAYOUT, Kind::Entry, id, body_bytes, 9);
                if let Some(padding) = composed.padding {
                    prop_assert_eq!(padding.continues(at, last, LAYOUT), Ok(()));
                    prop_assert_eq!(padding.end().0 % LAYOUT.segment_bytes, 0);
                    at = padding.cursor();
                }
                prop_assert_eq!(composed.header.continues(at, last, LAYOUT), Ok(()));
                at = composed.header.cursor();
                last = Some(id);
            }
        }
    }

    #[test]
    fn a_frame_of_another_history_does_not_continue() {
        let at = Cursor { physical_offset: PhysicalOffset(64), chain: 1 };
        let id = LogId { term: 1, index: 1 };
        let last = Some(LogId { term: 1, index: 0 });
        let header = compose(at, LAYOUT, Kind::Blank, id, 0, 0).header;
        let other = Cursor { chain: 2, ..at };
        assert_eq!(header.continues(other, last, LAYOUT), Err(BadFrame::Chain));
        let skipped = Some(LogId { term: 1, index: 5 });
        assert_eq!(header.continues(at, skipped, LAYOUT), Err(BadFrame::Sequence(id)));
        let later_term = Some(LogId { term: 2, index: 0 });
        assert_eq!(header.continues(at, later_term, LAYOUT), Err(BadFrame::Sequence(id)));
    }

    #[test]
    fn the_layout_is_pinned() {
        let id = LogId { term: 2, index: 3 };
        let at = Cursor { physical_offset: PhysicalOffset(64), chain: 5 };
        let header = compose(at, LAYOUT, Kind::Entry, id, 4, crc32c::crc32c(b"body")).header;
        let bytes = header.encode();
        assert_eq!(&bytes[..8], b"RMQF\x01\x01\0\0");
        assert_eq!(
            bytes[8..40],
            [2u64, 3, 64]
                .iter()
                .flat_map(|n| n.to_le_bytes())
                .chain(4u32.to_le_bytes())
                .chain(crc32c::crc32c(b"body").to_le_bytes())
                .collect::<Vec<u8>>()
        );
        let mut hashed = 5u64.to_le_bytes().to_vec();
        hashed.extend_from_slice(&bytes[..40]);
        assert_eq!(header.chain, xxh3_64(&hashed));
        assert_eq!(bytes[40..48], header.chain.to_le_bytes());
    }
}

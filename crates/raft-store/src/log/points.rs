//! Points: a sparse index of the log in memory, and its side files.
//!
//! A point is a frame known to start at a place: the first one at or after each 256 KiB of log, the first one of each
//! segment, and the first one of each term. From the nearest point it is a short walk along headers to any frame; and because every change of term is
//! a point, the id at any index is known without touching the disk.
//!
//! - Points of a segment that is full lie beside it in `<segment>.frames`, so that a start reads a few KiB per segment.
//!   The file of the segment in use is written now and then.
//! - Derived: a missing or damaged side file is rebuilt by walking the headers. It is never synced; its checksum tells.
//! - A side file must not outlive the frames it speaks of: truncation removes it durably before it returns.
//!
//! Side file, little-endian: magic u32 "RMQP", version u8 = 1, zero u24; segment u64; covered end: term u64, index u64,
//! physical end u64, chain u64; count u64; count times {term u64, index u64, physical offset u64, chain before u64};
//! CRC32C u32 of all before.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use env::Env;
use env::disk::Open;

use super::frame::{Boundary, Cursor, HEADER_BYTES, Header, Kind};
use super::segment::Layout;
use crate::position::{LogId, PhysicalOffset};

/// Log bytes between points.
pub const STRIDE_BYTES: u64 = 256 << 10;

const MAGIC: u32 = u32::from_le_bytes(*b"RMQP");
const VERSION: u8 = 1;
const FIXED_BYTES: usize = 56;
const POINT_BYTES: usize = 32;

/// A frame known to start at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its entry.
    pub id: LogId,
    /// Where its header lies, and the chain before it.
    pub start: Cursor,
}

/// The points of the whole log, in order.
#[derive(Clone, Debug)]
pub struct Points {
    layout: Layout,
    points: VecDeque<Point>,
}

impl Points {
    /// No points of a log laid out like this.
    pub fn new(layout: Layout) -> Points {
        Points { layout, points: VecDeque::new() }
    }

    /// Takes note of a frame behind all noted so far. Padding has no entry of its own and is skipped.
    pub fn note(&mut self, header: &Header, chain_before: u64) {
        if header.kind == Kind::Padding {
            return;
        }
        let start = Cursor { physical_offset: header.physical_offset, chain: chain_before };
        let due = match self.points.back().map(|last| (last.id.term, last.start.physical_offset)) {
            None => true,
            Some((last_term, last)) => {
                assert!(last < header.physical_offset, "points must ascend");
                last_term != header.id.term
                    || last.0 / STRIDE_BYTES != header.physical_offset.0 / STRIDE_BYTES
                    || self.layout.segment_of(last) != self.layout.segment_of(header.physical_offset)
            }
        };
        if due {
            self.points.push_back(Point { id: header.id, start });
        }
    }

    /// Appends what a side file held.
    pub fn extend(&mut self, points: impl IntoIterator<Item = Point>) {
        for point in points {
            let last = self.points.back().map(|last| last.start.physical_offset);
            assert!(last < Some(point.start.physical_offset), "points must ascend");
            self.points.push_back(point);
        }
    }

    /// The last point at or before entry `index`.
    pub fn at_index(&self, index: u64) -> Option<Point> {
        self.points.partition_point(|point| point.id.index <= index).checked_sub(1).map(|at| self.points[at])
    }

    /// The last point at or before `at`.
    pub fn at_offset(&self, at: PhysicalOffset) -> Option<Point> {
        let behind = self.points.partition_point(|point| point.start.physical_offset <= at);
        behind.checked_sub(1).map(|at| self.points[at])
    }

    /// The first id of `indexes`, and those at which the term changes. The caller knows that all of them exist.
    pub fn first_of_terms(&self, indexes: Range<u64>) -> Vec<LogId> {
        let Some(point) = self.at_index(indexes.start).filter(|_| !indexes.is_empty()) else {
            return Vec::new();
        };
        let mut ids = vec![LogId { term: point.id.term, index: indexes.start }];
        let from = self.points.partition_point(|point| point.id.index <= indexes.start);
        for point in self.points.range(from..).take_while(|point| point.id.index < indexes.end) {
            if ids.last().is_some_and(|last| last.term != point.id.term) {
                ids.push(point.id);
            }
        }
        ids
    }

    /// Forgets the frames at and behind `end`.
    pub fn truncate(&mut self, end: PhysicalOffset) {
        let kept = self.points.partition_point(|point| point.start.physical_offset < end);
        self.points.truncate(kept);
    }

    /// Forgets the frames before `begin`.
    pub fn purge(&mut self, begin: PhysicalOffset) {
        let purged = self.points.partition_point(|point| point.start.physical_offset < begin);
        self.points.drain(..purged);
    }

    /// Those in a range of physical offsets.
    pub fn within(&self, range: Range<PhysicalOffset>) -> Vec<Point> {
        let from = self.points.partition_point(|point| point.start.physical_offset < range.start);
        let to = self.points.partition_point(|point| point.start.physical_offset < range.end);
        self.points.range(from..to.max(from)).copied().collect()
    }
}

/// What lies in a `.frames` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideFile {
    /// First physical offset of the segment.
    pub segment: PhysicalOffset,
    /// The points are complete up to here. Of a full segment: its end, with the chain of its padding.
    pub covered: Boundary,
    /// The points, ascending, within the segment.
    pub points: Vec<Point>,
}

/// The name of the side file of the segment in the file `segment`.
pub fn side_file_name(segment: PhysicalOffset) -> String {
    format!("{}.frames", super::segment::file_name(segment))
}

/// The segment that the side file `name` belongs to, if it is one.
pub fn parse_side_file_name(name: &str) -> Option<PhysicalOffset> {
    super::segment::parse_file_name(name.strip_suffix(".frames")?)
}

impl SideFile {
    /// As written.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + self.points.len() * POINT_BYTES + 4);
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&[VERSION, 0, 0, 0]);
        let mut put =
            |numbers: &[u64]| numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        let covered = self.covered;
        put(&[self.segment.0, covered.id.term, covered.id.index, covered.end.physical_offset.0, covered.end.chain]);
        put(&[self.points.len() as u64]);
        for point in &self.points {
            put(&[point.id.term, point.id.index, point.start.physical_offset.0, point.start.chain]);
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` for anything that is not a whole, undamaged side file whose points make sense.
    pub fn decode(bytes: &[u8]) -> Option<SideFile> {
        let (content, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if content.len() < FIXED_BYTES
            || content[..8] != *b"RMQP\x01\0\0\0"
            || crc32c::crc32c(content).to_le_bytes() != crc
        {
            return None;
        }
        let number = |at: usize| u64::from_le_bytes(content[at..at + 8].try_into().expect("eight bytes"));
        let id = |at: usize| LogId { term: number(at), index: number(at + 8) };
        let cursor = |at: usize| Cursor { physical_offset: PhysicalOffset(number(at)), chain: number(at + 8) };
        let rest = content.len() - FIXED_BYTES;
        if !rest.is_multiple_of(POINT_BYTES) || number(48) != (rest / POINT_BYTES) as u64 {
            return None;
        }
        let points: Vec<Point> = (FIXED_BYTES..content.len())
            .step_by(POINT_BYTES)
            .map(|at| Point { id: id(at), start: cursor(at + 16) })
            .collect();
        let side_file =
            SideFile { segment: PhysicalOffset(number(8)), covered: Boundary { id: id(16), end: cursor(32) }, points };
        let ascending = side_file.points.is_sorted_by(|a, b| {
            a.id.index < b.id.index && a.id.term <= b.id.term && a.start.physical_offset < b.start.physical_offset
        });
        let within = side_file.points.iter().all(|point| {
            point.start.physical_offset >= side_file.segment
                && point.start.physical_offset.0.saturating_add(HEADER_BYTES) <= side_file.covered.end.physical_offset.0
                && point.id <= side_file.covered.id
        });
        (ascending && within).then_some(side_file)
    }
}

/// Writes a side file. Not synced, and a failure is only worth a line: a start without it takes longer.
pub async fn write_side_file(env: &Env, commitlog: &Path, side_file: &SideFile) {
    let path = commitlog.join(side_file_name(side_file.segment));
    let bytes = Bytes::from(side_file.encode());
    let write = async {
        let file = env.disk.open(&path, Open::OrCreate).await?;
        file.set_len(bytes.len() as u64).await?;
        file.write_at(0, std::slice::from_ref(&bytes)).await
    };
    if let Err(error) = write.await {
        tracing::warn!(%error, ?path, "cannot write the index of a segment");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::compose;
    use super::*;

    /// A log of `terms.len()` entries; body lengths follow from the index.
    fn log(terms: &[u64]) -> (Points, Vec<Header>) {
        let layout = Layout { segment_bytes: 1 << 20 };
        let (mut points, mut headers, mut at) = (Points::new(layout), Vec::new(), Cursor::default());
        for (index, term) in terms.iter().enumerate() {
            let id = LogId { term: *term, index: index as u64 };
            let composed = compose(at, layout, Kind::Entry, id, 40_000 + (index as u32 * 7919) % 60_000, 0);
            if let Some(padding) = composed.padding {
                points.note(&padding, at.chain);
                at = padding.cursor();
            }
            points.note(&composed.header, at.chain);
            at = composed.header.cursor();
            headers.push(composed.header);
        }
        (points, headers)
    }

    #[test]
    fn every_frame_is_a_short_walk_from_a_point() {
        let terms: Vec<u64> = (0..100).map(|index| 1 + index / 17).collect();
        let (points, headers) = log(&terms);
        for header in &headers {
            let by_index = points.at_index(header.id.index).expect("a point");
            let by_offset = points.at_offset(header.physical_offset).expect("a point");
            assert_eq!(by_index, by_offset);
            assert_eq!(by_index.id.term, header.id.term);
            assert!(header.physical_offset.0 - by_index.start.physical_offset.0 < STRIDE_BYTES);
        }
        let firsts = points.first_of_terms(5..60);
        let ids = |pairs: &[(u64, u64)]| {
            pairs.iter().map(|(term, index)| LogId { term: *term, index: *index }).collect::<Vec<_>>()
        };
        assert_eq!(firsts, ids(&[(1, 5), (2, 17), (3, 34), (4, 51)]));
        assert_eq!(points.first_of_terms(5..5), []);
    }

    #[test]
    fn cut_at_either_end() {
        let (mut points, headers) = log(&[1; 60]);
        let (begin, end) = (headers[20].physical_offset, headers[40].physical_offset);
        points.truncate(end);
        points.purge(begin);
        assert!(points.at_offset(headers[59].physical_offset).expect("a point").start.physical_offset < end);
        assert!(points.at_offset(headers[15].physical_offset).is_none());
        assert!(points.within(begin..end).len() > 2);
    }

    proptest! {
        #[test]
        fn a_side_file_survives_the_round_trip_and_no_flipped_bit_does(
            terms in proptest::collection::vec(1u64..4, 1..30), bit: proptest::sample::Index,
        ) {
            let mut terms = terms;
            terms.sort_unstable();
            let (points, headers) = log(&terms);
            let last = headers.last().expect("an entry");
            let covered = Boundary { id: last.id, end: last.cursor() };
            let range = PhysicalOffset(0)..covered.end.physical_offset;
            let side_file = SideFile { segment: PhysicalOffset(0), covered, points: points.within(range) };
            let mut bytes = side_file.encode();
            prop_assert_eq!(SideFile::decode(&bytes), Some(side_file));
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(SideFile::decode(&bytes), None);
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(SideFile::decode(&bytes), None);
        }
    }
}

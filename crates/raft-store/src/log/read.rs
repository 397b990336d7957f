//! Reading: frames and records that are no longer in memory, from maps of the segment files.
//!
//! Nothing leaves the process unverified: headers by their checksum and the chain from the nearest known point, bodies
//! by their CRC. What was verified lately is remembered, so that reading on costs no second walk and the records of one
//! frame no second checksum.
//!
//! Maps show bytes that never change again: what is not applied yet, and so may still be cut, is copied out before it is
//! verified, under the lock that keeps the writer from cutting meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use env::disk::is_unreadable;

use super::frame::{BadFrame, Cursor, Frame, HEADER_BYTES, Header, Kind};
use super::points::Point;
use super::recovery::before;
use super::segment::Segment;
use super::state::{Shared, State};
use super::survey::{Files, Step};
use crate::planted::{self, Bug};
use crate::position::{LogId, PhysicalOffset};

/// How many places to read on from are remembered.
const PLACES: usize = 16;

/// How many verified frames are remembered.
const FRAMES: usize = 16;

/// What reading found lately. Emptied when the log is cut.
#[derive(Debug, Default)]
pub struct Recent {
    /// Where frames start that will probably be read next.
    places: VecDeque<Point>,
    /// Verified frames.
    frames: VecDeque<Frame>,
}

impl Recent {
    fn note_place(&mut self, place: Point) {
        self.places.retain(|other| other.id != place.id);
        self.places.push_back(place);
        if self.places.len() > PLACES {
            self.places.pop_front();
        }
    }

    fn note_frame(&mut self, frame: Frame) {
        self.frames.push_back(frame);
        if self.frames.len() > FRAMES {
            self.frames.pop_front();
        }
    }

    /// The remembered frame whose body holds `at`.
    fn containing(&self, at: PhysicalOffset) -> Option<&Frame> {
        self.frames.iter().find(|frame| {
            let start = frame.physical_offset.0 + HEADER_BYTES;
            (start..start + frame.body.len() as u64).contains(&at.0)
        })
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Recent::default();
    }
}

/// Steps along the headers of written frames.
struct Steps {
    segments: Arc<BTreeMap<PhysicalOffset, Segment>>,
    at: Cursor,
    last: Option<LogId>,
    /// Nothing is read from here on.
    written: PhysicalOffset,
}

impl Steps {
    fn from(state: &State, start: Point) -> Steps {
        Steps { segments: Arc::clone(&state.segments), at: start.start, last: before(start.id), written: state.written }
    }

    fn segment(&self, shared: &Shared) -> io::Result<&Segment> {
        let first = shared.layout.segment_of(self.at.physical_offset);
        self.segments.get(&first).ok_or_else(|| damaged(self.at.physical_offset, "its segment file is missing"))
    }

    /// The header at hand, verified; `None` at the end of what is written.
    fn header(&self, shared: &Shared) -> io::Result<Option<Header>> {
        if self.at.physical_offset >= self.written && !planted::is(Bug::ReadPastWritten) {
            return Ok(None);
        }
        let offset = shared.layout.file_offset(self.at.physical_offset);
        let bytes = self.map(shared, offset, HEADER_BYTES as usize)?;
        let header = Header::decode(&bytes).and_then(|header| {
            header.continues(self.at, self.last, shared.layout)?;
            if header.end() <= self.written || planted::is(Bug::ReadPastWritten) {
                Ok(header)
            } else {
                Err(BadFrame::Short)
            }
        });
        header.map(Some).map_err(|bad| damaged(self.at.physical_offset, bad))
    }

    /// The frame of the header at hand, verified. Of what may still be cut, a copy.
    fn frame(&self, shared: &Shared, header: &Header) -> io::Result<Frame> {
        let offset = shared.layout.file_offset(header.physical_offset) + HEADER_BYTES;
        let len = (header.end().0 - header.physical_offset.0 - HEADER_BYTES) as usize;
        let mut bytes = self.map(shared, offset, len)?;
        if header.id.index >= shared.applied_end() {
            bytes = Bytes::copy_from_slice(&bytes);
        }
        header.check_body(&bytes).map_err(|bad| damaged(header.physical_offset, bad))?;
        Ok(Frame {
            id: header.id,
            kind: header.kind,
            physical_offset: header.physical_offset,
            body: bytes.slice(..header.body_bytes as usize),
            body_crc: header.body_crc,
            chain: header.chain,
        })
    }

    /// Bytes of the segment at hand. That the disk cannot read them is damage like any other.
    fn map(&self, shared: &Shared, offset: u64, len: usize) -> io::Result<Bytes> {
        self.segment(shared)?.file.map_sealed(offset, len).map_err(|error| {
            if is_unreadable(&error) {
                damaged(self.at.physical_offset, format_args!("the disk cannot read it: {error}"))
            } else {
                error
            }
        })
    }

    fn pass(&mut self, header: &Header) {
        self.at = header.cursor();
        if header.kind != Kind::Padding {
            self.last = Some(header.id);
        }
    }
}

/// The nearest place before entry `index` that is known.
fn place_of(shared: &Shared, state: &State, index: u64) -> Option<Point> {
    let recent = shared.recent.lock();
    let remembered = recent.places.iter().filter(|place| place.id.index <= index).max_by_key(|place| place.id.index);
    state.points.at_index(index).into_iter().chain(remembered.copied()).max_by_key(|place| place.id.index)
}

/// Frames of `range`, which exist and are written: at least one, then up to `max_bytes` of bodies. Blocks on the disk.
pub fn frames(shared: &Shared, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Frame>> {
    let _not_cut = shared.cut.read();
    let (mut steps, end) = {
        let state = shared.state.lock();
        let end = range.end.min(state.end_index());
        if range.start >= end || range.start < state.begin_index() {
            return Ok(Vec::new());
        }
        let place = place_of(shared, &state, range.start).ok_or_else(|| no_place(range.start))?;
        (Steps::from(&state, place), end)
    };
    let mut frames: Vec<Frame> = Vec::new();
    let mut bytes = 0;
    while let Some(header) = steps.header(shared)? {
        if header.kind != Kind::Padding && header.id.index >= range.start {
            bytes += header.body_bytes as usize;
            if header.id.index >= end || (!frames.is_empty() && bytes > max_bytes) {
                break;
            }
            frames.push(steps.frame(shared, &header)?);
        }
        steps.pass(&header);
    }
    if let Some(last) = steps.last {
        let id = LogId { term: last.term, index: last.index + 1 };
        // The term of the entry behind may be a later one: a place is only taken for the one it says.
        shared.recent.lock().note_place(Point { id, start: steps.at });
    }
    Ok(frames)
}

/// Verifies applied frames of full segments from `at` on, or from the beginning of the log, until their bytes are
/// `max_bytes` or more. Gives where to go on, `None` at the end, and the bytes. To be run beside the caller's runtime.
///
/// Remembers nothing, so as not to push out what readers will want; and reads files instead of maps, because a sector that
/// the disk cannot read must be an error here, and no signal.
pub async fn scrub(shared: Arc<Shared>, at: Option<Point>, max_bytes: u64) -> io::Result<(Option<Point>, u64)> {
    let (files, at, end, applied_end) = {
        let state = shared.state.lock();
        let is_there = |at: &Point| {
            at.start.physical_offset >= state.begin().physical_offset && state.id_at(at.id.index) == Some(at.id)
        };
        let at = at.filter(is_there).or_else(|| state.points.at_index(state.begin_index()));
        let Some(at) = at else { return Ok((None, 0)) };
        let files = Files { layout: shared.layout, segments: (*state.segments).clone() };
        (files, at, shared.layout.segment_of(state.synced), shared.applied_end())
    };
    let begun = at.start.physical_offset;
    let mut walk = files.walk(at.start, before(at.id), end).ahead(max_bytes as usize);
    let mut next = at.id;
    while walk.at.physical_offset.0 - begun.0 < max_bytes && next.index < applied_end {
        match walk.step().await {
            Some(Step::Frame(..)) => {
                let last = walk.last.unwrap_or_default();
                next = LogId { term: last.term, index: walk.last.map_or(0, |last| last.index + 1) };
            }
            Some(Step::Gap(gap)) if gap.from.physical_offset < shared.state.lock().begin().physical_offset => {
                return Err(io::Error::new(io::ErrorKind::NotFound, "purged while it was read"));
            }
            Some(Step::Gap(gap)) => return Err(damaged(gap.from.physical_offset, gap.reason)),
            None => break,
        }
    }
    let bytes = walk.at.physical_offset.0 - begun.0;
    if walk.at.physical_offset >= end {
        return Ok((None, bytes));
    }
    if bytes == 0 {
        // What follows is not applied yet.
        return Ok((Some(at), 0));
    }
    // The term of the entry behind may be a later one.
    let next = shared.state.lock().id_at(next.index);
    Ok((next.map(|id| Point { id, start: walk.at }), bytes))
}

/// The place just behind entry `index`, which exists and is written. Blocks on the disk.
pub fn end_of(shared: &Shared, index: u64) -> io::Result<Cursor> {
    let _not_cut = shared.cut.read();
    let mut steps = {
        let state = shared.state.lock();
        let place = place_of(shared, &state, index).ok_or_else(|| no_place(index))?;
        Steps::from(&state, place)
    };
    while let Some(header) = steps.header(shared)? {
        steps.pass(&header);
        if header.kind != Kind::Padding && header.id.index == index {
            return Ok(steps.at);
        }
    }
    Err(damaged(steps.at.physical_offset, format!("entry {index} is not there")))
}

/// The bytes of a record if they are in memory already.
pub fn record_in_memory(shared: &Shared, at: PhysicalOffset, size: u32) -> io::Result<Option<Bytes>> {
    let state = shared.state.lock();
    if at < state.begin().physical_offset {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("physical offset {at} is purged")));
    }
    if let Some(frame) = state.tail.containing(at) {
        return slice(frame, at, size).map(Some);
    }
    if at >= state.written {
        let reason = format!("no record at physical offset {at}: {} is written", state.written);
        return Err(io::Error::new(io::ErrorKind::NotFound, reason));
    }
    drop(state);
    shared.recent.lock().containing(at).map(|frame| slice(frame, at, size)).transpose()
}

/// The bytes of a record. Blocks on the disk.
pub fn record(shared: &Shared, at: PhysicalOffset, size: u32) -> io::Result<Bytes> {
    if let Some(record) = record_in_memory(shared, at, size)? {
        return Ok(record);
    }
    let _not_cut = shared.cut.read();
    let mut steps = {
        let state = shared.state.lock();
        let recent = shared.recent.lock();
        let remembered = recent.places.iter().filter(|place| place.start.physical_offset <= at);
        let points = state.points.at_offset(at);
        let place = points.into_iter().chain(remembered.copied()).max_by_key(|place| place.start.physical_offset);
        Steps::from(&state, place.ok_or_else(|| damaged(at, "no known frame lies before it"))?)
    };
    while let Some(header) = steps.header(shared)? {
        if header.end() > at {
            if header.kind == Kind::Padding {
                break;
            }
            let frame = steps.frame(shared, &header)?;
            let record = slice(&frame, at, size)?;
            steps.pass(&header);
            shared.recent.lock().note_frame(frame);
            return Ok(record);
        }
        steps.pass(&header);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no record at physical offset {at}")))
}

fn slice(frame: &Frame, at: PhysicalOffset, size: u32) -> io::Result<Bytes> {
    let from = at.0.checked_sub(frame.physical_offset.0 + HEADER_BYTES);
    let range = from.and_then(|from| Some(from as usize..usize::try_from(from + u64::from(size)).ok()?));
    match range.filter(|range| range.end <= frame.body.len()) {
        Some(range) => Ok(frame.body.slice(range)),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("no record of {size} bytes at physical offset {at} in the frame at {}", frame.physical_offset),
        )),
    }
}

/// A frame that was written reads wrong: corruption. The replica stops and goes to repair.
fn damaged(at: PhysicalOffset, reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log is corrupt at physical offset {at}: {reason}"))
}

fn no_place(index: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no known frame lies before entry {index}"))
}

//! Survey: reads every frame of a log, bodies included, and tells which stretches are not what was written. Changes
//! nothing, and needs nothing but the files: for a look from outside, and for repair, which must know all that is wrong
//! before it asks the peers.
//!
//! Recovery stops at the first bad frame; a survey goes on behind it. Frames start at multiples of 64, and a header knows
//! its own place and has a checksum, so the next whole one is found by looking at each such place. That it belongs to
//! this log is proven only when the gap before it has been filled: then the chain leads up to it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use bytes::Bytes;
use env::Env;
use env::disk::Open;

use super::OpenError;
use super::frame::{ALIGNMENT, BadFrame, Boundary, Cursor, HEADER_BYTES, Header, Kind};
use super::hard_state::{self, HardState};
pub use super::recovery::Known;
use super::recovery::{before, decide_known};
use super::segment::{Layout, MARK_BYTES, Mark, SLOT_BYTES, Segment, parse_file_name};
use crate::position::{LogId, PhysicalOffset};

/// Read at once, unless told otherwise.
const WINDOW_BYTES: usize = 1 << 20;

/// Where a window cannot be read, it is read in pieces of this size: what lies beside a bad sector is needed.
const SECTOR_BYTES: usize = 4096;

/// A stretch of the log that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last entry before it.
    pub last: Option<LogId>,
    /// Where it begins, and the chain up to there.
    pub from: Cursor,
    /// Where it ends: a whole frame starts here, or what is known to have been durable ends.
    pub to: PhysicalOffset,
    /// What is wrong with the first frame of it.
    pub reason: String,
}

/// One step along a log.
#[derive(Clone, Debug)]
pub enum Step {
    /// A whole frame and its body; of padding, nothing.
    Frame(Header, Bytes),
    /// What lies here is no frame of this log, up to the next that may be.
    Gap(Gap),
}

/// What is wrong with the frame at a place.
struct Bad {
    /// The header, if that is whole and in its place: only the body is not.
    header: Option<Header>,
    reason: String,
}

/// A slot of a segment's head that should hold a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// First physical offset of the segment.
    pub segment: PhysicalOffset,
    /// Where the slot begins in the file.
    pub offset: u64,
    /// What it holds; `None` if nothing was ever written there.
    pub mark: Option<Result<Mark, String>>,
}

/// The files of a log, opened for reading.
#[derive(Debug)]
pub struct Files {
    /// How they are laid out.
    pub layout: Layout,
    /// Those that are there.
    pub segments: BTreeMap<PhysicalOffset, Segment>,
}

impl Files {
    /// Opens the segments under `dir` that hold anything at or behind `begin`.
    pub async fn open(env: &Env, dir: &Path, layout: Layout, begin: PhysicalOffset) -> io::Result<Files> {
        let commitlog = dir.join("commitlog");
        let mut segments = BTreeMap::new();
        let names = match env.disk.list(&commitlog).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names?,
        };
        for first in names.iter().filter_map(|name| parse_file_name(&name.name)) {
            if first >= layout.segment_of(begin) && first.0.is_multiple_of(layout.segment_bytes) {
                let file = env.disk.open(&Segment::path(&commitlog, first), Open::ToRead).await?;
                segments.insert(first, Segment { first, file });
            }
        }
        Ok(Files { layout, segments })
    }

    /// Every mark slot of every segment.
    pub async fn slots(&self) -> Vec<Slot> {
        let mut slots = Vec::new();
        for segment in self.segments.values() {
            for offset in [0, SLOT_BYTES] {
                let mark = match segment.file.read_at(offset, MARK_BYTES).await {
                    Err(error) => Some(Err(error.to_string())),
                    Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => None,
                    Ok(bytes) => Some(Mark::decode(&bytes).ok_or_else(|| "the checksum does not hold".to_owned())),
                };
                slots.push(Slot { segment: segment.first, offset, mark });
            }
        }
        slots
    }

    /// Steps along the frames from `at`, which `last` precedes, up to `stop`.
    pub fn walk(&self, at: Cursor, last: Option<LogId>, stop: PhysicalOffset) -> Walk<'_> {
        Walk { files: self, at, last, is_chained: true, stop, window: Window::default(), ahead: WINDOW_BYTES }
    }

    /// The same from the first frame of a segment, of which nothing is known before it was read.
    pub fn walk_segment(&self, first: PhysicalOffset, stop: PhysicalOffset) -> Walk<'_> {
        let at = Cursor { physical_offset: first, chain: 0 };
        Walk { is_chained: first == PhysicalOffset(0), ..self.walk(at, None, stop) }
    }
}

#[derive(Debug, Default)]
struct Window {
    segment: Option<PhysicalOffset>,
    start: u64,
    bytes: Bytes,
}

/// Steps along frames, over gaps too.
#[derive(Debug)]
pub struct Walk<'a> {
    files: &'a Files,
    /// Where the next step begins.
    pub at: Cursor,
    /// The entry before that.
    pub last: Option<LogId>,
    /// The chain at `at` is known.
    is_chained: bool,
    stop: PhysicalOffset,
    window: Window,
    ahead: usize,
}

impl Walk<'_> {
    /// Reads this many bytes at once.
    pub fn ahead(self, ahead: usize) -> Self {
        Walk { ahead, ..self }
    }

    /// The next frame or gap; `None` at the end.
    pub async fn step(&mut self) -> Option<Step> {
        if self.at.physical_offset >= self.stop {
            return None;
        }
        match self.frame().await {
            Ok((header, body)) => {
                self.pass(&header);
                Some(Step::Frame(header, body))
            }
            Err(bad) => Some(Step::Gap(self.gap(bad).await)),
        }
    }

    /// The next frame if it is whole: for what may end anywhere.
    async fn next_whole(&mut self) -> Option<(Header, Bytes)> {
        let (header, body) = self.frame().await.ok()?;
        self.pass(&header);
        Some((header, body))
    }

    async fn frame(&mut self) -> Result<(Header, Bytes), Bad> {
        let bad = |reason: String| Bad { header: None, reason };
        let at = self.at;
        let bytes = self.read(at.physical_offset, HEADER_BYTES as usize).await.map_err(bad)?;
        let checked = Header::decode(&bytes).and_then(|header| {
            match self.is_chained {
                true => header.continues(at, self.last, self.files.layout)?,
                false => self.stands(&header, at.physical_offset)?,
            }
            if header.end() <= self.stop { Ok(header) } else { Err(BadFrame::Short) }
        });
        let header = checked.map_err(|reason| bad(reason.to_string()))?;
        if header.kind == Kind::Padding {
            return Ok((header, Bytes::new()));
        }
        let len = (header.end().0 - at.physical_offset.0 - HEADER_BYTES) as usize;
        let body = self.read(PhysicalOffset(at.physical_offset.0 + HEADER_BYTES), len).await;
        let checked = body.and_then(|body| match header.check_body(&body) {
            Ok(()) => Ok(body.slice(..header.body_bytes as usize)),
            Err(reason) => Err(reason.to_string()),
        });
        match checked {
            Ok(body) => Ok((header, body)),
            Err(reason) => Err(Bad { header: Some(header), reason }),
        }
    }

    /// Whether a whole header, whose chain cannot be checked, is one of this log at `at`.
    fn stands(&self, header: &Header, at: PhysicalOffset) -> Result<(), BadFrame> {
        if header.physical_offset != at {
            return Err(BadFrame::Elsewhere(header.physical_offset));
        }
        let goes_on = self.last.is_none_or(|last| header.id.index > last.index && header.id.term >= last.term);
        if !goes_on {
            return Err(BadFrame::Sequence(header.id));
        }
        let fits = header.end() <= self.files.layout.segment_end(at) && header.end() <= self.stop;
        if fits { Ok(()) } else { Err(BadFrame::Header) }
    }

    fn pass(&mut self, header: &Header) {
        self.at = header.cursor();
        self.is_chained = true;
        self.last = if header.kind == Kind::Padding { before(header.id) } else { Some(header.id) };
    }

    async fn gap(&mut self, bad: Bad) -> Gap {
        let (from, last) = (self.at, self.last);
        match bad.header {
            Some(header) => self.pass(&header),
            None => {
                let next = self.find_next(PhysicalOffset(from.physical_offset.0 + ALIGNMENT)).await;
                self.at = Cursor { physical_offset: next.unwrap_or(self.stop), chain: 0 };
                self.is_chained = false;
            }
        }
        Gap { last, from, to: self.at.physical_offset, reason: bad.reason }
    }

    /// The first place from `at` on where a frame starts that may be one of this log.
    async fn find_next(&mut self, mut at: PhysicalOffset) -> Option<PhysicalOffset> {
        while at < self.stop {
            let layout = self.files.layout;
            let end = layout.segment_end(at).min(self.stop);
            if !self.files.segments.contains_key(&layout.segment_of(at)) {
                at = end;
                continue;
            }
            let len = (end.0 - at.0).min(SECTOR_BYTES as u64 - at.0 % SECTOR_BYTES as u64) as usize;
            if let Ok(bytes) = self.read(at, len).await {
                for from in (0..bytes.len()).step_by(ALIGNMENT as usize) {
                    let place = PhysicalOffset(at.0 + from as u64);
                    let header = Header::decode(&bytes[from..]);
                    if header.is_ok_and(|header| self.stands(&header, place).is_ok()) {
                        return Some(place);
                    }
                }
            }
            at = PhysicalOffset(at.0 + len as u64);
        }
        None
    }

    /// Exactly `len` bytes of one segment.
    async fn read(&mut self, at: PhysicalOffset, len: usize) -> Result<Bytes, String> {
        let first = self.files.layout.segment_of(at);
        let Some(segment) = self.files.segments.get(&first) else {
            return Err("the segment file is missing".to_owned());
        };
        let offset = self.files.layout.file_offset(at);
        let window = &mut self.window;
        let is_there = window.segment == Some(first)
            && offset >= window.start
            && offset + len as u64 <= window.start + window.bytes.len() as u64;
        if !is_there {
            let bytes = match segment.file.read_at(offset, len.max(self.ahead)).await {
                Ok(bytes) => bytes,
                // What lies ahead may be unreadable without being needed.
                Err(_) => match segment.file.read_at(offset, len).await {
                    Ok(bytes) => bytes,
                    Err(error) => return Err(format!("the disk cannot read it: {error}")),
                },
            };
            *window = Window { segment: Some(first), start: offset, bytes };
        }
        let from = (offset - window.start) as usize;
        match window.bytes.get(from..from + len) {
            Some(_) => Ok(window.bytes.slice(from..from + len)),
            None => Err("the segment file is cut short".to_owned()),
        }
    }
}

/// What was found.
#[derive(Debug)]
pub struct Survey {
    /// The files.
    pub files: Files,
    /// The hard state that counts.
    pub hard: HardState,
    /// Up to here everything was durable.
    pub known: Known,
    /// Only the derived state vouches for `known`; the marks do not reach so far.
    pub is_known_by_floor: bool,
    /// Where the log ends: what is behind `known` and whole.
    pub end: Known,
    /// Whole frames, padding not counted.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What is not whole, in order.
    pub gaps: Vec<Gap>,
    /// All is whole, and yet it is not what was durable.
    pub contradiction: Option<String>,
}

/// The hard state under `dir`, nothing mended: the one that counts, and what is wrong with either copy.
pub async fn hard_state_of(env: &Env, dir: &Path) -> Result<(HardState, [Result<(), String>; 2]), OpenError> {
    let [a, b] = hard_state::read_copies(env, dir).await?;
    let state = hard_state::newest(a.clone(), b.clone()).map_err(|reason| OpenError::HardStateLost { reason })?;
    let verdict = |copy: Result<HardState, String>| match copy {
        Ok(copy) if copy == state => Ok(()),
        Ok(_) => Err("it holds an earlier state than the other copy".to_owned()),
        Err(reason) => Err(reason),
    };
    Ok((state, [verdict(a), verdict(b)]))
}

/// Reads the whole log under `dir`. `floor` is known durable from elsewhere. `progress` hears of bytes: read so far, and
/// in all.
pub async fn survey(
    env: &Env,
    dir: &Path,
    floor: Option<Boundary>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Survey, OpenError> {
    let (hard, _) = hard_state_of(env, dir).await?;
    let (begin_id, begin) = hard.begin();
    let files = Files::open(env, dir, Layout { segment_bytes: hard.segment_bytes }, begin.physical_offset).await?;
    let marks: Vec<(PhysicalOffset, Mark)> =
        files.slots().await.into_iter().filter_map(|slot| Some((slot.segment, slot.mark?.ok()?))).collect();
    let mut known = decide_known(&hard, &marks, files.layout)?;
    let floor = floor.filter(|floor| floor.end.physical_offset > known.end.physical_offset);
    if let Some(floor) = floor {
        known = Known { last: Some(floor.id), end: floor.end };
    }
    let (mut frames, mut gaps) = (0, Vec::new());
    let all = known.end.physical_offset.0 - begin.physical_offset.0;
    let mut walk = files.walk(begin, begin_id, known.end.physical_offset);
    let mut count = |header: &Header| frames += u64::from(header.kind != Kind::Padding);
    while let Some(step) = walk.step().await {
        match step {
            Step::Frame(header, _) => count(&header),
            // What was found behind a gap is none either: the chain between the two is nobody's.
            Step::Gap(gap) => match gaps.last_mut().filter(|before: &&mut Gap| before.to == gap.from.physical_offset) {
                Some(before) => before.to = gap.to,
                None => gaps.push(gap),
            },
        }
        progress(walk.at.physical_offset.0 - begin.physical_offset.0, all);
    }
    let leads_there = !walk.is_chained || (walk.at == known.end && walk.last == known.last);
    let contradiction = (!leads_there)
        .then(|| format!("the log leads to {:?}, chain {:#x}, but {:?} was durable", walk.last, walk.at.chain, known));
    let mut walk = files.walk(known.end, known.last, PhysicalOffset(u64::MAX));
    let mut end = known;
    while let Some((header, _)) = walk.next_whole().await {
        count(&header);
        if header.kind != Kind::Padding {
            end = Known { last: walk.last, end: walk.at };
        }
    }
    let bytes = end.end.physical_offset.0
        - begin.physical_offset.0
        - gaps.iter().map(|gap| gap.to.0 - gap.from.physical_offset.0).sum::<u64>();
    Ok(Survey { hard, known, is_known_by_floor: floor.is_some(), end, frames, bytes, gaps, contradiction, files })
}

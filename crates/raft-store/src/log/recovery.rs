//! Recovery: where the log ends after a stop of any kind, and what must not be taken for a torn tail.
//!
//! What is known to have been durable (a mark of the current generation, or the truncation point, or the last purged
//! entry) is a promise: a bad frame at or below it is corruption, and nothing is cut. Beyond it any subset of the last
//! unsynced writes may have survived: the longest chain that holds is kept, the rest is zeroed and synced before
//! anything is appended, so that no later frame can chain onto leftovers.
//!
//! The decisions are pure functions; around them is as much IO as they need. Nothing on the disk is changed before it
//! is certain that the log is not corrupt, except that the worse copy of the hard state is repaired.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use env::disk::{Open, is_unreadable, zeros};
use env::{Env, File};

use super::frame::{BadFrame, Boundary, Cursor, HEADER_BYTES, Header, Kind, frame_bytes};
use super::hard_state::{HardState, HardStateFiles, TruncationPoint};
use super::points::{Points, SideFile, parse_side_file_name, side_file_name, write_side_file};
use super::segment::{Layout, MARK_BYTES, Mark, SLOT_BYTES, Segment, parse_file_name};
use super::writer::GROUP_BYTES;
use super::{LogOptions, OpenError};
use crate::planted::{self, Bug};
use crate::position::{LogId, PhysicalOffset};

/// Bytes read at once when walking along frames, and looked through at once for leftovers.
const WINDOW_BYTES: usize = 1 << 20;

/// Headers are read in smaller pieces: bodies in between are skipped.
const HEADER_WINDOW_BYTES: usize = 16 << 10;

/// Bodies this close below the mark are verified at every start.
const VERIFIED_BYTES: u64 = 1 << 20;

/// What recovery found; the writer goes on from here.
#[derive(Debug)]
pub struct Recovered {
    /// The hard state.
    pub hard: HardStateFiles,
    /// All segment files, open, in order.
    pub segments: BTreeMap<PhysicalOffset, Segment>,
    /// Which mark slot of a segment to write next, where it is not the first.
    pub slots: BTreeMap<PhysicalOffset, u64>,
    /// The sparse index.
    pub points: Points,
    /// Last entry, or last purged one.
    pub last: Option<LogId>,
    /// Where the next frame goes.
    pub end: Cursor,
    /// What the marks on the disk say: below `end` until the writer has written another one.
    pub marked: PhysicalOffset,
}

/// Everything below this was durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The last entry; `None` at the very beginning of the log.
    pub last: Option<LogId>,
    /// The place behind it.
    pub end: Cursor,
}

/// The highest place that the hard state and the marks of its generation vouch for. Marks of other generations or
/// other places are void. A mark of a generation that the hard state has not seen means that the hard state is old.
pub fn decide_known(hard: &HardState, marks: &[(PhysicalOffset, Mark)], layout: Layout) -> Result<Known, OpenError> {
    if let Some((_, mark)) =
        marks.iter().find(|(first, mark)| mark.generation > hard.generation && mark.belongs_to(*first, layout))
    {
        return Err(OpenError::HardStateLost {
            reason: format!("a mark has generation {}, the hard state {}", mark.generation, hard.generation),
        });
    }
    let (begin_id, begin) = hard.begin();
    let of_marks = marks
        .iter()
        .filter(|(first, mark)| mark.generation == hard.generation && mark.belongs_to(*first, layout))
        .filter(|_| !planted::is(Bug::CutBelowMark))
        .map(|(_, mark)| Known { last: Some(mark.synced.id), end: mark.synced.end });
    let candidates =
        [Known { last: begin_id, end: begin }, Known { last: hard.truncation.last, end: hard.truncation.end }];
    Ok(candidates
        .into_iter()
        .chain(of_marks)
        .max_by_key(|known| known.end.physical_offset)
        .expect("the beginning of the log is always known"))
}

/// Whether an entry known to be durable elsewhere is in the recovered log.
fn check_floor(floor: LogId, begin: Option<LogId>, last: Option<LogId>, points: &Points) -> Result<(), String> {
    if begin.is_some_and(|begin| floor.index < begin.index || floor == begin) {
        return Ok(());
    }
    let Some(last) = last.filter(|last| last.index >= floor.index) else {
        let end = last.map_or("is empty".to_owned(), |last| format!("ends at {last}"));
        return Err(format!("the log {end}, but entry {floor} was durable"));
    };
    let found = points.at_index(floor.index).map_or(begin, |point| Some(point.id)).map(|id| id.term);
    if found == Some(floor.term) {
        return Ok(());
    }
    Err(format!("entry {floor} was durable, but the log (to {last}) has term {found:?} there"))
}

/// Steps along frames. Pure: it is given bytes and says whether they continue.
#[derive(Debug)]
struct Walk {
    layout: Layout,
    at: Cursor,
    last: Option<LogId>,
}

impl Walk {
    fn check(&self, bytes: &[u8]) -> Result<Header, BadFrame> {
        let header = Header::decode(bytes)?;
        header.continues(self.at, self.last, self.layout)?;
        Ok(header)
    }

    fn pass(&mut self, header: &Header, points: &mut Points) {
        points.note(header, self.at.chain);
        self.at = header.cursor();
        if header.kind != Kind::Padding {
            self.last = Some(header.id);
        }
    }
}

/// Reads a file in windows.
#[derive(Debug)]
struct Window {
    file: Arc<dyn File>,
    start: u64,
    bytes: Bytes,
}

impl Window {
    fn new(file: Arc<dyn File>) -> Window {
        Window { file, start: 0, bytes: Bytes::new() }
    }

    /// Up to `len` bytes at `offset`: fewer at the end of the file. A disk that cannot read is no torn tail: that never
    /// fails to read, it only reads something else.
    async fn read(&mut self, at: Cursor, offset: u64, len: usize, ahead: usize) -> Result<Bytes, OpenError> {
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + len as u64 > end {
            // What lies ahead may be unreadable without being needed.
            let bytes = match self.file.read_at(offset, len.max(ahead)).await {
                Ok(bytes) => Ok(bytes),
                Err(_) => self.file.read_at(offset, len).await,
            };
            self.bytes = bytes.map_err(|error| corrupt(at, format!("the disk cannot read it: {error}")))?;
            self.start = offset;
        }
        let from = (offset - self.start) as usize;
        Ok(self.bytes.slice(from..self.bytes.len().min(from + len)))
    }
}

/// Recovers the log under `dir`.
pub async fn recover(
    env: &Env,
    dir: &Path,
    options: &LogOptions,
    floor: Option<LogId>,
    made: bool,
) -> Result<Recovered, OpenError> {
    let commitlog = dir.join("commitlog");
    let layout = Layout { segment_bytes: options.segment_bytes };
    let names = match env.disk.list(&commitlog).await {
        Ok(names) => Some(names),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let hard = HardStateFiles::open(env, dir, options.segment_bytes, made || names.is_some()).await?;
    if hard.state().segment_bytes != options.segment_bytes {
        return Err(OpenError::Options(format!(
            "segments have {} bytes, not {}: the size is fixed for the cluster",
            hard.state().segment_bytes,
            options.segment_bytes
        )));
    }
    if names.is_none() {
        env.disk.create_dir_all(&commitlog).await?;
        env.disk.sync_dir(dir).await?;
    }
    let names: Vec<String> = names.unwrap_or_default().into_iter().map(|name| name.name).collect();
    let mut recovery = Recovery { env, commitlog, layout, slack_bytes: slack_bytes(options) };
    let found = recovery.examine(hard.state(), &names, floor).await;
    recovery.settle(hard, found?, &names).await
}

/// The hard state of a log that begins anew behind `boundary`: whatever lies in the files is void.
pub fn begin_anew(state: &mut HardState, boundary: Boundary) {
    state.generation += 1;
    state.purged = Some(boundary);
    let cut_end = boundary.end.physical_offset;
    state.truncation = TruncationPoint { last: Some(boundary.id), end: boundary.end, cut_end };
}

/// How far behind the longest chain an interrupted group can have left something: one group, and one more for good
/// measure.
fn slack_bytes(options: &LogOptions) -> u64 {
    2 * (GROUP_BYTES + 2 * frame_bytes(u64::from(options.max_entry_bytes)))
}

/// What the files hold; nothing is changed yet.
struct Found {
    segments: BTreeMap<PhysicalOffset, Segment>,
    slots: BTreeMap<PhysicalOffset, u64>,
    points: Points,
    known: Known,
    last: Option<LogId>,
    end: Cursor,
    /// Side files that hold for the recovered log.
    side_files: Vec<PhysicalOffset>,
    /// Those of full segments that had none, or a bad one.
    rebuilt: Vec<SideFile>,
}

struct Recovery<'a> {
    env: &'a Env,
    commitlog: PathBuf,
    layout: Layout,
    slack_bytes: u64,
}

impl Recovery<'_> {
    /// Reads only: finds the end of the log, or that it is corrupt.
    async fn examine(&self, hard: &HardState, names: &[String], floor: Option<LogId>) -> Result<Found, OpenError> {
        let (begin_id, begin) = hard.begin();
        let first = self.layout.segment_of(begin.physical_offset);
        let mut segments = BTreeMap::new();
        for segment in names.iter().filter_map(|name| parse_file_name(name)) {
            if segment >= first && segment.0.is_multiple_of(self.layout.segment_bytes) {
                let path = Segment::path(&self.commitlog, segment);
                let file = self.env.disk.open(&path, Open::Existing).await?;
                segments.insert(segment, Segment { first: segment, file });
            }
        }
        let begins_anew = hard.purged.is_some_and(|purged| purged.end == hard.truncation.end);
        if names.iter().all(|name| parse_file_name(name).is_none()) && hard.sequence > 1 && !begins_anew {
            return Err(corrupt(begin, "all segment files are missing".to_owned()));
        }

        // Files are made one behind the other and removed from the end, each durably before the next: one that is missing
        // before another one was lost.
        let mut expected = first;
        for segment in segments.keys() {
            if *segment != expected {
                let at = Cursor { physical_offset: expected, ..begin };
                return Err(corrupt(at, format!("the segment file is missing, but {segment} is there")));
            }
            expected = self.layout.segment_end(expected);
        }

        let (marks, slots) = self.read_marks(hard, &segments).await?;
        let known = decide_known(hard, &marks, self.layout)?;
        let mut walk = Walk { layout: self.layout, at: begin, last: begin_id };
        let mut points = Points::new(self.layout);
        let (mut side_files, mut rebuilt) = (Vec::new(), Vec::new());
        for (piece, _) in self.layout.pieces(begin.physical_offset, known.end.physical_offset) {
            let Some(segment) = segments.get(&self.layout.segment_of(piece)) else {
                return Err(corrupt(walk.at, "the segment file is missing".to_owned()));
            };
            let covered = self.walk_known(segment, known, &mut walk, &mut points).await?;
            let is_full = walk.at.physical_offset == self.layout.segment_end(segment.first);
            match (covered, walk.last) {
                // One that speaks of more than is known may be of before an interrupted truncation.
                (Some(covered), _) if covered <= known.end.physical_offset => side_files.push(segment.first),
                (None, Some(last)) if is_full => {
                    let points = points.within(segment.first..walk.at.physical_offset);
                    let covered = Boundary { id: last, end: walk.at };
                    rebuilt.push(SideFile { segment: segment.first, covered, points });
                }
                _ => {}
            }
        }
        if walk.at != known.end || walk.last != known.last {
            let reason = format!("the log leads to {:?}, but {:?} was durable", walk.last, known.last);
            return Err(corrupt(walk.at, reason));
        }

        let (last, end) = self.walk_beyond(&segments, &mut walk, &mut points).await?;
        points.truncate(end.physical_offset);
        if let Some(floor) = floor.filter(|_| !planted::is(Bug::FloorIgnored)) {
            check_floor(floor, begin_id, last, &points).map_err(|reason| corrupt(end, reason))?;
        }
        Ok(Found { segments, slots, points, known, last, end, side_files, rebuilt })
    }

    /// The marks of the newest segments, down to the first one that has a valid mark of this generation, and the slots
    /// that do not hold the better mark.
    #[allow(clippy::type_complexity)]
    async fn read_marks(
        &self,
        hard: &HardState,
        segments: &BTreeMap<PhysicalOffset, Segment>,
    ) -> Result<(Vec<(PhysicalOffset, Mark)>, BTreeMap<PhysicalOffset, u64>), OpenError> {
        let mut marks = Vec::new();
        let mut slots = BTreeMap::new();
        for segment in segments.values().rev() {
            let mut best = None;
            for slot in [0, 1] {
                // A slot that cannot be read is as good as one that was torn: there is another.
                let bytes = segment.file.read_at(slot * SLOT_BYTES, MARK_BYTES).await.unwrap_or_default();
                let Some(mark) = Mark::decode(&bytes) else { continue };
                marks.push((segment.first, mark));
                let valid = mark.generation == hard.generation && mark.belongs_to(segment.first, self.layout);
                if valid && best.is_none_or(|best| mark.synced.end.physical_offset >= best) {
                    best = Some(mark.synced.end.physical_offset);
                    slots.insert(segment.first, 1 - slot);
                }
            }
            if best.is_some() {
                break;
            }
        }
        Ok((marks, slots))
    }

    /// Walks one segment up to what is known, with the help of its side file. Any bad frame here is corruption.
    /// Returns how far the side file covered, if it was of use.
    async fn walk_known(
        &self,
        segment: &Segment,
        known: Known,
        walk: &mut Walk,
        points: &mut Points,
    ) -> Result<Option<PhysicalOffset>, OpenError> {
        let stop = self.layout.segment_end(segment.first).min(known.end.physical_offset);
        let side_file = self.read_side_file(segment, walk, stop).await?;
        let covered = side_file.as_ref().map(|side_file| side_file.covered.end.physical_offset);
        if let Some(side_file) = side_file {
            self.skip_along(side_file, walk, points, stop);
        }
        let mut window = Window::new(Arc::clone(&segment.file));
        while walk.at.physical_offset < stop {
            let at = walk.at;
            let offset = self.layout.file_offset(at.physical_offset);
            let bytes = window.read(at, offset, HEADER_BYTES as usize, HEADER_WINDOW_BYTES).await?;
            let header = walk.check(&bytes).map_err(|bad| corrupt(at, bad.to_string()))?;
            if header.end() > stop {
                return Err(corrupt(at, format!("the frame of {} reaches beyond what was durable", header.id)));
            }
            if header.kind != Kind::Padding && header.end().0 + VERIFIED_BYTES > known.end.physical_offset.0 {
                let len = (header.end().0 - at.physical_offset.0 - HEADER_BYTES) as usize;
                let body = window.read(at, offset + HEADER_BYTES, len, HEADER_WINDOW_BYTES).await?;
                header.check_body(&body).map_err(|bad| corrupt(at, bad.to_string()))?;
            }
            walk.pass(&header, points);
        }
        Ok(covered)
    }

    /// The segment's side file, if it is whole, leaves no hole behind the walk, and its last point is where it says.
    async fn read_side_file(
        &self,
        segment: &Segment,
        walk: &Walk,
        stop: PhysicalOffset,
    ) -> Result<Option<SideFile>, OpenError> {
        let path = self.commitlog.join(side_file_name(segment.first));
        let file = match self.env.disk.open(&path, Open::Existing).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
        // Unreadable is as good as missing: it is derived.
        let Ok(bytes) = file.read_at(0, len).await else { return Ok(None) };
        let Some(mut side_file) = SideFile::decode(&bytes).filter(|side_file| side_file.segment == segment.first)
        else {
            return Ok(None);
        };
        side_file.points.retain(|point| point.start.physical_offset < stop);
        let (Some(first), Some(last)) = (side_file.points.first(), side_file.points.last()) else { return Ok(None) };
        let joins = first.start.physical_offset < walk.at.physical_offset || first.start == walk.at;
        let offset = self.layout.file_offset(last.start.physical_offset);
        let header = Header::decode(&segment.file.read_at(offset, HEADER_BYTES as usize).await.unwrap_or_default());
        let stands = header.is_ok_and(|header| {
            header.id == last.id && header.continues(last.start, before(last.id), self.layout).is_ok()
        });
        Ok((joins && stands).then_some(side_file))
    }

    /// Takes over a side file's points. Of a full segment nothing is left to walk then; else the walk goes on at the
    /// last point.
    fn skip_along(&self, side_file: SideFile, walk: &mut Walk, points: &mut Points, stop: PhysicalOffset) {
        let last = *side_file.points.last().expect("a side file of use has points");
        points.extend(side_file.points);
        let segment_end = self.layout.segment_end(side_file.segment);
        if side_file.covered.end.physical_offset == segment_end && stop == segment_end {
            (walk.at, walk.last) = (side_file.covered.end, Some(side_file.covered.id));
        } else if last.start.physical_offset >= walk.at.physical_offset {
            points.truncate(last.start.physical_offset);
            (walk.at, walk.last) = (last.start, before(last.id));
        }
    }

    /// Walks on from what is known for as long as the chain holds, bodies included, and returns where the last entry
    /// ends. Padding counts only together with the entry behind it: another entry may not need it.
    async fn walk_beyond(
        &self,
        segments: &BTreeMap<PhysicalOffset, Segment>,
        walk: &mut Walk,
        points: &mut Points,
    ) -> Result<(Option<LogId>, Cursor), OpenError> {
        let mut end = (walk.last, walk.at);
        loop {
            let first = self.layout.segment_of(walk.at.physical_offset);
            let Some(segment) = segments.get(&first) else { return Ok(end) };
            let mut window = Window::new(Arc::clone(&segment.file));
            while self.layout.segment_of(walk.at.physical_offset) == first {
                let at = walk.at;
                let offset = self.layout.file_offset(at.physical_offset);
                let bytes = window.read(at, offset, HEADER_BYTES as usize, WINDOW_BYTES).await?;
                let Ok(header) = walk.check(&bytes) else { return Ok(end) };
                if header.kind != Kind::Padding {
                    let len = (header.end().0 - header.physical_offset.0 - HEADER_BYTES) as usize;
                    let body = window.read(at, offset + HEADER_BYTES, len, WINDOW_BYTES).await?;
                    if header.check_body(&body).is_err() {
                        return Ok(end);
                    }
                }
                walk.pass(&header, points);
                if header.kind != Kind::Padding {
                    end = (walk.last, walk.at);
                }
            }
        }
    }

    /// Makes the disk agree with what was found: leftovers are zeroed, files that hold nothing of the log removed, and
    /// what was kept is durable. Doing it twice, or half and then again, changes nothing more.
    async fn settle(&mut self, hard: HardStateFiles, found: Found, names: &[String]) -> Result<Recovered, OpenError> {
        let Found { mut segments, slots, points, known, last, end, side_files, rebuilt } = found;
        let tail_segment = self.layout.segment_of(end.physical_offset);
        segments.retain(|first, _| *first <= tail_segment);
        if let Some(segment) = segments.get(&tail_segment) {
            segment.file.allocate(self.layout.file_bytes()).await?;
            let leftovers = (end.physical_offset.0 + self.slack_bytes).max(hard.state().truncation.cut_end.0);
            let stop = self.layout.segment_end(end.physical_offset).min(PhysicalOffset(leftovers));
            self.zero(segment, end.physical_offset, stop).await?;
        }
        env::fault!("log.recovery_zeroed");
        hard.write_anew().await?;
        // Frames beyond the mark may be in the page cache only; from now on others rely on them. If a sync of theirs has
        // failed the kernel calls those pages clean, and the next sync would write nothing: so they are written anew.
        for segment in segments.range(self.layout.segment_of(known.end.physical_offset)..).map(|(_, segment)| segment) {
            let stop = self.layout.segment_end(segment.first).min(end.physical_offset);
            self.write_anew(segment, segment.first.max(known.end.physical_offset), stop).await?;
            segment.file.sync_data().await?;
        }
        self.remove_files(names, |name| match parse_file_name(name) {
            Some(first) => !segments.contains_key(&first),
            None => parse_side_file_name(name).is_some_and(|first| !side_files.contains(&first)),
        })
        .await?;
        for side_file in &rebuilt {
            write_side_file(self.env, &self.commitlog, side_file).await;
        }
        Ok(Recovered { hard, segments, slots, points, last, end, marked: known.end.physical_offset })
    }

    async fn write_anew(&self, segment: &Segment, from: PhysicalOffset, to: PhysicalOffset) -> io::Result<()> {
        let mut at = from;
        while at < to {
            let len = (to.0 - at.0).min(WINDOW_BYTES as u64);
            let offset = self.layout.file_offset(at);
            let bytes = segment.file.read_at(offset, len as usize).await?;
            segment.file.write_at(offset, &[bytes]).await?;
            at = PhysicalOffset(at.0 + len);
        }
        Ok(())
    }

    async fn zero(&self, segment: &Segment, from: PhysicalOffset, to: PhysicalOffset) -> io::Result<()> {
        let mut at = from;
        while at < to {
            let len = (to.0 - at.0).min(WINDOW_BYTES as u64);
            let offset = self.layout.file_offset(at);
            let is_zero = match segment.file.read_at(offset, len as usize).await {
                Ok(bytes) => bytes.iter().all(|byte| *byte == 0),
                // Whatever was there is no part of the log: its end is known. Written anew, it can be read again.
                Err(error) if is_unreadable(&error) => false,
                Err(error) => return Err(error),
            };
            if !is_zero {
                segment.file.write_at(offset, &zeros(len)).await?;
            }
            at = PhysicalOffset(at.0 + len);
        }
        Ok(())
    }

    /// Removes segment and side files that `void` names, and makes the directory durable as it is then. From the end,
    /// one at a time: a crash in between leaves no hole. First what was found is made durable: a process that was killed
    /// may have removed a later file for itself only.
    async fn remove_files(&self, names: &[String], void: impl Fn(&str) -> bool) -> io::Result<()> {
        self.env.disk.sync_dir(&self.commitlog).await?;
        for name in names.iter().rev() {
            let ours = parse_file_name(name).is_some() || parse_side_file_name(name).is_some();
            if ours && void(name) {
                self.env.disk.remove_file(&self.commitlog.join(name)).await?;
                self.env.disk.sync_dir(&self.commitlog).await?;
            }
        }
        self.env.disk.sync_dir(&self.commitlog).await
    }
}

/// An id that `id` may follow; for a walk that begins at a frame whose id is known.
pub fn before(id: LogId) -> Option<LogId> {
    id.index.checked_sub(1).map(|index| LogId { term: id.term, index })
}

fn corrupt(at: Cursor, reason: String) -> OpenError {
    OpenError::Corrupt { physical_offset: at.physical_offset, reason }
}

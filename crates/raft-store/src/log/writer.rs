//! Writer: the one who writes the log. Takes commands in order, frames in groups.
//!
//! A group is what waits: one vectored write per file, the mark of the group before, one sync per file, then the
//! callbacks in order. Where groups are flushed by a timer (`flush_interval_ms`) the callbacks run after the write, and
//! mark and sync come with the timer, or before anything but frames. Votes, truncations and purges stand in the same queue, so nothing overtakes anything, and frames
//! before and after one of them are never in the same group.
//!
//! After a failed write or sync nothing is known about the disk any more (the kernel may have thrown the pages away and
//! call them clean): everything that waits fails, nothing is retried, and the log takes nothing more.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use env::Env;
use env::disk::{PAGE_BYTES, zeros};

use super::frame::{Boundary, Cursor, Frame, HEADER_BYTES, Header, frame_bytes};
use super::hard_state::{HardStateFiles, TruncationPoint};
use super::points::{Points, SideFile, side_file_name, write_side_file};
use super::recovery::begin_anew;
use super::segment::{Mark, SLOT_BYTES, Segment};
use super::state::{Command, Reply, Shared};
use super::{Done, Synced};
use crate::planted::{self, Bug};
use crate::position::{LogId, PhysicalOffset};

/// A group takes no further frame once it has this many bytes.
pub const GROUP_BYTES: u64 = 8 << 20;

/// The side file of the segment in use is written after this much log.
const SIDE_FILE_EVERY_BYTES: u64 = 64 << 20;

/// Zeros written at once when the log is cut.
const ZERO_BYTES: u64 = 16 << 20;

/// Test-only: frames are answered without being synced. No mark is written either: it says what is durable, and recovery
/// would take the loss for corruption.
const UNSAFE_NO_SYNC: bool = cfg!(feature = "unsafe-no-sync");

/// The writer's own state: what is on the disk.
pub struct Writer {
    env: Env,
    shared: Arc<Shared>,
    commitlog: PathBuf,
    hard: HardStateFiles,
    /// Which mark slot of a segment comes next, where it is not the first.
    slots: BTreeMap<PhysicalOffset, u64>,
    /// Last written entry and the place behind it. `synced <= written`.
    written: (Option<LogId>, Cursor),
    /// Last durable entry and the place behind it.
    synced: (Option<LogId>, Cursor),
    /// Files with frames beyond `synced`.
    unsynced: Vec<Segment>,
    /// First frames of segments among these, each with the padding before it.
    begun: Vec<(Option<Header>, Frame)>,
    /// When they must be synced, on the monotonic clock. `None`: there are none, or they are synced at once.
    flush_due: Option<Duration>,
    /// What the marks on the disk say. `marked <= synced`.
    marked: PhysicalOffset,
    /// Up to where side files are written.
    side_filed: PhysicalOffset,
    /// What is in the page where the log ends, up to there; `None`: to be read.
    last_page: Option<Bytes>,
}

/// Frames that are written and synced together.
#[derive(Default)]
struct Group {
    frames: Vec<(Option<Header>, Frame)>,
    bytes: u64,
    done: Vec<Done>,
}

/// Bytes that lie one behind the other in one file.
struct Run {
    segment: PhysicalOffset,
    file_offset: u64,
    len: u64,
    buffers: Vec<Bytes>,
}

enum Next {
    Group(Group),
    Command(Command),
    Nothing,
    Stopped,
}

/// Poisons the log if the writer goes away without having been told to: by a panic, or with its runtime.
struct Watch(Arc<Shared>);

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.0.is_ending() {
            self.0.fail("the log's writer has ended");
        }
    }
}

impl Writer {
    /// A writer that goes on where recovery ended.
    pub fn new(
        env: Env,
        shared: Arc<Shared>,
        commitlog: PathBuf,
        hard: HardStateFiles,
        slots: BTreeMap<PhysicalOffset, u64>,
        marked: PhysicalOffset,
    ) -> Writer {
        let (synced, side_filed) = {
            let state = shared.state.lock();
            ((state.last, state.submitted), state.submitted.physical_offset)
        };
        Writer {
            env,
            shared,
            commitlog,
            hard,
            slots,
            written: synced,
            synced,
            unsynced: Vec::new(),
            begun: Vec::new(),
            flush_due: None,
            marked,
            side_filed,
            last_page: None,
        }
    }

    /// The future that writes until the log is closed or poisoned.
    pub async fn run(mut self) {
        let watch = Watch(Arc::clone(&self.shared));
        match self.serve().await {
            Ok(()) => self.shared.refuse_queued(),
            Err(error) => self.shared.fail(&error.to_string()),
        }
        drop(watch);
    }

    async fn serve(&mut self) -> io::Result<()> {
        let idle = Duration::from_millis(self.shared.options.idle_mark_ms);
        loop {
            match self.next() {
                Next::Group(group) => {
                    self.write_group(group).await?;
                    if self.flush_due.is_some_and(|due| due <= self.env.clock.monotonic()) {
                        self.flush().await?;
                    }
                }
                Next::Command(Command::Close(reply)) => return self.close(reply).await,
                Next::Command(command) => {
                    self.flush().await?;
                    self.execute(command).await?;
                }
                Next::Stopped => return Ok(()),
                Next::Nothing => {
                    let queued = self.shared.queued.notified();
                    let is_marked = self.marked == self.synced.1.physical_offset;
                    let limit = match self.flush_due {
                        Some(due) => due.saturating_sub(self.env.clock.monotonic()),
                        None if is_marked => {
                            queued.await;
                            continue;
                        }
                        None => idle,
                    };
                    if self.env.clock.timeout(limit, queued).await.is_none() {
                        match self.flush_due {
                            Some(_) => self.flush().await?,
                            None => self.write_idle_mark().await?,
                        }
                    }
                }
            }
        }
    }

    /// What comes next: as many frames as wait and fit into a group, or one other command.
    fn next(&self) -> Next {
        let mut state = self.shared.state.lock();
        let mut group = Group::default();
        let fits = |group: &Group, command: &Command| match command {
            Command::Frame { .. } => group.bytes < GROUP_BYTES,
            Command::Done(_) => true,
            _ => false,
        };
        while let Some(command) = self.shared.take_if(&mut state, |command| fits(&group, command)) {
            match command {
                Command::Frame { padding, frame } => {
                    group.bytes += frame_bytes(frame.body.len() as u64);
                    group.frames.push((padding, frame));
                }
                Command::Done(done) => group.done.push(done),
                _ => unreachable!("nothing else fits"),
            }
        }
        if !group.frames.is_empty() || !group.done.is_empty() {
            return Next::Group(group);
        }
        match self.shared.take_if(&mut state, |_| true) {
            Some(command) => Next::Command(command),
            None if state.stopped.is_some() => Next::Stopped,
            None => Next::Nothing,
        }
    }

    /// Writes, syncs unless a timer does that, answers.
    async fn write_group(&mut self, group: Group) -> io::Result<()> {
        let Group { frames, bytes, mut done } = group;
        if planted::is(Bug::AcknowledgeBeforeSync) {
            done.drain(..).for_each(|done| done(Ok(())));
        }
        let result = self.write_frames(&frames, bytes).await;
        let result = match self.shared.options.flush_interval_ms {
            None if result.is_ok() => self.flush().await,
            _ => result,
        };
        match &result {
            Ok(()) => done.into_iter().for_each(|done| done(Ok(()))),
            Err(error) => {
                let reason = error.to_string();
                // Stopped first: whoever is told of the failure finds the log stopped.
                self.shared.state.lock().stopped.get_or_insert_with(|| reason.clone());
                done.into_iter().for_each(|done| done(Err(io::Error::other(reason.clone()))));
            }
        }
        result
    }

    async fn write_frames(&mut self, frames: &[(Option<Header>, Frame)], bytes: u64) -> io::Result<()> {
        let Some((_, last)) = frames.last() else { return Ok(()) };
        let end = last.end();
        self.shared.preparation.reach(end.physical_offset).await?;
        for run in self.runs(frames) {
            let segment = self.segment(run.segment)?;
            self.write_run(&segment, run).await?;
            env::fault!("log.run_written");
            if self.unsynced.last().is_none_or(|last| last.first != segment.first) {
                self.unsynced.push(segment);
            }
        }
        let layout = self.shared.layout;
        let begins = |frame: &Frame| layout.segment_of(frame.physical_offset) == frame.physical_offset;
        self.begun.extend(frames.iter().filter(|(_, frame)| begins(frame)).cloned());
        self.written = (Some(last.id), end);
        if let Some(interval_ms) = self.shared.options.flush_interval_ms {
            let due = self.env.clock.monotonic() + Duration::from_millis(interval_ms);
            self.flush_due.get_or_insert(due);
        }
        {
            let mut state = self.shared.state.lock();
            state.set_written(end.physical_offset);
            let limit_bytes = self.shared.options.tail_bytes;
            state.tail.shrink(limit_bytes, end.physical_offset);
        }
        self.shared.stats.lock().note_group(frames.len() as u64, bytes);
        self.shared.preparation.follow(end.physical_offset);
        Ok(())
    }

    /// Makes durable what is written, and with it the mark of what was durable before.
    async fn flush(&mut self) -> io::Result<()> {
        if self.unsynced.is_empty() {
            return Ok(());
        }
        // The mark lies in the first of these files: what was synced last ends there.
        self.write_mark().await?;
        env::fault!("log.before_sync");
        let started = self.env.clock.monotonic();
        for segment in &self.unsynced {
            sync_frames(segment).await?;
            env::fault!("log.synced_one_of_the_files");
        }
        let took = self.env.clock.monotonic().saturating_sub(started);
        env::fault!("log.after_sync");
        (self.flush_due, self.marked) = (None, self.synced.1.physical_offset);
        self.unsynced.clear();
        self.synced = self.written;
        self.publish_synced();
        self.shared.stats.lock().note_sync(took);
        self.write_side_files().await;
        Ok(())
    }

    /// The bytes of the frames, coalesced: one run per file unless padding leaves a void.
    fn runs(&self, frames: &[(Option<Header>, Frame)]) -> Vec<Run> {
        let mut encoded = BytesMut::with_capacity(frames.len() * 2 * HEADER_BYTES as usize);
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |at: PhysicalOffset, buffers: [Bytes; 3]| {
            let segment = self.shared.layout.segment_of(at);
            let file_offset = self.shared.layout.file_offset(at);
            let continues = |run: &Run| run.segment == segment && run.file_offset + run.len == file_offset;
            if !runs.last().is_some_and(continues) {
                runs.push(Run { segment, file_offset, len: 0, buffers: Vec::new() });
            }
            let run = runs.last_mut().expect("just made sure");
            for buffer in buffers.into_iter().filter(|buffer| !buffer.is_empty()) {
                run.len += buffer.len() as u64;
                run.buffers.push(buffer);
            }
        };
        let mut at = self.written.1;
        for (padding, frame) in frames {
            if let Some(padding) = padding {
                assert_eq!(padding.physical_offset, at.physical_offset, "padding must continue the log");
                encoded.put_slice(&padding.encode());
                add(padding.physical_offset, [encoded.split().freeze(), Bytes::new(), Bytes::new()]);
                at = padding.cursor();
            }
            assert_eq!(frame.physical_offset, at.physical_offset, "entry {} must continue the log", frame.id);
            at = frame.end();
            encoded.put_slice(&header_of(frame).encode());
            let fill = at.physical_offset.0 - frame.physical_offset.0 - HEADER_BYTES - frame.body.len() as u64;
            add(frame.physical_offset, [encoded.split().freeze(), frame.body.clone(), zeros_up_to_a_page(fill)]);
        }
        runs
    }

    /// Writes a run as whole pages, so that none must be read before: the first one begins with what is in it already,
    /// and behind the last frame the file is zero.
    async fn write_run(&mut self, segment: &Segment, run: Run) -> io::Result<()> {
        let begun = run.file_offset % PAGE_BYTES;
        let page = match &self.last_page {
            _ if begun == 0 => Bytes::new(),
            Some(page) => page.clone(),
            None => segment.file.read_at(run.file_offset - begun, begun as usize).await?,
        };
        assert_eq!(page.len() as u64, begun, "the page that the log ends in is known up to there");
        let end = run.file_offset + run.len;
        let mut buffers = run.buffers;
        self.last_page = Some(last_page(&page, &buffers, end));
        buffers.insert(0, page);
        buffers.push(zeros_up_to_a_page(end.next_multiple_of(PAGE_BYTES) - end));
        segment.file.write_pages(run.file_offset - begun, &buffers).await
    }

    fn publish_synced(&self) {
        let (last, end) = self.synced;
        self.shared.state.lock().set_synced(last, end.physical_offset);
        self.announce_synced();
    }

    fn announce_synced(&self) {
        let (last, end) = self.synced;
        let synced = Synced { index: last.map(|last| last.index), physical_end: end.physical_offset, poisoned: false };
        self.shared.synced.send_modify(|state| *state = Synced { poisoned: state.poisoned, ..synced });
    }

    fn segment(&self, first: PhysicalOffset) -> io::Result<Segment> {
        self.shared.segment(first).ok_or_else(|| io::Error::other(format!("segment {first} is not open")))
    }

    /// Writes what was synced last into the next mark slot of the segment in which the next frame goes, or, if that
    /// is not made yet, of the one that is full; the caller syncs. Nothing to write before the first entry.
    async fn write_mark(&mut self) -> io::Result<Option<Segment>> {
        let (Some(id), end) = self.synced else { return Ok(None) };
        if UNSAFE_NO_SYNC || self.marked == end.physical_offset {
            return Ok(None);
        }
        let last_byte = PhysicalOffset(end.physical_offset.0.saturating_sub(1));
        let segment = match self.shared.segment(self.shared.layout.segment_of(end.physical_offset)) {
            Some(segment) => segment,
            None => self.segment(self.shared.layout.segment_of(last_byte))?,
        };
        let generation = self.hard.state().generation;
        let mark = Mark { generation, synced: Boundary { id, end }, segment: segment.first };
        let slot = self.slots.entry(segment.first).or_insert(0);
        let bytes = Bytes::copy_from_slice(&mark.encode());
        let rest = zeros_up_to_a_page(SLOT_BYTES - bytes.len() as u64);
        segment.file.write_pages(*slot * SLOT_BYTES, &[bytes, rest]).await?;
        *slot = 1 - *slot;
        Ok(Some(segment))
    }

    /// The mark of the last group, with a sync of its own: nothing else is going to be synced soon.
    async fn write_idle_mark(&mut self) -> io::Result<()> {
        if let Some(segment) = self.write_mark().await? {
            env::fault!("log.before_idle_mark_sync");
            segment.file.sync_data().await?;
        }
        self.marked = self.synced.1.physical_offset;
        Ok(())
    }

    async fn close(&mut self, reply: Reply) -> io::Result<()> {
        let result = match self.flush().await {
            Ok(()) if self.synced.1.physical_offset != self.marked => self.write_idle_mark().await,
            flushed => flushed,
        };
        self.write_open_side_file().await;
        let reason = result.as_ref().err().map_or("the log is closed".to_owned(), io::Error::to_string);
        self.shared.state.lock().stopped.get_or_insert(reason);
        self.shared.preparation.wanted.notify_one();
        // Whoever closes may not wait for it.
        let _ = reply.send(match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::other(error.to_string())),
        });
        result
    }

    async fn execute(&mut self, command: Command) -> io::Result<()> {
        let (result, reply) = match command {
            Command::Vote(vote, reply) => {
                let result = self.hard.update(|state| state.vote = Some(vote)).await;
                if result.is_ok() {
                    self.shared.state.lock().vote = Some(vote);
                }
                (result, reply)
            }
            Command::Truncate { last, end, reply } => (self.truncate(last, end).await, reply),
            Command::Purge(boundary, reply) => (self.purge(boundary).await, reply),
            Command::Restart(boundary, reply) => (self.restart(boundary).await, reply),
            Command::Frame { .. } | Command::Done(_) | Command::Close(_) => unreachable!("handled before"),
        };
        // Stopped first: whoever is told of the failure finds the log stopped.
        if let Err(error) = &result {
            self.shared.state.lock().stopped.get_or_insert(error.to_string());
        }
        // Whoever asked may have stopped waiting; it is done all the same.
        let _ = reply.send(match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::other(error.to_string())),
        });
        result
    }

    /// Cuts everything behind `end`. First the hard state says so, and makes every mark void; then the bytes go. A crash
    /// in between leaves a log that holds more than was asked for, but never one that holds less, and what was cut
    /// cannot come back once this has returned, because nothing of it is left.
    async fn truncate(&mut self, last: Option<LogId>, end: Cursor) -> io::Result<()> {
        let cut_end = {
            let _nobody_reads = self.shared.cut.write();
            let mut state = self.shared.state.lock();
            let cut_end = state.submitted.physical_offset;
            assert!(self.synced.1.physical_offset == cut_end, "the log is cut with frames in flight");
            assert!(last.map_or(0, |last| last.index + 1) >= self.shared.applied_end(), "an applied entry is cut");
            state.cut_to(last, end);
            let end_index = state.end_index();
            state.tail.truncate(end_index);
            state.points.truncate(end.physical_offset);
            self.shared.recent.lock().clear();
            cut_end
        };
        (self.written, self.synced) = ((last, end), (last, end));
        self.last_page = None;
        self.announce_synced();
        env::fault!("log.before_truncation");
        self.hard
            .update(|state| {
                state.generation += 1;
                state.truncation = TruncationPoint { last, end, cut_end };
            })
            .await?;
        self.marked = end.physical_offset;
        env::fault!("log.truncation_noted");
        let layout = self.shared.layout;
        for (piece, len) in layout.pieces(end.physical_offset, cut_end) {
            let segment = self.segment(layout.segment_of(piece))?;
            let (from, to) = (piece.0, piece.0 + if planted::is(Bug::CutNotZeroed) { 0 } else { len });
            for at in (from..to).step_by(ZERO_BYTES as usize) {
                let offset = layout.file_offset(PhysicalOffset(at));
                segment.file.write_at(offset, &zeros(ZERO_BYTES.min(to - at))).await?;
            }
            env::fault!("log.truncated_piece_zeroed");
            segment.file.sync_data().await?;
        }
        env::fault!("log.truncation_zeroed");
        self.remove_side_files(Bound::Included(layout.segment_of(end.physical_offset))).await?;
        self.side_filed = self.side_filed.min(end.physical_offset);
        self.shared.state.lock().cutting = false;
        Ok(())
    }

    /// Removes the side files of the segments from `from` on: they speak of frames that are gone.
    async fn remove_side_files(&self, from: Bound<PhysicalOffset>) -> io::Result<()> {
        let segments = Arc::clone(&self.shared.state.lock().segments);
        for (first, _) in segments.range((from, Bound::Unbounded)) {
            remove_if_there(&self.env, self.commitlog.join(side_file_name(*first))).await?;
        }
        self.env.disk.sync_dir(&self.commitlog).await
    }

    /// The log begins behind `boundary`; segments wholly before it are unlinked, but never the newest one.
    async fn purge(&mut self, boundary: Boundary) -> io::Result<()> {
        let begin = boundary.end.physical_offset;
        assert!(begin <= self.synced.1.physical_offset, "purged {begin} > synced {}", self.synced.1.physical_offset);
        self.hard.update(|state| state.purged = Some(boundary)).await?;
        env::fault!("log.purge_noted");
        let first = self.shared.layout.segment_of(begin);
        let gone = {
            let _nobody_reads = self.shared.cut.write();
            let mut state = self.shared.state.lock();
            state.purged = Some(boundary);
            state.tail.purge(boundary.id.index + 1);
            // A remembered place may lie before a segment's padding: in a file that goes now.
            self.shared.recent.lock().clear();
            let newest = state.segments.last_key_value().map_or(first, |(newest, _)| *newest);
            let kept = Arc::make_mut(&mut state.segments).split_off(&first.min(newest));
            let gone = std::mem::replace(&mut state.segments, Arc::new(kept));
            let points_from = state.segments.first_key_value().map_or(first, |(first, _)| *first);
            state.points.purge(points_from);
            gone
        };
        if gone.is_empty() {
            return Ok(());
        }
        self.slots.retain(|segment, _| !gone.contains_key(segment));
        for first in gone.keys() {
            // Readers may still hold the file or a map of it; both stay valid.
            self.env.disk.remove_file(&Segment::path(&self.commitlog, *first)).await?;
            remove_if_there(&self.env, self.commitlog.join(side_file_name(*first))).await?;
            env::fault!("log.segment_unlinked");
        }
        self.env.disk.sync_dir(&self.commitlog).await
    }

    /// Drops everything; the log begins anew behind `boundary`. The hard state first: then whatever still lies in the
    /// files is void.
    async fn restart(&mut self, boundary: Boundary) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut prepared_end = shared.preparation.end.lock().await;
        let end = boundary.end;
        let gone = {
            let _nobody_reads = shared.cut.write();
            let mut state = shared.state.lock();
            state.cut_to(Some(boundary.id), end);
            state.purged = Some(boundary);
            state.tail.truncate(0);
            state.points = Points::new(shared.layout);
            shared.recent.lock().clear();
            std::mem::take(&mut state.segments)
        };
        self.synced = (Some(boundary.id), end);
        self.written = self.synced;
        self.announce_synced();
        self.hard.update(|state| begin_anew(state, boundary)).await?;
        env::fault!("log.restart_noted");
        // From the end, one at a time: a crash in between leaves no hole.
        for first in gone.keys().rev() {
            remove_if_there(&self.env, self.commitlog.join(side_file_name(*first))).await?;
            self.env.disk.remove_file(&Segment::path(&self.commitlog, *first)).await?;
            self.env.disk.sync_dir(&self.commitlog).await?;
            env::fault!("log.restart_removed_a_segment");
        }
        self.slots.clear();
        self.last_page = None;
        (self.marked, self.side_filed) = (end.physical_offset, end.physical_offset);
        *prepared_end = end.physical_offset;
        shared.preparation.prepared.send_modify(|prepared| prepared.end = end.physical_offset);
        shared.preparation.wanted.notify_one();
        shared.state.lock().cutting = false;
        Ok(())
    }

    /// Writes side files of the segments that are full since the last flush, and now and then of the one in use.
    async fn write_side_files(&mut self) {
        let layout = self.shared.layout;
        for (padding, frame) in std::mem::take(&mut self.begun) {
            let behind = frame.physical_offset;
            if behind.0 == 0 {
                continue;
            }
            // The first frame of a segment: the one before is full.
            let Some(before) = self.id_before(frame.id) else { continue };
            let chain = padding.map(|padding| padding.chain).or_else(|| self.chain_before(&frame));
            let Some(chain) = chain else { continue };
            let covered = Boundary { id: before, end: Cursor { physical_offset: behind, chain } };
            self.write_side_file(layout.segment_of(PhysicalOffset(behind.0 - 1)), covered).await;
            self.side_filed = behind;
        }
        if self.synced.1.physical_offset.0 >= self.side_filed.0 + SIDE_FILE_EVERY_BYTES {
            self.write_open_side_file().await;
        }
    }

    fn id_before(&self, id: LogId) -> Option<LogId> {
        self.shared.state.lock().id_at(id.index.checked_sub(1)?)
    }

    /// The chain before a frame that is a point.
    fn chain_before(&self, frame: &Frame) -> Option<u64> {
        let point = self.shared.state.lock().points.at_offset(frame.physical_offset)?;
        (point.id == frame.id).then_some(point.start.chain)
    }

    /// Writes the side file of the segment in use, as far as it is durable.
    async fn write_open_side_file(&mut self) {
        let (Some(id), end) = self.synced else { return };
        let first = self.shared.layout.segment_of(end.physical_offset);
        if first < end.physical_offset {
            self.write_side_file(first, Boundary { id, end }).await;
        }
        self.side_filed = end.physical_offset;
    }

    async fn write_side_file(&self, segment: PhysicalOffset, covered: Boundary) {
        let points = self.shared.state.lock().points.within(segment..covered.end.physical_offset);
        write_side_file(&self.env, &self.commitlog, &SideFile { segment, covered, points }).await;
    }
}

/// Less than a page of zeros.
fn zeros_up_to_a_page(len: u64) -> Bytes {
    assert!(len < PAGE_BYTES, "{len} zeros are more than a page");
    zeros(len).pop().unwrap_or_default()
}

/// What is in the page where a run ends, whose first page begins with `page`.
fn last_page(page: &Bytes, buffers: &[Bytes], end: u64) -> Bytes {
    let len = (end % PAGE_BYTES) as usize;
    let mut last = vec![0; len];
    let mut missing = len;
    for buffer in buffers.iter().rev().chain([page]) {
        let part = &buffer[buffer.len() - buffer.len().min(missing)..];
        last[missing - part.len()..missing].copy_from_slice(part);
        missing -= part.len();
        if missing == 0 {
            break;
        }
    }
    assert_eq!(missing, 0, "a run begins where a page does, or with the page it begins in");
    last.into()
}

fn header_of(frame: &Frame) -> Header {
    Header {
        kind: frame.kind,
        id: frame.id,
        physical_offset: frame.physical_offset,
        body_bytes: frame.body.len() as u32,
        body_crc: frame.body_crc,
        chain: frame.chain,
    }
}

/// Makes frames durable, unless this is a build that does not.
async fn sync_frames(segment: &Segment) -> io::Result<()> {
    if UNSAFE_NO_SYNC || planted::is(Bug::SkipSync) {
        return Ok(());
    }
    let synced = segment.file.sync_data().await;
    if synced.is_err() && planted::is(Bug::SyncRetried) {
        return segment.file.sync_data().await;
    }
    synced
}

async fn remove_if_there(env: &Env, path: PathBuf) -> io::Result<()> {
    match env.disk.remove_file(&path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

//! Tail: the newest frames, in memory. Serves replication, apply and readers without touching the disk.
//!
//! It holds every frame that is not yet written (nobody else has those), and as many written ones as fit into
//! `tail_bytes`.

use std::collections::VecDeque;

use super::frame::{Frame, HEADER_BYTES, frame_bytes};
use crate::position::PhysicalOffset;

/// Consecutive frames up to the end of the log.
#[derive(Debug, Default)]
pub struct Tail {
    frames: VecDeque<Frame>,
    /// What the frames occupy in the log; never above the limit while the oldest frame is written.
    bytes: u64,
}

impl Tail {
    /// Adds the frame behind the last.
    pub fn push(&mut self, frame: Frame) {
        if let Some(last) = self.frames.back() {
            assert_eq!(frame.id.index, last.id.index + 1, "the tail has no holes");
        }
        self.bytes += frame_bytes(frame.body.len() as u64);
        self.frames.push_back(frame);
    }

    /// Drops the oldest frames until `limit_bytes` are left, but none that reaches beyond `written`.
    pub fn shrink(&mut self, limit_bytes: u64, written: PhysicalOffset) {
        while self.bytes > limit_bytes
            && let Some(oldest) = self.frames.front()
            && oldest.end().physical_offset <= written
        {
            self.bytes -= frame_bytes(oldest.body.len() as u64);
            self.frames.pop_front();
        }
    }

    /// Gives back the room of frames that are gone.
    pub fn release(&mut self) {
        self.frames.shrink_to_fit();
    }

    /// Drops the frames from entry `index` on.
    pub fn truncate(&mut self, index: u64) {
        while let Some(newest) = self.frames.back()
            && newest.id.index >= index
        {
            self.bytes -= frame_bytes(newest.body.len() as u64);
            self.frames.pop_back();
        }
    }

    /// Drops the frames before entry `index`.
    pub fn purge(&mut self, index: u64) {
        while let Some(oldest) = self.frames.front()
            && oldest.id.index < index
        {
            self.bytes -= frame_bytes(oldest.body.len() as u64);
            self.frames.pop_front();
        }
    }

    /// The frame of entry `index`.
    pub fn get(&self, index: u64) -> Option<&Frame> {
        let first = self.frames.front()?.id.index;
        self.frames.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    /// The frames from entry `index` on; none if it lies before the tail.
    pub fn from(&self, index: u64) -> impl Iterator<Item = &Frame> {
        let first = self.frames.front().map_or(0, |frame| frame.id.index);
        let skipped = index.checked_sub(first).and_then(|skipped| usize::try_from(skipped).ok());
        self.frames.iter().skip(skipped.unwrap_or(self.frames.len()))
    }

    /// The frame whose body holds `at`.
    pub fn containing(&self, at: PhysicalOffset) -> Option<&Frame> {
        let behind = self.frames.partition_point(|frame| frame.physical_offset.0 + HEADER_BYTES <= at.0);
        let frame = self.frames.get(behind.checked_sub(1)?)?;
        (at.0 - frame.physical_offset.0 - HEADER_BYTES < frame.body.len() as u64).then_some(frame)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::frame::Kind;
    use super::*;
    use crate::position::LogId;

    /// Frames of 128 bytes each, bodies of 60.
    fn frame(index: u64) -> Frame {
        Frame {
            id: LogId { term: 1, index },
            kind: Kind::Entry,
            physical_offset: PhysicalOffset(index * 128),
            body: Bytes::from(vec![index as u8; 60]),
            body_crc: 0,
            chain: index,
        }
    }

    fn tail(indexes: std::ops::Range<u64>) -> Tail {
        let mut tail = Tail::default();
        indexes.for_each(|index| tail.push(frame(index)));
        tail
    }

    #[test]
    fn found_by_index_and_by_place() {
        let tail = tail(5..9);
        assert_eq!(tail.get(5), Some(&frame(5)));
        assert_eq!((tail.get(4), tail.get(9)), (None, None));
        assert_eq!(tail.from(7).map(|frame| frame.id.index).collect::<Vec<_>>(), [7, 8]);
        assert_eq!((tail.from(3).count(), tail.from(9).count()), (0, 0));
        let body = 6 * 128 + 64;
        for (at, index) in [(body, Some(6)), (body + 59, Some(6)), (body + 60, None), (body - 1, None), (0, None)] {
            assert_eq!(tail.containing(PhysicalOffset(at)).map(|frame| frame.id.index), index, "at {at}");
        }
    }

    #[test]
    fn what_is_not_written_stays_whatever_the_limit() {
        let mut tail = tail(0..10);
        tail.shrink(0, PhysicalOffset(4 * 128 + 1));
        assert_eq!(tail.from(4).count(), 6);
        assert_eq!(tail.get(3), None);
        tail.shrink(3 * 128, PhysicalOffset(u64::MAX));
        assert_eq!(tail.from(7).count(), 3);
        tail.truncate(8);
        assert_eq!((tail.get(7), tail.get(8)), (Some(&frame(7)), None));
        tail.purge(8);
        assert_eq!((tail.get(7), tail.bytes), (None, 0));
    }
}

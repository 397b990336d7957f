//! ProcessQueue: the messages of one queue that are here and not finished. Pure.
//!
//! What it decides is the offset that may be stored: everything before it is finished, that is consumed, given back to
//! the broker, or not wanted. So it is the smallest offset that is not finished, or where the next pull begins if there
//! is none. It never goes back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::message::ReceivedMessage;

/// How much of one queue may be here before its pulls pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheLimits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// Distance between the smallest and the largest offset here: how far one slow message may hold back the stored
    /// offset while others overtake it.
    pub(crate) span: i64,
}

#[derive(Debug)]
struct Unfinished {
    cost_bytes: usize,
    is_running: bool,
}

#[derive(Debug)]
pub(crate) struct ProcessQueue {
    /// Every offset here is below `next_pull`.
    unfinished: BTreeMap<i64, Unfinished>,
    /// Not yet handed out; a subset of `unfinished`.
    waiting: VecDeque<Arc<ReceivedMessage>>,
    /// Where the next pull begins. Never decreases.
    next_pull: i64,
    cost_bytes: usize,
    running: usize,
}

impl ProcessQueue {
    /// Nothing here; the first pull begins at `offset`.
    pub(crate) fn new(offset: i64) -> ProcessQueue {
        ProcessQueue {
            unfinished: BTreeMap::new(),
            waiting: VecDeque::new(),
            next_pull: offset,
            cost_bytes: 0,
            running: 0,
        }
    }

    /// Where the next pull begins.
    pub(crate) fn next_pull(&self) -> i64 {
        self.next_pull
    }

    /// The offset that may be stored.
    pub(crate) fn progress(&self) -> i64 {
        self.unfinished.first_key_value().map_or(self.next_pull, |(offset, _)| *offset)
    }

    /// Takes in what a pull brought; the next one begins at `next`.
    pub(crate) fn take_in(&mut self, messages: Vec<Arc<ReceivedMessage>>, next: i64) {
        for message in messages {
            let offset = message.queue_offset();
            assert!(offset >= self.next_pull && offset < next, "{offset} outside {}..{next}", self.next_pull);
            let cost_bytes = message.cost_bytes();
            self.cost_bytes += cost_bytes;
            let twice = self.unfinished.insert(offset, Unfinished { cost_bytes, is_running: false });
            assert!(twice.is_none(), "offset {offset} was taken in twice");
            self.waiting.push_back(message);
        }
        self.skip_to(next);
    }

    /// There is nothing wanted before `next`. An offset that lies behind is ignored: a replica that lags may give one.
    pub(crate) fn skip_to(&mut self, next: i64) {
        self.next_pull = self.next_pull.max(next);
    }

    /// Hands out the first message that waits. It runs until it is finished.
    pub(crate) fn start_next(&mut self) -> Option<Arc<ReceivedMessage>> {
        let message = self.waiting.pop_front()?;
        let unfinished = self.unfinished.get_mut(&message.queue_offset()).expect("what waits is unfinished");
        unfinished.is_running = true;
        self.running += 1;
        Some(message)
    }

    /// The message at `offset` has left its handler, but what becomes of it is not settled yet.
    pub(crate) fn pause(&mut self, offset: i64) {
        if let Some(unfinished) = self.unfinished.get_mut(&offset)
            && std::mem::take(&mut unfinished.is_running)
        {
            self.running -= 1;
        }
    }

    /// The message at `offset` is done with, and will not be asked for again.
    pub(crate) fn finish(&mut self, offset: i64) {
        let before = self.progress();
        if let Some(unfinished) = self.unfinished.remove(&offset) {
            self.cost_bytes -= unfinished.cost_bytes;
            self.running -= usize::from(unfinished.is_running);
        }
        assert!(self.progress() >= before, "progress went back from {before} to {}", self.progress());
    }

    /// Whether pulls must pause.
    pub(crate) fn is_full(&self, limits: &CacheLimits) -> bool {
        let span = self.unfinished.first_key_value().map_or(0, |(first, _)| self.next_pull - first);
        self.unfinished.len() >= limits.messages || self.cost_bytes >= limits.bytes || span > limits.span
    }

    /// Messages that handlers are working on.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// Messages here, their bytes, and the smallest and largest offset among them.
    pub(crate) fn cached(&self) -> (usize, usize, i64, i64) {
        let first = self.unfinished.first_key_value().map_or(0, |(offset, _)| *offset);
        let last = self.unfinished.last_key_value().map_or(0, |(offset, _)| *offset);
        (self.unfinished.len(), self.cost_bytes, first, last)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use protocol::body::MessageQueue;
    use protocol::record::{HeadPatch, NewRecord};
    use protocol::sys_flag::SysFlag;

    use super::*;

    pub(crate) fn message(queue_offset: i64) -> Arc<ReceivedMessage> {
        let record = NewRecord {
            topic: "T",
            queue_id: 0,
            flag: 0,
            sys_flag: SysFlag(0),
            born_timestamp: 1,
            born_host: "10.0.0.1:1".parse().unwrap(),
            store_timestamp: 2,
            store_host: "10.0.0.2:2".parse().unwrap(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: b"body",
            properties: "",
        };
        let mut bytes = record.to_bytes().unwrap().to_vec();
        HeadPatch { queue_offset, ..HeadPatch::default() }.apply(&mut bytes).unwrap();
        let queue = Arc::new(MessageQueue::new("T", "b", 0));
        Arc::new(ReceivedMessage::from_record(&bytes.into(), &queue).unwrap())
    }

    fn with(offsets: &[i64], next: i64) -> ProcessQueue {
        let mut queue = ProcessQueue::new(5);
        queue.take_in(offsets.iter().map(|offset| message(*offset)).collect(), next);
        queue
    }

    #[test]
    fn the_offset_to_store_is_the_smallest_that_is_not_finished() {
        let mut queue = with(&[5, 6, 9], 12);
        assert_eq!((queue.progress(), queue.next_pull()), (5, 12));
        for _ in 0..3 {
            queue.start_next().unwrap();
        }
        queue.finish(6);
        assert_eq!(queue.progress(), 5, "5 holds it back");
        queue.pause(5);
        assert_eq!((queue.progress(), queue.running()), (5, 1), "failed, and not yet given back");
        queue.finish(5);
        assert_eq!(queue.progress(), 9, "7 and 8 were not wanted");
        queue.finish(9);
        assert_eq!((queue.progress(), queue.running(), queue.cached()), (12, 0, (0, 0, 0, 0)));
        queue.skip_to(20);
        queue.skip_to(3);
        assert_eq!(queue.progress(), 20);
    }

    #[test]
    fn messages_come_out_in_order_and_once() {
        let mut queue = with(&[5, 7], 8);
        queue.take_in(vec![message(8)], 9);
        let order: Vec<i64> = std::iter::from_fn(|| queue.start_next()).map(|message| message.queue_offset()).collect();
        assert_eq!((order, queue.running()), (vec![5, 7, 8], 3));
        queue.finish(5);
        queue.finish(5);
        assert_eq!(queue.running(), 2, "finishing twice changes nothing");
    }

    #[test]
    fn pulls_pause_by_number_bytes_and_span() {
        let limits = CacheLimits { messages: 3, bytes: usize::MAX, span: 100 };
        assert!(!with(&[5, 6], 7).is_full(&limits) && with(&[5, 6, 7], 8).is_full(&limits));
        assert!(with(&[5], 106).is_full(&limits), "5 is slow and 100 others went past it");
        assert!(!with(&[], 106).is_full(&limits));
        let one = message(5).cost_bytes();
        let limits = CacheLimits { messages: 100, bytes: 2 * one, span: 100 };
        assert!(!with(&[5], 6).is_full(&limits) && with(&[5, 6], 7).is_full(&limits));
    }

    #[test]
    #[should_panic(expected = "outside 5..8")]
    fn a_message_from_before_the_pull_is_a_mistake() {
        with(&[4], 8);
    }

    #[test]
    fn progress_never_goes_back_nor_past_what_is_unfinished() {
        let seed = 0x5EED;
        let rng = env::Rng::seeded(seed);
        let mut queue = ProcessQueue::new(0);
        let (mut unfinished, mut running, mut progress) = (std::collections::BTreeSet::new(), Vec::new(), 0);
        for step in 0..5_000 {
            match rng.below(3) {
                0 => {
                    let first = queue.next_pull() + rng.below(3) as i64;
                    let offsets: Vec<i64> = (first..first + rng.below(4) as i64).collect();
                    let next = first + offsets.len() as i64 + rng.below(2) as i64;
                    queue.take_in(offsets.iter().map(|offset| message(*offset)).collect(), next);
                    unfinished.extend(offsets);
                }
                1 => running.extend(queue.start_next().map(|message| message.queue_offset())),
                _ if running.is_empty() => {}
                _ => {
                    let offset = running.swap_remove(rng.below(running.len() as u64) as usize);
                    queue.finish(offset);
                    unfinished.remove(&offset);
                }
            }
            let expected = unfinished.first().copied().unwrap_or(queue.next_pull());
            assert!(expected >= progress && queue.progress() == expected, "seed {seed:#x} step {step}");
            assert_eq!(queue.running(), running.len(), "seed {seed:#x} step {step}");
            progress = expected;
        }
    }
}

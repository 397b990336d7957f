//! A queue that this consumer has been given: what is shared between the task that runs it, the workers that consume its
//! messages and the session that may take it away.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use protocol::body::{MessageQueue, ProcessQueueInfo};
use tokio::sync::{Notify, watch};

use super::handler::Retry;
use super::process_queue::{CacheLimits, ProcessQueue};
use crate::message::ReceivedMessage;

/// Why a queue stops being consumed, and with it, what is stored as its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Another member gets it: the progress.
    Released,
    /// It is to begin anew at this offset.
    Reset(i64),
    /// The consumer shuts down: the progress, after what runs has been finished.
    Shutdown,
    /// Another member may have its lock: nothing, for the offset is the other's now.
    LockLost,
}

#[derive(Debug)]
pub(crate) struct OwnedQueue {
    pub(crate) queue: Arc<MessageQueue>,
    /// `None` until it is known where to begin.
    process: Mutex<Option<ProcessQueue>>,
    /// Messages that a handler failed, to be given back.
    failed: Mutex<Vec<(Arc<ReceivedMessage>, Retry)>>,
    /// There may be room for another pull.
    pub(crate) room: Notify,
    /// Messages have come, or a handler is done.
    pub(crate) activity: Notify,
    ending: watch::Sender<Option<Ending>>,
    /// Orderly: until when, in elapsed time, nobody else can hold the queue's lock.
    locked_until: Mutex<Option<Duration>>,
    /// The offset last sent to the broker, and when.
    told: Mutex<Option<(i64, Duration)>>,
    pub(crate) last_pull_ms: AtomicI64,
    pub(crate) last_consume_ms: AtomicI64,
}

impl OwnedQueue {
    pub(crate) fn new(queue: &Arc<MessageQueue>) -> OwnedQueue {
        OwnedQueue {
            queue: queue.clone(),
            process: Mutex::new(None),
            failed: Mutex::new(Vec::new()),
            room: Notify::new(),
            activity: Notify::new(),
            ending: watch::Sender::new(None),
            locked_until: Mutex::new(None),
            told: Mutex::new(None),
            last_pull_ms: AtomicI64::new(0),
            last_consume_ms: AtomicI64::new(0),
        }
    }

    /// Ends it; the first reason counts.
    pub(crate) fn end(&self, ending: Ending) {
        self.ending.send_if_modified(|current| {
            let is_first = current.is_none();
            if is_first {
                *current = Some(ending);
            }
            is_first
        });
    }

    pub(crate) fn ending(&self) -> Option<Ending> {
        *self.ending.borrow()
    }

    /// Resolves when the queue ends. Cancel-safe.
    pub(crate) async fn ended(&self) {
        let mut ending = self.ending.subscribe();
        // The sender is in `self`, so the channel cannot close under the wait.
        let _ = ending.wait_for(Option::is_some).await;
    }

    /// The result of `future`, or `None` if the queue ends first.
    pub(crate) async fn until_ended<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.ended() => None,
            result = future => Some(result),
        }
    }

    pub(crate) fn begin_at(&self, offset: i64) {
        *self.process.lock() = Some(ProcessQueue::new(offset));
    }

    /// Works on the messages here. `None` if it is not yet known where the queue begins.
    pub(crate) fn with_process<T>(&self, work: impl FnOnce(&mut ProcessQueue) -> T) -> Option<T> {
        self.process.lock().as_mut().map(work)
    }

    /// The offset that may be stored.
    pub(crate) fn progress(&self) -> Option<i64> {
        self.with_process(|process| process.progress())
    }

    pub(crate) fn is_full(&self, limits: &CacheLimits) -> bool {
        self.with_process(|process| process.is_full(limits)).unwrap_or(false)
    }

    /// The next message to consume; none any more once the queue has ended.
    pub(crate) fn start_next(&self) -> Option<Arc<ReceivedMessage>> {
        let mut process = self.process.lock();
        if self.ending().is_some() {
            return None;
        }
        process.as_mut()?.start_next()
    }

    pub(crate) fn finish(&self, offset: i64) {
        self.with_process(|process| process.finish(offset));
        self.room.notify_one();
        self.activity.notify_one();
    }

    /// Nobody will handle the message here any more: it holds the offset, and comes again to whoever has the queue next.
    pub(crate) fn leave(&self, offset: i64) {
        self.with_process(|process| process.pause(offset));
        self.activity.notify_one();
    }

    /// A handler failed the message: it is held until [`OwnedQueue::finish`].
    pub(crate) fn fail(&self, message: Arc<ReceivedMessage>, retry: Retry) {
        self.with_process(|process| process.pause(message.queue_offset()));
        self.failed.lock().push((message, retry));
        self.activity.notify_one();
    }

    /// Takes up to `most` of the failed messages.
    pub(crate) fn take_failed(&self, most: usize) -> Vec<(Arc<ReceivedMessage>, Retry)> {
        let mut failed = self.failed.lock();
        let count = failed.len().min(most);
        failed.drain(..count).collect()
    }

    /// Whether no handler works on its messages and none waits to be given back.
    pub(crate) fn is_quiet(&self) -> bool {
        self.with_process(|process| process.running()).unwrap_or(0) == 0 && self.failed.lock().is_empty()
    }

    pub(crate) fn set_locked_until(&self, until: Duration) {
        *self.locked_until.lock() = Some(until);
    }

    pub(crate) fn is_locked(&self, now: Duration) -> bool {
        self.locked_until.lock().is_some_and(|until| now < until)
    }

    /// Whether it was ever locked, so that there may be something to unlock.
    pub(crate) fn was_locked(&self) -> bool {
        self.locked_until.lock().is_some()
    }

    /// The offset to tell the broker now: one that it was not told yet, or not for `again_after`, because what was told
    /// one-way may have been lost.
    pub(crate) fn offset_to_tell(&self, now: Duration, again_after: Duration) -> Option<i64> {
        let progress = self.progress()?;
        let mut told = self.told.lock();
        let is_known = told.is_some_and(|(offset, at)| offset == progress && now < at + again_after);
        if is_known {
            return None;
        }
        *told = Some((progress, now));
        Some(progress)
    }

    /// What tools are told about it.
    pub(crate) fn info(&self, now: Duration) -> ProcessQueueInfo {
        let (count, bytes, first, last) = self.with_process(|process| process.cached()).unwrap_or_default();
        ProcessQueueInfo {
            cached_msg_count: count as i32,
            cached_msg_min_offset: first,
            cached_msg_max_offset: last,
            cached_msg_size_mib: (bytes >> 20) as i32,
            commit_offset: self.progress().unwrap_or(-1),
            droped: self.ending().is_some(),
            locked: self.is_locked(now),
            last_pull_timestamp: self.last_pull_ms.load(Ordering::Relaxed),
            last_consume_timestamp: self.last_consume_ms.load(Ordering::Relaxed),
            ..ProcessQueueInfo::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::process_queue::tests::message;
    use super::*;

    fn owned() -> OwnedQueue {
        OwnedQueue::new(&Arc::new(MessageQueue::new("T", "b", 0)))
    }

    #[tokio::test]
    async fn the_first_reason_to_end_counts_and_nothing_starts_after_it() {
        let owned = owned();
        owned.begin_at(5);
        owned.with_process(|process| process.take_in(vec![message(5), message(6)], 7));
        assert!(owned.start_next().is_some());
        assert_eq!(owned.until_ended(async { 1 }).await, Some(1));
        owned.end(Ending::Reset(2));
        owned.end(Ending::Shutdown);
        assert_eq!(owned.ending(), Some(Ending::Reset(2)));
        assert_eq!(owned.until_ended(std::future::pending::<()>()).await, None);
        assert!(owned.start_next().is_none());
    }

    #[test]
    fn a_failed_message_holds_the_offset_until_it_was_given_back() {
        let owned = owned();
        owned.begin_at(5);
        owned.with_process(|process| process.take_in(vec![message(5)], 6));
        let failed = owned.start_next().unwrap();
        assert!(!owned.is_quiet());
        owned.fail(failed, Retry::later("x"));
        assert!(!owned.is_quiet() && owned.progress() == Some(5));
        assert_eq!(owned.take_failed(8).len(), 1);
        assert!(owned.is_quiet() && owned.progress() == Some(5));
        owned.finish(5);
        assert_eq!(owned.progress(), Some(6));
    }

    #[test]
    fn a_message_that_was_left_holds_the_offset_and_nobody_waits_for_it() {
        let owned = owned();
        owned.begin_at(5);
        owned.with_process(|process| process.take_in(vec![message(5)], 6));
        let left = owned.start_next().unwrap();
        owned.leave(left.queue_offset());
        assert!(owned.is_quiet() && owned.progress() == Some(5));
    }

    #[test]
    fn an_offset_is_told_when_it_is_new_and_again_after_a_while() {
        let owned = owned();
        let (at, again) = (Duration::from_secs, Duration::from_secs(30));
        assert_eq!(owned.offset_to_tell(at(0), again), None, "nobody knows where it begins");
        owned.begin_at(5);
        assert_eq!(owned.offset_to_tell(at(0), again), Some(5));
        assert_eq!(owned.offset_to_tell(at(5), again), None);
        assert_eq!(owned.offset_to_tell(at(30), again), Some(5));
        owned.with_process(|process| process.skip_to(6));
        assert_eq!(owned.offset_to_tell(at(31), again), Some(6));
    }

    #[test]
    fn a_lock_ends_by_itself() {
        let owned = owned();
        assert!(!owned.is_locked(Duration::ZERO) && !owned.was_locked());
        owned.set_locked_until(Duration::from_secs(30));
        assert!(owned.is_locked(Duration::from_secs(29)) && !owned.is_locked(Duration::from_secs(30)));
    }
}

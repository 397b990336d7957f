//! Who pops, and who waits: one request of a group looks at a queue at a time, and those that found nothing are told when
//! another look is worth it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OwnedMutexGuard};

use crate::tables::offsets::OffsetKey;

/// Parked requests of one group on one topic, and all together: `popPollingSize`, `maxPopPollingSize`.
const PARKED_MAX: usize = 1024;
const PARKED_IN_ALL_MAX: usize = 100_000;

/// Soft state of the leader.
#[derive(Debug, Default)]
pub(crate) struct Popping {
    /// Queues that somebody looks at, or waits to.
    looks: Mutex<BTreeMap<OffsetKey, Arc<tokio::sync::Mutex<()>>>>,
    /// Requests by group and topic.
    waiting: Mutex<BTreeMap<(String, String), Arc<Waiting>>>,
    parked: AtomicUsize,
    /// Where the next look at a topic's queues begins.
    turn: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    bell: Notify,
    count: AtomicUsize,
    /// Those of them that something keeps from a queue.
    blocked: AtomicUsize,
}

impl Popping {
    /// The right to look at the queue for the group, which nobody else has until this is dropped. `None`: somebody has it.
    pub fn try_turn(&self, key: OffsetKey) -> Option<Turn<'_>> {
        let guard = self.look(&key).try_lock_owned().ok()?;
        Some(Turn { popping: self, key, guard: Some(guard) })
    }

    /// The same, in turn.
    pub async fn turn(&self, key: OffsetKey) -> Turn<'_> {
        let guard = self.look(&key).lock_owned().await;
        Turn { popping: self, key, guard: Some(guard) }
    }

    fn look(&self, key: &OffsetKey) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.looks.lock().entry(key.clone()).or_default())
    }

    pub fn park(&self, group: &str, topic: &str) -> Parked<'_> {
        self.parked.fetch_add(1, Ordering::Relaxed);
        let key = (group.to_owned(), topic.to_owned());
        let waiting = Arc::clone(self.waiting.lock().entry(key.clone()).or_default());
        waiting.count.fetch_add(1, Ordering::Relaxed);
        Parked { popping: self, key, waiting, is_blocked: AtomicBool::new(false) }
    }

    /// At which of `queues` queues the next look begins: not always at the same.
    pub fn next_turn(&self, queues: usize) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % queues.max(1)
    }

    /// How many requests of the group wait for messages of the topic.
    pub fn parked(&self, group: &str, topic: &str) -> usize {
        let key = (group.to_owned(), topic.to_owned());
        self.waiting.lock().get(&key).map_or(0, |waiting| waiting.count.load(Ordering::Relaxed))
    }

    /// A message is done: those may go on that it kept from its queue.
    pub fn message_done(&self, group: &str, topic: &str) {
        self.ring(group, topic, |waiting| waiting.blocked.load(Ordering::SeqCst) > 0);
    }

    /// A lease ends at another time.
    pub fn lease_changed(&self, group: &str, topic: &str) {
        self.ring(group, topic, |_| true);
    }

    fn ring(&self, group: &str, topic: &str, rings: impl FnOnce(&Waiting) -> bool) {
        let key = (group.to_owned(), topic.to_owned());
        if let Some(waiting) = self.waiting.lock().get(&key).filter(|waiting| rings(waiting)) {
            waiting.bell.notify_waiters();
        }
    }
}

/// The right to look at a queue.
pub(crate) struct Turn<'a> {
    popping: &'a Popping,
    key: OffsetKey,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut looks = self.popping.looks.lock();
        drop(self.guard.take());
        if looks.get(&self.key).is_some_and(|look| Arc::strong_count(look) == 1) {
            looks.remove(&self.key);
        }
    }
}

/// A request that may wait.
pub(crate) struct Parked<'a> {
    popping: &'a Popping,
    key: (String, String),
    waiting: Arc<Waiting>,
    is_blocked: AtomicBool,
}

impl Parked<'_> {
    /// Rings when another look is worth it.
    pub fn bell(&self) -> Notified<'_> {
        self.waiting.bell.notified()
    }

    /// Whether it may wait beside those who do.
    pub fn has_room(&self) -> bool {
        self.waiting.count.load(Ordering::Relaxed) <= PARKED_MAX
            && self.popping.parked.load(Ordering::Relaxed) <= PARKED_IN_ALL_MAX
    }

    /// Whether something keeps it from a queue. Said before it looks: what ends meanwhile rings.
    pub fn is_blocked(&self, is_blocked: bool) {
        if self.is_blocked.swap(is_blocked, Ordering::SeqCst) != is_blocked {
            if is_blocked {
                self.waiting.blocked.fetch_add(1, Ordering::SeqCst);
            } else {
                self.waiting.blocked.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.is_blocked(false);
        self.popping.parked.fetch_sub(1, Ordering::Relaxed);
        let mut waiting = self.popping.waiting.lock();
        if self.waiting.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            waiting.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_looks_at_a_queue_at_a_time() {
        let popping = Popping::default();
        let key = |queue| OffsetKey { group: "g".to_owned(), topic: "t".to_owned(), queue };
        let turn = popping.try_turn(key(0)).expect("it is free");
        assert!(popping.try_turn(key(0)).is_none());
        assert!(popping.try_turn(key(1)).is_some());
        let mut next = Box::pin(popping.turn(key(0)));
        assert!(futures::poll!(&mut next).is_pending());
        drop(turn);
        drop(next.await);
        assert!(popping.looks.lock().is_empty());
    }

    #[tokio::test]
    async fn who_was_kept_from_a_queue_is_told_when_a_message_is_done() {
        let popping = Popping::default();
        {
            let (one, other) = (popping.park("g", "t"), popping.park("g", "t"));
            assert_eq!((popping.parked("g", "t"), popping.parked("g", "s")), (2, 0));
            let mut bell = Box::pin(one.bell());
            bell.as_mut().enable();
            popping.message_done("g", "t");
            assert!(futures::poll!(&mut bell).is_pending(), "nobody is kept from anything");
            one.is_blocked(true);
            popping.message_done("g", "t");
            bell.await;
            one.is_blocked(false);
            let mut bell = Box::pin(other.bell());
            bell.as_mut().enable();
            popping.lease_changed("g", "t");
            bell.await;
        }
        assert!(popping.waiting.lock().is_empty() && popping.parked.load(Ordering::Relaxed) == 0);
    }
}

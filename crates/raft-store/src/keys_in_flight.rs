//! Keys in flight: what keeps two copies of one message from being proposed at the same time.
//!
//! A message that is sent twice under one unique key is to be stored once. Who proposes it holds its key first, then looks
//! whether a message with the key is there, and proposes. Why no second copy slips through:
//!
//! - **Same leader, same term.** The second copy waits for the key. It is free when the outcome of the first copy is
//!   certain: the holder travels with the submission, which ends when apply has answered it. If it was placed, what apply
//!   made of it, index rows and pending rows, was there before; the second copy finds it when it looks.
//! - **Another leader, or another term.** The holder remembers the term that this node served when it got the key, and a
//!   submission is proposed in that term only. In it this node's own `Lead` was applied when the second copy looked, so
//!   everything of earlier terms that will ever be committed was applied too, whoever proposed it, and was found. What is
//!   not applied by then never will be. Copies of later terms stand behind, and find this one in turn.
//! - **An unknown outcome** is unknown to the client that stops waiting. Here the submission goes on, and holds the key,
//!   until something is applied in its place, or until this node's log is covered by an image: then it does not lead, and
//!   the second case holds when it does again.
//! - **A forwarded request** is a request at the leader like any other; a forwarding replica decides nothing.
//!
//! Keys are held by their hashes: of two with one hash the second waits for nothing, and then looks for itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::planted::{self, Bug};

/// The keys that are held at this node.
#[derive(Debug, Default)]
pub struct KeysInFlight {
    held: Mutex<BTreeSet<u64>>,
    freed: Notify,
}

/// Keys held, until this is dropped.
#[derive(Debug)]
pub struct HeldKeys {
    keys: Vec<u64>,
    of: Arc<KeysInFlight>,
    /// What is proposed for them is proposed in this term or not at all.
    pub(crate) term: u64,
}

impl KeysInFlight {
    /// Holds all of `keys`, which are distinct, as soon as nobody else holds any. Nothing is held if the future is dropped.
    pub(crate) async fn hold(self: &Arc<KeysInFlight>, keys: Vec<u64>) -> HeldKeys {
        // Nearly always the first look is enough, and nobody registers to be woken.
        while !self.take(&keys) {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Registered before looking, so that a key is either seen free or its holder wakes us.
            freed.as_mut().enable();
            if self.take(&keys) {
                break;
            }
            freed.await;
        }
        HeldKeys { keys, of: self.clone(), term: 0 }
    }

    /// Whether nobody else held any of them: then they are held.
    fn take(&self, keys: &[u64]) -> bool {
        let mut held = self.held.lock();
        let are_free = planted::is(Bug::KeysNotHeld) || !keys.iter().any(|key| held.contains(key));
        if are_free {
            held.extend(keys);
        }
        are_free
    }
}

impl Drop for HeldKeys {
    fn drop(&mut self) {
        let mut held = self.of.held.lock();
        for key in &self.keys {
            held.remove(key);
        }
        drop(held);
        self.of.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_key_is_held_by_one_and_several_are_held_together_or_not_at_all() {
        let keys = Arc::<KeysInFlight>::default();
        let first = keys.hold(vec![1, 2]).now_or_never().expect("nobody else holds any");
        let mut second = Box::pin(keys.hold(vec![2, 3]));
        assert!(second.as_mut().now_or_never().is_none(), "the first holds one of them");
        let third = keys.hold(vec![3]).now_or_never().expect("who waits holds nothing");
        drop(first);
        assert!(second.as_mut().now_or_never().is_none(), "the third holds the other one");
        drop(third);
        let second = second.now_or_never().expect("both are free");
        assert!(keys.hold(vec![3]).now_or_never().is_none());
        drop(second);
        assert!(keys.held.lock().is_empty());
    }
}

//! Queue locks of orderly consumers: leases in group time, held by one client of a group.
//!
//! A lease is not a mutual exclusion for the outside world: it ends by time, whatever its holder is doing.

use std::collections::BTreeMap;

use raft_store::codec::{Decode, Encode};
use raft_store::planted::{self, Bug};
use raft_store::position::Timestamp;

use super::offsets::OffsetKey;

/// Who holds a queue, and until when.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct QueueLock {
    /// The client that holds it.
    pub client: String,
    /// Group time, in milliseconds, from which on anybody may take it.
    pub expires_ms: i64,
}

/// All queue locks, keyed as consumer offsets are.
#[derive(Debug, Default)]
pub struct QueueLocks {
    rows: BTreeMap<OffsetKey, QueueLock>,
}

impl QueueLocks {
    /// Who holds the queue at `now`.
    pub fn holder(&self, key: &OffsetKey, now: Timestamp) -> Option<&str> {
        self.rows.get(key).filter(|lock| lock.expires_ms > now.0).map(|lock| lock.client.as_str())
    }

    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// Whether any queue of the group is held at `now`: the mark of an orderly group.
    pub fn group_holds_any(&self, group: &str, now: Timestamp) -> bool {
        let first = OffsetKey { group: group.to_owned(), topic: String::new(), queue: 0 };
        self.rows.range(first..).take_while(|(key, _)| key.group == group).any(|(_, lock)| lock.expires_ms > now.0)
    }

    /// Takes or renews a lease. `None` if another client holds it.
    pub(super) fn lock(&mut self, key: &OffsetKey, client: &str, now: Timestamp, lease_ms: i64) -> Option<&QueueLock> {
        if self.holder(key, now).is_some_and(|holder| holder != client) && !planted::is(Bug::LockTwice) {
            return None;
        }
        let lock = QueueLock { client: client.to_owned(), expires_ms: now.0.saturating_add(lease_ms) };
        self.rows.insert(key.clone(), lock);
        self.rows.get(key)
    }

    /// Gives a queue back; whether the client held it.
    pub(super) fn unlock(&mut self, key: &OffsetKey, client: &str) -> bool {
        let held = self.rows.get(key).is_some_and(|lock| lock.client == client);
        if held {
            self.rows.remove(key);
        }
        held
    }

    /// Extends every lease that ran at the last group time by the time without a leader: nobody could renew then.
    pub(super) fn extend(&mut self, now: Timestamp, gap_ms: i64) -> impl Iterator<Item = (&OffsetKey, &QueueLock)> {
        let last = now.0 - gap_ms;
        self.rows.iter_mut().filter(move |(_, lock)| lock.expires_ms > last).map(move |(key, lock)| {
            lock.expires_ms = lock.expires_ms.saturating_add(gap_ms);
            (key, &*lock)
        })
    }

    /// Forgets the group's leases that have ended: nobody else would, when their holders are gone for good.
    pub(super) fn forget_ended(&mut self, group: &str, now: Timestamp) -> Vec<OffsetKey> {
        let first = OffsetKey { group: group.to_owned(), topic: String::new(), queue: 0 };
        let of_group = self.rows.range(first..).take_while(|(key, _)| key.group == group);
        let ended: Vec<OffsetKey> =
            of_group.filter(|(_, lock)| lock.expires_ms <= now.0).map(|(key, _)| key.clone()).collect();
        for key in &ended {
            self.rows.remove(key);
        }
        ended
    }

    /// Forgets what `forget` says; the keys of the rows that are gone.
    pub(super) fn forget(&mut self, forget: impl Fn(&OffsetKey) -> bool) -> Vec<OffsetKey> {
        let gone: Vec<OffsetKey> = self.rows.keys().filter(|key| forget(key)).cloned().collect();
        for key in &gone {
            self.rows.remove(key);
        }
        gone
    }

    /// A row as it was stored.
    pub(super) fn restore(&mut self, key: OffsetKey, lock: QueueLock) {
        self.rows.insert(key, lock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(queue: u32) -> OffsetKey {
        OffsetKey { group: "g".to_owned(), topic: "t".to_owned(), queue }
    }

    #[test]
    fn a_lease_is_one_client_s_until_it_ends() {
        let mut locks = QueueLocks::default();
        assert!(locks.lock(&key(0), "a", Timestamp(1000), 60_000).is_some());
        assert!(locks.lock(&key(0), "b", Timestamp(2000), 60_000).is_none());
        assert!(locks.lock(&key(0), "a", Timestamp(30_000), 60_000).is_some(), "renewed");
        assert_eq!(locks.holder(&key(0), Timestamp(89_999)), Some("a"));
        assert_eq!(locks.holder(&key(0), Timestamp(90_000)), None);
        assert!(locks.lock(&key(0), "b", Timestamp(90_000), 60_000).is_some());
        assert!(!locks.unlock(&key(0), "a"), "no longer its own");
        assert!(locks.unlock(&key(0), "b"));
    }

    #[test]
    fn ended_leases_of_a_group_are_forgotten_and_no_others() {
        let mut locks = QueueLocks::default();
        let of = |group: &str, queue| OffsetKey { group: group.to_owned(), ..key(queue) };
        locks.lock(&of("f", 0), "a", Timestamp(0), 1_000);
        locks.lock(&of("g", 0), "a", Timestamp(0), 1_000);
        locks.lock(&of("g", 1), "a", Timestamp(0), 1_001);
        locks.lock(&of("ga", 0), "a", Timestamp(0), 1_000);
        assert!(locks.forget_ended("g", Timestamp(999)).is_empty());
        assert_eq!(locks.forget_ended("g", Timestamp(1_000)), [of("g", 0)]);
        assert_eq!(locks.count(), 3);
    }

    #[test]
    fn time_without_a_leader_does_not_count() {
        let mut locks = QueueLocks::default();
        locks.lock(&key(0), "a", Timestamp(1000), 60_000);
        locks.lock(&key(1), "a", Timestamp(1000), 500);
        // The last entry was stamped 2000: the second lease had ended by then, the first had 59 s left.
        let extended = locks.extend(Timestamp(102_000), 100_000).count();
        assert_eq!(extended, 1);
        assert_eq!(locks.holder(&key(0), Timestamp(160_999)), Some("a"));
        assert_eq!(locks.holder(&key(0), Timestamp(161_000)), None);
        assert!(locks.group_holds_any("g", Timestamp(103_000)));
        assert!(!locks.group_holds_any("f", Timestamp(103_000)));
    }
}

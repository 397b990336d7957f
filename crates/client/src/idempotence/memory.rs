//! Seen messages in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Claim, Seen, SeenStore, StoreError};

/// Remembers in memory, up to a number of messages; beyond it what would be forgotten next is forgotten early. For a program
/// of one process that may consume a message again after a restart, and for tests.
#[derive(Debug)]
pub struct MemorySeenStore {
    capacity: usize,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    by_key: BTreeMap<String, Note>,
    /// The same, by the time when they end.
    by_end: BTreeSet<(i64, String)>,
    forgotten: u64,
}

#[derive(Debug, Clone, Copy)]
struct Note {
    until_ms: i64,
    /// Of the claim; `None` for what is done.
    token: Option<u64>,
}

impl Notes {
    fn put(&mut self, key: &str, note: Note) {
        self.remove(key);
        self.by_end.insert((note.until_ms, key.to_owned()));
        self.by_key.insert(key.to_owned(), note);
    }

    fn remove(&mut self, key: &str) {
        if let Some((key, note)) = self.by_key.remove_entry(key) {
            self.by_end.remove(&(note.until_ms, key));
        }
    }

    fn end(&mut self, now_ms: i64) {
        while self.by_end.first().is_some_and(|(until_ms, _)| *until_ms <= now_ms) {
            let (_, key) = self.by_end.pop_first().expect("it was just seen");
            self.by_key.remove(&key);
        }
    }

    /// Claims are never forgotten early: they are as few as handlers that run.
    fn make_room(&mut self, capacity: usize) {
        while self.by_key.len() > capacity {
            let is_done = |(_, key): &&(i64, String)| self.by_key[key].token.is_none();
            let Some((_, key)) = self.by_end.iter().find(is_done).cloned() else { return };
            self.remove(&key);
            self.forgotten += 1;
        }
    }
}

impl MemorySeenStore {
    /// Remembers at most `capacity` messages, some 150 bytes and two keys each.
    pub fn new(capacity: usize) -> MemorySeenStore {
        MemorySeenStore { capacity, notes: Mutex::default() }
    }

    /// Messages that were forgotten early. More than 0: the capacity is too small for what is kept.
    pub fn forgotten(&self) -> u64 {
        self.notes.lock().forgotten
    }
}

impl SeenStore for MemorySeenStore {
    async fn claim(&self, key: &str, claim: Claim) -> Result<Seen, StoreError> {
        let mut notes = self.notes.lock();
        notes.end(claim.now_ms);
        if let Some(Note { until_ms, token }) = notes.by_key.get(key).copied() {
            return Ok(if token.is_some() { Seen::InProgress { until_ms } } else { Seen::Done });
        }
        let until_ms = claim.now_ms.saturating_add(claim.lease.as_millis() as i64);
        notes.put(key, Note { until_ms, token: Some(claim.token) });
        notes.make_room(self.capacity);
        Ok(Seen::New)
    }

    async fn done(&self, key: &str, now_ms: i64, keep: Duration) -> Result<(), StoreError> {
        let mut notes = self.notes.lock();
        notes.put(key, Note { until_ms: now_ms.saturating_add(keep.as_millis() as i64), token: None });
        notes.make_room(self.capacity);
        Ok(())
    }

    async fn release(&self, key: &str, token: u64) -> Result<(), StoreError> {
        let mut notes = self.notes.lock();
        if notes.by_key.get(key).is_some_and(|note| note.token == Some(token)) {
            notes.remove(key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{has_one_winner, keeps_its_word};
    use super::*;

    #[tokio::test]
    async fn it_keeps_its_word() {
        keeps_its_word(&MemorySeenStore::new(100)).await;
        has_one_winner(Arc::new(MemorySeenStore::new(100))).await;
    }

    #[tokio::test]
    async fn beyond_its_capacity_it_forgets_what_ends_first_and_says_so() {
        let store = MemorySeenStore::new(2);
        for (key, keep) in [("a", 2), ("b", 1), ("c", 3)] {
            store.done(key, 0, Duration::from_secs(keep)).await.unwrap();
        }
        let claim = Claim { token: 1, now_ms: 0, lease: Duration::from_secs(1) };
        assert_eq!(store.forgotten(), 1);
        assert_eq!(store.claim("c", claim).await.unwrap(), Seen::Done);
        assert_eq!(store.claim("b", claim).await.unwrap(), Seen::New, "it was forgotten");
        assert_eq!(store.forgotten(), 2, "there was no room for the claim");
        let notes = store.notes.lock();
        assert_eq!((notes.by_key.len(), notes.by_end.len()), (2, 2));
    }
}

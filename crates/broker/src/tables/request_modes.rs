//! Request modes: whether a group's consumers pull or pop the messages of a topic, where the broker divides its queues.

use std::collections::BTreeMap;

use raft_store::codec::{Decode, Encode};

/// Whose, of what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct ModeKey {
    /// The consumer group.
    pub group: String,
    /// The topic.
    pub topic: String,
}

/// What RocketMQ calls MessageRequestMode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RequestMode {
    /// By offset; each queue is one consumer's.
    Pull,
    /// By lease.
    Pop {
        /// How many other consumers share a consumer's queues; all queues are everybody's if it is 0.
        shared_by: u32,
    },
}

/// Those that were set.
#[derive(Debug, Default)]
pub struct RequestModes {
    rows: BTreeMap<ModeKey, RequestMode>,
}

impl RequestModes {
    /// What was set for the group and the topic.
    pub fn get(&self, group: &str, topic: &str) -> Option<RequestMode> {
        self.rows.get(&ModeKey { group: group.to_owned(), topic: topic.to_owned() }).copied()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn put(&mut self, key: ModeKey, mode: RequestMode) {
        self.rows.insert(key, mode);
    }

    /// Forgets what `forget` says; the keys of the rows that are gone.
    pub(super) fn forget(&mut self, forget: impl Fn(&ModeKey) -> bool) -> Vec<ModeKey> {
        let gone: Vec<ModeKey> = self.rows.keys().filter(|key| forget(key)).cloned().collect();
        for key in &gone {
            self.rows.remove(key);
        }
        gone
    }
}

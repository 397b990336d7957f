//! Consumer groups by name.

use std::collections::BTreeMap;

use raft_store::codec::{Decode, Encode};

/// What RocketMQ calls SubscriptionGroupConfig.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GroupConfig {
    /// Name, valid by `protocol::names`.
    pub name: String,
    /// Whether the group may consume at all.
    pub consume_enabled: bool,
    /// Whether consuming from the first offset is allowed.
    pub consume_from_min_enabled: bool,
    /// Whether broadcasting is allowed.
    pub broadcast_enabled: bool,
    /// Marked as orderly by an operator.
    pub orderly: bool,
    /// Queues of the retry topic.
    pub retry_queues: u32,
    /// Deliveries after the first one, before a message goes to the dead-letter topic.
    pub max_retries: i32,
    /// Kept for tools: which replica to suggest. 0 = the leader.
    pub broker_id: u64,
    /// Kept for tools: which replica to suggest to a slow consumer.
    pub broker_id_when_slow: u64,
    /// Whether members are told when membership changes.
    pub notify_members: bool,
    /// Kept for tools.
    pub system_flag: i32,
    /// Minutes a message may be in a consumer's hands; the client acts on it.
    pub consume_timeout_minutes: i32,
    /// Attributes, without the `+` of a request.
    pub attributes: BTreeMap<String, String>,
}

impl GroupConfig {
    /// RocketMQ's defaults.
    pub fn new(name: impl Into<String>) -> GroupConfig {
        GroupConfig {
            name: name.into(),
            consume_enabled: true,
            consume_from_min_enabled: true,
            broadcast_enabled: true,
            orderly: false,
            retry_queues: 1,
            max_retries: 16,
            broker_id: 0,
            broker_id_when_slow: 1,
            notify_members: true,
            system_flag: 0,
            consume_timeout_minutes: 15,
            attributes: BTreeMap::new(),
        }
    }
}

/// All consumer groups.
#[derive(Debug, Default)]
pub struct Groups {
    by_name: BTreeMap<String, GroupConfig>,
}

impl Groups {
    /// The group of that name.
    pub fn get(&self, name: &str) -> Option<&GroupConfig> {
        self.by_name.get(name)
    }

    /// All groups, by name.
    pub fn iter(&self) -> impl Iterator<Item = &GroupConfig> {
        self.by_name.values()
    }

    /// How many groups there are.
    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    /// Creates the group or replaces its configuration; whether anything changed.
    pub(super) fn put(&mut self, config: GroupConfig, only_if_absent: bool) -> bool {
        let known = self.by_name.get(&config.name);
        let changes = known.is_none_or(|known| !only_if_absent && *known != config);
        if changes {
            self.by_name.insert(config.name.clone(), config);
        }
        changes
    }

    /// Removes the group; whether it was there.
    pub(super) fn delete(&mut self, name: &str) -> bool {
        self.by_name.remove(name).is_some()
    }
}

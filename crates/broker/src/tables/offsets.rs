//! Consumer offsets: for each (group, topic, queue) the next queue offset to consume.

use std::collections::BTreeMap;

use raft_store::codec::{Decode, Encode};
use raft_store::planted::{self, Bug};

use super::command::OffsetUpdate;

/// Whose offset, on which queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct OffsetKey {
    /// The consumer group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// RocketMQ's queueId.
    pub queue: u32,
}

/// A consumer offset and who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConsumerOffset {
    /// Next queue offset to consume.
    pub offset: u64,
    /// The client that wrote last; empty if it did not say.
    pub client: String,
}

/// All consumer offsets.
#[derive(Debug, Default)]
pub struct ConsumerOffsets {
    rows: BTreeMap<OffsetKey, ConsumerOffset>,
}

impl ConsumerOffsets {
    /// The group's offset on that queue.
    pub fn get(&self, group: &str, topic: &str, queue: u32) -> Option<u64> {
        let key = OffsetKey { group: group.to_owned(), topic: topic.to_owned(), queue };
        self.rows.get(&key).map(|row| row.offset)
    }

    /// Every offset of a group, in order of topic and queue.
    pub fn of_group<'a>(&'a self, group: &'a str) -> impl Iterator<Item = (&'a OffsetKey, u64)> {
        let first = OffsetKey { group: group.to_owned(), topic: String::new(), queue: 0 };
        self.rows.range(first..).take_while(move |(key, _)| key.group == group).map(|(key, row)| (key, row.offset))
    }

    /// Every offset, in order of group, topic and queue.
    pub fn iter(&self) -> impl Iterator<Item = (&OffsetKey, u64)> {
        self.rows.iter().map(|(key, row)| (key, row.offset))
    }

    /// Applies an update; the row if it changed.
    ///
    /// A two-way update sets the value, lower or higher. A one-way update that arrives late must not undo a newer one:
    /// a lower value counts only if it comes from the client that wrote last, which knows its own order.
    pub(super) fn update(&mut self, update: &OffsetUpdate) -> Option<(&OffsetKey, &ConsumerOffset)> {
        let key = OffsetKey { group: update.group.clone(), topic: update.topic.clone(), queue: update.queue };
        let wanted = ConsumerOffset { offset: update.offset, client: update.client.clone() };
        if let Some(known) = self.rows.get(&key) {
            let late = update.one_way
                && update.offset < known.offset
                && (update.client.is_empty() || update.client != known.client);
            if late && !planted::is(Bug::OffsetBackwards) || *known == wanted {
                return None;
            }
        }
        self.rows.insert(key.clone(), wanted);
        self.rows.get_key_value(&key)
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
    pub(super) fn restore(&mut self, key: OffsetKey, row: ConsumerOffset) {
        self.rows.insert(key, row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(offset: u64, client: &str, one_way: bool) -> OffsetUpdate {
        OffsetUpdate {
            group: "g".to_owned(),
            topic: "t".to_owned(),
            queue: 0,
            offset,
            client: client.to_owned(),
            one_way,
        }
    }

    #[test]
    fn a_late_one_way_update_moves_nothing_back() {
        let mut offsets = ConsumerOffsets::default();
        offsets.update(&update(10, "a", true));
        assert!(offsets.update(&update(7, "b", true)).is_none());
        assert_eq!(offsets.get("g", "t", 0), Some(10));
        assert!(offsets.update(&update(7, "a", true)).is_some(), "its own writer may go back");
        assert!(offsets.update(&update(5, "b", false)).is_some(), "a two-way update sets the value");
        assert_eq!(offsets.get("g", "t", 0), Some(5));
        assert!(offsets.update(&update(5, "b", false)).is_none(), "no change, no row to write");
    }

    #[test]
    fn nobody_in_particular_is_not_the_client_that_wrote_last() {
        let mut offsets = ConsumerOffsets::default();
        offsets.update(&update(10, "", true));
        assert!(offsets.update(&update(7, "", true)).is_none());
    }

    #[test]
    fn a_group_s_offsets_stand_together() {
        let mut offsets = ConsumerOffsets::default();
        for (group, topic, queue) in [("g", "t", 1), ("g", "s", 0), ("ga", "t", 0), ("f", "t", 0)] {
            offsets.update(&OffsetUpdate {
                group: group.to_owned(),
                topic: topic.to_owned(),
                queue,
                ..update(1, "a", false)
            });
        }
        let found: Vec<_> = offsets.of_group("g").map(|(key, _)| (key.topic.as_str(), key.queue)).collect();
        assert_eq!(found, [("s", 0), ("t", 1)]);
        let gone = offsets.forget(|key| key.group == "g");
        assert_eq!(gone.len(), 2);
        assert_eq!(offsets.iter().count(), 2);
    }
}

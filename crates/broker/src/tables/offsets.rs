//! Consumer offsets: for each (group, topic, queue) the next queue offset to consume.
//!
//! A reset sets an offset and stays in force until a consumer goes on from there: what others say meanwhile is about
//! messages that they had before, and does not count.

use std::collections::{BTreeMap, BTreeSet};

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
    /// Those that were reset, and that no consumer has gone on from. Each has its row.
    resets: BTreeSet<OffsetKey>,
}

/// What became of an update.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Updated<'a> {
    /// Nothing has changed.
    No,
    /// It was about what a consumer had before a reset.
    Overtaken,
    /// The row is this now.
    Row {
        /// Which.
        key: &'a OffsetKey,
        /// What it says.
        row: &'a ConsumerOffset,
        /// A reset is not in force any more.
        ends_reset: bool,
    },
}

impl ConsumerOffsets {
    /// The group's offset on that queue.
    pub fn get(&self, group: &str, topic: &str, queue: u32) -> Option<u64> {
        let key = OffsetKey { group: group.to_owned(), topic: topic.to_owned(), queue };
        self.rows.get(&key).map(|row| row.offset)
    }

    /// Where the group is to go on, if it was moved there and has not gone on yet.
    pub fn reset_of(&self, group: &str, topic: &str, queue: u32) -> Option<u64> {
        if self.resets.is_empty() {
            return None;
        }
        let key = OffsetKey { group: group.to_owned(), topic: topic.to_owned(), queue };
        self.resets.contains(&key).then(|| self.rows[&key].offset)
    }

    /// Every offset of a group on a topic: queue number and offset.
    pub fn of_topic<'a>(&'a self, group: &'a str, topic: &'a str) -> impl Iterator<Item = (u32, u64)> + 'a {
        let first = OffsetKey { group: group.to_owned(), topic: topic.to_owned(), queue: 0 };
        let rows = self.rows.range(first..).take_while(move |(key, _)| key.group == group && key.topic == topic);
        rows.map(|(key, row)| (key.queue, row.offset))
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

    /// Applies an update.
    ///
    /// A two-way update sets the value, lower or higher. A one-way update that arrives late must not undo a newer one:
    /// a lower value counts only if it comes from the client that wrote last, which knows its own order.
    pub(super) fn update(&mut self, update: &OffsetUpdate) -> Updated<'_> {
        let key = OffsetKey { group: update.group.clone(), topic: update.topic.clone(), queue: update.queue };
        let wanted = ConsumerOffset { offset: update.offset, client: update.client.clone() };
        let mut ends_reset = false;
        if let Some(known) = self.rows.get(&key) {
            if self.resets.contains(&key) {
                if known.offset != wanted.offset && !planted::is(Bug::ResetUndone) {
                    return Updated::Overtaken;
                }
                ends_reset = self.resets.remove(&key);
            }
            let late = update.one_way
                && update.offset < known.offset
                && (update.client.is_empty() || update.client != known.client);
            if late && !planted::is(Bug::OffsetBackwards) || *known == wanted && !ends_reset {
                return Updated::No;
            }
        }
        self.rows.insert(key.clone(), wanted);
        let (key, row) = self.rows.get_key_value(&key).expect("it was put there");
        Updated::Row { key, row, ends_reset }
    }

    /// Says where a group begins; nothing if it has an offset already.
    pub(super) fn begin_at(&mut self, key: OffsetKey, offset: u64) -> Option<(&OffsetKey, &ConsumerOffset)> {
        if self.rows.contains_key(&key) {
            return None;
        }
        self.rows.insert(key.clone(), ConsumerOffset { offset, client: String::new() });
        self.rows.get_key_value(&key)
    }

    /// Moves a group elsewhere, until a consumer has gone on from there.
    pub(super) fn reset(&mut self, key: OffsetKey, offset: u64) -> (&OffsetKey, &ConsumerOffset) {
        self.resets.insert(key.clone());
        self.rows.insert(key.clone(), ConsumerOffset { offset, client: String::new() });
        self.rows.get_key_value(&key).expect("it was put there")
    }

    /// Sets the offset of a group that pops, which has gone on from wherever it was moved to; the row if it changed, and
    /// whether a reset is not in force any more.
    pub(super) fn follow(&mut self, key: &OffsetKey, offset: u64) -> Option<(&ConsumerOffset, bool)> {
        let wanted = ConsumerOffset { offset, client: String::new() };
        let ends_reset = self.resets.remove(key);
        if self.rows.get(key) == Some(&wanted) && !ends_reset {
            return None;
        }
        self.rows.insert(key.clone(), wanted);
        self.rows.get(key).map(|row| (row, ends_reset))
    }

    /// Forgets what `forget` says; the keys of the rows that are gone, and of their resets.
    pub(super) fn forget(&mut self, forget: impl Fn(&OffsetKey) -> bool) -> Vec<OffsetKey> {
        let gone: Vec<OffsetKey> = self.rows.keys().filter(|key| forget(key)).cloned().collect();
        for key in &gone {
            self.rows.remove(key);
            self.resets.remove(key);
        }
        gone
    }

    /// A row as it was stored.
    pub(super) fn restore(&mut self, key: OffsetKey, row: ConsumerOffset) {
        self.rows.insert(key, row);
    }

    /// A reset as it was stored, behind its row. `false` if that is not there.
    pub(super) fn restore_reset(&mut self, key: OffsetKey) -> bool {
        let has_row = self.rows.contains_key(&key);
        if has_row {
            self.resets.insert(key);
        }
        has_row
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
        assert_eq!(offsets.update(&update(7, "b", true)), Updated::No);
        assert_eq!(offsets.get("g", "t", 0), Some(10));
        assert!(is_put(offsets.update(&update(7, "a", true))), "its own writer may go back");
        assert!(is_put(offsets.update(&update(5, "b", false))), "a two-way update sets the value");
        assert_eq!(offsets.get("g", "t", 0), Some(5));
        assert_eq!(offsets.update(&update(5, "b", false)), Updated::No, "no change, no row to write");
    }

    #[test]
    fn nobody_in_particular_is_not_the_client_that_wrote_last() {
        let mut offsets = ConsumerOffsets::default();
        offsets.update(&update(10, "", true));
        assert_eq!(offsets.update(&update(7, "", true)), Updated::No);
    }

    /// Consumers go on saying how far they have come until they hear of a reset; none of that undoes it.
    #[test]
    fn a_reset_holds_until_a_consumer_goes_on_from_there() {
        let key = || OffsetKey { group: "g".to_owned(), topic: "t".to_owned(), queue: 0 };
        let mut offsets = ConsumerOffsets::default();
        offsets.update(&update(100, "a", true));
        offsets.reset(key(), 10);
        assert_eq!((offsets.get("g", "t", 0), offsets.reset_of("g", "t", 0)), (Some(10), Some(10)));
        assert_eq!(offsets.reset_of("g", "t", 1), None);
        for late in [update(101, "a", true), update(101, "a", false), update(9, "b", false)] {
            assert_eq!(offsets.update(&late), Updated::Overtaken, "{late:?}");
        }
        let row = ConsumerOffset { offset: 10, client: "a".to_owned() };
        assert_eq!(offsets.update(&update(10, "a", true)), Updated::Row { key: &key(), row: &row, ends_reset: true });
        assert_eq!(offsets.reset_of("g", "t", 0), None);
        assert!(is_put(offsets.update(&update(11, "a", true))));
        // To where it is already, and again before anybody has heard.
        offsets.reset(key(), 11);
        offsets.reset(key(), 12);
        assert_eq!(offsets.update(&update(11, "a", true)), Updated::Overtaken);
        assert_eq!(offsets.forget(|key| key.group == "g").len(), 1);
        assert_eq!(offsets.reset_of("g", "t", 0), None);
        assert!(!offsets.restore_reset(key()), "no reset without an offset");
    }

    #[test]
    fn where_a_group_begins_is_said_once() {
        let key = || OffsetKey { group: "g".to_owned(), topic: "t".to_owned(), queue: 0 };
        let mut offsets = ConsumerOffsets::default();
        assert!(offsets.begin_at(key(), 7).is_some());
        assert!(offsets.begin_at(key(), 9).is_none());
        assert_eq!(offsets.get("g", "t", 0), Some(7));
        assert!(is_put(offsets.update(&update(8, "a", true))));
        assert_eq!(offsets.of_topic("g", "t").collect::<Vec<_>>(), [(0, 8)]);
        assert_eq!(offsets.of_topic("g", "").count(), 0);
    }

    fn is_put(updated: Updated<'_>) -> bool {
        matches!(updated, Updated::Row { .. })
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

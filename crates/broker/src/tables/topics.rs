//! Topics by name. A name's id is given once, for ever; a deleted topic keeps its row, so that its queues' offsets are
//! never given again.

use std::collections::BTreeMap;

use protocol::names::retry_topic;
use raft_store::codec::{Decode, Encode};
use raft_store::position::{QueueOffset, TopicId};

use super::groups::GroupConfig;

/// What RocketMQ calls TopicConfig.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TopicConfig {
    /// Name, valid by `protocol::names`.
    pub name: String,
    /// Queues that consumers see.
    pub read_queues: u32,
    /// Queues that producers see.
    pub write_queues: u32,
    /// Permission bits: 4 read, 2 write, 1 inherit.
    pub permission: u32,
    /// TOPIC sysFlag: 1 unit, 2 unit subscription.
    pub system_flag: u32,
    /// MULTI_TAG instead of SINGLE_TAG.
    pub multi_tag: bool,
    /// An order topic.
    pub order: bool,
    /// Attributes such as `message.type`, without the `+` of a request.
    pub attributes: BTreeMap<String, String>,
}

impl TopicConfig {
    /// An ordinary topic: readable, writable.
    pub fn new(name: impl Into<String>, queues: u32) -> TopicConfig {
        TopicConfig {
            name: name.into(),
            read_queues: queues,
            write_queues: queues,
            permission: 6,
            system_flag: 0,
            multi_tag: false,
            order: false,
            attributes: BTreeMap::new(),
        }
    }

    /// Queues there are: the larger of what is read and what is written.
    pub fn queues(&self) -> u32 {
        self.read_queues.max(self.write_queues)
    }

    /// The retry topic that belongs to a group; none if the group does not retry.
    pub fn retry_of(group: &GroupConfig) -> Option<TopicConfig> {
        (group.retry_queues > 0).then(|| TopicConfig::new(retry_topic(&group.name), group.retry_queues))
    }
}

impl From<&TopicConfig> for protocol::body::TopicConfig {
    fn from(config: &TopicConfig) -> protocol::body::TopicConfig {
        use protocol::body::TopicFilterType;
        protocol::body::TopicConfig {
            attributes: config.attributes.clone(),
            order: config.order,
            perm: config.permission as i32,
            read_queue_nums: config.read_queues as i32,
            topic_filter_type: if config.multi_tag { TopicFilterType::MultiTag } else { TopicFilterType::SingleTag },
            topic_name: config.name.clone(),
            topic_sys_flag: config.system_flag as i32,
            write_queue_nums: config.write_queues as i32,
        }
    }
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Topic {
    number: u32,
    /// The configuration; the last one if deleted.
    pub config: TopicConfig,
    /// Deleted: answers as if it had never been, but for the id.
    deleted: bool,
    /// For queues that had messages when the topic was last deleted: their first offset that may be shown again.
    hidden_below: BTreeMap<u32, u64>,
}

impl Topic {
    /// The number that stands for the name everywhere else.
    pub fn id(&self) -> TopicId {
        TopicId(self.number)
    }

    /// First offset of `queue` that may be shown: messages of an earlier life of the name stay hidden.
    pub fn first_shown(&self, queue: u32) -> QueueOffset {
        QueueOffset(self.hidden_below.get(&queue).copied().unwrap_or(0))
    }

    /// Whether it was deleted and made again.
    pub fn was_made_anew(&self) -> bool {
        !self.hidden_below.is_empty()
    }

    /// Queues there are: the larger of what is read and what is written.
    pub fn queues(&self) -> u32 {
        self.config.queues()
    }
}

/// All topics.
#[derive(Debug, Default)]
pub struct Topics {
    by_name: BTreeMap<String, Topic>,
    name_of: BTreeMap<TopicId, String>,
    /// Topics that are not deleted.
    count: usize,
    /// Queues of topics that are not deleted.
    queues: u64,
}

impl Topics {
    /// The topic of that name, unless deleted.
    pub fn get(&self, name: &str) -> Option<&Topic> {
        self.by_name.get(name).filter(|topic| !topic.deleted)
    }

    /// The name behind an id, of deleted topics too.
    pub fn name(&self, id: TopicId) -> Option<&str> {
        self.name_of.get(&id).map(String::as_str)
    }

    /// All topics that are not deleted, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Topic> {
        self.by_name.values().filter(|topic| !topic.deleted)
    }

    /// How many topics there are that are not deleted.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many queues these have.
    pub fn queues(&self) -> u64 {
        self.queues
    }

    /// Whether putting this configuration would change anything, and the id if the name has one.
    pub(super) fn known(&self, config: &TopicConfig, only_if_absent: bool) -> (Option<TopicId>, bool) {
        match self.by_name.get(&config.name) {
            None => (None, true),
            Some(topic) => (Some(topic.id()), topic.deleted || (!only_if_absent && topic.config != *config)),
        }
    }

    /// Creates the topic under `id`, or replaces the configuration of the one that has it.
    pub(super) fn put(&mut self, id: TopicId, config: TopicConfig) -> &Topic {
        let name = config.name.clone();
        let hidden_below = match self.by_name.get_mut(&name) {
            Some(topic) => {
                assert_eq!(topic.id(), id, "a name keeps its id");
                std::mem::take(&mut topic.hidden_below)
            }
            None => BTreeMap::new(),
        };
        self.restore(Topic { number: id.0, config, deleted: false, hidden_below });
        &self.by_name[&name]
    }

    /// Marks the topic deleted and hides what its queues hold now: `bounds` gives each queue's next offset.
    pub(super) fn delete(&mut self, name: &str, bounds: impl Fn(u32) -> Option<QueueOffset>) -> Option<&Topic> {
        let topic = self.by_name.get_mut(name).filter(|topic| !topic.deleted)?;
        topic.deleted = true;
        self.count -= 1;
        self.queues -= u64::from(topic.queues());
        for queue in 0..topic.queues() {
            if let Some(next) = bounds(queue) {
                topic.hidden_below.insert(queue, next.0);
            }
        }
        Some(topic)
    }

    /// A row as it was stored.
    pub(super) fn restore(&mut self, topic: Topic) {
        self.name_of.insert(topic.id(), topic.config.name.clone());
        if !topic.deleted {
            self.count += 1;
            self.queues += u64::from(topic.queues());
        }
        let before = self.by_name.insert(topic.config.name.clone(), topic);
        if let Some(before) = before.filter(|before| !before.deleted) {
            self.count -= 1;
            self.queues -= u64::from(before.queues());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, queues: u32) -> TopicConfig {
        TopicConfig::new(name, queues)
    }

    #[test]
    fn a_name_keeps_its_id_and_hides_its_earlier_life() {
        let mut topics = Topics::default();
        topics.put(TopicId(7), config("orders", 4));
        assert_eq!(topics.get("orders").expect("it exists").first_shown(1), QueueOffset(0));
        assert!(topics.delete("orders", |queue| (queue == 1).then_some(QueueOffset(12))).is_some());
        assert!(topics.delete("orders", |_| None).is_none(), "already deleted");
        assert!(topics.get("orders").is_none());
        assert_eq!(topics.name(TopicId(7)), Some("orders"));
        assert_eq!(topics.known(&config("orders", 8), true), (Some(TopicId(7)), true), "a deleted topic is absent");
        let again = topics.put(TopicId(7), config("orders", 8));
        assert_eq!((again.first_shown(0), again.first_shown(1)), (QueueOffset(0), QueueOffset(12)));
        assert_eq!(topics.iter().count(), 1);
    }

    #[test]
    fn topics_and_their_queues_are_counted_as_they_come_and_go() {
        let mut topics = Topics::default();
        topics.put(TopicId(1), config("orders", 4));
        topics.put(TopicId(2), TopicConfig { read_queues: 8, ..config("bills", 2) });
        assert_eq!((topics.count(), topics.queues()), (2, 12));
        topics.put(TopicId(1), config("orders", 1));
        assert_eq!((topics.count(), topics.queues()), (2, 9));
        topics.delete("orders", |_| None);
        topics.delete("orders", |_| None);
        assert_eq!((topics.count(), topics.queues()), (1, 8));
        let rows: Vec<Topic> = topics.by_name.values().cloned().collect();
        let mut restored = Topics::default();
        rows.into_iter().for_each(|topic| restored.restore(topic));
        assert_eq!((restored.count(), restored.queues()), (1, 8), "a deleted row counts for nothing");
        topics.put(TopicId(1), config("orders", 2));
        assert_eq!((topics.count(), topics.queues()), (2, 10));
    }

    #[test]
    fn automatic_creation_leaves_an_existing_topic_alone() {
        let mut topics = Topics::default();
        assert_eq!(topics.known(&config("orders", 4), true), (None, true));
        topics.put(TopicId(1), config("orders", 4));
        assert_eq!(topics.known(&config("orders", 16), true), (Some(TopicId(1)), false));
        assert_eq!(topics.known(&config("orders", 16), false), (Some(TopicId(1)), true));
        assert_eq!(topics.known(&config("orders", 4), false), (Some(TopicId(1)), false), "the same is no change");
    }
}

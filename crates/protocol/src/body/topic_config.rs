//! Topic configurations and their version: 17, 18, 21, 351, 322.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::wire_enum;

wire_enum! {
    /// How many tags a message of the topic may have.
    TopicFilterType {
        /// One.
        #[default]
        SingleTag = "SINGLE_TAG",
        /// Several.
        MultiTag = "MULTI_TAG",
    }
}

/// Version of a table; two tables are the same if all three members are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DataVersion {
    /// Grows with every change.
    pub counter: i64,
    /// The Raft term of who registers: a lower one is older whatever the rest says.
    pub state_version: i64,
    /// Of the last change, ms.
    pub timestamp: i64,
}

impl DataVersion {
    /// The version after a change.
    #[must_use]
    pub fn next(self, now_ms: i64) -> Self {
        Self { counter: self.counter.wrapping_add(1), timestamp: now_ms, ..self }
    }
}

/// One topic on one broker group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicConfig {
    /// Stored without the `+` that a create request puts in front.
    pub attributes: BTreeMap<String, String>,
    /// Ordered topic.
    pub order: bool,
    /// Bits of [`crate::permission::Permission`].
    pub perm: i32,
    /// Queues to pull from.
    pub read_queue_nums: i32,
    /// Tags.
    pub topic_filter_type: TopicFilterType,
    /// Topic.
    pub topic_name: String,
    /// Unit bits.
    pub topic_sys_flag: i32,
    /// Queues to send to.
    pub write_queue_nums: i32,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            attributes: BTreeMap::new(),
            order: false,
            perm: 6,
            read_queue_nums: 16,
            topic_filter_type: TopicFilterType::SingleTag,
            topic_name: String::new(),
            topic_sys_flag: 0,
            write_queue_nums: 16,
        }
    }
}

impl TopicConfig {
    /// A topic with as many queues to pull from as to send to.
    pub fn new(topic_name: impl Into<String>, queue_nums: i32, perm: i32) -> Self {
        let topic_name = topic_name.into();
        Self { perm, read_queue_nums: queue_nums, topic_name, write_queue_nums: queue_nums, ..Self::default() }
    }

    /// The form of the compressed registration: `name read write perm filterType attributes`.
    pub(crate) fn to_line(&self) -> String {
        let attributes = String::from_utf8(crate::json::to_vec(&self.attributes)).expect("JSON is UTF-8");
        let Self { topic_name, read_queue_nums, write_queue_nums, perm, topic_filter_type, .. } = self;
        format!("{topic_name} {read_queue_nums} {write_queue_nums} {perm} {topic_filter_type} {attributes}")
    }

    /// Reads the form of the compressed registration; older brokers leave the attributes out.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let topic_name = words.next()?.to_owned();
        let mut number = || words.next()?.parse::<i32>().ok();
        let (read_queue_nums, write_queue_nums, perm) = (number()?, number()?, number()?);
        let topic_filter_type = TopicFilterType::from_name(words.next()?).unwrap_or_default();
        let attributes =
            words.next().and_then(|text| crate::json::from_slice(text.as_bytes()).ok()).unwrap_or_default();
        Some(Self {
            attributes,
            perm,
            read_queue_nums,
            topic_filter_type,
            topic_name,
            write_queue_nums,
            ..Self::default()
        })
    }
}

/// Answer to GET_ALL_TOPIC_CONFIG and part of a registration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicConfigSerializeWrapper {
    /// Version of the table.
    pub data_version: DataVersion,
    /// By topic.
    pub topic_config_table: BTreeMap<String, TopicConfig>,
}

/// Body of UPDATE_AND_CREATE_TOPIC_LIST.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CreateTopicList {
    /// Topics.
    pub topic_config_list: Vec<TopicConfig>,
}

/// A change of attributes, as a create request carries it: `+key=value,-key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttributeChange {
    /// `+key=value`.
    Set(String, String),
    /// `-key`.
    Remove(String),
}

/// A change of attributes that is neither `+key=value` nor `-key`; the caller must correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no attribute change: use +key=value or -key")]
pub struct BadAttributeChange(pub String);

/// Parses `+key=value,-key`; nothing is no change.
pub fn parse_attribute_changes(text: &str) -> Result<Vec<AttributeChange>, BadAttributeChange> {
    let change = |part: &str| {
        let bad = || BadAttributeChange(part.to_owned());
        match part.trim().split_at_checked(1) {
            Some(("+", rest)) => match rest.split_once('=') {
                Some((key, value)) if !key.is_empty() => Ok(AttributeChange::Set(key.to_owned(), value.to_owned())),
                _ => Err(bad()),
            },
            Some(("-", key)) if !key.is_empty() && !key.contains('=') => Ok(AttributeChange::Remove(key.to_owned())),
            _ => Err(bad()),
        }
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_and_short_ones_are_read() {
        let mut topic = TopicConfig::new("T", 8, 6);
        assert_eq!(topic.to_line(), "T 8 8 6 SINGLE_TAG {}");
        topic.attributes.insert("message.type".into(), "A B".into());
        assert_eq!(TopicConfig::from_line(&topic.to_line()), Some(topic));
        assert_eq!(TopicConfig::from_line("T 8 4 6 MULTI_TAG").map(|topic| topic.write_queue_nums), Some(4));
        assert_eq!(TopicConfig::from_line("T 8"), None);
        assert_eq!(TopicConfig::from_line("T a b c SINGLE_TAG {}"), None);
    }

    #[test]
    fn attribute_changes_are_signed() {
        let changes = parse_attribute_changes("+message.type=FIFO, -queue.type").unwrap();
        assert_eq!(
            changes,
            [AttributeChange::Set("message.type".into(), "FIFO".into()), AttributeChange::Remove("queue.type".into())]
        );
        assert_eq!(parse_attribute_changes(""), Ok(Vec::new()));
        for bad in ["message.type=FIFO", "+x", "-", "+=1", "é"] {
            assert_eq!(parse_attribute_changes(bad), Err(BadAttributeChange(bad.into())));
        }
    }

    #[test]
    fn a_change_makes_the_next_version() {
        let version = DataVersion { counter: 4, state_version: 2, timestamp: 1 };
        assert_eq!(version.next(9), DataVersion { counter: 5, state_version: 2, timestamp: 9 });
    }
}

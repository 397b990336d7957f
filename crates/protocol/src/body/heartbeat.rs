//! Heartbeats 34 and client checks 46: who a client is and what it wants.

use serde::{Deserialize, Serialize};

use super::wire_enum;
use crate::tag::{self, BadTagExpression, TagExpression};

wire_enum! {
    /// How a group consumes.
    ConsumeType {
        /// Pull.
        Actively = "CONSUME_ACTIVELY",
        /// Push.
        #[default]
        Passively = "CONSUME_PASSIVELY",
        /// Pop.
        Pop = "CONSUME_POP",
    }

    /// Who gets a message.
    MessageModel {
        /// Every client.
        Broadcasting = "BROADCASTING",
        /// One client of the group.
        #[default]
        Clustering = "CLUSTERING",
    }

    /// Where a group without offsets begins.
    ConsumeFromWhere {
        /// At the end.
        #[default]
        LastOffset = "CONSUME_FROM_LAST_OFFSET",
        /// Deprecated.
        LastOffsetAndFromMinWhenBootFirst = "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST",
        /// Deprecated.
        MinOffset = "CONSUME_FROM_MIN_OFFSET",
        /// Deprecated.
        MaxOffset = "CONSUME_FROM_MAX_OFFSET",
        /// At the beginning.
        FirstOffset = "CONSUME_FROM_FIRST_OFFSET",
        /// At a time.
        Timestamp = "CONSUME_FROM_TIMESTAMP",
    }
}

/// Body of HEART_BEAT.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HeartbeatData {
    /// Client.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// Consumer groups it is in.
    pub consumer_data_set: Vec<ConsumerData>,
    /// Not 0: of the second version.
    pub heartbeat_fingerprint: i32,
    /// Producer groups it is in.
    pub producer_data_set: Vec<ProducerData>,
    /// Subscriptions are left out: keep those known.
    pub without_sub: bool,
}

/// One producer group of a client.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProducerData {
    /// Group.
    pub group_name: String,
}

/// One consumer group of a client.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumerData {
    /// Where it begins.
    pub consume_from_where: ConsumeFromWhere,
    /// How it consumes.
    pub consume_type: ConsumeType,
    /// Group.
    pub group_name: String,
    /// Who gets a message.
    pub message_model: MessageModel,
    /// What it wants.
    pub subscription_data_set: Vec<SubscriptionData>,
    /// Unit mode.
    pub unit_mode: bool,
}

/// A group's subscription to one topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SubscriptionData {
    /// Dead.
    pub class_filter_mode: bool,
    /// Hashes of the tags.
    pub code_set: Vec<i32>,
    /// `TAG` or `SQL92`.
    pub expression_type: String,
    /// The expression; `*` or nothing: all.
    pub sub_string: String,
    /// When it was made, ms; the newest wins.
    pub sub_version: i64,
    /// The tags.
    pub tags_set: Vec<String>,
    /// Topic.
    pub topic: String,
}

impl Default for SubscriptionData {
    fn default() -> Self {
        Self {
            class_filter_mode: false,
            code_set: Vec::new(),
            expression_type: tag::EXPRESSION_TYPE_TAG.to_owned(),
            sub_string: String::new(),
            sub_version: 0,
            tags_set: Vec::new(),
            topic: String::new(),
        }
    }
}

impl SubscriptionData {
    /// A subscription by tags, with sets that agree with its expression.
    pub fn by_tags(topic: &str, expression: &str, sub_version: i64) -> Result<Self, BadTagExpression> {
        let (tags_set, code_set) = match TagExpression::parse(expression)? {
            TagExpression::All => (Vec::new(), Vec::new()),
            TagExpression::AnyOf { tags, hashes } => (tags.into_iter().collect(), hashes),
        };
        let sub_string = if tags_set.is_empty() { tag::SUBSCRIBE_ALL } else { expression }.to_owned();
        Ok(Self { code_set, sub_string, sub_version, tags_set, topic: topic.to_owned(), ..Self::default() })
    }

    /// A subscription by SQL92.
    pub fn by_sql(topic: &str, expression: &str, sub_version: i64) -> Self {
        let expression_type = tag::EXPRESSION_TYPE_SQL92.to_owned();
        let (topic, sub_string) = (topic.to_owned(), expression.to_owned());
        Self { expression_type, sub_string, sub_version, topic, ..Self::default() }
    }

    /// Whether it selects by tags.
    pub fn is_by_tags(&self) -> bool {
        tag::is_tag_type(Some(&self.expression_type))
    }

    /// The tags it selects. From the expression, because clients leave the sets out.
    pub fn tag_expression(&self) -> Result<TagExpression, BadTagExpression> {
        TagExpression::parse(&self.sub_string)
    }
}

/// Body of CHECK_CLIENT_CONFIG.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CheckClientRequest {
    /// Client.
    pub client_id: String,
    /// Group.
    pub group: String,
    /// Namespace.
    pub namespace: Option<String>,
    /// The subscription to check.
    pub subscription_data: Option<SubscriptionData>,
}

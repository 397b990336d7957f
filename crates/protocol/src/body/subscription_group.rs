//! Group configurations: 200, 201, 225, 352.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{DataVersion, wire_enum};

wire_enum! {
    /// How long a message waits between two attempts.
    GroupRetryPolicyType {
        /// Longer each time.
        Exponential = "EXPONENTIAL",
        /// As listed.
        #[default]
        Customized = "CUSTOMIZED",
    }
}

/// One consumer group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SubscriptionGroupConfig {
    /// Attributes.
    pub attributes: BTreeMap<String, String>,
    /// Broker that consumers are told to pull from.
    pub broker_id: i64,
    /// May broadcast.
    pub consume_broadcast_enable: bool,
    /// May consume.
    pub consume_enable: bool,
    /// Dead.
    pub consume_from_min_enable: bool,
    /// Orderly, for pop.
    pub consume_message_orderly: bool,
    /// Minutes.
    pub consume_timeout_minute: i32,
    /// Group.
    pub group_name: String,
    /// Pauses between attempts.
    pub group_retry_policy: GroupRetryPolicy,
    /// Bits.
    pub group_sys_flag: i32,
    /// Whether members hear of changes at once.
    pub notify_consumer_ids_changed_enable: bool,
    /// Attempts before the dead letter.
    pub retry_max_times: i32,
    /// Queues of the retry topic.
    pub retry_queue_nums: i32,
    /// Broker for consumers far behind.
    pub which_broker_when_consume_slowly: i64,
}

impl Default for SubscriptionGroupConfig {
    fn default() -> Self {
        Self {
            attributes: BTreeMap::new(),
            broker_id: super::MASTER_ID,
            consume_broadcast_enable: true,
            consume_enable: true,
            consume_from_min_enable: true,
            consume_message_orderly: false,
            consume_timeout_minute: 15,
            group_name: String::new(),
            group_retry_policy: GroupRetryPolicy::default(),
            group_sys_flag: 0,
            notify_consumer_ids_changed_enable: true,
            retry_max_times: 16,
            retry_queue_nums: 1,
            which_broker_when_consume_slowly: 1,
        }
    }
}

impl SubscriptionGroupConfig {
    /// A group as it is created on demand.
    pub fn new(group_name: impl Into<String>) -> Self {
        Self { group_name: group_name.into(), ..Self::default() }
    }
}

/// Pauses between attempts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GroupRetryPolicy {
    /// Settings of the list.
    pub customized_retry_policy: Option<CustomizedRetryPolicy>,
    /// Settings of the growth.
    pub exponential_retry_policy: Option<ExponentialRetryPolicy>,
    /// Which one counts.
    #[serde(rename = "type")]
    pub kind: GroupRetryPolicyType,
}

/// A list of pauses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CustomizedRetryPolicy {
    /// ms, by attempt.
    pub next: Vec<i64>,
}

/// A growing pause.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExponentialRetryPolicy {
    /// First, ms.
    pub initial: i64,
    /// Longest, ms.
    pub max: i64,
    /// Growth.
    pub multiplier: i64,
}

/// Answer to GET_ALL_SUBSCRIPTIONGROUP_CONFIG.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SubscriptionGroupWrapper {
    /// Version of the table.
    pub data_version: DataVersion,
    /// Bits by group and topic.
    pub forbidden_table: BTreeMap<String, BTreeMap<String, i32>>,
    /// By group.
    pub subscription_group_table: BTreeMap<String, SubscriptionGroupConfig>,
}

/// Body of UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SubscriptionGroupList {
    /// Groups.
    pub group_config_list: Vec<SubscriptionGroupConfig>,
}

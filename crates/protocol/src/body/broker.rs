//! About a broker: units of a queue 321, statistics 315, replication 907.

use serde::{Deserialize, Serialize};

use super::SubscriptionData;

/// Answer to QUERY_CONSUME_QUEUE.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QueryConsumeQueueBody {
    /// The group's filter.
    pub filter_data: Option<String>,
    /// Next offset to be assigned.
    pub max_queue_index: i64,
    /// First offset.
    pub min_queue_index: i64,
    /// Units.
    pub queue_data: Vec<ConsumeQueueData>,
    /// The group's subscription.
    pub subscription_data: Option<SubscriptionData>,
}

/// One unit of a ConsumeQueue.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumeQueueData {
    /// Bloom filter.
    pub bit_map: Option<String>,
    /// Whether the filter matches.
    pub eval: bool,
    /// Extended unit.
    pub extend_data_json: Option<String>,
    /// What went wrong.
    pub msg: Option<String>,
    /// Physical offset.
    pub physic_offset: i64,
    /// Size of the record.
    pub physic_size: i32,
    /// Hash of the tag.
    pub tags_code: i64,
}

/// Answer to VIEW_BROKER_STATS_DATA.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BrokerStatsData {
    /// Last day.
    pub stats_day: BrokerStatsItem,
    /// Last hour.
    pub stats_hour: BrokerStatsItem,
    /// Last minute.
    pub stats_minute: BrokerStatsItem,
}

/// One span of a statistic.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BrokerStatsItem {
    /// Average per call.
    pub avgpt: f64,
    /// Sum.
    pub sum: i64,
    /// Per second.
    pub tps: f64,
}

/// Answer to GET_BROKER_HA_STATUS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HaRuntimeInfo {
    /// A replica's own side.
    pub ha_client_runtime_info: HaClientRuntimeInfo,
    /// The master's side, one per replica.
    pub ha_connection_info: Vec<HaConnectionRuntimeInfo>,
    /// Replicas in sync.
    pub in_sync_slave_nums: i32,
    /// Whether the broker is the master.
    pub master: bool,
    /// End of the master's log.
    pub master_commit_log_max_offset: i64,
}

/// A replica as the master sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HaConnectionRuntimeInfo {
    /// Its address.
    pub addr: String,
    /// Bytes behind.
    pub diff: i64,
    /// In sync.
    pub in_sync: bool,
    /// End of its log.
    pub slave_ack_offset: i64,
    /// Where it is being sent from.
    pub transfer_from_where: i64,
    /// Bytes per second.
    pub transferred_byte_in_second: i64,
}

/// A replica as it sees itself; of a master all is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HaClientRuntimeInfo {
    /// The master's address.
    pub master_addr: Option<String>,
    /// End of its log.
    pub max_offset: Option<i64>,
}

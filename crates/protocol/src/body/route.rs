//! Routes: which brokers have a topic (105), and which brokers there are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The broker id of a group's master, the only one that takes writes.
pub const MASTER_ID: i64 = 0;

/// Answer to GET_ROUTEINFO_BY_TOPIC.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicRouteData {
    /// Addresses of the broker groups.
    pub broker_datas: Vec<BrokerData>,
    /// Always empty, but clients look into it.
    pub filter_server_table: BTreeMap<String, Vec<String>>,
    /// `broker-a:4;broker-b:4`; its presence changes what producers do.
    pub order_topic_conf: Option<String>,
    /// Queues per broker group.
    pub queue_datas: Vec<QueueData>,
}

/// A broker group's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BrokerData {
    /// By broker id; [`MASTER_ID`] is the master.
    pub broker_addrs: BTreeMap<i64, String>,
    /// Broker group.
    pub broker_name: String,
    /// Cluster.
    pub cluster: String,
    /// Whether a replica may pose as master.
    pub enable_acting_master: bool,
    /// Zone.
    pub zone_name: Option<String>,
}

impl BrokerData {
    /// The master's address.
    pub fn master_addr(&self) -> Option<&str> {
        self.broker_addrs.get(&MASTER_ID).map(String::as_str)
    }
}

/// A topic's queues on one broker group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QueueData {
    /// Broker group.
    pub broker_name: String,
    /// Bits of [`crate::permission::Permission`].
    pub perm: i32,
    /// Queues to pull from.
    pub read_queue_nums: i32,
    /// Unit bits.
    pub topic_sys_flag: i32,
    /// Queues to send to.
    pub write_queue_nums: i32,
}

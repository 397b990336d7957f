//! NameServer: routes 105, brokers 103, 104, 322, 901, 904, KV 100-102 and 219, permissions 205 and 327, topics 216,
//! 217, 224.

use super::command_header;

command_header! {
    /// GET_ROUTEINFO_BY_TOPIC 105.
    GetRouteInfoRequest {
        /// Topic.
        "topic" topic: String,
        /// Integer keys must be quoted.
        "acceptStandardJsonOnly" accept_standard_json_only: bool,
    }

    /// REGISTER_BROKER 103.
    RegisterBrokerRequest {
        /// Broker group.
        "brokerName" broker_name: String,
        /// Where clients reach it.
        "brokerAddr" broker_addr: String,
        /// Cluster.
        "clusterName" cluster_name: String,
        /// Where replicas reach it.
        "haServerAddr" ha_server_addr: Option<String>,
        /// 0 is the master.
        "brokerId" broker_id: i64,
        /// Expiry; absent: the NameServer's default.
        "heartbeatTimeoutMillis" heartbeat_timeout_millis: Option<i64>,
        /// Whether a replica may pose as master.
        "enableActingMaster" enable_acting_master: Option<bool>,
        /// Whether the body is compressed.
        "compressed" compressed: bool,
        /// `crc & 0x7FFFFFFF` of the body as sent; 0 or absent: unchecked.
        "bodyCrc32" body_crc32: Option<i32>,
        /// Zone of the broker.
        "__ZONE_NAME" zone_name: Option<String>,
    }

    /// Answer to REGISTER_BROKER.
    RegisterBrokerResponse {
        /// Replication address of the master; only for replicas.
        "haServerAddr" ha_server_addr: Option<String>,
        /// Address of the master; only for replicas.
        "masterAddr" master_addr: Option<String>,
    }

    /// A broker: UNREGISTER_BROKER 104, QUERY_DATA_VERSION 322.
    BrokerRequest {
        /// Broker group.
        "brokerName" broker_name: String,
        /// Where clients reach it.
        "brokerAddr" broker_addr: String,
        /// Cluster.
        "clusterName" cluster_name: String,
        /// 0 is the master.
        "brokerId" broker_id: i64,
    }

    /// Answer to QUERY_DATA_VERSION 322.
    QueryDataVersionResponse {
        /// Whether the broker must register anew.
        "changed" changed: bool,
    }

    /// BROKER_HEARTBEAT 904, one-way.
    BrokerHeartbeatRequest {
        /// Cluster.
        "clusterName" cluster_name: String,
        /// Where clients reach it.
        "brokerAddr" broker_addr: String,
        /// Broker group.
        "brokerName" broker_name: String,
        /// 0 is the master.
        "brokerId" broker_id: Option<i64>,
        /// Controller mode.
        "epoch" epoch: Option<i32>,
        /// Controller mode.
        "maxOffset" max_offset: Option<i64>,
        /// Controller mode.
        "confirmOffset" confirm_offset: Option<i64>,
        /// Expiry; the spelling is the wire's.
        "heartbeatTimeoutMills" heartbeat_timeout_mills: Option<i64>,
        /// Controller mode.
        "electionPriority" election_priority: Option<i32>,
    }

    /// GET_BROKER_MEMBER_GROUP 901.
    GetBrokerMemberGroupRequest {
        /// Cluster.
        "clusterName" cluster_name: String,
        /// Broker group.
        "brokerName" broker_name: String,
    }

    /// DELETE_TOPIC_IN_NAMESRV 216, REGISTER_TOPIC_IN_NAMESRV 217.
    NamesrvTopicRequest {
        /// Topic.
        "topic" topic: String,
        /// Only this cluster's.
        "clusterName" cluster_name: Option<String>,
    }

    /// PUT_KV_CONFIG 100.
    PutKvConfigRequest {
        /// Namespace.
        "namespace" namespace: String,
        /// Key.
        "key" key: String,
        /// Value; an empty one arrives as none.
        "value" value: Option<String>,
    }

    /// GET_KV_CONFIG 101, DELETE_KV_CONFIG 102.
    KvConfigRequest {
        /// Namespace.
        "namespace" namespace: String,
        /// Key.
        "key" key: String,
    }

    /// Answer to GET_KV_CONFIG 101.
    GetKvConfigResponse {
        /// Value.
        "value" value: Option<String>,
    }

    /// GET_KVLIST_BY_NAMESPACE 219.
    NamespaceRequest {
        /// Namespace.
        "namespace" namespace: String,
    }

    /// WIPE_WRITE_PERM_OF_BROKER 205, ADD_WRITE_PERM_OF_BROKER 327.
    BrokerNameRequest {
        /// Broker group.
        "brokerName" broker_name: String,
    }

    /// Answer to 205.
    WipeWritePermResponse {
        /// Topics changed.
        "wipeTopicCount" wipe_topic_count: i32,
    }

    /// Answer to 327.
    AddWritePermResponse {
        /// Topics changed.
        "addTopicCount" add_topic_count: i32,
    }

    /// GET_TOPICS_BY_CLUSTER 224.
    ClusterRequest {
        /// Cluster.
        "cluster" cluster: String,
    }
}

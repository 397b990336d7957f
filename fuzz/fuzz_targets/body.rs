//! JSON bodies: what can be read can be written, and reads the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::body::*;
use protocol::json;

/// Every type of `protocol::body` that is read from JSON.
macro_rules! read_all {
    ($text:expr; $($body:ident,)*) => { $(read::<$body>($text);)* };
}

fn read<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(text: &[u8]) {
    if let Ok(body) = json::from_slice::<T>(text) {
        assert_eq!(json::from_slice::<T>(&json::to_vec(&body)).as_ref(), Ok(&body));
        assert_eq!(json::from_slice::<T>(&json::to_vec_legacy(&body)).as_ref(), Ok(&body));
    }
}

#[rustfmt::skip]
fn read_each(text: &[u8]) {
    read_all! { text;
        UserInfo, AclInfo, AclPolicy, AclPolicyEntry, QueryConsumeQueueBody, ConsumeQueueData, BrokerStatsData,
        BrokerStatsItem, HaRuntimeInfo, HaConnectionRuntimeInfo, HaClientRuntimeInfo, ClusterInfo, TopicList, GroupList,
        KvTable, BrokerMemberGroupBody, BrokerMemberGroup, ConsumerIdList, Connection, ConsumerConnection,
        ProducerConnection, ProducerTableInfo, ProducerInfo, QuerySubscriptionBody, GroupForbidden, HeartbeatData,
        ProducerData, ConsumerData, SubscriptionData, CheckClientRequest, MessageQueue, BatchAckRequest, BatchAck,
        TopicStatsTable, TopicOffset, ConsumeStats, OffsetWrapper, ConsumeStatsList, ResetOffsetBody,
        GetConsumerStatusBody, QueryConsumeTimeSpanBody, QueueTimeSpan, QueryCorrectionOffsetBody, ConsumerOffsetTable,
        LockBatchRequest, LockBatchResponse, QueryAssignmentRequest, QueryAssignmentResponse, MessageQueueAssignment,
        SetMessageRequestModeRequest, RegisterBrokerBody, ReplicaStatus, ReplicaMember, TopicRouteData, BrokerData,
        QueueData, ConsumerRunningInfo, ProcessQueueInfo, PopProcessQueueInfo, ConsumeStatus, ConsumeMessageDirectlyResult,
        SubscriptionGroupConfig, GroupRetryPolicy, CustomizedRetryPolicy, ExponentialRetryPolicy, SubscriptionGroupWrapper,
        SubscriptionGroupList, DataVersion, TopicConfig, TopicConfigSerializeWrapper, CreateTopicList,
    }
}

fuzz_target!(|text: &[u8]| read_each(text));

//! Dividing queues: locks 41 / 42, assignments 400, request modes 401.

use serde::{Deserialize, Serialize};

use super::{MessageModel, MessageQueue, wire_enum};

wire_enum! {
    /// How a client fetches the messages of an assigned queue.
    MessageRequestMode {
        /// By offset.
        #[default]
        Pull = "PULL",
        /// By lease.
        Pop = "POP",
    }
}

/// Body of LOCK_BATCH_MQ and UNLOCK_BATCH_MQ.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LockBatchRequest {
    /// Client.
    pub client_id: String,
    /// Group.
    pub consumer_group: String,
    /// Queues to lock or unlock.
    pub mq_set: Vec<MessageQueue>,
    /// Not on other members of the broker group.
    pub only_this_broker: bool,
}

/// Answer to LOCK_BATCH_MQ.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LockBatchResponse {
    /// Queues the client holds now.
    #[serde(rename = "lockOKMQSet")]
    pub lock_ok_mq_set: Vec<MessageQueue>,
}

/// Body of QUERY_ASSIGNMENT.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QueryAssignmentRequest {
    /// Client.
    pub client_id: String,
    /// Group.
    pub consumer_group: String,
    /// Who gets a message.
    pub message_model: MessageModel,
    /// `AVG` and others.
    pub strategy_name: Option<String>,
    /// Topic.
    pub topic: String,
}

/// Answer to QUERY_ASSIGNMENT.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QueryAssignmentResponse {
    /// Absent: keep what you have; empty: drop all.
    pub message_queue_assignments: Option<Vec<MessageQueueAssignment>>,
}

/// One queue given to a client.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MessageQueueAssignment {
    /// The queue.
    pub message_queue: MessageQueue,
    /// How to fetch from it.
    pub mode: MessageRequestMode,
}

/// Body of SET_MESSAGE_REQUEST_MODE.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SetMessageRequestModeRequest {
    /// Group.
    pub consumer_group: String,
    /// How its clients fetch.
    pub mode: MessageRequestMode,
    /// How many clients share a queue.
    pub pop_share_queue_num: i32,
    /// Topic.
    pub topic: String,
}

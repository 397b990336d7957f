//! Running a broker: GET_BROKER_CONFIG 26, VIEW_BROKER_STATS_DATA 315, users and access control 3001-3010, and our own
//! GET_REPLICA_STATUS 60001, ADD_LEARNER 60002, CHANGE_VOTERS 60003, TRANSFER_LEADER 60004, LIST_TRANSACTIONS 60005 and
//! MAKE_CHECKPOINT 60006.

use super::command_header;

command_header! {
    /// Answer to GET_BROKER_CONFIG 26; the body is `key=value` lines.
    GetBrokerConfigResponse {
        /// DataVersion as JSON.
        "version" version: Option<String>,
    }

    /// VIEW_BROKER_STATS_DATA 315.
    ViewBrokerStatsRequest {
        /// Such as `TOPIC_PUT_NUMS`.
        "statsName" stats_name: String,
        /// Such as `topic@group`.
        "statsKey" stats_key: String,
    }

    /// GET_REPLICA_STATUS 60001.
    ReplicaStatusRequest {
        /// Entry at which to give the log's chain; absent: the last one that is applied and durable.
        "index" index: Option<i64>,
    }

    /// ADD_LEARNER 60002. The answer's body is the member as the group knows it.
    AddLearnerRequest {
        /// Its peer listener, `host:port`.
        "peerAddress" peer_address: String,
    }

    /// CHANGE_VOTERS 60003.
    ChangeVotersRequest {
        /// A learner that gets a vote.
        "add" add: Option<u64>,
        /// A member that leaves for ever.
        "remove" remove: Option<u64>,
    }

    /// TRANSFER_LEADER 60004.
    TransferLeaderRequest {
        /// Who is to lead.
        "nodeId" node_id: u64,
    }

    /// LIST_TRANSACTIONS 60005.
    ListTransactionsRequest {
        /// `unasked`, `asked` or `discarded`.
        "state" state: String,
        /// `since` of the last one known; absent: from the first one on.
        "afterTime" after_time: Option<i64>,
        /// Its `commitLogOffset`.
        "afterOffset" after_offset: Option<i64>,
        /// Most wanted.
        "maxNum" max_num: i32,
    }

    /// Answer to MAKE_CHECKPOINT 60006.
    MakeCheckpointResponse {
        /// The checkpoint's entry.
        "index" index: u64,
    }

    /// A user by name: 3001-3004.
    UserRequest {
        /// User.
        "username" username: String,
    }

    /// AUTH_LIST_USER 3005.
    ListUserRequest {
        /// Part of the name.
        "filter" filter: Option<String>,
    }

    /// An access rule's subject: 3006-3009.
    AclRequest {
        /// `User:name`.
        "subject" subject: String,
        /// Kind of policy.
        "policyType" policy_type: Option<String>,
        /// `Topic:name` and the like.
        "resource" resource: Option<String>,
    }

    /// AUTH_LIST_ACL 3010.
    ListAclRequest {
        /// Part of the subject.
        "subjectFilter" subject_filter: Option<String>,
        /// Part of the resource.
        "resourceFilter" resource_filter: Option<String>,
    }
}

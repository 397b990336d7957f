//! Running a broker: GET_BROKER_CONFIG 26, VIEW_BROKER_STATS_DATA 315, users and access control 3001-3010, and our own
//! GET_REPLICA_STATUS 60001.

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

//! Groups: membership (34, 35) and administration (200, 201, 203, 204, 207, 208, 317, 343, 345, 352, 353, 314).

use super::command_header;

command_header! {
    /// Answer to HEART_BEAT 34.
    HeartbeatResponse {
        /// Whether this broker understands fingerprints.
        "IS_SUPPORT_HEART_BEAT_V2" is_support_heart_beat_v2: bool,
        /// Whether the client must send its subscriptions again.
        "IS_SUB_CHANGE" is_sub_change: bool,
    }

    /// UNREGISTER_CLIENT 35.
    UnregisterClientRequest {
        /// Client; the odd case is the wire's.
        "clientID" client_id: String,
        /// Producer group to leave.
        "producerGroup" producer_group: Option<String>,
        /// Consumer group to leave.
        "consumerGroup" consumer_group: Option<String>,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// GET_PRODUCER_CONNECTION_LIST 204.
    ProducerGroupRequest {
        /// Group.
        "producerGroup" producer_group: String,
    }

    /// GET_ALL_SUBSCRIPTIONGROUP_CONFIG 201; older tools send no field.
    GetAllGroupsRequest {
        /// Where the page begins.
        "groupSeq" group_seq: Option<i32>,
        /// DataVersion of the page before, as JSON.
        "dataVersion" data_version: Option<String>,
        /// Size of a page.
        "maxGroupNum" max_group_num: Option<i32>,
    }

    /// Answer to 201. Without a total the client stops after this page.
    GetAllGroupsResponse {
        /// Number of all groups.
        "totalGroupNum" total_group_num: Option<i32>,
    }

    /// DELETE_SUBSCRIPTIONGROUP 207.
    DeleteGroupRequest {
        /// Group.
        "groupName" group_name: String,
        /// Whether to delete its offsets too.
        "cleanOffset" clean_offset: bool,
    }

    /// A group by `group`: 343, 352.
    GroupRequest {
        /// Group.
        "group" group: String,
    }

    /// QUERY_SUBSCRIPTION_BY_CONSUMER 345, QUERY_CONSUME_TIME_SPAN 303.
    GroupTopicRequest {
        /// Group.
        "group" group: String,
        /// Topic.
        "topic" topic: String,
    }

    /// UPDATE_AND_GET_GROUP_FORBIDDEN 353.
    GroupForbiddenRequest {
        /// Group.
        "group" group: String,
        /// Topic.
        "topic" topic: String,
        /// Absent: only ask.
        "readable" readable: Option<bool>,
    }

    /// GET_CONSUME_STATS 208.
    GetConsumeStatsRequest {
        /// Group.
        "consumerGroup" consumer_group: String,
        /// One topic; absent: all with offsets.
        "topic" topic: Option<String>,
        /// Topics separated by `;`.
        "topicList" topic_list: Option<String>,
    }

    /// GET_BROKER_CONSUME_STATS 317.
    GetBrokerConsumeStatsRequest {
        /// Only orderly groups.
        "isOrder" is_order: bool,
    }

    /// INVOKE_BROKER_TO_RESET_OFFSET 222.
    ResetOffsetRequest {
        /// Topic.
        "topic" topic: String,
        /// Group.
        "group" group: String,
        /// To the offset of this store time, ms; -1: to the end.
        "timestamp" timestamp: i64,
        /// Also forward.
        "isForce" is_force: bool,
        /// One queue; -1 or absent: all.
        "queueId" queue_id: Option<i32>,
        /// To this offset; -1 or absent: by time.
        "offset" offset: Option<i64>,
    }

    /// INVOKE_BROKER_TO_GET_CONSUMER_STATUS 223, GET_CONSUMER_STATUS_FROM_CLIENT 221.
    GetConsumerStatusRequest {
        /// Topic.
        "topic" topic: String,
        /// Group.
        "group" group: String,
        /// One client; absent: all.
        "clientAddr" client_addr: Option<String>,
    }

    /// CLONE_GROUP_OFFSET 314.
    CloneGroupOffsetRequest {
        /// Group to copy from.
        "srcGroup" src_group: String,
        /// Group to copy to.
        "destGroup" dest_group: String,
        /// One topic; absent: all.
        "topic" topic: Option<String>,
        /// Not used.
        "offline" offline: bool,
    }

    /// QUERY_CORRECTION_OFFSET 308.
    QueryCorrectionOffsetRequest {
        /// Topic.
        "topic" topic: String,
        /// Group to compare with.
        "compareGroup" compare_group: String,
        /// Groups to leave out, separated by `,`.
        "filterGroups" filter_groups: Option<String>,
    }
}

//! Request and response codes: newtypes, so that a code nobody knows passes through unharmed.

macro_rules! codes {
    ($(#[$meta:meta])* $type:ident { $($(#[$doc:meta])* $name:ident = $value:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(pub i32);

        impl $type {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// Every code with a name, ascending.
            pub const ALL: &'static [Self] = &[$(Self($value),)*];

            /// RocketMQ's name of the code, if it has one.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }

        impl From<i32> for $type {
            fn from(code: i32) -> Self {
                Self(code)
            }
        }

        impl From<$type> for i32 {
            fn from(code: $type) -> Self {
                code.0
            }
        }

        /// Name and number, or the number alone.
        impl std::fmt::Display for $type {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => write!(formatter, "{name}({})", self.0),
                    None => write!(formatter, "{}", self.0),
                }
            }
        }
    };
}

codes! {
    /// What a request asks for.
    RequestCode {
        /// `SEND_MESSAGE`
        SEND_MESSAGE = 10,
        /// `PULL_MESSAGE`
        PULL_MESSAGE = 11,
        /// `QUERY_MESSAGE`
        QUERY_MESSAGE = 12,
        /// `QUERY_CONSUMER_OFFSET`
        QUERY_CONSUMER_OFFSET = 14,
        /// `UPDATE_CONSUMER_OFFSET`
        UPDATE_CONSUMER_OFFSET = 15,
        /// `UPDATE_AND_CREATE_TOPIC`
        UPDATE_AND_CREATE_TOPIC = 17,
        /// `UPDATE_AND_CREATE_TOPIC_LIST`
        UPDATE_AND_CREATE_TOPIC_LIST = 18,
        /// `GET_ALL_TOPIC_CONFIG`
        GET_ALL_TOPIC_CONFIG = 21,
        /// `GET_TOPIC_CONFIG_LIST`
        GET_TOPIC_CONFIG_LIST = 22,
        /// `GET_TOPIC_NAME_LIST`
        GET_TOPIC_NAME_LIST = 23,
        /// `UPDATE_BROKER_CONFIG`
        UPDATE_BROKER_CONFIG = 25,
        /// `GET_BROKER_CONFIG`
        GET_BROKER_CONFIG = 26,
        /// `GET_BROKER_RUNTIME_INFO`
        GET_BROKER_RUNTIME_INFO = 28,
        /// `SEARCH_OFFSET_BY_TIMESTAMP`
        SEARCH_OFFSET_BY_TIMESTAMP = 29,
        /// `GET_MAX_OFFSET`
        GET_MAX_OFFSET = 30,
        /// `GET_MIN_OFFSET`
        GET_MIN_OFFSET = 31,
        /// `GET_EARLIEST_MSG_STORETIME`
        GET_EARLIEST_MSG_STORETIME = 32,
        /// `VIEW_MESSAGE_BY_ID`
        VIEW_MESSAGE_BY_ID = 33,
        /// `HEART_BEAT`
        HEART_BEAT = 34,
        /// `UNREGISTER_CLIENT`
        UNREGISTER_CLIENT = 35,
        /// `CONSUMER_SEND_MSG_BACK`
        CONSUMER_SEND_MSG_BACK = 36,
        /// `END_TRANSACTION`
        END_TRANSACTION = 37,
        /// `GET_CONSUMER_LIST_BY_GROUP`
        GET_CONSUMER_LIST_BY_GROUP = 38,
        /// `CHECK_TRANSACTION_STATE`
        CHECK_TRANSACTION_STATE = 39,
        /// `NOTIFY_CONSUMER_IDS_CHANGED`
        NOTIFY_CONSUMER_IDS_CHANGED = 40,
        /// `LOCK_BATCH_MQ`
        LOCK_BATCH_MQ = 41,
        /// `UNLOCK_BATCH_MQ`
        UNLOCK_BATCH_MQ = 42,
        /// `GET_ALL_CONSUMER_OFFSET`
        GET_ALL_CONSUMER_OFFSET = 43,
        /// `GET_ALL_DELAY_OFFSET`
        GET_ALL_DELAY_OFFSET = 45,
        /// `CHECK_CLIENT_CONFIG`
        CHECK_CLIENT_CONFIG = 46,
        /// `UPDATE_AND_CREATE_ACL_CONFIG`
        UPDATE_AND_CREATE_ACL_CONFIG = 50,
        /// `DELETE_ACL_CONFIG`
        DELETE_ACL_CONFIG = 51,
        /// `GET_BROKER_CLUSTER_ACL_INFO`
        GET_BROKER_CLUSTER_ACL_INFO = 52,
        /// `UPDATE_GLOBAL_WHITE_ADDRS_CONFIG`
        UPDATE_GLOBAL_WHITE_ADDRS_CONFIG = 53,
        /// `GET_BROKER_CLUSTER_ACL_CONFIG`
        GET_BROKER_CLUSTER_ACL_CONFIG = 54,
        /// `GET_TIMER_CHECK_POINT`
        GET_TIMER_CHECK_POINT = 60,
        /// `GET_TIMER_METRICS`
        GET_TIMER_METRICS = 61,
        /// `PUT_KV_CONFIG`
        PUT_KV_CONFIG = 100,
        /// `GET_KV_CONFIG`
        GET_KV_CONFIG = 101,
        /// `DELETE_KV_CONFIG`
        DELETE_KV_CONFIG = 102,
        /// `REGISTER_BROKER`
        REGISTER_BROKER = 103,
        /// `UNREGISTER_BROKER`
        UNREGISTER_BROKER = 104,
        /// `GET_ROUTEINFO_BY_TOPIC`
        GET_ROUTEINFO_BY_TOPIC = 105,
        /// `GET_BROKER_CLUSTER_INFO`
        GET_BROKER_CLUSTER_INFO = 106,
        /// `UPDATE_AND_CREATE_SUBSCRIPTIONGROUP`
        UPDATE_AND_CREATE_SUBSCRIPTIONGROUP = 200,
        /// `GET_ALL_SUBSCRIPTIONGROUP_CONFIG`
        GET_ALL_SUBSCRIPTIONGROUP_CONFIG = 201,
        /// `GET_TOPIC_STATS_INFO`
        GET_TOPIC_STATS_INFO = 202,
        /// `GET_CONSUMER_CONNECTION_LIST`
        GET_CONSUMER_CONNECTION_LIST = 203,
        /// `GET_PRODUCER_CONNECTION_LIST`
        GET_PRODUCER_CONNECTION_LIST = 204,
        /// `WIPE_WRITE_PERM_OF_BROKER`
        WIPE_WRITE_PERM_OF_BROKER = 205,
        /// `GET_ALL_TOPIC_LIST_FROM_NAMESERVER`
        GET_ALL_TOPIC_LIST_FROM_NAMESERVER = 206,
        /// `DELETE_SUBSCRIPTIONGROUP`
        DELETE_SUBSCRIPTIONGROUP = 207,
        /// `GET_CONSUME_STATS`
        GET_CONSUME_STATS = 208,
        /// `DELETE_TOPIC_IN_BROKER`
        DELETE_TOPIC_IN_BROKER = 215,
        /// `DELETE_TOPIC_IN_NAMESRV`
        DELETE_TOPIC_IN_NAMESRV = 216,
        /// `REGISTER_TOPIC_IN_NAMESRV`
        REGISTER_TOPIC_IN_NAMESRV = 217,
        /// `GET_KVLIST_BY_NAMESPACE`
        GET_KVLIST_BY_NAMESPACE = 219,
        /// `RESET_CONSUMER_CLIENT_OFFSET`
        RESET_CONSUMER_CLIENT_OFFSET = 220,
        /// `GET_CONSUMER_STATUS_FROM_CLIENT`
        GET_CONSUMER_STATUS_FROM_CLIENT = 221,
        /// `INVOKE_BROKER_TO_RESET_OFFSET`
        INVOKE_BROKER_TO_RESET_OFFSET = 222,
        /// `INVOKE_BROKER_TO_GET_CONSUMER_STATUS`
        INVOKE_BROKER_TO_GET_CONSUMER_STATUS = 223,
        /// `GET_TOPICS_BY_CLUSTER`
        GET_TOPICS_BY_CLUSTER = 224,
        /// `UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST`
        UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST = 225,
        /// `QUERY_TOPIC_CONSUME_BY_WHO`
        QUERY_TOPIC_CONSUME_BY_WHO = 300,
        /// `QUERY_CONSUME_TIME_SPAN`
        QUERY_CONSUME_TIME_SPAN = 303,
        /// `GET_SYSTEM_TOPIC_LIST_FROM_NS`
        GET_SYSTEM_TOPIC_LIST_FROM_NS = 304,
        /// `GET_SYSTEM_TOPIC_LIST_FROM_BROKER`
        GET_SYSTEM_TOPIC_LIST_FROM_BROKER = 305,
        /// `CLEAN_EXPIRED_CONSUMEQUEUE`
        CLEAN_EXPIRED_CONSUMEQUEUE = 306,
        /// `GET_CONSUMER_RUNNING_INFO`
        GET_CONSUMER_RUNNING_INFO = 307,
        /// `QUERY_CORRECTION_OFFSET`
        QUERY_CORRECTION_OFFSET = 308,
        /// `CONSUME_MESSAGE_DIRECTLY`
        CONSUME_MESSAGE_DIRECTLY = 309,
        /// `SEND_MESSAGE_V2`
        SEND_MESSAGE_V2 = 310,
        /// `GET_UNIT_TOPIC_LIST`
        GET_UNIT_TOPIC_LIST = 311,
        /// `GET_HAS_UNIT_SUB_TOPIC_LIST`
        GET_HAS_UNIT_SUB_TOPIC_LIST = 312,
        /// `GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST`
        GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST = 313,
        /// `CLONE_GROUP_OFFSET`
        CLONE_GROUP_OFFSET = 314,
        /// `VIEW_BROKER_STATS_DATA`
        VIEW_BROKER_STATS_DATA = 315,
        /// `CLEAN_UNUSED_TOPIC`
        CLEAN_UNUSED_TOPIC = 316,
        /// `GET_BROKER_CONSUME_STATS`
        GET_BROKER_CONSUME_STATS = 317,
        /// `UPDATE_NAMESRV_CONFIG`
        UPDATE_NAMESRV_CONFIG = 318,
        /// `GET_NAMESRV_CONFIG`
        GET_NAMESRV_CONFIG = 319,
        /// `SEND_BATCH_MESSAGE`
        SEND_BATCH_MESSAGE = 320,
        /// `QUERY_CONSUME_QUEUE`
        QUERY_CONSUME_QUEUE = 321,
        /// `QUERY_DATA_VERSION`
        QUERY_DATA_VERSION = 322,
        /// `RESUME_CHECK_HALF_MESSAGE`
        RESUME_CHECK_HALF_MESSAGE = 323,
        /// `SEND_REPLY_MESSAGE`
        SEND_REPLY_MESSAGE = 324,
        /// `SEND_REPLY_MESSAGE_V2`
        SEND_REPLY_MESSAGE_V2 = 325,
        /// `PUSH_REPLY_MESSAGE_TO_CLIENT`
        PUSH_REPLY_MESSAGE_TO_CLIENT = 326,
        /// `ADD_WRITE_PERM_OF_BROKER`
        ADD_WRITE_PERM_OF_BROKER = 327,
        /// `GET_ALL_PRODUCER_INFO`
        GET_ALL_PRODUCER_INFO = 328,
        /// `DELETE_EXPIRED_COMMITLOG`
        DELETE_EXPIRED_COMMITLOG = 329,
        /// `QUERY_TOPICS_BY_CONSUMER`
        QUERY_TOPICS_BY_CONSUMER = 343,
        /// `QUERY_SUBSCRIPTION_BY_CONSUMER`
        QUERY_SUBSCRIPTION_BY_CONSUMER = 345,
        /// `GET_TOPIC_CONFIG`
        GET_TOPIC_CONFIG = 351,
        /// `GET_SUBSCRIPTIONGROUP_CONFIG`
        GET_SUBSCRIPTIONGROUP_CONFIG = 352,
        /// `UPDATE_AND_GET_GROUP_FORBIDDEN`
        UPDATE_AND_GET_GROUP_FORBIDDEN = 353,
        /// `LITE_PULL_MESSAGE`
        LITE_PULL_MESSAGE = 361,
        /// `RECALL_MESSAGE`
        RECALL_MESSAGE = 370,
        /// `QUERY_ASSIGNMENT`
        QUERY_ASSIGNMENT = 400,
        /// `SET_MESSAGE_REQUEST_MODE`
        SET_MESSAGE_REQUEST_MODE = 401,
        /// `GET_ALL_MESSAGE_REQUEST_MODE`
        GET_ALL_MESSAGE_REQUEST_MODE = 402,
        /// `UPDATE_AND_CREATE_STATIC_TOPIC`
        UPDATE_AND_CREATE_STATIC_TOPIC = 513,
        /// `GET_BROKER_MEMBER_GROUP`
        GET_BROKER_MEMBER_GROUP = 901,
        /// `ADD_BROKER`
        ADD_BROKER = 902,
        /// `REMOVE_BROKER`
        REMOVE_BROKER = 903,
        /// `BROKER_HEARTBEAT`
        BROKER_HEARTBEAT = 904,
        /// `NOTIFY_MIN_BROKER_ID_CHANGE`
        NOTIFY_MIN_BROKER_ID_CHANGE = 905,
        /// `EXCHANGE_BROKER_HA_INFO`
        EXCHANGE_BROKER_HA_INFO = 906,
        /// `GET_BROKER_HA_STATUS`
        GET_BROKER_HA_STATUS = 907,
        /// `RESET_MASTER_FLUSH_OFFSET`
        RESET_MASTER_FLUSH_OFFSET = 908,
        /// `GET_BROKER_EPOCH_CACHE`
        GET_BROKER_EPOCH_CACHE = 1007,
        /// `AUTH_CREATE_USER`
        AUTH_CREATE_USER = 3001,
        /// `AUTH_UPDATE_USER`
        AUTH_UPDATE_USER = 3002,
        /// `AUTH_DELETE_USER`
        AUTH_DELETE_USER = 3003,
        /// `AUTH_GET_USER`
        AUTH_GET_USER = 3004,
        /// `AUTH_LIST_USER`
        AUTH_LIST_USER = 3005,
        /// `AUTH_CREATE_ACL`
        AUTH_CREATE_ACL = 3006,
        /// `AUTH_UPDATE_ACL`
        AUTH_UPDATE_ACL = 3007,
        /// `AUTH_DELETE_ACL`
        AUTH_DELETE_ACL = 3008,
        /// `AUTH_GET_ACL`
        AUTH_GET_ACL = 3009,
        /// `AUTH_LIST_ACL`
        AUTH_LIST_ACL = 3010,
        /// Our own: what one replica of a broker group says of itself.
        GET_REPLICA_STATUS = 60001,
        /// Our own: a new node of a broker group begins to catch up.
        ADD_LEARNER = 60002,
        /// Our own: a node of a broker group gets a vote, or leaves, or both.
        CHANGE_VOTERS = 60003,
        /// Our own: another replica is to lead its broker group.
        TRANSFER_LEADER = 60004,
        /// Our own: transactions that wait for their ends.
        LIST_TRANSACTIONS = 60005,
        /// Our own: every replica of a broker group is to hash its state at one place of the log.
        MAKE_CHECKPOINT = 60006,
        /// `POP_MESSAGE`
        POP_MESSAGE = 200050,
        /// `ACK_MESSAGE`
        ACK_MESSAGE = 200051,
        /// `PEEK_MESSAGE`
        PEEK_MESSAGE = 200052,
        /// `CHANGE_MESSAGE_INVISIBLETIME`
        CHANGE_MESSAGE_INVISIBLETIME = 200053,
        /// `NOTIFICATION`
        NOTIFICATION = 200054,
        /// `POLLING_INFO`
        POLLING_INFO = 200055,
        /// `POP_ROLLBACK`
        POP_ROLLBACK = 200056,
        /// `BATCH_ACK_MESSAGE`
        BATCH_ACK_MESSAGE = 200151,
    }
}

codes! {
    /// How a request ended.
    ResponseCode {
        /// Done.
        SUCCESS = 0,
        /// Generic failure; the remark has the text.
        SYSTEM_ERROR = 1,
        /// Overload: try again later.
        SYSTEM_BUSY = 2,
        /// No such request here.
        REQUEST_CODE_NOT_SUPPORTED = 3,
        /// Transaction failed.
        TRANSACTION_FAILED = 4,
        /// Stored, not flushed in time.
        FLUSH_DISK_TIMEOUT = 10,
        /// Stored, no replica in sync.
        SLAVE_NOT_AVAILABLE = 11,
        /// Stored, not replicated in time.
        FLUSH_SLAVE_TIMEOUT = 12,
        /// Size, property or topic length violation; acknowledgement of a bad queue.
        MESSAGE_ILLEGAL = 13,
        /// Disk full, not the leader, or shutting down: try elsewhere.
        SERVICE_NOT_AVAILABLE = 14,
        /// The client is too old.
        VERSION_NOT_SUPPORTED = 15,
        /// Topic, broker or group permission, or access control.
        NO_PERMISSION = 16,
        /// No such topic.
        TOPIC_NOT_EXIST = 17,
        /// The topic exists.
        TOPIC_EXIST_ALREADY = 18,
        /// No new message.
        PULL_NOT_FOUND = 19,
        /// Nothing matched: go on from `nextBeginOffset`.
        PULL_RETRY_IMMEDIATELY = 20,
        /// Offset outside the queue: use `nextBeginOffset`.
        PULL_OFFSET_MOVED = 21,
        /// No offset, no KV or no message by key.
        QUERY_NOT_FOUND = 22,
        /// Bad filter expression.
        SUBSCRIPTION_PARSE_FAILED = 23,
        /// Group or its subscription unknown: heartbeat not yet seen.
        SUBSCRIPTION_NOT_EXIST = 24,
        /// The pull's subscription is newer than the heartbeat's.
        SUBSCRIPTION_NOT_LATEST = 25,
        /// Group missing, and not created on demand.
        SUBSCRIPTION_GROUP_NOT_EXIST = 26,
        /// SQL filter not registered.
        FILTER_DATA_NOT_EXIST = 27,
        /// SQL filter older than the pull's.
        FILTER_DATA_NOT_LATEST = 28,
        /// Bad topic name, queue id, group or batch.
        INVALID_PARAMETER = 29,
        /// Unused by current brokers.
        TRANSACTION_SHOULD_COMMIT = 200,
        /// Unused by current brokers.
        TRANSACTION_SHOULD_ROLLBACK = 201,
        /// Unused by current brokers.
        TRANSACTION_STATE_UNKNOW = 202,
        /// Unused by current brokers.
        TRANSACTION_STATE_GROUP_WRONG = 203,
        /// Commercial.
        NO_BUYER_ID = 204,
        /// Commercial.
        NOT_IN_CURRENT_UNIT = 205,
        /// Relay to a consumer that is absent.
        CONSUMER_NOT_ONLINE = 206,
        /// Relay to a consumer that did not answer in time.
        CONSUME_MSG_TIMEOUT = 207,
        /// Acknowledgement of an offset out of range.
        NO_MESSAGE = 208,
        /// No room for another long poll.
        POLLING_FULL = 209,
        /// Pop found nothing.
        POLLING_TIMEOUT = 210,
        /// No such broker.
        BROKER_NOT_EXIST = 211,
        /// Derived files are behind.
        BROKER_DISPATCH_NOT_COMPLETE = 212,
        /// Progress query of a broadcasting group.
        BROADCAST_CONSUMPTION = 213,
        /// The client backs off 20 ms.
        FLOW_CONTROL = 215,
        /// Static topics.
        NOT_LEADER_FOR_QUEUE = 501,
        /// Late end of transaction, bad recall handle.
        ILLEGAL_OPERATION = 604,
        /// Reconnect and resend; for clients above version 475.
        GO_AWAY = 1500,
        /// No such user.
        USER_NOT_EXIST = 3001,
        /// No such policy.
        POLICY_NOT_EXIST = 3002,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_ascending_and_unknown_ones_pass_through() {
        assert!(RequestCode::ALL.is_sorted_by(|a, b| a < b) && ResponseCode::ALL.is_sorted_by(|a, b| a < b));
        assert_eq!(RequestCode::from(310).name(), Some("SEND_MESSAGE_V2"));
        assert_eq!(RequestCode::SEND_MESSAGE_V2.to_string(), "SEND_MESSAGE_V2(310)");
        assert_eq!(
            (RequestCode(-5).name(), i32::from(RequestCode(-5)), RequestCode(-5).to_string()),
            (None, -5, "-5".into())
        );
        assert_eq!(ResponseCode::PULL_OFFSET_MOVED, ResponseCode(21));
    }
}

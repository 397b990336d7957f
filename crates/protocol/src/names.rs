//! Names of topics and groups: what is legal, what is reserved, and the names derived from others.

/// Longest topic name.
pub const MAX_TOPIC_BYTES: usize = 127;
/// Longest name of a retry or dead-letter topic.
pub const MAX_RETRY_TOPIC_BYTES: usize = 255;
/// Longest group name.
pub const MAX_GROUP_BYTES: usize = 120;

/// Prefix of a group's retry topic.
pub const RETRY_PREFIX: &str = "%RETRY%";
/// Prefix of a group's dead-letter topic.
pub const DLQ_PREFIX: &str = "%DLQ%";
/// Prefix of light message queues.
pub const LMQ_PREFIX: &str = "%LMQ%";
/// Prefix of system topics.
pub const SYSTEM_TOPIC_PREFIX: &str = "rmq_sys_";
/// Prefix of system groups.
pub const SYSTEM_GROUP_PREFIX: &str = "CID_RMQ_SYS_";

/// Template for topics created on demand.
pub const AUTO_CREATE_TOPIC: &str = "TBW102";
/// Delay levels.
pub const SCHEDULE_TOPIC: &str = "SCHEDULE_TOPIC_XXXX";
/// Benchmarks.
pub const BENCHMARK_TOPIC: &str = "BenchmarkTest";
/// Half messages.
pub const HALF_TOPIC: &str = "RMQ_SYS_TRANS_HALF_TOPIC";
/// Ends of transactions.
pub const OP_HALF_TOPIC: &str = "RMQ_SYS_TRANS_OP_HALF_TOPIC";
/// Half messages given up.
pub const TRANS_CHECK_MAX_TIME_TOPIC: &str = "TRANS_CHECK_MAX_TIME_TOPIC";
/// Message trace.
pub const TRACE_TOPIC: &str = "RMQ_SYS_TRACE_TOPIC";
/// Self test.
pub const SELF_TEST_TOPIC: &str = "SELF_TEST_TOPIC";
/// Offsets moved.
pub const OFFSET_MOVED_EVENT: &str = "OFFSET_MOVED_EVENT";
/// Arbitrary delay.
pub const WHEEL_TIMER_TOPIC: &str = "rmq_sys_wheel_timer";
/// NameServer KV namespace of ordered topics.
pub const ORDER_TOPIC_NAMESPACE: &str = "ORDER_TOPIC_CONFIG";

const SYSTEM_TOPICS: [&str; 9] = [
    AUTO_CREATE_TOPIC,
    SCHEDULE_TOPIC,
    BENCHMARK_TOPIC,
    HALF_TOPIC,
    OP_HALF_TOPIC,
    TRANS_CHECK_MAX_TIME_TOPIC,
    TRACE_TOPIC,
    SELF_TEST_TOPIC,
    OFFSET_MOVED_EVENT,
];

const NO_SEND_TOPICS: [&str; 6] =
    [SCHEDULE_TOPIC, HALF_TOPIC, OP_HALF_TOPIC, TRANS_CHECK_MAX_TIME_TOPIC, SELF_TEST_TOPIC, OFFSET_MOVED_EVENT];

const SYSTEM_GROUPS: [&str; 10] = [
    "DEFAULT_CONSUMER",
    "DEFAULT_PRODUCER",
    "TOOLS_CONSUMER",
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PULL",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    "CID_RMQ_SYS_TRANS",
];

/// Why a name is refused. The caller must choose another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Blank.
    #[error("the specified {kind} is blank")]
    Blank {
        /// `topic` or `group`.
        kind: &'static str,
    },
    /// A character outside `%|a-zA-Z0-9_-`.
    #[error("the specified {kind} contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$")]
    IllegalCharacter {
        /// `topic` or `group`.
        kind: &'static str,
    },
    /// Too long.
    #[error("the specified {kind} is longer than {limit_bytes} bytes")]
    TooLong {
        /// `topic` or `group`.
        kind: &'static str,
        /// The limit.
        limit_bytes: usize,
    },
}

/// Whether a topic may have this name.
pub fn validate_topic(name: &str) -> Result<(), NameError> {
    let derived = name.starts_with(RETRY_PREFIX) || name.starts_with(DLQ_PREFIX);
    validate("topic", name, if derived { MAX_RETRY_TOPIC_BYTES } else { MAX_TOPIC_BYTES })
}

/// Whether a group may have this name.
pub fn validate_group(name: &str) -> Result<(), NameError> {
    validate("group", name, MAX_GROUP_BYTES)
}

fn validate(kind: &'static str, name: &str, limit_bytes: usize) -> Result<(), NameError> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'%' | b'|' | b'_' | b'-');
    if name.trim().is_empty() {
        Err(NameError::Blank { kind })
    } else if !name.bytes().all(is_legal) {
        Err(NameError::IllegalCharacter { kind })
    } else if name.len() > limit_bytes {
        Err(NameError::TooLong { kind, limit_bytes })
    } else {
        Ok(())
    }
}

/// The group's retry topic.
pub fn retry_topic(group: &str) -> String {
    format!("{RETRY_PREFIX}{group}")
}

/// The group's dead-letter topic.
pub fn dlq_topic(group: &str) -> String {
    format!("{DLQ_PREFIX}{group}")
}

/// The topic of replies in a cluster.
pub fn reply_topic(cluster: &str) -> String {
    format!("{cluster}_REPLY_TOPIC")
}

/// The topic of pop's bookkeeping in a cluster.
pub fn revive_topic(cluster: &str) -> String {
    format!("{SYSTEM_TOPIC_PREFIX}REVIVE_LOG_{cluster}")
}

/// The group of a retry topic.
pub fn group_of_retry_topic(topic: &str) -> Option<&str> {
    topic.strip_prefix(RETRY_PREFIX).filter(|group| !group.is_empty())
}

/// The group of a dead-letter topic.
pub fn group_of_dlq_topic(topic: &str) -> Option<&str> {
    topic.strip_prefix(DLQ_PREFIX).filter(|group| !group.is_empty())
}

/// Whether the topic belongs to the system: it can be neither created nor deleted by users. The topics named after the
/// cluster and the broker do as well; only the broker knows those.
pub fn is_system_topic(topic: &str) -> bool {
    SYSTEM_TOPICS.contains(&topic) || topic.starts_with(SYSTEM_TOPIC_PREFIX)
}

/// Whether clients may send to the topic.
pub fn is_send_allowed(topic: &str) -> bool {
    !NO_SEND_TOPICS.contains(&topic)
}

/// Whether the group belongs to the system.
pub fn is_system_group(group: &str) -> bool {
    SYSTEM_GROUPS.contains(&group) || group.starts_with(SYSTEM_GROUP_PREFIX)
}

/// The system topics every broker has: name, queues, permission. Those named after cluster and broker come on top.
pub const BUILT_IN_TOPICS: [(&str, i32, i32); 8] = [
    (SELF_TEST_TOPIC, 1, 6),
    (BENCHMARK_TOPIC, 1024, 6),
    (OFFSET_MOVED_EVENT, 1, 6),
    (SCHEDULE_TOPIC, 18, 6),
    (TRACE_TOPIC, 1, 6),
    (HALF_TOPIC, 1, 6),
    (OP_HALF_TOPIC, 1, 6),
    (WHEEL_TIMER_TOPIC, 1, 6),
];

/// The groups every broker has.
pub const BUILT_IN_GROUPS: [&str; 8] = [
    "TOOLS_CONSUMER",
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PULL",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    "CID_RMQ_SYS_TRANS",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_in_characters_and_length() {
        assert_eq!(validate_topic("Order-1_a%|"), Ok(()));
        assert_eq!(validate_topic("  "), Err(NameError::Blank { kind: "topic" }));
        for illegal in ["a.b", "a+b", "a/b", "../x", "a b", "主题", "a\n"] {
            assert_eq!(validate_topic(illegal), Err(NameError::IllegalCharacter { kind: "topic" }), "{illegal}");
        }
        assert_eq!(validate_topic(&"t".repeat(127)), Ok(()));
        assert_eq!(validate_topic(&"t".repeat(128)), Err(NameError::TooLong { kind: "topic", limit_bytes: 127 }));
        assert_eq!(validate_topic(&retry_topic(&"g".repeat(120))), Ok(()));
        assert_eq!(
            validate_topic(&retry_topic(&"g".repeat(249))),
            Err(NameError::TooLong { kind: "topic", limit_bytes: 255 })
        );
        assert_eq!(validate_group(&"g".repeat(120)), Ok(()));
        assert_eq!(validate_group(&"g".repeat(121)), Err(NameError::TooLong { kind: "group", limit_bytes: 120 }));
    }

    #[test]
    fn derived_names_lead_back_to_their_group() {
        assert_eq!(group_of_retry_topic(&retry_topic("g")), Some("g"));
        assert_eq!(group_of_dlq_topic(&dlq_topic("g")), Some("g"));
        assert_eq!((group_of_retry_topic("%RETRY%"), group_of_retry_topic("%DLQ%g")), (None, None));
    }

    #[test]
    fn the_systems_own_are_known() {
        assert!(is_system_topic("TBW102") && is_system_topic("rmq_sys_wheel_timer") && !is_system_topic("T"));
        assert!(!is_send_allowed("SCHEDULE_TOPIC_XXXX") && is_send_allowed("TBW102") && is_send_allowed("%DLQ%g"));
        assert!(is_system_group("CID_RMQ_SYS_x") && is_system_group("TOOLS_CONSUMER") && !is_system_group("g"));
    }
}

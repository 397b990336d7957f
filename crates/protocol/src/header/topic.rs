//! Topic administration on the broker: 17, 21, 215, 202, 300, 351.

use super::command_header;

command_header! {
    /// UPDATE_AND_CREATE_TOPIC 17.
    CreateTopicRequest {
        /// Topic.
        "topic" topic: String,
        /// Template; not used by tools.
        "defaultTopic" default_topic: Option<String>,
        /// Queues to read.
        "readQueueNums" read_queue_nums: i32,
        /// Queues to write.
        "writeQueueNums" write_queue_nums: i32,
        /// Bits of [`crate::permission::Permission`].
        "perm" perm: i32,
        /// `SINGLE_TAG` or `MULTI_TAG`.
        "topicFilterType" topic_filter_type: Option<String>,
        /// Unit bits.
        "topicSysFlag" topic_sys_flag: Option<i32>,
        /// Ordered topic.
        "order" order: bool,
        /// `+key=value,-key`.
        "attributes" attributes: Option<String>,
        /// Not used.
        "force" force: bool,
    }

    /// A topic alone: 215, 202, 300, 351.
    TopicRequest {
        /// Topic.
        "topic" topic: String,
        /// Logical queue.
        "lo" logical: Option<bool>,
        /// Broker the client means.
        "bname" broker_name: Option<String>,
    }

    /// GET_ALL_TOPIC_CONFIG 21; older tools send no field.
    GetAllTopicsRequest {
        /// Where the page begins.
        "topicSeq" topic_seq: Option<i32>,
        /// DataVersion of the page before, as JSON.
        "dataVersion" data_version: Option<String>,
        /// Size of a page.
        "maxTopicNum" max_topic_num: Option<i32>,
    }

    /// Answer to 21. Without a total the client stops after this page.
    GetAllTopicsResponse {
        /// Number of all topics.
        "totalTopicNum" total_topic_num: Option<i32>,
    }
}

//! Typed headers out of any fields: each is read, or refused with the field's name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::ext_fields::ExtFields;
use protocol::header::*;

/// Every header type of `protocol::header`.
macro_rules! read_all {
    ($ext:expr; $($header:ident,)*) => { $(read::<$header>($ext);)* };
}

fn read<H: CommandHeader + PartialEq + std::fmt::Debug>(ext: &ExtFields) {
    if let Ok(header) = H::read_from(ext) {
        let mut written = ExtFields::new();
        header.write_to(&mut written);
        assert_eq!(H::read_from(&written).as_ref(), Ok(&header));
    }
}

#[rustfmt::skip]
fn read_each(ext: &ExtFields) {
    read_all! { ext;
        AckMessageRequest, AclRequest, AddWritePermResponse, BrokerHeartbeatRequest, BrokerNameRequest, BrokerRequest,
        ChangeInvisibleTimeRequest, ChangeInvisibleTimeResponse, CheckTransactionStateRequest, CloneGroupOffsetRequest,
        ClusterRequest, ConsumeMessageDirectlyRequest, ConsumerGroupRequest, ConsumerSendMessageBackRequest,
        CreateTopicRequest, DeleteGroupRequest, EarliestStoreTimeResponse, EndTransactionRequest, GetAllGroupsRequest,
        GetAllGroupsResponse, GetAllTopicsRequest, GetAllTopicsResponse, GetBrokerConfigResponse,
        GetBrokerConsumeStatsRequest, GetBrokerMemberGroupRequest, GetConsumeStatsRequest, GetConsumerRunningInfoRequest,
        GetConsumerStatusRequest, GetKvConfigResponse, GetRouteInfoRequest, GroupForbiddenRequest, GroupRequest,
        GroupTopicRequest, HeartbeatResponse, KvConfigRequest, ListAclRequest, ListUserRequest, NamespaceRequest,
        NamesrvTopicRequest, NotificationRequest, NotificationResponse, OffsetResponse, PeekMessageRequest,
        PollingInfoResponse, PopMessageRequest, PopMessageResponse, ProducerGroupRequest, PullMessageRequest,
        PullMessageResponse, PushReplyRequest, PutKvConfigRequest, QueryConsumeQueueRequest, QueryConsumerOffsetRequest,
        QueryCorrectionOffsetRequest, QueryDataVersionResponse, QueryMessageRequest, QueryMessageResponse, QueueRequest,
        RecallMessageRequest, RecallMessageResponse, RegisterBrokerRequest, RegisterBrokerResponse, ReplicaStatusRequest,
        ResetConsumerClientOffsetRequest, ResetOffsetRequest, ResumeCheckHalfMessageRequest, SearchOffsetRequest,
        SendMessageRequest, SendMessageRequestV2, SendMessageResponse, TopicRequest, UnregisterClientRequest,
        UpdateConsumerOffsetRequest, UserRequest, ViewBrokerStatsRequest, ViewMessageRequest, WipeWritePermResponse,
    }
}

fuzz_target!(|text: &str| read_each(&text.split('\n').filter_map(|line| line.split_once('=')).collect()));

//! JSON bodies, one struct per Java class, plus the two bodies that are not JSON.
//!
//! Reading: every member is optional with Java's default, unknown members are ignored, scalars convert; see
//! [`crate::json`]. Writing: members sorted, absent ones left out, primitives always present. Read a body with
//! [`crate::command::RemotingCommand::json`] or [`crate::json::from_slice`], write it with
//! [`crate::command::RemotingCommand::with_json`] or [`crate::json::to_bytes`].

mod access;
mod broker;
mod cluster;
mod config_text;
mod connection;
mod heartbeat;
mod message_queue;
mod pop;
mod progress;
mod queue_lock;
mod register_broker;
mod replica_status;
mod route;
mod running_info;
mod subscription_group;
mod topic_config;
mod transactions;

pub use access::*;
pub use broker::*;
pub use cluster::*;
pub use config_text::*;
pub use connection::*;
pub use heartbeat::*;
pub use message_queue::*;
pub use pop::*;
pub use progress::*;
pub use queue_lock::*;
pub use register_broker::*;
pub use replica_status::*;
pub use route::*;
pub use running_info::*;
pub use subscription_group::*;
pub use topic_config::*;
pub use transactions::*;

/// Declares an enum that travels by name. Reading ignores case and takes the ordinal as well, because C++ clients send
/// that; a name nobody knows becomes the default, as fastjson makes it null.
macro_rules! wire_enum {
    ($($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// All of them, by ordinal.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name on the wire.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// By name, in any case.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.name().eq_ignore_ascii_case(name))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.name())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // As text, a number shows its digits: names never begin with one.
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                let by_ordinal = || text.parse().ok().and_then(|ordinal: usize| Self::ALL.get(ordinal).copied());
                Ok(Self::from_name(&text).or_else(by_ordinal).unwrap_or_default())
            }
        }
    )*};
}
pub(crate) use wire_enum;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json;

    fn text<T: serde::Serialize>(body: &T) -> String {
        String::from_utf8(json::to_vec(body)).unwrap()
    }

    /// Reads what Java printed and writes it back: nothing may be lost, moved or added.
    fn same<T: serde::Serialize + serde::de::DeserializeOwned>(java: &str) {
        let body: T = json::from_slice(java.as_bytes()).unwrap_or_else(|error| panic!("{java}: {error}"));
        assert_eq!(text(&body), java);
    }

    #[test]
    fn bodies_are_written_as_java_prints_them() {
        same::<TopicRouteData>(
            r#"{"brokerDatas":[{"brokerAddrs":{"0":"10.0.0.1:10911","1":"10.0.0.2:10911"},"brokerName":"broker-a","cluster":"DefaultCluster","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[{"brokerName":"broker-a","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"#,
        );
        same::<ClusterInfo>(
            r#"{"brokerAddrTable":{"broker-a":{"brokerAddrs":{"0":"10.0.0.1:10911"},"brokerName":"broker-a","cluster":"DefaultCluster","enableActingMaster":false}},"clusterAddrTable":{"DefaultCluster":["broker-a"]}}"#,
        );
        same::<TopicList>(r#"{"brokerAddr":"10.0.0.1:10911","topicList":["T"]}"#);
        same::<GroupList>(r#"{"groupList":["g"]}"#);
        same::<KvTable>(r#"{"table":{"k":"v"}}"#);
        same::<HeartbeatData>(
            r#"{"clientID":"10.0.0.9@4242#123456789","consumerDataSet":[{"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","consumeType":"CONSUME_PASSIVELY","groupName":"cg","messageModel":"CLUSTERING","subscriptionDataSet":[{"classFilterMode":false,"codeSet":[65,66],"expressionType":"TAG","subString":"A || B","subVersion":1700000000000,"tagsSet":["A","B"],"topic":"T"}],"unitMode":false}],"heartbeatFingerprint":0,"producerDataSet":[{"groupName":"pg"}],"withoutSub":false}"#,
        );
        same::<ConsumerConnection>(
            r#"{"connectionSet":[{"clientAddr":"10.0.0.9:51234","clientId":"10.0.0.9@4242#1","language":"JAVA","version":479}],"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","consumeType":"CONSUME_PASSIVELY","messageModel":"CLUSTERING","subscriptionTable":{"T":{"classFilterMode":false,"codeSet":[],"expressionType":"TAG","subString":"*","subVersion":1700000000000,"tagsSet":[],"topic":"T"}}}"#,
        );
    }

    #[test]
    fn progress_bodies_have_objects_as_keys() {
        same::<TopicStatsTable>(
            r#"{"offsetTable":{{"brokerName":"broker-a","queueId":0,"topic":"T"}:{"lastUpdateTimestamp":1700000000000,"maxOffset":5,"minOffset":0}},"topicPutTps":0.0}"#,
        );
        same::<ConsumeStats>(
            r#"{"consumeTps":0.0,"offsetTable":{{"brokerName":"broker-a","queueId":0,"topic":"T"}:{"brokerOffset":9,"consumerOffset":7,"lastTimestamp":1700000000000,"pullOffset":8}}}"#,
        );
        same::<ConsumeStatsList>(
            r#"{"brokerAddr":"10.0.0.1:10911","consumeStatsList":[{"cg":[{"consumeTps":0.0,"offsetTable":{}}]}],"totalDiff":0,"totalInflightDiff":0}"#,
        );
        same::<ResetOffsetBody>(r#"{"offsetTable":{{"brokerName":"broker-a","queueId":0,"topic":"T"}:3}}"#);
        same::<GetConsumerStatusBody>(
            r#"{"consumerTable":{"cid":{{"brokerName":"broker-a","queueId":0,"topic":"T"}:3}},"messageQueueTable":{}}"#,
        );
        same::<QueryConsumeTimeSpanBody>(
            r#"{"consumeTimeSpanSet":[{"consumeTimeStamp":0,"delayTime":0,"maxTimeStamp":0,"messageQueue":{"brokerName":"broker-a","queueId":0,"topic":"T"},"minTimeStamp":0}]}"#,
        );
        let java = r#"{"correctionOffsets":{0:3}}"#;
        let body: QueryCorrectionOffsetBody = json::from_slice(java.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(json::to_vec_legacy(&body)).unwrap(), java);
        assert_eq!(text(&body), r#"{"correctionOffsets":{"0":3}}"#);
    }

    #[test]
    fn lock_assignment_and_pop_bodies_are_java_s() {
        same::<LockBatchRequest>(
            r#"{"clientId":"c","consumerGroup":"cg","mqSet":[{"brokerName":"broker-a","queueId":0,"topic":"T"}],"onlyThisBroker":false}"#,
        );
        same::<LockBatchResponse>(r#"{"lockOKMQSet":[{"brokerName":"broker-a","queueId":0,"topic":"T"}]}"#);
        same::<ConsumerIdList>(r#"{"consumerIdList":["10.0.0.9@1#1"]}"#);
        same::<QueryAssignmentRequest>(
            r#"{"clientId":"c","consumerGroup":"cg","messageModel":"CLUSTERING","strategyName":"AVG","topic":"T"}"#,
        );
        same::<QueryAssignmentResponse>(
            r#"{"messageQueueAssignments":[{"messageQueue":{"brokerName":"broker-a","queueId":-1,"topic":"T"},"mode":"POP"}]}"#,
        );
        same::<QueryAssignmentResponse>("{}");
        same::<SetMessageRequestModeRequest>(
            r#"{"consumerGroup":"cg","mode":"PULL","popShareQueueNum":0,"topic":"T"}"#,
        );
        same::<BatchAckRequest>(
            r#"{"acks":[{"b":"AQI=","c":"cg","it":60000,"pt":1700000000000,"q":1,"r":"0","rq":2,"so":100,"t":"T"}],"brokerName":"broker-a"}"#,
        );
        same::<CheckClientRequest>(
            r#"{"clientId":"c","group":"cg","namespace":"","subscriptionData":{"classFilterMode":false,"codeSet":[],"expressionType":"SQL92","subString":"a > 1","subVersion":1,"tagsSet":[],"topic":"T"}}"#,
        );
    }

    #[test]
    fn run_time_bodies_are_java_s() {
        same::<ConsumerRunningInfo>(
            r#"{"jstack":"x","mqPopTable":{{"brokerName":"b","queueId":0,"topic":"T"}:{"droped":false,"lastPopTimestamp":0,"waitAckCount":0}},"mqTable":{{"brokerName":"b","queueId":0,"topic":"T"}:{"cachedMsgCount":0,"cachedMsgMaxOffset":0,"cachedMsgMinOffset":0,"cachedMsgSizeInMiB":0,"commitOffset":0,"droped":false,"lastConsumeTimestamp":0,"lastLockTimestamp":0,"lastPullTimestamp":0,"locked":false,"transactionMsgCount":0,"transactionMsgMaxOffset":0,"transactionMsgMinOffset":0,"tryUnlockTimes":0}},"properties":{"PROP_CONSUMEORDERLY":"false"},"statusTable":{"T":{"consumeFailedMsgs":0,"consumeFailedTPS":0.0,"consumeOKTPS":0.0,"consumeRT":0.0,"pullRT":0.0,"pullTPS":0.0}},"subscriptionSet":[],"userConsumerInfo":{}}"#,
        );
        same::<ConsumeMessageDirectlyResult>(
            r#"{"autoCommit":true,"consumeResult":"CR_SUCCESS","order":false,"remark":"ok","spentTimeMills":3}"#,
        );
        same::<BrokerStatsData>(
            r#"{"statsDay":{"avgpt":0.0,"sum":0,"tps":0.0},"statsHour":{"avgpt":0.0,"sum":0,"tps":0.0},"statsMinute":{"avgpt":1.5,"sum":3,"tps":2.0}}"#,
        );
        same::<ProducerTableInfo>(
            r#"{"data":{"pg":[{"clientId":"c","language":"JAVA","lastUpdateTimestamp":5,"remoteIP":"10.0.0.9:1","version":479}]}}"#,
        );
        same::<BrokerMemberGroupBody>(
            r#"{"brokerMemberGroup":{"brokerAddrs":{"0":"10.0.0.1:10911"},"brokerName":"broker-a","cluster":"DefaultCluster"}}"#,
        );
        same::<QueryConsumeQueueBody>(
            r#"{"filterData":"f","maxQueueIndex":9,"minQueueIndex":0,"queueData":[{"eval":false,"physicOffset":0,"physicSize":0,"tagsCode":0}]}"#,
        );
        same::<HaRuntimeInfo>(
            r#"{"haClientRuntimeInfo":{},"haConnectionInfo":[],"inSyncSlaveNums":2,"master":true,"masterCommitLogMaxOffset":7}"#,
        );
        same::<UserInfo>(r#"{"password":"p","userStatus":"enable","userType":"Normal","username":"u"}"#);
        same::<AclInfo>(
            r#"{"policies":[{"entries":[{"actions":["Pub"],"decision":"Allow","resource":"Topic:t","sourceIps":["1.2.3.4"]}],"policyType":"Custom"}],"subject":"User:u"}"#,
        );
    }

    #[test]
    fn configurations_are_java_s() {
        same::<DataVersion>(r#"{"counter":1,"stateVersion":0,"timestamp":1700000000000}"#);
        let topic = r#"{"attributes":{},"order":false,"perm":6,"readQueueNums":4,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":4}"#;
        same::<TopicConfig>(topic);
        let version = r#"{"counter":1,"stateVersion":0,"timestamp":5}"#;
        let topics = format!(r#"{{"dataVersion":{version},"topicConfigTable":{{"T":{topic}}}}}"#);
        same::<TopicConfigSerializeWrapper>(&topics);
        same::<RegisterBrokerBody>(&format!(r#"{{"filterServerList":[],"topicConfigSerializeWrapper":{topics}}}"#));
        let group = r#"{"attributes":{},"brokerId":0,"consumeBroadcastEnable":true,"consumeEnable":true,"consumeFromMinEnable":true,"consumeMessageOrderly":false,"consumeTimeoutMinute":15,"groupName":"cg","groupRetryPolicy":{"type":"CUSTOMIZED"},"groupSysFlag":0,"notifyConsumerIdsChangedEnable":true,"retryMaxTimes":16,"retryQueueNums":1,"whichBrokerWhenConsumeSlowly":1}"#;
        same::<SubscriptionGroupConfig>(group);
        assert_eq!(text(&SubscriptionGroupConfig::new("cg")), group);
        same::<SubscriptionGroupWrapper>(&format!(
            r#"{{"dataVersion":{version},"forbiddenTable":{{}},"subscriptionGroupTable":{{"cg":{group}}}}}"#
        ));
        // A config with nothing but a name has Java's defaults.
        let bare: SubscriptionGroupConfig = json::from_slice(br#"{"groupName":"cg","retryMaxTimes":null}"#).unwrap();
        assert_eq!(bare, SubscriptionGroupConfig::new("cg"));
        let bare: TopicConfig = json::from_slice(br#"{"topicName":"T"}"#).unwrap();
        assert_eq!((bare.read_queue_nums, bare.write_queue_nums, bare.perm), (16, 16, 6));
    }

    #[test]
    fn the_legacy_route_has_bare_integer_keys() {
        let mut broker = BrokerData { broker_name: "b".into(), cluster: "c".into(), ..BrokerData::default() };
        broker.broker_addrs.insert(0, "10.0.0.1:10911".into());
        let route = TopicRouteData { broker_datas: vec![broker], ..TopicRouteData::default() };
        let legacy = r#"{"brokerDatas":[{"brokerAddrs":{0:"10.0.0.1:10911"},"brokerName":"b","cluster":"c","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[]}"#;
        assert_eq!(json::to_vec_legacy(&route), legacy.as_bytes());
        assert_eq!(json::from_slice::<TopicRouteData>(legacy.as_bytes()), Ok(route));
    }

    #[test]
    fn the_heartbeats_of_old_clients_are_understood() {
        // C++: ordinals, a subVersion in quotes, no expressionType, no producers, a trailing newline.
        let cpp = concat!(
            r#"{"clientID":"cpp","consumerDataSet":[{"consumeFromWhere":4,"consumeType":1,"groupName":"cg","#,
            r#""messageModel":0,"subscriptionDataSet":[{"classFilterMode":false,"codeSet":["65"],"subString":"A","#,
            r#""subVersion":"1700000000000","tagsSet":["A"],"topic":"T"},{"topic":"U","subString":null,"tagsSet":null}]}]}"#,
            "\n"
        );
        let heartbeat: HeartbeatData = json::from_slice(cpp.as_bytes()).unwrap();
        assert!(heartbeat.producer_data_set.is_empty());
        let consumer = &heartbeat.consumer_data_set[0];
        assert_eq!(consumer.consume_from_where, ConsumeFromWhere::FirstOffset);
        assert_eq!(
            (consumer.consume_type, consumer.message_model),
            (ConsumeType::Passively, MessageModel::Broadcasting)
        );
        let [tagged, all] = &consumer.subscription_data_set[..] else { panic!("two subscriptions") };
        assert_eq!(
            (tagged.sub_version, &tagged.code_set[..], tagged.expression_type.as_str()),
            (1_700_000_000_000, &[65][..], "TAG")
        );
        assert!(tagged.tag_expression().unwrap().matches_hash(65));
        assert_eq!(all.tag_expression(), Ok(crate::tag::TagExpression::All));
        // A set that refers to one printed before, enums in lower case or of the future, null sets.
        let odd = br#"{"clientID":"x","consumerDataSet":[{"$ref":"$.a"},{"groupName":"g","consumeType":"consume_pop","messageModel":"NEW","consumeFromWhere":"99"}],"producerDataSet":null,"new":1}"#;
        let heartbeat: HeartbeatData = json::from_slice(odd).unwrap();
        let [consumer] = &heartbeat.consumer_data_set[..] else { panic!("one consumer") };
        assert_eq!((consumer.consume_type, consumer.message_model), (ConsumeType::Pop, MessageModel::Clustering));
        assert_eq!(consumer.consume_from_where, ConsumeFromWhere::LastOffset);
    }

    #[test]
    fn reset_offsets_are_read_in_both_forms() {
        let map: ResetOffsetBody =
            json::from_slice(br#"{"offsetTable":{"{\"brokerName\":\"b\",\"queueId\":1,\"topic\":\"T\"}":3}}"#).unwrap();
        let list = r#"{"offsetTable":[{"brokerName":"b","offset":3,"queueId":1,"topic":"T"}]}"#;
        assert_eq!(map.offset_table, [(MessageQueue::new("T", "b", 1), 3)].into());
        assert_eq!(String::from_utf8(map.to_cpp_body().to_vec()).unwrap(), list);
        assert_eq!(json::from_slice::<ResetOffsetBody>(list.as_bytes()), Ok(map));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_body_panic(junk in r#"[{}\[\]",:'a-f0-9\\u/* \n$-]{0,60}"#, at in 0..400_usize) {
            let route = r#"{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"T"}:{"lastUpdateTimestamp":1}},"brokerDatas":[{"brokerAddrs":{0:"a"}}],"table":{"k":"v"},"consumerDataSet":[{"consumeType":1,"subscriptionDataSet":[{"codeSet":[1]}]}]}"#;
            let at = at.min(route.len());
            let text = [&route[..at], &junk, &route[at..]].concat();
            for text in [text.as_bytes(), junk.as_bytes()] {
                let _ = json::from_slice::<TopicStatsTable>(text);
                let _ = json::from_slice::<TopicRouteData>(text);
                let _ = json::from_slice::<HeartbeatData>(text);
                let _ = json::from_slice::<ResetOffsetBody>(text);
                let _ = json::from_slice::<ConsumerRunningInfo>(text);
                let _ = json::from_slice::<KvTable>(text);
            }
        }

        #[test]
        fn routes_and_offsets_survive(
            queues in proptest::collection::btree_map((any::<String>(), any::<i32>()), any::<i64>(), 0..6),
            addresses in proptest::collection::btree_map(any::<i64>(), any::<String>(), 0..4),
        ) {
            let table = queues.iter().map(|((topic, queue), offset)| (MessageQueue::new(topic, "b", *queue), *offset));
            let body = ResetOffsetBody { offset_table: table.collect() };
            prop_assert_eq!(json::from_slice::<ResetOffsetBody>(&json::to_vec(&body)), Ok(body));
            let broker = BrokerData { broker_addrs: addresses, ..BrokerData::default() };
            prop_assert_eq!(json::from_slice::<BrokerData>(&json::to_vec(&broker)), Ok(broker.clone()));
            prop_assert_eq!(json::from_slice::<BrokerData>(&json::to_vec_legacy(&broker)), Ok(broker));
        }
    }
}

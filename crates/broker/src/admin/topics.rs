//! Topics: 17, 18, 215 change them; 21, 351, 305 show them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::body::{self, AttributeChange, CreateTopicList, TopicConfigSerializeWrapper, TopicFilterType, TopicList};
use protocol::code::ResponseCode;
use protocol::header::{CreateTopicRequest, GetAllTopicsRequest, GetAllTopicsResponse, TopicRequest};
use protocol::names;
use protocol::permission::Permission;

use super::pages::page;
use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::idempotence;
use crate::tables::command::Command;
use crate::tables::topics::TopicConfig;

/// Queues that a topic may have: every one costs each replica memory, so that a slip of the finger must not make millions.
pub const QUEUES_MAX: u32 = 16_384;

/// An attribute and whether it may have a value.
type Attribute = (&'static str, fn(&str) -> bool);

/// Attributes that a topic may have, each with what it may say.
const ATTRIBUTES: [Attribute; 5] = [
    ("cleanup.policy", |value| value == "DELETE"),
    (idempotence::ATTRIBUTE, |value| ["true", "false"].contains(&value)),
    ("message.type", |value| ["UNSPECIFIED", "NORMAL", "FIFO", "DELAY", "TRANSACTION", "MIXED"].contains(&value)),
    ("queue.type", |value| value == "SimpleCQ"),
    ("reserve.time", |value| value.parse().is_ok_and(|hours: i64| hours >= -1)),
];

/// Handles UPDATE_AND_CREATE_TOPIC.
pub async fn create(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let wanted = WantedTopic::of_header(call.request.header()?)?;
    put(broker, call, vec![wanted]).await
}

/// Handles UPDATE_AND_CREATE_TOPIC_LIST: all or none.
pub async fn create_list(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let list: CreateTopicList = call.request.json()?;
    if list.topic_config_list.is_empty() {
        return Err(invalid("the list names no topic"));
    }
    put(broker, call, list.topic_config_list.into_iter().map(WantedTopic::of_body).collect()).await
}

async fn put(broker: &Arc<BrokerGroup>, call: &Call, topics: Vec<WantedTopic>) -> Answer {
    let commands: Result<Vec<Command>, RequestError> = {
        let tables = broker.reader.tables();
        let command = |wanted: WantedTopic| {
            broker.refuse_system_topic(&wanted.name)?;
            let known = tables.topics().get(&wanted.name).map(|topic| &topic.config);
            Ok(Command::PutTopic { config: wanted.config(known)?, only_if_absent: false })
        };
        topics.into_iter().map(command).collect()
    };
    let commands = commands?;
    broker.refuse_beyond_limits(&commands)?;
    broker.commands(&commands).await?;
    broker.registration.wake();
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// Handles DELETE_TOPIC_IN_BROKER. A topic that does not exist is deleted already.
pub async fn delete(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let TopicRequest { topic, .. } = call.request.header()?;
    names::validate_topic(&topic)?;
    broker.refuse_system_topic(&topic)?;
    match broker.command(&Command::DeleteTopic { name: topic.clone() }).await {
        Ok(_) => broker.registration.wake(),
        Err(RequestError::Failed(_)) if broker.topic_id(&topic).is_none() => {}
        Err(error) => return Err(error),
    }
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// Handles GET_ALL_TOPIC_CONFIG.
pub async fn list(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: GetAllTopicsRequest = call.request.header()?;
    // Version and rows are of one moment.
    let tables = broker.reader.tables();
    let data_version = broker.data_version(tables.topics_version());
    let page = page(data_version, request.topic_seq, request.data_version.as_deref(), request.max_topic_num);
    let shown = tables.topics().iter().skip(page.skip).take(page.take);
    let topic_config_table =
        shown.map(|topic| (topic.config.name.clone(), body::TopicConfig::from(&topic.config))).collect();
    let total = page.says_total.then(|| tables.topics().count() as i32);
    drop(tables);
    let answer = call.request.reply_with(ResponseCode::SUCCESS, &GetAllTopicsResponse { total_topic_num: total });
    Ok(answer.with_json(&TopicConfigSerializeWrapper { data_version, topic_config_table }))
}

/// Handles GET_TOPIC_CONFIG.
pub async fn get(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let TopicRequest { topic, .. } = call.request.header()?;
    broker.linearizable().await?;
    let tables = broker.reader.tables();
    let found = tables.topics().get(&topic).ok_or(RequestError::NoTopic(topic))?;
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&body::TopicConfig::from(&found.config)))
}

/// Handles GET_SYSTEM_TOPIC_LIST_FROM_BROKER.
pub async fn system_list(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let topic_list = system_topics(&broker.cluster, broker.broker_name());
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&TopicList { broker_addr: None, topic_list }))
}

/// Topics that users neither make nor delete, whether they exist or not: tools leave them out of their lists.
fn system_topics(cluster: &str, broker_name: &str) -> BTreeSet<String> {
    let built_in = names::BUILT_IN_TOPICS.iter().map(|(name, _, _)| *name);
    let others = [names::AUTO_CREATE_TOPIC, names::TRANS_CHECK_MAX_TIME_TOPIC];
    built_in.chain(others).map(str::to_owned).chain(own_topics(cluster, broker_name)).collect()
}

/// The system topics that are named after the cluster and the broker.
fn own_topics(cluster: &str, broker_name: &str) -> [String; 4] {
    [cluster.to_owned(), broker_name.to_owned(), names::reply_topic(cluster), names::revive_topic(cluster)]
}

impl BrokerGroup {
    fn refuse_system_topic(&self, topic: &str) -> Result<(), RequestError> {
        if names::is_system_topic(topic) || own_topics(&self.cluster, self.broker_name()).iter().any(|own| own == topic)
        {
            return Err(invalid(format!("the topic[{topic}] is conflict with system topic.")));
        }
        Ok(())
    }
}

fn invalid(what: impl Into<String>) -> RequestError {
    RequestError::InvalidParameter(what.into())
}

/// A topic as a request wants it: a whole configuration, but changes of the attributes.
struct WantedTopic {
    name: String,
    read_queues: i32,
    write_queues: i32,
    permission: i32,
    system_flag: i32,
    filter_type: TopicFilterType,
    order: bool,
    attributes: Vec<AttributeChange>,
}

impl WantedTopic {
    fn of_header(header: CreateTopicRequest) -> Result<WantedTopic, RequestError> {
        let filter_type = match header.topic_filter_type.as_deref() {
            None => TopicFilterType::default(),
            Some(name) => TopicFilterType::from_name(name)
                .ok_or_else(|| invalid(format!("topicFilterType {name:?} is neither SINGLE_TAG nor MULTI_TAG")))?,
        };
        let attributes = body::parse_attribute_changes(header.attributes.as_deref().unwrap_or(""));
        Ok(WantedTopic {
            name: header.topic,
            read_queues: header.read_queue_nums,
            write_queues: header.write_queue_nums,
            permission: header.perm,
            system_flag: header.topic_sys_flag.unwrap_or(0),
            filter_type,
            order: header.order,
            attributes: attributes.map_err(|error| invalid(error.to_string()))?,
        })
    }

    fn of_body(config: body::TopicConfig) -> WantedTopic {
        WantedTopic {
            name: config.topic_name,
            read_queues: config.read_queue_nums,
            write_queues: config.write_queue_nums,
            permission: config.perm,
            system_flag: config.topic_sys_flag,
            filter_type: config.topic_filter_type,
            order: config.order,
            attributes: attribute_changes(config.attributes),
        }
    }

    /// The configuration that results, given the one there is.
    fn config(self, known: Option<&TopicConfig>) -> Result<TopicConfig, RequestError> {
        names::validate_topic(&self.name)?;
        let queues = |key: &str, count: i32| {
            let count = u32::try_from(count).ok().filter(|count| *count <= QUEUES_MAX);
            count.ok_or_else(|| invalid(format!("{key} is not within 0 and {QUEUES_MAX}")))
        };
        let (read_queues, write_queues) =
            (queues("readQueueNums", self.read_queues)?, queues("writeQueueNums", self.write_queues)?);
        if read_queues.max(write_queues) == 0 {
            return Err(invalid("a topic has at least one queue to read or to write"));
        }
        if !Permission(self.permission).is_valid() {
            return Err(invalid(format!("perm {} is no sum of 1, 2, 4 and 8", self.permission)));
        }
        let mut attributes = known.map(|known| known.attributes.clone()).unwrap_or_default();
        for change in self.attributes {
            match change {
                AttributeChange::Set(key, value) => {
                    check_attribute(&key, &value)?;
                    attributes.insert(key, value);
                }
                AttributeChange::Remove(key) => {
                    attributes.remove(&key);
                }
            }
        }
        Ok(TopicConfig {
            name: self.name,
            read_queues,
            write_queues,
            permission: self.permission as u32,
            system_flag: self.system_flag as u32,
            multi_tag: self.filter_type == TopicFilterType::MultiTag,
            order: self.order,
            attributes,
        })
    }
}

fn check_attribute(key: &str, value: &str) -> Result<(), RequestError> {
    let Some((_, may_say)) = ATTRIBUTES.iter().find(|(name, _)| *name == key) else {
        let known: Vec<&str> = ATTRIBUTES.iter().map(|(name, _)| *name).collect();
        return Err(invalid(format!("unsupported key: {key}; a topic's attributes are {}", known.join(", "))));
    };
    if may_say(value) { Ok(()) } else { Err(invalid(format!("attribute {key} cannot be {value:?}"))) }
}

/// Changes as a JSON body has them: the sign is part of the key. Without a sign it is what tools show, and is set.
pub fn attribute_changes(attributes: BTreeMap<String, String>) -> Vec<AttributeChange> {
    let change = |(key, value): (String, String)| match key.split_at_checked(1) {
        Some(("-", key)) => AttributeChange::Remove(key.to_owned()),
        Some(("+", key)) => AttributeChange::Set(key.to_owned(), value),
        _ => AttributeChange::Set(key, value),
    };
    attributes.into_iter().map(change).collect()
}

#[cfg(test)]
mod tests {
    use protocol::code::RequestCode;
    use protocol::command::RemotingCommand;

    use super::*;

    /// What mqadmin sends, with one field replaced.
    fn asked(field: &str, value: &str) -> Result<TopicConfig, RequestError> {
        let mut request = RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_TOPIC);
        for (name, value) in [
            ("topic", "orders"),
            ("defaultTopic", "TBW102"),
            ("readQueueNums", "8"),
            ("writeQueueNums", "4"),
            ("perm", "6"),
            ("topicFilterType", "SINGLE_TAG"),
            ("topicSysFlag", "0"),
            ("order", "false"),
            ("attributes", "+message.type=FIFO"),
            (field, value),
        ] {
            request.ext.set(name, value);
        }
        let known = TopicConfig {
            attributes: [("reserve.time".to_owned(), "72".to_owned())].into(),
            ..TopicConfig::new("orders", 1)
        };
        WantedTopic::of_header(request.header()?)?.config(Some(&known))
    }

    #[test]
    fn a_topic_is_made_as_asked_and_keeps_its_other_attributes() {
        let config = asked("order", "true").expect("it is legal");
        let golden = r#"{"attributes":{"message.type":"FIFO","reserve.time":"72"},"order":true,"perm":6,"readQueueNums":8,"topicFilterType":"SINGLE_TAG","topicName":"orders","topicSysFlag":0,"writeQueueNums":4}"#;
        assert_eq!(String::from_utf8(protocol::json::to_vec(&body::TopicConfig::from(&config))).expect("JSON"), golden);
        let removed = asked("attributes", "-reserve.time,-unknown").expect("it is legal");
        assert!(removed.attributes.is_empty());
        let list = format!(r#"{{"topicConfigList":[{golden}]}}"#);
        let list: CreateTopicList = protocol::json::from_slice(list.as_bytes()).expect("a list");
        let [topic] = &list.topic_config_list[..] else { panic!("one topic") };
        assert_eq!(WantedTopic::of_body(topic.clone()).config(None).expect("what is shown can be sent"), config);
    }

    #[test]
    fn what_no_topic_can_be_is_an_invalid_parameter() {
        for (field, value) in [
            ("topic", "a/b"),
            ("topic", "a.b"),
            ("readQueueNums", "-1"),
            ("writeQueueNums", "2147483647"),
            ("perm", "16"),
            ("perm", "-1"),
            ("topicFilterType", "TRIPLE_TAG"),
            ("attributes", "message.type=FIFO"),
            ("attributes", "+message.type=PLAIN"),
            ("attributes", "+cleanup.policy=COMPACTION"),
            ("attributes", "+colour=red"),
            ("attributes", "+reserve.time=long"),
        ] {
            let error = asked(field, value).expect_err(value);
            assert_eq!(error.response_code(), Some(ResponseCode::INVALID_PARAMETER), "{field}={value}: {error}");
        }
        let error = asked("perm", "").expect_err("it must be there");
        assert_eq!(error.response_code(), Some(ResponseCode::SYSTEM_ERROR));
    }

    #[test]
    fn signs_are_part_of_a_key_in_a_list() {
        let attributes = [("+a", "1"), ("-b", ""), ("c", "3")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let set = |key: &str, value: &str| AttributeChange::Set(key.to_owned(), value.to_owned());
        let expected = [set("a", "1"), AttributeChange::Remove("b".to_owned()), set("c", "3")];
        assert_eq!(attribute_changes(attributes.into()), expected);
    }

    #[test]
    fn tools_hide_the_system_s_topics() {
        let topics = system_topics("DefaultCluster", "broker-a");
        for name in ["TBW102", "SELF_TEST_TOPIC", "DefaultCluster", "broker-a", "DefaultCluster_REPLY_TOPIC"] {
            assert!(topics.contains(name), "{name}");
        }
    }
}

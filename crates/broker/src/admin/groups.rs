//! Consumer groups: 200, 225, 207 change them; 201, 352 show them.

use std::sync::Arc;

use protocol::body::{
    AttributeChange, GroupRetryPolicy, SubscriptionGroupConfig, SubscriptionGroupList, SubscriptionGroupWrapper,
};
use protocol::code::ResponseCode;
use protocol::header::{DeleteGroupRequest, GetAllGroupsRequest, GetAllGroupsResponse, GroupRequest};
use protocol::names;

use super::pages::page;
use super::topics::{QUEUES_MAX, attribute_changes};
use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::tables::command::Command;
use crate::tables::groups::GroupConfig;

/// Handles UPDATE_AND_CREATE_SUBSCRIPTIONGROUP.
pub async fn create(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    put(broker, call, vec![call.request.json()?]).await
}

/// Handles UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST: all or none.
pub async fn create_list(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let list: SubscriptionGroupList = call.request.json()?;
    if list.group_config_list.is_empty() {
        return Err(RequestError::InvalidParameter("the list names no group".to_owned()));
    }
    put(broker, call, list.group_config_list).await
}

async fn put(broker: &Arc<BrokerGroup>, call: &Call, groups: Vec<SubscriptionGroupConfig>) -> Answer {
    let commands: Result<Vec<Command>, RequestError> = {
        let tables = broker.reader.tables();
        let command = |wanted: SubscriptionGroupConfig| {
            let config = wanted_config(&wanted, tables.groups().get(&wanted.group_name))?;
            Ok(Command::PutGroup { config, only_if_absent: false })
        };
        groups.into_iter().map(command).collect()
    };
    let commands = commands?;
    broker.refuse_beyond_limits(&commands)?;
    broker.commands(&commands).await?;
    // A new group has a new retry topic.
    broker.registration.wake();
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// Handles DELETE_SUBSCRIPTIONGROUP. A group that does not exist is deleted already. Its retry and dead-letter topics stay:
/// tools delete them by themselves.
pub async fn delete(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: DeleteGroupRequest = call.request.header()?;
    let (name, clean_offsets) = (request.group_name, request.clean_offset);
    match broker.command(&Command::DeleteGroup { name: name.clone(), clean_offsets }).await {
        Ok(_) => {}
        Err(RequestError::Failed(_)) if broker.reader.tables().groups().get(&name).is_none() => {}
        Err(error) => return Err(error),
    }
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// Handles GET_ALL_SUBSCRIPTIONGROUP_CONFIG.
pub async fn list(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: GetAllGroupsRequest = call.request.header()?;
    // Version and rows are of one moment.
    let tables = broker.reader.tables();
    let data_version = broker.data_version(tables.groups_version());
    let page = page(data_version, request.group_seq, request.data_version.as_deref(), request.max_group_num);
    let shown = tables.groups().iter().skip(page.skip).take(page.take);
    let subscription_group_table = shown.map(|group| (group.name.clone(), config_body(group))).collect();
    let total = page.says_total.then(|| tables.groups().iter().count() as i32);
    drop(tables);
    let answer = call.request.reply_with(ResponseCode::SUCCESS, &GetAllGroupsResponse { total_group_num: total });
    Ok(answer.with_json(&SubscriptionGroupWrapper {
        data_version,
        subscription_group_table,
        ..SubscriptionGroupWrapper::default()
    }))
}

/// Handles GET_SUBSCRIPTIONGROUP_CONFIG.
pub async fn get(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let GroupRequest { group } = call.request.header()?;
    broker.linearizable().await?;
    let tables = broker.reader.tables();
    let found = tables.groups().get(&group).ok_or(RequestError::NoGroup(group))?;
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&config_body(found)))
}

/// The configuration that results from what a tool wants, given the one there is.
fn wanted_config(wanted: &SubscriptionGroupConfig, known: Option<&GroupConfig>) -> Result<GroupConfig, RequestError> {
    names::validate_group(&wanted.group_name)?;
    let invalid = |what: String| RequestError::InvalidParameter(what);
    let retry_queues = u32::try_from(wanted.retry_queue_nums).ok().filter(|count| *count <= QUEUES_MAX);
    let retry_queues =
        retry_queues.ok_or_else(|| invalid(format!("retryQueueNums is not within 0 and {QUEUES_MAX}")))?;
    let broker_id = |key: &str, id: i64| u64::try_from(id).map_err(|_| invalid(format!("{key} is below 0")));
    if wanted.group_retry_policy != GroupRetryPolicy::default() {
        let what = "groupRetryPolicy: retries of this broker wait as its delay levels say";
        return Err(invalid(what.to_owned()));
    }
    let mut attributes = known.map(|known| known.attributes.clone()).unwrap_or_default();
    for change in attribute_changes(wanted.attributes.clone()) {
        match change {
            AttributeChange::Set(key, value) => attributes.insert(key, value),
            AttributeChange::Remove(key) => attributes.remove(&key),
        };
    }
    Ok(GroupConfig {
        name: wanted.group_name.clone(),
        consume_enabled: wanted.consume_enable,
        consume_from_min_enabled: wanted.consume_from_min_enable,
        broadcast_enabled: wanted.consume_broadcast_enable,
        orderly: wanted.consume_message_orderly,
        retry_queues,
        max_retries: wanted.retry_max_times,
        broker_id: broker_id("brokerId", wanted.broker_id)?,
        broker_id_when_slow: broker_id("whichBrokerWhenConsumeSlowly", wanted.which_broker_when_consume_slowly)?,
        notify_members: wanted.notify_consumer_ids_changed_enable,
        system_flag: wanted.group_sys_flag,
        consume_timeout_minutes: wanted.consume_timeout_minute,
        attributes,
    })
}

/// A group's configuration in RocketMQ's words.
fn config_body(config: &GroupConfig) -> SubscriptionGroupConfig {
    SubscriptionGroupConfig {
        attributes: config.attributes.clone(),
        broker_id: config.broker_id as i64,
        consume_broadcast_enable: config.broadcast_enabled,
        consume_enable: config.consume_enabled,
        consume_from_min_enable: config.consume_from_min_enabled,
        consume_message_orderly: config.orderly,
        consume_timeout_minute: config.consume_timeout_minutes,
        group_name: config.name.clone(),
        group_retry_policy: GroupRetryPolicy::default(),
        group_sys_flag: config.system_flag,
        notify_consumer_ids_changed_enable: config.notify_members,
        retry_max_times: config.max_retries,
        retry_queue_nums: config.retry_queues as i32,
        which_broker_when_consume_slowly: config.broker_id_when_slow as i64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_sent_back() {
        let known = GroupConfig { retry_queues: 3, max_retries: 5, orderly: true, ..GroupConfig::new("cg") };
        let shown = String::from_utf8(protocol::json::to_vec(&config_body(&known))).expect("JSON");
        let golden = r#"{"attributes":{},"brokerId":0,"consumeBroadcastEnable":true,"consumeEnable":true,"consumeFromMinEnable":true,"consumeMessageOrderly":true,"consumeTimeoutMinute":15,"groupName":"cg","groupRetryPolicy":{"type":"CUSTOMIZED"},"groupSysFlag":0,"notifyConsumerIdsChangedEnable":true,"retryMaxTimes":5,"retryQueueNums":3,"whichBrokerWhenConsumeSlowly":1}"#;
        assert_eq!(shown, golden);
        let sent = protocol::json::from_slice(shown.as_bytes()).expect("a group");
        assert_eq!(wanted_config(&sent, None).expect("it is legal"), known);
        assert_eq!(config_body(&GroupConfig::new("cg")), SubscriptionGroupConfig::new("cg"), "the same defaults");
    }

    #[test]
    fn what_no_group_can_be_is_an_invalid_parameter() {
        for body in [
            r#"{}"#,
            r#"{"groupName":"a b"}"#,
            r#"{"groupName":"cg","retryQueueNums":-1}"#,
            r#"{"groupName":"cg","retryQueueNums":2147483647}"#,
            r#"{"groupName":"cg","brokerId":-1}"#,
            r#"{"groupName":"cg","groupRetryPolicy":{"type":"EXPONENTIAL"}}"#,
        ] {
            let sent = protocol::json::from_slice(body.as_bytes()).expect("a group");
            let error = wanted_config(&sent, None).expect_err(body);
            assert_eq!(error.response_code(), Some(ResponseCode::INVALID_PARAMETER), "{body}: {error}");
        }
    }

    #[test]
    fn attributes_are_changed_one_by_one() {
        let known = GroupConfig { attributes: [("a".to_owned(), "1".to_owned())].into(), ..GroupConfig::new("cg") };
        let body = br#"{"groupName":"cg","attributes":{"+b":"2","-a":""}}"#;
        let sent = protocol::json::from_slice(body).expect("a group");
        let config = wanted_config(&sent, Some(&known)).expect("it is legal");
        assert_eq!(config.attributes, [("b".to_owned(), "2".to_owned())].into());
    }
}

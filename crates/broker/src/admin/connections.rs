//! Who is connected to this replica: 203, 204, 328, 345.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::body::{
    self, ConsumerConnection, ProducerConnection, ProducerInfo, ProducerTableInfo, QuerySubscriptionBody,
};
use protocol::code::ResponseCode;
use protocol::header::{ConsumerGroupRequest, GroupTopicRequest, ProducerGroupRequest};

use crate::broker::BrokerGroup;
use crate::clients::{ConnectionId, ConsumerGroup, Member};
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;

/// Handles GET_CONSUMER_CONNECTION_LIST.
pub async fn of_consumers(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let ConsumerGroupRequest { consumer_group, .. } = call.request.header()?;
    let clients = broker.clients.lock();
    Ok(match clients.consumer_group(&consumer_group) {
        Some(group) => call.request.reply(ResponseCode::SUCCESS).with_json(&consumer_connection(group)),
        None => {
            let remark = format!("the consumer group[{consumer_group}] not online");
            call.request.reply_error(ResponseCode::CONSUMER_NOT_ONLINE, remark)
        }
    })
}

/// Handles GET_PRODUCER_CONNECTION_LIST.
pub async fn of_producers(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let ProducerGroupRequest { producer_group } = call.request.header()?;
    let clients = broker.clients.lock();
    let members = clients.producer_group(&producer_group);
    let members =
        members.ok_or_else(|| RequestError::Failed(format!("the producer group[{producer_group}] not exist")))?;
    let body = ProducerConnection { connection_set: connection_set(members) };
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&body))
}

/// Handles GET_ALL_PRODUCER_INFO.
pub async fn all_producers(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let clock = &broker.env.clock;
    let (monotonic, wall_ms) = (clock.monotonic(), clock.wall_ms());
    let clients = broker.clients.lock();
    let groups = clients.producer_groups().map(|(name, members)| {
        let infos = members.values().map(|member| producer_info(member, monotonic, wall_ms)).collect();
        (name.to_owned(), infos)
    });
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&ProducerTableInfo { data: groups.collect() }))
}

/// Handles QUERY_SUBSCRIPTION_BY_CONSUMER.
pub async fn subscription(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let GroupTopicRequest { group, topic } = call.request.header()?;
    let subscription_data = {
        let clients = broker.clients.lock();
        let subscriptions = clients.consumer_group(&group).map(|group| &group.subscriptions);
        subscriptions.and_then(|subscriptions| subscriptions.get(&topic)).map(|found| found.data.clone())
    };
    let body = QuerySubscriptionBody { group, subscription_data, topic };
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&body))
}

fn consumer_connection(group: &ConsumerGroup) -> ConsumerConnection {
    let subscriptions = group.subscriptions.iter();
    ConsumerConnection {
        connection_set: connection_set(&group.members),
        consume_from_where: group.described.consume_from_where,
        consume_type: group.described.consume_type,
        message_model: group.described.message_model,
        subscription_table: subscriptions.map(|(topic, found)| (topic.clone(), found.data.clone())).collect(),
    }
}

fn connection_set(members: &BTreeMap<ConnectionId, Arc<Member>>) -> Vec<body::Connection> {
    let connection = |member: &Arc<Member>| body::Connection {
        client_addr: member.address.to_string(),
        client_id: member.client_id.clone(),
        language: member.language.java_name().to_owned(),
        version: member.version,
    };
    members.values().map(connection).collect()
}

/// A producer, at monotonic time `monotonic`, when it was `wall_ms`.
fn producer_info(member: &Member, monotonic: Duration, wall_ms: i64) -> ProducerInfo {
    let silent = monotonic.saturating_sub(member.last_seen);
    ProducerInfo {
        client_id: member.client_id.clone(),
        language: member.language.java_name().to_owned(),
        last_update_timestamp: wall_ms - silent.as_millis() as i64,
        remote_ip: member.address.to_string(),
        version: member.version,
    }
}

#[cfg(test)]
mod tests {
    use protocol::body::HeartbeatData;
    use protocol::language::Language;

    use super::*;
    use crate::clients::Clients;

    const HEARTBEAT: &str = r#"{"clientID":"10.0.0.9@4242#1","consumerDataSet":[{"consumeFromWhere":"CONSUME_FROM_FIRST_OFFSET","consumeType":"CONSUME_PASSIVELY","groupName":"cg","messageModel":"CLUSTERING","subscriptionDataSet":[{"classFilterMode":false,"codeSet":[],"expressionType":"TAG","subString":"*","subVersion":1700000000000,"tagsSet":[],"topic":"T"}],"unitMode":false}],"heartbeatFingerprint":0,"producerDataSet":[{"groupName":"pg"}],"withoutSub":false}"#;

    fn clients() -> Clients {
        let heartbeat: HeartbeatData = protocol::json::from_slice(HEARTBEAT.as_bytes()).expect("a heartbeat");
        let member = Member {
            client_id: heartbeat.client_id.clone(),
            address: "10.0.0.9:51234".parse().expect("an address"),
            language: Language::from_name("KLINGON"),
            version: 479,
            last_seen: Duration::from_secs(100),
        };
        let mut clients = Clients::default();
        clients.heartbeat(7, member, &heartbeat).expect("few groups");
        clients
    }

    fn text(body: &impl serde::Serialize) -> String {
        String::from_utf8(protocol::json::to_vec(body)).expect("JSON")
    }

    #[test]
    fn a_group_is_shown_as_its_heartbeat_describes_it() {
        let clients = clients();
        let group = clients.consumer_group("cg").expect("it is online");
        let golden = r#"{"connectionSet":[{"clientAddr":"10.0.0.9:51234","clientId":"10.0.0.9@4242#1","language":"OTHER","version":479}],"consumeFromWhere":"CONSUME_FROM_FIRST_OFFSET","consumeType":"CONSUME_PASSIVELY","messageModel":"CLUSTERING","subscriptionTable":{"T":{"classFilterMode":false,"codeSet":[],"expressionType":"TAG","subString":"*","subVersion":1700000000000,"tagsSet":[],"topic":"T"}}}"#;
        assert_eq!(text(&consumer_connection(group)), golden);
    }

    #[test]
    fn a_producer_was_heard_as_long_ago_as_it_has_been_silent() {
        let clients = clients();
        let members = clients.producer_group("pg").expect("it is online");
        let info = members.values().map(|member| producer_info(member, Duration::from_secs(130), 1_700_000_000_000));
        let body = ProducerTableInfo { data: [("pg".to_owned(), info.collect())].into() };
        let golden = r#"{"data":{"pg":[{"clientId":"10.0.0.9@4242#1","language":"OTHER","lastUpdateTimestamp":1699999970000,"remoteIP":"10.0.0.9:51234","version":479}]}}"#;
        assert_eq!(text(&body), golden);
    }
}

//! Who is there: HEART_BEAT 34, UNREGISTER_CLIENT 35, CHECK_CLIENT_CONFIG 46, GET_CONSUMER_LIST_BY_GROUP 38, at every
//! replica, because clients ask any of them and heartbeat to all of them.
//!
//! A consumer's first heartbeat makes its group and retry topic, by a replicated command; a follower asks the leader for
//! it, by sending the heartbeat on. A heartbeat that was sent on makes groups and nothing else: the client itself is
//! connected elsewhere.

use std::sync::Arc;
use std::time::Duration;

use protocol::body::{CheckClientRequest, ConsumerData, ConsumerIdList, HeartbeatData};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{ConsumerGroupRequest, HeartbeatResponse, UnregisterClientRequest};
use protocol::names;
use remoting::Connection;

use crate::broker::BrokerGroup;
use crate::clients::{Changed, GROUPS_MAX, Member, SUBSCRIPTIONS_MAX};
use crate::dispatch::{Answer, Call, Leader};
use crate::error::RequestError;
use crate::filter::{BadFilter, Filter};
use crate::forward;

/// The silent are looked for this often.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);

/// A client says all of it again every 30 s, and it is taken in while everybody else's heartbeats wait.
const HEARTBEAT_BYTES_MAX: usize = 1 << 20;

/// Clients call themselves "address@process" and the like.
const CLIENT_ID_BYTES_MAX: usize = 1_024;

/// Handles HEART_BEAT.
pub async fn heartbeat(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    at_most("bytes in a heartbeat", call.request.body.len(), HEARTBEAT_BYTES_MAX)?;
    let mut heartbeat: HeartbeatData = call.request.json()?;
    refuse_too_much(&heartbeat)?;
    // As in RocketMQ, a group that cannot be is passed over in silence; the rest of the heartbeat counts.
    heartbeat.producer_data_set.retain(|group| names::validate_group(&group.group_name).is_ok());
    heartbeat.consumer_data_set.retain(|group| broker.may_exist(group));

    let missing = broker.missing_groups(&heartbeat);
    let made = if missing.is_empty() { Ok(()) } else { make_groups(broker, call, &missing).await };
    if made.is_err() {
        // There are members of what exists, whatever becomes of the rest.
        heartbeat.consumer_data_set.retain(|group| broker.group_exists(&group.group_name));
    }
    let mut needs_subscriptions = false;
    if !call.is_forwarded {
        let member = Member {
            client_id: heartbeat.client_id.clone(),
            address: call.born_host,
            language: call.request.language.clone(),
            version: call.request.version,
            last_seen: broker.env.clock.monotonic(),
        };
        broker.connections.lock().insert(call.connection.id(), call.connection.clone());
        let heard = broker.clients.lock().heartbeat(call.connection.id(), member, &heartbeat)?;
        needs_subscriptions = heard.needs_subscriptions;
        broker.tell_members(&heard.changed);
    }
    made?;
    if broker.leads() {
        broker.begin_groups(&heartbeat).await;
    }
    let header = HeartbeatResponse {
        is_support_heart_beat_v2: true,
        // Heartbeats of the first version carry everything every time; Java answers them so.
        is_sub_change: heartbeat.heartbeat_fingerprint == 0 || needs_subscriptions,
    };
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &header))
}

fn refuse_too_much(heartbeat: &HeartbeatData) -> Result<(), RequestError> {
    at_most("bytes in a clientID", heartbeat.client_id.len(), CLIENT_ID_BYTES_MAX)?;
    let (producers, consumers) = (&heartbeat.producer_data_set, &heartbeat.consumer_data_set);
    at_most("groups in a heartbeat", producers.len() + consumers.len(), GROUPS_MAX)?;
    let mut subscriptions = consumers.iter().map(|group| group.subscription_data_set.len());
    subscriptions.try_for_each(|count| at_most("subscriptions of a group", count, SUBSCRIPTIONS_MAX))
}

fn at_most(what: &str, count: usize, limit: usize) -> Result<(), RequestError> {
    if count <= limit {
        return Ok(());
    }
    Err(RequestError::InvalidParameter(format!("{count} {what}, at most {limit}")))
}

/// Makes groups here, or lets the leader do it.
async fn make_groups(broker: &Arc<BrokerGroup>, call: &Call, groups: &[String]) -> Result<(), RequestError> {
    let patience = broker.env.clock.monotonic() + broker.config.limits.leader_wait;
    match broker.wait_for_leader(patience.min(call.deadline)).await? {
        Leader::Here => {
            broker.ensure_groups(groups).await?;
            Ok(())
        }
        Leader::At(leader) if call.is_forwarded => Err(RequestError::NotLeader { leader: Some(leader) }),
        Leader::At(leader) => forward::forward(broker, call, &leader).await.map(drop),
    }
}

/// Handles UNREGISTER_CLIENT.
pub async fn unregister(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: UnregisterClientRequest = call.request.header()?;
    let (producer, consumer) = (request.producer_group.as_deref(), request.consumer_group.as_deref());
    let changed = broker.clients.lock().unregister(call.connection.id(), producer, consumer);
    broker.tell_members(&changed);
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// Handles CHECK_CLIENT_CONFIG.
pub async fn check_client(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: CheckClientRequest = call.request.json()?;
    if let Some(subscription) = &request.subscription_data {
        Filter::of(subscription).map_err(BadFilter::at_check)?.allowed(broker.config.messages.sql_filters)?;
    }
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// Handles GET_CONSUMER_LIST_BY_GROUP.
pub async fn consumer_list(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: ConsumerGroupRequest = call.request.header()?;
    let clients = broker.clients.lock();
    let group = clients.consumer_group(&request.consumer_group);
    let ids: Vec<String> =
        group.map(|group| group.client_ids().into_iter().map(str::to_owned).collect()).unwrap_or_default();
    if ids.is_empty() {
        return Err(RequestError::Failed(format!("no consumer for this group, {}", request.consumer_group)));
    }
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&ConsumerIdList { consumer_id_list: ids }))
}

/// A connection has closed: its client is gone from every group.
pub fn closed(broker: &BrokerGroup, connection: &Connection) {
    if broker.connections.lock().remove(&connection.id()).is_some() {
        let changed = broker.clients.lock().closed(connection.id());
        broker.tell_members(&changed);
    }
}

/// Strikes out clients that have been silent for too long.
pub async fn drop_the_silent(broker: Arc<BrokerGroup>) {
    loop {
        broker.env.clock.sleep(SCAN_INTERVAL).await;
        let changed = broker.clients.lock().expire(broker.env.clock.monotonic());
        broker.tell_members(&changed);
    }
}

impl BrokerGroup {
    /// Gives groups that are new to a topic their first offsets. What fails is tried again when a member asks for its offset.
    async fn begin_groups(&self, heartbeat: &HeartbeatData) {
        for group in &heartbeat.consumer_data_set {
            for subscription in &group.subscription_data_set {
                if let Err(error) = self.begin_group(group, &subscription.topic).await {
                    let (group, topic) = (&group.group_name, &subscription.topic);
                    tracing::debug!(group, topic, %error, "the group has no first offsets yet");
                }
            }
        }
    }

    fn may_exist(&self, group: &ConsumerData) -> bool {
        let name = &group.group_name;
        names::validate_group(name).is_ok() && (self.config.messages.auto_create_groups || self.group_exists(name))
    }

    fn group_exists(&self, name: &str) -> bool {
        self.reader.tables().groups().get(name).is_some()
    }

    fn missing_groups(&self, heartbeat: &HeartbeatData) -> Vec<String> {
        let names = heartbeat.consumer_data_set.iter().map(|group| &group.group_name);
        names.filter(|name| self.is_group_missing(name)).cloned().collect()
    }

    /// Tells members that their group has changed. A member that cannot be told asks by itself every 20 s.
    fn tell_members(&self, changed: &Changed) {
        for (group, members) in changed.iter() {
            let is_quiet = self.reader.tables().groups().get(group).is_some_and(|group| !group.notify_members);
            if is_quiet {
                continue;
            }
            let header = ConsumerGroupRequest { consumer_group: group.to_owned(), broker_name: None };
            let notice = RemotingCommand::request_with(RequestCode::NOTIFY_CONSUMER_IDS_CHANGED, &header);
            let connections = self.connections.lock();
            for connection in members.iter().filter_map(|id| connections.get(id)) {
                if let Err(error) = connection.one_way(notice.clone()) {
                    tracing::debug!(peer = %connection.peer_addr(), group, %error, "a member was not told of a change");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::body::{ProducerData, SubscriptionData};

    use super::*;

    #[test]
    fn a_heartbeat_says_no_more_than_a_client_can_mean() {
        let of = |producers, consumers, subscriptions| HeartbeatData {
            producer_data_set: vec![ProducerData::default(); producers],
            consumer_data_set: vec![
                ConsumerData {
                    subscription_data_set: vec![SubscriptionData::default(); subscriptions],
                    ..ConsumerData::default()
                };
                consumers
            ],
            ..HeartbeatData::default()
        };
        assert!(refuse_too_much(&of(1_000, 24, 1)).is_ok());
        assert!(refuse_too_much(&of(0, 1, 1_024)).is_ok());
        for too_much in [
            of(1_025, 0, 0),
            of(1_024, 1, 0),
            of(0, 1, 1_025),
            HeartbeatData { client_id: "c".repeat(1_025), ..HeartbeatData::default() },
        ] {
            let error = refuse_too_much(&too_much).expect_err("it is too much");
            assert_eq!(error.response_code(), Some(ResponseCode::INVALID_PARAMETER), "{error}");
        }
    }
}

//! Who fetches what, where the broker decides it: QUERY_ASSIGNMENT 400, SET_MESSAGE_REQUEST_MODE 401.
//!
//! A consumer asks any broker of a topic for its share of all the topic's queues, also of those on other brokers; which
//! these are the NameServers say. It is told whether to pull its queues or to pop them, too: a group that was set to pop a
//! topic may have all its consumers pop from all queues, or from those of a few neighbours.

use std::sync::Arc;
use std::time::Duration;

use protocol::allocate;
use protocol::body::{
    MessageModel, MessageQueue, MessageQueueAssignment, MessageRequestMode, QueryAssignmentRequest,
    QueryAssignmentResponse, SetMessageRequestModeRequest, TopicRouteData,
};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::GetRouteInfoRequest;
use protocol::names::{self, validate_group, validate_topic};
use protocol::permission::Permission;

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::tables::command::Command;
use crate::tables::request_modes::RequestMode;

/// How long one NameServer may take to answer: the client waits three seconds.
const ROUTE_LIMIT: Duration = Duration::from_secs(1);

/// Handles SET_MESSAGE_REQUEST_MODE.
pub async fn set_request_mode(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: SetMessageRequestModeRequest = call.request.json()?;
    if names::group_of_retry_topic(&request.topic).is_some() {
        let remark = "retry topic is not allowed to set mode".to_owned();
        return Err(RequestError::Forbidden { remark, whose: None });
    }
    validate_topic(&request.topic)?;
    validate_group(&request.consumer_group)?;
    {
        let tables = broker.reader.tables();
        let (modes, limit) = (tables.request_modes(), broker.config.limits.topics);
        if modes.get(&request.consumer_group, &request.topic).is_none() && modes.count() >= limit {
            return Err(RequestError::Busy(format!("request modes: {limit} are set, and no more may be")));
        }
    }
    let mode = match request.mode {
        MessageRequestMode::Pull => RequestMode::Pull,
        MessageRequestMode::Pop => {
            RequestMode::Pop { shared_by: u32::try_from(request.pop_share_queue_num).unwrap_or(0) }
        }
    };
    let SetMessageRequestModeRequest { consumer_group, topic, .. } = request;
    broker.command(&Command::SetRequestMode { group: consumer_group, topic, mode }).await?;
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// Handles QUERY_ASSIGNMENT. A body without a list means that the client keeps what it has.
pub async fn query(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: QueryAssignmentRequest = call.request.json()?;
    let mode = broker.reader.tables().request_modes().get(&request.consumer_group, &request.topic);
    let mode = mode.unwrap_or(RequestMode::Pull);
    let queues = broker.read_queues(&request.topic).await;
    let assigned = queues.and_then(|queues| match request.message_model {
        MessageModel::Broadcasting => Some(queues),
        MessageModel::Clustering => {
            let members = {
                let clients = broker.clients.lock();
                let group = clients.consumer_group(&request.consumer_group)?;
                group.client_ids().into_iter().map(str::to_owned).collect::<Vec<_>>()
            };
            let strategy = Strategy::named(request.strategy_name.as_deref()?)?;
            share(&queues, &members, &request.client_id, strategy, mode)
        }
    });
    let wire_mode = match mode {
        RequestMode::Pull => MessageRequestMode::Pull,
        RequestMode::Pop { .. } => MessageRequestMode::Pop,
    };
    let assignment = |message_queue| MessageQueueAssignment { message_queue, mode: wire_mode };
    let body = QueryAssignmentResponse {
        message_queue_assignments: assigned.map(|queues| queues.into_iter().map(assignment).collect()),
    };
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&body))
}

/// RocketMQ's strategies that brokers know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    Average,
    ByCircle,
}

impl Strategy {
    fn named(name: &str) -> Option<Strategy> {
        match name {
            "AVG" => Some(Strategy::Average),
            "AVG_BY_CIRCLE" => Some(Strategy::ByCircle),
            _ => None,
        }
    }

    fn share_of(self, queues: &[MessageQueue], members: &[String], member: &str) -> Option<Vec<MessageQueue>> {
        match self {
            Strategy::Average => allocate::share_of(queues, members, member),
            Strategy::ByCircle => allocate::circle_of(queues, members, member),
        }
    }
}

/// The queues of a member; `None` if it is not known to be one.
fn share(
    queues: &[MessageQueue],
    members: &[String],
    member: &str,
    strategy: Strategy,
    mode: RequestMode,
) -> Option<Vec<MessageQueue>> {
    let RequestMode::Pop { shared_by } = mode else { return strategy.share_of(queues, members, member) };
    if shared_by == 0 {
        // Each broker chooses among its own.
        let mut all: Vec<_> = queues.iter().map(|queue| MessageQueue { queue_id: -1, ..queue.clone() }).collect();
        all.sort();
        all.dedup();
        return Some(all);
    }
    let mut members = members.to_vec();
    members.sort();
    members.dedup();
    let at = members.iter().position(|other| other == member)?;
    if members.len() > queues.len() {
        // More consumers than queues: each has one, and shares it.
        let mut queues = queues.to_vec();
        queues.sort();
        return Some(queues.get(at % queues.len().max(1)).cloned().into_iter().collect());
    }
    let neighbours = (shared_by as usize).min(members.len() - 1);
    let mut shares = Vec::new();
    for next in 0..=neighbours {
        shares.extend(strategy.share_of(queues, &members, &members[(at + next) % members.len()])?);
    }
    shares.sort();
    Some(shares)
}

impl BrokerGroup {
    /// All queues of the topic that can be read, of all brokers; of this one alone if no NameServer answers. `None` if
    /// nobody has the topic.
    async fn read_queues(&self, topic: &str) -> Option<Vec<MessageQueue>> {
        let header = GetRouteInfoRequest { topic: topic.to_owned(), ..GetRouteInfoRequest::default() };
        for name_server in &self.name_servers {
            let request = RemotingCommand::request_with(RequestCode::GET_ROUTEINFO_BY_TOPIC, &header);
            match self.peers.call(name_server, request, ROUTE_LIMIT).await {
                Ok(answer) if answer.response_code() == ResponseCode::SUCCESS => {
                    let route: TopicRouteData = answer.json().ok()?;
                    return Some(queues_of(&route, topic));
                }
                Ok(answer) if answer.response_code() == ResponseCode::TOPIC_NOT_EXIST => break,
                Ok(answer) => tracing::debug!(name_server, code = answer.code, topic, "no route"),
                Err(error) => tracing::debug!(name_server, %error, topic, "no route"),
            }
        }
        // Not told of yet, or nobody to tell.
        let tables = self.reader.tables();
        let config = &tables.topics().get(topic)?.config;
        let is_readable = Permission(config.permission as i32).is_readable();
        let queues = if is_readable { config.read_queues } else { 0 };
        Some((0..queues).map(|queue| MessageQueue::new(topic, self.broker_name(), queue as i32)).collect())
    }
}

fn queues_of(route: &TopicRouteData, topic: &str) -> Vec<MessageQueue> {
    let readable = route.queue_datas.iter().filter(|queues| Permission(queues.perm).is_readable());
    readable
        .flat_map(|queues| (0..queues.read_queue_nums).map(|id| MessageQueue::new(topic, &queues.broker_name, id)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(brokers: &[&str], each: i32) -> Vec<MessageQueue> {
        brokers.iter().flat_map(|broker| (0..each).map(|id| MessageQueue::new("T", *broker, id))).collect()
    }

    fn shares(queues: &[MessageQueue], members: &[&str], mode: RequestMode) -> Vec<Vec<String>> {
        let ids: Vec<String> = members.iter().map(|id| (*id).to_owned()).collect();
        let shown = |queue: MessageQueue| format!("{}{}", queue.broker_name, queue.queue_id);
        let of = |member: &&str| share(queues, &ids, member, Strategy::Average, mode).expect("a member");
        members.iter().map(|member| of(member).into_iter().map(shown).collect()).collect()
    }

    #[test]
    fn who_pops_shares_all_queues_or_those_of_some_neighbours() {
        let all = queues(&["a", "b"], 2);
        assert_eq!(shares(&all, &["x", "y"], RequestMode::Pull), [vec!["a0", "a1"], vec!["b0", "b1"]]);
        let everybody = RequestMode::Pop { shared_by: 0 };
        assert_eq!(shares(&all, &["x", "y"], everybody), [vec!["a-1", "b-1"], vec!["a-1", "b-1"]]);
        let neighbour = RequestMode::Pop { shared_by: 1 };
        let four = shares(&all, &["w", "x", "y", "z"], neighbour);
        assert_eq!(four, [vec!["a0", "a1"], vec!["a1", "b0"], vec!["b0", "b1"], vec!["a0", "b1"]]);
        let more = shares(&queues(&["a"], 2), &["x", "y", "z"], RequestMode::Pop { shared_by: 9 });
        assert_eq!(more, [vec!["a0"], vec!["a1"], vec!["a0"]], "every consumer has a queue");
        let few = shares(&all, &["x", "y"], RequestMode::Pop { shared_by: 9 });
        assert_eq!(few[0], ["a0", "a1", "b0", "b1"], "each once");
        assert!(share(&all, &["x".to_owned()], "y", Strategy::Average, neighbour).is_none());
    }

    #[test]
    fn a_route_names_the_queues_that_can_be_read() {
        let data = |broker: &str, perm, read_queue_nums| protocol::body::QueueData {
            broker_name: broker.to_owned(),
            perm,
            read_queue_nums,
            ..protocol::body::QueueData::default()
        };
        let route = TopicRouteData { queue_datas: vec![data("a", 6, 2), data("b", 2, 2)], ..TopicRouteData::default() };
        assert_eq!(queues_of(&route, "T"), queues(&["a"], 2));
    }
}

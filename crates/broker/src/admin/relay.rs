//! Questions for a client that tools cannot reach: 307, 309. They go out on the connection that the client has made to
//! this replica, and the client's answer goes back unread. A client that is not connected here is asked by the replica that
//! it is connected to.

use std::sync::Arc;
use std::time::Duration;

use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{ConsumeMessageDirectlyRequest, GetConsumerRunningInfoRequest};
use protocol::message_id::MessageId;
use protocol::record::RecordView;
use remoting::CallError;

use crate::broker::BrokerGroup;
use crate::clients::{ConnectionId, ConsumerGroup, Member};
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::forward::{self, Elsewhere};

/// How long a client may take. Some never answer what they do not know.
const CLIENT_LIMIT: Duration = Duration::from_secs(10);

/// Older clients know neither question: V3_1_8_SNAPSHOT.
const VERSION_MIN: i32 = 62;

/// Handles GET_CONSUMER_RUNNING_INFO.
pub async fn running_info(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let header: GetConsumerRunningInfoRequest = call.request.header()?;
    let question = RemotingCommand::request_with(RequestCode::GET_CONSUMER_RUNNING_INFO, &header);
    ask(broker, call, &header.consumer_group, Some(&header.client_id), question).await
}

/// Handles CONSUME_MESSAGE_DIRECTLY: the message goes along.
pub async fn consume_directly(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let mut header: ConsumeMessageDirectlyRequest = call.request.header()?;
    let id: Result<MessageId, _> = header.msg_id.as_deref().unwrap_or("").parse();
    let id = id.map_err(|error| RequestError::InvalidParameter(format!("msgId: {error}")))?;
    let record = broker.message_at(id.physical_offset).await?.shown(broker)?;
    {
        let tables = broker.reader.tables();
        let topic = RecordView::parse(&record).map(|record| tables.topics().get(record.topic()).cloned());
        let topic = topic?.map(|topic| topic.config);
        let group = tables.groups().get(&header.consumer_group);
        header.broker_name = Some(broker.broker_name().to_owned());
        header.topic_sys_flag = topic.as_ref().map(|topic| topic.system_flag as i32);
        header.topic = topic.map(|topic| topic.name);
        header.group_sys_flag = group.map(|group| group.system_flag);
    }
    let question = RemotingCommand::request_with(RequestCode::CONSUME_MESSAGE_DIRECTLY, &header).with_body(record);
    ask(broker, call, &header.consumer_group, header.client_id.as_deref(), question).await
}

async fn ask(
    broker: &Arc<BrokerGroup>,
    call: &Call,
    group: &str,
    client_id: Option<&str>,
    question: RemotingCommand,
) -> Answer {
    let shown_id = client_id.unwrap_or("*");
    if !broker.is_member_here(group, client_id) {
        if forward::is_asked_for_here(&call.request) {
            return Ok(forward::not_here(&call.request));
        }
        if let Elsewhere::Answered(answer) = forward::elsewhere(broker, &call.request, CLIENT_LIMIT).await {
            return Ok(answer);
        }
    }
    let not_online = || RequestError::Failed(format!("The Consumer <{group}> <{shown_id}> not online"));
    let connection = {
        let clients = broker.clients.lock();
        let found = clients.consumer_group(group).and_then(|group| member(group, client_id));
        let (id, member) = found.ok_or_else(not_online)?;
        if member.version < VERSION_MIN {
            return Err(RequestError::Failed(format!(
                "The Consumer <{group}> <{shown_id}> Version <{}> too low to finish, please upgrade it to V3_1_8_SNAPSHOT",
                member.version
            )));
        }
        broker.connections.lock().get(&id).cloned()
    };
    match connection.ok_or_else(not_online)?.call(question, CLIENT_LIMIT).await {
        Ok(answer) => {
            let mut relayed = call.request.reply(answer.response_code()).with_body(answer.body);
            (relayed.remark, relayed.ext) = (answer.remark, answer.ext);
            Ok(relayed)
        }
        Err(CallError::NotSent(_)) => Err(not_online()),
        Err(CallError::Unknown(reason)) => {
            let remark = format!("consumer <{group}> <{shown_id}> Timeout: {reason}");
            Ok(call.request.reply_error(ResponseCode::CONSUME_MSG_TIMEOUT, remark))
        }
    }
}

impl BrokerGroup {
    fn is_member_here(&self, group: &str, client_id: Option<&str>) -> bool {
        let clients = self.clients.lock();
        clients.consumer_group(group).is_some_and(|group| member(group, client_id).is_some())
    }
}

/// The member of that name; any one if none is named. Of several connections of one client the newest counts.
fn member<'a>(group: &'a ConsumerGroup, client_id: Option<&str>) -> Option<(ConnectionId, &'a Member)> {
    let members = group.members.iter().map(|(id, member)| (*id, &**member));
    members.rev().find(|(_, member)| client_id.is_none_or(|wanted| wanted == member.client_id))
}

#[cfg(test)]
mod tests {
    use protocol::body::ConsumerData;
    use protocol::language::Language;

    use super::*;

    #[test]
    fn the_newest_connection_of_the_named_client_is_asked() {
        let named = |client_id: &str| {
            Arc::new(Member {
                client_id: client_id.to_owned(),
                address: "127.0.0.1:1".parse().expect("an address"),
                language: Language::JAVA,
                version: 479,
                last_seen: Duration::ZERO,
            })
        };
        let group = ConsumerGroup {
            described: ConsumerData::default(),
            subscriptions: [].into(),
            members: [(1, named("a")), (2, named("b")), (3, named("a"))].into(),
        };
        let asked = |client_id| member(&group, client_id).map(|(id, _)| id);
        assert_eq!((asked(Some("a")), asked(Some("b")), asked(Some("c"))), (Some(3), Some(2), None));
        assert_eq!(asked(None), Some(3));
    }
}

//! Moving consumer groups: 222 to a point in time or to the end, 314 to where another group is; 223 asks consumers how far
//! they have come.
//!
//! A move is one command in the log, and holds while consumers run: until one of them goes on from the new offset, a pull
//! from anywhere else is told to go there, and what consumers say of the old place does not count. So nothing needs to reach
//! them; those that are connected are told all the same (220), because they need not wait for their next pull then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::body::{GetConsumerStatusBody, MessageQueue, ResetOffsetBody};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{
    CloneGroupOffsetRequest, GetConsumerStatusRequest, ResetConsumerClientOffsetRequest, ResetOffsetRequest,
};
use protocol::language::Language;
use raft_store::consume_queue::TimeBoundary;
use raft_store::position::Timestamp;
use remoting::Connection;

use super::queues::QueueView;
use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::tables::command::Command;

/// How long a client may take to say how far it has come.
const CLIENT_LIMIT: Duration = Duration::from_secs(3);

/// Handles INVOKE_BROKER_TO_RESET_OFFSET.
pub async fn reset(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: ResetOffsetRequest = call.request.header()?;
    let (group, name) = (&request.group, &request.topic);
    let topic = broker.topic(name)?;
    // Whatever was acknowledged is behind the end that is looked for, and what consumers have said is known.
    broker.linearizable().await?;
    broker.pending_offsets.flush(broker).await;
    let wanted = request.queue_id.and_then(|queue| u32::try_from(queue).ok());
    let mut offsets = Vec::new();
    for queue in QueueView::all(&broker.reader, &topic) {
        if wanted.is_some_and(|wanted| wanted != queue.number) {
            continue;
        }
        let bounds = queue.bounds();
        let offset = match (request.offset.and_then(|offset| u64::try_from(offset).ok()), request.timestamp) {
            (Some(offset), _) if wanted.is_some() => {
                if offset < bounds.start || offset > bounds.end {
                    let (number, end) = (queue.number, bounds.end);
                    return Err(RequestError::InvalidParameter(format!(
                        "Target offset {offset} not in consume queue range [{}-{end}] of queue {number}",
                        bounds.start
                    )));
                }
                offset
            }
            (_, ..0) => bounds.end,
            (_, timestamp) => queue.search_by_time(Timestamp(timestamp), TimeBoundary::Lower).await?,
        };
        let consumed = broker.reader.tables().offsets().get(group, name, queue.number);
        if request.is_force || consumed.is_none_or(|consumed| offset < consumed) {
            offsets.push((queue.number, offset));
        }
    }
    if let Some(wanted) = wanted.filter(|wanted| *wanted >= topic.queues()) {
        let queues = topic.queues();
        return Err(RequestError::InvalidParameter(format!("queueId {wanted}: the topic has {queues} queues")));
    }
    let table = broker.move_group(group, name, offsets, request.timestamp).await?;
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&ResetOffsetBody { offset_table: table }))
}

/// Handles CLONE_GROUP_OFFSET: a group goes on where another one is, in one topic or in all that the other consumes. Where the
/// other has no offset nothing changes.
pub async fn clone_offsets(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: CloneGroupOffsetRequest = call.request.header()?;
    let (from, to) = (&request.src_group, &request.dest_group);
    if from == to {
        return Err(RequestError::InvalidParameter(format!("srcGroup and destGroup are both {from}")));
    }
    broker.linearizable().await?;
    broker.pending_offsets.flush(broker).await;
    let mut topics: BTreeMap<String, Vec<(u32, u64)>> = BTreeMap::new();
    {
        let tables = broker.reader.tables();
        if tables.groups().get(from).is_none() {
            return Err(RequestError::NoGroup(from.clone()));
        }
        let is_wanted = |topic: &str| match &request.topic {
            Some(wanted) => wanted == topic,
            // The retries of a group are its own.
            None => protocol::names::group_of_retry_topic(topic).is_none(),
        };
        for (key, offset) in tables.offsets().of_group(from).filter(|(key, _)| is_wanted(&key.topic)) {
            topics.entry(key.topic.clone()).or_default().push((key.queue, offset));
        }
    }
    broker.ensure_group(to).await?;
    for (topic, offsets) in topics {
        broker.move_group(to, &topic, offsets, -1).await?;
    }
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// Handles INVOKE_BROKER_TO_GET_CONSUMER_STATUS.
pub async fn consumer_status(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: GetConsumerStatusRequest = call.request.header()?;
    let wanted = request.client_addr.as_deref();
    let members: Vec<_> = broker.members_of(&request.group);
    let members = members.into_iter().filter(|member| wanted.is_none_or(|wanted| wanted == member.client_id));
    let asked = members.map(|member| {
        let question = RemotingCommand::request_with(RequestCode::GET_CONSUMER_STATUS_FROM_CLIENT, &request);
        async move { (member.client_id, member.connection.call(question, CLIENT_LIMIT).await) }
    });
    let mut body = GetConsumerStatusBody::default();
    for (client, answer) in futures::future::join_all(asked).await {
        let said = match answer {
            Ok(answer) if answer.response_code() == ResponseCode::SUCCESS => {
                answer.json::<GetConsumerStatusBody>().map_err(|error| error.to_string())
            }
            Ok(answer) => Err(answer.remark_text().to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match said {
            Ok(status) => {
                body.consumer_table.insert(client, status.message_queue_table);
            }
            Err(error) => tracing::debug!(client, error, "a consumer does not say how far it has come"),
        }
    }
    if body.consumer_table.is_empty() {
        let remark = format!("No Any Consumer online in the consumer group: [{}]", request.group);
        return Err(RequestError::Failed(remark));
    }
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&body))
}

/// A consumer that can be told something.
struct ConnectedMember {
    client_id: String,
    language: Language,
    connection: Connection,
}

impl BrokerGroup {
    /// Moves the group, and tells its members. Where it is now.
    async fn move_group(
        &self,
        group: &str,
        topic: &str,
        offsets: Vec<(u32, u64)>,
        timestamp: i64,
    ) -> Result<BTreeMap<MessageQueue, i64>, RequestError> {
        if self.reader.tables().groups().get(group).is_none() {
            return Err(RequestError::NoGroup(group.to_owned()));
        }
        let queue = |number: u32| MessageQueue::new(topic, self.broker_name(), number as i32);
        let table: BTreeMap<_, _> = offsets.iter().map(|(number, offset)| (queue(*number), *offset as i64)).collect();
        if offsets.is_empty() {
            return Ok(table);
        }
        let command = Command::ResetOffsets { group: group.to_owned(), topic: topic.to_owned(), offsets };
        self.command(&command).await?;
        let header = ResetConsumerClientOffsetRequest {
            topic: topic.to_owned(),
            group: group.to_owned(),
            timestamp,
            is_force: true,
        };
        let notice = RemotingCommand::request_with(RequestCode::RESET_CONSUMER_CLIENT_OFFSET, &header);
        let body = ResetOffsetBody { offset_table: table };
        for member in self.members_of(group) {
            let notice = match member.language == Language::CPP {
                true => notice.clone().with_body(body.to_cpp_body()),
                false => notice.clone().with_json(&body),
            };
            // One that cannot be told finds out by its next pull.
            if let Err(error) = member.connection.one_way(notice) {
                tracing::debug!(client = member.client_id, group, %error, "a member was not told of a reset");
            }
        }
        Ok(body.offset_table)
    }

    fn members_of(&self, group: &str) -> Vec<ConnectedMember> {
        let clients = self.clients.lock();
        let connections = self.connections.lock();
        let members = clients.consumer_group(group).into_iter().flat_map(|group| &group.members);
        members
            .filter_map(|(id, member)| {
                let connection = connections.get(id)?.clone();
                let (client_id, language) = (member.client_id.clone(), member.language.clone());
                Some(ConnectedMember { client_id, language, connection })
            })
            .collect()
    }
}

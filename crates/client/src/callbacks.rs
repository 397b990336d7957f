//! What brokers ask of a client over the connections it opened: 39, 40, 220, 221, 307, 309, 326.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use protocol::body::{GetConsumerStatusBody, MessageQueue, ResetOffsetBody};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{
    ConsumeMessageDirectlyRequest, ConsumerGroupRequest, FieldError, GetConsumerRunningInfoRequest,
    GetConsumerStatusRequest, ResetConsumerClientOffsetRequest,
};
use remoting::{Connection, Handler};
use tokio::sync::Notify;

use crate::consumer::session::Session;
use crate::message::ReceivedMessage;
use crate::request_reply::Waiting;
use crate::transaction::Checkers;

/// Finds the consumer a broker means.
#[derive(Debug, Default)]
pub(crate) struct Callbacks {
    /// Consumers of this client by group. Weak: a consumer lives as long as its own tasks.
    consumers: Mutex<BTreeMap<String, Weak<Session>>>,
    /// Answer what becomes of transactions.
    pub(crate) checkers: Checkers,
    /// Wait for replies.
    pub(crate) requests: Waiting,
    /// Told when a connection was lost: the broker has forgotten this client then, and must hear from it again.
    pub(crate) connection_lost: Notify,
}

impl Callbacks {
    /// Enters a consumer; `false` if its group has one already.
    pub(crate) fn enter(&self, session: &Arc<Session>) -> bool {
        let mut consumers = self.consumers.lock();
        let is_free = consumers.get(session.group()).is_none_or(|known| known.strong_count() == 0);
        if is_free {
            consumers.insert(session.group().to_owned(), Arc::downgrade(session));
        }
        is_free
    }

    pub(crate) fn leave(&self, group: &str) {
        self.consumers.lock().remove(group);
    }

    pub(crate) fn consumers(&self) -> Vec<Arc<Session>> {
        self.consumers.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Whether producers of this client are called by whichever replica leads.
    pub(crate) fn is_asked_by_any(&self) -> bool {
        !self.checkers.is_empty() || self.requests.is_used()
    }

    fn consumer(&self, group: &str) -> Option<Arc<Session>> {
        self.consumers.lock().get(group)?.upgrade()
    }

    /// The answer, or the field that makes the request unreadable.
    async fn answer(&self, connection: &Connection, request: &RemotingCommand) -> Result<RemotingCommand, FieldError> {
        let absent = |group: &str| {
            let remark = format!("the consumer group {group} is not in this client");
            request.reply_error(ResponseCode::SYSTEM_ERROR, remark)
        };
        Ok(match request.request_code() {
            RequestCode::CHECK_TRANSACTION_STATE => match self.checkers.asked(connection, request) {
                Ok(()) => request.reply(ResponseCode::SUCCESS),
                Err(error) => {
                    tracing::warn!(peer = %connection.peer_addr(), %error, "a question about a transaction is not answered");
                    request.reply_error(ResponseCode::SYSTEM_ERROR, error.to_string())
                }
            },
            RequestCode::PUSH_REPLY_MESSAGE_TO_CLIENT => self.requests.pushed(request)?,
            RequestCode::NOTIFY_CONSUMER_IDS_CHANGED => {
                let header: ConsumerGroupRequest = request.header()?;
                if let Some(consumer) = self.consumer(&header.consumer_group) {
                    consumer.members_changed();
                }
                request.reply(ResponseCode::SUCCESS)
            }
            RequestCode::RESET_CONSUMER_CLIENT_OFFSET => {
                let header: ResetConsumerClientOffsetRequest = request.header()?;
                match (self.consumer(&header.group), request.json::<ResetOffsetBody>()) {
                    (Some(consumer), Ok(body)) => consumer.reset_offsets(&body.offset_table),
                    (None, _) => {}
                    (_, Err(error)) => tracing::warn!(group = header.group, %error, "unreadable reset of offsets"),
                }
                request.reply(ResponseCode::SUCCESS)
            }
            RequestCode::GET_CONSUMER_STATUS_FROM_CLIENT => {
                let header: GetConsumerStatusRequest = request.header()?;
                let Some(consumer) = self.consumer(&header.group) else { return Ok(absent(&header.group)) };
                let message_queue_table = consumer.progress_of(&header.topic);
                let body = GetConsumerStatusBody { message_queue_table, ..GetConsumerStatusBody::default() };
                request.reply(ResponseCode::SUCCESS).with_json(&body)
            }
            RequestCode::GET_CONSUMER_RUNNING_INFO => {
                let header: GetConsumerRunningInfoRequest = request.header()?;
                let Some(consumer) = self.consumer(&header.consumer_group) else {
                    return Ok(absent(&header.consumer_group));
                };
                request.reply(ResponseCode::SUCCESS).with_json(&consumer.running_info())
            }
            RequestCode::CONSUME_MESSAGE_DIRECTLY => {
                let header: ConsumeMessageDirectlyRequest = request.header()?;
                let Some(consumer) = self.consumer(&header.consumer_group) else {
                    return Ok(absent(&header.consumer_group));
                };
                let queue = MessageQueue::new(
                    header.topic.unwrap_or_default(),
                    header.broker_name.unwrap_or_default(),
                    queue_id_of(&request.body),
                );
                match ReceivedMessage::from_record(&request.body, &Arc::new(queue)) {
                    Ok(message) => {
                        let result = consumer.consume_directly(message).await;
                        request.reply(ResponseCode::SUCCESS).with_json(&result)
                    }
                    Err(error) => request.reply_error(ResponseCode::SYSTEM_ERROR, error.to_string()),
                }
            }
            code => {
                let remark = format!(" request type {} not supported", code.0);
                request.reply_error(ResponseCode::REQUEST_CODE_NOT_SUPPORTED, remark)
            }
        })
    }
}

fn queue_id_of(record: &[u8]) -> i32 {
    protocol::record::RecordView::parse(record).map_or(0, |view| view.queue_id())
}

impl Handler for Callbacks {
    async fn handle(self: &Arc<Self>, connection: &Connection, request: RemotingCommand) -> Option<RemotingCommand> {
        let answer = self.answer(connection, &request).await;
        Some(answer.unwrap_or_else(|error| request.reply_error(ResponseCode::SYSTEM_ERROR, error.to_string())))
    }

    fn closed(&self, _connection: &Connection) {
        self.connection_lost.notify_one();
    }
}

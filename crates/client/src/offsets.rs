//! Offsets at the broker: a group's consumer offsets, and the bounds of queues.

use protocol::body::MessageQueue;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{
    BoundaryType, OffsetResponse, QueryConsumerOffsetRequest, QueueRequest, SearchOffsetRequest,
    UpdateConsumerOffsetRequest,
};

use crate::builder::Client;
use crate::errors::{RequestError, RouteError};
use crate::network::Lane;

impl Client {
    /// The group's consumer offset of a queue, the next to be consumed; `None` if it has none. With
    /// `zero_if_young`, a queue that still begins at 0 counts as having offset 0, as RocketMQ's consumers want it.
    pub(crate) async fn consumer_offset(
        &self,
        group: &str,
        queue: &MessageQueue,
        zero_if_young: bool,
    ) -> Result<Option<i64>, RequestError> {
        let header = QueryConsumerOffsetRequest {
            consumer_group: group.to_owned(),
            topic: queue.topic.clone(),
            queue_id: queue.queue_id,
            set_zero_if_not_found: Some(zero_if_young),
            broker_name: Some(queue.broker_name.clone()),
        };
        let request = RemotingCommand::request_with(RequestCode::QUERY_CONSUMER_OFFSET, &header);
        match self.ask_group(&queue.topic, &queue.broker_name, request).await {
            Ok(response) => offset_of(&response).map(Some),
            Err(error) if error.code() == Some(ResponseCode::QUERY_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the group's consumer offset and waits until the broker has it.
    pub(crate) async fn update_offset(
        &self,
        group: &str,
        queue: &MessageQueue,
        offset: i64,
    ) -> Result<(), RequestError> {
        let request = update_request(group, queue, offset);
        self.ask_group(&queue.topic, &queue.broker_name, request).await.map(|_| ())
    }

    /// Tells the leader the group's consumer offset without waiting for an answer. It may get lost.
    pub(crate) async fn tell_offset(&self, group: &str, queue: &MessageQueue, offset: i64) -> Result<(), RequestError> {
        let route = self.0.routes.get(&queue.topic).await?;
        let broker = route.broker(&queue.broker_name).ok_or_else(|| RouteError::NoBroker {
            topic: queue.topic.clone(),
            broker_name: queue.broker_name.clone(),
        })?;
        let request = update_request(group, queue, offset);
        let limit = self.0.request_timeout;
        self.0.network.one_way(&broker.members[0], Lane::First, request, limit).await.map_err(RequestError::from)
    }

    /// The queue's first offset.
    pub(crate) async fn min_offset(&self, queue: &MessageQueue) -> Result<i64, RequestError> {
        self.bound(RequestCode::GET_MIN_OFFSET, queue).await
    }

    /// The offset that the queue's next message will get.
    pub(crate) async fn max_offset(&self, queue: &MessageQueue) -> Result<i64, RequestError> {
        self.bound(RequestCode::GET_MAX_OFFSET, queue).await
    }

    async fn bound(&self, code: RequestCode, queue: &MessageQueue) -> Result<i64, RequestError> {
        let header = QueueRequest {
            topic: queue.topic.clone(),
            queue_id: queue.queue_id,
            committed: None,
            broker_name: Some(queue.broker_name.clone()),
        };
        let request = RemotingCommand::request_with(code, &header);
        offset_of(&self.ask_group(&queue.topic, &queue.broker_name, request).await?)
    }

    /// The first offset stored at or after `time_ms`.
    pub(crate) async fn offset_at(&self, queue: &MessageQueue, time_ms: i64) -> Result<i64, RequestError> {
        let header = SearchOffsetRequest {
            topic: queue.topic.clone(),
            queue_id: queue.queue_id,
            timestamp: time_ms,
            boundary_type: BoundaryType::Lower,
            broker_name: Some(queue.broker_name.clone()),
        };
        let request = RemotingCommand::request_with(RequestCode::SEARCH_OFFSET_BY_TIMESTAMP, &header);
        offset_of(&self.ask_group(&queue.topic, &queue.broker_name, request).await?)
    }
}

fn update_request(group: &str, queue: &MessageQueue, offset: i64) -> RemotingCommand {
    let header = UpdateConsumerOffsetRequest {
        consumer_group: group.to_owned(),
        topic: queue.topic.clone(),
        queue_id: queue.queue_id,
        commit_offset: offset,
        broker_name: Some(queue.broker_name.clone()),
    };
    RemotingCommand::request_with(RequestCode::UPDATE_CONSUMER_OFFSET, &header)
}

fn offset_of(response: &RemotingCommand) -> Result<i64, RequestError> {
    let header: OffsetResponse = response.header().map_err(|error| RequestError::Malformed(error.to_string()))?;
    Ok(header.offset)
}

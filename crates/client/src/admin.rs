//! Administration over the wire: what mqadmin and the dashboard ask NameServers and brokers, one method a request, with
//! typed answers.
//!
//! - Questions to NameServers go to the first that answers; changes go to all of them, because they do not know of each
//!   other.
//! - Requests to brokers name the broker by its address: who is asked is the caller's decision.
//! - Nothing is retried. An error says whether the request may have been carried out.

pub mod dead_letters;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use env::Env;
use protocol::body::{
    BrokerData, ClusterInfo, ConsumeStats, ConsumerConnection, GetConsumerStatusBody, GroupList, KvTable,
    ProducerConnection, ReplicaMember, ReplicaStatus, ResetOffsetBody, SubscriptionGroupConfig,
    TopicConfigSerializeWrapper, TopicList, TopicRouteData, TopicStatsTable, TransactionList, WaitingTransaction,
    parse_config_text, to_config_text,
};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{
    AddLearnerRequest, AddWritePermResponse, BrokerNameRequest, ChangeVotersRequest, CloneGroupOffsetRequest,
    ClusterRequest, CommandHeader, ConsumerGroupRequest, CreateTopicRequest, DeleteGroupRequest, EndTransactionRequest,
    GetConsumeStatsRequest, GetConsumerStatusRequest, GetKvConfigResponse, GetRouteInfoRequest, KvConfigRequest,
    ListTransactionsRequest, MakeCheckpointResponse, NamesrvTopicRequest, OffsetResponse, ProducerGroupRequest,
    PullMessageRequest, PullMessageResponse, PutKvConfigRequest, QueryMessageRequest, QueueRequest, ResetOffsetRequest,
    ResumeCheckHalfMessageRequest, SearchOffsetRequest, SendMessageRequest, SendMessageRequestV2, SendMessageResponse,
    TopicRequest, TransferLeaderRequest, UpdateConsumerOffsetRequest, ViewMessageRequest, WipeWritePermResponse,
};
use protocol::record;
use remoting::{Client, Limits, NoRequests};
use serde::de::DeserializeOwned;

pub use crate::compression::decompressed_body;
pub use crate::errors::{RequestError, RouteError};
use crate::transaction::TransactionState;
/// The words that requests and answers are made of.
pub use protocol;

/// How long an answer may take.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Puts administrative questions and changes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client<NoRequests>,
    name_servers: Vec<String>,
    timeout: Duration,
}

/// What a pull brought.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// [`ResponseCode::SUCCESS`], or why there are no records.
    pub code: ResponseCode,
    /// Where to pull next, and the queue's bounds.
    pub bounds: PullMessageResponse,
    /// Records, whole and well-formed.
    pub records: Vec<Bytes>,
}

impl Admin {
    /// For a cluster's NameServers, each `host:port`. Connects on demand.
    pub fn new(env: &Env, name_servers: Vec<String>) -> Admin {
        let client = Client::new(env, Limits::default(), Arc::new(NoRequests));
        Admin { client, name_servers, timeout: DEFAULT_TIMEOUT }
    }

    /// The same, giving up on an answer after `timeout`.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Admin {
        Admin { timeout, ..self }
    }

    /// The NameServers.
    pub fn name_servers(&self) -> &[String] {
        &self.name_servers
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.client.close().await;
    }

    // NameServers, questions.

    /// All broker groups.
    pub async fn cluster_info(&self) -> Result<ClusterInfo, RequestError> {
        read_body(&self.ask_name_server(RemotingCommand::request(RequestCode::GET_BROKER_CLUSTER_INFO)).await?)
    }

    /// Where a topic is; `None` if no broker has it.
    pub async fn topic_route(&self, topic: &str) -> Result<Option<TopicRouteData>, RequestError> {
        let header = GetRouteInfoRequest { topic: topic.to_owned(), accept_standard_json_only: true };
        let request = RemotingCommand::request_with(RequestCode::GET_ROUTEINFO_BY_TOPIC, &header);
        found(self.ask_name_server(request).await, ResponseCode::TOPIC_NOT_EXIST)?.as_ref().map(read_body).transpose()
    }

    /// Every topic.
    pub async fn topics(&self) -> Result<TopicList, RequestError> {
        let request = RemotingCommand::request(RequestCode::GET_ALL_TOPIC_LIST_FROM_NAMESERVER);
        read_body(&self.ask_name_server(request).await?)
    }

    /// Every topic of a cluster.
    pub async fn topics_of_cluster(&self, cluster: &str) -> Result<TopicList, RequestError> {
        let header = ClusterRequest { cluster: cluster.to_owned() };
        let request = RemotingCommand::request_with(RequestCode::GET_TOPICS_BY_CLUSTER, &header);
        read_body(&self.ask_name_server(request).await?)
    }

    /// A text kept at the NameServers; `None` if there is none.
    pub async fn kv(&self, namespace: &str, key: &str) -> Result<Option<String>, RequestError> {
        let header = KvConfigRequest { namespace: namespace.to_owned(), key: key.to_owned() };
        let request = RemotingCommand::request_with(RequestCode::GET_KV_CONFIG, &header);
        let response = found(self.ask_name_server(request).await, ResponseCode::QUERY_NOT_FOUND)?;
        let header: Option<GetKvConfigResponse> = response.as_ref().map(read_header).transpose()?;
        Ok(header.map(|header| header.value.unwrap_or_default()))
    }

    /// What may be changed at one NameServer, and how it stands.
    pub async fn name_server_config(&self, address: &str) -> Result<BTreeMap<String, String>, RequestError> {
        let request = RemotingCommand::request(RequestCode::GET_NAMESRV_CONFIG);
        Ok(read_config(&self.ask(address, request).await?))
    }

    // NameServers, changes.

    /// Changes every NameServer's configuration.
    pub async fn update_name_server_config(&self, change: &BTreeMap<String, String>) -> Result<(), RequestError> {
        let body = to_config_text(change);
        self.tell_name_servers(|| RemotingCommand::request(RequestCode::UPDATE_NAMESRV_CONFIG).with_body(body.clone()))
            .await
            .map(drop)
    }

    /// Sets a text at every NameServer.
    pub async fn put_kv(&self, namespace: &str, key: &str, value: &str) -> Result<(), RequestError> {
        let header =
            PutKvConfigRequest { namespace: namespace.to_owned(), key: key.to_owned(), value: Some(value.to_owned()) };
        self.tell_name_servers(|| RemotingCommand::request_with(RequestCode::PUT_KV_CONFIG, &header)).await.map(drop)
    }

    /// Forgets a text at every NameServer.
    pub async fn delete_kv(&self, namespace: &str, key: &str) -> Result<(), RequestError> {
        let header = KvConfigRequest { namespace: namespace.to_owned(), key: key.to_owned() };
        self.tell_name_servers(|| RemotingCommand::request_with(RequestCode::DELETE_KV_CONFIG, &header)).await.map(drop)
    }

    /// Takes a topic out of the routes of every NameServer. The broker still has it, unless it was deleted there first.
    pub async fn delete_topic_route(&self, topic: &str, cluster: Option<&str>) -> Result<(), RequestError> {
        let header = NamesrvTopicRequest { topic: topic.to_owned(), cluster_name: cluster.map(str::to_owned) };
        self.tell_name_servers(|| RemotingCommand::request_with(RequestCode::DELETE_TOPIC_IN_NAMESRV, &header))
            .await
            .map(drop)
    }

    /// Takes a broker group out of what producers write to, or puts it back, at every NameServer. By NameServer, the
    /// number of topics that this concerns.
    pub async fn set_write_permission(
        &self,
        broker_name: &str,
        allowed: bool,
    ) -> Result<Vec<(String, i32)>, RequestError> {
        let header = BrokerNameRequest { broker_name: broker_name.to_owned() };
        let code = if allowed { RequestCode::ADD_WRITE_PERM_OF_BROKER } else { RequestCode::WIPE_WRITE_PERM_OF_BROKER };
        let answers = self.tell_name_servers(|| RemotingCommand::request_with(code, &header)).await?;
        let count = |response: &RemotingCommand| match allowed {
            true => read_header(response).map(|AddWritePermResponse { add_topic_count }| add_topic_count),
            false => read_header(response).map(|WipeWritePermResponse { wipe_topic_count }| wipe_topic_count),
        };
        self.name_servers.iter().zip(&answers).map(|(address, answer)| Ok((address.clone(), count(answer)?))).collect()
    }

    // Topics.

    /// Creates a topic or changes it.
    pub async fn put_topic(&self, broker: &str, topic: &CreateTopicRequest) -> Result<(), RequestError> {
        let request = RemotingCommand::request_with(RequestCode::UPDATE_AND_CREATE_TOPIC, topic);
        self.ask(broker, request).await.map(drop)
    }

    /// Deletes a topic and the offsets in it.
    pub async fn delete_topic(&self, broker: &str, topic: &str) -> Result<(), RequestError> {
        let request = RemotingCommand::request_with(RequestCode::DELETE_TOPIC_IN_BROKER, &topic_header(topic));
        self.ask(broker, request).await.map(drop)
    }

    /// Every topic's configuration.
    pub async fn topic_configs(&self, broker: &str) -> Result<TopicConfigSerializeWrapper, RequestError> {
        read_body(&self.ask(broker, RemotingCommand::request(RequestCode::GET_ALL_TOPIC_CONFIG)).await?)
    }

    /// Bounds of every queue of a topic on one broker.
    pub async fn topic_stats(&self, broker: &str, topic: &str) -> Result<TopicStatsTable, RequestError> {
        let request = RemotingCommand::request_with(RequestCode::GET_TOPIC_STATS_INFO, &topic_header(topic));
        read_body(&self.ask(broker, request).await?)
    }

    /// The groups that consume a topic.
    pub async fn groups_of_topic(&self, broker: &str, topic: &str) -> Result<GroupList, RequestError> {
        let request = RemotingCommand::request_with(RequestCode::QUERY_TOPIC_CONSUME_BY_WHO, &topic_header(topic));
        read_body(&self.ask(broker, request).await?)
    }

    // Groups.

    /// Creates a consumer group or changes it.
    pub async fn put_group(&self, broker: &str, group: &SubscriptionGroupConfig) -> Result<(), RequestError> {
        let request = RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP);
        self.ask(broker, request.with_json(group)).await.map(drop)
    }

    /// Deletes a consumer group, and its offsets if asked to.
    pub async fn delete_group(&self, broker: &str, group: &str, clean_offset: bool) -> Result<(), RequestError> {
        let header = DeleteGroupRequest { group_name: group.to_owned(), clean_offset };
        let request = RemotingCommand::request_with(RequestCode::DELETE_SUBSCRIPTIONGROUP, &header);
        self.ask(broker, request).await.map(drop)
    }

    /// A group's progress on one broker, in one topic or in all it has offsets of.
    pub async fn consume_stats(
        &self,
        broker: &str,
        group: &str,
        topic: Option<&str>,
    ) -> Result<ConsumeStats, RequestError> {
        let header = GetConsumeStatsRequest {
            consumer_group: group.to_owned(),
            topic: topic.map(str::to_owned),
            topic_list: None,
        };
        read_body(&self.ask(broker, RemotingCommand::request_with(RequestCode::GET_CONSUME_STATS, &header)).await?)
    }

    /// A consumer group's connected members; `None` if there are none.
    pub async fn consumer_connection(
        &self,
        broker: &str,
        group: &str,
    ) -> Result<Option<ConsumerConnection>, RequestError> {
        let header = ConsumerGroupRequest { consumer_group: group.to_owned(), broker_name: None };
        let request = RemotingCommand::request_with(RequestCode::GET_CONSUMER_CONNECTION_LIST, &header);
        let response = found(self.ask(broker, request).await, ResponseCode::CONSUMER_NOT_ONLINE)?;
        response.as_ref().map(read_body).transpose()
    }

    /// A producer group's connected members.
    pub async fn producer_connection(&self, broker: &str, group: &str) -> Result<ProducerConnection, RequestError> {
        let header = ProducerGroupRequest { producer_group: group.to_owned() };
        let request = RemotingCommand::request_with(RequestCode::GET_PRODUCER_CONNECTION_LIST, &header);
        read_body(&self.ask(broker, request).await?)
    }

    /// Moves a group in a topic to the offsets of a store time (ms; -1 for the end); forward only if `force`. Members may run:
    /// they go on from there. The new offsets.
    pub async fn reset_offset(
        &self,
        broker: &str,
        group: &str,
        topic: &str,
        timestamp: i64,
        force: bool,
    ) -> Result<ResetOffsetBody, RequestError> {
        let header = ResetOffsetRequest {
            topic: topic.to_owned(),
            group: group.to_owned(),
            timestamp,
            is_force: force,
            queue_id: None,
            offset: None,
        };
        let request = RemotingCommand::request_with(RequestCode::INVOKE_BROKER_TO_RESET_OFFSET, &header);
        read_body(&self.ask(broker, request).await?)
    }

    /// Moves a group to where another one is, in one topic or in all that the other has offsets of.
    pub async fn clone_group_offset(
        &self,
        broker: &str,
        from: &str,
        to: &str,
        topic: Option<&str>,
    ) -> Result<(), RequestError> {
        let header = CloneGroupOffsetRequest {
            src_group: from.to_owned(),
            dest_group: to.to_owned(),
            topic: topic.map(str::to_owned),
            offline: false,
        };
        self.ask(broker, RemotingCommand::request_with(RequestCode::CLONE_GROUP_OFFSET, &header)).await.map(drop)
    }

    /// How far a group's members have come in a topic, as they say themselves: of one client, or of all.
    pub async fn consumer_status(
        &self,
        broker: &str,
        group: &str,
        topic: &str,
        client_id: Option<&str>,
    ) -> Result<GetConsumerStatusBody, RequestError> {
        let header = GetConsumerStatusRequest {
            topic: topic.to_owned(),
            group: group.to_owned(),
            client_addr: client_id.map(str::to_owned),
        };
        let request = RemotingCommand::request_with(RequestCode::INVOKE_BROKER_TO_GET_CONSUMER_STATUS, &header);
        read_body(&self.ask(broker, request).await?)
    }

    /// Sets a group's offset in one queue. Members that are connected set it, too: reset it instead, or stop them first.
    pub async fn update_consumer_offset(
        &self,
        broker: &str,
        group: &str,
        topic: &str,
        queue_id: i32,
        offset: i64,
    ) -> Result<(), RequestError> {
        let header = UpdateConsumerOffsetRequest {
            consumer_group: group.to_owned(),
            topic: topic.to_owned(),
            queue_id,
            commit_offset: offset,
            broker_name: None,
        };
        let request = RemotingCommand::request_with(RequestCode::UPDATE_CONSUMER_OFFSET, &header);
        self.ask(broker, request).await.map(drop)
    }

    // Messages.

    /// Sends one message, once. `header` names topic and queue; the broker answers with the message's place.
    pub async fn send(
        &self,
        broker: &str,
        header: SendMessageRequest,
        body: impl Into<Bytes>,
    ) -> Result<SendMessageResponse, RequestError> {
        let header = SendMessageRequestV2(header);
        let request = RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &header).with_body(body);
        read_header(&self.ask(broker, request).await?)
    }

    /// The record at a physical offset. A broker refuses with [`ResponseCode::SYSTEM_ERROR`] if there is none.
    pub async fn view_message(
        &self,
        broker: &str,
        topic: Option<&str>,
        physical_offset: i64,
    ) -> Result<Bytes, RequestError> {
        let header = ViewMessageRequest { offset: physical_offset, topic: topic.map(str::to_owned), broker_name: None };
        let request = RemotingCommand::request_with(RequestCode::VIEW_MESSAGE_BY_ID, &header);
        let mut records = read_records(&self.ask(broker, request).await?.body)?;
        records.pop().ok_or_else(|| RequestError::Malformed("success without a record".to_owned()))
    }

    /// Records by one of their keys, or by their unique key, from a span of store times in ms.
    pub async fn query_message(&self, broker: &str, query: &QueryMessageRequest) -> Result<Vec<Bytes>, RequestError> {
        let request = RemotingCommand::request_with(RequestCode::QUERY_MESSAGE, query);
        let response = found(self.ask(broker, request).await, ResponseCode::QUERY_NOT_FOUND)?;
        response.map_or_else(|| Ok(Vec::new()), |response| read_records(&response.body))
    }

    /// Records of a queue from `offset` on, without belonging to a group and without waiting.
    pub async fn pull(
        &self,
        broker: &str,
        group: &str,
        topic: &str,
        queue_id: i32,
        offset: i64,
        max_messages: i32,
    ) -> Result<Pulled, RequestError> {
        let header = PullMessageRequest {
            consumer_group: group.to_owned(),
            topic: topic.to_owned(),
            queue_id,
            queue_offset: offset,
            max_msg_nums: max_messages,
            // Its own subscription comes along: it is in no heartbeat.
            sys_flag: protocol::sys_flag::PullSysFlag::SUBSCRIPTION,
            subscription: Some(protocol::tag::SUBSCRIBE_ALL.to_owned()),
            expression_type: Some(protocol::tag::EXPRESSION_TYPE_TAG.to_owned()),
            ..PullMessageRequest::default()
        };
        let request = RemotingCommand::request_with(RequestCode::PULL_MESSAGE, &header);
        let response = self.client.call(broker, request, self.timeout).await?;
        let code = response.response_code();
        match code {
            ResponseCode::SUCCESS
            | ResponseCode::PULL_NOT_FOUND
            | ResponseCode::PULL_RETRY_IMMEDIATELY
            | ResponseCode::PULL_OFFSET_MOVED => {
                let bounds = read_header(&response)?;
                Ok(Pulled { code, bounds, records: read_records(&response.body)? })
            }
            _ => Err(RequestError::refused(&response)),
        }
    }

    /// First offset of a queue.
    pub async fn min_offset(&self, broker: &str, topic: &str, queue_id: i32) -> Result<i64, RequestError> {
        self.offset(broker, RequestCode::GET_MIN_OFFSET, &queue_header(topic, queue_id)).await
    }

    /// Next offset that a queue will assign.
    pub async fn max_offset(&self, broker: &str, topic: &str, queue_id: i32) -> Result<i64, RequestError> {
        self.offset(broker, RequestCode::GET_MAX_OFFSET, &queue_header(topic, queue_id)).await
    }

    /// First offset of a queue stored at or after a time, ms.
    pub async fn search_offset(
        &self,
        broker: &str,
        topic: &str,
        queue_id: i32,
        timestamp: i64,
    ) -> Result<i64, RequestError> {
        let header = SearchOffsetRequest { topic: topic.to_owned(), queue_id, timestamp, ..Default::default() };
        self.offset(broker, RequestCode::SEARCH_OFFSET_BY_TIMESTAMP, &header).await
    }

    async fn offset(&self, broker: &str, code: RequestCode, header: &impl CommandHeader) -> Result<i64, RequestError> {
        let response = self.ask(broker, RemotingCommand::request_with(code, header)).await?;
        read_header(&response).map(|OffsetResponse { offset }| offset)
    }

    // Brokers.

    /// A broker's run-time information: RocketMQ's keys and texts.
    pub async fn runtime_info(&self, broker: &str) -> Result<BTreeMap<String, String>, RequestError> {
        let response = self.ask(broker, RemotingCommand::request(RequestCode::GET_BROKER_RUNTIME_INFO)).await?;
        read_body(&response).map(|KvTable { table }| table)
    }

    /// A broker's configuration: RocketMQ's keys and texts.
    pub async fn broker_config(&self, broker: &str) -> Result<BTreeMap<String, String>, RequestError> {
        Ok(read_config(&self.ask(broker, RemotingCommand::request(RequestCode::GET_BROKER_CONFIG)).await?))
    }

    /// What a replica says of itself and, if it leads, of the others. Not RocketMQ's: other brokers refuse it.
    pub async fn replica_status(&self, broker: &str) -> Result<ReplicaStatus, RequestError> {
        read_body(&self.ask(broker, RemotingCommand::request(RequestCode::GET_REPLICA_STATUS)).await?)
    }

    /// Has every replica of the group hash its state at one place of the log, whose entry this gives. The hashes come soon, with
    /// [`Admin::replica_status`]; replicas that told different ones there have gone apart. Safe to repeat: where there are many such
    /// places already, this gives the newest one. Not RocketMQ's.
    pub async fn make_checkpoint(&self, broker: &str) -> Result<u64, RequestError> {
        let answer = self.ask(broker, RemotingCommand::request(RequestCode::MAKE_CHECKPOINT)).await?;
        let made: MakeCheckpointResponse =
            answer.header().map_err(|error| RequestError::Malformed(error.to_string()))?;
        Ok(made.index)
    }

    /// Makes the node at `peer_address`, started with `join`, a member without a vote that catches up. `broker` is any replica
    /// of the group. Safe to repeat. Not RocketMQ's.
    pub async fn add_learner(&self, broker: &str, peer_address: &str) -> Result<ReplicaMember, RequestError> {
        let header = AddLearnerRequest { peer_address: peer_address.to_owned() };
        read_body(&self.ask(broker, RemotingCommand::request_with(RequestCode::ADD_LEARNER, &header)).await?)
    }

    /// Gives a learner that has caught up a vote, or lets a member go for ever, or both in one change. Safe to repeat; code 2
    /// says that the learner lacks too much yet. Not RocketMQ's.
    pub async fn change_voters(&self, broker: &str, add: Option<u64>, remove: Option<u64>) -> Result<(), RequestError> {
        let header = ChangeVotersRequest { add, remove };
        self.ask(broker, RemotingCommand::request_with(RequestCode::CHANGE_VOTERS, &header)).await.map(drop)
    }

    /// Lets another voter lead. Safe to repeat. Not RocketMQ's.
    pub async fn transfer_leader(&self, broker: &str, node_id: u64) -> Result<(), RequestError> {
        let header = TransferLeaderRequest { node_id };
        self.ask(broker, RemotingCommand::request_with(RequestCode::TRANSFER_LEADER, &header)).await.map(drop)
    }

    /// Up to `most` transactions that wait for their ends, of those that are `unasked`, `asked` or `discarded`, behind `after`.
    /// Not RocketMQ's.
    pub async fn transactions(
        &self,
        broker: &str,
        state: &str,
        after: Option<&WaitingTransaction>,
        most: i32,
    ) -> Result<TransactionList, RequestError> {
        let header = ListTransactionsRequest {
            state: state.to_owned(),
            after_time: after.map(|after| after.since),
            after_offset: after.map(|after| after.commit_log_offset),
            max_num: most,
        };
        read_body(&self.ask(broker, RemotingCommand::request_with(RequestCode::LIST_TRANSACTIONS, &header)).await?)
    }

    /// Has producers asked again about a transaction that was discarded, by the offset message id of its half message.
    pub async fn resume_transaction(
        &self,
        broker: &str,
        topic: Option<&str>,
        offset_message_id: &str,
    ) -> Result<(), RequestError> {
        let (topic, msg_id) = (topic.map(str::to_owned), offset_message_id.to_owned());
        let header = ResumeCheckHalfMessageRequest { topic, msg_id };
        let request = RemotingCommand::request_with(RequestCode::RESUME_CHECK_HALF_MESSAGE, &header);
        self.ask(broker, request).await.map(drop)
    }

    /// Ends a transaction in place of its producer: its message becomes visible, or never will. Safe to repeat: what has ended so
    /// is done, what has ended otherwise is refused.
    pub async fn end_transaction(
        &self,
        broker: &str,
        transaction: &WaitingTransaction,
        commit: bool,
    ) -> Result<(), RequestError> {
        let state = if commit { TransactionState::Commit } else { TransactionState::Rollback };
        let header = EndTransactionRequest {
            producer_group: transaction.producer_group.clone(),
            tran_state_table_offset: transaction.commit_log_offset,
            commit_log_offset: transaction.commit_log_offset,
            commit_or_rollback: state.wire(),
            from_transaction_check: true,
            msg_id: transaction.unique_key.clone(),
            transaction_id: transaction.unique_key.clone(),
            ..EndTransactionRequest::default()
        };
        self.ask(broker, RemotingCommand::request_with(RequestCode::END_TRANSACTION, &header)).await.map(drop)
    }

    /// One request to one address; anything but success is an error.
    async fn ask(&self, address: &str, request: RemotingCommand) -> Result<RemotingCommand, RequestError> {
        let response = self.client.call(address, request, self.timeout).await?;
        if response.is_success() { Ok(response) } else { Err(RequestError::refused(&response)) }
    }

    /// The first NameServer's answer; a refusal is an answer.
    async fn ask_name_server(&self, request: RemotingCommand) -> Result<RemotingCommand, RequestError> {
        let mut silent = String::new();
        for address in &self.name_servers {
            match self.ask(address, request.clone()).await {
                Err(error @ (RequestError::NotSent(_) | RequestError::Unknown(_))) => {
                    let separator = if silent.is_empty() { "" } else { "; " };
                    silent += &format!("{separator}{address}: {error}");
                }
                answer => return answer,
            }
        }
        Err(RouteError::NameServersSilent(silent).into())
    }

    /// Every NameServer's answer, in their order; the first failure ends it, and then some may have been told.
    async fn tell_name_servers(
        &self,
        request: impl Fn() -> RemotingCommand,
    ) -> Result<Vec<RemotingCommand>, RequestError> {
        let mut answers = Vec::with_capacity(self.name_servers.len());
        for address in &self.name_servers {
            answers.push(self.ask(address, request()).await?);
        }
        Ok(answers)
    }
}

/// One address per broker group: the leader's, or where there is none, that of a replica, which forwards or refuses.
pub fn address_of(broker: &BrokerData) -> Option<&str> {
    broker.master_addr().or_else(|| broker.broker_addrs.values().next().map(String::as_str))
}

fn topic_header(topic: &str) -> TopicRequest {
    TopicRequest { topic: topic.to_owned(), ..TopicRequest::default() }
}

fn queue_header(topic: &str, queue_id: i32) -> QueueRequest {
    QueueRequest { topic: topic.to_owned(), queue_id, ..QueueRequest::default() }
}

/// Turns the refusal that means "there is none" into `None`.
fn found(
    answer: Result<RemotingCommand, RequestError>,
    none: ResponseCode,
) -> Result<Option<RemotingCommand>, RequestError> {
    match answer {
        Err(error) if error.code() == Some(none) => Ok(None),
        answer => answer.map(Some),
    }
}

fn read_body<T: DeserializeOwned>(response: &RemotingCommand) -> Result<T, RequestError> {
    response.json().map_err(|error| RequestError::Malformed(error.to_string()))
}

fn read_header<H: CommandHeader>(response: &RemotingCommand) -> Result<H, RequestError> {
    response.header().map_err(|error| RequestError::Malformed(error.to_string()))
}

fn read_config(response: &RemotingCommand) -> BTreeMap<String, String> {
    parse_config_text(&String::from_utf8_lossy(&response.body))
}

fn read_records(body: &Bytes) -> Result<Vec<Bytes>, RequestError> {
    record::split(body).collect::<Result<_, _>>().map_err(|error| RequestError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use remoting::{Connection, Handler, Server};

    use super::*;

    /// A NameServer and broker in one that answers by a table.
    struct Peer(fn(&RemotingCommand) -> RemotingCommand);

    impl Handler for Peer {
        async fn handle(self: &Arc<Self>, _: &Connection, request: RemotingCommand) -> Option<RemotingCommand> {
            Some((self.0)(&request))
        }
    }

    async fn peer(env: &Env, answer: fn(&RemotingCommand) -> RemotingCommand) -> (Server, String) {
        let any = "127.0.0.1:0".parse().expect("an address");
        let server = Server::start(env, any, Limits::default(), Arc::new(Peer(answer))).await.expect("it listens");
        let address = server.local_addr().to_string();
        (server, address)
    }

    /// A port that nobody listens on: taken, and given back.
    async fn silent_address(env: &Env) -> String {
        let any = "127.0.0.1:0".parse().expect("an address");
        env.net.listen(any).await.expect("it listens").local_addr().expect("it is bound").to_string()
    }

    #[tokio::test]
    async fn a_silent_name_server_is_passed_over_by_questions_and_stops_changes() {
        let env = Env::real();
        let (_server, address) = peer(&env, |request| match request.request_code() {
            RequestCode::GET_KV_CONFIG if request.ext.get("key") == Some("known") => {
                request.reply(ResponseCode::SUCCESS).with_field("value", "text")
            }
            RequestCode::GET_KV_CONFIG => request.reply_error(ResponseCode::QUERY_NOT_FOUND, "none"),
            _ => request.reply(ResponseCode::SUCCESS),
        })
        .await;
        let admin = Admin::new(&env, vec![silent_address(&env).await, address.clone()]);
        assert_eq!(admin.kv("n", "known").await, Ok(Some("text".to_owned())));
        assert_eq!(admin.kv("n", "other").await, Ok(None));
        assert!(admin.put_kv("n", "k", "v").await.expect_err("one was not told").is_retry_safe());
        assert_eq!(Admin::new(&env, vec![address]).put_kv("n", "k", "v").await, Ok(()));
        let nobody = Admin::new(&env, vec![silent_address(&env).await]);
        assert!(matches!(nobody.topics().await, Err(RequestError::Route(RouteError::NameServersSilent(_)))));
    }

    #[tokio::test]
    async fn answers_are_typed_and_what_cannot_be_read_is_an_error() {
        let env = Env::real();
        let (_server, address) = peer(&env, |request| match request.request_code() {
            RequestCode::GET_TOPIC_STATS_INFO => request.reply(ResponseCode::SUCCESS).with_body(
                r#"{"offsetTable":{{"brokerName":"a","queueId":1,"topic":"T"}:{"maxOffset":5}},"topicPutTps":0.5}"#,
            ),
            RequestCode::GET_BROKER_RUNTIME_INFO => request.reply(ResponseCode::SUCCESS).with_body("no JSON"),
            RequestCode::PULL_MESSAGE => request.reply_with(
                ResponseCode::PULL_OFFSET_MOVED,
                &PullMessageResponse { next_begin_offset: 3, min_offset: 3, max_offset: 9, ..Default::default() },
            ),
            RequestCode::VIEW_MESSAGE_BY_ID => request.reply(ResponseCode::SUCCESS),
            RequestCode::GET_MAX_OFFSET => request.reply(ResponseCode::SUCCESS).with_field("offset", 9),
            _ => request.reply_error(ResponseCode::NO_PERMISSION, "no"),
        })
        .await;
        let admin = Admin::new(&env, Vec::new());
        let stats = admin.topic_stats(&address, "T").await.expect("statistics");
        assert_eq!(stats.offset_table.values().map(|queue| queue.max_offset).collect::<Vec<_>>(), [5]);
        assert!(matches!(admin.runtime_info(&address).await, Err(RequestError::Malformed(_))));
        let pulled = admin.pull(&address, "g", "T", 0, 0, 32).await.expect("an answer");
        assert_eq!((pulled.code, pulled.bounds.min_offset), (ResponseCode::PULL_OFFSET_MOVED, 3));
        assert!(matches!(admin.view_message(&address, None, 7).await, Err(RequestError::Malformed(_))));
        assert_eq!(admin.max_offset(&address, "T", 0).await, Ok(9));
        let refused = admin.delete_topic(&address, "T").await.expect_err("refused");
        assert_eq!(refused.code(), Some(ResponseCode::NO_PERMISSION));
    }
}

//! A broker that does as it is told: in memory, without durability, with a script of misfortunes.
//!
//! It keeps queues, offsets, members and locks as a RocketMQ broker would as far as a client can see, and answers route
//! questions too. Delays are left out: what is given back is there at once.
#![allow(dead_code)] // Each test file uses its part.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::{Client, ClientBuilder, MessageQueue};
use env::Env;
use parking_lot::Mutex;
use protocol::body::{
    BrokerData, ConsumerIdList, HeartbeatData, LockBatchRequest, LockBatchResponse, QueueData, TopicRouteData,
};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::*;
use protocol::message_id::MessageId;
use protocol::properties::{self, Properties};
use protocol::record::{HeadPatch, NewRecord, RecordView};
use protocol::sys_flag::{PullSysFlag, SysFlag};
use protocol::{batch, names};
use remoting::{Connection, Handler, Limits, Server};
use tokio::sync::Notify;

/// What happens to a send instead of the usual.
#[derive(Clone, Copy, Debug)]
pub enum Misfortune {
    /// Refused with this code.
    Refuse(ResponseCode),
    /// Stored, and the answer lost.
    StoreSilently,
    /// Neither stored nor answered.
    Lose,
}

/// A send as it came.
#[derive(Clone, Debug)]
pub struct SeenSend {
    pub header: SendMessageRequest,
    pub is_marked: bool,
    pub unique_key: String,
}

/// What the brokers of a test share: routes, and all that is in their queues.
#[derive(Debug, Default)]
pub struct Cluster {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Broker groups in the route, with the address of their master.
    masters: BTreeMap<String, String>,
    /// Queues per broker group.
    topics: BTreeMap<String, i32>,
    queues: BTreeMap<MessageQueue, Vec<Bytes>>,
    log: Vec<(MessageQueue, usize)>,
    offsets: BTreeMap<(String, MessageQueue), i64>,
    members: BTreeMap<u64, (Connection, HeartbeatData)>,
    locks: BTreeMap<(String, MessageQueue), String>,
    sends: Vec<SeenSend>,
    misfortunes: VecDeque<(String, Misfortune)>,
    refused_give_backs: usize,
    calls: BTreeMap<i32, usize>,
    left: Vec<UnregisterClientRequest>,
}

/// One broker, and NameServer as well.
#[derive(Debug)]
pub struct Broker {
    name: String,
    cluster: Arc<Cluster>,
}

/// A broker that runs.
pub struct Running {
    pub address: SocketAddr,
    server: Server,
}

impl Running {
    pub fn stop(self) {
        self.server.stop();
    }
}

impl Cluster {
    pub fn new(topics: &[(&str, i32)]) -> Arc<Cluster> {
        let cluster = Cluster::default();
        cluster.state.lock().topics = topics.iter().map(|(topic, queues)| ((*topic).to_owned(), *queues)).collect();
        Arc::new(cluster)
    }

    /// Starts a broker and enters it into the route.
    pub async fn start(self: &Arc<Cluster>, name: &str) -> Running {
        let broker = Arc::new(Broker { name: name.to_owned(), cluster: self.clone() });
        let address = "127.0.0.1:0".parse().unwrap();
        let server = Server::start(&Env::real(), address, Limits::default(), broker).await.unwrap();
        let address = server.local_addr();
        self.set_master(name, &address.to_string());
        Running { address, server }
    }

    pub fn set_master(&self, name: &str, address: &str) {
        self.state.lock().masters.insert(name.to_owned(), address.to_owned());
    }

    pub fn remove_master(&self, name: &str) {
        self.state.lock().masters.remove(name);
    }

    /// Clients with consumers that `broker` has heard of.
    pub fn members_at(&self, broker: &Running) -> usize {
        let state = self.state.lock();
        let here = state.members.values().filter(|(connection, _)| connection.local_addr() == broker.address);
        here.filter(|(_, heartbeat)| !heartbeat.consumer_data_set.is_empty()).count()
    }

    /// The next send to `broker` that has no misfortune yet has this one.
    pub fn afflict(&self, broker: &str, misfortune: Misfortune) {
        self.state.lock().misfortunes.push_back((broker.to_owned(), misfortune));
    }

    /// The next `count` attempts to give a message back are refused.
    pub fn refuse_give_backs(&self, count: usize) {
        self.state.lock().refused_give_backs = count;
    }

    pub fn sends(&self) -> Vec<SeenSend> {
        self.state.lock().sends.clone()
    }

    pub fn calls(&self, code: RequestCode) -> usize {
        self.state.lock().calls.get(&code.0).copied().unwrap_or(0)
    }

    /// Bodies in a queue.
    pub fn bodies(&self, queue: &MessageQueue) -> Vec<Bytes> {
        let state = self.state.lock();
        let records = state.queues.get(queue).into_iter().flatten();
        records.map(|record| Bytes::copy_from_slice(RecordView::parse(record).unwrap().body())).collect()
    }

    pub fn stored(&self) -> usize {
        self.state.lock().log.len()
    }

    pub fn offset(&self, group: &str, queue: &MessageQueue) -> Option<i64> {
        self.state.lock().offsets.get(&(group.to_owned(), queue.clone())).copied()
    }

    pub fn set_offset(&self, group: &str, queue: &MessageQueue, offset: i64) {
        self.state.lock().offsets.insert((group.to_owned(), queue.clone()), offset);
    }

    pub fn lock_holder(&self, group: &str, queue: &MessageQueue) -> Option<String> {
        self.state.lock().locks.get(&(group.to_owned(), queue.clone())).cloned()
    }

    pub fn lock(&self, group: &str, queue: &MessageQueue, holder: &str) {
        self.state.lock().locks.insert((group.to_owned(), queue.clone()), holder.to_owned());
    }

    pub fn unlock(&self, group: &str, queue: &MessageQueue) {
        self.state.lock().locks.remove(&(group.to_owned(), queue.clone()));
    }

    pub fn left(&self) -> Vec<UnregisterClientRequest> {
        self.state.lock().left.clone()
    }

    /// Connections over which members can be called back.
    pub fn member_connections(&self) -> Vec<Connection> {
        self.state.lock().members.values().map(|(connection, _)| connection.clone()).collect()
    }

    fn append(&self, queue: &MessageQueue, record: &NewRecord<'_>) -> (i64, i64) {
        let mut state = self.state.lock();
        let (offset, physical) = (state.queues.get(queue).map_or(0, Vec::len), state.log.len());
        let mut bytes = record.to_bytes().unwrap().to_vec();
        let patch = HeadPatch { queue_offset: offset as i64, physical_offset: physical as i64, ..HeadPatch::default() };
        patch.apply(&mut bytes).unwrap();
        state.queues.entry(queue.clone()).or_default().push(bytes.into());
        state.log.push((queue.clone(), offset));
        drop(state);
        self.arrived.notify_waiters();
        (offset as i64, physical as i64)
    }

    fn tell_members(&self, group: &str) {
        let header = ConsumerGroupRequest { consumer_group: group.to_owned(), broker_name: None };
        for (connection, heartbeat) in self.state.lock().members.values() {
            if heartbeat.consumer_data_set.iter().any(|consumer| consumer.group_name == group) {
                let request = RemotingCommand::request_with(RequestCode::NOTIFY_CONSUMER_IDS_CHANGED, &header);
                let _ = connection.one_way(request);
            }
        }
    }
}

impl Broker {
    fn route(&self, topic: &str) -> Option<TopicRouteData> {
        let state = self.cluster.state.lock();
        let queues = *state.topics.get(topic)?;
        let brokers = state.masters.iter();
        Some(TopicRouteData {
            broker_datas: brokers
                .clone()
                .map(|(name, address)| BrokerData {
                    broker_name: name.clone(),
                    broker_addrs: [(0, address.clone())].into(),
                    ..BrokerData::default()
                })
                .collect(),
            queue_datas: brokers
                .map(|(name, _)| QueueData {
                    broker_name: name.clone(),
                    perm: 6,
                    read_queue_nums: queues,
                    write_queue_nums: queues,
                    topic_sys_flag: 0,
                })
                .collect(),
            ..TopicRouteData::default()
        })
    }

    async fn send(&self, request: &RemotingCommand) -> Option<RemotingCommand> {
        let header = SendMessageRequest::of(request).unwrap();
        let encoded = header.properties.clone().unwrap_or_default();
        let unique_key = properties::get(&encoded, properties::UNIQ_KEY).unwrap_or_default().to_owned();
        let is_marked = request.ext.bool(protocol::header::IDEMPOTENT) == Some(true);
        let misfortune = {
            let mut state = self.cluster.state.lock();
            state.sends.push(SeenSend { header: header.clone(), is_marked, unique_key: unique_key.clone() });
            let due = state.misfortunes.iter().position(|(broker, _)| *broker == self.name);
            due.and_then(|at| state.misfortunes.remove(at)).map(|(_, misfortune)| misfortune)
        };
        match misfortune {
            Some(Misfortune::Refuse(code)) => return Some(request.reply_error(code, "as scripted")),
            Some(Misfortune::Lose) => return None,
            Some(Misfortune::StoreSilently) | None => {}
        }
        let topic = match names::group_of_retry_topic(&header.topic) {
            Some(group) if header.reconsume_times > header.max_reconsume_times => names::dlq_topic(group),
            _ => header.topic.clone(),
        };
        let mut queue = MessageQueue::new(topic.as_str(), self.name.as_str(), header.queue_id);
        if topic != header.topic {
            queue.queue_id = 0;
        }
        let inner = if header.batch {
            batch::decode(&request.body).unwrap().iter().map(|m| (m.body.to_vec(), m.properties.to_owned())).collect()
        } else {
            vec![(request.body.to_vec(), encoded)]
        };
        let first = self.earlier(&queue, &inner[0].1).filter(|_| is_marked);
        let mut places = Vec::new();
        for (body, properties) in &inner {
            let record = NewRecord {
                topic: &topic,
                queue_id: queue.queue_id,
                flag: header.flag,
                sys_flag: SysFlag(header.sys_flag),
                born_timestamp: header.born_timestamp,
                born_host: "127.0.0.1:1".parse().unwrap(),
                store_timestamp: header.born_timestamp,
                store_host: "127.0.0.1:2".parse().unwrap(),
                reconsume_times: header.reconsume_times.unwrap_or(0),
                prepared_transaction_offset: 0,
                body,
                properties,
            };
            places.push(match first {
                Some(place) => place,
                None => self.cluster.append(&queue, &record),
            });
        }
        if matches!(misfortune, Some(Misfortune::StoreSilently)) {
            return None;
        }
        let store_host = "127.0.0.1:2".parse().unwrap();
        let ids = places.iter().map(|(_, physical)| MessageId { store_host, physical_offset: *physical });
        let response = SendMessageResponse {
            msg_id: Some(protocol::message_id::join(ids)),
            queue_id: Some(queue.queue_id),
            queue_offset: Some(places[0].0),
            transaction_id: Some(unique_key),
            ..SendMessageResponse::default()
        };
        let answer = request.reply_with(ResponseCode::SUCCESS, &response);
        Some(if first.is_some() { answer.with_field(protocol::header::DUPLICATE, true) } else { answer })
    }

    /// Where the message with these properties already lies in the queue.
    fn earlier(&self, queue: &MessageQueue, encoded: &str) -> Option<(i64, i64)> {
        let key = properties::get(encoded, properties::UNIQ_KEY)?;
        let state = self.cluster.state.lock();
        let record = state
            .queues
            .get(queue)?
            .iter()
            .find(|record| RecordView::parse(record).unwrap().property(properties::UNIQ_KEY) == Some(key))?;
        let view = RecordView::parse(record).unwrap();
        Some((view.queue_offset(), view.physical_offset()))
    }

    async fn pull(&self, request: &RemotingCommand) -> RemotingCommand {
        let header: PullMessageRequest = request.header().unwrap();
        let queue = MessageQueue::new(header.topic.as_str(), self.name.as_str(), header.queue_id);
        let flag = PullSysFlag(header.sys_flag);
        let clock = Env::real().clock;
        let deadline = clock.monotonic() + Duration::from_millis(header.suspend_timeout_millis as u64);
        loop {
            let arrived = self.cluster.arrived.notified();
            let (max, found) = {
                let state = self.cluster.state.lock();
                let records = state.queues.get(&queue).map_or(&[][..], Vec::as_slice);
                let from = records.get(header.queue_offset as usize..).unwrap_or_default();
                let count = from.len().min(header.max_msg_nums as usize);
                (records.len() as i64, from[..count].to_vec())
            };
            let answer = |code, next| {
                let header =
                    PullMessageResponse { next_begin_offset: next, max_offset: max, ..PullMessageResponse::default() };
                request.reply_with(code, &header)
            };
            if header.queue_offset > max {
                return answer(ResponseCode::PULL_OFFSET_MOVED, max);
            }
            if !found.is_empty() {
                let next = header.queue_offset + found.len() as i64;
                return answer(ResponseCode::SUCCESS, next).with_body(found.concat());
            }
            let remaining = deadline.saturating_sub(clock.monotonic());
            let waited = if flag.has(PullSysFlag::SUSPEND) { clock.timeout(remaining, arrived).await } else { None };
            if waited.is_none() {
                return answer(ResponseCode::PULL_NOT_FOUND, header.queue_offset);
            }
        }
    }

    fn give_back(&self, request: &RemotingCommand) -> RemotingCommand {
        let header: ConsumerSendMessageBackRequest = request.header().unwrap();
        let record = {
            let mut state = self.cluster.state.lock();
            if state.refused_give_backs > 0 {
                state.refused_give_backs -= 1;
                return request.reply_error(ResponseCode::SERVICE_NOT_AVAILABLE, "as scripted");
            }
            let (queue, offset) = state.log[header.offset as usize].clone();
            state.queues[&queue][offset].clone()
        };
        let view = RecordView::parse(&record).unwrap();
        let limit = header.max_reconsume_times.unwrap_or(16);
        let is_dead = header.delay_level < 0 || view.reconsume_times() >= limit;
        let topic = if is_dead { names::dlq_topic(&header.group) } else { names::retry_topic(&header.group) };
        let mut copied = Properties::parse(view.properties());
        if copied.get(properties::RETRY_TOPIC).is_none() {
            copied.set(properties::RETRY_TOPIC, view.topic());
        }
        let new = NewRecord {
            topic: &topic,
            queue_id: 0,
            reconsume_times: view.reconsume_times() + 1,
            properties: copied.encoded(),
            ..view.to_new()
        };
        self.cluster.append(&MessageQueue::new(topic.as_str(), self.name.as_str(), 0), &new);
        request.reply(ResponseCode::SUCCESS)
    }

    fn heartbeat(&self, connection: &Connection, request: &RemotingCommand) -> RemotingCommand {
        let heartbeat: HeartbeatData = request.json().unwrap();
        let groups: BTreeSet<String> =
            heartbeat.consumer_data_set.iter().map(|consumer| consumer.group_name.clone()).collect();
        let is_new = {
            let mut state = self.cluster.state.lock();
            for group in &groups {
                state.topics.entry(names::retry_topic(group)).or_insert(1);
            }
            state.members.insert(connection.id(), (connection.clone(), heartbeat)).is_none()
        };
        if is_new {
            groups.iter().for_each(|group| self.cluster.tell_members(group));
        }
        request.reply(ResponseCode::SUCCESS)
    }

    fn members(&self, group: &str) -> Vec<String> {
        let state = self.cluster.state.lock();
        let of_group = state
            .members
            .values()
            .filter(|(_, heartbeat)| heartbeat.consumer_data_set.iter().any(|consumer| consumer.group_name == group));
        of_group.map(|(_, heartbeat)| heartbeat.client_id.clone()).collect()
    }

    fn offset_of(&self, queue: &QueueRequest) -> i64 {
        let state = self.cluster.state.lock();
        let queue = MessageQueue::new(queue.topic.as_str(), self.name.as_str(), queue.queue_id);
        state.queues.get(&queue).map_or(0, |records| records.len() as i64)
    }

    fn lock(&self, request: &RemotingCommand, is_unlock: bool) -> RemotingCommand {
        let body: LockBatchRequest = request.json().unwrap();
        let mut state = self.cluster.state.lock();
        let mut granted = Vec::new();
        for queue in body.mq_set {
            let key = (body.consumer_group.clone(), queue.clone());
            let holder = state.locks.get(&key);
            if holder.is_some_and(|holder| *holder != body.client_id) {
                continue;
            }
            if is_unlock {
                state.locks.remove(&key);
            } else {
                state.locks.insert(key, body.client_id.clone());
                granted.push(queue);
            }
        }
        request.reply(ResponseCode::SUCCESS).with_json(&LockBatchResponse { lock_ok_mq_set: granted })
    }
}

impl Handler for Broker {
    async fn handle(self: &Arc<Self>, connection: &Connection, request: RemotingCommand) -> Option<RemotingCommand> {
        *self.cluster.state.lock().calls.entry(request.code).or_default() += 1;
        let ok = request.reply(ResponseCode::SUCCESS);
        Some(match request.request_code() {
            RequestCode::GET_ROUTEINFO_BY_TOPIC => match self.route(request.ext.get("topic").unwrap()) {
                Some(route) => ok.with_json(&route),
                None => request.reply_error(ResponseCode::TOPIC_NOT_EXIST, "no such topic"),
            },
            RequestCode::SEND_MESSAGE_V2 | RequestCode::SEND_BATCH_MESSAGE => match self.send(&request).await {
                Some(answer) => answer,
                None => return std::future::pending().await,
            },
            RequestCode::PULL_MESSAGE => self.pull(&request).await,
            RequestCode::QUERY_CONSUMER_OFFSET => {
                let header: QueryConsumerOffsetRequest = request.header().unwrap();
                let queue = MessageQueue::new(header.topic, self.name.as_str(), header.queue_id);
                match (self.cluster.offset(&header.consumer_group, &queue), header.set_zero_if_not_found) {
                    (Some(offset), _) => ok.with_header(&OffsetResponse { offset }),
                    (None, Some(false)) => request.reply(ResponseCode::QUERY_NOT_FOUND),
                    (None, _) => ok.with_header(&OffsetResponse { offset: 0 }),
                }
            }
            RequestCode::UPDATE_CONSUMER_OFFSET => {
                let header: UpdateConsumerOffsetRequest = request.header().unwrap();
                let queue = MessageQueue::new(header.topic, self.name.as_str(), header.queue_id);
                self.cluster.set_offset(&header.consumer_group, &queue, header.commit_offset);
                ok
            }
            RequestCode::GET_MAX_OFFSET => {
                ok.with_header(&OffsetResponse { offset: self.offset_of(&request.header().unwrap()) })
            }
            RequestCode::GET_MIN_OFFSET => ok.with_header(&OffsetResponse { offset: 0 }),
            RequestCode::HEART_BEAT => self.heartbeat(connection, &request),
            RequestCode::UNREGISTER_CLIENT => {
                let header: UnregisterClientRequest = request.header().unwrap();
                let group = header.consumer_group.clone();
                let mut state = self.cluster.state.lock();
                state.members.remove(&connection.id());
                state.left.push(header);
                drop(state);
                group.iter().for_each(|group| self.cluster.tell_members(group));
                ok
            }
            RequestCode::CONSUMER_SEND_MSG_BACK => self.give_back(&request),
            RequestCode::GET_CONSUMER_LIST_BY_GROUP => {
                let header: ConsumerGroupRequest = request.header().unwrap();
                ok.with_json(&ConsumerIdList { consumer_id_list: self.members(&header.consumer_group) })
            }
            RequestCode::LOCK_BATCH_MQ => self.lock(&request, false),
            RequestCode::UNLOCK_BATCH_MQ => self.lock(&request, true),
            _ => request.reply(ResponseCode::REQUEST_CODE_NOT_SUPPORTED),
        })
    }

    fn closed(&self, connection: &Connection) {
        self.cluster.state.lock().members.remove(&connection.id());
    }
}

/// A client whose NameServer is the running broker.
pub fn client_of(running: &Running) -> ClientBuilder {
    Client::builder().name_servers(running.address.to_string())
}

/// Waits until `condition` holds; fails after 20 s.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let clock = Env::real().clock;
    let met = async {
        while !condition() {
            clock.sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(clock.timeout(Duration::from_secs(20), met).await.is_some(), "not reached: {what}");
}

//! The workload: clients that append, pull, store offsets and schedule messages while faults strike.
//!
//! Values are unique. Raw clients send each request once; the product's own client retries as it does for users.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use broker::broker::BrokerGroup;
use client::admin::Admin;
use client::{Client, Message, SendError};
use env::disk::simulated::SimDisk;
use env::witness::{self, Seen};
use env::{Env, Rng};
use protocol::body::SubscriptionGroupConfig;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{
    CreateTopicRequest, OffsetResponse, QueryConsumerOffsetRequest, SendMessageRequest, SendMessageRequestV2,
    SendMessageResponse, UpdateConsumerOffsetRequest,
};
use protocol::properties::{self, Properties};
use protocol::record::RecordView;
use raft_store::position::QueueId;
use remoting::{CallError, Limits, NoRequests};

use super::history::{Access, Append, Delayed, End, History, Pull};
use super::host::{NAME_SERVER_PORT, environment};

/// Appends and pulls go here.
pub const TOPIC: &str = "appends";
/// Its queues.
pub const QUEUES: u32 = 3;
/// Delayed messages go here, to one queue.
pub const DELAYED_TOPIC: &str = "delayed";
/// Whose offsets are the registers.
pub const GROUP: &str = "readers";

/// How long a raw request may take before its outcome is unknown.
const CALL: Duration = Duration::from_secs(4);

/// Offsets that clients store and read: one for each queue but the last, so that they meet.
const REGISTERS: u32 = 2;

/// What the clients share.
#[derive(Debug)]
pub struct Workload {
    /// What they ask and are answered.
    pub history: RefCell<History>,
    /// Every host that may serve.
    pub brokers: Vec<SocketAddr>,
    /// The NameServer.
    pub name_server: IpAddr,
    /// Longest pause between two requests.
    pub pause_ms: u64,
    /// Set to let the clients end.
    pub stops: Cell<bool>,
    next_value: Cell<u64>,
    /// Of each queue, behind the last append that was acknowledged.
    acknowledged_ends: RefCell<Vec<u64>>,
}

impl Workload {
    /// A workload that nobody has begun.
    pub fn new(brokers: Vec<SocketAddr>, name_server: IpAddr, pause_ms: u64) -> Workload {
        Workload {
            history: RefCell::default(),
            brokers,
            name_server,
            pause_ms,
            stops: Cell::new(false),
            next_value: Cell::new(1),
            acknowledged_ends: RefCell::new(vec![0; QUEUES as usize]),
        }
    }

    fn value(&self) -> u64 {
        let value = self.next_value.get();
        self.next_value.set(value + 1);
        value
    }

    fn invoke<T>(&self, add: impl FnOnce(&mut History, u64) -> T) -> T {
        let mut history = self.history.borrow_mut();
        let moment = history.moment();
        add(&mut history, moment)
    }

    /// An append that was asked for.
    fn append(&self, queue: u32, value: u64, repeats: bool) -> usize {
        self.invoke(|history, invoked| {
            history.appends.push(Append { queue, value, repeats, invoked, end: End::Info });
            history.appends.len() - 1
        })
    }

    /// It was acknowledged.
    fn appended(&self, at: usize, offset: u64) {
        let ended = self.ends(offset);
        let append = &mut self.history.borrow_mut().appends[at];
        append.end = End::Ok(offset, ended);
        let end = &mut self.acknowledged_ends.borrow_mut()[append.queue as usize];
        *end = (*end).max(offset + 1);
    }

    /// A queue that holds less than was acknowledged on this replica, which leads and serves.
    pub fn lacks_acknowledged(&self, group: &BrokerGroup) -> Option<String> {
        let reader = group.raft().reader();
        let topic = reader.tables().topics().get(TOPIC).map(|topic| topic.id());
        (0..).zip(&*self.acknowledged_ends.borrow()).find_map(|(queue, end)| {
            let held = topic.and_then(|topic| reader.queue(QueueId { topic, queue }));
            let held = held.map_or(0, |held| held.bounds().end.0);
            (held < *end).then(|| format!("queue {queue} ends at {held}, offset {} was acknowledged", end - 1))
        })
    }

    /// The moment at which an operation ends, which the witness sees.
    fn ends(&self, result: u64) -> u64 {
        let moment = self.history.borrow_mut().moment();
        witness::note(Seen::Event, moment, &result.to_le_bytes());
        moment
    }
}

/// One client: a place to call from, and whom it tries next.
pub struct Caller {
    work: Rc<Workload>,
    env: Env,
    rng: Rng,
    raw: remoting::Client<NoRequests>,
    at: usize,
}

impl Caller {
    /// A client with a stream of random numbers of its own. To be called on its host.
    pub fn new(work: &Rc<Workload>, seed: u64) -> Caller {
        let env = environment(seed, SimDisk::new(Rng::seeded(seed)));
        let limits = Limits { connect: Duration::from_millis(500), ..Limits::default() };
        let raw = remoting::Client::new(&env, limits, Arc::new(NoRequests));
        let rng = Rng::seeded(seed);
        let at = rng.below(work.brokers.len() as u64) as usize;
        Caller { work: work.clone(), rng, raw, env, at }
    }

    fn broker(&self) -> String {
        self.work.brokers[self.at].to_string()
    }

    fn try_next(&mut self) {
        self.at = (self.at + 1) % self.work.brokers.len();
    }

    async fn pause(&self) {
        let pause = 1 + self.rng.below(self.work.pause_ms);
        self.env.clock.sleep(Duration::from_millis(pause)).await;
    }

    async fn call(&mut self, request: RemotingCommand) -> Result<RemotingCommand, CallError> {
        let answered = self.raw.call(&self.broker(), request, CALL).await;
        if answered.as_ref().map_or(true, |answer| !answer.is_success()) {
            self.try_next();
        }
        answered
    }

    fn admin(&self) -> Admin {
        Admin::new(&self.env, vec![SocketAddr::new(self.work.name_server, NAME_SERVER_PORT).to_string()])
    }

    /// Makes topics and group; returns when that is done.
    pub async fn prepare(mut self) {
        let admin = self.admin();
        let topic = |topic: &str, queues: u32| CreateTopicRequest {
            topic: topic.to_owned(),
            default_topic: Some("TBW102".to_owned()),
            read_queue_nums: queues as i32,
            write_queue_nums: queues as i32,
            perm: 6,
            topic_filter_type: Some("SINGLE_TAG".to_owned()),
            ..CreateTopicRequest::default()
        };
        let group = SubscriptionGroupConfig { group_name: GROUP.to_owned(), ..SubscriptionGroupConfig::default() };
        loop {
            let broker = self.broker();
            if admin.put_topic(&broker, &topic(TOPIC, QUEUES)).await.is_ok()
                && admin.put_topic(&broker, &topic(DELAYED_TOPIC, 1)).await.is_ok()
                && admin.put_group(&broker, &group).await.is_ok()
            {
                return;
            }
            self.try_next();
            self.pause().await;
        }
    }

    /// Appends over raw connections, one at a time, each value once.
    pub async fn append(mut self) {
        while !self.work.stops.get() {
            let value = self.work.value();
            let queue = self.rng.below(u64::from(QUEUES)) as u32;
            let at = self.work.append(queue, value, false);
            if let Ok(offset) = self.send(TOPIC, queue, value, None).await {
                self.work.appended(at, offset);
            }
            self.pause().await;
        }
    }

    async fn send(&mut self, topic: &str, queue: u32, value: u64, delay_ms: Option<u64>) -> Result<u64, CallError> {
        let properties = delay_ms.map(|delay| {
            let mut all = Properties::new();
            all.set(properties::TIMER_DELAY_MS, delay);
            all.into_encoded()
        });
        let header = SendMessageRequestV2(SendMessageRequest {
            producer_group: "appenders".to_owned(),
            topic: topic.to_owned(),
            default_topic: "TBW102".to_owned(),
            default_topic_queue_nums: 1,
            queue_id: queue as i32,
            born_timestamp: self.env.clock.wall_ms(),
            properties,
            ..SendMessageRequest::default()
        });
        let request = RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &header).with_body(body(value));
        let answer = self.call(request).await?;
        if !answer.is_success() {
            return Err(CallError::Unknown(format!("{}: {}", answer.response_code(), answer.remark_text())));
        }
        let placed: SendMessageResponse = answer.header().map_err(|error| CallError::Unknown(error.to_string()))?;
        Ok(placed.queue_offset.map_or(0, |offset| offset as u64))
    }

    /// Appends with the product's client, which finds the leader and retries.
    pub async fn produce(self) {
        let name_server = SocketAddr::new(self.work.name_server, NAME_SERVER_PORT);
        let client = Client::builder().name_servers(name_server.to_string()).env(self.env.clone());
        let client = client.client_id("producer").build().expect("a good configuration");
        let producer = client.producer("producers").start().expect("a good configuration");
        while !self.work.stops.get() {
            let value = self.work.value();
            let queue = self.rng.below(u64::from(QUEUES)) as u32;
            let Ok(queues) = producer.queues(TOPIC).await else {
                self.pause().await;
                continue;
            };
            let Some(chosen) = queues.iter().find(|chosen| chosen.queue_id == queue as i32) else {
                self.pause().await;
                continue;
            };
            let at = self.work.append(queue, value, true);
            match producer.send_to(Message::new(TOPIC, body(value)), chosen).await {
                Ok(receipt) => self.work.appended(at, receipt.queue_offset as u64),
                // It says that nothing was stored: it is held to it.
                Err(SendError::NotStored { .. }) => self.work.history.borrow_mut().appends[at].end = End::Fail,
                Err(_) => {}
            }
            self.pause().await;
        }
        client.shutdown().await;
    }

    /// Schedules messages.
    pub async fn schedule(mut self) {
        while !self.work.stops.get() {
            let value = self.work.value();
            let delay_ms = 100 + self.rng.below(1500);
            let due_ms = now_ms() + delay_ms;
            let at = {
                let mut history = self.work.history.borrow_mut();
                history.delayed.push(Delayed { value, due_ms, end: End::Info });
                history.delayed.len() - 1
            };
            if self.send(DELAYED_TOPIC, 0, value, Some(delay_ms)).await.is_ok() {
                let ended = self.work.ends(value);
                self.work.history.borrow_mut().delayed[at].end = End::Ok((), ended);
            }
            self.pause().await;
            self.pause().await;
        }
    }

    /// Reads all queues, each from its beginning to wherever it ends, at whichever replica answers.
    pub async fn read(mut self, reader: usize) {
        let admin = self.admin();
        let mut next = vec![0; QUEUES as usize + 1];
        while !self.work.stops.get() {
            let queue = self.rng.below(next.len() as u64) as usize;
            let (topic, queue_id) = place(queue as u32);
            let from: u64 = next[queue];
            match admin.pull(&self.broker(), GROUP, topic, queue_id, from as i64, 32).await {
                Ok(pulled) => {
                    let shown: Vec<(u64, u64)> = pulled.records.iter().map(|record| shown(record)).collect();
                    for (_, value) in shown.iter().filter(|_| topic == DELAYED_TOPIC) {
                        self.work.history.borrow_mut().seen_ms.entry(*value).or_insert_with(now_ms);
                    }
                    self.work.ends(shown.len() as u64);
                    next[queue] += shown.len() as u64;
                    self.work.history.borrow_mut().pulls.push(Pull { reader, queue: queue as u32, from, shown });
                    if self.rng.chance(1, 8) {
                        self.try_next();
                    }
                }
                Err(_) => self.try_next(),
            }
            self.pause().await;
        }
    }

    /// Stores and reads consumer offsets.
    pub async fn keep_offsets(mut self) {
        while !self.work.stops.get() {
            let register = self.rng.below(u64::from(REGISTERS)) as u32;
            let stores = self.rng.chance(1, 2).then(|| self.work.value());
            let at = self.work.invoke(|history, invoked| {
                history.accesses.push(Access { register, stores, invoked, end: End::Info });
                history.accesses.len() - 1
            });
            let read = match stores {
                Some(value) => self.store(register, value).await,
                None => self.query(register).await,
            };
            if let Some(value) = read {
                let ended = self.work.ends(value);
                self.work.history.borrow_mut().accesses[at].end = End::Ok(value, ended);
            }
            self.pause().await;
        }
    }

    async fn store(&mut self, register: u32, value: u64) -> Option<u64> {
        let header = UpdateConsumerOffsetRequest {
            consumer_group: GROUP.to_owned(),
            topic: TOPIC.to_owned(),
            queue_id: register as i32,
            commit_offset: value as i64,
            ..UpdateConsumerOffsetRequest::default()
        };
        let request = RemotingCommand::request_with(RequestCode::UPDATE_CONSUMER_OFFSET, &header);
        let answer = self.call(request).await.ok()?;
        answer.is_success().then_some(value)
    }

    async fn query(&mut self, register: u32) -> Option<u64> {
        let header = QueryConsumerOffsetRequest {
            consumer_group: GROUP.to_owned(),
            topic: TOPIC.to_owned(),
            queue_id: register as i32,
            ..QueryConsumerOffsetRequest::default()
        };
        let request = RemotingCommand::request_with(RequestCode::QUERY_CONSUMER_OFFSET, &header);
        let answer = self.call(request).await.ok()?;
        match answer.response_code() {
            ResponseCode::SUCCESS => answer.header::<OffsetResponse>().ok().map(|answer| answer.offset as u64),
            ResponseCode::QUERY_NOT_FOUND => Some(0),
            _ => None,
        }
    }

    /// Tries to append until one is acknowledged.
    pub async fn append_one(mut self) {
        loop {
            let value = self.work.value();
            let at = self.work.append(0, value, false);
            if let Ok(offset) = self.send(TOPIC, 0, value, None).await {
                self.work.appended(at, offset);
                return;
            }
            self.pause().await;
        }
    }

    /// Puts the member on `to` in the place of `old`, as an operator does: the new one is named, catches up, and gets the
    /// vote of the other in one change. Returns when that is done.
    pub async fn replace(mut self, to: String, old: u64) {
        let admin = self.admin();
        loop {
            let broker = self.broker();
            if let Ok(added) = admin.add_learner(&broker, &to).await {
                if admin.change_voters(&broker, Some(added.node_id), Some(old)).await.is_ok() {
                    return;
                }
                lead_elsewhere(&admin, &broker, old).await;
            }
            self.try_next();
            self.env.clock.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Reads every queue of every replica from its beginning to its end.
    pub async fn audit(self, replicas: Vec<usize>) {
        let admin = self.admin();
        for at in replicas {
            let address = self.work.brokers[at].to_string();
            let mut queues = Vec::new();
            for queue in 0..=QUEUES {
                let (topic, queue_id) = place(queue);
                queues.push(self.all_values(&admin, &address, topic, queue_id).await);
            }
            self.work.history.borrow_mut().replicas.insert(address, queues);
        }
    }

    async fn all_values(&self, admin: &Admin, replica: &str, topic: &str, queue_id: i32) -> Vec<u64> {
        let mut values: Vec<u64> = Vec::new();
        loop {
            if let Ok(pulled) = admin.pull(replica, GROUP, topic, queue_id, values.len() as i64, 128).await {
                values.extend(pulled.records.iter().map(|record| shown(record).1));
                if values.len() as i64 >= pulled.bounds.max_offset {
                    return values;
                }
            } else {
                self.pause().await;
            }
        }
    }

    /// Asks for a new leader, once.
    pub async fn transfer(self, from: SocketAddr, to: u64) {
        let _ = self.admin().transfer_leader(&from.to_string(), to).await;
    }
}

/// If `old` leads, somebody else is to: who leads cannot leave.
async fn lead_elsewhere(admin: &Admin, broker: &str, old: u64) {
    let Ok(status) = admin.replica_status(broker).await else { return };
    let leads = status.members.iter().find(|member| member.node_id == old && status.leader == Some(old));
    let other = status.members.iter().find(|member| member.node_id != old && member.voter);
    if let (Some(leads), Some(other)) = (leads, other) {
        // Refused or late: the operator looks again.
        let _ = admin.transfer_leader(&leads.client_address, other.node_id).await;
    }
}

/// Topic and queue of one of a replica's queues; the last is that of the delayed messages.
fn place(queue: u32) -> (&'static str, i32) {
    if queue < QUEUES { (TOPIC, queue as i32) } else { (DELAYED_TOPIC, 0) }
}

/// Simulated time, by no host's clock.
pub fn now_ms() -> u64 {
    turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// A message that says `value`, of some length.
fn body(value: u64) -> Vec<u8> {
    let mut body = vec![value as u8; 8 + (value % 700) as usize];
    body[..8].copy_from_slice(&value.to_be_bytes());
    body
}

/// Offset and value of a record.
pub fn shown(record: &[u8]) -> (u64, u64) {
    let view = RecordView::parse(record).expect("a broker sends whole records");
    let value = *view.body().first_chunk().expect("a body with a value");
    (view.queue_offset() as u64, u64::from_be_bytes(value))
}

//! Clients that append, schedule and pull while faults strike.
//!
//! Values are unique. Raw clients send each request once; the product's own client retries as it does for users.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use client::admin::Admin;
use client::{Client, Message, SendError};
use env::disk::simulated::SimDisk;
use env::{Env, Rng};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{IDEMPOTENT, SendMessageRequest, SendMessageRequestV2, SendMessageResponse};
use protocol::properties::{self, Properties};
use protocol::record::RecordView;
use remoting::{CallError, Limits, NoRequests};

use super::history::{Copies, Delayed, End, Pull, Recall};
use super::host::{NAME_SERVER_PORT, environment};
use super::workload::{DELAYED_TOPIC, GROUP, QUEUES, TOPIC, Workload, now_ms, place};

/// How long a patient client waits for an answer: longer than a broker does.
const PATIENCE: Duration = Duration::from_secs(4);

/// Why a request has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The broker says that it was certainly not carried out, or it never left: the same again does no harm.
    Refused,
    /// The broker says something else.
    Told(ResponseCode),
    /// It may have been carried out, or may be yet.
    Unknown,
}

impl Lost {
    fn of_code(code: ResponseCode) -> Lost {
        match code {
            ResponseCode::SYSTEM_BUSY | ResponseCode::SERVICE_NOT_AVAILABLE => Lost::Refused,
            told => Lost::Told(told),
        }
    }

    /// How the operation has ended.
    pub fn end<T>(self) -> End<T> {
        match self {
            Lost::Refused => End::Fail,
            Lost::Told(_) | Lost::Unknown => End::Info,
        }
    }
}

/// One client: a place to call from, and whom it tries next.
pub struct Caller {
    pub(super) work: Rc<Workload>,
    pub(super) env: Env,
    pub(super) rng: Rng,
    raw: remoting::Client<NoRequests>,
    /// How long it waits for an answer before the outcome is unknown.
    patience: Duration,
    /// Whom it asks next.
    pub(super) at: usize,
}

impl Caller {
    /// A client with a stream of random numbers of its own. To be called on its host.
    pub fn new(work: &Rc<Workload>, seed: u64) -> Caller {
        let env = environment(seed, SimDisk::new(Rng::seeded(seed)));
        let raw = connector(&env);
        let rng = Rng::seeded(seed);
        let at = rng.below(work.brokers.len() as u64) as usize;
        let impatient = rng.chance(1, 2).then(|| Duration::from_millis(300 + rng.below(700)));
        Caller { work: work.clone(), rng, raw, env, patience: impatient.unwrap_or(PATIENCE), at }
    }

    pub(super) fn broker(&self) -> String {
        self.work.brokers[self.at].to_string()
    }

    pub(super) fn try_next(&mut self) {
        self.at = (self.at + 1) % self.work.brokers.len();
    }

    pub(super) async fn pause(&self) {
        let pause = 1 + self.rng.below(self.work.pause_ms);
        self.env.clock.sleep(Duration::from_millis(pause)).await;
    }

    /// A client with connections of its own on the same host.
    pub(super) fn another(&self) -> remoting::Client<NoRequests> {
        connector(&self.env)
    }

    /// Asks once; after anything but a success somebody else is asked next.
    pub(super) async fn call(&mut self, request: RemotingCommand) -> Result<RemotingCommand, Lost> {
        let answered = match self.raw.call(&self.broker(), request, self.patience).await {
            Ok(answer) if answer.is_success() => return Ok(answer),
            Ok(answer) => Lost::of_code(answer.response_code()),
            Err(CallError::NotSent(_)) => Lost::Refused,
            Err(CallError::Unknown(_)) => Lost::Unknown,
        };
        self.try_next();
        Err(answered)
    }

    pub(super) fn admin(&self) -> Admin {
        Admin::new(&self.env, vec![SocketAddr::new(self.work.name_server, NAME_SERVER_PORT).to_string()])
    }

    /// Appends over raw connections, one at a time, each value once.
    pub async fn append(mut self) {
        while !self.work.stops.get() {
            let value = self.work.value();
            let queue = self.rng.below(u64::from(QUEUES)) as u32;
            let at = self.work.append(queue, value, Copies::One);
            match self.send(TOPIC, queue, value, None).await {
                Ok(offset) => self.work.appended(at, offset),
                Err(lost) => self.work.history.borrow_mut().appends[at].end = lost.end(),
            }
            self.pause().await;
        }
    }

    async fn send(&mut self, topic: &str, queue: u32, value: u64, delay_ms: Option<u64>) -> Result<u64, Lost> {
        let placed = self.sent(topic, queue, value, delay_ms).await?;
        Ok(placed.queue_offset.map_or(0, |offset| offset as u64))
    }

    pub(super) async fn sent(
        &mut self,
        topic: &str,
        queue: u32,
        value: u64,
        delay_ms: Option<u64>,
    ) -> Result<SendMessageResponse, Lost> {
        let properties = delay_ms.map(|delay| {
            let mut all = Properties::new();
            all.set(properties::TIMER_DELAY_MS, delay);
            all.into_encoded()
        });
        let request = self.request(topic, queue, value, properties);
        let answer = self.call(request).await?;
        answer.header().map_err(|_| Lost::Unknown)
    }

    fn request(&self, topic: &str, queue: u32, value: u64, properties: Option<String>) -> RemotingCommand {
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
        RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &header).with_body(body(value))
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
            let at = self.work.append(queue, value, self.work.copies);
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

    /// Appends under unique keys, two copies at a time at two replicas, which may be the same, until somebody has
    /// acknowledged one.
    pub async fn append_copies(self) {
        while !self.work.stops.get() {
            let value = self.work.value();
            let queue = self.rng.below(u64::from(QUEUES)) as u32;
            let at = self.work.append(queue, value, self.work.copies);
            let mut properties = Properties::new();
            properties.set(properties::UNIQ_KEY, format!("{value:032X}"));
            let properties = properties.into_encoded();
            let mut places = Vec::new();
            for _ in 0..20 {
                let copies = [(); 2].map(|()| {
                    let broker = self.work.brokers[self.rng.below(self.work.brokers.len() as u64) as usize].to_string();
                    let request =
                        self.request(TOPIC, queue, value, Some(properties.clone())).with_field(IDEMPOTENT, true);
                    let (raw, patience) = (&self.raw, self.patience);
                    async move { raw.call(&broker, request, patience).await }
                });
                for answer in futures::future::join_all(copies).await.into_iter().flatten() {
                    if answer.is_success()
                        && let Ok(SendMessageResponse { queue_offset: Some(offset), .. }) = answer.header()
                    {
                        places.push(offset as u64);
                    }
                }
                if !places.is_empty() {
                    break;
                }
                self.pause().await;
            }
            for place in places {
                self.work.appended(at, place);
            }
            self.pause().await;
        }
    }

    /// Schedules messages.
    pub async fn schedule(mut self) {
        while !self.work.stops.get() {
            let value = self.work.value();
            let delay_ms = 100 + self.rng.below(1500);
            let due_ms = now_ms() + delay_ms;
            let at = {
                let mut history = self.work.history.borrow_mut();
                history.delayed.push(Delayed { value, due_ms, end: End::Info, recall: Recall::NotAsked });
                history.delayed.len() - 1
            };
            let end = match self.send(DELAYED_TOPIC, 0, value, Some(delay_ms)).await {
                Ok(_) => End::Ok((), self.work.ends(value)),
                Err(lost) => lost.end(),
            };
            self.work.history.borrow_mut().delayed[at].end = end;
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
            match admin.pull(&self.broker(), GROUP, topic, queue_id, from as i64, 128).await {
                Ok(pulled) => {
                    let shown: Vec<(u64, u64)> = pulled.records.iter().map(|record| shown(record)).collect();
                    for (_, value) in shown.iter().filter(|_| topic == DELAYED_TOPIC) {
                        self.work.history.borrow_mut().seen_ms.entry(*value).or_insert_with(now_ms);
                    }
                    self.work.ends(shown.len() as u64);
                    let moved = pulled.code == ResponseCode::PULL_OFFSET_MOVED;
                    let moved = moved.then_some(pulled.bounds.next_begin_offset as u64);
                    next[queue] = moved.or(shown.last().map(|(offset, _)| offset + 1)).unwrap_or(from);
                    self.work.history.borrow_mut().pulls.push(Pull { reader, queue: queue as u32, from, shown, moved });
                    if self.rng.chance(1, 8) {
                        self.try_next();
                    }
                }
                Err(_) => self.try_next(),
            }
            self.pause().await;
        }
    }

    /// Tries to append until one is acknowledged.
    pub async fn append_one(mut self) {
        loop {
            let value = self.work.value();
            let at = self.work.append(0, value, Copies::One);
            match self.send(TOPIC, 0, value, None).await {
                Ok(offset) => return self.work.appended(at, offset),
                Err(lost) => self.work.history.borrow_mut().appends[at].end = lost.end(),
            }
            self.pause().await;
        }
    }
}

fn connector(env: &Env) -> remoting::Client<NoRequests> {
    let limits = Limits { connect: Duration::from_millis(500), ..Limits::default() };
    remoting::Client::new(env, limits, Arc::new(NoRequests))
}

/// A message that says `value`, of some length.
pub(super) fn body(value: u64) -> Vec<u8> {
    let mut body = vec![value as u8; 8 + (value % 700) as usize];
    body[..8].copy_from_slice(&value.to_be_bytes());
    body
}

/// The value that a message says.
pub(super) fn value_of(body: &[u8]) -> u64 {
    u64::from_be_bytes(*body.first_chunk().expect("a body with a value"))
}

/// Offset and value of a record.
pub fn shown(record: &[u8]) -> (u64, u64) {
    let view = RecordView::parse(record).expect("a broker sends whole records");
    (view.queue_offset() as u64, value_of(view.body()))
}

//! Appends to queues, and reading them back from each replica: the workload and the judge of clauses 1, 2, 3 and 11.
//!
//! Values are unique numbers. An append that was answered is *acknowledged* with its place; anything else that was sent
//! is unknown and may or may not be found. Found twice is an error: nothing here sends a value a second time.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use env::Env;
use parking_lot::Mutex;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{
    PullMessageRequest, PullMessageResponse, SendMessageRequest, SendMessageRequestV2, SendMessageResponse,
};
use protocol::record::{self, RecordView};
use remoting::{CallError, Client, Limits, NoRequests};

/// The topic of this workload.
pub const TOPIC: &str = "jepsen-append";

/// Its queues.
pub const QUEUES: u32 = 4;

const BODY_BYTES: usize = 1024;
const GROUP: &str = "jepsen-append-check";

/// How long one request may take before its outcome is unknown.
const CALL: Duration = Duration::from_secs(5);

/// Everything acknowledged so far: place to value.
#[derive(Debug, Default)]
pub struct Acknowledged {
    places: Mutex<BTreeMap<(u32, u64), u64>>,
    count: AtomicU64,
    duplicates: AtomicU64,
}

impl Acknowledged {
    /// How many.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn add(&self, queue: u32, offset: u64, value: u64) {
        if self.places.lock().insert((queue, offset), value).is_some() {
            self.duplicates.fetch_add(1, Ordering::SeqCst);
        }
        self.count.fetch_add(1, Ordering::SeqCst);
    }
}

/// Senders at work until they are stopped.
#[derive(Debug)]
pub struct Load {
    /// What they had answered.
    pub acknowledged: Arc<Acknowledged>,
    stop: Arc<AtomicBool>,
    longest_gap: Arc<Mutex<Gap>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Gap {
    last: Option<Duration>,
    longest: Duration,
}

impl Load {
    /// Starts `senders` senders, one message in flight each, over all brokers in turn when one does not answer.
    pub fn start(env: &Env, brokers: &[SocketAddr], senders: u32, next_value: &Arc<AtomicU64>) -> Load {
        let load =
            Load { acknowledged: Arc::default(), stop: Arc::default(), longest_gap: Arc::default(), tasks: Vec::new() };
        load.more(env, brokers, senders, next_value)
    }

    fn more(mut self, env: &Env, brokers: &[SocketAddr], senders: u32, next_value: &Arc<AtomicU64>) -> Load {
        for sender in 0..senders {
            let (env, brokers) = (env.clone(), brokers.to_vec());
            let (acknowledged, stop, gap) = (self.acknowledged.clone(), self.stop.clone(), self.longest_gap.clone());
            let next_value = next_value.clone();
            self.tasks.push(tokio::spawn(async move {
                let client = Client::new(
                    &env,
                    Limits { connect: Duration::from_secs(1), ..Limits::default() },
                    Arc::new(NoRequests),
                );
                let mut broker = sender as usize;
                while !stop.load(Ordering::Relaxed) {
                    let value = next_value.fetch_add(1, Ordering::Relaxed);
                    let queue = (value % u64::from(QUEUES)) as u32;
                    match send(&client, brokers[broker % brokers.len()], queue, value, env.clock.wall_ms()).await {
                        Ok(offset) => {
                            acknowledged.add(queue, offset, value);
                            let now = env.clock.monotonic();
                            let mut gap = gap.lock();
                            let since = gap.last.map_or(Duration::ZERO, |last| now.saturating_sub(last));
                            gap.longest = gap.longest.max(since);
                            gap.last = Some(now);
                        }
                        Err(_) => {
                            broker += 1;
                            env.clock.sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            }));
        }
        self
    }

    /// Resolves when `count` more are acknowledged than were at the call; an error if that takes too long.
    pub async fn acknowledge_more(&self, env: &Env, count: u64) -> io::Result<()> {
        let target = self.acknowledged.count() + count;
        let reached = async {
            while self.acknowledged.count() < target {
                env.clock.sleep(Duration::from_millis(2)).await;
            }
        };
        env.clock.timeout(crate::cluster::PATIENCE, reached).await.ok_or_else(|| {
            io::Error::other(format!(
                "service did not return: {} of {target} appends acknowledged after a minute",
                self.acknowledged.count()
            ))
        })
    }

    /// Longest time between two acknowledgements.
    pub fn longest_gap(&self) -> Duration {
        self.longest_gap.lock().longest
    }

    /// Stops the senders and waits for the last answers.
    pub async fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.await.expect("a sender does not panic");
        }
    }
}

/// Creates the workload's topic; tried until it is done or patience ends.
pub async fn create_topic(env: &Env, brokers: &[SocketAddr]) -> io::Result<()> {
    let client = Client::new(env, Limits::default(), Arc::new(NoRequests));
    let request = || {
        RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_TOPIC)
            .with_field("topic", TOPIC)
            .with_field("defaultTopic", "TBW102")
            .with_field("readQueueNums", QUEUES)
            .with_field("writeQueueNums", QUEUES)
            .with_field("perm", 6)
            .with_field("topicFilterType", "SINGLE_TAG")
            .with_field("order", "false")
    };
    let created = async {
        for broker in brokers.iter().cycle() {
            if let Ok(answer) = client.call(&broker.to_string(), request(), CALL).await
                && answer.is_success()
            {
                return;
            }
            env.clock.sleep(Duration::from_millis(50)).await;
        }
    };
    env.clock
        .timeout(crate::cluster::PATIENCE, created)
        .await
        .ok_or_else(|| io::Error::other("the topic could not be created within a minute"))
}

async fn send(
    client: &Client<NoRequests>,
    broker: SocketAddr,
    queue: u32,
    value: u64,
    born_ms: i64,
) -> Result<u64, CallError> {
    let header = SendMessageRequestV2(SendMessageRequest {
        producer_group: "jepsen-append".to_owned(),
        topic: TOPIC.to_owned(),
        default_topic: "TBW102".to_owned(),
        default_topic_queue_nums: QUEUES as i32,
        queue_id: queue as i32,
        born_timestamp: born_ms,
        ..SendMessageRequest::default()
    });
    let mut body = vec![0; BODY_BYTES];
    body[..8].copy_from_slice(&value.to_be_bytes());
    let request = RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &header).with_body(body);
    let answer = client.call(&broker.to_string(), request, CALL).await?;
    if !answer.is_success() {
        return Err(CallError::Unknown(format!("{}: {}", answer.response_code(), answer.remark_text())));
    }
    let placed: SendMessageResponse = answer.header().map_err(|error| CallError::Unknown(error.to_string()))?;
    match (placed.queue_id, placed.queue_offset) {
        (Some(stored), Some(offset)) if stored == queue as i32 && offset >= 0 => Ok(offset as u64),
        place => Err(CallError::Unknown(format!("acknowledged without a place: {place:?}"))),
    }
}

/// Reads every queue from each replica, from where the last call ended, and compares. Afterwards a replica has shown
/// every append acknowledged before the call, and all replicas the same values at the same offsets.
#[derive(Debug)]
pub struct Judge {
    /// Per queue: the values found, by offset. The same for every replica, or it is an error.
    found: Vec<Vec<u64>>,
    places: BTreeMap<u64, (u32, u64)>,
}

impl Default for Judge {
    fn default() -> Judge {
        Judge { found: vec![Vec::new(); QUEUES as usize], places: BTreeMap::new() }
    }
}

impl Judge {
    /// See [`Judge`]. The senders must be quiet.
    pub async fn check(&mut self, env: &Env, replicas: &[SocketAddr], acknowledged: &Acknowledged) -> io::Result<()> {
        if acknowledged.duplicates.load(Ordering::SeqCst) > 0 {
            return Err(io::Error::other("two appends were acknowledged with the same place"));
        }
        let client = Client::new(env, Limits::default(), Arc::new(NoRequests));
        for queue in 0..QUEUES {
            let from = self.found[queue as usize].len() as u64;
            let wanted = acknowledged
                .places
                .lock()
                .range((queue, 0)..=(queue, u64::MAX))
                .next_back()
                .map_or(0, |(place, _)| place.1 + 1);
            let mut newest: Option<Vec<u64>> = None;
            for replica in replicas {
                let values = read_queue(env, &client, *replica, queue, from, wanted.max(from)).await?;
                match &newest {
                    None => newest = Some(values),
                    Some(first) => {
                        let both = first.len().min(values.len());
                        if let Some(k) = (0..both).find(|k| first[*k] != values[*k]) {
                            return Err(io::Error::other(format!(
                                "queue {queue} offset {}: {replica} shows {}, another replica {}",
                                from + k as u64,
                                values[k],
                                first[k]
                            )));
                        }
                        if values.len() > first.len() {
                            newest = Some(values);
                        }
                    }
                }
            }
            for value in newest.unwrap_or_default() {
                let place = (queue, self.found[queue as usize].len() as u64);
                if let Some(other) = self.places.insert(value, place) {
                    return Err(io::Error::other(format!("value {value} stands at {other:?} and at {place:?}")));
                }
                self.found[queue as usize].push(value);
            }
        }
        for ((queue, offset), value) in acknowledged.places.lock().iter() {
            let found = self.found[*queue as usize].get(*offset as usize);
            if found != Some(value) {
                return Err(io::Error::other(format!(
                    "append of {value} was acknowledged at queue {queue} offset {offset}; found there: {found:?}"
                )));
            }
        }
        Ok(())
    }

    /// Reads everything again from the start, from each replica.
    pub async fn check_all(env: &Env, replicas: &[SocketAddr], acknowledged: &Acknowledged) -> io::Result<()> {
        Judge::default().check(env, replicas, acknowledged).await
    }
}

/// The values of a queue as one replica shows them: from `from` to its end, which must reach `wanted` before long.
async fn read_queue(
    env: &Env,
    client: &Client<NoRequests>,
    replica: SocketAddr,
    queue: u32,
    from: u64,
    wanted: u64,
) -> io::Result<Vec<u64>> {
    let deadline = env.clock.monotonic() + crate::cluster::PATIENCE;
    let mut values = Vec::new();
    loop {
        let next = from + values.len() as u64;
        let answer = pull(client, replica, queue, next, env.clock.wall_ms()).await;
        match answer {
            Ok(body) if !body.is_empty() => {
                for record in record::split(&body) {
                    let record = record.map_err(io::Error::other)?;
                    let record = RecordView::parse(&record).map_err(io::Error::other)?;
                    let expected = from + values.len() as u64;
                    if record.queue_offset() as u64 != expected || !record.is_body_intact() {
                        return Err(io::Error::other(format!(
                            "{replica} queue {queue}: wanted offset {expected}, got {} (body intact: {})",
                            record.queue_offset(),
                            record.is_body_intact()
                        )));
                    }
                    let value = record.body().first_chunk().ok_or_else(|| io::Error::other("a body is cut"))?;
                    values.push(u64::from_be_bytes(*value));
                }
            }
            Ok(_) if next >= wanted => return Ok(values),
            outcome if env.clock.monotonic() > deadline => {
                return Err(io::Error::other(format!(
                    "{replica} queue {queue} does not get beyond offset {next}; acknowledged up to {wanted}: {outcome:?}"
                )));
            }
            _ => env.clock.sleep(Duration::from_millis(20)).await,
        }
    }
}

/// One pull without long polling; empty if there is nothing at `offset`.
async fn pull(
    client: &Client<NoRequests>,
    replica: SocketAddr,
    queue: u32,
    offset: u64,
    now_ms: i64,
) -> Result<Bytes, CallError> {
    let header = PullMessageRequest {
        consumer_group: GROUP.to_owned(),
        topic: TOPIC.to_owned(),
        queue_id: queue as i32,
        queue_offset: offset as i64,
        max_msg_nums: 256,
        sys_flag: 4,
        subscription: Some("*".to_owned()),
        sub_version: now_ms,
        ..PullMessageRequest::default()
    };
    let request = RemotingCommand::request_with(RequestCode::PULL_MESSAGE, &header);
    let answer = client.call(&replica.to_string(), request, CALL).await?;
    match answer.response_code() {
        ResponseCode::SUCCESS => Ok(answer.body),
        ResponseCode::PULL_NOT_FOUND | ResponseCode::PULL_RETRY_IMMEDIATELY => {
            let place: PullMessageResponse = answer.header().map_err(|error| CallError::Unknown(error.to_string()))?;
            if place.next_begin_offset == offset as i64 {
                Ok(Bytes::new())
            } else {
                Err(CallError::Unknown(format!("skipped from {offset} to {}", place.next_begin_offset)))
            }
        }
        code => Err(CallError::Unknown(format!("{code}: {}", answer.remark_text()))),
    }
}

//! The workload: appends to queues at any broker, and reading a queue back from one replica.
//!
//! Values are unique numbers. An append that was answered is *acknowledged* with its place; anything else that was sent
//! is unknown and may or may not be found. Nothing here sends a value a second time. [`crate::judge`] compares.

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
use tokio::task::JoinHandle;

use crate::cluster::PATIENCE;

/// The topic of this workload.
pub const TOPIC: &str = "jepsen-append";

/// Its queues.
pub const QUEUES: u32 = 4;

const BODY_BYTES: usize = 1024;
const GROUP: &str = "jepsen-append-check";

/// How long one request may take before its outcome is unknown.
const CALL: Duration = Duration::from_secs(5);

/// One append that was acknowledged, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append {
    /// The queue.
    pub queue: u32,
    /// The place in it.
    pub offset: u64,
    /// What was appended.
    pub value: u64,
}

/// What senders were answered.
#[derive(Debug, Default)]
pub struct Answers {
    /// Every acknowledgement, as it came.
    pub acknowledged: Vec<Append>,
    /// Longest time between two of them.
    pub longest_gap: Duration,
    newest: Option<Duration>,
}

impl Answers {
    fn add(&mut self, append: Append, now: Duration) {
        let since = self.newest.map_or(Duration::ZERO, |newest| now.saturating_sub(newest));
        self.longest_gap = self.longest_gap.max(since);
        self.newest = Some(now);
        self.acknowledged.push(append);
    }
}

/// Senders at work until they are stopped.
#[derive(Debug)]
pub struct Load {
    answers: Arc<Mutex<Answers>>,
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `senders` senders, one message in flight each, over all brokers in turn when one does not answer.
    pub fn start(env: &Env, brokers: &[SocketAddr], senders: u32, next_value: &Arc<AtomicU64>) -> Load {
        let sender = Sender {
            env: env.clone(),
            brokers: brokers.to_vec(),
            next_value: next_value.clone(),
            answers: Arc::default(),
            stop: Arc::default(),
        };
        Load {
            answers: sender.answers.clone(),
            stop: sender.stop.clone(),
            senders: (0..senders as usize).map(|k| tokio::spawn(sender.clone().work(k))).collect(),
        }
    }

    /// Resolves when `count` more are acknowledged than were at the call; an error if that takes too long.
    pub async fn acknowledge_more(&self, env: &Env, count: usize) -> io::Result<()> {
        let acknowledged = || self.answers.lock().acknowledged.len();
        let target = acknowledged() + count;
        let reached = async {
            while acknowledged() < target {
                env.clock.sleep(Duration::from_millis(2)).await;
            }
        };
        env.clock.timeout(PATIENCE, reached).await.ok_or_else(|| {
            let reached = acknowledged();
            io::Error::other(format!("no service: {reached} of {target} appends acknowledged after {PATIENCE:?}"))
        })
    }

    /// Stops the senders, waits for their last answers, and gives all of them.
    pub async fn stop(self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.await.expect("a sender does not panic");
        }
        std::mem::take(&mut self.answers.lock())
    }
}

#[derive(Clone)]
struct Sender {
    env: Env,
    brokers: Vec<SocketAddr>,
    next_value: Arc<AtomicU64>,
    answers: Arc<Mutex<Answers>>,
    stop: Arc<AtomicBool>,
}

impl Sender {
    /// One value after the other; after an error the next one goes to the next broker.
    async fn work(self, first_broker: usize) {
        let limits = Limits { connect: Duration::from_secs(1), ..Limits::default() };
        let client = Client::new(&self.env, limits, Arc::new(NoRequests));
        let mut brokers = self.brokers.iter().cycle().skip(first_broker);
        let mut broker = brokers.next().expect("there are brokers");
        while !self.stop.load(Ordering::Relaxed) {
            let value = self.next_value.fetch_add(1, Ordering::Relaxed);
            let queue = (value % u64::from(QUEUES)) as u32;
            match send(&client, *broker, queue, value, self.env.clock.wall_ms()).await {
                Ok(offset) => self.answers.lock().add(Append { queue, offset, value }, self.env.clock.monotonic()),
                Err(_) => {
                    broker = brokers.next().expect("an endless cycle");
                    self.env.clock.sleep(Duration::from_millis(20)).await;
                }
            }
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
        .timeout(PATIENCE, created)
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

/// The values of a queue as one replica shows them, from offset `from` to its end.
pub async fn read_queue(
    env: &Env,
    client: &Client<NoRequests>,
    replica: SocketAddr,
    queue: u32,
    from: u64,
) -> io::Result<Vec<u64>> {
    let deadline = env.clock.monotonic() + PATIENCE;
    let mut values = Vec::new();
    loop {
        let next = from + values.len() as u64;
        let outcome = pull(client, replica, queue, next, env.clock.wall_ms()).await;
        if let Ok(Pulled { records, end }) = &outcome {
            for record in record::split(records) {
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
            if *end < next {
                return Err(io::Error::other(format!(
                    "LOST: {replica} queue {queue} has been read up to offset {next}, now it ends at {end}"
                )));
            }
            if from + values.len() as u64 >= *end {
                return Ok(values);
            }
            if !records.is_empty() {
                continue;
            }
        }
        if env.clock.monotonic() > deadline {
            return Err(io::Error::other(format!(
                "{replica} queue {queue} shows nothing at offset {next}: {outcome:?}"
            )));
        }
        env.clock.sleep(Duration::from_millis(20)).await;
    }
}

#[derive(Debug)]
struct Pulled {
    records: Bytes,
    /// Where the queue ends.
    end: u64,
}

/// One pull without long polling.
async fn pull(
    client: &Client<NoRequests>,
    replica: SocketAddr,
    queue: u32,
    offset: u64,
    now_ms: i64,
) -> Result<Pulled, CallError> {
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
        ResponseCode::SUCCESS
        | ResponseCode::PULL_NOT_FOUND
        | ResponseCode::PULL_RETRY_IMMEDIATELY
        | ResponseCode::PULL_OFFSET_MOVED => {
            let place: PullMessageResponse = answer.header().map_err(|error| CallError::Unknown(error.to_string()))?;
            Ok(Pulled { records: answer.body, end: place.max_offset as u64 })
        }
        code => Err(CallError::Unknown(format!("{code}: {}", answer.remark_text()))),
    }
}

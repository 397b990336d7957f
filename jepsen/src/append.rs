//! The workload: appends to queues at any broker, and reading a queue back from one replica.
//!
//! Values are unique numbers. An append that was answered is *acknowledged* with its place; anything else that was sent
//! is unknown and may or may not be found. Nothing here sends a value a second time. [`crate::judge`] compares.

use std::fmt;
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
    OffsetResponse, PullMessageRequest, PullMessageResponse, QueueRequest, SendMessageRequest, SendMessageRequestV2,
    SendMessageResponse,
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

/// Messages asked for in one pull.
pub const AT_ONCE: i32 = 256;
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
    /// When the acknowledgement came, on the monotonic clock.
    pub at: Duration,
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
    /// Adds those of another load, which was begun when this one had ended.
    pub fn extend(&mut self, later: Answers) {
        self.acknowledged.extend(later.acknowledged);
        self.longest_gap = self.longest_gap.max(later.longest_gap);
    }

    fn add(&mut self, append: Append) {
        let since = self.newest.map_or(Duration::ZERO, |newest| append.at.saturating_sub(newest));
        self.longest_gap = self.longest_gap.max(since);
        self.newest = Some(append.at);
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
        let acknowledged = || self.acknowledged();
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

    /// A load of nothing.
    pub fn idle() -> Load {
        Load { answers: Arc::default(), stop: Arc::default(), senders: Vec::new() }
    }

    /// How many are acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.answers.lock().acknowledged.len()
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
            match send(&client, *broker, TOPIC, queue, body(value), self.env.clock.wall_ms(), CALL).await {
                Ok(offset) => {
                    let mut answers = self.answers.lock();
                    let at = self.env.clock.monotonic();
                    answers.add(Append { queue, offset, value, at });
                }
                Err(_) => {
                    broker = brokers.next().expect("an endless cycle");
                    self.env.clock.sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// Creates a topic; tried until it is done or patience ends.
pub async fn create_topic(env: &Env, brokers: &[SocketAddr], topic: &str, queues: u32) -> io::Result<()> {
    let client = client(env);
    let request = || {
        RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_TOPIC)
            .with_field("topic", topic)
            .with_field("defaultTopic", "TBW102")
            .with_field("readQueueNums", queues)
            .with_field("writeQueueNums", queues)
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

/// A message that carries a value.
pub fn body(value: u64) -> Vec<u8> {
    let mut body = vec![0; BODY_BYTES];
    body[..8].copy_from_slice(&value.to_be_bytes());
    body
}

/// The value in a body.
pub fn value(body: &[u8]) -> io::Result<u64> {
    let value = body.first_chunk().ok_or_else(|| io::Error::other("a message without a value"))?;
    Ok(u64::from_be_bytes(*value))
}

/// Why an append was not acknowledged.
#[derive(Debug)]
pub enum SendError {
    /// Certainly not carried out: it never left this machine, or the broker says so.
    NotDone(String),
    /// It may or may not have been carried out.
    Unknown(String),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::NotDone(why) => write!(f, "not done: {why}"),
            SendError::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

impl std::error::Error for SendError {}

impl From<CallError> for SendError {
    fn from(error: CallError) -> SendError {
        match error {
            CallError::NotSent(why) => SendError::NotDone(why),
            CallError::Unknown(why) => SendError::Unknown(why),
        }
    }
}

/// Sends one message to a queue. Gives its place.
pub async fn send(
    client: &Client<NoRequests>,
    broker: SocketAddr,
    topic: &str,
    queue: u32,
    body: Vec<u8>,
    born_ms: i64,
    limit: Duration,
) -> Result<u64, SendError> {
    let header = SendMessageRequestV2(SendMessageRequest {
        producer_group: "jepsen-append".to_owned(),
        topic: topic.to_owned(),
        default_topic: "TBW102".to_owned(),
        default_topic_queue_nums: QUEUES as i32,
        queue_id: queue as i32,
        born_timestamp: born_ms,
        ..SendMessageRequest::default()
    });
    let request = RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &header).with_body(body);
    let answer = client.call(&broker.to_string(), request, limit).await?;
    let code = answer.response_code();
    if !answer.is_success() {
        return Err(refusal(code)(format!("{code}: {}", answer.remark_text())));
    }
    let placed: SendMessageResponse = answer.header().map_err(|error| SendError::Unknown(error.to_string()))?;
    match (placed.queue_id, placed.queue_offset) {
        (Some(stored), Some(offset)) if stored == queue as i32 && offset >= 0 => Ok(offset as u64),
        place => Err(SendError::Unknown(format!("acknowledged without a place: {place:?}"))),
    }
}

/// These two say "not now", and promise that nothing was carried out. Of any other code nobody says as much.
fn refusal(code: ResponseCode) -> fn(String) -> SendError {
    match code {
        ResponseCode::SYSTEM_BUSY | ResponseCode::SERVICE_NOT_AVAILABLE => SendError::NotDone,
        _ => SendError::Unknown,
    }
}

/// Reads a queue at one replica until nothing more comes, or an error; what is read is not looked at.
pub async fn read_for_nothing(env: &Env, replica: SocketAddr, queue: u32) {
    let client = client(env);
    let mut offset = 0;
    while let Ok(Pulled { records, .. }) =
        pull(&client, replica, TOPIC, queue, offset, AT_ONCE, env.clock.wall_ms()).await
    {
        match record::split(&records).count() {
            0 => return,
            read => offset += read as u64,
        }
    }
}

/// A client of one replica after the other.
pub fn client(env: &Env) -> Client<NoRequests> {
    Client::new(env, Limits::default(), Arc::new(NoRequests))
}

/// The values of a queue as one replica shows them, from offset `from` to its end.
pub async fn read_queue(
    env: &Env,
    client: &Client<NoRequests>,
    replica: SocketAddr,
    topic: &str,
    queue: u32,
    from: u64,
) -> io::Result<Vec<u64>> {
    let deadline = env.clock.monotonic() + PATIENCE;
    let mut values = Vec::new();
    loop {
        let next = from + values.len() as u64;
        let outcome = pull(client, replica, topic, queue, next, AT_ONCE, env.clock.wall_ms()).await;
        if let Ok(Pulled { records, end }) = &outcome {
            for (offset, value) in places(records)? {
                let expected = from + values.len() as u64;
                if offset != expected {
                    let wrong = format!("{replica} queue {queue}: wanted offset {expected}, got {offset}");
                    return Err(io::Error::other(wrong));
                }
                values.push(value);
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

/// Offset and value of each record. An error if one is damaged.
pub fn places(records: &Bytes) -> io::Result<Vec<(u64, u64)>> {
    let place = |record: Result<Bytes, _>| {
        let record = record.map_err(io::Error::other)?;
        let record = RecordView::parse(&record).map_err(io::Error::other)?;
        let offset = record.queue_offset() as u64;
        match record.body().first_chunk() {
            Some(value) if record.is_body_intact() => Ok((offset, u64::from_be_bytes(*value))),
            _ => Err(io::Error::other(format!("the body at offset {offset} is damaged"))),
        }
    };
    record::split(records).map(place).collect()
}

/// What a pull has given.
#[derive(Debug)]
pub struct Pulled {
    /// Records, one behind the other.
    pub records: Bytes,
    /// Where the queue ends.
    pub end: u64,
}

/// Where a queue ends, as whoever leads knows it.
pub async fn max_offset(
    client: &Client<NoRequests>,
    replica: SocketAddr,
    topic: &str,
    queue: u32,
) -> Result<u64, String> {
    let header = QueueRequest { topic: topic.to_owned(), queue_id: queue as i32, ..QueueRequest::default() };
    let request = RemotingCommand::request_with(RequestCode::GET_MAX_OFFSET, &header);
    let answer = client.call(&replica.to_string(), request, CALL).await.map_err(|error| error.to_string())?;
    if !answer.is_success() {
        return Err(format!("{}: {}", answer.response_code(), answer.remark_text()));
    }
    let told: OffsetResponse = answer.header().map_err(|error| error.to_string())?;
    u64::try_from(told.offset).map_err(|_| format!("queue {queue} ends at {}", told.offset))
}

/// One pull without long polling.
pub async fn pull(
    client: &Client<NoRequests>,
    replica: SocketAddr,
    topic: &str,
    queue: u32,
    offset: u64,
    at_most: i32,
    now_ms: i64,
) -> Result<Pulled, CallError> {
    let header = PullMessageRequest {
        consumer_group: GROUP.to_owned(),
        topic: topic.to_owned(),
        queue_id: queue as i32,
        queue_offset: offset as i64,
        max_msg_nums: at_most,
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

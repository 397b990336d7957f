//! Dead letters: the messages that a group gave up, read, chosen, and sent again.
//!
//! A dead letter stays where it is, whatever is sent: nothing can be lost by sending it again. Which ones were sent before is
//! told by the copies: each has a unique key that is made of the dead letter's place, and so is the same in every run. Before
//! a dead letter is sent, the broker is asked for that key; what is there already is passed over. So a run that broke off is
//! repeated as it was, and any number of runs with any filters send each dead letter once. Two runs at a time wait for each
//! other: the group's dead-letter queue is locked.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use env::Env;
use protocol::body::{BrokerData, LockBatchRequest, LockBatchResponse, MessageQueue};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{DUPLICATE, IDEMPOTENT, QueryMessageRequest, SendMessageRequest, SendMessageRequestV2};
use protocol::message_id::{MessageId, UniqueKey};
use protocol::names;
use protocol::properties::{self, Properties};
use protocol::record::RecordView;
use protocol::sql92::SqlFilter;
use protocol::sys_flag::SysFlag;
use protocol::tag::{self, TagExpression};

use super::{Admin, RequestError, read_body};

/// Dead letters in one pull.
const BATCH: i32 = 32;

/// Under which group dead letters are read, sent and locked; brokers have it from the start.
const TOOLS_GROUP: &str = "TOOLS_CONSUMER";

/// A broker gives up a send within this time: what is not there by then never will be.
const SETTLED: Duration = Duration::from_secs(5);

/// Attempts at one dead letter before the run is broken off; each waits for a leader.
const ATTEMPTS: u32 = 8;

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// The lock of a dead-letter queue is renewed when so much of its minute is over.
const RENEWAL: Duration = Duration::from_secs(15);

/// Properties that belong to a message's way into the dead-letter queue, or to the broker.
const LEFT_BEHIND: [&str; 24] = [
    properties::UNIQ_KEY,
    properties::RETRY_TOPIC,
    properties::ORIGIN_MESSAGE_ID,
    properties::ORIGIN,
    properties::DEAD_LETTER,
    properties::DLQ_ORIGIN_TOPIC,
    properties::DLQ_ORIGIN_MESSAGE_ID,
    properties::RECONSUME_TIME,
    properties::MAX_RECONSUME_TIMES,
    properties::CONSUME_START_TIME,
    properties::DELAY,
    properties::TIMER_DELAY_SEC,
    properties::TIMER_DELAY_MS,
    properties::TIMER_DELIVER_MS,
    properties::TIMER_OUT_MS,
    properties::REAL_TOPIC,
    properties::REAL_QID,
    properties::TRAN_MSG,
    properties::TRANSACTION_ID,
    properties::POP_CK,
    properties::CLUSTER,
    properties::MSG_REGION,
    properties::TRACE_ON,
    properties::WAIT,
];

/// A group's dead-letter queue at one broker group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterQueue {
    /// The broker group.
    pub broker_name: String,
    /// RocketMQ's queueId.
    pub queue_id: i32,
    /// Offset of the first dead letter that is kept.
    pub first: i64,
    /// Behind the last.
    pub end: i64,
}

/// Which dead letters are meant: those that have all of it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// One of its keys, or its unique key.
    pub key: Option<String>,
    /// Its tag.
    pub tags: TagExpression,
    /// An expression over its properties.
    pub sql: Option<SqlFilter>,
    /// It became a dead letter at this time or later, milliseconds since the epoch.
    pub from_ms: i64,
    /// And at this time or earlier.
    pub to_ms: i64,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted { key: None, tags: TagExpression::All, sql: None, from_ms: 0, to_ms: i64::MAX }
    }
}

impl Wanted {
    /// Whether this one is.
    pub fn matches(&self, dead_letter: &RecordView<'_>) -> bool {
        let property = |name| dead_letter.property(name);
        let has_key = |key: &String| {
            let is_among = |keys: &str| keys.split(' ').any(|one| one == key);
            property(properties::UNIQ_KEY) == Some(key.as_str()) || property(properties::KEYS).is_some_and(is_among)
        };
        (self.from_ms..=self.to_ms).contains(&dead_letter.store_timestamp())
            && self.key.as_ref().is_none_or(has_key)
            && self.tags.matches(property(properties::TAGS))
            && self.sql.as_ref().is_none_or(|sql| sql.matches(dead_letter.properties()))
    }
}

/// Where dead letters are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// The topic that they were sent to first: every group that subscribes to it sees them again.
    #[default]
    OriginalTopic,
    /// The group's retry topic: only this group sees them. A group that consumes in order would give them up at once.
    RetryTopic,
}

/// Sends dead letters again.
#[derive(Clone, Debug)]
pub struct Resend {
    /// Whose.
    pub group: String,
    /// Where to.
    pub destination: Destination,
    /// Which.
    pub wanted: Wanted,
    /// At most so many a second; 0 for as fast as it goes.
    pub per_second: u32,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResendProgress {
    /// Dead letters that are kept.
    pub total: u64,
    /// Looked at so far.
    pub looked_at: u64,
    /// Sent by this run.
    pub sent: u64,
    /// Passed over: sent by an earlier run.
    pub sent_before: u64,
    /// Passed over: not meant.
    pub unwanted: u64,
    /// Passed over: it does not say which topic it came from.
    pub without_topic: u64,
}

/// Why a run broke off. Whatever it sent is sent; the same run goes on behind it.
#[derive(Debug, thiserror::Error)]
#[error("{reason}; {} of {} dead letters were looked at, {} sent: the same command goes on from there", .progress.looked_at, .progress.total, .progress.sent)]
pub struct ResendError {
    /// How far it had come.
    pub progress: ResendProgress,
    /// What happened.
    pub reason: String,
}

impl Admin {
    /// A group's dead-letter queues; none if it never gave a message up.
    pub async fn dead_letter_queues(&self, group: &str) -> Result<Vec<DeadLetterQueue>, RequestError> {
        let topic = names::dlq_topic(group);
        let Some(route) = self.topic_route(&topic).await? else { return Ok(Vec::new()) };
        let mut queues = Vec::new();
        for broker in &route.broker_datas {
            let Some(address) = super::address_of(broker) else { continue };
            for (queue, offsets) in self.topic_stats(address, &topic).await?.offset_table {
                let (first, end) = (offsets.min_offset, offsets.max_offset);
                queues.push(DeadLetterQueue { broker_name: queue.broker_name, queue_id: queue.queue_id, first, end });
            }
        }
        Ok(queues)
    }

    /// Up to 32 dead letters of a queue from `offset` on, and the offset to go on from.
    pub async fn dead_letters(
        &self,
        group: &str,
        queue: &DeadLetterQueue,
        offset: i64,
    ) -> Result<(Vec<Bytes>, i64), RequestError> {
        let topic = names::dlq_topic(group);
        let address = self.leader_of(&topic, &queue.broker_name).await?;
        let pulled = self.pull(&address, TOOLS_GROUP, &topic, queue.queue_id, offset, BATCH).await?;
        Ok((pulled.records, pulled.bounds.next_begin_offset))
    }

    async fn leader_of(&self, topic: &str, broker_name: &str) -> Result<String, RequestError> {
        let route = self.topic_route(topic).await?;
        let broker =
            route.iter().flat_map(|route| &route.broker_datas).find(|broker| broker.broker_name == broker_name);
        let leader = broker.and_then(BrokerData::master_addr).map(str::to_owned);
        leader.ok_or_else(|| RequestError::NotSent(format!("{broker_name} has no leader for {topic} now")))
    }

    /// Whether the queue is locked for this client now.
    async fn lock_queue(&self, client: &str, queue: &MessageQueue, code: RequestCode) -> Result<bool, RequestError> {
        let address = self.leader_of(&queue.topic, &queue.broker_name).await?;
        let body = LockBatchRequest {
            client_id: client.to_owned(),
            consumer_group: TOOLS_GROUP.to_owned(),
            mq_set: vec![queue.clone()],
            only_this_broker: false,
        };
        let answer = self.ask(&address, RemotingCommand::request(code).with_json(&body)).await?;
        if code == RequestCode::UNLOCK_BATCH_MQ {
            return Ok(false);
        }
        Ok(!read_body::<LockBatchResponse>(&answer)?.lock_ok_mq_set.is_empty())
    }
}

/// A run, as far as it has come.
struct Run<'a> {
    resend: &'a Resend,
    admin: &'a Admin,
    env: &'a Env,
    /// As which it holds locks.
    client: String,
    progress: ResendProgress,
    /// When the next one may be sent, on the monotonic clock.
    next_send: Duration,
    renewed: Duration,
}

impl Resend {
    /// Sends all that is wanted and was there at the beginning; `tell` is called with every step.
    pub async fn run(
        &self,
        admin: &Admin,
        env: &Env,
        mut tell: impl FnMut(&ResendProgress),
    ) -> Result<ResendProgress, ResendError> {
        let client = format!("resend@{:016x}", env.rng.u64());
        let (progress, next_send) = (ResendProgress::default(), env.clock.monotonic());
        let mut run = Run { resend: self, admin, env, client, progress, next_send, renewed: Duration::ZERO };
        match run.all(&mut tell).await {
            Ok(()) => Ok(run.progress),
            Err(reason) => Err(ResendError { progress: run.progress, reason }),
        }
    }
}

impl Run<'_> {
    async fn all(&mut self, tell: &mut impl FnMut(&ResendProgress)) -> Result<(), String> {
        let group = &self.resend.group;
        let queues = self.admin.dead_letter_queues(group).await.map_err(|error| error.to_string())?;
        self.progress.total = queues.iter().map(|queue| (queue.end - queue.first).max(0) as u64).sum();
        for queue in queues.iter().filter(|queue| queue.first < queue.end) {
            let locked = MessageQueue::new(names::dlq_topic(group), &*queue.broker_name, queue.queue_id);
            self.renewed = Duration::ZERO;
            let sent = self.queue(queue, &locked, tell).await;
            if let Err(error) = self.admin.lock_queue(&self.client, &locked, RequestCode::UNLOCK_BATCH_MQ).await {
                tracing::debug!(%error, "the lock of a dead-letter queue ends by itself");
            }
            sent?;
        }
        Ok(())
    }

    async fn queue(
        &mut self,
        queue: &DeadLetterQueue,
        locked: &MessageQueue,
        tell: &mut impl FnMut(&ResendProgress),
    ) -> Result<(), String> {
        let mut next = queue.first;
        while next < queue.end {
            let (records, behind) = self.read(queue, next).await?;
            for record in &records {
                let view =
                    RecordView::parse(record).map_err(|error| format!("a dead letter cannot be read: {error}"))?;
                if view.queue_offset() >= queue.end {
                    return Ok(());
                }
                self.keep_locked(locked).await?;
                self.one(&queue.broker_name, &view).await?;
                self.progress.looked_at += 1;
                tell(&self.progress);
            }
            if behind <= next {
                return Err(format!("the dead letters end at {next}, {} were there", queue.end));
            }
            next = behind;
        }
        Ok(())
    }

    async fn read(&self, queue: &DeadLetterQueue, offset: i64) -> Result<(Vec<Bytes>, i64), String> {
        let mut attempt = 1;
        loop {
            match self.admin.dead_letters(&self.resend.group, queue, offset).await {
                Ok(read) => return Ok(read),
                Err(error) if attempt == ATTEMPTS => return Err(format!("dead letters cannot be read: {error}")),
                Err(_) => self.env.clock.sleep(PAUSE).await,
            }
            attempt += 1;
        }
    }

    /// Takes or renews the queue's lock.
    async fn keep_locked(&mut self, queue: &MessageQueue) -> Result<(), String> {
        let now = self.env.clock.monotonic();
        if self.renewed > Duration::ZERO && now < self.renewed + RENEWAL {
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            match self.admin.lock_queue(&self.client, queue, RequestCode::LOCK_BATCH_MQ).await {
                Ok(true) => break,
                Ok(false) => {
                    return Err(format!(
                        "another run sends dead letters of {} again, or one that broke off did so a minute ago",
                        self.resend.group
                    ));
                }
                Err(error) if attempt == ATTEMPTS => return Err(format!("the queue cannot be locked: {error}")),
                Err(_) => self.env.clock.sleep(PAUSE).await,
            }
            attempt += 1;
        }
        self.renewed = now;
        Ok(())
    }

    async fn one(&mut self, broker_name: &str, dead_letter: &RecordView<'_>) -> Result<(), String> {
        if !self.resend.wanted.matches(dead_letter) {
            self.progress.unwanted += 1;
            return Ok(());
        }
        let Some(copy) = Copy::of(dead_letter, broker_name, &self.resend.group, self.resend.destination) else {
            self.progress.without_topic += 1;
            return Ok(());
        };
        let mut attempt = 1;
        loop {
            let failure = match self.send(broker_name, &copy, dead_letter, attempt).await {
                Ok(Sent::Now) => {
                    self.progress.sent += 1;
                    return Ok(());
                }
                Ok(Sent::Before) => {
                    self.progress.sent_before += 1;
                    return Ok(());
                }
                Err(failure) => failure,
            };
            if attempt == ATTEMPTS || is_final(&failure) {
                let offset = dead_letter.queue_offset();
                return Err(format!("the dead letter at offset {offset} cannot be sent to {}: {failure}", copy.topic));
            }
            // What nobody has answered for may still come about: it is looked for again when it has, or never will.
            self.env.clock.sleep(if failure.is_retry_safe() { PAUSE } else { SETTLED }).await;
            attempt += 1;
        }
    }

    async fn send(
        &mut self,
        broker_name: &str,
        copy: &Copy,
        dead_letter: &RecordView<'_>,
        attempt: u32,
    ) -> Result<Sent, RequestError> {
        let address = self.admin.leader_of(&copy.topic, broker_name).await?;
        let query = QueryMessageRequest {
            topic: copy.topic.clone(),
            key: copy.unique_key.clone(),
            max_num: 1,
            begin_timestamp: 0,
            end_timestamp: i64::MAX,
            unique_key_query: true,
            broker_name: None,
        };
        if !self.admin.query_message(&address, &query).await?.is_empty() {
            return Ok(if attempt == 1 { Sent::Before } else { Sent::Now });
        }
        self.wait_for_turn().await;
        let header = SendMessageRequestV2(SendMessageRequest {
            producer_group: TOOLS_GROUP.to_owned(),
            topic: copy.topic.clone(),
            default_topic: names::AUTO_CREATE_TOPIC.to_owned(),
            default_topic_queue_nums: 4,
            // Any that can be written.
            queue_id: -1,
            sys_flag: copy.sys_flag.0,
            born_timestamp: dead_letter.born_timestamp(),
            flag: dead_letter.flag(),
            properties: Some(copy.properties.clone()),
            reconsume_times: Some(0),
            ..SendMessageRequest::default()
        });
        let body = Bytes::copy_from_slice(dead_letter.body());
        let request = RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &header).with_body(body);
        // The key is this copy's alone: a broker that has it does not store it again.
        let answer = self.admin.ask(&address, request.with_field(IDEMPOTENT, true)).await?;
        let is_there = attempt == 1 && answer.ext.bool(DUPLICATE) == Some(true);
        Ok(if is_there { Sent::Before } else { Sent::Now })
    }

    async fn wait_for_turn(&mut self) {
        if self.resend.per_second == 0 {
            return;
        }
        let clock = &self.env.clock;
        clock.sleep(self.next_send.saturating_sub(clock.monotonic())).await;
        self.next_send = self.next_send.max(clock.monotonic()) + Duration::from_secs(1) / self.resend.per_second;
    }
}

/// What became of a dead letter that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Now,
    Before,
}

/// Whether the same again would be refused again.
fn is_final(failure: &RequestError) -> bool {
    let passes = [ResponseCode::SYSTEM_BUSY, ResponseCode::SERVICE_NOT_AVAILABLE, ResponseCode::SYSTEM_ERROR];
    failure.code().is_some_and(|code| !passes.contains(&code))
}

/// A dead letter as it is sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Copy {
    topic: String,
    unique_key: String,
    properties: String,
    sys_flag: SysFlag,
}

impl Copy {
    /// `None` if it does not say which topic it came from.
    fn of(dead_letter: &RecordView<'_>, broker_name: &str, group: &str, destination: Destination) -> Option<Copy> {
        let origin =
            dead_letter.property(properties::RETRY_TOPIC).or(dead_letter.property(properties::DLQ_ORIGIN_TOPIC))?;
        let unique_key = unique_key_of(dead_letter, broker_name).to_string();
        let mut kept = Properties::new();
        for (name, value) in properties::iter(dead_letter.properties()) {
            if !LEFT_BEHIND.contains(&name) {
                kept.set(name, value);
            }
        }
        let topic = match destination {
            Destination::OriginalTopic => origin.to_owned(),
            Destination::RetryTopic => {
                kept.set(properties::RETRY_TOPIC, origin);
                names::retry_topic(group)
            }
        };
        let place = MessageId { store_host: dead_letter.store_host(), physical_offset: dead_letter.physical_offset() };
        kept.set(properties::DEAD_LETTER, place);
        kept.set(properties::UNIQ_KEY, &unique_key);
        let sys_flag = SysFlag(dead_letter.sys_flag().0 & SysFlag::COMPRESSION_BITS);
        Some(Copy { topic, unique_key, properties: kept.into_encoded(), sys_flag })
    }
}

/// The same for the same dead letter, and for no other one: its place is in it. Time and address are those of the message.
fn unique_key_of(dead_letter: &RecordView<'_>, broker_name: &str) -> UniqueKey {
    let own = dead_letter.property(properties::UNIQ_KEY).and_then(|key| key.parse::<UniqueKey>().ok());
    let born: SocketAddr = dead_letter.born_host();
    let (ip, month_ms) = own.map_or((born.ip(), 0), |own| (own.ip, own.month_ms));
    let bits = dead_letter.physical_offset() as u64 ^ u64::from(tag::hash_code(broker_name) as u32) << 32;
    UniqueKey { ip, pid: (bits >> 48) as i16, class_hash: (bits >> 16) as i32, month_ms, counter: bits as i16 }
}

#[cfg(test)]
mod tests {
    use protocol::record::{HeadPatch, NewRecord};

    use super::*;

    fn dead_letter(properties: &[(&str, &str)], physical_offset: i64) -> Bytes {
        let encoded: String = properties.iter().map(|(name, value)| format!("{name}\u{1}{value}\u{2}")).collect();
        let host = "10.0.0.2:10911".parse().unwrap();
        let record = NewRecord {
            topic: "%DLQ%g",
            queue_id: 0,
            flag: 7,
            sys_flag: SysFlag(SysFlag::COMPRESSED),
            born_timestamp: 5,
            born_host: host,
            store_timestamp: 1_000,
            store_host: host,
            reconsume_times: 16,
            prepared_transaction_offset: 0,
            body: b"body",
            properties: &encoded,
        };
        let mut bytes = record.to_bytes().unwrap().to_vec();
        HeadPatch { physical_offset, ..HeadPatch::default() }.apply(&mut bytes).unwrap();
        bytes.into()
    }

    const OWN: &str = "0A0000010007000000080000000900AB";

    #[test]
    fn a_copy_is_the_message_without_its_way_here() {
        let dead = dead_letter(
            &[
                ("KEYS", "a b"),
                ("RETRY_TOPIC", "T"),
                ("UNIQ_KEY", OWN),
                ("DELAY", "18"),
                ("TRAN_MSG", "true"),
                ("RAFTMQ_ORIGIN", "640"),
                ("mine", "x"),
            ],
            4096,
        );
        let dead = RecordView::parse(&dead).unwrap();
        let copy = Copy::of(&dead, "broker-a", "g", Destination::OriginalTopic).unwrap();
        let names: Vec<_> = properties::iter(&copy.properties).map(|(name, _)| name).collect();
        assert_eq!(names, ["KEYS", "mine", "RAFTMQ_DEAD_LETTER", "UNIQ_KEY"]);
        assert_eq!((copy.topic.as_str(), copy.sys_flag.has(SysFlag::COMPRESSED)), ("T", true));
        assert_eq!(properties::get(&copy.properties, "RAFTMQ_DEAD_LETTER"), Some("0A00000200002A9F0000000000001000"));
        let retried = Copy::of(&dead, "broker-a", "g", Destination::RetryTopic).unwrap();
        assert_eq!(retried.topic, "%RETRY%g");
        assert_eq!(properties::get(&retried.properties, "RETRY_TOPIC"), Some("T"));
        assert_eq!(retried.unique_key, copy.unique_key, "wherever it is sent");
        let lost = dead_letter(&[("UNIQ_KEY", OWN)], 4096);
        assert_eq!(Copy::of(&RecordView::parse(&lost).unwrap(), "broker-a", "g", Destination::OriginalTopic), None);
    }

    #[test]
    fn a_copy_s_key_is_the_dead_letter_s_alone() {
        let key = |at: i64, broker: &str, own: &str| {
            let dead = dead_letter(&[("UNIQ_KEY", own)], at);
            unique_key_of(&RecordView::parse(&dead).unwrap(), broker)
        };
        let one = key(4096, "broker-a", OWN);
        assert_eq!(one, key(4096, "broker-a", OWN), "in every run");
        assert_eq!((one.ip, one.month_ms), ("10.0.0.1".parse().unwrap(), 9));
        assert_ne!(one.to_string(), OWN);
        assert_ne!(one, key(4160, "broker-a", OWN));
        assert_ne!(one, key(4096, "broker-b", OWN));
        assert_eq!(
            key(4096, "broker-a", "of its producer's own making").ip,
            "10.0.0.2".parse::<std::net::IpAddr>().unwrap()
        );
    }

    #[test]
    fn what_is_wanted_has_all_that_is_asked_for() {
        let dead = dead_letter(&[("KEYS", "a b"), ("TAGS", "red"), ("UNIQ_KEY", OWN), ("n", "5")], 0);
        let dead = RecordView::parse(&dead).unwrap();
        let sql = |text: &str| Some(SqlFilter::parse(text).unwrap());
        let all = Wanted::default;
        for (is_wanted, wanted) in [
            (true, all()),
            (true, Wanted { key: Some("b".into()), ..all() }),
            (true, Wanted { key: Some(OWN.into()), ..all() }),
            (false, Wanted { key: Some("c".into()), ..all() }),
            (true, Wanted { tags: TagExpression::parse("blue || red").unwrap(), ..all() }),
            (false, Wanted { tags: TagExpression::parse("blue").unwrap(), ..all() }),
            (true, Wanted { sql: sql("n > 4 AND TAGS = 'red'"), ..all() }),
            (false, Wanted { sql: sql("n > 5"), ..all() }),
            (true, Wanted { from_ms: 1_000, to_ms: 1_000, ..all() }),
            (false, Wanted { from_ms: 1_001, ..all() }),
            (false, Wanted { to_ms: 999, ..all() }),
            (false, Wanted { to_ms: 999, key: Some("b".into()), ..all() }),
        ] {
            assert_eq!(wanted.matches(&dead), is_wanted, "{wanted:?}");
        }
    }
}

//! Sending: SEND_MESSAGE 10, SEND_MESSAGE_V2 310, SEND_BATCH_MESSAGE 320.
//!
//! Checks in RocketMQ's order, then one record per message, all of a request in one submission, and an answer when they
//! are on a quorum and applied. `WAIT=false` waits as well: an offset exists only then.
//!
//! A delayed message is stored under its real topic and becomes visible there, by reference, when it falls due. Its
//! properties are those that Java leaves in a delivered message: `DELAY` (or `TIMER_*`), `REAL_TOPIC`, `REAL_QID`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use env::Env;
use protocol::batch;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{DUPLICATE, SendMessageRequest, SendMessageResponse};
use protocol::message_id::{MessageId, UniqueKey};
use protocol::names;
use protocol::properties;
use protocol::recall_handle::RecallHandle;
use protocol::record::NewRecord;
use protocol::sys_flag::{SysFlag, TransactionType};
use protocol::tag;
use raft_store::entry::{Operation, RecordOperation, Visibility};
use raft_store::fold::{Outcome, Refusal};
use raft_store::keys_in_flight::HeldKeys;
use raft_store::position::{PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};

use crate::broker::BrokerGroup;
use crate::config::MessagePolicy;
use crate::dispatch::{Answer, Call};
use crate::error::{RequestError, with_send_fields};
use crate::idempotence::Keyed;
use crate::tables::topics::{Topic, TopicConfig};

/// The region that answers and messages name.
pub const REGION: &str = "DefaultRegion";

/// The version from which on a client's own `maxReconsumeTimes` counts: V3_4_9.
pub const OWN_RETRY_LIMIT_VERSION: i32 = 121;

/// Key hashes that one record may have; a message with more keys is found by these.
const KEYS_MAX: usize = 1024;

/// Handles a send of either header form, single or batch.
pub async fn send(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let header = SendMessageRequest::of(&call.request)?;
    let _admitted = broker.admission.admit(call.request.body.len())?;
    broker.refuse_when_disk_is_full()?;
    let queue = broker.check_queue(&header).await?;
    let policy = &broker.config.messages;
    if call.request.body.len() > policy.body_bytes {
        let remark = format!(
            "the message body is {} bytes, the maximum is {}; shorten it",
            call.request.body.len(),
            policy.body_bytes
        );
        return Err(RequestError::MessageIllegal(remark));
    }
    if header.batch {
        send_batch(broker, call, &header, queue).await
    } else {
        send_one(broker, call, &header, queue).await
    }
}

/// Whether the request is a send whose messages are stored once however often it comes: each has a key of its own, and the
/// keys are looked at.
pub(crate) fn is_stored_once(broker: &BrokerGroup, call: &Call) -> bool {
    let code = call.request.request_code();
    if !matches!(code, RequestCode::SEND_MESSAGE | RequestCode::SEND_MESSAGE_V2 | RequestCode::SEND_BATCH_MESSAGE) {
        return false;
    }
    let Ok(header) = SendMessageRequest::of(&call.request) else { return false };
    let has_key = |properties: &str| Found::in_properties(properties).unique_key.is_some();
    let have_keys = if header.batch {
        batch::decode(&call.request.body).is_ok_and(|all| all.iter().all(|message| has_key(message.properties)))
    } else {
        has_key(header.properties.as_deref().unwrap_or(""))
    };
    have_keys && broker.is_idempotent(call, &header.topic)
}

async fn send_one(broker: &Arc<BrokerGroup>, call: &Call, header: &SendMessageRequest, queue: Target) -> Answer {
    let text = header.properties.as_deref().unwrap_or("");
    let found = Found::in_properties(text);
    let reconsume_times = header.reconsume_times.unwrap_or(0);
    let mut queue = queue;
    let mut is_dead_letter = false;
    if let Some(group) = names::group_of_retry_topic(&header.topic)
        && broker.gives_up_retrying(group, header, call.request.version).await?
    {
        queue = broker.dead_letter_queue(group).await?;
        is_dead_letter = true;
    }
    // The retry of a message that was transactional is not.
    let is_retry = is_dead_letter || reconsume_times > 0 && found.delay_level() > 0;
    let is_half = found.is_transactional && !is_retry;
    let now = broker.now();
    let delay = if is_dead_letter { Delay::None } else { delay_of(&found, policy_of(broker), now)? };
    if is_half && delay != Delay::None {
        let remark = "a transactional message cannot be delayed: leave out its delay level and TIMER_* properties";
        return Err(RequestError::MessageIllegal(remark.to_owned()));
    }
    if is_half || delay != Delay::None {
        broker.refuse_too_many_waiting()?;
    }
    let unique_key =
        found.unique_key.map_or_else(|| broker.unique_keys.next(broker.env.clock.wall_ms()), str::to_owned);
    let properties = stored_properties(
        text,
        &Additions {
            cluster: &broker.cluster,
            unique_key: &unique_key,
            queue: &queue,
            delay,
            is_dead_letter,
            half_of: is_half.then_some(&header.producer_group),
        },
    );
    check_properties(&properties, properties_limit(&header.topic, policy_of(broker)))?;
    let mut record = broker.record(
        call,
        header,
        &queue,
        Content { flag: header.flag, body: &call.request.body, properties: &properties },
    );
    if is_half {
        record.sys_flag = record.sys_flag.with_transaction(TransactionType::Prepared);
    }
    let operation = RecordOperation {
        queue: queue.id(),
        record: record.to_bytes()?,
        tag_hash: tag::tag_hash(found.tags),
        visibility: if is_half { Visibility::Half } else { delay.visibility() },
        key_hashes: key_hashes(&queue.topic, Some(&unique_key), found.keys),
    };
    let message = Keyed { unique_key: found.unique_key, record: operation };
    let mut placed = match is_dead_letter {
        true => vec![broker.bury(message.record, &queue.topic).await?],
        false => broker.store_once(call, &queue, vec![message]).await?,
    };
    if is_half {
        let new = placed.iter_mut().filter(|placed| !placed.is_repeat);
        new.for_each(|placed| placed.queue_offset = Some(half_offset(placed.physical_offset)));
    }
    let recall_handle = delay.due().map(|due| RecallHandle {
        topic: queue.topic.clone(),
        broker_name: broker.broker_name().to_owned(),
        due_ms: due.0,
        unique_key: unique_key.clone(),
        physical_offset: placed[0].physical_offset.0 as i64,
    });
    Ok(answer(broker, call, &placed, Some(unique_key), recall_handle.as_ref()))
}

async fn send_batch(broker: &BrokerGroup, call: &Call, header: &SendMessageRequest, queue: Target) -> Answer {
    if names::group_of_retry_topic(&header.topic).is_some() {
        return Err(RequestError::MessageIllegal(
            "batch request does not support retry group ".to_owned() + &header.topic,
        ));
    }
    let messages = batch::decode(&call.request.body)?;
    let mut keyed = Vec::with_capacity(messages.len());
    for message in &messages {
        check_properties(message.properties, policy_of(broker).properties_bytes)?;
        let found = Found::in_properties(message.properties);
        if found.is_transactional {
            return Err(RequestError::MessageIllegal("a batch cannot carry transactional messages".to_owned()));
        }
        let content = Content { flag: message.flag, body: message.body, properties: message.properties };
        let record = RecordOperation {
            queue: queue.id(),
            record: broker.record(call, header, &queue, content).to_bytes()?,
            tag_hash: tag::tag_hash(found.tags),
            visibility: Visibility::Visible,
            key_hashes: key_hashes(&queue.topic, found.unique_key, found.keys),
        };
        keyed.push(Keyed { unique_key: found.unique_key, record });
    }
    let placed = broker.store_once(call, &queue, keyed).await?;
    let unique_key = header.properties.as_deref().and_then(|text| properties::get(text, properties::UNIQ_KEY));
    Ok(answer(broker, call, &placed, unique_key.map(str::to_owned), None))
}

fn policy_of(broker: &BrokerGroup) -> &MessagePolicy {
    &broker.config.messages
}

/// The queue that a message goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub topic_id: TopicId,
    pub topic: String,
    pub queue: u32,
    pub is_multi_tag: bool,
}

impl Target {
    pub fn id(&self) -> QueueId {
        QueueId { topic: self.topic_id, queue: self.queue }
    }

    fn of(topic: &Topic, queue: u32) -> Target {
        Target { topic_id: topic.id(), topic: topic.config.name.clone(), queue, is_multi_tag: topic.config.multi_tag }
    }
}

/// Chooses the queue of a send: the one asked for, or any writable one.
fn target(topic: &Topic, header: &SendMessageRequest, random: impl FnOnce(u32) -> u32) -> Result<Target, RequestError> {
    let TopicConfig { read_queues, write_queues, .. } = topic.config;
    match u32::try_from(header.queue_id) {
        Ok(queue) if queue < topic.queues() => Ok(Target::of(topic, queue)),
        Err(_) if write_queues > 0 => Ok(Target::of(topic, random(write_queues))),
        _ => Err(RequestError::InvalidParameter(format!(
            "request queueId[{}] is illegal, topic [{}] has {read_queues} read and {write_queues} write queues",
            header.queue_id, topic.config.name
        ))),
    }
}

impl BrokerGroup {
    /// Checks what a send asks for, in RocketMQ's order, and makes the topic if that is allowed.
    async fn check_queue(&self, header: &SendMessageRequest) -> Result<Target, RequestError> {
        names::validate_topic(&header.topic)?;
        if !names::is_send_allowed(&header.topic) {
            let remark = format!("Sending message to topic[{}] is forbidden.", header.topic);
            return Err(RequestError::Forbidden { remark, whose: None });
        }
        let random = |queues: u32| self.env.rng.below(queues.into()) as u32;
        if let Some(topic) = self.reader.tables().topics().get(&header.topic) {
            return target(topic, header, random);
        }
        match names::group_of_retry_topic(&header.topic) {
            Some(group) => self.ensure_retry_topic(group).await?,
            None => {
                let queues = header.default_topic_queue_nums;
                self.create_after_template(&header.topic, &header.default_topic, queues).await?;
            }
        }
        let tables = self.reader.tables();
        let topic = tables.topics().get(&header.topic).ok_or_else(|| RequestError::NoTopic(header.topic.clone()))?;
        target(topic, header, random)
    }

    async fn ensure_retry_topic(&self, group: &str) -> Result<(), RequestError> {
        let config = self.ensure_group(group).await?;
        let name = names::retry_topic(group);
        if self.topic_id(&name).is_none() {
            self.ensure_topic(TopicConfig::new(name, config.retry_queues.max(1))).await?;
        }
        Ok(())
    }

    /// Whether a message sent to a group's retry topic has had all its chances.
    ///
    /// A group that holds queue locks consumes in order: its clients retry in place and send only when they give up.
    async fn gives_up_retrying(
        &self,
        group: &str,
        header: &SendMessageRequest,
        version: i32,
    ) -> Result<bool, RequestError> {
        let config = self.ensure_group(group).await?;
        let own_limit = header.max_reconsume_times.filter(|_| version >= OWN_RETRY_LIMIT_VERSION);
        let is_orderly = self.reader.tables().locks().group_holds_any(group, self.now());
        Ok(is_orderly || header.reconsume_times.unwrap_or(0) > own_limit.unwrap_or(config.max_retries))
    }

    /// The group's dead-letter queue, made if it is the first time.
    pub(crate) async fn dead_letter_queue(&self, group: &str) -> Result<Target, RequestError> {
        let name = names::dlq_topic(group);
        if self.topic_id(&name).is_none() {
            self.ensure_dead_letter_topic(group).await?;
        }
        let tables = self.reader.tables();
        tables.topics().get(&name).map(|topic| Target::of(topic, 0)).ok_or(RequestError::NoTopic(name))
    }

    /// Any queue of the group's retry topic, made if it is the first time.
    pub(crate) async fn retry_queue(&self, group: &str) -> Result<Target, RequestError> {
        self.ensure_retry_topic(group).await?;
        let name = names::retry_topic(group);
        let tables = self.reader.tables();
        let topic = tables.topics().get(&name).ok_or_else(|| RequestError::NoTopic(name.clone()))?;
        let queues = topic.config.write_queues.max(1);
        Ok(Target::of(topic, self.env.rng.below(queues.into()) as u32))
    }

    fn record<'a>(
        &self,
        call: &Call,
        header: &SendMessageRequest,
        queue: &'a Target,
        content: Content<'a>,
    ) -> NewRecord<'a> {
        let sys_flag = SysFlag(header.sys_flag).with_transaction(TransactionType::None);
        let has_multi_tag = queue.is_multi_tag || sys_flag.has(SysFlag::MULTI_TAG);
        NewRecord {
            topic: &queue.topic,
            queue_id: queue.queue as i32,
            flag: content.flag,
            sys_flag: sys_flag.with(SysFlag::MULTI_TAG, has_multi_tag),
            born_timestamp: header.born_timestamp,
            born_host: canonical(call.born_host),
            // Its entry's stamp, which readers show instead, is not known yet.
            store_timestamp: self.now().0,
            store_host: self.config.advertised_address,
            reconsume_times: header.reconsume_times.unwrap_or(0),
            prepared_transaction_offset: 0,
            body: content.body,
            properties: content.properties,
        }
    }

    /// Proposes records, all in one entry, and waits until they are applied; with keys held until that is decided. Their
    /// places in order.
    pub(crate) async fn store(
        &self,
        records: Vec<RecordOperation>,
        topic: &str,
        held: Option<HeldKeys>,
    ) -> Result<Vec<Stored>, RequestError> {
        let bytes: usize = records.iter().map(|record| record.record.len()).sum();
        let wanted: Vec<(u32, Visibility)> =
            records.iter().map(|record| (record.queue.queue, record.visibility)).collect();
        let operations: Vec<Operation> = records.into_iter().map(Operation::Record).collect();
        let count = operations.len();
        let outcomes = match held {
            None => self.raft.propose(operations).await?,
            Some(held) => self.raft.propose_holding(operations, held).await?,
        };
        let mut stored = Vec::with_capacity(count);
        for (outcome, (queue, visibility)) in outcomes.into_iter().zip(wanted) {
            stored.push(match outcome {
                Outcome::Placed { queue_offset, physical_offset, .. } => {
                    Stored { queue, queue_offset: Some(queue_offset), physical_offset, is_repeat: false }
                }
                Outcome::Pending { physical_offset, .. } => {
                    // Of a scheduled one that is the first the leader hears when it is applied.
                    if visibility == Visibility::Half {
                        self.scheduled.send_replace(());
                    }
                    Stored { queue, queue_offset: None, physical_offset, is_repeat: false }
                }
                // Deleted between the check and the entry.
                Outcome::Refused(Refusal::QueueClosed(_)) => return Err(RequestError::NoTopic(topic.to_owned())),
                Outcome::Refused(refusal) => return Err(RequestError::Failed(refusal.to_string())),
                Outcome::Core(_) | Outcome::Tables(_) => unreachable!("the outcome of a record is its place"),
            });
        }
        self.rates.put.add(count as u64);
        self.rates.put_bytes.add(bytes as u64);
        Ok(stored)
    }
}

/// What a client wrote, as opposed to what the broker adds.
struct Content<'a> {
    flag: i32,
    body: &'a [u8],
    properties: &'a str,
}

/// Where a half message lies among the half messages: in RocketMQ an offset of the queue that they lie in, here the
/// position of its record. The end of its transaction names it again.
pub(crate) fn half_offset(key: PhysicalOffset) -> QueueOffset {
    QueueOffset(key.0)
}

/// Where a message lies now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub queue: u32,
    /// `None` while it waits for its time.
    pub queue_offset: Option<QueueOffset>,
    pub physical_offset: PhysicalOffset,
    /// It was stored before, or is the second of its kind in one request.
    pub is_repeat: bool,
}

fn answer(
    broker: &BrokerGroup,
    call: &Call,
    stored: &[Stored],
    transaction_id: Option<String>,
    recall_handle: Option<&RecallHandle>,
) -> RemotingCommand {
    let id = |stored: &Stored| {
        let store_host = broker.config.advertised_address;
        MessageId { store_host, physical_offset: stored.physical_offset.0 as i64 }.to_string()
    };
    let header = SendMessageResponse {
        msg_id: Some(stored.iter().map(id).collect::<Vec<_>>().join(",")),
        queue_id: Some(stored[0].queue as i32),
        queue_offset: Some(stored[0].queue_offset.map_or(0, |offset| offset.0 as i64)),
        transaction_id,
        recall_handle: recall_handle.map(RecallHandle::to_string),
        ..SendMessageResponse::default()
    };
    let answer = with_send_fields(call.request.reply_with(ResponseCode::SUCCESS, &header));
    if stored.iter().all(|stored| stored.is_repeat) { answer.with_field(DUPLICATE, true) } else { answer }
}

/// An IPv4 client that came in over an IPv6 socket is an IPv4 client.
fn canonical(host: SocketAddr) -> SocketAddr {
    SocketAddr::new(host.ip().to_canonical(), host.port())
}

/// A copy that a consumer sends has more than its message had, for which there is room.
fn properties_limit(topic: &str, policy: &MessagePolicy) -> usize {
    let is_copy = names::group_of_retry_topic(topic).is_some() || names::group_of_dlq_topic(topic).is_some();
    if is_copy { properties::MAX_PROPERTIES_BYTES } else { policy.properties_bytes }
}

fn check_properties(properties: &str, limit: usize) -> Result<(), RequestError> {
    if properties.len() > limit {
        return Err(RequestError::MessageIllegal(format!(
            "the message properties are {} bytes, the maximum is {limit}; shorten them",
            properties.len()
        )));
    }
    Ok(())
}

/// What the broker looks at among a message's properties, found in one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found<'a> {
    unique_key: Option<&'a str>,
    keys: Option<&'a str>,
    tags: Option<&'a str>,
    delay: Option<&'a str>,
    timer_delay_sec: Option<&'a str>,
    timer_delay_ms: Option<&'a str>,
    timer_deliver_ms: Option<&'a str>,
    has_been_timed: bool,
    is_transactional: bool,
}

impl<'a> Found<'a> {
    fn in_properties(text: &'a str) -> Found<'a> {
        let mut found = Found::default();
        for (name, value) in properties::iter(text) {
            match name {
                properties::UNIQ_KEY => found.unique_key = Some(value),
                properties::KEYS => found.keys = Some(value),
                properties::TAGS => found.tags = Some(value),
                properties::DELAY => found.delay = Some(value),
                properties::TIMER_DELAY_SEC => found.timer_delay_sec = Some(value),
                properties::TIMER_DELAY_MS => found.timer_delay_ms = Some(value),
                properties::TIMER_DELIVER_MS => found.timer_deliver_ms = Some(value),
                properties::TIMER_OUT_MS => found.has_been_timed = true,
                properties::TRAN_MSG => found.is_transactional = value.trim().eq_ignore_ascii_case("true"),
                _ => {}
            }
        }
        found
    }

    fn delay_level(&self) -> i32 {
        self.delay.and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// How long a message stays invisible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delay {
    /// Not at all.
    None,
    /// By level.
    Level { level: i32, due: Timestamp },
    /// Until a time.
    Until { due: Timestamp },
}

impl Delay {
    /// When it becomes visible, unless that is at once.
    pub fn due(self) -> Option<Timestamp> {
        match self {
            Delay::None => None,
            Delay::Level { due, .. } | Delay::Until { due } => Some(due),
        }
    }

    pub fn visibility(self) -> Visibility {
        self.due().map_or(Visibility::Visible, |due| Visibility::Scheduled { due })
    }
}

/// The delay of a level; one beyond the last is the last.
pub(crate) fn delay_of_level(level: i32, policy: &MessagePolicy, now: Timestamp) -> Delay {
    let Ok(wanted @ 1..) = usize::try_from(level) else { return Delay::None };
    let at = wanted.min(policy.delay_levels.len());
    Delay::Level { level: at as i32, due: after(now, policy.delay_levels[at - 1]) }
}

fn after(now: Timestamp, delay: Duration) -> Timestamp {
    Timestamp(now.0.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)))
}

/// What the properties ask for. A level wins over a time. A time that has passed is no delay, and a message that was
/// delivered by the timer before is not timed again.
fn delay_of(found: &Found<'_>, policy: &MessagePolicy, now: Timestamp) -> Result<Delay, RequestError> {
    if found.delay_level() > 0 {
        return Ok(delay_of_level(found.delay_level(), policy, now));
    }
    if found.has_been_timed {
        return Ok(Delay::None);
    }
    let number = |name: &str, text: &str| {
        text.parse::<i64>()
            .map_err(|_| RequestError::MessageIllegal(format!("the property {name} is not a number: {text:?}")))
    };
    let due = if let Some(seconds) = found.timer_delay_sec {
        now.0.saturating_add(number(properties::TIMER_DELAY_SEC, seconds)?.saturating_mul(1000))
    } else if let Some(ms) = found.timer_delay_ms {
        now.0.saturating_add(number(properties::TIMER_DELAY_MS, ms)?)
    } else if let Some(time) = found.timer_deliver_ms {
        number(properties::TIMER_DELIVER_MS, time)?
    } else {
        return Ok(Delay::None);
    };
    if due <= now.0 {
        return Ok(Delay::None);
    }
    if Timestamp(due) > after(now, policy.longest_delay) {
        return Err(RequestError::MessageIllegal(format!(
            "timer message illegal, the delay time should not be bigger than the max delay {}ms",
            policy.longest_delay.as_millis()
        )));
    }
    Ok(Delay::Until { due: Timestamp(due) })
}

/// What the broker adds to a message's properties.
struct Additions<'a> {
    cluster: &'a str,
    unique_key: &'a str,
    queue: &'a Target,
    delay: Delay,
    is_dead_letter: bool,
    /// It is a half message of this producer group.
    half_of: Option<&'a str>,
}

/// The properties as stored: the client's, in its order, without what the broker sets anew, then what it sets.
fn stored_properties(text: &str, additions: &Additions<'_>) -> String {
    let is_delayed = additions.delay != Delay::None;
    let by_level = matches!(additions.delay, Delay::Level { .. });
    let is_half = additions.half_of.is_some();
    let waits = is_delayed || is_half;
    let is_replaced = |name: &str| match name {
        // Of the consumer that sends a popped message again: its lease, not the message's.
        properties::POP_CK => true,
        // Of a message's earlier life, if somebody sends a dead letter again.
        properties::ORIGIN => true,
        properties::MSG_REGION | properties::TRACE_ON | properties::CLUSTER | properties::UNIQ_KEY => true,
        properties::DELAY => by_level || additions.is_dead_letter,
        properties::REAL_TOPIC | properties::REAL_QID => waits,
        properties::TRANSACTION_ID => is_half,
        properties::TIMER_DELAY_SEC | properties::TIMER_DELAY_MS | properties::TIMER_DELIVER_MS => by_level,
        _ => false,
    };
    let mut stored = String::with_capacity(text.len() + 160);
    let mut put = |name: &str, value: &str| {
        if !value.is_empty() {
            stored.push_str(name);
            stored.push('\u{1}');
            stored.push_str(value);
            stored.push('\u{2}');
        }
    };
    let mut names_group = false;
    for (name, value) in properties::iter(text) {
        if !is_replaced(name) {
            put(name, value);
        }
        names_group |= name == properties::PGROUP && !value.is_empty();
    }
    put(properties::UNIQ_KEY, additions.unique_key);
    put(properties::CLUSTER, additions.cluster);
    put(properties::MSG_REGION, REGION);
    put(properties::TRACE_ON, "true");
    match additions.delay {
        Delay::None if additions.is_dead_letter => put(properties::DELAY, "-1"),
        Delay::None => {}
        Delay::Level { level, .. } => put(properties::DELAY, &level.to_string()),
        Delay::Until { due } => put(properties::TIMER_OUT_MS, &due.to_string()),
    }
    if let Some(group) = additions.half_of {
        put(properties::TRANSACTION_ID, additions.unique_key);
        if !names_group {
            put(properties::PGROUP, group);
        }
    }
    if waits {
        put(properties::REAL_TOPIC, &additions.queue.topic);
        put(properties::REAL_QID, &additions.queue.queue.to_string());
    }
    stored
}

/// Hashes under which a message is found by key: its unique key once, and each of its keys.
pub(crate) fn key_hashes(topic: &str, unique_key: Option<&str>, keys: Option<&str>) -> Vec<u64> {
    let keys = keys.into_iter().flat_map(|keys| keys.split(' ')).filter(|key| !key.is_empty());
    unique_key.into_iter().chain(keys).take(KEYS_MAX).map(|key| key_hash(topic, key)).collect()
}

/// The hash of a key within a topic. Written into the log: it never changes.
pub fn key_hash(topic: &str, key: &str) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(topic.as_bytes());
    hash.update(b"#");
    hash.update(key.as_bytes());
    hash.digest()
}

/// Makes the UNIQ_KEY of a message that came without one.
#[derive(Debug)]
pub struct UniqueKeys {
    ip: IpAddr,
    pid: i16,
    class_hash: i32,
    counter: AtomicU16,
}

impl UniqueKeys {
    /// Keys of this process; `ip` is the broker's.
    pub fn new(env: &Env, ip: IpAddr) -> UniqueKeys {
        let random = env.rng.u64();
        UniqueKeys { ip, pid: random as i16, class_hash: (random >> 32) as i32, counter: AtomicU16::new(0) }
    }

    /// The next one. Readers recover the time from it, by the month.
    fn next(&self, now_ms: i64) -> String {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        let (ip, pid, class_hash) = (self.ip, self.pid, self.class_hash);
        UniqueKey { ip, pid, class_hash, month_ms: ms_of_month(now_ms), counter: counter as i16 }.to_string()
    }
}

/// Milliseconds since the first of the month, in UTC.
fn ms_of_month(now_ms: i64) -> i32 {
    const DAY_MS: i64 = 86_400_000;
    let days = now_ms.div_euclid(DAY_MS);
    // Days since 0000-03-01, where months have a rhythm: Hinnant's civil-from-days.
    let of_era = (days + 719_468).rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5;
    (of_month * DAY_MS + now_ms.rem_euclid(DAY_MS)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn queue() -> Target {
        Target { topic_id: TopicId(1), topic: "T".to_owned(), queue: 2, is_multi_tag: false }
    }

    fn encoded(pairs: &[(&str, &str)]) -> String {
        pairs.iter().map(|(name, value)| format!("{name}\u{1}{value}\u{2}")).collect()
    }

    fn delay(pairs: &[(&str, &str)]) -> Result<Delay, RequestError> {
        delay_of(&Found::in_properties(&encoded(pairs)), &MessagePolicy::default(), NOW)
    }

    #[test]
    fn a_delay_is_a_level_or_a_time_and_the_level_wins() {
        let until = |ms: i64| Delay::Until { due: Timestamp(NOW.0 + ms) };
        let level = |level: i32, ms: i64| Delay::Level { level, due: Timestamp(NOW.0 + ms) };
        assert_eq!(delay(&[]).expect("a delay"), Delay::None);
        assert_eq!(delay(&[("DELAY", "0")]).expect("a delay"), Delay::None);
        assert_eq!(delay(&[("DELAY", "-1")]).expect("a delay"), Delay::None);
        assert_eq!(delay(&[("DELAY", "x")]).expect("a delay"), Delay::None);
        assert_eq!(delay(&[("DELAY", "3")]).expect("a delay"), level(3, 10_000));
        assert_eq!(delay(&[("DELAY", "99")]).expect("a delay"), level(18, 7_200_000));
        assert_eq!(delay(&[("DELAY", "1"), ("TIMER_DELAY_SEC", "9")]).expect("a delay"), level(1, 1000));
        assert_eq!(delay(&[("TIMER_DELAY_SEC", "9"), ("TIMER_DELAY_MS", "1")]).expect("a delay"), until(9000));
        assert_eq!(delay(&[("TIMER_DELAY_MS", "1500")]).expect("a delay"), until(1500));
        assert_eq!(delay(&[("TIMER_DELIVER_MS", "1700000005000")]).expect("a delay"), until(5000));
        assert_eq!(delay(&[("TIMER_DELIVER_MS", "5")]).expect("a delay"), Delay::None, "it has passed");
        assert_eq!(
            delay(&[("TIMER_DELAY_MS", "1500"), ("TIMER_OUT_MS", "1")]).expect("a delay"),
            Delay::None,
            "delivered by the timer, sent again"
        );
        for bad in
            [("TIMER_DELAY_SEC", "soon"), ("TIMER_DELAY_SEC", "259201"), ("TIMER_DELIVER_MS", "9223372036854775807")]
        {
            let error = delay(&[bad]).expect_err("it cannot be kept");
            assert_eq!(error.response_code(), Some(ResponseCode::MESSAGE_ILLEGAL), "{bad:?}");
        }
    }

    #[test]
    fn the_broker_s_properties_replace_the_client_s() {
        let text =
            encoded(&[("k", "v"), ("POP_CK", "1 2"), ("CLUSTER", "old"), ("DELAY", "30"), ("TIMER_DELAY_MS", "5")]);
        let stored = |delay, is_dead_letter| {
            let queue = queue();
            let additions =
                Additions { cluster: "c", unique_key: "U", queue: &queue, delay, is_dead_letter, half_of: None };
            stored_properties(&text, &additions)
        };
        let always = [("UNIQ_KEY", "U"), ("CLUSTER", "c"), ("MSG_REGION", "DefaultRegion"), ("TRACE_ON", "true")];
        let expected = |before: &[(&str, &str)], after: &[(&str, &str)]| encoded(&[before, &always, after].concat());
        assert_eq!(
            stored(Delay::Level { level: 18, due: NOW }, false),
            expected(&[("k", "v")], &[("DELAY", "18"), ("REAL_TOPIC", "T"), ("REAL_QID", "2")])
        );
        assert_eq!(stored(Delay::None, true), expected(&[("k", "v"), ("TIMER_DELAY_MS", "5")], &[("DELAY", "-1")]));
        assert_eq!(
            stored(Delay::Until { due: Timestamp(7) }, false),
            expected(
                &[("k", "v"), ("DELAY", "30"), ("TIMER_DELAY_MS", "5")],
                &[("TIMER_OUT_MS", "7"), ("REAL_TOPIC", "T"), ("REAL_QID", "2")]
            )
        );
    }

    #[test]
    fn a_half_message_says_what_it_takes_to_ask_about_it() {
        let queue = queue();
        let stored = |text: &str| {
            let (cluster, unique_key, delay) = ("c", "U", Delay::None);
            let additions =
                Additions { cluster, unique_key, queue: &queue, delay, is_dead_letter: false, half_of: Some("pg") };
            stored_properties(text, &additions)
        };
        let always = [("UNIQ_KEY", "U"), ("CLUSTER", "c"), ("MSG_REGION", "DefaultRegion"), ("TRACE_ON", "true")];
        let real = [("REAL_TOPIC", "T"), ("REAL_QID", "2")];
        let id = [("__transactionId__", "U")];
        let named = [("TRAN_MSG", "true"), ("PGROUP", "own")];
        let expected = encoded(&[&named[..], &always, &id, &real].concat());
        assert_eq!(stored(&encoded(&[&named[..], &[("__transactionId__", "forged")]].concat())), expected);
        let expected = encoded(&[&named[..1], &always, &id, &[("PGROUP", "pg")], &real].concat());
        assert_eq!(stored(&encoded(&named[..1])), expected, "the request names it");
    }

    #[test]
    fn what_is_found_in_properties() {
        let text = encoded(&[("KEYS", "a b"), ("TAGS", "t"), ("UNIQ_KEY", "u"), ("TRAN_MSG", "True"), ("DELAY", "2")]);
        let found = Found::in_properties(&text);
        assert_eq!((found.keys, found.tags, found.unique_key), (Some("a b"), Some("t"), Some("u")));
        assert!(found.is_transactional && found.delay_level() == 2);
        assert_eq!(key_hashes("T", found.unique_key, Some(" a  b ")).len(), 3);
        assert_eq!(key_hash("T", "a"), key_hashes("T", None, Some("a"))[0]);
    }

    /// If this fails, keys of messages stored by earlier releases are no longer found.
    #[test]
    fn key_hashes_never_change() {
        assert_eq!(key_hash("T", "a"), xxhash_rust::xxh3::xxh3_64(b"T#a"));
        assert_ne!(key_hash("T", "a"), key_hash("U", "a"));
    }

    #[test]
    fn a_message_id_s_time_is_counted_from_the_first_of_the_month() {
        const HOUR_MS: i64 = 3_600_000;
        // 2023-11-14 22:13:20, 2024-02-29 00:00:00, 2024-03-01 00:00:01, 1970-01-01.
        for (now_ms, days, rest_ms) in [
            (1_700_000_000_000, 13, 22 * HOUR_MS + 800_000),
            (1_709_164_800_000, 28, 0),
            (1_709_251_201_000, 0, 1000),
            (0, 0, 0),
        ] {
            assert_eq!(i64::from(ms_of_month(now_ms) as u32), days * 24 * HOUR_MS + rest_ms, "{now_ms}");
        }
    }
}

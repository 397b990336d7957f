//! Producer: puts messages into queues, and into another one when that fails.
//!
//! One `async fn` is all there is: awaited it is a synchronous send, many of them joined are asynchronous sends. They
//! share a few connections, on which whatever is ready leaves in one write. No send starts a task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use protocol::batch::{self, InnerMessage};
use protocol::body::MessageQueue;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::ext_fields::ExtFields;
use protocol::header::{DUPLICATE, IDEMPOTENT, RecallMessageRequest};
use protocol::message_id::UniqueKey;
use protocol::recall_handle::RecallHandle;
use protocol::sys_flag::{SysFlag, TransactionType};
use protocol::{names, properties, tag};
use remoting::CallError;

use crate::builder::Client;
use crate::errors::{ConfigError, InvalidMessage, RecallError, RequestError, RouteError, SendError};
use crate::membership;
use crate::message::Message;
use crate::network::Lane;
use crate::retry::{AfterUnknown, Attempts, Failure, Next};
use crate::routes::{DEFAULT_TOPIC_QUEUES, RoutedQueue, TopicRoute};
use crate::trace::Sending;

/// What brokers accept unless configured otherwise.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// Brokers keep 1 KiB of a record's room for what its retries need, and add properties of their own.
const MAX_SENT_PROPERTIES_BYTES: usize = properties::MAX_PROPERTIES_BYTES - 1024 - 512;
/// How long sends avoid a broker group, if there is another, after one could not reach it.
const SUSPICION: Duration = Duration::from_secs(2);

/// Builds a [`Producer`].
#[derive(Debug)]
#[must_use]
pub struct ProducerBuilder {
    client: Client,
    group: String,
    settings: Settings,
}

#[derive(Debug, Clone)]
struct Settings {
    timeout: Duration,
    attempt_timeout: Duration,
    max_attempts: u32,
    after_unknown: AfterUnknown,
    is_idempotent: bool,
}

impl ProducerBuilder {
    pub(crate) fn new(client: &Client, group: String) -> ProducerBuilder {
        let settings = Settings {
            timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(3),
            max_attempts: u32::MAX,
            after_unknown: AfterUnknown::default(),
            is_idempotent: true,
        };
        ProducerBuilder { client: client.clone(), group, settings }
    }

    /// How long a send may take with all its attempts; 10 s by default, long enough to outlive a change of leader.
    pub fn timeout(mut self, limit: Duration) -> ProducerBuilder {
        self.settings.timeout = limit;
        self
    }

    /// How long a broker may take to answer one attempt; 3 s by default.
    pub fn attempt_timeout(mut self, limit: Duration) -> ProducerBuilder {
        self.settings.attempt_timeout = limit;
        self
    }

    /// Attempts per send, at least 1. By default only time limits them.
    pub fn max_attempts(mut self, attempts: u32) -> ProducerBuilder {
        self.settings.max_attempts = attempts;
        self
    }

    /// What to do when it is unknown whether an attempt has stored the message.
    pub fn after_unknown(mut self, policy: AfterUnknown) -> ProducerBuilder {
        self.settings.after_unknown = policy;
        self
    }

    /// Whether what this producer sends again, because it does not know what became of it, is recognised by a raftmq broker and
    /// stored once; so it is by default. Otherwise the topic's attribute and the broker's default say it, as for other clients.
    pub fn idempotent(mut self, is_idempotent: bool) -> ProducerBuilder {
        self.settings.is_idempotent = is_idempotent;
        self
    }

    /// The producer. Call it on a tokio runtime: the client's heartbeats begin here, if they have not yet.
    pub fn start(self) -> Result<Producer, StartProducerError> {
        names::validate_group(&self.group).map_err(InvalidMessage::from)?;
        if self.settings.max_attempts == 0 {
            return Err(ConfigError::OutOfRange { setting: "max_attempts", expected: "at least 1" }.into());
        }
        self.client.0.producers.enter(&self.group);
        self.client.keep_up();
        Ok(Producer(Arc::new(Inner::new(self.client, self.group, self.settings, true))))
    }
}

/// Why a producer cannot be made as configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartProducerError {
    /// The group's name.
    #[error(transparent)]
    Group(#[from] InvalidMessage),
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// How safe a stored message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// As safe as the broker was configured to make it before answering.
    AsConfigured,
    /// Stored, but not flushed in time (RocketMQ's FLUSH_DISK_TIMEOUT).
    NotFlushed,
    /// Stored, but not replicated in time, or with no replica there (FLUSH_SLAVE_TIMEOUT, SLAVE_NOT_AVAILABLE).
    NotReplicated,
}

/// Proof that a message is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendReceipt {
    /// The message's own key.
    pub unique_key: String,
    /// Where its bytes lie: broker address and physical offset. Tools find the message by it.
    pub offset_message_id: String,
    /// The queue it is in.
    pub queue: Arc<MessageQueue>,
    /// Its place there. Of a delayed message: nothing yet.
    pub queue_offset: i64,
    /// How safe it is.
    pub durability: Durability,
    /// With which a delayed message can be recalled ([`Producer::recall`]), where the broker can do that.
    pub recall_handle: Option<String>,
    /// It was stored before, by an earlier attempt or an earlier send under the same key: this is the place of that copy, and
    /// there is no other.
    pub duplicate: bool,
    /// How many attempts it took.
    pub attempts: u32,
}

/// Sends messages. Cheap to clone; made with [`Client::producer`].
#[derive(Debug, Clone)]
pub struct Producer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    group: String,
    settings: Settings,
    next_queue: AtomicUsize,
    is_member: AtomicBool,
    /// The library's own.
    is_internal: bool,
    /// Broker groups that could not be reached a moment ago, and until when they are avoided.
    suspects: Mutex<BTreeMap<String, Duration>>,
    has_suspects: AtomicBool,
}

/// Where a message may go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    Any,
    Queue(&'a MessageQueue),
    /// The queue that this hash selects.
    Hash(i32),
}

impl Target<'_> {
    /// Any queue, or the one that the message's sharding key selects.
    pub(crate) fn of(message: &Message) -> Target<'static> {
        message.property(properties::SHARDING_KEY).map_or(Target::Any, |key| Target::Hash(tag::hash_code(key)))
    }
}

/// A send, ready to be put on the wire as often as needed.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) topic: &'a str,
    pub(crate) body: Bytes,
    pub(crate) properties: String,
    pub(crate) unique_key: String,
    pub(crate) flag: i32,
    pub(crate) sys_flag: i32,
    pub(crate) born_ms: i64,
    pub(crate) reconsume_times: i32,
    pub(crate) max_reconsume_times: Option<i32>,
    /// SEND_MESSAGE_V2, or what else has its header.
    pub(crate) code: RequestCode,
    /// No other message has the key. Told to the broker with every attempt, not only with retries: the first may be held up
    /// on its way, and arrive behind them.
    pub(crate) is_alone: bool,
}

impl Producer {
    /// A producer that consumers use to give messages back. Not a member of its group towards brokers.
    pub(crate) fn internal(client: &Client, timeout: Duration) -> Producer {
        Producer::internal_of(client, "CLIENT_INNER_PRODUCER", timeout)
    }

    /// The same, under another group's name.
    pub(crate) fn internal_of(client: &Client, group: &str, timeout: Duration) -> Producer {
        let mut builder = ProducerBuilder::new(client, group.to_owned());
        builder.settings.timeout = timeout;
        builder.settings.after_unknown = AfterUnknown::SameBroker;
        Producer(Arc::new(Inner::new(builder.client, builder.group, builder.settings, false)))
    }

    /// The producer's group.
    pub fn group(&self) -> &str {
        &self.0.group
    }

    /// Sends a message to any queue of its topic, one after the other in turn; a message with a sharding key to the
    /// queue that the key selects.
    ///
    /// On `Ok` the message is stored, as safely as the receipt says. Retries keep the message's unique key.
    ///
    /// Not cancel-safe: a future dropped before its end leaves open whether the message was sent.
    pub async fn send(&self, message: Message) -> Result<SendReceipt, SendError> {
        self.send_one(&message, Target::of(&message)).await
    }

    /// Sends a message to one queue and no other, even if that one cannot be reached.
    ///
    /// Not cancel-safe, as [`Producer::send`].
    pub async fn send_to(&self, message: Message, queue: &MessageQueue) -> Result<SendReceipt, SendError> {
        self.send_one(&message, Target::Queue(queue)).await
    }

    /// Sends a message to the queue that `key` selects among those of its topic: the same queue for the same key, as
    /// long as the topic keeps its queues. Messages with one key keep their order if each is awaited before the next.
    ///
    /// Not cancel-safe, as [`Producer::send`].
    pub async fn send_by_key(&self, message: Message, key: &str) -> Result<SendReceipt, SendError> {
        self.send_one(&message, Target::Hash(tag::hash_code(key))).await
    }

    /// Sends messages of one topic as one batch: all of them are stored in consecutive places of one queue, or none.
    /// One receipt each. They may not be delayed, and their bodies may have 4 MiB together.
    ///
    /// Not cancel-safe, as [`Producer::send`].
    pub async fn send_all(&self, messages: &[Message]) -> Result<Vec<SendReceipt>, SendError> {
        let [first, ..] = messages else { return Ok(Vec::new()) };
        if messages.iter().any(|message| message.topic() != first.topic()) {
            return Err(InvalidMessage::Batch("they have different topics").into());
        }
        if messages.iter().any(Message::is_timed) {
            return Err(InvalidMessage::Batch("one of them is delayed").into());
        }
        if names::group_of_retry_topic(first.topic()).is_some() {
            return Err(InvalidMessage::Batch("retry topics take none").into());
        }
        let deadline = self.0.client.0.env.clock.monotonic() + self.0.settings.timeout;
        let route = self.0.first_route(first.topic(), deadline).await?;
        let mut body = BytesMut::with_capacity(messages.iter().map(|message| message.body().len() + 128).sum());
        let mut keys = Vec::with_capacity(messages.len());
        for message in messages {
            let (properties, key) = self.0.encode_properties(message)?;
            let inner = InnerMessage { flag: message.flag(), body: message.body(), properties: &properties };
            batch::encode(&inner, &mut body).map_err(|_| too_large("message", message.body().len()))?;
            keys.push(key);
        }
        if body.len() > MAX_BODY_BYTES {
            return Err(too_large("batch", body.len()).into());
        }
        // All of it is recognised by its first message, because that key is what is stored.
        let unique_key = keys[0].clone();
        let mut properties = String::with_capacity(64);
        push_property(&mut properties, properties::UNIQ_KEY, &unique_key);
        let outgoing = Outgoing {
            topic: first.topic(),
            body: body.freeze(),
            properties,
            unique_key,
            flag: 0,
            sys_flag: 0,
            born_ms: self.0.client.0.env.clock.wall_ms(),
            reconsume_times: 0,
            max_reconsume_times: None,
            code: RequestCode::SEND_BATCH_MESSAGE,
            is_alone: true,
        };
        let begun = self.0.begin();
        let whole = self.0.deliver(&outgoing, Target::Any, route, deadline).await;
        let Ok(whole) = whole else {
            for (message, unique_key) in messages.iter().zip(&keys) {
                self.0.trace(begun, message, unique_key, false, None);
            }
            return Err(whole.expect_err("it was just seen"));
        };
        let mut ids = whole.offset_message_id.split(',').map(str::to_owned);
        let receipts = keys.into_iter().zip(0..).map(|(unique_key, place)| SendReceipt {
            unique_key,
            offset_message_id: ids.next().unwrap_or_default(),
            queue_offset: whole.queue_offset + place,
            ..whole.clone()
        });
        let receipts: Vec<SendReceipt> = receipts.collect();
        for (message, receipt) in messages.iter().zip(&receipts) {
            self.0.trace(begun, message, &receipt.unique_key, false, Some(receipt));
        }
        Ok(receipts)
    }

    /// Hands a message to a connection and does not wait for a broker's answer: it may get lost. Returns its unique key.
    pub async fn send_one_way(&self, message: Message) -> Result<String, SendError> {
        let inner = &*self.0;
        let deadline = inner.client.0.env.clock.monotonic() + inner.settings.timeout;
        let route = inner.first_route(message.topic(), deadline).await?;
        let outgoing = inner.prepare(&message)?;
        let target = Target::of(&message);
        let attempts = Attempts::default();
        let Some(routed) = inner.choose(&route, target, &attempts) else {
            let topic = message.topic().to_owned();
            return Err(not_stored(RouteError::NoQueue { topic, purpose: "write to" }));
        };
        let request = inner.request(&outgoing, &routed.queue);
        let leader = &route.brokers[routed.broker].members[0];
        let sent = inner.client.0.network.one_way(leader, lane(target, &routed), request, inner.settings.timeout).await;
        match sent {
            Ok(()) => Ok(outgoing.unique_key),
            Err(CallError::NotSent(reason) | CallError::Unknown(reason)) => {
                inner.client.0.routes.refresh(message.topic()).await.ok();
                Err(SendError::NotStored { reason })
            }
        }
    }

    /// Recalls a delayed message that is not visible yet: nobody will ever see it. The receipt of its send has the handle.
    ///
    /// Cancel-safe in that it may be repeated: a message is recalled once, and every recall of it is answered `Ok`.
    pub async fn recall(&self, topic: &str, handle: &str) -> Result<(), RecallError> {
        let named: RecallHandle = handle.parse().map_err(|error| RecallError::TooLate(format!("{error}")))?;
        let header = RecallMessageRequest {
            producer_group: Some(self.0.group.clone()),
            topic: topic.to_owned(),
            recall_handle: handle.to_owned(),
            broker_name: Some(named.broker_name.clone()),
        };
        let request = RemotingCommand::request_with(RequestCode::RECALL_MESSAGE, &header);
        match self.0.client.ask_group(topic, &named.broker_name, request).await {
            Ok(_) => Ok(()),
            Err(RequestError::Refused { code: ResponseCode::ILLEGAL_OPERATION, remark }) => {
                Err(RecallError::TooLate(remark))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The queues that messages of `topic` can be sent to now.
    pub async fn queues(&self, topic: &str) -> Result<Vec<Arc<MessageQueue>>, RouteError> {
        let route = self.0.client.0.routes.get(topic).await?;
        Ok(route.write_queues.iter().map(|routed| routed.queue.clone()).collect())
    }

    /// Leaves the producer group. Sends that are on their way go on.
    pub async fn shutdown(&self) {
        if self.0.leave() {
            membership::leave(&self.0.client, Some(&self.0.group), None).await;
        }
    }

    async fn send_one(&self, message: &Message, target: Target<'_>) -> Result<SendReceipt, SendError> {
        let inner = &*self.0;
        let deadline = inner.client.0.env.clock.monotonic() + inner.settings.timeout;
        // The route comes first: from then on the client knows its own address, which is part of the key.
        let route = inner.first_route(message.topic(), deadline).await?;
        let outgoing = inner.prepare(message)?;
        let begun = inner.begin();
        let sent = inner.deliver(&outgoing, target, route, deadline).await;
        inner.trace(begun, message, &outgoing.unique_key, false, sent.as_ref().ok());
        sent
    }

    /// Sends a half message: visible when its transaction is committed.
    pub(crate) async fn send_half(
        &self,
        message: &Message,
        queue: Option<&MessageQueue>,
    ) -> Result<SendReceipt, SendError> {
        let inner = &*self.0;
        let deadline = inner.client.0.env.clock.monotonic() + inner.settings.timeout;
        let route = inner.first_route(message.topic(), deadline).await?;
        let mut outgoing = inner.prepare(message)?;
        push_property(&mut outgoing.properties, properties::TRAN_MSG, "true");
        push_property(&mut outgoing.properties, properties::PGROUP, &inner.group);
        outgoing.sys_flag = SysFlag(outgoing.sys_flag).with_transaction(TransactionType::Prepared).0;
        let hash = message.property(properties::SHARDING_KEY).map(tag::hash_code);
        let target = queue.map(Target::Queue).or(hash.map(Target::Hash)).unwrap_or(Target::Any);
        let begun = inner.begin();
        let sent = inner.deliver(&outgoing, target, route, deadline).await;
        inner.trace(begun, message, &outgoing.unique_key, true, sent.as_ref().ok());
        sent
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    /// How long a send may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.0.settings.timeout
    }

    pub(crate) fn prepare<'a>(&self, message: &'a Message) -> Result<Outgoing<'a>, InvalidMessage> {
        self.0.prepare(message)
    }

    pub(crate) async fn first_route(&self, topic: &str, deadline: Duration) -> Result<Arc<TopicRoute>, SendError> {
        self.0.first_route(topic, deadline).await
    }

    pub(crate) async fn deliver(
        &self,
        outgoing: &Outgoing<'_>,
        target: Target<'_>,
        route: Arc<TopicRoute>,
        deadline: Duration,
    ) -> Result<SendReceipt, SendError> {
        self.0.deliver(outgoing, target, route, deadline).await
    }

    /// Sends what a consumer gives back; its topic is a retry topic, which may take anything.
    pub(crate) async fn send_back(&self, outgoing: &Outgoing<'_>) -> Result<SendReceipt, SendError> {
        let inner = &*self.0;
        let deadline = inner.client.0.env.clock.monotonic() + inner.settings.timeout;
        let route = inner.first_route(outgoing.topic, deadline).await?;
        inner.deliver(outgoing, Target::Any, route, deadline).await
    }
}

impl Inner {
    fn new(client: Client, group: String, settings: Settings, is_member: bool) -> Inner {
        Inner {
            client,
            group,
            settings,
            next_queue: AtomicUsize::new(0),
            is_member: AtomicBool::new(is_member),
            is_internal: !is_member,
            suspects: Mutex::new(BTreeMap::new()),
            has_suspects: AtomicBool::new(false),
        }
    }

    /// The date, and the time from which a duration counts.
    fn begin(&self) -> (i64, Duration) {
        let clock = &self.client.0.env.clock;
        (clock.wall_ms(), clock.monotonic())
    }

    /// A send has ended; of a producer that is the library's own nobody wants to know.
    fn trace(
        &self,
        (begun_ms, begun): (i64, Duration),
        message: &Message,
        unique_key: &str,
        is_half: bool,
        receipt: Option<&SendReceipt>,
    ) {
        if self.client.0.tracer.is_some() && !self.is_internal {
            let took = self.client.0.env.clock.monotonic() - begun;
            let group = &self.group;
            self.client.trace_sending(&Sending { group, message, is_half, begun_ms, took, unique_key, receipt });
        }
    }

    /// Whether this was the last producer of its group in the client.
    fn leave(&self) -> bool {
        self.is_member.swap(false, Ordering::Relaxed) && self.client.0.producers.leave(&self.group)
    }

    /// The route to begin with. A topic that is not known is worth asking for until the deadline only if nobody answers.
    async fn first_route(&self, topic: &str, deadline: Duration) -> Result<Arc<TopicRoute>, SendError> {
        let client = &self.client.0;
        if let Some(route) = client.routes.fresh(topic) {
            return Ok(route);
        }
        names::validate_topic(topic).map_err(InvalidMessage::from)?;
        if !names::is_send_allowed(topic) {
            return Err(InvalidMessage::SystemTopic(topic.to_owned()).into());
        }
        let mut attempts = Attempts::default();
        loop {
            let failure = match client.routes.get(topic).await {
                Ok(route) => return Ok(route),
                Err(error @ RouteError::TopicNotFound(_)) => {
                    Failure::Refused { code: ResponseCode::TOPIC_NOT_EXIST, remark: error.to_string() }
                }
                Err(error) => Failure::NoRoute(error.to_string()),
            };
            match attempts.failed(None, failure, self.settings.after_unknown, self.settings.max_attempts) {
                Next::Retry(pause) if client.env.clock.monotonic() + pause < deadline => {
                    client.env.clock.sleep(pause).await;
                }
                _ => return Err(attempts.error("")),
            }
        }
    }

    fn new_key(&self) -> UniqueKey {
        let client = &self.client.0;
        let ip = client.network.local_ip().expect("a route came over a connection, which told the own address");
        client.keys.next(ip, client.env.clock.wall_ms())
    }

    /// The message's properties with its key, and the key.
    fn encode_properties(&self, message: &Message) -> Result<(String, String), InvalidMessage> {
        let own = message.encoded_properties();
        let unique_key = message.unique_key().unwrap_or_else(|| self.new_key()).to_string();
        let mut properties = String::with_capacity(own.len() + unique_key.len() + 16);
        properties.push_str(own);
        push_property(&mut properties, properties::UNIQ_KEY, &unique_key);
        if properties.len() > MAX_SENT_PROPERTIES_BYTES {
            let (part_bytes, limit_bytes) = (properties.len(), MAX_SENT_PROPERTIES_BYTES);
            return Err(InvalidMessage::TooLarge { part: "properties", part_bytes, limit_bytes });
        }
        Ok((properties, unique_key))
    }

    fn prepare<'a>(&self, message: &'a Message) -> Result<Outgoing<'a>, InvalidMessage> {
        if message.body().len() > MAX_BODY_BYTES {
            return Err(too_large("body", message.body().len()));
        }
        let (properties, unique_key) = self.encode_properties(message)?;
        Ok(Outgoing {
            topic: message.topic(),
            body: message.body().clone(),
            properties,
            unique_key,
            flag: message.flag(),
            sys_flag: 0,
            born_ms: self.client.0.env.clock.wall_ms(),
            reconsume_times: 0,
            max_reconsume_times: None,
            code: RequestCode::SEND_MESSAGE_V2,
            is_alone: true,
        })
    }

    /// Attempts until the message is stored, is refused for good, or time is up.
    async fn deliver(
        &self,
        outgoing: &Outgoing<'_>,
        target: Target<'_>,
        mut route: Arc<TopicRoute>,
        deadline: Duration,
    ) -> Result<SendReceipt, SendError> {
        let client = &self.client.0;
        let mut attempts = Attempts::default();
        loop {
            let routed = self.choose(&route, target, &attempts);
            let failure = match &routed {
                None => Failure::NoRoute(format!("topic {} has no queue to write to", outgoing.topic)),
                Some(routed) => {
                    let broker = &route.brokers[routed.broker];
                    let member = &broker.members[attempts.member(&broker.name, broker.members.len())];
                    let request = self.request(outgoing, &routed.queue);
                    let remaining = deadline.saturating_sub(client.env.clock.monotonic());
                    let limit = remaining.min(self.settings.attempt_timeout);
                    match client.network.call(member, lane(target, routed), request, limit).await {
                        Ok(response) => match receipt(&response, outgoing, routed, attempts.made() + 1) {
                            Ok(receipt) => return Ok(receipt),
                            Err(failure) => failure,
                        },
                        Err(CallError::NotSent(reason)) => Failure::NotSent(reason),
                        Err(CallError::Unknown(reason)) => Failure::Unknown(reason),
                    }
                }
            };
            let broker = routed.as_ref().map(|routed| routed.queue.broker_name.as_str());
            tracing::debug!(topic = outgoing.topic, broker, ?failure, "an attempt to send failed");
            if let (Some(broker), Failure::NotSent(_) | Failure::Unknown(_)) = (broker, &failure) {
                self.suspect(broker);
            }
            let is_overload = matches!(failure, Failure::Refused { code: ResponseCode::SYSTEM_BUSY, .. });
            let Settings { after_unknown, max_attempts, .. } = self.settings;
            let pause = match attempts.failed(broker, failure, after_unknown, max_attempts) {
                Next::Retry(pause) if client.env.clock.monotonic() + pause < deadline => pause,
                _ => {
                    if !is_overload {
                        client.routes.doubt(outgoing.topic);
                    }
                    return Err(attempts.error(&outgoing.unique_key));
                }
            };
            // A busy broker is where it was; anything else may mean that the route is not what it was.
            if !is_overload {
                let remaining = deadline.saturating_sub(client.env.clock.monotonic());
                let refreshed = client.env.clock.timeout(remaining, client.routes.refresh(outgoing.topic)).await;
                if let Some(Ok(fresh)) = refreshed {
                    route = fresh;
                }
            }
            client.env.clock.sleep(pause).await;
        }
    }

    /// The queue for the next attempt.
    fn choose(&self, route: &TopicRoute, target: Target<'_>, attempts: &Attempts) -> Option<RoutedQueue> {
        let queues = &route.write_queues;
        match target {
            // A queue that is not in the route can still be reached if its broker is: leaders come and go.
            Target::Queue(queue) => {
                let broker = route.brokers.iter().position(|broker| broker.name == queue.broker_name)?;
                Some(RoutedQueue { queue: Arc::new(queue.clone()), broker })
            }
            Target::Hash(hash) if !queues.is_empty() => {
                let index = hash.unsigned_abs() as usize % queues.len();
                Some(queues[index].clone())
            }
            Target::Hash(_) => None,
            Target::Any => {
                let start = self.next_queue.fetch_add(1, Ordering::Relaxed);
                let in_turn = (0..queues.len()).map(|turn| &queues[start.wrapping_add(turn) % queues.len()]);
                if let Some(bound) = attempts.bound_to() {
                    return in_turn.clone().find(|routed| routed.queue.broker_name == bound).cloned();
                }
                let is_avoided = |routed: &RoutedQueue| {
                    let broker = routed.queue.broker_name.as_str();
                    attempts.avoided() == Some(broker) || self.is_suspect(broker)
                };
                in_turn.clone().find(|routed| !is_avoided(routed)).or_else(|| in_turn.clone().next()).cloned()
            }
        }
    }

    fn suspect(&self, broker: &str) {
        let until = self.client.0.env.clock.monotonic() + SUSPICION;
        self.suspects.lock().insert(broker.to_owned(), until);
        self.has_suspects.store(true, Ordering::Relaxed);
    }

    fn is_suspect(&self, broker: &str) -> bool {
        if !self.has_suspects.load(Ordering::Relaxed) {
            return false;
        }
        let now = self.client.0.env.clock.monotonic();
        let mut suspects = self.suspects.lock();
        suspects.retain(|_, until| *until > now);
        self.has_suspects.store(!suspects.is_empty(), Ordering::Relaxed);
        suspects.contains_key(broker)
    }

    /// The request, field by field as `protocol::header::SendMessageRequestV2` would write it, without owning them.
    fn request(&self, outgoing: &Outgoing<'_>, queue: &MessageQueue) -> RemotingCommand {
        let properties = &outgoing.properties;
        let fields = self.group.len() + outgoing.topic.len() + queue.broker_name.len() + properties.len();
        let mut ext = ExtFields::with_capacity(15, fields + 128);
        ext.set_text("a", &self.group);
        ext.set_text("b", outgoing.topic);
        ext.set_text("c", names::AUTO_CREATE_TOPIC);
        ext.set("d", DEFAULT_TOPIC_QUEUES);
        ext.set("e", queue.queue_id);
        ext.set("f", outgoing.sys_flag);
        ext.set("g", outgoing.born_ms);
        ext.set("h", outgoing.flag);
        ext.set_text("i", properties);
        ext.set("j", outgoing.reconsume_times);
        ext.set_text("k", "false");
        if let Some(most) = outgoing.max_reconsume_times {
            ext.set("l", most);
        }
        ext.set_text("m", if outgoing.code == RequestCode::SEND_BATCH_MESSAGE { "true" } else { "false" });
        ext.set_text("n", &queue.broker_name);
        if outgoing.is_alone && self.settings.is_idempotent {
            ext.set(IDEMPOTENT, true);
        }
        let mut request = RemotingCommand::request(outgoing.code).with_body(outgoing.body.clone());
        request.ext = ext;
        request
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Which connection a send takes. Those to a given queue take the same one, so that they leave in order.
fn lane(target: Target<'_>, routed: &RoutedQueue) -> Lane {
    match target {
        Target::Any => Lane::Any,
        Target::Queue(_) | Target::Hash(_) => Lane::Of(routed.queue.queue_id.unsigned_abs() as usize),
    }
}

/// What a broker's answer to a send means.
fn receipt(
    response: &RemotingCommand,
    outgoing: &Outgoing<'_>,
    routed: &RoutedQueue,
    attempts: u32,
) -> Result<SendReceipt, Failure> {
    let durability = match response.response_code() {
        ResponseCode::SUCCESS => Durability::AsConfigured,
        ResponseCode::FLUSH_DISK_TIMEOUT => Durability::NotFlushed,
        ResponseCode::FLUSH_SLAVE_TIMEOUT | ResponseCode::SLAVE_NOT_AVAILABLE => Durability::NotReplicated,
        code => return Err(Failure::Refused { code, remark: response.remark_text().to_owned() }),
    };
    let ext = &response.ext;
    let (Ok(Some(queue_id)), Ok(Some(queue_offset))) = (ext.i32("queueId"), ext.i64("queueOffset")) else {
        // It says that the message is stored and not where: nothing that could be repeated.
        return Err(Failure::Unknown("the broker does not say where it stored the message".to_owned()));
    };
    let queue = if queue_id == routed.queue.queue_id {
        routed.queue.clone()
    } else {
        // A repeated send is answered with the place of the first.
        Arc::new(MessageQueue { queue_id, ..(*routed.queue).clone() })
    };
    Ok(SendReceipt {
        unique_key: outgoing.unique_key.clone(),
        offset_message_id: ext.text("msgId").unwrap_or_default().to_owned(),
        queue,
        queue_offset,
        durability,
        recall_handle: ext.text("recallHandle").map(str::to_owned),
        duplicate: ext.bool(DUPLICATE) == Some(true),
        attempts,
    })
}

/// Appends one property to encoded ones.
pub(crate) fn push_property(encoded: &mut String, name: &str, value: &str) {
    // Text of older clients may end without the separator.
    if !encoded.is_empty() && !encoded.ends_with('\u{2}') {
        encoded.push('\u{2}');
    }
    encoded.push_str(name);
    encoded.push('\u{1}');
    encoded.push_str(value);
    encoded.push('\u{2}');
}

fn too_large(part: &'static str, part_bytes: usize) -> InvalidMessage {
    InvalidMessage::TooLarge { part, part_bytes, limit_bytes: MAX_BODY_BYTES }
}

fn not_stored(error: RouteError) -> SendError {
    SendError::NotStored { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use protocol::header::SendMessageRequest;

    use super::*;

    fn producer() -> Producer {
        let client = Client::builder().name_servers("127.0.0.1:1").build().unwrap();
        Producer::internal(&client, Duration::from_secs(1))
    }

    fn outgoing(topic: &str) -> Outgoing<'_> {
        Outgoing {
            topic,
            body: Bytes::from_static(b"hi"),
            properties: "k\u{1}v\u{2}UNIQ_KEY\u{1}0A\u{2}".to_owned(),
            unique_key: "0A".to_owned(),
            flag: 7,
            sys_flag: 1,
            born_ms: 1_700_000_000_000,
            reconsume_times: 2,
            max_reconsume_times: Some(16),
            code: RequestCode::SEND_MESSAGE_V2,
            is_alone: true,
        }
    }

    #[test]
    fn the_request_is_the_one_the_typed_header_would_make() {
        let (producer, queue) = (producer(), MessageQueue::new("T", "broker-a", 3));
        let request = producer.0.request(&outgoing("T"), &queue);
        let expected = SendMessageRequest {
            producer_group: "CLIENT_INNER_PRODUCER".into(),
            topic: "T".into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: 4,
            queue_id: 3,
            sys_flag: 1,
            born_timestamp: 1_700_000_000_000,
            flag: 7,
            properties: Some("k\u{1}v\u{2}UNIQ_KEY\u{1}0A\u{2}".into()),
            reconsume_times: Some(2),
            unit_mode: false,
            max_reconsume_times: Some(16),
            batch: false,
            broker_name: Some("broker-a".into()),
        };
        assert_eq!(SendMessageRequest::of(&request), Ok(expected.clone()));
        assert_eq!(request.ext.bool(IDEMPOTENT), Some(true));
        let shared = Outgoing { is_alone: false, ..outgoing("T") };
        assert_eq!(producer.0.request(&shared, &queue).ext.bool(IDEMPOTENT), None, "other messages have its key");
    }

    #[test]
    fn answers_become_receipts_or_failures() {
        let outgoing = outgoing("T");
        let routed = RoutedQueue { queue: Arc::new(MessageQueue::new("T", "broker-a", 3)), broker: 0 };
        let request = RemotingCommand::request(RequestCode::SEND_MESSAGE_V2);
        let answer = |code: ResponseCode, queue_id: i32| {
            request.reply(code).with_field("queueId", queue_id).with_field("queueOffset", 41).with_field("msgId", "AB")
        };
        let stored = receipt(&answer(ResponseCode::SUCCESS, 3), &outgoing, &routed, 1).unwrap();
        assert_eq!((stored.queue_offset, stored.offset_message_id.as_str()), (41, "AB"));
        assert!(Arc::ptr_eq(&stored.queue, &routed.queue) && !stored.duplicate);
        let again = answer(ResponseCode::SUCCESS, 3).with_field(DUPLICATE, true);
        assert!(receipt(&again, &outgoing, &routed, 2).unwrap().duplicate);
        let first = receipt(&answer(ResponseCode::FLUSH_DISK_TIMEOUT, 1), &outgoing, &routed, 2).unwrap();
        assert_eq!((first.queue.queue_id, first.durability, first.attempts), (1, Durability::NotFlushed, 2));
        let refused = receipt(&request.reply_error(ResponseCode::SYSTEM_BUSY, "x"), &outgoing, &routed, 1);
        assert_eq!(refused, Err(Failure::Refused { code: ResponseCode::SYSTEM_BUSY, remark: "x".into() }));
        let silent = receipt(&request.reply(ResponseCode::SUCCESS), &outgoing, &routed, 1);
        assert!(matches!(silent, Err(Failure::Unknown(_))), "stored, nobody knows where");
    }
}

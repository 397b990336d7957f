//! Pop consumer: the program asks for messages of a topic and gets each under a lease, whatever queue it lies in and whoever
//! else asks. What it acknowledges is done; what it does not comes again, to anybody of the group, when the lease is over.
//!
//! There is neither rebalancing nor an offset to store. Any number of programs, and any number of tasks in each, may pop for
//! one group.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use protocol::body::{BatchAck, BatchAckRequest, MessageQueue};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{
    AckMessageRequest, ChangeInvisibleTimeRequest, ChangeInvisibleTimeResponse, PopMessageRequest, PopMessageResponse,
};
use protocol::record::{self, RecordView};
use protocol::{names, properties};

use crate::builder::Client;
use crate::errors::{InvalidMessage, RequestError, RouteError};
use crate::message::ReceivedMessage;
use crate::pull::{LONG_POLL, PARKING_GRACE, Subscription};

/// RocketMQ's default.
const INVISIBLE: Duration = Duration::from_secs(60);
/// The most that a broker gives in one answer.
const MESSAGES_MAX: i32 = 32;
/// How far apart messages may lie that one bit set names.
const STRETCH: i64 = 8 * 1024;
/// How often something is asked that may be asked twice, when nobody knows what became of it.
const ATTEMPTS: u32 = 3;
/// Between two pops that failed.
const PAUSE: Duration = Duration::from_millis(50);
/// The queues of a topic that a broker itself chooses from.
const ANY_QUEUE: i32 = -1;

/// Gets messages under leases; made with [`Client::pop_consumer`].
///
/// ```no_run
/// use client::Client;
/// use std::time::Duration;
///
/// # async fn bill(_body: &[u8]) -> bool { true }
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder().name_servers("127.0.0.1:9876").build()?;
/// let consumer = client.pop_consumer("billing")?.invisible_for(Duration::from_secs(30));
/// loop {
///     for mut message in consumer.pop("Orders", Duration::from_secs(5)).await? {
///         if bill(message.body()).await {
///             consumer.ack(&message).await?;
///         } else {
///             // Somebody tries again in ten seconds; too many times in vain, and it is a dead letter.
///             consumer.change_invisible(&mut message, Duration::from_secs(10)).await?;
///         }
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct PopConsumer {
    client: Client,
    group: Arc<str>,
    /// What is wanted of a topic; everything if it is not here.
    subscriptions: BTreeMap<String, Subscription>,
    invisible: Duration,
    messages_max: i32,
    begins_at_end: bool,
    in_order: bool,
    /// Which broker is asked first.
    turn: AtomicUsize,
}

/// A message and the lease under which this program has it. Dropped without an acknowledgement it comes again.
#[derive(Debug, Clone)]
pub struct PoppedMessage {
    message: ReceivedMessage,
    lease: Lease,
}

impl Deref for PoppedMessage {
    type Target = ReceivedMessage;

    fn deref(&self) -> &ReceivedMessage {
        &self.message
    }
}

impl PoppedMessage {
    /// The message alone.
    pub fn message(&self) -> &ReceivedMessage {
        &self.message
    }

    /// By which the broker knows the lease: RocketMQ's `POP_CK`.
    pub fn handle(&self) -> String {
        self.lease.to_string()
    }
}

/// `POP_CK`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    start_offset: i64,
    pop_ms: i64,
    invisible_ms: i64,
    revive_qid: i32,
    /// `0` if the message lies in its own topic; else in one of the retry topics that RocketMQ's brokers use.
    flag: String,
    broker_name: String,
    queue_id: i32,
    offset: i64,
}

impl std::fmt::Display for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Lease { start_offset, pop_ms, invisible_ms, revive_qid, flag, broker_name, queue_id, offset } = self;
        write!(f, "{start_offset} {pop_ms} {invisible_ms} {revive_qid} {flag} {broker_name} {queue_id} {offset}")
    }
}

impl Lease {
    fn parse(text: &str) -> Option<Lease> {
        let fields: Vec<&str> = text.split(' ').collect();
        let [start_offset, pop_ms, invisible_ms, revive_qid, flag, broker_name, queue_id, offset] = fields[..] else {
            return None;
        };
        Some(Lease {
            start_offset: start_offset.parse().ok()?,
            pop_ms: pop_ms.parse().ok()?,
            invisible_ms: invisible_ms.parse().ok()?,
            revive_qid: revive_qid.parse().ok()?,
            flag: flag.to_owned(),
            broker_name: broker_name.to_owned(),
            queue_id: queue_id.parse().ok()?,
            offset: offset.parse().ok()?,
        })
    }

    /// The topic that the message lies in.
    fn topic(&self, group: &str, topic: &str) -> String {
        match self.flag.as_str() {
            "1" => format!("{}_{topic}", names::retry_topic(group)),
            "2" => format!("{}+{topic}", names::retry_topic(group)),
            _ => topic.to_owned(),
        }
    }
}

impl PopConsumer {
    pub(crate) fn new(client: &Client, group: String) -> Result<PopConsumer, InvalidMessage> {
        names::validate_group(&group)?;
        Ok(PopConsumer {
            client: client.clone(),
            group: group.into(),
            subscriptions: BTreeMap::new(),
            invisible: INVISIBLE,
            messages_max: MESSAGES_MAX,
            begins_at_end: false,
            in_order: false,
            turn: AtomicUsize::new(0),
        })
    }

    /// The group whose messages these are.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// How long a message stays with whoever popped it; a minute if this is not said.
    #[must_use]
    pub fn invisible_for(mut self, time: Duration) -> PopConsumer {
        self.invisible = time;
        self
    }

    /// How many messages one pop may bring: at most 32, which is the default.
    #[must_use]
    pub fn max_messages(mut self, count: u32) -> PopConsumer {
        self.messages_max = i32::try_from(count).unwrap_or(MESSAGES_MAX).clamp(1, MESSAGES_MAX);
        self
    }

    /// A group that is new to a topic begins with what comes from now on, not with what is there.
    #[must_use]
    pub fn from_last(mut self) -> PopConsumer {
        self.begins_at_end = true;
        self
    }

    /// The messages of a queue one batch after the other: the next one comes when each message of the one before is acknowledged
    /// or its lease is over, then first what comes again. All programs of a group must pop alike.
    #[must_use]
    pub fn in_order(mut self) -> PopConsumer {
        self.in_order = true;
        self
    }

    /// Limits what is popped of a topic to some tags, `A || B`. All programs of a group must select alike: what one of them
    /// does not want is done for all.
    pub fn select(&mut self, topic: &str, tags: &str) -> Result<(), InvalidMessage> {
        let now_ms = self.client.0.env.clock.wall_ms();
        self.subscriptions.insert(topic.to_owned(), Subscription::by_tags(topic, tags, now_ms)?);
        Ok(())
    }

    /// Limits what is popped of a topic to messages whose properties satisfy an SQL92 expression; otherwise as
    /// [`PopConsumer::select`].
    pub fn select_sql(&mut self, topic: &str, expression: &str) -> Result<(), InvalidMessage> {
        let now_ms = self.client.0.env.clock.wall_ms();
        self.subscriptions.insert(topic.to_owned(), Subscription::by_sql(topic, expression, now_ms)?);
        Ok(())
    }

    /// The next messages of the topic that nobody of the group has; none if there were none within `wait`. An error only if
    /// no broker has answered in that time, also because nobody knows the topic: then ask again.
    ///
    /// Not cancel-safe: messages of an answer that nobody waits for come again when their leases are over.
    pub async fn pop(&self, topic: &str, wait: Duration) -> Result<Vec<PoppedMessage>, RequestError> {
        names::validate_topic(topic).map_err(InvalidMessage::from)?;
        let clock = &self.client.0.env.clock;
        let deadline = clock.monotonic() + wait;
        // In order, whoever asks again because an answer was lost may have the same batch.
        let attempt = self.in_order.then(|| format!("{:016x}", self.client.0.env.rng.u64()));
        let (mut answered, mut asked) = (false, 0);
        loop {
            let remaining = deadline.saturating_sub(clock.monotonic());
            // Without a route all that can be asked is where the topic is.
            let (brokers, popped) = match self.brokers(topic).await {
                Err(error) => (0, Err(error)),
                Ok(brokers) => {
                    let first = self.turn.fetch_add(1, Ordering::Relaxed);
                    let broker_name = &brokers[first % brokers.len()];
                    // All of them first, before one of them is waited for.
                    let patience = if asked + 1 < brokers.len() { Duration::ZERO } else { remaining.min(LONG_POLL) };
                    asked += 1;
                    (brokers.len(), self.pop_from(topic, broker_name, attempt.as_deref(), patience).await)
                }
            };
            let error = match popped {
                Ok(messages) if !messages.is_empty() => return Ok(messages),
                Ok(_) => {
                    answered = true;
                    None
                }
                Err(error) => Some(error),
            };
            let is_over = clock.monotonic() >= deadline && asked >= brokers;
            match error {
                Some(error) if is_over && !answered => return Err(error),
                Some(error) if !is_over => {
                    tracing::debug!(group = %self.group, topic, %error, "a pop failed");
                    // A failure may mean that the leader is another by now, or that the topic is not known yet.
                    let _ = self.client.0.routes.refresh(topic).await;
                    clock.sleep(PAUSE.min(deadline.saturating_sub(clock.monotonic()))).await;
                }
                _ if is_over => return Ok(Vec::new()),
                _ => {}
            }
        }
    }

    /// Names of the brokers that have queues to read.
    async fn brokers(&self, topic: &str) -> Result<Vec<String>, RequestError> {
        let route = self.client.0.routes.get(topic).await?;
        if route.is_template() {
            return Err(RouteError::TopicNotFound(topic.to_owned()).into());
        }
        let mut brokers: Vec<String> = route.read_queues.iter().map(|queue| queue.broker_name.clone()).collect();
        brokers.dedup();
        if brokers.is_empty() {
            return Err(RouteError::NoQueue { topic: topic.to_owned(), purpose: "read from" }.into());
        }
        Ok(brokers)
    }

    async fn pop_from(
        &self,
        topic: &str,
        broker_name: &str,
        attempt: Option<&str>,
        wait: Duration,
    ) -> Result<Vec<PoppedMessage>, RequestError> {
        let subscription = self.subscriptions.get(topic);
        let header = PopMessageRequest {
            consumer_group: self.group.to_string(),
            topic: topic.to_owned(),
            queue_id: ANY_QUEUE,
            max_msg_nums: self.messages_max,
            invisible_time: self.invisible.as_millis() as i64,
            poll_time: wait.as_millis() as i64,
            born_time: self.client.0.env.clock.wall_ms(),
            init_mode: i32::from(self.begins_at_end),
            exp_type: subscription.map(|subscription| subscription.data.expression_type.clone()),
            exp: subscription.map(|subscription| subscription.data.sub_string.clone()),
            broker_name: Some(broker_name.to_owned()),
            order: self.in_order,
            attempt_id: attempt.map(str::to_owned),
        };
        let request = RemotingCommand::request_with(RequestCode::POP_MESSAGE, &header);
        let answer = self.client.call_group(topic, broker_name, request, wait + PARKING_GRACE).await?;
        match answer.response_code() {
            ResponseCode::SUCCESS => {
                let messages = read(&answer, topic, broker_name)?;
                let wants = |message: &PoppedMessage| subscription.is_none_or(|wanted| wanted.wants(message));
                let (wanted, others): (Vec<_>, Vec<_>) = messages.into_iter().partition(wants);
                // Brokers select by the hash of a tag: what came by mistake is done for this group.
                if !others.is_empty()
                    && let Err(error) = self.ack_all(&others).await
                {
                    tracing::debug!(group = %self.group, topic, %error, "what is not wanted comes again");
                }
                Ok(wanted)
            }
            ResponseCode::POLLING_TIMEOUT | ResponseCode::POLLING_FULL | ResponseCode::PULL_NOT_FOUND => Ok(Vec::new()),
            _ => Err(RequestError::refused(&answer)),
        }
    }

    /// The message is done. `false`: its lease was over and somebody else has it, or it was given up; then it may be consumed
    /// once more, and what this program did with it should be undone where that matters.
    ///
    /// Asking again is always safe.
    pub async fn ack(&self, message: &PoppedMessage) -> Result<bool, RequestError> {
        let lease = &message.lease;
        let header = AckMessageRequest {
            consumer_group: self.group.to_string(),
            topic: lease.topic(&self.group, message.topic()),
            queue_id: lease.queue_id,
            extra_info: lease.to_string(),
            offset: lease.offset,
            broker_name: Some(lease.broker_name.clone()),
        };
        let request = RemotingCommand::request_with(RequestCode::ACK_MESSAGE, &header);
        Ok(self.ask(message, request).await?.is_some())
    }

    /// All of these are done, as far as their leases hold; `false` if one does not. With one request to each broker.
    pub async fn ack_all(&self, messages: &[PoppedMessage]) -> Result<bool, RequestError> {
        let mut by_broker: BTreeMap<&str, Vec<&PoppedMessage>> = BTreeMap::new();
        for message in messages {
            by_broker.entry(&message.lease.broker_name).or_default().push(message);
        }
        let mut all = true;
        for (broker_name, messages) in by_broker {
            let body = BatchAckRequest { acks: self.acks(&messages), broker_name: Some(broker_name.to_owned()) };
            let request = RemotingCommand::request(RequestCode::BATCH_ACK_MESSAGE).with_json(&body);
            all &= self.ask(messages[0], request).await?.is_some();
        }
        Ok(all)
    }

    /// One for each pop and queue that the messages come from, and each stretch of it: they say which with bit sets.
    fn acks(&self, messages: &[&PoppedMessage]) -> Vec<BatchAck> {
        let mut by_pop: BTreeMap<(String, i32, i64, i64), Vec<&Lease>> = BTreeMap::new();
        for PoppedMessage { message, lease } in messages {
            let topic = lease.topic(&self.group, message.topic());
            let stretch = lease.offset / STRETCH;
            by_pop.entry((topic, lease.queue_id, lease.pop_ms, stretch)).or_default().push(lease);
        }
        let ack = |((topic, queue_id, pop_time, _), leases): ((String, i32, i64, i64), Vec<&Lease>)| {
            let offsets: Vec<i64> = leases.iter().map(|lease| lease.offset).collect();
            let mut ack = BatchAck {
                consumer_group: self.group.to_string(),
                invisible_time: leases[0].invisible_ms,
                pop_time,
                queue_id,
                retry: leases[0].flag.clone(),
                revive_queue_id: leases[0].revive_qid,
                start_offset: offsets.iter().copied().min().unwrap_or(0),
                topic,
                ..BatchAck::default()
            };
            ack.set_offsets(&offsets);
            ack
        };
        by_pop.into_iter().map(ack).collect()
    }

    /// The message comes again after `time` from now, if it is not acknowledged before: more time for this program, or, with
    /// a short one, another try soon. `false`: its lease was over, nothing has changed.
    pub async fn change_invisible(&self, message: &mut PoppedMessage, time: Duration) -> Result<bool, RequestError> {
        let lease = &message.lease;
        let header = ChangeInvisibleTimeRequest {
            consumer_group: self.group.to_string(),
            topic: lease.topic(&self.group, message.topic()),
            queue_id: lease.queue_id,
            extra_info: lease.to_string(),
            offset: lease.offset,
            invisible_time: time.as_millis() as i64,
            broker_name: Some(lease.broker_name.clone()),
        };
        let request = RemotingCommand::request_with(RequestCode::CHANGE_MESSAGE_INVISIBLETIME, &header);
        // Not asked again without an answer: a lease that was changed has another name.
        let answer = self.client.ask_group(message.topic(), &lease.broker_name, request).await;
        let Some(answer) = held(answer)? else { return Ok(false) };
        let header: ChangeInvisibleTimeResponse =
            answer.header().map_err(|error| RequestError::Malformed(error.to_string()))?;
        let lease = &mut message.lease;
        lease.start_offset = lease.offset;
        (lease.pop_ms, lease.invisible_ms, lease.revive_qid) =
            (header.pop_time, header.invisible_time, header.revive_qid);
        Ok(true)
    }

    /// Asks the broker that has the message something that may be asked twice. `None`: the lease does not hold. What became of
    /// an attempt that nobody answered stays unknown whatever meets the next one, unless that is done.
    async fn ask(
        &self,
        message: &PoppedMessage,
        request: RemotingCommand,
    ) -> Result<Option<RemotingCommand>, RequestError> {
        let mut unknown = None;
        for _ in 0..ATTEMPTS {
            let answer = self.client.ask_group(message.topic(), &message.lease.broker_name, request.clone()).await;
            if let Some(known) = judged(answer, &mut unknown) {
                return known;
            }
        }
        Err(unknown.expect("it was asked, and not answered"))
    }
}

/// What an answer means when an earlier attempt may be `unknown`. `None`: this one is, and asking again may tell.
fn judged(
    answer: Result<RemotingCommand, RequestError>,
    unknown: &mut Option<RequestError>,
) -> Option<Result<Option<RemotingCommand>, RequestError>> {
    match held(answer) {
        // That this one was certainly not carried out says nothing of the other.
        Err(error) if error.is_retry_safe() => Some(Err(unknown.take().unwrap_or(error))),
        Err(error) => {
            *unknown = Some(error);
            None
        }
        known => Some(known),
    }
}

/// `None` if the lease does not hold.
fn held(answer: Result<RemotingCommand, RequestError>) -> Result<Option<RemotingCommand>, RequestError> {
    match answer {
        Err(error) if error.code() == Some(ResponseCode::NO_MESSAGE) => Ok(None),
        answer => answer.map(Some),
    }
}

/// The messages of an answer.
fn read(answer: &RemotingCommand, topic: &str, broker_name: &str) -> Result<Vec<PoppedMessage>, RequestError> {
    let malformed = |reason: String| RequestError::Malformed(reason);
    let header: PopMessageResponse = answer.header().map_err(|error| malformed(error.to_string()))?;
    let starts = header.start_offset_info.as_deref().unwrap_or_default();
    let start_of = |queue_id: i32| {
        let of_queue = starts.split(';').filter_map(|info| info.strip_prefix("0 ")?.split_once(' '));
        of_queue.filter(|(queue, _)| *queue == queue_id.to_string()).find_map(|(_, offset)| offset.parse().ok())
    };
    let mut messages = Vec::new();
    for record in record::split(&answer.body) {
        let record = record.map_err(|error| malformed(error.to_string()))?;
        let view = RecordView::parse(&record).map_err(|error| malformed(error.to_string()))?;
        let (queue_id, offset) = (view.queue_id(), view.queue_offset());
        let lease = match view.property(properties::POP_CK) {
            Some(text) => Lease::parse(text).ok_or_else(|| malformed(format!("{text:?} is no POP_CK")))?,
            None => Lease {
                start_offset: start_of(queue_id).unwrap_or(offset),
                pop_ms: header.pop_time.ok_or_else(|| malformed("a pop without popTime".to_owned()))?,
                invisible_ms: header.invisible_time.unwrap_or_default(),
                revive_qid: header.revive_qid.unwrap_or_default(),
                flag: "0".to_owned(),
                broker_name: broker_name.to_owned(),
                queue_id,
                offset,
            },
        };
        let queue = Arc::new(MessageQueue::new(topic, broker_name, queue_id));
        let message = ReceivedMessage::from_record(&record, &queue).map_err(|error| malformed(error.to_string()))?;
        messages.push(PoppedMessage { message, lease });
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_answered_stays_unknown_whatever_meets_the_next_attempt() {
        let lost = || Err(RequestError::Unknown("the connection is gone".to_owned()));
        let not_sent = || Err(RequestError::NotSent("refused".to_owned()));
        let over = || Err(RequestError::Refused { code: ResponseCode::NO_MESSAGE, remark: String::new() });
        let done = || Ok(RemotingCommand::request(RequestCode::ACK_MESSAGE));
        let mut unknown = None;
        assert!(matches!(judged(not_sent(), &mut unknown), Some(Err(RequestError::NotSent(_)))));
        assert!(matches!(judged(over(), &mut unknown), Some(Ok(None))));
        assert!(judged(lost(), &mut unknown).is_none());
        assert!(matches!(judged(not_sent(), &mut unknown), Some(Err(RequestError::Unknown(_)))));
        assert!(judged(lost(), &mut unknown).is_none());
        assert!(matches!(judged(over(), &mut unknown), Some(Ok(None))), "what is acknowledged already is so again");
        assert!(matches!(judged(done(), &mut unknown), Some(Ok(Some(_)))));
    }

    #[test]
    fn a_lease_is_what_java_calls_extra_info() {
        let text = "100 1700000000000 60000 3 0 broker-a 1 105";
        let lease = Lease::parse(text).expect("a lease");
        assert_eq!((lease.to_string().as_str(), lease.offset, lease.pop_ms), (text, 105, 1_700_000_000_000));
        assert_eq!(lease.topic("g", "T"), "T");
        assert_eq!(Lease { flag: "1".into(), ..lease.clone() }.topic("g", "T"), "%RETRY%g_T");
        assert_eq!(Lease { flag: "2".into(), ..lease }.topic("g", "T"), "%RETRY%g+T");
        for bad in ["", "1 2 3 4 0 b 5", "a 2 3 4 0 b 5 6", "1 2 3 4 0 b 5 6 7"] {
            assert_eq!(Lease::parse(bad), None, "{bad:?}");
        }
    }
}

//! Pull consumer: the program says which queues, asks for messages when it wants some, and decides which offsets are
//! stored and when.
//!
//! One pull per queue is on its way at any time; what comes waits for the next [`PullConsumer::poll`]. There is no group
//! membership: whoever assigns the same queue twice gets its messages twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use protocol::body::MessageQueue;
use protocol::names;

use crate::builder::Client;
use crate::consumer::StartFrom;
use crate::errors::{InvalidMessage, RequestError, RouteError};
use crate::message::ReceivedMessage;
use crate::pull::{LONG_POLL, Pull, Pulled, Subscription};

const PULL_MESSAGES: i32 = 32;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Reads queues at the program's own pace; made with [`Client::pull_consumer`].
///
/// ```no_run
/// use client::{Client, StartFrom};
/// use std::time::Duration;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder().name_servers("127.0.0.1:9876").build()?;
/// let mut consumer = client.pull_consumer("audit")?;
/// let queues = consumer.queues("Orders").await?;
/// consumer.assign(&queues, StartFrom::First).await?;
/// loop {
///     for message in consumer.poll(Duration::from_secs(5)).await? {
///         println!("{} {:?}", message.queue_offset(), message.body());
///     }
///     consumer.commit().await?;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct PullConsumer {
    client: Client,
    group: Arc<str>,
    /// What is wanted of a topic; everything if it is not here.
    subscriptions: BTreeMap<String, Arc<Subscription>>,
    positions: BTreeMap<Arc<MessageQueue>, Position>,
    pulls: Pulls,
    /// Counts assignments and seeks, so that the answer to a pull made before one is known as such.
    epoch: u64,
}

#[derive(Debug)]
struct Position {
    /// The next offset to be given to the program.
    next: i64,
    /// The offset last stored.
    committed: Option<i64>,
    epoch: u64,
    is_pulling: bool,
    suggested_id: i64,
    failures: u32,
}

/// Pulls on their way. Behind a lock that is never contended, because futures are not `Sync`, and without it a shared
/// consumer could not be used across an await.
#[derive(Debug, Default)]
struct Pulls(Mutex<FuturesUnordered<BoxFuture<'static, Arrival>>>);

impl Pulls {
    fn all(&mut self) -> &mut FuturesUnordered<BoxFuture<'static, Arrival>> {
        self.0.get_mut()
    }
}

/// The answer to a pull.
struct Arrival {
    queue: Arc<MessageQueue>,
    epoch: u64,
    pulled: Result<Pulled, RequestError>,
}

impl PullConsumer {
    pub(crate) fn new(client: &Client, group: String) -> Result<PullConsumer, InvalidMessage> {
        names::validate_group(&group)?;
        Ok(PullConsumer {
            client: client.clone(),
            group: group.into(),
            subscriptions: BTreeMap::new(),
            positions: BTreeMap::new(),
            pulls: Pulls::default(),
            epoch: 0,
        })
    }

    /// The group that owns the offsets.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The queues of a topic that can be read.
    pub async fn queues(&self, topic: &str) -> Result<Vec<MessageQueue>, RequestError> {
        names::validate_topic(topic).map_err(InvalidMessage::from)?;
        let route = self.client.0.routes.get(topic).await?;
        if route.is_template() {
            return Err(RouteError::TopicNotFound(topic.to_owned()).into());
        }
        Ok(route.read_queues.iter().map(|queue| (**queue).clone()).collect())
    }

    /// Limits what is read of a topic to some tags, `A || B`; `*` for all, which is the default. Holds for pulls made
    /// from now on.
    pub fn select(&mut self, topic: &str, tags: &str) -> Result<(), InvalidMessage> {
        let now_ms = self.client.0.env.clock.wall_ms();
        let subscription = Subscription::by_tags(topic, tags, now_ms)?;
        self.subscriptions.insert(topic.to_owned(), Arc::new(subscription));
        Ok(())
    }

    /// Limits what is read of a topic to messages whose properties satisfy an SQL92 expression. Holds for pulls made from
    /// now on.
    pub fn select_sql(&mut self, topic: &str, expression: &str) -> Result<(), InvalidMessage> {
        let now_ms = self.client.0.env.clock.wall_ms();
        let subscription = Subscription::by_sql(topic, expression, now_ms)?;
        self.subscriptions.insert(topic.to_owned(), Arc::new(subscription));
        Ok(())
    }

    /// Reads these queues from now on, and no others. Queues assigned before keep their position; others begin at the
    /// offset the group has stored, or where `start` says.
    ///
    /// On an error the assignment is as it was.
    pub async fn assign(&mut self, queues: &[MessageQueue], start: StartFrom) -> Result<(), RequestError> {
        let mut entered = Vec::new();
        for queue in queues {
            if self.positions.contains_key(queue) {
                continue;
            }
            let committed = self.client.consumer_offset(&self.group, queue, false).await?;
            let next = match (committed, start) {
                (Some(offset), _) => offset,
                (None, StartFrom::First) => self.client.min_offset(queue).await?,
                (None, StartFrom::Last) => self.client.max_offset(queue).await?,
                (None, StartFrom::Time(time_ms)) => self.client.offset_at(queue, time_ms).await?,
            };
            entered.push((Arc::new(queue.clone()), next, committed));
        }
        self.positions.retain(|queue, _| queues.contains(queue));
        for (queue, next, committed) in entered {
            self.epoch += 1;
            let position =
                Position { next, committed, epoch: self.epoch, is_pulling: false, suggested_id: 0, failures: 0 };
            self.positions.insert(queue, position);
        }
        Ok(())
    }

    /// The queues it reads.
    pub fn assigned(&self) -> impl Iterator<Item = &MessageQueue> {
        self.positions.keys().map(|queue| &**queue)
    }

    /// The next messages of one of the queues, at most 32; none if none came within `wait`. An error only if no queue
    /// could be read: then ask again.
    ///
    /// Cancel-safe: messages are given out in the step in which the future ends.
    pub async fn poll(&mut self, wait: Duration) -> Result<Vec<ReceivedMessage>, RequestError> {
        let clock = self.client.0.env.clock.clone();
        let deadline = clock.monotonic() + wait;
        let mut last_error = None;
        loop {
            self.start_pulls();
            let remaining = deadline.saturating_sub(clock.monotonic());
            let arrival = tokio::select! {
                biased;
                Some(arrival) = self.pulls.all().next() => arrival,
                () = clock.sleep(remaining) => {
                    let all_failed = self.positions.values().all(|position| position.failures > 0);
                    return match last_error {
                        Some(error) if all_failed => Err(error),
                        _ => Ok(Vec::new()),
                    };
                }
            };
            match self.take_in(arrival) {
                Ok(messages) if messages.is_empty() => {}
                Ok(messages) => return Ok(messages),
                Err(error) => last_error = Some(error),
            }
        }
    }

    /// Takes in the answer to a pull; the messages to give out.
    fn take_in(&mut self, arrival: Arrival) -> Result<Vec<ReceivedMessage>, RequestError> {
        let current = self.positions.get_mut(&arrival.queue).filter(|position| position.epoch == arrival.epoch);
        // Assigned away, or sought elsewhere, since the pull was made.
        let Some(position) = current else { return Ok(Vec::new()) };
        position.is_pulling = false;
        position.failures = if arrival.pulled.is_ok() { 0 } else { position.failures + 1 };
        match arrival.pulled? {
            Pulled::Found { messages, next, suggested_id } => {
                (position.next, position.suggested_id) = (next, suggested_id);
                Ok(messages)
            }
            Pulled::Nothing { next, suggested_id } => {
                (position.next, position.suggested_id) = (position.next.max(next), suggested_id);
                Ok(Vec::new())
            }
            Pulled::OffsetMoved { to } => {
                let queue = &arrival.queue;
                tracing::warn!(group = %self.group, ?queue, from = position.next, to, "offset outside the queue");
                position.next = to;
                Ok(Vec::new())
            }
        }
    }

    /// Makes sure that every queue has a pull on its way.
    fn start_pulls(&mut self) {
        for (queue, position) in self.positions.iter_mut().filter(|(_, position)| !position.is_pulling) {
            position.is_pulling = true;
            let subscription = self.subscriptions.entry(queue.topic.clone()).or_insert_with(|| {
                let all = Subscription::by_tags(&queue.topic, "*", self.client.0.env.clock.wall_ms());
                Arc::new(all.expect("`*` is a tag expression"))
            });
            let (client, group, subscription) = (self.client.clone(), self.group.clone(), subscription.clone());
            let (queue, epoch) = (queue.clone(), position.epoch);
            let (offset, suggested_id, failures) = (position.next, position.suggested_id, position.failures);
            self.pulls.all().push(Box::pin(async move {
                if failures > 0 {
                    // A failure may mean that the leader is another by now.
                    let _ = client.0.routes.refresh(&queue.topic).await;
                    client.0.env.clock.sleep((FIRST_PAUSE * (1 << (failures - 1).min(8))).min(LONGEST_PAUSE)).await;
                }
                let pull = Pull {
                    group: &group,
                    queue: &queue,
                    offset,
                    max_messages: PULL_MESSAGES,
                    wait: LONG_POLL,
                    subscription: &subscription,
                    suggested_id,
                    failures,
                };
                let pulled = pull.make(&client).await;
                Arrival { queue, epoch, pulled }
            }));
        }
    }

    /// Goes on at `offset` in a queue; `false` if it is not assigned.
    pub fn seek(&mut self, queue: &MessageQueue, offset: i64) -> bool {
        self.epoch += 1;
        let position = self.positions.get_mut(queue);
        let is_assigned = position.is_some();
        if let Some(position) = position {
            position.next = offset;
            position.epoch = self.epoch;
            position.is_pulling = false;
        }
        is_assigned
    }

    /// The offset behind the last message that [`PullConsumer::poll`] gave out.
    pub fn position(&self, queue: &MessageQueue) -> Option<i64> {
        self.positions.get(queue).map(|position| position.next)
    }

    /// Stores the position of every queue as the group's offset, lower or higher than what is stored, and waits until
    /// the brokers have it. On an error some may be stored.
    pub async fn commit(&mut self) -> Result<(), RequestError> {
        for (queue, position) in &mut self.positions {
            if position.committed != Some(position.next) {
                self.client.update_offset(&self.group, queue, position.next).await?;
                position.committed = Some(position.next);
            }
        }
        Ok(())
    }

    /// Stores an offset for a queue, assigned or not.
    pub async fn commit_offset(&mut self, queue: &MessageQueue, offset: i64) -> Result<(), RequestError> {
        self.client.update_offset(&self.group, queue, offset).await?;
        if let Some(position) = self.positions.get_mut(queue) {
            position.committed = Some(offset);
        }
        Ok(())
    }

    /// The offset that the group has stored for a queue.
    pub async fn committed(&self, queue: &MessageQueue) -> Result<Option<i64>, RequestError> {
        self.client.consumer_offset(&self.group, queue, false).await
    }

    /// The queue's first offset.
    pub async fn min_offset(&self, queue: &MessageQueue) -> Result<i64, RequestError> {
        self.client.min_offset(queue).await
    }

    /// The offset that the queue's next message will get.
    pub async fn max_offset(&self, queue: &MessageQueue) -> Result<i64, RequestError> {
        self.client.max_offset(queue).await
    }

    /// The offset of the first message stored at `time_ms` or later.
    pub async fn offset_at(&self, queue: &MessageQueue, time_ms: i64) -> Result<i64, RequestError> {
        self.client.offset_at(queue, time_ms).await
    }
}

//! Session: one consumer as a member of its group. Decides which queues it has, starts and ends them, keeps their locks,
//! stores their offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use futures::{FutureExt, future};
use parking_lot::Mutex;
use protocol::body::{
    ConsumeFromWhere, ConsumeMessageDirectlyResult, ConsumeResult, ConsumeType, ConsumerData, ConsumerIdList,
    ConsumerRunningInfo, MessageModel, MessageQueue,
};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::ConsumerGroupRequest;
use protocol::names;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

use super::handler::{AnyHandler, Retry, When};
use super::local_offsets::LocalOffsets;
use super::orderly::{self, RENEWAL_INTERVAL};
use super::owned_queue::{Ending, OwnedQueue};
use super::process_queue::CacheLimits;
use super::work::Work;
use super::{concurrent, queue_task};
use crate::allocate;
use crate::builder::Client;
use crate::errors::{RequestError, RouteError};
use crate::membership::{self, stop_wanted};
use crate::message::ReceivedMessage;
use crate::producer::Producer;
use crate::pull::Subscription;
use crate::trace::Consumption;

const REBALANCE_INTERVAL: Duration = Duration::from_secs(20);
/// Until the next rebalance if something was missing in the last one.
const REBALANCE_RETRY: Duration = Duration::from_secs(1);
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// An offset that has not changed is told again after this long: one-way updates get lost.
const TELL_AGAIN: Duration = Duration::from_secs(30);

/// Where a group begins in a queue of which it has stored no offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartFrom {
    /// Behind the newest message, RocketMQ's default. In a queue that still has its very first message: there, as
    /// RocketMQ's brokers have it.
    #[default]
    Last,
    /// At the oldest message.
    First,
    /// At the first message stored at this time or later, ms since the epoch.
    Time(i64),
}

/// In which order a queue's messages are consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Concurrent,
    Orderly,
}

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) group: String,
    pub(crate) start_from: StartFrom,
    pub(crate) concurrency: usize,
    pub(crate) pull_messages: i32,
    pub(crate) cache: CacheLimits,
    pub(crate) max_reconsume_times: Option<i32>,
    pub(crate) consume_timeout: Duration,
    pub(crate) orderly_pause: Duration,
    pub(crate) shutdown_timeout: Duration,
}

/// Where the group's offsets are.
#[derive(Debug)]
pub(crate) enum Offsets {
    /// Clustering: at the brokers, one per group.
    Broker,
    /// Broadcasting: in a file, one per client.
    Local(LocalOffsets),
}

pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) order: Order,
    pub(crate) offsets: Offsets,
    /// By topic; with the group's own retry topic when clustering.
    pub(crate) subscriptions: BTreeMap<String, Subscription>,
    handler: Box<dyn AnyHandler>,
    /// Also those that have ended and are not yet concluded: a queue is given to a new task only after that.
    queues: Mutex<BTreeMap<Arc<MessageQueue>, Arc<OwnedQueue>>>,
    pub(crate) work: Work,
    /// Orderly: handlers that may run at once.
    pub(crate) slots: Semaphore,
    /// Sends what cannot be given back any other way.
    pub(crate) give_back: Producer,
    rebalance_wanted: Notify,
    started_ms: i64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Queues this member is to have, for each topic about which that is known.
type Plan = BTreeMap<String, BTreeSet<Arc<MessageQueue>>>;

impl Session {
    pub(crate) fn new(
        client: &Client,
        settings: Settings,
        order: Order,
        offsets: Offsets,
        subscriptions: BTreeMap<String, Subscription>,
        handler: Box<dyn AnyHandler>,
    ) -> Session {
        Session {
            give_back: Producer::internal(client, client.0.request_timeout),
            client: client.clone(),
            slots: Semaphore::new(settings.concurrency),
            settings,
            order,
            offsets,
            subscriptions,
            handler,
            queues: Mutex::new(BTreeMap::new()),
            work: Work::new(),
            rebalance_wanted: Notify::new(),
            started_ms: client.0.env.clock.wall_ms(),
        }
    }

    pub(crate) fn group(&self) -> &str {
        &self.settings.group
    }

    pub(crate) fn is_broadcasting(&self) -> bool {
        matches!(self.offsets, Offsets::Local(_))
    }

    pub(crate) fn needs_locks(&self) -> bool {
        self.order == Order::Orderly && !self.is_broadcasting()
    }

    pub(crate) fn owned(&self) -> Vec<Arc<OwnedQueue>> {
        self.queues.lock().values().cloned().collect()
    }

    /// Runs the handler. A panic in it is a failure of the message.
    pub(crate) async fn handle(&self, message: Arc<ReceivedMessage>) -> Result<(), Retry> {
        let traced = Consumption::begin(&self.client, self.group(), &message);
        let handling = AssertUnwindSafe(async { self.handler.handle(message.clone()).await });
        let handled = handling.catch_unwind().await.unwrap_or_else(|_| Err(Retry::later("the handler panicked")));
        if let Some(traced) = traced {
            traced.end(&handled);
        }
        handled
    }

    /// Resolves a while after the queue has ended: what has not come to an end by then is left.
    pub(crate) async fn patience_after_end(&self, owned: &OwnedQueue) {
        owned.ended().await;
        self.client.0.env.clock.sleep(self.settings.shutdown_timeout).await;
    }

    /// Runs the consumer until `stopped` says so or is dropped, and to a good end after it.
    pub(crate) async fn run(self: Arc<Session>, stopped: watch::Receiver<bool>) {
        let mut helpers = JoinSet::new();
        if self.order == Order::Concurrent {
            for _ in 0..self.settings.concurrency {
                helpers.spawn(concurrent::work(self.clone()));
            }
        }
        helpers.spawn(flush_regularly(self.clone(), stopped.clone()));
        if self.needs_locks() {
            helpers.spawn(renew_regularly(self.clone(), stopped.clone()));
        }
        self.own_queues(stopped).await;
        self.work.close();
        // Workers that are still busy have outlived the patience with their queues.
        helpers.shutdown().await;
        if let Offsets::Local(offsets) = &self.offsets
            && let Err(error) = offsets.flush().await
        {
            tracing::warn!(group = self.group(), %error, "offsets not stored; messages will come again");
        }
        self.client.0.callbacks.leave(self.group());
        membership::leave(&self.client, None, Some(self.group())).await;
    }

    /// Takes and gives up queues as the group changes, and all of them up in the end.
    async fn own_queues(self: &Arc<Session>, mut stopped: watch::Receiver<bool>) {
        let clock = self.client.0.env.clock.clone();
        let mut routes_changed = self.client.0.routes.changes();
        let mut tasks = FuturesUnordered::new();
        let mut rebalance_at = clock.monotonic();
        loop {
            let rebalance = async {
                clock.sleep(rebalance_at.saturating_sub(clock.monotonic())).await;
                self.plan().await
            };
            let (plan, is_complete) = tokio::select! {
                biased;
                () = stop_wanted(&mut stopped) => break,
                Some(ended) = tasks.next() => {
                    self.forget(ended);
                    rebalance_at = clock.monotonic();
                    continue;
                }
                () = self.rebalance_wanted.notified() => {
                    rebalance_at = clock.monotonic();
                    continue;
                }
                Ok(()) = routes_changed.changed() => {
                    rebalance_at = clock.monotonic();
                    continue;
                }
                planned = rebalance => planned,
            };
            for owned in self.take_over(&plan) {
                let queue = owned.queue.clone();
                let task = tokio::spawn(queue_task::run(self.clone(), owned));
                tasks.push(async move { (queue, task.await) });
            }
            rebalance_at = clock.monotonic() + if is_complete { REBALANCE_INTERVAL } else { REBALANCE_RETRY };
        }
        for owned in self.owned() {
            owned.end(Ending::Shutdown);
        }
        while let Some(ended) = tasks.next().await {
            self.forget(ended);
        }
    }

    fn forget(&self, (queue, ended): (Arc<MessageQueue>, Result<(), tokio::task::JoinError>)) {
        if let Err(error) = ended {
            tracing::error!(group = self.group(), ?queue, %error, "the task of a queue failed");
        }
        self.queues.lock().remove(&queue);
    }

    /// Ends the queues that are not in the plan, and enters those that are new; returns the new ones.
    fn take_over(&self, plan: &Plan) -> Vec<Arc<OwnedQueue>> {
        let mut queues = self.queues.lock();
        for (queue, owned) in queues.iter() {
            if plan.get(&queue.topic).is_some_and(|planned| !planned.contains(queue)) {
                owned.end(Ending::Released);
            }
        }
        let mut entered = Vec::new();
        for queue in plan.values().flatten() {
            if !queues.contains_key(queue) {
                let owned = Arc::new(OwnedQueue::new(queue));
                queues.insert(queue.clone(), owned.clone());
                entered.push(owned);
            }
        }
        entered
    }

    /// The plan, and whether it covers all topics.
    async fn plan(&self) -> (Plan, bool) {
        let topics = self.subscriptions.keys().map(|topic| async move { (topic, self.share(topic).await) });
        let mut plan = Plan::new();
        let mut is_complete = true;
        for (topic, share) in future::join_all(topics).await {
            match share {
                Ok(Some(queues)) => drop(plan.insert(topic.clone(), queues)),
                Ok(None) => is_complete = false,
                Err(error) => {
                    tracing::debug!(group = self.group(), topic, %error, "queues stay as they are");
                    is_complete = false;
                }
            }
        }
        (plan, is_complete)
    }

    /// This member's queues of a topic; `None` if that cannot be told now.
    async fn share(&self, topic: &str) -> Result<Option<BTreeSet<Arc<MessageQueue>>>, RequestError> {
        let route = match self.client.0.routes.get(topic).await {
            Ok(route) if !route.is_template() => route,
            // The topic does not exist yet; a retry topic does once a broker has heard the first heartbeat.
            Ok(_) | Err(RouteError::TopicNotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if self.is_broadcasting() {
            return Ok(Some(route.read_queues.iter().cloned().collect()));
        }
        let Some(client_id) = self.client.client_id() else { return Ok(None) };
        let brokers: Vec<&str> = route.brokers.iter().map(|broker| broker.name.as_str()).collect();
        for attempt in 0..2 {
            let members = self.members(topic, &brokers).await?;
            if let Some(share) = allocate::share_of(&route.read_queues, &members, client_id) {
                return Ok(Some(share.into_iter().collect()));
            }
            // The broker has forgotten this member, as one that has just become leader may have.
            if attempt == 0 {
                membership::heartbeat(&self.client).await;
            }
        }
        Ok(None)
    }

    /// The group's members, as the first broker group that answers knows them. All members ask in the same order, so
    /// that they divide by the same list.
    async fn members(&self, topic: &str, brokers: &[&str]) -> Result<Vec<String>, RequestError> {
        let header = ConsumerGroupRequest { consumer_group: self.group().to_owned(), broker_name: None };
        let mut error = RequestError::NotSent("the route has no broker".to_owned());
        for broker_name in brokers {
            let request = RemotingCommand::request_with(RequestCode::GET_CONSUMER_LIST_BY_GROUP, &header);
            match self.client.ask_group(topic, broker_name, request).await {
                Ok(response) => {
                    let body: ConsumerIdList =
                        response.json().map_err(|error| RequestError::Malformed(error.to_string()))?;
                    return Ok(body.consumer_id_list);
                }
                Err(reason) => error = reason,
            }
        }
        Err(error)
    }

    /// Tells brokers, or the file, how far each queue has come.
    async fn flush(&self) {
        let now = self.client.0.env.clock.monotonic();
        match &self.offsets {
            Offsets::Broker => {
                for owned in self.owned() {
                    if owned.ending().is_some() {
                        continue;
                    }
                    let Some(offset) = owned.offset_to_tell(now, TELL_AGAIN) else { continue };
                    if let Err(error) = self.client.tell_offset(self.group(), &owned.queue, offset).await {
                        tracing::debug!(group = self.group(), queue = ?owned.queue, %error, "offset not told");
                    }
                }
            }
            Offsets::Local(offsets) => {
                for owned in self.owned() {
                    if let Some(offset) = owned.progress().filter(|_| owned.ending().is_none()) {
                        offsets.set(&owned.queue, offset);
                    }
                }
                if let Err(error) = offsets.flush().await {
                    tracing::warn!(group = self.group(), %error, "offsets not stored");
                }
            }
        }
    }
}

async fn flush_regularly(session: Arc<Session>, mut stopped: watch::Receiver<bool>) {
    let clock = session.client.0.env.clock.clone();
    loop {
        tokio::select! {
            biased;
            () = stop_wanted(&mut stopped) => return,
            () = clock.sleep(FLUSH_INTERVAL) => session.flush().await,
        }
    }
}

async fn renew_regularly(session: Arc<Session>, _stopped: watch::Receiver<bool>) {
    // Goes on during the shutdown: handlers that are being waited for hold their locks.
    let clock = session.client.0.env.clock.clone();
    loop {
        clock.until_elapsed(clock.elapsed() + RENEWAL_INTERVAL).await;
        orderly::renew(&session).await;
    }
}

/// What brokers and tools ask.
impl Session {
    /// The group has changed: 40.
    pub(crate) fn members_changed(&self) {
        self.rebalance_wanted.notify_one();
    }

    /// Somebody wants the group to go on elsewhere: 220.
    pub(crate) fn reset_offsets(&self, offsets: &BTreeMap<MessageQueue, i64>) {
        let queues = self.queues.lock();
        for (queue, offset) in offsets {
            if let Some(owned) = queues.get(queue) {
                tracing::info!(group = self.group(), ?queue, offset, "offset reset");
                owned.end(Ending::Reset(*offset));
            }
        }
    }

    /// How far the queues of a topic have come: 221.
    pub(crate) fn progress_of(&self, topic: &str) -> BTreeMap<MessageQueue, i64> {
        let of_topic = self.owned().into_iter().filter(|owned| owned.queue.topic == topic);
        of_topic.filter_map(|owned| Some(((*owned.queue).clone(), owned.progress()?))).collect()
    }

    /// What it says of itself in heartbeats: 34.
    pub(crate) fn membership(&self) -> ConsumerData {
        ConsumerData {
            consume_from_where: match self.settings.start_from {
                StartFrom::Last => ConsumeFromWhere::LastOffset,
                StartFrom::First => ConsumeFromWhere::FirstOffset,
                StartFrom::Time(_) => ConsumeFromWhere::Timestamp,
            },
            consume_type: ConsumeType::Passively,
            group_name: self.group().to_owned(),
            message_model: if self.is_broadcasting() { MessageModel::Broadcasting } else { MessageModel::Clustering },
            subscription_data_set: self.subscriptions.values().map(|wanted| wanted.data.clone()).collect(),
            unit_mode: false,
        }
    }

    /// What tools show of it: 307.
    pub(crate) fn running_info(&self) -> ConsumerRunningInfo {
        let now = self.client.0.env.clock.elapsed();
        let properties = [
            ("PROP_CLIENT_VERSION", concat!("raftmq-client ", env!("CARGO_PKG_VERSION")).to_owned()),
            ("PROP_CONSUME_TYPE", ConsumeType::Passively.name().to_owned()),
            ("PROP_CONSUMEORDERLY", (self.order == Order::Orderly).to_string()),
            ("PROP_CONSUMER_START_TIMESTAMP", self.started_ms.to_string()),
            ("PROP_NAMESERVER_ADDR", self.client.name_servers().join(";")),
            ("PROP_THREADPOOL_CORE_SIZE", self.settings.concurrency.to_string()),
        ];
        ConsumerRunningInfo {
            mq_table: self.owned().iter().map(|owned| ((*owned.queue).clone(), owned.info(now))).collect(),
            properties: properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            subscription_set: self.subscriptions.values().map(|wanted| wanted.data.clone()).collect(),
            ..ConsumerRunningInfo::default()
        }
    }

    /// Consumes a message that a tool hands over: 309. Its outcome is the tool's to know and no one else's.
    pub(crate) async fn consume_directly(&self, message: ReceivedMessage) -> ConsumeMessageDirectlyResult {
        let clock = &self.client.0.env.clock;
        let begun = clock.monotonic();
        let handled = self.handle(Arc::new(message)).await;
        let (consume_result, remark) = match handled {
            Ok(()) => (ConsumeResult::Success, None),
            Err(Retry { when: When::Never, .. }) => (ConsumeResult::Rollback, Some("dead letter".to_owned())),
            Err(retry) => (ConsumeResult::Later, Some(retry.reason().to_owned())),
        };
        ConsumeMessageDirectlyResult {
            auto_commit: true,
            consume_result,
            order: self.order == Order::Orderly,
            remark,
            spent_time_mills: (clock.monotonic() - begun).as_millis() as i64,
        }
    }

    /// The queues it consumes now.
    pub(crate) fn assigned(&self) -> Vec<MessageQueue> {
        let active = self.owned().into_iter().filter(|owned| owned.ending().is_none());
        active
            .filter(|owned| !self.is_own_retry_topic(&owned.queue.topic))
            .map(|owned| (*owned.queue).clone())
            .collect()
    }

    fn is_own_retry_topic(&self, topic: &str) -> bool {
        names::group_of_retry_topic(topic) == Some(self.group())
    }
}

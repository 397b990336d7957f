//! Push consumer: messages come to the program's handler.
//!
//! ```text
//! session     which queues are ours: heartbeat, member list, AVG          one task
//!   queue_task    one queue: start offset, pulls, end                     one task each
//!     concurrent    workers consume, failures are given back              a fixed number of tasks
//!     orderly       one at a time under the queue's lock                  in the queue's task
//! process_queue   what is here and unfinished, and so: the offset to store       pure
//! ```

mod concurrent;
mod handler;
mod local_offsets;
mod orderly;
mod owned_queue;
pub(crate) mod process_queue;
mod queue_task;
mod send_back;
pub(crate) mod session;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protocol::body::{CheckClientRequest, MessageQueue};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::names;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use handler::{Handler, Retry};
pub use session::StartFrom;

use crate::builder::Client;
use crate::deliveries::{self, Deliveries};
use crate::errors::{ConfigError, InvalidMessage, RouteError, StartError};
use crate::membership;
use crate::pull::Subscription;
use local_offsets::LocalOffsets;
use process_queue::CacheLimits;
use session::{Offsets, Order, Session, Settings};

/// Builds a [`PushConsumer`].
#[derive(Debug)]
#[must_use]
pub struct PushConsumerBuilder {
    client: Client,
    settings: Settings,
    wanted: BTreeMap<String, Wanted>,
    offset_directory: Option<PathBuf>,
}

#[derive(Debug)]
enum Wanted {
    Tags(String),
    Sql(String),
}

impl PushConsumerBuilder {
    pub(crate) fn new(client: &Client, group: String) -> PushConsumerBuilder {
        let settings = Settings {
            group,
            start_from: StartFrom::default(),
            concurrency: 20,
            pull_messages: 32,
            cache: CacheLimits { messages: 1000, bytes: 100 * 1024 * 1024, span: 2000 },
            max_reconsume_times: None,
            consume_timeout: Duration::from_secs(15 * 60),
            orderly_pause: Duration::from_secs(1),
            shutdown_timeout: Duration::from_secs(10),
        };
        PushConsumerBuilder { client: client.clone(), settings, wanted: BTreeMap::new(), offset_directory: None }
    }

    /// Consumes a topic: all of it with `*`, or messages with one of some tags, `A || B`. All members of a group must
    /// subscribe to the same.
    pub fn subscribe(mut self, topic: impl Into<String>, tags: impl Into<String>) -> PushConsumerBuilder {
        self.wanted.insert(topic.into(), Wanted::Tags(tags.into()));
        self
    }

    /// Consumes the messages of a topic whose properties satisfy an SQL92 expression, such as
    /// `region = 'eu' AND (amount >= 100 OR vip IS NOT NULL)`. The broker evaluates it; a property's value counts as a
    /// number where it is compared with one. An expression that makes no sense, here or to a broker, is an error at the
    /// start.
    pub fn subscribe_sql(mut self, topic: impl Into<String>, expression: impl Into<String>) -> PushConsumerBuilder {
        self.wanted.insert(topic.into(), Wanted::Sql(expression.into()));
        self
    }

    /// Where to begin in a queue of which the group has stored no offset.
    pub fn start_from(mut self, start: StartFrom) -> PushConsumerBuilder {
        self.settings.start_from = start;
        self
    }

    /// Every client gets every message. Offsets are kept in `directory`, in a file per group that one client at a time
    /// may use. There is no retry: a message that fails is not delivered again.
    pub fn broadcasting(mut self, directory: impl Into<PathBuf>) -> PushConsumerBuilder {
        self.offset_directory = Some(directory.into());
        self
    }

    /// Handlers that may run at once; 20 by default.
    pub fn concurrency(mut self, handlers: usize) -> PushConsumerBuilder {
        self.settings.concurrency = handlers;
        self
    }

    /// Messages asked for at once; 32 by default.
    pub fn pull_messages(mut self, messages: i32) -> PushConsumerBuilder {
        self.settings.pull_messages = messages;
        self
    }

    /// Messages and bytes of one queue that may wait here; 1000 and 100 MiB by default.
    pub fn cache(mut self, messages: usize, bytes: usize) -> PushConsumerBuilder {
        self.settings.cache.messages = messages;
        self.settings.cache.bytes = bytes;
        self
    }

    /// How often a message may fail before it goes to the dead-letter queue. By default the group's own setting (16) for
    /// a concurrent consumer, and without end for an orderly one.
    pub fn max_reconsume_times(mut self, times: u16) -> PushConsumerBuilder {
        self.settings.max_reconsume_times = Some(times.into());
        self
    }

    /// How long a concurrent handler may take before the message counts as failed; 15 minutes by default.
    pub fn consume_timeout(mut self, limit: Duration) -> PushConsumerBuilder {
        self.settings.consume_timeout = limit;
        self
    }

    /// How long an orderly consumer waits before it tries a failed message again; 1 s by default.
    pub fn orderly_pause(mut self, pause: Duration) -> PushConsumerBuilder {
        self.settings.orderly_pause = pause;
        self
    }

    /// How long a shutdown waits for handlers; 10 s by default.
    pub fn shutdown_timeout(mut self, limit: Duration) -> PushConsumerBuilder {
        self.settings.shutdown_timeout = limit;
        self
    }

    /// Starts to consume, several messages at once and in any order.
    pub async fn start(self, handler: impl Handler) -> Result<PushConsumer, StartError> {
        self.start_as(Order::Concurrent, handler).await
    }

    /// Starts to consume one message of each queue at a time, in order.
    pub async fn start_orderly(self, handler: impl Handler) -> Result<PushConsumer, StartError> {
        self.start_as(Order::Orderly, handler).await
    }

    /// Starts to consume, and lets the program take the messages itself: several may be out at once, in any order.
    pub async fn deliveries(self) -> Result<Deliveries, StartError> {
        self.deliveries_as(Order::Concurrent).await
    }

    /// Starts to consume in order, and lets the program take the messages itself: of each queue, the next one comes when the
    /// one before is acknowledged.
    pub async fn deliveries_orderly(self) -> Result<Deliveries, StartError> {
        self.deliveries_as(Order::Orderly).await
    }

    async fn deliveries_as(mut self, order: Order) -> Result<Deliveries, StartError> {
        // What waits to be taken from the stream takes no time; and in order, the next one must not come beside this one.
        let limit = std::mem::replace(&mut self.settings.consume_timeout, Duration::MAX);
        let limit = if order == Order::Orderly { Duration::MAX } else { limit };
        let (offering, offers) = deliveries::offering(&self.client.0.env.clock, limit);
        Ok(Deliveries::new(self.start_as(order, offering).await?, offers))
    }

    async fn start_as(mut self, order: Order, handler: impl Handler) -> Result<PushConsumer, StartError> {
        self.check()?;
        if order == Order::Orderly {
            // The messages behind a slow one wait anyway.
            self.settings.cache.span = i64::MAX;
        }
        let client = &self.client;
        client.0.routes.reach_name_server().await?;
        let subscriptions = self.subscriptions()?;
        for (topic, wanted) in &self.wanted {
            match client.0.routes.get(topic).await {
                Ok(route) if !route.is_template() => {}
                Ok(_) | Err(RouteError::TopicNotFound(_)) => {
                    tracing::warn!(topic, group = self.settings.group, "the topic does not exist yet");
                    continue;
                }
                Err(error) => return Err(StartError::Request(error.into())),
            }
            if let Wanted::Sql(_) = wanted {
                self.check_at_broker(topic, &subscriptions[topic]).await?;
            }
        }
        let offsets = match &self.offset_directory {
            Some(directory) => {
                Offsets::Local(LocalOffsets::open(&client.0.env, directory, &self.settings.group).await?)
            }
            None => Offsets::Broker,
        };
        let session = Arc::new(Session::new(client, self.settings, order, offsets, subscriptions, Box::new(handler)));
        if !client.0.callbacks.enter(&session) {
            return Err(StartError::AlreadyMember(session.group().to_owned()));
        }
        client.keep_up();
        // Only a member that brokers know is in the list by which queues are divided.
        membership::heartbeat(client).await;
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(session.clone().run(stopped));
        Ok(PushConsumer { session, stop, running })
    }

    fn check(&self) -> Result<(), StartError> {
        let Settings { group, concurrency, pull_messages, cache, .. } = &self.settings;
        names::validate_group(group).map_err(InvalidMessage::from)?;
        for topic in self.wanted.keys() {
            names::validate_topic(topic).map_err(InvalidMessage::from)?;
        }
        let out_of_range = |setting, expected| Err(StartError::Config(ConfigError::OutOfRange { setting, expected }));
        if self.wanted.is_empty() {
            return Err(StartError::NoSubscription);
        }
        if !(1..=1024).contains(concurrency) {
            return out_of_range("concurrency", "between 1 and 1024");
        }
        if !(1..=1024).contains(pull_messages) {
            return out_of_range("pull_messages", "between 1 and 1024");
        }
        if cache.messages == 0 || cache.bytes == 0 {
            return out_of_range("cache", "at least 1 message and 1 byte");
        }
        Ok(())
    }

    fn subscriptions(&self) -> Result<BTreeMap<String, Subscription>, InvalidMessage> {
        let now_ms = self.client.0.env.clock.wall_ms();
        let mut subscriptions = BTreeMap::new();
        for (topic, wanted) in &self.wanted {
            let subscription = match wanted {
                Wanted::Tags(tags) => Subscription::by_tags(topic, tags, now_ms)?,
                Wanted::Sql(expression) => Subscription::by_sql(topic, expression, now_ms)?,
            };
            subscriptions.insert(topic.clone(), subscription);
        }
        if self.offset_directory.is_none() {
            let retry = names::retry_topic(&self.settings.group);
            subscriptions.insert(retry.clone(), Subscription::by_tags(&retry, "*", now_ms)?);
        }
        Ok(subscriptions)
    }

    /// Asks one member of each broker group whether it can evaluate the expression: pulls would fail much later.
    async fn check_at_broker(&self, topic: &str, subscription: &Subscription) -> Result<(), StartError> {
        let body = CheckClientRequest {
            client_id: self.client.client_id().unwrap_or_default().to_owned(),
            group: self.settings.group.clone(),
            namespace: Some(String::new()),
            subscription_data: Some(subscription.data.clone()),
        };
        let route = self.client.0.routes.get(topic).await.map_err(|error| StartError::Request(error.into()))?;
        for broker in &route.brokers {
            let request = RemotingCommand::request(RequestCode::CHECK_CLIENT_CONFIG).with_json(&body);
            let checked = self.client.ask_group(topic, &broker.name, request).await;
            checked.map_err(|reason| StartError::Subscription { topic: topic.to_owned(), reason })?;
        }
        Ok(())
    }
}

/// A running push consumer; made with [`Client::push_consumer`]. Dropping it shuts it down in the background; to know
/// that its offsets are stored, await [`PushConsumer::shutdown`].
#[derive(Debug)]
pub struct PushConsumer {
    session: Arc<Session>,
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
}

impl PushConsumer {
    /// Its group.
    pub fn group(&self) -> &str {
        self.session.group()
    }

    /// The queues it consumes now, without those of the group's retry topic.
    pub fn assigned(&self) -> Vec<MessageQueue> {
        self.session.assigned()
    }

    pub(crate) fn stop(&self) {
        let _ = self.stop.send(true);
    }

    /// Stops pulling, waits for the handlers that run, gives back what failed, stores the offsets, unlocks the queues and
    /// leaves the group. Messages that had come and were not begun come to other members, or again.
    ///
    /// Dropping this future does not stop the shutdown.
    pub async fn shutdown(self) {
        self.stop();
        if let Err(error) = self.running.await {
            tracing::error!(%error, "the consumer's task failed");
        }
    }
}

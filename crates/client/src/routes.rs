//! Routes: which brokers have which queues of a topic, as the NameServers say.
//!
//! - Cached per topic; refreshed every 30 s by [`Routes::refresh_all`] and at once by whoever meets an error.
//! - Single flight: callers that ask while an answer is on its way share it, so that a thousand failing sends cost one
//!   question.
//! - A route once known is kept while no NameServer answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use env::Clock;
use parking_lot::Mutex;
use protocol::body::{BrokerData, MASTER_ID, MessageQueue, TopicRouteData};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::names;
use protocol::permission::Permission;
use tokio::sync::watch;

use crate::errors::{RequestError, RouteError};
use crate::network::{Endpoint, Lane, Network};

/// How long one NameServer may take to answer before the next is asked.
const NAME_SERVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Queues of a topic created on demand, unless its template has fewer.
pub(crate) const DEFAULT_TOPIC_QUEUES: i32 = 4;
/// An answer younger than this is as good as a new one: sends that fail one after the other need not ask one by one.
const FRESH_FOR: Duration = Duration::from_millis(20);
/// A route borrowed from the template is replaced as soon as the topic has its own; asked for no more often than this.
const TEMPLATE_AGE: Duration = Duration::from_secs(1);

/// Where the queues of a topic are.
#[derive(Debug)]
pub(crate) struct TopicRoute {
    pub(crate) brokers: Vec<Broker>,
    /// Sorted by broker and queue; only on brokers with a master, if there is any such broker.
    pub(crate) write_queues: Vec<RoutedQueue>,
    /// Sorted by broker and queue.
    pub(crate) read_queues: Vec<Arc<MessageQueue>>,
    /// The topic does not exist yet: this is the template's route, and a send creates the topic.
    is_template: bool,
    fetched_at: Duration,
    data: TopicRouteData,
}

/// A broker group and its members.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    pub(crate) name: String,
    pub(crate) has_master: bool,
    /// The master first, then the others by broker id.
    pub(crate) members: Vec<Arc<Endpoint>>,
    /// Broker ids, in the same order.
    pub(crate) ids: Vec<i64>,
}

/// A queue and the index of its broker in [`TopicRoute::brokers`].
#[derive(Debug, Clone)]
pub(crate) struct RoutedQueue {
    pub(crate) queue: Arc<MessageQueue>,
    pub(crate) broker: usize,
}

impl TopicRoute {
    /// Makes a route out of what a NameServer says. `template_queues` limits the queues of a borrowed route.
    fn new(
        topic: &str,
        data: TopicRouteData,
        template_queues: Option<i32>,
        fetched_at: Duration,
        mut endpoint: impl FnMut(&str) -> Arc<Endpoint>,
    ) -> TopicRoute {
        let mut brokers: Vec<Broker> = data
            .broker_datas
            .iter()
            .filter(|broker| !broker.broker_addrs.is_empty())
            .map(|broker: &BrokerData| Broker {
                name: broker.broker_name.clone(),
                has_master: broker.broker_addrs.contains_key(&MASTER_ID),
                members: broker.broker_addrs.values().map(|address| endpoint(address)).collect(),
                ids: broker.broker_addrs.keys().copied().collect(),
            })
            .collect();
        brokers.sort_by(|a, b| a.name.cmp(&b.name));
        let any_master = brokers.iter().any(|broker| broker.has_master);
        let (mut write_queues, mut read_queues) = (Vec::new(), Vec::new());
        for (index, broker) in brokers.iter().enumerate() {
            for queues in data.queue_datas.iter().filter(|queues| queues.broker_name == broker.name) {
                let count = |queues: i32| template_queues.map_or(queues, |most| queues.min(most));
                let queue = |id| Arc::new(MessageQueue::new(topic, &broker.name, id));
                if Permission(queues.perm).is_readable() {
                    read_queues.extend((0..count(queues.read_queue_nums)).map(queue));
                }
                // A group whose leader is being elected has no master: use it only if no other group can be.
                if Permission(queues.perm).is_writable() && (broker.has_master || !any_master) {
                    let routed = (0..count(queues.write_queue_nums)).map(queue);
                    write_queues.extend(routed.map(|queue| RoutedQueue { queue, broker: index }));
                }
            }
        }
        let is_template = template_queues.is_some();
        TopicRoute { brokers, write_queues, read_queues, is_template, fetched_at, data }
    }

    pub(crate) fn broker(&self, name: &str) -> Option<&Broker> {
        self.brokers.iter().find(|broker| broker.name == name)
    }

    pub(crate) fn is_template(&self) -> bool {
        self.is_template
    }
}

#[derive(Debug)]
struct Topic {
    route: ArcSwapOption<TopicRoute>,
    /// Whoever uses it next asks first.
    is_doubted: AtomicBool,
    /// Held while a question is on its way.
    last_answer: tokio::sync::Mutex<Option<Answer>>,
}

#[derive(Debug)]
struct Answer {
    at: Duration,
    error: Option<RouteError>,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Routes {
    clock: Clock,
    network: Arc<Network>,
    name_servers: Vec<Arc<Endpoint>>,
    /// The NameServer that answered last.
    preferred: AtomicUsize,
    topics: Mutex<BTreeMap<String, Arc<Topic>>>,
    /// Counts routes that came out different from before.
    changes: watch::Sender<u64>,
}

impl Routes {
    pub(crate) fn new(clock: &Clock, network: &Arc<Network>, name_servers: &[String]) -> Routes {
        Routes {
            clock: clock.clone(),
            network: network.clone(),
            name_servers: name_servers.iter().map(|address| network.endpoint(address)).collect(),
            preferred: AtomicUsize::new(0),
            topics: Mutex::new(BTreeMap::new()),
            changes: watch::Sender::new(0),
        }
    }

    /// Told whenever a route has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The route as cached, else asked for now.
    pub(crate) async fn get(&self, topic: &str) -> Result<Arc<TopicRoute>, RouteError> {
        match self.fresh(topic) {
            Some(route) => Ok(route),
            None => self.refresh(topic).await,
        }
    }

    /// The route as cached, unless there is reason to ask for another.
    pub(crate) fn fresh(&self, topic: &str) -> Option<Arc<TopicRoute>> {
        let known = self.topics.lock().get(topic)?.clone();
        let route = known.route.load_full().filter(|_| !known.is_doubted.load(Ordering::Relaxed))?;
        let is_old_template = route.is_template && self.clock.monotonic() >= route.fetched_at + TEMPLATE_AGE;
        (!is_old_template).then_some(route)
    }

    /// Somebody has given up on what the route says, and has no time left to ask again: whoever uses it next does.
    pub(crate) fn doubt(&self, topic: &str) {
        if let Some(known) = self.topics.lock().get(topic) {
            known.is_doubted.store(true, Ordering::Relaxed);
        }
    }

    /// Asks a NameServer, or takes the answer to a question that was on its way, or whose answer has just come. Falls
    /// back on the route known so far.
    pub(crate) async fn refresh(&self, topic: &str) -> Result<Arc<TopicRoute>, RouteError> {
        let entry = self.entry(topic);
        let wanted_at = self.clock.monotonic();
        let mut last_answer = entry.last_answer.lock().await;
        if last_answer.as_ref().is_none_or(|answer| wanted_at >= answer.at + FRESH_FOR) {
            let error = self.ask(topic, &entry).await.err();
            // Also without an answer: not everybody is to wait for a NameServer that is gone.
            entry.is_doubted.store(false, Ordering::Relaxed);
            *last_answer = Some(Answer { at: self.clock.monotonic(), error });
        }
        let error = last_answer.as_ref().and_then(|answer| answer.error.clone());
        match (entry.route.load_full(), error) {
            (Some(route), _) => Ok(route),
            (None, error) => Err(error.unwrap_or_else(|| RouteError::TopicNotFound(topic.to_owned()))),
        }
    }

    /// Resolves when the queue's broker group has another leader than at the time of the call. Cancel-safe.
    pub(crate) async fn leader_moved(&self, queue: &MessageQueue) {
        let leader = || {
            let route = self.topics.lock().get(&queue.topic)?.route.load_full()?;
            route.broker(&queue.broker_name).map(|broker| broker.members[0].clone())
        };
        let mut changes = self.changes();
        let before = leader();
        loop {
            // The sender is in `self`, so the channel cannot close under the wait.
            let _ = changes.changed().await;
            match (&before, leader()) {
                (Some(before), Some(now)) if before.address() != now.address() => return,
                _ => {}
            }
        }
    }

    /// Asks again for every topic in use.
    pub(crate) async fn refresh_all(&self) {
        let topics: Vec<String> = self.topics.lock().keys().cloned().collect();
        let refreshed = topics.iter().map(|topic| self.refresh(topic));
        futures::future::join_all(refreshed).await;
    }

    /// The routes of all topics in use.
    pub(crate) fn all(&self) -> Vec<Arc<TopicRoute>> {
        self.topics.lock().values().filter_map(|topic| topic.route.load_full()).collect()
    }

    fn entry(&self, topic: &str) -> Arc<Topic> {
        let mut topics = self.topics.lock();
        if let Some(known) = topics.get(topic) {
            return known.clone();
        }
        let entry = Arc::new(Topic {
            route: ArcSwapOption::empty(),
            is_doubted: AtomicBool::new(false),
            last_answer: tokio::sync::Mutex::new(None),
        });
        topics.insert(topic.to_owned(), entry.clone());
        entry
    }

    async fn ask(&self, topic: &str, entry: &Topic) -> Result<(), RouteError> {
        let (data, template_queues) = match self.ask_name_servers(topic).await {
            Ok(data) => (data, None),
            // The broker creates a topic that has a template, but nobody may create a group's retry topic by sending.
            Err(RouteError::TopicNotFound(_)) if names::group_of_retry_topic(topic).is_none() => {
                let data = self.ask_name_servers(names::AUTO_CREATE_TOPIC).await.map_err(|error| match error {
                    RouteError::TopicNotFound(_) => RouteError::TopicNotFound(topic.to_owned()),
                    other => other,
                })?;
                (data, Some(DEFAULT_TOPIC_QUEUES))
            }
            Err(error) => return Err(error),
        };
        let known = entry.route.load();
        let is_same =
            known.as_ref().is_some_and(|known| known.data == data && known.is_template == template_queues.is_some());
        let now = self.clock.monotonic();
        let route = TopicRoute::new(topic, data, template_queues, now, |address| self.network.endpoint(address));
        entry.route.store(Some(Arc::new(route)));
        if !is_same {
            tracing::debug!(topic, "route changed");
            self.changes.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Asks one NameServer after the other. One that does not know the topic may have been started a moment ago, so
    /// the others are asked too.
    async fn ask_name_servers(&self, topic: &str) -> Result<TopicRouteData, RouteError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut error = RouteError::NameServersSilent("none is configured".to_owned());
        for turn in 0..self.name_servers.len() {
            let index = (first + turn) % self.name_servers.len();
            match self.ask_one(&self.name_servers[index], topic).await {
                Ok(Some(data)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(data);
                }
                Ok(None) => error = RouteError::TopicNotFound(topic.to_owned()),
                Err(reason) if matches!(error, RouteError::TopicNotFound(_)) => {
                    tracing::debug!(topic, %reason, "a name server does not answer");
                }
                Err(reason) => error = RouteError::NameServersSilent(reason.to_string()),
            }
        }
        Err(error)
    }

    async fn ask_one(&self, endpoint: &Endpoint, topic: &str) -> Result<Option<TopicRouteData>, RequestError> {
        let request = RemotingCommand::request(RequestCode::GET_ROUTEINFO_BY_TOPIC)
            .with_field("topic", topic)
            .with_field("acceptStandardJsonOnly", true);
        let response = self.network.call(endpoint, Lane::First, request, NAME_SERVER_TIMEOUT).await?;
        match response.response_code() {
            ResponseCode::SUCCESS => {
                response.json().map(Some).map_err(|error| RequestError::Malformed(error.to_string()))
            }
            ResponseCode::TOPIC_NOT_EXIST => Ok(None),
            _ => Err(RequestError::refused(&response)),
        }
    }

    /// Makes sure that a connection to some NameServer has been made: from then on the client knows its own address.
    pub(crate) async fn reach_name_server(&self) -> Result<(), RequestError> {
        if self.network.local_ip().is_some() {
            return Ok(());
        }
        match self.ask_name_servers(names::AUTO_CREATE_TOPIC).await {
            Ok(_) | Err(RouteError::TopicNotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::body::QueueData;

    use super::*;

    fn data(brokers: &[(&str, &[i64])], queues: i32, perm: i32) -> TopicRouteData {
        TopicRouteData {
            broker_datas: brokers
                .iter()
                .map(|(name, ids)| BrokerData {
                    broker_name: (*name).to_owned(),
                    broker_addrs: ids.iter().map(|id| (*id, format!("{name}-{id}:1"))).collect(),
                    ..BrokerData::default()
                })
                .collect(),
            queue_datas: brokers
                .iter()
                .map(|(name, _)| QueueData {
                    broker_name: (*name).to_owned(),
                    perm,
                    read_queue_nums: queues,
                    write_queue_nums: queues,
                    topic_sys_flag: 0,
                })
                .collect(),
            ..TopicRouteData::default()
        }
    }

    fn route(data: TopicRouteData, template_queues: Option<i32>) -> TopicRoute {
        TopicRoute::new("T", data, template_queues, Duration::ZERO, |address| Arc::new(Endpoint::new(address, 1)))
    }

    fn write(route: &TopicRoute) -> Vec<(&str, i32)> {
        route.write_queues.iter().map(|routed| (routed.queue.broker_name.as_str(), routed.queue.queue_id)).collect()
    }

    #[test]
    fn queues_are_sorted_and_the_master_comes_first() {
        let route = route(data(&[("b", &[0, 2]), ("a", &[0])], 2, 6), None);
        assert_eq!(write(&route), [("a", 0), ("a", 1), ("b", 0), ("b", 1)]);
        let broker = route.broker("b").unwrap();
        let addresses: Vec<&str> = broker.members.iter().map(|member| member.address()).collect();
        assert_eq!((addresses, &broker.ids[..]), (vec!["b-0:1", "b-2:1"], &[0, 2][..]));
        assert!(route.write_queues.iter().all(|routed| route.brokers[routed.broker].name == routed.queue.broker_name));
        assert_eq!(route.read_queues.len(), 4);
    }

    #[test]
    fn a_group_without_a_master_is_written_to_only_if_there_is_no_other() {
        let mixed = route(data(&[("a", &[1, 2]), ("b", &[0])], 1, 6), None);
        assert_eq!(write(&mixed), [("b", 0)]);
        assert_eq!(mixed.read_queues.len(), 2, "members without a master can be read");
        let electing = route(data(&[("a", &[1, 2])], 1, 6), None);
        assert_eq!(write(&electing), [("a", 0)]);
    }

    #[test]
    fn permissions_and_templates_limit_the_queues() {
        let read_only = route(data(&[("a", &[0])], 2, 4), None);
        assert_eq!((read_only.write_queues.len(), read_only.read_queues.len()), (0, 2));
        let template = route(data(&[("a", &[0])], 8, 7), Some(4));
        assert_eq!((template.write_queues.len(), template.is_template()), (4, true));
        assert!(route(data(&[("a", &[])], 2, 6), None).write_queues.is_empty());
    }
}

//! [`Client`]: one identity towards a cluster, which producers and consumers share; and how to build one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use env::Env;
use protocol::code::ResponseCode;
use protocol::command::{RemotingCommand, SerializeType};
use remoting::{CallError, Limits};
use tokio::sync::watch;

use crate::callbacks::Callbacks;
use crate::consumer::PushConsumerBuilder;
use crate::errors::{ConfigError, RequestError, RouteError};
use crate::membership::{self, Producers};
use crate::network::{Lane, Network};
use crate::pop_consumer::PopConsumer;
use crate::producer::ProducerBuilder;
use crate::pull_consumer::PullConsumer;
use crate::routes::Routes;
use crate::trace::Tracer;
use crate::transaction::TransactionalProducerBuilder;
use crate::unique_key::UniqueKeys;

/// Most connections that make sense towards one address.
const MAX_CONNECTIONS_PER_BROKER: usize = 64;

/// How often a request to a broker group is tried on its members before the caller hears that it cannot be sent.
const GROUP_ATTEMPTS: u32 = 4;
const GROUP_PAUSE: Duration = Duration::from_millis(50);

/// Builds a [`Client`].
#[derive(Debug)]
#[must_use]
pub struct ClientBuilder {
    env: Option<Env>,
    name_servers: String,
    client_id: Option<String>,
    connections_per_broker: usize,
    binary_headers: bool,
    request_timeout: Duration,
    limits: Limits,
    trace_topic: Option<String>,
}

impl ClientBuilder {
    fn new() -> ClientBuilder {
        ClientBuilder {
            env: None,
            name_servers: String::new(),
            client_id: None,
            connections_per_broker: 1,
            binary_headers: false,
            request_timeout: Duration::from_secs(5),
            limits: Limits::default(),
            trace_topic: None,
        }
    }

    /// NameServer addresses, `host:port` separated by `;`. Required.
    pub fn name_servers(mut self, addresses: impl Into<String>) -> ClientBuilder {
        self.name_servers = addresses.into();
        self
    }

    /// Clock, randomness, disk and sockets to use instead of the machine's.
    pub fn env(mut self, env: Env) -> ClientBuilder {
        self.env = Some(env);
        self
    }

    /// What brokers know this client by, instead of `ip@` and a random number. Two clients of one consumer group must
    /// not share it.
    pub fn client_id(mut self, id: impl Into<String>) -> ClientBuilder {
        self.client_id = Some(id.into());
        self
    }

    /// Connections to each broker, 1 by default. One is enough for consumers; a producer with a thousand sends in
    /// flight gains from several, because each connection is served by one task on either side.
    pub fn connections_per_broker(mut self, connections: usize) -> ClientBuilder {
        self.connections_per_broker = connections;
        self
    }

    /// Whether to write headers in RocketMQ's binary form, which costs less than JSON, the default. Servers answer in
    /// kind.
    pub fn binary_headers(mut self, binary: bool) -> ClientBuilder {
        self.binary_headers = binary;
        self
    }

    /// How long requests other than sends and pulls may take; 5 s by default.
    pub fn request_timeout(mut self, limit: Duration) -> ClientBuilder {
        self.request_timeout = limit;
        self
    }

    /// Bounds of each connection.
    pub fn limits(mut self, limits: Limits) -> ClientBuilder {
        self.limits = limits;
        self
    }

    /// Follows each message: what was sent and consumed, by whom, when, how long it took and whether it went well is sent to
    /// `topic`, by default none; [`crate::TRACE_TOPIC`] is where RocketMQ's dashboard and `queryMsgTraceById` look. One-way
    /// sends leave no trace.
    ///
    /// Records wait in a bounded queue and never keep a message waiting; those that do not fit or cannot be sent are counted
    /// ([`Client::traces_lost`]). [`Client::shutdown`] sends what waits.
    pub fn message_trace(mut self, topic: impl Into<String>) -> ClientBuilder {
        self.trace_topic = Some(topic.into());
        self
    }

    /// The client. Connects to nobody yet.
    pub fn build(self) -> Result<Client, ConfigError> {
        let addresses: Vec<String> = self
            .name_servers
            .split([';', ','])
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect();
        let is_address = |address: &String| {
            address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if addresses.is_empty() || !addresses.iter().all(is_address) {
            return Err(ConfigError::NameServers(self.name_servers));
        }
        if !(1..=MAX_CONNECTIONS_PER_BROKER).contains(&self.connections_per_broker) {
            return Err(ConfigError::OutOfRange { setting: "connections_per_broker", expected: "between 1 and 64" });
        }
        let env = self.env.unwrap_or_else(Env::real);
        let callbacks = Arc::new(Callbacks::default());
        let serialize = if self.binary_headers { SerializeType::Binary } else { SerializeType::Json };
        let network = Arc::new(Network::new(&env, &self.limits, self.connections_per_broker, serialize, &callbacks));
        let client_id = OnceLock::new();
        if let Some(id) = self.client_id {
            let _ = client_id.set(id);
        }
        Ok(Client(Arc::new(Inner {
            routes: Routes::new(&env.clock, &network, &addresses),
            keys: UniqueKeys::new(&env.rng),
            instance: env.rng.u64(),
            network,
            callbacks,
            client_id,
            name_servers: addresses,
            request_timeout: self.request_timeout,
            producers: Producers::default(),
            is_kept_up: AtomicBool::new(false),
            tracer: self.trace_topic.map(Tracer::new),
            stopped: watch::Sender::new(false),
            env,
        })))
    }
}

/// A client of a cluster: routes, connections and heartbeats, shared by the producers and consumers made from it. Cheap
/// to clone; all clones are the same client.
///
/// Its tasks run on the tokio runtime of the first call that needs one. They end when the last clone, producer and
/// consumer is gone, or with [`Client::shutdown`].
#[derive(Debug, Clone)]
pub struct Client(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) network: Arc<Network>,
    pub(crate) routes: Routes,
    pub(crate) callbacks: Arc<Callbacks>,
    pub(crate) keys: UniqueKeys,
    pub(crate) producers: Producers,
    pub(crate) request_timeout: Duration,
    pub(crate) tracer: Option<Tracer>,
    name_servers: Vec<String>,
    /// Tells the clients of one machine apart.
    instance: u64,
    client_id: OnceLock<String>,
    is_kept_up: AtomicBool,
    stopped: watch::Sender<bool>,
}

impl Client {
    /// Begins to build a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// Begins to build a producer of `group`.
    pub fn producer(&self, group: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self, group.into())
    }

    /// Begins to build a producer of `group` whose messages become visible together with a local transaction.
    pub fn transactional_producer(&self, group: impl Into<String>) -> TransactionalProducerBuilder {
        TransactionalProducerBuilder::new(self, group.into())
    }

    /// Begins to build a push consumer: a member of `group` to whose handler messages come.
    pub fn push_consumer(&self, group: impl Into<String>) -> PushConsumerBuilder {
        PushConsumerBuilder::new(self, group.into())
    }

    /// A pull consumer: queues are assigned and messages asked for by the program. `group` owns the offsets.
    pub fn pull_consumer(&self, group: impl Into<String>) -> Result<PullConsumer, crate::InvalidMessage> {
        PullConsumer::new(self, group.into())
    }

    /// A pop consumer: messages come under leases, from all queues of a topic, to whoever of `group` asks.
    pub fn pop_consumer(&self, group: impl Into<String>) -> Result<PopConsumer, crate::InvalidMessage> {
        PopConsumer::new(self, group.into())
    }

    /// The NameServers it was built with.
    pub fn name_servers(&self) -> &[String] {
        &self.0.name_servers
    }

    /// What brokers know it by; `None` until it has reached a NameServer.
    pub fn client_id(&self) -> Option<&str> {
        let Inner { client_id, network, instance, .. } = &*self.0;
        match client_id.get() {
            Some(id) => Some(id),
            None => network.local_ip().map(|ip| client_id.get_or_init(|| format!("{ip}@{instance:016x}")).as_str()),
        }
    }

    /// Trace records that were lost so far: they did not fit into the queue, or could not be sent. After a shutdown: all
    /// that were not sent. 0 without [`ClientBuilder::message_trace`].
    pub fn traces_lost(&self) -> u64 {
        self.0.tracer.as_ref().map_or(0, Tracer::lost)
    }

    /// Leaves all producer groups, sends the traces that wait, and closes the connections. Consumers must have been shut down before: what they
    /// still do fails or connects again.
    pub async fn shutdown(&self) {
        let _ = self.0.stopped.send(true);
        for group in self.0.producers.groups() {
            membership::leave(self, Some(&group), None).await;
        }
        if let Some(tracer) = &self.0.tracer {
            tracer.end(&self.0.env.clock).await;
        }
        self.0.network.close();
    }

    /// Starts the task that keeps routes fresh and says this client's groups to brokers; once.
    pub(crate) fn keep_up(&self) {
        if !self.0.is_kept_up.swap(true, Ordering::Relaxed) {
            tokio::spawn(membership::keep_up(
                Arc::downgrade(&self.0),
                self.0.env.clock.clone(),
                self.0.callbacks.clone(),
                self.0.routes.changes(),
                self.0.stopped.subscribe(),
            ));
        }
    }

    /// Asks the leader of `broker_name` for something about `topic`.
    ///
    /// While the leader is not to be found, the group's other members are asked: ours pass a request on to the leader,
    /// others refuse it. Only what certainly was not carried out is tried again.
    pub(crate) async fn call_group(
        &self,
        topic: &str,
        broker_name: &str,
        request: RemotingCommand,
        limit: Duration,
    ) -> Result<RemotingCommand, RequestError> {
        let Inner { env, routes, network, .. } = &*self.0;
        let deadline = env.clock.monotonic() + limit;
        let mut route = routes.get(topic).await?;
        let mut attempt = 0;
        loop {
            let error = match route.broker(broker_name) {
                None => RouteError::NoBroker { topic: topic.to_owned(), broker_name: broker_name.to_owned() }.into(),
                Some(broker) => {
                    let member = &broker.members[attempt as usize % broker.members.len()];
                    let remaining = deadline.saturating_sub(env.clock.monotonic());
                    match network.call(member, Lane::First, request.clone(), remaining).await {
                        Ok(response) if is_not_now(response.response_code()) => RequestError::refused(&response),
                        Ok(response) => return Ok(response),
                        Err(CallError::NotSent(reason)) => RequestError::NotSent(reason),
                        Err(error) => {
                            routes.doubt(topic);
                            return Err(error.into());
                        }
                    }
                }
            };
            attempt += 1;
            let pause = GROUP_PAUSE * attempt;
            if attempt == GROUP_ATTEMPTS || env.clock.monotonic() + pause >= deadline {
                return Err(error);
            }
            env.clock.sleep(pause).await;
            route = routes.refresh(topic).await?;
        }
    }

    /// [`Client::call_group`] for requests of which any answer but success is an error.
    pub(crate) async fn ask_group(
        &self,
        topic: &str,
        broker_name: &str,
        request: RemotingCommand,
    ) -> Result<RemotingCommand, RequestError> {
        let response = self.call_group(topic, broker_name, request, self.0.request_timeout).await?;
        if response.is_success() { Ok(response) } else { Err(RequestError::refused(&response)) }
    }
}

/// Whether the code says that another member, or the same one a little later, would do it.
pub(crate) fn is_not_now(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::SERVICE_NOT_AVAILABLE | ResponseCode::GO_AWAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_anything_is_connected() {
        for good in ["127.0.0.1:9876", " a:1 ; b:2;", "[::1]:9876", "ns-0.ns:9876,ns-1.ns:9876"] {
            assert!(Client::builder().name_servers(good).build().is_ok(), "{good}");
        }
        for bad in ["", ";", "localhost", ":9876", "a:port", "a:1;b"] {
            let error = Client::builder().name_servers(bad).build().unwrap_err();
            assert_eq!(error, ConfigError::NameServers(bad.to_owned()));
        }
        let none = Client::builder().name_servers("a:1").connections_per_broker(0).build();
        assert!(matches!(none, Err(ConfigError::OutOfRange { .. })));
    }

    #[test]
    fn the_id_is_known_only_once_the_own_address_is() {
        let client = Client::builder().name_servers("a:1").build().unwrap();
        assert_eq!(client.client_id(), None);
        let named = Client::builder().name_servers("a:1").client_id("me").build().unwrap();
        assert_eq!(named.client_id(), Some("me"));
    }
}

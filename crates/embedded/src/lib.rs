//! A real cluster inside one process: a NameServer and brokers on loopback, the production code and nothing else.
//!
//! What `raftmq demo` and `raftmq dev` run, and what a test of an application can stand on:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut cluster = embedded::Cluster::builder().nodes(3).start().await?;
//! let producer = cluster.client().build()?.producer("orders").start()?;
//! // ... send, consume ...
//! let leader = cluster.leader().await?;
//! cluster.kill(leader).await;   // as SIGKILL: no hand-over, no flush
//! // ... sends go on ...
//! cluster.restart(leader).await?;
//! cluster.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! Without [`Builder::data_dir`] everything lies in a temporary directory, which is removed at the end and kept if the
//! thread panics: the evidence of a failed test.
//!
//! # Hours in milliseconds
//!
//! The cluster and the clients made by [`Cluster::client`] share one clock, whose date a test moves ahead. What brokers
//! promise by the date then happens at once: delayed messages and retries come, producers are asked about their
//! transactions, leases end, messages grow too old to be kept.
//!
//! ```no_run
//! use std::time::Duration;
//! use client::Message;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = embedded::Cluster::builder().start().await?;
//! let client = cluster.client().build()?;
//! let hour = Duration::from_secs(3600);
//! client.producer("reminders").start()?.send(Message::new("Reminders", "pay").with_delay(hour)).await?;
//! cluster.advance(hour).await?;   // the message is visible when this returns
//! # Ok(()) }
//! ```
//!
//! When [`Cluster::advance`] returns, the leader has done all that was due by the new date. What others do about it takes
//! its own, real time and is to be awaited: a consumer receives, a transaction checker answers, a failed message is given
//! back before its next delay begins. Time-outs and elections go by real time and are not moved; nor is the time between
//! lived through: a transaction is asked about once, however far the clock is advanced at a time, and a consumer that holds
//! a queue's lock finds it expired, as a machine that was asleep would.
//!
//! # Cut off
//!
//! [`Cluster::partition`] cuts brokers off from the others, both ways, until [`Cluster::heal`]. Clients and the NameServer
//! reach all of them all the time: the case in which a program talks to a leader that is none any more.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut cluster = embedded::Cluster::builder().nodes(3).start().await?;
//! let cut_off = cluster.leader().await?;
//! cluster.partition(&[cut_off]);
//! assert_ne!(cluster.leader().await?, cut_off);   // the other two have elected one of them
//! // ... sends go on; nothing is acknowledged by the one that is cut off ...
//! cluster.heal();
//! # Ok(()) }
//! ```

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use broker::config::{MessagePolicy, Retention, TransactionPolicy};
pub use env::Clock;

use broker::broker::{Broker, BrokerGroup};
use broker::config::{BrokerConfig, Flush, GroupConfig, Limits, RaftTiming};
use client::admin::Admin;
use env::Env;
use env::net::{Partition, free_loopback};
use nameserver::{NameServer, NameServerConfig};

/// What the cluster will be like.
#[derive(Clone, Debug)]
pub struct Builder {
    env: Option<Env>,
    nodes: usize,
    data_dir: Option<PathBuf>,
    name_server: SocketAddr,
    first_port: Option<u16>,
    advertised: Vec<SocketAddr>,
    segment_bytes: u64,
    messages: MessagePolicy,
    retention: Retention,
}

/// A running cluster. Dropping it kills it.
pub struct Cluster {
    env: Env,
    name_server: NameServer,
    nodes: Vec<Node>,
    dir: Dir,
    partition: Partition,
    /// One side of the cut.
    cut_off: BTreeSet<usize>,
}

struct Node {
    env: Env,
    config: BrokerConfig,
    broker: Option<Broker>,
}

impl Node {
    /// Its member of the only group, unless it is dead.
    fn group(&self) -> Option<&BrokerGroup> {
        self.broker.as_ref().map(|broker| &*broker.groups()[0])
    }
}

/// Where the data lies, and whether it is ours to remove.
#[derive(Debug)]
enum Dir {
    Temporary(Option<tempfile::TempDir>),
    Given(PathBuf),
}

impl Dir {
    fn path(&self) -> &Path {
        match self {
            Dir::Temporary(dir) => dir.as_ref().expect("held until dropped").path(),
            Dir::Given(path) => path,
        }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if let Dir::Temporary(dir) = self
            && std::thread::panicking()
            && let Some(dir) = dir.take()
        {
            eprintln!("the cluster's data is kept in {}", dir.keep().display());
        }
    }
}

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// How long a group may take to found itself and elect a leader.
const READY: Duration = Duration::from_secs(30);

/// Between two looks at something that has no bell.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Why the cluster did not start. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory or a port.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A broker.
    #[error(transparent)]
    Broker(#[from] broker::broker::StartError),
}

impl Builder {
    /// Brokers: one, three or five. Three by default.
    pub fn nodes(mut self, nodes: usize) -> Builder {
        self.nodes = nodes;
        self
    }

    /// Keeps the data here, and finds it again at the next start.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.data_dir = Some(dir.into());
        self
    }

    /// Where the NameServer listens; any free port of 127.0.0.1 by default.
    pub fn name_server(mut self, address: SocketAddr) -> Builder {
        self.name_server = address;
        self
    }

    /// Broker k listens on `port + 10 k`, its peers on the port behind it; any free ports by default.
    pub fn first_port(mut self, port: u16) -> Builder {
        self.first_port = Some(port);
        self
    }

    /// What clients, and the other brokers for what they forward, are told to connect to, one address a broker: those of
    /// proxies in front of them. The brokers' own by default; [`Cluster::listens`] tells these.
    pub fn advertised(mut self, addresses: Vec<SocketAddr>) -> Builder {
        self.advertised = addresses;
        self
    }

    /// Log bytes per segment file; 64 MiB by default.
    pub fn segment_bytes(mut self, bytes: u64) -> Builder {
        self.segment_bytes = bytes;
        self
    }

    /// How long messages are kept.
    pub fn retention(mut self, retention: Retention) -> Builder {
        self.retention = retention;
        self
    }

    /// How topics, groups and messages are treated: shorter delay levels make a quicker test.
    pub fn messages(mut self, messages: MessagePolicy) -> Builder {
        self.messages = messages;
        self
    }

    /// Takes clock, disk and sockets from `env`; the machine's own by default, with [`Clock::manual`].
    pub fn env(mut self, env: Env) -> Builder {
        self.env = Some(env);
        self
    }

    /// Starts it all, and returns when the group has a leader that serves.
    pub async fn start(self) -> Result<Cluster, StartError> {
        let env = self.env.unwrap_or_else(|| Env { clock: Clock::manual(), ..Env::real() });
        let dir = match self.data_dir {
            Some(path) => Dir::Given(path),
            None => Dir::Temporary(Some(tempfile::Builder::new().prefix("raftmq-").tempdir()?)),
        };
        let name_server = NameServer::start(
            env.clone(),
            NameServerConfig { listen: self.name_server, ..NameServerConfig::default() },
        )
        .await?;
        let mut ports = Vec::new();
        for k in 0..self.nodes {
            ports.push(match self.first_port {
                Some(first) => [first + 10 * k as u16, first + 10 * k as u16 + 1],
                None => [free_loopback()?.port(), free_loopback()?.port()],
            });
        }
        let founders: Vec<_> = ports.iter().map(|[_, peer]| format!("127.0.0.1:{peer}")).collect();
        let partition = Partition::default();
        let node = |(k, [client, peer]): (usize, &[u16; 2])| {
            let group = GroupConfig {
                broker_name: "broker-a".to_owned(),
                data_dir: dir.path().join(format!("broker-a-{}", k + 1)),
                listen: SocketAddr::from(([127, 0, 0, 1], *client)),
                vip: self.first_port.is_some(),
                advertised_address: self.advertised.get(k).copied().unwrap_or((LOOPBACK, *client).into()),
                peer_listen: SocketAddr::from(([127, 0, 0, 1], *peer)),
                peer_address: format!("127.0.0.1:{peer}"),
                founders: founders.clone(),
                join: false,
                flush: Flush::Sync,
                segment_bytes: self.segment_bytes,
                catch_up_bytes_per_s: 32 << 20,
                scrub_bytes_per_s: 4 << 20,
                messages: self.messages.clone(),
                retention: self.retention.clone(),
                limits: Limits::default(),
                raft: RaftTiming::default(),
            };
            let config = BrokerConfig {
                cluster: "DefaultCluster".to_owned(),
                name_servers: vec![name_server.local_addr().to_string()],
                http: None,
                allow_unauthenticated: false,
                groups: vec![group],
            };
            let env = Env { net: env.net.of_host(&partition, k), ..env.clone() };
            Node { env, config, broker: None }
        };
        let nodes = ports.iter().enumerate().map(node).collect();
        let mut cluster = Cluster { env, name_server, nodes, dir, partition, cut_off: BTreeSet::new() };
        let starting = cluster.nodes.iter().map(|node| Broker::start(node.env.clone(), node.config.clone()));
        let started = futures::future::try_join_all(starting).await?;
        for (node, broker) in cluster.nodes.iter_mut().zip(started) {
            node.broker = Some(broker);
        }
        cluster.ready().await?;
        Ok(cluster)
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let alive = self.nodes.iter().filter(|node| node.broker.is_some()).count();
        f.debug_struct("Cluster").field("nodes", &self.nodes.len()).field("alive", &alive).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Three brokers and a NameServer on free ports, in a temporary directory, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            env: None,
            nodes: 3,
            data_dir: None,
            name_server: SocketAddr::from(([127, 0, 0, 1], 0)),
            first_port: None,
            advertised: Vec::new(),
            segment_bytes: 64 * 1024 * 1024,
            messages: MessagePolicy::default(),
            retention: Cluster::default_retention(),
        }
    }

    /// How long messages are kept unless [`Builder::retention`] says otherwise: as a broker keeps them, on a workstation's disk,
    /// which is often fuller than a broker's may be.
    pub fn default_retention() -> Retention {
        Retention {
            max_used_percent: 95,
            clean_forcibly_percent: 98,
            warning_level_percent: 99,
            ..Retention::default()
        }
    }

    /// The NameServer's address, for any RocketMQ client.
    pub fn name_server(&self) -> SocketAddr {
        self.name_server.local_addr()
    }

    /// A builder of our own client for this cluster.
    pub fn client(&self) -> client::ClientBuilder {
        client::Client::builder().name_servers(self.name_server().to_string()).env(self.env.clone())
    }

    /// Where the data lies.
    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    /// How many brokers there are, dead ones too.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Where clients reach a broker.
    pub fn address(&self, node: usize) -> SocketAddr {
        self.nodes[node].config.groups[0].advertised_address
    }

    /// Where a broker listens for clients.
    pub fn listens(&self, node: usize) -> SocketAddr {
        self.nodes[node].config.groups[0].listen
    }

    /// A broker, unless it is dead.
    pub fn broker(&self, node: usize) -> Option<&Broker> {
        self.nodes[node].broker.as_ref()
    }

    /// The clock of the brokers and of the clients made by [`Cluster::client`].
    ///
    /// Advancing it here moves the date and waits for nothing; it is there for a cluster that has no leader now.
    /// [`Cluster::advance`] is what a test wants.
    pub fn clock(&self) -> &Clock {
        &self.env.clock
    }

    /// Moves the date ahead, and returns when the leader has done all that was due by then: what was delayed is visible to
    /// consumers, producers were asked. Whole milliseconds count.
    ///
    /// An error says that no leader has done so; the date is moved all the same, and the next leader will. Panics if
    /// [`Builder::env`] was given a clock that is not [`Clock::manual`].
    pub async fn advance(&self, by: Duration) -> io::Result<()> {
        let until_ms = self.env.clock.wall_ms() + by.as_millis() as i64;
        self.env.clock.advance(by);
        self.leader_that(|group| group.caught_up_to_ms() >= until_ms).await.map(drop)
    }

    /// The broker that leads and serves; waits until there is one.
    ///
    /// An error, at once, if no majority is alive and connected: there will be none.
    pub async fn leader(&self) -> io::Result<usize> {
        self.leader_that(|_| true).await
    }

    async fn leader_that(&self, suits: impl Fn(&BrokerGroup) -> bool) -> io::Result<usize> {
        let majority = self.nodes.len() / 2 + 1;
        let alive: BTreeSet<usize> = (0..self.nodes.len()).filter(|node| self.broker(*node).is_some()).collect();
        let sides = [&alive & &self.cut_off, &alive - &self.cut_off];
        let Some(side) = sides.iter().find(|side| side.len() >= majority) else {
            return Err(io::Error::other(format!(
                "no leader: {} of {} brokers are alive and reach each other, and a majority is {majority}: restart one, or \
                 heal the partition",
                sides.iter().map(BTreeSet::len).max().unwrap_or(0),
                self.nodes.len(),
            )));
        };
        let find = async {
            loop {
                // One that is cut off takes itself for the leader for a little longer.
                let leads =
                    |node: &&usize| self.nodes[**node].group().is_some_and(|group| group.leads() && suits(group));
                if let Some(leader) = side.iter().find(leads) {
                    return *leader;
                }
                self.env.clock.sleep(LOOK_AGAIN).await;
            }
        };
        let found = self.env.clock.timeout(READY, find).await;
        found.ok_or_else(|| io::Error::other(format!("a majority is alive, and no leader serves within {READY:?}")))
    }

    /// Cuts `nodes` off from all other brokers; on either side they reach each other. Replaces an earlier cut.
    ///
    /// Messages between the two sides are neither refused nor answered. Clients and the NameServer reach both sides.
    pub fn partition(&mut self, nodes: &[usize]) {
        assert!(nodes.iter().all(|node| *node < self.nodes.len()), "there are {} nodes", self.nodes.len());
        self.cut_off = nodes.iter().copied().collect();
        self.partition.cut_off(nodes.iter().copied());
    }

    /// Ends the partition.
    pub fn heal(&mut self) {
        self.partition(&[]);
    }

    /// Ends a broker as SIGKILL would: no hand-over, no flush, no farewell. Nothing if it is dead already.
    pub async fn kill(&mut self, node: usize) {
        if let Some(broker) = self.nodes[node].broker.take() {
            broker.kill().await;
        }
    }

    /// Stops a broker in good order: leadership is handed over first.
    pub async fn stop(&mut self, node: usize) {
        if let Some(broker) = self.nodes[node].broker.take()
            && let Err(error) = broker.stop().await
        {
            tracing::warn!(node, %error, "the broker did not stop in good order");
        }
    }

    /// Starts a dead broker again, on the same directory and addresses.
    pub async fn restart(&mut self, node: usize) -> Result<(), StartError> {
        assert!(self.nodes[node].broker.is_none(), "node {node} is alive");
        let Node { env, config, .. } = &self.nodes[node];
        let broker = Broker::start(env.clone(), config.clone()).await?;
        self.nodes[node].broker = Some(broker);
        Ok(())
    }

    /// Stops everything in good order.
    pub async fn shutdown(mut self) {
        for node in 0..self.nodes.len() {
            self.stop(node).await;
        }
        self.name_server.stop();
    }

    /// Resolves when a leader serves and the NameServer knows it.
    async fn ready(&self) -> Result<(), StartError> {
        let leader = self.address(self.leader().await?).to_string();
        let admin = Admin::new(&self.env, vec![self.name_server().to_string()]);
        let known = async {
            loop {
                // Only the leader registers topics; the template for new ones is the first of them.
                if let Ok(Some(route)) = admin.topic_route("TBW102").await
                    && route.broker_datas.iter().any(|broker| broker.master_addr() == Some(&leader))
                {
                    return;
                }
                self.env.clock.sleep(LOOK_AGAIN).await;
            }
        };
        let known = self.env.clock.timeout(READY, known).await;
        admin.close().await;
        known.ok_or_else(|| io::Error::other("the leader could not register with the NameServer"))?;
        Ok(())
    }
}

//! What a broker process is told: read once, checked, and passed down by value. The file format is the binary's
//! business; here are the values and what must hold among them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What a message that is accepted can have of properties: a record has room for more, which its retries and its dead letter
/// need.
pub const PROPERTIES_BYTES_MAX: usize = protocol::properties::MAX_PROPERTIES_BYTES - 1024;

/// A broker process: what its groups share, and the groups.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// RocketMQ's brokerClusterName.
    pub cluster: String,
    /// NameServers to register with: "host:port".
    pub name_servers: Vec<String>,
    /// Where metrics and health are served; not at all if `None`.
    pub http: Option<SocketAddr>,
    /// Whether listening beyond loopback is allowed although nothing authenticates.
    pub allow_unauthenticated: bool,
    /// The groups that this process carries a replica of.
    pub groups: Vec<GroupConfig>,
}

/// One replica of one broker group.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// RocketMQ's brokerName: the same on every replica of the group.
    pub broker_name: String,
    /// The replica's directory.
    pub data_dir: PathBuf,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Also listen on `listen`'s port - 2, which old clients take for the fast lane.
    pub vip: bool,
    /// What clients are told to connect to, "ip:port": the offset message id carries it.
    pub advertised_address: SocketAddr,
    /// Where the other replicas connect.
    pub peer_listen: SocketAddr,
    /// What the other replicas are told to connect to, "host:port".
    pub peer_address: String,
    /// Peer addresses of all founding replicas, this one's too: the same list in the same order on each.
    pub founders: Vec<String>,
    /// Joins a group that exists, on a new directory.
    pub join: bool,
    /// What a member lacks of the log becomes less at this rate at most; 0 for as fast as it goes.
    pub catch_up_bytes_per_s: u64,
    /// When a message is acknowledged.
    pub flush: Flush,
    /// Log bytes per segment file; fixed for the cluster.
    pub segment_bytes: u64,
    /// Full log files are read through and verified at this rate; 0 for not at all.
    pub scrub_bytes_per_s: u64,
    /// How topics, groups and messages are treated.
    pub messages: MessagePolicy,
    /// How long messages are kept.
    pub retention: Retention,
    /// What is refused to protect the broker.
    pub limits: Limits,
    /// Raft's clock.
    pub raft: RaftTiming,
}

/// When a message is acknowledged: RocketMQ's `flushDiskType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flush {
    /// When it is durable on a majority.
    #[default]
    Sync,
    /// When it is written on a majority; durable after `interval`.
    Async {
        /// `flushIntervalCommitLog`.
        interval: Duration,
        /// When a majority's machines went down the group goes on by itself, without what they had not flushed.
        auto_recover: bool,
    },
}

impl Flush {
    /// RocketMQ's name.
    pub fn name(self) -> &'static str {
        match self {
            Flush::Sync => "SYNC_FLUSH",
            Flush::Async { .. } => "ASYNC_FLUSH",
        }
    }
}

/// RocketMQ's flush interval.
pub const DEFAULT_FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// How topics, groups and messages are treated; RocketMQ's names and defaults.
#[derive(Clone, Debug)]
pub struct MessagePolicy {
    /// Whether a send to an unknown topic creates it after the template TBW102.
    pub auto_create_topics: bool,
    /// Whether an unknown consumer group is created when it appears.
    pub auto_create_groups: bool,
    /// Whether consumers may select messages by SQL92 expressions: `enablePropertyFilter`.
    pub sql_filters: bool,
    /// Whether the group has the topic that clients send their message traces to: `traceTopicEnable`.
    pub trace_topic: bool,
    /// Queues of the template TBW102.
    pub default_topic_queues: u32,
    /// Delay of each level, level 1 first.
    pub delay_levels: Vec<Duration>,
    /// Longest delay that a message may ask for by time instead of level.
    pub longest_delay: Duration,
    /// Largest message body.
    pub body_bytes: usize,
    /// Largest encoded properties, at most [`PROPERTIES_BYTES_MAX`].
    pub properties_bytes: usize,
    /// How long an unrenewed queue lock holds.
    pub queue_lock: Duration,
    /// When producers are asked how transactions have ended.
    pub transactions: TransactionPolicy,
    /// Whether what a producer sends again under the same unique key is stored once, where neither the producer nor the
    /// topic says so.
    pub idempotent_send: bool,
    /// For how long after it became visible a message is recognised when it is sent again. The same on every replica; for as
    /// long no message goes for its log's size.
    pub idempotent_window: Duration,
}

/// When a producer group is asked how a transaction has ended, of which it says nothing by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionPolicy {
    /// So long after its half message was stored: `transactionTimeOut`.
    pub timeout: Duration,
    /// And again so long after the last time: `transactionCheckInterval`.
    pub check_interval: Duration,
    /// So often: `transactionCheckMax`. Only questions that were handed to a live producer count.
    pub check_max: u32,
}

impl Default for TransactionPolicy {
    fn default() -> Self {
        TransactionPolicy { timeout: Duration::from_secs(6), check_interval: Duration::from_secs(30), check_max: 15 }
    }
}

/// How long messages are kept; RocketMQ's rules and defaults.
#[derive(Clone, Debug)]
pub struct Retention {
    /// A message is kept at least this long, unless size or disk ask otherwise: `fileReservedTime`.
    pub time: Duration,
    /// At which hours of the day, UTC, expired messages go: `deleteWhen`.
    pub hours: Vec<u8>,
    /// Bytes of log that are kept at most; no limit if `None`.
    pub bytes: Option<u64>,
    /// From this share of the disk on, expired messages go at any hour: `diskMaxUsedSpaceRatio`.
    pub max_used_percent: u8,
    /// From this share on, the oldest messages go, expired or not: `diskSpaceCleanForciblyRatio`.
    pub clean_forcibly_percent: u8,
    /// From this share on, sends are refused: `diskSpaceWarningLevelRatio`.
    pub warning_level_percent: u8,
    /// Between two looks at what can go: `cleanResourceInterval`.
    pub look_interval: Duration,
    /// Bytes of messages that may wait for their time or the end of their transaction; a quarter of what may be kept if
    /// `None`.
    pub waiting_bytes: Option<u64>,
}

impl Default for Retention {
    fn default() -> Self {
        Retention {
            time: Duration::from_secs(72 * 3600),
            hours: vec![4],
            bytes: None,
            max_used_percent: 75,
            clean_forcibly_percent: 85,
            warning_level_percent: 90,
            look_interval: Duration::from_secs(10),
            waiting_bytes: None,
        }
    }
}

/// RocketMQ's `deleteWhen`: hours of the day, `04` or `04;16`; `*` for every hour.
pub fn parse_hours(text: &str) -> Result<Vec<u8>, ConfigError> {
    if text.trim() == "*" {
        return Ok((0..24).collect());
    }
    let hours = text.split(';').map(|hour| hour.trim().parse().ok().filter(|hour: &u8| *hour < 24));
    hours.collect::<Option<_>>().ok_or_else(|| {
        ConfigError::new("delete_when", format!("{text:?} is no list of hours such as \"04\" or \"04;16\", nor \"*\""))
    })
}

/// What is refused to protect the broker.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of messages that may wait for their quorum.
    pub sends_in_flight_bytes: usize,
    /// Messages that wait for their time or the end of their transaction. Of each a row of up to 512 bytes is in memory.
    pub scheduled_messages: u64,
    /// Messages of one queue in the hands of one consumer group that pops: `popInflightMessageThreshold`.
    pub popped_messages: usize,
    /// Client connections.
    pub connections: usize,
    /// Topics, retry and dead-letter topics among them. Also consumer groups.
    pub topics: usize,
    /// Queues of all topics together.
    pub queues: u64,
    /// How long a request waits for a leader that is not ready, before it is refused.
    pub leader_wait: Duration,
    /// How long a client is assumed to wait for the answer to a send: the wire does not say.
    pub send_deadline: Duration,
}

/// Raft's clock.
#[derive(Clone, Copy, Debug)]
pub struct RaftTiming {
    /// Between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// Shortest and longest silence after which a follower campaigns.
    pub election: (Duration, Duration),
}

impl Default for MessagePolicy {
    fn default() -> Self {
        MessagePolicy {
            auto_create_topics: true,
            auto_create_groups: true,
            sql_filters: true,
            trace_topic: true,
            default_topic_queues: 8,
            delay_levels: parse_delay_levels(DEFAULT_DELAY_LEVELS).expect("the default is well-formed"),
            longest_delay: Duration::from_secs(3 * 24 * 3600),
            body_bytes: 4 * 1024 * 1024,
            properties_bytes: PROPERTIES_BYTES_MAX,
            queue_lock: Duration::from_secs(60),
            transactions: TransactionPolicy::default(),
            idempotent_send: false,
            idempotent_window: Duration::from_secs(120),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sends_in_flight_bytes: 256 * 1024 * 1024,
            scheduled_messages: 5_000_000,
            popped_messages: 10_000,
            connections: 10_000,
            topics: 100_000,
            queues: 1_000_000,
            leader_wait: Duration::from_millis(2_500),
            send_deadline: Duration::from_secs(3),
        }
    }
}

impl Default for RaftTiming {
    fn default() -> Self {
        RaftTiming {
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(500), Duration::from_millis(1000)),
        }
    }
}

/// RocketMQ's `messageDelayLevel`.
pub const DEFAULT_DELAY_LEVELS: &str = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h";

/// Why a configuration is refused; says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    /// The key as the file has it.
    pub key: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl ConfigError {
    fn new(key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
        ConfigError { key: key.into(), problem: problem.into() }
    }
}

/// Reads levels such as `1s 5s 10m 2h`.
pub fn parse_delay_levels(text: &str) -> Result<Vec<Duration>, ConfigError> {
    let bad =
        |level: &str| ConfigError::new("delay_levels", format!("{level:?} is not a number and one of s, m, h, d"));
    text.split_whitespace()
        .map(|level| {
            let unit = level.chars().last().ok_or_else(|| bad(level))?;
            let seconds = match unit {
                's' => 1,
                'm' => 60,
                'h' => 3_600,
                'd' => 86_400,
                _ => return Err(bad(level)),
            };
            let count: u64 = level[..level.len() - 1].parse().map_err(|_| bad(level))?;
            count.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| bad(level))
        })
        .collect()
}

impl BrokerConfig {
    /// Checks what must hold among the values, before anything is opened.
    pub fn check(&self) -> Result<(), ConfigError> {
        let loopback = |key: &str, address: SocketAddr| {
            if address.ip().is_loopback() || self.allow_unauthenticated {
                return Ok(());
            }
            Err(ConfigError::new(
                key,
                format!(
                    "{address} can be reached from other machines and nothing authenticates yet; bind 127.0.0.1, or set \
                     allow_unauthenticated = true on a network where every machine is trusted"
                ),
            ))
        };
        if self.groups.is_empty() {
            return Err(ConfigError::new("group", "a broker carries at least one [[group]]"));
        }
        if let Some(http) = self.http {
            loopback("http", http)?;
        }
        for (k, group) in self.groups.iter().enumerate() {
            loopback("listen", group.listen)?;
            loopback("peer_listen", group.peer_listen)?;
            group.check()?;
            for other in &self.groups[..k] {
                let clash = |key: &str, what: &dyn std::fmt::Debug| {
                    ConfigError::new(key, format!("{what:?} is used by two groups of this file"))
                };
                if other.broker_name == group.broker_name {
                    return Err(clash("broker_name", &group.broker_name));
                }
                if other.data_dir == group.data_dir {
                    return Err(clash("data_dir", &group.data_dir));
                }
                for (key, address) in group.listeners() {
                    if other.listeners().iter().any(|(_, taken)| *taken == address) {
                        return Err(clash(key, &address));
                    }
                }
            }
        }
        Ok(())
    }
}

impl GroupConfig {
    /// Every address that is listened on, with the key that says so.
    fn listeners(&self) -> Vec<(&'static str, SocketAddr)> {
        let vip = self.vip_listen().map(|address| ("vip", address));
        [("listen", self.listen), ("peer_listen", self.peer_listen)].into_iter().chain(vip).collect()
    }

    /// The fast lane of old clients: two ports below, if it is wanted and there is such a port.
    pub fn vip_listen(&self) -> Option<SocketAddr> {
        let port = self.listen.port().checked_sub(2).filter(|port| self.vip && *port > 0)?;
        Some(SocketAddr::new(self.listen.ip(), port))
    }

    fn check(&self) -> Result<(), ConfigError> {
        protocol::names::validate_topic(&self.broker_name)
            .map_err(|error| ConfigError::new("broker_name", error.to_string()))?;
        if self.advertised_address.ip().is_unspecified() {
            return Err(ConfigError::new(
                "advertised_address",
                format!("clients cannot connect to {}; name an address of this machine", self.advertised_address),
            ));
        }
        if !self.join && !self.founders.contains(&self.peer_address) {
            return Err(ConfigError::new(
                "founders",
                format!(
                    "{} (peer_address) is not among them; list every founding replica, this one too",
                    self.peer_address
                ),
            ));
        }
        if self.founders.len().is_multiple_of(2) && !self.founders.is_empty() {
            return Err(ConfigError::new(
                "founders",
                format!(
                    "{} replicas tolerate no more failures than {}; use 1, 3 or 5",
                    self.founders.len(),
                    self.founders.len() - 1
                ),
            ));
        }
        let mut sorted = self.founders.clone();
        sorted.sort();
        sorted.dedup();
        if sorted.len() != self.founders.len() {
            return Err(ConfigError::new("founders", "an address stands there twice"));
        }
        if !self.segment_bytes.is_multiple_of(1024 * 1024) || !(16 << 20..=16 << 30).contains(&self.segment_bytes) {
            return Err(ConfigError::new("segment_mib", "a segment has 16 to 16384 MiB"));
        }
        if self.messages.delay_levels.is_empty() {
            return Err(ConfigError::new("delay_levels", "retries need at least one level"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> GroupConfig {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        GroupConfig {
            broker_name: "broker-a".to_owned(),
            data_dir: "data/broker-a".into(),
            listen: at(10911),
            vip: true,
            advertised_address: at(10911),
            peer_listen: at(10912),
            peer_address: "127.0.0.1:10912".to_owned(),
            founders: vec!["127.0.0.1:10912".to_owned()],
            join: false,
            flush: Flush::Sync,
            segment_bytes: 64 << 20,
            catch_up_bytes_per_s: 0,
            scrub_bytes_per_s: 0,
            messages: MessagePolicy::default(),
            retention: Retention::default(),
            limits: Limits::default(),
            raft: RaftTiming::default(),
        }
    }

    fn broker(groups: Vec<GroupConfig>) -> BrokerConfig {
        BrokerConfig {
            cluster: "DefaultCluster".to_owned(),
            name_servers: vec!["127.0.0.1:9876".to_owned()],
            http: None,
            allow_unauthenticated: false,
            groups,
        }
    }

    /// A second group; peers connect two ports above.
    fn other(port: u16) -> GroupConfig {
        let [listen, peer_listen] = [port, port + 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        GroupConfig {
            broker_name: "broker-b".to_owned(),
            data_dir: "data/broker-b".into(),
            listen,
            peer_listen,
            peer_address: peer_listen.to_string(),
            founders: vec![peer_listen.to_string()],
            ..group()
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_key_to_change() {
        assert_eq!(broker(vec![group()]).check(), Ok(()));
        assert_eq!(broker(vec![group(), other(10921)]).check(), Ok(()));
        let any = SocketAddr::from(([0, 0, 0, 0], 10911));
        let cases: Vec<(&str, BrokerConfig)> = vec![
            ("group", broker(vec![])),
            ("listen", broker(vec![GroupConfig { listen: any, ..group() }])),
            ("advertised_address", broker(vec![GroupConfig { advertised_address: any, ..group() }])),
            ("founders", broker(vec![GroupConfig { founders: vec!["127.0.0.1:1".to_owned()], ..group() }])),
            ("founders", broker(vec![GroupConfig { founders: vec!["127.0.0.1:10912".to_owned(); 3], ..group() }])),
            ("segment_mib", broker(vec![GroupConfig { segment_bytes: 1, ..group() }])),
            ("broker_name", broker(vec![GroupConfig { broker_name: "a/b".to_owned(), ..group() }])),
            ("broker_name", broker(vec![group(), group()])),
            ("listen", broker(vec![group(), other(10911)])),
            ("peer_listen", broker(vec![group(), other(10910)])),
            ("vip", broker(vec![group(), other(10914)])),
        ];
        for (key, config) in cases {
            assert_eq!(config.check().expect_err("it cannot work").key, key);
        }
    }

    #[test]
    fn delay_levels_are_rocketmq_s() {
        let levels = parse_delay_levels(DEFAULT_DELAY_LEVELS).expect("the default");
        assert_eq!(levels.len(), 18);
        assert_eq!(
            (levels[0], levels[4], levels[17]),
            (Duration::from_secs(1), Duration::from_secs(60), Duration::from_secs(7200))
        );
        for bad in ["1", "s", "1w", "-1s", "é"] {
            assert!(parse_delay_levels(bad).is_err(), "{bad}");
        }
    }
}

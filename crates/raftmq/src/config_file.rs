//! Configuration files: TOML text in, checked values out.
//!
//! Nothing is guessed. An unknown key is refused with the key that was probably meant, RocketMQ's own names included,
//! and every error names file, line and key. Units are in the names. What a key means is said in `config/*.toml`, which
//! a test loads.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use broker::config::{
    BrokerConfig, DEFAULT_FLUSH_INTERVAL, Flush, GroupConfig, Limits, MessagePolicy, PROPERTIES_BYTES_MAX, RaftTiming,
    Retention, TransactionPolicy, parse_delay_levels, parse_hours,
};
use env::Env;
use env::disk::Open;
use nameserver::NameServerConfig;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};

/// What a broker file asks for.
#[derive(Debug)]
pub struct BrokerProcess {
    /// The broker groups.
    pub broker: BrokerConfig,
    /// A NameServer in the same process, if the file wants one.
    pub name_server: Option<NameServerConfig>,
}

/// Reads and checks a broker file.
pub async fn load_broker(env: &Env, path: &Path) -> Result<BrokerProcess, ConfigFileError> {
    broker_from(&read(env, path).await?).map_err(|problem| problem.in_file(path))
}

/// Reads and checks a NameServer file.
pub async fn load_name_server(env: &Env, path: &Path) -> Result<NameServerConfig, ConfigFileError> {
    name_server_from(&read(env, path).await?).map_err(|problem| problem.in_file(path))
}

/// A file that cannot be used, and what to change in it.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigFileError {
    file: PathBuf,
    problem: Problem,
}

impl std::error::Error for ConfigFileError {}

impl fmt::Display for ConfigFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match self.problem.lines.as_slice() {
            [] => {}
            [line] => write!(f, ":{line}")?,
            [first, rest @ ..] => {
                write!(f, ": line {first}")?;
                rest.iter().try_for_each(|line| write!(f, " or {line}"))?;
            }
        }
        if let Some(key) = &self.problem.key {
            write!(f, ": `{key}`")?;
        }
        write!(f, ": {}", self.problem.text)
    }
}

/// An error in a file's text, before anybody has said which file that is.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    /// Where it may be, counted from 1; several if the key stands in several groups.
    lines: Vec<usize>,
    key: Option<String>,
    text: String,
}

impl Problem {
    fn in_file(self, file: &Path) -> ConfigFileError {
        ConfigFileError { file: file.to_owned(), problem: self }
    }

    /// A value that parses but cannot be: found by its key.
    fn at_key(text: &str, key: &str, problem: impl Into<String>) -> Problem {
        let lines = text.lines().zip(1..).filter(|(line, _)| key_of(line) == Some(key)).map(|(_, number)| number);
        Problem { lines: lines.collect(), key: Some(key.to_owned()), text: problem.into() }
    }
}

/// The key that a line sets, or the table it opens.
fn key_of(line: &str) -> Option<&str> {
    let line = line.trim();
    if line.starts_with('#') {
        None
    } else if line.starts_with('[') {
        Some(line.split(']').next()?.trim_start_matches('[').trim())
    } else {
        line.split_once('=').map(|(key, _)| key.trim())
    }
}

async fn read(env: &Env, path: &Path) -> Result<String, ConfigFileError> {
    /// Nobody writes a configuration this long; a log file given by mistake is refused unread.
    const MAX_BYTES: u64 = 1024 * 1024;
    let refuse = |text: String| Problem { lines: Vec::new(), key: None, text }.in_file(path);
    let file = env.disk.open(path, Open::Existing).await.map_err(|error| refuse(format!("cannot open it: {error}")))?;
    let bytes = file.len().map_err(|error| refuse(format!("cannot read it: {error}")))?;
    if bytes > MAX_BYTES {
        return Err(refuse(format!("{bytes} bytes are too many for a configuration")));
    }
    let content = file.read_at(0, bytes as usize).await.map_err(|error| refuse(format!("cannot read it: {error}")))?;
    String::from_utf8(content.to_vec()).map_err(|_| refuse("it is not UTF-8 text".to_owned()))
}

/// The keys at the top of a broker file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BrokerFile {
    #[serde(default = "default_cluster")]
    cluster: String,
    #[serde(default = "default_name_servers")]
    namesrv: Vec<HostPort>,
    #[serde(default = "default_http")]
    http: Switchable,
    #[serde(default)]
    allow_unauthenticated: bool,
    nameserver: Option<SocketAddr>,
    #[serde(default)]
    group: Vec<GroupFile>,
}

/// The keys of one `[[group]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupFile {
    broker_name: String,
    data_dir: PathBuf,
    listen: SocketAddr,
    vip: Option<bool>,
    advertised_address: Option<SocketAddr>,
    peer_listen: Option<SocketAddr>,
    peer_address: Option<HostPort>,
    #[serde(default)]
    founders: Vec<HostPort>,
    #[serde(default)]
    join: bool,
    #[serde(default)]
    flush: FlushName,
    flush_interval_ms: Option<u64>,
    async_auto_recover: Option<bool>,
    #[serde(default = "default_segment_mib")]
    segment_mib: u64,
    scrub_mib_per_s: Option<u64>,
    catch_up_mib_per_s: Option<u64>,
    auto_create_topics: Option<bool>,
    auto_create_groups: Option<bool>,
    sql_filters: Option<bool>,
    trace_topic: Option<bool>,
    idempotent_send: Option<bool>,
    idempotent_window_ms: Option<u64>,
    default_topic_queues: Option<u32>,
    delay_levels: Option<String>,
    longest_delay_seconds: Option<u64>,
    max_message_bytes: Option<usize>,
    max_properties_bytes: Option<usize>,
    queue_lock_ms: Option<u64>,
    transaction_timeout_ms: Option<u64>,
    transaction_check_interval_ms: Option<u64>,
    transaction_check_max: Option<u32>,
    file_reserved_hours: Option<u64>,
    delete_when: Option<String>,
    log_limit_mib: Option<u64>,
    disk_max_used_percent: Option<u8>,
    disk_clean_forcibly_percent: Option<u8>,
    disk_warning_percent: Option<u8>,
    waiting_mib: Option<u64>,
    sends_in_flight_mib: Option<usize>,
    scheduled_messages: Option<u64>,
    popped_messages: Option<usize>,
    connections: Option<usize>,
    topics: Option<usize>,
    queues: Option<u64>,
    leader_wait_ms: Option<u64>,
    send_deadline_ms: Option<u64>,
    heartbeat_ms: Option<u64>,
    election_min_ms: Option<u64>,
    election_max_ms: Option<u64>,
}

/// The keys of a NameServer file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NameServerFile {
    #[serde(default = "default_name_server_listen")]
    listen: SocketAddr,
    #[serde(default)]
    allow_unauthenticated: bool,
    broker_expiry_ms: Option<u64>,
    order_message_enable: Option<bool>,
    connections: Option<usize>,
}

/// Where a `host:port` is checked to be one; the host may be a DNS name.
#[derive(Clone)]
struct HostPort(String);

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HostPort, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => {
                Ok(HostPort(text))
            }
            _ => Err(D::Error::custom(format!("{text:?} is not host:port, such as \"10.0.0.1:9876\""))),
        }
    }
}

/// An address, or none if the text is empty.
struct Switchable(Option<SocketAddr>);

impl<'de> Deserialize<'de> for Switchable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Switchable, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Switchable(None));
        }
        let address = text.parse();
        address.map(|address| Switchable(Some(address))).map_err(|_| {
            D::Error::custom(format!("{text:?} is not ip:port, such as \"127.0.0.1:5557\", nor empty for none"))
        })
    }
}

/// RocketMQ's names of when a message is acknowledged.
#[derive(Clone, Copy, Default, PartialEq)]
enum FlushName {
    #[default]
    Sync,
    Async,
}

impl<'de> Deserialize<'de> for FlushName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FlushName, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "SYNC_FLUSH" => Ok(FlushName::Sync),
            "ASYNC_FLUSH" => Ok(FlushName::Async),
            other => {
                Err(D::Error::custom(format!("{other:?} is no flush mode; use \"SYNC_FLUSH\" or \"ASYNC_FLUSH\"")))
            }
        }
    }
}

fn default_cluster() -> String {
    "DefaultCluster".to_owned()
}

fn default_name_servers() -> Vec<HostPort> {
    vec![HostPort("127.0.0.1:9876".to_owned())]
}

fn default_http() -> Switchable {
    Switchable(Some(SocketAddr::from(([127, 0, 0, 1], 5557))))
}

fn default_name_server_listen() -> SocketAddr {
    NameServerConfig::default().listen
}

/// A terabyte in three days.
const DEFAULT_SCRUB_MIB_PER_S: u64 = 4;
const DEFAULT_CATCH_UP_MIB_PER_S: u64 = 32;

fn default_segment_mib() -> u64 {
    1024
}

fn broker_from(text: &str) -> Result<BrokerProcess, Problem> {
    let file: BrokerFile = toml::from_str(text).map_err(|error| explain(text, &error))?;
    let name_server = file.nameserver.map(|listen| NameServerConfig {
        listen,
        allow_unauthenticated: file.allow_unauthenticated,
        ..NameServerConfig::default()
    });
    if let Some(config) = &name_server {
        config.check().map_err(|problem| Problem::at_key(text, "nameserver", problem.problem))?;
    }
    let groups = file.group.into_iter().map(|group| group_from(text, group)).collect::<Result<_, _>>()?;
    let broker = BrokerConfig {
        cluster: file.cluster,
        name_servers: file.namesrv.into_iter().map(|HostPort(address)| address).collect(),
        http: file.http.0,
        allow_unauthenticated: file.allow_unauthenticated,
        groups,
    };
    broker.check().map_err(|error| Problem::at_key(text, &error.key, error.problem))?;
    Ok(BrokerProcess { broker, name_server })
}

fn group_from(text: &str, file: GroupFile) -> Result<GroupConfig, Problem> {
    let retention = retention_from(text, &file)?;
    let flush = match file.flush {
        FlushName::Sync => Flush::Sync,
        FlushName::Async => Flush::Async {
            interval: file.flush_interval_ms.map_or(DEFAULT_FLUSH_INTERVAL, Duration::from_millis),
            auto_recover: file.async_auto_recover.unwrap_or(false),
        },
    };
    if matches!(flush, Flush::Async { interval: Duration::ZERO, .. }) {
        return Err(Problem::at_key(text, "flush_interval_ms", "for a flush at once use flush = \"SYNC_FLUSH\""));
    }
    let ms = |given: Option<u64>, default: Duration| given.map_or(default, Duration::from_millis);
    let (policy, limits, timing) = (MessagePolicy::default(), Limits::default(), RaftTiming::default());
    let delay_levels = match &file.delay_levels {
        Some(levels) => parse_delay_levels(levels).map_err(|error| Problem::at_key(text, &error.key, error.problem))?,
        None => policy.delay_levels.clone(),
    };
    let peer_listen = match file.peer_listen {
        Some(address) => address,
        None => {
            let port = file.listen.port().checked_add(1);
            let port = port.ok_or_else(|| Problem::at_key(text, "listen", "no port is left above it for peers"))?;
            SocketAddr::new(file.listen.ip(), port)
        }
    };
    let peer_address = file.peer_address.map_or_else(|| peer_listen.to_string(), |HostPort(address)| address);
    let election = (ms(file.election_min_ms, timing.election.0), ms(file.election_max_ms, timing.election.1));
    if election.0 >= election.1 {
        return Err(Problem::at_key(text, "election_max_ms", "it must be above election_min_ms"));
    }
    let heartbeat = ms(file.heartbeat_ms, timing.heartbeat);
    if heartbeat.is_zero() || heartbeat * 3 > election.0 {
        let problem = "three heartbeats must fit into election_min_ms, or followers campaign against a living leader";
        return Err(Problem::at_key(text, "heartbeat_ms", problem));
    }
    let bounded = |key: &'static str, value: usize| match value {
        0 => Err(Problem::at_key(text, key, "0 would refuse everything")),
        value => Ok(value),
    };
    let mib = |key: &'static str, value: usize| match value.checked_mul(1024 * 1024) {
        Some(bytes) => bounded(key, bytes),
        None => Err(Problem::at_key(text, key, "it is more than this machine can address")),
    };
    let sends_in_flight_bytes = match file.sends_in_flight_mib {
        Some(value) => mib("sends_in_flight_mib", value)?,
        None => limits.sends_in_flight_bytes,
    };
    let properties_bytes = file.max_properties_bytes.unwrap_or(policy.properties_bytes);
    if properties_bytes > PROPERTIES_BYTES_MAX {
        let problem =
            format!("at most {PROPERTIES_BYTES_MAX}: a record has room for little more, and its retries need that");
        return Err(Problem::at_key(text, "max_properties_bytes", problem));
    }
    let segment_bytes = file.segment_mib.checked_mul(1024 * 1024);
    let segment_bytes =
        segment_bytes.ok_or_else(|| Problem::at_key(text, "segment_mib", "a segment has 16 to 16384 MiB"))?;
    let rate = |key: &'static str, mib_per_s: u64| match mib_per_s.checked_mul(1024 * 1024) {
        Some(bytes_per_s) => Ok(bytes_per_s),
        None => Err(Problem::at_key(text, key, "no disk is that fast")),
    };
    let scrub_bytes_per_s = rate("scrub_mib_per_s", file.scrub_mib_per_s.unwrap_or(DEFAULT_SCRUB_MIB_PER_S))?;
    let catch_up_bytes_per_s =
        rate("catch_up_mib_per_s", file.catch_up_mib_per_s.unwrap_or(DEFAULT_CATCH_UP_MIB_PER_S))?;
    Ok(GroupConfig {
        broker_name: file.broker_name,
        data_dir: file.data_dir,
        listen: file.listen,
        vip: file.vip.unwrap_or(true),
        advertised_address: file.advertised_address.unwrap_or(file.listen),
        peer_listen,
        peer_address,
        founders: file.founders.into_iter().map(|HostPort(address)| address).collect(),
        join: file.join,
        catch_up_bytes_per_s,
        flush,
        segment_bytes,
        scrub_bytes_per_s,
        messages: MessagePolicy {
            auto_create_topics: file.auto_create_topics.unwrap_or(policy.auto_create_topics),
            auto_create_groups: file.auto_create_groups.unwrap_or(policy.auto_create_groups),
            sql_filters: file.sql_filters.unwrap_or(policy.sql_filters),
            trace_topic: file.trace_topic.unwrap_or(policy.trace_topic),
            idempotent_send: file.idempotent_send.unwrap_or(policy.idempotent_send),
            idempotent_window: ms(file.idempotent_window_ms, policy.idempotent_window),
            default_topic_queues: file.default_topic_queues.unwrap_or(policy.default_topic_queues),
            delay_levels,
            body_bytes: bounded("max_message_bytes", file.max_message_bytes.unwrap_or(policy.body_bytes))?,
            properties_bytes,
            queue_lock: ms(file.queue_lock_ms, policy.queue_lock),
            transactions: TransactionPolicy {
                timeout: ms(file.transaction_timeout_ms, policy.transactions.timeout),
                check_interval: ms(file.transaction_check_interval_ms, policy.transactions.check_interval),
                check_max: file.transaction_check_max.unwrap_or(policy.transactions.check_max),
            },
            longest_delay: file.longest_delay_seconds.map_or(policy.longest_delay, Duration::from_secs),
        },
        retention,
        limits: Limits {
            sends_in_flight_bytes,
            scheduled_messages: file.scheduled_messages.unwrap_or(limits.scheduled_messages),
            popped_messages: bounded("popped_messages", file.popped_messages.unwrap_or(limits.popped_messages))?,
            connections: bounded("connections", file.connections.unwrap_or(limits.connections))?,
            topics: bounded("topics", file.topics.unwrap_or(limits.topics))?,
            queues: file.queues.unwrap_or(limits.queues),
            leader_wait: ms(file.leader_wait_ms, limits.leader_wait),
            send_deadline: ms(file.send_deadline_ms, limits.send_deadline),
        },
        raft: RaftTiming { heartbeat, election },
    })
}

fn retention_from(text: &str, file: &GroupFile) -> Result<Retention, Problem> {
    let default = Retention::default();
    let bytes = |key: &'static str, mib: Option<u64>| match mib.unwrap_or(0).checked_mul(1024 * 1024) {
        Some(bytes) => Ok(Some(bytes).filter(|bytes| *bytes > 0)),
        None => Err(Problem::at_key(text, key, "no disk is that large; 0 for no limit")),
    };
    let retention = Retention {
        time: file.file_reserved_hours.map_or(default.time, |hours| Duration::from_secs(hours.saturating_mul(3600))),
        hours: match &file.delete_when {
            Some(hours) => parse_hours(hours).map_err(|error| Problem::at_key(text, &error.key, error.problem))?,
            None => default.hours,
        },
        bytes: bytes("log_limit_mib", file.log_limit_mib)?,
        max_used_percent: file.disk_max_used_percent.unwrap_or(default.max_used_percent),
        clean_forcibly_percent: file.disk_clean_forcibly_percent.unwrap_or(default.clean_forcibly_percent),
        warning_level_percent: file.disk_warning_percent.unwrap_or(default.warning_level_percent),
        look_interval: default.look_interval,
        waiting_bytes: bytes("waiting_mib", file.waiting_mib)?,
    };
    if retention.time.is_zero() {
        return Err(Problem::at_key(text, "file_reserved_hours", "0 would keep nothing"));
    }
    let levels = [
        ("disk_max_used_percent", retention.max_used_percent),
        ("disk_clean_forcibly_percent", retention.clean_forcibly_percent),
        ("disk_warning_percent", retention.warning_level_percent),
    ];
    if let Some((key, _)) = levels.iter().find(|(_, percent)| !(1..=100).contains(percent)) {
        return Err(Problem::at_key(text, key, "a share of the disk is 1 to 100 percent"));
    }
    if let Some(pair) = levels.windows(2).find(|pair| pair[0].1 > pair[1].1) {
        return Err(Problem::at_key(text, pair[1].0, format!("it must not be below {}", pair[0].0)));
    }
    Ok(retention)
}

fn name_server_from(text: &str) -> Result<NameServerConfig, Problem> {
    let file: NameServerFile = toml::from_str(text).map_err(|error| explain(text, &error))?;
    let default = NameServerConfig::default();
    let config = NameServerConfig {
        listen: file.listen,
        allow_unauthenticated: file.allow_unauthenticated,
        broker_expiry: file.broker_expiry_ms.map_or(default.broker_expiry, Duration::from_millis),
        order_message_enable: file.order_message_enable.unwrap_or(default.order_message_enable),
        connections: file.connections.unwrap_or(default.connections),
    };
    config.check().map_err(|error| Problem::at_key(text, error.key, error.problem))?;
    Ok(config)
}

/// RocketMQ's names for what has another name here.
const ROCKETMQ_KEYS: [(&str, &str); 26] = [
    ("autoCreateSubscriptionGroup", "auto_create_groups"),
    ("autoCreateTopicEnable", "auto_create_topics"),
    ("brokerClusterName", "cluster"),
    ("brokerIP1", "advertised_address"),
    ("dLegerGroup", "broker_name"),
    ("dLegerPeers", "founders"),
    ("defaultTopicQueueNums", "default_topic_queues"),
    ("deleteWhen", "delete_when"),
    ("diskMaxUsedSpaceRatio", "disk_max_used_percent"),
    ("diskSpaceCleanForciblyRatio", "disk_clean_forcibly_percent"),
    ("diskSpaceWarningLevelRatio", "disk_warning_percent"),
    ("enablePropertyFilter", "sql_filters"),
    ("fileReservedTime", "file_reserved_hours"),
    ("flushDiskType", "flush"),
    ("flushIntervalCommitLog", "flush_interval_ms"),
    ("haListenPort", "peer_listen"),
    ("listenPort", "listen"),
    ("mappedFileSizeCommitLog", "segment_mib"),
    ("maxMessageSize", "max_message_bytes"),
    ("messageDelayLevel", "delay_levels"),
    ("metricsPromExporterPort", "http"),
    ("namesrvAddr", "namesrv"),
    ("popInflightMessageThreshold", "popped_messages"),
    ("storePathRootDir", "data_dir"),
    ("timerMaxDelaySec", "longest_delay_seconds"),
    ("traceTopicEnable", "trace_topic"),
];

/// Says a parser's error in the user's words.
fn explain(text: &str, error: &toml::de::Error) -> Problem {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = &text.as_bytes()[..at];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let key = text.lines().nth(line - 1).and_then(key_of).map(str::to_owned);
    let message = error.message();
    let problem = match unknown_field(message) {
        Some((unknown, known)) => {
            return Problem { lines: vec![line], key: Some(unknown.to_owned()), text: unknown_key(unknown, &known) };
        }
        None => message.to_owned(),
    };
    // The span of a missing key is that of its whole table: its first line says which one.
    Problem { lines: vec![line], key: key.filter(|_| !message.starts_with("missing field")), text: problem }
}

/// The key and those that were possible, out of serde's message: there is no other way to learn them.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let mut quoted = rest.split('`').step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

/// Every key that a table can have.
fn keys_of<T: DeserializeOwned>() -> Vec<String> {
    let Err(error) = toml::from_str::<T>("'' = 0") else { return Vec::new() };
    unknown_field(error.message()).map_or_else(Vec::new, |(_, known)| known.into_iter().map(str::to_owned).collect())
}

fn unknown_key(unknown: &str, known: &[&str]) -> String {
    let is_known = |key: &str| known.contains(&key);
    if let Some((_, ours)) = ROCKETMQ_KEYS.iter().find(|(theirs, ours)| *theirs == unknown && is_known(ours)) {
        return format!("unknown key: RocketMQ's name for `{ours}`");
    }
    let (top, group) = (keys_of::<BrokerFile>(), keys_of::<GroupFile>());
    let among = |keys: &[String]| keys.iter().any(|key| key == unknown);
    if is_known("broker_name") && among(&top) {
        return "unknown key in [[group]]: it belongs above the first [[group]]".to_owned();
    }
    if is_known("group") && among(&group) {
        return "unknown key here: it belongs below a [[group]]".to_owned();
    }
    let near = known.iter().map(|key| (distance(&fold(unknown), &fold(key)), key)).min();
    match near {
        Some((steps, key)) if steps * 2 <= unknown.len().max(4) => format!("unknown key: did you mean `{key}`?"),
        _ => format!("unknown key; known are {}", known.join(", ")),
    }
}

/// camelCase, kebab-case and snake_case are the same name.
fn fold(key: &str) -> Vec<u8> {
    key.bytes().filter(u8::is_ascii_alphanumeric).map(|byte| byte.to_ascii_lowercase()).collect()
}

/// Levenshtein's distance.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = r#"
[[group]]
broker_name = "broker-a"
data_dir = "data/a"
listen = "127.0.0.1:10911"
founders = ["127.0.0.1:10912"]
"#;

    fn refusal(text: &str) -> String {
        match broker_from(text) {
            Ok(_) => panic!("accepted:\n{text}"),
            Err(problem) => problem.in_file(Path::new("broker.toml")).to_string(),
        }
    }

    #[test]
    fn the_least_that_works_gets_rocketmq_s_defaults() {
        let process = broker_from(GROUP).expect("it works");
        assert!(process.name_server.is_none());
        let broker = process.broker;
        assert_eq!(
            (broker.cluster.as_str(), broker.name_servers.as_slice()),
            ("DefaultCluster", &["127.0.0.1:9876".to_owned()][..])
        );
        assert_eq!(broker.http, Some("127.0.0.1:5557".parse().unwrap()));
        let group = &broker.groups[0];
        assert_eq!(group.advertised_address, group.listen);
        assert_eq!((group.peer_listen.port(), group.peer_address.as_str()), (10912, "127.0.0.1:10912"));
        assert_eq!((group.vip, group.join, group.segment_bytes), (true, false, 1 << 30));
        assert_eq!((group.messages.default_topic_queues, group.messages.delay_levels.len()), (8, 18));
    }

    #[test]
    fn units_and_switches_arrive() {
        let text = format!(
            "http = \"\"\nnameserver = \"127.0.0.1:9877\"\n{GROUP}segment_mib = 64\nvip = false\nqueue_lock_ms = 5\n\
             sends_in_flight_mib = 2\npopped_messages = 7\nelection_min_ms = 300\nelection_max_ms = 600\ndelay_levels = \"2s 1h\"\n"
        );
        let process = broker_from(&text).expect("it works");
        assert_eq!(process.name_server.expect("asked for").listen.port(), 9877);
        let group = &process.broker.groups[0];
        assert_eq!((process.broker.http, group.vip, group.segment_bytes), (None, false, 64 << 20));
        assert_eq!((group.messages.queue_lock.as_millis(), group.limits.sends_in_flight_bytes), (5, 2 << 20));
        assert_eq!(group.limits.popped_messages, 7);
        assert_eq!(group.raft.election, (Duration::from_millis(300), Duration::from_millis(600)));
        assert_eq!(group.messages.delay_levels, [Duration::from_secs(2), Duration::from_secs(3600)]);
    }

    #[test]
    fn errors_say_file_line_key_and_what_to_do() {
        let cases: [(String, &str); 25] = [
            (
                format!("{GROUP}fileReservedTime = 48"),
                "broker.toml:7: `fileReservedTime`: unknown key: RocketMQ's name for `file_reserved_hours`",
            ),
            (
                format!("{GROUP}delete_when = \"24\""),
                "broker.toml:7: `delete_when`: \"24\" is no list of hours such as \"04\" or \"04;16\", nor \"*\"",
            ),
            (
                format!("{GROUP}disk_warning_percent = 80"),
                "broker.toml:7: `disk_warning_percent`: it must not be below disk_clean_forcibly_percent",
            ),
            (format!("{GROUP}file_reserved_hours = 0"), "broker.toml:7: `file_reserved_hours`: 0 would keep nothing"),
            ("namesvr = []".into(), "broker.toml:1: `namesvr`: unknown key: did you mean `namesrv`?"),
            ("\n\nclutser = \"c\"".into(), "broker.toml:3: `clutser`: unknown key: did you mean `cluster`?"),
            ("namesrvAddr = \"x\"".into(), "broker.toml:1: `namesrvAddr`: unknown key: RocketMQ's name for `namesrv`"),
            ("segment_mib = 1".into(), "broker.toml:1: `segment_mib`: unknown key here: it belongs below a [[group]]"),
            (
                format!("{GROUP}cluster = \"c\""),
                "broker.toml:7: `cluster`: unknown key in [[group]]: it belongs above the first [[group]]",
            ),
            (
                format!("{GROUP}brokerName = \"c\""),
                "broker.toml:7: `brokerName`: unknown key: did you mean `broker_name`?",
            ),
            (
                format!("{GROUP}listenPort = 1"),
                "broker.toml:7: `listenPort`: unknown key: RocketMQ's name for `listen`",
            ),
            (
                "wibble_wobble_quux = 1".into(),
                "broker.toml:1: `wibble_wobble_quux`: unknown key; known are cluster, namesrv, http, \
                 allow_unauthenticated, nameserver, group",
            ),
            (
                format!("{GROUP}segment_mib = \"64\""),
                "broker.toml:7: `segment_mib`: invalid type: string \"64\", expected u64",
            ),
            (format!("{GROUP}segment_mib = 7"), "broker.toml:7: `segment_mib`: a segment has 16 to 16384 MiB"),
            (
                format!("{GROUP}flush = \"NO_FLUSH\""),
                "broker.toml:7: `flush`: \"NO_FLUSH\" is no flush mode; use \"SYNC_FLUSH\" or \"ASYNC_FLUSH\"",
            ),
            (
                "namesrv = [\"127.0.0.1\"]".into(),
                "broker.toml:1: `namesrv`: \"127.0.0.1\" is not host:port, such as \"10.0.0.1:9876\"",
            ),
            (
                "http = \"no\"".into(),
                "broker.toml:1: `http`: \"no\" is not ip:port, such as \"127.0.0.1:5557\", nor empty for none",
            ),
            ("[[group]]\nlisten = \"127.0.0.1:1\"".into(), "broker.toml:1: missing field `broker_name`"),
            (
                format!("{GROUP}heartbeat_ms = 400"),
                "broker.toml:7: `heartbeat_ms`: three heartbeats must fit into election_min_ms, or followers campaign \
                 against a living leader",
            ),
            (format!("{GROUP}topics = 0"), "broker.toml:7: `topics`: 0 would refuse everything"),
            (format!("{GROUP}popped_messages = 0"), "broker.toml:7: `popped_messages`: 0 would refuse everything"),
            (
                format!("{GROUP}popped_messages = -1"),
                "broker.toml:7: `popped_messages`: invalid value: integer `-1`, expected usize",
            ),
            (
                format!("{GROUP}popInflightMessageThreshold = 1"),
                "broker.toml:7: `popInflightMessageThreshold`: unknown key: RocketMQ's name for `popped_messages`",
            ),
            (
                format!("{GROUP}delay_levels = \"1w\""),
                "broker.toml:7: `delay_levels`: \"1w\" is not a number and one of s, m, h, d",
            ),
            (
                format!("{GROUP}{GROUP}"),
                "broker.toml: line 3 or 9: `broker_name`: \"broker-a\" is used by two groups of this file",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(refusal(&text), expected, "{text}");
        }
    }

    #[test]
    fn an_address_that_others_reach_needs_a_decision() {
        let open = GROUP.replace("listen = \"127.0.0.1", "advertised_address = \"10.0.0.1:10911\"\nlisten = \"0.0.0.0");
        let open = open.replace("founders", "peer_address = \"127.0.0.1:10912\"\nfounders");
        let said = refusal(&open);
        assert!(said.starts_with("broker.toml:6: `listen`: 0.0.0.0:10911 can be reached"), "{said}");
        assert!(said.contains("allow_unauthenticated = true"), "{said}");
        broker_from(&format!("allow_unauthenticated = true\n{open}")).expect("decided");

        let said = match name_server_from("\nlisten = \"0.0.0.0:9876\"") {
            Ok(_) => panic!("accepted"),
            Err(problem) => problem.in_file(Path::new("nameserver.toml")).to_string(),
        };
        assert!(said.starts_with("nameserver.toml:2: `listen`: 0.0.0.0:9876 can be reached"), "{said}");
    }

    #[test]
    fn text_that_is_no_toml_is_located() {
        let said = refusal("cluster = \"x\"\nnamesrv = [");
        assert!(said.starts_with("broker.toml:2: `namesrv`: "), "{said}");
    }

    /// What broker.toml shows as a default is one, and it shows every key.
    #[test]
    fn the_shipped_broker_file_tells_the_truth_about_defaults() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/broker.toml");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let shipped = runtime.block_on(read(&Env::real(), &root)).expect("it is there");
        let keys: Vec<String> = keys_of::<BrokerFile>().into_iter().chain(keys_of::<GroupFile>()).collect();
        let uncommented = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if key_of(rest).is_some_and(|key| keys.iter().any(|known| known == key)) => rest.to_owned(),
            _ => line.to_owned(),
        };
        let spelled_out: String = shipped.lines().map(|line| uncommented(line) + "\n").collect();
        for key in keys.iter().filter(|key| *key != "group") {
            assert!(spelled_out.lines().any(|line| key_of(line) == Some(key)), "{key} is not in broker.toml");
        }
        let (shipped, spelled_out) =
            (broker_from(&shipped).expect("it loads"), broker_from(&spelled_out).expect("it loads"));
        assert_eq!(format!("{:?}", shipped.broker), format!("{:?}", spelled_out.broker));
        assert!(spelled_out.name_server.is_some());
    }

    /// Every file that is shipped goes through the path of `--check`.
    #[test]
    fn the_shipped_files_load() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let env = Env::real();
        let (mut brokers, mut name_servers) = (0, 0);
        runtime.block_on(async {
            let mut directories = vec![root];
            while let Some(directory) = directories.pop() {
                for entry in env.disk.list(&directory).await.expect("the directory is there") {
                    let path = directory.join(&entry.name);
                    if entry.is_directory {
                        directories.push(path);
                    } else if entry.name.starts_with("nameserver") && entry.name.ends_with(".toml") {
                        load_name_server(&env, &path).await.unwrap_or_else(|error| panic!("{error}"));
                        name_servers += 1;
                    } else if entry.name.ends_with(".toml") {
                        let process = load_broker(&env, &path).await.unwrap_or_else(|error| panic!("{error}"));
                        assert!(!process.broker.groups.is_empty());
                        brokers += 1;
                    }
                }
            }
        });
        assert_eq!(
            (brokers, name_servers),
            (7, 3),
            "broker.toml and two clusters of three nodes; a NameServer for each"
        );
    }
}

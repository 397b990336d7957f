//! `raftmq admin COMMAND`: mqadmin's commands, names and flags, without a JVM to start.
//!
//! A command asks through [`client::admin`] and returns a [`Report`]; what was typed is in its struct. Exit code 0 means
//! that all of it was done; else standard error says what was not, and what to do next. Where this differs from mqadmin:
//! `-o json` (or `--output json`, where mqadmin has another `-o`), and dates are UTC in one word.

mod cluster;
mod dead_letters;
mod groups;
mod members;
mod messages;
pub(crate) mod report;
mod topics;
mod transactions;

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Args, Subcommand};
use client::admin::protocol::body::{BrokerData, ClusterInfo};
use client::admin::{Admin, RequestError, RouteError};
use env::Env;

use report::{Output, Report};

const DEFAULT_NAME_SERVER: &str = "127.0.0.1:9876";

/// Flags of `raftmq admin`.
#[derive(Args)]
pub struct Flags {
    /// NameServers, host:port separated by ";" [default: the environment's NAMESRV_ADDR, else 127.0.0.1:9876].
    #[arg(short = 'n', long = "namesrvAddr", value_name = "ADDRESSES", global = true)]
    name_servers: Option<String>,
    #[command(subcommand)]
    command: Command,
}

/// `-o FORMAT` and `--output FORMAT`.
#[derive(Args)]
struct ShortOutput {
    /// How to print.
    #[arg(short = 'o', long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Output,
}

/// `--output FORMAT` alone: mqadmin's `-o` means something else in this command.
#[derive(Args)]
struct LongOutput {
    /// How to print.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Output,
}

impl From<&ShortOutput> for Output {
    fn from(flags: &ShortOutput) -> Output {
        flags.output
    }
}

impl From<&LongOutput> for Output {
    fn from(flags: &LongOutput) -> Output {
        flags.output
    }
}

/// A command's own flags, and how to print what it found.
#[derive(Args)]
struct With<F: Args, C: Args> {
    #[command(flatten)]
    format: F,
    #[command(flatten)]
    command: C,
}

impl<F: Args, C: Args + Execute> With<F, C>
where
    Output: for<'a> From<&'a F>,
{
    async fn run(&self, desk: &Desk) -> Result<(), String> {
        let report = self.command.execute(desk).await?;
        // A reader that has seen enough (`| head`) closes the pipe; that is no failure.
        let _ = std::io::stdout().write_all(report.render(Output::from(&self.format)).as_bytes());
        if report.problems().is_empty() { Ok(()) } else { Err(report.problems().join("\n")) }
    }
}

/// A command: from flags to what it found, or why not.
trait Execute {
    async fn execute(&self, desk: &Desk) -> Result<Report, String>;
}

/// What a command works with.
struct Desk {
    env: Env,
    admin: Admin,
}

#[derive(Subcommand)]
#[command(rename_all = "camelCase")]
enum Command {
    /// Brokers of all clusters: versions, rates, load.
    ClusterList(With<ShortOutput, cluster::ClusterList>),
    /// Replicas of all broker groups: role, term, log positions, lag. Not in mqadmin.
    ClusterStatus(With<ShortOutput, cluster::ClusterStatus>),
    /// Have all replicas hash their state at one place of the log, and compare. Not in mqadmin.
    CompareStates(With<ShortOutput, cluster::CompareStates>),
    /// Members of a broker group: who votes, who leads, what each lacks. Not in mqadmin.
    NodeList(With<ShortOutput, members::NodeList>),
    /// Add a new node to a broker group, and wait until it has caught up and votes. Not in mqadmin.
    AddNode(With<ShortOutput, members::AddNode>),
    /// Let a node leave its broker group for ever. Not in mqadmin.
    RemoveNode(With<ShortOutput, members::RemoveNode>),
    /// Put a new node in the place of one that is lost, or to be. Not in mqadmin.
    ReplaceNode(With<ShortOutput, members::ReplaceNode>),
    /// Let another replica lead its broker group. Not in mqadmin.
    TransferLeader(With<ShortOutput, members::TransferLeader>),
    /// A broker's run-time information.
    BrokerStatus(With<ShortOutput, cluster::BrokerStatus>),
    /// Take a broker group out of what producers write to.
    WipeWritePerm(With<ShortOutput, cluster::WipeWritePerm>),
    /// Put a broker group back into what producers write to.
    AddWritePerm(With<ShortOutput, cluster::AddWritePerm>),
    /// All topics.
    TopicList(With<ShortOutput, topics::TopicList>),
    /// Clusters that have a topic.
    TopicClusterList(With<ShortOutput, topics::TopicClusterList>),
    /// Brokers and queues of a topic.
    TopicRoute(With<ShortOutput, topics::TopicRoute>),
    /// Offsets and last update of every queue of a topic.
    TopicStatus(With<ShortOutput, topics::TopicStatus>),
    /// Create a topic or change it.
    UpdateTopic(With<LongOutput, topics::UpdateTopic>),
    /// Delete a topic from brokers and NameServers.
    DeleteTopic(With<ShortOutput, topics::DeleteTopic>),
    /// Show, set or forget in which broker groups an order topic has its queues.
    UpdateOrderConf(With<ShortOutput, topics::UpdateOrderConf>),
    /// Create a consumer group or change it.
    UpdateSubGroup(With<LongOutput, groups::UpdateSubGroup>),
    /// Delete a consumer group; of a whole cluster, with its retries and dead letters.
    DeleteSubGroup(With<ShortOutput, groups::DeleteSubGroup>),
    /// Offsets and lag of one consumer group or of all.
    ConsumerProgress(With<ShortOutput, groups::ConsumerProgress>),
    /// Connected members of a consumer group and what they subscribe to.
    ConsumerConnection(With<ShortOutput, groups::ConsumerConnection>),
    /// Connected members of a producer group.
    ProducerConnection(With<ShortOutput, groups::ProducerConnection>),
    /// Move a consumer group to a point in time.
    ResetOffsetByTime(With<ShortOutput, groups::ResetOffsetByTime>),
    /// Move a consumer group to the end of a topic.
    SkipAccumulatedMessage(With<ShortOutput, groups::SkipAccumulatedMessage>),
    /// Move a consumer group to where another one is.
    CloneGroupOffset(With<LongOutput, groups::CloneGroupOffset>),
    /// How far connected members of a consumer group have come, as they say.
    GetConsumerStatus(With<ShortOutput, groups::GetConsumerStatus>),
    /// The message with an offset message id, or with a unique key.
    QueryMsgById(With<ShortOutput, messages::QueryMsgById>),
    /// Messages with a key.
    QueryMsgByKey(With<ShortOutput, messages::QueryMsgByKey>),
    /// Messages with a unique key.
    QueryMsgByUniqueKey(With<ShortOutput, messages::QueryMsgByUniqueKey>),
    /// The message at an offset of a queue.
    QueryMsgByOffset(With<LongOutput, messages::QueryMsgByOffset>),
    /// Transactions that wait for their ends, by default those that no producer is asked about any more. Not in mqadmin.
    TransactionList(With<ShortOutput, transactions::TransactionList>),
    /// Let producers be asked again about a transaction that was given up. Not in mqadmin.
    TransactionResume(With<ShortOutput, transactions::TransactionResume>),
    /// Commit or roll back a transaction that was given up, in place of its producer. Not in mqadmin.
    TransactionEnd(With<ShortOutput, transactions::TransactionEnd>),
    /// Dead letters: how many each consumer group has, or those of one group. Not in mqadmin.
    DlqList(With<ShortOutput, dead_letters::DlqList>),
    /// One dead letter. Not in mqadmin.
    DlqShow(With<ShortOutput, dead_letters::DlqShow>),
    /// Send dead letters again, each once, however often this is run. Not in mqadmin.
    DlqResend(With<ShortOutput, dead_letters::DlqResend>),
    /// Send one message, once.
    SendMessage(With<ShortOutput, messages::SendMessage>),
    /// Read messages of a topic without being a member of a group.
    ConsumeMessage(With<LongOutput, messages::ConsumeMessage>),
}

/// Runs one command. `default_name_servers` is what the environment says.
pub async fn run(env: &Env, flags: Flags, default_name_servers: Option<String>) -> Result<(), String> {
    let named = flags.name_servers.or(default_name_servers).unwrap_or_else(|| DEFAULT_NAME_SERVER.to_owned());
    let name_servers: Vec<String> =
        named.split(';').map(str::trim).filter(|address| !address.is_empty()).map(str::to_owned).collect();
    if let Some(bad) = name_servers.iter().find(|address| !address.contains(':')) {
        return Err(format!("{bad:?} is not host:port; give -n \"host:9876;host:9876\""));
    }
    let desk = Desk { env: env.clone(), admin: Admin::new(env, name_servers) };
    match &flags.command {
        Command::ClusterList(command) => command.run(&desk).await,
        Command::ClusterStatus(command) => command.run(&desk).await,
        Command::CompareStates(command) => command.run(&desk).await,
        Command::NodeList(command) => command.run(&desk).await,
        Command::AddNode(command) => command.run(&desk).await,
        Command::RemoveNode(command) => command.run(&desk).await,
        Command::ReplaceNode(command) => command.run(&desk).await,
        Command::TransferLeader(command) => command.run(&desk).await,
        Command::BrokerStatus(command) => command.run(&desk).await,
        Command::WipeWritePerm(command) => command.run(&desk).await,
        Command::AddWritePerm(command) => command.run(&desk).await,
        Command::TopicList(command) => command.run(&desk).await,
        Command::TopicClusterList(command) => command.run(&desk).await,
        Command::TopicRoute(command) => command.run(&desk).await,
        Command::TopicStatus(command) => command.run(&desk).await,
        Command::UpdateTopic(command) => command.run(&desk).await,
        Command::DeleteTopic(command) => command.run(&desk).await,
        Command::UpdateOrderConf(command) => command.run(&desk).await,
        Command::UpdateSubGroup(command) => command.run(&desk).await,
        Command::DeleteSubGroup(command) => command.run(&desk).await,
        Command::ConsumerProgress(command) => command.run(&desk).await,
        Command::ConsumerConnection(command) => command.run(&desk).await,
        Command::ProducerConnection(command) => command.run(&desk).await,
        Command::ResetOffsetByTime(command) => command.run(&desk).await,
        Command::SkipAccumulatedMessage(command) => command.run(&desk).await,
        Command::CloneGroupOffset(command) => command.run(&desk).await,
        Command::GetConsumerStatus(command) => command.run(&desk).await,
        Command::QueryMsgById(command) => command.run(&desk).await,
        Command::QueryMsgByKey(command) => command.run(&desk).await,
        Command::QueryMsgByUniqueKey(command) => command.run(&desk).await,
        Command::QueryMsgByOffset(command) => command.run(&desk).await,
        Command::TransactionList(command) => command.run(&desk).await,
        Command::TransactionResume(command) => command.run(&desk).await,
        Command::TransactionEnd(command) => command.run(&desk).await,
        Command::DlqList(command) => command.run(&desk).await,
        Command::DlqShow(command) => command.run(&desk).await,
        Command::DlqResend(command) => command.run(&desk).await,
        Command::SendMessage(command) => command.run(&desk).await,
        Command::ConsumeMessage(command) => command.run(&desk).await,
    }
}

/// Says why `what` did not happen, and what to do next.
fn failed(what: impl std::fmt::Display, error: RequestError) -> String {
    match error {
        RequestError::Route(RouteError::NameServersSilent(reasons)) => {
            format!("no NameServer answers ({reasons}); name yours with -n or NAMESRV_ADDR")
        }
        RequestError::NotSent(reason) => {
            format!("{what}: {reason}; nothing was asked: check the address and try again")
        }
        RequestError::Unknown(reason) => {
            format!("{what}: no answer: {reason}; it may or may not have happened: look before repeating it")
        }
        RequestError::Malformed(reason) => format!("{what}: {reason}; is a RocketMQ server behind that address?"),
        other => format!("{what}: {other}"),
    }
}

fn no_topic(topic: &str) -> String {
    format!("no broker has topic {topic}; create it with `raftmq admin updateTopic -t {topic} -c CLUSTER`")
}

/// Which brokers a change goes to.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// One broker, by its address.
    #[arg(short = 'b', long = "brokerAddr", value_name = "ADDRESS")]
    broker: Option<String>,
    /// The leader of every broker group of a cluster.
    #[arg(short = 'c', long = "clusterName", value_name = "CLUSTER")]
    cluster: Option<String>,
}

/// A broker group and the address to ask it at.
struct TargetBroker {
    name: String,
    address: String,
}

impl Target {
    async fn brokers(&self, desk: &Desk) -> Result<Vec<TargetBroker>, String> {
        let info = desk.admin.cluster_info().await.map_err(|error| failed("cluster information", error))?;
        match (&self.broker, &self.cluster) {
            (Some(address), _) => {
                let owner = info.broker_addr_table.values().find(|broker| has_address(broker, address));
                let name = owner.map_or_else(|| address.clone(), |broker| broker.broker_name.clone());
                Ok(vec![TargetBroker { name, address: address.clone() }])
            }
            (None, Some(cluster)) => leaders(&info, cluster),
            (None, None) => Err("name a broker with -b or a cluster with -c".to_owned()),
        }
    }
}

fn has_address(broker: &BrokerData, address: &str) -> bool {
    broker.broker_addrs.values().any(|known| known == address)
}

/// The groups of a cluster, each with its leader; a group without one makes the whole change wait.
fn leaders(info: &ClusterInfo, cluster: &str) -> Result<Vec<TargetBroker>, String> {
    let Some(names) = info.cluster_addr_table.get(cluster) else {
        let known: Vec<&str> = info.cluster_addr_table.keys().map(String::as_str).collect();
        return Err(format!("no broker of cluster {cluster} is registered; known clusters: {}", known.join(", ")));
    };
    let leader = |name: &String| {
        let address = info.broker_addr_table.get(name).and_then(BrokerData::master_addr);
        let none = || format!("broker group {name} has no leader now; nothing was changed: try again in some seconds");
        Ok(TargetBroker { name: name.clone(), address: address.ok_or_else(none)?.to_owned() })
    };
    names.iter().map(leader).collect()
}

/// The groups that a table lists, by name.
fn by_name(brokers: &[BrokerData]) -> BTreeMap<&str, &BrokerData> {
    brokers.iter().map(|broker| (broker.broker_name.as_str(), broker)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_changed_at_all_its_leaders_or_not_at_all() {
        let mut info = ClusterInfo::default();
        for (name, id) in [("a", 0), ("b", 1)] {
            let broker = BrokerData {
                broker_name: name.into(),
                cluster: "C".into(),
                broker_addrs: [(id, format!("{name}:10911"))].into(),
                ..BrokerData::default()
            };
            info.cluster_addr_table.entry("C".into()).or_default().insert(name.into());
            info.broker_addr_table.insert(name.into(), broker);
        }
        let refused = |cluster| leaders(&info, cluster).err().expect("refused");
        assert!(refused("C").starts_with("broker group b has no leader now"), "{}", refused("C"));
        assert_eq!(refused("D"), "no broker of cluster D is registered; known clusters: C");
        info.cluster_addr_table.get_mut("C").expect("there").remove("b");
        let found = leaders(&info, "C").expect("a has one");
        assert_eq!((found.len(), found[0].name.as_str(), found[0].address.as_str()), (1, "a", "a:10911"));
    }

    #[test]
    fn failures_say_whether_to_repeat() {
        let not_sent = failed("it", RequestError::NotSent("refused".into()));
        assert!(not_sent.contains("nothing was asked"), "{not_sent}");
        let unknown = failed("it", RequestError::Unknown("gone".into()));
        assert!(unknown.contains("look before repeating"), "{unknown}");
    }
}

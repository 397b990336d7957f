//! Brokers and replicas: clusterList, clusterStatus, compareStates, brokerStatus, wipeWritePerm, addWritePerm.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use client::admin::protocol::body::{BrokerData, ClusterInfo, ReplicaStatus};
use serde_json::{Value, json};

use super::report::{Column, Report, Table};
use super::{Desk, Execute, Target, failed};

/// Which of the brokers that the NameServer knows.
async fn chosen(desk: &Desk, cluster: Option<&str>) -> Result<Vec<BrokerData>, String> {
    let info: ClusterInfo = desk.admin.cluster_info().await.map_err(|error| failed("cluster information", error))?;
    let brokers = info.broker_addr_table.into_values();
    let chosen: Vec<_> = brokers.filter(|broker| cluster.is_none_or(|cluster| broker.cluster == cluster)).collect();
    if chosen.is_empty() {
        return Err(
            "no broker is registered at the NameServer; is one running, with this NameServer in its file?".into()
        );
    }
    Ok(chosen)
}

#[derive(Args)]
pub struct ClusterList {
    /// One cluster only.
    #[arg(short = 'c', long = "clusterName", value_name = "CLUSTER")]
    cluster: Option<String>,
    /// Message counts of today and yesterday instead.
    #[arg(short = 'm', long = "moreStats")]
    more_stats: bool,
}

const CLUSTER_LIST: &[Column] = &[
    Column("#Cluster Name", "clusterName"),
    Column("#Broker Name", "brokerName"),
    Column("#BID", "brokerId"),
    Column("#Addr", "addr"),
    Column("#Version", "version"),
    Column("#InTPS(LOAD)", "inTps"),
    Column("#OutTPS(LOAD)", "outTps"),
    Column("#Timer(Progress)", "timer"),
    Column("#PCWait(ms)", "pageCacheWaitMs"),
    Column("#Hour", "hours"),
    Column("#SPACE", "space"),
    Column("#ACTIVATED", "activated"),
];

const CLUSTER_LIST_MORE: &[Column] = &[
    Column("#Cluster Name", "clusterName"),
    Column("#Broker Name", "brokerName"),
    Column("#InTotalYest", "inTotalYesterday"),
    Column("#OutTotalYest", "outTotalYesterday"),
    Column("#InTotalToday", "inTotalToday"),
    Column("#OutTotalToday", "outTotalToday"),
];

impl Execute for ClusterList {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let mut table = Table::new(if self.more_stats { CLUSTER_LIST_MORE } else { CLUSTER_LIST });
        let mut silent = Vec::new();
        for broker in chosen(desk, self.cluster.as_deref()).await? {
            for (id, address) in &broker.broker_addrs {
                let info = match desk.admin.runtime_info(address).await {
                    Ok(info) => info,
                    Err(error) => {
                        silent.push(failed(format!("{} {address}", broker.broker_name), error));
                        continue;
                    }
                };
                let text = |key: &str| info.get(key).map_or("", String::as_str);
                let number = |key: &str| text(key).parse::<i64>().unwrap_or(0);
                let names = [Value::from(broker.cluster.as_str()), broker.broker_name.as_str().into()];
                if self.more_stats {
                    let between = |from, to| number(to) - number(from);
                    table.push(names.into_iter().chain([
                        between("msgPutTotalYesterdayMorning", "msgPutTotalTodayMorning").into(),
                        between("msgGetTotalYesterdayMorning", "msgGetTotalTodayMorning").into(),
                        between("msgPutTotalTodayMorning", "msgPutTotalTodayNow").into(),
                        between("msgGetTotalTodayMorning", "msgGetTotalTodayNow").into(),
                    ]));
                    continue;
                }
                let rate = |tps: &str, size: &str, wait: &str| {
                    let tps: f64 = text(tps).split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
                    format!("{tps:.2}({},{}ms)", number(size), number(wait))
                };
                let earliest = number("earliestMessageTimeStamp");
                let hours = (desk.env.clock.wall_ms() - earliest) as f64 / 3_600_000.0;
                let timer = format!("{}-{}", number("timerReadBehind"), number("timerOffsetBehind"));
                table.push(names.into_iter().chain([
                    (*id).into(),
                    address.as_str().into(),
                    text("brokerVersionDesc").into(),
                    rate("putTps", "sendThreadPoolQueueSize", "sendThreadPoolQueueHeadWaitTimeMills").into(),
                    rate("getTransferredTps", "pullThreadPoolQueueSize", "pullThreadPoolQueueHeadWaitTimeMills").into(),
                    timer.into(),
                    number("pageCacheLockTimeMills").into(),
                    if earliest > 0 { hours.into() } else { Value::Null },
                    text("commitLogDiskRatio").parse::<f64>().map_or(Value::Null, Value::from),
                    text("brokerActive").into(),
                ]));
            }
        }
        Ok(Report::from(table).with_problems(silent))
    }
}

#[derive(Args)]
pub struct ClusterStatus {
    /// One cluster only.
    #[arg(short = 'c', long = "clusterName", value_name = "CLUSTER")]
    cluster: Option<String>,
    /// Also print what waits where.
    #[arg(short = 'm', long = "more")]
    more: bool,
}

const CLUSTER_STATUS: &[Column] = &[
    Column("#Cluster Name", "clusterName"),
    Column("#Broker Name", "brokerName"),
    Column("#BID", "brokerId"),
    Column("#Addr", "addr"),
    Column("#Role", "role"),
    Column("#Ready", "ready"),
    Column("#Term", "term"),
    Column("#Last", "lastIndex"),
    Column("#Synced", "syncedIndex"),
    Column("#Committed", "committedIndex"),
    Column("#Applied", "appliedIndex"),
    Column("#Agreed", "agreedIndex"),
    Column("#Lag", "lagEntries"),
];

/// Entries that a replica lacks, as the leader of the highest term sees it; the leader itself lacks none.
fn lag(all: &[ReplicaStatus], of: &ReplicaStatus) -> Option<u64> {
    let leader = all.iter().filter(|status| status.role == "leader").max_by_key(|status| status.term)?;
    if leader.node_id == of.node_id {
        return Some(0);
    }
    leader.members.iter().find(|member| member.node_id == of.node_id)?.lag_entries
}

impl Execute for ClusterStatus {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let mut table = Table::new(CLUSTER_STATUS);
        let (mut silent, mut counts) = (Vec::new(), Vec::new());
        for broker in chosen(desk, self.cluster.as_deref()).await? {
            let mut answers = Vec::new();
            for (id, address) in &broker.broker_addrs {
                match desk.admin.replica_status(address).await {
                    Ok(status) => answers.push((*id, address, status)),
                    Err(error) => silent.push(failed(format!("{} {address}", broker.broker_name), error)),
                }
            }
            let statuses: Vec<ReplicaStatus> = answers.iter().map(|(_, _, status)| status.clone()).collect();
            for (id, address, status) in answers {
                table.push([
                    broker.cluster.as_str().into(),
                    broker.broker_name.as_str().into(),
                    id.into(),
                    address.as_str().into(),
                    status.role.as_str().into(),
                    status.ready.into(),
                    status.term.into(),
                    json!(status.last_index),
                    json!(status.synced_index),
                    json!(status.committed_index),
                    json!(status.applied_index),
                    json!(status.agreed_index),
                    json!(lag(&statuses, &status)),
                ]);
                counts.extend(status.queue_depths.into_iter().map(|(name, count)| (address.clone(), name, count)));
            }
        }
        if !self.more {
            return Ok(Report::from(table).with_problems(silent));
        }
        let lines = counts.iter().map(|(address, name, count)| format!("{address}  {name}  {count}\n"));
        let text = format!("{}\n{}", table.to_text(), lines.collect::<String>());
        let counts = counts.iter().map(|(address, name, count)| json!({"addr": address, "name": name, "count": count}));
        let json = json!({"replicas": table.to_json(), "counts": counts.collect::<Vec<_>>()});
        Ok(Report::new(text, json).with_problems(silent))
    }
}

#[derive(Args)]
pub struct CompareStates {
    /// One cluster only.
    #[arg(short = 'c', long = "clusterName", value_name = "CLUSTER")]
    cluster: Option<String>,
}

const COMPARE_STATES: &[Column] = &[
    Column("#Cluster Name", "clusterName"),
    Column("#Broker Name", "brokerName"),
    Column("#Node", "nodeId"),
    Column("#Addr", "addr"),
    Column("#Entry", "index"),
    Column("#State Hash", "stateHash"),
];

/// A replica hashes its state within this, if it is not far behind.
const HASHED: Duration = Duration::from_secs(30);

/// Between two questions to a replica that has not hashed it yet.
const AGAIN: Duration = Duration::from_millis(100);

impl Execute for CompareStates {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let mut table = Table::new(COMPARE_STATES);
        let mut problems = Vec::new();
        for broker in chosen(desk, self.cluster.as_deref()).await? {
            let name = &broker.broker_name;
            let leader = broker.master_addr().ok_or_else(|| format!("broker group {name} has no leader now"))?;
            let made = desk.admin.make_checkpoint(leader).await;
            let index = made.map_err(|error| failed(format!("a checkpoint of {name}"), error))?;
            // Also those that are not registered: a replica that has stopped is what this is to find.
            let members = desk.admin.replica_status(leader).await.map_err(|error| failed(leader, error))?.members;
            let mut hashes = BTreeSet::new();
            for member in members.iter().filter(|member| member.voter) {
                let address = &member.client_address;
                match state_hash(desk, address, index).await {
                    Ok(hash) => {
                        hashes.insert(hash.clone());
                        table.push([
                            broker.cluster.as_str().into(),
                            name.as_str().into(),
                            member.node_id.into(),
                            address.as_str().into(),
                            index.into(),
                            hash.into(),
                        ]);
                    }
                    Err(problem) => problems.push(problem),
                }
            }
            if hashes.len() > 1 {
                problems.push(format!(
                    "the replicas of {name} have gone apart at entry {index}: the one that is alone with its hash stops and makes \
                     its state anew; if none has a majority, see docs/operations.md"
                ));
            }
        }
        Ok(Report::from(table).with_problems(problems))
    }
}

/// What the replica's state at that entry hashes to.
async fn state_hash(desk: &Desk, address: &str, index: u64) -> Result<String, String> {
    let clock = &desk.env.clock;
    let deadline = clock.monotonic() + HASHED;
    loop {
        let status = desk.admin.replica_status(address).await.map_err(|error| failed(address, error))?;
        if let Some(hash) = status.image_hashes.get(&index) {
            return Ok(hash.clone());
        }
        if clock.monotonic() > deadline {
            let applied = status.applied_index.map_or("nothing".to_owned(), |applied| format!("entry {applied}"));
            return Err(format!(
                "{address} has not hashed its state at entry {index} within {HASHED:?}; it has applied {applied}"
            ));
        }
        clock.sleep(AGAIN).await;
    }
}

#[derive(Args)]
pub struct BrokerStatus {
    #[command(flatten)]
    target: Target,
}

impl Execute for BrokerStatus {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let (mut text, mut json) = (String::new(), serde_json::Map::new());
        for broker in self.target.brokers(desk).await? {
            let info = desk.admin.runtime_info(&broker.address).await;
            let info = info.map_err(|error| failed(&broker.address, error))?;
            text.extend(info.iter().map(|(key, value)| format!("{:<24} {key:<40}: {value}\n", broker.address)));
            json.insert(broker.address, json!(info));
        }
        Ok(Report::new(text, Value::Object(json)))
    }
}

/// A broker group by its name.
#[derive(Args)]
struct BrokerName {
    /// The broker group.
    #[arg(id = "broker", short = 'b', long = "brokerName", value_name = "NAME")]
    name: String,
}

impl BrokerName {
    async fn set(&self, desk: &Desk, allowed: bool) -> Result<Report, String> {
        let verb = if allowed { "add" } else { "wipe" };
        let set = desk.admin.set_write_permission(&self.name, allowed).await;
        let set = set.map_err(|error| failed(format!("{verb} write permission of {}", self.name), error))?;
        let lines = set.iter().map(|(address, topics)| {
            format!("{verb} write perm of broker[{}] in name server[{address}] OK, {topics}\n", self.name)
        });
        let objects = set.iter().map(|(address, topics)| json!({"nameServer": address, "topics": topics}));
        Ok(Report::new(lines.collect::<String>(), Value::Array(objects.collect())))
    }
}

#[derive(Args)]
pub struct WipeWritePerm {
    #[command(flatten)]
    broker: BrokerName,
}

impl Execute for WipeWritePerm {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        self.broker.set(desk, false).await
    }
}

#[derive(Args)]
pub struct AddWritePerm {
    #[command(flatten)]
    broker: BrokerName,
}

impl Execute for AddWritePerm {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        self.broker.set(desk, true).await
    }
}

#[cfg(test)]
mod tests {
    use client::admin::protocol::body::ReplicaMember;

    use super::*;

    #[test]
    fn lag_is_what_the_newest_leader_says() {
        let member = |node_id, lag| ReplicaMember { node_id, lag_entries: Some(lag), ..ReplicaMember::default() };
        let status = |node_id, role: &str, term, members| ReplicaStatus {
            node_id,
            role: role.into(),
            term,
            members,
            ..ReplicaStatus::default()
        };
        let deposed = status(1, "leader", 5, vec![member(2, 9), member(3, 9)]);
        let leader = status(2, "leader", 6, vec![member(1, 4), member(3, 0)]);
        let follower = status(3, "follower", 6, vec![]);
        let stranger = status(4, "follower", 6, vec![]);
        let all = [deposed, leader, follower, stranger];
        let lags: Vec<_> = all.iter().map(|status| lag(&all, status)).collect();
        assert_eq!(lags, [Some(4), Some(0), Some(0), None]);
        assert_eq!(lag(&all[2..], &all[2]), None);
    }
}

//! Members of a broker group: nodeList, addNode, removeNode, replaceNode, transferLeader. Not in mqadmin.
//!
//! Adding and replacing are made of steps, each of which is an entry of the group's log and may be repeated. Whoever looks on
//! here keeps no state: a command that was interrupted, at whatever point, is given again and goes on from there.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use client::admin::RequestError;
use client::admin::protocol::body::{BrokerData, ReplicaMember, ReplicaStatus};
use client::admin::protocol::code::ResponseCode;
use serde_json::json;

use super::report::{Column, Report, Table};
use super::{Desk, Execute, failed};

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Between two lines about progress.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// A group without a leader for so long needs somebody to look at it.
const LEADER_LIMIT: Duration = Duration::from_secs(30);

/// Which broker group.
#[derive(Args)]
struct GroupName {
    /// The broker group [default: the only one].
    #[arg(id = "group", short = 'b', long = "brokerName", value_name = "NAME")]
    name: Option<String>,
}

/// A broker group as its leader sees it.
struct GroupView {
    /// Where clients reach the leader.
    address: String,
    status: ReplicaStatus,
}

impl GroupName {
    /// The addresses that the NameServer has of the group, the leader's first.
    async fn replicas(&self, desk: &Desk) -> Result<(String, Vec<String>), String> {
        let info = desk.admin.cluster_info().await.map_err(|error| failed("cluster information", error))?;
        let known = || info.broker_addr_table.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let mut brokers = info.broker_addr_table.values();
        let found = match &self.name {
            Some(name) => info.broker_addr_table.get(name),
            None => brokers.next().filter(|_| brokers.next().is_none()),
        };
        let Some(found) = found else {
            return Err(match &self.name {
                Some(name) => format!("no broker group {name} is registered; known groups: {}", known()),
                None => format!("name the broker group with -b; known groups: {}", known()),
            });
        };
        Ok((found.broker_name.clone(), addresses(found)))
    }

    /// The group's leader's view, once there is a leader.
    async fn view(&self, desk: &Desk) -> Result<GroupView, String> {
        let began = desk.env.clock.monotonic();
        loop {
            let (name, addresses) = self.replicas(desk).await?;
            let mut silent = Vec::new();
            for address in addresses {
                match desk.admin.replica_status(&address).await {
                    Ok(status) if status.role == "leader" => return Ok(GroupView { address, status }),
                    Ok(status) => silent.push(format!("{address} is a {}", status.role)),
                    Err(error) => silent.push(failed(&address, error)),
                }
            }
            if desk.env.clock.monotonic() - began > LEADER_LIMIT {
                return Err(format!(
                    "broker group {name} has no leader: {}; is a majority of it running?",
                    silent.join("; ")
                ));
            }
            desk.env.clock.sleep(LOOK_INTERVAL).await;
        }
    }
}

fn addresses(broker: &BrokerData) -> Vec<String> {
    broker.broker_addrs.values().cloned().collect()
}

/// A member, by whatever names it.
#[derive(Args)]
struct NodeName {
    /// The node: its id (16 hexadecimal digits, as nodeList prints it), its peer address or its client address.
    #[arg(short = 'i', long = "node", value_name = "NODE")]
    node: String,
}

impl NodeName {
    /// The only member with that name.
    fn find<'m>(&self, members: &'m [ReplicaMember]) -> Result<&'m ReplicaMember, String> {
        let is_meant = |member: &&ReplicaMember| {
            let names = [id(member.node_id), member.peer_address.clone(), member.client_address.clone()];
            names.contains(&self.node)
        };
        let found: Vec<&ReplicaMember> = members.iter().filter(is_meant).collect();
        match found.as_slice() {
            [member] => Ok(member),
            [] => {
                let known: Vec<String> = members.iter().map(|member| id(member.node_id)).collect();
                Err(format!("no member is called {}; these are members: {}", self.node, known.join(", ")))
            }
            several => {
                let ids: Vec<String> = several.iter().map(|member| id(member.node_id)).collect();
                Err(format!("{} may be {}: name it by its id", self.node, ids.join(" or ")))
            }
        }
    }
}

fn id(node: u64) -> String {
    format!("{node:016x}")
}

#[derive(Args)]
pub struct NodeList {
    #[command(flatten)]
    group: GroupName,
}

const NODE_LIST: &[Column] = &[
    Column("#Node", "nodeId"),
    Column("#Role", "role"),
    Column("#Client Address", "clientAddress"),
    Column("#Peer Address", "peerAddress"),
    Column("#LagEntries", "lagEntries"),
    Column("#LagBytes", "lagBytes"),
    Column("#CaughtUp", "caughtUp"),
];

impl Execute for NodeList {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        Ok(node_list(&self.group.view(desk).await?.status).into())
    }
}

fn node_list(status: &ReplicaStatus) -> Table {
    let mut table = Table::new(NODE_LIST);
    for member in &status.members {
        let role = match member.voter {
            true if member.node_id == status.node_id => "leader",
            true => "voter",
            false => "learner",
        };
        table.push([
            id(member.node_id).into(),
            role.into(),
            member.client_address.as_str().into(),
            member.peer_address.as_str().into(),
            json!(member.lag_entries),
            json!(member.lag_bytes),
            json!(member.caught_up),
        ]);
    }
    table
}

#[derive(Args)]
pub struct AddNode {
    #[command(flatten)]
    group: GroupName,
    /// The new node's peer address, `host:port` as in its file. It runs, with an empty directory and `join = true`.
    #[arg(short = 'p', long = "peer", value_name = "ADDRESS")]
    peer: String,
}

impl Execute for AddNode {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let view = self.group.view(desk).await?;
        let at_its_place = |member: &&ReplicaMember| member.peer_address == self.peer && member.voter;
        let occupant = view.status.members.iter().find(at_its_place).map(|member| member.node_id);
        let added = begin(desk, &view, &self.peer).await?;
        if let Some(occupant) = occupant.filter(|occupant| *occupant != added.node_id) {
            return Err(format!(
                "member {0} was at {1}, where another node is now ({2}): `raftmq admin replaceNode -i {0} -p {1}` puts this one \
                 in its place",
                id(occupant),
                self.peer,
                id(added.node_id)
            ));
        }
        Change { group: &self.group, add: Some(added.node_id), remove: None }.carry_out(desk).await
    }
}

#[derive(Args)]
pub struct RemoveNode {
    #[command(flatten)]
    group: GroupName,
    #[command(flatten)]
    node: NodeName,
}

impl Execute for RemoveNode {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let view = self.group.view(desk).await?;
        let removed = self.node.find(&view.status.members)?.node_id;
        Change { group: &self.group, add: None, remove: Some(removed) }.carry_out(desk).await
    }
}

#[derive(Args)]
pub struct ReplaceNode {
    #[command(flatten)]
    group: GroupName,
    #[command(flatten)]
    node: NodeName,
    /// The new node's peer address, `host:port` as in its file; it may be the old one's. The new node runs, with an empty
    /// directory and `join = true`.
    #[arg(short = 'p', long = "peer", value_name = "ADDRESS")]
    peer: String,
}

impl Execute for ReplaceNode {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let view = self.group.view(desk).await?;
        let added = begin(desk, &view, &self.peer).await?;
        // Of two nodes at one address the new one is not the one to go.
        let others: Vec<_> = view.status.members.into_iter().filter(|member| member.node_id != added.node_id).collect();
        let removed = match self.node.find(&others) {
            Ok(removed) => removed.node_id,
            Err(_) if added.voter => return Ok(Report::from(node_list(&self.group.view(desk).await?.status))),
            Err(error) => return Err(error),
        };
        Change { group: &self.group, add: Some(added.node_id), remove: Some(removed) }.carry_out(desk).await
    }
}

#[derive(Args)]
pub struct TransferLeader {
    #[command(flatten)]
    group: GroupName,
    #[command(flatten)]
    node: NodeName,
}

impl Execute for TransferLeader {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let view = self.group.view(desk).await?;
        let successor = self.node.find(&view.status.members)?.node_id;
        let transferred = desk.admin.transfer_leader(&view.address, successor).await;
        transferred.map_err(|error| failed(format!("letting {} lead", id(successor)), error))?;
        Ok(node_list(&self.group.view(desk).await?.status).into())
    }
}

/// Lets the node at `peer` begin to catch up.
async fn begin(desk: &Desk, view: &GroupView, peer: &str) -> Result<ReplicaMember, String> {
    let added = desk.admin.add_learner(&view.address, peer).await;
    added.map_err(|error| failed(format!("adding the node at {peer}"), error))
}

/// Progress goes to standard error: standard output is the result's.
fn tell(text: &str) {
    eprintln!("{text}");
}

/// A change of the voters, from wherever it stands to its end.
struct Change<'a> {
    group: &'a GroupName,
    /// A learner that is catching up, or a voter already.
    add: Option<u64>,
    remove: Option<u64>,
}

impl Change<'_> {
    async fn carry_out(&self, desk: &Desk) -> Result<Report, String> {
        let mut progress = Progress::default();
        loop {
            let view = self.group.view(desk).await?;
            match self.next(&view.status)? {
                Next::Done => return Ok(node_list(&view.status).into()),
                Next::CatchUp { lag_bytes } => {
                    let now = desk.env.clock.monotonic();
                    if let Some(line) = progress.line(now, lag_bytes) {
                        tell(&line);
                    }
                }
                Next::HandOver(successor) => {
                    tell(&format!("the leader is to go: {} leads from now on", id(successor)));
                    let transferred = desk.admin.transfer_leader(&view.address, successor).await;
                    go_on(transferred, "transferring the leadership")?;
                }
                Next::Change => {
                    let changed = desk.admin.change_voters(&view.address, self.add, self.remove).await;
                    go_on(changed, "changing the voters")?;
                }
            }
            desk.env.clock.sleep(LOOK_INTERVAL).await;
        }
    }

    fn next(&self, status: &ReplicaStatus) -> Result<Next, String> {
        let members: BTreeMap<u64, &ReplicaMember> =
            status.members.iter().map(|member| (member.node_id, member)).collect();
        let added = self.add.map(|add| members.get(&add).ok_or_else(|| format!("node {} was removed again", id(add))));
        let added = added.transpose()?;
        if let Some(added) = added.filter(|added| !added.voter && added.caught_up != Some(true)) {
            return Ok(Next::CatchUp { lag_bytes: added.lag_bytes });
        }
        if added.is_none_or(|added| added.voter) && self.remove.is_none_or(|remove| !members.contains_key(&remove)) {
            return Ok(Next::Done);
        }
        if self.remove == Some(status.node_id) {
            let others = members.values().filter(|member| member.voter && member.node_id != status.node_id);
            let successor = others.min_by_key(|member| member.lag_bytes.unwrap_or(u64::MAX));
            let successor = successor.ok_or("it is the only voter: there would be nobody left")?;
            return Ok(Next::HandOver(successor.node_id));
        }
        Ok(Next::Change)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Done,
    CatchUp { lag_bytes: Option<u64> },
    HandOver(u64),
    Change,
}

/// Each step may be repeated, so that only a refusal ends the course: without an answer, or with a leader that has changed,
/// the next look tells what became of it.
fn go_on(answer: Result<(), RequestError>, what: &str) -> Result<(), String> {
    match answer {
        Err(error) if error.code().is_some_and(|code| !PASSING.contains(&code)) => Err(failed(what, error)),
        Err(error) => {
            tell(&format!("{what}: {error}; looking again"));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Refusals that pass: too much is lacking yet, or somebody else leads.
const PASSING: &[ResponseCode] = &[ResponseCode::SYSTEM_BUSY, ResponseCode::SERVICE_NOT_AVAILABLE];

/// How the catching up goes.
#[derive(Default)]
struct Progress {
    told: Option<(Duration, u64)>,
}

impl Progress {
    /// What to say at `now`, if it is time to say something.
    fn line(&mut self, now: Duration, lag_bytes: Option<u64>) -> Option<String> {
        let Some(lag) = lag_bytes else {
            let is_time = self.told.is_none_or(|(at, _)| now - at >= TELL_INTERVAL);
            self.told = is_time.then_some((now, u64::MAX)).or(self.told);
            return is_time.then(|| "the new node is not heard of yet".to_owned());
        };
        let before = self.told.filter(|(_, lag)| *lag != u64::MAX);
        let Some((at, before)) = before else {
            self.told = Some((now, lag));
            return Some(format!("the new node lacks {} of the log", mib(lag)));
        };
        if now - at < TELL_INTERVAL {
            return None;
        }
        self.told = Some((now, lag));
        let per_s = before.saturating_sub(lag) as f64 / (now - at).as_secs_f64();
        let left = match per_s > 0.0 {
            true => format!("about {:.0} s left", lag as f64 / per_s),
            false => "no nearer than before; is it running?".to_owned(),
        };
        Some(format!("the new node lacks {} of the log, {left}", mib(lag)))
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node_id: u64, voter: bool, lag_bytes: u64) -> ReplicaMember {
        ReplicaMember {
            caught_up: Some(lag_bytes < 100),
            client_address: format!("host{node_id}:10911"),
            lag_bytes: Some(lag_bytes),
            node_id,
            peer_address: format!("host{node_id}:10912"),
            voter,
            ..ReplicaMember::default()
        }
    }

    /// 1 leads.
    fn led(members: Vec<ReplicaMember>) -> ReplicaStatus {
        ReplicaStatus { node_id: 1, role: "leader".into(), members, ..ReplicaStatus::default() }
    }

    #[test]
    fn a_replacement_from_every_point_on() {
        let name = GroupName { name: None };
        let next = |add, remove, members| Change { group: &name, add, remove }.next(&led(members));
        let (one, two, three) = (member(1, true, 0), member(2, true, 5), member(3, true, 900));
        let all = |last| vec![one.clone(), two.clone(), three.clone(), last];
        let behind = all(member(4, false, 500));
        assert_eq!(next(Some(4), Some(3), behind.clone()), Ok(Next::CatchUp { lag_bytes: Some(500) }));
        assert_eq!(next(Some(4), Some(3), all(member(4, false, 50))), Ok(Next::Change));
        assert_eq!(next(Some(4), Some(1), all(member(4, false, 50))), Ok(Next::HandOver(2)), "who lacks least");
        assert_eq!(next(Some(4), Some(3), all(member(4, true, 50))), Ok(Next::Change), "the old one is still there");
        let done = vec![one.clone(), two.clone(), member(4, true, 5000)];
        assert_eq!(next(Some(4), Some(3), done.clone()), Ok(Next::Done));
        assert_eq!(next(None, Some(3), done), Ok(Next::Done));
        assert!(next(Some(5), None, behind).is_err_and(|why| why.contains("removed again")));
        assert!(next(None, Some(1), vec![one]).is_err_and(|why| why.contains("nobody left")));
    }

    #[test]
    fn a_node_is_named_by_anything_that_only_it_has() {
        let mut members = vec![member(0xA1, true, 0), member(0xB2, true, 0)];
        let find = |members: &[ReplicaMember], node: &str| {
            NodeName { node: node.to_owned() }.find(members).map(|member| member.node_id)
        };
        for name in ["00000000000000b2", "host178:10911", "host178:10912"] {
            assert_eq!(find(&members, name), Ok(0xB2));
        }
        assert!(find(&members, "host9:1").is_err_and(|why| why.contains("00000000000000a1, 00000000000000b2")));
        members[0].peer_address = "host178:10912".to_owned();
        assert!(find(&members, "host178:10912").is_err_and(|why| why.contains("name it by its id")));
    }

    #[test]
    fn progress_is_told_with_what_is_left() {
        let (mut progress, at) = (Progress::default(), Duration::from_secs);
        assert_eq!(progress.line(at(1), None).as_deref(), Some("the new node is not heard of yet"));
        assert_eq!(progress.line(at(2), None), None);
        let first = progress.line(at(3), Some(100 << 20));
        assert_eq!(first.as_deref(), Some("the new node lacks 100.0 MiB of the log"));
        assert_eq!(progress.line(at(4), Some(98 << 20)), None);
        let later = progress.line(at(8), Some(50 << 20));
        assert_eq!(later.as_deref(), Some("the new node lacks 50.0 MiB of the log, about 5 s left"));
        let stuck = progress.line(at(13), Some(50 << 20)).expect("time to tell");
        assert!(stuck.contains("is it running"), "{stuck}");
    }
}

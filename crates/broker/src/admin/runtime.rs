//! What a replica does at the moment: GET_BROKER_RUNTIME_INFO 28 and GET_BROKER_HA_STATUS 907.
//!
//! The keys of 28 are RocketMQ's. There are no thread pools, page cache locks or transient pools here, so most of the keys
//! about them are left out; those without which `clusterList` prints nothing say what is true in their sense.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use env::disk::Space;
use protocol::body::{HaClientRuntimeInfo, HaConnectionRuntimeInfo, HaRuntimeInfo, KvTable};
use protocol::code::ResponseCode;
use protocol::command::CURRENT_VERSION;
use raft_store::entry::decode_entry;
use raft_store::fold::PendingCounts;
use raft_store::group::{Role, Status};
use raft_store::log::{Kind, Log};
use raft_store::position::LogId;

use super::statistics::Days;
use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::rates::Rates;

/// RocketMQ's name of [`CURRENT_VERSION`].
const VERSION_NAME: &str = "V5_3_3";

/// A follower that lacks more is out of sync: RocketMQ's haMaxGapNotInSync.
const IN_SYNC_BYTES: u64 = 256 << 20;

/// Entries looked at for the log's first stamp: memberships and blanks have none.
const FIRST_ENTRIES: u64 = 64;

/// Handles GET_BROKER_RUNTIME_INFO.
pub async fn runtime_info(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let group = broker.status();
    let (log, clock) = (broker.raft.log(), &broker.env.clock);
    let tip = log.tip();
    let synced_end = log.synced().borrow().physical_end.0;
    let facts = Facts {
        now_ms: clock.wall_ms(),
        now: clock.monotonic(),
        started_ms: broker.started_ms,
        is_ready: group.is_ready,
        log_begin: broker.reader.min_physical().0,
        log_end: tip.end.physical_offset.0,
        synced_end,
        applied_end: end_of(&log, broker.reader.applied()).await?,
        oldest_ms: oldest_stamp(&log).await?,
        space: broker.env.disk.space(&broker.config.data_dir).await.ok(),
        leader_requests: broker.work.count(),
        pending: broker.reader.pending(),
        days: broker.statistics.days(),
    };
    let mut table = runtime_table(&facts, &broker.rates);
    table.extend(raft_table(&group.raft));
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&KvTable { table }))
}

/// Handles GET_BROKER_HA_STATUS.
pub async fn ha_status(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let raft = broker.raft.status();
    let log = broker.raft.log();
    let end = log.tip().end.physical_offset.0;
    let mut followers = Vec::new();
    for (id, replication) in &raft.replication {
        let address = raft.members.iter().find(|member| member.id == *id).map(|member| member.peer_address.clone());
        // What it holds may already be purged here: then it lacks nothing of what can still be compared.
        let held = end_of(&log, replication.matched).await.unwrap_or(end);
        followers.push((address.unwrap_or_default(), held));
    }
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&ha_info(&raft.role, end, followers)))
}

/// The place behind an entry; 0 for none.
async fn end_of(log: &Log, id: Option<LogId>) -> io::Result<u64> {
    match id {
        Some(id) => Ok(log.chain_before(id.index + 1).await?.physical_offset.0),
        None => Ok(0),
    }
}

/// Group time of the oldest entry: no message in the log is older.
async fn oldest_stamp(log: &Log) -> io::Result<Option<i64>> {
    let begin = log.last_purged().map_or(0, |purged| purged.index + 1);
    let mut next = begin;
    while next < begin + FIRST_ENTRIES {
        let frames = log.read(next..begin + FIRST_ENTRIES, 1).await?;
        let Some(last) = frames.last() else { break };
        next = last.id.index + 1;
        let mut entries = frames.iter().filter(|frame| frame.kind == Kind::Entry);
        if let Some(entry) = entries.find_map(|frame| decode_entry(&frame.body).ok()) {
            return Ok(Some(entry.stamp().0));
        }
    }
    Ok(None)
}

/// What the table of 28 is made of, beside the rates.
#[derive(Clone, Copy, Debug)]
struct Facts {
    now_ms: i64,
    /// Monotonic.
    now: Duration,
    started_ms: i64,
    is_ready: bool,
    log_begin: u64,
    log_end: u64,
    synced_end: u64,
    applied_end: u64,
    oldest_ms: Option<i64>,
    space: Option<Space>,
    leader_requests: usize,
    pending: PendingCounts,
    days: Days,
}

fn runtime_table(facts: &Facts, rates: &Rates) -> BTreeMap<String, String> {
    let now = facts.now;
    let mut table = BTreeMap::new();
    let mut put = |key: &str, value: String| {
        let twice = table.insert(key.to_owned(), value);
        assert!(twice.is_none(), "{key} is said twice");
    };
    put("bootTimestamp", facts.started_ms.to_string());
    put("runtime", runtime_text(facts.now_ms - facts.started_ms));
    put("startAcceptSendRequestTimeStamp", facts.started_ms.to_string());
    put("brokerActive", facts.is_ready.to_string());
    put("brokerVersion", CURRENT_VERSION.to_string());
    put("brokerVersionDesc", VERSION_NAME.to_owned());

    let (puts, put_bytes) = (rates.put.total(), rates.put_bytes.total());
    put("putMessageTimesTotal", puts.to_string());
    put("putMessageSizeTotal", put_bytes.to_string());
    put("putMessageAverageSize", format!("{:?}", if puts == 0 { 0.0 } else { put_bytes as f64 / puts as f64 }));
    put("putTps", rates.put.text(now));
    put("getFoundTps", rates.get_found.text(now));
    put("getMissTps", rates.get_miss.text(now));
    put("getTotalTps", rates.get_total_text(now));
    // The second spelling is what tools of 4.x read.
    put("getTransferredTps", rates.get_transferred.text(now));
    put("getTransferedTps", rates.get_transferred.text(now));
    let days = &facts.days;
    put("msgPutTotalYesterdayMorning", days.yesterday_morning.put.to_string());
    put("msgPutTotalTodayMorning", days.today_morning.put.to_string());
    put("msgPutTotalTodayNow", puts.to_string());
    put("msgGetTotalYesterdayMorning", days.yesterday_morning.got.to_string());
    put("msgGetTotalTodayMorning", days.today_morning.got.to_string());
    put("msgGetTotalTodayNow", rates.get_transferred.total().to_string());

    put("commitLogMinOffset", facts.log_begin.to_string());
    put("commitLogMaxOffset", facts.log_end.to_string());
    put("earliestMessageTimeStamp", facts.oldest_ms.unwrap_or(-1).to_string());
    put("dispatchBehindBytes", facts.log_end.saturating_sub(facts.applied_end).to_string());
    put("remainHowManyDataToFlush", human_bytes(facts.log_end.saturating_sub(facts.synced_end)));
    // One file system holds all.
    if let Some(space) = facts.space {
        let ratio = used_ratio(space);
        put("commitLogDiskRatio", ratio.clone());
        put("consumeQueueDiskRatio", ratio);
        let (total, free) = (human_bytes(space.total_bytes), human_bytes(space.free_bytes));
        put("commitLogDirCapacity", format!("Total : {total}, Free : {free}."));
    }

    // A send waits for nothing but its quorum, a pull for nothing but messages.
    put("sendThreadPoolQueueSize", facts.leader_requests.to_string());
    put("sendThreadPoolQueueHeadWaitTimeMills", "0".to_owned());
    put("pullThreadPoolQueueSize", "0".to_owned());
    put("pullThreadPoolQueueHeadWaitTimeMills", "0".to_owned());
    put("pageCacheLockTimeMills", "0".to_owned());

    put("raftmqScheduledMessages", facts.pending.scheduled.to_string());
    put("raftmqHalfMessages", facts.pending.half.to_string());
    put("raftmqPendingBytes", facts.pending.bytes.to_string());
    table
}

/// What RocketMQ has no words for.
fn raft_table(raft: &Status) -> BTreeMap<String, String> {
    let (role, leader) = match &raft.role {
        Role::Leader { .. } => ("leader", raft.node.to_string()),
        Role::Follower { leader, .. } => {
            ("follower", leader.as_ref().map(|leader| leader.id.to_string()).unwrap_or_default())
        }
        Role::Isolated { .. } => ("isolated", String::new()),
        Role::Candidate { .. } => ("candidate", String::new()),
        Role::Stopped { .. } => ("stopped", String::new()),
    };
    let index = |id: Option<LogId>| id.map_or(String::new(), |id| id.index.to_string());
    let pairs = [
        ("raftmqAppliedIndex", index(raft.applied)),
        ("raftmqCommittedIndex", index(raft.committed)),
        ("raftmqLeader", leader),
        ("raftmqNodeId", raft.node.to_string()),
        ("raftmqRole", role.to_owned()),
        ("raftmqTerm", raft.term.to_string()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// `followers`: address and end of the log that each is known to hold.
fn ha_info(role: &Role, end: u64, followers: Vec<(String, u64)>) -> HaRuntimeInfo {
    if let Role::Leader { .. } = role {
        let connections: Vec<HaConnectionRuntimeInfo> = followers
            .into_iter()
            .map(|(addr, held)| {
                let behind = end.saturating_sub(held);
                HaConnectionRuntimeInfo {
                    addr,
                    diff: behind as i64,
                    in_sync: behind <= IN_SYNC_BYTES,
                    slave_ack_offset: held as i64,
                    transfer_from_where: held as i64,
                    ..HaConnectionRuntimeInfo::default()
                }
            })
            .collect();
        return HaRuntimeInfo {
            in_sync_slave_nums: connections.iter().filter(|connection| connection.in_sync).count() as i32,
            ha_connection_info: connections,
            master: true,
            master_commit_log_max_offset: end as i64,
            ..HaRuntimeInfo::default()
        };
    }
    let leader = match role {
        Role::Follower { leader, .. } => leader.as_ref().map(|leader| leader.peer_address.clone()),
        _ => None,
    };
    let ha_client_runtime_info = HaClientRuntimeInfo { master_addr: leader, max_offset: Some(end as i64) };
    HaRuntimeInfo { ha_client_runtime_info, ..HaRuntimeInfo::default() }
}

fn runtime_text(elapsed_ms: i64) -> String {
    let seconds = elapsed_ms.max(0) / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    format!("[ {days} days, {hours} hours, {minutes} minutes, {} seconds ]", seconds % 60)
}

/// The part of the file system that is used: a double, as Java prints it.
fn used_ratio(space: Space) -> String {
    let used = space.total_bytes.saturating_sub(space.free_bytes);
    format!("{:?}", if space.total_bytes == 0 { 0.0 } else { used as f64 / space.total_bytes as f64 })
}

fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (bytes.max(1).ilog2() / 10) as usize;
    match power {
        0 => format!("{bytes} B"),
        _ => format!("{:.1} {}", bytes as f64 / (1_u64 << (power * 10)) as f64, units[power]),
    }
}

#[cfg(test)]
mod tests {
    use raft_store::group::Peer;

    use super::*;
    use crate::admin::statistics::Totals;

    fn facts() -> Facts {
        Facts {
            now_ms: 1_700_000_000_000 + ((26 * 60 + 3) * 60 + 4) * 1000,
            now: Duration::from_secs(20),
            started_ms: 1_700_000_000_000,
            is_ready: true,
            log_begin: 0,
            log_end: 5000,
            synced_end: 1000,
            applied_end: 4936,
            oldest_ms: Some(1_700_000_000_001),
            space: Some(Space { free_bytes: 3 << 30, total_bytes: 4 << 30 }),
            leader_requests: 2,
            pending: PendingCounts { scheduled: 5, half: 0, bytes: 640 },
            days: Days { today_morning: Totals { put: 7, got: 3 }, ..Days::default() },
        }
    }

    #[test]
    fn cluster_list_finds_what_it_prints() {
        let rates = Rates::default();
        rates.tick(Duration::from_secs(10));
        rates.put.add(100);
        rates.put_bytes.add(25_600);
        rates.get_found.add(5);
        rates.get_miss.add(5);
        rates.get_transferred.add(50);
        let table = runtime_table(&facts(), &rates);
        for (key, value) in [
            ("brokerVersionDesc", "V5_3_3"),
            ("brokerActive", "true"),
            ("runtime", "[ 1 days, 2 hours, 3 minutes, 4 seconds ]"),
            ("putTps", "10.0000 10.0000 10.0000"),
            ("getTotalTps", "1.0000 1.0000 1.0000"),
            ("getTransferredTps", "5.0000 5.0000 5.0000"),
            ("getTransferedTps", "5.0000 5.0000 5.0000"),
            ("putMessageAverageSize", "256.0"),
            ("sendThreadPoolQueueSize", "2"),
            ("pullThreadPoolQueueSize", "0"),
            ("sendThreadPoolQueueHeadWaitTimeMills", "0"),
            ("pullThreadPoolQueueHeadWaitTimeMills", "0"),
            ("pageCacheLockTimeMills", "0"),
            ("earliestMessageTimeStamp", "1700000000001"),
            ("commitLogDiskRatio", "0.25"),
            ("commitLogDirCapacity", "Total : 4.0 GiB, Free : 3.0 GiB."),
            ("commitLogMaxOffset", "5000"),
            ("dispatchBehindBytes", "64"),
            ("remainHowManyDataToFlush", "3.9 KiB"),
            ("msgPutTotalTodayMorning", "7"),
            ("msgPutTotalTodayNow", "100"),
            ("msgGetTotalTodayMorning", "3"),
            ("msgGetTotalTodayNow", "50"),
            ("msgPutTotalYesterdayMorning", "0"),
            ("msgGetTotalYesterdayMorning", "0"),
        ] {
            assert_eq!(table.get(key).map(String::as_str), Some(value), "{key}");
        }
    }

    #[test]
    fn bytes_are_said_as_java_says_them() {
        let said: Vec<_> = [0, 1023, 1024, 1536, u64::MAX].into_iter().map(human_bytes).collect();
        assert_eq!(said, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "16.0 EiB"]);
        assert_eq!(used_ratio(Space { free_bytes: 0, total_bytes: 0 }), "0.0");
    }

    #[test]
    fn a_leader_shows_its_followers_and_a_follower_its_leader() {
        let text = |info: &HaRuntimeInfo| String::from_utf8(protocol::json::to_vec(info)).expect("JSON");
        let leader = Role::Leader { term: 1, ready: true };
        assert_eq!(
            text(&ha_info(&leader, 7, vec![])),
            r#"{"haClientRuntimeInfo":{},"haConnectionInfo":[],"inSyncSlaveNums":0,"master":true,"masterCommitLogMaxOffset":7}"#
        );
        let far = IN_SYNC_BYTES + 100;
        let info = ha_info(&leader, far, vec![("a:1".to_owned(), 99), ("b:1".to_owned(), far)]);
        assert_eq!(info.in_sync_slave_nums, 1);
        let golden = r#"{"addr":"b:1","diff":0,"inSync":true,"slaveAckOffset":268435556,"transferFromWhere":268435556,"transferredByteInSecond":0}"#;
        assert_eq!(String::from_utf8(protocol::json::to_vec(&info.ha_connection_info[1])).expect("JSON"), golden);
        let peer = Peer { id: 1, peer_address: "a:2".to_owned(), client_address: "a:1".to_owned() };
        let follower = Role::Follower { term: 1, leader: Some(peer) };
        assert_eq!(
            text(&ha_info(&follower, 7, vec![])),
            r#"{"haClientRuntimeInfo":{"masterAddr":"a:2","maxOffset":7},"haConnectionInfo":[],"inSyncSlaveNums":0,"master":false,"masterCommitLogMaxOffset":0}"#
        );
    }
}

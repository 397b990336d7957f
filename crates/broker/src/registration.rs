//! Registration: every NameServer hears from every replica who it is and which topics the group serves.
//!
//! At the start, when the role changes, when topics change, and every [`INTERVAL`]; each NameServer has a task of its own,
//! so that one that is down delays no other. The leader is brokerId 0, followers count from 1 in order of their ids. The
//! DataVersion carries the Raft term: a NameServer ignores a leader of an older one.

use std::sync::Arc;
use std::time::Duration;

use protocol::body::{self, DataVersion, RegisterBrokerBody, TopicConfigSerializeWrapper};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{BrokerRequest, RegisterBrokerRequest};
use protocol::names;
use protocol::record::body_crc;
use raft_store::group::Role;
use raft_store::position::NodeId;
use tokio::sync::watch;

use crate::broker::BrokerGroup;
use crate::tables::Tables;
use crate::tables::topics::TopicConfig;

/// Between two registrations when nothing changes.
const INTERVAL: Duration = Duration::from_secs(30);

/// Between two attempts at a NameServer that does not answer, and between two looks whether this replica has caught up.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// A NameServer strikes out a replica that it has not heard of for this long.
const EXPIRY: Duration = Duration::from_secs(120);

/// How long a NameServer may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// How long the farewell may take: expiry does the same, later.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// Wakes the registering tasks.
#[derive(Debug)]
pub struct Registration {
    wanted: watch::Sender<u64>,
}

impl Default for Registration {
    fn default() -> Registration {
        Registration { wanted: watch::Sender::new(0) }
    }
}

impl Registration {
    /// Topics have changed: every NameServer should know at once.
    pub fn wake(&self) {
        self.wanted.send_modify(|count| *count += 1);
    }
}

/// What this replica is to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    /// 0 is where clients write.
    broker_id: i64,
    term: u64,
}

/// The brokerId of `own`: 0 for the leader, then 1, 2 … in order of the ids of the other voters.
fn broker_id(own: NodeId, leader: NodeId, mut voters: Vec<NodeId>) -> i64 {
    if own == leader {
        return 0;
    }
    voters.retain(|voter| *voter != leader);
    voters.sort_unstable();
    voters.iter().take_while(|voter| **voter != own).count() as i64 + 1
}

/// Keeps one NameServer informed.
pub async fn run(broker: Arc<BrokerGroup>, name_server: String) {
    let mut wanted = broker.registration.wanted.subscribe();
    let mut role = broker.raft.role();
    let mut last = None;
    loop {
        wanted.borrow_and_update();
        let role_now = role.borrow_and_update().clone();
        let now = standing(&role_now, broker.raft.node(), broker.raft.status().voters);
        // Between two leaders a replica stays what it was, but one that led says nothing: it may have been replaced.
        let standing = now.or_else(|| last.filter(|standing: &Standing| standing.broker_id != 0));
        // Nor does one that lacks what clients would ask it for.
        let is_caught_up = broker.raft.is_caught_up();
        let standing = standing.filter(|_| is_caught_up);
        let mut pause = if is_caught_up { INTERVAL } else { RETRY_INTERVAL };
        if let Some(standing) = standing {
            if let Err(error) = register(&broker, &name_server, standing).await {
                tracing::warn!(group = %broker.broker_name(), %name_server, %error, "registration failed");
                pause = RETRY_INTERVAL;
            }
            last = Some(standing);
        }
        tokio::select! {
            biased;
            changed = role.changed() => if changed.is_err() { return },
            changed = wanted.changed() => if changed.is_err() { return },
            () = broker.env.clock.sleep(pause) => {}
        }
    }
}

/// `None` while it is not known who leads.
///
/// It is told all that it needs: who looked at the group's status here, while the role was still borrowed, waited for
/// whoever was about to change the role, who waited for the borrower.
fn standing(role: &Role, own: NodeId, voters: Vec<NodeId>) -> Option<Standing> {
    let (leader, term) = match role {
        Role::Leader { term, ready: true } => (own, *term),
        Role::Follower { term, leader: Some(leader) } => (leader.id, *term),
        Role::Leader { ready: false, .. } | Role::Follower { leader: None, .. } => return None,
        Role::Isolated { .. } | Role::Candidate { .. } | Role::Stopped { .. } => return None,
    };
    Some(Standing { broker_id: broker_id(own, leader, voters), term })
}

async fn register(broker: &BrokerGroup, name_server: &str, standing: Standing) -> Result<(), String> {
    let topics = topics_to_register(&broker.reader.tables(), broker.config.messages.auto_create_topics, standing.term);
    let body = RegisterBrokerBody { filter_server_list: Vec::new(), topic_config_serialize_wrapper: topics };
    let body = protocol::json::to_vec(&body);
    let header = RegisterBrokerRequest {
        broker_name: broker.broker_name().to_owned(),
        broker_addr: broker.config.advertised_address.to_string(),
        cluster_name: broker.cluster.clone(),
        ha_server_addr: Some(broker.config.peer_address.clone()),
        broker_id: standing.broker_id,
        heartbeat_timeout_millis: Some(EXPIRY.as_millis() as i64),
        enable_acting_master: Some(false),
        compressed: false,
        body_crc32: Some(body_crc(&body)),
        zone_name: None,
    };
    let request = RemotingCommand::request_with(RequestCode::REGISTER_BROKER, &header).with_body(body);
    let answer = broker.peers.call(name_server, request, ANSWER_LIMIT).await.map_err(|error| error.to_string())?;
    if answer.is_success() { Ok(()) } else { Err(format!("code {}: {}", answer.code, answer.remark_text())) }
}

fn topics_to_register(tables: &Tables, creates_topics: bool, term: u64) -> TopicConfigSerializeWrapper {
    let version = tables.topics_version();
    // A client that finds the template's route believes that it may send to any topic.
    let is_shown = |config: &TopicConfig| creates_topics || config.name != names::AUTO_CREATE_TOPIC;
    let configs = tables.topics().iter().map(|topic| &topic.config).filter(|config| is_shown(config));
    TopicConfigSerializeWrapper {
        data_version: DataVersion {
            counter: version.counter,
            state_version: term as i64,
            timestamp: version.changed_ms,
        },
        topic_config_table: configs.map(|config| (config.name.clone(), body::TopicConfig::from(config))).collect(),
    }
}

/// Tells every NameServer that this replica is gone. One that cannot be told strikes it out by itself.
pub async fn unregister(broker: &BrokerGroup) {
    let status = broker.raft.status();
    let broker_id = match &status.role {
        Role::Leader { .. } => 0,
        role => standing(role, status.node, status.voters.clone()).map_or(1, |standing| standing.broker_id),
    };
    let farewells = broker.name_servers.iter().map(|name_server| async move {
        let header = BrokerRequest {
            broker_name: broker.broker_name().to_owned(),
            broker_addr: broker.config.advertised_address.to_string(),
            cluster_name: broker.cluster.clone(),
            broker_id,
        };
        let request = RemotingCommand::request_with(RequestCode::UNREGISTER_BROKER, &header);
        let call = broker.peers.call(name_server, request, FAREWELL_LIMIT);
        match broker.env.clock.timeout(FAREWELL_LIMIT, call).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => tracing::debug!(%name_server, %error, "not unregistered"),
            None => tracing::debug!(%name_server, "not unregistered: no answer"),
        }
    });
    futures::future::join_all(farewells).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_0_and_followers_count_from_1() {
        let voters = vec![30, 10, 20];
        assert_eq!(broker_id(20, 20, voters.clone()), 0);
        assert_eq!(broker_id(10, 20, voters.clone()), 1);
        assert_eq!(broker_id(30, 20, voters.clone()), 2);
        assert_eq!(broker_id(30, 10, voters), 2);
        assert_eq!(broker_id(5, 5, vec![5]), 0);
    }

    #[test]
    fn who_does_not_know_who_leads_has_no_standing() {
        let leads = Role::Leader { term: 7, ready: true };
        assert_eq!(standing(&leads, 20, vec![10, 20, 30]), Some(Standing { broker_id: 0, term: 7 }));
        let nobody = [
            Role::Leader { term: 7, ready: false },
            Role::Follower { term: 7, leader: None },
            Role::Isolated { term: 7 },
            Role::Candidate { term: 7 },
            Role::Stopped { reason: None },
        ];
        assert!(nobody.iter().all(|role| standing(role, 20, vec![10, 20, 30]).is_none()));
    }

    #[test]
    fn a_registration_carries_the_term() {
        let registered = topics_to_register(&Tables::default(), true, 7);
        assert_eq!(registered.data_version, DataVersion { counter: 0, state_version: 7, timestamp: 0 });
        assert!(registered.topic_config_table.is_empty());
    }
}

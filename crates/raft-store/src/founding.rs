//! How a group comes into being, exactly once, whichever founder is killed at whichever step.
//!
//! 1. Each listed peer formats its directory (an id is minted and durable) and waits.
//! 2. When all have said hello, with no vote and no log, each writes the full founding set `{id, address}` into its
//!    IDENTITY, durably, and by that confirms.
//! 3. When all have confirmed, and still have no vote and no log, the first in the list alone calls `initialize`.
//!
//! Every step is repeated after a restart until it is done. What must never happen is a second founding: a directory
//! that was wiped has a new id, finds that the others know another one at its address, or have a log, and refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use env::{Env, fault};

use crate::identity::Directory;
use crate::position::NodeId;
use crate::raft::peer::connection::{self, ConnectError, HELLO_LIMIT};
use crate::raft::peer::wire::{Channel, Founder, FoundingStatus, Hello, Message};

/// Founders ask each other this often.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

/// Why a node does not take part.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// The configuration does not say who founds.
    #[error(
        "{own} is not in the list of founders {founders:?}; add it there, or start with `join = true` to become a member of \
         a group that exists"
    )]
    NotListed {
        /// This node's peer address.
        own: String,
        /// The list.
        founders: Vec<String>,
    },
    /// The group exists, and this node is not part of it.
    #[error(
        "the group was founded without this directory (node {id:016x}): {evidence}. If the directory was wiped or \
         replaced, it is a new node: start it with `join = true`, then `raftmq admin replaceNode` puts it in the old \
         one's place. If it should not exist, delete it"
    )]
    FoundedWithout {
        /// The id of this directory.
        id: NodeId,
        /// How it is known.
        evidence: String,
    },
    /// A founder was wiped before the group existed.
    #[error(
        "the founding set in this directory is {ours:?}, that of {address} is {theirs:?}: a founder's directory was \
         replaced while the group was being founded. Nothing was stored yet: delete the directories of all founders \
         and start again"
    )]
    SetsDiffer {
        /// Who.
        address: String,
        /// In this directory.
        ours: Vec<Founder>,
        /// In its directory.
        theirs: Vec<Founder>,
    },
    /// The disk failed.
    #[error("writing the founding set: {0}")]
    Io(#[from] std::io::Error),
}

/// What a node knows of itself when it starts.
#[derive(Clone, Debug)]
pub struct Start {
    /// Says who this node is.
    pub hello: Hello,
    /// Peer addresses of all founders, in the order of the configuration, this node's among them.
    pub founders: Vec<String>,
    /// This node joins a group that exists.
    pub join: bool,
    /// It has voted, or holds entries: it is a member already.
    pub has_history: bool,
}

/// Takes part in the founding until this node may start Raft. Gives the founding set if it is this node's task to call
/// `initialize` with it.
pub async fn take_part(env: &Env, directory: &Directory, start: &Start) -> Result<Option<Vec<Founder>>, FoundingError> {
    let own = directory.founder();
    if start.has_history {
        return Ok(None);
    }
    if start.join {
        let (id, address) = (own.id, &own.node.peer_address);
        tracing::info!("node {id:016x} waits to be named: raftmq admin addNode -p {address}, or replaceNode");
        return Ok(None);
    }
    if let Some(set) = directory.identity().founding_set.filter(|set| set.iter().any(|founder| founder.id == own.id)) {
        return Ok(initializes(&set, &own).then_some(set));
    }
    if !start.founders.contains(&own.node.peer_address) {
        let founders = start.founders.clone();
        return Err(FoundingError::NotListed { own: own.node.peer_address, founders });
    }
    let mut complaints = BTreeMap::new();
    let set = loop {
        let statuses = ask_all(env, start, &own, &mut complaints).await;
        if statuses.iter().any(|(_, status)| status.members.contains(&own.id)) {
            return Ok(None);
        }
        if let Some(evidence) = founded_without(&own, &statuses) {
            return Err(FoundingError::FoundedWithout { id: own.id, evidence });
        }
        if let Some(set) = all_said_hello(start, &own, &statuses) {
            break set;
        }
        env.clock.sleep(ASK_INTERVAL).await;
    };
    fault!("founding.all_said_hello");
    directory.found(set.clone()).await?;
    fault!("founding.set_written");
    Ok(initializes(&set, &own).then_some(set))
}

/// Waits until every founder has confirmed `set`. False if the group has come into being meanwhile: somebody has a vote
/// or a log, then nothing is to be initialized.
pub async fn all_confirmed(
    env: &Env,
    directory: &Directory,
    start: &Start,
    set: &[Founder],
) -> Result<bool, FoundingError> {
    let own = directory.founder();
    let mut complaints = BTreeMap::new();
    loop {
        let statuses = ask_all(env, start, &own, &mut complaints).await;
        if statuses.iter().any(|(_, status)| status.has_vote || status.has_log) {
            return Ok(false);
        }
        for (address, status) in &statuses {
            if let Some(theirs) = status.set.as_ref().filter(|theirs| !same(theirs, set)) {
                let (address, ours, theirs) = (address.clone(), set.to_vec(), theirs.clone());
                return Err(FoundingError::SetsDiffer { address, ours, theirs });
            }
        }
        let confirmed = |founder: &Founder| {
            let status = statuses.iter().find(|(_, status)| status.founder.id == founder.id);
            founder.id == own.id || status.is_some_and(|(_, status)| status.set.is_some())
        };
        if set.iter().all(confirmed) {
            fault!("founding.confirmed");
            return Ok(true);
        }
        env.clock.sleep(ASK_INTERVAL).await;
    }
}

/// The first of the list alone.
fn initializes(set: &[Founder], own: &Founder) -> bool {
    set.first().is_some_and(|first| first.id == own.id)
}

/// Addresses may be corrected between starts; ids make the set.
fn same(one: &[Founder], other: &[Founder]) -> bool {
    one.iter().map(|founder| founder.id).eq(other.iter().map(|founder| founder.id))
}

/// Evidence that the others have founded, or are founding, a group that this directory is no part of.
fn founded_without(own: &Founder, statuses: &[(String, FoundingStatus)]) -> Option<String> {
    statuses.iter().find_map(|(address, status)| {
        if status.has_vote || status.has_log {
            return Some(format!("{address} has {}", if status.has_log { "a log" } else { "voted" }));
        }
        let set = status.set.as_ref()?;
        if set.iter().any(|founder| founder.id == own.id) {
            return None;
        }
        let known = set.iter().find(|founder| founder.node.peer_address == own.node.peer_address);
        Some(match known {
            Some(known) => format!("{address} knows node {:016x} at {}", known.id, own.node.peer_address),
            None => format!("{address} has a founding set without {}", own.node.peer_address),
        })
    })
}

/// The founding set, in the order of the list, once everybody is there.
fn all_said_hello(start: &Start, own: &Founder, statuses: &[(String, FoundingStatus)]) -> Option<Vec<Founder>> {
    start
        .founders
        .iter()
        .map(|address| {
            if *address == own.node.peer_address {
                return Some(own.clone());
            }
            let (_, status) = statuses.iter().find(|(of, _)| of == address)?;
            Some(status.founder.clone())
        })
        .collect()
}

/// Everybody's status, of those who answer. A reason not to answer is logged when it changes.
async fn ask_all(
    env: &Env,
    start: &Start,
    own: &Founder,
    complaints: &mut BTreeMap<String, String>,
) -> Vec<(String, FoundingStatus)> {
    let others = start.founders.iter().filter(|address| **address != own.node.peer_address);
    let answers =
        futures::future::join_all(others.map(async |address| (address, ask(env, &start.hello, address).await))).await;
    let mut statuses = Vec::new();
    for (address, answer) in answers {
        match answer {
            Ok((status, _)) if status.founder.node.peer_address != *address => {
                let reason = format!("calls itself {}: let the lists agree", status.founder.node.peer_address);
                complain(complaints, address, reason);
            }
            Ok((status, _)) => statuses.push((address.clone(), status)),
            Err(error) => complain(complaints, address, error.to_string()),
        }
    }
    statuses
}

fn complain(complaints: &mut BTreeMap<String, String>, address: &str, reason: String) {
    if complaints.get(address) != Some(&reason) {
        tracing::info!("founding waits for {address}: {reason}");
        complaints.insert(address.to_owned(), reason);
    }
}

/// How far the node at `address` is, whoever it is, and the newest cluster version that it can apply. `own` says who asks.
pub async fn ask(env: &Env, own: &Hello, address: &str) -> Result<(FoundingStatus, u32), ConnectError> {
    let hello = Hello { expects: 0, channel: Channel::Founding, ..own.clone() };
    let io = |source| ConnectError::Io { address: address.to_owned(), source };
    let (mut reader, mut writer, theirs) = connection::connect(env, address, &hello, HELLO_LIMIT).await?;
    let exchange = async {
        writer.write(&Message::FoundingQuery).await?;
        match reader.next().await? {
            Some(Message::FoundingStatus(status)) => Ok((status, theirs.cluster_version)),
            Some(_) => Err(std::io::ErrorKind::InvalidData.into()),
            None => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    };
    match env.clock.timeout(HELLO_LIMIT, exchange).await {
        Some(status) => status.map_err(io),
        None => Err(ConnectError::Timeout { address: address.to_owned(), limit: HELLO_LIMIT }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Node;

    fn founder(id: NodeId) -> Founder {
        let node = Node { peer_address: format!("host{}:1", id % 10), client_address: String::new() };
        Founder { id, node }
    }

    fn status(id: NodeId) -> (String, FoundingStatus) {
        let founder = founder(id);
        let address = founder.node.peer_address.clone();
        let (set, members, members_at) = (None, Vec::new(), None);
        (address, FoundingStatus { founder, has_vote: false, has_log: false, set, members, members_at })
    }

    fn start() -> Start {
        let hello = Hello {
            protocol: (1, 1),
            cluster: String::new(),
            group: String::new(),
            node: 1,
            expects: 0,
            segment_bytes: 0,
            frame_version: 1,
            features: 0,
            cluster_version: 1,
            wall_ms: 0,
            channel: Channel::Founding,
            forward_key: None,
        };
        let founders = (1..4).map(|id| founder(id).node.peer_address).collect();
        Start { hello, founders, join: false, has_history: false }
    }

    #[test]
    fn nobody_founds_before_everybody_is_there() {
        let own = founder(1);
        assert_eq!(all_said_hello(&start(), &own, &[status(3)]), None);
        let set = all_said_hello(&start(), &own, &[status(3), status(2)]).unwrap();
        assert_eq!(set, [founder(1), founder(2), founder(3)]);
        assert!(initializes(&set, &founder(1)) && !initializes(&set, &founder(2)));
    }

    #[test]
    fn a_wiped_founder_sees_that_the_others_know_another_id_at_its_address() {
        // 11 has the address that 1 had.
        let wiped = founder(11);
        let (address, mut knows) = status(2);
        knows.set = Some(vec![founder(1), founder(2), founder(3)]);
        let evidence = founded_without(&wiped, &[status(3), (address.clone(), knows.clone())]).unwrap();
        assert!(evidence.contains("0000000000000001"), "{evidence}");
        assert_eq!(founded_without(&founder(1), &[(address, knows)]), None);
        let (address, mut led) = status(2);
        led.has_log = true;
        assert!(founded_without(&founder(1), &[(address, led)]).is_some());
    }
}

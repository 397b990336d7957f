//! The judge of clause 11: replicas that hold the log up to the same entry hold the same bytes.
//!
//! A replica's chain is the rolling hash of its whole log up to an entry. Each replica answers for itself.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use env::Env;
use protocol::body::ReplicaStatus;
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::MakeCheckpointResponse;
use remoting::{Client, Limits, NoRequests};

use crate::cluster::PATIENCE;

/// How long one replica may take to answer before it is asked again.
const CALL: Duration = Duration::from_secs(5);

/// Where all replicas end, and the hash of everything up to there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    index: u64,
    chain: String,
}

impl fmt::Display for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} at entry {}", self.chain, self.index)
    }
}

/// Resolves when the logs of all replicas end with the same entry, applied everywhere, and have the same chain there. An
/// error if two chains differ at one entry, or if the logs do not come to one end before patience does. The senders must
/// be quiet.
pub async fn agree(env: &Env, replicas: &[SocketAddr]) -> io::Result<Agreed> {
    let client = Client::new(env, Limits::default(), Arc::new(NoRequests));
    let deadline = env.clock.monotonic() + PATIENCE;
    loop {
        let mut statuses = Vec::new();
        for replica in replicas {
            statuses.push(status(&client, *replica).await.map_err(|error| format!("{replica}: {error}")));
        }
        let answered: Vec<_> = statuses.iter().flatten().collect();
        if let Some(agreed) = compare(&answered).map_err(io::Error::other)?
            && answered.len() == replicas.len()
        {
            return Ok(agreed);
        }
        if env.clock.monotonic() > deadline {
            return Err(io::Error::other(format!("the replicas are not equal after {PATIENCE:?}: {statuses:#?}")));
        }
        env.clock.sleep(Duration::from_millis(5)).await;
    }
}

/// What all agree on; `None` if they are not at one entry yet.
pub(crate) fn compare(statuses: &[&ReplicaStatus]) -> Result<Option<Agreed>, String> {
    for (k, a) in statuses.iter().enumerate() {
        for b in &statuses[..k] {
            if a.chain_index == b.chain_index && a.chain != b.chain {
                return Err(format!(
                    "DIVERGED: at entry {:?} the chain is {:?} on node {} and {:?} on node {}",
                    a.chain_index, a.chain, a.node_id, b.chain, b.node_id
                ));
            }
        }
    }
    let ends = |status: &&ReplicaStatus| [status.last_index, status.applied_index, status.chain_index];
    let Some((index, chain)) = statuses.first().and_then(|first| Some((first.last_index?, first.chain.clone()?)))
    else {
        return Ok(None);
    };
    let all_there = statuses.iter().all(|status| ends(status) == [Some(index); 3]);
    Ok(all_there.then_some(Agreed { index, chain }))
}

/// What a replica says of itself.
pub async fn status(client: &Client<NoRequests>, replica: SocketAddr) -> Result<ReplicaStatus, String> {
    let answer = ask(client, replica, RequestCode::GET_REPLICA_STATUS).await?;
    protocol::json::from_slice(&answer.body).map_err(|error| error.to_string())
}

/// Has all replicas hash their states at one entry, which this gives; whichever is asked.
pub async fn make_checkpoint(client: &Client<NoRequests>, replica: SocketAddr) -> Result<u64, String> {
    let answer = ask(client, replica, RequestCode::MAKE_CHECKPOINT).await?;
    let made: MakeCheckpointResponse = answer.header().map_err(|error| error.to_string())?;
    Ok(made.index)
}

async fn ask(client: &Client<NoRequests>, replica: SocketAddr, code: RequestCode) -> Result<RemotingCommand, String> {
    let request = RemotingCommand::request(code);
    let answer = client.call(&replica.to_string(), request, CALL).await.map_err(|error| error.to_string())?;
    if answer.is_success() { Ok(answer) } else { Err(format!("{}: {}", answer.response_code(), answer.remark_text())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A replica whose log ends with entry `last`, and which gives the chain at entry `index`.
    fn replica(last: u64, index: u64, chain: &str) -> ReplicaStatus {
        ReplicaStatus {
            last_index: Some(last),
            applied_index: Some(index),
            chain_index: Some(index),
            chain: Some(chain.to_owned()),
            ..ReplicaStatus::default()
        }
    }

    fn compared(statuses: [ReplicaStatus; 3]) -> Result<Option<String>, String> {
        compare(&statuses.each_ref()).map(|agreed| agreed.map(|agreed| agreed.to_string()))
    }

    #[test]
    fn replicas_agree_only_where_all_of_them_end() {
        let at = |last, index| compared([replica(7, 7, "aa"), replica(7, 7, "aa"), replica(last, index, "aa")]);
        assert_eq!(at(7, 7), Ok(Some("chain aa at entry 7".to_owned())));
        assert_eq!(at(8, 7), Ok(None), "it has more");
        assert_eq!(compared([replica(7, 7, "aa"), replica(7, 7, "aa"), replica(7, 6, "bb")]), Ok(None), "it is behind");
        assert_eq!(compared([replica(7, 7, "aa"), replica(7, 7, "aa"), ReplicaStatus::default()]), Ok(None));
        assert_eq!(compare(&[]), Ok(None));
    }

    #[test]
    fn replicas_that_differ_are_told_also_before_they_end() {
        let told = compared([replica(9, 7, "aa"), replica(7, 7, "aa"), replica(8, 7, "bb")]);
        assert!(told.is_err_and(|error| error.starts_with("DIVERGED: at entry Some(7)")));
    }
}

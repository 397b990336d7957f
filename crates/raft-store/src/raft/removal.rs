//! A node that was removed from the group finds out, says so in its directory, and stops.
//!
//! The others stop talking to a node with the entry that removes it, which it may never get. So a member that hears of no
//! leader asks them: a membership without this node that is newer than the first one with it says that it was removed. Older
//! ones say nothing: a node on its way to become a member meets them, and one that applies its log again after a crash.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use env::Env;
use futures::future::join_all;
use openraft::Raft;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;

use crate::fold::Tables;
use crate::founding;
use crate::identity::{Belongs, Directory};
use crate::position::NodeId;
use crate::raft::machine::{Machine, Roster};
use crate::raft::peer::PeerCounters;
use crate::raft::peer::wire::Hello;
use crate::raft::types::Types;

/// A member without a leader asks the others this often.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// What it takes to find out.
pub struct Watch<T: Tables> {
    /// Surroundings.
    pub env: Env,
    /// Where it is remembered.
    pub directory: Directory,
    /// Says who this node is.
    pub hello: Hello,
    /// The members as applied here.
    pub roster: watch::Receiver<Roster>,
    /// Knows whether this node leads.
    pub raft: Raft<Types, Machine<T>>,
    /// Knows whether anybody leads this node.
    pub counters: Arc<PeerCounters>,
    /// Peer addresses that the configuration names.
    pub configured: Vec<String>,
}

impl<T: Tables> Watch<T> {
    /// Resolves when this node was removed, and its directory says so: why this replica must stop.
    pub async fn removed(mut self) -> String {
        let own = self.directory.founder().id;
        let raft = self.raft.server_metrics();
        let mut ticks = self.env.clock.ticks(ASK_INTERVAL);
        let mut heard = 0;
        loop {
            let roster = self.roster.borrow_and_update().clone();
            match (self.directory.identity().belongs, roster.at) {
                (Belongs::NotYet, Some(since)) if roster.contains(own) => {
                    self.remember(Belongs::Member { since }).await;
                }
                (Belongs::Member { since }, Some(at)) if at > since && !roster.contains(own) => {
                    return self.left(own, at).await;
                }
                _ => {}
            }
            tokio::select! { biased;
                changed = self.roster.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = ticks.next() => {
                    let heard_before = std::mem::replace(&mut heard, self.counters.heard_of_leader.load(Ordering::Relaxed));
                    let leads = raft.borrow_watched().state.is_leader();
                    if !leads && heard == heard_before && let Some(at) = self.removed_at(own, &roster).await {
                        return self.left(own, at).await;
                    }
                }
            }
        }
    }

    /// Where somebody else has a membership without `own` in it, if that is newer than one with it.
    async fn removed_at(&self, own: NodeId, roster: &Roster) -> Option<u64> {
        let Belongs::Member { since } = self.directory.identity().belongs else { return None };
        let mut addresses: BTreeSet<String> = self.configured.iter().cloned().collect();
        addresses.extend(roster.members.values().map(|node| node.peer_address.clone()));
        addresses.remove(&self.directory.founder().node.peer_address);
        let asks = addresses.iter().map(|address| founding::ask(&self.env, &self.hello, address));
        let answers = join_all(asks).await;
        let without = answers.into_iter().flatten().filter(|(status, _)| !status.members.contains(&own));
        without.filter_map(|(status, _)| status.members_at).filter(|at| *at > since).max()
    }

    async fn left(&self, own: NodeId, at: u64) -> String {
        self.remember(Belongs::Left).await;
        format!("node {own:016x} was removed from the group with entry {at}; its data directory is of no further use")
    }

    async fn remember(&self, belongs: Belongs) {
        if let Err(error) = self.directory.belongs(belongs).await {
            tracing::error!(%error, ?belongs, "the directory could not be told");
        }
    }
}

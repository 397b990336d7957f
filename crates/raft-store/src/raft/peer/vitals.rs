//! What members tell the leader of themselves, asked for over the unary connection twice a second, and with every hello.
//!
//! Not part of the answer to a heartbeat: that one waits for a disk, and is left out while appends are answered. A clock
//! must be read while the question is young.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use openraft::Raft;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::fold::Tables;
use crate::group_time::{Origin, Others, Reading, millis};
use crate::position::NodeId;
use crate::raft::machine::Machine;
use crate::raft::peer::client::Links;
use crate::raft::peer::wire::Vitals;
use crate::raft::types::Types;
use crate::state_hash::ImageHashes;

/// How often the leader asks.
pub const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// An answer that takes longer says little.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// A member that is there is heard of again within this time, also beside one that does not answer.
pub const HEARD_WITHIN: Duration = Duration::from_millis(1500);

/// What a member said is not believed for longer.
const BELIEVED: Duration = Duration::from_secs(5);

/// What was heard of each member lately.
#[derive(Debug, Default)]
pub struct Heard {
    by_node: Mutex<BTreeMap<NodeId, Pulse>>,
    /// The hashes of their newest images, and when they said so.
    images: Mutex<BTreeMap<NodeId, (Duration, ImageHashes)>>,
    news: watch::Sender<()>,
}

#[derive(Debug)]
struct Pulse {
    /// When its clock was heard.
    at: Duration,
    origin: Origin,
}

impl Pulse {
    /// What was heard with a shorter delay is worth more, unless the clock was moved since, or it is old.
    fn hear(&mut self, later: Pulse) {
        let is_old = later.at.saturating_sub(self.at) > BELIEVED / 2;
        if is_old || later.origin.width() <= self.origin.width() || !later.origin.meets(self.origin) {
            *self = later;
        }
    }
}

impl Heard {
    /// `node` showed `wall_ms` between two moments of this node's elapsed time, and was heard of at `now`.
    pub fn clock(&self, node: NodeId, wall_ms: i64, asked: Duration, answered: Duration, now: Duration) {
        let origin = Origin::heard(wall_ms, millis(asked), millis(answered));
        let pulse = Pulse { at: now, origin };
        let mut by_node = self.by_node.lock();
        match by_node.get_mut(&node) {
            Some(before) => before.hear(pulse),
            None => {
                by_node.insert(node, pulse);
            }
        }
        drop(by_node);
        self.news.send_replace(());
    }

    fn images_told(&self, node: NodeId, images: ImageHashes, now: Duration) {
        self.images.lock().insert(node, (now, images));
        self.news.send_replace(());
    }

    /// The hashes of the newest images of those that are there at `now`.
    pub fn images(&self, now: Duration) -> BTreeMap<NodeId, ImageHashes> {
        let images = self.images.lock();
        let young = images.iter().filter(|(_, (at, _))| now.saturating_sub(*at) <= BELIEVED);
        young.map(|(node, (_, images))| (*node, images.clone())).collect()
    }

    /// Whether a member has answered within `limit` before `now`.
    pub fn answers(&self, node: NodeId, now: Duration, limit: Duration) -> bool {
        self.images.lock().get(&node).is_some_and(|(at, _)| now.saturating_sub(*at) <= limit)
    }

    /// Changes when something was heard.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// The clocks of the `voters` but `own`, as far as they are known at `now`.
    pub fn others(&self, voters: &[NodeId], own: NodeId, now: Duration) -> Others {
        let by_node = self.by_node.lock();
        let young = |pulse: &&Pulse| now.saturating_sub(pulse.at) <= BELIEVED;
        let clock = |node: &NodeId| Some((*node, by_node.get(node).filter(young)?.origin));
        let clocks = voters.iter().filter(|voter| **voter != own).filter_map(clock).collect();
        Others { voters: voters.len(), clocks }
    }
}

/// Asks all others while this node leads, until Raft or the links end.
pub async fn ask_while_leading<T: Tables>(raft: Raft<Types, Machine<T>>, links: Weak<Links>) {
    let mut changes = raft.server_metrics();
    loop {
        let asked = {
            let Some(links) = links.upgrade() else { return };
            let others = others_to_ask(&changes.borrow_watched());
            let is_leading = others.is_some();
            let asks = others.into_iter().flatten().map(|(node, address)| {
                let links = links.clone();
                async move { ask(&links, node, &address).await }
            });
            let all = join_all(asks);
            let clock = links.env().clock.clone();
            async move {
                let began = clock.monotonic();
                all.await;
                if is_leading {
                    clock.sleep((began + ASK_INTERVAL).saturating_sub(clock.monotonic())).await;
                } else {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! { biased;
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = asked => {}
        }
    }
}

/// `None` if this node does not lead.
fn others_to_ask(server: &RaftServerMetrics<Types>) -> Option<Vec<(NodeId, String)>> {
    let leads = server.state.is_leader();
    let nodes = server.membership_config.membership().nodes();
    let others = nodes.filter(|(node, _)| **node != server.id);
    leads.then(|| others.map(|(node, at)| (*node, at.peer_address.clone())).collect())
}

async fn ask(links: &Arc<Links>, node: NodeId, address: &str) {
    let clock = links.env().clock.clone();
    let asked = clock.elapsed();
    if let Some(Some(vitals)) = clock.timeout(ANSWER_LIMIT, links.ask_vitals(node, address)).await {
        let (Vitals { wall_ms, images }, now) = (vitals, clock.monotonic());
        links.heard().clock(node, wall_ms, asked, clock.elapsed(), now);
        links.heard().images_told(node, images, now);
    }
}

/// Both clocks of this node, and those of the others.
pub fn clocks_of<T: Tables>(raft: &Raft<Types, Machine<T>>, heard: &Heard, clock: &env::Clock) -> (Reading, Others) {
    let voters: Vec<NodeId> = {
        let metrics = raft.server_metrics();
        metrics.borrow_watched().membership_config.membership().voter_ids().collect()
    };
    (Reading::of(clock), heard.others(&voters, *raft.node_id(), clock.monotonic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_was_heard_with_less_delay_counts_until_it_is_old_or_the_clock_was_moved() {
        let heard = Heard::default();
        let known = |now| heard.others(&[1, 2, 3], 1, at(now)).clocks;
        let hears = |wall_ms, asked, answered| heard.clock(2, wall_ms, asked, answered, answered);
        let origin = |earliest, latest| vec![(2, Origin { earliest, latest })];
        hears(5100, at(90), at(100));
        assert_eq!(known(100), origin(5000, 5010));
        hears(5300, at(150), at(350));
        assert_eq!(known(350), origin(5000, 5010), "the disk was slow");
        hears(5400, at(399), at(404));
        assert_eq!(known(404), origin(4996, 5001));
        hears(9500, at(450), at(550));
        assert_eq!(known(550), origin(8950, 9050), "it was moved");
        hears(12_100, at(3000), at(3200));
        assert_eq!(known(3200), origin(8900, 9100), "old");
        assert_eq!(known(8200), origin(8900, 9100));
        assert_eq!(known(8201), vec![], "it has not been heard of for long");
    }
}

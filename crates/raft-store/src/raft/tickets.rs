//! Whose proposal stands at which log id: the link between an entry appended here and the waiter of this node's
//! proposer.
//!
//! openraft tells a proposer that its entry was discarded when the entry is truncated here; but a truncated entry may
//! still commit through another replica. What was applied decides, and nothing else:
//!
//! - the same id applied at that index: placed;
//! - another id applied at that index: certainly not appended;
//! - the index covered by an installed snapshot: unknown.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::position::LogId;
use crate::raft::types::Ticket;

/// How a registered proposal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is in the log for good.
    Applied,
    /// Another entry is in its place for good.
    Superseded,
    /// The log up to there was replaced by a snapshot.
    Covered,
}

/// Log ids given to this node's proposals.
#[derive(Debug, Default)]
pub struct Tickets {
    // One index may hold several: appended in one term, truncated, appended again in another.
    by_index: Mutex<BTreeMap<u64, Vec<(LogId, Ticket)>>>,
}

impl Tickets {
    /// `ticket` was appended as `id`.
    pub fn register(&self, id: LogId, ticket: Ticket) {
        self.by_index.lock().entry(id.index).or_default().push((id, ticket));
    }

    /// `id` was applied: what that means for the proposals registered at its index.
    pub fn applied(&self, id: LogId) -> Vec<(Ticket, Ended)> {
        let Some(registered) = self.by_index.lock().remove(&id.index) else {
            return Vec::new();
        };
        let ended = |registered| if registered == id { Ended::Applied } else { Ended::Superseded };
        registered.into_iter().map(|(registered, ticket)| (ticket, ended(registered))).collect()
    }

    /// A snapshot that ends at `id` was installed.
    pub fn covered(&self, id: LogId) -> Vec<(Ticket, Ended)> {
        let mut by_index = self.by_index.lock();
        let beyond = by_index.split_off(&(id.index + 1));
        let covered = std::mem::replace(&mut *by_index, beyond);
        covered.into_values().flatten().map(|(_, ticket)| (ticket, Ended::Covered)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(term: u64, index: u64) -> LogId {
        LogId { term, index }
    }

    #[test]
    fn a_proposal_truncated_and_repeated_is_decided_by_what_is_applied() {
        let tickets = Tickets::default();
        tickets.register(id(1, 5), Ticket(10));
        tickets.register(id(3, 5), Ticket(11));
        tickets.register(id(3, 6), Ticket(12));
        assert_eq!(tickets.applied(id(3, 5)), [(Ticket(10), Ended::Superseded), (Ticket(11), Ended::Applied)]);
        assert_eq!(tickets.applied(id(3, 5)), []);
        assert_eq!(tickets.applied(id(4, 6)), [(Ticket(12), Ended::Superseded)]);
    }

    #[test]
    fn a_snapshot_leaves_what_it_covers_unknown() {
        let tickets = Tickets::default();
        for index in 3..7 {
            tickets.register(id(1, index), Ticket(index));
        }
        assert_eq!(tickets.covered(id(2, 4)), [(Ticket(3), Ended::Covered), (Ticket(4), Ended::Covered)]);
        assert_eq!(tickets.applied(id(1, 5)), [(Ticket(5), Ended::Applied)]);
    }
}

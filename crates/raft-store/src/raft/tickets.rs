//! Whose proposal stands at which log id: the link between an entry appended here and the waiter of this node's
//! proposer.
//!
//! openraft tells a proposer that its entry was discarded when the entry is truncated here; but a truncated entry may
//! still commit through another replica. What was applied decides, and nothing else:
//!
//! - the same id applied at that index: placed;
//! - another id applied at that index, or one of a later term anywhere: certainly not appended. Whoever leads after that has
//!   the later term's entry, and behind it nothing of a term before;
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
pub struct Tickets(Mutex<Registered>);

#[derive(Debug, Default)]
struct Registered {
    // One index may hold several: appended in one term, truncated, appended again in another.
    by_index: BTreeMap<u64, Vec<(LogId, Ticket)>>,
    /// Of what was applied last.
    term: u64,
}

impl Tickets {
    /// `ticket` was appended as `id`.
    pub fn register(&self, id: LogId, ticket: Ticket) {
        self.0.lock().by_index.entry(id.index).or_default().push((id, ticket));
    }

    /// `id` was applied: the proposals that this decides.
    pub fn applied(&self, id: LogId) -> Vec<(Ticket, Ended)> {
        let mut registered = self.0.lock();
        let mut decided = registered.by_index.remove(&id.index).unwrap_or_default();
        if id.term > registered.term {
            registered.term = id.term;
            for (_, proposals) in registered.by_index.range_mut(id.index + 1..) {
                decided.extend(proposals.extract_if(.., |(proposed, _)| proposed.term < id.term));
            }
            registered.by_index.retain(|_, proposals| !proposals.is_empty());
        }
        let ended = |proposed| if proposed == id { Ended::Applied } else { Ended::Superseded };
        decided.into_iter().map(|(proposed, ticket)| (ticket, ended(proposed))).collect()
    }

    /// A snapshot that ends at `id` was installed.
    pub fn covered(&self, id: LogId) -> Vec<(Ticket, Ended)> {
        let mut registered = self.0.lock();
        let beyond = registered.by_index.split_off(&(id.index + 1));
        let covered = std::mem::replace(&mut registered.by_index, beyond);
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
    fn a_later_term_decides_what_stood_behind_it_in_a_quiet_log_too() {
        let tickets = Tickets::default();
        for index in 5..8 {
            tickets.register(id(1, index), Ticket(index));
        }
        tickets.register(id(2, 7), Ticket(27));
        assert_eq!(tickets.applied(id(1, 5)), [(Ticket(5), Ended::Applied)]);
        assert_eq!(tickets.applied(id(2, 6)), [(Ticket(6), Ended::Superseded), (Ticket(7), Ended::Superseded)]);
        assert_eq!(tickets.applied(id(2, 7)), [(Ticket(27), Ended::Applied)]);
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

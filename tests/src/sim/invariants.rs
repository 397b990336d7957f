//! What must hold at every moment, whatever fails: looked at every few milliseconds of simulated time.
//!
//! - One leader per term. A replica's term and vote never go back, not over a crash either.
//! - What is applied is committed; neither goes back while a process runs.
//! - Who leads in the newest term has all that was acknowledged to clients.
//! - What is applied at an index is the same everywhere and for ever, with all that was before it: the chain says so.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use broker::broker::BrokerGroup;
use protocol::record::RecordView;
use raft_store::entry::{EntryView, OperationView, decode_entry};
use raft_store::group::{Role, Status};
use raft_store::log::{Frame, Kind, Vote};
use raft_store::position::{LogId, NodeId};

use super::clients::value_of;
use super::judge::Violation;
use super::workload::TOPIC;

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Invariants {
    seen: RefCell<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    leaders: BTreeMap<u64, NodeId>,
    votes: BTreeMap<NodeId, (u64, bool, Option<NodeId>)>,
    terms: BTreeMap<NodeId, u64>,
    /// By process: what it had committed and applied.
    progress: BTreeMap<(String, u64), (Option<LogId>, Option<LogId>)>,
    /// The chain behind each entry, and who applied it first.
    applied: BTreeMap<u64, (LogId, u64, String)>,
    /// What was appended, and in which entry.
    stored: Vec<(u64, u64)>,
    violations: Vec<Violation>,
}

impl Seen {
    fn violated(&mut self, clause: &'static str, what: String) {
        let violation = Violation { clause, what };
        if !self.violations.contains(&violation) {
            self.violations.push(violation);
        }
    }
}

impl Invariants {
    /// Looks at one replica.
    pub fn look(&self, host: &str, process: u64, group: &BrokerGroup) {
        let status = group.raft().status();
        let vote = group.raft().log().vote();
        let mut seen = self.seen.borrow_mut();
        if let Role::Leader { term, .. } = status.role {
            let leader = *seen.leaders.entry(term).or_insert(status.node);
            if leader != status.node {
                seen.violated("one leader per term", format!("{leader:016x} and {:016x} in term {term}", status.node));
            }
        }
        if let Some(split) = status.state_split {
            seen.violated("replicas are equal", format!("{host} found the state split at {split}"));
        }
        seen.votes_stay(host, &status, vote);
        seen.progress_stays(host, process, &status);
    }

    /// Compares what this replica applies with what others have applied, until its process ends.
    pub async fn watch(self: Rc<Invariants>, host: String, group: Arc<BrokerGroup>) {
        let (log, reader) = (group.raft().log(), group.raft().reader());
        let mut applied = reader.watch_applied();
        drop(group);
        let mut next = None;
        loop {
            let now = *applied.borrow_and_update();
            if let Some(now) = now {
                for index in next.unwrap_or(now.index)..=now.index {
                    // What was purged meanwhile was seen on others.
                    let Some(frame) = log.read(index..index + 1, 1).await.ok().and_then(|mut frames| frames.pop())
                    else {
                        continue;
                    };
                    self.applied(&host, &frame);
                }
                next = Some(now.index + 1);
            }
            if applied.changed().await.is_err() {
                return;
            }
        }
    }

    fn applied(&self, host: &str, frame: &Frame) {
        let (id, chain) = (frame.id, frame.chain);
        let mut seen = self.seen.borrow_mut();
        if !seen.applied.contains_key(&id.index) {
            seen.stored.extend(appended(frame).into_iter().map(|value| (value, id.index)));
        }
        let first = seen.applied.entry(id.index).or_insert_with(|| (id, chain, host.to_owned())).clone();
        if (first.0, first.1) != (id, chain) {
            let what =
                format!("{host} applied {id} with chain {chain:016x}, {} {} with {:016x}", first.2, first.0, first.1);
            seen.violated("committed entries stay", what);
        }
    }

    /// In how many terms, behind the first, somebody was seen to lead.
    pub fn leader_changes(&self) -> u64 {
        (self.seen.borrow().leaders.len() as u64).saturating_sub(1)
    }

    /// The newest term that any replica was ever seen in.
    pub fn newest_term(&self) -> u64 {
        self.seen.borrow().terms.values().copied().max().unwrap_or_default()
    }

    /// How many entries were compared.
    pub fn entries(&self) -> usize {
        self.seen.borrow().applied.len()
    }

    /// Every value that was appended, and the index of its entry, whether or not retention has let go of it since.
    pub fn stored(&self) -> Vec<(u64, u64)> {
        self.seen.borrow().stored.clone()
    }

    /// Adds a violation that somebody else found.
    pub fn violated(&self, clause: &'static str, what: String) {
        self.seen.borrow_mut().violated(clause, what);
    }

    /// What did not hold.
    pub fn violations(&self) -> Vec<Violation> {
        self.seen.borrow().violations.clone()
    }
}

/// What an entry appends to the queues that clients append to.
fn appended(frame: &Frame) -> Vec<u64> {
    let entry = (frame.kind == Kind::Entry).then(|| decode_entry(&frame.body).ok()).flatten();
    let mut values = Vec::new();
    for operation in entry.iter().flat_map(EntryView::operations) {
        let OperationView::Record(place) = operation else { continue };
        let record = &frame.body[place.position as usize..][..place.size as usize];
        let record = RecordView::parse(record).expect("a broker stores whole records");
        if record.topic() == TOPIC {
            values.push(value_of(record.body()));
        }
    }
    values
}

impl Seen {
    fn votes_stay(&mut self, host: &str, status: &Status, vote: Option<Vote>) {
        let term = self.terms.entry(status.node).or_default();
        let before = std::mem::replace(term, status.term.max(*term));
        if status.term < before {
            self.violated("terms never go back", format!("{host} was in term {before}, is in {}", status.term));
        }
        let Some(vote) = vote else { return };
        let now = (vote.term, vote.committed, vote.node_id);
        if let Some(before) = self.votes.insert(status.node, now) {
            let is_later = (now.0, now.1) >= (before.0, before.1);
            // One vote a term; a leader's own, once a quorum granted it, may follow somebody else's that was never granted.
            let is_granted_now = now.1 && !before.1;
            let is_changed = (now.0 == before.0 && now.2 != before.2) && !is_granted_now;
            if !is_later || is_changed {
                self.violated("votes never go back", format!("{host} had voted {before:?}, then {now:?}"));
            }
        }
    }

    fn progress_stays(&mut self, host: &str, process: u64, status: &Status) {
        let now = (status.committed, status.applied);
        if status.applied > status.committed {
            let what = format!("{host} applied {:?}, committed {:?}", status.applied, status.committed);
            self.violated("what is applied is committed", what);
        }
        let before = self.progress.insert((host.to_owned(), process), now).unwrap_or_default();
        if now.0 < before.0 || now.1 < before.1 {
            self.violated("progress stays", format!("{host}: {before:?}, then {now:?}"));
        }
    }
}

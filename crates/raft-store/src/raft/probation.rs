//! Probation of a replica that is flushed by a timer and whose machine went down: it may have lost what it had
//! acknowledged, so its word does not count yet. It takes entries, but neither votes nor campaigns, until it holds all
//! that the group had committed when it came back; that it is on probation outlives another stop.
//!
//! When is that? A leader's commit at the first heartbeat that was accepted covers what this leader has acknowledged. One
//! that was elected meanwhile may hold more than it knows to be committed; an entry of its own term stands behind all of
//! it. So both are waited for: that index, and an entry of that term.

use std::sync::Arc;
use std::time::Duration;

use env::Env;
use openraft::Raft;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::fold::{Reader, Tables};
use crate::identity::Directory;
use crate::planted::{self, Bug};
use crate::position::LogId;
use crate::raft::machine::Machine;
use crate::raft::types::Types;

/// Without a leader for this long, a replica that may recover by itself ends its probation: no majority is left whose
/// word counts.
const ALONE_LIMIT: Duration = Duration::from_secs(10);

/// What a leader has shown: its term, and how much it had committed.
type Shown = Option<(u64, u64)>;

/// Whether this replica's word counts.
#[derive(Debug)]
pub struct Probation {
    is_over: watch::Sender<bool>,
    shown: Mutex<Shown>,
    heard: watch::Sender<()>,
}

impl Probation {
    /// Of a replica that has lost nothing (`is_over`), or may have.
    pub fn new(is_over: bool) -> Arc<Probation> {
        Arc::new(Probation {
            is_over: watch::Sender::new(is_over || planted::is(Bug::ForgetfulVotes)),
            shown: Mutex::default(),
            heard: watch::Sender::new(()),
        })
    }

    /// Whether it may vote and campaign.
    pub fn is_over(&self) -> bool {
        *self.is_over.borrow()
    }

    /// A heartbeat of a leader of `term` was accepted; it had committed so much.
    pub fn heard(&self, term: u64, committed: Option<u64>) {
        if !self.is_over() {
            let mut shown = self.shown.lock();
            *shown = newest(*shown, term, committed.unwrap_or(0));
            self.heard.send_replace(());
        }
    }

    /// Waits for the end of the probation, notes it, and lets the replica campaign. `alone`: nobody else has a copy.
    /// `may_go_on`: the operator lets a group go on that has lost what a majority had not flushed.
    pub async fn serve<T: Tables>(
        self: Arc<Self>,
        env: Env,
        directory: Directory,
        reader: Reader<T>,
        raft: Raft<Types, Machine<T>>,
        may_go_on: bool,
    ) {
        if self.is_over() {
            return;
        }
        tracing::warn!(
            "the machine went down without a clean stop and messages are flushed by a timer: this replica neither votes \
             nor campaigns until it holds what the group has committed"
        );
        let (mut applied, mut heard) = (reader.watch_applied(), self.heard.subscribe());
        let (mut quiet_since, mut is_told) = (env.clock.monotonic(), false);
        let mut looks = env.clock.ticks(ALONE_LIMIT / 20);
        loop {
            let shown = *self.shown.lock();
            if caught_up(shown, *applied.borrow_and_update()) {
                tracing::info!("this replica holds what the group has committed: it votes again");
                break;
            }
            tokio::select! { biased;
                changed = applied.changed() => if changed.is_err() { return },
                _ = heard.changed() => (quiet_since, is_told) = (env.clock.monotonic(), false),
                () = looks.next() => {
                    let founders = directory.identity().founding_set.map(|set| set.len());
                    let others = has_others(raft.voter_ids().count(), founders);
                    let is_long = env.clock.monotonic() - quiet_since >= ALONE_LIMIT;
                    if is_long && others && !may_go_on && !std::mem::replace(&mut is_told, true) {
                        tracing::error!(
                            "nobody leads: no leader has been heard of, and the machines of a majority may have gone down \
                             with what was not flushed. The group goes on when those that did not are back, or when \
                             async_auto_recover = true is set on the others and they are started again: what was \
                             acknowledged in the last flush interval before may then be lost"
                        );
                    }
                    if !others || may_go_on && is_long {
                        tracing::error!(
                            "going on without a replica that has flushed everything: what was acknowledged in the last \
                             flush interval before the machines went down may be lost"
                        );
                        break;
                    }
                }
            }
        }
        if let Err(error) = directory.has_caught_up().await {
            // Safe: the next start is on probation again.
            tracing::error!(%error, "the end of the probation could not be noted");
            return;
        }
        self.is_over.send_replace(true);
        raft.runtime_config().elect(true);
    }
}

/// Whether somebody else may hold what this replica has lost. `voters`: in its log, which may have lost the membership as
/// well; then those who founded the group count, and one that joined a group has company.
fn has_others(voters: usize, founders: Option<usize>) -> bool {
    match voters {
        0 => founders != Some(1),
        voters => voters > 1,
    }
}

/// A later leader's word replaces an earlier one's; of one leader the first counts.
fn newest(shown: Shown, term: u64, committed: u64) -> Shown {
    shown.filter(|(known, _)| *known >= term).or(Some((term, committed)))
}

fn caught_up(shown: Shown, applied: Option<LogId>) -> bool {
    let Some(((term, committed), applied)) = shown.zip(applied) else { return false };
    applied.index >= committed && applied.term >= term
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_has_lost_the_membership_is_not_alone() {
        assert!(has_others(3, Some(3)) && has_others(3, None) && !has_others(1, Some(1)));
        assert!(!has_others(1, Some(3)), "the others have left");
        assert!(has_others(0, Some(3)) && has_others(0, None), "nothing is left of its log");
        assert!(!has_others(0, Some(1)));
    }

    #[test]
    fn both_the_index_and_the_term_must_be_reached() {
        let at = |term, index| Some(LogId { term, index });
        assert!(!caught_up(None, at(9, 99)), "nobody has said how far the group is");
        let shown = newest(None, 5, 40);
        assert!(!caught_up(shown, None) && !caught_up(shown, at(5, 39)));
        assert!(!caught_up(shown, at(4, 50)), "what an earlier leader committed may stand behind that");
        assert!(caught_up(shown, at(5, 40)));
        assert_eq!(newest(shown, 5, 90), shown, "more came in since it is back: that is not its debt");
        assert_eq!(newest(shown, 6, 10), Some((6, 10)), "the next leader's own term must be reached now");
        assert_eq!(newest(newest(shown, 6, 10), 5, 50), Some((6, 10)), "a late word of the earlier one");
    }
}

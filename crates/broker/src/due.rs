//! What a leader does by itself: makes what every broker has when it takes office, and from then on whatever is due.
//!
//! Not a loop that sleeps and acts: [`Duties::run_due`] says what is due at a time and when to ask again. Each step is one
//! entry of the log, so a change of leader repeats nothing and forgets nothing. A follower does none of it.

use std::sync::Arc;
use std::time::Duration;

use raft_store::entry::{CoreCommand, Operation};
use raft_store::fold::{CoreReply, Outcome};
use raft_store::group::Role;
use raft_store::position::Timestamp;
use raft_store::proposer::ProposeError;
use tokio::sync::watch;

use crate::broker::BrokerGroup;

/// Rows that one entry makes visible.
const FIRED_AT_ONCE: u32 = 4096;

/// Images are cut at most this often: a tenth of the time that messages are kept.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(72 * 3600 / 10);

/// How often a leader looks whether every member can do more than the group has agreed on.
const VERSION_INTERVAL: Duration = Duration::from_secs(10);

/// After a step that failed for a reason that passes.
const NEXT_TRY: Duration = Duration::from_millis(100);

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Scheduled messages have reached their time.
    FireTimers,
    /// Time for another image.
    Checkpoint,
    /// Perhaps the cluster version can be raised.
    LookAtVersions,
}

/// What a leader has to do, and when.
#[derive(Debug)]
pub struct Duties {
    next_checkpoint: Timestamp,
    next_look_at_versions: Timestamp,
}

impl Duties {
    /// Of a leader that takes office at `now`.
    pub fn taken_over(now: Timestamp) -> Duties {
        Duties { next_checkpoint: later(now, CHECKPOINT_INTERVAL), next_look_at_versions: now }
    }

    /// What is due at `now`, in group time, and when to ask again. `next_due`: when the first scheduled message reaches its
    /// time.
    pub fn run_due(&mut self, now: Timestamp, next_due: Option<Timestamp>) -> (Vec<Duty>, Timestamp) {
        let mut due = Vec::new();
        if next_due.is_some_and(|next_due| next_due <= now) {
            due.push(Duty::FireTimers);
        }
        if self.next_checkpoint <= now {
            due.push(Duty::Checkpoint);
            self.next_checkpoint = later(now, CHECKPOINT_INTERVAL);
        }
        if self.next_look_at_versions <= now {
            due.push(Duty::LookAtVersions);
            self.next_look_at_versions = later(now, VERSION_INTERVAL);
        }
        let fixed = self.next_checkpoint.min(self.next_look_at_versions);
        (due, next_due.map_or(fixed, |next_due| fixed.min(next_due)))
    }
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    Timestamp(now.0.saturating_add(by.as_millis() as i64))
}

/// Does a leader's duties whenever this replica leads.
pub async fn run(broker: Arc<BrokerGroup>) {
    let mut role = broker.raft.role();
    while role.wait_for(|role| matches!(role, Role::Leader { ready: true, .. })).await.is_ok() {
        hold_office(&broker, &mut role).await;
    }
}

/// Until the office is lost.
async fn hold_office(broker: &BrokerGroup, role: &mut watch::Receiver<Role>) {
    let term = term_of(&role.borrow_and_update());
    tracing::info!(group = %broker.broker_name(), term, "leading");
    while let Err(error) = broker.ensure_system().await {
        tracing::warn!(group = %broker.broker_name(), %error, "system topics are not made yet");
        if office_is_lost(broker, role, term, NEXT_TRY).await {
            return;
        }
    }
    let mut duties = Duties::taken_over(broker.now());
    loop {
        let now = broker.now();
        let (due, next) = duties.run_due(now, broker.reader.next_due());
        let mut wait = Duration::from_millis(u64::try_from(next.0 - now.0).unwrap_or(0));
        for duty in due {
            wait = match carry_out(broker, duty).await {
                Ok(()) => Duration::ZERO,
                Err(error) => {
                    tracing::debug!(group = %broker.broker_name(), ?duty, %error, "a duty is put off");
                    NEXT_TRY
                }
            };
        }
        if office_is_lost(broker, role, term, wait).await {
            tracing::info!(group = %broker.broker_name(), term, "no longer leading");
            return;
        }
    }
}

async fn carry_out(broker: &BrokerGroup, duty: Duty) -> Result<(), ProposeError> {
    let command = match duty {
        Duty::FireTimers => CoreCommand::FireTimers { limit: FIRED_AT_ONCE },
        Duty::Checkpoint => CoreCommand::Checkpoint,
        Duty::LookAtVersions => return broker.raft.raise_cluster_version().await.map(drop),
    };
    let outcomes = broker.raft.propose(vec![Operation::Core(command)]).await?;
    if let [Outcome::Core(CoreReply::Fired { fired, .. })] = outcomes.as_slice() {
        tracing::debug!(group = %broker.broker_name(), fired, "scheduled messages have become visible");
    }
    Ok(())
}

/// Waits at most `limit`, less if something was scheduled meanwhile. Whether the office of `term` is lost by then.
async fn office_is_lost(
    broker: &BrokerGroup,
    role: &mut watch::Receiver<Role>,
    term: Option<u64>,
    limit: Duration,
) -> bool {
    let lost = role.wait_for(|role| term_of(role) != term);
    tokio::select! {
        biased;
        _ = lost => true,
        () = broker.scheduled.notified() => false,
        () = broker.env.clock.sleep(limit) => false,
    }
}

fn term_of(role: &Role) -> Option<u64> {
    match role {
        Role::Leader { term, ready: true } => Some(*term),
        Role::Leader { ready: false, .. } | Role::Follower { .. } | Role::Candidate { .. } | Role::Stopped { .. } => {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_and_when_to_ask_again() {
        let start = Timestamp(1_000_000);
        let at = |by: Duration| later(start, by);
        let mut duties = Duties::taken_over(start);
        assert_eq!(duties.run_due(start, None), (vec![Duty::LookAtVersions], at(VERSION_INTERVAL)));
        let soon = at(Duration::from_millis(7));
        assert_eq!(duties.run_due(start, Some(soon)), (vec![], soon), "never early");
        assert_eq!(duties.run_due(soon, Some(soon)).0, [Duty::FireTimers]);
        let (due, next) = duties.run_due(at(CHECKPOINT_INTERVAL), None);
        assert_eq!(due, [Duty::Checkpoint, Duty::LookAtVersions]);
        assert_eq!(next, later(at(CHECKPOINT_INTERVAL), VERSION_INTERVAL));
    }
}

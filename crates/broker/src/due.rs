//! What a leader does by itself: makes what every broker has when it takes office, and from then on whatever is due.
//!
//! Not a loop that sleeps and acts: [`Duties::run_due`] says what is due at a time and when to ask again. Each step is one
//! entry of the log, so a change of leader repeats nothing and forgets nothing. A follower does none of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use env::clock::Advances;
use raft_store::entry::{CoreCommand, Operation};
use raft_store::fold::{CoreReply, Outcome};
use raft_store::group::Role;
use raft_store::position::Timestamp;
use tokio::sync::watch;

use crate::broker::BrokerGroup;
use crate::check_back;
use crate::error::RequestError;
use crate::pop;
use crate::retention::{self, Plan};

/// Rows that one entry makes visible.
const FIRED_AT_ONCE: u32 = 4096;

/// How often a leader looks whether every member can do more than the group has agreed on.
const VERSION_INTERVAL: Duration = Duration::from_secs(10);

/// After a step that failed for a reason that passes.
pub(crate) const NEXT_TRY: Duration = Duration::from_millis(100);

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Scheduled messages have reached their time.
    FireTimers,
    /// Something may be too old to be kept, or the log too long.
    LookAtRetention,
    /// Perhaps the cluster version can be raised.
    LookAtVersions,
}

/// What a leader has to do, and when.
#[derive(Debug)]
pub struct Duties {
    retention_interval: Duration,
    next_look_at_retention: Timestamp,
    next_look_at_versions: Timestamp,
}

impl Duties {
    /// Of a leader that takes office at `now`.
    pub fn taken_over(now: Timestamp, retention_interval: Duration) -> Duties {
        Duties { retention_interval, next_look_at_retention: now, next_look_at_versions: now }
    }

    /// The last look at retention left something to do.
    fn look_at_retention_again(&mut self, now: Timestamp) {
        self.next_look_at_retention = now;
    }

    /// What is due at `now`, in group time, and when to ask again. `next_due`: when the first scheduled message reaches its
    /// time.
    pub fn run_due(&mut self, now: Timestamp, next_due: Option<Timestamp>) -> (Vec<Duty>, Timestamp) {
        let mut due = Vec::new();
        if next_due.is_some_and(|at| at <= now) {
            due.push(Duty::FireTimers);
        }
        if self.next_look_at_retention <= now {
            due.push(Duty::LookAtRetention);
            self.next_look_at_retention = later(now, self.retention_interval);
        }
        if self.next_look_at_versions <= now {
            due.push(Duty::LookAtVersions);
            self.next_look_at_versions = later(now, VERSION_INTERVAL);
        }
        let fixed = self.next_look_at_retention.min(self.next_look_at_versions);
        (due, next_due.map_or(fixed, |at| at.min(fixed)))
    }
}

pub(crate) fn later(now: Timestamp, by: Duration) -> Timestamp {
    Timestamp(now.0.saturating_add(by.as_millis() as i64))
}

/// From `now` until `at`.
pub(crate) fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(at.0 - now.0).unwrap_or(0))
}

/// A term in which this replica leads.
pub(crate) struct Office<'a> {
    pub(crate) broker: &'a Arc<BrokerGroup>,
    term: Option<u64>,
    role: watch::Receiver<Role>,
    /// Whether one of those who hold it has seen that it is lost: then it is for all of them.
    is_lost: watch::Sender<bool>,
    scheduled: watch::Receiver<()>,
    next_due: watch::Receiver<Option<Timestamp>>,
    advances: Advances,
}

impl Office<'_> {
    fn taken(broker: &Arc<BrokerGroup>, mut role: watch::Receiver<Role>) -> Office<'_> {
        let term = term_of(&role.borrow_and_update());
        let (scheduled, next_due) = (broker.scheduled.subscribe(), broker.reader.watch_next_due());
        let (is_lost, advances) = (watch::Sender::new(false), broker.env.clock.advances());
        Office { broker, term, role, is_lost, scheduled, next_due, advances }
    }

    /// The same office, for somebody else's duties.
    fn shared(&self) -> Self {
        let Office { broker, term, .. } = *self;
        let (role, is_lost, scheduled) = (self.role.clone(), self.is_lost.clone(), self.scheduled.clone());
        let (next_due, advances) = (self.next_due.clone(), broker.env.clock.advances());
        Office { broker, term, role, is_lost, scheduled, next_due, advances }
    }

    /// Does a step of a duty that may be long in its answers: `None` if the office is lost before it is done. What a step has not
    /// done then, the next leader does.
    pub(crate) async fn unless_lost<T>(&mut self, step: impl Future<Output = T>) -> Option<T> {
        let mut told = self.is_lost.subscribe();
        let lost = self.role.wait_for(|role| term_of(role) != self.term);
        tokio::select! {
            biased;
            _ = told.wait_for(|is_lost| *is_lost) => None,
            _ = lost => {
                self.is_lost.send_replace(true);
                None
            }
            done = step => Some(done),
        }
    }

    /// Waits at most `limit`, less if something was scheduled meanwhile or the date was moved. Whether the office is lost by then.
    pub(crate) async fn is_lost_within(&mut self, limit: Duration) -> bool {
        let mut told = self.is_lost.subscribe();
        let lost = self.role.wait_for(|role| term_of(role) != self.term);
        tokio::select! {
            biased;
            _ = told.wait_for(|is_lost| *is_lost) => true,
            _ = lost => {
                self.is_lost.send_replace(true);
                true
            }
            _ = self.scheduled.changed() => false,
            _ = self.next_due.changed() => false,
            () = self.advances.next() => false,
            () = self.broker.env.clock.sleep(limit) => false,
        }
    }
}

/// Does a leader's duties whenever this replica leads. Producers are asked, and dead letters laid down, beside the others: a
/// replica that is asked to ask may be long in answering, and a message that is due does not wait for it.
///
/// The office is lost for all of them when it is for one: another may be in the middle of a step, and see nothing of it that this
/// replica was cut off for a moment.
pub async fn run(broker: Arc<BrokerGroup>) {
    let mut role = broker.raft.role();
    while role.wait_for(|role| matches!(role, Role::Leader { ready: true, .. })).await.is_ok() {
        let office = Office::taken(&broker, role.clone());
        let (group, term, asking, burying) = (broker.broker_name(), office.term, office.shared(), office.shared());
        tracing::info!(group, term, "leading");
        tokio::join!(hold_office(office), check_back::ask_in_office(asking), pop::bury_in_office(burying));
        tracing::info!(group, term, "no longer leading");
    }
}

/// Until the office is lost.
async fn hold_office(mut office: Office<'_>) {
    let broker = office.broker;
    while let Err(error) = broker.ensure_system().await {
        tracing::warn!(group = %broker.broker_name(), %error, "system topics are not made yet");
        if office.is_lost_within(NEXT_TRY).await {
            return;
        }
    }
    let mut duties = Duties::taken_over(broker.now(), broker.config.retention.look_interval);
    let mut plan = Plan::new(broker.config.retention.clone(), broker.now());
    loop {
        let now = broker.now();
        let (due, next) = duties.run_due(now, broker.reader.next_due());
        if due.is_empty() {
            broker.duties_done_ms.store(now.0, Ordering::Release);
        }
        let mut wait = until(next, now);
        for duty in due {
            wait = match carry_out(broker, duty, &mut plan).await {
                Ok(more) => {
                    if more && duty == Duty::LookAtRetention {
                        duties.look_at_retention_again(now);
                    }
                    Duration::ZERO
                }
                Err(error) => {
                    tracing::debug!(group = %broker.broker_name(), ?duty, %error, "a duty is put off");
                    NEXT_TRY
                }
            };
        }
        if office.is_lost_within(wait).await {
            return;
        }
    }
}

/// Whether there is more to do at once.
async fn carry_out(broker: &BrokerGroup, duty: Duty, plan: &mut Plan) -> Result<bool, RequestError> {
    let command = match duty {
        Duty::FireTimers => CoreCommand::FireTimers { limit: FIRED_AT_ONCE },
        Duty::LookAtRetention => return retention::step(broker, plan).await,
        Duty::LookAtVersions => {
            broker.raft.raise_cluster_version().await?;
            return Ok(false);
        }
    };
    let outcomes = broker.raft.propose(vec![Operation::Core(command)]).await?;
    if let [Outcome::Core(CoreReply::Fired { fired, .. })] = outcomes.as_slice() {
        tracing::debug!(group = %broker.broker_name(), fired, "scheduled messages have become visible");
    }
    Ok(false)
}

fn term_of(role: &Role) -> Option<u64> {
    match role {
        Role::Leader { term, ready: true } => Some(*term),
        Role::Leader { ready: false, .. } | Role::Isolated { .. } | Role::Follower { .. } => None,
        Role::Candidate { .. } | Role::Stopped { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK_INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn what_is_due_and_when_to_ask_again() {
        let start = Timestamp(1_000_000);
        let at = |by: Duration| later(start, by);
        let mut duties = Duties::taken_over(start, LOOK_INTERVAL);
        let first = vec![Duty::LookAtRetention, Duty::LookAtVersions];
        assert_eq!(duties.run_due(start, None), (first.clone(), at(VERSION_INTERVAL)));
        let soon = at(Duration::from_millis(7));
        assert_eq!(duties.run_due(start, Some(soon)), (vec![], soon), "never early");
        assert_eq!(duties.run_due(soon, Some(soon)).0, [Duty::FireTimers]);
        let (due, next) = duties.run_due(at(LOOK_INTERVAL), None);
        assert_eq!((due, next), (first, later(at(LOOK_INTERVAL), VERSION_INTERVAL)));
        duties.look_at_retention_again(at(LOOK_INTERVAL));
        assert_eq!(duties.run_due(at(LOOK_INTERVAL), None).0, [Duty::LookAtRetention]);
    }
}

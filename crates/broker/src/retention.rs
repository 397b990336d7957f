//! Retention: how long messages are kept, and what a leader proposes to end it.
//!
//! Deciding is pure: [`Plan::next`] takes the time, the log's bounds, the checkpoints and the disk, and says the next
//! step. Three rules, with RocketMQ's names and defaults: what is older than the retention time goes at the appointed
//! hours, or at once when the disk is rather full; what exceeds the size limit goes; and when the disk is nearly full the
//! oldest goes whatever its age. Messages that wait (scheduled, half) are stored again at the end of the log first, so none
//! is lost; what their old places held is let go only then.

use std::sync::atomic::Ordering;

use env::disk::Space;
use raft_store::entry::{CoreCommand, Operation, RollOperation};
use raft_store::fold::{CheckpointPoint, CoreReply, Outcome};
use raft_store::position::{PhysicalOffset, Timestamp};

use crate::broker::BrokerGroup;
use crate::config::Retention;
use crate::due::later;
use crate::error::RequestError;

/// Rows looked at for one entry of rolls.
const ROLLED_AT_ONCE: usize = 1_024;

/// Records rolled in one entry, unless the first alone is longer.
const ROLLED_BYTES: u64 = 256 << 10;

/// Checkpoints are this many to what is kept.
const CHECKPOINTS: u32 = 10;

/// What a decision is made of.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Group time.
    pub now: Timestamp,
    /// What became visible at this time or later is needed to recognise what is sent again: it stays.
    pub needed_since: Timestamp,
    /// Hour of the day, UTC.
    pub hour: u8,
    /// Where the log begins for clients.
    pub begin: PhysicalOffset,
    /// Where it ends.
    pub end: PhysicalOffset,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Places that it can be trimmed to, oldest first.
    pub checkpoints: Vec<CheckpointPoint>,
    /// The file system of this replica's directory, if it could be asked.
    pub space: Option<Space>,
}

/// Where the log is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// The place.
    pub end: PhysicalOffset,
    /// What became visible at this time or later stays.
    pub cut: Timestamp,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing for now.
    Rest,
    /// Another place to trim to is wanted.
    Checkpoint,
    /// Roll what waits before the place, then trim to it.
    Reach(Goal),
}

/// A leader's intentions. They are not replicated: a successor makes its own.
#[derive(Debug)]
pub struct Plan {
    policy: Retention,
    /// When the office was taken: how old the log is at least, before there is a checkpoint that says it.
    since: Timestamp,
    /// Being carried out.
    goal: Option<Goal>,
    /// A place that could not be reached although it was old enough, because something younger points before it; asked for
    /// again when a while has passed.
    tried: Option<(PhysicalOffset, Timestamp)>,
}

impl Plan {
    /// Of a leader that takes office at `now`.
    pub fn new(policy: Retention, now: Timestamp) -> Plan {
        Plan { policy, since: now, goal: None, tried: None }
    }

    /// The next step.
    pub fn next(&mut self, facts: &Facts) -> Step {
        if let Some(goal) = self.goal {
            return Step::Reach(goal);
        }
        if self.wants_checkpoint(facts) {
            return Step::Checkpoint;
        }
        self.goal = self.choose(facts);
        self.goal.map_or(Step::Rest, Step::Reach)
    }

    /// The goal was proposed; the log begins at `reached` now.
    pub fn tried(&mut self, goal: Goal, reached: PhysicalOffset, now: Timestamp) {
        self.goal = None;
        self.tried = (reached < goal.end).then_some((goal.end, now));
    }

    fn wants_checkpoint(&self, facts: &Facts) -> bool {
        let (end, stamp) = facts.checkpoints.last().map_or((facts.begin, self.since), |last| (last.end, last.stamp));
        let grown = facts.end.0.saturating_sub(end.0);
        let bytes = self.policy.kept_bytes(facts.space) / u64::from(CHECKPOINTS);
        let is_old = later(stamp, self.policy.time / CHECKPOINTS) <= facts.now;
        grown > 0 && is_old || grown >= bytes.max(facts.segment_bytes)
    }

    fn choose(&self, facts: &Facts) -> Option<Goal> {
        let used = facts.space.map_or(0, used_percent);
        let ahead = || facts.checkpoints.iter().filter(|point| point.end > facts.begin);
        if self.policy.bytes.is_some_and(|limit| facts.end.0 - facts.begin.0 > limit) {
            let limit = self.policy.bytes.unwrap_or(u64::MAX);
            let enough = ahead().find(|point| facts.end.0 - point.end.0 <= limit).or(ahead().next_back());
            if let Some(point) = enough {
                return Some(Goal { end: point.end, cut: facts.needed_since });
            }
        }
        if used >= self.policy.clean_forcibly_percent {
            let oldest = ahead().next();
            return oldest.map(|point| Goal { end: point.end, cut: facts.needed_since });
        }
        if !self.policy.hours.contains(&facts.hour) && used < self.policy.max_used_percent {
            return None;
        }
        let cut = Timestamp(facts.now.0.saturating_sub(self.policy.time.as_millis() as i64)).min(facts.needed_since);
        let point = ahead().rfind(|point| point.stamp <= cut)?;
        let waits = |(end, at): (PhysicalOffset, Timestamp)| {
            end == point.end && facts.now < later(at, self.policy.time / (2 * CHECKPOINTS))
        };
        (!self.tried.is_some_and(waits)).then_some(Goal { end: point.end, cut })
    }
}

impl Retention {
    /// Bytes of log that may be there: the limit, or what the disk allows.
    pub(crate) fn kept_bytes(&self, space: Option<Space>) -> u64 {
        let of_disk = space.map(|space| space.total_bytes / 100 * u64::from(self.max_used_percent));
        self.bytes.into_iter().chain(of_disk).min().unwrap_or(u64::MAX)
    }
}

/// How full a file system is, rounded down.
pub(crate) fn used_percent(space: Space) -> u8 {
    let used = space.total_bytes.saturating_sub(space.free_bytes);
    (u128::from(used) * 100 / u128::from(space.total_bytes.max(1))) as u8
}

/// Carries out the next step. Whether there is more to do at once.
pub(crate) async fn step(broker: &BrokerGroup, plan: &mut Plan) -> Result<bool, RequestError> {
    let (now, window_ms) = (broker.now(), broker.config.messages.idempotent_window.as_millis() as i64);
    let facts = Facts {
        now,
        needed_since: Timestamp(now.0.saturating_sub(window_ms)),
        hour: hour_of(broker.env.clock.wall_ms()),
        begin: broker.reader.min_physical(),
        end: broker.raft.log().tip().end.physical_offset,
        segment_bytes: broker.config.segment_bytes,
        checkpoints: broker.reader.checkpoints(),
        space: broker.env.disk.space(&broker.config.data_dir).await.ok(),
    };
    let goal = match plan.next(&facts) {
        Step::Rest => return Ok(false),
        Step::Checkpoint => {
            broker.raft.propose(vec![Operation::Core(CoreCommand::Checkpoint)]).await?;
            return Ok(true);
        }
        Step::Reach(goal) => goal,
    };
    let rolls = rolls(broker, goal.end).await?;
    if !rolls.is_empty() {
        broker.raft.propose(rolls).await?;
        return Ok(true);
    }
    let trim = CoreCommand::Trim { min_physical: goal.end, cut: goal.cut };
    let outcomes = broker.raft.propose(vec![Operation::Core(trim)]).await?;
    if let [Outcome::Core(CoreReply::Trimmed { min_physical })] = outcomes.as_slice() {
        plan.tried(goal, *min_physical, facts.now);
        if *min_physical > facts.begin {
            tracing::info!(group = %broker.broker_name(), begin = %min_physical, "the log is trimmed");
        }
    }
    Ok(false)
}

/// The next rows that wait before `end`, as rolls of one entry. Empty: none does any more.
async fn rolls(broker: &BrokerGroup, end: PhysicalOffset) -> Result<Vec<Operation>, RequestError> {
    let (mut rolls, mut bytes) = (Vec::new(), 0);
    for row in broker.reader.pending_below(end, ROLLED_AT_ONCE) {
        bytes += u64::from(row.size);
        if !rolls.is_empty() && bytes > ROLLED_BYTES {
            break;
        }
        let record = broker.reader.record(row.place, row.size).await?;
        rolls.push(Operation::Roll(RollOperation { key: row.key, record }));
    }
    Ok(rolls)
}

fn hour_of(wall_ms: i64) -> u8 {
    wall_ms.div_euclid(3_600_000).rem_euclid(24) as u8
}

impl BrokerGroup {
    /// Measures this replica's disk.
    pub(crate) async fn look_at_disk(&self) {
        if let Ok(space) = self.env.disk.space(&self.config.data_dir).await {
            self.disk_used_percent.store(used_percent(space), Ordering::Relaxed);
            self.disk_bytes.store(space.total_bytes, Ordering::Relaxed);
        }
    }

    /// How full this replica's file system was when last looked at, in percent.
    pub(crate) fn disk_used_percent(&self) -> u8 {
        self.disk_used_percent.load(Ordering::Relaxed)
    }

    /// Refuses a send while this replica's disk is nearly full, as RocketMQ does, rather than have it stop.
    pub(crate) fn refuse_when_disk_is_full(&self) -> Result<(), RequestError> {
        let (used, limit) = (self.disk_used_percent(), self.config.retention.warning_level_percent);
        if used < limit {
            return Ok(());
        }
        Err(RequestError::DiskFull { used, limit })
    }

    /// Refuses to let a message wait, for its time or the end of its transaction, when too much waits already.
    pub(crate) fn refuse_too_many_waiting(&self) -> Result<(), RequestError> {
        let waiting = self.reader.pending();
        let (count, limit) = (waiting.scheduled + waiting.half, self.config.limits.scheduled_messages);
        if count >= limit {
            return Err(RequestError::Busy(format!(
                "scheduling: {count} messages wait for their time or the end of their transaction, the limit is {limit} \
                 (scheduled_messages)"
            )));
        }
        let retention = &self.config.retention;
        let total_bytes = self.disk_bytes.load(Ordering::Relaxed);
        let space = (total_bytes > 0).then_some(Space { free_bytes: 0, total_bytes });
        let limit = retention.waiting_bytes.unwrap_or_else(|| retention.kept_bytes(space) / 4);
        if waiting.bytes >= limit {
            return Err(RequestError::Busy(format!(
                "scheduling: {} bytes of messages wait, the limit is {limit} (waiting_mib)",
                waiting.bytes
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use raft_store::position::LogId;

    use super::*;

    const HOUR_MS: i64 = 3_600_000;
    const GIB: u64 = 1 << 30;

    fn policy() -> Retention {
        Retention { hours: vec![4], ..Retention::default() }
    }

    fn point(index: u64, gib: u64, hours: i64) -> CheckpointPoint {
        let id = LogId { term: 1, index };
        CheckpointPoint { id, end: PhysicalOffset(gib * GIB), stamp: Timestamp(hours * HOUR_MS) }
    }

    /// A hundred hours in, not quite ten gibibytes of log, a checkpoint at each ten hours and gibibyte, a terabyte of disk.
    fn facts(used_percent: u64) -> Facts {
        let total_bytes = 1000 * GIB;
        Facts {
            now: Timestamp(100 * HOUR_MS),
            needed_since: Timestamp(99 * HOUR_MS),
            hour: 4,
            begin: PhysicalOffset(0),
            end: PhysicalOffset(10 * GIB - 1),
            segment_bytes: GIB,
            checkpoints: (1..10).map(|k| point(k, k, 10 * k as i64 + 5)).collect(),
            space: Some(Space { free_bytes: total_bytes - total_bytes / 100 * used_percent, total_bytes }),
        }
    }

    fn next(policy: Retention, facts: &Facts) -> Step {
        Plan::new(policy, Timestamp(0)).next(facts)
    }

    fn reach(gib: u64, cut_hours: i64) -> Step {
        Step::Reach(Goal { end: PhysicalOffset(gib * GIB), cut: Timestamp(cut_hours * HOUR_MS) })
    }

    #[test]
    fn what_has_expired_goes_at_its_hour_or_when_the_disk_is_rather_full() {
        assert_eq!(next(policy(), &facts(10)), reach(2, 28), "the checkpoint of hour 25 is 75 hours old");
        let at_noon = |used| Facts { hour: 12, ..facts(used) };
        assert_eq!(next(policy(), &at_noon(74)), Step::Rest);
        assert_eq!(next(policy(), &at_noon(75)), reach(2, 28));
        let young = Facts { now: Timestamp(80 * HOUR_MS), ..facts(10) };
        let young = Facts { checkpoints: young.checkpoints[..7].to_vec(), ..young };
        assert_eq!(next(policy(), &young), Step::Rest, "nothing is 72 hours old");
        let trimmed = Facts { begin: PhysicalOffset(2 * GIB), ..facts(10) };
        assert_eq!(next(policy(), &trimmed), Step::Rest, "it begins there already");
    }

    #[test]
    fn a_disk_that_is_nearly_full_loses_the_oldest_whatever_its_age() {
        let (now, needed_since) = (Timestamp(96 * HOUR_MS), Timestamp(95 * HOUR_MS));
        let at_noon = Facts { hour: 12, now, needed_since, ..facts(85) };
        assert_eq!(next(policy(), &at_noon), reach(1, 95), "but for what is needed to recognise what is sent again");
        let further = Facts { begin: PhysicalOffset(GIB), ..at_noon };
        assert_eq!(next(policy(), &further), reach(2, 95));
    }

    #[test]
    fn what_exceeds_the_size_goes_as_far_as_there_are_checkpoints() {
        let limited = |gib: u64| Retention { bytes: Some(gib * GIB), ..policy() };
        let at_noon = Facts { hour: 12, ..facts(10) };
        assert_eq!(next(limited(10), &at_noon), Step::Rest);
        assert_eq!(next(limited(7), &at_noon), reach(3, 99));
        let begins = |gib| Facts { begin: PhysicalOffset(gib * GIB), ..at_noon.clone() };
        assert_eq!(next(limited(7), &begins(3)), Step::Rest);
        let sparse = Facts { checkpoints: vec![point(1, 2, 99), point(2, 9, 99)], ..at_noon.clone() };
        assert_eq!(next(limited(7), &sparse), reach(9, 99));
        let none_ahead = Facts { begin: PhysicalOffset(9 * GIB), end: PhysicalOffset(19 * GIB), ..sparse };
        assert_eq!(next(limited(7), &none_ahead), Step::Checkpoint);
    }

    #[test]
    fn what_exceeds_the_size_goes_at_once_on_a_disk_that_is_nearly_full_too() {
        let limited = |gib: u64| Retention { bytes: Some(gib * GIB), ..policy() };
        assert_eq!(next(limited(7), &facts(85)), reach(3, 99), "not a checkpoint at a time");
        assert_eq!(next(limited(10), &facts(85)), reach(1, 99));
    }

    #[test]
    fn checkpoints_come_by_age_and_by_bytes_but_not_without_growth() {
        let after = |hours: i64, gib: u64| Facts {
            now: Timestamp(hours * HOUR_MS),
            hour: 12,
            end: PhysicalOffset(9 * GIB + gib * GIB / 4),
            ..facts(10)
        };
        assert_eq!(next(policy(), &after(101, 1)), Step::Rest);
        assert_eq!(next(policy(), &after(103, 1)), Step::Checkpoint, "7.2 hours after the last one");
        assert_eq!(next(policy(), &after(200, 0)), Step::Rest, "nothing came since");
        assert_eq!(next(policy(), &after(96, 4 * 74)), Step::Rest);
        assert_eq!(next(policy(), &after(96, 4 * 75)), Step::Checkpoint, "a tenth of what the disk may hold");
        let fresh = Facts { checkpoints: vec![], now: Timestamp(7 * HOUR_MS), ..after(7, 1) };
        assert_eq!(next(policy(), &fresh), Step::Rest, "counted from the taking of office");
        assert_eq!(next(policy(), &Facts { now: Timestamp(8 * HOUR_MS), ..fresh }), Step::Checkpoint);
    }

    #[test]
    fn a_goal_is_kept_until_it_was_proposed_and_not_repeated_in_vain() {
        let mut plan = Plan::new(policy(), Timestamp(0));
        let Step::Reach(goal) = plan.next(&facts(10)) else { panic!("something has expired") };
        let an_hour_later = Facts { now: Timestamp(101 * HOUR_MS), hour: 5, ..facts(10) };
        assert_eq!(plan.next(&an_hour_later), Step::Reach(goal));
        plan.tried(goal, PhysicalOffset(GIB), facts(10).now);
        let begun = Facts { begin: PhysicalOffset(GIB), ..facts(10) };
        assert_eq!(plan.next(&begun), Step::Rest, "something younger was in the way");
        let after_a_while = Facts { now: Timestamp(100 * HOUR_MS + 4 * HOUR_MS - 1), ..begun };
        let after_a_while =
            Facts { checkpoints: [&after_a_while.checkpoints[..], &[point(10, 10, 103)]].concat(), ..after_a_while };
        assert!(matches!(plan.next(&after_a_while), Step::Reach(_)));
    }

    #[test]
    fn hours_and_shares() {
        assert_eq!((hour_of(0), hour_of(4 * HOUR_MS + 1), hour_of(25 * HOUR_MS), hour_of(-1)), (0, 4, 1, 23));
        let space = |free_bytes| used_percent(Space { free_bytes, total_bytes: 1000 });
        assert_eq!((space(1000), space(250), space(251), space(0), space(2000)), (0, 75, 74, 100, 0));
    }
}

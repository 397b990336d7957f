//! Group time as a leader counts it: which clock it follows, what it stamps, and when somebody else should do it. Pure.
//!
//! A clock is known here by its *origin*: what it shows minus what this node's monotonic clock shows, in milliseconds. (The
//! monotonic clock is [`env::Clock::elapsed`]: a test that advances the date advances both, and no origin moves.)
//! Idle time moves no origin; a step does, by itself, and drift does slowly. Another member's origin is known to lie
//! between two numbers, as far apart as the question and its answer were.
//!
//! - Stamps never go back. A leader whose clock is behind the newest stamp advances it by 1 ms an entry.
//! - A wall clock is *confirmed* while the median of the voters' clocks lies within [`STEP_MS`] of it, wherever those
//!   that are not heard of may be. A confirmed clock is followed; any other only within [`STEP_MS`] of what was confirmed
//!   last, or, by a new leader, of where the newest stamp goes on.
//! - One that is not followed is replaced by the monotonic clock, from where time was. If a majority's clocks are sure to
//!   be further, time goes there: nothing is early then, and a bad clock makes nothing late.
//! - A leader whose clock is surely off the median for a while wishes that a voter leads whose clock surely is not. Both
//!   judge by the same clocks, and what one calls good the other cannot call off: nothing goes back and forth.
//! - A voter alone is the majority, and its clock the median: it trusts itself.

use std::time::Duration;

use crate::position::{NodeId, Timestamp};

/// A wall clock may be this far from what is confirmed.
pub const STEP_MS: i64 = 5000;

/// A leader further from the median hands over,
pub const OFF_MS: i64 = 500;

/// to somebody who is within this,
pub const GOOD_MS: i64 = 250;

/// when it has been off for so long: a correction of all clocks reaches one after the other.
pub const OFF_FOR_MS: i64 = 3000;

/// A hand-over that did not come about is wished for again after this, then after twice as long, and so on.
pub const WISH_AGAIN_MS: (i64, i64) = (10_000, 300_000);

/// This node's two clocks, read together, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Since the epoch.
    pub wall: i64,
    /// Since some moment.
    pub monotonic: i64,
}

impl Reading {
    /// Both clocks of `clock`, now.
    pub fn of(clock: &env::Clock) -> Reading {
        let (wall, elapsed) = clock.wall_and_elapsed();
        Reading { wall, monotonic: millis(elapsed) }
    }

    fn origin(self) -> i64 {
        self.wall.saturating_sub(self.monotonic)
    }
}

/// A monotonic time as [`Reading`] counts it.
pub fn millis(monotonic: Duration) -> i64 {
    i64::try_from(monotonic.as_millis()).unwrap_or(i64::MAX)
}

/// Where a clock's origin lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Not before.
    pub earliest: i64,
    /// Not after.
    pub latest: i64,
}

impl Origin {
    /// That of a clock which showed `wall` at some moment between two of this node's monotonic clock.
    pub fn heard(wall: i64, asked: i64, answered: i64) -> Origin {
        Origin { earliest: wall.saturating_sub(answered), latest: wall.saturating_sub(asked) }
    }

    fn exactly(origin: i64) -> Origin {
        Origin { earliest: origin, latest: origin }
    }

    /// How far apart the two are.
    pub fn width(self) -> i64 {
        self.latest.saturating_sub(self.earliest)
    }

    /// Whether both may be the same.
    pub fn meets(self, other: Origin) -> bool {
        self.earliest <= other.latest && other.earliest <= self.latest
    }

    /// The most that the two can be apart.
    fn apart_at_most(self, other: Origin) -> i64 {
        (self.latest.saturating_sub(other.earliest)).max(other.latest.saturating_sub(self.earliest))
    }
}

/// What a leader knows of the other voters' clocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Voters, those not heard of and this node among them.
    pub voters: usize,
    /// Those heard of lately, but not this node.
    pub clocks: Vec<(NodeId, Origin)>,
}

impl Others {
    /// Whether the clocks of a majority are known, this node's among them.
    pub fn is_majority(&self) -> bool {
        self.clocks.len() + 1 > self.voters / 2
    }

    /// Where the median of all voters' clocks lies, whatever those show that were not heard of.
    fn median(&self, own: i64) -> Option<Origin> {
        if !self.is_majority() {
            return None;
        }
        let voters = self.voters.max(self.clocks.len() + 1);
        let unknown = voters - self.clocks.len() - 1;
        let all = || self.clocks.iter().map(|(_, origin)| *origin).chain([Origin::exactly(own)]);
        let (mut earliest, mut latest): (Vec<i64>, Vec<i64>) =
            all().map(|origin| (origin.earliest, origin.latest)).unzip();
        earliest.sort_unstable();
        latest.sort_unstable();
        // The unknown ones are first, or last.
        Some(Origin { earliest: earliest[(voters - 1) / 2 - unknown], latest: latest[voters / 2] })
    }
}

/// What a leader thinks of its own clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// How far it surely is from the median, ahead if positive. `None` while no majority's clocks are known.
    pub offset_ms: Option<i64>,
    /// Who should lead instead. Empty unless it should be tried now.
    pub successors: Vec<NodeId>,
}

/// Group time in one office.
#[derive(Clone, Copy, Debug)]
pub struct GroupTime {
    /// The newest stamp.
    last: Timestamp,
    /// The origin that stamps follow; none before the first.
    followed: Option<i64>,
    /// The median that confirmed this node's clock last, or where the newest stamp of the office before goes on. Not the
    /// clock itself: many small steps are not more than a large one.
    reference: Option<Origin>,
    holds: bool,
    refused: u64,
    off_since: Option<i64>,
    /// Not wished for before then, and how long it takes after that.
    wishes: Option<(i64, i64)>,
}

impl GroupTime {
    /// Continues after `last`, the newest stamp in the log.
    pub fn after(last: Timestamp) -> GroupTime {
        let none = (None, None);
        let (followed, reference) = none;
        GroupTime { last, followed, reference, holds: false, refused: 0, off_since: None, wishes: None }
    }

    /// Looks at the clocks: which is followed from now on.
    pub fn look(&mut self, now: Reading, others: &Others) {
        let own = now.origin();
        let median = others.median(own);
        let goes_on = self.last.0.saturating_sub(now.monotonic);
        let confirms = |origin: Origin| origin.apart_at_most(Origin::exactly(own)) <= STEP_MS;
        let is_confirmed = median.is_some_and(confirms);
        if is_confirmed {
            self.reference = median;
        }
        // The first entry of a group has nothing to go on from.
        let begins_at = if self.last == Timestamp::default() { own } else { goes_on };
        if confirms(*self.reference.get_or_insert(Origin::exactly(begins_at))) {
            self.followed = Some(own);
            self.holds = false;
        } else if !std::mem::replace(&mut self.holds, true) {
            self.refused += 1;
        }
        let followed = self.followed.get_or_insert(goes_on);
        if let Some(median) = median.filter(|_| !is_confirmed) {
            *followed = median.earliest.max(*followed);
        }
    }

    /// The next entry's stamp.
    pub fn stamp(&mut self, now: Reading, others: &Others) -> Timestamp {
        self.look(now, others);
        let reached = Timestamp(self.followed.unwrap_or_default().saturating_add(now.monotonic));
        self.last = if reached >= self.last { reached } else { Timestamp(self.last.0 + 1) };
        self.last
    }

    /// The origin that the next stamp follows.
    pub fn followed(&self) -> Option<i64> {
        self.followed
    }

    /// Whether that is not this node's wall clock's.
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// How often this node's wall clock was not followed any more, in this office.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// How this node's clock compares, and who should lead because of it.
    pub fn judge(&mut self, now: Reading, others: &Others) -> Judgement {
        self.look(now, others);
        let own = now.origin();
        let Some(median) = others.median(own) else {
            self.off_since = None;
            return Judgement::default();
        };
        let offset = own.saturating_sub(own.clamp(median.earliest, median.latest));
        let offset_ms = Some(offset);
        if offset.unsigned_abs() <= OFF_MS.unsigned_abs() {
            (self.off_since, self.wishes) = (None, None);
            return Judgement { offset_ms, successors: Vec::new() };
        }
        let since = *self.off_since.get_or_insert(now.monotonic);
        let (not_before, wait) = self.wishes.unwrap_or((since + OFF_FOR_MS, WISH_AGAIN_MS.0));
        let good = others.clocks.iter().filter(|(_, origin)| origin.apart_at_most(median) <= GOOD_MS);
        let good: Vec<NodeId> = good.map(|(node, _)| *node).collect();
        if now.monotonic < not_before || good.is_empty() {
            return Judgement { offset_ms, successors: Vec::new() };
        }
        self.wishes = Some((now.monotonic + wait, (2 * wait).min(WISH_AGAIN_MS.1)));
        Judgement { offset_ms, successors: good }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000;
    /// Of the true clock.
    const ORIGIN: i64 = 1_700_000_000_000;

    /// Three voters, of which these two are heard of, so much off the true time; 10 ms to ask and hear.
    fn others(off: &[i64]) -> Others {
        let clocks = off.iter().enumerate().map(|(at, off)| {
            let origin = Origin { earliest: ORIGIN + off - 10, latest: ORIGIN + off };
            (2 + at as NodeId, origin)
        });
        Others { voters: 3, clocks: clocks.collect() }
    }

    fn reading(monotonic: i64, off: i64) -> Reading {
        Reading { wall: ORIGIN + monotonic + off, monotonic }
    }

    /// What a leader stamps that was in office for a second with a right clock.
    struct Leader(GroupTime);

    impl Leader {
        fn new() -> Leader {
            let mut time = GroupTime::after(Timestamp(ORIGIN - 60_000));
            assert_eq!(time.stamp(reading(1000, 0), &others(&[0, 0])), Timestamp(ORIGIN + 1000));
            Leader(time)
        }

        /// How far the stamp is from the true time.
        fn stamps(&mut self, monotonic: i64, off: i64, others: &Others) -> i64 {
            self.0.stamp(reading(monotonic, off), others).0 - ORIGIN - monotonic
        }
    }

    #[test]
    fn the_median_is_known_as_well_as_a_majority_is_heard() {
        let of = |voters: usize, off: &[i64]| Others { voters, ..others(off) }.median(ORIGIN);
        let between = |earliest, latest| Some(Origin { earliest: ORIGIN + earliest, latest: ORIGIN + latest });
        assert_eq!(of(1, &[]), between(0, 0), "a node alone is a majority");
        assert_eq!(of(3, &[]), None);
        assert_eq!(of(3, &[HOUR, HOUR]), between(HOUR - 10, HOUR));
        assert_eq!(of(3, &[HOUR, -HOUR]), between(0, 0));
        assert_eq!(of(3, &[HOUR]), between(0, HOUR), "the third may be anywhere");
        assert_eq!(of(2, &[HOUR]), between(0, HOUR), "one against one");
        assert_eq!(of(5, &[5, 7]), between(-5, 7));
        assert_eq!(of(5, &[7]), None);
        assert_eq!(of(4, &[20, 40]), between(0, 40));
    }

    #[test]
    fn what_a_leader_does_when_clocks_step() {
        // Its own clock and the others', one second later: what is the stamp off?
        let table = [
            ("nothing happens", 0, vec![0, 0], 0),
            ("a small step is followed", 4000, vec![0, 0], 4000),
            ("a step ahead is not", HOUR, vec![0, 0], 0),
            ("a step back is not", -HOUR, vec![0, 0], 0),
            ("nor if nobody is heard of", HOUR, vec![], 0),
            ("nor if one confirms it and the other is silent", HOUR, vec![0], 0),
            ("a step that a majority takes is", HOUR, vec![HOUR, 0], HOUR),
            ("so is one that all take", HOUR, vec![HOUR, HOUR], HOUR),
            ("a follower's step is nothing", 0, vec![HOUR, 0], 0),
            ("where all others go, time goes, whatever the own clock says", 0, vec![HOUR, HOUR], HOUR - 10),
        ];
        for (case, own, off, expected) in table {
            assert_eq!(Leader::new().stamps(2000, own, &others(&off)), expected, "{case}");
        }
    }

    #[test]
    fn a_refused_step_counts_once_and_is_followed_when_it_is_confirmed() {
        let mut leader = Leader::new();
        for at in 2..10 {
            assert_eq!(leader.stamps(at * 1000, HOUR, &others(&[0, 0])), 0);
        }
        assert_eq!(leader.0.refused(), 1);
        assert_eq!(leader.stamps(11_000, HOUR, &others(&[HOUR, 0])), HOUR);
        assert_eq!(leader.stamps(12_000, 0, &others(&[0, 0])), HOUR - 999, "1 ms an entry, until the clock is there");
        assert_eq!(leader.0.refused(), 1);
    }

    #[test]
    fn many_small_steps_are_not_more_than_a_large_one() {
        let mut leader = Leader::new();
        let stamps: Vec<i64> = (1..=5).map(|step| leader.stamps(1000 + step, step * 2000, &others(&[0]))).collect();
        assert_eq!(stamps, [2000, 4000, 4000, 4000, 4000]);
    }

    #[test]
    fn idle_time_is_no_jump() {
        assert_eq!(Leader::new().stamps(24 * HOUR, 0, &Others { voters: 3, clocks: vec![] }), 0);
    }

    #[test]
    fn a_new_leader_with_a_bad_clock_takes_the_time_from_the_others() {
        let newest = Timestamp(ORIGIN - HOUR);
        let stamps = |off, clocks: &[i64]| GroupTime::after(newest).stamp(reading(7, off), &others(clocks)).0 - ORIGIN;
        assert_eq!(stamps(0, &[0, 0]), 7, "the hour of the outage has passed");
        assert_eq!(stamps(2 * HOUR, &[0, 0]), -3, "as sure as the others' clocks are");
        assert_eq!(stamps(-2 * HOUR, &[0, 0]), -3);
        assert_eq!(stamps(2 * HOUR, &[0]), -3, "one is right: no later than the earlier of the two");
        assert_eq!(stamps(2 * HOUR, &[]), -HOUR, "nobody says anything: time goes on from the newest stamp");
        let newest = Timestamp(ORIGIN);
        let mut creeping = GroupTime::after(newest);
        let stamp = |monotonic| creeping.stamp(reading(monotonic, -100), &others(&[-100, -100])).0 - ORIGIN;
        assert_eq!([50, 51, 52, 110, 111].map(stamp), [1, 2, 3, 10, 11], "behind the newest stamp");
    }

    #[test]
    fn a_group_of_one_trusts_itself_and_a_group_begins_with_its_founders_clock() {
        let alone = Others { voters: 1, clocks: vec![] };
        let mut time = GroupTime::after(Timestamp(0));
        assert_eq!(time.stamp(reading(5, 0), &alone), Timestamp(ORIGIN + 5));
        assert_eq!(time.stamp(reading(6, HOUR), &alone), Timestamp(ORIGIN + 6 + HOUR));
        assert_eq!(time.stamp(reading(7, 0), &alone), Timestamp(ORIGIN + 7 + HOUR));
        assert_eq!((time.refused(), time.judge(reading(8, 0), &alone).offset_ms), (0, Some(0)));
        let unheard = Others { voters: 3, clocks: vec![] };
        assert_eq!(GroupTime::after(Timestamp(0)).stamp(reading(5, 0), &unheard), Timestamp(ORIGIN + 5));
    }

    #[test]
    fn a_leader_that_is_off_hands_over_to_somebody_who_is_not_and_not_at_once() {
        let mut time = GroupTime::after(Timestamp(ORIGIN));
        let mut judged = |monotonic, off, clocks: &[i64]| {
            let judgement = time.judge(reading(monotonic, off), &others(clocks));
            (judgement.offset_ms, judgement.successors)
        };
        assert_eq!(judged(0, 400, &[0, 0]), (Some(400), vec![]));
        assert_eq!(judged(0, 600, &[0, 0]), (Some(600), vec![]));
        assert_eq!(judged(2999, 601, &[0, 0]), (Some(601), vec![]));
        assert_eq!(judged(3000, 601, &[0, 0]), (Some(601), vec![2, 3]));
        assert_eq!(judged(3500, 602, &[0, 0]), (Some(602), vec![]), "it is being tried");
        assert_eq!(judged(13_000, 610, &[0, 400]), (Some(210), vec![]), "the median is 400: it is no longer off");
        assert_eq!(judged(13_500, 1200, &[0, 500]), (Some(700), vec![]));
        assert_eq!(judged(16_500, 1200, &[0, 500]), (Some(700), vec![3]), "the other one is as bad");
        assert_eq!(judged(26_499, 1200, &[0, 500]), (Some(700), vec![]));
        assert_eq!(judged(26_500, 1200, &[0, 500]), (Some(700), vec![3]));
        assert_eq!(judged(46_499, 1200, &[0, 500]), (Some(700), vec![]), "twice as long");
        assert_eq!(judged(46_500, 1200, &[0, 500]), (Some(700), vec![3]));
        assert_eq!(judged(47_000, 1200, &[0]), (Some(0), vec![]), "one against one: nobody is surely off");
        assert_eq!(judged(48_000, 1200, &[]), (None, vec![]));
        // 1000 ppm.
        let mut drifting = GroupTime::after(Timestamp(ORIGIN));
        let off: Vec<i64> = (0..)
            .map(|second| drifting.judge(reading(second * 1000, second), &others(&[0, 0])))
            .take_while(|judgement| judgement.successors.is_empty())
            .map(|judgement| judgement.offset_ms.unwrap())
            .collect();
        assert_eq!(off.last(), Some(&503));
    }

    proptest! {
        /// Clocks do what they like, members fall silent: stamps never go back, and none is further ahead than a majority's
        /// median surely was, by more than a step, unless the log was there already.
        #[test]
        fn stamps_never_go_back_and_never_run_ahead_of_what_is_confirmed(
            newest in -2 * HOUR..2 * HOUR,
            steps in proptest::collection::vec(
                (0..5000i64, prop_oneof![-300..300i64, Just(HOUR), -2 * HOUR..2 * HOUR], -HOUR..HOUR, -HOUR..HOUR, 0..4u8),
                1..60,
            ),
        ) {
            let mut time = GroupTime::after(Timestamp(ORIGIN + newest));
            let mut last = Timestamp(ORIGIN + newest);
            let mut monotonic = 0;
            let mut own = 0;
            // The furthest that a majority's median surely was, or where the newest stamp goes on.
            let mut furthest = ORIGIN + newest;
            for (passed, by, first, second, heard) in steps {
                monotonic += passed;
                own += by;
                let clocks = [first, second];
                let known = match heard { 0 => &clocks[..0], 1 => &clocks[..1], _ => &clocks[..] };
                let others = others(known);
                let now = reading(monotonic, own);
                if let Some(median) = others.median(now.origin()) {
                    furthest = furthest.max(median.earliest);
                }
                let stamp = time.stamp(now, &others);
                prop_assert!(stamp >= last, "{stamp} after {last}");
                let permitted = Timestamp(furthest + monotonic + STEP_MS).max(Timestamp(last.0 + 1));
                prop_assert!(stamp <= permitted, "{stamp} is beyond {permitted}");
                last = stamp;
            }
        }

        /// Two voters judge by the same clocks, each over links of its own: what one takes for a good clock, the other does
        /// not find off.
        #[test]
        fn no_successor_hands_back(
            off in proptest::collection::vec(-2000..2000i64, 3),
            delays in proptest::collection::vec((0..150i64, 0..150i64), 6),
        ) {
            let heard = |who: usize, link: usize| {
                let (there, back) = delays[link];
                (who as NodeId, Origin { earliest: ORIGIN + off[who] - back, latest: ORIGIN + off[who] + there })
            };
            let judge = |who: usize, others: Others| {
                let mut time = GroupTime::after(Timestamp(ORIGIN));
                time.judge(reading(0, off[who]), &others);
                time.judge(reading(OFF_FOR_MS, off[who]), &others).successors
            };
            let first = judge(0, Others { voters: 3, clocks: vec![heard(1, 0), heard(2, 1)] });
            for successor in first {
                let (one, two) = match successor { 1 => (0, 2), _ => (0, 1) };
                let back = judge(successor as usize, Others { voters: 3, clocks: vec![heard(one, 2), heard(two, 3)] });
                prop_assert!(back.is_empty(), "{successor} hands over to {back:?}");
            }
        }
    }
}

//! Which half messages a producer should be asked about now, and when to look again. Pure: what waits is the store's, what
//! time it is and who is connected are arguments.
//!
//! What must survive a change of leader is replicated: how often a producer was asked about a message, and when last. Here is
//! only where this leader stands in the lists of those that wait, and what it puts off by itself; a new leader begins at the
//! beginning, and counts on.
//!
//! A message that nobody can be asked about is not looked at again and again: it is parked under its group, until a producer of
//! that group is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft_store::fold::{HalfRecord, HalfState, Reader, Tables};
use raft_store::position::{PhysicalOffset, Timestamp};

use crate::config::TransactionPolicy;
use crate::due::later;

/// How often parked groups are looked for producers.
const PARKED_INTERVAL: Duration = Duration::from_secs(1);

/// A place in a list of half messages.
type Place = (Timestamp, PhysicalOffset);

/// Half messages as the store lists them.
pub trait Waiting {
    /// One of them, unless it has ended.
    fn half(&self, key: PhysicalOffset) -> Option<HalfRecord>;
    /// Those in a state, in the order of [`HalfRecord::since`], behind a place.
    fn halves(&self, state: HalfState, after: Option<Place>, limit: usize) -> Vec<HalfRecord>;
}

impl<T: Tables> Waiting for Reader<T> {
    fn half(&self, key: PhysicalOffset) -> Option<HalfRecord> {
        Reader::half(self, key)
    }

    fn halves(&self, state: HalfState, after: Option<Place>, limit: usize) -> Vec<HalfRecord> {
        Reader::halves(self, state, after, limit)
    }
}

/// What to do about a half message that it is time to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ask a producer of its group.
    Ask,
    /// Its producer wants to be left alone until then.
    NotBefore(Timestamp),
    /// It was asked often enough, or nobody could be asked for as long as messages are kept.
    Discard,
}

/// A leader's questions to producers.
#[derive(Debug)]
pub struct Questions {
    policy: TransactionPolicy,
    /// Nobody is waited for longer who could be asked.
    patience: Duration,
    /// The last ones taken of the lists that grow at their ends.
    seen_unasked: Option<Place>,
    seen_asked: Option<Place>,
    /// Taken, and to be looked at again at that time.
    put_off: BTreeSet<Place>,
    /// Taken, by groups that had no producer, with the time since when they are where they are.
    parked: BTreeMap<String, BTreeSet<Place>>,
    next_look_at_parked: Timestamp,
}

impl Questions {
    /// Of a leader that takes office at `now`. `kept`: how long messages are kept, which is how long somebody to ask is waited
    /// for, but no shorter than it takes to ask in vain.
    pub fn taken_over(now: Timestamp, policy: TransactionPolicy, kept: Duration) -> Questions {
        Questions {
            policy,
            patience: kept.max(policy.timeout.saturating_add(policy.check_interval.saturating_mul(policy.check_max))),
            seen_unasked: None,
            seen_asked: None,
            put_off: BTreeSet::new(),
            parked: BTreeMap::new(),
            next_look_at_parked: later(now, PARKED_INTERVAL),
        }
    }

    /// When there is something to look at, as far as this is known now.
    pub fn next(&self, waiting: &impl Waiting) -> Option<Timestamp> {
        let first = |state, seen, after| waiting.halves(state, seen, 1).first().map(|half| later(half.since, after));
        let unasked = first(HalfState::Unasked, self.seen_unasked, self.policy.timeout);
        let asked = first(HalfState::Asked, self.seen_asked, self.policy.check_interval);
        let put_off = self.put_off.first().map(|(at, _)| *at);
        let parked = (!self.parked.is_empty()).then_some(self.next_look_at_parked);
        [unasked, asked, put_off, parked].into_iter().flatten().min()
    }

    /// Takes up to `limit` messages that it is time to look at; each must be decided on, and asked about, discarded, put off
    /// or parked. `is_there`: whether a producer of a group is worth asking.
    pub fn take_due(
        &mut self,
        now: Timestamp,
        limit: usize,
        waiting: &impl Waiting,
        is_there: impl Fn(&str) -> bool,
    ) -> Vec<HalfRecord> {
        self.look_at_parked(now, is_there);
        let mut due = Vec::new();
        while due.len() < limit && self.put_off.first().is_some_and(|(at, _)| *at <= now) {
            let (_, key) = self.put_off.pop_first().expect("it was just seen");
            due.extend(waiting.half(key).filter(|half| half.state != HalfState::Discarded));
        }
        let lists = [
            (HalfState::Unasked, &mut self.seen_unasked, self.policy.timeout),
            (HalfState::Asked, &mut self.seen_asked, self.policy.check_interval),
        ];
        for (state, seen, after) in lists {
            let listed = waiting.halves(state, *seen, limit.saturating_sub(due.len()));
            let in_time = listed.into_iter().take_while(|half| later(half.since, after) <= now);
            due.extend(in_time.inspect(|half| *seen = Some((half.since, half.key))));
        }
        due
    }

    /// Groups of which a producer is there are asked about all that was parked; of every other one the message is looked at
    /// that is there longest: it may be too old by now, or a producer be connected where this leader does not see it.
    fn look_at_parked(&mut self, now: Timestamp, is_there: impl Fn(&str) -> bool) {
        if now < self.next_look_at_parked {
            return;
        }
        self.next_look_at_parked = later(now, PARKED_INTERVAL);
        let put_off = &mut self.put_off;
        self.parked.retain(|group, parked| {
            if is_there(group) {
                put_off.extend(parked.iter().map(|(_, key)| (now, *key)));
                parked.clear();
            } else {
                put_off.extend(parked.pop_first().map(|(_, key)| (now, key)));
            }
            !parked.is_empty()
        });
    }

    /// What to do about a message. `immunity`: how long its producer wants to be left alone, if it says so.
    pub fn verdict(&self, half: &HalfRecord, immunity: Option<Duration>, now: Timestamp) -> Verdict {
        let immune_until = later(half.stored_at, immunity.unwrap_or(Duration::ZERO));
        if half.asked >= self.policy.check_max || later(half.since, self.patience) <= now {
            Verdict::Discard
        } else if half.state == HalfState::Unasked && now < immune_until {
            Verdict::NotBefore(immune_until)
        } else {
            Verdict::Ask
        }
    }

    /// A message that was taken is to be looked at again at that time.
    pub fn put_off(&mut self, key: PhysicalOffset, until: Timestamp) {
        self.put_off.insert((until, key));
    }

    /// A message that was taken waits for a producer of its group.
    pub fn park(&mut self, group: &str, half: &HalfRecord) {
        self.parked.entry(group.to_owned()).or_default().insert((half.since, half.key));
    }

    /// A producer of the group is there after all.
    pub fn found(&mut self, group: &str, now: Timestamp) {
        let parked = self.parked.remove(group).unwrap_or_default();
        self.put_off.extend(parked.into_iter().map(|(_, key)| (now, key)));
    }
}

#[cfg(test)]
mod tests {
    use raft_store::position::QueueId;

    use super::*;

    const POLICY: TransactionPolicy =
        TransactionPolicy { timeout: Duration::from_secs(6), check_interval: Duration::from_secs(30), check_max: 15 };
    const KEPT: Duration = Duration::from_secs(72 * 3600);

    #[derive(Default)]
    struct Store(BTreeMap<PhysicalOffset, HalfRecord>);

    impl Store {
        fn half_stored(&mut self, key: u64, seconds: u64) -> PhysicalOffset {
            let (key, at) = (PhysicalOffset(key), at(seconds));
            let queue = QueueId::default();
            let (state, asked) = (HalfState::Unasked, 0);
            let half = HalfRecord { key, place: key, size: 1, queue, stored_at: at, state, since: at, asked };
            self.0.insert(key, half);
            key
        }

        fn asked(&mut self, key: PhysicalOffset, seconds: u64) {
            let half = self.0.get_mut(&key).expect("it waits");
            (half.state, half.since, half.asked) = (HalfState::Asked, at(seconds), half.asked + 1);
        }
    }

    impl Waiting for Store {
        fn half(&self, key: PhysicalOffset) -> Option<HalfRecord> {
            self.0.get(&key).copied()
        }

        fn halves(&self, state: HalfState, after: Option<Place>, limit: usize) -> Vec<HalfRecord> {
            let mut listed: Vec<_> = self.0.values().filter(|half| half.state == state).copied().collect();
            listed.sort_by_key(|half| (half.since, half.key));
            listed.retain(|half| after.is_none_or(|after| (half.since, half.key) > after));
            listed.truncate(limit);
            listed
        }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds as i64 * 1000)
    }

    fn taken(questions: &mut Questions, store: &Store, seconds: u64, there: bool) -> Vec<u64> {
        questions.take_due(at(seconds), 9, store, |_| there).iter().map(|half| half.key.0).collect()
    }

    fn questions() -> Questions {
        Questions::taken_over(at(0), POLICY, KEPT)
    }

    #[test]
    fn the_first_question_comes_after_6_seconds_and_every_other_one_after_30() {
        let (mut store, mut questions) = (Store::default(), questions());
        assert_eq!(questions.next(&store), None);
        let first = store.half_stored(1, 10);
        store.half_stored(2, 11);
        assert_eq!(questions.next(&store), Some(at(16)));
        assert!(taken(&mut questions, &store, 15, true).is_empty());
        assert_eq!(taken(&mut questions, &store, 16, true), [1]);
        assert!(taken(&mut questions, &store, 16, true).is_empty(), "once");
        store.asked(first, 16);
        assert_eq!(questions.next(&store), Some(at(17)));
        assert_eq!(taken(&mut questions, &store, 17, true), [2]);
        assert_eq!(questions.next(&store), Some(at(46)));
        assert_eq!(taken(&mut questions, &store, 46, true), [1]);

        let mut successor = Questions::taken_over(at(50), POLICY, KEPT);
        assert_eq!(taken(&mut successor, &store, 50, true), [2, 1], "nobody counted that it was asked");
    }

    #[test]
    fn fifteen_questions_or_three_days_without_anybody_to_ask_are_enough() {
        let (mut store, questions) = (Store::default(), questions());
        let key = store.half_stored(1, 10);
        let mut half = store.half(key).expect("it waits");
        assert_eq!(questions.verdict(&half, None, at(16)), Verdict::Ask);
        half.asked = 14;
        assert_eq!(questions.verdict(&half, None, at(16)), Verdict::Ask);
        half.asked = 15;
        assert_eq!(questions.verdict(&half, None, at(16)), Verdict::Discard);
        half.asked = 0;
        assert_eq!(questions.verdict(&half, None, at(10 + 72 * 3600)), Verdict::Discard);
        let forgetful = Questions::taken_over(at(0), POLICY, Duration::from_secs(1));
        assert_eq!(forgetful.verdict(&half, None, at(10 + 6 + 15 * 30 - 1)), Verdict::Ask);
        assert_eq!(forgetful.verdict(&half, None, at(10 + 6 + 15 * 30)), Verdict::Discard);
    }

    #[test]
    fn a_producer_may_ask_to_be_left_alone_for_longer() {
        let (mut store, mut questions) = (Store::default(), questions());
        let key = store.half_stored(1, 10);
        let half = store.half(key).expect("it waits");
        let minute = Some(Duration::from_secs(60));
        assert_eq!(taken(&mut questions, &store, 16, true), [1]);
        assert_eq!(questions.verdict(&half, minute, at(16)), Verdict::NotBefore(at(70)));
        questions.put_off(key, at(70));
        assert_eq!(questions.next(&store), Some(at(70)));
        assert!(taken(&mut questions, &store, 69, true).is_empty());
        assert_eq!(taken(&mut questions, &store, 70, true), [1]);
        assert_eq!(questions.verdict(&half, minute, at(70)), Verdict::Ask);
        questions.put_off(key, at(71));
        store.0.clear();
        assert!(taken(&mut questions, &store, 71, true).is_empty(), "it has ended meanwhile");
    }

    #[test]
    fn a_group_without_producers_waits_for_one_and_only_its_oldest_is_looked_at() {
        let (mut store, mut questions) = (Store::default(), questions());
        for key in [1, 2, 3] {
            store.half_stored(key, 10);
        }
        assert_eq!(taken(&mut questions, &store, 16, false), [1, 2, 3]);
        let halves = [1, 2, 3].map(|key| store.half(PhysicalOffset(key)).expect("it waits"));
        halves.iter().for_each(|half| questions.park("g", half));
        assert_eq!(questions.next(&store), Some(at(17)));
        assert_eq!(taken(&mut questions, &store, 17, false), [1], "somebody elsewhere may be asked");
        questions.park("g", &halves[0]);
        assert_eq!(taken(&mut questions, &store, 18, true), [1, 2, 3]);
        assert_eq!(questions.next(&store), None);
        halves.iter().for_each(|half| questions.park("g", half));
        questions.found("g", at(18));
        assert_eq!(taken(&mut questions, &store, 18, false), [1, 2, 3], "asked elsewhere");
    }
}

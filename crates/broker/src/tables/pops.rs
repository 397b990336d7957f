//! Pop: which messages of a queue are in the hands of a group's consumers, each under a lease.
//!
//! - A message is leased to one consumer at a time. Which ones a pop takes is decided where its command is applied, so that
//!   two pops never overlap, whoever leads.
//! - A lease is known by its pop time, which no other lease of the same queue has. Only its holder may end or change it.
//! - Leases run on a clock that stands still while nobody leads: group time less all outages so far. Nobody loses a lease
//!   because the group had no leader, and a change of leader writes one row, however many leases there are.
//! - A lease that has ended makes its message available again, at its place in the queue, as long as the group has tries left
//!   for it. The last one is marked when it is given: whoever leads then sets the message aside as a dead letter.
//! - What is not in here and below `next` is done. So the first message in here, or else `next`, is the group's consumer
//!   offset.

use std::collections::{BTreeMap, BTreeSet};

use raft_store::codec::{Decode, Encode};
use raft_store::planted::{self, Bug};
use raft_store::position::Timestamp;

use super::command::{LeaseId, PopWish, Refusal};
use super::offsets::OffsetKey;

/// How far a group has looked into a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct PopQueue {
    /// From here on no message was ever popped or passed over.
    pub next: u64,
    /// Pop time of the newest lease. Never decreases, so that no two leases of one message have the same.
    pub last_pop_ms: i64,
    /// The attempt that the newest orderly batch was taken in; it may take the same batch again.
    pub attempt: String,
}

/// One message in a consumer's hands, or waiting to be popped again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lease {
    /// Group time at which it was given, about: whose lease it is.
    pub pop_ms: i64,
    /// From here on the message is available again; by the clock of leases.
    pub ends_ms: i64,
    /// How often the message was given to a consumer, this time included.
    pub deliveries: u32,
    /// There is no other try: when it has ended, the message is a dead letter.
    pub is_last: bool,
}

/// Names a lease's row.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct LeaseKey {
    pub queue: OffsetKey,
    pub offset: u64,
}

/// The row of the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct LeaseClock {
    /// All the time, in milliseconds, that nobody led while there were leases.
    pub stood_still_ms: i64,
}

impl LeaseClock {
    /// The time at a group time.
    fn at(&self, group_ms: i64) -> i64 {
        group_ms - self.stood_still_ms
    }

    /// When a lease ends that is given at `pop_ms`, as the consumer reckons, and later by what the clock stands still.
    fn ends_ms(&self, pop_ms: i64, lease_ms: i64) -> i64 {
        self.at(pop_ms).saturating_add(lease_ms)
    }
}

/// How the leases of a pop are to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    pub pop_ms: i64,
    pub lease_ms: i64,
    /// Deliveries after the first one.
    pub max_retries: i32,
    /// Only when nothing of the queue is in anybody's hands, and in the queue's order.
    pub is_orderly: bool,
    pub attempt: &'a str,
}

/// What a pop has got of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Popped {
    /// RocketMQ's queueId.
    pub queue: u32,
    /// Offsets, ascending, and how often each was delivered before.
    pub messages: Vec<(u64, u32)>,
}

/// What an orderly pop may take of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// A batch is in somebody's hands.
    Blocked,
    /// These first, all of them before anything new.
    Open(Vec<u64>),
}

/// A message whose last try has ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GivenUp {
    /// Whose, and where.
    pub queue: OffsetKey,
    /// Its last lease.
    pub lease: LeaseId,
    /// How often it was delivered.
    pub deliveries: u32,
}

/// What became of the messages of a queue that a group has popped, as far as this replica has applied it since its start.
/// Like a delay's lateness it is counted and not kept: no row says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Deliveries: a message that is popped again counts again.
    pub popped: u64,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Leases that ended without that: seen when the message is popped again, given up, or found to be gone.
    pub ended: u64,
    /// Messages that were given up after their last try.
    pub given_up: u64,
}

/// What a group has popped of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Messages that are leased, or wait to be popped again.
    pub in_flight: usize,
    /// What became of them and of those before.
    pub counts: Counts,
}

#[derive(Debug, Default)]
struct Queue {
    row: PopQueue,
    leases: BTreeMap<u64, Lease>,
    /// Of those that are not the last, by their end.
    by_end: BTreeSet<(i64, u64)>,
}

/// All leases, keyed as consumer offsets are.
#[derive(Debug, Default)]
pub struct Pops {
    clock: LeaseClock,
    queues: BTreeMap<OffsetKey, Queue>,
    /// Leases without another try, by their end.
    last: BTreeSet<(i64, OffsetKey, u64)>,
    count: usize,
    /// Also of queues whose leases were forgotten because somebody set the group's offset.
    counts: BTreeMap<OffsetKey, Counts>,
}

impl Pops {
    /// How many messages are leased, or wait to be popped again.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many of them are the group's on that queue.
    pub fn in_flight(&self, key: &OffsetKey) -> usize {
        self.queues.get(key).map_or(0, |queue| queue.leases.len())
    }

    /// By group and topic, over all its queues.
    pub fn usage(&self) -> BTreeMap<(&str, &str), Usage> {
        let mut usage: BTreeMap<(&str, &str), Usage> = BTreeMap::new();
        for (key, queue) in &self.queues {
            usage.entry((&key.group, &key.topic)).or_default().in_flight += queue.leases.len();
        }
        for (key, counts) in &self.counts {
            let sum = &mut usage.entry((&key.group, &key.topic)).or_default().counts;
            sum.popped += counts.popped;
            sum.acknowledged += counts.acknowledged;
            sum.ended += counts.ended;
            sum.given_up += counts.given_up;
        }
        usage
    }

    /// The offset from which on the group has popped nothing; `None` if it pops from elsewhere, or never did.
    pub fn next(&self, key: &OffsetKey) -> Option<u64> {
        self.queues.get(key).map(|queue| queue.row.next)
    }

    /// The lease of a message.
    pub fn lease(&self, key: &OffsetKey, offset: u64) -> Option<&Lease> {
        self.queues.get(key)?.leases.get(&offset)
    }

    /// Whether a lease holds at `now`.
    pub fn is_running(&self, lease: &Lease, now: Timestamp) -> bool {
        lease.ends_ms > self.at(now)
    }

    /// Up to `limit` messages, ascending, whose leases have ended; those that ended first, of several.
    pub fn ended(&self, key: &OffsetKey, now: Timestamp, limit: usize) -> Vec<u64> {
        let Some(queue) = self.queues.get(key) else { return Vec::new() };
        let is_over = |ends_ms: i64| ends_ms <= self.at(now) || planted::is(Bug::PoppedTwice);
        let ended = queue.by_end.iter().take_while(|(ends_ms, _)| is_over(*ends_ms));
        let mut offsets: Vec<u64> = ended.take(limit).map(|(_, offset)| *offset).collect();
        offsets.sort_unstable();
        offsets
    }

    /// How long until a message of the queue becomes available again, in milliseconds; `None` if none will by itself.
    pub fn next_end_ms(&self, key: &OffsetKey, now: Timestamp) -> Option<i64> {
        self.queues.get(key)?.by_end.first().map(|(ends_ms, _)| ends_ms.saturating_sub(self.at(now)).max(0))
    }

    /// How long until the last lease of the queue ends, in milliseconds; `None` if none does by itself: the end of a last try
    /// is not the end of waiting.
    pub fn held_for_ms(&self, key: &OffsetKey, now: Timestamp) -> Option<i64> {
        let leases = self.queues.get(key)?.leases.values().filter(|lease| !lease.is_last);
        leases.map(|lease| lease.ends_ms.saturating_sub(self.at(now))).max().map(|ms| ms.max(0))
    }

    /// What an orderly pop may take at `now`.
    pub fn order(&self, key: &OffsetKey, now: Timestamp, attempt: &str) -> Order {
        let Some(queue) = self.queues.get(key) else { return Order::Open(Vec::new()) };
        if queue.is_held(self.at(now)) && !queue.is_again(attempt) {
            return Order::Blocked;
        }
        Order::Open(queue.leases.keys().copied().collect())
    }

    /// Up to `limit` messages whose last try has ended by `now`.
    pub fn given_up(&self, now: Timestamp, limit: usize) -> Vec<GivenUp> {
        let ended = self.last.iter().take_while(|(ends_ms, ..)| *ends_ms <= self.at(now)).take(limit);
        let given_up = ended.filter_map(|(_, key, offset)| {
            let lease = self.lease(key, *offset)?;
            let id = LeaseId { queue: key.queue, offset: *offset, pop_ms: lease.pop_ms };
            Some(GivenUp { queue: key.clone(), lease: id, deliveries: lease.deliveries })
        });
        given_up.collect()
    }

    /// How long until a last try ends, in milliseconds; `None` if none is under way.
    pub fn next_given_up_ms(&self, now: Timestamp) -> Option<i64> {
        self.last.first().map(|(ends_ms, ..)| ends_ms.saturating_sub(self.at(now)).max(0))
    }

    /// The clock of leases at a group time.
    fn at(&self, now: Timestamp) -> i64 {
        self.clock.at(now.0)
    }

    /// A pop time for leases of these queues: the time, or a little later, so that none of them had it before.
    pub(super) fn pop_time<'a>(&self, keys: impl Iterator<Item = &'a OffsetKey>, now: Timestamp) -> i64 {
        let last = keys.filter_map(|key| self.queues.get(key)).map(|queue| queue.row.last_pop_ms).max();
        last.map_or(now.0, |last| now.0.max(last.saturating_add(1)))
    }

    /// Takes what is still available of what the pop wishes. `first`: where the group begins, if it has not popped here.
    pub(super) fn pop(
        &mut self,
        key: &OffsetKey,
        first: u64,
        wish: &PopWish,
        terms: Terms<'_>,
        now: Timestamp,
    ) -> Popped {
        let clock = self.at(now);
        let queue = self
            .queues
            .entry(key.clone())
            .or_insert_with(|| Queue { row: PopQueue { next: first, ..PopQueue::default() }, ..Queue::default() });
        let mut popped = Popped { queue: key.queue, messages: Vec::new() };
        let mut ended = 0;
        let is_again = terms.is_orderly && queue.is_again(terms.attempt);
        if terms.is_orderly && queue.is_held(clock) && !is_again {
            return popped;
        }
        for offset in &wish.gone {
            if queue.leases.get(offset).is_some_and(|lease| !lease.is_last && lease.ends_ms <= clock) {
                queue.remove(*offset, &mut self.last, key);
                self.count -= 1;
                ended += 1;
            }
        }
        // In order: nothing overtakes a message that is to come first and was not asked for.
        let barrier = if terms.is_orderly {
            queue.leases.keys().find(|offset| wish.wanted.binary_search(offset).is_err()).copied()
        } else {
            None
        };
        let next = queue.row.next;
        let is_current = wish.from == next;
        for offset in wish.wanted.iter().copied().take_while(|offset| barrier.is_none_or(|barrier| *offset < barrier)) {
            let earlier = match queue.leases.get(&offset) {
                None if offset >= next && is_current => 0,
                None => continue,
                Some(lease) if is_again && lease.ends_ms > clock => lease.deliveries - 1,
                Some(lease) if lease.ends_ms <= clock && !lease.is_last => lease.deliveries,
                Some(lease) if planted::is(Bug::PoppedTwice) => lease.deliveries,
                Some(_) => continue,
            };
            let lease = Lease {
                pop_ms: terms.pop_ms,
                ends_ms: self.clock.ends_ms(terms.pop_ms, terms.lease_ms),
                deliveries: earlier.saturating_add(1),
                is_last: i64::from(earlier) >= i64::from(terms.max_retries.max(0)),
            };
            let replaced = queue.leases.get(&offset);
            self.count += usize::from(replaced.is_none());
            ended += u64::from(replaced.is_some_and(|lease| lease.ends_ms <= clock));
            queue.put(offset, lease, &mut self.last, key);
            popped.messages.push((offset, earlier));
        }
        if is_current {
            // What the barrier kept back was not looked at.
            let looked_at = if barrier.is_some() { next } else { wish.next };
            queue.row.next = queue.leases.last_key_value().map_or(looked_at, |(last, _)| looked_at.max(last + 1));
        }
        if !popped.messages.is_empty() {
            queue.row.last_pop_ms = terms.pop_ms;
            terms.attempt.clone_into(&mut queue.row.attempt);
        }
        let counts = counted(&mut self.counts, key);
        counts.popped += popped.messages.len() as u64;
        counts.ended += ended;
        popped
    }

    /// Ends a lease: its message is done. `false` if it was done before.
    pub(super) fn ack(&mut self, key: &OffsetKey, id: &LeaseId, now: Timestamp) -> Result<bool, Refusal> {
        let clock = self.at(now);
        let queue = self.queues.get_mut(key).ok_or(Refusal::NotLeased)?;
        match queue.leases.get(&id.offset) {
            None if id.offset < queue.row.next => return Ok(false),
            None => return Err(Refusal::NotLeased),
            Some(_) if planted::is(Bug::AckOfAnother) => {}
            Some(lease) if lease.pop_ms != id.pop_ms || lease.is_over(clock) => return Err(Refusal::NotLeased),
            Some(_) => {}
        }
        queue.remove(id.offset, &mut self.last, key);
        self.count -= 1;
        counted(&mut self.counts, key).acknowledged += 1;
        Ok(true)
    }

    /// Lets a lease run for `lease_ms` from now; gives its new pop time, by which alone it is known from then on.
    pub(super) fn change(
        &mut self,
        key: &OffsetKey,
        id: &LeaseId,
        lease_ms: i64,
        now: Timestamp,
    ) -> Result<i64, Refusal> {
        let clock = self.at(now);
        let pop_ms = self.pop_time(std::iter::once(key), now);
        let queue = self.queues.get_mut(key).ok_or(Refusal::NotLeased)?;
        let lease = queue.leases.get(&id.offset).ok_or(Refusal::NotLeased)?;
        if lease.pop_ms != id.pop_ms || lease.is_over(clock) {
            return Err(Refusal::NotLeased);
        }
        let lease = Lease { pop_ms, ends_ms: self.clock.ends_ms(pop_ms, lease_ms), ..*lease };
        queue.put(id.offset, lease, &mut self.last, key);
        queue.row.last_pop_ms = pop_ms;
        Ok(pop_ms)
    }

    /// A dead letter lies where it belongs: its message is done. Whether it was still here.
    pub(super) fn bury(&mut self, key: &OffsetKey, id: &LeaseId) -> bool {
        let Some(queue) = self.queues.get_mut(key) else { return false };
        if queue.leases.get(&id.offset).is_none_or(|lease| lease.pop_ms != id.pop_ms) {
            return false;
        }
        queue.remove(id.offset, &mut self.last, key);
        self.count -= 1;
        let counts = counted(&mut self.counts, key);
        counts.ended += 1;
        counts.given_up += 1;
        true
    }

    /// The group's consumer offset on the queue.
    pub(super) fn first_not_done(&self, key: &OffsetKey) -> Option<u64> {
        let queue = self.queues.get(key)?;
        Some(queue.leases.first_key_value().map_or(queue.row.next, |(offset, _)| *offset))
    }

    pub(super) fn row(&self, key: &OffsetKey) -> Option<&PopQueue> {
        self.queues.get(key).map(|queue| &queue.row)
    }

    /// Nobody could acknowledge while nobody led. The row of the clock, if it has changed.
    pub(super) fn lead(&mut self, gap_ms: i64) -> Option<&LeaseClock> {
        if self.count == 0 || gap_ms == 0 {
            return None;
        }
        self.clock.stood_still_ms += gap_ms;
        Some(&self.clock)
    }

    /// Forgets what `forget` says; each queue that is gone, with its leases' offsets.
    pub(super) fn forget(&mut self, forget: impl Fn(&OffsetKey) -> bool) -> Vec<(OffsetKey, Vec<u64>)> {
        self.counts.retain(|key, _| !forget(key));
        let gone: Vec<OffsetKey> = self.queues.keys().filter(|key| forget(key)).cloned().collect();
        gone.into_iter().filter_map(|key| self.forget_queue(&key).map(|offsets| (key, offsets))).collect()
    }

    /// Forgets a queue: its leases end, and the group goes on at its consumer offset.
    pub(super) fn forget_queue(&mut self, key: &OffsetKey) -> Option<Vec<u64>> {
        let queue = self.queues.remove(key)?;
        self.count -= queue.leases.len();
        for (offset, lease) in queue.leases.iter().filter(|(_, lease)| lease.is_last) {
            self.last.remove(&(lease.ends_ms, key.clone(), *offset));
        }
        Some(queue.leases.into_keys().collect())
    }

    /// Rows as they were stored.
    pub(super) fn restore(&mut self, key: OffsetKey, row: PopQueue) {
        self.queues.entry(key).or_default().row = row;
    }

    pub(super) fn restore_lease(&mut self, key: LeaseKey, lease: Lease) {
        self.queues.entry(key.queue.clone()).or_default().put(key.offset, lease, &mut self.last, &key.queue);
        self.count += 1;
    }

    pub(super) fn restore_clock(&mut self, clock: LeaseClock) {
        self.clock = clock;
    }
}

fn counted<'a>(counts: &'a mut BTreeMap<OffsetKey, Counts>, key: &OffsetKey) -> &'a mut Counts {
    if !counts.contains_key(key) {
        counts.insert(key.clone(), Counts::default());
    }
    counts.get_mut(key).expect("it is there")
}

impl Lease {
    /// Its last try has ended: nobody holds it any more.
    fn is_over(&self, clock: i64) -> bool {
        self.is_last && self.ends_ms <= clock
    }
}

impl Queue {
    /// Anything is in anybody's hands, or on its way to the dead letters.
    fn is_held(&self, clock: i64) -> bool {
        self.leases.values().any(|lease| lease.ends_ms > clock || lease.is_last)
    }

    fn is_again(&self, attempt: &str) -> bool {
        !attempt.is_empty() && attempt == self.row.attempt
    }

    fn put(&mut self, offset: u64, lease: Lease, last: &mut BTreeSet<(i64, OffsetKey, u64)>, key: &OffsetKey) {
        self.remove(offset, last, key);
        if lease.is_last {
            last.insert((lease.ends_ms, key.clone(), offset));
        } else {
            self.by_end.insert((lease.ends_ms, offset));
        }
        self.leases.insert(offset, lease);
    }

    fn remove(&mut self, offset: u64, last: &mut BTreeSet<(i64, OffsetKey, u64)>, key: &OffsetKey) {
        let Some(lease) = self.leases.remove(&offset) else { return };
        if lease.is_last {
            last.remove(&(lease.ends_ms, key.clone(), offset));
        } else {
            self.by_end.remove(&(lease.ends_ms, offset));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(queue: u32) -> OffsetKey {
        OffsetKey { group: "g".to_owned(), topic: "t".to_owned(), queue }
    }

    /// A queue and its group at work: every step says what it did and what is left.
    struct Story(Pops);

    impl Story {
        fn pop_as(&mut self, now: i64, from: u64, wanted: &[u64], orderly: Option<&str>) -> (i64, Vec<(u64, u32)>) {
            let next = wanted.last().map_or(from, |last| from.max(last + 1));
            let wish = PopWish { queue: 0, from, next, wanted: wanted.to_vec(), gone: vec![] };
            let pop_ms = self.0.pop_time(std::iter::once(&key(0)), Timestamp(now));
            let attempt = orderly.unwrap_or_default();
            let terms = Terms { pop_ms, lease_ms: 1_000, max_retries: 2, is_orderly: orderly.is_some(), attempt };
            (pop_ms, self.0.pop(&key(0), from, &wish, terms, Timestamp(now)).messages)
        }

        fn pop(&mut self, now: i64, from: u64, wanted: &[u64]) -> (i64, Vec<(u64, u32)>) {
            self.pop_as(now, from, wanted, None)
        }

        fn ack(&mut self, now: i64, offset: u64, pop_ms: i64) -> Result<bool, Refusal> {
            self.0.ack(&key(0), &LeaseId { queue: 0, offset, pop_ms }, Timestamp(now))
        }

        fn change(&mut self, now: i64, offset: u64, pop_ms: i64, lease_ms: i64) -> Result<i64, Refusal> {
            self.0.change(&key(0), &LeaseId { queue: 0, offset, pop_ms }, lease_ms, Timestamp(now))
        }

        fn ended(&self, now: i64) -> Vec<u64> {
            self.0.ended(&key(0), Timestamp(now), 32)
        }

        fn offset(&self) -> Option<u64> {
            self.0.first_not_done(&key(0))
        }
    }

    fn story() -> Story {
        Story(Pops::default())
    }

    #[test]
    fn what_became_of_messages_is_counted_and_outlives_the_leases() {
        let mut one = story();
        let usage = |one: &Story| one.0.usage().get(&("g", "t")).copied().unwrap_or_default();
        let counts = |popped, acknowledged, ended, given_up| Counts { popped, acknowledged, ended, given_up };
        one.pop(5_000, 0, &[0, 1]);
        assert_eq!(one.ack(5_100, 0, 5_000), Ok(true));
        assert_eq!(one.ack(5_100, 0, 5_000), Ok(false));
        assert_eq!(usage(&one), Usage { in_flight: 1, counts: counts(2, 1, 0, 0) });
        assert_eq!(one.pop(6_000, 2, &[1]).1, [(1, 1)]);
        assert_eq!(usage(&one), Usage { in_flight: 1, counts: counts(3, 1, 1, 0) }, "its lease had ended");
        let (pop_ms, _) = one.pop(7_000, 2, &[1]);
        let last = LeaseId { queue: 0, offset: 1, pop_ms };
        assert!(one.0.bury(&key(0), &last) && !one.0.bury(&key(0), &last));
        assert_eq!(usage(&one), Usage { in_flight: 0, counts: counts(4, 1, 3, 1) }, "given up once");
        one.pop(8_000, 2, &[2]);
        let wish = PopWish { queue: 0, from: 3, next: 3, wanted: vec![], gone: vec![2] };
        let terms = Terms { pop_ms: 9_000, lease_ms: 1_000, max_retries: 2, is_orderly: false, attempt: "" };
        one.0.pop(&key(0), 3, &wish, terms, Timestamp(9_000));
        assert_eq!(usage(&one), Usage { in_flight: 0, counts: counts(5, 1, 4, 1) }, "retention took it");
        one.0.forget_queue(&key(0));
        assert_eq!(usage(&one), Usage { in_flight: 0, counts: counts(5, 1, 4, 1) }, "somebody set the offset");
        one.0.forget(|key| key.group == "g");
        assert_eq!(one.0.usage().len(), 0);
    }

    #[test]
    fn an_orderly_batch_taken_again_by_its_own_attempt_has_not_ended() {
        let mut one = story();
        one.pop_as(5_000, 0, &[0, 1], Some("one"));
        assert_eq!(one.pop_as(5_500, 2, &[0, 1], Some("one")).1, [(0, 0), (1, 0)]);
        let counts = Counts { popped: 4, ..Counts::default() };
        assert_eq!(one.0.usage().get(&("g", "t")), Some(&Usage { in_flight: 2, counts }));
    }

    #[test]
    fn two_pops_never_get_the_same_message_and_the_offset_follows_the_first_that_is_not_done() {
        let mut one = story();
        assert_eq!(one.pop(5_000, 10, &[10, 11, 12]), (5_000, vec![(10, 0), (11, 0), (12, 0)]));
        assert_eq!(one.pop(5_000, 10, &[10, 11, 12, 13]).1, [], "chosen before the other was applied");
        assert_eq!(one.0.next(&key(0)), Some(13));
        assert_eq!(one.pop(5_000, 13, &[13, 14]), (5_001, vec![(13, 0), (14, 0)]));
        assert_eq!((one.0.count(), one.offset()), (5, Some(10)));
        assert_eq!(one.ack(5_500, 11, 5_000), Ok(true));
        assert_eq!(one.offset(), Some(10));
        assert_eq!(one.ack(5_500, 10, 5_000), Ok(true));
        assert_eq!(one.offset(), Some(12));
        assert_eq!(one.ack(5_500, 10, 5_000), Ok(false), "the same again changes nothing");
        assert_eq!(one.ack(5_500, 12, 5_001), Err(Refusal::NotLeased), "not its lease");
        assert_eq!(one.ack(5_500, 99, 5_000), Err(Refusal::NotLeased), "nobody has it");
        for (offset, pop_ms) in [(12, 5_000), (13, 5_001), (14, 5_001)] {
            assert_eq!(one.ack(5_500, offset, pop_ms), Ok(true));
        }
        assert_eq!((one.0.count(), one.offset(), one.0.next_end_ms(&key(0), Timestamp(5_500))), (0, Some(15), None));
    }

    #[test]
    fn a_lease_that_ended_is_another_s_and_the_late_one_is_refused() {
        let mut one = story();
        let (first, _) = one.pop(1_000, 0, &[0, 1]);
        assert_eq!(one.ended(1_999), []);
        assert_eq!(one.0.next_end_ms(&key(0), Timestamp(1_600)), Some(400));
        assert_eq!(one.pop(1_999, 2, &[0, 1]).1, [], "it runs");
        assert_eq!(one.ended(2_000), [0, 1]);
        assert_eq!(one.ack(2_000, 1, first), Ok(true), "late, and nobody else has it");
        let (second, popped) = one.pop(2_000, 2, &[0]);
        assert_eq!(popped, [(0, 1)], "delivered once before");
        assert_eq!(one.ack(2_100, 0, first), Err(Refusal::NotLeased));
        assert_eq!(one.change(2_100, 0, first, 9_000), Err(Refusal::NotLeased));
        let third = one.change(2_100, 0, second, 5_000).expect("its holder");
        assert!(third > second, "a lease that was changed has another name");
        assert_eq!(one.ack(2_200, 0, second), Err(Refusal::NotLeased));
        assert_eq!((one.ended(7_099), one.ended(7_100)), (vec![], vec![0]));
        assert_eq!(one.change(2_300, 0, third, 0).map(|_| one.ended(2_300)), Ok(vec![0]), "given back");
    }

    #[test]
    fn the_last_try_ends_among_the_dead_letters() {
        let mut one = story();
        for (now, earlier) in [(0, 0), (1_000, 1), (2_000, 2)] {
            assert_eq!(one.pop(now, u64::from(now > 0), &[0]).1, [(0, earlier)]);
        }
        assert_eq!((one.ended(9_000), one.0.given_up(Timestamp(2_999), 9)), (vec![], vec![]));
        assert_eq!(one.0.next_given_up_ms(Timestamp(2_500)), Some(500));
        let given_up = one.0.given_up(Timestamp(3_000), 9);
        let lease = LeaseId { queue: 0, offset: 0, pop_ms: 2_000 };
        assert_eq!(given_up, [GivenUp { queue: key(0), lease, deliveries: 3 }]);
        assert_eq!(one.pop(3_000, 1, &[0]).1, [], "no other try");
        assert_eq!(one.ack(3_000, 0, 2_000), Err(Refusal::NotLeased), "too late");
        assert_eq!(one.offset(), Some(0), "not done until it lies among them");
        assert!(one.0.bury(&key(0), &given_up[0].lease));
        assert!(!one.0.bury(&key(0), &given_up[0].lease));
        assert_eq!((one.offset(), one.0.count(), one.0.next_given_up_ms(Timestamp(0))), (Some(1), 0, None));
    }

    #[test]
    fn in_order_one_batch_is_in_flight_and_nothing_overtakes_it() {
        let mut one = story();
        let (first, popped) = one.pop_as(0, 0, &[0, 1, 2], Some("a"));
        assert_eq!(popped.len(), 3);
        assert_eq!(one.0.order(&key(0), Timestamp(10), "b"), Order::Blocked);
        assert_eq!(one.0.held_for_ms(&key(0), Timestamp(10)), Some(990));
        assert_eq!(one.pop_as(10, 3, &[3], Some("b")).1, []);
        assert_eq!(one.0.order(&key(0), Timestamp(10), "a"), Order::Open(vec![0, 1, 2]));
        let (again, popped) = one.pop_as(10, 3, &[0, 1, 2], Some("a"));
        assert_eq!(popped, [(0, 0), (1, 0), (2, 0)], "the same attempt, the same batch, and no try more");
        assert!(again > first);
        assert_eq!(one.ack(20, 1, again), Ok(true));
        assert_eq!(one.0.order(&key(0), Timestamp(1_010), "b"), Order::Open(vec![0, 2]));
        assert_eq!(one.pop_as(1_010, 3, &[0, 3], Some("b")).1, [(0, 1)], "2 is before 3");
        assert_eq!(one.0.next(&key(0)), Some(3));
        assert_eq!(one.pop_as(2_010, 3, &[0, 2, 3], Some("c")).1, [(0, 2), (2, 1), (3, 0)]);
        // The last try of 0 ends: what is behind it waits until it lies among the dead letters.
        assert_eq!(one.0.order(&key(0), Timestamp(9_000), "d"), Order::Blocked);
        let given_up = one.0.given_up(Timestamp(9_000), 9);
        assert!(one.0.bury(&key(0), &given_up[0].lease));
        assert_eq!(one.0.order(&key(0), Timestamp(9_000), "d"), Order::Open(vec![2, 3]));
    }

    #[test]
    fn time_without_a_leader_does_not_count() {
        let mut one = story();
        assert!(one.0.lead(5_000).is_none(), "nothing is leased");
        let (first, _) = one.pop(10_000, 0, &[0]);
        one.pop(10_400, 1, &[1]);
        assert_eq!(one.ended(11_000), [0]);
        // The last entry was stamped 11 000; nobody led for a minute.
        assert_eq!(one.0.lead(60_000), Some(&LeaseClock { stood_still_ms: 60_000 }));
        assert_eq!(one.ended(71_399), [0], "what had ended has ended");
        assert_eq!(one.ended(71_400), [0, 1]);
        assert_eq!(one.ack(71_399, 1, 10_400), Ok(true));
        assert_eq!(one.ack(71_399, 0, first), Ok(true));
    }

    #[test]
    fn what_is_passed_over_or_gone_is_done() {
        let mut one = story();
        let terms = Terms { pop_ms: 1, lease_ms: 100, max_retries: 16, is_orderly: false, attempt: "" };
        let wish = |from, next, wanted: &[u64], gone: &[u64]| PopWish {
            queue: 0,
            from,
            next,
            wanted: wanted.to_vec(),
            gone: gone.to_vec(),
        };
        one.0.pop(&key(0), 4, &wish(4, 20, &[7], &[]), terms, Timestamp(0));
        assert_eq!((one.0.next(&key(0)), one.offset()), (Some(20), Some(7)));
        one.0.pop(&key(0), 4, &wish(20, 20, &[], &[7]), terms, Timestamp(50));
        assert_eq!(one.offset(), Some(7), "its lease runs");
        one.0.pop(&key(0), 4, &wish(20, 20, &[], &[7]), terms, Timestamp(101));
        assert_eq!((one.offset(), one.0.count()), (Some(20), 0));
    }

    #[test]
    fn rows_restore_what_they_were_written_from() {
        let mut one = story();
        one.pop(0, 0, &[0, 1, 2]);
        one.pop(1_000, 3, &[0]);
        one.pop(2_000, 3, &[0]);
        one.0.lead(500);
        let mut restored = Pops::default();
        restored.restore_clock(one.0.clock);
        for (key, queue) in &one.0.queues {
            restored.restore(key.clone(), queue.row.clone());
            for (offset, lease) in &queue.leases {
                restored.restore_lease(LeaseKey { queue: key.clone(), offset: *offset }, *lease);
            }
        }
        one.0.counts.clear(); // counted since the start, and no row
        assert_eq!(format!("{restored:?}"), format!("{:?}", one.0));
        let gone = restored.forget(|key| key.topic == "t");
        assert_eq!(gone, [(key(0), vec![0, 1, 2])]);
        assert_eq!((restored.count(), restored.last.len(), restored.queues.len()), (0, 0, 0));
    }
}

//! The judge of pop leases: one holder at a time, who alone can end one, and nothing is done that nobody has acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{End, History, Lease};
use super::judge::Verdict;
use super::workload::QUEUES;

/// No message is in two hands at once, by group time, which names and ends leases. Once a message is acknowledged, it comes
/// to nobody who asks later; and nobody acknowledges it under a lease that is another's by then, unless it is done: because of
/// somebody else's acknowledgement, or because retention has taken it.
pub(super) fn leases_hold(history: &History) -> Verdict {
    let mut places: BTreeMap<(u32, u64), Vec<&Lease>> = BTreeMap::new();
    for lease in &history.leases {
        places.entry((lease.queue, lease.offset)).or_default().push(lease);
    }
    for ((queue, offset), mut leases) in places {
        let mut replicas = history.replicas.values().filter_map(|queues| queues.get(queue as usize));
        let is_gone = history.is_trimmed && replicas.any(|held| held.first > offset);
        leases.sort_by_key(|lease| lease.pop_ms);
        let told = |what: &str, one: &Lease, other: &Lease| {
            let (one, other) = (one.pop_ms..one.ends_ms, other.pop_ms..other.ends_ms);
            Err(format!("queue {queue} offset {offset}: {what}: leased for {one:?}, and for {other:?}"))
        };
        for pair in leases.windows(2) {
            if pair[1].pop_ms < pair[0].ends_ms {
                return told("in two hands at once", pair[0], pair[1]);
            }
        }
        for (at, lease) in leases.iter().enumerate() {
            for ack in &lease.acks {
                let End::Ok((), ended) = ack.end else { continue };
                let later = &leases[at + 1..];
                if let Some(again) = later.iter().find(|later| later.invoked > ended) {
                    return told("popped again, and acknowledged before", lease, again);
                }
                // Done is done, whoever says it: unless nobody else may have said so yet.
                let others = leases.iter().filter(|other| other.pop_ms != lease.pop_ms);
                let may_be_done = is_gone || others.flat_map(|other| &other.acks).any(|other| other.invoked < ended);
                if let Some(holder) = later.iter().find(|later| later.answered < ack.invoked)
                    && !may_be_done
                {
                    return told("acknowledged by one who had it before", lease, holder);
                }
            }
        }
    }
    Ok(())
}

/// When nothing was left to pop, somebody has, or may have, acknowledged each message that is there.
pub(super) fn nothing_unacknowledged_is_lost(history: &History) -> Verdict {
    if !history.is_drained || history.is_trimmed {
        return Ok(());
    }
    let is_done = |lease: &&Lease| lease.acks.iter().any(|ack| ack.end != End::Fail);
    let done: BTreeSet<(u32, u64)> =
        history.leases.iter().filter(is_done).map(|lease| (lease.queue, lease.offset)).collect();
    for (replica, queues) in &history.replicas {
        for (queue, held) in (0..QUEUES).zip(queues) {
            if let Some(lost) = (held.first..held.end()).find(|offset| !done.contains(&(queue, *offset))) {
                return Err(format!(
                    "queue {queue} offset {lost} on {replica}: nobody has acknowledged it, and it does not come again"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::history::{Ack, Held, Moment};
    use super::*;

    fn lease(pop_ms: i64, ends_ms: i64, invoked: Moment) -> Lease {
        Lease { queue: 0, offset: 0, value: 7, pop_ms, ends_ms, invoked, answered: invoked + 1, acks: Vec::new() }
    }

    fn acked(lease: Lease, invoked: Moment, end: End<()>) -> Lease {
        Lease { acks: vec![Ack { invoked, end }], ..lease }
    }

    fn judged(leases: &[Lease]) -> Verdict {
        leases_hold(&History { leases: leases.to_vec(), ..History::default() })
    }

    fn told(leases: &[Lease], what: &str) {
        let error = judged(leases).expect_err(what);
        assert!(error.contains(what), "{error}");
    }

    #[test]
    fn a_message_in_two_hands_is_told() {
        assert_eq!(judged(&[lease(1_000, 2_000, 1), lease(2_000, 3_000, 3)]), Ok(()));
        told(&[lease(1_000, 2_000, 1), lease(1_999, 2_999, 3)], "in two hands at once");
        told(&[lease(1_999, 2_999, 3), lease(1_000, 2_000, 1)], "in two hands at once");
        let elsewhere = Lease { offset: 1, ..lease(1_500, 2_500, 3) };
        assert_eq!(judged(&[lease(1_000, 2_000, 1), elsewhere]), Ok(()));
    }

    #[test]
    fn a_message_that_comes_again_when_it_is_done_is_told() {
        let done = acked(lease(1_000, 2_000, 1), 3, End::Ok((), 4));
        told(&[done.clone(), lease(2_000, 3_000, 5)], "popped again, and acknowledged before");
        assert_eq!(judged(&[done.clone(), lease(2_000, 3_000, 3)]), Ok(()), "asked for before that");
        let unknown = acked(lease(1_000, 2_000, 1), 3, End::Info);
        assert_eq!(judged(&[unknown, lease(2_000, 3_000, 5)]), Ok(()));
    }

    #[test]
    fn whoever_had_it_before_cannot_acknowledge_it() {
        let before = |invoked| acked(lease(1_000, 2_000, 1), invoked, End::Ok((), invoked + 1));
        told(&[before(9), lease(2_000, 3_000, 5)], "acknowledged by one who had it before");
        assert_eq!(judged(&[before(5), lease(2_000, 3_000, 5)]), Ok(()), "in the order that nobody saw");
        let holder = acked(lease(2_000, 3_000, 5), 7, End::Ok((), 8));
        assert_eq!(judged(&[before(9), holder]), Ok(()), "it was done");
        let refused = acked(lease(1_000, 2_000, 1), 9, End::Info);
        assert_eq!(judged(&[refused, lease(2_000, 3_000, 5)]), Ok(()));
        let trimmed = |first| History {
            leases: vec![before(9), lease(2_000, 3_000, 5)],
            replicas: [("a".to_owned(), vec![Held { first, values: vec![] }])].into(),
            is_trimmed: true,
            ..History::default()
        };
        assert_eq!(leases_hold(&trimmed(1)), Ok(()), "it is gone");
        assert!(leases_hold(&trimmed(0)).is_err());
    }

    #[test]
    fn a_message_that_nobody_has_acknowledged_and_that_does_not_come_again_is_told() {
        let mut queues = vec![Held::default(); QUEUES as usize + 1];
        queues[0] = Held { first: 0, values: vec![7, 8, 9] };
        let done = |offset| Lease { offset, ..acked(lease(1_000, 2_000, 1), 3, End::Ok((), 4)) };
        let history = |leases: &[Lease]| History {
            leases: leases.to_vec(),
            replicas: [("a".to_owned(), queues.clone())].into(),
            is_drained: true,
            ..History::default()
        };
        let holds = |leases: &[Lease]| nothing_unacknowledged_is_lost(&history(leases));
        assert_eq!(holds(&[done(0), done(1), done(2)]), Ok(()));
        assert!(holds(&[done(0), done(1)]).is_err(), "the last is lost");
        let lost = holds(&[done(0), done(2)]).expect_err("1 is lost");
        assert!(lost.starts_with("queue 0 offset 1 on a"), "{lost}");
        let maybe = Lease { offset: 1, ..acked(lease(1_000, 2_000, 1), 3, End::Info) };
        assert_eq!(holds(&[done(0), maybe, done(2)]), Ok(()), "nobody knows");
        let refused = Lease { offset: 1, ..acked(lease(1_000, 2_000, 1), 3, End::Fail) };
        assert!(holds(&[done(0), refused, done(2)]).is_err());
    }
}

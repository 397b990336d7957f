//! What consumers may count on beside messages: stored offsets, and who holds a queue's lock.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Access, End, History, Moment};
use super::judge::Verdict;

/// Simulated clocks show whole milliseconds, and hosts move one after the other.
const ROUNDING_MS: u64 = 5;

/// Consumer offsets are registers whose stored values differ; 0 is there before the first.
///
/// All operations of one value must happen within its *zone*: from the first end of one to the last beginning of one. In
/// a forward zone the first end is before the last beginning: all that time the register holds the value. Linearizable
/// if, and only if, no two forward zones overlap, and no other zone lies within a forward one (Gibbons and Korach,
/// "Testing Shared Memories", 1997).
pub(super) fn offsets_are_registers(history: &History) -> Verdict {
    let registers: BTreeSet<u32> = history.accesses.iter().map(|access| access.register).collect();
    registers.into_iter().try_for_each(|register| {
        let of_it: Vec<&Access> = history.accesses.iter().filter(|access| access.register == register).collect();
        register_is_linearizable(&of_it).map_err(|what| format!("register {register}: {what}"))
    })
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    value: u64,
    first_end: Moment,
    last_begin: Moment,
}

impl Zone {
    fn is_forward(&self) -> bool {
        self.first_end < self.last_begin
    }
}

fn register_is_linearizable(accesses: &[&Access]) -> Verdict {
    let mut zones: BTreeMap<u64, Zone> = BTreeMap::new();
    zones.insert(0, Zone { value: 0, first_end: 0, last_begin: 0 });
    let mut begins: BTreeMap<u64, Moment> = BTreeMap::from([(0, 0)]);
    for access in accesses {
        if let Some(value) = access.stores.filter(|_| access.end != End::Fail) {
            begins.insert(value, access.invoked);
        }
    }
    let read: BTreeSet<u64> = accesses
        .iter()
        .filter(|access| access.stores.is_none())
        .filter_map(|access| match access.end {
            End::Ok(value, _) => Some(value),
            End::Fail | End::Info => None,
        })
        .collect();
    for access in accesses {
        let (value, ended) = match (&access.stores, &access.end) {
            (Some(value), End::Ok(_, ended)) => (*value, *ended),
            // It may have happened; if it was read, it has.
            (Some(value), End::Info) if read.contains(value) => (*value, Moment::MAX),
            (None, End::Ok(value, ended)) => (*value, *ended),
            _ => continue,
        };
        let Some(begin) = begins.get(&value) else { return Err(format!("{value} was read and never stored")) };
        if ended < *begin {
            return Err(format!("{value} was read before it was stored"));
        }
        let zone = zones.entry(value).or_insert(Zone { value, first_end: Moment::MAX, last_begin: 0 });
        zone.first_end = zone.first_end.min(ended);
        zone.last_begin = zone.last_begin.max(access.invoked);
    }
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) = zones.into_values().partition(Zone::is_forward);
    forward.sort_unstable_by_key(|zone| zone.first_end);
    if let Some(pair) = forward.windows(2).find(|pair| pair[1].first_end < pair[0].last_begin) {
        return Err(format!("{} and {} were both there at once", pair[0].value, pair[1].value));
    }
    for other in backward {
        // Of a backward zone the last beginning comes first.
        let around = |zone: &&Zone| zone.first_end < other.last_begin && other.first_end < zone.last_begin;
        if let Some(zone) = forward.iter().find(around) {
            return Err(format!("{} came and went while {} was there", other.value, zone.value));
        }
    }
    Ok(())
}

/// An offset that is stored one way, each time a larger one and by another client, is never moved back: who has read one
/// never reads a smaller one.
pub(super) fn pushed_offsets_grow(history: &History) -> Verdict {
    let mut by_end: Vec<_> = history.sightings.iter().collect();
    by_end.sort_unstable_by_key(|sighting| sighting.ended);
    for later in &history.sightings {
        let before = by_end.iter().take_while(|earlier| earlier.ended < later.invoked);
        if let Some(earlier) = before.max_by_key(|earlier| earlier.value).filter(|earlier| earlier.value > later.value)
        {
            return Err(format!("{} was read, and {} after that", earlier.value, later.value));
        }
    }
    Ok(())
}

/// While a client surely holds the lock, no other is granted it: from the answer until the lease has run out, counted
/// from when it was asked for, or until the client began to give it back.
pub(super) fn locks_are_exclusive(history: &History) -> Verdict {
    if !history.clocks_agree {
        return Ok(());
    }
    for held in &history.grants {
        let until = held.left_ms.min(held.invoked_ms + history.lease_ms);
        let granted_meanwhile = history.grants.iter().find(|other| {
            other.client != held.client
                && other.invoked_ms >= held.answered_ms + ROUNDING_MS
                && other.answered_ms + ROUNDING_MS < until
        });
        if let Some(other) = granted_meanwhile {
            return Err(format!(
                "{} held the lock from {} to {until} ms, {} was granted it between {} and {} ms",
                held.client, held.answered_ms, other.client, other.invoked_ms, other.answered_ms
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::history::{Grant, Sighting};
    use super::*;

    fn stored(value: u64, invoked: Moment, end: End<u64>) -> Access {
        Access { register: 0, stores: Some(value), invoked, end }
    }

    fn read(value: u64, invoked: Moment, ended: Moment) -> Access {
        Access { register: 0, stores: None, invoked, end: End::Ok(value, ended) }
    }

    fn register(accesses: &[Access]) -> Verdict {
        register_is_linearizable(&accesses.iter().collect::<Vec<_>>())
    }

    #[test]
    fn registers_that_could_be_are_let_pass() {
        let ok = |at| End::Ok(0, at);
        assert_eq!(register(&[read(0, 1, 2), stored(5, 3, ok(4)), read(5, 5, 6)]), Ok(()));
        // At the same time: either order.
        assert_eq!(register(&[stored(5, 1, ok(4)), stored(6, 2, ok(3)), read(5, 5, 6)]), Ok(()));
        assert_eq!(register(&[stored(5, 1, ok(4)), stored(6, 2, ok(3)), read(6, 5, 6)]), Ok(()));
        // Unknown: it may take effect late, or never.
        assert_eq!(register(&[stored(5, 1, End::Info), read(0, 2, 3), read(5, 4, 5)]), Ok(()));
        assert_eq!(register(&[stored(5, 1, End::Info), read(0, 2, 3)]), Ok(()));
    }

    #[test]
    fn registers_that_could_not_be_are_told() {
        let ok = |at| End::Ok(0, at);
        let told = |accesses: &[Access], what: &str| {
            let error = register(accesses).expect_err(what);
            assert!(error.contains(what), "{error}");
        };
        told(&[stored(5, 1, ok(2)), read(0, 3, 4)], "came and went");
        told(&[stored(5, 1, ok(2)), stored(6, 3, ok(4)), read(5, 5, 6)], "came and went");
        told(&[stored(5, 1, ok(2)), stored(6, 3, ok(4)), read(6, 5, 6), read(5, 7, 8)], "");
        told(&[read(7, 1, 2)], "never stored");
        told(&[stored(5, 1, End::Fail), read(5, 2, 3)], "never stored");
        told(&[read(5, 1, 2), stored(5, 3, ok(4))], "before it was stored");
    }

    #[test]
    fn an_offset_stored_one_way_that_goes_back_is_told() {
        let read = |value, invoked, ended| Sighting { value, invoked, ended };
        let grows = |sightings: &[Sighting]| {
            pushed_offsets_grow(&History { sightings: sightings.to_vec(), ..History::default() })
        };
        assert_eq!(grows(&[read(5, 1, 2), read(5, 3, 4), read(9, 5, 6)]), Ok(()));
        assert_eq!(grows(&[read(9, 1, 4), read(5, 3, 5)]), Ok(()), "at the same time");
        assert_eq!(grows(&[read(9, 1, 2), read(5, 3, 4)]), Err("9 was read, and 5 after that".to_owned()));
    }

    #[test]
    fn a_lock_granted_while_another_client_holds_it_is_told() {
        let grant = |client: &str, invoked_ms, answered_ms| Grant {
            client: client.to_owned(),
            invoked_ms,
            answered_ms,
            left_ms: u64::MAX,
        };
        let mut history = History { lease_ms: 1000, clocks_agree: true, ..History::default() };
        history.grants = vec![grant("a", 0, 10), grant("b", 500, 510)];
        assert!(locks_are_exclusive(&history).is_err());
        history.grants[0].left_ms = 400;
        assert_eq!(locks_are_exclusive(&history), Ok(()), "given back");
        history.grants = vec![grant("a", 0, 10), grant("b", 990, 1010)];
        assert_eq!(locks_are_exclusive(&history), Ok(()), "it had run out when the answer came");
        history.grants = vec![grant("a", 0, 10), grant("a", 500, 510)];
        assert_eq!(locks_are_exclusive(&history), Ok(()), "renewed");
        history.grants = vec![grant("a", 0, 600), grant("b", 500, 700)];
        assert_eq!(locks_are_exclusive(&history), Ok(()), "in the order that nobody saw");
    }
}

//! The judge of the contract: whether a history could be that of one correct broker.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Access, End, History, Moment};

/// A clause of the contract that does not hold, and how that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub clause: &'static str,
    /// How.
    pub what: String,
}

type Verdict = Result<(), String>;

/// What a clause says, and whether it holds.
type Clause = (&'static str, fn(&History) -> Verdict);

/// Judges all of it; every clause that does not hold.
pub fn judge(history: &History) -> Vec<Violation> {
    let clauses: [Clause; 9] = [
        ("appends are linearizable", appends_are_linearizable),
        ("one offset, one value", one_offset_one_value),
        ("nothing acknowledged is lost", nothing_is_lost),
        ("nothing is made up", nothing_is_made_up),
        ("nothing is stored twice", nothing_is_twice),
        ("reads go on where they were", reads_go_on),
        ("consumer offsets are linearizable", offsets_are_registers),
        ("nothing delayed is early or lost", delays_are_kept),
        ("replicas are equal", replicas_are_equal),
    ];
    let judged = clauses.into_iter().map(|(clause, holds)| (clause, holds(history)));
    judged.filter_map(|(clause, verdict)| verdict.err().map(|what| Violation { clause, what })).collect()
}

/// The queue of delayed messages comes last in each replica; appends go to the others.
fn plain_queues(queues: &[Vec<u64>]) -> &[Vec<u64>] {
    &queues[..queues.len() - 1]
}

/// What ended before something else began stands before it. Offsets are the order; so no append may have ended before
/// one with a lower offset began.
fn appends_are_linearizable(history: &History) -> Verdict {
    let mut queues: BTreeMap<u32, Vec<(u64, Moment, Moment, u64)>> = BTreeMap::new();
    for append in &history.appends {
        if let End::Ok(offset, ended) = append.end {
            queues.entry(append.queue).or_default().push((offset, append.invoked, ended, append.value));
        }
    }
    for (queue, mut appends) in queues {
        appends.sort_unstable();
        let mut earliest_end: Option<(Moment, u64, u64)> = None;
        for (offset, invoked, ended, value) in appends.into_iter().rev() {
            if let Some((end, later, its)) = earliest_end
                && end < invoked
            {
                return Err(format!(
                    "queue {queue}: value {its} at offset {later} was acknowledged before value {value} was sent, which \
                     stands at the lower offset {offset}"
                ));
            }
            if earliest_end.is_none_or(|(end, ..)| ended < end) {
                earliest_end = Some((ended, offset, value));
            }
        }
    }
    Ok(())
}

/// Acknowledgements, pulls and replicas never show two values at one offset.
fn one_offset_one_value(history: &History) -> Verdict {
    let mut places: BTreeMap<(u32, u64), u64> = BTreeMap::new();
    let mut shows = |queue: u32, offset: u64, value: u64, where_: &str| match places.insert((queue, offset), value) {
        Some(other) if other != value => {
            Err(format!("queue {queue} offset {offset}: {value} {where_}, and {other} elsewhere"))
        }
        _ => Ok(()),
    };
    for append in &history.appends {
        if let End::Ok(offset, _) = append.end {
            shows(append.queue, offset, append.value, "was acknowledged")?;
        }
    }
    for pull in &history.pulls {
        for (offset, value) in &pull.shown {
            shows(pull.queue, *offset, *value, "was pulled")?;
        }
    }
    for (replica, queues) in &history.replicas {
        for (queue, values) in queues.iter().enumerate() {
            for (offset, value) in values.iter().enumerate() {
                shows(queue as u32, offset as u64, *value, &format!("is on {replica}"))?;
            }
        }
    }
    Ok(())
}

/// Every acknowledged append is at its place on every replica, and so is whatever a pull has shown.
fn nothing_is_lost(history: &History) -> Verdict {
    let acknowledged = history.appends.iter().filter_map(|append| match append.end {
        End::Ok(offset, _) => Some((append.queue, offset, append.value, "acknowledged")),
        End::Fail | End::Info => None,
    });
    let pulled = history
        .pulls
        .iter()
        .flat_map(|pull| pull.shown.iter().map(|(offset, value)| (pull.queue, *offset, *value, "pulled")));
    let kept: Vec<_> = acknowledged.chain(pulled).collect();
    for (replica, queues) in &history.replicas {
        let there = |queue: u32, offset: u64| queues[queue as usize].get(offset as usize);
        let mut lost = kept.iter().filter(|(queue, offset, value, _)| there(*queue, *offset) != Some(value));
        if let Some((queue, offset, value, how)) = lost.next() {
            return Err(format!(
                "LOST {} of {} on {replica}; the first: value {value}, {how} at queue {queue} offset {offset}, where there \
                 is {:?} now",
                1 + lost.count(),
                kept.len(),
                there(*queue, *offset),
            ));
        }
    }
    Ok(())
}

/// Whatever is there was sent, to that queue, and not certainly refused.
fn nothing_is_made_up(history: &History) -> Verdict {
    let sent: BTreeMap<u64, (usize, bool)> =
        history.appends.iter().map(|append| (append.value, (append.queue as usize, append.end == End::Fail))).collect();
    let scheduled: BTreeSet<u64> = history.delayed.iter().map(|delayed| delayed.value).collect();
    for (replica, queues) in &history.replicas {
        for (queue, values) in plain_queues(queues).iter().enumerate() {
            for value in values {
                match sent.get(value) {
                    None => return Err(format!("{replica} queue {queue}: {value} was never sent")),
                    Some((_, true)) => return Err(format!("{replica} queue {queue}: {value} was refused")),
                    Some((to, _)) if *to != queue => {
                        return Err(format!("{replica} queue {queue}: {value} was sent to queue {to}"));
                    }
                    Some(_) => {}
                }
            }
        }
        if let Some(value) = queues.last().and_then(|values| values.iter().find(|value| !scheduled.contains(value))) {
            return Err(format!("{replica}: {value} was never scheduled"));
        }
    }
    Ok(())
}

/// What was sent once is there at most once.
fn nothing_is_twice(history: &History) -> Verdict {
    let may_repeat: BTreeSet<u64> =
        history.appends.iter().filter(|append| append.repeats).map(|append| append.value).collect();
    for (replica, queues) in &history.replicas {
        let mut seen = BTreeSet::new();
        for value in queues.iter().flatten().filter(|value| !may_repeat.contains(value)) {
            if !seen.insert(value) {
                return Err(format!("{replica}: value {value}, sent once, stands at two places"));
            }
        }
    }
    Ok(())
}

/// A reader sees every offset from the one it asks for on, none left out, none again.
fn reads_go_on(history: &History) -> Verdict {
    for pull in &history.pulls {
        for (expected, (offset, value)) in (pull.from..).zip(&pull.shown) {
            if *offset != expected {
                return Err(format!(
                    "reader {} of queue {}: expected offset {expected}, was shown {offset} (value {value})",
                    pull.reader, pull.queue
                ));
            }
        }
    }
    Ok(())
}

/// Consumer offsets are registers whose stored values differ; 0 is there before the first.
///
/// All operations of one value must happen within its *zone*: from the first end of one to the last beginning of one. In
/// a forward zone the first end is before the last beginning: all that time the register holds the value. Linearizable
/// if, and only if, no two forward zones overlap, and no other zone lies within a forward one (Gibbons and Korach,
/// "Testing Shared Memories", 1997).
fn offsets_are_registers(history: &History) -> Verdict {
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

/// Nothing is seen before it is due, where all clocks agree; and all that was acknowledged is there in the end.
fn delays_are_kept(history: &History) -> Verdict {
    for delayed in &history.delayed {
        if let Some(seen) = history.seen_ms.get(&delayed.value)
            && history.clocks_agree
            && *seen < delayed.due_ms
        {
            return Err(format!("value {} was seen {} ms early", delayed.value, delayed.due_ms - seen));
        }
        for (replica, queues) in &history.replicas {
            let there = queues.last().is_some_and(|values| values.contains(&delayed.value));
            if !there && matches!(delayed.end, End::Ok(..)) {
                return Err(format!("value {}, delayed, acknowledged, is not on {replica}", delayed.value));
            }
        }
    }
    Ok(())
}

/// All replicas show the same.
fn replicas_are_equal(history: &History) -> Verdict {
    for ((one, a), (other, b)) in history.replicas.iter().zip(history.replicas.iter().skip(1)) {
        for (queue, (a, b)) in a.iter().zip(b).enumerate() {
            if a != b {
                let at = a.iter().zip(b).take_while(|(a, b)| a == b).count();
                return Err(format!("{one} and {other} differ in queue {queue} from offset {at} on"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::history::{Append, Delayed, Pull};
    use super::*;

    fn append(value: u64, invoked: Moment, end: End<u64>) -> Append {
        Append { queue: 0, value, repeats: false, invoked, end }
    }

    /// 10 and 11 acknowledged one after the other; both replicas as given.
    fn history(one: &[u64], other: &[u64]) -> History {
        let replicas = [("a", one), ("b", other)];
        History {
            appends: vec![append(10, 1, End::Ok(0, 2)), append(11, 3, End::Ok(1, 4)), append(12, 5, End::Info)],
            replicas: replicas.map(|(name, values)| (name.to_owned(), vec![values.to_vec(), Vec::new()])).into(),
            clocks_agree: true,
            ..History::default()
        }
    }

    fn told(history: &History) -> Vec<&'static str> {
        judge(history).into_iter().map(|violation| violation.clause).collect()
    }

    #[test]
    fn what_was_not_acknowledged_may_be_there_or_not() {
        assert_eq!(judge(&history(&[10, 11], &[10, 11])), []);
        assert_eq!(judge(&history(&[10, 11, 12], &[10, 11, 12])), []);
    }

    #[test]
    fn bad_appends_are_told() {
        let lost = "nothing acknowledged is lost";
        assert_eq!(told(&history(&[10], &[10])), [lost]);
        assert_eq!(told(&history(&[10, 11], &[10])), [lost, "replicas are equal"]);
        assert_eq!(told(&history(&[10, 11, 13], &[10, 11, 13])), ["nothing is made up"]);
        assert_eq!(told(&history(&[10, 11, 10], &[10, 11, 10])), ["nothing is stored twice"]);
        assert!(told(&history(&[10, 12], &[10, 11])).contains(&"one offset, one value"));
        let mut refused = history(&[10, 11, 12], &[10, 11, 12]);
        refused.appends[2].end = End::Fail;
        assert_eq!(told(&refused), ["nothing is made up"]);
        let mut swapped = history(&[11, 10], &[11, 10]);
        swapped.appends[0].end = End::Ok(1, 2);
        swapped.appends[1].end = End::Ok(0, 4);
        assert_eq!(told(&swapped), ["appends are linearizable"]);
        let mut repeated = history(&[10, 11, 10], &[10, 11, 10]);
        repeated.appends[0].repeats = true;
        assert_eq!(told(&repeated), <[&str; 0]>::default());
    }

    #[test]
    fn bad_pulls_are_told() {
        let mut pulled = history(&[10, 11], &[10, 11]);
        pulled.pulls = vec![Pull { reader: 0, queue: 0, from: 0, shown: vec![(0, 10), (1, 11)] }];
        assert_eq!(judge(&pulled), []);
        pulled.pulls[0].from = 1;
        assert_eq!(told(&pulled), ["reads go on where they were"]);
        pulled.pulls = vec![Pull { reader: 0, queue: 0, from: 2, shown: vec![(2, 12)] }];
        assert_eq!(told(&pulled), ["nothing acknowledged is lost"], "shown, and gone again");
    }

    #[test]
    fn a_delayed_message_is_neither_early_nor_lost() {
        let mut delayed = history(&[10, 11], &[10, 11]);
        delayed.delayed = vec![Delayed { value: 7, due_ms: 100, end: End::Ok((), 9) }];
        assert_eq!(told(&delayed), ["nothing delayed is early or lost"]);
        for queues in delayed.replicas.values_mut() {
            queues[1] = vec![7];
        }
        delayed.seen_ms = [(7, 100)].into();
        assert_eq!(judge(&delayed), []);
        delayed.seen_ms = [(7, 99)].into();
        assert_eq!(told(&delayed), ["nothing delayed is early or lost"]);
        delayed.clocks_agree = false;
        assert_eq!(judge(&delayed), []);
        let mut show = |values: &[u64]| {
            delayed.replicas.values_mut().for_each(|queues| queues[1] = values.to_vec());
            told(&delayed)
        };
        assert_eq!(show(&[7, 7]), ["nothing is stored twice"]);
        assert_eq!(show(&[7, 8]), ["nothing is made up"]);
    }

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
}

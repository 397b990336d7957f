//! The judge of the contract: whether a history could be that of one correct broker.

use std::collections::{BTreeMap, BTreeSet};

use super::dead_letters::dead_letters_lie_once;
use super::history::{Copies, End, History, Moment, Move, Recall};
use super::leases::{leases_hold, nothing_unacknowledged_is_lost};
use super::registers::{locks_are_exclusive, offsets_are_registers, pushed_offsets_grow};
use super::workload::QUEUES;

/// A clause of the contract that does not hold, and how that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub clause: &'static str,
    /// How.
    pub what: String,
}

pub(super) type Verdict = Result<(), String>;

/// What a clause says, and whether it holds.
type Clause = (&'static str, fn(&History) -> Verdict);

/// Judges all of it; every clause that does not hold.
pub fn judge(history: &History) -> Vec<Violation> {
    let clauses: [Clause; 18] = [
        ("appends are linearizable", appends_are_linearizable),
        ("one offset, one value", one_offset_one_value),
        ("nothing acknowledged is lost", nothing_is_lost),
        ("nothing is made up", nothing_is_made_up),
        ("nothing is stored twice", nothing_is_twice),
        ("a message sent again is one message", repeated_sends_are_one),
        ("reads go on where they were", reads_go_on),
        ("consumer offsets are linearizable", offsets_are_registers),
        ("offsets stored one way never go back", pushed_offsets_grow),
        ("one client holds a queue's lock", locks_are_exclusive),
        ("nothing delayed is early or lost", delays_are_kept),
        ("what is recalled is never seen", recalled_is_never_seen),
        ("a group is where it was moved", moves_hold),
        ("a transaction ends once", transactions_end_once),
        ("pop leases hold", leases_hold),
        ("nothing popped is lost", nothing_unacknowledged_is_lost),
        ("a dead letter lies there once", dead_letters_lie_once),
        ("replicas are equal", replicas_are_equal),
    ];
    let judged = clauses.into_iter().map(|(clause, holds)| (clause, holds(history)));
    judged.filter_map(|(clause, verdict)| verdict.err().map(|what| Violation { clause, what })).collect()
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
    let mut known: BTreeMap<(u32, u64), u64> = BTreeMap::new();
    for (queue, offset, value, who) in places(history) {
        let before = *known.entry((queue, offset)).or_insert(value);
        if before != value {
            return Err(format!("queue {queue} offset {offset}: {value} ({who}), and {before} elsewhere"));
        }
    }
    Ok(())
}

/// Every acknowledged append is at its place on every replica, and so is whatever a pull has shown; where retention lets go
/// what is old, from the first offset on that a replica still holds.
fn nothing_is_lost(history: &History) -> Verdict {
    let kept: Vec<_> = places(history).filter(|(.., who)| ["acknowledged", "pulled"].contains(who)).collect();
    for (replica, queues) in &history.replicas {
        let held = |queue: u32| &queues[queue as usize];
        let mut lost = kept.iter().filter(|(queue, offset, value, _)| {
            let is_trimmed = history.is_trimmed && *offset < held(*queue).first;
            held(*queue).at(*offset) != Some(*value) && !is_trimmed
        });
        if let Some((queue, offset, value, how)) = lost.next() {
            return Err(format!(
                "LOST {} of {} on {replica}; the first: value {value}, {how} at queue {queue} offset {offset}, where there \
                 is {:?} now; the queue is {:?}",
                1 + lost.count(),
                kept.len(),
                held(*queue).at(*offset),
                held(*queue).first..held(*queue).end(),
            ));
        }
    }
    Ok(())
}

/// Every place at which somebody saw a value: queue, offset, value, and who that was.
fn places(history: &History) -> impl Iterator<Item = (u32, u64, u64, &str)> {
    let acknowledged = history.appends.iter().filter_map(|append| match append.end {
        End::Ok(offset, _) => Some((append.queue, offset, append.value, "acknowledged")),
        End::Fail | End::Info => None,
    });
    let pulled = history
        .pulls
        .iter()
        .flat_map(|pull| pull.shown.iter().map(|(offset, value)| (pull.queue, *offset, *value, "pulled")));
    let held = history.replicas.iter().flat_map(|(replica, queues)| {
        (0..).zip(queues).flat_map(move |(queue, held)| {
            (held.first..).zip(&held.values).map(move |(offset, value)| (queue, offset, *value, replica.as_str()))
        })
    });
    acknowledged.chain(pulled).chain(held)
}

/// Whatever is there, or was shown, was sent, to that queue, and not certainly refused.
fn nothing_is_made_up(history: &History) -> Verdict {
    let appends = history.appends.iter().map(|append| (append.value, (append.queue, append.end == End::Fail)));
    let delayed = history.delayed.iter().map(|delayed| (delayed.value, (QUEUES, delayed.end == End::Fail)));
    let halves = history.transactions.iter().map(|half| (half.value, (QUEUES, half.half == End::Fail)));
    let sent: BTreeMap<u64, (u32, bool)> = appends.chain(delayed).chain(halves).collect();
    for (queue, offset, value, who) in places(history) {
        let what = match sent.get(&value) {
            None => "was never sent".to_owned(),
            Some((_, true)) => "was refused".to_owned(),
            Some((to, _)) if *to != queue => format!("was sent to queue {to}"),
            Some(_) => continue,
        };
        return Err(format!("queue {queue} offset {offset} ({who}): {value} {what}"));
    }
    let is_refused = |value: &u64| sent.get(value).is_some_and(|(_, is_refused)| *is_refused);
    match history.stored.iter().find(|(value, _)| is_refused(value)) {
        Some((value, index)) => Err(format!("entry {index} held {value}, which was refused")),
        None => Ok(()),
    }
}

/// What was sent once is at most in one entry and at one place, and was never seen at another.
fn nothing_is_twice(history: &History) -> Verdict {
    let repeated: BTreeSet<u64> = sent_in(history, |copies| copies != Copies::One);
    let mut entries: BTreeMap<u64, u64> = BTreeMap::new();
    for (value, index) in history.stored.iter().filter(|(value, _)| !repeated.contains(value)) {
        if let Some(other) = entries.insert(*value, *index) {
            return Err(format!("value {value}, sent once, was in entry {other} and in entry {index}"));
        }
    }
    at_one_place(history, "sent once", |value| !repeated.contains(&value))
}

/// What was sent again under its unique key is one message, and whoever sent it was told that one's place.
fn repeated_sends_are_one(history: &History) -> Verdict {
    let recognised: BTreeSet<u64> = sent_in(history, |copies| copies == Copies::Recognised);
    at_one_place(history, "sent again under one key", |value| recognised.contains(&value))
}

fn sent_in(history: &History, wanted: impl Fn(Copies) -> bool) -> BTreeSet<u64> {
    history.appends.iter().filter(|append| wanted(append.copies)).map(|append| append.value).collect()
}

fn at_one_place(history: &History, how: &str, wanted: impl Fn(u64) -> bool) -> Verdict {
    let mut seen: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
    for (queue, offset, value, who) in places(history).filter(|(_, _, value, _)| wanted(*value)) {
        let place = *seen.entry(value).or_insert((queue, offset));
        if place != (queue, offset) {
            return Err(format!(
                "value {value}, {how}, is at queue {queue} offset {offset} ({who}) and at queue {} offset {}",
                place.0, place.1
            ));
        }
    }
    Ok(())
}

/// A reader sees every offset from the one it asks for on, none left out, none again. It asks for what follows what it was
/// shown, which nobody may say does not exist, unless it was let go.
fn reads_go_on(history: &History) -> Verdict {
    for pull in &history.pulls {
        if let Some(moved) = pull.moved
            && (moved < pull.from || !history.is_trimmed)
        {
            return Err(format!(
                "reader {} of queue {} asked for offset {}, behind what it was shown, and was told to go on at {moved}",
                pull.reader, pull.queue, pull.from
            ));
        }
        let mut expected = pull.from;
        for (offset, value) in &pull.shown {
            // What was delayed lies where it was stored: it may be let go as soon as it is visible, before what is behind it.
            let may_be_left_out = history.is_trimmed && pull.queue == QUEUES && *offset > expected;
            if *offset != expected && !may_be_left_out {
                return Err(format!(
                    "reader {} of queue {}: expected offset {expected}, was shown {offset} (value {value})",
                    pull.reader, pull.queue
                ));
            }
            expected = offset + 1;
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
            let there = queues.last().is_some_and(|held| held.values.contains(&delayed.value));
            let is_trimmed = history.is_trimmed && queues.last().is_some_and(|held| held.first > 0);
            let may_be_gone = matches!(delayed.recall, Recall::Done | Recall::Unknown);
            if !there && !is_trimmed && !may_be_gone && matches!(delayed.end, End::Ok(..)) {
                return Err(format!("value {}, delayed, acknowledged, is not on {replica}", delayed.value));
            }
        }
    }
    Ok(())
}

/// What a broker has said to be recalled is on no replica, and nobody has seen it.
fn recalled_is_never_seen(history: &History) -> Verdict {
    for delayed in history.delayed.iter().filter(|delayed| delayed.recall == Recall::Done) {
        let value = delayed.value;
        let held =
            history.replicas.iter().find(|(_, queues)| queues.last().is_some_and(|held| held.values.contains(&value)));
        if let Some((replica, _)) = held {
            return Err(format!("value {value} was recalled, and is on {replica}"));
        }
        if history.seen_ms.contains_key(&value) {
            return Err(format!("value {value} was recalled, and seen"));
        }
    }
    Ok(())
}

/// Whatever consumers store that had the queue before, a group is where it was moved until somebody goes on from there.
fn moves_hold(history: &History) -> Verdict {
    match history.moves.iter().find(|one| one.read != one.to) {
        Some(Move { group, to, read, .. }) => Err(format!("{group} was moved to {to}, and {read} was read after that")),
        None => Ok(()),
    }
}

/// Nobody sees the value of a transaction before somebody may have said that it is committed, or if it was rolled back; and all
/// that was committed is there in the end. A broker says one of both.
fn transactions_end_once(history: &History) -> Verdict {
    let seen = |value: u64| {
        let held = history.replicas.values().filter_map(|queues| queues.last());
        history.seen_ms.contains_key(&value) || held.into_iter().any(|held| held.values.contains(&value))
    };
    for transaction in &history.transactions {
        let value = transaction.value;
        if transaction.is_committed && transaction.is_rolled_back {
            return Err(format!("value {value} is committed, and rolled back"));
        }
        if transaction.is_rolled_back && seen(value) {
            return Err(format!("value {value} was seen, and rolled back"));
        }
        match (transaction.committed_ms, history.seen_ms.get(&value)) {
            (None, _) if seen(value) => return Err(format!("value {value} was seen, and never committed")),
            (Some(committed), Some(seen)) if *seen < committed => {
                return Err(format!("value {value} was seen {} ms before it was committed", committed - seen));
            }
            _ => {}
        }
        for (replica, queues) in &history.replicas {
            let there = queues.last().is_some_and(|held| held.values.contains(&value));
            let is_trimmed = history.is_trimmed && queues.last().is_some_and(|held| held.first > 0);
            if transaction.is_committed && !there && !is_trimmed {
                return Err(format!("value {value}, committed, is not on {replica}"));
            }
        }
    }
    Ok(())
}

/// All replicas show the same, as far as retention has left it to both.
fn replicas_are_equal(history: &History) -> Verdict {
    for ((one, a), (other, b)) in history.replicas.iter().zip(history.replicas.iter().skip(1)) {
        for (queue, (a, b)) in a.iter().zip(b).enumerate() {
            let (begin, end) = (a.first.max(b.first), a.end().max(b.end()));
            if let Some(at) = (begin..end).find(|at| a.at(*at) != b.at(*at)) {
                return Err(format!("{one} and {other} differ in queue {queue} from offset {at} on"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::history::{Append, Delayed, Held, Moved, Pull, Transaction};
    use super::*;

    fn append(value: u64, invoked: Moment, end: End<u64>) -> Append {
        Append { queue: 0, value, copies: Copies::One, invoked, end }
    }

    fn held(values: &[u64]) -> Held {
        Held { first: 0, values: values.to_vec() }
    }

    /// The first queue as given, and the last, that of the delayed.
    fn replica(first: Held, delayed: &[u64]) -> Vec<Held> {
        let mut queues = vec![Held::default(); QUEUES as usize + 1];
        (queues[0], queues[QUEUES as usize]) = (first, held(delayed));
        queues
    }

    fn pull(from: u64, shown: &[(u64, u64)]) -> Pull {
        Pull { reader: 0, queue: 0, from, shown: shown.to_vec(), moved: None }
    }

    /// 10 and 11 acknowledged one after the other; both replicas as given.
    fn history(one: &[u64], other: &[u64]) -> History {
        let replicas = [("a", one), ("b", other)];
        History {
            appends: vec![append(10, 1, End::Ok(0, 2)), append(11, 3, End::Ok(1, 4)), append(12, 5, End::Info)],
            replicas: replicas.map(|(name, values)| (name.to_owned(), replica(held(values), &[]))).into(),
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
        let mut shown = history(&[10, 11], &[10, 11]);
        shown.pulls = vec![pull(2, &[(2, 10)])];
        assert!(told(&shown).contains(&"nothing is stored twice"), "seen once, and trimmed");
        let mut let_go = history(&[10, 11], &[10, 11]);
        let_go.stored = vec![(10, 5), (11, 6)];
        assert_eq!(judge(&let_go), []);
        let_go.stored.push((10, 7));
        assert_eq!(told(&let_go), ["nothing is stored twice"], "nobody saw the other one before retention took it");
        let_go.appends[0].copies = Copies::Any;
        assert_eq!(judge(&let_go), []);
        let_go.appends[2].end = End::Fail;
        let_go.stored.push((12, 8));
        assert_eq!(told(&let_go), ["nothing is made up"], "refused, stored, and let go before anybody saw it");
        let mut repeated = history(&[10, 11, 10], &[10, 11, 10]);
        repeated.appends[0].copies = Copies::Any;
        assert_eq!(told(&repeated), <[&str; 0]>::default());
        let one = ["a message sent again is one message"];
        repeated.appends[0].copies = Copies::Recognised;
        assert_eq!(told(&repeated), one);
        let mut told_elsewhere = history(&[10, 11], &[10, 11]);
        told_elsewhere.appends[0].copies = Copies::Recognised;
        assert_eq!(judge(&told_elsewhere), []);
        let second = append(10, 6, End::Ok(2, 7));
        told_elsewhere.appends.push(Append { copies: Copies::Recognised, ..second });
        assert!(told(&told_elsewhere).contains(&one[0]), "its sender was told another place");
    }

    #[test]
    fn bad_pulls_are_told() {
        let mut pulled = history(&[10, 11], &[10, 11]);
        pulled.pulls = vec![pull(0, &[(0, 10), (1, 11)])];
        assert_eq!(judge(&pulled), []);
        pulled.pulls[0].from = 1;
        assert_eq!(told(&pulled), ["reads go on where they were"]);
        pulled.pulls = vec![pull(2, &[(2, 12)])];
        assert_eq!(told(&pulled), ["nothing acknowledged is lost"], "shown, and gone again");
        pulled.pulls = vec![Pull { moved: Some(1), ..pull(2, &[]) }];
        assert_eq!(told(&pulled), ["reads go on where they were"], "told that what it was shown is not there");
        pulled.pulls = vec![Pull { moved: Some(2), ..pull(0, &[]) }];
        assert_eq!(told(&pulled), ["reads go on where they were"], "nothing was let go");
        pulled.is_trimmed = true;
        assert_eq!(judge(&pulled), []);
    }

    #[test]
    fn what_retention_lets_go_may_be_gone_and_nothing_else() {
        let mut trimmed = history(&[], &[]);
        for queues in trimmed.replicas.values_mut() {
            queues[0] = Held { first: 1, values: vec![11] };
        }
        let lost = "nothing acknowledged is lost";
        assert_eq!(told(&trimmed), [lost]);
        trimmed.is_trimmed = true;
        assert_eq!(judge(&trimmed), []);
        // One replica is further than the other.
        trimmed.replicas.insert("a".to_owned(), replica(held(&[10, 11]), &[]));
        assert_eq!(judge(&trimmed), []);
        trimmed.replicas.insert("a".to_owned(), replica(Held { first: 2, values: Vec::new() }, &[]));
        assert_eq!(judge(&trimmed), []);
        trimmed.replicas.insert("a".to_owned(), replica(Held { first: 1, values: Vec::new() }, &[]));
        assert!(told(&trimmed).contains(&lost), "its end is gone, not its beginning");
        trimmed.replicas.insert("a".to_owned(), replica(held(&[10, 12]), &[]));
        assert!(told(&trimmed).contains(&"replicas are equal"));
    }

    #[test]
    fn what_is_recalled_is_nowhere_and_what_was_too_late_is_there() {
        let mut recalled = history(&[10, 11], &[10, 11]);
        let (end, due_ms) = (End::Ok((), 9), 100);
        recalled.delayed = vec![Delayed { value: 7, due_ms, end, recall: Recall::Done }];
        assert_eq!(judge(&recalled), [], "it is nowhere");
        recalled.delayed[0].recall = Recall::Unknown;
        assert_eq!(judge(&recalled), []);
        recalled.delayed[0].recall = Recall::TooLate;
        assert_eq!(told(&recalled), ["nothing delayed is early or lost"]);
        recalled.replicas.values_mut().for_each(|queues| queues[QUEUES as usize] = held(&[7]));
        assert_eq!(judge(&recalled), []);
        recalled.delayed[0].recall = Recall::Done;
        assert_eq!(told(&recalled), ["what is recalled is never seen"]);
    }

    #[test]
    fn a_group_is_where_it_was_moved_to() {
        let mut moved = history(&[10, 11], &[10, 11]);
        let at = |read| Move { group: "g".to_owned(), how: Moved::Reset, to: 3, read };
        moved.moves = vec![at(3), at(3)];
        assert_eq!(judge(&moved), []);
        moved.moves.push(at(4));
        assert_eq!(told(&moved), ["a group is where it was moved"]);
    }

    #[test]
    fn a_delayed_message_is_neither_early_nor_lost() {
        let mut delayed = history(&[10, 11], &[10, 11]);
        let recall = Recall::NotAsked;
        delayed.delayed = vec![Delayed { value: 7, due_ms: 100, end: End::Ok((), 9), recall }];
        assert_eq!(told(&delayed), ["nothing delayed is early or lost"]);
        for queues in delayed.replicas.values_mut() {
            queues[QUEUES as usize] = held(&[7]);
        }
        delayed.seen_ms = [(7, 100)].into();
        assert_eq!(judge(&delayed), []);
        delayed.seen_ms = [(7, 99)].into();
        assert_eq!(told(&delayed), ["nothing delayed is early or lost"]);
        delayed.clocks_agree = false;
        assert_eq!(judge(&delayed), []);
        let mut show = |values: &[u64]| {
            delayed.replicas.values_mut().for_each(|queues| queues[QUEUES as usize] = held(values));
            told(&delayed)
        };
        assert_eq!(show(&[7, 7]), ["nothing is stored twice"]);
        assert_eq!(show(&[7, 8]), ["nothing is made up"]);
        delayed.delayed[0].end = End::Fail;
        assert_eq!(told(&delayed), ["nothing is made up"], "refused, and there");
    }

    #[test]
    fn a_transaction_that_ends_twice_or_otherwise_is_told() {
        let once = "a transaction ends once";
        let transaction = |committed_ms, is_committed, is_rolled_back| {
            let half = Transaction { value: 7, half: End::Ok((), 9), committed_ms, is_committed, is_rolled_back };
            History { transactions: vec![half], ..history(&[10, 11], &[10, 11]) }
        };
        let show = |history: &mut History, values: &[u64], seen_ms: Option<u64>| {
            history.replicas.values_mut().for_each(|queues| queues[QUEUES as usize] = held(values));
            history.seen_ms = seen_ms.map(|seen| (7, seen)).into_iter().collect();
            told(history)
        };
        let none = <[&str; 0]>::default();
        let mut silent = transaction(None, false, false);
        assert_eq!(show(&mut silent, &[], None), none);
        assert_eq!(show(&mut silent, &[7], None), [once], "nobody has committed it");
        assert_eq!(show(&mut silent, &[], Some(5)), [once], "seen, and gone again");
        let mut committed = transaction(Some(100), true, false);
        assert_eq!(show(&mut committed, &[7], Some(100)), none);
        assert_eq!(show(&mut committed, &[7], Some(99)), [once], "half visible");
        assert_eq!(show(&mut committed, &[], None), [once], "lost");
        assert_eq!(show(&mut committed, &[7, 7], Some(100)), ["nothing is stored twice"]);
        let mut raced = transaction(Some(100), false, true);
        assert_eq!(show(&mut raced, &[], None), none);
        assert_eq!(show(&mut raced, &[7], Some(100)), [once], "rolled back, and there");
        assert_eq!(show(&mut transaction(Some(100), true, true), &[7], Some(100)), [once], "two winners");
        let mut unknown = transaction(Some(100), false, false);
        assert_eq!(show(&mut unknown, &[7], Some(100)), none);
        assert_eq!(show(&mut unknown, &[], None), none);
        unknown.transactions[0].half = End::Fail;
        assert_eq!(show(&mut unknown, &[7], Some(100)), ["nothing is made up"], "refused, and there");
    }
}

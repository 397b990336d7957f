//! Clause "visibility": what a pull shows.
//!
//! - `G1a`: a value whose send had failed.
//! - `unexpected`: a value that nobody had sent by then, or to another queue.
//! - `nonmonotonic-poll`, `poll-skip`: from one poll of a session to the next, back or over an offset that is known to hold
//!   a value; `int-nonmonotonic-poll`, `int-poll-skip`: the same within one poll.
//! - `stale-max-offset`: the end of a queue, asked for after something beyond it had been acknowledged, read or told.
//!
//! A session is what one process polls between two assignments. O(n log n).

use std::collections::BTreeMap;

use super::log::{Queue, Read, Source, malformed, queue_of};
use super::{Checked, Evidence, Verdict};
use crate::history::edn::Edn;
use crate::history::{Call, Malformed, Outcome, Position};

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let Evidence { history, log, .. } = *evidence;
    let asked = history.calls_of("max-offset").any(|call| call.outcome() == Outcome::Ok);
    if log.reads.is_empty() && !asked {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    for read in &log.reads {
        match read.send.map(|send| &log.sends[send as usize]) {
            Some(send) if send.outcome == Outcome::Fail => {
                verdict.anomaly("G1a", || Edn::map([("send", send.show(history)), ("read", read.show(history))]))
            }
            Some(send) if send.queue == read.queue && send.start < read.at => {}
            _ => verdict.anomaly("unexpected", || read.show(history)),
        }
    }
    sessions(evidence, &mut verdict);
    ends(evidence, &mut verdict)?;
    verdict.figure("read-count", log.reads.len());
    Ok(Some(verdict))
}

fn sessions(evidence: &Evidence<'_>, verdict: &mut Verdict) {
    let known = evidence.log.known_offsets();
    let mut positions: BTreeMap<(Source, Queue), &Read> = BTreeMap::new();
    for read in evidence.log.reads.iter().filter(|read| matches!(read.source, Source::Session(_))) {
        let Some(before) = positions.insert((read.source, read.queue), read) else { continue };
        let inside = before.at == read.at;
        let name = if read.offset <= before.offset {
            if inside { "int-nonmonotonic-poll" } else { "nonmonotonic-poll" }
        } else if skips(&known[&read.queue], before.offset, read.offset) {
            if inside { "int-poll-skip" } else { "poll-skip" }
        } else {
            continue;
        };
        let show = || Edn::map([("before", before.show(evidence.history)), ("after", read.show(evidence.history))]);
        verdict.anomaly(name, show);
    }
}

/// Whether an offset between the two is known to hold a value. Both are known themselves.
fn skips(known: &[u64], before: u64, after: u64) -> bool {
    let next = known.partition_point(|offset| *offset <= before);
    known[next] < after
}

/// Ends that were told: a sweep as for appends.
fn ends(evidence: &Evidence<'_>, verdict: &mut Verdict) -> Result<(), Malformed> {
    let Evidence { history, log, .. } = *evidence;
    let mut events: Vec<(Position, Queue, Event<'_>)> = Vec::new();
    for call in history.calls_of("max-offset").filter(|call| call.outcome() == Outcome::Ok) {
        let Some(completion) = call.completion else { continue };
        let told = match completion.value.as_vector() {
            Some([queue, Edn::Int(end)]) => queue_of(queue).zip(u64::try_from(*end).ok()),
            _ => None,
        };
        let (queue, end) = told.ok_or_else(|| malformed(completion, "[queue end]"))?;
        events.push((call.start, queue, Event::Asked(call, end)));
        events.push((call.completed, queue, Event::AtLeast(end)));
    }
    if events.is_empty() {
        return Ok(());
    }
    let acknowledged = log.acknowledged().filter_map(|send| Some((send.end, send.queue, send.offset?)));
    let read = log.reads.iter().map(|read| (read.at, read.queue, read.offset));
    events.extend(acknowledged.chain(read).map(|(at, queue, offset)| (at, queue, Event::AtLeast(offset + 1))));
    events.sort_by_key(|(at, ..)| *at);
    let mut ends: BTreeMap<Queue, u64> = BTreeMap::new();
    for (_, queue, event) in events {
        let known = ends.entry(queue).or_insert(0);
        match event {
            Event::AtLeast(end) => *known = end.max(*known),
            Event::Asked(call, end) if end < *known => verdict.anomaly("stale-max-offset", || {
                let told = call.completion.map(|completion| completion.summary());
                Edn::map([("at-least", (*known).into()), ("told", told.into())])
            }),
            Event::Asked(..) => {}
        }
    }
    Ok(())
}

enum Event<'a> {
    AtLeast(u64),
    Asked(Call<'a>, u64),
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::Validity;
    use crate::checker::testing::{anomalies, validity};

    const SENT: &str = r#"
        [0 :invoke :send [[:send 1 10]]]
        [0 :ok     :send [[:send 1 [0 10]]]]
        [0 :invoke :send [[:send 1 11]]]
        [0 :ok     :send [[:send 1 [1 11]]]]
        [0 :invoke :send [[:send 1 12]]]
        [0 :fail   :send [[:send 1 12]]]
        [0 :invoke :send [[:send 1 13]]]
        [0 :info   :send [[:send 1 13]]]
        [1 :invoke :send [[:send 1 14]]]
        [1 :ok     :send [[:send 1 [3 14]]]]
    "#;

    fn then(more: &str) -> String {
        format!("{SENT}{more}")
    }

    /// One poll after the other by process 5.
    fn polled(polls: &[&str]) -> String {
        let poll = |places: &&str| format!("[5 :invoke :poll [[:poll]]] [5 :ok :poll [[:poll {{1 {places}}}]]]");
        then(&polls.iter().map(poll).collect::<String>())
    }

    #[test]
    fn sessions_go_on_without_a_gap() {
        assert_eq!(validity(check, &polled(&["[[0 10] [1 11]]", "[]", "[[2 13] [3 14]]"])), Validity::Valid);
        assert_eq!(validity(check, &polled(&["[[1 11]]", "[[3 14]]"])), Validity::Valid, "nobody knows offset 2");
        let anew = r#"
            [5 :invoke :poll [[:poll]]] [5 :ok :poll [[:poll {1 [[0 10] [1 11]]}]]]
            [5 :invoke :assign [1]] [5 :ok :assign [1]]
            [5 :invoke :poll [[:poll]]] [5 :ok :poll [[:poll {1 [[0 10] [1 11]]}]]]
            [6 :invoke :poll [[:poll]]] [6 :info :poll [[:poll]]]
            [7 :invoke :max-offset [1 nil]]
            [1 :invoke :send [[:send 1 15]]]
            [1 :ok     :send [[:send 1 [4 15]]]]
            [7 :ok     :max-offset [1 4]]
        "#;
        assert_eq!(validity(check, &then(anew)), Validity::Valid);
    }

    #[test]
    fn g1a() {
        assert_eq!(anomalies(check, &polled(&["[[2 12]]"])), [("G1a", 1)]);
    }

    #[test]
    fn unexpected() {
        assert_eq!(anomalies(check, &polled(&["[[2 99]]"])), [("unexpected", 1)], "never sent");
        let early = "[5 :invoke :poll [[:poll]]] [5 :ok :poll [[:poll {1 [[2 15]]}]]] [1 :invoke :send [[:send 1 15]]]";
        assert_eq!(anomalies(check, &then(early)), [("unexpected", 1)], "not yet sent");
        let elsewhere = "[5 :invoke :poll [[:poll]]] [5 :ok :poll [[:poll {2 [[0 10]]}]]]";
        assert_eq!(anomalies(check, &then(elsewhere)), [("unexpected", 1)], "sent to another queue");
    }

    #[test]
    fn nonmonotonic_poll() {
        assert_eq!(anomalies(check, &polled(&["[[0 10] [1 11]]", "[[0 10]]"])), [("nonmonotonic-poll", 1)], "back");
        assert_eq!(anomalies(check, &polled(&["[[1 11]]", "[[1 11]]"])), [("nonmonotonic-poll", 1)], "again");
        assert_eq!(anomalies(check, &polled(&["[[1 11] [0 10]]"])), [("int-nonmonotonic-poll", 1)], "within");
    }

    #[test]
    fn poll_skip() {
        assert_eq!(anomalies(check, &polled(&["[[0 10]]", "[[3 14]]"])), [("poll-skip", 1)]);
        assert_eq!(anomalies(check, &polled(&["[[0 10] [3 14]]"])), [("int-poll-skip", 1)], "within");
    }

    #[test]
    fn stale_max_offset() {
        let told = |end: u32| format!("[7 :invoke :max-offset [1 nil]] [7 :ok :max-offset [1 {end}]]");
        assert_eq!(anomalies(check, &then(&told(3))), [("stale-max-offset", 1)], "acknowledged");
        assert_eq!(anomalies(check, &then(&(told(9) + &told(8)))), [("stale-max-offset", 1)], "told before");
    }
}

//! Clause "append": appends to a queue are linearizable.
//!
//! Offsets are given, so nothing has to be searched: one sweep over the history keeps, for each queue, the greatest offset
//! that is known to be taken at that point, and whatever is invoked after that must have a greater one. O(n log n).
//!
//! - `nonmonotonic-send`: one process was given a smaller offset than by its send before.
//! - `G0-realtime`: the same between two processes.
//! - `G1c-realtime`: a value was sent after a greater offset had already been read.
//! - `duplicate-offset`: two acknowledgements with one offset.

use std::collections::BTreeMap;

use super::log::{Queue, Read, Send};
use super::{Checked, Evidence, Verdict};
use crate::history::edn::Edn;
use crate::history::{Outcome, Position};

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let Evidence { history, log, .. } = *evidence;
    if log.acknowledged().next().is_none() {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    let placed = placed(evidence);
    let mut floors: BTreeMap<Queue, Witness<'_>> = BTreeMap::new();
    for event in events(evidence, &placed) {
        match event.what {
            What::Taken(witness) => {
                let floor = floors.entry(witness.queue()).or_insert(witness);
                if witness.offset() > floor.offset() {
                    *floor = witness;
                }
            }
            What::Sent(send, offset) => {
                let Some(floor) = floors.get(&send.queue).filter(|floor| floor.offset() >= offset) else { continue };
                let process = history.at(send.start).process;
                let name = match floor {
                    Witness::Read(_) => "G1c-realtime",
                    Witness::Acknowledged(before, _) if history.at(before.start).process == process => {
                        "nonmonotonic-send"
                    }
                    Witness::Acknowledged(..) => "G0-realtime",
                };
                let before = match floor {
                    Witness::Acknowledged(before, _) => before.show(history),
                    Witness::Read(before) => before.show(history),
                };
                verdict.anomaly(name, || Edn::map([("before", before), ("after", send.show(history))]));
            }
        }
    }
    let mut taken: Vec<_> = log.acknowledged().filter_map(|send| Some((send.queue, send.offset?, send))).collect();
    taken.sort_unstable_by_key(|(queue, offset, send)| (*queue, *offset, send.start));
    for pair in taken.windows(2).filter(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1)) {
        verdict.anomaly("duplicate-offset", || Edn::vector([pair[0].2.show(history), pair[1].2.show(history)]));
    }
    verdict.figure("acknowledged-count", log.acknowledged().count());
    verdict.figure("unknown-count", log.sends.iter().filter(|send| send.outcome == Outcome::Info).count());
    Ok(Some(verdict))
}

/// The offset of each send: as acknowledged, or where its value was first read.
fn placed(evidence: &Evidence<'_>) -> Vec<Option<u64>> {
    let mut placed: Vec<Option<u64>> = evidence.log.sends.iter().map(|send| send.offset).collect();
    for read in &evidence.log.reads {
        if let Some(send) = read.send
            && evidence.log.sends[send as usize].queue == read.queue
        {
            placed[send as usize].get_or_insert(read.offset);
        }
    }
    placed
}

/// Why an offset is known to be taken.
#[derive(Clone, Copy)]
enum Witness<'a> {
    Acknowledged(&'a Send, u64),
    Read(&'a Read),
}

impl Witness<'_> {
    fn queue(&self) -> Queue {
        match self {
            Witness::Acknowledged(send, _) => send.queue,
            Witness::Read(read) => read.queue,
        }
    }

    fn offset(&self) -> u64 {
        match self {
            Witness::Acknowledged(_, offset) => *offset,
            Witness::Read(read) => read.offset,
        }
    }
}

struct Event<'a> {
    at: Position,
    what: What<'a>,
}

enum What<'a> {
    Taken(Witness<'a>),
    Sent(&'a Send, u64),
}

fn events<'a>(evidence: &Evidence<'a>, placed: &[Option<u64>]) -> Vec<Event<'a>> {
    let mut events = Vec::with_capacity(2 * placed.len());
    for (send, offset) in evidence.log.sends.iter().zip(placed) {
        let Some(offset) = *offset else { continue };
        events.push(Event { at: send.start, what: What::Sent(send, offset) });
        if let (Outcome::Ok, Some(offset)) = (send.outcome, send.offset) {
            events.push(Event { at: send.end, what: What::Taken(Witness::Acknowledged(send, offset)) });
        }
    }
    // Of one reading the greatest offset of each queue is enough.
    let mut reads = evidence.log.reads.iter().peekable();
    while let Some(read) = reads.next() {
        let last =
            reads.peek().is_none_or(|next| (next.at, next.queue) != (read.at, read.queue) || next.offset < read.offset);
        if last {
            events.push(Event { at: read.at, what: What::Taken(Witness::Read(read)) });
        }
    }
    events.sort_by_key(|event| event.at);
    events
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::Validity;
    use crate::checker::testing::{anomalies, validity};

    #[test]
    fn concurrent_appends_may_be_placed_either_way_and_the_unknown_anywhere() {
        let good = r#"
            [0 :invoke :send [[:send 1 10]]]
            [1 :invoke :send [[:send 1 11]]]
            [2 :invoke :send [[:send 1 12]]]
            [0 :ok     :send [[:send 1 [5 10]]]]
            [1 :ok     :send [[:send 1 [3 11]]]]
            [2 :info   :send [[:send 1 12]]]
            [3 :invoke :send [[:send 1 13]]]
            [3 :ok     :send [[:send 1 [7 13]]]]
            [3 :invoke :poll [[:poll]]]
            [3 :ok     :poll [[:poll {1 [[3 11] [4 12] [5 10] [7 13]]}]]]
            [3 :invoke :send [[:send 2 14]]]
            [3 :ok     :send [[:send 2 [0 14]]]]
        "#;
        assert_eq!(validity(check, good), Validity::Valid);
    }

    #[test]
    fn nonmonotonic_send() {
        let bad = r#"
            [0 :invoke :send [[:send 1 10]]]
            [0 :ok     :send [[:send 1 [5 10]]]]
            [0 :invoke :send [[:send 1 11]]]
            [0 :ok     :send [[:send 1 [4 11]]]]
        "#;
        assert_eq!(anomalies(check, bad), [("nonmonotonic-send", 1)]);
    }

    #[test]
    fn order_between_processes() {
        let bad = r#"
            [0 :invoke :send [[:send 1 10]]]
            [0 :ok     :send [[:send 1 [5 10]]]]
            [1 :invoke :send [[:send 1 11]]]
            [1 :ok     :send [[:send 1 [4 11]]]]
        "#;
        assert_eq!(anomalies(check, bad), [("G0-realtime", 1)]);
    }

    #[test]
    fn an_append_of_unknown_outcome_has_its_place_from_who_read_it() {
        let bad = r#"
            [0 :invoke :send [[:send 1 10]]]
            [0 :ok     :send [[:send 1 [5 10]]]]
            [1 :invoke :send [[:send 1 11]]]
            [1 :info   :send [[:send 1 11]]]
            [2 :invoke :poll [[:poll]]]
            [2 :ok     :poll [[:poll {1 [[4 11] [5 10]]}]]]
        "#;
        assert_eq!(anomalies(check, bad), [("G0-realtime", 1)]);
    }

    #[test]
    fn what_was_read_is_placed() {
        let bad = r#"
            [0 :invoke :send [[:send 1 10]]]
            [2 :invoke :poll [[:poll]]]
            [2 :ok     :poll [[:poll {1 [[5 10]]}]]]
            [1 :invoke :send [[:send 1 11]]]
            [1 :ok     :send [[:send 1 [4 11]]]]
            [0 :ok     :send [[:send 1 [5 10]]]]
        "#;
        assert_eq!(anomalies(check, bad), [("G1c-realtime", 1)]);
    }

    #[test]
    fn one_offset_twice() {
        let bad = r#"
            [0 :invoke :send [[:send 1 10]]]
            [1 :invoke :send [[:send 1 11]]]
            [0 :ok     :send [[:send 1 [5 10]]]]
            [1 :ok     :send [[:send 1 [5 11]]]]
        "#;
        assert_eq!(anomalies(check, bad), [("duplicate-offset", 1)]);
    }
}

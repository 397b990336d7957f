//! Clause "loss": nothing acknowledged is lost.
//!
//! Two ways to see it. While a run goes on, as Jepsen's kafka workload does: some consumer read past an offset that had been
//! acknowledged, and nobody ever read what should be there. At the end: every replica shows every acknowledged value. Both
//! O(n log n). Delayed and transactional messages have clauses of their own.
//!
//! - `lost-write`: nobody ever showed it, though a later offset was read; or no replica shows it at the end.
//! - `lost-on-replica`: others show it, one replica does not.
//! - `hole`: a replica shows an offset and a later one, and nothing between.
//!
//! Without a final read of each replica for each queue the verdict is unknown.

use std::collections::BTreeMap;

use super::log::{Log, Queue, Read, Send, Source};
use super::{Checked, Evidence, Verdict};
use crate::history::Outcome;
use crate::history::edn::Edn;

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let Evidence { history, log, .. } = *evidence;
    let owed = |send: &Send| send.outcome == Outcome::Ok && send.is_plain();
    if !log.sends.iter().any(owed) {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    let shown = Shown::of(log);
    let spans = spans(log);
    let mut unread = 0_u64;
    for (k, send) in log.sends.iter().enumerate().filter(|(_, send)| owed(send)) {
        let missing = || missing_on(log, &shown, k);
        let passed = || send.offset.is_some_and(|offset| within(spans.get(&send.queue), offset));
        let gone = missing().next().is_some() && missing().count() == asked(log, k).count();
        unread += u64::from(!shown.anywhere[k]);
        if gone || !shown.anywhere[k] && passed() {
            verdict.anomaly("lost-write", || send.show(history));
        } else if missing().next().is_some() {
            verdict.anomaly("lost-on-replica", || {
                let missing = missing().map(|node| log.nodes[node].0.as_str());
                Edn::map([("missing", Edn::vector(missing)), ("send", send.show(history))])
            });
        }
    }
    holes(evidence, &mut verdict);
    unread_places(evidence, owed, &mut verdict);
    verdict.figure("acknowledged-count", log.sends.iter().filter(|send| owed(send)).count());
    verdict.figure("unread-count", unread);
    let recovered =
        log.sends.iter().zip(&shown.anywhere).filter(|(send, read)| send.outcome == Outcome::Info && **read);
    verdict.figure("recovered-count", recovered.count());
    verdict.figure("replica-count", log.nodes.len());
    Ok(Some(verdict))
}

/// What was not read of the queues of those sends, so that nothing can be said of it.
pub(super) fn unread_places(evidence: &Evidence<'_>, owed: impl Fn(&Send) -> bool, verdict: &mut Verdict) {
    let Evidence { log, bounds, .. } = *evidence;
    let mut owing: Vec<Queue> = log.sends.iter().filter(|send| owed(send)).map(|send| send.queue).collect();
    owing.sort_unstable();
    owing.dedup();
    for (node, queues) in &log.nodes {
        for queue in owing.iter().filter(|queue| !queues.contains(queue)) {
            verdict.unknown(format!("no final read of queue {queue} on {node}"));
        }
    }
    for node in bounds.nodes.iter().filter(|node| log.nodes.iter().all(|(read, _)| read != *node)) {
        verdict.unknown(format!("no final read on {node}"));
    }
    for node in &log.cut_short {
        verdict.unknown(format!("the final read of {} did not succeed", log.nodes[*node as usize].0));
    }
    if log.nodes.is_empty() {
        verdict.unknown("no final read");
    }
}

/// The replicas that were read to the end of the send's queue, by index.
fn asked(log: &Log, send: usize) -> impl Iterator<Item = usize> {
    let queue = log.sends[send].queue;
    read_through(log).filter(move |node| log.nodes[*node].1.contains(&queue))
}

/// Those of them that do not show it.
pub(super) fn missing_on(log: &Log, shown: &Shown, send: usize) -> impl Iterator<Item = usize> {
    asked(log, send).filter(move |node| !shown.on[*node][send])
}

/// The replicas that were read to their end, by index.
fn read_through(log: &Log) -> impl Iterator<Item = usize> {
    (0..log.nodes.len()).filter(|node| !log.cut_short.contains(&(*node as u32)))
}

/// Of each send, whether anybody showed its value, and which replicas did at the end.
pub(super) struct Shown {
    pub anywhere: Vec<bool>,
    pub on: Vec<Vec<bool>>,
}

impl Shown {
    pub fn of(log: &Log) -> Shown {
        let none = vec![false; log.sends.len()];
        let mut shown = Shown { on: vec![none.clone(); log.nodes.len()], anywhere: none };
        for read in &log.reads {
            let Some(send) = read.send.filter(|send| log.sends[*send as usize].queue == read.queue) else { continue };
            shown.anywhere[send as usize] = true;
            if let Source::Replica(node) = read.source {
                shown.on[node as usize][send as usize] = true;
            }
        }
        shown
    }
}

/// Of each queue the ranges of offsets that some session read through, in order and disjoint.
fn spans(log: &Log) -> BTreeMap<Queue, Vec<(u64, u64)>> {
    let mut sessions: BTreeMap<(Queue, Source), (u64, u64)> = BTreeMap::new();
    for Read { queue, offset, source, .. } in &log.reads {
        let span = sessions.entry((*queue, *source)).or_insert((*offset, *offset));
        *span = (span.0.min(*offset), span.1.max(*offset));
    }
    let mut spans: BTreeMap<Queue, Vec<(u64, u64)>> = BTreeMap::new();
    for ((queue, _), span) in sessions {
        spans.entry(queue).or_default().push(span);
    }
    for spans in spans.values_mut() {
        spans.sort_unstable();
        spans.dedup_by(|next, last| {
            let joined = next.0 <= last.1;
            if joined {
                last.1 = last.1.max(next.1);
            }
            joined
        });
    }
    spans
}

fn within(spans: Option<&Vec<(u64, u64)>>, offset: u64) -> bool {
    let Some(spans) = spans else { return false };
    let before = spans.partition_point(|span| span.0 <= offset);
    before > 0 && offset <= spans[before - 1].1
}

/// Final reads are dense: what a replica once held stands without a gap.
fn holes(evidence: &Evidence<'_>, verdict: &mut Verdict) {
    let replica = |read: &&Read| matches!(read.source, Source::Replica(_));
    let mut reads: Vec<&Read> = evidence.log.reads.iter().filter(replica).collect();
    reads.sort_unstable_by_key(|read| (read.source, read.queue, read.offset, read.at));
    for pair in reads.windows(2) {
        let [before, after] = [pair[0], pair[1]];
        if (before.source, before.queue) == (after.source, after.queue) && after.offset > before.offset + 1 {
            verdict.anomaly("hole", || Edn::vector([before.show(evidence.history), after.show(evidence.history)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::testing::{anomalies, history, validity, verdict};
    use crate::checker::{Bounds, Validity};

    /// Three values acknowledged, one unknown, one failed.
    const SENT: &str = r#"
        [0 :invoke :send [[:send 1 10]]]
        [0 :ok     :send [[:send 1 [0 10]]]]
        [0 :invoke :send [[:send 1 11]]]
        [0 :ok     :send [[:send 1 [1 11]]]]
        [0 :invoke :send [[:send 1 12]]]
        [0 :fail   :send [[:send 1 12]]]
        [0 :invoke :send [[:send 1 13]]]
        [0 :ok     :send [[:send 1 [2 13]]]]
        [0 :invoke :send [[:send 1 14]]]
        [0 :info   :send [[:send 1 14]]]
    "#;

    fn finally(one: &str, other: &str) -> String {
        format!(
            r#"{SENT}
            [5 :invoke :final-read [[:poll]] :node "n1"]
            [5 :ok     :final-read [[:poll {{1 {one}}}]] :node "n1"]
            [5 :invoke :final-read [[:poll]] :node "n2"]
            [5 :ok     :final-read [[:poll {{1 {other}}}]] :node "n2"]"#
        )
    }

    fn polled(places: &str) -> String {
        format!("{SENT} [6 :invoke :poll [[:poll]]] [6 :ok :poll [[:poll {{1 {places}}}]]]")
    }

    #[test]
    fn the_unknown_may_be_there_or_not() {
        assert_eq!(
            validity(check, &finally("[[0 10] [1 11] [2 13]]", "[[0 10] [1 11] [2 13] [3 14]]")),
            Validity::Valid
        );
    }

    #[test]
    fn lost_write() {
        assert_eq!(anomalies(check, &finally("[[0 10] [1 11]]", "[[0 10] [1 11]]")), [("lost-write", 1)], "at the end");
        assert_eq!(anomalies(check, &polled("[[0 10] [2 13]]")), [("lost-write", 1)], "read past");
        assert_eq!(anomalies(check, &finally("[]", "[]")), [("lost-write", 3)], "everything");
        let read_before = "[6 :invoke :poll [[:poll]]] [6 :ok :poll [[:poll {1 [[0 10] [1 11] [2 13]]}]]]";
        let bad = finally("[[0 10] [1 11]]", "[[0 10] [1 11]]") + read_before;
        assert_eq!(anomalies(check, &bad), [("lost-write", 1)], "though it had been read");
    }

    #[test]
    fn lost_on_replica() {
        let bad = finally("[[0 10] [1 11]]", "[[0 10] [1 11] [2 13]]");
        assert_eq!(anomalies(check, &bad), [("lost-on-replica", 1)], "cut short");
        let bad = finally("[[0 10] [1 11] [2 13]]", "[[0 10] [1 14] [2 13]]");
        assert_eq!(anomalies(check, &bad), [("lost-on-replica", 1)], "overwritten");
    }

    #[test]
    fn hole() {
        let bad = finally("[[0 10] [1 11] [2 13] [5 14]]", "[[0 10] [1 11] [2 13]]");
        assert_eq!(anomalies(check, &bad), [("hole", 1)]);
    }

    #[test]
    fn what_nobody_read_is_no_pass() {
        assert_eq!(validity(check, SENT), Validity::Unknown);
        assert_eq!(validity(check, &polled("[[0 10] [1 11]]")), Validity::Unknown);
        let cut_short = finally("[[0 10] [1 11] [2 13]]", "[]")
            .replace(":ok     :final-read [[:poll {1 []}]]", ":info :final-read nil");
        assert_eq!(validity(check, &cut_short), Validity::Unknown, "a read that did not succeed");
        let history = history(&finally("[[0 10] [1 11] [2 13]]", "[[0 10] [1 11] [2 13]]"));
        let bounds = Bounds { nodes: ["n1", "n2", "n3"].map(str::to_owned).into(), ..Bounds::default() };
        let verdict = verdict(check, &history, &bounds).unwrap();
        assert_eq!(verdict.unknown, ["no final read on n3"]);
    }
}

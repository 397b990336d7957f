//! Clause "metadata": each topic and each group is a linearizable register, and nothing deleted comes back.
//!
//! - `nonlinearizable`: no order of the changes explains what was read.
//! - `resurrected`: read, or known to a replica at the end, though its deletion had been acknowledged after every creation.
//! - `lost-metadata`: not known to a replica at the end, though acknowledged and never deleted since.
//! - `unexpected`: a value that nobody had written, or in a scan a thing that is not the run's own.
//!
//! Without a scan of each replica the verdict is unknown.

use std::collections::BTreeMap;

use super::linearizable::{Interval, Model, Search, search};
use super::log::malformed;
use super::{Checked, Evidence, Verdict};
use crate::history::edn::Edn;
use crate::history::operation::Operation;
use crate::history::{Call, Malformed, Outcome, Position};

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let mut things: BTreeMap<String, Thing<'_>> = BTreeMap::new();
    for call in evidence.history.calls() {
        match &*call.invocation.f {
            "metadata-write" if call.outcome() != Outcome::Fail => {
                let (key, value) = entry(call.invocation)?;
                let thing = things.entry(key.to_string()).or_default();
                thing.writes.push(Access { call, value: written(value) });
            }
            "metadata-read" if call.outcome() == Outcome::Ok => {
                let Some(completion) = call.completion else { continue };
                let (key, value) = entry(completion)?;
                things.entry(key.to_string()).or_default().reads.push(Access { call, value: written(value) });
            }
            _ => {}
        }
    }
    let scans = scans(evidence)?;
    if things.is_empty() && scans.is_empty() {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    for (key, thing) in &things {
        thing.judge(key, evidence, &mut verdict);
    }
    for (operation, start, entries) in &scans {
        for (key, thing) in &things {
            thing.judge_scan(key, operation, *start, entries.get(key), &mut verdict);
        }
        let nobody_s = entries.iter().filter(|(key, _)| !things.contains_key(*key));
        for (key, _) in nobody_s {
            verdict.anomaly("unexpected", || shown(key, operation));
        }
    }
    let scanned = |node: &str| scans.iter().any(|(scan, ..)| scan.extra("node").and_then(Edn::as_str) == Some(node));
    for node in evidence.bounds.nodes.iter().filter(|node| !scanned(node)) {
        verdict.unknown(format!("no scan of {node}"));
    }
    verdict.figure("key-count", things.len());
    verdict.figure("scan-count", scans.len());
    Ok(Some(verdict))
}

/// What is written or read, as text; `None` if it is not there.
type Value = Option<String>;

struct Access<'a> {
    call: Call<'a>,
    value: Value,
}

#[derive(Default)]
struct Thing<'a> {
    writes: Vec<Access<'a>>,
    reads: Vec<Access<'a>>,
}

impl Thing<'_> {
    fn judge(&self, key: &str, evidence: &Evidence<'_>, verdict: &mut Verdict) {
        for read in &self.reads {
            let Some(completion) = read.call.completion else { continue };
            self.judge_value(key, completion, read.call.start, read.call.completed, &read.value, verdict);
        }
        let interval = |access: &Access<'_>, write: bool| Interval {
            start: access.call.start,
            end: access.call.end(),
            operation: (write, access.value.clone()),
        };
        let operations = self.writes.iter().map(|write| interval(write, true));
        let operations = operations.chain(self.reads.iter().map(|read| interval(read, false))).collect();
        match search(&Register, operations, evidence.bounds.search_steps) {
            Search::Linearizable => {}
            Search::Exhausted => verdict.unknown(format!("{key}: no verdict within the steps allowed")),
            Search::Stuck { state, next } => verdict.anomaly("nonlinearizable", || {
                let stuck = self.writes.iter().chain(&self.reads).filter(|access| next.contains(&access.call.start));
                let next = stuck.map(|access| access.call.completion.unwrap_or(access.call.invocation).summary());
                Edn::map([("key", key.into()), ("holds", state.into()), ("next", Edn::vector(next))])
            }),
        }
    }

    /// What one replica knew at the end: all that was acknowledged before, whatever replica was asked.
    fn judge_scan(&self, key: &str, scan: &Operation, start: Position, value: Option<&Value>, verdict: &mut Verdict) {
        let value = value.cloned().flatten();
        self.judge_value(key, scan, start, start, &value, verdict);
        let created = self.writes.iter().filter(|write| write.value.is_some() && write.call.end() < start);
        let last = created.map(|write| write.call.start).max();
        let deleted =
            |after: Position| self.writes.iter().any(|write| write.value.is_none() && write.call.end() > after);
        if let (None, Some(last)) = (&value, last)
            && !deleted(last)
        {
            verdict.anomaly("lost-metadata", || shown(key, scan));
        }
    }

    fn judge_value(
        &self,
        key: &str,
        shown_by: &Operation,
        start: Position,
        end: Position,
        value: &Value,
        verdict: &mut Verdict,
    ) {
        if value.is_none() {
            return;
        }
        let mut writers = self.writes.iter().filter(|write| write.value.is_some() && write.call.start <= end);
        if !writers.clone().any(|write| write.value == *value) {
            return verdict.anomaly("unexpected", || shown(key, shown_by));
        }
        let gone = self.writes.iter().filter(|write| write.value.is_none() && write.call.end() < start);
        let gone = gone.map(|write| write.call.start).max();
        if gone.is_some_and(|gone| writers.all(|write| write.call.end() < gone)) {
            verdict.anomaly("resurrected", || shown(key, shown_by));
        }
    }
}

struct Register;

impl Model for Register {
    type State = Value;
    type Operation = (bool, Value);

    fn initial(&self) -> Value {
        None
    }

    fn step(&self, state: &Value, (write, value): &(bool, Value)) -> Option<Value> {
        (*write || value == state).then(|| value.clone())
    }

    fn is_read(&self, (write, _): &(bool, Value)) -> bool {
        !*write
    }

    /// Just before somebody reads it, a write happens early enough.
    fn explains(
        &self,
        state: &Value,
        (_, written): &(bool, Value),
        next: &[&(bool, Value)],
        _: &[&(bool, Value)],
    ) -> bool {
        state != written && next.iter().any(|(write, read)| !*write && read == written)
    }
}

type Scan<'a> = (&'a Operation, Position, BTreeMap<String, Value>);

fn scans<'a>(evidence: &Evidence<'a>) -> Result<Vec<Scan<'a>>, Malformed> {
    let mut scans = Vec::new();
    for call in evidence.history.calls().filter(|call| &*call.invocation.f == "metadata-scan") {
        let Some(completion) = call.completion.filter(|_| call.outcome() == Outcome::Ok) else { continue };
        let entries = completion.value.as_map().ok_or_else(|| malformed(completion, "{key value}"))?;
        let entries = entries.iter().map(|(key, value)| (key.to_string(), written(value))).collect();
        scans.push((completion, call.start, entries));
    }
    Ok(scans)
}

fn entry(operation: &Operation) -> Result<(&Edn, &Edn), Malformed> {
    match operation.value.as_vector() {
        Some([key, value]) => Ok((key, value)),
        _ => Err(malformed(operation, "[key value]")),
    }
}

fn written(value: &Edn) -> Value {
    (*value != Edn::Nil).then(|| value.to_string())
}

fn shown(key: &str, operation: &Operation) -> Edn {
    Edn::map([("key", key.into()), ("operation", operation.summary())])
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::testing::{anomalies, history, validity, verdict};
    use crate::checker::{Bounds, Validity};

    #[test]
    fn changes_hold_and_the_unknown_may_come_late_or_never() {
        let good = r#"
            [0 :invoke :metadata-write ["t" {:queues 4}]]
            [0 :ok     :metadata-write ["t" {:queues 4}]]
            [1 :invoke :metadata-write ["t" nil]]
            [1 :info   :metadata-write ["t" nil]]
            [0 :invoke :metadata-read  ["t" nil]]
            [0 :ok     :metadata-read  ["t" {:queues 4}]]
            [0 :invoke :metadata-read  ["t" nil]]
            [0 :ok     :metadata-read  ["t" nil]]
            [2 :invoke :metadata-write ["t" {:queues 8}]]
            [2 :ok     :metadata-write ["t" {:queues 8}]]
            [2 :invoke :metadata-write ["u" 1]]
            [2 :fail   :metadata-write ["u" 1]]
            [2 :invoke :metadata-scan  nil :node "n1"]
            [2 :ok     :metadata-scan  {"t" {:queues 8}} :node "n1"]
        "#;
        assert_eq!(validity(check, good), Validity::Valid);
    }

    #[test]
    fn a_replica_that_was_not_scanned_is_no_pass() {
        let scanned = |node: &str| {
            format!("[2 :invoke :metadata-scan nil :node {node:?}] [2 :ok :metadata-scan {{}} :node {node:?}]")
        };
        let bounds = Bounds { nodes: ["n1", "n2"].map(str::to_owned).to_vec(), ..Bounds::default() };
        let judged = |what: &str| verdict(check, &history(what), &bounds).expect("touched").validity();
        let failed = "[2 :invoke :metadata-scan nil :node \"n2\"] [2 :fail :metadata-scan nil]";
        assert_eq!(judged(&(scanned("n1") + failed)), Validity::Unknown);
        assert_eq!(judged(&(scanned("n1") + &scanned("n2"))), Validity::Valid);
    }

    #[test]
    fn nonlinearizable() {
        let stale = r#"
            [0 :invoke :metadata-write ["t" 4]]
            [0 :ok     :metadata-write ["t" 4]]
            [0 :invoke :metadata-write ["t" 8]]
            [0 :ok     :metadata-write ["t" 8]]
            [0 :invoke :metadata-read  ["t" nil]]
            [0 :ok     :metadata-read  ["t" 4]]
        "#;
        assert_eq!(anomalies(check, stale), [("nonlinearizable", 1)]);
    }

    const DELETED: &str = r#"
        [0 :invoke :metadata-write ["t" 4]]
        [0 :ok     :metadata-write ["t" 4]]
        [0 :invoke :metadata-write ["t" nil]]
        [0 :ok     :metadata-write ["t" nil]]
    "#;

    #[test]
    fn resurrected() {
        let read = "[0 :invoke :metadata-read [\"t\" nil]] [0 :ok :metadata-read [\"t\" 4]]";
        assert_eq!(anomalies(check, &format!("{DELETED}{read}")), [("nonlinearizable", 1), ("resurrected", 1)]);
        let scan = "[0 :invoke :metadata-scan nil :node \"n1\"] [0 :ok :metadata-scan {\"t\" 4} :node \"n1\"]";
        assert_eq!(anomalies(check, &format!("{DELETED}{scan}")), [("resurrected", 1)]);
    }

    #[test]
    fn lost_metadata() {
        let lost = r#"
            [0 :invoke :metadata-write ["t" nil]]
            [0 :ok     :metadata-write ["t" nil]]
            [0 :invoke :metadata-write ["t" 4]]
            [0 :ok     :metadata-write ["t" 4]]
            [0 :invoke :metadata-scan nil :node "n1"]
            [0 :ok     :metadata-scan {}  :node "n1"]
        "#;
        assert_eq!(anomalies(check, lost), [("lost-metadata", 1)]);
    }

    #[test]
    fn unexpected() {
        let value = "[0 :invoke :metadata-read [\"t\" nil]] [0 :ok :metadata-read [\"t\" 5]]";
        assert_eq!(anomalies(check, &format!("{DELETED}{value}")), [("nonlinearizable", 1), ("unexpected", 1)]);
        let key = "[0 :invoke :metadata-scan nil :node \"n1\"] [0 :ok :metadata-scan {\"x\" 4} :node \"n1\"]";
        assert_eq!(anomalies(check, &format!("{DELETED}{key}")), [("unexpected", 1)]);
    }
}

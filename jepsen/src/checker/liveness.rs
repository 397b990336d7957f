//! Clause "liveness": service returns.
//!
//! Judged from sends, or from all client operations where there are none. O(n log n).
//!
//! - `no-recovery`: after a fault's end nothing succeeded within the limit, though clients tried.
//! - `outage`: clients tried for longer than the limit and nothing succeeded, while no fault struck a majority.
//! - `no-convergence`: after the last fault the replicas never told one index, or too late.
//! - `unproven-fault`: a fault without evidence. A run that only meant to break something shows nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::equality::tellings;
use super::{Bounds, Checked, Evidence, OF_THE_HARNESS, Verdict};
use crate::history::edn::Edn;
use crate::history::faults::{Fault, faults};
use crate::history::operation::{Kind, Operation, Process};
use crate::history::{History, Malformed};

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let Evidence { history, bounds, .. } = *evidence;
    let attempts = Attempts::of(history);
    if attempts.operations.is_empty() {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    let faults = faults(history);
    for fault in &faults {
        if !fault.is_proven() {
            verdict.anomaly("unproven-fault", || shown(fault, &[]));
        }
        recovery(fault, &attempts, bounds, &mut verdict);
    }
    let longest = outages(&attempts, &faults, bounds, &mut verdict);
    convergence(evidence, &faults, &mut verdict)?;
    let made = faults.iter().filter(|fault| fault.skipped.is_none() && !fault.is_refused());
    let refused: Vec<&str> =
        faults.iter().filter(|fault| fault.is_refused()).map(|fault| fault.name.as_str()).collect();
    let mut skipped: Vec<&str> =
        faults.iter().filter(|fault| fault.skipped.is_some()).map(|fault| fault.name.as_str()).collect();
    skipped.dedup();
    verdict.figure("fault-count", made.count());
    verdict.figure("skipped-faults", Edn::vector(skipped));
    verdict.figure("refused-faults", Edn::vector(refused));
    verdict.figure("longest-outage-ns", longest);
    Ok(Some(verdict))
}

/// The last time within the interval at which a fault was at work; the beginning if none was.
pub fn last_disturbance(faults: &[Fault], from: u64, to: u64) -> u64 {
    let overlapping = faults.iter().filter(|fault| fault.overlaps(from, to));
    overlapping.map(|fault| fault.end.unwrap_or(to).min(to)).max().unwrap_or(from)
}

/// What clients tried: sends if there are any.
struct Attempts<'a> {
    operations: Vec<&'a Operation>,
}

impl<'a> Attempts<'a> {
    fn of(history: &'a History) -> Attempts<'a> {
        let client =
            |operation: &&Operation| operation.process != Process::Nemesis && !OF_THE_HARNESS.contains(&&*operation.f);
        let sends = history.operations().iter().any(|operation| &*operation.f == "send");
        let judged = |operation: &&Operation| client(operation) && (!sends || &*operation.f == "send");
        Attempts { operations: history.operations().iter().filter(judged).collect() }
    }

    /// What was recorded from that time on.
    fn from(&self, time: u64) -> &[&'a Operation] {
        &self.operations[self.operations.partition_point(|operation| operation.time < time)..]
    }
}

fn recovery(fault: &Fault, attempts: &Attempts<'_>, bounds: &Bounds, verdict: &mut Verdict) {
    let Some(end) = fault.end.filter(|_| fault.skipped.is_none()) else { return };
    let limit = end.saturating_add(bounds.recovery_limit);
    let after = attempts.from(end);
    let ok = after.iter().find(|operation| operation.kind == Kind::Ok).map(|operation| operation.time);
    if ok.is_some_and(|ok| ok <= limit) {
        return;
    }
    // Someone must have tried all the time for silence to mean anything.
    let tried =
        after.iter().take_while(|operation| operation.time <= limit).any(|operation| operation.kind == Kind::Invoke);
    let waited = after.last().is_some_and(|last| last.time > limit);
    if tried && waited {
        verdict.anomaly("no-recovery", || shown(fault, &[("first-ok", ok)]));
    }
}

/// Stretches in which clients tried and nothing succeeded; the longest of them in nanoseconds.
fn outages(attempts: &Attempts<'_>, faults: &[Fault], bounds: &Bounds, verdict: &mut Verdict) -> u64 {
    let mut longest = 0;
    let mut stretch = |from: u64, to: u64| {
        longest = longest.max(to - from);
        // A majority fault excuses everything up to the recovery limit behind it.
        let begun = from.saturating_sub(bounds.recovery_limit);
        let excused = faults.iter().filter(|fault| fault.majority && fault.overlaps(begun, to));
        let excuse =
            excused.map(|fault| fault.end.map_or(u64::MAX, |end| end.saturating_add(bounds.recovery_limit))).max();
        if to - from > bounds.outage_limit && excuse.is_none_or(|excuse| excuse < to) {
            let at_work = faults.iter().filter(|fault| fault.overlaps(from, to)).map(|fault| fault.name.as_str());
            let at_work = Edn::vector(at_work);
            verdict.anomaly("outage", || {
                Edn::map([("from", from.into()), ("to", to.into()), ("ns", (to - from).into()), ("faults", at_work)])
            });
        }
    };
    let mut waiting: BTreeSet<Process> = BTreeSet::new();
    let mut since: Option<u64> = None;
    let mut last = 0;
    for operation in &attempts.operations {
        last = operation.time;
        match operation.kind {
            Kind::Invoke => {
                waiting.insert(operation.process);
                since = since.or(Some(operation.time));
            }
            Kind::Ok => {
                waiting.remove(&operation.process);
                if let Some(since) = since {
                    stretch(since, operation.time);
                }
                since = (!waiting.is_empty()).then_some(operation.time);
            }
            Kind::Fail | Kind::Info => {
                waiting.remove(&operation.process);
            }
        }
    }
    if let Some(since) = since {
        stretch(since, last);
    }
    longest
}

/// When, after the last fault, the newest chains of all replicas stand at one index. As long as clients change something
/// they cannot: the time counts from the last operation before the chains were told, if that is later.
fn convergence(evidence: &Evidence<'_>, faults: &[Fault], verdict: &mut Verdict) -> Result<(), Malformed> {
    let tellings = tellings(evidence, "chain")?;
    let calm = faults.iter().filter(|fault| fault.skipped.is_none()).map(|fault| fault.end.unwrap_or(u64::MAX)).max();
    let (Some(calm), Some(told)) = (calm, tellings.iter().map(|telling| telling.operation.time).max()) else {
        return Ok(());
    };
    let works = |operation: &&Operation| {
        operation.process != Process::Nemesis && !matches!(&*operation.f, "chain" | "state-hash")
    };
    let history = evidence.history.operations();
    let quiet = history.iter().filter(works).map(|operation| operation.time).take_while(|time| *time <= told).max();
    let calm = calm.max(quiet.unwrap_or_default());
    let mut nodes: Vec<&str> = evidence.bounds.nodes.iter().map(String::as_str).collect();
    if nodes.is_empty() {
        nodes = tellings.iter().map(|telling| telling.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
    }
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let after = tellings.iter().filter(|telling| telling.operation.time >= calm);
    let mut last = None;
    for telling in after {
        last = Some(telling.operation.time);
        newest.insert(telling.node, telling.index);
        let equal = nodes.iter().all(|node| newest.get(node) == Some(&telling.index));
        if equal && telling.operation.time - calm <= evidence.bounds.convergence_limit {
            verdict.figure("converged-after-ns", telling.operation.time - calm);
            return Ok(());
        }
    }
    match last {
        None => verdict.unknown("no chain was told after the last fault"),
        Some(last) => verdict.anomaly("no-convergence", || {
            let newest = newest.iter().map(|(node, index)| ((*node).into(), (*index).into())).collect();
            Edn::map([("after-ns", (last - calm).into()), ("newest", Edn::Map(newest))])
        }),
    }
    Ok(())
}

fn shown(fault: &Fault, times: &[(&'static str, Option<u64>)]) -> Edn {
    let entries = [("fault", fault.name.as_str().into()), ("start", fault.start.into()), ("end", fault.end.into())];
    Edn::map(entries.into_iter().chain(times.iter().map(|(name, time)| (*name, Edn::from(*time)))))
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::testing::{anomalies, history, validity, verdict};
    use crate::checker::{Bounds, Validity};
    use crate::history::edn::Edn;

    /// Process 0 sends one value after the other; each pair is when it was invoked and when acknowledged, in milliseconds.
    fn sends(times: &[(u32, u32)]) -> String {
        let send = |(value, (start, end)): (usize, &(u32, u32))| {
            format!(
                "[0 :invoke :send [[:send 1 {value}]] :time {start}] [0 :ok :send [[:send 1 [{value} {value}]]] :time {end}]"
            )
        };
        times.iter().enumerate().map(send).collect()
    }

    fn fault(step: &str, at_ms: u32, extra: &str) -> String {
        format!("[:nemesis :info :{step}-kill {{\"n1\" :gone}} :time {at_ms} {extra}]")
    }

    const TRIED: &str = "[1 :invoke :send [[:send 1 100]] :time 3000] [1 :info :send [[:send 1 100]] :time 4000]";

    #[test]
    fn a_short_gap_is_none() {
        let good = [&sends(&[(0, 100)]), &fault("start", 200, ""), TRIED, &fault("stop", 4100, "")].concat();
        let good = good + &sends(&[(4200, 5000)]).replace("[:send 1 0]", "[:send 1 7]").replace("[0 0]", "[1 7]");
        let verdict = verdict(check, &history(&good), &Bounds::default()).unwrap();
        assert_eq!(verdict.validity(), Validity::Valid, "{verdict:?}");
        let longest = verdict.figures.iter().find(|(name, _)| *name == "longest-outage-ns").unwrap();
        assert_eq!(longest.1, Edn::Int(2_000_000_000), "from 3 s, when somebody tried, to 5 s");
    }

    #[test]
    fn outage() {
        assert_eq!(anomalies(check, &sends(&[(0, 100), (200, 5201)])), [("outage", 1)]);
        assert_eq!(validity(check, &sends(&[(0, 100), (9000, 9100)])), Validity::Valid, "nobody tried");
        let excused = |extra| [fault("start", 100, extra), sends(&[(200, 9000)]), fault("stop", 9000, "")].concat();
        assert_eq!(anomalies(check, &excused("")), [("outage", 1)]);
        assert_eq!(validity(check, &excused(":majority true")), Validity::Valid);
        let trailing = sends(&[(0, 100)]) + TRIED + "[2 :invoke :send [[:send 1 101]] :time 9000]";
        assert_eq!(anomalies(check, &trailing), [("outage", 1)], "to the end of the history");
    }

    #[test]
    fn no_recovery() {
        let struck = fault("start", 100, ":majority true") + &fault("stop", 200, "");
        assert_eq!(
            anomalies(check, &[&*struck, &sends(&[(300, 16000)])].concat()),
            [("no-recovery", 1), ("outage", 1)]
        );
        assert_eq!(validity(check, &[&*struck, &sends(&[(300, 15000)])].concat()), Validity::Valid);
    }

    #[test]
    fn no_convergence() {
        let struck = sends(&[(0, 50)]) + &fault("start", 100, "") + &fault("stop", 200, "");
        let chain = |at: u32, one: u32, other: u32| {
            format!(
                "[9 :invoke :chain nil :time {at}] [9 :ok :chain {{\"n1\" [{one} \"x\"], \"n2\" [{other} \"x\"]}} :time {at}]"
            )
        };
        assert_eq!(validity(check, &[&*struck, &chain(300, 5, 4), &chain(400, 5, 5)].concat()), Validity::Valid);
        assert_eq!(anomalies(check, &[&*struck, &chain(300, 5, 4)].concat()), [("no-convergence", 1)], "never");
        assert_eq!(anomalies(check, &[&*struck, &chain(60300, 5, 5)].concat()), [("no-convergence", 1)], "too late");
        let drained = "[2 :invoke :drain \"g\" :time 60200] [2 :ok :drain \"g\" :time 60250]";
        assert_eq!(
            validity(check, &[&*struck, drained, &chain(60300, 5, 5)].concat()),
            Validity::Valid,
            "as soon as it can"
        );
        assert_eq!(
            validity(
                check,
                &[&*chain(50, 5, 5), &struck.replace(":time 50]", ":time 60]").replace(":time 0]", ":time 55]")]
                    .concat()
            ),
            Validity::Unknown
        );
    }

    #[test]
    fn unproven_fault() {
        let unproven = sends(&[(0, 50)]) + "[:nemesis :info :start-kill nil] [:nemesis :info :stop-kill nil]";
        assert_eq!(anomalies(check, &unproven), [("unproven-fault", 1)]);
        let skipped = sends(&[(0, 50)]) + "[:nemesis :info :start-netem nil :skipped \"not in this kernel\"]";
        assert_eq!(validity(check, &skipped), Validity::Valid, "listed by name");
    }
}

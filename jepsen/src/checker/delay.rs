//! Clause "delay": a delayed message is never early, and becomes visible; one that is recalled never does.
//!
//! A message cannot be stored before its send was invoked, so it may not be seen before that and its delay have passed, less
//! the declared bound of the clocks. How late it is counts from its acknowledgement; one of unknown outcome may have waited in
//! a cut link for as long as its connection lives, and its delay begins where it is stored. A recall that failed has changed
//! nothing; one of unknown outcome may or may not have been in time. O(n log n).
//!
//! - `early`: seen before its time.
//! - `late`: seen later than the declared limit after its time, with no fault at work since.
//! - `lost`: acknowledged, its time and the limit are over, the readers are done, and nobody has seen it.
//! - `recalled-seen`: seen, although a recall of it was acknowledged.

use std::collections::BTreeMap;

use super::bounds::MS;
use super::delivery::delivery;
use super::liveness::last_disturbance;
use super::log::{Send, malformed};
use super::verdict::percentiles;
use super::{Checked, Evidence, Verdict};
use crate::history::edn::Edn;
use crate::history::faults::faults;
use crate::history::{Malformed, Outcome, Position};

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let Evidence { history, log, bounds } = *evidence;
    if log.sends.iter().all(|send| send.delay_ms.is_none()) {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    let seen = first_seen(evidence)?;
    let faults = faults(history);
    let readers_done = readers_done(evidence);
    let mut lateness = Vec::new();
    let mut pending = 0_u64;
    let recalls = recalls(evidence)?;
    for (k, (send, seen)) in (0..).zip(log.sends.iter().zip(&seen)) {
        let Some(delay) = send.delay_ms.map(|delay_ms| delay_ms * MS) else { continue };
        let acknowledged = history.operations().get(send.end as usize).filter(|_| send.outcome == Outcome::Ok);
        let due = acknowledged.map(|acknowledged| acknowledged.time + delay);
        let recalled = recalls.get(&k).map(|recalls| recalls.outcome());
        let Some(seen) = seen.map(|seen| history.at(seen)) else {
            match (due, readers_done) {
                _ if matches!(recalled, Some(Outcome::Ok | Outcome::Info)) => {}
                (Some(due), Some(done)) if due + bounds.late_limit <= done => {
                    verdict.anomaly("lost", || shown(send, evidence, &[]));
                }
                _ => pending += u64::from(due.is_some()),
            }
            continue;
        };
        if recalled == Some(Outcome::Ok) {
            verdict.anomaly("recalled-seen", || shown(send, evidence, &[("seen", seen.time)]));
        }
        let earliest = (history.at(send.start).time + delay).saturating_sub(bounds.clock_bound);
        if seen.time < earliest {
            verdict.anomaly("early", || shown(send, evidence, &[("seen", seen.time), ("by-ns", earliest - seen.time)]));
        }
        let Some(due) = due else { continue };
        let late = seen.time.saturating_sub(due);
        lateness.push(late);
        let undisturbed = last_disturbance(&faults, due, seen.time).max(due);
        if seen.time > undisturbed + bounds.late_limit {
            verdict.anomaly("late", || shown(send, evidence, &[("seen", seen.time), ("late-ns", late)]));
        }
    }
    if pending > 0 {
        verdict.unknown(format!("{pending} acknowledged messages were not seen, and their time was not surely over"));
    }
    lateness.sort_unstable();
    verdict.figure("seen-count", lateness.len());
    verdict.figure("lateness-ns", percentiles(&lateness));
    let count = |which: fn(&Recalls) -> bool| recalls.values().filter(|recalls| which(recalls)).count();
    verdict.figure("recalled-count", count(|recalls| recalls.ok > 0));
    verdict.figure("recalled-twice-count", count(|recalls| recalls.ok > 1));
    verdict.figure("recall-too-late-count", count(|recalls| recalls.outcome() == Outcome::Fail));
    verdict.figure("recall-unknown-count", count(|recalls| recalls.outcome() == Outcome::Info));
    Ok(Some(verdict))
}

/// How often somebody wanted a message recalled, and how that ended.
#[derive(Clone, Copy, Debug, Default)]
struct Recalls {
    ok: u32,
    unknown: u32,
}

impl Recalls {
    fn outcome(&self) -> Outcome {
        match self {
            Recalls { ok: 0, unknown: 0 } => Outcome::Fail,
            Recalls { ok: 0, .. } => Outcome::Info,
            _ => Outcome::Ok,
        }
    }
}

/// The recalls of each send.
fn recalls(evidence: &Evidence<'_>) -> Result<BTreeMap<u32, Recalls>, Malformed> {
    let mut recalls: BTreeMap<u32, Recalls> = BTreeMap::new();
    for call in evidence.history.calls_of("recall") {
        let send = call.invocation.value.as_int().and_then(|value| evidence.log.send_of(value));
        let send = send.ok_or_else(|| malformed(call.invocation, "a value that was sent"))?;
        let recalls = recalls.entry(send).or_default();
        recalls.ok += u32::from(call.outcome() == Outcome::Ok);
        recalls.unknown += u32::from(call.outcome() == Outcome::Info);
    }
    Ok(recalls)
}

/// Of each send the first operation that shows its value: a poll or final read that completed, a delivery that began.
fn first_seen(evidence: &Evidence<'_>) -> Result<Vec<Option<Position>>, Malformed> {
    let mut seen: Vec<Option<Position>> = vec![None; evidence.log.sends.len()];
    let mut see = |send: u32, at: Position| {
        let first = &mut seen[send as usize];
        *first = Some(first.map_or(at, |first| first.min(at)));
    };
    for read in &evidence.log.reads {
        if let Some(send) = read.send {
            see(send, read.at);
        }
    }
    for call in evidence.history.calls() {
        if let Some((_, value)) = delivery(&call)?
            && let Some(send) = evidence.log.send_of(value)
        {
            see(send, call.start);
        }
    }
    Ok(seen)
}

/// When reading ended: what was due by then must have been seen.
fn readers_done(evidence: &Evidence<'_>) -> Option<u64> {
    let done = evidence
        .history
        .calls()
        .filter(|call| matches!(&*call.invocation.f, "drain" | "final-read") && call.outcome() == Outcome::Ok);
    done.map(|call| call.invocation.time).max()
}

fn shown(send: &Send, evidence: &Evidence<'_>, times: &[(&'static str, u64)]) -> Edn {
    let entries = [("send", send.show(evidence.history)), ("delay-ms", send.delay_ms.into())];
    Edn::map(entries.into_iter().chain(times.iter().map(|(name, time)| (*name, Edn::from(*time)))))
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::Validity;
    use crate::checker::testing::{anomalies, validity};

    /// Sent at 1 s, acknowledged at 2 s, with a delay of 5 s: due between 6 s and 7 s.
    const SENT: &str = r#"
        [0 :invoke :send [[:send 1 10]] :time 1000 :delay-ms 5000]
        [0 :ok     :send [[:send 1 10]] :time 2000]
    "#;

    fn seen(at_ms: u32) -> String {
        format!("{SENT} [5 :invoke :poll [[:poll]] :time {at_ms}] [5 :ok :poll [[:poll {{1 [[0 10]]}}]] :time {at_ms}]")
    }

    fn consumed(at_ms: u32) -> String {
        format!("{SENT} [5 :invoke :consume [\"g\" 10] :time {at_ms}] [5 :ok :consume [\"g\" 10] :time {at_ms}]")
    }

    fn drained(at_ms: u32) -> String {
        format!("{SENT} [9 :invoke :drain \"g\" :time {at_ms}] [9 :ok :drain \"g\" :time {at_ms}]")
    }

    #[test]
    fn in_time() {
        assert_eq!(validity(check, &seen(5990)), Validity::Valid, "the bound of the clocks");
        assert_eq!(validity(check, &consumed(17000)), Validity::Valid);
        let unknown = seen(40000).replace(":ok     :send [[:send 1 10]]", ":info :send [[:send 1 10]]");
        assert_eq!(validity(check, &unknown), Validity::Valid, "of unknown outcome: nobody knows when it was stored");
        let never = drained(60000).replace(":ok     :send", ":info :send");
        assert_eq!(validity(check, &never), Validity::Valid, "of unknown outcome: maybe never");
    }

    #[test]
    fn early() {
        assert_eq!(anomalies(check, &seen(5989)), [("early", 1)]);
        assert_eq!(anomalies(check, &consumed(3000)), [("early", 1)]);
    }

    #[test]
    fn late() {
        assert_eq!(anomalies(check, &seen(17001)), [("late", 1)]);
        let fault = "[:nemesis :info :start-kill {} :time 6500] [:nemesis :info :stop-kill {} :time 12000]";
        let disturbed = seen(21000).replace("[5 :invoke", &format!("{fault} [5 :invoke"));
        assert_eq!(validity(check, &disturbed), Validity::Valid, "a fault was at work");
    }

    #[test]
    fn lost() {
        assert_eq!(anomalies(check, &drained(17000)), [("lost", 1)]);
        assert_eq!(validity(check, &drained(16999)), Validity::Unknown, "its time is not surely over");
        assert_eq!(validity(check, SENT), Validity::Unknown, "nobody looked");
    }

    fn recalled(end: &str, history: &str) -> String {
        format!("{SENT} [3 :invoke :recall 10] {end} {}", history.strip_prefix(SENT).expect("what was sent"))
    }

    #[test]
    fn what_is_recalled_is_not_owed_and_what_perhaps_is_neither() {
        assert_eq!(validity(check, &recalled("[3 :ok :recall 10]", &drained(17000))), Validity::Valid);
        let unknown = "[3 :info :recall 10]";
        assert_eq!(validity(check, &recalled(unknown, &drained(17000))), Validity::Valid, "it was in time");
        assert_eq!(validity(check, &recalled(unknown, &seen(7000))), Validity::Valid, "it was not");
        let again = "[3 :info :recall 10] [4 :invoke :recall 10] [4 :ok :recall 10]";
        assert_eq!(validity(check, &recalled(again, &drained(17000))), Validity::Valid);
        assert_eq!(validity(check, &recalled("[3 :fail :recall 10]", &seen(7000))), Validity::Valid, "too late");
    }

    #[test]
    fn recalled_seen() {
        let ok = "[3 :ok :recall 10]";
        assert_eq!(anomalies(check, &recalled(ok, &seen(7000))), [("recalled-seen", 1)]);
        assert_eq!(anomalies(check, &recalled(ok, &consumed(7000))), [("recalled-seen", 1)]);
        let unknown_first = format!("[3 :info :recall 10] [4 :invoke :recall 10] {}", ok.replace("[3", "[4"));
        assert_eq!(anomalies(check, &recalled(&unknown_first, &seen(7000))), [("recalled-seen", 1)]);
    }

    #[test]
    fn lost_though_its_recall_failed() {
        assert_eq!(anomalies(check, &recalled("[3 :fail :recall 10]", &drained(17000))), [("lost", 1)]);
    }
}

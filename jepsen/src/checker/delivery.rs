//! Clause "delivery": at least once to each group, or to its dead-letter queue exactly once.
//!
//! Jepsen's total-queue, for each group: what was acknowledged must have been consumed by the time the group is drained.
//! O(n log n).
//!
//! - `lost`: acknowledged, the group is drained, and it was neither consumed nor is it a dead letter.
//! - `unexpected`: delivered, or a dead letter, though its send had failed or never begun.
//! - `duplicate-dead-letter`: more than once in the dead-letter queue.
//!
//! Counted, and allowed: `:duplicated-count`, deliveries after one that was consumed; `:recovered-count`, values of unknown
//! outcome that were delivered. A group that was never drained is no verdict.

use std::collections::BTreeMap;

use super::log::{Queue, malformed, queue_of};
use super::{Checked, Evidence, Verdict};
use crate::history::edn::Edn;
use crate::history::operation::Operation;
use crate::history::{Call, Malformed, NEVER, Outcome, Position};

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let groups = groups(evidence)?;
    if groups.is_empty() {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    let mut totals = Totals::default();
    for (name, group) in &groups {
        judge(name, group, evidence, &mut verdict, &mut totals);
    }
    verdict.figure("group-count", groups.len());
    verdict.figure("delivered-count", totals.delivered);
    verdict.figure("consumed-count", totals.consumed);
    verdict.figure("duplicated-count", totals.duplicated);
    verdict.figure("recovered-count", totals.recovered);
    verdict.figure("dead-letter-count", totals.dead_letters);
    Ok(Some(verdict))
}

/// A delivery to a listener: the group, the value, and whether the operation is one at all.
pub fn delivery<'a>(call: &Call<'a>) -> Result<Option<(&'a str, i64)>, Malformed> {
    if !matches!(&*call.invocation.f, "consume" | "consume-orderly") {
        return Ok(None);
    }
    match call.invocation.value.as_vector() {
        Some([Edn::String(group), Edn::Int(value)]) => Ok(Some((group, *value))),
        _ => Err(malformed(call.invocation, "[group value]")),
    }
}

#[derive(Default)]
struct Group<'a> {
    deliveries: Vec<(i64, Call<'a>)>,
    drained: Option<Drained>,
    dead_letters: Option<(&'a Operation, Vec<i64>)>,
}

/// A drain that ended: from where on nothing is left, and of which queues; all if it does not say.
struct Drained {
    start: Position,
    queues: Option<Vec<Queue>>,
}

#[derive(Default)]
struct Totals {
    delivered: u64,
    consumed: u64,
    duplicated: u64,
    recovered: u64,
    dead_letters: u64,
}

fn groups<'a>(evidence: &Evidence<'a>) -> Result<BTreeMap<String, Group<'a>>, Malformed> {
    let mut groups: BTreeMap<String, Group<'a>> = BTreeMap::new();
    for call in evidence.history.calls() {
        if let Some((group, value)) = delivery(&call)? {
            groups.entry(group.to_owned()).or_default().deliveries.push((value, call));
            continue;
        }
        let Some(completion) = call.completion.filter(|_| call.outcome() == Outcome::Ok) else { continue };
        match &*completion.f {
            "drain" => {
                let group = completion.value.as_str().ok_or_else(|| malformed(completion, "a group"))?;
                let queues = match completion.extra("queues").map(Edn::as_vector) {
                    None => None,
                    Some(queues) => {
                        let queues = queues.and_then(|queues| queues.iter().map(queue_of).collect());
                        Some(queues.ok_or_else(|| malformed(completion, "queues"))?)
                    }
                };
                groups.entry(group.to_owned()).or_default().drained = Some(Drained { start: call.start, queues });
            }
            "dead-letters" => {
                let (group, values) = dead_letters(completion)?;
                groups.entry(group.to_owned()).or_default().dead_letters = Some((completion, values));
            }
            _ => {}
        }
    }
    Ok(groups)
}

/// A group, and what was read of its dead letters.
pub(super) fn dead_letters(completion: &Operation) -> Result<(&str, Vec<i64>), Malformed> {
    let wanted = || malformed(completion, "[group [value …]]");
    let Some([Edn::String(group), Edn::Vector(values)]) = completion.value.as_vector() else { return Err(wanted()) };
    let values: Option<Vec<i64>> = values.iter().map(Edn::as_int).collect();
    Ok((group, values.ok_or_else(wanted)?))
}

/// What became of a value in a group.
#[derive(Clone, Copy, Default)]
struct Fate {
    delivered: bool,
    consumed: bool,
    dead: bool,
}

fn judge(name: &str, group: &Group<'_>, evidence: &Evidence<'_>, verdict: &mut Verdict, totals: &mut Totals) {
    let Evidence { history, log, .. } = *evidence;
    let mut fates = vec![Fate::default(); log.sends.len()];
    let known = |value: i64, by: Position| {
        let send = log.send_of(value).map(|send| send as usize);
        send.filter(|send| log.sends[*send].outcome != Outcome::Fail && log.sends[*send].start < by)
    };
    let mut ends: Vec<Position> = vec![NEVER; log.sends.len()];
    for (value, call) in &group.deliveries {
        totals.delivered += 1;
        let Some(send) = known(*value, call.start) else {
            verdict.anomaly("unexpected", || call.invocation.summary());
            continue;
        };
        let fate = &mut fates[send];
        fate.delivered = true;
        totals.duplicated += u64::from(ends[send] < call.start);
        if call.outcome() == Outcome::Ok {
            fate.consumed = true;
            ends[send] = ends[send].min(call.completed);
        }
    }
    if let Some((operation, values)) = &group.dead_letters {
        for value in values {
            totals.dead_letters += 1;
            let told = || Edn::map([("group", name.into()), ("value", (*value).into())]);
            match known(*value, NEVER) {
                Some(send) if fates[send].dead => verdict.anomaly("duplicate-dead-letter", told),
                Some(send) => fates[send].dead = true,
                None => verdict.anomaly("unexpected", || {
                    Edn::map([("group", name.into()), ("value", (*value).into()), ("index", operation.index.into())])
                }),
            }
        }
    }
    for (send, fate) in log.sends.iter().zip(&fates) {
        totals.consumed += u64::from(fate.consumed);
        totals.recovered += u64::from(send.outcome == Outcome::Info && (fate.delivered || fate.dead));
    }
    let Some(drained) = &group.drained else { return verdict.unknown(format!("group {name} was not drained")) };
    for (send, fate) in log.sends.iter().zip(&fates) {
        let due = send.outcome == Outcome::Ok
            && send.end < drained.start
            && send.delay_ms.is_none()
            && drained.queues.as_ref().is_none_or(|queues| queues.contains(&send.queue));
        if due && !fate.consumed && !fate.dead {
            let delivered = fate.delivered;
            verdict.anomaly("lost", || {
                let shown = [("group", name.into()), ("delivered", delivered.into()), ("send", send.show(history))];
                Edn::map(shown)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::Bounds;
    use crate::checker::Validity;
    use crate::checker::testing::{anomalies, history, validity, verdict};
    use crate::history::edn::Edn;

    const SENT: &str = r#"
        [0 :invoke :send [[:send 1 10]]]
        [0 :ok     :send [[:send 1 [0 10]]]]
        [0 :invoke :send [[:send 1 11]]]
        [0 :ok     :send [[:send 1 [1 11]]]]
        [0 :invoke :send [[:send 1 12]]]
        [0 :fail   :send [[:send 1 12]]]
        [0 :invoke :send [[:send 1 13]]]
        [0 :info   :send [[:send 1 13]]]
    "#;
    const DRAINED: &str = "[9 :invoke :drain \"g\"] [9 :ok :drain \"g\"]";

    fn consumed(value: u32, outcome: &str) -> String {
        format!("[5 :invoke :consume [\"g\" {value}]] [5 :{outcome} :consume [\"g\" {value}]]")
    }

    fn dead(values: &str) -> String {
        format!("[8 :invoke :dead-letters [\"g\" nil]] [8 :ok :dead-letters [\"g\" {values}]]")
    }

    #[test]
    fn again_is_allowed_and_counted() {
        let good = [
            SENT,
            &consumed(10, "fail"),
            &consumed(10, "ok"),
            &consumed(10, "ok"),
            &consumed(13, "ok"),
            &consumed(11, "fail"),
            &dead("[11]"),
            DRAINED,
        ]
        .concat();
        let verdict = verdict(check, &history(&good), &Bounds::default()).unwrap();
        assert_eq!(verdict.validity(), Validity::Valid);
        let figure =
            |name: &str| verdict.figures.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        assert_eq!(figure("duplicated-count"), Some(Edn::Int(1)), "after it was consumed");
        assert_eq!(figure("recovered-count"), Some(Edn::Int(1)), "of unknown outcome");
        assert_eq!(figure("dead-letter-count"), Some(Edn::Int(1)));
    }

    #[test]
    fn lost() {
        let bad = [SENT, &consumed(10, "ok"), DRAINED].concat();
        assert_eq!(anomalies(check, &bad), [("lost", 1)], "never delivered");
        let bad = [SENT, &consumed(10, "ok"), &consumed(11, "fail"), DRAINED].concat();
        assert_eq!(anomalies(check, &bad), [("lost", 1)], "wanted again, never given again, no dead letter");
        let elsewhere = "[9 :invoke :drain \"g\" :queues [2]] [9 :ok :drain \"g\" :queues [2]]";
        assert_eq!(validity(check, &[SENT, elsewhere].concat()), Validity::Valid, "of queues it does not read");
    }

    #[test]
    fn unexpected() {
        let both = [consumed(10, "ok"), consumed(11, "ok")].concat();
        for (value, why) in [(12, "its send failed"), (99, "never sent")] {
            assert_eq!(
                anomalies(check, &[SENT, &both, &consumed(value, "ok"), DRAINED].concat()),
                [("unexpected", 1)],
                "{why}"
            );
        }
        assert_eq!(anomalies(check, &[SENT, &both, &dead("[99]"), DRAINED].concat()), [("unexpected", 1)]);
    }

    #[test]
    fn duplicate_dead_letter() {
        let bad = [SENT, &consumed(10, "ok"), &dead("[11 11]"), DRAINED].concat();
        assert_eq!(anomalies(check, &bad), [("duplicate-dead-letter", 1)]);
    }

    #[test]
    fn without_a_drain_nothing_is_known() {
        assert_eq!(validity(check, &[SENT, &consumed(10, "ok")].concat()), Validity::Unknown);
    }
}

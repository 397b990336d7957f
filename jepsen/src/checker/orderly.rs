//! Clause "orderly": one message of a queue at a time, in the queue's order.
//!
//! An automaton for each group and queue over what `:consume-orderly` tells: invoked when a listener gets a message, `:ok`
//! when it is done with it, `:fail` when it wants it again. O(n log n).
//!
//! - `concurrent-consume`: a message was begun while another one of the queue was in a listener. A lock is a lease: what
//!   lasts longer than the declared time in which a client is surely alone is no anomaly.
//! - `consume-skip`: begun though one before it was never done, nor was tried in vain and is among the dead letters.
//! - `nonmonotonic-consume`: one process went back, though it had lost nothing. Where a fault was at work since, or within the
//!   lease before, it may have lost the queue and got it again, from the offset that is stored: that is counted.

use std::collections::{BTreeMap, BTreeSet};

use super::delivery::{dead_letters, delivery};
use super::log::{Queue, malformed, number};
use super::{Checked, Evidence, Verdict};
use crate::history::edn::Edn;
use crate::history::faults::{Fault, faults};
use crate::history::operation::Process;
use crate::history::{Call, Outcome};

/// A message that a listener got.
struct Begun<'a> {
    offset: u64,
    value: i64,
    call: Call<'a>,
}

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let mut queues: BTreeMap<(&str, Queue), Vec<Begun<'_>>> = BTreeMap::new();
    let mut dead: BTreeSet<(&str, i64)> = BTreeSet::new();
    for call in evidence.history.calls() {
        if let Some(completion) =
            call.completion.filter(|one| &*one.f == "dead-letters" && call.outcome() == Outcome::Ok)
        {
            let (group, values) = dead_letters(completion)?;
            dead.extend(values.into_iter().map(|value| (group, value)));
        }
        if &*call.invocation.f != "consume-orderly" {
            continue;
        }
        let place = number(call.invocation, "queue")?.zip(number(call.invocation, "offset")?);
        let (queue, offset) = place.ok_or_else(|| malformed(call.invocation, ":queue and :offset"))?;
        let queue = Queue::try_from(queue).map_err(|_| malformed(call.invocation, "a queue"))?;
        if let Some((group, value)) = delivery(&call)? {
            queues.entry((group, queue)).or_default().push(Begun { offset, value, call });
        }
    }
    if queues.is_empty() {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    let (faults, mut again, mut given_up) = (faults(evidence.history), 0_u64, 0_usize);
    for ((group, _), messages) in &queues {
        let of_dead = messages.iter().filter(|message| dead.contains(&(*group, message.value)));
        let of_dead: BTreeSet<u64> = of_dead.map(|message| message.offset).collect();
        given_up += of_dead.len();
        one_at_a_time(messages, evidence.bounds.exclusive, &mut verdict);
        again += in_order(messages, &of_dead, &faults, evidence.bounds.exclusive, &mut verdict);
    }
    verdict.figure("gone-back-after-faults-count", again);
    verdict.figure("given-up-count", given_up);
    verdict.figure("queue-count", queues.len());
    verdict.figure("delivered-count", queues.values().map(Vec::len).sum::<usize>());
    Ok(Some(verdict))
}

/// Messages are in order of their beginning: each is compared with the one before that keeps the queue longest.
fn one_at_a_time(messages: &[Begun<'_>], exclusive: u64, verdict: &mut Verdict) {
    let until = |call: &Call<'_>| {
        let lease = call.invocation.time.saturating_add(exclusive);
        call.completion.map_or(lease, |completion| completion.time.min(lease))
    };
    let mut holder: Option<&Call<'_>> = None;
    for Begun { call, .. } in messages {
        if let Some(holder) = holder
            && holder.completed > call.start
            && until(holder) > call.invocation.time
        {
            verdict.anomaly("concurrent-consume", || {
                Edn::vector([holder.invocation.summary(), call.invocation.summary()])
            });
        }
        if holder.is_none_or(|holder| until(holder) <= until(call)) {
            holder = Some(call);
        }
    }
}

/// What happens to a message.
#[derive(Clone, Copy)]
enum Step {
    Begun,
    Failed,
    Done,
}

/// How often a process went back and may have lost the queue. `dead`: offsets of dead letters.
fn in_order(
    messages: &[Begun<'_>],
    dead: &BTreeSet<u64>,
    faults: &[Fault],
    exclusive: u64,
    verdict: &mut Verdict,
) -> u64 {
    let mut again = 0;
    let mut events: Vec<_> =
        messages.iter().map(|Begun { offset, call, .. }| (call.start, Step::Begun, *offset, call)).collect();
    // Whoever crashed within a message may have been done with it.
    let ended = messages.iter().filter(|message| message.call.completion.is_some());
    events.extend(ended.map(|Begun { offset, call, .. }| {
        let step = if call.outcome() == Outcome::Fail { Step::Failed } else { Step::Done };
        (call.completed, step, *offset, call)
    }));
    events.sort_unstable_by_key(|(at, ..)| *at);
    let mut failed = BTreeSet::new();
    // The offset from which on nothing is surely done, and who began what last.
    let mut next: Option<u64> = None;
    let mut newest: Option<(Process, u64, u64)> = None;
    for (_, step, offset, call) in events {
        let mut from = *next.get_or_insert(offset);
        match step {
            Step::Done => {
                next = Some(from.max(offset + 1));
                continue;
            }
            Step::Failed => {
                failed.insert(offset);
                continue;
            }
            Step::Begun => {}
        }
        while from < offset && dead.contains(&from) && failed.contains(&from) {
            from += 1;
        }
        next = Some(from);
        if offset > from {
            verdict.anomaly("consume-skip", || {
                Edn::map([("not-done", from.into()), ("begun", call.invocation.summary())])
            });
        }
        let (process, now) = (call.invocation.process, call.invocation.time);
        let went_back = newest.filter(|(before, reached, _)| *before == process && offset < *reached);
        if let Some((_, reached, at)) = went_back {
            if faults.iter().any(|fault| fault.overlaps(at.saturating_sub(exclusive), now)) {
                again += 1;
                newest = Some((process, offset, now));
                continue;
            }
            verdict.anomaly("nonmonotonic-consume", || {
                Edn::map([("reached", reached.into()), ("begun", call.invocation.summary())])
            });
        }
        newest = Some((process, offset, now));
    }
    again
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::Validity;
    use crate::checker::testing::{anomalies, validity};

    fn step(process: u32, kind: &str, offset: u32) -> String {
        format!("[{process} :{kind} :consume-orderly [\"g\" {offset}] :queue 1 :offset {offset}]")
    }

    fn steps(steps: &[(u32, &str, u32)]) -> String {
        steps.iter().map(|(process, kind, offset)| step(*process, kind, *offset)).collect()
    }

    fn whole(process: u32, offset: u32) -> [(u32, &'static str, u32); 2] {
        [(process, "invoke", offset), (process, "ok", offset)]
    }

    #[test]
    fn one_after_the_other() {
        let suspended = [(1, "invoke", 5), (1, "fail", 5)];
        let crashed = [(1, "invoke", 6), (1, "info", 6)];
        let good = [whole(1, 4), suspended, whole(1, 5), crashed, whole(2, 7), whole(3, 6), whole(3, 7), whole(3, 8)];
        assert_eq!(validity(check, &steps(&good.concat())), Validity::Valid, "who takes over may begin earlier");
    }

    #[test]
    fn concurrent_consume() {
        let bad = steps(&[(1, "invoke", 4), (2, "invoke", 4), (1, "ok", 4), (2, "ok", 4)]);
        assert_eq!(anomalies(check, &bad), [("concurrent-consume", 1)]);
        let lease_over =
            bad.replace("[2 :invoke :consume-orderly [\"g\" 4]", "[2 :invoke :consume-orderly [\"g\" 4] :time 40000");
        assert_eq!(validity(check, &lease_over), Validity::Valid, "a lock is a lease");
    }

    #[test]
    fn consume_skip() {
        let bad = [whole(1, 4), whole(1, 6)];
        assert_eq!(anomalies(check, &steps(&bad.concat())), [("consume-skip", 1)]);
        let bad = [whole(1, 4), [(1, "invoke", 5), (1, "fail", 5)], whole(1, 6)];
        assert_eq!(anomalies(check, &steps(&bad.concat())), [("consume-skip", 1)], "wanted again, passed over");
    }

    #[test]
    fn what_was_given_up_is_passed_over_if_it_is_a_dead_letter_and_was_tried() {
        let dead =
            |values: &str| format!("[8 :invoke :dead-letters [\"g\" nil]] [8 :ok :dead-letters [\"g\" {values}]]");
        let given_up = [(1, "invoke", 5), (1, "fail", 5)];
        let story = steps(&[whole(1, 4), given_up, given_up, whole(1, 6)].concat());
        assert_eq!(validity(check, &(story.clone() + &dead("[5]"))), Validity::Valid);
        assert_eq!(anomalies(check, &(story + &dead("[4]"))), [("consume-skip", 1)], "another one is");
        let untried = steps(&[whole(1, 4), whole(1, 6)].concat()) + &dead("[5]");
        assert_eq!(anomalies(check, &untried), [("consume-skip", 1)], "nobody tried it");
        let crashed = [(2, "invoke", 5), (2, "info", 5)];
        let in_between = steps(&[whole(1, 4), crashed, whole(3, 7)].concat()) + &dead("[5]");
        assert_eq!(anomalies(check, &in_between), [("consume-skip", 1)], "6 was never tried");
    }

    #[test]
    fn nonmonotonic_consume() {
        let bad = [whole(1, 4), whole(1, 5), whole(1, 4)];
        assert_eq!(anomalies(check, &steps(&bad.concat())), [("nonmonotonic-consume", 1)]);
        let fault = "[:nemesis :info :start-partition nil] [:nemesis :info :stop-partition nil]";
        let after_a_fault = [steps(&bad[..2].concat()), fault.to_owned(), steps(&bad[2])].concat();
        assert_eq!(
            validity(check, &after_a_fault),
            Validity::Valid,
            "the queue may have been somebody else's meanwhile"
        );
    }
}

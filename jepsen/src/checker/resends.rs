//! Clause "resends": a message that is sent again under its unique key is one message, and every answer names its place.
//!
//! That it stands once is the clauses' "one-value" and "loss", to whom all that is sent under one key is one send. Here is what
//! its senders are told: `:duplicate true` says that it had been there before, `false` that this send has stored it. O(n log n).
//!
//! - `other-place`: two answers name different places.
//! - `stored-again`: a send says that it has stored what another one has stored as well, or had been answered before.
//!
//! Without an answer that says `:duplicate true` the verdict is unknown: nothing was sent that was there.

use std::collections::BTreeMap;

use super::log::{flag, malformed};
use super::{Checked, Evidence, Verdict};
use crate::history::edn::Edn;
use crate::history::faults::faults;
use crate::history::{Call, Malformed, Outcome};

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let Evidence { history, log, .. } = *evidence;
    let (mut answers, mut resent) = (BTreeMap::<i64, Vec<Answer<'_>>>::new(), 0_u64);
    for call in history.calls_of("send") {
        resent += u64::from(flag(call.invocation, "again"));
        if call.outcome() == Outcome::Ok
            && let Some(answer) = Answer::of(call)?
        {
            answers.entry(answer.value).or_default().push(answer);
        }
    }
    if resent == 0 {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    let faults = faults(history);
    let (mut duplicates, mut over_faults) = (0_u64, 0_u64);
    for (value, answers) in &mut answers {
        answers.sort_unstable_by_key(|answer| answer.call.completed);
        let first = answers[0];
        for answer in answers.iter().filter(|answer| answer.place != first.place) {
            verdict.anomaly("other-place", || shown(&first, answer));
        }
        // Who has stored it may be answered later than one that found it, but was on its way when that one was answered.
        let mut stored = None;
        for answer in answers.iter().filter(|answer| !answer.is_duplicate) {
            let before = Some(&first).filter(|first| first.call.completed < answer.call.start);
            if let Some(before) = stored.or(before) {
                verdict.anomaly("stored-again", || shown(before, answer));
            }
            stored = stored.or(Some(answer));
        }
        let sent = log.send_of(*value).map(|send| history.at(log.sends[send as usize].start).time);
        let is_over_fault = |answer: &Answer<'_>| {
            let (from, to) = (sent.unwrap_or_default(), answer.call.invocation.time);
            faults.iter().any(|fault| fault.skipped.is_none() && (from..to).contains(&fault.start))
        };
        let found = || answers.iter().filter(|answer| answer.is_duplicate);
        duplicates += found().count() as u64;
        over_faults += found().filter(|answer| is_over_fault(answer)).count() as u64;
    }
    if duplicates == 0 {
        verdict.unknown("no answer says that its message had been there");
    }
    verdict.figure("resend-count", resent);
    verdict.figure("duplicate-count", duplicates);
    verdict.figure("duplicate-over-fault-count", over_faults);
    Ok(Some(verdict))
}

/// What a sender was told.
#[derive(Clone, Copy, Debug)]
struct Answer<'a> {
    call: Call<'a>,
    value: i64,
    place: &'a Edn,
    is_duplicate: bool,
}

impl<'a> Answer<'a> {
    /// `None` of what is not sent in this way at all.
    fn of(call: Call<'a>) -> Result<Option<Answer<'a>>, Malformed> {
        let Some(completion) = call.completion.filter(|completion| completion.extra("duplicate").is_some()) else {
            return Ok(None);
        };
        let wanted = || malformed(completion, "[[:send queue [offset value]]]");
        let [place] = completion.value.as_vector().ok_or_else(wanted)? else { return Err(wanted()) };
        let value = match place.as_vector() {
            Some([_, _, Edn::Vector(told)]) => told.last().and_then(Edn::as_int),
            _ => None,
        };
        let value = value.ok_or_else(wanted)?;
        Ok(Some(Answer { call, value, place, is_duplicate: flag(completion, "duplicate") }))
    }
}

fn shown(before: &Answer<'_>, after: &Answer<'_>) -> Edn {
    let answers = [before, after].map(|answer| answer.call.completion.map_or(Edn::Nil, |answer| answer.summary()));
    Edn::vector(answers)
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::testing::{anomalies, history, validity, verdict};
    use crate::checker::{Validity, loss, one_value};

    const FIRST: &str = "[0 :invoke :send [[:send 1 10]]] [0 :ok :send [[:send 1 [4 10]]] :duplicate false]";

    fn again(process: u32, offset: u32, is_duplicate: bool) -> String {
        format!(
            "[{process} :invoke :send [[:send 1 10]] :again true]
             [{process} :ok :send [[:send 1 [{offset} 10]]] :duplicate {is_duplicate}]"
        )
    }

    #[test]
    fn whoever_sends_again_is_told_the_first_place() {
        assert_eq!(validity(check, &format!("{FIRST} {} {}", again(1, 4, true), again(0, 4, true))), Validity::Valid);
        let unknown = "[0 :invoke :send [[:send 1 10]]] [0 :info :send [[:send 1 10]]]";
        let stored_by_the_second = format!("{unknown} {} {}", again(1, 4, false), again(2, 4, true));
        assert_eq!(validity(check, &stored_by_the_second), Validity::Valid, "the first never came");
        let stored_by_the_first = format!("{unknown} {} {}", again(1, 4, true), again(2, 4, true));
        assert_eq!(validity(check, &stored_by_the_first), Validity::Valid, "its answer was lost");
        let overtaken = FIRST.replace("[0 :ok", &format!("{} [0 :ok", again(1, 4, true)));
        assert_eq!(validity(check, &overtaken), Validity::Valid, "the first is answered last");
        assert!(verdict(check, &history(FIRST), &Default::default()).is_none(), "nothing is sent again");
    }

    #[test]
    fn other_place() {
        let bad = format!("{FIRST} {}", again(1, 5, true));
        assert_eq!(anomalies(check, &bad), [("other-place", 1)]);
    }

    #[test]
    fn stored_again() {
        assert_eq!(anomalies(check, &format!("{FIRST} {}", again(1, 4, false))), [("stored-again", 1)], "after it");
        let unknown = "[0 :invoke :send [[:send 1 10]]] [0 :info :send [[:send 1 10]]]";
        let after_one_found = format!("{unknown} {} {}", again(1, 4, true), again(2, 4, false));
        assert_eq!(anomalies(check, &after_one_found), [("stored-again", 1)], "after one that has found it");
        let at_once = FIRST.replace("[0 :ok", &format!("{} [0 :ok", again(1, 4, false)));
        assert_eq!(anomalies(check, &at_once), [("stored-again", 1)], "at the same time");
    }

    #[test]
    fn what_stands_twice_or_not_at_all_is_seen_by_the_others() {
        let read = |places: &str| {
            format!(
                "[0 :invoke :send [[:send 1 10]]] [0 :info :send [[:send 1 10]]] {}
                 [5 :invoke :final-read [[:poll]] :node \"n1\"]
                 [5 :ok :final-read [[:poll {{1 {places}}}]] :node \"n1\"]",
                again(1, 4, true)
            )
        };
        assert_eq!(validity(loss::check, &read("[[4 10]]")), Validity::Valid);
        assert_eq!(validity(one_value::check, &read("[[4 10]]")), Validity::Valid);
        assert_eq!(anomalies(one_value::check, &read("[[4 10] [5 10]]")), [("duplicate", 1)]);
        assert_eq!(anomalies(loss::check, &read("[]")), [("lost-write", 1)], "acknowledged to the second only");
    }

    #[test]
    fn nothing_that_was_there_is_no_pass() {
        let failed = "[0 :invoke :send [[:send 1 10]]] [0 :fail :send [[:send 1 10]]]";
        assert_eq!(validity(check, &format!("{failed} {}", again(1, 4, false))), Validity::Unknown);
    }
}

//! Clause "transactions": a committed half message appears exactly once, a rolled-back one never; the end is final.
//!
//! An end that was acknowledged has won, whoever asked for it. One that was not may have; so may the answer of a producer that
//! was asked. That a message appears once is the clause "one-value"'s. O(n log n).
//!
//! - `two-winners`: a commit and a rollback of one transaction are both acknowledged.
//! - `uncommitted-seen`: shown before anybody had asked for its commit.
//! - `rolled-back-seen`: shown, although its rollback was acknowledged.
//! - `lost-commit`: its commit was acknowledged, and a replica does not show it in the end.
//! - `never-ended`: stored, nobody ever said anything but commit, no transaction waits any more, and it is not there.
//!
//! Without a final read of each replica, or while transactions wait, the verdict is unknown.

use std::collections::BTreeMap;

use super::log::{Log, Send, malformed};
use super::loss::{Shown, missing_on, unread_places};
use super::{Checked, Evidence, Verdict};
use crate::history::edn::Edn;
use crate::history::{Call, Malformed, NEVER, Outcome, Position};

/// What was said about the end of one transaction.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    /// When somebody first wanted it committed.
    commit: Option<Position>,
    /// Somebody wanted it rolled back.
    rollback: bool,
    /// A commit was acknowledged.
    committed: bool,
    /// A rollback was.
    rolled_back: bool,
    /// How often its producer said how it ended.
    told: u32,
    /// How often one that was asked did.
    answered: u32,
}

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let Evidence { history, log, .. } = *evidence;
    if log.sends.iter().all(|send| !send.is_half) {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    let said = said(evidence)?;
    let is_settled = history.calls_of("settle").any(|call| call.outcome() == Outcome::Ok);
    let shown = Shown::of(log);
    let first_seen = first_seen(log);
    let (mut committed, mut rolled_back) = (0_u64, 0_u64);
    for (k, send) in log.sends.iter().enumerate().filter(|(_, send)| send.is_half) {
        let said = said.get(&(k as u32)).copied().unwrap_or_default();
        committed += u64::from(said.committed);
        rolled_back += u64::from(said.rolled_back);
        if said.committed && said.rolled_back {
            verdict.anomaly("two-winners", || send.show(history));
        }
        if shown.anywhere[k] && said.rolled_back {
            verdict.anomaly("rolled-back-seen", || send.show(history));
        }
        if first_seen[k] < said.commit.unwrap_or(NEVER) {
            verdict.anomaly("uncommitted-seen", || send.show(history));
        }
        let missing = || missing_on(log, &shown, k);
        if missing().next().is_none() {
            continue;
        }
        let missing = || shown_missing(evidence, send, missing());
        if said.committed {
            verdict.anomaly("lost-commit", missing);
        } else if is_settled && send.outcome == Outcome::Ok && said.commit.is_some() && !said.rollback {
            verdict.anomaly("never-ended", missing);
        }
    }
    if !is_settled {
        verdict.unknown("transactions may still wait for their ends");
    }
    unread_places(evidence, |send| send.is_half, &mut verdict);
    verdict.figure("committed-count", committed);
    verdict.figure("rolled-back-count", rolled_back);
    let count = |which: fn(&Said) -> bool| said.values().filter(|said| which(said)).count();
    verdict.figure("told-twice-count", count(|said| said.told > 1));
    verdict.figure("contradicted-count", count(|said| said.commit.is_some() && said.rollback));
    verdict.figure("left-to-whoever-is-asked-count", count(|said| said.told == 0 && said.answered > 0));
    Ok(Some(verdict))
}

/// What was said about each send.
fn said(evidence: &Evidence<'_>) -> Result<BTreeMap<u32, Said>, Malformed> {
    let mut said: BTreeMap<u32, Said> = BTreeMap::new();
    for call in evidence.history.calls() {
        let by_its_producer = match &*call.invocation.f {
            "end" => true,
            // Who was cut off within has said nothing.
            "check" if call.outcome() == Outcome::Ok => false,
            _ => continue,
        };
        let (send, Some(is_commit)) = end_of(&call, evidence.log)? else { continue };
        let said = said.entry(send).or_default();
        said.told += u32::from(by_its_producer);
        said.answered += u32::from(!by_its_producer);
        // Only its producer hears whether it has won.
        let has_won = by_its_producer && call.outcome() == Outcome::Ok;
        if is_commit {
            said.commit = Some(said.commit.map_or(call.start, |first| first.min(call.start)));
            said.committed |= has_won;
        } else {
            said.rollback = true;
            said.rolled_back |= has_won;
        }
    }
    Ok(said)
}

/// Of which send a call speaks, and whether it says commit or rollback, if either.
fn end_of(call: &Call<'_>, log: &Log) -> Result<(u32, Option<bool>), Malformed> {
    let operation = call.completion.filter(|_| call.outcome() == Outcome::Ok).unwrap_or(call.invocation);
    let said = match operation.value.as_vector() {
        Some([Edn::Int(value), end]) => log.send_of(*value).and_then(|send| match end.as_keyword() {
            Some("commit") => Some((send, Some(true))),
            Some("rollback") => Some((send, Some(false))),
            None if *end == Edn::Nil => Some((send, None)),
            _ => None,
        }),
        _ => None,
    };
    said.ok_or_else(|| malformed(operation, "[value :commit] or [value :rollback], of a value that was sent"))
}

/// Of each send the first operation that shows its value.
fn first_seen(log: &Log) -> Vec<Position> {
    let mut seen = vec![NEVER; log.sends.len()];
    for read in &log.reads {
        if let Some(send) = read.send {
            seen[send as usize] = seen[send as usize].min(read.at);
        }
    }
    seen
}

fn shown_missing(evidence: &Evidence<'_>, send: &Send, missing: impl Iterator<Item = usize>) -> Edn {
    let missing = missing.map(|node| evidence.log.nodes[node].0.as_str());
    Edn::map([("missing", Edn::vector(missing)), ("send", send.show(evidence.history))])
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::Validity;
    use crate::checker::testing::{anomalies, history, validity};

    /// 10 is committed, 11 rolled back; of 12 and 13 nobody heard how they ended; 14 was never stored.
    const ENDED: &str = r#"
        [0 :invoke :send [[:send 1 10]] :transaction true] [0 :ok :send [[:send 1 [nil 10]]]]
        [0 :invoke :send [[:send 1 11]] :transaction true] [0 :ok :send [[:send 1 [nil 11]]]]
        [0 :invoke :send [[:send 1 12]] :transaction true] [0 :ok :send [[:send 1 [nil 12]]]]
        [0 :invoke :send [[:send 1 13]] :transaction true] [0 :ok :send [[:send 1 [nil 13]]]]
        [0 :invoke :send [[:send 1 14]] :transaction true] [0 :fail :send [[:send 1 14]]]
        [0 :invoke :end [10 :commit]] [0 :ok :end [10 :commit]]
        [0 :invoke :end [11 :rollback]] [0 :ok :end [11 :rollback]]
        [0 :invoke :end [12 :commit]] [0 :info :end [12 :commit]]
        [1 :invoke :end [13 :rollback]] [1 :info :end [13 :rollback]]
        [2 :invoke :check [13 nil]] [2 :ok :check [13 :commit]]
    "#;

    const SETTLED: &str = "[7 :invoke :settle nil] [7 :ok :settle nil]";

    fn finally(ended: &str, one: &str, other: &str) -> String {
        format!(
            r#"{ended} {SETTLED}
            [5 :invoke :final-read [[:poll]] :node "n1"] [5 :ok :final-read [[:poll {{1 {one}}}]] :node "n1"]
            [5 :invoke :final-read [[:poll]] :node "n2"] [5 :ok :final-read [[:poll {{1 {other}}}]] :node "n2"]"#
        )
    }

    #[test]
    fn who_has_won_is_open_until_somebody_hears_it() {
        let both = "[[0 10] [1 12]]";
        assert_eq!(validity(check, &finally(ENDED, both, both)), Validity::Valid);
        let all = "[[0 10] [1 12] [2 13]]";
        assert_eq!(
            validity(check, &finally(ENDED, all, all)),
            Validity::Valid,
            "13 was committed by whoever was asked"
        );
    }

    #[test]
    fn two_winners() {
        let twice = format!("{ENDED} [3 :invoke :end [10 :rollback]] [3 :ok :end [10 :rollback]]");
        let found = anomalies(check, &finally(&twice, "[[0 12]]", "[[0 12]]"));
        assert_eq!(found, [("lost-commit", 1), ("two-winners", 1)]);
    }

    #[test]
    fn rolled_back_seen() {
        let bad = finally(ENDED, "[[0 10] [1 12] [2 11]]", "[[0 10] [1 12] [2 11]]");
        assert_eq!(anomalies(check, &bad), [("rolled-back-seen", 1), ("uncommitted-seen", 1)]);
    }

    #[test]
    fn uncommitted_seen() {
        let early = "[6 :invoke :poll [[:poll]]] [6 :ok :poll [[:poll {1 [[0 10]]}]]]";
        let bad = ENDED.replace("[0 :invoke :end [10", &format!("{early} [0 :invoke :end [10"));
        let both = "[[0 10] [1 12]]";
        assert_eq!(anomalies(check, &finally(&bad, both, both)), [("uncommitted-seen", 1)]);
        let unknown = finally(&ENDED.replace("[13 :commit]", "[13 nil]"), "[[0 10] [1 12] [2 13]]", "[[0 10] [1 12]]");
        assert_eq!(anomalies(check, &unknown), [("uncommitted-seen", 1)], "nobody wanted it");
    }

    #[test]
    fn lost_commit() {
        assert_eq!(anomalies(check, &finally(ENDED, "[[0 12]]", "[[0 12]]")), [("lost-commit", 1)]);
        assert_eq!(anomalies(check, &finally(ENDED, "[[0 10] [1 12]]", "[[1 12]]")), [("lost-commit", 1)], "on one");
    }

    #[test]
    fn never_ended() {
        assert_eq!(anomalies(check, &finally(ENDED, "[[0 10]]", "[[0 10]]")), [("never-ended", 1)]);
        let waits = finally(ENDED, "[[0 10]]", "[[0 10]]").replace(SETTLED, "");
        assert_eq!(validity(check, &waits), Validity::Unknown, "it may still come");
    }

    #[test]
    fn what_nobody_read_is_no_pass() {
        assert_eq!(validity(check, &format!("{ENDED} {SETTLED}")), Validity::Unknown);
        let other_queue = finally(ENDED, "[[0 10] [1 12]]", "[]").replace("{1 []}", "{2 []}");
        assert_eq!(validity(check, &other_queue), Validity::Unknown, "its queue was not read there");
        let of_nothing = history("[0 :invoke :end [10 :commit]]");
        assert!(crate::checker::testing::verdict(check, &of_nothing, &Default::default()).is_none());
    }
}

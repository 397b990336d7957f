//! Jepsen's stats: how the operations of each kind ended. A kind that never succeeded was not tested.
//!
//! - `no-ok`: none of a kind ended `:ok`. One-way operations, which are never answered, are left out.

use std::collections::BTreeMap;

use super::{Checked, Evidence, Verdict};
use crate::history::Outcome;
use crate::history::edn::Edn;

/// How often a kind of operation ended in each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// It happened.
    pub ok: u64,
    /// It did not.
    pub fail: u64,
    /// Nobody knows.
    pub info: u64,
    /// Of those, without an answer by design.
    pub one_way: u64,
}

impl Count {
    /// As it is shown in results.
    pub fn to_edn(self) -> Edn {
        let Count { ok, fail, info, .. } = self;
        let total = ok + fail + info;
        Edn::map([("count", total.into()), ("ok", ok.into()), ("fail", fail.into()), ("info", info.into())])
    }
}

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let counts = count(evidence);
    if counts.is_empty() {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    for (f, count) in &counts {
        // That no state was hashed the clause "equality" says, which is unknown then.
        if count.ok == 0 && *f != "state-hash" && count.fail + count.info > count.one_way {
            verdict.anomaly("no-ok", || Edn::map([("f", Edn::keyword(f)), ("counts", count.to_edn())]));
        }
    }
    let by_f = counts.iter().map(|(f, count)| (*f, count.to_edn()));
    verdict.figure("by-f", Edn::map(by_f));
    Ok(Some(verdict))
}

fn count<'a>(evidence: &Evidence<'a>) -> BTreeMap<&'a str, Count> {
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    for call in evidence.history.calls() {
        let count = counts.entry(&call.invocation.f).or_default();
        match call.outcome() {
            Outcome::Ok => count.ok += 1,
            Outcome::Fail => count.fail += 1,
            Outcome::Info => count.info += 1,
        }
        let one_way = call.invocation.extra("one-way").and_then(Edn::as_bool) == Some(true);
        count.one_way += u64::from(one_way && call.outcome() == Outcome::Info);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::Validity;
    use crate::checker::testing::{anomalies, validity};

    #[test]
    fn some_of_each_kind() {
        let good = r#"
            [0 :invoke :send [[:send 1 10]]]
            [0 :info   :send [[:send 1 10]]]
            [1 :invoke :send [[:send 1 11]]]
            [1 :ok     :send [[:send 1 [0 11]]]]
            [2 :invoke :update-offset [["g" 1] 5] :one-way true]
            [2 :info   :update-offset [["g" 1] 5]]
        "#;
        assert_eq!(validity(check, good), Validity::Valid, "a one-way operation is never answered");
    }

    #[test]
    fn no_ok() {
        let bad = r#"
            [0 :invoke :send [[:send 1 10]]]
            [0 :ok     :send [[:send 1 [0 10]]]]
            [0 :invoke :poll [[:poll]]]
            [0 :fail   :poll [[:poll]]]
        "#;
        assert_eq!(anomalies(check, bad), [("no-ok", 1)]);
        for asked_at_the_end in ["chain", "metadata-scan"] {
            assert_eq!(anomalies(check, &bad.replace("poll [[", &format!("{asked_at_the_end} [["))), [("no-ok", 1)]);
        }
        assert_eq!(validity(check, &bad.replace("poll [[", "state-hash [[")), Validity::Valid, "\"equality\" says so");
    }
}

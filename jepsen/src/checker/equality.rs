//! Clause "equality": equal index, equal bytes, equal state.
//!
//! `:chain` tells the rolling hash of a replica's whole log up to an index, `:state-hash` that of its state at a checkpoint.
//! O(n log n).
//!
//! - `divergent-chain`: two hashes of the log at one index.
//! - `divergent-state`: two hashes of the state at one index.
//!
//! If no index was ever told by two replicas, nothing was compared, and the verdict is unknown; and so it is if a run that
//! declares its replicas does not compare the states of all of them.

use std::collections::{BTreeMap, BTreeSet};

use super::log::malformed;
use super::{Checked, Evidence, Verdict};
use crate::history::edn::Edn;
use crate::history::operation::Operation;
use crate::history::{Malformed, Outcome};

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let mut verdict = Verdict::default();
    let mut exercised = false;
    for (f, anomaly, compared) in [
        ("chain", "divergent-chain", "chains-compared-count"),
        ("state-hash", "divergent-state", "states-compared-count"),
    ] {
        let tellings = tellings(evidence, f)?;
        if tellings.is_empty() {
            continue;
        }
        exercised = true;
        let mut at_index: BTreeMap<u64, Vec<&Telling<'_>>> = BTreeMap::new();
        for telling in &tellings {
            at_index.entry(telling.index).or_default().push(telling);
        }
        let mut both = 0_u64;
        for told in at_index.values() {
            let nodes: BTreeSet<&str> = told.iter().map(|telling| telling.node).collect();
            both += u64::from(nodes.len() > 1);
            if let Some(other) = told.iter().find(|telling| telling.hash != told[0].hash) {
                verdict.anomaly(anomaly, || Edn::vector([told[0].show(), other.show()]));
            }
        }
        if both == 0 {
            verdict.unknown(format!("no index at which two replicas told their {f}"));
        }
        verdict.figure(compared, both);
    }
    let nodes = &evidence.bounds.nodes;
    let told = tellings(evidence, "state-hash")?;
    let is_whole =
        |index: u64| nodes.iter().all(|node| told.iter().any(|telling| telling.index == index && telling.node == node));
    if exercised && !nodes.is_empty() && !told.iter().any(|telling| is_whole(telling.index)) {
        verdict.unknown("no checkpoint at which all replicas told the hash of their states");
    }
    Ok(exercised.then_some(verdict))
}

/// What a replica said about itself.
#[derive(Clone, Copy, Debug)]
pub struct Telling<'a> {
    /// Which replica.
    pub node: &'a str,
    /// Up to where.
    pub index: u64,
    /// The hash there.
    pub hash: &'a Edn,
    /// The operation.
    pub operation: &'a Operation,
}

impl Telling<'_> {
    fn show(&self) -> Edn {
        Edn::map([
            ("node", self.node.into()),
            ("log-index", self.index.into()),
            ("hash", self.hash.clone()),
            ("index", self.operation.index.into()),
            ("time", self.operation.time.into()),
        ])
    }
}

/// Everything told by one kind of operation, in order.
pub fn tellings<'a>(evidence: &Evidence<'a>, f: &str) -> Result<Vec<Telling<'a>>, Malformed> {
    let mut tellings = Vec::new();
    for call in evidence.history.calls().filter(|call| &*call.invocation.f == f) {
        let Some(operation) = call.completion.filter(|_| call.outcome() == Outcome::Ok) else { continue };
        let wanted = || malformed(operation, "{node [index hash]}");
        for (node, told) in operation.value.as_map().ok_or_else(wanted)? {
            let node = node.as_str().ok_or_else(wanted)?;
            let Some([Edn::Int(index), hash]) = told.as_vector() else { return Err(wanted()) };
            let index = u64::try_from(*index).map_err(|_| wanted())?;
            tellings.push(Telling { node, index, hash, operation });
        }
    }
    Ok(tellings)
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::testing::{anomalies, history, validity, verdict};
    use crate::checker::{Bounds, Validity};

    fn told(f: &str, what: &[&str]) -> String {
        what.iter().map(|what| format!("[9 :invoke :{f} nil] [9 :ok :{f} {what}]")).collect()
    }

    #[test]
    fn equal_where_they_meet() {
        let good = told("chain", &[r#"{"n1" [100 "aa"], "n2" [90 "bb"]}"#, r#"{"n2" [100 "aa"], "n1" [110 "cc"]}"#]);
        assert_eq!(validity(check, &(good + "[9 :invoke :chain nil] [9 :info :chain nil]")), Validity::Valid);
        assert_eq!(validity(check, &told("chain", &[r#"{"n1" [100 "aa"], "n2" [90 "bb"]}"#])), Validity::Unknown);
    }

    #[test]
    fn a_run_that_declares_its_replicas_compares_the_states_of_all() {
        let bounds = Bounds { nodes: ["n1", "n2"].map(str::to_owned).to_vec(), ..Bounds::default() };
        let judged = |what: &str| verdict(check, &history(what), &bounds).expect("touched").validity();
        let chain = told("chain", &[r#"{"n1" [100 "aa"], "n2" [100 "aa"]}"#]);
        assert_eq!(judged(&chain), Validity::Unknown);
        let (one, both) = (r#"{"n1" [99 "ab"]}"#, r#"{"n1" [99 "ab"], "n2" [99 "ab"]}"#);
        assert_eq!(judged(&(chain.clone() + &told("state-hash", &[one]))), Validity::Unknown);
        assert_eq!(judged(&(chain + &told("state-hash", &[both]))), Validity::Valid);
    }

    #[test]
    fn divergent_chain() {
        let bad = told("chain", &[r#"{"n1" [100 "aa"], "n2" [90 "bb"]}"#, r#"{"n2" [100 "ab"]}"#]);
        assert_eq!(anomalies(check, &bad), [("divergent-chain", 1)]);
        let bad = told("chain", &[r#"{"n1" [100 "aa"], "n2" [100 "aa"]}"#, r#"{"n1" [100 "ab"]}"#]);
        assert_eq!(anomalies(check, &bad), [("divergent-chain", 1)], "one replica, another time");
    }

    #[test]
    fn divergent_state() {
        let bad = told("state-hash", &[r#"{"n1" [100 "aa"], "n2" [100 "bb"], "n3" [100 "aa"]}"#]);
        assert_eq!(anomalies(check, &bad), [("divergent-state", 1)]);
    }
}

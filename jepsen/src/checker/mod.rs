//! Judges of a history, one file for each clause of the contract.
//!
//! A checker is a pure function of the history: it says whether the clause held, names what went wrong in Jepsen's words
//! where Jepsen has one, and shows the operations. A clause that the history never touches has no verdict; one that cannot
//! be judged, for want of a final read for instance, is [`Validity::Unknown`], never valid.
//!
//! What the harness records, beside Jepsen's own keys (`g` a group, `q` a queue, `o` an offset, `v` a value):
//!
//! | `:f` | `:value` of the invocation → of the `:ok` | extra keys |
//! |---|---|---|
//! | `:send` | `[[:send q v]]` → `[[:send q [o v]]]` | `:delay-ms`, `:transaction true`; `:again true` under the unique key that it had, and then `:duplicate` of the `:ok` |
//! | `:recall` | `v`: it is delayed, and is not to be seen; a `:fail` has changed nothing | |
//! | `:end` | `[v :commit]`, `[v :rollback]`: the end of a transaction, as its producer asks for it | |
//! | `:check` | `[v nil]` → `[v :commit]`, `[v :rollback]`, `[v nil]`: a producer is asked, and answers | |
//! | `:settle` | `nil`: no transaction waits for its end any more | |
//! | `:poll` | `[[:poll]]` → `[[:poll {q [[o v] …]}]]` | |
//! | `:assign`, `:subscribe` | `[q …]` | `:seek-to-beginning? true` |
//! | `:max-offset` | `[q nil]` → `[q end]` | |
//! | `:final-read` | `[[:poll]]` → `[[:poll {q [[o v] …]}]]`, in as many as it takes, an empty queue as `q []` | `:node` |
//! | `:consume`, `:consume-orderly` | `[g v]`: invoked when the listener gets it, `:ok` or `:fail` as it answers | `:queue`, `:offset`; of a popped one `:lease-ms`, `:asked-ms-ago` |
//! | `:drain` | `g`: nothing is left for it | |
//! | `:dead-letters` | `[g nil]` → `[g [v …]]`, all of them | |
//! | `:update-offset` | `[[g q] o]`; what was sent one-way ends `:info` | `:client`, `:one-way true` |
//! | `:query-offset` | `[[g q] nil]` → `[[g q] o]`, `nil` if there is none | |
//! | `:metadata-write` | `[key v]`; `nil` deletes | |
//! | `:metadata-read` | `[key nil]` → `[key v]` | |
//! | `:metadata-scan` | `nil` → `{key v}`, everything that one replica knows at the end | `:node` |
//! | `:chain`, `:state-hash` | `nil` → `{node [index hash]}` | |
//!
//! Values are unique integers. A message that is sent twice is two values, unless it is sent `:again`.

pub mod append;
pub mod bounds;
pub mod delay;
pub mod delivery;
pub mod equality;
pub mod leases;
pub mod linearizable;
pub mod liveness;
pub mod log;
pub mod loss;
pub mod metadata;
pub mod offsets;
pub mod one_value;
pub mod orderly;
pub mod resends;
pub mod stats;
pub mod transactions;
pub mod verdict;
pub mod visibility;

#[cfg(test)]
mod model;
#[cfg(test)]
mod testing;

pub use bounds::Bounds;
pub use verdict::{Validity, Verdict};

/// What the harness asks at the end, however long that takes: no operation of a client.
pub const OF_THE_HARNESS: [&str; 4] = ["chain", "state-hash", "final-read", "metadata-scan"];

use log::Log;

use crate::history::{History, Malformed};

/// A clause of the contract and its judge.
#[derive(Clone, Copy, Debug)]
pub struct Clause {
    /// How results call it.
    pub name: &'static str,
    /// What is promised.
    pub promise: &'static str,
    /// Its judge.
    pub check: fn(&Evidence<'_>) -> Checked,
}

/// A checker's answer: none if the history does not touch the clause, an error if it records it wrongly.
pub type Checked = Result<Option<Verdict>, Malformed>;

/// What a checker may look at.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Everything.
    pub history: &'a History,
    /// What it says about queues.
    pub log: &'a Log,
    /// What the run declares.
    pub bounds: &'a Bounds,
}

/// Every clause that can be judged. A new one adds its line.
pub const CLAUSES: &[Clause] = &[
    Clause {
        name: "append",
        promise: "Appends to a queue are linearizable: what was acknowledged before another was sent has the smaller offset.",
        check: append::check,
    },
    Clause {
        name: "one-value",
        promise: "One offset holds one value for ever, and one value stands at one offset.",
        check: one_value::check,
    },
    Clause { name: "loss", promise: "Nothing acknowledged is lost, on any replica.", check: loss::check },
    Clause {
        name: "visibility",
        promise: "A pull shows nothing that was not committed, and within a session neither goes back nor skips.",
        check: visibility::check,
    },
    Clause { name: "offsets", promise: "Consumer offsets are linearizable registers.", check: offsets::check },
    Clause {
        name: "delivery",
        promise: "Every acknowledged message reaches each group, or its dead-letter queue exactly once.",
        check: delivery::check,
    },
    Clause {
        name: "leases",
        promise: "A popped message is in one consumer's hands at a time; what was acknowledged does not come again.",
        check: leases::check,
    },
    Clause {
        name: "delay",
        promise: "A delayed message is never early, and becomes visible; one that is recalled never does.",
        check: delay::check,
    },
    Clause {
        name: "resends",
        promise: "A message sent again under its unique key is one message, and every answer names its place.",
        check: resends::check,
    },
    Clause {
        name: "transactions",
        promise: "A committed half message appears, a rolled-back one never; the end is final.",
        check: transactions::check,
    },
    Clause {
        name: "orderly",
        promise: "Orderly consumption: one message of a queue at a time, in the queue's order.",
        check: orderly::check,
    },
    Clause {
        name: "metadata",
        promise: "Metadata changes are linearizable; nothing deleted comes back.",
        check: metadata::check,
    },
    Clause {
        name: "equality",
        promise: "Equal index, equal bytes, equal state on every replica.",
        check: equality::check,
    },
    Clause { name: "liveness", promise: "Service returns within the declared bounds.", check: liveness::check },
    Clause { name: "stats", promise: "Every kind of operation succeeded at least once.", check: stats::check },
];

/// The verdict of every clause, in the order of [`CLAUSES`].
pub fn check_all(history: &History, bounds: &Bounds) -> Vec<(Clause, Option<Verdict>)> {
    let log = Log::of(history);
    let verdict = |clause: &Clause| {
        let log = log.as_ref().map_err(Clone::clone)?;
        let checked = (clause.check)(&Evidence { history, log, bounds })?;
        Ok(match checked {
            None if bounds.require.iter().any(|name| name == clause.name) => {
                Some(Verdict::of_unknown("required, but the history does not touch it"))
            }
            verdict => verdict,
        })
    };
    CLAUSES
        .iter()
        .map(|clause| {
            let verdict = verdict(clause);
            (*clause, verdict.unwrap_or_else(|error: Malformed| Some(Verdict::of_unknown(&error.to_string()))))
        })
        .collect()
}

//! Clause "leases": a popped message is in one consumer's hands at a time, and what was acknowledged does not come again.
//!
//! A consumption is an operation from when its consumer has the message until it has acknowledged it or given it back. The
//! consumer says how long its lease surely runs from there (`:lease-ms`): what it asked for, less the time since it asked. One
//! that ends `:info` may have been acknowledged or not; its lease runs to its end. O(n log n).
//!
//! - `overlap`: another consumer of the group gets the message while a lease on it surely runs.
//! - `acknowledged-again`: delivered from a lease that began after an acknowledgement of the message was answered.

use std::collections::BTreeMap;

use super::bounds::MS;
use super::delivery::delivery;
use super::log::{malformed, number};
use super::{Checked, Evidence, Verdict};
use crate::history::edn::Edn;
use crate::history::{Call, Malformed, Outcome};

/// One consumption under a lease.
#[derive(Clone, Copy, Debug)]
struct Lease<'a> {
    call: Call<'a>,
    /// When its consumer had asked: the lease begins no earlier.
    asked: u64,
    /// It surely runs until then, unless its holder ends it.
    runs_until: u64,
}

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let Evidence { history, bounds, .. } = *evidence;
    let mut leases: BTreeMap<(&str, i64), Vec<Lease<'_>>> = BTreeMap::new();
    for call in history.calls() {
        let Some((group, value)) = delivery(&call)? else { continue };
        if let Some(lease) = lease_of(call)? {
            leases.entry((group, value)).or_default().push(lease);
        }
    }
    if leases.is_empty() {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    let (mut count, mut again) = (0, 0_u64);
    for leases in leases.values() {
        count += leases.len();
        again += leases.len() as u64 - 1;
        for (k, earlier) in leases.iter().enumerate() {
            let held_until = match earlier.call.outcome() {
                Outcome::Ok | Outcome::Fail => earlier.runs_until.min(history.at(earlier.call.completed).time),
                Outcome::Info => earlier.runs_until,
            };
            let acknowledged = (earlier.call.outcome() == Outcome::Ok).then(|| history.at(earlier.call.completed).time);
            for later in &leases[k + 1..] {
                let got = history.at(later.call.start).time;
                // One whose own lease may be over when it has the message is no holder.
                if got + bounds.clock_bound < held_until && got < later.runs_until {
                    verdict.anomaly("overlap", || shown(earlier, later));
                }
                if acknowledged.is_some_and(|acknowledged| acknowledged < later.asked) {
                    verdict.anomaly("acknowledged-again", || shown(earlier, later));
                }
            }
        }
    }
    verdict.figure("lease-count", count);
    verdict.figure("again-count", again);
    Ok(Some(verdict))
}

fn lease_of(call: Call<'_>) -> Result<Option<Lease<'_>>, Malformed> {
    let Some(lease_ms) = number(call.invocation, "lease-ms")? else { return Ok(None) };
    let wanted = || malformed(call.invocation, ":asked-ms-ago");
    let since = number(call.invocation, "asked-ms-ago")?.ok_or_else(wanted)?;
    let at = call.invocation.time;
    Ok(Some(Lease { call, asked: at.saturating_sub(since * MS), runs_until: at + lease_ms * MS }))
}

fn shown(earlier: &Lease<'_>, later: &Lease<'_>) -> Edn {
    Edn::vector([earlier.call.invocation.summary(), later.call.invocation.summary()])
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::Validity;
    use crate::checker::testing::{anomalies, history, validity, verdict};

    /// A lease of three seconds, had at 1 s, half a second after it was asked for.
    const FIRST: &str = "[0 :invoke :consume [\"g\" 10] :time 1000 :lease-ms 2500 :asked-ms-ago 500]";

    fn then(end: &str, at_ms: u32) -> String {
        format!(
            "{FIRST} {end}
             [1 :invoke :consume [\"g\" 10] :time {at_ms} :lease-ms 2900 :asked-ms-ago 100]
             [1 :ok :consume [\"g\" 10] :time {}]",
            at_ms + 10
        )
    }

    #[test]
    fn when_a_lease_is_over_another_may_begin() {
        assert_eq!(validity(check, &then("", 3_600)), Validity::Valid, "its holder is never heard of again");
        let given_back = "[0 :fail :consume [\"g\" 10] :time 1200]";
        assert_eq!(validity(check, &then(given_back, 1_400)), Validity::Valid, "its holder gave it back");
        let stale = then("", 2_000).replace(":lease-ms 2900 :asked-ms-ago 100", ":lease-ms 0 :asked-ms-ago 3000");
        assert_eq!(validity(check, &stale), Validity::Valid, "the second has an answer that was long on its way");
        let other = then("", 2_000).replace("[1 :invoke :consume [\"g\"", "[1 :invoke :consume [\"h\"");
        assert_eq!(validity(check, &other), Validity::Valid, "another group");
        let none = history(&FIRST.replace(":lease-ms 2500 :asked-ms-ago 500", ""));
        assert!(verdict(check, &none, &Default::default()).is_none(), "no lease");
    }

    #[test]
    fn overlap() {
        assert_eq!(anomalies(check, &then("", 3_400)), [("overlap", 1)]);
        let unknown = "[0 :info :consume [\"g\" 10] :time 1200]";
        assert_eq!(anomalies(check, &then(unknown, 2_000)), [("overlap", 1)], "nobody knows that it was given back");
    }

    #[test]
    fn acknowledged_again() {
        let acknowledged = "[0 :ok :consume [\"g\" 10] :time 1200]";
        assert_eq!(anomalies(check, &then(acknowledged, 5_000)), [("acknowledged-again", 1)]);
        let crossed = then(acknowledged, 1_250);
        assert_eq!(validity(check, &crossed), Validity::Valid, "asked for before that was answered");
    }
}

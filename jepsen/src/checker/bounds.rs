//! What a run declares about itself in its `test.edn`, as far as checkers need it. Every key has a default.

use crate::history::Malformed;
use crate::history::edn::Edn;

/// Nanoseconds of a millisecond.
pub const MS: u64 = 1_000_000;

/// See the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// `:nodes`: the replicas, each of which must be read at the end.
    pub nodes: Vec<String>,
    /// `:require`: clauses that this run is about; a history that does not touch one of them is no pass.
    pub require: Vec<String>,
    /// `:clock-bound-ms`: how far a clock may be off, which is how early a delayed message may seem to be.
    pub clock_bound: u64,
    /// `:late-limit-ms`: how late a delayed message may be while no fault is at work.
    pub late_limit: u64,
    /// `:recovery-limit-ms`: within what time of a fault's end something must succeed.
    pub recovery_limit: u64,
    /// `:outage-limit-ms`: how long nothing may succeed while a majority is untouched.
    pub outage_limit: u64,
    /// `:convergence-limit-ms`: within what time of the last fault's end all replicas must be at one index.
    pub convergence_limit: u64,
    /// `:exclusive-ms`: how long from its start a client that processes orderly is surely alone. A client asks whether its
    /// lock is younger than 30 s before it starts; the broker holds it for 60 s.
    pub exclusive: u64,
    /// `:search-steps`: how far the search for a linearization goes, for each key, before its verdict is unknown.
    pub search_steps: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            nodes: Vec::new(),
            require: Vec::new(),
            clock_bound: 10 * MS,
            late_limit: 10_000 * MS,
            recovery_limit: 15_000 * MS,
            outage_limit: 5_000 * MS,
            convergence_limit: 60_000 * MS,
            exclusive: 30_000 * MS,
            search_steps: 1_000_000,
        }
    }
}

impl Bounds {
    /// From the map of a `test.edn`; keys of others are left alone.
    pub fn from_edn(test: &Edn) -> Result<Bounds, Malformed> {
        let mut bounds = Bounds::default();
        for (key, names) in [("nodes", &mut bounds.nodes), ("require", &mut bounds.require)] {
            let Some(items) = test.get(key) else { continue };
            let name = |item: &Edn| item.as_str().or(item.as_keyword()).map(str::to_owned);
            let read = items.as_vector().and_then(|items| items.iter().map(name).collect());
            *names = read.ok_or_else(|| Malformed(format!(":{key} is a vector of names")))?;
        }
        for (key, scale, bound) in [
            ("clock-bound-ms", MS, &mut bounds.clock_bound),
            ("late-limit-ms", MS, &mut bounds.late_limit),
            ("recovery-limit-ms", MS, &mut bounds.recovery_limit),
            ("outage-limit-ms", MS, &mut bounds.outage_limit),
            ("convergence-limit-ms", MS, &mut bounds.convergence_limit),
            ("exclusive-ms", MS, &mut bounds.exclusive),
            ("search-steps", 1, &mut bounds.search_steps),
        ] {
            let Some(number) = test.get(key) else { continue };
            let read = number.as_int().and_then(|number| u64::try_from(number).ok()?.checked_mul(scale));
            *bound = read.ok_or_else(|| Malformed(format!(":{key} is a natural number")))?;
        }
        Ok(bounds)
    }
}

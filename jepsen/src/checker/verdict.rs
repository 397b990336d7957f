//! What a checker says.

use std::collections::BTreeMap;

use crate::history::edn::Edn;

/// How many operations are shown for each anomaly. All are counted.
pub const EXAMPLES: usize = 8;

/// Whether a clause held. The greater one decides when verdicts are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Validity {
    /// It held.
    Valid,
    /// The history does not say.
    Unknown,
    /// It did not.
    Invalid,
}

impl Validity {
    /// As Jepsen writes `:valid?`.
    pub fn to_edn(self) -> Edn {
        match self {
            Validity::Valid => Edn::Bool(true),
            Validity::Unknown => Edn::keyword("unknown"),
            Validity::Invalid => Edn::Bool(false),
        }
    }
}

/// One kind of anomaly: how often, and the first of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Anomaly {
    /// How often it was found.
    pub count: u64,
    /// The first [`EXAMPLES`] of them.
    pub examples: Vec<Edn>,
}

/// A checker's verdict.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// What went wrong, by name.
    pub anomalies: BTreeMap<&'static str, Anomaly>,
    /// What could not be judged.
    pub unknown: Vec<String>,
    /// What was counted and measured.
    pub figures: Vec<(&'static str, Edn)>,
}

impl Verdict {
    /// A verdict that could not be reached.
    pub fn of_unknown(why: &str) -> Verdict {
        let mut verdict = Verdict::default();
        verdict.unknown(why);
        verdict
    }

    /// Adds an anomaly; `example` is asked for only if it will be shown.
    pub fn anomaly(&mut self, name: &'static str, example: impl FnOnce() -> Edn) {
        let anomaly = self.anomalies.entry(name).or_default();
        anomaly.count += 1;
        if anomaly.examples.len() < EXAMPLES {
            anomaly.examples.push(example());
        }
    }

    /// Adds something that could not be judged.
    pub fn unknown(&mut self, why: impl Into<String>) {
        let why = why.into();
        if self.unknown.len() < EXAMPLES && !self.unknown.contains(&why) {
            self.unknown.push(why);
        }
    }

    /// Adds a figure.
    pub fn figure(&mut self, name: &'static str, value: impl Into<Edn>) {
        self.figures.push((name, value.into()));
    }

    /// See [`Validity`]. An anomaly is one whatever else is unknown.
    pub fn validity(&self) -> Validity {
        match (self.anomalies.is_empty(), self.unknown.is_empty()) {
            (false, _) => Validity::Invalid,
            (true, false) => Validity::Unknown,
            (true, true) => Validity::Valid,
        }
    }

    /// As it stands in results.
    pub fn to_edn(&self) -> Edn {
        let mut entries = vec![("valid?", self.validity().to_edn())];
        let anomalies = self.anomalies.iter().map(|(name, anomaly)| {
            let shown = [("count", anomaly.count.into()), ("examples", Edn::Vector(anomaly.examples.clone()))];
            (*name, Edn::map(shown))
        });
        if !self.anomalies.is_empty() {
            entries.push(("anomalies", Edn::map(anomalies)));
        }
        if !self.unknown.is_empty() {
            entries.push(("unknown", Edn::vector(self.unknown.clone())));
        }
        entries.extend(self.figures.iter().cloned());
        Edn::map(entries)
    }
}

/// The values below which the given parts per thousand of `sorted` lie, and the greatest: `{:p50 …, :p99 …, :max …}`.
pub fn percentiles(sorted: &[u64]) -> Edn {
    let at = |per_mille: usize| sorted.get((sorted.len() * per_mille / 1000).min(sorted.len().saturating_sub(1)));
    let shown = [("p50", 500), ("p95", 950), ("p99", 990), ("p999", 999), ("max", 1000)];
    Edn::map(shown.map(|(name, per_mille)| (name, at(per_mille).copied().into())))
}

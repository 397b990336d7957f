//! A stored run judged: its directory holds `history.edn`, maybe `test.edn`, and gets `results.edn` and `report.html`.
//!
//! Everything is a function of the two inputs: a history that is checked again gives the same bytes.

mod plot;
mod report;
mod series;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::Path;

use crate::checker::verdict::EXAMPLES;
use crate::checker::{self, Bounds, Clause, Validity, Verdict};
use crate::history::History;
use crate::history::edn::{Edn, Parser};
use crate::history::faults::{Fault, faults};

/// The verdicts on a history.
#[derive(Debug)]
pub struct Results {
    verdicts: Vec<(Clause, Option<Verdict>)>,
    faults: Vec<Fault>,
    torn: bool,
}

impl Results {
    /// Asks every checker.
    pub fn of(history: &History, bounds: &Bounds) -> Results {
        Results { verdicts: checker::check_all(history, bounds), faults: faults(history), torn: history.is_torn() }
    }

    /// The worst of all. A history that touches nothing is no pass.
    pub fn validity(&self) -> Validity {
        let judged = self.verdicts.iter().filter_map(|(_, verdict)| verdict.as_ref()).map(Verdict::validity);
        judged.max().unwrap_or(Validity::Unknown)
    }

    /// Each clause, with its verdict if the history touches it.
    pub fn verdicts(&self) -> &[(Clause, Option<Verdict>)] {
        &self.verdicts
    }

    /// As it stands in `results.edn`.
    pub fn to_edn(&self) -> Edn {
        let mut entries = vec![("valid?", self.validity().to_edn())];
        let untouched: Vec<Edn> = self.untouched().map(|clause| Edn::keyword(clause.name)).collect();
        entries.push(("not-exercised", untouched.into()));
        let failed = self.verdicts.iter().flat_map(|(_, verdict)| verdict).flat_map(|verdict| verdict.anomalies.keys());
        let mut failed: Vec<&str> = failed.copied().collect();
        failed.sort_unstable();
        failed.dedup();
        entries.push(("anomaly-types", Edn::vector(failed.into_iter().map(Edn::keyword))));
        if self.torn {
            entries.push(("torn", true.into()));
        }
        let judged =
            self.verdicts.iter().filter_map(|(clause, verdict)| Some((clause.name, verdict.as_ref()?.to_edn())));
        entries.extend(judged);
        entries.push(("faults", Edn::vector(self.faults.iter().map(fault_to_edn))));
        Edn::map(entries)
    }

    /// How the operations ended, and how often each fault struck, in one line.
    fn told(&self) -> String {
        let stats = self.verdicts.iter().find(|(clause, _)| clause.name == "stats");
        let figures = stats.and_then(|(_, verdict)| verdict.as_ref()).map_or(&[][..], |verdict| &verdict.figures);
        let mut told: Vec<String> = figures.iter().map(|(_, figure)| figure.to_string()).collect();
        let mut struck: BTreeMap<&str, u32> = BTreeMap::new();
        for fault in self.faults.iter().filter(|fault| fault.skipped.is_none()) {
            *struck.entry(&fault.name).or_default() += 1;
        }
        told.extend(struck.iter().map(|(name, count)| format!("{name} x {count}")));
        told.join(", ")
    }

    fn untouched(&self) -> impl Iterator<Item = &Clause> {
        self.verdicts.iter().filter(|(_, verdict)| verdict.is_none()).map(|(clause, _)| clause)
    }
}

/// Checks the history of a directory and writes the results beside it.
pub fn check(dir: &Path) -> io::Result<Results> {
    let history = History::read(BufReader::with_capacity(1 << 20, File::open(dir.join("history.edn"))?))?;
    let test = match fs::read_to_string(dir.join("test.edn")) {
        Ok(text) => Parser::default().parse(&text).map_err(|error| io::Error::other(format!("test.edn: {error}")))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Edn::map([]),
        Err(error) => return Err(error),
    };
    let bounds = Bounds::from_edn(&test).map_err(|error| io::Error::other(format!("test.edn: {error}")))?;
    let results = Results::of(&history, &bounds);
    fs::write(dir.join("results.edn"), pretty(&results.to_edn()))?;
    fs::write(dir.join("report.html"), report::html(&history, &test, &results))?;
    Ok(results)
}

/// `jepsen check`: says what was found; an error unless all of it is valid.
pub fn run(dir: &Path) -> io::Result<()> {
    let results = check(dir)?;
    for (clause, verdict) in results.verdicts() {
        let Some(verdict) = verdict else {
            println!("{:<12} not exercised", clause.name);
            continue;
        };
        let anomalies = verdict.anomalies.iter().map(|(name, anomaly)| format!("{name} x {}", anomaly.count));
        let notes: Vec<String> = anomalies.chain(verdict.unknown.iter().cloned()).collect();
        println!("{:<12} {:<8} {}", clause.name, word(verdict.validity()), notes.join("; "));
    }
    println!("{}", results.told());
    for fault in &results.faults {
        if let Some(why) = &fault.skipped {
            println!("SKIPPED fault {}: {why}", fault.name);
        }
    }
    println!("{}", dir.join("report.html").display());
    match results.validity() {
        Validity::Valid => Ok(()),
        Validity::Unknown => Err(io::Error::other("the history does not prove the contract")),
        Validity::Invalid => Err(io::Error::other("the contract was violated")),
    }
}

fn word(validity: Validity) -> &'static str {
    match validity {
        Validity::Valid => "valid",
        Validity::Unknown => "UNKNOWN",
        Validity::Invalid => "INVALID",
    }
}

fn fault_to_edn(fault: &Fault) -> Edn {
    let mut entries = vec![
        ("name", Edn::keyword(&fault.name)),
        ("start", fault.start.into()),
        ("end", fault.end.into()),
        (
            "evidence",
            Edn::vector(fault.evidence.iter().filter(|evidence| **evidence != Edn::Nil).take(EXAMPLES).cloned()),
        ),
    ];
    if fault.majority {
        entries.push(("majority", true.into()));
    }
    entries.extend(fault.skipped.as_deref().map(|why| ("skipped", why.into())));
    Edn::map(entries)
}

/// One entry of the outermost map, and of each map within, a line.
pub(crate) fn pretty(edn: &Edn) -> String {
    let lines = |edn: &Edn, indent: &str| -> Option<String> {
        let entries = edn.as_map().filter(|entries| !entries.is_empty())?;
        let entries: Vec<String> = entries.iter().map(|(key, value)| format!("{key} {value}")).collect();
        Some(format!("{{{}}}", entries.join(&format!(",\n{indent}"))))
    };
    let entries = edn.as_map().unwrap_or_default().iter().map(|(key, value)| {
        let value = lines(value, "   ").unwrap_or_else(|| value.to_string());
        format!("{key}\n  {value}")
    });
    format!("{{{}}}\n", entries.collect::<Vec<_>>().join("\n "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str = r#"{:index 0, :type :invoke, :process 0, :time 1000000, :f :send, :value [[:send 1 10]]}
{:index 1, :type :ok, :process 0, :time 9000000, :f :send, :value [[:send 1 [0 10]]]}
{:index 2, :type :info, :process :nemesis, :time 10000000, :f :start-kill, :value {"n1" "<gone & \"dead\">"}}
{:index 3, :type :info, :process :nemesis, :time 20000000, :f :stop-kill, :value {"n1" :started}}
{:index 4, :type :info, :process :nemesis, :time 20000000, :f :start-netem, :value nil, :skipped "no such qdisc"}
{:index 5, :type :invoke, :process 1, :time 21000000, :f :final-read, :value [[:poll]], :node "n1"}
{:index 6, :type :ok, :process 1, :time 22000000, :f :final-read, :value [[:poll {1 [PLACES]}]], :node "n1"}
"#;

    fn checked(places: &str, test: &str) -> (tempfile::TempDir, Results) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("history.edn"), HISTORY.replace("PLACES", places)).unwrap();
        fs::write(dir.path().join("test.edn"), test).unwrap();
        let results = check(dir.path()).unwrap();
        (dir, results)
    }

    #[test]
    fn a_stored_history_is_judged_and_its_results_are_stored() {
        let (dir, results) = checked("[0 10]", "{:seed 7, :nodes [\"n1\"]}");
        assert_eq!(results.validity(), Validity::Valid, "{}", results.to_edn());
        let stored = fs::read_to_string(dir.path().join("results.edn")).unwrap();
        assert_eq!(Parser::default().parse(&stored), Ok(results.to_edn()));
        let page = fs::read_to_string(dir.path().join("report.html")).unwrap();
        assert!(page.contains("&lt;gone &amp; \\&quot;dead\\&quot;&gt;"), "evidence is text, not markup");
        assert!(page.contains("SKIPPED: no such qdisc") && page.contains("<svg") && page.contains(":seed"));
        assert!(!page.contains("http"), "nothing is fetched");
    }

    #[test]
    fn the_worst_clause_decides() {
        let (_dir, results) = checked("", "{}");
        assert_eq!(results.validity(), Validity::Invalid);
        assert_eq!(results.to_edn().get("anomaly-types"), Some(&Edn::vector([Edn::keyword("lost-write")])));
        let (_dir, results) = checked("[0 10]", "{:require [:append :delivery]}");
        assert_eq!(results.validity(), Validity::Unknown, "what a run is about must be in its history");
    }

    #[test]
    fn a_bound_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("history.edn"), "").unwrap();
        assert_eq!(check(dir.path()).unwrap().validity(), Validity::Unknown, "an empty history proves nothing");
        fs::write(dir.path().join("test.edn"), "{:outage-limit-ms -1}").unwrap();
        assert!(check(dir.path()).unwrap_err().to_string().contains("outage-limit-ms"));
    }
}

//! The faults of a history: when each began and ended, and what shows that it took effect.
//!
//! The nemesis records `:start-NAME` and `:stop-NAME`, or `:NAME` for what has no length; each may stand twice, before and
//! after it is done. The value is the evidence. Extra keys: `:majority true` if so much is struck that the contract does
//! not promise service, `:skipped "why"` if the machine cannot produce it.

use super::History;
use super::edn::Edn;
use super::operation::Process;

/// A fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What it is.
    pub name: String,
    /// When it began to be made, in nanoseconds of the history.
    pub start: u64,
    /// When it was undone; `None` if it never was.
    pub end: Option<u64>,
    /// What shows that it took effect, in the order recorded.
    pub evidence: Vec<Edn>,
    /// Whether so much was struck that no service is promised.
    pub majority: bool,
    /// Why it was not made.
    pub skipped: Option<String>,
}

impl Fault {
    /// Whether it lasted at some time of that interval.
    pub fn overlaps(&self, from: u64, to: u64) -> bool {
        self.skipped.is_none() && self.start <= to && self.end.is_none_or(|end| end >= from)
    }

    /// Whether the cluster would not have it. It says why, which is evidence of that, and nothing was struck.
    pub fn is_refused(&self) -> bool {
        self.evidence.iter().any(|evidence| {
            let of_nodes = evidence.as_map().unwrap_or_default().iter();
            evidence.get("refused").is_some() || of_nodes.into_iter().any(|(_, shown)| shown.get("refused").is_some())
        })
    }

    /// Whether there is anything to show that it took effect.
    pub fn is_proven(&self) -> bool {
        self.skipped.is_some() || self.evidence.iter().any(|evidence| *evidence != Edn::Nil)
    }
}

/// The faults of a history, by their beginning.
pub fn faults(history: &History) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let nemesis = history.operations().iter().filter(|operation| operation.process == Process::Nemesis);
    for operation in nemesis {
        let (name, step) = match &*operation.f {
            f if f.starts_with("start-") => (&f["start-".len()..], Step::Start),
            f if f.starts_with("stop-") => (&f["stop-".len()..], Step::Stop),
            f => (f, Step::Once),
        };
        let newest = faults.iter().rposition(|fault| fault.name == name);
        let stopped = newest.is_some_and(|newest| faults[newest].end.is_some());
        // A second record of one step joins the first; a stop belongs to the newest of its name.
        let joins = match step {
            Step::Start => newest.filter(|_| !stopped),
            Step::Stop => newest,
            Step::Once => newest.filter(|newest| faults[*newest].evidence == [Edn::Nil]),
        };
        let position = joins.unwrap_or_else(|| {
            faults.push(Fault {
                name: name.to_owned(),
                start: operation.time,
                end: None,
                evidence: Vec::new(),
                majority: false,
                skipped: None,
            });
            faults.len() - 1
        });
        let fault = &mut faults[position];
        if !matches!(step, Step::Start) {
            fault.end = Some(operation.time);
        }
        fault.evidence.push(operation.value.clone());
        fault.majority |= operation.extra("majority").and_then(Edn::as_bool) == Some(true);
        if let Some(why) = operation.extra("skipped") {
            fault.skipped = Some(why.as_str().map_or_else(|| why.to_string(), str::to_owned));
            fault.end = Some(operation.time);
        }
    }
    faults
}

enum Step {
    Start,
    Stop,
    Once,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_and_stops_become_intervals_with_their_evidence() {
        let text = r#"
            {:index 0, :type :info, :process :nemesis, :time 10, :f :start-kill, :value nil}
            {:index 1, :type :info, :process :nemesis, :time 12, :f :start-kill, :value {"n2" :gone}}
            {:index 2, :type :info, :process :nemesis, :time 15, :f :move-leader, :value nil}
            {:index 3, :type :info, :process :nemesis, :time 16, :f :move-leader, :value {"n1" "n3"}}
            {:index 4, :type :info, :process :nemesis, :time 20, :f :stop-kill, :value {"n2" :started}}
            {:index 5, :type :info, :process :nemesis, :time 30, :f :start-kill, :value nil, :majority true}
            {:index 6, :type :info, :process :nemesis, :time 40, :f :start-netem, :value nil, :skipped "not in this kernel"}
        "#;
        let faults = faults(&History::read(text.as_bytes()).unwrap());
        let told: Vec<_> = faults.iter().map(|fault| (fault.name.as_str(), fault.start, fault.end)).collect();
        assert_eq!(
            told,
            [("kill", 10, Some(20)), ("move-leader", 15, Some(16)), ("kill", 30, None), ("netem", 40, Some(40))]
        );
        assert_eq!(faults[0].evidence.len(), 3);
        assert!(faults[0].is_proven() && !faults[2].is_proven() && faults[2].majority);
        assert_eq!(faults[3].skipped.as_deref(), Some("not in this kernel"));
        let refused = Edn::map([("n1", Edn::map([("refused", "no".into())]))]);
        assert!(
            Fault { evidence: vec![Edn::Nil, refused], ..faults[0].clone() }.is_refused() && !faults[0].is_refused()
        );
        assert!(faults[2].overlaps(100, 200) && !faults[0].overlaps(21, 22) && !faults[3].overlaps(0, 100));
    }
}

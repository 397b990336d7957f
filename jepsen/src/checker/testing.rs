//! Histories for the tests of checkers.

use super::log::Log;
use super::{Bounds, Checked, Evidence, Validity, Verdict};
use crate::history::History;
use crate::history::edn::{Edn, Parser};
use crate::history::operation::Operation;

/// A checker.
pub type Check = fn(&Evidence<'_>) -> Checked;

/// A history from its essentials: `[process type f value]`, then extra keys and values. `:time` is in milliseconds here,
/// and by default one more than the line before.
pub fn history(text: &str) -> History {
    let mut time = 0;
    let operations = Parser::default().parse_all(text).expect("sound EDN").into_iter().enumerate();
    let operations = operations.map(|(index, line)| {
        let Edn::Vector(items) = line else { panic!("not a vector: {line}") };
        let [process, kind, f, value] = &items[..4] else { unreachable!() };
        let mut entries = vec![
            (Edn::keyword("index"), index.into()),
            (Edn::keyword("process"), process.clone()),
            (Edn::keyword("type"), kind.clone()),
            (Edn::keyword("f"), f.clone()),
            (Edn::keyword("value"), value.clone()),
        ];
        time += 1;
        for extra in items[4..].chunks(2) {
            match extra[0].as_keyword() {
                Some("time") => time = extra[1].as_int().expect("a time"),
                _ => entries.push((extra[0].clone(), extra[1].clone())),
            }
        }
        entries.push((Edn::keyword("time"), Edn::Int(time * 1_000_000)));
        Operation::from_edn(Edn::Map(entries)).expect("a sound operation")
    });
    History::new(operations.collect()).expect("a sound history")
}

/// The verdict of one checker.
pub fn verdict(check: Check, history: &History, bounds: &Bounds) -> Option<Verdict> {
    let log = Log::of(history).expect("a sound log");
    check(&Evidence { history, log: &log, bounds }).expect("sound operations")
}

/// The names and counts of the anomalies that a checker finds in such a history.
pub fn anomalies(check: Check, text: &str) -> Vec<(&'static str, u64)> {
    let verdict = verdict(check, &history(text), &Bounds::default()).expect("a verdict");
    verdict.anomalies.iter().map(|(name, anomaly)| (*name, anomaly.count)).collect()
}

/// How a checker judges such a history.
pub fn validity(check: Check, text: &str) -> Validity {
    verdict(check, &history(text), &Bounds::default()).expect("a verdict").validity()
}

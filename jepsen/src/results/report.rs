//! `report.html`: one page that needs nothing else.

use std::fmt::Write;

use super::plot::{Line, Scale, svg};
use super::series::Series;
use super::{Results, word};
use crate::checker::{Validity, Verdict};
use crate::history::History;
use crate::history::edn::Edn;

/// How many faults are listed one by one; `results.edn` has all.
const FAULTS_SHOWN: usize = 500;

/// The page.
pub fn html(history: &History, test: &Edn, results: &Results) -> String {
    let mut page = String::new();
    let validity = results.validity();
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>jepsen: {word}</title>\n\
         <style>{STYLE}</style></head><body>\n<h1>The contract is <span class=\"{class}\">{word}</span></h1>\n",
        word = word(validity),
        class = class(validity)
    );
    summary(&mut page, history, results);
    clauses(&mut page, results);
    timeline(&mut page, history, results);
    faults(&mut page, results);
    anomalies(&mut page, results);
    if test.as_map().is_some_and(|entries| !entries.is_empty()) {
        page.push_str("<h2>Test</h2>\n<table>");
        for (key, value) in test.as_map().unwrap_or_default() {
            let _ = write!(page, "<tr><th>{}</th><td><code>{}</code></td></tr>", edn(key), edn(value));
        }
        page.push_str("</table>\n");
    }
    page.push_str("</body></html>\n");
    page
}

fn summary(page: &mut String, history: &History, results: &Results) {
    let skipped = results.faults.iter().filter(|fault| fault.skipped.is_some()).count();
    let _ = writeln!(
        page,
        "<p>{} operations in {:.1} s under {} faults.{}{}</p>",
        history.calls().count(),
        history.end_time() as f64 / 1e9,
        results.faults.len() - skipped,
        if skipped > 0 {
            format!(" <strong class=\"unknown\">{skipped} faults were skipped.</strong>")
        } else {
            String::new()
        },
        if results.torn { " <strong class=\"unknown\">The history was cut short.</strong>" } else { "" }
    );
}

fn clauses(page: &mut String, results: &Results) {
    page.push_str("<h2>Verdict per clause</h2>\n<table><tr><th>Clause</th><th>Verdict</th><th>Promise</th><th>Figures</th></tr>\n");
    for (clause, verdict) in results.verdicts() {
        let (class, told, figures) = match verdict {
            None => ("untouched", "not exercised".to_owned(), String::new()),
            Some(verdict) => (class(verdict.validity()), told(verdict), figures(verdict)),
        };
        let (name, promise) = (clause.name, escape(clause.promise));
        let _ = writeln!(
            page,
            "<tr><th>{name}</th><td class=\"{class}\">{told}</td><td>{promise}</td><td class=\"figures\">{figures}</td></tr>"
        );
    }
    page.push_str("</table>\n");
}

fn told(verdict: &Verdict) -> String {
    let anomalies = verdict.anomalies.iter().map(|(name, anomaly)| format!("<br>{name} × {}", anomaly.count));
    let unknown = verdict.unknown.iter().map(|why| format!("<br>{}", escape(why)));
    word(verdict.validity()).to_owned() + &anomalies.chain(unknown).collect::<String>()
}

fn figures(verdict: &Verdict) -> String {
    let figure = |(name, value): &(&str, Edn)| format!("<div><b>{name}</b> {}</div>", edn(value));
    verdict.figures.iter().map(figure).collect()
}

fn timeline(page: &mut String, history: &History, results: &Results) {
    page.push_str(
        "<h2>Timeline</h2>\n<p>Shaded: faults; darker where a majority is struck. Point at one to see its name.</p>\n",
    );
    let end = history.end_time();
    for (f, series) in Series::of(history) {
        if series.total() == 0 {
            continue;
        }
        let seconds = series.width as f64 / 1e9;
        let rate = |outcome: usize| {
            series.buckets.iter().map(|bucket| Some(bucket.completed[outcome] as f64 / seconds)).collect()
        };
        let latency = |per_mille: usize| {
            series.buckets.iter().map(|bucket| bucket.latency(per_mille).map(|latency| latency as f64 / 1e6)).collect()
        };
        let f = escape(&f);
        let rates = [("ok", 0), ("fail", 1), ("info", 2)].map(|(name, outcome)| Line {
            name,
            class: name,
            values: rate(outcome),
        });
        let latencies = [("p50", 500), ("p99", 990), ("max", 1000)].map(|(name, per_mille)| Line {
            name,
            class: name,
            values: latency(per_mille),
        });
        page.push_str(&svg(&format!("{f}: throughput"), "per second", &rates, &results.faults, end, Scale::Linear));
        page.push_str(&svg(&format!("{f}: latency of :ok"), "ms", &latencies, &results.faults, end, Scale::Log));
        page.push('\n');
    }
}

fn faults(page: &mut String, results: &Results) {
    if results.faults.is_empty() {
        page.push_str("<h2>Faults</h2>\n<p class=\"unknown\">None: this run shows how the system does in peace.</p>\n");
        return;
    }
    page.push_str("<h2>Faults</h2>\n<table><tr><th>Fault</th><th>From</th><th>To</th><th>Evidence</th></tr>\n");
    for fault in results.faults.iter().take(FAULTS_SHOWN) {
        let seconds = |time: u64| format!("{:.3} s", time as f64 / 1e9);
        let evidence: Vec<String> = fault
            .evidence
            .iter()
            .filter(|evidence| **evidence != Edn::Nil)
            .map(|evidence| format!("<code>{}</code>", edn(evidence)))
            .collect();
        let (class, evidence) = match &fault.skipped {
            Some(why) => ("unknown", format!("SKIPPED: {}", escape(why))),
            None if fault.is_proven() => ("", evidence.join("<br>")),
            None => ("invalid", "none".to_owned()),
        };
        let majority = if fault.majority { " (majority)" } else { "" };
        let _ = writeln!(
            page,
            "<tr><th>{}{majority}</th><td>{}</td><td>{}</td><td class=\"{class}\">{evidence}</td></tr>",
            escape(&fault.name),
            seconds(fault.start),
            fault.end.map_or_else(|| "the end".to_owned(), seconds)
        );
    }
    page.push_str("</table>\n");
    if results.faults.len() > FAULTS_SHOWN {
        let _ = writeln!(page, "<p>{} more in results.edn.</p>", results.faults.len() - FAULTS_SHOWN);
    }
}

fn anomalies(page: &mut String, results: &Results) {
    for (clause, verdict) in results.verdicts() {
        for (name, anomaly) in verdict.iter().flat_map(|verdict| &verdict.anomalies) {
            let shown = anomaly.examples.len();
            let _ = writeln!(page, "<h2>{}: {name}</h2>\n<p>{shown} of {}.</p>", clause.name, anomaly.count);
            for example in &anomaly.examples {
                let _ = writeln!(page, "<pre>{}</pre>", edn(example));
            }
        }
    }
}

fn class(validity: Validity) -> &'static str {
    match validity {
        Validity::Valid => "valid",
        Validity::Unknown => "unknown",
        Validity::Invalid => "invalid",
    }
}

fn edn(edn: &Edn) -> String {
    escape(&edn.to_string())
}

/// Text as it may stand in the page, also within a quoted attribute.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "
:root { color-scheme: light dark; --text: #1c2024; --back: #fff; --line: #d5d9de; --ok: #2a7de1; --warn: #b26a00; --bad: #c62828; --good: #1b7f3b; --fault: #f0a50030; --major: #c6282838 }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7eb; --back: #15181c; --line: #343a42; --ok: #6aaaf5; --warn: #f0b04a; --bad: #ff7b72; --good: #5bd18a } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .35em .7em; border-bottom: 1px solid var(--line) }
code, pre, .figures { font: 12px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere } pre { border-left: 3px solid var(--bad); padding-left: .8em }
.valid { color: var(--good); font-weight: 600 } .unknown { color: var(--warn); font-weight: 600 } .invalid { color: var(--bad); font-weight: 600 } .untouched { opacity: .6 }
figure { margin: 1em 0 } svg { width: 100%; height: auto } .unit { opacity: .6 } .key { margin-left: 1em } .key::before { content: '\\2014\\00a0'; font-weight: bold; color: var(--stroke) }
.line { fill: none; stroke: var(--stroke); stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round } .grid { stroke: var(--line) } .tick { font-size: 11px; fill: var(--text); opacity: .7 }
.ok, .p50 { --stroke: var(--ok) } .info, .p99 { --stroke: var(--warn) } .fail, .max { --stroke: var(--bad) }
.fault { fill: var(--fault) } .majority { fill: var(--major) }
";

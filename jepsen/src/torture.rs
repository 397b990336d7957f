//! `jepsen torture`: every workload under every mix of faults, one run after the other, and a table of what came of it.
//!
//! Each run is a process of its own and leaves its history and report behind. A seed is the seed of all of it: the runs'
//! seeds follow from it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::checker::OF_THE_HARNESS;
use crate::history::edn::{Edn, Parser};
use crate::run::workload::Workload;

/// What strikes together: every nemesis but for reads and syncs that fail and disks that freeze, which `jepsen cluster` has.
const MIXES: [&[&str]; 6] = [
    &["kill", "partition", "power"],
    &["pause", "partition", "power", "transfer"],
    &["replace", "membership", "kill", "partition"],
    &["disk-full", "disk-error-write", "disk-slow", "kill"],
    &["clock-step", "cpu", "delay", "loss", "duplicate"],
    &["bit-flip", "cut-tail", "partition", "kill"],
];

/// How it goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For how long in all, about: a run goes on until each of its nemeses had its turn.
    pub minutes: u64,
    /// Draws everything.
    pub seed: u64,
    /// The `raftmq` program.
    pub program: PathBuf,
    /// Where histories, reports and the table go.
    pub out: PathBuf,
}

/// One run and what came of it.
#[derive(Clone, Debug)]
struct Ran {
    workload: Workload,
    mix: &'static [&'static str],
    seed: u64,
    status: ExitStatus,
    verdict: String,
    acknowledged: u64,
    faults: u64,
    longest_outage: Duration,
    skipped: Vec<String>,
}

impl Ran {
    /// What its directory says.
    fn read(workload: Workload, mix: &'static [&'static str], seed: u64, status: ExitStatus, dir: &Path) -> Ran {
        let text = fs::read_to_string(dir.join("results.edn"));
        let results = text.ok().and_then(|text| Parser::default().parse(&text).ok()).unwrap_or(Edn::Nil);
        let figure = |clause: &str, name: &str| results.get(clause).and_then(|clause| clause.get(name)).cloned();
        let natural = |clause: &str, name: &str| {
            figure(clause, name).and_then(|figure| figure.as_int()).and_then(|figure| u64::try_from(figure).ok())
        };
        let by_f = figure("stats", "by-f").unwrap_or(Edn::Nil);
        let counts = by_f.as_map().unwrap_or_default().iter();
        let of_clients = counts.filter(|(f, _)| f.as_keyword().is_none_or(|f| !OF_THE_HARNESS.contains(&f)));
        let ok = of_clients.filter_map(|(_, counts)| counts.get("ok")?.as_int()).sum::<i64>();
        let skipped = figure("liveness", "skipped-faults").unwrap_or(Edn::Nil);
        let skipped = skipped.as_vector().unwrap_or_default().iter().filter_map(Edn::as_str).map(str::to_owned);
        let anomalies = results.get("anomaly-types").map(Edn::to_string).filter(|anomalies| anomalies != "[]");
        let verdict = match results.get("valid?") {
            Some(valid) if valid.as_bool() == Some(true) => "valid".to_owned(),
            Some(valid) if valid.as_bool() == Some(false) => format!("INVALID {}", anomalies.unwrap_or_default()),
            Some(_) => "unknown".to_owned(),
            None => "no verdict".to_owned(),
        };
        Ran {
            workload,
            mix,
            seed,
            status,
            verdict,
            acknowledged: u64::try_from(ok).unwrap_or_default(),
            faults: natural("liveness", "fault-count").unwrap_or_default(),
            longest_outage: Duration::from_nanos(natural("liveness", "longest-outage-ns").unwrap_or_default()),
            skipped: skipped.collect(),
        }
    }

    /// Whether it shows what it should, but for what this machine cannot make. Where nothing struck, nothing is shown.
    fn is_good(&self) -> bool {
        matches!(self.status.code(), Some(0 | 77)) && self.verdict == "valid" && self.faults > 0
    }
}

impl fmt::Display for Ran {
    /// A row of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ran { workload, mix, seed, verdict, acknowledged, faults, longest_outage, skipped, .. } = self;
        let skipped = if skipped.is_empty() { String::new() } else { format!(", SKIPPED {}", skipped.join(" ")) };
        write!(
            f,
            "| {} | {} | {seed} | {acknowledged} | {faults} | {longest_outage:.1?} | {verdict}{skipped} |",
            workload.name(),
            mix.join(" ")
        )
    }
}

/// What came of all of it.
#[derive(Clone, Debug)]
pub struct Report {
    ran: Vec<Ran>,
    took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| workload | nemeses | seed | operations ok | faults | longest outage | verdict |")?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for ran in &self.ran {
            writeln!(f, "{ran}")?;
        }
        let acknowledged: u64 = self.ran.iter().map(|ran| ran.acknowledged).sum();
        let faults: u64 = self.ran.iter().map(|ran| ran.faults).sum();
        let good = self.ran.iter().filter(|ran| ran.is_good()).count();
        write!(
            f,
            "\n{} runs in {} minutes, {good} of them valid; {acknowledged} operations acknowledged, {faults} faults",
            self.ran.len(),
            self.took.as_secs() / 60
        )?;
        let skipped: BTreeSet<&str> = self.ran.iter().flat_map(|ran| &ran.skipped).map(String::as_str).collect();
        if !skipped.is_empty() {
            write!(f, "\nSKIPPED, this machine cannot make it: {}", Vec::from_iter(skipped).join(", "))?;
        }
        Ok(())
    }
}

/// Runs all of it, also after a run that fails. An error if one did.
pub fn run(plan: &Plan) -> io::Result<Report> {
    fs::create_dir_all(&plan.out)?;
    // What lies there already would be taken for what came of this.
    if fs::read_dir(&plan.out)?.next().is_some() {
        let what = format!("{} is not empty: give a directory of its own with --out", plan.out.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    let began = Instant::now();
    let runs = Workload::value_variants().len() * MIXES.len();
    let seconds = (plan.minutes * 60 / runs as u64).max(1);
    let mut report = Report { ran: Vec::new(), took: Duration::ZERO };
    // Mix by mix: a torture that is cut short has done every workload.
    for mix in MIXES {
        for workload in Workload::value_variants() {
            let number = report.ran.len() + 1;
            let seed = plan.seed.wrapping_mul(1_000).wrapping_add(number as u64);
            let dir = plan.out.join(format!("{number:02}-{}-{}", workload.name(), mix.join("-")));
            eprintln!("{number}/{runs}: {} under {}", workload.name(), mix.join(", "));
            let status = Command::new(std::env::current_exe()?)
                .args(["run", "--workload", workload.name(), "--nemesis", &mix.join(",")])
                .args(["--seconds", &seconds.to_string(), "--seed", &seed.to_string()])
                .arg("--raftmq")
                .arg(&plan.program)
                .arg("--out")
                .arg(&dir)
                .status()?;
            let ran = Ran::read(*workload, mix, seed, status, &dir);
            eprintln!("{ran}");
            report.ran.push(ran);
            report.took = began.elapsed();
            fs::write(plan.out.join("summary.md"), format!("{report}\n"))?;
        }
    }
    match report.ran.iter().all(Ran::is_good) {
        true => Ok(report),
        false => Err(io::Error::other(format!("{report}\nnot all of them are valid; see {}", plan.out.display()))),
    }
}

//! The command line of the fault harness. `README.md`, which `--help` shows too, has the runs and their control.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use jepsen::cluster::Flush;
use jepsen::run::nemesis::Nemesis;
use jepsen::run::workload::Workload;
use jepsen::{disk, failover, faults, results, run, start, store, torture};

/// The machine cannot produce the fault: nothing was tested. As test harnesses commonly say it.
const SKIPPED: u8 = 77;

#[derive(Parser)]
#[command(version, about = "Real processes, real faults", after_long_help = include_str!("../README.md"))]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One store under load: kill or power off its process again and again, and check what it had acknowledged.
    Store {
        /// What happens to it.
        #[arg(long, value_enum, default_value = "kill")]
        fault: store::Fault,
        /// How often.
        #[arg(long, default_value_t = 20)]
        cycles: u32,
        /// Draws when, and what is written.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where to work; a temporary directory by default. It is left behind on failure.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// A cluster of three under load: kill or power off one or all of it, or make one disk go bad, again and again; after
    /// each fault the three logs must be equal, and every acknowledged append is read back from each replica.
    Cluster {
        /// What happens to it.
        #[arg(long, value_enum, default_value = "kill-one")]
        fault: faults::Fault,
        /// When a replica acknowledges.
        #[arg(long, value_enum, default_value = "sync")]
        flush: Flush,
        /// How often.
        #[arg(long, default_value_t = 10)]
        cycles: u32,
        /// Draws victims.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Appends acknowledged between two faults, at least.
        #[arg(long, default_value_t = 2000)]
        appends: usize,
        /// Senders, one message in flight each.
        #[arg(long, default_value_t = 64)]
        senders: u32,
        /// The raftmq program; by default the one beside this one.
        #[arg(long)]
        raftmq: Option<PathBuf>,
        /// Where to work; a temporary directory by default.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// How long a start takes with a long log, or with many queues: from exec to the first PULL that is served.
    Start {
        /// Length of the log, most of it holes.
        #[arg(long, default_value_t = 100)]
        log_gib: u64,
        /// Queues with a message each.
        #[arg(long, default_value_t = 0)]
        queues: u32,
        /// Starts after a clean stop, and as many after a kill.
        #[arg(long, default_value_t = 3)]
        starts: u32,
        /// The raftmq program; by default the one beside this one.
        #[arg(long)]
        raftmq: Option<PathBuf>,
        /// Where to work; a temporary directory by default.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// A workload on a cluster of three under faults drawn from a seed: every operation is recorded, and the history judged
    /// clause by clause.
    Run {
        /// What clients do.
        #[arg(long, value_enum, default_value = "append")]
        workload: Workload,
        /// What strikes, in turn; without it, nothing does.
        #[arg(long, value_enum, value_delimiter = ',')]
        nemesis: Vec<Nemesis>,
        /// For how long, at least: each nemesis strikes once in any case.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Draws faults, victims, queues and brokers.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Senders of the append workload, one message in flight each.
        #[arg(long, default_value_t = 16)]
        senders: u32,
        /// Where history, verdict and logs go.
        #[arg(long)]
        out: PathBuf,
        /// The raftmq program; by default the one beside this one.
        #[arg(long)]
        raftmq: Option<PathBuf>,
        /// Where to work; a temporary directory by default.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Every workload under every mix of faults, one run after the other.
    Torture {
        /// For how long in all, about.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// Draws everything.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where histories, reports and a summary go.
        #[arg(long)]
        out: PathBuf,
        /// The raftmq program; by default the one beside this one.
        #[arg(long)]
        raftmq: Option<PathBuf>,
    },
    /// How long service is gone when the leader is killed, as the client library sees it.
    Failover {
        /// Leaders killed.
        #[arg(long, default_value_t = 100)]
        kills: u32,
        /// Draws how long each has led.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Half of the gaps may be this long, in milliseconds.
        #[arg(long, default_value_t = 2_000)]
        median_ms: u64,
        /// And none longer than this.
        #[arg(long, default_value_t = 5_000)]
        max_ms: u64,
        /// The raftmq program; by default the one beside this one.
        #[arg(long)]
        raftmq: Option<PathBuf>,
        /// Where to work; a temporary directory by default.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Judges a stored history again, clause by clause, and writes results.edn and report.html beside it.
    Check {
        /// Where history.edn is, and test.edn if there is one.
        dir: PathBuf,
    },
    /// The process that `store` strikes. Prints what is acknowledged.
    #[command(hide = true)]
    StoreWriter {
        /// The store.
        #[arg(long)]
        dir: PathBuf,
        /// Draws what is written.
        #[arg(long)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Store { fault, cycles, seed, dir } => {
            store::run(fault, cycles, seed, dir).map(|report| println!("{report}"))
        }
        Command::Cluster { fault, flush, cycles, seed, appends, senders, raftmq, dir } => {
            within(raftmq, dir, "cluster-", |program, dir| {
                faults::run(&faults::Plan { fault, flush, cycles, seed, appends, senders, program, dir })
            })
        }
        Command::Start { log_gib, queues, starts, raftmq, dir } => within(raftmq, dir, "start-", |program, dir| {
            start::run(&start::Plan { log_gib, queues, starts, program, dir })
        }),
        Command::Run { workload, nemesis: nemeses, seconds, seed, senders, out, raftmq, dir } => {
            disk::keep_mounts_private().and_then(|()| {
                within(raftmq, dir, "run-", |program, dir| {
                    run::run(&run::Plan { workload, nemeses, seconds, seed, senders, program, dir, out })
                })
            })
        }
        Command::Torture { minutes, seed, out, raftmq } => program(raftmq)
            .and_then(|program| torture::run(&torture::Plan { minutes, seed, program, out }))
            .map(|report| println!("{report}")),
        Command::Failover { kills, seed, median_ms, max_ms, raftmq, dir } => {
            let (median_limit, limit) = (Duration::from_millis(median_ms), Duration::from_millis(max_ms));
            within(raftmq, dir, "failover-", |program, dir| {
                failover::run(&failover::Plan { kills, seed, median_limit, limit, program, dir })
            })
        }
        Command::Check { dir } => results::run(&dir),
        Command::StoreWriter { dir, seed } => store::writer(&dir, seed),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            eprintln!("SKIPPED, nothing was tested: {error}");
            ExitCode::from(SKIPPED)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The raftmq program: by default the one beside this one.
fn program(named: Option<PathBuf>) -> io::Result<PathBuf> {
    named.map_or_else(|| Ok(std::env::current_exe()?.with_file_name("raftmq")), Ok)
}

/// Runs something with a program, by default the one beside this one, in a directory, by default a temporary one, and
/// prints what it reports.
fn within<R: Display>(
    program: Option<PathBuf>,
    dir: Option<PathBuf>,
    prefix: &str,
    run: impl FnOnce(PathBuf, PathBuf) -> io::Result<R>,
) -> io::Result<()> {
    let program = self::program(program)?;
    let temporary = match dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix(prefix).tempdir()?),
    };
    let dir = dir.or_else(|| Some(temporary.as_ref()?.path().to_owned())).expect("one of the two");
    match run(program, dir.clone()) {
        Ok(report) => {
            println!("{report}");
            Ok(())
        }
        Err(error) => {
            // What is left behind is the evidence.
            let _kept = temporary.map(tempfile::TempDir::keep);
            eprintln!("kept: {}", dir.display());
            Err(error)
        }
    }
}

//! The command line of the fault harness. `README.md`, which `--help` shows too, has the runs and their control.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jepsen::{faults, results, store};

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
    /// A cluster of three under load: kill or power off one or all of it again and again; after each fault the three logs
    /// must be equal, and every acknowledged append is read back from each replica.
    Cluster {
        /// What happens to it.
        #[arg(long, value_enum, default_value = "kill-one")]
        fault: faults::Fault,
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
        Command::Cluster { fault, cycles, seed, appends, senders, raftmq, dir } => {
            cluster(fault, cycles, seed, appends, senders, raftmq, dir)
        }
        Command::Check { dir } => results::run(&dir),
        Command::StoreWriter { dir, seed } => store::writer(&dir, seed),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn cluster(
    fault: faults::Fault,
    cycles: u32,
    seed: u64,
    appends: usize,
    senders: u32,
    raftmq: Option<PathBuf>,
    dir: Option<PathBuf>,
) -> std::io::Result<()> {
    let program = match raftmq {
        Some(program) => program,
        None => std::env::current_exe()?.with_file_name("raftmq"),
    };
    let (dir, temporary) = match dir {
        Some(dir) => (dir, None),
        None => {
            let temporary = tempfile::Builder::new().prefix("cluster-").tempdir()?;
            (temporary.path().to_owned(), Some(temporary))
        }
    };
    let plan = faults::Plan { fault, cycles, seed, appends, senders, program, dir };
    match faults::run(&plan) {
        Ok(report) => {
            println!("{report}");
            Ok(())
        }
        Err(error) => {
            // What is left behind is the evidence.
            let _kept = temporary.map(tempfile::TempDir::keep);
            eprintln!("kept: {}", plan.dir.display());
            Err(error)
        }
    }
}

//! The binary: flags -> config -> build -> run.

mod admin;
mod bench;
mod config_file;
mod demo;
mod dev;
mod limits;
mod serve;
mod store;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use env::Env;
use tracing_subscriber::EnvFilter;

/// A RocketMQ-compatible message broker on one Raft log.
#[derive(Parser)]
#[command(name = "raftmq", version, arg_required_else_help = true)]
struct Flags {
    /// What to log on standard error: a level, or levels by module such as "info,raft_store=debug" [default:
    /// "info,openraft=warn"; for the demo, whose brokers are meant to fail, "error"].
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<EnvFilter>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show three brokers lose their leader, and prove that nothing acknowledged is lost.
    Demo(demo::Flags),
    /// Run a cluster for development on 127.0.0.1:9876, for any RocketMQ client.
    Dev(dev::Flags),
    /// Run a NameServer: tells clients which broker has which topic.
    #[command(name = "nameserver")]
    NameServer(serve::Flags),
    /// Run a broker process: one or more replicas, as its file says.
    Broker(serve::Flags),
    /// Measure load and latency, beside what the disk alone can do.
    Bench(bench::Flags),
    /// Look at a running cluster and change it: mqadmin's commands, names and flags.
    Admin(admin::Flags),
    /// Look at a replica's data directory while its node does not run.
    #[command(subcommand)]
    Store(store::Command),
    /// Print a script that completes commands and flags in a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let ansi = io::stderr().is_terminal();
    let usual = if matches!(flags.command, Command::Demo(_)) { "error" } else { "info,openraft=warn" };
    tracing_subscriber::fmt()
        .with_env_filter(flags.log.unwrap_or_else(|| EnvFilter::new(usual)))
        .with_writer(io::stderr)
        .with_ansi(ansi)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start threads: {error}")),
    };
    let outcome = runtime.block_on(async {
        let env = Env::real();
        match flags.command {
            Command::Store(command) => return store::run(&env, command).await,
            Command::Demo(flags) => demo::run(&env, &flags).await,
            Command::Dev(flags) => dev::run(&env, &flags).await,
            Command::Bench(flags) => bench::run(&env, &flags).await,
            Command::NameServer(flags) => serve::name_server(&env, &flags).await,
            Command::Broker(flags) => serve::broker(&env, &flags).await,
            Command::Admin(flags) => admin::run(&env, flags, std::env::var("NAMESRV_ADDR").ok()).await,
            Command::Completion { shell } => {
                clap_complete::generate(shell, &mut Flags::command(), "raftmq", &mut io::stdout());
                Ok(())
            }
        }
        .map(|()| ExitCode::SUCCESS)
    });
    match outcome {
        Ok(code) => code,
        Err(reason) => fail(&reason),
    }
}

/// A core is left to the threads beside the runtime: Raft's and the log writer's. With two cores a second worker would
/// mostly be woken to find nothing.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1))
}

/// Says why on standard error, log filter or not.
fn fail(reason: &str) -> ExitCode {
    eprintln!("raftmq: {reason}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_unique_and_every_command_has_a_text() {
        Flags::command().debug_assert();
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some() || command.get_name() == "help", "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        let mut command = Flags::command();
        command.build();
        command.get_subcommands().for_each(check);
    }
}

//! The roles of a real cluster: reads the file, starts what it asks for, and stops it in good order when told to.

use std::path::PathBuf;

use broker::Broker;
use env::Env;
use nameserver::{NameServer, NameServerConfig};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{config_file, limits};

/// Flags of a role.
#[derive(clap::Args)]
pub struct Flags {
    /// The configuration file; config/ has one of each kind, with every key explained.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: PathBuf,
    /// Check the file and do no more.
    #[arg(long)]
    check: bool,
}

/// Runs a NameServer until a signal.
pub async fn name_server(env: &Env, flags: &Flags) -> Result<(), String> {
    let config = config_file::load_name_server(env, &flags.config).await.map_err(|error| error.to_string())?;
    if flags.check {
        return say_checked(flags);
    }
    let mut signals = Signals::new()?;
    let server = start_name_server(env, config).await?;
    println!("boot success nameserver={}", server.local_addr());
    // Awaited outside the macro, which evaluates nothing that the log filter drops.
    let signal = signals.wait().await;
    tracing::info!(signal, "stopping");
    server.stop();
    Ok(())
}

/// Runs a broker process until a signal.
pub async fn broker(env: &Env, flags: &Flags) -> Result<(), String> {
    let process = config_file::load_broker(env, &flags.config).await.map_err(|error| error.to_string())?;
    if flags.check {
        return say_checked(flags);
    }
    limits::check(env, &process.broker).await?;
    let mut signals = Signals::new()?;
    let mut addresses = String::new();
    let name_server = match process.name_server {
        Some(config) => {
            let server = start_name_server(env, config).await?;
            addresses += &format!(" nameserver={}", server.local_addr());
            Some(server)
        }
        None => None,
    };
    for group in &process.broker.groups {
        addresses += &format!(" {}={} peers={}", group.broker_name, group.advertised_address, group.peer_address);
    }
    if let Some(http) = process.broker.http {
        addresses += &format!(" http={http}");
    }
    // A signal during a start that waits for the other founders ends the start.
    let broker = tokio::select! {
        biased;
        signal = signals.wait() => {
            tracing::info!(signal, "stopping before the start was over");
            return Ok(());
        }
        started = Broker::start(env.clone(), process.broker) => {
            started.map_err(|error| format!("the broker does not start: {error}"))?
        }
    };
    println!("boot success{addresses}");
    let signal = tokio::select! {
        biased;
        signal = signals.wait() => signal,
        // Whatever supervises this process starts it again; until then the other replicas serve.
        reason = broker.failed() => return Err(format!("a replica has stopped: {reason}")),
    };
    tracing::info!(signal, "stopping: leadership is handed over first; a second signal stops at once");
    tokio::select! {
        biased;
        stopped = broker.stop() => stopped.map_err(|error| format!("the log did not end cleanly: {error}"))?,
        signal = signals.wait() => return Err(format!("{signal} during the stop: stopped at once")),
    }
    if let Some(server) = name_server {
        server.stop();
    }
    Ok(())
}

fn say_checked(flags: &Flags) -> Result<(), String> {
    println!("{}: ok", flags.config.display());
    Ok(())
}

async fn start_name_server(env: &Env, config: NameServerConfig) -> Result<NameServer, String> {
    let listen = config.listen;
    NameServer::start(env.clone(), config).await.map_err(|error| {
        format!("the NameServer cannot listen on {listen}: {error}; stop what uses the port, or change `listen`")
    })
}

/// Resolves at the first signal that asks for an end in good order.
pub async fn told_to_stop() -> Result<(), String> {
    let signal = Signals::new()?.wait().await;
    tracing::info!(signal, "stopping");
    Ok(())
}

/// The signals that end a process in good order.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals, String> {
        let install = |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
        Ok(Signals { terminate: install(SignalKind::terminate())?, interrupt: install(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

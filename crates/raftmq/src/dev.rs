//! `raftmq dev`: the demo's cluster, kept running on the ports that RocketMQ's clients expect.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use embedded::Cluster;
use env::Env;

use crate::serve;

/// What to run.
#[derive(Args, Debug)]
pub struct Flags {
    /// Brokers: 1 or 3.
    #[arg(long, default_value_t = 3, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=3))]
    nodes: usize,
    /// Keep the data here and find it again at the next start.
    #[arg(long, default_value = "raftmq-dev-data")]
    data: PathBuf,
    /// Keep nothing: a temporary directory, removed at the end.
    #[arg(long, conflicts_with = "data")]
    ephemeral: bool,
}

/// Where RocketMQ's clients look for a NameServer.
const NAME_SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9876);

/// Where the first broker listens; the others 10 and 20 above.
const FIRST_BROKER_PORT: u16 = 10911;

/// Runs until it is told to stop.
pub async fn run(env: &Env, flags: &Flags) -> Result<(), String> {
    if flags.nodes == 2 {
        return Err("--nodes 2 tolerates no failure, like 1, and loses service with either: use 1 or 3".to_owned());
    }
    let mut builder =
        Cluster::builder().env(env.clone()).nodes(flags.nodes).name_server(NAME_SERVER).first_port(FIRST_BROKER_PORT);
    if !flags.ephemeral {
        builder = builder.data_dir(&flags.data);
    }
    let cluster = builder.start().await.map_err(|error| error.to_string())?;
    let brokers: Vec<_> = (0..cluster.nodes()).map(|node| cluster.address(node).to_string()).collect();
    println!(
        "boot success: NameServer {}, brokers {}, data in {}; stop with Ctrl-C",
        cluster.name_server(),
        brokers.join(" "),
        cluster.data_dir().display()
    );
    serve::told_to_stop().await?;
    cluster.shutdown().await;
    Ok(())
}

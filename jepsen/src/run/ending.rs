//! After the last fault: the chains of all replicas, told until they are equal, and everything that each replica shows.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use env::Env;
use futures::future::try_join_all;
use remoting::{Client, Limits, NoRequests};

use super::workload::{Workload, metadata};
use super::{NODES, Run, operations};
use crate::append::{self, AT_ONCE, QUEUES};
use crate::chain;
use crate::cluster::PATIENCE;
use crate::history::edn::Edn;
use crate::history::recorder;

/// Between two questions to a replica that is not there yet.
const AGAIN: Duration = Duration::from_millis(100);

/// Asks all replicas for their chains until they agree, or patience ends, and then for
/// hashes of their states. What that means, the checkers say.
pub async fn compare_chains(run: &Run) -> io::Result<()> {
    let client = Client::new(&run.env, Limits::default(), Arc::new(NoRequests));
    let mut recorded = run.recorder.client();
    let deadline = run.env.clock.monotonic() + PATIENCE;
    loop {
        recorded.invoke("chain", Edn::Nil, Vec::new())?;
        let mut answered = Vec::new();
        let mut told = Vec::new();
        for (node, replica) in NODES.into_iter().zip(&run.replicas) {
            let Ok(status) = chain::status(&client, *replica).await else { continue };
            if let (Some(index), Some(chain)) = (status.chain_index, &status.chain) {
                told.push((Edn::from(node), Edn::vector([Edn::from(index), chain.as_str().into()])));
            }
            answered.push(status);
        }
        recorded.ok(Edn::Map(told), Vec::new())?;
        let compared = chain::compare(&answered.iter().collect::<Vec<_>>());
        let in_doubt = matches!(compared, Ok(None)) || answered.len() < run.replicas.len();
        if !in_doubt || run.env.clock.monotonic() > deadline {
            return compare_states(run, &client, &mut recorded).await;
        }
        run.env.clock.sleep(AGAIN).await;
    }
}

/// Has all replicas hash their states at one place of the log, and records what they say.
async fn compare_states(run: &Run, client: &Client<NoRequests>, recorded: &mut recorder::Client) -> io::Result<()> {
    let deadline = run.env.clock.monotonic() + PATIENCE;
    recorded.invoke("state-hash", Edn::Nil, Vec::new())?;
    let mut replicas = run.replicas.iter().cycle();
    let index = loop {
        let replica = replicas.next().expect("there are three");
        match chain::make_checkpoint(client, *replica).await {
            Ok(index) => break index,
            Err(why) if run.env.clock.monotonic() > deadline => return recorded.fail(&why),
            Err(_) => run.env.clock.sleep(AGAIN).await,
        }
    };
    loop {
        let mut told = Vec::new();
        for (node, replica) in NODES.into_iter().zip(&run.replicas) {
            let Ok(status) = chain::status(client, *replica).await else { continue };
            if let Some(hash) = status.image_hashes.get(&index) {
                told.push((Edn::from(node), Edn::vector([Edn::from(index), hash.as_str().into()])));
            }
        }
        if told.len() == run.replicas.len() || run.env.clock.monotonic() > deadline {
            return recorded.ok(Edn::Map(told), Vec::new());
        }
        run.env.clock.sleep(AGAIN).await;
    }
}

/// Reads everything that the workload has left behind from each replica: its queues from their start to their end, or the
/// topics and groups.
pub async fn read_all(run: &Run, workload: Workload) -> io::Result<()> {
    let replicas = NODES.into_iter().zip(&run.replicas);
    if let Some(topic) = workload.topic() {
        let reads = replicas
            .clone()
            .map(|(node, replica)| read_replica(&run.env, run.recorder.client(), node, *replica, topic));
        try_join_all(reads).await?;
    }
    if workload == Workload::Metadata {
        for (node, replica) in replicas {
            let mut recorded = run.recorder.client();
            let deadline = run.env.clock.monotonic() + PATIENCE;
            recorded.invoke("metadata-scan", Edn::Nil, vec![("node", node.into())])?;
            loop {
                match metadata::scan(&run.env, *replica).await {
                    Ok(known) => break recorded.ok(known, vec![("node", node.into())])?,
                    Err(why) if run.env.clock.monotonic() > deadline => break recorded.fail(&why)?,
                    Err(_) => run.env.clock.sleep(AGAIN).await,
                }
            }
        }
    }
    Ok(())
}

async fn read_replica(
    env: &Env,
    mut recorded: recorder::Client,
    node: &'static str,
    replica: SocketAddr,
    topic: &str,
) -> io::Result<()> {
    let client = Client::new(env, Limits::default(), Arc::new(NoRequests));
    for queue in 0..QUEUES {
        let (mut next, mut end) = (0, None);
        while end.is_none_or(|end| next < end) {
            recorded.invoke("final-read", operations::poll(), vec![("node", node.into())])?;
            match read_on(env, &client, replica, topic, queue, next).await {
                Ok((places, queue_end)) => {
                    recorded.ok(operations::polled(queue, &places), Vec::new())?;
                    next = places.last().map_or(next, |(offset, _)| offset + 1);
                    end = Some(queue_end);
                }
                Err(why) => {
                    recorded.fail(&why.to_string())?;
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Offsets and values from `from` on, and where the queue ends. Nothing is shown only at the end.
async fn read_on(
    env: &Env,
    client: &Client<NoRequests>,
    replica: SocketAddr,
    topic: &str,
    queue: u32,
    from: u64,
) -> io::Result<(Vec<(u64, u64)>, u64)> {
    let deadline = env.clock.monotonic() + PATIENCE;
    loop {
        let outcome = append::pull(client, replica, topic, queue, from, AT_ONCE, env.clock.wall_ms()).await;
        if let Ok(pulled) = &outcome
            && (!pulled.records.is_empty() || from >= pulled.end)
        {
            return Ok((append::places(&pulled.records)?, pulled.end));
        }
        if env.clock.monotonic() > deadline {
            return Err(io::Error::other(format!("queue {queue} shows nothing at offset {from}: {outcome:?}")));
        }
        env.clock.sleep(AGAIN).await;
    }
}

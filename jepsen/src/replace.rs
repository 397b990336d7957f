//! A broker loses its disk, and a new node takes its place while the load goes on; somebody is killed in the middle of it.

use std::fs;
use std::io;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::append::Answers;
use crate::cluster::PATIENCE;
use crate::faults::Run;
use crate::members::{AGAIN, node_at};

/// A new node begins to catch up within this; some are killed before.
const BEGINS_WITHIN_MS: u64 = 1500;

/// Who is killed while the new node catches up, in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    Nobody,
    NewNode,
    Leader,
}

/// One replacement.
pub(crate) async fn cycle(run: &mut Run, cycle: u32) -> io::Result<Answers> {
    let killed = [Killed::Nobody, Killed::NewNode, Killed::Leader][cycle as usize % 3];
    let load = run.load();
    load.acknowledge_more(&run.env, run.plan.appends).await?;
    let victim = run.rng.below(3) as usize;
    let old = node_at(&run.env, &run.cluster, victim).await?;
    run.cluster.kill_brokers(&[victim])?;
    fs::remove_dir_all(run.cluster.data_dir(victim))?;
    run.cluster.set_join(true)?;
    run.cluster.start_broker(victim)?;

    let moment = Duration::from_millis(run.rng.below(BEGINS_WITHIN_MS));
    let replaced = replace(run, victim, &old, killed, moment).await?;
    run.cluster.wait_ready(victim)?;
    let new = node_at(&run.env, &run.cluster, victim).await?;
    if new == old {
        return Err(io::Error::other(format!("node {old} is still there: nothing was replaced")));
    }
    eprintln!("node {old} of broker {} replaced by {new} in {replaced:?}, {killed:?} killed", victim + 1);
    load.acknowledge_more(&run.env, 1).await?;
    Ok(load.stop().await)
}

/// Gives the command until it says that it is done.
async fn replace(run: &mut Run, victim: usize, old: &str, killed: Killed, moment: Duration) -> io::Result<Duration> {
    let began = Instant::now();
    let peer = run.cluster.broker(victim).peer.to_string();
    let mut to_kill = Some(killed).filter(|killed| *killed != Killed::Nobody);
    let mut again_at = began;
    let mut said = String::new();
    while began.elapsed() < PATIENCE {
        if Instant::now() < again_at {
            run.env.clock.sleep(Duration::from_millis(10)).await;
            continue;
        }
        let mut command = run.cluster.admin(&["replaceNode", "-i", old, "-p", &peer]);
        let mut running = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let status = loop {
            if to_kill.is_some() && began.elapsed() >= moment {
                strike(run, victim, to_kill.take().expect("it is some"))?;
            }
            match running.try_wait()? {
                Some(status) => break status,
                None if began.elapsed() < PATIENCE => run.env.clock.sleep(Duration::from_millis(10)).await,
                None => {
                    running.kill()?;
                    break running.wait()?;
                }
            }
        };
        said = io::read_to_string(running.stderr.take().expect("it is piped"))?;
        if status.success() {
            if let Some(killed) = to_kill {
                strike(run, victim, killed)?;
            }
            return Ok(began.elapsed());
        }
        again_at = Instant::now() + AGAIN;
    }
    Err(io::Error::other(format!("node {old} is not replaced within {PATIENCE:?}; the command's last words: {said}")))
}

fn strike(run: &mut Run, new_node: usize, killed: Killed) -> io::Result<()> {
    let struck = match killed {
        Killed::Nobody => None,
        Killed::NewNode => Some(new_node),
        Killed::Leader => run.cluster.leader(),
    };
    if let Some(struck) = struck {
        run.cluster.kill_brokers(&[struck])?;
        run.cluster.start_broker(struck)?;
    }
    Ok(())
}

//! Members: a new node in the place of a lost disk, one that leaves and comes back as another, and the leader's office.

use std::fs;
use std::io;
use std::time::Duration;

use super::{AtWork, Evidence, LOOK, NODES, Run, Undo, process};
use crate::cluster::PATIENCE;
use crate::history::edn::Edn;
use crate::members::{AGAIN, give, node_at, until_done};

/// A successor leads within this once it is named.
const TAKES_OFFICE: Duration = Duration::from_secs(5);

/// A disk is lost: its broker killed, all its files deleted. The evidence: the process's end, and which node there was.
pub async fn wipe(run: &mut Run, victim: usize) -> io::Result<(Evidence, AtWork)> {
    let old = node_at(&run.env, &run.cluster, victim).await?;
    let mut evidence = process::end(run, &[victim])?;
    fs::remove_dir_all(run.cluster.data_dir(victim))?;
    if let [(_, Edn::Map(entries))] = &mut *evidence {
        entries.extend([(Edn::keyword("node"), old.as_str().into()), (Edn::keyword("files"), Edn::keyword("deleted"))]);
    }
    Ok((evidence, AtWork::new(vec![victim], Undo::Replace { old })))
}

/// A new node takes the old one's place while the load goes on.
pub async fn replace(run: &mut Run, victim: usize, old: &str) -> io::Result<Evidence> {
    let peer = start_empty(run, victim)?;
    let took = until_done(&run.env, &run.cluster, &["replaceNode", "-i", old, "-p", &peer]).await?;
    a_new_voter(run, victim, old, took).await
}

/// A member leaves, and finds out. The evidence: the command is done, and the process has ended by itself.
pub async fn remove(run: &mut Run, victim: usize) -> io::Result<(Evidence, AtWork)> {
    let old = node_at(&run.env, &run.cluster, victim).await?;
    let took = until_done(&run.env, &run.cluster, &["removeNode", "-i", &old]).await?;
    let deadline = run.env.clock.monotonic() + PATIENCE;
    let ended = loop {
        if let Some(ended) = run.cluster.supervise(victim)? {
            break ended;
        }
        if run.env.clock.monotonic() > deadline {
            let told = run.cluster.log_tail(victim);
            return Err(io::Error::other(format!("{} was removed and goes on; {told}", NODES[victim])));
        }
        run.env.clock.sleep(LOOK).await;
    };
    let said = ended.said.ok_or_else(|| io::Error::other(format!("{} ended without a reason", NODES[victim])))?;
    let shown = [
        ("removed", old.as_str().into()),
        ("after-ms", (took.as_millis() as u64).into()),
        ("exit", ended.status.to_string().into()),
        ("said", said.into()),
    ];
    Ok((vec![(victim, Edn::map(shown))], AtWork::new(vec![victim], Undo::Add { old })))
}

/// It comes back on an empty directory: another node, which learns and then votes.
pub async fn add(run: &mut Run, victim: usize, old: &str) -> io::Result<Evidence> {
    fs::remove_dir_all(run.cluster.data_dir(victim))?;
    let peer = start_empty(run, victim)?;
    let took = until_done(&run.env, &run.cluster, &["addNode", "-p", &peer]).await?;
    a_new_voter(run, victim, old, took).await
}

/// A fault that is meant for the leader, and can strike this one only, finds it in office unless the group will not have it.
pub async fn let_lead(run: &Run, successor: usize) -> io::Result<()> {
    if run.cluster.leader() != Some(successor) {
        let client = run.replicas[successor].to_string();
        if give(&run.env, &run.cluster, &["transferLeader", "-i", &client]).await?.is_ok() {
            run.env.clock.timeout(TAKES_OFFICE, in_office(run, successor)).await;
        }
    }
    Ok(())
}

async fn in_office(run: &Run, successor: usize) {
    while run.cluster.leader() != Some(successor) {
        run.env.clock.sleep(LOOK).await;
    }
}

/// Another is to lead. The evidence: who led before and after, or the refusal.
pub async fn transfer(run: &mut Run, successor: usize) -> io::Result<(Evidence, AtWork)> {
    let before = run.cluster.leader();
    let name = |k: Option<usize>| k.map_or(Edn::Nil, |k| NODES[k].into());
    let client = run.replicas[successor].to_string();
    let mut shown = vec![("leader-before", name(before))];
    let deadline = run.env.clock.monotonic() + TAKES_OFFICE;
    let given = loop {
        let given = give(&run.env, &run.cluster, &["transferLeader", "-i", &client]).await?;
        // A successor that lacks something yet is refused until it has it.
        if given.is_ok() || run.env.clock.monotonic() > deadline {
            break given;
        }
        run.env.clock.sleep(AGAIN).await;
    };
    match given {
        Err(refused) => shown.push(("refused", refused.into())),
        Ok(_) => {
            let in_office = async {
                while run.cluster.leader() != Some(successor) {
                    run.env.clock.sleep(LOOK).await;
                }
            };
            run.env
                .clock
                .timeout(TAKES_OFFICE, in_office)
                .await
                .ok_or_else(|| io::Error::other(format!("{} was made leader, but does not lead", NODES[successor])))?;
            shown.push(("leader-after", name(Some(successor))));
        }
    }
    Ok((vec![(successor, Edn::map(shown))], AtWork::new(vec![successor], Undo::Nothing)))
}

/// Starts a broker on an empty directory, to be made a member. Its peer address.
fn start_empty(run: &mut Run, victim: usize) -> io::Result<String> {
    run.cluster.set_join(true)?;
    run.cluster.start_broker(victim)?;
    Ok(run.cluster.broker(victim).peer.to_string())
}

async fn a_new_voter(run: &Run, victim: usize, old: &str, took: Duration) -> io::Result<Evidence> {
    let new = node_at(&run.env, &run.cluster, victim).await?;
    if new == old {
        return Err(io::Error::other(format!("node {old} is still there: nothing has changed")));
    }
    let shown = [("was", old.into()), ("votes", new.into()), ("after-ms", (took.as_millis() as u64).into())];
    Ok(vec![(victim, Edn::map(shown))])
}

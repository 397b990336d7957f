//! Processes: killed, stopped, and powered off together with their disks.

use std::fs;
use std::io;
use std::time::Duration;

use super::{AtWork, Evidence, LOOK, Run, Undo};
use crate::history::edn::Edn;

/// SIGKILL. The evidence: how each process ended.
pub fn kill(run: &mut Run, victims: &[usize]) -> io::Result<(Evidence, AtWork)> {
    Ok((end(run, victims)?, AtWork::new(victims.to_vec(), Undo::Start)))
}

/// SIGSTOP. The evidence: the state of each process, here and when it is resumed.
pub async fn pause(run: &mut Run, victims: &[usize]) -> io::Result<(Evidence, AtWork)> {
    run.cluster.pause_brokers(victims)?;
    let stopped = async {
        while still_stopped(run, victims).is_err() {
            run.env.clock.sleep(LOOK).await;
        }
    };
    let in_time = run.env.clock.timeout(Duration::from_secs(1), stopped).await;
    in_time.ok_or_else(|| io::Error::other("SIGSTOP had no effect"))?;
    Ok((states(run, victims)?, AtWork::new(victims.to_vec(), Undo::Resume)))
}

/// First everything stops, then the power goes, so that no victim sees another's end. The evidence: a file that was written
/// and never synced is gone when the file systems are back.
pub fn cut_power(run: &mut Run, victims: &[usize]) -> io::Result<(Evidence, AtWork)> {
    run.cluster.pause_brokers(victims)?;
    let disk = |run: &Run, victim: usize| run.outfit.disks[victim].clone().expect("it has one of its own");
    let canaries = victims.iter().map(|victim| disk(run, *victim).cut()).collect::<io::Result<Vec<_>>>()?;
    let mut evidence = end(run, victims)?;
    for ((victim, evidence), canary) in evidence.iter_mut().zip(canaries) {
        disk(run, *victim).restore(&canary)?;
        if let Edn::Map(entries) = evidence {
            entries.push((Edn::keyword("unsynced-canary"), Edn::keyword("gone")));
        }
    }
    Ok((evidence, AtWork::new(victims.to_vec(), Undo::Start)))
}

/// Starts those that are down.
pub fn start(run: &mut Run, victims: &[usize]) -> io::Result<Evidence> {
    victims.iter().try_for_each(|victim| run.cluster.start_broker(*victim))?;
    states(run, victims)
}

/// Lets the stopped ones go on. They must have been stopped all the time.
pub fn resume(run: &mut Run, victims: &[usize]) -> io::Result<Evidence> {
    still_stopped(run, victims)?;
    run.cluster.resume_brokers(victims)?;
    states(run, victims)
}

/// SIGKILL of processes that run; an error if one had ended before.
pub fn end(run: &mut Run, victims: &[usize]) -> io::Result<Evidence> {
    let pids: Vec<u32> = victims.iter().map(|victim| run.cluster.broker_pid(*victim)).collect();
    let statuses = run.cluster.kill_brokers(victims)?;
    let evidence =
        victims.iter().zip(pids).zip(statuses).map(|((victim, pid), status)| {
            (*victim, Edn::map([("pid", pid.into()), ("exit", status.to_string().into())]))
        });
    Ok(evidence.collect())
}

fn states(run: &Run, victims: &[usize]) -> io::Result<Evidence> {
    let states = victims.iter().map(|victim| {
        let pid = run.cluster.broker_pid(*victim);
        Ok((*victim, Edn::map([("pid", pid.into()), ("state", state(pid)?.into())])))
    });
    states.collect()
}

/// An error if one of them runs.
fn still_stopped(run: &Run, victims: &[usize]) -> io::Result<()> {
    for victim in victims {
        let pid = run.cluster.broker_pid(*victim);
        let state = state(pid)?;
        if state != "T" {
            return Err(io::Error::other(format!("process {pid} was to be stopped, but its state is {state}")));
        }
    }
    Ok(())
}

/// The state letter of a process, as in proc(5).
fn state(pid: u32) -> io::Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything.
    let state = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').next());
    state.map(str::to_owned).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat: {stat}")))
}

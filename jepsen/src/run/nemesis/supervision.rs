//! While a fault lasts, and after it: brokers that may end are started again, and the next fault waits until all is well.

use std::fs;
use std::io;
use std::time::Duration;

use protocol::body::ReplicaStatus;

use super::{AtWork, LOOK, NODES, Nemesis, Run, Undo};
use crate::cluster::PATIENCE;
use crate::{append, chain};

/// Lets time go by, and supervises the brokers.
pub async fn watch(run: &mut Run, mut fault: Option<(Nemesis, &mut AtWork)>, time: Duration) -> io::Result<()> {
    let end = run.env.clock.monotonic() + time;
    loop {
        match &mut fault {
            Some((nemesis, at_work)) => {
                let may_end = if nemesis.is_fatal() { &*at_work.victims } else { &[] };
                let ends = look_after(run, at_work.down(), may_end)?;
                at_work.ends.extend(ends);
                if let Undo::Clock(wrong) = &at_work.undo {
                    wrong.go_on(run)?;
                }
            }
            None => drop(look_after(run, &[], &[])?),
        }
        let left = end.saturating_sub(run.env.clock.monotonic());
        if left.is_zero() {
            return Ok(());
        }
        run.env.clock.sleep(left.min(LOOK)).await;
    }
}

/// What a supervisor does now and then, but for those that are `down` on purpose. The reasons of those that have ended; an
/// error if one has that may not, or without a reason.
pub fn look_after(run: &mut Run, down: &[usize], may_end: &[usize]) -> io::Result<Vec<String>> {
    let mut reasons = Vec::new();
    for k in (0..NODES.len()).filter(|k| !down.contains(k)) {
        let Some(ended) = run.cluster.supervise(k)? else { continue };
        match ended.said {
            Some(reason) if may_end.contains(&k) && ended.status.code() == Some(1) => reasons.push(reason),
            _ => {
                let (name, status, told) = (NODES[k], ended.status, run.cluster.log_tail(k));
                return Err(io::Error::other(format!("{name} ended: {status}; {told}")));
            }
        }
    }
    Ok(reasons)
}

/// Resolves when every broker is ready and holds what the others do, but for a few seconds' worth.
pub async fn until_well(run: &mut Run, after: Nemesis) -> io::Result<()> {
    // What a bad disk has told a broker may end it a moment after the disk is good again.
    let may_end: &[usize] = if after.is_fatal() { &[0, 1, 2] } else { &[] };
    let client = append::client(&run.env);
    let deadline = run.env.clock.monotonic() + PATIENCE;
    loop {
        drop(look_after(run, &[], may_end)?);
        let lacking = (0..NODES.len()).find(|k| !(run.cluster.runs(*k) && run.cluster.is_ready(*k)));
        let told = match (lacking, run.cluster.leader()) {
            (Some(k), _) => format!("{} is not ready; {}{}", NODES[k], run.cluster.log_tail(k), silent(run, k)),
            (None, None) => "nobody leads".to_owned(),
            (None, Some(leader)) => match chain::status(&client, run.replicas[leader]).await {
                Ok(status) if all_hold_enough(&status) => return Ok(()),
                Ok(status) => format!("not all members have caught up: {:?}", status.members),
                Err(error) => error,
            },
        };
        if run.env.clock.monotonic() > deadline {
            return Err(io::Error::other(format!("{PATIENCE:?} after {}, {told}", after.name())));
        }
        run.env.clock.sleep(LOOK).await;
    }
}

/// What the threads of a broker do, for people: one that is silent and runs may wait for ever, or turn in circles.
fn silent(run: &Run, k: usize) -> String {
    if run.cluster.runs(k) { threads(run.cluster.broker_pid(k)) } else { String::new() }
}

fn threads(pid: u32) -> String {
    let tasks = format!("/proc/{pid}/task");
    let mut told = format!("\nits threads, in {tasks}: name, state, what they wait for, ticks used:");
    for task in fs::read_dir(tasks).into_iter().flatten().filter_map(Result::ok) {
        let of = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let stat = of("stat");
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or_default();
        told += &format!("\n{} {} {} {}+{}", of("comm").trim(), field(0), of("wchan"), field(11), field(12));
    }
    told
}

/// Whether all replicas vote and lack no more than somebody may who begins to.
fn all_hold_enough(leader: &ReplicaStatus) -> bool {
    let enough = leader.members.iter().filter(|member| member.voter && member.caught_up == Some(true));
    enough.count() == NODES.len()
}

#[cfg(test)]
mod tests {
    use protocol::body::ReplicaMember;

    use super::*;

    #[test]
    fn what_a_processs_threads_do_is_told() {
        let own = fs::read_to_string("/proc/thread-self/comm").expect("it has a name");
        let told = threads(std::process::id());
        let running = format!("{} R ", own.trim());
        assert!(told.lines().any(|line| line.starts_with(&running)), "{running} is not in {told}");
    }

    #[test]
    fn all_is_well_when_three_vote_and_have_caught_up() {
        let member = |voter, caught_up| ReplicaMember { voter, caught_up, ..ReplicaMember::default() };
        let whole = member(true, Some(true));
        let among = |third| {
            all_hold_enough(&ReplicaStatus {
                members: vec![whole.clone(), whole.clone(), third],
                ..ReplicaStatus::default()
            })
        };
        assert!(among(whole.clone()));
        assert!(!among(member(false, Some(true))), "a learner");
        assert!(!among(member(true, Some(false))) && !among(member(true, None)), "one that lags, or does not lead");
    }
}

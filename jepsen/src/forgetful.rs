//! Groups that flush by a timer (ASYNC_FLUSH), and machines that go down with what was not flushed.
//!
//! All three at once: nobody leads, each says that it may have forgotten something and waits for a machine that has not;
//! so it stays until the operator lets the group go on (`async_auto_recover`). What is lost then was acknowledged within
//! the flush interval plus the longest flush before the cut, and the judge of that is [`crate::judge`].
//!
//! One alone: its word does not count until it holds what the others have committed, and nothing is lost.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::append::Answers;
use crate::cluster::PATIENCE;
use crate::faults::Run;
use crate::judge::{Lost, Outage};

/// What a replica logs when it may have lost what it acknowledged.
const ON_PROBATION: &str = "this replica neither votes nor campaigns";

/// What it logs when it holds what the group has committed.
const VOTES_AGAIN: &str = "it votes again";

/// What it logs when it has waited in vain for a leader.
const NOBODY_LEADS: &str = "nobody leads";

const EVERYBODY: [usize; 3] = [0, 1, 2];

/// What the cycles have seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    outages: u32,
    lost: Lost,
    /// Of the one with the oldest loss, or of the latest.
    bound: Duration,
}

impl Seen {
    /// Adds what one outage took.
    pub fn note(&mut self, lost: Lost, outage: Outage) {
        self.outages += 1;
        self.lost.count += lost.count;
        if lost.oldest >= self.lost.oldest {
            (self.lost.oldest, self.bound) = (lost.oldest, outage.bound);
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} lost in {} power failures of all, the oldest acknowledged {:.1?} before the cut where {:.1?} are allowed \
             (flush interval + longest flush), and nobody led until allowed to",
            self.lost.count, self.outages, self.lost.oldest, self.bound
        )
    }
}

/// All machines go down at once and come back.
pub(crate) async fn cycle(run: &mut Run) -> io::Result<(Answers, Outage)> {
    let load = run.load();
    load.acknowledge_more(&run.env, run.plan.appends).await?;
    // Anywhere between two flushes.
    run.env.clock.sleep(Duration::from_millis(run.rng.below(500))).await;
    let said = |run: &Run, what| EVERYBODY.map(|k| run.cluster.said(k, what).unwrap_or_default());
    let (on_probation, in_vain) = (said(run, ON_PROBATION), said(run, NOBODY_LEADS));
    let bound = run.may_be_unflushed()?;
    let cut = run.env.clock.monotonic();
    run.cut_power(&EVERYBODY)?;
    let back = run.env.clock.monotonic();

    run.cluster.set_async_auto_recover(false)?;
    let acknowledged = load.acknowledged();
    for k in EVERYBODY {
        run.cluster.boot(k)?;
        run.cluster.start_broker(k)?;
    }
    let all_more =
        |run: &Run, what, before: [usize; 3]| said(run, what).iter().zip(before).all(|(now, before)| *now > before);
    let in_time = run.env.clock.monotonic() + PATIENCE;
    while !all_more(run, NOBODY_LEADS, in_vain) {
        if let Some(leader) = run.cluster.leader() {
            return Err(io::Error::other(format!(
                "broker {} leads, and all three may have forgotten what they acknowledged",
                leader + 1
            )));
        }
        if run.env.clock.monotonic() > in_time {
            let told = EVERYBODY.map(|k| run.cluster.log_tail(k)).join("\n");
            return Err(io::Error::other(format!("not all say that nobody leads; {told}")));
        }
        run.env.clock.sleep(Duration::from_millis(50)).await;
    }
    if !all_more(run, ON_PROBATION, on_probation) {
        return Err(io::Error::other("not all say that they are on probation"));
    }
    for k in EVERYBODY {
        if run.cluster.metric(k, "raftmq_on_probation", "")? != 1.0 || run.cluster.is_ready(k) {
            return Err(io::Error::other(format!("broker {} serves, and may have forgotten something", k + 1)));
        }
    }
    if load.acknowledged() > acknowledged {
        return Err(io::Error::other("something was acknowledged while nobody may lead"));
    }

    // The operator decides. That they are on probation outlives this stop, which is not one of their machines.
    run.cluster.kill_brokers(&EVERYBODY)?;
    run.cluster.set_async_auto_recover(true)?;
    for k in EVERYBODY {
        run.cluster.start_broker(k)?;
    }
    for k in EVERYBODY {
        run.cluster.wait_ready(k)?;
    }
    load.acknowledge_more(&run.env, 1).await?;
    Ok((load.stop().await, Outage { cut, back, bound }))
}

/// Resolves when a replica whose machine went down votes again. It must have said that it does not.
pub(crate) async fn until_it_votes_again(run: &Run, k: usize) -> io::Result<()> {
    let in_time = run.env.clock.monotonic() + PATIENCE;
    while run.cluster.metric(k, "raftmq_on_probation", "")? != 0.0 {
        if run.env.clock.monotonic() > in_time {
            return Err(io::Error::other(format!("broker {} stays on probation; {}", k + 1, run.cluster.log_tail(k))));
        }
        run.env.clock.sleep(Duration::from_millis(20)).await;
    }
    let (lost, caught_up) = (run.cluster.said(k, ON_PROBATION)?, run.cluster.said(k, VOTES_AGAIN)?);
    if lost == 0 || lost != caught_up {
        return Err(io::Error::other(format!(
            "broker {} was put on probation {lost} times and has caught up {caught_up} times",
            k + 1
        )));
    }
    Ok(())
}

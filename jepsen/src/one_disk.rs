//! One disk of three goes bad under load: its replica steps down or stops, the other two serve, and when the disk is good
//! again the replica comes back, restarted by whatever supervises it where it has ended.
//!
//! In odd cycles the victim is the leader, in even ones one of the others. While the fault lasts a victim that has ended is
//! started again and again, as systemd does: it must end each time with its reason and exit code 1. Service may pause as
//! long as the contract says (clause 10).

use std::fmt;
use std::io;
use std::time::Duration;

use crate::append::{self, Answers, Load, QUEUES};
use crate::cluster::{Ended, PATIENCE};
use crate::disk_fault::{DiskFault, Struck, full_segments};
use crate::faults::Run;

/// The longest pause in service with a minority failed.
const GAP_LIMIT: Duration = Duration::from_secs(5);

/// How long the fault lasts once the others serve.
const HOLD: Duration = Duration::from_secs(5);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// What the cycles have seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    leaders: u32,
    followers: u32,
    /// Times that a victim's process ended, for each of which there was a reason.
    ended: u32,
    /// From the fault until another led.
    longest_office: Duration,
    /// From the end of the fault until it was ready.
    longest_return: Duration,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { leaders, followers, ended, longest_office, longest_return } = self;
        write!(
            f,
            "{leaders} leaders and {followers} followers struck; a struck leader out of office after {longest_office:.1?} at \
             most; {ended} ends with a reason, restarted by the supervisor; ready again {longest_return:.1?} after the end of \
             the fault at most"
        )
    }
}

/// One disk goes bad, and good again.
pub(crate) async fn cycle(run: &mut Run, fault: DiskFault, cycle: u32, seen: &mut Seen) -> io::Result<Answers> {
    let mut answers = Answers::default();
    let mut load = run.load();
    load.acknowledge_more(&run.env, run.plan.appends).await?;
    if fault == DiskFault::ErrorRead {
        for k in 0..3 {
            while full_segments(run.cluster.data_dir(k))?.is_empty() {
                load.acknowledge_more(&run.env, run.plan.appends).await?;
            }
        }
        // What cannot be read must not be in memory: the processes are young, and idle, when one is struck.
        answers.extend(load.stop().await);
        load = Load::idle();
        let all = [0, 1, 2];
        run.cluster.kill_brokers(&all)?;
        all.iter().try_for_each(|k| run.cluster.start_broker(*k))?;
        all.iter().try_for_each(|k| run.cluster.wait_ready(*k))?;
    }
    let leader = leader(run).await?;
    let victim = match cycle % 2 {
        1 => leader,
        _ => (leader + 1 + run.rng.below(2) as usize) % 3,
    };
    let is_leader = victim == leader;
    let pid = run.cluster.broker_pid(victim);
    let struck = fault.strike(&run.disks[victim], run.speeds[victim], pid, run.cluster.data_dir(victim))?;
    let whose = if is_leader { "the leader's" } else { "a follower's" };
    eprintln!("{fault:?} {cycle}: {whose} disk (broker {}); {}", victim + 1, struck.evidence());
    if fault == DiskFault::ErrorRead {
        load = run.load();
        for queue in 0..QUEUES {
            let (env, replica) = (run.env.clone(), run.replicas[victim]);
            tokio::spawn(async move { append::read_for_nothing(&env, replica, queue).await });
        }
    }
    let mut story = Story { victim, fault, ends: Vec::new(), office: Duration::ZERO };
    story.others_serve(run, &load).await?;
    if is_leader {
        seen.leaders += 1;
        seen.longest_office = seen.longest_office.max(story.office);
    } else {
        seen.followers += 1;
    }
    let healed = if fault == DiskFault::ErrorRead {
        // Nobody but the replica mends it.
        let healed = run.env.clock.monotonic();
        story.comes_back(run).await?;
        struck.is_mended()?;
        healed
    } else {
        let healed = story.heal(run, struck)?;
        story.comes_back(run).await?;
        healed
    };
    let back = run.env.clock.monotonic() - healed;
    seen.longest_return = seen.longest_return.max(back);
    seen.ended += story.ends.len() as u32;
    load.acknowledge_more(&run.env, 1).await?;
    answers.extend(load.stop().await);
    if let Some(reason) = story.ends.first().and_then(|first| first.said.as_ref()) {
        eprintln!("{fault:?} {cycle}: ended {} times, at first: {reason}", story.ends.len());
    }
    let (office, gap) = (story.office, answers.longest_gap);
    eprintln!(
        "{fault:?} {cycle}: out of office after {office:.1?}, ready {back:.1?} after the fault, longest gap {gap:.1?}"
    );
    if gap > GAP_LIMIT {
        return Err(io::Error::other(format!("no service for {gap:?} with one bad disk; {GAP_LIMIT:?} are allowed")));
    }
    Ok(answers)
}

/// Who leads; waited for.
async fn leader(run: &Run) -> io::Result<usize> {
    let found = async {
        loop {
            if let Some(leader) = run.cluster.leader() {
                return leader;
            }
            run.env.clock.sleep(LOOK).await;
        }
    };
    run.env.clock.timeout(PATIENCE, found).await.ok_or_else(|| io::Error::other("nobody leads"))
}

/// What happens to one victim.
struct Story {
    victim: usize,
    fault: DiskFault,
    ends: Vec<Ended>,
    /// From the fault until it led no more.
    office: Duration,
}

impl Story {
    /// Resolves when the victim has been out of office for a while (and, where it can only end, has ended), and the others
    /// have acknowledged meanwhile.
    async fn others_serve(&mut self, run: &mut Run, load: &Load) -> io::Result<()> {
        let struck_at = run.env.clock.monotonic();
        let (mut since, mut acknowledged) = (struck_at, load.acknowledged());
        loop {
            self.look(run)?;
            let now = run.env.clock.monotonic();
            let is_in_office = run.cluster.leader() == Some(self.victim);
            let may_end = self.fault.is_fatal() && self.ends.is_empty();
            if is_in_office {
                self.office = now - struck_at;
            }
            if is_in_office || may_end {
                (since, acknowledged) = (now, load.acknowledged());
            }
            if now - since >= HOLD && load.acknowledged() >= acknowledged + run.plan.appends {
                return Ok(());
            }
            if now - struck_at > PATIENCE {
                let what = match (is_in_office, may_end) {
                    (true, _) => "still leads",
                    (_, true) => "has not ended",
                    _ => "is out of the way, but the others do not serve",
                };
                let told = run.cluster.log_tail(self.victim);
                return Err(io::Error::other(format!(
                    "broker {} {what}, {PATIENCE:?} after its disk went bad; {told}",
                    self.victim + 1
                )));
            }
            run.env.clock.sleep(LOOK).await;
        }
    }

    /// Supervises the victim. It may end with a reason only.
    fn look(&mut self, run: &mut Run) -> io::Result<()> {
        let Some(ended) = run.cluster.supervise(self.victim)? else { return Ok(()) };
        if ended.status.code() != Some(1) || ended.said.is_none() {
            return Err(io::Error::other(format!(
                "broker {} ended without a reason: {}; {}",
                self.victim + 1,
                ended.status,
                run.cluster.log_tail(self.victim)
            )));
        }
        self.ends.push(ended);
        Ok(())
    }

    /// The disk is good again. Gives when.
    fn heal(&mut self, run: &mut Run, struck: Struck) -> io::Result<Duration> {
        if struck.needs_a_mount() {
            // A start that is being tried just now is in the operator's way.
            self.look(run)?;
            if run.cluster.runs(self.victim) {
                run.cluster.end_broker(self.victim)?;
            }
        }
        struck.heal()?;
        Ok(run.env.clock.monotonic())
    }

    /// Resolves when the victim is ready.
    async fn comes_back(&mut self, run: &mut Run) -> io::Result<()> {
        let deadline = run.env.clock.monotonic() + PATIENCE;
        while !(run.cluster.runs(self.victim) && run.cluster.is_ready(self.victim)) {
            self.look(run)?;
            if run.env.clock.monotonic() > deadline {
                let told = run.cluster.log_tail(self.victim);
                return Err(io::Error::other(format!("broker {} does not come back; {told}", self.victim + 1)));
            }
            run.env.clock.sleep(LOOK).await;
        }
        Ok(())
    }
}

//! A whole cluster in one thread, its network, disks and clocks simulated, while faults strike: same seed, same run.
//!
//! NameServer, brokers and clients are the product's own code on turmoil's network, on [`env::disk::simulated`] and on
//! paused clocks. A run has a *safety phase*, in which the plan's faults strike and nothing but safety is asked for; then
//! everything is healed, and in the *liveness phase* there must be a leader, service and equal replicas in time.
//!
//! - [`plan`]: what a seed decides. [`world`], [`host`]: what there is. [`nemesis`], [`points`]: what is done to it.
//! - [`workload`], [`clients`], [`consumers`], [`transactors`], [`poppers`], [`dead_letters`], [`movers`], [`operators`],
//!   [`history`]: what is asked and answered.
//! - [`invariants`], [`judge`], [`registers`], [`leases`]: what must hold.
//! - [`scenarios`]: what went wrong elsewhere, step by step.
//! - [`sweep`]: many seeds, one process each. [`planted`]: which of them catch which bug.

pub mod clients;
pub mod consumers;
pub mod dead_letters;
pub mod history;
pub mod host;
pub mod invariants;
pub mod judge;
pub mod leases;
pub mod movers;
pub mod nemesis;
pub mod operators;
pub mod plan;
pub mod planted;
pub mod points;
pub mod poppers;
pub mod registers;
pub mod scenarios;
pub mod sweep;
pub mod transactors;
pub mod workload;
pub mod world;

use std::collections::BTreeMap;

use raft_store::entry::{CoreCommand, Operation};
use serde::{Deserialize, Serialize};

use self::judge::judge;
use self::nemesis::Nemesis;
use self::plan::Plan;
use self::world::World;

/// Between two looks at the invariants, in ticks: less than it takes a new leader to acknowledge anything.
const LOOK_TICKS: u64 = 4;

/// A group founds itself within this.
const FOUNDED_MS: u64 = 30_000;
/// When faults have ended there is a leader within this,
const LEADER_MS: u64 = 10_000;
/// appends are acknowledged,
const SERVICE_MS: u64 = 15_000;
/// and replicas are equal.
const EQUAL_MS: u64 = 60_000;
/// A change of the members that an operator has asked for, too.
const CHANGED_MS: u64 = 60_000;
/// What was scheduled last is shown within this,
const DUE_MS: u64 = 2500;
/// or this, where clocks were moved.
const DUE_AFTER_STEPS_MS: u64 = 180_000;
/// Producers are asked, answer, and the end is applied; a client that does not hear of a leader looks again within this.
const TRANSACTIONS_MS: u64 = 40_000;
/// Leases end, and all that is left is popped.
const DRAINED_MS: u64 = 120_000;
/// Longest that a client may still wait for an answer when it is told to end.
const LAST_ANSWERS_MS: u64 = 20_000;

/// A run with fewer acknowledged sends says too little.
const SENDS: usize = 100;

/// What became of a seed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Clauses and invariants that do not hold, and how that was seen.
    pub violations: Vec<String>,
    /// Operations, by kind.
    pub operations: BTreeMap<String, u64>,
    /// How often somebody else has led, or the same one in another term.
    pub leader_changes: u64,
    /// Sends acknowledged.
    pub acknowledged: usize,
    /// Entries whose chain was compared.
    pub entries: usize,
    /// Faults that took effect, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Simulated time under faults.
    pub faults_ms: u64,
    /// Sends acknowledged in that time.
    pub acknowledged_under_faults: usize,
    /// Simulated time in all.
    pub simulated_ms: u64,
    /// Hash of everything that was seen, in hexadecimal.
    pub hash: String,
    /// How many things that were.
    pub seen: u64,
}

impl Outcome {
    /// Whether the run says something: enough happened in it.
    pub fn counts(&self) -> bool {
        self.faults_ms >= 5000 && self.acknowledged_under_faults >= SENDS && self.faults.len() >= 2
    }
}

/// Runs a seed's plan.
pub fn run(plan: &Plan) -> Outcome {
    let mut run = Run::new(plan);
    let came_to_the_end = run.found().and_then(|()| {
        run.go_on_for(plan.faults_ms);
        run.finish()
    });
    run.outcome(came_to_the_end)
}

/// A run, step by step: [`Run::found`], then whatever is to happen, then [`Run::finish`] and [`Run::outcome`].
pub struct Run<'p> {
    plan: &'p Plan,
    /// What there is.
    pub world: World,
    nemesis: Option<Nemesis>,
    clients: Vec<String>,
    /// Clients that end when no transaction waits any more.
    transactors: Vec<String>,
    ticks: u64,
    /// When there was a group, in simulated time; then faults may strike.
    founded_ms: u64,
    /// How long that went on, and what was acknowledged meanwhile.
    under_faults: (u64, usize),
}

impl<'p> Run<'p> {
    /// A world in which nothing has happened yet.
    pub fn new(plan: &'p Plan) -> Run<'p> {
        Run {
            plan,
            world: World::new(plan),
            nemesis: None,
            clients: Vec::new(),
            transactors: Vec::new(),
            ticks: 0,
            founded_ms: 0,
            under_faults: (0, 0),
        }
    }

    /// Who strikes, and starts again what has ended.
    ///
    /// Panics before the group is founded.
    pub fn nemesis(&mut self) -> &mut Nemesis {
        self.nemesis.as_mut().expect("it comes when the group is founded")
    }

    /// One tick, and a look at what must hold.
    fn tick(&mut self) {
        self.world.step();
        if let Some(nemesis) = &mut self.nemesis {
            nemesis.tick(&mut self.world);
        }
        self.ticks += 1;
        if self.ticks.is_multiple_of(LOOK_TICKS) {
            self.world.look();
        }
    }

    /// Ticks for so long.
    pub fn go_on_for(&mut self, ms: u64) {
        let end = self.world.now_ms() + ms;
        while self.world.now_ms() < end {
            self.tick();
        }
    }

    /// Ticks until it is so, for at most so long.
    pub fn until(
        &mut self,
        what: &str,
        limit_ms: u64,
        mut is_so: impl FnMut(&mut World) -> bool,
    ) -> Result<(), String> {
        let end = self.world.now_ms() + limit_ms;
        while !is_so(&mut self.world) {
            if self.world.now_ms() >= end {
                return Err(format!("not within {limit_ms} ms: {what}"));
            }
            self.tick();
        }
        Ok(())
    }

    /// A group, its topics, and clients at work.
    pub fn found(&mut self) -> Result<(), String> {
        self.until("a new group has a leader", FOUNDED_MS, |world| world.leader().is_some())?;
        let preparing = self.world.client("preparer", |caller| caller.prepare());
        self.until("topics are made", SERVICE_MS, |world| world.is_done(&preparing))?;
        {
            let mut history = self.world.work.history.borrow_mut();
            history.clocks_agree = true;
            history.lease_ms = self.plan.lease.as_millis() as u64;
            history.is_trimmed = self.plan.lets_go();
        }
        self.start_clients();
        self.nemesis = Some(Nemesis::new(self.plan, &self.world));
        self.founded_ms = self.world.now_ms();
        Ok(())
    }

    /// Everything is healed: service must come back, and replicas must be equal in the end.
    pub fn finish(&mut self) -> Result<(), String> {
        self.under_faults = (self.world.now_ms() - self.founded_ms, self.world.work.history.borrow().acknowledged());
        self.nemesis.as_mut().expect("it was founded").rest(&mut self.world);
        self.until("there is a leader", LEADER_MS, |world| world.leader().is_some())?;
        let appending = self.world.client("appender", |caller| caller.append_one());
        self.until("an append is acknowledged", SERVICE_MS, |world| world.is_done(&appending))?;
        let end = self.world.now_ms() + CHANGED_MS;
        while !self.nemesis.as_ref().expect("it was founded").is_at_rest(&self.world) {
            if self.world.now_ms() >= end {
                return Err("a change of the members, asked for by an operator, is not done".to_owned());
            }
            self.tick();
        }
        self.until("a run's worth of sends is acknowledged", SERVICE_MS, |world| {
            world.work.history.borrow().acknowledged() >= SENDS
        })?;
        self.world.work.stops.set(true);
        let clients = std::mem::take(&mut self.clients);
        self.until("clients have their answers", LAST_ANSWERS_MS, |world| {
            clients.iter().all(|client| world.is_done(client))
        })?;
        self.settle()
    }

    /// What became of it; `came_to_the_end` if no step of it failed.
    pub fn outcome(self, came_to_the_end: Result<(), String>) -> Outcome {
        let Run { plan, world, nemesis, under_faults: (faults_ms, acknowledged_under_faults), .. } = self;
        if let Err(what) = came_to_the_end {
            world.invariants.violated("service comes back", what);
        }
        world.work.history.borrow_mut().stored = world.invariants.stored();
        let history = world.work.history.borrow();
        let found = world.invariants.violations().into_iter().chain(judge(&history));
        let (hash, seen) = world.witness();
        let faults = nemesis.map(|nemesis| nemesis.struck()).unwrap_or_default();
        Outcome {
            seed: plan.seed,
            violations: found.map(|violation| format!("{}: {}", violation.clause, violation.what)).collect(),
            operations: history.operations().into_iter().map(|(kind, times)| (kind.to_owned(), times)).collect(),
            leader_changes: world.invariants.leader_changes(),
            acknowledged: history.acknowledged(),
            entries: world.invariants.entries(),
            faults: faults.into_iter().map(|(fault, times)| (fault.name().to_owned(), times)).collect(),
            faults_ms,
            acknowledged_under_faults,
            simulated_ms: world.now_ms(),
            hash: format!("{hash:016x}"),
            seen,
        }
    }

    fn start_clients(&mut self) {
        let world = &mut self.world;
        let mut clients: Vec<String> =
            (0..self.plan.appenders).map(|_| world.client("appender", |caller| caller.append())).collect();
        clients.extend((0..self.plan.copiers).map(|_| world.client("copier", |caller| caller.append_copies())));
        clients.push(world.client("producer", |caller| caller.produce()));
        clients.push(world.client("scheduler", |caller| caller.schedule()));
        clients.extend((0..4).map(|reader| world.client("reader", move |caller| caller.read(reader))));
        clients.extend((0..2).map(|_| world.client("keeper", |caller| caller.keep_offsets())));
        clients.extend((0..2).map(|_| world.client("watcher", |caller| caller.watch_offsets())));
        clients.extend((0..2).map(|_| world.client("pusher", |caller| caller.push_offsets())));
        clients.extend(["one", "other"].map(|name| world.client("locker", move |caller| caller.lock_queue(name))));
        clients.extend((0..self.plan.movers).map(|_| world.client("recaller", |caller| caller.recall())));
        clients.extend((0..self.plan.movers).map(|_| world.client("mover", |caller| caller.move_groups())));
        clients.extend((0..self.plan.poppers).map(|_| world.client("popper", |caller| caller.pop())));
        clients.extend((0..self.plan.givers).map(|_| world.client("giver", |caller| caller.give_up())));
        self.clients = clients;
        self.transactors =
            (0..self.plan.transactors).map(|_| world.client("transactor", |caller| caller.transact())).collect();
    }

    /// Waits until replicas are equal, in state too, and reads all of them back.
    fn settle(&mut self) -> Result<(), String> {
        // A clock that was wrong for a while has left the group's time ahead of it: then what is due is due later.
        let limit_ms = if self.world.work.history.borrow().clocks_agree { DUE_MS } else { DUE_AFTER_STEPS_MS };
        self.until("what was scheduled is shown", limit_ms, |world| {
            let leader = world.leader().and_then(|leader| world.hosts[leader].group());
            leader.is_some_and(|group| group.raft().reader().pending().scheduled == 0)
        })?;
        let limit_ms = limit_ms.max(TRANSACTIONS_MS);
        self.until("every transaction has ended", limit_ms, |world| {
            let leader = world.leader().and_then(|leader| world.hosts[leader].group());
            leader.is_some_and(|group| group.raft().reader().pending().half == 0)
        })?;
        self.world.work.is_settled.set(true);
        let transactors = std::mem::take(&mut self.transactors);
        self.until("clients with transactions have ended", LAST_ANSWERS_MS, |world| {
            transactors.iter().all(|client| world.is_done(client))
        })?;
        // Group time that is ahead stands still for a while, and so do leases.
        if self.plan.poppers > 0 && self.world.work.history.borrow().clocks_agree {
            let draining = self.world.client("drainer", |caller| caller.drain());
            self.until("nothing is left to pop", limit_ms + DRAINED_MS, |world| world.is_done(&draining))?;
        }
        // One whose clock is off hands over.
        let mut checkpointing = None;
        self.until("there is a leader again", SERVICE_MS, |world| {
            checkpointing = world.leader().and_then(|leader| world.hosts[leader].group());
            checkpointing.is_some()
        })?;
        let group = checkpointing.expect("there is one");
        let proposing = self.world.client("operator", |_| async move {
            let _ = group.raft().propose(vec![Operation::Core(CoreCommand::Checkpoint)]).await;
        });
        self.until("a checkpoint is proposed", SERVICE_MS, |world| world.is_done(&proposing))?;
        let mut members = Vec::new();
        self.until("replicas are equal", EQUAL_MS, |world| {
            members = members_at_one_place(world);
            !members.is_empty()
        })?;
        let auditing = self.world.client("auditor", move |caller| caller.audit(members));
        self.until("replicas can be read", EQUAL_MS, |world| world.is_done(&auditing))
    }
}

/// The hosts of all voters, if all of them have applied one log to its end and agree on the state; else none.
fn members_at_one_place(world: &World) -> Vec<usize> {
    let Some(leader) = world.leader().and_then(|leader| world.hosts[leader].group()) else { return Vec::new() };
    let leads = leader.raft().status();
    let voters: Vec<&str> = leads
        .members
        .iter()
        .filter(|member| leads.voters.contains(&member.id))
        .map(|member| member.peer_address.as_str())
        .collect();
    let is_there = |at: &usize| {
        let Some(group) = world.hosts[*at].group() else { return false };
        let status = group.raft().status();
        [status.last, status.applied] == [leads.last; 2]
            && status.synced == leads.last.map(|last| last.index)
            && status.state_agreed.is_some()
            && status.state_agreed == leads.state_agreed
    };
    let members: Vec<usize> =
        (0..world.hosts.len()).filter(|at| voters.contains(&world.hosts[*at].peer_address().as_str())).collect();
    if members.len() == voters.len() && members.iter().all(is_there) { members } else { Vec::new() }
}

//! The nemesis: makes the plan's faults happen, ends those that last, and starts again what has ended.
//!
//! It never does what the contract does not promise to survive: only one host a run, the *victim*, loses or damages what
//! was durable, and only one change of the members is under way at a time.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use broker::config::Flush;
use env::Rng;
use env::disk::simulated::Met;
use raft_store::log::segment::HEAD_BYTES;

use super::host::{DATA, Process};
use super::plan::{AMPLE_BYTES, Fault, Plan, Strike};
use super::points::{self, Passed};
use super::world::{World, slow};

/// Size of a copy of the hard state.
const HARD_STATE_BYTES: u64 = 124;

/// Ends a fault that lasts.
type Undo = Box<dyn FnOnce(&mut World)>;

/// See the top.
pub struct Nemesis {
    strikes: std::collections::VecDeque<Strike>,
    begun_ms: u64,
    latency: Duration,
    undo: Vec<(u64, Undo)>,
    /// Which faults took effect, and how often.
    struck: BTreeMap<Fault, u64>,
    /// Transfers that were done.
    transfers: Rc<Cell<u64>>,
    victim: Option<usize>,
    /// Faults of disks whose effect is yet to be seen.
    awaited: Vec<Awaited>,
    /// Until when a host's process may end by itself, because its disk fails.
    excused_until: Vec<u64>,
    /// Until when the faults of each host's disk that are over may still be felt.
    felt_until: Vec<u64>,
    /// Hosts on whose disk a bit has turned: whoever reads it ends, whenever that is and whatever else is over by then.
    is_rotten: Vec<bool>,
    /// Processes whose disk has failed, and when they must have ended by themselves.
    ends: Vec<Ends>,
    change: Option<Change>,
    /// Power may fail at one replica, and at another only when that one has made up for what it lost.
    one_at_a_time: bool,
    rng: Rng,
}

/// A change of the members that is under way.
#[derive(Debug)]
struct Change {
    operator: String,
    /// Whose member comes.
    joins: usize,
    /// Whose member goes.
    leaves: usize,
    /// The operator was told to wipe the one that comes.
    wipes: Rc<Cell<bool>>,
    fault: Fault,
}

/// A fault of a disk whose effect is yet to be seen.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    at: usize,
    fault: Fault,
    /// What calls had met before.
    before: u64,
    /// When it ends.
    end: u64,
}

impl Awaited {
    fn met(fault: Fault, met: Met) -> u64 {
        match fault {
            Fault::FullDisk => met.no_space,
            Fault::SlowDisk => met.delayed,
            _ => met.failed,
        }
    }
}

/// A process that must end by itself.
#[derive(Clone, Copy, Debug)]
struct Ends {
    at: usize,
    process: u64,
    due: u64,
}

/// A process ends so soon after its disk has failed a write or a sync.
const ENDS_MS: u64 = 3000;

/// How long a fault of a disk may be felt after its end.
const FELT_MS: u64 = 3000;

impl Nemesis {
    /// A nemesis that begins now.
    pub fn new(plan: &Plan, world: &World) -> Nemesis {
        Nemesis {
            strikes: plan.strikes.iter().cloned().collect(),
            begun_ms: world.now_ms(),
            latency: plan.latency,
            undo: Vec::new(),
            struck: BTreeMap::new(),
            transfers: Rc::default(),
            victim: None,
            awaited: Vec::new(),
            excused_until: vec![0; world.hosts.len()],
            felt_until: vec![0; world.hosts.len()],
            is_rotten: vec![false; world.hosts.len()],
            ends: Vec::new(),
            change: None,
            one_at_a_time: plan.flush != Flush::Sync,
            rng: Rng::seeded(plan.seed ^ 0x6E65_6D65_7369_7300),
        }
    }

    /// How often each fault took effect.
    pub fn struck(&self) -> BTreeMap<Fault, u64> {
        let transfers = Some((Fault::Transfer, self.transfers.get())).filter(|(_, count)| *count > 0);
        self.struck.clone().into_iter().chain(transfers).collect()
    }

    /// A scenario damages this host's disk: its process may end by itself, and an operator may have to replace it.
    pub fn damages(&mut self, at: usize) {
        self.victim = Some(at);
        self.excused_until[at] = u64::MAX;
    }

    /// A scenario lets this host's member leave: its process may end by itself.
    pub fn leaves(&mut self, at: usize) {
        self.excused_until[at] = u64::MAX;
    }

    /// What is due now.
    pub fn tick(&mut self, world: &mut World) {
        self.see_armed_point(world);
        let now = world.now_ms();
        while self.strikes.front().is_some_and(|strike| self.begun_ms + strike.at_ms <= now) {
            let strike = self.strikes.pop_front().expect("looked at");
            self.strike(world, &strike);
        }
        let (due, rest) = std::mem::take(&mut self.undo).into_iter().partition(|(end, _)| *end <= now);
        self.undo = rest;
        let due: Vec<(u64, Undo)> = due;
        due.into_iter().for_each(|(_, undo)| undo(world));
        self.see_disks(world);
        self.supervise(world);
    }

    /// Everything is healed; what is under way may end.
    pub fn rest(&mut self, world: &mut World) {
        self.strikes.clear();
        for (_, undo) in std::mem::take(&mut self.undo) {
            undo(world);
        }
        points::disarm();
        self.see_disks(world);
        self.awaited.clear();
        let felt_until = world.now_ms() + FELT_MS;
        self.excused_until.iter_mut().for_each(|until| *until = (*until).min(felt_until));
        world.heal_all(self.latency);
    }

    /// Whether nothing is under way any more.
    pub fn is_at_rest(&self, world: &World) -> bool {
        self.change.is_none() && (0..world.hosts.len()).all(|at| !world.restarts(at))
    }

    fn count(&mut self, fault: Fault) {
        *self.struck.entry(fault).or_default() += 1;
    }

    fn restart_soon(&self, world: &mut World, at: usize) {
        let due = world.now_ms() + 50 + self.rng.below(1500);
        world.restart_at(at, due);
    }

    fn strike(&mut self, world: &mut World, strike: &Strike) {
        let rng = &strike.rng;
        let running = world.running();
        let Some(at) = (!running.is_empty()).then(|| running[rng.below(running.len() as u64) as usize]) else { return };
        // Half of what can hit anybody hits who leads.
        let leader = world.leader();
        let at = leader.filter(|_| rng.chance(1, 2)).unwrap_or(at);
        let end = world.now_ms() + strike.lasts_ms;
        let others: Vec<usize> = running.iter().copied().filter(|other| *other != at).collect();
        match strike.fault {
            Fault::Partition | Fault::OneWay => self.partition(world, strike, at, end),
            Fault::Loss => {
                let Some(other) = others.first().copied() else { return };
                world.cut(at, other, false);
                let end = world.now_ms() + 1 + rng.below(100);
                self.undo.push((end, Box::new(move |world| world.heal(at, other))));
                self.count(Fault::Loss);
            }
            Fault::Hold => {
                for other in others {
                    world.hold(at, other);
                    self.undo.push((end, Box::new(move |world| world.release(at, other))));
                }
                self.count(Fault::Hold);
            }
            Fault::Delay => {
                let (slow, fast) = (Duration::from_millis(20 + rng.below(150)), self.latency);
                for other in others {
                    world.set_latency(at, other, slow);
                    self.undo.push((end, Box::new(move |world| world.set_latency(at, other, fast))));
                }
                self.count(Fault::Delay);
            }
            Fault::Kill => {
                world.kill(at);
                self.restart_soon(world, at);
                self.count(Fault::Kill);
            }
            Fault::Crash => {
                let several = match rng.below(4) {
                    _ if self.one_at_a_time && !world.members().all(|member| world.is_whole(member)) => return,
                    _ if self.one_at_a_time => vec![at],
                    0 => running,
                    1 => running.into_iter().filter(|_| rng.chance(1, 2)).collect(),
                    _ => vec![at],
                };
                for at in several {
                    world.crash(at, rng);
                    self.restart_soon(world, at);
                }
                self.count(Fault::Crash);
            }
            Fault::Torn => points::arm_torn(world, at, rng),
            Fault::FaultPoint => points::arm(world, at, rng),
            Fault::BitFlip => self.flip(world, at, rng),
            Fault::SyncError => {
                self.await_effect(world, at, Fault::SyncError, u64::MAX);
                world.hosts[at].disk.fail_sync(DATA, 1 + rng.below(4));
            }
            Fault::WriteError => {
                self.await_effect(world, at, Fault::WriteError, u64::MAX);
                world.hosts[at].disk.fail_write(DATA, 1 + rng.below(4));
            }
            Fault::FullDisk => {
                // The log has its space already: it takes a while until something else needs some.
                let end = end + 3 * strike.lasts_ms;
                self.await_effect(world, at, Fault::FullDisk, end);
                world.hosts[at].disk.set_capacity(0);
                self.undo.push((end, Box::new(move |world| world.hosts[at].disk.set_capacity(AMPLE_BYTES))));
            }
            Fault::SlowDisk => {
                self.await_effect(world, at, Fault::SlowDisk, end);
                world.hosts[at].disk.set_latency(slow(rng));
                self.undo.push((end, Box::new(move |world| world.speed_up(at))));
            }
            Fault::WipedDisk => self.wipe(world, at),
            Fault::Membership => self.swap(world, rng),
            Fault::Transfer => {
                let Some(leader) = leader else { return };
                let Some(to) = others.first().and_then(|other| world.hosts[*other].group()) else { return };
                let (from, to) = (world.hosts[leader].client_address(), to.raft().node());
                let transfers = self.transfers.clone();
                world.client("transfer", move |caller| caller.transfer(from, to, transfers));
            }
            Fault::ClockStep => {
                world.work.history.borrow_mut().clocks_agree = false;
                let by = rng.below(60_000) as i64 - 30_000;
                if rng.chance(3, 4) {
                    world.hosts[at].step_clock(by)
                } else {
                    world.hosts[at].drift_clock(by * 10)
                }
                self.count(Fault::ClockStep);
            }
        }
    }

    /// A fault of a disk counts when a call meets it.
    fn await_effect(&mut self, world: &World, at: usize, fault: Fault, end: u64) {
        let before = Awaited::met(fault, world.hosts[at].disk.met());
        self.awaited.push(Awaited { at, fault, before, end });
        if fault != Fault::SlowDisk {
            self.excused_until[at] = u64::MAX;
        }
    }

    /// Sees which faults of disks have been met, and whether who met one has ended.
    fn see_disks(&mut self, world: &World) {
        let now = world.now_ms();
        let mut over = Vec::new();
        for awaited in std::mem::take(&mut self.awaited) {
            let Awaited { at, fault, before, end } = awaited;
            if Awaited::met(fault, world.hosts[at].disk.met()) > before {
                self.count(fault);
                // One that is still opening may do without what it cannot write: derived state is made anew.
                let host = &world.hosts[at];
                let was_open =
                    host.process() == Process::Running && Awaited::met(fault, host.met_when_open()) <= before;
                if was_open && matches!(fault, Fault::SyncError | Fault::WriteError) {
                    self.ends.push(Ends { at, process: world.hosts[at].processes(), due: now + ENDS_MS });
                }
                let felt_from = if end == u64::MAX { now } else { end.max(now) };
                over.push((at, felt_from + FELT_MS));
            } else if end <= now {
                over.push((at, now + FELT_MS));
            } else {
                self.awaited.push(awaited);
            }
        }
        for (at, until) in over {
            self.felt_until[at] = self.felt_until[at].max(until);
            // Another fault of the same disk may still be to come, or last longer.
            if !self.awaited.iter().any(|awaited| awaited.at == at && awaited.fault != Fault::SlowDisk) {
                self.excused_until[at] = self.excused_until[at].min(self.felt_until[at]);
            }
        }
        for ends in std::mem::take(&mut self.ends) {
            let host = &world.hosts[ends.at];
            if host.processes() != ends.process || host.process() != Process::Running {
                continue;
            }
            if now < ends.due {
                self.ends.push(ends);
            } else {
                let what = format!("{} goes on {ENDS_MS} ms after its disk has failed", host.name);
                world.invariants.violated("a replica whose disk fails ends", what);
            }
        }
    }

    fn partition(&mut self, world: &mut World, strike: &Strike, at: usize, end: u64) {
        let one_way = strike.fault == Fault::OneWay;
        let outwards = strike.rng.chance(1, 2);
        let mut inside = vec![at];
        if !one_way {
            inside.extend((0..world.hosts.len()).filter(|other| *other != at && strike.rng.chance(1, 3)));
        }
        for a in inside.clone() {
            for b in (0..world.hosts.len()).filter(|b| !inside.contains(b)) {
                let (from, to) = if outwards { (a, b) } else { (b, a) };
                world.cut(from, to, one_way);
                self.undo.push((end, Box::new(move |world| world.heal(a, b))));
            }
        }
        self.count(strike.fault);
    }

    /// Turns a bit of what was durable long ago, and lets the process start anew: it looks.
    fn flip(&mut self, world: &mut World, at: usize, rng: &Rng) {
        let at = self.victim.unwrap_or(at);
        let Some(group) = world.hosts[at].group() else { return };
        let end = group.raft().log().tip().end.physical_offset.0;
        drop(group);
        // The last group may be unmarked: with a crash that would be two faults at once.
        let (begin, end) = (HEAD_BYTES, HEAD_BYTES + end / 2);
        if end - begin < 4096 || self.change.is_some() {
            return;
        }
        self.victim = Some(at);
        self.is_rotten[at] = true;
        // Of the hard state there are two copies, of the log one on each replica.
        let (file, place) = match rng.below(8) {
            0 => ("hard-state/a".to_owned(), rng.below(HARD_STATE_BYTES)),
            1 => ("hard-state/b".to_owned(), rng.below(HARD_STATE_BYTES)),
            _ => (format!("commitlog/{:020}", 0), begin + rng.below(end - begin)),
        };
        world.hosts[at].disk.flip_bit(PathBuf::from(DATA).join(file), place, rng.below(8) as u8);
        world.kill(at);
        self.restart_soon(world, at);
        self.count(Fault::BitFlip);
    }

    /// The disk is empty after a restart; an operator puts the new member in the lost one's place.
    fn wipe(&mut self, world: &mut World, at: usize) {
        let at = self.victim.unwrap_or(at);
        let Some(group) = world.hosts[at].group() else { return };
        let is_voter = group.raft().status().voters.contains(&group.raft().node());
        let old = group.raft().node();
        drop(group);
        if self.change.is_some() || !is_voter {
            return;
        }
        self.victim = Some(at);
        self.replace_wiped(world, at, old);
        self.count(Fault::WipedDisk);
    }

    fn replace_wiped(&mut self, world: &mut World, at: usize, old: u64) {
        self.join_anew(world, at);
        self.change_members(world, at, at, old, Fault::WipedDisk);
    }

    /// The process ends, and a new member on an empty disk comes.
    fn join_anew(&mut self, world: &mut World, at: usize) {
        world.kill(at);
        world.renew_disk(at);
        world.hosts[at].joins.set(true);
        self.goes_on_whole(at);
        self.restart_soon(world, at);
    }

    /// An operator puts the new member on `joins` in the place of `old`, which was on `leaves`.
    fn change_members(&mut self, world: &mut World, joins: usize, leaves: usize, old: u64, fault: Fault) {
        let (to, wipes) = (world.hosts[joins].peer_address(), Rc::<Cell<bool>>::default());
        let told = wipes.clone();
        let operator = world.client("operator", move |caller| caller.replace(to, old, told));
        self.change = Some(Change { operator, joins, leaves, wipes, fault });
    }

    /// Whatever the host's disk had is no excuse for the next process on it, whose disk is another one.
    fn goes_on_whole(&mut self, at: usize) {
        self.excused_until[at] = 0;
        self.felt_until[at] = 0;
        self.is_rotten[at] = false;
        self.awaited.retain(|awaited| awaited.at != at);
    }

    /// The host that stands by joins, and somebody who does not lead leaves and stands by.
    fn swap(&mut self, world: &mut World, rng: &Rng) {
        let leader = world.leader();
        let spare = world.standing_by();
        let followers: Vec<usize> = world.running().into_iter().filter(|at| Some(*at) != leader).collect();
        let (Some(spare), false, None) = (spare, followers.is_empty() || leader.is_none(), &self.change) else {
            return;
        };
        let leaves = followers[rng.below(followers.len() as u64) as usize];
        let Some(group) = world.hosts[leaves].group() else { return };
        let old = group.raft().node();
        drop(group);
        world.call(spare);
        self.change_members(world, spare, leaves, old, Fault::Membership);
        self.count(Fault::Membership);
    }

    /// Sees what has ended, and starts it again as a supervisor and an operator would.
    fn supervise(&mut self, world: &mut World) {
        if let Some(change) = self.change.take_if(|change| world.is_done(&change.operator))
            && change.fault == Fault::Membership
        {
            // It is no member any more, whatever it knows of that.
            world.dismiss(change.leaves);
            self.goes_on_whole(change.leaves);
        }
        if let Some(change) = &self.change
            && change.wipes.take()
        {
            let at = change.joins;
            self.join_anew(world, at);
        }
        for at in 0..world.hosts.len() {
            let Process::Ended(reason) = world.hosts[at].process() else { continue };
            let leaves = self.change.as_ref().is_some_and(|change| change.leaves == at);
            if reason.contains("replaceNode") && self.victim == Some(at) {
                self.give_up_damaged(world, at, &reason);
                continue;
            }
            if self.excused_until[at] < world.now_ms() && !self.is_rotten[at] && !leaves {
                let what = format!("{}: {reason}", world.hosts[at].name);
                world.invariants.violated("a replica goes on unless its disk fails", what);
            }
            world.kill(at);
            self.restart_soon(world, at);
        }
    }

    /// A replica whose damage its peers cannot mend says so, and is replaced.
    fn give_up_damaged(&mut self, world: &mut World, at: usize, reason: &str) {
        let address = world.hosts[at].peer_address();
        let members = world.running().into_iter().filter_map(|other| world.hosts[other].group());
        let member = members
            .flat_map(|group| group.raft().status().members)
            .find(|member| member.peer_address == address)
            .map(|member| member.id);
        // Else when somebody can say which member that was, or the other change has ended.
        if let (Some(old), None) = (member, &self.change) {
            tracing::info!(host = world.hosts[at].name, reason, "the replica is replaced");
            self.replace_wiped(world, at, old);
        }
    }

    fn see_armed_point(&mut self, world: &mut World) {
        let Some(passed) = points::passed(world) else { return };
        world.darken(passed.at);
        self.restart_soon(world, passed.at);
        match passed {
            // All of it survived, or nothing did.
            Passed { fault: Fault::Torn, is_torn: false, .. } => self.count(Fault::Crash),
            Passed { fault, .. } => self.count(fault),
        }
    }
}

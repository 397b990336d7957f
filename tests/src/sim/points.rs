//! Power that fails at a named point in the code: what the disk holds then is what had been written by that moment.

use std::cell::RefCell;
use std::rc::Rc;

use env::Rng;

use super::host::Host;
use super::plan::Fault;
use super::world::World;

/// Points in the code at which power may fail.
const POINTS: [&str; 24] = [
    "log.before_hard_state",
    "log.between_hard_states",
    "log.piece_written",
    "log.run_written",
    "log.before_sync",
    "log.after_sync",
    "log.before_idle_mark_sync",
    "log.before_truncation",
    "log.truncation_noted",
    "log.truncation_zeroed",
    "log.recovery_zeroed",
    "derived.log_synced",
    "derived.units_synced",
    "derived.rows_written",
    "keyed.before_sync",
    "derived.reset_half_way",
    "checkpoint.before_write",
    "checkpoint.before_rename",
    "log.purge_noted",
    "log.restart_noted",
    "log.truncated_piece_zeroed",
    "membership.change",
    "membership.learner_added",
    "hand_over.triggered",
];

/// Where most of a group of frames is written and nothing of it is synced.
const TORN_POINT: &str = "log.before_sync";

/// How long power may fail at one point, before it may at another.
const TURN_MS: u64 = 400;

/// A point that is armed, for one host of this thread's simulation.
struct Armed {
    name: &'static str,
    host: Rc<Host>,
    at: usize,
    passes: u64,
    rng: Rng,
    fault: Fault,
    /// When it is the turn of another point, if this one was not passed.
    turn: u64,
    /// Whether some units survived and some did not; `None`: it was not passed yet.
    torn: Option<bool>,
}

thread_local! {
    static ARMED: RefCell<Option<Armed>> = const { RefCell::new(None) };
}

/// Power fails here, if this is the host and the pass that were chosen: from here on its disk takes nothing.
fn pass_armed_point() {
    ARMED.with_borrow_mut(|armed| {
        let Some(armed) = armed.as_mut().filter(|armed| armed.torn.is_none() && armed.host.is_current()) else {
            return;
        };
        armed.passes -= 1;
        if armed.passes > 0 {
            return;
        }
        let mut kept = Vec::new();
        armed.host.disk.crash_keeping(|_| {
            kept.push(armed.rng.chance(1, 2));
            kept[kept.len() - 1]
        });
        armed.torn = Some(kept.contains(&true) && kept.contains(&false));
    });
}

/// A point that was passed: the host's disk takes nothing any more.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    /// Whose.
    pub at: usize,
    /// By which fault it was armed.
    pub fault: Fault,
    /// Whether some units survived and some did not.
    pub is_torn: bool,
}

/// Power is to fail at this host at one point or another.
pub fn arm(world: &World, at: usize, rng: &Rng) {
    arm_at(world, at, POINTS[rng.below(POINTS.len() as u64) as usize], Fault::FaultPoint, rng);
}

/// Points at which derived state, its index and its images are being made durable.
pub const DERIVED: [&str; 6] = [
    "derived.log_synced",
    "derived.units_synced",
    "derived.rows_written",
    "keyed.before_sync",
    "checkpoint.before_write",
    "checkpoint.before_rename",
];

/// Power is to fail at this host at this point.
pub fn arm_one(world: &World, at: usize, name: &'static str, rng: &Rng) {
    arm_at(world, at, name, Fault::FaultPoint, rng);
}

/// Power is to fail at this host while it writes a group of frames.
pub fn arm_torn(world: &World, at: usize, rng: &Rng) {
    arm_at(world, at, TORN_POINT, Fault::Torn, rng);
}

fn arm_at(world: &World, at: usize, name: &'static str, fault: Fault, rng: &Rng) {
    disarm();
    let (host, passes, turn) = (world.hosts[at].clone(), 1 + rng.below(3), world.now_ms() + TURN_MS);
    ARMED.set(Some(Armed { name, host, at, passes, rng: rng.clone(), fault, turn, torn: None }));
    env::fault::arm(name, pass_armed_point);
}

/// Power fails nowhere.
pub fn disarm() {
    if let Some(armed) = ARMED.take() {
        env::fault::disarm(armed.name);
        assert!(armed.torn.is_none(), "a point that was passed is seen at the end of the tick");
    }
}

/// The armed point, if it was passed in this tick. Few points are passed at any time: where nothing came of one for a
/// while, another one is armed.
pub fn passed(world: &World) -> Option<Passed> {
    let now = world.now_ms();
    let (is_passed, next) = ARMED.with_borrow(|armed| {
        let is_passed = armed.as_ref().is_some_and(|armed| armed.torn.is_some());
        let next = armed.as_ref().filter(|armed| armed.fault == Fault::FaultPoint && armed.turn <= now);
        (is_passed, next.map(|armed| (armed.at, armed.rng.clone())))
    });
    if is_passed {
        let armed = ARMED.take().expect("looked at");
        env::fault::disarm(armed.name);
        return Some(Passed { at: armed.at, fault: armed.fault, is_torn: armed.torn == Some(true) });
    }
    if let Some((at, rng)) = next {
        arm(world, at, &rng);
    }
    None
}

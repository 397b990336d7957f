//! Named points in the code at which a test may strike. Compiled out of release builds, unless with the feature
//! `simulation`.
//!
//! `fault!("founding.after_identity")` does nothing until a test arms that name with an action; then the action runs
//! there: kill the process, panic, or wait for the test. Arms are per process and looked up by name.

#[cfg(any(debug_assertions, feature = "simulation"))]
use std::collections::BTreeMap;
#[cfg(any(debug_assertions, feature = "simulation"))]
use std::ffi::OsString;
#[cfg(any(debug_assertions, feature = "simulation"))]
use std::sync::{Arc, LazyLock};

#[cfg(any(debug_assertions, feature = "simulation"))]
use parking_lot::Mutex;

#[cfg(any(debug_assertions, feature = "simulation"))]
type Action = Arc<dyn Fn() + Send + Sync>;

#[cfg(any(debug_assertions, feature = "simulation"))]
static ARMED: Mutex<BTreeMap<String, Action>> = Mutex::new(BTreeMap::new());

/// Read once: points lie on hot paths.
#[cfg(any(debug_assertions, feature = "simulation"))]
static KILLED_AT: LazyLock<Option<OsString>> = LazyLock::new(|| std::env::var_os(KILL_AT));

/// Environment variable that names a point at which a debug build aborts itself as by SIGKILL: `RAFTMQ_FAULT=name`.
pub const KILL_AT: &str = "RAFTMQ_FAULT";

/// Arms `name`: `action` runs each time the point is passed.
#[cfg(any(debug_assertions, feature = "simulation"))]
pub fn arm(name: &str, action: impl Fn() + Send + Sync + 'static) {
    ARMED.lock().insert(name.to_owned(), Arc::new(action));
}

/// Disarms `name`.
#[cfg(any(debug_assertions, feature = "simulation"))]
pub fn disarm(name: &str) {
    ARMED.lock().remove(name);
}

/// Called by [`fault!`](crate::fault!).
#[cfg(not(any(debug_assertions, feature = "simulation")))]
#[inline(always)]
pub fn pass(_name: &str) {}

/// Called by [`fault!`](crate::fault!).
#[cfg(any(debug_assertions, feature = "simulation"))]
pub fn pass(name: &str) {
    let action = ARMED.lock().get(name).cloned();
    if let Some(action) = action {
        action();
    }
    if KILLED_AT.as_ref().is_some_and(|point| point == name) {
        std::process::abort();
    }
}

/// A point at which a test may strike; see [`fault`](mod@crate::fault).
#[macro_export]
macro_rules! fault {
    ($name:literal) => {
        $crate::fault::pass($name)
    };
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn an_armed_point_strikes_each_time_until_disarmed() {
        let strikes = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&strikes);
        fault!("tests.a_point");
        arm("tests.a_point", move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        fault!("tests.a_point");
        fault!("tests.another_point");
        fault!("tests.a_point");
        disarm("tests.a_point");
        fault!("tests.a_point");
        assert_eq!(strikes.load(Ordering::Relaxed), 2);
    }
}

//! Named points in the code at which a test may strike. Compiled out of release builds.
//!
//! `fault!("founding.after_identity")` does nothing until a test arms that name with an action; then the action runs
//! there: kill the process, panic, or wait for the test. Arms are per process and looked up by name.

#[cfg(debug_assertions)]
use std::collections::BTreeMap;
#[cfg(debug_assertions)]
use std::ffi::OsString;
#[cfg(debug_assertions)]
use std::sync::{Arc, LazyLock};

#[cfg(debug_assertions)]
use parking_lot::Mutex;

#[cfg(debug_assertions)]
type Action = Arc<dyn Fn() + Send + Sync>;

#[cfg(debug_assertions)]
static ARMED: Mutex<BTreeMap<String, Action>> = Mutex::new(BTreeMap::new());

/// Read once: points lie on hot paths.
#[cfg(debug_assertions)]
static KILLED_AT: LazyLock<Option<OsString>> = LazyLock::new(|| std::env::var_os(KILL_AT));

/// Environment variable that names a point at which a debug build aborts itself as by SIGKILL: `RAFTMQ_FAULT=name`.
pub const KILL_AT: &str = "RAFTMQ_FAULT";

/// Arms `name`: `action` runs each time the point is passed.
#[cfg(debug_assertions)]
pub fn arm(name: &str, action: impl Fn() + Send + Sync + 'static) {
    ARMED.lock().insert(name.to_owned(), Arc::new(action));
}

/// Disarms `name`.
#[cfg(debug_assertions)]
pub fn disarm(name: &str) {
    ARMED.lock().remove(name);
}

/// Called by [`fault!`](crate::fault!).
#[cfg(debug_assertions)]
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
        #[cfg(debug_assertions)]
        $crate::fault::pass($name);
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

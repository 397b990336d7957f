//! The folded state on a real log over disks that crash: whatever happens, it is the fold of the log.

mod crash;
#[path = "../crashes/mod.rs"]
mod crashes;
mod diverged;
mod flips;
mod install;
#[cfg(feature = "planted-bugs")]
mod planted;
mod real;
mod retention;
mod story;
mod world;

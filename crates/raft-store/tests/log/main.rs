//! The CommitLog on disks that crash, tear, fail and lie: what was acknowledged is there, what was cut stays away.

mod anywhere;
mod async_flush;
mod crash;
#[path = "../crashes/mod.rs"]
mod crashes;
mod faults;
mod flips;
mod model;
#[cfg(feature = "planted-bugs")]
mod planted;
mod story;
mod work;
mod world;

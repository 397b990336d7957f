//! The CommitLog on disks that crash, tear, fail and lie: what was acknowledged is there, what was cut stays away.

mod anywhere;
mod crash;
mod faults;
mod flips;
mod liar;
mod model;
mod story;
mod work;
mod world;

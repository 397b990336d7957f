//! The folded state on a real log over disks that crash: whatever happens, it is the fold of the log.

mod crash;
mod flips;
mod install;
mod real;
mod story;
mod world;

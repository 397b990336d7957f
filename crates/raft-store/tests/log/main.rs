//! The CommitLog on disks that crash, tear and fail: what was acknowledged is there, what was cut stays away.

mod story;
mod world;

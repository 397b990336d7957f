//! Real processes, real faults: what a simulation cannot show.
//!
//! - [`disk`]: file systems of our own, and how their power is cut; [`disk_fault`]: what else can happen to them.
//! - [`store`]: one store under kills and power losses.
//! - [`cluster`]: a NameServer and three brokers as processes; [`faults`] strikes them under the load of [`append`], and
//!   after each fault asks [`chain`] whether the replicas are equal and [`judge`] whether anything is lost. The longer
//!   stories are [`one_disk`], one bad disk among three, [`forgetful`], all machines of a group that flushes by a timer, and
//!   `replace`, a new node in the place of one whose disk is gone.
//! - [`members`]: who belongs to the group, by `raftmq admin`; [`clock`]: wall clocks of the brokers' own.
//! - [`net`]: a network of our own, every link of which can be cut, slow, lossy or doubling.
//! - [`torture`]: all workloads under all nemeses. [`failover`]: how long service is gone when a leader is killed.
//! - [`start`]: how long a start takes on a directory with a very long log, most of which is holes ([`sparse`]).
//! - [`history`]: what was asked and answered, in Jepsen's form; [`checker`] judges it clause by clause, and [`results`]
//!   puts the verdicts together, for machines and for readers. [`run`] makes such a history: a workload under faults
//!   that are drawn from a seed.
//!
//! A fault that the machine cannot produce is an error of its own, [`io::ErrorKind::Unsupported`], and never a pass.
//!
//! [`io::ErrorKind::Unsupported`]: std::io::ErrorKind::Unsupported

// The world outside is this package's business: processes, mounts and files that are not a broker's.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod append;
pub(crate) mod cgroup;
pub mod chain;
pub mod checker;
pub mod clock;
pub mod cluster;
pub mod disk;
pub mod disk_fault;
pub mod failover;
pub mod faults;
pub mod forgetful;
pub mod history;
pub mod judge;
pub mod members;
pub mod net;
pub mod one_disk;
pub(crate) mod replace;
pub mod results;
pub mod run;
pub mod sparse;
pub mod start;
pub mod store;
pub mod torture;

//! Real processes, real faults: what a simulation cannot show.
//!
//! - [`power`]: file systems of our own on loop devices, and how their power is cut.
//! - [`store`]: one store under kills and power losses.
//! - [`cluster`]: a NameServer and three brokers as processes; [`faults`] strikes them under the load of [`append`], and
//!   after each fault asks [`chain`] whether the replicas are equal and [`judge`] whether anything is lost.
//!
//! - [`history`]: what was asked and answered, in Jepsen's form; [`checker`] judges it clause by clause, and [`results`]
//!   puts the verdicts together, for machines and for readers.
//!
//! A fault that the machine cannot produce is an error, never a pass.

// The world outside is this package's business: processes, mounts and files that are not a broker's.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod append;
pub mod chain;
pub mod checker;
pub mod cluster;
pub mod faults;
pub mod history;
pub mod judge;
pub mod power;
pub mod results;
pub mod store;

//! openraft's side of the store: the only place where its traits are implemented.
//!
//! - [`types`]: entries, votes and memberships as openraft sees them.
//! - [`storage`]: the Raft log over [`crate::log::Log`].
//! - [`machine`]: the state machine over [`crate::fold::Fold`].
//! - [`probation`]: when the word of a replica that may have forgotten something counts again.
//! - [`purge`]: what retention has trimmed leaves the log.
//! - [`slow_disk`]: when a leader's own disk is no good.
//! - [`tickets`]: whose proposal stands at which log id.
//! - [`peer`]: the protocol between members.

pub mod machine;
pub mod peer;
pub mod probation;
pub mod purge;
pub mod removal;
pub mod slow_disk;
pub mod storage;
pub mod tickets;
pub mod types;

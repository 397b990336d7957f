//! One replicated log and the files derived from it. openraft lives here and nowhere else.
//!
//! The CommitLog *is* the Raft log: a message is written once. ConsumeQueue, index and every table are a fold of it,
//! the same on every replica, and may be deleted and rebuilt.

pub mod codec;
pub mod consume_queue;
pub mod entry;
pub mod fields;
pub mod fold;
pub mod forward_key;
pub mod founding;
#[doc(hidden)]
pub mod fuzzing;
pub mod group;
pub mod group_time;
pub mod identity;
pub mod image;
pub mod index;
pub mod keyed;
pub mod keys_in_flight;
pub mod log;
pub mod materializer;
mod member;
mod membership;
pub mod offline;
#[doc(hidden)]
pub mod planted;
pub mod position;
pub mod proposer;
pub mod raft;
pub mod repair;
pub mod scrub;
pub mod state_hash;
pub mod unsafe_recover;

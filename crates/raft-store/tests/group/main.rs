//! Groups of one and three members in one process, over loopback TCP: founding, leadership, proposals, kills, power
//! loss. Each scenario says in its first lines what could go wrong.

mod alone;
mod async_flush;
mod clock;
mod faults;
mod link;
mod members;
mod offline;
#[cfg(feature = "planted-bugs")]
mod planted;
mod power;
mod recover;
mod repair;
mod snapshot;
mod state;
mod suite;
mod three;
mod world;

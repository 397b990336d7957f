//! Who serves which topic: soft state only.
//!
//! Brokers register with every NameServer and keep saying that they live; clients ask any of them for routes. There is
//! no disk and no consensus here: a NameServer that starts empty is complete after one round of registrations, and
//! several of them need not know of each other.
//!
//! - [`route_table`]: what is known, and the rules by which it changes; pure.
//! - [`kv`]: texts that tools leave here for clients, such as the order of ordered topics; pure.
//! - [`config`]: what a NameServer is told, and what of it may be changed over the network.
//! - [`server`]: request codes to table calls.

pub mod config;
pub mod kv;
pub mod route_table;
pub mod server;

pub use config::NameServerConfig;
pub use server::NameServer;

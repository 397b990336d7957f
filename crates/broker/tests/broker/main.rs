//! Brokers on real directories and loopback sockets, spoken to as clients speak.

mod admin;
mod filter;
mod idempotence;
mod offsets;
mod pop;
mod query;
mod reply;
mod single;
mod three;
mod timers;
mod transactions;
mod world;

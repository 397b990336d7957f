//! Requests in, operations proposed, messages read: one replica of one or more broker groups.
//!
//! A request comes in over `remoting`, passes the one gate ([`dispatch`]), and becomes either a proposal to the group's
//! Raft log or a read of what the log was folded into. What must survive a leader change is in the replicated
//! [`tables`]; everything else here is soft state that clients repeat by themselves.
//!
//! | to change | look at |
//! |---|---|
//! | what starts and stops, in which order | [`broker`] |
//! | which request code exists, who may, and whether only the leader answers it | [`dispatch`] |
//! | an error's code and wording | [`error`] |
//! | storing a message: checks, properties, delays, batches | [`send`]; topics and groups made on demand: [`creation`] |
//! | messages sent again, stored once | [`idempotence`] |
//! | reading messages, filters, long polls | [`pull`]; by physical offset: [`view_message`] |
//! | consumer offsets, and a queue's own offsets and times | [`consumer_offset`] |
//! | retries and dead letters | [`send_back`] |
//! | messages popped under a lease | [`pop`]; who pops from which queues: [`assignment`] |
//! | half messages and how they end | [`send`], `transaction`; producers asked about them: [`questions`], `check_back` |
//! | replies to requests | `reply` |
//! | who is connected, and who is told | [`clients`], [`heartbeat`]; orderly consumers: [`queue_lock`] |
//! | what only a leader does, and when | [`due`]; how long messages are kept: [`retention`] |
//! | what NameServers are told | [`registration`] |
//! | a client with a stale route | [`forward`] |
//! | what mqadmin and the dashboard ask | [`admin`] |
//! | limits and numbers | [`config`], [`admission`], [`rates`], [`http`] |

pub mod admin;
pub mod admission;
pub mod assignment;
pub mod broker;
mod check_back;
pub mod clients;
pub mod config;
pub mod consumer_offset;
pub mod creation;
mod dead_letters;
pub mod dispatch;
pub mod due;
pub mod error;
pub mod filter;
pub mod forward;
pub mod heartbeat;
pub mod http;
pub mod idempotence;
pub mod pop;
pub mod pull;
pub mod query_message;
pub mod questions;
pub mod queue_lock;
pub mod rates;
mod recall;
pub mod registration;
mod reply;
pub mod retention;
pub mod send;
pub mod send_back;
pub mod tables;
mod transaction;
pub mod view_message;

pub use broker::{Broker, BrokerGroup, StartError};

pub(crate) use dispatch::route;

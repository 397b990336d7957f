//! Moves RemotingCommand frames over TCP; knows nothing of brokers.
//!
//! A connection is symmetric: either side may send requests and answers them by `opaque`. One engine serves both ends
//! ([`connection`]); [`server`] accepts, [`client`] connects and keeps one connection per address.
//!
//! - A request becomes a future that is polled in its connection's own task: no task per request, and a long poll is
//!   dropped with its connection.
//! - Everything that is ready to leave at one wake-up leaves in one vectored write.
//! - Memory is bounded by bytes: a connection with too much in flight, or whose peer does not read its answers, is not
//!   read from until it has caught up ([`limits`]).
//! - Whatever cannot be framed closes the connection; a frame whose header cannot be decoded is answered with an error.

pub mod client;
pub mod connection;
pub mod limits;
mod outgoing;
pub mod server;

pub use client::Client;
pub use connection::{CallError, Connection, Handler, NoRequests};
pub use limits::Limits;
pub use server::Server;

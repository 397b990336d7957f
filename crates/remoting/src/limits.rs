//! What one peer may cost us.

use std::time::Duration;

use protocol::frame::FrameLimits;

/// Bounds for each connection of a server or a client. The defaults are safe for a broker on a small machine.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest frame and header; a larger frame closes the connection.
    pub frame: FrameLimits,
    /// Requests of one connection that may be in the works or parked in a long poll.
    pub requests_in_flight: usize,
    /// Bytes of requests in the works on one connection; above it the connection is not read.
    pub request_bytes_in_flight: usize,
    /// Bytes waiting to be written to one peer; above it the connection is not read.
    pub outgoing_bytes: usize,
    /// Connections a server keeps; further ones are closed at once.
    pub connections: usize,
    /// A frame whose first byte has arrived must be whole after this long.
    pub whole_frame: Duration,
    /// A connection on which nothing was read or written for this long is closed.
    pub idle: Duration,
    /// A peer that takes none of the bytes waiting for it for this long is closed.
    pub stalled_write: Duration,
    /// How long a client waits for a connection.
    pub connect: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame: FrameLimits::default(),
            requests_in_flight: 16 * 1024,
            request_bytes_in_flight: 64 * 1024 * 1024,
            outgoing_bytes: 32 * 1024 * 1024,
            connections: 10_000,
            whole_frame: Duration::from_secs(30),
            idle: Duration::from_secs(120),
            stalled_write: Duration::from_secs(30),
            connect: Duration::from_secs(3),
        }
    }
}

//! The protocol between members of a group: bytes, connections, and the two ends of them.
//!
//! - [`wire`]: bytes of every message.
//! - [`connection`]: whole messages in and out of a socket.
//! - [`chain`]: whether a request's frames are what the leader's log holds.
//! - [`frames`]: committed frames for a replica whose log is damaged.
//! - [`client`]: what openraft sends.
//! - [`server`]: what it receives.
//! - [`vitals`]: what members tell the leader of themselves.

pub mod chain;
pub mod client;
pub mod connection;
pub mod frames;
pub mod server;
pub mod vitals;
pub mod wire;

use std::sync::atomic::{AtomicU64, Ordering};

/// What happens between members, counted; most of it went wrong.
#[derive(Debug, Default)]
pub struct PeerCounters {
    /// Heartbeats whose answer did not come in time. Under disk stalls this is normal and harms nothing.
    pub heartbeat_timeouts: AtomicU64,
    /// Requests refused because frames, CRCs or chain did not fit: the sender or the link is broken.
    pub inconsistent_requests: AtomicU64,
    /// Connections refused at hello.
    pub refused_hellos: AtomicU64,
    /// Append streams that broke.
    pub broken_streams: AtomicU64,
    /// Appends and heartbeats of leaders that this node follows.
    pub heard_of_leader: AtomicU64,
    /// Times that an image was not sent because it is damaged here.
    pub damaged_images: AtomicU64,
}

impl PeerCounters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

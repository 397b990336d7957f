//! What apply, the materializer and readers share.

use std::collections::BTreeMap;
use std::sync::Arc;

use env::Env;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use super::changes::Handoff;
use super::lateness::Lateness;
use super::pending::Pending;
use super::reader::{CheckpointPoint, PendingCounts};
use crate::consume_queue::{Queue, UnitFiles};
use crate::index::{Index, IndexRow, KeyRow};
use crate::log::Log;
use crate::materializer::{DerivedOptions, DerivedStats};
use crate::position::{LogId, PhysicalOffset, QueueId, Timestamp};
use crate::state_hash::StateHashes;

/// Shared by the owner of the state and everybody else.
#[derive(Debug)]
pub(crate) struct Shared {
    pub env: Env,
    pub log: Log,
    pub options: DerivedOptions,
    /// Last applied entry; never decreases.
    pub applied: watch::Sender<Option<LogId>>,
    /// Last entry whose effects are durable; never decreases. durable <= min(applied, synced).
    pub durable: watch::Sender<Option<LogId>>,
    /// Why nothing is written any more, once that is so.
    pub failure: watch::Sender<Option<String>>,
    published: RwLock<Published>,
    /// Tells when the first timer falls due earlier than it did.
    pub next_due: watch::Sender<Option<Timestamp>>,
    /// Apply's own; readers look at it now and then.
    pub pending: Mutex<Pending>,
    /// Of the timers that fired here.
    pub lateness: Mutex<Lateness>,
    /// Where the log begins for clients; never decreases.
    pub trimmed: watch::Sender<PhysicalOffset>,
    /// Oldest first.
    pub checkpoints: Mutex<Vec<CheckpointPoint>>,
    /// Of the images here, and what the group found.
    pub state_hashes: watch::Sender<StateHashes>,
    pub queues: RwLock<BTreeMap<QueueId, Arc<Queue>>>,
    pub files: Arc<UnitFiles>,
    pub index: Arc<Index<IndexRow>>,
    pub keys: Arc<Index<KeyRow>>,
    pub handoff: Mutex<Handoff>,
    /// The materializer should look at the handoff.
    pub wake: Notify,
    /// The materializer has taken a set, or has failed.
    pub taken: Notify,
    pub stats: Mutex<DerivedStats>,
}

/// The derived files that apply adds to and readers look into.
pub(crate) struct SharedFiles {
    pub units: Arc<UnitFiles>,
    pub index: Arc<Index<IndexRow>>,
    pub keys: Arc<Index<KeyRow>>,
}

/// What readers see of the state after each entry, all of the same entry.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Published {
    pub applied: Option<LogId>,
    pub now: Timestamp,
    pub cluster_version: u32,
    pub min_physical: PhysicalOffset,
    pub next_due: Option<Timestamp>,
    pub pending: PendingCounts,
}

impl Shared {
    pub fn new(
        env: Env,
        log: Log,
        options: DerivedOptions,
        files: SharedFiles,
        durable: Option<LogId>,
        stats: DerivedStats,
    ) -> Shared {
        Shared {
            env,
            log,
            options,
            applied: watch::Sender::new(None),
            durable: watch::Sender::new(durable),
            failure: watch::Sender::new(None),
            published: RwLock::default(),
            next_due: watch::Sender::new(None),
            pending: Mutex::default(),
            lateness: Mutex::default(),
            trimmed: watch::Sender::default(),
            checkpoints: Mutex::default(),
            state_hashes: watch::Sender::default(),
            queues: RwLock::default(),
            files: files.units,
            index: files.index,
            keys: files.keys,
            handoff: Mutex::default(),
            wake: Notify::new(),
            taken: Notify::new(),
            stats: Mutex::new(stats),
        }
    }

    pub fn publish(&self, published: Published) {
        *self.published.write() = published;
        self.next_due.send_if_modified(|known| {
            let is_earlier = published.next_due.is_some_and(|due| known.is_none_or(|known| due < known));
            *known = published.next_due;
            is_earlier
        });
        self.applied.send_replace(published.applied);
    }

    pub fn published(&self) -> Published {
        *self.published.read()
    }

    /// Nothing is written any more; apply and everybody who waits for it are told.
    pub fn fail(&self, reason: &str) {
        self.handoff.lock().failure.get_or_insert_with(|| reason.to_owned());
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| reason.to_owned());
            first
        });
        self.taken.notify_waiters();
    }
}

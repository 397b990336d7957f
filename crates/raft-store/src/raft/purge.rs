//! Purging: what retention has trimmed leaves this replica's log, at its own time.
//!
//! The order is what makes it safe: the image of the checkpoint has its name, Raft has taken it for its snapshot, the log
//! forgets what lies before, durably, and only then files are unlinked. A replica that lacks the image keeps the log.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Raft, RaftMetrics};

use crate::fold::{Reader, Tables};
use crate::log::Log;
use crate::raft::machine::Machine;
use crate::raft::types::Types;

/// Raft takes a snapshot that is there already: a rename and a glance.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(10);

/// Purges up to each place that a `Trim` has set, once that is durable here. Ends with Raft or the fold.
pub async fn follow_trims<T: Tables>(raft: Raft<Types, Machine<T>>, log: Log, reader: Reader<T>) {
    let mut durable = reader.watch_durable();
    while durable.changed().await.is_ok() {
        let trimmed = reader.min_physical();
        if log.purged_boundary().is_some_and(|purged| purged.end.physical_offset >= trimmed) {
            continue;
        }
        let points = reader.checkpoints();
        let Some(point) = points.iter().find(|point| point.end == trimmed) else { continue };
        let index = point.id.index;
        let is_snapshot = |snapshot: Option<u64>| snapshot >= Some(index);
        if !is_snapshot(raft.metrics().borrow_watched().snapshot.as_ref().map(|id| id.index)) {
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            let waits = raft.wait(Some(SNAPSHOT_LIMIT));
            let taken = |metrics: &RaftMetrics<Types>| is_snapshot(metrics.snapshot.as_ref().map(|id| id.index));
            if let Err(error) = waits.metrics(taken, "the image at the place that the log is trimmed to").await {
                tracing::warn!(%trimmed, %error, "the log is not purged yet: there is no image of its new beginning");
                continue;
            }
        }
        if raft.trigger().purge_log(index).await.is_err() {
            return;
        }
        tracing::info!(%trimmed, index, "the log is purged");
    }
}

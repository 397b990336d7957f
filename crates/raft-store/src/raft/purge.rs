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

/// Raft takes a snapshot that is there already: a listing and a glance.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(1);

/// Purges up to each place that a `Trim` has set. Ends with Raft or the fold.
///
/// What is not possible yet, because the image is still being written or a follower still reads there, is tried again
/// after the next derived sync.
pub async fn follow_trims<T: Tables>(raft: Raft<Types, Machine<T>>, log: Log, reader: Reader<T>) {
    let (mut durable, mut trimmed) = (reader.watch_durable(), reader.watch_trimmed());
    while purge(&raft, &log, &reader).await.is_some() {
        let news = tokio::select! { biased;
            news = trimmed.changed() => news,
            news = durable.changed() => news,
        };
        if news.is_err() {
            return;
        }
    }
}

/// `None` once Raft has ended.
async fn purge<T: Tables>(raft: &Raft<Types, Machine<T>>, log: &Log, reader: &Reader<T>) -> Option<()> {
    let trimmed = reader.min_physical();
    if log.purged_boundary().map_or(0, |purged| purged.end.physical_offset.0) >= trimmed.0 {
        return Some(());
    }
    let points = reader.checkpoints();
    let Some(point) = points.iter().find(|point| point.end == trimmed) else { return Some(()) };
    let index = point.id.index;
    let is_taken =
        |metrics: &RaftMetrics<Types>| metrics.snapshot.as_ref().is_some_and(|snapshot| snapshot.index >= index);
    if !is_taken(&raft.metrics().borrow_watched()) {
        raft.trigger().snapshot().await.ok()?;
        let waits = raft.wait(Some(SNAPSHOT_LIMIT));
        if let Err(error) = waits.metrics(is_taken, "the image at the place that the log is trimmed to").await {
            tracing::debug!(%trimmed, %error, "the log is not purged yet: there is no image of its new beginning");
            return Some(());
        }
    }
    tracing::info!(%trimmed, index, "purging the log");
    raft.trigger().purge_log(index).await.ok()
}

//! A leader whose own disk takes nothing, or much less than those of the others: what is committed without it piles up in
//! its memory, and when it has to save a vote it is there for nobody. It wishes for a successor while it still can.

use std::time::Duration;

use env::Env;
use openraft::async_runtime::WatchReceiver;
use openraft::{Raft, ServerState};
use tokio::sync::mpsc;

use crate::fold::Tables;
use crate::log::Log;
use crate::position::PhysicalOffset;
use crate::proposer::Wish;
use crate::raft::machine::Machine;
use crate::raft::types::Types;

/// Between two looks: less than a sync takes on a disk that is too slow, so that it is late at each.
const LOOK: Duration = Duration::from_millis(100);

/// Behind the others, and nothing written or flushed for this long beside the flush interval: the disk has stalled.
const STALL_LIMIT: Duration = Duration::from_secs(2);

/// At each look for this long, what the others had at the look before was missing here: the disk is much slower than theirs.
const LAG_LIMIT: Duration = Duration::from_secs(5);

/// Behind the others, and this much waits to be written: the disk is too slow.
const QUEUED_BYTES: u64 = 64 << 20;

/// After a wish.
const PATIENCE: Duration = Duration::from_secs(10);

/// How far a disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    written: PhysicalOffset,
    /// Entries durable.
    synced: u64,
}

/// Looks until Raft ends.
pub async fn watch<T: Tables>(env: Env, raft: Raft<Types, Machine<T>>, log: Log, wishes: mpsc::UnboundedSender<Wish>) {
    let flush_interval = log.flush_interval().unwrap_or_default();
    let mut looks = env.clock.ticks(LOOK);
    let mut watched = Watched::default();
    let mut committed_before = 0;
    loop {
        looks.next().await;
        let (leads, committed) = {
            let metrics = raft.metrics().borrow_watched().clone();
            let committed = metrics.local_committed.as_ref().map_or(0, |committed| committed.index + 1);
            (metrics.state == ServerState::Leader, committed)
        };
        let synced = log.synced().borrow().index.map_or(0, |last| last + 1);
        let progress = Progress { written: log.written_end(), synced };
        // What a timer flushes is not late before all of it is written.
        let is_owed = flush_interval.is_zero() || progress.written < log.tip().end.physical_offset;
        let queued_bytes = log.stats().queued_bytes;
        let seen = Seen {
            behind: leads && is_owed && committed > synced,
            lags: leads && flush_interval.is_zero() && committed_before > synced,
            progress,
            queued_bytes,
        };
        committed_before = committed;
        if watched.look(env.clock.monotonic(), seen, STALL_LIMIT + flush_interval) {
            tracing::error!(queued_bytes, "this leader's disk is stalled or too slow: somebody else should lead");
            if wishes.send(Wish::Disk).is_err() {
                return;
            }
        }
    }
}

/// What one look has shown.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// This node leads, and the others have more on their disks.
    behind: bool,
    /// The same, even without what they got since the look before.
    lags: bool,
    progress: Progress,
    queued_bytes: u64,
}

/// What was seen so far. Pure.
#[derive(Debug, Default)]
struct Watched {
    progress: Progress,
    /// When it was last seen to move, or nothing was owed.
    moved_at: Duration,
    /// Since when each look has shown a lag.
    lags_since: Option<Duration>,
    wished_at: Option<Duration>,
}

impl Watched {
    /// Whether a successor is wished for.
    fn look(&mut self, now: Duration, seen: Seen, stall_limit: Duration) -> bool {
        let Seen { behind, lags, progress, queued_bytes } = seen;
        if progress != self.progress || !behind {
            (self.progress, self.moved_at) = (progress, now);
        }
        self.lags_since = lags.then(|| self.lags_since.unwrap_or(now));
        let is_slow = now - self.moved_at >= stall_limit
            || queued_bytes > QUEUED_BYTES
            || self.lags_since.is_some_and(|since| now - since >= LAG_LIMIT);
        let wishes = behind && is_slow && self.wished_at.is_none_or(|at| now - at >= PATIENCE);
        if wishes {
            self.wished_at = Some(now);
        }
        wishes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_is_wished_for_when_the_others_are_faster_and_only_then() {
        let at = |synced| Progress { written: PhysicalOffset(synced * 64), synced };
        let ms = Duration::from_millis;
        // (now, behind, progress, queued bytes) -> wished for
        let cases = [
            (0, false, at(10), 0, false),
            // Two seconds without progress, but nobody else is further.
            (2_500, false, at(10), 1 << 20, false),
            (3_000, true, at(10), 1 << 20, false),
            (4_600, true, at(10), 1 << 20, true),
            // Not again at once.
            (7_000, true, at(10), 1 << 20, false),
            (8_000, false, at(40), 0, false),
            // It moves, but far too slowly.
            (15_500, true, at(50), 65 << 20, true),
            (30_000, true, at(51), 1 << 20, false),
            (60_000, false, at(51), 65 << 20, false),
            (61_000, true, at(51), 1 << 20, false),
        ];
        let mut watched = Watched::default();
        for (now, behind, progress, queued, wished) in cases {
            let seen = Seen { behind, lags: false, progress, queued_bytes: queued };
            assert_eq!(watched.look(ms(now), seen, ms(2_000)), wished, "at {now} ms");
        }
    }

    #[test]
    fn a_successor_is_wished_for_when_the_disk_is_late_at_every_look() {
        let look = |watched: &mut Watched, now, lags| {
            let progress = Progress { written: PhysicalOffset(now * 64), synced: now };
            let seen = Seen { behind: true, lags, progress, queued_bytes: 0 };
            watched.look(Duration::from_millis(now), seen, Duration::from_secs(2))
        };
        let mut watched = Watched::default();
        let wished = (0..100).map(|k| 200 * k).find(|now| look(&mut watched, *now, true));
        assert_eq!(wished, Some(5_000), "it moves all the time, and is late all the time");
        let mut watched = Watched::default();
        let wished = (0..100).map(|k| 200 * k).find(|now| look(&mut watched, *now, now % 4_000 != 0));
        assert_eq!(wished, None, "now and then it holds what the others hold");
    }
}

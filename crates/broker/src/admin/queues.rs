//! One queue of a topic as tools see it: the offsets that exist, and when their messages became visible.

use std::ops::Range;
use std::sync::Arc;

use raft_store::consume_queue::{Queue, TimeBoundary, Unit, UnitsError};
use raft_store::fold::Reader;
use raft_store::position::{QueueId, QueueOffset, Timestamp};

use crate::tables::Tables;
use crate::tables::topics::Topic;

/// A queue of a topic that exists; it may never have had a message.
pub struct QueueView {
    /// RocketMQ's queueId.
    pub number: u32,
    queue: Option<Arc<Queue>>,
    /// Earlier offsets belong to an earlier life of the topic's name.
    first_shown: u64,
}

impl QueueView {
    /// All queues of a topic: the ones that are read and the ones that are written.
    pub fn all(reader: &Reader<Tables>, topic: &Topic) -> Vec<QueueView> {
        (0..topic.queues()).map(|number| QueueView::new(reader, topic, number)).collect()
    }

    /// One queue of a topic.
    pub fn new(reader: &Reader<Tables>, topic: &Topic, number: u32) -> QueueView {
        let queue = reader.queue(QueueId { topic: topic.id(), queue: number });
        QueueView { number, queue, first_shown: topic.first_shown(number).0 }
    }

    /// The offsets that exist.
    pub fn bounds(&self) -> Range<u64> {
        let Some(queue) = &self.queue else { return self.first_shown..self.first_shown };
        let bounds = queue.bounds();
        bounds.start.0.max(self.first_shown).min(bounds.end.0)..bounds.end.0
    }

    /// Up to `limit` units from `from` on.
    pub async fn units(&self, from: u64, limit: usize) -> Result<Vec<Unit>, UnitsError> {
        match &self.queue {
            Some(queue) if self.bounds().contains(&from) => queue.read_units(QueueOffset(from), limit).await,
            _ => Ok(Vec::new()),
        }
    }

    /// When the message at `offset` became visible, in ms, if it exists.
    pub async fn visible_at_ms(&self, offset: u64) -> Result<Option<i64>, UnitsError> {
        Ok(self.units(offset, 1).await?.first().map(|unit| unit.visible_at.0))
    }

    /// When the newest message became visible, in ms, if there is one.
    pub fn newest_ms(&self) -> Option<i64> {
        let newest = self.queue.as_ref()?.last_visible_at()?;
        (!self.bounds().is_empty()).then_some(newest.0)
    }

    /// The offset that `boundary` says of the messages that became visible around `time`; within the bounds.
    pub async fn search_by_time(&self, time: Timestamp, boundary: TimeBoundary) -> Result<u64, UnitsError> {
        let bounds = self.bounds();
        match &self.queue {
            Some(queue) => Ok(queue.search_by_time(time, boundary).await?.0.clamp(bounds.start, bounds.end)),
            None => Ok(bounds.start),
        }
    }

    /// How many messages became visible at `since` or later.
    pub async fn visible_since(&self, since: Timestamp) -> Result<u64, UnitsError> {
        match &self.queue {
            // Most queues are quiet, and of those nothing is read.
            Some(queue) if self.newest_ms().is_some_and(|newest| newest >= since.0) => {
                let first = queue.search_by_time(since, TimeBoundary::Lower).await?;
                let bounds = self.bounds();
                Ok(bounds.end.saturating_sub(first.0.max(bounds.start)))
            }
            _ => Ok(0),
        }
    }
}

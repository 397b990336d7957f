//! Dead letters: a message that was given up lies in its group's dead-letter queue once, however often it is given up.
//!
//! A consumer that crashes between giving a message back and storing its offset gets the message again, and gives it back
//! again; both may end here. A message is known by where its first record was stored, which it carries from its first retry
//! on ([`properties::ORIGIN`]). Which of them lie in the queue is a fold of the queue itself, read on as it grows; one dead
//! letter of a group is placed at a time, so that what was placed before is seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use protocol::properties;
use protocol::record::RecordView;
use raft_store::entry::RecordOperation;
use raft_store::position::{PhysicalOffset, QueueId, QueueOffset};

use crate::broker::BrokerGroup;
use crate::error::RequestError;

/// Units looked at in one go.
const AT_ONCE: usize = 1024;

/// What is known of each dead-letter queue.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters(Mutex<BTreeMap<QueueId, Arc<tokio::sync::Mutex<Known>>>>);

/// A dead-letter queue, as far as it was read.
#[derive(Debug, Default)]
struct Known {
    /// First records of messages, and their places here.
    origins: BTreeMap<PhysicalOffset, QueueOffset>,
    next: QueueOffset,
}

impl BrokerGroup {
    /// Places the record of a message, whose first record was stored at `origin`, in a dead-letter queue, if that message does
    /// not lie there yet.
    ///
    /// The placing goes on if the caller gives up: whoever comes next for the group waits until its outcome is known.
    pub(crate) async fn bury(
        self: &Arc<Self>,
        origin: PhysicalOffset,
        record: RecordOperation,
        topic: &str,
    ) -> Result<(), RequestError> {
        let known = Arc::clone(self.dead_letters.0.lock().entry(record.queue).or_default());
        let mut known = known.lock_owned().await;
        self.read_on(&mut known, record.queue).await?;
        if known.origins.contains_key(&origin) {
            return Ok(());
        }
        let (broker, topic) = (Arc::clone(self), topic.to_owned());
        let placed = tokio::spawn(async move {
            let placed = broker.store(vec![record], &topic, None).await;
            drop(known);
            placed
        });
        placed.await.map_err(|error| RequestError::Failed(error.to_string()))?.map(drop)
    }

    /// Reads what has been added since the last time; what retention has taken is forgotten.
    async fn read_on(&self, known: &mut Known, id: QueueId) -> Result<(), RequestError> {
        let Some(queue) = self.reader.queue(id) else { return Ok(()) };
        let first = queue.bounds().start;
        known.origins.retain(|_, place| *place >= first);
        known.next = known.next.max(first);
        loop {
            let units = queue.read_units(known.next, AT_ONCE).await?;
            if units.is_empty() {
                return Ok(());
            }
            for unit in units {
                let record = self.reader.record(unit.physical_offset, unit.size).await?;
                let record = RecordView::parse(&record)?;
                let origin =
                    properties::get(record.properties(), properties::ORIGIN).and_then(|text| text.parse().ok());
                if let Some(origin) = origin {
                    known.origins.insert(PhysicalOffset(origin), known.next);
                }
                known.next.0 += 1;
            }
        }
    }
}

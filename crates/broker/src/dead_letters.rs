//! Dead letters: a message that was given up lies in its group's dead-letter queue once, however often it is given up.
//!
//! A consumer that crashes between giving a message back and storing its offset gets the message again, and gives it back
//! again; both may end here. A message is known by where its first record was stored, which it carries from its first retry
//! on ([`properties::ORIGIN`]). Under that it stands in the index as if it were one of its keys, so that the index knows which
//! messages lie in the queue; one dead letter of a group is placed at a time, so that what was placed before is seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use protocol::properties;
use protocol::record::RecordView;
use raft_store::entry::RecordOperation;
use raft_store::planted::{self, Bug};
use raft_store::position::{PhysicalOffset, QueueId, Timestamp};

use crate::broker::BrokerGroup;
use crate::error::RequestError;
use crate::send::key_hash;

/// Messages of one hash that are looked at: more than one only if two hashes are equal by chance.
const LOOKED_AT: usize = 8;

/// Whose turn it is at each dead-letter queue.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters(Mutex<BTreeMap<QueueId, Arc<tokio::sync::Mutex<()>>>>);

/// The hash that a dead letter has beside those of its keys. No key can have it: none has such characters.
fn origin_hash(topic: &str, origin: PhysicalOffset) -> u64 {
    key_hash(topic, &format!("\u{1}origin\u{1}{}", origin.0))
}

impl BrokerGroup {
    /// Places the record of a message, whose first record was stored at `origin`, in a dead-letter queue, if that message does
    /// not lie there yet.
    ///
    /// The placing goes on if the caller gives up: whoever comes next for the group waits until its outcome is known.
    pub(crate) async fn bury(
        self: &Arc<Self>,
        origin: PhysicalOffset,
        mut record: RecordOperation,
        topic: &str,
    ) -> Result<(), RequestError> {
        let turn = Arc::clone(self.dead_letters.0.lock().entry(record.queue).or_default());
        let turn = turn.lock_owned().await;
        let hash = origin_hash(topic, origin);
        if !planted::is(Bug::DeadLetterTwice) && self.is_buried(origin, hash, record.queue, topic).await? {
            return Ok(());
        }
        record.key_hashes.push(hash);
        let (broker, topic) = (Arc::clone(self), topic.to_owned());
        let placed = tokio::spawn(async move {
            let placed = broker.store(vec![record], &topic, None).await;
            drop(turn);
            placed
        });
        placed.await.map_err(|error| RequestError::Failed(error.to_string()))?.map(drop)
    }

    async fn is_buried(
        &self,
        origin: PhysicalOffset,
        hash: u64,
        dead_letters: QueueId,
        topic: &str,
    ) -> Result<bool, RequestError> {
        let any_time = Timestamp(0)..=Timestamp(i64::MAX);
        for (queue, queue_offset, unit) in self.reader.units_by_key(hash, any_time, LOOKED_AT).await? {
            if queue != dead_letters || !self.is_shown(topic, queue, queue_offset) {
                continue;
            }
            let Some(record) = self.record_of(&unit).await? else { continue };
            let record = RecordView::parse(&record)?;
            let known = properties::get(record.properties(), properties::ORIGIN).and_then(|text| text.parse().ok());
            if known == Some(origin.0) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

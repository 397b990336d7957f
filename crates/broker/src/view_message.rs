//! A message by its physical offset: VIEW_MESSAGE_BY_ID 33, at any replica, because logs are equal on all of them.
//!
//! The offset is the client's, and a body may hold whatever looks like a record: a place counts only if a unit points at
//! it, or the entry that holds it says that a record begins there.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use protocol::code::ResponseCode;
use protocol::header::ViewMessageRequest;
use protocol::record::{HeadPatch, RecordView};
use raft_store::consume_queue::{TimeBoundary, Unit};
use raft_store::position::{PhysicalOffset, QueueId, QueueOffset, Timestamp};

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::pull::append_shown;

/// No record is longer: the body's limit, the properties', the topic's, and the head.
const RECORD_BYTES_MAX: u32 = 8 << 20;

/// A record says when it was handed to the proposer, its unit when its entry was stamped: at most this much later.
const STAMPED_WITHIN_MS: i64 = 10_000;

/// Units looked at for a message's place in its queue.
const UNITS_MAX: usize = 64 * 1024;

/// Handles VIEW_MESSAGE_BY_ID.
pub async fn view(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: ViewMessageRequest = call.request.header()?;
    let found = broker.message_at(request.offset).await?;
    Ok(call.request.reply(ResponseCode::SUCCESS).with_body(found.shown(broker)?))
}

/// A message found by its physical offset.
pub(crate) struct FoundMessage {
    pub physical_offset: PhysicalOffset,
    /// As stored; it is a record.
    pub record: Bytes,
    /// Its place in its queue, unless it waits for its time.
    pub unit: Option<(QueueOffset, Unit)>,
}

impl FoundMessage {
    /// The record as consumers see it.
    pub fn shown(&self, broker: &BrokerGroup) -> Result<Bytes, RequestError> {
        let mut body = BytesMut::with_capacity(self.record.len());
        let store_host = broker.config.advertised_address;
        match &self.unit {
            Some((queue_offset, unit)) => append_shown(&mut body, &self.record, *queue_offset, unit, store_host)?,
            None => {
                body.extend_from_slice(&self.record);
                let patch = HeadPatch { physical_offset: self.physical_offset.0 as i64, ..HeadPatch::default() };
                patch.apply(&mut body)?;
            }
        }
        Ok(body.freeze())
    }
}

impl BrokerGroup {
    /// The message whose record begins at `offset`.
    pub(crate) async fn message_at(&self, offset: i64) -> Result<FoundMessage, RequestError> {
        let not_found = || RequestError::Failed(format!("can not find message by the offset, {offset}"));
        let at = PhysicalOffset(u64::try_from(offset).map_err(|_| not_found())?);
        let begin = self.reader.min_physical();
        if at < begin {
            let remark =
                format!("can not find message by the offset, {offset}: kept is what lies at {begin} or behind");
            return Err(RequestError::Failed(remark));
        }
        let size = self.reader.record(at, 4).await.map_err(|_| not_found())?;
        let size = u32::from_be_bytes(size.as_ref().try_into().map_err(|_| not_found())?);
        if size > RECORD_BYTES_MAX {
            return Err(not_found());
        }
        let record = self.reader.record(at, size).await.map_err(|_| not_found())?;
        let view = RecordView::parse(&record).map_err(|_| not_found())?;
        let queue = self.topic_id(view.topic()).zip(u32::try_from(view.queue_id()).ok());
        let queue = queue.map(|(topic, queue)| QueueId { topic, queue }).ok_or_else(not_found)?;
        let unit = self.unit_of(at, queue, view.store_timestamp()).await?;
        if unit.is_none() && !self.reader.is_record(at, size).await? {
            return Err(not_found());
        }
        Ok(FoundMessage { physical_offset: at, record, unit })
    }

    /// The unit that shows the record at `at`, handed to the proposer at `handed_over_ms`.
    async fn unit_of(
        &self,
        at: PhysicalOffset,
        queue: QueueId,
        handed_over_ms: i64,
    ) -> Result<Option<(QueueOffset, Unit)>, RequestError> {
        if let Some(found) = self.reader.unit_of(at, queue, Timestamp(handed_over_ms)).await? {
            return Ok(Some(found));
        }
        let Some(queue) = self.reader.queue(queue) else { return Ok(None) };
        let mut next = queue.search_by_time(Timestamp(handed_over_ms), TimeBoundary::Lower).await?;
        let mut looked_at = 0;
        while looked_at < UNITS_MAX {
            let units = queue.read_units(next, 1024).await?;
            if units.is_empty() {
                return Ok(None);
            }
            for unit in units {
                if unit.physical_offset == at {
                    return Ok(Some((next, unit)));
                }
                if unit.visible_at.0 > handed_over_ms + STAMPED_WITHIN_MS {
                    return Ok(None);
                }
                next.0 += 1;
                looked_at += 1;
            }
        }
        Ok(None)
    }
}

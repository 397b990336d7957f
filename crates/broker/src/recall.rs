//! RECALL_MESSAGE 370: a delayed message that is not visible yet never will be.
//!
//! The handle names the place where its record was stored first, and its unique key: what lies there must have both its topic
//! and its key. One command in the log decides between a recall and the message's time. A recall that is repeated, because
//! its answer was lost, is answered as the first one.

use std::sync::Arc;

use protocol::code::ResponseCode;
use protocol::header::{RecallMessageRequest, RecallMessageResponse};
use protocol::properties;
use protocol::recall_handle::RecallHandle;
use protocol::record::RecordView;
use raft_store::consume_queue::UnitKind;
use raft_store::entry::{CoreCommand, Operation};
use raft_store::fold::{CoreReply, Outcome, Refusal};
use raft_store::position::{PhysicalOffset, Timestamp};

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::send::key_hash;

/// Messages with one unique key that are looked at: more than one only if a send was repeated.
const UNIQUE_MESSAGES_MAX: usize = 32;

/// Handles RECALL_MESSAGE.
pub async fn recall(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: RecallMessageRequest = call.request.header()?;
    if broker.topic_id(&request.topic).is_none() {
        return Err(RequestError::NoTopic(request.topic));
    }
    let handle: RecallHandle =
        request.recall_handle.parse().map_err(|error| RequestError::BadHandle(format!("recall failed, {error}")))?;
    if handle.topic != request.topic {
        return Err(RequestError::BadHandle("recall failed, topic not match".to_owned()));
    }
    if handle.broker_name != broker.broker_name() {
        let remark = format!("recall failed, the message is at broker {}, not here", handle.broker_name);
        return Err(RequestError::BadHandle(remark));
    }
    let scheduled = u64::try_from(handle.physical_offset).map(PhysicalOffset).map_err(|_| none_waits())?;
    match broker.reader.scheduled(scheduled) {
        Some(waiting) => {
            let record = broker.reader.record(waiting.place, waiting.size).await?;
            if !is_named(&RecordView::parse(&record)?, &handle) {
                return Err(none_waits());
            }
            let command = CoreCommand::Recall { scheduled };
            let outcomes = broker.raft.propose(vec![Operation::Core(command)]).await?;
            match outcomes.first() {
                Some(Outcome::Core(CoreReply::Recalled)) => {}
                // Its time, or another recall, was faster.
                Some(Outcome::Refused(Refusal::NotScheduled(_))) => broker.recalled_before(&handle).await?,
                other => unreachable!("the outcome of a recall: {other:?}"),
            }
        }
        None => broker.recalled_before(&handle).await?,
    }
    let header = RecallMessageResponse { msg_id: handle.unique_key };
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &header).with_field("MSG_REGION", crate::send::REGION))
}

fn none_waits() -> RequestError {
    RequestError::BadHandle("recall failed, no message waits under this handle".to_owned())
}

fn is_named(record: &RecordView<'_>, handle: &RecallHandle) -> bool {
    record.topic() == handle.topic && record.property(properties::UNIQ_KEY) == Some(handle.unique_key.as_str())
}

impl BrokerGroup {
    /// A message that does not wait any more: `Ok` if it was recalled.
    async fn recalled_before(&self, handle: &RecallHandle) -> Result<(), RequestError> {
        self.linearizable().await?;
        let hash = key_hash(&handle.topic, &handle.unique_key);
        let any_time = Timestamp(0)..=Timestamp(i64::MAX);
        for (_, _, unit) in self.reader.units_by_key(hash, any_time, UNIQUE_MESSAGES_MAX).await? {
            // One that retention has rolled lies further on than where it was stored first.
            if unit.kind != UnitKind::Fired || (unit.physical_offset.0 as i64) < handle.physical_offset {
                continue;
            }
            let Some(record) = self.record_of(&unit).await? else { continue };
            if is_named(&RecordView::parse(&record)?, handle) {
                let remark = format!("recall failed, timestamp invalid: it has been visible since {}", unit.visible_at);
                return Err(RequestError::TooLate(remark));
            }
        }
        let found = self.message_at(handle.physical_offset).await.map_err(|_| none_waits())?;
        let is_recalled = found.unit.is_none() && is_named(&RecordView::parse(&found.record)?, handle);
        if is_recalled { Ok(()) } else { Err(none_waits()) }
    }
}

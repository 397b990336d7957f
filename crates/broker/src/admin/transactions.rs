//! Transactions that wait: our own LIST_TRANSACTIONS 60005, and RESUME_CHECK_HALF_MESSAGE 323 for those that nobody is asked
//! about any more. RocketMQ copies these to a topic; here they stay where they are, and their producers may still end them.

use std::sync::Arc;

use protocol::body::{TransactionList, WaitingTransaction};
use protocol::code::ResponseCode;
use protocol::header::{ListTransactionsRequest, ResumeCheckHalfMessageRequest};
use protocol::message_id::MessageId;
use protocol::properties;
use protocol::record::RecordView;
use raft_store::entry::{CoreCommand, Operation, TransactionCheck};
use raft_store::fold::{HalfRecord, HalfState, Outcome};
use raft_store::position::{PhysicalOffset, Timestamp};

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;

/// Listed in one answer at most.
const LISTED_MAX: usize = 1_000;

const STATES: [(&str, HalfState); 3] =
    [("unasked", HalfState::Unasked), ("asked", HalfState::Asked), ("discarded", HalfState::Discarded)];

/// Handles LIST_TRANSACTIONS.
pub async fn list(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: ListTransactionsRequest = call.request.header()?;
    let state = STATES.iter().find(|(name, _)| *name == request.state).ok_or_else(|| {
        RequestError::InvalidParameter(format!("state {:?} is none of unasked, asked, discarded", request.state))
    })?;
    let count = usize::try_from(request.max_num).unwrap_or(0).clamp(1, LISTED_MAX);
    let after = request.after_time.zip(request.after_offset);
    let after = after.map(|(time, offset)| (Timestamp(time), PhysicalOffset(u64::try_from(offset).unwrap_or(0))));
    let mut halves = broker.reader.halves(state.1, after, count + 1);
    let more = halves.len() > count;
    halves.truncate(count);
    let mut transactions = Vec::with_capacity(halves.len());
    for half in halves {
        transactions.push(broker.waiting_transaction(&half, state.0).await?);
    }
    Ok(call.request.reply(ResponseCode::SUCCESS).with_json(&TransactionList { more, transactions }))
}

/// Handles RESUME_CHECK_HALF_MESSAGE: from now on producers are asked again, as often as about any other transaction.
pub async fn resume(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: ResumeCheckHalfMessageRequest = call.request.header()?;
    let id: Result<MessageId, _> = request.msg_id.parse();
    let id = id.map_err(|error| RequestError::InvalidParameter(format!("msgId: {error}")))?;
    let half = PhysicalOffset(u64::try_from(id.physical_offset).unwrap_or(0));
    let command = CoreCommand::CheckTransaction { half, check: TransactionCheck::Resume };
    let outcomes = broker.raft.propose(vec![Operation::Core(command)]).await?;
    if let Some(Outcome::Refused(_)) = outcomes.first() {
        return Err(RequestError::NotFound(match broker.reader.half(half) {
            Some(_) => format!("{}: producers are still asked about this transaction", request.msg_id),
            None => format!("{}: no transaction waits there; it has ended, or never was one", request.msg_id),
        }));
    }
    broker.scheduled.send_replace(());
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

impl BrokerGroup {
    async fn waiting_transaction(&self, half: &HalfRecord, state: &str) -> Result<WaitingTransaction, RequestError> {
        let stored = self.reader.record(half.place, half.size).await?;
        let record = RecordView::parse(&stored)?;
        let property = |name: &str| record.property(name).map(str::to_owned);
        let (store_host, physical_offset) = (self.config.advertised_address, half.key.0 as i64);
        Ok(WaitingTransaction {
            asked: half.asked,
            commit_log_offset: physical_offset,
            keys: property(properties::KEYS),
            offset_msg_id: MessageId { store_host, physical_offset }.to_string(),
            producer_group: property(properties::PGROUP).unwrap_or_default(),
            queue_id: record.queue_id(),
            since: half.since.0,
            state: state.to_owned(),
            store_timestamp: half.stored_at.0,
            topic: record.topic().to_owned(),
            unique_key: property(properties::UNIQ_KEY),
        })
    }
}

//! END_TRANSACTION 37: a half message becomes visible or never will. The first end that is applied counts, whichever it is;
//! the same again changes nothing, and neither does the opposite. Clients send it one way: the answer is for those that ask.
//!
//! A half message is named by where it was stored first, as the answer to its SEND said, and by its producer group. Nothing is
//! stored again: a committed message is visible where it lies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use protocol::code::ResponseCode;
use protocol::header::EndTransactionRequest;
use protocol::properties;
use protocol::record::RecordView;
use protocol::sys_flag::TransactionType;
use raft_store::entry::{CoreCommand, Operation};
use raft_store::fold::{CoreReply, HalfRecord, Outcome, Refusal};
use raft_store::position::{PhysicalOffset, Timestamp};

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::due::later;
use crate::error::RequestError;
use crate::send::{half_offset, key_hash};

/// What this replica did about transactions since its start.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    /// Transactions committed.
    pub committed: AtomicU64,
    /// Transactions rolled back.
    pub rolled_back: AtomicU64,
    /// Ends that came too late: the transaction had ended.
    pub refused: AtomicU64,
    /// Questions handed to producers.
    pub asked: AtomicU64,
    /// Half messages that nobody is asked about any more.
    pub discarded: AtomicU64,
    /// Whose turn it is among the producers of a group.
    pub turn: AtomicUsize,
}

/// Handles END_TRANSACTION.
pub async fn end(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: EndTransactionRequest = call.request.header()?;
    let done = call.request.reply(ResponseCode::SUCCESS);
    let commit = match TransactionType::from_end(request.commit_or_rollback) {
        Some(TransactionType::Commit) => true,
        Some(TransactionType::Rollback) => false,
        // The producer does not know yet: it will be asked again.
        Some(TransactionType::None) => return Ok(done),
        _ => {
            let remark = format!("commitOrRollback is {}, not 8, 12 or 0", request.commit_or_rollback);
            return Err(RequestError::InvalidParameter(remark));
        }
    };
    let key = u64::try_from(request.commit_log_offset).map(PhysicalOffset).map_err(|_| not_found(&request))?;
    let Some(half) = broker.reader.half(key) else {
        broker.ended_before(&request, commit).await?;
        return Ok(done);
    };
    let record = broker.reader.record(half.place, half.size).await?;
    check(&request, &half, &RecordView::parse(&record)?, broker.now())?;
    let command = CoreCommand::EndTransaction { half: key, commit };
    let outcomes = broker.raft.propose(vec![Operation::Core(command)]).await?;
    let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
    match outcomes.first() {
        Some(Outcome::Core(CoreReply::Committed { .. })) => drop(count(&broker.transactions.committed)),
        Some(Outcome::Core(CoreReply::RolledBack)) => drop(count(&broker.transactions.rolled_back)),
        // Another end was faster.
        Some(Outcome::Refused(Refusal::NoTransaction(_))) => broker.ended_before(&request, commit).await?,
        other => unreachable!("the outcome of an end: {other:?}"),
    }
    Ok(done)
}

fn not_found(request: &EndTransactionRequest) -> RequestError {
    let remark = format!("Find prepared transaction message failed: none waits at {}", request.commit_log_offset);
    RequestError::Failed(remark)
}

/// Whether this request may end this transaction.
fn check(
    request: &EndTransactionRequest,
    half: &HalfRecord,
    record: &RecordView<'_>,
    now: Timestamp,
) -> Result<(), RequestError> {
    if record.property(properties::PGROUP) != Some(request.producer_group.as_str()) {
        return Err(RequestError::Failed("The producer group wrong".to_owned()));
    }
    if u64::try_from(request.tran_state_table_offset) != Ok(half_offset(half.key).0) {
        return Err(RequestError::Failed("The transaction state table offset wrong".to_owned()));
    }
    let is_late = immunity_of(record).is_some_and(|immunity| later(half.stored_at, immunity) < now);
    if is_late && !request.from_transaction_check {
        return Err(RequestError::TooLate(
            "the time that CHECK_IMMUNITY_TIME_IN_SECONDS gives is over; wait to be asked how the transaction has ended"
                .to_owned(),
        ));
    }
    Ok(())
}

/// How long a producer wants to be left alone.
pub(crate) fn immunity_of(record: &RecordView<'_>) -> Option<Duration> {
    let seconds = record.property(properties::CHECK_IMMUNITY_TIME_IN_SECONDS)?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

impl BrokerGroup {
    /// A transaction that waits no more: `Ok` if it has certainly ended as it is to end now. One that was rolled back is nowhere;
    /// one that was committed where retention had stored it again is visible there under its unique key.
    async fn ended_before(&self, request: &EndTransactionRequest, commit: bool) -> Result<(), RequestError> {
        self.transactions.refused.fetch_add(1, Ordering::Relaxed);
        let found = self.message_at(request.commit_log_offset).await.map_err(|_| not_found(request))?;
        let record = RecordView::parse(&found.record)?;
        let is_half = record.sys_flag().transaction() == TransactionType::Prepared;
        if !is_half || record.property(properties::PGROUP) != Some(request.producer_group.as_str()) {
            return Err(not_found(request));
        }
        if found.unit.is_some() {
            let committed = || RequestError::Failed("the transaction was committed before".to_owned());
            return if commit { Ok(()) } else { Err(committed()) };
        }
        if !commit && self.is_nowhere(request, &record).await? {
            return Ok(());
        }
        Err(RequestError::Failed(
            "the transaction has ended before; its message is not visible where it was stored".to_owned(),
        ))
    }

    /// Whether nothing is there that the message of a half record which waits no more could have become: it was rolled back.
    async fn is_nowhere(&self, request: &EndTransactionRequest, record: &RecordView<'_>) -> Result<bool, RequestError> {
        let (topic, Some(key)) = (record.topic(), record.property(properties::UNIQ_KEY)) else { return Ok(false) };
        // Of a topic that was made anew nobody knows what its queues have not shown.
        let is_as_it_was = self.reader.tables().topics().get(topic).is_some_and(|topic| !topic.was_made_anew());
        if !is_as_it_was {
            return Ok(false);
        }
        // Behind this everything is applied that may have ended it.
        let half = PhysicalOffset(u64::try_from(request.commit_log_offset).map_err(|_| not_found(request))?);
        let command = CoreCommand::EndTransaction { half, commit: false };
        self.raft.propose(vec![Operation::Core(command)]).await?;
        let hash = key_hash(topic, key);
        let waits = !self.reader.waiting_with_hash(hash).is_empty();
        Ok(!waits && self.visible_under(topic, key, hash, Timestamp(0)).await?.is_none())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocol::record::NewRecord;
    use protocol::sys_flag::SysFlag;
    use raft_store::fold::HalfState;
    use raft_store::position::QueueId;

    use super::*;

    fn record(properties: &[(&str, &str)]) -> Bytes {
        let encoded: String = properties.iter().map(|(name, value)| format!("{name}\u{1}{value}\u{2}")).collect();
        let any = "127.0.0.1:1".parse().expect("an address");
        let record = NewRecord {
            topic: "T",
            queue_id: 0,
            flag: 0,
            sys_flag: SysFlag(0),
            born_timestamp: 0,
            born_host: any,
            store_timestamp: 0,
            store_host: any,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: b"x",
            properties: &encoded,
        };
        record.to_bytes().expect("a record")
    }

    #[test]
    fn an_end_must_name_the_message_and_its_group_and_come_in_time() {
        let (key, stored_at) = (PhysicalOffset(640), Timestamp(1_000));
        let (queue, state) = (QueueId::default(), HalfState::Unasked);
        let half = HalfRecord { key, place: key, size: 1, queue, stored_at, state, since: stored_at, asked: 0 };
        let right = EndTransactionRequest {
            producer_group: "pg".to_owned(),
            tran_state_table_offset: 640,
            commit_log_offset: 640,
            commit_or_rollback: 8,
            ..EndTransactionRequest::default()
        };
        let code = |request: &EndTransactionRequest, properties: &[(&str, &str)], now| {
            let record = record(properties);
            let checked = check(request, &half, &RecordView::parse(&record).expect("a record"), Timestamp(now));
            checked.err().and_then(|error| error.response_code()).map_or(0, |code| code.0)
        };
        let of_group: &[_] = &[("PGROUP", "pg")];
        assert_eq!(code(&right, of_group, 90_000), 0);
        assert_eq!(code(&right, &[("PGROUP", "other")], 90_000), 1);
        assert_eq!(code(&right, &[], 90_000), 1);
        let elsewhere = EndTransactionRequest { tran_state_table_offset: 0, ..right.clone() };
        assert_eq!(code(&elsewhere, of_group, 90_000), 1);
        let immune: &[_] = &[("PGROUP", "pg"), ("CHECK_IMMUNITY_TIME_IN_SECONDS", "10")];
        assert_eq!((code(&right, immune, 11_000), code(&right, immune, 11_001)), (0, 604));
        let asked = EndTransactionRequest { from_transaction_check: true, ..right };
        assert_eq!(code(&asked, immune, 90_000), 0);
    }
}

//! What consumers say of messages that they have popped: ACK_MESSAGE 200051, BATCH_ACK_MESSAGE 200151,
//! CHANGE_MESSAGE_INVISIBLETIME 200053.
//!
//! A lease is known by its pop time, the second of the fields of `POP_CK`. One that does not hold any more is refused with
//! NO_MESSAGE; what was acknowledged before is acknowledged again. Both are always safe to ask again.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::body::BatchAckRequest;
use protocol::code::ResponseCode;
use protocol::header::{AckMessageRequest, ChangeInvisibleTimeRequest, ChangeInvisibleTimeResponse};

use super::LONGEST_LEASE_MS;
use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::tables::command::{Command, LeaseId, Refusal, Reply};

/// Messages in one request.
const ACKS_MAX: usize = 16 * 1024;

/// Handles ACK_MESSAGE.
pub async fn ack(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: AckMessageRequest = call.request.header()?;
    let lease = lease_of(request.queue_id, request.offset, &request.extra_info)?;
    let refused = broker.end_leases(request.consumer_group, request.topic, vec![lease]).await?;
    match refused.into_iter().next() {
        None => Ok(call.request.reply(ResponseCode::SUCCESS)),
        Some((_, refusal)) => Err(refusal.into()),
    }
}

/// Handles BATCH_ACK_MESSAGE. What can be acknowledged is; the answer names what cannot.
pub async fn batch_ack(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: BatchAckRequest = call.request.json()?;
    let mut by_topic: BTreeMap<(String, String), Vec<LeaseId>> = BTreeMap::new();
    let mut count = 0;
    for ack in request.acks {
        // One more than may be is enough to refuse it.
        let offsets = ack.offsets(ACKS_MAX + 1 - count);
        let offsets = offsets.ok_or_else(|| malformed(&format!("the bit set {:?} is no Base64", ack.bit_set)))?;
        count += offsets.len();
        if count > ACKS_MAX {
            return Err(RequestError::InvalidParameter(format!("more than {ACKS_MAX} messages in one request")));
        }
        let leases = offsets.into_iter().map(|offset| lease(ack.queue_id, offset, ack.pop_time));
        let leases = leases.collect::<Result<Vec<_>, _>>()?;
        by_topic.entry((ack.consumer_group, ack.topic)).or_default().extend(leases);
    }
    if count == 0 {
        return Ok(call.request.reply_error(ResponseCode::NO_MESSAGE, "the request names no message"));
    }
    let mut refused = Vec::new();
    for ((group, topic), leases) in by_topic {
        refused.extend(broker.end_leases(group, topic, leases).await?);
    }
    let Some((first, refusal)) = refused.first() else { return Ok(call.request.reply(ResponseCode::SUCCESS)) };
    let remark = format!(
        "{} of {count} messages are not acknowledged, the first at offset {} of queue {}: {refusal}",
        refused.len(),
        first.offset,
        first.queue
    );
    Err(RequestError::NotLeased(remark))
}

/// Handles CHANGE_MESSAGE_INVISIBLETIME: the answer holds what the lease is known by from now on.
pub async fn change_invisible_time(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: ChangeInvisibleTimeRequest = call.request.header()?;
    if !(0..=LONGEST_LEASE_MS).contains(&request.invisible_time) {
        let remark = format!("invisibleTime {} ms is not within 0..={LONGEST_LEASE_MS}", request.invisible_time);
        return Err(RequestError::InvalidParameter(remark));
    }
    let lease = lease_of(request.queue_id, request.offset, &request.extra_info)?;
    broker.check_leased(&request.consumer_group, &request.topic, &lease)?;
    let (group, topic) = (request.consumer_group.clone(), request.topic.clone());
    let command = Command::ChangeLease { group, topic, lease, lease_ms: request.invisible_time };
    let Reply::LeaseChanged(pop_time) = broker.command(&command).await? else {
        unreachable!("a change is answered with the new lease")
    };
    broker.popping.lease_changed(&request.consumer_group, &request.topic);
    // If it was the last try, somebody must look at another time.
    broker.scheduled.send_replace(());
    let header = ChangeInvisibleTimeResponse {
        pop_time,
        invisible_time: request.invisible_time,
        revive_qid: revive_qid(&request.extra_info),
    };
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &header))
}

impl BrokerGroup {
    /// Ends leases of one group and topic; those that were refused, and why.
    async fn end_leases(
        &self,
        group: String,
        topic: String,
        leases: Vec<LeaseId>,
    ) -> Result<Vec<(LeaseId, Refusal)>, RequestError> {
        for lease in &leases {
            self.check_leased(&group, &topic, lease)?;
        }
        let command = Command::AckPopped { group: group.clone(), topic: topic.clone(), leases: leases.clone() };
        let Reply::Acked(outcomes) = self.command(&command).await? else {
            unreachable!("acknowledgements are answered one by one")
        };
        self.popping.message_done(&group, &topic);
        let refused = leases.into_iter().zip(outcomes).filter_map(|(lease, refusal)| Some((lease, refusal?)));
        Ok(refused.collect())
    }

    fn check_leased(&self, group: &str, topic: &str, lease: &LeaseId) -> Result<(), RequestError> {
        let tables = self.reader.tables();
        if tables.groups().get(group).is_none() {
            return Err(RequestError::NoGroup(group.to_owned()));
        }
        let Some(config) = tables.topics().get(topic) else { return Err(RequestError::NoTopic(topic.to_owned())) };
        if lease.queue >= config.queues() {
            return Err(malformed(&format!("queueId {}: the topic has {} queues", lease.queue, config.queues())));
        }
        Ok(())
    }
}

/// The lease that a client names.
fn lease_of(queue_id: i32, offset: i64, extra_info: &str) -> Result<LeaseId, RequestError> {
    let pop_time = extra_info.split(' ').nth(1).and_then(|text| text.parse().ok());
    let pop_time = pop_time.ok_or_else(|| malformed(&format!("extraInfo {extra_info:?} is no POP_CK")))?;
    lease(queue_id, offset, pop_time)
}

fn lease(queue_id: i32, offset: i64, pop_ms: i64) -> Result<LeaseId, RequestError> {
    let numbers = u32::try_from(queue_id).ok().zip(u64::try_from(offset).ok());
    let (queue, offset) =
        numbers.ok_or_else(|| malformed(&format!("queueId {queue_id} or offset {offset} is below 0")))?;
    Ok(LeaseId { queue, offset, pop_ms })
}

/// As the client has it: it names nothing here.
fn revive_qid(extra_info: &str) -> i32 {
    extra_info.split(' ').nth(3).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// As RocketMQ answers what it cannot read here.
fn malformed(remark: &str) -> RequestError {
    RequestError::MessageIllegal(remark.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_named_by_queue_offset_and_pop_time() {
        let ck = "100 1700000000000 60000 3 0 broker-a 1 105";
        let named = lease_of(1, 105, ck).expect("a lease");
        assert_eq!(named, LeaseId { queue: 1, offset: 105, pop_ms: 1_700_000_000_000 });
        assert_eq!(revive_qid(ck), 3);
        for (queue, offset, ck) in [(1, 105, "100"), (1, 105, "100 x 3"), (-1, 105, ck), (1, -1, ck), (1, 1, "")] {
            assert!(lease_of(queue, offset, ck).is_err(), "{queue} {offset} {ck:?}");
        }
    }
}

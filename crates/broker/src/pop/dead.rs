//! Popped messages whose last try has ended: the leader lays each among the group's dead letters, once, and then its message
//! is done.
//!
//! A leader that dies between the two leaves a dead letter whose message is not done; the next one finds it where it lies
//! ([`crate::dead_letters`]), and lays down no other. One that cannot be laid down is in the way of no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::message_id::MessageId;
use protocol::names::group_of_retry_topic;
use protocol::record::RecordView;
use raft_store::position::{QueueId, QueueOffset, Timestamp};

use crate::broker::BrokerGroup;
use crate::dead_letters::origin_of;
use crate::due::{Office, later};
use crate::error::RequestError;
use crate::send::Delay;
use crate::tables::command::Command;
use crate::tables::pops::GivenUp;

/// Dead letters in one step.
const AT_ONCE: usize = 256;

/// So many that could not be laid down are no exception: all of it is tried more slowly.
const PUT_OFF_MAX: usize = 1_024;

/// How long a leader waits that knows of no last try.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// After a dead letter that could not be laid down.
const NEXT_TRY: Duration = Duration::from_secs(1);

/// Buries whenever a last try has ended, until the office is lost.
pub(crate) async fn bury_in_office(mut office: Office<'_>) {
    let broker = office.broker;
    let mut put_off = BTreeMap::new();
    while let Some(next) = office.unless_lost(bury_what_is_due(broker, &mut put_off)).await {
        if office.is_lost_within(next).await {
            return;
        }
    }
}

/// When to look again. `put_off`: those that could not be laid down, and when each is tried again.
async fn bury_what_is_due(broker: &Arc<BrokerGroup>, put_off: &mut BTreeMap<GivenUp, Timestamp>) -> Duration {
    let now = broker.now();
    let given_up = broker.reader.tables().pops().given_up(now, AT_ONCE + put_off.len());
    if given_up.is_empty() {
        put_off.clear();
        broker.burials_done_ms.store(now.0, Ordering::Release);
        let next = broker.reader.tables().pops().next_given_up_ms(now);
        return next.map_or(IDLE_INTERVAL, |ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0).max(1)));
    }
    let is_due = |message: &&GivenUp| put_off.get(*message).is_none_or(|at| *at <= now);
    let (mut laid_down, mut failed) = (Vec::new(), Vec::new());
    for message in given_up.iter().filter(is_due) {
        match broker.bury_popped(message).await {
            Ok(()) => laid_down.push(message),
            Err(error) => {
                let GivenUp { queue, lease, .. } = message;
                tracing::warn!(group = %broker.broker_name(), ?queue, lease.offset, %error, "a dead letter is put off");
                failed.push(message.clone());
            }
        }
    }
    for message in laid_down.iter() {
        put_off.remove(*message);
    }
    put_off.extend(failed.into_iter().map(|message| (message, later(now, NEXT_TRY))));
    // What is not in the way of others is tried soon; if nothing goes, nothing else would now.
    if !laid_down.is_empty() && put_off.len() < PUT_OFF_MAX { Duration::ZERO } else { NEXT_TRY }
}

impl BrokerGroup {
    async fn bury_popped(self: &Arc<Self>, message: &GivenUp) -> Result<(), RequestError> {
        let GivenUp { queue: key, lease, deliveries } = message;
        let queue = self.topic_id(&key.topic).and_then(|topic| self.reader.queue(QueueId { topic, queue: key.queue }));
        let unit = match queue {
            Some(queue) => queue.read_units(QueueOffset(lease.offset), 1).await?.first().copied(),
            None => None,
        };
        let record = match unit {
            Some(unit) => self.record_of(&unit).await?.map(|record| (unit, record)),
            None => None,
        };
        // What retention has taken cannot be kept any longer.
        if let Some((unit, record)) = record {
            let record = RecordView::parse(&record)?;
            let is_retry = group_of_retry_topic(record.topic()) == Some(key.group.as_str());
            let origin = origin_of(record.properties(), is_retry, unit.physical_offset);
            let physical_offset = unit.physical_offset.0 as i64;
            let id = MessageId { store_host: self.config.advertised_address, physical_offset }.to_string();
            let reconsumed = record.reconsume_times().saturating_add(i32::try_from(*deliveries).unwrap_or(i32::MAX));
            let dead_letters = self.dead_letter_queue(&key.group).await?;
            let operation = self.stored_anew(&record, &dead_letters, Delay::None, reconsumed, origin, &id)?;
            self.bury(operation, &dead_letters.topic).await?;
        }
        let (group, topic) = (key.group.clone(), key.topic.clone());
        self.command(&Command::BuryPopped { group, topic, leases: vec![lease.clone()] }).await?;
        self.popping.message_done(&key.group, &key.topic);
        Ok(())
    }
}

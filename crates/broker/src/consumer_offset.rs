//! Offsets: what a group has consumed (14, 15), and what a queue holds (29, 30, 31, 32). All at the leader.
//!
//! - A two-way update is answered once it is applied. A one-way update waits at most [`COALESCED`] for others to share a
//!   command with; the last one of a client counts.
//! - A group that is new to a topic is given its first offsets once, by the log ([`BrokerGroup::begin_group`]): what is sent
//!   from then on is behind them, whoever looks first at which queue.
//! - A query sees every update acknowledged before it, at any leader, and every one-way update that arrived here before
//!   it: it makes those be applied first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::body::{ConsumeFromWhere, ConsumerData, MessageModel};
use protocol::code::ResponseCode;
use protocol::header::{
    BoundaryType, EarliestStoreTimeResponse, OffsetResponse, PullMessageRequest, QueryConsumerOffsetRequest,
    QueueRequest, SearchOffsetRequest, UpdateConsumerOffsetRequest,
};
use protocol::names;
use raft_store::consume_queue::{Queue, TimeBoundary};
use raft_store::planted::{self, Bug};
use raft_store::position::{QueueId, QueueOffset, Timestamp};
use tokio::sync::{Notify, watch};

use crate::admin::QueueView;
use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::tables::command::{Command, OffsetUpdate};
use crate::tables::offsets::OffsetKey;

/// How long a one-way update may wait for others.
const COALESCED: Duration = Duration::from_millis(100);

/// Updates in one command.
const UPDATES_MAX: usize = 4096;

/// A queue younger than this many bytes of log is read from its beginning by a group that has no offset yet.
const YOUNG_BYTES: u64 = 1 << 30;

/// Handles UPDATE_CONSUMER_OFFSET.
pub async fn update(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: UpdateConsumerOffsetRequest = call.request.header()?;
    {
        let tables = broker.reader.tables();
        if tables.groups().get(&request.consumer_group).is_none() {
            return Err(RequestError::NoGroup(request.consumer_group));
        }
        let Some(topic) = tables.topics().get(&request.topic) else {
            return Err(RequestError::NoTopic(request.topic));
        };
        // Each offset is a replicated row: there are no more of them than queues.
        if i64::from(request.queue_id) >= i64::from(topic.queues()) {
            let (queue, queues) = (request.queue_id, topic.queues());
            return Err(RequestError::InvalidParameter(format!("queueId {queue}: the topic has {queues} queues")));
        }
    }
    let UpdateConsumerOffsetRequest { consumer_group, topic, queue_id, commit_offset, .. } = request;
    if call.request.is_one_way() {
        broker.note_consumer_offset(call, &consumer_group, &topic, queue_id, commit_offset);
    } else {
        let update = broker.offset_update(call, &consumer_group, &topic, queue_id, commit_offset, false);
        let update = update.ok_or_else(|| {
            RequestError::InvalidParameter(format!("queueId {queue_id} or offset {commit_offset} is below 0"))
        })?;
        // Whatever is late must not be applied behind this.
        broker.pending_offsets.settle(&update.key()).await;
        broker.command(&Command::UpdateOffsets(vec![update])).await?;
    }
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// Handles QUERY_CONSUMER_OFFSET.
pub async fn query(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: QueryConsumerOffsetRequest = call.request.header()?;
    let queue = u32::try_from(request.queue_id)
        .map_err(|_| RequestError::InvalidParameter(format!("queueId {} is below 0", request.queue_id)))?;
    let key = OffsetKey { group: request.consumer_group, topic: request.topic, queue };
    broker.pending_offsets.settle(&key).await;
    if !planted::is(Bug::StaleRead) {
        broker.linearizable().await?;
    }
    let mut known = broker.reader.tables().offsets().get(&key.group, &key.topic, key.queue);
    if known.is_none() {
        known = broker.first_offset(&key).await?;
    }
    let offset = match known {
        Some(offset) => offset,
        None if request.set_zero_if_not_found == Some(false) => {
            let remark = "Not found, do not set to zero, maybe this group consumer boot first";
            return Err(RequestError::NotFound(remark.to_owned()));
        }
        None if broker.is_young(&key).await? => 0,
        None => return Err(RequestError::NotFound("Not found, maybe this group consumer boot first".to_owned())),
    };
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &OffsetResponse { offset: offset as i64 }))
}

/// Handles GET_MAX_OFFSET.
pub async fn max_offset(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let shown = broker.shown_queue(call.request.header()?).await?;
    let offset = shown.map_or(0, |shown| shown.queue.bounds().end.0 as i64);
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &OffsetResponse { offset }))
}

/// Handles GET_MIN_OFFSET.
pub async fn min_offset(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let shown = broker.shown_queue(call.request.header()?).await?;
    let offset = shown.map_or(0, |shown| shown.first().0 as i64);
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &OffsetResponse { offset }))
}

/// Handles GET_EARLIEST_MSG_STORETIME.
pub async fn earliest_store_time(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let mut timestamp = -1;
    if let Some(shown) = broker.shown_queue(call.request.header()?).await?
        && let Some(first) = shown.queue.read_units(shown.first(), 1).await?.first()
    {
        timestamp = first.visible_at.0;
    }
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &EarliestStoreTimeResponse { timestamp }))
}

/// Handles SEARCH_OFFSET_BY_TIMESTAMP.
pub async fn search_by_time(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: SearchOffsetRequest = call.request.header()?;
    let boundary = match request.boundary_type {
        BoundaryType::Lower => TimeBoundary::Lower,
        BoundaryType::Upper => TimeBoundary::Upper,
    };
    let queue = QueueRequest { topic: request.topic, queue_id: request.queue_id, ..QueueRequest::default() };
    let offset = match broker.shown_queue(queue).await? {
        None => 0,
        Some(shown) => {
            let found = shown.queue.search_by_time(Timestamp(request.timestamp), boundary).await?;
            found.max(shown.first()).0 as i64
        }
    };
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &OffsetResponse { offset }))
}

/// A queue as its topic's consumers see it.
struct ShownQueue {
    queue: Arc<Queue>,
    /// Earlier offsets belong to an earlier life of the topic's name.
    first_shown: QueueOffset,
}

impl ShownQueue {
    fn first(&self) -> QueueOffset {
        let bounds = self.queue.bounds();
        bounds.start.max(self.first_shown).min(bounds.end)
    }
}

impl BrokerGroup {
    /// The queue, with everything in it that was acknowledged before this call. `None` if there is no such queue.
    async fn shown_queue(&self, request: QueueRequest) -> Result<Option<ShownQueue>, RequestError> {
        self.linearizable().await?;
        Ok(self.queue_named(&request.topic, request.queue_id))
    }

    fn queue_named(&self, topic: &str, queue: i32) -> Option<ShownQueue> {
        let queue = u32::try_from(queue).ok()?;
        let (id, first_shown) = {
            let tables = self.reader.tables();
            let topic = tables.topics().get(topic)?;
            (QueueId { topic: topic.id(), queue }, topic.first_shown(queue))
        };
        Some(ShownQueue { queue: self.reader.queue(id)?, first_shown })
    }

    /// Whether a group without an offset should begin at 0, whatever it wishes: the queue holds its first message, and all
    /// of it is recent.
    pub(crate) async fn is_young(&self, key: &OffsetKey) -> Result<bool, RequestError> {
        let Some(shown) = self.queue_named(&key.topic, key.queue as i32) else { return Ok(false) };
        let bounds = shown.queue.bounds();
        if shown.first() > QueueOffset(0) || bounds.is_empty() {
            return Ok(false);
        }
        let first = shown.queue.read_units(QueueOffset(0), 1).await?;
        let last = shown.queue.read_units(QueueOffset(bounds.end.0 - 1), 1).await?;
        Ok(match (first.first(), last.first()) {
            (Some(first), Some(last)) => last.physical_offset.0.saturating_sub(first.physical_offset.0) <= YOUNG_BYTES,
            _ => false,
        })
    }

    /// Where a group that has no offset on a queue begins, as its members wish; `None` if they have said nothing about it, or
    /// the group has offsets on other queues of the topic: then it is for the client to find out.
    async fn first_offset(&self, key: &OffsetKey) -> Result<Option<u64>, RequestError> {
        let described = {
            let clients = self.clients.lock();
            let group = clients.consumer_group(&key.group);
            let group = group.filter(|group| group.subscriptions.contains_key(&key.topic));
            group.map(|group| group.described.clone())
        };
        let Some(described) = described else { return Ok(None) };
        self.begin_group(&described, &key.topic).await?;
        Ok(self.reader.tables().offsets().get(&key.group, &key.topic, key.queue))
    }

    /// Gives a group that has no offset of a topic one for each queue, by the log and once. A consumer that only asks where a
    /// queue ends, as RocketMQ's do, passes over what is sent before the first of them has stored an offset there.
    pub(crate) async fn begin_group(&self, group: &ConsumerData, topic: &str) -> Result<(), RequestError> {
        let is_first = match group.consume_from_where {
            ConsumeFromWhere::FirstOffset | ConsumeFromWhere::MinOffset => true,
            // Only the client knows which time, and finds the same offset whenever it asks.
            ConsumeFromWhere::Timestamp => return Ok(()),
            _ => false,
        };
        let name = &group.group_name;
        let is_own = names::group_of_retry_topic(topic).is_some();
        if group.message_model == MessageModel::Broadcasting || is_own {
            return Ok(());
        }
        let queues = {
            let tables = self.reader.tables();
            let Some(topic) = tables.topics().get(topic) else { return Ok(()) };
            if tables.groups().get(name).is_none()
                || tables.offsets().of_topic(name, &topic.config.name).next().is_some()
            {
                return Ok(());
            }
            QueueView::all(&self.reader, topic)
        };
        // Whatever was acknowledged before the group came is behind the ends that are looked for.
        self.linearizable().await?;
        let mut offsets = Vec::with_capacity(queues.len());
        for queue in queues {
            let key = OffsetKey { group: name.clone(), topic: topic.to_owned(), queue: queue.number };
            let bounds = queue.bounds();
            let at_start = is_first || self.is_young(&key).await?;
            offsets.push((queue.number, if at_start { bounds.start } else { bounds.end }));
        }
        let command = Command::BeginAt { group: name.clone(), topic: topic.to_owned(), offsets };
        self.command(&command).await.map(drop)
    }

    /// `None` if the numbers are out of range.
    fn offset_update(
        &self,
        call: &Call,
        group: &str,
        topic: &str,
        queue: i32,
        offset: i64,
        one_way: bool,
    ) -> Option<OffsetUpdate> {
        Some(OffsetUpdate {
            group: group.to_owned(),
            topic: topic.to_owned(),
            queue: u32::try_from(queue).ok()?,
            offset: u64::try_from(offset).ok()?,
            // A client that was not heard yet is told apart by its address.
            client: self.client_id(call).unwrap_or_else(|| call.born_host.to_string()),
            one_way,
        })
    }

    /// A consumer pulls from where its group was moved: it has gone on from there.
    pub(crate) async fn goes_on_from(&self, call: &Call, pull: &PullMessageRequest) -> Result<(), RequestError> {
        let (queue, offset) = (pull.queue_id, pull.queue_offset);
        let update = self.offset_update(call, &pull.consumer_group, &pull.topic, queue, offset, true);
        let update = update.ok_or_else(|| RequestError::InvalidParameter(format!("queueId {queue} is below 0")))?;
        self.command(&Command::UpdateOffsets(vec![update])).await.map(drop)
    }

    /// Takes in an update that nobody waits for.
    pub(crate) fn note_consumer_offset(&self, call: &Call, group: &str, topic: &str, queue: i32, offset: i64) {
        if let Some(update) = self.offset_update(call, group, topic, queue, offset, true) {
            self.pending_offsets.add(update);
        }
    }
}

impl OffsetUpdate {
    fn key(&self) -> OffsetKey {
        OffsetKey { group: self.group.clone(), topic: self.topic.clone(), queue: self.queue }
    }
}

/// One-way updates that wait for a command to share, and those whose command is not applied yet.
///
/// Batches are numbered from 1; what waits belongs to batch `taken + 1`. `ended <= taken <= ended + 1`: one at a time.
#[derive(Debug)]
pub struct PendingOffsets {
    waiting: Mutex<Waiting>,
    flushing: tokio::sync::Mutex<()>,
    /// Something waits.
    added: Notify,
    /// Somebody cannot wait.
    hurry: Notify,
    ended: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By queue, then in the order in which clients were first heard; of one client only the last counts.
    updates: BTreeMap<OffsetKey, Vec<OffsetUpdate>>,
    count: usize,
    /// Queues whose updates are proposed.
    proposed: BTreeSet<OffsetKey>,
    taken: u64,
}

impl Default for PendingOffsets {
    fn default() -> PendingOffsets {
        PendingOffsets {
            waiting: Mutex::default(),
            flushing: tokio::sync::Mutex::default(),
            added: Notify::new(),
            hurry: Notify::new(),
            ended: watch::Sender::new(0),
        }
    }
}

impl Waiting {
    fn add(&mut self, update: OffsetUpdate) {
        let updates = self.updates.entry(update.key()).or_default();
        match updates.iter_mut().find(|earlier| earlier.client == update.client) {
            Some(earlier) => *earlier = update,
            None => {
                updates.push(update);
                self.count += 1;
            }
        }
    }

    fn take(&mut self) -> Vec<OffsetUpdate> {
        let updates = std::mem::take(&mut self.updates);
        self.count = 0;
        self.taken += 1;
        self.proposed = updates.keys().cloned().collect();
        updates.into_values().flatten().collect()
    }

    /// The batch that must have ended before a query of `key`.
    fn batch_of(&self, key: &OffsetKey) -> Option<u64> {
        if self.updates.contains_key(key) {
            Some(self.taken + 1)
        } else if self.proposed.contains(key) {
            Some(self.taken)
        } else {
            None
        }
    }
}

impl PendingOffsets {
    fn add(&self, update: OffsetUpdate) {
        let mut waiting = self.waiting.lock();
        waiting.add(update);
        let is_full = waiting.count >= UPDATES_MAX;
        drop(waiting);
        self.added.notify_one();
        if is_full {
            self.hurry.notify_one();
        }
    }

    /// Resolves when no update of `key` that came before is pending any more.
    async fn settle(&self, key: &OffsetKey) {
        let Some(batch) = self.waiting.lock().batch_of(key) else { return };
        self.hurry.notify_one();
        // The sender lives as long as this does.
        let _ = self.ended.subscribe().wait_for(|ended| *ended >= batch).await;
    }

    /// Proposes what waits now and waits for its end.
    pub async fn flush(&self, broker: &BrokerGroup) {
        let _one_at_a_time = self.flushing.lock().await;
        let (batch, updates) = {
            let mut waiting = self.waiting.lock();
            if waiting.updates.is_empty() {
                return;
            }
            let updates = waiting.take();
            (waiting.taken, updates)
        };
        let count = updates.len();
        for piece in updates.chunks(UPDATES_MAX) {
            // Nobody waits for a one-way update, and its client repeats it in a few seconds.
            if let Err(error) = broker.command(&Command::UpdateOffsets(piece.to_vec())).await {
                tracing::debug!(group = %broker.broker_name(), %error, count, "one-way offset updates are dropped");
                break;
            }
        }
        self.waiting.lock().proposed.clear();
        let before = self.ended.send_replace(batch);
        assert_eq!(before + 1, batch, "batches end in their order");
    }
}

/// Proposes one-way updates, [`COALESCED`] after the first of them or when somebody cannot wait.
pub async fn flush_late_updates(broker: Arc<BrokerGroup>) {
    let pending = &broker.pending_offsets;
    loop {
        pending.added.notified().await;
        let _ = broker.env.clock.timeout(COALESCED, pending.hurry.notified()).await;
        pending.flush(&broker).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(queue: u32, offset: u64, client: &str) -> OffsetUpdate {
        OffsetUpdate {
            group: "g".to_owned(),
            topic: "t".to_owned(),
            queue,
            offset,
            client: client.to_owned(),
            one_way: true,
        }
    }

    #[test]
    fn of_one_client_the_last_update_counts_and_clients_keep_their_order() {
        let mut waiting = Waiting::default();
        for (queue, offset, client) in [(1, 10, "a"), (0, 5, "a"), (1, 20, "b"), (1, 12, "a")] {
            waiting.add(update(queue, offset, client));
        }
        assert_eq!(waiting.count, 3);
        assert_eq!(waiting.take(), [update(0, 5, "a"), update(1, 12, "a"), update(1, 20, "b")]);
        assert_eq!(waiting.count, 0);
    }

    #[test]
    fn a_query_waits_for_the_batch_that_holds_its_queue() {
        let mut waiting = Waiting::default();
        let (first, second) = (update(0, 5, "a").key(), update(1, 5, "a").key());
        assert_eq!(waiting.batch_of(&first), None);
        waiting.add(update(0, 5, "a"));
        assert_eq!(waiting.batch_of(&first), Some(1));
        waiting.take();
        assert_eq!((waiting.batch_of(&first), waiting.batch_of(&second)), (Some(1), None));
        waiting.add(update(0, 6, "a"));
        waiting.add(update(1, 6, "a"));
        assert_eq!((waiting.batch_of(&first), waiting.batch_of(&second)), (Some(2), Some(2)));
    }
}

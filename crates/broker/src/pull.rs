//! Pulling: PULL_MESSAGE 11, LITE_PULL_MESSAGE 361, at any replica.
//!
//! ConsumeQueue units up to applied, filtered by tag hash or by the properties in the record, then the records in one body: each is copied once, from the
//! log's memory or map into the answer, with a patched head. Nothing there and the client allows it: the request is parked
//! on its queue and wakes when units arrive; it answers only when one of them matches, or at its deadline.
//!
//! A group that was moved elsewhere (a reset) is told so by its next pull, and the pull from the new offset ends the move: both
//! by the leader, so that no replica sends a consumer back that has gone on already.
//!
//! What a client may believe of an offset beyond the queue: only a leader that a majority has just confirmed says that it
//! does not exist. Any other replica may merely be behind, and waits.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protocol::body::MessageModel;
use protocol::code::ResponseCode;
use protocol::command::RemotingCommand;
use protocol::header::{PullMessageRequest, PullMessageResponse};
use protocol::permission::Permission;
use protocol::record::{HeadPatch, RecordView, head_bytes, head_sys_flag};
use protocol::sql92::SqlFilter;
use protocol::sys_flag::{PullSysFlag, TransactionType};
use protocol::tag::TagExpression;
use raft_store::consume_queue::{Queue, Unit};
use raft_store::planted::{self, Bug};
use raft_store::position::{PhysicalOffset, QueueId, QueueOffset};

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::filter::{BadFilter, Filter};

/// Bytes of records in one answer, unless the first record alone is longer.
pub(crate) const ANSWER_BYTES: usize = 256 * 1024;

/// Records of this size and larger are not copied into an answer.
const LARGE_RECORD_BYTES: usize = 16 * 1024;

/// The head of a record, with addresses of the longer family.
const LARGEST_HEAD_BYTES: usize = 128;

/// Records in one answer, however many are asked for.
const ANSWER_RECORDS: usize = 1024;

/// Units looked at for one answer.
const SCANNED_UNITS: usize = 800;

/// What an expression may cost for one answer: bytes of the records it looks into, and bytes of properties times its parts.
/// One message is looked at whatever it costs.
const EVALUATION_COST: usize = 32 * 1024 * 1024;

/// The longest that a request may be parked, whatever it asks for.
pub(crate) const LONGEST_PARKING: Duration = Duration::from_secs(300);

/// Handles a pull.
pub async fn pull(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: PullMessageRequest = call.request.header()?;
    let wanted = broker.check_pull(&request).await?;
    let flag = PullSysFlag(request.sys_flag);
    if flag.has(PullSysFlag::COMMIT_OFFSET) && broker.leads() {
        broker.note_consumer_offset(
            call,
            &request.consumer_group,
            &request.topic,
            request.queue_id,
            request.commit_offset,
        );
    }
    let Some(queue) = broker.reader.queue(wanted.shown.queue) else {
        return Ok(wanted.nothing(call, None, request.queue_offset.max(0), ResponseCode::PULL_NOT_FOUND));
    };
    if let Some(target) = wanted.shown.reset {
        if !broker.leads() {
            return Err(RequestError::NotLeader { leader: None });
        }
        if u64::try_from(request.queue_offset) != Ok(target) {
            return Ok(wanted.nothing(call, Some(&queue), target as i64, ResponseCode::PULL_OFFSET_MOVED));
        }
        broker.goes_on_from(call, &request).await?;
    }

    let parked_until = flag.has(PullSysFlag::SUSPEND).then(|| {
        let wished = Duration::from_millis(u64::try_from(request.suspend_timeout_millis).unwrap_or(0));
        broker.env.clock.monotonic() + wished.min(LONGEST_PARKING)
    });
    let offset = request.queue_offset;
    let verdict = match judge(offset, &wanted.bounds(&queue), false) {
        // Only a leader may say so, and only while it is one.
        Verdict::Unclear if broker.leads() && broker.linearizable().await.is_ok() => {
            judge(offset, &wanted.bounds(&queue), true)
        }
        Verdict::Unclear if planted::is(Bug::FollowerMovesOffset) => judge(offset, &wanted.bounds(&queue), true),
        verdict => verdict,
    };
    match verdict {
        Verdict::Moved { next } => {
            broker.rates.get_miss.add(1);
            Ok(wanted.nothing(call, Some(&queue), next, ResponseCode::PULL_OFFSET_MOVED))
        }
        Verdict::Read => wanted.read_or_wait(broker, call, &queue, offset as u64, parked_until, false).await,
        Verdict::AtEnd | Verdict::Unclear => {
            // Nothing can be there before the queue has grown beyond the offset, so the first look waits for that.
            let from = offset.max(0) as u64;
            if !broker.within(parked_until, queue.grown_beyond(QueueOffset(from))).await {
                broker.rates.get_miss.add(1);
                return Ok(wanted.nothing(call, Some(&queue), offset, ResponseCode::PULL_NOT_FOUND));
            }
            wanted.read_or_wait(broker, call, &queue, from, parked_until, true).await
        }
    }
}

/// What an offset means, given what exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Units from there on exist.
    Read,
    /// The next message will get it.
    AtEnd,
    /// It does not exist: go on there.
    Moved {
        /// Inside the queue.
        next: i64,
    },
    /// Beyond everything that this replica has applied.
    Unclear,
}

/// Judges `offset` against the offsets that exist here. `is_confirmed`: nothing beyond them exists anywhere.
///
/// A queue without any message, ever, is a special case as in RocketMQ: offset 0 waits, any other is moved to 0.
pub fn judge(offset: i64, bounds: &Range<i64>, is_confirmed: bool) -> Verdict {
    if offset < bounds.start {
        Verdict::Moved { next: bounds.start }
    } else if offset < bounds.end {
        Verdict::Read
    } else if offset == bounds.end {
        Verdict::AtEnd
    } else if is_confirmed {
        Verdict::Moved { next: bounds.end }
    } else {
        Verdict::Unclear
    }
}

/// A queue as a group sees it.
#[derive(Clone)]
pub(crate) struct Shown {
    pub queue: QueueId,
    /// Earlier offsets belong to an earlier life of the topic's name.
    first: QueueOffset,
    /// Where the group was moved, if it has not gone on from there.
    reset: Option<u64>,
    topic_sys_flag: i32,
    group_sys_flag: i32,
    may_broadcast: bool,
}

/// A request for messages that was let in: which queue, and what of it.
pub(crate) struct Wanted {
    pub shown: Shown,
    pub filter: Arc<Filter>,
    pub records_max: usize,
}

/// Units chosen for an answer.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Chosen {
    pub units: Vec<(QueueOffset, Unit)>,
    pub bytes: usize,
    /// Behind the last unit looked at.
    pub next: u64,
    scanned: usize,
    /// Of evaluating an expression.
    cost: usize,
    pub is_full: bool,
}

impl Chosen {
    fn from(offset: u64) -> Chosen {
        Chosen { next: offset, ..Chosen::default() }
    }

    /// Looks at units that begin at `self.next`, until the answer is full. Trimmed ones are passed over.
    fn look_at(&mut self, units: &[Unit], filter: &TagExpression, records_max: usize, min_physical: PhysicalOffset) {
        for unit in units {
            if self.is_full {
                return;
            }
            let is_wanted = unit.physical_offset >= min_physical && filter.matches_hash(unit.tag_hash);
            self.take(unit, is_wanted, records_max);
        }
    }

    /// The next unit, wanted or not, unless it no longer fits.
    fn take(&mut self, unit: &Unit, is_wanted: bool, records_max: usize) {
        if is_wanted {
            let size = unit.size as usize;
            if !self.units.is_empty() && self.bytes + size > ANSWER_BYTES {
                self.is_full = true;
                return;
            }
            self.units.push((QueueOffset(self.next), *unit));
            self.bytes += size;
        }
        self.next += 1;
        self.scanned += 1;
        self.is_full = self.units.len() >= records_max
            || self.scanned >= SCANNED_UNITS.max(records_max)
            || self.cost >= EVALUATION_COST;
    }
}

impl Wanted {
    /// The offsets that exist, as this topic's consumers see them.
    pub fn bounds(&self, queue: &Queue) -> Range<i64> {
        let Range { start, end } = queue.bounds();
        start.max(self.shown.first).min(end).0 as i64..end.0 as i64
    }

    /// Answers with what there is from `offset` on, or parks until something matches.
    async fn read_or_wait(
        &self,
        broker: &BrokerGroup,
        call: &Call,
        queue: &Queue,
        offset: u64,
        parked_until: Option<Duration>,
        mut was_parked: bool,
    ) -> Answer {
        let mut from = offset;
        loop {
            let chosen = self.choose(broker, queue, from).await?;
            if !chosen.units.is_empty() {
                let found = self.found(broker, call, queue, &chosen).await?;
                if let Some(found) = found {
                    return Ok(found);
                }
            }
            from = chosen.next;
            let at_end = from >= queue.bounds().end.0;
            // A first pass that matched nothing tells the client how far it looked. A parked request looks on by itself.
            if !at_end && was_parked && chosen.scanned > 0 {
                continue;
            }
            // Units that should be there and are not were trimmed meanwhile: the client's next pull learns where it is.
            let keeps_waiting = at_end
                && (was_parked || from == offset)
                && broker.within(parked_until, queue.grown_beyond(QueueOffset(from))).await;
            if !keeps_waiting {
                broker.rates.get_miss.add(1);
                let code =
                    if from > offset { ResponseCode::PULL_RETRY_IMMEDIATELY } else { ResponseCode::PULL_NOT_FOUND };
                return Ok(self.nothing(call, Some(queue), from as i64, code));
            }
            was_parked = true;
        }
    }

    /// Chooses units from `offset` on.
    pub async fn choose(&self, broker: &BrokerGroup, queue: &Queue, offset: u64) -> Result<Chosen, RequestError> {
        let mut chosen = Chosen::from(offset);
        let min_physical = broker.reader.min_physical();
        // Without a filter exactly those that are asked for; with one, some more than are likely to match.
        let piece = match &*self.filter {
            Filter::Tags(TagExpression::All) => self.records_max,
            Filter::Tags(TagExpression::AnyOf { .. }) | Filter::Sql(_) => self.records_max.max(128),
        };
        while !chosen.is_full {
            let at = QueueOffset(chosen.next);
            let units = match queue.units(at, piece) {
                Some(units) => units,
                None => queue.read_units(at, piece).await?,
            };
            if units.is_empty() {
                break;
            }
            match &*self.filter {
                Filter::Tags(tags) => chosen.look_at(&units, tags, self.records_max, min_physical),
                Filter::Sql(filter) => self.look_inside(broker, &units, filter, &mut chosen).await?,
            }
        }
        Ok(chosen)
    }

    /// Looks at units that begin at `chosen.next`, and into their records, until the answer is full.
    async fn look_inside(
        &self,
        broker: &BrokerGroup,
        units: &[Unit],
        filter: &SqlFilter,
        chosen: &mut Chosen,
    ) -> Result<(), RequestError> {
        for unit in units {
            if chosen.is_full {
                break;
            }
            let mut is_wanted = false;
            if let Some(record) = broker.record_of(unit).await? {
                let record = RecordView::parse(&record).map_err(|error| {
                    RequestError::Failed(format!("the record at {}: {error}", unit.physical_offset))
                })?;
                is_wanted = filter.matches(record.properties());
                chosen.cost += unit.size as usize + record.properties().len() * filter.parts();
            }
            chosen.take(unit, is_wanted, self.records_max);
            // An expression may take its time with each message; others have requests, too.
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    /// The answer with the chosen records; `None` if all of them were trimmed meanwhile.
    async fn found(
        &self,
        broker: &BrokerGroup,
        call: &Call,
        queue: &Queue,
        chosen: &Chosen,
    ) -> Result<Option<RemotingCommand>, RequestError> {
        let mut body = Body::for_records(chosen.units.iter().map(|(_, unit)| unit.size as usize));
        let mut count = 0;
        for (queue_offset, unit) in &chosen.units {
            let Some(record) = broker.record_of(unit).await? else { continue };
            body.append(record, *queue_offset, unit, broker.config.advertised_address, 0)?;
            count += 1;
        }
        if count == 0 {
            return Ok(None);
        }
        broker.rates.get_found.add(1);
        broker.rates.get_transferred.add(count);
        let header = self.header(Some(queue), chosen.next as i64);
        let mut answer = call.request.reply_with(ResponseCode::SUCCESS, &header);
        answer.body_pieces = body.pieces();
        broker.rates.get_bytes.add(answer.body_bytes() as u64);
        Ok(Some(answer))
    }

    fn nothing(&self, call: &Call, queue: Option<&Queue>, next: i64, code: ResponseCode) -> RemotingCommand {
        call.request.reply_with(code, &self.header(queue, next))
    }

    fn header(&self, queue: Option<&Queue>, next_begin_offset: i64) -> PullMessageResponse {
        let bounds = queue.map_or(0..0, |queue| self.bounds(queue));
        PullMessageResponse {
            suggest_which_broker_id: 0,
            next_begin_offset,
            min_offset: bounds.start,
            max_offset: bounds.end,
            offset_delta: None,
            topic_sys_flag: Some(self.shown.topic_sys_flag),
            group_sys_flag: Some(self.shown.group_sys_flag),
            forbidden_type: None,
        }
    }
}

/// The records of an answer.
pub(crate) struct Body {
    pieces: Vec<Bytes>,
    /// Copied, and not yet a piece.
    open: BytesMut,
}

impl Body {
    pub fn for_records(sizes: impl Iterator<Item = usize>) -> Body {
        let copied = sizes.map(|size| if size < LARGE_RECORD_BYTES { size } else { LARGEST_HEAD_BYTES });
        Body { pieces: Vec::new(), open: BytesMut::with_capacity(copied.sum()) }
    }

    /// Small records are copied; of a large one only the head is, and the rest is shared with all who read it.
    /// `redelivered`: how often the message was delivered before from where it lies.
    pub fn append(
        &mut self,
        record: Bytes,
        queue_offset: QueueOffset,
        unit: &Unit,
        store_host: SocketAddr,
        redelivered: i32,
    ) -> Result<(), RequestError> {
        let copied = match head_bytes(&record) {
            Some(head) if record.len() >= LARGE_RECORD_BYTES => head,
            _ => record.len(),
        };
        append_redelivered(&mut self.open, &record[..copied], queue_offset, unit, store_host, redelivered)?;
        if copied < record.len() {
            self.pieces.push(self.open.split().freeze());
            self.pieces.push(record.slice(copied..));
        }
        Ok(())
    }

    pub fn pieces(mut self) -> Vec<Bytes> {
        if !self.open.is_empty() {
            self.pieces.push(self.open.freeze());
        }
        self.pieces
    }
}

/// Appends a record, or its head, as consumers see it: with its place in the queue and in the log, the time it became
/// visible, and the replica that serves it; a half message that has a place in a queue as a committed one.
pub(crate) fn append_shown(
    body: &mut BytesMut,
    record: &[u8],
    queue_offset: QueueOffset,
    unit: &Unit,
    store_host: SocketAddr,
) -> Result<(), RequestError> {
    append_redelivered(body, record, queue_offset, unit, store_host, 0)
}

fn append_redelivered(
    body: &mut BytesMut,
    record: &[u8],
    queue_offset: QueueOffset,
    unit: &Unit,
    store_host: SocketAddr,
    redelivered: i32,
) -> Result<(), RequestError> {
    let start = body.len();
    body.extend_from_slice(record);
    let shown = &mut body[start..];
    let half = head_sys_flag(record).filter(|flag| flag.transaction() == TransactionType::Prepared);
    let mut patch = HeadPatch {
        sys_flag: half.map(|flag| flag.with_transaction(TransactionType::Commit)),
        prepared_transaction_offset: half.map(|_| unit.physical_offset.0 as i64),
        queue_offset: queue_offset.0 as i64,
        physical_offset: unit.physical_offset.0 as i64,
        store_timestamp: Some(unit.visible_at.0),
        store_host: Some(store_host),
        redelivered,
        ..HeadPatch::default()
    };
    let patched = patch.apply(shown).or_else(|_| {
        // Stored by a replica with an address of the other family: there is no room for this one's.
        patch.store_host = None;
        patch.apply(shown)
    });
    debug_assert!(head_bytes(record).is_some(), "what was stored is a record");
    patched.map_err(|error| RequestError::Failed(format!("the record at {}: {error}", unit.physical_offset)))
}

impl BrokerGroup {
    /// The record that a unit points at; `None` if it is trimmed.
    pub(crate) async fn record_of(&self, unit: &Unit) -> Result<Option<Bytes>, RequestError> {
        match self.reader.record(unit.physical_offset, unit.size).await {
            Ok(record) => Ok(Some(record)),
            Err(_) if unit.physical_offset < self.reader.min_physical() => Ok(None),
            Err(error) => {
                let physical_offset = unit.physical_offset;
                tracing::error!(group = %self.broker_name(), %physical_offset, %error, "a record cannot be read");
                Err(error.into())
            }
        }
    }

    /// Whether `event` happened before the monotonic time `until`; `None`: do not wait.
    async fn within(&self, until: Option<Duration>, event: impl Future<Output = ()>) -> bool {
        let Some(until) = until else { return false };
        let remaining = until.saturating_sub(self.env.clock.monotonic());
        self.env.clock.timeout(remaining, event).await.is_some()
    }

    /// Checks a pull in RocketMQ's order.
    async fn check_pull(&self, request: &PullMessageRequest) -> Result<Wanted, RequestError> {
        let (group, topic, queue) = (&request.consumer_group, &request.topic, request.queue_id);
        let shown = match self.shown_to(group, topic, queue, false) {
            // As in RocketMQ, a group comes into being by pulling too.
            Err(RequestError::NoGroup(_)) if self.leads() => {
                self.ensure_group(group).await?;
                self.shown_to(group, topic, queue, true)?
            }
            // The leader makes it when it hears of it; until then it is a group with default settings.
            Err(RequestError::NoGroup(_)) if self.config.messages.auto_create_groups => {
                self.shown_to(group, topic, queue, true)?
            }
            shown => shown?,
        };
        let filter = if PullSysFlag(request.sys_flag).has(PullSysFlag::SUBSCRIPTION) {
            let expression = request.subscription.as_deref().unwrap_or_default();
            let parsed = Filter::parse(request.expression_type.as_deref(), expression);
            Arc::new(parsed.map_err(BadFilter::in_pull)?)
        } else {
            self.subscription(request, shown.may_broadcast)?
        };
        filter.allowed(self.config.messages.sql_filters)?;
        let records_max = usize::try_from(request.max_msg_nums).unwrap_or(0).clamp(1, ANSWER_RECORDS);
        Ok(Wanted { shown, filter, records_max })
    }

    /// The queue, if the group may read it.
    pub(crate) fn shown_to(
        &self,
        group_name: &str,
        topic_name: &str,
        queue_id: i32,
        is_unknown_allowed: bool,
    ) -> Result<Shown, RequestError> {
        let forbidden = |whose: i32, remark: String| RequestError::Forbidden { remark, whose: Some(whose) };
        let tables = self.reader.tables();
        let group = tables.groups().get(group_name);
        if group.is_none() && !is_unknown_allowed {
            return Err(RequestError::NoGroup(group_name.to_owned()));
        }
        if group.is_some_and(|group| !group.consume_enabled) {
            return Err(forbidden(2, format!("subscription group no permission, {group_name}")));
        }
        let topic = tables.topics().get(topic_name).ok_or_else(|| RequestError::NoTopic(topic_name.to_owned()))?;
        if !Permission(topic.config.permission as i32).is_readable() {
            return Err(forbidden(3, format!("the topic[{topic_name}] pulling message is forbidden")));
        }
        let queue = u32::try_from(queue_id).ok().filter(|queue| *queue < topic.config.read_queues);
        let queue = queue.ok_or_else(|| {
            RequestError::InvalidParameter(format!(
                "queueId[{queue_id}] is illegal, topic:[{topic_name}] topicConfig.readQueueNums:[{}]",
                topic.config.read_queues
            ))
        })?;
        Ok(Shown {
            queue: QueueId { topic: topic.id(), queue },
            first: topic.first_shown(queue),
            reset: tables.offsets().reset_of(group_name, topic_name, queue),
            topic_sys_flag: topic.config.system_flag as i32,
            group_sys_flag: group.map_or(0, |group| group.system_flag),
            may_broadcast: group.is_none_or(|group| group.broadcast_enabled),
        })
    }

    /// What the group said in its heartbeats that it wants of the topic.
    fn subscription(&self, request: &PullMessageRequest, may_broadcast: bool) -> Result<Arc<Filter>, RequestError> {
        let clients = self.clients.lock();
        let unknown = |remark: &str| RequestError::NoSubscription(remark.to_owned());
        let group = clients
            .consumer_group(&request.consumer_group)
            .ok_or_else(|| unknown("the consumer's group info not exist"))?;
        if !may_broadcast && group.described.message_model == MessageModel::Broadcasting {
            let remark = format!("the consumer group[{}] can not consume by broadcast way", request.consumer_group);
            return Err(RequestError::Forbidden { remark, whose: Some(4) });
        }
        let subscription =
            group.subscriptions.get(&request.topic).ok_or_else(|| unknown("the consumer's subscription not exist"))?;
        if subscription.data.sub_version < request.sub_version {
            return Err(RequestError::SubscriptionNotLatest);
        }
        subscription.filter.clone().map_err(BadFilter::in_heartbeat)
    }
}

#[cfg(test)]
mod tests {
    use raft_store::consume_queue::UnitKind;
    use raft_store::position::Timestamp;

    use super::*;

    #[test]
    fn an_offset_is_judged_as_rocketmq_does_and_never_on_hearsay() {
        use Verdict::*;
        // (offset, first, next, confirmed) -> verdict
        let cases = [
            (0, 0..0, false, AtEnd),
            (0, 0..0, true, AtEnd),
            (5, 0..0, true, Moved { next: 0 }),
            (5, 0..0, false, Unclear),
            (-1, 0..0, false, Moved { next: 0 }),
            (-1, 3..9, false, Moved { next: 3 }),
            (2, 3..9, false, Moved { next: 3 }),
            (3, 3..9, false, Read),
            (8, 3..9, true, Read),
            (9, 3..9, false, AtEnd),
            (9, 3..9, true, AtEnd),
            (10, 3..9, true, Moved { next: 9 }),
            (10, 3..9, false, Unclear),
            (9, 9..9, false, AtEnd),
            (8, 9..9, false, Moved { next: 9 }),
        ];
        for (offset, bounds, confirmed, verdict) in cases {
            assert_eq!(judge(offset, &bounds, confirmed), verdict, "{offset} in {bounds:?}, confirmed: {confirmed}");
        }
    }

    fn unit(at: u64, size: u32, tag: &str) -> Unit {
        Unit {
            physical_offset: PhysicalOffset(at),
            size,
            tag_hash: protocol::tag::hash_code(tag),
            visible_at: Timestamp(1),
            kind: UnitKind::Plain,
        }
    }

    fn offsets(chosen: &Chosen) -> Vec<u64> {
        chosen.units.iter().map(|(offset, _)| offset.0).collect()
    }

    #[test]
    fn units_are_chosen_by_tag_count_and_bytes_and_the_first_one_always() {
        let units: Vec<Unit> = (0..6).map(|k| unit(100 + k, 100 * 1024, if k % 2 == 0 { "A" } else { "B" })).collect();
        let look = |filter: &str, records_max: usize, min_physical: u64| {
            let mut chosen = Chosen::from(40);
            let filter = TagExpression::parse(filter).expect("an expression");
            chosen.look_at(&units, &filter, records_max, PhysicalOffset(min_physical));
            chosen
        };
        let by_bytes = look("*", 32, 0);
        assert_eq!((offsets(&by_bytes), by_bytes.next, by_bytes.is_full), (vec![40, 41], 42, true));
        let by_count = look("*", 1, 0);
        assert_eq!((offsets(&by_count), by_count.next, by_count.is_full), (vec![40], 41, true));
        let by_tag = look("B", 32, 0);
        assert_eq!((offsets(&by_tag), by_tag.next), (vec![41, 43], 45));
        let none = look("C", 32, 0);
        assert_eq!((offsets(&none), none.next, none.is_full), (vec![], 46, false));
        let trimmed = look("*", 32, 105);
        assert_eq!((offsets(&trimmed), trimmed.next), (vec![45], 46));
        let mut one_large = Chosen::from(0);
        one_large.look_at(&[unit(0, 5 << 20, "A")], &TagExpression::All, 32, PhysicalOffset(0));
        assert_eq!(offsets(&one_large), [0]);
    }

    #[test]
    fn a_scan_that_matches_nothing_ends() {
        let units = vec![unit(0, 10, "A"); 2000];
        let mut chosen = Chosen::from(0);
        chosen.look_at(&units, &TagExpression::parse("B").expect("an expression"), 32, PhysicalOffset(0));
        assert_eq!((chosen.next, chosen.is_full), (SCANNED_UNITS as u64, true));
    }

    #[test]
    fn an_expensive_expression_looks_at_fewer_messages_and_at_one_always() {
        let mut chosen = Chosen { cost: EVALUATION_COST, ..Chosen::from(7) };
        chosen.take(&unit(0, 10, "A"), false, 32);
        assert_eq!((chosen.next, chosen.is_full), (8, true));
    }
}

//! Popping: POP_MESSAGE 200050, and what belongs to it: [`ack`] what consumers say of what they have, [`look`] requests that
//! take nothing, [`parking`] who waits, [`dead`] what becomes of messages that nobody could consume.
//!
//! The leader chooses messages as a pull does, and leases them with a command of the log; what a consumer gets is what that
//! command has got when it was applied.
//!
//! One pop of a group looks at a queue at a time, so that two do not choose the same; others take the queues that are free.
//! Nothing there and the client allows it: the request is parked, and looks again when a queue grows, a lease ends, or what
//! kept it from a queue is over. A parked request has taken nothing: whatever becomes of its leader or its connection, no
//! message waits for it.
//!
//! A message stays where it lies and is delivered again from there, with a higher count of deliveries: there are neither
//! checkpoints nor copies in a retry topic, so each `POP_CK` says that its message comes from the topic itself.

mod ack;
mod dead;
mod look;
mod parking;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use env::clock::Advances;
use futures::future::{BoxFuture, FutureExt};
use protocol::code::ResponseCode;
use protocol::command::RemotingCommand;
use protocol::header::{PopMessageRequest, PopMessageResponse};
use raft_store::consume_queue::{Queue, Unit};
use raft_store::group::Role;
use raft_store::position::QueueOffset;

pub use self::ack::{ack, batch_ack, change_invisible_time};
pub(crate) use self::dead::bury_in_office;
pub use self::look::{notification, peek, polling_info};
use self::parking::Parked;
pub(crate) use self::parking::Popping;
use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::filter::{BadFilter, Filter};
use crate::pull::{ANSWER_BYTES, Body, LONGEST_PARKING, Wanted};
use crate::tables::command::{Command, PopWish, Reply};
use crate::tables::offsets::OffsetKey;
use crate::tables::pops::{Order, Popped};

/// Messages in one answer.
const MESSAGES_MAX: i32 = 32;

/// The longest lease that can be asked for.
const LONGEST_LEASE_MS: i64 = 24 * 3600 * 1000;

/// A forwarded request is answered so long before the replica that sent it stops waiting.
const FORWARDED_MARGIN: Duration = Duration::from_millis(300);

/// `reviveQid` of an orderly pop; any other names nothing here.
const ORDERLY_REVIVE_QID: i32 = 999;

/// Begin at the end of the queue; else at its beginning.
const INIT_MODE_MAX: i32 = 1;

/// Handles POP_MESSAGE.
pub async fn pop(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: PopMessageRequest = call.request.header()?;
    let ask = broker.check_pop(&request).await?;
    let parked = broker.popping.park(&ask.group, &ask.topic);
    let until = broker.parked_until(call, request.poll_time);
    let nothing = |code| nothing(call, request.invisible_time, code);
    let mut advances = broker.env.clock.advances();
    loop {
        let mut bell = std::pin::pin!(parked.bell());
        // Registered before looking: what changes meanwhile is either seen or wakes us.
        bell.as_mut().enable();
        let is_last_look = broker.env.clock.monotonic() >= until;
        let mut events = match broker.look_for(&ask, &parked, is_last_look).await {
            // Leased or not, nobody has it: the client may always ask again.
            Err(RequestError::Unknown) => return Ok(nothing(ResponseCode::POLLING_TIMEOUT)),
            Err(error) => return Err(error),
            Ok(Look::Got(got)) => match broker.found(call, &ask, got).await? {
                Some(answer) => return Ok(answer),
                None => continue,
            },
            Ok(Look::Nothing(events)) => events,
        };
        if is_last_look {
            broker.rates.get_miss.add(1);
            return Ok(nothing(ResponseCode::POLLING_TIMEOUT));
        }
        if !parked.has_room() {
            return Ok(nothing(ResponseCode::POLLING_FULL));
        }
        if !broker.is_worth_a_look(&mut events, until, bell, &mut advances).await {
            return Ok(nothing(ResponseCode::POLLING_TIMEOUT));
        }
    }
}

/// Resolves with the first of them; never if there is none.
async fn any(events: Vec<BoxFuture<'static, ()>>) {
    if events.is_empty() {
        return std::future::pending().await;
    }
    futures::future::select_all(events).await;
}

fn nothing(call: &Call, invisible_time: i64, code: ResponseCode) -> RemotingCommand {
    // Java reads these whatever the code is.
    let header = PopMessageResponse {
        pop_time: Some(0),
        invisible_time: Some(invisible_time),
        revive_qid: Some(0),
        rest_num: 0,
        ..PopMessageResponse::default()
    };
    call.request.reply_with(code, &header)
}

/// A pop that was let in.
struct Ask {
    group: String,
    topic: String,
    queues: Vec<u32>,
    filter: Arc<Filter>,
    messages_max: usize,
    lease_ms: i64,
    begins_at_end: bool,
    is_orderly: bool,
    attempt: String,
}

impl Ask {
    fn key(&self, queue: u32) -> OffsetKey {
        OffsetKey { group: self.group.clone(), topic: self.topic.clone(), queue }
    }
}

/// What a look at the queues has found.
enum Look {
    Got(Got),
    Nothing(Events),
}

/// Messages that are leased to the asking client.
struct Got {
    pop_ms: i64,
    queues: Vec<(Popped, BTreeMap<u64, Unit>)>,
    /// New messages that are left in the queues looked at.
    rest: i64,
}

/// What is worth another look.
#[derive(Default)]
struct Events {
    growths: Vec<BoxFuture<'static, ()>>,
    next_end: Option<Duration>,
}

impl Events {
    fn ends_in(&mut self, ms: Option<i64>) {
        let end = ms.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0).max(1)));
        self.next_end = self.next_end.into_iter().chain(end).min();
    }

    fn grows_beyond(&mut self, queue: &Arc<Queue>, offset: u64) {
        let queue = Arc::clone(queue);
        self.growths.push(async move { queue.grown_beyond(QueueOffset(offset)).await }.boxed());
    }
}

/// What of a queue is worth a command.
enum Planned {
    Wish(Plan),
    /// Something that another consumer does must happen first.
    Blocked,
    Nothing,
}

/// A wish, with the units that it names.
struct Plan {
    wish: PopWish,
    units: BTreeMap<u64, Unit>,
    bytes: usize,
    /// New messages behind those.
    rest: i64,
    queue: Arc<Queue>,
}

/// How much more an answer may hold.
#[derive(Clone, Copy)]
struct Room {
    messages: usize,
    bytes: usize,
}

impl Room {
    fn is_none(self) -> bool {
        self.messages == 0 || self.bytes == 0
    }

    fn less(self, messages: usize, bytes: usize) -> Room {
        Room { messages: self.messages - messages, bytes: self.bytes.saturating_sub(bytes) }
    }
}

impl BrokerGroup {
    async fn check_pop(&self, request: &PopMessageRequest) -> Result<Ask, RequestError> {
        if !(1..=MESSAGES_MAX).contains(&request.max_msg_nums) {
            let remark = format!("maxMsgNums {} is not within 1..={MESSAGES_MAX}", request.max_msg_nums);
            return Err(RequestError::InvalidParameter(remark));
        }
        if !(1..=LONGEST_LEASE_MS).contains(&request.invisible_time) {
            let remark = format!("invisibleTime {} ms is not within 1..={LONGEST_LEASE_MS}", request.invisible_time);
            return Err(RequestError::InvalidParameter(remark));
        }
        let queues = self.poppable(&request.consumer_group, &request.topic, request.queue_id).await?;
        let filter = match request.exp.as_deref().unwrap_or_default() {
            "" => Filter::parse(None, "*"),
            expression => Filter::parse(request.exp_type.as_deref(), expression),
        };
        let filter = filter.map_err(BadFilter::in_pull)?;
        filter.allowed(self.config.messages.sql_filters)?;
        Ok(Ask {
            group: request.consumer_group.clone(),
            topic: request.topic.clone(),
            queues,
            filter: Arc::new(filter),
            messages_max: request.max_msg_nums as usize,
            lease_ms: request.invisible_time,
            begins_at_end: request.init_mode == INIT_MODE_MAX,
            is_orderly: request.order,
            attempt: request.attempt_id.clone().unwrap_or_default(),
        })
    }

    /// The queues that a request for one, or for all (below 0), means; the group is made if it has to be.
    async fn poppable(&self, group: &str, topic: &str, queue_id: i32) -> Result<Vec<u32>, RequestError> {
        self.ensure_group(group).await?;
        self.shown_to(group, topic, queue_id.max(0), false)?;
        if let Ok(queue) = u32::try_from(queue_id) {
            return Ok(vec![queue]);
        }
        let tables = self.reader.tables();
        let read_queues = tables.topics().get(topic).map_or(0, |topic| topic.config.read_queues);
        Ok((0..read_queues).collect())
    }

    /// When a request that finds nothing is answered: the replica that forwarded it has less patience than its client.
    fn parked_until(&self, call: &Call, poll_time_ms: i64) -> Duration {
        let wished = Duration::from_millis(u64::try_from(poll_time_ms).unwrap_or(0)).min(LONGEST_PARKING);
        let until = self.env.clock.monotonic() + wished;
        if call.is_forwarded { until.min(call.deadline.saturating_sub(FORWARDED_MARGIN)) } else { until }
    }

    /// Waits for one of the events, at most until the monotonic time `until`. Whether it is still this replica that knows.
    async fn is_worth_a_look(
        &self,
        events: &mut Events,
        until: Duration,
        bell: impl Future<Output = ()>,
        advances: &mut Advances,
    ) -> bool {
        let remaining = until.saturating_sub(self.env.clock.monotonic());
        let soonest = events.next_end.map_or(remaining, |end| end.min(remaining));
        let growths = std::mem::take(&mut events.growths);
        let mut role = self.role.clone();
        tokio::select! {
            biased;
            // Whoever leads next knows nothing of this request, and nothing is lost by asking there.
            _ = role.wait_for(|role| !matches!(role, Role::Leader { ready: true, .. })) => false,
            () = bell => true,
            () = any(growths) => true,
            // Leases may have ended.
            () = advances.next() => true,
            () = self.env.clock.sleep(soonest) => true,
        }
    }

    /// Leases what there is, or says what to wait for. At the last look, progress that took no message is recorded, too.
    async fn look_for(&self, ask: &Ask, parked: &Parked<'_>, is_last_look: bool) -> Result<Look, RequestError> {
        let (mut turns, mut plans, mut events) = (Vec::new(), Vec::new(), Events::default());
        let mut room = Room { messages: ask.messages_max, bytes: ANSWER_BYTES };
        // Whoever is kept from a queue from now on is told.
        parked.is_blocked(true);
        let (mut is_blocked, mut busy) = (false, Vec::new());
        let first = self.popping.next_turn(ask.queues.len());
        for queue in ask.queues[first..].iter().chain(&ask.queues[..first]) {
            if room.is_none() {
                break;
            }
            let Some(turn) = self.popping.try_turn(ask.key(*queue)) else {
                busy.push(*queue);
                continue;
            };
            match self.plan(ask, *queue, room, is_last_look, &mut events).await? {
                Planned::Wish(plan) => {
                    room = room.less(plan.units.len(), plan.bytes);
                    turns.push(turn);
                    plans.push(plan);
                }
                Planned::Blocked => is_blocked = true,
                Planned::Nothing => {}
            }
        }
        // Only who has found nothing waits for those who look elsewhere; they may leave something.
        for queue in busy {
            if !plans.is_empty() {
                break;
            }
            let turn = self.popping.turn(ask.key(queue)).await;
            match self.plan(ask, queue, room, is_last_look, &mut events).await? {
                Planned::Wish(plan) => {
                    turns.push(turn);
                    plans.push(plan);
                }
                Planned::Blocked => is_blocked = true,
                Planned::Nothing => {}
            }
        }
        if plans.is_empty() {
            parked.is_blocked(is_blocked);
            return Ok(Look::Nothing(events));
        }
        let command = Command::Pop {
            group: ask.group.clone(),
            topic: ask.topic.clone(),
            lease_ms: ask.lease_ms,
            is_orderly: ask.is_orderly,
            attempt: ask.attempt.clone(),
            queues: plans.iter().map(|plan| plan.wish.clone()).collect(),
        };
        let Reply::Popped { pop_ms, queues } = self.command(&command).await? else {
            unreachable!("a pop is answered with what it got")
        };
        drop(turns);
        if queues.iter().any(|popped| self.has_last_try(&ask.key(popped.queue), popped)) {
            // A dead letter, unless it is acknowledged: somebody must look when its time is over.
            self.scheduled.send_replace(());
        }
        let rest = plans.iter().map(|plan| plan.rest).sum();
        let queues = queues.into_iter().zip(plans).map(|(popped, plan)| (popped, plan.units)).collect();
        Ok(Look::Got(Got { pop_ms, queues, rest }))
    }

    fn has_last_try(&self, key: &OffsetKey, popped: &Popped) -> bool {
        let tables = self.reader.tables();
        popped.messages.iter().any(|(offset, _)| tables.pops().lease(key, *offset).is_some_and(|lease| lease.is_last))
    }

    /// What of a queue is worth a command: messages that come again first, as many new ones as there is room for.
    async fn plan(
        &self,
        ask: &Ask,
        queue_id: u32,
        room: Room,
        is_last_look: bool,
        events: &mut Events,
    ) -> Result<Planned, RequestError> {
        let key = ask.key(queue_id);
        let shown = self.shown_to(&ask.group, &ask.topic, queue_id as i32, true)?;
        let Some(queue) = self.reader.queue(shown.queue) else { return Ok(Planned::Nothing) };
        let mut wanted = Wanted { shown, filter: Arc::clone(&ask.filter), records_max: room.messages };
        let bounds = wanted.bounds(&queue);
        let (first, end) = (bounds.start as u64, bounds.end as u64);
        let now = self.now();
        let known = {
            let tables = self.reader.tables();
            let known = tables.pops().next(&key);
            known.or_else(|| tables.offsets().get(&key.group, &key.topic, key.queue))
        };
        let from = match known {
            Some(next) => next,
            None if ask.begins_at_end && !self.is_young(&key).await? => end,
            None => first,
        };
        let (again, new_max, is_new) = {
            let tables = self.reader.tables();
            let pops = tables.pops();
            // At the limit only those that are in flight are delivered again.
            let left = self.config.limits.popped_messages.saturating_sub(pops.in_flight(&key));
            let (again, new_max) = match ask.is_orderly {
                false => {
                    events.ends_in(pops.next_end_ms(&key, now));
                    (pops.ended(&key, now, room.messages), left)
                }
                true => match pops.order(&key, now, &ask.attempt) {
                    Order::Blocked => {
                        events.ends_in(pops.held_for_ms(&key, now));
                        return Ok(Planned::Blocked);
                    }
                    Order::Open(mut again) => {
                        let is_short = again.len() < room.messages;
                        again.truncate(room.messages);
                        (again, if is_short { left } else { 0 })
                    }
                },
            };
            (again, new_max, pops.next(&key).is_none())
        };

        let mut wish = PopWish { queue: queue_id, from, next: from, ..PopWish::default() };
        let (units, bytes) = (BTreeMap::new(), 0);
        let mut plan = Plan { wish: PopWish::default(), units, bytes, rest: 0, queue: Arc::clone(&queue) };
        let again_count = again.len();
        for offset in again {
            if plan.bytes >= room.bytes {
                break;
            }
            // A message that was given to the group once is given again, whatever the group selects by now.
            match self.unit_at(&queue, first, offset).await? {
                Some(unit) => {
                    plan.bytes += unit.size as usize;
                    plan.units.insert(offset, unit);
                    wish.wanted.push(offset);
                }
                None => wish.gone.push(offset),
            }
        }
        let mut is_full = false;
        let room = room.less(plan.units.len(), plan.bytes);
        let may_go_on = new_max > 0 && wish.wanted.len() + wish.gone.len() == again_count;
        if may_go_on && !room.is_none() {
            // What was trimmed is passed over; beyond the end no message is, whoever set the offset there.
            wanted.records_max = room.messages.min(new_max);
            let chosen = wanted.choose(self, &queue, from.clamp(first, end.max(first))).await?;
            wish.wanted.extend(chosen.units.iter().map(|(offset, _)| offset.0));
            plan.units.extend(chosen.units.iter().map(|(offset, unit)| (offset.0, *unit)));
            plan.bytes += chosen.bytes;
            wish.next = chosen.next;
            is_full = chosen.is_full;
        }
        let has_progress = wish.next != from && (is_full || is_last_look);
        if is_new || has_progress || !plan.units.is_empty() || !wish.gone.is_empty() {
            plan.rest = end.saturating_sub(wish.next) as i64;
            plan.wish = wish;
            return Ok(Planned::Wish(plan));
        }
        if !may_go_on {
            return Ok(Planned::Blocked);
        }
        events.grows_beyond(&queue, wish.next);
        Ok(Planned::Nothing)
    }

    /// The unit at an offset; `None` if its message is gone.
    async fn unit_at(&self, queue: &Queue, first: u64, offset: u64) -> Result<Option<Unit>, RequestError> {
        if offset < first {
            return Ok(None);
        }
        let units = match queue.units(QueueOffset(offset), 1) {
            Some(units) => units,
            None => queue.read_units(QueueOffset(offset), 1).await?,
        };
        let min_physical = self.reader.min_physical();
        Ok(units.first().copied().filter(|unit| unit.physical_offset >= min_physical))
    }

    /// The answer with the messages; `None` if there are none after all.
    async fn found(&self, call: &Call, ask: &Ask, got: Got) -> Result<Option<RemotingCommand>, RequestError> {
        let Some((infos, body)) = self.records(&got).await? else { return Ok(None) };
        let header = PopMessageResponse {
            pop_time: Some(got.pop_ms),
            invisible_time: Some(ask.lease_ms),
            revive_qid: Some(if ask.is_orderly { ORDERLY_REVIVE_QID } else { 0 }),
            rest_num: got.rest,
            start_offset_info: Some(infos.starts.join(";")),
            msg_offset_info: Some(infos.offsets.join(";")),
            order_count_info: (ask.is_orderly && !infos.counts.is_empty()).then(|| infos.counts.join(";")),
        };
        let mut answer = call.request.reply_with(ResponseCode::SUCCESS, &header);
        answer.body_pieces = body;
        self.rates.get_found.add(1);
        self.rates.get_transferred.add(infos.count);
        self.rates.get_bytes.add(answer.body_bytes() as u64);
        Ok(Some(answer))
    }

    /// The records, and what is to be said of them; `None` if there are none after all.
    async fn records(&self, got: &Got) -> Result<Option<(Infos, Vec<Bytes>)>, RequestError> {
        let sizes = got.queues.iter().flat_map(|(_, units)| units.values()).map(|unit| unit.size as usize);
        let mut body = Body::for_records(sizes);
        let mut infos = Infos::default();
        for (popped, units) in &got.queues {
            let mut offsets = Vec::new();
            for (offset, earlier) in &popped.messages {
                let Some(unit) = units.get(offset) else { continue };
                // Trimmed in this moment: its lease ends by itself.
                let Some(record) = self.record_of(unit).await? else { continue };
                let redelivered = i32::try_from(*earlier).unwrap_or(i32::MAX);
                let store_host = self.config.advertised_address;
                body.append(record, QueueOffset(*offset), unit, store_host, redelivered)?;
                offsets.push((*offset, *earlier));
            }
            infos.add(popped.queue, &offsets);
        }
        Ok((infos.count > 0).then(|| (infos, body.pieces())))
    }
}

/// What the header says of the messages in the body: each queue once, its offsets in the body's order.
#[derive(Debug, Default)]
struct Infos {
    starts: Vec<String>,
    offsets: Vec<String>,
    /// How often messages were delivered before.
    counts: Vec<String>,
    count: u64,
}

impl Infos {
    fn add(&mut self, queue: u32, messages: &[(u64, u32)]) {
        let Some((first, _)) = messages.first() else { return };
        // 0: from the topic itself, not from a retry topic.
        self.starts.push(format!("0 {queue} {first}"));
        let offsets: Vec<String> = messages.iter().map(|(offset, _)| offset.to_string()).collect();
        self.offsets.push(format!("0 {queue} {}", offsets.join(",")));
        let again = messages.iter().filter(|(_, earlier)| *earlier > 0);
        self.counts.extend(again.map(|(offset, earlier)| format!("0 qo{queue}%{offset} {earlier}")));
        self.count += messages.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_names_each_queue_once_and_each_message_in_the_body_s_order() {
        let mut infos = Infos::default();
        infos.add(3, &[(7, 2), (9, 0)]);
        infos.add(1, &[]);
        infos.add(0, &[(100, 0)]);
        assert_eq!(
            (infos.starts.join(";"), infos.offsets.join(";")),
            ("0 3 7;0 0 100".into(), "0 3 7,9;0 0 100".into())
        );
        assert_eq!((infos.counts, infos.count), (vec!["0 qo3%7 2".to_owned()], 3));
    }
}

//! Looking without taking: NOTIFICATION 200054, PEEK_MESSAGE 200052, POLLING_INFO 200055.
//!
//! Proxies ask whether a pop would get anything before they pop; tools look at what is there.

use std::sync::Arc;

use protocol::code::ResponseCode;
use protocol::header::{
    NotificationRequest, NotificationResponse, PeekMessageRequest, PollingInfoResponse, PopMessageRequest,
    PopMessageResponse,
};

use super::{Events, Got, MESSAGES_MAX, Planned, Room};
use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;
use crate::pull::ANSWER_BYTES;
use crate::tables::pops::Popped;

/// Handles NOTIFICATION: answered when there is something to pop, or with `hasMsg` false when its time is over.
pub async fn notification(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: NotificationRequest = call.request.header()?;
    let as_pop = PopMessageRequest {
        consumer_group: request.consumer_group,
        topic: request.topic,
        queue_id: request.queue_id,
        max_msg_nums: 1,
        invisible_time: 1,
        exp_type: request.exp_type,
        exp: request.exp,
        order: request.order,
        attempt_id: request.attempt_id,
        ..PopMessageRequest::default()
    };
    let ask = broker.check_pop(&as_pop).await?;
    let parked = broker.popping.park(&ask.group, &ask.topic);
    let until = broker.parked_until(call, request.poll_time);
    let answer = |has_msg, polling_full| {
        let header = NotificationResponse { has_msg, polling_full };
        Ok(call.request.reply_with(ResponseCode::SUCCESS, &header))
    };
    let mut advances = broker.env.clock.advances();
    loop {
        let mut bell = std::pin::pin!(parked.bell());
        bell.as_mut().enable();
        parked.is_blocked(true);
        let is_last_look = broker.env.clock.monotonic() >= until;
        let mut events = Events::default();
        for queue in &ask.queues {
            let room = Room { messages: 1, bytes: ANSWER_BYTES };
            if let Planned::Wish(plan) = broker.plan(&ask, *queue, room, false, &mut events).await? {
                if !plan.units.is_empty() {
                    return answer(true, false);
                }
                events.grows_beyond(&plan.queue, plan.wish.next);
            }
        }
        if is_last_look {
            return answer(false, false);
        }
        if !parked.has_room() {
            return answer(false, true);
        }
        if !broker.is_worth_a_look(&mut events, until, bell, &mut advances).await {
            return answer(false, false);
        }
    }
}

/// Handles PEEK_MESSAGE: what a pop would get now, which it leaves to the next one.
pub async fn peek(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: PeekMessageRequest = call.request.header()?;
    let as_pop = PopMessageRequest {
        consumer_group: request.consumer_group,
        topic: request.topic,
        queue_id: request.queue_id,
        max_msg_nums: request.max_msg_nums.unwrap_or(MESSAGES_MAX),
        invisible_time: 1,
        ..PopMessageRequest::default()
    };
    let ask = broker.check_pop(&as_pop).await?;
    let mut room = Room { messages: ask.messages_max, bytes: ANSWER_BYTES };
    let (mut queues, mut rest) = (Vec::new(), 0);
    for queue in &ask.queues {
        if room.is_none() {
            break;
        }
        let Planned::Wish(plan) = broker.plan(&ask, *queue, room, false, &mut Events::default()).await? else {
            continue;
        };
        room = room.less(plan.units.len(), plan.bytes);
        let key = ask.key(*queue);
        let tables = broker.reader.tables();
        let earlier = |offset: u64| tables.pops().lease(&key, offset).map_or(0, |lease| lease.deliveries);
        let messages = plan.wish.wanted.iter().map(|offset| (*offset, earlier(*offset))).collect();
        queues.push((Popped { queue: *queue, messages }, plan.units));
        rest += plan.rest;
    }
    let Some((_, body)) = broker.records(&Got { pop_ms: 0, queues, rest }).await? else {
        return Err(RequestError::Nothing);
    };
    let header = PopMessageResponse { rest_num: rest, ..PopMessageResponse::default() };
    let mut answer = call.request.reply_with(ResponseCode::SUCCESS, &header);
    answer.body_pieces = body;
    Ok(answer)
}

/// Handles POLLING_INFO: how many requests of the group wait for messages of the topic.
pub async fn polling_info(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let request: PeekMessageRequest = call.request.header()?;
    if broker.topic_id(&request.topic).is_none() {
        return Err(RequestError::NoTopic(request.topic));
    }
    let parked = broker.popping.parked(&request.consumer_group, &request.topic);
    let header = PollingInfoResponse { polling_num: i32::try_from(parked).unwrap_or(i32::MAX) };
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &header))
}

//! Orderly consumption: of each queue one message at a time, in order, by the client that holds the queue's lock. A
//! message that fails is tried again in place, and those behind it wait.
//!
//! The lock lives 60 s at the broker. This client renews it every 20 s and takes it for lost 30 s after it last asked
//! and got it, so that it stops before another client can begin.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::body::{LockBatchRequest, LockBatchResponse, MessageQueue};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;

use super::handler::When;
use super::owned_queue::{Ending, OwnedQueue};
use super::send_back;
use super::session::Session;
use crate::errors::RequestError;
use crate::message::ReceivedMessage;
use crate::network::Lane;

pub(crate) const RENEWAL_INTERVAL: Duration = Duration::from_secs(20);
const BELIEVED_FOR: Duration = Duration::from_secs(30);

/// Consumes a queue's messages until it ends. What runs then is finished first, if it does not take too long.
pub(crate) async fn consume(session: &Session, owned: &OwnedQueue) {
    while owned.ending().is_none() {
        match owned.start_next() {
            Some(message) => consume_one(session, owned, message).await,
            None => {
                let _ = owned.until_ended(owned.activity.notified()).await;
            }
        }
    }
}

async fn consume_one(session: &Session, owned: &OwnedQueue, message: Arc<ReceivedMessage>) {
    let clock = &session.client.0.env.clock;
    let offset = message.queue_offset();
    let mut attempts = 0;
    while owned.ending().is_none() {
        let Some(Ok(_slot)) = owned.until_ended(session.slots.acquire()).await else { return };
        if session.needs_locks() && !owned.is_locked(clock.elapsed()) {
            owned.end(Ending::LockLost);
            return;
        }
        let current = if attempts == 0 { message.clone() } else { Arc::new(message.after_attempts(attempts)) };
        let handled = tokio::select! {
            biased;
            handled = session.handle(current) => handled,
            () = session.patience_after_end(owned) => return,
        };
        owned.last_consume_ms.store(clock.wall_ms(), Ordering::Relaxed);
        let Err(retry) = handled else {
            owned.finish(offset);
            return;
        };
        if retry.when == When::NotBegun {
            owned.end(Ending::Shutdown);
            return;
        }
        attempts += 1;
        let (group, topic, reason) = (session.group(), message.topic(), retry.reason());
        tracing::debug!(group, topic, offset, attempts, reason, "a message failed; its queue waits");
        let most = session.settings.max_reconsume_times.unwrap_or(i32::MAX);
        let is_given_up = retry.when == When::Never || message.reconsume_times().saturating_add(attempts) > most;
        if is_given_up && session.is_broadcasting() {
            tracing::warn!(group, topic, offset, reason, "a broadcast message failed for good");
            owned.finish(offset);
            return;
        }
        if is_given_up {
            if owned.until_ended(send_back::give_up(session, &message, attempts)).await.is_some() {
                owned.finish(offset);
            }
            return;
        }
        let _ = owned.until_ended(clock.sleep(session.settings.orderly_pause)).await;
    }
}

/// Tries to get a queue's lock; whether it did.
pub(crate) async fn lock(session: &Session, owned: &OwnedQueue) -> Result<bool, RequestError> {
    let asked_at = session.client.0.env.clock.elapsed();
    let granted = ask(session, &owned.queue.topic, &owned.queue.broker_name, vec![(*owned.queue).clone()]).await?;
    let is_granted = granted.contains(&owned.queue);
    if is_granted {
        owned.set_locked_until(asked_at + BELIEVED_FOR);
    }
    Ok(is_granted)
}

/// Renews the locks of all queues; ends those whose lock another client has.
pub(crate) async fn renew(session: &Session) {
    let clock = &session.client.0.env.clock;
    let mut by_broker: BTreeMap<String, Vec<Arc<OwnedQueue>>> = BTreeMap::new();
    for owned in session.owned() {
        if owned.is_locked(clock.elapsed()) && owned.ending().is_none() {
            by_broker.entry(owned.queue.broker_name.clone()).or_default().push(owned);
        }
    }
    let renewals = by_broker.iter().map(|(broker_name, queues)| async move {
        let asked_at = clock.elapsed();
        let names = queues.iter().map(|owned| (*owned.queue).clone()).collect();
        match ask(session, &queues[0].queue.topic, broker_name, names).await {
            Ok(granted) => {
                for owned in queues {
                    if granted.contains(&owned.queue) {
                        owned.set_locked_until(asked_at + BELIEVED_FOR);
                    } else {
                        owned.end(Ending::LockLost);
                    }
                }
            }
            Err(error) => tracing::warn!(broker_name, %error, "queue locks could not be renewed"),
        }
    });
    futures::future::join_all(renewals).await;
}

async fn ask(
    session: &Session,
    topic: &str,
    broker_name: &str,
    queues: Vec<MessageQueue>,
) -> Result<Vec<MessageQueue>, RequestError> {
    let request = RemotingCommand::request(RequestCode::LOCK_BATCH_MQ).with_json(&body(session, queues));
    let response = session.client.ask_group(topic, broker_name, request).await?;
    let body: LockBatchResponse = response.json().map_err(|error| RequestError::Malformed(error.to_string()))?;
    Ok(body.lock_ok_mq_set)
}

/// Gives a queue's lock back. Best effort: it ends by itself.
pub(crate) async fn unlock(session: &Session, owned: &OwnedQueue) {
    let client = &session.client.0;
    let Ok(route) = client.routes.get(&owned.queue.topic).await else { return };
    let Some(broker) = route.broker(&owned.queue.broker_name) else { return };
    let body = body(session, vec![(*owned.queue).clone()]);
    let request = RemotingCommand::request(RequestCode::UNLOCK_BATCH_MQ).with_json(&body);
    let sent = client.network.one_way(&broker.members[0], Lane::First, request, client.request_timeout).await;
    if let Err(error) = sent {
        tracing::debug!(queue = ?owned.queue, %error, "a queue lock is left to end by itself");
    }
}

fn body(session: &Session, mq_set: Vec<MessageQueue>) -> LockBatchRequest {
    LockBatchRequest {
        client_id: session.client.client_id().unwrap_or_default().to_owned(),
        consumer_group: session.group().to_owned(),
        mq_set,
        only_this_broker: false,
    }
}

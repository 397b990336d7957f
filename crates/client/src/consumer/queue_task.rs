//! The life of one owned queue: find where to begin, pull and consume until it ends, store how far it came.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::code::ResponseCode;
use protocol::names;

use super::owned_queue::{Ending, OwnedQueue};
use super::session::{Offsets, Order, Session, StartFrom};
use super::{concurrent, orderly};
use crate::errors::RequestError;
use crate::pull::{LONG_POLL, Pull, Pulled};

/// Between attempts to find out where to begin, or to get the lock.
const PREPARE_PAUSE: Duration = Duration::from_secs(1);
/// Pauses after a pull that failed.
const FIRST_PULL_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PULL_PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn run(session: Arc<Session>, owned: Arc<OwnedQueue>) {
    if let Some(offset) = owned.until_ended(prepare(&session, &owned)).await {
        tracing::debug!(group = session.group(), queue = ?owned.queue, offset, "consuming");
        owned.begin_at(offset);
        match session.order {
            Order::Concurrent => {
                let give_back = async {
                    tokio::select! {
                        biased;
                        () = concurrent::give_back_failed(&session, &owned) => {}
                        () = session.patience_after_end(&owned) => {}
                    }
                };
                futures::join!(pull(&session, &owned), give_back);
            }
            Order::Orderly => {
                futures::join!(pull(&session, &owned), orderly::consume(&session, &owned));
            }
        }
    }
    conclude(&session, &owned).await;
}

/// Gets the lock, if one is needed, and the offset to begin at.
async fn prepare(session: &Session, owned: &OwnedQueue) -> i64 {
    let clock = &session.client.0.env.clock;
    loop {
        let prepared = async {
            if session.needs_locks() && !orderly::lock(session, owned).await? {
                return Ok(None);
            }
            first_offset(session, owned).await.map(Some)
        };
        match prepared.await {
            Ok(Some(offset)) => return offset,
            Ok(None) => tracing::debug!(queue = ?owned.queue, "another client has the queue's lock"),
            Err(error) => {
                tracing::warn!(group = session.group(), queue = ?owned.queue, %error, "a queue cannot be consumed yet");
            }
        }
        clock.sleep(PREPARE_PAUSE).await;
    }
}

async fn first_offset(session: &Session, owned: &OwnedQueue) -> Result<i64, RequestError> {
    let (client, queue) = (&session.client, &owned.queue);
    let is_retry = names::group_of_retry_topic(&queue.topic).is_some();
    let start_from = session.settings.start_from;
    let stored = match &session.offsets {
        Offsets::Local(offsets) => offsets.get(queue),
        Offsets::Broker => {
            // A new group on a young queue begins at its beginning, whatever it asks for by position: a producer may
            // have created the topic a moment before this consumer heard of it.
            let zero_if_young = is_retry || !matches!(start_from, StartFrom::Time(_));
            client.consumer_offset(session.group(), queue, zero_if_young).await?
        }
    };
    match (stored, start_from) {
        (Some(offset), _) => Ok(offset),
        (None, StartFrom::First) => client.min_offset(queue).await,
        (None, _) if is_retry => client.min_offset(queue).await,
        (None, StartFrom::Last) => client.max_offset(queue).await,
        (None, StartFrom::Time(time_ms)) => client.offset_at(queue, time_ms).await,
    }
}

/// Pulls until the queue ends.
async fn pull(session: &Session, owned: &Arc<OwnedQueue>) {
    let client = &session.client;
    let subscription = &session.subscriptions[&owned.queue.topic];
    let limits = &session.settings.cache;
    let (mut suggested_id, mut failures) = (0, 0);
    while owned.ending().is_none() {
        if owned.is_full(limits) {
            let _ = owned.until_ended(owned.room.notified()).await;
            continue;
        }
        let pull = Pull {
            group: session.group(),
            queue: &owned.queue,
            offset: owned.with_process(|process| process.next_pull()).expect("the queue has begun"),
            max_messages: session.settings.pull_messages,
            wait: LONG_POLL,
            subscription,
            suggested_id,
            failures,
        };
        owned.last_pull_ms.store(client.0.env.clock.wall_ms(), Ordering::Relaxed);
        let pulled = tokio::select! {
            biased;
            () = owned.ended() => return,
            pulled = pull.make(client) => pulled,
            // A pull parked at a leader that is cut off would wait for its time to run out.
            () = client.0.routes.leader_moved(&owned.queue) => continue,
        };
        match pulled {
            Ok(Pulled::Found { messages, next, suggested_id: suggested }) => {
                (suggested_id, failures) = (suggested, 0);
                let count = messages.len();
                let messages = messages.into_iter().map(Arc::new).collect();
                owned.with_process(|process| process.take_in(messages, next));
                match session.order {
                    Order::Concurrent => session.work.add(owned, count),
                    Order::Orderly => owned.activity.notify_one(),
                }
            }
            Ok(Pulled::Nothing { next, suggested_id: suggested }) => {
                (suggested_id, failures) = (suggested, 0);
                owned.with_process(|process| process.skip_to(next));
            }
            Ok(Pulled::OffsetMoved { to }) => {
                tracing::warn!(group = session.group(), queue = ?owned.queue, from = pull.offset, to, "offset outside the queue");
                owned.end(Ending::Reset(to));
            }
            Err(error) => {
                failures += 1;
                tracing::debug!(group = session.group(), queue = ?owned.queue, %error, failures, "a pull failed");
                let recover = recover(session, owned, &error, failures);
                let _ = owned.until_ended(recover).await;
            }
        }
    }
}

/// What there is to do before the next pull.
async fn recover(session: &Session, owned: &OwnedQueue, error: &RequestError, failures: u32) {
    let client = &session.client.0;
    if matches!(error.code(), Some(ResponseCode::SUBSCRIPTION_NOT_EXIST | ResponseCode::SUBSCRIPTION_NOT_LATEST)) {
        crate::membership::heartbeat(&session.client).await;
    }
    if let Err(error) = client.routes.refresh(&owned.queue.topic).await {
        tracing::debug!(topic = owned.queue.topic, %error, "no fresh route");
    }
    client.env.clock.sleep((FIRST_PULL_PAUSE * (1 << (failures - 1).min(8))).min(LONGEST_PULL_PAUSE)).await;
}

/// Stores the offset and gives the lock back.
async fn conclude(session: &Session, owned: &OwnedQueue) {
    let ending = owned.ending().expect("a queue is concluded once it has ended");
    let offset = match ending {
        Ending::Reset(offset) => Some(offset),
        Ending::Released | Ending::Shutdown => owned.progress(),
        Ending::LockLost => None,
    };
    tracing::debug!(group = session.group(), queue = ?owned.queue, ?ending, offset, "no longer consuming");
    if let Some(offset) = offset {
        // The next owner of a queue without a lock may have begun: what it has stored must not be overwritten, which a
        // one-way update does not do to another client's.
        let stored = match &session.offsets {
            Offsets::Local(offsets) => {
                offsets.set(&owned.queue, offset);
                offsets.flush().await.map_err(|error| error.to_string())
            }
            Offsets::Broker => {
                let (client, group) = (&session.client, session.group());
                let told = if ending == Ending::Released && session.order == Order::Concurrent {
                    client.tell_offset(group, &owned.queue, offset).await
                } else {
                    client.update_offset(group, &owned.queue, offset).await
                };
                told.map_err(|error| error.to_string())
            }
        };
        if let Err(error) = stored {
            tracing::warn!(group = session.group(), queue = ?owned.queue, offset, error, "offset not stored; messages will come again");
        }
    }
    if owned.was_locked() && ending != Ending::LockLost {
        orderly::unlock(session, owned).await;
    }
}

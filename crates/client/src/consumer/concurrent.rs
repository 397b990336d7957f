//! Concurrent consumption: workers take messages of all queues, in any order. A message that fails is given back to the
//! broker, and its queue's offset is held until that is acknowledged.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::handler::{Retry, When};
use super::owned_queue::{Ending, OwnedQueue};
use super::send_back;
use super::session::Session;

/// Messages of one queue on their way back at once.
const GIVING_BACK: usize = 64;

/// One worker: consumes until there will be no more work.
pub(crate) async fn work(session: Arc<Session>) {
    while let Some(owned) = session.work.next().await {
        let Some(message) = owned.start_next() else { continue };
        let offset = message.queue_offset();
        let limit = session.settings.consume_timeout;
        let handled = session.client.0.env.clock.timeout(limit, session.handle(message.clone())).await;
        owned.last_consume_ms.store(session.client.0.env.clock.wall_ms(), Ordering::Relaxed);
        match handled.unwrap_or_else(|| Err(Retry::later(format!("not done within {limit:?}")))) {
            Ok(()) => owned.finish(offset),
            Err(Retry { when: When::NotBegun, .. }) => owned.leave(offset),
            Err(retry) if session.is_broadcasting() => {
                let (group, topic, reason) = (session.group(), message.topic(), retry.reason());
                tracing::warn!(group, topic, offset, reason, "a broadcast message failed; there is no second try");
                owned.finish(offset);
            }
            Err(retry) => owned.fail(message, retry),
        }
    }
}

/// Gives back what fails in one queue, until the queue ends. At a shutdown, until its handlers are done and everything
/// has been given back.
pub(crate) async fn give_back_failed(session: &Session, owned: &OwnedQueue) {
    let mut on_the_way = FuturesUnordered::new();
    loop {
        for (message, retry) in owned.take_failed(GIVING_BACK - on_the_way.len()) {
            let (group, topic, offset) = (session.group(), message.topic(), message.queue_offset());
            tracing::debug!(group, topic, offset, reason = retry.reason(), "a message failed");
            on_the_way.push(async move {
                send_back::give_back(session, &message, retry.when).await;
                message.queue_offset()
            });
        }
        let ending = owned.ending();
        match ending {
            None => {}
            Some(Ending::Shutdown) if !(owned.is_quiet() && on_the_way.is_empty()) => {}
            Some(_) => return,
        }
        tokio::select! {
            biased;
            Some(offset) = on_the_way.next() => owned.finish(offset),
            () = owned.activity.notified() => {}
            () = owned.ended(), if ending.is_none() => {}
        }
    }
}

//! Deliveries: a push consumer turned round. The program takes messages when it wants them, and says of each what became
//! of it.
//!
//! Built on the consumer's handlers: one is called for each message, hands it to the stream, and waits for the program's
//! word. So retries, dead letters, locks, shutdown and the offset to store are the consumer's; the offset moves only behind
//! what is acknowledged or given back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use env::Clock;
use futures::{Stream, StreamExt};
use protocol::body::MessageQueue;
use tokio::sync::{mpsc, oneshot};

use crate::consumer::{Handler, PushConsumer, Retry};
use crate::message::ReceivedMessage;

/// The program's word on a message.
type Outcome = Result<(), Retry>;

/// The delivery is none any more: its time has run out, or its queue belongs to another consumer by now. The message comes
/// again, whatever is said about this delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the delivery has ended, and the message comes again: it took too long, or the consumer gave up its queue")]
pub struct Expired;

/// A message that waits for the program.
struct Offer {
    message: Arc<ReceivedMessage>,
    /// Tells the handler that the program has it.
    begun: oneshot::Sender<()>,
    outcome: oneshot::Sender<Outcome>,
}

/// The handler of a consumer whose messages are taken from a stream.
pub(crate) struct Offering {
    offers: mpsc::UnboundedSender<Offer>,
    clock: Clock,
    /// How long the program may take.
    limit: Duration,
}

impl Handler for Offering {
    async fn handle(&self, message: Arc<ReceivedMessage>) -> Outcome {
        let (begun, is_begun) = oneshot::channel();
        let (outcome, said) = oneshot::channel();
        let is_offered = self.offers.send(Offer { message, begun, outcome }).is_ok();
        if !is_offered || is_begun.await.is_err() {
            return Err(Retry::not_begun());
        }
        match self.clock.timeout(self.limit, said).await {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(Retry::later("dropped without an acknowledgement")),
            None => Err(Retry::later(format!("not done within {:?}", self.limit))),
        }
    }
}

/// The handler, and the stream's end of it.
pub(crate) fn offering(clock: &Clock, limit: Duration) -> (Offering, Offers) {
    // As many are in it as handlers may run at once.
    let (offers, taken) = mpsc::unbounded_channel();
    (Offering { offers, clock: clock.clone(), limit }, Offers(taken))
}

pub(crate) struct Offers(mpsc::UnboundedReceiver<Offer>);

/// The messages of a consumer group that come to this member; a [`Stream`] that does not end by itself. Made with
/// [`crate::PushConsumerBuilder::deliveries`].
///
/// As many deliveries are out at once as the consumer's `concurrency` says: a program that takes that many and
/// acknowledges none gets no more. Dropping the stream shuts the consumer down in the background; to know that its offsets
/// are stored, await [`Deliveries::shutdown`].
///
/// ```no_run
/// use std::time::Duration;
/// use client::{Client, StartFrom};
///
/// # async fn bill(_order: &[u8]) -> Result<(), std::io::Error> { Ok(()) }
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder().name_servers("127.0.0.1:9876").build()?;
/// let builder = client.push_consumer("billing").subscribe("Orders", "*").start_from(StartFrom::First);
/// let mut deliveries = builder.deliveries().await?;
/// for _ in 0..100 {
///     let delivery = deliveries.next().await;
///     match bill(delivery.message().body()).await {
///         Ok(()) => delivery.ack()?,
///         Err(_) if delivery.message().reconsume_times() > 5 => delivery.dead_letter("tried often enough")?,
///         Err(error) => delivery.retry_later(Duration::from_secs(30), error.to_string())?,
///     }
/// }
/// deliveries.shutdown().await;
/// # Ok(()) }
/// ```
pub struct Deliveries {
    consumer: PushConsumer,
    offers: Offers,
}

impl std::fmt::Debug for Deliveries {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Deliveries").field("consumer", &self.consumer).finish_non_exhaustive()
    }
}

impl Deliveries {
    pub(crate) fn new(consumer: PushConsumer, offers: Offers) -> Deliveries {
        Deliveries { consumer, offers }
    }

    /// The next message; waits until there is one. Cancel-safe: what it does not return stays where it is.
    pub async fn next(&mut self) -> Delivery {
        StreamExt::next(self).await.expect("the consumer, which offers messages, lives as long as its stream")
    }

    /// The consumer's group.
    pub fn group(&self) -> &str {
        self.consumer.group()
    }

    /// The queues it consumes now, without those of the group's retry topic.
    pub fn assigned(&self) -> Vec<MessageQueue> {
        self.consumer.assigned()
    }

    /// Stops pulling, waits a while for the deliveries that are out (`shutdown_timeout`), gives back what failed, stores the
    /// offsets and leaves the group. Messages that were not taken from the stream come to other members, or again.
    pub async fn shutdown(self) {
        self.consumer.stop();
        drop(self.offers);
        self.consumer.shutdown().await;
    }
}

impl Stream for Deliveries {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        loop {
            let Some(Offer { message, begun, outcome }) = std::task::ready!(self.offers.0.poll_recv(cx)) else {
                return Poll::Ready(None);
            };
            // Unless the consumer has given up the queue meanwhile.
            if begun.send(()).is_ok() {
                return Poll::Ready(Some(Delivery { message, outcome }));
            }
        }
    }
}

/// A message that the program has and has said nothing about yet. Dropped, it counts as failed: the message is given back to
/// the broker and comes again later.
///
/// What is said takes effect in the background: an acknowledged message's offset is stored a few seconds later, or at the
/// shutdown. If the process dies before, the message comes again.
#[derive(Debug)]
#[must_use = "a delivery that is dropped counts as failed"]
pub struct Delivery {
    message: Arc<ReceivedMessage>,
    outcome: oneshot::Sender<Outcome>,
}

impl Delivery {
    /// The message.
    pub fn message(&self) -> &Arc<ReceivedMessage> {
        &self.message
    }

    /// Done with it. On an error it comes again.
    pub fn ack(self) -> Result<(), Expired> {
        self.say(Ok(()))
    }

    /// It could not be consumed now: again after `delay`. With an orderly consumer: after its pause, before any other of its
    /// queue.
    pub fn retry_later(self, delay: Duration, reason: impl Into<String>) -> Result<(), Expired> {
        self.retry(Retry::after(delay, reason))
    }

    /// It will never be consumed: to the group's dead-letter queue.
    pub fn dead_letter(self, reason: impl Into<String>) -> Result<(), Expired> {
        self.retry(Retry::never(reason))
    }

    /// It could not be consumed; when it is to come again is said by the retry: a delay level, for example.
    pub fn retry(self, retry: Retry) -> Result<(), Expired> {
        self.say(Err(retry))
    }

    fn say(self, outcome: Outcome) -> Result<(), Expired> {
        self.outcome.send(outcome).map_err(|_| Expired)
    }
}

//! Handlers: what a program does with a message, and what it says about it afterwards.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::message::ReceivedMessage;

/// Consumes messages. Implemented for closures that take an `Arc<ReceivedMessage>` and return a future.
///
/// `Ok` means done with it. On `Err` the message comes again: to a concurrent consumer later and by way of the broker, to
/// an orderly one after a pause and before any other of its queue. A message may also come again after `Ok`: when the
/// consumer stops before it has stored its offset, or when queues change hands. A panic counts as `Err`.
pub trait Handler: Send + Sync + 'static {
    /// Consumes one message.
    fn handle(&self, message: Arc<ReceivedMessage>) -> impl Future<Output = Result<(), Retry>> + Send;
}

impl<F, Fut> Handler for F
where
    F: Fn(Arc<ReceivedMessage>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Retry>> + Send,
{
    fn handle(&self, message: Arc<ReceivedMessage>) -> impl Future<Output = Result<(), Retry>> + Send {
        self(message)
    }
}

/// [`Handler`] without its type.
pub(crate) trait AnyHandler: Send + Sync {
    fn handle(&self, message: Arc<ReceivedMessage>) -> BoxFuture<'_, Result<(), Retry>>;
}

impl<H: Handler> AnyHandler for H {
    fn handle(&self, message: Arc<ReceivedMessage>) -> BoxFuture<'_, Result<(), Retry>> {
        Box::pin(Handler::handle(self, message))
    }
}

/// A message could not be consumed. Made by `?` from any error, or by the functions here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    pub(crate) when: When,
    reason: String,
}

/// When a message is to come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Later,
    AtLevel(u8),
    After(Duration),
    Never,
    /// Nobody has tried: it stays where it is, as a message whose handler was never called.
    NotBegun,
}

impl Retry {
    /// Again later: a concurrent consumer gets it after 10 s, 30 s, 1 min and so on, an orderly one after its pause.
    pub fn later(reason: impl Into<String>) -> Retry {
        Retry { when: When::Later, reason: reason.into() }
    }

    /// Again after the broker's delay level (1 to 18); an orderly consumer takes its pause instead.
    pub fn at_level(level: u8, reason: impl Into<String>) -> Retry {
        Retry { when: When::AtLevel(level.max(1)), reason: reason.into() }
    }

    /// Again after `delay`, to the millisecond; an orderly consumer takes its pause instead. RocketMQ's own brokers know this
    /// from 5.0 on.
    pub fn after(delay: Duration, reason: impl Into<String>) -> Retry {
        Retry { when: When::After(delay), reason: reason.into() }
    }

    /// The consumer ended before anybody looked at the message.
    pub(crate) fn not_begun() -> Retry {
        Retry { when: When::NotBegun, reason: "the consumer ends".to_owned() }
    }

    /// Never again: the message goes to the group's dead-letter queue.
    pub fn never(reason: impl Into<String>) -> Retry {
        Retry { when: When::Never, reason: reason.into() }
    }

    /// What went wrong.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// Any error means later.
impl<E: std::error::Error> From<E> for Retry {
    fn from(error: E) -> Retry {
        Retry::later(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closures_are_handlers_and_errors_mean_later() {
        let handler = |message: Arc<ReceivedMessage>| async move {
            let text = std::str::from_utf8(message.body())?;
            let _: u32 = text.parse()?;
            Ok(())
        };
        let message = crate::consumer::process_queue::tests::message(5);
        let error = AnyHandler::handle(&handler, message).await.unwrap_err();
        assert_eq!((error.when, error.reason()), (When::Later, "invalid digit found in string"));
        assert_eq!(Retry::at_level(0, "x").when, When::AtLevel(1), "0 would leave the choice to the broker");
    }
}

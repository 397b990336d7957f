//! Consuming a message once although it comes twice: a handler that remembers what it has seen.
//!
//! What comes twice, and which other ways there are, is in `docs/idempotence.md`.

mod memory;
#[cfg(feature = "sled")]
mod sled;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use env::{Clock, Rng};

pub use self::memory::MemorySeenStore;
#[cfg(feature = "sled")]
pub use self::sled::SledSeenStore;
use crate::builder::Client;
use crate::consumer::{Handler, Retry};
use crate::message::ReceivedMessage;

/// Longer than any handler should take.
const DEFAULT_LEASE: Duration = Duration::from_secs(5 * 60);

/// Longer than all retries of a message take together, and as long as brokers keep one by default.
const DEFAULT_KEEP: Duration = Duration::from_secs(72 * 3600);

/// Attempts to note that a message is done.
const NOTE_ATTEMPTS: u32 = 3;
const NOTE_PAUSE: Duration = Duration::from_millis(100);

/// Why a [`SeenStore`] could not do it.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// The wish to work on a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Tells this claim from all others.
    pub token: u64,
    /// The claimant's clock, milliseconds since the epoch. A store with a clock of its own need not look at it.
    pub now_ms: i64,
    /// How long nobody else may work on the message, unless the claim is released.
    pub lease: Duration,
}

/// What a store knows of a message that is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nothing, or a claim whose lease has run out: it is the claimant's from now on.
    New,
    /// Somebody works on it, at most until then, ms since the epoch.
    InProgress {
        /// When the lease ends.
        until_ms: i64,
    },
    /// It was consumed.
    Done,
}

/// Remembers which messages were consumed. [`MemorySeenStore`] does it for one process's life, `SledSeenStore` (feature
/// `sled`) for one process and its successors; consumers on several machines need one that they share.
///
/// **Redis** (one instance, or a cluster that has not lost a write; a fail-over of Redis that loses one lets a message be
/// consumed twice):
///
/// ```text
/// claim     SET key token NX PX lease        OK: New.  Else GET key: "done" is Done, anything else InProgress (PTTL key)
/// done      SET key done PX keep
/// release   if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end      (EVAL: atomically)
/// ```
///
/// **SQL**, with a table `seen (key PRIMARY KEY, token, until_ms)` where the token of what is done is null:
///
/// ```text
/// claim     INSERT INTO seen VALUES (?key, ?token, ?now + ?lease)
///             ON CONFLICT (key) DO UPDATE SET token = ?token, until_ms = ?now + ?lease WHERE seen.until_ms <= ?now
///           one row changed: New.  Else SELECT token, until_ms: null is Done, anything else InProgress
/// done      INSERT INTO seen VALUES (?key, NULL, ?now + ?keep)
///             ON CONFLICT (key) DO UPDATE SET token = NULL, until_ms = ?now + ?keep
/// release   DELETE FROM seen WHERE key = ?key AND token = ?token
/// ```
///
/// If the work itself is a transaction of that database, insert the key in the same transaction instead, and have no
/// store: only that is exact.
pub trait SeenStore: Send + Sync + 'static {
    /// Claims a message, in one atomic step: of several claimants at once, one hears [`Seen::New`].
    fn claim(&self, key: &str, claim: Claim) -> impl Future<Output = Result<Seen, StoreError>> + Send;

    /// The message was consumed: whoever claims it during the next `keep` hears [`Seen::Done`]. Counts whoever has the claim
    /// by now. When this returns, a crash does not undo it.
    fn done(&self, key: &str, now_ms: i64, keep: Duration) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The message was not consumed: the claim ends, if it is still the one with this token.
    fn release(&self, key: &str, token: u64) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// A [`Handler`] in front of the program's own, which is called once for each message, as far as its store remembers.
///
/// ```no_run
/// use std::sync::Arc;
/// use client::{Client, IdempotentConsumer, MemorySeenStore, ReceivedMessage};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder().name_servers("127.0.0.1:9876").build()?;
/// let bill = |message: Arc<ReceivedMessage>| async move {
///     println!("{:?}", message.body());
///     Ok(())
/// };
/// let handler = IdempotentConsumer::new(&client, "billing", MemorySeenStore::new(1_000_000), bill)
///     .keyed_by(|message| message.keys().next().map(str::to_owned));   // the order's number
/// let consumer = client.push_consumer("billing").subscribe("Orders", "*").start(handler).await?;
/// # Ok(()) }
/// ```
///
/// **What it promises.** While the store remembers and answers, of all deliveries of one key one calls the handler at a
/// time, and none does after a call that returned `Ok` and was noted. A message that somebody works on comes again when his
/// lease is over; a store that does not answer makes a message come again later, and nobody consumes it unseen.
///
/// **When a message is consumed twice all the same:**
///
/// - The process dies, or the store fails, after the work and before it is noted. Work and note are two steps; only one
///   transaction of the program's own database makes them one.
/// - The handler takes longer than the lease. It is dropped then, at its next `await`; what it had begun elsewhere goes on.
/// - The note is older than [`IdempotentConsumer::keep_for`], or the store has lost it.
/// - The key is not the same: a producer that sends a message anew gives it a new unique key.
///
/// Every delivery that finds the message in progress counts as one of the group's tries.
pub struct IdempotentConsumer<S, H> {
    store: S,
    handler: H,
    scope: String,
    key: fn(&ReceivedMessage) -> Option<String>,
    lease: Duration,
    keep: Duration,
    clock: Clock,
    rng: Rng,
}

impl<S, H> std::fmt::Debug for IdempotentConsumer<S, H> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("IdempotentConsumer").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl<S: SeenStore, H: Handler> IdempotentConsumer<S, H> {
    /// Messages are known by their unique key. `scope` is what tells this use of the store from others: the consumer group,
    /// unless several groups are to share the work.
    pub fn new(client: &Client, scope: impl Into<String>, store: S, handler: H) -> IdempotentConsumer<S, H> {
        let env = &client.0.env;
        IdempotentConsumer {
            store,
            handler,
            scope: scope.into(),
            key: |message| message.unique_key().map(str::to_owned),
            lease: DEFAULT_LEASE,
            keep: DEFAULT_KEEP,
            clock: env.clock.clone(),
            rng: env.rng.fork(),
        }
    }

    /// What messages are known by, among those of their topic, instead of the unique key: the number of an order, so that an
    /// order sent twice is consumed once. A message without one (`None`) is consumed as often as it comes.
    #[must_use]
    pub fn keyed_by(mut self, key: fn(&ReceivedMessage) -> Option<String>) -> IdempotentConsumer<S, H> {
        self.key = key;
        self
    }

    /// How long the handler may take, and how long a message waits whose consumer died over it; 5 minutes by default.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> IdempotentConsumer<S, H> {
        self.lease = lease;
        self
    }

    /// How long it is remembered that a message was consumed; three days by default. Longer than its copies can come: all
    /// retries of a message take some five hours, and whoever resets a group's offset brings back what brokers have kept.
    #[must_use]
    pub fn keep_for(mut self, keep: Duration) -> IdempotentConsumer<S, H> {
        self.keep = keep;
        self
    }

    async fn note(&self, key: &str) {
        for attempt in 1..=NOTE_ATTEMPTS {
            match self.store.done(key, self.clock.wall_ms(), self.keep).await {
                Ok(()) => return,
                Err(error) if attempt == NOTE_ATTEMPTS => {
                    // It was consumed: another delivery would only consume it again.
                    tracing::error!(key, %error, "not noted that a message was consumed; a copy would be consumed again");
                }
                Err(_) => self.clock.sleep(NOTE_PAUSE * attempt).await,
            }
        }
    }
}

impl<S: SeenStore, H: Handler> Handler for IdempotentConsumer<S, H> {
    async fn handle(&self, message: Arc<ReceivedMessage>) -> Result<(), Retry> {
        let Some(key) = (self.key)(&message) else { return self.handler.handle(message).await };
        let key = format!("{}/{}/{key}", self.scope, message.topic());
        let begun = self.clock.elapsed();
        let claim = Claim { token: self.rng.u64(), now_ms: self.clock.wall_ms(), lease: self.lease };
        match self.store.claim(&key, claim).await {
            Ok(Seen::New) => {}
            Ok(Seen::Done) => return Ok(()),
            Ok(Seen::InProgress { until_ms }) => {
                let left = until_ms.saturating_sub(self.clock.wall_ms()).max(0).unsigned_abs();
                return Err(Retry::after(Duration::from_millis(left + 1), "another consumer works on it"));
            }
            Err(error) => return Err(Retry::later(format!("not known whether it was consumed: {error}"))),
        }
        let handled = tokio::select! {
            biased;
            handled = self.handler.handle(message) => handled,
            () = self.clock.until_elapsed(begun.saturating_add(self.lease)) => return Err(Retry::later(format!("not done within {:?}", self.lease))),
        };
        match &handled {
            Ok(()) => self.note(&key).await,
            Err(_) => {
                if let Err(error) = self.store.release(&key, claim.token).await {
                    tracing::warn!(key, %error, "a message that failed cannot be tried before its lease is over");
                }
            }
        }
        handled
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn claim(token: u64, now_ms: i64) -> Claim {
        Claim { token, now_ms, lease: MINUTE }
    }

    /// What every store must do.
    pub(crate) async fn keeps_its_word(store: &impl SeenStore) {
        let seen = async |key: &str, token, now_ms| store.claim(key, claim(token, now_ms)).await.expect("an answer");
        let release = async |key: &str, token| store.release(key, token).await.expect("it is released");
        assert_eq!(seen("a", 1, 0).await, Seen::New);
        assert_eq!(seen("a", 2, 59_999).await, Seen::InProgress { until_ms: 60_000 });
        assert_eq!(seen("b", 3, 0).await, Seen::New, "another message");
        assert_eq!(seen("a", 2, 60_000).await, Seen::New, "the lease is over");
        release("a", 1).await;
        assert_eq!(seen("a", 4, 60_000).await, Seen::InProgress { until_ms: 120_000 }, "it was another's");
        release("a", 2).await;
        release("never claimed", 9).await;
        assert_eq!(seen("a", 5, 60_000).await, Seen::New);
        store.done("a", 60_000, 10 * MINUTE).await.expect("noted");
        release("a", 5).await;
        assert_eq!(seen("a", 6, 659_999).await, Seen::Done, "what is done is not released");
        assert_eq!(seen("a", 7, 660_000).await, Seen::New, "forgotten");
        // The lease was over, and another one works on it: it was consumed all the same.
        store.done("b", 0, 10 * MINUTE).await.expect("noted");
        assert_eq!(seen("b", 8, 1).await, Seen::Done);
    }

    /// Of many claimants at once one is the first.
    pub(crate) async fn has_one_winner(store: Arc<impl SeenStore>) {
        let claims = (0..64).map(|token| {
            let store = store.clone();
            tokio::spawn(async move { store.claim("wanted", claim(token, 0)).await.expect("an answer") })
        });
        let answers = futures::future::join_all(claims).await;
        let winners = answers.iter().filter(|answer| matches!(answer, Ok(Seen::New))).count();
        assert_eq!(winners, 1);
    }
}

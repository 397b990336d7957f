//! What is delivered twice is consumed once, as long as somebody remembers; and when it is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::{
    Claim, Client, Handler, IdempotentConsumer, MemorySeenStore, Message, PushConsumer, ReceivedMessage, Retry, Seen,
    SeenStore, StartFrom, StoreError,
};
use embedded::Cluster;
use tokio::sync::Semaphore;

use super::time::{HOUR, SECOND, waiting};
use super::{client_of, send, until};

const LEASE: Duration = HOUR;

/// A store that outlives the consumers that use it, and counts how often it knew that a message was done.
#[derive(Clone)]
struct Shared {
    store: Arc<MemorySeenStore>,
    known: Arc<AtomicUsize>,
}

impl Shared {
    fn new() -> Shared {
        Shared { store: Arc::new(MemorySeenStore::new(1000)), known: Arc::default() }
    }

    fn known(&self) -> usize {
        self.known.load(Ordering::Relaxed)
    }
}

impl SeenStore for Shared {
    async fn claim(&self, key: &str, claim: Claim) -> Result<Seen, StoreError> {
        let seen = self.store.claim(key, claim).await?;
        self.known.fetch_add(usize::from(seen == Seen::Done), Ordering::Relaxed);
        Ok(seen)
    }

    async fn done(&self, key: &str, now_ms: i64, keep: Duration) -> Result<(), StoreError> {
        self.store.done(key, now_ms, keep).await
    }

    async fn release(&self, key: &str, token: u64) -> Result<(), StoreError> {
        self.store.release(key, token).await
    }
}

/// The work: it counts, and takes until it may end.
#[derive(Clone)]
struct Work {
    begun: Arc<AtomicUsize>,
    may_end: Arc<Semaphore>,
}

impl Work {
    /// That may end so often.
    fn new(ends: usize) -> Work {
        Work { begun: Arc::default(), may_end: Arc::new(Semaphore::new(ends)) }
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }
}

impl Handler for Work {
    async fn handle(&self, _message: Arc<ReceivedMessage>) -> Result<(), Retry> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.may_end.acquire().await.expect("it is open").forget();
        Ok(())
    }
}

async fn consume<S: SeenStore>(client: &Client, group: &str, handler: IdempotentConsumer<S, Work>) -> PushConsumer {
    let builder = client.push_consumer(group).subscribe("Twice", "*").start_from(StartFrom::First);
    builder.shutdown_timeout(Duration::from_secs(1)).start(handler).await.expect("a consumer")
}

/// The group forgets what it has consumed: as if its member had died before it stored its offsets.
async fn forget_offsets(cluster: &Cluster, group: &str) {
    let client = client_of(cluster);
    let mut consumer = client.pull_consumer(group).expect("a consumer");
    for queue in consumer.queues("Twice").await.expect("the queues") {
        until(cluster, "an offset is set", async || consumer.commit_offset(&queue, 0).await.ok()).await;
    }
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_again_after_a_crash_is_not_consumed_again_until_it_is_forgotten() {
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = client_of(&cluster);
    send(&client, Message::new("Twice", "body")).await;
    let (store, work) = (Shared::new(), Work::new(usize::MAX >> 3));
    let handler = || IdempotentConsumer::new(&client, "g", store.clone(), work.clone()).keep_for(24 * HOUR);
    let consumer = consume(&client, "g", handler()).await;
    until(&cluster, "it is consumed", async || (work.begun() == 1).then_some(())).await;
    consumer.shutdown().await;

    // The work was done and noted, and the acknowledgement was lost.
    forget_offsets(&cluster, "g").await;
    let consumer = consume(&client, "g", handler()).await;
    until(&cluster, "it comes again", async || (store.known() == 1).then_some(())).await;
    consumer.shutdown().await;
    assert_eq!(work.begun(), 1);

    // Longer after it than it is remembered.
    cluster.advance(24 * HOUR).await.expect("advanced");
    forget_offsets(&cluster, "g").await;
    let consumer = consume(&client, "g", handler()).await;
    until(&cluster, "it is consumed again", async || (work.begun() == 2).then_some(())).await;
    consumer.shutdown().await;
    assert_eq!(store.known(), 1);
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_the_work_and_the_note_lets_the_message_be_consumed_again_when_the_lease_is_over() {
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = client_of(&cluster);
    send(&client, Message::new("Twice", "body")).await;
    let (store, work) = (Shared::new(), Work::new(0));
    let handler = || IdempotentConsumer::new(&client, "g", store.clone(), work.clone()).lease(LEASE);
    let consumer = consume(&client, "g", handler()).await;
    until(&cluster, "the work is done", async || (work.begun() == 1).then_some(())).await;
    // Nobody waits for what it was going to say.
    consumer.shutdown().await;

    let consumer = consume(&client, "g", handler()).await;
    until(&cluster, "it waits for the lease", async || (waiting(&cluster).await == 1).then_some(())).await;
    assert_eq!(work.begun(), 1);
    cluster.advance(LEASE / 2).await.expect("advanced");
    assert_eq!((work.begun(), waiting(&cluster).await), (1, 1));
    work.may_end.add_permits(1);
    cluster.advance(LEASE / 2).await.expect("advanced");
    until(&cluster, "it is consumed again", async || (work.begun() == 2).then_some(())).await;
    until(&cluster, "it is done", async || (work.may_end.available_permits() == 0).then_some(())).await;
    consumer.shutdown().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_consumers_at_a_time_one_does_the_work_also_of_a_message_that_was_sent_twice() {
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = client_of(&cluster);
    // Two sends: they have nothing in common but the number of the order.
    for _ in 0..2 {
        send(&client, Message::new("Twice", "body").with_key("order-7")).await;
    }
    let (store, work) = (Shared::new(), Work::new(0));
    let handler = || {
        IdempotentConsumer::new(&client, "one work", store.clone(), work.clone())
            .keyed_by(|message| message.keys().next().map(str::to_owned))
            .lease(HOUR)
    };
    let consumers = [consume(&client, "g1", handler()).await, consume(&client, "g2", handler()).await];
    // Four deliveries: one works, three come again when its lease would be over.
    let three_wait = async || (waiting(&cluster).await == 3).then_some(());
    until(&cluster, "the others wait for the first", three_wait).await;
    assert_eq!(work.begun(), 1);
    work.may_end.add_permits(4);
    until(&cluster, "the first is done", async || (work.may_end.available_permits() == 3).then_some(())).await;
    cluster.advance(HOUR + SECOND).await.expect("advanced");
    until(&cluster, "the others find it done", async || (store.known() == 3).then_some(())).await;
    for consumer in consumers {
        consumer.shutdown().await;
    }
    assert_eq!(work.begun(), 1);
    client.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_consumes_unseen_and_nobody_works_longer_than_the_lease() {
    /// Answers nothing until it is healthy.
    #[derive(Clone)]
    struct Failing(Shared, Arc<AtomicUsize>);

    impl SeenStore for Failing {
        async fn claim(&self, key: &str, claim: Claim) -> Result<Seen, StoreError> {
            match self.1.fetch_add(1, Ordering::Relaxed) {
                0 => Err("no route to the store".into()),
                _ => self.0.claim(key, claim).await,
            }
        }

        async fn done(&self, key: &str, now_ms: i64, keep: Duration) -> Result<(), StoreError> {
            self.0.done(key, now_ms, keep).await
        }

        async fn release(&self, key: &str, token: u64) -> Result<(), StoreError> {
            self.0.release(key, token).await
        }
    }

    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = client_of(&cluster);
    send(&client, Message::new("Twice", "body")).await;
    let (store, work) = (Failing(Shared::new(), Arc::default()), Work::new(0));
    let handler = IdempotentConsumer::new(&client, "g", store, work.clone()).lease(LEASE);
    let consumer = consume(&client, "g", handler).await;
    until(&cluster, "it is given back", async || (waiting(&cluster).await == 1).then_some(())).await;
    assert_eq!(work.begun(), 0);
    cluster.advance(10 * SECOND).await.expect("advanced");
    until(&cluster, "the work is begun", async || (work.begun() == 1).then_some(())).await;
    // It is never done.
    cluster.clock().advance(LEASE);
    until(&cluster, "it is given back", async || (waiting(&cluster).await == 1).then_some(())).await;
    work.may_end.add_permits(1);
    cluster.advance(30 * SECOND).await.expect("advanced");
    until(&cluster, "it is done by another try", async || (work.may_end.available_permits() == 0).then_some(())).await;
    assert_eq!(work.begun(), 2);
    consumer.shutdown().await;
    client.shutdown().await;
    cluster.shutdown().await;
}

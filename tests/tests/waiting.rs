//! What delayed messages that wait cost, however many: memory of the broker, and the pace of sends beside them.
//!
//! `RAFTMQ_WAITING=1000000 cargo test --release -p tests --test waiting -- --nocapture` is the figure, and takes some
//! minutes and 5 GiB of disk; by default fewer wait, which together would still be seen if they stayed in memory. One test,
//! because the memory of its process is looked at: its client is in there, too, and costs the same before and after.

use std::time::Duration;

use client::{Message, Producer};
use embedded::Cluster;
use env::Env;
use tests::wait::until;

const TOPIC: &str = "Waiting";

/// Sends at a time.
const SENDERS: usize = 128;

/// Longest wait for memory to be given back: the keyed store does so a while after its last change.
const PATIENCE: Duration = Duration::from_secs(120);

/// Far more than may stay in memory of one that waits.
const BODY_BYTES: usize = 4096;

/// What one that waits may cost, and what they may cost together, however many: above all the keyed store's cache.
const BYTES_EACH: u64 = 512;
const BYTES_TOGETHER: u64 = 80 << 20;

/// How many wait; the variable is for the figure.
#[allow(clippy::disallowed_methods)] // What a test run is asked for, not what the product reads.
fn count() -> usize {
    std::env::var("RAFTMQ_WAITING").map_or(30_000, |count| count.parse().expect("RAFTMQ_WAITING is a number"))
}

/// Memory of this process that is not a file's, when what is free was given back, as a broker does that has nothing to do.
#[allow(clippy::disallowed_methods)] // Asks the kernel about the test's own process.
fn memory_bytes() -> u64 {
    env::memory::give_back();
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Sends so many; how many a second that were.
async fn send(producer: &Producer, count: usize, message: &Message) -> f64 {
    let clock = Env::real().clock;
    let began = clock.monotonic();
    let sending = (0..SENDERS).map(|sender| {
        let (producer, message) = (producer.clone(), message.clone());
        tokio::spawn(async move {
            for _ in (sender..count).step_by(SENDERS) {
                producer.send(message.clone()).await.expect("sent");
            }
        })
    });
    for sender in sending.collect::<Vec<_>>() {
        sender.await.expect("a sender");
    }
    count as f64 / (clock.monotonic() - began).as_secs_f64()
}

/// The best pace of a few attempts: what else the machine does only makes it slower.
async fn pace(producer: &Producer, message: &Message) -> f64 {
    let count = if cfg!(debug_assertions) { 2_000 } else { 20_000 };
    let mut best: f64 = 0.0;
    for _ in 0..5 {
        best = best.max(send(producer, count, message).await);
    }
    best
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_wait_cost_a_few_bytes_each_and_sends_beside_them_are_as_fast() {
    let count = count();
    let clock = Env::real().clock;
    let mut cluster = Cluster::builder().nodes(1).start().await.expect("a cluster of one");
    let client = cluster.client().build().expect("a client");
    let producer = client.producer("pg").timeout(Duration::from_secs(60)).start().expect("a producer");
    let waiting = |cluster: &Cluster| cluster.broker(0).expect("it lives").groups()[0].raft().reader().pending();

    // What is kept in memory of any messages is full before: the tail of the log above all.
    let warm = Message::new(TOPIC, vec![b'x'; 64 << 10]);
    send(&producer, 4_000, &warm).await;
    let plain = Message::new(TOPIC, vec![b'x'; 256]);
    let restart = async |cluster: &mut Cluster| {
        cluster.stop(0).await;
        let began = clock.monotonic();
        cluster.restart(0).await.expect("it starts again");
        cluster.leader().await.expect("it leads");
        (clock.monotonic() - began, memory_bytes())
    };
    let (_, started_with_none) = restart(&mut cluster).await;
    send(&producer, 4_000, &warm).await;
    let (pace_before, memory_before) = (pace(&producer, &plain).await, memory_bytes());

    let later = Message::new(TOPIC, vec![b'x'; BODY_BYTES]).with_delay(Duration::from_secs(48 * 3600));
    let pace_of_delayed = send(&producer, count, &later).await;
    assert_eq!(waiting(&cluster).scheduled, count as u64);
    let pace_after = pace(&producer, &plain).await;
    let allowed = count as u64 * BYTES_EACH + BYTES_TOGETHER;
    let mut grown = 0;
    until(PATIENCE, "no more memory is needed than those that wait may cost", async || {
        grown = memory_bytes().saturating_sub(memory_before);
        grown <= allowed
    })
    .await;
    let (restarted_in, started_with_all) = restart(&mut cluster).await;
    assert_eq!(waiting(&cluster).scheduled, count as u64, "none is lost");
    let held = started_with_all.saturating_sub(started_with_none);
    println!(
        "{count} of {BODY_BYTES} bytes wait, sent at {pace_of_delayed:.0} a second: memory grew from {} MiB by {} MiB; behind a \
         start, of {restarted_in:?}, from {} MiB by {} MiB, {} bytes each; sends at {pace_before:.0} a second before and \
         {pace_after:.0} with them, {:.2} of that",
        memory_before >> 20,
        grown >> 20,
        started_with_none >> 20,
        held >> 20,
        held / count as u64,
        pace_after / pace_before,
    );
    assert!(held <= allowed, "{held} bytes more behind a start");
    assert!(pace_after >= pace_before / 2.0, "{pace_after:.0} a second, {pace_before:.0} before");
    client.shutdown().await;
    cluster.shutdown().await;
}

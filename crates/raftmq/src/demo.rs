//! `raftmq demo`: three brokers in this process, their leader dropped half-way with no hand-over and no flush, and the
//! proof that nothing acknowledged is lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use client::{Client, Message, StartFrom};
use embedded::Cluster;
use env::Env;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// What to do.
#[derive(Args, Debug)]
pub struct Flags {
    /// Messages to send.
    #[arg(long, default_value_t = 20_000)]
    messages: u64,
    /// Size of each message's body.
    #[arg(long, default_value_t = 1024)]
    body_bytes: usize,
    /// Messages on their way at a time.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// What was seen.
#[derive(Debug, Serialize)]
struct Report {
    /// Unique ids that the producer got an acknowledgement for.
    acknowledged: u64,
    /// Of these, how many a second client has read back.
    read_back: u64,
    /// Acknowledged and not read back.
    lost: u64,
    /// Messages that stand in the queues more than once: a send was repeated whose first outcome was unknown.
    duplicates: u64,
    /// Sends that ended without an acknowledgement.
    failed: u64,
    /// Which broker was dropped.
    leader_dropped: usize,
    /// Which leads now.
    leader_now: usize,
    /// Longest time between two acknowledgements, as the client sees it.
    longest_gap_ms: u64,
    /// Acknowledgements a second over the whole run.
    messages_per_s: u64,
    /// Every acknowledgement was given after `fdatasync` on a majority.
    durability: &'static str,
}

const TOPIC: &str = "demo";
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs it. An error also if something acknowledged is lost.
pub async fn run(env: &Env, flags: &Flags) -> Result<(), String> {
    let report = prove(env, flags).await.map_err(|error| error.to_string())?;
    if flags.json {
        println!("{}", serde_json::to_string(&report).expect("plain values"));
    } else {
        print_table(&report);
    }
    if report.lost > 0 || report.acknowledged == 0 {
        return Err(format!(
            "{} of {} acknowledged messages were not read back; this must never happen: please report it",
            report.lost, report.acknowledged
        ));
    }
    Ok(())
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn prove(env: &Env, flags: &Flags) -> Result<Report, AnyError> {
    let mut cluster = Cluster::builder().env(env.clone()).start().await?;
    let client = cluster.client().build()?;
    let progress = progress(flags);
    let sent = send_and_strike(env, &mut cluster, &client, flags, &progress).await?;
    progress.set_message("reading back");
    let leader_now = cluster.leader().await?;
    let found = read_back(env, &cluster).await?;
    progress.finish_and_clear();
    client.shutdown().await;
    cluster.shutdown().await;

    let acknowledged = lock(&sent.acknowledged);
    let read_back = acknowledged.keys().filter(|key| found.contains_key(*key)).count() as u64;
    Ok(Report {
        acknowledged: acknowledged.len() as u64,
        read_back,
        lost: acknowledged.len() as u64 - read_back,
        duplicates: found.values().map(|times| times - 1).sum(),
        failed: sent.failed,
        leader_dropped: sent.leader_dropped + 1,
        leader_now: leader_now + 1,
        longest_gap_ms: sent.longest_gap.as_millis() as u64,
        messages_per_s: (acknowledged.len() as f64 / sent.elapsed.as_secs_f64()) as u64,
        durability: "fdatasync on a majority",
    })
}

struct Sent {
    /// Unique key to the moment of its acknowledgement.
    acknowledged: Arc<Mutex<BTreeMap<String, Duration>>>,
    failed: u64,
    leader_dropped: usize,
    longest_gap: Duration,
    elapsed: Duration,
}

/// Sends everything; when half is acknowledged the leader is dropped.
async fn send_and_strike(
    env: &Env,
    cluster: &mut Cluster,
    client: &Client,
    flags: &Flags,
    progress: &ProgressBar,
) -> Result<Sent, AnyError> {
    let producer = client.producer("demo-producer").timeout(Duration::from_secs(10)).start()?;
    let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
    let (next, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let half = Arc::new(tokio::sync::Notify::new());
    let started = env.clock.monotonic();
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..flags.in_flight.max(1) {
        let (producer, acknowledged, next, failed) =
            (producer.clone(), acknowledged.clone(), next.clone(), failed.clone());
        let (half, clock, progress) = (half.clone(), env.clock.clone(), progress.clone());
        let (messages, body) = (flags.messages, bytes::Bytes::from(vec![b'.'; flags.body_bytes]));
        senders.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < messages {
                match producer.send(Message::new(TOPIC, body.clone())).await {
                    Ok(receipt) => {
                        let mut acknowledged = lock(&acknowledged);
                        acknowledged.insert(receipt.unique_key, clock.monotonic());
                        progress.set_position(acknowledged.len() as u64);
                        if acknowledged.len() as u64 == messages / 2 {
                            half.notify_one();
                        }
                    }
                    Err(error) => {
                        tracing::info!(%error, "a send failed");
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            // Whoever comes last lets the run go on even if half was never reached.
            half.notify_one();
        });
    }
    progress.set_message("sending");
    half.notified().await;
    let leader_dropped = cluster.leader().await?;
    progress.set_message(format!("dropped the leader, broker {}", leader_dropped + 1));
    cluster.kill(leader_dropped).await;
    while let Some(ended) = senders.join_next().await {
        ended.expect("a sender does not panic");
    }
    let elapsed = env.clock.monotonic() - started;
    let mut moments: Vec<_> = lock(&acknowledged).values().copied().collect();
    moments.sort_unstable();
    let longest_gap = moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    Ok(Sent { acknowledged, failed: failed.load(Ordering::Relaxed), leader_dropped, longest_gap, elapsed })
}

/// Reads every queue with a client of its own; unique key to how often it stands there.
async fn read_back(env: &Env, cluster: &Cluster) -> Result<BTreeMap<String, u64>, AnyError> {
    let client = cluster.client().build()?;
    let mut consumer = client.pull_consumer("demo-reader")?;
    let queues = consumer.queues(TOPIC).await?;
    consumer.assign(&queues, StartFrom::First).await?;
    let mut ends = BTreeMap::new();
    for queue in &queues {
        ends.insert(queue.clone(), consumer.max_offset(queue).await?);
    }
    let mut found = BTreeMap::new();
    let deadline = env.clock.monotonic() + PATIENCE;
    while ends.iter().any(|(queue, end)| consumer.position(queue).is_none_or(|next| next < *end)) {
        for message in consumer.poll(Duration::from_secs(1)).await? {
            let key = message.unique_key().unwrap_or_default().to_owned();
            *found.entry(key).or_insert(0) += 1;
        }
        if env.clock.monotonic() > deadline {
            return Err(format!("the queues cannot be read to their ends {ends:?} within {PATIENCE:?}").into());
        }
    }
    client.shutdown().await;
    Ok(found)
}

/// A sender that panicked has ended the run anyway; what it held is whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn progress(flags: &Flags) -> ProgressBar {
    // Hidden by itself where standard error is no terminal.
    let progress = if flags.json { ProgressBar::hidden() } else { ProgressBar::new(flags.messages) };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}").expect("a well-formed template");
    progress.set_style(style);
    progress
}

fn print_table(report: &Report) {
    let rows = [
        ("acknowledged, unique ids", report.acknowledged.to_string()),
        ("read back by a second client", report.read_back.to_string()),
        ("lost", report.lost.to_string()),
        ("duplicates", report.duplicates.to_string()),
        ("sends that failed", report.failed.to_string()),
        ("leader dropped half-way", format!("broker {}", report.leader_dropped)),
        ("leader now", format!("broker {}", report.leader_now)),
        ("longest time between two acknowledgements", format!("{} ms", report.longest_gap_ms)),
        ("throughput", format!("{} messages/s", report.messages_per_s)),
        ("durability of each acknowledgement", report.durability.to_owned()),
    ];
    for (what, value) in rows {
        println!("{what:<44}{value:>26}");
    }
}

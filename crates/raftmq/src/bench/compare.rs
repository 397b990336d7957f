//! Plain, delayed and transactional messages, and others if asked for, in turn, on the same brokers in the same run: how many
//! a second of each, from their sends to the arrival of the last one at a consumer, and that all of them arrive, once.
//!
//! Closed loop: a fixed number on their way, each replaced as soon as it is acknowledged; a transaction is on its way until
//! its end is. The rates are those of what was consumed: of delayed messages, from when the first one was due.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::{Args, ValueEnum};
use client::{Client, Message, Producer, ReceivedMessage, StartFrom, TransactionState, TransactionalProducer};
use env::Env;
use serde::Serialize;
use tokio::task::JoinSet;

use super::{AnyError, Common, baseline, durability};

/// How to send.
#[derive(Args, Debug)]
pub struct Flags {
    #[command(flatten)]
    pub common: Common,
    /// How long a delayed message is delayed.
    #[arg(long, default_value_t = 2_000)]
    delay_ms: u64,
    /// What is compared with plain messages.
    #[arg(long, value_delimiter = ',', default_value = "delayed,transactional")]
    kinds: Vec<Kind>,
}

/// Nothing arrived for so long after the last one was due: nothing more will.
const LAST_ARRIVALS: Duration = Duration::from_secs(30);

/// Between two looks whether all have arrived.
const TICK: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// As they are sent by default.
    Plain,
    /// Not recognised when they are sent again: what idempotent send costs.
    NotIdempotent,
    /// Each with three keys of its own to be found by: what keys cost.
    Keyed,
    /// Delayed.
    Delayed,
    /// In a transaction of their own.
    Transactional,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Plain => "plain",
            Kind::NotIdempotent => "not-idempotent",
            Kind::Keyed => "keyed",
            Kind::Delayed => "delayed",
            Kind::Transactional => "transactional",
        }
    }
}

/// What came of one kind.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    kind: &'static str,
    acknowledged: u64,
    /// Of the acknowledged ones.
    missing: u64,
    /// Arrivals beyond the first.
    repeated: u64,
    errors: u64,
    acknowledged_per_s: f64,
    consumed_per_s: f64,
    /// Consumed a second, against plain messages.
    share: f64,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    durability: String,
    body_bytes: usize,
    in_flight: usize,
    seconds: u64,
    runs: usize,
    delay_ms: u64,
    baseline: baseline::Baseline,
    /// Of each kind the run with the median rate.
    kinds: Vec<Measured>,
}

/// Measures and prints. An error if a message is missing.
pub async fn run(env: &Env, flags: &Flags) -> Result<(), AnyError> {
    let common = &flags.common;
    let baseline = baseline::measure(env, &common.baseline_dir).await?;
    let others = flags.kinds.iter().copied().filter(|kind| *kind != Kind::Plain);
    let mut of_kinds: Vec<(Kind, Vec<Measured>)> =
        std::iter::once(Kind::Plain).chain(others).map(|kind| (kind, Vec::new())).collect();
    for run in 1..=common.runs.max(1) {
        for (kind, measured) in &mut of_kinds {
            if !common.json {
                eprintln!("bench compare: run {run} of {}, {}, {} s", common.runs.max(1), kind.name(), common.seconds);
            }
            measured.push(measure(env, flags, *kind).await?);
        }
    }
    let missing: u64 = of_kinds.iter().flat_map(|(_, measured)| measured).map(|measured| measured.missing).sum();
    let mut kinds: Vec<Measured> = of_kinds.into_iter().map(|(_, measured)| median(measured)).collect();
    let plain_per_s = kinds[0].consumed_per_s;
    kinds.iter_mut().for_each(|measured| measured.share = measured.consumed_per_s / plain_per_s);
    let report = Report {
        bench: "compare",
        durability: durability(env, common).await?,
        body_bytes: common.body_bytes,
        in_flight: common.in_flight,
        seconds: common.seconds,
        runs: common.runs.max(1),
        delay_ms: flags.delay_ms,
        baseline,
        kinds,
    };
    if common.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        report.print();
    }
    if missing > 0 { Err(format!("{missing} acknowledged messages have not arrived").into()) } else { Ok(()) }
}

fn median(mut runs: Vec<Measured>) -> Measured {
    runs.sort_by(|a, b| a.consumed_per_s.total_cmp(&b.consumed_per_s));
    runs.swap_remove(runs.len() / 2)
}

/// Who sends.
#[derive(Clone)]
enum Sender {
    Plain(Producer),
    Transactional(TransactionalProducer),
}

impl Sender {
    async fn send(&self, message: Message) -> Result<(), AnyError> {
        match self {
            Sender::Plain(producer) => drop(producer.send(message).await?),
            Sender::Transactional(producer) => producer.begin(message).await?.commit().await?,
        }
        Ok(())
    }
}

async fn measure(env: &Env, flags: &Flags, kind: Kind) -> Result<Measured, AnyError> {
    let Flags { common, delay_ms, .. } = flags;
    let (client, clock) = (common.client(env)?, env.clock.clone());
    // Nothing is in it before the consumer is there.
    let topic = format!("{}-{}-{:08x}", common.topic, kind.name(), env.rng.u64() as u32);
    let sender = sender(&client, kind).await?;
    let first = Message::new(topic.as_str(), 0_u64.to_be_bytes().to_vec());
    // Creates the topic.
    sender.send(first).await?;
    let arrivals = Arc::new(Arrivals::default());
    let (taking, at) = (arrivals.clone(), clock.clone());
    let consumer = client.push_consumer(format!("{topic}-group")).start_from(StartFrom::First).subscribe(&topic, "*");
    let take = move |message: Arc<ReceivedMessage>| {
        taking.take(message.body(), at.monotonic());
        std::future::ready(Ok(()))
    };
    let consumer = consumer.start(take).await?;
    arrivals.all_of(&clock, 1, LAST_ARRIVALS).await;

    let from = clock.monotonic();
    let until = from + Duration::from_secs(common.seconds);
    let delay = (kind == Kind::Delayed).then(|| Duration::from_millis(*delay_ms));
    let keys = 0..if kind == Kind::Keyed { 3 } else { 0 };
    let (next, errors) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(0)));
    let mut running = JoinSet::new();
    for _ in 0..common.in_flight {
        let (sender, clock, next, errors) = (sender.clone(), clock.clone(), next.clone(), errors.clone());
        let (topic, keys, bytes) = (topic.clone(), keys.clone(), common.body_bytes);
        running.spawn(async move {
            let mut acknowledged = Vec::new();
            while clock.monotonic() < until {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let mut body = vec![b'.'; bytes.max(8)];
                body[..8].copy_from_slice(&number.to_be_bytes());
                let message = Message::new(topic.as_str(), body);
                let message = keys.clone().fold(message, |message, key| message.with_key(&format!("{number}-{key}")));
                let message = delay.into_iter().fold(message, Message::with_delay);
                match sender.send(message).await {
                    Ok(()) => acknowledged.push(number),
                    Err(error) => {
                        tracing::warn!(%error, "a send failed");
                        errors.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            acknowledged
        });
    }
    let acknowledged: Vec<u64> = running.join_all().await.into_iter().flatten().collect();
    let sent = clock.monotonic();
    // The first one made the topic.
    let owed = 1 + acknowledged.len() as u64;
    arrivals.all_of(&clock, owed, delay.unwrap_or_default() + LAST_ARRIVALS).await;
    consumer.shutdown().await;
    client.shutdown().await;

    let seen = arrivals.seen();
    let missing = acknowledged.iter().filter(|number| !seen.counts.contains_key(number)).count() as u64;
    let consumed = acknowledged.len() as u64 - missing;
    let consuming = seen.last.saturating_sub(from + delay.unwrap_or_default());
    Ok(Measured {
        kind: kind.name(),
        acknowledged: acknowledged.len() as u64,
        missing,
        repeated: seen.counts.values().map(|count| u64::from(count - 1)).sum(),
        errors: errors.load(Ordering::Relaxed),
        acknowledged_per_s: acknowledged.len() as f64 / (sent - from).as_secs_f64(),
        consumed_per_s: consumed as f64 / consuming.as_secs_f64().max(f64::MIN_POSITIVE),
        share: 1.0,
    })
}

async fn sender(client: &Client, kind: Kind) -> Result<Sender, AnyError> {
    if kind != Kind::Transactional {
        let producer = client.producer("bench-compare").idempotent(kind != Kind::NotIdempotent);
        return Ok(Sender::Plain(producer.start()?));
    }
    // Whoever is asked has ended it already, or is about to.
    let checker = |_: Arc<ReceivedMessage>| std::future::ready(TransactionState::Unknown);
    Ok(Sender::Transactional(client.transactional_producer("bench-compare").start(checker).await?))
}

/// What the consumer has got.
#[derive(Default)]
struct Arrivals(Mutex<Seen>);

#[derive(Clone, Default)]
struct Seen {
    /// How often each number has come.
    counts: BTreeMap<u64, u32>,
    /// When the last new one came.
    last: Duration,
}

impl Arrivals {
    fn take(&self, body: &[u8], now: Duration) {
        let Some(number) = body.first_chunk() else { return };
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = seen.counts.entry(u64::from_be_bytes(*number)).or_insert(0);
        *count += 1;
        if *count == 1 {
            seen.last = now;
        }
    }

    fn seen(&self) -> Seen {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many have arrived, or none has for `patience`.
    async fn all_of(&self, clock: &env::Clock, owed: u64, patience: Duration) {
        let (mut count, mut since) = (0, clock.monotonic());
        while count < owed && clock.monotonic() < since + patience {
            clock.sleep(TICK).await;
            let now = self.0.lock().unwrap_or_else(PoisonError::into_inner).counts.len() as u64;
            if now > count {
                (count, since) = (now, clock.monotonic());
            }
        }
    }
}

impl Report {
    fn print(&self) {
        println!(
            "{:<16}{:>14}{:>14}{:>10}{:>10}{:>10}{:>10}",
            "", "acknowledged/s", "consumed/s", "missing", "repeated", "errors", "share"
        );
        for Measured { kind, acknowledged_per_s, consumed_per_s, missing, repeated, errors, share, .. } in &self.kinds {
            let share = format!("{:.0} %", share * 100.0);
            println!(
                "{kind:<16}{acknowledged_per_s:>14.0}{consumed_per_s:>14.0}{missing:>10}{repeated:>10}{errors:>10}{share:>10}"
            );
        }
        println!("durability                    {}", self.durability);
        println!("raw disk, 3 writers x 256 KiB + fdatasync   {:.1} MiB/s", self.baseline.three_writers_mib_per_s);
    }
}

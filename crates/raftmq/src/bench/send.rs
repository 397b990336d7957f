//! Closed loop: a fixed number of messages on their way, each replaced as soon as it is acknowledged. Or, with `--rate`, open
//! loop: messages leave at a fixed rate whatever becomes of those before them, and count from when they should have left.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use client::{Message, Producer};
use env::{Clock, Env};
use futures::stream::{FuturesUnordered, StreamExt};
use hdrhistogram::Histogram;

use super::open_loop::at_rate;
use super::{AnyError, Common, Measured, histogram};

/// How to send.
#[derive(Args, Debug)]
pub struct Flags {
    #[command(flatten)]
    pub common: Common,
    /// Messages a second, instead of as many as are acknowledged.
    #[arg(long, conflicts_with = "in_flight")]
    rate: Option<u64>,
}

/// Runs the load once.
pub async fn measure(env: &Env, flags: &Flags) -> Result<Measured, AnyError> {
    let common = &flags.common;
    let client = common.client(env)?;
    let producer = client.producer("bench-send").start()?;
    let body = Bytes::from(vec![b'.'; common.body_bytes]);
    // Also creates the topic, whose creation must not count.
    producer.send(Message::new(common.topic.as_str(), body.clone())).await?;
    let clock = env.clock.clone();
    let from = clock.monotonic() + Duration::from_secs(common.warm_up_seconds);
    let until = from + Duration::from_secs(common.seconds);
    if let Some(rate) = flags.rate {
        let measured = send_at(&clock, &producer, rate, from..until, Message::new(common.topic.as_str(), body)).await;
        client.shutdown().await;
        return Ok(measured);
    }
    let tasks = common.connections.clamp(1, common.in_flight);
    let errors = Arc::new(AtomicU64::new(0));
    let mut running = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let share = common.in_flight / tasks + usize::from(task < common.in_flight % tasks);
        let message = Message::new(common.topic.as_str(), body.clone());
        running.spawn(keep_in_flight(producer.clone(), clock.clone(), message, share, from, until, errors.clone()));
    }
    let mut latency = histogram();
    while let Some(ended) = running.join_next().await {
        latency.add(ended?)?;
    }
    client.shutdown().await;
    let messages_per_s = latency.len() as f64 / common.seconds as f64;
    Ok(Measured { messages_per_s, latency, errors: errors.load(Ordering::Relaxed) })
}

/// The latencies of those that were due in `window`, from when they were.
async fn send_at(clock: &Clock, producer: &Producer, rate: u64, window: Range<Duration>, message: Message) -> Measured {
    let (mut latency, mut errors) = (histogram(), 0);
    let send = |due: Duration| {
        let sending = producer.send(message.clone());
        async move { (due, sending.await.is_ok(), clock.monotonic()) }
    };
    at_rate(clock, rate, window.end, send, |(due, is_ok, now)| {
        errors += u64::from(!is_ok);
        if is_ok && window.contains(&due) {
            latency.saturating_record(now.saturating_sub(due).as_micros() as u64);
        }
    })
    .await;
    Measured { messages_per_s: latency.len() as f64 / (window.end - window.start).as_secs_f64(), latency, errors }
}

/// Keeps `share` messages on their way; the latencies of those acknowledged between `from` and `until`.
async fn keep_in_flight(
    producer: Producer,
    clock: Clock,
    message: Message,
    share: usize,
    from: Duration,
    until: Duration,
    errors: Arc<AtomicU64>,
) -> Histogram<u64> {
    let mut latency = histogram();
    let send = |message: Message| {
        let started = clock.monotonic();
        let producer = &producer;
        async move { (producer.send(message).await, started) }
    };
    let mut on_their_way: FuturesUnordered<_> = (0..share).map(|_| send(message.clone())).collect();
    while let Some((sent, started)) = on_their_way.next().await {
        let now = clock.monotonic();
        match sent {
            Ok(_) if now >= from && now < until => latency.saturating_record((now - started).as_micros() as u64),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a send failed");
                errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        if now < until {
            on_their_way.push(send(message.clone()));
        }
    }
    latency
}

//! Open loop: messages leave at a fixed rate whatever becomes of those before them, and a push consumer takes each as it
//! becomes visible. Measured from the moment a message should have been sent, so that a stall counts in full.
//!
//! Begins when the consumer has come to the end of what the topic held before: a new group may start at its beginning.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use client::{Message, ReceivedMessage, StartFrom};
use env::Env;
use hdrhistogram::Histogram;
use tokio::sync::Notify;

use super::open_loop::at_rate;
use super::{AnyError, Common, Measured, histogram};

/// How to send.
#[derive(Args, Debug)]
pub struct Flags {
    #[command(flatten)]
    pub common: Common,
    /// Messages a second.
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
}

/// Between two looks whether all have arrived.
const TICK: Duration = Duration::from_millis(1);

/// While the consumer has not come to the end of the topic, another message is sent this often.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// How long it may take to get there.
const CATCH_UP: Duration = Duration::from_secs(120);

/// A message on its way when the time is over may take this long.
const LAST_ARRIVALS: Duration = Duration::from_secs(5);

/// Runs the load once.
pub async fn measure(env: &Env, flags: &Flags) -> Result<Measured, AnyError> {
    let common = &flags.common;
    let clock = env.clock.clone();
    let client = common.client(env)?;
    let producer = client.producer("bench-e2e").start()?;
    let run = env.rng.u64();
    let message = |due: Duration| Message::new(common.topic.as_str(), stamped(due, run, common.body_bytes));

    let arrivals =
        Arc::new(Arrivals { run, latency: Mutex::new(histogram()), window: OnceLock::new(), is_there: Notify::new() });
    let (taking, at) = (arrivals.clone(), clock.clone());
    // Also creates the topic, which the consumer then finds.
    producer.send(message(clock.monotonic())).await?;
    let consumer = client
        .push_consumer(format!("bench-e2e-{run}"))
        .start_from(StartFrom::Last)
        .subscribe(&common.topic, "*")
        .start(move |message: Arc<ReceivedMessage>| {
            taking.take(message.body(), at.monotonic());
            std::future::ready(Ok(()))
        })
        .await?;
    let caught_up = async {
        loop {
            producer.send(message(clock.monotonic())).await?;
            if clock.timeout(PROBE_INTERVAL, arrivals.is_there.notified()).await.is_some() {
                return Ok::<_, AnyError>(());
            }
        }
    };
    match clock.timeout(CATCH_UP, caught_up).await {
        Some(caught_up) => caught_up?,
        None => {
            return Err(format!(
                "the consumer did not reach the end of {} within {CATCH_UP:?}; use a new --topic",
                common.topic
            )
            .into());
        }
    }
    let from = clock.monotonic() + Duration::from_secs(common.warm_up_seconds);
    let until = from + Duration::from_secs(common.seconds);
    arrivals.window.set(from..until).expect("set once");

    let (mut counted, mut errors) = (0_u64, 0_u64);
    let send = |moment: Duration| {
        let sending = producer.send(message(moment));
        async move { (moment, sending.await.is_ok()) }
    };
    at_rate(&clock, flags.rate, until, send, |(moment, is_ok)| {
        counted += u64::from(moment >= from && moment < until);
        errors += u64::from(!is_ok);
    })
    .await;
    let arrived = || arrivals.latency().len();
    let all = async {
        while arrived() + errors < counted {
            clock.sleep(TICK).await;
        }
    };
    if clock.timeout(LAST_ARRIVALS, all).await.is_none() {
        errors += counted.saturating_sub(arrived() + errors);
    }
    consumer.shutdown().await;
    client.shutdown().await;
    let latency = arrivals.latency().clone();
    Ok(Measured { messages_per_s: latency.len() as f64 / common.seconds as f64, latency, errors })
}

/// What the consumer has seen of this run.
struct Arrivals {
    run: u64,
    latency: Mutex<Histogram<u64>>,
    /// Messages that should have been sent in it count.
    window: OnceLock<Range<Duration>>,
    /// One has arrived.
    is_there: Notify,
}

impl Arrivals {
    fn take(&self, body: &[u8], now: Duration) {
        let Some((due, _)) = stamp_of(body).filter(|(_, run)| *run == self.run) else { return };
        match self.window.get() {
            Some(window) if window.contains(&due) => {
                self.latency().saturating_record(now.saturating_sub(due).as_micros() as u64);
            }
            Some(_) => {}
            None => self.is_there.notify_one(),
        }
    }

    fn latency(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that says when it is due, and in which run: a topic may hold those of others.
fn stamped(due: Duration, run: u64, bytes: usize) -> Bytes {
    let mut body = vec![b'.'; bytes.max(16)];
    body[..8].copy_from_slice(&(due.as_micros() as u64).to_be_bytes());
    body[8..16].copy_from_slice(&run.to_be_bytes());
    body.into()
}

fn stamp_of(body: &[u8]) -> Option<(Duration, u64)> {
    let (due, rest) = body.split_first_chunk()?;
    Some((Duration::from_micros(u64::from_be_bytes(*due)), u64::from_be_bytes(*rest.first_chunk()?)))
}

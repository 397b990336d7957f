//! Open loop: messages leave at a fixed rate whatever becomes of those before them, and a push consumer takes each as it
//! becomes visible. Measured from the moment a message should have been sent, so that a stall counts in full.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use client::{Message, ReceivedMessage, StartFrom};
use env::Env;
use futures::stream::{FuturesUnordered, StreamExt};

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

/// Messages that fall due together leave together, this often.
const TICK: Duration = Duration::from_millis(1);

/// A message on its way when the time is over may take this long.
const LAST_ARRIVALS: Duration = Duration::from_secs(5);

/// Runs the load once.
pub async fn measure(env: &Env, flags: &Flags) -> Result<Measured, AnyError> {
    let common = &flags.common;
    let clock = env.clock.clone();
    let client = common.client(env)?;
    let producer = client.producer("bench-e2e").start()?;
    producer.send(Message::new(common.topic.as_str(), stamped(0, common.body_bytes))).await?;

    let from = clock.monotonic() + Duration::from_secs(common.warm_up_seconds);
    let until = from + Duration::from_secs(common.seconds);
    let latency = Arc::new(Mutex::new(histogram()));
    let (arrivals, at) = (latency.clone(), clock.clone());
    let consumer = client
        .push_consumer(format!("bench-e2e-{}", env.rng.u64()))
        .start_from(StartFrom::Last)
        .subscribe(&common.topic, "*")
        .start(move |message: Arc<ReceivedMessage>| {
            let (arrivals, now) = (arrivals.clone(), at.monotonic());
            async move {
                let due = message.body().first_chunk().map_or(0, |stamp| u64::from_be_bytes(*stamp));
                let due = Duration::from_micros(due);
                if due >= from && due < until {
                    let took = now.saturating_sub(due).as_micros() as u64;
                    arrivals.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(took);
                }
                Ok(())
            }
        })
        .await?;

    let mut on_their_way = FuturesUnordered::new();
    let (mut sent, mut counted, mut errors) = (0_u64, 0_u64, 0_u64);
    let start = clock.monotonic();
    loop {
        let now = clock.monotonic();
        let due = ((now.min(until) - start).as_secs_f64() * flags.rate as f64) as u64;
        while sent < due {
            let moment = start + Duration::from_secs_f64(sent as f64 / flags.rate as f64);
            counted += u64::from(moment >= from && moment < until);
            let message = Message::new(common.topic.as_str(), stamped(moment.as_micros() as u64, common.body_bytes));
            on_their_way.push(producer.send(message));
            sent += 1;
        }
        if now >= until && on_their_way.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            Some(outcome) = on_their_way.next() => errors += u64::from(outcome.is_err()),
            () = clock.sleep(TICK), if now < until => {}
        }
    }
    let arrived = || latency.lock().unwrap_or_else(PoisonError::into_inner).len();
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
    let latency = latency.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Measured { messages_per_s: latency.len() as f64 / common.seconds as f64, latency, errors })
}

fn stamped(due_us: u64, bytes: usize) -> Bytes {
    let mut body = vec![b'.'; bytes.max(8)];
    body[..8].copy_from_slice(&due_us.to_be_bytes());
    body.into()
}

//! Reads what a topic holds, one pull loop a queue, as fast as it comes.

use std::time::Duration;

use clap::Args;
use client::StartFrom;
use env::Env;

use super::{AnyError, Common, Measured, histogram};

/// What to read.
#[derive(Args, Debug)]
pub struct Flags {
    #[command(flatten)]
    pub common: Common,
}

/// Reads every queue of the topic from its first offset to the end it had at the start, or until the time is over.
pub async fn measure(env: &Env, flags: &Flags) -> Result<Measured, AnyError> {
    let common = &flags.common;
    let client = common.client(env)?;
    let queues = client.pull_consumer("bench-consume")?.queues(&common.topic).await?;
    let started = env.clock.monotonic();
    let until = started + Duration::from_secs(common.seconds);
    let mut running = tokio::task::JoinSet::new();
    for queue in queues {
        let (client, clock) = (client.clone(), env.clock.clone());
        running.spawn(async move {
            let mut consumer = client.pull_consumer("bench-consume")?;
            consumer.assign(std::slice::from_ref(&queue), StartFrom::First).await?;
            let end = consumer.max_offset(&queue).await?;
            let (mut messages, mut latency) = (0, histogram());
            while consumer.position(&queue).is_none_or(|next| next < end) {
                let asked = clock.monotonic();
                messages += consumer.poll(Duration::from_secs(1)).await?.len() as u64;
                let now = clock.monotonic();
                latency.saturating_record((now - asked).as_micros() as u64);
                if now > until {
                    break;
                }
            }
            Ok::<_, AnyError>((messages, latency))
        });
    }
    let (mut messages, mut latency) = (0, histogram());
    while let Some(ended) = running.join_next().await {
        let (of_queue, latency_of_queue) = ended??;
        messages += of_queue;
        latency.add(latency_of_queue)?;
    }
    let elapsed = env.clock.monotonic() - started;
    client.shutdown().await;
    if messages == 0 {
        return Err(format!("topic {} holds nothing; fill it with `raftmq bench send`", common.topic).into());
    }
    Ok(Measured { messages_per_s: messages as f64 / elapsed.as_secs_f64(), latency, errors: 0 })
}

//! What the disk alone can do, measured just before a run: figures of a shared machine mean something only beside it.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use env::Env;
use env::disk::Open;
use hdrhistogram::Histogram;
use serde::Serialize;

/// The raw disk, without a line of the product.
#[derive(Clone, Debug, Serialize)]
pub struct Baseline {
    /// Three writers at once, each 256 KiB and `fdatasync` into blocks written before.
    pub three_writers_mib_per_s: f64,
    /// One writer, 4 KiB and `fdatasync`: median.
    pub small_sync_p50_us: u64,
    /// The same, 99th percentile.
    pub small_sync_p99_us: u64,
}

const WRITERS: usize = 3;
const LARGE: usize = 256 * 1024;
const SMALL: usize = 4 * 1024;
const FILE_BYTES: u64 = 64 * 1024 * 1024;
const LARGE_FOR: Duration = Duration::from_secs(3);
const SMALL_FOR: Duration = Duration::from_secs(1);

/// Measures in `dir`, which should be on the disk that the brokers use. Takes about five seconds.
pub async fn measure(env: &Env, dir: &Path) -> io::Result<Baseline> {
    let writers: Vec<_> = (0..WRITERS)
        .map(|k| {
            let (env, path) = (env.clone(), dir.join(format!("baseline-{k}")));
            let writer_env = env.clone();
            env.executor.run("baseline", async move { write_and_sync(&writer_env, &path, LARGE, LARGE_FOR).await })
        })
        .collect();
    let mut bytes_per_second = 0.0;
    for writer in writers {
        let written = writer.ended().await.ok_or_else(|| io::Error::other("a baseline writer died"))??;
        bytes_per_second += written.bytes_per_second;
    }
    let (small_env, path) = (env.clone(), dir.join("baseline-small"));
    let small = env
        .executor
        .run("baseline", async move { write_and_sync(&small_env, &path, SMALL, SMALL_FOR).await })
        .ended()
        .await
        .ok_or_else(|| io::Error::other("the baseline writer died"))??;
    Ok(Baseline {
        three_writers_mib_per_s: bytes_per_second / (1024.0 * 1024.0),
        small_sync_p50_us: small.latency_us.value_at_quantile(0.5),
        small_sync_p99_us: small.latency_us.value_at_quantile(0.99),
    })
}

struct Written {
    bytes_per_second: f64,
    latency_us: Histogram<u64>,
}

async fn write_and_sync(env: &Env, path: &Path, size: usize, duration: Duration) -> io::Result<Written> {
    let file = env.disk.open(path, Open::OrCreate).await?;
    let zeros = Bytes::from(vec![0; 1024 * 1024]);
    for at in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_at(at, std::slice::from_ref(&zeros)).await?;
    }
    file.sync_data().await?;
    let chunk = Bytes::from(vec![0x5A; size]);
    let mut latency_us = super::histogram();
    let start = env.clock.monotonic();
    let (mut at, mut written) = (0, 0);
    let elapsed = loop {
        let before = env.clock.monotonic();
        file.write_at(at, std::slice::from_ref(&chunk)).await?;
        file.sync_data().await?;
        let now = env.clock.monotonic();
        latency_us.saturating_record((now - before).as_micros() as u64);
        written += size as u64;
        at = (at + size as u64) % FILE_BYTES;
        if now - start >= duration {
            break now - start;
        }
    };
    drop(file);
    env.disk.remove_file(path).await?;
    Ok(Written { bytes_per_second: written as f64 / elapsed.as_secs_f64(), latency_us })
}

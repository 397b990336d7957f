//! `raftmq bench`: load and latency, beside what the disk alone could do just before.
//!
//! Latencies are microseconds as our client sees them over TCP. Figures of a shared machine drift: compare them with the
//! baseline of the same run, and repeat (`--runs`).

mod baseline;
mod compare;
mod consume;
mod e2e;
mod open_loop;
mod send;

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use client::Client;
use client::admin::Admin;
use env::Env;
use hdrhistogram::Histogram;
use serde::Serialize;

/// What to measure.
#[derive(Args, Debug)]
pub struct Flags {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Send as fast as the brokers acknowledge, or at a fixed rate.
    Send(send::Flags),
    /// Read what a topic holds, from its first offset, as fast as it comes.
    Consume(consume::Flags),
    /// Send at a fixed rate and consume at once: from the moment a message should have been sent to its arrival.
    E2e(e2e::Flags),
    /// Plain, delayed, transactional and other messages in turn, each sent and consumed to the last: how much the others cost.
    Compare(compare::Flags),
}

impl What {
    /// As the command line calls it.
    fn name(&self) -> &'static str {
        match self {
            What::Send(_) => "send",
            What::Consume(_) => "consume",
            What::E2e(_) => "e2e",
            What::Compare(_) => "compare",
        }
    }
}

/// What every measurement needs to know.
#[derive(Args, Debug, Clone)]
pub struct Common {
    /// NameServers, "host:port" separated by semicolons.
    #[arg(short = 'n', long = "namesrv", env = "NAMESRV_ADDR", default_value = "127.0.0.1:9876")]
    name_servers: String,
    /// Topic; created on demand.
    #[arg(short = 't', long, default_value = "bench")]
    topic: String,
    /// Size of a message's body.
    #[arg(long, default_value_t = 1024)]
    body_bytes: usize,
    /// Messages on their way at a time.
    #[arg(long, default_value_t = 1024)]
    in_flight: usize,
    /// TCP connections to each broker.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Measured time of a run.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Time before it that does not count.
    #[arg(long, default_value_t = 5)]
    warm_up_seconds: u64,
    /// Runs; of several the one with the median rate is shown.
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// Where the disk is measured: a directory on the brokers' disk.
    #[arg(long, default_value = ".")]
    baseline_dir: PathBuf,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Runs it.
pub async fn run(env: &Env, flags: &Flags) -> Result<(), String> {
    let name = flags.what.name();
    let ran = match &flags.what {
        What::Send(flags) => report(env, name, &flags.common, async || send::measure(env, flags).await).await,
        What::Consume(flags) => report(env, name, &flags.common, async || consume::measure(env, flags).await).await,
        What::E2e(flags) => report(env, name, &flags.common, async || e2e::measure(env, flags).await).await,
        What::Compare(flags) => compare::run(env, flags).await,
    };
    ran.map_err(|error| format!("bench {name}: {error}"))
}

/// Measures as often as is asked for, beside the raw disk, and prints the run with the median rate.
async fn report(
    env: &Env,
    name: &'static str,
    common: &Common,
    measure: impl AsyncFn() -> Result<Measured, AnyError>,
) -> Result<(), AnyError> {
    let baseline = baseline::measure(env, &common.baseline_dir).await?;
    let mut runs = Vec::new();
    for run in 1..=common.runs.max(1) {
        if !common.json {
            eprintln!("bench {name}: run {run} of {}, {} s", common.runs.max(1), common.seconds);
        }
        runs.push(measure().await?);
    }
    runs.sort_by(|a, b| a.messages_per_s.total_cmp(&b.messages_per_s));
    let median = runs.swap_remove(runs.len() / 2);
    // Asked behind the runs: a leader that has just taken office may not be known to the NameServers before.
    let durability = durability(env, common).await?;
    let report = Report::new(name, durability, common, &baseline, median);
    if common.json {
        println!("{}", serde_json::to_string(&report).expect("plain values"));
    } else {
        report.print();
    }
    Ok(())
}

impl Common {
    fn client(&self, env: &Env) -> Result<Client, AnyError> {
        let builder = Client::builder().env(env.clone()).name_servers(&self.name_servers);
        Ok(builder.connections_per_broker(self.connections).build()?)
    }
}

/// After what these brokers acknowledge, as they say.
async fn durability(env: &Env, common: &Common) -> Result<String, AnyError> {
    let servers = common.name_servers.split(';').map(str::to_owned).collect();
    let admin = Admin::new(env, servers);
    let mut said = BTreeSet::new();
    for broker in admin.cluster_info().await?.broker_addr_table.values() {
        if let Some(address) = broker.master_addr() {
            let config = admin.broker_config(address).await?;
            said.insert(config.get("flushDiskType").cloned().unwrap_or_default());
        }
    }
    admin.close().await;
    let said = said.iter().map(|mode| match mode.as_str() {
        "SYNC_FLUSH" => "SYNC_FLUSH: fdatasync on a majority".to_owned(),
        "ASYNC_FLUSH" => "ASYNC_FLUSH: written by a majority, flushed later".to_owned(),
        other => format!("{other:?}"),
    });
    Ok(said.collect::<Vec<_>>().join(", "))
}

/// One run.
struct Measured {
    messages_per_s: f64,
    /// Microseconds.
    latency: Histogram<u64>,
    errors: u64,
}

/// Up to ten minutes, in microseconds, with three digits; what takes longer counts as ten minutes.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(600_000_000, 3).expect("a range and a precision that are supported")
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    bench: &'static str,
    durability: String,
    body_bytes: usize,
    in_flight: usize,
    connections: usize,
    seconds: u64,
    runs: usize,
    messages_per_s: u64,
    mib_per_s: f64,
    errors: u64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    baseline: baseline::Baseline,
    /// Body bytes a second against the three raw writers' bytes.
    share_of_raw_bytes: f64,
    /// p50 against that of a raw 4 KiB write and `fdatasync`.
    p50_to_raw_sync: f64,
}

impl Report {
    fn new(
        bench: &'static str,
        durability: String,
        common: &Common,
        baseline: &baseline::Baseline,
        run: Measured,
    ) -> Report {
        let mib_per_s = run.messages_per_s * common.body_bytes as f64 / (1024.0 * 1024.0);
        let p50_us = run.latency.value_at_quantile(0.5);
        Report {
            bench,
            durability,
            body_bytes: common.body_bytes,
            in_flight: common.in_flight,
            connections: common.connections,
            seconds: common.seconds,
            runs: common.runs.max(1),
            messages_per_s: run.messages_per_s as u64,
            mib_per_s,
            errors: run.errors,
            p50_us,
            p99_us: run.latency.value_at_quantile(0.99),
            p999_us: run.latency.value_at_quantile(0.999),
            max_us: run.latency.max(),
            share_of_raw_bytes: mib_per_s / baseline.three_writers_mib_per_s,
            p50_to_raw_sync: p50_us as f64 / baseline.small_sync_p50_us as f64,
            baseline: baseline.clone(),
        }
    }

    fn print(&self) {
        let baseline = &self.baseline;
        let rows = [
            ("durability", self.durability.to_owned()),
            ("throughput", format!("{} messages/s, {:.1} MiB/s", self.messages_per_s, self.mib_per_s)),
            (
                "latency p50 / p99 / p99.9 / max",
                format!("{} / {} / {} / {} us", self.p50_us, self.p99_us, self.p999_us, self.max_us),
            ),
            ("errors", self.errors.to_string()),
            ("raw disk, 3 writers x 256 KiB + fdatasync", format!("{:.1} MiB/s", baseline.three_writers_mib_per_s)),
            (
                "raw disk, 4 KiB + fdatasync p50 / p99",
                format!("{} / {} us", baseline.small_sync_p50_us, baseline.small_sync_p99_us),
            ),
            ("share of the raw disk's bytes", format!("{:.1} %", self.share_of_raw_bytes * 100.0)),
            ("p50 against a raw 4 KiB + fdatasync", format!("{:.1} x", self.p50_to_raw_sync)),
        ];
        for (what, value) in rows {
            println!("{what:<44}{value}");
        }
    }
}

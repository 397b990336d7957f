//! One store under load, its process killed or its disk's power cut again and again.
//!
//! The process appends entries whose bytes follow from their index, and now and then raises its vote; it prints each
//! acknowledgement as the store gives it. After each fault the store is opened here and must hold: every acknowledged
//! entry with its bytes, no gap, nothing that was never written, and a vote not below the acknowledged one.

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use env::{Env, Rng};
use raft_store::log::{AppendEntry, Kind, Log, LogOptions, Vote};
use raft_store::position::LogId;
use tokio::sync::Semaphore;

use crate::cluster::KILLED;
use crate::disk::Disk;

/// What strikes the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// SIGKILL of the process: the page cache survives.
    Kill,
    /// Power failure: what was not synced is gone.
    PowerLoss,
}

/// What a run has seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    cycles: u32,
    acknowledged: u64,
    votes: u64,
    /// Entries found that were written but not acknowledged in time: allowed.
    beyond: u64,
    slowest_open: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} faults, {} entries and {} votes acknowledged, 0 lost; {} entries survived without an acknowledgement; slowest recovery {:?}",
            self.cycles, self.acknowledged, self.votes, self.beyond, self.slowest_open
        )
    }
}

const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
const IN_FLIGHT: usize = 64;

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES,
        prepare_piece_bytes: 1024 * 1024,
        tail_bytes: 8 * 1024 * 1024,
        max_entry_bytes: 1024 * 1024,
        ..LogOptions::default()
    }
}

/// The bytes of entry `index`: they follow from the index, so that whoever reads them back can tell.
fn body(index: u64) -> Bytes {
    let rng = Rng::seeded(index);
    let mut bytes = vec![0; rng.below(4096) as usize];
    rng.fill(&mut bytes);
    bytes.into()
}

/// Runs the process that is struck: appends until it dies.
pub fn writer(dir: &Path, seed: u64) -> io::Result<()> {
    runtime()?.block_on(async {
        let env = Env::real();
        let log = Log::open(env.clone(), dir.to_owned(), options(), None).await.map_err(io::Error::other)?;
        let rng = Rng::seeded(seed);
        let mut term = log.vote().map_or(1, |vote| vote.term);
        let mut next = log.last().map_or(0, |last| last.index + 1);
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
        loop {
            if rng.chance(1, 200) {
                term += 1;
                log.save_vote(Vote { term, node_id: Some(1), committed: true }).await?;
                acknowledge(format_args!("vote {term}"))?;
            }
            let permit = in_flight.clone().acquire_owned().await.expect("never closed");
            let batch: Vec<_> = (0..1 + rng.below(8)).map(|k| entry(term, next + k)).collect();
            let last = next + batch.len() as u64 - 1;
            next = last + 1;
            let done = Box::new(move |durable: io::Result<()>| {
                if durable.is_ok() {
                    acknowledge(format_args!("entry {last}")).expect("the parent reads until we are dead");
                }
                drop(permit);
            });
            log.append(batch, done).map_err(io::Error::other)?;
        }
    })
}

fn entry(term: u64, index: u64) -> AppendEntry {
    let body = body(index);
    let body_crc = crc32c::crc32c(&body);
    AppendEntry { id: LogId { term, index }, kind: Kind::Entry, body, body_crc, carried_chain: None }
}

/// One write of one line, so that a kill cannot leave half of it.
fn acknowledge(what: fmt::Arguments<'_>) -> io::Result<()> {
    io::stdout().lock().write_all(format!("{what}\n").as_bytes())
}

/// Strikes a store `cycles` times. An error names what was lost and the seed.
pub fn run(fault: Fault, cycles: u32, seed: u64, dir: Option<PathBuf>) -> io::Result<Report> {
    let temporary = tempfile::Builder::new().prefix("store-").tempdir()?;
    let root = dir.unwrap_or_else(|| temporary.path().to_owned());
    fs::create_dir_all(&root)?;
    let disk = match fault {
        Fault::Kill => None,
        Fault::PowerLoss => Some(Disk::create(&root, "disk", 4096)?),
    };
    let store = disk.as_ref().map_or(root.as_path(), Disk::mount_point).join("store");
    let rng = Rng::seeded(seed);
    let mut report = Report::default();
    let (mut entries, mut vote) = (None, 0);
    for cycle in 0..cycles {
        strike(&store, disk.as_ref(), &rng, &mut report, &mut entries, &mut vote)?;
        check(&store, &mut report, &mut entries, vote).map_err(|error| {
            io::Error::other(format!("{fault:?} {} of {cycles} with --seed {seed}: {error}", cycle + 1))
        })?;
        report.cycles += 1;
    }
    Ok(report)
}

/// Starts the writer, lets it work for a while, strikes, and counts what it had acknowledged.
fn strike(
    store: &Path,
    disk: Option<&Disk>,
    rng: &Rng,
    report: &mut Report,
    entries: &mut Option<u64>,
    vote: &mut u64,
) -> io::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["store-writer", "--seed", &rng.u64().to_string(), "--dir"])
        .arg(store)
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().expect("piped");
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    // The first acknowledgement says that it is at work; from then on it has some time.
    let mut acknowledged = Vec::new();
    match lines.recv_timeout(Duration::from_secs(60)) {
        Ok(line) => acknowledged.push(line),
        Err(error) => {
            child.kill()?;
            return Err(io::Error::other(format!("the writer acknowledged nothing: {error}")));
        }
    }
    std::thread::sleep(Duration::from_millis(rng.below(300)));
    match disk {
        None => end(&mut child)?,
        Some(disk) => {
            signal(&child, "STOP")?;
            let canary = disk.cut()?;
            end(&mut child)?;
            disk.restore(&canary)?;
        }
    }
    reader.join().expect("the reader ends with the writer");
    acknowledged.extend(lines.try_iter());
    for line in acknowledged {
        let number = |text: &str| text.parse().map_err(|_| io::Error::other(format!("odd line {line:?}")));
        match line.split_once(' ') {
            Some(("entry", index)) => {
                let index = number(index)?;
                report.acknowledged += index - entries.map_or(0, |last| last + 1) + 1;
                *entries = Some(index);
            }
            Some(("vote", term)) => {
                *vote = number(term)?;
                report.votes += 1;
            }
            _ => return Err(io::Error::other(format!("odd line {line:?}"))),
        }
    }
    Ok(())
}

/// SIGKILL of a process that runs; an error if it had ended by itself.
fn end(child: &mut Child) -> io::Result<()> {
    child.kill()?;
    let status = child.wait()?;
    if status.signal() != Some(KILLED) {
        return Err(io::Error::other(format!("the writer was to be killed, but had ended: {status}")));
    }
    Ok(())
}

fn signal(child: &Child, name: &str) -> io::Result<()> {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("kill -{name}: {status}"))) }
}

/// Opens the store and compares it with what was acknowledged; afterwards `entries` is what it holds.
fn check(store: &Path, report: &mut Report, entries: &mut Option<u64>, vote: u64) -> io::Result<()> {
    runtime()?.block_on(async {
        let env = Env::real();
        let before = env.clock.monotonic();
        let log = Log::open(env.clone(), store.to_owned(), options(), None).await.map_err(io::Error::other)?;
        report.slowest_open = report.slowest_open.max(env.clock.monotonic() - before);
        let last = log.last().map(|id| id.index);
        if last < *entries {
            return Err(io::Error::other(format!("acknowledged up to entry {entries:?}, recovered up to {last:?}")));
        }
        let found = log.vote().map_or(0, |vote| vote.term);
        if found < vote {
            return Err(io::Error::other(format!("vote {vote} was acknowledged, {found} recovered")));
        }
        let end = last.map_or(0, |last| last + 1);
        let mut next = 0;
        while next < end {
            for frame in log.read(next..end, 1024 * 1024).await? {
                if frame.id.index != next || frame.body != body(next) {
                    return Err(io::Error::other(format!("entry {next} is not what was written: {}", frame.id)));
                }
                next += 1;
            }
        }
        report.beyond += end - entries.map_or(0, |last| last + 1);
        *entries = last;
        log.close().await
    })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

//! Scrubber: reads the units of the ConsumeQueues and full segments again and again, at a bounded rate, so that rot is found
//! while other replicas still hold what it took. What it finds stops this replica, whose next start rebuilds the units from
//! the log, or repairs the log from the others.
//!
//! Small pieces on a thread that may block, and a pause after each: neither the log's writer nor readers wait for it. The
//! segment in use is not read; most of it is verified at every start.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use env::Clock;

use crate::consume_queue::{Queue, UNIT_BYTES, UnitsError};
use crate::fold::{Reader, Tables};
use crate::log::Log;
use crate::position::QueueOffset;

/// Read at a time, unless a single frame is longer.
const PIECE_BYTES: u64 = 256 << 10;

/// Units read at a time.
const PIECE_UNITS: usize = PIECE_BYTES as usize / UNIT_BYTES;

/// At the end of what there is, the next round begins after this: a log that is idle is not read all the time. What is
/// not applied yet is waited for as long.
const ROUND_PAUSE: Duration = Duration::from_secs(60);

/// How far the scrubber is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes verified since the start.
    pub bytes: u64,
    /// Times that it came to the end.
    pub rounds: u64,
    /// Where it reads now.
    pub physical_offset: u64,
    /// Damage that it came upon. One is the end: the replica stops.
    pub findings: u64,
}

/// The same, as it goes on.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    bytes: AtomicU64,
    rounds: AtomicU64,
    physical_offset: AtomicU64,
    findings: AtomicU64,
}

impl Progress {
    pub fn now(&self) -> Scrubbed {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Scrubbed {
            bytes: load(&self.bytes),
            rounds: load(&self.rounds),
            physical_offset: load(&self.physical_offset),
            findings: load(&self.findings),
        }
    }
}

/// Scrubs units and `log` at `bytes_per_s`, not at all for 0. Ends when it has found something, which whoever watches log and
/// units hears, or when they cannot be read.
pub(crate) async fn run<T: Tables>(
    clock: Clock,
    log: Log,
    reader: Reader<T>,
    bytes_per_s: u64,
    progress: Arc<Progress>,
) {
    if bytes_per_s == 0 {
        return;
    }
    let pause = |bytes: u64| Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
    let mut at = None;
    loop {
        if at.is_none() {
            for queue in reader.queues() {
                if let Err(error) = scrub_units(&clock, &queue, pause, &progress).await {
                    progress.findings.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%error, "the scrubber cannot read a queue");
                    return;
                }
            }
        }
        match log.scrub(at, PIECE_BYTES).await {
            Ok((next, bytes)) => {
                at = next;
                progress.bytes.fetch_add(bytes, Ordering::Relaxed);
                let place = at.map_or(0, |at| at.start.physical_offset.0);
                progress.physical_offset.store(place, Ordering::Relaxed);
                if at.is_none() {
                    progress.rounds.fetch_add(1, Ordering::Relaxed);
                }
                let pause = pause(bytes);
                clock.sleep(if at.is_none() || bytes == 0 { pause.max(ROUND_PAUSE) } else { pause }).await;
            }
            // Purged while it was read: from where the log begins now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => at = None,
            Err(error) => {
                progress.findings.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "the scrubber cannot read the log");
                return;
            }
        }
    }
}

/// All units of a queue that are on disk. Those in memory were written from there.
async fn scrub_units(
    clock: &Clock,
    queue: &Queue,
    pause: impl Fn(u64) -> Duration,
    progress: &Progress,
) -> Result<(), UnitsError> {
    let mut next = queue.bounds().start;
    while queue.units(next, 0).is_none() {
        let units = queue.read_units(next, PIECE_UNITS).await?;
        // Trimmed meanwhile, if there are none.
        next = QueueOffset(next.0 + units.len() as u64).max(queue.bounds().start);
        let bytes = (units.len() * UNIT_BYTES) as u64;
        progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        clock.sleep(pause(bytes)).await;
    }
    Ok(())
}

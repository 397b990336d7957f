//! Damaged files: a broker is down, and what was durable there is not what was written any more.
//!
//! The contract is about what was *known* to be durable: below the newest mark of the log. What a killed process had synced
//! last has no mark yet, and damage there is the double fault that the contract excludes. So a bit is turned below the mark,
//! and a tail is cut off a log that was closed in good order, whose mark is at its end.
//!
//! A fault lasts until the broker has found the damage, mended it from the others, and is ready: one broker at a time, so that
//! never more than a minority has damaged files.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use env::{Env, Rng};
use raft_store::consume_queue::{UNIT_BYTES, UnitKind};
use raft_store::log::segment::Segment;
use raft_store::log::survey::{Step, Survey, survey};
use raft_store::offline::{Offline, parse_queue};
use raft_store::position::{PhysicalOffset, QueueOffset};

use super::{AtWork, Evidence, LOOK, NODES, Run, Undo, look_after, process};
use crate::append;
use crate::cluster::PATIENCE;
use crate::history::edn::Edn;

/// What a replica says when its log is mended.
pub const IS_WHOLE: &str = "the log was damaged and is whole again";

/// Damage near the end of the log is looked for within this.
const NEAR_BYTES: u64 = 128 << 10;

/// No tail that is cut is longer.
const TAIL_BYTES: u64 = 256 << 10;

/// What every header of a frame has, and is protected.
const HEADER_BYTES: u64 = 60;

/// A copy of the hard state, its checksum too.
const HARD_STATE_BYTES: usize = 124;

/// One request may take so long.
const READ: Duration = Duration::from_secs(5);

/// A part of a file that is not what was written.
#[derive(Debug)]
pub struct Damage {
    victim: usize,
    file: PathBuf,
    offset: u64,
    /// What stood there.
    before: Vec<u8>,
    part: Part,
    /// How often the replica had told before that it has mended its log.
    said: usize,
}

/// Which part of a replica's files.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// The log.
    Log,
    /// A unit of a queue.
    Unit { topic: String, queue: u32, offset: u64 },
    /// A copy of the hard state.
    HardState,
}

/// A broker is killed, and a durable bit of its files turned: of the log, of a queue's index, or of one of the two copies of
/// its vote. The evidence: which, and that it can be seen from outside.
pub async fn flip(run: &mut Run, victim: usize, rng: &Rng) -> io::Result<(Evidence, AtWork)> {
    let evidence = process::end(run, &[victim])?;
    let (env, dir) = (run.env.clone(), run.cluster.data_dir(victim).to_owned());
    let damage = match rng.below(4) {
        0 => match unit(&env, &dir, rng).await? {
            Some((file, offset, part)) => turn(run, victim, file, offset, rng, part)?,
            None => in_log(run, victim, rng).await?,
        },
        1 => {
            let file = dir.join("hard-state").join(if rng.chance(1, 2) { "a" } else { "b" });
            turn(run, victim, file, rng.below(HARD_STATE_BYTES as u64), rng, Part::HardState)?
        }
        _ => in_log(run, victim, rng).await?,
    };
    let seen = seen(&env, &dir, &damage).await?;
    let shown = [
        ("exit", exit_of(evidence)),
        ("file", name(&damage.file, &dir).into()),
        ("offset", damage.offset.into()),
        ("was", format!("{:02x}", damage.before[0]).into()),
        ("is", format!("{:02x}", read(&damage.file, damage.offset, 1)?[0]).into()),
        ("seen", seen.into()),
    ];
    Ok((vec![(victim, Edn::map(shown))], AtWork::new(vec![victim], Undo::Mend(damage))))
}

/// A broker ends in good order, and the end of its log is cut off, or filled with zeros, although it was durable.
pub async fn cut_tail(run: &mut Run, victim: usize, rng: &Rng) -> io::Result<(Evidence, AtWork)> {
    let status = run.cluster.stop_broker(victim)?;
    let (env, dir) = (run.env.clone(), run.cluster.data_dir(victim).to_owned());
    let found = whole(&env, &dir).await?;
    if found.known.end != found.end.end {
        let (known, end) = (found.known.end.physical_offset, found.end.end.physical_offset);
        return Err(io::Error::other(format!("{}: the log ends at {end}, its mark at {known}", NODES[victim])));
    }
    let end = found.known.end.physical_offset;
    let from = tail(found.files.layout.segment_of(PhysicalOffset(end.0 - 1)), end, rng);
    let file = Segment::path(&dir.join("commitlog"), found.files.layout.segment_of(from));
    let (offset, bytes) = (found.files.layout.file_offset(from), (end.0 - from.0) as usize);
    let before = read(&file, offset, bytes)?;
    let shorter = rng.chance(1, 2);
    let open = fs::OpenOptions::new().write(true).open(&file)?;
    if shorter {
        open.set_len(offset)?;
    } else {
        open.write_all_at(&vec![0; bytes], offset)?;
    }
    open.sync_all()?;
    let said = run.cluster.said(victim, IS_WHOLE)?;
    let damage = Damage { victim, file, offset, before, part: Part::Log, said };
    let shown = [
        ("exit", status.to_string().into()),
        ("file", name(&damage.file, &dir).into()),
        (if shorter { "cut-at" } else { "zeros-from" }, offset.into()),
        ("bytes", bytes.into()),
        ("seen", seen(&env, &dir, &damage).await?.into()),
    ];
    Ok((vec![(victim, Edn::map(shown))], AtWork::new(vec![victim], Undo::Mend(damage))))
}

/// The broker is started, and must find the damage and mend it: then the bytes are what they were.
pub async fn mend(run: &mut Run, damage: Damage) -> io::Result<Evidence> {
    let victim = damage.victim;
    run.cluster.start_broker(victim)?;
    let mut reader = None;
    if let Part::Unit { topic, queue, offset } = damage.part.clone() {
        // Whoever reads it notices.
        let (env, replica) = (run.env.clone(), run.replicas[victim]);
        reader = Some(tokio::spawn(async move {
            let client = append::client(&env);
            loop {
                let read = append::pull(&client, replica, &topic, queue, offset, 1, env.clock.wall_ms());
                if env
                    .clock
                    .timeout(READ, read)
                    .await
                    .is_some_and(|read| read.is_ok_and(|read| !read.records.is_empty()))
                {
                    return;
                }
                env.clock.sleep(LOOK).await;
            }
        }));
    }
    let whole = until_whole(run, victim, damage.said, &mut || damage.is_mended()).await;
    if let Some(reader) = reader {
        reader.abort();
    }
    Ok(vec![(victim, whole?)])
}

/// Resolves when the broker is ready and what was damaged is whole; what it said and did on the way. `said`: how often it had
/// said so before of its log. It may end by itself meanwhile, with a reason, and be started again.
pub async fn until_whole(
    run: &mut Run,
    victim: usize,
    said: usize,
    is_mended: &mut dyn FnMut() -> io::Result<bool>,
) -> io::Result<Edn> {
    let began = run.env.clock.monotonic();
    let mut ends = Vec::new();
    loop {
        ends.extend(look_after(run, &[], &[victim])?);
        if run.cluster.runs(victim) && run.cluster.is_ready(victim) && is_mended()? {
            break;
        }
        if run.env.clock.monotonic() - began > PATIENCE {
            let (name, told) = (NODES[victim], run.cluster.log_tail(victim));
            return Err(io::Error::other(format!("{name} does not mend its files within {PATIENCE:?}; {told}")));
        }
        run.env.clock.sleep(LOOK).await;
    }
    let took = run.env.clock.monotonic() - began;
    let mut told = vec![
        ("whole-after-ms", (took.as_millis() as u64).into()),
        ("told-as-mended", (run.cluster.said(victim, IS_WHOLE)? - said).into()),
        ("ended-by-itself", ends.len().into()),
    ];
    told.extend(ends.into_iter().next().map(|reason| ("with", reason.into())));
    Ok(Edn::map(told))
}

impl Damage {
    fn is_mended(&self) -> io::Result<bool> {
        match self.part {
            // Its content is a later one by now.
            Part::HardState => Ok(is_intact(&read(&self.file, 0, HARD_STATE_BYTES)?)),
            _ => match read(&self.file, self.offset, self.before.len()) {
                Ok(now) => Ok(now == self.before),
                // Shorter, or gone while it is made anew.
                Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound) => {
                    Ok(false)
                }
                Err(error) => Err(error),
            },
        }
    }
}

/// Turns a bit below the newest mark: in every second case near it, where the next start looks, otherwise in a full file, which
/// the scrubber reads through. What lies between waits until somebody reads it.
async fn in_log(run: &Run, victim: usize, rng: &Rng) -> io::Result<Damage> {
    let dir = run.cluster.data_dir(victim);
    let found = whole(&run.env, dir).await?;
    let end = found.known.end.physical_offset.0;
    let full = found.files.layout.segment_of(PhysicalOffset(end - 1)).0;
    let near = full == 0 || rng.chance(1, 2);
    let place = if near { end - 1 - rng.below(end.min(NEAR_BYTES)) } else { rng.below(full) };
    let segment = found.files.layout.segment_of(PhysicalOffset(place));
    let mut walk = found.files.walk_segment(segment, PhysicalOffset(end));
    let header = loop {
        match walk.step().await {
            Some(Step::Frame(header, _)) if header.end().0 > place => break header,
            Some(Step::Frame(..)) => {}
            other => return Err(io::Error::other(format!("no frame at {place}: {other:?}"))),
        }
    };
    // Of padding there is only the header.
    let body_bytes = if header.body_crc == 0 { 0 } else { u64::from(header.body_bytes) };
    let at = PhysicalOffset(header.physical_offset.0 + within_frame(body_bytes, rng));
    let file = Segment::path(&dir.join("commitlog"), segment);
    turn(run, victim, file, found.files.layout.file_offset(at), rng, Part::Log)
}

/// A byte of a frame that its checksums protect: of the header in every second case, if there is a body.
fn within_frame(body_bytes: u64, rng: &Rng) -> u64 {
    /// From the start of the frame.
    const BODY: u64 = 64;
    if body_bytes == 0 || rng.chance(1, 2) { rng.below(HEADER_BYTES) } else { BODY + rng.below(body_bytes) }
}

/// Where a tail begins that is to be cut: in the last segment, so that no mark goes with it.
fn tail(segment: PhysicalOffset, end: PhysicalOffset, rng: &Rng) -> PhysicalOffset {
    PhysicalOffset(end.0 - 1 - rng.below((end.0 - segment.0).min(TAIL_BYTES)))
}

/// A unit of a queue that has been on the disk for a while.
async fn unit(env: &Env, dir: &Path, rng: &Rng) -> io::Result<Option<(PathBuf, u64, Part)>> {
    let mut queues: Vec<_> = fs::read_dir(dir.join("consumequeue"))?
        .map(|entry| Ok(parse_queue(&entry?.file_name().to_string_lossy())))
        .filter_map(io::Result::transpose)
        .collect::<io::Result<_>>()?;
    queues.sort_unstable();
    let offline = Offline::open(env, dir).await.map_err(io::Error::other)?;
    while !queues.is_empty() {
        let queue = queues.swap_remove(rng.below(queues.len() as u64) as usize);
        /// Of the first file of a queue.
        const UNITS: usize = 65_536;
        let units = offline.units(queue, QueueOffset(0), UNITS).await.map_err(io::Error::other)?;
        let Some(at) = units.len().checked_sub(1).map(|last| rng.below(last as u64 / 2 + 1) as usize) else { continue };
        let (offset, Some(unit)) = &units[at] else { continue };
        if unit.kind != UnitKind::Plain {
            continue;
        }
        let Some(topic) = topic_of(env, dir, unit.physical_offset, unit.size).await? else { continue };
        let file = dir.join(format!("consumequeue/{queue}/{:020}", 0));
        let part = Part::Unit { topic, queue: queue.queue, offset: offset.0 };
        return Ok(Some((file, at as u64 * UNIT_BYTES as u64 + rng.below(UNIT_BYTES as u64), part)));
    }
    Ok(None)
}

/// The topic of the record at a place of the log.
async fn topic_of(env: &Env, dir: &Path, at: PhysicalOffset, bytes: u32) -> io::Result<Option<String>> {
    let found = raft_store::log::survey::hard_state_of(env, dir).await.map_err(io::Error::other)?;
    let layout = raft_store::log::segment::Layout { segment_bytes: found.0.segment_bytes };
    let file = Segment::path(&dir.join("commitlog"), layout.segment_of(at));
    let record = read(&file, layout.file_offset(at), bytes as usize)?;
    Ok(protocol::record::RecordView::parse(&record).ok().map(|record| record.topic().to_owned()))
}

/// Turns one bit of a byte.
fn turn(run: &Run, victim: usize, file: PathBuf, offset: u64, rng: &Rng, part: Part) -> io::Result<Damage> {
    let before = read(&file, offset, 1)?;
    let open = fs::OpenOptions::new().write(true).open(&file)?;
    open.write_all_at(&[before[0] ^ (1 << rng.below(8))], offset)?;
    open.sync_all()?;
    Ok(Damage { victim, file, offset, before, part, said: run.cluster.said(victim, IS_WHOLE)? })
}

/// What is wrong now, by somebody who does not run the broker. An error if nothing is.
async fn seen(env: &Env, dir: &Path, damage: &Damage) -> io::Result<String> {
    let seen = match &damage.part {
        Part::Log => {
            let found = survey(env, dir, None, &|_, _| {}).await.map_err(io::Error::other)?;
            let gap = found.gaps.first();
            gap.map(|gap| format!("from {} to {}: {}", gap.from.physical_offset, gap.to, gap.reason))
        }
        Part::Unit { queue, offset, .. } => {
            let unit = read(&damage.file, damage.offset / UNIT_BYTES as u64 * UNIT_BYTES as u64, UNIT_BYTES)?;
            let unit: &[u8; UNIT_BYTES] = unit.as_slice().try_into().expect("a unit's bytes");
            let id = damage.file.parent().and_then(|parent| parse_queue(&parent.file_name()?.to_string_lossy()));
            let id = id.ok_or_else(|| io::Error::other("a queue's directory has its name"))?;
            let decoded = raft_store::consume_queue::Unit::decode(unit, id, QueueOffset(*offset));
            decoded.is_none().then(|| format!("unit {offset} of queue {queue}: its checksum does not hold"))
        }
        Part::HardState => {
            let copy = read(&damage.file, 0, HARD_STATE_BYTES)?;
            (!is_intact(&copy)).then(|| "this copy's checksum does not hold".to_owned())
        }
    };
    seen.ok_or_else(|| {
        io::Error::other(format!("nobody sees the damage at {} of {}", damage.offset, damage.file.display()))
    })
}

/// The log, every frame of it read and none damaged.
async fn whole(env: &Env, dir: &Path) -> io::Result<Survey> {
    let found = survey(env, dir, None, &|_, _| {}).await.map_err(io::Error::other)?;
    match (&found.gaps[..], &found.contradiction) {
        ([], None) if found.known.end.physical_offset.0 > 0 => Ok(found),
        (gaps, contradiction) => Err(io::Error::other(format!(
            "{}: to be damaged, but it is not whole: {gaps:?} {contradiction:?}",
            dir.display()
        ))),
    }
}

/// Whether a copy of the hard state is what was written: its last four bytes are the checksum of the others.
fn is_intact(copy: &[u8]) -> bool {
    copy.split_last_chunk().is_some_and(|(content, crc)| crc32c::crc32c(content) == u32::from_le_bytes(*crc))
}

fn read(file: &Path, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut content = vec![0; bytes];
    fs::File::open(file)?.read_exact_at(&mut content, offset)?;
    Ok(content)
}

fn name(file: &Path, dir: &Path) -> String {
    file.strip_prefix(dir).unwrap_or(file).display().to_string()
}

fn exit_of(evidence: Evidence) -> Edn {
    evidence.first().and_then(|(_, shown)| shown.get("exit").cloned()).unwrap_or(Edn::Nil)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_is_turned_where_a_checksum_sees_it() {
        let rng = Rng::seeded(1);
        let drawn: Vec<u64> = (0..500).map(|_| within_frame(100, &rng)).collect();
        assert!(drawn.iter().all(|at| (0..60).contains(at) || (64..164).contains(at)), "{drawn:?}");
        assert!(drawn.iter().any(|at| *at < 60) && drawn.iter().any(|at| *at >= 64));
        assert!((0..100).all(|_| within_frame(0, &rng) < 60), "padding and blanks have only a header");
    }

    #[test]
    fn a_tail_is_never_empty_and_stays_in_its_segment() {
        let rng = Rng::seeded(2);
        let (segment, end) = (PhysicalOffset(1 << 24), PhysicalOffset((1 << 24) + 640));
        let drawn: Vec<u64> = (0..500).map(|_| tail(segment, end, &rng).0).collect();
        assert!(drawn.iter().all(|from| (segment.0..end.0).contains(from)));
        assert!(drawn.contains(&segment.0) && drawn.contains(&(end.0 - 1)));
        let far = tail(PhysicalOffset(0), PhysicalOffset(1 << 30), &rng);
        assert!(far.0 >= (1 << 30) - TAIL_BYTES);
    }

    #[test]
    fn a_copy_of_the_hard_state_is_intact_or_not() {
        let mut copy = vec![7; HARD_STATE_BYTES];
        let crc = crc32c::crc32c(&copy[..120]);
        copy[120..].copy_from_slice(&crc.to_le_bytes());
        assert!(is_intact(&copy));
        copy[33] ^= 4;
        assert!(!is_intact(&copy) && !is_intact(&[]));
    }
}

//! Directories written by earlier builds open for ever after, and hold what was written.
//!
//! `RAFTMQ_WRITE_FIXTURES=1 cargo test -p tests --test fixtures write` writes those of the present format, beside the others:
//! once for each format version, when it is released. What is there is never written again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use env::Env;
use raft_store::entry::{CoreCommand, Operation, RecordOperation, RollOperation, Visibility};
use raft_store::fold::{Apply, CoreReply, Outcome, RowError, Tables};
use raft_store::group::{Group, GroupOptions, Role};
use raft_store::position::{PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};

/// What the present build writes.
const PRESENT: &str = "format-1";

/// How a directory was left behind.
const ENDS: [&str; 2] = ["stopped", "killed"];

const QUEUES: u32 = 3;
const EARLY: u64 = 120;
const LATE: u64 = 60;
/// Long after any test.
const NEVER: Timestamp = Timestamp(1 << 50);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Rows of text by number.
#[derive(Debug, Default)]
struct Notes(BTreeMap<Vec<u8>, Vec<u8>>);

impl Tables for Notes {
    type Reply = usize;

    fn apply(&mut self, command: &[u8], at: &mut Apply<'_>) -> usize {
        let key = vec![0x40, command[0]];
        self.0.insert(key.clone(), command.to_vec());
        at.put(key, command.to_vec());
        self.0.len()
    }

    fn lead(&mut self, _now: Timestamp, _gap_ms: i64, _at: &mut Apply<'_>) {}

    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        self.0.insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

async fn open(dir: &Path) -> Group<Notes> {
    let env = Env::real();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let address = env.net.listen(any).await.expect("loopback").local_addr().expect("an address");
    let mut options = GroupOptions::single("fixtures", "group", dir, address);
    options.segment_bytes = 16 << 10;
    options.log.prepare_piece_bytes = 16 << 10;
    options.log.max_entry_bytes = 8 << 10;
    let group = Group::open(env, options, Notes::default()).await.expect("it opens");
    let mut role = group.role();
    let ready = role.wait_for(|role| matches!(role, Role::Leader { ready: true, .. })).await;
    assert!(ready.is_ok(), "a group of one leads itself");
    group
}

fn text(number: u64) -> Bytes {
    Bytes::from(format!("record {number:04} {}", "x".repeat(number as usize % 90)))
}

fn queue(number: u64) -> QueueId {
    QueueId { topic: TopicId(7), queue: number as u32 % QUEUES }
}

fn record(number: u64, visibility: Visibility) -> Operation {
    let tag_hash = number as i32 - 50;
    Operation::Record(RecordOperation {
        queue: queue(number),
        record: text(number),
        tag_hash,
        visibility,
        key_hashes: vec![number, !number],
    })
}

async fn propose(group: &Group<Notes>, operations: Vec<Operation>) -> Vec<Outcome<usize>> {
    group.propose(operations).await.expect("it is applied")
}

async fn write(dir: &Path, end: &str) {
    let group = open(dir).await;
    for number in 0..EARLY {
        propose(&group, vec![record(number, Visibility::Visible)]).await;
    }
    // One waits from before the place that the log is trimmed to, one is half, one has fired.
    propose(&group, vec![record(900, Visibility::Scheduled { due: NEVER }), record(901, Visibility::Half)]).await;
    propose(&group, vec![record(902, Visibility::Scheduled { due: Timestamp(1) })]).await;
    propose(&group, vec![Operation::Core(CoreCommand::FireTimers { limit: 9 })]).await;
    propose(
        &group,
        vec![Operation::Tables(Bytes::from_static(b"a note")), Operation::Tables(Bytes::from_static(b"b"))],
    )
    .await;
    propose(&group, vec![Operation::Core(CoreCommand::Checkpoint)]).await;
    let reader = group.reader();
    let point = reader.checkpoints()[0];
    let mut rolls = Vec::new();
    for row in reader.pending_below(point.end, 9) {
        let record = reader.record(row.place, row.size).await.expect("it is there");
        rolls.push(Operation::Roll(RollOperation { key: row.key, record }));
    }
    propose(&group, rolls).await;
    let trim = CoreCommand::Trim { min_physical: point.end, cut: Timestamp(i64::MAX) };
    let trimmed = propose(&group, vec![Operation::Core(trim)]).await;
    assert_eq!(trimmed, [Outcome::Core(CoreReply::Trimmed { min_physical: point.end })]);
    for number in EARLY..EARLY + LATE {
        propose(&group, vec![record(number, Visibility::Visible)]).await;
    }
    let clock = Env::real().clock;
    while group.log().last_purged() != Some(point.id) {
        clock.sleep(std::time::Duration::from_millis(10)).await;
    }
    propose(&group, vec![Operation::Tables(Bytes::from_static(b"a second note"))]).await;
    match end {
        "stopped" => group.stop().await.expect("it stops"),
        _ => group.kill().await,
    }
}

/// What [`write`] has left, whatever build wrote it.
async fn check(dir: &Path) {
    let group = open(dir).await;
    let reader = group.reader();
    assert_eq!(reader.tables().0[&vec![0x40, b'a']], b"a second note");
    assert_eq!(reader.tables().0[&vec![0x40, b'b']], b"b");
    let pending = reader.pending();
    assert_eq!((pending.scheduled, pending.half), (1, 1));
    assert_eq!(reader.next_due(), Some(NEVER));
    for row in reader.pending_below(PhysicalOffset(u64::MAX), 9) {
        assert!(row.place >= reader.min_physical(), "it was rolled");
        let record = reader.record(row.place, row.size).await.expect("it is there");
        assert!(record == text(900) || record == text(901));
    }
    let mut shown = BTreeMap::new();
    for number in 0..u64::from(QUEUES) {
        let queue = reader.queue(queue(number)).expect("the queue");
        let mut next = queue.bounds().start;
        while next < queue.bounds().end {
            for unit in queue.read_units(next, 16).await.expect("units") {
                let record = reader.record(unit.physical_offset, unit.size).await.expect("a record");
                shown.insert(record, (queue.id(), next, unit.tag_hash));
                next = QueueOffset(next.0 + 1);
            }
        }
    }
    let expected: Vec<Bytes> = (EARLY..EARLY + LATE).map(text).collect();
    assert_eq!(shown.keys().cloned().collect::<Vec<_>>(), expected);
    for number in EARLY..EARLY + LATE {
        let (id, offset, tag_hash) = shown[&text(number)];
        // 902 fired in queue 2 behind the early ones.
        let fired = u64::from(queue(902) == id);
        assert_eq!((id, offset.0, tag_hash), (queue(number), number / u64::from(QUEUES) + fired, number as i32 - 50));
        let all_times = Timestamp(i64::MIN)..=Timestamp(i64::MAX);
        let by_key = reader.units_by_key(number, all_times, 9).await.expect("units");
        let places: Vec<_> = by_key.iter().map(|(id, offset, _)| (*id, *offset)).collect();
        assert_eq!(places, [(id, offset)], "by its key, though the build that wrote it may have indexed none");
    }
    // It goes on: what is written now lies behind, and is there after the next start.
    propose(&group, vec![record(7_000, Visibility::Visible)]).await;
    group.stop().await.expect("it stops");
    let again = open(dir).await;
    let bounds = again.reader().queue(queue(7_000)).expect("the queue").bounds();
    let last = again.reader().queue(queue(7_000)).expect("the queue");
    let units = last.read_units(QueueOffset(bounds.end.0 - 1), 1).await.expect("units");
    let record = again.reader().record(units[0].physical_offset, units[0].size).await.expect("a record");
    assert_eq!(record, text(7_000));
    again.stop().await.expect("it stops");
}

#[allow(clippy::disallowed_methods)] // Copies files of a test.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
        let to = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).expect("copied")),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_format_ever_released_opens() {
    let written = Env::real().disk.list(&fixtures()).await.expect("fixtures");
    assert!(written.iter().any(|name| name.name == PRESENT), "the present format has its fixture");
    for version in written {
        for end in ENDS {
            println!("{} {end}", version.name);
            let dir = tempfile::tempdir().expect("a directory");
            copy(&fixtures().join(&version.name).join(end), dir.path());
            check(dir.path()).await;
        }
    }
}

/// What the present build writes, read by itself; kept if it is asked to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_the_present_format() {
    for end in ENDS {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), end).await;
        if std::env::var_os("RAFTMQ_WRITE_FIXTURES").is_some() {
            let kept = fixtures().join(PRESENT).join(end);
            assert!(
                Env::real().disk.list(&kept).await.is_err(),
                "{} is there: it is never written again",
                kept.display()
            );
            copy(dir.path(), &kept);
        }
        check(dir.path()).await;
    }
}

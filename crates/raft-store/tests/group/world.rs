//! What the scenarios stand on: tables that do little, members that can be killed, and a ledger of what was
//! acknowledged.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use env::disk::simulated::SimDisk;
use env::{Env, Rng};
use raft_store::entry::{Operation, RecordOperation, Visibility};
use raft_store::fold::{Apply, Outcome, RowError, Tables};
use raft_store::group::{Group, GroupOptions, OpenError, Role};
use raft_store::position::{PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};
use raft_store::proposer::{Answer, ProposeError};

/// Tables that count commands.
#[derive(Default)]
pub struct Counter {
    pub total: u64,
    /// Counted too much with each command: what only a replica that is out of order does.
    pub surplus: Arc<AtomicU64>,
}

impl Tables for Counter {
    type Reply = u64;

    fn apply(&mut self, command: &[u8], at: &mut Apply<'_>) -> u64 {
        self.total += command.len() as u64 + self.surplus.load(Ordering::Relaxed);
        at.put(vec![0x40], self.total.to_le_bytes().to_vec());
        self.total
    }

    fn lead(&mut self, _now: Timestamp, _gap_ms: i64, _at: &mut Apply<'_>) {}

    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        let value = value.try_into().map_err(|_| RowError::new(key, "not a count"))?;
        self.total = u64::from_le_bytes(value);
        Ok(())
    }

    fn clear(&mut self) {
        self.total = 0;
    }
}

/// The queue everything goes to.
pub const QUEUE: QueueId = QueueId { topic: TopicId(1), queue: 0 };

/// A visible record that says `text`.
pub fn record(text: &str) -> Operation {
    Operation::Record(record_operation(text))
}

/// The same, to be changed.
pub fn record_operation(text: &str) -> RecordOperation {
    RecordOperation {
        queue: QUEUE,
        record: Bytes::copy_from_slice(text.as_bytes()),
        tag_hash: 0,
        visibility: Visibility::Visible,
        key_hashes: Vec::new(),
    }
}

/// As [`env::net::free_loopback`].
pub fn free_address() -> SocketAddr {
    env::net::free_loopback().expect("a free port")
}

/// One member's place: survives the member.
#[derive(Clone)]
pub struct Place {
    pub env: Env,
    pub options: GroupOptions,
    /// A simulated disk, of which each opened member has its own mount.
    pub disk: Option<SimDisk>,
    /// See [`Counter::surplus`].
    pub surplus: Arc<AtomicU64>,
}

impl Place {
    pub fn new(env: Env, dir: PathBuf, address: SocketAddr, founders: &[SocketAddr]) -> Place {
        let mut options = GroupOptions::single("cluster", "group", dir, address);
        options.founders = founders.iter().map(SocketAddr::to_string).collect();
        // Elections are most of a scenario's time.
        options.heartbeat_ms = 40;
        options.election_ms = (200, 400);
        options.segment_bytes = 4 << 20;
        options.log.prepare_piece_bytes = 1 << 20;
        options.log.max_entry_bytes = 2 << 20;
        Place { env, options, disk: None, surplus: Arc::default() }
    }

    /// On a simulated disk of its own, as tasks.
    pub fn simulated(seed: u64, address: SocketAddr, founders: &[SocketAddr]) -> Place {
        let disk = SimDisk::new(Rng::seeded(seed));
        let mut place = Place::new(Env::simulated(seed, disk.clone()), "/data".into(), address, founders);
        place.disk = Some(disk);
        place
    }

    pub async fn try_open(&self) -> Result<Group<Counter>, OpenError> {
        let mut env = self.env.clone();
        if let Some(disk) = &self.disk {
            env.disk = Arc::new(disk.mount());
        }
        let tables = Counter { surplus: self.surplus.clone(), ..Counter::default() };
        Group::open(env, self.options.clone(), tables).await
    }

    pub async fn open(&self) -> Group<Counter> {
        self.try_open().await.unwrap()
    }
}

/// Waits until `group` leads and serves.
pub async fn until_ready(group: &Group<Counter>) -> u64 {
    let mut role = group.role();
    let ready = role.wait_for(|role| matches!(role, Role::Leader { ready: true, .. })).await;
    match &*ready.expect("the group runs") {
        Role::Leader { term, .. } => *term,
        _ => unreachable!("waited for"),
    }
}

/// Records that were acknowledged, by queue offset.
#[derive(Default)]
pub struct Ledger {
    pub acknowledged: BTreeMap<QueueOffset, (PhysicalOffset, String)>,
    /// Sent without an answer that decides: may be there, once.
    pub unknown: Vec<String>,
}

impl Ledger {
    /// Sends `text` and notes what came back.
    pub async fn send(&mut self, group: &Group<Counter>, text: &str) -> Result<QueueOffset, ProposeError> {
        let answer = group.propose(vec![record(text)]).await;
        self.note(answer, text)
    }

    /// Notes the answer to a send of `text`.
    pub fn note(&mut self, answer: Answer<u64>, text: &str) -> Result<QueueOffset, ProposeError> {
        match answer {
            Ok(outcomes) => {
                let [Outcome::Placed { queue_offset, physical_offset, .. }] = outcomes.as_slice() else {
                    panic!("a visible record is placed: {outcomes:?}");
                };
                let twice = self.acknowledged.insert(*queue_offset, (*physical_offset, text.to_owned()));
                assert!(twice.is_none(), "queue offset {queue_offset} was given to {twice:?} and to {text}");
                Ok(*queue_offset)
            }
            Err(error) => {
                if error == ProposeError::Unknown {
                    self.unknown.push(text.to_owned());
                }
                Err(error)
            }
        }
    }

    /// Everything acknowledged is where it was said to be; nothing is there that was not sent.
    pub async fn check(&self, group: &Group<Counter>) {
        let reader = group.reader();
        let queue = reader.queue(QUEUE).expect("the queue exists");
        let mut at = queue.bounds().start;
        let mut found: BTreeMap<QueueOffset, String> = BTreeMap::new();
        while at < queue.bounds().end {
            let units = queue.read_units(at, 100).await.unwrap();
            assert!(!units.is_empty(), "there are units from {at} on");
            for unit in units {
                let record = reader.record(unit.physical_offset, unit.size).await.unwrap();
                found.insert(at, String::from_utf8(record.to_vec()).unwrap());
                at = QueueOffset(at.0 + 1);
            }
        }
        for (offset, (_, text)) in &self.acknowledged {
            assert_eq!(found.get(offset), Some(text), "queue offset {offset} on node {:016x}", group.node());
        }
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        for text in found.values() {
            *times.entry(text).or_default() += 1;
        }
        for (text, times) in times {
            let acknowledged = self.acknowledged.values().any(|(_, sent)| sent == text);
            assert!(acknowledged || self.unknown.iter().any(|sent| sent == text), "{text} was never acknowledged");
            assert_eq!(times, 1, "{text} is there {times} times");
        }
    }
}

/// Fails loudly instead of hanging.
pub async fn within<F: Future>(env: &Env, seconds: u64, what: &str, future: F) -> F::Output {
    match env.clock.timeout(Duration::from_secs(seconds), future).await {
        Some(output) => output,
        None => panic!("not within {seconds} s: {what}"),
    }
}

/// `RUST_LOG=raft_store=debug,openraft=info` shows what the members say.
pub fn log_if_asked() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

//! How long a start takes: from the execution of `raftmq broker` to its first PULL, on a directory with a long log, or with
//! many queues.
//!
//! The directory is made by a broker in this process, on files in which zeros take no room ([`crate::sparse`]): its
//! messages are as long as messages may be, and empty but for a number. So what is opened is a replica like any other, with
//! everything derived from its log, and only its bytes are few. It is a group of one: nobody else takes part in a start.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use broker::Broker;
use broker::config::{BrokerConfig, Flush, GroupConfig, Limits, MessagePolicy, RaftTiming, Retention};
use env::net::free_loopback;
use env::{Env, Rng};
use remoting::{Client, NoRequests};

use crate::append::{self, QUEUES};
use crate::cluster::PATIENCE;
use crate::sparse::SparseDisk;

/// As brokers have by default.
const SEGMENT_MIB: u64 = 1024;

/// A little less than a message may have.
const BODY_BYTES: usize = (4 << 20) - (64 << 10);

/// Messages sent at once. They take their bodies' room in memory.
const SENDERS: usize = 8;

/// Queues of one of the topics with many.
const QUEUES_OF_A_TOPIC: u32 = 1000;

/// What is opened.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Length of the log.
    pub log_gib: u64,
    /// Queues with a message each, beside those of the long log.
    pub queues: u32,
    /// Starts after a clean stop, and as many after a kill.
    pub starts: u32,
    /// The `raftmq` program.
    pub program: PathBuf,
    /// Where to work.
    pub dir: PathBuf,
}

/// How long it took.
#[derive(Clone, Debug)]
pub struct Report {
    plan: Plan,
    log_bytes: u64,
    occupied_bytes: u64,
    after_a_stop: Vec<Duration>,
    after_a_kill: Vec<Duration>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} GiB of log ({} MiB on the disk), {} queues: first PULL served {} after exec following a clean stop, {} \
             following SIGKILL",
            self.log_bytes as f64 / (1_u64 << 30) as f64,
            self.occupied_bytes >> 20,
            self.plan.queues + QUEUES,
            Times(&self.after_a_stop),
            Times(&self.after_a_kill)
        )
    }
}

/// Median and greatest.
struct Times<'a>(&'a [Duration]);

impl fmt::Display for Times<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times = self.0.to_vec();
        times.sort();
        let ms = |time: Option<&Duration>| time.map_or(0, Duration::as_millis);
        write!(f, "{} ms (most of {}: {} ms)", ms(times.get(times.len() / 2)), times.len(), ms(times.last()))
    }
}

/// Makes the directory, and starts on it again and again.
pub fn run(plan: &Plan) -> io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        fs::create_dir_all(&plan.dir)?;
        let place = Place { dir: plan.dir.clone(), client: free_loopback()?, peer: free_loopback()? };
        fill(plan, &place).await?;
        let (log_bytes, occupied_bytes) = size_of(&place.data_dir())?;
        fs::write(place.config(), place.text())?;
        let (mut after_a_stop, mut after_a_kill) = (Vec::new(), Vec::new());
        for _ in 0..plan.starts {
            after_a_stop.push(start(plan, &place, "KILL").await?);
            after_a_kill.push(start(plan, &place, "TERM").await?);
        }
        Ok(Report { plan: plan.clone(), log_bytes, occupied_bytes, after_a_stop, after_a_kill })
    })
}

/// Where the replica lives.
struct Place {
    dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
}

impl Place {
    fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("broker.toml")
    }

    /// For the process.
    fn text(&self) -> String {
        let Place { client, peer, .. } = self;
        format!(
            "namesrv = []\nhttp = \"\"\n\n[[group]]\nbroker_name = \"broker-a\"\ndata_dir = {:?}\nlisten = \"{client}\"\n\
             vip = false\npeer_listen = \"{peer}\"\nfounders = [\"{peer}\"]\nsegment_mib = {SEGMENT_MIB}\n",
            self.data_dir()
        )
    }

    /// The same for the broker in this process.
    fn values(&self) -> BrokerConfig {
        let group = GroupConfig {
            broker_name: "broker-a".to_owned(),
            data_dir: self.data_dir(),
            listen: self.client,
            vip: false,
            advertised_address: self.client,
            peer_listen: self.peer,
            peer_address: self.peer.to_string(),
            founders: vec![self.peer.to_string()],
            join: false,
            catch_up_bytes_per_s: 0,
            flush: Flush::Sync,
            segment_bytes: SEGMENT_MIB << 20,
            scrub_bytes_per_s: 0,
            messages: MessagePolicy::default(),
            retention: Retention::default(),
            limits: Limits::default(),
            raft: RaftTiming {
                heartbeat: Duration::from_millis(100),
                election: (Duration::from_millis(500), Duration::from_millis(1000)),
            },
        };
        BrokerConfig {
            cluster: "DefaultCluster".to_owned(),
            name_servers: Vec::new(),
            http: None,
            allow_unauthenticated: false,
            groups: vec![group],
        }
    }
}

/// Makes the directory, and stops cleanly.
async fn fill(plan: &Plan, place: &Place) -> io::Result<()> {
    let env = Env { disk: Arc::new(SparseDisk::default()), rng: Rng::from_entropy(), ..Env::real() };
    let broker = Broker::start(env.clone(), place.values()).await.map_err(io::Error::other)?;
    append::create_topic(&env, &[place.client], append::TOPIC, QUEUES).await?;
    let mut messages: Vec<(String, u32, usize)> = Vec::new();
    for first in (0..plan.queues).step_by(QUEUES_OF_A_TOPIC as usize) {
        let topic = format!("start-{first}");
        let queues = QUEUES_OF_A_TOPIC.min(plan.queues - first);
        append::create_topic(&env, &[place.client], &topic, queues).await?;
        messages.extend((0..queues).map(|queue| (topic.clone(), queue, 8)));
    }
    let long = (plan.log_gib << 30).div_ceil(BODY_BYTES as u64).max(u64::from(QUEUES));
    messages.extend((0..long).map(|k| (append::TOPIC.to_owned(), (k % u64::from(QUEUES)) as u32, BODY_BYTES)));
    let messages = Arc::new(messages);
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let senders = (0..SENDERS).map(|_| {
        let (env, messages, next, broker) = (env.clone(), messages.clone(), next.clone(), place.client);
        tokio::spawn(async move {
            let client = Client::new(&env, remoting::Limits::default(), Arc::new(NoRequests));
            loop {
                let value = next.fetch_add(1, Ordering::Relaxed);
                let Some((topic, queue, bytes)) = messages.get(value as usize) else { return io::Result::Ok(()) };
                let mut body = vec![0; *bytes];
                body[..8].copy_from_slice(&value.to_be_bytes());
                let sent = append::send(&client, broker, topic, *queue, body, env.clock.wall_ms(), PATIENCE).await;
                sent.map_err(|error| io::Error::other(format!("message {value}: {error}")))?;
                if value % 4096 == 0 {
                    eprintln!("{value} of {} messages after {:.0?}", messages.len(), began.elapsed());
                }
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.map_err(io::Error::other)??;
    }
    broker.stop().await?;
    crate::disk::run("sync", &["-f", crate::disk::path(&plan.dir)?])
}

/// Lengths of the CommitLog's files, and the room that everything takes on the disk.
fn size_of(dir: &Path) -> io::Result<(u64, u64)> {
    let (mut log, mut occupied) = (0, 0);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let inner = size_of(&entry.path())?;
            (log, occupied) = (log + inner.0, occupied + inner.1);
        } else {
            let metadata = entry.metadata()?;
            occupied += metadata.blocks() * 512;
            let is_segment = dir.ends_with("commitlog") && entry.path().extension().is_none();
            log += if is_segment { metadata.len() } else { 0 };
        }
    }
    Ok((log, occupied))
}

/// Kills what is left of a process that nobody waits for any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; all that matters is that it is not left behind.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One start, which ends with this signal. Gives how long it took to the first PULL.
async fn start(plan: &Plan, place: &Place, end: &str) -> io::Result<Duration> {
    let env = Env::real();
    let log = fs::OpenOptions::new().create(true).append(true).open(place.dir.join("broker.log"))?;
    let began = Instant::now();
    let process = Command::new(&plan.program)
        .args(["broker", "-c"])
        .arg(place.config())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let mut process = Running(process);
    let client = Client::new(&env, remoting::Limits::default(), Arc::new(NoRequests));
    loop {
        match append::pull(&client, place.client, append::TOPIC, 0, 0, 1, env.clock.wall_ms()).await {
            Ok(pulled) if !pulled.records.is_empty() => break,
            told if began.elapsed() > PATIENCE => {
                return Err(io::Error::other(format!("no PULL after {PATIENCE:?}: {told:?}")));
            }
            _ => {}
        }
        if let Some(status) = process.0.try_wait()? {
            return Err(io::Error::other(format!("the broker ended: {status}; see {}", place.dir.display())));
        }
        env.clock.sleep(Duration::from_millis(1)).await;
    }
    let took = began.elapsed();
    crate::disk::run("kill", &[&format!("-{end}"), &process.0.id().to_string()])?;
    process.0.wait()?;
    Ok(took)
}

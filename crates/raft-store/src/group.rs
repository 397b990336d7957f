//! Group: one member of a broker group, as the broker sees it. Opens the directory, takes part in the founding, runs
//! Raft, proposes, and stops.
//!
//! Raft's core, replication, the peer server and the proposer share one single-threaded runtime of their own
//! ("raft-…"); a [`Group`] is a handle to it for any thread. Reading goes through [`Group::reader`] and enters none of
//! them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use env::{Env, fault};
use openraft::async_runtime::WatchReceiver;
use openraft::error::{ClientWriteError, InitializeError, LinearizableReadError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::TypeConfigExt;
use openraft::{ChangeMembers, Instant, Raft, RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::entry::{CoreCommand, Operation};
use crate::fold::{Fold, Outcome, Reader, Tables};
use crate::founding::{self, FoundingError, Start};
use crate::identity::{Directory, Expected, FlushMode, IdentityError};
use crate::log::segment::Layout;
use crate::log::{self, Log, LogOptions};
use crate::materializer::{self, Derived, DerivedOptions};
use crate::position::{LogId, NodeId};
use crate::proposer::{Answer, Claim, ProposeError, Proposer, Submission, Waiters, submission_bytes};
use crate::raft::machine::{Machine, SharedFold, member_ids};
use crate::raft::peer::PeerCounters;
use crate::raft::peer::client::{Factory, Links};
use crate::raft::peer::server::{Lifetime, LifetimeEnd, Server};
use crate::raft::peer::wire::{Channel, FRAME_VERSION, Founder, FoundingStatus, Hello, PROTOCOL};
use crate::raft::storage::{NextBeginning, Storage};
use crate::raft::tickets::Tickets;
use crate::raft::types::{Node, Runtime, Types, from_raft};

/// Newest `cluster_version` that this build can apply.
pub const CLUSTER_VERSION_MAX: u32 = 1;

/// Bytes of an entry that are not operations.
const ENTRY_HEAD_BYTES: usize = 64;

/// A hand-over that takes longer is given up; the leader stays.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(3);

type RaftOf<T> = Raft<Types, Machine<T>>;

/// Everything a member must be told.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    /// Cluster name.
    pub cluster: String,
    /// Broker group name.
    pub group: String,
    /// The data directory.
    pub dir: PathBuf,
    /// Where peers connect to.
    pub peer_listen: SocketAddr,
    /// The same as others reach it, `host:port`.
    pub peer_address: String,
    /// Where clients connect to, `host:port`; told to the other members.
    pub client_address: String,
    /// Peer addresses of all founders, in the same order everywhere; the first one initializes.
    pub founders: Vec<String>,
    /// Become a member of a group that exists.
    pub join: bool,
    /// When to acknowledge.
    pub flush_mode: FlushMode,
    /// Segment size, fixed for the cluster.
    pub segment_bytes: u64,
    /// A leader shows itself this often.
    pub heartbeat_ms: u64,
    /// A follower campaigns after the longer of the two, plus a random part.
    pub election_ms: (u64, u64),
    /// A proposal without an outcome is given up after this.
    pub propose_limit_ms: u64,
    /// Bytes of proposals without an outcome; beyond it, busy.
    pub proposals_bytes_max: usize,
    /// The log. Its segment size is taken from here above.
    pub log: LogOptions,
    /// Derived state. Its segment size is taken from here above.
    pub derived: DerivedOptions,
}

impl GroupOptions {
    /// A single-node group in `dir`, listening for peers at `peer_listen`. Everything else as in production.
    pub fn single(cluster: &str, group: &str, dir: impl Into<PathBuf>, peer_listen: SocketAddr) -> GroupOptions {
        GroupOptions {
            cluster: cluster.to_owned(),
            group: group.to_owned(),
            dir: dir.into(),
            peer_listen,
            peer_address: peer_listen.to_string(),
            client_address: String::new(),
            founders: vec![peer_listen.to_string()],
            join: false,
            flush_mode: FlushMode::SyncFlush,
            segment_bytes: 1 << 30,
            heartbeat_ms: 100,
            election_ms: (500, 1000),
            propose_limit_ms: 3000,
            proposals_bytes_max: 64 << 20,
            log: LogOptions::default(),
            derived: DerivedOptions::default(),
        }
    }

    fn raft_config(&self) -> Result<openraft::Config, openraft::ConfigError> {
        let config = openraft::Config {
            cluster_name: format!("{}/{}", self.cluster, self.group),
            heartbeat_interval: self.heartbeat_ms,
            // A follower that has just acknowledged an append needs no heartbeat.
            heartbeat_min_interval: Some(self.heartbeat_ms),
            election_timeout_min: self.election_ms.0,
            election_timeout_max: self.election_ms.1,
            install_snapshot_timeout: 60_000,
            snapshot_policy: SnapshotPolicy::Never,
            // Only an applied `Trim` purges.
            max_in_snapshot_log_to_keep: u64::MAX / 4,
            replication_lag_threshold: 1000,
            api_channel_size: Some(4096),
            enable_pre_vote: Some(true),
            // A restarted leader that resumed its term without an election could write other bytes under ids that
            // its followers have committed.
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            ..Default::default()
        };
        config.validate()
    }
}

/// A member, as others reach it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its id.
    pub id: NodeId,
    /// Its peer listener.
    pub peer_address: String,
    /// Its client listener.
    pub client_address: String,
}

impl Peer {
    pub(crate) fn new(id: NodeId, node: &Node) -> Peer {
        Peer { id, peer_address: node.peer_address.clone(), client_address: node.client_address.clone() }
    }
}

/// Who leads, as Raft sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Office {
    /// This node.
    Leading {
        /// Its term.
        term: u64,
    },
    /// Another one, or nobody yet.
    Following {
        /// Newest term known.
        term: u64,
        /// Who leads it, if anybody does.
        leader: Option<Peer>,
        /// This node is campaigning.
        campaigning: bool,
    },
    /// Raft has ended.
    Stopped,
}

/// What a member is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads; once `ready`, it serves.
    Leader {
        /// Its term.
        term: u64,
        /// Its `Lead` is applied.
        ready: bool,
    },
    /// It follows.
    Follower {
        /// Newest term known.
        term: u64,
        /// Whom, if anybody leads.
        leader: Option<Peer>,
    },
    /// It campaigns.
    Candidate {
        /// Newest term known.
        term: u64,
    },
    /// It has stopped, by request or because carrying on could lose or reorder a message.
    Stopped {
        /// Why, if it was not asked to.
        reason: Option<String>,
    },
}

/// Why a group did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is not this group's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log cannot be recovered.
    #[error(transparent)]
    Log(#[from] log::OpenError),
    /// The derived state cannot be recovered.
    #[error(transparent)]
    Derived(#[from] materializer::OpenError),
    /// The group exists without this node, or never will with it.
    #[error(transparent)]
    Founding(#[from] FoundingError),
    /// The peer listener.
    #[error("listening for peers at {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What happened.
        source: io::Error,
    },
    /// Times or sizes that do not go together.
    #[error("configuration: {0}")]
    Configuration(String),
    /// openraft refused what it found.
    #[error("starting Raft: {0}")]
    Raft(String),
    /// The task that opened it ended.
    #[error("opening was interrupted")]
    Interrupted,
}

/// Why a read is not known to be current.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Ask `leader`.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<Peer>,
    },
    /// No majority answered; ask again, here or elsewhere.
    #[error("no majority answered")]
    NoQuorum,
    /// This node has stopped.
    #[error("stopped")]
    Stopped,
}

/// Why leadership stayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    /// It is not here.
    #[error("not the leader")]
    NotLeader,
    /// There is nobody to hand over to.
    #[error("there is no other voter")]
    Alone,
    /// Nobody took it in time; this node goes on.
    #[error("no other voter took over in time")]
    NotTaken,
    /// This node has stopped.
    #[error("stopped")]
    Stopped,
}

/// Why the members stayed as they were, or may have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// Ask `leader`.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<Peer>,
    },
    /// Another change is under way, or this one would leave nobody.
    #[error("refused: {0}")]
    Refused(String),
    /// Leadership was lost, or this node stopped, before it was decided: look at the members and ask again.
    #[error("leadership was lost before the change was decided")]
    Unknown,
}

/// A change of the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A node that was started with `join` and has said hello: it catches up first, then it votes.
    Add(Peer),
    /// A member that leaves, or is lost for good. Its id is never used again.
    Remove(NodeId),
}

/// A member's numbers.
#[derive(Clone, Debug)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// What it is.
    pub role: Role,
    /// Newest term known.
    pub term: u64,
    /// Last log id known to be on a quorum.
    pub committed: Option<LogId>,
    /// Last applied here.
    pub applied: Option<LogId>,
    /// Last in the log here.
    pub last: Option<LogId>,
    /// Last durable index here.
    pub synced: Option<u64>,
    /// Last purged here.
    pub purged: Option<LogId>,
    /// Voters and learners.
    pub members: Vec<Peer>,
    /// Voters among them.
    pub voters: Vec<NodeId>,
    /// What each other member is known to hold; at the leader only.
    pub replication: BTreeMap<NodeId, Replication>,
    /// Bytes of proposals without an outcome.
    pub proposals_bytes: usize,
    /// Entries in flight.
    pub entries_in_flight: usize,
    /// Times the leader or the term changed since the start.
    pub elections: u64,
    /// Heartbeats without an answer in time.
    pub heartbeat_timeouts: u64,
    /// Appends refused because CRC, place or chain did not fit.
    pub inconsistent_requests: u64,
    /// Append streams that broke.
    pub broken_streams: u64,
    /// Newest cluster version that every member reached so far can apply; `None` while one was not reached.
    pub cluster_version_supported: Option<u32>,
    /// The last stop was graceful.
    pub was_clean: bool,
    /// Groups written, syncs by duration, bytes queued.
    pub log: log::Stats,
}

/// How far a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replication {
    /// Last id it is known to hold durably.
    pub matched: Option<LogId>,
    /// Entries it lacks.
    pub lag_entries: u64,
}

type Read = oneshot::Sender<Result<(), ReadError>>;

enum Command {
    HandOver(oneshot::Sender<Result<(), HandOverError>>),
    ChangeMembers(MemberChange, oneshot::Sender<Result<(), MembersError>>),
    Stop(oneshot::Sender<io::Result<()>>),
    Kill(oneshot::Sender<()>),
}

/// A member of a group. Cheap to clone. When the last clone is dropped without [`Group::stop`], the member ends as if
/// killed.
pub struct Group<T: Tables>(Arc<Shared<T>>);

impl<T: Tables> Clone for Group<T> {
    fn clone(&self) -> Group<T> {
        Group(self.0.clone())
    }
}

struct Shared<T: Tables> {
    env: Env,
    options: GroupOptions,
    commands: mpsc::UnboundedSender<Command>,
    queue: mpsc::UnboundedSender<Submission<T::Reply>>,
    proposals_bytes: AtomicUsize,
    opened: Opened<T>,
}

/// What the Raft runtime gives out once it runs.
struct Opened<T: Tables> {
    node: NodeId,
    was_clean: bool,
    reader: Reader<T>,
    role: watch::Receiver<Role>,
    raft: RaftOf<T>,
    log: Log,
    waiters: Arc<Waiters<T::Reply>>,
    counters: Arc<PeerCounters>,
    links: Arc<Links>,
    elections: Arc<AtomicU64>,
    reads: mpsc::UnboundedSender<Read>,
}

/// Bytes admitted; given back when dropped.
struct Admitted<'a>(&'a AtomicUsize, usize);

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::AcqRel);
    }
}

impl<T: Tables> Group<T> {
    /// Opens the directory, recovers, takes part in the founding (which waits for the other founders) and starts Raft.
    /// Dropping the future ends whatever was begun.
    pub async fn open(env: Env, options: GroupOptions, tables: T) -> Result<Group<T>, OpenError> {
        let (commands, received) = mpsc::unbounded_channel();
        let (queue, submissions) = mpsc::unbounded_channel();
        let (opened, opening) = oneshot::channel();
        let seed = env.rng.u64();
        let member = Member { env: env.clone(), options: options.clone(), commands: received, submissions };
        let name = format!("raft-{}", options.group);
        drop(env.executor.run(&name, Runtime::scope(seed, member.run(tables, opened))));
        let opened = opening.await.map_err(|_| OpenError::Interrupted)??;
        let proposals_bytes = AtomicUsize::new(0);
        Ok(Group(Arc::new(Shared { env, options, commands, queue, proposals_bytes, opened })))
    }

    /// Proposes operations that belong together: they stand in one entry, in this order. One outcome each.
    pub async fn propose(&self, operations: Vec<Operation>) -> Answer<T::Reply> {
        let shared = &*self.0;
        match &*shared.opened.role.borrow() {
            Role::Follower { leader: Some(leader), .. } => {
                return Err(ProposeError::NotLeader { leader: Some(leader.clone()) });
            }
            Role::Stopped { .. } => return Err(ProposeError::Stopped),
            // Somebody will lead in a moment, perhaps this node.
            Role::Follower { leader: None, .. } | Role::Candidate { .. } | Role::Leader { .. } => {}
        }
        let bytes = submission_bytes(&operations);
        let limit = shared.options.log.max_entry_bytes as usize - ENTRY_HEAD_BYTES;
        if bytes > limit {
            return Err(ProposeError::TooLarge { bytes, limit });
        }
        let before = shared.proposals_bytes.fetch_add(bytes, Ordering::AcqRel);
        let _admitted = Admitted(&shared.proposals_bytes, bytes);
        // One submission always passes, however large.
        if before > 0 && before + bytes > shared.options.proposals_bytes_max {
            return Err(ProposeError::Busy { stage: "proposals in flight" });
        }
        let (answer, answered) = oneshot::channel();
        let claim = Arc::new(Claim::default());
        let submission = Submission { operations, bytes, claim: claim.clone(), answer, arrival: 0 };
        shared.queue.send(submission).map_err(|_| ProposeError::Stopped)?;
        let limit = Duration::from_millis(shared.options.propose_limit_ms);
        match shared.env.clock.timeout(limit, answered).await {
            Some(Ok(answer)) => answer,
            // Raft's runtime is gone, or time is up: only what was still queued is certainly not appended.
            Some(Err(_)) if claim.cancel() => Err(ProposeError::Stopped),
            None if claim.cancel() => Err(ProposeError::NotLeader { leader: None }),
            Some(Err(_)) | None => Err(ProposeError::Unknown),
        }
    }

    /// Reads the folded state.
    pub fn reader(&self) -> Reader<T> {
        self.0.opened.reader.clone()
    }

    /// Watches what this member is.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.0.opened.role.clone()
    }

    /// This member's id.
    pub fn node(&self) -> NodeId {
        self.0.opened.node
    }

    /// The log, for whoever verifies or measures it.
    pub fn log(&self) -> Log {
        self.0.opened.log.clone()
    }

    /// Resolves when everything acknowledged before this call, anywhere, is applied here (ReadIndex). Concurrent
    /// callers share one round to a majority.
    pub async fn linearizable(&self) -> Result<(), ReadError> {
        let (answer, answered) = oneshot::channel();
        self.0.opened.reads.send(answer).map_err(|_| ReadError::Stopped)?;
        answered.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// Numbers for operators.
    pub fn status(&self) -> Status {
        let opened = &self.0.opened;
        let metrics = opened.raft.metrics().borrow_watched().clone();
        let last = opened.log.last();
        let membership = metrics.membership_config.membership();
        let members: Vec<Peer> = membership.nodes().map(|(id, node)| Peer::new(*id, node)).collect();
        let others = members.iter().filter(|member| member.id != opened.node);
        let versions = opened.links.cluster_versions();
        let supported = others.map(|member| versions.get(&member.id).copied()).collect::<Option<Vec<u32>>>();
        let replication = metrics.replication.iter().flatten();
        let replication = replication.filter(|(id, _)| **id != opened.node).map(|(id, matched)| {
            let matched = matched.as_ref().map(from_raft);
            let end = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
            (*id, Replication { matched, lag_entries: end(last).saturating_sub(end(matched)) })
        });
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Status {
            node: opened.node,
            role: opened.role.borrow().clone(),
            term: metrics.current_term,
            committed: metrics.local_committed.as_ref().map(from_raft),
            applied: opened.reader.applied(),
            last,
            synced: opened.log.synced().borrow().index,
            purged: opened.log.last_purged(),
            voters: membership.voter_ids().collect(),
            replication: replication.collect(),
            proposals_bytes: self.0.proposals_bytes.load(Ordering::Acquire),
            entries_in_flight: opened.waiters.len(),
            elections: load(&opened.elections),
            heartbeat_timeouts: load(&opened.counters.heartbeat_timeouts),
            inconsistent_requests: load(&opened.counters.inconsistent_requests),
            broken_streams: load(&opened.counters.broken_streams),
            cluster_version_supported: supported
                .map(|versions| versions.into_iter().fold(CLUSTER_VERSION_MAX, u32::min)),
            was_clean: opened.was_clean,
            log: opened.log.stats(),
            members,
        }
    }

    /// Raises the replicated cluster version to what every member supports, if that is more. The leader's to call.
    pub async fn raise_cluster_version(&self) -> Result<Option<Outcome<T::Reply>>, ProposeError> {
        let supported = self.status().cluster_version_supported;
        let Some(version) = supported.filter(|version| *version > self.reader().cluster_version()) else {
            return Ok(None);
        };
        let outcomes = self.propose(vec![Operation::Core(CoreCommand::RaiseClusterVersion { version })]).await?;
        Ok(outcomes.into_iter().next())
    }

    /// Adds or removes a member; resolves when the change is committed. The leader's to call. A node that is added may
    /// take as long to catch up as its log is long.
    pub async fn change_members(&self, change: MemberChange) -> Result<(), MembersError> {
        let changed = self.command(|answer| Command::ChangeMembers(change, answer)).await;
        changed.unwrap_or(Err(MembersError::Unknown))
    }

    /// Hands leadership to the follower that holds most, and waits until it leads. Submissions wait meanwhile.
    pub async fn hand_over(&self) -> Result<(), HandOverError> {
        self.command(Command::HandOver).await.unwrap_or(Err(HandOverError::Stopped))
    }

    /// Stops gracefully: hands over, ends Raft, makes derived state durable, writes marks. A second call does nothing.
    pub async fn stop(&self) -> io::Result<()> {
        self.command(Command::Stop).await.unwrap_or(Ok(()))
    }

    /// Ends at once, flushing nothing: what a test does instead of `kill -9`. Resolves when nothing of it runs.
    pub async fn kill(&self) {
        self.command(Command::Kill).await.unwrap_or(());
    }

    async fn command<R>(&self, command: impl FnOnce(oneshot::Sender<R>) -> Command) -> Option<R> {
        let (answer, answered) = oneshot::channel();
        self.0.commands.send(command(answer)).ok()?;
        answered.await.ok()
    }
}

/// What lives on the Raft runtime.
struct Member<T: Tables> {
    env: Env,
    options: GroupOptions,
    commands: mpsc::UnboundedReceiver<Command>,
    submissions: mpsc::UnboundedReceiver<Submission<T::Reply>>,
}

/// What was recovered from the directory.
struct Recovered<T: Tables> {
    directory: Directory,
    log: Log,
    fold: SharedFold<T>,
    reader: Reader<T>,
    members: Vec<NodeId>,
}

/// Everything that runs.
struct Running<T: Tables> {
    recovered: Recovered<T>,
    raft: RaftOf<T>,
    waiters: Arc<Waiters<T::Reply>>,
    paused: watch::Sender<bool>,
    /// A follower not heard of for this long is not there.
    heard_limit: Duration,
    end: LifetimeEnd,
}

/// What runs, before it is given its surroundings.
struct Started<T: Tables> {
    raft: RaftOf<T>,
    waiters: Arc<Waiters<T::Reply>>,
    paused: watch::Sender<bool>,
    handle: Opened<T>,
}

type OpenResult<T> = Result<Opened<T>, OpenError>;

impl<T: Tables> Member<T> {
    async fn run(mut self, tables: T, mut opened: oneshot::Sender<OpenResult<T>>) {
        let (running, handle) = match self.start(tables, opened.closed()).await {
            Ok(started) => started,
            Err(error) => {
                let _ = opened.send(Err(error));
                return;
            }
        };
        if opened.send(Ok(handle)).is_err() {
            return running.kill().await;
        }
        while let Some(command) = self.commands.recv().await {
            match command {
                Command::HandOver(answer) => {
                    let _ = answer.send(running.hand_over(&self.env).await);
                }
                Command::ChangeMembers(change, answer) => {
                    let raft = running.raft.clone();
                    // Beside other commands: catching up takes long.
                    drop(Types::spawn(async move {
                        let _ = answer.send(change_members(&raft, change).await);
                    }));
                }
                Command::Stop(answer) => {
                    let _ = running.hand_over(&self.env).await;
                    let stopped = running.stop().await;
                    let _ = answer.send(stopped);
                    return;
                }
                Command::Kill(answer) => {
                    running.kill().await;
                    let _ = answer.send(());
                    return;
                }
            }
        }
        running.kill().await;
    }

    /// Recovers and runs; what was recovered is closed again if `interrupted` resolves, or anything fails, before.
    async fn start(
        &mut self,
        tables: T,
        interrupted: impl Future<Output = ()>,
    ) -> Result<(Running<T>, Opened<T>), OpenError> {
        let config = self.options.raft_config().map_err(|error| OpenError::Configuration(error.to_string()))?;
        let recovered = self.recover(tables).await?;
        let (end, lifetime) = Lifetime::new();
        let started = tokio::select! { biased;
            () = interrupted => Err(OpenError::Interrupted),
            started = self.run_recovered(&recovered, config, lifetime) => started,
        };
        match started {
            Ok(Started { raft, waiters, paused, handle }) => {
                let heard_limit = Duration::from_millis(self.options.election_ms.1);
                Ok((Running { recovered, raft, waiters, paused, heard_limit, end }, handle))
            }
            Err(error) => {
                end.end().await;
                recovered.end().await;
                Err(error)
            }
        }
    }

    async fn run_recovered(
        &mut self,
        recovered: &Recovered<T>,
        config: openraft::Config,
        lifetime: Lifetime,
    ) -> Result<Started<T>, OpenError> {
        let (env, options) = (self.env.clone(), self.options.clone());
        let Recovered { directory, log, .. } = recovered;
        let was_clean = directory.was_clean;
        let own = directory.founder();
        let hello = Hello {
            protocol: (*PROTOCOL.start(), *PROTOCOL.end()),
            cluster: options.cluster.clone(),
            group: options.group.clone(),
            node: own.id,
            expects: 0,
            segment_bytes: options.segment_bytes,
            frame_version: FRAME_VERSION,
            features: 0,
            cluster_version: CLUSTER_VERSION_MAX,
            wall_ms: env.clock.wall_ms(),
            channel: Channel::Founding,
        };

        let counters = Arc::new(PeerCounters::default());
        let (raft_runs, raft_running) = watch::channel(None);
        let server = Arc::new(Server {
            env: env.clone(),
            hello: hello.clone(),
            layout: Layout { segment_bytes: options.segment_bytes },
            entry_bytes_max: options.log.max_entry_bytes,
            founding: founding_status(directory.clone(), log.clone(), recovered.members.clone()),
            raft: raft_running,
            counters: counters.clone(),
            lifetime: lifetime.clone(),
        });
        let listener = env
            .net
            .listen(options.peer_listen)
            .await
            .map_err(|source| OpenError::Listen { address: options.peer_listen, source })?;
        lifetime.spawn(server.run(listener));

        let start = Start {
            hello: hello.clone(),
            founders: options.founders.clone(),
            join: options.join,
            has_history: log.vote().is_some() || log.last().is_some(),
        };
        let to_initialize = founding::take_part(&env, directory, &start).await?;

        let tickets = Arc::new(Tickets::default());
        let waiters: Arc<Waiters<T::Reply>> = Arc::default();
        let beginning = NextBeginning::default();
        let storage = Storage::new(log.clone(), tickets.clone(), beginning.clone());
        let machine = Machine {
            env: env.clone(),
            log: log.clone(),
            fold: recovered.fold.clone(),
            tickets: tickets.clone(),
            waiters: waiters.clone(),
            beginning,
        };
        let links = Links::new(env.clone(), log.clone(), hello, counters.clone());
        let raft = Raft::new(own.id, Arc::new(config), Factory(links.clone()), storage, machine)
            .await
            .map_err(|fatal| OpenError::Raft(fatal.to_string()))?;
        raft_runs.send_replace(Some(raft.clone()));
        if let Some(set) = to_initialize {
            lifetime.spawn(initialize(env.clone(), directory.clone(), start, set, raft.clone()));
        }

        let elections = Arc::new(AtomicU64::new(0));
        let (office, watch_office) = watch::channel(office_of(&raft.server_metrics().borrow_watched()));
        let (ready, watch_ready) = watch::channel(None);
        let (role, watch_role) = watch::channel(role_of(&watch_office.borrow(), None, None));
        lifetime.spawn(follow_office(raft.clone(), office, elections.clone()));
        drop(Types::spawn(follow_role(raft.clone(), watch_office.clone(), watch_ready, role)));
        let (paused, watch_paused) = watch::channel(false);
        let (reads, asked) = mpsc::unbounded_channel();
        lifetime.spawn(answer_reads(raft.clone(), asked));
        let (_, none) = mpsc::unbounded_channel();
        let proposer = Proposer {
            clock: env.clock.clone(),
            raft: raft.clone(),
            reader: recovered.reader.clone(),
            tickets,
            waiters: waiters.clone(),
            queue: std::mem::replace(&mut self.submissions, none),
            office: watch_office,
            ready,
            paused: watch_paused,
            arrivals: 0,
        };
        drop(Types::spawn(proposer.run()));

        let handle = Opened {
            node: own.id,
            was_clean,
            reader: recovered.reader.clone(),
            role: watch_role,
            raft: raft.clone(),
            log: log.clone(),
            waiters: waiters.clone(),
            counters,
            links,
            elections,
            reads,
        };
        Ok(Started { raft, waiters, paused, handle })
    }

    async fn recover(&self, tables: T) -> Result<Recovered<T>, OpenError> {
        let (env, options) = (&self.env, &self.options);
        let expected = Expected {
            cluster: options.cluster.clone(),
            group: options.group.clone(),
            segment_bytes: options.segment_bytes,
            flush_mode: options.flush_mode,
            node: Node { peer_address: options.peer_address.clone(), client_address: options.client_address.clone() },
        };
        let directory = Directory::open(env, &options.dir, &expected).await?;
        let derived = DerivedOptions { segment_bytes: options.segment_bytes, ..options.derived.clone() };
        let derived = Derived::probe(env, options.dir.clone(), derived).await?;
        let log_options = LogOptions { segment_bytes: options.segment_bytes, ..options.log.clone() };
        let log = Log::open(env.clone(), options.dir.clone(), log_options, derived.log_floor()).await?;
        let fold = match Fold::open(derived, log.clone(), tables).await {
            Ok(fold) => fold,
            Err(error) => {
                log.kill().await;
                return Err(error.into());
            }
        };
        if let Some(applied) = fold.applied() {
            log.set_applied(applied.index);
        }
        let (reader, members) = (fold.reader(), member_ids(&fold));
        Ok(Recovered { directory, log, fold: Arc::new(Mutex::new(Some(fold))), reader, members })
    }
}

impl<T: Tables> Recovered<T> {
    /// Ends what was recovered without writing anything more.
    async fn end(self) {
        self.log.kill().await;
        if let Some(fold) = self.fold.lock().await.take() {
            fold.kill().await;
        }
    }
}

fn founding_status(
    directory: Directory,
    log: Log,
    members: Vec<NodeId>,
) -> Arc<dyn Fn() -> FoundingStatus + Send + Sync> {
    Arc::new(move || FoundingStatus {
        founder: directory.founder(),
        has_vote: log.vote().is_some(),
        has_log: log.last().is_some(),
        set: directory.identity().founding_set,
        members: members.clone(),
    })
}

/// The first founder's last step. If it fails or is interrupted, this node's next start tries again.
async fn initialize<T: Tables>(env: Env, directory: Directory, start: Start, set: Vec<Founder>, raft: RaftOf<T>) {
    match founding::all_confirmed(&env, &directory, &start, &set).await {
        Ok(true) => {}
        // The group exists.
        Ok(false) => return,
        Err(error) => {
            tracing::error!(%error, "the group cannot be founded");
            return;
        }
    }
    let members: BTreeMap<NodeId, Node> = set.into_iter().map(|founder| (founder.id, founder.node)).collect();
    fault!("founding.initialize");
    match raft.initialize(members).await {
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
        Err(error) => tracing::error!(%error, "initializing the group"),
    }
    fault!("founding.initialized");
}

fn office_of(server: &RaftServerMetrics<Types>) -> Office {
    let term = server.vote.leader_id.term;
    match server.state {
        ServerState::Leader => Office::Leading { term },
        ServerState::Shutdown => Office::Stopped,
        state => {
            let membership = server.membership_config.membership();
            let leader = server.current_leader.filter(|leader| *leader != server.id);
            let leader = leader.and_then(|id| Some(Peer::new(id, membership.get_node(&id)?)));
            Office::Following { term, leader, campaigning: state == ServerState::Candidate }
        }
    }
}

fn role_of(office: &Office, ready: Option<u64>, reason: Option<String>) -> Role {
    match office {
        Office::Leading { term } => Role::Leader { term: *term, ready: ready == Some(*term) },
        Office::Following { term, campaigning: true, .. } => Role::Candidate { term: *term },
        Office::Following { term, leader, .. } => Role::Follower { term: *term, leader: leader.clone() },
        Office::Stopped => Role::Stopped { reason },
    }
}

/// Publishes who leads, as it changes, until Raft ends.
async fn follow_office<T: Tables>(raft: RaftOf<T>, office: watch::Sender<Office>, elections: Arc<AtomicU64>) {
    // Server metrics change with votes and leaders only, the others with every entry.
    let mut changes = raft.server_metrics();
    loop {
        let ended = changes.changed().await.is_err();
        let now = if ended { Office::Stopped } else { office_of(&changes.borrow_watched()) };
        office.send_if_modified(|before| {
            let changed = *before != now;
            if changed {
                elections.fetch_add(1, Ordering::Relaxed);
                *before = now.clone();
            }
            changed
        });
        if ended {
            return;
        }
    }
}

/// Publishes the role, which is the office and whether its holder is ready.
async fn follow_role<T: Tables>(
    raft: RaftOf<T>,
    mut office: watch::Receiver<Office>,
    mut ready: watch::Receiver<Option<u64>>,
    role: watch::Sender<Role>,
) {
    loop {
        let (now, term) = (office.borrow_and_update().clone(), *ready.borrow_and_update());
        let failed = raft.metrics().borrow_watched().running_state.clone().err();
        let failed = failed.filter(|fatal| !matches!(fatal, openraft::error::Fatal::Stopped));
        let now_role = role_of(&now, term, failed.map(|fatal| fatal.to_string()));
        role.send_if_modified(|before| {
            let changed = *before != now_role;
            *before = now_role.clone();
            changed
        });
        if now == Office::Stopped {
            return;
        }
        let ended = tokio::select! { biased;
            changed = office.changed() => changed.is_err(),
            changed = ready.changed() => changed.is_err(),
        };
        if ended {
            role.send_replace(role_of(&Office::Stopped, None, None));
            return;
        }
    }
}

/// One round to a majority answers everybody who asked before it began.
async fn answer_reads<T: Tables>(raft: RaftOf<T>, mut asked: mpsc::UnboundedReceiver<Read>) {
    while let Some(first) = asked.recv().await {
        let mut askers = vec![first];
        while let Ok(asker) = asked.try_recv() {
            askers.push(asker);
        }
        let result = match raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                let leader = forward.leader_id.zip(forward.leader_node.as_ref());
                Err(ReadError::NotLeader { leader: leader.map(|(id, node)| Peer::new(id, node)) })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadError::NoQuorum),
            Err(RaftError::Fatal(_)) => Err(ReadError::Stopped),
        };
        for asker in askers {
            let _ = asker.send(result.clone());
        }
    }
}

async fn change_members<T: Tables>(raft: &RaftOf<T>, change: MemberChange) -> Result<(), MembersError> {
    let changed = match change {
        MemberChange::Add(Peer { id, peer_address, client_address }) => {
            raft.add_learner(id, Node { peer_address, client_address }, true).await.map_err(members_error)?;
            raft.change_membership(ChangeMembers::AddVoterIds([id].into()), false).await
        }
        MemberChange::Remove(id) => {
            raft.change_membership(ChangeMembers::RemoveVoters([id].into()), false).await.map_err(members_error)?;
            // A voter is gone with that; a learner is removed by this.
            raft.change_membership(ChangeMembers::RemoveNodes([id].into()), false).await
        }
    };
    changed.map(|_| ()).map_err(members_error)
}

fn members_error(error: RaftError<Types, ClientWriteError<Types>>) -> MembersError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            let leader = forward.leader_id.zip(forward.leader_node.as_ref());
            MembersError::NotLeader { leader: leader.map(|(id, node)| Peer::new(id, node)) }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) | RaftError::Fatal(_) => MembersError::Unknown,
        RaftError::APIError(error) => MembersError::Refused(error.to_string()),
    }
}

impl<T: Tables> Running<T> {
    async fn hand_over(&self, env: &Env) -> Result<(), HandOverError> {
        let own = *self.raft.node_id();
        let mut metrics = self.raft.metrics();
        {
            let now = metrics.borrow_watched();
            if now.state != ServerState::Leader {
                return Err(HandOverError::NotLeader);
            }
            if now.membership_config.membership().voter_ids().all(|voter| voter == own) {
                return Err(HandOverError::Alone);
            }
        }
        // What waits goes to the successor's clients; what is in flight is waited for, so that somebody holds it all.
        self.paused.send_replace(true);
        let handed_over = env.clock.timeout(HAND_OVER_LIMIT, async {
            let successor = loop {
                let successor = successor(&metrics.borrow_watched(), self.heard_limit);
                match successor {
                    Successor::NotLeader => return Ok(()),
                    Successor::Is(id) => break id,
                    Successor::Nobody => return Err(HandOverError::NotTaken),
                    Successor::NotYet => metrics.changed().await.map_err(|_| HandOverError::Stopped)?,
                }
            };
            self.raft.trigger().transfer_leader(successor).await.map_err(|_| HandOverError::Stopped)?;
            loop {
                let leads = metrics.borrow_watched().current_leader;
                if leads.is_some_and(|leader| leader != own) {
                    return Ok(());
                }
                metrics.changed().await.map_err(|_| HandOverError::Stopped)?;
            }
        });
        let handed_over = handed_over.await.unwrap_or(Err(HandOverError::NotTaken));
        self.paused.send_replace(false);
        handed_over
    }

    /// Everything ends, whatever fails on the way; the clean-stop mark is written only if nothing did.
    async fn stop(self) -> io::Result<()> {
        let shutdown = self.raft.shutdown().await.map_err(io::Error::other);
        self.end.end().await;
        self.waiters.end();
        let fold = self.recovered.fold.lock().await.take();
        let fold_closed = match fold {
            Some(fold) => fold.close().await,
            None => Ok(()),
        };
        self.recovered.log.close().await?;
        shutdown.and(fold_closed)?;
        self.recovered.directory.stopped_cleanly().await
    }

    /// Ends everything without writing anything more. The lock is released last.
    async fn kill(self) {
        // The log first: whoever waits for it, waits for nothing.
        self.recovered.log.kill().await;
        let _ = self.raft.shutdown().await;
        self.end.end().await;
        self.waiters.end();
        self.recovered.end().await;
    }
}

enum Successor {
    /// This node leads no more.
    NotLeader,
    /// No other voter was heard of lately.
    Nobody,
    /// Whoever was heard of does not hold everything yet.
    NotYet,
    Is(NodeId),
}

/// A voter that was heard of within `heard_limit` and holds everything; that is what a successor must have.
fn successor(metrics: &RaftMetrics<Types>, heard_limit: Duration) -> Successor {
    let (ServerState::Leader, Some(replication), Some(heard)) =
        (metrics.state, &metrics.replication, &metrics.heartbeat)
    else {
        return Successor::NotLeader;
    };
    let voters = metrics.membership_config.membership().voter_ids().filter(|voter| *voter != metrics.id);
    let is_there = |voter: &NodeId| heard.get(voter).copied().flatten().is_some_and(|at| at.elapsed() < heard_limit);
    let mut there = voters.filter(is_there).peekable();
    if there.peek().is_none() {
        return Successor::Nobody;
    }
    let held = |voter: &NodeId| replication.get(voter).cloned().flatten().map(|matched| matched.index);
    there.find(|voter| held(voter) >= metrics.last_log_index).map_or(Successor::NotYet, Successor::Is)
}

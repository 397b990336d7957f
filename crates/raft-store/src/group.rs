//! Group: one member of a broker group, as the broker sees it: open, propose, read, watch, stop.
//!
//! A handle for any thread. What runs is [`crate::member`], on a runtime of its own; reading goes through
//! [`Group::reader`] and enters none of it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use env::Env;
use openraft::SnapshotPolicy;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{mpsc, oneshot, watch};

use crate::entry::{CoreCommand, Operation};
use crate::fold::{Outcome, Reader, Tables};
use crate::forward_key::ForwardKey;
use crate::founding::FoundingError;
use crate::group_time::Reading;
use crate::identity::{FlushMode, IdentityError};
use crate::keys_in_flight::{HeldKeys, KeysInFlight};
use crate::log::{self, Log, LogOptions};
use crate::materializer::{self, DerivedOptions};
use crate::member::{Command, Member, Opened};
use crate::membership;
use crate::planted::{self, Bug};
use crate::position::{LogId, NodeId, Timestamp};
use crate::proposer::{Admitted, Answer, Claim, ProposeError, Submission, submission_bytes};
use crate::raft::types::{Node, Runtime, from_raft};
use crate::repair::{RepairError, Repaired};
use crate::scrub::Scrubbed;
use crate::state_hash::ImageHashes;

/// Newest `cluster_version` that this build can apply.
pub const CLUSTER_VERSION_MAX: u32 = 1;

/// Bytes of an entry that are not operations.
const ENTRY_HEAD_BYTES: usize = 64;

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
    /// What a member lacks becomes less at this rate at most, so that clients do not notice; 0 for as fast as it goes.
    pub catch_up_bytes_per_s: u64,
    /// When to acknowledge.
    pub flush_mode: FlushMode,
    /// With [`FlushMode::AsyncFlush`]: what was written is synced this much later.
    pub flush_interval_ms: u64,
    /// With [`FlushMode::AsyncFlush`]: a group of which a majority's machines went down goes on by itself, without what
    /// was not flushed. Else it waits for an operator.
    pub async_auto_recover: bool,
    /// Segment size, fixed for the cluster.
    pub segment_bytes: u64,
    /// A leader shows itself this often.
    pub heartbeat_ms: u64,
    /// A follower campaigns after the longer of the two, plus a random part.
    pub election_ms: (u64, u64),
    /// A proposal without an outcome is given up after this.
    pub propose_limit_ms: u64,
    /// Bytes of proposals that are held: without an outcome, or not yet dropped after their callers gave them up.
    /// Beyond it, busy.
    pub proposals_bytes_max: usize,
    /// Full segments are read through and verified at this rate; 0 for not at all.
    pub scrub_bytes_per_s: u64,
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
            catch_up_bytes_per_s: 32 << 20,
            flush_mode: FlushMode::SyncFlush,
            flush_interval_ms: 500,
            async_auto_recover: false,
            segment_bytes: 1 << 30,
            heartbeat_ms: 100,
            election_ms: (500, 1000),
            propose_limit_ms: 3000,
            proposals_bytes_max: 64 << 20,
            scrub_bytes_per_s: 4 << 20,
            log: LogOptions::default(),
            derived: DerivedOptions::default(),
        }
    }

    pub(crate) fn raft_config(&self) -> Result<openraft::Config, openraft::ConfigError> {
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
            enable_leader_restore: Some(planted::is(Bug::LeaderRestored)),
            // One that flushes by a timer may come back with less than it had acknowledged.
            allow_log_reversion: Some(
                self.flush_mode == FlushMode::AsyncFlush || planted::is(Bug::AcknowledgeBeforeQuorum),
            ),
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
    /// It leads as far as it knows, and no majority has answered it for as long as the others need to elect somebody else: it
    /// serves nothing until one does.
    Isolated {
        /// Its term.
        term: u64,
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
    /// The log is damaged and cannot be repaired from the peers.
    #[error(transparent)]
    Repair(#[from] RepairError),
    /// The start came upon damage in a part of the log that is not looked at before. The next start repairs it.
    #[error("{0}; start again: then it is repaired from the peers")]
    Rot(String),
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
    /// Only a voter can lead.
    #[error("not a voter of this group")]
    NotAVoter,
    /// Nobody took it in time. If nobody was asked to, this node goes on; else it serves nothing more in this term, and
    /// submissions wait until a majority has elected somebody, which may be this node.
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
    /// This change is wrong, or another one is under way. Nothing was changed.
    #[error("refused: {0}")]
    Refused(String),
    /// The node that is to be added does not answer as one should. Nothing was changed.
    #[error("the new node does not answer: {0}")]
    Unreachable(String),
    /// The node that is to vote lacks too much. Nothing was changed; ask again later.
    #[error("the new node still lacks {lag_bytes} bytes of the log")]
    NotCaughtUp {
        /// Bytes of log that it is not known to hold.
        lag_bytes: u64,
    },
    /// Leadership was lost, or this node stopped, before it was decided: look at the members and ask again.
    #[error("leadership was lost before the change was decided")]
    Unknown,
}

/// A change of the voters, all of it in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VotersChange {
    /// A learner that has caught up.
    pub add: Option<NodeId>,
    /// A member that leaves, or is lost for good, and not the leader. Its id is never used again.
    pub remove: Option<NodeId>,
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
    /// Bytes of proposals that are held: without an outcome, or not yet dropped after their callers gave them up.
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
    /// The newest checkpoint that a majority of replicas agreed on, as applied here.
    pub state_agreed: Option<LogId>,
    /// The newest checkpoint with a verdict, if that is that no majority agrees.
    pub state_split: Option<LogId>,
    /// The hashes of this replica's newest images, and where they were cut.
    pub image_hashes: ImageHashes,
    /// How far this node's wall clock surely is from the median of the voters', ahead if positive; at the leader only.
    pub clock_offset_ms: Option<i64>,
    /// Times that this node's wall clock was not followed, because it was moved or wrong.
    pub clock_steps_refused: u64,
    /// Times that this node handed over because its clock was off.
    pub clock_hand_overs: u64,
    /// Times that an image was not sent to a member that needs it because it is damaged here.
    pub damaged_images: u64,
    /// Newest cluster version that every member reached so far can apply; `None` while one was not reached.
    pub cluster_version_supported: Option<u32>,
    /// The last stop was graceful.
    pub was_clean: bool,
    /// It may have lost what it acknowledged, and neither votes nor campaigns until it has caught up.
    pub on_probation: bool,
    /// What the last start had to fetch from the peers because the log was damaged.
    pub repaired: Repaired,
    /// How far the scrubber is.
    pub scrubbed: Scrubbed,
    /// Groups written, syncs by duration, bytes queued.
    pub log: log::Stats,
}

/// What a member lacks of the leader's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// Bytes that it is not known to hold durably.
    pub bytes: u64,
    /// It may become a voter.
    pub is_caught_up: bool,
}

/// How far a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replication {
    /// Last id it is known to hold durably.
    pub matched: Option<LogId>,
    /// Entries it lacks.
    pub lag_entries: u64,
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
    proposals_bytes: Arc<AtomicUsize>,
    keys: Arc<KeysInFlight>,
    opened: Opened<T>,
}

impl<T: Tables> Group<T> {
    /// Opens the directory, recovers, takes part in the founding (which waits for the other founders) and starts Raft.
    /// Dropping the future ends whatever was begun.
    pub async fn open(env: Env, options: GroupOptions, tables: T) -> Result<Group<T>, OpenError> {
        let (commands, received) = mpsc::unbounded_channel();
        let (queue, submissions) = mpsc::unbounded_channel();
        let (opened, opening) = oneshot::channel();
        let seed = env.rng.u64();
        let weak = queue.downgrade();
        let member =
            Member { env: env.clone(), options: options.clone(), commands: received, submissions, queue: weak };
        let name = format!("raft-{}", options.group);
        drop(env.executor.run(&name, Runtime::scope(seed, member.run(tables, opened))));
        let opened = opening.await.map_err(|_| OpenError::Interrupted)??;
        let (proposals_bytes, keys) = (Arc::default(), Arc::default());
        Ok(Group(Arc::new(Shared { env, options, commands, queue, proposals_bytes, keys, opened })))
    }

    /// Proposes operations that belong together: they stand in one entry, in this order. One outcome each.
    pub async fn propose(&self, operations: Vec<Operation>) -> Answer<T::Reply> {
        self.submit(operations, None).await
    }

    /// Waits until none of these keys' hashes is held, and holds them: to look whether a message with one of the keys is
    /// there already, and to propose it if not. Says why that proves what it should: [`crate::keys_in_flight`].
    pub async fn hold_keys(&self, mut hashes: Vec<u64>) -> Result<HeldKeys, ProposeError> {
        hashes.sort_unstable();
        hashes.dedup();
        let mut held = self.0.keys.hold(hashes).await;
        match &*self.0.opened.role.borrow() {
            Role::Leader { term, ready: true } => {
                held.term = *term;
                Ok(held)
            }
            Role::Follower { leader, .. } => Err(ProposeError::NotLeader { leader: leader.clone() }),
            Role::Stopped { .. } => Err(ProposeError::Stopped),
            Role::Leader { .. } | Role::Isolated { .. } | Role::Candidate { .. } => {
                Err(ProposeError::NotLeader { leader: None })
            }
        }
    }

    /// As [`Group::propose`], in the term in which the keys were held, and holding them until the outcome is certain.
    pub async fn propose_holding(&self, operations: Vec<Operation>, held: HeldKeys) -> Answer<T::Reply> {
        self.submit(operations, Some(held)).await
    }

    async fn submit(&self, operations: Vec<Operation>, held: Option<HeldKeys>) -> Answer<T::Reply> {
        let shared = &*self.0;
        match &*shared.opened.role.borrow() {
            Role::Follower { leader: Some(leader), .. } => {
                return Err(ProposeError::NotLeader { leader: Some(leader.clone()) });
            }
            Role::Isolated { .. } => return Err(ProposeError::NotLeader { leader: None }),
            Role::Stopped { .. } => return Err(ProposeError::Stopped),
            // Somebody will lead in a moment, perhaps this node.
            Role::Follower { leader: None, .. } | Role::Candidate { .. } | Role::Leader { .. } => {}
        }
        let bytes = submission_bytes(&operations);
        let limit = shared.options.log.max_entry_bytes as usize - ENTRY_HEAD_BYTES;
        if bytes > limit {
            return Err(ProposeError::TooLarge { bytes, limit });
        }
        let Some(admitted) = Admitted::admit(&shared.proposals_bytes, bytes, shared.options.proposals_bytes_max) else {
            return Err(ProposeError::Busy { stage: "proposals in flight" });
        };
        let (answer, answered) = oneshot::channel();
        let claim = Arc::new(Claim::default());
        let submission = Submission { operations, bytes, admitted, held, claim: claim.clone(), answer, arrival: 0 };
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

    /// By what this member believes that a request was forwarded to it by another member.
    pub fn forward_key(&self) -> ForwardKey {
        self.0.opened.forward_key
    }

    /// By what that member believes it. `None` if it has not connected to this one yet.
    pub fn forward_key_of(&self, node: NodeId) -> Option<ForwardKey> {
        self.0.opened.forward_keys.get(node)
    }

    /// Group time as the next entry would be stamped, or a little less. Elsewhere than at the leader it is this machine's
    /// time, which nothing confirms.
    pub fn now(&self) -> Timestamp {
        let opened = &self.0.opened;
        let now = opened.group_clock.borrow().at(Reading::of(&self.0.env.clock));
        opened.reader.now().max(now)
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
        let clock = *opened.group_clock.borrow();
        let state_hashes = opened.reader.state_hashes();
        Status {
            node: opened.node,
            role: opened.role.borrow().clone(),
            term: metrics.current_term,
            // Metrics come a little later, when more may be applied already.
            committed: metrics.local_committed.max(*opened.committed.lock()).as_ref().map(from_raft),
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
            state_agreed: state_hashes.agreed(),
            state_split: state_hashes.split(),
            image_hashes: state_hashes.told(),
            clock_offset_ms: clock.offset_ms,
            clock_steps_refused: clock.steps_refused,
            clock_hand_overs: load(&opened.clock_hand_overs),
            damaged_images: load(&opened.counters.damaged_images),
            cluster_version_supported: supported
                .map(|versions| versions.into_iter().fold(CLUSTER_VERSION_MAX, u32::min)),
            was_clean: opened.was_clean,
            on_probation: !opened.probation.is_over(),
            repaired: opened.repaired,
            scrubbed: opened.scrubbing.now(),
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

    /// Makes the node whose peer listener is at `peer_address`, and which was started with `join`, a member without a vote,
    /// if it is none yet. Resolves when that is committed; from then on it catches up. The leader's to call, and safe to
    /// repeat.
    pub async fn add_learner(&self, peer_address: &str) -> Result<Peer, MembersError> {
        let added = self.command(|answer| Command::AddLearner(peer_address.to_owned(), answer)).await;
        added.unwrap_or(Err(MembersError::Unknown))
    }

    /// Changes who votes; resolves when the change is committed. The leader's to call, and safe to repeat.
    pub async fn change_voters(&self, change: VotersChange) -> Result<(), MembersError> {
        let changed = self.command(|answer| Command::ChangeVoters(change, answer)).await;
        changed.unwrap_or(Err(MembersError::Unknown))
    }

    /// Bytes of this node's log that each other member is not known to hold durably, and whether that is little enough to
    /// vote. Empty elsewhere than at the leader.
    pub async fn lags(&self) -> BTreeMap<NodeId, Lag> {
        let opened = &self.0.opened;
        let mut lags = BTreeMap::new();
        for (node, held) in membership::held(&opened.raft) {
            lags.insert(node, membership::lag(&opened.log, held).await);
        }
        lags
    }

    /// Whether this replica can show clients everything that is retained: it is a voter, and its log reaches back to where
    /// retention has cut. A new member, or one that was away for long, gets there by and by.
    pub fn is_caught_up(&self) -> bool {
        let opened = &self.0.opened;
        let is_voter = {
            let metrics = opened.raft.server_metrics();
            let now = metrics.borrow_watched();
            membership::is_voter(now.membership_config.membership(), opened.node)
        };
        let begin = opened.log.purged_boundary().map(|purged| purged.end.physical_offset).unwrap_or_default();
        is_voter && begin <= opened.reader.min_physical()
    }

    /// Hands leadership to the follower that holds most, and waits until it leads. Submissions wait meanwhile.
    pub async fn hand_over(&self) -> Result<(), HandOverError> {
        self.command(|answer| Command::HandOver(None, answer)).await.unwrap_or(Err(HandOverError::Stopped))
    }

    /// The same, to this voter.
    pub async fn hand_over_to(&self, voter: NodeId) -> Result<(), HandOverError> {
        self.command(|answer| Command::HandOver(Some(voter), answer)).await.unwrap_or(Err(HandOverError::Stopped))
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

//! Member: what a [`crate::group::Group`] is a handle to. Opens the directory, takes part in the founding, runs Raft, the
//! peer server and the proposer, and ends them.
//!
//! All of it lives on one single-threaded runtime ("raft-…"): fewer wake-ups, and batches that form by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use env::{Env, fault};
use openraft::async_runtime::WatchReceiver;
use openraft::error::{InitializeError, LinearizableReadError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::TypeConfigExt;
use openraft::{Instant, Raft, RaftMetrics, ReadPolicy, ServerState};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::consume_queue::aside;
use crate::fold::{Fold, Reader, Tables};
use crate::forward_key::{ForwardKey, ForwardKeys};
use crate::founding::{self, Start};
use crate::group::{
    CLUSTER_VERSION_MAX, GroupOptions, HandOverError, MembersError, OpenError, Peer, ReadError, Role, VotersChange,
};
use crate::identity::{Directory, Expected, FlushMode, IdentityError};
use crate::log::segment::Layout;
use crate::log::{self, Log, LogOptions};
use crate::materializer::{Derived, DerivedOptions};
use crate::membership::{Membership, finish_changes, is_voter};
use crate::position::NodeId;
use crate::proposer::{GroupClock, HandingOver, Proposer, Serving, Submission, Waiters, Wish, leader_told};
use crate::raft::machine::{Machine, Roster, SharedFold};
use crate::raft::peer::PeerCounters;
use crate::raft::peer::client::{Factory, Links, Refusals};
use crate::raft::peer::frames::Peers;
use crate::raft::peer::server::{Lifetime, LifetimeEnd, Server};
use crate::raft::peer::vitals;
use crate::raft::peer::wire::{Channel, FRAME_VERSION, Founder, FoundingStatus, Hello, PROTOCOL};
use crate::raft::probation::Probation;
use crate::raft::purge;
use crate::raft::removal;
use crate::raft::slow_disk;
use crate::raft::storage::{Committed, NextBeginning, Storage};
use crate::raft::tickets::Tickets;
use crate::raft::types::{Node, Types};
use crate::repair::{self, Repaired};
use crate::scrub;
use crate::state_hash;

/// A hand-over that takes longer is given up.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(3);

type RaftOf<T> = Raft<Types, Machine<T>>;

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

/// Why this replica had to stop, if it had to for a reason that Raft does not know.
type Failure = watch::Receiver<Option<String>>;

/// Somebody who waits for a read to be current.
pub(crate) type Read = oneshot::Sender<Result<(), ReadError>>;

/// What a [`crate::group::Group`] asks of its member.
pub(crate) enum Command {
    HandOver(Option<NodeId>, oneshot::Sender<Result<(), HandOverError>>),
    AddLearner(String, oneshot::Sender<Result<Peer, MembersError>>),
    ChangeVoters(VotersChange, oneshot::Sender<Result<(), MembersError>>),
    Stop(oneshot::Sender<io::Result<()>>),
    Kill(oneshot::Sender<()>),
}

/// What the Raft runtime gives out once it runs.
pub(crate) struct Opened<T: Tables> {
    pub node: NodeId,
    pub forward_key: ForwardKey,
    pub forward_keys: Arc<ForwardKeys>,
    pub was_clean: bool,
    pub probation: Arc<Probation>,
    pub repaired: Repaired,
    pub scrubbing: Arc<scrub::Progress>,
    pub reader: Reader<T>,
    pub role: watch::Receiver<Role>,
    pub raft: RaftOf<T>,
    pub log: Log,
    pub committed: Committed,
    pub waiters: Arc<Waiters<T::Reply>>,
    pub counters: Arc<PeerCounters>,
    pub links: Arc<Links>,
    pub elections: Arc<AtomicU64>,
    pub reads: mpsc::UnboundedSender<Read>,
    pub group_clock: watch::Receiver<GroupClock>,
    pub clock_hand_overs: Arc<AtomicU64>,
}

/// What lives on the Raft runtime.
pub(crate) struct Member<T: Tables> {
    pub env: Env,
    pub options: GroupOptions,
    pub commands: mpsc::UnboundedReceiver<Command>,
    pub submissions: mpsc::UnboundedReceiver<Submission<T::Reply>>,
    /// Where `submissions` come from. Weak: the member ends with its handles.
    pub queue: mpsc::WeakUnboundedSender<Submission<T::Reply>>,
}

/// What was recovered from the directory.
struct Recovered<T: Tables> {
    directory: Directory,
    log: Log,
    fold: SharedFold<T>,
    reader: Reader<T>,
    roster: watch::Sender<Roster>,
    repaired: Repaired,
}

/// Everything that runs.
struct Running<T: Tables> {
    recovered: Recovered<T>,
    raft: RaftOf<T>,
    waiters: Arc<Waiters<T::Reply>>,
    handing: watch::Sender<HandingOver>,
    failure: Failure,
    wishes: mpsc::UnboundedReceiver<Wish>,
    clock_hand_overs: Arc<AtomicU64>,
    links: Arc<Links>,
    membership: Arc<Membership<T>>,
    /// A follower not heard of for this long is not there.
    heard_limit: Duration,
    end: LifetimeEnd,
}

/// What runs, before it is given its surroundings.
struct Started<T: Tables> {
    raft: RaftOf<T>,
    waiters: Arc<Waiters<T::Reply>>,
    handing: watch::Sender<HandingOver>,
    failure: Failure,
    wishes: mpsc::UnboundedReceiver<Wish>,
    membership: Arc<Membership<T>>,
    handle: Opened<T>,
}

type OpenResult<T> = Result<Opened<T>, OpenError>;

impl<T: Tables> Member<T> {
    /// Opens, says so in `opened`, and serves commands until one ends it or all its handles are gone.
    pub async fn run(mut self, tables: T, mut opened: oneshot::Sender<OpenResult<T>>) {
        let (mut running, handle) = match self.start(tables, opened.closed()).await {
            Ok(started) => started,
            Err(error) => {
                let _ = opened.send(Err(error));
                return;
            }
        };
        if opened.send(Ok(handle)).is_err() {
            return running.kill().await;
        }
        loop {
            let command = tokio::select! { biased;
                command = self.commands.recv() => command,
                Some(wish) = running.wishes.recv() => {
                    running.grant(&self.env, wish).await;
                    continue;
                }
            };
            let Some(command) = command else { break };
            match command {
                Command::HandOver(to, answer) => {
                    let _ = answer.send(running.hand_over(&self.env, to.as_ref().map(std::slice::from_ref)).await);
                }
                // Changes of members wait for a majority, other commands not for them.
                Command::AddLearner(address, answer) => {
                    let membership = running.membership.clone();
                    drop(Types::spawn(async move {
                        let _ = answer.send(membership.add_learner(&address).await);
                    }));
                }
                Command::ChangeVoters(change, answer) => {
                    let membership = running.membership.clone();
                    drop(Types::spawn(async move {
                        let _ = answer.send(membership.change_voters(change).await);
                    }));
                }
                Command::Stop(answer) => {
                    let _ = running.hand_over(&self.env, None).await;
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
        let mut interrupted = std::pin::pin!(interrupted);
        let recovered = self.recover(tables, interrupted.as_mut()).await?;
        let (end, lifetime) = Lifetime::new();
        let started = tokio::select! { biased;
            () = interrupted => Err(OpenError::Interrupted),
            started = self.run_recovered(&recovered, config, lifetime) => started,
        };
        match started {
            Ok(Started { raft, waiters, handing, failure, wishes, membership, handle }) => {
                let (links, clock_hand_overs) = (handle.links.clone(), handle.clock_hand_overs.clone());
                let heard_limit = Duration::from_millis(self.options.election_ms.1);
                let running = Running {
                    recovered,
                    raft,
                    waiters,
                    handing,
                    failure,
                    wishes,
                    clock_hand_overs,
                    links,
                    membership,
                    heard_limit,
                    end,
                };
                Ok((running, handle))
            }
            Err(error) => {
                end.end().await;
                // openraft reads the log while it starts.
                let rot = recovered.log.corruption().borrow().clone();
                let error = match rot {
                    Some(rot) => {
                        self.note_repair(&rot).await;
                        OpenError::Rot(rot)
                    }
                    None => error,
                };
                recovered.end().await;
                Err(error)
            }
        }
    }

    async fn note_repair(&self, why: &str) {
        if let Err(error) = repair::note(&self.env, &self.options.dir, why).await {
            tracing::error!(%error, "that the log must be repaired could not be noted");
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
        let probation = Probation::new(!directory.identity().on_probation);
        let own = directory.founder();
        let hello = self.hello(directory);
        let (forward_key, forward_keys) = (ForwardKey::mint(&env), Arc::<ForwardKeys>::default());

        let counters = Arc::new(PeerCounters::default());
        let (raft_runs, raft_running) = watch::channel(None);
        let server = Arc::new(Server {
            env: env.clone(),
            hello: hello.clone(),
            layout: Layout { segment_bytes: options.segment_bytes },
            told: told_hashes(recovered.reader.clone()),
            entry_bytes_max: options.log.max_entry_bytes,
            log: log.clone(),
            founding: founding_status(directory.clone(), log.clone(), recovered.roster.subscribe()),
            raft: raft_running,
            probation: probation.clone(),
            forward_keys: forward_keys.clone(),
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
        let committed = Committed::default();
        let storage = Storage::new(log.clone(), tickets.clone(), beginning.clone(), committed.clone());
        let machine = Machine {
            env: env.clone(),
            log: log.clone(),
            fold: recovered.fold.clone(),
            tickets,
            waiters: waiters.clone(),
            beginning,
            roster: recovered.roster.clone(),
        };
        let hello = Hello { forward_key: Some(forward_key), ..hello };
        let links = Links::new(env.clone(), log.clone(), hello.clone(), counters.clone(), options.catch_up_bytes_per_s);
        lifetime.spawn(links.clone().run());
        let config = openraft::Config { enable_elect: probation.is_over(), ..config };
        let raft = Raft::new(own.id, Arc::new(config), Factory(links.clone()), storage, machine)
            .await
            .map_err(|fatal| OpenError::Raft(fatal.to_string()))?;
        raft_runs.send_replace(Some(raft.clone()));
        lifetime.spawn(probation.clone().serve(
            env.clone(),
            directory.clone(),
            recovered.reader.clone(),
            raft.clone(),
            options.async_auto_recover,
        ));
        if let Some(set) = to_initialize {
            lifetime.spawn(initialize(env.clone(), directory.clone(), start, set, raft.clone()));
        }

        let elections = Arc::new(AtomicU64::new(0));
        let (office, watch_office) = watch::channel(office_of(&raft.server_metrics().borrow_watched()));
        let (serving, watch_serving) = watch::channel(Serving::No);
        let (role, watch_role) = watch::channel(role_of(&watch_office.borrow(), Serving::No, None));
        lifetime.spawn(follow_office(raft.clone(), office, elections.clone()));
        let failure = Arc::new(watch::Sender::new(None));
        let (wish, wishes) = mpsc::unbounded_channel();
        let replica = state_hash::Own {
            env: env.clone(),
            dir: options.dir.clone(),
            raft: raft.clone(),
            log: log.clone(),
            reader: recovered.reader.clone(),
            links: links.clone(),
            wishes: wish.clone(),
        };
        let removal = removal::Watch {
            env: env.clone(),
            directory: directory.clone(),
            hello: hello.clone(),
            roster: recovered.roster.subscribe(),
            raft: raft.clone(),
            counters: counters.clone(),
            configured: options.founders.clone(),
        };
        lifetime.spawn(stop_on_failure(replica, removal, failure.clone()));
        lifetime.spawn(finish_changes(raft.clone()));
        let membership = Arc::new(Membership {
            env: env.clone(),
            raft: raft.clone(),
            log: log.clone(),
            reader: recovered.reader.clone(),
            hello,
            heard_limit: Duration::from_millis(options.election_ms.1),
        });
        lifetime.spawn(state_hash::propose_due(state_hash::Leader {
            env: env.clone(),
            raft: raft.clone(),
            reader: recovered.reader.clone(),
            links: links.clone(),
            serving: watch_serving.clone(),
            queue: self.queue.clone(),
        }));
        lifetime.spawn(vitals::ask_while_leading(raft.clone(), Arc::downgrade(&links)));
        lifetime.spawn(purge::follow_trims(raft.clone(), log.clone(), recovered.reader.clone()));
        let scrubbing = Arc::<scrub::Progress>::default();
        lifetime.spawn(scrub::run(
            env.clock.clone(),
            log.clone(),
            recovered.reader.clone(),
            options.scrub_bytes_per_s,
            scrubbing.clone(),
        ));
        let watch_failure = failure.subscribe();
        drop(Types::spawn(follow_role(raft.clone(), watch_office.clone(), watch_serving, watch_failure.clone(), role)));
        let (handing, watch_handing) = watch::channel(HandingOver::No);
        let (reads, asked) = mpsc::unbounded_channel();
        lifetime.spawn(answer_reads(raft.clone(), asked));
        let (group_clock, watch_group_clock) = watch::channel(GroupClock::default());
        let (_, none) = mpsc::unbounded_channel();
        let proposer = Proposer {
            clock: env.clock.clone(),
            raft: raft.clone(),
            reader: recovered.reader.clone(),
            waiters: waiters.clone(),
            queue: std::mem::replace(&mut self.submissions, none),
            office: watch_office,
            serving,
            quorum_limit: Duration::from_millis(options.election_ms.0 + options.election_ms.1),
            handing: watch_handing,
            arrivals: 0,
            sweeps: env.clock.ticks(Duration::from_millis(options.propose_limit_ms.max(1))),
            links: links.clone(),
            group_clock,
            wishes: wish.clone(),
        };
        lifetime.spawn(slow_disk::watch(env.clone(), raft.clone(), log.clone(), wish));
        drop(Types::spawn(proposer.run()));

        let handle = Opened {
            node: own.id,
            forward_key,
            forward_keys,
            was_clean,
            probation,
            repaired: recovered.repaired,
            scrubbing,
            reader: recovered.reader.clone(),
            role: watch_role,
            raft: raft.clone(),
            log: log.clone(),
            committed,
            waiters: waiters.clone(),
            counters,
            links,
            elections,
            reads,
            group_clock: watch_group_clock,
            clock_hand_overs: Arc::default(),
        };
        Ok(Started { raft, waiters, handing, failure: watch_failure, wishes, membership, handle })
    }

    /// Who this node is, as it tells its peers.
    fn hello(&self, directory: &Directory) -> Hello {
        let options = &self.options;
        Hello {
            protocol: (*PROTOCOL.start(), *PROTOCOL.end()),
            cluster: options.cluster.clone(),
            group: options.group.clone(),
            node: directory.founder().id,
            expects: 0,
            segment_bytes: options.segment_bytes,
            frame_version: FRAME_VERSION,
            features: 0,
            cluster_version: CLUSTER_VERSION_MAX,
            wall_ms: self.env.clock.wall_ms(),
            channel: Channel::Founding,
            forward_key: None,
        }
    }

    /// The other members, wherever this node has heard of them.
    async fn peers(&self, directory: &Directory, derived: &mut Derived) -> Peers {
        let identity = directory.identity();
        let mut addresses: BTreeSet<String> = self.options.founders.iter().cloned().collect();
        addresses.extend(identity.founding_set.into_iter().flatten().map(|founder| founder.node.peer_address));
        match derived.members().await {
            Ok(members) => addresses
                .extend(members.iter().flat_map(|members| members.nodes()).map(|(_, node)| node.peer_address.clone())),
            // Those of the configuration will have to do.
            Err(error) => tracing::warn!(%error, "the members are not known from derived state"),
        }
        addresses.remove(&self.options.peer_address);
        addresses.remove(&identity.node.peer_address);
        let layout = Layout { segment_bytes: self.options.segment_bytes };
        let entry_bytes_max = self.options.log.max_entry_bytes;
        Peers::new(&self.env, self.hello(directory), layout, entry_bytes_max, addresses.into_iter().collect())
    }

    /// Opens the log. If it is damaged, or was found to be when it was last open, it is repaired first, which may take as
    /// long as no peer is there.
    async fn open_log(
        &self,
        directory: &Directory,
        derived: &mut Derived,
        mut interrupted: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(Log, Repaired), OpenError> {
        let (env, options) = (&self.env, &self.options);
        let by_timer = options.flush_mode == FlushMode::AsyncFlush;
        let flush_interval_ms = by_timer.then_some(options.flush_interval_ms);
        let log_options = LogOptions { segment_bytes: options.segment_bytes, flush_interval_ms, ..options.log.clone() };
        let (floor, made) = (derived.log_floor(), directory.identity().log_made);
        let io = |source| IdentityError::Io { dir: options.dir.clone(), source };
        let is_noted = made && repair::is_noted(env, &options.dir).await.map_err(io)?;
        if !is_noted {
            match Log::open_made(env.clone(), options.dir.clone(), log_options.clone(), floor, made).await {
                Err(log::OpenError::Corrupt { physical_offset, reason }) => {
                    tracing::error!(%physical_offset, reason, "the log is corrupt; it is repaired from the peers");
                    // A process that is killed meanwhile goes on with it.
                    repair::note(env, &options.dir, &reason).await.map_err(io)?;
                }
                opened => return Ok((opened?, Repaired::default())),
            }
        }
        let mut peers = self.peers(directory, derived).await;
        let repaired = tokio::select! { biased;
            () = &mut interrupted => return Err(OpenError::Interrupted),
            repaired = repair::repair(env, &options.dir, derived.log_floor_boundary(), &mut peers) => repaired?,
        };
        Ok((Log::open_made(env.clone(), options.dir.clone(), log_options, floor, made).await?, repaired))
    }

    async fn recover(
        &self,
        tables: T,
        interrupted: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Recovered<T>, OpenError> {
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
        let mut derived = Derived::probe(env, options.dir.clone(), derived).await?;
        let (log, repaired) = self.open_log(&directory, &mut derived, interrupted).await?;
        if let Err(source) = directory.log_is_made().await {
            log.kill().await;
            return Err(IdentityError::Io { dir: options.dir.clone(), source }.into());
        }
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
        let (reader, roster) = (fold.reader(), watch::Sender::new(Roster::of(&fold)));
        Ok(Recovered { directory, log, fold: Arc::new(Mutex::new(Some(fold))), reader, roster, repaired })
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
    roster: watch::Receiver<Roster>,
) -> Arc<dyn Fn() -> FoundingStatus + Send + Sync> {
    Arc::new(move || {
        let roster = roster.borrow();
        FoundingStatus {
            founder: directory.founder(),
            has_vote: log.vote().is_some(),
            has_log: log.last().is_some(),
            set: directory.identity().founding_set,
            members: roster.members.keys().copied().collect(),
            members_at: roster.at,
        }
    })
}

fn told_hashes<T: Tables>(reader: Reader<T>) -> Arc<dyn Fn() -> state_hash::ImageHashes + Send + Sync> {
    Arc::new(move || reader.state_hashes().told())
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

fn role_of(office: &Office, serving: Serving, reason: Option<String>) -> Role {
    match office {
        Office::Leading { term } if serving == (Serving::Isolated { term: *term }) => Role::Isolated { term: *term },
        Office::Leading { term } => Role::Leader { term: *term, ready: serving == (Serving::Yes { term: *term }) },
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

/// Resolves when so many voters refuse this leader's frames that no majority is left to take them: then it is not they
/// who are wrong.
async fn refused_by_a_majority<T: Tables>(raft: &RaftOf<T>, mut refusals: watch::Receiver<Refusals>) -> String {
    /// In a row.
    const TIMES: u32 = 3;
    loop {
        let found = {
            let (refusals, now) = (refusals.borrow_and_update(), raft.metrics().borrow_watched().clone());
            let voters: Vec<NodeId> = now.membership_config.membership().voter_ids().collect();
            let by = |voter: &NodeId| {
                refusals.get(voter).filter(|refused| refused.term == now.current_term && refused.times >= TIMES)
            };
            let refused = voters.iter().filter_map(by);
            let reasons: Vec<&str> = refused.map(|refused| refused.reason.as_str()).collect();
            let left = voters.len() - reasons.len();
            let lost = now.state == ServerState::Leader && left < voters.len() / 2 + 1;
            lost.then(|| format!("a majority refused this leader's frames as inconsistent: {}", reasons.join("; ")))
        };
        if let Some(reason) = found {
            return reason;
        }
        if refusals.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Ends Raft when going on could show a client something wrong, or lose it. The role says why, the process ends, and the
/// others serve.
async fn stop_on_failure<T: Tables>(
    own: state_hash::Own<T>,
    removal: removal::Watch<T>,
    failure: Arc<watch::Sender<Option<String>>>,
) {
    async fn first(mut found: watch::Receiver<Option<String>>) -> String {
        loop {
            if let Some(reason) = found.borrow_and_update().clone() {
                return reason;
            }
            if found.changed().await.is_err() {
                // Closed: nothing will ever be found.
                std::future::pending::<()>().await;
            }
        }
    }
    let (env, dir) = (own.env.clone(), own.dir.clone());
    let (raft, log, reader) = (own.raft.clone(), own.log.clone(), own.reader.clone());
    let refusals = own.links.refusals();
    let (reason, is_log) = tokio::select! { biased;
        reason = first(log.corruption()) => (reason, true),
        reason = first(log.failure()) => (reason, false),
        reason = first(reader.watch_damage()) => (reason, false),
        reason = first(reader.watch_failure()) => (reason, false),
        reason = refused_by_a_majority(&raft, refusals) => (reason, true),
        reason = state_hash::has_gone_wrong(own) => (reason, false),
        reason = removal.removed() => (reason, false),
    };
    tracing::error!("this replica stops: {reason}");
    // A start looks at little of the log by itself.
    if is_log {
        let (env_aside, why) = (env.clone(), reason.clone());
        let noted = aside(&env, async move { repair::note(&env_aside, &dir, &why).await }).await;
        if let Err(error) = noted {
            tracing::error!(%error, "that the log must be repaired could not be noted");
        }
    }
    failure.send_replace(Some(reason));
    let _ = raft.shutdown().await;
}

/// Publishes the role, which is the office and whether its holder serves.
async fn follow_role<T: Tables>(
    raft: RaftOf<T>,
    mut office: watch::Receiver<Office>,
    mut serving: watch::Receiver<Serving>,
    failure: Failure,
    role: watch::Sender<Role>,
) {
    loop {
        let (now, serves) = (office.borrow_and_update().clone(), *serving.borrow_and_update());
        let failed = raft.metrics().borrow_watched().running_state.clone().err();
        let failed = failed.filter(|fatal| !matches!(fatal, openraft::error::Fatal::Stopped));
        let failed = failed.map(|fatal| fatal.to_string()).or_else(|| failure.borrow().clone());
        let now_role = role_of(&now, serves, failed);
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
            changed = serving.changed() => changed.is_err(),
        };
        if ended {
            role.send_replace(role_of(&Office::Stopped, Serving::No, failure.borrow().clone()));
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
                Err(ReadError::NotLeader { leader: leader_told(forward) })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadError::NoQuorum),
            Err(RaftError::Fatal(_)) => Err(ReadError::Stopped),
        };
        for asker in askers {
            let _ = asker.send(result.clone());
        }
    }
}

impl<T: Tables> Running<T> {
    /// Hands over for a reason of this node's own.
    async fn grant(&self, env: &Env, wish: Wish) {
        match wish {
            Wish::Clock(successors) => match self.hand_over(env, Some(&successors)).await {
                Ok(()) => {
                    self.clock_hand_overs.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => tracing::warn!(%error, "no voter with a better clock took over"),
            },
            Wish::Disk => match self.hand_over(env, None).await {
                Ok(()) => tracing::info!("somebody else leads, whose disk is better"),
                Err(error) => tracing::warn!(%error, "no other voter took over from this one with its slow disk"),
            },
            Wish::State(successors, granted) => {
                match self.hand_over(env, Some(&successors)).await {
                    Ok(()) | Err(HandOverError::NotLeader) => {}
                    Err(error) => tracing::warn!(%error, "no voter with the right state took over"),
                }
                // Its asker may be gone.
                let _ = granted.send(());
            }
        }
    }

    /// To one of `among`, or to any other voter.
    async fn hand_over(&self, env: &Env, among: Option<&[NodeId]>) -> Result<(), HandOverError> {
        let own = *self.raft.node_id();
        let mut metrics = self.raft.metrics();
        {
            let now = metrics.borrow_watched();
            if now.state != ServerState::Leader {
                return Err(HandOverError::NotLeader);
            }
            let membership = now.membership_config.membership();
            if membership.voter_ids().all(|voter| voter == own) {
                return Err(HandOverError::Alone);
            }
            if among.is_some_and(|among| !among.iter().any(|node| is_voter(membership, *node))) {
                return Err(HandOverError::NotAVoter);
            }
            if among.is_some_and(|among| among.iter().all(|node| *node == own)) {
                return Ok(());
            }
        }
        // What waits goes to the successor's clients; what is in flight is waited for, so that somebody holds it all.
        self.handing.send_replace(HandingOver::Waiting);
        let mut triggered = None;
        let handed_over = env.clock.timeout(HAND_OVER_LIMIT, async {
            let (successor, term) = loop {
                let successor = successor(&metrics.borrow_watched(), self.heard_limit, among);
                match successor {
                    Successor::NotLeader => return Ok(()),
                    Successor::Is { id, term } => break (id, term),
                    Successor::Nobody => return Err(HandOverError::NotTaken),
                    Successor::NotYet => metrics.changed().await.map_err(|_| HandOverError::Stopped)?,
                }
            };
            let mut failed = self.links.failed_transfers();
            failed.mark_unchanged();
            // From here on openraft takes no proposal and sends no heartbeat in this term, whatever the successor does.
            triggered = Some(term);
            self.handing.send_replace(HandingOver::Triggered { term });
            fault!("hand_over.triggered");
            self.raft.trigger().transfer_leader(successor).await.map_err(|_| HandOverError::Stopped)?;
            let elected = async {
                loop {
                    {
                        let now = metrics.borrow_watched();
                        match now.current_leader {
                            Some(leader) if leader != own => return Ok(()),
                            Some(_) if now.current_term > term => return Err(HandOverError::NotTaken),
                            _ => {}
                        }
                    }
                    tokio::select! { biased;
                        changed = metrics.changed() => changed.map_err(|_| HandOverError::Stopped)?,
                        // It is stopping as well, or gone.
                        _ = failed.changed() => return Err(HandOverError::NotTaken),
                    }
                }
            };
            // Longer than an election takes: it campaigned, and is gone.
            env.clock.timeout(2 * self.heard_limit, elected).await.unwrap_or(Err(HandOverError::NotTaken))
        });
        let handed_over = handed_over.await.unwrap_or(Err(HandOverError::NotTaken));
        if triggered.is_none() {
            self.handing.send_replace(HandingOver::No);
        }
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
        if let Some(reason) = self.failure.borrow().clone() {
            return Err(io::Error::other(reason));
        }
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
    Is {
        id: NodeId,
        /// In which this node leads.
        term: u64,
    },
}

/// A voter, one of `among` if that is given, that was heard of within `heard_limit` and holds everything; that is what a
/// successor must have.
#[allow(clippy::disallowed_methods)] // openraft says when it heard of a voter in tokio's instants.
fn successor(metrics: &RaftMetrics<Types>, heard_limit: Duration, among: Option<&[NodeId]>) -> Successor {
    let (ServerState::Leader, Some(replication), Some(heard)) =
        (metrics.state, &metrics.replication, &metrics.heartbeat)
    else {
        return Successor::NotLeader;
    };
    let voters = metrics.membership_config.membership().voter_ids().filter(|voter| *voter != metrics.id);
    let is_there = |voter: &NodeId| heard.get(voter).copied().flatten().is_some_and(|at| at.elapsed() < heard_limit);
    let suits = |voter: &NodeId| among.is_none_or(|among| among.contains(voter));
    let mut there = voters.filter(suits).filter(is_there).peekable();
    if there.peek().is_none() {
        return Successor::Nobody;
    }
    let held = |voter: &NodeId| replication.get(voter).cloned().flatten().map(|matched| matched.index);
    let term = metrics.current_term;
    let ready = there.find(|voter| held(voter) >= metrics.last_log_index);
    ready.map_or(Successor::NotYet, |id| Successor::Is { id, term })
}

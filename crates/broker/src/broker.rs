//! Broker: one process's replicas of broker groups, from start to stop.
//!
//! A [`BrokerGroup`] is what a group's handlers share. Start: health first, because founding may wait for other machines;
//! then every group's Raft member; then its clients' port, so that nobody is answered by a replica that knows nothing.
//! Stop: leadership goes first, while requests are still forwarded to the successor; then the NameServers are told; then
//! the port closes; then the log.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use env::Env;
use parking_lot::{Mutex, RwLock};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use raft_store::fold::{Outcome, Reader};
use raft_store::group::{Group, GroupOptions, HandOverError, OpenError, Role, Status};
use raft_store::identity::FlushMode;
use raft_store::log::LogOptions;
use raft_store::materializer::DerivedOptions;
use raft_store::position::{Timestamp, TopicId};
use remoting::{Client, Connection, Handler, NoRequests, Server};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::Statistics;
use crate::admission::Admission;
use crate::clients::{Clients, ConnectionId};
use crate::config::{BrokerConfig, ConfigError, DEFAULT_FLUSH_INTERVAL, Flush, GroupConfig};
use crate::consumer_offset::{self, PendingOffsets};
use crate::dispatch::{self, Place, Routes, Work};
use crate::error::RequestError;
use crate::http::Http;
use crate::pop::Popping;
use crate::rates::Rates;
use crate::registration::Registration;
use crate::send::UniqueKeys;
use crate::tables::Tables;
use crate::tables::command::{Command, Reply};
use crate::transaction::Transactions;
use crate::{admin, due, heartbeat, registration};

/// Requests in the works get this long to end when the broker stops.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// A group that has neither stored nor shown a message for this long keeps no memory for the sake of speed.
const IDLE: Duration = Duration::from_secs(10);

/// A leader whose disk is too full to take messages, and which has handed over, does so again no sooner: the others' may be
/// as full.
const FULL_PATIENCE: Duration = Duration::from_secs(60);

/// A broker process.
pub struct Broker {
    groups: Vec<Arc<BrokerGroup>>,
    serving: Mutex<Vec<Serving>>,
    http: Mutex<Option<Http>>,
}

/// Groups as far as they are open: what metrics and health look at.
pub type OpenGroups = Arc<RwLock<Vec<Arc<BrokerGroup>>>>;

/// What runs for one group. Dropping it ends the tasks and closes the ports.
struct Serving {
    group: Arc<BrokerGroup>,
    servers: Vec<Server>,
    tasks: JoinSet<()>,
}

/// Why a broker did not start. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A group's member did not open.
    #[error("broker group {group}: {source}")]
    Open {
        /// Which group.
        group: String,
        /// Why.
        source: OpenError,
    },
    /// A port cannot be listened on: is another process there?
    #[error("listening at {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

impl Broker {
    /// Starts every group of `config`. Waits for the other founders of a new group.
    pub async fn start(env: Env, config: BrokerConfig) -> Result<Broker, StartError> {
        config.check()?;
        let open_groups = OpenGroups::default();
        let http = match config.http {
            Some(address) => {
                let started = Http::start(&env, address, open_groups.clone(), config.groups.len()).await;
                Some(started.map_err(|source| StartError::Listen { address, source })?)
            }
            None => None,
        };
        let opening = config.groups.iter().map(|group| {
            let opening = open_member(env.clone(), group_options(&config, group));
            async move {
                let opened = opening.await;
                opened.map_err(|source| StartError::Open { group: group.broker_name.clone(), source })
            }
        });
        let members = futures::future::try_join_all(opening).await?;

        let mut serving = Vec::new();
        for (member, group_config) in members.into_iter().zip(&config.groups) {
            let group = BrokerGroup::new(&env, &config, group_config, member);
            serving.push(Serving::start(group).await?);
        }
        let groups: Vec<_> = serving.iter().map(|serving| serving.group.clone()).collect();
        open_groups.write().extend(groups.iter().cloned());
        Ok(Broker { groups, serving: Mutex::new(serving), http: Mutex::new(http) })
    }

    /// The groups, in the order of the configuration.
    pub fn groups(&self) -> &[Arc<BrokerGroup>] {
        &self.groups
    }

    /// Where metrics and health are served.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.lock().as_ref().map(Http::local_addr)
    }

    /// Resolves, with the reason, when a replica has stopped by itself because going on could lose or reorder a message.
    /// Only a new start helps it: who runs the broker should end the process, and have it started again.
    pub async fn failed(&self) -> String {
        let failures = self.groups.iter().map(|group| Box::pin(group.failed()));
        futures::future::select_all(failures).await.0
    }

    /// Stops gracefully: clients of the groups it led see no error. A second call does nothing.
    pub async fn stop(&self) -> io::Result<()> {
        let serving = std::mem::take(&mut *self.serving.lock());
        let stopped = futures::future::join_all(serving.into_iter().map(Serving::stop)).await;
        drop(self.http.lock().take());
        stopped.into_iter().collect()
    }

    /// Ends everything at once and flushes nothing: what a test does instead of `kill -9`.
    pub async fn kill(&self) {
        let serving = std::mem::take(&mut *self.serving.lock());
        drop(self.http.lock().take());
        futures::future::join_all(serving.into_iter().map(Serving::kill)).await;
    }
}

/// Opens a group's member. Rot that the start came upon late was noted: a second start repairs it from the peers.
async fn open_member(env: Env, options: GroupOptions) -> Result<Group<Tables>, OpenError> {
    match Group::open(env.clone(), options.clone(), Tables::default()).await {
        Err(OpenError::Rot(reason)) => {
            tracing::error!(group = options.group, reason, "opening the log once more, to repair it");
            Group::open(env, options, Tables::default()).await
        }
        opened => opened,
    }
}

fn group_options(config: &BrokerConfig, group: &GroupConfig) -> GroupOptions {
    let (flush_mode, interval, async_auto_recover) = match group.flush {
        Flush::Sync => (FlushMode::SyncFlush, DEFAULT_FLUSH_INTERVAL, false),
        Flush::Async { interval, auto_recover } => (FlushMode::AsyncFlush, interval, auto_recover),
    };
    GroupOptions {
        cluster: config.cluster.clone(),
        group: group.broker_name.clone(),
        dir: group.data_dir.clone(),
        peer_listen: group.peer_listen,
        peer_address: group.peer_address.clone(),
        client_address: group.advertised_address.to_string(),
        founders: group.founders.clone(),
        join: group.join,
        catch_up_bytes_per_s: group.catch_up_bytes_per_s,
        flush_mode,
        flush_interval_ms: interval.as_millis() as u64,
        async_auto_recover,
        segment_bytes: group.segment_bytes,
        heartbeat_ms: group.raft.heartbeat.as_millis() as u64,
        election_ms: (group.raft.election.0.as_millis() as u64, group.raft.election.1.as_millis() as u64),
        propose_limit_ms: group.limits.send_deadline.as_millis() as u64,
        proposals_bytes_max: group.limits.sends_in_flight_bytes,
        scrub_bytes_per_s: group.scrub_bytes_per_s,
        log: LogOptions::default(),
        derived: DerivedOptions {
            recent_keys_ms: group.messages.idempotent_window.as_millis() as i64,
            ..DerivedOptions::default()
        },
    }
}

impl Serving {
    async fn start(group: Arc<BrokerGroup>) -> Result<Serving, StartError> {
        let config = &group.config;
        let limits = remoting::Limits { connections: config.limits.connections, ..remoting::Limits::default() };
        let mut servers = Vec::new();
        for address in [Some(config.listen), config.vip_listen()].into_iter().flatten() {
            let server = Server::start(&group.env, address, limits.clone(), group.clone()).await;
            servers.push(server.map_err(|source| StartError::Listen { address, source })?);
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(due::run(group.clone()));
        tasks.spawn(consumer_offset::flush_late_updates(group.clone()));
        tasks.spawn(heartbeat::drop_the_silent(group.clone()));
        tasks.spawn(tick(group.clone()));
        tasks.spawn(admin::statistics::run(group.clone()));
        for name_server in &group.name_servers {
            tasks.spawn(registration::run(group.clone(), name_server.clone()));
        }
        let address = config.listen;
        let node = format_args!("{:016x}", group.raft.node());
        tracing::info!(group = %config.broker_name, %address, %node, "serving");
        Ok(Serving { group, servers, tasks })
    }

    async fn stop(mut self) -> io::Result<()> {
        let group = &self.group;
        group.pending_offsets.flush(group).await;
        match group.raft.hand_over().await {
            Ok(()) | Err(HandOverError::NotLeader | HandOverError::Alone | HandOverError::Stopped) => {}
            Err(error @ (HandOverError::NotTaken | HandOverError::NotAVoter)) => {
                tracing::warn!(group = %group.config.broker_name, %error, "stopping without a successor");
            }
        }
        let _ = group.env.clock.timeout(LAST_ANSWERS, group.work.idle()).await;
        // The registering tasks end first: none may undo the farewell.
        self.tasks.shutdown().await;
        registration::unregister(group).await;
        self.servers.iter().for_each(Server::stop);
        group.peers.close().await;
        group.raft.stop().await
    }

    async fn kill(mut self) {
        self.servers.clear();
        self.tasks.shutdown().await;
        self.group.peers.close().await;
        self.group.raft.kill().await;
    }
}

/// Once a second: remembers the rates' totals, looks at the disk, which if it is too full should be somebody else's, and gives memory back when nothing was written or read for a while.
async fn tick(group: Arc<BrokerGroup>) {
    let (mut seen, mut seen_at) = (None, Duration::ZERO);
    let mut handed_over_at = None;
    loop {
        let now = group.env.clock.monotonic();
        group.rates.tick(now);
        group.look_at_disk().await;
        let may_hand_over = handed_over_at.is_none_or(|at| now - at >= FULL_PATIENCE);
        if may_hand_over
            && group.leads()
            && group.refuse_when_disk_is_full().is_err()
            && group.hand_over_to_a_disk_with_room().await
        {
            handed_over_at = Some(now);
        }
        let activity = Some((group.raft.log().tip().end.physical_offset, group.rates.get_transferred.total()));
        if activity != seen {
            (seen, seen_at) = (activity, now);
        } else if now - seen_at >= IDLE {
            group.raft.log().release_idle_memory();
            group.env.executor.blocking(env::memory::give_back).await;
            seen_at = now;
        }
        group.env.clock.sleep(Duration::from_secs(1)).await;
    }
}

/// One replica of one broker group: what its handlers and tasks share.
pub struct BrokerGroup {
    pub(crate) env: Env,
    pub(crate) cluster: String,
    pub(crate) name_servers: Vec<String>,
    pub(crate) config: GroupConfig,
    pub(crate) raft: Group<Tables>,
    pub(crate) reader: Reader<Tables>,
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) routes: Routes,
    pub(crate) clients: Mutex<Clients>,
    /// Connections that a heartbeat was heard on, to be told things.
    pub(crate) connections: Mutex<BTreeMap<ConnectionId, Connection>>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) work: Work,
    pub(crate) rates: Rates,
    pub(crate) statistics: Statistics,
    pub(crate) pending_offsets: PendingOffsets,
    pub(crate) popping: Popping,
    pub(crate) transactions: Transactions,
    pub(crate) unique_keys: UniqueKeys,
    /// To NameServers and to the leader.
    pub(crate) peers: Client<NoRequests>,
    pub(crate) registration: Registration,
    /// Something waits that the leader may have to look at before it meant to. Of scheduled messages the reader tells.
    pub(crate) scheduled: watch::Sender<()>,
    /// Group time, ms, at which this replica, as leader, last saw that nothing was due: of its duties, of its questions, and
    /// of popped messages that nobody could consume.
    pub(crate) duties_done_ms: AtomicI64,
    pub(crate) questions_done_ms: AtomicI64,
    pub(crate) burials_done_ms: AtomicI64,
    /// How full this replica's disk was when last looked at, in percent.
    pub(crate) disk_used_percent: AtomicU8,
    /// How large it is; 0 until it was looked at.
    pub(crate) disk_bytes: AtomicU64,
    pub(crate) started_ms: i64,
}

/// A group as operators see it.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    /// RocketMQ's brokerName.
    pub broker_name: String,
    /// What clients are told to connect to.
    pub advertised_address: SocketAddr,
    /// Its member's numbers.
    pub raft: Status,
    /// Whether this replica can serve its clients now: itself, or by forwarding.
    pub is_ready: bool,
}

impl BrokerGroup {
    fn new(env: &Env, config: &BrokerConfig, group: &GroupConfig, raft: Group<Tables>) -> Arc<BrokerGroup> {
        let peers_limits = remoting::Limits { connect: Duration::from_secs(1), ..remoting::Limits::default() };
        Arc::new(BrokerGroup {
            cluster: config.cluster.clone(),
            name_servers: config.name_servers.clone(),
            config: group.clone(),
            reader: raft.reader(),
            role: raft.role(),
            raft,
            routes: Routes::new(),
            clients: Mutex::default(),
            connections: Mutex::default(),
            admission: Admission::new(group.limits.sends_in_flight_bytes),
            work: Work::default(),
            rates: Rates::default(),
            statistics: Statistics::default(),
            pending_offsets: PendingOffsets::default(),
            popping: Popping::default(),
            transactions: Transactions::default(),
            unique_keys: UniqueKeys::new(env, group.advertised_address.ip()),
            peers: Client::new(env, peers_limits, Arc::new(NoRequests)),
            registration: Registration::default(),
            scheduled: watch::Sender::new(()),
            duties_done_ms: AtomicI64::new(0),
            questions_done_ms: AtomicI64::new(0),
            burials_done_ms: AtomicI64::new(0),
            disk_used_percent: AtomicU8::new(0),
            disk_bytes: AtomicU64::new(0),
            started_ms: env.clock.wall_ms(),
            env: env.clone(),
        })
    }

    /// RocketMQ's brokerName.
    pub fn broker_name(&self) -> &str {
        &self.config.broker_name
    }

    /// What clients are told to connect to.
    pub fn advertised_address(&self) -> SocketAddr {
        self.config.advertised_address
    }

    /// Wall time of the start, in milliseconds.
    pub fn started_ms(&self) -> i64 {
        self.started_ms
    }

    /// The group's member.
    pub fn raft(&self) -> &Group<Tables> {
        &self.raft
    }

    /// Numbers for operators.
    pub fn status(&self) -> GroupStatus {
        let raft = self.raft.status();
        let is_ready = match &raft.role {
            Role::Leader { ready, .. } => *ready,
            // One that was started again believes in the leader that it voted for, heard of or not; if it may not vote, for
            // as long as it likes.
            Role::Follower { leader, .. } => leader.is_some() && !raft.on_probation,
            Role::Isolated { .. } | Role::Candidate { .. } | Role::Stopped { .. } => false,
        };
        GroupStatus {
            broker_name: self.config.broker_name.clone(),
            advertised_address: self.config.advertised_address,
            raft,
            is_ready,
        }
    }

    /// Resolves when this replica has stopped by itself.
    async fn failed(&self) -> String {
        let mut role = self.role.clone();
        let stopped = role.wait_for(|role| matches!(role, Role::Stopped { reason: Some(_) })).await;
        let reason = match stopped.as_deref() {
            Ok(Role::Stopped { reason: Some(reason) }) => reason.clone(),
            // It was asked to.
            _ => return std::future::pending().await,
        };
        format!("broker group {}: {reason}", self.broker_name())
    }

    /// Group time as the next entry would be stamped, or a little less.
    pub(crate) fn now(&self) -> Timestamp {
        self.raft.now()
    }

    /// This leader takes no messages because its disk is full; another one may. Tells whether one leads now.
    async fn hand_over_to_a_disk_with_room(&self) -> bool {
        let (group, used) = (self.broker_name(), self.disk_used_percent());
        let handed_over = self.raft.hand_over().await;
        match &handed_over {
            Ok(()) => tracing::error!(
                group,
                used_percent = used,
                "this leader's disk is too full for messages: somebody else leads now"
            ),
            Err(HandOverError::NotLeader | HandOverError::Alone | HandOverError::Stopped) => {}
            Err(error @ (HandOverError::NotTaken | HandOverError::NotAVoter)) => {
                tracing::error!(
                    group,
                    used_percent = used,
                    %error,
                    "this leader's disk is too full for messages: somebody else should lead"
                );
            }
        }
        handed_over.is_ok()
    }

    /// Whether this replica leads and serves.
    pub fn leads(&self) -> bool {
        matches!(&*self.role.borrow(), Role::Leader { ready: true, .. })
    }

    /// Group time, ms since the epoch, up to which this replica has done, as leader, all that was due: messages are visible,
    /// producers were asked, dead letters of popped messages laid down.
    pub fn caught_up_to_ms(&self) -> i64 {
        let done = [&self.duties_done_ms, &self.questions_done_ms, &self.burials_done_ms];
        done.map(|ms| ms.load(Ordering::Acquire)).into_iter().min().unwrap_or(0)
    }

    /// Resolves when everything acknowledged before this call, anywhere, is applied here. A read has no effect, so it can
    /// always be asked for again; a leader that hears of no majority gives up before its client does.
    pub(crate) async fn linearizable(&self) -> Result<(), RequestError> {
        let limit = self.config.limits.leader_wait;
        match self.env.clock.timeout(limit, self.raft.linearizable()).await {
            Some(confirmed) => Ok(confirmed?),
            None => Err(RequestError::NotLeader { leader: None }),
        }
    }

    /// The id of a topic that is not deleted.
    pub(crate) fn topic_id(&self, name: &str) -> Option<TopicId> {
        self.reader.tables().topics().get(name).map(crate::tables::topics::Topic::id)
    }

    /// Proposes one command of the tables and gives their reply.
    pub(crate) async fn command(&self, command: &Command) -> Result<Reply, RequestError> {
        let replies = self.commands(std::slice::from_ref(command)).await?;
        Ok(replies.into_iter().next().expect("one outcome for one command"))
    }

    /// Proposes commands of the tables together; their replies in order.
    pub(crate) async fn commands(&self, commands: &[Command]) -> Result<Vec<Reply>, RequestError> {
        let operations = commands.iter().map(Command::operation).collect();
        let outcomes = self.raft.propose(operations).await?;
        outcomes
            .into_iter()
            .map(|outcome| match outcome {
                Outcome::Tables(Reply::Refused(refusal)) => Err(refusal.into()),
                Outcome::Tables(reply) => Ok(reply),
                Outcome::Refused(refusal) => Err(RequestError::Failed(refusal.to_string())),
                Outcome::Placed { .. } | Outcome::Pending { .. } | Outcome::Core(_) => {
                    unreachable!("the outcome of a tables command is the tables'")
                }
            })
            .collect()
    }
}

impl Handler for BrokerGroup {
    async fn handle(self: &Arc<Self>, connection: &Connection, request: RemotingCommand) -> Option<RemotingCommand> {
        dispatch::dispatch(self, connection, request).await
    }

    /// Whatever the leader alone does: nearly all of it changes the log. Go's client closes right behind its last offsets,
    /// which it does not even mark as one-way. A pop need not: messages would be leased to nobody.
    fn must_finish(&self, request: &RemotingCommand) -> bool {
        let code = request.request_code();
        !matches!(code, RequestCode::POP_MESSAGE | RequestCode::NOTIFICATION)
            && self.routes.get(code).is_some_and(|route| route.place == Place::Leader)
    }

    fn closed(&self, connection: &Connection) {
        heartbeat::closed(self, connection);
    }
}

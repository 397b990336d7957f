//! What openraft sends to one peer: appends as a pipelined stream on a connection of their own, heartbeats, votes and
//! transfers on a second one, a snapshot on a third. Connections are made when they are needed.
//!
//! - The reply stream of an append session ends when its request stream has: openraft re-plans by ending a session and
//!   waits for that. The connection serves the next session.
//! - A peer that waits for its disk says so (`Working`); one that says nothing for [`SILENCE_LIMIT`] while it owes an
//!   answer is given up.
//! - A heartbeat whose caller has gone is forgotten, its connection is not: under disk stalls answers are late, not lost.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use env::disk::Open;
use env::{Clock, Env, Ticks};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, Fuse};
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::TypeConfigExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::consume_queue::aside;
use crate::image;
use crate::log::Log;
use crate::planted::{self, Bug};
use crate::position::NodeId;
use crate::raft::machine::{Snapshot, SnapshotImage};
use crate::raft::peer::PeerCounters;
use crate::raft::peer::connection::{self, ConnectError, HELLO_LIMIT, MessageReader, MessageWriter};
use crate::raft::peer::vitals::Heard;
use crate::raft::peer::wire::{
    Append, Appended, AskVote, Channel, Hello, Message, Reply, Request, SnapshotHead, Transfer, Transferred, Vitals,
    Voted,
};
use crate::raft::types::{Node, Types, Vote, to_raft};

/// A peer that owes an answer says at least `Working` every [`WORKING_INTERVAL`]; after this long without a byte it, or
/// the link, is gone.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(2);

/// How often a receiver says that it is still waiting for its disk.
pub const WORKING_INTERVAL: Duration = Duration::from_millis(500);

/// How long the news of what is committed may wait for entries to go with. Most entries are followed by others.
const COMMIT_NEWS_DELAY: Duration = Duration::from_millis(2);

/// Says when the news of what is committed has waited long enough: one timer for all that wait, not one for each.
#[derive(Debug, Default)]
struct CommitNews {
    waits: Notify,
    due: Notify,
}

impl CommitNews {
    /// Resolves after [`COMMIT_NEWS_DELAY`] or sooner.
    async fn due(&self) {
        let due = self.due.notified();
        tokio::pin!(due);
        // Registered before it is asked for.
        due.as_mut().enable();
        self.waits.notify_one();
        due.await;
    }

    async fn run(&self, clock: &Clock) {
        loop {
            self.waits.notified().await;
            clock.sleep(COMMIT_NEWS_DELAY).await;
            self.due.notify_waiters();
        }
    }
}

/// Part of an image in one message.
const SNAPSHOT_PART_BYTES: usize = 1 << 20;

/// A peer that does not take, or give, a part of an image in this time is gone.
pub const SNAPSHOT_PART_LIMIT: Duration = Duration::from_secs(10);

/// Wait between attempts to reach a peer that is not there.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Appends that peers refused because frames, CRCs or chain did not fit.
pub type Refusals = BTreeMap<NodeId, Refused>;

/// What a peer refused, one append after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// This leader's.
    pub term: u64,
    /// How many in a row. One alone may be a bit that flipped on the way.
    pub times: u32,
    /// Why, in the peer's words.
    pub reason: String,
}

/// What all clients of this node share.
#[derive(Debug)]
pub struct Links {
    env: Env,
    log: Log,
    hello: Hello,
    /// One unary connection per peer, whoever asks: where to ask, and the address it leads to.
    unary: Mutex<BTreeMap<NodeId, (String, mpsc::UnboundedSender<Asked>)>>,
    counters: Arc<PeerCounters>,
    /// Whose last answers to appends were that the frames are inconsistent.
    refusals: watch::Sender<Refusals>,
    /// Counts the requests to campaign that nobody took.
    failed_transfers: watch::Sender<u64>,
    /// Newest cluster version each peer said it can apply.
    cluster_versions: Mutex<BTreeMap<NodeId, u32>>,
    heard: Heard,
    news: CommitNews,
    catch_up_bytes_per_s: u64,
}

type Asked = (Request, oneshot::Sender<Result<Reply, RpcError>>);
type RpcError = RPCError<Types>;

impl Links {
    /// `hello` says who this node is; peer and channel are filled in. What a peer lacks becomes less by so many bytes a
    /// second at most, or as fast as it goes if that is 0.
    pub fn new(env: Env, log: Log, hello: Hello, counters: Arc<PeerCounters>, catch_up_bytes_per_s: u64) -> Arc<Links> {
        let (unary, cluster_versions) = (Mutex::default(), Mutex::default());
        let (refusals, failed_transfers) = (watch::Sender::default(), watch::Sender::default());
        let (heard, news) = (Heard::default(), CommitNews::default());
        Arc::new(Links {
            env,
            log,
            hello,
            unary,
            counters,
            refusals,
            failed_transfers,
            cluster_versions,
            heard,
            news,
            catch_up_bytes_per_s,
        })
    }

    /// Serves what is waited for. To be run as long as there are clients.
    pub async fn run(self: Arc<Links>) {
        self.news.run(&self.env.clock).await;
    }

    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    /// What was heard of the peers.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// How `peer` is; `None` if it does not say.
    pub(super) async fn ask_vitals(self: &Arc<Links>, peer: NodeId, address: &str) -> Option<Vitals> {
        let (answer, answered) = oneshot::channel();
        self.unary(peer, address).send((Request::Vitals, answer)).ok()?;
        match answered.await {
            Ok(Ok(Reply::Vitals(vitals))) => Some(vitals),
            _ => None,
        }
    }

    /// Newest cluster version that each peer reached so far can apply.
    pub fn cluster_versions(&self) -> BTreeMap<NodeId, u32> {
        self.cluster_versions.lock().clone()
    }

    /// Watches which peers refuse what this leader appends.
    pub fn refusals(&self) -> watch::Receiver<Refusals> {
        self.refusals.subscribe()
    }

    fn refused(&self, peer: NodeId, term: u64, reason: &str) {
        self.refusals.send_modify(|refusals| {
            let before = refusals.get(&peer).filter(|before| before.term == term).map_or(0, |before| before.times);
            refusals.insert(peer, Refused { term, times: before + 1, reason: reason.to_owned() });
        });
    }

    fn taken(&self, peer: NodeId) {
        self.refusals.send_if_modified(|refusals| refusals.remove(&peer).is_some());
    }

    /// Changes when a peer that was asked to lead does not even try.
    pub fn failed_transfers(&self) -> watch::Receiver<u64> {
        self.failed_transfers.subscribe()
    }

    /// Where to ask `peer`, which is at `address`.
    fn unary(self: &Arc<Links>, peer: NodeId, address: &str) -> mpsc::UnboundedSender<Asked> {
        let mut unary = self.unary.lock();
        if let Some((_, queue)) = unary.get(&peer).filter(|(led_to, queue)| led_to == address && !queue.is_closed()) {
            return queue.clone();
        }
        let (queue, requests) = mpsc::unbounded_channel();
        unary.insert(peer, (address.to_owned(), queue.clone()));
        // Ends when its queue is closed: with these links, or when the peer has another address.
        drop(Types::spawn(run_unary(Arc::downgrade(self), peer, address.to_owned(), requests)));
        queue
    }

    async fn connect(
        &self,
        peer: NodeId,
        address: &str,
        channel: Channel,
    ) -> Result<(MessageReader, MessageWriter), ConnectError> {
        let clock = &self.env.clock;
        let asked = clock.elapsed();
        let hello = Hello { expects: peer, channel, wall_ms: clock.wall_ms(), ..self.hello.clone() };
        let connected = connection::connect(&self.env, address, &hello, HELLO_LIMIT).await;
        if let Err(ConnectError::Refused { .. }) = &connected {
            PeerCounters::count(&self.counters.refused_hellos);
        }
        let (reader, writer, theirs) = connected?;
        self.cluster_versions.lock().insert(peer, theirs.cluster_version);
        self.heard.clock(peer, theirs.wall_ms, asked, clock.elapsed(), clock.monotonic());
        Ok((reader, writer))
    }
}

/// Makes clients for openraft.
#[derive(Clone, Debug)]
pub struct Factory(pub Arc<Links>);

impl RaftNetworkFactory<Types> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, node: &Node) -> Client {
        Client { links: self.0.clone(), peer: target, address: node.peer_address.clone(), use_unary: false, idle: None }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Node) -> Client {
        Client { use_unary: true, ..self.new_client(target, node).await }
    }
}

/// Sends to one peer.
#[derive(Debug)]
pub struct Client {
    links: Arc<Links>,
    peer: NodeId,
    address: String,
    /// Appends without entries go over the unary connection.
    use_unary: bool,
    /// The append connection between two sessions.
    idle: Option<(MessageReader, MessageWriter)>,
}

fn unreachable(error: impl ToString) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(error))
}

fn broken(error: impl ToString) -> RpcError {
    RPCError::Network(NetworkError::from_string(error))
}

impl Client {
    /// Only enqueues: openraft drops this future after a heartbeat's time, in which a connection may not be made.
    async fn ask(&self, request: Request) -> Result<Reply, RpcError> {
        let (answer, answered) = oneshot::channel();
        self.links
            .unary(self.peer, &self.address)
            .send((request, answer))
            .map_err(|_| broken("this node is ending"))?;
        answered.await.map_err(|_| broken("the connection ended before the answer"))?
    }

    async fn ask_vote(&self, request: Request, limit: Duration) -> Result<VoteResponse<Types>, RpcError> {
        match self.links.env.clock.timeout(limit, self.ask(request)).await {
            None => Err(broken(format!("no vote from {} within {limit:?}", self.address))),
            Some(Ok(Reply::Voted(voted))) => {
                Ok(VoteResponse { vote: voted.vote, vote_granted: voted.granted, last_log_id: voted.last })
            }
            Some(Ok(_)) => Err(unreachable(format!("{} is not ready", self.address))),
            Some(Err(error)) => Err(error),
        }
    }

    async fn heartbeat(&self, request: AppendEntriesRequest<Types>) -> Result<StreamAppendResult<Types>, RpcError> {
        let append = append_of(&self.links.log, request).await.map_err(broken)?;
        let forgotten = Forgotten(Some(self.links.counters.clone()));
        let reply = self.ask(Request::Heartbeat(append)).await;
        forgotten.answered();
        match reply? {
            Reply::Heartbeat(appended) => Ok(appended.into()),
            _ => Err(unreachable(format!("{} is not ready", self.address))),
        }
    }

    async fn append_connection(&mut self) -> Result<(MessageReader, MessageWriter), RpcError> {
        match self.idle.take() {
            Some(connection) => Ok(connection),
            None => self.links.connect(self.peer, &self.address, Channel::Append).await.map_err(unreachable),
        }
    }

    async fn send_snapshot(&mut self, vote: Vote, snapshot: Snapshot) -> io::Result<Vote> {
        let (mut reader, mut writer) =
            self.links.connect(self.peer, &self.address, Channel::Snapshot).await.map_err(io::Error::other)?;
        let SnapshotImage::Stored(stored) = snapshot.snapshot else {
            return Err(io::Error::other("only stored images are sent"));
        };
        // Whoever was sent a damaged image would refuse it, and be the one to stop.
        let (env_aside, path) = (self.links.env.clone(), stored.path.clone());
        let verified = aside(&self.links.env, async move { image::verify(&env_aside, &path).await }).await;
        if let Err(error) = verified {
            PeerCounters::count(&self.links.counters.damaged_images);
            tracing::error!(path = %stored.path.display(), %error, "an image is damaged and not sent");
            return Err(error);
        }
        let head = SnapshotHead {
            vote,
            last: snapshot.meta.last_log_id,
            membership_at: *snapshot.meta.last_membership.log_id(),
            membership: snapshot.meta.last_membership.membership().clone(),
            image_bytes: stored.len,
        };
        let env = &self.links.env;
        writer.write_within(&env.clock, SNAPSHOT_PART_LIMIT, &Message::SnapshotHead(head)).await?;
        // The disk is read beside this runtime: heartbeats go out meanwhile.
        let (disk, path) = (env.disk.clone(), stored.path.clone());
        let file = aside(env, async move { disk.open(&path, Open::Existing).await }).await?;
        let mut sent = 0;
        while sent < stored.len {
            let (file, bytes) = (file.clone(), SNAPSHOT_PART_BYTES.min((stored.len - sent) as usize));
            let part = aside(env, async move { file.read_at(sent, bytes).await }).await?;
            if part.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            sent += part.len() as u64;
            writer.write_within(&env.clock, SNAPSHOT_PART_LIMIT, &Message::SnapshotPart(part)).await?;
        }
        loop {
            match self.links.env.clock.timeout(SILENCE_LIMIT, reader.next()).await {
                None => return Err(io::ErrorKind::TimedOut.into()),
                Some(Ok(Some(Message::Working))) => {}
                Some(Ok(Some(Message::SnapshotDone(vote)))) => return Ok(vote),
                Some(Ok(Some(Message::Refused(reason)))) => return Err(io::Error::other(reason)),
                Some(Ok(_)) => return Err(io::ErrorKind::InvalidData.into()),
                Some(Err(error)) => return Err(error),
            }
        }
    }
}

/// Counts a heartbeat that was dropped before its answer came.
struct Forgotten(Option<Arc<PeerCounters>>);

impl Forgotten {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Forgotten {
    fn drop(&mut self) {
        if let Some(counters) = &self.0 {
            PeerCounters::count(&counters.heartbeat_timeouts);
        }
    }
}

/// Counts a request to campaign that was not taken.
struct Untaken<'l>(&'l watch::Sender<u64>);

impl Drop for Untaken<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|failed| *failed += 1);
    }
}

/// openraft's request with the place its first frame continues.
async fn append_of(log: &Log, request: AppendEntriesRequest<Types>) -> io::Result<Append> {
    let start = match request.entries.first() {
        None => Default::default(),
        Some(first) => log.chain_before(first.index).await?,
    };
    Ok(Append {
        vote: request.vote,
        previous: request.prev_log_id,
        committed: request.leader_commit,
        start,
        entries: request.entries,
    })
}

/// The unary connections to one peer, one after the other, each made when something is asked.
async fn run_unary(links: Weak<Links>, peer: NodeId, address: String, mut requests: mpsc::UnboundedReceiver<Asked>) {
    while let Some(first) = requests.recv().await {
        // Who asks waits no longer than a request may take: what nobody waits for is no reason to connect.
        if first.1.is_closed() {
            continue;
        }
        let Some(links) = links.upgrade() else { return };
        let connected = links.connect(peer, &address, Channel::Unary).await;
        let env = links.env.clone();
        drop(links);
        match connected {
            Ok((reader, writer)) => {
                if let Err(error) = serve_unary(&env, reader, writer, first, &mut requests).await {
                    tracing::debug!(%error, "a peer connection ended");
                }
            }
            Err(error) => {
                // All that asked meanwhile.
                let asked = std::iter::once(first).chain(std::iter::from_fn(|| requests.try_recv().ok()));
                asked.for_each(|(_, asker)| drop(asker.send(Err(unreachable(&error)))));
            }
        }
    }
}

/// One unary connection: requests go out as they come, answers find their askers in any order.
async fn serve_unary(
    env: &Env,
    mut reader: MessageReader,
    mut writer: MessageWriter,
    first: Asked,
    requests: &mut mpsc::UnboundedReceiver<Asked>,
) -> io::Result<()> {
    let mut waiting: BTreeMap<u64, oneshot::Sender<Result<Reply, RpcError>>> = BTreeMap::new();
    let mut number = 0;
    let mut first = Some(first);
    let mut heard = env.clock.monotonic();
    let mut checks = env.clock.ticks(WORKING_INTERVAL);
    // The queue closes when the peer has another address; what is owed is still waited for.
    let mut open = true;
    while open || !waiting.is_empty() {
        let next = async {
            match first.take() {
                Some(first) => Some(first),
                None => requests.recv().await,
            }
        };
        tokio::select! { biased;
            message = reader.next() => match message? {
                Some(Message::Reply(number, reply)) => {
                    heard = env.clock.monotonic();
                    if let Some(asker) = waiting.remove(&number) {
                        // The asker may have stopped waiting.
                        let _ = asker.send(Ok(reply));
                    }
                }
                Some(Message::Working) => heard = env.clock.monotonic(),
                Some(Message::Refused(reason)) => return Err(io::Error::other(reason)),
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => return Ok(()),
            },
            asked = next, if open => {
                let Some((request, asker)) = asked else {
                    open = false;
                    continue;
                };
                if waiting.is_empty() {
                    heard = env.clock.monotonic();
                }
                number += 1;
                waiting.insert(number, asker);
                writer.write_within(&env.clock, SILENCE_LIMIT, &Message::Request(number, request)).await?;
            }
            () = checks.next(), if !waiting.is_empty() => {
                if env.clock.monotonic() - heard > SILENCE_LIMIT {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
    }
    Ok(())
}

/// A peer that lacks more than this catches up at a bounded rate: what it lacks is read from the disk, and clients wait for
/// the same disks and cores.
const CATCHING_UP_BYTES: u64 = 8 << 20;

/// Bounds how fast a lag becomes less. What the log grows meanwhile goes out beside that: else a busy log would never be
/// caught up with.
#[derive(Debug)]
struct Pace {
    /// The smallest lag so far.
    lag: Option<u64>,
    /// When what the lag has become less is paid for.
    free_at: Duration,
}

impl Pace {
    fn new(now: Duration) -> Pace {
        Pace { lag: None, free_at: now }
    }

    /// How long to wait at `now` with the next append to a peer that lacks `lag` bytes. Time that was not used before is not
    /// made up for.
    fn wait(&mut self, now: Duration, lag: u64, bytes_per_s: u64) -> Duration {
        let before = self.lag.replace(lag.min(self.lag.unwrap_or(lag))).unwrap_or(lag);
        if bytes_per_s == 0 {
            return Duration::ZERO;
        }
        let gained = before.saturating_sub(lag);
        self.free_at = self.free_at.max(now) + Duration::from_secs_f64(gained as f64 / bytes_per_s as f64);
        self.free_at - now
    }
}

/// The next request to send. One without entries only says how far is committed, which the next one says as well: it
/// waits for that one a moment, and goes alone if none comes. openraft takes an answer for all requests up to its log id.
///
/// The end of the stream may be met twice: behind the last request, and when asked for the next one.
async fn next_request(
    news: &CommitNews,
    input: &mut Fuse<impl Stream<Item = AppendEntriesRequest<Types>> + Unpin>,
    is_first: bool,
) -> Option<AppendEntriesRequest<Types>> {
    let mut request = input.next().await?;
    // The first of a session finds out what the peer has: somebody waits for the answer.
    while request.entries.is_empty() && !is_first {
        tokio::select! { biased;
            later = input.next() => match later {
                Some(later) => request = later,
                None => break,
            },
            () = news.due() => break,
        }
    }
    Some(request)
}

/// The writing side of an append session. Shared with the reading side: how many requests are out.
async fn write_session(
    links: Arc<Links>,
    input: impl Stream<Item = AppendEntriesRequest<Types>> + Unpin,
    mut writer: MessageWriter,
    sent: Arc<AtomicU64>,
) -> io::Result<MessageWriter> {
    let mut input = input.fuse();
    let mut is_first = true;
    let mut pace = Pace::new(links.env.clock.monotonic());
    while let Some(request) = next_request(&links.news, &mut input, is_first).await {
        is_first = false;
        let append = append_of(&links.log, request).await?;
        if !append.entries.is_empty() {
            let lag = links.log.tip().end.physical_offset.0.saturating_sub(append.start.physical_offset.0);
            if lag > CATCHING_UP_BYTES {
                let wait = pace.wait(links.env.clock.monotonic(), lag, links.catch_up_bytes_per_s);
                links.env.clock.sleep(wait).await;
            }
        }
        sent.fetch_add(1, Ordering::Release);
        writer.write(&Message::Append(append)).await?;
    }
    writer.write(&Message::StreamEnd).await?;
    Ok(writer)
}

/// The reading side of an append session.
struct Session<'s> {
    client: &'s mut Client,
    reader: MessageReader,
    writing: AbortOnDrop<io::Result<MessageWriter>>,
    /// The writing half, once the request stream has ended.
    writer: Option<MessageWriter>,
    /// The leader's term.
    term: u64,
    sent: Arc<AtomicU64>,
    answered: u64,
    heard: Duration,
    /// When to look whether the peer has gone silent.
    checks: Ticks,
}

/// A task that ends with its handle.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<'s> Session<'s> {
    /// The next answer; `None` when the session has ended as it should, and the connection is idle again.
    async fn next(mut self) -> Option<(Result<StreamAppendResult<Types>, RpcError>, Option<Session<'s>>)> {
        match self.next_answer().await {
            Ok(Some(appended)) => {
                self.answered += 1;
                self.client.links.taken(self.client.peer);
                // openraft ends the session at the first answer that is not a success.
                let goes_on = matches!(appended, Appended::Upto(_));
                Some((Ok(appended.into()), goes_on.then_some(self)))
            }
            Ok(None) => {
                let Session { client, reader, writer, .. } = self;
                client.idle = writer.map(|writer| (reader, writer));
                None
            }
            Err(error) => {
                PeerCounters::count(&self.client.links.counters.broken_streams);
                Some((Err(broken(error)), None))
            }
        }
    }

    /// `None` when both directions have ended.
    async fn next_answer(&mut self) -> io::Result<Option<Appended>> {
        let clock = self.client.links.env.clock.clone();
        let mut peer_ended = false;
        while !peer_ended || self.writer.is_none() {
            tokio::select! { biased;
                message = self.reader.next(), if !peer_ended => {
                    self.heard = clock.monotonic();
                    match message? {
                        Some(Message::Appended(appended)) => return Ok(Some(appended)),
                        Some(Message::Working) => {}
                        Some(Message::StreamEnd) => peer_ended = true,
                        Some(Message::Inconsistent(reason)) => {
                            self.client.links.refused(self.client.peer, self.term, &reason);
                            return Err(io::Error::other(format!("refused: {reason}")));
                        }
                        Some(Message::Refused(reason)) => return Err(io::Error::other(format!("refused: {reason}"))),
                        Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer that is none")),
                        None => return Err(io::ErrorKind::UnexpectedEof.into()),
                    }
                }
                written = &mut self.writing.0, if self.writer.is_none() => {
                    self.writer = Some(written.map_err(io::Error::other)??);
                    // From here on the peer owes the end of its stream, at least.
                    self.heard = clock.monotonic();
                }
                () = self.checks.next() => {
                    let owes = self.writer.is_some() || self.sent.load(Ordering::Acquire) > self.answered;
                    if !owes {
                        self.heard = clock.monotonic();
                    } else if clock.monotonic() - self.heard > SILENCE_LIMIT {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
            }
        }
        Ok(None)
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotImage;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RpcError> {
        let input = futures::stream::iter([rpc]);
        let mut answers = RaftNetworkV2::stream_append(self, input, option).await?;
        let answer = answers.next().await.unwrap_or_else(|| Err(broken("no answer")))?;
        while answers.next().await.is_some() {}
        Ok(AppendEntriesResponse::from(answer))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            if self.use_unary {
                let client: &'s Client = self;
                let answers = futures::stream::unfold((client, input), |(client, mut input)| async move {
                    let request = input.next().await?;
                    Some((client.heartbeat(request).await, (client, input)))
                });
                return Ok(answers.boxed());
            }
            // The first request before the connection: a session that has nothing to say costs nothing.
            let Some(first) = input.next().await else { return Ok(futures::stream::empty().boxed()) };
            let (reader, writer) = self.append_connection().await?;
            let sent = Arc::new(AtomicU64::new(0));
            let term = first.vote.leader_id.term;
            let input = futures::stream::iter([first]).chain(input);
            let early = planted::is(Bug::AcknowledgeBeforeQuorum).then(futures::channel::mpsc::unbounded);
            let (early, early_answers) = early.unzip();
            let input = input.inspect(move |request: &AppendEntriesRequest<Types>| {
                if let (Some(early), Some(last)) = (&early, request.entries.last()) {
                    // Perhaps nobody asks any more.
                    let _ = early.unbounded_send(Ok(Ok(Some(to_raft(last.id())))));
                }
            });
            let writing = AbortOnDrop(Types::spawn(write_session(self.links.clone(), input, writer, sent.clone())));
            let heard = self.links.env.clock.monotonic();
            let checks = self.links.env.clock.ticks(WORKING_INTERVAL);
            let session =
                Session { client: self, reader, writing, writer: None, term, sent, answered: 0, heard, checks };
            let answers = futures::stream::unfold(Some(session), |session| async move { session?.next().await });
            if let Some(early_answers) = early_answers {
                // What is answered later is less than what was said before.
                let answers = answers.filter(|answer| std::future::ready(!matches!(answer, Ok(Ok(Some(_))))));
                return Ok(futures::stream::select(early_answers, answers).boxed());
            }
            Ok(answers.boxed())
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RpcError> {
        self.ask_vote(Request::Vote(ask_of(rpc)), option.soft_ttl()).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RpcError> {
        self.ask_vote(Request::PreVote(ask_of(rpc)), option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! { biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => Err(StreamingError::Unreachable(Unreachable::from_string(error))),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RpcError> {
        // All voters are told; one is asked. It counts also when openraft stops waiting.
        let untaken = (*request.to_node_id() == self.peer).then(|| Untaken(&self.links.failed_transfers));
        let transfer =
            Transfer { from: *request.from_leader(), to: *request.to_node_id(), last: request.last_log_id().copied() };
        let limit = option.soft_ttl();
        match self.links.env.clock.timeout(limit, self.ask(Request::Transfer(transfer))).await {
            None => Err(broken(format!("no answer from {} within {limit:?}", self.address))),
            Some(Err(error)) => Err(error),
            Some(Ok(Reply::Transferred(transferred))) => Ok(match transferred {
                Transferred::Done => {
                    std::mem::forget(untaken);
                    Ok(())
                }
                Transferred::VoteChanged(actual) => {
                    Err(TransferLeaderError::VoteChanged { expected: *request.from_leader(), actual })
                }
                Transferred::NotFlushed(actual) => {
                    let expected = request.last_log_id().copied();
                    Err(TransferLeaderError::LogNotFlushed { expected, actual })
                }
            }),
            Some(Ok(_)) => Err(unreachable(format!("{} is not ready", self.address))),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY_INTERVAL)))
    }
}

fn ask_of(rpc: VoteRequest<Types>) -> AskVote {
    AskVote { vote: rpc.vote, last: rpc.last_log_id, leadership_transfer: rpc.leadership_transfer }
}

/// A vote as it is answered.
pub fn voted(response: VoteResponse<Types>) -> Voted {
    Voted { vote: response.vote, granted: response.vote_granted, last: response.last_log_id }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news_of_a_commit() -> AppendEntriesRequest<Types> {
        AppendEntriesRequest { vote: Vote::new(1, 1), prev_log_id: None, entries: Vec::new(), leader_commit: None }
    }

    #[test]
    fn a_lag_becomes_less_at_a_bounded_rate_however_fast_the_log_grows() {
        const MIB: u64 = 1 << 20;
        let (at, rate) = (Duration::from_millis, 4 * MIB);
        let mut pace = Pace::new(at(1000));
        let waits: Vec<Duration> = [100, 99, 98, 97].map(|lag| pace.wait(at(1000), lag * MIB, rate)).into();
        assert_eq!(waits, [at(0), at(250), at(500), at(750)]);
        assert_eq!(pace.wait(at(9000), 97 * MIB, rate), at(0), "it grew as much as was sent");
        assert_eq!(pace.wait(at(9000), 99 * MIB, rate), at(0), "it grew more");
        assert_eq!(pace.wait(at(9000), 96 * MIB, rate), at(250), "a pause is not made up for, nor is growth paid for");
        assert_eq!(pace.wait(at(9000), 9 * MIB, 0), at(0), "unbounded");
    }

    /// openraft's stream of requests panics when it is asked again after its end; so does this one.
    #[tokio::test]
    async fn a_session_that_ends_behind_news_of_a_commit_ends_once() {
        let once = futures::stream::unfold(Some(news_of_a_commit()), |request| async { Some((request?, None)) });
        let mut input = once.boxed().fuse();
        let news = CommitNews::default();
        assert!(next_request(&news, &mut input, false).await.is_some(), "goes alone: none comes behind it");
        assert!(next_request(&news, &mut input, false).await.is_none());
    }
}

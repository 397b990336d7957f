//! What a member receives from the others: one task per connection, on the group's Raft runtime.
//!
//! - Appends: each request is checked (CRCs, places, chain) before openraft sees it; an inconsistent one refuses the
//!   connection. Answers leave in order; while one waits for the disk, `Working` says that this node is there.
//! - Heartbeats and votes: handed to openraft as they arrive, each answered when it is ready. A heartbeat renews the
//!   lease when it is received; only its answer waits for the disk.
//! - A connection's end ends its task; a node's end ends all of them.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use env::Env;
use env::net::{Listener, Stream};
use futures::StreamExt;
use openraft::Raft;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, TransferLeaderError, TransferLeaderRequest, VoteRequest};
use openraft::storage::SnapshotMeta;
use openraft::type_config::TypeConfigExt;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::fold::Tables;
use crate::forward_key::ForwardKeys;
use crate::log::Log;
use crate::log::segment::Layout;
use crate::raft::machine::{Machine, Snapshot, SnapshotImage};
use crate::raft::peer::client::{SNAPSHOT_PART_LIMIT, WORKING_INTERVAL, voted};
use crate::raft::peer::connection::{self, HELLO_LIMIT, MessageReader, MessageWriter};
use crate::raft::peer::wire::{
    Append, Appended, AskVote, Channel, FoundingStatus, Hello, Message, Reply, Request, SnapshotHead, Transfer,
    Transferred, Vitals,
};
use crate::raft::peer::{PeerCounters, chain, frames};
use crate::raft::probation::Probation;
use crate::raft::types::{StoredMembership, Types, Vote, from_raft};
use crate::state_hash::ImageHashes;

/// A wait after `accept` failed, which concerns the process's limits, not one peer.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Images are small beside the log; a longer one is a broken sender.
const IMAGE_BYTES_MAX: u64 = 4 << 30;

/// Requests of one unary connection that may wait for the disk at a time.
const UNARY_WAITING_MAX: usize = 1024;

/// Connections at a time: some four for each member that a group could have, many times over. Whoever opens more is no
/// peer, and gets none of this node's memory.
pub const CONNECTIONS_MAX: usize = 128;

/// Ends the tasks that were spawned under it.
#[derive(Clone, Debug)]
pub struct Lifetime {
    ended: watch::Receiver<()>,
    /// Each task holds one; none is ever sent on.
    _alive: mpsc::Sender<Infallible>,
}

/// The end of a [`Lifetime`], which comes when this is dropped.
#[derive(Debug)]
pub struct LifetimeEnd {
    end: watch::Sender<()>,
    alive: mpsc::Receiver<Infallible>,
}

impl LifetimeEnd {
    /// Ends the tasks, and resolves when they are gone with all that they held.
    pub async fn end(mut self) {
        drop(self.end);
        while self.alive.recv().await.is_some() {}
    }
}

impl Lifetime {
    /// A lifetime and its end.
    pub fn new() -> (LifetimeEnd, Lifetime) {
        let (end, ended) = watch::channel(());
        let (hold, alive) = mpsc::channel(1);
        (LifetimeEnd { end, alive }, Lifetime { ended, _alive: hold })
    }

    async fn ended(mut self) {
        while self.ended.changed().await.is_ok() {}
    }

    /// Runs `task` until it or this lifetime ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let lifetime = self.clone();
        drop(Types::spawn(async move {
            tokio::select! { biased;
                () = lifetime.clone().ended() => {}
                () = task => {}
            }
        }));
    }
}

/// The receiving end of the peer protocol.
pub struct Server<T: Tables> {
    /// Surroundings.
    pub env: Env,
    /// Who this node is; peer and channel are filled in.
    pub hello: Hello,
    /// Where frames lie.
    pub layout: Layout,
    /// The hashes of this node's newest images.
    pub told: Arc<dyn Fn() -> ImageHashes + Send + Sync>,
    /// Longest body of an entry.
    pub entry_bytes_max: u32,
    /// This node's log: what is committed of it is for whoever has lost it.
    pub log: Log,
    /// How far this node is on the way to being founded.
    pub founding: Arc<dyn Fn() -> FoundingStatus + Send + Sync>,
    /// Set once Raft runs.
    pub raft: watch::Receiver<Option<Raft<Types, Machine<T>>>>,
    /// Whether this node's word counts.
    pub probation: Arc<Probation>,
    /// What the members that connect say is theirs.
    pub forward_keys: Arc<ForwardKeys>,
    /// What went wrong.
    pub counters: Arc<PeerCounters>,
    /// Ends all connections.
    pub lifetime: Lifetime,
}

impl<T: Tables> Server<T> {
    /// Accepts until the lifetime ends.
    pub async fn run(self: Arc<Self>, listener: Listener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let Ok(place) = room.clone().try_acquire_owned() else {
                        tracing::warn!(%peer, "closed a connection: there are {CONNECTIONS_MAX} from peers already");
                        continue;
                    };
                    let server = self.clone();
                    self.lifetime.spawn(async move {
                        let _place = place;
                        if let Err(error) = server.serve(stream).await {
                            tracing::debug!(%peer, %error, "a peer's connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting peers");
                    self.env.clock.sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn serve(&self, stream: Stream) -> io::Result<()> {
        let (mut reader, mut writer) = connection::messages(stream)?;
        let ours = |theirs: &Hello| Hello {
            expects: theirs.node,
            channel: theirs.channel,
            wall_ms: self.env.clock.wall_ms(),
            ..self.hello.clone()
        };
        let hello = match connection::accept(&self.env.clock, &mut reader, &mut writer, ours).await? {
            Ok(hello) => hello,
            Err(reason) => {
                PeerCounters::count(&self.counters.refused_hellos);
                tracing::warn!("refused a peer: it {reason}");
                return Ok(());
            }
        };
        if let Some(key) = hello.forward_key {
            self.forward_keys.learn(hello.node, key);
        }
        if hello.channel == Channel::Founding {
            return self.serve_founding(reader, writer).await;
        }
        let mut raft = self.raft.clone();
        let running = self.env.clock.timeout(HELLO_LIMIT, raft.wait_for(Option::is_some)).await;
        let Some(Ok(raft)) = running.map(|raft| raft.map(|raft| raft.clone().expect("waited for"))) else {
            return writer.write(&Message::Refused("this node is not founded yet".to_owned())).await;
        };
        match hello.channel {
            Channel::Append => self.serve_appends(reader, writer, &raft).await,
            Channel::Unary => self.serve_unary(reader, writer, &raft).await,
            Channel::Snapshot => self.serve_snapshots(reader, writer, &raft).await,
            Channel::Frames => self.serve_frames(reader, writer, &raft).await,
            Channel::Founding => unreachable!("served above"),
        }
    }

    async fn serve_founding(&self, mut reader: MessageReader, mut writer: MessageWriter) -> io::Result<()> {
        while let Some(message) = reader.next().await? {
            let Message::FoundingQuery = message else { return Err(io::ErrorKind::InvalidData.into()) };
            writer.write(&Message::FoundingStatus((self.founding)())).await?;
        }
        Ok(())
    }

    async fn serve_frames(
        &self,
        mut reader: MessageReader,
        mut writer: MessageWriter,
        raft: &Raft<Types, Machine<T>>,
    ) -> io::Result<()> {
        while let Some(message) = reader.next().await? {
            let Message::FramesQuery(query) = message else { return Err(io::ErrorKind::InvalidData.into()) };
            let (committed, vote) = {
                let metrics = raft.metrics();
                let now = metrics.borrow_watched();
                (now.local_committed.as_ref().map(from_raft), now.vote)
            };
            let answer = frames::answer(&self.log, self.layout, committed, vote, query).await?;
            writer.write(&answer).await?;
        }
        Ok(())
    }

    async fn serve_appends(
        &self,
        mut reader: MessageReader,
        mut writer: MessageWriter,
        raft: &Raft<Types, Machine<T>>,
    ) -> io::Result<()> {
        loop {
            let (requests, accepted) = mpsc::channel::<AppendEntriesRequest<Types>>(1);
            let input =
                futures::stream::unfold(
                    accepted,
                    |mut accepted| async move { Some((accepted.recv().await?, accepted)) },
                );
            let answers = raft.stream_append(input);
            let (taken, take) = watch::channel(0);
            let reading = self.read_session(&mut reader, requests, taken);
            let answering = self.answer_session(&mut writer, answers, take);
            // An error on either side ends both: when Raft has stopped, the peer must not wait for it.
            let (end, ()) = futures::future::try_join(reading, answering).await?;
            match end {
                SessionEnd::Stream => writer.write(&Message::StreamEnd).await?,
                SessionEnd::Connection => return Ok(()),
                SessionEnd::Inconsistent(inconsistent) => {
                    PeerCounters::count(&self.counters.inconsistent_requests);
                    tracing::error!(%inconsistent, "refused a peer's append");
                    return writer.write(&Message::Inconsistent(inconsistent.to_string())).await;
                }
            }
        }
    }

    /// Feeds one session's requests to openraft; counts them in `taken`.
    async fn read_session(
        &self,
        reader: &mut MessageReader,
        requests: mpsc::Sender<AppendEntriesRequest<Types>>,
        taken: watch::Sender<u64>,
    ) -> io::Result<SessionEnd> {
        loop {
            // openraft stops listening after an answer that is no success; then nothing more is read either.
            let message = tokio::select! { biased;
                message = reader.next() => message?,
                () = requests.closed() => return Ok(SessionEnd::Connection),
            };
            match message {
                Some(Message::Append(append)) => {
                    if let Err(inconsistent) = chain::check(&append, self.layout, self.entry_bytes_max) {
                        return Ok(SessionEnd::Inconsistent(inconsistent));
                    }
                    taken.send_modify(|taken| *taken += 1);
                    if requests.send(request_of(append)).await.is_err() {
                        return Ok(SessionEnd::Connection);
                    }
                }
                Some(Message::StreamEnd) => return Ok(SessionEnd::Stream),
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => return Ok(SessionEnd::Connection),
            }
        }
    }

    /// Writes openraft's answers, in order, to the last.
    async fn answer_session(
        &self,
        writer: &mut MessageWriter,
        answers: impl futures::Stream<
            Item = Result<openraft::raft::StreamAppendResult<Types>, openraft::error::Fatal<Types>>,
        >,
        taken: watch::Receiver<u64>,
    ) -> io::Result<()> {
        let mut answers = std::pin::pin!(answers);
        let mut answered = 0;
        let mut signs = self.env.clock.ticks(WORKING_INTERVAL);
        loop {
            tokio::select! { biased;
                answer = answers.next() => match answer {
                    Some(Ok(answer)) => {
                        answered += 1;
                        if !matches!(answer, Err(openraft::raft::StreamAppendError::HigherVote(_))) {
                            PeerCounters::count(&self.counters.heard_of_leader);
                        }
                        writer.write(&Message::Appended(answer.into())).await?;
                    }
                    Some(Err(fatal)) => return Err(io::Error::other(fatal)),
                    None => return Ok(()),
                },
                () = signs.next() => {
                    if *taken.borrow() > answered {
                        writer.write(&Message::Working).await?;
                    }
                }
            }
        }
    }

    async fn serve_unary(
        &self,
        mut reader: MessageReader,
        mut writer: MessageWriter,
        raft: &Raft<Types, Machine<T>>,
    ) -> io::Result<()> {
        let (ready, mut replies) = mpsc::unbounded_channel();
        let mut waiting = 0;
        let mut signs = self.env.clock.ticks(WORKING_INTERVAL);
        loop {
            tokio::select! { biased;
                Some((number, reply)) = replies.recv() => {
                    waiting -= 1;
                    writer.write(&Message::Reply(number, reply)).await?;
                }
                message = reader.next(), if waiting < UNARY_WAITING_MAX => {
                    let (number, request) = match message? {
                        Some(Message::Request(number, request)) => (number, request),
                        Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                        None => return Ok(()),
                    };
                    if request == Request::Vitals {
                        // At once: a clock is read while the question is young.
                        let vitals = Vitals { wall_ms: self.env.clock.wall_ms(), images: (self.told)() };
                        writer.write(&Message::Reply(number, Reply::Vitals(vitals))).await?;
                        continue;
                    }
                    waiting += 1;
                    let (raft, ready, probation) = (raft.clone(), ready.clone(), self.probation.clone());
                    let counters = self.counters.clone();
                    self.lifetime.spawn(async move {
                        let reply = answer(&raft, &probation, &counters, request).await.unwrap_or(Reply::Unavailable);
                        // The connection may have ended meanwhile.
                        let _ = ready.send((number, reply));
                    });
                }
                () = signs.next(), if waiting > 0 => writer.write(&Message::Working).await?,
            }
        }
    }

    async fn serve_snapshots(
        &self,
        mut reader: MessageReader,
        mut writer: MessageWriter,
        raft: &Raft<Types, Machine<T>>,
    ) -> io::Result<()> {
        while let Some(message) = reader.next().await? {
            let Message::SnapshotHead(head) = message else { return Err(io::ErrorKind::InvalidData.into()) };
            let image = read_image(&self.env, &mut reader, head.image_bytes).await?;
            let mut installing = std::pin::pin!(install(raft, head, image));
            let mut signs = self.env.clock.ticks(WORKING_INTERVAL);
            let vote = loop {
                tokio::select! { biased;
                    vote = &mut installing => break vote?,
                    () = signs.next() => writer.write(&Message::Working).await?,
                }
            };
            writer.write(&Message::SnapshotDone(vote)).await?;
        }
        Ok(())
    }
}

/// How an append session ended.
enum SessionEnd {
    /// Its request stream is complete; the next session may begin.
    Stream,
    /// The connection is of no further use.
    Connection,
    /// The sender or the link is broken.
    Inconsistent(chain::Inconsistent),
}

fn request_of(append: Append) -> AppendEntriesRequest<Types> {
    AppendEntriesRequest {
        vote: append.vote,
        prev_log_id: append.previous,
        entries: append.entries,
        leader_commit: append.committed,
    }
}

fn vote_request_of(ask: AskVote) -> VoteRequest<Types> {
    VoteRequest { vote: ask.vote, last_log_id: ask.last, leadership_transfer: ask.leadership_transfer }
}

/// `None` if this node's Raft has stopped.
async fn answer<T: Tables>(
    raft: &Raft<Types, Machine<T>>,
    probation: &Probation,
    counters: &PeerCounters,
    request: Request,
) -> Option<Reply> {
    match request {
        // As if it were not there: its word does not count.
        Request::PreVote(_) | Request::Vote(_) | Request::Transfer(_) if !probation.is_over() => {
            Some(Reply::Unavailable)
        }
        Request::Heartbeat(append) => {
            if !append.entries.is_empty() {
                return None;
            }
            let (previous, term) = (append.previous, append.vote.leader_id.term);
            let committed = append.committed.as_ref().map(|committed| committed.index);
            let answer = raft.append_entries(request_of(append)).await.ok()?;
            if !matches!(answer, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
                probation.heard(term, committed);
                PeerCounters::count(&counters.heard_of_leader);
            }
            // A heartbeat has no last entry: what it confirms is the one before.
            let appended: Appended = match answer {
                openraft::raft::AppendEntriesResponse::Conflict => Appended::Conflict(previous?),
                answer => answer.into_stream_result(previous, previous).into(),
            };
            Some(Reply::Heartbeat(appended))
        }
        Request::PreVote(ask) => Some(Reply::Voted(voted(raft.pre_vote(vote_request_of(ask)).await.ok()?))),
        Request::Vote(ask) => Some(Reply::Voted(voted(raft.vote(vote_request_of(ask)).await.ok()?))),
        Request::Transfer(Transfer { from, to, last }) => {
            let request = TransferLeaderRequest::new(from, to, last);
            Some(Reply::Transferred(match raft.handle_transfer_leader(request).await.ok()? {
                Ok(()) => Transferred::Done,
                Err(TransferLeaderError::VoteChanged { actual, .. }) => Transferred::VoteChanged(actual),
                Err(TransferLeaderError::LogNotFlushed { actual, .. }) => Transferred::NotFlushed(actual),
            }))
        }
        Request::Vitals => unreachable!("answered where it is read"),
    }
}

async fn read_image(env: &Env, reader: &mut MessageReader, image_bytes: u64) -> io::Result<Bytes> {
    if image_bytes > IMAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an image of {image_bytes} bytes")));
    }
    let mut image = BytesMut::new();
    while (image.len() as u64) < image_bytes {
        let next = env.clock.timeout(SNAPSHOT_PART_LIMIT, reader.next()).await;
        match next.unwrap_or(Err(io::ErrorKind::TimedOut.into()))? {
            Some(Message::SnapshotPart(part)) if (image.len() + part.len()) as u64 <= image_bytes => {
                image.extend_from_slice(&part);
            }
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Ok(image.freeze())
}

async fn install<T: Tables>(raft: &Raft<Types, Machine<T>>, head: SnapshotHead, image: Bytes) -> io::Result<Vote> {
    let last_membership = StoredMembership::new(head.membership_at, head.membership);
    let meta = SnapshotMeta { last_log_id: head.last, last_membership };
    let snapshot = Snapshot { meta, snapshot: SnapshotImage::Received(image) };
    let response = raft.install_full_snapshot(head.vote, snapshot).await.map_err(io::Error::other)?;
    Ok(response.vote)
}

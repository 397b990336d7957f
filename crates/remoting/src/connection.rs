//! One TCP connection, either end of it: the engine that reads frames, answers requests and matches responses.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use env::Clock;
use env::net::Stream;
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use protocol::code::ResponseCode;
use protocol::command::RemotingCommand;
use protocol::frame::{self, Frame, FrameLimits};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Notify, oneshot};

use crate::limits::Limits;
use crate::outgoing::Outgoing;

/// Answers the requests that a peer sends.
pub trait Handler: Send + Sync + 'static {
    /// The answer to one request; `None` for none. Called for one-way requests too, whose answer is thrown away.
    ///
    /// The future is polled in the connection's task, next to those of its other requests, and dropped when the
    /// connection closes, unless [`Handler::must_finish`] says otherwise. It must not panic on any input.
    fn handle(
        self: &Arc<Self>,
        connection: &Connection,
        request: RemotingCommand,
    ) -> impl Future<Output = Option<RemotingCommand>> + Send;

    /// Whether a request that has come whole is carried out although its peer has gone meanwhile: clients say things and
    /// close, without waiting for the answer. Such a request ends soon by itself; a parked one is none.
    fn must_finish(&self, _request: &RemotingCommand) -> bool {
        false
    }

    /// The connection is closed; called once, after the last [`Handler::handle`].
    fn closed(&self, _connection: &Connection) {}
}

/// A handler for peers that are not supposed to send requests: answers each with "not supported".
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRequests;

impl Handler for NoRequests {
    async fn handle(self: &Arc<Self>, _connection: &Connection, request: RemotingCommand) -> Option<RemotingCommand> {
        let remark = format!(" request type {} not supported", request.code);
        Some(request.reply_error(ResponseCode::REQUEST_CODE_NOT_SUPPORTED, remark))
    }
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request never left this machine: safe to send again, anywhere.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The request was sent, at least in part, and no answer came: it may or may not have been carried out.
    #[error("no answer: {0}")]
    Unknown(String),
}

/// A handle on one connection. Cheap to clone; all clones speak over the same socket.
#[derive(Clone)]
pub struct Connection(Arc<Shared>);

struct Shared {
    id: u64,
    peer: SocketAddr,
    local: SocketAddr,
    clock: Clock,
    frame_limits: FrameLimits,
    outgoing: Outgoing,
    /// Calls that wait for their response, by opaque. `None` once the connection is closed.
    pending: Mutex<Option<BTreeMap<i32, oneshot::Sender<RemotingCommand>>>>,
    next_opaque: AtomicI32,
    closed: AtomicBool,
    close: Notify,
}

/// Connections of this process, numbered for logs and maps.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Connection {
    pub(crate) fn new(stream: &Stream, clock: Clock, frame_limits: FrameLimits) -> io::Result<Connection> {
        Ok(Connection(Arc::new(Shared {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            peer: stream.peer_addr()?,
            local: stream.local_addr()?,
            clock,
            frame_limits,
            outgoing: Outgoing::default(),
            pending: Mutex::new(Some(BTreeMap::new())),
            next_opaque: AtomicI32::new(0),
            closed: AtomicBool::new(false),
            close: Notify::new(),
        })))
    }

    /// A number that no other connection of this process has.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The other end's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.0.peer
    }

    /// This end's address.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local
    }

    /// Whether the connection is closed or closing.
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Closes the connection; what was queued before is still written if the peer takes it.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.close.notify_one();
    }

    /// Sends `request` and waits for its response, at most `limit`. Sets the request's opaque.
    pub async fn call(&self, mut request: RemotingCommand, limit: Duration) -> Result<RemotingCommand, CallError> {
        let opaque = self.0.next_opaque.fetch_add(1, Ordering::Relaxed);
        request.opaque = opaque;
        let (respond, response) = oneshot::channel();
        match &mut *self.0.pending.lock() {
            Some(pending) => pending.insert(opaque, respond),
            None => return Err(CallError::NotSent(format!("connection to {} is closed", self.0.peer))),
        };
        let waiting = Waiting { connection: self, opaque };
        self.push(&request)?;
        let answer = self.0.clock.timeout(limit, response).await;
        drop(waiting);
        match answer {
            Some(Ok(response)) => Ok(response),
            Some(Err(_)) => Err(CallError::Unknown(format!("{} closed the connection", self.0.peer))),
            None => Err(CallError::Unknown(format!("{} gave none within {limit:?}", self.0.peer))),
        }
    }

    /// Sends `request` without waiting for anything. `Ok` means queued, no more.
    pub fn one_way(&self, mut request: RemotingCommand) -> Result<(), CallError> {
        request.opaque = self.0.next_opaque.fetch_add(1, Ordering::Relaxed);
        self.push(&request.one_way())
    }

    fn push(&self, command: &RemotingCommand) -> Result<(), CallError> {
        match self.0.outgoing.push(command, &self.0.frame_limits) {
            Ok(true) => Ok(()),
            Ok(false) => Err(CallError::NotSent(format!("connection to {} is closed", self.0.peer))),
            Err(too_large) => Err(CallError::NotSent(too_large.to_string())),
        }
    }

    fn answered(&self, response: RemotingCommand) {
        let waiting = self.0.pending.lock().as_mut().and_then(|pending| pending.remove(&response.opaque));
        match waiting {
            // The caller may have given up in this very moment; then nobody wants the response.
            Some(respond) => drop(respond.send(response)),
            None => tracing::debug!(peer = %self.0.peer, opaque = response.opaque, "response that nobody waits for"),
        }
    }

    /// Runs the connection to its end. `Err` says why it was closed, unless by either side in good order.
    pub(crate) async fn run<H: Handler>(
        self,
        stream: Stream,
        handler: Arc<H>,
        limits: &Limits,
    ) -> Result<(), CloseReason> {
        let (mut read_half, mut write_half) = stream.into_split();
        let ended = {
            let writer = self.0.outgoing.write_to(&mut write_half);
            let reader = self.read_from(&mut read_half, &handler, limits);
            let watch = self.watch_stall(limits);
            tokio::pin!(writer, reader, watch);
            let ended = tokio::select! {
                biased;
                () = self.0.close.notified() => Ok(()),
                written = &mut writer => match written {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        // Nobody hears the answers any more, but what was said before may still lie there unread.
                        self.0.closed.store(true, Ordering::Release);
                        self.0.outgoing.close();
                        let _ = self.0.clock.timeout(LAST_REQUESTS, reader).await;
                        Err(CloseReason::Socket(error))
                    }
                },
                read = &mut reader => read,
                stalled = &mut watch => Err(stalled),
            };
            self.0.closed.store(true, Ordering::Release);
            self.0.outgoing.close();
            if ended.is_ok() {
                // Say what was queued before the close, to a peer that listens; no longer than it takes to notice.
                let _ = self.0.clock.timeout(LAST_WORDS, writer).await;
            }
            ended
        };
        // Dropping the senders tells every waiting caller that no answer will come.
        drop(self.0.pending.lock().take());
        handler.closed(&self);
        ended
    }

    /// Reads and carries out requests until the peer stops, then finishes those that must be.
    async fn read_from<H: Handler, R: AsyncRead + Unpin>(
        &self,
        socket: &mut R,
        handler: &Arc<H>,
        limits: &Limits,
    ) -> Result<(), CloseReason> {
        let mut working = FuturesUnordered::new();
        let mut finishing = FuturesUnordered::new();
        let carry_out = |request| self.carry_out(handler, request);
        let ended = self.read_requests(socket, handler, limits, carry_out, &mut working, &mut finishing).await;
        drop(working);
        let finish = async {
            while let Some(done) = finishing.next().await {
                self.done(done);
            }
        };
        let _ = self.0.clock.timeout(LAST_REQUESTS, finish).await;
        ended
    }

    async fn carry_out<H: Handler>(&self, handler: &Arc<H>, request: RemotingCommand) -> Done {
        let (one_way, opaque, cost) = (request.is_one_way(), request.opaque, cost(&request));
        let mut response = handler.handle(self, request).await.filter(|_| !one_way);
        if let Some(response) = &mut response {
            response.opaque = opaque;
        }
        Done { response, cost }
    }

    /// Queues the answer, if there is one.
    fn done(&self, done: Done) {
        if let Some(response) = done.response {
            self.respond(response);
        }
    }

    /// `working` are the requests that end with the connection, `finishing` those that outlive it.
    async fn read_requests<H: Handler, R: AsyncRead + Unpin, F: Future<Output = Done>>(
        &self,
        socket: &mut R,
        handler: &Arc<H>,
        limits: &Limits,
        carry_out: impl Fn(RemotingCommand) -> F,
        working: &mut FuturesUnordered<F>,
        finishing: &mut FuturesUnordered<F>,
    ) -> Result<(), CloseReason> {
        let clock = &self.0.clock;
        let mut buffer = BytesMut::new();
        let mut working_bytes = 0;
        // When the first byte of the frame now in the buffer came; None between frames.
        let mut frame_since: Option<Duration> = None;
        loop {
            while let Some(frame) = frame::decode(&mut buffer, &self.0.frame_limits).map_err(CloseReason::Frame)? {
                frame_since = None;
                match frame {
                    Frame::Command(response) if response.is_response() => self.answered(response),
                    Frame::Command(request) => {
                        working_bytes += cost(&request);
                        let those = if handler.must_finish(&request) { &mut *finishing } else { &mut *working };
                        those.push(carry_out(request));
                    }
                    Frame::Undecodable(frame) => {
                        tracing::debug!(peer = %self.0.peer, reason = %frame.reason, "request header cannot be decoded");
                        if let Some(answer) = frame.answer() {
                            self.respond(answer);
                        }
                    }
                }
            }
            if frame_since.is_none() && !buffer.is_empty() {
                frame_since = Some(clock.monotonic());
            }
            let may_read = working.len() + finishing.len() < limits.requests_in_flight
                && working_bytes < limits.request_bytes_in_flight
                && self.0.outgoing.bytes() < limits.outgoing_bytes;
            // A frame that has begun has a deadline; a quiet connection has another.
            let patience = match frame_since {
                Some(since) => limits.whole_frame.saturating_sub(clock.monotonic() - since),
                None => limits.idle,
            };
            if may_read {
                make_room(&mut buffer);
            }
            tokio::select! {
                biased;
                Some(done) = finishing.next() => {
                    working_bytes -= done.cost;
                    self.done(done);
                }
                // Parked requests may all be woken by one event: no more of them are answered than the peer takes.
                Some(done) = working.next(), if self.0.outgoing.bytes() < limits.outgoing_bytes => {
                    working_bytes -= done.cost;
                    self.done(done);
                }
                read = socket.read_buf(&mut buffer), if may_read => match read.map_err(CloseReason::Socket)? {
                    0 if buffer.is_empty() => return Ok(()),
                    0 => return Err(CloseReason::Cut),
                    _ => {}
                },
                () = self.0.outgoing.drained.notified() => {}
                () = clock.sleep(patience), if may_read => {
                    if frame_since.is_some() {
                        return Err(CloseReason::SlowFrame);
                    }
                    if working.is_empty() && finishing.is_empty() {
                        return Err(CloseReason::Idle);
                    }
                }
            }
        }
    }

    /// Queues a response. One that does not fit a frame becomes an error that says so: the peer still waits for it.
    fn respond(&self, response: RemotingCommand) {
        let Err(CallError::NotSent(reason)) = self.push(&response) else { return };
        if self.is_closed() {
            tracing::debug!(peer = %self.0.peer, code = response.code, "carried out; nobody hears the answer");
            return;
        }
        tracing::warn!(peer = %self.0.peer, code = response.code, %reason, "response not sent");
        let error = RemotingCommand::response_to(response.opaque, response.serialize, ResponseCode::SYSTEM_ERROR);
        let _ = self.push(&error.with_remark(format!("the answer cannot be sent: {reason}")));
    }

    /// Resolves when the peer has taken none of the bytes that wait for it for too long.
    async fn watch_stall(&self, limits: &Limits) -> CloseReason {
        let mut written = 0;
        loop {
            self.0.clock.sleep(limits.stalled_write).await;
            let now = self.0.outgoing.written.load(Ordering::Relaxed);
            if now == written && self.0.outgoing.bytes() > 0 {
                return CloseReason::Stalled;
            }
            written = now;
        }
    }
}

/// Removes its call from the waiting ones, also when the caller gives up.
struct Waiting<'a> {
    connection: &'a Connection,
    opaque: i32,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(pending) = &mut *self.connection.0.pending.lock() {
            pending.remove(&self.opaque);
        }
    }
}

/// How a request ended.
struct Done {
    response: Option<RemotingCommand>,
    cost: usize,
}

/// What a request in the works costs beside its body.
const REQUEST_OVERHEAD: usize = 1024;

fn cost(request: &RemotingCommand) -> usize {
    request.body.len() + REQUEST_OVERHEAD
}

/// How long requests may go on whose peer has gone. They end by themselves before; this is for one that does not.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// How long a closing connection may take to write what is queued.
const LAST_WORDS: Duration = Duration::from_secs(1);

const SMALLEST_READ: usize = 4 * 1024;
const LARGEST_READ: usize = 256 * 1024;

/// Grows the buffer with what has come, never with what a length word claims.
fn make_room(buffer: &mut BytesMut) {
    let spare = buffer.capacity() - buffer.len();
    if spare < SMALLEST_READ {
        buffer.reserve(buffer.len().clamp(SMALLEST_READ, LARGEST_READ));
    }
}

/// Why a connection was closed from our side.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloseReason {
    #[error("{0}")]
    Socket(#[source] io::Error),
    #[error("bytes that are no frame: {0}")]
    Frame(#[source] frame::FrameError),
    #[error("the peer closed it in the middle of a frame")]
    Cut,
    #[error("a frame took too long to arrive")]
    SlowFrame,
    #[error("idle")]
    Idle,
    #[error("the peer does not read its answers")]
    Stalled,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.0.id).field("peer", &self.0.peer).finish_non_exhaustive()
    }
}

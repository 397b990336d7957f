//! Two ends of real connections: what must work, and what a hostile or broken peer must not be able to do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use env::{Clock, Env};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::frame::FrameLimits;
use remoting::{CallError, Client, Connection, Handler, Limits, NoRequests, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers with the request's body; "later" waits for ever; "call me" is called back first; "finish me" takes a while and
/// must be finished.
struct Echo {
    clock: Clock,
    closed: AtomicUsize,
    one_way: tokio::sync::Semaphore,
    finished: AtomicUsize,
}

impl Echo {
    fn new() -> Arc<Echo> {
        Arc::new(Echo {
            clock: Env::real().clock,
            closed: AtomicUsize::new(0),
            one_way: tokio::sync::Semaphore::new(0),
            finished: AtomicUsize::new(0),
        })
    }
}

impl Handler for Echo {
    async fn handle(self: &Arc<Self>, connection: &Connection, request: RemotingCommand) -> Option<RemotingCommand> {
        if request.is_one_way() {
            self.one_way.add_permits(1);
            return Some(request.reply(ResponseCode::SUCCESS));
        }
        if &request.body[..] == b"later" {
            std::future::pending::<()>().await;
        }
        if self.must_finish(&request) {
            self.clock.sleep(Duration::from_millis(200)).await;
            assert_eq!(self.closed.load(Ordering::SeqCst), 0, "closed is told after the last request");
            self.finished.fetch_add(1, Ordering::SeqCst);
        }
        let mut body = request.body.clone();
        if &body[..] == b"call me" {
            let back = RemotingCommand::request(RequestCode::GET_CONSUMER_RUNNING_INFO).with_body("back");
            body = connection.call(back, PATIENCE).await.expect("the caller answers").body;
        }
        Some(request.reply(ResponseCode::SUCCESS).with_body(body))
    }

    fn must_finish(&self, request: &RemotingCommand) -> bool {
        &request.body[..] == b"finish me"
    }

    fn closed(&self, _connection: &Connection) {
        self.closed.fetch_add(1, Ordering::SeqCst);
    }
}

async fn serve(limits: Limits) -> (Env, Server, Arc<Echo>) {
    let env = Env::real();
    let echo = Echo::new();
    let any = "127.0.0.1:0".parse().expect("an address");
    let server = Server::start(&env, any, limits, echo.clone()).await.expect("loopback can be listened on");
    (env, server, echo)
}

fn ask(body: impl Into<Bytes>) -> RemotingCommand {
    RemotingCommand::request(RequestCode::HEART_BEAT).with_body(body)
}

/// Resolves when `condition` holds; the connection tasks make it so.
async fn until(clock: &Clock, condition: impl Fn() -> bool) {
    let held = clock
        .timeout(PATIENCE, async {
            while !condition() {
                clock.sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    assert!(held.is_some(), "the condition never held");
}

fn frame_of(request: &RemotingCommand) -> bytes::BytesMut {
    let mut frame = bytes::BytesMut::new();
    protocol::frame::encode(request, &FrameLimits::default(), &mut frame).expect("it fits");
    frame
}

/// Everything the server says to these bytes until it closes the connection.
async fn until_closed(env: &Env, address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = env.net.connect(&address.to_string()).await.expect("it listens");
    stream.write_all(bytes).await.expect("it reads");
    let mut said = Vec::new();
    let closed = env.clock.timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    assert!(closed.is_some(), "the connection stays open");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_calls_of_all_sizes_find_their_answers() {
    let (env, server, _) = serve(Limits::default()).await;
    let address = server.local_addr().to_string();
    let client = Client::new(&env, Limits::default(), Arc::new(NoRequests));
    let calls = (0..500_usize).map(|k| {
        let (client, address) = (client.clone(), address.clone());
        async move {
            let body = vec![k as u8; k * 97];
            let answer = client.call(&address, ask(body.clone()), PATIENCE).await.expect("an answer");
            assert_eq!(answer.body, body);
        }
    });
    futures::future::join_all(calls).await;
    assert_eq!(server.connections(), 1, "one connection per address, also when all start at once");
}

#[tokio::test]
async fn the_server_may_call_its_client() {
    let (env, server, _) = serve(Limits::default()).await;
    let client = Client::new(&env, Limits::default(), Echo::new());
    let answer = client.call(&server.local_addr().to_string(), ask("call me"), PATIENCE).await.expect("an answer");
    assert_eq!(&answer.body[..], b"back");
}

#[tokio::test]
async fn a_one_way_request_is_carried_out_and_never_answered() {
    let (env, server, echo) = serve(Limits::default()).await;
    let client = Client::new(&env, Limits::default(), Arc::new(NoRequests));
    let address = server.local_addr().to_string();
    for _ in 0..3 {
        client.one_way(&address, ask("quiet")).await.expect("it can be sent");
    }
    let carried_out = env.clock.timeout(PATIENCE, echo.one_way.acquire_many(3)).await;
    assert!(carried_out.is_some());
    // An answer to one of them would arrive before this one's and be taken for nobody's; this one's must still come.
    assert_eq!(&client.call(&address, ask("loud"), PATIENCE).await.expect("an answer").body[..], b"loud");
}

#[tokio::test]
async fn what_a_peer_said_before_it_went_is_carried_out() {
    // Closed with nothing unread, the peer says goodbye; closed over an answer that it never read, it resets.
    for leaves_an_answer_unread in [false, true] {
        let (env, server, echo) = serve(Limits::default()).await;
        let mut stream = env.net.connect(&server.local_addr().to_string()).await.expect("it listens");
        if leaves_an_answer_unread {
            stream.write_all(&frame_of(&ask("first"))).await.expect("it reads");
            stream.read_u8().await.expect("the answer begins");
        }
        for request in ["finish me", "later", "answer me", "finish me", "finish me"] {
            stream.write_all(&frame_of(&ask(request))).await.expect("it reads");
        }
        drop(stream);
        until(&env.clock, || echo.closed.load(Ordering::SeqCst) == 1).await;
        assert_eq!(echo.finished.load(Ordering::SeqCst), 3, "an answer left unread: {leaves_an_answer_unread}");
    }
}

#[tokio::test]
async fn a_caller_learns_whether_its_request_was_sent() {
    let (env, server, echo) = serve(Limits::default()).await;
    let address = server.local_addr().to_string();
    let client = Client::new(&env, Limits::default(), Arc::new(NoRequests));
    let slow = client.call(&address, ask("later"), Duration::from_millis(50)).await;
    assert!(matches!(slow, Err(CallError::Unknown(_))), "{slow:?}");

    let waiting = tokio::spawn({
        let (client, address) = (client.clone(), address.clone());
        async move { client.call(&address, ask("later"), PATIENCE).await }
    });
    // Frames of one connection are read in order: when this is answered, the one before was sent.
    client.call(&address, ask("next"), PATIENCE).await.expect("an answer");
    server.stop();
    let cut = waiting.await.expect("the task ends");
    assert!(matches!(cut, Err(CallError::Unknown(_))), "{cut:?}");
    until(&env.clock, || echo.closed.load(Ordering::SeqCst) == 1).await;

    let refused = client.call(&address, ask("anyone?"), PATIENCE).await;
    assert!(matches!(refused, Err(CallError::NotSent(_))), "{refused:?}");
}

#[tokio::test]
async fn what_is_no_frame_closes_the_connection_and_harms_nobody_else() {
    let limits =
        Limits { whole_frame: Duration::from_millis(200), idle: Duration::from_millis(300), ..Limits::default() };
    let (env, server, echo) = serve(limits).await;
    let address = server.local_addr();
    let cases: [(&str, &[u8]); 8] = [
        ("a web browser", b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n"),
        ("a negative length", &[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]),
        ("a length of zero", &[0, 0, 0, 0, 0, 0, 0, 0]),
        ("a length beyond the limit", &[0x01, 0, 0, 1, 0, 0, 0, 2, b'{', b'}']),
        ("a header longer than its frame", &[0, 0, 0, 8, 0, 0, 0, 9, b'{', b'}', 0, 0]),
        ("an unknown serialize type", &[0, 0, 0, 6, 7, 0, 0, 2, b'{', b'}']),
        ("half a frame, then silence", &[0, 0, 0, 100, 0, 0, 0, 50, b'{']),
        ("silence", b""),
    ];
    for (case, bytes) in cases {
        assert_eq!(until_closed(&env, address, bytes).await, b"", "{case}");
    }
    until(&env.clock, || echo.closed.load(Ordering::SeqCst) == cases.len()).await;
    let client = Client::new(&env, Limits::default(), Arc::new(NoRequests));
    assert_eq!(&client.call(&address.to_string(), ask("well"), PATIENCE).await.expect("an answer").body[..], b"well");
}

#[tokio::test]
async fn a_header_that_makes_no_sense_is_answered_and_the_connection_lives() {
    let (env, server, _) = serve(Limits::default()).await;
    let header = br#"{"code":"none","opaque":7,"flag":0}"#;
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(4 + header.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&(header.len() as u32).to_be_bytes());
    bytes.extend_from_slice(header);
    let mut stream = env.net.connect(&server.local_addr().to_string()).await.expect("it listens");
    for _ in 0..2 {
        stream.write_all(&bytes).await.expect("it reads");
        let mut buffer = bytes::BytesMut::new();
        let answer = loop {
            stream.read_buf(&mut buffer).await.expect("it answers");
            if let Some(frame) = protocol::frame::decode(&mut buffer, &FrameLimits::default()).expect("a frame") {
                break frame;
            }
        };
        let protocol::frame::Frame::Command(answer) = answer else { panic!("{answer:?}") };
        assert_eq!((answer.opaque, answer.response_code()), (7, ResponseCode::SYSTEM_ERROR));
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_closed_and_costs_bounded_memory() {
    let limits = Limits { outgoing_bytes: 1024 * 1024, stalled_write: Duration::from_millis(300), ..Limits::default() };
    let (env, server, echo) = serve(limits).await;
    let mut stream = env.net.connect(&server.local_addr().to_string()).await.expect("it listens");
    let frame = frame_of(&ask(vec![1; 256 * 1024]));
    // 64 MiB of requests whose answers nobody reads: the server must stop reading long before it has taken them all.
    let mut taken = 0;
    while taken < 256 && stream.write_all(&frame).await.is_ok() {
        taken += 1;
    }
    assert!(taken < 256, "the server read everything");
    until(&env.clock, || echo.closed.load(Ordering::SeqCst) == 1).await;
}

/// Parks every request until the gate opens, then answers with a lot.
struct Parked {
    gate: tokio::sync::watch::Sender<bool>,
    parked: AtomicUsize,
    answered: AtomicUsize,
    closed: AtomicUsize,
}

const LARGE_ANSWER_BYTES: usize = 1 << 20;

impl Handler for Parked {
    async fn handle(self: &Arc<Self>, _connection: &Connection, request: RemotingCommand) -> Option<RemotingCommand> {
        self.parked.fetch_add(1, Ordering::SeqCst);
        let _ = self.gate.subscribe().wait_for(|open| *open).await;
        self.answered.fetch_add(1, Ordering::SeqCst);
        Some(request.reply(ResponseCode::SUCCESS).with_body(vec![0; LARGE_ANSWER_BYTES]))
    }

    fn closed(&self, _connection: &Connection) {
        self.closed.fetch_add(1, Ordering::SeqCst);
    }
}

/// One message may wake thousands of parked pulls of a peer that reads nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wake_together_are_answered_as_fast_as_the_peer_reads() {
    const REQUESTS: usize = 500;
    let env = Env::real();
    let parked = Arc::new(Parked {
        gate: tokio::sync::watch::Sender::new(false),
        parked: AtomicUsize::new(0),
        answered: AtomicUsize::new(0),
        closed: AtomicUsize::new(0),
    });
    let limits = Limits { outgoing_bytes: 4 << 20, stalled_write: Duration::from_millis(200), ..Limits::default() };
    let any = "127.0.0.1:0".parse().expect("an address");
    let server = Server::start(&env, any, limits, parked.clone()).await.expect("loopback can be listened on");
    let mut silent = env.net.connect(&server.local_addr().to_string()).await.expect("it listens");
    let request = frame_of(&ask(""));
    for _ in 0..REQUESTS {
        silent.write_all(&request).await.expect("it reads");
    }
    until(&env.clock, || parked.parked.load(Ordering::SeqCst) == REQUESTS).await;
    parked.gate.send_replace(true);
    until(&env.clock, || parked.closed.load(Ordering::SeqCst) == 1).await;
    // What the limit allows, and what the kernel's buffers of both ends took.
    let answered = parked.answered.load(Ordering::SeqCst);
    assert!((4..100).contains(&answered), "{answered} of {REQUESTS} were answered");
}

/// A program that makes a client for each of its questions must not take all of a server's connections.
#[tokio::test]
async fn the_connections_of_a_client_that_is_dropped_close_when_all_is_said() {
    let (env, server, echo) = serve(Limits { connections: 2, ..Limits::default() }).await;
    let address = server.local_addr().to_string();
    for round in 1..=5 {
        let client = Client::new(&env, Limits::default(), Arc::new(NoRequests));
        let other = client.clone();
        client.call(&address, ask("here"), PATIENCE).await.expect("an answer");
        drop(client);
        other.one_way(&address, ask("the last word")).await.expect("the connection is still there");
        drop(other);
        until(&env.clock, || echo.closed.load(Ordering::SeqCst) == round).await;
        assert_eq!(echo.one_way.available_permits(), round);
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let (env, server, _) = serve(Limits { connections: 2, ..Limits::default() }).await;
    let address = server.local_addr().to_string();
    let mut kept = Vec::new();
    for _ in 0..2 {
        let client = Client::new(&env, Limits::default(), Arc::new(NoRequests));
        client.call(&address, ask("here"), PATIENCE).await.expect("an answer");
        kept.push(client);
    }
    assert_eq!(until_closed(&env, server.local_addr(), b"").await, b"");
    drop(kept);
}

//! Idempotent send over a real three-node cluster on loopback, behind proxies that reset the connection as soon as they have
//! forwarded a send, with a leader that dies in the middle. What could go wrong: a message that is sent again is stored
//! again, because its first copy is still in flight, was stored under another leader, or comes last.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use client::{Client, Message, SendReceipt};
use embedded::Cluster;
use env::net::{Listener, Stream};
use env::{Env, Rng};
use parking_lot::Mutex;
use protocol::code::RequestCode;
use protocol::frame::{self, Frame, FrameLimits};
use protocol::header::SendMessageRequest;
use protocol::properties;
use tests::read::everything_in;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest wait for anything that must happen: many times what it takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);

const SENDERS: usize = 16;
const EACH: usize = 84;

/// What all proxies do, and have seen.
struct Spite {
    rng: Rng,
    /// How often a key came by.
    sends: Mutex<BTreeMap<String, usize>>,
    resets: AtomicUsize,
}

impl Spite {
    /// A frame has been forwarded; whether its connection is reset now.
    fn strikes(&self, frame: &[u8]) -> bool {
        let mut frame = BytesMut::from(frame);
        let Ok(Some(Frame::Command(request))) = frame::decode(&mut frame, &FrameLimits::default()) else {
            return false;
        };
        if request.request_code() != RequestCode::SEND_MESSAGE_V2 || request.is_response() {
            return false;
        }
        let header = SendMessageRequest::of(&request).expect("a send");
        let properties = header.properties.unwrap_or_default();
        let key = properties::get(&properties, properties::UNIQ_KEY).expect("our producers set one").to_owned();
        *self.sends.lock().entry(key).or_default() += 1;
        let strikes = self.rng.chance(1, 2);
        self.resets.fetch_add(usize::from(strikes), Ordering::Relaxed);
        strikes
    }

    /// Sends that had been sent before.
    fn resends(&self) -> usize {
        self.sends.lock().values().map(|sends| sends - 1).sum()
    }
}

/// Accepts for the broker that `upstream` will tell.
async fn proxy(env: Env, listener: Listener, upstream: Arc<OnceLock<SocketAddr>>, spite: Arc<Spite>) {
    while let Ok((client, _)) = listener.accept().await {
        let (env, upstream, spite) = (env.clone(), upstream.clone(), spite.clone());
        tokio::spawn(async move {
            let Some(address) = upstream.get() else { return };
            // Dead at the moment, perhaps: so the client learns it.
            let Ok(broker) = env.net.connect(&address.to_string()).await else { return };
            relay(client, broker, &spite).await;
        });
    }
}

/// Until either end closes, or the proxy strikes: both connections are dropped then, with whatever was on its way back.
async fn relay(client: Stream, broker: Stream, spite: &Spite) {
    let ((mut from_client, mut to_client), (mut from_broker, mut to_broker)) =
        (client.into_split(), broker.into_split());
    let back = async {
        let mut piece = vec![0; 64 << 10];
        loop {
            match from_broker.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(read) if to_client.write_all(&piece[..read]).await.is_err() => return,
                Ok(_) => {}
            }
        }
    };
    let forth = async {
        let mut buffer = BytesMut::new();
        loop {
            while let Ok(Some(bytes)) = frame::frame_bytes(&buffer, &FrameLimits::default())
                && buffer.len() >= bytes
            {
                let frame = buffer.split_to(bytes);
                if to_broker.write_all(&frame).await.is_err() || spite.strikes(&frame) {
                    return;
                }
            }
            if !matches!(from_client.read_buf(&mut buffer).await, Ok(1..)) {
                return;
            }
        }
    };
    tokio::select! { biased; () = forth => {} () = back => {} }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_resends_through_resetting_proxies_and_a_killed_leader_are_no_second_message() {
    let env = Env::real();
    let seed = Rng::from_entropy().u64();
    println!("seed {seed}");
    let spite = Arc::new(Spite { rng: Rng::seeded(seed), sends: Mutex::default(), resets: AtomicUsize::new(0) });
    let (mut addresses, mut upstreams) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let listener = env.net.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
        let upstream = Arc::new(OnceLock::new());
        addresses.push(listener.local_addr().expect("an address"));
        tokio::spawn(proxy(env.clone(), listener, upstream.clone(), spite.clone()));
        upstreams.push(upstream);
    }
    let mut cluster = Cluster::builder().advertised(addresses).start().await.expect("a cluster of three");
    for (node, upstream) in upstreams.iter().enumerate() {
        upstream.set(cluster.listens(node)).expect("set once");
    }

    let client = cluster.client().build().expect("a client");
    let receipts: Arc<Mutex<BTreeMap<String, SendReceipt>>> = Arc::default();
    let sending: Vec<_> = (0..SENDERS)
        .map(|sender| {
            // Each on connections of its own: who is struck is the one who has sent.
            let own = cluster.client().build().expect("a client");
            let producer = own.producer("pg").timeout(PATIENCE).start().expect("a producer");
            let receipts = receipts.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    let body = format!("{sender}-{number}");
                    let receipt = producer.send(Message::new("T", body.clone())).await.expect("it is stored");
                    receipts.lock().insert(body, receipt);
                }
                own.shutdown().await;
            })
        })
        .collect();
    let clock = env.clock.clone();
    let a_third = async {
        while receipts.lock().len() < SENDERS * EACH / 3 {
            clock.sleep(Duration::from_millis(5)).await;
        }
    };
    clock.timeout(PATIENCE, a_third).await.expect("a third is sent");
    let killed = cluster.leader().await.expect("a leader");
    cluster.kill(killed).await;
    for sender in sending {
        sender.await.expect("a sender");
    }
    cluster.restart(killed).await.expect("the killed one starts again");

    let receipts = std::mem::take(&mut *receipts.lock());
    let repeated = receipts.values().filter(|receipt| receipt.duplicate).count();
    let (resends, resets) = (spite.resends(), spite.resets.load(Ordering::Relaxed));
    println!(
        "{} messages, {resends} sent again, {resets} resets; of {repeated} the last copy came too late",
        receipts.len()
    );
    assert!(resends >= 1_000, "only {resends} were sent again");
    assert!(repeated > receipts.len() / 4, "most answers were lost at first: {repeated}");
    let seen = read_all(&client).await;
    for (body, receipt) in &receipts {
        let place = (receipt.queue.queue_id, receipt.queue_offset);
        assert_eq!(seen.get(body), Some(&vec![place]), "{body}: {receipt:?}");
    }
    assert_eq!(seen.len(), receipts.len());
    client.shutdown().await;
    cluster.shutdown().await;
}

/// All that is visible, and where it is.
async fn read_all(client: &Client) -> BTreeMap<String, Vec<(i32, i64)>> {
    let mut seen: BTreeMap<String, Vec<(i32, i64)>> = BTreeMap::new();
    for message in everything_in(client, "T", PATIENCE).await {
        let body = std::str::from_utf8(message.body()).expect("text").to_owned();
        seen.entry(body).or_default().push((message.queue().queue_id, message.queue_offset()));
    }
    seen
}

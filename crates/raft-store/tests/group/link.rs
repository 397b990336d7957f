//! A link in front of each member's peer listener, which a test can cut, freeze or delay: it reads the hello of each
//! connection, so it knows who is at both ends.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use env::Env;
use env::net::{Listener, ReadHalf, Stream, WriteHalf};
use parking_lot::Mutex;
use raft_store::position::NodeId;
use raft_store::raft::peer::wire::{self, Channel, Hello, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// All links of a test.
#[derive(Clone, Default)]
pub struct Links {
    /// Members that hear nobody and are heard by nobody.
    cut: watch::Sender<BTreeSet<NodeId>>,
    /// Members whose connections stay, with nothing passing.
    frozen: watch::Sender<BTreeSet<NodeId>>,
    /// Whose frames are spoilt on the way out.
    spoilt: watch::Sender<BTreeSet<NodeId>>,
    /// What it takes to make a connection.
    delay: Arc<Mutex<Duration>>,
    /// The hellos of all connections.
    hellos: Arc<Mutex<Vec<Hello>>>,
    /// Who is behind which link.
    behind: Arc<Mutex<Vec<(SocketAddr, NodeId)>>>,
}

impl Links {
    /// Listens at `outer` for connections to the member that listens at `inner`.
    pub async fn add(&self, env: &Env, outer: SocketAddr, inner: SocketAddr) {
        let listener = env.net.listen(outer).await.unwrap();
        tokio::spawn(self.clone().run(env.clone(), listener, inner));
    }

    /// Says who listens at `inner`.
    pub fn name(&self, inner: SocketAddr, node: NodeId) {
        self.behind.lock().push((inner, node));
    }

    /// Nothing passes to or from `node` any more; connections that exist break.
    pub fn cut(&self, node: NodeId) {
        self.cut.send_modify(|cut| {
            cut.insert(node);
        });
    }

    /// Nothing passes to or from `node` any more, and nobody is told.
    pub fn freeze(&self, node: NodeId) {
        self.frozen.send_modify(|frozen| {
            frozen.insert(node);
        });
    }

    /// In what `node` sends to others, every `xxxxxxxx` becomes `xxxxyxxx` from now on.
    pub fn spoil(&self, node: NodeId) {
        self.spoilt.send_modify(|spoilt| {
            spoilt.insert(node);
        });
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.cut.send_modify(BTreeSet::clear);
        self.frozen.send_modify(BTreeSet::clear);
    }

    /// From now on a connection takes this long to be made.
    pub fn delay(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }

    /// How often `from` said hello to `to` for its heartbeats and votes.
    pub fn unary_hellos(&self, from: NodeId, to: NodeId) -> usize {
        let hellos = self.hellos.lock();
        let ours = |hello: &&Hello| (hello.node, hello.expects, hello.channel) == (from, to, Channel::Unary);
        hellos.iter().filter(ours).count()
    }

    async fn run(self, env: Env, listener: Listener, inner: SocketAddr) {
        while let Ok((stream, _)) = listener.accept().await {
            let (links, env) = (self.clone(), env.clone());
            tokio::spawn(async move { links.pass(&env, stream, inner).await });
        }
    }

    /// An error is an end of the connection like any other.
    async fn pass(self, env: &Env, mut from: Stream, inner: SocketAddr) -> Option<()> {
        let mut prefix = [0; 5];
        from.read_exact(&mut prefix).await.ok()?;
        let mut fields = vec![0; u32::from_le_bytes(prefix[..4].try_into().unwrap()) as usize - 1];
        from.read_exact(&mut fields).await.ok()?;
        let Ok(Message::Hello(hello)) = wire::decode(prefix[4], fields.clone().into()) else { return None };
        self.hellos.lock().push(hello.clone());
        let delay = *self.delay.lock();
        env.clock.sleep(delay).await;
        let mut to = env.net.connect(&inner.to_string()).await.ok()?;
        to.write_all(&[&prefix[..], &fields].concat()).await.ok()?;
        let to_node = self.behind.lock().iter().find(|(address, _)| *address == inner).map(|(_, node)| *node);
        let mut cut = self.cut.subscribe();
        let concerned =
            |nodes: &BTreeSet<NodeId>| nodes.contains(&hello.node) || to_node.is_some_and(|node| nodes.contains(&node));
        let (from, to) = (from.into_split(), to.into_split());
        tokio::select! { biased;
            _ = cut.wait_for(concerned) => None,
            passed = copy(from.0, to.1, self.frozen.subscribe(), concerned, || self.spoilt.borrow().contains(&hello.node)) => passed,
            passed = copy(to.0, from.1, self.frozen.subscribe(), concerned, || false) => passed,
        }
    }
}

/// Until one end closes.
async fn copy(
    mut from: ReadHalf,
    mut to: WriteHalf,
    mut frozen: watch::Receiver<BTreeSet<NodeId>>,
    concerned: impl Fn(&BTreeSet<NodeId>) -> bool,
    spoilt: impl Fn() -> bool,
) -> Option<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        frozen.wait_for(|frozen| !concerned(frozen)).await.ok()?;
        if spoilt()
            && let Some(at) = buffer[..read].windows(8).position(|window| window == b"xxxxxxxx")
        {
            buffer[at + 4] = b'y';
        }
        to.write_all(&buffer[..read]).await.ok()?;
    }
}

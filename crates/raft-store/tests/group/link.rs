//! A link in front of each member's peer listener, which a test can cut: it reads the hello of each connection, so it
//! knows who is at both ends.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use env::Env;
use env::net::{Listener, Stream};
use parking_lot::Mutex;
use raft_store::position::NodeId;
use raft_store::raft::peer::wire::{self, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// All links of a test.
#[derive(Clone, Default)]
pub struct Links {
    /// Members that hear nobody and are heard by nobody.
    cut: watch::Sender<BTreeSet<NodeId>>,
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

    /// Everything passes again.
    pub fn heal(&self) {
        self.cut.send_modify(BTreeSet::clear);
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
        let mut to = env.net.connect(&inner.to_string()).await.ok()?;
        to.write_all(&[&prefix[..], &fields].concat()).await.ok()?;
        let to_node = self.behind.lock().iter().find(|(address, _)| *address == inner).map(|(_, node)| *node);
        let mut cut = self.cut.subscribe();
        tokio::select! { biased;
            _ = cut.wait_for(|cut| cut.contains(&hello.node) || to_node.is_some_and(|node| cut.contains(&node))) => None,
            passed = tokio::io::copy_bidirectional(&mut from, &mut to) => passed.ok().map(|_| ()),
        }
    }
}

//! Cutting hosts of one process off from each other, on the machine's own loopback.
//!
//! Each host has a [`Net`] of its own. What passes between hosts on different sides of the cut stands still, as it does
//! when a link drops packets: nothing is refused and nothing is reset, connections and attempts to connect wait, and go on
//! when the cut has healed, unless somebody has lost patience meanwhile. What was handed to the kernel before the cut
//! arrives. That a connection is closed is seen across the cut; TCP would learn of it later.
//!
//! The gate is at the end that connected: it stops both directions. Whoever is no host (a client) is cut off from nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{Kind, Net};

/// Which hosts reach each other. Cheap to clone; clones are the same partition.
#[derive(Clone, Debug, Default)]
pub struct Partition(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Which host listens on a port.
    listening: BTreeMap<u16, usize>,
    /// One side of the cut; empty if there is none.
    cut_off: BTreeSet<usize>,
    waiting: Vec<Waker>,
}

impl Partition {
    /// From now on `hosts` and all others do not reach each other; on either side all do. Replaces an earlier cut.
    pub fn cut_off(&self, hosts: impl IntoIterator<Item = usize>) {
        let mut state = self.0.lock();
        state.cut_off = hosts.into_iter().collect();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// From now on all reach each other.
    pub fn heal(&self) {
        self.cut_off([]);
    }
}

impl Net {
    /// This network as a host of `partition` sees it. A simulated one is cut by the simulation: it stays as it is.
    pub fn of_host(&self, partition: &Partition, host: usize) -> Net {
        match self.0 {
            Kind::Real | Kind::Partitioned(_) => Net(Kind::Partitioned(Host { partition: partition.clone(), host })),
            #[cfg(feature = "simulation")]
            Kind::Simulated => self.clone(),
        }
    }
}

/// One host of a partition.
#[derive(Clone, Debug)]
pub(super) struct Host {
    partition: Partition,
    host: usize,
}

impl Host {
    /// This host listens on `port` from now on.
    pub(super) fn listens(&self, port: u16) {
        self.partition.0.lock().listening.insert(port, self.host);
    }

    /// Connects once the cut allows it.
    pub(super) async fn connect(&self, address: &str) -> io::Result<Stream> {
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let gate = Gate { own: self.clone(), port: port.unwrap_or(0) };
        poll_fn(|cx| gate.poll_open(cx)).await;
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Stream { stream, gate })
    }
}

/// Between a host and whoever listens on a port.
#[derive(Clone, Debug)]
struct Gate {
    own: Host,
    port: u16,
}

impl Gate {
    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.own.partition.0.lock();
        let is_open = match state.listening.get(&self.port) {
            Some(other) => state.cut_off.contains(&self.own.host) == state.cut_off.contains(other),
            None => true,
        };
        if is_open {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Stream {
    stream: tokio::net::TcpStream,
    gate: Gate,
}

impl Stream {
    pub(super) fn into_split(self) -> (ReadHalf, WriteHalf) {
        let (read, write) = self.stream.into_split();
        (ReadHalf { stream: read, gate: self.gate.clone() }, WriteHalf { stream: write, gate: self.gate })
    }

    pub(super) fn socket(&self) -> &tokio::net::TcpStream {
        &self.stream
    }

    pub(super) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }
}

/// The reading half of a [`Stream`].
#[derive(Debug)]
pub(super) struct ReadHalf {
    stream: OwnedReadHalf,
    gate: Gate,
}

/// The writing half of a [`Stream`].
#[derive(Debug)]
pub(super) struct WriteHalf {
    stream: OwnedWriteHalf,
    gate: Gate,
}

macro_rules! read_through_the_gate {
    ($half:ident) => {
        impl AsyncRead for $half {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                let this = self.get_mut();
                ready!(this.gate.poll_open(cx));
                Pin::new(&mut this.stream).poll_read(cx, buf)
            }
        }
    };
}

macro_rules! write_through_the_gate {
    ($half:ident) => {
        impl AsyncWrite for $half {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                let this = self.get_mut();
                ready!(this.gate.poll_open(cx));
                Pin::new(&mut this.stream).poll_write(cx, bytes)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let this = self.get_mut();
                ready!(this.gate.poll_open(cx));
                Pin::new(&mut this.stream).poll_write_vectored(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                self.stream.is_write_vectored()
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().stream).poll_flush(cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
            }
        }
    };
}

read_through_the_gate!(Stream);
read_through_the_gate!(ReadHalf);
write_through_the_gate!(Stream);
write_through_the_gate!(WriteHalf);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_passes_between_two_sides_stands_still_and_goes_on_when_the_cut_has_healed() {
        let partition = Partition::default();
        let [one, two, three] = [1, 2, 3].map(|host| Net::real().of_host(&partition, host));
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = two.listen(any).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (connected, accepted) = tokio::join!(one.connect(&address), listener.accept());
        let (mut near, mut far) = (connected.unwrap(), accepted.unwrap().0);
        near.write_all(b"a").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'a');

        partition.cut_off([2]);
        far.write_all(b"b").await.unwrap();
        {
            let mut stopped = (Box::pin(near.read_u8()), Box::pin(three.connect(&address)));
            assert!(futures::poll!(&mut stopped.0).is_pending() && futures::poll!(&mut stopped.1).is_pending());
            // Whoever is no host is not cut off, nor is a host from itself.
            let stranger = Net::real();
            for net in [&stranger, &two] {
                let (connected, accepted) = tokio::join!(net.connect(&address), listener.accept());
                connected.unwrap().write_all(b"c").await.unwrap();
                assert_eq!(accepted.unwrap().0.read_u8().await.unwrap(), b'c');
            }
            assert!(futures::poll!(&mut stopped.0).is_pending(), "what the kernel has is not read");
            partition.heal();
            assert_eq!(stopped.0.await.unwrap(), b'b');
            let (connected, _) = tokio::join!(stopped.1, listener.accept());
            connected.unwrap();
        }

        // The other way round it is the same cut.
        partition.cut_off([1, 3]);
        let mut stopped = Box::pin(near.write_all(b"d"));
        assert!(futures::poll!(&mut stopped).is_pending());
        partition.heal();
        stopped.await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'd');
    }
}

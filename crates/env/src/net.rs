//! TCP: tokio's sockets, those of a [`Partition`], or turmoil's in a simulation.
//!
//! One type for all, told apart by an enum and not by a trait object: the choice is one branch per call. Streams have
//! `TCP_NODELAY` set (callers batch by themselves), listeners `SO_REUSEADDR` (a restarted broker takes its port back at
//! once).
#![allow(clippy::disallowed_types)] // This is the door the others are sent to.

mod partition;
#[cfg(feature = "simulation")]
pub mod simulated;

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

pub use partition::Partition;

/// An address of this machine's loopback that nobody listens on, and that no other call in this process gives: for servers
/// that must know each other's addresses before they start. Not one of the ports that the kernel gives to outgoing
/// connections, so that a server that is killed finds its own free again. An error if there is none.
pub fn free_loopback() -> io::Result<SocketAddr> {
    static PICKED: AtomicU32 = AtomicU32::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u32 = 22_000;
    for _ in 0..COUNT {
        let number = std::process::id().wrapping_mul(97).wrapping_add(PICKED.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + (number % COUNT) as u16));
        if std::net::TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(io::Error::other("no port is free between 10000 and 31999"))
}

/// Connections that the kernel queues for [`Listener::accept`].
const BACKLOG: u32 = 1024;

/// A network. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Net(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Real,
    Partitioned(partition::Host),
    #[cfg(feature = "simulation")]
    Simulated,
}

impl Net {
    /// The machine's network.
    pub fn real() -> Net {
        Net(Kind::Real)
    }

    /// The network of the turmoil simulation in whose host the caller runs.
    #[cfg(feature = "simulation")]
    pub fn turmoil() -> Net {
        Net(Kind::Simulated)
    }

    /// Listens on `address`; port 0 picks a free one.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        match &self.0 {
            Kind::Real | Kind::Partitioned(_) => {
                let socket = match address {
                    SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
                    SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
                };
                socket.set_reuseaddr(true)?;
                socket.bind(address)?;
                let listener = socket.listen(BACKLOG)?;
                if let Kind::Partitioned(host) = &self.0 {
                    host.listens(listener.local_addr()?.port());
                }
                Ok(Listener(ListenerKind::Real(listener)))
            }
            #[cfg(feature = "simulation")]
            Kind::Simulated => Ok(Listener(ListenerKind::Simulated(turmoil::net::TcpListener::bind(address).await?))),
        }
    }

    /// Connects to `address`, written `host:port`; the host may be a DNS name. Has no time limit of its own: put
    /// [`Clock::timeout`](crate::Clock::timeout) around it.
    pub async fn connect(&self, address: &str) -> io::Result<Stream> {
        match &self.0 {
            Kind::Real => {
                let stream = tokio::net::TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Stream(StreamKind::Real(stream)))
            }
            Kind::Partitioned(host) => Ok(Stream(StreamKind::Partitioned(host.connect(address).await?))),
            #[cfg(feature = "simulation")]
            Kind::Simulated => {
                let stream = turmoil::net::TcpStream::connect(address).await?;
                Ok(Stream(StreamKind::Simulated(simulated::Stream::new(stream)?)))
            }
        }
    }
}

/// Accepts connections.
pub struct Listener(ListenerKind);

enum ListenerKind {
    Real(tokio::net::TcpListener),
    #[cfg(feature = "simulation")]
    Simulated(turmoil::net::TcpListener),
}

impl Listener {
    /// Waits for the next connection; the address is the peer's. Cancel-safe. An error concerns one connection or the
    /// process's limits (too many open files), not the listener: wait a little and go on.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        match &self.0 {
            ListenerKind::Real(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream(StreamKind::Real(stream)), peer))
            }
            #[cfg(feature = "simulation")]
            ListenerKind::Simulated(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream(StreamKind::Simulated(simulated::Stream::new(stream)?)), peer))
            }
        }
    }

    /// The address listened on, with the port that was picked.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            ListenerKind::Real(listener) => listener.local_addr(),
            #[cfg(feature = "simulation")]
            ListenerKind::Simulated(listener) => listener.local_addr(),
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.local_addr()).finish()
    }
}

/// One TCP connection.
#[derive(Debug)]
pub struct Stream(StreamKind);

#[derive(Debug)]
enum StreamKind {
    Real(tokio::net::TcpStream),
    Partitioned(partition::Stream),
    #[cfg(feature = "simulation")]
    Simulated(simulated::Stream),
}

impl Stream {
    /// Splits into a half that reads and a half that writes, each movable to its own task. Dropping the write half
    /// closes that direction.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self.0 {
            StreamKind::Real(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf(ReadKind::Real(read)), WriteHalf(WriteKind::Real(write)))
            }
            StreamKind::Partitioned(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf(ReadKind::Partitioned(read)), WriteHalf(WriteKind::Partitioned(write)))
            }
            #[cfg(feature = "simulation")]
            StreamKind::Simulated(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf(ReadKind::Simulated(read)), WriteHalf(WriteKind::Simulated(write)))
            }
        }
    }

    /// Breaks the connection when the other end has not been heard of for about `limit`, whether or not anything is sent:
    /// a machine that lost its power, or a link that was cut, closes no connection. Whole seconds count.
    pub fn break_when_silent(&self, limit: Duration) -> io::Result<()> {
        match &self.0 {
            StreamKind::Real(stream) => probe(stream, limit),
            StreamKind::Partitioned(stream) => probe(stream.socket(), limit),
            // A simulation says itself when a connection breaks: [`simulated::break_connections`].
            #[cfg(feature = "simulation")]
            StreamKind::Simulated(_) => Ok(()),
        }
    }

    /// The other end's address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            StreamKind::Real(stream) => stream.peer_addr(),
            StreamKind::Partitioned(stream) => stream.peer_addr(),
            #[cfg(feature = "simulation")]
            StreamKind::Simulated(stream) => Ok(stream.peer_addr()),
        }
    }

    /// This end's address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            StreamKind::Real(stream) => stream.local_addr(),
            StreamKind::Partitioned(stream) => stream.local_addr(),
            #[cfg(feature = "simulation")]
            StreamKind::Simulated(stream) => Ok(stream.local_addr()),
        }
    }
}

/// Lets the kernel ask the other end whether it is there.
fn probe(stream: &tokio::net::TcpStream, limit: Duration) -> io::Result<()> {
    use rustix::net::sockopt;
    let probe = Duration::from_secs((limit.as_secs() / 2).max(1));
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, probe)?;
    sockopt::set_tcp_keepintvl(stream, probe)?;
    sockopt::set_tcp_keepcnt(stream, 1)?;
    // What is sent and never acknowledged is no matter of probes.
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, limit.as_millis() as u32)?;
    Ok(())
}

/// The reading half of a [`Stream`].
#[derive(Debug)]
pub struct ReadHalf(ReadKind);

#[derive(Debug)]
enum ReadKind {
    Real(OwnedReadHalf),
    Partitioned(partition::ReadHalf),
    #[cfg(feature = "simulation")]
    Simulated(simulated::ReadHalf),
}

/// The writing half of a [`Stream`].
#[derive(Debug)]
pub struct WriteHalf(WriteKind);

#[derive(Debug)]
enum WriteKind {
    Real(OwnedWriteHalf),
    Partitioned(partition::WriteHalf),
    #[cfg(feature = "simulation")]
    Simulated(simulated::WriteHalf),
}

macro_rules! read_through {
    ($outer:ident, $inner:ident) => {
        impl AsyncRead for $outer {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                match &mut self.get_mut().0 {
                    $inner::Real(stream) => Pin::new(stream).poll_read(cx, buf),
                    $inner::Partitioned(stream) => Pin::new(stream).poll_read(cx, buf),
                    #[cfg(feature = "simulation")]
                    $inner::Simulated(stream) => Pin::new(stream).poll_read(cx, buf),
                }
            }
        }
    };
}

macro_rules! write_through {
    ($outer:ident, $inner:ident) => {
        impl AsyncWrite for $outer {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                match &mut self.get_mut().0 {
                    $inner::Real(stream) => Pin::new(stream).poll_write(cx, buf),
                    $inner::Partitioned(stream) => Pin::new(stream).poll_write(cx, buf),
                    #[cfg(feature = "simulation")]
                    $inner::Simulated(stream) => Pin::new(stream).poll_write(cx, buf),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match &mut self.get_mut().0 {
                    $inner::Real(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
                    $inner::Partitioned(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
                    #[cfg(feature = "simulation")]
                    $inner::Simulated(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match &self.0 {
                    $inner::Real(stream) => stream.is_write_vectored(),
                    $inner::Partitioned(stream) => stream.is_write_vectored(),
                    #[cfg(feature = "simulation")]
                    $inner::Simulated(stream) => stream.is_write_vectored(),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match &mut self.get_mut().0 {
                    $inner::Real(stream) => Pin::new(stream).poll_flush(cx),
                    $inner::Partitioned(stream) => Pin::new(stream).poll_flush(cx),
                    #[cfg(feature = "simulation")]
                    $inner::Simulated(stream) => Pin::new(stream).poll_flush(cx),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match &mut self.get_mut().0 {
                    $inner::Real(stream) => Pin::new(stream).poll_shutdown(cx),
                    $inner::Partitioned(stream) => Pin::new(stream).poll_shutdown(cx),
                    #[cfg(feature = "simulation")]
                    $inner::Simulated(stream) => Pin::new(stream).poll_shutdown(cx),
                }
            }
        }
    };
}

read_through!(Stream, StreamKind);
read_through!(ReadHalf, ReadKind);
write_through!(Stream, StreamKind);
write_through!(WriteHalf, WriteKind);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers one connection with what it sends, until it stops sending.
    async fn echo_once(listener: &Listener) -> io::Result<SocketAddr> {
        let (stream, peer) = listener.accept().await?;
        let (mut read, mut write) = stream.into_split();
        tokio::io::copy(&mut read, &mut write).await?;
        write.shutdown().await?;
        Ok(peer)
    }

    /// Sends through a whole stream and through its halves, hangs up, and returns all that came back.
    async fn converse(mut stream: Stream) -> io::Result<Vec<u8>> {
        stream.write_all(b"one ").await?;
        let mut buffers = [IoSlice::new(b"two "), IoSlice::new(b"three ")];
        let mut rest = &mut buffers[..];
        while !rest.is_empty() {
            let written = stream.write_vectored(rest).await?;
            IoSlice::advance_slices(&mut rest, written);
        }
        let mut answer = vec![0; 8];
        stream.read_exact(&mut answer).await?;
        let (mut read, mut write) = stream.into_split();
        write.write_all(b"four").await?;
        write.shutdown().await?;
        read.read_to_end(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn real_sockets_carry_bytes_both_ways() {
        let net = Net::real();
        let listener = net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        // By address and by name.
        for host in ["127.0.0.1", "localhost"] {
            let stream = net.connect(&format!("{host}:{}", address.port())).await.unwrap();
            assert!(stream.is_write_vectored());
            assert_eq!(stream.peer_addr().unwrap(), address);
            let client = stream.local_addr().unwrap();
            let (peer, answer) = tokio::join!(echo_once(&listener), converse(stream));
            assert_eq!(peer.unwrap(), client);
            assert_eq!(answer.unwrap(), b"one two three four");
        }
    }

    #[tokio::test]
    async fn real_sockets_do_not_wait_for_more_to_send() {
        let net = Net::real();
        let listener = net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (connected, accepted) = tokio::join!(net.connect(&address), listener.accept());
        for stream in [connected.unwrap(), accepted.unwrap().0] {
            match stream.0 {
                StreamKind::Real(stream) => assert!(stream.nodelay().unwrap()),
                StreamKind::Partitioned(_) => unreachable!("made by a whole network"),
                #[cfg(feature = "simulation")]
                StreamKind::Simulated(_) => unreachable!("made by a real network"),
            }
        }
    }

    #[tokio::test]
    async fn silence_breaks_only_what_is_told_to() {
        let net = Net::real();
        let listener = net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stream = net.connect(&address).await.unwrap();
        let is_watched = |stream: &Stream| match &stream.0 {
            StreamKind::Real(stream) => rustix::net::sockopt::socket_keepalive(stream).unwrap(),
            StreamKind::Partitioned(_) => unreachable!("made by a whole network"),
            #[cfg(feature = "simulation")]
            StreamKind::Simulated(_) => unreachable!("made by a real network"),
        };
        assert!(!is_watched(&stream));
        stream.break_when_silent(Duration::from_secs(10)).unwrap();
        assert!(is_watched(&stream));
    }

    #[tokio::test]
    async fn a_port_can_be_taken_back_at_once() {
        let net = Net::real();
        let listener = net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let by_name = address.to_string();
        let (connected, accepted) = tokio::join!(net.connect(&by_name), listener.accept());
        // The side that closes first keeps the port in TIME_WAIT.
        drop(accepted);
        drop(listener);
        assert_eq!(connected.unwrap().read(&mut [0]).await.unwrap(), 0);
        net.listen(address).await.unwrap();
    }

    #[cfg(feature = "simulation")]
    #[test]
    fn simulated_sockets_carry_bytes_both_ways() {
        let mut simulation = turmoil::Builder::new().build();
        simulation.host("server", || async {
            let listener = Net::turmoil().listen("0.0.0.0:9876".parse()?).await?;
            loop {
                echo_once(&listener).await?;
            }
        });
        simulation.client("client", async {
            let stream = Net::turmoil().connect("server:9876").await?;
            assert_eq!(stream.peer_addr()?.port(), 9876);
            assert_eq!(converse(stream).await?, b"one two three four");
            assert!(Net::turmoil().connect("server:1").await.is_err());
            Ok(())
        });
        simulation.run().unwrap();
    }

    #[cfg(feature = "simulation")]
    #[test]
    fn both_ends_see_a_broken_connection_and_a_new_one_works() {
        let mut simulation = turmoil::Builder::new().build();
        let resets = std::rc::Rc::new(std::cell::Cell::new(0));
        let seen = resets.clone();
        simulation.host("server", move || {
            let seen = seen.clone();
            async move {
                let listener = Net::turmoil().listen("0.0.0.0:9876".parse()?).await?;
                loop {
                    if echo_once(&listener).await.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset) {
                        seen.set(seen.get() + 1);
                    }
                }
            }
        });
        simulation.client("client", async {
            let mut stream = Net::turmoil().connect("server:9876").await?;
            stream.write_all(b"before").await?;
            stream.read_exact(&mut [0; 6]).await?;
            turmoil::partition("client", "server");
            stream.write_all(b"lost").await?;
            turmoil::repair("client", "server");
            simulated::break_connections(turmoil::lookup("client"), turmoil::lookup("server"));
            let error = stream.read_exact(&mut [0; 4]).await.expect_err("it is broken");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            let stream = Net::turmoil().connect("server:9876").await?;
            assert_eq!(converse(stream).await?, b"one two three four");
            Ok(())
        });
        simulation.run().unwrap();
        assert_eq!(resets.get(), 1);
    }
}

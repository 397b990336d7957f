//! Turmoil's connections, and what becomes of one whose packets were lost.
//!
//! Turmoil never sends a lost segment again: a connection across a link that dropped anything is stuck for ever, where
//! TCP would carry on or break. Holding a link is what TCP makes of a short outage; for everything else the simulation
//! says [`break_connections`] when the link is whole again, and both ends see a reset, as after a retransmission time-out.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::witness::{self, Seen};

thread_local! {
    /// The ends of all connections of this thread's simulation.
    static ENDS: RefCell<Vec<Weak<End>>> = const { RefCell::new(Vec::new()) };
}

/// One end of a connection.
#[derive(Debug)]
struct End {
    local: SocketAddr,
    peer: SocketAddr,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl End {
    fn of(stream: &turmoil::net::TcpStream) -> io::Result<Arc<End>> {
        let end = End { local: stream.local_addr()?, peer: stream.peer_addr()?, state: Mutex::default() };
        let end = Arc::new(end);
        ENDS.with_borrow_mut(|ends| {
            ends.retain(|end| end.strong_count() > 0);
            ends.push(Arc::downgrade(&end));
        });
        Ok(end)
    }

    /// Fails if the connection is broken; else `poll` is asked, and woken when it breaks.
    fn unless_broken<T>(
        &self,
        waker: impl FnOnce(&mut State) -> &mut Option<Waker>,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        {
            let mut state = self.state.lock();
            if state.is_broken {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            *waker(&mut state) = Some(cx.waker().clone());
        }
        poll(cx)
    }

    fn poll_read<R: AsyncRead + Unpin>(
        &self,
        stream: &mut R,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = self.unless_broken(|state| &mut state.reader, cx, |cx| Pin::new(stream).poll_read(cx, buf));
        if let Poll::Ready(Ok(())) = polled {
            witness::note(Seen::Arrival, port_pair(self.peer, self.local), &buf.filled()[before..]);
        }
        polled
    }

    fn poll_write<W: AsyncWrite + Unpin>(
        &self,
        stream: &mut W,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_broken(|state| &mut state.writer, cx, |cx| Pin::new(stream).poll_write(cx, bytes))
    }
}

fn port_pair(from: SocketAddr, to: SocketAddr) -> u64 {
    u64::from(from.port()) << 32 | u64::from(to.port())
}

/// Breaks every connection between the two hosts; both ends see a reset.
pub fn break_connections(a: IpAddr, b: IpAddr) {
    let ends: Vec<Arc<End>> = ENDS.with_borrow(|ends| ends.iter().filter_map(Weak::upgrade).collect());
    for end in ends {
        if [(a, b), (b, a)].contains(&(end.local.ip(), end.peer.ip())) {
            let mut state = end.state.lock();
            state.is_broken = true;
            let wakers = [state.reader.take(), state.writer.take()];
            drop(state);
            wakers.into_iter().flatten().for_each(Waker::wake);
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Stream {
    stream: turmoil::net::TcpStream,
    end: Arc<End>,
}

impl Stream {
    pub(super) fn new(stream: turmoil::net::TcpStream) -> io::Result<Stream> {
        Ok(Stream { end: End::of(&stream)?, stream })
    }

    pub(super) fn into_split(self) -> (ReadHalf, WriteHalf) {
        let (read, write) = self.stream.into_split();
        (ReadHalf { half: read, end: self.end.clone() }, WriteHalf { half: write, end: self.end })
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.end.local
    }

    pub(super) fn peer_addr(&self) -> SocketAddr {
        self.end.peer
    }
}

/// The reading half of a [`Stream`].
#[derive(Debug)]
pub(super) struct ReadHalf {
    half: turmoil::net::tcp::OwnedReadHalf,
    end: Arc<End>,
}

/// The writing half of a [`Stream`].
#[derive(Debug)]
pub(super) struct WriteHalf {
    half: turmoil::net::tcp::OwnedWriteHalf,
    end: Arc<End>,
}

macro_rules! read_unless_broken {
    ($outer:ident, $inner:ident) => {
        impl AsyncRead for $outer {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                let this = self.get_mut();
                this.end.poll_read(&mut this.$inner, cx, buf)
            }
        }
    };
}

macro_rules! write_unless_broken {
    ($outer:ident, $inner:ident) => {
        impl AsyncWrite for $outer {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                let this = self.get_mut();
                this.end.poll_write(&mut this.$inner, cx, buf)
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().$inner).poll_flush(cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().$inner).poll_shutdown(cx)
            }
        }
    };
}

read_unless_broken!(Stream, stream);
read_unless_broken!(ReadHalf, half);
write_unless_broken!(Stream, stream);
write_unless_broken!(WriteHalf, half);

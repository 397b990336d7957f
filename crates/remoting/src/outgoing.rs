//! Bytes on their way out of one connection.
//!
//! Anyone may push; the connection's writer takes all that waits in one go and writes it as one vectored write.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use protocol::command::RemotingCommand;
use protocol::frame::{self, EncodeError, FrameLimits};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// Bodies below this are copied behind their header: one slice costs less than a second one.
const COPY_BELOW: usize = 4096;

/// Slices given to one write call; Linux takes at most 1024.
const SLICES: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    waiting: Mutex<Waiting>,
    pushed: Notify,
    /// Woken whenever bytes have left, so that a reader held back by a full queue goes on.
    pub(crate) drained: Notify,
    bytes: AtomicUsize,
    /// Total bytes written, a progress mark for the stall check.
    pub(crate) written: AtomicU64,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    chunks: VecDeque<Bytes>,
    /// Headers and small bodies, one behind the other, not yet cut into a chunk.
    open: BytesMut,
}

impl Outgoing {
    /// Queues a command. `Ok(false)` if the connection is closed; then, and after an error, nothing of it is sent.
    pub(crate) fn push(&self, command: &RemotingCommand, limits: &FrameLimits) -> Result<bool, EncodeError> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(false);
        }
        let mut waiting = self.waiting.lock();
        let before = waiting.open.len();
        frame::encode_head(command, limits, &mut waiting.open)?;
        let added = waiting.open.len() - before + command.body_bytes();
        for piece in [&command.body].into_iter().chain(&command.body_pieces) {
            if piece.len() < COPY_BELOW {
                waiting.open.extend_from_slice(piece);
            } else {
                let open = waiting.open.split().freeze();
                waiting.chunks.extend([open, piece.clone()].into_iter().filter(|chunk| !chunk.is_empty()));
            }
        }
        self.bytes.fetch_add(added, Ordering::Relaxed);
        drop(waiting);
        self.pushed.notify_one();
        Ok(true)
    }

    /// Bytes queued or being written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Refuses further commands.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.pushed.notify_one();
    }

    /// Writes until the connection is closed and everything pushed before has left, or a write fails.
    pub(crate) async fn write_to<W: AsyncWrite + Unpin>(&self, socket: &mut W) -> io::Result<()> {
        let mut chunks: VecDeque<Bytes> = VecDeque::new();
        loop {
            self.take(&mut chunks);
            if chunks.is_empty() {
                if self.closed.load(Ordering::Acquire) {
                    return socket.flush().await;
                }
                self.pushed.notified().await;
                continue;
            }
            while !chunks.is_empty() {
                let mut slices = [io::IoSlice::new(&[]); SLICES];
                let mut filled = 0;
                for (slice, chunk) in slices.iter_mut().zip(&chunks) {
                    *slice = io::IoSlice::new(chunk);
                    filled += 1;
                }
                let written = socket.write_vectored(&slices[..filled]).await?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                advance(&mut chunks, written);
                self.bytes.fetch_sub(written, Ordering::Relaxed);
                self.written.fetch_add(written as u64, Ordering::Relaxed);
            }
            self.drained.notify_one();
        }
    }

    fn take(&self, into: &mut VecDeque<Bytes>) {
        let mut waiting = self.waiting.lock();
        into.append(&mut waiting.chunks);
        if !waiting.open.is_empty() {
            into.push_back(waiting.open.split().freeze());
        }
    }
}

fn advance(chunks: &mut VecDeque<Bytes>, mut written: usize) {
    while written > 0 {
        let front = chunks.front_mut().expect("no more is written than was given");
        if front.len() > written {
            front.advance(written);
            return;
        }
        written -= front.len();
        chunks.pop_front();
    }
}

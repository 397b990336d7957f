//! Whole messages in and out of a socket.
//!
//! A message is read into one buffer that its bodies then share. Reading may be dropped and taken up again at any
//! point: bytes already received stay in the buffer.

use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use env::net::{ReadHalf, Stream, WriteHalf};
use env::{Clock, Env};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::raft::peer::wire::{self, HELLO_BYTES_MAX, Hello, MESSAGE_BYTES_MAX, Message};

/// Read ahead while the length of the next message is not known: more is copied when the message outgrows it.
const READ_AHEAD_BYTES: usize = 8 << 10;

/// A peer that does not complete connect and hello in this time is not there.
pub const HELLO_LIMIT: Duration = Duration::from_secs(2);

/// A peer whose machine or link says nothing for this long, not even to the kernel's probes, is gone.
const DEAD_LIMIT: Duration = Duration::from_secs(10);

/// Whole messages over a stream between members.
pub fn messages(stream: Stream) -> io::Result<(MessageReader, MessageWriter)> {
    stream.break_when_silent(DEAD_LIMIT)?;
    let (read, write) = stream.into_split();
    Ok((MessageReader::new(read), MessageWriter::new(write)))
}

/// The reading half.
#[derive(Debug)]
pub struct MessageReader {
    half: ReadHalf,
    buffer: BytesMut,
    longest: usize,
}

impl MessageReader {
    /// Until the hello is through, nothing long is accepted.
    fn new(half: ReadHalf) -> MessageReader {
        MessageReader { half, buffer: BytesMut::new(), longest: HELLO_BYTES_MAX }
    }

    /// The peer has said who it is.
    pub fn accept_long_messages(&mut self) {
        self.longest = MESSAGE_BYTES_MAX;
    }

    /// The next message; `None` if the peer closed between two. Cancel-safe.
    pub async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(message) = self.take_buffered()? {
                return Ok(Some(message));
            }
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    /// The message at the front of the buffer, if all of it is there; else makes room for the rest.
    fn take_buffered(&mut self) -> io::Result<Option<Message>> {
        if self.buffer.len() < 4 {
            self.buffer.reserve(READ_AHEAD_BYTES);
            return Ok(None);
        }
        let length = (&self.buffer[..4]).get_u32_le() as usize;
        if length == 0 || length > self.longest {
            let reason = format!("a peer message of {length} bytes, 1 to {} are allowed here", self.longest);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let total = 4 + length;
        if self.buffer.len() < total {
            self.buffer.reserve(total - self.buffer.len());
            return Ok(None);
        }
        let message = self.buffer.split_to(total).freeze();
        let tag = message[4];
        wire::decode(tag, message.slice(5..)).map(Some).map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))
    }
}

/// The writing half.
#[derive(Debug)]
pub struct MessageWriter(WriteHalf);

impl MessageWriter {
    fn new(half: WriteHalf) -> MessageWriter {
        MessageWriter(half)
    }

    /// Writes one message. Not cancel-safe: after a drop half-way the connection is of no use.
    pub async fn write(&mut self, message: &Message) -> io::Result<()> {
        self.write_buffers(wire::encode(message)).await
    }

    /// The same to a peer that takes it within `limit`.
    pub async fn write_within(&mut self, clock: &Clock, limit: Duration, message: &Message) -> io::Result<()> {
        clock.timeout(limit, self.write(message)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
    }

    async fn write_buffers(&mut self, mut buffers: Vec<Bytes>) -> io::Result<()> {
        /// Fewer than the kernel's limit of 1024.
        const SLICES: usize = 64;
        let mut first = 0;
        while first < buffers.len() {
            let slices: Vec<IoSlice<'_>> =
                buffers[first..].iter().take(SLICES).map(|buffer| IoSlice::new(buffer)).collect();
            let mut written = self.0.write_vectored(&slices).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            while first < buffers.len() && written >= buffers[first].len() {
                written -= buffers[first].len();
                first += 1;
            }
            if written > 0 {
                buffers[first].advance(written);
            }
        }
        Ok(())
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody there, or the connection broke: try again later.
    #[error("{address}: {source}")]
    Io {
        /// Where.
        address: String,
        /// What happened.
        source: io::Error,
    },
    /// No answer in time: try again later.
    #[error("{address}: no answer within {limit:?}")]
    Timeout {
        /// Where.
        address: String,
        /// What was waited.
        limit: Duration,
    },
    /// One of the two does not want to talk to the other. An operator has to look.
    #[error("{address}: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// Whose, and why.
        reason: String,
    },
}

/// Connects and exchanges hellos: ours is `hello`. Gives the peer's.
pub async fn connect(
    env: &Env,
    address: &str,
    hello: &Hello,
    limit: Duration,
) -> Result<(MessageReader, MessageWriter, Hello), ConnectError> {
    let io = |source| ConnectError::Io { address: address.to_owned(), source };
    let exchange = async {
        let stream = env.net.connect(address).await.map_err(io)?;
        let (mut reader, mut writer) = messages(stream).map_err(io)?;
        writer.write(&Message::Hello(hello.clone())).await.map_err(io)?;
        match reader.next().await.map_err(io)? {
            Some(Message::Hello(theirs)) => {
                if hello.expects != 0 && theirs.node != hello.expects {
                    let reason = format!("is node {:016x}, not {:016x}", theirs.node, hello.expects);
                    return Err(ConnectError::Refused { address: address.to_owned(), reason });
                }
                if let Some(reason) = hello.refuses(&theirs) {
                    let reason = format!("the peer {reason}");
                    return Err(ConnectError::Refused { address: address.to_owned(), reason });
                }
                reader.accept_long_messages();
                Ok((reader, writer, theirs))
            }
            Some(Message::Refused(reason)) => {
                let reason = format!("refused by the peer: this node {reason}");
                Err(ConnectError::Refused { address: address.to_owned(), reason })
            }
            Some(_) => Err(io(io::Error::new(io::ErrorKind::InvalidData, "no hello in answer to a hello"))),
            None => Err(io(io::ErrorKind::UnexpectedEof.into())),
        }
    };
    match env.clock.timeout(limit, exchange).await {
        Some(result) => result,
        None => Err(ConnectError::Timeout { address: address.to_owned(), limit }),
    }
}

/// Answers an incoming connection's hello with ours, made by `ours` for the channel asked for; `None` if it was refused
/// or never came.
pub async fn accept(
    clock: &Clock,
    reader: &mut MessageReader,
    writer: &mut MessageWriter,
    ours: impl FnOnce(&Hello) -> Hello,
) -> io::Result<Result<Hello, String>> {
    let exchange = async {
        let theirs = match reader.next().await? {
            Some(Message::Hello(theirs)) => theirs,
            Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "the first message is not a hello")),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        let ours = ours(&theirs);
        if let Some(reason) = ours.refuses(&theirs) {
            writer.write(&Message::Refused(reason.clone())).await?;
            return Ok(Err(reason));
        }
        writer.write(&Message::Hello(ours)).await?;
        reader.accept_long_messages();
        Ok(Ok(theirs))
    };
    clock.timeout(HELLO_LIMIT, exchange).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

//! A connection that says anything, whole or in pieces, well-formed or not, and tells what came back.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use env::Env;
use env::net::Stream;
use protocol::command::RemotingCommand;
use protocol::frame::{self, Frame, FrameLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The JSON serialize type of the header word.
pub const JSON: u8 = 0;
/// The binary serialize type of the header word.
pub const BINARY: u8 = 1;

/// One socket, without anything that would keep its user from breaking the protocol.
#[derive(Debug)]
pub struct RawConnection {
    env: Env,
    stream: Stream,
    buffer: BytesMut,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A response. Requests that the server sends by itself are passed over.
    Answer(RemotingCommand),
    /// The server closed the connection.
    Closed,
    /// Nothing within the time given.
    Silence,
}

impl RawConnection {
    /// Connects to `host:port`.
    pub async fn open(env: &Env, address: &str) -> io::Result<RawConnection> {
        let stream = env.net.connect(address).await?;
        Ok(RawConnection { env: env.clone(), stream, buffer: BytesMut::new() })
    }

    /// Writes bytes as they are. Whether the server still takes them is told by [`RawConnection::hear`]: a server that
    /// closes in the middle of a write is one way of answering.
    pub async fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next response.
    pub async fn hear(&mut self, within: Duration) -> Heard {
        let clock = self.env.clock.clone();
        let deadline = clock.monotonic() + within;
        loop {
            match frame::decode(&mut self.buffer, &FrameLimits::default()).expect("a server sends whole frames") {
                Some(Frame::Command(command)) if command.is_response() => return Heard::Answer(command),
                Some(Frame::Command(_)) => continue,
                Some(Frame::Undecodable(frame)) => panic!("a server sends headers that can be read: {frame:?}"),
                None => {}
            }
            let remaining = deadline.saturating_sub(clock.monotonic());
            match clock.timeout(remaining, self.stream.read_buf(&mut self.buffer)).await {
                None => return Heard::Silence,
                Some(Ok(0) | Err(_)) => return Heard::Closed,
                Some(Ok(_)) => {}
            }
        }
    }
}

/// A frame of any header and body, its lengths correct.
pub fn framed(kind: u8, header: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + header.len() + body.len());
    out.extend(((4 + header.len() + body.len()) as u32).to_be_bytes());
    out.extend((u32::from(kind) << 24 | header.len() as u32).to_be_bytes());
    out.extend(header);
    out.extend(body);
    out
}

/// A command as it goes over the wire.
pub fn encoded(command: &RemotingCommand) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame::encode(command, &FrameLimits::default(), &mut out).expect("a test's command fits a frame");
    out.to_vec()
}

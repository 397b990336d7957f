//! Request and reply: a message whose sender waits for the message that answers it.
//!
//! The request is an ordinary message with a correlation id, in an ordinary topic; who consumes it sends the reply to a topic
//! of the broker's cluster, and the broker pushes it to the client that is named in the request. That client must be known to
//! the broker then: so all replicas hear its heartbeats, of which one may lead by the time the reply comes.
//!
//! Neither is kept for the other: a requester that has stopped waiting gets no reply, and a request may be consumed twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use protocol::body::MessageQueue;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{FieldError, PushReplyRequest};
use protocol::sys_flag::SysFlag;
use protocol::{names, properties};
use tokio::sync::oneshot;

use crate::compression;
use crate::errors::{InvalidMessage, SendError};
use crate::membership;
use crate::message::{Message, ReceivedMessage};
use crate::producer::{Producer, SendReceipt, Target, push_property};

/// Where replies to a request go, and by what they are known: properties of the request that its reply repeats.
const REPEATED: [&str; 3] = [properties::CORRELATION_ID, properties::REPLY_TO_CLIENT, properties::TTL];

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    body: Bytes,
    properties: String,
}

impl Reply {
    /// Its body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// One of its properties.
    pub fn property(&self, name: &str) -> Option<&str> {
        properties::get(&self.properties, name)
    }

    /// Its tag.
    pub fn tag(&self) -> Option<&str> {
        self.property(properties::TAGS)
    }
}

/// Why a request has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The request was not sent, or perhaps not: see there what may be done.
    #[error(transparent)]
    Send(#[from] SendError),
    /// It is stored, and no reply came in time: it may have been, or may be yet, consumed. Asking again is another request.
    #[error("no reply within {0:?}")]
    NoReply(Duration),
}

/// Requests of one client that wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    replies: Mutex<BTreeMap<String, oneshot::Sender<Reply>>>,
    /// Set with the first request, for good.
    is_used: AtomicBool,
}

/// A request that waits, until this is dropped.
struct Waiter<'a> {
    waiting: &'a Waiting,
    id: &'a str,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiting.replies.lock().remove(self.id);
    }
}

impl Waiting {
    /// Whether this client has ever asked anything, so that any replica may have to find it.
    pub fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    /// A broker pushes a reply. One that nobody waits for any more is taken as well: there is no use in another try.
    pub fn pushed(&self, request: &RemotingCommand) -> Result<RemotingCommand, FieldError> {
        let header: PushReplyRequest = request.header()?;
        let properties = header.properties.unwrap_or_default();
        let id = properties::get(&properties, properties::CORRELATION_ID).unwrap_or_default().to_owned();
        let mut body = request.body.clone();
        if let Some(kind) = SysFlag(header.sys_flag).compression()
            && let Some(decompressed) = compression::decompress(&body, kind, compression::MAX_BYTES)
        {
            body = decompressed;
        }
        match self.replies.lock().remove(&id) {
            Some(waiter) => drop(waiter.send(Reply { body, properties })),
            None => tracing::debug!(correlation = id, "a reply comes when nobody waits for it any more"),
        }
        Ok(request.reply(ResponseCode::SUCCESS))
    }
}

impl Producer {
    /// Sends a message and waits for its reply, for `timeout` with everything.
    ///
    /// Whoever consumes the message answers with [`Producer::reply`]; Java's consumers with `MessageUtil.createReplyMessage`.
    /// Safe to drop: the reply is then lost.
    pub async fn request(&self, message: Message, timeout: Duration) -> Result<Reply, AskError> {
        let client = self.client();
        let waiting = &client.0.callbacks.requests;
        let deadline = client.0.env.clock.monotonic() + timeout;
        let route = self.first_route(message.topic(), deadline).await?;
        if !waiting.is_used.swap(true, Ordering::Relaxed) {
            // Until now only leaders knew of this client, and perhaps not yet.
            membership::heartbeat(client).await;
        }
        let client_id =
            client.client_id().expect("a route came over a connection, which told the own address").to_owned();
        let mut outgoing = self.prepare(&message).map_err(SendError::from)?;
        // No other message of any client has this message's unique key.
        let id = outgoing.unique_key.clone();
        push_property(&mut outgoing.properties, properties::CORRELATION_ID, &id);
        push_property(&mut outgoing.properties, properties::REPLY_TO_CLIENT, &client_id);
        push_property(&mut outgoing.properties, properties::TTL, &timeout.as_millis().to_string());
        let (sender, reply) = oneshot::channel();
        waiting.replies.lock().insert(id.clone(), sender);
        let _waiter = Waiter { waiting, id: &id };
        // The reply may be quicker than the answer to the send.
        let mut reply = reply;
        let sent = self.deliver(&outgoing, Target::of(&message), route, deadline);
        let sent = tokio::select! { biased;
            Ok(reply) = &mut reply => return Ok(reply),
            sent = sent => sent,
        };
        sent?;
        let remaining = deadline.saturating_sub(client.0.env.clock.monotonic());
        match client.0.env.clock.timeout(remaining, reply).await {
            Some(Ok(reply)) => Ok(reply),
            Some(Err(_)) | None => Err(AskError::NoReply(timeout)),
        }
    }

    /// Answers a request that was consumed: its sender gets `message`'s body and properties, whatever its topic.
    ///
    /// On `Ok` the requester has taken it. An error that is not [`SendError::Unknown`] says that it has not: perhaps it does not
    /// wait any more.
    pub async fn reply(&self, request: &ReceivedMessage, message: Message) -> Result<SendReceipt, SendError> {
        let no_request = |name| InvalidMessage::NoRequest(name);
        let cluster = request.property(properties::CLUSTER).ok_or(no_request(properties::CLUSTER))?;
        let topic = names::reply_topic(cluster);
        let deadline = self.client().0.env.clock.monotonic() + self.timeout();
        let route = self.first_route(&topic, deadline).await?;
        let mut outgoing = self.prepare(&message)?;
        for name in REPEATED {
            let value = request.property(name).ok_or(no_request(name))?;
            push_property(&mut outgoing.properties, name, value);
        }
        push_property(&mut outgoing.properties, properties::MSG_TYPE, "reply");
        outgoing.topic = &topic;
        outgoing.code = RequestCode::SEND_REPLY_MESSAGE_V2;
        // The requester is connected to the brokers that its request went to.
        let queue = MessageQueue::new(topic.as_str(), request.queue().broker_name.as_str(), 0);
        self.deliver(&outgoing, Target::Queue(&queue), route, deadline).await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use protocol::sys_flag::Compression;

    use super::*;

    fn push(id: &str, body: &'static [u8], sys_flag: i32) -> RemotingCommand {
        let header = PushReplyRequest {
            producer_group: "pg".to_owned(),
            topic: "C_REPLY_TOPIC".to_owned(),
            default_topic: "TBW102".to_owned(),
            sys_flag,
            properties: Some(format!("CORRELATION_ID\u{1}{id}\u{2}TAGS\u{1}t\u{2}")),
            ..PushReplyRequest::default()
        };
        RemotingCommand::request_with(RequestCode::PUSH_REPLY_MESSAGE_TO_CLIENT, &header).with_body(body)
    }

    #[test]
    fn a_reply_finds_who_waits_for_it_and_is_taken_when_nobody_does() {
        let waiting = Waiting::default();
        let (sender, mut reply) = oneshot::channel();
        waiting.replies.lock().insert("1".to_owned(), sender);
        let waiter = Waiter { waiting: &waiting, id: "1" };
        assert!(waiting.pushed(&push("2", b"other", 0)).unwrap().is_success());
        assert!((&mut reply).now_or_never().is_none());
        // zlib of "hi".
        let zlib = &[0x78, 0x9c, 0xcb, 0xc8, 0x04, 0x00, 0x01, 0x3b, 0x00, 0xd2];
        let flag = SysFlag(0).with_compression(Compression::Zlib).0;
        assert!(waiting.pushed(&push("1", zlib, flag)).unwrap().is_success());
        let reply = reply.now_or_never().expect("it is there").expect("it came");
        assert_eq!((&reply.body()[..], reply.tag()), (&b"hi"[..], Some("t")));
        assert!(waiting.pushed(&push("1", b"again", 0)).unwrap().is_success());
        drop(waiter);
        assert!(waiting.replies.lock().is_empty());
    }
}

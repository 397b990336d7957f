//! The peer protocol's bytes. Pure: values to bytes and back; decoders take any bytes and never panic.
//!
//! Everything is little-endian. A connection carries messages, each
//!
//! ```text
//! length u32 (of what follows) | type u8 | fields
//! ```
//!
//! and belongs to one channel, named in its hello: appends, votes and heartbeats, snapshots, founding, or frames for a
//! repair. A vote never queues behind a megabyte of entries. With votes and heartbeats goes the leader's question how a
//! member is (`Vitals`), which is answered at once: wall clock i64, count u32 of its newest images, each: term u64, index
//! u64, hash u64.
//!
//! An append's entries are heads first, then all bodies one behind the other, so that the receiver slices bodies out
//! of the one buffer it read, and the sender writes bodies from where they lie:
//!
//! ```text
//! head, 41 bytes: term u64 | index u64 | kind u8 | physical offset u64 | body bytes u32 | body CRC u32 | chain u64
//! ```
//!
//! The request carries the end of the frame before its first one, `{physical offset, chain}`; from there on the receiver
//! recomputes every frame's place and chain.

use bytes::{BufMut, Bytes};

use crate::fields::{Fields, Malformed, put_string};
use crate::forward_key::ForwardKey;
use crate::log::{Cursor, Kind};
use crate::position::{LogId, NodeId, PhysicalOffset};
use crate::raft::types::{
    Entry, LeaderId, Node, Placed, RaftLogId, Types, Vote, decode_membership, encode_membership, from_raft, to_raft,
};
use crate::state_hash::ImageHashes;

/// First bytes of a hello.
const MAGIC: u32 = u32::from_le_bytes(*b"RMQP");

/// The versions of this protocol that this build speaks.
pub const PROTOCOL: std::ops::RangeInclusive<u16> = 1..=1;

/// Version of the frame header in `log::frame`; frames are compared byte by byte between replicas.
pub const FRAME_VERSION: u8 = 1;

/// No message is longer: an entry of 8 MiB, its head, and room.
pub const MESSAGE_BYTES_MAX: usize = 10 << 20;

/// A hello or a refusal is never longer.
pub const HELLO_BYTES_MAX: usize = 64 << 10;

/// Bytes of a message before its fields: length and type.
pub const PREFIX_BYTES: usize = 5;

/// Bytes of one entry's head in an append.
const ENTRY_HEAD_BYTES: usize = 41;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Appends: streams of requests, answered in order.
    Append,
    /// Heartbeats, votes, leadership transfer, vitals: each answered when it is ready, in any order.
    Unary,
    /// One snapshot after the other.
    Snapshot,
    /// Founders asking each other how far they are.
    Founding,
    /// A replica whose log is damaged asks for committed frames.
    Frames,
}

impl Channel {
    fn to_u8(self) -> u8 {
        match self {
            Channel::Append => 1,
            Channel::Unary => 2,
            Channel::Snapshot => 3,
            Channel::Founding => 4,
            Channel::Frames => 5,
        }
    }

    fn from_u8(byte: u8) -> Result<Channel, Malformed> {
        match byte {
            1 => Ok(Channel::Append),
            2 => Ok(Channel::Unary),
            3 => Ok(Channel::Snapshot),
            4 => Ok(Channel::Founding),
            5 => Ok(Channel::Frames),
            _ => Err(Malformed("channel")),
        }
    }
}

/// The first message in each direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest and newest protocol version spoken.
    pub protocol: (u16, u16),
    /// Cluster name.
    pub cluster: String,
    /// Broker group name.
    pub group: String,
    /// The sender.
    pub node: NodeId,
    /// Whom the sender means to talk to; 0 = whoever is there (founding and frames only).
    pub expects: NodeId,
    /// Segment size, a property of the cluster.
    pub segment_bytes: u64,
    /// Version of the log's frames.
    pub frame_version: u8,
    /// Bits for what is optional; none yet.
    pub features: u64,
    /// Newest `cluster_version` the sender can apply.
    pub cluster_version: u32,
    /// The sender's wall clock, milliseconds since the epoch.
    pub wall_ms: i64,
    /// What the connection is for.
    pub channel: Channel,
    /// By what the sender believes a forwarded request; only said to a member that is connected to.
    pub forward_key: Option<ForwardKey>,
}

impl Hello {
    /// Why `self` will not talk to `other`, if it will not: in the words of an operator's log.
    pub fn refuses(&self, other: &Hello) -> Option<String> {
        if other.protocol.0 > self.protocol.1 || other.protocol.1 < self.protocol.0 {
            return Some(format!(
                "speaks peer protocol {}..={}, this node {}..={}: upgrade one version at a time",
                other.protocol.0, other.protocol.1, self.protocol.0, self.protocol.1
            ));
        }
        if other.cluster != self.cluster || other.group != self.group {
            return Some(format!(
                "belongs to cluster {:?} group {:?}, this node to {:?} {:?}: check the peer addresses",
                other.cluster, other.group, self.cluster, self.group
            ));
        }
        if other.frame_version != self.frame_version {
            return Some(format!("has frame version {}, this node {}", other.frame_version, self.frame_version));
        }
        if other.segment_bytes != self.segment_bytes {
            return Some(format!(
                "has segments of {} bytes, this node of {}: the size is fixed when the cluster is founded",
                other.segment_bytes, self.segment_bytes
            ));
        }
        let is_anybody_meant = other.expects == 0 && matches!(other.channel, Channel::Founding | Channel::Frames);
        if other.expects != self.node && !is_anybody_meant {
            return Some(format!(
                "is looking for node {:016x}, this is node {:016x}: another node, or a wiped one, has this address",
                other.expects, self.node
            ));
        }
        if other.node == self.node {
            return Some(format!("has this node's own id {:016x}: is a data directory copied?", self.node));
        }
        None
    }
}

/// An append or a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The leader's vote.
    pub vote: Vote,
    /// Log id before the first entry.
    pub previous: Option<RaftLogId>,
    /// What the leader knows to be committed.
    pub committed: Option<RaftLogId>,
    /// The end of the frame before the first entry's; zeros without entries.
    pub start: Cursor,
    /// Entries, as read from the leader's log.
    pub entries: Vec<Entry>,
}

/// The answer to an [`Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Durable here up to this id.
    Upto(Option<RaftLogId>),
    /// This id is not in the log.
    Conflict(RaftLogId),
    /// This vote is higher than the leader's.
    HigherVote(Vote),
}

/// A candidate's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskVote {
    /// The candidate's vote.
    pub vote: Vote,
    /// Its last log id.
    pub last: Option<RaftLogId>,
    /// The leader asked it to campaign: do not hold its own lease against it.
    pub leadership_transfer: bool,
}

/// The answer to an [`AskVote`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voted {
    /// The voter's vote now.
    pub vote: Vote,
    /// Whether it was given.
    pub granted: bool,
    /// The voter's last log id.
    pub last: Option<RaftLogId>,
}

/// A leader's request to campaign at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The leader's vote.
    pub from: Vote,
    /// Whom it wants to lead.
    pub to: NodeId,
    /// Its last log id, which the successor must hold.
    pub last: Option<RaftLogId>,
}

/// The answer to a [`Transfer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transferred {
    /// Campaigning, or not concerned.
    Done,
    /// The receiver's vote is another one by now.
    VoteChanged(Vote),
    /// The receiver does not hold the leader's last entry durably yet; this is its last.
    NotFlushed(Option<RaftLogId>),
}

/// What a member tells its leader of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// Its wall clock, milliseconds since the epoch.
    pub wall_ms: i64,
    /// Where its newest images were cut, and their hashes.
    pub images: ImageHashes,
}

/// A member as founders tell each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Founder {
    /// Id minted when its directory was formatted.
    pub id: NodeId,
    /// Its addresses.
    pub node: Node,
}

/// How far a node is on the way to being founded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundingStatus {
    /// The node itself.
    pub founder: Founder,
    /// It has voted.
    pub has_vote: bool,
    /// It has a log.
    pub has_log: bool,
    /// The founding set it has written durably.
    pub set: Option<Vec<Founder>>,
    /// Ids in the membership it has applied.
    pub members: Vec<NodeId>,
    /// The entry that made that; `None` before the first.
    pub members_at: Option<u64>,
}

/// A question for committed frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FramesQuery {
    /// The entry before those that are asked for; `None` for the very first.
    pub behind: Option<RaftLogId>,
    /// The end of its frame, or of the padding behind it.
    pub start: Cursor,
}

/// Why there are no frames to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoFrames {
    /// What is asked for is not committed, as far as the receiver knows.
    NotYet,
    /// The receiver's log is another one up to there.
    Diverged,
    /// The receiver's log begins behind it.
    Purged,
}

/// Where a snapshot stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHead {
    /// The leader's vote.
    pub vote: Vote,
    /// Last log id in the snapshot.
    pub last: Option<RaftLogId>,
    /// Log id of the membership in it.
    pub membership_at: Option<RaftLogId>,
    /// That membership.
    pub membership: crate::raft::types::Membership,
    /// Length of the image.
    pub image_bytes: u64,
}

/// Everything that is said on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First in each direction.
    Hello(Hello),
    /// Instead of a hello: why not. The connection ends.
    Refused(String),
    /// Append channel: a request.
    Append(Append),
    /// Append channel, both directions: the stream of requests, or of answers, ends here; the connection does not.
    StreamEnd,
    /// Append channel: the next answer.
    Appended(Appended),
    /// Append channel, from the receiver: why a request's frames are not those of a sound log. The connection ends.
    Inconsistent(String),
    /// Both append and unary channel, from the receiver: still there, waiting for the disk.
    Working,
    /// Unary channel: a request under a number chosen by the sender.
    Request(u64, Request),
    /// Unary channel: the answer to the request of that number.
    Reply(u64, Reply),
    /// Snapshot channel: one begins.
    SnapshotHead(SnapshotHead),
    /// Snapshot channel: the next part of the image.
    SnapshotPart(Bytes),
    /// Snapshot channel: installed, or refused by the vote that comes back.
    SnapshotDone(Vote),
    /// Founding channel: how far are you?
    FoundingQuery,
    /// Founding channel: so far.
    FoundingStatus(FoundingStatus),
    /// Frames channel: what is committed behind this place?
    FramesQuery(FramesQuery),
    /// Frames channel: this, as an append would carry it.
    Frames(Append),
    /// Frames channel: nothing, and why; the receiver has committed this.
    NoFrames {
        /// The last id that the receiver knows to be committed.
        committed: Option<RaftLogId>,
        /// Why.
        why: NoFrames,
    },
}

/// What the unary channel asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// An append without entries.
    Heartbeat(Append),
    /// Would you vote for me?
    PreVote(AskVote),
    /// Vote for me.
    Vote(AskVote),
    /// Campaign.
    Transfer(Transfer),
    /// How are you?
    Vitals,
}

/// What the unary channel answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To a heartbeat.
    Heartbeat(Appended),
    /// To a vote or pre-vote.
    Voted(Voted),
    /// To a transfer.
    Transferred(Transferred),
    /// How the receiver is.
    Vitals(Vitals),
    /// The receiver's Raft has stopped, or has not started.
    Unavailable,
}

mod tag {
    pub const HELLO: u8 = 1;
    pub const REFUSED: u8 = 2;
    pub const APPEND: u8 = 10;
    pub const STREAM_END: u8 = 11;
    pub const APPENDED: u8 = 12;
    pub const WORKING: u8 = 13;
    pub const INCONSISTENT: u8 = 14;
    pub const HEARTBEAT: u8 = 20;
    pub const PRE_VOTE: u8 = 21;
    pub const VOTE: u8 = 22;
    pub const TRANSFER: u8 = 23;
    pub const HEARTBEAT_REPLY: u8 = 24;
    pub const VOTED: u8 = 25;
    pub const TRANSFERRED: u8 = 26;
    pub const UNAVAILABLE: u8 = 27;
    pub const SNAPSHOT_HEAD: u8 = 30;
    pub const SNAPSHOT_PART: u8 = 31;
    pub const SNAPSHOT_DONE: u8 = 32;
    pub const FOUNDING_QUERY: u8 = 40;
    pub const FOUNDING_STATUS: u8 = 41;
    pub const VITALS: u8 = 50;
    pub const VITALS_REPLY: u8 = 51;
    pub const FRAMES_QUERY: u8 = 60;
    pub const FRAMES: u8 = 61;
    pub const NO_FRAMES: u8 = 62;
}

/// A message as the buffers of one vectored write: the first holds everything but bodies.
///
/// Panics if it is longer than [`MESSAGE_BYTES_MAX`]: what is sent is bounded where it is made.
pub fn encode(message: &Message) -> Vec<Bytes> {
    let mut out = vec![0; PREFIX_BYTES];
    let mut bodies = Vec::new();
    let tag = match message {
        Message::Hello(hello) => {
            put_hello(&mut out, hello);
            tag::HELLO
        }
        Message::Refused(reason) => {
            put_reason(&mut out, reason);
            tag::REFUSED
        }
        Message::Inconsistent(reason) => {
            put_reason(&mut out, reason);
            tag::INCONSISTENT
        }
        Message::Append(append) => {
            put_append(&mut out, append, &mut bodies);
            tag::APPEND
        }
        Message::StreamEnd => tag::STREAM_END,
        Message::Appended(appended) => {
            put_appended(&mut out, appended);
            tag::APPENDED
        }
        Message::Working => tag::WORKING,
        Message::Request(number, request) => {
            out.put_u64_le(*number);
            match request {
                Request::Heartbeat(append) => {
                    put_append(&mut out, append, &mut bodies);
                    tag::HEARTBEAT
                }
                Request::PreVote(ask) => {
                    put_ask_vote(&mut out, ask);
                    tag::PRE_VOTE
                }
                Request::Vote(ask) => {
                    put_ask_vote(&mut out, ask);
                    tag::VOTE
                }
                Request::Transfer(transfer) => {
                    put_vote(&mut out, &transfer.from);
                    out.put_u64_le(transfer.to);
                    put_log_id(&mut out, &transfer.last);
                    tag::TRANSFER
                }
                Request::Vitals => tag::VITALS,
            }
        }
        Message::Reply(number, reply) => {
            out.put_u64_le(*number);
            match reply {
                Reply::Heartbeat(appended) => {
                    put_appended(&mut out, appended);
                    tag::HEARTBEAT_REPLY
                }
                Reply::Voted(voted) => {
                    put_vote(&mut out, &voted.vote);
                    out.put_u8(voted.granted.into());
                    put_log_id(&mut out, &voted.last);
                    tag::VOTED
                }
                Reply::Transferred(transferred) => {
                    match transferred {
                        Transferred::Done => out.put_u8(0),
                        Transferred::VoteChanged(vote) => {
                            out.put_u8(1);
                            put_vote(&mut out, vote);
                        }
                        Transferred::NotFlushed(last) => {
                            out.put_u8(2);
                            put_log_id(&mut out, last);
                        }
                    }
                    tag::TRANSFERRED
                }
                Reply::Vitals(vitals) => {
                    out.put_i64_le(vitals.wall_ms);
                    out.put_u32_le(vitals.images.len() as u32);
                    for (id, hash) in &vitals.images {
                        out.put_u64_le(id.term);
                        out.put_u64_le(id.index);
                        out.put_u64_le(*hash);
                    }
                    tag::VITALS_REPLY
                }
                Reply::Unavailable => tag::UNAVAILABLE,
            }
        }
        Message::SnapshotHead(head) => {
            put_vote(&mut out, &head.vote);
            put_log_id(&mut out, &head.last);
            put_log_id(&mut out, &head.membership_at);
            out.put_u64_le(head.image_bytes);
            out.extend_from_slice(&encode_membership(&head.membership));
            tag::SNAPSHOT_HEAD
        }
        Message::SnapshotPart(bytes) => {
            bodies.push(bytes.clone());
            tag::SNAPSHOT_PART
        }
        Message::SnapshotDone(vote) => {
            put_vote(&mut out, vote);
            tag::SNAPSHOT_DONE
        }
        Message::FoundingQuery => tag::FOUNDING_QUERY,
        Message::FoundingStatus(status) => {
            put_founder(&mut out, &status.founder);
            out.put_u8(status.has_vote.into());
            out.put_u8(status.has_log.into());
            match &status.set {
                None => out.put_u8(0),
                Some(set) => {
                    out.put_u8(1);
                    put_founders(&mut out, set);
                }
            }
            out.put_u32_le(status.members.len() as u32);
            for member in &status.members {
                out.put_u64_le(*member);
            }
            out.put_u8(status.members_at.is_some().into());
            out.put_u64_le(status.members_at.unwrap_or(0));
            tag::FOUNDING_STATUS
        }
        Message::FramesQuery(FramesQuery { behind, start }) => {
            put_log_id(&mut out, behind);
            out.put_u64_le(start.physical_offset.0);
            out.put_u64_le(start.chain);
            tag::FRAMES_QUERY
        }
        Message::Frames(append) => {
            put_append(&mut out, append, &mut bodies);
            tag::FRAMES
        }
        Message::NoFrames { committed, why } => {
            put_log_id(&mut out, committed);
            out.put_u8(match why {
                NoFrames::NotYet => 0,
                NoFrames::Diverged => 1,
                NoFrames::Purged => 2,
            });
            tag::NO_FRAMES
        }
    };
    let length = out.len() - 4 + bodies.iter().map(Bytes::len).sum::<usize>();
    assert!(length <= MESSAGE_BYTES_MAX, "a message of {length} bytes was made, {MESSAGE_BYTES_MAX} are allowed");
    out[..4].copy_from_slice(&(length as u32).to_le_bytes());
    out[4] = tag;
    let mut buffers = vec![Bytes::from(out)];
    buffers.append(&mut bodies);
    buffers
}

fn put_reason(out: &mut Vec<u8>, reason: &str) {
    let reason: String = reason.chars().take(1000).collect();
    put_string(out, &reason);
}

/// The message of type `tag` with these fields; bodies share the buffer.
pub fn decode(tag: u8, fields: Bytes) -> Result<Message, Malformed> {
    let mut from = Fields::new(fields);
    let message = match tag {
        tag::HELLO => Message::Hello(take_hello(&mut from)?),
        tag::REFUSED => Message::Refused(from.string("refusal")?),
        tag::APPEND => Message::Append(take_append(&mut from)?),
        tag::STREAM_END => Message::StreamEnd,
        tag::APPENDED => Message::Appended(take_appended(&mut from)?),
        tag::WORKING => Message::Working,
        tag::INCONSISTENT => Message::Inconsistent(from.string("inconsistency")?),
        tag::HEARTBEAT | tag::PRE_VOTE | tag::VOTE | tag::TRANSFER | tag::VITALS => {
            let number = from.u64("request number")?;
            let request = match tag {
                tag::HEARTBEAT => Request::Heartbeat(take_append(&mut from)?),
                tag::PRE_VOTE => Request::PreVote(take_ask_vote(&mut from)?),
                tag::VOTE => Request::Vote(take_ask_vote(&mut from)?),
                tag::VITALS => Request::Vitals,
                _ => Request::Transfer(Transfer {
                    from: take_vote(&mut from)?,
                    to: from.u64("transfer to")?,
                    last: take_log_id(&mut from)?,
                }),
            };
            Message::Request(number, request)
        }
        tag::HEARTBEAT_REPLY | tag::VOTED | tag::TRANSFERRED | tag::VITALS_REPLY | tag::UNAVAILABLE => {
            let number = from.u64("request number")?;
            let reply = match tag {
                tag::HEARTBEAT_REPLY => Reply::Heartbeat(take_appended(&mut from)?),
                tag::VOTED => Reply::Voted(Voted {
                    vote: take_vote(&mut from)?,
                    granted: from.bool("granted")?,
                    last: take_log_id(&mut from)?,
                }),
                tag::TRANSFERRED => Reply::Transferred(match from.u8("transfer answer")? {
                    0 => Transferred::Done,
                    1 => Transferred::VoteChanged(take_vote(&mut from)?),
                    2 => Transferred::NotFlushed(take_log_id(&mut from)?),
                    _ => return Err(Malformed("transfer answer")),
                }),
                tag::VITALS_REPLY => Reply::Vitals(take_vitals(&mut from)?),
                _ => Reply::Unavailable,
            };
            Message::Reply(number, reply)
        }
        tag::SNAPSHOT_HEAD => {
            let vote = take_vote(&mut from)?;
            let last = take_log_id(&mut from)?;
            let membership_at = take_log_id(&mut from)?;
            let image_bytes = from.u64("image bytes")?;
            let rest = from.remaining();
            let membership = decode_membership(from.bytes(rest, "membership")?)?;
            Message::SnapshotHead(SnapshotHead { vote, last, membership_at, membership, image_bytes })
        }
        tag::SNAPSHOT_PART => {
            let rest = from.remaining();
            Message::SnapshotPart(from.bytes(rest, "image part")?)
        }
        tag::SNAPSHOT_DONE => Message::SnapshotDone(take_vote(&mut from)?),
        tag::FOUNDING_QUERY => Message::FoundingQuery,
        tag::FOUNDING_STATUS => {
            let founder = take_founder(&mut from)?;
            let has_vote = from.bool("has vote")?;
            let has_log = from.bool("has log")?;
            let set = if from.bool("has founding set")? { Some(take_founders(&mut from)?) } else { None };
            let count = from.count(8, "members")?;
            let members = (0..count).map(|_| from.u64("member")).collect::<Result<_, _>>()?;
            let (is_there, at) = (from.bool("has a membership")?, from.u64("membership entry")?);
            let members_at = is_there.then_some(at);
            Message::FoundingStatus(FoundingStatus { founder, has_vote, has_log, set, members, members_at })
        }
        tag::FRAMES_QUERY => Message::FramesQuery(FramesQuery {
            behind: take_log_id(&mut from)?,
            start: Cursor { physical_offset: PhysicalOffset(from.u64("start")?), chain: from.u64("start chain")? },
        }),
        tag::FRAMES => Message::Frames(take_append(&mut from)?),
        tag::NO_FRAMES => Message::NoFrames {
            committed: take_log_id(&mut from)?,
            why: match from.u8("why no frames")? {
                0 => NoFrames::NotYet,
                1 => NoFrames::Diverged,
                2 => NoFrames::Purged,
                _ => return Err(Malformed("why no frames")),
            },
        },
        _ => return Err(Malformed("message type")),
    };
    from.end("bytes behind a message")?;
    Ok(message)
}

fn take_vitals(from: &mut Fields) -> Result<Vitals, Malformed> {
    let wall_ms = from.i64("wall clock")?;
    let count = from.count(24, "images")?;
    let image = |_| {
        let id = LogId { term: from.u64("image term")?, index: from.u64("image index")? };
        Ok((id, from.u64("image hash")?))
    };
    let images = (0..count).map(image).collect::<Result<_, Malformed>>()?;
    Ok(Vitals { wall_ms, images })
}

fn put_hello(out: &mut Vec<u8>, hello: &Hello) {
    out.put_u32_le(MAGIC);
    out.put_u16_le(hello.protocol.0);
    out.put_u16_le(hello.protocol.1);
    put_string(out, &hello.cluster);
    put_string(out, &hello.group);
    out.put_u64_le(hello.node);
    out.put_u64_le(hello.expects);
    out.put_u64_le(hello.segment_bytes);
    out.put_u8(hello.frame_version);
    out.put_u64_le(hello.features);
    out.put_u32_le(hello.cluster_version);
    out.put_i64_le(hello.wall_ms);
    out.put_u8(hello.channel.to_u8());
    out.put_u128_le(hello.forward_key.map_or(0, ForwardKey::to_number));
}

fn take_hello(from: &mut Fields) -> Result<Hello, Malformed> {
    if from.u32("hello magic")? != MAGIC {
        return Err(Malformed("hello magic"));
    }
    let protocol = (from.u16("protocol")?, from.u16("protocol")?);
    let mut hello = Hello {
        protocol,
        cluster: from.string("cluster")?,
        group: from.string("group")?,
        node: from.u64("node")?,
        expects: from.u64("expected node")?,
        segment_bytes: from.u64("segment bytes")?,
        frame_version: from.u8("frame version")?,
        features: from.u64("features")?,
        cluster_version: from.u32("cluster version")?,
        wall_ms: from.i64("wall clock")?,
        channel: Channel::from_u8(from.u8("channel")?)?,
        forward_key: None,
    };
    if from.remaining() > 0 {
        let (low, high) = (from.u64("forward key")?, from.u64("forward key")?);
        let number = u128::from(high) << 64 | u128::from(low);
        hello.forward_key = (number != 0).then(|| ForwardKey::from_number(number));
    }
    // A newer build may say more behind what this one knows.
    let rest = from.remaining();
    from.bytes(rest, "hello")?;
    Ok(hello)
}

fn put_log_id(out: &mut Vec<u8>, id: &Option<RaftLogId>) {
    match id {
        None => out.put_u8(0),
        Some(id) => {
            let id = from_raft(id);
            out.put_u8(1);
            out.put_u64_le(id.term);
            out.put_u64_le(id.index);
        }
    }
}

fn take_log_id(from: &mut Fields) -> Result<Option<RaftLogId>, Malformed> {
    if !from.bool("log id")? {
        return Ok(None);
    }
    let id = LogId { term: from.u64("term")?, index: from.u64("index")? };
    Ok(Some(to_raft(id)))
}

fn put_vote(out: &mut Vec<u8>, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.voted_for);
    out.put_u8(vote.committed.into());
}

fn take_vote(from: &mut Fields) -> Result<Vote, Malformed> {
    let leader_id = LeaderId { term: from.u64("vote term")?, voted_for: from.u64("vote node")? };
    Ok(Vote { leader_id, committed: from.bool("vote committed")? })
}

fn put_ask_vote(out: &mut Vec<u8>, ask: &AskVote) {
    put_vote(out, &ask.vote);
    put_log_id(out, &ask.last);
    out.put_u8(ask.leadership_transfer.into());
}

fn take_ask_vote(from: &mut Fields) -> Result<AskVote, Malformed> {
    Ok(AskVote {
        vote: take_vote(from)?,
        last: take_log_id(from)?,
        leadership_transfer: from.bool("leadership transfer")?,
    })
}

fn put_appended(out: &mut Vec<u8>, appended: &Appended) {
    match appended {
        Appended::Upto(id) => {
            out.put_u8(0);
            put_log_id(out, id);
        }
        Appended::Conflict(id) => {
            out.put_u8(1);
            put_log_id(out, &Some(*id));
        }
        Appended::HigherVote(vote) => {
            out.put_u8(2);
            put_vote(out, vote);
        }
    }
}

fn take_appended(from: &mut Fields) -> Result<Appended, Malformed> {
    match from.u8("append answer")? {
        0 => Ok(Appended::Upto(take_log_id(from)?)),
        1 => Ok(Appended::Conflict(take_log_id(from)?.ok_or(Malformed("conflict without a log id"))?)),
        2 => Ok(Appended::HigherVote(take_vote(from)?)),
        _ => Err(Malformed("append answer")),
    }
}

fn put_append(out: &mut Vec<u8>, append: &Append, bodies: &mut Vec<Bytes>) {
    put_vote(out, &append.vote);
    put_log_id(out, &append.previous);
    put_log_id(out, &append.committed);
    out.put_u64_le(append.start.physical_offset.0);
    out.put_u64_le(append.start.chain);
    out.put_u32_le(append.entries.len() as u32);
    for entry in &append.entries {
        let id = entry.id();
        let placed = entry.placed.expect("an entry is sent as it was read from the log");
        let (kind, body, body_crc, _) = entry.clone().into_frame_parts();
        out.put_u64_le(id.term);
        out.put_u64_le(id.index);
        out.put_u8(kind as u8);
        out.put_u64_le(placed.physical_offset.0);
        out.put_u32_le(body.len() as u32);
        out.put_u32_le(body_crc);
        out.put_u64_le(placed.chain);
        if !body.is_empty() {
            bodies.push(body);
        }
    }
}

fn take_append(from: &mut Fields) -> Result<Append, Malformed> {
    struct Head {
        id: LogId,
        kind: Kind,
        body_bytes: usize,
        body_crc: u32,
        placed: Placed,
    }
    let vote = take_vote(from)?;
    let previous = take_log_id(from)?;
    let committed = take_log_id(from)?;
    let start = Cursor { physical_offset: PhysicalOffset(from.u64("start")?), chain: from.u64("start chain")? };
    let count = from.count(ENTRY_HEAD_BYTES, "entries")?;
    let mut heads = Vec::with_capacity(count);
    for _ in 0..count {
        let id = LogId { term: from.u64("term")?, index: from.u64("index")? };
        let kind = kind_from_u8(from.u8("kind")?)?;
        let physical_offset = PhysicalOffset(from.u64("physical offset")?);
        let body_bytes = from.u32("body bytes")? as usize;
        let body_crc = from.u32("body CRC")?;
        let chain = from.u64("chain")?;
        heads.push(Head { id, kind, body_bytes, body_crc, placed: Placed { physical_offset, chain } });
    }
    let mut entries = Vec::with_capacity(count);
    for head in heads {
        let body = from.bytes(head.body_bytes, "body")?;
        entries.push(Entry::from_frame_parts(head.id, head.kind, body, head.body_crc, head.placed)?);
    }
    Ok(Append { vote, previous, committed, start, entries })
}

fn kind_from_u8(byte: u8) -> Result<Kind, Malformed> {
    [Kind::Entry, Kind::Membership, Kind::Blank].into_iter().find(|kind| *kind as u8 == byte).ok_or(Malformed("kind"))
}

/// A founder, as in IDENTITY and in [`FoundingStatus`].
pub fn put_founder(out: &mut Vec<u8>, founder: &Founder) {
    out.put_u64_le(founder.id);
    put_string(out, &founder.node.peer_address);
    put_string(out, &founder.node.client_address);
}

/// What [`put_founder`] wrote.
pub fn take_founder(from: &mut Fields) -> Result<Founder, Malformed> {
    Ok(Founder {
        id: from.u64("founder id")?,
        node: Node { peer_address: from.string("peer address")?, client_address: from.string("client address")? },
    })
}

/// A founding set.
pub fn put_founders(out: &mut Vec<u8>, founders: &[Founder]) {
    out.put_u32_le(founders.len() as u32);
    for founder in founders {
        put_founder(out, founder);
    }
}

/// What [`put_founders`] wrote.
pub fn take_founders(from: &mut Fields) -> Result<Vec<Founder>, Malformed> {
    let count = from.count(12, "founders")?;
    (0..count).map(|_| take_founder(from)).collect()
}

impl From<openraft::raft::StreamAppendResult<Types>> for Appended {
    fn from(result: openraft::raft::StreamAppendResult<Types>) -> Appended {
        match result {
            Ok(upto) => Appended::Upto(upto),
            Err(openraft::raft::StreamAppendError::Conflict(id)) => Appended::Conflict(id),
            Err(openraft::raft::StreamAppendError::HigherVote(vote)) => Appended::HigherVote(vote),
        }
    }
}

impl From<Appended> for openraft::raft::StreamAppendResult<Types> {
    fn from(appended: Appended) -> openraft::raft::StreamAppendResult<Types> {
        match appended {
            Appended::Upto(upto) => Ok(upto),
            Appended::Conflict(id) => Err(openraft::raft::StreamAppendError::Conflict(id)),
            Appended::HigherVote(vote) => Err(openraft::raft::StreamAppendError::HigherVote(vote)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::raft::types::{Membership, Payload};

    fn log_id() -> impl Strategy<Value = Option<RaftLogId>> {
        proptest::option::of((any::<u64>(), any::<u64>()).prop_map(|(term, index)| to_raft(LogId { term, index })))
    }

    fn vote() -> impl Strategy<Value = Vote> {
        (any::<u64>(), any::<u64>(), any::<bool>())
            .prop_map(|(term, voted_for, committed)| Vote { leader_id: LeaderId { term, voted_for }, committed })
    }

    fn text() -> impl Strategy<Value = String> {
        "[a-z0-9.:]{0,20}"
    }

    fn node() -> impl Strategy<Value = Node> {
        (text(), text()).prop_map(|(peer_address, client_address)| Node { peer_address, client_address })
    }

    fn membership() -> impl Strategy<Value = Membership> {
        proptest::collection::btree_map(any::<u64>(), node(), 1..4).prop_map(|nodes: BTreeMap<u64, Node>| {
            Membership::new(vec![nodes.keys().copied().collect()], nodes).unwrap()
        })
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let payload = prop_oneof![
            Just(Payload::Blank),
            membership().prop_map(Payload::Membership),
            proptest::collection::vec(any::<u8>(), 0..100).prop_map(|bytes| {
                let bytes = Bytes::from(bytes);
                Payload::Normal(crate::raft::types::Body { crc: crc32c::crc32c(&bytes), bytes, ticket: None })
            }),
        ];
        (any::<u64>(), any::<u64>(), payload, any::<u64>(), any::<u64>()).prop_map(
            |(term, index, payload, physical_offset, chain)| Entry {
                leader: crate::raft::types::leader_of(term),
                index,
                payload,
                placed: Some(Placed { physical_offset: PhysicalOffset(physical_offset), chain }),
            },
        )
    }

    fn append() -> impl Strategy<Value = Append> {
        (vote(), log_id(), log_id(), any::<(u64, u64)>(), proptest::collection::vec(entry(), 0..6)).prop_map(
            |(vote, previous, committed, (physical_offset, chain), entries)| {
                let start = Cursor { physical_offset: PhysicalOffset(physical_offset), chain };
                Append { vote, previous, committed, start, entries }
            },
        )
    }

    fn appended() -> impl Strategy<Value = Appended> {
        prop_oneof![
            log_id().prop_map(Appended::Upto),
            log_id().prop_filter_map("an id", |id| id.map(Appended::Conflict)),
            vote().prop_map(Appended::HigherVote),
        ]
    }

    fn hello() -> impl Strategy<Value = Hello> {
        let channel = [Channel::Append, Channel::Unary, Channel::Snapshot, Channel::Founding, Channel::Frames];
        let channel = proptest::sample::select(channel.to_vec());
        let numbers = any::<(u64, u64, u64, u8, u64, u32, i64)>();
        let key = proptest::option::of((1..=u128::MAX).prop_map(ForwardKey::from_number));
        (any::<(u16, u16)>(), text(), text(), numbers, channel, key).prop_map(
            |(protocol, cluster, group, numbers, channel, forward_key)| {
                let (node, expects, segment_bytes, frame_version, features, cluster_version, wall_ms) = numbers;
                Hello {
                    protocol,
                    cluster,
                    group,
                    node,
                    expects,
                    segment_bytes,
                    frame_version,
                    features,
                    cluster_version,
                    wall_ms,
                    channel,
                    forward_key,
                }
            },
        )
    }

    fn founding_status() -> impl Strategy<Value = FoundingStatus> {
        let founder = || (any::<u64>(), node()).prop_map(|(id, node)| Founder { id, node });
        let set = proptest::option::of(proptest::collection::vec(founder(), 0..4));
        let members = proptest::collection::vec(any::<u64>(), 0..4);
        (founder(), any::<[bool; 2]>(), set, members, any::<Option<u64>>()).prop_map(
            |(founder, [has_vote, has_log], set, members, members_at)| FoundingStatus {
                founder,
                has_vote,
                has_log,
                set,
                members,
                members_at,
            },
        )
    }

    fn request() -> impl Strategy<Value = Request> {
        let ask = || {
            (vote(), log_id(), any::<bool>()).prop_map(|(vote, last, leadership_transfer)| AskVote {
                vote,
                last,
                leadership_transfer,
            })
        };
        prop_oneof![
            append().prop_map(Request::Heartbeat),
            ask().prop_map(Request::PreVote),
            ask().prop_map(Request::Vote),
            (vote(), any::<u64>(), log_id()).prop_map(|(from, to, last)| Request::Transfer(Transfer {
                from,
                to,
                last
            })),
            Just(Request::Vitals),
        ]
    }

    fn reply() -> impl Strategy<Value = Reply> {
        prop_oneof![
            appended().prop_map(Reply::Heartbeat),
            (vote(), any::<bool>(), log_id()).prop_map(|(vote, granted, last)| Reply::Voted(Voted {
                vote,
                granted,
                last
            })),
            Just(Reply::Transferred(Transferred::Done)),
            vote().prop_map(|vote| Reply::Transferred(Transferred::VoteChanged(vote))),
            log_id().prop_map(|last| Reply::Transferred(Transferred::NotFlushed(last))),
            (any::<i64>(), proptest::collection::vec((any::<(u64, u64)>(), any::<u64>()), 0..4)).prop_map(
                |(wall_ms, images)| {
                    let images = images.into_iter().map(|((term, index), hash)| (LogId { term, index }, hash));
                    Reply::Vitals(Vitals { wall_ms, images: images.collect() })
                }
            ),
            Just(Reply::Unavailable),
        ]
    }

    fn message() -> impl Strategy<Value = Message> {
        let head = (vote(), log_id(), log_id(), membership(), any::<u64>()).prop_map(
            |(vote, last, membership_at, membership, image_bytes)| {
                Message::SnapshotHead(SnapshotHead { vote, last, membership_at, membership, image_bytes })
            },
        );
        prop_oneof![
            hello().prop_map(Message::Hello),
            text().prop_map(Message::Refused),
            text().prop_map(Message::Inconsistent),
            append().prop_map(Message::Append),
            Just(Message::StreamEnd),
            appended().prop_map(Message::Appended),
            Just(Message::Working),
            (any::<u64>(), request()).prop_map(|(number, request)| Message::Request(number, request)),
            (any::<u64>(), reply()).prop_map(|(number, reply)| Message::Reply(number, reply)),
            head,
            proptest::collection::vec(any::<u8>(), 1..100).prop_map(|part| Message::SnapshotPart(Bytes::from(part))),
            vote().prop_map(Message::SnapshotDone),
            Just(Message::FoundingQuery),
            founding_status().prop_map(Message::FoundingStatus),
            (log_id(), any::<(u64, u64)>()).prop_map(|(behind, (physical_offset, chain))| {
                let start = Cursor { physical_offset: PhysicalOffset(physical_offset), chain };
                Message::FramesQuery(FramesQuery { behind, start })
            }),
            append().prop_map(Message::Frames),
            (log_id(), 0..3_usize).prop_map(|(committed, why)| Message::NoFrames {
                committed,
                why: [NoFrames::NotYet, NoFrames::Diverged, NoFrames::Purged][why],
            }),
        ]
    }

    fn written(message: &Message) -> Vec<u8> {
        encode(message).concat()
    }

    proptest! {
        #[test]
        fn every_message_comes_back_equal(message in message()) {
            let bytes = written(&message);
            let length = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
            prop_assert_eq!(bytes.len(), 4 + length);
            prop_assert_eq!(decode(bytes[4], Bytes::copy_from_slice(&bytes[5..])).unwrap(), message);
        }

        #[test]
        fn any_bytes_are_read_or_refused(tag in any::<u8>(), bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(tag, Bytes::from(bytes));
        }

        #[test]
        fn damaged_messages_are_read_or_refused(message in message(), at in any::<usize>(), flip in 1u8.., cut in any::<usize>()) {
            let mut bytes = written(&message);
            let at = 4 + at % (bytes.len() - 4);
            bytes[at] ^= flip;
            let _ = decode(bytes[4], Bytes::copy_from_slice(&bytes[5..]));
            let cut = 5 + cut % (bytes.len() - 4);
            let _ = decode(bytes[4], Bytes::copy_from_slice(&bytes[5..cut.min(bytes.len())]));
        }
    }

    #[test]
    fn bodies_are_written_from_where_they_lie_and_read_out_of_one_buffer() {
        let body = Bytes::from(vec![7; 1000]);
        let payload =
            Payload::Normal(crate::raft::types::Body { crc: crc32c::crc32c(&body), bytes: body.clone(), ticket: None });
        let placed = Some(Placed { physical_offset: PhysicalOffset(64), chain: 1 });
        let entry = Entry { leader: crate::raft::types::leader_of(1), index: 1, payload, placed };
        let vote = Vote { leader_id: LeaderId { term: 1, voted_for: 1 }, committed: true };
        let append = Append { vote, previous: None, committed: None, start: Cursor::default(), entries: vec![entry] };
        let buffers = encode(&Message::Append(append));
        assert_eq!(buffers.len(), 2);
        assert_eq!(buffers[1].as_ptr(), body.as_ptr());

        let received = Bytes::from(buffers.concat());
        let Message::Append(read) = decode(received[4], received.slice(5..)).unwrap() else { panic!("an append") };
        let Payload::Normal(read) = &read.entries[0].payload else { panic!("a normal entry") };
        assert!(received.as_ptr_range().contains(&read.bytes.as_ptr()));
    }

    #[test]
    fn a_peer_of_another_cluster_node_or_size_is_refused_with_a_reason() {
        let ours = Hello {
            protocol: (1, 2),
            cluster: "c".into(),
            group: "g".into(),
            node: 1,
            expects: 2,
            segment_bytes: 4096,
            frame_version: 1,
            features: 0,
            cluster_version: 1,
            wall_ms: 0,
            channel: Channel::Append,
            forward_key: None,
        };
        let theirs = Hello { node: 2, expects: 1, ..ours.clone() };
        assert_eq!(ours.refuses(&theirs), None);
        let anybody = Hello { expects: 0, ..theirs.clone() };
        for channel in [Channel::Founding, Channel::Frames] {
            assert_eq!(ours.refuses(&Hello { channel, ..anybody.clone() }), None);
        }
        for wrong in [
            Hello { protocol: (3, 4), ..theirs.clone() },
            Hello { cluster: "d".into(), ..theirs.clone() },
            Hello { group: "h".into(), ..theirs.clone() },
            Hello { segment_bytes: 8192, ..theirs.clone() },
            Hello { frame_version: 2, ..theirs.clone() },
            Hello { expects: 3, ..theirs.clone() },
            anybody,
            Hello { node: 1, ..theirs.clone() },
        ] {
            assert!(ours.refuses(&wrong).is_some(), "{wrong:?}");
        }
    }
}

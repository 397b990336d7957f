//! What openraft is told of our entries: three kinds, bodies that are never re-encoded, and the place a frame has.
//!
//! - A normal entry's body is opaque here; its CRC travels with it, so that it is computed once, by the proposer.
//! - One leader per term, so a log id is `{term, index}`, as in the frame header.
//! - `ticket` links an entry to the proposer's waiter on this node only. It is never written and never sent.

use std::fmt;

use bytes::{Bytes, BytesMut};
use openraft::entry::{RaftEntry, RaftPayload};
use openraft::impls::leader_id_std;
use openraft::impls::{BoxedErrorSource, InlineBatch, OneshotResponder, TokioRuntime};
use openraft::vote::{RaftLeaderId, RaftLeaderIdExt};

use crate::fields::{Fields, Malformed, put_string};
use crate::log::Kind;
use crate::position::{LogId, NodeId, PhysicalOffset};

/// The types openraft is instantiated with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

/// openraft's `{term, voted for}`.
pub type LeaderId = leader_id_std::LeaderId<u64, NodeId>;
/// The part of it that is in a log id: the term alone.
pub type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
/// openraft's log id.
pub type RaftLogId = openraft::LogId<CommittedLeaderId>;
/// openraft's vote.
pub type Vote = openraft::impls::Vote<LeaderId>;
/// Voters and learners.
pub type Membership = openraft::Membership<NodeId, Node>;
/// A membership and the log id it stands at.
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId, NodeId, Node>;
/// openraft, asynchronous and seeded: elections of a simulation are a function of its seed.
pub type Runtime = openraft_rt::deterministic_rng::DeterministicRng<TokioRuntime>;

impl openraft::RaftTypeConfig for Types {
    type D = Body;
    type R = ();
    type NodeId = NodeId;
    type Node = Node;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// Where a member is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// `host:port` of its peer listener.
    pub peer_address: String,
    /// `host:port` that clients are told.
    pub client_address: String,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (clients: {})", self.peer_address, self.client_address)
    }
}

/// Names a waiter of this node's proposer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The body of a normal entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// As encoded by [`crate::entry`].
    pub bytes: Bytes,
    /// CRC32C of `bytes`.
    pub crc: u32,
    /// Set on the node that proposed it, until it is appended.
    pub ticket: Option<Ticket>,
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

/// What an entry carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A new leader's first entry.
    Blank,
    /// Voters and learners from here on.
    Membership(Membership),
    /// Operations.
    Normal(Body),
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Payload::Blank => f.write_str("blank"),
            Payload::Membership(membership) => write!(f, "membership {membership}"),
            Payload::Normal(body) => body.fmt(f),
        }
    }
}

impl RaftPayload for Payload {
    type D = Body;
    type NodeId = NodeId;
    type Node = Node;

    fn blank() -> Payload {
        Payload::Blank
    }

    fn with_normal(self, data: Body) -> Payload {
        Payload::Normal(data)
    }

    fn with_membership(self, membership: Membership) -> Payload {
        Payload::Membership(membership)
    }

    fn get_membership(&self) -> Option<Membership> {
        match self {
            Payload::Membership(membership) => Some(membership.clone()),
            Payload::Blank | Payload::Normal(_) => None,
        }
    }
}

/// Where a frame lies and the rolling hash up to and with it: equal on every replica that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Start of the frame.
    pub physical_offset: PhysicalOffset,
    /// The frame's own chain value.
    pub chain: u64,
}

/// An entry of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Term it was proposed in.
    pub leader: CommittedLeaderId,
    /// Index in the log.
    pub index: u64,
    /// What it carries.
    pub payload: Payload,
    /// Where it lies: known when it was read from the log, or received from a leader that had. A follower compares the
    /// leader's with its own: a difference is divergence.
    pub placed: Option<Placed>,
}

impl Entry {
    /// The log id, in our own type.
    pub fn id(&self) -> LogId {
        LogId { term: *self.leader, index: self.index }
    }

    /// Kind, body and body CRC, as the frame has them.
    pub fn into_frame_parts(self) -> (Kind, Bytes, u32, Option<Ticket>) {
        match self.payload {
            Payload::Blank => (Kind::Blank, Bytes::new(), 0, None),
            Payload::Membership(membership) => {
                let bytes = encode_membership(&membership);
                let crc = crc32c::crc32c(&bytes);
                (Kind::Membership, bytes, crc, None)
            }
            Payload::Normal(body) => (Kind::Entry, body.bytes, body.crc, body.ticket),
        }
    }

    /// The entry a frame holds.
    pub fn from_frame_parts(
        id: LogId,
        kind: Kind,
        body: Bytes,
        body_crc: u32,
        placed: Placed,
    ) -> Result<Entry, Malformed> {
        let payload = match kind {
            Kind::Blank if body.is_empty() => Payload::Blank,
            Kind::Blank => return Err(Malformed("blank entry with a body")),
            Kind::Membership => Payload::Membership(decode_membership(body)?),
            Kind::Entry => Payload::Normal(Body { bytes: body, crc: body_crc, ticket: None }),
            Kind::Padding => return Err(Malformed("padding is not an entry")),
        };
        Ok(Entry { leader: leader_of(id.term), index: id.index, payload, placed: Some(placed) })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.id(), self.payload)
    }
}

impl RaftEntry for Entry {
    type CommittedLeaderId = CommittedLeaderId;
    type Payload = Payload;

    fn new(log_id: RaftLogId, payload: Payload) -> Entry {
        Entry { leader: log_id.leader_id, index: log_id.index, payload, placed: None }
    }

    fn log_id_parts(&self) -> (&CommittedLeaderId, u64) {
        (&self.leader, self.index)
    }

    fn set_log_id(&mut self, new: RaftLogId) {
        self.leader = new.leader_id;
        self.index = new.index;
    }

    fn get_membership(&self) -> Option<Membership> {
        self.payload.get_membership()
    }
}

/// The committed leader id of `term`. Its node is not part of it.
pub fn leader_of(term: u64) -> CommittedLeaderId {
    LeaderId::new_committed(term, 0)
}

/// Our log id as openraft's.
pub fn to_raft(id: LogId) -> RaftLogId {
    RaftLogId { leader_id: leader_of(id.term), index: id.index }
}

/// openraft's log id as ours.
pub fn from_raft(id: &RaftLogId) -> LogId {
    LogId { term: *id.leader_id, index: id.index }
}

/// Membership as bytes:
///
/// ```text
/// version u8 = 1 | configs u32, each: ids u32, each u64 | nodes u32, each: id u64, peer address, client address
/// ```
///
/// Strings are UTF-8 behind a u16 length; all in ascending id order, so equal memberships are equal bytes.
pub fn encode_membership(membership: &Membership) -> Bytes {
    let mut out = vec![1];
    let configs = membership.get_joint_config();
    out.extend_from_slice(&(configs.len() as u32).to_le_bytes());
    for config in configs {
        out.extend_from_slice(&(config.len() as u32).to_le_bytes());
        for id in config {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
    let count = membership.nodes().count();
    out.extend_from_slice(&(count as u32).to_le_bytes());
    for (id, node) in membership.nodes() {
        out.extend_from_slice(&id.to_le_bytes());
        put_string(&mut out, &node.peer_address);
        put_string(&mut out, &node.client_address);
    }
    BytesMut::from(out.as_slice()).freeze()
}

/// What [`encode_membership`] wrote. No bytes at all are the membership before the first.
pub fn decode_membership(bytes: Bytes) -> Result<Membership, Malformed> {
    if bytes.is_empty() {
        return Ok(Membership::default());
    }
    let mut from = Fields::new(bytes);
    if from.u8("membership version")? != 1 {
        return Err(Malformed("membership version"));
    }
    let mut configs = Vec::new();
    for _ in 0..from.count(4, "membership configs")? {
        let ids = from.count(8, "membership ids")?;
        let config = (0..ids).map(|_| from.u64("member id")).collect::<Result<_, _>>()?;
        configs.push(config);
    }
    let mut nodes = std::collections::BTreeMap::new();
    for _ in 0..from.count(12, "membership nodes")? {
        let id = from.u64("member id")?;
        let peer_address = from.string("peer address")?;
        let client_address = from.string("client address")?;
        nodes.insert(id, Node { peer_address, client_address });
    }
    from.end("membership")?;
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| Malformed("membership names a voter without an address"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn node() -> impl Strategy<Value = Node> {
        (".{0,40}", ".{0,40}").prop_map(|(peer_address, client_address)| Node { peer_address, client_address })
    }

    proptest! {
        #[test]
        fn membership_comes_back_equal(
            nodes in proptest::collection::btree_map(any::<u64>(), node(), 1..8),
            second in any::<u8>(),
        ) {
            let ids: BTreeSet<u64> = nodes.keys().copied().collect();
            let mut configs = vec![ids.clone()];
            let subset: BTreeSet<u64> =
                ids.iter().enumerate().filter(|(at, _)| second & (1 << at) != 0).map(|(_, id)| *id).collect();
            if !subset.is_empty() {
                configs.push(subset);
            }
            let membership = Membership::new(configs, nodes).unwrap();
            prop_assert_eq!(decode_membership(encode_membership(&membership)).unwrap(), membership);
        }

        #[test]
        fn any_bytes_as_membership_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_membership(Bytes::from(bytes));
        }
    }

    #[test]
    fn the_membership_before_the_first_is_read_from_nothing_and_from_its_own_encoding() {
        let none = Membership::default();
        assert_eq!(decode_membership(Bytes::new()).unwrap(), none);
        assert_eq!(decode_membership(encode_membership(&none)).unwrap(), none);
    }

    #[test]
    fn a_voter_without_an_address_is_refused() {
        let mut bytes = vec![1];
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&7u64.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        assert!(decode_membership(Bytes::from(bytes)).is_err());
    }
}

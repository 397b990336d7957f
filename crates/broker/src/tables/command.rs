//! The broker's commands: what an entry may carry for its tables beside messages.
//!
//! Encoded by `raft_store::codec` with a version byte. A kind is only ever added at the end, and proposed only once
//! `cluster_version` says that every replica knows it: an unknown kind stops a replica before it applies it.

use raft_store::codec::{self, Decode, Encode};
use raft_store::entry::Operation;

use super::groups::GroupConfig;
use super::pops::Popped;
use super::request_modes::RequestMode;
use super::topics::TopicConfig;

/// One change of the tables.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Command {
    /// Creates the topic, or changes its configuration.
    PutTopic {
        /// The wanted configuration; its name is the key.
        config: TopicConfig,
        /// Leave an existing topic as it is: automatic creation must not undo what an operator has set.
        only_if_absent: bool,
    },
    /// Deletes the topic: its messages are no longer visible, its queues' offsets are never given again.
    DeleteTopic {
        /// Name of the topic.
        name: String,
    },
    /// Creates the consumer group with its retry topic, or changes its configuration.
    PutGroup {
        /// The wanted configuration; its name is the key.
        config: GroupConfig,
        /// Leave an existing group as it is.
        only_if_absent: bool,
    },
    /// Deletes the consumer group.
    DeleteGroup {
        /// Name of the group.
        name: String,
        /// Forget its consumer offsets too.
        clean_offsets: bool,
    },
    /// Sets consumer offsets.
    UpdateOffsets(Vec<OffsetUpdate>),
    /// Takes or renews the lease on queues for one client of a group.
    LockQueues {
        /// The consumer group.
        group: String,
        /// The client that asks.
        client: String,
        /// Topic and queue number.
        queues: Vec<(String, u32)>,
        /// Length of the lease.
        lease_ms: i64,
    },
    /// Gives queues back that the client holds.
    UnlockQueues {
        /// The consumer group.
        group: String,
        /// The client that asks.
        client: String,
        /// Topic and queue number.
        queues: Vec<(String, u32)>,
    },
    /// Says where a group begins in queues of which it has no offset; the others stay as they are.
    BeginAt {
        /// The consumer group.
        group: String,
        /// The topic.
        topic: String,
        /// Queue numbers, and next queue offsets to consume.
        offsets: Vec<(u32, u64)>,
    },
    /// Moves a group elsewhere, whatever its consumers say, until they go on from there.
    ResetOffsets {
        /// The consumer group.
        group: String,
        /// The topic.
        topic: String,
        /// Queue numbers, and next queue offsets to consume.
        offsets: Vec<(u32, u64)>,
    },
    /// Leases messages of a topic's queues to a consumer of a group.
    Pop {
        /// The consumer group.
        group: String,
        /// The topic.
        topic: String,
        /// Length of the leases.
        lease_ms: i64,
        /// Only of queues of which nothing is leased, and in their order.
        is_orderly: bool,
        /// An orderly attempt may have its own batch again; empty if the client did not say.
        attempt: String,
        /// What is wished, queue by queue.
        queues: Vec<PopWish>,
    },
    /// Ends leases: their messages are consumed.
    AckPopped {
        /// The consumer group.
        group: String,
        /// The topic.
        topic: String,
        /// Each is acknowledged or refused by itself.
        leases: Vec<LeaseId>,
    },
    /// Lets a lease end at another time.
    ChangeLease {
        /// The consumer group.
        group: String,
        /// The topic.
        topic: String,
        /// Which.
        lease: LeaseId,
        /// How long it runs from now on; 0: the message is available again at once.
        lease_ms: i64,
    },
    /// Messages whose last try has ended lie in the dead-letter queue.
    BuryPopped {
        /// The consumer group.
        group: String,
        /// The topic.
        topic: String,
        /// Their last leases.
        leases: Vec<LeaseId>,
    },
    /// Says how a group's consumers fetch the messages of a topic, where the broker divides its queues.
    SetRequestMode {
        /// The consumer group.
        group: String,
        /// The topic.
        topic: String,
        /// How.
        mode: RequestMode,
    },
}

impl Command {
    /// The command as an entry carries it.
    pub fn operation(&self) -> Operation {
        Operation::Tables(codec::to_bytes(self).into())
    }
}

/// The wish to move one consumer offset.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OffsetUpdate {
    /// The consumer group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// RocketMQ's queueId.
    pub queue: u32,
    /// Next queue offset to consume.
    pub offset: u64,
    /// The client that says so, where known.
    pub client: String,
    /// A one-way update may be late: it never moves the offset back, unless its client was the last to write.
    pub one_way: bool,
}

/// What a pop wishes of a queue: chosen by the leader, and taken as far as it is still available when it is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct PopWish {
    /// RocketMQ's queueId.
    pub queue: u32,
    /// The offset that new messages were looked for from: nothing new is taken if another pop has looked on meanwhile.
    pub from: u64,
    /// Behind the last message looked at.
    pub next: u64,
    /// Offsets, ascending: below `from` messages whose leases have ended, from there on new ones. What lies between these was
    /// looked at and is not for the group.
    pub wanted: Vec<u64>,
    /// Messages whose leases have ended, and that do not exist any more or are not for the group.
    pub gone: Vec<u64>,
}

/// One lease, as its holder knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct LeaseId {
    /// RocketMQ's queueId.
    pub queue: u32,
    /// The message's queue offset.
    pub offset: u64,
    /// When it was given, or last changed.
    pub pop_ms: i64,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done; nothing more to say.
    Done,
    /// The topic has this id now.
    Topic(raft_store::position::TopicId),
    /// Queues that the asking client holds now, of those it asked for.
    Locked(Vec<(String, u32)>),
    /// Messages that are leased now.
    Popped {
        /// The leases' pop time.
        pop_ms: i64,
        /// Queue by queue, those too that nothing was got of.
        queues: Vec<Popped>,
    },
    /// Of each lease, in order, why it could not be ended; `None` if its message is done, also if it was before.
    Acked(Vec<Option<Refusal>>),
    /// The lease has this pop time now.
    LeaseChanged(i64),
    /// A precondition no longer held when the command was applied; nothing was changed.
    Refused(Refusal),
}

/// Why a command changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such topic.
    #[error("the topic does not exist")]
    NoTopic,
    /// No such consumer group.
    #[error("the consumer group does not exist")]
    NoGroup,
    /// The group is being moved elsewhere, and its consumers have not gone on from there yet.
    #[error("the group's offset has been reset: what its consumers did before that does not count any more")]
    OffsetReset,
    /// The tables' own limits.
    #[error("too many topics or groups")]
    Full,
    /// The lease is not, or no longer, the one that holds.
    #[error(
        "the message is not leased to this consumer any more: its time was over and somebody else has it, it was given up, or \
         the group's offset was set"
    )]
    NotLeased,
}

//! Planted bugs: mistakes that this crate and the broker make on purpose, to prove that the tests which should find them
//! do.
//!
//! Only with the feature `planted-bugs`, and then only those that a test has planted; else [`is`] is a constant. To add
//! one: a variant here, its line in [`Bug::ALL`] and [`Bug::name`], the mistake where it would be made, and the check that
//! must find it: in `tests/crashes`, or a seed of the simulation in `tests/src/sim/planted.rs`.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Frames are not synced before they are answered.
    SkipSync,
    /// A sync of frames that fails is tried again.
    SyncRetried,
    /// Appends are answered before they are written.
    AcknowledgeBeforeSync,
    /// N is durable in the keyed store before the rows that it stands for.
    BoundaryBeforeRows,
    /// The marks are forgotten: a bad frame below one is cut off like a torn tail.
    CutBelowMark,
    /// A vote is answered when it is written.
    VoteUnsynced,
    /// A vote is written to one copy of the hard state.
    VoteInOneCopy,
    /// A frame of any history continues the log.
    ChainUnchecked,
    /// Any whole frame continues the log, wherever it belongs.
    StaleFrames,
    /// What is cut stays where it is.
    CutNotZeroed,
    /// Readers of files do not stop at what is written.
    ReadPastWritten,
    /// The derived state does not wait for the log to be durable.
    DerivedPastSynced,
    /// The keyed store is written before the units of the ConsumeQueues.
    KeyedBeforeUnits,
    /// A log that ends below the derived state is taken as it is.
    FloorIgnored,
    /// The log is purged to an image that is not durable.
    ImageUnsynced,
    /// A replica that may have forgotten what it acknowledged votes at once.
    ForgetfulVotes,
    /// A leader that comes back goes on in its term.
    LeaderRestored,
    /// A follower counts as holding what was sent to it.
    AcknowledgeBeforeQuorum,
    /// A new leader serves before its `Lead`, and all that was acknowledged before it, is applied.
    ServeBeforeLead,
    /// An entry that is discarded here, cut off or covered by an image, is said to be certainly not appended.
    DiscardedIsNever,
    /// One entry more is applied and answered than is committed.
    CommitOffByOne,
    /// A late one-way update of a consumer offset counts, whoever sent it.
    OffsetBackwards,
    /// A consumer offset is read without asking a majority who leads.
    StaleRead,
    /// A delayed message becomes visible a little early.
    TimerEarly,
    /// A delayed message becomes visible in one entry and is forgotten in the next one, if the same leader proposes both.
    TimerTwice,
    /// A queue lock is granted although another client holds it.
    LockTwice,
    /// A forwarded request whose answer was lost is carried out again.
    ForwardedTwice,
    /// Any replica says that an offset does not exist which it does not have.
    FollowerMovesOffset,
    /// An unknown outcome is answered like a certain refusal.
    UnknownIsFailure,
    /// A half message is visible before its transaction has ended.
    HalfVisible,
    /// The end of a transaction is not remembered when it was a commit: the next one counts again.
    CommitTwice,
    /// The end of a transaction is not remembered when it was a rollback: a commit behind it wins.
    RollbackForgotten,
    /// Copies of a message that are in flight together do not wait for each other.
    KeysNotHeld,
    /// A new leader does not know the keys of messages that were stored before its term.
    KeysOfOtherTermsForgotten,
    /// A message that was recalled fires all the same.
    RecallForgotten,
    /// What a consumer stores that does not know of it undoes a reset of its group's offset.
    ResetUndone,
    /// A message is leased to a consumer although another one has it.
    PoppedTwice,
    /// A lease can be ended by one who had the message before.
    AckOfAnother,
    /// A message that is given up again lies among the dead letters again.
    DeadLetterTwice,
    /// A message that a client sends to the dead letters again itself lies there again.
    DeadLetterCopyTwice,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 40] = [
        Bug::SkipSync,
        Bug::SyncRetried,
        Bug::AcknowledgeBeforeSync,
        Bug::BoundaryBeforeRows,
        Bug::CutBelowMark,
        Bug::VoteUnsynced,
        Bug::VoteInOneCopy,
        Bug::ChainUnchecked,
        Bug::StaleFrames,
        Bug::CutNotZeroed,
        Bug::ReadPastWritten,
        Bug::DerivedPastSynced,
        Bug::KeyedBeforeUnits,
        Bug::FloorIgnored,
        Bug::ImageUnsynced,
        Bug::ForgetfulVotes,
        Bug::LeaderRestored,
        Bug::AcknowledgeBeforeQuorum,
        Bug::ServeBeforeLead,
        Bug::DiscardedIsNever,
        Bug::CommitOffByOne,
        Bug::OffsetBackwards,
        Bug::StaleRead,
        Bug::TimerEarly,
        Bug::TimerTwice,
        Bug::LockTwice,
        Bug::ForwardedTwice,
        Bug::FollowerMovesOffset,
        Bug::UnknownIsFailure,
        Bug::HalfVisible,
        Bug::CommitTwice,
        Bug::RollbackForgotten,
        Bug::KeysNotHeld,
        Bug::KeysOfOtherTermsForgotten,
        Bug::RecallForgotten,
        Bug::ResetUndone,
        Bug::PoppedTwice,
        Bug::AckOfAnother,
        Bug::DeadLetterTwice,
        Bug::DeadLetterCopyTwice,
    ];

    /// What it is called on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Bug::SkipSync => "skip-sync",
            Bug::SyncRetried => "sync-retried",
            Bug::AcknowledgeBeforeSync => "acknowledge-before-sync",
            Bug::BoundaryBeforeRows => "boundary-before-rows",
            Bug::CutBelowMark => "cut-below-mark",
            Bug::VoteUnsynced => "vote-unsynced",
            Bug::VoteInOneCopy => "vote-in-one-copy",
            Bug::ChainUnchecked => "chain-unchecked",
            Bug::StaleFrames => "stale-frames",
            Bug::CutNotZeroed => "cut-not-zeroed",
            Bug::ReadPastWritten => "read-past-written",
            Bug::DerivedPastSynced => "derived-past-synced",
            Bug::KeyedBeforeUnits => "keyed-before-units",
            Bug::FloorIgnored => "floor-ignored",
            Bug::ImageUnsynced => "image-unsynced",
            Bug::ForgetfulVotes => "forgetful-votes",
            Bug::LeaderRestored => "leader-restored",
            Bug::AcknowledgeBeforeQuorum => "acknowledge-before-quorum",
            Bug::ServeBeforeLead => "serve-before-lead",
            Bug::DiscardedIsNever => "discarded-is-never",
            Bug::CommitOffByOne => "commit-off-by-one",
            Bug::OffsetBackwards => "offset-backwards",
            Bug::StaleRead => "stale-read",
            Bug::TimerEarly => "timer-early",
            Bug::TimerTwice => "timer-twice",
            Bug::LockTwice => "lock-twice",
            Bug::ForwardedTwice => "forwarded-twice",
            Bug::FollowerMovesOffset => "follower-moves-offset",
            Bug::UnknownIsFailure => "unknown-is-failure",
            Bug::HalfVisible => "half-visible",
            Bug::CommitTwice => "commit-twice",
            Bug::RollbackForgotten => "rollback-forgotten",
            Bug::KeysNotHeld => "keys-not-held",
            Bug::KeysOfOtherTermsForgotten => "keys-of-other-terms-forgotten",
            Bug::RecallForgotten => "recall-forgotten",
            Bug::ResetUndone => "reset-undone",
            Bug::PoppedTwice => "popped-twice",
            Bug::AckOfAnother => "ack-of-another",
            Bug::DeadLetterTwice => "dead-letter-twice",
            Bug::DeadLetterCopyTwice => "dead-letter-copy-twice",
        }
    }
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug on this thread, or takes the one back that is there. A simulation has no other thread, and tests beside
/// it must not suffer.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether to make this mistake here.
#[cfg(feature = "planted-bugs")]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether to make this mistake here: never.
#[cfg(not(feature = "planted-bugs"))]
pub const fn is(_: Bug) -> bool {
    false
}

//! What clients asked and were answered, in one order: each invocation and each end has a number.
//!
//! An operation ends `ok`, `fail` (certainly nothing happened) or `info` (nobody knows): a time-out or a lost answer is
//! `info`, and so is whatever was never answered.

use std::collections::{BTreeMap, BTreeSet};

/// A number in the order of all invocations and ends.
pub type Moment = u64;

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End<T> {
    /// It was done, with this result, at this moment.
    Ok(T, Moment),
    /// Certainly nothing happened.
    Fail,
    /// It may or may not have happened, or happen yet.
    Info,
}

impl<T> End<T> {
    /// Whether it was done.
    pub fn is_ok(&self) -> bool {
        matches!(self, End::Ok(..))
    }
}

/// How often a value is sent, and what is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// Once.
    One,
    /// Any number of times, under one unique key where idempotent send is on: it is one message.
    Recognised,
    /// Any number of times: so often it may be there.
    Any,
}

/// A value appended to a queue; the result is its offset.
#[derive(Clone, Debug)]
pub struct Append {
    /// The queue.
    pub queue: u32,
    /// The value, of which there is no other.
    pub value: u64,
    /// How often the client may have sent it.
    pub copies: Copies,
    /// When it was asked for.
    pub invoked: Moment,
    /// What became of it.
    pub end: End<u64>,
}

/// A value that is to appear in a queue after a delay; the result tells nothing.
#[derive(Clone, Debug)]
pub struct Delayed {
    /// The value.
    pub value: u64,
    /// Not to be seen before this simulated time.
    pub due_ms: u64,
    /// What became of it.
    pub end: End<()>,
    /// Whether it was taken back.
    pub recall: Recall,
}

/// What became of the wish that a delayed message is never seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recall {
    /// Nobody wished it.
    NotAsked,
    /// A broker has answered that it is recalled.
    Done,
    /// A broker has answered that it is visible.
    TooLate,
    /// Nobody knows.
    Unknown,
}

/// How a group is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It was told an offset.
    Reset,
    /// It was told a group, to go on where that one is.
    Cloned,
}

/// A consumer offset that was read behind the answer that its group was moved, by whoever had it before.
#[derive(Clone, Debug)]
pub struct Move {
    /// The group, which was moved once.
    pub group: String,
    /// How.
    pub how: Moved,
    /// Where to.
    pub to: u64,
    /// What was read.
    pub read: u64,
}

/// A value in a half message, and all that was said about its transaction.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// The value.
    pub value: u64,
    /// What became of the half message.
    pub half: End<()>,
    /// From this simulated time on somebody may say that it is committed; `None`: nobody ever may.
    pub committed_ms: Option<u64>,
    /// A broker has answered that it is committed.
    pub is_committed: bool,
    /// A broker has answered that it is rolled back.
    pub is_rolled_back: bool,
}

/// One pull of one reader, in the order of its pulls of that queue.
#[derive(Clone, Debug)]
pub struct Pull {
    /// Who reads.
    pub reader: usize,
    /// The queue.
    pub queue: u32,
    /// The offset asked for.
    pub from: u64,
    /// What was shown: offsets and values.
    pub shown: Vec<(u64, u64)>,
    /// The answer: that offset does not exist, go on there.
    pub moved: Option<u64>,
}

/// An operation on a register.
#[derive(Clone, Debug)]
pub struct Access {
    /// Which register.
    pub register: u32,
    /// `Some`: this value, of which there is no other, is stored; `None`: the result is the value read.
    pub stores: Option<u64>,
    /// When it was asked for.
    pub invoked: Moment,
    /// What became of it.
    pub end: End<u64>,
}

/// A consumer offset that was read, which is stored one way only: each time a larger one, by another client.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// What was read.
    pub value: u64,
    /// When it was asked for.
    pub invoked: Moment,
    /// When it was answered.
    pub ended: Moment,
}

/// A queue lock that was granted, in simulated time.
#[derive(Clone, Debug)]
pub struct Grant {
    /// To whom.
    pub client: String,
    /// When it was asked for: the lease begins then or later.
    pub invoked_ms: u64,
    /// When it was answered: the lease has begun.
    pub answered_ms: u64,
    /// When the client began to give it back.
    pub left_ms: u64,
}

/// A popped message, by group time: its lease, and what its holder said.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The queue.
    pub queue: u32,
    /// The message's place in it.
    pub offset: u64,
    /// What it says.
    pub value: u64,
    /// When it was given: by this the lease is known.
    pub pop_ms: i64,
    /// Nobody else may have the message before.
    pub ends_ms: i64,
    /// When it was asked for.
    pub invoked: Moment,
    /// When its holder knew of it.
    pub answered: Moment,
    /// What its holder said of it.
    pub acks: Vec<Ack>,
}

/// An acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// When it was asked for.
    pub invoked: Moment,
    /// What became of it.
    pub end: End<()>,
}

/// A message that was given up by a group.
#[derive(Clone, Debug)]
pub struct GivenUp {
    /// What it says.
    pub value: u64,
    /// What became of that.
    pub end: End<()>,
}

/// What a replica holds of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The first offset that exists.
    pub first: u64,
    /// The values from there on.
    pub values: Vec<u64>,
}

impl Held {
    /// The next offset.
    pub fn end(&self) -> u64 {
        self.first + self.values.len() as u64
    }

    /// What stands at an offset.
    pub fn at(&self, offset: u64) -> Option<u64> {
        let at = offset.checked_sub(self.first)?;
        self.values.get(at as usize).copied()
    }
}

/// All that a judge needs of a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The last moment.
    pub now: Moment,
    /// Appends.
    pub appends: Vec<Append>,
    /// Every value that the log has held among the appends, and the index of its entry, whether or not retention has let go of
    /// it since.
    pub stored: Vec<(u64, u64)>,
    /// Delayed messages.
    pub delayed: Vec<Delayed>,
    /// Transactions.
    pub transactions: Vec<Transaction>,
    /// Offsets of groups that were moved.
    pub moves: Vec<Move>,
    /// When a value of a delayed or half message was seen first, in simulated time.
    pub seen_ms: BTreeMap<u64, u64>,
    /// Pulls.
    pub pulls: Vec<Pull>,
    /// Consumer offsets stored and read.
    pub accesses: Vec<Access>,
    /// Consumer offsets read that are stored one way.
    pub sightings: Vec<Sighting>,
    /// Queue locks granted.
    pub grants: Vec<Grant>,
    /// Popped messages.
    pub leases: Vec<Lease>,
    /// Messages given up, each as often as it was.
    pub given_up: Vec<GivenUp>,
    /// In the end somebody has popped until nothing was left.
    pub is_drained: bool,
    /// How long a queue lock holds.
    pub lease_ms: u64,
    /// At the end: what each replica holds of each queue. The last queue is that of the delayed.
    pub replicas: BTreeMap<String, Vec<Held>>,
    /// At the end: the dead letters of the group that gives up, on each replica.
    pub dead_letters: BTreeMap<String, Held>,
    /// Whether retention lets go what is old.
    pub is_trimmed: bool,
    /// Whether wall clocks were left alone.
    pub clocks_agree: bool,
}

impl History {
    /// The next moment.
    pub fn moment(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// How many appends were acknowledged.
    pub fn acknowledged(&self) -> usize {
        let appends = self.appends.iter().filter(|append| append.end.is_ok()).count();
        appends + self.delayed.iter().filter(|delayed| delayed.end.is_ok()).count()
    }

    /// How many operations there were of each kind that succeeded.
    pub fn operations(&self) -> BTreeMap<&'static str, u64> {
        let again: BTreeSet<u64> =
            self.appends.iter().filter(|append| append.copies != Copies::One).map(|append| append.value).collect();
        let sent = self.appends.iter().filter(|append| append.end.is_ok());
        let (one, several): (Vec<&Append>, Vec<&Append>) = sent.partition(|append| append.copies == Copies::One);
        let recalled = |which: Recall| self.delayed.iter().filter(|delayed| delayed.recall == which).count();
        let moved = |how: Moved| {
            let groups = self.moves.iter().filter(|moved| moved.how == how).map(|moved| &moved.group);
            groups.collect::<BTreeSet<_>>().len()
        };
        let accesses = self.accesses.iter().filter(|access| access.end.is_ok());
        let (stored, read): (Vec<&Access>, Vec<&Access>) = accesses.partition(|access| access.stores.is_some());
        let acks = self.leases.iter().flat_map(|lease| &lease.acks);
        let kinds = [
            ("send", one.len() + again.len().min(several.len())),
            ("send-again", several.len().saturating_sub(again.len())),
            ("delayed-send", self.delayed.iter().filter(|delayed| delayed.end.is_ok()).count()),
            ("recall", recalled(Recall::Done)),
            ("late-recall", recalled(Recall::TooLate)),
            ("transaction", self.transactions.iter().filter(|transaction| transaction.half.is_ok()).count()),
            ("pull", self.pulls.len()),
            ("offset-stored", stored.len()),
            ("offset-read", read.len() + self.sightings.len()),
            ("group-reset", moved(Moved::Reset)),
            ("group-cloned", moved(Moved::Cloned)),
            ("lock", self.grants.len()),
            ("given-up", self.given_up.iter().filter(|given_up| given_up.end.is_ok()).count()),
            ("pop", self.leases.len()),
            ("ack", acks.filter(|ack| ack.end.is_ok()).count()),
        ];
        kinds.into_iter().map(|(kind, count)| (kind, count as u64)).collect()
    }
}

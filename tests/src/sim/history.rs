//! What clients asked and were answered, in one order: each invocation and each end has a number.
//!
//! An operation ends `ok`, `fail` (certainly nothing happened) or `info` (nobody knows): a time-out or a lost answer is
//! `info`, and so is whatever was never answered.

use std::collections::BTreeMap;

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

/// A value appended to a queue; the result is its offset.
#[derive(Clone, Debug)]
pub struct Append {
    /// The queue.
    pub queue: u32,
    /// The value, of which there is no other.
    pub value: u64,
    /// Whether the client may have sent it more than once.
    pub repeats: bool,
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

/// All that a judge needs of a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The last moment.
    pub now: Moment,
    /// Appends.
    pub appends: Vec<Append>,
    /// Delayed messages.
    pub delayed: Vec<Delayed>,
    /// When a value of a delayed message was seen first, in simulated time.
    pub seen_ms: BTreeMap<u64, u64>,
    /// Pulls.
    pub pulls: Vec<Pull>,
    /// Consumer offsets stored and read.
    pub accesses: Vec<Access>,
    /// At the end: what each replica holds, the values of each queue by offset. The last queue is that of the delayed.
    pub replicas: BTreeMap<String, Vec<Vec<u64>>>,
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
        let appends = self.appends.iter().filter(|append| matches!(append.end, End::Ok(..))).count();
        appends + self.delayed.iter().filter(|delayed| matches!(delayed.end, End::Ok(..))).count()
    }

    /// How many operations were asked for.
    pub fn operations(&self) -> usize {
        self.appends.len() + self.delayed.len() + self.pulls.len() + self.accesses.len()
    }
}

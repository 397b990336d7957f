//! What was asked of a cluster and what it answered, in Jepsen's form.
//!
//! - [`edn`]: the notation.
//! - [`operation`]: one line of a history.
//! - [`recorder`]: writes a history while a run goes on.
//! - [`faults`]: the nemesis operations of a history as intervals with evidence.
//!
//! A [`History`] is complete in itself: checkers read nothing else. Its order is the order of its lines, and that is what
//! "before" means: an operation whose completion stands above another's invocation was over before the other began.

pub mod edn;
pub mod faults;
pub mod operation;
pub mod recorder;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead};

use operation::{Kind, Operation, Process};

/// Position of an operation in its history.
pub type Position = u32;

/// The position of what never completed: later than everything.
pub const NEVER: Position = Position::MAX;

/// Operations in the order in which they were recorded, each invocation paired with its completion.
#[derive(Debug, Default)]
pub struct History {
    operations: Vec<Operation>,
    /// Of each invocation the position of its completion, or [`NEVER`].
    completions: Vec<Position>,
    torn: bool,
}

/// Why something is no history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

/// How a call ended, as far as its caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It happened.
    Ok,
    /// It did not happen and never will.
    Fail,
    /// It may have happened, may happen later, or never.
    Info,
}

/// A client's operation from invocation to completion.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What was asked.
    pub invocation: &'a Operation,
    /// What was answered; `None` if the history ends before that.
    pub completion: Option<&'a Operation>,
    /// Where it was invoked.
    pub start: Position,
    /// Where it completed, or [`NEVER`]. An `:info` leaves it open: see [`Call::end`].
    pub completed: Position,
}

impl Call<'_> {
    /// How it ended.
    pub fn outcome(&self) -> Outcome {
        match self.completion.map(|completion| completion.kind) {
            Some(Kind::Ok) => Outcome::Ok,
            Some(Kind::Fail) => Outcome::Fail,
            _ => Outcome::Info,
        }
    }

    /// From where on it cannot take effect any more: [`NEVER`] when the outcome is unknown.
    pub fn end(&self) -> Position {
        if self.outcome() == Outcome::Info { NEVER } else { self.completed }
    }
}

impl History {
    /// Pairs what was recorded. An error if it could not have been recorded by a sound harness: positions or times that
    /// go back, two operations of one process at once, a completion of nothing, a process that goes on after `:info`.
    pub fn new(operations: Vec<Operation>) -> Result<History, Malformed> {
        let mut completions = vec![NEVER; operations.len()];
        let mut processes: BTreeMap<u64, State> = BTreeMap::new();
        let mut before: Option<&Operation> = None;
        for (position, operation) in (0..).zip(&operations) {
            let malformed = |why: &str| Err(Malformed(format!("{why}: {}", operation.summary())));
            if before.is_some_and(|before| before.index >= operation.index || before.time > operation.time) {
                return malformed("out of order");
            }
            before = Some(operation);
            let Process::Client(process) = operation.process else { continue };
            let state = processes.entry(process).or_insert(State::Idle);
            *state = match (*state, operation.kind) {
                (State::Retired, _) => return malformed("a process goes on after :info"),
                (State::Idle, Kind::Invoke) => State::Busy(position),
                (State::Idle, _) => return malformed("a completion without an invocation"),
                (State::Busy(_), Kind::Invoke) => return malformed("a process invokes twice"),
                (State::Busy(invoked), kind) => {
                    if operations[invoked as usize].f != operation.f {
                        return malformed("a completion of something else");
                    }
                    completions[invoked as usize] = position;
                    if kind == Kind::Info { State::Retired } else { State::Idle }
                }
            };
        }
        Ok(History { operations, completions, torn: false })
    }

    /// Reads one operation a line. A last line that a crash cut short is dropped, see [`History::is_torn`].
    pub fn read(mut lines: impl BufRead) -> io::Result<History> {
        let mut parser = edn::Parser::default();
        let mut operations = Vec::new();
        let mut line = String::new();
        let mut torn = false;
        for number in 1_u64.. {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                break;
            }
            if line.trim().is_empty() {
                continue;
            }
            match parser.parse(&line).map_err(Malformed).and_then(Operation::from_edn) {
                Ok(operation) => operations.push(operation),
                Err(_) if !line.ends_with('\n') => torn = true,
                Err(error) => return Err(io::Error::other(format!("line {number}: {error}"))),
            }
        }
        let history = History::new(operations).map_err(io::Error::other)?;
        Ok(History { torn, ..history })
    }

    /// Whether the last line was cut short: the harness itself was killed.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Every operation, in order.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The operation at a position.
    pub fn at(&self, position: Position) -> &Operation {
        &self.operations[position as usize]
    }

    /// What clients did, in order of invocation.
    pub fn calls(&self) -> impl Iterator<Item = Call<'_>> {
        (0..).zip(&self.operations).filter_map(|(start, invocation)| {
            let client = matches!(invocation.process, Process::Client(_));
            (client && invocation.kind == Kind::Invoke).then(|| {
                let completed = self.completions[start as usize];
                let completion = (completed != NEVER).then(|| self.at(completed));
                Call { invocation, completion, start, completed }
            })
        })
    }

    /// The calls of one function, in order of invocation.
    pub fn calls_of<'a>(&'a self, f: &'a str) -> impl Iterator<Item = Call<'a>> {
        self.calls().filter(move |call| &*call.invocation.f == f)
    }

    /// When the last operation was recorded, in nanoseconds.
    pub fn end_time(&self) -> u64 {
        self.operations.last().map_or(0, |last| last.time)
    }
}

#[derive(Clone, Copy)]
enum State {
    Idle,
    Busy(Position),
    Retired,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> io::Result<History> {
        History::read(text.as_bytes())
    }

    fn refused(text: &str, why: &str) {
        let error = read(text).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }

    const INVOKE: &str = "{:index 0, :type :invoke, :process 3, :time 5, :f :send, :value [[:send 2 451]]}\n";

    #[test]
    fn an_invocation_meets_its_completion() {
        let ok = "{:index 1, :type :ok, :process 3, :time 6, :f :send, :value [[:send 2 [8812 451]]], :node \"n1\"}\n";
        let history = read(&format!("{INVOKE}{ok}")).unwrap();
        let call = history.calls().next().unwrap();
        assert_eq!((call.start, call.completed, call.outcome()), (0, 1, Outcome::Ok));
        assert_eq!(call.completion.unwrap().extra("node").and_then(edn::Edn::as_str), Some("n1"));
    }

    #[test]
    fn what_never_completed_is_unknown() {
        let history = read(INVOKE).unwrap();
        let call = history.calls().next().unwrap();
        assert_eq!((call.outcome(), call.end()), (Outcome::Info, NEVER));
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_told() {
        let history = read(&format!("{INVOKE}{{:index 1, :type :ok, :pro")).unwrap();
        assert!(history.is_torn());
        assert_eq!(history.operations().len(), 1);
        refused(&format!("{{:index\n{INVOKE}"), "line 1");
    }

    #[test]
    fn what_no_sound_harness_records_is_refused() {
        let line = |index: u32, kind: &str, time: u32, f: &str| {
            format!("{{:index {index}, :type :{kind}, :process 3, :time {time}, :f :{f}, :value nil}}\n")
        };
        refused(&line(0, "ok", 0, "send"), "a completion without an invocation");
        refused(&(line(0, "invoke", 0, "send") + &line(1, "invoke", 1, "send")), "a process invokes twice");
        refused(&(line(0, "invoke", 0, "send") + &line(1, "ok", 1, "poll")), "a completion of something else");
        refused(&(line(1, "invoke", 0, "send") + &line(1, "ok", 1, "send")), "out of order");
        refused(&(line(0, "invoke", 5, "send") + &line(1, "ok", 4, "send")), "out of order");
        let retired = line(0, "invoke", 0, "send") + &line(1, "info", 1, "send") + &line(2, "invoke", 2, "send");
        refused(&retired, "a process goes on after :info");
    }
}

//! Random histories of a broker that keeps the contract, and what checkers say when one thing in them is changed.
//!
//! A history is drawn from a list of choices, so that a failing one shrinks. Between invocation and completion each
//! operation takes effect once, or never; one of unknown outcome may take effect long after it ended `:info`.

mod consumption;
mod log;
mod registers;
mod replicas;

use proptest::prelude::*;

use super::log::Log;
use super::testing::Check;
use super::{Bounds, Evidence, Validity, Verdict};
use crate::history::History;
use crate::history::edn::Edn;
use crate::history::operation::{Kind, Operation, Process};

const CLIENTS: usize = 4;
const QUEUES: usize = 2;
const NODES: [&str; 2] = ["n1", "n2"];

/// One draw: which client goes on, and how.
type Choice = (usize, u8);

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    prop::collection::vec((0..CLIENTS, any::<u8>()), 0..300)
}

#[derive(Default)]
struct Run {
    operations: Vec<Operation>,
    processes: u64,
}

impl Run {
    fn record(&mut self, process: u64, kind: Kind, f: &str, value: Edn) -> &mut Operation {
        let index = self.operations.len() as u64;
        let time = index * 1000;
        let process = Process::Client(process);
        let operation = Operation { index, kind, process, time, f: f.into(), value, extra: Vec::new() };
        self.operations.push(operation);
        let last = self.operations.len() - 1;
        &mut self.operations[last]
    }

    fn take_process(&mut self) -> u64 {
        self.processes += 1;
        self.processes - 1
    }
}

fn send(queue: usize, value: i64, offset: Option<usize>) -> Edn {
    let told = offset.map_or(Edn::Int(value), |offset| Edn::vector([Edn::from(offset), value.into()]));
    Edn::vector([Edn::vector([Edn::keyword("send"), queue.into(), told])])
}

fn judged(check: Check, operations: Vec<Operation>) -> Option<Verdict> {
    let history = History::new(operations).expect("a sound history");
    let log = Log::of(&history).expect("a sound log");
    check(&Evidence { history: &history, log: &log, bounds: &Bounds::default() }).expect("sound operations")
}

fn is_valid(check: Check, operations: &[Operation]) -> Result<(), TestCaseError> {
    if let Some(verdict) = judged(check, operations.to_vec()) {
        prop_assert_eq!(verdict.validity(), Validity::Valid, "{}", verdict.to_edn());
    }
    Ok(())
}

fn is_caught(check: Check, operations: Vec<Operation>) -> Result<(), TestCaseError> {
    let verdict = judged(check, operations);
    prop_assert!(verdict.is_some_and(|verdict| verdict.validity() == Validity::Invalid));
    Ok(())
}

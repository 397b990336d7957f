//! Linearizability of small objects: the search of Wing and Gong with the memoisation of Lowe.
//!
//! ("Testing for linearizability", Concurrency and Computation 2017.) An object is checked by itself, since a history is
//! linearizable exactly if it is so for each object: that is what keeps the search small. At each step one of the
//! operations that nothing else precedes takes effect; what was seen before, the same operations done and the same state,
//! is not tried again. A read of what is there is taken at once: no order is lost by that.
//!
//! An operation without a known outcome may take effect at any time after its invocation, or never. Hundreds of them may be
//! open at once, and trying all of them everywhere takes forever; so one is tried only where it explains something, which
//! the model knows: a write, for instance, just before a read of its value.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash};

use crate::history::{NEVER, Position};

/// What an object does, one operation after the other.
pub trait Model {
    /// What it holds.
    type State: Clone + Eq + Hash + Debug;
    /// What is asked of it, and what it answered.
    type Operation;

    /// What it holds when nothing has happened yet.
    fn initial(&self) -> Self::State;

    /// What it holds after the operation; `None` if it would not have answered that.
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;

    /// Whether the operation never changes anything.
    fn is_read(&self, operation: &Self::Operation) -> bool;

    /// Whether an operation of unknown outcome is worth trying in this state, when one of `next` is about to answer and
    /// `others` are of unknown outcome too. Saying no too often makes the search miss an order.
    fn explains(
        &self,
        state: &Self::State,
        unknown: &Self::Operation,
        next: &[&Self::Operation],
        others: &[&Self::Operation],
    ) -> bool;
}

/// An operation of one object and when it can have taken effect.
#[derive(Clone, Debug)]
pub struct Interval<O> {
    /// After this.
    pub start: Position,
    /// Before this; [`NEVER`] if its outcome is unknown, and then maybe not at all.
    pub end: Position,
    /// What.
    pub operation: O,
}

/// The end of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search<S> {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none. At the deepest point reached, in this state, none of these operations was possible.
    Stuck {
        /// What the object holds there.
        state: S,
        /// Starts of the operations that had to be next.
        next: Vec<Position>,
    },
    /// Not decided within the steps allowed.
    Exhausted,
}

/// Searches for an order; `steps` bounds how many operations are tried.
pub fn search<M: Model>(model: &M, mut operations: Vec<Interval<M::Operation>>, mut steps: u64) -> Search<M::State> {
    operations.sort_by_key(|operation| operation.start);
    let owed = operations.iter().filter(|operation| operation.end != NEVER).count();
    let mut done = Done(vec![0; operations.len().div_ceil(64)]);
    let mut seen: HashSet<(Done, M::State), BuildHasherDefault<DefaultHasher>> = HashSet::default();
    let mut path: Vec<Frame<M::State>> = vec![Frame::new(model, &operations, &done, model.initial(), None)];
    let (mut depth, mut deepest) = (0, 0);
    let mut stuck = (path[0].state.clone(), path[0].starts(&operations));
    while let Some(frame) = path.last_mut() {
        if depth == owed {
            return Search::Linearizable;
        }
        let Some(chosen) = frame.untried.pop() else {
            if let Some(undone) = path.pop().and_then(|frame| frame.chosen) {
                done.unset(undone);
                depth -= usize::from(operations[undone].end != NEVER);
            }
            continue;
        };
        if steps == 0 {
            return Search::Exhausted;
        }
        steps -= 1;
        let Some(state) = model.step(&frame.state, &operations[chosen].operation) else { continue };
        done.set(chosen);
        if !seen.insert((done.clone(), state.clone())) {
            done.unset(chosen);
            continue;
        }
        depth += usize::from(operations[chosen].end != NEVER);
        path.push(Frame::new(model, &operations, &done, state, Some(chosen)));
        if depth > deepest {
            deepest = depth;
            let frame = &path[path.len() - 1];
            stuck = (frame.state.clone(), frame.starts(&operations));
        }
    }
    Search::Stuck { state: stuck.0, next: stuck.1 }
}

/// One step of the path under search.
struct Frame<S> {
    state: S,
    /// Which operation led here.
    chosen: Option<usize>,
    /// What can be next, the last one first.
    untried: Vec<usize>,
}

impl<S> Frame<S> {
    fn new<M: Model<State = S>>(
        model: &M,
        operations: &[Interval<M::Operation>],
        done: &Done,
        state: S,
        chosen: Option<usize>,
    ) -> Frame<S> {
        let (mut owed, mut unknown) = (Vec::new(), Vec::new());
        let mut first_end = NEVER;
        for (k, operation) in operations.iter().enumerate().skip(done.full_words() * 64) {
            if operation.start > first_end {
                break;
            }
            if !done.has(k) {
                first_end = first_end.min(operation.end);
                if operation.end == NEVER { unknown.push(k) } else { owed.push(k) }
            }
        }
        owed.sort_by_key(|k| std::cmp::Reverse(operations[*k].end));
        let of = |k: &usize| &operations[*k].operation;
        let explained = |k: &&usize| model.is_read(of(k)) && model.step(&state, of(k)).is_some();
        if let Some(read) = owed.iter().find(explained) {
            return Frame { state, chosen, untried: vec![*read] };
        }
        let (next, others): (Vec<_>, Vec<_>) = (owed.iter().map(of).collect(), unknown.iter().map(of).collect());
        unknown.retain(|k| model.explains(&state, of(k), &next, &others));
        // What surely happened is tried first, and of that what ended first.
        let untried = [unknown, owed].concat();
        Frame { state, chosen, untried }
    }

    fn starts<O>(&self, operations: &[Interval<O>]) -> Vec<Position> {
        let owed = self.untried.iter().rev().map(|k| &operations[*k]).filter(|operation| operation.end != NEVER);
        owed.map(|operation| operation.start).collect()
    }
}

/// Which operations have taken effect.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Done(Vec<u64>);

impl Done {
    fn set(&mut self, k: usize) {
        self.0[k / 64] |= 1 << (k % 64);
    }

    fn unset(&mut self, k: usize) {
        self.0[k / 64] &= !(1 << (k % 64));
    }

    fn has(&self, k: usize) -> bool {
        self.0[k / 64] & (1 << (k % 64)) != 0
    }

    /// How many words at the beginning have nothing left to do.
    fn full_words(&self) -> usize {
        self.0.iter().take_while(|word| **word == u64::MAX).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A register with compare-and-set.
    struct Register;

    #[derive(Clone, Debug)]
    enum Op {
        Read(u8),
        Write(u8),
        Cas(u8, u8),
    }

    impl Model for Register {
        type State = u8;
        type Operation = Op;

        fn initial(&self) -> u8 {
            0
        }

        fn step(&self, state: &u8, operation: &Op) -> Option<u8> {
            match *operation {
                Op::Read(value) => (value == *state).then_some(value),
                Op::Write(value) => Some(value),
                Op::Cas(old, new) => (old == *state).then_some(new),
            }
        }

        fn is_read(&self, operation: &Op) -> bool {
            matches!(operation, Op::Read(_))
        }

        fn explains(&self, _: &u8, _: &Op, _: &[&Op], _: &[&Op]) -> bool {
            true
        }
    }

    fn searched(operations: &[(Position, Position, Op)]) -> Search<u8> {
        let interval =
            |(start, end, operation): &(_, _, Op)| Interval { start: *start, end: *end, operation: operation.clone() };
        search(&Register, operations.iter().map(interval).collect(), 100_000)
    }

    #[test]
    fn concurrent_operations_take_effect_in_either_order() {
        use Op::*;
        assert_eq!(searched(&[(0, 3, Write(1)), (1, 2, Read(0)), (4, 5, Read(1))]), Search::Linearizable);
        assert_eq!(searched(&[(0, 3, Write(1)), (1, 2, Read(1)), (4, 5, Read(1))]), Search::Linearizable);
        assert_eq!(
            searched(&[(0, 1, Write(1)), (2, 3, Read(0))]),
            Search::Stuck { state: 1, next: vec![2] },
            "a stale read"
        );
        let back = [(0, 7, Write(1)), (1, 2, Read(1)), (3, 4, Read(0))];
        assert!(matches!(searched(&back), Search::Stuck { .. }), "seen, then not");
    }

    #[test]
    fn the_unknown_may_happen_late_or_never() {
        use Op::*;
        assert_eq!(searched(&[(0, NEVER, Write(1)), (2, 3, Read(0)), (4, 5, Read(1))]), Search::Linearizable);
        assert_eq!(searched(&[(0, NEVER, Cas(7, 1)), (2, 3, Read(0))]), Search::Linearizable);
        let twice = [(0, NEVER, Write(1)), (1, 2, Read(1)), (3, 4, Write(2)), (5, 6, Read(2)), (7, 8, Read(1))];
        assert!(matches!(searched(&twice), Search::Stuck { .. }), "once at most");
    }

    /// A write of what is there already may be needed later, for a second read of it.
    #[test]
    fn a_write_that_changes_nothing_now_is_not_wasted() {
        use Op::*;
        let operations = [(0, 1, Write(1)), (2, 9, Write(1)), (3, 4, Write(2)), (5, 6, Read(2)), (10, 11, Read(1))];
        assert_eq!(searched(&operations), Search::Linearizable);
    }

    #[test]
    fn a_search_that_takes_too_long_is_no_verdict() {
        let many = (0..40).map(|k| (k, NEVER, Op::Write(k as u8 + 1)));
        let all: Vec<_> = many.chain([(50, 51, Op::Read(99))]).collect();
        assert_eq!(searched(&all), Search::Exhausted);
    }

    /// Every order of the operations, tried one by one.
    fn brute_force(state: u8, left: &[(Position, Position, Op)]) -> bool {
        let first_end = left.iter().map(|operation| operation.1).min().unwrap_or(NEVER);
        left.iter().all(|operation| operation.1 == NEVER)
            || left.iter().enumerate().filter(|(_, operation)| operation.0 < first_end).any(|(k, operation)| {
                let rest: Vec<_> = [&left[..k], &left[k + 1..]].concat();
                Register.step(&state, &operation.2).is_some_and(|state| brute_force(state, &rest))
            })
    }

    fn any_operation() -> impl Strategy<Value = (Position, Position, Op)> {
        let op = prop_oneof![
            (0..3_u8).prop_map(Op::Read),
            (0..3_u8).prop_map(Op::Write),
            (0..3_u8, 0..3_u8).prop_map(|(old, new)| Op::Cas(old, new)),
        ];
        (0..20_u32, prop_oneof![4 => (1..12_u32).prop_map(Some), 1 => Just(None)], op)
            .prop_map(|(start, length, op)| (2 * start, length.map_or(NEVER, |length| 2 * (start + length) + 1), op))
    }

    proptest! {
        #[test]
        fn the_search_agrees_with_brute_force(operations in prop::collection::vec(any_operation(), 0..8)) {
            prop_assert_eq!(searched(&operations) == Search::Linearizable, brute_force(0, &operations));
        }
    }
}

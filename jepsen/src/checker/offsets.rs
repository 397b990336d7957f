//! Clause "offsets": the consumer offset of each group on each queue is a linearizable register.
//!
//! A two-way update sets it. A one-way update, which is never answered, may be lost; it moves the offset back only if it
//! comes from the client that wrote last. Each register is searched by itself (see [`super::linearizable`]).
//!
//! - `nonlinearizable`: no order of the operations explains the answers.
//! - `nonmonotonic-offset`: a query answered less than an earlier one, though nobody ever asked for a step back. Found in
//!   O(n log n), also where the search gives up.
//! - `unexpected`: an offset that nobody had set.
//!
//! A run that declares its replicas asks for each register that was set once more at the end; without that the verdict is
//! unknown.

use std::collections::BTreeMap;

use super::linearizable::{Interval, Model, Search, search};
use super::log::malformed;
use super::{Checked, Evidence, Verdict};
use crate::history::edn::Edn;
use crate::history::{Call, Malformed, Outcome, Position};

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let mut registers: BTreeMap<String, Vec<Access<'_>>> = BTreeMap::new();
    for call in evidence.history.calls() {
        if let Some((key, access)) = access(call)? {
            registers.entry(key).or_default().push(access);
        }
    }
    if registers.is_empty() {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    for (key, accesses) in &registers {
        if !evidence.bounds.nodes.is_empty() && !is_asked_at_the_end(accesses) {
            verdict.unknown(format!("{key} was not asked for after its last change"));
        }
        unexpected(accesses, &mut verdict);
        moved_back(accesses, &mut verdict);
        match linearized(accesses, evidence.bounds.search_steps) {
            Search::Linearizable => {}
            Search::Exhausted => verdict.unknown(format!("{key}: no verdict within the steps allowed")),
            Search::Stuck { state, next } => verdict.anomaly("nonlinearizable", || {
                let holds = state.map(|(offset, _)| offset);
                let next = next.iter().map(|start| show(evidence, *start));
                Edn::map([("key", key.as_str().into()), ("holds", holds.into()), ("next", Edn::vector(next))])
            }),
        }
    }
    verdict.figure("key-count", registers.len());
    verdict.figure("operation-count", registers.values().map(Vec::len).sum::<usize>());
    Ok(Some(verdict))
}

struct Access<'a> {
    call: Call<'a>,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Query(Option<u64>),
    Update { offset: u64, client: String, one_way: bool },
}

/// What a call does to which register; nothing if it certainly did nothing.
fn access(call: Call<'_>) -> Result<Option<(String, Access<'_>)>, Malformed> {
    let query = match &*call.invocation.f {
        "query-offset" => true,
        "update-offset" => false,
        _ => return Ok(None),
    };
    let told = match (query, call.outcome(), call.completion) {
        (true, Outcome::Ok, Some(completion)) => completion,
        (true, ..) | (false, Outcome::Fail, _) => return Ok(None),
        (false, ..) => call.invocation,
    };
    let (key, offset) = match told.value.as_vector() {
        Some([key, Edn::Nil]) if query => (key, None),
        Some([key, Edn::Int(offset)]) if *offset >= 0 => (key, Some(*offset as u64)),
        _ => return Err(malformed(told, "[[group queue] offset]")),
    };
    let what = match offset {
        Some(offset) if !query => What::Update {
            offset,
            client: call.invocation.extra("client").and_then(Edn::as_str).unwrap_or_default().to_owned(),
            one_way: call.invocation.extra("one-way").and_then(Edn::as_bool) == Some(true),
        },
        told => What::Query(told),
    };
    Ok(Some((key.to_string(), Access { call, what })))
}

/// Whether an answer was given to somebody who asked after all that was acknowledged.
fn is_asked_at_the_end(accesses: &[Access<'_>]) -> bool {
    let of = |is_query| accesses.iter().filter(move |access| matches!(access.what, What::Query(_)) == is_query);
    let acknowledged = of(false).filter(|access| access.call.outcome() == Outcome::Ok);
    let last = acknowledged.map(|access| access.call.end()).max();
    let asked = of(true).map(|access| access.call.start).max();
    last.is_none() || asked > last
}

fn linearized(accesses: &[Access<'_>], steps: u64) -> Search<Option<(u64, String)>> {
    let interval = |access: &Access<'_>| Interval {
        start: access.call.start,
        end: access.call.end(),
        operation: access.what.clone(),
    };
    let intervals = || accesses.iter().map(interval).collect();
    let one_way = accesses.iter().any(|access| matches!(access.what, What::Update { one_way: true, .. }));
    let mut decided = search(&ConsumerOffset { unseen: Unseen::None }, intervals(), steps);
    for unseen in [Unseen::Enabling, Unseen::All] {
        if one_way && matches!(decided, Search::Stuck { .. }) {
            decided = search(&ConsumerOffset { unseen }, intervals(), steps);
        }
    }
    decided
}

/// The register as the broker keeps it: the offset, and who wrote it.
struct ConsumerOffset {
    unseen: Unseen,
}

/// Which updates of unknown outcome are tried besides those that a query tells of.
///
/// Alone among one-way updates, one that nobody sees may matter: it lowers the offset, or makes its client the last writer,
/// and so lets a one-way update in that would have been late. Trying all of them takes long, so that is tried last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unseen {
    None,
    /// One before each one-way update that a query tells of.
    Enabling,
    All,
}

impl Model for ConsumerOffset {
    type State = Option<(u64, String)>;
    type Operation = What;

    fn initial(&self) -> Self::State {
        None
    }

    fn step(&self, state: &Self::State, operation: &What) -> Option<Self::State> {
        match operation {
            What::Query(told) => (state.as_ref().map(|(offset, _)| *offset) == *told).then(|| state.clone()),
            What::Update { offset, client, one_way } => {
                let late = *one_way && is_late(state, *offset, client);
                Some(if late { state.clone() } else { Some((*offset, client.clone())) })
            }
        }
    }

    fn is_read(&self, operation: &What) -> bool {
        matches!(operation, What::Query(_))
    }

    fn explains(&self, state: &Self::State, unknown: &What, next: &[&What], others: &[&What]) -> bool {
        let What::Update { offset, client, .. } = unknown else { return false };
        let told = |offset: u64| {
            state.as_ref().is_none_or(|(known, _)| *known != offset)
                && next.iter().any(|next| matches!(next, What::Query(Some(told)) if *told == offset))
        };
        let enables = |other: &What| match other {
            What::Update { offset: later, client: by, one_way: true } => {
                (offset <= later || client == by) && told(*later) && is_late(state, *later, by)
            }
            _ => false,
        };
        told(*offset)
            || self.unseen == Unseen::All
            || self.unseen == Unseen::Enabling && others.iter().any(|other| enables(other))
    }
}

/// Whether a one-way update would undo a newer one.
fn is_late(state: &Option<(u64, String)>, offset: u64, client: &str) -> bool {
    state.as_ref().is_some_and(|(known, writer)| offset < *known && (client.is_empty() || client != writer))
}

fn unexpected(accesses: &[Access<'_>], verdict: &mut Verdict) {
    let mut first: BTreeMap<u64, Position> = BTreeMap::new();
    for access in accesses {
        if let What::Update { offset, .. } = access.what {
            first.entry(offset).or_insert(access.call.start);
        }
    }
    for access in accesses {
        if let (What::Query(Some(offset)), Some(completion)) = (&access.what, access.call.completion)
            && first.get(offset).is_none_or(|start| *start > access.call.completed)
        {
            verdict.anomaly("unexpected", || completion.summary());
        }
    }
}

/// Where nobody asks for a step back, queries never go back either.
fn moved_back(accesses: &[Access<'_>], verdict: &mut Verdict) {
    if !only_forward(accesses) {
        return;
    }
    let mut events: Vec<(Position, &Access<'_>, Option<u64>)> = Vec::new();
    for access in accesses {
        if let What::Query(told) = access.what {
            events.push((access.call.start, access, told));
            events.push((access.call.completed, access, told));
        }
    }
    events.sort_by_key(|(at, ..)| *at);
    let mut newest: Option<(u64, &Access<'_>)> = None;
    for (at, access, told) in events {
        let floor = newest.map(|(offset, _)| offset);
        if at == access.call.start && told < floor {
            let before = newest.and_then(|(_, before)| before.call.completion).map(|completion| completion.summary());
            let after = access.call.completion.map(|completion| completion.summary());
            verdict.anomaly("nonmonotonic-offset", || Edn::map([("before", before.into()), ("after", after.into())]));
        }
        // The answer counts for what is asked after it.
        if let (true, Some(offset)) = (at == access.call.completed, told.filter(|told| Some(*told) > floor)) {
            newest = Some((offset, access));
        }
    }
}

/// Whether no update could rightly lower the offset: a two-way update is not greater than none that could be before it, a
/// one-way update not than any of its own client.
fn only_forward(accesses: &[Access<'_>]) -> bool {
    let mut greatest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut events: Vec<(Position, bool, u64, &str, bool)> = Vec::new();
    for access in accesses {
        if let What::Update { offset, client, one_way } = &access.what {
            events.push((access.call.start, false, *offset, client, *one_way));
            events.push((access.call.end(), true, *offset, client, *one_way));
        }
    }
    events.sort_unstable_by_key(|(at, ended, ..)| (*at, *ended));
    for (_, ended, offset, client, one_way) in events {
        let lowers = match (ended, one_way) {
            (false, true) => !client.is_empty() && greatest.get(client).is_some_and(|known| *known > offset),
            (true, false) => greatest.values().any(|known| *known > offset),
            _ => false,
        };
        if lowers {
            return false;
        }
        let known = greatest.entry(client).or_insert(offset);
        *known = offset.max(*known);
    }
    true
}

fn show(evidence: &Evidence<'_>, start: Position) -> Edn {
    let call = evidence.history.calls().find(|call| call.start == start);
    call.map(|call| call.completion.unwrap_or(call.invocation).summary()).into()
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::Bounds;
    use crate::checker::Validity;
    use crate::checker::testing::{anomalies, history, validity, verdict};

    #[test]
    fn updates_hold_and_the_unknown_may_come_late_or_never() {
        let good = r#"
            [0 :invoke :query-offset  [["g" 1] nil]]
            [0 :ok     :query-offset  [["g" 1] nil]]
            [0 :invoke :update-offset [["g" 1] 5]]
            [0 :ok     :update-offset [["g" 1] 5]]
            [1 :invoke :update-offset [["g" 1] 9]]
            [1 :info   :update-offset [["g" 1] 9]]
            [0 :invoke :query-offset  [["g" 1] nil]]
            [0 :ok     :query-offset  [["g" 1] 5]]
            [0 :invoke :query-offset  [["g" 1] nil]]
            [0 :ok     :query-offset  [["g" 1] 9]]
            [2 :invoke :update-offset [["g" 1] 3]]
            [2 :fail   :update-offset [["g" 1] 3]]
            [0 :invoke :update-offset [["g" 1] 4]]
            [0 :ok     :update-offset [["g" 1] 4]]
            [0 :invoke :query-offset  [["g" 1] nil]]
            [0 :ok     :query-offset  [["g" 1] 4]]
            [0 :invoke :query-offset  [["g" 2] nil]]
            [0 :ok     :query-offset  [["g" 2] nil]]
        "#;
        assert_eq!(validity(check, good), Validity::Valid);
    }

    #[test]
    fn a_late_one_way_update_of_another_client_moves_nothing_back() {
        let good = r#"
            [0 :invoke :update-offset [["g" 1] 9] :client "a"]
            [0 :ok     :update-offset [["g" 1] 9]]
            [1 :invoke :update-offset [["g" 1] 5] :client "b" :one-way true]
            [1 :info   :update-offset [["g" 1] 5]]
            [2 :invoke :query-offset  [["g" 1] nil]]
            [2 :ok     :query-offset  [["g" 1] 9]]
        "#;
        assert_eq!(validity(check, good), Validity::Valid);
        assert_eq!(
            anomalies(check, &good.replace("[[\"g\" 1] 9]]\n        ", "[[\"g\" 1] 5]]\n        ")),
            [("nonlinearizable", 1)]
        );
        assert_eq!(
            validity(check, &good.replace("9]]\n        ", "5]]\n        ").replace("\"b\"", "\"a\"")),
            Validity::Valid
        );
    }

    #[test]
    fn an_update_that_nobody_was_told_of_may_have_made_its_client_the_last_writer() {
        let good = r#"
            [0 :invoke :update-offset [["g" 1] 9] :client "a"]
            [0 :ok     :update-offset [["g" 1] 9]]
            [1 :invoke :update-offset [["g" 1] 12] :client "b" :one-way true]
            [1 :info   :update-offset [["g" 1] 12]]
            [2 :invoke :update-offset [["g" 1] 3] :client "b" :one-way true]
            [2 :info   :update-offset [["g" 1] 3]]
            [3 :invoke :query-offset  [["g" 1] nil]]
            [3 :ok     :query-offset  [["g" 1] 3]]
        "#;
        assert_eq!(validity(check, good), Validity::Valid);
    }

    #[test]
    fn an_offset_that_nobody_asks_for_at_the_end_is_no_pass() {
        let bounds = Bounds { nodes: vec!["n1".to_owned()], ..Bounds::default() };
        let judged = |what: &str| verdict(check, &history(what), &bounds).expect("touched").validity();
        let asked = r#"[1 :invoke :query-offset [["g" 1] nil]] [1 :ok :query-offset [["g" 1] 5]]"#;
        let set = r#"[0 :invoke :update-offset [["g" 1] 5]] [0 :ok :update-offset [["g" 1] 5]]"#;
        assert_eq!(judged(set), Validity::Unknown);
        assert_eq!(judged(&format!("{set}{asked}{set}")), Validity::Unknown);
        assert_eq!(judged(&format!("{set}{asked}")), Validity::Valid);
    }

    #[test]
    fn nonlinearizable() {
        let lost = r#"
            [0 :invoke :update-offset [["g" 1] 5]]
            [0 :ok     :update-offset [["g" 1] 5]]
            [0 :invoke :update-offset [["g" 1] 4]]
            [0 :ok     :update-offset [["g" 1] 4]]
            [1 :invoke :query-offset  [["g" 1] nil]]
            [1 :ok     :query-offset  [["g" 1] 5]]
        "#;
        assert_eq!(anomalies(check, lost), [("nonlinearizable", 1)]);
    }

    #[test]
    fn nonmonotonic_offset() {
        let back = r#"
            [0 :invoke :update-offset [["g" 1] 5] :client "a" :one-way true]
            [0 :info   :update-offset [["g" 1] 5]]
            [1 :invoke :update-offset [["g" 1] 6] :client "a" :one-way true]
            [1 :info   :update-offset [["g" 1] 6]]
            [2 :invoke :query-offset  [["g" 1] nil]]
            [2 :ok     :query-offset  [["g" 1] 6]]
            [2 :invoke :query-offset  [["g" 1] nil]]
            [2 :ok     :query-offset  [["g" 1] 5]]
        "#;
        assert_eq!(anomalies(check, back), [("nonmonotonic-offset", 1)], "one client's updates are in order");
        let gone = back.replace("[[\"g\" 1] 5]]\n        ", "[[\"g\" 1] nil]]\n        ");
        assert_eq!(anomalies(check, &gone), [("nonlinearizable", 1), ("nonmonotonic-offset", 1)]);
    }

    #[test]
    fn unexpected() {
        let made_up = r#"
            [1 :invoke :query-offset  [["g" 1] nil]]
            [1 :ok     :query-offset  [["g" 1] 7]]
        "#;
        assert_eq!(anomalies(check, made_up), [("nonlinearizable", 1), ("unexpected", 1)]);
    }

    #[test]
    fn a_search_that_is_cut_short_is_no_verdict() {
        let history = history("[0 :invoke :query-offset [[\"g\" 1] nil]] [0 :ok :query-offset [[\"g\" 1] nil]]");
        let bounds = Bounds { search_steps: 0, ..Bounds::default() };
        assert_eq!(verdict(check, &history, &bounds).unwrap().validity(), Validity::Unknown);
    }
}

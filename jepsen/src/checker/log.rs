//! What a history says about queues: every send and every value read, resolved once for the checkers that share it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};

use crate::history::edn::Edn;
use crate::history::operation::Operation;
use crate::history::{Call, History, Malformed, Outcome, Position};

/// RocketMQ's queueId, or whatever number the workload gives its queues.
pub type Queue = u32;

/// A map whose order, which nothing depends on, is the same in every run.
type Index<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// A value that was to be appended. All that was sent under one unique key is one of these.
#[derive(Clone, Copy, Debug)]
pub struct Send {
    /// Where to.
    pub queue: Queue,
    /// What.
    pub value: i64,
    /// The offset it was acknowledged with; delayed messages have none yet.
    pub offset: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// Where it was invoked.
    pub start: Position,
    /// From where on it cannot take effect any more.
    pub end: Position,
    /// How long it is not to be visible, in milliseconds.
    pub delay_ms: Option<u64>,
    /// It is visible only if its transaction is committed.
    pub is_half: bool,
}

impl Send {
    /// Takes in how the same message fared when it was sent again under its unique key.
    fn join(&mut self, again: &Send) {
        let is_better = match (self.outcome, again.outcome) {
            // It is there when the first answer says so.
            (Outcome::Ok, Outcome::Ok) => again.end < self.end,
            (Outcome::Ok, _) | (Outcome::Info, Outcome::Info | Outcome::Fail) => false,
            (Outcome::Info, Outcome::Ok) | (Outcome::Fail, Outcome::Ok | Outcome::Info) => true,
            // It can take effect as long as one of them can.
            (Outcome::Fail, Outcome::Fail) => again.end > self.end,
        };
        if is_better {
            (self.outcome, self.offset, self.end) = (again.outcome, again.offset, again.end);
        }
    }

    /// Whether an acknowledgement means that the message is visible.
    pub fn is_plain(&self) -> bool {
        self.delay_ms.is_none() && !self.is_half
    }
}

/// A value that was read.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// Where from.
    pub queue: Queue,
    /// At which place.
    pub offset: u64,
    /// What.
    pub value: i64,
    /// Where the reading was invoked.
    pub start: Position,
    /// Where it completed.
    pub at: Position,
    /// Which send it comes from, if any.
    pub send: Option<u32>,
    /// Who showed it.
    pub source: Source,
}

/// Who showed a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A consumer, in a session of its process: it pulls on from where it is, until it assigns or subscribes anew.
    Session(u32),
    /// One replica at the end, as an index of [`Log::nodes`].
    Replica(u32),
}

/// See the top.
#[derive(Debug, Default)]
pub struct Log {
    /// In order of invocation.
    pub sends: Vec<Send>,
    /// In order of invocation of the reading, then as they were returned.
    pub reads: Vec<Read>,
    /// The replicas with a final read, and the queues that they were asked for.
    pub nodes: Vec<(String, Vec<Queue>)>,
    /// Those of them, by index, with a final read that did not succeed: what they do not show proves nothing.
    pub cut_short: BTreeSet<u32>,
    by_value: Index<i64, u32>,
}

impl Log {
    /// Resolves sends, polls and final reads.
    pub fn of(history: &History) -> Result<Log, Malformed> {
        let mut log = Log::default();
        for call in history.calls().filter(|call| &*call.invocation.f == "send") {
            log.add_sends(&call)?;
        }
        let mut sessions = BTreeMap::new();
        let mut newest = 0..;
        for call in history.calls() {
            match &*call.invocation.f {
                "assign" | "subscribe" => drop(sessions.remove(&call.invocation.process)),
                "poll" => {
                    let fresh = || newest.next().expect("fewer sessions than operations");
                    let session = *sessions.entry(call.invocation.process).or_insert_with(fresh);
                    log.add_reads(&call, Source::Session(session))?;
                }
                "final-read" => {
                    let node = log.node_of(call.invocation)?;
                    if call.outcome() != Outcome::Ok {
                        log.cut_short.insert(node);
                    }
                    log.add_reads(&call, Source::Replica(node))?;
                }
                _ => {}
            }
        }
        Ok(log)
    }

    /// The send of a value.
    pub fn send_of(&self, value: i64) -> Option<u32> {
        self.by_value.get(&value).copied()
    }

    /// The sends that were acknowledged.
    pub fn acknowledged(&self) -> impl Iterator<Item = &Send> {
        self.sends.iter().filter(|send| send.outcome == Outcome::Ok)
    }

    /// The offsets that are known to hold a value, of each queue in order.
    pub fn known_offsets(&self) -> BTreeMap<Queue, Vec<u64>> {
        let mut known: BTreeMap<Queue, Vec<u64>> = BTreeMap::new();
        let acknowledged = self.acknowledged().filter_map(|send| Some((send.queue, send.offset?)));
        for (queue, offset) in acknowledged.chain(self.reads.iter().map(|read| (read.queue, read.offset))) {
            known.entry(queue).or_default().push(offset);
        }
        for offsets in known.values_mut() {
            offsets.sort_unstable();
            offsets.dedup();
        }
        known
    }

    fn add_sends(&mut self, call: &Call<'_>) -> Result<(), Malformed> {
        let acknowledged = call.completion.filter(|_| call.outcome() == Outcome::Ok);
        let asked = items(call.invocation, &call.invocation.value)?;
        let answered = acknowledged.map(|completion| items(completion, &completion.value)).transpose()?;
        if answered.is_some_and(|answered| answered.len() != asked.len()) {
            return Err(malformed(call.invocation, "as many answers as sends"));
        }
        let delay_ms = number(call.invocation, "delay-ms")?;
        let is_half = flag(call.invocation, "transaction");
        let is_again = flag(call.invocation, "again");
        for (k, item) in asked.iter().enumerate() {
            let (queue, value) = match item.as_vector() {
                Some([f, queue, Edn::Int(value)]) if f.as_keyword() == Some("send") => (queue_of(queue), *value),
                _ => (None, 0),
            };
            let queue = queue.ok_or_else(|| malformed(call.invocation, "[[:send queue value]]"))?;
            let offset = match answered {
                None => None,
                Some(answered) => offset_of(&answered[k], queue, value).ok_or_else(|| {
                    malformed(call.completion.unwrap_or(call.invocation), "[[:send queue [offset value]]]")
                })?,
            };
            let (start, end, outcome) = (call.start, call.end(), call.outcome());
            let send = Send { queue, value, offset, outcome, start, end, delay_ms, is_half };
            match self.by_value.get(&value).map(|first| &mut self.sends[*first as usize]) {
                None => {
                    self.by_value.insert(value, self.sends.len() as u32);
                    self.sends.push(send);
                }
                Some(first) if is_again && first.queue == queue => first.join(&send),
                Some(_) => {
                    return Err(malformed(call.invocation, "values that are sent once, or :again to their queue"));
                }
            }
        }
        Ok(())
    }

    fn add_reads(&mut self, call: &Call<'_>, source: Source) -> Result<(), Malformed> {
        let Some(completion) = call.completion.filter(|_| call.outcome() == Outcome::Ok) else { return Ok(()) };
        let wanted = || malformed(completion, "[[:poll {queue [[offset value] …]}]]");
        for item in items(completion, &completion.value)? {
            let queues = match item.as_vector() {
                Some([_]) => continue,
                Some([_, queues]) => queues.as_map().ok_or_else(wanted)?,
                _ => return Err(wanted()),
            };
            for (queue, places) in queues {
                let queue = queue_of(queue).ok_or_else(wanted)?;
                if let Source::Replica(node) = source
                    && !self.nodes[node as usize].1.contains(&queue)
                {
                    self.nodes[node as usize].1.push(queue);
                }
                for place in places.as_vector().ok_or_else(wanted)? {
                    let Some([Edn::Int(offset), Edn::Int(value)]) = place.as_vector() else { return Err(wanted()) };
                    let offset = u64::try_from(*offset).map_err(|_| wanted())?;
                    let send = self.send_of(*value);
                    let (start, at) = (call.start, call.completed);
                    self.reads.push(Read { queue, offset, value: *value, start, at, send, source });
                }
            }
        }
        Ok(())
    }

    fn node_of(&mut self, operation: &Operation) -> Result<u32, Malformed> {
        let name = operation.extra("node").and_then(Edn::as_str).ok_or_else(|| malformed(operation, ":node"))?;
        let known = self.nodes.iter().position(|(node, _)| node == name);
        Ok(known.unwrap_or_else(|| {
            self.nodes.push((name.to_owned(), Vec::new()));
            self.nodes.len() - 1
        }) as u32)
    }
}

impl Send {
    /// As it is shown in results.
    pub fn show(&self, history: &History) -> Edn {
        let invocation = history.at(self.start);
        let completion = history.operations().get(self.end as usize).map(|completion| completion.index);
        Edn::map([
            ("f", Edn::keyword("send")),
            ("queue", self.queue.into()),
            ("offset", self.offset.into()),
            ("value", self.value.into()),
            ("process", invocation.process.to_edn()),
            ("index", invocation.index.into()),
            ("completion", completion.into()),
            ("time", invocation.time.into()),
        ])
    }
}

impl Read {
    /// As it is shown in results.
    pub fn show(&self, history: &History) -> Edn {
        let completion = history.at(self.at);
        let mut entries = vec![
            ("f", Edn::Keyword(completion.f.clone())),
            ("queue", self.queue.into()),
            ("offset", self.offset.into()),
            ("value", self.value.into()),
            ("process", completion.process.to_edn()),
            ("index", completion.index.into()),
            ("time", completion.time.into()),
        ];
        entries.extend(completion.extra("node").map(|node| ("node", node.clone())));
        Edn::map(entries)
    }
}

/// What an operation should have had.
pub fn malformed(operation: &Operation, wanted: &str) -> Malformed {
    Malformed(format!("wanted {wanted}: {}", operation.summary()))
}

/// A queue's number.
pub fn queue_of(edn: &Edn) -> Option<Queue> {
    edn.as_int().and_then(|queue| Queue::try_from(queue).ok())
}

/// Whether there is `true` under a key.
pub fn flag(operation: &Operation, key: &str) -> bool {
    operation.extra(key).and_then(Edn::as_bool) == Some(true)
}

/// The natural number under a key, if there is one.
pub fn number(operation: &Operation, key: &str) -> Result<Option<u64>, Malformed> {
    let natural = |edn: &Edn| edn.as_int().and_then(|number| u64::try_from(number).ok());
    let wanted = || malformed(operation, &format!("a natural number as :{key}"));
    operation.extra(key).map(|edn| natural(edn).ok_or_else(wanted)).transpose()
}

/// The offset in `[:send queue [offset value]]`, if the answer has one; `None` if it is no answer to that send.
fn offset_of(answer: &Edn, queue: Queue, value: i64) -> Option<Option<u64>> {
    let [_, to, told] = answer.as_vector()? else { return None };
    let (offset, same) = match told {
        Edn::Vector(place) => match &place[..] {
            [Edn::Int(offset), same] => (Some(u64::try_from(*offset).ok()?), same),
            [Edn::Nil, same] => (None, same),
            _ => return None,
        },
        same => (None, same),
    };
    (queue_of(to) == Some(queue) && same.as_int() == Some(value)).then_some(offset)
}

fn items<'a>(operation: &Operation, value: &'a Edn) -> Result<&'a [Edn], Malformed> {
    value.as_vector().ok_or_else(|| malformed(operation, "a vector"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::testing::history;
    use crate::history::NEVER;

    fn refused(text: &str, why: &str) {
        let error = Log::of(&history(text)).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn sends_of_several_values_and_answers_without_an_offset_are_resolved() {
        let text = "[0 :invoke :send [[:send 1 10] [:send 2 11]]] [0 :ok :send [[:send 1 [4 10]] [:send 2 [nil 11]]]]";
        let log = Log::of(&history(text)).unwrap();
        let sends: Vec<_> = log.sends.iter().map(|send| (send.queue, send.value, send.offset)).collect();
        assert_eq!(sends, [(1, 10, Some(4)), (2, 11, None)]);
    }

    #[test]
    fn what_is_sent_again_is_one_send_that_ends_as_the_best_of_them() {
        let joined = |ends: [&str; 3]| {
            let sent = |(k, end): (usize, &str)| {
                let place = if end == "ok" { "[4 10]" } else { "10" };
                format!("[{k} :invoke :send [[:send 1 10]] :again true] [{k} :{end} :send [[:send 1 {place}]]] ")
            };
            let log = Log::of(&history(&ends.into_iter().enumerate().map(sent).collect::<String>())).unwrap();
            let [send] = log.sends[..] else { panic!("one send: {:?}", log.sends) };
            (send.outcome, send.offset, send.start, send.end)
        };
        assert_eq!(joined(["info", "ok", "ok"]), (Outcome::Ok, Some(4), 0, 3));
        assert_eq!(joined(["ok", "fail", "info"]), (Outcome::Ok, Some(4), 0, 1));
        assert_eq!(joined(["fail", "info", "fail"]), (Outcome::Info, None, 0, NEVER));
        assert_eq!(joined(["fail", "fail", "fail"]), (Outcome::Fail, None, 0, 5));
    }

    #[test]
    fn a_harness_that_records_wrongly_is_told() {
        refused("[0 :invoke :send [[:send 1 10]]] [1 :invoke :send [[:send 1 10]]]", "values that are sent once");
        refused("[0 :invoke :send [[:send 1 10]]] [1 :invoke :send [[:send 2 10]] :again true]", "to their queue");
        refused("[0 :invoke :send [[:send 1 10]]] [0 :ok :send [[:send 2 [0 10]]]]", "[[:send queue [offset value]]]");
        refused("[0 :invoke :send [[:send 1 10]]] [0 :ok :send [[:send 1 [0 11]]]]", "[[:send queue [offset value]]]");
        refused("[0 :invoke :send [[:send 1 10]]] [0 :ok :send []]", "as many answers as sends");
        refused("[0 :invoke :final-read [[:poll]]]", ":node");
        refused("[0 :invoke :poll [[:poll]]] [0 :ok :poll [[:poll {1 [[-1 5]]}]]]", "[[:poll {queue");
    }
}

//! The operations of a workload as they stand in a history; `checker/mod.rs` has the table.

use crate::history::edn::Edn;

/// A value is to be sent to a queue.
pub fn send(queue: u32, value: u64) -> Edn {
    Edn::vector([Edn::vector([Edn::keyword("send"), queue.into(), value.into()])])
}

/// It was acknowledged at that offset; nil for a delayed message, which has none yet.
pub fn sent(queue: u32, offset: impl Into<Edn>, value: u64) -> Edn {
    Edn::vector([Edn::vector([Edn::keyword("send"), queue.into(), Edn::vector([offset.into(), value.into()])])])
}

/// A queue is to be read.
pub fn poll() -> Edn {
    Edn::vector([Edn::vector([Edn::keyword("poll")])])
}

/// It showed those offsets and values.
pub fn polled(queue: u32, places: &[(u64, u64)]) -> Edn {
    let places = Edn::vector(places.iter().map(|(offset, value)| Edn::vector([*offset, *value])));
    Edn::vector([Edn::vector([Edn::keyword("poll"), Edn::Map(vec![(queue.into(), places)])])])
}

//! Clause "one value": what an offset holds never changes, whoever reads it, whenever, from whichever replica.
//!
//! Every acknowledgement and every read says what stands at a place; sorted by place they must agree. O(n log n).
//!
//! - `inconsistent-offsets`: two values at one offset of a queue.
//! - `duplicate`: one value at two places.

use super::log::{Queue, Read, Send};
use super::{Checked, Evidence, Verdict};
use crate::history::History;
use crate::history::edn::Edn;

/// See the top.
pub fn check(evidence: &Evidence<'_>) -> Checked {
    let Evidence { history, log, .. } = *evidence;
    let acknowledged = log.acknowledged().filter_map(|send| {
        Some(Place { queue: send.queue, offset: send.offset?, value: send.value, source: Source::Send(send) })
    });
    let read = log.reads.iter().map(|read| Place {
        queue: read.queue,
        offset: read.offset,
        value: read.value,
        source: Source::Read(read),
    });
    let mut places: Vec<Place<'_>> = acknowledged.chain(read).collect();
    if places.is_empty() {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    let told = places.len();
    places.sort_unstable_by_key(|place| (place.queue, place.offset, place.value));
    places.dedup_by_key(|place| (place.queue, place.offset, place.value));
    for same in places.chunk_by(|one, other| (one.queue, one.offset) == (other.queue, other.offset)) {
        if same.len() > 1 {
            verdict.anomaly("inconsistent-offsets", || show(same, history));
        }
    }
    places.sort_unstable_by_key(|place| (place.value, place.queue, place.offset));
    for same in places.chunk_by(|one, other| one.value == other.value) {
        if same.len() > 1 {
            verdict.anomaly("duplicate", || show(same, history));
        }
    }
    verdict.figure("told-count", told);
    verdict.figure("place-count", places.len());
    Ok(Some(verdict))
}

#[derive(Clone, Copy)]
struct Place<'a> {
    queue: Queue,
    offset: u64,
    value: i64,
    source: Source<'a>,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Send(&'a Send),
    Read(&'a Read),
}

fn show(places: &[Place<'_>], history: &History) -> Edn {
    let shown = places.iter().take(super::verdict::EXAMPLES).map(|place| match place.source {
        Source::Send(send) => send.show(history),
        Source::Read(read) => read.show(history),
    });
    Edn::vector(shown)
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::Validity;
    use crate::checker::testing::{anomalies, validity};

    const SENT: &str = r#"
        [0 :invoke :send [[:send 1 10]]]
        [1 :invoke :send [[:send 1 11]]]
        [0 :ok     :send [[:send 1 [0 10]]]]
        [1 :info   :send [[:send 1 11]]]
    "#;

    fn read(places: &str) -> String {
        format!(
            r#"{SENT}
            [2 :invoke :final-read [[:poll]] :node "n1"]
            [2 :ok     :final-read [[:poll {{1 {places}}}]] :node "n1"]"#
        )
    }

    #[test]
    fn all_who_look_see_the_same() {
        assert_eq!(validity(check, &read("[[0 10] [1 11] [0 10]]")), Validity::Valid);
    }

    #[test]
    fn inconsistent_offsets() {
        assert_eq!(anomalies(check, &read("[[0 11]]")), [("inconsistent-offsets", 1)], "acknowledged and read");
        assert_eq!(anomalies(check, &read("[[0 10] [1 11] [1 12]]")), [("inconsistent-offsets", 1)], "read twice");
    }

    #[test]
    fn duplicate() {
        assert_eq!(anomalies(check, &read("[[0 10] [1 10]]")), [("duplicate", 1)], "acknowledged and read");
        assert_eq!(anomalies(check, &read("[[1 11] [2 11] [3 11]]")), [("duplicate", 1)], "read three times");
    }
}

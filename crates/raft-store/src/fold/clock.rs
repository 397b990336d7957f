//! Group time: the one clock that entries know. Pure.

use crate::position::Timestamp;

/// The stamp of the last entry that had one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupTime {
    /// Never decreases. 0 before the first stamp.
    last: Timestamp,
}

impl GroupTime {
    pub fn restored(last: Timestamp) -> GroupTime {
        GroupTime { last }
    }

    pub fn last(&self) -> Timestamp {
        self.last
    }

    /// Moves to an entry's stamp; gives the time since the entry before.
    ///
    /// Proposers stamp in log order. A stamp that goes back all the same is the content of an entry, at which replicas
    /// must not stop: time then stands still, on all of them alike.
    pub fn advance(&mut self, stamp: Timestamp) -> i64 {
        let before = self.last;
        self.last = before.max(stamp);
        assert!(self.last >= before, "group time goes back from {before} to {}", self.last);
        if before == Timestamp::default() { 0 } else { self.last.0.saturating_sub(before.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_goes_back() {
        let mut time = GroupTime::default();
        assert_eq!(time.advance(Timestamp(1000)), 0, "there is no gap before the first entry");
        assert_eq!(time.advance(Timestamp(1500)), 500);
        assert_eq!(time.advance(Timestamp(1400)), 0);
        assert_eq!(time.last(), Timestamp(1500));
    }
}

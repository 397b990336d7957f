//! Rows that are in no part yet.

use std::collections::VecDeque;
use std::sync::Arc;

use super::row::Row;

/// Rows in the order in which they were added, of which the oldest go first. Adding one costs apply next to nothing; who
/// searches takes the full pieces out from under the lock.
#[derive(Debug)]
pub struct Recent<R> {
    full: VecDeque<Arc<Vec<R>>>,
    /// Of the first full piece these are gone already.
    gone: usize,
    open: Vec<R>,
}

impl<R: Row> Recent<R> {
    const PIECE_ROWS: usize = 4096;

    pub fn new() -> Recent<R> {
        Recent { full: VecDeque::new(), gone: 0, open: Vec::new() }
    }

    pub fn add(&mut self, row: R) {
        self.open.push(row);
        if self.open.len() == Self::PIECE_ROWS {
            self.full.push_back(Arc::new(std::mem::take(&mut self.open)));
        }
    }

    /// The oldest `count` rows go; all of them if there are no more.
    pub fn remove_oldest(&mut self, count: usize) {
        self.gone += count;
        while self.full.front().is_some_and(|piece| piece.len() <= self.gone) {
            self.gone -= self.full.pop_front().expect("there is one").len();
        }
        if self.full.is_empty() {
            self.open.drain(..self.gone.min(self.open.len()));
            self.gone = 0;
        }
    }

    /// All pieces as they are now.
    pub fn pieces(&self) -> Vec<Arc<Vec<R>>> {
        self.full.iter().cloned().chain([Arc::new(self.open.clone())]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexRow;
    use crate::position::{PhysicalOffset, QueueId, QueueOffset};

    #[test]
    fn the_oldest_recent_rows_go_first_wherever_a_piece_ends() {
        let mut recent: Recent<IndexRow> = Recent::new();
        let place = |row: &IndexRow| row.physical_offset.0;
        let row = |at| IndexRow {
            physical_offset: PhysicalOffset(at),
            queue: QueueId::default(),
            queue_offset: QueueOffset(0),
        };
        (0..10_000).for_each(|at| recent.add(row(at)));
        for (count, oldest) in [(0, 0), (4_095, 4_095), (1, 4_096), (4_097, 8_193), (1_807, 10_000), (5, 10_000)] {
            recent.remove_oldest(count);
            let left: Vec<u64> = recent.pieces().iter().flat_map(|piece| piece.iter().map(place)).collect();
            // Of the first piece some that are gone may be seen until all of it is: they are in a part by then.
            assert!(left.iter().copied().eq(left.first().copied().unwrap_or(10_000)..10_000));
            assert!(left.first().is_none_or(|first| *first <= oldest && oldest - first < 4_096), "{count}: {left:?}");
        }
        recent.add(row(10_000));
        assert_eq!(recent.pieces().iter().map(|piece| piece.len()).sum::<usize>(), 1);
    }
}

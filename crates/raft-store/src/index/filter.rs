//! Which hashes were added lately: for certain which were not. Pure.
//!
//! Most questions whether a key was seen within the last minutes are answered with no. This answers them from memory, in
//! a few bits a key, so that a leader may ask one for each message that it stores.

use std::collections::VecDeque;

use crate::position::Timestamp;

/// Hashes of one block; with these bits for each, one of forty thousand others is taken for one of them.
const BLOCK_HASHES: usize = 1 << 16;
const BLOCK_BITS: u64 = (BLOCK_HASHES * 32) as u64;
const PROBES: u64 = 6;

/// Hashes by the time of what has them. Blocks of Bloom's filter, which go as they age.
#[derive(Debug)]
pub struct Filter {
    /// How long they are kept, at least.
    span_ms: i64,
    /// Whatever was added with this time or a later one is in here.
    since: Timestamp,
    /// Oldest first.
    blocks: VecDeque<Block>,
}

#[derive(Debug)]
struct Block {
    bits: Box<[u64]>,
    count: usize,
    newest: Timestamp,
}

impl Block {
    fn new() -> Block {
        Block { bits: vec![0; BLOCK_BITS as usize / 64].into(), count: 0, newest: Timestamp(i64::MIN) }
    }

    /// The hashes are those of a good hash function: two halves of one do for all probes.
    fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
        let step = (hash >> 32) | 1;
        (0..PROBES).map(move |probe| {
            let bit = hash.wrapping_add(probe.wrapping_mul(step)) % BLOCK_BITS;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }
}

impl Filter {
    /// One that answers nothing: whatever it is asked about may have been added.
    pub fn ignorant() -> Filter {
        Filter { span_ms: 0, since: Timestamp(i64::MAX), blocks: VecDeque::new() }
    }

    /// One that will be told of all hashes with the time `since` or a later one, and keeps each for at least `span_ms`
    /// behind the newest.
    pub fn since(since: Timestamp, span_ms: i64) -> Filter {
        Filter { span_ms, since, blocks: VecDeque::new() }
    }

    /// Nothing was ever added.
    pub fn clear(&mut self) {
        self.blocks.clear();
        if self.span_ms > 0 {
            self.since = Timestamp(i64::MIN);
        }
    }

    /// Adds a hash. Times do not go back, or what they belong to is forgotten late.
    pub fn add(&mut self, hash: u64, time: Timestamp) {
        if self.span_ms == 0 {
            return;
        }
        let kept_from = Timestamp(time.0.saturating_sub(self.span_ms));
        while self.blocks.front().is_some_and(|block| block.newest < kept_from) {
            let gone = self.blocks.pop_front().expect("there is one");
            self.since = self.since.max(Timestamp(gone.newest.0.saturating_add(1)));
        }
        if self.blocks.back().is_none_or(|block| block.count == BLOCK_HASHES) {
            self.blocks.push_back(Block::new());
        }
        let block = self.blocks.back_mut().expect("one was pushed");
        block.count += 1;
        block.newest = block.newest.max(time);
        for (at, bit) in Block::probes(hash) {
            block.bits[at] |= bit;
        }
    }

    /// Whether nothing with this hash was added with the time `from` or a later one. False if that is not certain.
    pub fn is_new(&self, hash: u64, from: Timestamp) -> bool {
        let may_hold = |block: &Block| Block::probes(hash).all(|(at, bit)| block.bits[at] & bit != 0);
        from >= self.since && !self.blocks.iter().any(|block| block.newest >= from && may_hold(block))
    }
}

#[cfg(test)]
mod tests {
    use env::Rng;

    use super::*;

    #[test]
    fn what_was_added_is_never_new_and_what_was_not_nearly_always_is() {
        let rng = Rng::seeded(7);
        let mut filter = Filter::since(Timestamp(0), 1_000);
        let hashes: Vec<u64> = (0..3 * BLOCK_HASHES).map(|_| rng.u64()).collect();
        for (hash, time) in hashes.iter().zip(0..) {
            filter.add(*hash, Timestamp(time / 1_000));
        }
        assert!(hashes.iter().all(|hash| !filter.is_new(*hash, Timestamp(0))));
        let mistaken = (0..100_000).filter(|_| !filter.is_new(rng.u64(), Timestamp(0))).count();
        assert!(mistaken < 100, "{mistaken} of 100000");
    }

    #[test]
    fn what_is_older_than_its_span_goes_and_is_not_called_new() {
        let mut filter = Filter::since(Timestamp(100), 1_000);
        assert!(filter.is_new(1, Timestamp(100)) && !filter.is_new(1, Timestamp(99)), "nobody told it of that");
        for hash in 0..BLOCK_HASHES as u64 {
            filter.add(hash.wrapping_mul(0x9E37_79B9_7F4A_7C15), Timestamp(200));
        }
        filter.add(7, Timestamp(1_300));
        assert_eq!(filter.blocks.len(), 1, "the first block was too old");
        assert!(!filter.is_new(9, Timestamp(200)), "it is forgotten what there was then");
        assert!(filter.is_new(9, Timestamp(201)) && !filter.is_new(7, Timestamp(201)));
        assert!(!Filter::ignorant().is_new(1, Timestamp(i64::MAX - 1)));
    }
}

//! Random numbers: from the machine's entropy, or from a seed.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::witness::{self, Seen};

/// A shared generator. Cheap to clone; clones draw from the same stream. Not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(Arc<Mutex<fastrand::Rng>>);

impl Rng {
    /// Seeded by the operating system.
    #[allow(clippy::disallowed_methods)] // This is the door the others are sent to.
    pub fn from_entropy() -> Rng {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the operating system gives random bytes");
        Rng::seeded(u64::from_le_bytes(seed))
    }

    /// The same seed gives the same numbers.
    pub fn seeded(seed: u64) -> Rng {
        Rng(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    /// A new generator whose stream depends on this one's next number only.
    pub fn fork(&self) -> Rng {
        Rng::seeded(self.u64())
    }

    /// Any `u64`.
    pub fn u64(&self) -> u64 {
        witnessed(self.0.lock().u64(..))
    }

    /// A number in `0..bound`. `bound` must not be 0.
    pub fn below(&self, bound: u64) -> u64 {
        witnessed(self.0.lock().u64(..bound))
    }

    /// True in `numerator` of `denominator` cases.
    pub fn chance(&self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// A number in `0.0..1.0`.
    pub fn f64(&self) -> f64 {
        let drawn = self.0.lock().f64();
        witnessed(drawn.to_bits());
        drawn
    }

    /// Fills `bytes`.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().fill(bytes);
        witness::note(Seen::Draw, 0, bytes);
    }
}

fn witnessed(drawn: u64) -> u64 {
    witness::note(Seen::Draw, drawn, &[]);
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(rng: &Rng) -> (u64, u64, bool, u64, [u8; 5]) {
        let mut bytes = [0; 5];
        rng.fill(&mut bytes);
        (rng.u64(), rng.below(1000), rng.chance(1, 2), rng.f64().to_bits(), bytes)
    }

    #[test]
    fn a_seed_decides_everything() {
        assert_eq!(draw(&Rng::seeded(3)), draw(&Rng::seeded(3)));
        assert_ne!(draw(&Rng::seeded(3)), draw(&Rng::seeded(4)));
        assert_ne!(draw(&Rng::from_entropy()), draw(&Rng::from_entropy()));
    }

    #[test]
    fn clones_share_a_stream_and_forks_have_their_own() {
        let rng = Rng::seeded(3);
        let clone = rng.clone();
        let together = [rng.u64(), clone.u64()];
        let alone = Rng::seeded(3);
        assert_eq!(together, [alone.u64(), alone.u64()]);
        // What is drawn from a fork does not move the original.
        let (a, b) = (Rng::seeded(9), Rng::seeded(9));
        let (fork_a, fork_b) = (a.fork(), b.fork());
        assert_eq!(fork_a.u64(), fork_b.u64());
        fork_a.u64();
        assert_eq!(a.u64(), b.u64());
    }

    #[test]
    fn chances_and_bounds_are_kept() {
        let rng = Rng::seeded(1);
        assert!((0..100).all(|_| rng.below(3) < 3 && (0.0..1.0).contains(&rng.f64())));
        assert!((0..100).all(|_| rng.chance(1, 1) && !rng.chance(0, 1)));
    }
}

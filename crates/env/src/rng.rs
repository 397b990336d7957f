//! Random numbers: from the machine's entropy, or from a seed.

use std::sync::Arc;

use parking_lot::Mutex;

/// A shared generator. Cheap to clone; clones draw from the same stream. Not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(Arc<Mutex<fastrand::Rng>>);

impl Rng {
    /// Seeded by the operating system.
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
        self.0.lock().u64(..)
    }

    /// A number in `0..bound`. `bound` must not be 0.
    pub fn below(&self, bound: u64) -> u64 {
        self.0.lock().u64(..bound)
    }

    /// True in `numerator` of `denominator` cases.
    pub fn chance(&self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// A number in `0.0..1.0`.
    pub fn f64(&self) -> f64 {
        self.0.lock().f64()
    }

    /// Fills `bytes`.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().fill(bytes)
    }
}

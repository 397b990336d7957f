//! A running hash over all that a simulation's programs see of the world: what arrives, what the disk does, what is
//! drawn. Two runs of one seed with equal hashes did the same; where they differ first, something is no function of the
//! seed.
//!
//! One per thread, as a simulation is. Only with the feature `simulation`; else noting is nothing.

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Bytes read from a connection.
    Arrival = 1,
    /// A change of a disk.
    Disk = 2,
    /// A random number.
    Draw = 3,
    /// What the simulation itself wants in: a client's result, a fault.
    Event = 4,
}

/// Adds what was seen.
#[inline(always)]
#[cfg(not(feature = "simulation"))]
pub(crate) fn note(_seen: Seen, _number: u64, _bytes: &[u8]) {}

#[cfg(feature = "simulation")]
mod on {
    use std::cell::Cell;

    use super::Seen;

    thread_local! {
        static HASH: Cell<u64> = const { Cell::new(0) };
        static NOTED: Cell<u64> = const { Cell::new(0) };
    }

    /// Adds what was seen.
    pub fn note(seen: Seen, number: u64, bytes: &[u8]) {
        let mut hash = mixed(HASH.get() ^ seen as u64, number);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            hash = mixed(hash, u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        HASH.set(mixed(hash ^ bytes.len() as u64, u64::from_le_bytes(last)));
        NOTED.set(NOTED.get() + 1);
    }

    /// One round of a multiply-and-fold hash: fast, and every bit of both reaches every bit of the result.
    fn mixed(hash: u64, word: u64) -> u64 {
        let wide = u128::from(hash ^ 0x9E37_79B9_7F4A_7C15) * u128::from(word ^ 0xD1B5_4A32_D192_ED03);
        (wide as u64) ^ ((wide >> 64) as u64) ^ hash.rotate_left(29)
    }

    /// The hash of everything noted on this thread, and how many notes those were.
    pub fn so_far() -> (u64, u64) {
        (HASH.get(), NOTED.get())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_difference_shows() {
            let hash_of = |notes: &[(Seen, u64, &[u8])]| {
                HASH.set(0);
                notes.iter().for_each(|(seen, number, bytes)| note(*seen, *number, bytes));
                so_far().0
            };
            let base: &[(Seen, u64, &[u8])] = &[(Seen::Draw, 7, b""), (Seen::Arrival, 1, b"some bytes and more")];
            assert_eq!(hash_of(base), hash_of(base));
            let others: [&[(Seen, u64, &[u8])]; 6] = [
                &[(Seen::Arrival, 1, b"some bytes and more"), (Seen::Draw, 7, b"")],
                &[(Seen::Disk, 7, b""), (Seen::Arrival, 1, b"some bytes and more")],
                &[(Seen::Draw, 8, b""), (Seen::Arrival, 1, b"some bytes and more")],
                &[(Seen::Draw, 7, b""), (Seen::Arrival, 1, b"some bytes and mora")],
                &[(Seen::Draw, 7, b""), (Seen::Arrival, 1, b"some bytes and more\0")],
                &[(Seen::Draw, 7, b"")],
            ];
            for other in others {
                assert_ne!(hash_of(base), hash_of(other), "{other:?}");
            }
        }
    }
}

#[cfg(feature = "simulation")]
pub use on::{note, so_far};

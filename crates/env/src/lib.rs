//! The only door to clock, randomness, sockets, files and threads: the real ones and the simulated ones.
//!
//! Every other crate takes an [`Env`] and asks it; `clippy.toml` forbids the ambient ones elsewhere. With
//! [`Env::real`] the answers come from the machine. In a simulation they are functions of a seed: the same seed gives
//! the same bytes.
//!
//! - [`clock`]: wall time, monotonic time, sleeping.
//! - [`rng`]: seeded random numbers.
//! - [`disk`]: files; [`disk::real`] and [`disk::simulated`], whose crashes lose, tear and reorder unsynced writes.
//! - [`net`]: TCP, tokio's or turmoil's; and a cut between hosts of one process.
//! - [`executor`]: a future on a thread of its own (real), or as a task (simulated).
//! - [`memory`]: giving back what the process does not use.
//! - [`mod@fault`]: named points in the code at which a test may strike.
//! - [`witness`]: a hash over what a simulation's programs see.

pub mod clock;
pub mod disk;
pub mod executor;
pub mod fault;
pub mod limits;
pub mod memory;
pub mod net;
pub mod rng;
pub mod witness;

use std::sync::Arc;

pub use clock::{Clock, Ticks};
pub use disk::{Disk, File};
pub use executor::Executor;
pub use net::Net;
pub use rng::Rng;

/// Everything a program may ask of its surroundings. Cheap to clone; clones share state.
#[derive(Clone, Debug)]
pub struct Env {
    /// Wall and monotonic time, sleeping.
    pub clock: Clock,
    /// Random numbers.
    pub rng: Rng,
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Sockets.
    pub net: Net,
    /// Threads, or tasks in a simulation.
    pub executor: Executor,
}

impl Env {
    /// The machine's own clock, randomness, disk, sockets and threads.
    pub fn real() -> Env {
        Env {
            clock: Clock::real(),
            rng: Rng::from_entropy(),
            disk: Arc::new(disk::real::RealDisk),
            net: Net::real(),
            executor: Executor::Threads,
        }
    }

    /// A simulated world over `disk`, with tokio's paused clock as time, and no threads.
    ///
    /// The network is tokio's loopback unless the crate is built with `simulation` and [`Env::net`] replaced.
    pub fn simulated(seed: u64, disk: disk::simulated::SimDisk) -> Env {
        Env {
            clock: Clock::simulated(),
            rng: Rng::seeded(seed),
            disk: Arc::new(disk),
            net: Net::real(),
            executor: Executor::Tasks,
        }
    }

    /// A number that nobody can guess, and so not of the stream whose other numbers are there for all to see. In a
    /// simulation nobody guesses.
    pub fn secret(&self) -> u128 {
        let rng = match self.executor {
            Executor::Threads => Rng::from_entropy(),
            Executor::Tasks => self.rng.fork(),
        };
        u128::from(rng.u64()) << 64 | u128::from(rng.u64())
    }
}

//! The same random work on the simulated and on the real disk, against the model.

use env::Rng;

use super::work::{Place, Work, random_options};
use super::world::disk;

fn seeds() -> Vec<u64> {
    match std::env::var("RAFTMQ_SEED") {
        Ok(seed) => vec![seed.parse().expect("RAFTMQ_SEED is a number")],
        Err(_) => {
            let first = Rng::from_entropy().below(1 << 40);
            (first..first + 8).collect()
        }
    }
}

#[test]
fn random_work_on_a_simulated_disk() {
    for seed in seeds() {
        println!("RAFTMQ_SEED={seed}");
        let (disk, rng) = (disk(seed), Rng::seeded(seed));
        let options = random_options(&rng);
        Work::new(Place::Simulated(disk), options, rng).run(200);
    }
}

#[test]
fn random_work_on_a_real_disk() {
    for seed in seeds().into_iter().take(4) {
        println!("RAFTMQ_SEED={seed}");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let rng = Rng::seeded(seed);
        let options = random_options(&rng);
        Work::new(Place::Real(directory.path().to_owned()), options, rng).run(100);
    }
}

//! Which fault strikes whom, when and for how long: a function of the seed.

use std::time::Duration;

use env::Rng;

use super::Nemesis;
use crate::run::NODES;

/// Whom it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// That one.
    One(usize),
    /// Whoever leads then.
    Leader,
    /// All at once.
    All,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    /// Calm before it.
    pub calm: Duration,
    /// What.
    pub nemesis: Nemesis,
    /// Whom.
    pub target: Target,
    /// For how long.
    pub lasts: Duration,
    /// Draws what else there is to draw: which bit, how far a clock is off.
    pub seed: u64,
}

/// The faults of a run: rounds in which each nemesis has its turn, in an order drawn anew. A function of the seed.
#[derive(Debug)]
pub struct Schedule {
    rng: Rng,
    nemeses: Vec<Nemesis>,
    /// What is left of this round.
    round: Vec<Nemesis>,
}

impl Schedule {
    /// A schedule of those nemeses.
    pub fn new(rng: Rng, nemeses: &[Nemesis]) -> Schedule {
        let mut nemeses = nemeses.to_vec();
        nemeses.sort_unstable();
        nemeses.dedup();
        Schedule { rng, round: nemeses.clone(), nemeses }
    }

    /// Whether a round is under way.
    pub fn is_within_a_round(&self) -> bool {
        !self.round.is_empty()
    }

    /// That one strikes no more.
    pub fn give_up(&mut self, nemesis: Nemesis) {
        self.nemeses.retain(|other| *other != nemesis);
        self.round.retain(|other| *other != nemesis);
    }
}

impl Iterator for Schedule {
    type Item = Strike;

    fn next(&mut self) -> Option<Strike> {
        if self.round.is_empty() {
            self.round.clone_from(&self.nemeses);
        }
        if self.round.is_empty() {
            return None;
        }
        let nemesis = self.round.swap_remove(self.rng.below(self.round.len() as u64) as usize);
        let of = if nemesis.may_strike_all() { 4 } else { 3 };
        let target = match self.rng.below(of) {
            0 | 1 => Target::One(self.rng.below(NODES.len() as u64) as usize),
            2 => Target::Leader,
            _ => Target::All,
        };
        let (from, to) = nemesis.lasts();
        let lasts = Duration::from_millis(from + self.rng.below(to - from));
        let calm = Duration::from_millis(1_000 + self.rng.below(3_000));
        Some(Strike { calm, nemesis, target, lasts, seed: self.rng.u64() })
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn strikes(seed: u64) -> Vec<Strike> {
        let all = Nemesis::value_variants();
        Schedule::new(Rng::seeded(seed), all).take(all.len() * 20).collect()
    }

    #[test]
    fn a_seed_is_a_schedule_in_which_each_nemesis_has_its_turn() {
        assert_eq!(strikes(1), strikes(1));
        assert_ne!(strikes(1), strikes(2));
        for round in strikes(3).chunks(Nemesis::value_variants().len()) {
            let mut struck: Vec<_> = round.iter().map(|strike| strike.nemesis).collect();
            struck.sort_unstable();
            assert_eq!(struck, Nemesis::value_variants());
        }
        for target in [Target::Leader, Target::All] {
            assert!(strikes(4).iter().any(|strike| strike.target == target));
        }
        assert_eq!(Schedule::new(Rng::seeded(1), &[]).next(), None);
    }

    #[test]
    fn what_only_a_minority_may_suffer_never_strikes_all() {
        let all = strikes(5).into_iter().filter(|strike| strike.target == Target::All);
        assert!(all.map(|strike| strike.nemesis).all(Nemesis::may_strike_all));
    }

    #[test]
    fn a_nemesis_that_cannot_be_made_strikes_no_more() {
        let mut schedule = Schedule::new(Rng::seeded(1), &[Nemesis::Kill, Nemesis::DiskSlow]);
        schedule.give_up(Nemesis::DiskSlow);
        assert!(schedule.take(9).all(|strike| strike.nemesis == Nemesis::Kill));
    }
}

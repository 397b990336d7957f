//! The shapes of a partition, as the links that are cut. Pure.

/// How the network falls apart. Brokers are nodes `0..brokers`; all others are clients and the NameServer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    /// That one is apart from everybody, clients too.
    Isolated(usize),
    /// That one is apart from the other brokers; clients reach all.
    Alone(usize),
    /// The other brokers do not reach that one, which reaches them; clients reach all.
    Deaf(usize),
    /// That one does not reach the other brokers, which reach it; clients reach all.
    Mute(usize),
    /// That one reaches all, and no other broker reaches another; clients reach all.
    Bridge(usize),
}

impl Partition {
    /// The ordered pairs, from and to, on which nothing passes any more.
    pub fn cuts(self, brokers: usize, nodes: usize) -> Vec<(usize, usize)> {
        let is_cut = |(from, to): (usize, usize)| {
            let among_brokers = from < brokers && to < brokers;
            match self {
                Partition::Isolated(one) => from == one || to == one,
                Partition::Alone(one) => among_brokers && (from == one || to == one),
                Partition::Deaf(one) => among_brokers && to == one,
                Partition::Mute(one) => among_brokers && from == one,
                Partition::Bridge(one) => among_brokers && from != one && to != one,
            }
        };
        let pairs = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
        pairs.filter(|pair| pair.0 != pair.1 && is_cut(*pair)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Partition::{Alone, Bridge, Deaf, Isolated, Mute};

    /// Three brokers, and clients as node 3.
    #[test]
    fn each_shape_cuts_its_links_and_no_other() {
        for (shape, cuts) in [
            (Isolated(1), vec![(0, 1), (1, 0), (1, 2), (1, 3), (2, 1), (3, 1)]),
            (Alone(1), vec![(0, 1), (1, 0), (1, 2), (2, 1)]),
            (Deaf(1), vec![(0, 1), (2, 1)]),
            (Mute(1), vec![(1, 0), (1, 2)]),
            (Bridge(1), vec![(0, 2), (2, 0)]),
        ] {
            assert_eq!(shape.cuts(3, 4), cuts, "{shape:?}");
        }
    }

    #[test]
    fn of_five_a_bridge_is_all_that_holds_them_together() {
        let cuts = Bridge(0).cuts(5, 6);
        assert_eq!(cuts.len(), 4 * 3);
        assert!(cuts.iter().all(|(from, to)| (1..5).contains(from) && (1..5).contains(to)));
    }
}

//! The network: partitions, and links that are slow, lossy or doubling. The evidence is who hears whom, from datagrams
//! between all nodes while the fault begins, before it ends and when it is over, and what the wire counted meanwhile.
//!
//! None of these takes a majority away: whoever the partition cuts off, two replicas reach each other, directly or over the
//! third, and the contract promises service. What is slow or lossy is so within what TCP and elections bear.

use std::io;
use std::time::Duration;

use env::Rng;

use super::{AtWork, Evidence, Nemesis, Run, Undo, name};
use crate::history::edn::Edn;
use crate::net::Network;
use crate::net::link::{Counts, Link, Pairs};
use crate::net::partition::Partition;
use crate::run::NODES;

/// Makes the fault. An error unless the probes tell of just that fault.
pub fn strike(run: &Run, nemesis: Nemesis, victims: &[usize], rng: &Rng) -> io::Result<(Evidence, AtWork)> {
    let network = of(run)?;
    let before = network.wire().counts();
    let links = links(nemesis, victims, network.nodes(), rng);
    network.wire().set(|state| *state = links.clone());
    let heard = network.checked_probe(&|node| name(node).to_owned())?;
    let told = |pair| match links[pair] {
        link if link.is_whole() => heard[pair].to_string(),
        link => format!("{link}: {}", heard[pair].in_full()),
    };
    let at_work = AtWork::new(victims.to_vec(), Undo::Network(before));
    Ok((by_listener(network.nodes(), told), at_work))
}

/// Makes the network whole. The fault must have been there to the end, and now be gone.
pub fn heal(run: &Run, before: &Pairs<Counts>) -> io::Result<Evidence> {
    let network = of(run)?;
    let links = network.wire().links();
    let heard = network.checked_probe(&|node| name(node).to_owned())?;
    network.heal();
    let counts = network.wire().counts();
    let now = network.checked_probe(&|node| name(node).to_owned())?;
    let told = |pair| match links[pair] {
        link if link.is_whole() => now[pair].to_string(),
        _ => {
            let meanwhile = counts[pair].since(&before[pair]);
            format!("to the end {}; {meanwhile}; now {}", heard[pair].in_full(), now[pair])
        }
    };
    Ok(by_listener(network.nodes(), told))
}

fn of(run: &Run) -> io::Result<&Network> {
    run.network.as_deref().ok_or_else(|| io::Error::other("the run has no network of its own"))
}

/// What a fault makes of the links. Clients are the last node.
fn links(nemesis: Nemesis, victims: &[usize], nodes: usize, rng: &Rng) -> Pairs<Link> {
    let mut links = Pairs::new(nodes);
    let bad = match nemesis {
        Nemesis::Delay => {
            let shortest = Duration::from_millis(5 + rng.below(56));
            Link { delay: (shortest, shortest + shortest.mul_f64(rng.f64())), ..Link::default() }
        }
        // Everybody's links at once are as bad as TCP still bears.
        Nemesis::Loss if victims.len() > 1 => Link { loss: 50 + rng.below(51) as u32, ..Link::default() },
        Nemesis::Loss => Link { loss: 50 + rng.below(201) as u32, ..Link::default() },
        Nemesis::Duplicate => Link { duplicate: 100 + rng.below(401) as u32, ..Link::default() },
        partition => {
            let victim = victims[0];
            let shape = match partition {
                Nemesis::PartitionHalves => Partition::Isolated(victim),
                Nemesis::PartitionLeader => Partition::Alone(victim),
                Nemesis::PartitionOneWay if rng.chance(1, 2) => Partition::Deaf(victim),
                Nemesis::PartitionOneWay => Partition::Mute(victim),
                Nemesis::PartitionRing => Partition::Bridge(victim),
                other => unreachable!("{other:?} is no fault of the network"),
            };
            for pair in shape.cuts(NODES.len(), nodes) {
                links[pair] = Link { cut: true, ..Link::default() };
            }
            return links;
        }
    };
    for from in 0..nodes {
        for to in (0..nodes).filter(|to| *to != from && (victims.contains(&from) || victims.contains(to))) {
            links[(from, to)] = bad;
        }
    }
    links
}

/// For each node what is to be told of its links from all others.
fn by_listener(nodes: usize, told: impl Fn((usize, usize)) -> String) -> Evidence {
    let of = |to: usize| {
        let others = (0..nodes).filter(|from| *from != to);
        (to, Edn::Map(others.map(|from| (name(from).into(), told((from, to)).into())).collect()))
    };
    (0..nodes).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(nemesis: Nemesis, victims: &[usize], seed: u64) -> Vec<(usize, usize)> {
        let links = links(nemesis, victims, 4, &Rng::seeded(seed));
        links.iter().filter(|(_, link)| !link.is_whole()).map(|(pair, _)| pair).collect()
    }

    #[test]
    fn a_bad_node_has_bad_links_both_ways_and_all_have_all() {
        for nemesis in [Nemesis::Delay, Nemesis::Loss, Nemesis::Duplicate] {
            assert_eq!(bad(nemesis, &[2], 1), [(0, 2), (1, 2), (2, 0), (2, 1), (2, 3), (3, 2)]);
            assert_eq!(bad(nemesis, &[0, 1, 2], 1).len(), 12);
        }
    }

    #[test]
    fn a_seed_draws_which_way_is_cut() {
        let drawn: Vec<_> = (0..10).map(|seed| bad(Nemesis::PartitionOneWay, &[1], seed)).collect();
        assert!(drawn.iter().all(|cut| *cut == [(0, 1), (2, 1)] || *cut == [(1, 0), (1, 2)]));
        assert_ne!(drawn.iter().min(), drawn.iter().max());
        assert_eq!(bad(Nemesis::PartitionOneWay, &[1], 5), drawn[5]);
    }

    #[test]
    fn no_partition_leaves_less_than_a_majority_connected() {
        let partitions =
            [Nemesis::PartitionHalves, Nemesis::PartitionLeader, Nemesis::PartitionOneWay, Nemesis::PartitionRing];
        for (nemesis, seed) in partitions.into_iter().flat_map(|nemesis| (0..4).map(move |seed| (nemesis, seed))) {
            let cut = bad(nemesis, &[1], seed);
            let whole = |a: usize, b: usize| !cut.contains(&(a, b)) && !cut.contains(&(b, a));
            let served = |a: usize, b: usize| whole(a, b) && whole(a, 3) && whole(b, 3);
            assert!(served(0, 1) || served(0, 2) || served(1, 2), "{nemesis:?}: {cut:?}");
        }
    }
}

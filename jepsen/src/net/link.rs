//! What happens to a frame on its way from one node to another. Pure: the wire asks, and does it.

use std::fmt;
use std::ops::{Index, IndexMut};
use std::time::Duration;

use env::Rng;

/// Something for each ordered pair of nodes, `(from, to)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairs<T> {
    nodes: usize,
    cells: Vec<T>,
}

impl<T: Clone + Default> Pairs<T> {
    /// The default for each pair.
    pub fn new(nodes: usize) -> Pairs<T> {
        Pairs { nodes, cells: vec![T::default(); nodes * nodes] }
    }
}

impl<T> Pairs<T> {
    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// All pairs of two different nodes.
    pub fn iter(&self) -> impl Iterator<Item = ((usize, usize), &T)> {
        let pairs = (0..self.nodes).flat_map(|from| (0..self.nodes).map(move |to| (from, to)));
        pairs.zip(&self.cells).filter(|((from, to), _)| from != to)
    }
}

impl<T> Index<(usize, usize)> for Pairs<T> {
    type Output = T;

    fn index(&self, (from, to): (usize, usize)) -> &T {
        &self.cells[from * self.nodes + to]
    }
}

impl<T> IndexMut<(usize, usize)> for Pairs<T> {
    fn index_mut(&mut self, (from, to): (usize, usize)) -> &mut T {
        &mut self.cells[from * self.nodes + to]
    }
}

/// The state of the way from one node to another; by default it is whole and takes no time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Nothing passes.
    pub cut: bool,
    /// So many frames of a thousand are lost.
    pub loss: u32,
    /// So many frames of a thousand come twice.
    pub duplicate: u32,
    /// Each frame takes at least the first and less than the second, which it may overtake others by.
    pub delay: (Duration, Duration),
}

impl Link {
    /// Whether all passes at once.
    pub fn is_whole(&self) -> bool {
        *self == Link::default()
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Link { cut, loss, duplicate, delay } = *self;
        let of_1000 = |count: u32, what: &str| (count > 0).then(|| format!("{count} of 1000 {what}"));
        let slow = (delay.1 > Duration::ZERO).then(|| format!("{:?} to {:?} slow", delay.0, delay.1));
        let bad = [cut.then(|| "cut".to_owned()), of_1000(loss, "lost"), of_1000(duplicate, "twice"), slow];
        let bad: Vec<_> = bad.into_iter().flatten().collect();
        if bad.is_empty() { f.write_str("whole") } else { f.write_str(&bad.join(", ")) }
    }
}

/// What became of the frames of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Delivered; one that comes twice counts twice.
    pub forwarded: u64,
    /// Lost, or come to a cut.
    pub dropped: u64,
    /// Sent a second time.
    pub duplicated: u64,
    /// Held back.
    pub delayed: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} forwarded, {} dropped", self.forwarded, self.dropped)?;
        for (count, what) in [(self.duplicated, "doubled"), (self.delayed, "held back")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

impl Counts {
    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            forwarded: self.forwarded - earlier.forwarded,
            dropped: self.dropped - earlier.dropped,
            duplicated: self.duplicated - earlier.duplicated,
            delayed: self.delayed - earlier.delayed,
        }
    }
}

/// The links between all nodes, what is counted on them, and the dice.
#[derive(Debug)]
pub struct Links {
    rng: Rng,
    /// As they are now.
    pub state: Pairs<Link>,
    counts: Pairs<Counts>,
}

impl Links {
    /// Whole links between that many nodes.
    pub fn new(nodes: usize, rng: Rng) -> Links {
        Links { rng, state: Pairs::new(nodes), counts: Pairs::new(nodes) }
    }

    /// What was counted since the beginning.
    pub fn counts(&self) -> &Pairs<Counts> {
        &self.counts
    }

    /// A frame sets out: after how long each of its copies is to arrive. None arrives if there is none.
    pub fn set_out(&mut self, pair: (usize, usize)) -> [Option<Duration>; 2] {
        let Link { cut, loss, duplicate, delay } = self.state[pair];
        let counts = &mut self.counts[pair];
        if cut || happens(&self.rng, loss) {
            counts.dropped += 1;
            return [None, None];
        }
        let first = drawn(&self.rng, delay);
        let second = happens(&self.rng, duplicate).then(|| drawn(&self.rng, delay));
        counts.duplicated += u64::from(second.is_some());
        counts.delayed += u64::from(first > Duration::ZERO);
        [Some(first), second]
    }

    /// A copy is at the end of its way. Whether it arrives: one that is under way when its link is cut is lost.
    pub fn arrives(&mut self, pair: (usize, usize)) -> bool {
        let (cut, counts) = (self.state[pair].cut, &mut self.counts[pair]);
        if cut {
            counts.dropped += 1;
        } else {
            counts.forwarded += 1;
        }
        !cut
    }
}

/// Whether what happens to so many of a thousand happens. What never happens costs no number.
fn happens(rng: &Rng, per_mille: u32) -> bool {
    per_mille > 0 && rng.chance(per_mille.into(), 1000)
}

fn drawn(rng: &Rng, (from, to): (Duration, Duration)) -> Duration {
    let spread = to.saturating_sub(from).as_micros() as u64;
    if spread == 0 { from } else { from + Duration::from_micros(rng.below(spread)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: (usize, usize) = (0, 1);

    fn links(link: Link) -> Links {
        let mut links = Links::new(3, Rng::seeded(7));
        links.state[LINK] = link;
        links
    }

    #[test]
    fn pairs_are_ordered_and_of_two() {
        let mut pairs = Pairs::<u8>::new(3);
        pairs[(2, 0)] = 9;
        assert_eq!((pairs[(2, 0)], pairs[(0, 2)]), (9, 0));
        let all: Vec<_> = pairs.iter().map(|(pair, value)| (pair, *value)).collect();
        assert_eq!(all, [((0, 1), 0), ((0, 2), 0), ((1, 0), 0), ((1, 2), 0), ((2, 0), 9), ((2, 1), 0)]);
    }

    #[test]
    fn a_whole_link_forwards_at_once() {
        let mut links = links(Link::default());
        assert_eq!(links.set_out(LINK), [Some(Duration::ZERO), None]);
        assert!(links.arrives(LINK));
        assert_eq!(links.counts()[LINK], Counts { forwarded: 1, ..Counts::default() });
    }

    #[test]
    fn a_cut_goes_one_way_and_takes_what_is_under_way() {
        let mut links = links(Link { delay: (Duration::from_millis(1), Duration::from_millis(2)), ..Link::default() });
        assert!(links.set_out(LINK)[0].is_some());
        links.state[LINK].cut = true;
        assert!(!links.arrives(LINK));
        assert_eq!(links.set_out(LINK), [None, None]);
        assert_eq!(links.counts()[LINK], Counts { dropped: 2, delayed: 1, ..Counts::default() });
        assert_eq!(links.set_out((1, 0)), [Some(Duration::ZERO), None]);
    }

    #[test]
    fn loss_and_duplicates_are_drawn_from_the_seed_as_often_as_asked() {
        let lossy = Link { loss: 100, duplicate: 200, ..Link::default() };
        let fates = |links: &mut Links| (0..10_000).map(|_| links.set_out(LINK)).collect::<Vec<_>>();
        let (mut one, mut other) = (links(lossy), links(lossy));
        assert_eq!(fates(&mut one), fates(&mut other));
        let Counts { dropped, duplicated, delayed, .. } = one.counts()[LINK];
        assert_eq!(delayed, 0);
        assert!((900..1_100).contains(&dropped), "{dropped} lost");
        assert!((1_650..1_950).contains(&duplicated), "{duplicated} twice");
    }

    #[test]
    fn delays_are_within_their_range_and_let_frames_overtake_each_other() {
        let delay = (Duration::from_millis(10), Duration::from_millis(30));
        let mut links = links(Link { delay, ..Link::default() });
        let drawn: Vec<_> = (0..1_000).filter_map(|_| links.set_out(LINK)[0]).collect();
        assert!(drawn.iter().all(|drawn| (delay.0..delay.1).contains(drawn)));
        assert!(!drawn.is_sorted() && drawn.len() == 1_000);
        assert_eq!(links.counts()[LINK].delayed, 1_000);
    }
}

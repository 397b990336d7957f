//! Who hears whom: datagrams from every node to every other, through the same devices and the same wire as all else.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::link::{Link, Pairs};

/// Sent on each link, one after the other.
const PROBES: usize = 50;

/// Between two of them.
const BETWEEN: Duration = Duration::from_millis(4);

/// After the last one could have arrived: how long a busy machine may take to show it.
const GRACE: Duration = Duration::from_millis(300);

const PORT: u16 = 7;

/// Tells the probes of one round from those of others.
static ROUND: AtomicU64 = AtomicU64::new(0);

/// A node's socket for probes, made in this thread's network namespace.
pub fn socket(address: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, PORT))?;
    socket.set_read_timeout(Some(Duration::from_millis(10)))?;
    Ok(socket)
}

/// What came of the probes on one link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Of each probe, how often it came.
    times: Vec<u8>,
    /// Shortest and longest time on the way.
    took: Option<(Duration, Duration)>,
}

impl Heard {
    fn hear(&mut self, probe: usize, took: Duration) {
        self.times[probe] += 1;
        let (shortest, longest) = self.took.unwrap_or((took, took));
        self.took = Some((shortest.min(took), longest.max(took)));
    }

    /// Probes that were sent.
    pub fn sent(&self) -> usize {
        self.times.len()
    }

    /// Probes that came, once or more often.
    pub fn came(&self) -> usize {
        self.times.iter().filter(|times| **times > 0).count()
    }

    /// Probes that came more than once.
    pub fn repeated(&self) -> usize {
        self.times.iter().filter(|times| **times > 1).count()
    }

    /// With what came twice, and the times.
    pub fn in_full(&self) -> String {
        let ms = |took: Duration| took.as_secs_f64() * 1e3;
        let twice = if self.repeated() > 0 { format!(", {} twice", self.repeated()) } else { String::new() };
        let took = self.took.map(|(from, to)| format!(" in {:.1} to {:.1} ms", ms(from), ms(to)));
        format!("{self}{twice}{}", took.unwrap_or_default())
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.came(), self.sent())
    }
}

/// Probes every link. `longest_delay` is how long the wire may hold one back.
pub fn probe(nodes: &[(UdpSocket, Ipv4Addr)], longest_delay: Duration) -> io::Result<Pairs<Heard>> {
    let began = Instant::now();
    // Probes of earlier rounds may still come.
    let round = ROUND.fetch_add(1, Ordering::Relaxed);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let listen = |to: usize| {
            let (over, socket) = (&over, &nodes[to].0);
            scope.spawn(move || listen(socket, nodes.len(), round, began, over))
        };
        let listeners: Vec<_> = (0..nodes.len()).map(listen).collect();
        let sent = send(nodes, round, began);
        if sent.is_ok() {
            std::thread::sleep(longest_delay + GRACE);
        }
        over.store(true, Ordering::Relaxed);
        let mut heard = Pairs::new(nodes.len());
        for (to, listener) in listeners.into_iter().enumerate() {
            let by_sender = listener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            by_sender.into_iter().enumerate().for_each(|(from, of_it)| heard[(from, to)] = of_it);
        }
        sent.map(|()| heard)
    })
}

fn send(nodes: &[(UdpSocket, Ipv4Addr)], round: u64, began: Instant) -> io::Result<()> {
    for probe in 0..PROBES {
        for (from, (socket, _)) in nodes.iter().enumerate() {
            for (_, (_, address)) in nodes.iter().enumerate().filter(|(to, _)| *to != from) {
                let sent = began.elapsed().as_nanos() as u64;
                let words = [round, from as u64, probe as u64, sent];
                let datagram: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
                socket.send_to(&datagram, SocketAddr::from((*address, PORT)))?;
            }
        }
        std::thread::sleep(BETWEEN);
    }
    Ok(())
}

/// What one node hears from each, until it is over and nothing is left.
fn listen(socket: &UdpSocket, nodes: usize, round: u64, began: Instant, over: &AtomicBool) -> io::Result<Vec<Heard>> {
    let mut heard = vec![Heard { times: vec![0; PROBES], took: None }; nodes];
    let mut datagram = [0; 32];
    loop {
        match socket.recv_from(&mut datagram) {
            Ok((32, _)) => {}
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // What came while this thread waited for a processor is heard before it is over.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && over.load(Ordering::Relaxed) => {
                return Ok(heard);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let now = began.elapsed();
        let word = |k: usize| u64::from_le_bytes(*datagram[8 * k..].first_chunk().expect("four words"));
        if word(0) == round {
            heard[word(1) as usize].hear(word(2) as usize, now.saturating_sub(Duration::from_nanos(word(3))));
        }
    }
}

/// Where what was heard is not what such links let through. `name` names the nodes.
pub fn contradictions(links: &Pairs<Link>, heard: &Pairs<Heard>, name: &dyn Fn(usize) -> String) -> Vec<String> {
    let mut wrong = Vec::new();
    let (mut lossy, mut lost, mut doubling, mut repeated) = (false, 0, false, 0);
    for ((from, to), link) in links.iter() {
        let heard = &heard[(from, to)];
        let mut say =
            |what: String| wrong.push(format!("{} to {}: {what}, but {} came", name(from), name(to), heard.in_full()));
        if link.cut {
            if heard.came() > 0 {
                say("it is cut".to_owned());
            }
            continue;
        }
        if heard.came() == 0 || link.loss == 0 && heard.came() < heard.sent() {
            say(format!("{} of 1000 are to be lost", link.loss));
        }
        if link.duplicate == 0 && heard.repeated() > 0 {
            say("none is to come twice".to_owned());
        }
        if heard.took.is_some_and(|(shortest, _)| shortest < link.delay.0) {
            say(format!("they are to take {:?}", link.delay.0));
        }
        lossy |= link.loss > 0;
        lost += heard.sent() - heard.came();
        doubling |= link.duplicate > 0;
        repeated += heard.repeated();
    }
    if lossy && lost == 0 {
        wrong.push("not one probe was lost".to_owned());
    }
    if doubling && repeated == 0 {
        wrong.push("not one probe came twice".to_owned());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(times: &[u8], ms: u64) -> Heard {
        let took = times.iter().any(|times| *times > 0).then_some(Duration::from_millis(ms));
        Heard { times: times.to_vec(), took: took.map(|took| (took, took)) }
    }

    /// What is wrong if on the link from a to b that is heard, and on the way back all.
    fn wrong(link: Link, on_it: Heard) -> Vec<String> {
        let (mut links, mut all) = (Pairs::new(2), Pairs::new(2));
        links[(0, 1)] = link;
        all[(0, 1)] = on_it;
        all[(1, 0)] = heard(&[1, 1, 1], 0);
        contradictions(&links, &all, &|node| ["a", "b"][node].to_owned())
    }

    #[test]
    fn what_is_heard_must_be_what_the_links_let_through() {
        let ms = Duration::from_millis;
        let whole = Link::default();
        let (cut, lossy) = (Link { cut: true, ..whole }, Link { loss: 300, ..whole });
        let (doubling, slow) = (Link { duplicate: 300, ..whole }, Link { delay: (ms(5), ms(9)), ..whole });
        for (link, sound, unsound) in [
            (whole, heard(&[1, 1, 1], 0), vec![heard(&[1, 0, 1], 0), heard(&[1, 2, 1], 0), heard(&[0, 0, 0], 0)]),
            (cut, heard(&[0, 0, 0], 0), vec![heard(&[0, 1, 0], 0)]),
            (lossy, heard(&[1, 0, 1], 0), vec![heard(&[1, 1, 1], 0), heard(&[0, 0, 0], 0)]),
            (doubling, heard(&[1, 2, 1], 0), vec![heard(&[1, 1, 1], 0), heard(&[2, 0, 1], 0)]),
            (slow, heard(&[1, 1, 1], 6), vec![heard(&[1, 1, 1], 4)]),
        ] {
            assert_eq!(wrong(link, sound), [""; 0]);
            for unsound in unsound {
                assert_eq!(wrong(link, unsound.clone()).len(), 1, "{link:?} and {unsound}");
            }
        }
    }

    #[test]
    fn a_contradiction_says_where() {
        let cut = Link { cut: true, ..Link::default() };
        assert_eq!(wrong(cut, heard(&[1, 0, 0], 2)), ["a to b: it is cut, but 1 of 3 in 2.0 to 2.0 ms came"]);
    }
}

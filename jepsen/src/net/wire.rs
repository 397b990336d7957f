//! The one wire that connects all namespaces: a thread that takes packets from each node's device and hands them to the
//! node that they are for, at once or when they are due, twice or never, as the [`Links`] say.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, PipeReader, PipeWriter};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::link::{Counts, Link, Links, Pairs};
use super::tun::{MTU, Tun, destination};
use crate::disk;

/// Packets taken from one node before the others have their turn.
const AT_ONCE: usize = 16;

/// Ends when it is dropped, and the devices with it.
#[derive(Debug)]
pub struct Wire {
    links: Arc<Mutex<Links>>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Wire {
    /// Connects nodes, each with its device and its address.
    pub fn connect(nodes: Vec<(Tun, Ipv4Addr)>, links: Links) -> io::Result<Wire> {
        let (stopped, stop) = io::pipe()?;
        let links = Arc::new(Mutex::new(links));
        let (devices, addresses) = nodes.into_iter().unzip();
        let forwarding = Forwarding { devices, addresses, links: Arc::clone(&links), held_back: HeldBack::default() };
        let thread = std::thread::Builder::new().name("wire".to_owned()).spawn(move || forwarding.run(&stopped))?;
        Ok(Wire { links, stop: Some(stop), thread: Some(thread) })
    }

    /// Sets the links; those that `set` leaves alone become whole.
    pub fn set(&self, set: impl FnOnce(&mut Pairs<Link>)) {
        let mut state = Pairs::new(self.links.lock().state.nodes());
        set(&mut state);
        self.links.lock().state = state;
    }

    /// The links as they are now.
    pub fn links(&self) -> Pairs<Link> {
        self.links.lock().state.clone()
    }

    /// What was counted on each link since the beginning.
    pub fn counts(&self) -> Pairs<Counts> {
        self.links.lock().counts().clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the wire had ended: {error}");
        }
    }
}

struct Forwarding {
    devices: Vec<Tun>,
    addresses: Vec<Ipv4Addr>,
    links: Arc<Mutex<Links>>,
    held_back: HeldBack<Vec<u8>>,
}

impl Forwarding {
    /// Until the other end of `stopped` is closed.
    fn run(mut self, stopped: &PipeReader) -> io::Result<()> {
        do_not_wait_for_a_processor();
        let mut buffer = Box::new([0; MTU]);
        loop {
            let mut ready: Vec<_> = self.devices.iter().map(|device| PollFd::new(device, PollFlags::IN)).collect();
            ready.push(PollFd::new(stopped, PollFlags::IN));
            let wait = self.held_back.next().map(|due| due.saturating_duration_since(Instant::now()));
            let wait = wait.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() });
            match poll(&mut ready, wait.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled?,
            };
            let ready: Vec<bool> = ready.iter().map(|ready| !ready.revents().is_empty()).collect();
            if ready[self.devices.len()] {
                return Ok(());
            }
            let now = Instant::now();
            while let Some((pair, packet)) = self.held_back.take_due(now) {
                self.deliver(pair, &packet)?;
            }
            for from in (0..self.devices.len()).filter(|node| ready[*node]) {
                for _ in 0..AT_ONCE {
                    let Some(length) = self.devices[from].read(&mut buffer)? else { break };
                    self.forward(from, &buffer[..length])?;
                }
            }
        }
    }

    fn forward(&mut self, from: usize, packet: &[u8]) -> io::Result<()> {
        let node = |address| self.addresses.iter().position(|node| *node == address);
        // What the kernel says to nobody in particular, such as a search for IPv6 routers, ends here.
        let Some(to) = destination(packet).and_then(node) else { return Ok(()) };
        let copies = self.links.lock().set_out((from, to));
        for delay in copies.into_iter().flatten() {
            if delay.is_zero() {
                self.deliver((from, to), packet)?;
            } else {
                self.held_back.add(Instant::now() + delay, (from, to), packet.to_vec());
            }
        }
        Ok(())
    }

    fn deliver(&mut self, pair: (usize, usize), packet: &[u8]) -> io::Result<()> {
        if self.links.lock().arrives(pair) {
            self.devices[pair.1].write(packet)?;
        }
        Ok(())
    }
}

/// A busy machine must not make a whole wire slow: this thread goes before all that are not real-time's. Where that is not
/// allowed it is a thread as others are, and the probes tell if it is too slow.
fn do_not_wait_for_a_processor() {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let _ = disk::run("chrt", &["--fifo", "--pid", "1", &thread]);
}

/// Packets by when they are due; of those due at one time the first is the first that came.
#[derive(Debug)]
struct HeldBack<P> {
    packets: BinaryHeap<Reverse<Packet<P>>>,
    came: u64,
}

type Packet<P> = (Instant, u64, (usize, usize), P);

impl<P: Ord> Default for HeldBack<P> {
    fn default() -> HeldBack<P> {
        HeldBack { packets: BinaryHeap::new(), came: 0 }
    }
}

impl<P: Ord> HeldBack<P> {
    fn add(&mut self, due: Instant, pair: (usize, usize), packet: P) {
        self.came += 1;
        self.packets.push(Reverse((due, self.came, pair, packet)));
    }

    /// When the next one is due.
    fn next(&self) -> Option<Instant> {
        self.packets.peek().map(|Reverse((due, ..))| *due)
    }

    fn take_due(&mut self, now: Instant) -> Option<((usize, usize), P)> {
        self.next().filter(|due| *due <= now)?;
        self.packets.pop().map(|Reverse((_, _, pair, packet))| (pair, packet))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_held_back_comes_when_it_is_due_and_in_the_order_in_which_it_came() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut held_back = HeldBack::default();
        for (ms, name) in [(20, "late"), (10, "early"), (20, "also late"), (10, "also early")] {
            held_back.add(at(ms), (0, 1), name);
        }
        let mut due = |ms| std::iter::from_fn(|| held_back.take_due(at(ms)).map(|(_, name)| name)).collect::<Vec<_>>();
        assert_eq!(due(9), [""; 0]);
        assert_eq!(due(10), ["early", "also early"]);
        assert_eq!(due(25), ["late", "also late"]);
        assert_eq!(held_back.next(), None);
    }
}

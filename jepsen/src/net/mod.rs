//! A network of our own: every broker in a network namespace of its own, the clients and the NameServer in another, and one
//! wire between them, of which each direction of each pair can be cut, slow, lossy or doubling.
//!
//! - [`link`]: what happens to a frame, drawn from a seed; [`partition`]: which links a partition cuts. Both pure.
//! - [`wire`] does it, a thread between the [`tun`] devices of all nodes.
//! - [`probe`]: who hears whom, measured with datagrams, and whether that is what the links should let through.
//! - [`namespace`]: where a node's processes run.
//!
//! Nothing has a name outside of the process, and everything is held by its descriptors: however it ends, nothing is left.
//! Needs root, `/dev/net/tun`, `ip` (iproute2), and `unshare`, `nsenter`, `setpriv` and `chrt` (util-linux).

pub mod link;
pub mod namespace;
pub mod partition;
pub mod probe;
pub mod tun;
pub mod wire;

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use env::Rng;

use crate::cluster::Host;
use link::{Link, Links, Pairs};
use namespace::Namespace;
use probe::Heard;
use tun::Tun;
use wire::Wire;

/// See the top. Brokers are nodes `0..brokers`, clients and the NameServer are the node after them.
#[derive(Debug)]
pub struct Network {
    wire: Wire,
    namespaces: Vec<Namespace>,
    probes: Vec<(UdpSocket, Ipv4Addr)>,
}

impl Network {
    /// A whole network for that many brokers. `Unsupported` if it cannot be made here.
    pub fn create(brokers: usize, rng: Rng) -> io::Result<Network> {
        let mut namespaces = Vec::new();
        let mut devices = Vec::new();
        let mut probes = Vec::new();
        for node in 0..=brokers {
            let address = address(node, brokers);
            let namespace = Namespace::create()?;
            let (device, probe) = namespace.within(|| Ok((Tun::create(address)?, probe::socket(address)?)))?;
            namespaces.push(namespace);
            devices.push((device, address));
            probes.push((probe, address));
        }
        let wire = Wire::connect(devices, Links::new(brokers + 1, rng))?;
        let network = Network { wire, namespaces, probes };
        network.checked_probe(&|node| address(node, brokers).to_string())?;
        Ok(network)
    }

    /// How many nodes it has, the clients' included.
    pub fn nodes(&self) -> usize {
        self.namespaces.len()
    }

    /// The wire.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// A node, for the processes that are to run there.
    pub fn host(&self, node: usize) -> Host {
        Host { address: self.probes[node].1, enter: self.namespaces[node].enter() }
    }

    /// Does something at a node. Threads and processes that it starts are there too.
    pub fn within<T: Send>(&self, node: usize, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.namespaces[node].within(work)
    }

    /// The node of the clients.
    pub fn clients(&self) -> usize {
        self.nodes() - 1
    }

    /// Probes each link once; takes half a second.
    pub fn probe(&self) -> io::Result<Pairs<Heard>> {
        let longest = self.wire.links().iter().map(|(_, link)| link.delay.1).max();
        probe::probe(&self.probes, longest.unwrap_or(Duration::ZERO))
    }

    /// Who hears whom; an error unless that is what the links, as they are now, let through. What did not come, or came late,
    /// since the machine stood still for a moment, is probed again. What came where nothing may pass is an error at once.
    pub fn checked_probe(&self, name: &dyn Fn(usize) -> String) -> io::Result<Pairs<Heard>> {
        const TRIES: u32 = 5;
        let links = self.wire.links();
        let mut wrong = Vec::new();
        for _ in 0..TRIES {
            let heard = self.probe()?;
            wrong = probe::contradictions(&links, &heard, name);
            if wrong.is_empty() {
                return Ok(heard);
            }
            if links.iter().any(|(pair, link)| link.cut && heard[pair].came() > 0) {
                break;
            }
        }
        Err(io::Error::other(format!("on the wire: {}", wrong.join("; "))))
    }

    /// Cuts these links, from and to, and makes all others whole.
    pub fn cut(&self, pairs: &[(usize, usize)]) {
        self.wire.set(|links| pairs.iter().for_each(|pair| links[*pair] = Link { cut: true, ..Link::default() }));
    }

    /// Makes all links whole.
    pub fn heal(&self) {
        self.wire.set(|_| ());
    }
}

fn address(node: usize, brokers: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, if node < brokers { node as u8 + 1 } else { 100 })
}

//! A real wire between real network namespaces: what it is told to do is what datagrams and connections then meet, on the
//! links that were meant and on no other. Needs what `jepsen::net` needs; without it nothing is tested, which is said.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use env::Rng;
use jepsen::net::Network;
use jepsen::net::link::{Link, Pairs};
use jepsen::net::partition::Partition;
use jepsen::net::probe::{Heard, contradictions};

const BROKERS: usize = 3;

fn network() -> Option<Network> {
    match Network::create(BROKERS, Rng::seeded(1)) {
        Ok(network) => Some(network),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            // Past the test harness, which keeps what a test that passes prints.
            writeln!(io::stderr(), "SKIPPED, nothing was tested: {error}").expect("stderr");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Who hears whom, which must be what the links let through.
fn checked_probe(network: &Network) -> Pairs<Heard> {
    network.checked_probe(&name).unwrap()
}

fn name(node: usize) -> String {
    format!("node {node}")
}

#[test]
fn a_cut_of_one_direction_is_dead_in_that_direction_alone() {
    let Some(network) = network() else { return };
    network.cut(&[(0, 1)]);
    let heard = checked_probe(&network);
    for (pair, heard) in heard.iter() {
        assert_eq!(heard.came(), if pair == (0, 1) { 0 } else { heard.sent() }, "{pair:?}: {heard}");
    }
    assert!(network.wire().counts()[(0, 1)].dropped >= 50);
    network.heal();
    // The control: what was heard while it was cut is not what a whole network lets through.
    let wrong = contradictions(&network.wire().links(), &heard, &name);
    assert_eq!(wrong, ["node 0 to node 1: 0 of 1000 are to be lost, but 0 of 50 came"]);
    checked_probe(&network);
}

#[test]
fn every_partition_is_what_its_name_says() {
    let Some(network) = network() else { return };
    for k in 0..BROKERS {
        for shape in [Partition::Isolated, Partition::Alone, Partition::Deaf, Partition::Mute, Partition::Bridge] {
            network.cut(&shape(k).cuts(BROKERS, network.nodes()));
            checked_probe(&network);
        }
    }
}

#[test]
fn a_bad_link_is_slow_lossy_and_doubling_as_asked_and_a_connection_over_it_still_sound() {
    let Some(network) = network() else { return };
    let delay = (Duration::from_millis(5), Duration::from_millis(15));
    network.wire().set(|links| links[(0, 1)] = Link { delay, loss: 100, duplicate: 200, ..Link::default() });
    checked_probe(&network);
    let counts = network.wire().counts()[(0, 1)];
    assert!(counts.dropped > 0 && counts.duplicated > 0 && counts.delayed > 0, "{counts:?}");

    // Reordered, lost and doubled packets are TCP's to mend.
    let (server, client) = (network.host(1), network.host(0));
    let listener = network.within(1, || TcpListener::bind((server.address, 9000))).unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|k| (k % 251) as u8).collect();
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = network.within(0, || TcpStream::connect((server.address, 9000))).unwrap();
            connection.write_all(&sent).unwrap();
        });
        let (mut connection, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), client.address);
        let mut received = Vec::new();
        connection.read_to_end(&mut received).unwrap();
        received
    });
    assert!(received == sent);
}

#[test]
fn a_whole_wire_takes_no_time() {
    let Some(network) = network() else { return };
    let address = network.host(1).address;
    let listener = network.within(1, || TcpListener::bind((address, 9000))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut connection, _) = listener.accept().unwrap();
            let mut byte = [0];
            while connection.read(&mut byte).unwrap() == 1 {
                connection.write_all(&byte).unwrap();
            }
        });
        let mut connection = network.within(0, || TcpStream::connect((address, 9000))).unwrap();
        connection.set_nodelay(true).unwrap();
        let mut shortest = Duration::MAX;
        for _ in 0..200 {
            let asked = Instant::now();
            connection.write_all(&[7]).unwrap();
            connection.read_exact(&mut [0]).unwrap();
            shortest = shortest.min(asked.elapsed());
        }
        // A timer of the wire's would show: held back to the next millisecond, there and back take two.
        assert!(shortest < Duration::from_millis(1), "there and back in {shortest:?}");
    });
}

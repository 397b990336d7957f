//! A TUN device: the end of the wire in one network namespace. What the kernel routes to it is read here as IP packets,
//! and what is written here arrives. It goes when its descriptor does.
//!
//! IP packets and not Ethernet frames, as of TAP: then there is no ARP, whose answers a one-way cut would lose, and so
//! sooner or later cut both ways.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use rustix::ioctl::{Updater, ioctl, opcode};

use crate::disk;

/// As large as an IP packet can be: segments as large as on loopback keep the packets few.
pub const MTU: usize = 65_535;

/// The device's name, in each namespace.
const NAME: &str = "wire";

const IFF_TUN: u16 = 1;
const IFF_NO_PI: u16 = 0x1000;
const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);

/// `struct ifreq` of netdevice(7).
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    unused: [u8; 22],
}

/// See the top.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Makes the device in this thread's network namespace, and brings it up with that address in a /24.
    pub fn create(address: Ipv4Addr) -> io::Result<Tun> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        let file = options.open("/dev/net/tun").map_err(|error| unsupported("/dev/net/tun", &error))?;
        make_device(&file).map_err(|error| unsupported("TUN", &error))?;
        disk::run("ip", &["address", "add", &format!("{address}/24"), "dev", NAME])?;
        disk::run("ip", &["link", "set", NAME, "mtu", &MTU.to_string(), "txqueuelen", "10000", "up"])?;
        Ok(Tun(file))
    }

    /// The next packet of the kernel's; `None` if there is none now.
    pub fn read(&self, buffer: &mut [u8; MTU]) -> io::Result<Option<usize>> {
        match (&self.0).read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hands a packet to the kernel.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        let written = (&self.0).write(packet)?;
        assert_eq!(written, packet.len(), "a packet is written whole");
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Turns the open file into a device.
#[allow(unsafe_code)]
fn make_device(file: &File) -> rustix::io::Result<()> {
    let mut request = InterfaceRequest { name: [0; 16], flags: IFF_TUN | IFF_NO_PI, unused: [0; 22] };
    request.name[..NAME.len()].copy_from_slice(NAME.as_bytes());
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq` (linux/Documentation/networking/tuntap.rst), which `request` is
    // in size and layout, borrowed for the call alone.
    unsafe { ioctl(file, Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request)) }
}

fn unsupported(what: &str, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("no network of its own: {what}: {error}"))
}

/// Where an IPv4 packet is to go; `None` for anything else.
pub fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let [.., a, b, c, d] = *header;
    (header[0] >> 4 == 4).then_some(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_is_read_from_ipv4_alone() {
        let mut packet =
            vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 0, 100, 10, 99, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(destination(&packet), Some(Ipv4Addr::new(10, 99, 0, 2)));
        assert_eq!(destination(&packet[..19]), None);
        packet[0] = 0x60;
        assert_eq!(destination(&packet), None, "IPv6");
    }
}

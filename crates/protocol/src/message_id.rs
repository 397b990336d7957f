//! The two ids of a message: where its bytes lie (offset message id), and who made it (unique key).
//!
//! ```text
//! offset message id   IP 4 or 16, port i32, physical offset i64                      32 or 56 hexadecimal digits
//! unique key          IP 4 or 16, pid i16, class hash i32, ms of month i32, counter i16    32 or 56 digits
//! ```

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Offset message id: the broker's address and the record's physical offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId {
    /// Where clients reach the broker: they dial it to look at the message.
    pub store_host: SocketAddr,
    /// Where the record lies.
    pub physical_offset: i64,
}

/// The text is no message id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a message id has 32 or 56 hexadecimal digits")]
pub struct BadMessageId;

impl std::fmt::Display for MessageId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.store_host.ip() {
            IpAddr::V4(ip) => write!(formatter, "{:08X}", u32::from(ip))?,
            IpAddr::V6(ip) => write!(formatter, "{:032X}", u128::from(ip))?,
        }
        write!(formatter, "{:08X}{:016X}", self.store_host.port(), self.physical_offset)
    }
}

impl FromStr for MessageId {
    type Err = BadMessageId;

    fn from_str(text: &str) -> Result<Self, BadMessageId> {
        let (ip, rest) = ip_and_rest(text)?;
        let port = u32::from_str_radix(&rest[..8], 16).map_err(|_| BadMessageId)?;
        let port = u16::try_from(port).map_err(|_| BadMessageId)?;
        let offset = u64::from_str_radix(&rest[8..], 16).map_err(|_| BadMessageId)?;
        Ok(Self { store_host: SocketAddr::new(ip, port), physical_offset: offset as i64 })
    }
}

/// The parts of a UNIQ_KEY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UniqueKey {
    /// The producer's address.
    pub ip: IpAddr,
    /// Its process id, the low 16 bits.
    pub pid: i16,
    /// Tells class loaders of one JVM apart; here: any number fixed for the process.
    pub class_hash: i32,
    /// Milliseconds since the first of the month, local time.
    pub month_ms: i32,
    /// Counts the messages of the process.
    pub counter: i16,
}

impl std::fmt::Display for UniqueKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(formatter, "{:08X}", u32::from(ip))?,
            IpAddr::V6(ip) => write!(formatter, "{:032X}", u128::from(ip))?,
        }
        let Self { pid, class_hash, month_ms, counter, .. } = self;
        write!(formatter, "{pid:04X}{class_hash:08X}{month_ms:08X}{counter:04X}")
    }
}

impl FromStr for UniqueKey {
    type Err = BadMessageId;

    fn from_str(text: &str) -> Result<Self, BadMessageId> {
        let (ip, rest) = ip_and_rest(text)?;
        let short = |at: usize| u16::from_str_radix(&rest[at..at + 4], 16).map(|value| value as i16);
        let int = |at: usize| u32::from_str_radix(&rest[at..at + 8], 16).map(|value| value as i32);
        let parts = || {
            Ok::<_, std::num::ParseIntError>(Self {
                ip,
                pid: short(0)?,
                class_hash: int(4)?,
                month_ms: int(12)?,
                counter: short(20)?,
            })
        };
        parts().map_err(|_| BadMessageId)
    }
}

/// The address in front, and the 24 digits behind it.
fn ip_and_rest(text: &str) -> Result<(IpAddr, &str), BadMessageId> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(BadMessageId);
    }
    let (ip, rest) = match text.len() {
        32 => (u32::from_str_radix(&text[..8], 16).map(|bits| IpAddr::V4(Ipv4Addr::from(bits))), &text[8..]),
        56 => (u128::from_str_radix(&text[..32], 16).map(|bits| IpAddr::V6(Ipv6Addr::from(bits))), &text[32..]),
        _ => return Err(BadMessageId),
    };
    Ok((ip.map_err(|_| BadMessageId)?, rest))
}

/// The ids of a batch as its answer carries them: joined by commas.
pub fn join(ids: impl IntoIterator<Item = MessageId>) -> String {
    let mut text = String::new();
    for id in ids {
        let comma = if text.is_empty() { "" } else { "," };
        write!(text, "{comma}{id}").expect("a string takes any text");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_id_is_written_and_read() {
        let id = MessageId { store_host: "10.0.0.2:10911".parse().unwrap(), physical_offset: 1000 };
        assert_eq!(id.to_string(), "0A00000200002A9F00000000000003E8");
        assert_eq!("0a00000200002a9f00000000000003e8".parse(), Ok(id));
        assert_eq!(join([id, id]), format!("{id},{id}"));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "0A", "0A00000200002A9F00000000000003EG", "+A00000200002A9F00000000000003E8", "é"] {
            assert_eq!(text.parse::<MessageId>(), Err(BadMessageId), "{text}");
            assert_eq!(text.parse::<UniqueKey>(), Err(BadMessageId), "{text}");
        }
        assert_eq!("0A000002FFFFFFFF00000000000003E8".parse::<MessageId>(), Err(BadMessageId));
        assert_eq!("é".repeat(16).parse::<MessageId>(), Err(BadMessageId));
    }

    proptest! {
        #[test]
        fn ids_survive_their_text(v6 in any::<bool>(), bits: u128, port: u16, offset: i64, rest: (i16, i32, i32, i16)) {
            let ip = if v6 { IpAddr::V6(bits.into()) } else { IpAddr::V4((bits as u32).into()) };
            let id = MessageId { store_host: SocketAddr::new(ip, port), physical_offset: offset };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            let (pid, class_hash, month_ms, counter) = rest;
            let key = UniqueKey { ip, pid, class_hash, month_ms, counter };
            let digits = key.to_string();
            prop_assert_eq!(digits.len(), if v6 { 56 } else { 32 });
            prop_assert_eq!(digits.parse(), Ok(key));
        }
    }
}

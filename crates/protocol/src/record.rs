//! Record: one stored message, on disk and in the bodies that PULL, QUERY and VIEW answer with.
//!
//! ```text
//!  0  TOTALSIZE i32                    40  BORNTIMESTAMP i64
//!  4  MAGICCODE i32  V1 or V2          48  BORNHOST      IP 4 or 16, port i32
//!  8  BODYCRC i32                          STORETIMESTAMP i64
//! 12  QUEUEID i32                          STOREHOST     IP 4 or 16, port i32
//! 16  FLAG i32                             RECONSUMETIMES i32
//! 20  QUEUEOFFSET i64                      PREPAREDTRANSACTIONOFFSET i64
//! 28  PHYSICALOFFSET i64                   -- the head ends here --
//! 36  SYSFLAG i32                          BODYLEN i32, BODY
//!                                          TOPICLEN i8 (V1) or i16 (V2), TOPIC
//!                                          PROPLEN i16, PROPERTIES
//! ```
//!
//! - Big-endian. The checksum covers the body as stored and nothing else; the log's frames cover the rest.
//! - QUEUEOFFSET and PHYSICALOFFSET are 0 at rest: a replica that writes the record does not know them yet. Whoever
//!   sends it patches a copy of the head ([`HeadPatch`]).
//! - Address families are in SYSFLAG, so the head's length follows from it.
//! - V2 only for topics above 127 bytes: many clients know V1 only.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use crate::properties::MAX_PROPERTIES_BYTES;
use crate::sys_flag::SysFlag;

/// MAGICCODE with a topic length of one byte.
pub const MAGIC_V1: i32 = 0xDAA3_20A7_u32 as i32;
/// MAGICCODE with a topic length of two bytes.
pub const MAGIC_V2: i32 = 0xDAA3_20AB_u32 as i32;

const BODY_CRC_AT: usize = 8;
const QUEUE_ID_AT: usize = 12;
const FLAG_AT: usize = 16;
const QUEUE_OFFSET_AT: usize = 20;
const PHYSICAL_OFFSET_AT: usize = 28;
const SYS_FLAG_AT: usize = 36;
const BORN_TIMESTAMP_AT: usize = 40;
const BORN_HOST_AT: usize = 48;
const MAX_V1_TOPIC_BYTES: usize = 127;

/// The checksum of a body: CRC-32 (IEEE) without its top bit.
pub fn body_crc(body: &[u8]) -> i32 {
    (crc32fast::hash(body) & 0x7FFF_FFFF) as i32
}

/// Bytes that are no record, or a message that fits none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A length leads outside the record or the record outside the bytes.
    #[error("record is malformed: {0}")]
    Malformed(&'static str),
    /// Neither V1 nor V2.
    #[error("record magic {0:#010x} is unknown")]
    UnknownMagic(i32),
    /// Topic or properties are not UTF-8.
    #[error("{0} of a record is not UTF-8")]
    NotUtf8(&'static str),
    /// A part does not fit its length field. The sender must shorten it.
    #[error("{part} of {part_bytes} bytes exceeds {limit_bytes}")]
    TooLarge {
        /// Which part.
        part: &'static str,
        /// Its size.
        part_bytes: usize,
        /// The most that fits.
        limit_bytes: usize,
    },
    /// The head has no room for an address of the other family.
    #[error("store host {0} is of another address family than the record's")]
    AddressFamily(SocketAddr),
}

/// A message about to be stored.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Queue.
    pub queue_id: i32,
    /// The user's flag.
    pub flag: i32,
    /// What the message is; the address family bits are set by the encoder.
    pub sys_flag: SysFlag,
    /// When the producer made it, ms.
    pub born_timestamp: i64,
    /// The producer.
    pub born_host: SocketAddr,
    /// When the broker took it, ms.
    pub store_timestamp: i64,
    /// The broker.
    pub store_host: SocketAddr,
    /// How often it was consumed in vain.
    pub reconsume_times: i32,
    /// Physical offset of the half message, for a committed one.
    pub prepared_transaction_offset: i64,
    /// Body, possibly compressed.
    pub body: &'a [u8],
    /// Encoded properties.
    pub properties: &'a str,
}

impl NewRecord<'_> {
    /// Size of the record.
    pub fn encoded_bytes(&self) -> usize {
        let topic_length_bytes = if self.topic.len() > MAX_V1_TOPIC_BYTES { 2 } else { 1 };
        let variable_bytes = self.topic.len() + self.body.len() + self.properties.len();
        head_bytes_of(self.stored_sys_flag()) + 4 + topic_length_bytes + 2 + variable_bytes
    }

    /// Appends the record; both offsets are 0. On an error nothing is appended.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), RecordError> {
        let fits = |part, part_bytes, limit_bytes| {
            if part_bytes > limit_bytes { Err(RecordError::TooLarge { part, part_bytes, limit_bytes }) } else { Ok(()) }
        };
        fits("topic", self.topic.len(), i16::MAX as usize)?;
        fits("properties", self.properties.len(), MAX_PROPERTIES_BYTES)?;
        let size = self.encoded_bytes();
        fits("record", size, i32::MAX as usize)?;
        let start = out.len();
        out.reserve(size);
        out.put_i32(size as i32);
        let is_v2 = self.topic.len() > MAX_V1_TOPIC_BYTES;
        out.put_i32(if is_v2 { MAGIC_V2 } else { MAGIC_V1 });
        out.put_i32(body_crc(self.body));
        out.put_i32(self.queue_id);
        out.put_i32(self.flag);
        out.put_i64(0);
        out.put_i64(0);
        out.put_i32(self.stored_sys_flag().0);
        out.put_i64(self.born_timestamp);
        put_host(out, self.born_host);
        out.put_i64(self.store_timestamp);
        put_host(out, self.store_host);
        out.put_i32(self.reconsume_times);
        out.put_i64(self.prepared_transaction_offset);
        out.put_i32(self.body.len() as i32);
        out.put_slice(self.body);
        if is_v2 {
            out.put_i16(self.topic.len() as i16);
        } else {
            out.put_u8(self.topic.len() as u8);
        }
        out.put_slice(self.topic.as_bytes());
        out.put_i16(self.properties.len() as i16);
        out.put_slice(self.properties.as_bytes());
        assert_eq!(out.len() - start, size, "a record's size is known before it is written");
        Ok(())
    }

    /// The record in a buffer of its own.
    pub fn to_bytes(&self) -> Result<Bytes, RecordError> {
        let mut out = BytesMut::with_capacity(self.encoded_bytes());
        self.encode(&mut out)?;
        Ok(out.freeze())
    }

    fn stored_sys_flag(&self) -> SysFlag {
        self.sys_flag
            .with(SysFlag::BORN_HOST_V6, self.born_host.is_ipv6())
            .with(SysFlag::STORE_HOST_V6, self.store_host.is_ipv6())
    }
}

fn put_host(out: &mut BytesMut, host: SocketAddr) {
    match host.ip() {
        IpAddr::V4(ip) => out.put_slice(&ip.octets()),
        IpAddr::V6(ip) => out.put_slice(&ip.octets()),
    }
    out.put_i32(host.port().into());
}

fn host_bytes(is_v6: bool) -> usize {
    if is_v6 { 20 } else { 8 }
}

fn store_timestamp_at(sys_flag: SysFlag) -> usize {
    BORN_HOST_AT + host_bytes(sys_flag.has(SysFlag::BORN_HOST_V6))
}

fn reconsume_times_at(sys_flag: SysFlag) -> usize {
    store_timestamp_at(sys_flag) + 8 + host_bytes(sys_flag.has(SysFlag::STORE_HOST_V6))
}

fn head_bytes_of(sys_flag: SysFlag) -> usize {
    reconsume_times_at(sys_flag) + 12
}

/// Length of a record's head, all in front of BODYLEN; `None` if the bytes end before it does.
pub fn head_bytes(record: &[u8]) -> Option<usize> {
    head_sys_flag(record).map(head_bytes_of).filter(|&length| length <= record.len())
}

/// The flags in a record's head, of which more may be missing; `None` if the bytes end before them.
pub fn head_sys_flag(record: &[u8]) -> Option<SysFlag> {
    record.get(SYS_FLAG_AT..)?.first_chunk::<4>().map(|bytes| SysFlag(i32::from_be_bytes(*bytes)))
}

/// A record in place, checked: every length holds, topic and properties are UTF-8. Reading it cannot fail any more.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    /// Exactly one record.
    bytes: &'a [u8],
    head_bytes: usize,
    body_bytes: usize,
    topic_at: usize,
    topic: &'a str,
    properties: &'a str,
}

impl<'a> RecordView<'a> {
    /// The record at the front of `bytes`; more may follow it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let size = bytes.first_chunk::<4>().ok_or(RecordError::Malformed("no total size"))?;
        let size = usize::try_from(i32::from_be_bytes(*size)).map_err(|_| RecordError::Malformed("total size"))?;
        let bytes = bytes.get(..size).ok_or(RecordError::Malformed("total size exceeds the bytes"))?;
        let magic =
            bytes.get(4..).and_then(|rest| rest.first_chunk::<4>()).ok_or(RecordError::Malformed("no magic"))?;
        let magic = i32::from_be_bytes(*magic);
        if magic != MAGIC_V1 && magic != MAGIC_V2 {
            return Err(RecordError::UnknownMagic(magic));
        }
        let head_bytes = head_bytes(bytes).ok_or(RecordError::Malformed("head"))?;
        let (length, rest) =
            bytes[head_bytes..].split_first_chunk::<4>().ok_or(RecordError::Malformed("no body length"))?;
        let body_bytes =
            usize::try_from(i32::from_be_bytes(*length)).map_err(|_| RecordError::Malformed("body length"))?;
        let rest = rest.get(body_bytes..).ok_or(RecordError::Malformed("body"))?;
        let (topic_bytes, rest) = if magic == MAGIC_V1 {
            // Java reads a signed byte; a negative length fails there as here.
            let (length, rest) = rest.split_first_chunk::<1>().ok_or(RecordError::Malformed("no topic length"))?;
            (usize::try_from(i8::from_be_bytes(*length)), rest)
        } else {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or(RecordError::Malformed("no topic length"))?;
            (usize::try_from(i16::from_be_bytes(*length)), rest)
        };
        let topic_at = size - rest.len();
        let topic_bytes = topic_bytes.map_err(|_| RecordError::Malformed("topic length"))?;
        let (topic, rest) = rest.split_at_checked(topic_bytes).ok_or(RecordError::Malformed("topic"))?;
        let (length, properties) =
            rest.split_first_chunk::<2>().ok_or(RecordError::Malformed("no properties length"))?;
        if i64::from(i16::from_be_bytes(*length)) != properties.len() as i64 {
            return Err(RecordError::Malformed("properties length"));
        }
        let topic = std::str::from_utf8(topic).map_err(|_| RecordError::NotUtf8("topic"))?;
        let properties = std::str::from_utf8(properties).map_err(|_| RecordError::NotUtf8("properties"))?;
        Ok(Self { bytes, head_bytes, body_bytes, topic_at, topic, properties })
    }

    fn i32_at(&self, at: usize) -> i32 {
        i32::from_be_bytes(*self.bytes[at..].first_chunk().expect("parse checked the head"))
    }

    fn i64_at(&self, at: usize) -> i64 {
        i64::from_be_bytes(*self.bytes[at..].first_chunk().expect("parse checked the head"))
    }

    fn host_at(&self, at: usize, is_v6: bool) -> SocketAddr {
        let ip = if is_v6 {
            IpAddr::from(*self.bytes[at..].first_chunk::<16>().expect("parse checked the head"))
        } else {
            IpAddr::from(*self.bytes[at..].first_chunk::<4>().expect("parse checked the head"))
        };
        // The field has 32 bits, a port 16: what is above them is nobody's.
        SocketAddr::new(ip, self.i32_at(at + host_bytes(is_v6) - 4) as u16)
    }

    /// Exactly the record's bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Length of the head: all in front of BODYLEN.
    pub fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// MAGICCODE.
    pub fn magic(&self) -> i32 {
        self.i32_at(4)
    }

    /// BODYCRC as stored.
    pub fn body_crc(&self) -> i32 {
        self.i32_at(BODY_CRC_AT)
    }

    /// Whether the body is what its checksum says.
    pub fn is_body_intact(&self) -> bool {
        self.body_crc() == body_crc(self.body())
    }

    /// QUEUEID.
    pub fn queue_id(&self) -> i32 {
        self.i32_at(QUEUE_ID_AT)
    }

    /// FLAG, the user's.
    pub fn flag(&self) -> i32 {
        self.i32_at(FLAG_AT)
    }

    /// QUEUEOFFSET; 0 at rest.
    pub fn queue_offset(&self) -> i64 {
        self.i64_at(QUEUE_OFFSET_AT)
    }

    /// PHYSICALOFFSET; 0 at rest.
    pub fn physical_offset(&self) -> i64 {
        self.i64_at(PHYSICAL_OFFSET_AT)
    }

    /// SYSFLAG.
    pub fn sys_flag(&self) -> SysFlag {
        SysFlag(self.i32_at(SYS_FLAG_AT))
    }

    /// BORNTIMESTAMP, ms.
    pub fn born_timestamp(&self) -> i64 {
        self.i64_at(BORN_TIMESTAMP_AT)
    }

    /// BORNHOST.
    pub fn born_host(&self) -> SocketAddr {
        self.host_at(BORN_HOST_AT, self.sys_flag().has(SysFlag::BORN_HOST_V6))
    }

    /// STORETIMESTAMP, ms.
    pub fn store_timestamp(&self) -> i64 {
        self.i64_at(store_timestamp_at(self.sys_flag()))
    }

    /// STOREHOST.
    pub fn store_host(&self) -> SocketAddr {
        let sys_flag = self.sys_flag();
        self.host_at(store_timestamp_at(sys_flag) + 8, sys_flag.has(SysFlag::STORE_HOST_V6))
    }

    /// RECONSUMETIMES.
    pub fn reconsume_times(&self) -> i32 {
        self.i32_at(reconsume_times_at(self.sys_flag()))
    }

    /// PREPAREDTRANSACTIONOFFSET.
    pub fn prepared_transaction_offset(&self) -> i64 {
        self.i64_at(reconsume_times_at(self.sys_flag()) + 4)
    }

    /// The body as stored.
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[self.body_range()]
    }

    /// Where the body lies in the record, for slicing the `Bytes` it came in.
    pub fn body_range(&self) -> Range<usize> {
        let start = self.head_bytes + 4;
        start..start + self.body_bytes
    }

    /// Where the topic lies in the record.
    pub fn topic_range(&self) -> Range<usize> {
        self.topic_at..self.topic_at + self.topic.len()
    }

    /// Topic.
    pub fn topic(&self) -> &'a str {
        self.topic
    }

    /// Encoded properties.
    pub fn properties(&self) -> &'a str {
        self.properties
    }

    /// One property.
    pub fn property(&self, name: &str) -> Option<&'a str> {
        crate::properties::get(self.properties, name)
    }

    /// The message as it would be stored anew, to be changed field by field.
    pub fn to_new(&self) -> NewRecord<'a> {
        NewRecord {
            topic: self.topic,
            queue_id: self.queue_id(),
            flag: self.flag(),
            sys_flag: self.sys_flag(),
            born_timestamp: self.born_timestamp(),
            born_host: self.born_host(),
            store_timestamp: self.store_timestamp(),
            store_host: self.store_host(),
            reconsume_times: self.reconsume_times(),
            prepared_transaction_offset: self.prepared_transaction_offset(),
            body: self.body(),
            properties: self.properties,
        }
    }
}

/// What the reader of a record knows and the record does not. `None` leaves a field as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeadPatch {
    /// QUEUEOFFSET.
    pub queue_offset: i64,
    /// PHYSICALOFFSET.
    pub physical_offset: i64,
    /// QUEUEID.
    pub queue_id: Option<i32>,
    /// SYSFLAG; its address family bits are kept.
    pub sys_flag: Option<SysFlag>,
    /// STORETIMESTAMP, ms.
    pub store_timestamp: Option<i64>,
    /// STOREHOST; must be of the record's address family.
    pub store_host: Option<SocketAddr>,
    /// PREPAREDTRANSACTIONOFFSET.
    pub prepared_transaction_offset: Option<i64>,
    /// Added to RECONSUMETIMES: deliveries that the record was not stored anew for.
    pub redelivered: i32,
}

impl HeadPatch {
    /// Patches a copy of a record's head; more of the record may follow it. On an error nothing is changed.
    pub fn apply(&self, head: &mut [u8]) -> Result<(), RecordError> {
        if head_bytes(head).is_none() {
            return Err(RecordError::Malformed("head"));
        }
        let stored = SysFlag(i32::from_be_bytes(*head[SYS_FLAG_AT..].first_chunk().expect("head_bytes saw it")));
        let store_host_at = store_timestamp_at(stored) + 8;
        if let Some(host) = self.store_host {
            if host.is_ipv6() != stored.has(SysFlag::STORE_HOST_V6) {
                return Err(RecordError::AddressFamily(host));
            }
            let mut bytes = BytesMut::with_capacity(20);
            put_host(&mut bytes, host);
            head[store_host_at..store_host_at + bytes.len()].copy_from_slice(&bytes);
        }
        let reconsume_times_at = reconsume_times_at(stored);
        let consumed = i32::from_be_bytes(*head[reconsume_times_at..].first_chunk().expect("head_bytes saw it"));
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(reconsume_times_at, &consumed.saturating_add(self.redelivered).to_be_bytes());
        put(QUEUE_OFFSET_AT, &self.queue_offset.to_be_bytes());
        put(PHYSICAL_OFFSET_AT, &self.physical_offset.to_be_bytes());
        if let Some(queue_id) = self.queue_id {
            put(QUEUE_ID_AT, &queue_id.to_be_bytes());
        }
        if let Some(SysFlag(bits)) = self.sys_flag {
            let family = SysFlag::BORN_HOST_V6 | SysFlag::STORE_HOST_V6;
            put(SYS_FLAG_AT, &(bits & !family | stored.0 & family).to_be_bytes());
        }
        if let Some(timestamp) = self.store_timestamp {
            put(store_timestamp_at(stored), &timestamp.to_be_bytes());
        }
        if let Some(offset) = self.prepared_transaction_offset {
            put(reconsume_times_at + 4, &offset.to_be_bytes());
        }
        Ok(())
    }
}

/// Takes a body of records apart without copying. Ends behind the first that is none.
pub fn split(body: &Bytes) -> impl Iterator<Item = Result<Bytes, RecordError>> {
    let mut rest = body.clone();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let size = RecordView::parse(&rest).map(|record| record.bytes.len());
        Some(size.inspect_err(|_| rest.clear()).map(|size| rest.split_to(size)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message_id::MessageId;
    use crate::sys_flag::TransactionType;

    fn example() -> NewRecord<'static> {
        NewRecord {
            topic: "T",
            queue_id: 1,
            flag: 0,
            sys_flag: SysFlag(0),
            born_timestamp: 1_700_000_000_000,
            born_host: "10.0.0.1:1234".parse().unwrap(),
            store_timestamp: 1_700_000_000_001,
            store_host: "10.0.0.2:10911".parse().unwrap(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: b"hi",
            properties: "k\u{1}v\u{2}",
        }
    }

    /// The record that RocketMQ's own encoder printed.
    const EXAMPLE: [u8; 0x62] = [
        0x00, 0x00, 0x00, 0x62, 0xDA, 0xA3, 0x20, 0xA7, 0x58, 0x93, 0x2A, 0xAC, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x03, 0xE8,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x8B, 0xCF, 0xE5, 0x68, 0x00, 0x0A, 0x00, 0x00, 0x01, 0x00, 0x00,
        0x04, 0xD2, 0x00, 0x00, 0x01, 0x8B, 0xCF, 0xE5, 0x68, 0x01, 0x0A, 0x00, 0x00, 0x02, 0x00, 0x00, 0x2A, 0x9F,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x68, 0x69,
        0x01, 0x54, 0x00, 0x04, 0x6B, 0x01, 0x76, 0x02,
    ];

    #[test]
    fn the_example_is_written_and_read_byte_for_byte() {
        let mut bytes = BytesMut::new();
        example().encode(&mut bytes).unwrap();
        assert_eq!((&bytes[20..36], head_bytes(&bytes)), (&[0; 16][..], Some(84)));
        let patch = HeadPatch { queue_offset: 5, physical_offset: 1000, ..HeadPatch::default() };
        patch.apply(&mut bytes).unwrap();
        assert_eq!(bytes[..], EXAMPLE);
        let record = RecordView::parse(&EXAMPLE).unwrap();
        assert!(record.is_body_intact());
        assert_eq!((record.queue_offset(), record.topic(), record.property("k")), (5, "T", Some("v")));
        let id = MessageId { store_host: record.store_host(), physical_offset: record.physical_offset() };
        assert_eq!(id.to_string(), "0A00000200002A9F00000000000003E8");
        assert_eq!(&EXAMPLE[record.topic_range()], b"T");
    }

    #[test]
    fn the_checksum_is_31_bits_of_ieee() {
        assert_eq!(body_crc(b"123456789"), 0x4BF4_3926);
    }

    #[test]
    fn a_patch_changes_the_head_alone() {
        let v6 = NewRecord { store_host: "[2001:db8::1]:10911".parse().unwrap(), ..example() };
        for record in [example(), v6] {
            let stored = record.to_bytes().unwrap();
            let store_host = SocketAddr::new(record.store_host.ip(), 7);
            let patch = HeadPatch {
                queue_offset: -1,
                physical_offset: i64::MAX,
                queue_id: Some(9),
                sys_flag: Some(SysFlag(0x33).with_transaction(TransactionType::Commit)),
                store_timestamp: Some(3),
                store_host: Some(store_host),
                prepared_transaction_offset: Some(4),
                redelivered: 2,
            };
            let mut head = stored[..head_bytes(&stored).unwrap()].to_vec();
            patch.apply(&mut head).unwrap();
            let sent = [&head, &stored[head.len()..]].concat();
            let view = RecordView::parse(&sent).unwrap();
            assert_eq!((view.queue_offset(), view.physical_offset(), view.queue_id()), (-1, i64::MAX, 9));
            assert_eq!(
                (view.store_timestamp(), view.store_host(), view.prepared_transaction_offset()),
                (3, store_host, 4)
            );
            assert_eq!(view.sys_flag().transaction(), TransactionType::Commit);
            assert_eq!(view.sys_flag().has(SysFlag::STORE_HOST_V6), store_host.is_ipv6());
            assert_eq!(view.reconsume_times(), record.reconsume_times + 2);
            assert_eq!((view.born_host(), view.body(), view.topic()), (record.born_host, record.body, record.topic));
            let other = if store_host.is_ipv6() { example().store_host } else { v6.store_host };
            let mismatch = HeadPatch { store_host: Some(other), queue_offset: 77, ..HeadPatch::default() };
            assert_eq!(mismatch.apply(&mut head), Err(RecordError::AddressFamily(other)));
            assert_eq!(head, sent[..head.len()], "a refused patch changes nothing");
            assert_eq!(patch.apply(&mut head[..40]), Err(RecordError::Malformed("head")));
        }
    }

    #[test]
    fn long_topics_are_v2_and_what_does_not_fit_is_refused() {
        let topic = "t".repeat(128);
        let long = NewRecord { topic: &topic, ..example() }.to_bytes().unwrap();
        let view = RecordView::parse(&long).unwrap();
        assert_eq!((view.magic(), view.topic()), (MAGIC_V2, topic.as_str()));
        let properties = "p".repeat(MAX_PROPERTIES_BYTES + 1);
        let mut out = BytesMut::new();
        let error = NewRecord { properties: &properties, ..example() }.encode(&mut out).unwrap_err();
        assert!(matches!(error, RecordError::TooLarge { part: "properties", .. }) && out.is_empty());
    }

    #[test]
    fn a_body_of_records_ends_behind_the_first_that_is_none() {
        let mut body = BytesMut::new();
        example().encode(&mut body).unwrap();
        example().encode(&mut body).unwrap();
        let whole = body.clone().freeze();
        assert_eq!(split(&whole).filter_map(Result::ok).count(), 2);
        body.extend_from_slice(&EXAMPLE[..50]);
        let read: Vec<_> = split(&body.freeze()).collect();
        assert_eq!(read.len(), 3);
        assert!(read[1].is_ok() && read[2].is_err());
        assert_eq!(split(&Bytes::new()).count(), 0);
    }

    proptest! {
        #[test]
        fn records_survive(
            ints in any::<(i32, i32, i32, i32)>(),
            longs in any::<(i64, i64, i64)>(),
            hosts in any::<((bool, u128, u16), (bool, u128, u16))>(),
            texts in ("[a-z%中]{0,100}", "[a-z\u{1}\u{2}中]{0,200}"),
            body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let host = |(v6, bits, port): (bool, u128, u16)| {
                let ip = if v6 { IpAddr::V6(bits.into()) } else { IpAddr::V4((bits as u32).into()) };
                SocketAddr::new(ip, port)
            };
            let new = NewRecord {
                topic: &texts.0,
                queue_id: ints.0,
                flag: ints.1,
                sys_flag: SysFlag(ints.2),
                born_timestamp: longs.0,
                born_host: host(hosts.0),
                store_timestamp: longs.1,
                store_host: host(hosts.1),
                reconsume_times: ints.3,
                prepared_transaction_offset: longs.2,
                body: &body,
                properties: &texts.1,
            };
            let bytes = new.to_bytes().unwrap();
            let view = RecordView::parse(&bytes).unwrap();
            prop_assert_eq!(view.bytes().len(), new.encoded_bytes());
            prop_assert_eq!((view.topic(), view.properties(), view.body()), (new.topic, new.properties, new.body));
            prop_assert_eq!((view.queue_id(), view.flag(), view.reconsume_times()), (ints.0, ints.1, ints.3));
            prop_assert_eq!((view.born_timestamp(), view.store_timestamp(), view.prepared_transaction_offset()), longs);
            prop_assert_eq!((view.born_host(), view.store_host()), (new.born_host, new.store_host));
            prop_assert!(view.is_body_intact());
            prop_assert_eq!(view.to_new().to_bytes().unwrap(), bytes);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..150),
            flips in proptest::collection::vec((0..EXAMPLE.len(), any::<u8>()), 0..4),
        ) {
            let mut flipped = EXAMPLE;
            for (at, byte) in flips {
                flipped[at] = byte;
            }
            for bytes in [&bytes[..], &flipped[..]] {
                if let Ok(view) = RecordView::parse(bytes) {
                    let _ = (view.born_host(), view.store_host(), view.is_body_intact());
                    let _ = (view.reconsume_times(), view.prepared_transaction_offset());
                    let _ = view.to_new();
                }
                let _ = split(&Bytes::copy_from_slice(bytes)).count();
                let _ = HeadPatch::default().apply(&mut bytes.to_vec());
            }
        }
    }
}

//! The body of a batch send: inner messages one behind the other.
//!
//! ```text
//! TOTALSIZE i32, MAGIC i32 = 0, BODYCRC i32 = 0, FLAG i32, BODYLEN i32, BODY, PROPLEN i16, PROPERTIES
//! ```
//!
//! The broker takes magic and checksum from nobody: it ignores both.

use bytes::{BufMut, BytesMut};

use crate::properties::MAX_PROPERTIES_BYTES;

const FIXED_BYTES: usize = 22;

/// One message of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InnerMessage<'a> {
    /// The user's flag.
    pub flag: i32,
    /// Its body.
    pub body: &'a [u8],
    /// Its encoded properties.
    pub properties: &'a str,
}

/// A batch that cannot be taken apart: nothing of it may be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A length that leads outside its message or the batch.
    #[error("the batch is malformed at byte {0}")]
    Malformed(usize),
    /// Properties that are not UTF-8.
    #[error("the properties of the inner message at byte {0} are not UTF-8")]
    NotUtf8(usize),
    /// No message at all.
    #[error("the batch is empty")]
    Empty,
    /// Properties above [`MAX_PROPERTIES_BYTES`], or a body above 2 GiB.
    #[error("an inner message is too large")]
    TooLarge,
}

/// Takes a batch apart; all of it or nothing.
pub fn decode(bytes: &[u8]) -> Result<Vec<InnerMessage<'_>>, BatchError> {
    let mut messages = Vec::new();
    let mut position = 0;
    while position < bytes.len() {
        let (message, size) = decode_one(&bytes[position..], position)?;
        messages.push(message);
        position += size;
    }
    if messages.is_empty() { Err(BatchError::Empty) } else { Ok(messages) }
}

fn decode_one(bytes: &[u8], position: usize) -> Result<(InnerMessage<'_>, usize), BatchError> {
    let malformed = || BatchError::Malformed(position);
    let int =
        |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()).map(|four| i32::from_be_bytes(*four));
    let size = int(0).and_then(|size| usize::try_from(size).ok()).ok_or_else(malformed)?;
    let message = bytes.get(..size).filter(|_| size >= FIXED_BYTES).ok_or_else(malformed)?;
    let flag = int(12).ok_or_else(malformed)?;
    let body_bytes = int(16).and_then(|length| usize::try_from(length).ok()).ok_or_else(malformed)?;
    let (body, rest) = message[20..].split_at_checked(body_bytes).ok_or_else(malformed)?;
    let (length, properties) = rest.split_first_chunk::<2>().ok_or_else(malformed)?;
    if i64::from(i16::from_be_bytes(*length)) != properties.len() as i64 {
        return Err(malformed());
    }
    let properties = std::str::from_utf8(properties).map_err(|_| BatchError::NotUtf8(position))?;
    Ok((InnerMessage { flag, body, properties }, size))
}

/// Appends one message to a batch; on an error nothing is appended.
pub fn encode(message: &InnerMessage<'_>, out: &mut BytesMut) -> Result<(), BatchError> {
    let size = FIXED_BYTES + message.body.len() + message.properties.len();
    if message.properties.len() > MAX_PROPERTIES_BYTES || i32::try_from(size).is_err() {
        return Err(BatchError::TooLarge);
    }
    out.reserve(size);
    out.put_i32(size as i32);
    out.put_i32(0);
    out.put_i32(0);
    out.put_i32(message.flag);
    out.put_i32(message.body.len() as i32);
    out.put_slice(message.body);
    out.put_i16(message.properties.len() as i16);
    out.put_slice(message.properties.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_is_written_and_read() {
        let message = InnerMessage { flag: 0, body: b"hi", properties: "k\u{1}v\u{2}WAIT\u{1}true\u{2}" };
        let mut bytes = BytesMut::new();
        encode(&message, &mut bytes).unwrap();
        let expected = [
            &[0, 0, 0, 0x26, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x68, 0x69, 0, 0x0E][..],
            b"k\x01v\x02WAIT\x01true\x02",
        ];
        assert_eq!(bytes[..], expected.concat());
        assert_eq!(decode(&bytes), Ok(vec![message]));
    }

    #[test]
    fn a_batch_is_taken_whole_or_not_at_all() {
        assert_eq!(decode(b""), Err(BatchError::Empty));
        let mut bytes = BytesMut::new();
        encode(&InnerMessage { flag: 1, body: b"", properties: "" }, &mut bytes).unwrap();
        let first = bytes.len();
        encode(&InnerMessage { flag: 2, body: b"x", properties: "é" }, &mut bytes).unwrap();
        assert_eq!(decode(&bytes).unwrap().len(), 2);
        for cut in first + 1..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), Err(BatchError::Malformed(first)));
        }
        let last = bytes.len() - 1;
        bytes[last] = 0xFF;
        assert_eq!(decode(&bytes), Err(BatchError::NotUtf8(first)));
    }

    proptest! {
        #[test]
        fn batches_survive(
            parts in proptest::collection::vec((any::<i32>(), any::<Vec<u8>>(), ".{0,20}"), 1..6),
        ) {
            let messages: Vec<_> = parts
                .iter()
                .map(|(flag, body, properties)| InnerMessage { flag: *flag, body, properties })
                .collect();
            let mut bytes = BytesMut::new();
            for message in &messages {
                encode(message, &mut bytes).unwrap();
            }
            prop_assert_eq!(decode(&bytes), Ok(messages));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), size: u8) {
            let _ = decode(&bytes);
            let _ = decode(&[&[0, 0, 0, size][..], &bytes].concat());
        }
    }
}

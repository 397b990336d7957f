//! Values to bytes and back, for commands, keyed rows and peer message heads: the one place that knows bincode.
//!
//! Never used on the client wire, nor for frames, units and images, whose layouts are our own. Every encoding opens with
//! two bytes, so that another format, or another version of a value, can be told apart before it is read:
//!
//! ```text
//! 0 format u8   0xB2: bincode 2, `standard` configuration (little-endian, variable-length integers)
//! 1 version u8  1
//! 2 the value
//! ```

pub use bincode;
pub use bincode::{Decode, Encode};

const FORMAT: u8 = 0xB2;
const VERSION: u8 = 1;

/// A decoder claims no more memory than this, whatever lengths the bytes announce.
pub const LIMIT_BYTES: usize = 16 * 1024 * 1024;

type Configuration = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<LIMIT_BYTES>,
>;

const CONFIGURATION: Configuration = bincode::config::standard().with_limit::<LIMIT_BYTES>();

/// Why bytes are not a value of the type asked for.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Written by a program that knows more than this one (or damaged where no checksum looked): do not guess, stop.
    #[error("unknown encoding: {0}")]
    Unknown(String),
    /// Not an encoding of this type.
    #[error("malformed encoding: {0}")]
    Malformed(String),
}

/// Encodes `value`.
pub fn to_bytes<T: Encode>(value: &T) -> Vec<u8> {
    let mut bytes = vec![FORMAT, VERSION];
    bincode::encode_into_std_write(value, &mut bytes, CONFIGURATION).expect("memory takes every byte");
    bytes
}

/// Decodes a value from all of `bytes`; bytes left over are an error.
pub fn from_bytes<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    let value = match bytes {
        [FORMAT, VERSION, value @ ..] => value,
        [format, version, ..] => return Err(CodecError::Unknown(format!("format {format:#04x}, version {version}"))),
        _ => return Err(CodecError::Malformed(format!("{} bytes", bytes.len()))),
    };
    match bincode::decode_from_slice::<T, _>(value, CONFIGURATION) {
        Ok((decoded, used)) if used == value.len() => Ok(decoded),
        Ok((_, used)) => Err(CodecError::Malformed(format!("{} bytes left over", value.len() - used))),
        Err(error @ bincode::error::DecodeError::UnexpectedVariant { .. }) => {
            Err(CodecError::Unknown(error.to_string()))
        }
        Err(error) => Err(CodecError::Malformed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Encode, Decode)]
    enum Sample {
        Unit,
        Named { small: u32, big: u64, signed: i64, text: String, list: Vec<u16>, maybe: Option<bool> },
    }

    #[derive(Debug, PartialEq, Encode, Decode)]
    enum Newer {
        Unit,
        Other,
        Third(u8),
    }

    /// If this fails, data written by earlier releases can no longer be read.
    #[test]
    fn golden_bytes() {
        let sample = Sample::Named {
            small: 7,
            big: 300,
            signed: -1,
            text: "ab".to_owned(),
            list: vec![1, 70000u32 as u16],
            maybe: Some(true),
        };
        let golden = [0xB2, 1, 1, 7, 251, 0x2C, 0x01, 1, 2, b'a', b'b', 2, 1, 251, 0x70, 0x11, 1, 1];
        assert_eq!(to_bytes(&sample), golden);
        assert_eq!(from_bytes::<Sample>(&golden).unwrap(), sample);
        assert_eq!(to_bytes(&Sample::Unit), [0xB2, 1, 0]);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(matches!(from_bytes::<Sample>(&to_bytes(&Newer::Third(1))), Err(CodecError::Unknown(_))));
        assert!(matches!(from_bytes::<Sample>(&[0xB2, 2, 0]), Err(CodecError::Unknown(_))));
        assert!(matches!(from_bytes::<Sample>(&[0xB2, 1, 0, 0]), Err(CodecError::Malformed(_))));
        assert!(matches!(from_bytes::<Sample>(&[]), Err(CodecError::Malformed(_))));
    }

    #[test]
    fn announced_lengths_do_not_claim_memory() {
        // A Vec<u64> of 2^40 elements.
        let mut bytes = vec![0xB2, 1, 253];
        bytes.extend((1u64 << 40).to_le_bytes());
        assert!(matches!(from_bytes::<Vec<u64>>(&bytes), Err(CodecError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = from_bytes::<Sample>(&bytes);
            let mut headed = vec![FORMAT, VERSION];
            headed.extend(&bytes);
            let _ = from_bytes::<Sample>(&headed);
        }
    }
}

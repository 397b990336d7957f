//! REGISTER_BROKER 103: a broker's topics, as JSON or as a zlib stream of
//!
//! ```text
//! i32 length, DataVersion JSON
//! i32 count, count x (i32 length, "name read write perm filterType attributesJson")
//! i32 length, JSON array of filter servers
//! i32 count, count x (i32 length, TopicQueueMappingInfo JSON)     only from brokers >= 5.0
//! ```

use std::io::{Read, Write};

use bytes::{BufMut, Bytes};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde::{Deserialize, Serialize};

use super::{TopicConfig, TopicConfigSerializeWrapper};
use crate::json::{self, JsonError};

/// Most bytes that a compressed registration may inflate to: some half a million topics.
pub const MAX_INFLATED_BYTES: usize = 64 * 1024 * 1024;

/// Body of REGISTER_BROKER.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RegisterBrokerBody {
    /// Dead.
    pub filter_server_list: Vec<String>,
    /// Topics and their version.
    pub topic_config_serialize_wrapper: TopicConfigSerializeWrapper,
}

/// A registration that cannot be read. The broker must send another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterBodyError {
    /// Not a zlib stream, or a broken one.
    #[error("registration is no zlib stream")]
    NotZlib,
    /// Inflates to more than the limit.
    #[error("registration inflates to more than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// A length leads outside the stream, or a topic line makes no sense.
    #[error("registration is malformed: {0}")]
    Malformed(&'static str),
    /// A part is not JSON.
    #[error("registration: {0}")]
    Json(#[from] JsonError),
}

impl RegisterBrokerBody {
    /// Reads either form, as the request's `compressed` says. A stream inflates to at most `limit_bytes`.
    pub fn decode(body: &[u8], compressed: bool, limit_bytes: usize) -> Result<Self, RegisterBodyError> {
        if !compressed {
            return Ok(json::from_slice(body)?);
        }
        let mut inflated = Vec::new();
        let taken = ZlibDecoder::new(body).take(limit_bytes as u64 + 1).read_to_end(&mut inflated);
        if inflated.len() > limit_bytes {
            return Err(RegisterBodyError::TooLarge { limit_bytes });
        }
        taken.map_err(|_| RegisterBodyError::NotZlib)?;
        Self::decode_inflated(&inflated)
    }

    fn decode_inflated(inflated: &[u8]) -> Result<Self, RegisterBodyError> {
        let mut rest = inflated;
        let mut body = Self::default();
        let wrapper = &mut body.topic_config_serialize_wrapper;
        wrapper.data_version = json::from_slice(take(&mut rest, "data version")?)?;
        for _ in 0..length(&mut rest, "topic count")? {
            let line = String::from_utf8_lossy(take(&mut rest, "topic")?);
            let topic = TopicConfig::from_line(&line).ok_or(RegisterBodyError::Malformed("topic line"))?;
            wrapper.topic_config_table.insert(topic.topic_name.clone(), topic);
        }
        // Static topics may follow; nobody here serves them.
        body.filter_server_list = json::from_slice(take(&mut rest, "filter servers")?)?;
        Ok(body)
    }

    /// The compressed form, as brokers from 5.0 on send it.
    pub fn to_compressed(&self) -> Bytes {
        let mut plain = Vec::new();
        let wrapper = &self.topic_config_serialize_wrapper;
        put(&mut plain, &json::to_vec(&wrapper.data_version));
        plain.put_u32(wrapper.topic_config_table.len() as u32);
        for topic in wrapper.topic_config_table.values() {
            put(&mut plain, topic.to_line().as_bytes());
        }
        put(&mut plain, &json::to_vec(&self.filter_server_list));
        plain.put_u32(0);
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        let written = encoder.write_all(&plain).and_then(|()| encoder.finish());
        written.expect("memory takes any bytes").into()
    }
}

/// Appends a length and that many bytes.
fn put(plain: &mut Vec<u8>, part: &[u8]) {
    plain.put_u32(part.len() as u32);
    plain.put_slice(part);
}

/// A length, not negative.
fn length(rest: &mut &[u8], what: &'static str) -> Result<usize, RegisterBodyError> {
    let (length, tail) = rest.split_first_chunk::<4>().ok_or(RegisterBodyError::Malformed(what))?;
    *rest = tail;
    usize::try_from(i32::from_be_bytes(*length)).map_err(|_| RegisterBodyError::Malformed(what))
}

/// A length and that many bytes.
fn take<'a>(rest: &mut &'a [u8], what: &'static str) -> Result<&'a [u8], RegisterBodyError> {
    let length = length(rest, what)?;
    let (part, tail) = rest.split_at_checked(length).ok_or(RegisterBodyError::Malformed(what))?;
    *rest = tail;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::body::DataVersion;

    fn example() -> RegisterBrokerBody {
        let mut body = RegisterBrokerBody::default();
        let wrapper = &mut body.topic_config_serialize_wrapper;
        wrapper.data_version = DataVersion { counter: 3, state_version: 2, timestamp: 1 };
        for (name, queues) in [("T", 4), ("%RETRY%g", 1)] {
            wrapper.topic_config_table.insert(name.into(), TopicConfig::new(name, queues, 6));
        }
        body
    }

    #[test]
    fn both_forms_carry_the_same_registration() {
        let body = example();
        assert_eq!(RegisterBrokerBody::decode(&json::to_vec(&body), false, 0), Ok(body.clone()));
        assert_eq!(RegisterBrokerBody::decode(&body.to_compressed(), true, MAX_INFLATED_BYTES), Ok(body));
    }

    #[test]
    fn inflating_is_bounded() {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
        let bomb = encoder.finish().unwrap();
        assert!(bomb.len() < 2000);
        let error = RegisterBrokerBody::decode(&bomb, true, 4096).unwrap_err();
        assert_eq!(error, RegisterBodyError::TooLarge { limit_bytes: 4096 });
        assert_eq!(RegisterBrokerBody::decode(b"no zlib", true, 4096), Err(RegisterBodyError::NotZlib));
        let whole = example().to_compressed();
        assert_eq!(RegisterBrokerBody::decode(&whole[..whole.len() / 2], true, 4096), Err(RegisterBodyError::NotZlib));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), count: u8) {
            let _ = RegisterBrokerBody::decode(&bytes, true, 1 << 16);
            let _ = RegisterBrokerBody::decode_inflated(&bytes);
            let lengths = [0, 0, 0, count, 0, 0, 0, count];
            let _ = RegisterBrokerBody::decode_inflated(&[&[0, 0, 0, 2][..], b"{}", &lengths, &bytes].concat());
        }
    }
}

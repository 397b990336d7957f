//! BATCH_ACK_MESSAGE 200151: acknowledgements as bit sets.

use serde::{Deserialize, Serialize};

/// Body of BATCH_ACK_MESSAGE.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BatchAckRequest {
    /// One per checkpoint.
    pub acks: Vec<BatchAck>,
    /// Broker meant.
    pub broker_name: Option<String>,
}

/// Acknowledged offsets of one checkpoint. Short names on the wire, long ones are read too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BatchAck {
    /// Base64 of a bit set; bit i stands for `start_offset + i`.
    #[serde(rename = "b", alias = "bitSet")]
    pub bit_set: String,
    /// Group.
    #[serde(rename = "c", alias = "consumerGroup")]
    pub consumer_group: String,
    /// Lease, ms.
    #[serde(rename = "it", alias = "invisibleTime")]
    pub invisible_time: i64,
    /// ms.
    #[serde(rename = "pt", alias = "popTime")]
    pub pop_time: i64,
    /// Queue.
    #[serde(rename = "q", alias = "queueId")]
    pub queue_id: i32,
    /// `0` normal, `1` and `2` retry topics.
    #[serde(rename = "r", alias = "retry")]
    pub retry: String,
    /// As in POP_CK.
    #[serde(rename = "rq", alias = "reviveQueueId")]
    pub revive_queue_id: i32,
    /// Offset of bit 0.
    #[serde(rename = "so", alias = "startOffset")]
    pub start_offset: i64,
    /// Topic.
    #[serde(rename = "t", alias = "topic")]
    pub topic: String,
}

impl BatchAck {
    /// The first `limit` acknowledged offsets, ascending; `None` if the bit set is no Base64.
    pub fn offsets(&self, limit: usize) -> Option<Vec<i64>> {
        let bytes = base64_decode(&self.bit_set)?;
        let bit = |at: usize| bytes[at / 8] >> (at % 8) & 1 == 1;
        let set = (0..bytes.len() * 8).filter(|&at| bit(at)).take(limit);
        Some(set.map(|at| self.start_offset.saturating_add(at as i64)).collect())
    }

    /// Sets the acknowledged offsets; those below `start_offset` cannot be told.
    pub fn set_offsets(&mut self, offsets: &[i64]) {
        let mut bytes = Vec::new();
        for offset in offsets {
            let Some(at) = offset.checked_sub(self.start_offset).and_then(|at| usize::try_from(at).ok()) else {
                continue;
            };
            if bytes.len() <= at / 8 {
                bytes.resize(at / 8 + 1, 0_u8);
            }
            bytes[at / 8] |= 1 << (at % 8);
        }
        self.bit_set = base64_encode(&bytes);
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().zip([16, 8, 0]).fold(0_u32, |group, (&byte, shift)| group | u32::from(byte) << shift);
        for (digit, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let symbol = ALPHABET[(group >> shift & 63) as usize];
            text.push(if digit <= chunk.len() { char::from(symbol) } else { '=' });
        }
    }
    text
}

fn base64_decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for chunk in digits.chunks(4) {
        let mut group = 0_u32;
        for (digit, shift) in chunk.iter().zip([18, 12, 6, 0]) {
            group |= (ALPHABET.iter().position(|symbol| symbol == digit)? as u32) << shift;
        }
        bytes.extend_from_slice(&group.to_be_bytes()[1..chunk.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_bits_are_java_s() {
        let mut ack = BatchAck { start_offset: 100, ..BatchAck::default() };
        ack.set_offsets(&[109, 100, 99]);
        assert_eq!(ack.bit_set, "AQI=");
        assert_eq!((ack.offsets(9), ack.offsets(1)), (Some(vec![100, 109]), Some(vec![100])));
        ack.bit_set = "!".into();
        assert_eq!(ack.offsets(9), None);
    }

    proptest! {
        #[test]
        fn base64_survives(bytes in proptest::collection::vec(any::<u8>(), 0..40), junk: String) {
            prop_assert_eq!(base64_decode(&base64_encode(&bytes)), Some(bytes));
            let _ = base64_decode(&junk);
        }
    }
}

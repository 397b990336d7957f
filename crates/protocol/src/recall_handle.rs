//! Recall handle: what the answer to the SEND of a delayed message names it by, until it is visible.
//!
//! RocketMQ's text, in URL-safe base64, with the place of the record behind it: clients take the third word out of it to
//! find the broker, and hand back the rest as it is.
//!
//! ```text
//! base64url( v1 topic brokerName dueMs uniqueKey physicalOffset )
//! ```

use std::str::FromStr;

/// A delayed message, as its producer names it when it recalls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecallHandle {
    /// Its topic.
    pub topic: String,
    /// The broker group that has it.
    pub broker_name: String,
    /// When it becomes visible, milliseconds since the epoch.
    pub due_ms: i64,
    /// Its UNIQ_KEY.
    pub unique_key: String,
    /// Where its record was stored first.
    pub physical_offset: i64,
}

/// The text is no recall handle of this broker's. Use the one that the answer to the send had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("recall handle is invalid")]
pub struct BadRecallHandle;

const VERSION: &str = "v1";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

impl std::fmt::Display for RecallHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { topic, broker_name, due_ms, unique_key, physical_offset } = self;
        let text = format!("{VERSION} {topic} {broker_name} {due_ms} {unique_key} {physical_offset}");
        formatter.write_str(&to_base64(text.as_bytes()))
    }
}

impl FromStr for RecallHandle {
    type Err = BadRecallHandle;

    fn from_str(text: &str) -> Result<Self, BadRecallHandle> {
        let text = String::from_utf8(from_base64(text).ok_or(BadRecallHandle)?).map_err(|_| BadRecallHandle)?;
        let mut words = text.splitn(5, ' ');
        let mut word = || words.next().filter(|word| !word.is_empty()).ok_or(BadRecallHandle);
        if word()? != VERSION {
            return Err(BadRecallHandle);
        }
        let (topic, broker_name) = (word()?.to_owned(), word()?.to_owned());
        let due_ms = word()?.parse().map_err(|_| BadRecallHandle)?;
        // A unique key is a producer's own text, and may have spaces.
        let (unique_key, offset) = word()?.rsplit_once(' ').ok_or(BadRecallHandle)?;
        let physical_offset = offset.parse().map_err(|_| BadRecallHandle)?;
        Ok(Self { topic, broker_name, due_ms, unique_key: unique_key.to_owned(), physical_offset })
    }
}

fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().enumerate().fold(0, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize] as char;
            text.push(if place <= group.len() { digit } else { '=' });
        }
    }
    text
}

/// Padding may be left out.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0;
        for (at, digit) in group.iter().enumerate() {
            let value = ALPHABET.iter().position(|known| known == digit)?;
            bits |= (value as u32) << (18 - 6 * at);
        }
        let count = group.len().checked_sub(1).filter(|count| *count > 0)?;
        bytes.extend(&bits.to_be_bytes()[1..1 + count]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rocketmq_reads_its_five_words_out_of_it() {
        let handle = RecallHandle {
            topic: "T".to_owned(),
            broker_name: "broker-a".to_owned(),
            due_ms: 1_700_000_000_001,
            unique_key: "0A000001".to_owned(),
            physical_offset: 640,
        };
        let text = handle.to_string();
        assert_eq!(text, "djEgVCBicm9rZXItYSAxNzAwMDAwMDAwMDAxIDBBMDAwMDAxIDY0MA==");
        assert_eq!(from_base64(&text).unwrap(), b"v1 T broker-a 1700000000001 0A000001 640");
        assert_eq!(text.parse(), Ok(handle.clone()));
        assert_eq!(text.trim_end_matches('=').parse(), Ok(handle));
    }

    #[test]
    fn what_is_no_handle_is_refused() {
        let of = |text: &str| to_base64(text.as_bytes()).parse::<RecallHandle>();
        for text in
            ["", "v1", "v1 T b 1 u", "v1 T b x u 1", "v1 T b 1 u x", "v2 T b 1 u 1", "v1  b 1 u 1", "v1 T b 1  "]
        {
            assert_eq!(of(text), Err(BadRecallHandle), "{text}");
        }
        for text in ["", "A", "A+==", "é", "=", "____"] {
            assert_eq!(text.parse::<RecallHandle>(), Err(BadRecallHandle), "{text}");
        }
    }

    proptest! {
        #[test]
        fn handles_survive_their_text(topic in "[a-zA-Z0-9_%|-]{1,20}", unique_key in "[^\u{0}]{1,40}", due_ms: i64, physical_offset: i64) {
            let handle = RecallHandle { topic, broker_name: "b".to_owned(), due_ms, unique_key, physical_offset };
            prop_assert_eq!(handle.to_string().parse(), Ok(handle));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = text.parse::<RecallHandle>();
            let _ = to_base64(text.as_bytes()).parse::<RecallHandle>();
        }
    }
}

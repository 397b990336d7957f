//! A message's properties: `name U+0001 value U+0002 name U+0001 value U+0002 …`, kept and searched in that form.
//!
//! Lookups scan the text; a message has about ten properties, and most are looked up once. A piece shorter than three
//! bytes or with nothing on one side of U+0001 is ignored as in Java, so an empty value is no property. Of two equal
//! names the later wins.

/// Most bytes of properties that fit a record.
pub const MAX_PROPERTIES_BYTES: usize = 32_767;

const NAME_END: char = '\u{1}';
const VALUE_END: char = '\u{2}';

macro_rules! property_names {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*

        /// Names that the system sets; Java producers refuse them as user properties.
        pub const RESERVED: &[&str] = &[$($text,)*];
    };
}

property_names! {
    /// Space-separated keys, indexed.
    KEYS = "KEYS";
    /// The tag.
    TAGS = "TAGS";
    /// `false`: answer before the message is safe. Missing is true.
    WAIT = "WAIT";
    /// Delay level, 1..=18.
    DELAY = "DELAY";
    /// The client's message id.
    UNIQ_KEY = "UNIQ_KEY";
    /// Cluster that stored the message.
    CLUSTER = "CLUSTER";
    /// Region that stored the message.
    MSG_REGION = "MSG_REGION";
    /// Trace switch.
    TRACE_ON = "TRACE_ON";
    /// Topic of a message before its first retry.
    RETRY_TOPIC = "RETRY_TOPIC";
    /// First offset message id of a retried message.
    ORIGIN_MESSAGE_ID = "ORIGIN_MESSAGE_ID";
    /// Carries reconsumeTimes in a retry sent by a client.
    RECONSUME_TIME = "RECONSUME_TIME";
    /// Carries maxReconsumeTimes in a retry sent by a client.
    MAX_RECONSUME_TIMES = "MAX_RECONSUME_TIMES";
    /// Topic of a parked message.
    REAL_TOPIC = "REAL_TOPIC";
    /// Queue of a parked message.
    REAL_QID = "REAL_QID";
    /// `true`: half message.
    TRAN_MSG = "TRAN_MSG";
    /// Producer group, needed for the check.
    PGROUP = "PGROUP";
    /// UNIQ_KEY, on half messages.
    TRANSACTION_ID = "__transactionId__";
    /// Queue offset of the first half copy.
    TRAN_PREPARED_QUEUE_OFFSET = "TRAN_PREPARED_QUEUE_OFFSET";
    /// How often the producer was asked.
    TRANSACTION_CHECK_TIMES = "TRANSACTION_CHECK_TIMES";
    /// Age before the first check.
    CHECK_IMMUNITY_TIME_IN_SECONDS = "CHECK_IMMUNITY_TIME_IN_SECONDS";
    /// Namespace.
    INSTANCE_ID = "INSTANCE_ID";
    /// Set by consumers, never stored.
    MIN_OFFSET = "MIN_OFFSET";
    /// Set by consumers, never stored.
    MAX_OFFSET = "MAX_OFFSET";
    /// Set by consumers, never stored.
    CONSUME_START_TIME = "CONSUME_START_TIME";
    /// Ties a reply to its request.
    CORRELATION_ID = "CORRELATION_ID";
    /// Client that waits for the reply.
    REPLY_TO_CLIENT = "REPLY_TO_CLIENT";
    /// How long it waits, ms.
    TTL = "TTL";
    /// `reply`.
    MSG_TYPE = "MSG_TYPE";
    /// When the reply reached the broker.
    ARRIVE_TIME = "ARRIVE_TIME";
    /// When the reply was pushed.
    PUSH_REPLY_TIME = "PUSH_REPLY_TIME";
    /// Handle of a popped message; stripped from sends.
    POP_CK = "POP_CK";
    /// Offset of the checkpoint.
    POP_CK_OFFSET = "POP_CK_OFFSET";
    /// When it was first popped.
    FIRST_POP_TIME = "1ST_POP_TIME";
    /// Marks order messages.
    SHARDING_KEY = "__SHARDINGKEY";
    /// Delay in seconds.
    TIMER_DELAY_SEC = "TIMER_DELAY_SEC";
    /// Delay in ms.
    TIMER_DELAY_MS = "TIMER_DELAY_MS";
    /// Due time, ms.
    TIMER_DELIVER_MS = "TIMER_DELIVER_MS";
    /// Due time as accepted, ms.
    TIMER_OUT_MS = "TIMER_OUT_MS";
    /// When it was parked, ms.
    TIMER_ENQUEUE_MS = "TIMER_ENQUEUE_MS";
    /// When it was delivered, ms.
    TIMER_DEQUEUE_MS = "TIMER_DEQUEUE_MS";
    /// How often it was rolled.
    TIMER_ROLL_TIMES = "TIMER_ROLL_TIMES";
    /// UNIQ_KEY that a recall deletes.
    TIMER_DEL_UNIQKEY = "TIMER_DEL_UNIQKEY";
    /// Level of a delay done by the timer.
    TIMER_DELAY_LEVEL = "TIMER_DELAY_LEVEL";
    /// Messages in an inner batch.
    INNER_NUM = "INNER_NUM";
    /// First offset of an inner batch.
    INNER_BASE = "INNER_BASE";
    /// Light queues to dispatch to.
    INNER_MULTI_DISPATCH = "INNER_MULTI_DISPATCH";
    /// Offsets in light queues.
    INNER_MULTI_QUEUE_OFFSET = "INNER_MULTI_QUEUE_OFFSET";
    /// Topic of a dead letter.
    DLQ_ORIGIN_TOPIC = "DLQ_ORIGIN_TOPIC";
    /// Id of a dead letter.
    DLQ_ORIGIN_MESSAGE_ID = "DLQ_ORIGIN_MESSAGE_ID";
    /// Reserved.
    TRACE_CONTEXT = "TRACE_CONTEXT";
    /// Reserved.
    BORN_TIMESTAMP = "BORN_TIMESTAMP";
    /// Reserved.
    BORN_HOST = "__BORNHOST";
    /// Reserved.
    BUYER_ID = "BUYER_ID";
    /// Reserved.
    DUP_INFO = "DUP_INFO";
    /// Reserved.
    EXTEND_UNIQ_INFO = "EXTEND_UNIQ_INFO";
    /// Reserved.
    REDIRECT = "REDIRECT";
    /// Reserved.
    TRANSFER_FLAG = "TRANSFER_FLAG";
    /// Reserved.
    CORRECTION_FLAG = "CORRECTION_FLAG";
    /// Reserved.
    MQ2_FLAG = "MQ2_FLAG";
    /// Reserved.
    FORWARD_QUEUE_ID = "PROPERTY_FORWARD_QUEUE_ID";
    /// Checksum of a record.
    CRC32 = "__CRC32#";
    /// Physical offset of the first record of a message that was given back: it tells one message from another in a
    /// dead-letter queue. The broker's own; what a client sends under this name is left out.
    ORIGIN = "RAFTMQ_ORIGIN";
    /// Offset message id of the dead letter that this message is a copy of.
    DEAD_LETTER = "RAFTMQ_DEAD_LETTER";
}

/// The value of a property in encoded text.
pub fn get<'a>(encoded: &'a str, name: &str) -> Option<&'a str> {
    iter(encoded).filter(|(found, _)| *found == name).last().map(|(_, value)| value)
}

/// Name and value of every property in encoded text.
pub fn iter(encoded: &str) -> impl Iterator<Item = (&str, &str)> {
    pieces(encoded).filter_map(piece)
}

fn pieces(encoded: &str) -> impl Iterator<Item = &str> {
    encoded.split(VALUE_END)
}

fn piece(text: &str) -> Option<(&str, &str)> {
    text.split_once(NAME_END).filter(|(name, value)| !name.is_empty() && !value.is_empty())
}

/// Properties that can be changed. Always well formed: only whole pieces, each name once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties(String);

impl Properties {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// From encoded text; what no reader would see is left out.
    pub fn parse(encoded: &str) -> Self {
        let mut properties = Self(String::with_capacity(encoded.len() + 128));
        for (name, value) in iter(encoded) {
            properties.remove(name);
            properties.push(name, &without_separators(value));
        }
        properties
    }

    /// The encoded text.
    pub fn encoded(&self) -> &str {
        &self.0
    }

    /// The encoded text.
    pub fn into_encoded(self) -> String {
        self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&str> {
        iter(&self.0).find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Name and value of every property.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        iter(&self.0)
    }

    /// Sets a property behind all others; an empty value removes it. The two separators cannot be part of a property and
    /// are left out of it.
    pub fn set(&mut self, name: &str, value: impl std::fmt::Display) {
        let (name, value) = (without_separators(name), value.to_string());
        self.remove(&name);
        self.push(&name, &without_separators(&value));
    }

    /// Appends a property that is not there, without separators in it.
    fn push(&mut self, name: &str, value: &str) {
        if !name.is_empty() && !value.is_empty() {
            self.0.reserve(name.len() + value.len() + 2);
            self.0.push_str(name);
            self.0.push(NAME_END);
            self.0.push_str(value);
            self.0.push(VALUE_END);
        }
    }

    /// Removes a property; tells whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let mut start = 0;
        let mut found = None;
        for text in pieces(&self.0) {
            let end = start + text.len() + VALUE_END.len_utf8();
            // Only `push` writes: whatever begins with name and separator is the property.
            if text.strip_prefix(name).is_some_and(|rest| rest.starts_with(NAME_END)) {
                found = Some(start..end);
                break;
            }
            start = end;
        }
        if let Some(range) = found.clone() {
            self.0.replace_range(range, "");
        }
        found.is_some()
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Properties {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        let mut properties = Self::new();
        for (name, value) in pairs {
            properties.set(name, value);
        }
        properties
    }
}

fn without_separators(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains(is_separator) { text.replace(is_separator, "").into() } else { text.into() }
}

fn is_separator(character: char) -> bool {
    matches!(character, NAME_END | VALUE_END)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reading_follows_java() {
        // No trailing separator, an empty value, a name without value, a later duplicate.
        let encoded = "a\u{1}1\u{2}b\u{1}\u{2}c\u{2}\u{1}d\u{2}\u{2}a\u{1}2\u{2}e\u{1}x\u{1}y";
        assert_eq!((get(encoded, "a"), get(encoded, "b"), get(encoded, "c")), (Some("2"), None, None));
        assert_eq!(get(encoded, "e"), Some("x\u{1}y"));
        let parsed = Properties::parse(encoded);
        assert_eq!(parsed.encoded(), "a\u{1}2\u{2}e\u{1}xy\u{2}");
    }

    #[test]
    fn setting_replaces_and_separators_do_not_get_in() {
        let mut properties: Properties = [("k", "v"), ("WAIT", "true")].into_iter().collect();
        assert_eq!(properties.encoded(), "k\u{1}v\u{2}WAIT\u{1}true\u{2}");
        properties.set("k", 7);
        properties.set("x\u{1}y", "a\u{2}b");
        assert_eq!(properties.encoded(), "WAIT\u{1}true\u{2}k\u{1}7\u{2}xy\u{1}ab\u{2}");
        properties.set("k", "");
        properties.set("", "lost");
        assert!(properties.remove("WAIT") && !properties.remove("WAIT"));
        assert_eq!(properties.iter().collect::<Vec<_>>(), [("xy", "ab")]);
    }

    proptest! {
        #[test]
        fn a_map_survives_and_no_text_panics(
            map in proptest::collection::btree_map("[a-zé中]{1,4}", "[^\u{1}\u{2}]{1,9}", 0..9),
            text in "[a-c\u{1}\u{2}]{0,40}",
        ) {
            let properties: Properties = map.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
            let read: BTreeMap<String, String> = iter(properties.encoded()).map(owned).collect();
            prop_assert_eq!(read, map);
            let parsed = Properties::parse(&text);
            for (name, value) in parsed.iter() {
                prop_assert_eq!(get(&text, name).map(|value| value.replace('\u{1}', "")), Some(value.to_owned()));
            }
            prop_assert_eq!(&Properties::parse(parsed.encoded()), &parsed);
        }
    }
}

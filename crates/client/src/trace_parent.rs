//! W3C trace context (https://www.w3.org/TR/trace-context/) in a message's property, so that a span of the producer is the
//! parent of the consumer's, whichever tracing library either uses.

use std::fmt;
use std::str::FromStr;

use crate::errors::InvalidMessage;
use crate::message::{Message, ReceivedMessage};

/// The property, by the header's name.
const PROPERTY: &str = "traceparent";

/// A `traceparent`: which trace, and which span of it.
///
/// Made from the numbers that a tracing library gives, and read back into them. With OpenTelemetry: `trace_id` is
/// `u128::from_be_bytes(context.trace_id().to_bytes())`, `span_id` is `u64::from_be_bytes(context.span_id().to_bytes())`, and
/// `flags` is `context.trace_flags().to_u8()`.
///
/// ```
/// use client::{Message, TraceParent};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let parent: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse()?;
/// let message = Message::new("Orders", "body").with_trace_parent(&parent);
/// assert_eq!(message.property("traceparent"), Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: u128,
    span_id: u64,
    /// Bit 0: the caller may have recorded the trace.
    pub flags: u8,
}

impl TraceParent {
    /// `None` if one of the ids is 0, which means that there is none.
    pub fn new(trace_id: u128, span_id: u64, flags: u8) -> Option<TraceParent> {
        (trace_id != 0 && span_id != 0).then_some(TraceParent { trace_id, span_id, flags })
    }

    /// The trace; never 0.
    pub fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The span; never 0.
    pub fn span_id(&self) -> u64 {
        self.span_id
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// The text is no `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no traceparent: expected 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, in lower case, no id all 0"
)]
pub struct InvalidTraceParent(String);

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    /// Reads also what later versions of the format may write, as far as this one goes.
    fn from_str(text: &str) -> Result<TraceParent, InvalidTraceParent> {
        let parsed = || {
            let mut parts = text.splitn(5, '-');
            let mut hex = |digits: usize| {
                let part = parts.next()?;
                let is_hex = part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                is_hex.then_some(part)
            };
            let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
            if version == "ff" || version == "00" && parts.next().is_some() {
                return None;
            }
            TraceParent::new(
                u128::from_str_radix(trace_id, 16).ok()?,
                u64::from_str_radix(span_id, 16).ok()?,
                u8::from_str_radix(flags, 16).ok()?,
            )
        };
        parsed().ok_or_else(|| InvalidTraceParent(text.to_owned()))
    }
}

impl Message {
    /// Says which span sends the message, in the property `traceparent`.
    #[must_use]
    pub fn with_trace_parent(self, parent: &TraceParent) -> Message {
        let set: Result<Message, InvalidMessage> = self.with_property(PROPERTY, &parent.to_string());
        set.expect("the name is nobody's, and the value is not empty")
    }
}

impl ReceivedMessage {
    /// The span that sent the message. `None` if there is none, or the property says nothing that can be read.
    pub fn trace_parent(&self) -> Option<TraceParent> {
        self.property(PROPERTY)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_anything_else_is_not() {
        let parent = TraceParent::new(1, 0xAB, 1).unwrap();
        let text = "00-00000000000000000000000000000001-00000000000000ab-01";
        assert_eq!((parent.to_string().as_str(), text.parse()), (text, Ok(parent)));
        assert!(TraceParent::new(0, 1, 0).is_none() && TraceParent::new(1, 0, 0).is_none());
        let later: TraceParent = format!("01{}-and-more", &text[2..]).parse().unwrap();
        assert_eq!(later, parent);
        for bad in [
            "",
            "00",
            &format!("{text}-more"),
            &format!("ff{}", &text[2..]),
            &text.to_uppercase(),
            &text.replace("ab", "xb"),
            &text.replace("-00000000000000ab", "-0000000000000000"),
            &text.replace("00-0000", "00-000"),
            &text[..text.len() - 1],
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(InvalidTraceParent(bad.to_owned())), "{bad}");
        }
    }
}

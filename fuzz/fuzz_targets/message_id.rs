//! Message ids and unique keys: a text that is one is written the same again, in upper case. Recall handles: what is read
//! out of one is read out of what is written of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::message_id::{MessageId, UniqueKey};
use protocol::recall_handle::RecallHandle;

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<MessageId>() {
        assert_eq!(id.to_string(), text.to_ascii_uppercase());
    }
    if let Ok(key) = text.parse::<UniqueKey>() {
        assert_eq!(key.to_string(), text.to_ascii_uppercase());
    }
    if let Ok(handle) = text.parse::<RecallHandle>() {
        assert_eq!(handle.to_string().parse(), Ok(handle));
    }
});

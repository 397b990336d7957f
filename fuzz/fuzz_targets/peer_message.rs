//! What another member says: whatever comes, a message is read or refused, and what was read can be written again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use raft_store::raft::peer::wire;

fuzz_target!(|bytes: &[u8]| {
    let Some((tag, fields)) = bytes.split_first() else { return };
    if let Ok(message) = wire::decode(*tag, Bytes::copy_from_slice(fields)) {
        // A refusal is cut when it is written.
        if matches!(message, wire::Message::Refused(_) | wire::Message::Inconsistent(_)) {
            return;
        }
        let written = wire::encode(&message).concat();
        assert_eq!(wire::decode(written[4], Bytes::copy_from_slice(&written[5..])).as_ref(), Ok(&message));
    }
});

//! An entry's body: it is read or refused, and what was read can be walked through.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use raft_store::entry::decode_entry;

fuzz_target!(|body: &[u8]| {
    if let Ok(view) = decode_entry(&Bytes::copy_from_slice(body)) {
        assert_eq!(view.operations().count(), view.operation_count());
    }
});

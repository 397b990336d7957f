//! Keyed rows: the first byte is the length of the key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raft_store::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    if let Some((len, bytes)) = bytes.split_first()
        && let Some((key, value)) = bytes.split_at_checked((*len).into())
    {
        fuzzing::row(key, value);
    }
});

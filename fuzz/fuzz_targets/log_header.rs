//! A frame's header out of any bytes, behind a checksum that holds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raft_store::fuzzing;

fuzz_target!(|bytes: &[u8]| fuzzing::log_header(bytes));

//! The small files of a data directory: hard state, marks and IDENTITY, behind checksums that hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raft_store::fuzzing;

fuzz_target!(|bytes: &[u8]| fuzzing::small_file(bytes));

//! An image out of any bytes, behind checksums that hold: it is read, or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raft_store::fuzzing;

fuzz_target!(|bytes: &[u8]| fuzzing::image(bytes));

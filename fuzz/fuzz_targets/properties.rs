//! Property strings: what is parsed is well formed, and finds what the text says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::properties::{self, Properties};

fuzz_target!(|text: &str| {
    let mut parsed = Properties::parse(text);
    assert_eq!(Properties::parse(parsed.encoded()), parsed);
    for (name, _) in properties::iter(text) {
        assert!(properties::get(text, name).is_some());
    }
    parsed.set("k", text);
    assert_eq!(Properties::parse(parsed.encoded()), parsed);
});

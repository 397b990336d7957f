//! Tag expressions: every tag it names matches, by name and by hash.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::tag::{TagExpression, hash_code};

fuzz_target!(|text: &str| {
    if let Ok(TagExpression::AnyOf { tags, .. }) = TagExpression::parse(text) {
        let again = TagExpression::parse(text).expect("parsed before");
        for tag in &tags {
            assert!(again.matches(Some(tag)) && again.matches_hash(hash_code(tag)));
        }
    }
});

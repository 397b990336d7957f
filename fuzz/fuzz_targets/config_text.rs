//! Configuration lines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::body::{parse_config_text, to_config_text};

fuzz_target!(|text: &str| {
    let config = parse_config_text(text);
    let _ = parse_config_text(&to_config_text(&config));
});

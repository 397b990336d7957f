//! A compressed registration: read whole within its bound, or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::body::RegisterBrokerBody;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(body) = RegisterBrokerBody::decode(bytes, true, 1 << 20) {
        assert!(RegisterBrokerBody::decode(&body.to_compressed(), true, 1 << 24).is_ok());
    }
});

//! Batch bodies: taken apart whole or not at all, and put together to the same.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use protocol::batch;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(messages) = batch::decode(bytes) {
        let mut again = BytesMut::new();
        for message in &messages {
            batch::encode(message, &mut again).expect("it fitted before");
        }
        assert_eq!(batch::decode(&again).as_ref(), Ok(&messages));
    }
});

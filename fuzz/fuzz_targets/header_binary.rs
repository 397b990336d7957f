//! A binary header inside a good frame: it is a command or is undecodable, and the frame behind it is found.
#![no_main]

use bytes::{BufMut, BytesMut};
use libfuzzer_sys::fuzz_target;
use protocol::frame::{self, FrameLimits};

fuzz_target!(|header: &[u8]| {
    let mut buffer = BytesMut::new();
    for (kind, header) in [(1_u32, header), (0, &b"{\"opaque\":7}"[..])] {
        buffer.put_u32(4 + header.len() as u32);
        buffer.put_u32(kind << 24 | header.len() as u32);
        buffer.put_slice(header);
    }
    let limits = FrameLimits::default();
    assert!(matches!(frame::decode(&mut buffer, &limits), Ok(Some(_))));
    let Ok(Some(frame::Frame::Command(next))) = frame::decode(&mut buffer, &limits) else { panic!("lost the next frame") };
    assert_eq!(next.opaque, 7);
});

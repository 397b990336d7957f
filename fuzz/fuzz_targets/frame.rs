//! A connection's bytes: whatever comes, frames are cut, refused or awaited, and what was read can be written again.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use protocol::frame::{self, Frame, FrameLimits};

fuzz_target!(|bytes: &[u8]| {
    let limits = FrameLimits { frame_bytes: 1 << 20, header_bytes: 1 << 16 };
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(read)) = frame::decode(&mut buffer, &limits) {
        match read {
            Frame::Command(command) => again(command),
            Frame::Undecodable(bad) => drop(bad.answer()),
        }
    }
});

fn again(command: protocol::command::RemotingCommand) {
    let limits = FrameLimits::default();
    let mut out = BytesMut::new();
    if frame::encode(&command, &limits, &mut out).is_ok() {
        let Ok(Some(Frame::Command(read))) = frame::decode(&mut out, &limits) else { panic!("lost {command:?}") };
        assert_eq!((read.opaque, &read.ext, &read.body), (command.opaque, &command.ext, &command.body));
    }
}

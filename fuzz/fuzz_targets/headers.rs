//! Typed headers out of any fields: each is read, or refused with the field's name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::ext_fields::ExtFields;
use protocol::header::*;

fn read<H: CommandHeader + PartialEq + std::fmt::Debug>(ext: &ExtFields) {
    if let Ok(header) = H::read_from(ext) {
        let mut written = ExtFields::new();
        header.write_to(&mut written);
        assert_eq!(H::read_from(&written).as_ref(), Ok(&header));
    }
}

fuzz_target!(|text: &str| {
    let ext: ExtFields = text.split('\n').filter_map(|line| line.split_once('=')).collect();
    read::<SendMessageRequest>(&ext);
    read::<SendMessageRequestV2>(&ext);
    read::<PullMessageRequest>(&ext);
    read::<SearchOffsetRequest>(&ext);
    read::<RegisterBrokerRequest>(&ext);
    read::<QueryMessageRequest>(&ext);
    read::<PopMessageRequest>(&ext);
});

//! Stored records: any bytes are a record or are refused; a record's every field can be read, and it encodes to itself.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use protocol::record::{self, HeadPatch, RecordView};

fuzz_target!(|bytes: &[u8]| {
    let body = Bytes::copy_from_slice(bytes);
    for one in record::split(&body).flatten() {
        let view = RecordView::parse(&one).expect("split has parsed it");
        let _ = (view.is_body_intact(), view.prepared_transaction_offset(), view.reconsume_times());
        let new = view.to_new().to_bytes().expect("it fitted before");
        let again = RecordView::parse(&new).expect("just written");
        assert_eq!((again.topic(), again.properties(), again.body()), (view.topic(), view.properties(), view.body()));
        let mut head = one[..view.head_bytes()].to_vec();
        HeadPatch { store_host: Some(view.store_host()), ..HeadPatch::default() }.apply(&mut head).expect("same family");
    }
    let _ = HeadPatch::default().apply(&mut bytes.to_vec());
});

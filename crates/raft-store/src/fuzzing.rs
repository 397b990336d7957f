//! A door for the fuzz targets in `fuzz/`, to decoders that are nobody else's business. No part of the interface.
//!
//! Checksums are made to hold first: behind one, a fuzzer would never come.

use bytes::Bytes;
use env::disk::Open;
use env::disk::simulated::SimDisk;
use env::{Env, Rng};
use futures::FutureExt;

use crate::fold::core::CoreRows;
use crate::log::frame::Header;
use crate::log::hard_state::HardState;
use crate::log::segment::Mark;
use crate::{identity, image};

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn put_crc32c(bytes: &mut [u8], covered: usize) {
    if let Some(covered_bytes) = bytes.get(..covered) {
        let crc = crc32c::crc32c(covered_bytes);
        put(bytes, covered, &crc.to_le_bytes());
    }
}

/// A frame's header.
pub fn log_header(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    put_crc32c(&mut bytes, 56);
    let _ = Header::decode(&bytes);
}

/// A row of this crate.
pub fn row(key: &[u8], value: &[u8]) {
    let _ = CoreRows::default().restore(key, value);
}

/// An image, with its rows.
pub fn image(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    put_crc32c(&mut bytes, 92);
    if let Some(content) = bytes.len().checked_sub(8) {
        let hash = xxhash_rust::xxh3::xxh3_64(&bytes[..content]);
        put(&mut bytes, content, &hash.to_le_bytes());
    }
    let read = async move {
        let env = Env::simulated(1, SimDisk::new(Rng::seeded(1)));
        let path = std::path::Path::new("/image");
        let file = env.disk.open(path, Open::New).await.expect("a file");
        file.write_at(0, &[Bytes::from(bytes)]).await.expect("written");
        let _ = image::verify(&env, path).await;
    };
    // A simulated disk without latency never waits.
    let _ = read.now_or_never();
}

/// Hard state, mark, IDENTITY.
pub fn small_file(bytes: &[u8]) {
    let mut hard_state = bytes.to_vec();
    put_crc32c(&mut hard_state, 120);
    let _ = HardState::decode(&hard_state);
    let mut mark = bytes.to_vec();
    put_crc32c(&mut mark, 56);
    let _ = Mark::decode(&mark);
    let mut identity = bytes.to_vec();
    if identity.len() >= 16 {
        let (len, crc) = (identity.len() as u32 - 16, crc32c::crc32c(&identity[16..]));
        put(&mut identity, 8, &len.to_le_bytes());
        put(&mut identity, 12, &crc.to_le_bytes());
    }
    identity::decode_again(Bytes::from(identity));
}

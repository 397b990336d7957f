//! Compressed bodies: undone before a handler sees them, with a bound on what comes out.

use std::io::Read;

use bytes::Bytes;
use flate2::read::ZlibDecoder;

/// Most bytes that a body may have once inflated. A broker takes 4 MiB of compressed ones.
pub(crate) const MAX_INFLATED_BYTES: usize = 32 * 1024 * 1024;

/// The bytes of a zlib (RFC 1950) stream; `None` if it is none or if they are more than `limit_bytes`.
pub(crate) fn inflate(compressed: &[u8], limit_bytes: usize) -> Option<Bytes> {
    let mut inflated = Vec::with_capacity((compressed.len() * 3).min(limit_bytes));
    // One byte more than allowed is enough to know that it is too much.
    ZlibDecoder::new(compressed).take(limit_bytes as u64 + 1).read_to_end(&mut inflated).ok()?;
    (inflated.len() <= limit_bytes).then(|| inflated.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_body_comes_back_unless_it_is_too_large_or_no_stream() {
        let body = b"raft".repeat(1000);
        let compressed = deflate(&body);
        assert_eq!(inflate(&compressed, 4000).as_deref(), Some(&body[..]));
        assert_eq!(inflate(&compressed, 3999), None, "one byte too many");
        assert_eq!(inflate(b"no zlib", 4000), None);
        assert_eq!(inflate(&compressed[..compressed.len() / 2], 4000), None, "cut off");
    }
}

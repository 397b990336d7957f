//! Compressed bodies: undone before anybody reads them, with a bound on what comes out.

use std::borrow::Cow;
use std::io::Read;

use bytes::Bytes;
use flate2::read::ZlibDecoder;
use lz4_flex::frame::FrameDecoder;
use protocol::record::RecordView;
use protocol::sys_flag::Compression;
use ruzstd::decoding::StreamingDecoder;

/// Most bytes that a body may have once decompressed. A broker takes 4 MiB of compressed ones.
pub(crate) const MAX_BYTES: usize = 32 * 1024 * 1024;

/// The bytes of a zlib stream (RFC 1950), an LZ4 frame or a Zstandard frame (RFC 8878), as RocketMQ's clients make them; `None`
/// if it is none, is cut off, or holds more than `limit_bytes`.
pub(crate) fn decompress(compressed: &[u8], kind: Compression, limit_bytes: usize) -> Option<Bytes> {
    match kind {
        Compression::Zlib => read(ZlibDecoder::new(compressed), limit_bytes),
        // An input that ends within a frame's head is to this decoder the end of all frames; nobody compresses nothing.
        Compression::Lz4 => read(FrameDecoder::new(compressed), limit_bytes).filter(|body| !body.is_empty()),
        Compression::Zstd => read(StreamingDecoder::new(compressed).ok()?, limit_bytes),
    }
}

/// The body of a record as its producer had it.
///
/// # Errors
///
/// How it says that it is compressed, if it is no such stream or holds more than 32 MiB.
pub fn decompressed_body<'a>(record: &RecordView<'a>) -> Result<Cow<'a, [u8]>, Compression> {
    let Some(kind) = record.sys_flag().compression() else { return Ok(Cow::Borrowed(record.body())) };
    decompress(record.body(), kind, MAX_BYTES).map(|body| Cow::Owned(body.into())).ok_or(kind)
}

fn read(decoder: impl Read, limit_bytes: usize) -> Option<Bytes> {
    let mut body = Vec::new();
    // One byte more than allowed is enough to know that it is too much.
    decoder.take(limit_bytes as u64 + 1).read_to_end(&mut body).ok()?;
    (body.len() <= limit_bytes).then(|| body.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "raft" a thousand times, as RocketMQ 5.5's CompressorFactory makes it of each kind.
    const COMPRESSED: [(Compression, &str); 3] = [
        (Compression::Zlib, "785eedc3310d0000080330ad3c0858e63fc8e0699366b6515555555f1f49fe8c23"),
        (Compression::Lz4, "04224d186070731d0000004f726166740400ffffffffffffffffffffffffffffff9350747261667400000000"),
        (Compression::Zstd, "28b52ffd00585c00002072616674010099df7744010000"),
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
        digits.collect::<Result<_, _>>().expect("hexadecimal")
    }

    #[test]
    fn a_body_comes_back_unless_it_is_too_large_or_no_stream() {
        let body = b"raft".repeat(1000);
        for (kind, hex) in COMPRESSED {
            let compressed = bytes(hex);
            assert_eq!(decompress(&compressed, kind, 4000).as_deref(), Some(&body[..]), "{kind:?}");
            assert_eq!(decompress(&compressed, kind, 3999), None, "{kind:?}: one byte too many");
            assert_eq!(decompress(b"neither of them", kind, 4000), None, "{kind:?}");
            for end in 0..compressed.len() {
                let cut = decompress(&compressed[..end], kind, 4000);
                assert!(cut.is_none_or(|whole| whole == body), "{kind:?}: cut off at {end}");
            }
            for (other, _) in COMPRESSED.iter().filter(|(other, _)| *other != kind) {
                assert_eq!(decompress(&compressed, *other, 4000), None, "{kind:?} as {other:?}");
            }
        }
    }
}

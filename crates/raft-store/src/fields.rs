//! Reading fixed-width little-endian values from bytes that may be anything: every read says whether they were there.

use bytes::{Buf, Bytes};

/// The bytes ended too early, or a value is outside its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub struct Malformed(pub &'static str);

/// Takes values from the front of a buffer. Never panics and never allocates more than the buffer holds.
#[derive(Debug)]
pub struct Fields(Bytes);

impl Fields {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: Bytes) -> Fields {
        Fields(bytes)
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.0.len()
    }

    /// The next `len` bytes, sharing the buffer.
    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<Bytes, Malformed> {
        if len > self.0.len() {
            return Err(Malformed(what));
        }
        Ok(self.0.split_to(len))
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(self.bytes(1, what)?.get_u8())
    }

    /// Two bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        Ok(self.bytes(2, what)?.get_u16_le())
    }

    /// Four bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        Ok(self.bytes(4, what)?.get_u32_le())
    }

    /// Eight bytes.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        Ok(self.bytes(8, what)?.get_u64_le())
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self, what: &'static str) -> Result<i64, Malformed> {
        Ok(self.bytes(8, what)?.get_i64_le())
    }

    /// A byte that is 0 or 1.
    pub fn bool(&mut self, what: &'static str) -> Result<bool, Malformed> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed(what)),
        }
    }

    /// UTF-8 behind its length in two bytes.
    pub fn string(&mut self, what: &'static str) -> Result<String, Malformed> {
        let len = self.u16(what)?;
        let bytes = self.bytes(len as usize, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Malformed(what))
    }

    /// The number of things that follow, each at least `least_bytes` long: a count that cannot fit is refused before
    /// anything is allocated for it.
    pub fn count(&mut self, least_bytes: usize, what: &'static str) -> Result<usize, Malformed> {
        let count = self.u32(what)? as usize;
        if count.checked_mul(least_bytes).is_none_or(|bytes| bytes > self.0.len()) {
            return Err(Malformed(what));
        }
        Ok(count)
    }

    /// Nothing may be left.
    pub fn end(self, what: &'static str) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed(what)) }
    }
}

/// Appends `text` as [`Fields::string`] reads it.
///
/// Panics beyond 65,535 bytes: names and addresses are checked where they enter.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    let len = u16::try_from(text.len()).expect("names and addresses are short");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

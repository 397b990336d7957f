//! The binary header, which RocketMQ calls ROCKETMQ.
//!
//! ```text
//! code i16, language u8, version i16, opaque i32, flag i32          13 bytes
//! remark length i32, remark UTF-8
//! map length i32, then per entry: name length i16, name, value length i32, value
//! ```
//!
//! It cannot carry a code above 16 bits, nor tell an empty text from an absent one.

use bytes::{BufMut, BytesMut};

use crate::code::RequestCode;
use crate::command::RemotingCommand;
use crate::ext_fields::{ExtFields, MAX_EXT_FIELDS};
use crate::frame::{HeaderDraft, HeaderError};
use crate::language::Language;

/// Request codes above 16 bits as they arrive when a client truncates them: pop and ack. No other code is near.
const TRUNCATED: [RequestCode; 8] = [
    RequestCode::POP_MESSAGE,
    RequestCode::ACK_MESSAGE,
    RequestCode::PEEK_MESSAGE,
    RequestCode::CHANGE_MESSAGE_INVISIBLETIME,
    RequestCode::NOTIFICATION,
    RequestCode::POLLING_INFO,
    RequestCode::POP_ROLLBACK,
    RequestCode::BATCH_ACK_MESSAGE,
];

/// Reads a header into `draft`. On failure the draft has the request id if the fixed part was whole.
pub(crate) fn decode(bytes: &[u8], draft: &mut HeaderDraft) -> Result<(), HeaderError> {
    let mut cursor = Cursor(bytes);
    let code = i32::from(cursor.i16("no code")?);
    draft.language = Language::from_code(cursor.array::<1>("no language")?[0]);
    draft.version = i32::from(cursor.i16("no version")?);
    draft.opaque = Some(cursor.i32("no opaque")?);
    draft.flag = cursor.i32("no flag")?;
    let is_response = draft.flag & 1 != 0;
    draft.code = if is_response { code } else { widen(code) };
    let remark = cursor.counted("remark length")?;
    draft.remark = (!remark.is_empty()).then(|| String::from_utf8_lossy(remark).into_owned());
    let mut entries = Cursor(cursor.counted("map length")?);
    draft.ext = ExtFields::with_capacity(16, entries.0.len());
    while !entries.0.is_empty() {
        let name_bytes = entries.i16("name length")?;
        let name_bytes = usize::try_from(name_bytes).map_err(|_| HeaderError::Binary("name length"))?;
        let name = String::from_utf8_lossy(entries.slice(name_bytes, "name")?);
        let value = String::from_utf8_lossy(entries.counted("value length")?);
        draft.ext.set_text(&name, &value);
        if draft.ext.len() > MAX_EXT_FIELDS {
            return Err(HeaderError::TooManyFields);
        }
    }
    Ok(())
}

fn widen(code: i32) -> i32 {
    let truncated = |wide: &&RequestCode| i32::from(wide.0 as i16) == code;
    TRUNCATED.iter().find(truncated).map_or(code, |wide| wide.0)
}

/// Whether every value survives the binary form.
pub(crate) fn fits(command: &RemotingCommand) -> bool {
    i16::try_from(command.code).is_ok()
        && i16::try_from(command.version).is_ok()
        && command.ext.iter().all(|(name, _)| i16::try_from(name.len()).is_ok())
}

/// Appends the header; [`fits`] must hold.
pub(crate) fn encode(command: &RemotingCommand, out: &mut BytesMut) {
    assert!(fits(command), "code {} or version {} does not fit a binary header", command.code, command.version);
    out.put_i16(command.code as i16);
    out.put_u8(command.language.code());
    out.put_i16(command.version as i16);
    out.put_i32(command.opaque);
    out.put_i32(command.flag);
    put_counted(out, command.remark_text());
    let entries_bytes: usize = command.ext.iter().map(|(name, value)| 6 + name.len() + value.len()).sum();
    out.put_u32(entries_bytes as u32);
    for (name, value) in command.ext.iter() {
        out.put_i16(name.len() as i16);
        out.put_slice(name.as_bytes());
        put_counted(out, value);
    }
}

fn put_counted(out: &mut BytesMut, text: &str) {
    out.put_u32(text.len() as u32);
    out.put_slice(text.as_bytes());
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn slice(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], HeaderError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(HeaderError::Binary(what))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], HeaderError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(HeaderError::Binary(what))?;
        self.0 = rest;
        Ok(*head)
    }

    fn i16(&mut self, what: &'static str) -> Result<i16, HeaderError> {
        self.array(what).map(i16::from_be_bytes)
    }

    fn i32(&mut self, what: &'static str) -> Result<i32, HeaderError> {
        self.array(what).map(i32::from_be_bytes)
    }

    /// A length and that many bytes.
    fn counted(&mut self, what: &'static str) -> Result<&'a [u8], HeaderError> {
        let length = usize::try_from(self.i32(what)?).map_err(|_| HeaderError::Binary(what))?;
        self.slice(length, what)
    }
}

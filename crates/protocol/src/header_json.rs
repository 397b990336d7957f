//! The JSON header, read and written without a tree in between: it is parsed once per message.

use bytes::{BufMut, BytesMut};

use crate::command::RemotingCommand;
use crate::ext_fields::{ExtFields, MAX_EXT_FIELDS};
use crate::frame::{HeaderDraft, HeaderError};
use crate::json::lexer::{self, JsonError, Lexer};
use crate::json::write::{put_integer, put_string};
use crate::language::Language;

/// Reads a header into `draft`. On failure the draft has the request id if it stands anywhere in the text.
pub(crate) fn decode(text: &[u8], draft: &mut HeaderDraft) -> Result<(), HeaderError> {
    let result = decode_members(text, draft);
    if result.is_err() {
        draft.opaque = draft.opaque.or_else(|| find_number(text, b"opaque"));
        draft.flag |= find_number(text, b"flag").unwrap_or(0);
    }
    result
}

fn decode_members(text: &[u8], draft: &mut HeaderDraft) -> Result<(), HeaderError> {
    let mut lexer = Lexer::new(text);
    lexer.expect(b'{', "'{'")?;
    lexer.skip_commas();
    while !lexer.take(b'}') {
        let name = lexer.name()?;
        match name.as_ref() {
            "code" => draft.code = number(&mut lexer)?.unwrap_or(0),
            "version" => draft.version = number(&mut lexer)?.unwrap_or(0),
            "opaque" => draft.opaque = number(&mut lexer)?,
            "flag" => draft.flag = number(&mut lexer)?.unwrap_or(0),
            "language" => draft.language = language(&mut lexer)?,
            "remark" => draft.remark = lexer.text()?.filter(|remark| !remark.is_empty()).map(|text| text.into_owned()),
            "extFields" => fields(&mut lexer, &mut draft.ext, text.len())?,
            _ => lexer.skip_value()?,
        }
        lexer.separator(b'}')?;
    }
    Ok(lexer.end()?)
}

/// A number, quoted or not; `null` and the empty string count as absent.
fn number(lexer: &mut Lexer<'_>) -> Result<Option<i32>, JsonError> {
    let position = lexer.position();
    let Some(text) = lexer.text()?.filter(|text| !text.is_empty()) else { return Ok(None) };
    match lexer::integer(&text).and_then(|value| i32::try_from(value).ok()) {
        Some(value) => Ok(Some(value)),
        None => Err(JsonError::Unexpected { found: text.chars().next(), expected: "an i32", position }),
    }
}

/// A name, or the ordinal that fastjson reads from a number.
fn language(lexer: &mut Lexer<'_>) -> Result<Language, JsonError> {
    let quoted = matches!(lexer.peek(), Some(b'"' | b'\''));
    let text = lexer.text()?.unwrap_or_default();
    Ok(match text.parse::<u8>() {
        Ok(ordinal) if !quoted => Language::from_code(ordinal),
        _ if text.is_empty() => Language::JAVA,
        _ => Language::from_name(&text),
    })
}

fn fields(lexer: &mut Lexer<'_>, ext: &mut ExtFields, text_bytes: usize) -> Result<(), HeaderError> {
    if lexer.peek() != Some(b'{') {
        // `null`, or something that is no map: no fields.
        return Ok(lexer.skip_value()?);
    }
    *ext = ExtFields::with_capacity(16, text_bytes);
    lexer.expect(b'{', "'{'")?;
    lexer.skip_commas();
    while !lexer.take(b'}') {
        let name = lexer.name()?;
        if let Some(value) = lexer.text()? {
            ext.set_text(&name, &value);
        }
        if ext.len() > MAX_EXT_FIELDS {
            return Err(HeaderError::TooManyFields);
        }
        lexer.separator(b'}')?;
    }
    Ok(())
}

/// The number behind the last `"name":` of a broken text. Last, because a member's text could contain the word, and
/// senders write these members behind the map of fields.
fn find_number(text: &[u8], name: &[u8]) -> Option<i32> {
    let at = text.windows(name.len()).rposition(|window| window == name)?;
    let rest = &text[at + name.len()..];
    let start = rest.iter().position(|byte| !matches!(byte, b'"' | b'\'' | b' ' | b':'))?;
    let rest = &rest[start..];
    let digits = rest.iter().position(|byte| !matches!(byte, b'-' | b'0'..=b'9')).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

/// Appends the header as Java writes it: members sorted, null ones left out, field values always strings.
pub(crate) fn encode(command: &RemotingCommand, out: &mut BytesMut) {
    out.put_slice(b"{\"code\":");
    put_integer(out, command.code.into());
    out.put_slice(b",\"extFields\":{");
    for (index, (name, value)) in command.ext.iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        put_string(out, name);
        out.put_u8(b':');
        put_string(out, value);
    }
    out.put_slice(b"},\"flag\":");
    put_integer(out, command.flag.into());
    out.put_slice(b",\"language\":");
    put_string(out, command.language.name());
    out.put_slice(b",\"opaque\":");
    put_integer(out, command.opaque.into());
    if let Some(remark) = &command.remark {
        out.put_slice(b",\"remark\":");
        put_string(out, remark);
    }
    out.put_slice(b",\"serializeTypeCurrentRPC\":\"JSON\",\"version\":");
    put_integer(out, command.version.into());
    out.put_u8(b'}');
}

//! Tokens of JSON as fastjson accepts it: the one reader under the header fast path and the body tree.
//!
//! Beyond the standard it takes single quotes, bare words, comments, stray commas and a byte order mark. It never
//! panics, never recurses (nesting is counted by the callers or by a loop), and invalid UTF-8 becomes U+FFFD as in Java.

use std::borrow::Cow;

/// Deepest nesting of objects and arrays accepted. The deepest body a client sends has six levels.
pub const MAX_DEPTH: u32 = 64;

/// Why a text is not JSON even to a lenient reader. The peer must send something else; a retry fails alike.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// A byte that cannot stand here.
    #[error("unexpected byte {found:?} at {position}, expected {expected}")]
    Unexpected {
        /// The byte found; `None` at the end of the text.
        found: Option<char>,
        /// What could have stood here.
        expected: &'static str,
        /// Offset of the byte in the text.
        position: usize,
    },
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels at {position}")]
    TooDeep {
        /// Offset in the text.
        position: usize,
    },
    /// The text is JSON, but a value does not fit the field it stands in.
    #[error("{0}")]
    Mismatch(String),
}

/// A cursor over the text.
#[derive(Debug, Clone)]
pub(crate) struct Lexer<'a> {
    input: &'a [u8],
    position: usize,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        let position = if input.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
        Self { input, position }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// The text between two positions, as it stands.
    pub(crate) fn raw(&self, from: usize, to: usize) -> Cow<'a, str> {
        let bytes = &self.input[from..to];
        // Nearly always valid, and then checked faster than `from_utf8_lossy` does.
        std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
    }

    /// The next byte that is neither blank nor comment, not consumed.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.input.get(self.position)? {
                b' ' | b'\t' | b'\r' | b'\n' | 0x0C | 0x08 => self.position += 1,
                b'/' => match self.input.get(self.position + 1) {
                    Some(b'/') => self.skip_past(b"\n"),
                    Some(b'*') => {
                        self.position += 2;
                        self.skip_past(b"*/");
                    }
                    _ => return Some(b'/'),
                },
                &byte => return Some(byte),
            }
        }
    }

    /// Moves behind the next `end`, or to the end of the text.
    fn skip_past(&mut self, end: &[u8]) {
        let rest = &self.input[self.position..];
        let found = rest.windows(end.len()).position(|window| window == end);
        self.position = found.map_or(self.input.len(), |at| self.position + at + end.len());
    }

    /// Consumes the byte if it is next.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.position += usize::from(found);
        found
    }

    pub(crate) fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), JsonError> {
        if self.take(byte) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    /// Consumes any number of commas: fastjson takes trailing and doubled ones.
    pub(crate) fn skip_commas(&mut self) {
        while self.take(b',') {}
    }

    /// Consumes what may stand behind a member: commas, or nothing if the closing byte is next.
    pub(crate) fn separator(&mut self, close: u8) -> Result<(), JsonError> {
        match self.peek() {
            Some(b',') => {
                self.skip_commas();
                Ok(())
            }
            Some(byte) if byte == close => Ok(()),
            _ => Err(self.unexpected("',' or the closing bracket")),
        }
    }

    /// Fails unless only blanks are left. A NUL counts as blank: C clients terminate strings with it.
    pub(crate) fn end(&mut self) -> Result<(), JsonError> {
        loop {
            match self.peek() {
                None => return Ok(()),
                Some(0) => self.position += 1,
                Some(_) => return Err(self.unexpected("the end")),
            }
        }
    }

    pub(crate) fn unexpected(&mut self, expected: &'static str) -> JsonError {
        let found = self.peek().map(char::from);
        JsonError::Unexpected { found, expected, position: self.position }
    }

    /// A quoted string; the caller has seen the quote.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        let quote = match self.peek() {
            Some(quote @ (b'"' | b'\'')) => quote,
            _ => return Err(self.unexpected("a string")),
        };
        self.position += 1;
        let start = self.position;
        self.skip_plain(quote);
        match self.input.get(self.position) {
            Some(b'\\') => self.escaped_string(start, quote).map(Cow::Owned),
            Some(_) => {
                self.position += 1;
                Ok(self.raw(start, self.position - 1))
            }
            None => Err(self.unexpected("the closing quote")),
        }
    }

    /// Moves to the next quote or backslash, or to the end of the text.
    fn skip_plain(&mut self, quote: u8) {
        let rest = &self.input[self.position..];
        self.position += rest.iter().position(|&byte| byte == quote || byte == b'\\').unwrap_or(rest.len());
    }

    /// The rest of a string whose first backslash is at the cursor.
    fn escaped_string(&mut self, start: usize, quote: u8) -> Result<String, JsonError> {
        let mut text = Vec::with_capacity(2 * (self.position - start) + 64);
        text.extend_from_slice(&self.input[start..self.position]);
        loop {
            match self.input.get(self.position) {
                Some(b'\\') => {
                    self.position += 1;
                    let character = self.escape()?;
                    text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(_) => {
                    self.position += 1;
                    break;
                }
                None => return Err(self.unexpected("the closing quote")),
            }
            let plain = self.position;
            self.skip_plain(quote);
            text.extend_from_slice(&self.input[plain..self.position]);
        }
        Ok(match String::from_utf8(text) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    /// The character behind a backslash.
    fn escape(&mut self) -> Result<char, JsonError> {
        let Some(&byte) = self.input.get(self.position) else {
            return Err(self.unexpected("an escape"));
        };
        self.position += 1;
        Ok(match byte {
            b'"' | b'\'' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' | b'F' => '\u{C}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'v' => '\u{B}',
            b'0'..=b'7' => char::from(byte - b'0'),
            b'x' => char::from_u32(self.hex(2)?).unwrap_or(char::REPLACEMENT_CHARACTER),
            b'u' => {
                let unit = self.hex(4)?;
                let low_follows = (0xD800..0xDC00).contains(&unit)
                    && self.input.get(self.position) == Some(&b'\\')
                    && self.input.get(self.position + 1) == Some(&b'u');
                if !low_follows {
                    return Ok(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                let before_low = self.position;
                self.position += 2;
                let low = self.hex(4)?;
                if (0xDC00..0xE000).contains(&low) {
                    let point = 0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                    char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER)
                } else {
                    self.position = before_low;
                    char::REPLACEMENT_CHARACTER
                }
            }
            _ => {
                self.position -= 1;
                return Err(self.unexpected("a known escape"));
            }
        })
    }

    fn hex(&mut self, digits: usize) -> Result<u32, JsonError> {
        let mut value = 0;
        for _ in 0..digits {
            let digit = self.input.get(self.position).and_then(|&byte| char::from(byte).to_digit(16));
            let Some(digit) = digit else { return Err(self.unexpected("a hexadecimal digit")) };
            value = value * 16 + digit;
            self.position += 1;
        }
        Ok(value)
    }

    /// A number, a literal or an unquoted name: everything up to the next delimiter.
    pub(crate) fn bare_word(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.peek();
        let start = self.position;
        while let Some(&byte) = self.input.get(self.position) {
            match byte {
                b',' | b':' | b'{' | b'}' | b'[' | b']' | b'"' | b'\'' | b'/' | 0..=b' ' => break,
                _ => self.position += 1,
            }
        }
        if start == self.position {
            return Err(self.unexpected("a value"));
        }
        Ok(self.raw(start, self.position))
    }

    /// A member's name, quoted or not, with the colon behind it.
    pub(crate) fn name(&mut self) -> Result<Cow<'a, str>, JsonError> {
        let name = match self.peek() {
            Some(b'"' | b'\'') => self.string()?,
            _ => self.bare_word()?,
        };
        self.expect(b':', "':'")?;
        Ok(name)
    }

    /// Any value as text: strings unquoted, scalars as written, objects and arrays raw, `null` as `None`.
    pub(crate) fn text(&mut self) -> Result<Option<Cow<'a, str>>, JsonError> {
        match self.peek() {
            Some(b'"' | b'\'') => self.string().map(Some),
            Some(b'{' | b'[') => {
                let start = self.position;
                self.skip_value()?;
                Ok(Some(self.raw(start, self.position)))
            }
            _ => Ok(Some(self.bare_word()?).filter(|word| word != "null" && word != "undefined")),
        }
    }

    /// Consumes one value of any shape. Brackets must nest, what stands between them need not make sense.
    pub(crate) fn skip_value(&mut self) -> Result<(), JsonError> {
        let mut open = [0_u8; MAX_DEPTH as usize];
        let mut depth = 0;
        loop {
            match self.peek() {
                Some(opening @ (b'{' | b'[')) => {
                    if depth == open.len() {
                        return Err(JsonError::TooDeep { position: self.position });
                    }
                    open[depth] = if opening == b'{' { b'}' } else { b']' };
                    depth += 1;
                    self.position += 1;
                }
                Some(closing @ (b'}' | b']')) => {
                    if depth == 0 || open[depth - 1] != closing {
                        return Err(self.unexpected("a value"));
                    }
                    depth -= 1;
                    self.position += 1;
                }
                Some(b',' | b':') if depth > 0 => self.position += 1,
                Some(b'"' | b'\'') => drop(self.string()?),
                _ => drop(self.bare_word()?),
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }
}

/// An integer in any of the forms fastjson casts: digits, digits with a fraction, a fraction with an exponent.
pub(crate) fn integer(text: &str) -> Option<i64> {
    let text = text.trim();
    let text = text.strip_suffix(['L', 'l']).unwrap_or(text);
    if let Ok(value) = text.parse::<i64>() {
        return Some(value);
    }
    if !text.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value = text.parse::<f64>().ok()?.trunc();
    // 2^63 itself is a float, i64::MAX is not: the upper bound is exclusive.
    (value >= -(2_f64.powi(63)) && value < 2_f64.powi(63)).then_some(value as i64)
}

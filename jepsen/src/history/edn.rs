//! EDN, as far as histories and results need it: values, a reader and a writer.
//!
//! Lists are read as vectors, which Clojure holds equal; tags are read over; `#_` discards. Characters, ratios and numbers
//! beyond 64 bits are refused.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::sync::Arc;

/// Deeper nesting is refused, so that no input can exhaust the stack.
const DEPTH: usize = 64;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Edn {
    /// `nil`
    Nil,
    /// `true`, `false`
    Bool(bool),
    /// `42`
    Int(i64),
    /// `0.5`
    Float(f64),
    /// `"text"`
    String(String),
    /// `:word`, without its colon.
    Keyword(Arc<str>),
    /// `word`
    Symbol(Arc<str>),
    /// `[1 2]`
    Vector(Vec<Edn>),
    /// `#{1 2}`, in the order written.
    Set(Vec<Edn>),
    /// `{:a 1}`, in the order written.
    Map(Vec<(Edn, Edn)>),
}

impl Edn {
    /// A keyword, given without its colon.
    pub fn keyword(name: &str) -> Edn {
        Edn::Keyword(name.into())
    }

    /// A vector.
    pub fn vector<T: Into<Edn>>(items: impl IntoIterator<Item = T>) -> Edn {
        Edn::Vector(items.into_iter().map(Into::into).collect())
    }

    /// A map with keywords for keys.
    pub fn map<'a>(entries: impl IntoIterator<Item = (&'a str, Edn)>) -> Edn {
        Edn::Map(entries.into_iter().map(|(key, value)| (Edn::keyword(key), value)).collect())
    }

    /// What stands under a keyword of a map.
    pub fn get(&self, keyword: &str) -> Option<&Edn> {
        let entries = self.as_map()?;
        entries.iter().find(|(key, _)| key.as_keyword() == Some(keyword)).map(|(_, value)| value)
    }

    /// The number.
    pub fn as_int(&self) -> Option<i64> {
        if let Edn::Int(number) = self { Some(*number) } else { None }
    }

    /// The truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Edn::Bool(value) = self { Some(*value) } else { None }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        if let Edn::String(text) = self { Some(text) } else { None }
    }

    /// The name of a keyword, without its colon.
    pub fn as_keyword(&self) -> Option<&str> {
        if let Edn::Keyword(name) = self { Some(name) } else { None }
    }

    /// The items of a vector.
    pub fn as_vector(&self) -> Option<&[Edn]> {
        if let Edn::Vector(items) = self { Some(items) } else { None }
    }

    /// The entries of a map.
    pub fn as_map(&self) -> Option<&[(Edn, Edn)]> {
        if let Edn::Map(entries) = self { Some(entries) } else { None }
    }
}

impl From<i64> for Edn {
    fn from(number: i64) -> Edn {
        Edn::Int(number)
    }
}

/// Counts, offsets and nanoseconds; none comes near the end of the range.
impl From<u64> for Edn {
    fn from(number: u64) -> Edn {
        Edn::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Edn {
    fn from(number: u32) -> Edn {
        Edn::Int(number.into())
    }
}

impl From<usize> for Edn {
    fn from(number: usize) -> Edn {
        Edn::from(number as u64)
    }
}

impl From<bool> for Edn {
    fn from(value: bool) -> Edn {
        Edn::Bool(value)
    }
}

impl From<&str> for Edn {
    fn from(text: &str) -> Edn {
        Edn::String(text.to_owned())
    }
}

impl From<String> for Edn {
    fn from(text: String) -> Edn {
        Edn::String(text)
    }
}

impl From<Vec<Edn>> for Edn {
    fn from(items: Vec<Edn>) -> Edn {
        Edn::Vector(items)
    }
}

impl<T: Into<Edn>> From<Option<T>> for Edn {
    fn from(value: Option<T>) -> Edn {
        value.map_or(Edn::Nil, Into::into)
    }
}

impl fmt::Display for Edn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Edn::Nil => f.write_str("nil"),
            Edn::Bool(value) => write!(f, "{value}"),
            Edn::Int(number) => write!(f, "{number}"),
            Edn::Float(number) if number.is_nan() => f.write_str("##NaN"),
            Edn::Float(number) if number.is_infinite() => f.write_str(if *number > 0.0 { "##Inf" } else { "##-Inf" }),
            Edn::Float(number) => write!(f, "{number:?}"),
            Edn::String(text) => write_string(f, text),
            Edn::Keyword(name) => write!(f, ":{name}"),
            Edn::Symbol(name) => f.write_str(name),
            Edn::Vector(items) => write_items(f, "[", items, "]"),
            Edn::Set(items) => write_items(f, "#{", items, "}"),
            Edn::Map(entries) => {
                f.write_char('{')?;
                for (k, (key, value)) in entries.iter().enumerate() {
                    write!(f, "{}{key} {value}", if k == 0 { "" } else { ", " })?;
                }
                f.write_char('}')
            }
        }
    }
}

fn write_items(f: &mut fmt::Formatter<'_>, open: &str, items: &[Edn], close: &str) -> fmt::Result {
    f.write_str(open)?;
    for (k, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if k == 0 { "" } else { " " })?;
    }
    f.write_str(close)
}

/// A string stays on its line: a history has one operation a line.
fn write_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for character in text.chars() {
        match character {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            control if control.is_control() => write!(f, "\\u{:04x}", control as u32)?,
            other => f.write_char(other)?,
        }
    }
    f.write_char('"')
}

/// Reads values. Keywords are kept once, however often they are read.
#[derive(Debug, Default)]
pub struct Parser {
    names: BTreeSet<Arc<str>>,
}

impl Parser {
    /// The one value of `text`.
    pub fn parse(&mut self, text: &str) -> Result<Edn, String> {
        let mut reader = Reader { text, at: 0, depth: 0, names: &mut self.names };
        let value = reader.value()?;
        match reader.peek()? {
            None => Ok(value),
            Some(_) => Err(reader.error("more than one value")),
        }
    }

    /// Every value of `text`.
    pub fn parse_all(&mut self, text: &str) -> Result<Vec<Edn>, String> {
        let mut reader = Reader { text, at: 0, depth: 0, names: &mut self.names };
        let mut values = Vec::new();
        while reader.peek()?.is_some() {
            values.push(reader.value()?);
        }
        Ok(values)
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    names: &'a mut BTreeSet<Arc<str>>,
}

impl<'a> Reader<'a> {
    fn error(&self, what: &str) -> String {
        format!("{what} at byte {}", self.at)
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte of a value, behind blanks, comments and what is discarded.
    fn peek(&mut self) -> Result<Option<u8>, String> {
        loop {
            match self.byte() {
                Some(b' ' | b',' | b'\n' | b'\r' | b'\t') => self.at += 1,
                Some(b';') => self.at += self.text[self.at..].find('\n').unwrap_or(self.text.len() - self.at),
                Some(b'#') if self.text[self.at..].starts_with("#_") => {
                    self.at += 2;
                    self.value()?;
                }
                byte => return Ok(byte),
            }
        }
    }

    fn value(&mut self) -> Result<Edn, String> {
        if self.depth == DEPTH {
            return Err(self.error("too deep"));
        }
        self.depth += 1;
        let value = self.value_at_depth();
        self.depth -= 1;
        value
    }

    fn value_at_depth(&mut self) -> Result<Edn, String> {
        match self.peek()?.ok_or_else(|| self.error("an unexpected end"))? {
            b'[' => self.items(b']').map(Edn::Vector),
            b'(' => self.items(b')').map(Edn::Vector),
            b'{' => self.entries(),
            b'"' => self.string(),
            b'#' => self.dispatched(),
            b':' => {
                self.at += 1;
                let name = self.token();
                if name.is_empty() { Err(self.error("a keyword without a name")) } else { Ok(self.name(name)) }
            }
            b'0'..=b'9' | b'-' | b'+' => self.number(),
            _ => self.symbol(),
        }
    }

    fn items(&mut self, close: u8) -> Result<Vec<Edn>, String> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            if self.peek()? == Some(close) {
                self.at += 1;
                items.shrink_to_fit();
                return Ok(items);
            }
            items.push(self.value()?);
        }
    }

    fn entries(&mut self) -> Result<Edn, String> {
        let items = self.items(b'}')?;
        if items.len() % 2 == 1 {
            return Err(self.error("a key without a value"));
        }
        let mut items = items.into_iter();
        let mut entries = Vec::with_capacity(items.len() / 2);
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            entries.push((key, value));
        }
        Ok(Edn::Map(entries))
    }

    /// `#{…}`, `##Inf`, or a tag, which is read over.
    fn dispatched(&mut self) -> Result<Edn, String> {
        self.at += 1;
        match self.byte() {
            Some(b'{') => self.items(b'}').map(Edn::Set),
            Some(b'#') => {
                self.at += 1;
                match self.token() {
                    "Inf" => Ok(Edn::Float(f64::INFINITY)),
                    "-Inf" => Ok(Edn::Float(f64::NEG_INFINITY)),
                    "NaN" => Ok(Edn::Float(f64::NAN)),
                    _ => Err(self.error("an unknown number")),
                }
            }
            _ if !self.token().is_empty() => self.value(),
            _ => Err(self.error("an unknown dispatch")),
        }
    }

    fn string(&mut self) -> Result<Edn, String> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.find(['"', '\\']).ok_or_else(|| self.error("an open string"))?;
            text.push_str(&rest[..plain]);
            self.at += plain + 1;
            if rest.as_bytes()[plain] == b'"' {
                return Ok(Edn::String(text));
            }
            let escape = self.byte().ok_or_else(|| self.error("an open string"))?;
            self.at += 1;
            text.push(match escape {
                b'"' => '"',
                b'\\' => '\\',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                b'u' => {
                    let code = self.text.get(self.at..self.at + 4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                    self.at += 4;
                    code.and_then(char::from_u32).ok_or_else(|| self.error("an unknown character"))?
                }
                _ => return Err(self.error("an unknown escape")),
            });
        }
    }

    fn number(&mut self) -> Result<Edn, String> {
        let token = self.token();
        if token == "-" || token == "+" {
            return Ok(Edn::Symbol(token.into()));
        }
        if let Ok(number) = token.strip_suffix('N').unwrap_or(token).parse() {
            return Ok(Edn::Int(number));
        }
        let decimal = token.contains(['.', 'e', 'E']);
        match token.strip_suffix('M').unwrap_or(token).parse() {
            Ok(number) if decimal => Ok(Edn::Float(number)),
            _ => Err(self.error("an unknown number")),
        }
    }

    fn symbol(&mut self) -> Result<Edn, String> {
        match self.token() {
            "nil" => Ok(Edn::Nil),
            "true" => Ok(Edn::Bool(true)),
            "false" => Ok(Edn::Bool(false)),
            "" => Err(self.error("an unexpected character")),
            name if name.starts_with('\\') => Err(self.error("a character")),
            name => Ok(Edn::Symbol(name.into())),
        }
    }

    /// Everything up to a blank, a bracket or a quote.
    fn token(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let ends = |byte: &u8| {
            matches!(byte, b' ' | b',' | b'\n' | b'\r' | b'\t' | b'"' | b';')
                || matches!(byte, b'(' | b')' | b'[' | b']' | b'{' | b'}')
        };
        let length = rest.bytes().position(|byte| ends(&byte)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn name(&mut self, name: &str) -> Edn {
        if let Some(known) = self.names.get(name) {
            return Edn::Keyword(known.clone());
        }
        let new: Arc<str> = name.into();
        self.names.insert(new.clone());
        Edn::Keyword(new)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Edn, String> {
        Parser::default().parse(text)
    }

    #[test]
    fn clojure_s_notation_is_read() {
        let read =
            parse("#jepsen.history.Op{:a [1 -2 3N], :b/c #{nil} ; comment\n :d (true \"x\\u0041\") #_ :gone}").unwrap();
        assert_eq!(read.to_string(), r#"{:a [1 -2 3], :b/c #{nil}, :d [true "xA"]}"#);
        assert_eq!(parse("[0.5 1e300 ##Inf foo - ]").unwrap().to_string(), "[0.5 1e300 ##Inf foo -]");
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in [
            "",
            "[1",
            "{:a}",
            "\"x",
            "\"\\u12\"",
            "\"\\ud800\"",
            ":",
            "1 2",
            "]",
            "\\a",
            "1/2",
            "99999999999999999999",
            "##x",
            "#",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"#_".repeat(100_000)).is_err());
    }

    fn any_edn() -> impl Strategy<Value = Edn> {
        let name = "[a-z][a-z0-9-]{0,8}";
        let leaf = prop_oneof![
            Just(Edn::Nil),
            any::<bool>().prop_map(Edn::Bool),
            any::<i64>().prop_map(Edn::Int),
            any::<f64>().prop_filter("NaN equals nothing", |number| !number.is_nan()).prop_map(Edn::Float),
            any::<String>().prop_map(Edn::String),
            name.prop_map(|name| Edn::keyword(&name)),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Edn::Vector),
                prop::collection::vec(inner.clone(), 0..8).prop_map(Edn::Set),
                prop::collection::vec((inner.clone(), inner), 0..8).prop_map(Edn::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in any_edn()) {
            let text = value.to_string();
            prop_assert!(!text.contains('\n'), "one line: {text}");
            prop_assert_eq!(parse(&text), Ok(value));
        }

        #[test]
        fn no_text_panics(text in any::<String>(), edn in "[\\[\\](){}#:\"\\\\a1 ,;_.-]{0,40}") {
            let _ = parse(&text);
            let _ = parse(&edn);
        }
    }
}

//! Reads JSON into any serde type with fastjson's tolerance, without a tree in between.
//!
//! What a type asks for decides how a value is read: a field of type text takes a number, a number takes a quoted one, a
//! boolean takes `"true"`, `1` or `"1"`. Members that are `null` or a `{"$ref":…}` are passed over, so that
//! `#[serde(default)]` gives them Java's default.

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::lexer::{self, JsonError, Lexer, MAX_DEPTH};

/// Reads one value; only blanks may follow it.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    let mut reader = Reader { lexer: Lexer::new(text), depth: 0 };
    let value = T::deserialize(&mut reader)?;
    reader.lexer.end()?;
    Ok(value)
}

struct Reader<'a> {
    lexer: Lexer<'a>,
    depth: u32,
}

impl Reader<'_> {
    fn enter(&mut self) -> Result<(), JsonError> {
        if self.depth == MAX_DEPTH {
            return Err(JsonError::TooDeep { position: self.lexer.position() });
        }
        self.depth += 1;
        Ok(())
    }

    fn next_is_null(&self) -> bool {
        let mut ahead = self.lexer.clone();
        matches!(ahead.peek(), Some(b'n' | b'u')) && matches!(ahead.text(), Ok(None))
    }

    /// fastjson's back reference to an object printed before. What it points at is not kept, so it counts as absent.
    fn next_is_reference(&self) -> bool {
        let mut ahead = self.lexer.clone();
        ahead.take(b'{') && matches!(ahead.peek(), Some(b'"')) && matches!(ahead.name().as_deref(), Ok("$ref"))
    }

    fn integer(&mut self) -> Result<i64, JsonError> {
        let text = self.lexer.text()?.unwrap_or_default();
        match text.as_ref() {
            "" | "false" => Ok(0),
            "true" => Ok(1),
            text => lexer::integer(text).ok_or_else(|| JsonError::Mismatch(format!("{} is no integer", clip(text)))),
        }
    }

    fn map<'de, V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, JsonError> {
        match self.lexer.peek() {
            // An object that is a map's key may come as a text that holds the object.
            Some(b'"' | b'\'') => {
                let text = self.lexer.string()?;
                let mut inner = Reader { lexer: Lexer::new(text.as_bytes()), depth: self.depth };
                inner.enter()?;
                let value = inner.map(visitor)?;
                inner.lexer.end()?;
                Ok(value)
            }
            Some(b'{') => {
                self.enter()?;
                self.lexer.expect(b'{', "'{'")?;
                self.lexer.skip_commas();
                let value = visitor.visit_map(Members { reader: self })?;
                self.lexer.expect(b'}', "'}'")?;
                self.depth -= 1;
                Ok(value)
            }
            _ if self.next_is_null() => {
                self.lexer.bare_word()?;
                let nothing = std::iter::empty::<((), ())>();
                visitor.visit_map(serde::de::value::MapDeserializer::<_, JsonError>::new(nothing))
            }
            _ => Err(self.lexer.unexpected("an object")),
        }
    }

    fn list<'de, V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, JsonError> {
        if self.next_is_null() {
            self.lexer.bare_word()?;
            let nothing = std::iter::empty::<()>();
            return visitor.visit_seq(serde::de::value::SeqDeserializer::<_, JsonError>::new(nothing));
        }
        self.enter()?;
        self.lexer.expect(b'[', "'['")?;
        self.lexer.skip_commas();
        let value = visitor.visit_seq(Elements { reader: self })?;
        self.lexer.expect(b']', "']'")?;
        self.depth -= 1;
        Ok(value)
    }
}

/// The beginning of a text, for an error message.
fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}

struct Members<'r, 'a> {
    reader: &'r mut Reader<'a>,
}

impl<'de> MapAccess<'de> for Members<'_, '_> {
    type Error = JsonError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, JsonError> {
        while self.reader.lexer.peek() != Some(b'}') {
            let key = self.reader.lexer.clone();
            self.reader.lexer.skip_value()?;
            self.reader.lexer.expect(b':', "':'")?;
            if !self.reader.next_is_null() && !self.reader.next_is_reference() {
                self.reader.lexer = key;
                return seed.deserialize(&mut *self.reader).map(Some);
            }
            self.reader.lexer.skip_value()?;
            self.reader.lexer.separator(b'}')?;
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, JsonError> {
        self.reader.lexer.expect(b':', "':'")?;
        let value = seed.deserialize(&mut *self.reader)?;
        self.reader.lexer.separator(b'}')?;
        Ok(value)
    }
}

struct Elements<'r, 'a> {
    reader: &'r mut Reader<'a>,
}

impl<'de> SeqAccess<'de> for Elements<'_, '_> {
    type Error = JsonError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, JsonError> {
        // A null element says nothing a list of ours could hold, a reference neither.
        while self.reader.next_is_null() || self.reader.next_is_reference() {
            self.reader.lexer.skip_value()?;
            self.reader.lexer.separator(b']')?;
        }
        if self.reader.lexer.peek() == Some(b']') {
            return Ok(None);
        }
        let value = seed.deserialize(&mut *self.reader)?;
        self.reader.lexer.separator(b']')?;
        Ok(Some(value))
    }
}

macro_rules! integers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
            visitor.visit_i64(self.integer()?)
        }
    )*};
}

macro_rules! texts {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
            visitor.visit_str(&self.lexer.text()?.unwrap_or_default())
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Reader<'_> {
    type Error = JsonError;

    integers! { deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
    deserialize_u32 }

    /// Java has no number above `i64::MAX`; the ids of our own replicas are.
    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        let mut ahead = self.lexer.clone();
        let number = ahead.text()?.and_then(|text| text.parse().ok());
        match number {
            Some(number) => {
                self.lexer = ahead;
                visitor.visit_u64(number)
            }
            None => visitor.visit_i64(self.integer()?),
        }
    }

    texts! { deserialize_char deserialize_str deserialize_string deserialize_identifier }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        match self.lexer.peek() {
            Some(b'{') => self.map(visitor),
            Some(b'[') => self.list(visitor),
            Some(b'"' | b'\'') => visitor.visit_str(&self.lexer.string()?),
            _ => {
                let word = self.lexer.bare_word()?;
                match (word.as_ref(), word.parse::<i64>(), word.parse::<f64>()) {
                    ("null" | "undefined", ..) => visitor.visit_unit(),
                    ("true", ..) => visitor.visit_bool(true),
                    ("false", ..) => visitor.visit_bool(false),
                    (_, Ok(integer), _) => visitor.visit_i64(integer),
                    (_, _, Ok(double)) if double.is_finite() => visitor.visit_f64(double),
                    (text, ..) => visitor.visit_str(text),
                }
            }
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        let text = self.lexer.text()?.unwrap_or_default();
        visitor.visit_bool(text.eq_ignore_ascii_case("true") || matches!(text.as_ref(), "1" | "Y" | "T"))
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        let text = self.lexer.text()?.unwrap_or_default();
        match text.trim() {
            "" => visitor.visit_f64(0.0),
            text => match text.parse::<f64>() {
                Ok(value) => visitor.visit_f64(if value.is_finite() { value } else { 0.0 }),
                Err(_) => Err(JsonError::Mismatch(format!("{} is no number", clip(text)))),
            },
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.deserialize_any(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        if self.next_is_null() {
            self.lexer.bare_word()?;
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.lexer.skip_value()?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, JsonError> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, JsonError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.list(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, JsonError> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.map(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        self.map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        let text = self.lexer.text()?.unwrap_or_default();
        visitor.visit_enum(text.as_ref().into_deserializer())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.deserialize_unit(visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
    #[serde(default)]
    struct Key {
        a: i32,
        b: String,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Body {
        flag: bool,
        number: i64,
        double: f64,
        text: String,
        maybe: Option<String>,
        list: Vec<i32>,
        by_number: BTreeMap<i64, String>,
        by_struct: BTreeMap<Key, i64>,
        inner: Option<Box<Body>>,
    }

    fn read(text: &str) -> Body {
        from_slice(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn everything_is_optional_and_null_is_absent() {
        assert_eq!(read("{}"), Body::default());
        let nulls = r#"{"flag":null,"number":null,"text":null,"maybe":null,"list":null,"by_number":null,"inner":null}"#;
        assert_eq!(read(nulls), Body::default());
        assert_eq!(read(r#"{"unknown":[{"x":{1:[2]}}],"inner":{"$ref":"$.inner"}}"#), Body::default());
        assert_eq!(read(r#"{"list":[1,null,3]}"#).list, [1, 3]);
    }

    #[test]
    fn scalars_convert_into_what_is_asked_for() {
        let body = read(r#"{"flag":"TRUE","number":"12","double":"1.5","text":7,"maybe":false,"list":["1",2.0]}"#);
        assert_eq!((body.flag, body.number, body.double), (true, 12, 1.5));
        assert_eq!((body.text.as_str(), body.maybe.as_deref()), ("7", Some("false")));
        assert_eq!(body.list, [1, 2]);
        assert!(read(r#"{"flag":"1"}"#).flag && !read(r#"{"flag":"0"}"#).flag && !read(r#"{"flag":"yes"}"#).flag);
        assert_eq!(read(r#"{"number":""}"#).number, 0);
    }

    #[test]
    fn fastjson_syntax_is_taken() {
        let text = "\u{FEFF} /* c */ {'text' : 'it\\'s', number : 3 , // c\n \"list\":[1,2,],,\"flag\":true,}\r\n";
        let body = read(text);
        assert_eq!((body.text.as_str(), body.number, body.flag), ("it's", 3, true));
        assert_eq!(body.list, [1, 2]);
    }

    #[test]
    fn keys_may_be_integers_objects_and_texts_of_objects() {
        let body = read(r#"{"by_number":{0:"a","1":"b"},"by_struct":{{"a":1,"b":"x"}:5,"{\"b\":\"y\",\"a\":2}":"6"}}"#);
        assert_eq!(body.by_number, [(0, "a".to_owned()), (1, "b".to_owned())].into());
        let key = |a, b: &str| Key { a, b: b.to_owned() };
        assert_eq!(body.by_struct, [(key(1, "x"), 5), (key(2, "y"), 6)].into());
    }

    #[test]
    fn escapes_are_resolved() {
        assert_eq!(read(r#"{"text":"\u4e2d\ud83d\ude00\x41\/\ud83dx\udc00"}"#).text, "中😀A/\u{FFFD}x\u{FFFD}");
        assert_eq!(from_slice::<Body>(b"{\"text\":\"\xFF\"}").unwrap().text, "\u{FFFD}");
    }

    #[test]
    fn depth_is_bounded_everywhere() {
        let nested = |open: &str, close: &str, levels: usize| open.repeat(levels) + "{}" + &close.repeat(levels);
        let known = |levels| from_slice::<Body>(nested(r#"{"inner":"#, "}", levels).as_bytes());
        assert!(known(60).is_ok());
        assert!(matches!(known(70), Err(JsonError::TooDeep { .. })));
        let unknown = |levels| from_slice::<Body>(format!("{{\"x\":{}}}", nested("[", "]", levels)).as_bytes());
        assert!(unknown(60).is_ok());
        assert!(matches!(unknown(100_000), Err(JsonError::TooDeep { .. })));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in
            ["", "[", "{", "{\"text\":}", "{\"text\":\"a}", "{\"text\" \"a\"}", "{} x", "{\"number\":\"x\"}", "{]"]
        {
            assert!(from_slice::<Body>(text.as_bytes()).is_err(), "{text}");
        }
    }
}

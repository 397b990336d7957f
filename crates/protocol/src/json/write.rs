//! Writes JSON the way RocketMQ's Java classes do.
//!
//! No whitespace, `None` members left out, struct members in the order of declaration (bodies declare theirs sorted, as
//! Java prints them), maps in their own order, objects as map keys printed as objects.

use bytes::BufMut;
use serde::Serialize;
use serde::ser;

use super::JsonError;

/// Writes `value` as standard JSON; integer map keys are quoted.
///
/// # Panics
/// If the type's own `Serialize` fails, or a map's key is neither text, number nor struct.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    write(value, false)
}

/// Writes `value` in fastjson's older form: integer map keys are not quoted. Only for peers known to need it.
///
/// # Panics
/// As [`to_vec`].
pub fn to_vec_legacy<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    write(value, true)
}

fn write<T: Serialize + ?Sized>(value: &T, bare_integer_keys: bool) -> Vec<u8> {
    let mut writer = Writer { out: Vec::with_capacity(256), bare_integer_keys };
    value.serialize(&mut writer).expect("a body is made of texts, numbers, lists, maps and structs");
    writer.out
}

/// Appends a quoted string: quotes, backslashes and control characters escaped, the rest as UTF-8.
pub(crate) fn put_string(out: &mut impl BufMut, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let bytes = text.as_bytes();
    out.put_u8(b'"');
    let mut plain = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= b' ' && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.put_slice(&bytes[plain..at]);
        plain = at + 1;
        match byte {
            b'"' => out.put_slice(b"\\\""),
            b'\\' => out.put_slice(b"\\\\"),
            b'\n' => out.put_slice(b"\\n"),
            b'\r' => out.put_slice(b"\\r"),
            b'\t' => out.put_slice(b"\\t"),
            0x08 => out.put_slice(b"\\b"),
            0x0C => out.put_slice(b"\\f"),
            _ => {
                let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
                out.put_slice(b"\\u00");
                out.put_slice(&digits);
            }
        }
    }
    out.put_slice(&bytes[plain..]);
    out.put_u8(b'"');
}

/// Appends decimal digits.
pub(crate) fn put_integer(out: &mut impl BufMut, value: i64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.put_u8(b'-');
    }
    out.put_slice(&digits[start..]);
}

struct Writer {
    out: Vec<u8>,
    bare_integer_keys: bool,
}

impl Writer {
    fn key<K: Serialize + ?Sized>(&mut self, key: &K) -> Result<(), JsonError> {
        let start = self.out.len();
        key.serialize(&mut *self)?;
        match self.out.get(start) {
            Some(b'"' | b'{') => Ok(()),
            Some(b'-' | b'0'..=b'9') if self.bare_integer_keys => Ok(()),
            Some(b'-' | b'0'..=b'9') => {
                self.out.insert(start, b'"');
                self.out.push(b'"');
                Ok(())
            }
            _ => Err(JsonError::Mismatch("a map key must be a text, a number or a struct".to_owned())),
        }
    }

    /// Removes the member begun at `start` if its value, begun at `value_start`, is null.
    fn drop_null(&mut self, start: usize, value_start: usize) {
        if &self.out[value_start..] == b"null" {
            self.out.truncate(start);
        }
    }
}

impl<'w> ser::Serializer for &'w mut Writer {
    type Ok = ();
    type Error = JsonError;
    type SerializeSeq = Compound<'w>;
    type SerializeTuple = Compound<'w>;
    type SerializeTupleStruct = Compound<'w>;
    type SerializeTupleVariant = ser::Impossible<(), JsonError>;
    type SerializeMap = Compound<'w>;
    type SerializeStruct = Compound<'w>;
    type SerializeStructVariant = ser::Impossible<(), JsonError>;

    fn serialize_bool(self, value: bool) -> Result<(), JsonError> {
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Result<(), JsonError> {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), JsonError> {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), JsonError> {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<(), JsonError> {
        put_integer(&mut self.out, value);
        Ok(())
    }

    fn serialize_u8(self, value: u8) -> Result<(), JsonError> {
        self.serialize_i64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), JsonError> {
        self.serialize_i64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), JsonError> {
        self.serialize_i64(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<(), JsonError> {
        self.out.extend_from_slice(value.to_string().as_bytes());
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<(), JsonError> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), JsonError> {
        if value.is_finite() {
            self.out.extend_from_slice(format!("{value:?}").as_bytes());
            Ok(())
        } else {
            self.serialize_unit()
        }
    }

    fn serialize_char(self, value: char) -> Result<(), JsonError> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), JsonError> {
        put_string(&mut self.out, value);
        Ok(())
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<(), JsonError> {
        Err(JsonError::Mismatch("JSON has no bytes".to_owned()))
    }

    fn serialize_none(self) -> Result<(), JsonError> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), JsonError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), JsonError> {
        self.out.extend_from_slice(b"null");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), JsonError> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), JsonError> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), JsonError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), JsonError> {
        Err(JsonError::Mismatch(format!("{name}: Java has no enums with values")))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Compound<'w>, JsonError> {
        Ok(Compound::open(self, b'[', b']'))
    }

    fn serialize_tuple(self, _: usize) -> Result<Compound<'w>, JsonError> {
        Ok(Compound::open(self, b'[', b']'))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Compound<'w>, JsonError> {
        Ok(Compound::open(self, b'[', b']'))
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, JsonError> {
        Err(JsonError::Mismatch(format!("{name}: Java has no enums with values")))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Compound<'w>, JsonError> {
        Ok(Compound::open(self, b'{', b'}'))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Compound<'w>, JsonError> {
        Ok(Compound::open(self, b'{', b'}'))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, JsonError> {
        Err(JsonError::Mismatch(format!("{name}: Java has no enums with values")))
    }
}

/// An open object or array.
struct Compound<'w> {
    writer: &'w mut Writer,
    /// Length of the output behind the opening bracket: nothing written since means no comma is due.
    opened: usize,
    /// Where the member whose value comes next begins.
    member: usize,
    close: u8,
}

impl<'w> Compound<'w> {
    fn open(writer: &'w mut Writer, open: u8, close: u8) -> Self {
        writer.out.push(open);
        let opened = writer.out.len();
        Self { writer, opened, member: opened, close }
    }

    fn comma(&mut self) {
        if self.writer.out.len() > self.opened {
            self.writer.out.push(b',');
        }
    }

    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        self.comma();
        value.serialize(&mut *self.writer)
    }

    fn member_name<K: Serialize + ?Sized>(&mut self, key: &K) -> Result<(), JsonError> {
        self.member = self.writer.out.len();
        self.comma();
        self.writer.key(key)?;
        self.writer.out.push(b':');
        Ok(())
    }

    fn member_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        let value_start = self.writer.out.len();
        value.serialize(&mut *self.writer)?;
        self.writer.drop_null(self.member, value_start);
        Ok(())
    }

    fn close(self) -> Result<(), JsonError> {
        self.writer.out.push(self.close);
        Ok(())
    }
}

impl ser::SerializeSeq for Compound<'_> {
    type Ok = ();
    type Error = JsonError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        self.element(value)
    }

    fn end(self) -> Result<(), JsonError> {
        self.close()
    }
}

impl ser::SerializeTuple for Compound<'_> {
    type Ok = ();
    type Error = JsonError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        self.element(value)
    }

    fn end(self) -> Result<(), JsonError> {
        self.close()
    }
}

impl ser::SerializeTupleStruct for Compound<'_> {
    type Ok = ();
    type Error = JsonError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        self.element(value)
    }

    fn end(self) -> Result<(), JsonError> {
        self.close()
    }
}

impl ser::SerializeMap for Compound<'_> {
    type Ok = ();
    type Error = JsonError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), JsonError> {
        self.member_name(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        self.member_value(value)
    }

    fn end(self) -> Result<(), JsonError> {
        self.close()
    }
}

impl ser::SerializeStruct for Compound<'_> {
    type Ok = ();
    type Error = JsonError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), JsonError> {
        self.member_name(key)?;
        self.member_value(value)
    }

    fn end(self) -> Result<(), JsonError> {
        self.close()
    }
}

impl ser::Error for JsonError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Mismatch(message.to_string())
    }
}

impl serde::de::Error for JsonError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Mismatch(message.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
    struct Key {
        a: i32,
        b: &'static str,
    }

    #[derive(Serialize)]
    struct Body {
        absent: Option<i32>,
        by_number: BTreeMap<i64, Option<i32>>,
        by_struct: BTreeMap<Key, f64>,
        last: Option<&'static str>,
        list: Vec<Option<bool>>,
    }

    #[test]
    fn nulls_are_left_out_and_keys_keep_their_kind() {
        let body = Body {
            absent: None,
            by_number: [(-1, Some(2)), (0, None), (7, Some(3))].into(),
            by_struct: [(Key { a: 1, b: "x" }, 0.0)].into(),
            last: Some("é\"\\\n\u{1}\u{7f}"),
            list: vec![Some(true), None],
        };
        let rest = r#","by_struct":{{"a":1,"b":"x"}:0.0},"last":"é\"\\\n\u0001","list":[true,null]}"#
            .replace("\\u0001", "\\u0001\u{7f}");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(text(to_vec(&body)), format!(r#"{{"by_number":{{"-1":2,"7":3}}{rest}"#));
        assert_eq!(text(to_vec_legacy(&body)), format!(r#"{{"by_number":{{-1:2,7:3}}{rest}"#));
    }

    #[test]
    fn integers_reach_their_extremes() {
        for value in [0, 7, -1, i64::MAX, i64::MIN] {
            assert_eq!(String::from_utf8(to_vec(&value)).unwrap(), value.to_string());
        }
        assert_eq!(to_vec(&u64::MAX), u64::MAX.to_string().into_bytes());
        assert_eq!(to_vec(&f64::NAN), b"null");
    }
}

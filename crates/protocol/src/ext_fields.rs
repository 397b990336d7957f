//! The header's `extFields`: a small map of text to text that keeps the order in which it was filled.
//!
//! All names and values lie in one string, so a header costs two allocations however many fields it has. Lookups scan:
//! headers have a dozen fields.

use std::fmt::{Display, Write};

/// Most entries accepted from a peer; the largest known header has under thirty.
pub const MAX_EXT_FIELDS: usize = 512;

/// `extFields` of a command.
#[derive(Clone, Default)]
pub struct ExtFields {
    text: String,
    entries: Vec<Entry>,
}

/// Where one entry lies in `text`: the value follows the name.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u32,
    name_bytes: u32,
    value_bytes: u32,
}

impl ExtFields {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// No fields yet, room for some.
    pub fn with_capacity(entries: usize, text_bytes: usize) -> Self {
        Self { text: String::with_capacity(text_bytes), entries: Vec::with_capacity(entries) }
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value as sent, which may be empty. For the meaning of a field use [`ExtFields::text`].
    pub fn get(&self, name: &str) -> Option<&str> {
        self.position(name).map(|at| self.value(&self.entries[at]))
    }

    /// The value; empty counts as absent, because the binary form cannot tell the two apart.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// The value as `i32`: `Ok(None)` if absent, the offending text if it is no number.
    pub fn i32(&self, name: &str) -> Result<Option<i32>, &str> {
        self.text(name).map(|text| text.trim().parse().map_err(|_| text)).transpose()
    }

    /// The value as `i64`: `Ok(None)` if absent, the offending text if it is no number.
    pub fn i64(&self, name: &str) -> Result<Option<i64>, &str> {
        self.text(name).map(|text| text.trim().parse().map_err(|_| text)).transpose()
    }

    /// The value as a boolean the way Java parses one: "true" in any case is true, all else is false.
    pub fn bool(&self, name: &str) -> Option<bool> {
        self.text(name).map(|text| text.trim().eq_ignore_ascii_case("true"))
    }

    /// Sets a field, replacing an earlier value in its place.
    pub fn set(&mut self, name: &str, value: impl Display) {
        let start = self.text.len();
        self.text.push_str(name);
        let value_start = self.text.len();
        write!(self.text, "{value}").expect("a string takes any text");
        self.enter(name, start, value_start);
    }

    /// [`ExtFields::set`] for text, without going through formatting.
    pub fn set_text(&mut self, name: &str, value: &str) {
        let start = self.text.len();
        self.text.push_str(name);
        let value_start = self.text.len();
        self.text.push_str(value);
        self.enter(name, start, value_start);
    }

    /// Makes an entry of the text from `start` on, the value beginning at `value_start`.
    fn enter(&mut self, name: &str, start: usize, value_start: usize) {
        let end = u32::try_from(self.text.len()).expect("a header is far below 4 GiB");
        let (start, value_start) = (start as u32, value_start as u32);
        let entry = Entry { start, name_bytes: value_start - start, value_bytes: end - value_start };
        match self.position(name) {
            Some(at) => self.entries[at] = entry,
            None => self.entries.push(entry),
        }
    }

    /// Removes a field; tells whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let found = self.position(name);
        if let Some(at) = found {
            self.entries.remove(at);
        }
        found.is_some()
    }

    /// Name and value of every field in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|entry| (self.name(entry), self.value(entry)))
    }

    /// Bytes of all names and values, for sizing a buffer.
    pub(crate) fn text_bytes(&self) -> usize {
        self.entries.iter().map(|entry| (entry.name_bytes + entry.value_bytes) as usize).sum()
    }

    fn position(&self, name: &str) -> Option<usize> {
        // By bytes, because slicing a str looks for character boundaries that are known to be there; and the first byte
        // first, because it tells most names of equal length apart (all of a send's have length 1).
        let text = self.text.as_bytes();
        let first = name.as_bytes().first();
        let is_named = |entry: &Entry| {
            entry.name_bytes as usize == name.len() && {
                let found = &text[entry.start as usize..][..name.len()];
                found.first() == first && (name.len() == 1 || found == name.as_bytes())
            }
        };
        self.entries.iter().position(is_named)
    }

    fn name(&self, entry: &Entry) -> &str {
        &self.text[entry.start as usize..][..entry.name_bytes as usize]
    }

    fn value(&self, entry: &Entry) -> &str {
        &self.text[(entry.start + entry.name_bytes) as usize..][..entry.value_bytes as usize]
    }
}

/// Equal as maps: the order of filling does not count.
impl PartialEq for ExtFields {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(name, value)| other.get(name) == Some(value))
    }
}

impl Eq for ExtFields {}

impl std::fmt::Debug for ExtFields {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for ExtFields {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        let mut fields = Self::new();
        for (name, value) in pairs {
            fields.set_text(name, value);
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_value_replaces_in_place_and_order_is_kept() {
        let mut fields: ExtFields = [("b", "1"), ("a", ""), ("c", "TRUE")].into_iter().collect();
        fields.set("b", 22);
        assert_eq!(fields.iter().collect::<Vec<_>>(), [("b", "22"), ("a", ""), ("c", "TRUE")]);
        assert_eq!(fields.i32("b"), Ok(Some(22)));
        assert_eq!((fields.get("a"), fields.text("a"), fields.i64("a")), (Some(""), None, Ok(None)));
        assert_eq!((fields.bool("c"), fields.bool("b"), fields.bool("d")), (Some(true), Some(false), None));
        assert_eq!(fields.i64("c"), Err("TRUE"));
        assert!(fields.remove("a") && !fields.remove("a"));
        assert_eq!(fields.len(), 2);
    }
}

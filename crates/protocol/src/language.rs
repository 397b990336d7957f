//! The sender's language: a name in JSON headers, a byte in binary ones.

use std::borrow::Cow;

/// Language of the sender. A name this table does not know is kept as text, so that it can be shown and echoed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Language(Cow<'static, str>);

/// Names by code; the code is also the ordinal fastjson reads from a number.
const NAMES: [&str; 14] = [
    "JAVA", "CPP", "DOTNET", "PYTHON", "DELPHI", "ERLANG", "RUBY", "OTHER", "HTTP", "GO", "PHP", "OMS", "RUST",
    "NODE_JS",
];
const OTHER_CODE: u8 = 7;

impl Language {
    /// What every answer carries: old clients know no newer name.
    pub const JAVA: Self = Self(Cow::Borrowed("JAVA"));
    /// C++, and Python over it.
    pub const CPP: Self = Self(Cow::Borrowed("CPP"));
    /// Go.
    pub const GO: Self = Self(Cow::Borrowed("GO"));
    /// Rust.
    pub const RUST: Self = Self(Cow::Borrowed("RUST"));
    /// Known to be none of the others.
    pub const OTHER: Self = Self(Cow::Borrowed("OTHER"));

    /// By name, as written by the sender.
    pub fn from_name(name: &str) -> Self {
        match NAMES.iter().find(|known| **known == name) {
            Some(known) => Self(Cow::Borrowed(known)),
            None => Self(Cow::Owned(name.to_owned())),
        }
    }

    /// By the byte of a binary header; an unknown byte is [`Language::OTHER`].
    pub fn from_code(code: u8) -> Self {
        NAMES.get(usize::from(code)).map_or(Self::OTHER, |known| Self(Cow::Borrowed(known)))
    }

    /// The name as sent.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The byte for a binary header.
    pub fn code(&self) -> u8 {
        NAMES.iter().zip(0..).find(|(known, _)| **known == self.0).map_or(OTHER_CODE, |(_, code)| code)
    }

    /// The name if Java's enum has it, else `OTHER`: what a body must carry for Java tools to read it.
    pub fn java_name(&self) -> &'static str {
        NAMES[usize::from(self.code())]
    }
}

impl Default for Language {
    fn default() -> Self {
        Self::JAVA
    }
}

impl std::fmt::Display for Language {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_have_codes_and_unknown_ones_are_kept() {
        assert_eq!(Language::from_name("RUST").code(), 12);
        assert_eq!(Language::from_code(9), Language::GO);
        let unknown = Language::from_name("COBOL");
        assert_eq!((unknown.name(), unknown.code(), unknown.java_name()), ("COBOL", 7, "OTHER"));
    }
}

//! Tags: their hash in a ConsumeQueue unit, and the subscription expressions that select them.

use std::collections::BTreeSet;

/// Expression type of tag expressions; also meant when it is missing.
pub const EXPRESSION_TYPE_TAG: &str = "TAG";
/// Expression type of SQL92 expressions.
pub const EXPRESSION_TYPE_SQL92: &str = "SQL92";
/// The expression that selects everything.
pub const SUBSCRIBE_ALL: &str = "*";

/// Java's `String.hashCode`: over UTF-16 units, wrapping.
pub fn hash_code(text: &str) -> i32 {
    text.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

/// Whether an expression type means tags.
pub fn is_tag_type(expression_type: Option<&str>) -> bool {
    expression_type.is_none_or(|name| name.is_empty() || name == EXPRESSION_TYPE_TAG)
}

/// A subscription by tags.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TagExpression {
    /// `*`, or nothing.
    #[default]
    All,
    /// `A || B`: any of the tags. Never empty.
    AnyOf {
        /// The tags.
        tags: BTreeSet<String>,
        /// Their hashes, sorted.
        hashes: Vec<i32>,
    },
}

/// An expression of separators only: the client must correct its subscription.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tag expression {0:?} names no tag")]
pub struct BadTagExpression(pub String);

impl TagExpression {
    /// Parses `*` or `A || B`.
    pub fn parse(expression: &str) -> Result<Self, BadTagExpression> {
        if matches!(expression.trim(), "" | SUBSCRIBE_ALL) {
            return Ok(Self::All);
        }
        let tags = expression.split("||").map(str::trim).filter(|tag| !tag.is_empty());
        Self::any_of(tags).ok_or_else(|| BadTagExpression(expression.to_owned()))
    }

    /// Any of the tags; `None` if there are none.
    pub fn any_of<'a>(tags: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let tags: BTreeSet<String> = tags.into_iter().map(str::to_owned).collect();
        let mut hashes: Vec<i32> = tags.iter().map(|tag| hash_code(tag)).collect();
        hashes.sort_unstable();
        hashes.dedup();
        (!tags.is_empty()).then_some(Self::AnyOf { tags, hashes })
    }

    /// Whether a message with this tag hash may match. Another tag can have the same hash: clients look again.
    pub fn matches_hash(&self, hash: i32) -> bool {
        match self {
            Self::All => true,
            Self::AnyOf { hashes, .. } => hashes.binary_search(&hash).is_ok(),
        }
    }

    /// Whether a message with this tag matches.
    pub fn matches(&self, tag: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::AnyOf { tags, .. } => tag.is_some_and(|tag| tags.contains(tag)),
        }
    }
}

/// The tag hash of a message: 0 without a tag.
pub fn tag_hash(tag: Option<&str>) -> i32 {
    tag.map_or(0, hash_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_javas() {
        assert_eq!((hash_code(""), hash_code("A"), hash_code("B"), hash_code("TagA")), (0, 65, 66, 2_598_919));
        assert_eq!((hash_code("Aa"), hash_code("BB")), (2112, 2112));
        // "polygenelubricants" is the well-known word with hash Integer.MIN_VALUE; the emoji is two UTF-16 units.
        assert_eq!((hash_code("polygenelubricants"), hash_code("😀")), (i32::MIN, 0xD83D * 31 + 0xDE00));
    }

    #[test]
    fn expressions_select_tags() {
        for all in ["", "*", " * "] {
            assert_eq!(TagExpression::parse(all), Ok(TagExpression::All));
        }
        assert!(TagExpression::All.matches(None) && TagExpression::All.matches_hash(5));
        let some = TagExpression::parse(" Aa ||C||").unwrap();
        assert!(some.matches(Some("Aa")) && some.matches(Some("C")));
        assert!(!some.matches(Some("BB")) && !some.matches(None) && !some.matches(Some("a")));
        assert!(some.matches_hash(hash_code("BB")), "a collision passes the broker and is dropped by the client");
        assert!(!some.matches_hash(0));
        assert_eq!(TagExpression::parse(" || "), Err(BadTagExpression(" || ".into())));
        assert_eq!((tag_hash(None), tag_hash(Some("A"))), (0, 65));
    }
}

//! SQL92 subscriptions: an expression over a message's properties, as RocketMQ evaluates it.
//!
//! ```text
//! or          and { OR and }
//! and         not { AND not }
//! not         NOT not | equality
//! equality    comparison { (= | <>) comparison | IS [NOT] NULL }
//! comparison  unary { (> | >= | < | <=) unary
//!                   | [NOT] BETWEEN unary AND unary
//!                   | [NOT] IN ( 'text' {, 'text'} )
//!                   | [NOT] (CONTAINS | STARTSWITH | ENDSWITH) 'text' }
//! unary       (+ | -) unary | NOT unary | primary
//! primary     'text' | 12 | 12L | 1.5 | 1e3 | TRUE | FALSE | NULL | property | ( or )
//! ```
//!
//! Keywords in any case, property names exactly; `''` is a quote inside a text; `-- …` and `/* … */` are comments.
//!
//! - A property's value is a text. Against a number it counts as one, against TRUE or FALSE as `true`, whatever its case,
//!   or not; between `<` and its kind on either side, both count as numbers.
//! - AND, OR and NOT know three values. Unknown is what a missing property makes of a comparison, and what a text that is
//!   no number makes of one with a number. A message matches only what is TRUE.
//! - What RocketMQ answers is answered here too, its peculiarities included: `a = b` with both missing is TRUE and with
//!   only `b` missing FALSE; CONTAINS and its kin are FALSE for a missing property, negated or not; a property that stands
//!   where a truth value should is FALSE if it is there.
//! - Where RocketMQ fails at a message and drops it, this goes on: `a > 1` is unknown for `a` = "x", and 3.5 for "3.5".
//! - NOT binds as in SQL, weaker than comparisons. RocketMQ's binds tighter, so that `NOT a = 1` never matches there.
//! - Text behind the expression is an error here; RocketMQ does not look at it.
//!
//! Bounded in length, depth and number of parts, so that whoever subscribes cannot make each message expensive.

mod evaluate;
mod lexer;
mod parser;
mod print;

use std::fmt;

use crate::properties;

/// Longest expression.
pub const EXPRESSION_BYTES_MAX: usize = 32 * 1024;

/// How deep parentheses, NOT and signs may be nested.
pub const DEPTH_MAX: usize = 64;

/// Operators and operands of an expression together, what IN lists not counted.
pub const PARTS_MAX: usize = 1_024;

/// Texts in one IN list.
pub const LIST_MAX: usize = 1_024;

/// A parsed expression.
#[derive(Clone, Debug, PartialEq)]
pub struct SqlFilter {
    root: Node,
    /// The properties that it asks for, each once: nodes name them by their place here.
    names: Vec<String>,
    parts: usize,
}

impl SqlFilter {
    /// Parses an expression.
    pub fn parse(expression: &str) -> Result<SqlFilter, BadSqlExpression> {
        parser::parse(expression)
    }

    /// Whether a message with these encoded properties matches.
    pub fn matches(&self, encoded_properties: &str) -> bool {
        let mut values = vec![None; self.names.len()];
        for (name, value) in properties::iter(encoded_properties) {
            // Of two equal names the later wins.
            if let Some(at) = self.names.iter().position(|wanted| wanted == name) {
                values[at] = Some(value);
            }
        }
        evaluate::truth(&self.root, &values) == Some(true)
    }

    /// The properties that it asks for.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Operators and operands: what a message costs at most is in proportion to it and to the length of its properties.
    pub fn parts(&self) -> usize {
        self.parts
    }
}

/// The same expression with every operation in parentheses: parsed, it is equal to this one, unless these are too many.
impl fmt::Display for SqlFilter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        print::write(&self.root, &self.names, out)
    }
}

/// An expression that is none: whoever subscribes must correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {position}: {problem}")]
pub struct BadSqlExpression {
    /// Characters in front of the place, plus one.
    pub position: usize,
    /// What is wrong there, and what would be right.
    pub problem: String,
}

/// A part of an expression.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    /// By its place among the names.
    Property(usize),
    Negate(Box<Node>),
    Not(Box<Node>),
    /// At least two.
    And(Vec<Node>),
    /// At least two.
    Or(Vec<Node>),
    Compare(Comparison, Box<Node>, Box<Node>),
    Between {
        value: Box<Node>,
        low: Box<Node>,
        high: Box<Node>,
        negated: bool,
    },
    IsNull {
        value: Box<Node>,
        negated: bool,
    },
    In {
        property: usize,
        /// Sorted, each once.
        list: Vec<String>,
        negated: bool,
    },
    Find {
        value: Box<Node>,
        place: Place,
        text: String,
        negated: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Where a text is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Anywhere,
    Start,
    End,
}

/// Java's long or double; never infinite and never NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Integer(i64),
    Float(f64),
}

#[cfg(test)]
mod tests;

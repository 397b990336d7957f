//! What an expression says of one message.

use std::cmp::Ordering;

use super::{Comparison, Node, Number, Place};

/// A longer text is no number: none that is one needs so many digits.
const NUMBER_BYTES_MAX: usize = 128;

/// `None`: unknown.
pub type Truth = Option<bool>;

/// What a part stands for in one message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(&'a str),
}

/// The truth of `node` with these values of the properties.
pub fn truth(node: &Node, values: &[Option<&str>]) -> Truth {
    match value(node, values) {
        Value::Bool(truth) => Some(truth),
        Value::Null => None,
        // A property that stands where a truth value should.
        Value::Text(_) | Value::Number(_) => Some(false),
    }
}

fn value<'a>(node: &'a Node, values: &[Option<&'a str>]) -> Value<'a> {
    let truth_of = |truth: Truth| truth.map_or(Value::Null, Value::Bool);
    match node {
        Node::Null => Value::Null,
        Node::Bool(bool) => Value::Bool(*bool),
        Node::Number(number) => Value::Number(*number),
        Node::Text(text) => Value::Text(text),
        Node::Property(at) => values[*at].map_or(Value::Null, Value::Text),
        Node::Negate(operand) => match value(operand, values) {
            Value::Number(number) => Value::Number(number.negated()),
            _ => Value::Null,
        },
        Node::Not(operand) => truth_of(not(truth(operand, values))),
        Node::And(all) => truth_of(decided_by(false, all, values)),
        Node::Or(all) => truth_of(decided_by(true, all, values)),
        Node::Compare(comparison, left, right) => {
            truth_of(compare(*comparison, value(left, values), value(right, values)))
        }
        Node::Between { value: operand, low, high, negated } => {
            let operand = value(operand, values);
            let (low, high) = (value(low, values), value(high, values));
            let is_above = compare(Comparison::GreaterOrEqual, operand, low);
            let is_below = compare(Comparison::LessOrEqual, operand, high);
            let is_between = and(is_above, is_below);
            truth_of(if *negated { not(is_between) } else { is_between })
        }
        Node::IsNull { value: operand, negated } => Value::Bool((value(operand, values) == Value::Null) != *negated),
        Node::In { property, list, negated } => truth_of(
            values[*property].map(|text| list.binary_search_by(|one| one.as_str().cmp(text)).is_ok() != *negated),
        ),
        Node::Find { value: operand, place, text, negated } => Value::Bool(match value(operand, values) {
            Value::Text(within) if !text.is_empty() => place.is_in(text, within) != *negated,
            _ => false,
        }),
    }
}

/// AND is decided by one that is FALSE, OR by one that is TRUE; else one that is unknown leaves all of it unknown.
fn decided_by(decisive: bool, all: &[Node], values: &[Option<&str>]) -> Truth {
    let mut outcome = Some(!decisive);
    for node in all {
        match truth(node, values) {
            Some(truth) if truth == decisive => return Some(decisive),
            Some(_) => {}
            None => outcome = None,
        }
    }
    outcome
}

fn not(truth: Truth) -> Truth {
    truth.map(|truth| !truth)
}

fn and(left: Truth, right: Truth) -> Truth {
    match (left, right) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn compare(comparison: Comparison, left: Value<'_>, right: Value<'_>) -> Truth {
    match comparison {
        Comparison::Equal => equal(left, right),
        Comparison::NotEqual => not(equal(left, right)),
        Comparison::Less => ordering(left, right).map(Ordering::is_lt),
        Comparison::LessOrEqual => ordering(left, right).map(Ordering::is_le),
        Comparison::Greater => ordering(left, right).map(Ordering::is_gt),
        Comparison::GreaterOrEqual => ordering(left, right).map(Ordering::is_ge),
    }
}

fn equal(left: Value<'_>, right: Value<'_>) -> Truth {
    match (left, right) {
        // As in RocketMQ, which side is missing makes a difference.
        (Value::Null, Value::Null) => Some(true),
        (Value::Null, _) => None,
        (_, Value::Null) => Some(false),
        (Value::Text(left), Value::Text(right)) => Some(left == right),
        (Value::Bool(left), Value::Bool(right)) => Some(left == right),
        (Value::Bool(bool), Value::Text(text)) | (Value::Text(text), Value::Bool(bool)) => {
            Some(bool == text.eq_ignore_ascii_case("true"))
        }
        (Value::Bool(_), Value::Number(_)) | (Value::Number(_), Value::Bool(_)) => Some(false),
        (Value::Number(_), _) | (_, Value::Number(_)) => ordering(left, right).map(Ordering::is_eq),
    }
}

fn ordering(left: Value<'_>, right: Value<'_>) -> Option<Ordering> {
    Some(order(left.number()?, right.number()?))
}

/// Exact, also between a long and a double: 2^53 + 1 is more than the double next to it.
pub fn order(left: Number, right: Number) -> Ordering {
    match (left, right) {
        (Number::Integer(left), Number::Integer(right)) => left.cmp(&right),
        (Number::Float(left), Number::Float(right)) => left.partial_cmp(&right).expect("never NaN"),
        (Number::Integer(left), Number::Float(right)) => order_mixed(left, right),
        (Number::Float(left), Number::Integer(right)) => order_mixed(right, left).reverse(),
    }
}

fn order_mixed(integer: i64, float: f64) -> Ordering {
    // 2^63: the first double above all longs; its negative is the smallest long.
    const ABOVE_ALL: f64 = 9_223_372_036_854_775_808.0;
    if float >= ABOVE_ALL {
        return Ordering::Less;
    }
    if float < -ABOVE_ALL {
        return Ordering::Greater;
    }
    let fraction = 0.0.partial_cmp(&float.fract()).expect("never NaN");
    integer.cmp(&(float.trunc() as i64)).then(fraction)
}

impl Value<'_> {
    fn number(self) -> Option<Number> {
        match self {
            Value::Number(number) => Some(number),
            Value::Text(text) => Number::of_text(text),
            Value::Null | Value::Bool(_) => None,
        }
    }
}

impl Number {
    /// The number that a property's text writes.
    fn of_text(text: &str) -> Option<Number> {
        let text = text.trim();
        if text.len() > NUMBER_BYTES_MAX {
            return None;
        }
        let integer = text.parse().ok().map(Number::Integer);
        integer.or_else(|| text.parse().ok().filter(|number: &f64| number.is_finite()).map(Number::Float))
    }

    pub fn negated(self) -> Number {
        match self {
            // As in Java, where the smallest long is its own negative.
            Number::Integer(number) => Number::Integer(number.wrapping_neg()),
            Number::Float(number) => Number::Float(-number),
        }
    }
}

impl Place {
    fn is_in(self, text: &str, within: &str) -> bool {
        match self {
            Place::Anywhere => within.contains(text),
            Place::Start => within.starts_with(text),
            Place::End => within.ends_with(text),
        }
    }
}

//! An expression in words again.

use std::fmt::{Formatter, Result, Write};

use super::{Comparison, Node, Number, Place};

pub fn write(node: &Node, names: &[String], out: &mut Formatter<'_>) -> Result {
    match node {
        Node::Null => out.write_str("NULL"),
        Node::Bool(true) => out.write_str("TRUE"),
        Node::Bool(false) => out.write_str("FALSE"),
        Node::Number(Number::Integer(number)) => write!(out, "{number}"),
        // With an exponent, so that it is no integer when it is read again.
        Node::Number(Number::Float(number)) => write!(out, "{number:e}"),
        Node::Text(text) => write_text(text, out),
        Node::Property(at) => out.write_str(&names[*at]),
        Node::Negate(operand) => write_around("(-", operand, ")", names, out),
        Node::Not(operand) => write_around("(NOT ", operand, ")", names, out),
        Node::And(all) => write_joined(" AND ", all, names, out),
        Node::Or(all) => write_joined(" OR ", all, names, out),
        Node::Compare(comparison, left, right) => {
            write_around("(", left, comparison.words(), names, out)?;
            write_around("", right, ")", names, out)
        }
        Node::Between { value, low, high, negated } => {
            write_around("(", value, if *negated { " NOT BETWEEN " } else { " BETWEEN " }, names, out)?;
            write_around("", low, " AND ", names, out)?;
            write_around("", high, ")", names, out)
        }
        Node::IsNull { value, negated } => {
            write_around("(", value, if *negated { " IS NOT NULL)" } else { " IS NULL)" }, names, out)
        }
        Node::In { property, list, negated } => {
            write!(out, "({} {}IN (", names[*property], if *negated { "NOT " } else { "" })?;
            for (at, text) in list.iter().enumerate() {
                out.write_str(if at == 0 { "" } else { ", " })?;
                write_text(text, out)?;
            }
            out.write_str("))")
        }
        Node::Find { value, place, text, negated } => {
            write_around("(", value, if *negated { " NOT " } else { " " }, names, out)?;
            out.write_str(match place {
                Place::Anywhere => "CONTAINS ",
                Place::Start => "STARTSWITH ",
                Place::End => "ENDSWITH ",
            })?;
            write_text(text, out)?;
            out.write_char(')')
        }
    }
}

impl Comparison {
    fn words(self) -> &'static str {
        match self {
            Comparison::Equal => " = ",
            Comparison::NotEqual => " <> ",
            Comparison::Less => " < ",
            Comparison::LessOrEqual => " <= ",
            Comparison::Greater => " > ",
            Comparison::GreaterOrEqual => " >= ",
        }
    }
}

fn write_around(before: &str, node: &Node, behind: &str, names: &[String], out: &mut Formatter<'_>) -> Result {
    out.write_str(before)?;
    write(node, names, out)?;
    out.write_str(behind)
}

fn write_joined(between: &str, all: &[Node], names: &[String], out: &mut Formatter<'_>) -> Result {
    out.write_char('(')?;
    for (at, node) in all.iter().enumerate() {
        write_around(if at == 0 { "" } else { between }, node, "", names, out)?;
    }
    out.write_char(')')
}

fn write_text(text: &str, out: &mut Formatter<'_>) -> Result {
    write!(out, "'{}'", text.replace('\'', "''"))
}

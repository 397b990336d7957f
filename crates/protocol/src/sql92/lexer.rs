//! The words of an expression.

use super::{BadSqlExpression, Number};

/// A word.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A keyword, a property or something in between: the parser knows.
    Word(String),
    /// Without its quotes.
    Text(String),
    Number(Number),
    /// `=`, `<>`, `(` and the like.
    Sign(&'static str),
    End,
}

/// Longer ones first.
const SIGNS: [&str; 11] = ["<>", "<=", ">=", "=", "<", ">", "(", ")", ",", "+", "-"];

pub struct Lexer<'a> {
    text: &'a str,
    /// In bytes; at a character's begin.
    at: usize,
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Lexer<'a> {
        Lexer { text, at: 0 }
    }

    /// The next word, and where it begins.
    pub fn next(&mut self) -> Result<(usize, Token), BadSqlExpression> {
        self.skip_blanks()?;
        let start = self.at;
        let token = match self.rest().chars().next() {
            None => Token::End,
            Some('\'') => self.quoted()?,
            Some('0'..='9' | '.') => self.number()?,
            Some(first) if is_word_start(first) => Token::Word(self.take_while(is_word_part).to_owned()),
            Some(other) => match SIGNS.into_iter().find(|sign| self.rest().starts_with(sign)) {
                Some(sign) => {
                    self.at += sign.len();
                    Token::Sign(sign)
                }
                None => return Err(self.error_at(start, format!("{other:?} has no meaning here"))),
            },
        };
        Ok((start, token))
    }

    /// An error at a byte of the expression.
    pub fn error_at(&self, byte: usize, problem: impl Into<String>) -> BadSqlExpression {
        BadSqlExpression { position: self.text[..byte].chars().count() + 1, problem: problem.into() }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|character| !wanted(character)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    fn skip_blanks(&mut self) -> Result<(), BadSqlExpression> {
        loop {
            self.take_while(|character| matches!(character, ' ' | '\t' | '\n' | '\r' | '\u{c}'));
            if self.rest().starts_with("--") {
                self.take_while(|character| !matches!(character, '\n' | '\r'));
            } else if let Some(comment) = self.rest().strip_prefix("/*") {
                let Some(length) = comment.find("*/") else {
                    return Err(self.error_at(self.at, "a comment that does not end; close it with */"));
                };
                self.at += length + 4;
            } else {
                return Ok(());
            }
        }
    }

    fn quoted(&mut self) -> Result<Token, BadSqlExpression> {
        let start = self.at;
        let mut text = String::new();
        loop {
            self.at += 1;
            text.push_str(self.take_while(|character| character != '\''));
            if self.rest().is_empty() {
                return Err(self.error_at(start, "a text that does not end; close it with '"));
            }
            self.at += 1;
            if !self.rest().starts_with('\'') {
                return Ok(Token::Text(text));
            }
            text.push('\'');
        }
    }

    fn number(&mut self) -> Result<Token, BadSqlExpression> {
        let start = self.at;
        self.take_while(|character| character.is_ascii_digit());
        let mut is_integer = true;
        if self.rest().starts_with('.') {
            is_integer = false;
            self.at += 1;
            self.take_while(|character| character.is_ascii_digit());
        }
        let (digits_end, has_exponent) = (self.at, self.rest().starts_with(['e', 'E']));
        if has_exponent {
            self.at += 1;
            if self.rest().starts_with(['+', '-']) {
                self.at += 1;
            }
            if self.take_while(|character| character.is_ascii_digit()).is_empty() {
                // The letter begins a word.
                self.at = digits_end;
            } else {
                is_integer = false;
            }
        }
        let text = &self.text[start..self.at];
        let has_suffix = is_integer && self.rest().starts_with(['l', 'L']);
        self.at += usize::from(has_suffix);
        if self.rest().starts_with(is_word_part) {
            return Err(self.error_at(start, "a name cannot begin with a digit, and a number holds no letters"));
        }
        let number = if is_integer {
            text.parse().ok().map(Number::Integer)
        } else {
            text.parse().ok().filter(|number: &f64| number.is_finite()).map(Number::Float)
        };
        let number = number.ok_or_else(|| {
            self.error_at(start, format!("{text} is no number between {} and {} or {:e}", i64::MIN, i64::MAX, f64::MAX))
        })?;
        Ok(Token::Number(number))
    }
}

fn is_word_start(character: char) -> bool {
    character.is_ascii_alphabetic() || matches!(character, '_' | '$')
}

fn is_word_part(character: char) -> bool {
    is_word_start(character) || character.is_ascii_digit()
}

//! Words to parts, by recursive descent: one function per line of the grammar.

use super::lexer::{Lexer, Token};
use super::{BadSqlExpression, Comparison, DEPTH_MAX, EXPRESSION_BYTES_MAX, LIST_MAX, Node, Number, PARTS_MAX, Place};
use super::{SqlFilter, evaluate};

type Parsed<T> = Result<T, BadSqlExpression>;

const KEYWORDS: [&str; 12] =
    ["NOT", "AND", "OR", "BETWEEN", "IN", "TRUE", "FALSE", "NULL", "IS", "CONTAINS", "STARTSWITH", "ENDSWITH"];

/// Of a word that an error quotes.
const FOUND_CHARACTERS: usize = 40;

pub fn parse(expression: &str) -> Parsed<SqlFilter> {
    let lexer = Lexer::new(expression);
    if expression.len() > EXPRESSION_BYTES_MAX {
        let problem = format!("an expression of {} bytes, at most {EXPRESSION_BYTES_MAX}", expression.len());
        return Err(lexer.error_at(0, problem));
    }
    let mut parser = Parser { lexer, next: (0, Token::End), names: Vec::new(), depth: 0, parts: 0 };
    parser.step()?;
    let start = parser.next.0;
    let root = parser.or()?;
    if parser.next.1 != Token::End {
        return Err(parser.unexpected("AND, OR or the end"));
    }
    let root = parser.truth(root, start)?;
    Ok(SqlFilter { root, names: parser.names, parts: parser.parts })
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The word to look at, and where it begins.
    next: (usize, Token),
    names: Vec<String>,
    depth: usize,
    parts: usize,
}

impl Parser<'_> {
    fn or(&mut self) -> Parsed<Node> {
        self.joined("OR", Self::and, Node::Or)
    }

    fn and(&mut self) -> Parsed<Node> {
        self.joined("AND", Self::not, Node::And)
    }

    /// One or more of a kind with the same word between them: one part, however many they are.
    fn joined(&mut self, word: &str, of: fn(&mut Self) -> Parsed<Node>, join: fn(Vec<Node>) -> Node) -> Parsed<Node> {
        let start = self.next.0;
        let first = of(self)?;
        if !self.is_word(word) {
            return Ok(first);
        }
        let mut all = vec![self.truth(first, start)?];
        while self.take_word(word)? {
            let start = self.next.0;
            let another = of(self)?;
            all.push(self.truth(another, start)?);
        }
        Ok(join(all))
    }

    fn not(&mut self) -> Parsed<Node> {
        if !self.is_word("NOT") {
            return self.equality();
        }
        self.negated(Self::not)
    }

    fn negated(&mut self, of: fn(&mut Self) -> Parsed<Node>) -> Parsed<Node> {
        self.step()?;
        self.part()?;
        let start = self.next.0;
        let node = self.nested(of)?;
        Ok(Node::Not(Box::new(self.truth(node, start)?)))
    }

    fn equality(&mut self) -> Parsed<Node> {
        let start = self.next.0;
        let mut left = self.comparison()?;
        let mut is_chain = false;
        loop {
            let operator = match self.next.1 {
                Token::Sign("=") => Some(Comparison::Equal),
                Token::Sign("<>") => Some(Comparison::NotEqual),
                _ => None,
            };
            if let Some(operator) = operator {
                self.step()?;
                let right_start = self.next.0;
                let right = self.comparison()?;
                self.refuse_unequal(start, &left, right_start, &right)?;
                left = Node::Compare(operator, Box::new(left), Box::new(right));
            } else if self.take_word("IS")? {
                let negated = self.take_word("NOT")?;
                if !self.take_word("NULL")? {
                    return Err(self.unexpected(if negated { "NULL" } else { "NULL or NOT NULL" }));
                }
                left = Node::IsNull { value: Box::new(left), negated };
            } else {
                return Ok(left);
            }
            self.operator(&mut is_chain)?;
        }
    }

    fn comparison(&mut self) -> Parsed<Node> {
        let start = self.next.0;
        let mut left = self.unary()?;
        let mut is_chain = false;
        loop {
            let order = match self.next.1 {
                Token::Sign("<") => Some(Comparison::Less),
                Token::Sign("<=") => Some(Comparison::LessOrEqual),
                Token::Sign(">") => Some(Comparison::Greater),
                Token::Sign(">=") => Some(Comparison::GreaterOrEqual),
                _ => None,
            };
            if let Some(order) = order {
                self.refuse_without_order(start, &left)?;
                self.step()?;
                let right = self.ordered()?;
                left = Node::Compare(order, Box::new(left), Box::new(right));
            } else {
                let negated = self.take_word("NOT")?;
                if self.take_word("BETWEEN")? {
                    left = self.between(start, left, negated)?;
                } else if self.take_word("IN")? {
                    left = self.in_list(start, left, negated)?;
                } else if let Some(place) = self.take_place()? {
                    let text = self.text()?;
                    left = Node::Find { value: Box::new(left), place, text, negated };
                } else if negated {
                    return Err(self.unexpected("BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH"));
                } else {
                    return Ok(left);
                }
            }
            self.operator(&mut is_chain)?;
        }
    }

    fn between(&mut self, start: usize, value: Node, negated: bool) -> Parsed<Node> {
        self.refuse_without_order(start, &value)?;
        let low_start = self.next.0;
        let low = self.ordered()?;
        if !self.take_word("AND")? {
            return Err(self.unexpected("AND and the upper bound"));
        }
        let high = self.ordered()?;
        if let (Node::Number(low), Node::Number(high)) = (&low, &high)
            && !negated
            && evaluate::order(*low, *high).is_gt()
        {
            return Err(self.lexer.error_at(low_start, "the lower bound is above the upper one; exchange them"));
        }
        Ok(Node::Between { value: Box::new(value), low: Box::new(low), high: Box::new(high), negated })
    }

    fn in_list(&mut self, start: usize, value: Node, negated: bool) -> Parsed<Node> {
        let Node::Property(property) = value else {
            return Err(self.lexer.error_at(start, "IN asks for a property, and stands behind its name"));
        };
        self.sign("(")?;
        let mut list = vec![self.text()?];
        while self.next.1 == Token::Sign(",") {
            if list.len() == LIST_MAX {
                return Err(self.lexer.error_at(self.next.0, format!("more than {LIST_MAX} texts in a list")));
            }
            self.step()?;
            list.push(self.text()?);
        }
        self.sign(")")?;
        list.sort_unstable();
        list.dedup();
        Ok(Node::In { property, list, negated })
    }

    /// An operand of `<` and its kind.
    fn ordered(&mut self) -> Parsed<Node> {
        let start = self.next.0;
        let node = self.unary()?;
        self.refuse_without_order(start, &node)?;
        Ok(node)
    }

    fn unary(&mut self) -> Parsed<Node> {
        match self.next.1 {
            Token::Sign("+") => {
                self.step()?;
                self.nested(Self::unary)
            }
            Token::Sign("-") => {
                self.step()?;
                Ok(match self.nested(Self::unary)? {
                    Node::Number(number) => Node::Number(number.negated()),
                    operand => {
                        self.part()?;
                        Node::Negate(Box::new(operand))
                    }
                })
            }
            Token::Word(_) if self.is_word("NOT") => self.negated(Self::unary),
            _ => self.primary(),
        }
    }

    fn primary(&mut self) -> Parsed<Node> {
        if self.next.1 == Token::Sign("(") {
            self.step()?;
            let inner = self.nested(Self::or)?;
            self.sign(")")?;
            return Ok(inner);
        }
        self.part()?;
        let node = match &self.next.1 {
            Token::Text(text) => Node::Text(text.clone()),
            Token::Number(number) => Node::Number(*number),
            Token::Word(word) => match KEYWORDS.iter().find(|keyword| keyword.eq_ignore_ascii_case(word)) {
                Some(&"TRUE") => Node::Bool(true),
                Some(&"FALSE") => Node::Bool(false),
                Some(&"NULL") => Node::Null,
                Some(_) => return Err(self.unexpected("a property, a text, a number or an expression in parentheses")),
                None => {
                    let known = self.names.iter().position(|name| name == word);
                    Node::Property(known.unwrap_or_else(|| {
                        self.names.push(word.clone());
                        self.names.len() - 1
                    }))
                }
            },
            Token::Sign(_) | Token::End => {
                return Err(self.unexpected("a property, a text, a number or an expression in parentheses"));
            }
        };
        self.step()?;
        Ok(node)
    }

    fn text(&mut self) -> Parsed<String> {
        let Token::Text(text) = &mut self.next.1 else { return Err(self.unexpected("a text in single quotes")) };
        let text = std::mem::take(text);
        self.step()?;
        Ok(text)
    }

    /// A node where a truth value must stand.
    fn truth(&self, node: Node, start: usize) -> Parsed<Node> {
        match node {
            Node::Number(_) | Node::Text(_) | Node::Negate(_) => {
                Err(self.lexer.error_at(start, "this is neither true nor false; compare it with something"))
            }
            node => Ok(node),
        }
    }

    fn refuse_without_order(&self, start: usize, node: &Node) -> Parsed<()> {
        match node {
            Node::Number(_) | Node::Property(_) | Node::Negate(_) => Ok(()),
            Node::Text(_) => {
                let problem = "a text has no order here: compare with a number, without quotes, or use = and <>";
                Err(self.lexer.error_at(start, problem))
            }
            _ => Err(self.lexer.error_at(start, "this has no order; <, >, BETWEEN and the like take numbers")),
        }
    }

    fn refuse_unequal(&self, start: usize, left: &Node, right_start: usize, right: &Node) -> Parsed<()> {
        for (start, node) in [(start, left), (right_start, right)] {
            if *node == Node::Null {
                return Err(self.lexer.error_at(start, "nothing equals NULL; write IS NULL or IS NOT NULL"));
            }
        }
        let is_bool = |node: &Node| matches!(node, Node::Bool(_));
        let is_other = |node: &Node| matches!(node, Node::Text(_) | Node::Number(_));
        if is_bool(left) && is_other(right) || is_other(left) && is_bool(right) {
            return Err(self.lexer.error_at(start, "TRUE and FALSE equal no text and no number"));
        }
        Ok(())
    }

    fn step(&mut self) -> Parsed<()> {
        self.next = self.lexer.next()?;
        Ok(())
    }

    fn sign(&mut self, sign: &'static str) -> Parsed<()> {
        if self.next.1 != Token::Sign(sign) {
            return Err(self.unexpected(sign));
        }
        self.step()
    }

    fn is_word(&self, keyword: &str) -> bool {
        matches!(&self.next.1, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    fn take_word(&mut self, keyword: &str) -> Parsed<bool> {
        let is_there = self.is_word(keyword);
        if is_there {
            self.step()?;
        }
        Ok(is_there)
    }

    fn take_place(&mut self) -> Parsed<Option<Place>> {
        for (word, place) in [("CONTAINS", Place::Anywhere), ("STARTSWITH", Place::Start), ("ENDSWITH", Place::End)] {
            if self.take_word(word)? {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    fn nested(&mut self, of: fn(&mut Self) -> Parsed<Node>) -> Parsed<Node> {
        self.deepen()?;
        let node = of(self)?;
        self.depth -= 1;
        Ok(node)
    }

    /// An operator behind an operand. In `a = b = c` what came before is one deeper with each: nobody needs many, so what
    /// they add stays counted.
    fn operator(&mut self, is_chain: &mut bool) -> Parsed<()> {
        self.part()?;
        if std::mem::replace(is_chain, true) { self.deepen() } else { Ok(()) }
    }

    /// One level further down.
    fn deepen(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.lexer.error_at(self.next.0, format!("nested more than {DEPTH_MAX} deep")));
        }
        Ok(())
    }

    fn part(&mut self) -> Parsed<()> {
        self.parts += 1;
        if self.parts > PARTS_MAX {
            let problem = format!("more than {PARTS_MAX} operators and operands; long alternatives fit into IN (…)");
            return Err(self.lexer.error_at(self.next.0, problem));
        }
        Ok(())
    }

    fn unexpected(&self, expected: &str) -> BadSqlExpression {
        let (at, token) = &self.next;
        let found = match token {
            Token::Word(word) => word.chars().take(FOUND_CHARACTERS).collect(),
            Token::Text(text) => format!("'{}'", text.chars().take(FOUND_CHARACTERS).collect::<String>()),
            Token::Number(Number::Integer(number)) => number.to_string(),
            Token::Number(Number::Float(number)) => number.to_string(),
            Token::Sign(sign) => (*sign).to_owned(),
            Token::End => "the end".to_owned(),
        };
        self.lexer.error_at(*at, format!("expected {expected}, found {found}"))
    }
}

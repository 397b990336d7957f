use proptest::prelude::*;

use super::*;
use crate::properties::Properties;

fn filter(expression: &str) -> SqlFilter {
    SqlFilter::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
}

fn encoded(properties: &[(&str, &str)]) -> String {
    let mut all = Properties::new();
    properties.iter().for_each(|(name, value)| all.set(name, value));
    all.into_encoded()
}

/// Matching ones and others, all against the same message.
fn check(properties: &[(&str, &str)], matching: &[&str], others: &[&str]) {
    let properties = encoded(properties);
    for expression in matching {
        assert!(filter(expression).matches(&properties), "{expression} should match {properties:?}");
    }
    for expression in others {
        assert!(!filter(expression).matches(&properties), "{expression} should not match {properties:?}");
    }
}

#[test]
fn every_operator_selects_what_it_says() {
    check(
        &[("a", "5"), ("b", "beta"), ("c", "3.5"), ("t", "TRUE"), ("quote", "it's")],
        &[
            "a = 5",
            "a <> 6",
            "a > 4 and a >= 5 AND a < 6 And a <= 5",
            "a BETWEEN 5 AND 7",
            "a NOT BETWEEN 6 AND 7",
            "b = 'beta'",
            "b IN ('alpha', 'beta')",
            "b NOT IN ('alpha')",
            "quote = 'it''s'",
            "missing IS NULL",
            "b IS NOT NULL",
            "b CONTAINS 'et' AND b STARTSWITH 'be' AND b ENDSWITH 'ta'",
            "b NOT CONTAINS 'x' AND b NOT STARTSWITH 'e' AND b NOT ENDSWITH 'b'",
            "t = TRUE AND b = FALSE",
            "(a > 4) = TRUE",
            "c > 3 AND c < 4 AND c = 3.5 AND c = 35E-1",
            "a > c",
            "a = 5L AND a = 5.0 AND a > -5 AND a = +5 AND a = - -5",
            "a > 1 -- a comment\n and /* another ** one */ a < 9",
            "TRUE",
            "1 = 1",
            "NOT a = 6 AND NOT b IS NULL AND NOT a > 5",
            "a = 6 OR b = 'x' OR c = 3.5",
            "TRUE OR FALSE AND FALSE",
        ],
        &[
            "a = 6",
            "a <> 5",
            "a > 5",
            "a BETWEEN 6 AND 7",
            "a NOT BETWEEN 5 AND 7",
            "b IN ('Beta')",
            "b NOT IN ('beta')",
            "B = 'beta'",
            "a = '5.0'",
            "b IS NULL",
            "b CONTAINS ''",
            "b NOT CONTAINS ''",
            "NULL",
            "FALSE",
            "(TRUE OR FALSE) AND FALSE",
        ],
    );
}

/// Nothing that is unknown matches, negated or not; but it does not stop others from deciding.
#[test]
fn what_is_unknown_matches_neither_way() {
    let unknown = [
        "m = 1",
        "m <> 1",
        "m > 1",
        "m <= 1",
        "m = 'x'",
        "m = TRUE",
        "m IN ('x')",
        "m NOT IN ('x')",
        "m BETWEEN 1 AND 2",
        "m NOT BETWEEN 1 AND 2",
        "1 > m",
        "word > 1",
        "word = 1",
        "word <> 1",
        "word < other",
        "-word > 1",
        "m",
        "NULL",
    ];
    for expression in unknown {
        let negated = format!("NOT ({expression})");
        let (either, neither) = (format!("({expression}) OR a = 1"), format!("({expression}) AND a = 1"));
        let both = format!("({expression}) AND a = 2");
        let (denied, is_null) = (format!("NOT ({both})"), format!("({expression}) IS NULL"));
        check(
            &[("a", "1"), ("word", "x"), ("other", "2")],
            &[&either, &denied, &is_null],
            &[expression, &negated, &neither, &both],
        );
    }
}

#[test]
fn the_peculiar_answers_are_rocketmqs() {
    check(
        &[("a", "true"), ("b", "1")],
        &[
            // Which side is missing makes a difference.
            "m = n",
            "b <> m",
            "'x' <> m",
            // A search for nothing, or in nothing, is FALSE rather than unknown.
            "NOT (m CONTAINS 'x')",
            "NOT (m NOT CONTAINS 'x')",
            // A text is not a truth value, whatever it says.
            "NOT a",
            // A truth value is no number.
            "(b = 1) <> 5",
        ],
        &["m <> b", "m <> 'x'", "m NOT CONTAINS 'x'", "a", "a AND TRUE", "(b = 1) = 1", "(b = 1) CONTAINS 't'"],
    );
}

#[test]
fn numbers_are_compared_exactly() {
    check(
        &[("big", "9007199254740993"), ("top", "9223372036854775807"), ("long", &"9".repeat(200)), ("x", "1e400")],
        &[
            "big > 9007199254740992.0",
            "big <> 9007199254740992.0",
            "top < 9223372036854775808.0",
            "top > -9.3e18",
            "top = 9223372036854775807",
            "long IS NOT NULL",
        ],
        &["big = 9007199254740992.0", "long > 1", "long < 1", "x > 1", "x < 1", "x = 1"],
    );
}

#[test]
fn of_two_equal_names_the_later_wins() {
    assert!(filter("a = 2").matches("a\u{1}1\u{2}a\u{1}2\u{2}"));
}

#[test]
fn an_error_says_where_and_what_would_be_right() {
    for (expression, error) in [
        ("", "at character 1: expected a property, a text, a number or an expression in parentheses, found the end"),
        ("a = 1 b = 2", "at character 7: expected AND, OR or the end, found b"),
        ("a LIKE 'x'", "at character 3: expected AND, OR or the end, found LIKE"),
        ("a = 'x", "at character 5: a text that does not end; close it with '"),
        ("ä = 1", "at character 1: 'ä' has no meaning here"),
        ("a = 'ä' && b", "at character 9: '&' has no meaning here"),
        ("a == 1", "at character 4: expected a property, a text, a number or an expression in parentheses, found ="),
        ("a > 'x'", "at character 5: a text has no order here: compare with a number, without quotes, or use = and <>"),
        (
            "a BETWEEN '1' AND '5'",
            "at character 11: a text has no order here: compare with a number, without quotes, \
                                   or use = and <>",
        ),
        ("a BETWEEN 5 AND 1", "at character 11: the lower bound is above the upper one; exchange them"),
        ("a = NULL", "at character 5: nothing equals NULL; write IS NULL or IS NOT NULL"),
        ("TRUE = 1", "at character 1: TRUE and FALSE equal no text and no number"),
        ("(a > 1) > 2", "at character 1: this has no order; <, >, BETWEEN and the like take numbers"),
        ("a IN (1, 2)", "at character 7: expected a text in single quotes, found 1"),
        ("a IN ()", "at character 7: expected a text in single quotes, found )"),
        ("'a' IN ('b')", "at character 1: IN asks for a property, and stands behind its name"),
        ("a NOT = 1", "at character 7: expected BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH, found ="),
        ("a IS 5", "at character 6: expected NULL or NOT NULL, found 5"),
        ("5", "at character 1: this is neither true nor false; compare it with something"),
        ("a AND 'x'", "at character 7: this is neither true nor false; compare it with something"),
        ("a = 1x", "at character 5: a name cannot begin with a digit, and a number holds no letters"),
        ("(a = 1", "at character 7: expected ), found the end"),
        ("a = 1 /* so", "at character 7: a comment that does not end; close it with */"),
        ("a CONTAINS b", "at character 12: expected a text in single quotes, found b"),
        (
            "between = 1",
            "at character 1: expected a property, a text, a number or an expression in parentheses, found \
                         between",
        ),
    ] {
        assert_eq!(SqlFilter::parse(expression).unwrap_err().to_string(), error, "{expression}");
    }
    for number in ["9223372036854775808", "1e309", "."] {
        let error = SqlFilter::parse(&format!("a = {number}")).unwrap_err();
        assert!(error.problem.contains("is no number between"), "{error}");
    }
}

#[test]
fn what_is_too_much_is_refused_and_a_little_less_is_not() {
    let deep = |depth: usize| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
    let chain = |length: usize| format!("a{}", " = TRUE".repeat(length));
    let many = |parts: usize| vec!["a"; parts].join(" OR ");
    let list = |length: usize| format!("a IN ({})", vec!["'x'"; length].join(","));
    let long = |bytes: usize| format!("a = '{}'", "x".repeat(bytes - 6));
    for (allowed, too_much, problem) in [
        (deep(DEPTH_MAX), deep(DEPTH_MAX + 1), "nested more than"),
        ("NOT ".repeat(DEPTH_MAX) + "a", "NOT ".repeat(DEPTH_MAX + 1) + "a", "nested more than"),
        (chain(DEPTH_MAX + 1), chain(DEPTH_MAX + 2), "nested more than"),
        (many(PARTS_MAX), many(PARTS_MAX + 1), "operators and operands"),
        (list(LIST_MAX), list(LIST_MAX + 1), "texts in a list"),
        (long(EXPRESSION_BYTES_MAX), long(EXPRESSION_BYTES_MAX + 1), "bytes, at most"),
    ] {
        assert!(!filter(&allowed).matches(""), "no property is there");
        let error = SqlFilter::parse(&too_much).unwrap_err();
        assert!(error.problem.contains(problem), "{error}");
    }
}

/// Expressions of the model, with an evaluation and a notation that share nothing with the parser's.
#[derive(Clone, Debug)]
enum Model {
    Order(&'static str, &'static str, i32),
    Equal(&'static str, bool, &'static str),
    Null(&'static str, bool),
    OneOf(&'static str, bool, Vec<&'static str>),
    Not(Box<Model>),
    And(Box<Model>, Box<Model>),
    Or(Box<Model>, Box<Model>),
}

impl Model {
    /// FALSE 0, unknown 1, TRUE 2: AND is the smaller, OR the larger.
    fn truth(&self, message: &[(&str, &str)]) -> u8 {
        let value = |name: &str| message.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        let known = |truth: bool| if truth { 2 } else { 0 };
        match self {
            Model::Order(name, sign, number) => match value(name).and_then(|value| value.parse::<i32>().ok()) {
                None => 1,
                Some(value) => known(match *sign {
                    "<" => value < *number,
                    "<=" => value <= *number,
                    ">" => value > *number,
                    ">=" => value >= *number,
                    "=" => value == *number,
                    _ => value != *number,
                }),
            },
            Model::Equal(name, equal, text) => value(name).map_or(1, |value| known((value == *text) == *equal)),
            Model::Null(name, is_null) => known(value(name).is_none() == *is_null),
            Model::OneOf(name, inside, list) => value(name).map_or(1, |value| known(list.contains(&value) == *inside)),
            Model::Not(inner) => 2 - inner.truth(message),
            Model::And(left, right) => left.truth(message).min(right.truth(message)),
            Model::Or(left, right) => left.truth(message).max(right.truth(message)),
        }
    }

    /// With parentheses only where they are needed.
    fn words(&self) -> String {
        let within = |inner: &Model, weakest: u8| {
            if inner.binds() < weakest { format!("({})", inner.words()) } else { inner.words() }
        };
        match self {
            Model::Order(name, sign, number) => format!("{name}{sign}{number}"),
            Model::Equal(name, equal, text) => format!("{name} {} '{text}'", if *equal { "=" } else { "<>" }),
            Model::Null(name, is_null) => format!("{name} is {}null", if *is_null { "" } else { "not " }),
            Model::OneOf(name, inside, list) => {
                format!("{name} {}in ('{}')", if *inside { "" } else { "not " }, list.join("','"))
            }
            Model::Not(inner) => format!("NOT {}", within(inner, 2)),
            Model::And(left, right) => format!("{} AND {}", within(left, 1), within(right, 1)),
            Model::Or(left, right) => format!("{} OR {}", within(left, 0), within(right, 0)),
        }
    }

    fn binds(&self) -> u8 {
        match self {
            Model::Or(..) => 0,
            Model::And(..) => 1,
            _ => 2,
        }
    }
}

fn model() -> impl Strategy<Value = Model> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let text = prop::sample::select(vec!["0", "1", "2", "x", ""]);
    let sign = prop::sample::select(vec!["<", "<=", ">", ">=", "=", "<>"]);
    let leaf = prop_oneof![
        (name.clone(), sign, -1..3).prop_map(|(name, sign, number)| Model::Order(name, sign, number)),
        (name.clone(), any::<bool>(), text.clone()).prop_map(|(name, equal, text)| Model::Equal(name, equal, text)),
        (name.clone(), any::<bool>()).prop_map(|(name, is_null)| Model::Null(name, is_null)),
        (name, any::<bool>(), prop::collection::vec(text, 1..4))
            .prop_map(|(name, inside, list)| Model::OneOf(name, inside, list)),
    ];
    leaf.prop_recursive(6, 40, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|inner| Model::Not(Box::new(inner))),
            (inner.clone(), inner.clone()).prop_map(|(left, right)| Model::And(Box::new(left), Box::new(right))),
            (inner.clone(), inner).prop_map(|(left, right)| Model::Or(Box::new(left), Box::new(right))),
        ]
    })
}

/// Words in any order: most are no expression, many almost one.
fn words() -> impl Strategy<Value = String> {
    let vocabulary = "NOT AND OR BETWEEN IN TRUE FALSE NULL IS CONTAINS STARTSWITH ENDSWITH a b $c_1 'x' 'it''s' '' 0 17 \
                      5L .5 1e3 99999999999999999999 1e999 = <> < <= > >= ( ) , + - -- /* */ ' ä \u{1}";
    let vocabulary: Vec<_> = vocabulary.split(' ').collect();
    prop::collection::vec(prop::sample::select(vocabulary), 0..24).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn an_expression_means_what_the_model_means(
        model in model(),
        message in prop::collection::vec((0..3_usize, prop::sample::select(vec!["0", "1", "2", "x"])), 0..3),
    ) {
        let mut properties: Vec<(&str, &str)> = Vec::new();
        for (name, value) in message {
            let name = ["a", "b", "c"][name];
            if !properties.iter().any(|(known, _)| *known == name) {
                properties.push((name, value));
            }
        }
        let parsed = filter(&model.words());
        prop_assert_eq!(parsed.matches(&encoded(&properties)), model.truth(&properties) == 2, "{}", model.words());
        let negated = filter(&format!("NOT ({})", model.words()));
        prop_assert_eq!(negated.matches(&encoded(&properties)), model.truth(&properties) == 0);
    }

    #[test]
    fn printed_and_parsed_it_is_the_same(model in model()) {
        let parsed = filter(&model.words());
        prop_assert_eq!(&filter(&parsed.to_string()), &parsed, "{}", parsed);
    }

    #[test]
    fn no_words_make_it_panic_and_what_parses_prints(words in words()) {
        if let Ok(parsed) = SqlFilter::parse(&words) {
            parsed.matches("a\u{1}17\u{2}b\u{1}x\u{2}");
            prop_assert_eq!(&filter(&parsed.to_string()), &parsed, "{}", words);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let _ = SqlFilter::parse(&text);
    }
}

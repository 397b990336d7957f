//! SQL92 expressions: what parses can be evaluated, and printed and parsed again says the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::sql92::SqlFilter;

fuzz_target!(|input: (&str, &str)| {
    let (expression, properties) = input;
    let Ok(filter) = SqlFilter::parse(expression) else { return };
    let matches = filter.matches(properties);
    // Printed, it has more parentheses than may be nested in one another.
    if let Ok(again) = SqlFilter::parse(&filter.to_string()) {
        assert_eq!(again, filter);
        assert_eq!(again.matches(properties), matches);
    }
});

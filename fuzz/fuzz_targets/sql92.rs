//! SQL92 expressions: what parses can be evaluated, and printed and parsed again says the same. The properties that it is
//! evaluated on stand behind a NUL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::sql92::SqlFilter;

fuzz_target!(|input: &str| {
    let (expression, properties) = input.split_once('\0').unwrap_or((input, ""));
    let Ok(filter) = SqlFilter::parse(expression) else { return };
    let matches = filter.matches(properties);
    // Printed, it has more parentheses than may be nested in one another.
    if let Ok(again) = SqlFilter::parse(&filter.to_string()) {
        assert_eq!(again, filter);
        assert_eq!(again.matches(properties), matches);
    }
});

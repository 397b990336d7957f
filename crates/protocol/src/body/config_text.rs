//! Configuration as `key=value` lines: bodies of 25, 26, 318 and 319.

use std::collections::BTreeMap;

/// Writes sorted `key=value` lines.
pub fn to_config_text(config: &BTreeMap<String, String>) -> String {
    config.iter().map(|(key, value)| format!("{key}={}\n", value.replace('\\', "\\\\").replace('\n', "\\n"))).collect()
}

/// Reads `key=value` lines as Java's `Properties` does for what tools send: `#` and `!` begin comments, `=` or `:`
/// separates, a backslash escapes the next character. Lines without a key are ignored; later duplicates win.
pub fn parse_config_text(text: &str) -> BTreeMap<String, String> {
    let mut config = BTreeMap::new();
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        let (key, value) = line.split_once(['=', ':']).unwrap_or((line, ""));
        if !key.trim().is_empty() {
            config.insert(unescape(key.trim()), unescape(value.trim()));
        }
    }
    config
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => plain.push('\n'),
                Some('t') => plain.push('\t'),
                Some('r') => plain.push('\r'),
                Some(other) => plain.push(other),
                None => {}
            },
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_a_table_and_back() {
        let config = parse_config_text("# c\n a = 1 \nb:x=y\r\n\n!d\n=z\nlone\npath=C\\:\\\\x\nb=2");
        let expected = [("a", "1"), ("b", "2"), ("lone", ""), ("path", "C:\\x")];
        let pairs: Vec<_> = config.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, expected);
        assert_eq!(to_config_text(&config), "a=1\nb=2\nlone=\npath=C:\\\\x\n");
        assert_eq!(parse_config_text(&to_config_text(&config)), config);
    }
}

//! What a command found, to be printed for people and scripts that cut columns, or as JSON.
//!
//! Columns are aligned by spaces under a line of headers, each beginning with `#`, as mqadmin prints them. Widths follow
//! the content, so cut by words and not by positions; no cell has a space in it, but headers do.

use serde_json::{Map, Value};

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Space-aligned columns.
    #[default]
    Table,
    /// One line of JSON.
    Json,
}

/// What a command found, both ways.
#[derive(Debug)]
pub struct Report {
    text: String,
    json: Value,
    /// What could not be found out.
    problems: Vec<String>,
}

impl Report {
    /// Text for people, value for programs.
    pub fn new(text: impl Into<String>, json: Value) -> Report {
        Report { text: text.into(), json, problems: Vec::new() }
    }

    /// The same, and what is missing in it: the command fails after it has printed the rest.
    pub fn with_problems(self, problems: Vec<String>) -> Report {
        Report { problems, ..self }
    }

    /// What is missing.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// What to write to standard output, the last line ended.
    pub fn render(&self, output: Output) -> String {
        let mut text = match output {
            Output::Table => self.text.clone(),
            Output::Json => self.json.to_string(),
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }
}

/// A column: its header as mqadmin prints it, and its member's name in JSON.
#[derive(Clone, Copy, Debug)]
pub struct Column(pub &'static str, pub &'static str);

/// Rows under headers.
#[derive(Debug)]
pub struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<Value>>,
}

impl Table {
    /// No rows yet.
    pub fn new(columns: &'static [Column]) -> Table {
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row: one cell for each column; `Value::Null` where there is nothing to say.
    pub fn push(&mut self, row: impl IntoIterator<Item = Value>) {
        let row: Vec<Value> = row.into_iter().collect();
        assert_eq!(row.len(), self.columns.len(), "one cell for each column");
        self.rows.push(row);
    }

    /// A list of objects.
    pub fn to_json(&self) -> Value {
        let object = |row: &Vec<Value>| {
            let members = self.columns.iter().zip(row).map(|(column, cell)| (column.1.to_owned(), cell.clone()));
            Value::Object(members.collect::<Map<_, _>>())
        };
        Value::Array(self.rows.iter().map(object).collect())
    }

    /// Aligned columns.
    pub fn to_text(&self) -> String {
        let header = self.columns.iter().map(|column| column.0.to_owned()).collect();
        let body = self.rows.iter().map(|row| row.iter().map(cell_text).collect());
        let lines: Vec<Vec<String>> = std::iter::once(header).chain(body).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let padded = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            text += padded.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }
}

impl From<Table> for Report {
    fn from(table: Table) -> Report {
        Report::new(table.to_text(), table.to_json())
    }
}

/// A cell is one word: what is cut by words must not fall apart.
fn cell_text(cell: &Value) -> String {
    let text = match cell {
        Value::Null => String::new(),
        Value::String(text) => text.replace(char::is_whitespace, "_"),
        Value::Number(number) if number.is_f64() => format!("{:.2}", number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    };
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Milliseconds since the epoch as a date and time in UTC; nothing for the times before it, which stand for "never".
pub fn date(ms: i64) -> Value {
    if ms <= 0 {
        return Value::Null;
    }
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Days to year, month and day of the proleptic Gregorian calendar, counted in eras of 400 years from a first of
    // March: then the leap day is the last of its year.
    let from_march = days + 719_468;
    let (era, of_era) = (from_march.div_euclid(146_097), from_march.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, ms) = (of_day / 1_000 % 60, of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] =
        &[Column("#Broker Name", "brokerName"), Column("#QID", "queueId"), Column("#TPS", "tps")];

    #[test]
    fn columns_are_aligned_and_cells_are_words() {
        let mut table = Table::new(COLUMNS);
        table.push(["broker-a".into(), 0.into(), 1.5.into()]);
        table.push(["a name with spaces".into(), 1234567.into(), Value::Null]);
        table.push(["主".into(), (-1).into(), 0.0.into()]);
        assert_eq!(
            table.to_text(),
            "#Broker Name        #QID     #TPS\n\
             broker-a            0        1.50\n\
             a_name_with_spaces  1234567  -\n\
             主                   -1       0.00\n"
        );
        let report = Report::from(table);
        assert_eq!(
            report.render(Output::Json),
            "[{\"brokerName\":\"broker-a\",\"queueId\":0,\"tps\":1.5},\
             {\"brokerName\":\"a name with spaces\",\"queueId\":1234567,\"tps\":null},\
             {\"brokerName\":\"主\",\"queueId\":-1,\"tps\":0.0}]\n"
        );
    }

    #[test]
    fn an_empty_table_still_has_its_header() {
        assert_eq!(Report::from(Table::new(COLUMNS)).render(Output::Table), "#Broker Name  #QID  #TPS\n");
        assert_eq!(Report::from(Table::new(COLUMNS)).render(Output::Json), "[]\n");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (1_700_000_000_000, "2023-11-14T22:13:20.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (4_107_542_400_001, "2100-03-01T00:00:00.001Z"),
            (1, "1970-01-01T00:00:00.001Z"),
        ];
        for (ms, expected) in cases {
            assert_eq!(date(ms), Value::from(expected));
        }
        assert_eq!((date(0), date(-1)), (Value::Null, Value::Null));
    }
}

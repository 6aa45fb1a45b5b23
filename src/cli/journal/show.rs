//! What is known of a journal, for people: plain values as facts, lists as tables.

use serde_json::Value;

use crate::cli::output::{Facts, Style, Table};

/// The document with a line break behind every line.
pub(super) fn text(document: &Value, style: Style) -> String {
    let mut facts = Facts::default();
    let mut tables = String::new();
    for (key, value) in document.as_object().into_iter().flatten() {
        match value {
            Value::Array(rows) if rows.first().is_some_and(Value::is_object) => {
                tables.push_str(&format!("\n{}\n{}", style.bold(&title(key)), table(rows, style)));
            }
            Value::Object(fields) => {
                for (inner, value) in fields {
                    facts.add(&format!("{} {}", title(key), title(inner)), plain(value));
                }
            }
            value => facts.add(&title(key), plain(value)),
        }
    }
    facts.render(style) + &tables
}

/// `last_lsn` is a name for programs.
fn title(key: &str) -> String {
    key.replace('_', " ").replace("lsn", "LSN")
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_string(),
        Value::Bool(true) => "yes".to_string(),
        Value::Bool(false) => "no".to_string(),
        Value::Array(values) if values.is_empty() => "none".to_string(),
        Value::Array(values) if values.iter().all(Value::is_array) => ranges(values),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Pairs of a first and a last LSN.
fn ranges(pairs: &[Value]) -> String {
    let one = |pair: &Value| match pair[0] == pair[1] {
        true => pair[0].to_string(),
        false => format!("{} to {}", pair[0], pair[1]),
    };
    pairs.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The fields of the first row are the columns.
fn table(rows: &[Value], style: Style) -> String {
    let keys: Vec<&String> =
        rows.first().and_then(Value::as_object).into_iter().flat_map(|row| row.keys()).collect();
    let header: Vec<String> = keys.iter().map(|key| title(key).to_uppercase()).collect();
    let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for row in rows {
        table.row(keys.iter().map(|key| plain(&row[key.as_str()])).collect());
    }
    table.render(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_facts_and_lists_are_tables() {
        let document = serde_json::json!({
            "last_lsn": 7,
            "clean": true,
            "lost": [[1, 3], [9, 9]],
            "segments": [{ "file": "a", "bytes": 1 }, { "file": "bb", "bytes": 20 }],
        });
        let text = text(&document, Style::plain());
        assert!(text.contains("last LSN  7\n") && text.contains("clean     yes\n"), "{text}");
        assert!(text.contains("lost      1 to 3, 9\n"), "{text}");
        assert!(text.ends_with("\nsegments\nBYTES  FILE\n    1  a\n   20  bb\n"), "{text}");
    }
}

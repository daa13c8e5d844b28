//! Records for people: TIME AGENT ACTION RESOURCE OUTCOME REASON, aligned, in 100 columns; and all of one record.

use std::fmt::Write;

use agentguard_audit::line::Line;
use serde_json::Value;

use super::super::printable::printable;

const COLUMNS: usize = 100;
const NAMES: [&str; 6] = ["TIME", "AGENT", "ACTION", "RESOURCE", "OUTCOME", "REASON"];
const RESOURCE: usize = 3;
const OUTCOME: usize = 4;
/// Widest each may become; the resource has what is left.
const WIDEST: [usize; 6] = [20, 18, 13, 0, 17, 20];
/// While records are still coming. Sums up to [`COLUMNS`] with the spaces between.
const FIXED: [usize; 6] = [20, 14, 9, 28, 8, 16];

pub(super) struct RecordTable {
    widths: [usize; 6],
    colour: bool,
}

impl RecordTable {
    pub(super) fn fixed(colour: bool) -> Self {
        Self {
            widths: FIXED,
            colour,
        }
    }

    /// As wide as these lines need, and no wider than a screen.
    pub(super) fn fitting(lines: &[String], colour: bool) -> Self {
        let mut widths = NAMES.map(str::len);
        for cells in lines.iter().filter_map(|line| cells(line)) {
            for (width, cell) in widths.iter_mut().zip(&cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for (width, widest) in widths.iter_mut().zip(WIDEST) {
            *width = if widest == 0 {
                *width
            } else {
                (*width).min(widest)
            };
        }
        let others: usize = widths.iter().sum::<usize>() - widths[RESOURCE] + NAMES.len() - 1;
        widths[RESOURCE] = widths[RESOURCE].min(COLUMNS - others);
        Self { widths, colour }
    }

    pub(super) fn header(&self) -> String {
        self.line(&NAMES.map(str::to_owned), "")
    }

    /// What is no record is shown as it is.
    pub(super) fn row(&self, line: &str) -> String {
        match cells(line) {
            Some(cells) => {
                let colour = match cells[OUTCOME].as_str() {
                    "deny" | "killed" => "\x1b[31m",
                    "error" => "\x1b[33m",
                    _ => "",
                };
                self.line(&cells, if self.colour { colour } else { "" })
            }
            None => printable(line),
        }
    }

    fn line(&self, cells: &[String; 6], colour: &str) -> String {
        let mut line = String::new();
        for (at, (cell, width)) in cells.iter().zip(self.widths).enumerate() {
            let cut = cut(cell, width);
            let padding = width - cut.chars().count();
            let (on, off) = match at == OUTCOME && !colour.is_empty() {
                true => (colour, "\x1b[0m"),
                false => ("", ""),
            };
            // Writing to a string cannot fail.
            let _ = write!(line, "{on}{cut}{off}{:padding$} ", "");
        }
        line.truncate(line.trim_end().len());
        line
    }
}

fn cells(line: &str) -> Option<[String; 6]> {
    let line = Line::parse(line.as_bytes()).ok()?;
    let path = line.request.as_ref().map_or("", |request| &request.path);
    Some([
        format!("{:.0}", line.time),
        printable(line.agent.as_deref().unwrap_or("-")),
        printable(&line.action),
        printable(&format!("{}{path}", &*line.resource)),
        printable(line.outcome.text()),
        printable(line.reason.as_ref().map_or("", |reason| reason.text())),
    ])
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// Every field that is not null, by its path (`request.host`), in the record's order.
pub(super) fn flat(record: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    flatten("", record, &mut all);
    all
}

fn flatten(name: &str, value: &Value, into: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (key, value) in fields {
                let dot = if name.is_empty() { "" } else { "." };
                flatten(&format!("{name}{dot}{}", printable(key)), value, into);
            }
        }
        Value::Array(items) if items.is_empty() => {}
        Value::Array(items) => {
            let shown: Vec<String> = items.iter().map(scalar).collect();
            into.push((name.to_owned(), shown.join(", ")));
        }
        other => into.push((name.to_owned(), scalar(other))),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

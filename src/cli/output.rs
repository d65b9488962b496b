//! What commands print: aligned tables for people, JSON for programs, progress on a terminal's standard error.

use crate::cli::error::CliError;
use crate::cli::json::{self, Form};
use crate::cli::names::{Names, Noun};
use crate::cli::text::printable;
use comfy_table::{Cell, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value as Json, json};
use std::io::{self, IsTerminal as _, Write as _};

/// A column or a line: its heading, and where its content is in the message. The path has the names of the proto file
/// with dots between; lists are joined by commas. `|class` and the like after it turn numbers into names.
#[derive(Debug, Clone, Copy)]
pub struct Col(pub &'static str, pub &'static str);

/// Where and how results go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// JSON instead of tables.
    pub json: bool,
}

impl Output {
    /// One message: its fields below each other, or the message as JSON.
    pub fn record<M: prost::Message + prost::Name>(&self, m: &M, cols: &[Col], names: &Names) -> Result<(), CliError> {
        check::<M>(cols)?;
        if self.json {
            return self.document(&json::message(m, Form::Wire));
        }
        let value = json::message(m, Form::Human);
        self.pairs(cols.iter().map(|col| (col.0, cell(&value, col, names))))
    }

    /// Messages: a table, or `{"WORD": [...], "more": bool}`.
    pub fn list<M: prost::Message + prost::Name>(
        &self,
        word: &str,
        page: &Page<M>,
        cols: &[Col],
        names: &Names,
    ) -> Result<(), CliError> {
        check::<M>(cols)?;
        if self.json {
            let list: Vec<Json> = page.items.iter().map(|m| json::message(m, Form::Wire)).collect();
            return self.document(&json!({ word: list, "more": page.more }));
        }
        self.table(&page.items, cols, names)?;
        if page.items.is_empty() {
            note(&format!("no {}", word.replace('_', " ")));
        } else if page.more {
            note(&format!("there are more than {}; --limit 0 shows all", page.items.len()));
        }
        Ok(())
    }

    /// A table of messages, for people.
    pub fn table<M: prost::Message + prost::Name>(
        &self,
        items: &[M],
        cols: &[Col],
        names: &Names,
    ) -> Result<(), CliError> {
        check::<M>(cols)?;
        let rows = items.iter().map(|m| {
            let value = json::message(m, Form::Human);
            cols.iter().map(|col| cell(&value, col, names)).collect()
        });
        self.rows(&cols.iter().map(|c| c.0).collect::<Vec<_>>(), rows.collect())
    }

    /// One line for each message, for streams: nothing waits for the width of columns.
    pub fn lines<M: prost::Message + prost::Name>(
        &self,
        items: &[M],
        cols: &[Col],
        names: &Names,
    ) -> Result<(), CliError> {
        check::<M>(cols)?;
        for m in items {
            let value = json::message(m, Form::Human);
            let cells: Vec<String> = cols.iter().map(|col| cell(&value, col, names)).collect();
            self.line(cells.join("  ").trim_end())?;
        }
        Ok(())
    }

    /// A table of texts that are safe to print. Nothing for no rows.
    pub fn rows(&self, heads: &[&str], rows: Vec<Vec<String>>) -> Result<(), CliError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(heads.iter().map(Cell::new));
        for row in rows {
            table.add_row(row.iter().map(Cell::new));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        self.raw(text.as_bytes())
    }

    /// Headings and texts below each other; what is empty is left out.
    pub fn pairs<'a>(&self, pairs: impl IntoIterator<Item = (&'a str, String)>) -> Result<(), CliError> {
        let pairs: Vec<_> = pairs.into_iter().filter(|(_, text)| !text.is_empty()).collect();
        let width = pairs.iter().map(|(head, _)| head.len()).max().unwrap_or(0) + 2;
        let text: String = pairs.iter().map(|(head, text)| format!("{head:width$}{text}\n")).collect();
        self.raw(text.as_bytes())
    }

    /// One JSON document.
    pub fn document(&self, value: &Json) -> Result<(), CliError> {
        self.raw(format!("{value:#}\n").as_bytes())
    }

    /// One JSON document on a line of its own, at once: for streams.
    pub fn json_line(&self, value: &Json) -> Result<(), CliError> {
        self.raw(format!("{value}\n").as_bytes())
    }

    /// A line for people.
    pub fn line(&self, text: &str) -> Result<(), CliError> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Bytes as they are.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(CliError::io("standard output"))
    }

    /// A progress bar on standard error if that is a terminal; otherwise nothing is drawn. `total` 0: not known.
    pub fn progress(&self, total: u64, word: &'static str) -> ProgressBar {
        let target =
            if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target((total > 0).then_some(total), target);
        let template =
            if total > 0 { "{msg} {bar:30} {human_pos}/{human_len} {eta}" } else { "{spinner} {msg} {human_pos}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(word);
        bar
    }
}

/// Something beside the result, for people: on standard error.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A list, put together from pages.
#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// The server has more than were asked for.
    pub more: bool,
}

/// A column that its message does not have would be empty for ever. Tests run every command, so that nobody meets this.
fn check<M: prost::Name>(cols: &[Col]) -> Result<(), CliError> {
    let wrong = cols.iter().find(|Col(_, path)| !json::has_path::<M>(path.split('|').next().unwrap_or_default()));
    match wrong {
        None => Ok(()),
        Some(Col(head, path)) => Err(CliError::Unexpected(format!("{} has no {path} for {head}", M::NAME))),
    }
}

/// The content of a column.
fn cell(value: &Json, Col(_, path): &Col, names: &Names) -> String {
    let (path, hint) = path.split_once('|').unwrap_or((path, ""));
    let mut found = vec![value];
    for step in path.split('.') {
        found = found.into_iter().filter_map(|v| v.get(step)).flat_map(flat).collect();
    }
    found.into_iter().map(|v| text(v, hint, names)).filter(|t| !t.is_empty()).collect::<Vec<_>>().join(", ")
}

fn flat(value: &Json) -> Vec<&Json> {
    match value {
        Json::Array(list) => list.iter().collect(),
        other => vec![other],
    }
}

fn text(value: &Json, hint: &str, names: &Names) -> String {
    let noun = match hint {
        "field" => Some(Noun::Field),
        "class" => Some(Noun::Class),
        "purpose" => Some(Noun::Purpose),
        "recipient" => Some(Noun::Recipient),
        "role" => Some(Noun::Role),
        "plan" => Some(Noun::Plan),
        _ => None,
    };
    match (value, noun) {
        // Number 0 is nothing of its sort.
        (Json::Number(n), Some(_)) if n.as_u64() == Some(0) => String::new(),
        (Json::Number(n), Some(noun)) => {
            let number = n.as_u64().and_then(|n| u32::try_from(n).ok());
            number.map(|n| printable(&names.name(noun, n))).unwrap_or_default()
        }
        (Json::Number(n), None) if hint == "nonzero" && n.as_u64() == Some(0) => String::new(),
        (Json::Bool(v), _) if hint == "mark" => if *v { "yes" } else { "" }.into(),
        (Json::Bool(v), _) => if *v { "yes" } else { "no" }.into(),
        (Json::String(s), _) => s.clone(),
        (Json::Null, _) => String::new(),
        (other, _) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_reads_paths_through_lists_and_names_numbers() {
        let class = |class_id, name: &str| pb::ClassSchema { class_id, name: name.into(), ..Default::default() };
        let names = Names::new(pb::GetSchemaResponse { classes: vec![class(3, "billing")], ..Default::default() });
        let held = |class_id| pb::HeldClass { class_id, legal_basis: "tax".into(), ..Default::default() };
        let erasure = pb::Erasure { held: vec![held(3), held(4)], ..Default::default() };
        let value = json::message(&erasure, Form::Human);
        assert_eq!(cell(&value, &Col("", "held.class_id|class"), &names), "billing, 4");
        assert_eq!(cell(&value, &Col("", "held.legal_basis"), &names), "tax, tax");
        assert_eq!(cell(&value, &Col("", "erase_time"), &names), "");
        assert_eq!(cell(&value, &Col("", "subject_count|nonzero"), &names), "");
    }

    use crate::grpc::pb;
}

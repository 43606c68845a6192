//! Lists: lines of columns for people and for `cut`, or a JSON value on each line. The first column is what the line is
//! found by, and no line is wider than a terminal of old. Owns widths; does not know what is listed.

use serde_json::Value as Json;

use crate::failure::Failure;
use crate::output::{Output, Reader, plain};
use crate::store::Place;

/// A page of a list, in the form that was asked for. It is written at once, because a write costs more than its lines.
#[derive(Debug)]
pub(crate) struct Listing {
    table: Table,
    /// The lines when JSON was asked for.
    json: Option<String>,
}

impl Listing {
    /// No lines yet, with the names of the columns that text has.
    pub(crate) fn new(place: &Place, heads: &'static [&'static str]) -> Self {
        Self { table: Table::new(heads), json: place.json.then(String::new) }
    }

    /// Adds a line, in the one of its two forms that is wanted.
    pub(crate) fn push<const N: usize>(
        &mut self,
        row: impl FnOnce() -> [String; N],
        json: impl FnOnce() -> Json,
    ) {
        match &mut self.json {
            Some(lines) => lines.push_str(&format!("{}\n", json())),
            None => self.table.push(row()),
        }
    }

    /// Adds a line for people alone: programs have its sense in the JSON of another one.
    pub(crate) fn remark<const N: usize>(&mut self, row: [String; N]) {
        if self.json.is_none() {
            self.table.push(row);
        }
    }

    /// Writes the page; says whether somebody reads on.
    ///
    /// # Errors
    ///
    /// As [`Output::write`].
    pub(crate) fn write(self, output: &Output) -> Result<Reader, Failure> {
        match self.json {
            Some(lines) => output.write_as_it_is(&lines),
            None => output.write_part(&self.table.shown(output)),
        }
    }
}

/// Lines of columns, aligned over a whole page.
#[derive(Debug)]
struct Table {
    heads: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No lines yet, with the names of the columns.
    fn new(heads: &'static [&'static str]) -> Self {
        Self { heads, rows: Vec::new() }
    }

    /// Adds a line. Columns beyond those that have a name are left out.
    fn push(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<_> = cells.into_iter().take(self.heads.len()).collect();
        row.resize(self.heads.len(), String::new());
        self.rows.push(row);
    }

    /// The lines, with the names above them where a person looks on: in a pipe, every line is one of the table.
    fn shown(&self, output: &Output) -> String {
        let heads = output.is_terminal().then(|| self.heads.iter().map(|head| (*head).to_owned()).collect());
        let rows: Vec<Vec<String>> = heads.into_iter().chain(self.rows.iter().cloned()).collect();
        let mut widths = vec![0; self.heads.len()];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count().min(CELL_CHARS_MAX));
            }
        }
        // The last column takes what there is.
        if let Some(last) = widths.last_mut() {
            *last = usize::MAX;
        }
        let chars_max = width_of(output);
        rows.iter().map(|row| line(row, &widths, chars_max)).collect()
    }
}

/// How wide a line may be: a terminal breaks lines, and somebody who looks on wants to see all.
pub(crate) fn width_of(output: &Output) -> usize {
    if output.is_terminal() { TERMINAL_CHARS_MAX } else { WIDTH_CHARS_MAX }
}

fn line(row: &[String], widths: &[usize], chars_max: usize) -> String {
    let mut cells = row.iter().zip(widths);
    // What a line is found by is never cut: somebody may want to give it to the next command.
    let first = cells.next().map_or_else(String::new, |(cell, width)| {
        let cell = plain(cell, usize::MAX);
        format!("{cell:width$}")
    });
    let mut rest = String::new();
    for (cell, width) in cells {
        let cell = plain(cell, *width);
        let padded = if *width == usize::MAX { 0 } else { *width };
        rest.push_str(&format!("  {cell:padded$}"));
    }
    let room = chars_max.saturating_sub(first.chars().count());
    let rest = if room > REST_CHARS_MIN { plain(rest.trim_end(), room) } else { String::new() };
    format!("{}\n", format!("{first}{rest}").trim_end())
}

/// The width of a line.
pub(crate) const WIDTH_CHARS_MAX: usize = 80;
/// The same where a terminal breaks it.
const TERMINAL_CHARS_MAX: usize = 400;
/// What is left of a line must be wider to show anything of the other columns.
const REST_CHARS_MIN: usize = 3;
/// The width of a column but the last: that of the id of an event.
const CELL_CHARS_MAX: usize = 36;

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[&str; 3]]) -> String {
        let mut table = Table::new(&["ID", "NODE", "WHAT"]);
        rows.iter().for_each(|row| table.push(row.map(str::to_owned)));
        table.shown(&Output::piped())
    }

    #[test]
    fn columns_are_aligned_and_a_pipe_gets_no_names() {
        assert_eq!(table(&[["a", "orders", "x"], ["bcd", "b", ""]]), "a    orders  x\nbcd  b\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn a_person_gets_names_above_the_columns_and_all_of_the_last() {
        let mut table = Table::new(&["ID", "NODE", "WHAT"]);
        let (id, what) = ("i".repeat(36), "w".repeat(80));
        table.push([id.clone(), "n".repeat(CELL_CHARS_MAX + 1), what.clone()]);
        let shown = table.shown(&Output::terminal());
        let node = format!("{}…", "n".repeat(CELL_CHARS_MAX - 1));
        assert_eq!(shown, format!("{:36}  {:36}  WHAT\n{id}  {node}  {what}\n", "ID", "NODE"));
        assert_eq!(table.shown(&Output::piped()).trim_end().chars().count(), WIDTH_CHARS_MAX);
    }

    #[test]
    fn a_line_has_at_most_so_many_characters_and_its_first_cell_is_whole() {
        for (len, rest) in [(73, "  n  w"), (74, "  n  w"), (75, "  n …"), (76, "  n…"), (77, ""), (87, "")]
        {
            let first = "k".repeat(len);
            assert_eq!(table(&[[&first, "n", "w"]]), format!("{first}{rest}\n"));
        }
        assert_eq!(table(&[["a", "n\u{1b}\n", "w"]]), "a  n??  w\n");
    }
}

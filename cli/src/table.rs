//! Aligned columns for terminals.
//! Widths count characters; colour is added after the padding, so that it does not change the alignment.

use weft_core::text;

use crate::style::Style;

/// One cell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

/// The colour of a cell, by meaning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tone {
    /// No colour.
    #[default]
    Normal,
    /// The expected state.
    Good,
    /// A state that needs attention.
    Notice,
    /// A failure.
    Bad,
}

/// Rows below a heading.
#[derive(Debug, Clone, Default)]
pub struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Cell {
    /// A cell with a colour.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Normal }
    }
}

impl Table {
    /// An empty table with these columns.
    pub fn new(heading: &[&'static str]) -> Self {
        Self { heading: heading.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells stay empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines, without spaces at their ends. Control characters in cells are shown as `?`: a name
    /// that a peer chose must not move the cursor.
    pub fn render(&self, style: Style) -> Vec<String> {
        let shown: Vec<Vec<Cell>> = self
            .rows
            .iter()
            .map(|row| {
                let clean = |text: &str| {
                    if text.is_empty() { "-".to_owned() } else { text::clean(text).into_owned() }
                };
                row.iter().map(|cell| Cell { text: clean(&cell.text), tone: cell.tone }).collect()
            })
            .collect();
        let width = |column: usize| {
            let heading = self.heading.get(column).map_or(0, |name| name.chars().count());
            let cells = shown.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count());
            cells.max().unwrap_or(0).max(heading)
        };
        let widths: Vec<usize> = (0..self.heading.len()).map(width).collect();
        let join = |cells: Vec<(String, Tone)>| {
            let last = cells.len().saturating_sub(1);
            let mut line = String::new();
            for (index, (text, tone)) in cells.into_iter().enumerate() {
                let missing = widths.get(index).copied().unwrap_or(0).saturating_sub(text.chars().count());
                line.push_str(&match tone {
                    Tone::Normal => text,
                    Tone::Good => style.green(&text),
                    Tone::Notice => style.yellow(&text),
                    Tone::Bad => style.red(&text),
                });
                if index < last {
                    line.push_str(&" ".repeat(missing + 2));
                }
            }
            line
        };
        let heading = join(self.heading.iter().map(|name| ((*name).to_owned(), Tone::Normal)).collect());
        let mut lines = vec![style.dim(&heading)];
        lines.extend(shown.into_iter().map(|row| join(row.into_iter().map(|cell| (cell.text, cell.tone)).collect())));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters() {
        let mut table = Table::new(&["NAME", "N"]);
        table.row(["é".into(), "1".into()]);
        table.row(["longer-name".into(), Cell::toned("2", Tone::Bad)]);
        assert_eq!(table.render(Style::PLAIN), ["NAME         N", "é            1", "longer-name  2"]);
    }

    #[test]
    fn an_empty_cell_is_a_dash_and_control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(["".into()]);
        table.row(["a\x1b[2Jb\n".into()]);
        assert_eq!(table.render(Style::PLAIN), ["NAME", "-", "a?[2Jb?"]);
    }
}

//! What the audience sees: sentences, checks, and on a terminal a table below them that is drawn anew each second.
//! With `--check` only the lines of checks, each `ok - …` or `FAILED - … : reason`.

use std::{
    io::{IsTerminal as _, Write as _, stdout},
    sync::Arc,
};

use anyhow::Result;
use parking_lot::Mutex;

use crate::style::Style;

/// Prints, and counts the checks. Clones are the same stage.
#[derive(Debug, Clone)]
pub(crate) struct Stage(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    style: Style,
    /// `--check`: no sentences, no table.
    terse: bool,
    /// A terminal: the table can be drawn over.
    live: bool,
    drawn: usize,
    table: Vec<String>,
    passed: usize,
    failed: usize,
}

impl Stage {
    /// A stage on standard output.
    pub(crate) fn new(terse: bool) -> Self {
        let live = !terse && stdout().is_terminal();
        let style = Style::stdout();
        Self(Arc::new(Mutex::new(State { style, terse, live, drawn: 0, table: Vec::new(), passed: 0, failed: 0 })))
    }

    /// Whether there is a table that is drawn anew.
    pub(crate) fn live(&self) -> bool {
        self.0.lock().live
    }

    /// How text is marked.
    pub(crate) fn style(&self) -> Style {
        self.0.lock().style
    }

    /// The heading of a step.
    pub(crate) fn step(&self, title: &str) {
        self.print(false, |style| vec![String::new(), style.bold(title)]);
    }

    /// A sentence.
    pub(crate) fn say(&self, sentence: &str) {
        self.print(false, |_| sentence.lines().map(|line| format!("  {line}")).collect());
    }

    /// A line that everyone sees, with `--check` too.
    pub(crate) fn note(&self, line: &str) {
        self.print(true, |_| vec![line.to_owned()]);
    }

    /// Tells the outcome of a check and counts it. What it gives is the detail of a success.
    pub(crate) fn check(&self, what: &str, outcome: Result<String>) {
        let mut passed = true;
        self.print(true, |style| match &outcome {
            Ok(detail) if detail.is_empty() => vec![format!("{} - {what}", style.green("ok"))],
            Ok(detail) => vec![format!("{} - {what}: {detail}", style.green("ok"))],
            Err(error) => {
                passed = false;
                let reason: String = format!("{error:#}").split('\n').map(str::trim).collect::<Vec<_>>().join("; ");
                vec![format!("{} - {what}: {reason}", style.red("FAILED"))]
            }
        });
        let mut state = self.0.lock();
        if passed {
            state.passed += 1;
        } else {
            state.failed += 1;
        }
    }

    /// How many checks passed and failed so far.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.passed, state.failed)
    }

    /// Draws the table below everything else.
    pub(crate) fn table(&self, lines: Vec<String>) {
        let mut state = self.0.lock();
        state.table = lines;
        if state.live {
            let text = state.erase() + &state.draw();
            emit(&text);
        }
    }

    fn print(&self, always: bool, lines: impl FnOnce(Style) -> Vec<String>) {
        let mut state = self.0.lock();
        if state.terse && !always {
            return;
        }
        let mut text = state.erase();
        for line in lines(state.style) {
            text.push_str(&line);
            text.push('\n');
        }
        text.push_str(&state.draw());
        emit(&text);
    }
}

impl State {
    /// Moves to where the table begins and clears from there (ECMA-48 CPL and ED).
    fn erase(&mut self) -> String {
        let lines = std::mem::take(&mut self.drawn);
        if lines > 0 { format!("\x1b[{lines}F\x1b[J") } else { String::new() }
    }

    fn draw(&mut self) -> String {
        if !self.live || self.table.is_empty() {
            return String::new();
        }
        self.drawn = self.table.len() + 1;
        format!("\n{}\n", self.table.join("\n"))
    }
}

/// A terminal that went away must not stop the cleaning up.
fn emit(text: &str) {
    let mut out = stdout().lock();
    if out.write_all(text.as_bytes()).is_ok() {
        out.flush().ok();
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn checks_are_counted() {
        let stage = Stage::new(true);
        stage.check("one", Ok(String::new()));
        stage.check("two", Err(anyhow!("inner").context("outer")));
        assert_eq!(stage.counts(), (1, 1));
    }

    #[test]
    fn a_table_is_erased_by_as_many_lines_as_were_drawn() {
        let mut state =
            State { style: Style::PLAIN, terse: false, live: true, drawn: 0, table: vec![], passed: 0, failed: 0 };
        assert_eq!((state.erase(), state.draw()), (String::new(), String::new()));
        state.table = vec!["a".into(), "b".into()];
        assert_eq!(state.draw(), "\na\nb\n");
        assert_eq!(state.erase(), "\x1b[3F\x1b[J");
        assert_eq!(state.erase(), "");
    }
}

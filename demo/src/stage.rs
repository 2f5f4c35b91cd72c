//! The output: sentences, checks, and on a terminal a table below them that is redrawn each second.
//! With `--check` only the lines of checks, each `ok - …` or `FAILED - … : reason`.

use std::{
    fmt,
    io::{IsTerminal as _, Write, stdout},
    sync::Arc,
};

use anyhow::Result;
use parking_lot::Mutex;
use rustix::termios::tcgetwinsize;

use weft::style::Style;

/// Columns that the table needs.
const WIDTH: usize = 80;

/// Prints, and counts the checks. Clones are the same stage.
#[derive(Clone)]
pub(crate) struct Stage(Arc<Mutex<Terminal>>);

struct Terminal {
    out: Box<dyn Write + Send>,
    style: Style,
    /// `--check`: no sentences, no table.
    terse: bool,
    /// On a terminal that is wide enough: the table can be redrawn in place.
    live: bool,
    drawn: usize,
    table: Vec<String>,
    passed: usize,
    failed: usize,
}

impl Stage {
    /// A stage on standard output.
    pub(crate) fn new(terse: bool) -> Self {
        // Lines that are redrawn must not wrap. A terminal that does not know its width reports 0.
        let wide = tcgetwinsize(stdout()).is_ok_and(|size| size.ws_col == 0 || usize::from(size.ws_col) >= WIDTH);
        Self::to(Box::new(stdout()), Style::stdout(), terse, !terse && stdout().is_terminal() && wide)
    }

    fn to(out: Box<dyn Write + Send>, style: Style, terse: bool, live: bool) -> Self {
        let terminal = Terminal { out, style, terse, live, drawn: 0, table: Vec::new(), passed: 0, failed: 0 };
        Self(Arc::new(Mutex::new(terminal)))
    }

    /// Whether the table is shown.
    pub(crate) fn live(&self) -> bool {
        self.0.lock().live
    }

    /// The colours.
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

    /// A line that is printed with `--check` too.
    pub(crate) fn note(&self, line: &str) {
        self.print(true, |_| vec![line.to_owned()]);
    }

    /// Prints the outcome of a check and counts it. The text of a success is its detail.
    pub(crate) fn check(&self, name: &str, outcome: Result<String>) {
        let mut passed = true;
        self.print(true, |style| match &outcome {
            Ok(detail) if detail.is_empty() => vec![format!("{} - {name}", style.green("ok"))],
            Ok(detail) => vec![format!("{} - {name}: {detail}", style.green("ok"))],
            Err(error) => {
                passed = false;
                let reason: String = format!("{error:#}").split('\n').map(str::trim).collect::<Vec<_>>().join("; ");
                vec![format!("{} - {name}: {reason}", style.red("FAILED"))]
            }
        });
        let mut state = self.0.lock();
        if passed {
            state.passed += 1;
        } else {
            state.failed += 1;
        }
    }

    /// Passed and failed checks so far.
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
            state.emit(&text);
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
        state.emit(&text);
    }
}

impl Terminal {
    /// Moves to where the table begins and clears from there (ECMA-48 CPL and ED).
    fn erase(&mut self) -> String {
        let lines = std::mem::take(&mut self.drawn);
        if lines > 0 { format!("\x1b[{lines}F\x1b[J") } else { String::new() }
    }

    /// A closed terminal must not stop the clean-up.
    fn emit(&mut self, text: &str) {
        if self.out.write_all(text.as_bytes()).is_ok() {
            self.out.flush().ok();
        }
    }

    fn draw(&mut self) -> String {
        if !self.live || self.table.is_empty() {
            return String::new();
        }
        self.drawn = self.table.len() + 1;
        format!("\n{}\n", self.table.join("\n"))
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    /// The written bytes, shared by all clones.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Paper {
        fn read(&self) -> String {
            String::from_utf8(std::mem::take(&mut self.0.lock())).unwrap()
        }
    }

    #[test]
    fn checks_take_a_line_each_and_are_counted() {
        let paper = Paper::default();
        let stage = Stage::to(Box::new(paper.clone()), Style::PLAIN, true, false);
        stage.step("not printed with --check");
        stage.say("nor this");
        stage.check("one", Ok(String::new()));
        stage.check("two", Ok("2 of 2".into()));
        stage.check("three", Err(anyhow!("in\n  ner").context("outer")));
        stage.note("the end");
        assert_eq!(paper.read(), "ok - one\nok - two: 2 of 2\nFAILED - three: outer: in; ner\nthe end\n");
        assert_eq!(stage.counts(), (2, 1));
    }

    #[test]
    fn a_table_is_erased_by_as_many_lines_as_were_drawn() {
        let paper = Paper::default();
        let stage = Stage::to(Box::new(paper.clone()), Style::PLAIN, false, true);
        stage.table(vec!["a".into(), "b".into()]);
        assert_eq!(paper.read(), "\na\nb\n");
        stage.say("x");
        assert_eq!(paper.read(), "\x1b[3F\x1b[J  x\n\na\nb\n");
        stage.table(Vec::new());
        assert_eq!(paper.read(), "\x1b[3F\x1b[J");
        stage.say("y");
        assert_eq!(paper.read(), "  y\n");
    }
}

//! A terminal of a given size, as a program sees it, and what stands on its screen.

use std::fs::File;
use std::io::Read;
use std::num::NonZero;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anstyle::{Ansi256Color, Effects, RgbColor, Style};
use nix::pty::{Winsize, openpty};
use vt100::{Cell, Color, Parser};

/// Lines that have left the screen and are kept.
const SCROLLBACK: usize = 10_000;

/// A program on a terminal.
pub struct Terminal {
    child: Child,
    screen: Arc<Mutex<Parser>>,
}

impl Terminal {
    /// Starts `command` on a terminal with so many rows and columns.
    ///
    /// # Panics
    /// If the system has no terminal to give, or the program cannot be started.
    pub fn start(command: &mut Command, rows: NonZero<u16>, columns: NonZero<u16>) -> Self {
        let size = Winsize {
            ws_row: rows.get(),
            ws_col: columns.get(),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).expect("the system gives a terminal");
        let end = || Stdio::from(pty.slave.try_clone().expect("a terminal has several users"));
        let child = command
            .env("TERM", "xterm-256color")
            .env_remove("CI")
            .stdin(Stdio::null())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("the program can be started");
        // Only the program has it now, so that its end is the end of what it writes.
        drop(pty.slave);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let screen = Arc::new(Mutex::new(Parser::new(rows, columns, SCROLLBACK)));
        let shown = Arc::clone(&screen);
        let mut master = File::from(pty.master);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // A terminal that nobody writes to any more fails to be read.
            while let Ok(count @ 1..) = master.read(&mut bytes) {
                let mut screen = shown.lock().unwrap_or_else(PoisonError::into_inner);
                screen.process(&bytes[..count]);
            }
        });
        Self { child, screen }
    }

    /// The lines of the screen, without blanks at their ends.
    pub fn lines(&self) -> Vec<String> {
        let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, columns) = screen.screen().size();
        screen
            .screen()
            .rows(0, columns.get())
            .map(|row| row.trim_end().to_owned())
            .collect()
    }

    /// The screen with its colours, as escape sequences of which none moves the cursor, without what is blank at its end.
    pub fn styled(&self) -> String {
        let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        let (rows, columns) = screen.screen().size();
        let row = |row| {
            let cells = (0..columns.get()).filter_map(|column| screen.screen().cell(row, column));
            let cells: Vec<_> = cells.filter(|cell| !cell.is_wide_continuation()).collect();
            let styles = cells.chunk_by(|one, next| style(one) == style(next));
            styles.map(styled).collect::<String>()
        };
        let rows: Vec<String> = (0..rows.get()).map(row).collect();
        rows.join("\n").trim_end().to_owned()
    }

    /// Rows of the screen that go on in the next one, by their number: what happens to lines that are longer than a row.
    pub fn wrapped(&self) -> Vec<usize> {
        let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        let (rows, _) = screen.screen().size();
        let wrapped = (0..rows.get()).filter(|row| screen.screen().row_wrapped(*row));
        wrapped.map(usize::from).collect()
    }

    /// Whether anything on the screen has a colour or is bold.
    pub fn has_style(&self) -> bool {
        let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        let (rows, columns) = screen.screen().size();
        let mut cells = (0..rows.get()).flat_map(|row| (0..columns.get()).map(move |column| (row, column)));
        cells.any(|(row, column)| {
            let cell = screen.screen().cell(row, column);
            cell.is_some_and(|cell| cell.bold() || cell.fgcolor() != Color::Default)
        })
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// Neighbours of one style.
fn styled(cells: &[&Cell]) -> String {
    let text = |cell: &&Cell| if cell.has_contents() { cell.contents() } else { " " }.to_owned();
    let style = style(cells[0]);
    format!("{style}{}{style:#}", cells.iter().map(text).collect::<String>())
}

fn style(cell: &Cell) -> Style {
    let color = match cell.fgcolor() {
        Color::Default => None,
        Color::Idx(index) => Some(Ansi256Color(index).into()),
        Color::Rgb(red, green, blue) => Some(RgbColor(red, green, blue).into()),
    };
    let of = |effect, is_on| if is_on { effect } else { Effects::new() };
    let effects = of(Effects::BOLD, cell.bold()) | of(Effects::DIMMED, cell.dim());
    Style::new().fg_color(color).effects(effects)
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

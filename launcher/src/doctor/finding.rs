//! What the doctor says.

use std::fmt::Write;

use console::style;
use serde::Serialize;
use zipper_cli::hints_of;

use crate::display::wrap;

/// Where the words begin: behind the level and what it is about.
const INDENT: usize = 16;
/// Columns that words have on any terminal.
const NARROWEST: usize = 20;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Not looked at.
    Skipped,
    /// A run may go badly.
    Warning,
    /// A run would fail, surely.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What: `store`, `memory`.
    pub(super) about: &'static str,
    pub(super) level: Level,
    /// What was found.
    pub(super) found: String,
    /// What can be done about it.
    pub(super) fixes: Vec<String>,
    /// Whether it may pass without that.
    #[serde(skip)]
    pub(super) may_pass: bool,
}

impl Finding {
    pub(super) fn fine(about: &'static str, found: impl Into<String>) -> Self {
        Self::new(about, Level::Ok, found)
    }

    pub(super) fn skipped(about: &'static str, why: impl Into<String>) -> Self {
        Self::new(about, Level::Skipped, why)
    }

    pub(super) fn warning(about: &'static str, found: impl Into<String>) -> Self {
        Self::new(about, Level::Warning, found)
    }

    pub(super) fn failure(about: &'static str, found: impl Into<String>) -> Self {
        Self::new(about, Level::Failure, found)
    }

    fn new(about: &'static str, level: Level, found: impl Into<String>) -> Self {
        Self {
            about,
            level,
            found: found.into(),
            fixes: Vec::new(),
            may_pass: false,
        }
    }

    /// Makes it no more than a warning: the run's machines are others than this one.
    pub(super) fn of_this_machine_only(mut self) -> Self {
        if self.level == Level::Failure {
            self.level = Level::Warning;
            self.found = format!("here at least: {}", self.found);
        }
        self
    }

    /// Adds something that can be done.
    pub(super) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fixes.push(fix.into());
        self
    }

    /// Adds the hints that an error carries.
    pub(super) fn fixes_of(mut self, error: &anyhow::Error) -> Self {
        self.fixes.extend_from_slice(hints_of(error));
        self
    }

    /// For people, in lines of at most `width` columns where that is possible.
    pub(super) fn render(&self, width: usize) -> String {
        let level = match self.level {
            Level::Ok => style("ok  ").green(),
            Level::Skipped => style("skip").dim(),
            Level::Warning => style("warn").yellow(),
            Level::Failure => style("FAIL").red().bold(),
        };
        let indented = |text: &str| {
            let room = width.saturating_sub(INDENT).max(NARROWEST);
            wrap(text, room).replace('\n', &format!("\n{:INDENT$}", ""))
        };
        let mut text = format!("{level}  {:<8}  {}", self.about, indented(&self.found));
        for fix in &self.fixes {
            let _ = write!(text, "\n{:INDENT$}", "");
            text.push_str(&indented(&format!("fix: {fix}")));
        }
        text
    }
}

/// The last line: what all of it means.
pub(super) fn conclusion(findings: &[Finding]) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let warnings = match count(Level::Warning) {
        0 => String::new(),
        1 => "1 warning".to_owned(),
        warnings => format!("{warnings} warnings"),
    };
    match (count(Level::Failure), warnings.as_str()) {
        (0, "") => style("Nothing is wrong.").green().to_string(),
        (0, warnings) => format!("Nothing would make a run fail; {warnings}."),
        (failures, warnings) => {
            let things = if failures == 1 { "thing" } else { "things" };
            let and = if warnings.is_empty() { "" } else { "; " };
            style(format!(
                "{failures} {things} would make a run fail{and}{warnings}."
            ))
            .red()
            .to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_fit_the_terminal() {
        let finding = Finding::warning("slurm", "its controller does not answer, and munge signs nothing")
            .fix("start munge; all machines need the same key");
        let text = console::strip_ansi_codes(&finding.render(40)).into_owned();
        assert_eq!(
            text,
            "warn  slurm     its controller does not\n                answer, and munge signs\n                nothing\n\
             \x20               fix: start munge; all\n                machines need the same\n                key"
        );
        assert_eq!(finding.render(usize::MAX).lines().count(), 2);
    }

    #[test]
    fn the_last_line_counts() {
        let (ok, warning) = (Finding::fine("a", ""), Finding::warning("b", ""));
        let failure = Finding::failure("c", "");
        for (findings, line) in [
            (vec![ok.clone()], "Nothing is wrong."),
            (
                vec![ok, warning.clone()],
                "Nothing would make a run fail; 1 warning.",
            ),
            (vec![failure.clone()], "1 thing would make a run fail."),
            (
                vec![failure.clone(), failure, warning.clone(), warning],
                "2 things would make a run fail; 2 warnings.",
            ),
        ] {
            assert_eq!(console::strip_ansi_codes(&conclusion(&findings)), line);
        }
    }
}

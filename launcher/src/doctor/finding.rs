//! What the doctor says.

use console::style;
use serde::Serialize;
use zipper_cli::UserError;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
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
        let user = error.chain().find_map(|cause| cause.downcast_ref::<UserError>());
        self.fixes
            .extend(user.into_iter().flat_map(|user| user.hints().iter().cloned()));
        self
    }

    /// For people.
    pub(super) fn render(&self) -> String {
        let level = match self.level {
            Level::Ok => style("ok  ").green(),
            Level::Warning => style("warn").yellow(),
            Level::Failure => style("FAIL").red().bold(),
        };
        let found = self.found.replace('\n', "\n                ");
        let mut text = format!("{level}  {:<8}  {found}", self.about);
        for fix in &self.fixes {
            text.push_str("\n                fix: ");
            text.push_str(fix);
        }
        text
    }
}

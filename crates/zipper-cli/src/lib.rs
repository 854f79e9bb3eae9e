//! What the programs share on the command line: exit codes, how errors and hints are printed, logging, progress, tables, what they
//! say about themselves.

mod about;
mod logs;
mod progress;
mod table;

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::process::{ExitCode, Termination};

pub use about::About;
pub use logs::{
    Around, LOG_FORMAT, LogFormat, describe_process, init_tracing, init_tracing_as, log_format, write_logs_by,
};
pub use progress::Progress;
pub use table::table;
use zipper_types::Advised;

/// How a program ends; scripts and Slurm rely on the numbers (docs/alarms.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Everything was done.
    Done,
    /// The run failed; trying again may help.
    Failed,
    /// Usage, configuration or input are at fault; trying again will not help.
    Usage,
    /// Stopped with a checkpoint, to be resumed.
    Stopped,
}

impl ExitStatus {
    /// The process exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Stopped => 75,
        }
    }
}

impl Termination for ExitStatus {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

/// An error that its user can mend: exit code 2, or 1 if it may also pass by itself; with advice.
#[derive(Debug)]
pub struct UserError {
    message: String,
    hints: Vec<String>,
    may_pass: bool,
}

impl UserError {
    /// An error that says what is wrong.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hints: Vec::new(),
            may_pass: false,
        }
    }

    /// An error of a library, in its own words and those of its causes.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        Self::new(in_words(error))
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        self.hint_if(Some(hint))
    }

    /// Adds what to do about it, if anything is known.
    #[must_use]
    pub fn hint_if(mut self, hint: Option<impl Into<String>>) -> Self {
        self.hints.extend(hint.map(Into::into));
        self
    }

    /// Trying again may help, too.
    #[must_use]
    pub fn may_pass(self) -> Self {
        self.may_pass_if(true)
    }

    /// Whether trying again may help, too.
    #[must_use]
    pub fn may_pass_if(mut self, may_pass: bool) -> Self {
        self.may_pass = may_pass;
        self
    }

    /// What to do about it.
    #[must_use]
    pub fn hints(&self) -> &[String] {
        &self.hints
    }
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for UserError {}

/// What cannot be used, such as the store of a run: what trying again cannot help is the user's to mend.
#[expect(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
pub fn unusable(error: impl Advised + 'static) -> anyhow::Error {
    UserError::of(&error)
        .may_pass_if(error.is_retryable())
        .hint_if(error.advice())
        .into()
}

/// Ends a program: prints what went wrong, if anything did, and gives the exit status.
pub fn finish(result: anyhow::Result<ExitStatus>) -> ExitStatus {
    result.unwrap_or_else(|error| report(&error, &mut std::io::stderr().lock()))
}

/// The exit status of an error: [`ExitStatus::Usage`] if trying again cannot help, else [`ExitStatus::Failed`].
pub fn status_of(error: &anyhow::Error) -> ExitStatus {
    match user_error(error) {
        Some(user) if !user.may_pass => ExitStatus::Usage,
        _ => ExitStatus::Failed,
    }
}

/// What to do about an error, as far as it says.
pub fn hints_of(error: &anyhow::Error) -> &[String] {
    user_error(error).map_or(&[], UserError::hints)
}

fn user_error(error: &anyhow::Error) -> Option<&UserError> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

/// Prints `error:` with the whole chain, an empty line and `hint:` lines, and gives the exit status that fits.
pub fn report(error: &anyhow::Error, to: &mut impl Write) -> ExitStatus {
    // Nothing can be done if stderr is gone; the exit status still tells.
    let _ = writeln!(to, "error: {}", in_words(error.as_ref()));
    for (index, hint) in hints_of(error).iter().enumerate() {
        if index == 0 {
            let _ = writeln!(to);
        }
        let _ = writeln!(to, "hint: {hint}");
    }
    status_of(error)
}

/// An error with what caused it, each cause once: many errors end in the words of their source.
pub fn in_words(error: &(dyn Error + 'static)) -> String {
    let mut causes: Vec<String> = Vec::new();
    for cause in anyhow::Chain::new(error).map(ToString::to_string) {
        if causes.last().is_none_or(|said| !said.ends_with(&cause)) {
            causes.push(cause);
        }
    }
    causes.join(": ")
}

/// Calls `then` when the process that started this one is gone: our stdin is a pipe that it never writes to, so the pipe's end
/// is its end. No process of a run outlives the one that started it.
pub fn when_parent_is_gone(then: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        // Whether the pipe ended or broke, nobody holds the other end.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        then();
    });
}

/// Lets the kernel end this process at once when the one that started it is gone: also where this one is stopped and could not see
/// the end of its pipe. For processes that have nothing to tidy up.
///
/// # Errors
/// If the system refuses.
pub fn die_with_parent() -> std::io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(Into::into)
}

/// The name of this machine, for messages.
pub fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn user_errors_are_usage_and_carry_their_hints() {
        let error = anyhow::Error::new(UserError::new("no such key").hint("did you mean `lr`?"))
            .context("cannot read `run.yaml`");
        let mut printed = Vec::new();
        assert_eq!(report(&error, &mut printed), ExitStatus::Usage);
        let printed = String::from_utf8(printed).unwrap();
        assert_eq!(
            printed,
            "error: cannot read `run.yaml`: no such key\n\nhint: did you mean `lr`?\n"
        );
    }

    #[test]
    fn what_may_pass_is_a_failure_with_hints() {
        let error = UserError::new("the store is away").hint("start it").may_pass();
        let mut printed = Vec::new();
        assert_eq!(report(&error.into(), &mut printed), ExitStatus::Failed);
        let printed = String::from_utf8(printed).unwrap();
        assert_eq!(printed, "error: the store is away\n\nhint: start it\n");
    }

    /// An error that ends in the words of its source, as many do.
    #[derive(Debug)]
    struct Unreadable(std::io::Error);

    impl fmt::Display for Unreadable {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "cannot read `a.wav`: {}", self.0)
        }
    }

    impl std::error::Error for Unreadable {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn what_an_error_says_of_its_source_is_said_once() {
        let error =
            anyhow::Error::new(Unreadable(std::io::Error::other("disk on fire"))).context("utterance `a`");
        assert_eq!(
            in_words(error.as_ref()),
            "utterance `a`: cannot read `a.wav`: disk on fire"
        );
    }

    #[test]
    fn other_errors_are_failures() {
        let error = std::fs::read("/nonexistent")
            .context("cannot read it")
            .unwrap_err();
        let mut printed = Vec::new();
        assert_eq!(report(&error, &mut printed), ExitStatus::Failed);
        assert!(!String::from_utf8(printed).unwrap().contains("hint:"));
    }
}

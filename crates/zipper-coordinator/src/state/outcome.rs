//! How tasks, workers and runs end.

use std::fmt;

use zipper_types::{Generation, Step, WorkerId};

use super::Collective;
use crate::schedule::Planned;

/// Exit code of a worker whose configuration or input are at fault.
const CONFIG_EXIT_CODE: i32 = 2;

/// How a rank's part of a task ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It trained up to a step.
    Trained {
        /// The step.
        reached: Step,
    },
    /// It decoded its utterances.
    Evaluated(Vec<Decoded>),
    /// It was asked to stop, and did after a step.
    Stopped {
        /// The step.
        reached: Step,
    },
    /// It could not.
    Failed {
        /// Whether configuration or input are at fault.
        config: bool,
        /// What went wrong.
        message: String,
        /// Whether a collective operation failed, so that another worker is probably the cause.
        collective: bool,
        /// Which one.
        state: Option<Collective>,
    },
}

impl Outcome {
    /// Whether a worker that was given `planned` can end it so.
    pub(super) fn fits(&self, planned: &Planned) -> bool {
        match (planned, self) {
            (Planned::Train { until, .. }, Self::Trained { reached }) => reached == until,
            (Planned::Train { from, until, .. }, Self::Stopped { reached }) => {
                (from..=until).contains(&reached)
            }
            (Planned::Evaluate { .. }, Self::Evaluated(_) | Self::Stopped { .. }) => true,
            _ => false,
        }
    }

    pub(super) fn reached(&self) -> Option<Step> {
        match self {
            Self::Trained { reached } | Self::Stopped { reached } => Some(*reached),
            Self::Evaluated(_) | Self::Failed { .. } => None,
        }
    }

    pub(super) fn into_utterances(self) -> Option<Vec<Decoded>> {
        match self {
            Self::Evaluated(utterances) => Some(utterances),
            _ => None,
        }
    }
}

/// A decoded utterance.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// Its id.
    pub id: String,
    /// Its language.
    pub lang: String,
    /// What was said.
    pub reference: String,
    /// What the model wrote.
    pub hypothesis: String,
    /// Negative log-likelihood of the reference in nats, and its tokens; only for validation.
    pub nll: Option<(f64, u64)>,
}

/// A worker process that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its launch slot.
    pub worker: WorkerId,
    /// Its exit code, unless a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal.
    pub signal: Option<i32>,
    /// The end of its log.
    pub last_lines: Vec<String>,
}

impl Ended {
    pub(super) fn is_config(&self) -> bool {
        self.exit_code == Some(CONFIG_EXIT_CODE)
    }

    /// `was ended by signal 9`.
    pub(super) fn how(&self) -> String {
        match (self.exit_code, self.signal) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        }
    }

    /// The end of its log, on lines of its own; empty if there is none.
    pub(super) fn end_of_log(&self) -> String {
        if self.last_lines.is_empty() {
            return String::new();
        }
        format!(
            "\nthe end of the log of `{}`:\n{}",
            self.worker,
            self.last_lines.join("\n")
        )
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was done.
    Done,
    /// It failed; trying again may help.
    Failed(String),
    /// Configuration or input are at fault.
    Config(String),
    /// It was stopped and can be resumed.
    Stopped(String),
}

/// Why a worker may not say what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It never joined.
    Unknown(WorkerId),
    /// It was replaced, or speaks of another generation.
    Stale {
        /// The worker.
        worker: WorkerId,
        /// The generation that counts.
        current: Generation,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(worker) => write!(f, "worker `{worker}` has not joined this run"),
            Self::Stale { worker, current } => {
                write!(
                    f,
                    "worker `{worker}` is not a member of generation {current}, the current one"
                )
            }
        }
    }
}

//! How tasks, workers and runs end.

use serde::{Deserialize, Serialize};
use zipper_cli::ExitStatus;
use zipper_types::{Generation, Incarnation, Step, WorkerId};

use super::Collective;
use crate::schedule::Planned;

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
    /// The ranks left after a step, because others wait to take part.
    Yielded {
        /// The step.
        reached: Step,
    },
    /// It wrote its part of a checkpoint, or will.
    Saved,
}

/// A worker that cannot go on as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Its launch slot.
    pub worker: WorkerId,
    /// Its process lifetime.
    pub incarnation: Incarnation,
    /// The generation that it believes in.
    pub generation: Option<Generation>,
    /// Configuration or input are at fault.
    pub config: bool,
    /// The run cannot go on, however often it is tried.
    pub fatal: bool,
    /// What went wrong.
    pub message: String,
    /// A collective operation failed, so that another worker is probably the cause.
    pub collective: Option<Collective>,
}

impl Outcome {
    /// Whether a worker that was given `planned` can end it so.
    pub(super) fn fits(&self, planned: &Planned) -> bool {
        match (planned, self) {
            (Planned::Train { until, .. }, Self::Trained { reached }) => reached == until,
            (Planned::Train { from, until, .. }, Self::Stopped { reached } | Self::Yielded { reached }) => {
                (from..=until).contains(&reached)
            }
            (Planned::Evaluate { .. }, Self::Evaluated(_) | Self::Stopped { .. })
            | (Planned::Save { .. }, Self::Saved) => true,
            _ => false,
        }
    }

    pub(super) fn reached(&self) -> Option<Step> {
        match self {
            Self::Trained { reached } | Self::Stopped { reached } | Self::Yielded { reached } => {
                Some(*reached)
            }
            Self::Evaluated(_) | Self::Saved => None,
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
    /// Its node.
    pub node: u32,
    /// Its launch slot.
    pub worker: WorkerId,
    /// Its process lifetime.
    pub incarnation: Incarnation,
    /// Its exit code, unless a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal.
    pub signal: Option<i32>,
    /// The end of its log.
    pub last_lines: Vec<String>,
}

impl Ended {
    /// Whether its configuration or input are at fault.
    pub(super) fn is_config(&self) -> bool {
        self.exit_code == Some(i32::from(ExitStatus::Usage.code()))
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "snake_case")]
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

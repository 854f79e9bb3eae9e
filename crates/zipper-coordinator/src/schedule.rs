//! What a run does, as a list: a pure function of its configuration and of where it resumes.

use serde::{Deserialize, Serialize};
use zipper_config::RunConfig;
use zipper_plan::StageSchedule;
use zipper_types::{Stage, Step};

/// Something that all ranks do together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Planned {
    /// Train up to a step.
    Train {
        /// The stage of its steps.
        stage: Stage,
        /// Completed steps before.
        from: Step,
        /// Completed steps after.
        until: Step,
        /// Whether it ends a stage, and so with a checkpoint.
        ends_stage: bool,
    },
    /// Write a checkpoint of the state as it is.
    Save {
        /// The stage of its last step.
        stage: Stage,
        /// Completed steps.
        step: Step,
    },
    /// Decode a set of utterances.
    Evaluate {
        /// The set.
        set: EvaluationSet,
        /// Whether the speech is silenced: the no-audio control.
        silenced: bool,
        /// Completed steps of the model.
        step: Step,
    },
}

/// What is decoded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationSet {
    /// The validation manifests.
    Validation,
    /// A test set by name.
    Test(String),
}

impl EvaluationSet {
    /// Its name in file names and messages.
    pub fn name(&self) -> &str {
        match self {
            Self::Validation => "validation",
            Self::Test(name) => name,
        }
    }
}

/// The stages of a configuration.
pub fn stages(config: &RunConfig) -> StageSchedule {
    StageSchedule {
        align_steps: config.training.align.steps,
        zipper_steps: config.training.zipper.steps,
        validate_every: if config.data.validation.is_empty() {
            0
        } else {
            config.evaluation.every_steps
        },
    }
}

/// Everything that is left to do when `resume` steps are completed, in order; also what may have been done at that step.
pub fn tasks(config: &RunConfig, resume: Step) -> Vec<Planned> {
    let stages = stages(config);
    let tests = |silenced: bool, step: Step| {
        config.evaluation.tests.iter().map(move |test| Planned::Evaluate {
            set: EvaluationSet::Test(test.name.clone()),
            silenced,
            step,
        })
    };
    let mut tasks = Vec::new();
    if resume == Step(0) && config.evaluation.untrained {
        tasks.extend(tests(false, Step(0)));
    }
    let validates = |step: Step| Planned::Evaluate {
        set: EvaluationSet::Validation,
        silenced: false,
        step,
    };
    let has_validation = !config.data.validation.is_empty();
    // The run may have been stopped or lost between a pause and its validation.
    let paused = resume.0 > 0 && stages.next_pause(Step(resume.0 - 1)) == Some(resume);
    if has_validation && paused {
        tasks.push(validates(resume));
    }
    let mut at = resume;
    while let (Some(stage), Some(until)) = (stages.stage_after(at), stages.next_pause(at)) {
        tasks.push(Planned::Train {
            stage,
            from: at,
            until,
            ends_stage: stages.is_stage_end(until),
        });
        if has_validation {
            tasks.push(validates(until));
        }
        at = until;
    }
    tasks.extend(tests(false, at));
    if config.evaluation.no_audio_control {
        tasks.extend(tests(true, at));
    }
    tasks
}

/// Whether the ranks write a checkpoint when they come to `step`.
pub fn is_checkpoint(config: &RunConfig, step: Step) -> bool {
    let every = config.checkpoint.every_steps;
    (every > 0 && step.0.is_multiple_of(every)) || stages(config).is_stage_end(step)
}

/// The steps in `from + 1..=reached` after which a checkpoint is written.
pub fn checkpoints(config: &RunConfig, from: Step, reached: Step, at_end: bool) -> Vec<Step> {
    let every = config.checkpoint.every_steps;
    (from.0 + 1..=reached.0)
        .filter(|&step| (every > 0 && step.is_multiple_of(every)) || (at_end && step == reached.0))
        .map(Step)
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Checkpoints every 2 steps, unless `more` says otherwise.
    pub(crate) fn config(more: &str) -> RunConfig {
        let checkpoint = if more.contains("checkpoint:") {
            ""
        } else {
            "checkpoint: {every_steps: 2}"
        };
        let yaml = format!(
            "
name: tiny
model: {{encoder: {{path: w}}, llm: {{path: q}}}}
data: {{languages: [en, de], train: [train.jsonl], validation: [validation.jsonl]}}
training:
  align: {{steps: 5}}
  zipper: {{steps: 4}}
  batch_audio_seconds: 8
evaluation:
  tests: [{{name: t, manifest: t.jsonl}}]
  untrained: true
  no_audio_control: true
{more}
{checkpoint}"
        );
        zipper_config::from_str(&yaml, "test", &[]).expect("a valid configuration")
    }

    fn short(tasks: &[Planned]) -> Vec<String> {
        let words = tasks.iter().map(|task| match task {
            Planned::Train {
                stage,
                from,
                until,
                ends_stage,
            } => {
                format!("{stage} {from}-{until}{}", if *ends_stage { "!" } else { "" })
            }
            Planned::Save { step, .. } => format!("save@{step}"),
            Planned::Evaluate { set, silenced, step } => {
                format!(
                    "{}@{step}{}",
                    set.name(),
                    if *silenced { " silenced" } else { "" }
                )
            }
        });
        words.collect()
    }

    #[test]
    fn a_run_from_scratch_does_everything_in_order() {
        assert_eq!(
            short(&tasks(&config(""), Step(0))),
            [
                "t@0",
                "align 0-5!",
                "validation@5",
                "zipper 5-9!",
                "validation@9",
                "t@9",
                "t@9 silenced"
            ]
        );
    }

    #[test]
    fn a_resumed_run_does_what_is_left() {
        let left = short(&tasks(&config("  every_steps: 2"), Step(6)));
        assert_eq!(
            left,
            [
                "validation@6",
                "zipper 6-8",
                "validation@8",
                "zipper 8-9!",
                "validation@9",
                "t@9",
                "t@9 silenced"
            ]
        );
        assert_eq!(
            short(&tasks(&config(""), Step(9))),
            ["validation@9", "t@9", "t@9 silenced"]
        );
        assert_eq!(short(&tasks(&config(""), Step(8)))[0], "zipper 8-9!");
    }

    #[test]
    fn checkpoints_are_those_that_workers_write() {
        let config = config("");
        assert_eq!(
            checkpoints(&config, Step(0), Step(5), true),
            [Step(2), Step(4), Step(5)]
        );
        assert_eq!(checkpoints(&config, Step(5), Step(7), false), [Step(6)]);
    }
}

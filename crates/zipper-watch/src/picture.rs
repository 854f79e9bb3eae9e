//! What is going on in a run, as people are shown it: the page, `zipper-launch status` and the progress display all show this.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zipper_config::RunConfig;
use zipper_plan::StageSchedule;
use zipper_types::{Stage, Step};

use crate::gates::Gates;

/// Lines of the timeline that are kept: the newest.
const LONGEST_TIMELINE: usize = 400;
/// Checkpoints that are shown: the newest.
const MOST_CHECKPOINTS: usize = 100;
/// Weight of the newest step in the smoothed seconds of a step.
const SMOOTHING: f64 = 0.1;

/// The picture of a run.
///
/// It is also written to the run's store every few seconds, so that it can be shown where no coordinator runs any more.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Picture {
    /// What is fixed about the run.
    pub run: Facts,
    /// What it does now.
    pub phase: Phase,
    /// How it ended, in words; or who is waited for.
    pub detail: String,
    /// When this was put together, in RFC 3339.
    pub written: String,
    /// Which coordinator's, by its claim on the run, and since when it has it.
    pub coordinator: Coordinator,
    /// Completed steps, over both stages.
    pub step: u64,
    /// The stage of the step that is made.
    pub stage: Option<Stage>,
    /// The newest logged step.
    pub latest: Option<Latest>,
    /// Smoothed wall-clock seconds of a step.
    pub seconds_per_step: Option<f64>,
    /// Seconds that the steps that are left will take, evaluations not counted.
    pub eta_seconds: Option<f64>,
    /// The newest generation, and its ranks.
    pub generation: u64,
    /// Ranks of the newest generation.
    pub world_size: u32,
    /// Workers by what they do: `training`, `ready`, `loading`, `leaving`.
    pub workers: BTreeMap<String, u32>,
    /// Nodes by how they are: `healthy`, `silent`, `left_out`, `missing`.
    pub nodes: BTreeMap<String, u32>,
    /// Connections that this coordinator did not take in, by the reason.
    pub refused: BTreeMap<String, u64>,
    /// Worker processes; of very many those that need attention first.
    pub members: Vec<Member>,
    /// Where the banks are, in the order of the configuration's languages.
    pub banks: Vec<Bank>,
    /// Checkpoints that were published, oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// Evaluations, oldest first.
    pub evaluations: Vec<Evaluation>,
    /// What needs a person now.
    pub alarms: Vec<Alarm>,
    /// Where the time went, over all launches.
    pub times: Times,
    /// The part of it that belongs to earlier launches.
    pub times_before: Times,
    /// What happened, oldest first.
    pub timeline: Vec<Happening>,
    /// Generations that left flight records.
    pub flights: Vec<u64>,
}

/// What is fixed about a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// The adapters' variant.
    pub variant: String,
    /// Its languages, in the order of the configuration.
    pub languages: Vec<String>,
    /// Steps of stage 1.
    pub align_steps: u64,
    /// Steps of stage 2.
    pub zipper_steps: u64,
}

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Workers start and load their models.
    #[default]
    Starting,
    /// Steps are made.
    Training,
    /// A set is decoded.
    Evaluating,
    /// A worker was lost, and training has not gone on yet.
    Recovering,
    /// Everything was done.
    Done,
    /// It was stopped and can be resumed.
    Stopped,
    /// It failed.
    Failed,
    /// No coordinator has the run, and none said how it ended.
    Abandoned,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Training,
        Self::Evaluating,
        Self::Recovering,
        Self::Done,
        Self::Stopped,
        Self::Failed,
        Self::Abandoned,
    ];

    /// Its name in documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Training => "training",
            Self::Evaluating => "evaluating",
            Self::Recovering => "recovering",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
        }
    }

    /// Whether the run is over.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Stopped | Self::Failed | Self::Abandoned)
    }
}

/// A coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Coordinator {
    /// The number of its claim on the run.
    pub epoch: u64,
    /// When it began.
    pub since: String,
    /// Where it serves the status page, if it does: `http://127.0.0.1:41234/`.
    pub page: Option<String>,
}

/// A logged step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Latest {
    /// Its number.
    pub step: u64,
    /// Nats per target token of the global batch; nothing if that is not a number.
    pub loss: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping; nothing if that is not a number.
    pub grad_norm: Option<f64>,
    /// Seconds of audio trained on in a second.
    pub audio_per_second: f64,
    /// Target tokens trained on in a second.
    pub tokens_per_second: f64,
    /// Share of the step in which a rank only waited for collectives, on average.
    pub comm_share: f64,
    /// The newest loss of each language: of an earlier step where it is not in this one's batch.
    pub by_language: BTreeMap<String, f64>,
    /// The update was left out because a gradient was not finite or the loss a spike.
    pub skipped: bool,
    /// What the router decides; nothing where there is none.
    pub gates: Option<Gates>,
}

/// A worker process.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its launch slot.
    pub worker: String,
    /// Its rank in the newest generation.
    pub rank: Option<u32>,
    /// Its node.
    pub node: u32,
    /// Its machine.
    pub hostname: String,
    /// `training`, `ready`, `loading` or `leaving`.
    pub state: String,
    /// Its last completed step.
    pub step: u64,
    /// Seconds since it was last heard of.
    pub heard_seconds: f64,
    /// What it does, in its own words.
    pub doing: String,
}

/// The bank of a language, and the consecutive ranks that own it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Bank {
    /// The language.
    pub language: String,
    /// The first owner.
    pub first_rank: u32,
    /// The last one.
    pub last_rank: u32,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Checkpoint {
    /// Completed steps.
    pub step: u64,
    /// When it was published.
    pub at: String,
}

/// An evaluation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Evaluation {
    /// `validation` or a test set's name, with `, silenced` or `, untrained` where it is so.
    pub name: String,
    /// Completed steps of the model.
    pub step: u64,
    /// Word error rate over all languages.
    pub wer: f64,
    /// Character error rate.
    pub cer: f64,
    /// Nats per token; only for validation.
    pub loss: Option<f64>,
    /// When it was written down.
    pub at: String,
}

/// Something that needs a person while training goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Alarm {
    /// `object_store`, `node_left_out` or `straggler`.
    pub kind: String,
    /// What.
    pub message: String,
    /// Since when.
    pub since: String,
}

/// Where the wall-clock time went.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// Seconds with a coordinator.
    pub total_seconds: f64,
    /// Seconds of steps that counted, and of evaluations.
    pub productive_seconds: f64,
    /// Lost seconds by cause.
    pub lost_seconds: BTreeMap<String, f64>,
    /// Generations that were broken.
    pub losses: u64,
    /// Steps that were made again.
    pub repeated_steps: u64,
}

impl Times {
    /// The share of the time that was effective, 0 to 1; nothing before there was any.
    pub fn effective(&self) -> Option<f64> {
        (self.total_seconds > 0.0).then(|| self.productive_seconds / self.total_seconds)
    }

    /// These and those of another launch.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut lost_seconds = self.lost_seconds.clone();
        for (cause, seconds) in &other.lost_seconds {
            *lost_seconds.entry(cause.clone()).or_default() += seconds;
        }
        Self {
            total_seconds: self.total_seconds + other.total_seconds,
            productive_seconds: self.productive_seconds + other.productive_seconds,
            lost_seconds,
            losses: self.losses + other.losses,
            repeated_steps: self.repeated_steps + other.repeated_steps,
        }
    }
}

/// A line of the timeline.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Happening {
    /// When, in RFC 3339.
    pub at: String,
    /// What kind of thing: `generation`, `broken`, `recovered`, `alarm`, ...
    pub kind: String,
    /// What happened, for people.
    pub text: String,
    /// Completed steps at that time, where they say something.
    pub step: Option<u64>,
    /// The generation that it is about.
    pub generation: Option<u64>,
}

/// Numbers that are none are left out of documents: JSON has no word for them.
pub(crate) fn finite(number: f64) -> Option<f64> {
    number.is_finite().then_some(number)
}

impl Picture {
    /// A run of which nothing is known but its configuration.
    pub fn of(config: &RunConfig, url: &str) -> Self {
        Self {
            run: Facts {
                name: config.name.clone(),
                url: url.to_owned(),
                variant: config.adapter.variant.name().to_owned(),
                languages: config.data.languages.clone(),
                align_steps: config.training.align.steps,
                zipper_steps: config.training.zipper.steps,
            },
            ..Self::default()
        }
    }

    /// The stages.
    pub fn stages(&self) -> StageSchedule {
        StageSchedule {
            align_steps: self.run.align_steps,
            zipper_steps: self.run.zipper_steps,
            validate_every: 0,
        }
    }

    /// The last step of the run.
    pub fn last_step(&self) -> u64 {
        self.stages().last_step().0
    }

    /// Adds a line to the timeline, in its place by time; a line that is there is not added again.
    pub fn happened(&mut self, happening: Happening) {
        let later = self.timeline.iter().rev();
        let later = later.take_while(|other| other.at > happening.at).count();
        let place = self.timeline.len() - later;
        let same = self.timeline[..place].iter().rev();
        if same
            .take_while(|other| other.at == happening.at)
            .any(|other| *other == happening)
        {
            return;
        }
        self.timeline.insert(place, happening);
        let surplus = self.timeline.len().saturating_sub(LONGEST_TIMELINE);
        self.timeline.drain(..surplus);
    }

    /// Adds a published checkpoint.
    pub fn published(&mut self, step: u64, at: &str) {
        self.checkpoints.retain(|checkpoint| checkpoint.step != step);
        let place = self
            .checkpoints
            .partition_point(|checkpoint| checkpoint.step < step);
        let checkpoint = Checkpoint {
            step,
            at: at.to_owned(),
        };
        self.checkpoints.insert(place, checkpoint);
        let surplus = self.checkpoints.len().saturating_sub(MOST_CHECKPOINTS);
        self.checkpoints.drain(..surplus);
    }

    /// The model has completed `step`.
    pub fn reached(&mut self, step: u64) {
        self.step = step;
        self.stage = self.stages().stage_after(Step(step)).or(self.stage);
        self.estimate();
    }

    /// A step took this long.
    pub fn took(&mut self, seconds: f64) {
        let smoothed = self
            .seconds_per_step
            .map_or(seconds, |before| before + SMOOTHING * (seconds - before));
        self.seconds_per_step = Some(smoothed);
        self.estimate();
    }

    fn estimate(&mut self) {
        let left = self.last_step().saturating_sub(self.step);
        self.eta_seconds = self
            .seconds_per_step
            .filter(|_| !self.phase.is_over())
            .map(|seconds| seconds * left as f64);
    }

    /// The run is over, in this way.
    pub fn ended(&mut self, phase: Phase, reason: &str) {
        self.phase = phase;
        reason.clone_into(&mut self.detail);
        self.eta_seconds = None;
        self.alarms.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happening(at: &str, text: &str) -> Happening {
        Happening {
            at: at.to_owned(),
            text: text.to_owned(),
            ..Happening::default()
        }
    }

    /// Goal: what the journal and the last picture both tell stands in the timeline once, in the order of time.
    #[test]
    fn the_timeline_is_in_order_and_says_nothing_twice() {
        let mut picture = Picture::default();
        for (at, text) in [
            ("3", "c"),
            ("1", "a"),
            ("2", "b"),
            ("2", "bb"),
            ("2", "b"),
            ("3", "c"),
        ] {
            picture.happened(happening(at, text));
        }
        let texts: Vec<&str> = picture.timeline.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["a", "b", "bb", "c"]);
        for number in 0..2 * LONGEST_TIMELINE {
            picture.happened(happening(&format!("4{number:06}"), "d"));
        }
        assert_eq!(picture.timeline.len(), LONGEST_TIMELINE);
        assert_eq!(
            picture.timeline.last().map(|line| line.at.as_str()),
            Some("4000799")
        );
    }

    #[test]
    fn what_is_left_is_estimated_from_smoothed_steps() {
        let mut picture = Picture::default();
        picture.run.align_steps = 10;
        picture.run.zipper_steps = 90;
        picture.reached(20);
        assert_eq!((picture.eta_seconds, picture.stage), (None, Some(Stage::Zipper)));
        picture.took(2.0);
        assert_eq!(picture.eta_seconds, Some(160.0));
        picture.took(12.0);
        assert_eq!(picture.seconds_per_step, Some(3.0));
        picture.ended(Phase::Done, "");
        picture.reached(100);
        assert_eq!(picture.eta_seconds, None);
    }
}

//! How a run goes: on a terminal a few lines that keep themselves up to date, below what happens; elsewhere plain lines.
//! Always on stderr.
//!
//! Reading order: [`Display`] (what is said, and when), `screen` (the lines on a terminal), `words`.

mod screen;
mod words;

pub(crate) use words::{span, wrap};

use std::io::IsTerminal;

use zipper_config::RunConfig;
use zipper_plan::StageSchedule;
use zipper_proto::v1;
use zipper_proto::v1::watch_response::Event;
use zipper_types::Stage;
use zipper_watch::picture::Phase;
use zipper_watch::{Picture, events, now_text};

use screen::Screen;

/// Shows events.
pub(crate) struct Display {
    picture: Picture,
    screen: Option<Screen>,
    /// The stage whose beginning was said.
    announced: Option<Stage>,
}

impl Display {
    pub(crate) fn new(config: &RunConfig) -> Self {
        Self {
            picture: Picture::of(config, ""),
            screen: is_terminal().then(Screen::new),
            announced: None,
        }
    }

    /// Prints a line above what keeps itself up to date.
    pub(crate) fn line(&self, text: &str) {
        match &self.screen {
            Some(screen) => screen.print(text),
            None => eprintln!("{text}"),
        }
    }

    pub(crate) fn finish(&mut self) {
        if let Some(screen) = self.screen.take() {
            screen.finish();
        }
    }

    pub(crate) fn show(&mut self, event: &Event) {
        self.picture.take(&now_text(), event);
        if let Some(text) = self.said(event) {
            self.line(&text);
        }
        if let Some(screen) = &mut self.screen {
            screen.show(&self.picture);
        }
    }

    /// What is said of an event once and for all.
    fn said(&mut self, event: &Event) -> Option<String> {
        match event {
            Event::GenerationFormed(formed) => {
                let spares = match formed.spares {
                    0 => String::new(),
                    spares => format!(", {spares} to spare"),
                };
                Some(format!(
                    "{} joined (generation {}){spares}",
                    events::workers(formed.world_size),
                    formed.generation
                ))
            }
            Event::Resumed(resumed) => {
                let damaged = resumed.damaged.iter();
                let damaged = damaged.map(|damage| {
                    format!("warning: a checkpoint is damaged and was passed over: {damage}\n")
                });
                Some(format!(
                    "{}going on from the checkpoint of step {}",
                    damaged.collect::<String>(),
                    resumed.step
                ))
            }
            // The screen has the newest one.
            Event::Waiting(waiting) => self
                .screen
                .is_none()
                .then(|| format!("waiting: {}", waiting.what)),
            Event::GenerationBroken(broken) => Some(format!(
                "generation {} is broken: {}",
                broken.generation, broken.reason
            )),
            Event::Recovered(recovered) => Some(events::recovery(recovered)),
            Event::NodeLeftOut(left_out) => Some(format!("warning: {}", left_out.reason)),
            Event::Alarm(alarm) if alarm.cleared => Some(alarm.message.clone()),
            Event::Alarm(alarm) => Some(format!("ALARM: {}", alarm.message)),
            Event::Straggler(slow) => Some(format!("warning: {}", events::straggler(slow))),
            Event::Summary(summary) => Some(events::effective_time(&events::times(summary))),
            Event::TrainingStarted(started) => self.begins(started),
            Event::Step(metrics) => self.screen.is_none().then(|| self.step(metrics)),
            Event::EvaluationStarted(started) => Some(format!("evaluating {} ...", started.name)),
            Event::EvaluationDone(done) => {
                let loss = done
                    .loss
                    .map_or_else(String::new, |loss| format!(", loss {loss:.3}"));
                let (wer, cer) = (100.0 * done.wer, 100.0 * done.cer);
                Some(format!(
                    "  {} at step {}: WER {wer:.1} %, CER {cer:.1} %{loss}",
                    done.name, done.step
                ))
            }
            // The screen has the newest one.
            Event::CheckpointCommitted(committed) => self
                .screen
                .is_none()
                .then(|| format!("checkpoint of step {} is stored", committed.step)),
            Event::Membership(_) | Event::Verdict(_) => None,
        }
    }

    /// `stage 2 (zipper): steps 7 to 12`, once for each stage.
    fn begins(&mut self, started: &v1::TrainingStarted) -> Option<String> {
        let stage = zipper_proto::stage(started.stage).ok()?;
        if self.announced.replace(stage) == Some(stage) {
            return None;
        }
        let stages: StageSchedule = self.picture.stages();
        let (number, last) = match stage {
            Stage::Align => (1, stages.align_steps),
            Stage::Zipper => (2, stages.last_step().0),
        };
        let first = started.from_step + 1;
        Some(format!("stage {number} ({stage}): steps {first} to {last}"))
    }

    fn step(&self, metrics: &v1::StepMetrics) -> String {
        let stage = zipper_proto::stage(metrics.stage).map_or("unknown", Stage::name);
        let skipped = if metrics.skipped {
            " UPDATE LEFT OUT (not finite, or a spike)"
        } else {
            ""
        };
        let alone = metrics.world_size <= 1;
        let latest = events::latest(metrics);
        let comm = if alone {
            String::new()
        } else {
            format!(" comm {:.0}%", 100.0 * latest.comm_share)
        };
        let eta = self.picture.eta_seconds;
        let eta = eta.map_or_else(String::new, |seconds| format!(" ETA {}", words::span(seconds)));
        format!(
            "{stage} step {}/{}: loss {:.3} lr {:.1e} {:.0} audio-s/s{comm}{skipped} grad {:.2}{eta}",
            metrics.step,
            self.picture.last_step(),
            metrics.loss,
            metrics.lr,
            latest.audio_per_second,
            metrics.grad_norm
        )
    }
}

/// Whether stderr is a terminal that can rewrite lines.
fn is_terminal() -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !dumb
}

/// Whether the run is in trouble, for the mark before its last line.
fn is_troubled(phase: Phase) -> bool {
    matches!(phase, Phase::Recovering | Phase::Failed)
}

//! How a run goes: progress bars on a terminal, plain lines elsewhere; always on stderr.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use zipper_config::RunConfig;
use zipper_plan::StageSchedule;
use zipper_proto::v1;
use zipper_proto::v1::watch_response::Event;
use zipper_types::{Stage, Step};

/// Columns from which the losses of all languages are shown.
const WIDE: u16 = 120;

/// Shows events.
pub(crate) struct Display {
    stages: StageSchedule,
    languages: Vec<String>,
    terminal: bool,
    bar: Option<(Stage, ProgressBar)>,
}

impl Display {
    pub(crate) fn new(config: &RunConfig) -> Self {
        Self {
            stages: StageSchedule {
                align_steps: config.training.align.steps,
                zipper_steps: config.training.zipper.steps,
                validate_every: 0,
            },
            languages: config.data.languages.clone(),
            terminal: std::io::stderr().is_terminal(),
            bar: None,
        }
    }

    /// Prints a line above the bar.
    pub(crate) fn line(&self, text: &str) {
        match &self.bar {
            Some((_, bar)) if self.terminal => bar.println(text),
            _ => eprintln!("{text}"),
        }
    }

    pub(crate) fn finish(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    pub(crate) fn show(&mut self, event: &Event) {
        match event {
            Event::GenerationFormed(formed) => {
                let spares = match formed.spares {
                    0 => String::new(),
                    spares => format!(", {spares} to spare"),
                };
                self.line(&format!(
                    "{} joined (generation {}){spares}",
                    workers(formed.world_size),
                    formed.generation
                ));
            }
            Event::Resumed(resumed) => {
                for damage in &resumed.damaged {
                    self.line(&format!("warning: a checkpoint is damaged and was passed over: {damage}"));
                }
                self.line(&format!("going on from the checkpoint of step {}", resumed.step));
            }
            Event::Waiting(waiting) => self.line(&format!("waiting: {}", waiting.what)),
            Event::GenerationBroken(broken) => {
                self.line(&format!("generation {} is broken: {}", broken.generation, broken.reason));
            }
            Event::Recovered(recovered) => self.line(&recovery(recovered)),
            Event::NodeLeftOut(left_out) => self.line(&format!("warning: {}", left_out.reason)),
            Event::Alarm(alarm) if alarm.cleared => self.line(&alarm.message),
            Event::Alarm(alarm) => self.line(&format!("ALARM: {}", alarm.message)),
            Event::Straggler(straggler) => self.line(&format!(
                "warning: worker `{}` (rank {}) on {} is slow: it takes {:.1} times as long for its work as the median, and the \
                 others waited {:.0} % of the time for it",
                straggler.worker_id,
                straggler.rank,
                straggler.hostname,
                straggler.factor,
                100.0 * straggler.lost_share
            )),
            Event::Summary(summary) => self.line(&effective_time(summary)),
            Event::TrainingStarted(started) => self.begin(started),
            Event::Step(metrics) => self.step(metrics),
            Event::EvaluationStarted(started) => self.line(&format!("evaluating {} ...", started.name)),
            Event::EvaluationDone(done) => {
                let loss = done
                    .loss
                    .map_or_else(String::new, |loss| format!(", loss {loss:.3}"));
                let (wer, cer) = (100.0 * done.wer, 100.0 * done.cer);
                self.line(&format!(
                    "  {} at step {}: WER {wer:.1} %, CER {cer:.1} %{loss}",
                    done.name, done.step
                ));
            }
            Event::CheckpointCommitted(committed) => {
                if !self.terminal {
                    self.line(&format!("checkpoint of step {} is stored", committed.step));
                }
            }
            Event::Verdict(_) => {}
        }
    }

    fn begin(&mut self, started: &v1::TrainingStarted) {
        let Ok(stage) = zipper_proto::stage(started.stage) else {
            return;
        };
        if self.bar.as_ref().is_some_and(|(shown, _)| *shown == stage) {
            return;
        }
        self.finish();
        let (number, steps) = match stage {
            Stage::Align => (1, self.stages.align_steps),
            Stage::Zipper => (2, self.stages.zipper_steps),
        };
        self.line(&format!(
            "stage {number} ({stage}): steps {} to {}",
            started.from_step + 1,
            match stage {
                Stage::Align => self.stages.align_steps,
                Stage::Zipper => self.stages.last_step().0,
            }
        ));
        if self.terminal {
            let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} {msg} ETA {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(steps)
                .with_style(style)
                .with_prefix(stage.name());
            bar.set_position(started.from_step - self.first_step(stage));
            bar.reset_eta();
            self.bar = Some((stage, bar));
        }
    }

    /// Steps of the run before `stage`.
    fn first_step(&self, stage: Stage) -> u64 {
        match stage {
            Stage::Align => 0,
            Stage::Zipper => self.stages.align_steps,
        }
    }

    fn step(&self, metrics: &v1::StepMetrics) {
        let Ok(stage) = zipper_proto::stage(metrics.stage) else {
            return;
        };
        let speed = metrics.audio_seconds / metrics.seconds.max(1e-9);
        let skipped = if metrics.skipped {
            " UPDATE LEFT OUT (not finite)"
        } else {
            ""
        };
        let waiting = waiting(metrics).map_or_else(String::new, |percent| format!(" comm {percent:.0}%"));
        let mut text = format!(
            "loss {:.3} lr {:.1e} {speed:.0} audio-s/s{waiting}{skipped}",
            metrics.loss, metrics.lr
        );
        match &self.bar {
            Some((_, bar)) => {
                if console::Term::stderr().size().1 >= WIDE {
                    text = format!("{text} [{}]", self.by_language(metrics));
                }
                bar.set_message(text);
                bar.set_position(self.stages.step_in_stage(Step(metrics.step)));
            }
            None => eprintln!(
                "{stage} step {}/{}: {text} grad {:.2}",
                metrics.step,
                self.stages.last_step(),
                metrics.grad_norm
            ),
        }
    }

    /// `en 1.23 de 2.34`, in the order of the configuration.
    fn by_language(&self, metrics: &v1::StepMetrics) -> String {
        let losses = self.languages.iter().filter_map(|lang| {
            let language = metrics.by_language.get(lang)?;
            Some(format!(
                "{lang} {:.2}",
                language.nll / language.tokens.max(1) as f64
            ))
        });
        losses.collect::<Vec<_>>().join(" ")
    }
}

fn workers(number: u32) -> String {
    match number {
        1 => "1 worker".to_owned(),
        number => format!("{number} workers"),
    }
}

fn recovery(recovered: &v1::Recovered) -> String {
    let took = zipper_proto::duration(recovered.took).unwrap_or_default();
    let from = if recovered.from_checkpoint {
        "the checkpoint of step"
    } else {
        "the memory of step"
    };
    let repeated = match recovered.repeated_steps {
        0 => "no step was lost".to_owned(),
        1 => "1 step was made again".to_owned(),
        steps => format!("{steps} steps were made again"),
    };
    format!(
        "recovered in {:.1}s with {} from {from} {}: {repeated}",
        took.as_secs_f64(),
        workers(recovered.world_size),
        recovered.from_step
    )
}

/// `Effective training time: 97.4 % of 1h 2m; lost: 12s starting, ..`.
fn effective_time(summary: &v1::Summary) -> String {
    let seconds = |duration| zipper_proto::duration(duration).unwrap_or_default().as_secs_f64();
    let total = seconds(summary.total);
    let share = 100.0 * seconds(summary.productive) / total.max(1e-9);
    let mut lost: Vec<(&String, f64)> = summary
        .lost
        .iter()
        .map(|(cause, time)| (cause, seconds(Some(*time))))
        .collect();
    lost.sort_by(|a, b| b.1.total_cmp(&a.1));
    let lost: Vec<String> = lost
        .into_iter()
        .map(|(cause, time)| format!("{time:.1}s {cause}"))
        .collect();
    let of = humantime::format_duration(std::time::Duration::from_secs(total as u64));
    let losses = match summary.losses {
        0 => String::new(),
        losses => format!(
            "; {losses} losses of workers, {} steps made again",
            summary.repeated_steps
        ),
    };
    format!(
        "effective training time: {share:.1} % of {of}; lost: {}{losses}",
        if lost.is_empty() {
            "nothing".to_owned()
        } else {
            lost.join(", ")
        }
    )
}

/// Percent of the step in which rank 0 only waited for gradients; nothing if it is alone.
fn waiting(metrics: &v1::StepMetrics) -> Option<f64> {
    (metrics.world_size > 1).then(|| 100.0 * metrics.comm_exposed_seconds / metrics.seconds.max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recoveries_and_summaries_are_sentences() {
        let seconds = |seconds| std::time::Duration::from_secs(seconds).try_into().ok();
        let recovered = v1::Recovered {
            world_size: 1,
            from_step: 177,
            took: seconds(2),
            ..v1::Recovered::default()
        };
        assert_eq!(
            recovery(&recovered),
            "recovered in 2.0s with 1 worker from the memory of step 177: no step was lost"
        );
        let recovered = v1::Recovered {
            world_size: 3,
            from_checkpoint: true,
            repeated_steps: 9,
            ..recovered
        };
        assert_eq!(
            recovery(&recovered),
            "recovered in 2.0s with 3 workers from the checkpoint of step 177: 9 steps were made again"
        );
        let lost = [("starting", 3), ("recovering", 7)]
            .into_iter()
            .filter_map(|(cause, time)| Some((cause.to_owned(), seconds(time)?)))
            .collect();
        let summary = v1::Summary {
            total: seconds(200),
            productive: seconds(190),
            lost,
            losses: 2,
            repeated_steps: 9,
        };
        assert_eq!(
            effective_time(&summary),
            "effective training time: 95.0 % of 3m 20s; lost: 7.0s recovering, 3.0s starting; 2 losses of workers, 9 steps made \
             again"
        );
    }

    #[test]
    fn communication_is_a_part_of_the_step() {
        let metrics = |world_size| v1::StepMetrics {
            seconds: 2.0,
            comm_exposed_seconds: 0.5,
            world_size,
            ..v1::StepMetrics::default()
        };
        assert_eq!(waiting(&metrics(1)), None);
        assert_eq!(waiting(&metrics(2)), Some(25.0));
    }
}

//! How what a coordinator tells changes the picture of its run.

use std::time::Duration;

use zipper_proto::v1;
use zipper_proto::v1::verdict::Outcome;
use zipper_proto::v1::watch_response::Event;

use crate::gates::Gates;
use crate::picture::{Alarm, Evaluation, Happening, Latest, Phase, Picture, Times, finite};

/// What an alarm about the run's store is called.
pub const STORE_ALARM: &str = "object_store";
/// What the alarm of a node that was left out is called.
const NODE_ALARM: &str = "node_left_out";
/// What the alarm of a slow worker is called.
const STRAGGLER_ALARM: &str = "straggler";
/// All kinds of alarms.
pub(crate) const ALARMS: [&str; 3] = [STORE_ALARM, NODE_ALARM, STRAGGLER_ALARM];

impl Picture {
    /// Takes in what was told at the time `at`.
    pub fn take(&mut self, at: &str, event: &Event) {
        match event {
            Event::GenerationFormed(formed) => self.formed(at, formed),
            Event::Resumed(resumed) => self.resumed(at, resumed),
            Event::Waiting(waiting) => self.detail.clone_from(&waiting.what),
            Event::GenerationBroken(broken) => self.broken(at, broken),
            Event::Recovered(recovered) => {
                self.phase = Phase::Training;
                let line = Happening {
                    generation: Some(recovered.generation),
                    ..line(at, "recovered", recovery(recovered), Some(recovered.from_step))
                };
                self.happened(line);
            }
            Event::NodeLeftOut(left_out) => {
                self.alarm(at, NODE_ALARM, &left_out.reason);
                self.happened(line(at, NODE_ALARM, left_out.reason.clone(), None));
            }
            Event::Alarm(alarm) => self.alarmed(at, alarm),
            Event::Straggler(slow) => {
                let text = straggler(slow);
                self.alarm(at, STRAGGLER_ALARM, &text);
                self.happened(line(at, STRAGGLER_ALARM, text, Some(self.step)));
            }
            Event::Summary(summary) => self.times = times(summary),
            Event::TrainingStarted(started) => {
                self.phase = Phase::Training;
                self.detail.clear();
                self.stage = zipper_proto::stage(started.stage).ok().or(self.stage);
                self.reached(started.from_step);
            }
            Event::Step(metrics) => self.stepped(metrics),
            Event::EvaluationStarted(started) => {
                self.phase = Phase::Evaluating;
                self.detail = format!("decoding {}", started.name);
            }
            Event::EvaluationDone(done) => self.evaluated(at, done),
            // They have a list of their own: often they would drive everything else out of the timeline.
            Event::CheckpointCommitted(committed) => self.published(committed.step, at),
            Event::Membership(membership) => self.counted(membership),
            Event::Verdict(verdict) => self.over(at, verdict),
        }
    }

    fn formed(&mut self, at: &str, formed: &v1::GenerationFormed) {
        self.generation = formed.generation;
        self.world_size = formed.world_size;
        self.detail.clear();
        // Who was slow in an earlier generation need not be in this one.
        self.alarms.retain(|alarm| alarm.kind != STRAGGLER_ALARM);
        let spares = match formed.spares {
            0 => String::new(),
            spares => format!(", {spares} to spare"),
        };
        let text = format!(
            "generation {} formed with {}{spares}",
            formed.generation,
            workers(formed.world_size)
        );
        let line = Happening {
            generation: Some(formed.generation),
            ..line(at, "generation", text, None)
        };
        self.happened(line);
    }

    fn resumed(&mut self, at: &str, resumed: &v1::Resumed) {
        self.reached(resumed.step);
        for damage in &resumed.damaged {
            let text = format!("a checkpoint is damaged and was passed over: {damage}");
            self.happened(line(at, "damaged", text, None));
        }
        let text = format!("resumed from the checkpoint of step {}", resumed.step);
        self.happened(line(at, "resumed", text, Some(resumed.step)));
    }

    fn broken(&mut self, at: &str, broken: &v1::GenerationBroken) {
        self.phase = Phase::Recovering;
        self.flights.retain(|generation| *generation != broken.generation);
        self.flights.push(broken.generation);
        let text = format!("generation {} is broken: {}", broken.generation, broken.reason);
        let line = Happening {
            generation: Some(broken.generation),
            ..line(at, "broken", text, Some(broken.step))
        };
        self.happened(line);
    }

    fn stepped(&mut self, metrics: &v1::StepMetrics) {
        self.phase = Phase::Training;
        self.detail.clear();
        self.reached(metrics.step);
        self.took(metrics.seconds);
        let mut latest = latest(metrics);
        // Of a language that is not in this batch, the loss of an earlier one stays.
        for (lang, loss) in self
            .latest
            .take()
            .into_iter()
            .flat_map(|before| before.by_language)
        {
            latest.by_language.entry(lang).or_insert(loss);
        }
        self.latest = Some(latest);
    }

    fn evaluated(&mut self, at: &str, done: &v1::EvaluationDone) {
        let loss = done
            .loss
            .map_or_else(String::new, |loss| format!(", loss {loss:.3}"));
        let text = format!(
            "{} at step {}: WER {:.1} %, CER {:.1} %{loss}",
            done.name,
            done.step,
            100.0 * done.wer,
            100.0 * done.cer
        );
        self.happened(line(at, "evaluation", text, Some(done.step)));
        self.evaluations
            .retain(|other| (&other.name, other.step) != (&done.name, done.step));
        self.evaluations.push(Evaluation {
            name: done.name.clone(),
            step: done.step,
            wer: done.wer,
            cer: done.cer,
            loss: done.loss,
            at: at.to_owned(),
        });
    }

    fn alarmed(&mut self, at: &str, alarm: &v1::Alarm) {
        if alarm.cleared {
            self.alarms.retain(|other| other.kind != alarm.kind);
        } else {
            self.alarm(at, &alarm.kind, &alarm.message);
        }
        let kind = if alarm.cleared { "alarm_over" } else { "alarm" };
        self.happened(line(at, kind, alarm.message.clone(), Some(self.step)));
    }

    fn counted(&mut self, membership: &v1::Membership) {
        let named = |names: &[(&str, u32)]| {
            let some = names.iter().filter(|(_, number)| *number > 0);
            some.map(|(name, number)| ((*name).to_owned(), *number)).collect()
        };
        self.nodes = named(&[
            ("healthy", membership.nodes_healthy),
            ("silent", membership.nodes_silent),
            ("left_out", membership.nodes_left_out),
            ("missing", membership.nodes_missing),
        ]);
        self.workers = named(&[
            ("training", membership.workers_training),
            ("ready", membership.workers_ready),
            ("loading", membership.workers_loading),
            ("leaving", membership.workers_leaving),
        ]);
    }

    fn over(&mut self, at: &str, verdict: &v1::Verdict) {
        let phase = match verdict.outcome() {
            Outcome::Done => Phase::Done,
            Outcome::Stopped => Phase::Stopped,
            Outcome::Failed | Outcome::Config | Outcome::Unspecified => Phase::Failed,
        };
        self.ended(phase, &verdict.reason);
        let text = match verdict.reason.as_str() {
            "" => format!("the run is {}", phase.name()),
            reason => format!("the run is {}: {reason}", phase.name()),
        };
        self.happened(line(at, phase.name(), text, Some(self.step)));
    }

    fn alarm(&mut self, at: &str, kind: &str, message: &str) {
        let same = |alarm: &Alarm| alarm.kind == kind && alarm.message == message;
        if !self.alarms.iter().any(same) {
            self.alarms.push(Alarm {
                kind: kind.to_owned(),
                message: message.to_owned(),
                since: at.to_owned(),
            });
        }
    }
}

/// A line of the timeline.
fn line(at: &str, kind: &str, text: String, step: Option<u64>) -> Happening {
    Happening {
        at: at.to_owned(),
        kind: kind.to_owned(),
        text,
        step,
        generation: None,
    }
}

/// `1 worker`, `4 workers`.
pub fn workers(number: u32) -> String {
    match number {
        1 => "1 worker".to_owned(),
        number => format!("{number} workers"),
    }
}

/// `1 step`, `4 steps`.
fn count(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// What a logged step tells.
pub fn latest(metrics: &v1::StepMetrics) -> Latest {
    let seconds = metrics.seconds.max(1e-9);
    let by_language = metrics.by_language.iter().filter_map(|(lang, language)| {
        let loss = language.nll / language.tokens.max(1) as f64;
        Some((lang.clone(), finite(loss)?))
    });
    Latest {
        step: metrics.step,
        loss: finite(metrics.loss),
        lr: metrics.lr,
        grad_norm: finite(metrics.grad_norm),
        audio_per_second: metrics.audio_seconds / seconds,
        tokens_per_second: metrics.tokens as f64 / seconds,
        comm_share: metrics.comm_exposed_seconds / seconds,
        by_language: by_language.collect(),
        skipped: metrics.skipped,
        gates: metrics.gates.as_ref().map(Gates::of),
    }
}

/// `recovered in 1.4s with 3 workers from the memory of step 240: no step was lost`.
pub fn recovery(recovered: &v1::Recovered) -> String {
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

/// Who is slow, and what that costs.
pub fn straggler(slow: &v1::Straggler) -> String {
    format!(
        "worker `{}` (rank {}) on {} is slow: it takes {:.1} times as long for its work as the median, and the others waited \
         {:.0} % of the time for it",
        slow.worker_id,
        slow.rank,
        slow.hostname,
        slow.factor,
        100.0 * slow.lost_share
    )
}

/// Where the time of a launch went.
pub fn times(summary: &v1::Summary) -> Times {
    let seconds = |wire| zipper_proto::duration(wire).unwrap_or_default().as_secs_f64();
    Times {
        total_seconds: seconds(summary.total),
        productive_seconds: seconds(summary.productive),
        lost_seconds: summary
            .lost
            .iter()
            .map(|(cause, time)| (cause.clone(), seconds(Some(*time))))
            .collect(),
        losses: summary.losses.into(),
        repeated_steps: summary.repeated_steps,
    }
}

/// `effective training time: 97.4 % of 1h 2m; lost: 12.0s starting`.
pub fn effective_time(times: &Times) -> String {
    let share = 100.0 * times.effective().unwrap_or_default();
    let mut lost: Vec<(&String, &f64)> = times.lost_seconds.iter().collect();
    lost.sort_by(|a, b| b.1.total_cmp(a.1));
    let lost: Vec<String> = lost
        .into_iter()
        .map(|(cause, time)| format!("{time:.1}s {cause}"))
        .collect();
    let of = humantime::format_duration(Duration::from_secs(times.total_seconds as u64));
    let losses = match times.losses {
        0 => String::new(),
        losses => format!(
            "; {}, {} made again",
            count(losses, "loss of a worker", "losses of workers"),
            count(times.repeated_steps, "step", "steps")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Option<prost_types::Duration> {
        Duration::from_secs(seconds).try_into().ok()
    }

    #[test]
    fn recoveries_and_summaries_are_sentences() {
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
        let summary = v1::Summary {
            total: seconds(200),
            productive: seconds(190),
            lost: [("starting", 3), ("recovering", 7)]
                .into_iter()
                .filter_map(|(cause, time)| Some((cause.to_owned(), seconds(time)?)))
                .collect(),
            losses: 2,
            repeated_steps: 5,
        };
        assert_eq!(
            effective_time(&times(&summary)),
            "effective training time: 95.0 % of 3m 20s; lost: 7.0s recovering, 3.0s starting; 2 losses of workers, 5 steps made again"
        );
    }

    /// Goal: a loss is seen as one until training goes on, and an alarm until it is cleared.
    #[test]
    fn losses_and_alarms_come_and_go() {
        let mut picture = Picture::default();
        let broken = v1::GenerationBroken {
            generation: 3,
            step: 7,
            reason: "a worker was lost".to_owned(),
        };
        picture.take("1", &Event::GenerationBroken(broken));
        assert_eq!(
            (picture.phase, picture.flights.as_slice()),
            (Phase::Recovering, [3].as_slice())
        );
        let alarm = |cleared| v1::Alarm {
            kind: STORE_ALARM.to_owned(),
            message: "the run's store cannot be written".to_owned(),
            cleared,
        };
        picture.take("2", &Event::Alarm(alarm(false)));
        picture.take("2", &Event::Alarm(alarm(false)));
        assert_eq!(picture.alarms.len(), 1);
        picture.take("3", &Event::Recovered(v1::Recovered::default()));
        picture.take("4", &Event::Alarm(alarm(true)));
        assert_eq!((picture.phase, picture.alarms.len()), (Phase::Training, 0));
        let kinds: Vec<&str> = picture.timeline.iter().map(|line| line.kind.as_str()).collect();
        assert_eq!(kinds, ["broken", "alarm", "recovered", "alarm_over"]);
    }
}

//! What Prometheus is told: `/metrics`.
//!
//! Names end in their unit; `_total` counts up over all launches of the run, as far as the run's store tells of them.

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
    with_local_recorder,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use zipper_checkpoint::StoreUsage;

use crate::events::ALARMS;
use crate::picture::{Phase, Picture};
use crate::series::{Point, Series};

/// Upper bounds of the histogram of step times, in seconds.
const STEP_SECONDS: [f64; 14] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 40.0, 80.0,
];

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It counts up.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts by size.
    Histogram,
}

/// Every metric: name, kind, labels, what it says.
pub(crate) const METRICS: [(&str, Kind, &str, &str); 38] = [
    (
        "zipper_run_info",
        Kind::Gauge,
        "run, variant",
        "1; its labels name the run",
    ),
    (
        "zipper_run_phase",
        Kind::Gauge,
        "phase",
        "1 for what the run does now, 0 for everything else",
    ),
    (
        "zipper_step",
        Kind::Gauge,
        "",
        "completed optimizer steps, over both stages",
    ),
    ("zipper_steps_planned", Kind::Gauge, "", "steps that the run has"),
    (
        "zipper_eta_seconds",
        Kind::Gauge,
        "",
        "time that the steps that are left will take; NaN if it is not known, or the run is over",
    ),
    (
        "zipper_step_seconds",
        Kind::Histogram,
        "stage",
        "wall-clock time of a step, since this coordinator began",
    ),
    (
        "zipper_loss",
        Kind::Gauge,
        "stage, language",
        "nats per target token of the newest step; language `all` is the whole batch",
    ),
    (
        "zipper_gate_share",
        Kind::Gauge,
        "language",
        "share of ranks that a language takes from what all languages share, mean over the layers; variants `hard` and `soft`",
    ),
    ("zipper_learning_rate", Kind::Gauge, "", "of the newest step"),
    (
        "zipper_gradient_norm",
        Kind::Gauge,
        "",
        "of the newest step, before clipping",
    ),
    (
        "zipper_audio_seconds_total",
        Kind::Counter,
        "",
        "audio trained on",
    ),
    (
        "zipper_tokens_total",
        Kind::Counter,
        "",
        "target tokens trained on",
    ),
    (
        "zipper_steps_skipped_total",
        Kind::Counter,
        "",
        "updates left out because a gradient was not finite or the loss a spike",
    ),
    (
        "zipper_loss_spikes_total",
        Kind::Counter,
        "",
        "steps whose loss was far above those before",
    ),
    (
        "zipper_compute_seconds_total",
        Kind::Counter,
        "",
        "forward and backward passes, summed over the ranks",
    ),
    (
        "zipper_comm_exposed_seconds_total",
        Kind::Counter,
        "",
        "time for which a rank only waited for collectives, on average over the ranks",
    ),
    (
        "zipper_comm_exposed_ratio",
        Kind::Gauge,
        "",
        "share of the newest step spent so",
    ),
    (
        "zipper_comm_bytes_total",
        Kind::Counter,
        "gradients",
        "bytes that all ranks together gave to collectives, for `shared` gradients and for `banks`",
    ),
    ("zipper_generation", Kind::Gauge, "", "the newest generation"),
    ("zipper_world_size", Kind::Gauge, "", "its ranks"),
    (
        "zipper_workers",
        Kind::Gauge,
        "state",
        "worker processes: `training`, `ready`, `loading`, `leaving`",
    ),
    (
        "zipper_nodes",
        Kind::Gauge,
        "state",
        "nodes: `healthy`, `silent`, `left_out`, `missing`",
    ),
    (
        "zipper_heartbeat_age_seconds_max",
        Kind::Gauge,
        "",
        "how long ago the worker that has been silent longest was heard of",
    ),
    (
        "zipper_generations_broken_total",
        Kind::Counter,
        "",
        "generations that ended before their time",
    ),
    (
        "zipper_steps_repeated_total",
        Kind::Counter,
        "",
        "completed steps that had to be made again",
    ),
    (
        "zipper_checkpoint_step",
        Kind::Gauge,
        "",
        "step of the newest checkpoint",
    ),
    (
        "zipper_checkpoint_age_seconds",
        Kind::Gauge,
        "",
        "time since it was published",
    ),
    (
        "zipper_checkpoint_stall_seconds_total",
        Kind::Counter,
        "",
        "time for which checkpoints held up the training thread of rank 0",
    ),
    (
        "zipper_alarm",
        Kind::Gauge,
        "kind",
        "1 while something of this kind needs a person",
    ),
    (
        "zipper_effective_training_ratio",
        Kind::Gauge,
        "",
        "share of the time that went into steps that counted and evaluations",
    ),
    ("zipper_productive_seconds_total", Kind::Counter, "", "that time"),
    (
        "zipper_lost_seconds_total",
        Kind::Counter,
        "cause",
        "the other time: `starting`, `recovering`, `regrouping`, `repeating`, `ending`",
    ),
    (
        "zipper_store_requests_total",
        Kind::Counter,
        "operation",
        "requests of this coordinator to the run's store: `read`, `write`, `list`, `delete`",
    ),
    (
        "zipper_store_bytes_total",
        Kind::Counter,
        "direction",
        "bytes of them: `read`, `written`",
    ),
    (
        "zipper_evaluation_wer_ratio",
        Kind::Gauge,
        "set",
        "word error rate of the newest evaluation of a set",
    ),
    (
        "zipper_evaluation_cer_ratio",
        Kind::Gauge,
        "set",
        "character error rate",
    ),
    (
        "zipper_connections_refused_total",
        Kind::Counter,
        "reason",
        "connections that this coordinator did not take in: no certificate, another run's, too many",
    ),
    (
        "zipper_coordinator_epoch",
        Kind::Gauge,
        "",
        "the coordinator's claim on the run: each restart has the next one",
    ),
];

/// All metrics of one run.
pub(crate) struct Prometheus {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    sums: Sums,
}

/// What counters have come to; those of the metrics' crate hold whole numbers.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    audio_seconds: f64,
    tokens: u64,
    skipped: u64,
    spikes: u64,
    compute_seconds: f64,
    comm_exposed_seconds: f64,
    comm_bytes_shared: u64,
    comm_bytes_banks: u64,
    checkpoint_seconds: f64,
}

impl Prometheus {
    /// The metrics of a run that has made these steps before.
    pub(crate) fn new(series: &Series) -> Self {
        let builder = PrometheusBuilder::new();
        let matcher = Matcher::Full("zipper_step_seconds".to_owned());
        let builder = builder
            .set_buckets_for_metric(matcher, &STEP_SECONDS)
            .expect("there are bounds");
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        let mut prometheus = Self {
            recorder,
            handle,
            sums: Sums::default(),
        };
        with_local_recorder(&prometheus.recorder, describe);
        for point in series.points() {
            prometheus.count(point);
        }
        prometheus
    }

    fn count(&mut self, point: &Point) {
        let sums = &mut self.sums;
        sums.audio_seconds += point.audio_seconds;
        sums.tokens += point.tokens;
        sums.skipped += u64::from(point.skipped);
        sums.spikes += u64::from(point.spike);
        sums.compute_seconds += point.compute_seconds;
        sums.comm_exposed_seconds += point.comm_exposed_seconds;
        sums.comm_bytes_shared += point.comm_bytes_shared * u64::from(point.world_size);
        sums.comm_bytes_banks += point.comm_bytes_banks;
        sums.checkpoint_seconds += point.checkpoint_seconds;
    }

    /// Takes in a step that has just been made.
    pub(crate) fn step(&mut self, languages: &[String], point: &Point) {
        self.count(point);
        with_local_recorder(&self.recorder, || {
            let stage = point.stage.name();
            histogram!("zipper_step_seconds", "stage" => stage).record(point.seconds);
            gauge!("zipper_loss", "stage" => stage, "language" => "all").set(point.loss);
            for (lang, &(loss, tokens)) in languages.iter().zip(&point.languages) {
                if tokens > 0 {
                    gauge!("zipper_loss", "stage" => stage, "language" => lang.clone()).set(f64::from(loss));
                }
            }
            for (lang, &share) in languages.iter().zip(&point.shares) {
                gauge!("zipper_gate_share", "language" => lang.clone()).set(f64::from(share));
            }
        });
    }

    /// The text that Prometheus reads; `checkpoint_age` is that of the newest one, in seconds.
    pub(crate) fn render(&self, picture: &Picture, usage: StoreUsage, checkpoint_age: Option<f64>) -> String {
        with_local_recorder(&self.recorder, || {
            show_run(picture);
            show_counters(&self.sums, picture, usage);
            show_cluster(picture);
            if let Some(checkpoint) = picture.checkpoints.last() {
                gauge!("zipper_checkpoint_step").set(checkpoint.step as f64);
            }
            if let Some(age) = checkpoint_age {
                gauge!("zipper_checkpoint_age_seconds").set(age);
            }
        });
        self.handle.render()
    }
}

fn describe() {
    for (name, kind, _, text) in METRICS {
        match kind {
            Kind::Counter => describe_counter!(name, Unit::Count, text),
            Kind::Gauge => describe_gauge!(name, Unit::Count, text),
            Kind::Histogram => describe_histogram!(name, Unit::Seconds, text),
        }
    }
}

fn show_run(picture: &Picture) {
    let (run, variant) = (picture.run.name.clone(), picture.run.variant.clone());
    gauge!("zipper_run_info", "run" => run, "variant" => variant).set(1.0);
    for phase in Phase::ALL {
        let now = f64::from(u8::from(picture.phase == phase));
        gauge!("zipper_run_phase", "phase" => phase.name()).set(now);
    }
    gauge!("zipper_step").set(picture.step as f64);
    gauge!("zipper_steps_planned").set(picture.last_step() as f64);
    gauge!("zipper_eta_seconds").set(picture.eta_seconds.unwrap_or(f64::NAN));
    gauge!("zipper_coordinator_epoch").set(picture.coordinator.epoch as f64);
    if let Some(latest) = &picture.latest {
        gauge!("zipper_learning_rate").set(latest.lr);
        gauge!("zipper_gradient_norm").set(latest.grad_norm.unwrap_or(f64::NAN));
        gauge!("zipper_comm_exposed_ratio").set(latest.comm_share);
    }
    for evaluation in &picture.evaluations {
        let set = evaluation.name.clone();
        gauge!("zipper_evaluation_wer_ratio", "set" => set.clone()).set(evaluation.wer);
        gauge!("zipper_evaluation_cer_ratio", "set" => set).set(evaluation.cer);
    }
    if let Some(effective) = picture.times.effective() {
        gauge!("zipper_effective_training_ratio").set(effective);
    }
}

fn show_counters(sums: &Sums, picture: &Picture, usage: StoreUsage) {
    counter!("zipper_audio_seconds_total").absolute(sums.audio_seconds as u64);
    counter!("zipper_tokens_total").absolute(sums.tokens);
    counter!("zipper_steps_skipped_total").absolute(sums.skipped);
    counter!("zipper_loss_spikes_total").absolute(sums.spikes);
    counter!("zipper_compute_seconds_total").absolute(sums.compute_seconds as u64);
    counter!("zipper_comm_exposed_seconds_total").absolute(sums.comm_exposed_seconds as u64);
    counter!("zipper_comm_bytes_total", "gradients" => "shared").absolute(sums.comm_bytes_shared);
    counter!("zipper_comm_bytes_total", "gradients" => "banks").absolute(sums.comm_bytes_banks);
    counter!("zipper_checkpoint_stall_seconds_total").absolute(sums.checkpoint_seconds as u64);
    let times = &picture.times;
    counter!("zipper_generations_broken_total").absolute(times.losses);
    counter!("zipper_steps_repeated_total").absolute(times.repeated_steps);
    counter!("zipper_productive_seconds_total").absolute(times.productive_seconds as u64);
    for (cause, seconds) in &times.lost_seconds {
        counter!("zipper_lost_seconds_total", "cause" => cause.clone()).absolute(*seconds as u64);
    }
    for (operation, number) in [
        ("read", usage.reads),
        ("write", usage.writes),
        ("list", usage.lists),
        ("delete", usage.deletes),
    ] {
        counter!("zipper_store_requests_total", "operation" => operation).absolute(number);
    }
    counter!("zipper_store_bytes_total", "direction" => "read").absolute(usage.bytes_read);
    counter!("zipper_store_bytes_total", "direction" => "written").absolute(usage.bytes_written);
}

fn show_cluster(picture: &Picture) {
    gauge!("zipper_generation").set(picture.generation as f64);
    gauge!("zipper_world_size").set(f64::from(picture.world_size));
    for state in ["training", "ready", "loading", "leaving"] {
        let number = picture.workers.get(state).copied().unwrap_or_default();
        gauge!("zipper_workers", "state" => state).set(f64::from(number));
    }
    for (reason, &number) in &picture.refused {
        counter!("zipper_connections_refused_total", "reason" => reason.clone()).absolute(number);
    }
    for state in ["healthy", "silent", "left_out", "missing"] {
        let number = picture.nodes.get(state).copied().unwrap_or_default();
        gauge!("zipper_nodes", "state" => state).set(f64::from(number));
    }
    let ages = picture.members.iter().map(|member| member.heard_seconds);
    gauge!("zipper_heartbeat_age_seconds_max").set(ages.fold(0.0, f64::max));
    for kind in ALARMS {
        let raised = picture.alarms.iter().any(|alarm| alarm.kind == kind);
        gauge!("zipper_alarm", "kind" => kind).set(f64::from(u8::from(raised)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prometheus_parse::{Scrape, Value};
    use zipper_proto::v1;

    use super::*;
    use crate::picture::{Evaluation, Latest};

    /// A run in which everything that has a metric has happened.
    fn rendered() -> String {
        let mut picture = Picture::default();
        "with \"quotes\" and \\".clone_into(&mut picture.run.name);
        picture.run.languages = vec!["en".to_owned()];
        picture.latest = Some(Latest::default());
        picture.refused.insert("no_certificate".to_owned(), 1);
        picture.evaluations.push(Evaluation::default());
        picture.published(5, "2026-01-01T00:00:00Z");
        picture.times.total_seconds = 10.0;
        picture.times.productive_seconds = 9.0;
        picture.times.lost_seconds.insert("starting".to_owned(), 1.0);
        let mut series = Series::new(&picture.run.languages);
        let en = v1::LanguageMetrics {
            nll: 6.0,
            tokens: 3,
            utterances: 1,
        };
        series.add(&v1::StepMetrics {
            step: 1,
            stage: v1::Stage::Align.into(),
            loss: 2.0,
            seconds: 0.7,
            audio_seconds: 12.5,
            tokens: 3,
            by_language: [("en".to_owned(), en)].into_iter().collect(),
            gates: Some(v1::GateShares {
                layers: vec!["model.layers.0".to_owned()],
                by_language: [("en".to_owned(), v1::LayerShares { shares: vec![0.25] })]
                    .into_iter()
                    .collect(),
            }),
            ..v1::StepMetrics::default()
        });
        // The same step in an earlier launch counts, too, but is in no histogram.
        let mut prometheus = Prometheus::new(&series);
        prometheus.step(series.languages(), &series.points()[0]);
        let usage = StoreUsage {
            writes: 7,
            ..StoreUsage::default()
        };
        prometheus.render(&picture, usage, Some(3.0))
    }

    fn scrape(text: &str) -> Scrape {
        Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).expect("a parser of others reads it")
    }

    /// Goal: a parser that others wrote reads every metric in [`METRICS`], and no others, with the values they should have.
    #[test]
    fn a_parser_of_others_reads_every_metric() {
        let text = rendered();
        let scrape = scrape(&text);
        let names = scrape.samples.iter().map(|sample| sample.metric.as_str());
        // Of a histogram the parser tells these, too.
        let names: BTreeSet<&str> = names
            .filter(|name| !["zipper_step_seconds_sum", "zipper_step_seconds_count"].contains(name))
            .collect();
        let listed: BTreeSet<&str> = METRICS.iter().map(|(name, ..)| *name).collect();
        assert_eq!(names, listed, "{text}");
        let value = |name: &str, label: &str, of: &str| {
            let sample = scrape.samples.iter().find(|sample| {
                sample.metric == name && (label.is_empty() || sample.labels.get(label) == Some(of))
            });
            sample.map(|sample| sample.value.clone())
        };
        assert_eq!(value("zipper_loss", "language", "en"), Some(Value::Gauge(2.0)));
        let left = value("zipper_eta_seconds", "", "");
        assert!(
            matches!(left, Some(Value::Gauge(left)) if left.is_nan()),
            "not known: {left:?}"
        );
        assert_eq!(
            value("zipper_gate_share", "language", "en"),
            Some(Value::Gauge(0.25))
        );
        assert_eq!(
            value("zipper_audio_seconds_total", "", ""),
            Some(Value::Counter(25.0))
        );
        assert_eq!(
            value("zipper_store_requests_total", "operation", "write"),
            Some(Value::Counter(7.0))
        );
        assert_eq!(
            value("zipper_effective_training_ratio", "", ""),
            Some(Value::Gauge(0.9))
        );
        let Some(Value::Histogram(buckets)) = value("zipper_step_seconds", "stage", "align") else {
            panic!("no histogram: {text}");
        };
        let counted: Vec<(f64, f64)> = buckets
            .iter()
            .map(|bucket| (bucket.less_than, bucket.count))
            .collect();
        assert!(
            counted.contains(&(0.5, 0.0)) && counted.contains(&(1.0, 1.0)),
            "{counted:?}"
        );
        let labels = METRICS.iter().filter(|(_, _, labels, _)| !labels.is_empty());
        for (name, _, labels, _) in labels {
            for label in labels.split(", ") {
                let sample = scrape.samples.iter().find(|sample| sample.metric == *name);
                assert!(
                    sample.is_some_and(|sample| sample.labels.get(label).is_some()),
                    "`{name}` lacks `{label}`"
                );
            }
        }
    }

    /// Goal: docs/watching.md lists what is exported, no more and no less.
    #[test]
    fn the_documentation_lists_what_is_exported() {
        let page = include_str!("../../../docs/watching.md");
        let rows: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| `zipper_"))
            .collect();
        let expected: Vec<String> = METRICS
            .iter()
            .map(|(name, kind, labels, text)| {
                let kind = match kind {
                    Kind::Counter => "counter",
                    Kind::Gauge => "gauge",
                    Kind::Histogram => "histogram",
                };
                format!("| `{name}` | {kind} | {labels} | {text} |")
            })
            .collect();
        assert_eq!(rows, expected, "the rows should be:\n{}", expected.join("\n"));
    }
}

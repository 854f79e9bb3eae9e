//! The steps of a run, as charts need them: numbers in columns.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zipper_proto::v1;
use zipper_types::{Stage, Step};

use crate::gates::Gates;
use crate::picture::{Latest, finite};

/// The numbers of a logged step.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its number.
    pub step: u64,
    /// Its stage.
    pub stage: Stage,
    /// Nats per target token.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Target tokens of the global batch.
    pub tokens: u64,
    /// Audio in the global batch.
    pub audio_seconds: f64,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Seconds for which a rank only waited for collectives, on average.
    pub comm_exposed_seconds: f64,
    /// Bytes of shared gradients, of each rank.
    pub comm_bytes_shared: u64,
    /// Bytes of gradients of banks, of all ranks.
    pub comm_bytes_banks: u64,
    /// Seconds of forward and backward passes, summed over the ranks.
    pub compute_seconds: f64,
    /// Seconds for which training was held up by checkpoints.
    pub checkpoint_seconds: f64,
    /// The most memory that rank 0 has had so far; 0 if not known.
    pub memory_peak_bytes: u64,
    /// Ranks.
    pub world_size: u32,
    /// The update was left out because a gradient was not finite or the loss a spike.
    pub skipped: bool,
    /// The loss was far above those before.
    pub spike: bool,
    /// Loss and tokens of each language, in the order of the configuration; no tokens where it was not in the batch.
    pub languages: Box<[(f32, u32)]>,
    /// Share of ranks that each language takes from what all share, in the same order; empty where no router decides.
    pub shares: Box<[f32]>,
}

/// A line of `metrics/train.jsonl`.
#[derive(Debug, Deserialize)]
struct Line {
    step: u64,
    stage: Stage,
    /// Absent where JSON cannot write it.
    loss: Option<f64>,
    #[serde(default)]
    lr: f64,
    grad_norm: Option<f64>,
    #[serde(default)]
    tokens: u64,
    #[serde(default)]
    audio_seconds: f64,
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    comm_exposed_seconds: f64,
    #[serde(default)]
    comm_bytes_shared: u64,
    #[serde(default)]
    comm_bytes_banks: u64,
    #[serde(default)]
    compute_seconds: f64,
    #[serde(default)]
    checkpoint_seconds: f64,
    #[serde(default)]
    memory_peak_bytes: u64,
    #[serde(default)]
    world_size: u32,
    #[serde(default)]
    skipped: bool,
    #[serde(default)]
    spike: bool,
    #[serde(default)]
    by_language: BTreeMap<String, OfLanguage>,
    /// Mean shares by language.
    gates: Option<BTreeMap<String, f64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OfLanguage {
    /// Absent where JSON cannot write it.
    loss: Option<f64>,
    tokens: u64,
}

/// The logged steps of a run in order.
#[derive(Debug, Clone, Default)]
pub struct Series {
    languages: Vec<String>,
    points: Vec<Point>,
}

/// Steps in columns, as the page gets them. `NaN` becomes `null`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Columns {
    /// Numbers of the steps: of several that were put together, the last one.
    pub step: Vec<u64>,
    /// 1 or 2.
    pub stage: Vec<u8>,
    /// Loss.
    pub loss: Vec<f64>,
    /// Learning rate.
    pub lr: Vec<f64>,
    /// Norm of the gradient.
    pub grad_norm: Vec<f64>,
    /// Seconds of audio in a second.
    pub audio_per_second: Vec<f64>,
    /// Tokens in a second.
    pub tokens_per_second: Vec<f64>,
    /// Share of the time spent waiting for collectives.
    pub comm_share: Vec<f64>,
    /// Losses by language.
    pub languages: BTreeMap<String, Vec<Option<f64>>>,
}

impl Series {
    /// No steps yet, of a run with these languages.
    pub fn new(languages: &[String]) -> Self {
        Self {
            languages: languages.to_vec(),
            points: Vec::new(),
        }
    }

    /// Reads lines of `metrics/train.jsonl`; what is not one is passed over.
    pub fn read<'a>(languages: &[String], lines: impl Iterator<Item = &'a str>) -> Self {
        let mut series = Self::new(languages);
        for line in lines {
            if let Ok(line) = serde_json::from_str::<Line>(line) {
                let point = series.point_of(&line);
                series.insert(point);
            }
        }
        series
    }

    fn point_of(&self, line: &Line) -> Point {
        let languages = self.languages.iter().map(|lang| {
            let found = line.by_language.get(lang);
            found.map_or((0.0, 0), |found| {
                (found.loss.unwrap_or(f64::NAN) as f32, found.tokens as u32)
            })
        });
        let shares = line.gates.as_ref().map(|gates| {
            let of = |lang: &String| gates.get(lang).copied();
            self.shares(&of)
        });
        Point {
            languages: languages.collect(),
            shares: shares.unwrap_or_default(),
            step: line.step,
            stage: line.stage,
            loss: line.loss.unwrap_or(f64::NAN),
            lr: line.lr,
            grad_norm: line.grad_norm.unwrap_or(f64::NAN),
            tokens: line.tokens,
            audio_seconds: line.audio_seconds,
            seconds: line.seconds,
            comm_exposed_seconds: line.comm_exposed_seconds,
            comm_bytes_shared: line.comm_bytes_shared,
            comm_bytes_banks: line.comm_bytes_banks,
            compute_seconds: line.compute_seconds,
            checkpoint_seconds: line.checkpoint_seconds,
            memory_peak_bytes: line.memory_peak_bytes,
            world_size: line.world_size,
            skipped: line.skipped,
            spike: line.spike,
        }
    }

    /// Adds a step; one that is there, or came before one that is, is not added. Says whether it was.
    pub fn add(&mut self, metrics: &v1::StepMetrics) -> bool {
        let languages = self.languages.iter().map(|lang| {
            let found = metrics.by_language.get(lang);
            found.map_or((0.0, 0), |found| {
                (
                    (found.nll / found.tokens.max(1) as f64) as f32,
                    found.tokens as u32,
                )
            })
        });
        let gates = metrics.gates.as_ref().map(Gates::of);
        let shares = gates.as_ref().map(|gates| {
            let means = gates.means();
            self.shares(&|lang: &String| means.get(lang.as_str()).copied())
        });
        let point = Point {
            languages: languages.collect(),
            shares: shares.unwrap_or_default(),
            step: metrics.step,
            stage: zipper_proto::stage(metrics.stage).unwrap_or(Stage::Align),
            loss: metrics.loss,
            lr: metrics.lr,
            grad_norm: metrics.grad_norm,
            tokens: metrics.tokens,
            audio_seconds: metrics.audio_seconds,
            seconds: metrics.seconds,
            comm_exposed_seconds: metrics.comm_exposed_seconds,
            comm_bytes_shared: metrics.comm_bytes_shared,
            comm_bytes_banks: metrics.comm_bytes_banks,
            compute_seconds: metrics.compute_seconds,
            checkpoint_seconds: metrics.checkpoint_seconds,
            memory_peak_bytes: metrics.memory_peak_bytes,
            world_size: metrics.world_size,
            skipped: metrics.skipped,
            spike: metrics.spike,
        };
        self.insert(point)
    }

    /// In the order of the languages.
    fn shares(&self, of: &dyn Fn(&String) -> Option<f64>) -> Box<[f32]> {
        let languages = self.languages.iter();
        languages
            .map(|lang| of(lang).map_or(f32::NAN, |share| share as f32))
            .collect()
    }

    fn insert(&mut self, point: Point) -> bool {
        let is_new = self.last_step() < point.step;
        if is_new {
            self.points.push(point);
        }
        is_new
    }

    /// The newest step; 0 if there is none.
    pub fn last_step(&self) -> u64 {
        self.points.last().map_or(0, |point| point.step)
    }

    /// What the newest step tells.
    pub fn latest(&self) -> Option<Latest> {
        let point = self.points.last()?;
        let seconds = point.seconds.max(1e-9);
        let newest = |language: usize| {
            let losses = self.points.iter().rev().map(|point| point.languages[language]);
            let loss = losses.filter(|(loss, tokens)| *tokens > 0 && loss.is_finite());
            loss.map(|(loss, _)| f64::from(loss)).next()
        };
        let by_language = self.languages.iter().enumerate();
        let by_language = by_language.filter_map(|(index, lang)| Some((lang.clone(), newest(index)?)));
        Some(Latest {
            step: point.step,
            loss: finite(point.loss),
            lr: point.lr,
            grad_norm: finite(point.grad_norm),
            audio_per_second: point.audio_seconds / seconds,
            tokens_per_second: point.tokens as f64 / seconds,
            comm_share: point.comm_exposed_seconds / seconds,
            by_language: by_language.collect(),
            skipped: point.skipped,
            // Lines of the metrics have means only.
            gates: None,
        })
    }

    /// The points in order.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// The languages of the run.
    pub fn languages(&self) -> &[String] {
        &self.languages
    }

    /// Forgets the steps after `step`: they are made again.
    pub fn cut(&mut self, step: Step) {
        self.points.retain(|point| point.step <= step.0);
    }

    /// Those after `step`.
    pub fn after(&self, step: Step) -> &[Point] {
        &self.points[self.points.partition_point(|point| point.step <= step.0)..]
    }

    /// `points` of this series in columns, at most `most` of them: neighbours are put together, weighted as if they had been
    /// one step.
    pub fn columns(&self, points: &[Point], most: usize) -> Columns {
        let together = points.len().div_ceil(most.max(1)).max(1);
        let mut columns = Columns::default();
        for lang in &self.languages {
            columns.languages.insert(lang.clone(), Vec::new());
        }
        for group in points.chunks(together) {
            self.push(&mut columns, group);
        }
        columns
    }

    fn push(&self, columns: &mut Columns, group: &[Point]) {
        let Some(last) = group.last() else { return };
        let sum = |of: &dyn Fn(&Point) -> f64| group.iter().map(of).sum::<f64>();
        let mean = |of: &dyn Fn(&Point) -> f64| sum(of) / group.len() as f64;
        let tokens = sum(&|point| point.tokens as f64);
        let seconds = sum(&|point| point.seconds).max(1e-9);
        columns.step.push(last.step);
        columns.stage.push(match last.stage {
            Stage::Align => 1,
            Stage::Zipper => 2,
        });
        let nats = sum(&|point| point.loss * point.tokens as f64);
        columns.loss.push(if tokens > 0.0 {
            nats / tokens
        } else {
            mean(&|point| point.loss)
        });
        columns.lr.push(mean(&|point| point.lr));
        columns.grad_norm.push(mean(&|point| point.grad_norm));
        columns
            .audio_per_second
            .push(sum(&|point| point.audio_seconds) / seconds);
        columns.tokens_per_second.push(tokens / seconds);
        let waited = sum(&|point| point.comm_exposed_seconds);
        columns.comm_share.push(waited / seconds);
        for (index, lang) in self.languages.iter().enumerate() {
            let of = |point: &Point| point.languages.get(index).copied().unwrap_or_default();
            let tokens: f64 = group.iter().map(|point| f64::from(of(point).1)).sum();
            let nats: f64 = group
                .iter()
                .map(|point| f64::from(of(point).0) * f64::from(of(point).1))
                .sum();
            if let Some(column) = columns.languages.get_mut(lang) {
                column.push((tokens > 0.0).then(|| nats / tokens));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn languages() -> Vec<String> {
        vec!["en".to_owned(), "de".to_owned()]
    }

    fn metrics(step: u64, loss: f64, tokens: u64) -> v1::StepMetrics {
        let de = v1::LanguageMetrics {
            nll: loss * tokens as f64,
            tokens,
            utterances: 1,
        };
        v1::StepMetrics {
            step,
            stage: v1::Stage::Zipper.into(),
            loss,
            tokens,
            seconds: 2.0,
            audio_seconds: 10.0,
            comm_exposed_seconds: 0.5,
            by_language: [("de".to_owned(), de)].into_iter().collect(),
            ..v1::StepMetrics::default()
        }
    }

    /// Goal: neighbours that are put together give the loss that one step with all their tokens would have had.
    #[test]
    fn thinned_columns_are_weighted_means() {
        let mut series = Series::new(&languages());
        for (step, loss, tokens) in [(1, 1.0, 30), (2, 2.0, 10), (3, 4.0, 5)] {
            assert!(series.add(&metrics(step, loss, tokens)));
        }
        assert!(!series.add(&metrics(2, 9.0, 9)), "a step that was made again");
        let whole = series.columns(series.points(), 10);
        assert_eq!((whole.step, whole.loss), (vec![1, 2, 3], vec![1.0, 2.0, 4.0]));
        let thin = series.columns(series.points(), 2);
        assert_eq!((thin.step, thin.loss), (vec![2, 3], vec![1.25, 4.0]));
        assert_eq!(thin.audio_per_second, [5.0, 5.0]);
        assert_eq!(thin.comm_share, [0.25, 0.25]);
        assert_eq!(thin.languages["de"], [Some(1.25), Some(4.0)]);
        assert_eq!(thin.languages["en"], [None, None]);
        assert_eq!(series.after(Step(2)).len(), 1);
    }

    /// Goal: what an earlier coordinator wrote is read, lines that were cut in the middle and losses that are not numbers included.
    #[test]
    fn lines_of_the_metrics_are_read() {
        let text = r#"{"step":1,"stage":"align","loss":2.5,"tokens":4,"seconds":1.0,"audio_seconds":3.0,"by_language":{"en":{"loss":2.5,"tokens":4}}}
{"step":2,"stage":"zipper","loss":null,"by_language":{"en":{"loss":null,"tokens":4}}}
{"step":3,"stage":"zip"#;
        let series = Series::read(&languages(), text.lines());
        let steps: Vec<(u64, Stage)> = series
            .points()
            .iter()
            .map(|point| (point.step, point.stage))
            .collect();
        assert_eq!(steps, [(1, Stage::Align), (2, Stage::Zipper)]);
        let columns = series.columns(series.points(), 10);
        assert!((columns.loss[0] - 2.5).abs() < 1e-12, "{:?}", columns.loss);
        let json = serde_json::to_string(&columns).expect("columns are JSON");
        assert!(json.contains(r#""loss":[2.5,null]"#), "{json}");
    }
}

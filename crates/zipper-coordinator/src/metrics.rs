//! `metrics/train.jsonl`: one line for each logged step.
//!
//! An object store cannot append, so the lines are kept here and the object is written anew: every few seconds while it is small,
//! and the less often the larger it is, so that the bytes written a second stay the same however long a run is.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use bytes::Bytes;
use zipper_checkpoint::{CheckpointError, RunStore, layout};
use zipper_proto::v1;
use zipper_types::Step;

/// Least time between two writes of the object, for each [`BYTES_A_WRITE`] of it or a part of them.
const WRITE_EVERY: Duration = Duration::from_secs(2);
const BYTES_A_WRITE: usize = 1 << 20;
/// Lines that may be unwritten: fewer than workers tell again to a coordinator that has come back
/// (`SAID_AGAIN` of the worker's `control/reports.rs`).
const MOST_UNWRITTEN: usize = 1024;

/// The lines of a run's metrics.
pub(crate) struct Metrics {
    lines: BTreeMap<Step, String>,
    unwritten: usize,
    /// When the object was last written, and its bytes then.
    last_write: Option<(Duration, usize)>,
}

impl Metrics {
    /// Reads what an earlier coordinator wrote; with `resume` only up to that step, from which the run goes on.
    ///
    /// # Errors
    /// [`CheckpointError`] if the store cannot be read.
    pub(crate) async fn open(store: &RunStore, resume: Option<Step>) -> Result<Self, CheckpointError> {
        let bytes = store.get_if_there(layout::TRAIN_METRICS).await?;
        let bytes = bytes.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let step_of = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
        let lines: BTreeMap<Step, String> = text
            .lines()
            .filter_map(|line| Some((Step(step_of(line)?), line.to_owned())))
            .filter(|(step, _)| resume.is_none_or(|resume| *step <= resume))
            .collect();
        Ok(Self {
            // What is there now ends after the step that the run goes on from.
            unwritten: text.lines().count() - lines.len(),
            lines,
            last_write: None,
        })
    }

    /// The lines that there are.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.values().map(String::as_str)
    }

    /// Adds a step, and says whether it is the newest: one that was made again is not added again, and one that is told late,
    /// as to a coordinator that has come back, takes its place among the others.
    pub(crate) fn add(&mut self, metrics: &v1::StepMetrics) -> bool {
        let step = Step(metrics.step);
        let is_newest = self.lines.last_key_value().is_none_or(|(last, _)| *last < step);
        if let Entry::Vacant(vacant) = self.lines.entry(step) {
            vacant.insert(line(metrics));
            self.unwritten += 1;
        }
        is_newest
    }

    /// The object's new contents, if there is something new and the last write was long enough ago, or if it is `urgent`.
    pub(crate) fn due_write(&mut self, now: Duration, urgent: bool) -> Option<Bytes> {
        let recent = self.last_write.is_some_and(|(last, bytes)| {
            let pieces = 1 + bytes / BYTES_A_WRITE;
            now.saturating_sub(last) < WRITE_EVERY * u32::try_from(pieces).unwrap_or(u32::MAX)
        });
        let may_wait = recent && self.unwritten < MOST_UNWRITTEN;
        if self.unwritten == 0 || (may_wait && !urgent) {
            return None;
        }
        let text: String = self
            .lines
            .values()
            .flat_map(|line| [line.as_str(), "\n"])
            .collect();
        self.unwritten = 0;
        self.last_write = Some((now, text.len()));
        Some(Bytes::from(text))
    }
}

fn line(metrics: &v1::StepMetrics) -> String {
    let by_language: serde_json::Map<String, serde_json::Value> = metrics
        .by_language
        .iter()
        .map(|(lang, language)| {
            let loss = language.nll / language.tokens.max(1) as f64;
            let value = serde_json::json!({"loss": loss, "tokens": language.tokens, "utterances": language.utterances});
            (lang.clone(), value)
        })
        .collect();
    let stage = zipper_proto::stage(metrics.stage).map_or("unknown", zipper_types::Stage::name);
    let mut line = serde_json::json!({
        "step": metrics.step, "stage": stage, "loss": metrics.loss, "lr": metrics.lr,
        "grad_norm": metrics.grad_norm, "tokens": metrics.tokens, "audio_seconds": metrics.audio_seconds,
        "seconds": metrics.seconds, "compute_seconds": metrics.compute_seconds,
        "comm_exposed_seconds": metrics.comm_exposed_seconds, "comm_bytes_shared": metrics.comm_bytes_shared,
        "comm_bytes_banks": metrics.comm_bytes_banks, "world_size": metrics.world_size,
        "checkpoint_seconds": metrics.checkpoint_seconds, "memory_seconds": metrics.memory_seconds,
        "memory_peak_bytes": metrics.memory_peak_bytes,
        "skipped": metrics.skipped, "spike": metrics.spike, "by_language": by_language,
    });
    if let Some(ctc) = metrics.ctc {
        line["ctc"] = serde_json::json!(ctc);
    }
    if let Some(parts) = &metrics.parts {
        line["parts"] = serde_json::json!({
            "data": parts.data, "encoder": parts.encoder, "forward": parts.forward,
            "backward": parts.backward, "exchange": parts.exchange, "update": parts.update,
        });
    }
    if let Some(gates) = &metrics.gates {
        line["gates"] = serde_json::json!(zipper_watch::Gates::of(gates).means());
    }
    line.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Metrics {
        Metrics {
            lines: BTreeMap::new(),
            unwritten: 0,
            last_write: None,
        }
    }

    fn step(step: u64, loss: f64) -> v1::StepMetrics {
        v1::StepMetrics {
            step,
            loss,
            ..v1::StepMetrics::default()
        }
    }

    /// Goal: a coordinator that comes back has what the one before it wrote, up to where the run goes on, and writes the object anew only if
    /// something in it goes. Method: an object of three lines and of what is none.
    #[tokio::test]
    async fn what_was_written_is_read_up_to_where_the_run_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = RunStore::open(folder.path().to_str().expect("a name")).expect("a store");
        let lines = [r#"{"step":1}"#, r#"{"step":2}"#, r#"{"step":3}"#];
        let put = |text: String| store.put(layout::TRAIN_METRICS, Bytes::from(text));
        put(lines.join("\n")).await.expect("it is written");
        let mut whole = Metrics::open(&store, None).await.expect("it is read");
        assert!(whole.lines().eq(lines));
        assert_eq!(whole.due_write(Duration::ZERO, true), None);

        let mut resumed = Metrics::open(&store, Some(Step(2))).await.expect("it is read");
        assert!(resumed.lines().eq(lines[..2].iter().copied()));
        let text = resumed
            .due_write(Duration::ZERO, false)
            .expect("the last line goes");
        assert_eq!(text, format!("{}\n{}\n", lines[0], lines[1]));

        put(format!("{}\nno line", lines[0]))
            .await
            .expect("it is written");
        let mut mended = Metrics::open(&store, None).await.expect("it is read");
        assert!(mended.due_write(Duration::ZERO, false).is_some());
    }

    #[test]
    fn a_line_has_the_loss_of_each_language() {
        let german = v1::LanguageMetrics {
            nll: 6.0,
            tokens: 4,
            utterances: 2,
        };
        let metrics = v1::StepMetrics {
            by_language: [("de".to_owned(), german)].into(),
            ..step(1, 1.5)
        };
        let line: serde_json::Value = serde_json::from_str(&line(&metrics)).expect("it is JSON");
        assert_eq!(line["by_language"]["de"]["loss"], 1.5);
    }

    /// Goal: a run of days does not write hundreds of megabytes every two seconds, and never has more unwritten than is told
    /// again.
    #[test]
    fn a_large_object_is_written_less_often() {
        let mut metrics = empty();
        let second = Duration::from_secs;
        metrics.add(&step(1, 1.0));
        assert!(metrics.due_write(second(0), false).is_some());
        metrics.add(&step(2, 1.0));
        assert!(metrics.due_write(second(1), false).is_none());
        let text = metrics.due_write(second(2), false).expect("it is small");
        let lines = 3 * BYTES_A_WRITE / (text.len() / 2);
        for number in 0..lines as u64 {
            metrics.add(&step(3 + number, 1.0));
        }
        assert!(
            metrics.due_write(second(3), false).is_some(),
            "too many are unwritten"
        );
        metrics.add(&step(1_000_000, 1.0));
        assert!(metrics.due_write(second(5), false).is_none());
        assert!(metrics.due_write(second(5), true).is_some(), "urgent");
        for number in 0..MOST_UNWRITTEN as u64 {
            assert!(metrics.due_write(second(6), false).is_none());
            metrics.add(&step(1_000_001 + number, 1.0));
        }
        assert!(metrics.due_write(second(6), false).is_some());
    }

    /// Goal: rank 0 tells the lines again that a lost coordinator had not written; by then newer ones may have come.
    #[test]
    fn lines_that_are_told_late_are_not_lost() {
        let mut metrics = empty();
        let told = [(1, 1.0), (4, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)];
        let newest = told.map(|(number, loss)| metrics.add(&step(number, loss)));
        assert_eq!(newest, [true, true, false, false, false]);
        let text = metrics
            .due_write(Duration::ZERO, false)
            .expect("there is something new");
        let losses: Vec<(u64, f64)> = std::str::from_utf8(&text)
            .expect("UTF-8")
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
            .map(|line| {
                (
                    line["step"].as_u64().unwrap_or(0),
                    line["loss"].as_f64().unwrap_or(0.0),
                )
            })
            .collect();
        assert_eq!(losses, [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)]);
        assert_eq!(metrics.due_write(Duration::from_secs(9), true), None);
    }
}

//! What is written, and when.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use zipper_checkpoint::{CheckpointError, RunStore, layout};

use super::record::{Event, Summary, Value, What, append, begin};
use crate::picture::Evaluation;
use crate::series::{Point, Series};

/// Least time between two files.
const SHORTEST: Duration = Duration::from_secs(10);
/// Most time between two files.
const LONGEST: Duration = Duration::from_mins(5);
/// In between it is this part of the time since the start.
const PART: u32 = 50;
/// What TensorBoard knows event files by.
const PREFIX: &str = "events.out.tfevents.";

/// Writes event files of a run.
pub struct TensorBoard {
    store: RunStore,
    /// Number of the next file.
    next: u64,
    /// The last step that is in a file, or will be in the next one.
    last_step: u64,
    events: BytesMut,
    started: Duration,
    last_write: Duration,
    /// The next file is written at once.
    urgent: bool,
}

impl TensorBoard {
    /// Goes on after the files that there are. `now` is any clock that [`TensorBoard::write`] is told, too.
    ///
    /// # Errors
    /// [`CheckpointError`] if the store does not answer.
    pub async fn open(store: &RunStore, now: Duration) -> Result<Self, CheckpointError> {
        let files = store.list(layout::TENSORBOARD).await?;
        let newest = files.iter().filter_map(|path| parse(path)).max();
        let (next, last_step) = newest.map_or((0, 0), |(number, step)| (number + 1, step));
        Ok(Self {
            store: store.clone(),
            next,
            last_step,
            events: BytesMut::new(),
            started: now,
            last_write: now,
            urgent: false,
        })
    }

    /// Adds the steps that are in no file yet.
    pub fn add(&mut self, series: &Series) {
        let time = unix_seconds();
        for point in series.after(zipper_types::Step(self.last_step)) {
            append(&mut self.events, &step(series.languages(), point, time));
        }
        self.last_step = self.last_step.max(series.last_step());
    }

    /// Adds an evaluation, and sees to it that it is written at once: it is told only once.
    pub fn evaluated(&mut self, evaluation: &Evaluation) {
        let set = &evaluation.name;
        let mut values = vec![
            value(format!("evaluation/{set}/wer"), evaluation.wer),
            value(format!("evaluation/{set}/cer"), evaluation.cer),
        ];
        values.extend(
            evaluation
                .loss
                .map(|loss| value(format!("evaluation/{set}/loss"), loss)),
        );
        let event = event(evaluation.step, unix_seconds(), values);
        append(&mut self.events, &event);
        self.urgent = true;
    }

    /// Writes what is new, if the last time was long enough ago or it is `urgent`.
    ///
    /// # Errors
    /// [`CheckpointError`] if it cannot be written: it is kept, and written when the next file is due.
    pub async fn write(&mut self, now: Duration, urgent: bool) -> Result<(), CheckpointError> {
        let age = now.saturating_sub(self.started);
        let pause = (age / PART).clamp(SHORTEST, LONGEST);
        let is_due = urgent || self.urgent || now.saturating_sub(self.last_write) >= pause;
        if self.events.is_empty() || !is_due {
            return Ok(());
        }
        // Not sooner again, whether it succeeds or not; what was urgent then waits for its turn.
        self.last_write = now;
        self.urgent = false;
        let mut file = BytesMut::new();
        append(&mut file, &begin(unix_seconds()));
        file.extend_from_slice(&self.events);
        let path = format!("{}/{}", layout::TENSORBOARD, name(self.next, self.last_step));
        self.store.put(&path, file.freeze()).await?;
        self.next += 1;
        self.events.clear();
        Ok(())
    }
}

fn unix_seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// `events.out.tfevents.0000000003.00000120`: number and last step.
fn name(number: u64, last_step: u64) -> String {
    format!("{PREFIX}{number:010}.{last_step:08}")
}

/// Number and last step of a file.
fn parse(path: &str) -> Option<(u64, u64)> {
    let name = path.rsplit('/').next()?.strip_prefix(PREFIX)?;
    let (number, last_step) = name.split_once('.')?;
    Some((number.parse().ok()?, last_step.parse().ok()?))
}

fn value(tag: String, value: f64) -> Value {
    Value {
        tag,
        simple_value: Some(value as f32),
    }
}

fn event(step: u64, wall_time: f64, values: Vec<Value>) -> Event {
    Event {
        wall_time,
        step: step as i64,
        what: Some(What::Summary(Summary { values })),
    }
}

fn step(languages: &[String], point: &Point, time: f64) -> Event {
    let seconds = point.seconds.max(1e-9);
    let mut values: Vec<Value> = [
        ("train/loss", point.loss),
        ("train/learning_rate", point.lr),
        ("train/gradient_norm", point.grad_norm),
        ("train/stage", f64::from(point.stage as u8 + 1)),
        (
            "throughput/audio_seconds_per_second",
            point.audio_seconds / seconds,
        ),
        ("throughput/tokens_per_second", point.tokens as f64 / seconds),
        ("throughput/seconds_per_step", point.seconds),
        (
            "cluster/communication_share",
            point.comm_exposed_seconds / seconds,
        ),
        ("cluster/world_size", f64::from(point.world_size)),
    ]
    .into_iter()
    .map(|(tag, number)| value(tag.to_owned(), number))
    .collect();
    let by_language = languages.iter().zip(&point.languages);
    values.extend(
        by_language
            .filter(|(_, (_, tokens))| *tokens > 0)
            .map(|(lang, (loss, _))| value(format!("loss_by_language/{lang}"), f64::from(*loss))),
    );
    let shares = languages.iter().zip(&point.shares);
    values.extend(shares.map(|(lang, share)| value(format!("gate_share/{lang}"), f64::from(*share))));
    event(point.step, time, values)
}

#[cfg(test)]
mod tests {
    use zipper_proto::v1;

    use super::*;

    fn series(last: u64) -> Series {
        let mut series = Series::default();
        for step in 1..=last {
            series.add(&v1::StepMetrics {
                step,
                ..v1::StepMetrics::default()
            });
        }
        series
    }

    /// Goal: a coordinator that comes later goes on where the files end, and writes no step twice.
    #[tokio::test]
    async fn files_go_on_where_they_end() -> Result<(), CheckpointError> {
        let at = Duration::from_secs;
        let store = RunStore::in_memory();
        let mut first = TensorBoard::open(&store, at(0)).await?;
        first.add(&series(3));
        first.write(at(1), false).await?;
        assert!(store.list(layout::TENSORBOARD).await?.is_empty(), "too soon");
        first.write(at(11), false).await?;
        first.add(&series(4));
        first.write(at(12), true).await?;
        let mut second = TensorBoard::open(&store, at(0)).await?;
        second.add(&series(4));
        second.write(at(60), true).await?;
        second.add(&series(6));
        second.write(at(61), true).await?;
        let files: Vec<(u64, u64)> = store
            .list(layout::TENSORBOARD)
            .await?
            .iter()
            .filter_map(|path| parse(path))
            .collect();
        assert_eq!(files, [(0, 3), (1, 4), (2, 6)]);
        Ok(())
    }

    /// Goal: a store that refuses an evaluation is not asked every second, and has it in the end.
    #[tokio::test]
    async fn a_store_that_refuses_is_asked_when_the_next_file_is_due() -> Result<(), CheckpointError> {
        let at = Duration::from_secs;
        let store = RunStore::in_memory();
        let mut files = TensorBoard::open(&store, at(0)).await?;
        // Nothing can be written below what is no folder.
        files.store = RunStore::open("/dev/null/run")?;
        files.evaluated(&Evaluation::default());
        files.write(at(1), false).await.expect_err("it is urgent");
        files.write(at(2), false).await?;
        files.write(at(10), false).await?;
        files
            .write(at(11), false)
            .await
            .expect_err("the next file is due");
        files.store = store.clone();
        files.write(at(21), false).await?;
        assert_eq!(store.list(layout::TENSORBOARD).await?.len(), 1);
        Ok(())
    }
}

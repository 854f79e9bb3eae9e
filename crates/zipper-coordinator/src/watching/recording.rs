//! What is written for those who look later: `metrics/status.json` and TensorBoard's files. Beside the page, which a store that
//! does not answer must not hold up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval};
use zipper_checkpoint::lease::Lease;
use zipper_checkpoint::{RunStore, layout};
use zipper_watch::page::Shown;
use zipper_watch::picture::Happening;
use zipper_watch::tensorboard::TensorBoard;
use zipper_watch::{Picture, now_text};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Least time between two pictures in the store, while nothing happens but steps.
const PICTURE_EVERY: Duration = Duration::from_secs(10);

/// What makes a picture old, besides time.
#[derive(Debug, PartialEq)]
struct News {
    newest: Option<Happening>,
    workers: BTreeMap<String, u32>,
    nodes: BTreeMap<String, u32>,
    checkpoint: Option<u64>,
}

impl News {
    fn of(picture: &Picture) -> Self {
        Self {
            newest: picture.timeline.last().cloned(),
            workers: picture.workers.clone(),
            nodes: picture.nodes.clone(),
            checkpoint: picture.checkpoints.last().map(|checkpoint| checkpoint.step),
        }
    }
}

/// Writes into the run's store.
pub(super) struct Recording {
    store: RunStore,
    lease: Arc<Lease>,
    started: Instant,
    tensorboard: Option<TensorBoard>,
    /// Evaluations that TensorBoard knows.
    evaluated: BTreeSet<(String, u64)>,
    last_picture: Option<Instant>,
    /// What the last picture told that is news when it changes.
    told: Option<News>,
    /// The last write failed: said once.
    failing: bool,
}

impl Recording {
    pub(super) fn new(store: &RunStore, lease: Arc<Lease>) -> Self {
        Self {
            store: store.clone(),
            lease,
            started: Instant::now(),
            tensorboard: None,
            evaluated: BTreeSet::new(),
            last_picture: None,
            told: None,
            failing: false,
        }
    }

    /// Writes what is shown until the run is over; then once more.
    pub(super) async fn run(mut self, tensorboard: bool, shown: Shown, mut over: oneshot::Receiver<()>) {
        // What was there before is in the files of an earlier coordinator.
        self.evaluated = shown.look(|picture, _| {
            let evaluations = picture.evaluations.iter();
            evaluations.map(|one| (one.name.clone(), one.step)).collect()
        });
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.write(tensorboard, &shown, false).await,
                _ = &mut over => break,
            }
        }
        self.write(tensorboard, &shown, true).await;
    }

    async fn write(&mut self, tensorboard: bool, shown: &Shown, over: bool) {
        let mut result = self.write_picture(shown, over).await;
        if tensorboard && result.is_ok() {
            result = self.write_tensorboard(shown, over).await;
        }
        match result {
            Ok(()) => self.failing = false,
            Err(problem) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!("what people watch was not written, and will be tried again: {problem:#}");
                }
            }
        }
    }

    async fn write_picture(&mut self, shown: &Shown, over: bool) -> anyhow::Result<()> {
        let news = shown.look(|picture, _| News::of(picture));
        let waited = self
            .last_picture
            .is_none_or(|last| last.elapsed() >= PICTURE_EVERY);
        if !(over || waited || self.told.as_ref() != Some(&news)) {
            return Ok(());
        }
        // Not sooner again, whether it succeeds or not.
        self.last_picture = Some(Instant::now());
        self.told = Some(news);
        self.lease.check().await?;
        let picture = shown.look(|picture, _| {
            let mut picture = picture.clone();
            picture.written = now_text();
            serde_json::to_vec(&picture)
        })?;
        self.store.put(layout::STATUS, Bytes::from(picture)).await?;
        Ok(())
    }

    async fn write_tensorboard(&mut self, shown: &Shown, over: bool) -> anyhow::Result<()> {
        let now = self.started.elapsed();
        let mut tensorboard = match self.tensorboard.take() {
            Some(tensorboard) => tensorboard,
            None => TensorBoard::open(&self.store, now).await?,
        };
        shown.look(|picture, series| {
            tensorboard.add(series);
            for evaluation in &picture.evaluations {
                if self.evaluated.insert((evaluation.name.clone(), evaluation.step)) {
                    tensorboard.evaluated(evaluation);
                }
            }
        });
        let written = tensorboard.write(now, over).await;
        self.tensorboard = Some(tensorboard);
        Ok(written?)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;
    use zipper_watch::Series;

    use super::*;
    use crate::server::claim;

    /// Goal: what happens is in the store at once, steps every ten seconds, and the end in any case.
    #[tokio::test(start_paused = true)]
    async fn a_picture_is_written_when_there_is_news() {
        let store = RunStore::in_memory();
        let lease = claim(&store, 1, Duration::from_hours(1), None).await;
        let shown = Shown::new(store.clone(), Picture::default(), Series::new(&[]));
        let mut recording = Recording::new(&store, lease);
        let mut written = async |step: u64, change: fn(&mut Picture), over| {
            shown.paint(|picture| {
                picture.step = step;
                change(picture);
            });
            let result = recording.write_picture(&shown, over).await;
            result.expect("the store answers");
            let picture = store.get(layout::STATUS).await.expect("the first is written");
            let picture: Picture = serde_json::from_slice(&picture).expect("a picture");
            picture.step
        };
        assert_eq!(written(1, |_| {}, false).await, 1, "the first one");
        assert_eq!(written(2, |_| {}, false).await, 1, "only a step");
        advance(Duration::from_millis(9999)).await;
        assert_eq!(written(3, |_| {}, false).await, 1);
        advance(Duration::from_millis(1)).await;
        assert_eq!(written(4, |_| {}, false).await, 4, "ten seconds are over");
        let joined = |picture: &mut Picture| {
            picture.workers.insert("training".to_owned(), 1);
        };
        assert_eq!(written(5, joined, false).await, 5, "a worker is there");
        assert_eq!(written(6, |picture| picture.published(6, ""), false).await, 6);
        assert_eq!(written(7, |_| {}, true).await, 7, "the end");
    }
}

//! This rank's parts of checkpoints on their way to the run, beside training.
//!
//! One checkpoint is stored at a time, and one may wait. The training thread is held up only when there are more, and not
//! even then while the store cannot be written: then the newest one takes the place of the one that waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::Notify;
use zipper_checkpoint::{Checkpoints, PartRecord, RunStore};
use zipper_proto::v1;
use zipper_train::capture::Capture;
use zipper_train::session::Part;
use zipper_types::{Stage, Step};

use super::Identity;
use super::connection::{Connection, Refused, with_timeout};
use super::shared::Shared;

/// Parts that are uploaded at the same time.
const PARALLEL: usize = 4;
/// Pauses after a part that could not be stored; they double.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often the training thread looks whether it is still held up.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A checkpoint that waits to be stored.
struct Waiting {
    generation: u64,
    capture: Capture,
}

/// Where the training thread leaves checkpoints.
#[derive(Clone, Default)]
pub(super) struct Slot {
    waiting: Arc<Mutex<Option<Waiting>>>,
    filled: Arc<Notify>,
}

/// Checkpoints that are stored, and whose manifest may not be published yet: a coordinator that has come back has to be told
/// again.
type Stored = BTreeMap<Step, (u64, Stage, Vec<PartRecord>)>;

impl Slot {
    /// Leaves a checkpoint to be stored; waits until the one before is on its way.
    pub(super) fn put(&self, generation: u64, capture: Capture, shared: &Shared) {
        loop {
            {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let free = waiting.is_none() || shared.trouble().is_some() || shared.is_over();
                if free {
                    *waiting = Some(Waiting { generation, capture });
                    self.filled.notify_one();
                    return;
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    async fn next(&self) -> Waiting {
        loop {
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
            match waiting {
                Some(waiting) => return waiting,
                None => self.filled.notified().await,
            }
        }
    }
}

pub(super) struct Uploader {
    pub(super) connection: Connection,
    pub(super) identity: Arc<Identity>,
    pub(super) shared: Arc<Shared>,
    pub(super) store: RunStore,
    pub(super) slot: Slot,
}

impl Uploader {
    pub(super) async fn run(self) {
        let mut stored = Stored::new();
        let mut epochs = self.shared.epochs();
        let mut committed = self.shared.committed();
        loop {
            tokio::select! {
                waiting = self.slot.next() => self.store_checkpoint(waiting, &mut stored).await,
                Ok(()) = epochs.changed() => self.tell_again(&stored).await,
                Ok(()) = committed.changed() => {}
            }
            let newest = *committed.borrow_and_update();
            let generation = self.shared.generation();
            stored.retain(|step, (of, ..)| Some(*step) > newest && Some(*of) == generation);
        }
    }

    async fn store_checkpoint(&self, waiting: Waiting, stored: &mut Stored) {
        let Waiting { generation, capture } = waiting;
        let (step, stage) = (capture.step(), capture.stage());
        let parts = tokio::task::spawn_blocking(move || capture.parts()).await;
        let parts = match parts {
            Ok(Ok(parts)) => parts,
            Ok(Err(error)) => {
                tracing::error!("the checkpoint of step {step} cannot be built: {error}");
                return;
            }
            Err(panicked) => {
                tracing::error!("the checkpoint of step {step} cannot be built: {panicked}");
                return;
            }
        };
        match self.upload(generation, step, parts).await {
            Ok(Some(records)) => {
                stored.insert(step, (generation, stage, records.clone()));
                self.report(generation, step, stage, records).await;
            }
            // It is there already.
            Ok(None) => {}
            Err(refused) => tracing::info!("the checkpoint of step {step} is left: {refused}"),
        }
    }

    /// Stores the parts, however long it takes, as long as this worker is in the generation that they are of.
    async fn upload(
        &self,
        generation: u64,
        step: Step,
        parts: Vec<Part>,
    ) -> Result<Option<Vec<PartRecord>>, Refused> {
        let request = v1::BeginCheckpointRequest {
            member: Some(self.identity.member(Some(generation))),
            step: step.0,
        };
        let begun = self.connection.send("beginning a checkpoint", |mut client| {
            let request = with_timeout(request.clone());
            async move { client.begin_checkpoint(request).await }
        });
        let v1::BeginCheckpointResponse { prefix, published } = begun.await?;
        if published {
            return Ok(None);
        }
        let checkpoints = self.store.checkpoints();
        let records: Vec<PartRecord> = stream::iter(parts)
            .map(|part| self.put(&checkpoints, generation, step, &prefix, part))
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        Ok(Some(records))
    }

    async fn put(
        &self,
        checkpoints: &Checkpoints,
        generation: u64,
        step: Step,
        prefix: &str,
        part: Part,
    ) -> Result<PartRecord, Refused> {
        let bytes = Bytes::from(part.bytes);
        let mut pause = FIRST_PAUSE;
        loop {
            if self.shared.generation() != Some(generation) {
                return Err(Refused::Over(format!("generation {generation} is over")));
            }
            match checkpoints
                .put_part(step, prefix, &part.name, bytes.clone())
                .await
            {
                Ok(record) => {
                    self.shared.set_trouble(None);
                    return Ok(record);
                }
                Err(error) => {
                    let message = format!("{:#}", anyhow::Error::new(error));
                    tracing::warn!("{message}; trying again");
                    self.shared.set_trouble(Some(message));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Says that this rank's parts of a checkpoint are stored.
    async fn report(&self, generation: u64, step: Step, stage: Stage, records: Vec<PartRecord>) {
        let parts = records.into_iter().map(|record| v1::CheckpointPart {
            path: record.path,
            bytes: record.bytes,
            blake3: record.blake3,
            object: record.object,
        });
        let request = v1::ReportCheckpointPartsRequest {
            member: Some(self.identity.member(Some(generation))),
            step: step.0,
            stage: v1::Stage::from(stage).into(),
            parts: parts.collect(),
        };
        let reported = self.connection.send("reporting a checkpoint", |mut client| {
            let request = with_timeout(request.clone());
            async move { client.report_checkpoint_parts(request).await }
        });
        if let Err(refused) = reported.await {
            tracing::info!("the checkpoint of step {step} is left: {refused}");
        }
    }

    /// Another coordinator answers, which may not know what this rank has stored.
    async fn tell_again(&self, stored: &Stored) {
        for (step, (generation, stage, records)) in stored {
            self.report(*generation, *step, *stage, records.clone()).await;
        }
    }
}

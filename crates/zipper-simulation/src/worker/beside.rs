//! Beside training: heartbeats, uploads, metrics.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tonic::Code;
use zipper_proto::v1;
use zipper_proto::v1::worker_service_server::WorkerService;
use zipper_types::{Generation, Step};

use super::{PAUSE, REQUEST, Shared};
use crate::world::stage_of;

const HEARTBEAT: Duration = Duration::from_secs(1);
/// The pause before a part is stored again.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// A rank's part of a checkpoint.
pub(super) struct Upload {
    pub(super) generation: Generation,
    pub(super) step: Step,
    /// Names and contents.
    pub(super) parts: Vec<(String, String)>,
}

/// For the task that sends metrics.
pub(super) enum Report {
    Step(Box<v1::StepMetrics>),
    /// Answer when everything before is sent.
    Flush(oneshot::Sender<()>),
}

impl Shared {
    pub(super) async fn heartbeats(self: Rc<Self>) {
        loop {
            sleep(HEARTBEAT).await;
            let generation = self.generation.get();
            let request = v1::HeartbeatRequest {
                member: Some(self.member(generation)),
                last_completed_step: self.step.get().0,
                idle: Some(zipper_proto::wire_duration(self.since.get().elapsed())),
                node_rank: self.node,
                hostname: format!("host{}", self.node),
                doing: "simulating".to_owned(),
                trouble: self.trouble.get().map(|since| v1::StoreTrouble {
                    lasting: Some(zipper_proto::wire_duration(since.elapsed())),
                    message: "a part cannot be stored".to_owned(),
                }),
                ..v1::HeartbeatRequest::default()
            };
            let answer = self
                .ways
                .link
                .call(REQUEST, request, |services, request| async move {
                    services.heartbeat(request).await
                });
            match answer.await {
                Ok(heard) => self.heard(&heard, generation).await,
                Err(status) if status.code() == Code::FailedPrecondition => {
                    self.given_up.set(true);
                    self.leave();
                }
                Err(_) => {}
            }
        }
    }

    async fn heard(&self, heard: &v1::HeartbeatResponse, generation: Option<Generation>) {
        self.stop.set(self.stop.get() || heard.stop_requested);
        self.regroup.set(heard.regroup_requested);
        if let Some(generation) = generation.filter(|_| heard.generation_over) {
            self.set_over(generation);
        }
        if let Some(step) = heard.committed_step {
            self.world.truth.committed(Step(step));
            self.stored.borrow_mut().retain(|stored, _| stored.0 > step);
        }
        // Another coordinator, which may not know what the one before had not written.
        if heard.epoch > self.epoch.get() {
            self.epoch.set(heard.epoch);
            let parts: Vec<_> = self.stored.borrow().values().cloned().collect();
            for request in parts {
                self.report_parts(request).await;
            }
            let said: Vec<_> = self.said.borrow().iter().cloned().collect();
            for metrics in said {
                self.report_step(metrics).await;
            }
        }
    }

    pub(super) async fn reports(self: Rc<Self>, mut waiting: mpsc::UnboundedReceiver<Report>) {
        while let Some(report) = waiting.recv().await {
            match report {
                Report::Step(metrics) => {
                    self.report_step((*metrics).clone()).await;
                    self.said.borrow_mut().push_back(*metrics);
                }
                Report::Flush(done) => {
                    // A training thread that has ended waits for nothing.
                    let _ = done.send(());
                }
            }
        }
    }

    async fn report_step(&self, metrics: v1::StepMetrics) {
        let request = || v1::ReportStepRequest {
            member: Some(self.member(self.generation.get())),
            metrics: Some(metrics.clone()),
        };
        let told = self.insist(request, |services, request| async move {
            services.report_step(request).await
        });
        // Training goes on without its metrics.
        let _ = told.await;
    }

    /// Stores one checkpoint after the other.
    pub(super) async fn uploads(self: Rc<Self>, mut waiting: mpsc::UnboundedReceiver<Upload>) {
        while let Some(upload) = waiting.recv().await {
            let step = upload.step;
            if let Some(request) = self.upload(upload).await {
                self.stored.borrow_mut().insert(step, request.clone());
                self.report_parts(request).await;
            }
        }
    }

    async fn upload(&self, upload: Upload) -> Option<v1::ReportCheckpointPartsRequest> {
        let Upload {
            generation,
            step,
            parts,
        } = upload;
        let current = || self.generation.get() == Some(generation);
        let member = self.member(Some(generation));
        let begun = loop {
            let request = v1::BeginCheckpointRequest {
                member: Some(member.clone()),
                step: step.0,
            };
            let answer = self
                .ways
                .link
                .call(REQUEST, request, |services, request| async move {
                    services.begin_checkpoint(request).await
                });
            match answer.await {
                Ok(begun) => break begun,
                Err(status) if status.code() == Code::Unavailable && current() => sleep(PAUSE).await,
                Err(_) => return None,
            }
        };
        if begun.published {
            return None;
        }
        let mut records = Vec::new();
        for (name, content) in parts {
            let record = loop {
                if !current() {
                    return None;
                }
                let bytes = Bytes::from(content.clone());
                let checkpoints = self.ways.store.checkpoints();
                if let Ok(record) = checkpoints.put_part(step, &begun.prefix, &name, bytes).await {
                    break record;
                }
                let since = self.trouble.get().unwrap_or_else(Instant::now);
                self.trouble.set(Some(since));
                sleep(STORE_PAUSE).await;
            };
            self.trouble.set(None);
            records.push(v1::CheckpointPart {
                path: record.path,
                bytes: record.bytes,
                blake3: record.blake3,
                object: record.object,
            });
        }
        Some(v1::ReportCheckpointPartsRequest {
            member: Some(member),
            step: step.0,
            stage: v1::Stage::from(stage_of(step)).into(),
            parts: records,
        })
    }

    async fn report_parts(&self, request: v1::ReportCheckpointPartsRequest) {
        let generation = request.member.as_ref().and_then(|member| member.generation);
        while generation == self.generation.get().map(|generation| generation.0) {
            let answer = self
                .ways
                .link
                .call(REQUEST, request.clone(), |services, request| async move {
                    services.report_checkpoint_parts(request).await
                });
            match answer.await {
                Err(status) if status.code() == Code::Unavailable => sleep(PAUSE).await,
                _ => return,
            }
        }
    }
}

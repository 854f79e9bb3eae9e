//! Settings that are valid, and of which a user should hear nevertheless.

use humantime::format_duration;
use zipper_types::Variant;

use crate::schema::{
    AdapterConfig, ElasticConfig, EncoderContext, ProjectorConfig, ProjectorKind, RunConfig,
};
use crate::validate::{LONGEST_SECONDS, SPEED_PRECISION};

impl RunConfig {
    /// What a user should hear of though it is valid: settings without effect as the rest stands, and a stop that comes too late.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let defaults = AdapterConfig::default();
        let mut warn = |has_no_effect: bool, key: &str, unless: &str| {
            if has_no_effect {
                warnings.push(format!("`{key}` has no effect unless {unless}"));
            }
        };
        let stage = &self.training.zipper;
        let adapter = &self.adapter;
        warn(
            adapter.shared_rank.is_some() && adapter.variant != Variant::Static,
            "adapter.shared_rank",
            "`adapter.variant` is `static`",
        );
        warn(
            adapter.router != defaults.router && !adapter.variant.has_router(),
            "adapter.router",
            "`adapter.variant` is `hard` or `soft`",
        );
        warn(
            stage.router_lr.is_some() && !adapter.variant.has_router(),
            "training.zipper.router_lr",
            "`adapter.variant` is `hard` or `soft`",
        );
        warn(
            self.training.align.router_lr.is_some(),
            "training.align.router_lr",
            "stage 1 had a router, which it never has",
        );
        warn(
            self.elastic.snapshot_every != ElasticConfig::default().snapshot_every
                && adapter.variant == Variant::Shared,
            "elastic.snapshot_every",
            "`adapter.variant` has banks",
        );
        warn(
            self.runtime.bank_memory_mib.is_some() && adapter.variant == Variant::Shared,
            "runtime.bank_memory_mib",
            "`adapter.variant` has banks",
        );
        let augment = &self.training.augment;
        if let Some(masks) = &augment.spec_augment {
            warn(
                masks.frequency_masks * masks.frequency_width + masks.time_masks * masks.time_width == 0,
                "training.augment.spec_augment",
                "there are masks that are wider than 0",
            );
        }
        warn(
            !augment.speed.is_empty()
                && augment
                    .speed
                    .iter()
                    .all(|speed| (speed - 1.0).abs() < SPEED_PRECISION / 2.0),
            "training.augment.speed",
            "one of the factors is not 1",
        );
        let projector = &self.model.projector;
        warn(
            projector.kind == ProjectorKind::Conv && projector.hidden.is_some(),
            "model.projector.hidden",
            "`model.projector.kind` is `stack`",
        );
        warn(
            projector.kind == ProjectorKind::Conv && projector.stack != ProjectorConfig::default().stack,
            "model.projector.stack",
            "`model.projector.kind` is `stack`",
        );
        warn(
            self.model.encoder.context == EncoderContext::Chunked
                && self.model.encoder.chunk_seconds >= LONGEST_SECONDS,
            "model.encoder.context: chunked",
            "a chunk is shorter than the longest utterance",
        );
        let (stop_before, grace) = (self.cluster.stop_before, self.runtime.grace);
        if self.cluster.time.is_some() && stop_before <= grace {
            warnings.push(format!(
                "`cluster.stop_before` ({}) is not longer than `runtime.grace` ({}): Slurm may kill the job before its checkpoint is \
                 written",
                format_duration(stop_before),
                format_duration(grace)
            ));
        }
        warnings
    }
}

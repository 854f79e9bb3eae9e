//! Settings that are valid, and of which a user should hear nevertheless.

use humantime::format_duration;
use zipper_types::Variant;

use crate::schema::{
    AdapterConfig, ElasticConfig, EncoderContext, OnLoss, OnLossSpike, ProjectorConfig, ProjectorKind,
    RunConfig, Schedule, default_chunk_seconds, default_left_context_seconds, default_loss_spike_factor,
};
use crate::validate::{LONGEST_SECONDS, SPEED_PRECISION};

impl RunConfig {
    /// What a user should hear of though it is valid: settings without effect as the rest stands, a temperature that may be meant the other
    /// way round, and a stop that comes too late.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Warnings::default();
        model(&mut warnings, self);
        adapter(&mut warnings, self);
        training(&mut warnings, self);
        evaluation(&mut warnings, self);
        elastic(&mut warnings, self);
        let Warnings(mut warnings) = warnings;
        let temperature = self.data.temperature;
        if temperature < 1.0 {
            warnings.push(format!(
                "`data.temperature` ({temperature}) is below 1: languages with many hours are drawn even more often than their share, by \
                 hours^(1/T). What NeMo calls `reweight_temperature: {temperature}` is {:.2} here",
                1.0 / temperature
            ));
        }
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

/// Collects settings without effect.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Warnings {
    fn of(&mut self, has_no_effect: bool, key: &str, unless: &str) {
        if has_no_effect {
            self.0.push(format!("`{key}` has no effect unless {unless}"));
        }
    }
}

fn model(warnings: &mut Warnings, config: &RunConfig) {
    let encoder = &config.model.encoder;
    let is_chunked = encoder.context == EncoderContext::Chunked;
    for (seconds, default, key) in [
        (
            encoder.chunk_seconds,
            default_chunk_seconds(),
            "model.encoder.chunk_seconds",
        ),
        (
            encoder.left_context_seconds,
            default_left_context_seconds(),
            "model.encoder.left_context_seconds",
        ),
    ] {
        let unless = "`model.encoder.context` is `chunked`";
        warnings.of(differ(seconds, default) && !is_chunked, key, unless);
    }
    warnings.of(
        is_chunked && encoder.chunk_seconds >= LONGEST_SECONDS,
        "model.encoder.context: chunked",
        "a chunk is shorter than the longest utterance",
    );
    let projector = &config.model.projector;
    warnings.of(
        projector.kind == ProjectorKind::Conv && projector.hidden.is_some(),
        "model.projector.hidden",
        "`model.projector.kind` is `stack`",
    );
    warnings.of(
        projector.kind == ProjectorKind::Conv && projector.stack != ProjectorConfig::default().stack,
        "model.projector.stack",
        "`model.projector.kind` is `stack`",
    );
}

fn adapter(warnings: &mut Warnings, config: &RunConfig) {
    let (adapter, defaults) = (&config.adapter, AdapterConfig::default());
    warnings.of(
        adapter.shared_rank.is_some() && adapter.variant != Variant::Static,
        "adapter.shared_rank",
        "`adapter.variant` is `static`",
    );
    warnings.of(
        adapter.router != defaults.router && !adapter.variant.has_router(),
        "adapter.router",
        "`adapter.variant` is `hard` or `soft`",
    );
    let has_banks = adapter.variant != Variant::Shared;
    for (is_set, key) in [
        (adapter.init != defaults.init, "adapter.init"),
        (
            config.elastic.snapshot_every != ElasticConfig::default().snapshot_every,
            "elastic.snapshot_every",
        ),
        (
            config.runtime.bank_memory_mib.is_some(),
            "runtime.bank_memory_mib",
        ),
    ] {
        warnings.of(is_set && !has_banks, key, "`adapter.variant` has banks");
    }
}

fn training(warnings: &mut Warnings, config: &RunConfig) {
    let training = &config.training;
    warnings.of(
        training.zipper.router_lr.is_some() && !config.adapter.variant.has_router(),
        "training.zipper.router_lr",
        "`adapter.variant` is `hard` or `soft`",
    );
    warnings.of(
        training.align.router_lr.is_some(),
        "training.align.router_lr",
        "stage 1 had a router, which it never has",
    );
    for (stage, key) in [
        (&training.align, "training.align.final_lr_ratio"),
        (&training.zipper, "training.zipper.final_lr_ratio"),
    ] {
        warnings.of(
            stage.final_lr_ratio > 0.0 && !matches!(stage.schedule, Schedule::Linear | Schedule::Cosine),
            key,
            "the stage's `schedule` is `linear` or `cosine`",
        );
    }
    warnings.of(
        differ(training.loss_spike_factor, default_loss_spike_factor())
            && training.on_loss_spike == OnLossSpike::Ignore,
        "training.loss_spike_factor",
        "`training.on_loss_spike` is `warn`, `skip` or `stop`",
    );
    let augment = &training.augment;
    if let Some(masks) = &augment.spec_augment {
        warnings.of(
            masks.frequency_masks * masks.frequency_width + masks.time_masks * masks.time_width == 0,
            "training.augment.spec_augment",
            "there are masks that are wider than 0",
        );
    }
    let is_one = |speed: &f64| (speed - 1.0).abs() < SPEED_PRECISION / 2.0;
    warnings.of(
        !augment.speed.is_empty() && augment.speed.iter().all(is_one),
        "training.augment.speed",
        "one of the factors is not 1",
    );
}

fn evaluation(warnings: &mut Warnings, config: &RunConfig) {
    let evaluation = &config.evaluation;
    for (is_on, key) in [
        (evaluation.untrained, "evaluation.untrained"),
        (evaluation.no_audio_control, "evaluation.no_audio_control"),
    ] {
        warnings.of(
            is_on && evaluation.tests.is_empty(),
            key,
            "there are `evaluation.tests`",
        );
    }
}

fn elastic(warnings: &mut Warnings, config: &RunConfig) {
    let elastic = &config.elastic;
    warnings.of(
        elastic.replacement_wait != ElasticConfig::default().replacement_wait
            && elastic.on_loss != OnLoss::Wait,
        "elastic.replacement_wait",
        "`elastic.on_loss` is `wait`",
    );
}

/// Whether a setting is another than its default.
fn differ(value: f64, default: f64) -> bool {
    (value - default).abs() > f64::EPSILON
}

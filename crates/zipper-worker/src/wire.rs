//! Between the words of the protocol and those of training.

use std::time::Duration;

use anyhow::Context;
use zipper_model::adapter::GateShares;
use zipper_plan::{Placement, WorkModel};
use zipper_proto::v1;
use zipper_train::memory::HeldState;
use zipper_train::parts::StepParts;
use zipper_train::session::Origin;
use zipper_train::step::StepReport;
use zipper_types::{Rank, WorldSize};

/// The coordinator's placement.
pub(crate) fn placement(
    assignment: &v1::Assignment,
    num_languages: usize,
) -> anyhow::Result<(Placement, WorkModel)> {
    let world_size = WorldSize(assignment.world_size);
    let sent = assignment.placement.clone().unwrap_or_default();
    let placement = if sent.owners.is_empty() {
        Placement::everywhere(num_languages, world_size)
    } else {
        let owners: Vec<(u32, u32)> = sent
            .owners
            .iter()
            .map(|owners| (owners.first_rank, owners.last_rank))
            .collect();
        Placement::from_owners(owners, world_size)?
    };
    let work = match sent.work {
        Some(work) => WorkModel {
            per_audio_second: work.per_audio_second,
            per_token: work.per_token,
            tokens_per_character: work.tokens_per_character,
            measured: work.measured,
        },
        None => WorkModel::unmeasured(num_languages),
    };
    anyhow::ensure!(
        placement.num_languages() == num_languages && work.tokens_per_character.len() == num_languages,
        "the coordinator placed {} languages and weighed {}, the configuration has {num_languages}",
        placement.num_languages(),
        work.tokens_per_character.len()
    );
    Ok((placement, work))
}

/// Where the state of a generation comes from.
pub(crate) fn origin(assignment: &v1::Assignment) -> anyhow::Result<Origin> {
    use v1::assignment::Origin as Wire;
    let origin = assignment.origin.as_ref();
    Ok(
        match origin.context("the coordinator does not say where the state comes from")? {
            Wire::Fresh(v1::FreshOrigin {}) => Origin::Fresh,
            Wire::Checkpoint(v1::CheckpointOrigin {}) => Origin::Checkpoint,
            Wire::Memory(memory) => Origin::Memory {
                shared: Rank(memory.shared_rank),
                banks: memory.bank_ranks.iter().copied().map(Rank).collect(),
            },
        },
    )
}

/// What this worker holds in memory.
pub(crate) fn held(held: &HeldState) -> v1::HeldState {
    v1::HeldState {
        step: held.step.0,
        stage: v1::Stage::from(held.stage).into(),
        shared: held.shared,
        banks: held.banks.iter().map(|&bank| bank as u32).collect(),
    }
}

/// How much is shared, by layer and language.
pub(crate) fn gates(gates: GateShares, languages: &[String]) -> v1::GateShares {
    let by_language = languages.iter().cloned().zip(gates.by_language);
    v1::GateShares {
        layers: gates.layers,
        by_language: by_language
            .map(|(lang, shares)| (lang, v1::LayerShares { shares }))
            .collect(),
    }
}

fn parts(parts: &StepParts) -> v1::StepParts {
    v1::StepParts {
        data: parts.data.as_secs_f64(),
        encoder: parts.encoder.as_secs_f64(),
        forward: parts.forward.as_secs_f64(),
        backward: parts.backward.as_secs_f64(),
        exchange: parts.exchange.as_secs_f64(),
        update: parts.update.as_secs_f64(),
    }
}

/// What the coordinator is told of a step.
pub(crate) fn metrics(
    report: &StepReport,
    seconds: Duration,
    held_up: Duration,
    world_size: WorldSize,
) -> v1::StepMetrics {
    let by_language = report.by_language.iter().map(|(lang, loss)| {
        let loss = v1::LanguageMetrics {
            nll: loss.nll,
            tokens: loss.tokens,
            utterances: loss.utterances,
        };
        (lang.clone(), loss)
    });
    v1::StepMetrics {
        step: report.step.0,
        stage: v1::Stage::from(report.stage).into(),
        loss: report.loss,
        ctc: report.ctc,
        lr: report.lr,
        grad_norm: report.grad_norm,
        tokens: report.tokens,
        audio_seconds: report.audio_seconds,
        seconds: seconds.as_secs_f64(),
        skipped: report.skipped,
        by_language: by_language.collect(),
        comm_bytes_shared: report.cost.shared_bytes,
        comm_bytes_banks: report.cost.bank_bytes,
        comm_exposed_seconds: report.cost.exposed.as_secs_f64(),
        compute_seconds: report.cost.compute.as_secs_f64(),
        world_size: world_size.0,
        spike: report.spike,
        checkpoint_seconds: held_up.as_secs_f64(),
        memory_seconds: report.memory.as_secs_f64(),
        gates: None,
        memory_peak_bytes: 0,
        parts: Some(parts(&report.own_parts)),
    }
}

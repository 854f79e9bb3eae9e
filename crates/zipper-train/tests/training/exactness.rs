//! Goal: the property that everything else serves (docs/decisions/0002). Whatever the number of ranks, a run has the same losses and
//! ends with the same parameters, up to the order in which floating-point numbers are added; in f64 nearly nothing of
//! that is left.
//! Method: both stages with accumulation, dropout and clipping, for every variant. CI runs a part; the whole is run by
//! `cargo nextest run -p zipper-train --run-ignored only exactness`.

use std::collections::BTreeMap;

use zipper_config::schema::{Dtype, LidHeadConfig, RunConfig};
use zipper_tests::Fixture;
use zipper_types::Variant;

use crate::support::{all_steps, assert_close, assert_same_parameters, config, on_ranks, reports, values};

/// What a run came to, on all ranks together.
struct Run {
    losses: Vec<f64>,
    /// Those of CTC, where there are any.
    ctc: Vec<f64>,
    /// Steps whose gradient was clipped.
    clipped: usize,
    /// Buckets of gradients that were summed after the backward passes, and not during them.
    late_buckets: usize,
    parameters: BTreeMap<String, Vec<f64>>,
}

fn run(config: &RunConfig, world_size: u32) -> Run {
    let ranks = on_ranks(config, world_size, |mut session| {
        let reports = reports(&mut session, all_steps(config));
        (reports, values(&session))
    });
    let mut parameters: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (reports, of_rank) in &ranks {
        let losses = |reports: &[zipper_train::step::StepReport]| -> Vec<f64> {
            reports.iter().map(|report| report.loss).collect()
        };
        assert_eq!(
            losses(reports),
            losses(&ranks[0].0),
            "all ranks report the same losses"
        );
        for (name, values) in of_rank {
            let first = parameters.entry(name.clone()).or_insert_with(|| values.clone());
            assert_eq!(
                values, first,
                "`{name}` is the same to the last bit wherever it is"
            );
        }
    }
    let limit = config.training.clip_grad_norm;
    let reports = &ranks[0].0;
    Run {
        losses: reports.iter().map(|report| report.loss).collect(),
        ctc: reports.iter().filter_map(|report| report.ctc).collect(),
        clipped: reports.iter().filter(|report| report.grad_norm > limit).count(),
        late_buckets: reports.iter().map(|report| report.cost.late_buckets).sum(),
        parameters,
    }
}

/// Both stages, with accumulation, dropout, clipping and a LID head.
fn both_stages(fixture: &Fixture, variant: Variant, dtype: Dtype, steps_of_a_stage: u64) -> RunConfig {
    config(fixture, |config| {
        config.adapter.variant = variant;
        config.model.dtype = dtype;
        config.model.lid_head = Some(LidHeadConfig { loss_weight: 0.5 });
        config.training.align.steps = steps_of_a_stage;
        config.training.zipper.steps = steps_of_a_stage;
        config.training.batch_audio_seconds = 6.0;
        config.training.micro_batch_audio_seconds = 1.5;
        // AdamW divides by the size of the gradient: where that is nothing but rounding, so would the update be.
        config.training.optimizer.eps = 1e-6;
        // Several buckets, so that reductions overlap.
        config.runtime.bucket_mib = 0.002;
    })
}

/// Compares runs on `worlds` ranks with the run on one, to `tolerance` relative to each loss and each tensor's norm.
fn check(variant: Variant, dtype: Dtype, steps_of_a_stage: u64, worlds: &[u32], tolerance: f64) {
    let fixture = Fixture::new();
    let config = both_stages(&fixture, variant, dtype, steps_of_a_stage);
    let one = run(&config, 1);
    let boundary = steps_of_a_stage as usize;
    assert!(
        one.losses[boundary - 1] < one.losses[0],
        "{variant}: stage 1 learns"
    );
    assert!(one.clipped > 0, "{variant}: clipping is at work");
    for &world_size in worlds {
        let what = format!("{variant}, {dtype:?}, {world_size} ranks");
        let many = run(&config, world_size);
        assert_close(&one.losses, &many.losses, tolerance, &what);
        assert_same_parameters(&one.parameters, &many.parameters, tolerance, &what);
    }
}

#[test]
fn soft_is_the_same_on_one_two_three_and_four_ranks() {
    check(Variant::Soft, Dtype::F32, 10, &[2, 3, 4], 1e-4);
}

#[test]
fn every_variant_is_the_same_in_f64() {
    for variant in Variant::ALL {
        check(variant, Dtype::F64, 8, &[2, 4], 1e-9);
    }
}

/// Layers that are computed again in the backward pass take memory from nobody, and change nothing else: not what comes out, and not which
/// gradients are summed while the backward pass goes on. With everything that joins in a backward pass: adapters of the encoder, which
/// is not computed again, CTC, whose loss is that of one rank, and the LID head.
#[test]
fn recomputed_activations_change_nothing() {
    for variant in Variant::ALL {
        let fixture = Fixture::new();
        let mut config = both_stages(&fixture, variant, Dtype::F64, 4);
        config.adapter.encoder_targets = vec!["q_proj".to_owned(), "fc1".to_owned()];
        config.model.projector.ctc_weight = 0.3;
        let kept = run(&config, 2);
        if variant == Variant::Soft {
            assert_close(&run(&config, 1).ctc, &kept.ctc, 1e-9, "CTC on one rank");
        }
        config.runtime.recompute_activations = true;
        let recomputed = run(&config, 2);
        let what = format!("{variant}, recomputed");
        assert_close(&kept.losses, &recomputed.losses, 1e-9, &what);
        assert_eq!(
            kept.ctc.len(),
            kept.losses.len(),
            "{what}: every step has a loss of CTC"
        );
        assert_close(&kept.ctc, &recomputed.ctc, 1e-9, &what);
        assert_same_parameters(&kept.parameters, &recomputed.parameters, 1e-9, &what);
        assert_eq!(kept.late_buckets, recomputed.late_buckets, "{what}: late buckets");
    }
}

#[test]
#[ignore = "takes minutes: the whole matrix of variants and world sizes"]
fn every_variant_over_sixty_steps_in_f32() {
    for variant in Variant::ALL {
        check(variant, Dtype::F32, 30, &[2, 3, 4, 6], 1e-4);
    }
}

#[test]
#[ignore = "takes minutes: the whole matrix of variants and world sizes"]
fn every_variant_over_sixty_steps_in_f64() {
    for variant in Variant::ALL {
        check(variant, Dtype::F64, 30, &[2, 3, 4, 6], 1e-9);
    }
}

//! Goal: on a GPU, with NCCL, a run computes what it computes on the CPU.
//! Method: whole runs of one rank through both stages, compared with the same run on the CPU. They need a GPU: `cargo xtask
//! gpu` runs them, and shows what they print.

use tch::Device;
use zipper_collectives::Backend;
use zipper_config::schema::{Dtype, RunConfig};
use zipper_tests::Fixture;
use zipper_train::session::Session;
use zipper_types::Variant;

use crate::support::{all_steps, alone, alone_on, config, train, values};

const STEPS_OF_A_STAGE: u64 = 10;

/// Both stages, with accumulation, dropout and clipping.
fn run(fixture: &Fixture, variant: Variant, dtype: Dtype) -> RunConfig {
    config(fixture, |config| {
        config.adapter.variant = variant;
        config.model.dtype = dtype;
        config.training.align.steps = STEPS_OF_A_STAGE;
        config.training.zipper.steps = STEPS_OF_A_STAGE;
        config.training.batch_audio_seconds = 6.0;
        config.training.micro_batch_audio_seconds = 1.5;
        // AdamW divides by the size of the gradient: where that is nothing but rounding, so would the update be.
        config.training.optimizer.eps = 1e-6;
        config.runtime.bucket_mib = 0.002;
    })
}

fn on_gpu(config: &RunConfig) -> Session {
    alone_on(config, Device::Cuda(0), Backend::Nccl)
}

/// The largest relative difference of two runs' losses.
fn furthest(expected: &[f64], found: &[f64]) -> f64 {
    assert_eq!(expected.len(), found.len(), "number of steps");
    let differences = expected.iter().zip(found).map(|(a, b)| (a - b).abs() / a.abs());
    differences.fold(0.0, f64::max)
}

/// Trains on both devices: how far losses, and each tensor in relation to its norm, are apart at most.
fn compare(variant: Variant, dtype: Dtype) -> (f64, f64) {
    let fixture = Fixture::new();
    let config = run(&fixture, variant, dtype);
    let (mut reference, mut accelerated) = (alone(&config), on_gpu(&config));
    let losses = [&mut reference, &mut accelerated].map(|session| train(session, all_steps(&config)));
    assert!(
        losses[1][STEPS_OF_A_STAGE as usize - 1] < losses[1][0],
        "{variant}: stage 1 learns"
    );
    let (expected, found) = (values(&reference), values(&accelerated));
    assert!(expected.keys().eq(found.keys()), "nothing is lost or new");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let apart = expected.iter().map(|(name, expected)| {
        let difference = norm(&mut expected.iter().zip(&found[name]).map(|(a, b)| a - b));
        difference / norm(&mut expected.iter().copied()).max(f64::MIN_POSITIVE)
    });
    let apart = apart.fold(0.0, f64::max);
    let furthest = furthest(&losses[0], &losses[1]);
    println!(
        "{variant}, {dtype:?}: CPU and GPU are apart by {furthest:.1e} (losses), {apart:.1e} (parameters)"
    );
    (furthest, apart)
}

#[test]
#[ignore = "needs a GPU: cargo xtask gpu"]
fn gpu_and_cpu_agree_in_f64() {
    for variant in Variant::ALL {
        let (losses, parameters) = compare(variant, Dtype::F64);
        assert!(losses < 1e-9 && parameters < 1e-7, "{variant}");
    }
}

/// Both add in f32, in other orders, over twenty steps of AdamW.
#[test]
#[ignore = "needs a GPU: cargo xtask gpu"]
fn gpu_and_cpu_agree_in_f32() {
    for variant in Variant::ALL {
        let (losses, _) = compare(variant, Dtype::F32);
        assert!(losses < 1e-3, "{variant}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask gpu"]
fn gpu_trains_in_bf16() {
    let fixture = Fixture::new();
    let config = run(&fixture, Variant::Soft, Dtype::Bf16);
    let exact = run(&fixture, Variant::Soft, Dtype::F32);
    let losses = [&config, &exact].map(|config| train(&mut on_gpu(config), all_steps(config)));
    let [found, expected] = &losses;
    let furthest = furthest(expected, found);
    println!("bf16: losses are at most {furthest:.1e} from those in f32");
    assert!(found[STEPS_OF_A_STAGE as usize - 1] < found[0], "stage 1 learns");
    assert!(furthest < 0.05);
    assert!(furthest > 0.0, "another arithmetic gives other numbers");
}

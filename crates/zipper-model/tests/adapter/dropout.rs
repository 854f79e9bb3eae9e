//! Goal: dropout of an utterance depends on its own seed, layer and positions only, and keeps the expected delta.
//! Method: the same row alone and in batches; what is dropped shows in the gradient of the input.

use tch::{Kind, Tensor};
use zipper_model::adapter::{AdapterSpec, Adapters};
use zipper_types::Variant;

use crate::support::{assert_close, delta, inputs, normal, random, spec};

const RATE: f64 = 0.3;

fn with_dropout(variant: Variant, dropout: f64) -> Adapters {
    random(
        AdapterSpec {
            dropout,
            ..spec(variant)
        },
        2,
        Kind::Float,
    )
}

#[test]
fn neighbours_and_padding_do_not_change_a_row() {
    // Method: an utterance alone, and the same one as the last row of a longer, padded batch of other languages.
    for variant in Variant::ALL {
        let adapters = with_dropout(variant, RATE);
        let merged = adapters.merge(&[0, 1, 2, 3]);
        for (site, alone) in inputs(3, 1, 5, Kind::Float).iter().enumerate() {
            let others = normal(4, "others", &[3, 11, alone.size()[2]], Kind::Float);
            let padded = Tensor::cat(
                &[
                    alone,
                    &alone.new_zeros([1, 6, alone.size()[2]], (Kind::Float, alone.device())),
                ],
                1,
            );
            let batch = Tensor::cat(&[others, padded], 0);
            let expected = delta(&merged.rows(&[2], Some(&[77])), site, alone);
            let rows = merged.rows(&[0, 1, 0, 2], Some(&[5, 6, 77 + 1, 77]));
            let found = delta(&rows, site, &batch);
            assert_close(
                &found.get(3).narrow(0, 0, 5),
                &expected.get(0),
                1e-6,
                variant.name(),
            );
        }
    }
}

#[test]
fn seeds_and_layers_have_masks_of_their_own() {
    // Method: the gradient of the sum of the delta by the input is zero exactly where the input was dropped.
    let adapters = with_dropout(Variant::Soft, RATE);
    let merged = adapters.merge(&[0]);
    let mask = |site: usize, features: i64, seed: u64| {
        let input = Tensor::ones([1, 50, features], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let delta = delta(&merged.rows(&[0], Some(&[seed])), site, &input);
        delta.sum(Kind::Float).backward();
        input.grad().eq(0.0)
    };
    let first = mask(0, 7, 1);
    assert_eq!(first, mask(0, 7, 1), "the same seed drops the same");
    assert_ne!(first, mask(0, 7, 2), "another seed drops others");
    assert_ne!(first.narrow(2, 0, 6), mask(2, 6, 1), "another layer drops others");
    let dropped = first.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    // 350 coin flips: five standard deviations are 0.12.
    assert!((dropped - RATE).abs() < 0.12, "{dropped}");
}

#[test]
fn the_expected_delta_is_the_delta_without_dropout() {
    // Method: the mean over many rows that differ in nothing but their seed.
    let adapters = with_dropout(Variant::Soft, RATE);
    let merged = adapters.merge(&[1]);
    let rows = 20_000;
    let one = normal(8, "one", &[1, 1, 7], Kind::Float);
    let many = one.expand([rows, 1, 7], false);
    let seeds: Vec<u64> = (0..rows as u64).collect();
    let languages = vec![1; rows as usize];
    let mean = delta(&merged.rows(&languages, Some(&seeds)), 0, &many).mean_dim(0, false, Kind::Float);
    let expected = delta(&merged.rows(&[1], None), 0, &one).get(0);
    assert_close(&mean, &expected, 0.05, "mean delta");
}

#[test]
fn no_seeds_or_no_rate_means_no_dropout() {
    let (with, without) = (
        with_dropout(Variant::Static, RATE),
        with_dropout(Variant::Static, 0.0),
    );
    let (with, without) = (with.merge(&[0, 1]), without.merge(&[0, 1]));
    let input = &inputs(3, 2, 4, Kind::Float)[0];
    let plain = delta(&without.rows(&[0, 1], None), 0, input);
    assert_eq!(delta(&with.rows(&[0, 1], None), 0, input), plain);
    assert_eq!(delta(&without.rows(&[0, 1], Some(&[1, 2])), 0, input), plain);
    assert_ne!(delta(&with.rows(&[0, 1], Some(&[1, 2])), 0, input), plain);
}

//! Goal: adapters that cannot exist are refused, and the message names what to change.
//! Method: a good specification with one thing wrong.

use tch::{Device, Kind};
use zipper_model::adapter::{AdapterError, AdapterSpec, Adapters};
use zipper_types::Variant;

use crate::support::{fresh, random, site, sites, spec};

fn refuse(spec: AdapterSpec) -> AdapterError {
    Adapters::new(spec, &sites(), 1, Device::Cpu).expect_err("must be refused")
}

#[test]
fn a_rank_that_a_layer_cannot_have_names_the_layer_and_its_sizes() {
    // The first layer, 7 to 5, is the smallest; rank 5 is the largest it can have.
    assert!(
        Adapters::new(
            AdapterSpec {
                rank: 5,
                ..spec(Variant::Soft)
            },
            &sites(),
            1,
            Device::Cpu
        )
        .is_ok()
    );
    let error = refuse(AdapterSpec {
        rank: 6,
        ..spec(Variant::Soft)
    });
    let expected = AdapterError::RankTooLarge {
        site: "model.layers.0.q_proj".to_owned(),
        rank: 6,
        d_in: 7,
        d_out: 5,
    };
    assert_eq!(error, expected);
    assert_eq!(
        error.to_string(),
        "`adapter.rank` is 6, but layer `model.layers.0.q_proj` maps 7 features to 5 and can have a rank of at most \
         5; lower the rank or leave the layer out of `adapter.targets`"
    );
}

/// An encoder's layers are chosen by a key of their own.
#[test]
fn a_rank_that_an_encoder_layer_cannot_have_names_its_key() {
    let sites = [site("model.encoder.layers.1.fc1", 1, 6, 9)];
    let spec = AdapterSpec {
        rank: 7,
        ..spec(Variant::Soft)
    };
    let error = Adapters::new(spec, &sites, 1, Device::Cpu).expect_err("must be refused");
    let message = error.to_string();
    assert!(
        message.ends_with("lower the rank or leave the layer out of `adapter.encoder_targets`"),
        "{message}"
    );
}

#[test]
fn settings_of_other_variants_do_not_matter() {
    let unused = AdapterSpec {
        shared_rank: 99,
        ..spec(Variant::Soft)
    };
    assert!(Adapters::new(unused, &sites(), 1, Device::Cpu).is_ok());
}

#[test]
fn stage_2_starts_only_from_shared_adapters_of_the_same_shape() {
    let start = |align: &Adapters| {
        fresh(spec(Variant::Soft))
            .initial_b(align)
            .map_err(|error| error.to_string())
    };
    let prefix = "stage 2 cannot start from the adapters of stage 1: ";
    let message = |reason: &str| Err(format!("{prefix}{reason}"));

    assert_eq!(start(&fresh(spec(Variant::Shared))), Ok(()));
    assert_eq!(
        start(&fresh(spec(Variant::Hard))),
        message("they are `hard`, not `shared`")
    );
    let rank_3 = fresh(AdapterSpec {
        rank: 3,
        ..spec(Variant::Shared)
    });
    assert_eq!(start(&rank_3), message("their rank is 3, stage 2 has rank 4"));
    let elsewhere = [site("model.layers.0.q_proj", 0, 7, 5)];
    let elsewhere = Adapters::new(spec(Variant::Shared), &elsewhere, 1, Device::Cpu).expect("a good spec");
    assert_eq!(start(&elsewhere), message("they adapt other layers"));
}

#[test]
#[should_panic(expected = "language 2 was not merged for this step; merged are [0, 1]")]
fn a_row_of_a_language_that_was_not_merged_is_a_bug() {
    let merged = random(spec(Variant::Soft), 1, Kind::Float).merge(&[1, 0]);
    let _ = merged.rows(&[0, 2], None);
}

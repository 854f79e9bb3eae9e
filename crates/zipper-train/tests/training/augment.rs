//! Goal: augmentation changes what is learnt and nothing else: the run is the same on any number of ranks and over a stop,
//! and decoding and losses outside of training hear utterances as they are.
//! Method: a tiny Speech-LLM trains through both stages in f64, where rounding is left out of the comparison.

use zipper_config::schema::{AugmentConfig, Dtype, RunConfig, SpecAugmentConfig};
use zipper_data::Utterance;
use zipper_tests::Fixture;
use zipper_train::evaluate::{DecodeOptions, decode};
use zipper_types::Variant;

use crate::support::{
    all_steps, alone, assert_close, assert_same_parameters, config, on_ranks, parts_of, read, train, values,
};

/// Up to 30 frames of the fixture's 35 to 95 are masked at a time.
const MASKS: SpecAugmentConfig = SpecAugmentConfig {
    frequency_masks: 2,
    frequency_width: 20,
    time_masks: 2,
    time_width: 30,
};

fn augmented(fixture: &Fixture, spec_augment: Option<&SpecAugmentConfig>, speed: &[f64]) -> RunConfig {
    config(fixture, |config| {
        config.model.encoder.cache = None;
        config.model.dtype = Dtype::F64;
        config.adapter.variant = Variant::Soft;
        config.training.align.steps = 4;
        config.training.zipper.steps = 4;
        // Where the gradient is nothing but rounding, AdamW's update would be, too.
        config.training.optimizer.eps = 1e-6;
        config.training.augment = AugmentConfig {
            spec_augment: spec_augment.cloned(),
            speed: speed.to_vec(),
        };
    })
}

fn both(fixture: &Fixture) -> RunConfig {
    augmented(fixture, Some(&MASKS), &[0.9, 1.0, 1.1])
}

#[test]
fn the_run_is_the_same_on_one_two_and_three_ranks() {
    let fixture = Fixture::new();
    let config = both(&fixture);
    let mut session = alone(&config);
    let one = (train(&mut session, all_steps(&config)), values(&session));
    for ranks in [2, 3] {
        let what = format!("{ranks} ranks");
        let found = on_ranks(&config, ranks, |mut session| {
            (train(&mut session, all_steps(&config)), values(&session))
        });
        let parameters = found.iter().flat_map(|(_, values)| values.clone()).collect();
        assert_close(&one.0, &found[0].0, 1e-9, &what);
        assert_same_parameters(&one.1, &parameters, 1e-9, &what);
    }
}

#[test]
fn stopped_and_resumed_it_equals_uninterrupted() {
    let fixture = Fixture::new();
    let config = both(&fixture);
    let uninterrupted = train(&mut alone(&config), 8);
    for stop in [1, 3, 4, 6] {
        let mut before = alone(&config);
        let mut losses = train(&mut before, stop);
        let parts = parts_of(&[before]);
        let mut after = alone(&config);
        after.restore(|names| read(&parts, names)).expect("the parts fit");
        losses.extend(train(&mut after, 8));
        assert_close(
            &uninterrupted,
            &losses,
            1e-12,
            &format!("stopped after step {stop}"),
        );
    }
}

/// Either kind alone makes another run from the first step on, also with adapters in the encoder.
#[test]
fn each_kind_is_heard() {
    let fixture = Fixture::new();
    for encoder_targets in [&[][..], &["q_proj", "fc1"]] {
        let first_loss = |masks: Option<SpecAugmentConfig>, speed: &[f64]| {
            let mut config = augmented(&fixture, masks.as_ref(), speed);
            config.adapter.encoder_targets = encoder_targets.iter().map(ToString::to_string).collect();
            train(&mut alone(&config), 1)[0]
        };
        let none = first_loss(None, &[]);
        let found = [
            none,
            first_loss(Some(MASKS), &[]),
            first_loss(None, &[0.9, 1.1]),
            first_loss(Some(MASKS), &[0.9, 1.1]),
        ];
        for (index, loss) in found.iter().enumerate() {
            assert!(
                found[..index].iter().all(|other| (loss - other).abs() > 1e-9),
                "{found:?}"
            );
        }
        let same = first_loss(None, &[1.0]);
        assert!(
            (same - none).abs() < 1e-12,
            "factor 1 changes nothing: {same}, {none}"
        );
    }
}

/// Loss and transcripts outside of training are those of a run without augmentation.
#[test]
fn evaluation_hears_utterances_as_they_are() {
    let fixture = Fixture::new();
    let decoded = |config: &RunConfig| {
        let session = alone(config);
        let corpus = session.corpus();
        let utterances: Vec<&Utterance> = corpus.iter().flatten().collect();
        let options = DecodeOptions {
            silenced: false,
            with_nll: true,
            detect: false,
        };
        decode(session.replica(), &utterances, options, |_| true)
            .expect("the audio can be read")
            .expect("nothing stopped it")
    };
    assert_eq!(decoded(&both(&fixture)), decoded(&augmented(&fixture, None, &[])));
}

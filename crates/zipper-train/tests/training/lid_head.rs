//! Goal: the head that tells languages apart learns beside recognition, does not change what recognition learns, and is part of the
//! state that a checkpoint holds. Method: a tiny corpus in which each language is a tone, trained with the head and without it.

use zipper_config::schema::{LidHeadConfig, RunConfig};
use zipper_data::{DurationLimits, Utterance, load_corpus};
use zipper_model::lid_head::PREFIX;
use zipper_tests::{Fixture, sing_languages};
use zipper_train::TrainError;
use zipper_train::evaluate::likeliest;
use zipper_train::session::Session;

use crate::support::{all_steps, alone, config, parts_of, read, train, values};

fn with_head(config: &RunConfig) -> RunConfig {
    let mut config = config.clone();
    config.model.lid_head = Some(LidHeadConfig { loss_weight: 1.0 });
    config
}

#[test]
fn recognition_is_trained_as_without_it() {
    let fixture = Fixture::new();
    let plain = config(&fixture, |config| config.training.clip_grad_norm = 0.0);
    let (mut without, mut with) = (alone(&plain), alone(&with_head(&plain)));
    let steps = all_steps(&plain);
    assert_eq!(train(&mut without, steps), train(&mut with, steps));
    let (without, mut with) = (values(&without), values(&with));
    let before = with.len();
    with.retain(|name, _| !name.starts_with(&format!("shared/{PREFIX}")));
    assert_eq!(before - with.len(), 2, "weight and bias");
    assert_eq!(without, with);
}

/// How often the likeliest language is the right one, on what was trained on.
fn accuracy(session: &Session, config: &RunConfig) -> Result<f64, TrainError> {
    let limits = DurationLimits::from(&config.data);
    let corpus = load_corpus(&config.data.train, &config.data.languages, limits).expect("a valid manifest");
    let utterances: Vec<&Utterance> = corpus.utterances.iter().collect();
    let posteriors = session.replica().detect(&utterances)?;
    let right = utterances
        .iter()
        .zip(&posteriors)
        .filter(|(utterance, posterior)| {
            let sum: f64 = posterior.iter().sum();
            assert!((sum - 1.0).abs() < 1e-9, "{posterior:?}");
            likeliest(posterior).is_some_and(|(language, _)| language == utterance.language)
        });
    Ok(right.count() as f64 / utterances.len() as f64)
}

#[test]
fn it_learns_over_both_stages_and_is_in_the_checkpoint() -> Result<(), TrainError> {
    let fixture = Fixture::new();
    sing_languages(&fixture.path().join("corpus"));
    let config = with_head(&config(&fixture, |config| {
        config.training.align.steps = 150;
        config.training.align.lr = 1e-1;
        config.training.zipper.steps = 150;
        config.training.zipper.lr = 1e-1;
    }));
    let mut session = alone(&config);
    train(&mut session, all_steps(&config));
    let learnt = accuracy(&session, &config)?;
    assert!(learnt > 0.9, "{learnt}");

    let sessions = [session];
    let parts = parts_of(&sessions);
    let mut restored = alone(&config);
    restored.restore(|names| read(&parts, names))?;
    assert_eq!(values(&restored), values(&sessions[0]));
    assert!((accuracy(&restored, &config)? - learnt).abs() < f64::EPSILON);
    Ok(())
}

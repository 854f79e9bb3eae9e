//! Goal: a run that is stopped and resumed equals one that is not; stage 2 begins where stage 1 ended; what cannot go on
//! says so.
//! Method: a tiny Speech-LLM with random weights trains through both stages.

use zipper_config::schema::{OnNonFinite, RunConfig};
use zipper_tests::Fixture;
use zipper_train::TrainError;
use zipper_train::session::Session;
use zipper_train::step::Votes;
use zipper_types::{Stage, Variant};

use crate::support::{all_steps, alone, assert_close, config, on_ranks, parts_of, read, train, value_of};

/// Whatever the step a run is stopped at, a new process that restores its parts goes on as if nothing had happened.
#[test]
fn stop_at_any_step_and_resume_equals_uninterrupted() {
    let fixture = Fixture::new();
    for variant in Variant::ALL {
        let config = config(&fixture, |config| {
            config.adapter.variant = variant;
            config.training.align.steps = 3;
            config.training.zipper.steps = 4;
        });
        let uninterrupted = train(&mut alone(&config), 7);
        for stop in 1..7 {
            let mut before = alone(&config);
            let mut losses = train(&mut before, stop);
            let parts = parts_of(&[before]);
            let mut after = alone(&config);
            after.restore(|name| read(&parts, name)).expect("the parts fit");
            assert_eq!(after.step().0, stop);
            losses.extend(train(&mut after, 7));
            assert_close(
                &uninterrupted,
                &losses,
                1e-6,
                &format!("{variant}, stopped after step {stop}"),
            );
        }
    }
}

/// The first loss of stage 2 is what stage 1 would have reported next: Initial-B changes nothing, for any variant.
#[test]
fn initial_b_continues_where_stage_1_ended() {
    let fixture = Fixture::new();
    let stage_1_only = config(&fixture, |config| {
        config.training.align.steps = 5;
        config.training.zipper.steps = 0;
        config.adapter.dropout = 0.0;
    });
    let expected = train(&mut alone(&stage_1_only), 5)[4];
    for variant in Variant::ALL {
        let both = RunConfig {
            adapter: zipper_config::schema::AdapterConfig {
                variant,
                ..stage_1_only.adapter.clone()
            },
            ..stage_1_only.clone()
        };
        let mut session = alone(&both);
        train(&mut session, 4);
        session.enter(Stage::Zipper).expect("stage 2 can begin");
        let found = session
            .train_step(Votes::default())
            .expect("a step can be made")
            .loss;
        assert_close(&[expected], &[found], 1e-6, variant.name());
    }
}

/// Adapters in the encoder train too, and their dropout does not depend on where an utterance lands.
#[test]
fn encoder_adapters_have_the_same_trajectory_on_two_ranks() {
    let fixture = Fixture::new();
    let config = config(&fixture, |config| {
        config.model.encoder.cache = None;
        config.adapter.encoder_targets = ["q_proj", "fc1"].map(str::to_owned).to_vec();
        config.training.align.steps = 4;
        config.training.zipper.steps = 4;
    });
    let one = train(&mut alone(&config), 8);
    let two = on_ranks(&config, 2, |mut session| train(&mut session, all_steps(&config)));
    assert_close(&one, &two[0], 1e-4, "2 ranks");
    let mut session = alone(&config);
    let names = |session: &Session| -> Vec<String> {
        session
            .replica()
            .params()
            .iter()
            .map(|param| param.name.clone())
            .collect()
    };
    assert!(names(&session).contains(&"lora.model.encoder.layers.1.fc1.A".to_owned()));
    let before = value_of(&session, "lora.model.encoder.layers.1.fc1.B_shared");
    train(&mut session, 2);
    assert_ne!(
        before,
        value_of(&session, "lora.model.encoder.layers.1.fc1.B_shared"),
        "it is trained"
    );
}

/// An update that is not finite is left out on all ranks and counted, or ends the run with the step's name: as configured.
#[test]
fn updates_that_are_not_finite_follow_the_policy() {
    let fixture = Fixture::new();
    let with = |policy| {
        config(&fixture, |config| {
            config.training.on_non_finite = policy;
            config.training.align.lr = 1e30;
            config.training.align.warmup_steps = 0;
        })
    };
    let mut stopping = alone(&with(OnNonFinite::Stop));
    let error = (0..3)
        .find_map(|_| stopping.train_step(Votes::default()).err())
        .expect("it diverges");
    assert!(matches!(error, TrainError::NonFinite { .. }), "{error}");
    assert!(error.to_string().contains("training.on_non_finite"), "{error}");

    let mut skipping = alone(&with(OnNonFinite::Skip));
    let reports: Vec<_> = (0..4)
        .map(|_| skipping.train_step(Votes::default()).expect("the policy goes on"))
        .collect();
    let first = reports
        .iter()
        .position(|report| report.skipped)
        .expect("it diverges");
    assert!(
        reports[first..].iter().all(|report| report.skipped),
        "weights that diverged stay so"
    );
    assert_eq!(skipping.step().0, 4, "a step without an update is still a step");
}

/// A checkpoint of another shape is refused by the tensor's name, and nothing is silently loaded.
#[test]
fn parts_of_another_rank_size_are_refused() {
    let fixture = Fixture::new();
    let mut before = alone(&config(&fixture, |config| config.adapter.rank = 3));
    train(&mut before, 1);
    let parts = parts_of(&[before]);
    let error = alone(&config(&fixture, |_| ()))
        .restore(|name| read(&parts, name))
        .expect_err("it does not fit");
    let message = error.to_string();
    assert!(message.contains("lora.") && message.contains("[3, "), "{message}");
}

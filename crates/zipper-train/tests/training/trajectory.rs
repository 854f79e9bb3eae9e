//! Goal: a run that is stopped and resumed equals one that is not; stage 2 begins where stage 1 ended; what cannot go on
//! says so.
//! Method: a tiny Speech-LLM with random weights trains through both stages.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use zipper_config::schema::{OnLossSpike, OnNonFinite, RunConfig};
use zipper_tests::Fixture;
use zipper_train::TrainError;
use zipper_train::parts::StepParts;
use zipper_train::session::Session;
use zipper_train::step::{StepReport, Votes};
use zipper_types::{Stage, Variant};

use crate::support::{
    all_steps, alone, assert_close, config, on_ranks, parts_of, read, reports, train, value_of,
};

/// Thread 5 of docs/testing.md. Whatever the step a run is stopped at, a new process that restores its parts goes on as if nothing had happened.
#[test]
fn thread_5_stop_at_any_step_and_resume_equals_uninterrupted() {
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
            after.restore(|names| read(&parts, names)).expect("the parts fit");
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

/// A loss above the threshold is reported, left out or ends the run, as configured; the losses that it is compared with are part of
/// the state, so a resumed run decides as the one that was not stopped.
#[test]
fn loss_spikes_follow_the_policy() {
    let fixture = Fixture::new();
    let with = |policy, factor| {
        config(&fixture, |config| {
            config.training.on_loss_spike = policy;
            config.training.loss_spike_factor = factor;
            config.training.align.steps = 40;
        })
    };
    // Far below 1: every loss counts as a spike as soon as there are 32 to compare with.
    let any = 0.1;
    let warned = reports(&mut alone(&with(OnLossSpike::Warn, any)), 36);
    let spikes = |reports: &[StepReport]| -> Vec<u64> {
        let spikes = reports.iter().filter(|report| report.spike);
        spikes.map(|report| report.step.0).collect()
    };
    assert_eq!(spikes(&warned), [33, 34, 35, 36]);
    assert!(warned.iter().all(|report| !report.skipped));
    for (policy, factor) in [(OnLossSpike::Ignore, any), (OnLossSpike::Warn, 1e6)] {
        let reports = reports(&mut alone(&with(policy, factor)), 36);
        assert_eq!(spikes(&reports), [0; 0]);
        let losses = |reports: &[StepReport]| reports.iter().map(|report| report.loss).collect::<Vec<_>>();
        assert_eq!(losses(&reports), losses(&warned), "a warning changes nothing");
    }

    let skip = with(OnLossSpike::Skip, any);
    let mut before = alone(&skip);
    train(&mut before, 32);
    let parts = parts_of(&[before]);
    let mut resumed = alone(&skip);
    resumed
        .restore(|names| read(&parts, names))
        .expect("the parts fit");
    let name = "lora.model.layers.0.self_attn.q_proj.A";
    let weights = value_of(&resumed, name);
    let skipped = reports(&mut resumed, 34);
    assert!(skipped.iter().all(|report| report.spike && report.skipped));
    assert_eq!(weights, value_of(&resumed, name), "the updates are left out");

    let mut stopping = alone(&with(OnLossSpike::Stop, any));
    train(&mut stopping, 32);
    let error = stopping.train_step(Votes::default()).expect_err("a spike");
    assert!(error.ends_run(), "{error}");
    assert!(
        error.to_string().starts_with("step 33: the loss is ")
            && error.to_string().contains("training.on_loss_spike"),
        "{error}"
    );
    assert_eq!(stopping.step().0, 32, "the step was not made");
    stopping
        .capture()
        .expect("the state before it can still be saved");
}

/// What was captured stays as it was while training goes on, also when its memory was used before; two captures may be on their
/// way at once.
#[test]
fn a_capture_is_of_its_step() {
    let fixture = Fixture::new();
    let config = config(&fixture, |config| {
        config.training.align.steps = 2;
        config.training.zipper.steps = 6;
    });
    let (mut session, mut reference) = (alone(&config), alone(&config));
    let mut waiting = Vec::new();
    for step in 1..=8 {
        train(&mut session, step);
        train(&mut reference, step);
        let expected = parts_of(std::slice::from_ref(&reference));
        waiting.push((session.capture().expect("a step was made"), expected));
        if waiting.len() == 2 {
            let (oldest, expected) = waiting.remove(0);
            assert_eq!(oldest.step().0, step - 1);
            let found = thread::spawn(move || oldest.parts())
                .join()
                .expect("no panic")
                .expect("parts");
            let found: BTreeMap<String, Vec<u8>> =
                found.into_iter().map(|part| (part.name, part.bytes)).collect();
            assert!(found == expected, "the checkpoint of step {}", step - 1);
        }
    }
}

/// Between the entry into a stage and its first step there is nothing to capture: the state is of no step.
#[test]
fn the_entry_into_a_stage_is_no_step() {
    let fixture = Fixture::new();
    let config = config(&fixture, |config| config.training.align.steps = 2);
    let mut session = alone(&config);
    train(&mut session, 2);
    session.enter(Stage::Zipper).expect("stage 2 can begin");
    let error = session.capture().expect_err("no step of this stage was made");
    assert!(matches!(error, TrainError::State(_)), "{error}");
    session.train_step(Votes::default()).expect("a step can be made");
    assert_eq!(session.capture().expect("it was").step().0, 3);
}

/// The time of a step is taken apart; where the encoder's outputs are kept, it has none of it.
#[test]
fn a_step_says_where_its_time_went() {
    let fixture = Fixture::new();
    let cached = config(&fixture, |config| {
        config.model.encoder.cache = Some(fixture.path().join("cache"));
    });
    let parts_of_run = || -> Vec<StepParts> {
        let of_step = |report: StepReport| {
            let parts = report.own_parts;
            let passes = parts.data + parts.encoder + parts.forward + parts.backward;
            assert_eq!(passes, report.own_compute);
            parts
        };
        reports(&mut alone(&cached), 2).into_iter().map(of_step).collect()
    };
    let (first, second) = (parts_of_run(), parts_of_run());
    for parts in first.iter().chain(&second) {
        for part in [
            parts.data,
            parts.forward,
            parts.backward,
            parts.exchange,
            parts.update,
        ] {
            assert!(part > Duration::ZERO, "{parts:?}");
        }
    }
    assert!(first[0].encoder > Duration::ZERO);
    assert!(second.iter().all(|parts| parts.encoder == Duration::ZERO));
}

/// A checkpoint of format 1, whose state does not have what was added since, is gone on from.
#[test]
fn a_checkpoint_of_the_first_format_is_resumed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../zipper-checkpoint/tests/formats/v1/checkpoints/step-00000250");
    let fixture = Fixture::new();
    let mut session = alone(&config(&fixture, |_| ()));
    session
        .restore(|names| {
            let read = |name| {
                let bytes = fs::read(folder.join(name));
                bytes.map_err(|error| TrainError::State(format!("`{name}`: {error}")))
            };
            names.iter().map(read).collect::<Result<Vec<_>, _>>()
        })
        .expect("it fits the fixture's configuration");
    assert_eq!((session.step().0, session.stage().0), (250, Stage::Zipper));
    let report = session.train_step(Votes::default()).expect("a step can be made");
    assert_eq!(report.step.0, 251);
    assert!(report.loss.is_finite());
}

/// A state goes on only with the corpus that it was written with: where utterances are missing or in another order, the batches would be
/// others. States of earlier versions do not say which corpus that was.
#[test]
fn a_state_of_another_corpus_is_refused() {
    let fixture = Fixture::new();
    let config = config(&fixture, |_| ());
    let mut before = alone(&config);
    train(&mut before, 2);
    let mut parts = parts_of(&[before]);
    let manifest = fixture.path().join("corpus/train.jsonl");
    let text = fs::read_to_string(&manifest).expect("the fixture has it");
    let (fewer, last) = text.trim_end().rsplit_once('\n').expect("it has lines");
    for other in [fewer.to_owned(), format!("{last}\n{fewer}\n")] {
        fs::write(&manifest, other).expect("the fixture is writable");
        let error = alone(&config)
            .restore(|names| read(&parts, names))
            .expect_err("it does not fit");
        assert!(matches!(error, TrainError::Corpus { .. }), "{error}");
        assert!(
            error.is_config() && error.to_string().contains("run `tiny`"),
            "{error}"
        );
    }

    let mut state: serde_json::Value = serde_json::from_slice(&parts["state.json"]).expect("it is JSON");
    let object = state.as_object_mut().expect("it has keys");
    object.remove("corpus_fingerprint").expect("it has one");
    parts.insert("state.json".to_owned(), state.to_string().into_bytes());
    alone(&config)
        .restore(|names| read(&parts, names))
        .expect("nothing is compared");
}

/// A checkpoint of another shape is refused by the tensor's name, and nothing is silently loaded.
#[test]
fn parts_of_another_rank_size_are_refused() {
    let fixture = Fixture::new();
    let mut before = alone(&config(&fixture, |config| config.adapter.rank = 3));
    train(&mut before, 1);
    let parts = parts_of(&[before]);
    let error = alone(&config(&fixture, |_| ()))
        .restore(|names| read(&parts, names))
        .expect_err("it does not fit");
    let message = error.to_string();
    assert!(message.contains("lora.") && message.contains("[3, "), "{message}");
}

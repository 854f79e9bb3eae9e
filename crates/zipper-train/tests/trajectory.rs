//! Goal: the exactness that everything else serves (DESIGN 3). A run's losses depend on neither the number of ranks nor
//! on being stopped and resumed.
//! Method: a tiny Speech-LLM with random weights trains through both stages, on one rank or on several ranks that are
//! threads of this process with a Gloo process group between them.

use std::collections::BTreeMap;
use std::time::Duration;

use tch::Device;
use zipper_collectives::{ProcessGroup, Store};
use zipper_config::schema::{OnNonFinite, RunConfig};
use zipper_data::{DurationLimits, load_corpus};
use zipper_tests::Fixture;
use zipper_train::TrainError;
use zipper_train::replica::Replica;
use zipper_train::session::Session;
use zipper_types::{Rank, Stage, Variant, WorldSize};

const TIMEOUT: Duration = Duration::from_mins(1);
const VARIANTS: [Variant; 5] = [
    Variant::Shared,
    Variant::Independent,
    Variant::Static,
    Variant::Hard,
    Variant::Soft,
];

fn config(fixture: &Fixture, edit: impl Fn(&mut RunConfig)) -> RunConfig {
    let path = fixture.path().join("run.yaml");
    let mut config = zipper_config::load(&path, &[]).expect("the fixture's configuration is valid");
    edit(&mut config);
    config
}

fn session(config: &RunConfig) -> Session {
    // Tensors are tiny: threads would only wait for each other.
    tch::set_num_threads(1);
    let limits = DurationLimits {
        min_seconds: config.data.min_seconds,
        max_seconds: config.data.max_seconds,
    };
    let corpus = load_corpus(&config.data.train, &config.data.languages, limits).expect("a valid manifest");
    let replica = Replica::load(config, Stage::Align, Device::Cpu).expect("valid models");
    Session::new(replica, corpus.utterances).expect("a batch can be drawn")
}

/// Trains from where `session` stands to the end of `until`, entering stage 2 on the way; returns the losses.
fn train(session: &mut Session, group: &ProcessGroup, until: u64) -> Vec<f64> {
    let boundary = session.replica().config().training.align.steps;
    let mut losses = Vec::new();
    while session.step().0 < until {
        if session.step().0 == boundary {
            session.enter(Stage::Zipper).expect("stage 2 can begin");
        }
        let report = session.train_step(group, false).expect("a step can be made");
        losses.push(report.loss);
    }
    losses
}

/// Losses of a whole run on `world_size` ranks, as every rank reports them.
fn losses_on(config: &RunConfig, world_size: u32) -> Vec<Vec<f64>> {
    let (store, port) = Store::serve("127.0.0.1", TIMEOUT).expect("a port is free");
    let until = config.training.align.steps + config.training.zipper.steps;
    let losses = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                scope.spawn(move || {
                    let store = Store::connect("127.0.0.1", port, TIMEOUT).expect("the store answers");
                    let group =
                        ProcessGroup::gloo(&store, Rank(rank), WorldSize(world_size), "127.0.0.1", TIMEOUT)
                            .expect("the group forms");
                    train(&mut session(config), &group, until)
                })
            })
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().expect("a rank does not panic"))
            .collect()
    });
    drop(store);
    losses
}

fn alone() -> (Store, ProcessGroup) {
    let (store, _) = Store::serve("127.0.0.1", TIMEOUT).expect("a port is free");
    let group = ProcessGroup::gloo(&store, Rank(0), WorldSize(1), "127.0.0.1", TIMEOUT)
        .expect("a group of one forms");
    (store, group)
}

fn assert_close(expected: &[f64], found: &[f64], tolerance: f64, what: &str) {
    assert_eq!(expected.len(), found.len(), "{what}: number of steps");
    for (step, (expected, found)) in expected.iter().zip(found).enumerate() {
        let difference = (expected - found).abs() / expected.abs();
        assert!(
            difference < tolerance,
            "{what}: step {}: {expected} and {found} differ by {difference:e}",
            step + 1
        );
    }
}

/// 50 steps through both stages: one, two and three ranks see the same losses, and so do all ranks of a group.
#[test]
fn trajectory_is_the_same_at_every_world_size() {
    let fixture = Fixture::new();
    let config = config(&fixture, |config| {
        config.training.align.steps = 25;
        config.training.zipper.steps = 25;
    });
    let one = losses_on(&config, 1).remove(0);
    assert!(
        one[24] < one[0] && one[49] < one[25],
        "the loss falls in both stages: {one:?}"
    );
    for world_size in [2, 3] {
        let ranks = losses_on(&config, world_size);
        for rank in &ranks {
            assert_eq!(rank, &ranks[0], "all ranks report the same losses");
        }
        assert_close(&one, &ranks[0], 1e-4, &format!("{world_size} ranks"));
    }
}

/// Whatever the step a run is stopped at, a new process that restores its parts goes on as if nothing had happened.
#[test]
fn stop_at_any_step_and_resume_equals_uninterrupted() {
    let fixture = Fixture::new();
    for variant in VARIANTS {
        let config = config(&fixture, |config| {
            config.adapter.variant = variant;
            config.training.align.steps = 3;
            config.training.zipper.steps = 4;
        });
        let (_store, group) = alone();
        let mut session_a = session(&config);
        let uninterrupted = train(&mut session_a, &group, 7);
        for stop in 1..7 {
            let mut before = session(&config);
            let mut losses = train(&mut before, &group, stop);
            let parts = parts_of(&before, 2);
            let mut after = session(&config);
            after.restore(|name| read(&parts, name)).expect("the parts fit");
            assert_eq!(after.step().0, stop);
            losses.extend(train(&mut after, &group, 7));
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
    let (_store, group) = alone();
    let expected = train(&mut session(&stage_1_only), &group, 5)[4];
    for variant in VARIANTS {
        let both = RunConfig {
            adapter: zipper_config::schema::AdapterConfig {
                variant,
                ..stage_1_only.adapter.clone()
            },
            ..stage_1_only.clone()
        };
        let mut session = session(&both);
        train(&mut session, &group, 4);
        session.enter(Stage::Zipper).expect("stage 2 can begin");
        let found = session
            .train_step(&group, false)
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
    let one = losses_on(&config, 1).remove(0);
    assert_close(&one, &losses_on(&config, 2)[0], 1e-4, "2 ranks");
    let (_store, group) = alone();
    let mut session = session(&config);
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
    train(&mut session, &group, 2);
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
    let (_store, group) = alone();
    let mut stopping = session(&with(OnNonFinite::Stop));
    let error = (0..3)
        .find_map(|_| stopping.train_step(&group, false).err())
        .expect("it diverges");
    assert!(matches!(error, TrainError::NonFinite { .. }), "{error}");
    assert!(error.to_string().contains("training.on_non_finite"), "{error}");

    let mut skipping = session(&with(OnNonFinite::Skip));
    let reports: Vec<_> = (0..4)
        .map(|_| skipping.train_step(&group, false).expect("the policy goes on"))
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

fn value_of(session: &Session, name: &str) -> tch::Tensor {
    let params = session.replica().params();
    let param = params
        .iter()
        .find(|param| param.name == name)
        .expect("the parameter exists");
    param.tensor.detach().copy()
}

/// Every rank writes its own parts; together they are each part exactly once, for any number of ranks.
#[test]
fn parts_are_written_once_by_one_rank() {
    let fixture = Fixture::new();
    let config = config(&fixture, |config| config.training.align.steps = 1);
    let (_store, group) = alone();
    let mut session = session(&config);
    train(&mut session, &group, 2);
    let names: Vec<Vec<String>> = [1, 2, 5]
        .map(|world| parts_of(&session, world).into_keys().collect())
        .to_vec();
    assert_eq!(
        names[0].len(),
        9,
        "shared, 3 banks, their optimizer state, state.json: {:?}",
        names[0]
    );
    assert!(names.iter().all(|of_world| of_world == &names[0]));
}

/// A checkpoint of another shape is refused by the tensor's name, and nothing is silently loaded.
#[test]
fn parts_of_another_rank_size_are_refused() {
    let fixture = Fixture::new();
    let (_store, group) = alone();
    let small = config(&fixture, |config| config.adapter.rank = 3);
    let mut before = session(&small);
    train(&mut before, &group, 1);
    let parts = parts_of(&before, 1);
    let error = session(&config(&fixture, |_| ()))
        .restore(|name| read(&parts, name))
        .expect_err("it does not fit");
    let message = error.to_string();
    assert!(message.contains("lora.") && message.contains("[3, "), "{message}");
}

fn parts_of(session: &Session, world_size: u32) -> BTreeMap<String, Vec<u8>> {
    let mut parts = BTreeMap::new();
    for rank in 0..world_size {
        for part in session
            .parts(Rank(rank), WorldSize(world_size))
            .expect("parts can be built")
        {
            assert!(
                parts.insert(part.name, part.bytes).is_none(),
                "no part is written twice"
            );
        }
    }
    parts
}

fn read(parts: &BTreeMap<String, Vec<u8>>, name: &str) -> Result<Vec<u8>, TrainError> {
    parts
        .get(name)
        .cloned()
        .ok_or_else(|| TrainError::State(format!("no part `{name}`")))
}

//! Sessions on one rank or on several, which are threads of this process with real process groups between them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use zipper_collectives::{Backend, CollectiveError, GroupOptions, RollCall, Store};
use zipper_config::schema::RunConfig;
use zipper_data::{DurationLimits, Utterance, load_corpus};
use zipper_model::param::{Param, ParamScope};
use zipper_plan::{Placement, PlacementProblem, WorkModel};
use zipper_tests::Fixture;
use zipper_train::TrainError;
use zipper_train::replica::Replica;
use zipper_train::session::{Origin, Session};
use zipper_train::step::{StepReport, Votes};
use zipper_train::team::Team;
use zipper_types::{Rank, Stage, Step, WorldSize};

pub(crate) const HOST: &str = "127.0.0.1";
pub(crate) const TIMEOUT: Duration = Duration::from_mins(1);

/// The fixture's configuration, edited.
pub(crate) fn config(fixture: &Fixture, edit: impl Fn(&mut RunConfig)) -> RunConfig {
    let path = fixture.path().join("run.yaml");
    let mut config = zipper_config::load(&path, &[]).expect("the fixture's configuration is valid");
    edit(&mut config);
    config
}

fn corpus(config: &RunConfig) -> Vec<Utterance> {
    let limits = DurationLimits::from(&config.data);
    let corpus = load_corpus(&config.data.train, &config.data.languages, limits).expect("a valid manifest");
    corpus.utterances
}

/// Who owns what when work is seconds of audio.
pub(crate) fn placement(config: &RunConfig, world_size: u32) -> Placement {
    let mut work = vec![0.0; config.data.languages.len()];
    for utterance in corpus(config) {
        work[utterance.language] += utterance.duration;
    }
    Placement::solve(&PlacementProblem {
        work,
        world_size: WorldSize(world_size),
        max_banks_per_rank: None,
    })
    .expect("memory is no limit")
}

/// Runs `body` with the session of each rank of a world; returns the results in rank order.
pub(crate) fn on_ranks<T: Send>(
    config: &RunConfig,
    world_size: u32,
    body: impl Fn(Session) -> T + Sync,
) -> Vec<T> {
    let (_store, port) = Store::serve(HOST, TIMEOUT).expect("a port is free");
    let placement = placement(config, world_size);
    std::thread::scope(|scope| {
        let (body, placement) = (&body, &placement);
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                scope.spawn(move || {
                    // Tensors are tiny: threads would only wait for each other.
                    tch::set_num_threads(1);
                    let store = Store::connect(HOST, port, TIMEOUT).expect("the store answers");
                    let gloo = GroupOptions::gloo(HOST, TIMEOUT);
                    body(session(config, Rank(rank), placement.clone(), &store, gloo))
                })
            })
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().expect("a rank does not panic"))
            .collect()
    })
}

/// The session of one rank.
fn session(
    config: &RunConfig,
    rank: Rank,
    placement: Placement,
    store: &Store,
    options: GroupOptions,
) -> Session {
    let mut session = outside(config, options.device);
    let options = GroupOptions {
        roll_call: Some(RollCall::new(store).expect("the store answers")),
        ..options
    };
    let team = team(config, rank, placement, store, &options).expect("the groups form");
    session
        .regroup(team, Step(0), &Origin::Fresh)
        .expect("the ranks begin together");
    session
}

/// A session that has joined nobody yet.
pub(crate) fn outside(config: &RunConfig, device: Device) -> Session {
    let replica = Replica::load(config, Stage::Align, device, BTreeSet::new()).expect("valid models");
    Session::new(replica, corpus(config)).expect("a batch can be drawn")
}

/// The process groups of one rank.
pub(crate) fn team(
    config: &RunConfig,
    rank: Rank,
    placement: Placement,
    store: &Store,
    options: &GroupOptions,
) -> Result<Team, CollectiveError> {
    let work = WorkModel::unmeasured(config.data.languages.len());
    Team::form(store, rank, 0, config, placement, work, options)
}

/// The session of a world of one.
pub(crate) fn alone(config: &RunConfig) -> Session {
    alone_on(config, Device::Cpu, Backend::Gloo)
}

/// The same on another device.
pub(crate) fn alone_on(config: &RunConfig, device: Device, backend: Backend) -> Session {
    tch::set_num_threads(1);
    let (store, _) = Store::serve(HOST, TIMEOUT).expect("a port is free");
    let options = GroupOptions {
        device,
        backend,
        ..GroupOptions::gloo(HOST, TIMEOUT)
    };
    session(config, Rank(0), placement(config, 1), &store, options)
}

/// Trains from where `session` stands to `until` completed steps, entering stage 2 on the way.
pub(crate) fn reports(session: &mut Session, until: u64) -> Vec<StepReport> {
    let boundary = session.replica().config().training.align.steps;
    let mut reports = Vec::new();
    while session.step().0 < until {
        if session.step().0 == boundary {
            session.enter(Stage::Zipper).expect("stage 2 can begin");
        }
        reports.push(session.train_step(Votes::default()).expect("a step can be made"));
    }
    reports
}

/// The losses of [`reports`].
pub(crate) fn train(session: &mut Session, until: u64) -> Vec<f64> {
    reports(session, until).iter().map(|report| report.loss).collect()
}

/// Steps of both stages.
pub(crate) fn all_steps(config: &RunConfig) -> u64 {
    config.training.align.steps + config.training.zipper.steps
}

/// `shared/lora.<site>.A`, `bank.2/lora.<site>.B`.
pub(crate) fn label(param: &Param) -> String {
    match param.scope {
        ParamScope::Shared => format!("shared/{}", param.name),
        ParamScope::Bank(language) => format!("bank.{language}/{}", param.name),
    }
}

/// The values of all parameters on this rank.
pub(crate) fn values(session: &Session) -> BTreeMap<String, Vec<f64>> {
    let value = |param: &Param| {
        let flat = param.tensor.detach().to_kind(Kind::Double).reshape([-1]);
        Vec::<f64>::try_from(flat).expect("a row of numbers")
    };
    let params = session.replica().params();
    params
        .into_iter()
        .map(|param| (label(param), value(param)))
        .collect()
}

/// The value of one shared parameter.
pub(crate) fn value_of(session: &Session, name: &str) -> Tensor {
    let params = session.replica().params();
    let param = params
        .iter()
        .find(|param| param.name == name)
        .expect("the parameter exists");
    param.tensor.detach().copy()
}

pub(crate) fn assert_close(expected: &[f64], found: &[f64], tolerance: f64, what: &str) {
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

/// The parameters of two runs, each tensor's difference relative to its norm.
pub(crate) fn assert_same_parameters(
    expected: &BTreeMap<String, Vec<f64>>,
    found: &BTreeMap<String, Vec<f64>>,
    tolerance: f64,
    what: &str,
) {
    assert!(expected.keys().eq(found.keys()), "{what}: nothing is lost or new");
    for (name, expected) in expected {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let difference = norm(&mut expected.iter().zip(&found[name]).map(|(a, b)| a - b));
        let norm = norm(&mut expected.iter().copied());
        assert!(
            difference <= tolerance * norm,
            "{what}: `{name}` differs by {difference:e} of {norm:e}"
        );
    }
}

/// The parts of a checkpoint that ranks write, by name; none is written twice.
pub(crate) fn parts_of(sessions: &[Session]) -> BTreeMap<String, Vec<u8>> {
    let mut parts = BTreeMap::new();
    for part in sessions
        .iter()
        .flat_map(|session| session.parts().expect("parts can be built"))
    {
        assert!(
            parts.insert(part.name, part.bytes).is_none(),
            "no part is written twice"
        );
    }
    parts
}

pub(crate) fn read(parts: &BTreeMap<String, Vec<u8>>, names: &[String]) -> Result<Vec<Vec<u8>>, TrainError> {
    let part = |name| {
        let part = parts.get(name).cloned();
        part.ok_or_else(|| TrainError::State(format!("no part `{name}`")))
    };
    names.iter().map(part).collect()
}

//! Goal: a run whose ranks are lost, replaced or joined by others, at whatever moment, equals the run that was not (docs/recovery.md),
//! without anything being read from a checkpoint; and what is remembered is what is promised.
//! Method: ranks are threads with real process groups. A rank is lost by letting go of its session, so that the others fail in
//! the middle of their next step, or its connections are closed after so many collectives. As with the coordinator, one rank's failure
//! ends the generation for all, and those who are left agree about the newest step that they hold.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use tch::Device;
use zipper_collectives::{AbortHandle, FlightRecorder, GroupOptions, Store};
use zipper_config::schema::{Dtype, RunConfig};
use zipper_tests::Fixture;
use zipper_train::TrainError;
use zipper_train::memory::HeldState;
use zipper_train::session::{Origin, Session};
use zipper_train::step::{StepReport, Votes};
use zipper_types::{Rank, Stage, Step, Variant};

use crate::support::{
    HOST, TIMEOUT, alone, assert_close, assert_same_parameters, config, outside, placement, reports, team,
    values,
};

/// Steps of the runs here.
const STEPS: u64 = 12;

/// One membership of a run.
struct Generation {
    /// Workers in the order of their ranks.
    members: Vec<usize>,
    /// Completed steps at its end.
    until: u64,
    end: End,
    /// The steps behind the newest that it starts from, as if that one had not been completed everywhere.
    back: u64,
}

enum End {
    /// All leave at the same step.
    Together,
    /// Some are lost in the middle of the next step.
    Lost(Vec<usize>),
    /// The connections of one are closed after so many collectives, at the latest at the end.
    Broken { worker: usize, after: u64 },
}

fn generation(members: &[usize], until: u64, lose: &[usize]) -> Generation {
    Generation {
        members: members.to_vec(),
        until,
        end: if lose.is_empty() {
            End::Together
        } else {
            End::Lost(lose.to_vec())
        },
        back: 0,
    }
}

/// The newest step that `held` is complete of, at least `back` before the newest of all, and who has what of it.
fn plan(held: &[Vec<HeldState>], banks: bool, languages: usize, back: u64) -> (Step, Origin) {
    let newest = held.iter().flatten().map(|held| held.step.0).max().unwrap_or(0);
    let who = |step: u64, has: &dyn Fn(&HeldState) -> bool| {
        let index = held
            .iter()
            .position(|held| held.iter().any(|held| held.step.0 == step && has(held)))?;
        Some(Rank(index as u32))
    };
    for step in (0..=newest.saturating_sub(back)).rev() {
        let Some(shared) = who(step, &|held| held.shared) else {
            continue;
        };
        let of_shared = &held[shared.0 as usize];
        let stage = of_shared
            .iter()
            .find(|held| held.step.0 == step)
            .map(|held| held.stage);
        let of_banks: Option<Vec<Rank>> = if banks && stage == Some(Stage::Zipper) {
            (0..languages)
                .map(|language| who(step, &|held| held.banks.contains(&language)))
                .collect()
        } else {
            Some(Vec::new())
        };
        if let Some(banks) = of_banks {
            return (Step(step), Origin::Memory { shared, banks });
        }
    }
    (Step(0), Origin::Fresh)
}

/// What a run came to.
#[derive(Default)]
struct Run {
    losses: BTreeMap<u64, f64>,
    parameters: BTreeMap<String, Vec<f64>>,
    /// The step that each generation started from.
    starts: Vec<u64>,
    /// Collectives between all ranks that the worker whose connections were closed had made in its generation.
    collectives: u64,
}

/// A run of several generations, as its threads see it.
struct Play<'a> {
    config: &'a RunConfig,
    generations: &'a [Generation],
    port: u16,
    run: Mutex<Run>,
    barriers: Vec<Barrier>,
    held: Vec<Mutex<BTreeMap<usize, Vec<HeldState>>>>,
    failing: Vec<Mutex<Failing>>,
}

/// How the failure of one rank ends its generation for all.
#[derive(Default)]
struct Failing {
    over: bool,
    handles: Vec<AbortHandle>,
}

impl Failing {
    fn add(&mut self, handles: &[AbortHandle]) {
        self.handles.extend_from_slice(handles);
        if self.over {
            self.end();
        }
    }

    fn end(&mut self) {
        self.over = true;
        self.handles.iter().for_each(AbortHandle::abort);
    }
}

/// Plays `generations`, one after the other.
fn play(config: &RunConfig, generations: &[Generation]) -> Run {
    let (_store, port) = Store::serve(HOST, TIMEOUT).expect("a port is free");
    let members = generations.iter().flat_map(|generation| &generation.members);
    let workers = 1 + members.max().expect("members");
    let barrier = |generation: &Generation| Barrier::new(generation.members.len());
    let play = Play {
        config,
        generations,
        port,
        run: Mutex::default(),
        barriers: generations.iter().map(barrier).collect(),
        held: generations.iter().map(|_| Mutex::default()).collect(),
        failing: generations.iter().map(|_| Mutex::default()).collect(),
    };
    thread::scope(|scope| {
        for worker in 0..workers {
            let play = &play;
            scope.spawn(move || play.work(worker));
        }
    });
    play.run.into_inner().unwrap()
}

impl Play<'_> {
    /// What one worker does in all generations.
    fn work(&self, worker: usize) {
        tch::set_num_threads(1);
        let mut session = outside(self.config, Device::Cpu);
        for (number, generation) in self.generations.iter().enumerate() {
            let Some(rank) = generation.members.iter().position(|&member| member == worker) else {
                continue;
            };
            self.held[number].lock().unwrap().insert(rank, session.held());
            self.barriers[number].wait();
            if self
                .take_part(&mut session, number, worker, Rank(rank as u32))
                .is_err()
            {
                self.failing[number].lock().unwrap().end();
            }
            match &generation.end {
                End::Lost(lost) if lost.contains(&worker) => return,
                End::Lost(_) => step_without_peers(self.config, &mut session),
                End::Together | End::Broken { .. } => {}
            }
            session.leave();
        }
        let last = self.generations.last().expect("a generation");
        if last.members.contains(&worker) {
            assert_eq!(session.step().0, STEPS, "the last generation comes to the end");
            let mut run = self.run.lock().unwrap();
            // Who left a team keeps what it had: the parameters are still those of the last step.
            for (name, found) in values(&session) {
                let first = run
                    .parameters
                    .entry(name.clone())
                    .or_insert_with(|| found.clone());
                assert_eq!(
                    found, *first,
                    "`{name}` is the same to the last bit wherever it is"
                );
            }
        }
    }

    /// One worker in one generation, until that ends or breaks.
    fn take_part(
        &self,
        session: &mut Session,
        number: usize,
        worker: usize,
        rank: Rank,
    ) -> Result<(), TrainError> {
        let (config, generation) = (self.config, &self.generations[number]);
        let all: Vec<Vec<HeldState>> = self.held[number].lock().unwrap().values().cloned().collect();
        let banks = config.adapter.variant != Variant::Shared;
        let (step, origin) = plan(&all, banks, config.data.languages.len(), generation.back);
        if rank == Rank(0) {
            self.run.lock().unwrap().starts.push(step.0);
        }
        let store = Store::connect(HOST, self.port, TIMEOUT).expect("the store answers");
        let store = store.prefix(&format!("generation-{number}")).expect("a prefix");
        let options = GroupOptions::gloo(HOST, TIMEOUT);
        let recorder = options.recorder.clone();
        let placement = placement(config, generation.members.len() as u32);
        let team = team(config, rank, placement, &store, &options)?;
        let handles = team.abort_handles();
        self.failing[number].lock().unwrap().add(&handles);
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            if let End::Broken {
                worker: broken,
                after,
            } = generation.end
                && broken == worker
            {
                let (ended, recorder) = (&ended, &recorder);
                scope.spawn(move || break_off(&handles, recorder, after, ended));
            }
            let result = session
                .regroup(team, step, &origin)
                .and_then(|()| self.steps(session, generation.until));
            ended.store(true, Ordering::Release);
            if matches!(generation.end, End::Broken { worker: broken, .. } if broken == worker) {
                self.run.lock().unwrap().collectives = collectives(&recorder);
            }
            result
        })
    }

    fn steps(&self, session: &mut Session, until: u64) -> Result<(), TrainError> {
        while session.step().0 < until {
            if session.step().0 == self.config.training.align.steps {
                session.enter(Stage::Zipper)?;
            }
            let report = session.train_step(Votes::default())?;
            // The same on all ranks; the first one may be cut off before it knows.
            self.run.lock().unwrap().losses.insert(report.step.0, report.loss);
        }
        Ok(())
    }
}

/// Collectives between all ranks so far.
fn collectives(recorder: &FlightRecorder) -> u64 {
    let records = recorder.records();
    let of_world = records.iter().filter(|record| record.group == "world");
    of_world.map(|record| record.sequence).max().unwrap_or(0)
}

/// Closes the connections of a worker when it has begun `after` collectives.
fn break_off(handles: &[AbortHandle], recorder: &FlightRecorder, after: u64, ended: &AtomicBool) {
    while collectives(recorder) < after && !ended.load(Ordering::Acquire) {
        thread::yield_now();
    }
    handles.iter().for_each(AbortHandle::abort);
}

fn step_without_peers(config: &RunConfig, session: &mut Session) {
    if session.step().0 == config.training.align.steps && session.enter(Stage::Zipper).is_err() {
        return;
    }
    session.train_step(Votes::default()).expect_err("a peer is lost");
}

fn tiny(fixture: &Fixture, variant: Variant, snapshot_every: u64) -> RunConfig {
    config(fixture, |config| {
        config.adapter.variant = variant;
        config.model.dtype = Dtype::F64;
        config.training.align.steps = 4;
        config.training.zipper.steps = STEPS - 4;
        config.training.batch_audio_seconds = 6.0;
        config.training.micro_batch_audio_seconds = 1.5;
        config.training.optimizer.eps = 1e-6;
        config.elastic.snapshot_every = snapshot_every;
        config.runtime.bucket_mib = 0.002;
    })
}

/// The run that nobody disturbed.
struct Undisturbed {
    losses: Vec<f64>,
    parameters: BTreeMap<String, Vec<f64>>,
}

fn undisturbed(config: &RunConfig) -> Undisturbed {
    let mut session = alone(config);
    let losses = |reports: Vec<StepReport>| reports.iter().map(|report| report.loss).collect();
    Undisturbed {
        losses: losses(reports(&mut session, STEPS)),
        parameters: values(&session),
    }
}

impl Undisturbed {
    fn assert_equal(&self, run: &Run, what: &str) {
        let losses: Vec<f64> = run.losses.values().copied().collect();
        assert_close(&self.losses, &losses, 1e-9, what);
        assert_same_parameters(&self.parameters, &run.parameters, 1e-9, what);
    }
}

/// Plays `generations` and compares with the run that nobody disturbed; returns the steps that generations started from.
fn check(config: &RunConfig, generations: &[Generation]) -> Vec<u64> {
    let run = play(config, generations);
    undisturbed(config).assert_equal(&run, config.adapter.variant.name());
    run.starts
}

/// A rank of a world of `world_size` that alone owns a bank.
fn sole_owner(config: &RunConfig, world_size: u32) -> usize {
    let placement = placement(config, world_size);
    let mut owners = (0..config.data.languages.len()).map(|language| placement.owners(language));
    let sole = owners.find(|owners| owners.clone().count() == 1);
    *sole.expect("few ranks share few banks").start() as usize
}

fn all_but(world_size: usize, lost: usize) -> Vec<usize> {
    (0..world_size).filter(|&worker| worker != lost).collect()
}

/// Four ranks, of which one is lost in stage 1 and one at its end; later two come back, and another one is lost. With a snapshot
/// after every step no step is made twice.
#[test]
fn ranks_come_and_go_and_nothing_is_lost() {
    for variant in Variant::ALL {
        let fixture = Fixture::new();
        let starts = check(
            &tiny(&fixture, variant, 1),
            &[
                generation(&[0, 1, 2, 3], 2, &[3]),
                generation(&[0, 1, 2], 4, &[0]),
                generation(&[1, 2], 6, &[]),
                generation(&[4, 1, 2, 5], 8, &[2]),
                generation(&[4, 1, 5], 10, &[1]),
                generation(&[4, 5], 12, &[]),
            ],
        );
        assert_eq!(starts, [0, 2, 4, 6, 8, 10], "{variant}");
    }
}

/// With a snapshot after every third step the steps since the last one are made again, if the only owner of a bank is lost;
/// without banks none.
#[test]
fn a_lost_bank_goes_back_to_the_last_snapshot() {
    for (variant, start) in [
        (Variant::Soft, 9),
        (Variant::Independent, 9),
        (Variant::Shared, 11),
    ] {
        let fixture = Fixture::new();
        let config = tiny(&fixture, variant, 3);
        let lost = sole_owner(&config, 2);
        let starts = check(
            &config,
            &[
                generation(&[0, 1], 11, &[lost]),
                generation(&all_but(2, lost), 12, &[]),
            ],
        );
        assert_eq!(starts, [0, start], "{variant}");
    }
}

/// The first snapshot of a generation is made after its first step: a bank is not lost with an owner that is lost soon after, though
/// the banks have moved and no step at which snapshots are due was made.
#[test]
fn a_second_loss_soon_after_the_first_loses_no_bank() {
    let fixture = Fixture::new();
    let config = tiny(&fixture, Variant::Soft, 100);
    let lost = sole_owner(&config, 2);
    let starts = check(
        &config,
        &[
            generation(&[0, 1, 2], 6, &[]),
            generation(&[2, 1], 8, &[[2, 1][lost]]),
            generation(&[[1, 2][lost]], 12, &[]),
        ],
    );
    assert_eq!(starts, [0, 6, 7]);
}

/// Ranks that are one step apart go on from the step that both have; also where that is the first of a stage.
#[test]
fn the_step_before_is_remembered() {
    for until in [3, 5, 8] {
        let fixture = Fixture::new();
        let mut second = generation(&[0, 1, 2], 12, &[]);
        second.back = 1;
        let starts = check(
            &tiny(&fixture, Variant::Soft, 1),
            &[generation(&[0, 1, 2], until, &[]), second],
        );
        assert_eq!(starts, [0, until - 1]);
    }
}

/// A worker that was cut off while the others made the same steps again comes back with the step that they go back to: its values are
/// those of another summation order, and yet all replicas end with the same bits.
#[test]
fn replicas_are_the_same_bits_after_a_worker_was_cut_off() {
    let fixture = Fixture::new();
    let mut without = generation(&[0, 1], 7, &[]);
    without.back = 1;
    let mut together = generation(&[0, 1, 2], 12, &[]);
    together.back = 1;
    let starts = check(
        &tiny(&fixture, Variant::Soft, 1),
        &[generation(&[0, 1, 2], 6, &[]), without, together],
    );
    assert_eq!(starts, [0, 5, 6]);
}

/// Without snapshots the only owner of a bank takes it away; the rest of the run begins anew.
#[test]
fn without_snapshots_a_lost_bank_is_lost() {
    let fixture = Fixture::new();
    let config = tiny(&fixture, Variant::Soft, 0);
    let lost = sole_owner(&config, 2);
    let starts = check(
        &config,
        &[
            generation(&[0, 1], 6, &[lost]),
            generation(&all_but(2, lost), 12, &[]),
        ],
    );
    assert_eq!(starts[0], 0);
    assert!(starts[1] <= 4, "stage 2 needs all banks: {starts:?}");
}

/// Breaks the second of three generations, of three ranks, after every `stride`-th collective, wherever in a step that is: in
/// gradients, norms or copies of banks. The rank whose connections are closed is lost for good, or not.
fn break_everywhere(variant: Variant, snapshot_every: u64, first: usize, stride: usize) {
    let fixture = Fixture::new();
    let config = tiny(&fixture, variant, snapshot_every);
    let expected = undisturbed(&config);
    let broken = sole_owner(&config, 3);
    let run = |after: u64, dies: bool| {
        let survivors = if dies { all_but(3, broken) } else { vec![0, 1, 2] };
        let generations = [
            generation(&[0, 1, 2, 3], 2, &[]),
            Generation {
                end: End::Broken {
                    worker: broken,
                    after,
                },
                ..generation(&[0, 1, 2], 9, &[])
            },
            generation(&survivors, STEPS, &[]),
        ];
        play(&config, &generations)
    };
    let collectives = run(u64::MAX, false).collectives;
    assert!(
        collectives > 20,
        "a generation of many collectives: {collectives}"
    );
    for after in (first as u64..collectives).step_by(stride) {
        for dies in [false, true] {
            let run = run(after, dies);
            let what = format!(
                "{variant}, k = {snapshot_every}, broken after {after} of {collectives}, lost: {dies}"
            );
            expected.assert_equal(&run, &what);
            let [_, second, third] = run.starts[..] else {
                panic!("{what}: three generations: {:?}", run.starts);
            };
            assert_eq!(second, 2, "{what}");
            assert!(
                third >= second,
                "{what}: nothing before the generation is needed again"
            );
        }
    }
}

#[test]
fn a_generation_may_break_anywhere() {
    break_everywhere(Variant::Soft, 3, 5, 47);
    break_everywhere(Variant::Independent, 1, 14, 61);
}

#[test]
#[ignore = "takes many minutes: every variant, broken after every collective"]
fn every_variant_may_break_after_every_collective() {
    for variant in Variant::ALL {
        for snapshot_every in [1, 3] {
            break_everywhere(variant, snapshot_every, 1, 1);
        }
    }
}
